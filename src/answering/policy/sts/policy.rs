//! A policy as it is kept, in memory and in the store; and what is kept of a document that is not a valid policy.
//!
//! Takes: a document, when it was fetched, for which id. Gives: a [`StsPolicy`] with its end and its next refresh.
//! Limits: [`MAX_INVALID_BYTES`] bytes of a document that is not a valid policy.
//! Not here: which policy a domain has now (`domain_state`), writing to the store (`cache`).

use std::borrow::Cow;
use std::hash::{DefaultHasher, Hash, Hasher};

use serde::{Deserialize, Serialize};

use crate::answering::policy::sts::document::{self, MAX_AGE, PolicyDocument};
use crate::answering::policy::sts::text::PolicyText;
use crate::base::clock::{CompactTime, is_future};
use crate::base::tlsrpt::{Mode, Policy, PolicyType, ResultType};

/// Seconds between two fetches of a policy in use (RFC 8461 §3.3: at least daily is common practice).
pub const REFRESH_INTERVAL: i64 = 86_400;

/// The shortest that a policy serves, in seconds: a `max_age` of 0 must not mean a fetch per message.
const MIN_AGE: i64 = 60;

/// How much of an invalid document is stored for the report, in bytes, plus [`LINE_OVERHEAD`] for each line: its author
/// knows it by that, and a hundred thousand of them fit into memory.
const MAX_INVALID_BYTES: usize = 8 * 1024;

/// The memory that a line takes besides its text, in bytes.
const LINE_OVERHEAD: usize = 48;

/// A fetched MTA-STS policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StsPolicy {
    /// The `id` of the record that led to it.
    pub id: Box<str>,
    /// The document as served.
    pub text: PolicyText,
    fetched: CompactTime,
    expires: CompactTime,
    refresh_at: CompactTime,
    /// What it asks of senders.
    pub mode: Mode,
}

/// A policy failure: a document that could not be fetched or parsed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyFailure {
    /// The `id` of the record that led to it.
    pub id: String,
    /// The RFC 8460 result.
    pub result_type: ResultType,
    /// Its `failure-reason-code`.
    pub reason: String,
    /// The cause, for people.
    pub text: String,
    /// The lines that were served, if any.
    pub lines: Vec<String>,
    /// When, in seconds since 1970-01-01T00:00:00Z.
    pub at: i64,
    /// When it is tried again, likewise.
    pub retry: i64,
}

/// A policy read from the store, with the state of its domain.
pub struct RestoredPolicy {
    /// The policy.
    pub policy: StsPolicy,
    /// When its domain was last asked about, in seconds since 1970-01-01T00:00:00Z.
    pub used: i64,
    /// When its record was last asked, likewise.
    pub checked: Option<i64>,
    /// Why a newer document could not be had.
    pub failure: Option<PolicyFailure>,
}

/// The form in the store.
#[derive(Serialize, Deserialize)]
struct EncodedPolicy<'a> {
    id: &'a str,
    mode: Mode,
    fetched: CompactTime,
    expires: CompactTime,
    refresh: CompactTime,
    used: CompactTime,
    checked: Option<CompactTime>,
    text: &'a [u8],
    failure: Option<Cow<'a, PolicyFailure>>,
}

impl StsPolicy {
    /// A document of a domain, fetched for an id at a moment (seconds).
    pub fn new(name: &str, id: &str, document: &PolicyDocument, fetched: i64) -> StsPolicy {
        let age = i64::try_from(document.max_age.min(MAX_AGE)).unwrap_or(i64::MAX).max(MIN_AGE);
        StsPolicy {
            id: id.into(),
            text: PolicyText::new(name, &document.lines),
            fetched: CompactTime::from_seconds(fetched),
            expires: CompactTime::from_seconds(fetched + age),
            refresh_at: CompactTime::from_seconds(fetched + refresh_delay(name, age)),
            mode: document.mode,
        }
    }

    /// Makes it serve until a later moment, and marks it by its refresh: no policy as fetched is refreshed at that second.
    pub(super) fn extend_until(&mut self, expires: i64) {
        if expires > self.expires() {
            self.expires = CompactTime::from_seconds(expires);
            self.refresh_at = CompactTime::from_seconds(self.refresh_at() - 1);
        }
    }

    /// The policy with the times that it can have if `now` is right: fetched now at the latest, and for as long as its
    /// document says. `None` if they are so.
    pub(super) fn settled(&self, name: &str, now: i64) -> Option<StsPolicy> {
        let usual = self.refresh_at() - self.fetched() == refresh_delay(name, self.expires() - self.fetched());
        if usual && !is_future(self.fetched(), now) {
            return None;
        }
        Some(StsPolicy::new(name, &self.id, &self.document(name), self.fetched().min(now)))
    }

    /// When it was fetched, in seconds since 1970-01-01T00:00:00Z.
    pub fn fetched(&self) -> i64 {
        self.fetched.seconds()
    }

    /// When it ends, likewise.
    pub fn expires(&self) -> i64 {
        self.expires.seconds()
    }

    /// When it is to be fetched anew, likewise.
    pub fn refresh_at(&self) -> i64 {
        self.refresh_at.seconds()
    }

    /// The document, as its domain served it.
    pub fn document(&self, name: &str) -> PolicyDocument {
        parse_text(&self.text, name)
    }

    /// The policy as reports show it.
    pub fn report_policy(&self, name: &str) -> Policy {
        report_policy(&self.text, name)
    }

    /// The size of its texts, in bytes.
    pub fn text_bytes(&self) -> usize {
        self.text.packed_bytes().len() + self.id.len()
    }

    /// As it is stored; `failure` is why a newer document could not be had.
    pub fn encode(&self, used: i64, checked: Option<i64>, failure: Option<&PolicyFailure>) -> Vec<u8> {
        let stored = EncodedPolicy {
            id: &self.id,
            mode: self.mode,
            fetched: self.fetched,
            expires: self.expires,
            refresh: self.refresh_at,
            used: CompactTime::from_seconds(used),
            checked: checked.map(CompactTime::from_seconds),
            text: self.text.packed_bytes(),
            failure: failure.map(Cow::Borrowed),
        };
        // Invariant: postcard writes numbers, texts, lists and unit variants into a vector without fail.
        postcard::to_stdvec(&stored).expect("a policy has a stored form")
    }

    /// Reads it back; nothing where it is not in that form.
    pub fn decode(bytes: &[u8]) -> Option<RestoredPolicy> {
        let stored: EncodedPolicy<'_> = postcard::from_bytes(bytes).ok()?;
        let policy = StsPolicy {
            id: stored.id.into(),
            text: PolicyText::from_packed(stored.text),
            fetched: stored.fetched,
            expires: stored.expires,
            refresh_at: stored.refresh,
            mode: stored.mode,
        };
        Some(RestoredPolicy {
            policy,
            used: stored.used.seconds(),
            checked: stored.checked.map(CompactTime::seconds),
            failure: stored.failure.map(Cow::into_owned),
        })
    }
}

impl PolicyFailure {
    /// The size of its texts, in bytes.
    pub fn text_bytes(&self) -> usize {
        self.lines.iter().map(|line| line.len() + LINE_OVERHEAD).sum::<usize>() + self.text.len()
    }
}

/// A text that was a policy when it was packed, as reports show it.
pub fn report_policy(text: &PolicyText, name: &str) -> Policy {
    let document = parse_text(text, name);
    Policy {
        policy_type: PolicyType::Sts,
        policy_string: document.lines,
        policy_domain: name.to_owned(),
        mx_host: document.mx,
    }
}

/// How long after it was fetched a policy that serves for `age` seconds is fetched anew. Spread over a tenth, by name, so
/// that policies fetched together are not fetched together again.
fn refresh_delay(name: &str, age: i64) -> i64 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    let spread = i64::try_from(hasher.finish() % 100).unwrap_or(0) * (REFRESH_INTERVAL / 1000);
    (REFRESH_INTERVAL - spread).min(age / 2)
}

fn parse_text(text: &PolicyText, name: &str) -> PolicyDocument {
    let whole = text.unpack(name);
    // Only policies are packed as such; what has become unreadable in the store asks for nothing.
    document::parse(whole.as_bytes()).unwrap_or_else(|_| PolicyDocument {
        mode: Mode::None,
        mx: Vec::new(),
        max_age: 0,
        lines: document::lines(whole.as_bytes()),
    })
}

/// Keeps the first lines of an invalid document, up to [`MAX_INVALID_BYTES`].
pub fn keep_beginning(lines: Vec<String>) -> Vec<String> {
    let mut left = MAX_INVALID_BYTES;
    let mut kept = Vec::new();
    for mut line in lines {
        let Some(room) = left.checked_sub(LINE_OVERHEAD).filter(|room| *room > 0) else { break };
        line.truncate(line.floor_char_boundary(room));
        line.shrink_to_fit();
        left = room - line.len();
        kept.push(line);
    }
    kept.shrink_to_fit();
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(text: &str) -> PolicyDocument {
        document::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn the_stored_form_reads_back() {
        let found = document("version: STSv1\nmode: testing\nmx: *.example.com\nx: y\nmax_age: 86400\n");
        let policy = StsPolicy::new("example.com", "20261101T000000", &found, 1_700_000_000);
        let bytes = policy.encode(1_700_000_005, Some(1_700_000_001), None);
        let again = StsPolicy::decode(&bytes).unwrap();
        assert_eq!((again.policy, again.used, again.checked), (policy.clone(), 1_700_000_005, Some(1_700_000_001)));
        assert_eq!(policy.document("example.com"), found);
        for cut in 0..bytes.len() {
            assert!(StsPolicy::decode(&bytes[..cut]).is_none(), "{cut}");
        }
        let failure = PolicyFailure {
            id: "20261102T000000".into(),
            result_type: ResultType::StsPolicyFetchError,
            reason: "status-500".into(),
            text: "status 500".into(),
            lines: vec!["sorry".into()],
            at: 1_700_000_002,
            retry: 1_700_000_302,
        };
        let bytes = policy.encode(1_700_000_005, None, Some(&failure));
        assert_eq!(StsPolicy::decode(&bytes).unwrap().failure, Some(failure));
        assert!(StsPolicy::decode(&bytes[..bytes.len() - 1]).is_none());
    }

    #[test]
    fn of_a_document_that_is_no_policy_the_beginning_is_kept() {
        let short: Vec<String> = vec!["<html>".into(), "<body>\u{fc}</body>".into()];
        assert_eq!(keep_beginning(short.clone()), short);
        let one = keep_beginning(vec!["\u{fc}".repeat(30_000)]);
        assert!(
            one.len() == 1 && (MAX_INVALID_BYTES - LINE_OVERHEAD - 1..=MAX_INVALID_BYTES).contains(&one[0].len()),
            "{}",
            one[0].len()
        );
        let many = keep_beginning(vec!["x".into(); 32_000]);
        assert!((150..=MAX_INVALID_BYTES / LINE_OVERHEAD).contains(&many.len()), "{}", many.len());
        assert!(many.iter().map(|line| line.capacity() + LINE_OVERHEAD).sum::<usize>() <= MAX_INVALID_BYTES);
    }
}
