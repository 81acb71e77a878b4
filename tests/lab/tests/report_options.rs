//! Who gets a report and who does not: what `[report]` says, what receivers publish to trap a sender, and keys that are not
//! as they should be. One daemon, one day; the server that takes the reports knows what went, the log says why the rest
//! did not.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use lab::daemon::{Daemon, Program};
use lab::world::{Options, World};
use serde_json::Value;
use tlswarden::base::clock::Clock;
use tlswarden::base::tlsrpt::{Day, Policy, TallyKey, TallyResult};
use tlswarden::store::embedded::EmbeddedStore;
use tlswarden::store::{Batch, Store};

const SECTION: &str = "[report]\nonly_failures = true\nallow = [\".test\"]\nmax_destinations = 2\n";
const SUPPRESS: &str = "[[report.suppress]]\ndomain = \"quiet.test\"\nuntil = \"2026-11-22\"\n\
                        [[report.suppress]]\ndomain = \"quiet-until-then.test\"\nuntil = \"2026-11-21\"\n\
                        [[report.suppress]]\ndestination = \"unwanted.example\"\n\n[count]\n";

/// Mail to two domains: bounces alone, and one bounce beside other mail.
const LOG: &str = "\
    Nov 22 10:00:00 mta postfix/qmgr[1]: 0123456781A: from=<>, size=2278, nrcpt=1 (queue active)\n\
    Nov 22 10:00:01 mta postfix/smtp[2]: SSL_connect error to mx.bounced.test[203.0.113.1]:25: lost connection\n\
    Nov 22 10:00:01 mta postfix/smtp[2]: 0123456781A: to=<u@bounced.test>, relay=mx.bounced.test[203.0.113.1]:25, delay=1, \
    delays=0/0/1/0, dsn=4.7.5, status=deferred (Cannot start TLS: handshake failure)\n\
    Nov 22 10:00:02 mta postfix/qmgr[1]: 0123456782A: from=<>, size=2278, nrcpt=1 (queue active)\n\
    Nov 22 10:00:03 mta postfix/smtp[2]: SSL_connect error to mx.mixed.test[203.0.113.2]:25: lost connection\n\
    Nov 22 10:00:03 mta postfix/smtp[2]: 0123456782A: to=<u@mixed.test>, relay=mx.mixed.test[203.0.113.2]:25, delay=1, \
    delays=0/0/1/0, dsn=4.7.5, status=deferred (Cannot start TLS: handshake failure)\n\
    Nov 22 10:00:04 mta postfix/qmgr[1]: 0123456783A: from=<s@sender.test>, size=278, nrcpt=1 (queue active)\n\
    Nov 22 10:00:05 mta postfix/smtp[2]: SSL_connect error to mx.mixed.test[203.0.113.2]:25: lost connection\n\
    Nov 22 10:00:05 mta postfix/smtp[2]: 0123456783A: to=<u@mixed.test>, relay=mx.mixed.test[203.0.113.2]:25, delay=1, \
    delays=0/0/1/0, dsn=4.7.5, status=deferred (Cannot start TLS: handshake failure)\n\
    Nov 23 00:05:00 mta postfix/qmgr[1]: 0123456789A: from=<>, size=1, nrcpt=1 (queue active)\n";

/// Domain, what it publishes, the addresses that its report goes to. What [`LOG`] has no mail to is in the store.
const DOMAINS: [(&str, &str, &[&str]); 10] = [
    ("bounced.test", "mailto:r@bounced.test", &[]),
    ("mixed.test", "mailto:r@mixed.test", &["r@mixed.test"]),
    ("plain.test", "mailto:r@plain.test", &["r@plain.test"]),
    // All of its sessions succeeded.
    ("sound.test", "mailto:r@sound.test", &[]),
    ("not-allowed.example", "mailto:r@not-allowed.example", &[]),
    ("quiet.test", "mailto:r@quiet.test", &[]),
    ("quiet-until-then.test", "mailto:r@quiet-until-then.test", &["r@quiet-until-then.test"]),
    ("shared.test", "mailto:r@unwanted.example,mailto:r@shared.test", &["r@shared.test"]),
    (
        "floods.test",
        "mailto:1@floods.test,mailto:2@floods.test,mailto:3@floods.test",
        &["1@floods.test", "2@floods.test"],
    ),
    (
        "traps.test",
        "mailto:a@traps.test%0D%0ABcc:x@evil.example,mailto:a@traps.test%2Cb@evil.example,mailto:root@localhost,\
         https://user@traps.test/,gopher://traps.test/,mailto:r@traps.test?bcc=x@evil.example",
        &["r@traps.test"],
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn who_gets_a_report_and_what_is_said_of_the_others() {
    let world = World::start(Options::default(), &[]).await.unwrap();
    let day: Day = "2026-11-22".parse().unwrap();
    let mut batch = Batch::default();
    for (domain, rua, _) in DOMAINS {
        world.dns.change().txt(&format!("_smtp._tls.{domain}"), &format!("v=TLSRPTv1; rua={rua}"));
        if LOG.contains(domain) {
            continue;
        }
        let result = if domain == "sound.test" { TallyResult::Success } else { TallyResult::Failure };
        batch.add.push((TallyKey { day, policy: Policy::none(domain).into(), domain: domain.into(), result }, 3));
    }
    EmbeddedStore::open(&world.folder().join("store"), Clock::default()).unwrap().store.write(batch).unwrap();
    fs::write(world.log(), LOG).unwrap();
    // One key is not the published one, the other may be read by all.
    let [one, other] = &world.keys;
    world.dns.change().txt(&format!("{}._domainkey.sender.test", one.selector), "v=DKIM1; k=rsa; p=AAAA");
    let file = world.folder().join(format!("{}.pem", other.selector));
    fs::set_permissions(file, PermissionsExt::from_mode(0o644)).unwrap();
    world.configure(Some("2026-11-23T00:10:00Z")).unwrap();
    let config = fs::read_to_string(world.config()).unwrap();
    let config = config.replace("[report]\n", SECTION).replace("[count]\n", SUPPRESS);
    fs::write(world.config(), config).unwrap();

    let program = Program::lab(env!("CARGO_BIN_EXE_lab"));
    let daemon = Daemon::start(&program, &world).await.unwrap();
    let begun = Instant::now();
    loop {
        let output = program.run(&world, &["reports", "list", "--all", "--json"]).await.unwrap();
        let due: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let about: BTreeSet<&str> = due.iter().filter_map(|due| due["domain"].as_str()).collect();
        if about.len() == DOMAINS.len() && due.iter().all(|due| due["state"] == "sent" || due["state"] == "nothing") {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{due:#?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    daemon.stop().await.unwrap();

    let mails = world.submission().record().mail;
    let went: BTreeSet<&str> = mails.iter().flat_map(|mail| &mail.to).map(String::as_str).collect();
    let wanted: BTreeSet<&str> = DOMAINS.iter().flat_map(|(_, _, to)| *to).copied().collect();
    assert_eq!((went, mails.len()), (wanted.clone(), wanted.len()));
    assert!(
        mails.iter().all(|mail| mail.to.len() == 1 && !String::from_utf8_lossy(&mail.data).contains("evil.example"))
    );
    let log = fs::read_to_string(world.folder().join("daemon.log")).unwrap();
    for said in [
        "sound.test: none: not wanted: nothing failed, and [report] only_failures is set",
        "bounced.test: none: not wanted: only mail with a null sender (bounces) went there, and [report] null_sender is not set",
        "not-allowed.example: none: not wanted: it is not in [report] allow",
        "quiet.test: none: not wanted: [[report.suppress]] domain = \"quiet.test\", until 2026-11-22",
        "shared.test: mailto:r@unwanted.example left out: [[report.suppress]] destination = \"unwanted.example\"",
        "floods.test: mailto:3@floods.test left out: more destinations than are served",
        "traps.test: mailto:a@traps.test%0D%0ABcc:x@evil.example left out: a control character in the address",
        "traps.test: mailto:a@traps.test%2Cb@evil.example left out: not a plain mail address",
        "traps.test: mailto:root@localhost left out: a name of the local network",
        "traps.test: https://user@traps.test/ left out: a user in the URI",
        "traps.test: gopher://traps.test/ left out: unknown scheme",
        "[[report.dkim]] lab-rsa: lab-rsa._domainkey.sender.test: it has another key",
        "lab-ed25519.pem: others may read or write it (mode 0644)",
    ] {
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(said)).collect();
        assert_eq!(lines.len(), 1, "{said}\n{log}");
        println!("{}", lines[0].split_once(' ').map_or(lines[0], |(_, line)| line.trim_start()));
    }
}
