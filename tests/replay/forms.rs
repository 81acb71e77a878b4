//! The logs of the same scenarios in other forms: rsyslog's, the journal, other log levels, more of Exim's selectors.
//!
//! `fixtures/<mta>-<version>/<case>.<form>.log` (and `<case>.journal`) is held to the counts of `<case>.json`. Each form is of
//! another run of the same scenario with the same servers, so that the counts are the same; where they are not, the reason
//! stands in [`DIFFERENT`]. `cargo test --test replay -- --nocapture forms` prints the table.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{case, counted, form, json, logs};

/// How a form differs from the main one.
enum Differs {
    /// The failures are the same, and some or all of the sessions that succeeded are not in it.
    FewerSuccesses,
    /// It has so many sessions: (successful, failed).
    Has(u64, u64),
}
use Differs::{FewerSuccesses, Has};

/// (folder, forms, cases, how, why): every difference there is.
type Difference = (&'static str, &'static [&'static str], &'static [&'static str], Differs, &'static str);

const DIFFERENT: &[Difference] = &[
    (
        "postfix-3.7.11",
        &["l0"],
        &[
            "alias",
            "dane-2mx",
            "dane-ok",
            "dane-resume",
            "dane-ta",
            "dane-unusable",
            "enc-ok",
            "inject-4xx",
            "inject-5xx",
            "may-anon",
            "may-clientcert",
            "may-ok",
            "may-selfsigned",
            "multi-rcpt-one-domain",
            "multi-rcpt-two-domains",
            "mx2-enc",
            "mx2-may",
            "resume-may",
            "resume-untrusted",
            "sts-fetcherr",
            "sts-ok",
            "v6only",
        ],
        FewerSuccesses,
        "at smtp_tls_loglevel = 0 a session that succeeds leaves no line",
    ),
    (
        "postfix-3.10.13",
        &["l0"],
        &["alias", "dane-resume", "multi-rcpt-two-domains", "resume-may", "resume-untrusted"],
        FewerSuccesses,
        "3.10 does not report a resumed TLS session (smtp_tlsrpt_skip_reused_handshakes), and at level 0 it leaves no line",
    ),
    (
        "postfix-3.10.13",
        &["l0"],
        &["sts-testing-selfsigned"],
        Has(1, 0),
        "at level 0 Postfix's own result counts under a policy in testing mode: no line shows the certificate",
    ),
    (
        "postfix-3.7.11",
        &["trad", "iso", "l2"],
        &["reuse-sts"],
        Has(2, 0),
        "another run: the cached connection had timed out (DISCONNECT) before the second message",
    ),
    ("postfix-3.7.11", &["trad", "iso"], &["reuse-ok"], Has(4, 0), "another run: the same"),
    (
        "postfix-3.7.11",
        &["trad", "iso"],
        &["may-hangup"],
        Has(0, 1),
        "another run: the message was a second old at its first attempt, so clear text followed at once, without a retry",
    ),
    (
        "exim-4.96",
        &["debian", "rich", "syslog"],
        &["dane-clientcert"],
        Has(0, 1),
        "another run, a race: the server's reset is met as Exim reads (a TLS failure in the log), not as it writes (none)",
    ),
    ("exim-4.96", &["rich"], &["enc-clientcert"], Has(0, 0), "another run, the same race: it is met as Exim writes"),
    ("exim-4.98.2", &["rich"], &["enc-clientcert"], Has(0, 1), "another run, the same race: it is met as Exim reads"),
];

/// (folder, form, the least logs that there must be).
const FORMS: [(&str, &str, usize); 15] = [
    ("postfix-3.7.11", "trad", 100),
    ("postfix-3.7.11", "iso", 100),
    ("postfix-3.7.11", "l0", 40),
    ("postfix-3.7.11", "l2", 40),
    ("postfix-3.7.11", "journal", 40),
    ("postfix-3.10.13", "trad", 100),
    ("postfix-3.10.13", "iso", 100),
    ("postfix-3.10.13", "l0", 40),
    ("postfix-3.10.13", "l2", 40),
    ("postfix-3.10.13", "skipno", 7),
    ("postfix-3.10.13", "nosock", 2),
    ("exim-4.96", "rich", 100),
    ("exim-4.96", "debian", 100),
    ("exim-4.96", "syslog", 100),
    ("exim-4.98.2", "rich", 100),
];

#[test]
fn other_forms_count_as_the_main_one_but_for_what_is_listed() {
    let (mut rows, mut wrong, mut met) = (Vec::new(), Vec::new(), BTreeSet::new());
    for (folder, wanted_form, least) in FORMS {
        let mta = folder.split('-').next().unwrap();
        let (mut same, mut other) = (0, Vec::new());
        for log in logs(folder).iter().filter(|log| form(log) == wanted_form) {
            let got = counted(mta, log);
            assert_eq!(got["lines"]["malformed"], 0, "{}", log.display());
            let main = json(&std::fs::read(log.with_file_name(format!("{}.json", case(log)))).unwrap());
            let listed = DIFFERENT.iter().position(|(of, forms, cases, ..)| {
                *of == folder && forms.contains(&wanted_form) && cases.contains(&case(log))
            });
            let (got, main) = (&got["results"], &main["results"]);
            match listed {
                None if got == main => same += 1,
                None => wrong.push(format!("{}: not listed: {got}\nmain form: {main}", log.display())),
                Some(number) => {
                    let (.., how, _) = &DIFFERENT[number];
                    if got == main || !how.holds(main, got) {
                        wrong.push(format!("{}: not as listed: {got}\nmain form: {main}", log.display()));
                    }
                    met.insert((number, case(log).to_owned()));
                    other.push(number);
                }
            }
        }
        assert!(same + other.len() >= least, "{folder}: only {} logs in the form {wanted_form}", same + other.len());
        rows.push(format!("{folder:16} {wanted_form:8} {same:5} {:6}", other.len()));
    }
    println!("{:16} {:8} {:>5} {:>6}", "MTA", "form", "same", "other");
    rows.iter().for_each(|row| println!("{row}"));
    for (number, (folder, forms, cases, _, reason)) in DIFFERENT.iter().enumerate() {
        println!("{folder}, {}: {}:\n    {reason}", forms.join(" "), cases.join(" "));
        for case in *cases {
            assert!(met.contains(&(number, (*case).to_owned())), "{folder}: {case}: no log of it in {forms:?}");
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

impl Differs {
    fn holds(&self, main: &Value, got: &Value) -> bool {
        let ((main_successful, main_failed), (successful, failed)) = (sums(main), sums(got));
        match self {
            FewerSuccesses => successful < main_successful && failed == main_failed && types(main) == types(got),
            Has(successes, failures) => (successful, failed) == (*successes, *failures),
        }
    }
}

/// All sessions of a result: (successful, failed).
fn sums(results: &Value) -> (u64, u64) {
    let each = results.as_array().unwrap().iter().map(|row| &row["summary"]);
    let count = |summary: &Value, what: &str| summary[format!("total-{what}-session-count")].as_u64().unwrap();
    each.fold((0, 0), |sum, row| (sum.0 + count(row, "successful"), sum.1 + count(row, "failure")))
}

/// Failures by domain and result type.
fn types(results: &Value) -> BTreeMap<(String, String), u64> {
    let mut types = BTreeMap::new();
    for row in results.as_array().unwrap() {
        for detail in row["failure-details"].as_array().into_iter().flatten() {
            let key = (row["recipient-domain"].to_string(), detail["result-type"].to_string());
            *types.entry(key).or_default() += detail["failed-session-count"].as_u64().unwrap();
        }
    }
    types
}
