//! The only wiring: load, check, open, bind, spawn, say ready, wait, drain.
//!
//! Takes: the path of the configuration. Gives: a running host, until SIGTERM or SIGINT, or until a task ends by itself,
//! which is an error. SIGHUP rereads the configuration: what runs is drained and started anew on the same store and the
//! same sockets, so that connections wait and none is refused; a configuration that does not pass changes nothing.
//! When it fails at start: a [`DaemonError`], before anything was answered, counted or sent.

pub mod control;
mod inputs;
mod listeners;
pub mod prometheus;
mod replay;
pub mod services;
pub mod watchdog;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::{Id, JoinError, JoinSet};

use control::Desk;
pub use listeners::SocketError;
use listeners::{Bound, Sockets};

use crate::answering::listener::Listener;
use crate::answering::policy::history::History;
use crate::answering::policy::policies::Policies;
use crate::answering::readsocket;
use crate::answering::socketmap::server;
use crate::base::clock::Clock;
use crate::base::shutdown::wait_for_shutdown;
use crate::config::detect;
use crate::config::identity::missing_identity;
use crate::config::{Config, ConfigError, DkimSigning, ListenAddress, time_zone};
use crate::counting::pipeline::CountingTask;
use crate::counting::rules::CountingRules;
use crate::metrics::Metrics;
use crate::net::dns::Resolver;
use crate::net::https;
use crate::reporting::dkim::key::DkimPublicKey;
use crate::reporting::schedule::{Scheduler, SchedulerContext, SchedulerSettings};
use crate::store::embedded::EmbeddedStore;
use crate::store::{Store, StoreError, message_id_key};

/// How long the tasks have to end what they are at.
const DEADLINE: Duration = Duration::from_secs(15);

/// Blocks that wait between the inputs and the counting: reading is never far ahead of what is counted.
const BLOCKS: usize = 4;

/// Hints that wait between the counting and the policies: more than that in a moment is a host in trouble of its own.
const HINTS: usize = 1024;

/// Failed sessions that Exim reported and that wait for the counting: more at once than Exim has processes.
const EXIM_EVENTS: usize = 1024;

/// Why the daemon did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The file.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Addresses and keys that the file names.
    #[error("{}", .0.join("; "))]
    Keys(Vec<String>),
    /// A log that cannot be read.
    #[error("{0}")]
    Input(String),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Something that every host should have: threads, signals, the platform's roots.
    #[error("{0}")]
    Host(String),
    /// A task that ended by itself.
    #[error("{0}")]
    Task(String),
}

/// Runs until it is told to end.
pub fn run(path: &Path) -> Result<(), DaemonError> {
    let prepared = Prepared::load(path)?;
    descriptors();
    let host = |e: io::Error| DaemonError::Host(format!("runtime: cannot start: {e}; not started"));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(host)?;
    let ended = runtime.block_on(serve(path, prepared));
    // What still runs has had its time.
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended
}

/// Allows this process as many descriptors as the host lets it have: each client takes one, and the common limit of
/// 1,024 is there for programs that use select(2).
fn descriptors() {
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(limit) => tracing::debug!("descriptors: {limit}"),
        Err(error) => tracing::warn!("descriptors: the limit stays as it is: {error}; clients beyond it wait"),
    }
}

/// The configuration, if the daemon would start with it: what it names is there and can be read by this user.
/// Beside it what was found out about the host, one line each.
pub fn check(path: &Path) -> Result<(Config, Vec<String>), DaemonError> {
    Prepared::load(path).map(|prepared| (prepared.config, prepared.found))
}

/// Whether the daemon would start with a configuration that is complete already.
pub fn would_start(config: &Config) -> Result<(), DaemonError> {
    Prepared::of(config.clone(), Vec::new()).map(drop)
}

/// A configuration and what it names, all of it there.
struct Prepared {
    config: Config,
    setup: SchedulerSettings,
    zones: Vec<TimeZone>,
    /// What was found out about the host, one line each.
    found: Vec<String>,
}

impl Prepared {
    fn load(path: &Path) -> Result<Prepared, DaemonError> {
        let mut found = Vec::new();
        let config = Config::load_with(path, |config| found = detect::complete(config))?;
        Prepared::of(config, found)
    }

    fn of(config: Config, found: Vec<String>) -> Result<Prepared, DaemonError> {
        let setup = SchedulerSettings::load(&config.report).map_err(DaemonError::Keys)?;
        let zone = |name: &Option<String>| name.as_deref().map_or(Ok(TimeZone::system()), time_zone);
        let zones = config.inputs.iter().map(|input| zone(&input.timezone)).collect::<Result<_, _>>();
        let zones = zones.map_err(|problem| DaemonError::Keys(vec![problem]))?;
        inputs::check(&config)?;
        if let Some(root) = &config.closed_network.extra_root {
            let unread = |e| format!("{}: the extra root cannot be read: {e}; not started", root.display());
            std::fs::read(root).map_err(|e| DaemonError::Keys(vec![unread(e)]))?;
        }
        Ok(Prepared { config, setup, zones, found })
    }
}

/// What outlives a reload.
struct House {
    store: Arc<EmbeddedStore>,
    folder: PathBuf,
    sockets: Sockets,
    /// Standard input, once it has been read.
    stdin: Option<inputs::SharedStdin>,
    clock: Clock,
    metrics: Metrics,
}

async fn serve(path: &Path, mut prepared: Prepared) -> Result<(), DaemonError> {
    let clock = prepared.config.closed_network.clock.map_or_else(Clock::default, |t| Clock::starting_at(t.as_second()));
    let folder = prepared.config.store.path.clone();
    let opened = EmbeddedStore::open(&folder, clock)?;
    let metrics = Metrics::default();
    if opened.lost_commits() {
        Scheduler::record_store_loss(&opened.store, clock, &metrics)?;
    }
    let mut house =
        House { store: Arc::new(opened.store), folder, sockets: Sockets::from_systemd(), stdin: None, clock, metrics };
    let mut signals = Signals::listen()?;
    // Ends with this function.
    let mut feeding = JoinSet::new();
    feeding.spawn(watchdog::feed(house.metrics.clone()));
    loop {
        let mut tasks = Tasks::start(&mut house, prepared)?;
        notify(sd_notify::NotifyState::Ready);
        let store = Arc::clone(&house.store);
        let started = tokio::task::spawn_blocking(move || store.drop_preloaded()).await;
        started.map_err(|e| DaemonError::Task(format!("store: memory not freed: {e}; the daemon ends")))?;
        let mut damaged = false;
        let next = loop {
            match tasks.wait(&mut signals, &house.store).await {
                Wake::End => break None,
                // What runs remembers more than is stored: it starts anew, as after a restart.
                Wake::Damaged => {
                    damaged = true;
                    break Some(Prepared::load(path)?);
                }
                Wake::Ended(problem) => {
                    tasks.drain().await;
                    return Err(DaemonError::Task(problem));
                }
                Wake::Reload => match reload(path, &mut house) {
                    Ok(next) => break Some(next),
                    Err(error) => {
                        let line =
                            format!("reload: the configuration was not taken: {error}; going on with the old one");
                        house.metrics.log_error(house.clock, line);
                    }
                },
            }
        };
        if next.is_none() {
            notify(sd_notify::NotifyState::Stopping);
        }
        house.metrics.expect_heartbeats([]);
        let drained = tasks.drain().await;
        if damaged && drained {
            let store = Arc::clone(&house.store);
            let lost_commits = tokio::task::spawn_blocking(move || store.recover()).await;
            if lost_commits.map_err(|e| DaemonError::Task(format!("store: not recovered: {e}; the daemon ends")))?? {
                Scheduler::record_store_loss(&*house.store, clock, &house.metrics)?;
            }
        }
        match (next, drained) {
            (None, _) => return Ok(()),
            (Some(next), true) => prepared = next,
            // What still counts would go on beside its successor, from the same mark: everything twice.
            (Some(_), false) => {
                let problem = "start anew: not done: what ran before did not end in time; the daemon ends".to_owned();
                return Err(DaemonError::Task(problem));
            }
        }
    }
}

fn reload(path: &Path, house: &mut House) -> Result<Prepared, DaemonError> {
    let next = Prepared::load(path)?;
    if next.config.store.path != house.folder {
        let problem = "[store] path: changes only with a restart".to_owned();
        return Err(DaemonError::Keys(vec![problem]));
    }
    // What can fail is tried while the old configuration still runs: a start that fails would end the daemon.
    doors(&next.config)?;
    house.sockets.add(&next.config.control.socket, &open_sockets(&next.config), &inputs::datagrams(&next.config))?;
    tracing::info!("reload: {}: taken", path.display());
    Ok(next)
}

/// All sockets but the control socket.
fn open_sockets(config: &Config) -> Vec<ListenAddress> {
    [config.socketmap.listen.as_slice(), &config.readsocket.listen, &config.status.listen].concat()
}

/// The resolver that the configuration names, and the HTTPS clients for policy hosts and for receivers of reports.
fn doors(config: &Config) -> Result<(Resolver, https::HttpsClient, https::HttpsClient), DaemonError> {
    let resolver = Resolver::new(config.resolver.address)
        .map_err(|e| DaemonError::Host(format!("resolver: cannot be used: {e}; not started")))?;
    let host = |e| DaemonError::Host(format!("https: cannot be used: {e}; not started"));
    let closed = &config.closed_network.exceptions();
    let client = https::HttpsClient::new(resolver.clone(), closed).map_err(host)?;
    let reports = https::HttpsClient::for_reports(resolver.clone(), closed, config.report.https_certificates);
    Ok((resolver, client, reports.map_err(host)?))
}

fn notify(state: sd_notify::NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!("systemd: not told: {error}; going on");
    }
}

struct Signals {
    end: [tokio::signal::unix::Signal; 2],
    reload: tokio::signal::unix::Signal,
}

impl Signals {
    fn listen() -> Result<Signals, DaemonError> {
        let on =
            |kind| signal(kind).map_err(|e| DaemonError::Host(format!("signals: cannot listen: {e}; not started")));
        Ok(Signals {
            end: [on(SignalKind::terminate())?, on(SignalKind::interrupt())?],
            reload: on(SignalKind::hangup())?,
        })
    }
}

enum Wake {
    End,
    Reload,
    Damaged,
    Ended(String),
}

/// Everything that runs, until it is drained.
struct Tasks {
    stop: watch::Sender<bool>,
    set: JoinSet<Result<(), String>>,
    names: HashMap<Id, String>,
}

impl Tasks {
    fn start(house: &mut House, prepared: Prepared) -> Result<Tasks, DaemonError> {
        let Prepared { config, setup, zones, found } = prepared;
        found.iter().for_each(|line| tracing::info!("{line}"));
        let store: Arc<dyn Store> = Arc::<EmbeddedStore>::clone(&house.store);
        let (metrics, clock) = (house.metrics.clone(), house.clock);
        // Everything that can fail comes first: no half start.
        let control = house.sockets.control(&config.control.socket)?;
        let (postfix_asks, exim_asks) = (&config.socketmap.listen, &config.readsocket.listen);
        let mut keep = open_sockets(&config);
        keep.push(ListenAddress::Unix(config.control.socket.clone()));
        keep.extend(inputs::datagrams(&config).into_iter().map(|(path, _)| ListenAddress::Unix(path)));
        let socketmaps = listen(&mut house.sockets, "socketmap", postfix_asks)?;
        let readsockets = listen(&mut house.sockets, "readsocket", exim_asks)?;
        let statuses = listen(&mut house.sockets, "status", &config.status.listen)?;
        let who = |subject: &'static str| move |(_, listener): &(ListenAddress, Listener)| listener.name(subject);
        let answering = socketmaps.iter().map(who("socketmap")).chain(readsockets.iter().map(who("readsocket")));
        let answering: Vec<_> = answering.map(|name| (name, watchdog::ANSWERING)).collect();
        house.sockets.close_others(&keep);
        for address in house.sockets.unused(&keep) {
            tracing::warn!("systemd: {address}: in no `listen`; nobody is answered there");
        }
        let (resolver, client, https) = doors(&config)?;
        let own = message_id_key::load_or_create(&*store)?;
        let history = Arc::new(History::open(&*store, clock, metrics.clone())?);
        let policies = Policies::open(
            &config,
            resolver.clone(),
            client,
            Arc::clone(&store),
            Arc::clone(&history),
            clock,
            metrics.clone(),
        )?;
        let rules = Arc::new(CountingRules::from_config(&config));
        let makes =
            inputs::Makes { store: Arc::clone(&store), own: own.clone(), rules, metrics: metrics.clone(), clock };
        let inputs = inputs::open(house, &config, zones, makes)?;
        let mut published = Vec::new();
        if let Some(sending) = &setup.sender {
            sending.signer.warnings.iter().for_each(|line| tracing::warn!("{line}"));
            published.clone_from(&sending.signer.public_keys);
        }
        let context = SchedulerContext {
            store: Arc::clone(&store),
            resolver: resolver.clone(),
            https,
            metrics: metrics.clone(),
            clock,
            message_id_key: own,
        };
        let scheduler = Scheduler::open(context, setup)?;
        say(&config);

        let (stop, shutdown) = watch::channel(false);
        let mut tasks = Tasks { stop, set: JoinSet::new(), names: HashMap::new() };
        let (feed, fed) = mpsc::channel(BLOCKS);
        let datagrams = inputs.start(&mut tasks, &feed, &shutdown);
        // With no input at all the river has nothing to do, and waits to be told so.
        let idle = feed.clone();
        tasks.spawn("idle".into(), until(shutdown.clone(), async move { idle.closed().await }));
        drop(feed);
        let (hints, failed) = mpsc::channel(HINTS);
        let (exim_events, events) = mpsc::channel(EXIM_EVENTS);
        let river = CountingTask {
            store: Arc::clone(&store),
            policies: Box::new(Arc::clone(&history)),
            hints,
            datagrams,
            own_queue_ids: scheduler.own_queue_ids(),
            metrics: metrics.clone(),
            clock,
        };
        let (runtime, stopping) = (Handle::current(), shutdown.clone());
        let id = tasks
            .set
            .spawn_blocking(move || river.run(&runtime, fed, events, stopping).map_err(|e| e.to_string()))
            .id();
        tasks.names.insert(id, "counting".into());
        tasks.spawn("history".into(), done(Arc::clone(&history).run(Arc::clone(&store), shutdown.clone())));
        let task = heal(Arc::clone(&policies), failed);
        tasks.spawn("hints".into(), until(shutdown.clone(), task));
        tasks.spawn("policies".into(), done(Arc::clone(&policies).run(shutdown.clone())));
        let task = check_keys(published, resolver.clone(), metrics.clone(), clock);
        tasks.spawn("DKIM keys".into(), until(shutdown.clone(), task));
        tasks.spawn("scheduler".into(), done(Arc::clone(&scheduler).run(shutdown.clone())));
        let postfix = &config.postfix;
        for (address, listener) in socketmaps {
            let task =
                server::serve(listener, Arc::clone(&policies), postfix.clone(), metrics.clone(), shutdown.clone());
            tasks.spawn(format!("socketmap {address}"), done(task));
        }
        for (address, listener) in readsockets {
            let task = readsocket::serve(
                listener,
                Arc::clone(&policies),
                exim_events.clone(),
                metrics.clone(),
                shutdown.clone(),
            );
            tasks.spawn(format!("readsocket {address}"), done(task));
        }
        let writing = ["counting", "scheduler"].map(|name| (name.to_owned(), watchdog::DISK));
        metrics.expect_heartbeats(writing.into_iter().chain(answering));
        let desk =
            Arc::new(Desk { config, found, running: true, store, resolver, policies, scheduler, metrics, clock });
        for (address, listener) in statuses {
            let task = prometheus::serve(listener, Arc::clone(&desk), shutdown.clone());
            tasks.spawn(format!("status {address}"), done(task));
        }
        let task = control::serve(control, desk, shutdown);
        tasks.spawn("control".into(), async move { task.await.map_err(|e| e.to_string()) });
        Ok(tasks)
    }

    fn spawn(&mut self, name: String, task: impl Future<Output = Result<(), String>> + Send + 'static) {
        let id = self.set.spawn(task).id();
        self.names.insert(id, name);
    }

    async fn wait(&mut self, signals: &mut Signals, store: &EmbeddedStore) -> Wake {
        let [terminate, interrupt] = &mut signals.end;
        tokio::select! {
            _ = terminate.recv() => Wake::End,
            _ = interrupt.recv() => Wake::End,
            _ = signals.reload.recv() => Wake::Reload,
            () = store.wait_for_damage() => Wake::Damaged,
            Some(ended) = self.set.join_next_with_id() => {
                let (name, why) = self.ended(ended);
                Wake::Ended(format!("{name}: ended by itself: {why}; the daemon ends"))
            }
        }
    }

    fn ended(&mut self, ended: Result<(Id, Result<(), String>), JoinError>) -> (String, String) {
        let (id, why) = match ended {
            Ok((id, Ok(()))) => (id, "no reason given".to_owned()),
            Ok((id, Err(why))) => (id, why),
            Err(error) => (error.id(), error.to_string()),
        };
        (self.names.remove(&id).unwrap_or_default(), why)
    }

    /// Tells everybody to end, and waits until they have, or until the deadline; whether they have.
    async fn drain(mut self) -> bool {
        let _ = self.stop.send(true);
        let all = async {
            while let Some(ended) = self.set.join_next_with_id().await {
                let well = matches!(ended, Ok((_, Ok(()))));
                let (name, why) = self.ended(ended);
                if !well {
                    tracing::warn!("{name}: did not end well: {why}; going on with the others");
                }
            }
        };
        if tokio::time::timeout(DEADLINE, all).await.is_err() {
            let names: Vec<&str> = self.names.values().map(String::as_str).collect();
            tracing::warn!("{}: still busy after {} s; ended", names.join(", "), DEADLINE.as_secs());
        }
        self.names.is_empty()
    }
}

/// Looks for newer policies of domains to which sessions failed.
async fn heal(policies: Arc<Policies>, mut failed: mpsc::Receiver<Arc<str>>) {
    while let Some(domain) = failed.recv().await {
        policies.hint(&domain);
    }
    // The counting has ended, and says why itself.
    std::future::pending().await
}

/// Says which of the keys that sign reports is not the one that DNS has; then waits for the end.
async fn check_keys(published: Vec<DkimPublicKey>, resolver: Resolver, metrics: Metrics, clock: Clock) {
    for key in published {
        if let Err(line) = key.check_record(&resolver).await {
            metrics.log_error(clock, line);
        }
    }
    std::future::pending().await
}

async fn done(task: impl Future<Output = ()>) -> Result<(), String> {
    task.await;
    Ok(())
}

async fn until(mut shutdown: watch::Receiver<bool>, task: impl Future<Output = ()>) -> Result<(), String> {
    tokio::select! {
        () = task => Ok(()),
        () = wait_for_shutdown(&mut shutdown) => Ok(()),
    }
}

/// Binds what is not bound yet. `subject` is who listens.
fn listen(
    sockets: &mut Sockets,
    subject: &str,
    at: &[ListenAddress],
) -> Result<Vec<(ListenAddress, Listener)>, DaemonError> {
    let failed = |e: io::Error| DaemonError::Host(format!("{subject}: cannot listen: {e}; not started"));
    at.iter()
        .map(|address| Ok((address.clone(), into_listener(sockets.open_to_all(address)?).map_err(failed)?)))
        .collect()
}

fn into_listener(bound: Bound) -> io::Result<Listener> {
    Ok(match bound {
        Bound::Unix(listener) => Listener::Unix(tokio::net::UnixListener::from_std(listener)?),
        Bound::Inet(listener) => Listener::Tcp(tokio::net::TcpListener::from_std(listener)?),
        Bound::Datagrams(_) => return Err(io::Error::other("it takes datagrams, not connections")),
    })
}

/// What was understood, one line each.
fn say(config: &Config) {
    for address in &config.socketmap.listen {
        tracing::info!("socketmap: listening on {address}");
    }
    for address in &config.readsocket.listen {
        tracing::info!("readsocket: listening on {address}");
    }
    for address in &config.status.listen {
        tracing::info!("status: metrics at {address}");
    }
    for input in &config.inputs {
        if let Some(source) = input.kind() {
            tracing::info!("input: following {source}");
        }
    }
    if config.inputs.is_empty() {
        tracing::warn!("input: none configured: no [[input]]; nothing is counted or reported");
    }
    let missing = missing_identity(&config.report);
    if !missing.is_empty() {
        let missing = missing.join(", ");
        tracing::warn!("report: no report is sent: [report] lacks {missing}; the days wait within retention");
    }
    if config.report.dkim == DkimSigning::Mta {
        tracing::info!(
            "report: dkim = \"mta\": reports are handed over unsigned; the MTA must sign them, TLS-Report-* fields included, \
             or receivers ignore them"
        );
    }
}
