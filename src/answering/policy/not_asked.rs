//! What is not known because nothing can be asked, which is not the domain's fault.
//!
//! Takes: what is known of a domain's MTA-STS, whether the resolver answers at all; the hosts file. Gives: the cause of
//! TEMP, or nothing. Pure, but for reading the hosts file.
//! One `_mta-sts` record that cannot be asked never gives TEMP (RFC 8461 §3.3): it must be this host that cannot ask, or
//! a resolver that answers nothing.
//! Limits: [`MAX_HOSTS_FILE`] bytes of the hosts file.
//! When it fails: a hosts file that cannot be read names no host.
//! Not here: when a resolver answers nothing (`net::dns`), what follows for an answer (`decide`).

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::answering::policy::sts::domain_state::{DomainSnapshot, RecordState};

/// The cause of TEMP where a policy cannot be fetched through our own fault; the log says which.
const CANNOT_FETCH: &str = "the MTA-STS policy cannot be fetched: this host has no root certificates or no descriptors";

/// The hosts file (hosts(5)).
pub(super) const HOSTS_FILE: &str = "/etc/hosts";

/// How much of the hosts file is read.
const MAX_HOSTS_FILE: u64 = 1024 * 1024;

/// Why it is not known whether a domain enforces an MTA-STS policy, where that is not the domain's fault. `outage`: why
/// the resolver answers nothing.
pub(super) fn cause(known: &DomainSnapshot, outage: Option<String>, now: i64) -> Option<String> {
    if known.policy.is_some() {
        return None;
    }
    if known.not_asked {
        return Some(CANNOT_FETCH.to_owned());
    }
    match &known.record {
        Some((RecordState::Failed { cause, local: true }, _)) => Some(format!("the MTA-STS record: {cause}")),
        // It has none: that was asked.
        Some((RecordState::None { .. }, until)) if *until > now => None,
        _ => outage,
    }
}

/// Whether the hosts file names a host.
pub(super) fn is_in_hosts_file(path: &Path, host: &str) -> bool {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_HOSTS_FILE).read_to_string(&mut text));
    read.is_ok() && names_host(&text, host)
}

fn names_host(hosts: &str, host: &str) -> bool {
    let lines = hosts.lines().map(|line| line.split('#').next().unwrap_or_default());
    let mut names = lines.flat_map(|line| line.split_whitespace().skip(1));
    names.any(|name| name.trim_end_matches('.').eq_ignore_ascii_case(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_fault_of_ours_or_an_outage_makes_a_record_unknown() {
        let failed = |local| Some((RecordState::Failed { cause: "SERVFAIL".into(), local }, 60));
        let none = |until| Some((RecordState::None { reason: "no such records".into(), invalid: false }, until));
        let id = Some((RecordState::Id { id: "1".into() }, 60));
        let outage = || Some("silence".to_owned());
        for (record, outage, want) in [
            // One record that cannot be asked.
            (failed(false), None, None),
            (failed(true), None, Some("the MTA-STS record: SERVFAIL")),
            (failed(false), outage(), Some("silence")),
            (None, outage(), Some("silence")),
            (id.clone(), outage(), Some("silence")),
            (id, None, None),
            (none(60), outage(), None),
            (none(10), outage(), Some("silence")),
        ] {
            let known = DomainSnapshot { record, ..DomainSnapshot::default() };
            assert_eq!(cause(&known, outage, 10).as_deref(), want, "{known:?}");
        }
        let not_asked = DomainSnapshot { not_asked: true, ..DomainSnapshot::default() };
        assert_eq!(cause(&not_asked, None, 10).as_deref(), Some(CANNOT_FETCH));
    }

    #[test]
    fn the_hosts_file_names_hosts_behind_an_address() {
        let hosts = "127.0.0.1 localhost\n# 192.0.2.1 comment.test\n192.0.2.2\tMailhub.test. mailhub # not.test\n";
        for (host, known) in [
            ("localhost", true),
            ("mailhub.test", true),
            ("mailhub", true),
            ("comment.test", false),
            ("not.test", false),
            ("192.0.2.2", false),
            ("hub", false),
        ] {
            assert_eq!(names_host(hosts, host), known, "{host}");
        }
        assert!(!is_in_hosts_file(Path::new("/nonexistent/hosts"), "localhost"));
    }
}
