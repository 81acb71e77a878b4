//! Sessions from the datagrams of Postfix's libtlsrpt: each says what came of one connection, and under which policy.
//!
//! Takes: one datagram, JSON (libtlsrpt 0.5, version 1; earlier ones name none). Gives: a [`ReportedSession`] for each policy in it.
//! Limits: [`MAX_POLICIES`], [`MAX_FAILURES`] and [`MAX_STRINGS`] a policy; beyond them, [`DatagramError`].
//! Texts of strangers (what a server calls itself) are cut to the name in them.
//! When it fails: [`DatagramError`] names the cause, for a counter; nothing of the datagram counts.
//! Not here: the socket (`input::datagram`), what a result counts as (`tally`).

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use serde::Deserialize;

use crate::base::domain_name;
use crate::base::tlsrpt::{Failure, Policy, PolicyType, ResultType};
use crate::counting::session::reason::{DANE_NO_MATCH, in_words_of_rfc8460};

/// The one version of the protocol.
const VERSION: &str = "1";

/// Policies in one datagram: Postfix sends one; DANE and MTA-STS at once are two.
pub const MAX_POLICIES: usize = 16;

/// Failures of one session: Postfix reports the first.
pub const MAX_FAILURES: usize = 64;

/// Lines of a policy, or `mx` patterns: a document of 64 KiB has more, and no policy that is in use.
pub const MAX_STRINGS: usize = 1024;

/// One session as Postfix reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportedSession {
    /// The recipient domain, or the next hop.
    pub domain: Arc<str>,
    /// The policy that Postfix had applied.
    pub policy: Arc<Policy>,
    /// Whether that policy is MTA-STS in testing mode.
    pub(crate) testing: bool,
    /// Whether the session failed.
    pub failed: bool,
    /// Why; Postfix may name a cause of a session that succeeded.
    pub failures: Vec<Failure>,
}

/// Why a datagram is not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DatagramError {
    /// It is not UTF-8.
    NotUtf8,
    /// It is no JSON, or not of that shape.
    Malformed,
    /// It is of a version that is not known.
    UnknownVersion,
    /// An invalid name, policy type or failure code.
    UnknownValue,
    /// More policies, failures or lines than are read.
    TooMany,
}

impl DatagramError {
    /// The cause, for people.
    pub(crate) const fn cause(self) -> &'static str {
        match self {
            DatagramError::NotUtf8 => "it is not UTF-8",
            DatagramError::Malformed => "it is no JSON of libtlsrpt's",
            DatagramError::UnknownVersion => "its version is not known",
            DatagramError::UnknownValue => "a domain, policy type or failure code in it is none",
            DatagramError::TooMany => "it has more policies or failures than are read",
        }
    }
}

impl fmt::Display for DatagramError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.cause())
    }
}

#[derive(Deserialize)]
struct RawDatagram<'a> {
    #[serde(borrow, default)]
    dpv: Option<Cow<'a, str>>,
    #[serde(borrow)]
    d: Cow<'a, str>,
    #[serde(borrow)]
    policies: Vec<RawPolicy<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct RawPolicy<'a> {
    policy_type: u32,
    #[serde(borrow, default)]
    policy_domain: Option<Cow<'a, str>>,
    #[serde(default)]
    policy_string: Vec<String>,
    #[serde(default)]
    mx_host: Vec<String>,
    #[serde(borrow, default)]
    failure_details: Vec<RawFailure<'a>>,
    f: u32,
}

#[derive(Deserialize)]
struct RawFailure<'a> {
    c: u32,
    #[serde(borrow, default)]
    s: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    n: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    h: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    r: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    a: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    f: Option<Cow<'a, str>>,
}

/// Reads one datagram. libtlsrpt hands bytes from 0x80 on through as they are, so that what is not UTF-8 in a server's
/// reply to EHLO does no harm; elsewhere it does.
pub fn decode(bytes: &[u8]) -> Result<Vec<ReportedSession>, DatagramError> {
    match std::str::from_utf8(bytes) {
        Ok(text) => decode_text(text),
        Err(_) => decode_text(&String::from_utf8_lossy(bytes)).map_err(|_| DatagramError::NotUtf8),
    }
}

fn decode_text(text: &str) -> Result<Vec<ReportedSession>, DatagramError> {
    let datagram: RawDatagram<'_> = serde_json::from_str(text).map_err(|_| DatagramError::Malformed)?;
    if datagram.dpv.is_some_and(|version| version != VERSION) {
        return Err(DatagramError::UnknownVersion);
    }
    if datagram.policies.len() > MAX_POLICIES {
        return Err(DatagramError::TooMany);
    }
    let domain: Arc<str> = domain_name::normalize(&datagram.d).ok_or(DatagramError::UnknownValue)?.into();
    datagram.policies.into_iter().map(|policy| decode_policy(&domain, policy)).collect()
}

fn decode_policy(domain: &Arc<str>, raw: RawPolicy<'_>) -> Result<ReportedSession, DatagramError> {
    let strings = raw.policy_string.len().max(raw.mx_host.len());
    if raw.failure_details.len() > MAX_FAILURES || strings > MAX_STRINGS {
        return Err(DatagramError::TooMany);
    }
    let policy_type = match raw.policy_type {
        1 => PolicyType::Tlsa,
        2 => PolicyType::Sts,
        9 => PolicyType::NoPolicyFound,
        _ => return Err(DatagramError::UnknownValue),
    };
    let policy_domain = match raw.policy_domain {
        // Postfix before 3.10.5 leaves it out where there is no policy.
        None => domain.to_string(),
        Some(name) => domain_name::normalize(&name).ok_or(DatagramError::UnknownValue)?,
    };
    let mode = |line: &String| {
        line.split_once(':').is_some_and(|(key, value)| key.trim() == "mode" && value.trim() == "testing")
    };
    let testing = policy_type == PolicyType::Sts && raw.policy_string.iter().any(mode);
    let failed = match raw.f {
        0 => false,
        1 => true,
        _ => return Err(DatagramError::UnknownValue),
    };
    let mut failures = raw.failure_details.into_iter().map(decode_failure).collect::<Result<Vec<_>, _>>()?;
    let mut policy_string = raw.policy_string;
    if policy_type == PolicyType::Tlsa {
        // As our own look-up writes them, so that a report has each policy once.
        policy_string.iter_mut().for_each(|record| record.make_ascii_lowercase());
        policy_string.sort();
        policy_string.dedup();
        failures.iter_mut().for_each(|failure| name_dane_mismatch(failure, &policy_string));
    }
    let policy = Policy { policy_type, policy_string, policy_domain, mx_host: raw.mx_host };
    Ok(ReportedSession { domain: Arc::clone(domain), policy: Arc::new(policy), testing, failed, failures })
}

/// Postfix does not say why a certificate was not trusted under DANE. Where only the key counts (usage 3, RFC 7672 §3.1.1),
/// no record fits it.
fn name_dane_mismatch(failure: &mut Failure, records: &[String]) {
    let not_trusted = failure.result_type == ResultType::CertificateNotTrusted && failure.failure_reason_code.is_none();
    if not_trusted && records.iter().all(|record| record.starts_with("3 ")) {
        failure.failure_reason_code = Some(DANE_NO_MATCH.to_owned());
    }
}

fn decode_failure(raw: RawFailure<'_>) -> Result<Failure, DatagramError> {
    let address = |text: Option<Cow<'_, str>>| text.and_then(|text| text.parse::<IpAddr>().ok());
    let result = result_type(raw.c).ok_or(DatagramError::UnknownValue)?;
    let (result, code) = in_words_of_rfc8460(result, raw.f.as_deref().map(|text| printable(text, MAX_CODE)));
    Ok(Failure {
        sending_mta_ip: address(raw.s),
        receiving_mx_hostname: raw.n.and_then(|name| domain_name::normalize(&name)),
        receiving_mx_helo: raw.h.as_deref().and_then(parse_helo),
        receiving_ip: address(raw.r),
        additional_information: raw.a.as_deref().map(|text| printable(text, MAX_INFORMATION)),
        ..Failure::new(result, code.as_deref())
    })
}

/// The longest failure reason code and additional information that are kept, in characters.
const MAX_CODE: usize = 64;
const MAX_INFORMATION: usize = 256;

/// libtlsrpt's `tlsrpt_failure_t`.
fn result_type(code: u32) -> Option<ResultType> {
    Some(match code {
        201 => ResultType::StarttlsNotSupported,
        202 => ResultType::CertificateHostMismatch,
        203 => ResultType::CertificateNotTrusted,
        204 => ResultType::CertificateExpired,
        205 => ResultType::ValidationFailure,
        301 => ResultType::StsPolicyFetchError,
        302 => ResultType::StsPolicyInvalid,
        303 => ResultType::StsWebpkiInvalid,
        304 => ResultType::TlsaInvalid,
        305 => ResultType::DnssecInvalid,
        306 => ResultType::DaneRequired,
        _ => return None,
    })
}

/// The name in a reply to EHLO or HELO: Postfix hands on all of it, `250-mx.example.com\r\n250 8BITMIME`.
fn parse_helo(reply: &str) -> Option<String> {
    let first = reply.split(['\r', '\n']).next()?;
    let line = match first.as_bytes() {
        [b'0'..=b'9', b'0'..=b'9', b'0'..=b'9', b' ' | b'-', ..] => first.get(4..)?,
        _ => first,
    };
    let word = line.split_ascii_whitespace().next()?;
    // A name, or an address literal; anything else says nothing.
    let literal = word.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let is_address = |text: &str| text.strip_prefix("IPv6:").unwrap_or(text).parse::<IpAddr>().is_ok();
    match literal {
        Some(text) => is_address(text).then(|| word.to_owned()),
        None => domain_name::normalize(word),
    }
}

/// A stranger's words: printable, and cut.
fn printable(text: &str, most: usize) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).take(most).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAILED: &str = r#"{"dpv": "1","d": "Example.net","pr": "v=TLSRPTv1;rua=mailto:r@example.net","policies":[{"policy-type":2,"policy-domain": "example.net","policy-string":["version: STSv1","mode: enforce","mx: mx1.example.net","max_age: 604800"],"mx-host":["mx1.example.net"],"failure-details":[{"c":205,"s": "192.0.2.10","n": "mx1.example.net","h": "250-mail.example.net greets\r\n250-STARTTLS\r\n250 8BITMIME","r": "2001:db8::7","f": "self-signed_certificate"}],"t":1,"f":1}]}"#;

    #[test]
    fn reads_a_failure_whole() {
        let read = decode(FAILED.as_bytes()).unwrap();
        let [one] = &read[..] else { panic!("{read:?}") };
        let want = Failure {
            sending_mta_ip: "192.0.2.10".parse().ok(),
            receiving_mx_hostname: Some("mx1.example.net".into()),
            receiving_mx_helo: Some("mail.example.net".into()),
            receiving_ip: "2001:db8::7".parse().ok(),
            ..Failure::new(ResultType::CertificateNotTrusted, Some("self-signed_certificate"))
        };
        assert_eq!((&*one.domain, one.failed, one.testing), ("example.net", true, false));
        assert_eq!(one.failures, [want]);
        assert_eq!((one.policy.policy_type, one.policy.policy_string.len()), (PolicyType::Sts, 4));
    }

    #[test]
    fn a_policy_without_a_domain_is_of_the_domain_and_several_policies_are_several() {
        let text = r#"{"d": "a.test","pr": "x","policies":[{"policy-type":9,"t":0,"f":0},{"policy-type":2,"policy-domain":"b.test","policy-string":["mode:  testing"],"f":0}]}"#;
        let read = decode(text.as_bytes()).unwrap();
        let raw: Vec<_> = read.iter().map(|r| (&*r.policy.policy_domain, r.testing)).collect();
        assert_eq!(raw, [("a.test", false), ("b.test", true)]);
        assert_eq!(read[0].policy, Arc::new(Policy::none("a.test")));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let with = |from: &str, to: &str| decode(FAILED.replace(from, to).as_bytes()).unwrap_err();
        assert_eq!(with("\"dpv\": \"1\"", "\"dpv\": \"2\""), DatagramError::UnknownVersion);
        assert_eq!(with("Example.net", "192.0.2.1"), DatagramError::UnknownValue);
        assert_eq!(with("\"c\":205", "\"c\":901"), DatagramError::UnknownValue);
        assert_eq!(with("\"policy-type\":2", "\"policy-type\":3"), DatagramError::UnknownValue);
        assert_eq!(with("\"policies\"", "\"polices\""), DatagramError::Malformed);
        assert_eq!(decode(b"{\"d\": \"\xff\"}"), Err(DatagramError::NotUtf8));
        let latin =
            |at: &str| FAILED.replace(at, "\u{1}").bytes().map(|b| if b == 1 { 0xe9 } else { b }).collect::<Vec<_>>();
        assert_eq!(decode(&latin("Example.net")), Err(DatagramError::NotUtf8));
        assert_eq!(decode(&latin("greets")), decode(FAILED.as_bytes()), "a server's greeting");
        assert_eq!(decode(b""), Err(DatagramError::Malformed));
        assert_eq!(decode(&b"[".repeat(60_000)), Err(DatagramError::Malformed));
        let one = r#"{"policy-type":9,"f":0}"#;
        let many = format!(r#"{{"d":"a.test","policies":[{}]}}"#, vec![one; MAX_POLICIES + 1].join(","));
        assert_eq!(decode(many.as_bytes()), Err(DatagramError::TooMany));
    }

    #[test]
    fn what_a_server_calls_itself() {
        for (reply, want) in [
            ("250-mx.a.test\r\n250 OK", Some("mx.a.test")),
            ("250 MX.A.test at your service", Some("mx.a.test")),
            ("mx.a.test", Some("mx.a.test")),
            ("250 [192.0.2.1]", Some("[192.0.2.1]")),
            ("250-[IPv6:2001:db8::1] hello", Some("[IPv6:2001:db8::1]")),
            ("250 <script>", None),
            ("250 ", None),
            ("", None),
        ] {
            assert_eq!(parse_helo(reply).as_deref(), want, "{reply}");
        }
    }
}
