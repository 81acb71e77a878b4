//! The decisions that stand, by next hop, with the answer in words beside each.
//!
//! Takes: an [`Entry`]. Gives: it back by its next hop, in well under a microsecond, whoever else asks.
//! Limits: so many entries, the least recently asked out first; [`MAX_WORDED`] octets of answers in words, beyond which
//! an answer is put in words anew each time.
//! Not here: making a decision (`make`), whether it still stands (`policy`).

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::RwLock;

use crate::answering::policy::compress;
use crate::answering::policy::dane::cached_verdict::CachedVerdict;
use crate::answering::policy::decision::{Basis, Decision, Facts, Published, facts};
use crate::answering::policy::history::Period;
use crate::answering::policy::sts::domain_state::DomainState;
use crate::answering::policy::sts::policy::{PolicyFailure, StsPolicy};
use crate::base::clock::{CompactTime, SharedCompactTime};

/// How many parts the decisions are kept in.
const SHARDS: usize = 64;

/// How much of answers in words is kept, in octets: a common one takes 16 or, of the longer kind, 64.
pub const MAX_WORDED: usize = 16 * 1024 * 1024;

/// What most answers are made of, besides the domain's name.
const WORDS: [&str; 7] = [
    "OK secure match=",
    " servername=hostname",
    " policy_type=sts policy_domain=",
    " mx_host_pattern=",
    " { policy_string = version: STSv1 } { policy_string = mode: enforce }",
    " { policy_string = mx: ",
    " } { policy_string = max_age: ",
];

/// A decision and how long it stands.
pub struct Entry {
    /// The next hop in its one form.
    pub hop: Arc<str>,
    /// What the answer rests on.
    pub basis: Basis,
    /// The MTA-STS policy in force.
    pub sts: Option<Arc<StsPolicy>>,
    /// The MTA-STS document could not be had.
    pub failure: Option<Arc<PolicyFailure>>,
    /// The policy domain.
    pub domain: Arc<DomainState>,
    /// The last DANE verdict that was no failure.
    pub held: Option<CachedVerdict>,
    /// None for "ask again", under which there are no sessions.
    pub period: Option<Arc<Period>>,
    /// It stands before this moment.
    pub until: CompactTime,
    /// From this moment on it is made anew behind the answer.
    pub refresh: CompactTime,
    /// When it was last asked about.
    pub asked: SharedCompactTime,
    /// Of `domain`, when it was made.
    pub version: u32,
    /// Whether it is being made anew.
    pub refreshing: AtomicBool,
    /// The wording that was asked for first, and behind it the answer, packed: an MTA asks for one alone.
    pub worded: OnceLock<Box<[u8]>>,
}

/// All of them.
pub struct Entries {
    shards: [RwLock<HashSet<ByHop>>; SHARDS],
    limit: usize,
    worded: AtomicUsize,
}

/// An entry that is found by its next hop.
struct ByHop(Arc<Entry>);

impl Borrow<[u8]> for ByHop {
    fn borrow(&self) -> &[u8] {
        self.0.hop.as_bytes()
    }
}

impl Hash for ByHop {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hop.as_bytes().hash(state);
    }
}

impl PartialEq for ByHop {
    fn eq(&self, other: &Self) -> bool {
        self.0.hop == other.0.hop
    }
}

impl Eq for ByHop {}

impl Entry {
    /// For what is no domain name: no policy, for good.
    pub fn nothing() -> Entry {
        Entry {
            hop: "".into(),
            basis: Basis::Published(Published::NOTHING),
            sts: None,
            failure: None,
            domain: Arc::new(DomainState::new("".into(), 0)),
            held: None,
            period: None,
            until: CompactTime::NEVER,
            refresh: CompactTime::NEVER,
            asked: SharedCompactTime::from_seconds(0),
            version: 0,
            refreshing: AtomicBool::new(false),
            worded: OnceLock::new(),
        }
    }

    /// What was known before a restart: a decision is made from it when it is asked for.
    pub fn before(hop: Arc<str>, domain: Arc<DomainState>, held: CachedVerdict) -> Entry {
        let asked = SharedCompactTime::from_seconds(held.refresh_at());
        Entry { hop, domain, until: CompactTime::from_seconds(0), asked, held: Some(held), ..Entry::nothing() }
    }

    /// What was decided.
    pub fn decision(&self) -> Decision {
        Decision {
            domain: Arc::clone(&self.domain.name),
            basis: self.basis.clone(),
            sts: self.sts.clone(),
            failure: self.failure.clone(),
        }
    }

    /// What the answer follows from; nothing where an override says it.
    pub fn facts(&self) -> Option<Facts> {
        facts(&self.basis, self.sts.as_deref())
    }

    fn size(&self) -> usize {
        self.worded.get().map_or(0, |words| words.len())
    }
}

impl Entries {
    /// None, and at most `limit` of them.
    pub fn new(limit: usize) -> Entries {
        Entries { shards: std::array::from_fn(|_| RwLock::default()), limit: limit.max(1), worded: AtomicUsize::new(0) }
    }

    /// Does something with the entry of a next hop. `then` must not wait.
    pub fn with<R>(&self, hop: &[u8], then: impl FnOnce(&Entry) -> R) -> Option<R> {
        self.shard(hop).read().get(hop).map(|entry| then(&entry.0))
    }

    /// The entry of a next hop.
    pub fn of(&self, hop: &str) -> Option<Arc<Entry>> {
        self.shard(hop.as_bytes()).read().get(hop.as_bytes()).map(|entry| Arc::clone(&entry.0))
    }

    /// Appends an entry's answer in a wording, which `word` makes of the decision.
    pub fn say(&self, entry: &Entry, wording: u8, word: impl FnOnce(&Decision) -> Box<[u8]>, out: &mut Vec<u8>) {
        let name = &entry.domain.name;
        let kept = entry.worded.get();
        if let Some((_, words)) = kept.and_then(|kept| kept.split_first()).filter(|(kept, _)| **kept == wording) {
            return compress::unpack(&WORDS, name, words, out);
        }
        let words = word(&entry.decision());
        out.extend_from_slice(&words);
        if kept.is_none() && self.worded.load(Ordering::Relaxed) + words.len() <= MAX_WORDED {
            let mut worded = vec![wording];
            compress::pack(&WORDS, name, &words, &mut worded);
            let size = worded.len();
            if entry.worded.set(worded.into_boxed_slice()).is_ok() {
                self.worded.fetch_add(size, Ordering::Relaxed);
            }
        }
    }

    /// Puts an entry in the place of the one before; gives those that had to go for it.
    pub fn put(&self, entry: Entry) -> Vec<Arc<Entry>> {
        let mut entries = self.shard(entry.hop.as_bytes()).write();
        if let Some(before) = entries.replace(ByHop(Arc::new(entry))) {
            self.let_go(&before.0);
        }
        // Each shard has its part of the limit, and some room, for names do not spread evenly.
        let limit = (self.limit / SHARDS * 5 / 4).max(16);
        if entries.len() <= limit {
            return Vec::new();
        }
        let mut asked: Vec<i64> = entries.iter().map(|entry| entry.0.asked.seconds()).collect();
        let surplus = (entries.len() - limit + limit / 20).clamp(1, asked.len());
        let cutoff = *asked.select_nth_unstable(surplus - 1).1;
        let mut gone = Vec::new();
        entries.retain(|entry| {
            let goes = gone.len() < surplus && entry.0.asked.seconds() <= cutoff;
            if goes {
                self.let_go(&entry.0);
                gone.push(Arc::clone(&entry.0));
            }
            !goes
        });
        gone
    }

    /// Keeps those alone that `stays` names.
    pub fn retain(&self, mut stays: impl FnMut(&Entry) -> bool) {
        for shard in &self.shards {
            shard.write().retain(|entry| {
                let stays = stays(&entry.0);
                if !stays {
                    self.let_go(&entry.0);
                }
                stays
            });
        }
    }

    /// All next hops.
    pub fn hops(&self) -> Vec<Arc<str>> {
        self.shards
            .iter()
            .flat_map(|shard| shard.read().iter().map(|entry| Arc::clone(&entry.0.hop)).collect::<Vec<_>>())
            .collect()
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().len()).sum()
    }

    fn let_go(&self, entry: &Entry) {
        self.worded.fetch_sub(entry.size(), Ordering::Relaxed);
    }

    fn shard(&self, hop: &[u8]) -> &RwLock<HashSet<ByHop>> {
        // FNV-1a over the beginning of the name, where names differ most, and its length: it only spreads.
        let mix = |hash: u32, octet: &u8| (hash ^ u32::from(*octet)).wrapping_mul(0x0100_0193);
        let hash = hop.iter().take(24).fold(0x811c_9dc5 ^ hop.len() as u32, mix);
        &self.shards[(hash >> 16) as usize % SHARDS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(hop: &str, asked: i64) -> Entry {
        Entry { hop: hop.into(), asked: SharedCompactTime::from_seconds(asked), ..Entry::nothing() }
    }

    #[test]
    fn the_least_recently_asked_go_first() {
        let entries = Entries::new(1);
        let mut gone = Vec::new();
        for n in 0..5000 {
            gone.extend(entries.put(entry(&format!("{n}.example"), n)));
        }
        assert!((SHARDS * 14..=SHARDS * 16).contains(&entries.len()), "{}", entries.len());
        assert_eq!(gone.len() + entries.len(), 5000);
        assert!(entries.of("4999.example").is_some() && entries.of("0.example").is_none());
    }

    #[test]
    fn an_answer_is_kept_packed_and_said_whole() {
        let frames: [(&[u8], usize); 3] = [
            (b"61:OK secure match=mx.a.example:.b.example servername=hostname,", 32),
            (
                b"183:OK secure match=mx.a.example servername=hostname policy_type=sts policy_domain=a.example \
              mx_host_pattern=mx.a.example { policy_string = version: STSv1 } { policy_string = mode: enforce } \
              { policy_string = mx: mx.a.example } { policy_string = max_age: 604800 },",
                64,
            ),
            (b"11:TEMP \x01\x08 x,", 16),
        ];
        for (wording, (frame, most)) in (0..).zip(frames) {
            let entries = Entries::new(1);
            entries.put(Entry { domain: Arc::new(DomainState::new("a.example".into(), 0)), ..entry("a.example", 0) });
            let found = entries.of("a.example").unwrap();
            let mut out = b"before".to_vec();
            entries.say(&found, wording, |_| frame.into(), &mut out);
            entries.say(&found, wording, |_| unreachable!("it is kept"), &mut out);
            assert_eq!(out, [b"before", frame, frame].concat());
            assert!(found.size() <= most, "{}", found.size());
            entries.say(&found, wording + 1, |_| (*b"other").into(), &mut out);
            assert!(out.ends_with(b"other"));
        }
    }

    #[test]
    fn words_are_kept_within_their_limit() {
        let entries = Entries::new(100);
        let long = || vec![b'x'; MAX_WORDED / 2 - 1].into_boxed_slice();
        let said = |hop: &str| {
            let mut out = Vec::new();
            let found = entries.of(hop).unwrap();
            entries.say(&found, 0, |_| long(), &mut out);
            assert_eq!(out.len(), MAX_WORDED / 2 - 1);
            found.worded.get().is_some()
        };
        for hop in ["a", "b", "c"] {
            entries.put(entry(hop, 0));
        }
        assert_eq!(["a", "b", "c"].map(said), [true, true, false]);
        entries.put(entry("a", 1));
        assert!(said("c") && !said("a"));
        entries.retain(|_| false);
        assert_eq!((entries.worded.load(Ordering::Relaxed), entries.len()), (0, 0));
    }
}
