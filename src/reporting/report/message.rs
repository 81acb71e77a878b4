//! The mail around a report: `multipart/report` (RFC 8460 §5.3), signed. The only user of mail-builder.
//!
//! Takes: a report, a recipient, a Message-ID, a moment. Gives: the octets that are handed over, CRLF, each line in the limit.
//! Limits: [`MAX_LINE`] octets a line; [`MAX_POLICIES`] and [`MAX_DETAILS`] in the part for people.
//! When it fails: a [`MessageError`] where a value would break the header.
//! Not here: the JSON (`report::build`), the DKIM keys (`dkim`), handing over (`transport`).

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::io;

use mail_builder::MessageBuilder;
use mail_builder::headers::address::Address;
use mail_builder::headers::content_type::ContentType;
use mail_builder::headers::date::Date;
use mail_builder::headers::message_id::MessageId;
use mail_builder::headers::raw::Raw;
use mail_builder::mime::MimePart;
use serde::Serialize;

use crate::base::printable::escape_and_cut;
use crate::base::rua_record::Mailbox;
use crate::base::tlsrpt::{PolicyType, ResultType};
use crate::config::identity::Identity;
use crate::reporting::dkim::signer::{SignError, Signer};
use crate::reporting::report::build::{PolicyResult, Report};

/// The longest line of a message, in octets without CRLF (RFC 5322 §2.1.1).
pub(crate) const MAX_LINE: usize = 998;

/// How many policies the part for people lists.
pub(crate) const MAX_POLICIES: usize = 20;

/// How many kinds of failure it lists for each.
pub(crate) const MAX_DETAILS: usize = 20;

/// Why a message was not made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MessageError {
    /// A value has an octet that is not allowed in a header; the header's name.
    #[error("the value of {0} has an octet that no header may have")]
    InvalidHeaderValue(&'static str),
    /// A line is longer than mail allows; how long.
    #[error("a line of {0} bytes")]
    LineTooLong(usize),
    /// Writing failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A key did not sign.
    #[error(transparent)]
    Sign(#[from] SignError),
}

/// Builds and signs the message of one report to one recipient. `message_id` has no angle brackets, `now` is in seconds
/// since 1970-01-01T00:00:00Z.
pub(crate) fn build_message(
    identity: &Identity,
    report: &Report,
    to: &Mailbox,
    message_id: &str,
    now: i64,
    signer: &Signer,
) -> Result<Vec<u8>, MessageError> {
    let unsigned = compose(identity, report, to, message_id, now)?;
    let signed = signer.sign(unsigned)?;
    let longest = signed.split(|b| *b == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line).len()).max();
    match longest {
        Some(long) if long > MAX_LINE => Err(MessageError::LineTooLong(long)),
        _ => Ok(signed),
    }
}

fn compose(
    identity: &Identity,
    report: &Report,
    to: &Mailbox,
    message_id: &str,
    now: i64,
) -> Result<Vec<u8>, MessageError> {
    let from = identity.from.to_string();
    let to = to.to_string();
    for (name, value) in [
        ("From", from.as_str()),
        ("Subject", &report.subject),
        ("Message-ID", message_id),
        ("TLS-Report-Domain", &report.domain),
        ("TLS-Report-Submitter", identity.submitter()),
        ("Content-Disposition", &report.file_name),
    ] {
        if !value.bytes().all(|b| b.is_ascii_graphic() || b == b' ') {
            return Err(MessageError::InvalidHeaderValue(name));
        }
    }
    // In UTF-8 where the MTA takes it (RFC 6532 §3.2); a mailbox has letters and digits of other scripts, no more.
    if to.contains(|c: char| c.is_ascii() && !c.is_ascii_graphic()) {
        return Err(MessageError::InvalidHeaderValue("To"));
    }
    // `=_` stands in neither base64 nor quoted-printable, so the boundary cannot be in a part.
    let boundary = format!("=_{}", message_id.split('@').next().unwrap_or_default());
    let boundary: String = boundary.chars().take(70).collect();
    let kind = ContentType::new("multipart/report").attribute("report-type", "tlsrpt").attribute("boundary", boundary);
    let attachment = MimePart::new("application/tlsrpt+gzip", report.gzip.as_slice()).attachment(&*report.file_name);
    let message = MessageBuilder::new()
        .from(bare_address(&from))
        .to(bare_address(&to))
        .header("Subject", Raw::new(&*report.subject))
        .header("Date", Date::new(now))
        .message_id(MessageId::new(message_id))
        .header("TLS-Report-Domain", Raw::new(&*report.domain))
        .header("TLS-Report-Submitter", Raw::new(identity.submitter()))
        .header("TLS-Required", Raw::new("No"))
        .header("Auto-Submitted", Raw::new("auto-generated"))
        .body(MimePart::new(kind, vec![MimePart::new("text/plain", text_part(identity, report)), attachment]))
        .write_to_vec()?;
    Ok(message)
}

fn bare_address(address: &str) -> Address<'_> {
    Address::new_address(None::<Cow<'_, str>>, address)
}

/// The text part, for people: how many sessions, what failed, where.
fn text_part(identity: &Identity, report: &Report) -> String {
    let total = report.total();
    let (good, bad) = (total.total_successful_session_count, total.total_failure_session_count);
    let mut text = format!(
        "This is the TLS report of {}\r\nabout mail to {}\r\non {}, 00:00 to 24:00 UTC.\r\n\r\n\
         TLS sessions that succeeded: {good}\r\nTLS sessions that failed:    {bad}\r\n",
        identity.organization, report.domain, report.day
    );
    let policies = &report.document.policies;
    for policy in policies.iter().take(MAX_POLICIES) {
        // Writing to a String does not fail.
        let _ = write_policy(&mut text, policy);
    }
    if policies.len() > MAX_POLICIES {
        let _ = write!(text, "\r\nand {} more policies.\r\n", policies.len() - MAX_POLICIES);
    }
    let _ = write!(
        text,
        "\r\nThe attached file says the same in the form of RFC 8460. Questions go to\r\n{}.\r\n",
        identity.contact
    );
    text
}

fn write_policy(text: &mut String, result: &PolicyResult) -> fmt::Result {
    let of = escape_and_cut(&result.policy.policy_domain, 253);
    match result.policy.policy_type {
        PolicyType::Sts => write!(text, "\r\nUnder the MTA-STS policy of {of}:\r\n")?,
        PolicyType::Tlsa => write!(text, "\r\nUnder the DANE policy (TLSA records) of {of}:\r\n")?,
        PolicyType::NoPolicyFound => write!(text, "\r\nUnder no policy ({of} has none that was found):\r\n")?,
    }
    let summary = result.summary;
    write!(
        text,
        "  {} succeeded, {} failed\r\n",
        summary.total_successful_session_count, summary.total_failure_session_count
    )?;
    let mut details: Vec<_> = result.failure_details.iter().collect();
    details.sort_by_key(|d| std::cmp::Reverse(d.failed_session_count));
    for detail in details.iter().take(MAX_DETAILS) {
        let failure = &detail.failure;
        write!(text, "  {} x {}", detail.failed_session_count, ResultTypeName(failure.result_type))?;
        if let Some(reason) = &failure.failure_reason_code {
            write!(text, " ({})", escape_and_cut(reason, 120))?;
        }
        match (&failure.receiving_mx_hostname, failure.receiving_ip) {
            (Some(host), Some(ip)) => write!(text, "\r\n      at {} [{ip}]", escape_and_cut(host, 253))?,
            (Some(host), None) => write!(text, "\r\n      at {}", escape_and_cut(host, 253))?,
            (None, Some(ip)) => write!(text, "\r\n      at [{ip}]")?,
            (None, None) => {}
        }
        text.push_str("\r\n");
    }
    if details.len() > MAX_DETAILS {
        write!(text, "  and {} more kinds of failure\r\n", details.len() - MAX_DETAILS)?;
    }
    Ok(())
}

/// The name of a result type, as the schema writes it.
struct ResultTypeName(ResultType);

impl fmt::Display for ResultTypeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.serialize(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::tlsrpt::{Day, Failure, TallyRow};
    use crate::reporting::dkim::signer::tests::key;
    use crate::reporting::report::build::ReportId;
    use crate::reporting::report::build::tests::{identity, rows};
    use mail_auth::common::cache::NoCache;
    use mail_auth::common::parse::TxtRecordParser;
    use mail_auth::common::verify::DomainKey;
    use mail_auth::report::tlsrpt::TlsReport;
    use mail_auth::{
        AuthenticatedMessage, DkimResult, MX, MessageAuthenticator, Parameters, RecordSet, ResolverCache, Txt,
    };
    use mail_parser::{MessageParser, MimeHeaders};
    use std::borrow::Borrow;
    use std::collections::HashMap;
    use std::hash::Hash;
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
    use std::path::Path;
    use std::sync::{Arc, Mutex};
    use std::time::Instant;

    fn signer() -> Signer {
        let keys = [key("rsa2048-pkcs1.pem"), key("rsa2048-pkcs8.pem"), key("ed25519.pem")];
        Signer::load(&keys, "sender.example").unwrap()
    }

    fn report(domain: &str, rows: &[TallyRow]) -> Report {
        let day: Day = "2026-11-22".parse().unwrap();
        Report::build(&identity(), day, domain, &ReportId::preview(day, "sender.example"), rows, 10_000_000)
    }

    fn mail(report: &Report) -> Vec<u8> {
        let to = "tls-reports@example.net".parse().unwrap();
        build_message(&identity(), report, &to, "20261122-0011.abcd@sender.example", 1_795_400_000, &signer()).unwrap()
    }

    fn usual() -> Report {
        report("example.net", &rows("2026-11-22".parse().unwrap()))
    }

    /// The published keys, as a verifier's cache has them.
    struct Published(Mutex<HashMap<Box<str>, Txt>>);

    impl Published {
        fn new() -> Published {
            let record = |file: &str, kind: &str| {
                let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/dkim").join(format!("{file}.pub"));
                let text = format!("v=DKIM1; k={kind}; s=tlsrpt; p={}", std::fs::read_to_string(path).unwrap());
                let name: Box<str> = format!("{file}._domainkey.sender.example.").into();
                (name, Txt::DomainKey(Arc::new(DomainKey::parse(text.as_bytes()).unwrap())))
            };
            let keys = [record("rsa2048-pkcs1", "rsa"), record("rsa2048-pkcs8", "rsa"), record("ed25519", "ed25519")];
            Published(Mutex::new(keys.into()))
        }
    }

    impl ResolverCache<Box<str>, Txt> for Published {
        fn get<Q>(&self, name: &Q) -> Option<Txt>
        where
            Box<str>: Borrow<Q>,
            Q: Hash + Eq + ?Sized,
        {
            self.0.lock().unwrap().get(name).cloned()
        }

        fn remove<Q>(&self, _: &Q) -> Option<Txt>
        where
            Box<str>: Borrow<Q>,
            Q: Hash + Eq + ?Sized,
        {
            None
        }

        fn insert(&self, _: Box<str>, _: Txt, _: Instant) {}
    }

    /// How many signatures passed, of how many.
    async fn verified(mail: &[u8]) -> (usize, usize) {
        let parsed = AuthenticatedMessage::parse(mail).unwrap();
        let keys = Published::new();
        let parameters = Parameters {
            params: &parsed,
            cache_txt: Some(&keys),
            cache_mx: None::<&NoCache<Box<str>, RecordSet<MX>>>,
            cache_ptr: None::<&NoCache<IpAddr, RecordSet<Box<str>>>>,
            cache_ipv4: None::<&NoCache<Box<str>, RecordSet<Ipv4Addr>>>,
            cache_ipv6: None::<&NoCache<Box<str>, RecordSet<Ipv6Addr>>>,
        };
        let verifier = MessageAuthenticator::new_cloudflare().unwrap();
        let results = verifier.verify_dkim(parameters).await;
        (results.iter().filter(|r| *r.result() == DkimResult::Pass).count(), results.len())
    }

    #[tokio::test]
    async fn every_key_signs_and_verifies() {
        let mail = mail(&usual());
        assert_eq!(verified(&mail).await, (3, 3), "{}", String::from_utf8_lossy(&mail));
        let text = String::from_utf8(mail).unwrap();
        let signatures = text.split("\r\nFrom:").next().unwrap();
        assert!(!signatures.contains("l="), "{signatures}");
        assert_eq!(signatures.matches("c=relaxed/relaxed").count(), 3, "{signatures}");
        for header in ["TLS-Report-Domain", "TLS-Report-Submitter", "TLS-Required"] {
            let unfolded = signatures.replace("\r\n\t", "");
            assert_eq!(unfolded.matches(header).count(), 3, "{header}: {signatures}");
        }
    }

    #[tokio::test]
    async fn any_change_breaks_the_signatures() {
        let text = String::from_utf8(mail(&usual())).unwrap();
        for (was, is) in [
            ("TLS-Report-Domain: example.net", "TLS-Report-Domain: example.org"),
            ("TLS-Required: No", "TLS-Required: Yes"),
            ("From: <tlsrpt@", "From: <evil@evil.example>\r\nFrom: <tlsrpt@"),
            ("This is the TLS report", "This was the TLS report"),
        ] {
            let changed = text.replacen(was, is, 1);
            assert_ne!(changed, text, "{was}");
            assert_eq!(verified(changed.as_bytes()).await.0, 0, "{was}");
        }
        assert_eq!(verified(format!("{text}more\r\n").as_bytes()).await.0, 0);
    }

    #[test]
    fn the_mail_is_a_tlsrpt_report() {
        let report = usual();
        let mail = mail(&report);
        let parsed = MessageParser::new().parse(&mail).unwrap();
        let kind = parsed.content_type().unwrap();
        assert_eq!((kind.c_type.as_ref(), kind.subtype()), ("multipart", Some("report")));
        assert_eq!(kind.attribute("report-type"), Some("tlsrpt"));
        assert_eq!(parsed.subject(), Some(report.subject.as_str()));
        assert_eq!(parsed.message_id(), Some("20261122-0011.abcd@sender.example"));
        assert_eq!(parsed.date().unwrap().to_timestamp(), 1_795_400_000);
        for (header, value) in [
            ("TLS-Report-Domain", "example.net"),
            ("TLS-Report-Submitter", "sender.example"),
            ("TLS-Required", "No"),
            ("Auto-Submitted", "auto-generated"),
            ("MIME-Version", "1.0"),
        ] {
            assert_eq!(parsed.header_raw(header).map(str::trim), Some(value), "{header}");
        }
        let attachment = parsed.attachment(0).unwrap();
        assert_eq!(attachment.content_type().unwrap().subtype(), Some("tlsrpt+gzip"));
        assert_eq!(attachment.attachment_name(), Some(report.file_name.as_str()));
        assert_eq!(attachment.contents(), report.gzip);
        let people = parsed.body_text(0).unwrap();
        for said in [
            "Example GmbH & Söhne",
            "succeeded: 5000000008",
            "failed:    8",
            "6 x certificate-expired (certificate has expired)",
            "at mx1.example.net [2001:db8::1]",
        ] {
            assert!(people.contains(said), "{said}: {people}");
        }
    }

    #[test]
    fn another_parser_reads_the_mail() {
        let mut rows = rows("2026-11-22".parse().unwrap());
        rows[0].successful = 5;
        let theirs = TlsReport::parse_rfc5322(&mail(&report("example.net", &rows)), 1 << 20).unwrap();
        assert_eq!(theirs.policies.len(), 3);
        assert_eq!(theirs.contact_info.as_deref(), Some("postmaster@sender.example"));
    }

    #[test]
    fn the_longest_names_stay_in_the_lines() {
        let domain = format!("{0}.{0}.{0}.{1}", "d".repeat(63), "e".repeat(61));
        let day: Day = "2026-11-22".parse().unwrap();
        let mut rows = rows(day);
        let hostile = "x\r\n.\r\nQUIT\r\n\u{202e}".repeat(500);
        rows[0].details.push((
            Failure {
                receiving_mx_hostname: Some(hostile.clone()),
                ..Failure::new(ResultType::ValidationFailure, Some(&hostile))
            },
            1,
        ));
        let report = report(&domain, &rows);
        let mail = mail(&report);
        assert!(mail.split(|b| *b == b'\n').all(|line| line.len() <= MAX_LINE + 1));
        assert!(mail.is_ascii(), "every part is encoded");
        assert_eq!(mail.iter().filter(|b| **b == b'\n').count(), mail.windows(2).filter(|w| w == b"\r\n").count());
        let parsed = MessageParser::new().parse(&mail).unwrap();
        assert_eq!(parsed.attachment(0).unwrap().attachment_name(), Some(report.file_name.as_str()));
        assert_eq!(parsed.subject(), Some(report.subject.as_str()));
    }

    #[test]
    fn nothing_gets_into_a_header() {
        let mut report = usual();
        report.domain = "example.net\r\nBcc: a@b.example".into();
        let to = "a@example.net".parse().unwrap();
        let error = build_message(&identity(), &report, &to, "a@b", 0, &signer()).unwrap_err();
        assert!(matches!(error, MessageError::InvalidHeaderValue("TLS-Report-Domain")), "{error}");
        let error = build_message(&identity(), &usual(), &to, "a\n@b", 0, &signer()).unwrap_err();
        assert!(matches!(error, MessageError::InvalidHeaderValue("Message-ID")), "{error}");
    }
}
