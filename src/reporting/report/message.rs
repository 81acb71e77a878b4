//! The mail around a report: `multipart/report` (RFC 8460 §5.3), signed (RFC 6376, RFC 8463). The only user of mail-builder
//! and mail-auth.
//!
//! Takes: a report, a recipient, a Message-ID, a moment. Gives: the octets that are handed over, CRLF, each line in the limit.
//! Limits: [`MAX_LINE`] octets a line; [`MAX_POLICIES`] and [`MAX_DETAILS`] in the part for people; keys of [`MAX_KEY_FILE`].
//! When it fails: a [`KeyError`] a bad key; a [`MessageError`] where a value would break the header.
//! Not here: the JSON (`report::build`), handing over (`report::deliver`).

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use mail_auth::common::crypto::{Ed25519Key, RsaKey, Sha256, SigningKey};
use mail_auth::common::headers::HeaderWriter;
use mail_auth::dkim::{Canonicalization, DkimSigner, Done};
use mail_builder::MessageBuilder;
use mail_builder::headers::address::Address;
use mail_builder::headers::content_type::ContentType;
use mail_builder::headers::date::Date;
use mail_builder::headers::message_id::MessageId;
use mail_builder::headers::raw::Raw;
use mail_builder::mime::MimePart;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use serde::Serialize;

use crate::base::domain_name;
use crate::base::printable::shown;
use crate::base::rua_record::Mailbox;
use crate::base::tlsrpt::{PolicyType, ResultType};
use crate::config::DkimKey;
use crate::config::identity::Identity;
use crate::reporting::dkim::key::Public;
use crate::reporting::report::build::{PolicyResult, Report};

/// The longest line of a message, in octets without CRLF (RFC 5322 §2.1.1).
pub const MAX_LINE: usize = 998;

/// How many policies the part for people lists.
pub const MAX_POLICIES: usize = 20;

/// How many kinds of failure it lists for each.
pub const MAX_DETAILS: usize = 20;

/// The folder whose keys systemd hands over (`packaging/systemd/tlswarden.service`).
const KEYS: &str = "/etc/tlswarden/dkim.d";

/// The largest key file that is read, in octets: an RSA key of 4096 bits has 3.3 KiB.
pub const MAX_KEY_FILE: u64 = 64 * 1024;

/// What is signed: all that a receiver goes by. From, To and Subject twice, so that no second one can be added.
const SIGNED: [&str; 14] = [
    "From",
    "From",
    "To",
    "To",
    "Subject",
    "Subject",
    "Date",
    "Message-ID",
    "MIME-Version",
    "Content-Type",
    "TLS-Report-Domain",
    "TLS-Report-Submitter",
    "TLS-Required",
    "Auto-Submitted",
];

/// Why a message was not made.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// A value has an octet that no header may have; the header's name.
    #[error("the value of {0} has an octet that no header may have")]
    BadValue(&'static str),
    /// A line is longer than mail allows; how long.
    #[error("a line of {0} octets")]
    LongLine(usize),
    /// Writing failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A key did not sign.
    #[error("the DKIM key of selector `{0}` did not sign: {1}")]
    Sign(String, String),
}

/// Makes and signs the message of one report to one recipient. `message_id` has no angle brackets, `now` is in seconds
/// since 1970-01-01T00:00:00Z.
pub fn message(
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
        Some(long) if long > MAX_LINE => Err(MessageError::LongLine(long)),
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
        ("To", &to),
        ("Subject", &report.subject),
        ("Message-ID", message_id),
        ("TLS-Report-Domain", &report.domain),
        ("TLS-Report-Submitter", identity.submitter()),
        ("Content-Disposition", &report.file_name),
    ] {
        if !value.bytes().all(|b| b.is_ascii_graphic() || b == b' ') {
            return Err(MessageError::BadValue(name));
        }
    }
    // `=_` stands in neither base64 nor quoted-printable, so the boundary cannot be in a part.
    let boundary = format!("=_{}", message_id.split('@').next().unwrap_or_default());
    let boundary: String = boundary.chars().take(70).collect();
    let kind = ContentType::new("multipart/report").attribute("report-type", "tlsrpt").attribute("boundary", boundary);
    let attachment = MimePart::new("application/tlsrpt+gzip", report.gzip.as_slice()).attachment(&*report.file_name);
    let message = MessageBuilder::new()
        .from(plain(&from))
        .to(plain(&to))
        .header("Subject", Raw::new(&*report.subject))
        .header("Date", Date::new(now))
        .message_id(MessageId::new(message_id))
        .header("TLS-Report-Domain", Raw::new(&*report.domain))
        .header("TLS-Report-Submitter", Raw::new(identity.submitter()))
        .header("TLS-Required", Raw::new("No"))
        .header("Auto-Submitted", Raw::new("auto-generated"))
        .body(MimePart::new(kind, vec![MimePart::new("text/plain", for_people(identity, report)), attachment]))
        .write_to_vec()?;
    Ok(message)
}

fn plain(address: &str) -> Address<'_> {
    Address::new_address(None::<Cow<'_, str>>, address)
}

/// The first part: how many sessions, what failed, where.
fn for_people(identity: &Identity, report: &Report) -> String {
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
    let of = shown(&result.policy.policy_domain, 253);
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
        write!(text, "  {} x {}", detail.failed_session_count, Word(failure.result_type))?;
        if let Some(reason) = &failure.failure_reason_code {
            write!(text, " ({})", shown(reason, 120))?;
        }
        match (&failure.receiving_mx_hostname, failure.receiving_ip) {
            (Some(host), Some(ip)) => write!(text, "\r\n      at {} [{ip}]", shown(host, 253))?,
            (Some(host), None) => write!(text, "\r\n      at {}", shown(host, 253))?,
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

/// A result type as the schema writes it.
struct Word(ResultType);

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.serialize(f)
    }
}

/// The keys that sign every report.
pub struct Signer {
    keys: Vec<Key>,
    /// What is unwise about keys (and the password) and no reason to refuse them, one line each.
    pub warnings: Vec<String>,
    /// Their public halves.
    pub published: Vec<Public>,
}

/// A key, bound to its selector and domain.
enum Key {
    Rsa(DkimSigner<RsaKey<Sha256>, Done>),
    Ed25519(DkimSigner<Ed25519Key, Done>),
}

/// Why a key cannot sign; its text is one line that names the selector and the file.
#[derive(Debug, thiserror::Error)]
#[error("[[report.dkim]] {selector}: {}: {fault}", .path.display())]
pub struct KeyError {
    /// `s=`.
    pub selector: String,
    /// The file.
    pub path: PathBuf,
    /// What is wrong.
    pub fault: KeyFault,
}

/// What is wrong with a key.
#[derive(Debug, thiserror::Error)]
pub enum KeyFault {
    /// The selector or the domain is no DNS name.
    #[error("`{0}` is no selector and domain; allowed: DNS labels such as `tlsrpt`")]
    Name(String),
    /// The file is missing, a folder, or not readable.
    #[error("{0}")]
    Unreadable(io::Error),
    /// The file holds no private key in PEM.
    #[error("no private key in it; allowed: PEM of an RSA or Ed25519 key that is not encrypted")]
    NoKey,
    /// An RSA key below 2048 bits (RFC 8301 §3.2).
    #[error("an RSA key of less than 2048 bits; allowed: 2048 to 4096 bits")]
    TooSmall,
    /// A key of another kind, or a broken one.
    #[error("a key that cannot be used ({0}); allowed: RSA of 2048 to 4096 bits, or Ed25519")]
    Unusable(String),
}

impl Signer {
    /// Reads the keys. Fails with every bad key, not just the first; `from_domain` is `d=` where none is set.
    pub fn load(keys: &[DkimKey], from_domain: &str) -> Result<Signer, Vec<KeyError>> {
        let mut signer = Signer { keys: Vec::new(), warnings: Vec::new(), published: Vec::new() };
        let mut errors = Vec::new();
        for key in keys {
            match signer.load_one(key, from_domain) {
                Ok(loaded) => signer.keys.push(loaded),
                Err(fault) => {
                    errors.push(KeyError { selector: shown(&key.selector, 80), path: key.key.clone(), fault });
                }
            }
        }
        if errors.is_empty() { Ok(signer) } else { Err(errors) }
    }

    fn load_one(&mut self, key: &DkimKey, from_domain: &str) -> Result<Key, KeyFault> {
        let wanted = key.domain.as_deref().unwrap_or(from_domain);
        let name = format!("{}._domainkey.{wanted}", key.selector);
        let bad_name = || KeyFault::Name(shown(&name, 300));
        let domain = domain_name::normalise(wanted).ok_or_else(bad_name)?;
        domain_name::normalise(&name).ok_or_else(bad_name)?;

        let file = File::open(handed_over(&key.key)).map_err(KeyFault::Unreadable)?;
        let mode = file.metadata().map_err(KeyFault::Unreadable)?.permissions().mode();
        let mut pem = Vec::new();
        file.take(MAX_KEY_FILE).read_to_end(&mut pem).map_err(KeyFault::Unreadable)?;
        if mode & 0o007 != 0 {
            self.warnings.push(format!(
                "[[report.dkim]] {}: {}: others may read or write it (mode {:04o}); anyone on this host can sign as {domain}",
                key.selector,
                key.key.display(),
                mode & 0o7777
            ));
        }
        let der = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| KeyFault::NoKey)?;
        match ed25519(&der) {
            Some(result) => {
                let signing = result?;
                self.published.push(Public::ed25519(&key.selector, &domain, signing.public_key()));
                Ok(Key::Ed25519(bind(signing, &domain, &key.selector)))
            }
            None => {
                let signing = rsa(der)?;
                let public = Public::rsa(&key.selector, &domain, &signing.public_key());
                self.published.push(public.map_err(KeyFault::Unusable)?);
                Ok(Key::Rsa(bind(signing, &domain, &key.selector)))
            }
        }
    }

    /// Puts one `DKIM-Signature` a key before the message; each covers the same octets.
    pub fn sign(&self, message: Vec<u8>) -> Result<Vec<u8>, MessageError> {
        let mut signed = Vec::new();
        for key in &self.keys {
            let signature = match key {
                Key::Rsa(signer) => signer.sign(&message),
                Key::Ed25519(signer) => signer.sign(&message),
            };
            let signature = signature.map_err(|e| MessageError::Sign(key.selector().to_owned(), e.to_string()))?;
            signed.extend_from_slice(signature.to_header().as_bytes());
        }
        signed.extend_from_slice(&message);
        Ok(signed)
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.keys.iter().map(Key::selector)).finish()
    }
}

impl Key {
    fn selector(&self) -> &str {
        match self {
            Key::Rsa(signer) => &signer.template.s,
            Key::Ed25519(signer) => &signer.template.s,
        }
    }
}

/// Where systemd puts the daemon's own copy of a key (`LoadCredential=dkim:…`, systemd.exec(5)), if it has; else the
/// file itself.
fn handed_over(key: &Path) -> PathBuf {
    let copy = || {
        let name = key.strip_prefix(KEYS).ok()?.file_name()?.to_str()?;
        let copy = Path::new(&std::env::var_os("CREDENTIALS_DIRECTORY")?).join(format!("dkim_{name}"));
        copy.exists().then_some(copy)
    };
    copy().unwrap_or_else(|| key.to_owned())
}

fn bind<K: SigningKey>(key: K, domain: &str, selector: &str) -> DkimSigner<K, Done> {
    DkimSigner::from_key(key)
        .domain(domain)
        .selector(selector)
        .headers(SIGNED)
        .header_canonicalization(Canonicalization::Relaxed)
        .body_canonicalization(Canonicalization::Relaxed)
}

/// The key, where the PKCS#8 structure says that it is Ed25519 (RFC 8410 §3: OID 1.3.101.112).
fn ed25519(der: &PrivateKeyDer<'_>) -> Option<Result<Ed25519Key, KeyFault>> {
    const OID: [u8; 5] = [0x06, 0x03, 0x2b, 0x65, 0x70];
    let PrivateKeyDer::Pkcs8(der) = der else { return None };
    let octets = der.secret_pkcs8_der();
    let head = &octets[..octets.len().min(24)];
    head.windows(OID.len()).any(|w| w == OID).then(|| {
        // `maybe_unchecked`: openssl writes the form without the public key.
        Ed25519Key::from_pkcs8_maybe_unchecked_der(octets).map_err(|e| KeyFault::Unusable(e.to_string()))
    })
}

fn rsa(der: PrivateKeyDer<'_>) -> Result<RsaKey<Sha256>, KeyFault> {
    RsaKey::from_key_der(der).map_err(|e| match e.to_string() {
        text if text.contains("TooSmall") => KeyFault::TooSmall,
        text => KeyFault::Unusable(text),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::tlsrpt::{Day, Failure, Row};
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
    use std::sync::{Arc, Mutex};
    use std::time::Instant;

    fn key(file: &str) -> DkimKey {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/dkim").join(file);
        DkimKey { selector: file.split('.').next().unwrap().into(), domain: None, key: path }
    }

    fn signer() -> Signer {
        let keys = [key("rsa2048-pkcs1.pem"), key("rsa2048-pkcs8.pem"), key("ed25519.pem")];
        Signer::load(&keys, "sender.example").unwrap()
    }

    fn report(domain: &str, rows: &[Row]) -> Report {
        let day: Day = "2026-11-22".parse().unwrap();
        Report::build(&identity(), day, domain, &ReportId::preview(day, "sender.example"), rows, 10_000_000)
    }

    fn mail(report: &Report) -> Vec<u8> {
        let to = "tls-reports@example.net".parse().unwrap();
        message(&identity(), report, &to, "20261122-0011.abcd@sender.example", 1_795_400_000, &signer()).unwrap()
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
        let error = message(&identity(), &report, &to, "a@b", 0, &signer()).unwrap_err();
        assert!(matches!(error, MessageError::BadValue("TLS-Report-Domain")), "{error}");
        let error = message(&identity(), &usual(), &to, "a\n@b", 0, &signer()).unwrap_err();
        assert!(matches!(error, MessageError::BadValue("Message-ID")), "{error}");
    }

    #[test]
    fn each_bad_key_is_one_line() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("text.pem"), "no key\n").unwrap();
        let at = |name: &str| DkimKey { selector: "s".into(), domain: None, key: folder.path().join(name) };
        let keys = [
            key("rsa2048-pkcs1.pem"),
            at("missing.pem"),
            at(""),
            at("text.pem"),
            key("rsa1024.pem"),
            key("p256.pem"),
            key("encrypted.pem"),
            DkimKey { selector: "a b".into(), ..key("ed25519.pem") },
        ];
        let errors = Signer::load(&keys, "sender.example").unwrap_err();
        let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(lines.len(), 7, "{lines:#?}");
        for (line, said) in lines.iter().zip([
            "No such file",
            "directory",
            "no private key",
            "less than 2048 bits",
            "cannot be used",
            "no private key",
            "no selector",
        ]) {
            assert!(line.contains(said) && !line.contains('\n'), "{said}: {line}");
        }
    }

    #[test]
    fn a_key_that_others_can_read_is_warned_of() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.pem");
        std::fs::copy(key("ed25519.pem").key, &path).unwrap();
        let one = [DkimKey { selector: "s".into(), domain: None, key: path.clone() }];
        for (mode, warnings) in [(0o640, 0), (0o644, 1)] {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            assert_eq!(Signer::load(&one, "sender.example").unwrap().warnings.len(), warnings, "{mode:o}");
        }
    }
}
