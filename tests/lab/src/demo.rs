//! `lab try`: one day in the life of a mail host, in under a minute, on any machine.
//!
//! Takes: nothing. Gives: every step printed, with what was expected and what came; the files stay in a temporary folder.
//! Postfix's lines are real (`fixtures/README.md`); Postfix itself is not needed. The daemon, its store, the policies over
//! DNS and HTTPS, the reports and their signatures are the real thing.
//! When it fails: the step says what was expected, and the end counts the checks that did not hold.
//! Not here: the real Postfix (`tests/postfix.rs`).

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::ca::Fault;
use crate::daemon::{Daemon, Program};
use crate::https::Answer;
use crate::report::{self, Report, Totals};
use crate::smtp::Mail;
use crate::world::{Domain, Options, SENDER, Server, Tlsa, World};
use crate::{dkim, socketmap};

const LOG: &str = include_str!("../fixtures/postfix-3.7.11.log");
/// The one line that is ours: the queue manager takes up a deferred message just after midnight, as it would have.
const NEXT_DAY: &str = "Nov 23 00:05:00 mta postfix/qmgr[19241]: 39D819F6BB6: from=<tester@mta.lab.test>, size=273, \
                        nrcpt=1 (queue active)\n";
/// Shortly before the first line.
const MORNING: &str = "2026-11-22T01:38:50Z";
/// Shortly after the day's end.
const MIDNIGHT: &str = "2026-11-23T00:05:10Z";
/// Later that night.
const LATER: &str = "2026-11-23T00:30:00Z";
/// How long the reports may take.
const REPORTS: Duration = Duration::from_secs(30);

/// A domain, and what must come of it.
struct Case {
    domain: Domain,
    what: &'static str,
    /// How the answer to Postfix begins.
    answer: &'static str,
    policy_types: &'static [&'static str],
    successful: u64,
    failed: u64,
    details: &'static [(&'static str, u64)],
}

/// Plays the day. `program` is how the daemon is run. Returns whether every check held.
pub async fn run(program: &Program) -> Result<bool, String> {
    let cases = cases();
    let domains: Vec<Domain> = cases.iter().map(|c| c.domain.clone()).collect();
    let mut checks = Checks::default();

    let mut world = World::start(Options::default(), &domains).await?;
    world.keep_folder();
    println!("1. A closed mail world on loopback. Its files are in {}", world.folder().display());
    println!("     DNS, in the part of this host's validating resolver   {}", world.dns.address());
    println!("     HTTPS hosts of the MTA-STS policies                   {}", world.policy_hosts.address());
    println!("     an MTA that takes our reports                         {}", world.submission().address());
    println!("     {} mail domains, each with something of its own:", cases.len());
    for case in &cases {
        println!("       {:<28} {}", case.domain.name(), case.what);
    }

    println!(
        "\n2. The daemon starts, on {MORNING} by its clock: tlswarden serve --config {}",
        world.config().display()
    );
    fs::write(world.log(), "").map_err(|e| e.to_string())?;
    world.configure(Some(MORNING)).map_err(|e| e.to_string())?;
    let daemon = Daemon::start(program, &world).await?;
    checks.that("it answers on its socketmap socket", true, || world.socketmap().display().to_string());

    println!("\n3. Postfix asks which TLS policy each domain published (smtp_tls_policy_maps), twice each");
    ask(&world, &cases, &mut checks).await?;

    let lines = LOG.lines().count();
    println!("\n4. Postfix delivers and writes {lines} lines to {}, which the daemon follows", world.log().display());
    append(&world, LOG).await?;
    let counted = counted(program, &world, &cases).await?;
    for case in &cases {
        let totals = counted.get(case.domain.name()).cloned().unwrap_or_default();
        checks.that(case.domain.name(), case.holds(&totals), || case.difference(&totals));
    }

    println!("\n5. The daemon is stopped (SIGTERM) and starts again on {MIDNIGHT}: the day is over");
    daemon.stop().await?;
    checks.that("it ended with exit code 0", true, String::new);
    world.configure(Some(MIDNIGHT)).map_err(|e| e.to_string())?;
    let daemon = Daemon::start(program, &world).await?;
    append(&world, NEXT_DAY).await?;
    let wanted = cases.iter().filter(|c| c.domain.report_address().is_some()).count();
    let mail = arrived(&world, wanted).await;
    checks.that("one report for each domain that asks for one", mail.len() == wanted, || {
        format!("{} of {wanted} arrived", mail.len())
    });

    println!("\n6. The reports as they arrived: signatures checked with the keys in DNS, JSON against RFC 8460");
    let folder = world.folder().join("reports");
    fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
    let mut shown = None;
    for case in cases.iter().filter(|c| c.domain.report_address().is_some()) {
        let received = receive(&world, case, &mail, &folder, &mut checks).await?;
        if case.failed > 0 && shown.is_none() {
            shown = received;
        }
    }
    let silent: Vec<&str> =
        cases.iter().filter(|c| c.domain.report_address().is_none()).map(|c| c.domain.name()).collect();
    let unasked = mail.iter().filter(|m| m.to.iter().any(|to| silent.iter().any(|d| to.ends_with(*d)))).count();
    checks.that(
        &format!("no report for {}, which publishes no _smtp._tls record", silent.join(", ")),
        unasked == 0,
        || format!("{unasked} arrived"),
    );

    println!("\n7. Stopped and started once more, on {LATER}: nothing is sent twice");
    daemon.stop().await?;
    world.configure(Some(LATER)).map_err(|e| e.to_string())?;
    let daemon = Daemon::start(program, &world).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let now = world.submission().record().mail.len();
    checks.that("no more mail came", now == mail.len(), || format!("{now} instead of {}", mail.len()));
    daemon.stop().await?;

    if let Some((mail, report)) = shown {
        println!("\nOne of the reports, as a receiver sees it ({}):\n", report.domain);
        show(&mail, &report);
    }
    println!("\nTo look at: {}", world.folder().display());
    println!("  tlswarden.toml  the configuration          mail.log     what Postfix wrote");
    println!(
        "  daemon.log      what the daemon said       reports/     every report: .eml as it arrived, .json its content"
    );
    println!("  store/          the daemon's store         Remove it with: rm -r {}", world.folder().display());
    println!("\n{} checks, {} did not hold", checks.made, checks.failed);
    Ok(checks.failed == 0)
}

/// The domains of the log, with the policies that the lines were written under.
fn cases() -> Vec<Case> {
    let case = |domain: Domain, what, answer, policy_types, successful, failed, details| Case {
        domain,
        what,
        answer,
        policy_types,
        successful,
        failed,
        details,
    };
    let domain = |name: &str| Domain::new(name).reports_to(&format!("tlsrpt@{name}"));
    let faulty = Server::Faulty;
    let enforce = |name: &str, server| domain(name).host("mx", server).sts("enforce", "mx");
    let none: &[&str] = &["no-policy-found"];
    let sts: &[&str] = &["sts"];
    vec![
        case(domain("may-ok.test").host("mx", Server::Sound), "publishes no policy", "NOTFOUND", none, 1, 0, &[]),
        case(
            domain("may-selfsigned.test").host("mx", faulty(Fault::SelfSigned)).sts_answer(Answer::Status(404)),
            "announces an MTA-STS policy, but its policy host answers 404",
            "NOTFOUND",
            sts,
            1,
            0,
            &[("sts-policy-fetch-error", 1)],
        ),
        case(
            enforce("verify-selfsigned.test", faulty(Fault::SelfSigned)),
            "MTA-STS enforce; the MX has a self-signed certificate",
            "OK secure match=mx.verify-selfsigned.test",
            sts,
            0,
            1,
            &[("certificate-not-trusted", 1)],
        ),
        case(
            enforce("verify-wronghost.test", faulty(Fault::WrongName)),
            "MTA-STS enforce; the certificate is for another name",
            "OK secure match=mx.verify-wronghost.test",
            sts,
            0,
            1,
            &[("certificate-host-mismatch", 1)],
        ),
        case(
            enforce("sts-ok.test", Server::Sound),
            "MTA-STS enforce; all is well",
            "OK secure match=mx.sts-ok.test",
            sts,
            1,
            0,
            &[],
        ),
        case(
            enforce("sts-otherca.test", faulty(Fault::OtherAuthority)),
            "MTA-STS enforce; a certificate of an unknown authority",
            "OK secure match=mx.sts-otherca.test",
            sts,
            0,
            1,
            &[("certificate-not-trusted", 1)],
        ),
        case(
            enforce("sts-expired.test", faulty(Fault::Expired)),
            "MTA-STS enforce; the certificate has expired",
            "OK secure match=mx.sts-expired.test",
            sts,
            0,
            1,
            &[("certificate-expired", 1)],
        ),
        case(
            enforce("sts-nostarttls.test", Server::Plain),
            "MTA-STS enforce; the MX does not offer STARTTLS",
            "OK secure match=mx.sts-nostarttls.test",
            sts,
            0,
            1,
            &[("starttls-not-supported", 1)],
        ),
        case(
            domain("sts-mxmismatch.test").host("rogue", Server::Sound).sts("enforce", "mx"),
            "MTA-STS enforce; the MX in DNS is not one of the policy's",
            "OK secure match=mx.sts-mxmismatch.test",
            sts,
            0,
            1,
            &[("validation-failure", 1)],
        ),
        case(
            domain("sts-testing-selfsigned.test").host("mx", faulty(Fault::SelfSigned)).sts("testing", "mx"),
            "MTA-STS testing; a self-signed certificate: delivered, and reported",
            "NOTFOUND",
            sts,
            0,
            1,
            &[("certificate-not-trusted", 1)],
        ),
        case(
            Domain::new("multi-a.test").host("mx", Server::Sound),
            "no policy, wants no reports; three recipients in one session",
            "NOTFOUND",
            none,
            1,
            0,
            &[],
        ),
        case(
            domain("dane-ok.example").signed().dane_host("mx", faulty(Fault::SelfSigned), Tlsa::Matching),
            "DANE; the TLSA record fits",
            "OK dane",
            &["tlsa"],
            1,
            0,
            &[],
        ),
        case(
            domain("dane-2mx.example").signed().dane_host("mx1", Server::Sound, Tlsa::Mismatching).dane_host(
                "mx2",
                faulty(Fault::SelfSigned),
                Tlsa::Matching,
            ),
            "DANE; the TLSA record of the first MX does not fit, that of the second does",
            "OK dane",
            &["tlsa"],
            1,
            1,
            &[("certificate-not-trusted", 1)],
        ),
    ]
}

impl Case {
    fn wanted(&self) -> Totals {
        let details = self.details.iter().map(|&(kind, n)| (kind.to_owned(), n)).collect();
        Totals { successful: self.successful, failed: self.failed, details }
    }

    fn holds(&self, totals: &Totals) -> bool {
        *totals == self.wanted()
    }

    fn difference(&self, totals: &Totals) -> String {
        if self.holds(totals) {
            return line(totals);
        }
        format!("{}; expected {}", line(totals), line(&self.wanted()))
    }
}

/// Counts as one reads them.
fn line(totals: &Totals) -> String {
    let details: String = totals.details.iter().map(|(kind, n)| format!(", {n} {kind}")).collect();
    format!("{} succeeded, {} failed{details}", totals.successful, totals.failed)
}

/// Prints each check as it is made, and counts.
#[derive(Default)]
struct Checks {
    made: usize,
    failed: usize,
}

impl Checks {
    fn that(&mut self, what: &str, holds: bool, came: impl FnOnce() -> String) {
        self.made += 1;
        self.failed += usize::from(!holds);
        let verdict = if holds { "ok    " } else { "FAILED" };
        println!("   {verdict} {what:<28} {}", came());
    }
}

async fn ask(world: &World, cases: &[Case], checks: &mut Checks) -> Result<(), String> {
    for case in cases {
        let name = case.domain.name();
        let mut answers = Vec::new();
        let mut times = Vec::new();
        for _ in 0..2 {
            let begin = Instant::now();
            let answer = socketmap::ask(&world.socketmap(), "policy", name).await;
            answers.push(answer.map_err(|e| format!("the socketmap, asked for {name}: {e}"))?);
            times.push(begin.elapsed());
        }
        let right = answers.iter().all(|a| a.starts_with(case.answer)) && answers[0] == answers[1];
        checks.that(name, right, || {
            let expected = if right { String::new() } else { format!("; expected `{}…`", case.answer) };
            format!("`{}` in {:.1?}, then in {:.0?}{expected}", answers[0], times[0], times[1])
        });
    }
    let fetched = cases.iter().map(|c| world.policy_hosts.requests(c.domain.name())).max().unwrap_or(0);
    checks.that("no policy was fetched twice", fetched <= 1, || format!("{fetched} at most"));
    Ok(())
}

/// Writes to the log as Postfix does: line after line.
async fn append(world: &World, text: &str) -> Result<(), String> {
    let mut log = fs::OpenOptions::new().append(true).open(world.log()).map_err(|e| e.to_string())?;
    for line in text.split_inclusive('\n') {
        log.write_all(line.as_bytes()).map_err(|e| e.to_string())?;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// Waits for `wanted` reports, and a little longer, so that one too many is seen as well.
async fn arrived(world: &World, wanted: usize) -> Vec<Mail> {
    let begin = Instant::now();
    while world.submission().record().mail.len() < wanted && begin.elapsed() < REPORTS {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    tokio::time::sleep(Duration::from_millis(700)).await;
    world.submission().record().mail
}

/// Checks the report of one domain and keeps it as files.
async fn receive(
    world: &World,
    case: &Case,
    mail: &[Mail],
    folder: &std::path::Path,
    checks: &mut Checks,
) -> Result<Option<(Mail, Report)>, String> {
    let name = case.domain.name();
    let address = case.domain.report_address().unwrap_or_default();
    let found: Vec<&Mail> = mail.iter().filter(|m| m.to == [address]).collect();
    let [mail] = found[..] else {
        checks.that(name, false, || format!("{} reports to {address}", found.len()));
        return Ok(None);
    };
    let keep = |ending: &str, octets: &[u8]| {
        let path: PathBuf = folder.join(format!("{name}.{ending}"));
        fs::write(path, octets).map_err(|e| e.to_string())
    };
    keep("eml", &mail.data)?;
    let report = match report::read(&mail.data) {
        Ok(report) => report,
        Err(faults) => {
            checks.that(name, false, || faults.join("; "));
            return Ok(None);
        }
    };
    keep("json", report.json.as_bytes())?;
    let verdicts = dkim::verify(&mail.data, world.dns.address()).await?;
    let mut signed: Vec<String> = Vec::new();
    for key in &world.keys {
        let passes = verdicts.iter().any(|v| {
            v.result.is_ok() && v.domain == SENDER && v.selector == key.selector && v.algorithm == key.algorithm
        });
        signed.push(format!("{} {}", key.algorithm, if passes { "passes" } else { "DOES NOT PASS" }));
    }
    let all_pass = verdicts.len() == world.keys.len() && !signed.iter().any(|s| s.ends_with("NOT PASS"));
    let covered = verdicts.iter().all(|v| {
        ["from", "to", "subject", "tls-report-domain", "tls-report-submitter"]
            .iter()
            .all(|h| v.headers.iter().any(|signed| signed == h))
    });
    let totals = report.totals();
    let types = report.policy_types();
    let right_types = types.iter().all(|t| case.policy_types.contains(t));
    let right_domain = report.domain == name && mail.from == format!("tlsrpt-bounces@{SENDER}");
    let holds = all_pass && covered && case.holds(&totals) && right_types && right_domain;
    checks.that(name, holds, || {
        let mut text = format!("{} ({}); DKIM: {}", case.difference(&totals), types.join(", "), signed.join(", "));
        if !covered {
            text += "; a header that should be signed is not";
        }
        if !right_types {
            text += &format!("; expected policy-type {}", case.policy_types.join(" or "));
        }
        if !right_domain {
            text += &format!("; TLS-Report-Domain {}, envelope sender {}", report.domain, mail.from);
        }
        text
    });
    Ok(Some((mail.clone(), report)))
}

/// Prints a report: the headers, the part for people, the JSON.
fn show(mail: &Mail, report: &Report) {
    let text = String::from_utf8_lossy(&mail.data);
    let headers = text.split("\r\n\r\n").next().unwrap_or_default();
    let indented = |text: &str| text.lines().map(|l| format!("    {l}\n")).collect::<String>();
    print!("{}", indented(headers));
    print!("\n{}", indented(report.text.trim_end()));
    println!("\n    [{}]", report.file_name);
    let pretty = serde_json::to_string_pretty(&report.value).unwrap_or_default();
    print!("{}", indented(&pretty));
}

/// What the daemon says that it has counted, by recipient domain; waits until all is there.
async fn counted(program: &Program, world: &World, cases: &[Case]) -> Result<BTreeMap<String, Totals>, String> {
    let begin = Instant::now();
    loop {
        let counted = crate::daemon::counted(program, world, "2026-11-22").await?;
        let whole = cases.iter().all(|c| counted.get(c.domain.name()).is_some_and(|t| c.holds(t)));
        if whole || begin.elapsed() > Duration::from_secs(10) {
            return Ok(counted);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every domain that the log delivers to is one of the world's, and its MX hosts are those of the log.
    #[tokio::test]
    async fn the_world_fits_the_log() {
        let cases = cases();
        let domains: Vec<Domain> = cases.iter().map(|c| c.domain.clone()).collect();
        let world = World::start(Options::default(), &domains).await.unwrap();
        let mut delivered = std::collections::BTreeSet::new();
        for line in LOG.lines().filter(|line| line.contains(": to=<")) {
            let domain = line.split_once('@').unwrap().1.split_once('>').unwrap().0;
            let host = line.split_once("relay=").unwrap().1.split_once('[').unwrap().0;
            assert!(world.dns.zone().has_mx(domain, host), "{line}");
            delivered.insert(domain);
        }
        let described: std::collections::BTreeSet<&str> = domains.iter().map(Domain::name).collect();
        assert_eq!(delivered, described);
    }
}
