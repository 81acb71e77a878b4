//! What is wrong with how a Postfix asks us, and with what it needs to follow the answers.
//!
//! Takes: a [`PostfixInstance`] as postconf shows it, and our configuration. Gives: findings, each with its fix.
//! Every service that delivers by SMTP is looked at with its own `-o`, and from its own root folder.
//! Not here: how postconf is read (`postconf`), whether the daemon answers (`daemon`).

mod counting;
mod levels;
mod relays;
mod report_transport;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::answering::policy::decision::ATTRIBUTES_SINCE;
use crate::answering::socketmap::reply::{MAX_REPLY, MapName, ReplyFormat};
use crate::checking::finding::{Finding, Severity};
use crate::checking::host::access::{AccessKind, AccessObstacle, SystemUser};
use crate::checking::host::postconf::{MasterService, PostfixInstance};
use crate::config::detect::is_detected;
use crate::config::split_list;
use crate::config::{Config, ListenAddress, PostfixVersion};

/// The check of one service: the service, and where its parameters come from.
struct ServiceCheck<'a> {
    instance: &'a PostfixInstance,
    service: &'a MasterService,
    config: &'a Config,
}

/// One socketmap table of `smtp_tls_policy_maps`, as the service sees it.
struct SocketmapTable {
    address: ListenAddress,
    map: String,
    /// Where the path of the service begins: above it no access right is needed.
    root: PathBuf,
}

/// Everything that can be checked without the daemon. `asked`: whether some instance asks
/// the daemon; `primary`: whether this is the instance whose settings the daemon asks `postconf` for.
pub(crate) fn check_instance(instance: &PostfixInstance, config: &Config, asked: bool, primary: bool) -> Vec<Finding> {
    let mut found = Vec::new();
    for service in instance.smtp_clients.iter().filter(|service| looks_up_mx(service)) {
        let view = ServiceCheck { instance, service, config };
        if view.delivers_to_this_host() || (view.asks_for_no_policy() && (asked || view.takes_mail_of_a_sender())) {
            continue;
        }
        view.check_map(asked, &mut found);
        if asked && view.our_table().is_none() {
            // Such as the null client beside the instances that ask: what an answer needs it does not need.
            view.check_relays(&mut found);
            continue;
        }
        view.check_level(primary, &mut found);
        view.check_log_level(&mut found);
        view.check_dnssec(&mut found);
        view.check_trust_anchors(&mut found);
        view.check_insecure_mx(&mut found);
        view.check_native_tlsrpt(&mut found);
        view.check_mx_patterns(&mut found);
        view.check_relays(&mut found);
        view.check_reply_size(&mut found);
    }
    report_transport::check(instance, config, &mut found);
    if asks_daemon(instance, config) {
        check_override_files(instance, config, &mut found);
    }
    counting::check_log_file(instance, config, &mut found);
    found
}

/// Checks that smtp(8) can open the files that fixed answers name: below the queue directory, where it is chrooted there.
fn check_override_files(instance: &PostfixInstance, config: &Config, found: &mut Vec<Finding>) {
    let queue = Path::new(instance.get("queue_directory"));
    let chroots: BTreeSet<bool> = instance.smtp_clients.iter().map(|service| service.chroot).collect();
    for (domain, file) in config.override_files() {
        for chroot in &chroots {
            let root = if *chroot { queue } else { Path::new("/") };
            let path = root.join(file.trim_start_matches('/'));
            if path.metadata().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
                let problem = format!("the answer for {domain} names a file that is missing: {}", path.display());
                let subject = format!("{}: tlswarden.toml [[policy.override]]", instance.folder.display());
                let impact = "Postfix cannot open it, and defers mail to the domain.";
                let finding = Finding::new(Severity::Error, "override-file", subject, problem, impact);
                found.push(match Path::new(file).exists() && *chroot {
                    true => finding.fix(format!("install -D -m 644 {file} {}", path.display())),
                    false => finding,
                });
            }
        }
    }
}

/// Whether one of its services asks the daemon.
pub(crate) fn asks_daemon(instance: &PostfixInstance, config: &Config) -> bool {
    instance.smtp_clients.iter().any(|service| ServiceCheck { instance, service, config }.our_table().is_some())
}

/// Finds what denies its services access to the sockets; what could not be checked goes to `skipped`.
pub(crate) fn check_sockets(instance: &PostfixInstance, config: &Config, skipped: &mut Vec<String>) -> Vec<Finding> {
    let owner = match SystemUser::look_up(instance.get("mail_owner")) {
        Ok(owner) => owner,
        Err(error) => {
            skipped.push(format!("the way of Postfix's user to the socket: {error}"));
            return Vec::new();
        }
    };
    let mut found = Vec::new();
    for service in instance.smtp_clients.iter().filter(|service| looks_up_mx(service)) {
        let view = ServiceCheck { instance, service, config };
        let Some((SocketmapTable { address: ListenAddress::Unix(path), root: from, .. }, _)) = view.our_table() else {
            continue;
        };
        let impact = "smtp(8) runs as that user, and where it cannot ask, it defers the mail.";
        let add = |problem| Finding::new(Severity::Error, "socket-denied", path.display().to_string(), problem, impact);
        match owner.find_obstacle(&path, &from, AccessKind::Write) {
            None => {}
            Some(AccessObstacle::Missing(at)) => found.push(
                add(format!("{} is missing, though the daemon runs", at.display()))
                    .fix("systemctl restart tlswarden   # makes the socket again"),
            ),
            Some(AccessObstacle::Mode(at, words)) if at == path => {
                found.push(add(words).fix(format!("chmod 666 {}", path.display())));
            }
            Some(AccessObstacle::Mode(at, words)) => {
                let group = instance.get("mail_owner");
                let line = format!("chgrp {group} {0} && chmod g+x {0}", at.display());
                found.push(add(format!("{}: {words}", at.display())).fix(line));
            }
            Some(AccessObstacle::Unknown(at, error)) => skipped.push(format!("{}: {error}", at.display())),
        }
    }
    found
}

/// A service that feeds a filter asks for no MX records, and needs no policies.
fn looks_up_mx(service: &MasterService) -> bool {
    let set = |name: &str, value: &str| service.overrides.get(name).is_some_and(|found| found == value);
    !set("disable_dns_lookups", "yes") && !set("smtp_dns_support_level", "disabled")
}

impl ServiceCheck<'_> {
    fn get(&self, name: &str) -> &str {
        self.instance.service_parameter(self.service, name)
    }

    fn version(&self) -> PostfixVersion {
        self.instance.version().unwrap_or(self.config.postfix.version())
    }

    /// The file that a parameter comes from, and the service where it is its own.
    fn subject(&self, name: &str) -> String {
        let folder = self.instance.folder.display();
        match self.service.overrides.contains_key(name) {
            true => format!("{folder}/master.cf service {}", self.service.name),
            false => format!("{folder}/main.cf"),
        }
    }

    fn finding(&self, severity: Severity, name: &str, parameter: &str, problem: String, impact: &str) -> Finding {
        Finding::new(severity, name, self.subject(parameter), problem, impact)
    }

    /// The command that sets a parameter.
    fn set_command(&self, name: &str, value: &str) -> String {
        let (postconf, reload) = (self.instance.postconf_command(), self.instance.reload_command());
        match self.service.overrides.contains_key(name) {
            // What the daemon takes from Postfix it must look at again.
            false if is_detected(name) => format!("{postconf} -e '{name} = {value}' && {reload} && tlswarden reload"),
            false => format!("{postconf} -e '{name} = {value}' && {reload}"),
            true => self.override_command(name, value),
        }
    }

    /// The command that sets a parameter for this service alone.
    fn override_command(&self, name: &str, value: &str) -> String {
        let (postconf, reload) = (self.instance.postconf_command(), self.instance.reload_command());
        let service = format!("{}/{}", self.service.name, self.service.kind);
        format!("{postconf} -P '{service}/{name}={value}' && {reload}")
    }

    /// The tables of `smtp_tls_policy_maps`; for each socketmap table, its address and map.
    fn policy_tables(&self) -> Vec<(String, Option<SocketmapTable>)> {
        let tables = split_list(self.get("smtp_tls_policy_maps"));
        tables.into_iter().map(|text| (text.clone(), self.parse_table(&text))).collect()
    }

    /// `[proxy:]socketmap:unix:PATH:MAP`, `socketmap:inet:HOST:PORT:MAP` (socketmap_table(5)).
    fn parse_table(&self, text: &str) -> Option<SocketmapTable> {
        let (chroot, text) = match text.strip_prefix("proxy:") {
            Some(rest) => (self.instance.is_chrooted("proxymap"), rest),
            None => (self.service.chroot, text),
        };
        let queue = Path::new(self.instance.get("queue_directory"));
        match text.strip_prefix("socketmap:")?.split_once(':')? {
            ("unix", rest) => {
                let (path, map) = rest.rsplit_once(':')?;
                // smtp(8) works in the queue directory, which is also its root where it is chrooted.
                let (from, path) = match (chroot, path.strip_prefix('/')) {
                    (true, Some(below)) => (queue, queue.join(below)),
                    (false, Some(_)) => (Path::new("/"), PathBuf::from(path)),
                    (_, None) => (queue, queue.join(path)),
                };
                Some(SocketmapTable { address: ListenAddress::Unix(path), map: map.to_owned(), root: from.to_owned() })
            }
            ("inet", rest) => {
                let (address, map) = rest.rsplit_once(':')?;
                let (host, port) = address.rsplit_once(':')?;
                let ip = match host.trim_matches(['[', ']']) {
                    "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
                    other => other.parse().ok()?,
                };
                let address = ListenAddress::Inet(SocketAddr::new(ip, port.parse().ok()?));
                Some(SocketmapTable { address, map: map.to_owned(), root: PathBuf::new() })
            }
            _ => None,
        }
    }

    /// The table that asks the daemon, and the tables before it.
    fn our_table(&self) -> Option<(SocketmapTable, Vec<String>)> {
        let mut before = Vec::new();
        for (text, table) in self.policy_tables() {
            match table {
                Some(table) if self.config.socketmap.listen.iter().any(|l| is_same_socket(l, &table.address)) => {
                    return Some((table, before));
                }
                _ => before.push(text),
            }
        }
        None
    }

    /// The address of one of our sockets as this service must write it, if it can reach one.
    fn socket_address(&self) -> Option<String> {
        let queue = Path::new(self.instance.get("queue_directory"));
        self.config.socketmap.listen.iter().find_map(|listen| match listen {
            ListenAddress::Inet(address) => Some(format!("inet:{address}")),
            ListenAddress::Unix(path) => match (path.strip_prefix(queue), self.service.chroot) {
                (Ok(below), _) => Some(format!("unix:{}", below.display())),
                (Err(_), false) => Some(format!("unix:{}", path.display())),
                (Err(_), true) => None,
            },
        })
    }

    fn map_name(&self) -> &'static str {
        let newer = self.version() >= ATTRIBUTES_SINCE;
        ReplyFormat::ALL[usize::from(newer)].1
    }

    fn check_map(&self, asked: bool, found: &mut Vec<Finding>) {
        const NAME: &str = "smtp_tls_policy_maps";
        let Some((ours, before)) = self.our_table() else { return self.report_not_asked(asked, found) };
        for other in before {
            let stands = self.get(NAME).replace(&other, "");
            let behind: Vec<String> = split_list(&stands).into_iter().chain([other.clone()]).collect();
            let problem = format!("`{other}` is asked before this daemon");
            let (severity, impact) = if other.starts_with("static:") {
                (Severity::Error, "That table answers for every destination, so that the daemon is never asked.")
            } else if other.contains("socketmap:") || other.starts_with("tcp:") {
                (
                    Severity::Warning,
                    "Where that server answers, the daemon is not asked, and counts no policy in force.",
                )
            } else {
                (
                    Severity::Note,
                    "Its entry for a destination takes precedence over what that published; put it behind if it must not.",
                )
            };
            let finding = self.finding(severity, "map-before", NAME, problem, impact);
            found.push(finding.fix(self.set_command(NAME, &behind.join(", "))));
        }
        let level = ours.map.find('@').map_or("", |at| &ours.map[at..]);
        let renamed = |name: &str| {
            self.set_command(NAME, &self.get(NAME).replace(&format!(":{}", ours.map), &format!(":{name}{level}")))
        };
        let (real, told) = (self.version(), self.config.postfix.version());
        let format = MapName::parse(ours.map.as_bytes()).map(|map| map.wording);
        match format {
            None => found.push(
                self.finding(
                    Severity::Error,
                    "map-unknown",
                    NAME,
                    format!("the daemon has no map `{}`", ours.map),
                    "It answers PERM, and Postfix defers all mail.",
                )
                .fix(renamed(self.map_name())),
            ),
            Some(ReplyFormat::PolicyTlsrpt) if real < ATTRIBUTES_SINCE && told >= ATTRIBUTES_SINCE => {
                found.push(
                    self.finding(
                        Severity::Error,
                        "attributes-unknown",
                        NAME,
                        format!(
                            "the map policy-tlsrpt, and [postfix] version \"{}\": this Postfix is {}",
                            String::from(told),
                            self.instance.get("mail_version")
                        ),
                        "It does not know the attributes, and defers mail to every domain with an MTA-STS policy.",
                    )
                    .fix(renamed("policy"))
                    .fix(format!("tlswarden.toml: [postfix] version = \"{}\"", String::from(real))),
                );
            }
            Some(ReplyFormat::PolicyTlsrpt) if real < ATTRIBUTES_SINCE => found.push(
                self.finding(
                    Severity::Warning,
                    "attributes-unused",
                    NAME,
                    format!("the map policy-tlsrpt is for Postfix 3.10 and later; this is {}", self.instance.get("mail_version")),
                    "The daemon leaves the attributes out because of [postfix] version; who changes that defers mail.",
                )
                .fix(renamed("policy")),
            ),
            Some(ReplyFormat::Policy) if real >= ATTRIBUTES_SINCE => found.push(
                self.finding(
                    Severity::Warning,
                    "attributes-missing",
                    NAME,
                    "the map is `policy`, and this Postfix knows the attributes of `policy-tlsrpt`".into(),
                    "With them it skips MX hosts that an MTA-STS policy does not name, and reads wildcards as RFC 8461 has them.",
                )
                .fix(renamed("policy-tlsrpt")),
            ),
            Some(ReplyFormat::Policy | ReplyFormat::PolicyTlsrpt) => {}
        }
        let attributes_wrong =
            format == Some(ReplyFormat::PolicyTlsrpt) && real < ATTRIBUTES_SINCE && told >= ATTRIBUTES_SINCE;
        let patch_differs = told.patch.is_some() && told.patch != real.patch;
        if ((real.major, real.minor) != (told.major, told.minor) || patch_differs) && !attributes_wrong {
            let version = String::from(real);
            found.push(
                Finding::new(
                    Severity::Warning,
                    "version-differs",
                    "tlswarden.toml [postfix] version",
                    format!("it says {}, and Postfix is {}", String::from(told), self.instance.get("mail_version")),
                    "Answers are worded for the version that is named.",
                )
                .fix(format!("tlswarden.toml: [postfix] version = \"{version}\"")),
            );
        }
    }

    fn report_not_asked(&self, asked: bool, found: &mut Vec<Finding>) {
        const NAME: &str = "smtp_tls_policy_maps";
        let listen: Vec<String> = self.config.socketmap.listen.iter().map(ToString::to_string).collect();
        let listen = listen.join(", ");
        let elsewhere = self.policy_tables().into_iter().find_map(|(text, table)| {
            let table = table.filter(|t| MapName::parse(t.map.as_bytes()).is_some())?;
            Some((text, table))
        });
        let (name, problem, impact) = match &elsewhere {
            // Where its folder is missing, the daemon is not told to listen there (`config::detect`).
            Some((_, table)) if self.config.socketmap.listen.is_empty() => {
                let address = String::from(table.address.clone());
                let problem = format!("the daemon does not listen at {address}: the folder of its socket is missing");
                let finding = self.finding(
                    Severity::Error,
                    "socket-folder-missing",
                    NAME,
                    problem,
                    "Where it cannot ask, Postfix defers the mail.",
                );
                let fix = "systemd-tmpfiles --create tlswarden.conf && systemctl restart tlswarden.socket tlswarden";
                return found.push(finding.fix(fix));
            }
            Some((text, table)) => (
                "socket-elsewhere",
                format!(
                    "service {} ({}) looks for the daemon's socket at {}; the daemon listens at {listen}",
                    self.service.name,
                    if self.service.chroot { "chrooted" } else { "not chrooted" },
                    String::from(table.address.clone()) + if text.starts_with("proxy:") { " (proxymap)" } else { "" },
                ),
                "Where it cannot ask, Postfix defers the mail.",
            ),
            None => (
                "not-asked",
                "no table of smtp_tls_policy_maps asks this daemon".to_owned(),
                "No published policy is followed, and what is counted is counted under no policy.",
            ),
        };
        let severity = if asked && elsewhere.is_none() { Severity::Warning } else { Severity::Error };
        let finding = self.finding(severity, name, NAME, problem, impact);
        found.push(match self.socket_address() {
            Some(way) => {
                let ours = format!("socketmap:{way}:{}", self.map_name_with_level());
                let others = split_list(self.get(NAME));
                let others = others.into_iter().filter(|text| elsewhere.as_ref().is_none_or(|(e, _)| e != text));
                finding.fix(self.set_command(NAME, &others.chain([ours]).collect::<Vec<_>>().join(", ")))
            }
            None => {
                let queue = self.instance.get("queue_directory");
                // The sockets of the other instances stay.
                let needed = format!("unix:{queue}/tlswarden/socketmap");
                let all = self.config.socketmap.listen.iter().map(ToString::to_string).chain([needed]);
                let all: Vec<String> = all.map(|address| format!("\"{address}\"")).collect();
                finding.fix(format!("tlswarden.toml: [socketmap] listen = [{}]", all.join(", ")))
            }
        });
    }

    fn check_dnssec(&self, found: &mut Vec<Finding>) {
        const NAME: &str = "smtp_dns_support_level";
        let on = self.get(NAME) == "dnssec";
        match (on, self.config.postfix.dnssec()) {
            (false, true) => {
                let problem =
                    "Postfix does not ask for DNSSEC, and tlswarden.toml says that it does ([postfix] dnssec)".into();
                let impact = "It cannot check TLSA records, and defers mail for which the answer is dane-only.";
                found.push(
                    self.finding(Severity::Error, "no-dnssec", NAME, problem, impact)
                        .fix(self.set_command(NAME, "dnssec")),
                );
            }
            (false, false) => {
                let problem = "there is no DANE: Postfix does not ask for DNSSEC".into();
                let impact =
                    "Where a validating resolver is on this host, TLSA records protect better than certificates.";
                let finding = self
                    .finding(Severity::Note, "no-dane", NAME, problem, impact)
                    .fix(self.set_command(NAME, "dnssec"));
                found.push(finding.fix("tlswarden.toml: [postfix] dnssec = true"));
            }
            (true, false) => {
                let problem = "Postfix asks for DNSSEC, and tlswarden.toml says that it does not".to_owned();
                let impact = "No TLSA record is looked for.";
                let finding = Finding::new(
                    Severity::Warning,
                    "dnssec-unused",
                    "tlswarden.toml [postfix] dnssec",
                    problem,
                    impact,
                );
                found.push(finding.fix("tlswarden.toml: [postfix] dnssec = true"));
            }
            (true, true) => self.check_dane_requirements(found),
        }
    }

    /// The other settings that keep Postfix from using TLSA records (`tls_policy` in smtp(8)).
    fn check_dane_requirements(&self, found: &mut Vec<Finding>) {
        let impact = "Postfix then does no DANE, and defers mail for which the answer is dane-only.";
        let mut add = |name: &str, problem: String, value: &str| {
            let finding = self.finding(Severity::Error, "dane-impossible", name, problem, impact);
            found.push(finding.fix(self.set_command(name, value)));
        };
        if self.get("disable_dns_lookups") == "yes" {
            add("disable_dns_lookups", "DNS is not asked at all (disable_dns_lookups)".into(), "no");
        }
        if self.get("ignore_mx_lookup_error") == "yes" {
            add(
                "ignore_mx_lookup_error",
                "failed MX look-ups are taken for none (ignore_mx_lookup_error)".into(),
                "no",
            );
        }
        if !split_list(self.get("smtp_host_lookup")).iter().any(|word| word == "dns") {
            add("smtp_host_lookup", "host names are not looked up in DNS (smtp_host_lookup)".into(), "dns");
        }
        let options = split_list(self.get("smtp_dns_resolver_options"));
        if options.iter().any(|option| option == "res_defnames" || option == "res_dnsrch") {
            let problem = "names are completed with a search list (smtp_dns_resolver_options)".into();
            add("smtp_dns_resolver_options", problem, "");
        }
    }

    fn check_trust_anchors(&self, found: &mut Vec<Finding>) {
        const FILE: &str = "smtp_tls_CAfile";
        let (file, folder) = (self.get(FILE), self.get("smtp_tls_CApath"));
        let impact = "No certificate leads to a root that is trusted, and `secure` (MTA-STS) defers the mail.";
        let mend = self.set_command(FILE, "/etc/ssl/certs/ca-certificates.crt");
        let mut add = |parameter: &str, problem: String| {
            found.push(self.finding(Severity::Error, "no-roots", parameter, problem, impact).fix(mend.clone()));
        };
        if !file.is_empty() {
            // Opened before smtp(8) enters its chroot.
            match CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>) {
                Ok(roots) if !roots.is_empty() => {}
                Ok(_) => add(FILE, format!("{file} has no certificate in it (smtp_tls_CAfile)")),
                Err(error) => add(FILE, format!("{file} cannot be read (smtp_tls_CAfile): {error}")),
            }
        } else if !folder.is_empty() {
            let jail = Path::new(self.instance.get("queue_directory")).join(folder.trim_start_matches('/'));
            let folder = if self.service.chroot { jail } else { PathBuf::from(folder) };
            if !has_hashed_certificate(&folder) {
                let problem = format!("{} has no hashed certificate in it (smtp_tls_CApath)", folder.display());
                add("smtp_tls_CApath", problem);
            }
        } else if self.get("tls_append_default_CA") != "yes" {
            add(FILE, "neither smtp_tls_CAfile nor smtp_tls_CApath is set".into());
        }
    }

    fn check_insecure_mx(&self, found: &mut Vec<Finding>) {
        const NAME: &str = "smtp_tls_dane_insecure_mx_policy";
        if !self.config.postfix.dnssec() || !self.instance.has_parameter(NAME) {
            return;
        }
        let real = self.get(NAME);
        let assumed = self.config.postfix.dane_insecure_mx_policy().name();
        if real != assumed {
            let problem = format!("under unsigned MX records `dane` is `{real}`; the daemon takes it for `{assumed}`");
            let impact = match real {
                "dane" => "The TLSA records of hosts under unsigned MX records are not asked for.",
                _ => "Those sessions are counted under DANE, and are not held to it.",
            };
            let finding = self.finding(Severity::Warning, "insecure-mx", NAME, problem, impact);
            found.push(finding.fix(format!("tlswarden.toml: [postfix] dane_insecure_mx_policy = \"{real}\"")));
        }
    }

    fn check_mx_patterns(&self, found: &mut Vec<Finding>) {
        const NAME: &str = "smtp_tls_enforce_sts_mx_patterns";
        if self.instance.has_parameter(NAME) && self.get(NAME) == "no" {
            let problem = "MX hosts that an MTA-STS policy does not name are not skipped".into();
            let impact = "RFC 8461 §4.1: mail must not go to a host that no pattern of the policy names.";
            found.push(
                self.finding(Severity::Warning, "patterns-ignored", NAME, problem, impact)
                    .fix(self.set_command(NAME, "yes")),
            );
        }
    }

    fn check_reply_size(&self, found: &mut Vec<Finding>) {
        const SIZE: &str = "socketmap_max_reply_size";
        if self.instance.get(SIZE).parse::<usize>().is_ok_and(|size| size < MAX_REPLY) {
            let problem = format!("it is {}; answers have up to {MAX_REPLY} bytes", self.instance.get(SIZE));
            let impact = "Postfix defers mail to domains with a longer policy.";
            found.push(
                self.finding(Severity::Warning, "reply-size", SIZE, problem, impact)
                    .fix(self.set_command(SIZE, &MAX_REPLY.to_string())),
            );
        }
    }
}

/// Whether two addresses are the same socket.
fn is_same_socket(ours: &ListenAddress, theirs: &ListenAddress) -> bool {
    match (ours, theirs) {
        (ListenAddress::Unix(a), ListenAddress::Unix(b)) => is_same_file(a, b),
        (ListenAddress::Inet(a), ListenAddress::Inet(b)) => {
            a.port() == b.port() && (a.ip() == b.ip() || a.ip().is_unspecified())
        }
        (ListenAddress::Unix(_), ListenAddress::Inet(_)) | (ListenAddress::Inet(_), ListenAddress::Unix(_)) => false,
    }
}

/// Whether two paths are the same file, which need not exist yet.
pub(super) fn is_same_file(a: &Path, b: &Path) -> bool {
    let real = |path: &Path| match (path.parent().map(Path::canonicalize), path.file_name()) {
        (Some(Ok(folder)), Some(name)) => folder.join(name),
        _ => path.to_owned(),
    };
    a == b || real(a) == real(b)
}

/// Whether a folder has a certificate under its hashed name (openssl-rehash(1)).
fn has_hashed_certificate(folder: &Path) -> bool {
    let hashed = |name: &str| {
        let (hash, number) = name.split_once('.').unwrap_or_default();
        hash.len() == 8 && hash.bytes().all(|b| b.is_ascii_hexdigit()) && number.parse::<u16>().is_ok()
    };
    std::fs::read_dir(folder).is_ok_and(|entries| entries.flatten().any(|e| e.file_name().to_str().is_some_and(hashed)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::OverrideSection;

    const SOCKET: &str = "/var/spool/postfix/tlswarden/socketmap";

    fn smtp(chroot: bool) -> MasterService {
        MasterService {
            name: "smtp".into(),
            kind: "unix".into(),
            command: "smtp".into(),
            chroot,
            ..MasterService::default()
        }
    }

    fn main_cf(maps: &str) -> Vec<(&str, &str)> {
        vec![
            ("mail_version", "3.7.11"),
            ("queue_directory", "/var/spool/postfix"),
            ("smtp_tls_policy_maps", maps),
            ("smtp_tls_security_level", "may"),
            ("smtp_tls_loglevel", "1"),
            ("smtp_dns_support_level", "dnssec"),
            ("smtp_host_lookup", "dns"),
            ("tls_append_default_CA", "yes"),
            ("smtp_tls_dane_insecure_mx_policy", "may"),
        ]
    }

    fn names(parameters: &[(&str, &str)], service: MasterService) -> String {
        let instance = PostfixInstance::for_tests(parameters, &[service]);
        let found = check_instance(&instance, &Config::default(), false, true);
        found.iter().map(|f| f.name.as_str()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_socket_is_looked_for_from_the_service_s_own_root() {
        for (maps, chroot, address) in [
            ("socketmap:unix:tlswarden/socketmap:policy", true, SOCKET),
            ("socketmap:unix:tlswarden/socketmap:policy", false, SOCKET),
            ("socketmap:unix:/tlswarden/socketmap:policy", true, SOCKET),
            ("socketmap:unix:/tlswarden/socketmap:policy", false, "/tlswarden/socketmap"),
            ("proxy:socketmap:unix:/var/spool/postfix/tlswarden/socketmap:policy", true, SOCKET),
        ] {
            let instance = PostfixInstance::for_tests(&main_cf(maps), &[smtp(chroot)]);
            let config = Config::default();
            let view = ServiceCheck { instance: &instance, service: &instance.smtp_clients[0], config: &config };
            let table = view.policy_tables().remove(0).1.unwrap();
            assert_eq!((table.address, table.map.as_str()), (ListenAddress::Unix(address.into()), "policy"), "{maps}");
            assert_eq!(view.our_table().is_some(), address == SOCKET, "{maps}");
            let wanted = if address == SOCKET { "" } else { "socket-elsewhere" };
            assert_eq!(names(&main_cf(maps), smtp(chroot)), wanted, "{maps}");
        }
        let instance =
            PostfixInstance::for_tests(&main_cf("hash:/a socketmap:inet:localhost:8461:policy tcp:a:1"), &[smtp(true)]);
        let config = Config::default();
        let view = ServiceCheck { instance: &instance, service: &instance.smtp_clients[0], config: &config };
        let tables: Vec<Option<ListenAddress>> =
            view.policy_tables().into_iter().map(|(_, t)| t.map(|t| t.address)).collect();
        assert_eq!(tables, [None, Some(ListenAddress::Inet(([127, 0, 0, 1], 8461).into())), None]);
    }

    #[test]
    fn files_of_answers_are_looked_for_where_each_service_opens_them() {
        let queue = tempfile::tempdir().unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut parameters = main_cf("socketmap:unix:tlswarden/socketmap:policy");
        parameters[1] = ("queue_directory", queue.path().to_str().unwrap());
        let mut config = Config::default();
        config.socketmap.listen = vec![ListenAddress::Unix(queue.path().join("tlswarden/socketmap"))];
        let answer = format!("secure tafile={}", file.path().display());
        config.policy.overrides =
            vec![OverrideSection { domain: "a.test".into(), answer: Some(answer), skip: None, none: false }];
        let fixes = |chroot| {
            let instance = PostfixInstance::for_tests(&parameters, &[smtp(chroot)]);
            let found = check_instance(&instance, &config, true, true);
            let found = found.into_iter().filter(|finding| finding.name == "override-file");
            found.flat_map(|finding| finding.fix).collect::<Vec<_>>()
        };
        assert_eq!(fixes(false), Vec::<String>::new());
        let copy = queue.path().join(file.path().strip_prefix("/").unwrap());
        assert_eq!(fixes(true), [format!("install -D -m 644 {} {}", file.path().display(), copy.display())]);
        std::fs::create_dir_all(copy.parent().unwrap()).unwrap();
        std::fs::write(&copy, "").unwrap();
        assert_eq!(fixes(true), Vec::<String>::new());
    }

    #[test]
    fn a_null_client_beside_instances_that_ask_is_only_told_to_ask() {
        let parameters = [("mail_version", "3.7.11"), ("queue_directory", "/var/spool/postfix")];
        let instance = PostfixInstance::for_tests(&parameters, &[smtp(true)]);
        let names = |asked| {
            let found = check_instance(&instance, &Config::default(), asked, !asked);
            found.iter().map(|finding| format!("{} {}", finding.severity, finding.name)).collect::<Vec<_>>().join(", ")
        };
        assert_eq!(names(true), "warning not-asked");
        assert!(
            names(false).contains("ERROR no-dnssec") && names(false).contains("ERROR no-roots"),
            "{}",
            names(false)
        );
    }

    #[test]
    fn what_the_daemon_took_from_postfix_it_is_told_to_look_at_again() {
        let mut parameters = main_cf("socketmap:unix:tlswarden/socketmap:policy");
        parameters[5] = ("smtp_dns_support_level", "");
        let instance = PostfixInstance::for_tests(&parameters, &[smtp(true)]);
        let found = check_instance(&instance, &Config::default(), false, true);
        let wanted = "postconf -e 'smtp_dns_support_level = dnssec' && postfix reload && tlswarden reload";
        assert!(found.iter().any(|finding| finding.fix == [wanted]), "{found:?}");
    }

    #[test]
    fn an_empty_level_obeys_the_older_parameters() {
        for (enforce, use_tls, wanted) in
            [("no", "no", "level-none level-differs"), ("no", "yes", ""), ("yes", "no", "level-differs")]
        {
            let mut parameters = main_cf("socketmap:unix:tlswarden/socketmap:policy");
            parameters[3] = ("smtp_tls_security_level", "");
            parameters.extend([("smtp_enforce_tls", enforce), ("smtp_use_tls", use_tls)]);
            assert_eq!(names(&parameters, smtp(true)), wanted);
        }
    }

    #[test]
    fn the_rule_for_a_list_of_relay_hosts_names_the_first() {
        let found = |relayhost| {
            let mut parameters = main_cf("socketmap:unix:tlswarden/socketmap:policy");
            parameters.push(("relayhost", relayhost));
            let instance = PostfixInstance::for_tests(&parameters, &[smtp(false)]);
            check_instance(&instance, &Config::default(), false, true)
        };
        let wanted = "tlswarden.toml: [[nexthop]] domain = \"*\", nexthop = \"[a.example]:587\"";
        let of_list = found("[a.example]:587, [b.example]:587");
        assert!(of_list.iter().any(|finding| finding.fix == [wanted]), "{of_list:?}");
    }

    #[test]
    fn a_filter_s_feeder_needs_no_policies() {
        let mut feeder = smtp(false);
        feeder.overrides.insert("disable_dns_lookups".into(), "yes".into());
        assert_eq!(names(&main_cf(""), feeder), "");
        assert_eq!(names(&main_cf(""), smtp(false)), "not-asked");
    }
}
