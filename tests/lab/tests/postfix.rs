//! A real Postfix sends through the world for a day: it asks our responder, writes the log that we follow and takes our reports.
//!
//! Needs root (network and mount namespaces, Postfix's own users), an installed Postfix, a second, newer one in a chroot
//! (`tests/chroot trixie`), `ip`, `mount` and `unshare`. Where one is missing the test fails and says which.
//! Nothing outside the namespaces and the temporary folder is touched.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use lab::ca::Fault;
use lab::daemon::{Daemon, Program, counted};
use lab::host::{self, DAY, seconds, stamp, today};
use lab::postfix::{Installation, Postfix};
use lab::report::{self, Totals};
use lab::smtp::{Mail, Record, submit};
use lab::world::{Domain, Options, Server, Tlsa, World};
use lab::{dkim, socketmap};

const SOCKETMAP: &str = "127.0.0.1:8461";

#[test]
fn a_day_with_the_real_postfix() {
    run_in_host("a_day_with_the_real_postfix", Installation::of_this_host);
}

#[test]
fn a_day_with_a_newer_postfix() {
    run_in_host("a_day_with_a_newer_postfix", || Installation::of_release("trixie"));
}

fn run_in_host(test: &str, installation: impl FnOnce() -> Result<Installation, String>) {
    match host::inside() {
        Some(root) => {
            let installation = Installation::at(Path::new(&root)).unwrap();
            tokio::runtime::Runtime::new().unwrap().block_on(day(&installation));
        }
        None => {
            let root = installation().unwrap_or_else(|e| panic!("{e}")).root().to_owned();
            host::run_inside(test, &root).unwrap_or_else(|e| panic!("{e}"));
        }
    }
}

/// One domain of the test.
struct Case {
    domain: Domain,
    host: &'static str,
    /// What stands in Postfix's log before ` TLS connection established`.
    trust: Option<&'static str>,
    status: &'static str,
    answer: Option<&'static str>,
    result_type: Option<&'static str>,
}

fn cases() -> Vec<Case> {
    let at = |name: &str| Domain::new(name).reports_to("tlsrpt@reports.test");
    let enforce = |name: &str, server| at(name).host("mx", server).sts("enforce", "mx");
    let case =
        |domain, host, trust, status, answer, result_type| Case { domain, host, trust, status, answer, result_type };
    vec![
        case(
            Domain::new("sts-good.test")
                .host("mx", Server::Sound)
                .sts("enforce", "mx")
                .reports_to("tlsrpt@sts-good.test"),
            "mx.sts-good.test",
            Some("Verified"),
            "sent",
            Some("secure match=mx.sts-good.test"),
            None,
        ),
        case(
            enforce("sts-wrongname.test", Server::Faulty(Fault::WrongName)),
            "mx.sts-wrongname.test",
            None,
            "deferred",
            Some("secure match="),
            Some("certificate-host-mismatch"),
        ),
        case(
            enforce("sts-selfsigned.test", Server::Faulty(Fault::SelfSigned)),
            "mx.sts-selfsigned.test",
            None,
            "deferred",
            Some("secure match="),
            Some("certificate-not-trusted"),
        ),
        case(
            enforce("sts-expired.test", Server::Faulty(Fault::Expired)),
            "mx.sts-expired.test",
            None,
            "deferred",
            Some("secure match="),
            Some("certificate-expired"),
        ),
        case(
            enforce("sts-refuses.test", Server::Refuses),
            "mx.sts-refuses.test",
            None,
            "deferred",
            Some("secure match="),
            Some("starttls-not-supported"),
        ),
        case(
            at("open.test").host("mx", Server::Faulty(Fault::SelfSigned)),
            "mx.open.test",
            Some("Untrusted"),
            "sent",
            None,
            None,
        ),
        case(
            at("dane.example").signed().dane_host("mx", Server::Faulty(Fault::SelfSigned), Tlsa::Matching),
            "mx.dane.example",
            Some("Verified"),
            "sent",
            Some("dane"),
            None,
        ),
        case(
            at("dane-bad.example").signed().dane_host("mx", Server::Sound, Tlsa::Mismatching),
            "mx.dane-bad.example",
            None,
            "deferred",
            Some("dane"),
            Some("certificate-not-trusted"),
        ),
    ]
}

async fn day(installation: &Installation) {
    host::wait_for_room_before_midnight(Duration::from_secs(180));
    let cases = cases();
    let mut domains: Vec<Domain> = cases.iter().map(|c| c.domain.clone()).collect();
    // Where most reports go: it asks for reports itself, so a report about our reports would show.
    domains.push(
        Domain::new("reports.test").host("mx", Server::Sound).sts("enforce", "mx").reports_to("tlsrpt@reports.test"),
    );
    let options = Options {
        submission: Some(Postfix::SMTPD),
        socketmap: Some(SOCKETMAP.parse::<SocketAddr>().unwrap()),
        postfix: installation.short_version(),
        ..Options::on_standard_ports()
    };
    let world = World::start(options, &domains).await.unwrap();
    let program = Program::lab(env!("CARGO_BIN_EXE_lab"));
    // The log does not exist yet: the daemon waits for it.
    let daemon = Daemon::start(&program, &world).await.unwrap();
    let postfix = Postfix::start(&world, installation, "may").unwrap();
    println!("Postfix {}; the world is in {}", installation.version(), world.folder().display());

    asks_with_postmap(&world, &postfix, &cases, installation.map());
    delivers_as_the_policies_say(&world, &postfix, &cases).await;
    let today = today();
    counts_what_the_servers_saw(&program, &world, &cases, &today).await;
    let daemon = defers_without_the_daemon(&program, &world, &postfix, daemon).await;
    let totals = counts_what_the_servers_saw(&program, &world, &cases, &today).await;
    reports_through_the_same_postfix(&program, &world, &postfix, daemon, &cases, &totals, &today).await;
}

/// `postmap -q` over both kinds of socket says what the responder says.
fn asks_with_postmap(world: &World, postfix: &Postfix, cases: &[Case], map: &str) {
    for case in cases {
        for socket in [format!("unix:{}", world.socketmap().display()), format!("inet:{SOCKETMAP}")] {
            let value = postfix.postmap(&format!("socketmap:{socket}:{map}"), case.domain.name()).unwrap();
            match (case.answer, &value) {
                (None, None) => {}
                (Some(begin), Some(value)) if value.starts_with(begin) => {}
                _ => panic!("{} over {socket}: {value:?}, expected {:?}", case.domain.name(), case.answer),
            }
        }
    }
    for no_domain in ["[127.0.1.1]", ".sts-good.test", "127.0.1.1"] {
        let table = format!("socketmap:unix:{}:{map}", world.socketmap().display());
        assert_eq!(postfix.postmap(&table, no_domain).unwrap(), None, "{no_domain}");
    }
}

/// One message to each domain, two recipients each: sent or deferred, over the TLS that the policy wants.
async fn delivers_as_the_policies_say(world: &World, postfix: &Postfix, cases: &[Case]) {
    for case in cases {
        let name = case.domain.name();
        let recipients = [format!("one@{name}"), format!("two@{name}")];
        let to: Vec<&str> = recipients.iter().map(String::as_str).collect();
        submit(Postfix::SMTPD, "someone@sender.test", &to, "Subject: hello\n\nhello").await.unwrap();
    }
    for case in cases {
        for mailbox in ["one", "two"] {
            let line = postfix.await_delivery(&format!("{mailbox}@{}", case.domain.name()), 0).unwrap();
            assert!(line.contains(&format!("status={} ", case.status)), "{}: {line}", case.domain.name());
        }
        let record = world.receiver(case.host).record();
        assert_eq!(record.connections.len(), 1, "{}: {:?}", case.host, record.connections);
        let delivered = record.mail.iter().filter(|m| m.tls && m.to.len() == 2).count();
        assert_eq!(delivered, usize::from(case.status == "sent"), "{}: {:?}", case.host, record.mail);
        if let Some(trust) = case.trust {
            let log = fs::read_to_string(world.log()).unwrap();
            let line = format!("{trust} TLS connection established to {}[", case.host);
            assert!(log.contains(&line), "{line} is not in\n{log}");
        }
    }
}

/// The counts of today equal what the receiving servers wrote down.
async fn counts_what_the_servers_saw(
    program: &Program,
    world: &World,
    cases: &[Case],
    today: &str,
) -> BTreeMap<String, Totals> {
    let wanted: BTreeMap<String, Totals> = cases
        .iter()
        .map(|case| (case.domain.name().to_owned(), seen(&world.receiver(case.host).record(), case.result_type)))
        .collect();
    let begin = Instant::now();
    loop {
        let counted = counted(program, world, today).await.unwrap();
        if counted == wanted {
            return counted;
        }
        let log = || fs::read_to_string(world.log()).unwrap_or_default();
        let waited = begin.elapsed() > Duration::from_secs(20);
        assert!(!waited, "counted\n{counted:#?}\nthe servers saw\n{wanted:#?}\nPostfix wrote\n{}", log());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// A server's record in the words of a report.
fn seen(record: &Record, result_type: Option<&str>) -> Totals {
    let (successful, failed) = (record.sessions_with_mail(), record.sessions_without_mail());
    let details = result_type.filter(|_| failed > 0).map(|kind| (kind.to_owned(), failed));
    Totals { successful, failed, details: details.into_iter().collect() }
}

/// Without the daemon Postfix keeps its mail; with it, the mail goes out.
async fn defers_without_the_daemon(program: &Program, world: &World, postfix: &Postfix, daemon: Daemon) -> Daemon {
    daemon.stop().await.unwrap();
    let length = postfix.log_length();
    submit(Postfix::SMTPD, "someone@sender.test", &["late@open.test"], "Subject: late\n\nhello").await.unwrap();
    let line = postfix.await_delivery("late@open.test", length).unwrap();
    assert!(line.contains("status=deferred "), "{line}");
    let daemon = Daemon::start(program, world).await.unwrap();
    let length = postfix.log_length();
    postfix.flush().unwrap();
    let line = postfix.await_delivery("late@open.test", length).unwrap();
    assert!(line.contains("status=sent "), "{line}");
    // The flush tried the deferred mail of the other domains too: wait until all of it is through.
    for case in cases().iter().filter(|c| c.status == "deferred") {
        postfix.await_delivery(&format!("one@{}", case.domain.name()), length).unwrap();
    }
    daemon
}

/// The day ends: the reports go through this Postfix to the domains, are signed and right, and are not counted themselves.
async fn reports_through_the_same_postfix(
    program: &Program,
    world: &World,
    postfix: &Postfix,
    daemon: Daemon,
    cases: &[Case],
    totals: &BTreeMap<String, Totals>,
    today: &str,
) {
    daemon.stop().await.unwrap();
    let tomorrow = (seconds() / DAY + 1) * DAY;
    world.configure(Some(&stamp(tomorrow + 310))).unwrap();
    let daemon = Daemon::start(program, world).await.unwrap();
    // Postfix's clock is the host's; one line of the next day says that the log has been read past this one.
    let line = format!(
        "{} mta postfix/qmgr[1]: 0123456789A: from=<>, size=1, nrcpt=1 (queue active)\n",
        civil(tomorrow + 300)
    );
    fs::OpenOptions::new().append(true).open(world.log()).unwrap().write_all(line.as_bytes()).unwrap();

    let is_report = |mail: &Mail| mail.to.iter().any(|to| to.starts_with("tlsrpt@"));
    let all_reports = || -> Vec<Mail> {
        let hosts = ["mx.sts-good.test", "mx.reports.test"];
        hosts.iter().flat_map(|host| world.receiver(host).record().mail).filter(is_report).collect()
    };
    let begin = Instant::now();
    while all_reports().len() < cases.len() && begin.elapsed() < Duration::from_secs(40) {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // Long enough for the sessions of the reports to be read and, were that wrong, counted and reported in turn.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let mail = all_reports();
    assert_eq!(mail.len(), cases.len(), "{}", lab::daemon::tail(&world.folder().join("daemon.log")));

    let mut reported = BTreeMap::new();
    for mail in &mail {
        assert!(mail.tls, "a report in clear text");
        let report = report::read(&mail.data).unwrap_or_else(|faults| panic!("{}", faults.join("\n")));
        let verdicts = dkim::verify(&mail.data, world.dns.address()).await.unwrap();
        let passed: Vec<&str> = verdicts.iter().filter(|v| v.result.is_ok()).map(|v| v.algorithm.as_str()).collect();
        assert!(passed.contains(&"rsa-sha256") && passed.contains(&"ed25519-sha256"), "{verdicts:?}");
        assert_eq!(report.value["date-range"]["start-datetime"], format!("{today}T00:00:00Z"));
        assert!(reported.insert(report.domain.clone(), report.totals()).is_none(), "two reports for {}", report.domain);
    }
    assert_eq!(&reported, totals);
    assert_eq!(&counted(program, world, today).await.unwrap(), totals, "the reports' own sessions were counted");
    assert!(postfix.delivery("tlsrpt@sts-good.test", 0).is_some_and(|line| line.contains("status=sent ")));
    assert_eq!(socketmap::ask(&world.socketmap(), "policy", "open.test").await.unwrap().trim_end(), "NOTFOUND");
    daemon.stop().await.unwrap();
}

/// As in a Postfix log.
fn civil(seconds: u64) -> String {
    jiff::Timestamp::from_second(seconds as i64).unwrap().strftime("%b %d %H:%M:%S").to_string()
}
