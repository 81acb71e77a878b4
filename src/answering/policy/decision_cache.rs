//! The decisions that stand, by next hop, with the answer in words beside each.
//!
//! Takes: a [`CachedDecision`]. Gives: it back by its next hop, in well under a microsecond, whoever else asks.
//! Limits: so many entries, the least recently asked out first; [`MAX_REPLY_BYTES`] bytes of answers in words, beyond
//! which an answer is put in words anew each time.
//! Not here: making a decision (`decide`), whether it still stands (`policies`).

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
use crate::answering::policy::history::compact::DestinationFault;
use crate::answering::policy::sts::domain_state::DomainState;
use crate::answering::policy::sts::policy::{PolicyFailure, StsPolicy};
use crate::base::clock::{CompactTime, SharedCompactTime, holds, is_future};

/// How many parts the decisions are kept in.
const SHARDS: usize = 64;

/// How long a decision is current at most, in seconds: as long as a record or a verdict may hold.
pub const MAX_DECISION_TTL: i64 = 86_400;

/// How much of answers in words is kept, in bytes: a common one takes 16 or, of the longer kind, 64.
pub const MAX_REPLY_BYTES: usize = 16 * 1024 * 1024;

/// What most answers are made of, besides the domain's name.
const DICTIONARY: [&str; 7] = [
    "OK secure match=",
    " servername=hostname",
    " policy_type=sts policy_domain=",
    " mx_host_pattern=",
    " { policy_string = version: STSv1 } { policy_string = mode: enforce }",
    " { policy_string = mx: ",
    " } { policy_string = max_age: ",
];

/// A decision and how long it is current.
pub struct CachedDecision {
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
    pub verdict: Option<CachedVerdict>,
    /// Why the mail waits, where that is the destination's fault.
    pub fault: Option<Arc<DestinationFault>>,
    /// None for "ask again", under which there are no sessions.
    pub period: Option<Arc<Period>>,
    /// It stands before this moment.
    pub expires: CompactTime,
    /// From this moment on it is made anew behind the answer.
    pub refresh_at: CompactTime,
    /// When it was last asked about.
    pub last_asked: SharedCompactTime,
    /// Of `domain`, when it was made.
    pub domain_version: u32,
    /// Whether it is being made anew.
    pub refreshing: AtomicBool,
    /// The wording that was asked for first, and behind it the answer, packed: an MTA asks for one alone.
    pub packed_reply: OnceLock<Box<[u8]>>,
}

/// All decisions, by next hop.
pub struct DecisionCache {
    shards: [RwLock<HashSet<ByHop>>; SHARDS],
    limit: usize,
    packed_reply_bytes: AtomicUsize,
}

/// An entry that is found by its next hop.
struct ByHop(Arc<CachedDecision>);

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

impl CachedDecision {
    /// No policy, for good: the decision for keys that are not domain names.
    pub fn no_policy() -> CachedDecision {
        CachedDecision {
            hop: "".into(),
            basis: Basis::Published(Published::NOTHING),
            sts: None,
            failure: None,
            domain: Arc::new(DomainState::new("".into(), 0)),
            verdict: None,
            fault: None,
            period: None,
            expires: CompactTime::NEVER,
            refresh_at: CompactTime::NEVER,
            last_asked: SharedCompactTime::from_seconds(0),
            domain_version: 0,
            refreshing: AtomicBool::new(false),
            packed_reply: OnceLock::new(),
        }
    }

    /// An entry with the verdict from before a restart: a decision is made from it when it is asked for.
    pub fn restored(hop: Arc<str>, domain: Arc<DomainState>, verdict: CachedVerdict) -> CachedDecision {
        let asked = SharedCompactTime::from_seconds(verdict.refresh_at());
        CachedDecision {
            hop,
            domain,
            expires: CompactTime::from_seconds(0),
            last_asked: asked,
            verdict: Some(verdict),
            ..CachedDecision::no_policy()
        }
    }

    /// Whether it may be answered at `now` (seconds). What was made or asked about in the future, or stands for longer
    /// than any decision, is from a clock that was ahead.
    pub fn holds(&self, now: i64) -> bool {
        let in_time = || {
            holds(self.last_asked.seconds(), self.expires.seconds(), now)
                && self.expires.seconds() - now <= MAX_DECISION_TTL
        };
        (self.expires == CompactTime::NEVER || in_time()) && self.domain_version == self.domain.version()
    }

    /// Brings the time of the last request back to `now` where it is from the future: such an entry would never be the
    /// least recently asked.
    pub fn settle(&self, now: i64) {
        if is_future(self.last_asked.seconds(), now) {
            self.last_asked.set(now);
        }
    }

    /// The same with the verdict of a look-up that has ended: the decision is made anew from it, unless it `stands`.
    pub fn with_verdict(&self, verdict: CachedVerdict, stands: bool) -> CachedDecision {
        CachedDecision {
            hop: Arc::clone(&self.hop),
            basis: self.basis.clone(),
            sts: self.sts.clone(),
            failure: self.failure.clone(),
            domain: Arc::clone(&self.domain),
            verdict: Some(verdict),
            fault: self.fault.clone(),
            period: self.period.clone(),
            expires: if stands { self.expires } else { CompactTime::from_seconds(0) },
            refresh_at: self.refresh_at,
            last_asked: SharedCompactTime::from_seconds(self.last_asked.seconds()),
            domain_version: self.domain_version,
            refreshing: AtomicBool::new(self.refreshing.load(Ordering::Relaxed)),
            packed_reply: OnceLock::new(),
        }
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

    fn reply_size(&self) -> usize {
        self.packed_reply.get().map_or(0, |reply| reply.len())
    }
}

impl DecisionCache {
    /// None, and at most `limit` of them.
    pub fn new(limit: usize) -> DecisionCache {
        DecisionCache {
            shards: std::array::from_fn(|_| RwLock::default()),
            limit: limit.max(1),
            packed_reply_bytes: AtomicUsize::new(0),
        }
    }

    /// How many entries there may be.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Calls `then` with the entry of a next hop. `then` must not wait.
    pub fn with<R>(&self, hop: &[u8], then: impl FnOnce(&CachedDecision) -> R) -> Option<R> {
        self.shard(hop).read().get(hop).map(|entry| then(&entry.0))
    }

    /// The entry of a next hop.
    pub fn get(&self, hop: &str) -> Option<Arc<CachedDecision>> {
        self.shard(hop.as_bytes()).read().get(hop.as_bytes()).map(|entry| Arc::clone(&entry.0))
    }

    /// Appends an entry's answer in a wording, which `render` makes of the decision.
    pub fn write_reply(
        &self,
        entry: &CachedDecision,
        wording: u8,
        render: impl FnOnce(&Decision) -> Box<[u8]>,
        out: &mut Vec<u8>,
    ) {
        let name = &entry.domain.name;
        let stored = entry.packed_reply.get();
        if let Some((_, reply)) =
            stored.and_then(|stored| stored.split_first()).filter(|(stored, _)| **stored == wording)
        {
            return compress::unpack(&DICTIONARY, name, reply, out);
        }
        let reply = render(&entry.decision());
        out.extend_from_slice(&reply);
        if stored.is_none() && self.packed_reply_bytes.load(Ordering::Relaxed) + reply.len() <= MAX_REPLY_BYTES {
            let mut packed = vec![wording];
            compress::pack(&DICTIONARY, name, &reply, &mut packed);
            let size = packed.len();
            if entry.packed_reply.set(packed.into_boxed_slice()).is_ok() {
                self.packed_reply_bytes.fetch_add(size, Ordering::Relaxed);
            }
        }
    }

    /// Inserts or replaces an entry; returns the entries that were evicted for it.
    pub fn insert(&self, entry: CachedDecision) -> Vec<Arc<CachedDecision>> {
        let hop = Arc::clone(&entry.hop);
        self.update(&hop, |_| Some(entry))
    }

    /// Replaces the entry of a next hop, if there is one, by that which `change` makes of it, or leaves it; returns the
    /// entries that were evicted for it. `change` must not wait.
    pub fn update(
        &self,
        hop: &str,
        change: impl FnOnce(Option<&CachedDecision>) -> Option<CachedDecision>,
    ) -> Vec<Arc<CachedDecision>> {
        let mut entries = self.shard(hop.as_bytes()).write();
        let Some(entry) = change(entries.get(hop.as_bytes()).map(|entry| &*entry.0)) else { return Vec::new() };
        if let Some(before) = entries.replace(ByHop(Arc::new(entry))) {
            self.release_reply(&before.0);
        }
        // Each shard has its part of the limit, and some room, for names do not spread evenly.
        let limit = (self.limit / SHARDS * 5 / 4).max(16);
        if entries.len() <= limit {
            return Vec::new();
        }
        let mut asked: Vec<i64> = entries.iter().map(|entry| entry.0.last_asked.seconds()).collect();
        let surplus = (entries.len() - limit + limit / 20).clamp(1, asked.len());
        let cutoff = *asked.select_nth_unstable(surplus - 1).1;
        let mut evicted = Vec::new();
        entries.retain(|entry| {
            let goes = evicted.len() < surplus && entry.0.last_asked.seconds() <= cutoff;
            if goes {
                self.release_reply(&entry.0);
                evicted.push(Arc::clone(&entry.0));
            }
            !goes
        });
        evicted
    }

    /// Keeps those alone that `stays` names.
    pub fn retain(&self, mut stays: impl FnMut(&CachedDecision) -> bool) {
        for shard in &self.shards {
            shard.write().retain(|entry| {
                let stays = stays(&entry.0);
                if !stays {
                    self.release_reply(&entry.0);
                }
                stays
            });
        }
    }

    /// All next hops.
    pub fn next_hops(&self) -> Vec<Arc<str>> {
        self.shards
            .iter()
            .flat_map(|shard| shard.read().iter().map(|entry| Arc::clone(&entry.0.hop)).collect::<Vec<_>>())
            .collect()
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().len()).sum()
    }

    fn release_reply(&self, entry: &CachedDecision) {
        self.packed_reply_bytes.fetch_sub(entry.reply_size(), Ordering::Relaxed);
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

    fn entry(hop: &str, asked: i64) -> CachedDecision {
        CachedDecision {
            hop: hop.into(),
            last_asked: SharedCompactTime::from_seconds(asked),
            ..CachedDecision::no_policy()
        }
    }

    #[test]
    fn a_decision_of_a_clock_that_was_ahead_does_not_stand() {
        const NOW: i64 = 1_700_000_000;
        let until = |asked: i64, expires: i64| CachedDecision {
            expires: CompactTime::from_seconds(NOW + expires),
            ..entry("a.example", NOW + asked)
        };
        for (asked, expires, want) in [
            (0, 60, true),
            (-100, MAX_DECISION_TTL, true),
            (0, 0, false),
            // Asked about by the clock that was ahead, and made by it.
            (3600, 3660, false),
            (3600, 60, false),
            (0, MAX_DECISION_TTL + 1, false),
            (0, 400 * 86_400, false),
        ] {
            assert_eq!(until(asked, expires).holds(NOW), want, "asked {asked} s, expires {expires} s from now");
        }
        assert!(CachedDecision::no_policy().holds(NOW) && CachedDecision::no_policy().holds(0));
        let future = until(3600, 60);
        future.settle(NOW);
        assert_eq!(future.last_asked.seconds(), NOW);
    }

    #[test]
    fn the_least_recently_asked_go_first() {
        let entries = DecisionCache::new(1);
        let mut evicted = Vec::new();
        for n in 0..5000 {
            evicted.extend(entries.insert(entry(&format!("{n}.example"), n)));
        }
        assert!((SHARDS * 14..=SHARDS * 16).contains(&entries.len()), "{}", entries.len());
        assert_eq!(evicted.len() + entries.len(), 5000);
        assert!(entries.get("4999.example").is_some() && entries.get("0.example").is_none());
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
            let entries = DecisionCache::new(1);
            entries.insert(CachedDecision {
                domain: Arc::new(DomainState::new("a.example".into(), 0)),
                ..entry("a.example", 0)
            });
            let found = entries.get("a.example").unwrap();
            let mut out = b"before".to_vec();
            entries.write_reply(&found, wording, |_| frame.into(), &mut out);
            entries.write_reply(&found, wording, |_| unreachable!("it is kept"), &mut out);
            assert_eq!(out, [b"before", frame, frame].concat());
            assert!(found.reply_size() <= most, "{}", found.reply_size());
            entries.write_reply(&found, wording + 1, |_| (*b"other").into(), &mut out);
            assert!(out.ends_with(b"other"));
        }
    }

    #[test]
    fn words_are_kept_within_their_limit() {
        let entries = DecisionCache::new(100);
        let long = || vec![b'x'; MAX_REPLY_BYTES / 2 - 1].into_boxed_slice();
        let said = |hop: &str| {
            let mut out = Vec::new();
            let found = entries.get(hop).unwrap();
            entries.write_reply(&found, 0, |_| long(), &mut out);
            assert_eq!(out.len(), MAX_REPLY_BYTES / 2 - 1);
            found.packed_reply.get().is_some()
        };
        for hop in ["a", "b", "c"] {
            entries.insert(entry(hop, 0));
        }
        assert_eq!(["a", "b", "c"].map(said), [true, true, false]);
        entries.insert(entry("a", 1));
        assert!(said("c") && !said("a"));
        entries.retain(|_| false);
        assert_eq!((entries.packed_reply_bytes.load(Ordering::Relaxed), entries.len()), (0, 0));
    }
}
