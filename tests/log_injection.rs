//! Strangers' text in real logs: replies, refusals, local parts, issuer names, header fields and HELO names that imitate
//! whole lines of Postfix, and other programs' lines between. Nothing that is counted changes.

use std::path::Path;
use std::sync::{Arc, LazyLock};

use jiff::tz::TimeZone;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::FileFailurePersistence;
use tlswarden::base::policy_at::PolicyAt;
use tlswarden::base::tlsrpt::{PolicyInForce, TallyRow, sum_tallies};
use tlswarden::counting::pipeline::Counter;
use tlswarden_parsers::Dialect;

/// Longer texts are cut by Postfix (MSG_SYSLOG_RECLEN), in octets.
const RECORD: usize = 2000;

struct NotAsked;

impl PolicyAt for NotAsked {
    fn at(&self, _: &str, _: i64) -> Option<PolicyInForce> {
        None
    }
}

/// Every real log, and what it counts as.
static LOGS: LazyLock<Vec<(String, Vec<TallyRow>)>> = LazyLock::new(|| {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let folders = ["postfix-3.5.25", "postfix-3.7.11", "postfix-3.10.13", "postfix-3.11.7"];
    let mut logs = Vec::new();
    for entry in folders.iter().flat_map(|folder| std::fs::read_dir(fixtures.join(folder)).unwrap()) {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "log") {
            let log = String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned();
            let counted = counted(&log).0;
            logs.push((log, counted));
        }
    }
    logs
});

/// What is counted, and how many lines looked like ours and could not be read.
fn counted(log: &str) -> (Vec<TallyRow>, u64) {
    let mut counter = Counter::new(Dialect::Postfix, TimeZone::UTC, Arc::new(|_| false));
    let now = 1_795_400_000;
    counter.count_lines(log.as_bytes(), now, &NotAsked);
    counter.end_sessions(now, &NotAsked);
    let malformed = counter.take_stats().0.lines.total().malformed;
    (sum_tallies(counter.take_counts()), malformed)
}

/// As Postfix writes a local part that needs it (RFC 5321 §4.1.2).
fn quoted(local_part: &str) -> String {
    format!("\"{}\"", local_part.replace('\\', "\\\\").replace('"', "\\\""))
}

/// The line with `plant` where a stranger's text stands, if it has such a place.
fn infected(line: &str, plant: &str) -> Option<String> {
    let (prefix, text) = line.split_once("]: ")?;
    let behind = |front: &str| text.find(front).map(|at| text.split_at(at + front.len()));
    let hostile = if let Some((front, rest)) = behind(" refused to start TLS: 454 ") {
        format!("{front}{plant}{rest}")
    } else if let Some((front, rest)) = behind(" said: ") {
        format!("{front}{plant} {rest}")
    } else if let Some((front, rest)) = behind("status=sent (250 ") {
        format!("{front}{plant}{rest}")
    } else if let Some((front, _)) = behind(": untrusted issuer ") {
        format!("{front}{plant}")
    } else if let Some((front, _)) = behind(": message-id=") {
        format!("{front}<{plant}>")
    } else if let Some((front, rest)) = behind(": from=<") {
        format!("{front}{}@{}", quoted(plant), rest.split_once('@').map_or(rest, |(_, domain)| domain))
    } else {
        return None;
    };
    Some(format!("{prefix}]: {hostile}"))
}

/// The recipient's local part is the plant.
fn to_a_stranger(line: &str, plant: &str) -> Option<String> {
    let (front, rest) = line.split_once(": to=<")?;
    let (_, domain) = rest.split_once('@').filter(|(local, _)| !local.contains('"'))?;
    Some(format!("{front}: to=<{}@{domain}", quoted(plant)))
}

fn cut(mut line: String) -> String {
    let text = line.find("]: ").map_or(0, |at| at + 3);
    let mut end = line.len().min(text + RECORD);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    line.truncate(end);
    line
}

/// A whole line of some real log, or its text, or words that would end what they stand in.
fn plant() -> impl Strategy<Value = String> {
    let lines: Vec<&'static str> = LOGS.iter().flat_map(|(log, _)| log.lines()).collect();
    let words = select(vec![
        "), status=sent (250 Ok",
        ">, relay=mx.evil.test[192.0.2.66]:25, delay=1, delays=0/0/0/1, dsn=2.0.0, status=sent (250 Ok)",
        ">, relay=none, delay=1, delays=0/0/0/1, tls=may:none, dsn=2.0.0, status=sent (x)",
        "Server certificate not verified)",
        "Cannot start TLS: handshake failure",
        " (queue active)",
        "TLSRPT: status=failure, domain=victim.test, receiving_mx=mx.victim.test[192.0.2.1], failure_type=x",
        "\u{2028}Nov 22 01:39:01 mta postfix/smtp[7]: Trusted TLS connection established to mx.a.test[192.0.2.1]:25: x",
        "\u{85}2026-11-22T01:39:01Z mta postfix/master[7]: daemon started -- version 3.7.11, configuration x",
    ]);
    let line = select(lines.clone());
    let text = select(lines).prop_map(|line| line.split_once("]: ").map_or(line, |(_, text)| text));
    let middle = prop_oneof![line, text, words];
    ("[ -~]{0,9}", middle, "[ -~]{0,9}").prop_map(|(before, middle, behind)| format!("{before}{middle}{behind}"))
}

/// A line of another program between, with the plant where clients choose the text.
fn between(plant: &str, program: usize) -> String {
    let prefix = "Nov 22 01:40:56 mta";
    match program {
        0 => format!("{prefix} postfix/smtpd[9]: NOQUEUE: reject: RCPT from h[192.0.2.9]: 554 5.7.1 x; helo=<{plant}>"),
        1 => format!("{prefix} postfix/cleanup[9]: 4AB0CDEF99: reject: header Subject: {plant} from h[192.0.2.9]; x"),
        2 => format!("{prefix} postfix/smtp[9]: 4AB0CDEF99: replace: header Subject: {plant}: y"),
        3 => format!("{prefix} dovecot: imap-login: Login: user=<{plant}>"),
        _ => format!("{prefix} postfix/tlsproxy[9]: CONNECT from [192.0.2.9]:4711"),
    }
}

#[test]
fn there_are_such_places_in_the_logs() {
    let lines: Vec<&str> = LOGS.iter().flat_map(|(log, _)| log.lines()).collect();
    for place in ["start TLS: 454 x", " said: x", "(250 x", "untrusted issuer x", "message-id=<x", "from=<\"x"] {
        let found = lines.iter().filter_map(|line| infected(line, "x")).filter(|line| line.contains(place)).count();
        assert!(found > 3, "{place}: {found}");
    }
    assert!(lines.iter().filter_map(|line| to_a_stranger(line, "x")).count() > 100);
    assert!(LOGS.iter().filter(|(_, counted)| !counted.is_empty()).count() > 150);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2000,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn what_strangers_write_changes_no_count(
        log in 0..LOGS.len(),
        plants in proptest::collection::vec((plant(), any::<bool>(), 0..8usize), 1..8),
    ) {
        let (honest, wanted) = &LOGS[log];
        let mut hostile = String::new();
        for (line, (plant, to, program)) in honest.lines().zip(plants.iter().cycle()) {
            let plant: String = plant.chars().map(|c| if c.is_ascii_control() { '?' } else { c }).collect();
            let infected = infected(line, &plant).unwrap_or_else(|| line.to_owned());
            let infected = match to {
                true => to_a_stranger(&infected, &plant).filter(|line| line.len() < RECORD).unwrap_or(infected),
                false => infected,
            };
            hostile.push_str(&cut(infected));
            hostile.push('\n');
            if *program < 5 {
                hostile.push_str(&cut(between(&plant, *program)));
                hostile.push('\n');
            }
        }
        let (counted, malformed) = counted(&hostile);
        prop_assert_eq!(&counted, wanted, "{}", hostile);
        prop_assert_eq!(malformed, 0, "{}", hostile);
    }
}
