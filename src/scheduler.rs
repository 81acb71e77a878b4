//! What is due when: closed days become plans, plans become deliveries, deliveries are tried until they are done.
//!
//! Takes: the counts in the store, the progress of the inputs, the clock. Gives: reports that went, each at most once a
//! destination, and [`Scheduler::due`], all of it as data.
//! Every try is written to the store before it starts, and its outcome after: a try that is found at start is unknown,
//! and is not repeated.
//! Limits: [`UNDER_WAY`] look-ups and tries at once; [`RETRY_FOR`] of tries; `retention` days are kept.
//! When it fails: a store that fails is said and asked again later; nothing is sent whose intent was not stored.
//! Not here: what a report says (`report::build`), how it goes (`report::deliver`).

mod attempt;
pub mod record;

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::clock::Clock;
use crate::config::ReportSection;
use crate::dns::Resolver;
use crate::metrics::Metrics;
use crate::own::{self, Secret};
use crate::report::deliver::Limits;
use crate::report::recipients::Destination;
use crate::report::{Sending, shown};
use crate::shutdown::stopped;
use crate::store::{Batch, Family, Store, StoreError};
use crate::tlsrpt::Day;
use record::{DeliveryState, Entries, Entry, Plan, PlanState, delivery_key, octets, plan_key};

/// How many look-ups and tries are under way at once: enough that one slow MTA reply holds up nothing, few enough for any MTA.
pub const UNDER_WAY: usize = 8;

/// How many jobs are picked at once from all entries, so that picking costs little a job.
const QUEUE: usize = 256;

/// How long a look-up or a delivery is tried, from its first try, in seconds (RFC 8460 §5.5).
pub const RETRY_FOR: i64 = 24 * 3600;

/// The first pause between two tries, in seconds; each is twice the one before, up to [`LAST_PAUSE`].
pub const FIRST_PAUSE: i64 = 300;

/// The longest pause between two tries, in seconds.
pub const LAST_PAUSE: i64 = 4 * 3600;

/// How long after its moment a report waits for inputs that lag, in seconds.
pub const WAIT_FOR_INPUTS: i64 = 12 * 3600;

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
    /// How far the inputs are; every input must have its entry before [`Scheduler::run`].
    pub metrics: Metrics,
    /// The time.
    pub clock: Clock,
    /// What makes our Message-IDs.
    pub own: Secret,
}

/// What the configuration says about reports.
#[derive(Debug)]
pub struct Setup {
    /// Over how long reports are spread, in seconds.
    pub spread: i64,
    /// How long counts are kept after their day, in seconds.
    pub retention: i64,
    /// What sending needs; nothing while the identity is incomplete.
    pub sending: Option<Sending>,
}

impl Setup {
    /// Reads the section and the keys that it names. Fails with one line a fault.
    pub fn load(section: &ReportSection) -> Result<Setup, Vec<String>> {
        let seconds = |span: Duration| i64::try_from(span.as_secs()).unwrap_or(i64::MAX / 4).min(i64::MAX / 4);
        Ok(Setup {
            spread: seconds(section.spread.0),
            retention: seconds(section.retention.0),
            sending: Sending::load(section)?,
        })
    }
}

/// The scheduler; shared by its task and by who looks at it.
pub struct Scheduler {
    context: Context,
    setup: RwLock<Arc<Setup>>,
    board: Mutex<Board>,
    limits: Limits,
}

/// All plans and deliveries, as the store has them.
struct Board {
    entries: Entries,
    /// What a task works on.
    busy: HashSet<Job>,
    /// Days that were closed though inputs lagged; each is said once.
    forced: BTreeSet<Day>,
    /// Days before this one are not reported.
    not_before: Option<Day>,
}

/// A piece of work.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Job {
    LookUp(Day, String),
    Send(Day, String, Destination),
}

/// One line of what is due, or done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Due {
    /// The UTC day.
    pub day: Day,
    /// The recipient domain.
    pub domain: String,
    /// The destination, once it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination: Option<Destination>,
    /// How far it is.
    pub state: DueState,
    /// When something happens next, in seconds since 1970-01-01T00:00:00Z; nothing where it is done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<i64>,
    /// How often it was tried.
    pub attempts: u32,
    /// What the last try came to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<String>,
}

/// How far a line of [`Due`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DueState {
    /// For its moment, for an input that lags, or for DNS.
    Waiting,
    /// The domain gets no report of this day.
    Nothing,
    /// To be tried.
    Planned,
    /// Being tried.
    Attempting,
    /// Taken by the MTA.
    Sent,
    /// Refused for good.
    Refused,
    /// It may have been taken; not tried again.
    Unknown,
    /// Given up.
    Expired,
}

impl std::fmt::Display for DueState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.serialize(f)
    }
}

impl From<DeliveryState> for DueState {
    fn from(state: DeliveryState) -> DueState {
        match state {
            DeliveryState::Planned => DueState::Planned,
            DeliveryState::Attempting => DueState::Attempting,
            DeliveryState::Sent => DueState::Sent,
            DeliveryState::Refused => DueState::Refused,
            DeliveryState::Unknown => DueState::Unknown,
            DeliveryState::Expired => DueState::Expired,
        }
    }
}

impl Scheduler {
    /// Notes that the store is new because the old one was damaged: days before today are not reported then, for they may
    /// have been. To be called as soon as the store is open: a start that fails after it must not forget it.
    pub fn note_loss(store: &dyn Store, clock: Clock, metrics: &Metrics) -> Result<(), StoreError> {
        let today = Day::of(clock.seconds());
        let set = vec![(Family::Single, NOT_BEFORE.to_vec(), Some(octets(&today)))];
        store.write(Batch { add: Vec::new(), set })?;
        metrics.error(clock, format!(
            "report: days before {today}: not reported: the store was lost, so what was sent is not known; reports go on with {today}"
        ));
        Ok(())
    }

    /// Reads what the store holds; tries that were under way when the last process ended become unknown.
    /// Blocks for as long as the store does.
    pub fn open(context: Context, setup: Setup) -> Result<Arc<Scheduler>, StoreError> {
        let (mut entries, bad) = record::entries(context.store.scan(Family::Delivery, b"")?);
        let error = |line: String| context.metrics.error(context.clock, line);
        for key in bad {
            error(format!(
                "report {}: unreadable record: {}; it is not sent",
                shown(&key, 300),
                "its text makes no sense"
            ));
        }
        let mut batch = Batch::default();
        for ((day, domain), entry) in &mut entries {
            for (destination, delivery) in &mut entry.deliveries {
                if delivery.state == DeliveryState::Attempting {
                    let why = "the daemon ended while it was being sent";
                    delivery.state = DeliveryState::Unknown;
                    delivery.last = Some(why.to_owned());
                    put(&mut batch, delivery_key(*day, domain, destination), delivery);
                    error(format!("report {day} {domain} to {destination}: unknown: {why}; it is not tried again"));
                }
            }
        }
        let not_before = context.store.read(Family::Single, NOT_BEFORE)?.and_then(|b| serde_json::from_slice(&b).ok());
        if !batch.set.is_empty() {
            context.store.write(batch)?;
        }
        let board = Board { entries, busy: HashSet::new(), forced: BTreeSet::new(), not_before };
        Ok(Arc::new(Scheduler {
            context,
            setup: RwLock::new(Arc::new(setup)),
            board: Mutex::new(board),
            limits: Limits::default(),
        }))
    }

    /// Takes a new configuration; what is under way ends with the old one.
    pub fn configure(&self, setup: Setup) {
        *self.setup.write() = Arc::new(setup);
    }

    /// Works until `shutdown` becomes true (or its sender goes), then lets what is under way end within 5 seconds.
    pub async fn run(self: Arc<Self>, mut shutdown: watch::Receiver<bool>) {
        let mut under_way = JoinSet::new();
        let mut queue = VecDeque::new();
        let mut next_scan = Instant::now();
        loop {
            self.context.metrics.alive("scheduler");
            if Instant::now() >= next_scan {
                let started = Instant::now();
                let kept = self.keep_days().await;
                let pause = (started.elapsed() * SHARE).clamp(SOONEST, LATEST);
                // What failed is not said every second: a full disk must not be filled with it.
                next_scan = Instant::now() + if kept { pause } else { LATEST };
            }
            if queue.is_empty() {
                queue.extend(self.ready(QUEUE));
            }
            while under_way.len() < UNDER_WAY
                && let Some(job) = queue.pop_front()
            {
                under_way.spawn(Arc::clone(&self).work(job, shutdown.clone()));
            }
            tokio::select! {
                biased;
                () = stopped(&mut shutdown) => break,
                Some(ended) = under_way.join_next() => self.ended(ended),
                () = tokio::time::sleep(SOONEST) => {}
            }
        }
        while let Some(ended) = under_way.join_next().await {
            self.ended(ended);
        }
    }

    /// Everything that is planned, under way or done within retention, oldest day first.
    pub fn due(&self) -> Vec<Due> {
        let board = self.board.lock();
        let mut due = Vec::new();
        for ((day, domain), entry) in &board.entries {
            let plan = &entry.plan;
            let state = match plan.state {
                PlanState::Waiting => Some(DueState::Waiting),
                PlanState::Nothing => Some(DueState::Nothing),
                PlanState::Planned => None,
            };
            if let Some(state) = state {
                due.push(Due {
                    day: *day,
                    domain: domain.clone(),
                    destination: None,
                    state,
                    next: (plan.state == PlanState::Waiting).then_some(plan.next),
                    attempts: plan.attempts,
                    last: plan.last.clone(),
                });
            }
            due.extend(entry.deliveries.iter().map(|(destination, delivery)| Due {
                day: *day,
                domain: domain.clone(),
                destination: Some(destination.clone()),
                state: delivery.state.into(),
                next: (delivery.state == DeliveryState::Planned).then_some(delivery.next),
                attempts: delivery.attempts,
                last: delivery.last.clone(),
            }));
        }
        due
    }

    /// Drops the days past retention and plans the days that have ended; whether that went well.
    async fn keep_days(&self) -> bool {
        let now = self.context.clock.seconds();
        let setup = Arc::clone(&self.setup.read());
        let oldest = Day::of(now.saturating_sub(setup.retention));
        let kept = async {
            self.drop_before(oldest).await?;
            self.plan_between(oldest, Day::of(now), setup.spread).await
        };
        let kept = kept.await;
        if let Err(e) = &kept {
            self.error(format!("report: planning failed: {e}; it is tried again in a minute"));
        }
        kept.is_ok()
    }

    async fn drop_before(&self, oldest: Day) -> Result<(), StoreError> {
        let counted = self.blocking(move |store| store.days()).await?;
        if counted.first().is_some_and(|day| *day < oldest) {
            self.blocking(move |store| store.drop_days_before(oldest)).await?;
        }
        let old: Entries = {
            let mut board = self.board.lock();
            let kept = board.entries.split_off(&(oldest, String::new()));
            board.forced.retain(|day| *day >= oldest);
            std::mem::replace(&mut board.entries, kept)
        };
        if old.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::default();
        let mut unsent: BTreeMap<Day, u64> = BTreeMap::new();
        for ((day, domain), entry) in &old {
            batch.set.push((Family::Delivery, plan_key(*day, domain), None));
            for destination in entry.deliveries.keys() {
                batch.set.push((Family::Delivery, delivery_key(*day, domain, destination), None));
            }
            let open = entry.plan.state == PlanState::Waiting
                || entry.deliveries.values().any(|d| d.state == DeliveryState::Planned);
            *unsent.entry(*day).or_default() += u64::from(open);
        }
        for (day, domains) in unsent.into_iter().filter(|(_, domains)| *domains > 0) {
            self.error(format!(
                "report {day}: expired: retention is over; the results of {domains} domains were not reported"
            ));
        }
        self.write(batch).await
    }

    /// Gives each domain of the days from `oldest` to before `today` its moment.
    async fn plan_between(&self, oldest: Day, today: Day, spread: i64) -> Result<(), StoreError> {
        let not_before = self.board.lock().not_before.unwrap_or(oldest).max(oldest);
        let days = self.blocking(|store| store.days()).await?;
        for day in days.into_iter().filter(|day| (not_before..today).contains(day)) {
            let domains = self.blocking(move |store| store.domains(day)).await?;
            let fresh: Vec<(String, Plan)> = {
                let board = self.board.lock();
                let unknown = domains.into_iter().filter(|d| !board.entries.contains_key(&(day, d.clone())));
                unknown.map(|domain| (domain, Plan::at(day.end() + within(spread)))).collect()
            };
            if fresh.is_empty() {
                continue;
            }
            let mut batch = Batch::default();
            fresh.iter().for_each(|(domain, plan)| put(&mut batch, plan_key(day, domain), plan));
            self.write(batch).await?;
            let mut board = self.board.lock();
            for (domain, plan) in fresh {
                board.entries.insert((day, domain), Entry { plan, deliveries: BTreeMap::new() });
            }
        }
        Ok(())
    }

    /// Up to `room` jobs whose time has come, oldest day first; they are busy from now on.
    fn ready(&self, room: usize) -> Vec<Job> {
        let now = self.context.clock.seconds();
        if self.setup.read().sending.is_none() {
            return Vec::new();
        }
        let mut lagging: BTreeMap<Day, Vec<String>> = BTreeMap::new();
        let mut jobs = Vec::new();
        let mut forced = BTreeMap::new();
        let mut board = self.board.lock();
        for ((day, domain), entry) in &board.entries {
            if jobs.len() == room {
                break;
            }
            if entry.plan.state == PlanState::Waiting && entry.plan.next <= now {
                let behind = lagging.entry(*day).or_insert_with(|| self.lagging(*day, now));
                let late = now - entry.plan.moment >= WAIT_FOR_INPUTS;
                if behind.is_empty() || late {
                    jobs.push(Job::LookUp(*day, domain.clone()));
                    if !behind.is_empty() {
                        forced.insert(*day, behind.join(", "));
                    }
                }
            }
            for (destination, delivery) in &entry.deliveries {
                if delivery.state == DeliveryState::Planned && delivery.next <= now {
                    jobs.push(Job::Send(*day, domain.clone(), destination.clone()));
                }
            }
            jobs.retain(|job| !board.busy.contains(job));
        }
        jobs.truncate(room);
        board.busy.extend(jobs.iter().cloned());
        forced.retain(|day, _| board.forced.insert(*day));
        drop(board);
        for (day, inputs) in forced {
            self.error(format!(
                "report {day}: closed late: {inputs} lagged for 12 hours; what is counted later is not in the reports"
            ));
        }
        jobs
    }

    /// The inputs that keep a day open. Before any input has said where it is, all do.
    fn lagging(&self, day: Day, now: i64) -> Vec<String> {
        let metrics = &self.context.metrics;
        if metrics.inputs().is_empty() { vec!["no input has begun".to_owned()] } else { metrics.lagging(day, now) }
    }

    async fn write(&self, batch: Batch) -> Result<(), StoreError> {
        self.blocking(move |store| store.write(batch)).await
    }

    /// Runs a call that blocks where that holds up nobody.
    async fn blocking<T: Send + 'static>(&self, call: impl FnOnce(&dyn Store) -> T + Send + 'static) -> T {
        let store = Arc::clone(&self.context.store);
        match tokio::task::spawn_blocking(move || call(&*store)).await {
            Ok(value) => value,
            // The call does not get cancelled; a panic in it goes on here, as if it had been called here.
            Err(e) => std::panic::resume_unwind(e.into_panic()),
        }
    }

    fn ended(&self, task: Result<(), tokio::task::JoinError>) {
        if let Err(e) = task {
            self.error(format!("report: a task ended: {e}; its report waits for a restart"));
        }
    }

    fn error(&self, line: String) {
        self.context.metrics.error(self.context.clock, line);
    }
}

/// A random number of seconds from 0 to `span`. Without random octets, 0.
fn within(span: i64) -> i64 {
    let random = own::random::<8>().map(u64::from_le_bytes).unwrap_or_default();
    let span = u64::try_from(span).unwrap_or_default();
    i64::try_from(random % (span + 1)).unwrap_or_default()
}

fn put<T: Serialize>(batch: &mut Batch, key: Vec<u8>, record: &T) {
    batch.set.push((Family::Delivery, key, Some(octets(record))));
}

#[cfg(test)]
mod tests {
    use super::attempt::pause;
    use super::record::Delivery;
    use super::*;
    use crate::config::{Deliver, DkimKey, ResolverSection, Span};
    use crate::metrics::OUT_OF_ORDER;
    use crate::report::deliver::tests::{Turn, server};
    use crate::report::preview;
    use crate::store::embedded::Embedded;
    use crate::tlsrpt::{Counted, Policy, Tally};
    use std::net::SocketAddr;
    use std::path::Path;
    use tempfile::TempDir;
    use tokio::net::UdpSocket;
    use tokio::sync::mpsc::UnboundedReceiver;
    use tokio::task::JoinHandle;

    const SECRET: [u8; 32] = [7; 32];

    fn day() -> Day {
        "2026-11-22".parse().unwrap()
    }

    /// A name server on loopback that answers TXT questions with what the name is mapped to; `None` is SERVFAIL, a name
    /// that is not there NXDOMAIN.
    async fn name_server(records: Vec<(&'static str, Option<&'static str>)>) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut octets = [0; 1500];
            while let Ok((n, from)) = socket.recv_from(&mut octets).await {
                let query = &octets[..n];
                let (mut at, mut labels) = (12, Vec::new());
                while query[at] != 0 {
                    let end = at + 1 + usize::from(query[at]);
                    labels.push(String::from_utf8_lossy(&query[at + 1..end]).into_owned());
                    at = end;
                }
                let name = labels.join(".");
                let found = records.iter().find(|(n, _)| *n == name).map(|(_, text)| *text);
                let (code, text) = match found {
                    None => (3, None),
                    Some(None) => (2, None),
                    Some(Some(text)) => (0, Some(text)),
                };
                let mut reply = query[..2].to_vec();
                reply.extend([0x81, 0x80 | code, 0, 1, 0, u8::from(text.is_some()), 0, 0, 0, 0]);
                reply.extend(&query[12..at + 5]);
                if let Some(text) = text {
                    let strings: Vec<u8> = text
                        .as_bytes()
                        .chunks(255)
                        .flat_map(|part| std::iter::once(u8::try_from(part.len()).unwrap()).chain(part.iter().copied()))
                        .collect();
                    reply.extend([0xc0, 12, 0, 16, 0, 1, 0, 0, 0, 60]);
                    reply.extend(u16::try_from(strings.len()).unwrap().to_be_bytes());
                    reply.extend(strings);
                }
                socket.send_to(&reply, from).await.unwrap();
            }
        });
        address
    }

    fn section(deliver: Deliver) -> ReportSection {
        ReportSection {
            organization: Some("Example".into()),
            contact: Some("postmaster@sender.example".into()),
            from: Some("tlsrpt@sender.example".into()),
            envelope: Some("bounces@sender.example".into()),
            deliver,
            spread: Span(Duration::ZERO),
            dkim: vec![DkimKey {
                selector: "ed".into(),
                domain: None,
                key: Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/dkim/ed25519.pem"),
            }],
            ..ReportSection::default()
        }
    }

    fn count(store: &dyn Store, day: Day, domain: &str) {
        let tally = |counted| Tally { day, domain: domain.into(), policy: Policy::none(domain).into(), counted };
        store.write(Batch { add: vec![(tally(Counted::Success), 3)], set: Vec::new() }).unwrap();
    }

    /// A store folder that outlives the scheduler on it, and what the scheduler asks and sends to.
    struct World {
        folder: TempDir,
        dns: SocketAddr,
        section: ReportSection,
        metrics: Metrics,
    }

    impl World {
        async fn new(
            records: Vec<(&'static str, Option<&'static str>)>,
            turn: Turn,
        ) -> (World, UnboundedReceiver<(String, String, Vec<u8>)>) {
            let (sink, taken) = server(turn).await;
            let metrics = Metrics::default();
            metrics.input("maillog", |input| input.newest = Some(day().end() + OUT_OF_ORDER));
            let folder = tempfile::tempdir().unwrap();
            let world =
                World { folder, dns: name_server(records).await, section: section(Deliver::Smtp(sink)), metrics };
            count(&world.store(), day(), "example.net");
            (world, taken)
        }

        fn store(&self) -> Embedded {
            // One that is just being let go is waited for.
            for _ in 0..500 {
                match Embedded::open(self.folder.path(), Clock::default()) {
                    Ok(opened) => return opened.store,
                    Err(StoreError::Locked(_)) => std::thread::sleep(Duration::from_millis(10)),
                    Err(e) => panic!("{e}"),
                }
            }
            panic!("the store is not let go");
        }

        fn open(&self, now: i64) -> Arc<Scheduler> {
            let context = Context {
                store: Arc::new(self.store()),
                resolver: Resolver::new(&ResolverSection { address: Some(self.dns) }).unwrap(),
                metrics: self.metrics.clone(),
                clock: Clock::starting_at(now),
                own: Secret::of(&SECRET),
            };
            let mut scheduler = Scheduler::open(context, Setup::load(&self.section).unwrap()).unwrap();
            let short = Duration::from_millis(500);
            Arc::get_mut(&mut scheduler).unwrap().limits = Limits { before_dot: short, after_dot: short };
            scheduler
        }

        /// Runs a scheduler from `now` until `done`, then stops it in order and gives what it held then.
        async fn run(&self, now: i64, done: impl Fn(&[Due]) -> bool) -> Vec<Due> {
            let scheduler = self.open(now);
            let (stop, task) = start(&scheduler);
            let due = until(&scheduler, done).await;
            stop.send(true).unwrap();
            task.await.unwrap();
            due
        }

        fn said(&self, text: &str) -> bool {
            self.metrics.errors().iter().any(|(_, line)| line.contains(text))
        }
    }

    fn start(scheduler: &Arc<Scheduler>) -> (watch::Sender<bool>, JoinHandle<()>) {
        let (stop, stopping) = watch::channel(false);
        (stop, tokio::spawn(Arc::clone(scheduler).run(stopping)))
    }

    /// Stops everything where it is, and waits until a call that was in the store has let go of it.
    async fn crash(scheduler: Arc<Scheduler>, task: JoinHandle<()>) {
        let store = Arc::downgrade(&scheduler.context.store);
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        drop(scheduler);
        while store.strong_count() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn until(scheduler: &Scheduler, done: impl Fn(&[Due]) -> bool) -> Vec<Due> {
        let limit = Instant::now() + Duration::from_secs(20);
        loop {
            let due = scheduler.due();
            if done(&due) {
                return due;
            }
            assert!(Instant::now() < limit, "{due:#?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn states(due: &[Due]) -> Vec<DueState> {
        due.iter().map(|d| d.state).collect()
    }

    const RECORD: (&str, Option<&str>) = ("_smtp._tls.example.net", Some("v=TLSRPTv1; rua=mailto:tls@example.net"));

    #[tokio::test]
    async fn a_closed_day_is_reported_once() {
        let (world, mut taken) = World::new(vec![RECORD], Turn::Never).await;
        let due = world.run(day().end() + 60, |due| states(due) == [DueState::Sent]).await;
        let (from, to, message) = taken.try_recv().unwrap();
        assert_eq!((from.as_str(), to.as_str()), ("MAIL FROM:<bounces@sender.example>", "RCPT TO:<tls@example.net>"));
        let text = String::from_utf8(message).unwrap();
        assert!(text.starts_with("DKIM-Signature:") && text.contains("TLS-Report-Domain: example.net"), "{text}");
        let id = text.split("Message-ID: <").nth(1).unwrap().split('>').next().unwrap();
        assert!(Secret::of(&SECRET).is_ours(id.as_bytes()), "{id}");
        assert_eq!(due[0].last.as_deref(), Some("250 2.0.0 Ok: queued as 4Xyz12"));

        // A restart remembers, a day later too.
        for now in [day().end() + 120, day().end() + 90_000] {
            world.run(now, |due| states(due) == [DueState::Sent]).await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(taken.try_recv().is_err());
        let text = serde_json::to_string(&due).unwrap();
        assert_eq!(serde_json::from_str::<Vec<Due>>(&text).unwrap(), due);
    }

    #[tokio::test]
    async fn a_day_stays_open_while_an_input_lags_and_not_for_ever() {
        let (world, mut taken) = World::new(vec![RECORD], Turn::Never).await;
        world.metrics.input("maillog", |input| input.newest = Some(day().end() - 1));
        let scheduler = world.open(day().end() + 60);
        let (stop, task) = start(&scheduler);
        until(&scheduler, |due| states(due) == [DueState::Waiting]).await;
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert_eq!(states(&scheduler.due()), [DueState::Waiting]);
        stop.send(true).unwrap();
        task.await.unwrap();
        drop(scheduler);
        assert!(taken.try_recv().is_err());
        world.run(day().end() + WAIT_FOR_INPUTS + 1, |due| states(due) == [DueState::Sent]).await;
        assert!(world.said("closed late: maillog lagged"));
    }

    #[tokio::test]
    async fn no_input_that_has_begun_keeps_all_days_open() {
        let (mut world, _taken) = World::new(vec![RECORD], Turn::Never).await;
        world.metrics = Metrics::default();
        let scheduler = world.open(day().end() + 60);
        scheduler.keep_days().await;
        assert!(scheduler.ready(8).is_empty());
        assert_eq!(states(&scheduler.due()), [DueState::Waiting]);
    }

    #[tokio::test]
    async fn a_no_for_now_is_tried_again_with_the_same_ids_and_not_for_ever() {
        let (mut world, _taken) = World::new(vec![RECORD], Turn::Reply("RCPT", "451 4.3.0 later")).await;
        let now = day().end() + 60;
        let tried = |due: &[Due]| states(due) == [DueState::Planned] && due[0].attempts == 1;
        let due = world.run(now, tried).await;
        let again = due[0].next.unwrap();
        assert!((now + FIRST_PAUSE..now + FIRST_PAUSE + 10).contains(&again), "{due:?}");
        let ids = |world: &World| {
            let records = world.store().scan(Family::Delivery, b"").unwrap();
            let delivery: Delivery = serde_json::from_slice(&records[1].1).unwrap();
            (delivery.report_id, delivery.message_id)
        };
        let first = ids(&world);
        let (sink, mut taken) = server(Turn::Never).await;
        let busy = world.section.deliver.clone();
        world.section.deliver = Deliver::Smtp(sink);
        let due = world.run(again + 1, |due| states(due) == [DueState::Sent]).await;
        assert_eq!((due[0].attempts, ids(&world)), (2, first));
        assert!(taken.try_recv().is_ok());

        count(&world.store(), day(), "other.example.net");
        world.section.deliver = busy;
        let due = world.run(now, |due| due.iter().any(|d| d.state == DueState::Nothing)).await;
        assert_eq!(due.len(), 2, "{due:?}");
    }

    #[tokio::test]
    async fn tries_end_after_a_day() {
        let (world, _taken) = World::new(vec![RECORD], Turn::Reply("RCPT", "451 4.3.0 later")).await;
        let now = day().end() + 60;
        world.run(now, |due| states(due) == [DueState::Planned] && due[0].attempts == 1).await;
        world.run(now + RETRY_FOR, |due| states(due) == [DueState::Expired]).await;
        assert!(world.said("given up after 24 hours"));
        assert_eq!([1, 2, 3, 6, 7, 100].map(pause), [300, 600, 1200, 9600, LAST_PAUSE, LAST_PAUSE]);
    }

    #[tokio::test]
    async fn what_may_have_arrived_is_not_sent_again() {
        let (world, _taken) = World::new(vec![RECORD], Turn::Silence(".")).await;
        world.run(day().end() + 60, |due| states(due) == [DueState::Unknown]).await;
        let due = world.run(day().end() + 90_000, |due| !due.is_empty()).await;
        assert_eq!((states(&due), due[0].attempts), (vec![DueState::Unknown], 1));
    }

    #[tokio::test]
    async fn a_try_that_a_crash_cut_off_is_unknown() {
        let (mut world, _taken) = World::new(vec![RECORD], Turn::Silence(".")).await;
        let scheduler = world.open(day().end() + 60);
        let (_stop, task) = start(&scheduler);
        until(&scheduler, |due| states(due) == [DueState::Attempting]).await;
        crash(scheduler, task).await;
        let (sink, mut taken) = server(Turn::Never).await;
        world.section.deliver = Deliver::Smtp(sink);
        let due = world.run(day().end() + 90_000, |due| !due.is_empty()).await;
        assert_eq!((states(&due), due[0].attempts), (vec![DueState::Unknown], 1));
        assert!(world.said("the daemon ended while it was being sent"));
        assert!(taken.try_recv().is_err());
    }

    #[tokio::test]
    async fn each_destination_has_its_own_delivery_and_https_is_not_lost_silently() {
        let record = "v=TLSRPTv1; rua=mailto:a@example.net,mailto:b@example.org,https://r.example.net/,ftp://x/";
        let (world, mut taken) = World::new(vec![("_smtp._tls.example.net", Some(record))], Turn::Never).await;
        let all =
            |due: &[Due]| due.len() == 3 && due.iter().all(|d| matches!(d.state, DueState::Sent | DueState::Refused));
        let due = world.run(day().end() + 60, all).await;
        assert_eq!(due.iter().filter(|d| d.state == DueState::Sent).count(), 2);
        assert!(world.said("https"));
        let id = |mail: (String, String, Vec<u8>)| {
            let text = String::from_utf8(mail.2).unwrap();
            text.split("Report-ID:").nth(1).unwrap().split('>').next().unwrap().trim().to_owned()
        };
        assert_eq!(id(taken.try_recv().unwrap()), id(taken.try_recv().unwrap()));
    }

    #[tokio::test]
    async fn dns_trouble_is_waited_out_for_a_day() {
        let (world, _taken) = World::new(vec![("_smtp._tls.example.net", None)], Turn::Never).await;
        let now = day().end() + 60;
        let due = world.run(now, |due| due.first().is_some_and(|d| d.attempts == 1)).await;
        assert_eq!(states(&due), [DueState::Waiting]);
        assert!(due[0].next.unwrap() >= now + FIRST_PAUSE);
        world.run(now + RETRY_FOR, |due| states(due) == [DueState::Nothing]).await;
        assert!(world.said("given up after 24 hours"));
    }

    #[tokio::test]
    async fn without_an_identity_days_wait_within_retention() {
        let (mut world, mut taken) = World::new(vec![RECORD], Turn::Never).await;
        let complete = world.section.clone();
        world.section.contact = None;
        let scheduler = world.open(day().end() + 60);
        let (stop, task) = start(&scheduler);
        until(&scheduler, |due| states(due) == [DueState::Waiting]).await;
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert_eq!(states(&scheduler.due()), [DueState::Waiting]);
        scheduler.configure(Setup::load(&complete).unwrap());
        until(&scheduler, |due| states(due) == [DueState::Sent]).await;
        stop.send(true).unwrap();
        task.await.unwrap();
        drop(scheduler);
        assert!(taken.try_recv().is_ok());

        let next = Day(day().0 + 1);
        count(&world.store(), next, "example.net");
        let late = next.end() + 3 * Day::SECONDS;
        world.run(next.end() + 1, |due| due.len() == 2).await;
        world.run(late + Day::SECONDS, <[Due]>::is_empty).await;
        assert!(world.said("the results of 1 domains were not reported"), "{:?}", world.metrics.errors());
        assert_eq!(world.store().days().unwrap(), []);
        assert_eq!(world.store().scan(Family::Delivery, b"").unwrap(), []);
    }

    #[tokio::test]
    async fn after_a_lost_store_old_days_are_not_reported() {
        let (world, _taken) = World::new(vec![RECORD], Turn::Never).await;
        // A start that fails comes between the loss and the first scheduler.
        Scheduler::note_loss(&world.store(), Clock::starting_at(day().end() + 60), &world.metrics).unwrap();
        for _ in 0..2 {
            let scheduler = world.open(day().end() + 60);
            scheduler.keep_days().await;
            assert_eq!(scheduler.due(), []);
        }
        count(&world.store(), Day(day().0 + 1), "example.net");
        let scheduler = world.open(day().end() + Day::SECONDS + 60);
        scheduler.keep_days().await;
        assert_eq!(scheduler.due().len(), 1);
    }

    #[tokio::test]
    async fn a_preview_shows_what_would_go_and_sends_nothing() {
        let (mut world, mut taken) = World::new(vec![RECORD], Turn::Never).await;
        count(&world.store(), day(), "silent.example");
        world.section.organization = None;
        let resolver = Resolver::new(&ResolverSection { address: Some(world.dns) }).unwrap();
        let store = world.store();
        let shown = preview(&store, &resolver, &world.section, day(), None).await.unwrap();
        assert_eq!(shown.iter().map(|p| p.domain.as_str()).collect::<Vec<_>>(), ["example.net", "silent.example"]);
        assert_eq!(shown[0].recipients[0].to_string(), "mailto:tls@example.net");
        assert!(
            shown[0].json.contains("\"total-successful-session-count\":3") && shown[0].file_name.ends_with(".json.gz")
        );
        assert_eq!((shown[1].recipients.len(), shown[1].why_not.as_deref()), (0, Some("no TLSRPT record")));
        let one = preview(&store, &resolver, &world.section, day(), Some("silent.example")).await.unwrap();
        assert_eq!(one.len(), 1);
        assert_eq!(store.scan(Family::Delivery, b"").unwrap(), []);
        assert!(taken.try_recv().is_err());
    }

    #[tokio::test]
    async fn moments_are_spread_and_kept() {
        let (mut world, _taken) = World::new(vec![RECORD], Turn::Never).await;
        world.section.spread = Span(Duration::from_secs(4 * 3600));
        for i in 0..50 {
            count(&world.store(), day(), &format!("d{i}.example"));
        }
        let moments = |world: &World| {
            let scheduler = world.open(day().end() + 1);
            async move {
                scheduler.keep_days().await;
                scheduler.due().iter().map(|d| d.next.unwrap()).collect::<Vec<_>>()
            }
        };
        let first = moments(&world).await;
        assert_eq!(first.len(), 51);
        assert!(first.iter().all(|m| (day().end()..=day().end() + 4 * 3600).contains(m)));
        assert!(first.iter().collect::<BTreeSet<_>>().len() > 40, "{first:?}");
        assert_eq!(moments(&world).await, first);
    }

    /// The records of `count` domains `dN.example`, each with one address.
    fn many(count: usize) -> Vec<(&'static str, Option<&'static str>)> {
        let leak = |text: String| -> &'static str { Box::leak(text.into_boxed_str()) };
        let record =
            |i| (leak(format!("_smtp._tls.d{i}.example")), Some(leak(format!("v=TLSRPTv1;rua=mailto:r@d{i}.example"))));
        (0..count).map(record).collect()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn stopped_at_any_moment_nothing_is_sent_twice() {
        const DOMAINS: usize = 60;
        let (world, mut taken) = World::new(many(DOMAINS), Turn::Slow(Duration::from_millis(10))).await;
        (0..DOMAINS).for_each(|i| count(&world.store(), day(), &format!("d{i}.example")));
        for round in 0..12 {
            let scheduler = world.open(day().end() + 60 + round);
            let (_stop, task) = start(&scheduler);
            let stage = |due: &[Due]| {
                due.iter().any(|d| d.state == DueState::Attempting) || due.iter().all(|d| d.next.is_none())
            };
            until(&scheduler, stage).await;
            tokio::time::sleep(Duration::from_millis(3 * u64::try_from(round).unwrap())).await;
            crash(scheduler, task).await;
        }
        let over = |due: &[Due]| {
            due.len() == DOMAINS + 1 && due.iter().all(|d| d.next.is_none() && d.state != DueState::Attempting)
        };
        let due = world.run(day().end() + 600, over).await;
        let mut arrived: BTreeMap<String, usize> = BTreeMap::new();
        while let Ok((_, to, _)) = taken.try_recv() {
            *arrived.entry(to).or_default() += 1;
        }
        let mut unknown = 0;
        for one in due.iter().filter(|d| d.destination.is_some()) {
            let n = arrived.get(&format!("RCPT TO:<r@{}>", one.domain)).copied().unwrap_or_default();
            match one.state {
                DueState::Sent => assert_eq!(n, 1, "{one:?}"),
                DueState::Unknown => unknown += 1,
                _ => panic!("{one:?}"),
            }
            assert!(n <= 1, "{one:?} arrived {n} times");
        }
        assert!((1..DOMAINS).contains(&unknown), "{unknown} were cut off; some must be, and some sent in peace");
    }
}
