//! Runs the daemon: loads the configuration, opens everything, binds the sockets, starts the tasks, and drains them.
//!
//! Takes: the path of the configuration. Gives: a running host, until SIGTERM or SIGINT, or until a task ends by itself,
//! which is an error. SIGHUP, or a request on the control socket, rereads the configuration: who answers goes on until its
//! successor does, with the same sockets and all that is known; counting and reports are drained and started anew beside
//! that. A configuration that does not pass changes nothing.
//! When it fails at start: a [`DaemonError`], before anything was answered, counted or sent. Only answering is vital:
//! what else cannot be opened is off, and tried again (`parts`, `store`).

mod answering;
pub(crate) mod control;
pub(crate) mod control_client;
mod inputs;
mod listeners;
mod parts;
mod pipelines;
pub(crate) mod prometheus;
mod replay;
mod resolver_watch;
pub(crate) mod services;
mod store;
mod tasks;
pub(crate) mod watchdog;

use std::collections::BTreeMap;
use std::env::temp_dir;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use parking_lot::Mutex;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use answering::Answering;
use control::{ReloadRequest, ReloadVerdict, Reloads, Services};
pub(crate) use listeners::SocketError;
use listeners::Sockets;
use parts::PartOpener;
use pipelines::StatusSockets;
use store::{DaemonStore, StoreReturn};
use tasks::TaskGroup;

use crate::answering::connections::ClientConnections;
use crate::base::clock::Clock;
use crate::base::parts::{COUNTING, HTTPS, PartState, Parts, REPORTS, STORE};
use crate::config::detect;
use crate::config::identity::missing_identity;
use crate::config::{Config, ConfigError, DkimSigning, time_zone, warnings};
use crate::metrics::Metrics;
use crate::reporting::schedule::{Scheduler, SchedulerSettings};
use crate::store::{Store, StoreError};

/// How long the tasks have to finish what they are doing.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(15);

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

/// A configuration that the daemon would start with.
pub(crate) struct CheckedConfig {
    pub(crate) config: Config,
    /// The settings that were detected, one line each.
    pub(crate) detected: Vec<String>,
    /// What is accepted and probably not meant, or will not work on this host, one line each.
    pub(crate) warnings: Vec<String>,
}

/// The configuration, if the daemon would start with it: everything it names exists and this user can read it.
pub(crate) fn check_config(path: &Path) -> Result<CheckedConfig, DaemonError> {
    let located = |problem: &String| ConfigError::locate(path, problem).to_string();
    let prepared = PreparedConfig::load(path)?;
    let reports = prepared.check_named().map_err(|error| match error {
        DaemonError::Named(problems) => DaemonError::Named(problems.iter().map(located).collect()),
        DaemonError::Input(problem) => DaemonError::Input(located(&problem)),
        other => other,
    })?;
    let unsuited = prepared.config.find_answers_for_postfix_alone();
    let doubts = warnings::warnings(&prepared.config);
    let warnings = reports.warnings().iter().chain(&unsuited).chain(&doubts).map(located).collect();
    Ok(CheckedConfig { config: prepared.config, detected: prepared.detected, warnings })
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

    /// Checks what the configuration names: a daemon would start without it, with parts that are off. Returns how reports
    /// would be made.
    fn check_named(&self) -> Result<SchedulerSettings, DaemonError> {
        let reports = SchedulerSettings::load(&warnings::without_credentials(&self.config.report));
        let reports = reports.map_err(DaemonError::Named)?;
        if let Some(group) = &self.config.control.status_group {
            let unknown = |problem| DaemonError::Named(vec![format!("[control] status_group: {problem}")]);
            listeners::find_group(group).map_err(unknown)?;
        }
        inputs::check_inputs(&self.config)?;
        let missing = self.config.find_missing_override_files();
        if !missing.is_empty() {
            return Err(DaemonError::Named(missing));
        }
        if let Some(root) = &self.config.closed_network.extra_root {
            let unread = |e| format!("[closed_network] extra_root: {}: cannot be read: {e}", root.display());
            std::fs::read(root).map_err(|e| DaemonError::Named(vec![unread(e)]))?;
        }
        Ok(reports)
    }
}

/// What is kept over a reload.
struct PersistentState {
    store: Arc<DaemonStore>,
    sockets: Arc<Mutex<Sockets>>,
    /// Of all sockets, for descriptors are shared.
    clients: ClientConnections,
    parts: Parts,
    /// Standard input, once it has been read.
    stdin: Option<inputs::SharedStdin>,
    clock: Clock,
    metrics: Metrics,
    reloads: Reloads,
}

impl PersistentState {
    fn shared_store(&self) -> Arc<dyn Store> {
        Arc::<DaemonStore>::clone(&self.store)
    }
}

async fn serve(path: &Path, prepared: PreparedConfig) -> Result<(), DaemonError> {
    let config = &prepared.config;
    let clock = config.closed_network.clock.map_or_else(Clock::default, |t| Clock::starting_at(t.as_second()));
    let (metrics, parts) = (Metrics::default(), Parts::default());
    let opener = PartOpener::new(parts.clone(), clock, config);
    // The daemon's own folder in memory, and one that is on a disk more often.
    let copy_folders: Vec<_> =
        config.control.socket.parent().map(Path::to_owned).into_iter().chain([temp_dir()]).collect();
    let store = DaemonStore::open(&config.store.path, &copy_folders, clock, metrics.clone(), opener.clone())?;
    let (reloads, reload_requests) = Reloads::new();
    let state = PersistentState {
        store: Arc::new(store),
        sockets: Arc::new(Mutex::new(Sockets::from_systemd())),
        clients: ClientConnections::new(metrics.clone()),
        parts,
        stdin: None,
        clock,
        metrics,
        reloads,
    };
    let signals = Signals::listen()?;
    // Ends with this function.
    let mut watchdog_task = JoinSet::new();
    watchdog_task.spawn(watchdog::feed(state.metrics.clone()));
    Daemon::start(path, state, prepared, opener, reload_requests)?.run(signals).await
}

/// Everything that runs.
struct Daemon {
    path: PathBuf,
    state: PersistentState,
    prepared: PreparedConfig,
    opener: PartOpener,
    answering: Answering,
    /// Inputs, counting and reports; nothing while the store is off.
    pipelines: Option<TaskGroup>,
    /// The control socket and the metrics, where they are to be opened anew.
    status_sockets: Option<StatusSockets>,
    /// Who answers on them.
    status: Option<TaskGroup>,
    /// Who did so before, on the way out.
    retired: JoinSet<()>,
    reload_requests: mpsc::Receiver<ReloadRequest>,
}

impl Daemon {
    /// Answers from now on.
    fn start(
        path: &Path,
        state: PersistentState,
        prepared: PreparedConfig,
        opener: PartOpener,
        reload_requests: mpsc::Receiver<ReloadRequest>,
    ) -> Result<Daemon, DaemonError> {
        let answering = Answering::start(&state, &prepared.config, &opener, None)?;
        answering.expect_heartbeats(&state.metrics);
        Ok(Daemon {
            path: path.to_owned(),
            state,
            prepared,
            opener,
            answering,
            pipelines: None,
            status_sockets: None,
            status: None,
            retired: JoinSet::new(),
            reload_requests,
        })
    }

    /// Runs until a signal ends it, or a task ends by itself.
    async fn run(mut self, mut signals: Signals) -> Result<(), DaemonError> {
        self.start_pipelines().await?;
        notify_systemd(&[sd_notify::NotifyState::Ready]);
        let store = Arc::clone(&self.state.store);
        // Memory that is not freed is no reason to end.
        let _ = tokio::task::spawn_blocking(move || store.drop_preloaded()).await;
        loop {
            match self.wait(&mut signals).await {
                WakeReason::Shutdown => return self.end(None).await,
                WakeReason::TaskEnded(problem) => return self.end(Some(problem)).await,
                WakeReason::StoreRetry => {
                    if self.try_pipelines().await {
                        log_state(&self.prepared.config, &self.state.parts);
                    }
                    continue;
                }
                WakeReason::Reload(request) => {
                    let verdict = self.reload();
                    let taken = matches!(verdict, ReloadVerdict::Taken(_));
                    if let Some(request) = request {
                        // Who asked may have gone.
                        let _ = request.send(verdict);
                    }
                    if !taken {
                        continue;
                    }
                }
                WakeReason::StoreDamaged => {}
            }
            // Answering goes on meanwhile. What still counts would go on beside its successor, from the same position:
            // everything twice.
            if let Some(pipelines) = &mut self.pipelines {
                tokio::select! {
                    () = pipelines.drain(DRAIN_TIMEOUT) => {}
                    () = signals.end.received() => return self.end(None).await,
                }
            }
            self.pipelines = None;
            self.start_pipelines().await?;
        }
    }

    async fn wait(&mut self, signals: &mut Signals) -> WakeReason {
        let Daemon { state, answering, pipelines, status, opener, reload_requests, retired, .. } = self;
        let is_off = pipelines.is_none();
        loop {
            return tokio::select! {
                () = signals.end.received() => WakeReason::Shutdown,
                _ = signals.reload.recv() => WakeReason::Reload(None),
                Some(request) = reload_requests.recv() => WakeReason::Reload(Some(request)),
                () = state.store.wait_for_damage(), if !is_off => WakeReason::StoreDamaged,
                () = state.store.wait_for_retry(opener.interval()), if is_off => WakeReason::StoreRetry,
                problem = answering.tasks.ended() => WakeReason::TaskEnded(problem),
                problem = ended(pipelines) => WakeReason::TaskEnded(problem),
                problem = ended(status) => WakeReason::TaskEnded(problem),
                Some(_) = retired.join_next() => continue,
            };
        }
    }

    /// Loads the configuration on disk and starts new answering tasks. The old ones stop once these accept connections;
    /// counting and reports must still be drained.
    fn reload(&mut self) -> ReloadVerdict {
        let before = self.state.parts.states();
        let taken = PreparedConfig::load(&self.path).and_then(|next| {
            if next.config.store.path != self.state.store.folder() {
                return Err(DaemonError::Named(vec!["[store] path: changes only with a restart".to_owned()]));
            }
            let opener = PartOpener::new(self.state.parts.clone(), self.state.clock, &next.config);
            let answering = Answering::start(&self.state, &next.config, &opener, Some(&self.answering))?;
            Ok((next, opener, answering))
        });
        let (next, opener, answering) = match taken {
            Ok(taken) => taken,
            Err(error) => {
                let reason = error.to_string();
                self.state.reloads.refused(self.state.clock.seconds(), &reason);
                let line = format!("reload: the configuration was not taken: {reason}; going on with the old one");
                tracing::error!("{line}");
                self.state.metrics.keep_error(self.state.clock, line);
                return ReloadVerdict::Refused(reason);
            }
        };
        self.state.reloads.taken();
        tracing::info!("reload: {}: taken", self.path.display());
        answering.expect_heartbeats(&self.state.metrics);
        let before_it = std::mem::replace(&mut self.answering, answering);
        self.retire(before_it.tasks);
        self.status_sockets = Some(StatusSockets::open(&self.state, &next.config, &opener));
        if self.pipelines.is_some() {
            pipelines::check_reports(&next.config.report, &opener);
        }
        (self.prepared, self.opener) = (next, opener);
        ReloadVerdict::Taken(newly_off(&before, &self.state.parts.states()))
    }

    /// Starts the pipelines; where the store is off, shows that they wait for it.
    async fn start_pipelines(&mut self) -> Result<(), DaemonError> {
        self.prepared.detected.iter().for_each(|line| tracing::info!("{line}"));
        self.prepared.config.find_answers_for_postfix_alone().iter().for_each(|line| tracing::warn!("{line}"));
        if !self.try_pipelines().await {
            pipelines::wait_for_store(&self.state, &self.prepared.config, &self.opener);
            let scheduler = pipelines::idle_scheduler(&self.state, &self.prepared.config, &self.answering)?;
            self.show(scheduler);
        }
        log_state(&self.prepared.config, &self.state.parts);
        Ok(())
    }

    /// Starts the pipelines; returns whether the store is there for them.
    async fn try_pipelines(&mut self) -> bool {
        let (store, history) = (Arc::clone(&self.state.store), Arc::clone(&self.answering.history));
        let policies = Arc::clone(&self.answering.policies);
        let ready = tokio::task::spawn_blocking(move || {
            let taken_in = store.make_ready().and_then(|returned| match returned {
                StoreReturn::Unchanged => Ok(()),
                StoreReturn::Opened => answering::load_known(&store, &history, &policies),
                StoreReturn::WentBack => {
                    history.write_again();
                    policies.write_again();
                    Ok(())
                }
            });
            match &taken_in {
                Ok(()) => store.settle(),
                Err(error) => store.turn_off(error),
            }
            taken_in.is_ok()
        });
        // A panic has been logged.
        if !ready.await.unwrap_or(false) {
            return false;
        }
        match pipelines::start(&mut self.state, &self.prepared, &self.opener, &self.answering) {
            Ok((tasks, scheduler)) => {
                self.pipelines = Some(tasks);
                self.show(scheduler);
                true
            }
            Err(error) => {
                self.state.store.turn_off(&error);
                false
            }
        }
    }

    /// Answers on the control socket and shows the metrics; who did so before ends.
    fn show(&mut self, scheduler: Arc<Scheduler>) {
        let services = Arc::new(Services {
            config: self.prepared.config.clone(),
            detected: self.prepared.detected.clone(),
            running: true,
            parts: self.state.parts.clone(),
            store: self.state.shared_store(),
            resolver: self.answering.resolver.clone(),
            policies: Arc::clone(&self.answering.policies),
            scheduler,
            metrics: self.state.metrics.clone(),
            clock: self.state.clock,
            reloads: Some(self.state.reloads.clone()),
        });
        let sockets = self.status_sockets.take();
        let sockets = sockets.unwrap_or_else(|| StatusSockets::open(&self.state, &self.prepared.config, &self.opener));
        if let Some(before) = self.status.replace(sockets.serve(&self.state, &self.opener, services)) {
            self.retire(before);
        }
    }

    fn retire(&mut self, mut tasks: TaskGroup) {
        self.retired.spawn(async move {
            // Who is still busy has been logged, and nobody waits for it.
            let _ = tasks.drain_within(DRAIN_TIMEOUT).await;
        });
    }

    /// Ends everything: those who ask are answered until the rest has ended.
    async fn end(mut self, problem: Option<String>) -> Result<(), DaemonError> {
        notify_systemd(&[sd_notify::NotifyState::Stopping]);
        self.state.metrics.expect_heartbeats([]);
        for tasks in [&mut self.pipelines, &mut self.status].into_iter().flatten() {
            tasks.drain_within(DRAIN_TIMEOUT).await;
        }
        self.answering.tasks.drain_within(DRAIN_TIMEOUT).await;
        problem.map_or(Ok(()), |problem| Err(DaemonError::Task(problem)))
    }
}

/// Waits until one of the tasks ends by itself.
async fn ended(tasks: &mut Option<TaskGroup>) -> String {
    match tasks {
        Some(tasks) => tasks.ended().await,
        None => std::future::pending().await,
    }
}

/// The parts that are off, and were not off for the same reason before: one line for each.
fn newly_off(before: &BTreeMap<String, PartState>, now: &BTreeMap<String, PartState>) -> Vec<String> {
    let reason = |states: &BTreeMap<String, PartState>, part: &str| match states.get(part) {
        Some(PartState::Off { reason, .. }) => Some(reason.clone()),
        Some(PartState::Running) | None => None,
    };
    let line = |part: &String| {
        let off = reason(now, part).filter(|off| reason(before, part).as_ref() != Some(off))?;
        Some(format!("{part}: off: {off}"))
    };
    now.keys().filter_map(line).collect()
}

fn notify_systemd(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!("systemd: not told: {error}; going on");
    }
}

struct Signals {
    end: EndSignals,
    reload: tokio::signal::unix::Signal,
}

/// The signals that end the daemon.
struct EndSignals([tokio::signal::unix::Signal; 2]);

impl Signals {
    fn listen() -> Result<Signals, DaemonError> {
        let on =
            |kind| signal(kind).map_err(|e| DaemonError::System(format!("signals: cannot listen: {e}; not started")));
        Ok(Signals {
            end: EndSignals([on(SignalKind::terminate())?, on(SignalKind::interrupt())?]),
            reload: on(SignalKind::hangup())?,
        })
    }
}

impl EndSignals {
    async fn received(&mut self) {
        let [terminate, interrupt] = &mut self.0;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
}

enum WakeReason {
    Shutdown,
    /// With where the verdict goes, if somebody waits for it.
    Reload(Option<ReloadRequest>),
    StoreDamaged,
    StoreRetry,
    TaskEnded(String),
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
    names.push(format!("status unix:{}", config.control.status_socket().display()));
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

/// Logs what is on, one line for each part, and tells systemd in short.
fn log_state(config: &Config, parts: &Parts) {
    let summary = summary(config, parts);
    tracing::info!("tlswarden {}: {summary}", env!("CARGO_PKG_VERSION"));
    notify_systemd(&[sd_notify::NotifyState::Status(&summary)]);
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

/// What is on and what is off, in one line.
fn summary(config: &Config, parts: &Parts) -> String {
    let states = parts.states();
    let is_on = |part: &str| states.get(part) == Some(&PartState::Running);
    let sockets = states.keys().filter(|part| part.starts_with("socketmap ") || part.starts_with("readsocket "));
    let inputs = config.inputs.len();
    let counting = match (inputs, is_on(COUNTING)) {
        (0, _) => "counting nothing (no input)".to_owned(),
        (_, false) => "not counting".to_owned(),
        (1, true) => "counting 1 input".to_owned(),
        (_, true) => format!("counting {inputs} inputs"),
    };
    let reports = if is_on(REPORTS) { "reports on" } else { "no reports" };
    let answering = sockets.filter(|part| is_on(part)).map(String::as_str).collect::<Vec<_>>().join(", ");
    let off: Vec<&str> = states.keys().filter(|part| !is_on(part)).map(String::as_str).collect();
    let off = if off.is_empty() { String::new() } else { format!("; off: {}", off.join(", ")) };
    format!("answering at {answering}; {counting}; {reports}{off}")
}
