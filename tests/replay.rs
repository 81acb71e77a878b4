//! Real logs in, counts out: every `fixtures/<mta>-<version>/<case>.log` beside its wanted `<case>.json`.
//!
//! The logs are of real MTAs that sent into a closed network; the counts were held to what the receiving servers recorded.
//! `TLSWARDEN_REWRITE=1 cargo test --test replay` writes the wanted side anew, for a change that is meant.
//! Other forms of the logs: `replay/forms.rs`.

#[path = "replay/forms.rs"]
mod forms;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const BINARY: &str = env!("CARGO_BIN_EXE_tlswarden");

fn replay(arguments: &[&str], log: &Path) -> Output {
    Command::new(BINARY).arg("replay").args(arguments).arg(log).output().unwrap()
}

fn logs(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(folder);
    let mut logs: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    logs.retain(|path| path.extension().is_some_and(|e| e == "log" || e == "journal"));
    logs.sort();
    logs
}

fn json(octets: &[u8]) -> serde_json::Value {
    serde_json::from_slice(octets).unwrap_or_default()
}

/// What a log comes to, under the policies of its case: `case.iso.log` has those of `case`.
fn counted(mta: &str, log: &Path) -> serde_json::Value {
    // Some of the closed networks were on the loopback.
    let mut arguments = vec!["--mta", mta, "--year", "2026", "--timezone", "UTC", "--json", "--private-addresses"];
    let policies = log.with_file_name(format!("{}.policies.toml", case(log)));
    if policies.exists() {
        arguments.extend(["--policies", policies.to_str().unwrap()]);
    }
    let output = replay(&arguments, log);
    assert!(output.status.success(), "{}: {}", log.display(), String::from_utf8_lossy(&output.stderr));
    let mut counted = json(&output.stdout);
    if let Some(all) = counted.as_object_mut() {
        all.retain(|name, _| name == "lines" || name == "results");
    }
    counted
}

/// The name of a log up to its first dot, and the form behind it: `case.iso.log` is `case` in the form `iso`,
/// `case.journal` in the form `journal`.
fn case(log: &Path) -> &str {
    log.file_name().unwrap().to_str().unwrap().split('.').next().unwrap()
}

fn form(log: &Path) -> &str {
    let name = log.file_name().unwrap().to_str().unwrap();
    name.strip_suffix(".log").unwrap_or(name).split_once('.').map_or("", |(_, form)| form)
}

fn holds(mta: &str, folder: &str, least: usize) {
    let mut wrong = Vec::new();
    let logs: Vec<PathBuf> = logs(folder).into_iter().filter(|log| form(log).is_empty()).collect();
    assert!(logs.len() >= least, "{folder}: only {} logs", logs.len());
    for log in logs {
        let stem = log.with_extension("");
        let got = counted(mta, &log);
        let wanted = format!("{}.json", stem.display());
        let pretty = serde_json::to_string_pretty(&got).unwrap() + "\n";
        if std::env::var_os("TLSWARDEN_REWRITE").is_some() {
            std::fs::write(&wanted, &pretty).unwrap();
        } else if json(&std::fs::read(&wanted).unwrap_or_default()) != got {
            wrong.push(format!("{wanted}: got\n{pretty}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn postfix_3_5() {
    holds("postfix", "postfix-3.5.25", 4);
}

#[test]
fn postfix_3_11() {
    holds("postfix", "postfix-3.11.7", 4);
}

#[test]
fn postfix_3_7() {
    holds("postfix", "postfix-3.7.11", 100);
}

#[test]
fn postfix_3_10() {
    holds("postfix", "postfix-3.10.13", 100);
}

#[test]
fn exim_4_96() {
    holds("exim", "exim-4.96", 100);
}

#[test]
fn exim_4_98() {
    holds("exim", "exim-4.98.2", 100);
}

#[test]
fn several_logs_are_one_stream_and_gz_is_unpacked() {
    let folder = tempfile::tempdir().unwrap();
    let log = &logs("postfix-3.7.11")[0];
    let whole = replay(&["--timezone", "UTC", "--year", "2026", "--json"], log).stdout;
    let text = std::fs::read(log).unwrap();
    let cut = text.iter().position(|b| *b == b'\n').unwrap() + 1;
    let (first, second) = (folder.path().join("mail.log.1.gz"), folder.path().join("mail.log"));
    let mut gz = flate2::write::GzEncoder::new(std::fs::File::create(&first).unwrap(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gz, &text[..cut]).unwrap();
    gz.finish().unwrap();
    std::fs::write(&second, &text[cut..]).unwrap();
    let arguments = ["--timezone", "UTC", "--year", "2026", "--json", first.to_str().unwrap()];
    let two = json(&replay(&arguments, &second).stdout);
    assert!(two["results"].is_array());
    assert_eq!(two, json(&whole));
}

/// The forms that the parsers do not know are in their own tests.
#[test]
fn what_container_runtimes_split_and_terminals_color_is_read() {
    let text = [TRUSTED, SENT].map(str::trim_end);
    let each = |change: &dyn Fn(&str) -> String| text.map(change).concat();
    let parts = |line: &str| -> Vec<String> {
        let (front, end) = line.split_at(60);
        vec![front.to_owned(), end.to_owned()]
    };
    let docker = |text: &str| {
        let log = serde_json::Value::from(text);
        format!("{{\"log\":{log},\"stream\":\"stdout\",\"time\":\"2026-11-22T22:44:00.1Z\"}}\n")
    };
    let time = "2026-11-22T22:44:00.1Z stdout";
    for (form, log) in [
        ("CRI", each(&|line| format!("{time} P {}\n{time} F {}\n", parts(line)[0], parts(line)[1]))),
        ("json-file", each(&|line| docker(&parts(line)[0]) + &docker(&format!("{}\n", parts(line)[1])))),
        ("lines without an end", each(&|line| docker(line))),
        ("compose", each(&|line| format!("\x1b[36mmail-1  |\x1b[0m {line}\n"))),
        (
            "colors",
            each(&|line| format!("{}\n", line.replace(" mta ", "\x1b[0m mta \x1b[1;36m").replace("]: ", "]\x1b[0m: "))),
        ),
        ("a hole", each(&|line| format!("\0\0{line}\n"))),
        ("repeated", format!("{TRUSTED}Nov 22 22:44:00 mta last message repeated 2 times\n{SENT}")),
    ] {
        let (_, shown, _) = replay_lines(&log, &[]);
        assert_eq!(shown["results"][0]["summary"]["total-successful-session-count"], 1, "{form}: {shown}");
        let lost = if form == "repeated" { 2 } else { 0 };
        assert_eq!(shown["left-out"]["lines-lost-by-syslog"], lost, "{form}: {shown}");
    }
    // Whose lines are repeated is not the MTA's.
    let other =
        format!("Nov 22 22:44:00 mta dovecot: x\nNov 22 22:44:00 mta last message repeated 2 times\n{TRUSTED}{SENT}");
    assert_eq!(replay_lines(&other, &[]).1["left-out"]["lines-lost-by-syslog"], 0);
}

#[test]
fn a_session_over_midnight_in_files_named_by_their_date_is_one() {
    let exim = [
        "2026-11-22 23:59:59 1xUwZC-0006Ou-0S [203.0.113.9] SSL verify error: depth=0 error=certificate has expired \
         cert=/CN=mx.a.test\n",
        "2026-11-23 00:00:00 1xUwZC-0006Ou-0S == user@a.test R=r T=t defer (-37) H=mx.a.test [203.0.113.9]: TLS session: \
         (SSL_connect): error:0A000086:SSL routines::certificate verify failed\n",
    ]
    .map(str::to_owned);
    let at = |text: &str, time: &str| text.replace("Nov 22 22:44:00", time).replace("Nov 22 22:44:01", time);
    let postfix = [at(TRUSTED, "Nov 22 23:59:59"), at(SENT, "Nov 23 00:00:00")];
    for (lines, name, sessions) in [(postfix, "maillog-", (1, 0)), (exim, "mainlog-", (0, 1))] {
        let folder = tempfile::tempdir().unwrap();
        let [old, new] = ["20261122", "20261123"].map(|day| folder.path().join(format!("{name}{day}")));
        std::fs::write(&old, &lines[0]).unwrap();
        std::fs::write(&new, &lines[1]).unwrap();
        let arguments = ["--timezone", "UTC", "--year", "2026", "--json", old.to_str().unwrap()];
        let shown = json(&replay(&arguments, &new).stdout);
        let summary = &shown["results"][0]["summary"];
        let counts = ["successful", "failure"].map(|what| summary[format!("total-{what}-session-count")].as_u64());
        assert_eq!(counts, [Some(sessions.0), Some(sessions.1)], "{shown}");
        assert_eq!(shown["results"].as_array().unwrap().len(), 1, "{shown}");
        // The cause is in the file of the day before.
        let result_type = &shown["results"][0]["failure-details"][0]["result-type"];
        assert!(sessions.1 == 0 || result_type == "certificate-expired", "{shown}");
    }
}

#[test]
fn faults_are_one_line_with_a_status() {
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("other.log");
    std::fs::write(&other, "not a mail log\n".repeat(1001)).unwrap();
    let missing = folder.path().join("missing");
    for (arguments, log, status, text) in [
        (&["--mta", "postfix"][..], &missing, 66, "cannot be read: No such file"),
        (&["--timezone", "Mars"], &other, 64, "invalid time zone \"Mars\""),
        (&["--policies", missing.to_str().unwrap()], &other, 66, "cannot be read"),
    ] {
        let output = replay(arguments, log);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{error}");
        assert!(error.contains(text) && error.lines().count() == 1, "{error}");
        assert!(output.stdout.is_empty());
    }
}

/// Replays the lines as a log of 2026 in UTC: the status, what was printed as JSON, and what was said.
fn replay_lines(lines: &str, arguments: &[&str]) -> (Option<i32>, serde_json::Value, String) {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("mail.log");
    std::fs::write(&log, lines).unwrap();
    let output = replay(&[&["--timezone", "UTC", "--year", "2026", "--json"], arguments].concat(), &log);
    (output.status.code(), json(&output.stdout), String::from_utf8(output.stderr).unwrap())
}

const TRUSTED: &str = "Nov 22 22:44:00 mta postfix/smtp[1]: Trusted TLS connection established to \
    mx.a.test[203.0.113.1]:25: TLSv1.3 with cipher TLS_AES_256_GCM_SHA384 (256/256 bits)\n";
const SENT: &str = "Nov 22 22:44:01 mta postfix/smtp[1]: 3A3A3A3A3A: to=<u@a.test>, relay=mx.a.test[203.0.113.1]:25, \
    delay=1, delays=0/0/1/0, dsn=2.0.0, status=sent (250 ok)\n";

/// Password guessing and other programs can fill a log for hours.
#[test]
fn the_mta_is_told_by_the_first_line_that_is_recognized() {
    let guessing = "Nov 22 00:00:00 mta postfix/smtps/smtpd[4]: connect from unknown[192.0.2.99]\n".repeat(1500);
    let exim =
        "2026-11-22 22:44:00 1qK9wn-000VjD-0A => u@a.test R=r T=t H=mx.a.test [203.0.113.1] X=TLS1.3:X:256 CV=yes\n";
    // A syslog daemon logs lost lines beside any MTA.
    let lost = "Nov 22 00:00:01 mta rsyslogd: imuxsock lost 1042 messages from pid 456 due to rate-limiting\n";
    for sessions in [format!("{TRUSTED}{SENT}"), exim.to_owned(), format!("{lost}{exim}")] {
        let (status, counted, said) = replay_lines(&format!("{guessing}{sessions}"), &[]);
        assert_eq!(status, Some(0), "{said}");
        assert_eq!(counted["results"][0]["summary"]["total-successful-session-count"], 1, "{counted}");
        assert_eq!(counted["lines"]["read"], 1500 + sessions.lines().count(), "{counted}");
    }
}

#[test]
fn a_log_without_a_recognized_line_has_a_status_of_its_own() {
    let nameless = "<22>1 2026-11-22T22:44:11Z mta postfix 1520 - -  3A3A3A3A3A: to=<u@a.test>, \
        relay=mx.a.test[203.0.113.1]:25, delay=1, delays=0/0/1/0, dsn=2.0.0, status=sent (250 2.0.0 OK)\n";
    for (lines, arguments, status, text) in [
        ("not a mail log\n", &[][..], Some(65), "no line of 1 was recognized: none is of Postfix or Exim"),
        ("not a mail log\n", &["--mta", "exim"], Some(65), ", such as \"not a mail log\"; nothing was counted"),
        (TRUSTED, &["--mta", "exim"], Some(65), "no line of 1 was recognized"),
        (nameless, &[], Some(65), "permitSlashInProgramName"),
        ("", &[], Some(0), ""),
        // Read, and there was nothing to count.
        ("Nov 22 22:44:00 mta postfix/lmtp[1]: connect to x\n", &[], Some(0), ""),
        ("2026-11-22 22:44:00 1qK9wn-000VjD-0A Message is frozen\n", &[], Some(0), ""),
        (
            r#"{"log":"Nov 22 22:44:00 mta postfix/lmtp[1]: connect to x","time":"2026-11-22T22:44:00Z"}"#,
            &[],
            Some(0),
            "",
        ),
        (
            r#"{"__REALTIME_TIMESTAMP":"1795387440000000","SYSLOG_IDENTIFIER":"postfix/lmtp","MESSAGE":"connect to x"}"#,
            &[],
            Some(0),
            "",
        ),
    ] {
        let (got, counted, said) = replay_lines(lines, arguments);
        assert_eq!(got, status, "{said}");
        assert!(said.contains(text) && said.lines().count() <= 1, "{said}");
        assert!(counted["results"].is_array(), "{counted}");
    }
    let (status, counted, _) = replay_lines(&format!("{nameless}{TRUSTED}{SENT}"), &[]);
    assert_eq!((status, &counted["left-out"]["lines-without-program-name"]), (Some(0), &1.into()), "{counted}");
    assert!(counted["warnings"][0].as_str().unwrap().contains("permitSlashInProgramName"), "{counted}");
}

/// A word that a new version has changed, and lines that journald left out.
#[test]
fn lines_that_are_not_recognized_and_gaps_are_shown() {
    let renamed = TRUSTED.replace("established to", "set up with");
    let gap = "Nov 22 22:44:02 mta systemd-journald[9]: Suppressed 42 messages from postfix@-.service\n";
    let (status, counted, said) = replay_lines(&format!("{renamed}{SENT}{gap}"), &[]);
    assert_eq!((status, said.is_empty()), (Some(0), true), "{said}");
    let left_out = &counted["left-out"];
    assert_eq!(left_out["lines-not-recognized"], serde_json::json!({"unknown smtp text": 1}), "{counted}");
    assert_eq!(left_out["lines-lost-by-syslog"], 42, "{counted}");
    let warnings: Vec<_> = counted["warnings"].as_array().unwrap().iter().map(|w| w.as_str().unwrap()).collect();
    assert!(warnings[0].starts_with("1 line may be about TLS sessions"), "{counted}");
    assert!(warnings[1].starts_with("42 lines are missing"), "{counted}");
    let sample = &left_out["samples"][0];
    assert_eq!(sample["family"], "unknown smtp text", "{counted}");
    assert_eq!(sample["line"].as_str().unwrap(), renamed.trim_end(), "{counted}");
}

/// As in the daemon: nobody on a local network has a policy, and a content filter is no MX host.
#[test]
fn sessions_with_local_hosts_are_left_out_and_shown() {
    for host in ["127.0.0.1", "::1", "10.1.2.3", "192.168.1.1"] {
        let line = format!(
            "Nov 22 22:44:00 mta postfix/smtp[1]: 4WzPS31N13z8slH: to=<u@a.test>, relay=filter[{host}]:10026, delay=0.2, \
             delays=0.1/0/0.1/0, dsn=4.7.4, status=deferred (TLS is required, but was not offered by host filter[{host}])\n"
        );
        let (status, counted, _) = replay_lines(&line, &[]);
        assert_eq!((status, &counted["results"]), (Some(0), &serde_json::json!([])), "{counted}");
        assert_eq!(counted["left-out"]["sessions-to-local-networks"], 1, "{counted}");
        assert!(counted["warnings"][0].as_str().unwrap().contains("local networks"), "{counted}");
    }
}
