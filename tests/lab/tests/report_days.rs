//! Reports over simulated days, with the real Postfix of this host taking the report mail: three days of a host whose daemon
//! is off over a night, and two hosts that report to each other.
//!
//! The log of each Postfix is carried over into the simulated days (`lab::timeshift`); the daemon follows what is carried
//! over, and its clock is set at each start.
//! Needs root (namespaces, Postfix's own users) and an installed Postfix.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use lab::ca::Fault;
use lab::daemon::{Daemon, Program};
use lab::https::Answer;
use lab::postfix::{Installation, Postfix, Role};
use lab::report::{self, Report, Totals};
use lab::smtp::{Mail, submit};
use lab::timeshift::Timeshift;
use lab::world::{Domain, Options, Server, Tlsa, World};
use lab::{dkim, host};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(30);

fn run_in_host(test: &str, inside: impl AsyncFnOnce(Installation)) {
    match host::inside() {
        Some(root) => {
            let installation = Installation::at(Path::new(&root)).unwrap();
            tokio::runtime::Runtime::new().unwrap().block_on(inside(installation));
        }
        None => {
            let root = Installation::of_this_host().unwrap().root().to_owned();
            host::run_inside(test, &root).unwrap_or_else(|e| panic!("{e}"));
        }
    }
}

#[test]
fn three_simulated_days() {
    run_in_host("three_simulated_days", three_days);
}

#[test]
fn two_hosts_that_report_to_each_other() {
    run_in_host("two_hosts_that_report_to_each_other", two_hosts);
}

/// A mail host in its own time.
struct Host {
    // The first to end: the folder that it writes to goes with the world.
    shift: Timeshift,
    program: Program,
    world: World,
    postfix: Postfix,
    daemon: Option<Daemon>,
    /// What is written differently in its configuration.
    edits: Vec<(String, String)>,
}

impl Host {
    fn start(
        world: World,
        role: Role,
        installation: &Installation,
        edits: Vec<(String, String)>,
        hidden: Option<&'static str>,
    ) -> Host {
        let carried = world.folder().join("carried.log");
        let shift = Timeshift::start(&world.log(), &carried, hidden);
        let mut edits = edits;
        edits.push((world.log().display().to_string(), carried.display().to_string()));
        let program = Program::lab(env!("CARGO_BIN_EXE_lab"));
        let postfix = Postfix::start_as(role, &world, installation, "may").unwrap();
        Host { program, world, postfix, shift, daemon: None, edits }
    }

    /// From now on it is `time`, for the log and for a daemon that is started afterwards.
    fn now_is(&self, time: &str) {
        let seconds = time.parse::<Timestamp>().unwrap().as_second();
        self.shift.now_is(seconds);
        self.world.configure(Some(time)).unwrap();
        let mut config = fs::read_to_string(self.world.config()).unwrap();
        self.edits.iter().for_each(|(from, to)| config = config.replace(from, to));
        fs::write(self.world.config(), config).unwrap();
    }

    async fn daemon_on(&mut self) {
        self.daemon = Some(Daemon::start(&self.program, &self.world).await.unwrap());
    }

    async fn daemon_off(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            daemon.stop().await.unwrap();
        }
    }

    /// It is `time` with the daemon running anew.
    async fn goes_on_at(&mut self, time: &str) {
        self.daemon_off().await;
        self.now_is(time);
        self.daemon_on().await;
    }

    /// Sends one message to each address and waits until Postfix has tried it. With a daemon, or with what it said before.
    async fn sends(&self, to: &[&str]) {
        let from = self.postfix.log_length();
        for to in to {
            submit(self.postfix.smtpd(), "someone@sender.test", &[to], "Subject: hello\n\nhello").await.unwrap();
        }
        for to in to {
            self.postfix.await_delivery(to, from).unwrap();
        }
    }

    /// Another mail passes, without TLS: what lies before is over.
    fn something_else_happens(&self, time: &str) {
        let stamp = time.parse::<Timestamp>().unwrap().strftime("%b %e %H:%M:%S").to_string();
        let line = format!("{stamp} mta postfix/qmgr[1]: 0123456789A: from=<>, size=1, nrcpt=1 (queue active)\n");
        let log = self.world.folder().join("carried.log");
        fs::OpenOptions::new().create(true).append(true).open(log).unwrap().write_all(line.as_bytes()).unwrap();
    }

    async fn json(&self, arguments: &[&str]) -> Value {
        let output = self.program.run(&self.world, arguments).await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// What has been counted of a day, by domain.
    async fn results(&self, day: &str) -> BTreeMap<String, Totals> {
        let rows = self.json(&["results", "--day", day, "--json"]).await;
        let mut all: BTreeMap<String, Totals> = BTreeMap::new();
        for row in rows.as_array().unwrap() {
            let totals = all.entry(row["domain"].as_str().unwrap().to_owned()).or_default();
            totals.successful += row["successful"].as_u64().unwrap();
            totals.failed += row["failed"].as_u64().unwrap();
        }
        all
    }

    fn log(&self) -> String {
        let tail = lab::daemon::tail;
        format!("{}\n{}", tail(&self.world.folder().join("daemon.log")), tail(&self.world.log()))
    }
}

/// Waits until what is asked for holds.
async fn until<T>(what: &str, host: &Host, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = ask().await {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "{what}: it does not come\n{}", host.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Sessions that the servers of a domain saw, all in all.
fn seen(world: &World, hosts: &[&str]) -> (u64, u64) {
    let records: Vec<_> = hosts.iter().map(|host| world.receiver(host).record()).collect();
    (records.iter().map(|r| r.sessions_with_mail()).sum(), records.iter().map(|r| r.sessions_without_mail()).sum())
}

const SERVERS: [(&str, &str); 5] = [
    ("good.test", "mx.good.test"),
    ("open.test", "mx.open.test"),
    ("selfsigned.test", "mx.selfsigned.test"),
    ("nopolicy.test", "mx.nopolicy.test"),
    ("dane.example", "mx.dane.example"),
];

async fn three_days(installation: Installation) {
    let begun = Instant::now();
    let at = |name: &str| Domain::new(name).reports_to("tlsrpt@reports.test");
    let domains = [
        at("good.test").host("mx", Server::Sound).sts("enforce", "mx"),
        at("open.test").host("mx", Server::Faulty(Fault::SelfSigned)),
        at("selfsigned.test").host("mx", Server::Faulty(Fault::SelfSigned)).sts("enforce", "mx"),
        at("nopolicy.test").host("mx", Server::Sound).sts_answer(Answer::Status(404)),
        at("dane.example").signed().dane_host("mx", Server::Faulty(Fault::SelfSigned), Tlsa::Matching),
        // Where the reports go. It asks for reports itself, so that a report about reports would show.
        at("reports.test").host("mx", Server::Sound).sts("enforce", "mx"),
    ];
    let options = Options {
        submission: Some(Postfix::SMTPD),
        postfix: installation.short_version(),
        ..Options::on_standard_ports()
    };
    let world = World::start(options, &domains).await.unwrap();
    let mut host = Host::start(world, Role::default(), &installation, Vec::new(), None);
    println!("Postfix {}; the world is in {}", installation.version(), host.world.folder().display());

    // What the servers saw of each day, by domain.
    let mut saw: BTreeMap<(String, String), (u64, u64)> = BTreeMap::new();
    let mut total: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    let mut note = |host: &Host, day: &str| {
        for (domain, server) in SERVERS {
            let now = seen(&host.world, &[server]);
            let before = total.insert(domain, now).unwrap_or_default();
            let of_day = saw.entry((day.to_owned(), domain.to_owned())).or_default();
            *of_day = (of_day.0 + now.0 - before.0, of_day.1 + now.1 - before.1);
        }
        saw.clone()
    };

    // The first day, at noon.
    host.goes_on_at("2026-11-22T12:00:00Z").await;
    host.sends(&["a@good.test", "a@open.test", "a@selfsigned.test", "a@nopolicy.test", "a@dane.example"]).await;
    host.sends(&["b@good.test", "b@open.test"]).await;
    note(&host, "2026-11-22");

    // The second: mail in the morning, while the first is reported. From 20:00 on the daemon is off, and mail flows.
    host.goes_on_at("2026-11-23T08:00:00Z").await;
    host.sends(&["c@open.test", "c@nopolicy.test", "c@dane.example"]).await;
    let reports = |host: &Host| -> Vec<Mail> {
        let mail = host.world.receiver("mx.reports.test").record().mail;
        mail.into_iter().filter(|mail| mail.to == ["tlsrpt@reports.test"]).collect()
    };
    until("the first day's reports", &host, async || (reports(&host).len() >= SERVERS.len()).then_some(())).await;
    host.now_is("2026-11-23T19:59:00Z");
    host.daemon_off().await;
    host.now_is("2026-11-23T21:00:00Z");
    // Postfix defers what it cannot ask about; so that mail flows, its administrator has taken the map out.
    host.postfix.set("smtp_tls_policy_maps =").unwrap();
    host.sends(&["night@open.test", "night2@open.test"]).await;
    note(&host, "2026-11-23");

    // The third: still off until 09:00.
    host.now_is("2026-11-24T07:00:00Z");
    host.sends(&["morning@open.test"]).await;
    host.postfix.restart(&host.world, "may").unwrap();
    host.goes_on_at("2026-11-24T09:00:00Z").await;
    host.sends(&["d@good.test", "d@selfsigned.test"]).await;
    note(&host, "2026-11-24");
    until("the second day's reports", &host, async || (reports(&host).len() >= SERVERS.len() + 3).then_some(())).await;

    // The day after, at which the third is reported.
    host.goes_on_at("2026-11-25T10:00:00Z").await;
    host.something_else_happens("2026-11-25T10:00:01Z");
    let saw = note(&host, "2026-11-25");
    let wanted = saw.values().filter(|(successful, failed)| successful + failed > 0).count();
    until("the third day's reports", &host, async || (reports(&host).len() >= wanted).then_some(())).await;
    // Twice more, so that what is sent twice or is about reports would come.
    for time in ["2026-11-25T22:00:00Z", "2026-11-26T12:00:00Z"] {
        host.goes_on_at(time).await;
        host.something_else_happens(&time.replace(":00Z", ":01Z"));
        tokio::time::sleep(Duration::from_secs(2)).await;
    }

    println!("\nday        | domain          | servers saw | report says | DKIM | policies, policy failures beside");
    let mail = reports(&host);
    let mut told: BTreeMap<(String, String), Report> = BTreeMap::new();
    for mail in &mail {
        let report = report::read(&mail.data).unwrap_or_else(|faults| panic!("{}", faults.join("\n")));
        let verdicts = dkim::verify(&mail.data, host.world.dns.address()).await.unwrap();
        let passed = verdicts.iter().filter(|v| v.result.is_ok()).count();
        assert_eq!((passed, verdicts.len()), (2, 2), "{verdicts:?}");
        let day = report.value["date-range"]["start-datetime"].as_str().unwrap()[..10].to_owned();
        let before = told.insert((day, report.domain.clone()), report);
        assert!(before.is_none(), "two reports: {before:?}");
    }
    for ((day, domain), (successful, failed)) in saw.iter().filter(|(_, (s, f))| s + f > 0) {
        let report = told.get(&(day.clone(), domain.clone())).unwrap_or_else(|| panic!("no report {day} {domain}"));
        let totals = report.totals();
        let beside: u64 = totals.details.iter().map(|(_, n)| n).sum::<u64>() - totals.failed;
        println!(
            "{day} | {domain:15} | {successful:3} + {failed:3}   | {:3} + {:3}   | 2 ok | {}, {beside}",
            totals.successful,
            totals.failed,
            report.policy_types().join(" ")
        );
        assert_eq!((totals.successful, totals.failed), (*successful, *failed), "{day} {domain}: {}", report.json);
        assert_eq!(beside > 0, domain == "nopolicy.test", "{day} {domain}: {}", report.json);
    }
    assert_eq!(told.len(), wanted, "reports that nobody asked for: {:?}", told.keys());
    let list = host.json(&["reports", "list", "--json"]).await;
    let list = list.as_array().unwrap();
    assert!(list.iter().all(|due| due["state"] == "sent" && due["attempts"] == 1), "{list:#?}");
    println!("{} reports, each once; {} s", mail.len(), begun.elapsed().as_secs());
    host.daemon_off().await;
}

async fn two_hosts(installation: Installation) {
    // Postfix listens only where an interface has the address.
    for address in ["127.0.0.2/8", "127.0.0.3/8"] {
        let added = std::process::Command::new("ip").args(["addr", "add", address, "dev", "lo"]).status();
        assert!(added.is_ok_and(|status| status.success()), "needs ip (iproute2)");
    }
    let dns = ([127, 0, 0, 1], 53).into();
    let options = |dns, address: [u8; 4]| Options {
        dns,
        submission: Some((address, 25).into()),
        postfix: installation.short_version(),
        ..Options::default()
    };
    let a = World::start(options(dns, [127, 0, 0, 2]), &[]).await.unwrap();
    let b = World::start(options(([127, 0, 0, 1], 0).into(), [127, 0, 0, 3]), &[]).await.unwrap();
    let mut roles = Vec::new();
    {
        let mut zone = a.dns.change();
        for (world, letter, last) in [(&a, "a", 2), (&b, "b", 3)] {
            let (domain, name, address) =
                (format!("{letter}.test"), format!("mx.{letter}.test"), std::net::Ipv4Addr::new(127, 0, 0, last));
            zone.cut(&domain, false);
            zone.mx(&domain, 10, &name);
            zone.address(&name, address.into());
            zone.txt(&format!("_smtp._tls.{domain}"), &format!("v=TLSRPTv1; rua=mailto:tlsrpt@{domain}"));
            for key in &world.keys {
                zone.txt(&format!("{}._domainkey.{domain}", key.selector), &key.record);
            }
            let chain = world.folder().join("chain.pem");
            fs::write(&chain, world.authority.certify(&name, None).unwrap().pem()).unwrap();
            // The second passes all mail through a content filter: its reports leave under another queue id.
            roles.push(Role { address, name, receives: Some(domain), chain: Some(chain), filters: letter == "b" });
        }
    }
    let edits = |world: &World, domain: &str| {
        vec![
            ("sender.test".to_owned(), domain.to_owned()),
            (world.dns.address().to_string(), a.dns.address().to_string()),
        ]
    };
    let edits = [edits(&a, "a.test"), edits(&b, "b.test")];
    let [edits_a, edits_b] = edits;
    let role_b = roles.pop().unwrap();
    // The log that the first one's daemon sees has no Message-ID: it knows its reports by the queue id in Postfix's reply.
    let mut a = Host::start(a, roles.pop().unwrap(), &installation, edits_a, Some("/cleanup["));
    let mut b = Host::start(b, role_b, &installation, edits_b, None);

    let sessions = |host: &Host, to: &str| {
        let log = fs::read_to_string(host.world.log()).unwrap_or_default();
        log.matches(&format!("TLS connection established to mx.{to}[")).count()
    };
    let got = |host: &Host, domain: &str| {
        let log = fs::read_to_string(host.world.log()).unwrap_or_default();
        log.lines()
            .filter(|l| l.contains(&format!("to=<tlsrpt@{domain}>, relay=none")) && l.contains("status=sent"))
            .count()
    };
    println!("day        | A: mail, TLS sessions, counted, reports got | B: mail, TLS sessions, counted, reports got");
    let mut sent = (0, 0);
    for (number, day) in ["22", "23", "24", "25", "26"].into_iter().enumerate() {
        let time = format!("2026-11-{day}T12:00:00Z");
        // The one with the filter first: what it takes while its daemon is away, its Postfix defers before the filter.
        for host in [&mut b, &mut a] {
            host.goes_on_at(&time).await;
        }
        [&a, &b].into_iter().for_each(|host| host.something_else_happens(&time));
        // Mail on the first and the third day; on the others nothing but what the reports do.
        if [0, 2].contains(&number) {
            a.sends(&["one@b.test", "two@b.test"]).await;
            b.sends(&["one@a.test", "two@a.test", "three@a.test"]).await;
            sent = (sent.0 + 2, sent.1 + 3);
        }
        // On the day after mail there is one report each.
        let reports = number.div_ceil(2);
        until("the reports", &b, async || (got(&a, "a.test") >= reports && got(&b, "b.test") >= reports).then_some(()))
            .await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        let counted =
            |results: &BTreeMap<String, Totals>| results.values().map(|t| t.successful + t.failed).sum::<u64>();
        let day = format!("2026-11-{day}");
        let (of_a, of_b) = (a.results(&day).await, b.results(&day).await);
        println!(
            "{day} | {:3} {:3} {:3} {:3} | {:3} {:3} {:3} {:3}",
            sent.0,
            sessions(&a, "b.test"),
            counted(&of_a),
            got(&a, "a.test"),
            sent.1,
            sessions(&b, "a.test"),
            counted(&of_b),
            got(&b, "b.test"),
        );
        assert_eq!((got(&a, "a.test"), got(&b, "b.test")), (reports, reports));
        let wanted = if [0, 2].contains(&number) { (2, 3) } else { (0, 0) };
        assert_eq!((counted(&of_a), counted(&of_b)), wanted, "{of_a:?} {of_b:?}\n{}\n{}", a.log(), b.log());
    }
    // The sessions of the reports were there, and are in no count.
    let lists = (a.json(&["reports", "list", "--json"]).await, b.json(&["reports", "list", "--json"]).await);
    for list in [&lists.0, &lists.1] {
        let list = list.as_array().unwrap();
        assert!(list.iter().all(|due| due["state"] == "sent"), "{list:#?}");
    }
    assert!(sessions(&a, "b.test") > sent.0 && sessions(&b, "a.test") >= sent.1);
    a.daemon_off().await;
    b.daemon_off().await;
}
