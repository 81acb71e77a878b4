//! Counting and reports, which need the store, and the sockets on which the daemon is asked about itself.
//!
//! Takes: the configuration, and who answers. Gives: the tasks of both.
//! When it fails: a [`StoreError`]; nothing has been started, the logs and the days wait.
//! Not here: answering (`answering`), opening the store (`store`).

use std::path::PathBuf;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::{Mutex, mpsc, watch};

use super::answering::Answering;
use super::control::{self, ControlAccess, Services};
use super::inputs::{self, CounterFactory};
use super::listeners::SocketAccess;
use super::parts::{Listening, ListeningPart, PartOpener};
use super::store::OffStore;
use super::tasks::{TaskGroup, run_task, run_until_shutdown};
use super::{PersistentState, PreparedConfig, prometheus, watchdog};
use crate::answering::listener::Listener;
use crate::answering::policy::policies::Policies;
use crate::base::exim_event::EximEvent;
use crate::base::own_reports::{self, MessageIdKey};
use crate::base::parts::{COUNTING, REPORTS};
use crate::config::identity::missing_identity;
use crate::config::{Config, ListenAddress, ReportSection};
use crate::counting::pipeline::CountingTask;
use crate::counting::rules::CountingRules;
use crate::reporting::schedule::{Scheduler, SchedulerContext, SchedulerSettings};
use crate::store::{Store, StoreError, message_id_key};

/// Blocks that wait between the inputs and the counting: reading is never far ahead of counting.
const MAX_QUEUED_BLOCKS: usize = 4;

/// Failed domains that wait between the counting and the policies. More than that at once means that this host itself
/// is failing.
const MAX_QUEUED_HINTS: usize = 1024;

/// The tasks that are watched for progress.
const WATCHED: [&str; 2] = ["counting", "scheduler"];

/// Starts the inputs, the counting and the reports.
pub(crate) fn start(
    state: &mut PersistentState,
    prepared: &PreparedConfig,
    opener: &PartOpener,
    answering: &Answering,
) -> Result<(TaskGroup, Arc<Scheduler>), StoreError> {
    let config = &prepared.config;
    let store: Arc<dyn Store> = state.shared_store();
    let (metrics, clock) = (state.metrics.clone(), state.clock);
    // Everything that can fail comes first: no half start.
    let message_id_key = message_id_key::load_or_create(&*store)?;
    let counter_factory = CounterFactory {
        opener: opener.clone(),
        sockets: Arc::clone(&state.sockets),
        store: Arc::clone(&store),
        message_id_key: message_id_key.clone(),
        rules: Arc::new(CountingRules::from_config(config)),
        metrics: metrics.clone(),
        clock,
        left_out: Arc::default(),
    };
    let inputs = inputs::open_inputs(state, config, &prepared.zones, counter_factory)?;
    let context = scheduler_context(state, answering, Arc::clone(&store), message_id_key);
    let scheduler = Scheduler::open(context, SchedulerSettings::without_sender(&config.report))?;
    let settings = SchedulerSettings::load(&config.report).map_err(|faults| faults.join("; "));
    let settings = match settings {
        // Nothing is configured that could be off.
        Ok(settings) if settings.sender.is_none() => Some(settings),
        settings => opener.try_open(REPORTS, || settings),
    };
    let reports_are_off = settings.is_none();
    settings.into_iter().for_each(|settings| scheduler.configure(settings));
    if !config.inputs.is_empty() {
        opener.turn_on(COUNTING);
    }

    let mut tasks = TaskGroup::new();
    let shutdown = tasks.shutdown();
    let (feed, fed) = mpsc::channel(MAX_QUEUED_BLOCKS);
    let datagrams = inputs.start(&mut tasks, &feed, &shutdown);
    // With no input at all the counting has nothing to do, and waits until it is stopped.
    tasks.spawn("idle".into(), run_until_shutdown(shutdown.clone(), async move { feed.closed().await }));
    let (hints, failed) = mpsc::channel(MAX_QUEUED_HINTS);
    let counting = CountingTask {
        store,
        policies: Box::new(Arc::clone(&answering.history)),
        hints,
        datagrams,
        own_queue_ids: scheduler.own_queue_ids(),
        own_report_statuses: scheduler.own_report_statuses(),
        metrics: metrics.clone(),
        clock,
    };
    let (forwarded, events) = mpsc::channel(1);
    let task = forward_exim_events(Arc::clone(&answering.exim_events), forwarded);
    tasks.spawn("Exim's events".into(), run_until_shutdown(shutdown.clone(), task));
    let (runtime, stopping) = (Handle::current(), shutdown.clone());
    let count = move || counting.run(&runtime, fed, events, stopping).map_err(|e| e.to_string());
    tasks.spawn_blocking(COUNTING.into(), count);
    let task = recheck_failed_domains(Arc::clone(&answering.policies), failed);
    tasks.spawn("hints".into(), run_until_shutdown(shutdown.clone(), task));
    let retry = reports_are_off.then(|| (opener.clone(), config.report.clone()));
    let task = start_reports(retry, Arc::clone(&scheduler), shutdown.clone());
    tasks.spawn(REPORTS.into(), run_until_shutdown(shutdown.clone(), task));
    tasks.spawn("scheduler".into(), run_task(Arc::clone(&scheduler).run(shutdown)));
    WATCHED.iter().for_each(|task| metrics.expect_heartbeat(task, watchdog::STORE_LIMIT));
    Ok((tasks, scheduler))
}

/// Notes that everything that needs the store waits for it.
pub(crate) fn wait_for_store(state: &PersistentState, config: &Config, opener: &PartOpener) {
    WATCHED.iter().for_each(|task| state.metrics.forget_heartbeat(task));
    if !config.inputs.is_empty() {
        opener.turn_off(COUNTING, "the store is off; the logs are read on when it is back");
    }
    if missing_identity(&config.report).is_empty() {
        opener.turn_off(REPORTS, "the store is off; days wait within retention");
    }
    let names: Vec<String> = config.inputs.iter().filter_map(|input| Some(input.kind()?.to_string())).collect();
    state.metrics.set_inputs(names.iter().map(|name| (name.as_str(), None)));
    for name in names {
        state.metrics.update_input(&name, |p| p.trouble = Some("waits: the store is off".to_owned()));
    }
}

/// What shows the reports while the store is off: none, and a command about one gets an error.
pub(crate) fn idle_scheduler(
    state: &PersistentState,
    config: &Config,
    answering: &Answering,
) -> Result<Arc<Scheduler>, StoreError> {
    // Nothing is sent, so nothing is marked with it.
    let key = MessageIdKey::from_bytes(&own_reports::random_bytes::<{ own_reports::KEY_LENGTH }>()?);
    let context = scheduler_context(state, answering, Arc::new(OffStore::default()), key);
    Scheduler::open(context, SchedulerSettings::without_sender(&config.report))
}

fn scheduler_context(
    state: &PersistentState,
    answering: &Answering,
    store: Arc<dyn Store>,
    message_id_key: MessageIdKey,
) -> SchedulerContext {
    SchedulerContext {
        store,
        resolver: answering.resolver.clone(),
        https: answering.report_client.clone(),
        metrics: state.metrics.clone(),
        clock: state.clock,
        message_id_key,
    }
}

/// Notes at a reload whether the reports' keys can be loaded, while the reports before still run.
pub(crate) fn check_reports(section: &ReportSection, opener: &PartOpener) {
    if let Err(faults) = SchedulerSettings::load(section) {
        opener.turn_off(REPORTS, &faults.join("; "));
    }
}

/// The sockets on which the daemon is asked about itself, open or yet to be opened.
pub(crate) struct StatusSockets {
    control: ListeningPart,
    status: ListeningPart,
    metrics: Vec<ListeningPart>,
}

impl StatusSockets {
    pub(crate) fn open(state: &PersistentState, config: &Config, opener: &PartOpener) -> StatusSockets {
        let open = |subject: &str, path: PathBuf, access| {
            let address = ListenAddress::Unix(path);
            ListeningPart::open(format!("{subject} {address}"), address, access, &state.sockets, opener)
        };
        let (control, group) = (&config.control, config.control.status_group.clone());
        StatusSockets {
            control: open("control", control.socket.clone(), SocketAccess::Owner),
            status: open("status", control.status_socket(), SocketAccess::Group(group)),
            metrics: ListeningPart::open_each("metrics", &config.status.listen, &state.sockets, opener),
        }
    }

    /// Answers on them.
    pub(crate) fn serve(self, state: &PersistentState, opener: &PartOpener, services: Arc<Services>) -> TaskGroup {
        let mut tasks = TaskGroup::new();
        let shutdown = tasks.shutdown();
        let (sockets, opener, metrics) = (Arc::clone(&state.sockets), opener.clone(), state.metrics.clone());
        let listening = Listening { sockets, opener, metrics, shutdown: shutdown.clone() };
        for part in self.metrics {
            let (services, shutdown) = (Arc::clone(&services), shutdown.clone());
            let clients = state.clients.clone();
            let serve = |listener| prometheus::serve(listener, clients, services, shutdown);
            tasks.spawn(part.name.clone(), listening.clone().run(part, None, serve));
        }
        for (part, access) in [(self.control, ControlAccess::Full), (self.status, ControlAccess::ReadOnly)] {
            let (services, shutdown) = (Arc::clone(&services), shutdown.clone());
            let serve = async move |listener| match listener {
                Listener::Unix(listener) => control::serve(listener, access, services, shutdown).await,
                // Both sockets have a path.
                Listener::Tcp(_) => {}
            };
            tasks.spawn(part.name.clone(), listening.clone().run(part, None, serve));
        }
        tasks
    }
}

/// Hands on what Exim's event action reported: whoever answers outlives the counting.
async fn forward_exim_events(events: Arc<Mutex<mpsc::Receiver<EximEvent>>>, counting: mpsc::Sender<EximEvent>) {
    let mut events = events.lock().await;
    // A place first: an event that is taken must not be dropped on its way.
    while let Ok(place) = counting.reserve().await {
        let Some(event) = events.recv().await else { break };
        place.send(event);
    }
    std::future::pending().await
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
