//! What users of other policy servers complained about, each as a test: the real daemon, asked as Postfix asks.
//!
//! Each test names the lesson and where it was learnt (program#issue). Needs no root and no MTA; `policies.rs` shows some of
//! them with the real Postfix.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use hickory_proto::rr::RecordType;
use lab::ca::Fault;
use lab::daemon::{Daemon, Program};
use lab::dns;
use lab::https::Answer;
use lab::socketmap;
use lab::world::{Domain, Options, Server, Tlsa, World};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const NONE: &str = "NOTFOUND ";

/// A world and the daemon in it, which is told this version of Postfix.
async fn start(postfix: &str, domains: &[Domain]) -> (World, Daemon) {
    let options = Options { postfix: postfix.into(), ..Options::default() };
    let world = World::start(options, domains).await.unwrap();
    let daemon = Daemon::start(&program(), &world).await.unwrap();
    (world, daemon)
}

fn program() -> Program {
    Program::lab(env!("CARGO_BIN_EXE_lab"))
}

async fn ask(world: &World, domain: &str) -> String {
    socketmap::ask(&world.socketmap(), "policy", domain).await.unwrap()
}

fn enforce(name: &str) -> Domain {
    Domain::new(name).host("mx", Server::Sound).sts("enforce", "mx")
}

fn secure(domain: &str) -> String {
    format!("OK secure match=mx.{domain} servername=hostname")
}

/// A Postfix that tries a dead MX asks nothing for minutes and then finds its connection closed: mail deferred. Idle
/// clients are never closed first, however many there are; the 513th is answered like the first.
/// (postfix-tlspol#7, postfix-tlspol#177)
#[tokio::test(flavor = "multi_thread")]
async fn idle_clients_are_never_closed_first() {
    let (world, daemon) = start("3.7", &[enforce("held.test")]).await;
    assert_eq!(ask(&world, "held.test").await, secure("held.test"));
    let mut clients = Vec::new();
    for _ in 0..600 {
        clients.push(UnixStream::connect(world.socketmap()).await.unwrap());
    }
    // Longer than Postfix itself keeps an idle connection (ipc_idle, 5 s; the socketmap client, 10 s).
    tokio::time::sleep(Duration::from_secs(11)).await;
    let reply = format!("{}:{},", secure("held.test").len(), secure("held.test"));
    for _ in 0..2 {
        for (n, client) in clients.iter_mut().enumerate() {
            client.write_all(b"16:policy held.test,").await.unwrap();
            let mut octets = vec![0; reply.len()];
            let read = tokio::time::timeout(Duration::from_secs(5), client.read_exact(&mut octets)).await;
            read.unwrap_or_else(|_| panic!("client {n} gets no answer")).unwrap();
            assert_eq!(String::from_utf8(octets).unwrap(), reply);
        }
    }
    daemon.stop().await.unwrap();
}

/// Under unsigned MX records `dane-only` would defer all mail. `dane` is right where Postfix follows TLSA records there
/// (`smtp_tls_dane_insecure_mx_policy`); where it does not, its own level holds. (postfix-tlspol#8, postfix-tlspol#177)
#[tokio::test(flavor = "multi_thread")]
async fn dane_and_not_dane_only_under_unsigned_mx_records() {
    for (postfix, answer) in [("3.10", "OK dane"), ("3.7", "NOTFOUND ")] {
        let every = Domain::new("unsigned.test").dane_host("mx", Server::Sound, Tlsa::Matching);
        let (world, daemon) = start(postfix, &[every]).await;
        world.dns.change().cut("mx.unsigned.test", true);
        assert_eq!(ask(&world, "unsigned.test").await, answer, "{postfix}");
        daemon.stop().await.unwrap();
    }
}

/// A broken `_mta-sts` delegation is no failure of DANE, and defers nothing: neither an error nor silence.
/// (postfix-tlspol#82, postfix-tlspol#4)
#[tokio::test(flavor = "multi_thread")]
async fn a_broken_mta_sts_delegation_defers_nothing() {
    let dane = |name: &str| Domain::new(name).signed().dane_host("mx", Server::Sound, Tlsa::Matching);
    let domains = [enforce("error.test"), enforce("silent.test"), dane("error.example"), dane("silent.example")];
    let (world, daemon) = start("3.7", &domains).await;
    for name in ["error.test", "error.example"] {
        world.dns.change().fault(&format!("_mta-sts.{name}"), Some(dns::Fault::ServFail));
    }
    for name in ["silent.test", "silent.example"] {
        world.dns.change().fault(&format!("_mta-sts.{name}"), Some(dns::Fault::Silence));
    }
    for (name, want) in [
        ("error.test", NONE),
        ("silent.test", NONE),
        ("error.example", "OK dane-only"),
        ("silent.example", "OK dane-only"),
    ] {
        let begin = Instant::now();
        assert_eq!(ask(&world, name).await, want, "{name}");
        assert!(begin.elapsed() < Duration::from_secs(7), "{name}: {:?}", begin.elapsed());
    }
    daemon.stop().await.unwrap();
}

/// What cannot be fetched is not asked for again and again: 5 minutes, then longer (`cache.rs` counts them).
/// (postfix-tlspol#156)
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_fetch_backs_off() {
    let broken = Domain::new("broken.test").host("mx", Server::Sound).sts_answer(Answer::Status(500));
    let (world, daemon) = start("3.7", &[broken]).await;
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(5) {
        assert_eq!(ask(&world, "broken.test").await, NONE);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(world.policy_hosts.requests("broken.test"), 1);
    daemon.stop().await.unwrap();
}

/// A domain that publishes a new policy is healed once its record's TTL has run out, not when the policy expires.
/// (postfix-tlspol#139, postfix-mta-sts-resolver#113)
#[tokio::test(flavor = "multi_thread")]
async fn a_changed_id_replaces_a_wrong_policy() {
    let wrong = Domain::new("moved.test").host("new", Server::Sound).sts("enforce", "old");
    let (world, daemon) = start("3.7", &[wrong]).await;
    assert_eq!(ask(&world, "moved.test").await, "OK secure match=old.moved.test servername=hostname");
    let right = "version: STSv1\nmode: enforce\nmx: new.moved.test\nmax_age: 604800\n";
    world.policy_hosts.answer("moved.test", Answer::Document(right.into()));
    world.dns.change().txt("_mta-sts.moved.test", "v=STSv1; id=20261102T000000;");
    // The record holds for a minute; a daemon that starts asks for it at once.
    assert_eq!(ask(&world, "moved.test").await, "OK secure match=old.moved.test servername=hostname");
    daemon.stop().await.unwrap();
    let daemon = Daemon::start(&program(), &world).await.unwrap();
    becomes(&world, "moved.test", "OK secure match=new.moved.test servername=hostname").await;
    daemon.stop().await.unwrap();
}

/// An administrator who knows that a cached policy is wrong, though its id has not changed, has the one domain forgotten.
/// (postfix-tlspol#139, postfix-mta-sts-resolver#113)
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_policy_is_purged_for_one_domain_alone() {
    let wrong = Domain::new("moved.test").host("new", Server::Sound).sts("enforce", "old");
    let (world, daemon) = start("3.7", &[wrong, enforce("other.test")]).await;
    assert_eq!(ask(&world, "moved.test").await, "OK secure match=old.moved.test servername=hostname");
    assert_eq!(ask(&world, "other.test").await, secure("other.test"));
    let right = "version: STSv1\nmode: enforce\nmx: new.moved.test\nmax_age: 604800\n";
    world.policy_hosts.answer("moved.test", Answer::Document(right.into()));
    let purged = program().run(&world, &["policy", "purge", "moved.test"]).await.unwrap();
    assert!(purged.status.success(), "{}", String::from_utf8_lossy(&purged.stderr));
    assert_eq!(ask(&world, "moved.test").await, "OK secure match=new.moved.test servername=hostname");
    assert_eq!(ask(&world, "other.test").await, secure("other.test"));
    assert_eq!(world.policy_hosts.requests("other.test"), 1);
    daemon.stop().await.unwrap();
}

/// A domain that is known to publish what it does not keep gets an answer of the administrator's own; its neighbours do
/// not. (postfix-tlspol#60, postfix-tlspol#178)
#[tokio::test(flavor = "multi_thread")]
async fn the_administrator_decides_for_single_domains() {
    let dane = |name: &str| Domain::new(name).signed().dane_host("mx", Server::Sound, Tlsa::Matching);
    let both = dane("both.example").sts("enforce", "mx");
    let domains = [enforce("fixed.test"), enforce("left.test"), both, dane("a.partner.example"), enforce("plain.test")];
    let options = Options { postfix: "3.7".into(), ..Options::default() };
    let world = World::start(options, &domains).await.unwrap();
    let rules = "\n[[policy.override]]\ndomain = \"fixed.test\"\nanswer = \"encrypt\"\n\
                 [[policy.override]]\ndomain = \"left.test\"\nnone = true\n\
                 [[policy.override]]\ndomain = \"both.example\"\nskip = \"dane\"\n\
                 [[policy.override]]\ndomain = \".partner.example\"\nskip = \"dane\"\n";
    let text = fs::read_to_string(world.config()).unwrap();
    fs::write(world.config(), text + rules).unwrap();
    let daemon = Daemon::start(&program(), &world).await.unwrap();
    for (name, want) in [
        ("fixed.test", "OK encrypt".to_owned()),
        ("left.test", NONE.into()),
        ("both.example", secure("both.example")),
        ("a.partner.example", NONE.into()),
        ("plain.test", secure("plain.test")),
    ] {
        assert_eq!(ask(&world, name).await, want, "{name}");
    }
    daemon.stop().await.unwrap();
}

/// Waits until the answer is another, asking as Postfix would.
async fn becomes(world: &World, domain: &str, want: &str) {
    let begin = Instant::now();
    loop {
        let answer = ask(world, domain).await;
        if answer == want {
            return;
        }
        assert!(begin.elapsed() < Duration::from_secs(10), "{domain}: stays {answer}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// `nmx:` in place of `mx:`: no host is allowed, so the policy is invalid; an empty `match=` would stick the mail.
/// (postfix-tlspol#95)
#[tokio::test(flavor = "multi_thread")]
async fn a_policy_without_mx_gives_no_empty_match() {
    let document = "version: STSv1\nmode: enforce\nnmx: mx.typo.test\nmax_age: 604800\n";
    let typo = Domain::new("typo.test").host("mx", Server::Sound).sts_answer(Answer::Document(document.into()));
    let (world, daemon) = start("3.10", &[typo]).await;
    for map in ["policy", "policy-tlsrpt"] {
        assert_eq!(socketmap::ask(&world.socketmap(), map, "typo.test").await.unwrap(), NONE);
    }
    let told = program().run(&world, &["policy", "explain", "typo.test"]).await.unwrap();
    let text = String::from_utf8(told.stdout).unwrap();
    assert!(text.contains("invalid document: no `mx`"), "{text}");
    daemon.stop().await.unwrap();
}

/// An IP address in `mx:` is not a host name: it is not handed on, and the document is invalid, for enforced by the other
/// names alone it would stop the mail to that host. (postfix-tlspol#70)
#[tokio::test(flavor = "multi_thread")]
async fn an_address_in_mx_is_not_handed_to_postfix() {
    let serves = |name: &str, mx: &str| {
        let document =
            format!("version: STSv1\nmode: enforce\nmx: 192.0.2.1\nmx: [2001:db8::1]\n{mx}max_age: 604800\n");
        Domain::new(name).host("mx", Server::Sound).sts_answer(Answer::Document(document))
    };
    let (world, daemon) =
        start("3.10", &[serves("beside.test", "mx: mx.beside.test\n"), serves("alone.test", "")]).await;
    for name in ["beside.test", "alone.test"] {
        for map in ["policy", "policy-tlsrpt"] {
            assert_eq!(socketmap::ask(&world.socketmap(), map, name).await.unwrap(), NONE, "{name}");
        }
        let explained = program().run(&world, &["policy", "explain", name]).await.unwrap();
        let text = String::from_utf8(explained.stdout).unwrap();
        assert!(text.contains(r#"invalid document: line 3: `mx` is "192.0.2.1": an IP address"#), "{text}");
    }
    daemon.stop().await.unwrap();
}

/// An attribute that the asking Postfix does not know defers the mail: an older one gets none, whatever map it asks.
/// (postfix-tlspol#6, postfix-mta-sts-resolver#66)
#[tokio::test(flavor = "multi_thread")]
async fn an_older_postfix_gets_no_attribute_that_it_does_not_know() {
    let testing = Domain::new("testing.test").host("mx", Server::Sound).sts("testing", "mx");
    let (world, daemon) = start("3.9", &[enforce("old.test"), testing]).await;
    for map in ["policy", "policy-tlsrpt", "QUERY", "QUERYwithTLSRPT", "postfix"] {
        for (domain, want) in [("old.test", secure("old.test")), ("testing.test", NONE.into())] {
            assert_eq!(socketmap::ask(&world.socketmap(), map, domain).await.unwrap(), want, "{map}");
        }
    }
    daemon.stop().await.unwrap();
}

/// Postfix enforces the patterns (`smtp_tls_enforce_sts_mx_patterns`) only if it is told them, whether or not anybody
/// wants reports: this domain publishes no `_smtp._tls` record. (postfix-tlspol#91, postfix-mta-sts-resolver#116)
#[tokio::test(flavor = "multi_thread")]
async fn a_newer_postfix_is_told_the_patterns_where_nobody_wants_reports() {
    let wildcard = Domain::new("silent.test").host("mx", Server::Sound).sts("enforce", "*");
    let (world, daemon) = start("3.10", &[wildcard]).await;
    let answer = socketmap::ask(&world.socketmap(), "policy-tlsrpt", "silent.test").await.unwrap();
    let begin = "OK secure match=.silent.test servername=hostname policy_type=sts policy_domain=silent.test \
                 mx_host_pattern=*.silent.test { policy_string = version: STSv1 } ";
    assert!(answer.starts_with(begin), "{answer}");
    daemon.stop().await.unwrap();
}

/// MTA-STS never overrides DANE, neither one that holds nor one that fails. (postfix-mta-sts-resolver#67)
#[tokio::test(flavor = "multi_thread")]
async fn mta_sts_never_overrides_dane() {
    let both = |name: &str, tlsa| Domain::new(name).signed().dane_host("mx", Server::Sound, tlsa).sts("enforce", "mx");
    let domains = [
        both("holds.example", Tlsa::Matching),
        both("differs.example", Tlsa::Mismatching),
        both("bogus.example", Tlsa::Matching),
    ];
    let (world, daemon) = start("3.7", &domains).await;
    world.dns.change().fault("_25._tcp.mx.bogus.example", Some(dns::Fault::ServFail));
    assert_eq!(ask(&world, "holds.example").await, "OK dane-only");
    assert_eq!(ask(&world, "differs.example").await, "OK dane-only");
    let bogus = ask(&world, "bogus.example").await;
    assert!(bogus.starts_with("TEMP "), "{bogus}");
    daemon.stop().await.unwrap();
}

/// A domain with DANE and MTA-STS: one decides, and an administrator is told what both say. (postfix-tlspol#71)
#[tokio::test(flavor = "multi_thread")]
async fn what_dane_and_mta_sts_say_of_one_domain_is_both_told() {
    let both = Domain::new("both.example").signed().dane_host("mx", Server::Sound, Tlsa::Matching).sts("testing", "mx");
    let (world, daemon) = start("3.10", &[both]).await;
    assert_eq!(ask(&world, "both.example").await, "OK dane-only");
    let told = program().run(&world, &["policy", "explain", "both.example"]).await.unwrap();
    let told = String::from_utf8(told.stdout).unwrap();
    for want in [
        "OK dane-only",
        "TLSA of mx.both.example [signed]: at _25._tcp.mx.both.example",
        "TXT of _mta-sts.both.example [signed]: a policy with id ",
        "mode: testing",
        "MX host mx.both.example: allowed by mx: mx.both.example",
    ] {
        assert!(told.contains(want), "missing {want:?} in\n{told}");
    }
    let listed = program().run(&world, &["policy", "show", "both.example"]).await.unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(listed.contains("dane-only") && listed.contains("testing"), "{listed}");
    daemon.stop().await.unwrap();
}

/// A socket unit that is masked or fails must not keep the daemon from starting. (postfix-tlspol#143)
#[test]
fn the_service_requires_none_of_its_sockets() {
    let unit = include_str!("../../../packaging/systemd/tlswarden.service");
    let ties = ["Requires=", "BindsTo=", "Requisite="];
    assert!(unit.lines().any(|line| line.starts_with("Wants=") || line.starts_with("Sockets=")), "{unit}");
    assert!(!unit.lines().any(|line| ties.iter().any(|tie| line.starts_with(tie))), "{unit}");
}

/// A policy is its recipient domain's: another domain with the same MX host has none of it. (KumoMTA PR 557)
#[tokio::test(flavor = "multi_thread")]
async fn a_policy_does_not_bleed_into_other_domains_on_the_same_mx() {
    let testing = Domain::new("testing.test").sts("testing", "mx");
    let domains = [enforce("provider.test"), testing, Domain::new("customer.test")];
    let (world, daemon) = start("3.7", &domains).await;
    for name in ["testing.test", "customer.test"] {
        world.dns.change().mx(name, 10, "mx.provider.test");
    }
    for _ in 0..2 {
        for (name, want) in [
            ("provider.test", secure("provider.test")),
            ("customer.test", NONE.into()),
            ("testing.test", NONE.into()),
            // Nor is it that of names below it.
            ("below.provider.test", NONE.into()),
            (".provider.test", NONE.into()),
        ] {
            assert_eq!(ask(&world, name).await, want, "{name}");
        }
    }
    daemon.stop().await.unwrap();
}

/// A big provider's DNS answered `_25._tcp` with SERVFAIL, and mail to it stopped. Where its addresses are not signed the
/// records would count for nothing and are not asked for; where they are, what was known before serves. (maddy#287)
#[tokio::test(flavor = "multi_thread")]
async fn a_failing_tlsa_look_up_does_not_block_mail() {
    let signed = Domain::new("signed.example").signed().dane_host("mx", Server::Sound, Tlsa::Matching);
    let customer = Domain::new("customer.example").signed();
    let domains = [Domain::new("provider.test").host("mx", Server::Sound), customer, signed];
    let (world, daemon) = start("3.7", &domains).await;
    // Also for a customer whose own MX record is signed.
    world.dns.change().mx("customer.example", 10, "mx.provider.test");
    world.dns.change().fault("_25._tcp.mx.provider.test", Some(dns::Fault::ServFail));
    for name in ["provider.test", "customer.example"] {
        assert_eq!(ask(&world, name).await, NONE, "{name}");
    }
    assert_eq!(world.dns.zone().asked("_25._tcp.mx.provider.test", RecordType::TLSA), 0);
    world.dns.change().ttl(1);
    assert_eq!(ask(&world, "signed.example").await, "OK dane-only");
    world.dns.change().fault("_25._tcp.mx.signed.example", Some(dns::Fault::ServFail));
    // Longer than a verdict stands at least.
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert_eq!(ask(&world, "signed.example").await, "OK dane-only");
    daemon.stop().await.unwrap();
}

/// A policy host that hangs costs its first look-up the budget, and those behind it nothing; where DNS is silent the answer
/// is "ask again", never "no policy". (measured: postfix-tlspol takes 6.8 s, postfix-mta-sts-resolver 4.0 s every time, and
/// the latter answers "no policy" where DNS is silent)
#[tokio::test(flavor = "multi_thread")]
async fn whatever_hangs_an_answer_comes_within_the_budget() {
    let hangs = Domain::new("hangs.test").host("mx", Server::Sound).sts_answer(Answer::Hang);
    let (world, daemon) = start("3.7", &[hangs, enforce("kept.test"), enforce("dark.test")]).await;
    assert_eq!(ask(&world, "kept.test").await, secure("kept.test"));
    for name in ["dark.test", "mx.dark.test", "_25._tcp.mx.dark.test", "_mta-sts.dark.test"] {
        world.dns.change().fault(name, Some(dns::Fault::Silence));
    }
    let mut took = BTreeMap::new();
    for (name, want) in
        [("hangs.test", NONE), ("hangs.test", NONE), ("dark.test", "TEMP "), ("kept.test", "OK secure ")]
    {
        let begin = Instant::now();
        let answer = ask(&world, name).await;
        assert!(answer.starts_with(want), "{name}: {answer}");
        took.entry(name).or_insert_with(Vec::new).push(begin.elapsed());
    }
    let within = |name: &str, n: usize, limit: f32| assert!(took[name][n].as_secs_f32() < limit, "{took:?}");
    within("hangs.test", 0, 6.5);
    within("hangs.test", 1, 1.0);
    within("dark.test", 0, 6.5);
    within("kept.test", 0, 0.5);
    daemon.stop().await.unwrap();
}

/// A document from a host whose certificate does not hold is no policy (RFC 8461 §3.3), is not even asked for, and stops
/// no mail.
#[tokio::test(flavor = "multi_thread")]
async fn a_policy_from_a_host_that_is_not_who_it_says_is_none() {
    let faults = [
        ("name.test", Fault::WrongName),
        ("expired.test", Fault::Expired),
        ("self.test", Fault::SelfSigned),
        ("other.test", Fault::OtherAuthority),
    ];
    let domains = faults.map(|(name, fault)| enforce(name).sts_certificate(fault));
    let (world, daemon) = start("3.7", &domains).await;
    for (name, _) in faults {
        assert_eq!(ask(&world, name).await, NONE, "{name}");
        assert_eq!((world.policy_hosts.handshakes(name), world.policy_hosts.requests(name)), (1, 0), "{name}");
    }
    daemon.stop().await.unwrap();
}

/// Without DNSSEC there is no DANE: said once at start, and by `policy explain`; its MTA-STS policy is answered.
#[tokio::test(flavor = "multi_thread")]
async fn that_there_is_no_dane_is_said_once_at_start_and_by_policy() {
    let both = Domain::new("both.example").signed().dane_host("mx", Server::Sound, Tlsa::Matching).sts("enforce", "mx");
    let options = Options { postfix: "3.7".into(), ..Options::default() };
    let world = World::start(options, &[both]).await.unwrap();
    let text = fs::read_to_string(world.config()).unwrap();
    assert!(text.contains("dnssec = true"), "{text}");
    fs::write(world.config(), text.replace("dnssec = true", "dnssec = false")).unwrap();
    let daemon = Daemon::start(&program(), &world).await.unwrap();
    for _ in 0..3 {
        assert_eq!(ask(&world, "both.example").await, secure("both.example"));
    }
    let told = program().run(&world, &["policy", "explain", "both.example"]).await.unwrap();
    let told = String::from_utf8(told.stdout).unwrap();
    assert!(
        told.contains("DANE: not looked at: no validating resolver, or Postfix asks for no DNSSEC ([postfix] dnssec)"),
        "{told}"
    );
    let log = fs::read_to_string(world.folder().join("daemon.log")).unwrap();
    let line = "policy: no DANE: Postfix asks for no DNSSEC (smtp_dns_support_level, or [postfix] dnssec); MTA-STS alone is \
                answered";
    assert_eq!(log.matches(line).count(), 1, "{log}");
    daemon.stop().await.unwrap();
}
