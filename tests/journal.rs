//! The real journalctl on real journals, which systemd-journal-remote writes: every entry once, over a restart, a file that
//! comes, and a vacuum.
//!
//! Needs `journalctl` and `systemd-journal-remote` (Debian: systemd, systemd-journal-remote).

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::tz::TimeZone;
use tlswarden::base::policy_at::PolicyAt;
use tlswarden::base::tlsrpt::{PolicyInForce, sum_tallies};
use tlswarden::counting::input::Position;
use tlswarden::counting::input::journald::{JournalEvent, JournalFilter, JournalFollower};
use tlswarden::counting::input::json_entry::decode_entry;
use tlswarden::counting::pipeline::Counter;
use tlswarden_parsers::Dialect;

const REMOTE: &str = "/lib/systemd/systemd-journal-remote";

/// 2026-11-22T01:40:00Z, in microseconds.
const BEGIN: u64 = 1_795_311_600_000_000;

struct NotAsked;

impl PolicyAt for NotAsked {
    fn at(&self, _: &str, _: i64) -> Option<PolicyInForce> {
        None
    }
}

/// A journal file with these entries: (number, identifier, process id, text); the number is its second.
fn write(file: &Path, entries: &[(u64, &str, u32, &str)]) {
    let mut text = String::new();
    for (number, ident, pid, message) in entries {
        let _ = write!(
            text,
            "__REALTIME_TIMESTAMP={}\n__MONOTONIC_TIMESTAMP={}\n_BOOT_ID=41fe55e303dc48e99b4da20ff6295465\n\
             SYSLOG_FACILITY=2\nSYSLOG_IDENTIFIER={ident}\n_PID={pid}\n_SYSTEMD_UNIT=postfix@-.service\nMESSAGE={message}\n\n",
            BEGIN + number * 1_000_000,
            number * 1_000_000,
        );
    }
    let exported = file.with_extension("export");
    std::fs::write(&exported, text).unwrap();
    let output = Command::new(REMOTE).arg("-o").arg(file).arg(&exported).output();
    let output = output.unwrap_or_else(|e| panic!("{REMOTE}: {e}; try: apt-get install systemd-journal-remote"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::remove_file(exported).unwrap();
}

fn texts(numbers: std::ops::Range<u64>) -> Vec<String> {
    numbers.map(|n| format!("entry {n}")).collect()
}

fn fill(file: &Path, numbers: std::ops::Range<u64>) {
    let texts = texts(numbers.clone());
    let entries: Vec<_> = numbers.zip(&texts).map(|(n, text)| (n, "postfix/smtp", 7, &**text)).collect();
    write(file, &entries);
}

/// Reads until there are `wanted` entries and the end, or for twenty seconds: the texts, the mark, and what was said.
async fn read(follower: &mut JournalFollower, wanted: usize) -> (Vec<String>, Option<Position>, Vec<String>) {
    let (mut texts, mut position, mut said) = (Vec::new(), None, Vec::new());
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(20) {
        match tokio::time::timeout(Duration::from_secs(5), follower.next()).await {
            Ok(JournalEvent::Entries(block)) => {
                for line in block.lines.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
                    let entry = decode_entry(line).unwrap().unwrap();
                    texts.push(String::from_utf8(entry.text.into_owned()).unwrap());
                }
                if block.position != Position::Nowhere {
                    position = Some(block.position);
                }
                if texts.len() >= wanted && block.at_end {
                    break;
                }
            }
            Ok(JournalEvent::Gap(line) | JournalEvent::Failed(line)) => said.push(line),
            Err(_) => {}
        }
    }
    (texts, position, said)
}

fn journal(folder: &Path) -> JournalFilter {
    JournalFilter { folder: Some(folder.to_owned()), ..JournalFilter::default() }
}

#[tokio::test]
async fn every_entry_once_over_a_restart_a_new_file_and_a_vacuum() {
    let folder = tempfile::tempdir().unwrap();
    fill(&folder.path().join("a.journal"), 0..300);
    let mut follower = JournalFollower::new(journal(folder.path()), None);
    let (found, position, said) = read(&mut follower, 300).await;
    assert_eq!((found, &said), (texts(0..300), &vec![]));
    // A file that comes while it is followed: a rotation.
    fill(&folder.path().join("b.journal"), 300..400);
    let (found, _, said) = read(&mut follower, 100).await;
    assert_eq!((found, &said), (texts(300..400), &vec![]));
    drop(follower);
    // Again from the first mark.
    let mut follower = JournalFollower::new(journal(folder.path()), position.clone());
    let (found, last, said) = read(&mut follower, 100).await;
    assert_eq!((found, &said), (texts(300..400), &vec![]));
    drop(follower);
    // At the end there is nothing, until something comes.
    let mut follower = JournalFollower::new(journal(folder.path()), last.clone());
    let (found, still, said) = read(&mut follower, 0).await;
    assert_eq!((found, said), (vec![], vec![]));
    assert_eq!(still, last);
    fill(&folder.path().join("c.journal"), 400..450);
    let (found, _, said) = read(&mut follower, 50).await;
    assert_eq!((found, &said), (texts(400..450), &vec![]));
    drop(follower);
    // The entry of the mark is vacuumed, with all before and some after it.
    std::fs::remove_file(folder.path().join("a.journal")).unwrap();
    std::fs::remove_file(folder.path().join("b.journal")).unwrap();
    let mut follower = JournalFollower::new(journal(folder.path()), position);
    let (found, _, said) = read(&mut follower, 50).await;
    assert_eq!(found, texts(400..450), "the nearest later entry is not left out");
    assert!(said.len() == 1 && said[0].contains("vacuumed"), "{said:?}");
}

#[tokio::test]
async fn identifiers_and_units_choose_and_the_counts_are_those_of_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let tls = "Trusted TLS connection established to mx.a.test[203.0.113.10]:25: TLSv1.3 with cipher X (256/256 bits)";
    let to = "F35CEA26071: to=<user@a.test>, relay=mx.a.test[203.0.113.10]:25, delay=0.1, delays=0/0/0/0.1, dsn=2.0.0, \
              status=sent (250 2.0.0 Ok)";
    let entries = [
        (0, "postfix/smtp", 7, tls),
        (1, "postfix/smtp", 7, to),
        (2, "postfix-out/smtp", 8, tls),
        (3, "postfix-out/smtp", 8, to),
        (4, "dovecot", 9, "imap-login: Login"),
    ];
    write(&folder.path().join("a.journal"), &entries);
    let of = |identifiers: &[&str], units: &[&str]| JournalFilter {
        folder: Some(folder.path().to_owned()),
        identifiers: identifiers.iter().map(|name| (*name).to_owned()).collect(),
        units: units.iter().map(|name| (*name).to_owned()).collect(),
    };
    for (journal, entries, sessions) in [
        (of(&[], &[]), 5, 2),
        (of(&["postfix/smtp"], &[]), 2, 1),
        (of(&["postfix/smtp", "postfix-out/smtp"], &[]), 4, 2),
        (of(&["postfix-out/smtp"], &["postfix@*"]), 2, 1),
        (of(&[], &["postfix@-.service"]), 5, 2),
        (of(&["nobody"], &[]), 0, 0),
    ] {
        let mut follower = JournalFollower::new(journal.clone(), None);
        let mut counter = Counter::new(Dialect::Postfix, TimeZone::UTC, Arc::new(|_: &[u8]| false));
        let begin = Instant::now();
        let mut read = 0;
        while begin.elapsed() < Duration::from_secs(20) {
            let JournalEvent::Entries(block) = follower.next().await else { continue };
            read += block.lines.iter().filter(|b| **b == b'\n').count();
            counter.count_lines(&block.lines, 1_795_400_000, &NotAsked);
            if read >= entries && block.at_end {
                break;
            }
        }
        let counted: u64 = sum_tallies(counter.take_counts()).iter().map(|row| row.successful).sum();
        assert_eq!((read, counted), (entries, sessions), "{journal:?}");
    }
}

#[tokio::test]
async fn a_journal_that_cannot_be_read_is_said() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.journal"), "no journal").unwrap();
    let missing = JournalFilter { folder: Some(folder.path().join("missing")), ..JournalFilter::default() };
    let mut follower = JournalFollower::new(missing, None);
    match tokio::time::timeout(Duration::from_secs(20), follower.next()).await.unwrap() {
        JournalEvent::Failed(line) => {
            assert!(line.contains("journalctl has ended") && line.contains("No such file"), "{line}")
        }
        other => panic!("{other:?}"),
    }
}
