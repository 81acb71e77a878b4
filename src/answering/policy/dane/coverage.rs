//! What the MX hosts of a next hop have, in one word: the rows of the table of decisions (`decision`).
//!
//! Takes: whether the MX records are signed; the preference and the class of each MX host. Gives: a [`Coverage`]. Pure.
//! A host without an address, and one whose address look-up failed, is not among the hosts: delivery may proceed by the
//! others (RFC 7672 §2.1.2). A failed TLSA look-up is a class of its own.
//! When it fails: a failure at one host makes the row of that host's class, never that of a host that is known.
//! Not here: looking anything up (`lookup`), which answer follows (`decision`).

use serde::{Deserialize, Serialize};

/// What the TLSA look-up for one MX host found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostClass {
    /// Signed TLSA records, at least one of them usable: U of the table.
    Usable,
    /// Signed TLSA records, none of them usable: N of the table.
    Unusable,
    /// No TLSA records, or none that is signed: N of the table.
    NoTlsa,
    /// The look-up failed: X of the table.
    Failed,
}

/// The rows of the table of decisions. Stored by the position of the variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Coverage {
    /// Row 1: signed MX records, usable TLSA records at every host.
    AllHosts,
    /// Row 2: signed MX records, usable TLSA records at one of the most preferred hosts or more, not at every host.
    BestHosts,
    /// Row 3: signed MX records, usable TLSA records at less preferred hosts only.
    WorseHosts,
    /// Row 4: signed MX records, TLSA records, none of them usable.
    Unusable {
        /// Whether every host has such records.
        every_host: bool,
    },
    /// Row 5: signed MX records, no usable TLSA records, and the look-up for one host or more failed.
    SomeFailed,
    /// Row 6: signed MX records, and the look-up for every host failed.
    AllFailed,
    /// Row 7: no TLSA records that count, and nothing failed.
    NoTlsa,
    /// Row 8: unsigned MX records, usable TLSA records at one host or more, and nothing failed.
    UnsignedMx,
    /// Row 9: unsigned MX records, and the look-up for one host or more failed.
    UnsignedFailed,
    /// Row 10: the MX look-up failed.
    MxFailed,
    /// There are MX hosts, and none of them has an address that is known.
    NoAddress,
}

impl Coverage {
    /// The row of these hosts, each with its preference; the lowest preference number is the most preferred.
    pub fn of(signed: bool, hosts: &[(u16, HostClass)]) -> Coverage {
        let has = |class| hosts.iter().any(|(_, found)| *found == class);
        let all = |class| hosts.iter().all(|(_, found)| *found == class);
        let best = hosts.iter().map(|(preference, _)| *preference).min();
        let usable_at_best = hosts.iter().any(|host| Some(host.0) == best && host.1 == HostClass::Usable);
        match signed {
            _ if hosts.is_empty() => Coverage::NoAddress,
            true if all(HostClass::Usable) => Coverage::AllHosts,
            true if usable_at_best => Coverage::BestHosts,
            true if has(HostClass::Usable) => Coverage::WorseHosts,
            true if all(HostClass::Failed) => Coverage::AllFailed,
            true if has(HostClass::Failed) => Coverage::SomeFailed,
            true if has(HostClass::Unusable) => Coverage::Unusable { every_host: all(HostClass::Unusable) },
            false if has(HostClass::Failed) => Coverage::UnsignedFailed,
            false if has(HostClass::Usable) => Coverage::UnsignedMx,
            _ => Coverage::NoTlsa,
        }
    }

    /// Whether this row is that of the `known` hosts whatever the hosts have that are not known yet, of which the
    /// preferences are given. Rows 2 and 9 alone can be: in every other, one more host may change the row, or the hosts
    /// that an answer is narrowed to.
    pub fn is_settled(signed: bool, known: &[(u16, HostClass)], unknown: &[u16]) -> bool {
        let preferred_to_unknown = |at: u16| unknown.iter().all(|other| at <= *other);
        let best = known.iter().map(|(preference, _)| *preference).min();
        match Coverage::of(signed, known) {
            Coverage::UnsignedFailed => true,
            Coverage::BestHosts => best.is_some_and(preferred_to_unknown),
            _ => false,
        }
    }

    /// Whether too little is known for an answer of its own: an earlier verdict serves in its place.
    pub fn is_failure(self) -> bool {
        matches!(self, Coverage::SomeFailed | Coverage::AllFailed | Coverage::MxFailed | Coverage::NoAddress)
    }

    /// Whether it is not even known which hosts there are.
    pub fn is_host_unknown(self) -> bool {
        matches!(self, Coverage::MxFailed | Coverage::NoAddress)
    }

    /// Whether this, known before, protects better than `now`, in which something failed and which has the same kind of
    /// MX records.
    pub fn outranks(self, now: Coverage) -> bool {
        self.rank() < now.rank()
    }

    /// Better protection first.
    fn rank(self) -> u8 {
        match self {
            Coverage::AllHosts => 0,
            Coverage::BestHosts => 1,
            Coverage::WorseHosts => 2,
            Coverage::Unusable { .. } => 3,
            Coverage::UnsignedMx => 4,
            Coverage::NoTlsa => 5,
            Coverage::UnsignedFailed => 6,
            Coverage::SomeFailed | Coverage::AllFailed | Coverage::MxFailed | Coverage::NoAddress => 7,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `u`: usable, `b`: TLSA records of which none is usable, `n`: none, `x`: failed. A `|` separates preferences.
    fn row(signed: bool, hosts: &str) -> Coverage {
        let mut found = Vec::new();
        for (preference, group) in (0..).zip(hosts.split('|')) {
            found.extend(group.chars().map(|host| {
                let class = match host {
                    'u' => HostClass::Usable,
                    'b' => HostClass::Unusable,
                    'n' => HostClass::NoTlsa,
                    _ => HostClass::Failed,
                };
                (preference * 10, class)
            }));
        }
        // The order in which the hosts were found says nothing.
        found.reverse();
        Coverage::of(signed, &found)
    }

    #[test]
    fn the_row_of_each_set_of_hosts() {
        use Coverage::*;
        for (signed, hosts, want) in [
            (true, "u", AllHosts),
            (true, "u|u", AllHosts),
            (true, "u|n", BestHosts),
            (true, "u|x", BestHosts),
            (true, "u|b", BestHosts),
            (true, "un", BestHosts),
            (true, "ux", BestHosts),
            (true, "nu|x", BestHosts),
            (true, "n|u", WorseHosts),
            (true, "x|u", WorseHosts),
            (true, "b|u", WorseHosts),
            (true, "xn|u|n", WorseHosts),
            (true, "b", Unusable { every_host: true }),
            (true, "b|b", Unusable { every_host: true }),
            (true, "b|n", Unusable { every_host: false }),
            (true, "n|x", SomeFailed),
            (true, "x|n", SomeFailed),
            (true, "b|x", SomeFailed),
            (true, "x", AllFailed),
            (true, "x|x", AllFailed),
            (true, "n", NoTlsa),
            (true, "n|n", NoTlsa),
            (false, "n", NoTlsa),
            (false, "b", NoTlsa),
            (false, "u", UnsignedMx),
            (false, "n|u", UnsignedMx),
            (false, "u|b", UnsignedMx),
            (false, "x", UnsignedFailed),
            (false, "u|x", UnsignedFailed),
            (false, "n|x", UnsignedFailed),
            (true, "", NoAddress),
            (false, "", NoAddress),
        ] {
            assert_eq!(row(signed, hosts), want, "signed: {signed}, hosts: {hosts}");
        }
    }

    #[test]
    fn the_row_is_settled_when_no_host_can_change_it() {
        let classes = [HostClass::Usable, HostClass::Unusable, HostClass::NoTlsa, HostClass::Failed];
        let mut settled = 0;
        // Two known hosts and one that is not, each at one of three preferences.
        for (signed, at) in [true, false].into_iter().flat_map(|signed| (0..27).map(move |n| (signed, n))) {
            let at = [at % 3, at / 3 % 3, at / 9];
            for (first, second) in classes.into_iter().flat_map(|a| classes.map(|b| (a, b))) {
                let known = [(at[0], first), (at[1], second)];
                if !Coverage::is_settled(signed, &known, &[at[2]]) {
                    continue;
                }
                settled += 1;
                let row = Coverage::of(signed, &known);
                for last in classes {
                    let all = [known[0], known[1], (at[2], last)];
                    assert_eq!(Coverage::of(signed, &all), row, "{signed} {all:?}");
                }
            }
        }
        assert!(settled > 100, "{settled}");
        let known = [(10, HostClass::Usable), (20, HostClass::NoTlsa)];
        assert!(Coverage::is_settled(true, &known, &[10, 30]) && !Coverage::is_settled(true, &known, &[5]));
        assert!(Coverage::is_settled(false, &[(20, HostClass::Failed)], &[10]));
        assert!(!Coverage::is_settled(true, &[(10, HostClass::Usable)], &[20]));
    }

    #[test]
    fn what_protects_better_stays() {
        use Coverage::*;
        let order =
            [AllHosts, BestHosts, WorseHosts, Unusable { every_host: true }, UnsignedMx, NoTlsa, UnsignedFailed];
        for (n, better) in order.iter().enumerate() {
            for (m, worse) in order.iter().enumerate() {
                assert_eq!(better.outranks(*worse), n < m, "{better:?} {worse:?}");
            }
            for failure in [SomeFailed, AllFailed, MxFailed, NoAddress] {
                assert!(failure.is_failure() && better.outranks(failure) && !failure.outranks(*better));
            }
        }
    }
}
