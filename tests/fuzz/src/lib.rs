//! What the fuzz targets hold true, one function each: any bytes in, a panic is the finding.
//!
//! Takes: the fuzzer's bytes. Gives: nothing.
//! Not here: the programs (`fuzz_targets/`, a line each), how they are run (`run`).

use std::sync::Arc;

use rustls_pki_types::{CertificateDer, UnixTime};
use tlswarden::answering::policy::decision::{Basis, Decision, PostfixTraits, Published};
use tlswarden::answering::policy::sts::policy::StsPolicy;
use tlswarden::answering::policy::sts::{document, record};
use tlswarden::answering::socketmap::netstring::{self, Frame};
use tlswarden::answering::socketmap::reply::{self, MAX_REPLY, ReplyFormat};
use tlswarden::base::domain_name;
use tlswarden::base::next_hop::NextHop;
use tlswarden::base::rua_record::{Destination, MAX_PARSED_DESTINATIONS, MAX_SKIPPED, parse_recipients};
use tlswarden::base::tlsrpt::Mode;
use tlswarden::checking::domain::{certificate as server_certificate, smtp};
use tlswarden::counting::input::json_entry;
use tlswarden::config::PostfixLevel;
use tlswarden::counting::session::{Sessions, datagram as session};
use tlswarden::net::dns::TlsaRecord;
use tlswarden::net::dns::message::AnswerMessage;
use tlswarden_parsers::{Dialect, parse, parse_event_action};

#[path = "../../../parsers/tests/borrowed/mod.rs"]
mod borrowed;
#[path = "../../../src/answering/socketmap/reply/model.rs"]
mod model;

/// A log of Postfix: no line panics, and whatever an event borrows lies in its line.
pub fn parse_postfix(data: &[u8]) {
    borrows(Dialect::Postfix, data);
}

/// A log of Exim: the same; and its sessions are bounded, whatever their lines say.
pub fn parse_exim(data: &[u8]) {
    borrows(Dialect::Exim, data);
    let mut sessions = Sessions::new(Dialect::Exim);
    let mut outcomes = Vec::new();
    let (mut lines, mut again) = (0, Sessions::new(Dialect::Exim));
    for line in data.split(|&b| b == b'\n') {
        if let Ok(Some(event)) = parse(Dialect::Exim, line) {
            lines += 1;
            sessions.handle_event(&event, lines, |_| false, &mut outcomes);
            for (key, value) in sessions.take_changes() {
                assert!(value.is_none_or(|value| again.load(&key, &value)), "an open state that does not read back");
            }
        }
    }
    sessions.end_all(lines, &mut outcomes);
    assert!(sessions.is_idle());
    // A line is one session at most, but for those that it settles, which had a line each.
    assert!(outcomes.len() <= 2 * usize::try_from(lines).unwrap_or(usize::MAX));
}

/// A failed session as Exim's event action reports it: read or not, nothing else.
pub fn exim_event_action(data: &[u8]) {
    if let Some(event) = parse_event_action(data) {
        let mut sessions = Sessions::new(Dialect::Exim);
        sessions.handle_event_action(&event);
        sessions.end_all(0, &mut Vec::new());
        assert!(sessions.is_idle());
    }
}

fn borrows(dialect: Dialect, data: &[u8]) {
    for line in data.split(|&b| b == b'\n') {
        if let Ok(Some(event)) = parse(dialect, line) {
            for text in borrowed::texts(&event) {
                assert!(borrowed::lies_in(text, line), "{event:?}");
            }
        }
    }
}

/// A datagram of libtlsrpt: what is read has names, is bounded, and its texts are printable.
pub fn datagram(data: &[u8]) {
    let Ok(sessions) = session::decode(data) else { return };
    assert!(sessions.len() <= session::MAX_POLICIES);
    for one in sessions {
        assert_eq!(domain_name::normalize(&one.domain).as_deref(), Some(&*one.domain));
        assert_eq!(domain_name::normalize(&one.policy.policy_domain).as_deref(), Some(&*one.policy.policy_domain));
        assert!(one.failures.len() <= session::MAX_FAILURES && one.policy.policy_string.len() <= session::MAX_STRINGS);
        for failure in one.failures {
            let texts = [failure.receiving_mx_helo, failure.additional_information, failure.failure_reason_code];
            for text in texts.into_iter().flatten() {
                assert!(text.chars().count() <= 256 && !text.chars().any(char::is_control));
            }
        }
    }
}

/// What `journalctl -o json` prints: no entry panics, and its event lies in its fields.
pub fn journal(data: &[u8]) {
    for line in data.split(|&b| b == b'\n') {
        let Ok(Some(entry)) = json_entry::decode_entry(line) else { continue };
        if let Ok(Some(event)) = entry.parse_text(Dialect::Postfix) {
            for text in borrowed::texts(&event) {
                let fields = [&entry.text, &entry.ident, &entry.host];
                assert!(fields.iter().any(|field| borrowed::lies_in(text, field)), "{event:?}");
            }
        }
    }
}

/// What a socketmap client sends: a frame is within its limits and its octets, is not whole before its last octet is
/// there, and what is written reads back.
pub fn netstring(data: &[u8]) {
    let mut rest = data;
    loop {
        match netstring::decode(rest) {
            Frame::Whole { data: request, used } => {
                assert!(request.len() <= netstring::MAX_REQUEST && used > request.len() && used <= rest.len());
                assert_eq!(netstring::decode(&rest[..used - 1]), Frame::Partial);
                let mut again = Vec::new();
                netstring::encode(request, &mut again);
                assert_eq!(again, rest[..used]);
                rest = &rest[used..];
            }
            Frame::TooLong { header, data } => {
                assert!((netstring::MAX_REQUEST + 1..=netstring::MAX_SKIP).contains(&data) && header <= rest.len());
                rest = rest.get(header + data + 1..).unwrap_or_default();
            }
            Frame::Partial => {
                // It may yet become whole: it is bounded.
                assert!(rest.len() <= netstring::MAX_REQUEST + 8);
                return;
            }
            Frame::Malformed => return,
        }
    }
}

/// TXT records of `_mta-sts`, one a line: an id is 1 to 32 letters and digits, and stands in the one record that counts.
pub fn sts_record(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let records: Vec<&str> = text.split('\n').collect();
    if let Ok(id) = record::parse_id(&records) {
        assert!((1..=32).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric()));
        let ours = records.iter().filter(|r| r.starts_with("v=STSv1")).filter(|r| r.contains(&format!("id={id}")));
        assert!(ours.count() >= 1, "{records:?}");
    }
}

/// An MTA-STS document: what is handed on are host names or wildcards of such, the age is bounded, and the stored lines
/// read back equal, for the cache is kept as lines.
pub fn sts_document(data: &[u8]) {
    let _ = document::lines(data);
    let Ok(found) = document::parse(data) else { return };
    for mx in &found.mx {
        let name = mx.strip_prefix("*.").unwrap_or(mx);
        assert_eq!(domain_name::normalize(name).as_deref(), Some(name));
    }
    assert!(found.max_age <= document::MAX_AGE);
    assert!(found.mode == Mode::None || !found.mx.is_empty());
    assert_eq!(document::parse(found.lines.join("\n").as_bytes()).as_ref(), Ok(&found));
}

/// TXT records of `_smtp._tls`, one a line: what is sent to is bounded, and reads back from its text form.
pub fn tlsrpt_record(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let records: Vec<&str> = text.split('\n').collect();
    let Ok(found) = parse_recipients(&records) else { return };
    assert!((1..=MAX_PARSED_DESTINATIONS).contains(&found.destinations.len()) && found.skipped.len() <= MAX_SKIPPED);
    for destination in &found.destinations {
        let text = destination.to_string();
        assert!(text.bytes().all(|b| b.is_ascii_graphic()), "{text:?}");
        assert_eq!(Destination::try_from(text).as_ref().ok(), Some(destination));
    }
}

/// The key of a look-up: its one form is its own one form, and names a host.
pub fn next_hop(data: &[u8]) {
    let Some(hop) = NextHop::parse(data) else { return };
    assert_eq!(domain_name::normalize(&hop.domain).as_deref(), Some(hop.domain.as_str()));
    assert!(hop.port != tlswarden::base::next_hop::Port::Number(0));
    assert_eq!(NextHop::parse(hop.key().as_bytes()), Some(hop));
}

/// The answer that rests on a document, as Postfix reads it: it takes every attribute, matches the hosts that the
/// document names and no others, and no served text becomes an attribute of its own. The first octet is the host's own
/// level.
pub fn answer(data: &[u8]) {
    let Some((first, served)) = data.split_first() else { return };
    let Ok(found) = document::parse(&served[..served.len().min(document::MAX_DOCUMENT)]) else { return };
    let (own_level, own_name) = PostfixLevel::ALL[usize::from(first % 8)];
    if found.mode == Mode::None {
        return;
    }
    let cached = Arc::new(StsPolicy::new("example.com", "1", &found, 0));
    // What is kept of a document says what the document says.
    assert_eq!(cached.document("example.com").mx, found.mx);
    let policy = cached.report_policy("example.com");
    assert_eq!(policy.policy_string, found.lines);
    let basis = Basis::Published(Published::NOTHING);
    let decision = Decision { domain: "example.com".into(), basis, sts: Some(cached), failure: None };
    let postfix = PostfixTraits {
        own_level,
        attributes: true,
        dane_under_unsigned_mx: true,
        ends_at_dataless_tlsa: false,
        crashes_without_policy_details: false,
    };
    for (wording, _) in ReplyFormat::ALL {
        let said = reply::format_reply(wording, &decision, own_level, postfix);
        assert!(said.len() <= MAX_REPLY);
        let Some(words) = said.strip_prefix("OK ") else {
            assert!(said == "NOTFOUND " && (found.mode == Mode::Testing || matches!(own_name, "dane-only" | "fingerprint")));
            continue;
        };
        let (level, attributes) = model::postfix(words).unwrap_or_else(|e| panic!("{e}: {said}"));
        model::accepted(&level, &attributes, wording == ReplyFormat::PolicyTlsrpt)
            .unwrap_or_else(|e| panic!("{e}: {said}"));
        let values =
            |name: &str| attributes.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str()).collect::<Vec<_>>();
        if found.mode == Mode::Enforce {
            let wanted: Vec<&str> = policy.mx_host.iter().map(|mx| mx.strip_prefix('*').unwrap_or(mx)).collect();
            assert_eq!((level.as_str(), values("match")), ("secure", vec![wanted.join(":").as_str()]));
        } else {
            assert!(values("match").is_empty());
            assert_eq!(level, own_name);
        }
        for pattern in values("mx_host_pattern") {
            assert!(policy.mx_host.iter().any(|mx| mx == pattern));
        }
        for line in values("policy_string") {
            assert!(policy.policy_string.iter().any(|l| l.trim() == line), "{line}");
        }
    }
}

/// The replies of an SMTP server: each is within its limits, is not whole before its last octet is there, and what waits
/// for more is bounded.
pub fn smtp_reply(data: &[u8]) {
    let mut rest = data;
    loop {
        match smtp::parse_reply(rest) {
            smtp::ParsedReply::Complete(reply, used) => {
                assert!((200..600).contains(&reply.code) && used > 3 && used <= rest.len());
                assert!((1..=smtp::MAX_LINES).contains(&reply.lines.len()));
                assert!(reply.lines.iter().all(|line| !line.contains('\n')));
                assert_eq!(smtp::parse_reply(&rest[..used - 1]), smtp::ParsedReply::Incomplete);
                rest = &rest[used..];
            }
            smtp::ParsedReply::Incomplete => return assert!(rest.len() <= smtp::MAX_LINE * (smtp::MAX_LINES + 1)),
            smtp::ParsedReply::Malformed => return,
        }
    }
}

/// A server's certificate: what is shown is printable and bounded, and it fits no record of another key. The first octet
/// chooses the record.
pub fn certificate(data: &[u8]) {
    let Some((first, der)) = data.split_first() else { return };
    if let Some(facts) = server_certificate::read_facts(der) {
        assert!(facts.names.len() <= server_certificate::MAX_NAMES && facts.tlsa_3_1_1.len() == 64);
        let texts = facts.names.iter().chain([&facts.subject, &facts.issuer]);
        texts.for_each(|text| assert!(!text.chars().any(char::is_control), "{text:?}"));
    }
    let chain = [CertificateDer::from(der), CertificateDer::from(der)];
    let record = TlsaRecord { usage: first % 4, selector: first / 4 % 2, matching: first / 8 % 3, data: vec![7; 32] };
    let time = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_795_600_000));
    assert_eq!(server_certificate::matching_record(&[record], &chain, &["mx.example.com"], time), None);
}

/// The answer of a name server: what is read of it is bounded by its length, whatever its pointers say.
pub fn dns_answer(data: &[u8]) {
    let Ok(answer) = AnswerMessage::decode(data) else { return };
    // A record takes 11 bytes of the message, or more.
    assert!(answer.records.len() + answer.undecodable.len() <= data.len() / 11);
    let names = answer.records.iter().map(|record| &record.owner).chain(answer.undecodable.iter().map(|(owner, _)| owner));
    // A byte that is not printable takes four characters (`\000`).
    names.for_each(|name| assert!(name.len() <= 4 * 255 && name.is_ascii() && !name.contains(char::is_control)));
}
