//! The control socket: what the command line asks a running daemon.
//!
//! Takes: one connection for each request: a line of JSON ([`ControlRequest`]). Gives: one JSON value
//! ([`ControlResponse`]), then the end.
//! Limits: [`MAX_REQUEST`] bytes within [`REQUEST_TIMEOUT`], [`MAX_CONNECTIONS`] at once. Only the daemon's user and root
//! may connect. On a second socket, which a group may use, only requests that read are answered, each within
//! [`READER_TIMEOUT`].
//! When it fails: the response is one line that says why.
//! Not here: how a request is sent (`control_client`). Without a daemon the command line opens the same [`Services`].

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

pub(crate) use crate::answering::policy::admin::explain::Explanation;
pub(crate) use crate::answering::policy::admin::list::PolicyStatus;
use crate::answering::policy::policies::Policies;
pub(crate) use crate::answering::policy::sts::domain_state::RecordState;
use crate::answering::socketmap::server;
use crate::base::clock::Clock;
use crate::base::domain_name;
use crate::base::next_hop::NextHop;
pub(crate) use crate::base::parts::PartState;
use crate::base::parts::Parts;
use crate::base::shutdown::wait_for_shutdown;
use crate::base::tlsrpt::{Day, TallyRow};
use crate::config::identity::missing_identity;
use crate::config::{Config, ReportSection, WithoutDnssec};
use crate::metrics::{InputProgress, Metrics};
use crate::net::dns::{Resolver, ResolverStatus};
use crate::reporting::schedule::Scheduler;
pub(crate) use crate::reporting::schedule::{
    ArchivedReport, ReportOverview, ReportPreview, ReportState, ReportStatus, ResendResult, ResendSelection,
};
use crate::store::Store;
use crate::store::embedded::BACKUP_PREFIX;

/// The longest request, in octets: a next hop of any length that Postfix would ask for.
const MAX_REQUEST: u64 = 16 * 1024;

/// How long a request may take to arrive.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections that are served at once on a socket; more wait. Each takes a descriptor, and those are for the MTA.
const MAX_CONNECTIONS: usize = 32;

/// How long a client of the socket that only reads may take, with its answer.
const READER_TIMEOUT: Duration = Duration::from_secs(60);

/// How long requests may go on when the daemon ends or is reloaded.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// What a client of the socket that only reads is told about any other request.
const READ_ONLY_REFUSAL: &str = "control: permission denied: this socket answers only requests that read (status, results, \
                                 reports list, policy list, policy show, policy export); nothing was done";

/// A request to the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "ask")]
pub(crate) enum ControlRequest {
    /// How things stand: [`DaemonStatus`].
    Status,
    /// What Postfix would be answered: [`Explanation`].
    PolicyExplain {
        /// As Postfix would write it.
        next_hop: String,
    },
    /// What would be sent: `Vec<DayPreview>`.
    ReportsPreview {
        /// One day; without it all that have counts.
        day: Option<Day>,
        /// One recipient domain or MX host; without it all.
        domain: Option<String>,
    },
    /// What has been counted so far: `Vec<TallyRow>`.
    Results {
        /// One day; without it all that have counts.
        day: Option<Day>,
        /// One recipient domain; without it all.
        domain: Option<String>,
    },
    /// What is due, under way or done within retention: `Vec<Due>`.
    ReportsList,
    /// A report that went or is to go: [`Kept`].
    ReportsShow {
        /// Its identifier.
        id: String,
    },
    /// Sends reports once more: `ResendResult`.
    ReportsResend {
        /// Which.
        selection: ResendSelection,
    },
    /// What is known of each next hop: `Vec<PolicyStatus>`.
    PolicyList,
    /// What is known of one: `Option<PolicyStatus>`, with its document.
    PolicyShow {
        /// As Postfix would write it.
        next_hop: String,
    },
    /// The same, after DNS and the policy host have been asked again.
    PolicyRefresh {
        /// As Postfix would write it.
        next_hop: String,
    },
    /// Forgets, and says how many domains were forgotten: `usize`.
    PolicyPurge {
        /// One domain; without it all.
        domain: Option<String>,
    },
    /// Each next hop that has a policy and its answer: `Vec<(String, String)>`.
    PolicyExport,
    /// Takes the configuration on disk: [`ReloadVerdict`].
    Reload,
    /// Copies the store within its own folder, and says where: `PathBuf`. Whoever asked fetches it from there.
    Backup,
}

impl ControlRequest {
    /// Whether it changes nothing, and asks neither DNS nor other hosts.
    pub(crate) fn only_reads(&self) -> bool {
        match self {
            ControlRequest::Status
            | ControlRequest::Results { .. }
            | ControlRequest::ReportsList
            | ControlRequest::PolicyList
            | ControlRequest::PolicyShow { .. }
            | ControlRequest::PolicyExport => true,
            ControlRequest::PolicyExplain { .. }
            | ControlRequest::ReportsPreview { .. }
            | ControlRequest::ReportsShow { .. }
            | ControlRequest::ReportsResend { .. }
            | ControlRequest::PolicyRefresh { .. }
            | ControlRequest::PolicyPurge { .. }
            | ControlRequest::Reload
            | ControlRequest::Backup => false,
        }
    }
}

/// What a socket answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ControlAccess {
    /// Every request.
    Full,
    /// Those that only read.
    ReadOnly,
}

/// The response to a request.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum ControlResponse<T> {
    /// The answer.
    Answer(T),
    /// One line that says why there is none.
    Fault(String),
}

/// The state of the daemon.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct DaemonStatus {
    /// The version of the program.
    pub(crate) version: String,
    /// Whether a daemon answers, or the store was looked at without one.
    pub(crate) running: bool,
    /// The time, in seconds since 1970-01-01T00:00:00Z.
    pub(crate) now: i64,
    /// Why the configuration on disk is not in use, if the last reload was refused.
    pub(crate) refused_reload: Option<RefusedReload>,
    /// What was found out about the host when the daemon started or was reloaded, one line each (`detect`).
    pub(crate) found: Vec<String>,
    /// Each part of the daemon, and why those that are off are off; none where no daemon runs.
    pub(crate) parts: BTreeMap<String, PartState>,
    /// Each input, by name, and how far it is.
    pub(crate) inputs: BTreeMap<String, InputProgress>,
    /// The resolver that is asked, as its last probe showed: unless it validates, there is no DANE.
    pub(crate) resolver: ResolverStatus,
    /// Whether DANE is used where the resolver validates: whether Postfix asks for DNSSEC.
    pub(crate) wants_dane: bool,
    /// Whether all mail waits while no resolver validates.
    pub(crate) waits_without_dnssec: bool,
    /// How much is known.
    pub(crate) policies: crate::answering::policy::policies::PolicyCounts,
    /// What `[report]` lacks; until it is there no report is sent.
    pub(crate) missing_identity: Vec<String>,
    /// How many options `[report]` needs.
    pub(crate) identity_options: usize,
    /// What is due, in short.
    pub(crate) due: ReportOverview,
    /// What happened how often, since the daemon started.
    pub(crate) counters: BTreeMap<String, u64>,
    /// The last errors, oldest first, with their times.
    pub(crate) errors: Vec<(i64, String)>,
    /// Octets of the store on disk.
    pub(crate) store_size: u64,
}

/// A reload whose configuration did not pass.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct RefusedReload {
    /// When, in seconds since 1970-01-01T00:00:00Z; nothing where no reload has been tried.
    pub(crate) since: Option<i64>,
    /// Why, in one line.
    pub(crate) reason: String,
}

/// How a reload went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ReloadVerdict {
    /// The configuration on disk is in use; one line for each part that is off because of it.
    Taken(Vec<String>),
    /// It is not in use, for this reason.
    Refused(String),
}

/// Where the verdict of a reload goes.
pub(crate) type ReloadRequest = oneshot::Sender<ReloadVerdict>;

/// How reloads are asked for, and how the last one went. Copies share it.
#[derive(Clone)]
pub(crate) struct Reloads {
    requests: mpsc::Sender<ReloadRequest>,
    refused: Arc<Mutex<Option<RefusedReload>>>,
}

impl Reloads {
    /// None so far; with it, what is asked for.
    pub(crate) fn new() -> (Reloads, mpsc::Receiver<ReloadRequest>) {
        let (requests, requested) = mpsc::channel(1);
        (Reloads { requests, refused: Arc::default() }, requested)
    }

    /// Notes that a reload was refused.
    pub(crate) fn refused(&self, now: i64, reason: &str) {
        *self.refused.lock() = Some(RefusedReload { since: Some(now), reason: reason.to_owned() });
    }

    /// Notes that the configuration on disk is in use.
    pub(crate) fn taken(&self) {
        *self.refused.lock() = None;
    }

    async fn request(&self) -> Result<ReloadVerdict, String> {
        let (request, verdict) = oneshot::channel();
        // Either fails only while the daemon ends.
        let _ = self.requests.send(request).await;
        verdict.await.map_err(|_| "reload: the daemon ends; nothing was reloaded".to_owned())
    }
}

/// The reports of one day.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct DayPreview {
    /// The UTC day.
    pub(crate) day: Day,
    /// One for each recipient domain and MX host; a second one where there is to be a supplement.
    pub(crate) reports: Vec<ReportPreview>,
}

/// Everything that requests are answered from.
pub(crate) struct Services {
    /// The configuration in force.
    pub(crate) config: Config,
    /// The settings that were detected on the host, one line each.
    pub(crate) detected: Vec<String>,
    /// Whether this is the daemon.
    pub(crate) running: bool,
    /// The parts of the daemon.
    pub(crate) parts: Parts,
    /// Counts and records.
    pub(crate) store: Arc<dyn Store>,
    /// The resolver.
    pub(crate) resolver: Resolver,
    /// The decisions.
    pub(crate) policies: Arc<Policies>,
    /// What is due.
    pub(crate) scheduler: Arc<Scheduler>,
    /// Progress, counters, errors.
    pub(crate) metrics: Metrics,
    /// The time.
    pub(crate) clock: Clock,
    /// Reloads of the daemon.
    pub(crate) reloads: Option<Reloads>,
}

impl Services {
    /// What happened how often, the queries to the resolver among it.
    fn counters(&self) -> BTreeMap<String, u64> {
        let (queries, failed) = self.resolver.query_counts();
        let queries = [("dns_queries", queries), ("dns_queries_failed", failed)];
        self.metrics.counters().into_iter().chain(queries).map(|(name, n)| (name.to_owned(), n)).collect()
    }

    /// How the resolver stands: as its last probe showed, which is made now if there was none.
    pub(crate) async fn resolver_status(&self) -> ResolverStatus {
        let status = self.resolver.status();
        if status.probed_seconds_ago.is_some() {
            return status;
        }
        self.resolver.probe("").await;
        self.resolver.status()
    }

    /// How things stand.
    pub(crate) async fn status(&self) -> DaemonStatus {
        DaemonStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            running: self.running,
            now: self.clock.seconds(),
            refused_reload: self.reloads.as_ref().and_then(|reloads| reloads.refused.lock().clone()),
            found: self.detected.clone(),
            parts: self.parts.states(),
            inputs: self.metrics.inputs(),
            resolver: self.resolver_status().await,
            wants_dane: self.config.postfix.dnssec(),
            waits_without_dnssec: self.config.policy.without_dnssec == WithoutDnssec::Temp,
            policies: self.policies.counts(),
            missing_identity: missing_identity(&self.config.report).into_iter().map(str::to_owned).collect(),
            identity_options: missing_identity(&ReportSection::default()).len(),
            due: self
                .run_blocking(|_, scheduler| scheduler.overview().map_err(|e| e.to_string()))
                .await
                .unwrap_or_default(),
            counters: self.counters(),
            errors: self.metrics.recent_errors(),
            store_size: self.store.size().unwrap_or(0),
        }
    }

    /// What Postfix would be answered, and why.
    pub(crate) async fn explain_policy(&self, next_hop: &str) -> Explanation {
        server::explain(&self.policies, next_hop, self.config.postfix.default_level()).await
    }

    /// The reports that would be sent. Fails with one line.
    pub(crate) async fn preview_reports(
        &self,
        day: Option<Day>,
        domain: Option<&str>,
    ) -> Result<Vec<DayPreview>, String> {
        let domain = match domain {
            Some(name) => Some(domain_name::normalize(name).ok_or_else(|| format!("`{name}` is no domain name"))?),
            None => None,
        };
        let days = match day {
            Some(day) => vec![day],
            None => self.store.days().map_err(|e| e.to_string())?,
        };
        let mut previews = Vec::new();
        for day in days {
            let reports = self.scheduler.preview(&self.config.report, day, domain.as_deref()).await?;
            previews.push(DayPreview { day, reports });
        }
        Ok(previews)
    }

    /// What has been counted so far, by day, recipient domain and policy. Fails with one line.
    pub(crate) async fn results(&self, day: Option<Day>, domain: Option<&str>) -> Result<Vec<TallyRow>, String> {
        let domain = match domain {
            Some(name) => Some(domain_name::normalize(name).ok_or_else(|| format!("`{name}` is no domain name"))?),
            None => None,
        };
        self.run_blocking(move |store, _| {
            let days = day.map_or_else(|| store.days(), |day| Ok(vec![day])).map_err(|e| e.to_string())?;
            let mut rows = Vec::new();
            for day in days {
                let domains = domain.clone().map_or_else(|| store.domains(day), |domain| Ok(vec![domain]));
                for domain in domains.map_err(|e| e.to_string())? {
                    rows.extend(store.rows(day, &domain).map_err(|e| e.to_string())?);
                }
            }
            Ok(rows)
        })
        .await
    }

    /// The reports that are due, under way or done within retention. Fails with one line.
    pub(crate) async fn list_reports(&self) -> Result<Vec<ReportStatus>, String> {
        self.run_blocking(|_, scheduler| scheduler.list_reports().map_err(|e| e.to_string())).await
    }

    /// A report by its identifier. Fails with one line.
    pub(crate) async fn archived_report(&self, id: String) -> Result<ArchivedReport, String> {
        self.run_blocking(move |_, scheduler| scheduler.archived_report(&id)).await
    }

    /// Sends reports once more. Fails with one line.
    pub(crate) async fn resend_reports(&self, selection: ResendSelection) -> Result<ResendResult, String> {
        self.run_blocking(move |_, scheduler| scheduler.resend(&selection)).await
    }

    /// Runs a call that blocks on the store, on a thread where it delays no other task.
    async fn run_blocking<T: Send + 'static>(
        &self,
        call: impl FnOnce(&dyn Store, &Scheduler) -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        let (store, scheduler) = (Arc::clone(&self.store), Arc::clone(&self.scheduler));
        let call = tokio::task::spawn_blocking(move || call(&*store, &scheduler));
        call.await.unwrap_or_else(|e| Err(format!("control: {e}; nothing is shown")))
    }

    /// The status of a next hop; with `refresh` after DNS and the policy host have been asked again. Fails with one
    /// line.
    pub(crate) async fn show_policy(&self, next_hop: &str, refresh: bool) -> Result<Option<PolicyStatus>, String> {
        let hop = parse_next_hop(next_hop)?;
        if refresh {
            self.policies.refresh(&hop).await.map_err(describe_write_failure)
        } else {
            Ok(self.policies.policy_status(&hop))
        }
    }

    /// Removes the policy of a domain, or of all; returns how many were removed. Fails with one line.
    pub(crate) async fn purge_policies(&self, domain: Option<&str>) -> Result<usize, String> {
        let domain = domain.map(|name| parse_next_hop(name).map(|hop| hop.domain)).transpose()?;
        self.policies.purge(domain.as_deref()).await.map_err(describe_write_failure)
    }

    /// Each next hop that has a policy, and its answer.
    pub(crate) fn export_policies(&self) -> Vec<(String, String)> {
        server::export_table(&self.policies, self.config.postfix.default_level())
    }

    /// Copies the store within its own folder; the folder of the copy. Fails with one line.
    pub(crate) async fn backup(&self) -> Result<PathBuf, String> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let to = self.config.store.path.join(format!("{BACKUP_PREFIX}{}-{number}", std::process::id()));
        let (store, folder) = (Arc::clone(&self.store), to.clone());
        let copied = tokio::task::spawn_blocking(move || store.copy(&folder)).await;
        copied.map_err(|e| format!("store: not copied: {e}; there is no backup"))?.map_err(|e| e.to_string())?;
        Ok(to)
    }

    async fn respond(&self, access: ControlAccess, request: &[u8]) -> Vec<u8> {
        let request: Result<ControlRequest, _> = serde_json::from_slice(request);
        if access == ControlAccess::ReadOnly && request.as_ref().is_ok_and(|request| !request.only_reads()) {
            return to_json(&ControlResponse::<()>::Fault(READ_ONLY_REFUSAL.to_owned()));
        }
        match request {
            Ok(ControlRequest::Status) => to_json(&ControlResponse::Answer(self.status().await)),
            Ok(ControlRequest::PolicyExplain { next_hop }) => {
                to_json(&ControlResponse::Answer(self.explain_policy(&next_hop).await))
            }
            Ok(ControlRequest::ReportsPreview { day, domain }) => {
                to_json(&to_response(self.preview_reports(day, domain.as_deref()).await))
            }
            Ok(ControlRequest::Results { day, domain }) => {
                to_json(&to_response(self.results(day, domain.as_deref()).await))
            }
            Ok(ControlRequest::ReportsList) => to_json(&to_response(self.list_reports().await)),
            Ok(ControlRequest::ReportsShow { id }) => to_json(&to_response(self.archived_report(id).await)),
            Ok(ControlRequest::ReportsResend { selection }) => {
                to_json(&to_response(self.resend_reports(selection).await))
            }
            Ok(ControlRequest::PolicyList) => to_json(&ControlResponse::Answer(self.policies.list())),
            Ok(ControlRequest::PolicyShow { next_hop }) => {
                to_json(&to_response(self.show_policy(&next_hop, false).await))
            }
            Ok(ControlRequest::PolicyRefresh { next_hop }) => {
                to_json(&to_response(self.show_policy(&next_hop, true).await))
            }
            Ok(ControlRequest::PolicyPurge { domain }) => {
                to_json(&to_response(self.purge_policies(domain.as_deref()).await))
            }
            Ok(ControlRequest::PolicyExport) => to_json(&ControlResponse::Answer(self.export_policies())),
            Ok(ControlRequest::Reload) => to_json(&to_response(match &self.reloads {
                Some(reloads) => reloads.request().await,
                None => Err("reload: no daemon runs; nothing was reloaded".to_owned()),
            })),
            Ok(ControlRequest::Backup) => to_json(&to_response(self.backup().await)),
            Err(error) => {
                to_json(&ControlResponse::<()>::Fault(format!("control: no question: {error}; nothing was done")))
            }
        }
    }

    async fn serve_connection(&self, access: ControlAccess, stream: UnixStream) -> io::Result<()> {
        let mut stream = BufReader::new(stream);
        let mut request = Vec::new();
        tokio::time::timeout(REQUEST_TIMEOUT, (&mut stream).take(MAX_REQUEST).read_until(b'\n', &mut request))
            .await??;
        let answer = self.respond(access, &request).await;
        stream.get_mut().write_all(&answer).await?;
        stream.get_mut().shutdown().await
    }
}

/// Answers whoever connects, until `shutdown` turns true.
pub(crate) async fn serve(
    listener: UnixListener,
    access: ControlAccess,
    services: Arc<Services>,
    mut shutdown: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    let services = Arc::clone(&services);
                    // A client that disconnects early is not an error.
                    connections.spawn(async move {
                        let served = services.serve_connection(access, stream);
                        match access {
                            ControlAccess::Full => drop(served.await),
                            ControlAccess::ReadOnly => drop(tokio::time::timeout(READER_TIMEOUT, served).await),
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!("control: cannot accept a connection: {error}; trying again");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next() => {}
            () = wait_for_shutdown(&mut shutdown) => break,
        }
    }
    // Who is being answered, about a reload perhaps, still gets the answer.
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, async { while connections.join_next().await.is_some() {} }).await;
}

fn to_response<T>(result: Result<T, String>) -> ControlResponse<T> {
    result.map_or_else(ControlResponse::Fault, ControlResponse::Answer)
}

fn parse_next_hop(text: &str) -> Result<NextHop, String> {
    NextHop::parse(text.as_bytes())
        .ok_or_else(|| format!("`{}` is no next hop that can have a policy", text.escape_debug()))
}

fn describe_write_failure(cause: String) -> String {
    format!("store: cannot write policies: {cause}; changed in memory alone")
}

pub(super) fn to_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("plain structures always serialise")
}
