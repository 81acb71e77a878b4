//! What is found out about this host where the configuration says nothing: Postfix's settings, its log, Exim.
//!
//! Takes: a configuration. Gives: the same, complete, and what was found, one line each for the log.
//! Postfix is asked by `postconf`, as the daemon's own user: it reads what everybody may read.
//! Limits: [`PATIENCE`] and [`MAX_ANSWER`] for `postconf`.
//! When it fails: the defaults stand, and that is said.
//! Not here: what is wrong with what was found (`doctor`).

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tlswarden_parsers::Dialect;

use crate::config::{Config, InputSection, Journal, Level, Listen, PostfixSection, SocketmapSection};

/// How long `postconf` may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// How much of its answer is read, in octets.
const MAX_ANSWER: u64 = 64 * 1024;

/// Where Debian has Postfix's command, Exim and the programs that write `/var/log/mail.log`.
const POSTCONF: &str = "/usr/sbin/postconf";
const EXIM: [&str; 2] = ["/usr/sbin/exim4", "/usr/sbin/exim"];
const SYSLOG: [&str; 3] = ["/usr/sbin/rsyslogd", "/usr/sbin/syslog-ng", "/usr/sbin/syslogd"];
const MAIL_LOG: &str = "/var/log/mail.log";
const JOURNALCTL: &str = "/usr/bin/journalctl";
const EXIM_LOG: &str = "/var/log/exim4/mainlog";

/// The folder of the default socketmap address; the package makes it where Postfix is.
const SOCKET_FOLDER: &str = "/var/spool/postfix/tlswarden";

/// Where Exim asks, where it is here and `[readsocket]` names nothing.
const EXIM_SOCKET: &str = "/run/tlswarden/exim";

/// What is asked of `postconf`.
const PARAMETERS: [&str; 6] = [
    "mail_version",
    "smtp_tls_security_level",
    "smtp_use_tls",
    "smtp_enforce_tls",
    "smtp_dns_support_level",
    "maillog_file",
];

/// Completes a configuration with what this host shows, and says what that is: `subject: found: what`. A log that this
/// process cannot read is left out: the daemon runs without it.
pub fn complete(config: &mut Config) -> Vec<String> {
    complete_with(config, true)
}

/// The same for who does not read the log: whether the daemon can is for others to say.
pub fn complete_unread(config: &mut Config) -> Vec<String> {
    complete_with(config, false)
}

fn complete_with(config: &mut Config, reads: bool) -> Vec<String> {
    let section = &config.postfix;
    let asks = config.inputs.is_empty() || section.version.is_none() || section.default_level.is_none();
    let asks = asks || section.dnssec.is_none() || config.socketmap == SocketmapSection::default();
    if asks { Host::here(reads).complete(config) } else { Vec::new() }
}

/// What a host shows.
#[derive(Clone, Debug, Default)]
struct Host {
    /// What `postconf` said, or why it said nothing.
    postconf: Option<Result<String, String>>,
    /// Whether Exim is installed.
    exim: bool,
    /// Whether a syslog daemon is installed.
    syslog: bool,
    /// Whether the folder of the default socketmap address is missing.
    no_socket_folder: bool,
    /// Whether this process is the one that reads the log.
    reads: bool,
}

/// Where an MTA's log is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Log {
    File(PathBuf),
    Exim(PathBuf),
    Journal,
}

impl Host {
    fn here(reads: bool) -> Host {
        let any = |paths: &[&str]| paths.iter().any(|path| Path::new(path).exists());
        Host {
            postconf: Path::new(POSTCONF).exists().then(|| postconf(Path::new(POSTCONF))),
            exim: any(&EXIM),
            syslog: any(&SYSLOG),
            no_socket_folder: !Path::new(SOCKET_FOLDER).exists(),
            reads,
        }
    }

    fn complete(&self, config: &mut Config) -> Vec<String> {
        let mut lines = Vec::new();
        self.complete_postfix(&mut config.postfix, &mut lines);
        if config.inputs.is_empty() {
            self.complete_inputs(config, &mut lines);
        }
        if self.no_socket_folder && config.socketmap == SocketmapSection::default() {
            config.socketmap.listen.clear();
            lines.push(format!("socketmap: not listened on: {SOCKET_FOLDER} is missing; it is made where Postfix is"));
        }
        if self.exim && config.readsocket.listen.is_empty() {
            config.readsocket.listen.push(Listen::Unix(EXIM_SOCKET.into()));
            lines.push(format!("readsocket: found: Exim is installed; it may ask at unix:{EXIM_SOCKET}"));
        }
        lines
    }

    fn complete_postfix(&self, section: &mut PostfixSection, lines: &mut Vec<String>) {
        if section.version.is_none() || section.default_level.is_none() || section.dnssec.is_none() {
            match &self.postconf {
                Some(Ok(text)) => fill(section, text, lines),
                Some(Err(problem)) => lines.push(format!(
                    "postfix: not found out: {problem}; what [postfix] does not say is taken to be its default"
                )),
                None => {}
            }
        }
        // From here on it is complete: what checks and what answers see the same.
        let (version, level, dnssec) = (section.version(), section.default_level(), section.dnssec());
        (section.version, section.default_level, section.dnssec) = (Some(version), Some(level), Some(dnssec));
    }

    fn complete_inputs(&self, config: &mut Config, lines: &mut Vec<String>) {
        let (log, why) = self.log();
        let shown = match &log {
            Log::File(file) | Log::Exim(file) => file.display().to_string(),
            Log::Journal => "the journal".to_owned(),
        };
        let unreadable = match &log {
            // A log may be missing as yet.
            Log::File(file) | Log::Exim(file) => {
                File::open(file).is_err_and(|e| e.kind() != std::io::ErrorKind::NotFound)
            }
            Log::Journal => !Path::new(JOURNALCTL).exists(),
        };
        if self.reads && unreadable {
            lines.push(format!(
                "input: {shown}: cannot be read by this user ({why}); nothing is counted until it can, or [[input]] names \
                 another"
            ));
        } else {
            lines.push(format!("input: found: {shown} ({why})"));
            config.inputs.push(section(&log));
        }
    }

    /// The log of the MTA that is here, and why this one.
    fn log(&self) -> (Log, &'static str) {
        let set =
            self.postconf.as_ref().and_then(|said| said.as_ref().ok()).and_then(|text| value(text, "maillog_file"));
        match set {
            Some(file) if file.starts_with('/') && !file.starts_with("/dev/") => {
                (Log::File(file.into()), "Postfix's maillog_file")
            }
            // Exim writes its log itself.
            _ if self.exim && self.postconf.is_none() => (Log::Exim(EXIM_LOG.into()), "Exim's log"),
            _ if self.syslog => (Log::File(MAIL_LOG.into()), "a syslog daemon is installed"),
            _ => (Log::Journal, "no syslog daemon is installed"),
        }
    }
}

/// The input that follows a log.
fn section(log: &Log) -> InputSection {
    match log {
        Log::File(file) => InputSection::file(file),
        Log::Exim(file) => InputSection { mta: Dialect::Exim, ..InputSection::file(file) },
        Log::Journal => InputSection { journal: Some(Journal::Host(true)), ..InputSection::default() },
    }
}

/// What Postfix says of itself, where the section says nothing.
fn fill(section: &mut PostfixSection, text: &str, lines: &mut Vec<String>) {
    let mut found = Vec::new();
    if section.version.is_none()
        && let Some(version) = value(text, "mail_version").and_then(|version| version.to_owned().try_into().ok())
    {
        section.version = Some(version);
        found.push(format!("version {}", String::from(version)));
    }
    if section.default_level.is_none() {
        match level(text) {
            Some((level, name)) => {
                section.default_level = Some(level);
                found.push(format!("smtp_tls_security_level {name}"));
            }
            None => lines.push(
                "postfix: smtp_tls_security_level: not one that a host can have without policies; taken to be may"
                    .into(),
            ),
        }
    }
    if section.dnssec.is_none()
        && let Some(support) = value(text, "smtp_dns_support_level")
    {
        section.dnssec = Some(support == "dnssec");
        let support = if support.is_empty() { "empty" } else { support };
        found.push(format!("smtp_dns_support_level {support}"));
    }
    if !found.is_empty() {
        lines.push(format!("postfix: found: {}", found.join(", ")));
    }
}

/// The level of a destination without a policy, and its name (postconf(5): an empty one obeys older parameters).
fn level(text: &str) -> Option<(Level, &str)> {
    let yes = |name| value(text, name) == Some("yes");
    let named = value(text, "smtp_tls_security_level")?;
    let name = match named {
        "" if yes("smtp_enforce_tls") => "verify",
        "" if yes("smtp_use_tls") => "may",
        "" => "none",
        other => other,
    };
    let level = match name {
        "none" => Level::None,
        "may" => Level::May,
        "encrypt" => Level::Encrypt,
        "dane" => Level::Dane,
        "dane-only" => Level::DaneOnly,
        "verify" => Level::Verify,
        "secure" => Level::Secure,
        _ => return None,
    };
    Some((level, name))
}

/// A parameter's value in what `postconf` printed.
fn value<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.split_once('=').filter(|(n, _)| n.trim() == name)).map(|(_, value)| value.trim())
}

/// What `postconf` says of the default instance, macros expanded.
fn postconf(program: &Path) -> Result<String, String> {
    let shown = program.display();
    let failed = |e: std::io::Error| format!("{shown}: {e}");
    let mut child = Command::new(program)
        .arg("-x")
        .args(PARAMETERS)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let begin = Instant::now();
    // Its answer is far smaller than a pipe.
    let status = loop {
        match child.try_wait().map_err(failed)? {
            Some(status) => break status,
            None if begin.elapsed() > PATIENCE => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("{shown}: no answer within {} s", PATIENCE.as_secs()));
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    let mut text = String::new();
    let mut errors = String::new();
    if let Some(out) = child.stdout.take() {
        out.take(MAX_ANSWER).read_to_string(&mut text).map_err(failed)?;
    }
    if let Some(out) = child.stderr.take() {
        let _ = out.take(MAX_ANSWER).read_to_string(&mut errors);
    }
    if status.success() && !text.is_empty() {
        Ok(text)
    } else {
        let first = errors.lines().next().unwrap_or_default();
        Err(format!(
            "{shown}: {}",
            if first.is_empty() { status.to_string() } else { first.escape_debug().to_string() }
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PostfixVersion;

    const POSTFIX: &str = "mail_version = 3.10.13\nsmtp_tls_security_level = dane\nsmtp_use_tls = no\n\
        smtp_enforce_tls = no\nsmtp_dns_support_level = dnssec\nmaillog_file =\n";

    fn host(postconf: &str) -> Host {
        Host { postconf: Some(Ok(postconf.to_owned())), syslog: true, ..Host::default() }
    }

    #[test]
    fn what_is_not_said_is_found() {
        let mut config = Config::default();
        let lines = host(POSTFIX).complete(&mut config);
        let postfix = &config.postfix;
        assert_eq!(postfix.version, Some(PostfixVersion { major: 3, minor: 10 }));
        assert_eq!((postfix.default_level, postfix.dnssec), (Some(Level::Dane), Some(true)));
        assert_eq!(config.inputs, [InputSection::file(MAIL_LOG)]);
        assert_eq!(
            lines,
            [
                "postfix: found: version 3.10, smtp_tls_security_level dane, smtp_dns_support_level dnssec",
                "input: found: /var/log/mail.log (a syslog daemon is installed)",
            ]
        );
        // What is complete stays as it is.
        let complete = config.clone();
        assert!(host(&POSTFIX.replace("dane", "none")).complete(&mut config).is_empty());
        assert_eq!(config, complete);
    }

    #[test]
    fn what_is_said_stands() {
        let mut config = Config::default();
        config.postfix.default_level = Some(Level::Secure);
        config.inputs = vec![InputSection::file("/other.log")];
        let lines = host(POSTFIX).complete(&mut config);
        assert_eq!(config.postfix.default_level, Some(Level::Secure));
        assert_eq!(config.inputs.len(), 1);
        assert_eq!(lines, ["postfix: found: version 3.10, smtp_dns_support_level dnssec"]);
    }

    #[test]
    fn an_empty_level_obeys_the_older_parameters() {
        for (from, to, want) in [
            ("dane\n", "\n", Some((Level::None, "none"))),
            ("dane\nsmtp_use_tls = no", "\nsmtp_use_tls = yes", Some((Level::May, "may"))),
            ("dane\n", "fingerprint\n", None),
        ] {
            assert_eq!(level(&POSTFIX.replacen(from, to, 1)), want);
        }
        assert_eq!(
            level("smtp_tls_security_level =\nsmtp_use_tls = yes\nsmtp_enforce_tls = yes\n"),
            Some((Level::Verify, "verify"))
        );
    }

    #[test]
    fn logs_are_found_by_who_writes_them() {
        let postfix = |text: &str| Some(Ok(POSTFIX.replace("maillog_file =", text)));
        let file = |path: &str| Log::File(path.into());
        for (postconf, exim, syslog, want) in [
            (postfix("maillog_file = /var/log/postfix.log"), false, true, file("/var/log/postfix.log")),
            (postfix("maillog_file = /dev/stdout"), false, false, Log::Journal),
            (postfix("maillog_file ="), false, true, file(MAIL_LOG)),
            (postfix("maillog_file ="), false, false, Log::Journal),
            (None, true, true, Log::Exim(EXIM_LOG.into())),
            (None, false, true, file(MAIL_LOG)),
            (None, false, false, Log::Journal),
        ] {
            let host = Host { postconf, exim, syslog, ..Host::default() };
            assert_eq!(host.log().0, want, "{host:?}");
        }
    }

    #[test]
    fn without_postfix_the_defaults_stand_and_its_socket_is_left_out() {
        let host = Host { exim: true, no_socket_folder: true, ..Host::default() };
        let mut config = Config::default();
        let lines = host.complete(&mut config).join("\n");
        assert_eq!(config.postfix.version, Some(PostfixVersion { major: 3, minor: 7 }));
        assert!(config.socketmap.listen.is_empty(), "{lines}");
        assert_eq!(config.readsocket.listen, [Listen::Unix(EXIM_SOCKET.into())]);
    }

    #[test]
    fn a_postconf_that_hangs_is_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("postconf");
        // Written by another process: a file that this one has open for writing may not be run.
        let write = format!("printf '#!/bin/sh\\nexec sleep 600\\n' >{0} && chmod 755 {0}", program.display());
        assert!(Command::new("sh").args(["-c", &write]).status().unwrap().success());
        let begin = Instant::now();
        assert_eq!(postconf(&program).unwrap_err(), format!("{}: no answer within 5 s", program.display()));
        assert!(begin.elapsed() < 3 * PATIENCE);
    }

    #[test]
    fn a_postconf_that_fails_is_said() {
        let problem = postconf(Path::new("/bin/false")).unwrap_err();
        assert!(problem.starts_with("/bin/false: exit status: 1"), "{problem}");
        let host = Host { postconf: Some(Err(problem)), ..Host::default() };
        let lines = host.complete(&mut Config::default());
        assert!(lines[0].starts_with("postfix: not found out: /bin/false"), "{lines:?}");
    }
}
