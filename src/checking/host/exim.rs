//! What is wrong with how Exim asks us, and with what it does with the answers.
//!
//! Takes: what `exim -bV` and `exim -bP` say, macros expanded, and our configuration. Gives: findings.
//! It is held to what `packaging/exim.example` does: a router that asks, and a transport that obeys.
//! Not here: what Exim is answered (`readsocket`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tlswarden_parsers::Dialect;

use crate::checking::finding::{Finding, Findings, Severity};
use crate::checking::host::access::{AccessKind, AccessObstacle, SystemUser};
use crate::checking::host::postfix::is_same_file;
use crate::config::{Config, InputSection, ListenAddress};

/// The oldest Exim that the example is for.
const OLDEST_SUPPORTED: (u16, u16) = (4, 94);

/// How long `${readsocket}` waits where it does not say (Exim specification, string expansions).
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

/// The program names of Exim that are tried where none is given.
const PROGRAM_NAMES: [&str; 3] = ["exim4", "exim", "/usr/sbin/exim4"];

/// An installed Exim and its configuration.
#[derive(Clone, Debug, Default)]
pub(crate) struct EximInstallation {
    version: String,
    /// The user that delivers.
    user: String,
    /// `log_selector`.
    selector: String,
    /// The file that it writes its main log to; none where it writes to syslog alone.
    log: Option<PathBuf>,
    routers: Vec<EximDriver>,
    transports: Vec<EximDriver>,
}

/// A router or a transport.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct EximDriver {
    name: String,
    options: BTreeMap<String, String>,
}

/// A `${readsocket{PATH}{…}{OPTIONS}…}`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ReadsocketCall {
    socket: PathBuf,
    timeout: Duration,
}

impl EximInstallation {
    /// Asks an Exim how it is configured. Fails with one line.
    pub(crate) fn read(program: Option<&Path>, config: Option<&Path>) -> Result<EximInstallation, String> {
        let programs = program.map(|p| vec![p.to_owned()]).unwrap_or_else(|| PROGRAM_NAMES.map(PathBuf::from).to_vec());
        let mut last = String::new();
        for program in programs {
            let run = |arguments: &[&str]| run_exim(&program, config, arguments);
            match run(&["-bV"]) {
                Err(error) => last = error,
                Ok(version) => {
                    let option = |name: &str| -> Result<String, String> {
                        let text = run(&["-bP", name])?;
                        Ok(text.trim().split_once('=').map(|(_, value)| value.trim().to_owned()).unwrap_or_default())
                    };
                    return Ok(EximInstallation {
                        version: version.split_whitespace().nth(2).unwrap_or_default().to_owned(),
                        user: option("exim_user")?,
                        selector: option("log_selector")?,
                        log: main_log(&option("log_file_path")?, &option("spool_directory")?),
                        routers: parse_drivers(&run(&["-bP", "routers"])?),
                        transports: parse_drivers(&run(&["-bP", "transports"])?),
                    });
                }
            }
        }
        Err(last)
    }

    /// Its version, such as `4.96`.
    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// Checks everything. `running` means that the daemon's sockets should exist.
    pub(crate) fn check(&self, config: &Config, running: bool, found: &mut Findings) {
        let mut all = Vec::new();
        if parse_version(&self.version).is_some_and(|version| version < OLDEST_SUPPORTED) {
            let problem = format!("this is Exim {}", self.version);
            let impact = "The example is for 4.94 and later, and was never tried with an older one.";
            all.push(Finding::new(Severity::Warning, "exim-old", "exim", problem, impact));
        }
        let asking: Vec<(&EximDriver, ReadsocketCall)> =
            self.routers.iter().flat_map(|r| readsocket_calls(r.get("address_data")).map(move |a| (r, a))).collect();
        let ours =
            |asking: &ReadsocketCall| config.readsocket.listen.contains(&ListenAddress::Unix(asking.socket.clone()));
        match (asking.iter().find(|(_, a)| ours(a)), asking.first()) {
            (Some((router, asking)), _) => {
                self.check_lookup(router, asking, config, &mut all);
                if running {
                    self.check_socket(&asking.socket, &mut all, &mut found.not_looked_at);
                }
            }
            (None, Some((router, asking))) => {
                let listen: Vec<String> = config.readsocket.listen.iter().map(ToString::to_string).collect();
                let listen = if listen.is_empty() { "nothing".to_owned() } else { listen.join(", ") };
                let problem = format!("it asks at {}, and [readsocket] listens on {listen}", asking.socket.display());
                let impact = "Where it cannot ask, Exim defers the mail.";
                let finding =
                    Finding::new(Severity::Error, "exim-socket", format!("router {}", router.name), problem, impact);
                let line = format!("tlswarden.toml: [readsocket] listen = [\"unix:{}\"]", asking.socket.display());
                all.push(finding.fix(line));
            }
            (None, None) => {
                let problem = "no router asks the daemon (address_data with ${readsocket…})";
                let impact = "No published MTA-STS policy is followed.";
                let finding = Finding::new(Severity::Error, "exim-not-asked", "exim", problem, impact);
                all.push(
                    finding.fix("copy the routers and the transport of /usr/share/doc/tlswarden/examples/exim.example"),
                );
            }
        }
        self.check_counting(config, &mut all);
        found.extend(all);
    }

    /// Checks that its log is followed and shows what is counted.
    fn check_counting(&self, config: &Config, found: &mut Vec<Finding>) {
        let Some(log) = &self.log else { return };
        let followed: Vec<PathBuf> =
            config.inputs.iter().filter(|i| i.mta == Dialect::Exim).flat_map(InputSection::log_files).collect();
        let line = format!("tlswarden.toml: [[input]] file = \"{}\", mta = \"exim\"", log.display());
        let dated = glob::Pattern::new(&log.to_string_lossy());
        let is_log =
            |file: &Path| is_same_file(file, log) || dated.as_ref().is_ok_and(|dated| dated.matches_path(file));
        if !followed.iter().any(|file| is_log(file)) {
            let problem = match followed.is_empty() {
                true => "no [[input]] follows its log".to_owned(),
                false => format!("it writes its log to {}, which no [[input]] follows", log.display()),
            };
            let severity = if followed.is_empty() { Severity::Warning } else { Severity::Error };
            found.push(
                Finding::new(severity, "log-elsewhere", "exim", problem, "Its sessions are not counted.").fix(line),
            );
            return;
        }
        if let Some(missing) =
            ["tls_cipher", "tls_certificate_verified"].into_iter().find(|n| !is_selector_on(&self.selector, n))
        {
            let problem = format!("log_selector leaves {missing} out");
            let impact = "What became of TLS is not in the log, and cannot be counted.";
            let finding = Finding::new(Severity::Error, "log-level", "exim", problem, impact);
            found.push(finding.fix("log_selector = +tls_cipher +tls_certificate_verified"));
        }
        for transport in self.smtp_transports().filter(|t| t.get("event_action").contains("$address_data")) {
            if transport.get("event_action").contains("{failed ") {
                continue;
            }
            let problem = "event_action does not tell the daemon of a host where TLS failed";
            let impact = "Where the next host then takes the mail, the log says nothing of it, and it is not counted.";
            let subject = format!("transport {}", transport.name);
            let finding = Finding::new(Severity::Warning, "exim-not-told", subject, problem, impact);
            found.push(finding.fix("event_action as in /usr/share/doc/tlswarden/examples/exim.example"));
        }
    }

    fn check_lookup(&self, router: &EximDriver, asking: &ReadsocketCall, config: &Config, found: &mut Vec<Finding>) {
        let budget = config.policy.answer_budget.0;
        if asking.timeout <= budget {
            let problem = format!(
                "it waits {} s for an answer, and the daemon takes up to {} s",
                asking.timeout.as_secs(),
                budget.as_secs()
            );
            let impact = "Mail to domains that are new, or whose servers are slow, is deferred without need.";
            let finding =
                Finding::new(Severity::Warning, "exim-timeout", format!("router {}", router.name), problem, impact);
            found.push(finding.fix(format!("TLSWARDEN_TIMEOUT = {}s", budget.as_secs() + 2)));
        }
        for transport in self.smtp_transports() {
            self.check_transport(transport, found);
        }
    }

    /// The SMTP transports that mail for other domains goes by: those of dnslookup routers, but for those that take only
    /// messages with `TLS-Required: No` (RFC 8689), which no policy holds.
    fn smtp_transports(&self) -> impl Iterator<Item = &EximDriver> {
        let routed: Vec<&str> = self
            .routers
            .iter()
            .filter(|router| {
                router.get("driver") == "dnslookup" && !router.get("condition").contains("$h_TLS-Required:")
            })
            .map(|router| router.get("transport"))
            .collect();
        self.transports.iter().filter(move |t| t.get("driver") == "smtp" && routed.contains(&t.name.as_str()))
    }

    fn check_transport(&self, transport: &EximDriver, found: &mut Vec<Finding>) {
        let subject = format!("transport {}", transport.name);
        let mut add = |severity, problem: &str, impact: &str, line: &str| {
            found.push(Finding::new(severity, "exim-transport", subject.clone(), problem, impact).fix(line));
        };
        let follows = |option: &str| {
            let value = transport.get(option);
            value == "*" || value.contains("$address_data")
        };
        let example = |option: &str| format!("{option} as in /usr/share/doc/tlswarden/examples/exim.example");
        for (option, impact) in [
            ("hosts_require_tls", "Mail to a domain with an enforced policy goes in clear text where TLS fails."),
            ("tls_verify_hosts", "Mail to a domain with an enforced policy goes to any certificate."),
        ] {
            if !follows(option) {
                add(Severity::Error, &format!("{option} does not follow the answer"), impact, &example(option));
            }
        }
        if !transport.get("event_action").contains("$address_data") {
            let impact = "RFC 8461 §4.1: mail must not go to a host that no pattern of the policy names.";
            add(
                Severity::Error,
                "event_action does not refuse hosts that the policy does not name",
                impact,
                &example("event_action"),
            );
        }
        if transport.get("multi_domain") != "false" {
            let impact = "Several domains share a delivery, and are held to the policy of one.";
            add(Severity::Error, "multi_domain is on", impact, "multi_domain = false");
        }
        if transport.get("connection_max_messages") != "1" {
            let impact = "A connection that was made under no policy is used on for a domain that has one.";
            add(Severity::Warning, "connections are used on", impact, "connection_max_messages = 1");
        }
        if transport.get("hosts_try_dane") != "*" {
            let impact = "TLSA records are not looked at.";
            add(Severity::Warning, "hosts_try_dane is not `*`", impact, "hosts_try_dane = *");
        }
        if transport.get("tls_verify_cert_hostnames") != "*" {
            let impact = "A certificate for another name passes.";
            add(Severity::Error, "tls_verify_cert_hostnames is not `*`", impact, "tls_verify_cert_hostnames = *");
        }
    }

    fn check_socket(&self, path: &Path, found: &mut Vec<Finding>, skipped: &mut Vec<String>) {
        let user = match SystemUser::look_up(&self.user) {
            Ok(user) => user,
            Err(error) => {
                skipped.push(format!("the way of Exim's user to the socket: {error}"));
                return;
            }
        };
        let (problem, line) = match user.find_obstacle(path, Path::new("/"), AccessKind::Write) {
            None => return,
            Some(AccessObstacle::Unknown(at, error)) => {
                skipped.push(format!("{}: {error}", at.display()));
                return;
            }
            Some(AccessObstacle::Missing(at)) => (
                format!("{} is missing, though the daemon runs", at.display()),
                "systemctl restart tlswarden".to_owned(),
            ),
            Some(AccessObstacle::Mode(at, words)) if at == path => (words, format!("chmod 666 {}", path.display())),
            Some(AccessObstacle::Mode(at, words)) => {
                (format!("{}: {words}", at.display()), format!("chmod o+x {}", at.display()))
            }
        };
        let impact = "Exim asks as that user, and where it cannot, it defers the mail.";
        found.push(
            Finding::new(Severity::Error, "socket-denied", path.display().to_string(), problem, impact).fix(line),
        );
    }
}

impl EximDriver {
    fn get(&self, option: &str) -> &str {
        self.options.get(option).map_or("", String::as_str)
    }
}

/// The output of Exim; fails with one line where it does not run.
fn run_exim(program: &Path, config: Option<&Path>, arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new(program);
    if let Some(config) = config {
        command.arg("-C").arg(config);
    }
    let output = command.args(arguments).output().map_err(|e| format!("{}: {e}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let last = errors.lines().last().or(text.lines().last()).unwrap_or("failed and said nothing").to_owned();
    Err(format!("{}: {last}", program.display()))
}

/// `NAME router:` or `NAME transport:`, then an option a line: `name = value`, `name` or `no_name`.
fn parse_drivers(text: &str) -> Vec<EximDriver> {
    let mut parts: Vec<EximDriver> = Vec::new();
    for line in text.lines() {
        let head = line.strip_suffix(" router:").or_else(|| line.strip_suffix(" transport:"));
        match (head, parts.last_mut()) {
            (Some(name), _) => parts.push(EximDriver { name: name.to_owned(), ..EximDriver::default() }),
            (None, Some(part)) if !line.is_empty() => {
                let (name, value) = match (line.split_once('='), line.strip_prefix("no_")) {
                    (Some((name, value)), _) => (name.trim(), value.trim()),
                    (None, Some(name)) => (name, "false"),
                    (None, None) => (line, "true"),
                };
                part.options.insert(name.to_owned(), value.to_owned());
            }
            _ => {}
        }
    }
    parts
}

/// Every `${readsocket{…}}` in a string that Exim expands.
fn readsocket_calls(text: &str) -> impl Iterator<Item = ReadsocketCall> {
    text.match_indices("${readsocket").filter_map(|(at, name)| {
        let arguments = brace_arguments(&text[at + name.len()..]);
        let socket = PathBuf::from(arguments.first().filter(|path| path.starts_with('/'))?);
        let options = arguments.get(2).copied().unwrap_or_default();
        let timeout = options.split(':').next().filter(|timeout| !timeout.is_empty());
        let timeout = timeout.and_then(|t| humantime::parse_duration(t).ok()).unwrap_or(DEFAULT_TIMEOUT);
        Some(ReadsocketCall { socket, timeout })
    })
}

/// The arguments at the beginning: `{a}{b{c}}`.
fn brace_arguments(text: &str) -> Vec<&str> {
    let mut arguments = Vec::new();
    let mut rest = text;
    while rest.starts_with('{') {
        let mut depth = 0usize;
        let end = rest.char_indices().find(|(_, c)| {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            depth == 0
        });
        let Some((end, _)) = end else { break };
        arguments.push(&rest[1..end]);
        rest = &rest[end + 1..];
    }
    arguments
}

/// Whether a selector is on, as it is by default (`log_selector`: the last entry about it decides).
fn is_selector_on(selectors: &str, name: &str) -> bool {
    let mut on = true;
    for (at, sign) in selectors.match_indices(['+', '-']) {
        let rest = selectors[at + 1..].trim_start();
        let word = rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap_or_default();
        if word == name || word == "all" {
            on = sign == "+";
        }
    }
    on
}

/// The main log of `log_file_path` (Exim specification, 52.1): `%s` is `main`; where no file is named, the spool has it.
/// A pattern where its files are named by their date (52.3).
fn main_log(paths: &str, spool: &str) -> Option<PathBuf> {
    let mut named = paths.split(':').map(str::trim).filter(|path| !path.is_empty()).peekable();
    if named.peek().is_none() {
        return Some(Path::new(spool).join("log/mainlog"));
    }
    named
        .find(|path| path.starts_with('/'))
        .map(|path| PathBuf::from(path.replace("%s", "main").replace("%D", "*").replace("%M", "*")))
}

fn parse_version(version: &str) -> Option<(u16, u16)> {
    let mut parts = version.split(['.', '-', '_', '+']).map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_exim_prints() {
        let text = "\ntlswarden router:\naddress_data = ${readsocket{/run/t/exim}{policy $domain\\n}{6s:shutdown=no}{}}\n\
                    no_verify_sender\nallow_defer\ndata = ${if a=b{}}\n\nr2 transport:\nno_multi_domain\nuser = \n";
        let found = parse_drivers(text);
        assert_eq!((found[0].name.as_str(), found[0].get("allow_defer")), ("tlswarden", "true"));
        assert_eq!((found[0].get("verify_sender"), found[0].get("data")), ("false", "${if a=b{}}"));
        assert_eq!((found[1].get("multi_domain"), found[1].get("user")), ("false", ""));
        let asking: Vec<ReadsocketCall> = readsocket_calls(found[0].get("address_data")).collect();
        assert_eq!(asking, [ReadsocketCall { socket: "/run/t/exim".into(), timeout: Duration::from_secs(6) }]);
    }

    #[test]
    fn arguments_in_braces() {
        assert_eq!(brace_arguments("{a}{b{c}d}x{e}"), ["a", "b{c}d"]);
        assert_eq!(brace_arguments("{a"), Vec::<&str>::new());
        assert_eq!(readsocket_calls("${readsocket{inet:h:1}{x}}").count(), 0);
        assert_eq!(readsocket_calls("${readsocket{/s}{x}}").next().unwrap().timeout, DEFAULT_TIMEOUT);
        for (selectors, wanted) in [
            ("", true),
            ("+dnssec -tls_cipher", false),
            ("-all+tls_cipher", true),
            ("-tls_cipher +all", true),
            ("-all", false),
        ] {
            assert_eq!(is_selector_on(selectors, "tls_cipher"), wanted, "{selectors}");
        }
        assert_eq!(main_log("/var/log/exim4/%slog", "/s"), Some("/var/log/exim4/mainlog".into()));
        assert_eq!(main_log("/var/log/exim4/%slog-%D", "/s"), Some("/var/log/exim4/mainlog-*".into()));
        assert_eq!(main_log("", "/s"), Some("/s/log/mainlog".into()));
        assert_eq!((main_log("syslog", "/s"), main_log("syslog : /l/%s", "/s")), (None, Some("/l/main".into())));
        assert!(parse_version("4.96") < parse_version("4.98.2") && parse_version("4.98.2") > Some((4, 94)));
    }
}
