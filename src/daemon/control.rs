//! The control socket: what the command line asks a running daemon.
//!
//! Takes: one connection a question: a line of JSON ([`Question`]). Gives: one JSON value ([`Reply`]), then the end.
//! Limits: [`MAX_QUESTION`] octets within [`PATIENCE`]; [`MAX_ANSWER`] octets. Only the daemon's user and root get there.
//! The same [`Desk`] answers where no daemon runs: the command line opens the store itself then.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

pub use crate::answering::policy::admin::explain::Explanation;
pub use crate::answering::policy::admin::list::Listed;
use crate::answering::policy::policies::Policies;
pub use crate::answering::policy::sts::domain_state::Record;
use crate::answering::socketmap::server;
use crate::base::clock::Clock;
use crate::base::domain_name;
use crate::base::next_hop::NextHop;
use crate::base::shutdown::wait_for_shutdown;
use crate::base::tlsrpt::{Day, TallyRow};
use crate::config::Config;
use crate::config::identity::missing_identity;
use crate::metrics::{InputProgress, Metrics};
use crate::net::dns::Resolver;
use crate::reporting::schedule::Scheduler;
pub use crate::reporting::schedule::{ArchivedReport, ReportOverview, ReportPreview, ReportState, ReportStatus};
use crate::store::Store;
use crate::store::embedded::BACKUP_PREFIX;

/// The longest question, in octets: a next hop of any length that Postfix would ask for.
const MAX_QUESTION: u64 = 16 * 1024;

/// The longest answer that is read, in octets: the reports of a day of a large host.
const MAX_ANSWER: u64 = 1 << 30;

/// How long a question may take to arrive.
const PATIENCE: Duration = Duration::from_secs(5);

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "ask")]
pub enum Question {
    /// How things stand: [`Status`].
    Status,
    /// What Postfix would be answered: [`Explanation`].
    Policy {
        /// As Postfix would write it.
        next_hop: String,
    },
    /// What would be sent: `Vec<DayPreview>`.
    Report {
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
    Reports,
    /// A report that went or is to go: [`Kept`].
    ReportsShow {
        /// Its identifier.
        id: String,
    },
    /// Sends it once more, and says to how many destinations: `usize`.
    ReportsResend {
        /// Its identifier.
        id: String,
    },
    /// What is known of each next hop: `Vec<Listed>`.
    Policies,
    /// What is known of one: `Option<Listed>`, with its document.
    PoliciesShow {
        /// As Postfix would write it.
        next_hop: String,
    },
    /// The same, after DNS and the policy host have been asked again.
    PoliciesRefresh {
        /// As Postfix would write it.
        next_hop: String,
    },
    /// Forgets, and says how many domains were forgotten: `usize`.
    PoliciesPurge {
        /// One domain; without it all.
        domain: Option<String>,
    },
    /// Each next hop that has a policy and its answer: `Vec<(String, String)>`.
    PoliciesExport,
    /// Copies the store within its own folder, and says where: `PathBuf`. Whoever asked fetches it from there.
    Backup,
}

/// What is answered.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Reply<T> {
    /// The answer.
    Answer(T),
    /// One line that says why there is none.
    Fault(String),
}

/// How things stand.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Status {
    /// The version of the program.
    pub version: String,
    /// Whether a daemon answers, or the store was looked at without one.
    pub running: bool,
    /// The time, in seconds since 1970-01-01T00:00:00Z.
    pub now: i64,
    /// What was found out about the host when the daemon started or was reloaded, one line each (`detect`).
    pub found: Vec<String>,
    /// Each input, by name, and how far it is.
    pub inputs: BTreeMap<String, InputProgress>,
    /// The resolver that is asked.
    pub resolver: String,
    /// Whether it validates: without, there is no DANE.
    pub validating: bool,
    /// How much is known.
    pub policies: crate::answering::policy::policies::Counts,
    /// What `[report]` lacks; until it is there no report is sent.
    pub missing_identity: Vec<String>,
    /// What is due, in short.
    pub due: ReportOverview,
    /// What happened how often, since the daemon started.
    pub counters: BTreeMap<String, u64>,
    /// The last errors, oldest first, with their times.
    pub errors: Vec<(i64, String)>,
    /// Octets of the store on disk.
    pub store_size: u64,
}

/// The reports of one day.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DayPreview {
    /// The UTC day.
    pub day: Day,
    /// One for each recipient domain and MX host; a second one where there is to be a supplement.
    pub reports: Vec<ReportPreview>,
}

/// Where questions are answered: everything that can be looked at.
pub struct Desk {
    /// The configuration in force.
    pub config: Config,
    /// What of it was found out about the host, one line each.
    pub found: Vec<String>,
    /// Whether this is the daemon.
    pub running: bool,
    /// Counts and records.
    pub store: Arc<dyn Store>,
    /// The resolver.
    pub resolver: Resolver,
    /// The decisions.
    pub policies: Arc<Policies>,
    /// What is due.
    pub scheduler: Arc<Scheduler>,
    /// Progress, counters, errors.
    pub metrics: Metrics,
    /// The time.
    pub clock: Clock,
}

impl Desk {
    /// How things stand.
    pub async fn status(&self) -> Status {
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            running: self.running,
            now: self.clock.seconds(),
            found: self.found.clone(),
            inputs: self.metrics.inputs(),
            resolver: self.resolver.server().to_string(),
            validating: self.resolver.is_trusted(),
            policies: self.policies.counts(),
            missing_identity: missing_identity(&self.config.report).into_iter().map(str::to_owned).collect(),
            due: self.stored(|_, scheduler| scheduler.overview().map_err(|e| e.to_string())).await.unwrap_or_default(),
            counters: self.metrics.counters().into_iter().map(|(name, n)| (name.to_owned(), n)).collect(),
            errors: self.metrics.recent_errors(),
            store_size: self.store.size().unwrap_or(0),
        }
    }

    /// What Postfix would be answered, and why.
    pub async fn policy(&self, next_hop: &str) -> Explanation {
        server::explain(&self.policies, next_hop, self.config.postfix.default_level()).await
    }

    /// What would be sent. Fails with one line.
    pub async fn report(&self, day: Option<Day>, domain: Option<&str>) -> Result<Vec<DayPreview>, String> {
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
    pub async fn results(&self, day: Option<Day>, domain: Option<&str>) -> Result<Vec<TallyRow>, String> {
        let domain = match domain {
            Some(name) => Some(domain_name::normalize(name).ok_or_else(|| format!("`{name}` is no domain name"))?),
            None => None,
        };
        self.stored(move |store, _| {
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

    /// What is due, under way or done within retention. Fails with one line.
    pub async fn reports(&self) -> Result<Vec<ReportStatus>, String> {
        self.stored(|_, scheduler| scheduler.list_reports().map_err(|e| e.to_string())).await
    }

    /// A report by its identifier. Fails with one line.
    pub async fn kept(&self, id: String) -> Result<ArchivedReport, String> {
        self.stored(move |_, scheduler| scheduler.archived_report(&id)).await
    }

    /// Sends a report once more; returns to how many destinations. Fails with one line.
    pub async fn resend(&self, id: String) -> Result<usize, String> {
        self.stored(move |_, scheduler| scheduler.resend(&id)).await
    }

    /// What blocks for as long as the store does, where that holds up nobody.
    async fn stored<T: Send + 'static>(
        &self,
        call: impl FnOnce(&dyn Store, &Scheduler) -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        let (store, scheduler) = (Arc::clone(&self.store), Arc::clone(&self.scheduler));
        let call = tokio::task::spawn_blocking(move || call(&*store, &scheduler));
        call.await.unwrap_or_else(|e| Err(format!("control: {e}; nothing is shown")))
    }

    /// What is known of a next hop; with `refresh` after everything has been asked again. Fails with one line.
    pub async fn show(&self, next_hop: &str, refresh: bool) -> Result<Option<Listed>, String> {
        let hop = hop(next_hop)?;
        if refresh { self.policies.look_again(&hop).await.map_err(unwritten) } else { Ok(self.policies.show(&hop)) }
    }

    /// Forgets a domain, or all; returns how many. Fails with one line.
    pub async fn purge(&self, domain: Option<&str>) -> Result<usize, String> {
        let domain = domain.map(|name| hop(name).map(|hop| hop.domain)).transpose()?;
        self.policies.purge(domain.as_deref()).await.map_err(unwritten)
    }

    /// Each next hop that has a policy, and its answer.
    pub fn export(&self) -> Vec<(String, String)> {
        server::table(&self.policies, self.config.postfix.default_level())
    }

    /// Copies the store within its own folder; the folder of the copy. Fails with one line.
    pub async fn backup(&self) -> Result<PathBuf, String> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let to = self.config.store.path.join(format!("{BACKUP_PREFIX}{}-{number}", std::process::id()));
        let (store, folder) = (Arc::clone(&self.store), to.clone());
        let copied = tokio::task::spawn_blocking(move || store.copy(&folder)).await;
        copied.map_err(|e| format!("store: not copied: {e}; there is no backup"))?.map_err(|e| e.to_string())?;
        Ok(to)
    }

    async fn answer(&self, question: &[u8]) -> Vec<u8> {
        match serde_json::from_slice(question) {
            Ok(Question::Status) => octets(&Reply::Answer(self.status().await)),
            Ok(Question::Policy { next_hop }) => octets(&Reply::Answer(self.policy(&next_hop).await)),
            Ok(Question::Report { day, domain }) => octets(&reply(self.report(day, domain.as_deref()).await)),
            Ok(Question::Results { day, domain }) => octets(&reply(self.results(day, domain.as_deref()).await)),
            Ok(Question::Reports) => octets(&reply(self.reports().await)),
            Ok(Question::ReportsShow { id }) => octets(&reply(self.kept(id).await)),
            Ok(Question::ReportsResend { id }) => octets(&reply(self.resend(id).await)),
            Ok(Question::Policies) => octets(&Reply::Answer(self.policies.listed())),
            Ok(Question::PoliciesShow { next_hop }) => octets(&reply(self.show(&next_hop, false).await)),
            Ok(Question::PoliciesRefresh { next_hop }) => octets(&reply(self.show(&next_hop, true).await)),
            Ok(Question::PoliciesPurge { domain }) => octets(&reply(self.purge(domain.as_deref()).await)),
            Ok(Question::PoliciesExport) => octets(&Reply::Answer(self.export())),
            Ok(Question::Backup) => octets(&reply(self.backup().await)),
            Err(error) => octets(&Reply::<()>::Fault(format!("control: no question: {error}; nothing was done"))),
        }
    }

    async fn converse(&self, stream: UnixStream) -> io::Result<()> {
        let mut stream = BufReader::new(stream);
        let mut question = Vec::new();
        tokio::time::timeout(PATIENCE, (&mut stream).take(MAX_QUESTION).read_until(b'\n', &mut question)).await??;
        let answer = self.answer(&question).await;
        stream.get_mut().write_all(&answer).await?;
        stream.get_mut().shutdown().await
    }
}

/// Answers whoever connects, until `shutdown` turns true.
pub async fn serve(listener: UnixListener, desk: Arc<Desk>, mut shutdown: watch::Receiver<bool>) -> io::Result<()> {
    let listener = tokio::net::UnixListener::from_std(listener)?;
    let mut conversations = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let desk = Arc::clone(&desk);
                    // Who asks and goes away is nobody's fault.
                    conversations.spawn(async move { drop(desk.converse(stream).await) });
                }
                Err(error) => {
                    tracing::warn!("control: cannot accept a connection: {error}; trying again");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = conversations.join_next() => {}
            () = wait_for_shutdown(&mut shutdown) => return Ok(()),
        }
    }
}

/// Why a daemon gave no answer.
#[derive(Debug)]
pub enum AskError {
    /// Nobody listens: no daemon runs.
    NobodyThere,
    /// One line.
    Failed(String),
}

/// Asks the daemon behind a control socket.
pub async fn ask<T: DeserializeOwned>(socket: &Path, question: &Question) -> Result<T, AskError> {
    let failed = |problem: &dyn std::fmt::Display| {
        AskError::Failed(format!("{}: the daemon did not answer: {problem}; nothing is shown", socket.display()))
    };
    let mut stream = UnixStream::connect(socket).await.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => AskError::NobodyThere,
        _ => failed(&error),
    })?;
    let mut line = octets(question);
    line.push(b'\n');
    stream.write_all(&line).await.map_err(|e| failed(&e))?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer).await.map_err(|e| failed(&e))?;
    match serde_json::from_slice(&answer) {
        Ok(Reply::Answer(answer)) => Ok(answer),
        Ok(Reply::Fault(line)) => Err(AskError::Failed(line)),
        Err(error) => Err(failed(&error)),
    }
}

fn reply<T>(result: Result<T, String>) -> Reply<T> {
    result.map_or_else(Reply::Fault, Reply::Answer)
}

fn hop(text: &str) -> Result<NextHop, String> {
    NextHop::parse(text.as_bytes())
        .ok_or_else(|| format!("`{}` is no next hop that can have a policy", text.escape_debug()))
}

fn unwritten(cause: String) -> String {
    format!("store: cannot write policies: {cause}; changed in memory alone")
}

fn octets(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("plain structures always serialise")
}
