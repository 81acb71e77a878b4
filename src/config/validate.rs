//! From the text of the file to a checked [`Config`], and back.
//!
//! When it fails: a [`ConfigError`] with file, line, key, what was found and what is allowed.

use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use jiff::tz::TimeZone;
use serde::de::value::SeqAccessDeserializer;
use serde::de::{DeserializeOwned, Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serializer};
use tlswarden_parsers::Dialect;

use crate::base::domain_name;
use crate::base::next_hop::{NextHop, Port};
use crate::base::printable::escape_and_cut;
use crate::base::rua_record::{MAX_PARSED_DESTINATIONS, parse_destination};
use crate::config::locate::{line_of, line_of_problem};
use crate::config::{
    Config, ControlSection, DeliveryMethod, DkimKeySection, DkimSigning, InputKind, InputSection, JournalLocation,
    NativeTlsrpt, PostfixSection, ReportSection,
};
use crate::config::{addresses, limits, overrides, similar, toml_errors};

/// The time between two reports to a domain, and how long one is tried (RFC 8460 §5.5).
const DAY: Duration = Duration::from_secs(86_400);

/// What is wrong with a file of configuration, in one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    file: PathBuf,
    line: Option<usize>,
    problem: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": {}", self.problem)
    }
}

impl std::error::Error for ConfigError {}

impl ConfigError {
    /// A problem that was found once the file was read, and begins with its section: `[section] key: …`.
    pub(crate) fn locate(path: &Path, problem: &str) -> ConfigError {
        let line = std::fs::read_to_string(path).ok().and_then(|text| line_of_problem(&text, problem));
        ConfigError { file: path.to_owned(), line, problem: problem.to_owned() }
    }
}

impl Config {
    /// Reads and checks a file. What it does not say of Postfix is not known then.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        Config::load_with(path, |_| ())
    }

    /// Reads a file, lets `complete` fill in what it does not set, and checks the whole.
    pub fn load_with(path: &Path, complete: impl FnOnce(&mut Config)) -> Result<Config, ConfigError> {
        let error = |line, problem| ConfigError { file: path.to_owned(), line, problem };
        let bytes = std::fs::read(path).map_err(|e| error(None, format!("cannot be read: {e}")))?;
        let text = String::from_utf8(bytes).map_err(|e| {
            let (line, problem) = toml_errors::not_utf8(e.as_bytes(), e.utf8_error());
            error(Some(line), problem)
        })?;
        let mut config: Config = parse_toml(&text, path)?;
        complete(&mut config);
        config.check_paths().map_err(|(section, nth, key, problem)| ConfigError {
            file: path.to_owned(),
            line: line_of(&text, section, nth, key),
            problem: match section {
                "input" | "report.dkim" => format!("[[{section}]] {key}: {problem}"),
                _ => format!("[{section}] {key}: {problem}"),
            },
        })?;
        config.check().map_err(|(section, key, problem)| ConfigError {
            file: path.to_owned(),
            line: line_of(&text, section, 0, key),
            problem: format!("[{section}] {key}: {problem}"),
        })?;
        addresses::check(&config).map_err(|(section, nth, key, problem)| ConfigError {
            file: path.to_owned(),
            line: line_of(&text, section, nth, key),
            problem: match section {
                "input" => format!("[[{section}]] {key}: {problem}"),
                _ => format!("[{section}] {key}: {problem}"),
            },
        })?;
        overrides::check(&config).map_err(|(nth, key, problem)| ConfigError {
            file: path.to_owned(),
            line: line_of(&text, "policy.override", nth, key),
            problem: format!("[[policy.override]] {key}: {problem}"),
        })?;
        config.check_inputs().map_err(|(section, nth, key, problem)| ConfigError {
            file: path.to_owned(),
            line: line_of(&text, section, nth, key),
            problem: match section {
                "report" | "postfix" => format!("[{section}] {key}: {problem}"),
                _ => format!("[[{section}]] {key}: {problem}"),
            },
        })?;
        Ok(config)
    }

    /// The `[control]` section of a file, whatever else is wrong with the file; the default one where that cannot be read.
    pub(crate) fn control_section_of(path: &Path) -> ControlSection {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct ControlAlone {
            control: ControlSection,
        }
        let text = std::fs::read_to_string(path).unwrap_or_default();
        toml::from_str::<ControlAlone>(&text).unwrap_or_default().control
    }

    /// The configuration as TOML, defaults included; it reads back equal.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("every value of the configuration has a TOML form")
    }

    /// The paths of files: a daemon has no folder that a relative path could begin at. (Section, which of several, key,
    /// what is wrong and what is allowed.)
    fn check_paths(&self) -> Result<(), (&'static str, usize, &'static str, String)> {
        let report = &self.report;
        let is_credential = |path: &&PathBuf| path.to_str().is_some_and(|text| text.starts_with("credential:"));
        let mut paths = vec![("store", 0, "path", Some(&self.store.path))];
        paths.push(("report", 0, "password", report.password.as_ref().filter(|path| !is_credential(path))));
        paths.push(("report", 0, "ca_file", report.ca_file.as_ref()));
        paths.push(("closed_network", 0, "extra_root", self.closed_network.extra_root.as_ref()));
        paths.extend(
            report.dkim.keys().iter().enumerate().map(|(nth, key)| ("report.dkim", nth, "key", Some(&key.key))),
        );
        for (nth, input) in self.inputs.iter().enumerate() {
            paths.push(("input", nth, "file", input.file.as_ref()));
            if let Some(JournalLocation::Folder(folder)) = &input.journal {
                paths.push(("input", nth, "journal", Some(folder)));
            }
        }
        let is_relative = |path: &PathBuf| !path.is_absolute();
        let relative = paths.into_iter().find_map(|(section, nth, key, path)| {
            let shown = escape_and_cut(&path.filter(|path| is_relative(path))?.to_string_lossy(), 80);
            let hint = if key == "journal" { ", or true without quotes for the journal of this host" } else { "" };
            Some((section, nth, key, format!("invalid path \"{shown}\": expected an absolute path{hint}")))
        });
        relative.map_or(Ok(()), Err)
    }

    /// What no single value can show; (section, key, what is wrong and what is allowed).
    fn check(&self) -> Result<(), (&'static str, &'static str, String)> {
        check_relays(&self.postfix)?;
        let report = &self.report;
        for (key, value) in [("contact", &report.contact), ("from", &report.from), ("envelope", &report.envelope)] {
            if let Some(address) = value.as_deref().filter(|address| !is_mail_address(address)) {
                if let Some(bare) = address.strip_prefix("mailto:").filter(|bare| is_mail_address(bare)) {
                    return Err((
                        "report",
                        key,
                        format!("expected the address without \"mailto:\": {key} = \"{bare}\""),
                    ));
                }
                let inner = address.split_once('<').and_then(|(_, rest)| rest.split_once('>')).map(|(inner, _)| inner);
                let meant = similar::meant(inner.filter(|inner| is_mail_address(inner)));
                return Err((
                    "report",
                    key,
                    format!("invalid address \"{address}\": expected \"name@example.com\"{meant}"),
                ));
            }
        }
        if report.organization.as_deref().is_some_and(|name| name.is_empty() || name.chars().any(char::is_control)) {
            return Err(("report", "organization", "empty, or with control characters: expected a name".into()));
        }
        for key in report.dkim.keys() {
            if domain_name::normalize(&key.selector).is_none() {
                return Err(("report.dkim", "selector", format!("invalid DNS name \"{}\"", key.selector)));
            }
            if let Some(name) = key.domain.as_deref().filter(|name| domain_name::normalize(name).is_none()) {
                let meant = similar::meant(similar::domain(name));
                let problem = format!("invalid domain name \"{name}\": expected \"example.com\"{meant}");
                return Err(("report.dkim", "domain", problem));
            }
        }
        check_delivery(report)?;
        let (spread, retention) = (report.spread.0, report.retention.0);
        if spread > DAY {
            let found = humantime::format_duration(spread);
            return Err((
                "report",
                "spread",
                format!("{found} is too long: expected at most 24h, the time to the next report"),
            ));
        }
        if retention < spread + DAY {
            let found = humantime::format_duration(retention);
            let problem =
                format!("{found} is too short: expected at least spread and a day more, which later tries need");
            return Err(("report", "retention", problem));
        }
        let budget = self.policy.answer_budget.0;
        if !(Duration::from_millis(100)..=Duration::from_secs(60)).contains(&budget) {
            let found = humantime::format_duration(budget);
            return Err((
                "policy",
                "answer_budget",
                format!("invalid duration {found}: expected 100ms to 1m (Postfix gives up after 100s)"),
            ));
        }
        if self.policy.max_domains == 0 {
            return Err(("policy", "max_domains", "invalid number 0: expected 1 or more".into()));
        }
        limits::check(self)?;
        let public = self.resolver.address.filter(|address| !address.ip().is_loopback());
        if let (false, Some(address)) = (crate::config::is_default(&self.closed_network), public) {
            let problem = format!("{address} is not on this host: with [closed_network] expected a loopback address");
            return Err(("resolver", "address", problem));
        }
        if !crate::config::is_default(&self.closed_network) && self.resolver.address.is_none() {
            let problem = "missing: with [closed_network] expected a loopback address".to_owned();
            return Err(("resolver", "address", problem));
        }
        Ok(())
    }
}

/// The next hops of mail that is relayed.
fn check_relays(postfix: &PostfixSection) -> Result<(), (&'static str, &'static str, String)> {
    let relayhost = postfix.relayhost.iter().map(|relay| ("relayhost", relay));
    let relays = postfix.relays.iter().flatten().map(|relay| ("relays", relay));
    match relayhost.chain(relays).find(|(_, relay)| NextHop::parse(relay.as_bytes()).is_none()) {
        None => Ok(()),
        Some((key, relay)) => {
            let found = relay.escape_debug();
            let problem = format!(
                "invalid next hop \"{found}\": expected such as \"[smarthost.example]:587\" or \"example.com\""
            );
            Err(("postfix", key, problem))
        }
    }
}

/// What belongs to a submission server, and how large reports are.
fn check_delivery(report: &ReportSection) -> Result<(), (&'static str, &'static str, String)> {
    if report.max_size < MIN_REPORT_SIZE {
        let found = report.max_size;
        return Err(("report", "max_size", format!("{found} is too small: expected at least {MIN_REPORT_SIZE} bytes")));
    }
    let submits = matches!(report.deliver, DeliveryMethod::Submission(..) | DeliveryMethod::Submissions(..));
    for (key, set) in [
        ("user", report.user.is_some()),
        ("password", report.password.is_some()),
        ("ca_file", report.ca_file.is_some()),
    ] {
        if set && !submits {
            let problem = format!("not used: deliver is \"{}\", expected submission: or submissions:", report.deliver);
            return Err(("report", key, problem));
        }
    }
    if report.user.is_some() != report.password.is_some() {
        let key = if report.user.is_some() { "user" } else { "password" };
        return Err(("report", key, "expected user and password together, or neither".into()));
    }
    Ok(())
}

/// Who gets reports; (section, which of several, key, problem).
fn check_recipients(report: &ReportSection) -> Result<(), (&'static str, usize, &'static str, String)> {
    const DOMAIN: &str = "\"example.com\", or \".example.com\" for all below it";
    if let Some(bad) = report.allow.iter().find(|pattern| !is_domain_pattern(pattern)) {
        return Err((
            "report",
            0,
            "allow",
            format!(
                "invalid domain \"{}\": expected {DOMAIN}{}",
                escape_and_cut(bad, 80),
                similar::meant(similar::domain(bad))
            ),
        ));
    }
    if !(1..=MAX_PARSED_DESTINATIONS).contains(&report.max_destinations) {
        let problem = format!("invalid number {}: expected 1 to {MAX_PARSED_DESTINATIONS}", report.max_destinations);
        return Err(("report", 0, "max_destinations", problem));
    }
    for (nth, suppress) in report.suppress.iter().enumerate() {
        let fault = |key, problem| Err(("report.suppress", nth, key, problem));
        match (&suppress.domain, &suppress.destination) {
            (Some(domain), None) if !is_domain_pattern(domain) => {
                let found = escape_and_cut(domain, 80);
                let meant = similar::meant(similar::domain(domain));
                return fault("domain", format!("invalid domain \"{found}\": expected {DOMAIN}{meant}"));
            }
            (None, Some(to)) if !is_domain_pattern(to) && parse_destination(to).is_err() => {
                let (found, forms) = (escape_and_cut(to, 80), "\"name@example.com\", \"mailto:...\", \"https://...\"");
                let meant = similar::meant(similar::domain(to));
                return fault(
                    "destination",
                    format!("invalid destination \"{found}\": expected {forms}, {DOMAIN}{meant}"),
                );
            }
            (Some(_), None) | (None, Some(_)) => {}
            (None, None) => return fault("domain", "missing: expected one of `domain` and `destination`".into()),
            (Some(_), Some(_)) => {
                return fault("destination", "expected one of `domain` and `destination`, not both".into());
            }
        }
    }
    Ok(())
}

/// A name in its one form, or one with a dot before it.
fn is_domain_pattern(text: &str) -> bool {
    let name = text.strip_prefix('.').unwrap_or(text);
    domain_name::normalize(name).is_some_and(|normal| normal == name)
}

/// The longest name of an input, in bytes: with the longest key of a session behind it, it fits into a key of the store.
const MAX_INPUT_NAME: usize = 400;

/// The smallest `max_size`, in octets: headers, the text part and every summary fit.
const MIN_REPORT_SIZE: usize = 1_000_000;

impl InputSection {
    /// The log files that it reads now: the one that is named, be it there or not, or those that the pattern finds.
    pub fn log_files(&self) -> Vec<PathBuf> {
        match self.kind() {
            Some(InputKind::File(path)) => vec![path.to_owned()],
            Some(InputKind::Files(pattern)) => {
                glob::glob(&pattern.to_string_lossy()).map_or_else(|_| Vec::new(), |found| found.flatten().collect())
            }
            _ => Vec::new(),
        }
    }
}

impl DkimSigning {
    /// The keys; none where the MTA signs.
    pub fn keys(&self) -> &[DkimKeySection] {
        match self {
            DkimSigning::Mta => &[],
            DkimSigning::Keys(keys) => keys,
        }
    }
}

pub(super) fn serialize_mta<S: Serializer>(into: S) -> Result<S::Ok, S::Error> {
    into.serialize_str("mta")
}

impl<'de> Deserialize<'de> for DkimSigning {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<DkimSigning, D::Error> {
        struct DkimVisitor;
        impl<'de> Visitor<'de> for DkimVisitor {
            type Value = DkimSigning;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`\"mta\"`, or keys in [[report.dkim]]")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<DkimSigning, E> {
                match text {
                    "mta" => Ok(DkimSigning::Mta),
                    path if path.starts_with('/') => Err(E::custom(format!(
                        "invalid value \"{path}\": write a section [[report.dkim]] with selector and key = \"{path}\""
                    ))),
                    other => Err(E::custom(format!(
                        "invalid value \"{other}\": expected \"mta\", or keys in [[report.dkim]]"
                    ))),
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, keys: A) -> Result<DkimSigning, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(keys)).map(DkimSigning::Keys)
            }
        }
        from.deserialize_any(DkimVisitor)
    }
}

impl Config {
    /// Which input or next hop, counted from 0, is wrong: section, number, key, and what is wrong and what is allowed.
    fn check_inputs(&self) -> Result<(), (&'static str, usize, &'static str, String)> {
        let mut sources = HashSet::new();
        for (nth, input) in self.inputs.iter().enumerate() {
            let fault = |key, problem| Err(("input", nth, key, problem));
            let Some(source) = input.kind() else {
                return fault("file", "expected exactly one of `file`, `journal`, `stdin` and `datagrams`".into());
            };
            let length = source.to_string().len();
            if length > MAX_INPUT_NAME {
                return fault("file", format!("too long: {length} bytes; expected at most {MAX_INPUT_NAME}"));
            }
            if !sources.insert(source.clone()) {
                return fault("file", format!("duplicate input \"{source}\"; every session would be counted twice"));
            }
            if let Some(name) = &input.timezone {
                time_zone(name).map(drop).or_else(|problem| fault("timezone", problem))?;
            }
            if let InputKind::Files(pattern) = source
                && let Err(error) = glob::Pattern::new(&pattern.to_string_lossy())
            {
                return fault(
                    "file",
                    format!("invalid pattern \"{}\": {error}; expected `*`, `?`, `[…]`", pattern.display()),
                );
            }
            let chooses = !input.identifiers.is_empty() || !input.units.is_empty();
            if chooses && !matches!(source, InputKind::Journal(_)) {
                return fault("identifiers", "allowed with `journal` alone, as `units` is".into());
            }
            let wrong = |name: &&String| name.is_empty() || name.starts_with('-') || name.contains('\0');
            if let Some(name) = input.identifiers.iter().chain(&input.units).find(wrong) {
                return fault("identifiers", format!("`{}` names nothing in a journal", name.escape_debug()));
            }
            match (&source, input.socket_mode()) {
                (_, Err(problem)) => return fault("mode", problem),
                (InputKind::Datagrams(_), _) => self.check_datagrams().or_else(|(k, problem)| fault(k, problem))?,
                _ if input.mode.is_some() => return fault("mode", "allowed with `datagrams` alone".into()),
                _ => {}
            }
        }
        check_recipients(&self.report)?;
        let native = self.inputs.iter().any(|input| matches!(input.kind(), Some(InputKind::Datagrams(_))));
        if self.postfix.tlsrpt == NativeTlsrpt::Datagrams && !native {
            let problem =
                "\"datagrams\" needs an [[input]] with `datagrams`, the socket to which Postfix sends them".to_owned();
            return Err(("postfix", 0, "tlsrpt", problem));
        }
        let mut domains = HashSet::new();
        for (nth, rule) in self.next_hops.iter().enumerate() {
            let (key, text) = match (&rule.domain, &rule.relay) {
                (Some(domain), None) => ("domain", domain),
                (None, Some(relay)) => ("relay", relay),
                (None, None) => {
                    return Err(("nexthop", nth, "domain", "missing: expected one of `domain` and `relay`".into()));
                }
                (Some(_), Some(_)) => {
                    return Err(("nexthop", nth, "relay", "expected one of `domain` and `relay`, not both".into()));
                }
            };
            let name = text.strip_prefix('.').unwrap_or(text);
            let is_name = domain_name::normalize(name).is_some();
            if key == "domain" && text != "*" && !is_name {
                let problem = format!(
                    "invalid domain \"{}\": expected \"example.com\", \".example.com\" or \"*\"{}",
                    text.escape_debug(),
                    similar::meant(similar::domain(text))
                );
                return Err(("nexthop", nth, "domain", problem));
            }
            if key == "relay" && !is_name && text.parse::<IpAddr>().is_err() {
                let problem = format!(
                    "invalid host \"{}\": expected a name or address as in relay= of the log, \"mail.example.com\", \
                     or \".example.com\"",
                    text.escape_debug()
                );
                return Err(("nexthop", nth, "relay", problem));
            }
            if !domains.insert((key, text.to_ascii_lowercase())) {
                return Err(("nexthop", nth, key, format!("duplicate {key} \"{text}\"")));
            }
            let next_hop = NextHop::parse(rule.nexthop.as_bytes());
            if let Some(NextHop { port: Port::Service(service), .. }) = &next_hop
                && !is_service(service)
            {
                let problem = format!(
                    "invalid next hop \"{}\": \"{service}\" is not a service in /etc/services; expected a port number, \
                     such as \"[smarthost.example]:587\"",
                    rule.nexthop.escape_debug()
                );
                return Err(("nexthop", nth, "nexthop", problem));
            }
            if next_hop.is_none() {
                let found = rule.nexthop.escape_debug();
                let bare = rule.nexthop.split_once(':').map(|(_, rest)| rest);
                let meant = similar::meant(bare.filter(|bare| NextHop::parse(bare.as_bytes()).is_some()));
                let problem = format!(
                    "invalid next hop \"{found}\": expected such as \"[smarthost.example]:587\" or \"example.com\"{meant}"
                );
                return Err(("nexthop", nth, "nexthop", problem));
            }
        }
        Ok(())
    }

    fn check_datagrams(&self) -> Result<(), (&'static str, String)> {
        if self.postfix.tlsrpt != NativeTlsrpt::Datagrams {
            let problem = "counts with `tlsrpt = \"datagrams\"` in [postfix] alone: otherwise the log's `TLSRPT:` lines \
                           or its TLS lines count, and every session would be counted twice";
            return Err(("datagrams", problem.into()));
        }
        Ok(())
    }
}

impl crate::config::InputSection {
    /// The mode of the datagram socket.
    pub fn socket_mode(&self) -> Result<u32, String> {
        let Some(text) = &self.mode else { return Ok(0o666) };
        let digits = (3..=4).contains(&text.len()).then(|| u32::from_str_radix(text, 8).ok()).flatten();
        digits
            .filter(|mode| *mode <= 0o777)
            .ok_or_else(|| format!("invalid mode \"{text}\": expected such as \"0660\""))
    }
}

/// Reads a TOML file into a type; every error has its line and key.
pub fn parse_toml<T: DeserializeOwned>(text: &str, path: &Path) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let (line, problem) = toml_errors::explain(text, &error, &toml_errors::sections_with::<T>);
        ConfigError { file: path.to_owned(), line, problem }
    })
}

/// A zone by its IANA name; else what was found and what is allowed.
pub fn time_zone(name: &str) -> Result<TimeZone, String> {
    TimeZone::get(name)
        .map_err(|_| format!("invalid time zone \"{name}\": expected an IANA name such as \"Europe/Berlin\""))
}

/// Reads an address with its port; fails with what was found and what is allowed.
pub(super) fn deserialize_address<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SocketAddr>, D::Error> {
    let text = String::deserialize(from)?;
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(Some(address));
    }
    let meant = similar::socket_address(&text);
    // `::1:53` is a valid address too, but means the loopback address with a port. In any other address the last group
    // may look like a port.
    let lacks_brackets = meant.is_some_and(|address| address.ip().is_loopback());
    match text.parse::<IpAddr>() {
        Ok(ip) if !lacks_brackets => Ok(Some(SocketAddr::new(ip, 53))),
        _ => Err(Error::custom(format!(
            "invalid address \"{text}\": expected an IP address, with or without a port, such as \"127.0.0.1:53\"{}",
            similar::meant(meant.map(|address| address.to_string()))
        ))),
    }
}

/// Networks, or single addresses, which are networks of one.
pub(super) fn deserialize_networks<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<IpNet>, D::Error> {
    let network = |text: String| {
        let single = || text.parse::<IpAddr>().map(IpNet::from);
        text.parse().or_else(|_| single()).map_err(|_| {
            Error::custom(format!(
                "invalid network \"{text}\": expected an address or a network, such as \"192.168.0.0/16\""
            ))
        })
    };
    Vec::<String>::deserialize(from)?.into_iter().map(network).collect()
}

/// The MTA's name, in any case of letters.
pub(super) fn deserialize_mta<'de, D: Deserializer<'de>>(from: D) -> Result<Dialect, D::Error> {
    let text = String::deserialize(from)?;
    match text.to_ascii_lowercase().as_str() {
        "postfix" => Ok(Dialect::Postfix),
        "exim" => Ok(Dialect::Exim),
        _ => Err(Error::unknown_variant(&text, &["postfix", "exim"])),
    }
}

/// Whether a name may be that of a service (services(5)): not if the host has a list, and the name is not in it.
fn is_service(name: &str) -> bool {
    let Ok(services) = std::fs::read_to_string("/etc/services") else { return true };
    let names = services.lines().map(|line| line.split('#').next().unwrap_or_default());
    names.flat_map(str::split_whitespace).any(|word| word == name)
}

/// An address as mail headers and SMTP take it, without quoting: one `@`, a domain name, nothing that ends a header.
fn is_mail_address(text: &str) -> bool {
    let local = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~.".contains(&b);
    text.split_once('@').is_some_and(|(name, host)| {
        (1..=64).contains(&name.len()) && name.bytes().all(local) && domain_name::normalize(host).is_some()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, String> {
        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&path, text).unwrap();
        Config::load(path.path()).map_err(|e| e.to_string().replace(path.path().to_str().unwrap(), "F"))
    }

    #[test]
    fn what_is_printed_reads_back_equal() {
        let config = load(
            "[postfix]\nversion = \"3.10\"\ndefault_level = \"dane\"\n\
             [report]\norganization = \"Example\"\nfrom = \"tlsrpt@example.com\"\nspread = \"90min\"\n\
             [[report.dkim]]\nselector = \"s\"\nkey = \"/k\"\n\
             [resolver]\naddress = \"127.0.0.1:5353\"\n[closed_network]\nclock = \"2026-11-22T01:38:00Z\"\n\
             [[policy.override]]\ndomain = \"a.example\"\nnone = true\n\
             [[policy.override]]\ndomain = \".a.example\"\nskip = \"sts\"\n\
             [[policy.override]]\ndomain = \"b.example\"\nanswer = \"encrypt\"\n\
             [[nexthop]]\ndomain = \"*\"\nnexthop = \"[smarthost.example]:587\"\n\
             [count]\nlocal_networks = [\"127.0.0.0/8\"]\nsending_addresses = [\"192.0.2.1\"]\n\
             [[input]]\nfile = \"/var/log/mail.log\"\ntimezone = \"Europe/Berlin\"\nstart = \"now\"\n\
             [[input]]\nfile = \"/var/log/*/mail.log\"\nstart = \"2026-11-22T01:38:00Z\"\n\
             [[input]]\njournal = true\nidentifiers = [\"postfix/smtp\"]\n\
             [[input]]\njournal = \"/var/log/journal/remote\"\nunits = [\"postfix@*\"]\n\
             [[input]]\nstdin = true\n",
        )
        .unwrap();
        assert_eq!(load(&config.to_toml()), Ok(config));
        assert_eq!(load(&Config::default().to_toml()), Ok(Config::default()));
        assert_eq!(load(""), Ok(Config::default()));
    }

    #[test]
    fn common_forms_are_accepted() {
        let config = load(
            "[resolver]\naddress = \"127.0.0.1\"\n[report]\ndeliver = \"smtp:localhost:2525\"\n\
             [count]\nlocal_networks = [\"192.168.1.5\", \"fd00::/8\"]\n[[input]]\nfile = \"/a\"\nmta = \"Exim\"\n",
        )
        .unwrap();
        assert_eq!(config.resolver.address, Some("127.0.0.1:53".parse().unwrap()));
        assert_eq!(config.report.deliver, DeliveryMethod::Localhost(2525));
        let networks: Vec<String> = config.count.local_networks.iter().map(ToString::to_string).collect();
        assert_eq!(networks, ["192.168.1.5/32", "fd00::/8"]);
        assert_eq!(config.inputs[0].mta, Dialect::Exim);
        for address in ["2620:fe::fe:9", "fd00::53:1", "2001:4860:4860::8888", "2620:fe::9"] {
            let six = load(&format!("[resolver]\naddress = \"{address}\"\n")).unwrap();
            assert_eq!(six.resolver.address.unwrap().to_string(), format!("[{address}]:53"));
        }
        let bare = load("[resolver]\naddress = \"::1:53\"\n").unwrap_err().to_string();
        assert!(bare.ends_with("did you mean \"[::1]:53\"?"), "{bare}");
        let six = load("[resolver]\naddress = \"::1\"\n").unwrap();
        assert_eq!(six.resolver.address, Some("[::1]:53".parse().unwrap()));
    }

    #[test]
    fn faults_name_line_key_finding_and_what_is_allowed() {
        for (text, want) in [
            (
                "[postfix]\nversion = \"new\"\n",
                "F:2: [postfix] version: invalid Postfix version \"new\": expected a version such as \"3.7\"",
            ),
            ("[report]\nfrom = \"me\"\n", "F:2: [report] from: invalid address \"me\": expected \"name@example.com\""),
            (
                "[[input]]\nfile = \"/a\"\ntimezone = \"Mars\"\n",
                "F:3: [[input]] timezone: invalid time zone \"Mars\": expected an IANA name such as \"Europe/Berlin\"",
            ),
            (
                "[[input]]\nfile = \"/a\"\nstart = \"yesterday\"\n",
                "F:3: [[input]] start: invalid start \"yesterday\": expected \"beginning\", \"now\" or a time such as \
                 \"2026-11-22T00:00:00Z\"",
            ),
            (
                "[socketmap]\nlisten = [\"unix:/a\"]\n[readsocket]\nlisten = [\"unix:/b\", \"unix:/a\"]\n",
                "F:4: [readsocket] listen: duplicate address \"unix:/a\": [socketmap] listen \"unix:/a\" names the same socket; \
                 one of them would get the connections of the other",
            ),
            (
                "[policy]\nanswer_budget = \"5\"\n",
                "F:2: [policy] answer_budget: invalid duration \"5\": expected a number with a unit (s, min, h, days), such as \"5s\"",
            ),
            (
                "[policy]\nanswer_budget = \"2h\"\n",
                "F:2: [policy] answer_budget: invalid duration 2h: expected 100ms to 1m (Postfix gives up after 100s)",
            ),
            (
                "[report]\nspread = \"2days\"\n",
                "F:2: [report] spread: 2days is too long: expected at most 24h, the time to the next report",
            ),
            (
                "[report]\nretention = \"0s\"\n",
                "F:2: [report] retention: 0s is too short: expected at least spread and a day more, which later tries need",
            ),
            (
                "[resolver]\naddress = \"localhost:53\"\n",
                "F:2: [resolver] address: invalid address \"localhost:53\": expected an IP address, with or without a port, \
                 such as \"127.0.0.1:53\"; did you mean \"127.0.0.1:53\"?",
            ),
            (
                "[closed_network]\nprivate_addresses = true\n[resolver]\naddress = \"9.9.9.9:53\"\n",
                "F:4: [resolver] address: 9.9.9.9:53 is not on this host: with [closed_network] expected a loopback address",
            ),
            (
                "[postfix]\nversion = \"3.7\"\n[[policy.override]]\ndomain = \"a.example\"\nanswer = \"may\"\n\
                 [[policy.override]]\ndomain = \"b.example\"\nanswer = \"may enable_rpk=yes\"\n",
                "F:8: [[policy.override]] answer: b.example: `enable_rpk` is known from Postfix 3.9 on, and [postfix] \
                 version is 3.7",
            ),
            (
                "[[policy.override]]\ndomain = \".a.example\"\n",
                "F:2: [[policy.override]] domain: .a.example: expected one of `answer`, `skip` and `none = true`",
            ),
            (
                "[[policy.override]]\ndomain = \"A.example\"\nnone = true\n[[policy.override]]\ndomain = \"a.example.\"\n\
                 skip = \"dane\"\n",
                "F:5: [[policy.override]] domain: duplicate domain \"a.example\"",
            ),
            (
                "[[input]]\nfile = \"/a\"\n[[input]]\nfile = \"/b\"\nstdin = true\n",
                "F:4: [[input]] file: expected exactly one of `file`, `journal`, `stdin` and `datagrams`",
            ),
            (
                "[[input]]\njournal = true\n[[input]]\njournal = true\n",
                "F:3: [[input]] file: duplicate input \"journal\"; every session would be counted twice",
            ),
            (
                "[[input]]\ndatagrams = \"/run/tlsrpt\"\n",
                "F:2: [[input]] datagrams: counts with `tlsrpt = \"datagrams\"` in [postfix] alone: otherwise the log's \
                 `TLSRPT:` lines or its TLS lines count, and every session would be counted twice",
            ),
            (
                "[postfix]\ntlsrpt = \"datagrams\"\n[[input]]\ndatagrams = \"tlsrpt\"\n",
                "F:4: [[input]] datagrams: invalid path \"tlsrpt\": expected an absolute path",
            ),
            (
                "[socketmap]\nlisten = [\n \"unix:/run//a\",\n]\n[status]\nlisten = [\"unix:/run/a\"]\n",
                "F:6: [status] listen: duplicate address \"unix:/run/a\": [socketmap] listen \"unix:/run//a\" names the same \
                 socket; one of them would get the connections of the other",
            ),
            (
                "[policy]\nmax_domains = 18014398509481984\n",
                "F:2: [policy] max_domains: invalid number 18014398509481984: expected at most 100000000",
            ),
            (
                "[postfix]\nrelays = [\"[192.0.2.1]\"]\n",
                "F:2: [postfix] relays: invalid next hop \"[192.0.2.1]\": expected such as \"[smarthost.example]:587\" or \
                 \"example.com\"",
            ),
            (
                "[[nexthop]]\nnexthop = \"example.com\"\n",
                "F:1: [[nexthop]] domain: missing: expected one of `domain` and `relay`",
            ),
            (
                "[[nexthop]]\nrelay = \"a b\"\nnexthop = \"example.com\"\n",
                "F:2: [[nexthop]] relay: invalid host \"a b\": expected a name or address as in relay= of the log, \
                 \"mail.example.com\", or \".example.com\"",
            ),
            (
                "[[nexthop]]\ndomain = \"*\"\nnexthop = \"[192.0.2.1]:587\"\n",
                "F:3: [[nexthop]] nexthop: invalid next hop \"[192.0.2.1]:587\": expected such as \"[smarthost.example]:587\" or \
                 \"example.com\"",
            ),
            (
                "[[report.suppress]]\ndomain = \"a.example\"\n[[report.suppress]]\nuntil = \"2026-12-31\"\n",
                "F:3: [[report.suppress]] domain: missing: expected one of `domain` and `destination`",
            ),
            (
                "[[report.suppress]]\ndomain = \"a.example\"\ndestination = \"b.example\"\n",
                "F:3: [[report.suppress]] destination: expected one of `domain` and `destination`, not both",
            ),
            (
                "[[report.suppress]]\ndestination = \"ftp://x.example\"\n",
                "F:2: [[report.suppress]] destination: invalid destination \"ftp://x.example\": expected \"name@example.com\", \
                 \"mailto:...\", \"https://...\", \"example.com\", or \".example.com\" for all below it; did you mean \"x.example\"?",
            ),
            (
                "[report]\nallow = [\"*.a.example\"]\n",
                "F:2: [report] allow: invalid domain \"*.a.example\": expected \"example.com\", or \".example.com\" for all \
                 below it; did you mean \".a.example\"?",
            ),
            (
                "[socketmap]\nlisten = []\n[readsocket]\nlisten = [\"unix:/a\"]\n[[policy.override]]\ndomain = \"a.test\"\n\
                 answer = \"secure\"\n",
                "F:7: [[policy.override]] answer: a.test: level \"secure\" cannot be given to Exim: the readsocket answers with \
                 a mode of MTA-STS and DANE; every message to the domain would be deferred; expected \"none\" or \"may\"",
            ),
            ("[report]\nmax_destinations = 0\n", "F:2: [report] max_destinations: invalid number 0: expected 1 to 64"),
            (
                "[[policy.override]]\ndomain = \"*.a.example\"\nnone = true\n",
                "F:2: [[policy.override]] domain: invalid domain name \"*.a.example\": expected \"example.com\" or \".example.com\"; \
                 did you mean \".a.example\"?",
            ),
        ] {
            assert_eq!(load(text).unwrap_err(), want);
        }
        let unknown = load("[postfix]\n\nversoin = \"3.7\"\n").unwrap_err();
        assert_eq!(unknown, "F:3: [postfix] versoin: unknown option; did you mean \"version\"?");
    }

    #[test]
    fn a_path_that_no_key_of_the_store_could_begin_with_is_refused() {
        let input = |length: usize| format!("[[input]]\nfile = \"/{}\"\n", "a".repeat(length - 1));
        assert!(load(&input(MAX_INPUT_NAME)).is_ok());
        assert_eq!(load(&input(401)).unwrap_err(), "F:2: [[input]] file: too long: 401 bytes; expected at most 400");
    }
}
