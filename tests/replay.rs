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
    let mut arguments = vec!["--mta", mta, "--year", "2026", "--timezone", "UTC", "--json"];
    let policies = log.with_file_name(format!("{}.policies.toml", case(log)));
    if policies.exists() {
        arguments.extend(["--policies", policies.to_str().unwrap()]);
    }
    let output = replay(&arguments, log);
    assert!(output.status.success(), "{}: {}", log.display(), String::from_utf8_lossy(&output.stderr));
    json(&output.stdout)
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

#[test]
fn faults_are_one_line_with_a_status() {
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("other.log");
    std::fs::write(&other, "not a mail log\n".repeat(1001)).unwrap();
    let missing = folder.path().join("missing");
    for (arguments, log, status, text) in [
        (&["--mta", "postfix"][..], &missing, 66, "cannot be read: No such file"),
        (&["--mta", "auto"], &other, 64, "no line of Postfix's or Exim's in the first 1000"),
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
