//! One look-up or one try: what happens to a day and domain, or to a destination, when its time has come.
//!
//! Takes: a [`Job`]. Gives: its new record, in the store.
//! The look-up freezes the content of the report (`snapshot`), in the same batch as the plan. Every try is written to
//! the store right before the report is handed over, and its outcome after.
//! When it fails: what the store hinders is tried again after a rest; all else is an outcome, stored and said.
//! Not here: when a job is due (`due_jobs`).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::base::printable::escape_and_cut;
use crate::base::rua_record::{Destination, NoRecipients, Recipients};
use crate::base::shutdown::wait_for_shutdown;
use crate::base::tlsrpt::TallyRow;
use crate::net::tlsrpt_record::TlsrptLookupError;
use crate::reporting::report::build::{Report, ReportId};
use crate::reporting::report::message::MessageError;
use crate::reporting::report::recipients::ReportSubject;
use crate::reporting::report::{ReportSender, has_failures, look_up_served_recipients, only_null_senders};
use crate::reporting::schedule::mx_hosts::HostReport;
use crate::reporting::schedule::records;
use crate::reporting::schedule::records::{
    DeliveryState, PlanState, ReportDelivery, ReportKey, ReportPlan, delivery_key,
};
use crate::reporting::schedule::snapshot::{self, ReportSnapshot};
use crate::reporting::schedule::{
    FIRST_RETRY_DELAY, Job, MAX_RETRY_AFTER, MAX_RETRY_DELAY, RETRY_FOR, SUPPLEMENT_DELAY, Scheduler,
    SchedulerSettings, random_delay,
};
use crate::reporting::transport::DeliveryOutcome;
use crate::store::{Batch, StoreError, Table};

/// How long a delivery may go on when the daemon ends.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// How long a report about an MX host waits for one about a recipient domain that is not looked up yet, in seconds.
const WAIT_FOR_DOMAINS: i64 = 5;

/// The first and the longest delay before the storing of an outcome is retried.
const FIRST_STORE_RETRY_DELAY: Duration = Duration::from_secs(1);
const MAX_STORE_RETRY_DELAY: Duration = Duration::from_secs(60);

/// What a report is planned from.
struct SettledCounts {
    /// The plan as it is stored.
    plan: ReportPlan,
    /// What the report says.
    rows: Vec<TallyRow>,
    /// Whether all mail of the day to the domain had a null sender.
    only_null_senders: bool,
    /// The sum of all counts that are in a report then.
    counted: u64,
}

impl Scheduler {
    pub(super) async fn run_job(self: Arc<Self>, job: Job, shutdown: watch::Receiver<bool>) {
        let settings = Arc::clone(&self.settings.read());
        if let Some(sender) = &settings.sender {
            match &job {
                Job::Send(report_key, to) => self.send_planned(report_key, to, &settings, shutdown).await,
                Job::LookUp(report_key) => {
                    // The first report of a day goes as soon as it is known whereto.
                    if let Some(ReadyDelivery { to, delivery, snapshot }) =
                        self.look_up_and_plan(report_key, &settings, sender).await
                    {
                        self.deliver(report_key, &to, delivery, snapshot, &settings, shutdown).await;
                        self.in_flight.lock().jobs.remove(&Job::Send(report_key.clone(), to));
                    }
                }
            }
        }
        self.in_flight.lock().jobs.remove(&job);
    }

    /// Looks up the recipients, takes the snapshot and plans the deliveries. Returns the one that is due at once, which is in
    /// flight from then on.
    async fn look_up_and_plan(
        &self,
        report_key: &ReportKey,
        settings: &SchedulerSettings,
        sender: &ReportSender,
    ) -> Option<ReadyDelivery> {
        let postpone = |e: String| {
            self.back_off();
            self.log_error(format!("report {report_key}: not planned: {e}; it is tried again"));
        };
        let planned = match self.settle_counts(report_key).await {
            Ok(None) => return None,
            Ok(Some(settled)) => self.plan_mx_hosts(report_key, &settled.rows, settings.spread).await.map(|()| settled),
            Err(e) => Err(e.to_string()),
        };
        let SettledCounts { plan: before, rows, only_null_senders, counted } = match planned {
            Ok(planned) => planned,
            Err(e) => {
                postpone(e);
                return None;
            }
        };
        let (found, host_report) = match self.find_recipients(report_key, &rows, only_null_senders, sender).await {
            Ok(found) => found,
            Err(e) => {
                postpone(e.to_string());
                return None;
            }
        };
        let open = host_report.as_ref().is_some_and(|host_report| host_report.lookups_pending);
        let now = self.context.clock.seconds();
        let mut plan =
            ReportPlan { attempts: before.attempts + 1, first: before.first.or(Some(now)), ..before.clone() };
        let mut batch = Batch::default();
        let mut at_once = None;
        match found {
            Ok(_) if open => {
                let wait = if report_key.supplement { SUPPLEMENT_DELAY } else { WAIT_FOR_DOMAINS };
                plan = ReportPlan { next: now + wait, ..before.clone() };
            }
            Ok(_) if host_report.is_none() && rows.is_empty() => {
                (plan.state, plan.last) = (PlanState::Nothing, Some("nothing was counted".to_owned()));
            }
            Ok(found) => {
                self.log_skipped(report_key, &found);
                let left = (report_key.day.end() + settings.spread - now).max(0);
                let mut shared: Option<ReportSnapshot> = None;
                for (i, to) in found.destinations.into_iter().enumerate() {
                    let rows = host_report.as_ref().and_then(|report| report.rows.get(&to)).unwrap_or(&rows);
                    let snapshot = self.snapshot(report_key, rows, sender);
                    // Those of a domain are all equal; a host's may differ by destination.
                    let key = match &shared {
                        None => Some(report_key.encode()),
                        Some(shared) if *shared == snapshot => None,
                        Some(_) => Some(delivery_key(report_key, &to)),
                    };
                    batch.set.extend(key.map(|key| (Table::Snapshot, key, Some(snapshot.encode()))));
                    shared.get_or_insert_with(|| snapshot.clone());
                    let next = if i == 0 { now } else { now + random_delay(left) };
                    let delivery = match self.new_delivery(report_key, &snapshot.report_id, sender, next) {
                        Ok(delivery) => delivery,
                        Err(e) => {
                            postpone(e.to_string());
                            return None;
                        }
                    };
                    delivery.add_to_batch(&mut batch, report_key, &to, &[]);
                    let by_mail = matches!(to, Destination::Mail(_)) && self.mail_may_go();
                    if by_mail && delivery.next <= now && at_once.is_none() {
                        at_once = Some(ReadyDelivery { to, delivery, snapshot });
                    }
                }
                (plan.state, plan.last, plan.counted) = (PlanState::Planned, None, counted);
            }
            Err(TlsrptLookupError::None(why)) => {
                match why {
                    NoRecipients::NoRecord => tracing::debug!("report {report_key}: none: {why}"),
                    _ => tracing::info!("report {report_key}: none: {why}; the domain gets no report"),
                }
                if let NoRecipients::Unwanted(_) = why {
                    // What fails later makes a report: its supplement, which is the whole of it then.
                    plan.counted = counted;
                }
                (plan.state, plan.last) = (PlanState::Nothing, Some(why.to_string()));
            }
            Err(TlsrptLookupError::Temporary(why)) => {
                let why = escape_and_cut(&why, 300);
                plan.next = now + retry_delay(plan.attempts);
                plan.last = Some(why.clone());
                if plan.next - plan.first.unwrap_or(now) > RETRY_FOR {
                    plan.state = PlanState::Nothing;
                    self.log_error(format!("report {report_key}: no recipient known: {why}; given up after 24 hours"));
                }
            }
        }
        if plan.state == PlanState::Nothing {
            plan.seen = counted;
        }
        plan.add_to_batch(&mut batch, report_key, Some(&before));
        let job = at_once.as_ref().map(|ready| Job::Send(report_key.clone(), ready.to.clone()));
        // Before it is in the store, where it would be picked.
        self.in_flight.lock().jobs.extend(job.clone());
        match self.group_commit.write(batch).await {
            Ok(()) => at_once,
            Err(e) => {
                if let Some(job) = job {
                    self.in_flight.lock().jobs.remove(&job);
                }
                postpone(e);
                None
            }
        }
    }

    /// Finds the recipients; for an MX host also what its report says to each. `rows`: the counts of a domain;
    /// `only_null`: whether all its mail of the day had a null sender.
    async fn find_recipients(
        &self,
        report_key: &ReportKey,
        rows: &[TallyRow],
        only_null: bool,
        sender: &ReportSender,
    ) -> Result<(Result<Recipients, TlsrptLookupError>, Option<HostReport>), StoreError> {
        let (subject, recipient_filter) = (&report_key.subject, &sender.recipient_filter);
        let failures = match subject {
            _ if !recipient_filter.only_failures() => true,
            ReportSubject::Domain(_) => has_failures(rows),
            ReportSubject::Host(_) => self.host_has_failures(report_key).await?,
        };
        let wanted = recipient_filter.check_wanted(subject, report_key.day, failures);
        if let Err(unwanted) = wanted.and_then(|()| recipient_filter.check_senders(only_null)) {
            return Ok((Err(unwanted.into()), None));
        }
        let found = look_up_served_recipients(&self.context.resolver, recipient_filter, subject, report_key.day).await;
        match (subject, found) {
            // Only now: few hosts have a record.
            (ReportSubject::Host(_), Ok(mut found)) => {
                let report = self.host_report(report_key, &found.destinations).await?;
                if !report.lookups_pending {
                    found.destinations.retain(|destination| report.rows.contains_key(destination));
                }
                let found = match recipient_filter.check_senders(report.only_null_senders) {
                    Err(unwanted) => Err(unwanted.into()),
                    Ok(()) if found.destinations.is_empty() => Err(NoRecipients::AlreadyReported.into()),
                    Ok(()) => Ok(found),
                };
                Ok((found, Some(report)))
            }
            (_, found) => Ok((found, None)),
        }
    }

    fn snapshot(&self, report_key: &ReportKey, rows: &[TallyRow], sender: &ReportSender) -> ReportSnapshot {
        let (identity, key) = (&sender.identity, &self.context.message_id_key);
        let (day, about) = (report_key.day, report_key.subject_and_part());
        ReportSnapshot {
            report_id: ReportId::of_content(key, day, &about, rows, identity.submitter()),
            organization: identity.organization.clone(),
            contact: identity.contact.to_string(),
            rows: rows.to_vec(),
        }
    }

    /// Settles what the report says: all counts of the day and domain or, for a supplement, those that the first report does
    /// not have. No rows for a host, which has no counts of its own; `None` if the plan is done.
    async fn settle_counts(&self, report_key: &ReportKey) -> Result<Option<SettledCounts>, StoreError> {
        let of = report_key.clone();
        self.run_blocking(move |store| {
            let Some(plan) = records::read_plan(store, &of)?.filter(|plan| plan.state == PlanState::Waiting) else {
                return Ok(None);
            };
            let mut rows = store.rows(of.day, &of.subject_text())?;
            let (counted, only_null_senders) = (snapshot::total_count(&rows), only_null_senders(&rows));
            if of.supplement {
                rows =
                    snapshot::counted_since(rows, &snapshot::read_rows(store, &ReportKey { supplement: false, ..of })?);
            }
            Ok(Some(SettledCounts { plan, rows, only_null_senders, counted }))
        })
        .await
    }

    /// A delivery: the first of a report goes at once, the others at random times in the rest of the spread.
    fn new_delivery(
        &self,
        report_key: &ReportKey,
        report_id: &ReportId,
        sender: &ReportSender,
        next: i64,
    ) -> io::Result<ReportDelivery> {
        Ok(ReportDelivery {
            state: DeliveryState::Planned,
            next,
            first: None,
            tried: None,
            attempts: 0,
            report_id: report_id.clone(),
            message_id: self.new_message_id(report_key.day, sender)?,
            queue_id: None,
            last: None,
        })
    }

    fn log_skipped(&self, report_key: &ReportKey, found: &Recipients) {
        for skipped in &found.skipped {
            tracing::info!("report {report_key}: {} left out: {}; the others are served", skipped.uri, skipped.why);
        }
        if found.more_skipped > 0 {
            tracing::info!("report {report_key}: {} more URIs left out: too many", found.more_skipped);
        }
    }

    /// Attempts a delivery that was planned before.
    pub(super) async fn send_planned(
        &self,
        report_key: &ReportKey,
        to: &Destination,
        settings: &Arc<SchedulerSettings>,
        shutdown: watch::Receiver<bool>,
    ) {
        let (key, of, destination) = (delivery_key(report_key, to), report_key.clone(), to.clone());
        let read = self.run_blocking(move |store| {
            Ok((store.read(Table::Delivery, &key)?, snapshot::read_encoded(store, &of, &destination)?))
        });
        let (delivery, snapshot) = match read.await {
            Ok(read) => read,
            Err(e) => return self.log_not_sent(report_key, to, &StoreError::to_string(&e)),
        };
        let Some(before) = delivery.and_then(|bytes| serde_json::from_slice::<ReportDelivery>(&bytes).ok()) else {
            return;
        };
        if before.state != DeliveryState::Planned {
            return;
        }
        let Some(sender) = &settings.sender else { return };
        let wanted = sender.recipient_filter.check_planned(&report_key.subject, report_key.day, to);
        if let Err(unwanted) = wanted {
            tracing::info!("report {report_key} to {to}: not sent: {unwanted}");
            let last = Some(unwanted.to_string());
            let delivery = ReportDelivery { state: DeliveryState::Suppressed, last, ..before.clone() };
            return self.store_outcome(report_key, to, &[before], delivery, &mut shutdown.clone()).await;
        }
        let snapshot = snapshot.ok_or_else(|| "is not kept".to_owned());
        match snapshot.and_then(|encoded| ReportSnapshot::decode(&encoded).map_err(|e| format!("cannot be read: {e}")))
        {
            Ok(snapshot) => self.deliver(report_key, to, before, snapshot, settings, shutdown).await,
            Err(why) => {
                let refused = DeliveryOutcome::Refused(format!("what it says {why}"));
                self.record_outcome(report_key, to, std::slice::from_ref(&before), before.clone(), refused, shutdown)
                    .await;
            }
        }
    }

    fn log_not_sent(&self, report_key: &ReportKey, to: &Destination, why: &str) {
        self.back_off();
        self.log_error(format!("report {report_key} to {to}: not sent: {why}; it is tried again"));
    }

    /// Builds the report, stores the intent, delivers it, stores the outcome.
    async fn deliver(
        &self,
        report_key: &ReportKey,
        to: &Destination,
        before: ReportDelivery,
        snapshot: ReportSnapshot,
        settings: &Arc<SchedulerSettings>,
        shutdown: watch::Receiver<bool>,
    ) {
        let Some(sender) = &settings.sender else { return };
        let bytes = match self.build_payload(report_key, to, &before, snapshot, Arc::clone(settings)).await {
            Ok(bytes) => bytes,
            Err(e) => {
                let refused = DeliveryOutcome::Refused(e.to_string());
                return self
                    .record_outcome(report_key, to, std::slice::from_ref(&before), before.clone(), refused, shutdown)
                    .await;
            }
        };
        // Receivers by https have turns of their own (`posts`). The semaphore is never closed.
        let turn = match to {
            Destination::Mail(_) => self.delivery_slots.acquire().await.ok(),
            Destination::Https(_) => None,
        };
        if *shutdown.borrow() {
            return;
        }
        let now = self.context.clock.seconds();
        let mut delivery = ReportDelivery { state: DeliveryState::Attempting, tried: Some(now), ..before.clone() };
        delivery.attempts += 1;
        delivery.first.get_or_insert(now);
        let intent = Mutex::new(IntentState::NotStored);
        // The intent is on disk before the first byte of the report goes: rule 7 of the design hangs on this.
        let store_intent = async {
            *intent.lock() = IntentState::Uncertain;
            let stored = self.store_delivery(report_key, to, &[&before], &delivery).await;
            *intent.lock() = stored.clone().map_or_else(IntentState::Failed, |()| IntentState::Stored);
            stored
        };
        let cancel = shutdown_deadline(shutdown.clone());
        let outcome = sender.deliver(&self.context.https, to, &bytes, store_intent, self.timeouts, cancel).await;
        drop(turn);
        let stored = match intent.into_inner() {
            IntentState::NotStored => vec![before],
            // The delivery was cut off meanwhile; that the intent is written later cannot be prevented.
            IntentState::Uncertain => vec![before, delivery.clone()],
            IntentState::Stored => vec![delivery.clone()],
            IntentState::Failed(e) => return self.log_not_sent(report_key, to, &e),
        };
        match to {
            // At once: the MTA is sending it on already.
            Destination::Mail(_) => {
                if let DeliveryOutcome::Accepted(answer) = &outcome
                    && let Some(id) = sender.transport.queue_id(answer)
                {
                    self.own_queue_ids.add(id);
                    delivery.queue_id = Some(id.to_owned());
                }
            }
            Destination::Https(_) => self.record_https_host(&to.server(), &outcome),
        }
        self.record_outcome(report_key, to, &stored, delivery, outcome, shutdown).await;
    }

    /// Remembers whether an https host answers.
    fn record_https_host(&self, host: &str, outcome: &DeliveryOutcome) {
        let now = self.context.clock.seconds();
        let answered = matches!(outcome, DeliveryOutcome::Accepted(_) | DeliveryOutcome::Refused(_));
        let not_before = match outcome {
            DeliveryOutcome::RetryAfter(_, seconds) => Some(now + (*seconds).min(MAX_RETRY_AFTER)),
            _ => None,
        };
        if let Some(failures) = self.https_hosts.lock().record(host, answered, not_before, now) {
            self.log_error(format!(
                "report: https host {host}: failed {failures} times in a row; all its reports wait"
            ));
        }
    }

    /// Builds what is sent. Compresses and signs, so it runs on a blocking thread.
    async fn build_payload(
        &self,
        report_key: &ReportKey,
        to: &Destination,
        delivery: &ReportDelivery,
        snapshot: ReportSnapshot,
        settings: Arc<SchedulerSettings>,
    ) -> Result<Vec<u8>, MessageError> {
        let (report_key, to, message_id) = (report_key.clone(), to.clone(), delivery.message_id.clone());
        let now = self.context.clock.seconds();
        self.run_blocking(move |_| {
            // Invariant: nothing is handed over without it.
            let sender = settings.sender.as_ref().expect("a sender");
            let identity = snapshot.identity(&sender.identity);
            let (id, rows) = (&snapshot.report_id, &snapshot.rows);
            let report = Report::build(&identity, report_key.day, report_key.subject.name(), id, rows, sender.max_size);
            if report.merged_details > 0 {
                let merged = report.merged_details;
                tracing::warn!(
                    "report {report_key}: too large: {merged} kinds of failure are told as one each result type"
                );
            }
            sender.build_payload(&identity, &report, &to, &message_id, now)
        })
        .await
    }

    /// Stores and logs the outcome of an attempt; `before`: the stored record, or those of which either may be stored.
    async fn record_outcome(
        &self,
        report_key: &ReportKey,
        to: &Destination,
        before: &[ReportDelivery],
        mut delivery: ReportDelivery,
        outcome: DeliveryOutcome,
        mut shutdown: watch::Receiver<bool>,
    ) {
        let now = self.context.clock.seconds();
        let subject = format!("report {report_key} to {to}");
        let wait = delay_after(&outcome, delivery.attempts);
        let (state, answer, counter) = match outcome {
            DeliveryOutcome::Accepted(answer) => {
                tracing::info!("{subject}: sent: {answer}");
                (DeliveryState::Sent, answer, "reports_sent")
            }
            DeliveryOutcome::Refused(answer) => {
                self.log_error(format!("{subject}: refused: {answer}; it is not tried again"));
                (DeliveryState::Refused, answer, "reports_refused")
            }
            DeliveryOutcome::Unknown(answer) => {
                self.log_error(format!("{subject}: unknown: {answer}; it may have arrived, it is not tried again"));
                (DeliveryState::Unknown, answer, "reports_unknown")
            }
            DeliveryOutcome::Retry(answer) | DeliveryOutcome::RetryAfter(answer, _) => {
                delivery.next = now + wait;
                if delivery.next - delivery.first.unwrap_or(now) > RETRY_FOR {
                    self.log_error(format!("{subject}: expired: {answer}; given up after 24 hours"));
                    (DeliveryState::Expired, answer, "reports_expired")
                } else {
                    self.log_error(format!("{subject}: not taken: {answer}; it is tried again in {wait} s"));
                    (DeliveryState::Planned, answer, "reports_retried")
                }
            }
        };
        self.context.metrics.add(counter, 1);
        (delivery.state, delivery.last) = (state, Some(answer));
        self.store_outcome(report_key, to, before, delivery, &mut shutdown).await;
    }

    /// Stores what became of a delivery, and does not give up: until then the record stays `Attempting`, which is never
    /// scheduled.
    async fn store_outcome(
        &self,
        report_key: &ReportKey,
        to: &Destination,
        before: &[ReportDelivery],
        delivery: ReportDelivery,
        shutdown: &mut watch::Receiver<bool>,
    ) {
        let subject = format!("report {report_key} to {to}");
        let before: Vec<&ReportDelivery> = before.iter().collect();
        let mut wait = FIRST_STORE_RETRY_DELAY;
        while let Err(e) = self.store_delivery(report_key, to, &before, &delivery).await {
            self.back_off();
            if *shutdown.borrow() {
                return self.log_error(format!("{subject}: outcome not stored: {e}; a restart will call it unknown"));
            }
            self.log_error(format!("{subject}: outcome not stored: {e}; it is stored again in {} s", wait.as_secs()));
            let _ = tokio::time::timeout(wait, wait_for_shutdown(shutdown)).await;
            wait = (wait * 2).min(MAX_STORE_RETRY_DELAY);
        }
    }

    async fn store_delivery(
        &self,
        report_key: &ReportKey,
        to: &Destination,
        before: &[&ReportDelivery],
        delivery: &ReportDelivery,
    ) -> Result<(), String> {
        let mut batch = Batch::default();
        delivery.add_to_batch(&mut batch, report_key, to, before);
        self.group_commit.write(batch).await
    }
}

/// How far the storing of an intent is.
enum IntentState {
    /// Nothing was handed over.
    NotStored,
    /// It is being stored.
    Uncertain,
    Stored,
    Failed(String),
}

/// A delivery that is due at once, and its content.
struct ReadyDelivery {
    to: Destination,
    delivery: ReportDelivery,
    snapshot: ReportSnapshot,
}

/// Resolves [`SHUTDOWN_GRACE`] after the daemon was told to end.
async fn shutdown_deadline(mut shutdown: watch::Receiver<bool>) {
    wait_for_shutdown(&mut shutdown).await;
    tokio::time::sleep(SHUTDOWN_GRACE).await;
}

/// The delay after the last of so many attempts, in seconds: as long as the receiver asks for, where it does.
pub(super) fn delay_after(outcome: &DeliveryOutcome, attempts: u32) -> i64 {
    match outcome {
        // A server that always asks to come back at once is not asked hundreds of times.
        DeliveryOutcome::RetryAfter(_, seconds) => (*seconds).clamp(retry_delay(attempts) / 10, MAX_RETRY_AFTER),
        _ => retry_delay(attempts),
    }
}

/// The delay after so many attempts, in seconds.
pub(super) fn retry_delay(attempts: u32) -> i64 {
    FIRST_RETRY_DELAY
        .saturating_mul(1_i64.checked_shl(attempts.saturating_sub(1).min(32)).unwrap_or(i64::MAX))
        .min(MAX_RETRY_DELAY)
}
