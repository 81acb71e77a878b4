//! A real Postfix 3.10 with its smtp(8) in a chroot sends TLSRPT datagrams to the daemon, which follows its log as well.
//!
//! Needs root, and a Postfix in a root folder of its own (`tests/chroot trixie`). Every session is one count, and the counts
//! are what the receiving servers wrote down; over a reload and a restart of the daemon too.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use lab::ca::Fault;
use lab::daemon::{Daemon, Program, counted, reports, tail};
use lab::host::{self, today};
use lab::postfix::{Installation, Postfix};
use lab::report::Totals;
use lab::smtp::submit;
use lab::world::{Domain, Options, Server, World};
use rustix::process::{Signal, kill_process};

#[test]
fn a_chrooted_postfix_reports_by_datagrams() {
    let test = "a_chrooted_postfix_reports_by_datagrams";
    match host::inside() {
        Some(root) => {
            let installation = Installation::at(Path::new(&root)).unwrap();
            tokio::runtime::Runtime::new().unwrap().block_on(run_day(&installation));
        }
        None => {
            let root = Installation::of_release("trixie").unwrap_or_else(|e| panic!("{e}")).root().to_owned();
            host::run_inside(test, &root).unwrap_or_else(|e| panic!("{e}"));
        }
    }
}

/// Domain, MX host, and the result type of its failure, if it fails.
const HOSTS: [(&str, Option<&str>); 5] = [
    ("sts-good.test", None),
    ("sts-wrongname.test", Some("certificate-host-mismatch")),
    ("testing.test", Some("validation-failure")),
    ("open.test", None),
    ("unreported.test", None),
];

fn domains() -> Vec<Domain> {
    let at = |name: &str| Domain::new(name).reports_to("tlsrpt@reports.test");
    vec![
        at("sts-good.test").host("mx", Server::Sound).sts("enforce", "mx"),
        at("sts-wrongname.test").host("mx", Server::Faulty(Fault::WrongName)).sts("enforce", "mx"),
        // Native says success, for nothing is required; the policy does not have this host.
        at("testing.test").host("mx", Server::Sound).sts("testing", "other"),
        at("open.test").host("mx", Server::Faulty(Fault::SelfSigned)),
        // No TLSRPT record: Postfix reports nothing, the log is all there is.
        Domain::new("unreported.test").host("mx", Server::Sound),
    ]
}

async fn run_day(installation: &Installation) {
    host::wait_for_room_before_midnight(Duration::from_secs(120));
    let options = Options { postfix: installation.short_version(), native: true, ..Options::on_standard_ports() };
    let world = World::start(options, &domains()).await.unwrap();
    let program = Program::lab(env!("CARGO_BIN_EXE_lab"));
    let daemon = Daemon::start(&program, &world).await.unwrap();
    let postfix = Postfix::start(&world, installation, "may").unwrap();
    let mut sent = 0;
    send(&postfix, &mut sent).await;
    holds(&program, &world).await;
    // The socket stays over a reload, and what came meanwhile is read.
    kill_process(daemon.id().unwrap(), Signal::HUP).unwrap();
    send(&postfix, &mut sent).await;
    holds(&program, &world).await;
    // Without the daemon smtp(8) says that its report was not sent; policies come from nowhere, so that mail waits.
    daemon.stop().await.unwrap();
    let daemon = Daemon::start(&program, &world).await.unwrap();
    postfix.flush().unwrap();
    send(&postfix, &mut sent).await;
    holds(&program, &world).await;
    let report = &reports(&program, &world, &today()).await.unwrap()["sts-wrongname.test"];
    let detail = &report["policies"][0]["failure-details"][0];
    for field in ["sending-mta-ip", "receiving-ip", "receiving-mx-hostname", "receiving-mx-helo"] {
        assert!(detail[field].is_string(), "{field} is missing in {report:#}");
    }
    daemon.stop().await.unwrap();
}

/// One more message to each domain; a message of its own each time, for a connection of its own.
async fn send(postfix: &Postfix, sent: &mut u32) {
    *sent += 1;
    let length = postfix.log_length();
    for (domain, _) in HOSTS {
        let to = format!("n{sent}@{domain}");
        submit(Postfix::SMTPD, "someone@sender.test", &[&to], "Subject: hello\n\nhello").await.unwrap();
    }
    for (domain, _) in HOSTS {
        postfix.await_delivery(&format!("n{sent}@{domain}"), length).unwrap();
    }
}

/// The counts become what the servers wrote down, and stay so.
async fn holds(program: &Program, world: &World) {
    let wanted = || -> BTreeMap<String, Totals> {
        let one = |(domain, result_type): &(&str, Option<&str>)| {
            let record = world.receiver(&format!("mx.{domain}")).record();
            let all = record.sessions_with_mail() + record.sessions_without_mail();
            let failed = if result_type.is_some() { all } else { 0 };
            let details = result_type.filter(|_| failed > 0).map(|kind| (kind.to_owned(), failed));
            let totals = Totals { successful: all - failed, failed, details: details.into_iter().collect() };
            ((*domain).to_owned(), totals)
        };
        HOSTS.iter().map(one).collect()
    };
    let begin = Instant::now();
    loop {
        let counted = counted(program, world, &today()).await.unwrap();
        if counted == wanted() {
            break;
        }
        assert!(
            begin.elapsed() < Duration::from_secs(20),
            "counted\n{counted:#?}\nthe servers saw\n{:#?}\nPostfix wrote\n{}\nthe daemon\n{}",
            wanted(),
            std::fs::read_to_string(world.log()).unwrap_or_default(),
            tail(&world.folder().join("daemon.log"))
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(counted(program, world, &today()).await.unwrap(), wanted(), "counted once more");
}
