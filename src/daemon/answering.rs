//! Answering: the resolver, the policies, and the sockets that an MTA asks on.
//!
//! Takes: the configuration, and the [`Answering`] before it, whose policies and history it goes on with. Gives: sockets
//! that are answered from now on; the previous tasks keep serving the same sockets until they are shut down.
//! When it fails: no resolver, or none of the sockets can be listened on; then nothing has changed. Everything else that
//! cannot be opened is off and tried again.
//! Not here: counting and reports (`pipelines`), which wait for the store.

use std::sync::Arc;

use tokio::sync::{Mutex, mpsc};

use super::listeners::Sockets;
use super::parts::{Listening, ListeningPart, PartOpener};
use super::store::DaemonStore;
use super::tasks::{TaskGroup, run_task, run_until_shutdown};
use super::{DaemonError, PersistentState, inputs, resolver_watch, watchdog};
use crate::answering::policy::history::PolicyHistory;
use crate::answering::policy::policies::Policies;
use crate::answering::readsocket;
use crate::answering::socketmap::server;
use crate::base::exim_event::EximEvent;
use crate::base::parts::HTTPS;
use crate::base::shutdown::wait_for_shutdown;
use crate::config::{Config, ListenAddress};
use crate::metrics::Metrics;
use crate::net::dns::Resolver;
use crate::net::https::HttpsClient;
use crate::store::StoreError;

/// Failed sessions that Exim reported and that wait for the counting: more at once than Exim has processes.
const MAX_QUEUED_EXIM_EVENTS: usize = 1024;

/// What answers the MTA, and what the pipelines need of it.
pub(crate) struct Answering {
    pub(crate) tasks: TaskGroup,
    pub(crate) resolver: Resolver,
    pub(crate) policies: Arc<Policies>,
    pub(crate) history: Arc<PolicyHistory>,
    /// For receivers of reports.
    pub(crate) report_client: HttpsClient,
    /// What Exim's event action reported, for the counting that runs.
    pub(crate) exim_events: Arc<Mutex<mpsc::Receiver<EximEvent>>>,
    /// The names of the sockets that are answered.
    listening: Vec<String>,
}

impl Answering {
    pub(crate) fn start(
        state: &PersistentState,
        config: &Config,
        opener: &PartOpener,
        before: Option<&Answering>,
    ) -> Result<Answering, DaemonError> {
        // Everything that can fail comes first.
        let sockets = Arc::clone(&state.sockets);
        sockets.lock().check_any(&answering_sockets(config))?;
        let resolver = open_resolver(config)?;
        let exceptions = config.closed_network.exceptions();
        let client = HttpsClient::unloaded(resolver.clone(), &exceptions);
        let report_client =
            HttpsClient::unloaded_for_reports(resolver.clone(), &exceptions, config.report.https_certificates);
        let load = {
            let (client, report_client) = (client.clone(), report_client.clone());
            move || client.load().and_then(|()| report_client.load())
        };
        let (metrics, clock) = (state.metrics.clone(), state.clock);
        let (history, policies) = match before {
            Some(before) => (Arc::clone(&before.history), before.policies.reopen(config, resolver.clone(), client)),
            None => {
                let history = Arc::new(PolicyHistory::new(clock, metrics.clone()));
                let (store, known) = (state.shared_store(), Arc::clone(&history));
                let policies = Policies::new(config, resolver.clone(), client, store, known, clock, metrics.clone());
                (history, policies)
            }
        };
        if before.is_none() {
            match load_known(&state.store, &history, &policies) {
                Ok(()) => state.store.settle(),
                Err(error) => state.store.turn_off(&error),
            }
        }
        state.parts.set_parts(super::part_names(config));
        let socketmaps = ListeningPart::open_each("socketmap", &config.socketmap.listen, &sockets, opener);
        let readsockets = ListeningPart::open_each("readsocket", &config.readsocket.listen, &sockets, opener);
        let listening = socketmaps.iter().chain(&readsockets).filter(|part| part.is_open());
        let listening = listening.map(|part| part.name.clone()).collect();
        close_unused(&mut sockets.lock(), config);
        let https_is_off = opener.try_open(HTTPS, load.clone()).is_none();

        let mut tasks = TaskGroup::new();
        let shutdown = tasks.shutdown();
        tasks.spawn("history".into(), run_task(Arc::clone(&history).run(state.shared_store(), shutdown.clone())));
        tasks.spawn("policies".into(), run_task(Arc::clone(&policies).run(shutdown.clone())));
        let watch = resolver_watch::watch_resolver(resolver.clone(), config.clone(), metrics.clone(), clock);
        tasks.spawn("resolver".into(), run_until_shutdown(shutdown.clone(), watch));
        let (store, known) = (Arc::clone(&state.store), Arc::clone(&policies));
        let write_pending = async move {
            loop {
                store.wait_until_back().await;
                known.write_pending();
            }
        };
        tasks.spawn("store".into(), run_until_shutdown(shutdown.clone(), write_pending));
        if https_is_off {
            let (opener, mut shutdown) = (opener.clone(), shutdown.clone());
            tasks.spawn(HTTPS.into(), async move {
                opener.open_later(HTTPS, load, &mut shutdown).await;
                wait_for_shutdown(&mut shutdown).await;
                Ok(())
            });
        }
        let (event_sender, exim_events) = mpsc::channel(MAX_QUEUED_EXIM_EVENTS);
        let sockets =
            Listening { sockets, opener: opener.clone(), metrics: metrics.clone(), shutdown: shutdown.clone() };
        for part in socketmaps {
            let (policies, postfix) = (Arc::clone(&policies), config.postfix.clone());
            let (metrics, shutdown) = (metrics.clone(), shutdown.clone());
            let clients = state.clients.clone();
            let serve = |listener| server::serve(listener, policies, postfix, clients, metrics, shutdown);
            tasks.spawn(part.name.clone(), sockets.clone().run(part, Some(watchdog::LISTENER_LIMIT), serve));
        }
        for part in readsockets {
            let (policies, events) = (Arc::clone(&policies), event_sender.clone());
            let (metrics, shutdown) = (metrics.clone(), shutdown.clone());
            let clients = state.clients.clone();
            let serve = |listener| readsocket::serve(listener, policies, events, clients, metrics, shutdown);
            tasks.spawn(part.name.clone(), sockets.clone().run(part, Some(watchdog::LISTENER_LIMIT), serve));
        }
        // Without a readsocket there are no events, and that is not the end of them.
        tasks.spawn("idle".into(), run_until_shutdown(shutdown, async move { event_sender.closed().await }));
        let exim_events = Arc::new(Mutex::new(exim_events));
        Ok(Answering { tasks, resolver, policies, history, report_client, exim_events, listening })
    }

    /// Has the watchdog watch the sockets that are answered, and nothing else.
    pub(crate) fn expect_heartbeats(&self, metrics: &Metrics) {
        metrics.expect_heartbeats(self.listening.iter().map(|name| (name.clone(), watchdog::LISTENER_LIMIT)));
    }
}

/// Adds what the store has. Blocks for as long as the disk does.
pub(crate) fn load_known(store: &DaemonStore, history: &PolicyHistory, policies: &Policies) -> Result<(), StoreError> {
    history.load(store).and_then(|()| policies.load())
}

/// Closes the sockets that a configuration does not name, and warns of those that systemd passes for nobody.
fn close_unused(sockets: &mut Sockets, config: &Config) {
    let mut in_use = [config.socketmap.listen.as_slice(), &config.readsocket.listen, &config.status.listen].concat();
    in_use.extend([config.control.socket.clone(), config.control.status_socket()].map(ListenAddress::Unix));
    in_use.extend(inputs::datagram_sockets(config).into_iter().map(|(path, _)| ListenAddress::Unix(path)));
    sockets.close_except(&in_use);
    for address in sockets.unused_systemd_sockets(&in_use) {
        tracing::warn!("systemd: {address}: in no `listen`; nobody is answered there");
    }
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
