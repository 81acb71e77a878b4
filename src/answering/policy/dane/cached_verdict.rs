//! A cached DANE verdict: the row of the table of decisions, for how long, and the hosts that have TLSA records.
//!
//! Takes: a [`DaneVerdict`] and when it was found. Gives: [`CachedVerdict`], in memory and in the store.
//! When it fails: a verdict that was known is not replaced by a poorer one because of a failure
//! ([`CachedVerdict::outranks`]).
//! Not here: finding it (`lookup`), writing it (`store`), how long it serves past its end (`policies`).

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::answering::policy::dane::coverage::Coverage;
use crate::answering::policy::dane::lookup::{DaneVerdict, MxStatus};
use crate::answering::policy::decision::DatalessTlsa;
use crate::answering::policy::history::compact::{DestinationFault, TlsaHosts};
use crate::base::clock::{CompactTime, holds, is_future};

/// How long a DANE verdict serves past its TTL while the resolver fails, in seconds.
pub const MAX_STALE: i64 = 86_400;

/// How much of a cause is kept, in characters.
const MAX_CAUSE_CHARS: usize = 200;

/// A verdict and how long it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CachedVerdict {
    found: CompactTime,
    expires: CompactTime,
    /// The row of the table of decisions.
    pub coverage: Coverage,
    /// Whether there are TLSA records without data.
    pub dataless: DatalessTlsa,
    /// Whether there are MX records that are not signed.
    pub unsigned: bool,
    details: Option<Box<VerdictDetails>>,
}

/// What most verdicts have none of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct VerdictDetails {
    cause: String,
    tlsa_hosts: TlsaHosts,
    /// The hosts without usable TLSA records, where others have some or could not be asked.
    without_tlsa: Vec<Box<str>>,
    /// What is broken at the destination itself. Not stored: after a restart it is looked up anew.
    #[serde(skip)]
    fault: Option<Arc<DestinationFault>>,
}

impl CachedVerdict {
    /// A verdict that was found at a moment (seconds since 1970-01-01T00:00:00Z) and holds for its TTL.
    pub fn new(verdict: &DaneVerdict, found: i64) -> CachedVerdict {
        let ttl = i64::try_from(verdict.ttl.as_secs()).unwrap_or(i64::from(u32::MAX));
        let coverage = verdict.coverage();
        let cause: String = verdict.first_failure().unwrap_or_default().chars().take(MAX_CAUSE_CHARS).collect();
        let tlsa_hosts = verdict.tlsa_hosts();
        let without_tlsa = match coverage {
            Coverage::WorseHosts | Coverage::SomeFailed => verdict.hosts_without_tlsa().map(Box::from).collect(),
            _ => Vec::new(),
        };
        let fault = verdict.destination_fault().map(Arc::new);
        let some = !tlsa_hosts.is_empty() || !cause.is_empty() || !without_tlsa.is_empty();
        CachedVerdict {
            found: CompactTime::from_seconds(found),
            expires: CompactTime::from_seconds(found + ttl),
            coverage,
            dataless: verdict.dataless(),
            unsigned: verdict.mx == MxStatus::Unsigned,
            details: some.then(|| Box::new(VerdictDetails { cause, tlsa_hosts, without_tlsa, fault })),
        }
    }

    /// Until when it holds, in seconds since 1970-01-01T00:00:00Z.
    pub fn expires(&self) -> i64 {
        self.expires.seconds()
    }

    /// When it is to be asked again, likewise: after four fifths of its TTL.
    pub fn refresh_at(&self) -> i64 {
        let (found, expires) = (self.found.seconds(), self.expires.seconds());
        found + (expires - found) * 4 / 5
    }

    /// Whether it is to be used at `now` without asking again.
    pub fn holds(&self, now: i64) -> bool {
        holds(self.found.seconds(), self.expires.seconds(), now)
    }

    /// As the last known one at `now`, while the look-up fails: one from the future has ended now, for its age is not
    /// known.
    pub fn into_last_known(mut self, now: i64) -> CachedVerdict {
        if is_future(self.found.seconds(), now) {
            (self.found, self.expires) = (CompactTime::from_seconds(now), CompactTime::from_seconds(now));
        }
        self
    }

    /// The first cause of what is not known; empty where nothing failed.
    pub fn cause(&self) -> &str {
        self.details.as_ref().map_or("", |details| &details.cause)
    }

    /// What is broken at the destination itself, should the mail have to wait.
    pub fn destination_fault(&self) -> Option<Arc<DestinationFault>> {
        self.details.as_ref()?.fault.clone()
    }

    /// The hosts with TLSA records, if there are any.
    pub fn tlsa_hosts(&self) -> Option<TlsaHosts> {
        let hosts = self.details.as_ref().map(|details| TlsaHosts::clone(&details.tlsa_hosts));
        hosts.filter(|hosts: &TlsaHosts| !hosts.is_empty())
    }

    /// The hosts without usable TLSA records, in the rows where an answer may be narrowed to them.
    pub fn without_tlsa(&self) -> impl Iterator<Item = &str> {
        self.details.iter().flat_map(|details| details.without_tlsa.iter().map(|host| &**host))
    }

    /// Whether this, known before, serves in place of a newer verdict in which something failed: where that knows too
    /// little for an answer, or protects less. Whether MX records are signed is no failure.
    pub fn outranks(&self, newer: &CachedVerdict) -> bool {
        let failed = !newer.cause().is_empty();
        let comparable = newer.coverage.is_failure() || self.unsigned == newer.unsigned;
        failed && comparable && self.coverage.outranks(newer.coverage)
    }

    /// What serves at `now` (seconds) after a look-up found `newer` where `known` was known before. Where a failure left
    /// nothing to answer from, nothing does.
    pub fn choose<'a>(
        known: Option<&'a CachedVerdict>,
        newer: &'a CachedVerdict,
        now: i64,
    ) -> Option<&'a CachedVerdict> {
        match known {
            Some(known) if known.outranks(newer) && now < known.expires() + MAX_STALE => Some(known),
            _ if newer.coverage.is_failure() && newer.coverage != Coverage::SomeFailed => None,
            _ => Some(newer),
        }
    }

    /// As it is stored.
    pub fn encode(&self) -> Vec<u8> {
        // Invariant: postcard writes numbers, texts, lists and variants into a vector without fail.
        postcard::to_stdvec(self).expect("a verdict has a stored form")
    }

    /// Reads it back; nothing where it is not in that form.
    pub fn decode(bytes: &[u8]) -> Option<CachedVerdict> {
        postcard::from_bytes(bytes).ok()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::answering::policy::dane::lookup::{HostTlsa, MxHost};
    use crate::base::tlsrpt::{Policy, PolicyType};

    fn usable() -> HostTlsa {
        let records = Arc::new(Policy {
            policy_type: PolicyType::Tlsa,
            policy_string: vec!["3 1 1 ab".into()],
            policy_domain: "base.example".into(),
            mx_host: Vec::new(),
        });
        HostTlsa::Records { base: "base.example".into(), records, usable: true, dataless: false }
    }

    fn verdict(mx: MxStatus, hosts: Vec<HostTlsa>) -> DaneVerdict {
        let host = |(n, tlsa)| MxHost { name: format!("mx{n}.example"), preference: n, tlsa };
        let hosts = (0..).zip(hosts).map(host).collect();
        DaneVerdict { mx, hosts, unreachable: Vec::new(), dnssec_fault: None, ttl: Duration::ZERO }
    }

    fn none() -> HostTlsa {
        HostTlsa::None { reason: "".into() }
    }

    fn failed() -> HostTlsa {
        HostTlsa::Failed { cause: "SERVFAIL".into() }
    }

    #[test]
    fn the_stored_form_reads_back() {
        for (mx, hosts, without) in [
            (MxStatus::Unsigned, vec![usable(), failed()], vec![]),
            (MxStatus::Signed, vec![none(), usable()], vec!["mx0.example"]),
            (MxStatus::Signed, vec![none(), failed()], vec!["mx0.example"]),
            (MxStatus::NoHost, vec![], vec![]),
        ] {
            let cached = CachedVerdict::new(&verdict(mx, hosts), 1_700_000_000);
            assert_eq!(cached.without_tlsa().collect::<Vec<_>>(), without);
            assert_eq!(CachedVerdict::decode(&cached.encode()), Some(cached));
        }
        assert_eq!(CachedVerdict::decode(b""), None);
    }

    #[test]
    fn a_verdict_from_the_future_is_due_and_serves_as_the_last_known_one_for_a_day() {
        const DAY: i64 = 86_400;
        let found = DaneVerdict { ttl: Duration::from_secs(100), ..verdict(MxStatus::Signed, vec![usable()]) };
        let now = 1_700_000_000;
        let cached = CachedVerdict::new(&found, now);
        assert_eq!((cached.refresh_at(), cached.expires()), (now + 80, now + 100));
        assert!(cached.holds(now) && cached.holds(now + 99) && !cached.holds(now + 100));
        assert_eq!(cached.clone().into_last_known(now + 200).expires(), now + 100);
        for ahead in [60, 3600, DAY, 400 * DAY] {
            assert!(!cached.holds(now - ahead), "{ahead} s ahead");
            let last = cached.clone().into_last_known(now - ahead);
            assert_eq!((last.expires(), last.coverage), (now - ahead, cached.coverage), "{ahead} s ahead");
        }
    }

    #[test]
    fn a_known_verdict_outranks_a_poorer_one_with_a_failure() {
        let cached = |mx, hosts| CachedVerdict::new(&verdict(mx, hosts), 0);
        let all = cached(MxStatus::Signed, vec![usable(), usable()]);
        let none_there = cached(MxStatus::Signed, vec![none(), none()]);
        // Rows 5, 6 and 10: whatever was known serves.
        for newer in [
            cached(MxStatus::Signed, vec![none(), failed()]),
            cached(MxStatus::Signed, vec![failed()]),
            cached(MxStatus::Failed("SERVFAIL".into()), vec![]),
        ] {
            assert!(all.outranks(&newer) && none_there.outranks(&newer), "{newer:?}");
            assert!(!newer.outranks(&all) && !newer.outranks(&newer));
        }
        // A host that failed does not lower what was known of the others.
        let one_failed = cached(MxStatus::Signed, vec![usable(), failed()]);
        assert!(all.outranks(&one_failed) && !none_there.outranks(&one_failed));
        // What did not fail is what is published now.
        assert!(!all.outranks(&none_there) && !all.outranks(&cached(MxStatus::Signed, vec![usable(), none()])));
        assert!(!all.outranks(&cached(MxStatus::Unsigned, vec![usable(), failed()])));
        // A dead backup host takes nothing from the others.
        let dead_backup = DaneVerdict {
            unreachable: vec![("mx9.example".into(), "REFUSED".into())],
            ..verdict(MxStatus::Signed, vec![none()])
        };
        let dead_backup = CachedVerdict::new(&dead_backup, 0);
        assert_eq!(dead_backup.coverage, Coverage::NoTlsa);
        assert!(all.outranks(&dead_backup) && !none_there.outranks(&dead_backup));
    }
}
