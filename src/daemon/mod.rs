//! Runs the daemon: loads the configuration, opens everything, binds the sockets, starts the tasks, and drains them.
//!
//! Takes: the path of the configuration. Gives: a running host, until SIGTERM or SIGINT, or until a task ends by itself,
//! which is an error. SIGHUP rereads the configuration: what runs is drained and started anew on the same store and the
//! same sockets, so that connections wait and none is refused; a configuration that does not pass changes nothing.
//! When it fails at start: a [`DaemonError`], before anything was answered, counted or sent.

pub(crate) mod control;
mod inputs;
mod listeners;
pub(crate) mod prometheus;
mod replay;
pub(crate) mod services;
pub(crate) mod watchdog;

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

use control::Services;
pub(crate) use listeners::SocketError;
use listeners::{BoundSocket, Sockets};

use crate::answering::listener::Listener;
use crate::answering::policy::history::PolicyHistory;
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

/// How long the tasks have to finish what they are doing.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(15);

/// Blocks that wait between the inputs and the counting: reading is never far ahead of counting.
const MAX_QUEUED_BLOCKS: usize = 4;

/// Failed domains that wait between the counting and the policies. More than that at once means that this host itself
/// is failing.
const MAX_QUEUED_HINTS: usize = 1024;

/// Failed sessions that Exim reported and that wait for the counting: more at once than Exim has processes.
const MAX_QUEUED_EXIM_EVENTS: usize = 1024;

/// Why the daemon did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DaemonError {
    /// The file.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Something that the file names: an address, a key, a zone, a root certificate.
    #[error("{}", .0.join("; "))]
    Named(Vec<String>),
    /// A log that cannot be read.
    #[error("{0}")]
    Input(String),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Something that every host should have: threads, signals, the platform's root certificates.
    #[error("{0}")]
    System(String),
    /// A task that ended by itself.
    #[error("{0}")]
    Task(String),
}

/// Runs until it is told to end.
pub(crate) fn run(path: &Path) -> Result<(), DaemonError> {
    let prepared = PreparedConfig::load(path)?;
    raise_descriptor_limit();
    let host = |e: io::Error| DaemonError::System(format!("runtime: cannot start: {e}; not started"));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(host)?;
    let ended = runtime.block_on(serve(path, prepared));
    // What still runs has had its time.
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended
}

/// Allows this process as many descriptors as the host lets it have: each client takes one, and the common limit of
/// 1,024 is there for programs that use select(2).
fn raise_descriptor_limit() {
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(limit) => tracing::debug!("descriptors: {limit}"),
        Err(error) => tracing::warn!("descriptors: the limit stays as it is: {error}; clients beyond it wait"),
    }
}

/// The configuration, if the daemon would start with it: everything it names exists and this user can read it. With it,
/// one line for each setting that was detected.
pub(crate) fn check_config(path: &Path) -> Result<(Config, Vec<String>), DaemonError> {
    PreparedConfig::load(path).map(|prepared| (prepared.config, prepared.detected))
}

/// Checks that the daemon would start with a configuration that is complete already.
pub(crate) fn check_start(config: &Config) -> Result<(), DaemonError> {
    PreparedConfig::from_config(config.clone(), Vec::new()).map(drop)
}

/// A configuration, checked together with everything that it names.
struct PreparedConfig {
    config: Config,
    setup: SchedulerSettings,
    zones: Vec<TimeZone>,
    /// What was detected on the host, one line each.
    detected: Vec<String>,
}

impl PreparedConfig {
    fn load(path: &Path) -> Result<PreparedConfig, DaemonError> {
        let mut found = Vec::new();
        let config = Config::load_with(path, |config| found = detect::complete(config))?;
        PreparedConfig::from_config(config, found)
    }

    fn from_config(config: Config, found: Vec<String>) -> Result<PreparedConfig, DaemonError> {
        let setup = SchedulerSettings::load(&config.report).map_err(DaemonError::Named)?;
        let zone = |name: &Option<String>| name.as_deref().map_or(Ok(TimeZone::system()), time_zone);
        let zones = config.inputs.iter().map(|input| zone(&input.timezone)).collect::<Result<_, _>>();
        let zones = zones.map_err(|problem| DaemonError::Named(vec![problem]))?;
        inputs::check_inputs(&config)?;
        if let Some(root) = &config.closed_network.extra_root {
            let unread = |e| format!("{}: the extra root cannot be read: {e}; not started", root.display());
            std::fs::read(root).map_err(|e| DaemonError::Named(vec![unread(e)]))?;
        }
        Ok(PreparedConfig { config, setup, zones, detected: found })
    }
}

/// What is kept over a reload.
struct PersistentState {
    store: Arc<EmbeddedStore>,
    store_folder: PathBuf,
    sockets: Sockets,
    /// Standard input, once it has been read.
    stdin: Option<inputs::SharedStdin>,
    clock: Clock,
    metrics: Metrics,
}

async fn serve(path: &Path, mut prepared: PreparedConfig) -> Result<(), DaemonError> {
    let clock = prepared.config.closed_network.clock.map_or_else(Clock::default, |t| Clock::starting_at(t.as_second()));
    let folder = prepared.config.store.path.clone();
    let opened = EmbeddedStore::open(&folder, clock)?;
    let metrics = Metrics::default();
    if opened.lost_commits() {
        Scheduler::record_store_loss(&opened.store, clock, &metrics)?;
    }
    let mut state = PersistentState {
        store: Arc::new(opened.store),
        store_folder: folder,
        sockets: Sockets::from_systemd(),
        stdin: None,
        clock,
        metrics,
    };
    let mut signals = Signals::listen()?;
    // Ends with this function.
    let mut watchdog_task = JoinSet::new();
    watchdog_task.spawn(watchdog::feed(state.metrics.clone()));
    loop {
        let mut tasks = Tasks::start(&mut state, prepared)?;
        notify_systemd(sd_notify::NotifyState::Ready);
        let store = Arc::clone(&state.store);
        let started = tokio::task::spawn_blocking(move || store.drop_preloaded()).await;
        started.map_err(|e| DaemonError::Task(format!("store: memory not freed: {e}; the daemon ends")))?;
        let mut damaged = false;
        let next = loop {
            match tasks.wait(&mut signals, &state.store).await {
                WakeReason::Shutdown => break None,
                // What runs remembers more than is stored: it starts anew, as after a restart.
                WakeReason::StoreDamaged => {
                    damaged = true;
                    break Some(PreparedConfig::load(path)?);
                }
                WakeReason::TaskEnded(problem) => {
                    tasks.drain().await;
                    return Err(DaemonError::Task(problem));
                }
                WakeReason::Reload => match reload(path, &mut state) {
                    Ok(next) => break Some(next),
                    Err(error) => {
                        let line =
                            format!("reload: the configuration was not taken: {error}; going on with the old one");
                        state.metrics.log_error(state.clock, line);
                    }
                },
            }
        };
        if next.is_none() {
            notify_systemd(sd_notify::NotifyState::Stopping);
        }
        state.metrics.expect_heartbeats([]);
        let drained = tasks.drain().await;
        if damaged && drained {
            let store = Arc::clone(&state.store);
            let lost_commits = tokio::task::spawn_blocking(move || store.recover()).await;
            if lost_commits.map_err(|e| DaemonError::Task(format!("store: not recovered: {e}; the daemon ends")))?? {
                Scheduler::record_store_loss(&*state.store, clock, &state.metrics)?;
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

fn reload(path: &Path, state: &mut PersistentState) -> Result<PreparedConfig, DaemonError> {
    let next = PreparedConfig::load(path)?;
    if next.config.store.path != state.store_folder {
        let problem = "[store] path: changes only with a restart".to_owned();
        return Err(DaemonError::Named(vec![problem]));
    }
    // What can fail is tried while the old configuration still runs: a start that fails would end the daemon.
    open_clients(&next.config)?;
    state.sockets.bind_all(
        &next.config.control.socket,
        &listen_addresses(&next.config),
        &inputs::datagram_sockets(&next.config),
    )?;
    tracing::info!("reload: {}: taken", path.display());
    Ok(next)
}

/// The addresses of all sockets but the control socket.
fn listen_addresses(config: &Config) -> Vec<ListenAddress> {
    [config.socketmap.listen.as_slice(), &config.readsocket.listen, &config.status.listen].concat()
}

/// The resolver that the configuration names, and the HTTPS clients for policy hosts and for receivers of reports.
fn open_clients(config: &Config) -> Result<(Resolver, https::HttpsClient, https::HttpsClient), DaemonError> {
    let resolver = Resolver::new(config.resolver.address)
        .map_err(|e| DaemonError::System(format!("resolver: cannot be used: {e}; not started")))?;
    let host = |e| DaemonError::System(format!("https: cannot be used: {e}; not started"));
    let closed = &config.closed_network.exceptions();
    let client = https::HttpsClient::new(resolver.clone(), closed).map_err(host)?;
    let reports = https::HttpsClient::for_reports(resolver.clone(), closed, config.report.https_certificates);
    Ok((resolver, client, reports.map_err(host)?))
}

fn notify_systemd(state: sd_notify::NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!("systemd: not told: {error}; going on");
    }
}

struct Signals {
    shutdown: [tokio::signal::unix::Signal; 2],
    reload: tokio::signal::unix::Signal,
}

impl Signals {
    fn listen() -> Result<Signals, DaemonError> {
        let on =
            |kind| signal(kind).map_err(|e| DaemonError::System(format!("signals: cannot listen: {e}; not started")));
        Ok(Signals {
            shutdown: [on(SignalKind::terminate())?, on(SignalKind::interrupt())?],
            reload: on(SignalKind::hangup())?,
        })
    }
}

enum WakeReason {
    Shutdown,
    Reload,
    StoreDamaged,
    TaskEnded(String),
}

/// Everything that runs, until it is drained.
struct Tasks {
    stop: watch::Sender<bool>,
    set: JoinSet<Result<(), String>>,
    names: HashMap<Id, String>,
}

impl Tasks {
    fn start(state: &mut PersistentState, prepared: PreparedConfig) -> Result<Tasks, DaemonError> {
        let PreparedConfig { config, setup, zones, detected: found } = prepared;
        found.iter().for_each(|line| tracing::info!("{line}"));
        let store: Arc<dyn Store> = Arc::<EmbeddedStore>::clone(&state.store);
        let (metrics, clock) = (state.metrics.clone(), state.clock);
        // Everything that can fail comes first: no half start.
        let control = state.sockets.control_socket(&config.control.socket)?;
        let (postfix_asks, exim_asks) = (&config.socketmap.listen, &config.readsocket.listen);
        let mut in_use = listen_addresses(&config);
        in_use.push(ListenAddress::Unix(config.control.socket.clone()));
        in_use.extend(inputs::datagram_sockets(&config).into_iter().map(|(path, _)| ListenAddress::Unix(path)));
        let socketmaps = bind_listeners(&mut state.sockets, "socketmap", postfix_asks)?;
        let readsockets = bind_listeners(&mut state.sockets, "readsocket", exim_asks)?;
        let statuses = bind_listeners(&mut state.sockets, "status", &config.status.listen)?;
        let task_name = |subject: &'static str| move |(_, listener): &(ListenAddress, Listener)| listener.name(subject);
        let answering =
            socketmaps.iter().map(task_name("socketmap")).chain(readsockets.iter().map(task_name("readsocket")));
        let answering: Vec<_> = answering.map(|name| (name, watchdog::LISTENER_LIMIT)).collect();
        state.sockets.close_except(&in_use);
        for address in state.sockets.unused_systemd_sockets(&in_use) {
            tracing::warn!("systemd: {address}: in no `listen`; nobody is answered there");
        }
        let (resolver, client, https) = open_clients(&config)?;
        let own = message_id_key::load_or_create(&*store)?;
        let history = Arc::new(PolicyHistory::open(&*store, clock, metrics.clone())?);
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
        let counter_factory = inputs::CounterFactory {
            store: Arc::clone(&store),
            message_id_key: own.clone(),
            rules,
            metrics: metrics.clone(),
            clock,
        };
        let inputs = inputs::open_inputs(state, &config, zones, counter_factory)?;
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
        log_configuration(&config);

        let (stop, shutdown) = watch::channel(false);
        let mut tasks = Tasks { stop, set: JoinSet::new(), names: HashMap::new() };
        let (feed, fed) = mpsc::channel(MAX_QUEUED_BLOCKS);
        let datagrams = inputs.start(&mut tasks, &feed, &shutdown);
        // With no input at all the river has nothing to do, and waits to be told so.
        let idle = feed.clone();
        tasks.spawn("idle".into(), run_until_shutdown(shutdown.clone(), async move { idle.closed().await }));
        drop(feed);
        let (hints, failed) = mpsc::channel(MAX_QUEUED_HINTS);
        let (exim_events, events) = mpsc::channel(MAX_QUEUED_EXIM_EVENTS);
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
        tasks.spawn("history".into(), run_task(Arc::clone(&history).run(Arc::clone(&store), shutdown.clone())));
        let task = recheck_failed_domains(Arc::clone(&policies), failed);
        tasks.spawn("hints".into(), run_until_shutdown(shutdown.clone(), task));
        tasks.spawn("policies".into(), run_task(Arc::clone(&policies).run(shutdown.clone())));
        let task = check_dkim_records(published, resolver.clone(), metrics.clone(), clock);
        tasks.spawn("DKIM keys".into(), run_until_shutdown(shutdown.clone(), task));
        tasks.spawn("scheduler".into(), run_task(Arc::clone(&scheduler).run(shutdown.clone())));
        let postfix = &config.postfix;
        for (address, listener) in socketmaps {
            let task =
                server::serve(listener, Arc::clone(&policies), postfix.clone(), metrics.clone(), shutdown.clone());
            tasks.spawn(format!("socketmap {address}"), run_task(task));
        }
        for (address, listener) in readsockets {
            let task = readsocket::serve(
                listener,
                Arc::clone(&policies),
                exim_events.clone(),
                metrics.clone(),
                shutdown.clone(),
            );
            tasks.spawn(format!("readsocket {address}"), run_task(task));
        }
        let writing = ["counting", "scheduler"].map(|name| (name.to_owned(), watchdog::STORE_LIMIT));
        metrics.expect_heartbeats(writing.into_iter().chain(answering));
        let services = Arc::new(Services {
            config,
            detected: found,
            running: true,
            store,
            resolver,
            policies,
            scheduler,
            metrics,
            clock,
        });
        for (address, listener) in statuses {
            let task = prometheus::serve(listener, Arc::clone(&services), shutdown.clone());
            tasks.spawn(format!("status {address}"), run_task(task));
        }
        let task = control::serve(control, services, shutdown);
        tasks.spawn("control".into(), async move { task.await.map_err(|e| e.to_string()) });
        Ok(tasks)
    }

    fn spawn(&mut self, name: String, task: impl Future<Output = Result<(), String>> + Send + 'static) {
        let id = self.set.spawn(task).id();
        self.names.insert(id, name);
    }

    async fn wait(&mut self, signals: &mut Signals, store: &EmbeddedStore) -> WakeReason {
        let [terminate, interrupt] = &mut signals.shutdown;
        tokio::select! {
            _ = terminate.recv() => WakeReason::Shutdown,
            _ = interrupt.recv() => WakeReason::Shutdown,
            _ = signals.reload.recv() => WakeReason::Reload,
            () = store.wait_for_damage() => WakeReason::StoreDamaged,
            Some(ended) = self.set.join_next_with_id() => {
                let (name, why) = self.describe_end(ended);
                WakeReason::TaskEnded(format!("{name}: ended by itself: {why}; the daemon ends"))
            }
        }
    }

    fn describe_end(&mut self, ended: Result<(Id, Result<(), String>), JoinError>) -> (String, String) {
        let (id, why) = match ended {
            Ok((id, Ok(()))) => (id, "no reason given".to_owned()),
            Ok((id, Err(why))) => (id, why),
            Err(error) => (error.id(), error.to_string()),
        };
        (self.names.remove(&id).unwrap_or_default(), why)
    }

    /// Tells all tasks to stop, and waits until they have, or until the timeout; returns whether all have.
    async fn drain(mut self) -> bool {
        let _ = self.stop.send(true);
        let all = async {
            while let Some(ended) = self.set.join_next_with_id().await {
                let well = matches!(ended, Ok((_, Ok(()))));
                let (name, why) = self.describe_end(ended);
                if !well {
                    tracing::warn!("{name}: did not end well: {why}; going on with the others");
                }
            }
        };
        if tokio::time::timeout(DRAIN_TIMEOUT, all).await.is_err() {
            let names: Vec<&str> = self.names.values().map(String::as_str).collect();
            tracing::warn!("{}: still busy after {} s; ended", names.join(", "), DRAIN_TIMEOUT.as_secs());
        }
        self.names.is_empty()
    }
}

/// Looks for newer policies of domains to which sessions failed.
async fn recheck_failed_domains(policies: Arc<Policies>, mut failed: mpsc::Receiver<Arc<str>>) {
    while let Some(domain) = failed.recv().await {
        policies.recheck_after_failure(&domain);
    }
    // The counting has ended, and says why itself.
    std::future::pending().await
}

/// Logs which of the keys that sign reports differs from its DNS record; then waits for the end.
async fn check_dkim_records(published: Vec<DkimPublicKey>, resolver: Resolver, metrics: Metrics, clock: Clock) {
    for key in published {
        if let Err(line) = key.check_record(&resolver).await {
            metrics.log_error(clock, line);
        }
    }
    std::future::pending().await
}

async fn run_task(task: impl Future<Output = ()>) -> Result<(), String> {
    task.await;
    Ok(())
}

async fn run_until_shutdown(mut shutdown: watch::Receiver<bool>, task: impl Future<Output = ()>) -> Result<(), String> {
    tokio::select! {
        () = task => Ok(()),
        () = wait_for_shutdown(&mut shutdown) => Ok(()),
    }
}

/// Binds the addresses that are not bound yet. `subject` is the name of the service.
fn bind_listeners(
    sockets: &mut Sockets,
    subject: &str,
    at: &[ListenAddress],
) -> Result<Vec<(ListenAddress, Listener)>, DaemonError> {
    let failed = |e: io::Error| DaemonError::System(format!("{subject}: cannot listen: {e}; not started"));
    at.iter()
        .map(|address| Ok((address.clone(), into_listener(sockets.mta_socket(address)?).map_err(failed)?)))
        .collect()
}

fn into_listener(bound: BoundSocket) -> io::Result<Listener> {
    Ok(match bound {
        BoundSocket::Unix(listener) => Listener::Unix(tokio::net::UnixListener::from_std(listener)?),
        BoundSocket::Inet(listener) => Listener::Tcp(tokio::net::TcpListener::from_std(listener)?),
        BoundSocket::Datagrams(_) => return Err(io::Error::other("it takes datagrams, not connections")),
    })
}

/// Logs the configuration, one line for each part.
fn log_configuration(config: &Config) {
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
