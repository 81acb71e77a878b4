//! One look-up or one try: what happens to a day and domain, or to a destination, when its time has come.
//!
//! Takes: a [`Job`]. Gives: its new record, in the store and on the board.
//! Every try is written to the store before it starts, and its outcome after.
//! When it fails: what the store hinders is put off by [`FIRST_PAUSE`]; all else is an outcome, stored and said.
//! Not here: when a job's time has come (`scheduler`).

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::record::{Delivery, DeliveryState, Entry, PlanState, delivery_key, plan_key};
use super::{FIRST_PAUSE, Job, LAST_PAUSE, RETRY_FOR, Scheduler, Setup, put, within};
use crate::own;
use crate::report::build::{Report, ReportId};
use crate::report::deliver::Outcome;
use crate::report::recipients::{About, Destination, NoRecipients, Recipients};
use crate::report::{LookupError, Sending, has_failures, look_up, shown};
use crate::store::{Batch, StoreError};
use crate::tlsrpt::Day;

/// How long a try may go on when the daemon ends.
const GRACE: Duration = Duration::from_secs(5);

impl Scheduler {
    pub(super) async fn work(self: Arc<Self>, job: Job, shutdown: watch::Receiver<bool>) {
        let setup = Arc::clone(&self.setup.read());
        if setup.sending.is_some() {
            match &job {
                Job::LookUp(day, domain) => self.look_up(*day, domain, &setup).await,
                Job::Send(day, domain, destination) => self.send(*day, domain, destination, setup, shutdown).await,
            }
        }
        self.board.lock().busy.remove(&job);
    }

    /// Looks up where the reports of a domain go, and plans its deliveries.
    async fn look_up(&self, day: Day, domain: &str, setup: &Setup) {
        let Some(sending) = &setup.sending else { return };
        let key = (day, domain.to_owned());
        let Some(mut plan) = self.board.lock().entries.get(&key).map(|entry| entry.plan.clone()) else { return };
        let about = About::Domain(domain.to_owned());
        let failures = match sending.audience.only_failures() {
            false => Ok(true),
            true => {
                let domain = domain.to_owned();
                self.blocking(move |store| store.rows(day, &domain).map(|rows| has_failures(&rows))).await
            }
        };
        let failures = match failures {
            Ok(failures) => failures,
            Err(e) => {
                self.postpone(&key, None);
                return self.error(format!("report {day} {domain}: not planned: {e}; it is tried again"));
            }
        };
        let found = match sending.audience.wants(&about, day, failures) {
            Ok(()) => look_up(&self.context.resolver, &sending.audience, &about, day).await,
            Err(unwanted) => Err(unwanted.into()),
        };
        let now = self.context.clock.seconds();
        let first = *plan.first.get_or_insert(now);
        plan.attempts += 1;
        let mut deliveries = BTreeMap::new();
        match found {
            Ok(found) => {
                self.say_skipped(day, domain, &found);
                match self.deliveries(day, &found, sending, now, setup.spread) {
                    Ok(planned) => deliveries = planned,
                    Err(e) => {
                        self.postpone(&key, None);
                        return self.error(format!("report {day} {domain}: not planned: {e}; it is tried again"));
                    }
                }
                (plan.state, plan.last) = (PlanState::Planned, None);
            }
            Err(LookupError::None(why)) => {
                match why {
                    NoRecipients::NoRecord => tracing::debug!("report {day} {domain}: none: {why}"),
                    _ => tracing::info!("report {day} {domain}: none: {why}; the domain gets no report"),
                }
                (plan.state, plan.last) = (PlanState::Nothing, Some(why.to_string()));
            }
            Err(LookupError::Temporary(why)) => {
                let why = shown(&why, 300);
                plan.next = now + pause(plan.attempts);
                plan.last = Some(why.clone());
                if plan.next - first > RETRY_FOR {
                    plan.state = PlanState::Nothing;
                    self.error(format!("report {day} {domain}: no recipient known: {why}; given up after 24 hours"));
                }
            }
        }
        let mut batch = Batch::default();
        put(&mut batch, plan_key(day, domain), &plan);
        deliveries.iter().for_each(|(to, delivery)| put(&mut batch, delivery_key(day, domain, to), delivery));
        match self.write(batch).await {
            Ok(()) => drop(self.board.lock().entries.insert(key, Entry { plan, deliveries })),
            Err(e) => {
                self.postpone(&key, None);
                self.error(format!("report {day} {domain}: not planned: {e}; it is tried again"));
            }
        }
    }

    /// One delivery for each destination: the first at once, the others each at a moment of its own in what is left of the spread.
    fn deliveries(
        &self,
        day: Day,
        found: &Recipients,
        sending: &Sending,
        now: i64,
        spread: i64,
    ) -> io::Result<BTreeMap<Destination, Delivery>> {
        let identity = &sending.identity;
        let report_id = ReportId::make(day, identity.submitter())?;
        let left = (day.end() + spread - now).max(0);
        let mut deliveries = BTreeMap::new();
        for (i, destination) in found.destinations.iter().enumerate() {
            let unique = format!("{}-{}", day.to_string().replace('-', ""), own::hex(&own::random::<8>()?));
            let delivery = Delivery {
                state: DeliveryState::Planned,
                next: if i == 0 { now } else { now + within(left) },
                first: None,
                attempts: 0,
                report_id: report_id.clone(),
                message_id: self.context.own.message_id(&unique, &identity.from.domain),
                last: None,
            };
            deliveries.insert(destination.clone(), delivery);
        }
        Ok(deliveries)
    }

    fn say_skipped(&self, day: Day, domain: &str, found: &Recipients) {
        for skipped in &found.skipped {
            tracing::info!("report {day} {domain}: {} left out: {}; the others are served", skipped.uri, skipped.why);
        }
        if found.more_skipped > 0 {
            tracing::info!("report {day} {domain}: {} more URIs left out: too many", found.more_skipped);
        }
    }

    /// One try: builds the report, stores the intent, hands it over, stores the outcome.
    async fn send(
        &self,
        day: Day,
        domain: &str,
        destination: &Destination,
        setup: Arc<Setup>,
        shutdown: watch::Receiver<bool>,
    ) {
        let key = (day, domain.to_owned());
        let planned = self.board.lock().entries.get(&key).and_then(|entry| entry.deliveries.get(destination).cloned());
        let Some(mut delivery) = planned else { return };
        let octets = match self.compose(day, domain, destination, &delivery, Arc::clone(&setup)).await {
            Ok(octets) => octets,
            Err(Hindrance::Store(e)) => {
                self.postpone(&key, Some(destination));
                return self.error(format!("report {day} {domain} to {destination}: not sent: {e}; it is tried again"));
            }
            Err(Hindrance::Report(why)) => {
                return self.note(&key, destination, &mut delivery, Outcome::Refused(why)).await;
            }
        };
        let now = self.context.clock.seconds();
        delivery.state = DeliveryState::Attempting;
        delivery.attempts += 1;
        delivery.first.get_or_insert(now);
        // The intent is on disk before the first octet goes: rule 6 of the design hangs on this line.
        if let Err(e) = self.store_delivery(&key, destination, &delivery).await {
            self.postpone(&key, Some(destination));
            return self.error(format!("report {day} {domain} to {destination}: not sent: {e}; it is tried again"));
        }
        let Some(sending) = &setup.sending else { return };
        let outcome = sending.deliver(&self.context.https, destination, &octets, self.limits, patience(shutdown)).await;
        self.note(&key, destination, &mut delivery, outcome).await;
    }

    /// The octets of one message. Reads the store, compresses and signs, so not on the tasks' threads.
    async fn compose(
        &self,
        day: Day,
        domain: &str,
        to: &Destination,
        delivery: &Delivery,
        setup: Arc<Setup>,
    ) -> Result<Vec<u8>, Hindrance> {
        let (domain, to, delivery) = (domain.to_owned(), to.clone(), delivery.clone());
        let now = self.context.clock.seconds();
        self.blocking(move |store| {
            let rows = match store.rows(day, &domain) {
                Ok(rows) => rows,
                Err(e) => return Err(Hindrance::Store(e)),
            };
            let Some(sending) = setup.sending.as_ref().filter(|_| !rows.is_empty()) else {
                return Err(Hindrance::Report("its counts are gone".to_owned()));
            };
            let report = Report::build(&sending.identity, day, &domain, &delivery.report_id, &rows, sending.max_size);
            if report.left_out > 0 {
                tracing::warn!(
                    "report {day} {domain}: too large: {} kinds of failure left out; sent so",
                    report.left_out
                );
            }
            sending.octets(&report, &to, &delivery.message_id, now).map_err(|e| Hindrance::Report(e.to_string()))
        })
        .await
    }

    /// Stores and says what a try came to.
    async fn note(&self, key: &(Day, String), to: &Destination, delivery: &mut Delivery, outcome: Outcome) {
        let now = self.context.clock.seconds();
        let subject = format!("report {} {} to {to}", key.0, key.1);
        let (state, answer, counter) = match outcome {
            Outcome::Accepted(answer) => {
                tracing::info!("{subject}: sent: {answer}");
                (DeliveryState::Sent, answer, "reports_sent")
            }
            Outcome::Refused(answer) => {
                self.error(format!("{subject}: refused: {answer}; it is not tried again"));
                (DeliveryState::Refused, answer, "reports_refused")
            }
            Outcome::Unknown(answer) => {
                self.error(format!("{subject}: unknown: {answer}; it may have arrived, it is not tried again"));
                (DeliveryState::Unknown, answer, "reports_unknown")
            }
            Outcome::Retry(answer) => {
                delivery.next = now + pause(delivery.attempts);
                if delivery.next - delivery.first.unwrap_or(now) > RETRY_FOR {
                    self.error(format!("{subject}: expired: {answer}; given up after 24 hours"));
                    (DeliveryState::Expired, answer, "reports_expired")
                } else {
                    let wait = delivery.next - now;
                    self.error(format!("{subject}: not taken: {answer}; it is tried again in {wait} s"));
                    (DeliveryState::Planned, answer, "reports_retried")
                }
            }
        };
        self.context.metrics.add(counter, 1);
        (delivery.state, delivery.last) = (state, Some(answer));
        if let Err(e) = self.store_delivery(key, to, delivery).await {
            // In this process the outcome stands; the next one finds the intent and takes it for unknown.
            self.on_board(key, to, delivery);
            self.error(format!("{subject}: outcome not stored: {e}; a restart will call it unknown"));
        }
    }

    async fn store_delivery(
        &self,
        key: &(Day, String),
        to: &Destination,
        delivery: &Delivery,
    ) -> Result<(), StoreError> {
        let mut batch = Batch::default();
        put(&mut batch, delivery_key(key.0, &key.1, to), delivery);
        self.write(batch).await?;
        self.on_board(key, to, delivery);
        Ok(())
    }

    fn on_board(&self, key: &(Day, String), to: &Destination, delivery: &Delivery) {
        if let Some(entry) = self.board.lock().entries.get_mut(key) {
            entry.deliveries.insert(to.clone(), delivery.clone());
        }
    }

    /// Puts off what the store's trouble hindered; only here, for the store would not take it.
    fn postpone(&self, key: &(Day, String), to: Option<&Destination>) {
        let next = self.context.clock.seconds() + FIRST_PAUSE;
        if let Some(entry) = self.board.lock().entries.get_mut(key) {
            match to {
                None => entry.plan.next = next,
                Some(to) => {
                    if let Some(delivery) = entry.deliveries.get_mut(to) {
                        delivery.next = next;
                    }
                }
            }
        }
    }
}

/// Why a message was not made.
enum Hindrance {
    Store(StoreError),
    Report(String),
}

/// Resolves a while after the daemon was told to end.
async fn patience(mut shutdown: watch::Receiver<bool>) {
    crate::shutdown::stopped(&mut shutdown).await;
    tokio::time::sleep(GRACE).await;
}

/// The pause after so many tries, in seconds.
pub(super) fn pause(attempts: u32) -> i64 {
    FIRST_PAUSE
        .saturating_mul(1_i64.checked_shl(attempts.saturating_sub(1).min(32)).unwrap_or(i64::MAX))
        .min(LAST_PAUSE)
}
