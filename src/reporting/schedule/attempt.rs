//! One look-up or one try: what happens to a day and domain, or to a destination, when its time has come.
//!
//! Takes: a [`Job`]. Gives: its new record, in the store.
//! With the look-up it is settled what the report says (`said`), in the same batch as the plan. Every try is written to
//! the store before it starts, and its outcome after.
//! When it fails: what the store hinders is tried again after a rest; all else is an outcome, stored and said.
//! Not here: when a job's time has come (`pick`).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::base::printable::escape_and_cut;
use crate::base::rua_record::{Destination, NoRecipients, Recipients};
use crate::base::shutdown::wait_for_shutdown;
use crate::base::tlsrpt::TallyRow;
use crate::net::tlsrpt_record::TlsrptLookupError;
use crate::reporting::report::build::{Report, ReportId};
use crate::reporting::report::message::MessageError;
use crate::reporting::report::recipients::ReportSubject;
use crate::reporting::report::{ReportSender, has_failures, look_up_served_recipients};
use crate::reporting::schedule::mx_hosts::Told;
use crate::reporting::schedule::planner;
use crate::reporting::schedule::records::{Delivery, DeliveryState, Plan, PlanState, Which, delivery_key};
use crate::reporting::schedule::snapshot::{self, Said};
use crate::reporting::schedule::{FIRST_PAUSE, GATHER, Job, LAST_PAUSE, RETRY_FOR, Scheduler, Setup, within};
use crate::reporting::transport::DeliveryOutcome;
use crate::store::{Batch, StoreError, Table};

/// How long a try may go on when the daemon ends.
const GRACE: Duration = Duration::from_secs(5);

/// How long a report about an MX host waits for one about a recipient domain that is not looked up yet, in seconds.
const WAIT_FOR_DOMAINS: i64 = 5;

/// How long it is until an outcome that could not be stored is stored again, at first and at most.
const STORE_AGAIN: Duration = Duration::from_secs(1);
const STORE_AGAIN_AT_MOST: Duration = Duration::from_secs(60);

impl Scheduler {
    pub(super) async fn work(self: Arc<Self>, job: Job, shutdown: watch::Receiver<bool>) {
        let setup = Arc::clone(&self.setup.read());
        if let Some(sending) = &setup.sending {
            match &job {
                Job::Send(which, to) => self.send(which, to, &setup, shutdown).await,
                Job::LookUp(which) => {
                    // The first report of a day goes as soon as it is known whereto.
                    if let Some(Settled { to, delivery, said }) = self.look_up(which, &setup, sending).await {
                        self.hand_over(which, &to, delivery, said, &setup, shutdown).await;
                        self.board.lock().busy.remove(&Job::Send(which.clone(), to));
                    }
                }
            }
        }
        self.board.lock().busy.remove(&job);
    }

    /// Looks up where the reports of a domain go, settles what they say and plans its deliveries. Returns the one that is
    /// due at once, which is busy from then on.
    async fn look_up(&self, which: &Which, setup: &Setup, sending: &ReportSender) -> Option<Settled> {
        let hindered = |e: String| {
            self.rest();
            self.error(format!("report {which}: not planned: {e}; it is tried again"));
        };
        let settled = match ReportId::generate(which.day, sending.identity.submitter()) {
            Ok(report_id) => self.settle(which, report_id, sending).await.map_err(|e| e.to_string()),
            Err(e) => Err(e.to_string()),
        };
        let planned = match settled {
            Ok(None) => return None,
            Ok(Some(settled)) => self.plan_hosts(which, &settled.1.rows, setup.spread).await.map(|()| settled),
            Err(e) => Err(e),
        };
        let (before, mut said, mut counted) = match planned {
            Ok(planned) => planned,
            Err(e) => {
                hindered(e);
                return None;
            }
        };
        let (found, told) = match self.where_to(which, &said.rows, sending).await {
            Ok(found) => found,
            Err(e) => {
                hindered(e.to_string());
                return None;
            }
        };
        let open = told.as_ref().is_some_and(|told| told.open);
        if let Some(told) = told {
            (counted, said.rows) = (snapshot::sum(&told.rows), told.rows);
        }
        let now = self.context.clock.seconds();
        let mut plan = Plan { attempts: before.attempts + 1, first: before.first.or(Some(now)), ..before.clone() };
        let mut batch = Batch::default();
        let mut at_once = None;
        match found {
            Ok(_) if open => {
                let wait = if which.supplement { GATHER } else { WAIT_FOR_DOMAINS };
                plan = Plan { next: now + wait, ..before.clone() };
            }
            Ok(_) if said.rows.is_empty() => {
                (plan.state, plan.last) = (PlanState::Nothing, Some("nothing was counted".to_owned()));
            }
            Ok(found) => {
                self.say_skipped(which, &found);
                let deliveries = match self.deliveries(which, &said.report_id, &found, sending, now, setup.spread) {
                    Ok(deliveries) => deliveries,
                    Err(e) => {
                        hindered(e.to_string());
                        return None;
                    }
                };
                batch.set.push((Table::Snapshot, which.key(), Some(said.pack())));
                (plan.state, plan.last, plan.counted) = (PlanState::Planned, None, counted);
                for (to, delivery) in deliveries {
                    delivery.put(&mut batch, which, &to, None);
                    if delivery.next <= now && at_once.is_none() {
                        at_once = Some((to, delivery));
                    }
                }
            }
            Err(TlsrptLookupError::None(why)) => {
                match why {
                    NoRecipients::NoRecord => tracing::debug!("report {which}: none: {why}"),
                    _ => tracing::info!("report {which}: none: {why}; the domain gets no report"),
                }
                if let NoRecipients::Unwanted(_) = why {
                    // What fails later makes a report: its supplement, which is the whole of it then.
                    plan.counted = counted;
                }
                (plan.state, plan.last) = (PlanState::Nothing, Some(why.to_string()));
            }
            Err(TlsrptLookupError::Temporary(why)) => {
                let why = escape_and_cut(&why, 300);
                plan.next = now + pause(plan.attempts);
                plan.last = Some(why.clone());
                if plan.next - plan.first.unwrap_or(now) > RETRY_FOR {
                    plan.state = PlanState::Nothing;
                    self.error(format!("report {which}: no recipient known: {why}; given up after 24 hours"));
                }
            }
        }
        plan.put(&mut batch, which, Some(&before));
        if let Some((to, _)) = &at_once {
            // Before it is in the store, where it would be picked.
            self.board.lock().busy.insert(Job::Send(which.clone(), to.clone()));
        }
        match self.journal.write(batch).await {
            Ok(()) => at_once.map(|(to, delivery)| Settled { to, delivery, said }),
            Err(e) => {
                if let Some((to, _)) = at_once {
                    self.board.lock().busy.remove(&Job::Send(which.clone(), to));
                }
                hindered(e);
                None
            }
        }
    }

    /// Where the report goes; about a host also what it says. `rows`: what one about a domain says.
    async fn where_to(
        &self,
        which: &Which,
        rows: &[TallyRow],
        sending: &ReportSender,
    ) -> Result<(Result<Recipients, TlsrptLookupError>, Option<Told>), StoreError> {
        let (about, audience) = (&which.about, &sending.recipient_filter);
        let failures = match about {
            _ if !audience.only_failures() => true,
            ReportSubject::Domain(_) => has_failures(rows),
            ReportSubject::Host(_) => has_failures(&self.told_of(which).await?.rows),
        };
        if let Err(unwanted) = audience.check_wanted(about, which.day, failures) {
            return Ok((Err(unwanted.into()), None));
        }
        let found = look_up_served_recipients(&self.context.resolver, audience, about, which.day).await;
        match (about, found) {
            // Only now: few hosts have a record, and it takes a look at all rows of the day.
            (ReportSubject::Host(_), Ok(found)) => {
                let told = self.told_of(which).await?;
                let found = if told.open { Ok(found) } else { told.narrow(found).map_err(TlsrptLookupError::None) };
                Ok((found, Some(told)))
            }
            (_, found) => Ok((found, None)),
        }
    }

    /// What the report says: all counts of the day and domain, or, for a supplement, what the first one does not say.
    /// With it the plan as it stands, and the sum of all counts that have their place then. No rows for a host, which has no
    /// counts of its own; nothing where there is nothing to be settled any more.
    async fn settle(
        &self,
        which: &Which,
        report_id: ReportId,
        sending: &ReportSender,
    ) -> Result<Option<(Plan, Said, u64)>, StoreError> {
        let (of, organization) = (which.clone(), sending.identity.organization.clone());
        let contact = sending.identity.contact.to_string();
        self.blocking(move |store| {
            let Some(plan) = planner::read(store, &of)?.filter(|plan| plan.state == PlanState::Waiting) else {
                return Ok(None);
            };
            let mut rows = store.rows(of.day, &of.name())?;
            let counted = snapshot::sum(&rows);
            if of.supplement {
                rows = snapshot::since(rows, &snapshot::read(store, &Which { supplement: false, ..of })?);
            }
            Ok(Some((plan, Said { report_id, organization, contact, rows }, counted)))
        })
        .await
    }

    /// One delivery for each destination: the first at once, the others each at a moment of its own in what is left of the spread.
    fn deliveries(
        &self,
        which: &Which,
        report_id: &ReportId,
        found: &Recipients,
        sending: &ReportSender,
        now: i64,
        spread: i64,
    ) -> io::Result<Vec<(Destination, Delivery)>> {
        let left = (which.day.end() + spread - now).max(0);
        let mut deliveries = Vec::new();
        for (i, destination) in found.destinations.iter().enumerate() {
            let delivery = Delivery {
                state: DeliveryState::Planned,
                next: if i == 0 { now } else { now + within(left) },
                first: None,
                tried: None,
                attempts: 0,
                report_id: report_id.clone(),
                message_id: self.message_id(which.day, sending)?,
                last: None,
            };
            deliveries.push((destination.clone(), delivery));
        }
        Ok(deliveries)
    }

    fn say_skipped(&self, which: &Which, found: &Recipients) {
        for skipped in &found.skipped {
            tracing::info!("report {which}: {} left out: {}; the others are served", skipped.uri, skipped.why);
        }
        if found.more_skipped > 0 {
            tracing::info!("report {which}: {} more URIs left out: too many", found.more_skipped);
        }
    }

    /// One try of a delivery that was planned before.
    async fn send(&self, which: &Which, to: &Destination, setup: &Arc<Setup>, shutdown: watch::Receiver<bool>) {
        let (delivery, said) = (delivery_key(which, to), which.key());
        let read = self
            .blocking(move |store| Ok((store.read(Table::Delivery, &delivery)?, store.read(Table::Snapshot, &said)?)));
        let (delivery, said) = match read.await {
            Ok(read) => read,
            Err(e) => return self.not_sent(which, to, &StoreError::to_string(&e)),
        };
        let Some(before) = delivery.and_then(|octets| serde_json::from_slice::<Delivery>(&octets).ok()) else { return };
        if before.state != DeliveryState::Planned {
            return;
        }
        let said = said.ok_or_else(|| "is not kept".to_owned());
        match said.and_then(|packed| Said::unpack(&packed).map_err(|e| format!("cannot be read: {e}"))) {
            Ok(said) => self.hand_over(which, to, before, said, setup, shutdown).await,
            Err(why) => {
                let refused = DeliveryOutcome::Refused(format!("what it says {why}"));
                self.note(which, to, before.clone(), before, refused, shutdown).await;
            }
        }
    }

    fn not_sent(&self, which: &Which, to: &Destination, why: &str) {
        self.rest();
        self.error(format!("report {which} to {to}: not sent: {why}; it is tried again"));
    }

    /// Builds the report, stores the intent, hands it over, stores the outcome.
    async fn hand_over(
        &self,
        which: &Which,
        to: &Destination,
        before: Delivery,
        said: Said,
        setup: &Arc<Setup>,
        shutdown: watch::Receiver<bool>,
    ) {
        let Some(sending) = &setup.sending else { return };
        let octets = match self.compose(which, to, &before, said, Arc::clone(setup)).await {
            Ok(octets) => octets,
            Err(e) => {
                let refused = DeliveryOutcome::Refused(e.to_string());
                return self.note(which, to, before.clone(), before, refused, shutdown).await;
            }
        };
        // Not closed as long as the scheduler is there.
        let Ok(turn) = self.at_the_mta.acquire().await else { return };
        if *shutdown.borrow() {
            return;
        }
        let now = self.context.clock.seconds();
        let mut delivery = Delivery { state: DeliveryState::Attempting, tried: Some(now), ..before.clone() };
        delivery.attempts += 1;
        delivery.first.get_or_insert(now);
        // The intent is on disk before the first octet goes: rule 6 of the design hangs on this line.
        if let Err(e) = self.store_delivery(which, to, &before, &delivery).await {
            return self.not_sent(which, to, &e);
        }
        let cut = patience(shutdown.clone());
        let outcome = sending.deliver(&self.context.https, to, &octets, self.limits, cut).await;
        drop(turn);
        // At once: the MTA is sending it on already.
        if let (DeliveryOutcome::Accepted(answer), Destination::Mail(_)) = (&outcome, to)
            && let Some(id) = sending.transport.queue_id(answer)
        {
            self.queued.add(id);
        }
        self.note(which, to, delivery.clone(), delivery, outcome, shutdown).await;
    }

    /// The octets of one report on its way. Compresses and signs, so not on the tasks' threads.
    async fn compose(
        &self,
        which: &Which,
        to: &Destination,
        delivery: &Delivery,
        said: Said,
        setup: Arc<Setup>,
    ) -> Result<Vec<u8>, MessageError> {
        let (which, to, message_id) = (which.clone(), to.clone(), delivery.message_id.clone());
        let now = self.context.clock.seconds();
        self.blocking(move |_| {
            // Invariant: nothing is handed over without it.
            let sending = setup.sending.as_ref().expect("a sender");
            let identity = said.identity(&sending.identity);
            let (id, rows) = (&said.report_id, &said.rows);
            let report = Report::build(&identity, which.day, which.about.name(), id, rows, sending.max_size);
            if report.merged_details > 0 {
                let merged = report.merged_details;
                tracing::warn!("report {which}: too large: {merged} kinds of failure are told as one each result type");
            }
            sending.build_payload(&identity, &report, &to, &message_id, now)
        })
        .await
    }

    /// Stores and says what a try came to; `before` is what the store has.
    async fn note(
        &self,
        which: &Which,
        to: &Destination,
        before: Delivery,
        mut delivery: Delivery,
        outcome: DeliveryOutcome,
        mut shutdown: watch::Receiver<bool>,
    ) {
        let now = self.context.clock.seconds();
        let subject = format!("report {which} to {to}");
        let (state, answer, counter) = match outcome {
            DeliveryOutcome::Accepted(answer) => {
                tracing::info!("{subject}: sent: {answer}");
                (DeliveryState::Sent, answer, "reports_sent")
            }
            DeliveryOutcome::Refused(answer) => {
                self.error(format!("{subject}: refused: {answer}; it is not tried again"));
                (DeliveryState::Refused, answer, "reports_refused")
            }
            DeliveryOutcome::Unknown(answer) => {
                self.error(format!("{subject}: unknown: {answer}; it may have arrived, it is not tried again"));
                (DeliveryState::Unknown, answer, "reports_unknown")
            }
            DeliveryOutcome::Retry(answer) => {
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
        let mut wait = STORE_AGAIN;
        // Until it is stored the intent stands there, which nobody picks.
        while let Err(e) = self.store_delivery(which, to, &before, &delivery).await {
            self.rest();
            if *shutdown.borrow() {
                return self.error(format!("{subject}: outcome not stored: {e}; a restart will call it unknown"));
            }
            self.error(format!("{subject}: outcome not stored: {e}; it is stored again in {} s", wait.as_secs()));
            let _ = tokio::time::timeout(wait, wait_for_shutdown(&mut shutdown)).await;
            wait = (wait * 2).min(STORE_AGAIN_AT_MOST);
        }
    }

    async fn store_delivery(
        &self,
        which: &Which,
        to: &Destination,
        before: &Delivery,
        delivery: &Delivery,
    ) -> Result<(), String> {
        let mut batch = Batch::default();
        delivery.put(&mut batch, which, to, Some(before));
        self.journal.write(batch).await
    }
}

/// What is due at once: a delivery, and what it says.
struct Settled {
    to: Destination,
    delivery: Delivery,
    said: Said,
}

/// Resolves a while after the daemon was told to end.
async fn patience(mut shutdown: watch::Receiver<bool>) {
    wait_for_shutdown(&mut shutdown).await;
    tokio::time::sleep(GRACE).await;
}

/// The pause after so many tries, in seconds.
pub(super) fn pause(attempts: u32) -> i64 {
    FIRST_PAUSE
        .saturating_mul(1_i64.checked_shl(attempts.saturating_sub(1).min(32)).unwrap_or(i64::MAX))
        .min(LAST_PAUSE)
}
