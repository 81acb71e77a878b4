//! The Debian package on a booted machine of each release, beside its Postfix: from `apt install` to purge.
//!
//! Needs the package (`packaging/deb`), root, and the chroots (`tests/chroot bookworm`, `tests/chroot trixie`). systemd runs
//! as the machine's first process, so units, sockets, maintainer scripts and confinement are the real ones; only AppArmor
//! is not there. Without the package it cannot run: `tests/run` builds it first and asks for these tests by name.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lab::ca::Fault;
use lab::host::{self, DAY, seconds, stamp, today};
use lab::machine::Machine;
use lab::postfix::{Installation, Postfix};
use lab::report::{self, Totals};
use lab::smtp::submit;
use lab::world::{Domain, Options, SENDER, Server, Tlsa, World};
use lab::{dkim, socketmap};

/// How often the daemon is restarted while mail flows.
const RESTARTS: u32 = 100;

/// How long whatever is waited for may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where Postfix asks.
const SOCKET: &str = "/var/spool/postfix/tlswarden/socketmap";

#[test]
#[ignore = "needs the package: packaging/deb; tests/run asks for it by name"]
fn installed_upgraded_and_purged_on_bookworm() {
    play("installed_upgraded_and_purged_on_bookworm", "bookworm");
}

#[test]
#[ignore = "needs the package: packaging/deb; tests/run asks for it by name"]
fn installed_upgraded_and_purged_on_trixie() {
    play("installed_upgraded_and_purged_on_trixie", "trixie");
}

fn play(test: &str, release: &str) {
    match host::inside() {
        Some(root) => {
            let installation = Installation::at(Path::new(&root)).unwrap();
            tokio::runtime::Runtime::new().unwrap().block_on(life(&installation));
        }
        None => {
            let root = Installation::of_release(release).unwrap_or_else(|e| panic!("{e}")).root().to_owned();
            host::run_ignored_inside(test, &root).unwrap_or_else(|e| panic!("{e}"));
        }
    }
}

/// The package, newest version.
fn package() -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/debian");
    let all: Vec<_> =
        fs::read_dir(&folder).map(|files| files.flatten().map(|file| file.path()).collect()).unwrap_or_default();
    let newest = all.into_iter().filter(|path| path.extension().is_some_and(|end| end == "deb")).max();
    newest.unwrap_or_else(|| panic!("no package in {}; make it with: packaging/deb", folder.display()))
}

/// The same package under a higher version.
fn newer(package: &Path, to: &Path, version: &str) {
    let unpacked = tempfile::tempdir().unwrap();
    let folder = unpacked.path().join("package");
    let succeeds = |command: &mut Command| assert!(command.status().unwrap().success(), "{command:?}");
    succeeds(Command::new("dpkg-deb").arg("-R").arg(package).arg(&folder));
    let control = folder.join("DEBIAN/control");
    let text = fs::read_to_string(&control).unwrap();
    let set =
        |line: &str| if line.starts_with("Version:") { format!("Version: {version}\n") } else { format!("{line}\n") };
    fs::write(&control, text.lines().map(set).collect::<String>()).unwrap();
    succeeds(
        Command::new("dpkg-deb")
            .args(["--root-owner-group", "-b"])
            .arg(&folder)
            .arg(to)
            .stdout(std::process::Stdio::null()),
    );
}

fn say(begin: Instant, what: &str) {
    println!("{:>6.1} s  {what}", begin.elapsed().as_secs_f32());
}

async fn life(installation: &Installation) {
    host::wait_for_room_before_midnight(Duration::from_secs(420));
    let begin = Instant::now();
    let at = |name: &str| Domain::new(name).reports_to("tlsrpt@reports.test");
    let domains = [
        at("flow.test").host("mx", Server::Sound).sts("enforce", "mx"),
        at("bad.test").host("mx", Server::Faulty(Fault::SelfSigned)).sts("enforce", "mx"),
        at("dane.example").signed().dane_host("mx", Server::Faulty(Fault::SelfSigned), Tlsa::Matching),
        Domain::new("reports.test").host("mx", Server::Sound),
    ];
    let options = Options {
        dns: ([127, 0, 0, 1], 53).into(),
        policy_hosts: ([127, 0, 0, 1], 443).into(),
        receivers: Some(25),
        submission: Some(Postfix::SMTPD),
        ..Options::default()
    };
    let world = Arc::new(World::start(options, &domains).await.unwrap());
    let machine = Arc::new(Machine::boot(installation.root()).unwrap());
    say(
        begin,
        &format!(
            "booted: Postfix {}, {}",
            installation.version(),
            machine.run("systemctl --version | head -n 1").unwrap().trim()
        ),
    );
    set_up_postfix(&machine, &world);

    let deb = package();
    fs::copy(&deb, machine.path("/root/tlswarden.deb")).unwrap();
    let printed = machine.run("dpkg -i /root/tlswarden.deb 2>&1").unwrap();
    say(begin, &format!("dpkg -i {}", deb.file_name().unwrap().to_string_lossy()));
    starts_by_itself_and_says_what_it_found(&machine, installation);

    take_the_lines(&machine, &printed, installation);
    configure(&machine, "");
    say(begin, "main.cf has the lines that the package printed");
    policies_hold(&machine, &world).await;
    say(begin, "sent over Verified TLS to flow.test and dane.example; bad.test deferred");
    await_counts(&machine, &world, &today()).await;
    say(begin, "counted what the servers saw: the first counted sessions");
    is_confined(&machine);
    say(begin, "confined: systemd-analyze security and verify");

    let restarts = flow(&machine, &world, "restarts", |machine| {
        let command = format!("for n in $(seq {RESTARTS}); do systemctl restart tlswarden; done");
        machine.run(&command).unwrap();
        // Not in order, too.
        for _ in 0..5 {
            machine.run("systemctl kill --signal=KILL tlswarden.service").unwrap();
            std::thread::sleep(Duration::from_millis(300));
            let up = "until systemctl is-active --quiet tlswarden; do sleep 0.1; done";
            machine.run(&format!("timeout 30 sh -c '{up}'")).unwrap();
        }
    })
    .await;
    say(
        begin,
        &format!(
            "{RESTARTS} restarts and 5 kill -9 while {restarts} messages went out: none deferred, each counted once"
        ),
    );

    for (number, version) in ["99.0-1", "99.1-1"].iter().enumerate() {
        newer(&deb, &machine.path(&format!("/root/newer{number}.deb")), version);
    }
    let upgraded = flow(&machine, &world, "upgrades", |machine| {
        for number in 0..2 {
            machine.run(&format!("dpkg -i /root/newer{number}.deb")).unwrap();
        }
    })
    .await;
    say(begin, &format!("2 upgrades while {upgraded} messages went out: none deferred, each counted once"));

    is_backed_up_and_put_back(&machine, &world).await;
    say(begin, "backup made while it runs, with and without another file system, and put back");
    reports(&machine, &world).await;
    say(begin, "reports signed with keys that are root's alone went through this Postfix");

    machine.run("dpkg -r tlswarden").unwrap();
    assert!(!machine.path(SOCKET).exists() && machine.path("/var/lib/tlswarden/embedded").exists());
    assert!(!machine.output("systemctl is-active tlswarden.service tlswarden.socket").0);
    let defers = machine.path("/etc/tlswarden/tlswarden.toml").exists();
    assert!(defers, "configuration stays until purge");
    machine.run("dpkg --purge tlswarden").unwrap();
    nothing_is_left(&machine);
    say(begin, "removed, then purged: nothing is left");
    machine.run("dpkg -i /root/tlswarden.deb && systemctl is-active tlswarden && dpkg --purge tlswarden").unwrap();
    nothing_is_left(&machine);
    say(begin, "installed anew and purged at once: nothing is left");
}

/// The release's Postfix as Debian sets it up, with the world's network and nothing about TLS policies.
fn set_up_postfix(machine: &Machine, world: &World) {
    fs::copy(world.ca_file(), machine.path("/usr/local/share/ca-certificates/lab.crt")).unwrap();
    let main_cf = "compatibility_level = 3.6\nmyhostname = mta.sender.test\nmydestination =\nlocal_recipient_maps =\n\
                   alias_maps =\nalias_database =\nmynetworks = 127.0.0.0/8\ninet_interfaces = 127.0.0.1\n\
                   inet_protocols = ipv4\nnotify_classes =\nsmtpd_tls_security_level = none\n\
                   # The recipients of a flow are of one domain.\ndefault_destination_recipient_limit = 1\n";
    fs::write(machine.path("/etc/postfix/main.cf"), main_cf).unwrap();
    machine.run("update-ca-certificates && systemctl restart rsyslog && systemctl restart postfix").unwrap();
}

fn starts_by_itself_and_says_what_it_found(machine: &Machine, installation: &Installation) {
    for unit in ["tlswarden.service", "tlswarden.socket"] {
        machine.run(&format!("systemctl is-active {unit} && systemctl is-enabled {unit}")).unwrap();
    }
    let said = machine.run("journalctl --no-pager -o cat -u tlswarden").unwrap();
    let version = installation.short_version();
    for wanted in [
        &*format!("postfix: found: version {version}, smtp_tls_security_level none, smtp_dns_support_level empty"),
        "input: found: /var/log/mail.log (a syslog daemon is installed)",
        "socketmap: listening on unix:/var/spool/postfix/tlswarden/socketmap",
        "report: no report is sent: [report] lacks organization, contact, from, ",
    ] {
        assert!(said.contains(wanted), "`{wanted}` is not in\n{said}");
    }
    assert!(!said.contains("nobody is answered"), "{said}");
    let status = machine.run("tlswarden status").unwrap();
    assert!(status.contains("no report is sent: [report] lacks organization"), "{status}");
    let id = machine.run("id -nG tlswarden").unwrap();
    assert!(id.contains("adm") && id.contains("systemd-journal"), "{id}");
    let folder = machine.run("stat -c '%U %G %a' /var/spool/postfix/tlswarden /var/lib/tlswarden").unwrap();
    assert_eq!(folder, "tlswarden postfix 750\ntlswarden tlswarden 700\n");
}

/// Puts into main.cf what the package has printed, and nothing else.
fn take_the_lines(machine: &Machine, printed: &str, installation: &Installation) {
    let lines: Vec<&str> =
        printed.lines().map(str::trim).filter(|line| line.starts_with("smtp_") && line.contains(" = ")).collect();
    assert_eq!(lines.len(), 5, "{printed}");
    assert!(lines[0].ends_with(installation.map()), "{printed}");
    for line in lines {
        machine.run(&format!("postconf -e '{line}'")).unwrap();
    }
    machine.run("postfix reload").unwrap();
}

/// What a world without the Internet needs, and `more`.
fn configure(machine: &Machine, more: &str) {
    let file = machine.path("/etc/tlswarden/tlswarden.toml");
    let shipped = fs::read_to_string(&file).unwrap();
    let shipped = shipped.split("# --- the test").next().unwrap();
    // Its sections are in the file already, empty.
    let closed = shipped.replace("\n[resolver]\n", "\n[resolver]\naddress = \"127.0.0.1:53\"\n");
    let closed = if shipped.contains("\naddress = ") { shipped.to_owned() } else { closed };
    let (report, clock) = more.split_once("---").unwrap_or(("", ""));
    let closed =
        if report.is_empty() { closed } else { closed.replace("\n[report]\n", &format!("\n[report]\n{report}")) };
    fs::write(&file, format!("{closed}# --- the test\n[closed_network]\nprivate_addresses = true\n{clock}")).unwrap();
    machine.run("tlswarden check >/dev/null && systemctl restart tlswarden").unwrap();
}

async fn send(domain: &str, name: &str) {
    submit(Postfix::SMTPD, "someone@sender.test", &[&format!("{name}@{domain}")], "Subject: hello\n\nhello")
        .await
        .unwrap();
}

fn log(machine: &Machine) -> String {
    fs::read(machine.path("/var/log/mail.log")).map(|o| String::from_utf8_lossy(&o).into_owned()).unwrap_or_default()
}

async fn policies_hold(machine: &Machine, world: &World) {
    for (domain, status) in [("flow.test", "sent"), ("dane.example", "sent"), ("bad.test", "deferred")] {
        send(domain, "one").await;
        let found = |log: &str| {
            let line = log.lines().find(|line| line.contains(&format!("to=<one@{domain}>")))?;
            assert!(line.contains(&format!("status={status} ")), "{line}");
            Some(())
        };
        eventually(&format!("a delivery to {domain}"), machine, || found(&log(machine)).is_some()).await;
    }
    let log = log(machine);
    for host in ["mx.flow.test", "mx.dane.example"] {
        assert!(log.contains(&format!("Verified TLS connection established to {host}[")), "{log}");
    }
    assert_eq!(world.receiver("mx.bad.test").record().sessions_with_mail(), 0);
    let answer = socketmap::ask(&machine.path(SOCKET), "policy", "flow.test").await.unwrap();
    assert_eq!(answer.trim_end(), "OK secure match=mx.flow.test servername=hostname");
}

async fn eventually(what: &str, machine: &Machine, done: impl Fn() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(
            begin.elapsed() < PATIENCE,
            "not within {PATIENCE:?}: {what}\n{}\n{}",
            tail(&log(machine)),
            machine.journal()
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

/// What the daemon has counted on a day, by domain.
fn counted(machine: &Machine, day: &str) -> BTreeMap<String, Totals> {
    machine.run(&format!("rm -rf /tmp/reports; tlswarden report --day {day} --out /tmp/reports")).unwrap();
    let mut totals = BTreeMap::new();
    for file in fs::read_dir(machine.path("/tmp/reports")).into_iter().flatten() {
        let path = file.unwrap().path();
        let domain = path.file_name().unwrap().to_string_lossy().split('!').nth(1).unwrap().to_owned();
        let mut text = String::new();
        flate2::read::GzDecoder::new(&fs::read(&path).unwrap()[..]).read_to_string(&mut text).unwrap();
        totals.insert(domain, report::totals(&serde_json::from_str(&text).unwrap()));
    }
    totals
}

/// Waits until the counts are what the receiving servers saw.
async fn await_counts(machine: &Machine, world: &World, day: &str) {
    let wanted = |domain: &str| {
        let record = world.receiver(&format!("mx.{domain}")).record();
        (record.sessions_with_mail(), record.sessions_without_mail())
    };
    let begin = Instant::now();
    loop {
        let counted = counted(machine, day);
        let of =
            |domain: &str| counted.get(domain).map(|totals| (totals.successful, totals.failed)).unwrap_or_default();
        let all = ["flow.test", "bad.test", "dane.example"].map(|domain| (domain, of(domain), wanted(domain)));
        if all.iter().all(|(_, counted, wanted)| counted == wanted) {
            return;
        }
        assert!(
            begin.elapsed() < PATIENCE,
            "(counted), (seen): {all:?}\n{}\n{}",
            tail(&log(machine)),
            machine.journal()
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn is_confined(machine: &Machine) {
    let analyzed = machine.run("systemd-analyze security --no-pager tlswarden.service").unwrap();
    let last = analyzed.lines().rev().find(|line| line.contains("Overall exposure level")).unwrap();
    let level: f32 = last.split_whitespace().find_map(|word| word.parse().ok()).unwrap();
    println!("{}", analyzed.lines().filter(|line| line.starts_with('✗')).collect::<Vec<_>>().join("\n"));
    println!("{last}");
    assert!(level <= 1.5, "{last}");
    let verified = machine
        .run("systemd-analyze verify --man=no tlswarden.service tlswarden.socket tlswarden-exim.socket 2>&1")
        .unwrap();
    assert_eq!(verified.trim(), "");
}

/// Sends without a pause while something is `done` to the daemon, and holds the log and the counts to it; how many went out.
async fn flow(
    machine: &Arc<Machine>,
    world: &Arc<World>,
    name: &str,
    done: impl FnOnce(&Machine) + Send + 'static,
) -> u64 {
    let before = log(machine).len();
    let stop = Arc::new(AtomicBool::new(false));
    let (stopping, mailbox) = (Arc::clone(&stop), name.to_owned());
    let sender = tokio::spawn(async move {
        let mut sent = 0;
        while !stopping.load(Ordering::Relaxed) {
            send("flow.test", &format!("{mailbox}{sent}")).await;
            sent += 1;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        sent
    });
    let on = Arc::clone(machine);
    let doing = tokio::task::spawn_blocking(move || done(&on)).await;
    stop.store(true, Ordering::Relaxed);
    let sent: u64 = sender.await.unwrap();
    doing.unwrap();
    let needle = format!("to=<{name}");
    let deliveries = || {
        let log = log(machine);
        log[before..].lines().filter(|line| line.contains(&needle)).map(str::to_owned).collect::<Vec<_>>()
    };
    eventually(&format!("{sent} deliveries"), machine, || deliveries().len() as u64 >= sent).await;
    for line in deliveries() {
        assert!(line.contains("status=sent "), "{line}");
    }
    let log = log(machine);
    let troubled: Vec<&str> =
        log[before..].lines().filter(|line| line.contains("socketmap") || line.contains("warning:")).collect();
    // Postfix says when a table's connection ended and it asks once more; that is no fault.
    let serious: Vec<&&str> = troubled.iter().filter(|line| line.contains("table lookup problem")).collect();
    assert!(serious.is_empty(), "{serious:?}");
    await_counts(machine, world, &today()).await;
    sent
}

async fn is_backed_up_and_put_back(machine: &Machine, world: &World) {
    machine.run("tlswarden backup /root/backup && tlswarden backup /tmp/backup").unwrap();
    let refused = machine.output("tlswarden backup /root/backup");
    assert!(!refused.0 && refused.1.contains("is there already"), "{refused:?}");
    let left = machine.run("ls /var/lib/tlswarden").unwrap();
    assert!(!left.contains("backup"), "{left}");
    let before = counted(machine, &today());
    for backup in ["/root/backup", "/tmp/backup"] {
        machine
            .run(&format!(
                "systemctl stop tlswarden tlswarden.socket; rm -rf /var/lib/tlswarden; mv {backup} /var/lib/tlswarden;
                 systemctl start tlswarden"
            ))
            .unwrap();
        assert_eq!(counted(machine, &today()), before, "{backup}");
    }
    // Without the daemon too.
    machine
        .run("systemctl stop tlswarden tlswarden.socket; tlswarden backup /root/cold; systemctl start tlswarden")
        .unwrap();
    send("flow.test", "after").await;
    await_counts(machine, world, &today()).await;
}

/// The day ends: the reports go out, signed.
async fn reports(machine: &Machine, world: &World) {
    let day = today();
    let before = counted(machine, &day);
    let mut identity = format!(
        "organization = \"Closed World\"\ncontact = \"postmaster@{SENDER}\"\nfrom = \"tlsrpt@{SENDER}\"\nspread = \"0s\"\n"
    );
    for key in &world.keys {
        let file = format!("/etc/tlswarden/dkim.d/{}.pem", key.selector);
        fs::write(machine.path(&file), &key.pem).unwrap();
        machine.run(&format!("chmod 600 {file}")).unwrap();
        identity += &format!("[[report.dkim]]\nselector = \"{}\"\nkey = \"{file}\"\n", key.selector);
    }
    let tomorrow = (seconds() / DAY + 1) * DAY;
    configure(machine, &format!("{identity}---clock = \"{}\"\n", stamp(tomorrow + 310)));
    let moment = jiff::Timestamp::from_second(i64::try_from(tomorrow + 300).unwrap()).unwrap();
    let line = format!(
        "{} machine postfix/qmgr[1]: 0123456789A: from=<>, size=1, nrcpt=1 (queue active)\n",
        moment.strftime("%b %d %H:%M:%S")
    );
    fs::OpenOptions::new()
        .append(true)
        .open(machine.path("/var/log/mail.log"))
        .unwrap()
        .write_all(line.as_bytes())
        .unwrap();
    let arrived = || world.receiver("mx.reports.test").record().mail;
    eventually("3 reports", machine, || arrived().len() >= 3).await;
    let mut reported = BTreeMap::new();
    for mail in arrived() {
        let verdicts = dkim::verify(&mail.data, world.dns.address()).await.unwrap();
        assert!(verdicts.len() == 2 && verdicts.iter().all(|v| v.result.is_ok()), "{verdicts:?}");
        let report = report::read(&mail.data).unwrap_or_else(|faults| panic!("{}", faults.join("\n")));
        reported.insert(report.domain.clone(), report.totals());
    }
    assert_eq!(reported, before);
}

fn nothing_is_left(machine: &Machine) {
    let found = machine
        .run("find / -xdev -not -path '/proc/*' -not -path '/root/*' -not -path '/tmp/*' -iname '*tlswarden*'")
        .unwrap();
    assert_eq!(found, "");
    assert!(!machine.output("getent passwd tlswarden").0 && !machine.output("getent group tlswarden").0);
    assert!(!machine.run("systemctl list-units --all --no-pager --plain --no-legend").unwrap().contains("tlswarden"));
    assert!(machine.path("/var/spool/postfix").exists());
}
