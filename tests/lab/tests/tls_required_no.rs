//! Mail with `TLS-Required: no` (RFC 8689 §5) through a real Postfix 3.10, to domains about which it has asked for other
//! mail: what it delivers, what its log says, and that no such session is counted under a policy that it was not held to.
//!
//! Needs root, and a Postfix in a root folder of its own (`tests/chroot trixie`). Prints the log lines and the counts
//! (`--nocapture`).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use lab::ca::Fault;
use lab::daemon::{Daemon, Program, line, reports};
use lab::host;
use lab::postfix::{Installation, Postfix};
use lab::smtp::submit;
use lab::world::{Domain, Options, Server, Tlsa, World};

const TEST: &str = "mail_without_required_tls_is_counted_under_no_policy";

#[test]
fn mail_without_required_tls_is_counted_under_no_policy() {
    match host::inside() {
        Some(root) => {
            let installation = Installation::at(Path::new(&root)).unwrap();
            tokio::runtime::Runtime::new().unwrap().block_on(play(&installation));
        }
        None => {
            let root = Installation::of_release("trixie").unwrap_or_else(|e| panic!("{e}")).root().to_owned();
            host::run_inside(TEST, &root).unwrap_or_else(|e| panic!("{e}"));
        }
    }
}

/// A domain, what becomes of mail with the header, and what is counted of one message without it and one with it.
struct Case {
    domain: Domain,
    delivered_over: &'static str,
    counted: &'static str,
}

fn cases() -> Vec<Case> {
    let at = |name: &str| Domain::new(name).reports_to("tlsrpt@reports.test");
    let own = Server::Faulty(Fault::SelfSigned);
    let sts = |name: &str, server, mode| at(name).host("mx", server).sts(mode, "mx");
    let dane = |name: &str, server, tlsa| at(name).signed().dane_host("mx", server, tlsa);
    let case = |domain, delivered_over, counted| Case { domain, delivered_over, counted };
    vec![
        case(sts("enforce-sound.test", Server::Sound, "enforce"), "Trusted TLS", "no-policy-found: 1 ok; sts: 1 ok"),
        case(
            sts("enforce-selfsigned.test", own, "enforce"),
            "Untrusted TLS",
            "no-policy-found: 1 ok; sts: 1 failed, 1 certificate-not-trusted/self-signed_certificate",
        ),
        case(
            sts("enforce-plain.test", Server::Plain, "enforce"),
            "clear text",
            "sts: 1 failed, 1 starttls-not-supported",
        ),
        // As without a policy: so is all mail to it.
        case(
            sts("testing-selfsigned.test", own, "testing"),
            "Untrusted TLS",
            "sts: 2 failed, 2 certificate-not-trusted",
        ),
        case(
            dane("dane-sound.example", Server::Sound, Tlsa::Matching),
            "Trusted TLS",
            "no-policy-found: 1 ok; tlsa: 1 ok",
        ),
        case(
            dane("dane-bad.example", own, Tlsa::Mismatching),
            "Untrusted TLS",
            "no-policy-found: 1 ok; tlsa: 1 failed, 1 certificate-not-trusted/dane-no-match",
        ),
        case(
            dane("dane-plain.example", Server::Plain, Tlsa::Matching),
            "clear text",
            "tlsa: 1 failed, 1 starttls-not-supported",
        ),
    ]
}

async fn play(installation: &Installation) {
    host::wait_for_room_before_midnight(Duration::from_secs(120));
    let cases = cases();
    let domains: Vec<Domain> = cases.iter().map(|case| case.domain.clone()).collect();
    let options = Options {
        submission: Some(Postfix::SMTPD),
        postfix: installation.short_version(),
        ..Options::on_standard_ports()
    };
    let world = World::start(options, &domains).await.unwrap();
    let program = Program::lab(env!("CARGO_BIN_EXE_lab"));
    let _daemon = Daemon::start(&program, &world).await.unwrap();
    let postfix = Postfix::start(&world, installation, "may").unwrap();
    for (user, header) in [("ordinary", ""), ("in-spite", "TLS-Required: no\n")] {
        let from = postfix.log_length();
        for case in &cases {
            let to = format!("{user}@{}", case.domain.name());
            let text = format!("Subject: hello\n{header}\nhello");
            submit(Postfix::SMTPD, "someone@sender.test", &[&to], &text).await.unwrap();
            let tried = postfix.await_delivery(&to, from).unwrap();
            assert!(header.is_empty() || tried.contains(" status=sent "), "{tried}");
        }
        if header.is_empty() {
            continue;
        }
        let log = fs::read(world.log()).unwrap();
        let log = String::from_utf8_lossy(&log[from..]).into_owned();
        println!("Postfix {}: the log of mail with `TLS-Required: no`:", installation.version());
        log.lines().filter(|line| line.contains("smtp[")).for_each(|line| println!("{line}"));
        for case in &cases {
            let host = case.domain.hosts().next().unwrap();
            let session = log.lines().find(|line| line.contains(&format!(" TLS connection established to {host}[")));
            let over = session.map_or("clear text", |line| line.split("smtp[").nth(1).unwrap_or(line));
            assert!(over.contains(case.delivered_over), "{host}: {over}");
        }
    }
    let wanted: BTreeMap<&str, &str> = cases.iter().map(|case| (case.domain.name(), case.counted)).collect();
    let limit = Instant::now() + Duration::from_secs(60);
    loop {
        let reports = reports(&program, &world, &host::today()).await.unwrap();
        let counted: BTreeMap<String, String> =
            reports.iter().map(|(domain, report)| (domain.clone(), sorted(&line(report)))).collect();
        let same = counted.iter().map(|(domain, line)| (&**domain, &**line)).eq(wanted.iter().map(|(a, b)| (*a, *b)));
        if same || Instant::now() > limit {
            counted.iter().for_each(|(domain, line)| println!("{domain:25} {line}"));
            assert!(same, "wanted {wanted:#?}");
            return;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// The policies of a report, in one order.
fn sorted(line: &str) -> String {
    let mut policies: Vec<&str> = line.split("; ").collect();
    policies.sort_unstable();
    policies.join("; ")
}
