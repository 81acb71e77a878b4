//! What counting needs of a Postfix: its log, at a level that shows sessions, or its own TLSRPT results.
//!
//! Takes: a service's view, and our configuration. Gives: findings, each with the line that mends it.
//! Not here: whether the daemon can read the log (`reach`, `daemon`).

use std::path::{Path, PathBuf};

use tlswarden_parsers::Dialect;

use crate::checking::finding::{Finding, Weight};
use crate::checking::host::postconf::Instance;
use crate::checking::host::postfix::{View, same_file};
use crate::config::{Config, InputKind, InputSection, NativeTlsrpt};

impl View<'_> {
    pub(super) fn log_level(&self, found: &mut Vec<Finding>) {
        const NAME: &str = "smtp_tls_loglevel";
        let datagrams =
            self.config.postfix.tlsrpt == NativeTlsrpt::Datagrams && self.get("smtp_tlsrpt_enable") == "yes";
        if !reads_a_log(self.config) || datagrams {
            return;
        }
        let level = self.get(NAME);
        let (weight, name, what, why) = match level {
            // From 3.11 on `tls=` in the delivery line tells that a session succeeded.
            "0" | "none" | "" if self.get("smtp_log_tls_feature_status") == "yes" => (
                Weight::Warning,
                "log-level",
                "it is 0: of TLS the delivery line alone tells".to_owned(),
                "What is wrong with a certificate at level may is not logged, and testing policies show no failures.",
            ),
            "0" | "none" | "" => (
                Weight::Error,
                "log-level",
                "sessions that succeed are not logged".to_owned(),
                "They cannot be counted: reports would show failures alone.",
            ),
            "1" | "routine" | "summary" => return self.proxy_log_level(found),
            _ => (
                Weight::Warning,
                "log-level-high",
                format!("it is {level}"),
                "Handshakes fill the log; postconf(5) wants more than 1 in case of trouble alone.",
            ),
        };
        found.push(self.find(weight, name, NAME, what, why).fix(self.set(NAME, "1")));
    }

    /// With connection reuse tlsproxy(8) shakes hands, and alone says why one failed.
    fn proxy_log_level(&self, found: &mut Vec<Finding>) {
        const NAME: &str = "tlsproxy_client_loglevel";
        if self.get("smtp_tls_connection_reuse") == "yes" && self.instance.get(NAME) == "0" {
            let what = "smtp_tls_connection_reuse is on, and tlsproxy(8) does not log".to_owned();
            let why = "Why a certificate did not pass is in its lines alone.";
            let (postconf, reload) = (self.instance.postconf(), self.instance.reload());
            let subject = format!("{}/main.cf", self.instance.folder.display());
            let finding = Finding::new(Weight::Warning, "tlsproxy-log-level", subject, what, why);
            found.push(finding.fix(format!("{postconf} -e '{NAME} = $smtp_tls_loglevel' && {reload}")));
        }
    }

    /// Postfix's own TLSRPT results, from 3.10 on: they are wanted, or another program takes them.
    pub(super) fn native_reports(&self, found: &mut Vec<Finding>) {
        const NAME: &str = "smtp_tlsrpt_enable";
        let on = self.get(NAME) == "yes";
        match (self.config.postfix.tlsrpt, on) {
            (NativeTlsrpt::Datagrams, _) => self.datagrams(on, found),
            (NativeTlsrpt::Log | NativeTlsrpt::Off, true) => {
                let Some(socket) = self.tlsrpt_socket().filter(|socket| socket.exists()) else { return };
                let what = format!("another program takes Postfix's own counts at {}", socket.display());
                let why = "Where it reports too, every domain gets two reports of the same sessions.";
                let finding = self.find(Weight::Warning, "reported-twice", NAME, what, why);
                found.push(finding.fix(self.set("smtp_tlsrpt_socket_name", "")));
            }
            (NativeTlsrpt::Log | NativeTlsrpt::Off, false) => {}
        }
    }

    fn datagrams(&self, on: bool, found: &mut Vec<Finding>) {
        const NAME: &str = "smtp_tlsrpt_socket_name";
        let why = "With [postfix] tlsrpt = \"datagrams\" its sessions are counted from those.";
        let ours = self.config.inputs.iter().find_map(|input| match input.kind() {
            Some(InputKind::Datagrams(path)) => Some(path),
            _ => None,
        });
        let queue = Path::new(self.instance.get("queue_directory"));
        let way = |path: &Path| path.strip_prefix(queue).unwrap_or(path).display().to_string();
        let theirs = self.tlsrpt_socket();
        if !self.instance.knows(NAME) {
            let what = format!("Postfix {} sends no TLSRPT datagrams", self.instance.get("mail_version"));
            let finding = self.find(Weight::Error, "no-datagrams", NAME, what, why);
            found.push(finding.fix("tlswarden.toml: [postfix] tlsrpt = \"log\", and an [[input]] with its log"));
        } else if !on {
            let what = "Postfix does not send TLSRPT datagrams".to_owned();
            let finding = self.find(Weight::Error, "no-datagrams", "smtp_tlsrpt_enable", what, why);
            found.push(finding.fix(self.set("smtp_tlsrpt_enable", "yes")));
        } else if let Some(ours) = ours
            && !theirs.as_ref().is_some_and(|theirs| same_file(ours, theirs))
        {
            let theirs = theirs.map_or_else(|| "nowhere".to_owned(), |path| path.display().to_string());
            let what = format!("Postfix sends its datagrams to {theirs}; the daemon takes them at {}", ours.display());
            found
                .push(self.find(Weight::Error, "datagrams-elsewhere", NAME, what, why).fix(self.set(NAME, &way(ours))));
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

/// Whether a log of Postfix is read; its datagrams are none.
fn reads_a_log(config: &Config) -> bool {
    let is_log = |input: &InputSection| !matches!(input.kind(), None | Some(InputKind::Datagrams(_)));
    config.inputs.iter().any(|input| input.mta == Dialect::Postfix && is_log(input))
}

/// Where Postfix writes its log itself, that is the file to follow.
pub(super) fn log_file(instance: &Instance, config: &Config, found: &mut Vec<Finding>) {
    let file = instance.get("maillog_file");
    let followed = || postfix_logs(config).any(|log| same_file(&log, Path::new(file)));
    if file.is_empty() || file == "/dev/stdout" || instance.clients.is_empty() || followed() {
        return;
    }
    let subject = format!("{}/main.cf", instance.folder.display());
    let what = format!("Postfix writes its log to {file}, which no [[input]] follows");
    let why = "Its sessions are not counted.";
    let finding = Finding::new(Weight::Error, "log-elsewhere", subject, what, why);
    found.push(finding.fix(format!("tlswarden.toml: [[input]] file = \"{file}\"")));
}
