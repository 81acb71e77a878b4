//! Runs the daemon: loads the configuration, opens everything, binds the sockets, starts the tasks, and drains them.
//!
//! Takes: the path of the configuration. Gives: a running host, until SIGTERM or SIGINT, or until a task ends by itself,
//! which is an error. SIGHUP rereads the configuration: what runs is drained and started anew on the same store and the
//! same sockets, so that connections wait and none is refused; a configuration that does not pass changes nothing.
//! When it fails at start: a [`DaemonError`], before anything was answered, counted or sent.

pub(crate) mod control;
mod inputs;
mod listeners;
mod parts;
pub(crate) mod prometheus;
mod replay;
mod resolver_watch;
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
use listeners::Sockets;
use parking_lot::Mutex;
use parts::{Listening, ListeningPart, PartOpener};

use crate::answering::listener::Listener;
use crate::answering::policy::history::PolicyHistory;
use crate::answering::policy::policies::Policies;
use crate::answering::readsocket;
use crate::answering::socketmap::server;
use crate::base::clock::Clock;
use crate::base::parts::{COUNTING, HTTPS, Parts, REPORTS, STORE};
use crate::base::shutdown::wait_for_shutdown;
use crate::config::detect;
use crate::config::identity::missing_identity;
use crate::config::{Config, ConfigError, DkimSigning, ListenAddress, ReportSection, time_zone};
use crate::counting::pipeline::CountingTask;
use crate::counting::rules::CountingRules;
use crate::metrics::Metrics;
use crate::net::dns::Resolver;
use crate::net::https;
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
    PreparedConfig::load(path)?.check_named().map(|prepared| (prepared.config, prepared.detected))
}

/// Checks that the daemon would start with a configuration that is complete already.
pub(crate) fn check_start(config: &Config) -> Result<(), DaemonError> {
    PreparedConfig::from_config(config.clone(), Vec::new())?.check_named().map(drop)
}

/// A configuration, checked together with everything that it names.
struct PreparedConfig {
    config: Config,
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

    fn from_config(config: Config, detected: Vec<String>) -> Result<PreparedConfig, DaemonError> {
        let zone = |name: &Option<String>| name.as_deref().map_or(Ok(TimeZone::system()), time_zone);
        let zones = config.inputs.iter().map(|input| zone(&input.timezone)).collect::<Result<_, _>>();
        let zones = zones.map_err(|problem| DaemonError::Named(vec![problem]))?;
        Ok(PreparedConfig { config, zones, detected })
    }

    /// Checks what the configuration names: a daemon would start without it, with parts that are off.
    fn check_named(self) -> Result<PreparedConfig, DaemonError> {
        SchedulerSettings::load(&self.config.report).map_err(DaemonError::Named)?;
        inputs::check_inputs(&self.config)?;
        if let Some(root) = &self.config.closed_network.extra_root {
            let unread = |e| format!("{}: the extra root cannot be read: {e}", root.display());
            std::fs::read(root).map_err(|e| DaemonError::Named(vec![unread(e)]))?;
        }
        Ok(self)
    }
}

/// What is kept over a reload.
struct PersistentState {
    store: Arc<EmbeddedStore>,
    store_folder: PathBuf,
    sockets: Arc<Mutex<Sockets>>,
    parts: Parts,
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
        sockets: Arc::new(Mutex::new(Sockets::from_systemd())),
        parts: Parts::default(),
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
    // Answering must not end with the old configuration; anything else that cannot be opened is off.
    open_resolver(&next.config)?;
    state.sockets.lock().check_any(&answering_sockets(&next.config))?;
    tracing::info!("reload: {}: taken", path.display());
    Ok(next)
}

/// The addresses of all sockets but the control socket.
fn listen_addresses(config: &Config) -> Vec<ListenAddress> {
    [config.socketmap.listen.as_slice(), &config.readsocket.listen, &config.status.listen].concat()
}

/// The sockets that an MTA asks on.
fn answering_sockets(config: &Config) -> Vec<&ListenAddress> {
    config.socketmap.listen.iter().chain(&config.readsocket.listen).collect()
}

/// The resolver that the configuration names. Without one nothing can be answered.
fn open_resolver(config: &Config) -> Result<Resolver, DaemonError> {
    let failed = |e| DaemonError::System(format!("resolver: cannot be used: {e}; nothing could be answered"));
    Resolver::new(config.resolver.address).map_err(failed)
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
        let PreparedConfig { config, zones, detected: found } = prepared;
        found.iter().for_each(|line| tracing::info!("{line}"));
        let store: Arc<dyn Store> = Arc::<EmbeddedStore>::clone(&state.store);
        let (metrics, clock) = (state.metrics.clone(), state.clock);
        // Everything that can fail comes first: no half start.
        let opener = PartOpener::new(state.parts.clone(), clock, &config);
        let sockets = Arc::clone(&state.sockets);
        sockets.lock().check_any(&answering_sockets(&config))?;
        let resolver = open_resolver(&config)?;
        let (client, https, settings) = (
            https::HttpsClient::unloaded(resolver.clone(), &config.closed_network.exceptions()),
            https::HttpsClient::unloaded_for_reports(
                resolver.clone(),
                &config.closed_network.exceptions(),
                config.report.https_certificates,
            ),
            SchedulerSettings::load(&config.report),
        );
        state.parts.set_parts(part_names(&config));
        let control = ListeningPart::control(&config.control.socket, &sockets, &opener);
        let mut in_use = listen_addresses(&config);
        in_use.push(ListenAddress::Unix(config.control.socket.clone()));
        in_use.extend(inputs::datagram_sockets(&config).into_iter().map(|(path, _)| ListenAddress::Unix(path)));
        let socketmaps = ListeningPart::open_each("socketmap", &config.socketmap.listen, &sockets, &opener);
        let readsockets = ListeningPart::open_each("readsocket", &config.readsocket.listen, &sockets, &opener);
        let statuses = ListeningPart::open_each("metrics", &config.status.listen, &sockets, &opener);
        let answering = socketmaps.iter().chain(&readsockets).filter(|part| part.is_open());
        let answering: Vec<_> = answering.map(|part| (part.name.clone(), watchdog::LISTENER_LIMIT)).collect();
        sockets.lock().close_except(&in_use);
        for address in sockets.lock().unused_systemd_sockets(&in_use) {
            tracing::warn!("systemd: {address}: in no `listen`; nobody is answered there");
        }
        let load = {
            let (client, https) = (client.clone(), https.clone());
            move || client.load().and_then(|()| https.load())
        };
        let https_is_off = opener.try_open(HTTPS, load.clone()).is_none();
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
            opener: opener.clone(),
            sockets: Arc::clone(&sockets),
            store: Arc::clone(&store),
            message_id_key: own.clone(),
            rules,
            metrics: metrics.clone(),
            clock,
            left_out: Arc::default(),
        };
        let inputs = inputs::open_inputs(state, &config, zones, counter_factory)?;
        let context = SchedulerContext {
            store: Arc::clone(&store),
            resolver: resolver.clone(),
            https,
            metrics: metrics.clone(),
            clock,
            message_id_key: own,
        };
        let settings = settings.map_err(|faults| faults.join("; "));
        let settings = match settings {
            // Nothing is configured that could be off.
            Ok(settings) if settings.sender.is_none() => Some(settings),
            settings => opener.try_open(REPORTS, || settings),
        };
        let reports_are_off = settings.is_none();
        let settings = settings.unwrap_or_else(|| SchedulerSettings::without_sender(&config.report));
        let scheduler = Scheduler::open(context, settings)?;
        log_configuration(&config, &state.parts);

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
        if https_is_off {
            let (opener, mut shutdown) = (opener.clone(), shutdown.clone());
            tasks.spawn(HTTPS.into(), async move {
                opener.open_later(HTTPS, load, &mut shutdown).await;
                wait_for_shutdown(&mut shutdown).await;
                Ok(())
            });
        }
        let retry = reports_are_off.then(|| (opener.clone(), config.report.clone()));
        let task = start_reports(retry, Arc::clone(&scheduler), shutdown.clone());
        tasks.spawn(REPORTS.into(), run_until_shutdown(shutdown.clone(), task));
        tasks.spawn("scheduler".into(), run_task(Arc::clone(&scheduler).run(shutdown.clone())));
        let postfix = &config.postfix;
        let listening =
            Listening { sockets, opener: opener.clone(), metrics: metrics.clone(), shutdown: shutdown.clone() };
        for part in socketmaps {
            let (policies, postfix) = (Arc::clone(&policies), postfix.clone());
            let (metrics, shutdown) = (metrics.clone(), shutdown.clone());
            let serve = |listener| server::serve(listener, policies, postfix, metrics, shutdown);
            tasks.spawn(part.name.clone(), listening.clone().run(part, Some(watchdog::LISTENER_LIMIT), serve));
        }
        for part in readsockets {
            let (policies, events) = (Arc::clone(&policies), exim_events.clone());
            let (metrics, shutdown) = (metrics.clone(), shutdown.clone());
            let serve = |listener| readsocket::serve(listener, policies, events, metrics, shutdown);
            tasks.spawn(part.name.clone(), listening.clone().run(part, Some(watchdog::LISTENER_LIMIT), serve));
        }
        let writing = ["counting", "scheduler"].map(|name| (name.to_owned(), watchdog::STORE_LIMIT));
        metrics.expect_heartbeats(writing.into_iter().chain(answering));
        let watch = resolver_watch::watch_resolver(resolver.clone(), config.clone(), metrics.clone(), clock);
        tasks.spawn("resolver".into(), run_until_shutdown(shutdown.clone(), watch));
        let services = Arc::new(Services {
            config,
            detected: found,
            running: true,
            parts: state.parts.clone(),
            store,
            resolver,
            policies,
            scheduler,
            metrics,
            clock,
        });
        for part in statuses {
            let (services, shutdown) = (Arc::clone(&services), shutdown.clone());
            let serve = |listener| prometheus::serve(listener, services, shutdown);
            tasks.spawn(part.name.clone(), listening.clone().run(part, None, serve));
        }
        let serve = async |listener| match listener {
            Listener::Unix(listener) => control::serve(listener, services, shutdown).await,
            // The control socket has a path.
            Listener::Tcp(_) => {}
        };
        tasks.spawn(control.name.clone(), listening.run(control, None, serve));
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

/// Waits for the keys that sign reports where they cannot be loaded yet, and logs which of them differs from its DNS
/// record; then waits for the end.
async fn start_reports(
    retry: Option<(PartOpener, ReportSection)>,
    scheduler: Arc<Scheduler>,
    mut shutdown: watch::Receiver<bool>,
) {
    if let Some((opener, section)) = retry {
        let load = move || SchedulerSettings::load(&section).map_err(|faults| faults.join("; "));
        let Some(settings) = opener.open_later(REPORTS, load, &mut shutdown).await else { return };
        scheduler.configure(settings);
    }
    scheduler.check_dkim_records().await;
    std::future::pending().await
}

/// The parts that a configuration has.
fn part_names(config: &Config) -> Vec<String> {
    let mut names = vec![STORE.to_owned(), HTTPS.to_owned()];
    if !config.inputs.is_empty() {
        names.push(COUNTING.to_owned());
    }
    if missing_identity(&config.report).is_empty() {
        names.push(REPORTS.to_owned());
    }
    names.push(format!("control unix:{}", config.control.socket.display()));
    let listen = [
        ("socketmap", &config.socketmap.listen),
        ("readsocket", &config.readsocket.listen),
        ("metrics", &config.status.listen),
    ];
    for (subject, addresses) in listen {
        names.extend(addresses.iter().map(|address| format!("{subject} {address}")));
    }
    let inputs = config.inputs.iter().filter_map(|input| input.kind());
    names.extend(inputs.map(|input| inputs::part_name(&input.to_string())));
    names
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

/// Logs the configuration, one line for each part.
fn log_configuration(config: &Config, parts: &Parts) {
    let is_on = |part: String| parts.off_reason(&part).is_none();
    for address in config.socketmap.listen.iter().filter(|address| is_on(format!("socketmap {address}"))) {
        tracing::info!("socketmap: listening on {address}");
    }
    for address in config.readsocket.listen.iter().filter(|address| is_on(format!("readsocket {address}"))) {
        tracing::info!("readsocket: listening on {address}");
    }
    for address in config.status.listen.iter().filter(|address| is_on(format!("metrics {address}"))) {
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
