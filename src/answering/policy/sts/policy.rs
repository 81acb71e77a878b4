//! A policy as it is kept, in memory and in the store; and what is kept of a document that is none.
//!
//! Takes: a document, when it was fetched, for which id. Gives: a [`Cached`] policy with its end and its next refresh.
//! Limits: [`FAULTY`] octets of a document that is no policy.
//! Not here: which policy a domain has now (`domain`), writing to the store (`cache`).

use std::borrow::Cow;
use std::hash::{DefaultHasher, Hash, Hasher};

use serde::{Deserialize, Serialize};

use crate::answering::policy::sts::document::{self, Document, MAX_AGE};
use crate::answering::policy::sts::text::PolicyText;
use crate::base::clock::CompactTime;
use crate::base::tlsrpt::{Mode, Policy, PolicyType, ResultType};

/// Seconds between two fetches of a policy in use (RFC 8461 §3.3: at least daily is common practice).
pub const REFRESH: i64 = 86_400;

/// The shortest that a policy serves, in seconds: a `max_age` of 0 must not mean a fetch per message.
const MIN_AGE: i64 = 60;

/// How much of a document that is no policy is kept for the report, in octets, [`LINE`] more for each line: its author
/// knows it by that, and a hundred thousand of them fit into memory.
const FAULTY: usize = 8 * 1024;

/// What a line takes besides its text, in octets.
const LINE: usize = 48;

/// A policy as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cached {
    /// The `id` of the record that led to it.
    pub id: Box<str>,
    /// The document as served.
    pub text: PolicyText,
    fetched: CompactTime,
    expires: CompactTime,
    refresh: CompactTime,
    /// What it asks of senders.
    pub mode: Mode,
}

/// A document that could not be had.
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

/// A policy as it comes from the store, with what is stored beside it.
pub struct Restored {
    /// The policy.
    pub policy: Cached,
    /// When its domain was last asked about, in seconds since 1970-01-01T00:00:00Z.
    pub used: i64,
    /// When its record was last asked, likewise.
    pub checked: Option<i64>,
    /// Why a newer document could not be had.
    pub failure: Option<PolicyFailure>,
}

/// The form in the store.
#[derive(Serialize, Deserialize)]
struct Stored<'a> {
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

impl Cached {
    /// A document of a domain, fetched for an id at a moment (seconds).
    pub fn of(name: &str, id: &str, document: &Document, fetched: i64) -> Cached {
        let age = i64::try_from(document.max_age.min(MAX_AGE)).unwrap_or(i64::MAX).max(MIN_AGE);
        // Spread over a tenth, by name, so that policies fetched together are not fetched together again.
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        let spread = i64::try_from(hasher.finish() % 100).unwrap_or(0) * (REFRESH / 1000);
        Cached {
            id: id.into(),
            text: PolicyText::new(name, &document.lines),
            fetched: CompactTime::from_seconds(fetched),
            expires: CompactTime::from_seconds(fetched + age),
            refresh: CompactTime::from_seconds(fetched + (REFRESH - spread).min(age / 2)),
            mode: document.mode,
        }
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
    pub fn refresh(&self) -> i64 {
        self.refresh.seconds()
    }

    /// The document, as its domain served it.
    pub fn document(&self, name: &str) -> Document {
        patterns(&self.text, name)
    }

    /// As reports show it.
    pub fn policy(&self, name: &str) -> Policy {
        policy(&self.text, name)
    }

    /// What it takes besides what every domain takes, in octets.
    pub fn size(&self) -> usize {
        self.text.packed_bytes().len() + self.id.len()
    }

    /// As it is stored; `failure` is why a newer document could not be had.
    pub fn encode(&self, used: i64, checked: Option<i64>, failure: Option<&PolicyFailure>) -> Vec<u8> {
        let stored = Stored {
            id: &self.id,
            mode: self.mode,
            fetched: self.fetched,
            expires: self.expires,
            refresh: self.refresh,
            used: CompactTime::from_seconds(used),
            checked: checked.map(CompactTime::from_seconds),
            text: self.text.packed_bytes(),
            failure: failure.map(Cow::Borrowed),
        };
        // Invariant: postcard writes numbers, texts, lists and unit variants into a vector without fail.
        postcard::to_stdvec(&stored).expect("a policy has a stored form")
    }

    /// Reads it back; nothing where it is not in that form.
    pub fn decode(octets: &[u8]) -> Option<Restored> {
        let stored: Stored<'_> = postcard::from_bytes(octets).ok()?;
        let policy = Cached {
            id: stored.id.into(),
            text: PolicyText::from_packed(stored.text),
            fetched: stored.fetched,
            expires: stored.expires,
            refresh: stored.refresh,
            mode: stored.mode,
        };
        Some(Restored {
            policy,
            used: stored.used.seconds(),
            checked: stored.checked.map(CompactTime::seconds),
            failure: stored.failure.map(Cow::into_owned),
        })
    }
}

impl PolicyFailure {
    /// What its texts take, in octets.
    pub fn size(&self) -> usize {
        self.lines.iter().map(|line| line.len() + LINE).sum::<usize>() + self.text.len()
    }
}

/// A text that was a policy when it was packed, as reports show it.
pub fn policy(text: &PolicyText, name: &str) -> Policy {
    let document = patterns(text, name);
    Policy {
        policy_type: PolicyType::Sts,
        policy_string: document.lines,
        policy_domain: name.to_owned(),
        mx_host: document.mx,
    }
}

fn patterns(text: &PolicyText, name: &str) -> Document {
    let whole = text.unpack(name);
    // Only policies are packed as such; what has become unreadable in the store asks for nothing.
    document::parse(whole.as_bytes()).unwrap_or_else(|_| Document {
        mode: Mode::None,
        mx: Vec::new(),
        max_age: 0,
        lines: document::lines(whole.as_bytes()),
    })
}

/// The first lines, as much as is kept of a document that is no policy.
pub fn beginning(lines: Vec<String>) -> Vec<String> {
    let mut left = FAULTY;
    let mut kept = Vec::new();
    for mut line in lines {
        let Some(room) = left.checked_sub(LINE).filter(|room| *room > 0) else { break };
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

    fn document(text: &str) -> Document {
        document::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn the_stored_form_reads_back() {
        let found = document("version: STSv1\nmode: testing\nmx: *.example.com\nx: y\nmax_age: 86400\n");
        let policy = Cached::of("example.com", "20261101T000000", &found, 1_700_000_000);
        let octets = policy.encode(1_700_000_005, Some(1_700_000_001), None);
        let again = Cached::decode(&octets).unwrap();
        assert_eq!((again.policy, again.used, again.checked), (policy.clone(), 1_700_000_005, Some(1_700_000_001)));
        assert_eq!(policy.document("example.com"), found);
        for cut in 0..octets.len() {
            assert!(Cached::decode(&octets[..cut]).is_none(), "{cut}");
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
        let octets = policy.encode(1_700_000_005, None, Some(&failure));
        assert_eq!(Cached::decode(&octets).unwrap().failure, Some(failure));
        assert!(Cached::decode(&octets[..octets.len() - 1]).is_none());
    }

    #[test]
    fn of_a_document_that_is_no_policy_the_beginning_is_kept() {
        let short: Vec<String> = vec!["<html>".into(), "<body>\u{fc}</body>".into()];
        assert_eq!(beginning(short.clone()), short);
        let one = beginning(vec!["\u{fc}".repeat(30_000)]);
        assert!(one.len() == 1 && (FAULTY - LINE - 1..=FAULTY).contains(&one[0].len()), "{}", one[0].len());
        let many = beginning(vec!["x".into(); 32_000]);
        assert!((150..=FAULTY / LINE).contains(&many.len()), "{}", many.len());
        assert!(many.iter().map(|line| line.capacity() + LINE).sum::<usize>() <= FAULTY);
    }
}
