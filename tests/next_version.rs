//! A synthetic next version of each MTA: its logs with one word of one wording about TLS changed.
//!
//! Takes: the real logs in `fixtures/`. Gives: for each changed word, that a log that loses sessions shows it: some line is
//! counted as not recognized, or as one that cannot be read.
//! Limits: one word at a time, everywhere in a log.
//! Not here: the lines that are known (`replay.rs`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::tz::TimeZone;
use tlswarden::base::policy_at::PolicyAt;
use tlswarden::base::tlsrpt::{PolicyInForce, sum_tallies};
use tlswarden::counting::pipeline::Counter;
use tlswarden_parsers::Dialect;

/// 2026-11-24, behind the newest line of any log.
const NOW: i64 = 1_795_500_000;

const POSTFIX: &[&str] = &[
    "Trusted TLS connection established to ",
    "Untrusted TLS connection established to ",
    "Verified TLS connection established to ",
    "Anonymous TLS connection established to ",
    "SSL_connect error to ",
    "certificate verification failed for ",
    "Cannot start TLS: handshake failure",
    "Server certificate not verified",
    "Server certificate not trusted",
    "TLS is required, but was not offered by host ",
    "TLS is required, but host ",
    " refused to start TLS: ",
    "warning: TLS policy lookup for ",
    "all TLSA records unusable",
    ": TLSA records unusable",
    "TLSA lookup error for ",
    ": no TLSA records found",
    ": non DNSSEC destination",
    " does not match STS MX pattern for ",
    "re-using session with untrusted ",
    ", tls=may",
    ", tls=dane",
    ", tls=secure",
    ", tls=encrypt",
];

const EXIM: &[&str] = &[
    "a TLS session is required, but the server did not offer TLS support",
    "a TLS session is required, but an attempt to start TLS failed",
    "TLS session: (gnutls_handshake)",
    "TLS session: (certificate verification failed)",
    ": delivering unencrypted to H=",
    " (not in hosts_require_tls)",
    "DANE attempt failed; TLS connection to ",
    "DANE error: tlsa lookup DEFER",
    " X=TLS1",
    " CV=yes",
    " CV=no",
    " CV=dane",
];

struct NotAsked;

impl PolicyAt for NotAsked {
    fn at(&self, _: &str, _: i64) -> Option<PolicyInForce> {
        None
    }
}

/// Sessions by recipient domain (succeeded, failed), and lines that show that something is not understood.
fn counted(dialect: Dialect, log: &str) -> (BTreeMap<String, (u64, u64)>, u64) {
    let mut counter = Counter::new(dialect, TimeZone::UTC, Arc::new(|_: &[u8]| false));
    counter.count_lines(log.as_bytes(), NOW, &NotAsked);
    counter.end_sessions(NOW, &NotAsked);
    let shown = counter.take_stats().0.lines.total();
    let mut sessions: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for row in sum_tallies(counter.take_counts()) {
        let known = sessions.entry(row.domain).or_default();
        *known = (known.0 + row.successful, known.1 + row.failed);
    }
    (sessions, shown.unrecognized + shown.malformed)
}

fn logs(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(folder);
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    paths.filter(|path| path.extension().is_some_and(|e| e == "log")).collect()
}

/// The wording with each of its words changed in turn.
fn changed(wording: &str) -> Vec<String> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let mut out = Vec::new();
    let mut at = 0;
    while let Some(from) = wording[at..].find(is_word).map(|from| at + from) {
        let to = wording[from..].find(|c| !is_word(c)).map_or(wording.len(), |to| from + to);
        out.push(format!("{}renamed{}", &wording[..from], &wording[to..]));
        at = to;
    }
    out
}

fn check(dialect: Dialect, folders: &[&str], wordings: &[&str]) {
    let mut silent = Vec::new();
    let (mut changes, mut lost_in_all) = (0, 0);
    for path in folders.iter().flat_map(|folder| logs(folder)) {
        let log = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
        let (before, shown) = counted(dialect, &log);
        if shown > 0 {
            silent.push(format!("{}: {shown} lines are not recognized as they are", path.display()));
        }
        for wording in wordings.iter().filter(|wording| log.contains(**wording)) {
            for renamed in changed(wording) {
                let (after, shown) = counted(dialect, &log.replace(wording, &renamed));
                let (ok, failed) = before.iter().fold((0, 0), |(ok, failed), (domain, counts)| {
                    let now = after.get(domain).copied().unwrap_or_default();
                    (ok + counts.0.saturating_sub(now.0), failed + counts.1.saturating_sub(now.1))
                });
                (changes, lost_in_all) = (changes + 1, lost_in_all + ok + failed);
                if ok + failed > 0 && shown == 0 {
                    silent
                        .push(format!("{}: {wording:?} as {renamed:?}: {ok} ok, {failed} failed lost", path.display()));
                }
            }
        }
    }
    println!("{folders:?}: {changes} changed logs, {lost_in_all} sessions lost, {} silently", silent.len());
    assert!(changes > 100 && lost_in_all > 100, "{changes} {lost_in_all}");
    assert!(silent.is_empty(), "{} in silence:\n{}", silent.len(), silent[..silent.len().min(40)].join("\n"));
}

#[test]
fn a_changed_word_of_postfix_is_never_silent() {
    let folders = ["postfix-3.5.25", "postfix-3.7.11", "postfix-3.10.13", "postfix-3.11.7"];
    check(Dialect::Postfix, &folders, POSTFIX);
}

#[test]
fn a_changed_word_of_exim_is_never_silent() {
    check(Dialect::Exim, &["exim-4.96", "exim-4.98.2"], EXIM);
}
