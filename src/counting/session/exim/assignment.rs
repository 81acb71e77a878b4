//! Which recipient domain each of the failed hosts of a delivery attempt was tried for.
//!
//! Takes: failures without a domain, and the batches of the delivery attempt. Gives: the domains.
//! What speaks for a domain is [`Closeness`]. A process has one session at a host: where a domain has had as many as it had
//! processes, another domain comes first. Of equals, the one whose recipients follow first is taken.
//! Limits: only recipients whose lines follow are considered, because a process writes about its hosts before its
//! parent writes about its recipients.
//! When it fails: the domain stays unknown where no recipient follows.
//! Not here: failures that a recipient's line settles (`message`).

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use super::batch::DeliveryBatch;
use super::host_failure::HostFailure;

/// What speaks for a domain; the greater, the more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Closeness {
    /// Nothing.
    #[default]
    None,
    /// Its mail went to a host beside this one: `mx1.provider.example` and `mx2.provider.example`.
    SameProvider,
    /// Its mail went to another address of the host.
    SameHost,
    /// The name of the host is made from the domain.
    NamedAfter,
    /// Its recipients' lines name exactly this host and address, and do not tell how the session ended.
    Exact,
}

/// A domain that a failure can belong to.
#[derive(Clone, Copy, Debug, Default)]
struct Candidate {
    closeness: Closeness,
    /// The first line of the first batch that follows the failure as a whole.
    follows_at: Option<u32>,
    /// Some line of its follows the failure.
    follows: bool,
}

/// Gives each failure its domain, the surest first.
pub(super) fn assign_domains(failures: &mut [HostFailure], batches: &[DeliveryBatch]) {
    let mut processes: HashMap<(&str, &str, Option<IpAddr>), usize> = HashMap::new();
    for batch in batches.iter().filter(|batch| batch.connected()) {
        *processes.entry((batch.domain(), batch.host(), batch.ip())).or_default() += 1;
    }
    let mut process_count: HashMap<&str, usize> = HashMap::new();
    for ((domain, ..), count) in processes {
        let most = process_count.entry(domain).or_default();
        *most = count.max(*most);
    }
    let mut sessions: HashMap<(String, Option<IpAddr>, String), usize> = HashMap::new();
    for batch in batches.iter().filter(|batch| batch.had_session()) {
        *sessions.entry((batch.host().to_owned(), batch.ip(), batch.domain().to_owned())).or_default() += 1;
    }
    for failure in failures.iter() {
        if let Some(domain) = &failure.domain {
            *sessions.entry((failure.host.clone(), failure.ip, domain.clone())).or_default() += 1;
        }
    }
    let mut open: Vec<(usize, BTreeMap<&str, Candidate>)> = (failures.iter().enumerate())
        .filter(|(_, failure)| failure.domain.is_none())
        .map(|(at, failure)| (at, candidates(failure, batches)))
        .collect();
    open.sort_by_key(|(_, candidates)| Reverse(candidates.values().map(|c| c.closeness).max()));
    for (at, candidates) in open {
        if failures[at].domain.is_some() {
            continue;
        }
        let at_host = |domain: &str| (failures[at].host.clone(), failures[at].ip, domain.to_owned());
        let best = candidates.iter().max_by_key(|(domain, candidate)| {
            let had = sessions.get(&at_host(domain)).copied().unwrap_or(0);
            let is_free = had < process_count.get(*domain).copied().unwrap_or(1);
            let Candidate { closeness, follows_at, .. } = **candidate;
            (follows_at.is_some(), closeness > Closeness::None, is_free, closeness, Reverse(follows_at))
        });
        let Some((domain, _)) = best else { continue };
        *sessions.entry(at_host(domain)).or_default() += 1;
        // A process delivers to one domain, or to several as one.
        let pid = failures[at].pid;
        failures[at].domain = Some((*domain).to_owned());
        for other in failures.iter_mut().filter(|other| pid != 0 && other.pid == pid && other.domain.is_none()) {
            other.domain = Some((*domain).to_owned());
        }
    }
}

/// The domains whose recipients follow a failure.
fn candidates<'a>(failure: &HostFailure, batches: &'a [DeliveryBatch]) -> BTreeMap<&'a str, Candidate> {
    let mut found: BTreeMap<&str, Candidate> = BTreeMap::new();
    for batch in batches {
        let closeness = closeness(failure, batch);
        let candidate = found.entry(batch.domain()).or_default();
        candidate.closeness = candidate.closeness.max(closeness);
        candidate.follows |= batch.last_line() > failure.lines_before;
        if batch.first_line() > failure.lines_before {
            let first = candidate.follows_at.map_or(batch.first_line(), |known| known.min(batch.first_line()));
            candidate.follows_at = Some(first);
        }
    }
    found.retain(|_, candidate| candidate.follows);
    found
}

fn closeness(failure: &HostFailure, batch: &DeliveryBatch) -> Closeness {
    if batch.is_at(&failure.host, failure.ip) && batch.end().is_none() {
        Closeness::Exact
    } else if is_below(&failure.host, batch.domain()) || is_label_of(&failure.host, batch.domain()) {
        Closeness::NamedAfter
    } else if batch.host() == failure.host {
        Closeness::SameHost
    } else if are_neighbors(&failure.host, batch.host()) {
        Closeness::SameProvider
    } else {
        Closeness::None
    }
}

/// Whether a host is a domain, or a name below it.
fn is_below(host: &str, domain: &str) -> bool {
    let Some(front) = host.len().checked_sub(domain.len()) else { return false };
    let same = host.is_char_boundary(front) && host[front..].eq_ignore_ascii_case(domain);
    !domain.is_empty() && same && (front == 0 || host[..front].ends_with('.'))
}

/// Whether the first label of a host is a domain with dashes for dots, as Exchange Online names a host for each of its
/// customers: `example-com.mail.protection.outlook.com`.
fn is_label_of(host: &str, domain: &str) -> bool {
    let Some((label, _)) = host.split_once('.') else { return false };
    let dashed = domain.bytes().map(|b| if b == b'.' { b'-' } else { b.to_ascii_lowercase() });
    domain.contains('.') && label.bytes().eq(dashed)
}

/// Whether one of two hosts is below the other's parent, which is more than a top-level domain.
fn are_neighbors(a: &str, b: &str) -> bool {
    let below_parent =
        |a: &str, b: &str| a.split_once('.').is_some_and(|(_, parent)| parent.contains('.') && is_below(b, parent));
    below_parent(a, b) || below_parent(b, a)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_named_after_its_domain_or_stands_beside_another() {
        assert!(is_below("mx.a.test", "a.test") && is_below("a.test", "a.test") && is_below("mx.a.test", "A.test"));
        assert!(!is_below("mx.ba.test", "a.test") && !is_below("a.test", "mx.a.test") && !is_below("a.test", ""));
        assert!(is_label_of("a-test.mail.protection.outlook.example", "A.test"));
        assert!(is_label_of("my-a-test.x-v1.mx.example", "my-a.test"));
        assert!(!is_label_of("ba-test.mail.example", "a.test") && !is_label_of("test.mail.example", "test"));
        assert!(are_neighbors("mx1.p.test", "mx2.p.test") && are_neighbors("mx1.p.test", "in.eu.p.test"));
        assert!(!are_neighbors("mx.a.test", "mx.b.test") && !are_neighbors("mx1.p.test", ""));
    }
}
