//! What commands get where no daemon runs: the store, the policies and the reports, opened as the daemon opens them.
//!
//! Takes: the configuration. Gives: [`Services`] that answer as the daemon would; the parts of the pipelines that
//! single commands call.
//! When it fails: an [`OpenError`].
//! Not here: the tasks of a running daemon (`daemon`), how results are printed (`cli`).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::answering::policy::history::PolicyHistory;
use crate::answering::policy::policies::Policies;
use crate::base::clock::Clock;
use crate::base::parts::Parts;
use crate::checking::host::HostCheckContext;
use crate::checking::host::daemon::{DaemonState, DaemonStateError};
use crate::checking::host::identity::{DkimKeyCheck, DkimRecordCheck, KeyFileError};
use crate::config::{Config, DkimKeySection, ReportSection, warnings};
use crate::counting::pipeline;
pub(crate) use crate::counting::pipeline::{LineSample, PROGRAM_NAME_ADVICE};
use crate::daemon::control::{ControlRequest, DaemonStatus, Services};
use crate::daemon::control_client::{RequestError, send_request};
pub(crate) use crate::daemon::replay::{ReplayError, ReplayRequest, ReplayResult, replay};
use crate::metrics::Metrics;
use crate::net::dns::Resolver;
use crate::net::https;
pub(crate) use crate::reporting::dkim::key::{DkimPublicKey, KeyType, generate_key};
use crate::reporting::dkim::signer::{self as reporting, Signer};
pub(crate) use crate::reporting::report::build::gzip;
use crate::reporting::schedule::{Scheduler, SchedulerContext, SchedulerSettings};
pub(crate) use crate::store::StoreError;
use crate::store::embedded::EmbeddedStore;
pub(crate) use crate::store::embedded::{BACKUP_PREFIX, RestoredStore};
use crate::store::{Store, message_id_key};

/// Where systemd has the copies of the keys that it made for the daemon (systemd.exec(5)).
const CREDENTIALS: &str = "/run/credentials/tlswarden.service";

/// Why nothing could be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// Neither a daemon nor its store.
    #[error("no daemon answers at {}, and there is no store at {}; nothing is shown", .socket.display(), .store.display())]
    NoStore {
        /// The control socket.
        socket: PathBuf,
        /// The store's folder.
        store: PathBuf,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Something that the configuration names: an address or a key.
    #[error("{}", .0.join("; "))]
    Named(Vec<String>),
    /// Something that every host should have.
    #[error("{0}")]
    System(String),
}

/// Opens everything that the daemon would answer from, where no daemon runs.
pub(crate) fn open_offline(config: &Config) -> Result<Services, OpenError> {
    if !config.store.path.exists() {
        return Err(OpenError::NoStore { socket: config.control.socket.clone(), store: config.store.path.clone() });
    }
    let clock = config.closed_network.clock.map_or_else(Clock::default, |t| Clock::starting_at(t.as_second()));
    let host =
        |what: &str, error: String| OpenError::System(format!("{what}: cannot be used: {error}; nothing is shown"));
    let opened = EmbeddedStore::open(&config.store.path, clock)?;
    let metrics = Metrics::default();
    // What this finds damaged and sets aside, the daemon finds new and whole.
    if opened.lost_commits() {
        Scheduler::record_store_loss(&opened.store, clock, &metrics)?;
    }
    let store: Arc<dyn Store> = Arc::new(opened.store);
    let resolver = Resolver::new(config.resolver.address).map_err(|e| host("resolver", e.to_string()))?;
    let client =
        https::HttpsClient::new(resolver.clone(), &config.closed_network.exceptions()).map_err(|e| host("https", e))?;
    let https = https::HttpsClient::for_reports(
        resolver.clone(),
        &config.closed_network.exceptions(),
        config.report.https_certificates,
    )
    .map_err(|e| host("https", e))?;
    let history = Arc::new(PolicyHistory::open(&*store, clock, metrics.clone())?);
    let policies = Policies::new(config, resolver.clone(), client, Arc::clone(&store), history, clock, metrics.clone());
    policies.load()?;
    let mut newest = Vec::new();
    for input in &config.inputs {
        let Some(name) = input.kind().map(|source| source.to_string()) else { continue };
        newest.push((name.clone(), pipeline::load_newest_line_time(&*store, &name)?));
    }
    metrics.set_inputs(newest.iter().map(|(name, newest)| (name.as_str(), *newest)));
    let own = message_id_key::load_or_create(&*store)?;
    let setup = SchedulerSettings::load(&config.report).map_err(OpenError::Named)?;
    let context = SchedulerContext {
        store: Arc::clone(&store),
        resolver: resolver.clone(),
        https,
        metrics: metrics.clone(),
        clock,
        message_id_key: own,
    };
    let scheduler = Scheduler::open(context, setup)?;
    Ok(Services {
        config: config.clone(),
        detected: Vec::new(),
        running: false,
        parts: Parts::default(),
        store,
        resolver,
        policies,
        scheduler,
        metrics,
        clock,
        reloads: None,
    })
}

/// Puts a copy that lies in the store's folder in place of the store.
///
/// Fails where the copy is not whole, or a process, the daemon most likely, has the store open.
pub(crate) fn restore_store(config: &Config, copy: &Path) -> Result<RestoredStore, StoreError> {
    EmbeddedStore::restore(copy, &config.store.path, Clock::default())
}

/// What `doctor` needs of this program, for [`crate::checking::host::check_host`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct DoctorContext;

impl HostCheckContext for DoctorContext {
    async fn daemon_state(&self, config: &Config) -> Result<DaemonState, DaemonStateError> {
        let control = &config.control;
        let status: DaemonStatus =
            send_request(control, &ControlRequest::Status).await.map_err(|error| match error {
                RequestError::NotRunning => DaemonStateError::NotRunning,
                RequestError::Failed(line) => DaemonStateError::Failed(line),
            })?;
        Ok(DaemonState {
            version: status.version,
            now: status.now,
            refused_reload: status.refused_reload.map(|refused| refused.reason),
            detected: status.found,
            parts: status.parts,
            inputs: status.inputs,
            counters: status.counters,
            errors: status.errors,
            policies: send_request(control, &ControlRequest::PolicyList).await.unwrap_or_default(),
        })
    }

    fn check_start(&self, config: &Config) -> Result<(), String> {
        super::check_start(config).map_err(|error| error.to_string())
    }

    fn report_warnings(&self, section: &ReportSection) -> Vec<String> {
        // What is wrong with a file is a finding of its own.
        let is_of_section =
            |line: &&String| line.starts_with("[report] ") || line.starts_with("[[report.dkim]] domain: ");
        let settings = SchedulerSettings::load(&warnings::without_credentials(section));
        settings.iter().flat_map(|settings| settings.warnings()).filter(is_of_section).cloned().collect()
    }

    async fn check_key(&self, key: &DkimKeySection, from: &str, resolver: &Resolver) -> DkimKeyCheck {
        let awaits_restart = reporting::differs_from_copy(&key.key, Path::new(CREDENTIALS));
        let file = key.key.display().to_string();
        let mut check = DkimKeyCheck { file, awaits_restart, ..DkimKeyCheck::default() };
        let signer = match Signer::load(std::slice::from_ref(key), from) {
            Ok(signer) => signer,
            Err(faults) => {
                check.fault = faults.into_iter().next().map(|error| match error.fault {
                    reporting::DkimKeyFault::Unreadable(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                        KeyFileError::Denied(error.to_string())
                    }
                    fault => KeyFileError::Unusable(fault.to_string()),
                });
                return check;
            }
        };
        check.warnings = signer.warnings;
        for public in signer.public_keys {
            let fault = public.find_fault(resolver).await;
            check.records.push(DkimRecordCheck { name: public.record_name(), zone_line: public.zone_line(), fault });
        }
        check
    }
}
