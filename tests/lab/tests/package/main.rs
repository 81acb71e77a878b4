//! The Debian package on a booted machine of each release, beside its Postfix: from `apt install` to purge.
//!
//! Needs the package (`packaging/deb`), root, and the chroots (`tests/chroot bookworm`, `tests/chroot trixie`). systemd runs
//! as the machine's first process, so units, sockets, maintainer scripts and confinement are the real ones; only AppArmor
//! is not there. Without the package it cannot run: `tests/run` builds it first and asks for these tests by name.

mod others;
mod site;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lab::host::{self, DAY, seconds, stamp, today};
use lab::https::Answer;
use lab::machine::Machine;
use lab::postfix::Installation;
use lab::world::SENDER;
use lab::{dkim, report, socketmap};
use site::{SOCKET, Site, package};

/// How often the daemon is restarted while mail flows.
const RESTARTS: u32 = 100;

/// How long a whole life may take.
const ROOM: Duration = Duration::from_secs(420);

#[test]
#[ignore = "needs the package: packaging/deb; tests/run asks for it by name"]
fn installed_upgraded_and_purged_on_bookworm() {
    run_in_host("installed_upgraded_and_purged_on_bookworm", "bookworm", life);
}

#[test]
#[ignore = "needs the package: packaging/deb; tests/run asks for it by name"]
fn installed_upgraded_and_purged_on_trixie() {
    run_in_host("installed_upgraded_and_purged_on_trixie", "trixie", life);
}

#[test]
#[ignore = "needs the package: packaging/deb; tests/run asks for it by name"]
fn counted_from_the_journal_alone() {
    run_in_host("counted_from_the_journal_alone", "trixie", others::journal);
}

#[test]
#[ignore = "needs the package: packaging/deb; tests/run asks for it by name"]
fn exim_comes_later_and_postfix_after_it() {
    run_in_host("exim_comes_later_and_postfix_after_it", "bookworm", others::exim);
}

/// Runs a test of a release in namespaces of its own.
fn run_in_host(test: &str, release: &str, test_of: impl AsyncFnOnce(&Installation)) {
    match host::inside() {
        Some(root) => {
            let installation = Installation::at(Path::new(&root)).unwrap();
            tokio::runtime::Runtime::new().unwrap().block_on(test_of(&installation));
        }
        None => {
            let root = Installation::of_release(release).unwrap_or_else(|e| panic!("{e}")).root().to_owned();
            host::run_ignored_inside(test, &root).unwrap_or_else(|e| panic!("{e}"));
        }
    }
}

async fn life(installation: &Installation) {
    let site = Site::boot(installation, ROOM).await;
    site.run("systemctl restart rsyslog");
    site.set_up_postfix();
    let printed = site.install();
    starts_by_itself_and_says_what_it_found(&site);

    site.take_the_lines(&printed);
    // The daemon is reloaded with Postfix, and finds what the lines say.
    site.said("smtp_tls_security_level may, smtp_dns_support_level dnssec").await;
    site.close_network();
    site.say("main.cf has the lines that the package printed");
    site.policies_hold("one").await;
    let answer = socketmap::ask(&site.machine.path(SOCKET), "policy", "flow.test").await.unwrap();
    assert_eq!(answer.trim_end(), "OK secure match=mx.flow.test servername=hostname");
    site.say("sent over Verified TLS to flow.test and dane.example; bad.test deferred");
    site.await_counts().await;
    site.say("counted what the servers saw: the first counted sessions");
    site.doctor_finds(&["warning no-identity"]);
    site.doctor_finds_for_anybody(&["warning not-root", "warning no-identity"]);
    let chroot = site.run("postconf -Fh smtp/unix/chroot");
    let other = if chroot.trim() == "y" { "n" } else { "y" };
    site.run(&format!("postconf -F smtp/unix/chroot={other} && systemctl reload postfix"));
    site.policies_hold("other").await;
    site.say(&format!("the same with smtp(8) where chroot is {other} in master.cf; it was {}", chroot.trim()));
    is_confined(&site);
    says_what_fails(&site).await;
    is_watched(&site).await;

    let fetched = site.world.policy_hosts.requests("flow.test");
    let restarts = flow(&site, "restarts", |machine| {
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
    site.say(&format!(
        "{RESTARTS} restarts and 5 kill -9 while {restarts} messages went out: none deferred, each counted once"
    ));

    for (number, version) in ["99.0-1", "99.1-1"].iter().enumerate() {
        newer(&package(), &site.machine.path(&format!("/root/newer{number}.deb")), version);
    }
    let upgraded = flow(&site, "upgrades", |machine| {
        for number in 0..2 {
            machine.run(&format!("dpkg -i /root/newer{number}.deb")).unwrap();
        }
    })
    .await;
    assert_eq!(site.world.policy_hosts.requests("flow.test"), fetched, "the policy was kept");
    site.say(&format!("2 upgrades while {upgraded} messages went out: none deferred, each counted once"));

    is_backed_up_and_put_back(&site).await;
    site.say("backup made while it runs, with and without another file system, and put back");
    goes_on_without(&site).await;
    reports(&site).await;
    site.say("reports signed with keys that are root's alone went through this Postfix");

    let said = site.run("dpkg -r tlswarden 2>&1");
    assert!(said.contains("postconf -X smtp_tls_policy_maps && postfix reload"), "{said}");
    let there = |file: &str| site.machine.path(file).exists();
    assert!(!there(SOCKET) && there("/var/lib/tlswarden/embedded"));
    assert!(!site.machine.output("systemctl is-active tlswarden.service tlswarden.socket").0);
    assert!(there("/etc/tlswarden/tlswarden.toml"), "configuration stays until purge");
    site.run("dpkg -i /root/tlswarden.deb");
    // Fails where one of them is masked or disabled.
    site.run(
        "for unit in tlswarden.service tlswarden.socket tlswarden-exim.socket; do \
              systemctl is-enabled $unit || exit 1; done && systemctl is-active tlswarden.socket tlswarden.service",
    );
    assert!(there(SOCKET));
    site.say("removed and installed again: each unit is enabled, and systemd has the socket");
    site.run("dpkg --purge tlswarden");
    site.nothing_is_left();
    assert!(there("/var/spool/postfix"));
    site.say("removed, then purged: nothing is left");
    site.run("dpkg -i /root/tlswarden.deb && systemctl is-active tlswarden && dpkg --purge tlswarden");
    site.nothing_is_left();
    site.say("installed anew and purged at once: nothing is left");
}

/// One line for a destination that begins to fail, and one for a policy that cannot be fetched anew.
async fn says_what_fails(site: &Site) {
    let fails = "session: bad.test: fails: certificate-not-trusted";
    site.said(fails).await;
    site.await_counts().await;
    let times = || site.daemon_log().matches(fails).count();
    let once = times();
    site.send("bad.test", "again").await;
    site.eventually("another failure", || site.log().contains("to=<again@bad.test>")).await;
    site.await_counts().await;
    assert_eq!(times(), once);
    site.world.policy_hosts.answer("flow.test", Answer::Status(500));
    site.run("tlswarden policy refresh flow.test");
    site.said("MTA-STS of flow.test: the policy cannot be had: ").await;
    println!("{}", site.run("journalctl --no-pager -o cat -u tlswarden -n 1"));
}

/// systemd's watchdog: fed while the daemon gets on, and a daemon that stands still is ended and started anew.
async fn is_watched(site: &Site) {
    let process = || site.run("systemctl show --value --property MainPID tlswarden").trim().to_owned();
    let drop_in = "/run/systemd/system/tlswarden.service.d";
    site.run(&format!(
        "mkdir {drop_in} && printf '[Service]\\nWatchdogSec=2s\\n' >{drop_in}/watchdog.conf && systemctl daemon-reload &&
         systemctl restart tlswarden"
    ));
    let first = process();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(process(), first, "{}", site.machine.journal());
    site.run(&format!("kill -STOP {first}"));
    site.eventually("another process", || process() != first && process() != "0").await;
    site.said("Watchdog timeout").await;
    site.run(&format!("rm -r {drop_in} && systemctl daemon-reload && systemctl restart tlswarden"));
    site.say("the watchdog of a second or two is fed; a daemon that stands still is ended and started anew");
}

/// Units, start lines, `status`, groups and folders, before anything was configured.
fn starts_by_itself_and_says_what_it_found(site: &Site) {
    for unit in ["tlswarden.service", "tlswarden.socket"] {
        site.run(&format!("systemctl is-active {unit} && systemctl is-enabled {unit}"));
    }
    let said = site.daemon_log();
    println!("{said}");
    let version = site.installation.short_version();
    for wanted in [
        &*format!("postfix: found: version {version}."),
        "smtp_tls_security_level none, smtp_dns_support_level empty, smtp_tls_dane_insecure_mx_policy ",
        "input: found: /var/log/mail.log (a syslog daemon is installed)",
        "socketmap: listening on unix:/var/spool/postfix/tlswarden/socketmap",
        "report: no report is sent: [report] lacks organization, contact, from, ",
    ] {
        assert!(said.contains(wanted), "`{wanted}` is not in\n{said}");
    }
    for fault in ["nobody is answered", "the limit stays as it is", "not told"] {
        assert!(!said.contains(fault), "{said}");
    }
    // A log that nobody wrote to yet, or a resolver that was not asked yet, is a warning.
    let status = site.run("tlswarden status || [ $? = 1 ]");
    assert!(status.contains("no report is sent: [report] lacks organization"), "{status}");
    let id = site.run("id -nG tlswarden");
    assert!(id.contains("adm") && id.contains("systemd-journal"), "{id}");
    let folder = site.run("stat -c '%U %G %a' /var/spool/postfix/tlswarden /var/lib/tlswarden");
    assert_eq!(folder, "tlswarden postfix 750\ntlswarden tlswarden 700\n");
}

fn is_confined(site: &Site) {
    let analyzed = site.run("systemd-analyze security --no-pager tlswarden.service");
    let last = analyzed.lines().rev().find(|line| line.contains("Overall exposure level")).unwrap();
    let level: f32 = last.split_whitespace().find_map(|word| word.parse().ok()).unwrap();
    println!("{}", analyzed.lines().filter(|line| line.starts_with('✗')).collect::<Vec<_>>().join("\n"));
    println!("{last}");
    assert!(level <= 1.5, "{last}");
    let verified =
        site.run("systemd-analyze verify --man=no tlswarden.service tlswarden.socket tlswarden-exim.socket 2>&1");
    assert_eq!(verified.trim(), "");
    site.say("confined: systemd-analyze security and verify");
}

/// Sends without a pause while something is `done` to the daemon, and holds the log and the counts to it; how many went out.
async fn flow(site: &Site, name: &str, done: impl FnOnce(&Machine) + Send + 'static) -> u64 {
    let before = site.log().len();
    let stop = Arc::new(AtomicBool::new(false));
    let (from, stopping, mailbox) = (site.clone(), Arc::clone(&stop), name.to_owned());
    let sender = tokio::spawn(async move {
        let mut sent = 0;
        while !stopping.load(Ordering::Relaxed) {
            from.send("flow.test", &format!("{mailbox}{sent}")).await;
            sent += 1;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        sent
    });
    let on = Arc::clone(&site.machine);
    let doing = tokio::task::spawn_blocking(move || done(&on)).await;
    stop.store(true, Ordering::Relaxed);
    let sent: u64 = sender.await.unwrap();
    doing.unwrap();
    let needle = format!("to=<{name}");
    let deliveries = || {
        let log = site.log();
        log[before..].lines().filter(|line| line.contains(&needle)).map(str::to_owned).collect::<Vec<_>>()
    };
    site.eventually(&format!("{sent} deliveries"), || deliveries().len() as u64 >= sent).await;
    for line in deliveries() {
        assert!(line.contains("status=sent "), "{line}");
    }
    // Postfix says when a table's connection ended and it asks once more; that is no fault.
    let log = site.log();
    let serious: Vec<&str> = log[before..].lines().filter(|line| line.contains("table lookup problem")).collect();
    assert!(serious.is_empty(), "{serious:?}");
    site.await_counts().await;
    sent
}

async fn is_backed_up_and_put_back(site: &Site) {
    site.run("tlswarden backup /root/backup && tlswarden backup /tmp/backup");
    let refused = site.machine.output("tlswarden backup /root/backup");
    assert!(!refused.0 && refused.1.contains("is there already"), "{refused:?}");
    let left = site.run("ls /var/lib/tlswarden");
    assert!(!left.contains("backup"), "{left}");
    let before = site.counted(&today());
    for backup in ["/root/backup", "/tmp/backup"] {
        site.run(&format!(
            "systemctl stop tlswarden tlswarden.socket && tlswarden restore {backup} && systemctl start tlswarden"
        ));
        assert_eq!(site.counted(&today()), before, "{backup}");
    }
    // Without the daemon too.
    site.run("systemctl stop tlswarden tlswarden.socket; tlswarden backup /root/cold; systemctl start tlswarden");
    site.send("flow.test", "after").await;
    site.await_counts().await;
}

/// What the README says to do where the daemon stays down: the policies hold, from a table.
async fn goes_on_without(site: &Site) {
    let asked = site.run("postconf smtp_tls_policy_maps");
    site.run(
        "systemctl stop tlswarden tlswarden.socket
         tlswarden policy export >/etc/postfix/tlswarden-policies
         postconf -e smtp_tls_policy_maps=texthash:/etc/postfix/tlswarden-policies && postfix reload",
    );
    site.policies_hold("without").await;
    site.run(&format!(
        "systemctl start tlswarden.socket tlswarden && postconf -e '{}' && postfix reload
         rm /etc/postfix/tlswarden-policies",
        asked.trim()
    ));
    site.await_counts().await;
    site.say("the daemon down, its policies held from a table; what was logged was counted at its start");
}

/// The identity comes after the counts, which have waited for it; the day ends, and the reports go out, signed.
async fn reports(site: &Site) {
    let before = site.counted(&today());
    let made = site.run("tlswarden dkim-key --type ed25519 --selector made --domain sender.test");
    assert!(made.contains("key = \"/etc/tlswarden/dkim.d/made.pem\""), "{made}");
    assert_eq!(site.run("stat -c '%U %a' /etc/tlswarden/dkim.d/made.pem"), "root 600\n");
    let mut identity = format!(
        "organization = \"Closed World\"\ncontact = \"postmaster@{SENDER}\"\nfrom = \"tlsrpt@{SENDER}\"\nspread = \"0s\"\n"
    );
    for key in &site.world.keys {
        let file = format!("/etc/tlswarden/dkim.d/{}.pem", key.selector);
        fs::write(site.machine.path(&file), &key.pem).unwrap();
        site.run(&format!("chmod 600 {file}"));
        identity += &format!("[[report.dkim]]\nselector = \"{}\"\nkey = \"{file}\"\n", key.selector);
    }
    site.configure(&[("report", &identity)]);
    // Postfix before 3.10 does not know TLS-Required, and this one has no transport of its own for reports.
    let knows_tls_required = !site.run("postconf -d -h mail_version").starts_with("3.7.");
    site.doctor_finds(if knows_tls_required { &[] } else { &["warning no-report-transport"] });
    site.say("doctor: nothing wrong");
    let tomorrow = (seconds() / DAY + 1) * DAY;
    site.configure(&[("closed_network", &format!("clock = \"{}\"\n", stamp(tomorrow + 310)))]);
    let moment = jiff::Timestamp::from_second(i64::try_from(tomorrow + 300).unwrap()).unwrap();
    let line = format!(
        "{} machine postfix/qmgr[1]: 0123456789A: from=<>, size=1, nrcpt=1 (queue active)\n",
        moment.strftime("%b %d %H:%M:%S")
    );
    let log = fs::OpenOptions::new().append(true).open(site.machine.path("/var/log/mail.log"));
    log.unwrap().write_all(line.as_bytes()).unwrap();
    let arrived = || site.world.receiver("mx.reports.test").record().mail;
    site.eventually("3 reports", || arrived().len() >= 3).await;
    let mut reported = BTreeMap::new();
    for mail in arrived() {
        let verdicts = dkim::verify(&mail.data, site.world.dns.address()).await.unwrap();
        assert!(verdicts.len() == 2 && verdicts.iter().all(|v| v.result.is_ok()), "{verdicts:?}");
        let report = report::read(&mail.data).unwrap_or_else(|faults| panic!("{}", faults.join("\n")));
        reported.insert(report.domain.clone(), report.totals());
    }
    assert_eq!(reported, before);
    site.eventually("a line for each report", || site.daemon_log().matches(": sent: 250 ").count() == 3).await;
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
            .args(["--root-owner-group", "-Znone", "-b"])
            .arg(&folder)
            .arg(to)
            .stdout(Stdio::null()),
    );
}
