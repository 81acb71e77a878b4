//! What is due when: closed days become plans, plans become deliveries, deliveries are tried until they are done.
//!
//! Takes: the counts in the store, the progress of the inputs, the clock. Gives: reports that went, each at most once a
//! destination, and [`Scheduler::due`], all of it as data.
//! Everything that is to be done stands in the store in the order of time; here is only what is under way, so that memory
//! does not grow with the number of domains. Every try is written to the store before it starts, and its outcome after: a
//! try that is found at start is unknown, and is not repeated.
//! Limits: [`UNDER_WAY`] look-ups and tries at once, [`HANDED_OVER`] of them at the MTA; [`RETRY_FOR`] of tries;
//! `retention` days are kept.
//! When it fails: a store that fails is said and asked again later; nothing is sent whose intent was not stored.
//! Not here: what a report says (`report::build`), how it goes (`report::deliver`).

mod attempt;
mod due_jobs;
mod mx_hosts;
mod overview;
mod planner;
mod preview;
pub mod records;
pub mod snapshot;

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::{JoinError, JoinSet};

use crate::base::clock::Clock;
use crate::base::own_reports::{self, MessageIdKey, OwnQueueIds};
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
pub use overview::{Due, DueState, Kept, Overview};
pub use preview::Preview;
use records::{Delivery, DeliveryState, Lane, Named, Which, delivery_key, octets};

/// How many look-ups and tries are under way at once: enough that reading, signing and the disk are never waited for one
/// after the other.
pub const UNDER_WAY: usize = 32;

/// How many of them are at the MTA at once: enough that one slow reply holds up nothing, few enough for any MTA (Exim
/// takes 20 connections by default).
pub const HANDED_OVER: usize = 8;

/// How many jobs are picked at once, so that picking costs little a job.
const QUEUE: usize = 128;

/// How long a look-up or a delivery is tried, from its first try, in seconds (RFC 8460 §5.5).
pub const RETRY_FOR: i64 = 24 * 3600;

/// The first pause between two tries, in seconds; each is twice the one before, up to [`LAST_PAUSE`].
pub const FIRST_PAUSE: i64 = 300;

/// The longest pause between two tries, in seconds.
pub const LAST_PAUSE: i64 = 4 * 3600;

/// How long after its moment a report waits for inputs that lag, in seconds.
pub const WAIT_FOR_INPUTS: i64 = 12 * 3600;

/// How long counts that came late are gathered for their supplement, in seconds.
pub const GATHER: i64 = 3600;

/// How often what is due is looked at, at least and at most. Looking at the store costs one part in [`SHARE`] of the time.
const SOONEST: Duration = Duration::from_secs(1);
const LATEST: Duration = Duration::from_secs(60);
const SHARE: u32 = 100;

/// Where the day is kept before which nothing is reported, because what was sent is not known.
const NOT_BEFORE: &[u8] = b"report-not-before";

/// What the scheduler works with.
#[derive(Clone)]
pub struct Context {
    /// Counts and records.
    pub store: Arc<dyn Store>,
    /// For `_smtp._tls` records.
    pub resolver: Resolver,
    /// For receivers by https.
    pub https: https::HttpsClient,
    /// How far the inputs are; every input must have its entry before [`Scheduler::run`].
    pub metrics: Metrics,
    /// The time.
    pub clock: Clock,
    /// What makes our Message-IDs.
    pub own: MessageIdKey,
}

/// What the configuration says about reports.
#[derive(Debug)]
pub struct Setup {
    /// Over how long reports are spread, in seconds.
    pub spread: i64,
    /// How long counts are kept after their day, in seconds.
    pub retention: i64,
    /// What sending needs; nothing while the identity is incomplete.
    pub sending: Option<ReportSender>,
}

impl Setup {
    /// Reads the section and the keys that it names. Fails with one line a fault.
    pub fn load(section: &ReportSection) -> Result<Setup, Vec<String>> {
        let seconds = |span: Duration| i64::try_from(span.as_secs()).unwrap_or(i64::MAX / 4).min(i64::MAX / 4);
        Ok(Setup {
            spread: seconds(section.spread.0),
            retention: seconds(section.retention.0),
            sending: ReportSender::load(section)?,
        })
    }
}

/// The scheduler; shared by its task and by who looks at it.
pub struct Scheduler {
    context: Context,
    queued: OwnQueueIds,
    setup: RwLock<Arc<Setup>>,
    board: Mutex<Board>,
    journal: GroupCommit,
    /// Something new was planned.
    planned: Notify,
    /// Held by who plans reports about MX hosts.
    planning_hosts: tokio::sync::Mutex<()>,
    at_the_mta: Semaphore,
    /// One for each core: more threads than that would sign no faster, and each keeps memory of its own.
    threads: Semaphore,
    limits: DeliveryTimeouts,
}

/// What is under way.
#[derive(Default)]
struct Board {
    /// What a task works on, or was picked for it.
    busy: HashSet<Job>,
    /// Days that were closed though inputs lagged; each is said once.
    forced: BTreeSet<Day>,
    /// Days before this one are not reported.
    not_before: Option<Day>,
    /// Nothing new is begun before, for the store did not do what was asked.
    rest_until: Option<Instant>,
}

/// A piece of work.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Job {
    LookUp(Which),
    Send(Which, Destination),
}

impl Scheduler {
    /// Notes that the store is new because the old one was damaged: days before today are not reported then, for they may
    /// have been. To be called as soon as the store is open: a start that fails after it must not forget it.
    pub fn note_loss(store: &dyn Store, clock: Clock, metrics: &Metrics) -> Result<(), StoreError> {
        let today = Day::of(clock.seconds());
        let set = vec![(Table::NamedValue, NOT_BEFORE.to_vec(), Some(octets(&today)))];
        store.write(Batch { add: Vec::new(), set })?;
        metrics.log_error(clock, format!(
            "report: days before {today}: not reported: the store was lost, so what was sent is not known; reports go on with {today}"
        ));
        Ok(())
    }

    /// Takes up what the store holds; tries that were under way when the last process ended become unknown.
    /// Blocks for as long as the store does.
    pub fn open(context: Context, setup: Setup) -> Result<Arc<Scheduler>, StoreError> {
        let store = &*context.store;
        let mut batch = Batch::default();
        // At most UNDER_WAY of them.
        for (place, _) in store.scan(Table::Due, &records::lane(Lane::UnderWay, None))? {
            let Some((_, Named::Delivery(which, to))) = Named::placed(&place) else { continue };
            let Some(value) = store.read(Table::Delivery, &delivery_key(&which, &to))? else { continue };
            let Ok(mut delivery) = serde_json::from_slice::<Delivery>(&value) else { continue };
            let before = delivery.clone();
            let why = "the daemon ended while it was being sent";
            (delivery.state, delivery.last) = (DeliveryState::Unknown, Some(why.to_owned()));
            delivery.put(&mut batch, &which, &to, Some(&before));
            let line = format!("report {which} to {to}: unknown: {why}; it is not tried again");
            context.metrics.log_error(context.clock, line);
        }
        let not_before = store.read(Table::NamedValue, NOT_BEFORE)?.and_then(|b| serde_json::from_slice(&b).ok());
        if !batch.set.is_empty() {
            store.write(batch)?;
        }
        let written = Arc::clone(&context.store);
        let journal = GroupCommit::new(move |batch| written.write(batch));
        Ok(Arc::new(Scheduler {
            context,
            queued: OwnQueueIds::default(),
            setup: RwLock::new(Arc::new(setup)),
            board: Mutex::new(Board { not_before, ..Board::default() }),
            journal,
            planned: Notify::new(),
            planning_hosts: tokio::sync::Mutex::new(()),
            at_the_mta: Semaphore::new(HANDED_OVER),
            threads: Semaphore::new(std::thread::available_parallelism().map_or(1, usize::from)),
            limits: DeliveryTimeouts::default(),
        }))
    }

    /// Where the queue ids go under which the MTA took our reports.
    pub fn queued(&self) -> OwnQueueIds {
        self.queued.clone()
    }

    /// Takes a new configuration; what is under way ends with the old one.
    pub fn configure(&self, setup: Setup) {
        *self.setup.write() = Arc::new(setup);
    }

    /// Works until `shutdown` becomes true (or its sender goes), then lets what is under way end within 5 seconds.
    pub async fn run(self: Arc<Self>, mut shutdown: watch::Receiver<bool>) {
        let mut under_way = JoinSet::new();
        let mut keeping = JoinSet::new();
        let mut queue = VecDeque::new();
        let mut next_scan = Instant::now();
        loop {
            if keeping.is_empty() {
                self.context.metrics.heartbeat("scheduler");
            }
            if keeping.is_empty() && Instant::now() >= next_scan {
                let (scheduler, shutdown) = (Arc::clone(&self), shutdown.clone());
                keeping.spawn(async move {
                    let started = Instant::now();
                    let kept = scheduler.keep_days(&shutdown).await;
                    let pause = (started.elapsed() * SHARE).clamp(SOONEST, LATEST);
                    // What failed is not said every second: a full disk must not be filled with it.
                    Instant::now() + if kept { pause } else { LATEST }
                });
            }
            if queue.is_empty() && under_way.len() < UNDER_WAY {
                queue.extend(self.ready(QUEUE).await);
            }
            while under_way.len() < UNDER_WAY
                && let Some(job) = queue.pop_front()
            {
                under_way.spawn(Arc::clone(&self).work(job, shutdown.clone()));
            }
            if under_way.is_empty() {
                self.hang_up().await;
            }
            tokio::select! {
                biased;
                () = wait_for_shutdown(&mut shutdown) => break,
                Some(ended) = under_way.join_next() => self.ended(ended),
                Some(ended) = keeping.join_next() => match ended {
                    Ok(next) => next_scan = next,
                    Err(_) => {
                        self.ended(ended.map(drop));
                        next_scan = Instant::now() + LATEST;
                    }
                },
                () = self.planned.notified() => {}
                () = tokio::time::sleep(SOONEST) => {}
            }
        }
        while let Some(ended) = under_way.join_next().await {
            self.ended(ended);
        }
        self.hang_up().await;
        while let Some(ended) = keeping.join_next().await {
            self.ended(ended.map(drop));
        }
    }

    /// Nothing is on its way: the MTA's connections are not kept for what may come.
    async fn hang_up(&self) {
        let setup = Arc::clone(&self.setup.read());
        if let Some(sending) = &setup.sending {
            sending.transport.close_idle().await;
        }
    }

    /// The inputs that keep a day open. Before any input has said where it is, all do.
    fn lagging(&self, day: Day, now: i64) -> Vec<String> {
        let metrics = &self.context.metrics;
        if metrics.inputs().is_empty() {
            vec!["no input has begun".to_owned()]
        } else {
            metrics.lagging_inputs(day, now)
        }
    }

    /// Begins nothing for a while: the store has its troubles.
    fn rest(&self) {
        self.board.lock().rest_until = Some(Instant::now() + LATEST);
    }

    /// Runs a call that blocks where that holds up nobody.
    async fn blocking<T: Send + 'static>(&self, call: impl FnOnce(&dyn Store) -> T + Send + 'static) -> T {
        let store = Arc::clone(&self.context.store);
        // Never closed, so always given.
        let _turn = self.threads.acquire().await;
        match tokio::task::spawn_blocking(move || call(&*store)).await {
            Ok(value) => value,
            // The call does not get cancelled; a panic in it goes on here, as if it had been called here.
            Err(e) => std::panic::resume_unwind(e.into_panic()),
        }
    }

    fn ended(&self, task: Result<(), JoinError>) {
        if let Err(e) = task {
            self.error(format!("report: a task ended: {e}; its report waits for a restart"));
        }
    }

    fn error(&self, line: String) {
        self.context.metrics.log_error(self.context.clock, line);
    }
}

/// A random number of seconds from 0 to `span`. Without random octets, 0.
fn within(span: i64) -> i64 {
    let random = own_reports::random_bytes::<8>().map(u64::from_le_bytes).unwrap_or_default();
    let span = u64::try_from(span).unwrap_or_default();
    i64::try_from(random % (span + 1)).unwrap_or_default()
}

#[cfg(test)]
mod tests;
