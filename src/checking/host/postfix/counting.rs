//! What counting needs of a Postfix: its log, at a level that shows sessions, or its own TLSRPT results.
//!
//! Takes: a service's view, and our configuration. Gives: findings, each with the line that mends it.
//! Not here: whether the daemon can read the log (`reach`, `daemon`).

use std::path::{Path, PathBuf};

use tlswarden_parsers::Dialect;

use crate::checking::finding::{Finding, Severity};
use crate::checking::host::postconf::PostfixInstance;
use crate::checking::host::postfix::{ServiceCheck, is_same_file};
use crate::config::{Config, InputKind, InputSection, NativeTlsrpt};

impl ServiceCheck<'_> {
    pub(super) fn check_log_level(&self, found: &mut Vec<Finding>) {
        const NAME: &str = "smtp_tls_loglevel";
        let datagrams =
            self.config.postfix.tlsrpt == NativeTlsrpt::Datagrams && self.get("smtp_tlsrpt_enable") == "yes";
        if !reads_postfix_log(self.config) || datagrams {
            return;
        }
        let level = self.get(NAME);
        const MAPS: &str = "smtp_tls_loglevel_maps";
        if matches!(level, "0" | "none" | "") && self.instance.has_parameter(MAPS) && !self.get(MAPS).is_empty() {
            let problem = format!("it is 0 but for the destinations in {}", self.get(MAPS));
            let impact = "Sessions with other destinations are not logged, and cannot be counted.";
            let finding = self.finding(Severity::Warning, "log-level", NAME, problem, impact);
            return found.push(finding.fix(self.set_command(NAME, "1")));
        }
        let (severity, name, problem, impact) = match level {
            // From 3.11 on `tls=` in the delivery line tells that a session succeeded.
            "0" | "none" | "" if self.get("smtp_log_tls_feature_status") == "yes" => (
                Severity::Warning,
                "log-level",
                "it is 0: of TLS the delivery line alone tells".to_owned(),
                "What is wrong with a certificate at level may is not logged, and testing policies show no failures.",
            ),
            "0" | "none" | "" => (
                Severity::Error,
                "log-level",
                "sessions that succeed are not logged".to_owned(),
                "They cannot be counted: reports would show failures alone.",
            ),
            "1" | "routine" | "summary" => return self.check_tlsproxy_log_level(found),
            _ => (
                Severity::Warning,
                "log-level-high",
                format!("it is {level}"),
                "Handshakes fill the log; postconf(5) wants more than 1 in case of trouble alone.",
            ),
        };
        found.push(self.finding(severity, name, NAME, problem, impact).fix(self.set_command(NAME, "1")));
    }

    /// With connection reuse tlsproxy(8) does the handshake, and only its log shows why one failed.
    fn check_tlsproxy_log_level(&self, found: &mut Vec<Finding>) {
        const NAME: &str = "tlsproxy_client_loglevel";
        if self.get("smtp_tls_connection_reuse") == "yes" && self.instance.get(NAME) == "0" {
            let problem = "smtp_tls_connection_reuse is on, and tlsproxy(8) does not log".to_owned();
            let impact = "Why a certificate did not pass is in its lines alone.";
            let (postconf, reload) = (self.instance.postconf_command(), self.instance.reload_command());
            let subject = format!("{}/main.cf", self.instance.folder.display());
            let finding = Finding::new(Severity::Warning, "tlsproxy-log-level", subject, problem, impact);
            found.push(finding.fix(format!("{postconf} -e '{NAME} = $smtp_tls_loglevel' && {reload}")));
        }
    }

    /// Postfix's own TLSRPT results, from 3.10 on: the daemon wants them, or another program takes them.
    pub(super) fn check_native_tlsrpt(&self, found: &mut Vec<Finding>) {
        const NAME: &str = "smtp_tlsrpt_enable";
        let on = self.get(NAME) == "yes";
        match (self.config.postfix.tlsrpt, on) {
            (NativeTlsrpt::Datagrams, _) => self.check_datagrams(on, found),
            (NativeTlsrpt::Log | NativeTlsrpt::Off, true) => {
                let Some(socket) = self.tlsrpt_socket().filter(|socket| socket.exists()) else { return };
                let problem = format!("another program takes Postfix's own counts at {}", socket.display());
                let impact = "Where it reports too, every domain gets two reports of the same sessions.";
                let finding = self.finding(Severity::Warning, "reported-twice", NAME, problem, impact);
                found.push(finding.fix(self.set_command("smtp_tlsrpt_socket_name", "")));
            }
            (NativeTlsrpt::Log | NativeTlsrpt::Off, false) => {}
        }
    }

    fn check_datagrams(&self, on: bool, found: &mut Vec<Finding>) {
        const NAME: &str = "smtp_tlsrpt_socket_name";
        let impact = "With [postfix] tlsrpt = \"datagrams\" its sessions are counted from those.";
        let ours = self.config.inputs.iter().find_map(|input| match input.kind() {
            Some(InputKind::Datagrams(path)) => Some(path),
            _ => None,
        });
        let queue = Path::new(self.instance.get("queue_directory"));
        let way = |path: &Path| path.strip_prefix(queue).unwrap_or(path).display().to_string();
        let theirs = self.tlsrpt_socket();
        if !self.instance.has_parameter(NAME) {
            let problem = format!("Postfix {} sends no TLSRPT datagrams", self.instance.get("mail_version"));
            let finding = self.finding(Severity::Error, "no-datagrams", NAME, problem, impact);
            found.push(finding.fix("tlswarden.toml: [postfix] tlsrpt = \"log\", and an [[input]] with its log"));
        } else if !on {
            let problem = "Postfix does not send TLSRPT datagrams".to_owned();
            let finding = self.finding(Severity::Error, "no-datagrams", "smtp_tlsrpt_enable", problem, impact);
            found.push(finding.fix(self.set_command("smtp_tlsrpt_enable", "yes")));
        } else if let Some(ours) = ours
            && !theirs.as_ref().is_some_and(|theirs| is_same_file(ours, theirs))
        {
            let theirs = theirs.map_or_else(|| "nowhere".to_owned(), |path| path.display().to_string());
            let problem =
                format!("Postfix sends its datagrams to {theirs}; the daemon takes them at {}", ours.display());
            found.push(
                self.finding(Severity::Error, "datagrams-elsewhere", NAME, problem, impact)
                    .fix(self.set_command(NAME, &way(ours))),
            );
        }
    }

    /// Where it sends its datagrams, from its own root folder.
    fn tlsrpt_socket(&self) -> Option<PathBuf> {
        let queue = Path::new(self.instance.get("queue_directory"));
        match self.get("smtp_tlsrpt_socket_name") {
            "" => None,
            path if self.service.chroot => Some(queue.join(path.trim_start_matches('/'))),
            path => Some(queue.join(path)),
        }
    }
}

/// The logs of Postfix that are followed.
fn postfix_logs(config: &Config) -> impl Iterator<Item = PathBuf> {
    config.inputs.iter().filter(|input| input.mta == Dialect::Postfix).flat_map(InputSection::log_files)
}

/// Whether a log of Postfix is read; datagrams do not count as one.
fn reads_postfix_log(config: &Config) -> bool {
    let is_log = |input: &InputSection| !matches!(input.kind(), None | Some(InputKind::Datagrams(_)));
    config.inputs.iter().any(|input| input.mta == Dialect::Postfix && is_log(input))
}

/// Where Postfix writes its own log file, an input must follow it, and the daemon must be able to read the next one.
pub(super) fn check_log_file(instance: &PostfixInstance, config: &Config, found: &mut Vec<Finding>) {
    const PERMISSIONS: &str = "maillog_file_permissions";
    let file = instance.get("maillog_file");
    let followed = || postfix_logs(config).any(|log| is_same_file(&log, Path::new(file)));
    if file.is_empty() || file == "/dev/stdout" || instance.smtp_clients.is_empty() {
        return;
    }
    let subject = format!("{}/main.cf", instance.folder.display());
    if !followed() {
        let problem = format!("Postfix writes its log to {file}, which no [[input]] follows");
        let impact = "Its sessions are not counted.";
        let finding = Finding::new(Severity::Error, "log-elsewhere", subject, problem, impact);
        found.push(finding.fix(format!("tlswarden.toml: [[input]] file = \"{file}\"")));
    } else if instance.has_parameter(PERMISSIONS) && is_private(instance.get(PERMISSIONS)) {
        let problem = format!("Postfix makes its log file {file} readable for root alone ({PERMISSIONS} = 0600)");
        let impact = "After the next rotation the daemon cannot read it, and no session is counted.";
        let finding = Finding::new(Severity::Warning, "log-private", subject, problem, impact);
        let (postconf, reload) = (instance.postconf_command(), instance.reload_command());
        found.push(
            finding
                .fix(format!("{postconf} -e '{PERMISSIONS} = 0644' && {reload}"))
                .fix(format!("chmod 644 {file}   # the file that is there; every user of the host can then read it")),
        );
    }
}

/// Whether an octal mode lets the owner alone read.
fn is_private(mode: &str) -> bool {
    u32::from_str_radix(mode, 8).is_ok_and(|mode| mode & 0o044 == 0)
}
