//! The days: those that have ended are planned, what comes late gets a supplement, those past retention are dropped.
//!
//! Takes: the counts in the store, a page at a time. Gives: plans in the store, each with its moment.
//! A count is in a report, in the one supplement, or dropped and counted as such: a plan keeps the sum of the counts that
//! have found their place, and what has grown since is late.
//! Limits: [`PAGE`] domains or records at a time; one supplement a day and domain.
//! When it fails: nothing is lost; the next look at the days begins anew.
//! Not here: when a plan's time has come (`pick`).

use std::sync::Arc;

use tokio::sync::watch;

use crate::base::tlsrpt::Day;
use crate::reporting::schedule::records::{Named, Plan, PlanState, Which, forget};
use crate::reporting::schedule::{GATHER, Scheduler, within};
use crate::store::{Batch, Store, StoreError, Table};

/// How many domains or records are looked at in one go: a few milliseconds, in which no count is written.
const PAGE: usize = 500;

/// What counts that found no place in a report are counted under.
const DROPPED: &str = "late-counts-dropped";

impl Scheduler {
    /// Drops the days past retention and plans the days that have ended; whether that went well.
    pub(super) async fn keep_days(&self, shutdown: &watch::Receiver<bool>) -> bool {
        let now = self.context.clock.seconds();
        let (retention, spread) = {
            let setup = self.setup.read();
            (setup.retention, setup.spread)
        };
        let oldest = Day::of(now.saturating_sub(retention));
        let kept = async {
            self.drop_before(oldest).await?;
            self.plan_between(oldest, Day::of(now), spread, shutdown).await
        };
        let kept: Result<(), String> = kept.await;
        if let Err(e) = &kept {
            self.error(format!("report: planning failed: {e}; it is tried again in a minute"));
        }
        kept.is_ok()
    }

    async fn drop_before(&self, oldest: Day) -> Result<(), String> {
        self.board.lock().forced.retain(|day| *day >= oldest);
        let mut past = self.blocking(|store| store.days()).await.map_err(text)?;
        past.retain(|day| *day < oldest);
        for day in &past {
            self.count_unplanned(*day).await?;
        }
        loop {
            let page = self.blocking(|store| store.scan_page(Table::Delivery, b"", b"", PAGE)).await.map_err(text)?;
            let mut batch = Batch::default();
            let mut open: Vec<Which> = Vec::new();
            for (key, value) in &page {
                match Named::read(key) {
                    Some(Named::Plan(which) | Named::Delivery(which, _)) if which.day < oldest => {
                        if forget(&mut batch, key, value) && open.last() != Some(&which) {
                            open.push(which);
                        }
                    }
                    Some(_) => break,
                    None => drop(forget(&mut batch, key, value)),
                }
            }
            if batch.set.is_empty() {
                break;
            }
            self.journal.write(batch).await?;
            for of_day in open.chunk_by(|a, b| a.day == b.day) {
                let (day, domains) = (of_day[0].day, of_day.len());
                self.error(format!(
                    "report {day}: expired: retention is over; the results of {domains} domains were not reported"
                ));
            }
        }
        if !past.is_empty() {
            self.blocking(move |store| store.drop_days_before(oldest)).await.map_err(text)?;
        }
        Ok(())
    }

    /// Counts what is dropped of a day without ever having been planned.
    async fn count_unplanned(&self, day: Day) -> Result<(), String> {
        let mut after: Option<String> = None;
        loop {
            let from = after.take();
            let unplanned = move |store: &dyn Store| -> Result<_, StoreError> {
                let sums = store.domain_sums(day, from.as_deref(), PAGE)?;
                let last = sums.last().map(|(domain, _)| domain.clone());
                let mut dropped = 0_u64;
                for (domain, sum) in sums {
                    let planned = match domain.parse() {
                        Ok(about) => store.read(Table::Delivery, &Which::first(day, about).key())?.is_some(),
                        Err(_) => false,
                    };
                    dropped = dropped.saturating_add(if planned { 0 } else { sum });
                }
                Ok((last, dropped))
            };
            let (last, dropped) = self.blocking(unplanned).await.map_err(text)?;
            self.context.metrics.add(DROPPED, dropped);
            match last {
                None => return Ok(()),
                last => after = last,
            }
        }
    }

    /// Gives each domain of the days from `oldest` to before `today` its moment.
    async fn plan_between(
        &self,
        oldest: Day,
        today: Day,
        spread: i64,
        shutdown: &watch::Receiver<bool>,
    ) -> Result<(), String> {
        let not_before = self.board.lock().not_before.unwrap_or(oldest).max(oldest);
        let days = self.blocking(|store| store.days()).await.map_err(text)?;
        for day in days.into_iter().filter(|day| (not_before..today).contains(day)) {
            let mut after: Option<String> = None;
            while !*shutdown.borrow() {
                let (from, now) = (after.take().map(Arc::<str>::from), self.context.clock.seconds());
                let page = move |store: &dyn Store| plan_page(store, day, from.as_deref(), now, spread);
                let page = self.blocking(page).await.map_err(text)?;
                if !page.batch.set.is_empty() {
                    self.journal.write(page.batch).await?;
                    self.context.metrics.add(DROPPED, page.dropped);
                    self.planned.notify_one();
                }
                if page.dropped > 0 {
                    tracing::warn!(
                        "report {day}: late counts dropped: their supplement has gone; {} counts are in no report",
                        page.dropped
                    );
                }
                match page.last {
                    None => break,
                    last => after = last,
                }
            }
        }
        Ok(())
    }
}

/// What a page of domains comes to.
#[derive(Default)]
struct Page {
    batch: Batch,
    dropped: u64,
    last: Option<String>,
}

fn plan_page(store: &dyn Store, day: Day, after: Option<&str>, now: i64, spread: i64) -> Result<Page, StoreError> {
    let mut page = Page::default();
    for (domain, sum) in store.domain_sums(day, after, PAGE)? {
        page.last = Some(domain.clone());
        // What is no domain name gets no report, and is counted when it is dropped.
        let Ok(about) = domain.parse() else { continue };
        let which = Which::first(day, about);
        let Some(plan) = read(store, &which)? else {
            Plan::at(day.end() + within(spread)).put(&mut page.batch, &which, None);
            continue;
        };
        // What was settled at the look-up has its place; before it, all has; where nobody wants a report, nothing has.
        if plan.state == PlanState::Waiting || plan.counted == 0 || sum <= plan.counted {
            continue;
        }
        let which = which.supplement();
        match read(store, &which)? {
            None => Plan::at(now + GATHER + within(spread)).put(&mut page.batch, &which, None),
            Some(supplement) if supplement.state != PlanState::Waiting && sum > supplement.counted => {
                page.dropped = page.dropped.saturating_add(sum - supplement.counted.max(plan.counted));
                let told = Plan { counted: sum, ..supplement.clone() };
                told.put(&mut page.batch, &which, Some(&supplement));
            }
            Some(_) => {}
        }
    }
    Ok(page)
}

pub(super) fn read(store: &dyn Store, which: &Which) -> Result<Option<Plan>, StoreError> {
    Ok(store.read(Table::Delivery, &which.key())?.map(|octets| Plan::read(&octets)))
}

fn text(error: StoreError) -> String {
    error.to_string()
}
