//! What is due when: closed days become plans, plans become deliveries, deliveries are tried until they are done.
//!
//! Takes: the counts in the store, the progress of the inputs, the clock. Gives: reports that went, each at most once a
//! destination, and [`Scheduler::list_reports`], all of it as data.
//! Everything that is to be done stands in the store in the order of time; here is only what is under way, so that memory
//! does not grow with the number of domains. Every try is written to the store right before it is handed over, and its outcome after: a
//! try that is found at start is unknown, and is not repeated.
//! Limits: [`MAX_JOBS`] look-ups and deliveries by mail at once, [`MAX_DELIVERIES`] of them at the MTA; deliveries by https
//! beside them (`posts`); [`RETRY_FOR`] of tries; `retention` days are kept.
//! When it fails: a store that fails is said and asked again later; nothing is sent whose intent was not stored.
//! Not here: what a report says (`report::build`), how it is handed over (`transport`).

mod attempt;
mod dkim_gate;
mod due_jobs;
mod https_hosts;
mod mail_log;
mod mx_hosts;
mod overview;
mod planner;
mod posts;
mod preview;
pub(crate) mod records;
mod resend;
pub(crate) mod snapshot;

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::{JoinError, JoinSet};

use crate::base::clock::Clock;
use crate::base::own_reports::{self, MessageIdKey, OwnQueueIds, OwnReportStatuses};
use crate::base::rua_record::Destination;
use crate::base::shutdown::wait_for_shutdown;
use crate::base::tlsrpt::Day;
use crate::config::ReportSection;
use crate::metrics::Metrics;
use crate::net::dns::Resolver;
use crate::net::https;
use crate::reporting::report::ReportSender;
use crate::reporting::transport::DeliveryTimeouts;
use crate::store::group_commit::GroupCommit;
use crate::store::{Batch, Store, StoreError, Table};
use dkim_gate::DkimGate;
use https_hosts::HttpsHosts;
use mail_log::UnmatchedStatuses;
pub(crate) use overview::{ArchivedReport, ReportOverview, ReportState, ReportStatus};
pub(crate) use preview::ReportPreview;
use records::{DeliveryState, Queue, RecordKey, ReportDelivery, ReportKey, delivery_key, to_json};
pub(crate) use resend::{ResendResult, ResendSelection};

/// The most look-ups and deliveries at once: enough that reading, signing and the disk overlap.
pub(crate) const MAX_JOBS: usize = 32;

/// The most deliveries at the MTA at once: enough that one slow reply holds up nothing, few enough for any MTA (Exim
/// takes 20 connections by default).
pub(crate) const MAX_DELIVERIES: usize = 8;

/// The most jobs that are read from the store at once, so that reading costs little for each job.
const MAX_QUEUED: usize = 128;

/// How long a look-up or a delivery is tried, from its first try, in seconds (RFC 8460 §5.5).
pub(crate) const RETRY_FOR: i64 = 24 * 3600;

/// The delay before the first retry, in seconds; it doubles with each retry, up to [`MAX_RETRY_DELAY`].
pub(crate) const FIRST_RETRY_DELAY: i64 = 300;

/// The longest delay before a retry, in seconds.
pub(crate) const MAX_RETRY_DELAY: i64 = 4 * 3600;

/// The longest delay that a receiver may ask for (`Retry-After`), in seconds: half of the time for which a report is tried,
/// so that one answer does not end it.
pub(crate) const MAX_RETRY_AFTER: i64 = 12 * 3600;

/// How long after its moment a report waits for inputs that lag, in seconds.
pub(crate) const WAIT_FOR_INPUTS: i64 = 12 * 3600;

/// How long late counts are collected before their supplement is built, in seconds.
pub(crate) const SUPPLEMENT_DELAY: i64 = 3600;

/// The least and the most time between two scans of the store. Scanning takes one part in [`SCAN_TIME_FACTOR`] of the time.
const MIN_SCAN_INTERVAL: Duration = Duration::from_secs(1);
const MAX_SCAN_INTERVAL: Duration = Duration::from_secs(60);
const SCAN_TIME_FACTOR: u32 = 100;

/// The least time between two looks for due POSTs. Looking takes one part in [`POST_SCAN_TIME_FACTOR`] of the time.
const MIN_POST_SCAN_INTERVAL: Duration = Duration::from_millis(200);
const POST_SCAN_TIME_FACTOR: u32 = 20;

/// The key of the day before which nothing is reported, because it is not known what was sent.
const NOT_BEFORE_KEY: &[u8] = b"report-not-before";

/// The store, clients and clock that the scheduler works with.
#[derive(Clone)]
pub(crate) struct SchedulerContext {
    /// Counts and records.
    pub(crate) store: Arc<dyn Store>,
    /// For `_smtp._tls` records.
    pub(crate) resolver: Resolver,
    /// For receivers by https.
    pub(crate) https: https::HttpsClient,
    /// How far the inputs are; every input must have its entry before [`Scheduler::run`].
    pub(crate) metrics: Metrics,
    /// The time.
    pub(crate) clock: Clock,
    /// The key of our Message-IDs.
    pub(crate) message_id_key: MessageIdKey,
}

/// The scheduler's configuration.
#[derive(Debug)]
pub struct SchedulerSettings {
    /// Over how long reports are spread, in seconds.
    pub(crate) spread: i64,
    /// How long counts are kept after their day, in seconds.
    pub(crate) retention: i64,
    /// Whether reports by mail wait while no published DKIM record matches a key.
    pub(crate) check_dkim: bool,
    /// Builds and sends reports; `None` while the identity is incomplete.
    pub(crate) sender: Option<ReportSender>,
}

impl SchedulerSettings {
    /// Reads the section and the keys that it names. Fails with one line a fault.
    pub(crate) fn load(section: &ReportSection) -> Result<SchedulerSettings, Vec<String>> {
        let sender = ReportSender::load(section)?;
        Ok(SchedulerSettings { sender, ..SchedulerSettings::without_sender(section) })
    }

    /// What is unwise about the section, one line each.
    pub(crate) fn warnings(&self) -> &[String] {
        self.sender.as_ref().map_or(&[], |sender| &sender.signer.warnings)
    }

    /// The same while nothing can be sent: the days wait within `retention`.
    pub(crate) fn without_sender(section: &ReportSection) -> SchedulerSettings {
        let seconds = |span: Duration| i64::try_from(span.as_secs()).unwrap_or(i64::MAX / 4).min(i64::MAX / 4);
        SchedulerSettings {
            spread: seconds(section.spread.0),
            retention: seconds(section.retention.0),
            check_dkim: section.check_dkim,
            sender: None,
        }
    }
}

/// The scheduler; shared by its task and by who looks at it.
pub struct Scheduler {
    context: SchedulerContext,
    own_queue_ids: OwnQueueIds,
    own_report_statuses: OwnReportStatuses,
    unmatched_statuses: Mutex<UnmatchedStatuses>,
    settings: RwLock<Arc<SchedulerSettings>>,
    in_flight: Mutex<InFlight>,
    /// Held while what is final for a delivery is replaced: by what the log says, or by another attempt. Locked before
    /// `in_flight`.
    changing_final: Mutex<()>,
    group_commit: GroupCommit,
    /// Notified when new plans are stored.
    new_plans: Notify,
    /// Held while reports about MX hosts are planned.
    planning_mx_hosts: tokio::sync::Mutex<()>,
    delivery_slots: Semaphore,
    https_hosts: Mutex<HttpsHosts>,
    dkim_gate: Mutex<DkimGate>,
    /// One for each core: more threads than that would sign no faster, and each keeps memory of its own.
    blocking_slots: Semaphore,
    timeouts: DeliveryTimeouts,
}

/// The work in progress, and what holds back new work.
#[derive(Default)]
struct InFlight {
    /// The jobs that a task works on, or that are queued for one.
    jobs: HashSet<Job>,
    /// Days that were closed although inputs lagged; each is logged once.
    closed_late: BTreeSet<Day>,
    /// The day on which it was last logged that the clock is ahead of all inputs.
    clock_ahead_logged: Option<Day>,
    /// Days before this one are not reported.
    not_before: Option<Day>,
    /// No job starts before this time, because the store failed.
    back_off_until: Option<Instant>,
}

/// A unit of work.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Job {
    LookUp(ReportKey),
    Send(ReportKey, Destination),
}

impl Scheduler {
    /// Records that the old store was lost: days before today are not reported then, because they may have been reported.
    /// To be called as soon as the store is open: a start that fails afterwards must not forget it.
    pub(crate) fn record_store_loss(store: &dyn Store, clock: Clock, metrics: &Metrics) -> Result<(), StoreError> {
        let today = Day::of(clock.seconds());
        let set = vec![(Table::NamedValue, NOT_BEFORE_KEY.to_vec(), Some(to_json(&today)))];
        store.write(Batch { add: Vec::new(), set })?;
        metrics.log_error(clock, format!(
            "report: days before {today}: not reported: the store was lost, so what was sent is not known; reports go on with {today}"
        ));
        Ok(())
    }

    /// Takes up what the store holds; tries that were under way when the last process ended become unknown.
    /// Blocks for as long as the store does.
    pub(crate) fn open(context: SchedulerContext, settings: SchedulerSettings) -> Result<Arc<Scheduler>, StoreError> {
        let store = &*context.store;
        let mut batch = Batch::default();
        // At most MAX_JOBS of them, and a POST for each host.
        for (due_key, _) in store.scan(Table::Due, &records::queue_prefix(Queue::InProgress, None))? {
            let Some((_, RecordKey::Delivery(report_key, to))) = RecordKey::decode_due_key(&due_key) else { continue };
            let Some(value) = store.read(Table::Delivery, &delivery_key(&report_key, &to))? else { continue };
            let Ok(mut delivery) = serde_json::from_slice::<ReportDelivery>(&value) else { continue };
            let before = delivery.clone();
            let why = "the daemon ended while it was being sent";
            (delivery.state, delivery.last) = (DeliveryState::Unknown, Some(why.to_owned()));
            delivery.add_to_batch(&mut batch, &report_key, &to, &[&before]);
            let line = format!("report {report_key} to {to}: unknown: {why}; it is not tried again");
            context.metrics.log_error(context.clock, line);
        }
        let not_before = store.read(Table::NamedValue, NOT_BEFORE_KEY)?.and_then(|b| serde_json::from_slice(&b).ok());
        if !batch.set.is_empty() {
            store.write(batch)?;
        }
        let written = Arc::clone(&context.store);
        let group_commit = GroupCommit::new(move |batch| written.write(batch));
        Ok(Arc::new(Scheduler {
            context,
            own_queue_ids: OwnQueueIds::default(),
            own_report_statuses: OwnReportStatuses::default(),
            unmatched_statuses: Mutex::default(),
            settings: RwLock::new(Arc::new(settings)),
            in_flight: Mutex::new(InFlight { not_before, ..InFlight::default() }),
            changing_final: Mutex::default(),
            group_commit,
            new_plans: Notify::new(),
            planning_mx_hosts: tokio::sync::Mutex::new(()),
            delivery_slots: Semaphore::new(MAX_DELIVERIES),
            https_hosts: Mutex::default(),
            dkim_gate: Mutex::default(),
            blocking_slots: Semaphore::new(std::thread::available_parallelism().map_or(1, usize::from)),
            timeouts: DeliveryTimeouts::default(),
        }))
    }

    /// The queue IDs under which the MTA accepted our reports.
    pub(crate) fn own_queue_ids(&self) -> OwnQueueIds {
        self.own_queue_ids.clone()
    }

    /// Where it goes what the log says of our reports.
    pub(crate) fn own_report_statuses(&self) -> OwnReportStatuses {
        self.own_report_statuses.clone()
    }

    /// Takes a new configuration; what is under way ends with the old one.
    pub fn configure(&self, settings: SchedulerSettings) {
        *self.settings.write() = Arc::new(settings);
        *self.dkim_gate.lock() = DkimGate::Unchecked;
        self.new_plans.notify_one();
    }

    /// Logs what is unwise about the keys that sign reports, and which of them differs from its DNS record.
    pub async fn check_dkim_records(&self) {
        let settings = Arc::clone(&self.settings.read());
        let Some(sender) = &settings.sender else { return };
        sender.signer.warnings.iter().for_each(|line| tracing::warn!("{line}"));
        for key in &sender.signer.public_keys {
            if let Err(line) = key.check_record(&self.context.resolver).await {
                self.log_error(line);
            }
        }
    }

    /// Works until `shutdown` becomes true (or its sender goes), then lets what is under way end within 5 seconds.
    pub(crate) async fn run(self: Arc<Self>, mut shutdown: watch::Receiver<bool>) {
        let mut under_way = JoinSet::new();
        let mut keeping = JoinSet::new();
        let mut queue = VecDeque::new();
        let mut posts = JoinSet::new();
        let mut dkim_checks = JoinSet::new();
        let mut next_dkim_check = Instant::now();
        let mut log_statuses = JoinSet::new();
        let mut next_log_statuses = Instant::now();
        let mut next_scan = Instant::now();
        let mut next_post_scan = Instant::now();
        loop {
            if keeping.is_empty() {
                self.context.metrics.heartbeat("scheduler");
            }
            if keeping.is_empty() && Instant::now() >= next_scan {
                let (scheduler, shutdown) = (Arc::clone(&self), shutdown.clone());
                keeping.spawn(async move {
                    let started = Instant::now();
                    let kept = scheduler.plan_days(&shutdown).await;
                    let pause = (started.elapsed() * SCAN_TIME_FACTOR).clamp(MIN_SCAN_INTERVAL, MAX_SCAN_INTERVAL);
                    // What failed is not said every second: a full disk must not be filled with it.
                    Instant::now() + if kept { pause } else { MAX_SCAN_INTERVAL }
                });
            }
            let unchecked = *self.dkim_gate.lock() == DkimGate::Unchecked;
            if dkim_checks.is_empty() && (unchecked || Instant::now() >= next_dkim_check) {
                let scheduler = Arc::clone(&self);
                dkim_checks.spawn(async move { scheduler.check_dkim_gate().await });
            }
            if log_statuses.is_empty() && Instant::now() >= next_log_statuses {
                log_statuses.spawn(Arc::clone(&self).apply_log_statuses());
            }
            if queue.is_empty() && under_way.len() < MAX_JOBS {
                queue.extend(self.take_due_jobs(MAX_QUEUED).await);
            }
            while under_way.len() < MAX_JOBS
                && let Some(job) = queue.pop_front()
            {
                under_way.spawn(Arc::clone(&self).run_job(job, shutdown.clone()));
            }
            if Instant::now() >= next_post_scan {
                let started = Instant::now();
                self.start_posts(&mut posts, &shutdown).await;
                next_post_scan =
                    Instant::now() + (started.elapsed() * POST_SCAN_TIME_FACTOR).max(MIN_POST_SCAN_INTERVAL);
            }
            if under_way.is_empty() {
                self.close_idle_connections().await;
            }
            tokio::select! {
                biased;
                () = wait_for_shutdown(&mut shutdown) => break,
                Some(ended) = under_way.join_next() => self.log_failed_task(ended),
                Some(ended) = dkim_checks.join_next() => match ended {
                    Ok(next) => next_dkim_check = next,
                    Err(_) => {
                        self.log_failed_task(ended.map(drop));
                        next_dkim_check = Instant::now() + MAX_SCAN_INTERVAL;
                    }
                },
                Some(ended) = log_statuses.join_next() => match ended {
                    Ok(next) => next_log_statuses = next,
                    Err(_) => {
                        self.log_failed_task(ended.map(drop));
                        next_log_statuses = Instant::now() + MAX_SCAN_INTERVAL;
                    }
                },
                Some(ended) = posts.join_next() => self.log_failed_task(ended),
                Some(ended) = keeping.join_next() => match ended {
                    Ok(next) => next_scan = next,
                    Err(_) => {
                        self.log_failed_task(ended.map(drop));
                        next_scan = Instant::now() + MAX_SCAN_INTERVAL;
                    }
                },
                () = self.new_plans.notified() => {}
                () = tokio::time::sleep(MIN_SCAN_INTERVAL) => {}
            }
        }
        for tasks in [&mut under_way, &mut posts] {
            while let Some(ended) = tasks.join_next().await {
                self.log_failed_task(ended);
            }
        }
        self.close_idle_connections().await;
        for tasks in [&mut keeping, &mut log_statuses] {
            while let Some(ended) = tasks.join_next().await {
                self.log_failed_task(ended.map(drop));
            }
        }
    }

    /// Closes the connections to the MTA, when nothing is being sent.
    async fn close_idle_connections(&self) {
        let settings = Arc::clone(&self.settings.read());
        if let Some(sender) = &settings.sender {
            sender.transport.close_idle().await;
        }
    }

    /// The inputs that keep a day open. Before any input has reported its position, every day is open.
    fn lagging_inputs(&self, day: Day, now: i64) -> Vec<String> {
        let metrics = &self.context.metrics;
        if metrics.inputs().is_empty() {
            vec!["no input has begun".to_owned()]
        } else {
            metrics.lagging_inputs(day, now)
        }
    }

    /// Starts no job for a while, because the store failed.
    fn back_off(&self) {
        self.in_flight.lock().back_off_until = Some(Instant::now() + MAX_SCAN_INTERVAL);
    }

    /// Runs a blocking store call on a blocking thread.
    async fn run_blocking<T: Send + 'static>(&self, call: impl FnOnce(&dyn Store) -> T + Send + 'static) -> T {
        let store = Arc::clone(&self.context.store);
        // Never closed, so always given.
        let _turn = self.blocking_slots.acquire().await;
        match tokio::task::spawn_blocking(move || call(&*store)).await {
            Ok(value) => value,
            // The call does not get cancelled; a panic in it goes on here, as if it had been called here.
            Err(e) => std::panic::resume_unwind(e.into_panic()),
        }
    }

    fn log_failed_task(&self, task: Result<(), JoinError>) {
        if let Err(e) = task {
            self.log_error(format!("report: a task ended: {e}; its report waits for a restart"));
        }
    }

    fn log_error(&self, line: String) {
        self.context.metrics.log_error(self.context.clock, line);
    }
}

/// A random number of seconds from 0 to `span`. Without random octets, 0.
fn random_delay(span: i64) -> i64 {
    let random = own_reports::random_bytes::<8>().map(u64::from_le_bytes).unwrap_or_default();
    let span = u64::try_from(span).unwrap_or_default();
    i64::try_from(random % (span + 1)).unwrap_or_default()
}

#[cfg(test)]
mod tests;
