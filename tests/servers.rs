//! What the receiving servers recorded, against what Exim's log comes to: `fixtures/exim-<version>/<case>.servers.json`.
//!
//! That file has, for each server, its connections by what became of TLS: `succeeded` (mail was sent over it), `failed` (it
//! was begun, and no mail followed over it), `refused` (the server refused STARTTLS), `clear` (no STARTTLS). A log that is
//! blind for a session is named in [`BLIND`], with the reason; nothing else may differ.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// (case, succeeded, failed): how many sessions of the servers' record the log of either version leaves out, and why.
const BLIND: [(&str, i64, i64, &str); 5] = [
    ("inject-4xx", 1, 0, "`==` has no `X=`: a deferred recipient does not show that TLS was there"),
    ("inject-crlf", 1, 0, "the same"),
    ("mx2-enc", 0, 1, "required TLS fails at one MX and succeeds at the next: Exim logs nothing of the first"),
    ("dane-clientcert", 0, 1, "a reset after the handshake, met while writing: nothing of TLS in the log"),
    ("enc-clientcert", 0, 1, "the same, where the reset is met while writing"),
];

/// Failures that are no session at the server: nothing was begun there, or no connection made.
const NO_SESSION: [&str; 3] = ["starttls-not-supported", "dnssec-invalid", "dane-required"];

#[test]
fn exim_s_log_comes_to_what_the_servers_recorded() {
    for folder in ["exim-4.96", "exim-4.98.2"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(folder);
        let (mut equal, mut blind) = (0, Vec::new());
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            let Some(case) = name.strip_suffix(".servers.json") else { continue };
            let servers: BTreeMap<String, BTreeMap<String, i64>> =
                serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            let recorded = |what: &str| servers.values().filter_map(|server| server.get(what)).sum::<i64>();
            let (succeeded, failed) = counted(&folder.join(format!("{case}.log")));
            let missing = (recorded("succeeded") - succeeded, recorded("failed") - failed);
            match BLIND.iter().find(|(blind, ..)| *blind == case) {
                None => {
                    assert_eq!(missing, (0, 0), "{name}");
                    equal += 1;
                }
                Some((_, succeeded, failed, reason)) => {
                    let raced = case.ends_with("-clientcert") && missing == (0, 0);
                    assert!(raced || missing == (*succeeded, *failed), "{name}: {missing:?}");
                    blind.push(format!(
                        "{case}: {} succeeded and {} failed are not in the log: {reason}",
                        missing.0, missing.1
                    ));
                }
            }
        }
        println!(
            "{}: {equal} scenarios equal to the servers' record; blind:\n  {}",
            folder.display(),
            blind.join("\n  ")
        );
        assert!(equal >= 100 && blind.len() == BLIND.len());
    }
}

/// Sessions that succeeded and failed, under no policy: what was required is in the log.
fn counted(log: &Path) -> (i64, i64) {
    let output = Command::new(env!("CARGO_BIN_EXE_tlswarden"))
        .args(["replay", "--mta", "exim", "--timezone", "UTC", "--json"])
        .arg(log)
        .output()
        .unwrap();
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = shown["results"].as_array().unwrap();
    let succeeded = rows.iter().map(|row| row["summary"]["total-successful-session-count"].as_i64().unwrap()).sum();
    let details = rows.iter().flat_map(|row| row["failure-details"].as_array().unwrap());
    let at_the_server = details.filter(|detail| !NO_SESSION.contains(&detail["result-type"].as_str().unwrap()));
    (succeeded, at_the_server.map(|detail| detail["failed-session-count"].as_i64().unwrap()).sum())
}
