//! The MX hosts of the next hops that were looked up: whether a session was with a host of its recipient domain.
//!
//! Takes: the hosts of each look-up. Gives: whether a host is one of them, and which next hops have it.
//! A host counts for [`HOST_LIFETIME`] after it was last seen: the MTA may have looked the domain up earlier than we did.
//! Limits: [`MAX_DOMAINS`]; beyond, all are forgotten, and known again with the next look-up. [`MAX_HOSTS_OF_DOMAIN`]: the
//! ones seen last; a host that is not among so many may still be the domain's. [`MAX_NEXT_HOPS`] of a host.
//! Not stored: after a restart nothing is known before a domain is looked up again.
//! Not here: what follows for a session (`counting::attribution`).

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use smallvec::SmallVec;

use crate::base::clock::CompactTime;

/// How long a host that a look-up has shown counts as one of the domain's, in seconds.
const HOST_LIFETIME: i64 = 2 * 86_400;

/// Domains whose hosts are known: about 200 bytes each.
const MAX_DOMAINS: usize = 100_000;

/// How many hosts of a domain are known: a domain may name new ones in every look-up.
const MAX_HOSTS_OF_DOMAIN: usize = 64;

/// How many next hops are known by name of one host: it matters only whether it is one.
const MAX_NEXT_HOPS: usize = 8;

/// The MX hosts of domains.
#[derive(Debug, Default)]
pub(super) struct KnownMxHosts(Mutex<HostTables>);

#[derive(Debug, Default)]
struct HostTables {
    by_domain: HashMap<Arc<str>, DomainHosts>,
    by_host: HashMap<Arc<str>, NextHopsOfHost>,
}

/// The next hops that have a host.
#[derive(Clone, Debug, Default)]
pub(super) struct NextHopsOfHost {
    /// The first [`MAX_NEXT_HOPS`].
    pub(super) known: SmallVec<[Arc<str>; 1]>,
    /// How many others there are.
    pub(super) more: usize,
}

#[derive(Debug)]
struct DomainHosts {
    /// Since when all of them are known.
    since: CompactTime,
    /// In lower case, and when each was last seen.
    hosts: SmallVec<[(Arc<str>, CompactTime); 2]>,
}

impl KnownMxHosts {
    /// Notes the hosts that a look-up at `now` has found.
    pub(super) fn note<'a>(&self, domain: &Arc<str>, hosts: impl Iterator<Item = &'a str>, now: i64) {
        let HostTables { by_domain, by_host } = &mut *self.0.lock();
        if by_domain.len() >= MAX_DOMAINS && !by_domain.contains_key(domain) {
            by_domain.clear();
            by_host.clear();
        }
        let seen = CompactTime::from_seconds(now);
        let known =
            by_domain.entry(Arc::clone(domain)).or_insert_with(|| DomainHosts { since: seen, hosts: SmallVec::new() });
        for host in hosts {
            let host = host.to_ascii_lowercase();
            if let Some((_, last)) = known.hosts.iter_mut().find(|(name, _)| **name == *host) {
                *last = seen;
                continue;
            }
            let name = by_host.get_key_value(&*host).map_or_else(|| host.into(), |(name, _)| Arc::clone(name));
            let next_hops = by_host.entry(Arc::clone(&name)).or_default();
            if next_hops.known.len() < MAX_NEXT_HOPS {
                next_hops.known.push(Arc::clone(domain));
            } else {
                next_hops.more += 1;
            }
            known.hosts.push((name, seen));
        }
        if known.hosts.len() > MAX_HOSTS_OF_DOMAIN {
            known.hosts.sort_by_key(|(_, last)| Reverse(last.seconds()));
        }
        let mut room = MAX_HOSTS_OF_DOMAIN;
        known.hosts.retain(|(name, last)| {
            let stays = room > 0 && now - last.seconds() < HOST_LIFETIME;
            room -= usize::from(stays);
            if !stays && let Some(next_hops) = by_host.get_mut(name) {
                match next_hops.known.iter().position(|next_hop| next_hop == domain) {
                    Some(place) => drop(next_hops.known.remove(place)),
                    None => next_hops.more = next_hops.more.saturating_sub(1),
                }
                if next_hops.known.is_empty() && next_hops.more == 0 {
                    by_host.remove(name);
                }
            }
            stays
        });
    }

    /// Whether a host was one of a domain's at `seconds`; `None` where that is not known.
    pub(super) fn contains(&self, domain: &str, host: &str, seconds: i64) -> Option<bool> {
        let tables = self.0.lock();
        let known = tables.by_domain.get(domain)?;
        match known.hosts.iter().any(|(name, _)| name.eq_ignore_ascii_case(host)) {
            true => Some(true),
            // Of a time before the first look-up nothing is known, nor of the hosts beyond the limit.
            false => (known.hosts.len() < MAX_HOSTS_OF_DOMAIN && seconds >= known.since.seconds()).then_some(false),
        }
    }

    /// The next hops that have a host.
    pub(super) fn next_hops(&self, host: &str) -> NextHopsOfHost {
        self.0.lock().by_host.get(&*host.to_ascii_lowercase()).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_known_since_the_first_look_up_and_a_while_after_the_last() {
        let known = KnownMxHosts::default();
        let (domain, other): (Arc<str>, Arc<str>) = ("a.example".into(), "b.example".into());
        assert_eq!(known.contains("a.example", "mx.a.example", 1000), None);
        known.note(&domain, ["MX.a.example", "mx.provider.example"].into_iter(), 1000);
        known.note(&other, ["mx.provider.example"].into_iter(), 1000);
        let at = |host: &str, seconds| known.contains("a.example", host, seconds);
        assert_eq!(
            [at("mx.a.example", 1000), at("mx.A.example", 10), at("x.example", 1000)],
            [Some(true), Some(true), Some(false)]
        );
        assert_eq!(at("x.example", 999), None);
        assert_eq!(known.next_hops("mx.provider.example").known.len(), 2);
        // The MX records change: the host before counts on for a while.
        known.note(&domain, ["new.a.example"].into_iter(), 2000);
        assert_eq!([at("mx.a.example", 2000), at("new.a.example", 2000)], [Some(true), Some(true)]);
        known.note(&domain, ["new.a.example"].into_iter(), 1000 + HOST_LIFETIME);
        assert_eq!([at("mx.a.example", 3000), at("new.a.example", 3000)], [Some(false), Some(true)]);
        assert_eq!(*known.next_hops("mx.provider.example").known, [other]);
        assert!(known.next_hops("mx.a.example").known.is_empty());
    }

    #[test]
    fn of_a_domain_with_ever_new_hosts_the_newest_are_known() {
        let known = KnownMxHosts::default();
        let domain: Arc<str> = "a.example".into();
        let name = |round: i64, n: usize| format!("mx{n}.at{round}.example");
        for round in 0..50 {
            let hosts: Vec<String> = (0..40).map(|n| name(round, n)).collect();
            known.note(&domain, hosts.iter().map(String::as_str), 1000 + round);
        }
        let HostTables { by_domain, by_host } = &*known.0.lock();
        assert_eq!((by_domain[&domain].hosts.len(), by_host.len()), (MAX_HOSTS_OF_DOMAIN, MAX_HOSTS_OF_DOMAIN));
        assert!((0..40).all(|n| by_host.contains_key(&*name(49, n))));
    }

    #[test]
    fn a_host_beyond_the_limit_is_not_known_to_be_another_domains() {
        let known = KnownMxHosts::default();
        let hosts: Vec<String> = (0..=MAX_HOSTS_OF_DOMAIN).map(|n| format!("mx{n}.example")).collect();
        known.note(&"a.example".into(), hosts.iter().map(String::as_str), 1000);
        assert_eq!(known.contains("a.example", "mx0.example", 1000), Some(true));
        assert_eq!(known.contains("a.example", &hosts[MAX_HOSTS_OF_DOMAIN], 1000), None);
    }

    #[test]
    fn next_hops_beyond_the_limit_are_counted_until_they_are_gone() {
        let known = KnownMxHosts::default();
        let domains: Vec<Arc<str>> = (0..MAX_NEXT_HOPS + 2).map(|n| format!("d{n}.example").into()).collect();
        domains.iter().for_each(|domain| known.note(domain, ["mx.example"].into_iter(), 1000));
        let numbers = || {
            let next_hops = known.next_hops("mx.example");
            (next_hops.known.len(), next_hops.more)
        };
        assert_eq!(numbers(), (MAX_NEXT_HOPS, 2));
        known.note(&domains[0], ["other.example"].into_iter(), 1000 + HOST_LIFETIME);
        assert_eq!(numbers(), (MAX_NEXT_HOPS - 1, 2));
        domains[1..].iter().for_each(|domain| known.note(domain, ["other.example"].into_iter(), 1000 + HOST_LIFETIME));
        assert_eq!(numbers(), (0, 0));
        assert!(!known.0.lock().by_host.contains_key("mx.example"));
    }
}
