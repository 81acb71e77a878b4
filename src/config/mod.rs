//! The configuration: one commented section a module, defaults that suit a Debian host.
//!
//! Takes: the text of `tlswarden.toml`. Gives: [`Config`], checked; printed by `check-config`, it reads back equal.
//! When it fails: one line that names file, line, key, what was found and what is allowed (exit 78).
//! Not here: whether what it names exists on this host (`daemon`).

mod addresses;
pub(crate) mod detect;
pub mod identity;
mod limits;
mod locate;
mod override_answer;
mod overrides;
mod postconf_output;
mod postfix_relays;
mod sending_address;
mod similar;
mod toml_errors;
mod validate;
mod values;
pub(crate) mod warnings;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tlswarden_parsers::Dialect;

pub(crate) use postconf_output::split_list;
pub use validate::{ConfigError, parse_toml, time_zone};

use crate::base::network::{HttpsCertificates, NetworkExceptions};
use crate::base::tlsrpt::Day;

/// The whole file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where state is kept.
    pub store: StoreSection,
    /// How the command line reaches the daemon.
    pub control: ControlSection,
    /// What is known of the Postfix that asks.
    pub postfix: PostfixSection,
    /// Where Postfix asks.
    pub socketmap: SocketmapSection,
    /// Where Exim asks.
    pub readsocket: ReadsocketSection,
    /// The resolver.
    pub resolver: ResolverSection,
    /// How policies are found and kept.
    pub policy: PolicySection,
    /// Reports.
    pub report: ReportSection,
    /// Where the daemon shows its metrics.
    pub status: StatusSection,
    /// For tests in closed networks alone.
    #[serde(skip_serializing_if = "is_default")]
    pub closed_network: ClosedNetworkSection,
    /// Which sessions count, and what is said of them.
    pub count: CountSection,
    /// Where mail goes that does not go to the recipient domain's own hosts.
    #[serde(rename = "nexthop")]
    pub next_hops: Vec<NextHopSection>,
    /// What is read.
    #[serde(rename = "input")]
    pub inputs: Vec<InputSection>,
}

/// `[store]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreSection {
    /// The folder of the embedded store.
    pub path: PathBuf,
}

/// `[control]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ControlSection {
    /// The control socket, mode 0600.
    pub socket: PathBuf,
    /// The socket that only reads, mode 0660; without it `status.sock` in the folder of `socket`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status_socket: Option<PathBuf>,
    /// The group that may use it, by name or number; without it the daemon's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status_group: Option<String>,
}

impl ControlSection {
    /// The socket that only reads.
    pub fn status_socket(&self) -> PathBuf {
        self.status_socket.clone().unwrap_or_else(|| self.socket.with_file_name("status.sock"))
    }
}

/// `[postfix]`; what is not said here is asked of Postfix when the daemon starts (`detect`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PostfixSection {
    /// Its version (`postconf -h mail_version`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<PostfixVersion>,
    /// Its `smtp_tls_security_level`: what a destination without a policy gets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_level: Option<PostfixLevel>,
    /// Whether it has `smtp_dns_support_level = dnssec`; where not, no `dane*` answer is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dnssec: Option<bool>,
    /// Its `smtp_tls_dane_insecure_mx_policy`: what `dane` means under unsigned MX records.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dane_insecure_mx_policy: Option<InsecureMxPolicy>,
    /// Its `relayhost`: the next hop of all mail that has no other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relayhost: Option<String>,
    /// The other next hops that mail may take: those of its transport maps, fallback relays, relay hosts by sender.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relays: Option<Vec<String>>,
    /// Whether Postfix was found to relay all mail that has no other next hop, also where `relayhost` can have no policy.
    #[serde(skip)]
    pub relays_all: bool,
    /// Which of Postfix's own results count (`smtp_tlsrpt_enable`, from 3.10 on).
    pub tlsrpt: NativeTlsrpt,
}

impl PostfixSection {
    /// Its version; where nothing is known the oldest that is supported, which knows the fewest attributes.
    pub fn version(&self) -> PostfixVersion {
        self.version.unwrap_or(PostfixVersion::new(3, 7))
    }

    /// Its own level; where nothing is known `may`.
    pub fn default_level(&self) -> PostfixLevel {
        self.default_level.unwrap_or(PostfixLevel::May)
    }

    /// Whether it does DNSSEC; where nothing is known it is taken to.
    pub fn dnssec(&self) -> bool {
        self.dnssec.unwrap_or(true)
    }

    /// What `dane` means under unsigned MX records; where nothing is known the default of its version (postconf(5)):
    /// `dane`, but for the releases from 3.6 on that had `may` at every own level except `dane`.
    pub(crate) fn dane_insecure_mx_policy(&self) -> InsecureMxPolicy {
        let version = self.version();
        let dane_since = match (version.major, version.minor) {
            (3, 6) => Some(17),
            (3, 7) => Some(13),
            (3, 8) => Some(8),
            (3, 9) => Some(2),
            _ => None,
        };
        let had_may = dane_since.is_some_and(|patch| version.patch.is_none_or(|own| own < patch));
        let default = match had_may && self.default_level() != PostfixLevel::Dane {
            true => InsecureMxPolicy::May,
            false => InsecureMxPolicy::Dane,
        };
        self.dane_insecure_mx_policy.unwrap_or(default)
    }
}

/// Postfix's `smtp_tls_dane_insecure_mx_policy` (postconf(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InsecureMxPolicy {
    /// TLS where it is offered.
    May,
    /// TLS, to any certificate.
    Encrypt,
    /// DANE at the hosts that have TLSA records.
    Dane,
}

impl InsecureMxPolicy {
    /// As Postfix writes it.
    pub fn name(self) -> &'static str {
        match self {
            InsecureMxPolicy::May => "may",
            InsecureMxPolicy::Encrypt => "encrypt",
            InsecureMxPolicy::Dane => "dane",
        }
    }
}

/// Which of Postfix's own TLSRPT results are counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NativeTlsrpt {
    /// None: what its lines about TLS come to counts.
    Off,
    /// The `TLSRPT:` lines, where its log has them.
    #[default]
    Log,
    /// The datagrams of its libtlsrpt, and its log where those say nothing.
    Datagrams,
}

/// `[count]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CountSection {
    /// Networks that are not the world: sessions to their hosts (content filters, mail stores) do not count.
    #[serde(deserialize_with = "validate::deserialize_networks")]
    pub local_networks: Vec<IpNet>,
    /// The addresses that mail is sent from, for `sending-mta-ip`; without one of a family, the host's own for that
    /// destination.
    pub sending_addresses: Vec<IpAddr>,
    /// The families of which Postfix has several, so that the address of a session is not known.
    #[serde(skip)]
    pub sending_addresses_vary: VaryingFamilies,
}

/// Families of addresses of which there are several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VaryingFamilies {
    /// IPv4.
    pub v4: bool,
    /// IPv6.
    pub v6: bool,
}

/// `[[nexthop]]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NextHopSection {
    /// A recipient domain, `.example.com` for all that is below it, or `*`; the nearest counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// The name of a host as in `relay=` of the log, `.example.com` for all below it, or its address; takes precedence
    /// over `domain`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relay: Option<String>,
    /// The next hop as in `relayhost` or `transport_maps`: its policy domain is what sessions count under.
    pub nexthop: String,
}

/// The level that Postfix has without a policy (postconf(5), `smtp_tls_security_level`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum PostfixLevel {
    None,
    May,
    Encrypt,
    Dane,
    DaneOnly,
    Verify,
    Secure,
    Fingerprint,
    /// One that this program does not know: no answer is given that replaces it.
    Unknown,
}

impl PostfixLevel {
    /// Each that Postfix knows, with its name.
    pub const ALL: [(PostfixLevel, &'static str); 8] = [
        (PostfixLevel::None, "none"),
        (PostfixLevel::May, "may"),
        (PostfixLevel::Encrypt, "encrypt"),
        (PostfixLevel::Dane, "dane"),
        (PostfixLevel::DaneOnly, "dane-only"),
        (PostfixLevel::Verify, "verify"),
        (PostfixLevel::Secure, "secure"),
        (PostfixLevel::Fingerprint, "fingerprint"),
    ];

    /// As Postfix writes it.
    pub fn name(self) -> &'static str {
        PostfixLevel::ALL.iter().find(|(level, _)| *level == self).map_or("unknown", |(_, name)| name)
    }

    /// The level of this name, if Postfix has one.
    pub(crate) fn from_name(name: &str) -> Option<PostfixLevel> {
        PostfixLevel::ALL.iter().find(|(_, known)| *known == name).map(|(level, _)| *level)
    }
}

/// A Postfix release, such as `3.7` or `3.10.13`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PostfixVersion {
    /// Before the dot.
    pub major: u16,
    /// After the dot.
    pub minor: u16,
    /// After the second dot; nothing where it is not known.
    pub patch: Option<u16>,
}

impl PostfixVersion {
    /// A release whose patch level is not known; every known patch level is a later one.
    pub const fn new(major: u16, minor: u16) -> PostfixVersion {
        PostfixVersion { major, minor, patch: None }
    }

    /// Whether its smtp(8) crashes at `policy_type=sts` without a `policy_string` or without an `mx_host_pattern` (a null
    /// pointer, where it sends TLSRPT results). A patch level that is not known is taken to be an early one.
    pub(crate) fn crashes_without_policy_details(self) -> bool {
        (self.major, self.minor) == (3, 10) && self.patch.is_none_or(|patch| patch <= 5)
    }

    /// Whether a TLSA record without data ends its smtp(8) (`panic: mymalloc: requested length 0`): every 3.7, and later
    /// releases before the patch that mended it. A patch level that is not known is taken to be an early one.
    pub fn ends_at_dataless_tlsa(self) -> bool {
        let before = |patch| self.patch.is_none_or(|own| own < patch);
        match (self.major, self.minor) {
            (..=2, _) | (3, ..=7) => true,
            (3, 8) => before(18),
            (3, 9) => before(12),
            (3, 10) => before(11),
            (3, 11) => before(4),
            _ => false,
        }
    }
}

/// `[socketmap]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SocketmapSection {
    /// Addresses to listen on: `unix:/path` or `inet:127.0.0.1:8461`, any number.
    pub listen: Vec<ListenAddress>,
}

/// `[readsocket]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReadsocketSection {
    /// Addresses to listen on: `unix:/path` or `inet:127.0.0.1:8462`, any number.
    pub listen: Vec<ListenAddress>,
}

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ListenAddress {
    /// A unix-domain socket, made with mode 0666: the folder says who may.
    Unix(PathBuf),
    /// TCP.
    Inet(SocketAddr),
}

/// `[resolver]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ResolverSection {
    /// The validating resolver; without it the first loopback `nameserver` of `/etc/resolv.conf`, or all its nameservers
    /// where none is on loopback.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "validate::deserialize_address")]
    pub address: Option<SocketAddr>,
}

/// `[policy]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PolicySection {
    /// How long Postfix waits for a first answer at most.
    pub answer_budget: ConfigDuration,
    /// How many domains' policies are kept.
    pub max_domains: usize,
    /// What is answered where no resolver validates.
    pub without_dnssec: WithoutDnssec,
    /// What is said about single domains.
    #[serde(rename = "override")]
    pub overrides: Vec<OverrideSection>,
}

/// What is answered where DANE cannot be known, for no resolver validates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WithoutDnssec {
    /// As if no domain had DANE.
    #[default]
    StsOnly,
    /// TEMP: mail waits until a resolver validates.
    Temp,
}

/// `[[policy.override]]`: one of `answer`, `skip` and `none`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OverrideSection {
    /// A domain, or `.example.com` for all that is below it; the nearest counts. The name of a smart host in brackets
    /// is written without them.
    pub domain: String,
    /// A fixed answer, in the words of `smtp_tls_policy_maps`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// What is not looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skip: Option<OverrideSkip>,
    /// No policy: the host's own default.
    #[serde(default, skip_serializing_if = "is_default")]
    pub none: bool,
}

/// The policy that an override ignores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OverrideSkip {
    /// DANE: MTA-STS alone counts.
    Dane,
    /// MTA-STS: DANE alone counts.
    Sts,
}

/// `[report]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReportSection {
    /// `organization-name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub organization: Option<String>,
    /// `contact-info`: an address that a person reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contact: Option<String>,
    /// The From address; its domain is the submitter and signs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The envelope sender, where bounces go; without it `from`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub envelope: Option<String>,
    /// How mail is handed over: `smtp:localhost:25`, `sendmail:/usr/sbin/sendmail`, `submission:mail.example.com:587`
    /// (STARTTLS) or `submissions:mail.example.com:465` (TLS from the first octet).
    pub deliver: DeliveryMethod,
    /// Who logs in at the submission server; without it nobody does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The file with the password, alone on its first line; `credential:NAME` is one that systemd hands over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<PathBuf>,
    /// One more root for the submission server's certificate, PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// What is done about a receiver by https whose certificate does not pass.
    pub https_certificates: HttpsCertificates,
    /// Over how long a time after midnight UTC reports are spread.
    pub spread: ConfigDuration,
    /// How long counts and unsent reports are kept after their day.
    pub retention: ConfigDuration,
    /// Whether a report goes only where something failed.
    pub only_failures: bool,
    /// Whether a report goes where all mail of the day had a null sender.
    pub null_sender: bool,
    /// The domains and MX hosts that get reports, `.example.com` for all below it; where it is empty, all do.
    pub allow: Vec<String>,
    /// The most destinations that one report goes to.
    pub max_destinations: usize,
    /// The largest report that is sent, in octets, as it is on its way.
    pub max_size: usize,
    /// Whether reports by mail wait while no published DKIM record matches a key.
    pub check_dkim: bool,
    /// Who signs.
    pub dkim: DkimSigning,
    /// Who gets no reports.
    pub suppress: Vec<SuppressSection>,
}

/// Who signs reports: `"mta"`, or the keys in `[[report.dkim]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum DkimSigning {
    /// The MTA's own signer, such as a milter.
    #[serde(serialize_with = "validate::serialize_mta")]
    Mta,
    /// We do: every key signs every report.
    Keys(Vec<DkimKeySection>),
}

/// `[[report.suppress]]`: `domain` or `destination`, or both in two sections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SuppressSection {
    /// The domain or MX host that a report would be about, `.example.com` for all below it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Where it would go: an address, a URI, or the name of a mail domain or web server, `.example.com` for all below it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<String>,
    /// The last day whose reports are left out; without it all are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Day>,
}

/// `[[report.dkim]]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DkimKeySection {
    /// `s=`.
    pub selector: String,
    /// `d=`; without it the domain of `from`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// The private key, PEM: RSA of 2048 bits or more, or Ed25519.
    pub key: PathBuf,
}

/// How report mail is delivered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeliveryMethod {
    /// SMTP without TLS to the MTA on this host, at its loopback address of either family: an IPv6-only host has no other.
    Localhost(u16),
    /// SMTP without TLS to an MTA at this address.
    Smtp(SocketAddr),
    /// The sendmail command.
    Sendmail(PathBuf),
    /// A submission server: host and port, TLS by STARTTLS.
    Submission(String, u16),
    /// A submission server: host and port, TLS from the first octet (RFC 8314 §3.3).
    Submissions(String, u16),
}

/// `[status]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StatusSection {
    /// Addresses where `/metrics` is served: `inet:127.0.0.1:9845` or `unix:/path`, any number; none by default.
    pub listen: Vec<ListenAddress>,
}

/// `[closed_network]`: what tests in a network without the Internet need. Refused together with a public resolver.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClosedNetworkSection {
    /// One more root for policy hosts, PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extra_root: Option<PathBuf>,
    /// Where every policy host is reached, in place of its own address and port 443.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "validate::deserialize_address")]
    pub policy_hosts: Option<SocketAddr>,
    /// Whether policy hosts and receivers may have private and loopback addresses.
    #[serde(skip_serializing_if = "is_default")]
    pub private_addresses: bool,
    /// What the clock shows at start (RFC 3339).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clock: Option<jiff::Timestamp>,
    /// How often a part that is off is tried again, in place of every minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<ConfigDuration>,
}

impl ClosedNetworkSection {
    /// What the network clients need of it.
    pub fn exceptions(&self) -> NetworkExceptions {
        NetworkExceptions {
            extra_root: self.extra_root.clone(),
            policy_hosts: self.policy_hosts,
            private_addresses: self.private_addresses,
        }
    }
}

/// `[[input]]`: one of `file`, `journal`, `stdin` and `datagrams`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InputSection {
    /// A log file, or a pattern with `*`, `?` or `[…]` for several, each followed by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// The systemd journal: `true` for the host's, or the folder of another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub journal: Option<JournalLocation>,
    /// Of the journal, the entries that name themselves so; without identifiers and units all of facility mail.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub identifiers: Vec<String>,
    /// Of the journal, the entries of these units (journalctl(1), `--unit`).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub units: Vec<String>,
    /// Standard input.
    #[serde(skip_serializing_if = "is_default")]
    pub stdin: bool,
    /// The socket that Postfix sends TLSRPT datagrams to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub datagrams: Option<PathBuf>,
    /// Its mode, in octal; without it 0666: the folder says who may.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// Whose log it is.
    #[serde(deserialize_with = "validate::deserialize_mta")]
    pub mta: Dialect,
    /// The IANA name of the zone of its time stamps, where they have none; without it the host's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
    /// Where reading begins where the input is new; without it after the newest line counted of inputs that are gone, or
    /// else at the beginning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<InputStart>,
}

/// Where an input begins that has not been read before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum InputStart {
    /// At its oldest line.
    Beginning,
    /// At the next line.
    Now,
    /// At a time.
    Time(jiff::Timestamp),
}

impl TryFrom<String> for InputStart {
    type Error = String;

    fn try_from(text: String) -> Result<InputStart, String> {
        match text.as_str() {
            "beginning" => Ok(InputStart::Beginning),
            "now" => Ok(InputStart::Now),
            time => time.parse().map(InputStart::Time).map_err(|_| {
                format!("invalid start \"{text}\": expected \"beginning\", \"now\" or a time such as \"2026-11-22T00:00:00Z\"")
            }),
        }
    }
}

impl From<InputStart> for String {
    fn from(start: InputStart) -> String {
        match start {
            InputStart::Beginning => "beginning".into(),
            InputStart::Now => "now".into(),
            InputStart::Time(time) => time.to_string(),
        }
    }
}

/// Which journal is read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum JournalLocation {
    /// The host's own, with `true`.
    Host(bool),
    /// That of a folder.
    Folder(PathBuf),
}

/// What an input reads.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum InputKind<'a> {
    /// One file.
    File(&'a Path),
    /// Files by a pattern.
    Files(&'a Path),
    /// The host's journal, or a folder's.
    Journal(Option<&'a Path>),
    /// Standard input.
    Stdin,
    /// A datagram socket.
    Datagrams(&'a Path),
}

impl InputSection {
    /// A log file.
    pub fn file(path: impl Into<PathBuf>) -> InputSection {
        InputSection { file: Some(path.into()), ..InputSection::default() }
    }

    /// What it reads; `None` unless exactly one is set.
    pub fn kind(&self) -> Option<InputKind<'_>> {
        let journal = match &self.journal {
            None | Some(JournalLocation::Host(false)) => None,
            Some(JournalLocation::Host(true)) => Some(InputKind::Journal(None)),
            Some(JournalLocation::Folder(path)) => Some(InputKind::Journal(Some(path))),
        };
        let pattern = |path: &Path| path.as_os_str().as_encoded_bytes().iter().any(|b| b"*?[".contains(b));
        let file = self.file.as_deref().map(|path| match pattern(path) {
            true => InputKind::Files(path),
            false => InputKind::File(path),
        });
        let stdin = self.stdin.then_some(InputKind::Stdin);
        let mut named =
            [file, journal, stdin, self.datagrams.as_deref().map(InputKind::Datagrams)].into_iter().flatten();
        named.next().filter(|_| named.next().is_none())
    }
}

impl fmt::Display for InputKind<'_> {
    /// Its name, under which its mark and open state are stored.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            InputKind::File(path) | InputKind::Files(path) => write!(f, "{}", path.display()),
            InputKind::Journal(None) => f.write_str("journal"),
            InputKind::Journal(Some(folder)) => write!(f, "journal {}", folder.display()),
            InputKind::Stdin => f.write_str("stdin"),
            InputKind::Datagrams(path) => write!(f, "datagrams {}", path.display()),
        }
    }
}

/// A duration, such as `5s`, `4h`, `3days`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ConfigDuration(pub Duration);

impl Default for StoreSection {
    fn default() -> Self {
        StoreSection { path: "/var/lib/tlswarden".into() }
    }
}

impl Default for ControlSection {
    fn default() -> Self {
        ControlSection { socket: "/run/tlswarden/control".into(), status_socket: None, status_group: None }
    }
}

impl Default for CountSection {
    fn default() -> Self {
        CountSection {
            local_networks: default_local_networks(),
            sending_addresses: Vec::new(),
            sending_addresses_vary: VaryingFamilies::default(),
        }
    }
}

/// Loopback, private use, link-local (RFC 6890): nobody in them publishes a policy.
pub(crate) fn default_local_networks() -> Vec<IpNet> {
    const LOCAL: [&str; 9] = [
        "127.0.0.0/8",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "169.254.0.0/16",
        "100.64.0.0/10",
        "::1/128",
        "fc00::/7",
        "fe80::/10",
    ];
    LOCAL.iter().filter_map(|network| network.parse().ok()).collect()
}

impl Default for SocketmapSection {
    fn default() -> Self {
        SocketmapSection { listen: vec![ListenAddress::Unix("/var/spool/postfix/tlswarden/socketmap".into())] }
    }
}

impl Default for PolicySection {
    fn default() -> Self {
        PolicySection {
            answer_budget: ConfigDuration(Duration::from_secs(5)),
            max_domains: 100_000,
            without_dnssec: WithoutDnssec::default(),
            overrides: Vec::new(),
        }
    }
}

impl Default for ReportSection {
    fn default() -> Self {
        ReportSection {
            organization: None,
            contact: None,
            from: None,
            envelope: None,
            deliver: DeliveryMethod::Localhost(25),
            spread: ConfigDuration(Duration::from_secs(4 * 3600)),
            retention: ConfigDuration(Duration::from_secs(3 * 86_400)),
            user: None,
            password: None,
            ca_file: None,
            https_certificates: HttpsCertificates::Ignore,
            only_failures: false,
            null_sender: false,
            allow: Vec::new(),
            max_destinations: 5,
            max_size: 10_000_000,
            check_dkim: true,
            dkim: DkimSigning::Keys(Vec::new()),
            suppress: Vec::new(),
        }
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(version: &str, level: PostfixLevel) -> PostfixSection {
        let version = Some(version.to_owned().try_into().unwrap());
        PostfixSection { version, default_level: Some(level), ..PostfixSection::default() }
    }

    #[test]
    fn the_default_for_unsigned_mx_records_is_that_of_the_patch_level() {
        use InsecureMxPolicy::{Dane, May};
        for (version, at_may) in [
            ("3.5.25", Dane),
            ("3.6.16", May),
            ("3.6.17", Dane),
            ("3.7", May),
            ("3.7.11", May),
            ("3.7.13", Dane),
            ("3.8.7", May),
            ("3.8.8", Dane),
            ("3.9.1", May),
            ("3.9.2", Dane),
            ("3.10", Dane),
            ("3.11.1", Dane),
        ] {
            assert_eq!(section(version, PostfixLevel::May).dane_insecure_mx_policy(), at_may, "{version}");
            assert_eq!(section(version, PostfixLevel::Dane).dane_insecure_mx_policy(), Dane, "{version}");
        }
        let set = PostfixSection { dane_insecure_mx_policy: Some(May), ..section("3.10.13", PostfixLevel::Dane) };
        assert_eq!(set.dane_insecure_mx_policy(), May);
    }

    #[test]
    fn a_tlsa_record_without_data_ends_these_releases() {
        for (version, ends) in [
            ("3.5.25", true),
            ("3.7", true),
            ("3.7.99", true),
            ("3.8", true),
            ("3.8.17", true),
            ("3.8.18", false),
            ("3.9.11", true),
            ("3.9.12", false),
            ("3.10", true),
            ("3.10.10", true),
            ("3.10.11", false),
            ("3.11.3", true),
            ("3.11.4", false),
            ("3.12.0", false),
        ] {
            let version: PostfixVersion = version.to_owned().try_into().unwrap();
            assert_eq!(version.ends_at_dataless_tlsa(), ends, "{version:?}");
        }
    }
}
