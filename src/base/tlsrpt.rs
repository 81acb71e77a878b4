//! The words of RFC 8460: policy types, result types, and what is counted under them.
//!
//! Takes: nothing. Gives: types that serialise to the names of the report schema (RFC 8460 §4.4).
//! Not here: which session is which result (`session`), or how counts become a report (`report`).

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
pub use tlswarden_parsers::event::Trust;

/// What kind of policy was applied (RFC 8460 §4.4, `policy-type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyType {
    /// DANE (RFC 7672).
    Tlsa,
    /// MTA-STS (RFC 8461).
    Sts,
    /// Neither.
    NoPolicyFound,
}

/// Why a session failed (RFC 8460 §4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResultType {
    /// The server did not offer STARTTLS, or refused it.
    StarttlsNotSupported,
    /// The certificate is for another name.
    CertificateHostMismatch,
    /// The certificate has expired.
    CertificateExpired,
    /// The certificate leads to no trusted root or matches no TLSA record.
    CertificateNotTrusted,
    /// What has no better word.
    ValidationFailure,
    /// No usable TLSA record.
    TlsaInvalid,
    /// A DNSSEC answer that did not validate.
    DnssecInvalid,
    /// DANE was required and there is none.
    DaneRequired,
    /// The MTA-STS document could not be fetched.
    StsPolicyFetchError,
    /// The MTA-STS document could not be read.
    StsPolicyInvalid,
    /// The policy host's own certificate did not pass.
    StsWebpkiInvalid,
}

impl fmt::Display for PolicyType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

impl fmt::Display for ResultType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// The policy that a session was held to (RFC 8460 §4.4, `policy`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Policy {
    /// Its kind.
    pub policy_type: PolicyType,
    /// The lines of the MTA-STS document as served, or the TLSA records as `3 1 1 HEX`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policy_string: Vec<String>,
    /// The domain that the policy belongs to (RFC 8460 §1.1): A-label, lower case, no trailing dot.
    pub policy_domain: String,
    /// The `mx` patterns of the MTA-STS document.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mx_host: Vec<String>,
}

impl Policy {
    /// The policy of a domain that published none.
    pub fn none(domain: &str) -> Policy {
        Policy {
            policy_type: PolicyType::NoPolicyFound,
            policy_string: Vec::new(),
            policy_domain: domain.to_owned(),
            mx_host: Vec::new(),
        }
    }
}

/// One kind of failure, all but its count (RFC 8460 §4.4, `failure-details`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Failure {
    /// Why.
    pub result_type: ResultType,
    /// Our own address on the connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sending_mta_ip: Option<IpAddr>,
    /// The MX host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receiving_mx_hostname: Option<String>,
    /// What that host called itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receiving_mx_helo: Option<String>,
    /// Its address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receiving_ip: Option<IpAddr>,
    /// Where more is said of it: a text, most often a URI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub additional_information: Option<String>,
    /// The cause, more finely: for example `self-signed_certificate`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_reason_code: Option<String>,
}

impl Failure {
    /// A failure of which nothing but the kind is known.
    pub fn new(result_type: ResultType, reason: Option<&str>) -> Failure {
        Failure {
            result_type,
            sending_mta_ip: None,
            receiving_mx_hostname: None,
            receiving_mx_helo: None,
            receiving_ip: None,
            additional_information: None,
            failure_reason_code: reason.map(str::to_owned),
        }
    }
}

/// A UTC day, counted from 1970-01-01 (RFC 8460 §4.1: reports cover a day from 00:00 to 24:00 UTC).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Day(pub i32);

impl Day {
    /// Seconds in a day.
    pub const SECONDS: i64 = 86_400;

    /// The day of a moment, in seconds since 1970-01-01T00:00:00Z.
    pub fn of(seconds: i64) -> Day {
        Day(i32::try_from(seconds.div_euclid(Day::SECONDS)).unwrap_or(i32::MAX))
    }

    /// Its first second, since 1970-01-01T00:00:00Z.
    pub fn start(self) -> i64 {
        i64::from(self.0) * Day::SECONDS
    }

    /// The first second of the next day.
    pub fn end(self) -> i64 {
        self.start() + Day::SECONDS
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_second(self.start()) {
            Ok(t) => write!(f, "{}", t.strftime("%Y-%m-%d")),
            Err(_) => write!(f, "day {}", self.0),
        }
    }
}

impl std::str::FromStr for Day {
    type Err = String;

    fn from_str(text: &str) -> Result<Day, String> {
        let date: jiff::civil::Date =
            text.parse().map_err(|_| format!("invalid date \"{text}\": expected YYYY-MM-DD"))?;
        let zoned = date.to_zoned(jiff::tz::TimeZone::UTC).map_err(|e| e.to_string())?;
        Ok(Day::of(zoned.timestamp().as_second()))
    }
}

impl Serialize for Day {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Day {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Day, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The result that a tally counts, for a day, a recipient domain and a policy.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TallyResult {
    /// A session that succeeded.
    Success,
    /// A session that failed.
    Failure,
    /// How: one for a failed session, and one more where the policy itself had failed.
    Detail(Failure),
    /// A session, counted as a success or failure too, whose message has a null sender: a bounce.
    NullSender,
}

/// What one tally is kept for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TallyKey {
    /// The UTC day.
    pub day: Day,
    /// The recipient domain: A-label, lower case, no trailing dot.
    pub domain: Arc<str>,
    /// The policy in force.
    pub policy: Arc<Policy>,
    /// The result.
    pub result: TallyResult,
}

impl Hash for TallyKey {
    /// Without the text of the policy: a domain has few policies on one day, and to hash their text takes longest.
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.day, &self.domain, self.policy.policy_type, &self.result).hash(state);
    }
}

/// All counts of one day, recipient domain and policy: one element of `policies` in a report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct TallyRow {
    /// The UTC day.
    pub day: Day,
    /// The recipient domain.
    pub domain: String,
    /// The policy in force.
    pub policy: Policy,
    /// `total-successful-session-count`.
    pub successful: u64,
    /// `total-failure-session-count`.
    pub failed: u64,
    /// How many of these sessions were for messages with a null sender, as far as the log shows it. In no report.
    pub null_sender: u64,
    /// `failure-details` and `failed-session-count`, sorted.
    pub details: Vec<(Failure, u64)>,
}

/// Sums counts by day, recipient domain and policy. The rows and their details are sorted.
pub fn sum_tallies(counts: impl IntoIterator<Item = (TallyKey, u64)>) -> Vec<TallyRow> {
    #[derive(Default)]
    struct Sums {
        successful: u64,
        failed: u64,
        null_sender: u64,
        details: BTreeMap<Failure, u64>,
    }
    let mut rows: BTreeMap<(Day, Arc<str>, Arc<Policy>), Sums> = BTreeMap::new();
    for (tally, n) in counts {
        let sums = rows.entry((tally.day, tally.domain, tally.policy)).or_default();
        match tally.result {
            TallyResult::Success => sums.successful += n,
            TallyResult::Failure => sums.failed += n,
            TallyResult::Detail(failure) => *sums.details.entry(failure).or_default() += n,
            TallyResult::NullSender => sums.null_sender += n,
        }
    }
    let row = |((day, domain, policy), sums): ((Day, Arc<str>, Arc<Policy>), Sums)| TallyRow {
        day,
        domain: domain.to_string(),
        policy: Arc::unwrap_or_clone(policy),
        successful: sums.successful,
        failed: sums.failed,
        null_sender: sums.null_sender,
        details: sums.details.into_iter().collect(),
    };
    rows.into_iter().map(row).collect()
}

/// What an MTA-STS policy asks of a sender (RFC 8461 §3.2, `mode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Do not deliver where the policy is not met.
    Enforce,
    /// Deliver, and report.
    Testing,
    /// No policy any more.
    None,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// The policy in force: what our responder had decided for a next hop when a session began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PolicyInForce {
    /// Nothing was published, or the destination was not asked about.
    None,
    /// An MTA-STS policy; its patterns are `policy.mx-host`.
    Sts {
        /// What was asked of the MTA: [`Mode::None`] where there is no policy, be it that none could be fetched.
        mode: Mode,
        /// The row that sessions are counted under.
        policy: Arc<Policy>,
        /// The policy failure: what went wrong with the document. One more detail on each session (RFC 8460 §4.3.2.2).
        failure: Option<Arc<Failure>>,
    },
    /// DANE: per MX host that has TLSA records, the row that its sessions are counted under.
    /// A host that is not listed has none.
    Dane {
        /// (MX host, its policy), the host in lower case without a trailing dot.
        hosts: Vec<(String, Arc<Policy>)>,
        /// The MX records are not signed, or that is not known: a certificate that passed the check may be logged as
        /// `Trusted` instead of `Verified` (half-dane).
        unsigned_mx: bool,
    },
    /// DANE without a usable TLSA record: the MTA had to use TLS, with any certificate (RFC 7672 §2.2). Each of its
    /// sessions is a failure of the records.
    UnusableTlsa {
        /// As of [`PolicyInForce::Dane`].
        hosts: Vec<(String, Arc<Policy>)>,
    },
    /// The mail had to wait, because DNSSEC or the TLSA records of the destination are broken: each attempt to deliver is a
    /// failure of the destination, although no host was connected to.
    Deferred {
        /// The row that it is counted under: DANE.
        policy: Arc<Policy>,
        /// What is broken, and at which host.
        failure: Arc<Failure>,
    },
    /// DANE at some MX hosts, and an MTA-STS policy at the others.
    PerHost {
        /// The hosts with TLSA records, as of [`PolicyInForce::Dane`].
        dane: Vec<(String, Arc<Policy>)>,
        /// What held at the others: [`PolicyInForce::Sts`].
        others: Box<PolicyInForce>,
        /// Where the MTA was told some hosts of the MTA-STS policy only, those: the others have TLSA records, or could not be
        /// asked for them.
        narrowed: Option<Vec<String>>,
    },
}

impl PolicyInForce {
    /// The policy in force at an MX host, where that does not depend on how the session ended.
    pub(crate) fn at_host(self, mx: Option<&str>) -> PolicyInForce {
        match self {
            PolicyInForce::PerHost { dane, others, narrowed: None } => match mx.and_then(|mx| row_of(&dane, mx)) {
                // Whether the MX records are signed is not stored beside an MTA-STS policy.
                Some(_) => PolicyInForce::Dane { hosts: dane, unsigned_mx: true }.at_host(mx),
                None => *others,
            },
            PolicyInForce::Dane { hosts, .. } if mx.and_then(|mx| row_of(&hosts, mx)).is_some_and(is_unusable) => {
                PolicyInForce::UnusableTlsa { hosts }
            }
            same => same,
        }
    }

    /// The policy in force at any of the MX hosts, where no line names the one.
    pub(crate) fn at_some_host(self) -> PolicyInForce {
        match self {
            PolicyInForce::Dane { hosts, .. } if !hosts.is_empty() && hosts.iter().all(|(_, row)| is_unusable(row)) => {
                PolicyInForce::UnusableTlsa { hosts }
            }
            same => same,
        }
    }

    /// The DANE policy of a host that an MTA-STS policy allows, and that the MTA was nevertheless told not to use.
    pub(crate) fn excluded(&self, mx: &str) -> Option<Arc<Policy>> {
        let PolicyInForce::PerHost { dane, others, narrowed: Some(told) } = self else { return None };
        let PolicyInForce::Sts { policy, .. } = &**others else { return None };
        let was_told = told.iter().any(|host| host.eq_ignore_ascii_case(mx));
        let allowed = policy.mx_host.iter().any(|pattern| mx_matches(pattern, mx));
        let without_records = || Policy {
            policy_type: PolicyType::Tlsa,
            policy_string: Vec::new(),
            policy_domain: mx.to_owned(),
            mx_host: Vec::new(),
        };
        (allowed && !was_told).then(|| row_of(dane, mx).map_or_else(|| Arc::new(without_records()), Arc::clone))
    }
}

/// Whether no TLSA record of a host can match any certificate, so that the MTA uses TLS with any (RFC 7672 §2.2, §3.1): by
/// its usage, selector and matching type, or because it has no data.
fn is_unusable(policy: &Arc<Policy>) -> bool {
    let is_usable = |record: &String| {
        let mut fields = record.split_ascii_whitespace();
        let numbers = (fields.next(), fields.next(), fields.next());
        matches!(numbers, (Some("2" | "3"), Some("0" | "1"), Some("0" | "1" | "2"))) && fields.next().is_some()
    };
    !policy.policy_string.iter().any(is_usable)
}

/// The policy of a host among those with TLSA records.
pub(crate) fn row_of<'a>(hosts: &'a [(String, Arc<Policy>)], mx: &str) -> Option<&'a Arc<Policy>> {
    hosts.iter().find(|(host, _)| host.eq_ignore_ascii_case(mx)).map(|(_, policy)| policy)
}

/// How a session ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SessionResult {
    /// As the policy asks.
    Success,
    /// Not, and why: the result type and, where one is known, a reason code.
    Failure(ResultType, Option<String>),
}

/// One session, assembled from the log and ready to be counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionOutcome {
    /// The time of its first line, in seconds since 1970-01-01T00:00:00Z: which policy was in force.
    pub began: i64,
    /// The time of its last line: the day that it is counted on, so that a day that is read past gets nothing more.
    pub ended: i64,
    /// The recipient domain, or the next hop where the MTA names it.
    pub domain: Arc<str>,
    /// The MX host.
    pub mx: Option<String>,
    /// Its address.
    pub ip: Option<IpAddr>,
    /// Its port, where the log names it.
    pub port: Option<u16>,
    /// What the MTA made of the certificate, where there was a handshake and the log level shows it.
    pub trust: Option<Trust>,
    /// Whether a TLSA record is what verified the certificate, where the MTA says which it was.
    pub dane: Option<bool>,
    /// What follows from the lines.
    pub observed: Option<SessionResult>,
    /// No host was connected to, because the MTA was told that the policy is not known: no session, but a failure where that
    /// is the destination's own fault.
    pub deferred: bool,
    /// Delivered in clear text without a try at TLS, and the log proves it: no session, but a failure where a policy in
    /// testing mode wanted one.
    pub clear_text: bool,
    /// What the MTA itself reports.
    pub native: Option<SessionResult>,
    /// What the MTA found wrong with a certificate that did not have to pass.
    pub cause: Option<(ResultType, Option<String>)>,
    /// Whether the MTA is known to have trust anchors: without, every certificate is `Untrusted`.
    pub anchors: bool,
    /// Whether the MTA has named `domain` as its next hop.
    pub next_hop_named: bool,
    /// Whether its message is known to have a null sender: a bounce.
    pub null_sender: bool,
    /// Whether the MTA has reported this session by itself, and the report was not lost on its way; `None` where nothing
    /// shows that it reports on this destination at all.
    pub reported: Option<bool>,
    /// The MTA, where this is a `Verified` session of an MTA that is not known to have trust anchors. It has some,
    /// unless the session was under DANE.
    pub anchors_shown_by: Option<Box<[u8]>>,
}

/// Whether an MX host is one of those that a policy's `mx` pattern allows: equal, or a `*.` in place of
/// exactly one left-most label (RFC 8461 §4.1). Both in A-labels; case does not matter.
pub fn mx_matches(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix("*.") {
        None => pattern.eq_ignore_ascii_case(host),
        Some(parent) => {
            host.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest.eq_ignore_ascii_case(parent))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_stand_for_one_label() {
        assert!(mx_matches("*.example.com", "MX.example.com"));
        assert!(mx_matches("mx.example.com", "mx.Example.com"));
        for host in ["a.b.example.com", "example.com", ".example.com", "mxexample.com"] {
            assert!(!mx_matches("*.example.com", host), "{host}");
        }
    }

    #[test]
    fn records_that_match_no_certificate_are_no_dane() {
        let host = |record: &str| {
            let policy = Policy { policy_string: vec![record.into()], ..Policy::none("mx.test") };
            vec![("mx.test".to_owned(), Arc::new(Policy { policy_type: PolicyType::Tlsa, ..policy }))]
        };
        for (record, usable) in [
            ("3 1 1 ab", true),
            ("2 0 2 ab", true),
            ("1 1 1 ab", false),
            ("3 2 1 ab", false),
            ("3 1 9 ab", false),
            ("3 1 1 ", false),
        ] {
            let dane = PolicyInForce::Dane { hosts: host(record), unsigned_mx: false };
            let want = if usable { dane.clone() } else { PolicyInForce::UnusableTlsa { hosts: host(record) } };
            assert_eq!(dane.clone().at_host(Some("MX.test")), want, "{record}");
            assert_eq!(dane.clone().at_host(Some("other.test")), dane, "{record}");
            assert_eq!(dane.clone().at_some_host(), want, "{record}");
        }
        let both = PolicyInForce::Dane { hosts: [host("1 1 1 ab"), host("3 1 1 ab")].concat(), unsigned_mx: false };
        assert_eq!(both.clone().at_some_host(), both);
    }

    #[test]
    fn days_are_utc_and_read_back() {
        let day: Day = "2026-11-22".parse().unwrap();
        assert_eq!(day.to_string(), "2026-11-22");
        assert_eq!(Day::of(day.end() - 1), day);
        assert_eq!(Day::of(day.end()), Day(day.0 + 1));
        assert_eq!(Day::of(-1), Day(-1));
        assert!("22.11.2026".parse::<Day>().is_err());
    }

    #[test]
    fn names_are_those_of_the_schema() {
        assert_eq!(ResultType::StarttlsNotSupported.to_string(), "starttls-not-supported");
        assert_eq!(serde_json::to_string(&ResultType::StsWebpkiInvalid).unwrap(), "\"sts-webpki-invalid\"");
        assert_eq!(serde_json::to_string(&PolicyType::NoPolicyFound).unwrap(), "\"no-policy-found\"");
    }
}
