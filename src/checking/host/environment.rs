//! What the host itself must provide: logs that can be read, a resolver that validates, a clock that is right.
//!
//! Takes: our configuration, and the root folders of the MTA's services. Gives: findings.
//! Limits: those of `dns`; `timedatectl` for [`TIMEDATECTL_TIMEOUT`].
//! Not here: what stands in a log (`daemon` has read it).

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tokio::process::Command;

use crate::checking::finding::{Finding, Findings, Severity};
use crate::checking::host::access::{AccessKind, AccessObstacle, SystemUser};
use crate::config::{ClosedNetworkSection, Config, InputKind, InputSection};
use crate::net::dns::{Resolver, nameservers};

/// How long `timedatectl` may take: it asks a service that may have to be started.
const TIMEDATECTL_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a log may go without a new line.
const MAX_LOG_SILENCE: Duration = Duration::from_secs(2 * 86_400);

/// Checks that the daemon can read its logs.
pub(crate) fn check_logs(config: &Config, found: &mut Findings) {
    let reader = match daemon_user(config) {
        Ok(reader) => Some(reader),
        Err(error) => {
            found.not_looked_at.push(format!("whether the daemon may read its logs: {error}"));
            None
        }
    };
    if config.inputs.is_empty() {
        let impact = "Nothing is counted, and nothing can be reported.";
        let finding = Finding::new(Severity::Warning, "no-input", "tlswarden.toml", "there is no [[input]]", impact);
        found.push(finding.fix("tlswarden.toml: [[input]] file = \"/var/log/mail.log\""));
    }
    if config.inputs.iter().any(|input| input.kind() == Some(InputKind::Journal(None))) {
        check_journal(reader.as_ref(), found);
    }
    for path in &config.inputs.iter().flat_map(InputSection::log_files).collect::<Vec<_>>() {
        let shown = path.display().to_string();
        let add = |severity, name: &str, problem: String, impact: &str| {
            Finding::new(severity, name, shown.clone(), problem, impact)
        };
        let age = match std::fs::metadata(path) {
            Ok(file) => file.modified().ok().and_then(|at| SystemTime::now().duration_since(at).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let impact =
                    "No session is counted. Without rsyslog, Debian 12 and later have their log in the journal alone.";
                let finding = add(Severity::Error, "log-missing", "it does not exist".into(), impact);
                found.push(finding.fix("tlswarden.toml: [[input]] journal = true   # or: apt-get install rsyslog"));
                continue;
            }
            Err(error) => {
                found.not_looked_at.push(format!("{shown}: {error}"));
                continue;
            }
        };
        match reader
            .as_ref()
            .and_then(|reader| Some((reader, reader.find_obstacle(path, Path::new("/"), AccessKind::Read)?)))
        {
            None => found.looked_at.push(format!("the log {shown}")),
            Some((reader, AccessObstacle::Mode(at, words))) => {
                let problem = if at == *path { words } else { format!("{}: {words}", at.display()) };
                let finding = add(Severity::Error, "log-denied", problem, "No session is counted.");
                found.push(finding.fix(read_access_command(reader, &at)));
                continue;
            }
            Some((_, AccessObstacle::Missing(at))) => found.not_looked_at.push(format!("{}: it is gone", at.display())),
            Some((_, AccessObstacle::Unknown(at, error))) => {
                found.not_looked_at.push(format!("{}: {error}", at.display()))
            }
        }
        if let Some(age) = age.filter(|age| *age > MAX_LOG_SILENCE) {
            let problem = format!("nothing was written to it for {} hours", age.as_secs() / 3600);
            found.push(add(Severity::Note, "log-silent", problem, "This host may send no mail, or log elsewhere."));
        }
    }
}

/// The command that lets the daemon's user read a file, or enter a folder, that its mode denies.
///
/// The user is added to the file's group where that group may read it. It is never added to group root: the group adm,
/// which reads logs on Debian, gets the file instead.
fn read_access_command(reader: &SystemUser, at: &Path) -> String {
    let shown = at.display();
    let (gid, mode, is_folder) = std::fs::metadata(at).map_or((0, 0, false), |m| (m.gid(), m.mode(), m.is_dir()));
    let (needed, change) = if is_folder { (0o010, "g+x") } else { (0o040, "g+r") };
    let restart = "systemctl restart tlswarden";
    let name = &reader.name;
    if gid != 0 && mode & needed != 0 {
        return format!("usermod -aG $(getent group {gid} | cut -d: -f1) {name} && {restart}");
    }
    let join = if reader.is_in_any_group(&["adm"]) { String::new() } else { format!("usermod -aG adm {name} && ") };
    format!("{join}chgrp adm {shown} && chmod {change} {shown} && {restart}")
}

/// Checks that the daemon's user may read the host's journal: its files are open to these groups (journalctl(1)).
fn check_journal(reader: Option<&SystemUser>, found: &mut Findings) {
    let Some(reader) = reader else { return };
    if reader.is_in_any_group(&["systemd-journal", "adm", "wheel"]) {
        found.looked_at.push("the journal".into());
        return;
    }
    let problem = format!("{} may not read the journal: it is not in the group systemd-journal", reader.name);
    let finding = Finding::new(Severity::Error, "log-denied", "journal", problem, "No session is counted.");
    found.push(finding.fix(format!("usermod -aG systemd-journal {} && systemctl restart tlswarden", reader.name)));
}

/// The daemon's user: the owner of its store; where there is none yet, the user of that name.
fn daemon_user(config: &Config) -> Result<SystemUser, String> {
    match std::fs::metadata(&config.store.path) {
        Ok(store) => SystemUser::look_up(&store.uid().to_string()),
        Err(_) => SystemUser::look_up("tlswarden"),
    }
}

/// Checks that DNSSEC results are available and can be trusted, by the daemon and by the MTA. `roots` are the folders
/// that services of the MTA are chrooted in. `trust_ad` means that the MTA leaves that option to resolv.conf, as Exim
/// does.
pub(crate) async fn check_resolver(
    config: &Config,
    bogus: &str,
    roots: &BTreeSet<PathBuf>,
    trust_ad: bool,
    found: &mut Findings,
) {
    if config.postfix.dnssec() {
        for root in roots {
            check_resolv_conf(&root.join("etc/resolv.conf"), trust_ad, found);
        }
    }
    let resolver = match Resolver::new(config.resolver.address) {
        Ok(resolver) => resolver,
        Err(error) => {
            let impact = "No policy can be found out.";
            found.push(Finding::new(Severity::Error, "resolver-none", "resolver", error.to_string(), impact));
            return;
        }
    };
    let server = format!("resolver {}", resolver.server_names());
    let add =
        |name: &str, problem: &str, impact: &str| Finding::new(Severity::Error, name, server.clone(), problem, impact);
    let fix = resolver.status().fix();
    let no_dane = "There is no DANE: TLSA records count only where DNSSEC proves them (RFC 7672 §2.1).";
    let probe = resolver.probe(bogus).await;
    if config.postfix.dnssec()
        && let Some(warning) = resolver.status().warning
    {
        let impact = "Its AD bit is believed all the same: DANE is as safe as that bit.";
        let finding = Finding::new(Severity::Warning, "resolver-ad-bit", server.clone(), warning, impact);
        found.push(finding.fix(fix));
    }
    if let Some(error) = &probe.failure {
        let impact = "Nothing can be found out of a domain: the daemon answers `ask again`, and mail is deferred.";
        found.push(add("resolver-dead", error, impact).fix("systemctl status unbound"));
        return;
    }
    if !resolver.is_trusted() {
        if config.postfix.dnssec() {
            let problem = "it is not on this host, so that its word about DNSSEC is not believed";
            found.push(add("resolver-remote", problem, no_dane).fix(fix));
        }
        return;
    }
    if !probe.validates {
        if config.postfix.dnssec() {
            if probe.edns {
                let problem = "it does not validate: the root is not signed for it";
                found.push(add("resolver-not-validating", problem, no_dane).fix(fix));
            } else {
                let problem = "it answers queries without EDNS only, so that nothing is validated";
                let impact = "DANE is not known, and mail is deferred.";
                found.push(add("resolver-without-edns", problem, impact).fix(fix));
            }
        }
        return;
    }
    found.looked_at.push(format!("{server}: it validates"));
    if probe.refuses_bogus == Some(false) {
        let problem = format!("it answers about {bogus}, whose signatures are broken on purpose");
        let impact = "It sets the AD bit and does not refuse what is forged.";
        found.push(
            add("resolver-accepts-bogus", &problem, impact)
                .fix("unbound.conf: auto-trust-anchor-file, no val-permissive-mode"),
        );
    }
}

/// Checks the settings of the MTA's own resolver library.
fn check_resolv_conf(path: &Path, trust_ad: bool, found: &mut Findings) {
    let shown = path.display().to_string();
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        // Then 127.0.0.1 is asked (resolv.conf(5)).
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => {
            found.not_looked_at.push(format!("{shown}: {error}"));
            return;
        }
    };
    let impact = "The MTA believes any nameserver that it has: who can forge the answers of this one can forge DANE.";
    if let Some(remote) = nameservers(&text).iter().find(|ip| !ip.is_loopback()) {
        let problem = format!("nameserver {remote} is not on this host");
        let finding = Finding::new(Severity::Error, "nameserver-remote", shown.clone(), problem, impact);
        found.push(finding.fix(format!("{shown}: nameserver 127.0.0.1, and no other")));
    }
    let mut options = text.lines().filter_map(|line| line.trim().strip_prefix("options"));
    let has = options.any(|options| options.split_whitespace().any(|option| option == "trust-ad"));
    if trust_ad && !has {
        let problem = "`options trust-ad` is missing";
        let impact =
            "The C library removes the AD bit, so that Exim finds no name signed, and mail to domains with DANE waits.";
        let finding = Finding::new(Severity::Error, "no-trust-ad", shown.clone(), problem, impact);
        found.push(finding.fix(format!("echo 'options trust-ad' >> {shown}")));
    }
}

/// Checks that the kernel considers its clock synchronized. In a closed network there is no time source.
pub(crate) async fn check_clock(config: &Config, found: &mut Findings) {
    if config.closed_network != ClosedNetworkSection::default() {
        return;
    }
    let mut asked = Command::new("timedatectl");
    let asked = asked.args(["show", "--property=NTPSynchronized", "--value"]).kill_on_drop(true).output();
    let said = match tokio::time::timeout(TIMEDATECTL_TIMEOUT, asked).await {
        Ok(Ok(output)) => String::from_utf8_lossy(&output.stdout).into_owned(),
        _ => String::new(),
    };
    check_synchronization(&said, found);
}

fn check_synchronization(said: &str, found: &mut Findings) {
    match said.trim() {
        "yes" => found.looked_at.push("the clock: it is synchronised".into()),
        "no" => {
            let impact = "Certificates and signatures are judged by it, and reports cover UTC days.";
            let finding =
                Finding::new(Severity::Warning, "clock-unsynchronised", "clock", "it is not synchronised", impact);
            found.push(finding.fix("timedatectl set-ntp true"));
        }
        _ => found.not_looked_at.push("whether the clock is synchronised: timedatectl does not say".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_opened_to_a_group_that_is_not_root() {
        use std::os::unix::fs::{PermissionsExt, chown};
        let reader = SystemUser::look_up("nobody").unwrap();
        let log = tempfile::NamedTempFile::new().unwrap();
        let command = |gid, mode| {
            chown(log.path(), None, Some(gid)).unwrap();
            std::fs::set_permissions(log.path(), PermissionsExt::from_mode(mode)).unwrap();
            read_access_command(&reader, log.path())
        };
        let shown = log.path().display();
        let opened =
            format!("usermod -aG adm nobody && chgrp adm {shown} && chmod g+r {shown} && systemctl restart tlswarden");
        if rustix::process::geteuid().is_root() {
            assert_eq!(command(0, 0o640), opened);
            assert_eq!(command(4, 0o600), opened);
            assert!(command(4, 0o640).starts_with("usermod -aG $(getent group 4 "));
        } else {
            std::fs::set_permissions(log.path(), PermissionsExt::from_mode(0o600)).unwrap();
            assert_eq!(read_access_command(&reader, log.path()), opened);
        }
    }

    #[test]
    fn a_clock_that_nobody_sets() {
        let mut found = Findings::default();
        check_synchronization("yes\n", &mut found);
        assert!(found.findings.is_empty() && found.looked_at.len() == 1);
        check_synchronization("", &mut found);
        assert!(found.findings.is_empty() && found.not_looked_at.len() == 1);
        check_synchronization("no\n", &mut found);
        assert_eq!(found.findings[0].name, "clock-unsynchronised");
    }

    #[test]
    fn nameservers_that_are_not_here() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let names = |text: &str, trust_ad| {
            std::fs::write(file.path(), text).unwrap();
            let mut found = Findings::default();
            check_resolv_conf(file.path(), trust_ad, &mut found);
            found.findings.iter().map(|f| f.name.as_str()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(names("nameserver 127.0.0.1\noptions edns0 trust-ad\n", true), "");
        assert_eq!(names("nameserver ::1\n", false), "");
        assert_eq!(names("nameserver ::1\n# options trust-ad\n", true), "no-trust-ad");
        assert_eq!(names("nameserver 127.0.0.1\nnameserver 192.0.2.1\n", false), "nameserver-remote");
        let mut found = Findings::default();
        check_resolv_conf(Path::new("/nonexistent/resolv.conf"), false, &mut found);
        assert_eq!(found, Findings::default());
    }
}
