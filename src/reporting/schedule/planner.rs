//! The days: those that have ended are planned, what comes late gets a supplement, those past retention are dropped.
//!
//! Takes: the counts in the store, a page at a time. Gives: plans in the store, each with its moment.
//! A count is in a report, in the one supplement, or dropped and counted as such: a plan keeps the sum of the counts that
//! have found their place, and what has grown since is late.
//! Limits: [`PAGE_SIZE`] domains or records at a time; one supplement a day and domain.
//! When it fails: nothing is lost; the next look at the days begins anew.
//! Not here: when a plan is due (`due_jobs`).

use std::sync::Arc;

use tokio::sync::watch;

use crate::base::tlsrpt::Day;
use crate::reporting::schedule::mx_hosts::{self, DomainsOfHosts};
use crate::reporting::schedule::records::{
    PlanState, RecordKey, ReportKey, ReportPlan, hosts_prefix, read_plan, remove_record,
};
use crate::reporting::schedule::{SUPPLEMENT_DELAY, Scheduler, random_delay};
use crate::store::{Batch, Store, StoreError, Table};

/// How many domains or records are looked at in one go: a few milliseconds, in which no count is written.
const PAGE_SIZE: usize = 500;

/// How far the clock may be ahead of the newest line of all inputs while days are dropped, in seconds: a mail host is seldom
/// silent or off for so long.
const MAX_CLOCK_LEAD: i64 = 7 * 24 * 3600;

/// The counter of counts that are in no report.
const DROPPED_COUNTER: &str = "late-counts-dropped";

impl Scheduler {
    /// Drops the days past retention and plans the days that have ended. Returns whether it succeeded.
    pub(super) async fn plan_days(&self, shutdown: &watch::Receiver<bool>) -> bool {
        let now = self.context.clock.seconds();
        let (retention, spread) = {
            let settings = self.settings.read();
            (settings.retention, settings.spread)
        };
        let oldest = Day::of(now.saturating_sub(retention));
        let kept = async {
            self.drop_days_before(oldest).await?;
            self.plan_ended_days(oldest, Day::of(now), spread, shutdown).await
        };
        let kept: Result<(), String> = kept.await;
        if let Err(e) = &kept {
            self.log_error(format!("report: planning failed: {e}; it is tried again in a minute"));
        }
        kept.is_ok()
    }

    async fn drop_days_before(&self, oldest: Day) -> Result<(), String> {
        self.in_flight.lock().closed_late.retain(|day| *day >= oldest);
        let mut past = self.run_blocking(|store| store.days()).await.map_err(error_text)?;
        past.retain(|day| *day < oldest);
        if self.clock_is_ahead() {
            if let Some(first) = past.first() {
                self.log_clock_ahead(*first);
            }
            return Ok(());
        }
        for day in &past {
            self.drop_unplanned(*day).await?;
        }
        loop {
            let page = self
                .run_blocking(|store| store.scan_page(Table::Delivery, b"", b"", PAGE_SIZE))
                .await
                .map_err(error_text)?;
            let mut batch = Batch::default();
            let mut open: Vec<ReportKey> = Vec::new();
            for (key, value) in &page {
                match RecordKey::decode(key) {
                    Some(RecordKey::Plan(report_key) | RecordKey::Delivery(report_key, _))
                        if report_key.day < oldest =>
                    {
                        if remove_record(&mut batch, key, value) && open.last() != Some(&report_key) {
                            open.push(report_key);
                        }
                    }
                    Some(_) => break,
                    None => drop(remove_record(&mut batch, key, value)),
                }
            }
            if batch.set.is_empty() {
                break;
            }
            self.group_commit.write(batch).await?;
            for of_day in open.chunk_by(|a, b| a.day == b.day) {
                let (day, domains) = (of_day[0].day, of_day.len());
                self.log_error(format!(
                    "report {day}: expired: retention is over; the results of {domains} domains were not reported"
                ));
            }
        }
        for day in &past {
            self.drop_host_index(*day).await?;
        }
        if !past.is_empty() {
            self.run_blocking(move |store| store.drop_days_before(oldest)).await.map_err(error_text)?;
        }
        Ok(())
    }

    /// Whether the clock is far beyond the newest line of all inputs, or there is none yet: the clock may be wrong, and what is
    /// dropped is gone.
    fn clock_is_ahead(&self) -> bool {
        let newest = self.context.metrics.inputs().values().filter_map(|input| input.newest).max();
        newest.is_none_or(|newest| newest + MAX_CLOCK_LEAD < self.context.clock.seconds())
    }

    /// Logs it once a day.
    fn log_clock_ahead(&self, first: Day) {
        let today = Day::of(self.context.clock.seconds());
        if self.in_flight.lock().clock_ahead_logged.replace(today) != Some(today) {
            self.log_error(format!(
                "report {first}: retention is over, not dropped: no input has a line of the last 7 days; check the clock"
            ));
        }
    }

    /// Counts and logs what is dropped of a day without ever having been planned.
    async fn drop_unplanned(&self, day: Day) -> Result<(), String> {
        let mut domains = 0_u64;
        let mut after: Option<String> = None;
        loop {
            let from = after.take();
            let unplanned = move |store: &dyn Store| -> Result<_, StoreError> {
                let sums = store.domain_sums(day, from.as_deref(), PAGE_SIZE)?;
                let last = sums.last().map(|(domain, _)| domain.clone());
                let (mut dropped, mut unplanned) = (0_u64, 0_u64);
                for (domain, sum) in sums {
                    let planned = match domain.parse() {
                        Ok(subject) => store.read(Table::Delivery, &ReportKey::first(day, subject).encode())?.is_some(),
                        Err(_) => false,
                    };
                    dropped = dropped.saturating_add(if planned { 0 } else { sum });
                    unplanned += u64::from(!planned);
                }
                Ok((last, dropped, unplanned))
            };
            let (last, dropped, of_page) = self.run_blocking(unplanned).await.map_err(error_text)?;
            self.context.metrics.add(DROPPED_COUNTER, dropped);
            domains += of_page;
            match last {
                None => break,
                last => after = last,
            }
        }
        if domains > 0 {
            self.log_error(format!(
                "report {day}: expired: retention is over; the results of {domains} domains were never planned nor reported"
            ));
        }
        Ok(())
    }

    /// Removes the index of MX hosts of a day.
    async fn drop_host_index(&self, day: Day) -> Result<(), String> {
        loop {
            let page = move |store: &dyn Store| store.scan_page(Table::Due, &hosts_prefix(day), b"", PAGE_SIZE);
            let page = self.run_blocking(page).await.map_err(error_text)?;
            if page.is_empty() {
                return Ok(());
            }
            let set = page.into_iter().map(|(key, _)| (Table::Due, key, None)).collect();
            self.group_commit.write(Batch { add: Vec::new(), set }).await?;
        }
    }

    /// Plans each domain of the days from `oldest` to the day before `today`.
    async fn plan_ended_days(
        &self,
        oldest: Day,
        today: Day,
        spread: i64,
        shutdown: &watch::Receiver<bool>,
    ) -> Result<(), String> {
        let not_before = self.in_flight.lock().not_before.unwrap_or(oldest).max(oldest);
        let days = self.run_blocking(|store| store.days()).await.map_err(error_text)?;
        for day in days.into_iter().filter(|day| (not_before..today).contains(day)) {
            let mut after: Option<String> = None;
            while !*shutdown.borrow() {
                let (from, now) = (after.take().map(Arc::<str>::from), self.context.clock.seconds());
                let page = move |store: &dyn Store| plan_page(store, day, from.as_deref(), now, spread);
                // Late rows may plan reports about MX hosts, as look-ups do.
                let turn = self.planning_mx_hosts.lock().await;
                let page = self.run_blocking(page).await.map_err(error_text)?;
                if !page.batch.set.is_empty() {
                    self.group_commit.write(page.batch).await?;
                    self.context.metrics.add(DROPPED_COUNTER, page.dropped);
                    self.new_plans.notify_one();
                }
                drop(turn);
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

/// The plans of a page of domains.
#[derive(Default)]
pub(super) struct PlannedPage {
    pub(super) batch: Batch,
    dropped: u64,
    last: Option<String>,
}

pub(super) fn plan_page(
    store: &dyn Store,
    day: Day,
    after: Option<&str>,
    now: i64,
    spread: i64,
) -> Result<PlannedPage, StoreError> {
    let mut page = PlannedPage::default();
    let mut late_hosts = DomainsOfHosts::new();
    for (domain, sum) in store.domain_sums(day, after, PAGE_SIZE)? {
        page.last = Some(domain.clone());
        // What is no domain name gets no report, and is counted when it is dropped.
        let Ok(subject) = domain.parse() else { continue };
        let report_key = ReportKey::first(day, subject);
        let Some(plan) = read_plan(store, &report_key)? else {
            ReportPlan::waiting_until(day.end() + random_delay(spread)).add_to_batch(
                &mut page.batch,
                &report_key,
                None,
            );
            continue;
        };
        // Counts up to `plan.counted` are in the report. Before the look-up, all will be; if the domain wants no report, none
        // are.
        if plan.state == PlanState::Nothing && plan.counted == 0 && sum > plan.seen {
            for host in mx_hosts::hosts_of(&store.rows(day, &domain)?) {
                late_hosts.entry(host).or_default().push(domain.clone());
            }
            ReportPlan { seen: sum, ..plan.clone() }.add_to_batch(&mut page.batch, &report_key, Some(&plan));
        }
        if plan.state == PlanState::Waiting || plan.counted == 0 || sum <= plan.counted {
            continue;
        }
        let report_key = report_key.as_supplement();
        match read_plan(store, &report_key)? {
            None => ReportPlan::waiting_until(now + SUPPLEMENT_DELAY + random_delay(spread)).add_to_batch(
                &mut page.batch,
                &report_key,
                None,
            ),
            Some(supplement) if supplement.state != PlanState::Waiting && sum > supplement.counted => {
                page.dropped = page.dropped.saturating_add(sum - supplement.counted.max(plan.counted));
                let updated = ReportPlan { counted: sum, ..supplement.clone() };
                updated.add_to_batch(&mut page.batch, &report_key, Some(&supplement));
            }
            Some(_) => {}
        }
    }
    mx_hosts::add_hosts(store, &mut page.batch, day, late_hosts, true, now + SUPPLEMENT_DELAY, spread)?;
    Ok(page)
}

fn error_text(error: StoreError) -> String {
    error.to_string()
}
