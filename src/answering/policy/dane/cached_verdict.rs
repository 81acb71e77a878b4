//! A DANE verdict as it is kept: what it comes to, for how long, and the rows of the hosts that have TLSA records.
//!
//! Takes: a [`Verdict`] and when it was found. Gives: [`Held`], in memory and in the store.
//! Not here: finding it (`dane`), writing it (`shelf`), how long it serves past its end (`policy`).

use serde::{Deserialize, Serialize};

use crate::answering::policy::dane::lookup::{Coverage, Mx, Verdict};
use crate::answering::policy::history::compact::TlsaHosts;
use crate::base::clock::CompactTime;

/// How long a DANE verdict serves past its TTL while the resolver fails, in seconds.
pub const STALE: i64 = 86_400;

/// How much of a cause is kept, in characters.
const CAUSE: usize = 200;

/// The last verdict that was no failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    until: CompactTime,
    refresh: CompactTime,
    /// What it comes to.
    pub coverage: Coverage,
    /// Whether there are MX records that are not signed.
    pub unsigned: bool,
    more: Option<Box<More>>,
}

/// What most verdicts have none of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct More {
    cause: String,
    rows: TlsaHosts,
}

impl Held {
    /// A verdict that holds until a moment, and is to be asked again at another (seconds).
    pub fn of(verdict: &Verdict, until: i64, refresh: i64) -> Held {
        let cause: String = verdict.failure().unwrap_or_default().chars().take(CAUSE).collect();
        let rows = verdict.rows();
        let more = (!rows.is_empty() || !cause.is_empty()).then(|| Box::new(More { cause, rows }));
        let (until, refresh) = (CompactTime::from_seconds(until), CompactTime::from_seconds(refresh));
        Held { until, refresh, coverage: verdict.coverage(), unsigned: verdict.mx == Mx::Unsigned, more }
    }

    /// Until when it holds, in seconds since 1970-01-01T00:00:00Z.
    pub fn until(&self) -> i64 {
        self.until.seconds()
    }

    /// When it is to be asked again, likewise.
    pub fn refresh(&self) -> i64 {
        self.refresh.seconds()
    }

    /// The first cause of what is not known.
    pub fn cause(&self) -> &str {
        self.more.as_ref().map_or("", |more| &more.cause)
    }

    /// The hosts with TLSA records, if there are any.
    pub fn rows(&self) -> Option<TlsaHosts> {
        self.more.as_ref().map(|more| TlsaHosts::clone(&more.rows)).filter(|rows: &TlsaHosts| !rows.is_empty())
    }

    /// As it is stored.
    pub fn encode(&self) -> Vec<u8> {
        // Invariant: postcard writes numbers, texts, lists and variants into a vector without fail.
        postcard::to_stdvec(self).expect("a verdict has a stored form")
    }

    /// Reads it back; nothing where it is not in that form.
    pub fn decode(octets: &[u8]) -> Option<Held> {
        postcard::from_bytes(octets).ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::answering::policy::dane::lookup::{Host, HostTlsa};
    use crate::base::tlsrpt::{Policy, PolicyType};

    #[test]
    fn the_stored_form_reads_back() {
        let records = Arc::new(Policy {
            policy_type: PolicyType::Tlsa,
            policy_string: vec!["3 1 1 ab".into()],
            policy_domain: "base.example".into(),
            mx_host: Vec::new(),
        });
        let host = |name: &str, tlsa| Host { name: name.into(), tlsa };
        let hosts = vec![
            host("a.example", HostTlsa::Records { base: "base.example".into(), records, usable: true }),
            host("b.example", HostTlsa::Failed { cause: "SERVFAIL".into() }),
        ];
        for (mx, hosts) in [(Mx::Unsigned, hosts), (Mx::Nowhere, Vec::new())] {
            let verdict = Verdict { mx, hosts, ttl: Duration::ZERO };
            let held = Held::of(&verdict, 1_700_000_000, 1_600_000_000);
            assert_eq!(Held::decode(&held.encode()), Some(held));
        }
        assert_eq!(Held::decode(b""), None);
    }
}
