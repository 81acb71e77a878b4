//! What is found out about this host where the configuration says nothing: Postfix's settings, its log, Exim.
//!
//! Takes: a configuration. Gives: the same, complete, and what was found, one line each for the log.
//! Postfix is asked by `postconf`, as the daemon's own user: it reads what everybody may read.
//! Limits: [`POSTCONF_TIMEOUT`] and [`MAX_POSTCONF_OUTPUT`] for `postconf`.
//! When it fails: the defaults stand, and that is said.
//! Not here: what is wrong with what was found (`doctor`).

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tlswarden_parsers::Dialect;

use crate::config::postconf_output::parameter;
use crate::config::postfix_relays::{self, PostfixRelays};
use crate::config::sending_address::{BoundAddresses, bound_addresses};
use crate::config::{
    Config, InputSection, InsecureMxPolicy, JournalLocation, ListenAddress, PostfixLevel, PostfixSection,
    SocketmapSection, sending_address,
};

/// How long `postconf` may take.
const POSTCONF_TIMEOUT: Duration = Duration::from_secs(5);

/// How much of its output is read, in octets.
const MAX_POSTCONF_OUTPUT: u64 = 64 * 1024;

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

/// How many relay hosts a line names.
const MAX_SHOWN_RELAYS: usize = 5;

/// What is asked of `postconf`.
const PARAMETERS: [&str; 13] = [
    "mail_version",
    "smtp_tls_security_level",
    "smtp_use_tls",
    "smtp_enforce_tls",
    "smtp_tls_enforce_peername",
    "smtp_dns_support_level",
    "smtp_tls_dane_insecure_mx_policy",
    "maillog_file",
    sending_address::PARAMETERS[0],
    sending_address::PARAMETERS[1],
    sending_address::PARAMETERS[2],
    "smtp_tls_policy_maps",
    "multi_instance_directories",
];

/// The parameters whose values are taken from Postfix: after a change the daemon must be reloaded.
const DETECTED: [&str; 6] = [
    "smtp_tls_security_level",
    "smtp_use_tls",
    "smtp_enforce_tls",
    "smtp_dns_support_level",
    "smtp_tls_dane_insecure_mx_policy",
    "maillog_file",
];

/// The most further instances of Postfix that are looked at.
const MAX_INSTANCES: usize = 16;

/// Whether the daemon takes the value of a parameter from the default instance of Postfix, where the configuration does not
/// set it.
pub(crate) fn is_detected(parameter: &str) -> bool {
    DETECTED.contains(&parameter)
}

/// Completes a configuration with what this host shows, and says what that is: `subject: found: what`. A log that this
/// process cannot read is left out: the daemon runs without it.
pub(crate) fn complete(config: &mut Config) -> Vec<String> {
    complete_with(config, true)
}

/// The same for a process that does not read the log: whether the daemon can read it is not checked.
pub(crate) fn complete_without_log_access(config: &mut Config) -> Vec<String> {
    complete_with(config, false)
}

fn complete_with(config: &mut Config, reads: bool) -> Vec<String> {
    let section = &config.postfix;
    let asks = config.inputs.is_empty() || section.version.is_none() || section.default_level.is_none();
    let asks = asks || section.dnssec.is_none() || section.dane_insecure_mx_policy.is_none();
    let asks = asks || config.socketmap == SocketmapSection::default();
    let wants_addresses = config.count.sending_addresses.is_empty();
    if !asks && !wants_addresses && config.postfix.relays.is_some() {
        return Vec::new();
    }
    let host = DetectedHost::detect(reads);
    let mut lines = host.problems.clone();
    if asks {
        lines.extend(host.complete(config));
    }
    host.complete_relays(&mut config.postfix, &mut lines);
    if wants_addresses && config.inputs.iter().any(|input| input.mta == Dialect::Postfix) {
        host.complete_sending_addresses(config, &mut lines);
    }
    lines
}

/// What is installed on the host.
#[derive(Clone, Debug, Default)]
struct DetectedHost {
    /// What `postconf` said, or why it said nothing.
    postconf: Option<Result<String, String>>,
    /// The instances that send the mail for which the daemon is asked.
    senders: Vec<Instance>,
    /// The instances that could not be asked, one line each.
    problems: Vec<String>,
    /// Whether Exim is installed.
    exim: bool,
    /// Whether a syslog daemon is installed.
    syslog: bool,
    /// Whether the folder of the default socketmap address is missing.
    no_socket_folder: bool,
    /// Whether this process is the one that reads the log.
    reads_log: bool,
}

/// An instance of Postfix.
#[derive(Clone, Debug, Default)]
struct Instance {
    /// The output of `postconf` for main.cf.
    main: String,
    /// That of `postconf -P` for the services of master.cf; empty where it fails.
    services: String,
}

/// What the instances of Postfix on this host show.
#[derive(Debug)]
struct Instances {
    /// The settings that the daemon takes.
    settings: String,
    senders: Vec<Instance>,
    problems: Vec<String>,
}

/// The log of an MTA.
#[derive(Clone, Debug, PartialEq, Eq)]
enum MtaLog {
    File(PathBuf),
    Exim(PathBuf),
    Journal,
}

impl DetectedHost {
    fn detect(reads: bool) -> DetectedHost {
        let any = |paths: &[&str]| paths.iter().any(|path| Path::new(path).exists());
        let program = Path::new(POSTCONF);
        let found = program.exists().then(|| find_instances(program));
        let (postconf, senders, problems) = match found {
            Some(Ok(found)) => (Some(Ok(found.settings)), found.senders, found.problems),
            Some(Err(problem)) => (Some(Err(problem)), Vec::new(), Vec::new()),
            None => (None, Vec::new(), Vec::new()),
        };
        DetectedHost {
            postconf,
            senders,
            problems,
            exim: any(&EXIM),
            syslog: any(&SYSLOG),
            no_socket_folder: !Path::new(SOCKET_FOLDER).exists(),
            reads_log: reads,
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
            config.readsocket.listen.push(ListenAddress::Unix(EXIM_SOCKET.into()));
            lines.push(format!("readsocket: found: Exim is installed; it may ask at unix:{EXIM_SOCKET}"));
        }
        lines
    }

    fn complete_postfix(&self, section: &mut PostfixSection, lines: &mut Vec<String>) {
        self.complete_relays(section, lines);
        let complete = section.version.is_some() && section.default_level.is_some();
        if !complete || section.dnssec.is_none() || section.dane_insecure_mx_policy.is_none() {
            match &self.postconf {
                Some(Ok(text)) => fill_postfix_section(section, text, lines),
                Some(Err(problem)) => lines.push(format!(
                    "postfix: not found out: {problem}; what [postfix] does not say is taken to be its default"
                )),
                None => {}
            }
        }
        // From here on it is complete: what checks and what answers see the same.
        section.dane_insecure_mx_policy = Some(section.dane_insecure_mx_policy());
        let (version, level, dnssec) = (section.version(), section.default_level(), section.dnssec());
        (section.version, section.default_level, section.dnssec) = (Some(version), Some(level), Some(dnssec));
    }

    /// The addresses that Postfix is bound to; without one, the kernel chooses for each destination.
    fn complete_sending_addresses(&self, config: &mut Config, lines: &mut Vec<String>) {
        let of_instances = self.senders.iter().map(|instance| bound_addresses(&instance.main, &instance.services));
        let Some(found) = of_instances.reduce(BoundAddresses::common) else { return };
        if !found.addresses.is_empty() {
            let shown: Vec<String> = found.addresses.iter().map(ToString::to_string).collect();
            lines.push(format!(
                "postfix: found: it sends from {} (smtp_bind_address, inet_interfaces)",
                shown.join(", ")
            ));
        }
        for (_, name) in [(found.vary.v4, "smtp_bind_address"), (found.vary.v6, "smtp_bind_address6")]
            .into_iter()
            .filter(|(varies, _)| *varies)
        {
            lines.push(format!(
                "postfix: {name}: not one address for all services and instances; reports name no address of that family: \
                 set [count] sending_addresses"
            ));
        }
        (config.count.sending_addresses, config.count.sending_addresses_vary) = (found.addresses, found.vary);
    }

    /// Fills in the next hops that Postfix uses beside the recipient domains' own hosts.
    fn complete_relays(&self, section: &mut PostfixSection, lines: &mut Vec<String>) {
        let None = section.relays else { return };
        let text = self.postconf.as_ref().and_then(|said| said.as_ref().ok()).map_or("", String::as_str);
        let PostfixRelays { relayhost, others, relays_all, problems } = PostfixRelays::read(text);
        section.relayhost = section.relayhost.take().or(relayhost);
        section.relays_all = relays_all;
        lines.extend(problems);
        if let Some(relayhost) = &section.relayhost {
            lines.push(format!("postfix: found: mail is relayed by {relayhost}"));
        }
        if !others.is_empty() {
            let shown = others.iter().take(MAX_SHOWN_RELAYS).map(String::as_str).collect::<Vec<_>>().join(", ");
            let more = others.len().saturating_sub(MAX_SHOWN_RELAYS);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            lines.push(format!("postfix: found: some mail is relayed by {shown}{more}"));
        }
        section.relays = Some(others);
    }

    fn complete_inputs(&self, config: &mut Config, lines: &mut Vec<String>) {
        let (log, why) = self.find_log();
        let shown = match &log {
            MtaLog::File(file) | MtaLog::Exim(file) => file.display().to_string(),
            MtaLog::Journal => "the journal".to_owned(),
        };
        let unreadable = match &log {
            // A log may be missing as yet.
            MtaLog::File(file) | MtaLog::Exim(file) => {
                File::open(file).is_err_and(|e| e.kind() != std::io::ErrorKind::NotFound)
            }
            MtaLog::Journal => !Path::new(JOURNALCTL).exists(),
        };
        if self.reads_log && unreadable {
            lines.push(format!(
                "input: {shown}: cannot be read by this user ({why}); nothing is counted until it can, or [[input]] names \
                 another"
            ));
        } else {
            lines.push(format!("input: found: {shown} ({why})"));
            config.inputs.push(input_section(&log));
        }
    }

    /// The log of the MTA on this host, and why this one.
    fn find_log(&self) -> (MtaLog, &'static str) {
        let set =
            self.postconf.as_ref().and_then(|said| said.as_ref().ok()).and_then(|text| parameter(text, "maillog_file"));
        match set {
            Some(file) if file.starts_with('/') && !file.starts_with("/dev/") => {
                (MtaLog::File(file.into()), "Postfix's maillog_file")
            }
            // Exim writes its log itself.
            _ if self.exim && self.postconf.is_none() => (MtaLog::Exim(EXIM_LOG.into()), "Exim's log"),
            _ if self.syslog => (MtaLog::File(MAIL_LOG.into()), "a syslog daemon is installed"),
            _ => (MtaLog::Journal, "no syslog daemon is installed"),
        }
    }
}

/// Asks the default instance of Postfix, and those that it names.
fn find_instances(program: &Path) -> Result<Instances, String> {
    let ask = |folder: Option<&str>, arguments: &[&str]| {
        let folder: Vec<&str> = folder.into_iter().flat_map(|folder| ["-c", folder]).collect();
        run_postconf(program, &[&folder[..], arguments].concat())
    };
    let settings = [&["-x"], &PARAMETERS[..], &postfix_relays::PARAMETERS[..]].concat();
    let mut asked = vec![(None, ask(None, &settings)?)];
    let folders = parameter(&asked[0].1, "multi_instance_directories").unwrap_or_default().to_owned();
    let mut problems = Vec::new();
    for folder in folders.split([' ', ',', '\t']).filter(|folder| !folder.is_empty()).take(MAX_INSTANCES) {
        match ask(Some(folder), &settings) {
            Ok(text) => asked.push((Some(folder), text)),
            Err(problem) => problems.push(format!(
                "postfix: {folder}: not asked: {problem}; nothing is known of the mail of this instance"
            )),
        }
    }
    let texts: Vec<&str> = asked.iter().map(|(_, text)| text.as_str()).collect();
    let asking = instances_that_ask(&texts);
    let settings = common_settings(&texts, &asking);
    let senders = if asking.is_empty() { vec![0] } else { asking };
    let senders = senders.into_iter().map(|number| {
        let (folder, main) = &asked[number];
        let services = ask(*folder, &["-P", "-x"]).unwrap_or_default();
        Instance { main: main.clone(), services }
    });
    Ok(Instances { senders: senders.collect(), settings, problems })
}

/// The numbers of the instances that ask a socketmap server for policies; the default instance is the first.
fn instances_that_ask(settings: &[&str]) -> Vec<usize> {
    let asks = |text: &str| parameter(text, "smtp_tls_policy_maps").is_some_and(|maps| maps.contains("socketmap:"));
    (0..settings.len()).filter(|number| asks(settings[*number])).collect()
}

/// The settings of the first instance that asks, which is not the default one beside a null client; of the default one if
/// none asks. DNSSEC is on where all that ask have it: an answer `dane` would have the others defer the mail.
fn common_settings(settings: &[&str], asking: &[usize]) -> String {
    let Some(first) = asking.first() else { return settings.first().copied().unwrap_or_default().to_owned() };
    let supports = asking.iter().filter_map(|number| parameter(settings[*number], "smtp_dns_support_level"));
    let support = supports.into_iter().find(|level| *level != "dnssec");
    // The first value of a parameter is the one that counts; the log is the one of the default instance.
    let log = parameter(settings[0], "maillog_file").unwrap_or_default();
    let support = support.map_or_else(String::new, |level| format!("smtp_dns_support_level = {level}\n"));
    format!("maillog_file = {log}\n{support}{}", settings[*first])
}

/// The input that follows a log.
fn input_section(log: &MtaLog) -> InputSection {
    match log {
        MtaLog::File(file) => InputSection::file(file),
        MtaLog::Exim(file) => InputSection { mta: Dialect::Exim, ..InputSection::file(file) },
        MtaLog::Journal => InputSection { journal: Some(JournalLocation::Host(true)), ..InputSection::default() },
    }
}

/// Fills in what Postfix reports where the section has no value.
fn fill_postfix_section(section: &mut PostfixSection, text: &str, lines: &mut Vec<String>) {
    let mut found = Vec::new();
    if section.version.is_none()
        && let Some(version) = parameter(text, "mail_version").and_then(|version| version.to_owned().try_into().ok())
    {
        section.version = Some(version);
        found.push(format!("version {}", String::from(version)));
    }
    if section.default_level.is_none()
        && let Some(name) = effective_level(text)
    {
        let level = PostfixLevel::from_name(name);
        section.default_level = Some(level.unwrap_or(PostfixLevel::Unknown));
        found.push(format!("smtp_tls_security_level {name}"));
        if matches!(level, None | Some(PostfixLevel::Fingerprint)) {
            lines.push(format!(
                "postfix: smtp_tls_security_level: {name}: no answer replaces this level; published policies are counted \
                 and not enforced"
            ));
        }
    }
    if section.dnssec.is_none()
        && let Some(support) = parameter(text, "smtp_dns_support_level")
    {
        section.dnssec = Some(support == "dnssec");
        let support = if support.is_empty() { "empty" } else { support };
        found.push(format!("smtp_dns_support_level {support}"));
    }
    if section.dane_insecure_mx_policy.is_none() {
        let value = parameter(text, "smtp_tls_dane_insecure_mx_policy");
        section.dane_insecure_mx_policy = match value {
            Some("may") => Some(InsecureMxPolicy::May),
            Some("encrypt") => Some(InsecureMxPolicy::Encrypt),
            Some("dane") => Some(InsecureMxPolicy::Dane),
            _ => None,
        };
        let known = section.dane_insecure_mx_policy;
        found.extend(known.map(|policy| format!("smtp_tls_dane_insecure_mx_policy {}", policy.name())));
    }
    if !found.is_empty() {
        lines.push(format!("postfix: found: {}", found.join(", ")));
    }
}

/// The level of a destination without a policy (postconf(5): an empty one obeys older parameters).
fn effective_level(text: &str) -> Option<&str> {
    let yes = |name| parameter(text, name) == Some("yes");
    Some(match parameter(text, "smtp_tls_security_level")? {
        "" if yes("smtp_enforce_tls") && parameter(text, "smtp_tls_enforce_peername") == Some("no") => "encrypt",
        "" if yes("smtp_enforce_tls") => "verify",
        "" if yes("smtp_use_tls") => "may",
        "" => "none",
        other => other,
    })
}

/// The output of `postconf` for the default instance.
fn run_postconf(program: &Path, arguments: &[&str]) -> Result<String, String> {
    let shown = program.display();
    let failed = |e: std::io::Error| format!("{shown}: {e}");
    let mut child = Command::new(program)
        .args(arguments)
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
            None if begin.elapsed() > POSTCONF_TIMEOUT => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("{shown}: no answer within {} s", POSTCONF_TIMEOUT.as_secs()));
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    let mut text = String::new();
    let mut errors = String::new();
    if let Some(out) = child.stdout.take() {
        out.take(MAX_POSTCONF_OUTPUT).read_to_string(&mut text).map_err(failed)?;
    }
    if let Some(out) = child.stderr.take() {
        let _ = out.take(MAX_POSTCONF_OUTPUT).read_to_string(&mut errors);
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
        smtp_enforce_tls = no\nsmtp_dns_support_level = dnssec\nsmtp_tls_dane_insecure_mx_policy = may\nmaillog_file =\n";

    fn host(postconf: &str) -> DetectedHost {
        let sender = Instance { main: postconf.to_owned(), services: String::new() };
        let postconf = Some(Ok(postconf.to_owned()));
        DetectedHost { postconf, senders: vec![sender], syslog: true, ..DetectedHost::default() }
    }

    #[test]
    fn what_is_not_said_is_found() {
        let mut config = Config::default();
        let lines = host(POSTFIX).complete(&mut config);
        let postfix = &config.postfix;
        assert_eq!(postfix.version, Some(PostfixVersion { major: 3, minor: 10, patch: Some(13) }));
        assert_eq!((postfix.default_level, postfix.dnssec), (Some(PostfixLevel::Dane), Some(true)));
        assert_eq!(postfix.dane_insecure_mx_policy, Some(InsecureMxPolicy::May));
        assert_eq!(config.inputs, [InputSection::file(MAIL_LOG)]);
        assert_eq!(
            lines,
            [
                "postfix: found: version 3.10.13, smtp_tls_security_level dane, smtp_dns_support_level dnssec, \
                 smtp_tls_dane_insecure_mx_policy may",
                "input: found: /var/log/mail.log (a syslog daemon is installed)",
            ]
        );
        // What is complete stays as it is.
        let complete = config.clone();
        assert!(host(&POSTFIX.replace("dane", "none")).complete(&mut config).is_empty());
        assert_eq!(config, complete);
    }

    #[test]
    fn the_instances_that_ask_decide() {
        let maps = "smtp_tls_policy_maps = socketmap:unix:tlswarden/socketmap:policy\n";
        let asking = |level: &str, dns: &str| {
            format!("{maps}smtp_tls_security_level = {level}\nsmtp_dns_support_level = {dns}\nmaillog_file = /b\n")
        };
        let null_client =
            "smtp_tls_policy_maps =\nsmtp_tls_security_level =\nsmtp_dns_support_level =\nmaillog_file = /a\n";
        let found = |default: &str, others: &[String]| {
            let texts: Vec<&str> = std::iter::once(default).chain(others.iter().map(String::as_str)).collect();
            let text = common_settings(&texts, &instances_that_ask(&texts));
            ["smtp_tls_security_level", "smtp_dns_support_level", "maillog_file"]
                .map(|name| parameter(&text, name).unwrap_or_default().to_owned())
        };
        assert_eq!(found(null_client, &[]), ["", "", "/a"]);
        assert_eq!(found(null_client, &[asking("may", "dnssec"), asking("dane", "dnssec")]), ["may", "dnssec", "/a"]);
        assert_eq!(found(null_client, &[asking("may", "dnssec"), asking("may", "enabled")]), ["may", "enabled", "/a"]);
        assert_eq!(found(&asking("encrypt", "dnssec"), &[asking("may", "dnssec")]), ["encrypt", "dnssec", "/b"]);
        assert_eq!(found(&asking("encrypt", "dnssec"), &[null_client.to_owned()]), ["encrypt", "dnssec", "/b"]);
    }

    #[test]
    fn what_is_said_stands() {
        let mut config = Config::default();
        config.postfix.default_level = Some(PostfixLevel::Secure);
        config.inputs = vec![InputSection::file("/other.log")];
        let lines = host(POSTFIX).complete(&mut config);
        assert_eq!(config.postfix.default_level, Some(PostfixLevel::Secure));
        assert_eq!(config.inputs.len(), 1);
        let found = "version 3.10.13, smtp_dns_support_level dnssec, smtp_tls_dane_insecure_mx_policy may";
        assert_eq!(lines, [format!("postfix: found: {found}")]);
    }

    #[test]
    fn the_addresses_that_postfix_is_bound_to_are_found() {
        let bound =
            POSTFIX.to_owned() + "smtp_bind_address = 192.0.2.11\nsmtp_bind_address6 =\ninet_interfaces = all\n";
        let mut config = Config::default();
        let mut lines = Vec::new();
        host(&bound).complete_sending_addresses(&mut config, &mut lines);
        assert_eq!(config.count.sending_addresses, ["192.0.2.11".parse::<std::net::IpAddr>().unwrap()]);
        assert_eq!(lines, ["postfix: found: it sends from 192.0.2.11 (smtp_bind_address, inet_interfaces)"]);
        let services = "out/unix/smtp_bind_address = 192.0.2.12\n".to_owned();
        let several = DetectedHost { senders: vec![Instance { main: bound.clone(), services }], ..host(&bound) };
        let (mut config, mut lines) = (Config::default(), Vec::new());
        several.complete_sending_addresses(&mut config, &mut lines);
        assert!(config.count.sending_addresses.is_empty() && config.count.sending_addresses_vary.v4);
        assert!(
            lines[0].starts_with("postfix: smtp_bind_address: not one address for all services and instances"),
            "{lines:?}"
        );
    }

    #[test]
    fn an_empty_level_obeys_the_older_parameters() {
        for (from, to, want) in [
            ("dane\n", "\n", Some("none")),
            ("dane\nsmtp_use_tls = no", "\nsmtp_use_tls = yes", Some("may")),
            ("dane\n", "fingerprint\n", Some("fingerprint")),
        ] {
            assert_eq!(effective_level(&POSTFIX.replacen(from, to, 1)), want);
        }
        let enforce = "smtp_tls_security_level =\nsmtp_use_tls = yes\nsmtp_enforce_tls = yes\n";
        assert_eq!(effective_level(enforce), Some("verify"));
        assert_eq!(effective_level(&format!("{enforce}smtp_tls_enforce_peername = no\n")), Some("encrypt"));
    }

    #[test]
    fn a_level_that_no_answer_replaces_is_named() {
        for (name, want) in [("fingerprint", PostfixLevel::Fingerprint), ("half-dane", PostfixLevel::Unknown)] {
            let mut config = Config::default();
            let lines = host(&POSTFIX.replacen("dane\n", &format!("{name}\n"), 1)).complete(&mut config);
            assert_eq!(config.postfix.default_level, Some(want));
            let line = format!("postfix: smtp_tls_security_level: {name}: no answer replaces this level");
            assert!(lines.iter().any(|found| found.starts_with(&line)), "{lines:?}");
        }
    }

    #[test]
    fn logs_are_found_by_who_writes_them() {
        let postfix = |text: &str| Some(Ok(POSTFIX.replace("maillog_file =", text)));
        let file = |path: &str| MtaLog::File(path.into());
        for (postconf, exim, syslog, want) in [
            (postfix("maillog_file = /var/log/postfix.log"), false, true, file("/var/log/postfix.log")),
            (postfix("maillog_file = /dev/stdout"), false, false, MtaLog::Journal),
            (postfix("maillog_file ="), false, true, file(MAIL_LOG)),
            (postfix("maillog_file ="), false, false, MtaLog::Journal),
            (None, true, true, MtaLog::Exim(EXIM_LOG.into())),
            (None, false, true, file(MAIL_LOG)),
            (None, false, false, MtaLog::Journal),
        ] {
            let host = DetectedHost { postconf, exim, syslog, ..DetectedHost::default() };
            assert_eq!(host.find_log().0, want, "{host:?}");
        }
    }

    #[test]
    fn without_postfix_the_defaults_stand_and_its_socket_is_left_out() {
        let host = DetectedHost { exim: true, no_socket_folder: true, ..DetectedHost::default() };
        let mut config = Config::default();
        let lines = host.complete(&mut config).join("\n");
        assert_eq!(config.postfix.version, Some(PostfixVersion::new(3, 7)));
        assert!(config.socketmap.listen.is_empty(), "{lines}");
        assert_eq!(config.readsocket.listen, [ListenAddress::Unix(EXIM_SOCKET.into())]);
    }

    #[test]
    fn relays_of_postfix_are_found() {
        let mut config = Config::default();
        let relayed = "relayhost = [smart.example]:587\nsmtp_fallback_relay = backup.example\n";
        let lines = host(&format!("{POSTFIX}{relayed}")).complete(&mut config);
        assert_eq!(config.postfix.relayhost.as_deref(), Some("[smart.example]:587"));
        assert_eq!(config.postfix.relays, Some(vec!["backup.example".to_owned()]));
        assert!(lines.contains(&"postfix: found: mail is relayed by [smart.example]:587".to_owned()), "{lines:?}");
        assert!(config.postfix.relays_all);
        let mut config = Config::default();
        let lines = host(&format!("{POSTFIX}relayhost = [192.0.2.1]\ntransport_maps = ldap:x\n")).complete(&mut config);
        assert_eq!((&config.postfix.relayhost, config.postfix.relays_all), (&None, true));
        assert!(lines.iter().any(|line| line.starts_with("postfix: relayhost: [192.0.2.1]: ")), "{lines:?}");
        assert!(lines.iter().any(|line| line.starts_with("postfix: ldap:x: cannot be read: ")), "{lines:?}");
        // What is configured stays, and is checked.
        let mut config = Config::default();
        config.postfix.relays = Some(Vec::new());
        host(&format!("{POSTFIX}{relayed}")).complete(&mut config);
        assert_eq!((config.postfix.relayhost, config.postfix.relays), (None, Some(Vec::new())));
    }

    /// A program in the place of `postconf`. Written by another process: a file that this one has open for writing may not
    /// be run.
    fn write_postconf(folder: &Path, script: &str) -> PathBuf {
        let (program, source) = (folder.join("postconf"), folder.join("source"));
        std::fs::write(&source, format!("#!/bin/sh\n{script}\n")).unwrap();
        let copy = format!("cp {} {1} && chmod 755 {1}", source.display(), program.display());
        assert!(Command::new("sh").args(["-c", &copy]).status().unwrap().success());
        program
    }

    #[test]
    fn each_instance_is_asked_and_those_that_cannot_be_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let asks = "smtp_tls_policy_maps = socketmap:unix:tlswarden/socketmap:policy";
        let program = write_postconf(
            folder.path(),
            &format!(
                "case \"$*\" in\n\
                 *'-c /etc/postfix-a -P'*) echo 'smtp/unix/smtp_bind_address = 192.0.2.1' ;;\n\
                 *'-c /etc/postfix-b -P'*) echo 'smtp/unix/smtp_bind_address = 192.0.2.2' ;;\n\
                 *'-c /etc/postfix-a '*) echo '{asks}' ; echo 'inet_interfaces = 198.51.100.1' ;;\n\
                 *'-c /etc/postfix-b '*) test -e {}/one && exit 1 ; echo '{asks}' ;;\n\
                 *-c*) echo 'fatal: open main.cf: Permission denied' >&2 ; exit 1 ;;\n\
                 *-P*) echo 'smtp/unix/smtp_bind_address = 192.0.2.9' ;;\n\
                 *) echo 'multi_instance_directories = /etc/postfix-a /etc/postfix-b, /etc/postfix-c' ;;\n\
                 esac",
                folder.path().display()
            ),
        );
        let addresses = || {
            let found = find_instances(&program).unwrap();
            let host = DetectedHost { senders: found.senders, ..DetectedHost::default() };
            let mut config = Config::default();
            host.complete_sending_addresses(&mut config, &mut Vec::new());
            (config.count.sending_addresses, config.count.sending_addresses_vary.v4, found.problems)
        };
        let unasked = |folder: &str, cause: &str| {
            format!(
                "postfix: {folder}: not asked: {}: {cause}; nothing is known of the mail of this instance",
                program.display()
            )
        };
        let denied = unasked("/etc/postfix-c", "fatal: open main.cf: Permission denied");
        assert_eq!(addresses(), (Vec::new(), true, vec![denied.clone()]), "two instances ask");
        std::fs::write(folder.path().join("one"), "").unwrap();
        let own = "192.0.2.1".parse::<std::net::IpAddr>().unwrap();
        let gone = unasked("/etc/postfix-b", "exit status: 1");
        assert_eq!(addresses(), (vec![own], false, vec![gone, denied]), "one instance asks, and not the default one");
    }

    #[test]
    fn a_postconf_that_hangs_is_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let program = write_postconf(folder.path(), "exec sleep 600");
        let begin = Instant::now();
        assert_eq!(
            run_postconf(&program, &PARAMETERS).unwrap_err(),
            format!("{}: no answer within 5 s", program.display())
        );
        assert!(begin.elapsed() < 3 * POSTCONF_TIMEOUT);
    }

    #[test]
    fn a_postconf_that_fails_is_said() {
        let problem = run_postconf(Path::new("/bin/false"), &PARAMETERS).unwrap_err();
        assert!(problem.starts_with("/bin/false: exit status: 1"), "{problem}");
        let host = DetectedHost { postconf: Some(Err(problem)), ..DetectedHost::default() };
        let lines = host.complete(&mut Config::default());
        assert!(lines[0].starts_with("postfix: not found out: /bin/false"), "{lines:?}");
    }
}
