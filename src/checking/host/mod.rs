//! What is wrong on this host, and how to fix it: what `tlswarden doctor` shows.
//!
//! Takes: the configuration file, and where the MTA's own is. Gives: [`Findings`].
//! It changes nothing, and needs neither a running daemon nor root: what it could not look at, it says.
//! Limits: those of the parts that it asks.
//! Not here: a domain's own publications (`receiving`), how findings are shown (`cli`).

mod access;
pub(crate) mod daemon;
mod environment;
pub(crate) mod exim;
pub(crate) mod identity;
mod log_lines;
pub(crate) mod postconf;
pub(crate) mod postfix;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::checking::finding::{Finding, Findings, Severity};
use crate::config::{Config, DkimKeySection, ReportSection};
use crate::net::dns::Resolver;
use daemon::{DaemonPresence, DaemonState, DaemonStateError};
use exim::EximInstallation;
use identity::DkimKeyCheck;
use postconf::PostfixInstance;

/// Where to find the configurations to check.
#[derive(Clone, Debug)]
pub(crate) struct HostCheckOptions {
    /// Our configuration.
    pub(crate) config: PathBuf,
    /// Postfix's configuration folder; without it Postfix's own default.
    pub(crate) postfix: Option<PathBuf>,
    /// Exim's program; without it the one on the path.
    pub(crate) exim: Option<PathBuf>,
    /// Exim's configuration file; without it Exim's own default.
    pub(crate) exim_config: Option<PathBuf>,
    /// A name whose signatures are broken on purpose; empty for none.
    pub(crate) bogus: String,
}

/// What the checks need of the other parts of the program, which they do not import.
pub(crate) trait HostCheckContext {
    /// The state of the running daemon.
    async fn daemon_state(&self, config: &Config) -> Result<DaemonState, DaemonStateError>;
    /// Whether a daemon would start with this configuration; one line if not.
    fn check_start(&self, config: &Config) -> Result<(), String>;
    /// What is unwise about `[report]` as a whole, one line each: names of different domains, above all.
    fn report_warnings(&self, section: &ReportSection) -> Vec<String>;
    /// One key file of `[[report.dkim]]`, and its record in DNS; `from` is the domain of the From address.
    async fn check_key(&self, key: &DkimKeySection, from: &str, resolver: &Resolver) -> DkimKeyCheck;
}

/// Checks only whether the daemon's user can read its logs.
pub(crate) fn check_logs(config: &Config) -> Findings {
    let mut found = Findings::default();
    environment::check_logs(config, &mut found);
    found
}

/// Checks everything.
pub(crate) async fn check_host(options: &HostCheckOptions, program: &impl HostCheckContext) -> Findings {
    let mut found = Findings::default();
    // As the daemon does: what the file does not say is found out.
    let mut host = Vec::new();
    let complete = |config: &mut Config| host = crate::config::detect::complete_without_log_access(config);
    let config = match Config::load_with(&options.config, complete) {
        Ok(config) => config,
        Err(error) => {
            let impact = "The daemon does not start with it, and goes on with what it has until it is restarted.";
            found.push(Finding::new(Severity::Error, "config", "configuration", error.to_string(), impact));
            found.not_looked_at.push("everything else, which depends on the configuration".into());
            return found;
        }
    };
    environment::check_logs(&config, &mut found);
    let running = daemon::check_daemon(&config, program.daemon_state(&config).await, &host, &mut found);
    // Others may read less than the daemon: what they cannot would not keep it from starting.
    if running == DaemonPresence::NotRunning && !rustix::process::geteuid().is_root() {
        found.not_looked_at.push("whether the daemon would start: that takes root".into());
    } else if running == DaemonPresence::NotRunning
        && let Err(error) = program.check_start(&config)
    {
        let impact = "The daemon does not start with it, or runs without the part that needs it.";
        found.push(Finding::new(Severity::Error, "would-not-start", "tlswarden", error, impact));
    }
    if running == DaemonPresence::Unknown && !rustix::process::geteuid().is_root() {
        let problem = "the running daemon and the keys could not be looked at without root";
        let impact = "What is wrong there does not show here.";
        let finding = Finding::new(Severity::Warning, "not-root", "doctor", problem, impact);
        found.push(finding.fix("sudo tlswarden doctor"));
    }
    let asked = running == DaemonPresence::Asked;
    let running = matches!(running, DaemonPresence::Running | DaemonPresence::Asked);
    let mut roots = BTreeSet::new();
    let postfix = options.exim.is_none() && options.exim_config.is_none();
    let mut mtas = 0;
    if postfix && check_postfix(&config, options.postfix.as_deref(), running, &mut roots, &mut found) {
        mtas += 1;
    }
    let exim_wanted = !postfix || (options.postfix.is_none() && (mtas == 0 || !config.readsocket.listen.is_empty()));
    let mut exims = 0;
    if exim_wanted {
        match EximInstallation::read(options.exim.as_deref(), options.exim_config.as_deref()) {
            Ok(exim) => {
                found.looked_at.push(format!("Exim {}", exim.version()));
                exim.check(&config, running, &mut found);
                exims += 1;
            }
            Err(error) => found.not_looked_at.push(format!("Exim: {error}")),
        }
    }
    if mtas + exims > 0 {
        roots.insert(PathBuf::from("/"));
    } else if asked {
        // The MTA is in another container or on another host, and has a resolver of its own.
        found.not_looked_at.push("the MTA that asks the daemon: neither Postfix nor Exim is here".into());
    } else {
        let impact = "Nobody asks for policies, and nothing writes the log that is counted from.";
        let problem = "neither Postfix nor Exim could be looked at";
        found.push(Finding::new(Severity::Warning, "no-mta", "MTA", problem, impact));
    }
    environment::check_resolver(&config, &options.bogus, &roots, exims > 0, &mut found).await;
    environment::check_clock(&config, &mut found).await;
    match Resolver::new(config.resolver.address) {
        Ok(resolver) => identity::check_identity(program, &config.report, &resolver, &mut found).await,
        Err(_) => found.not_looked_at.push("the records of [report]: there is no resolver".into()),
    }
    found
}

/// Checks Postfix; returns whether there is one. The folders that its services are chrooted in are added to `roots`.
fn check_postfix(
    config: &Config,
    folder: Option<&Path>,
    running: bool,
    roots: &mut BTreeSet<PathBuf>,
    found: &mut Findings,
) -> bool {
    let (instances, skipped) = match PostfixInstance::read_all(folder) {
        Ok(read) => read,
        Err(error) => {
            found.not_looked_at.push(format!("Postfix: {error}"));
            return false;
        }
    };
    found.not_looked_at.extend(skipped);
    // The daemon takes its settings from the first instance that asks it (`config::detect`).
    let asks = |instance: &PostfixInstance| instance.get("smtp_tls_policy_maps").contains("socketmap:");
    let primary = instances.iter().position(asks).unwrap_or(0);
    let asked = instances.iter().any(|instance| postfix::asks_daemon(instance, config));
    for (nth, instance) in instances.iter().enumerate() {
        let services: Vec<&str> = instance.smtp_clients.iter().map(|service| service.name.as_str()).collect();
        let folder = instance.folder.display();
        let version = instance.get("mail_version");
        found.looked_at.push(match services.is_empty() {
            true => format!("Postfix {version} in {folder}: it delivers nothing by SMTP"),
            false => format!("Postfix {version} in {folder}: services {}", services.join(", ")),
        });
        found.extend(postfix::check_instance(instance, config, asked, nth == primary));
        if running {
            let denied = postfix::check_sockets(instance, config, &mut found.not_looked_at);
            found.extend(denied);
        }
        if instance.smtp_clients.iter().any(|service| service.chroot) {
            roots.insert(PathBuf::from(instance.get("queue_directory")));
        }
    }
    true
}
