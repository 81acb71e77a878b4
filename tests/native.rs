//! Postfix's own TLSRPT datagrams beside its log: each session once, whichever of the two counts it.
//!
//! `fixtures/postfix-3.10.13/<case>.datagrams` are those of the same run as `<case>.log`, as received.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use jiff::tz::TimeZone;
use tlswarden::base::policy_at::PolicyAt;
use tlswarden::base::tlsrpt::{PolicyInForce, sum_tallies};
use tlswarden::config::{self, Config};
use tlswarden::counting::pipeline::Counter;
use tlswarden::counting::rules::CountingRules;
use tlswarden_parsers::Dialect;

/// 2026-11-23, for time stamps without a year.
const NOW: i64 = 1_795_400_000;

/// Our responder was not asked: Postfix had its policies from a table.
struct NotAsked;

impl PolicyAt for NotAsked {
    fn at(&self, _: &str, _: i64) -> Option<PolicyInForce> {
        None
    }
}

/// By recipient domain: sessions that succeeded and failed.
type Totals = BTreeMap<String, (u64, u64)>;

fn rules(tlsrpt: &str) -> Arc<CountingRules> {
    let input = if tlsrpt == "datagrams" { "[[input]]\ndatagrams = \"/run/tlsrpt\"\n" } else { "" };
    let text = format!("[postfix]\ntlsrpt = \"{tlsrpt}\"\n[[input]]\nfile = \"/var/log/mail.log\"\n{input}");
    let config: Config = config::parse_toml(&text, Path::new("test")).unwrap();
    Arc::new(CountingRules::from_config(&config))
}

fn counter(rules: &Arc<CountingRules>) -> Counter {
    Counter::new(Dialect::Postfix, TimeZone::UTC, Arc::new(|_: &[u8]| false)).with_rules(Arc::clone(rules))
}

fn totals(counters: &mut [&mut Counter]) -> Totals {
    let mut totals = Totals::new();
    for counter in counters {
        counter.end_sessions(NOW, &NotAsked);
        for row in sum_tallies(counter.take_counts()) {
            let entry = totals.entry(row.domain).or_default();
            *entry = (entry.0 + row.successful, entry.1 + row.failed);
        }
    }
    totals.retain(|_, counts| *counts != (0, 0));
    totals
}

fn datagrams(path: &Path) -> Vec<(i64, String)> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let line = |line: &str| {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        (value["t"].as_i64().unwrap(), value["raw"].as_str().unwrap().to_owned())
    };
    text.lines().map(line).collect()
}

/// Cases that differ, and why: the session is under a policy in testing mode, of which the log alone knows nothing here,
/// for our responder was not asked; with the datagrams that is known, and the Postfix of this case has not shown that it
/// has trust anchors.
const EXCEPTIONS: &[(&str, &str)] = &[("sts-testing-selfsigned", "sts-testing-selfsigned.test")];

#[test]
fn datagrams_with_the_log_count_what_the_log_alone_does() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/postfix-3.10.13");
    let (mut cases, mut seen) = (0, Vec::new());
    let mut wrong = Vec::new();
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if path.extension().is_none_or(|e| e != "log") || name.contains('.') {
            continue;
        }
        cases += 1;
        let log = std::fs::read(&path).unwrap();
        let mut alone = counter(&rules("log"));
        alone.count_lines(&log, NOW, &NotAsked);
        let mut want = totals(&mut [&mut alone]);
        let rules = rules("datagrams");
        let (mut beside, mut native) = (counter(&rules), counter(&rules));
        for (at, raw) in datagrams(&path.with_extension("datagrams")) {
            native.count_datagram(Some(raw.as_bytes()), at, &NotAsked);
        }
        beside.count_lines(&log, NOW, &NotAsked);
        let malformed = native.take_stats().0.lines.total().malformed;
        let got = totals(&mut [&mut beside, &mut native]);
        for (case, domain) in EXCEPTIONS.iter().filter(|(case, _)| *case == name) {
            seen.push(*case);
            want.remove(*domain);
        }
        if malformed != 0 || got != want {
            wrong.push(format!("{name}: {malformed} unreadable; with datagrams {got:?}; the log alone {want:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(cases > 100 && seen.len() == EXCEPTIONS.len(), "{cases} cases, {seen:?}");
}

/// By recipient domain: the result type and the reason code of each failure.
type Words = BTreeMap<String, BTreeSet<(String, String)>>;

fn words(counter: &mut Counter) -> Words {
    counter.end_sessions(NOW, &NotAsked);
    let mut words = Words::new();
    for row in sum_tallies(counter.take_counts()) {
        for (failure, _) in row.details {
            let code = failure.failure_reason_code.unwrap_or_default();
            // Why a handshake failed is in the log alone.
            let handshake = ["tls-remote-", "tls-local-", "tls-record-", "io-timeout-", "connection-closed-"];
            let general = handshake.iter().any(|front| code.starts_with(front));
            let code = if general { "tls-handshake-failure".to_owned() } else { code };
            words.entry(row.domain.clone()).or_default().insert((failure.result_type.to_string(), code));
        }
    }
    words
}

#[test]
fn the_log_and_the_datagrams_have_the_same_words_for_a_session() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/postfix-3.10.13");
    let (mut compared, mut wrong) = (0, Vec::new());
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "datagrams") {
            continue;
        }
        if path.file_stem().is_some_and(|name| name == "secure-fpr-bad") {
            // At level `fingerprint` Postfix makes TLSA records of the fingerprints; the log has no word of the level.
            continue;
        }
        let mut native = counter(&rules("datagrams"));
        for (at, raw) in datagrams(&path) {
            native.count_datagram(Some(raw.as_bytes()), at, &NotAsked);
        }
        let mut log = counter(&rules("log"));
        log.count_lines(&std::fs::read(path.with_extension("log")).unwrap(), NOW, &NotAsked);
        let (log, native) = (words(&mut log), words(&mut native));
        for (domain, want) in native {
            compared += 1;
            let got = log.get(&domain).cloned().unwrap_or_default();
            if got != want {
                wrong.push(format!("{}: {domain}: the log {got:?}, the datagram {want:?}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(compared > 20, "{compared}");
}

#[test]
fn a_session_whose_datagram_was_not_sent_counts_from_the_log() {
    let session = |unsent: &str| {
        format!(
            "Nov 22 01:41:05 mta postfix/smtp[7]: Trusted TLS connection established to mx.a.test[203.0.113.10]:25: \
             TLSv1.3 with cipher TLS_AES_256_GCM_SHA384 (256/256 bits)\n\
             Nov 22 01:41:05 mta postfix/smtp[7]: TLSRPT: status=success, domain=a.test, receiving_mx=mx.a.test[203.0.113.10]\n\
             {unsent}\
             Nov 22 01:41:05 mta postfix/smtp[7]: F35CEA26071: to=<user@a.test>, relay=mx.a.test[203.0.113.10]:25, \
             delay=0.1, delays=0/0/0/0.1, dsn=2.0.0, status=sent (250 2.0.0 Ok)\n"
        )
    };
    let unsent = "Nov 22 01:41:05 mta postfix/smtp[7]: warning: Could not report TLS handshake result to tlsrpt library: \
                  Connection refused (errno 111)\n";
    let rules = rules("datagrams");
    let mut log = counter(&rules);
    log.count_lines((session("") + &session(unsent)).as_bytes(), NOW, &NotAsked);
    assert_eq!(totals(&mut [&mut log]), Totals::from([("a.test".to_owned(), (1, 0))]));
}

#[test]
fn testing_mode_counts_from_the_log_and_native_counts_where_there_is_no_log() {
    let raw = r#"{"dpv":"1","d":"a.test","policies":[{"policy-type":2,"policy-domain":"a.test","policy-string":["version: STSv1","mode: testing","mx: mx.b.test"],"mx-host":["mx.b.test"],"t":0,"f":0}]}"#;
    let log = "Nov 22 01:41:05 mta postfix/smtp[7]: Trusted TLS connection established to mx.a.test[203.0.113.10]:25: \
               TLSv1.3 with cipher TLS_AES_256_GCM_SHA384 (256/256 bits)\n\
               Nov 22 01:41:05 mta postfix/smtp[7]: TLSRPT: status=success, domain=a.test, receiving_mx=mx.a.test[203.0.113.10]\n\
               Nov 22 01:41:05 mta postfix/smtp[7]: F35CEA26071: to=<user@a.test>, relay=mx.a.test[203.0.113.10]:25, \
               delay=0.1, delays=0/0/0/0.1, dsn=2.0.0, status=sent (250 2.0.0 Ok)\n";
    let rules = rules("datagrams");
    let (mut native, mut beside) = (counter(&rules), counter(&rules));
    native.count_datagram(Some(raw.as_bytes()), 1_795_311_665, &NotAsked);
    beside.count_lines(log.as_bytes(), NOW, &NotAsked);
    assert_eq!(totals(&mut [&mut native]), Totals::new());
    // Outside the patterns: Postfix reports a success, for nothing was required of it.
    assert_eq!(totals(&mut [&mut beside]), Totals::from([("a.test".to_owned(), (0, 1))]));
    let text = "[postfix]\ntlsrpt = \"datagrams\"\n[[input]]\ndatagrams = \"/run/tlsrpt\"\n";
    let alone: Config = config::parse_toml(text, Path::new("test")).unwrap();
    let mut native = counter(&Arc::new(CountingRules::from_config(&alone)));
    native.count_datagram(Some(raw.as_bytes()), 1_795_311_665, &NotAsked);
    assert_eq!(totals(&mut [&mut native]), Totals::from([("a.test".to_owned(), (1, 0))]));
}

#[test]
fn a_smart_host_is_counted_under_its_own_domain_and_a_content_filter_not_at_all() {
    let text = "[[nexthop]]\ndomain = \"*\"\nnexthop = \"[smart.test]:587\"\n[[input]]\nfile = \"/m\"\n";
    let config: Config = config::parse_toml(text, Path::new("test")).unwrap();
    let mut log = counter(&Arc::new(CountingRules::from_config(&config)));
    let session = |host: &str| {
        format!(
            "Nov 22 01:41:05 mta postfix/smtp[7]: Trusted TLS connection established to {host}:587: TLSv1.3 with cipher \
             X (256/256 bits)\nNov 22 01:41:05 mta postfix/smtp[7]: F35CEA26071: to=<user@a.test>, relay={host}:587, \
             delay=0.1, delays=0/0/0/0.1, dsn=2.0.0, status=sent (250 2.0.0 Ok)\n"
        )
    };
    log.count_lines((session("smart.test[203.0.113.10]") + &session("filter[127.0.0.1]")).as_bytes(), NOW, &NotAsked);
    assert_eq!(log.take_stats().0.local, 1);
    assert_eq!(totals(&mut [&mut log]), Totals::from([("smart.test".to_owned(), (1, 0))]));
}
