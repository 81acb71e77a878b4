//! The real Exim of this host's distribution, held by `packaging/exim.example` to what the daemon answers.
//!
//! Needs root (network and mount namespaces, a user for Exim), `ip`, `mount`, `unshare`, and an Exim that
//! `tests/lab/unpack-exim` has unpacked. Where one is missing the test fails and says which. Nothing outside the
//! namespaces and the temporary folder is touched.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use lab::ca::Fault;
use lab::daemon::{Daemon, Program, line, reports};
use lab::dns;
use lab::exim::{self, Exim};
use lab::host;
use lab::smtp::Sink;
use lab::world::{Domain, Options, Server, Tlsa, World};

/// How long Exim waits for an answer here: a daemon that hangs is one of the cases.
const TIMEOUT: &str = "3s";

#[test]
fn exim_is_held_to_what_the_daemon_answers() {
    exim::program().unwrap();
    match host::inside() {
        Some(_) => tokio::runtime::Runtime::new().unwrap().block_on(deliveries()),
        None => host::run_inside("exim_is_held_to_what_the_daemon_answers", "exim").unwrap_or_else(|e| panic!("{e}")),
    }
}

/// What the transport demanded before it was held to the daemon's answers.
const OWN_LISTS: &str = "TLSWARDEN_OWN_REQUIRE_TLS = *.own-tls.test : *.own-verify.test\n\
                         TLSWARDEN_OWN_VERIFY = *.own-verify.test : *.own-good.test";

/// One domain of the test.
struct Case {
    domain: Domain,
    /// Whether the mail is delivered at the first attempt; else it waits.
    delivered: bool,
    /// The MX host that gets it, or that it was last tried at.
    host: &'static str,
    /// Texts of the log line.
    says: &'static [&'static str],
    /// How many connections the host has seen.
    connections: usize,
}

fn cases() -> Vec<Case> {
    let enforce = |name: &str, server, pattern: &str| Domain::new(name).host("mx", server).sts("enforce", pattern);
    let case = |domain, delivered, host, says, connections| Case { domain, delivered, host, says, connections };
    let (wrong, own) = (Server::Faulty(Fault::WrongName), Server::Faulty(Fault::SelfSigned));
    vec![
        case(enforce("good.test", Server::Sound, "mx"), true, "mx.good.test", &[" X=TLS", " CV=yes "], 1),
        case(enforce("wild.test", Server::Sound, "*"), true, "mx.wild.test", &[" X=TLS", " CV=yes "], 1),
        case(enforce("wrong-name.test", wrong, "mx"), false, "mx.wrong-name.test", &["(-37)", "certificate ver"], 1),
        case(enforce("self-signed.test", own, "mx"), false, "mx.self-signed.test", &["(-37)", "certificate ver"], 1),
        case(enforce("plain.test", Server::Plain, "mx"), false, "mx.plain.test", &["(-38)", "did not offer TLS"], 1),
        case(
            enforce("refuses.test", Server::Refuses, "mx"),
            false,
            "mx.refuses.test",
            &["(-38)", "attempt to start"],
            1,
        ),
        // The host is connected to, and told nothing.
        case(enforce("outside.test", Server::Sound, "other"), false, "mx.outside.test", &[OUTSIDE], 1),
        case(
            Domain::new("second.test").host("a", Server::Sound).host("b", Server::Sound).sts("enforce", "b"),
            true,
            "b.second.test",
            &[" H=b.second.test ", " CV=yes "],
            1,
        ),
        // The wildcard is one label, not two.
        case(
            Domain::new("deep.test").host("a.b", Server::Sound).sts("enforce", "*"),
            false,
            "a.b.deep.test",
            &[OUTSIDE],
            1,
        ),
        case(
            Domain::new("testing.test").host("mx", own).sts("testing", "other"),
            true,
            "mx.testing.test",
            &[" X=TLS", " CV=no "],
            1,
        ),
        case(
            Domain::new("testing-plain.test").host("mx", Server::Plain).sts("testing", "mx"),
            true,
            "mx.testing-plain.test",
            &[" C=\"250 "],
            1,
        ),
        case(Domain::new("none.test").host("mx", own), true, "mx.none.test", &[" X=TLS", " CV=no "], 1),
        case(Domain::new("none-plain.test").host("mx", Server::Plain), true, "mx.none-plain.test", &[" C=\"250 "], 1),
        // No policy; what the host demanded before still holds.
        case(
            Domain::new("own-tls.test").host("mx", Server::Plain),
            false,
            "mx.own-tls.test",
            &["(-38)", "did not offer TLS"],
            1,
        ),
        case(
            Domain::new("own-verify.test").host("mx", own),
            false,
            "mx.own-verify.test",
            &["(-37)", "certificate ver"],
            1,
        ),
        case(
            Domain::new("own-good.test").host("mx", Server::Sound),
            true,
            "mx.own-good.test",
            &[" X=TLS", " CV=yes "],
            1,
        ),
        case(
            Domain::new("dane.example").signed().dane_host("mx", own, Tlsa::Matching),
            true,
            "mx.dane.example",
            &[" X=TLS", " CV=dane "],
            1,
        ),
        case(
            Domain::new("dane-bad.example").signed().dane_host("mx", Server::Sound, Tlsa::Mismatching),
            false,
            "mx.dane-bad.example",
            &["(-37)"],
            1,
        ),
        case(
            Domain::new("dane-plain.example").signed().dane_host("mx", Server::Plain, Tlsa::Matching),
            false,
            "mx.dane-plain.example",
            &["(-38)"],
            1,
        ),
        // TLSA records that SMTP cannot use hold nobody; an MTA-STS policy beside them does.
        case(
            Domain::new("unusable.example").signed().host("mx", own),
            true,
            "mx.unusable.example",
            &[" X=TLS", " CV=no "],
            1,
        ),
        case(
            Domain::new("unusable-sts.example").signed().host("mx", own).sts("enforce", "mx"),
            false,
            "mx.unusable-sts.example",
            &["(-37)"],
            1,
        ),
        // Its MTA-STS policy does not override DANE: a sound certificate does not help.
        case(
            Domain::new("dane-sts.example")
                .signed()
                .dane_host("mx", Server::Sound, Tlsa::Mismatching)
                .sts("enforce", "mx"),
            false,
            "mx.dane-sts.example",
            &["(-37)"],
            1,
        ),
        // DANE on one host alone, an MTA-STS policy beside it: the other host is held to its certificate.
        case(some("some-good.example", Server::Sound), true, "b.some-good.example", &[" H=b.", " CV=yes "], 1),
        case(some("some-bad.example", own), false, "b.some-bad.example", &["(-37)"], 1),
        case(some("some-unsigned.example", Server::Sound), true, "b.some-unsigned.example", &[" H=b.", " CV=yes "], 1),
        // The same at the first host: its certificate is what counts.
        case(
            Domain::new("first-unsigned.example")
                .signed()
                .host("a", Server::Sound)
                .dane_host("b", own, Tlsa::Matching)
                .sts("enforce", "*"),
            true,
            "a.first-unsigned.example",
            &[" H=a.", " CV=yes "],
            1,
        ),
        case(some("some-plain.example", Server::Plain), false, "b.some-plain.example", &["(-38)"], 1),
        // TLS is required, fails at the first host and succeeds at the second: the log says nothing of the first.
        case(
            Domain::new(BLIND).host("a", wrong).host("b", Server::Sound).sts("enforce", "*"),
            true,
            "b.blind.test",
            &[" H=b.blind.test ", " CV=yes "],
            1,
        ),
        case(
            Domain::new("blind-three.test")
                .host("a", own)
                .host("b", Server::HangsUp)
                .host("c", wrong)
                .sts("enforce", "*"),
            false,
            "c.blind-three.test",
            &["(-37)", " H=c.blind-three.test "],
            1,
        ),
    ]
}

/// Two hosts, of which the first has a certificate for another name.
const BLIND: &str = "blind.test";

/// What is counted of each, in the words of the report: as many sessions as the hosts have seen attempts, and those that
/// the event action vetoed.
const COUNTED: [(&str, &str); 28] = [
    (
        "blind-three.test",
        "sts: 3 failed, 1 certificate-host-mismatch, 1 certificate-not-trusted, \
         1 validation-failure/connection-closed-during-handshake",
    ),
    ("blind.test", "sts: 1 ok, 1 failed, 1 certificate-host-mismatch"),
    ("dane-bad.example", "tlsa: 1 failed, 1 certificate-not-trusted/dane-no-match"),
    ("dane-plain.example", "tlsa: 1 failed, 1 starttls-not-supported"),
    ("dane-sts.example", "tlsa: 1 failed, 1 certificate-not-trusted/dane-no-match"),
    ("dane.example", "tlsa: 1 ok"),
    ("deep.test", "sts: 1 failed, 1 validation-failure/mtasts-policy-mx-mismatch"),
    ("first-unsigned.example", "sts: 1 ok"),
    ("good.test", "sts: 1 ok"),
    ("none.test", "no-policy-found: 1 ok"),
    ("outside.test", "sts: 1 failed, 1 validation-failure/mtasts-policy-mx-mismatch"),
    ("own-good.test", "no-policy-found: 1 ok"),
    ("own-tls.test", "no-policy-found: 1 failed, 1 starttls-not-supported"),
    ("own-verify.test", "no-policy-found: 1 failed, 1 certificate-not-trusted"),
    ("plain.test", "sts: 1 failed, 1 starttls-not-supported"),
    ("refuses.test", "sts: 1 failed, 1 starttls-not-supported"),
    ("second.test", "sts: 1 ok, 1 failed, 1 validation-failure/mtasts-policy-mx-mismatch"),
    ("self-signed.test", "sts: 1 failed, 1 certificate-not-trusted"),
    (
        "some-bad.example",
        "tlsa: 1 failed, 1 certificate-not-trusted/dane-no-match; no-policy-found: 1 failed, 1 certificate-not-trusted",
    ),
    ("some-good.example", "tlsa: 1 failed, 1 certificate-not-trusted/dane-no-match; no-policy-found: 1 ok"),
    (
        "some-plain.example",
        "tlsa: 1 failed, 1 certificate-not-trusted/dane-no-match; no-policy-found: 1 failed, 1 starttls-not-supported",
    ),
    ("some-unsigned.example", "tlsa: 1 failed, 1 certificate-not-trusted/dane-no-match; no-policy-found: 1 ok"),
    ("testing-plain.test", "sts: 1 failed, 1 starttls-not-supported"),
    ("testing.test", "sts: 1 failed, 1 validation-failure/mtasts-policy-mx-mismatch"),
    ("unusable-sts.example", "sts: 1 failed, 1 certificate-not-trusted"),
    ("unusable.example", "tlsa: 1 failed, 1 tlsa-invalid/all-TLSA-records-unusable"),
    ("wild.test", "sts: 1 ok"),
    ("wrong-name.test", "sts: 1 failed, 1 certificate-host-mismatch"),
];

fn some(name: &str, other: Server) -> Domain {
    let domain = Domain::new(name).signed().dane_host("a", Server::Sound, Tlsa::Mismatching);
    domain.host("b", other).sts("enforce", "*")
}

/// A domain without a policy at the host of `wrong-name.test`.
const SAME_HOST: &str = "same-host.test";

/// Where the policy does not name the host.
const OUTSIDE: &str = " is not in the MTA-STS policy of ";

/// Its zone does not validate until it is healed.
const BOGUS: &str = "bogus.example";

async fn deliveries() {
    let begin = Instant::now();
    let cases = cases();
    let mut domains: Vec<Domain> =
        cases.iter().map(|case| case.domain.clone().reports_to("tlsrpt@reports.test")).collect();
    domains.push(Domain::new(BOGUS).signed().host("mx", Server::Sound));
    let options = Options { exim: true, ..Options::on_standard_ports() };
    let world = World::start(options, &domains).await.unwrap();
    {
        let mut zone = world.dns.change();
        // Nothing is published here, and the host is that of a domain with a policy.
        zone.mx(SAME_HOST, 10, "mx.wrong-name.test");
        // PKIX-TA (RFC 7672 section 3.1.3).
        for host in ["mx.unusable.example", "mx.unusable-sts.example"] {
            zone.tlsa(host, 0, 0, 1, &[0xAA; 32]);
        }
        // DNSSEC proves nothing of these hosts' addresses.
        zone.cut("b.some-unsigned.example", false);
        zone.cut("a.first-unsigned.example", false);
    }
    let program = Program::lab(env!("CARGO_BIN_EXE_lab"));
    let daemon = Daemon::start(&program, &world).await.unwrap();
    let exim = Exim::new(&world, TIMEOUT, OWN_LISTS).unwrap();
    println!("Exim {}; the world is in {}", exim.version().unwrap(), world.folder().display());

    for case in &cases {
        delivers_or_defers(&world, &exim, case);
    }
    // The first host of `BLIND` is there in the counts and not in the log.
    let log = std::fs::read_to_string(exim.log()).unwrap();
    assert!(!log.contains("a.blind.test"), "{log}");
    let first = counts(&program, &world).await;
    daemon.kill().await.unwrap();
    let daemon = Daemon::start(&program, &world).await.unwrap();
    assert_eq!(counts(&program, &world).await, first, "after kill -9");
    keeps_domains_apart(&world, &exim);
    defers_what_is_not_known(&world, &exim);
    daemon.stop().await.unwrap();
    defers_without_an_answer(&world, &exim);
    let _daemon = Daemon::start(&program, &world).await.unwrap();
    delivers_when_the_daemon_is_back(&world, &exim);
    reports_reach_domains_with_broken_tls(&exim);
    // Where an expansion fails in a delivery, Exim goes on and says it there.
    assert_eq!(std::fs::read_to_string(exim.panic_log()).unwrap_or_default(), "");
    println!("{} cases in {:.1} s", cases.len() + 6, begin.elapsed().as_secs_f64());
}

/// What is counted of each domain, once it is what is wanted.
async fn counts(program: &Program, world: &World) -> BTreeMap<String, String> {
    let wanted: BTreeMap<String, String> = COUNTED.map(|(domain, line)| (domain.to_owned(), line.to_owned())).into();
    let begin = Instant::now();
    loop {
        let reports = reports(program, world, &host::today()).await.unwrap();
        let counted: BTreeMap<String, String> =
            reports.iter().map(|(domain, report)| (domain.clone(), line(report))).collect();
        if counted == wanted {
            return counted;
        }
        if begin.elapsed() > Duration::from_secs(10) {
            let other = |(domain, line): &(&String, &String)| wanted.get(*domain) != Some(*line);
            let other: Vec<_> = counted.iter().filter(other).collect();
            let missing: Vec<_> = wanted.keys().filter(|domain| !counted.contains_key(*domain)).collect();
            panic!("counted otherwise: {other:#?}\nnot counted: {missing:?}");
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

fn delivers_or_defers(world: &World, exim: &Exim, case: &Case) {
    let recipient = format!("one@{}", case.domain.name());
    let line = send(exim, &recipient);
    let mark = if case.delivered { " => " } else { " == " };
    let right = line.contains(mark) && case.says.iter().all(|text| line.contains(text));
    assert!(right, "{}: want {mark} with {:?}: {line}", case.domain.name(), case.says);
    let record = world.receiver(case.host).record();
    assert_eq!(record.connections.len(), case.connections, "{}: {:?}", case.host, record.connections);
    assert_eq!(got(world.receiver(case.host)), usize::from(case.delivered), "{}", case.host);
    let untold = case.says.contains(&OUTSIDE) && record.connections.iter().any(|c| c.asked_tls);
    assert!(!untold, "{}: {:?}", case.host, record.connections);
    if case.says.contains(&" CV=yes ") || case.says.contains(&" CV=dane ") {
        assert!(record.mail.iter().all(|mail| mail.tls), "{}: in clear text", case.host);
    }
    println!("{:20} {}", case.domain.name(), line.split_once(mark).map_or("", |(_, rest)| rest));
}

/// Two domains at one host, one of them with a policy that the host does not meet: neither one message to both nor a
/// connection that stands lets mail for that one through.
fn keeps_domains_apart(world: &World, exim: &Exim) {
    // The host failed for the other domain a moment ago; Exim's retry rule here is a second.
    std::thread::sleep(Duration::from_secs(2));
    let from = exim.log_length();
    let (open, held) = (format!("two@{SAME_HOST}"), "two@wrong-name.test");
    // By now another message for `wrong-name.test` waits for this host, too.
    exim.submit("someone@sender.test", &[&open, held], "Subject: both\n\nhello\n").unwrap();
    let last = |recipient: &str| exim.deliveries(recipient, from).last().cloned().unwrap_or_default();
    assert!(last(&open).contains(" => ") && last(held).contains(" == "), "{}\n{}", last(&open), last(held));
    let mail = world.receiver("mx.wrong-name.test").record().mail;
    let to: Vec<&String> = mail.iter().flat_map(|mail| &mail.to).collect();
    assert_eq!(to, [&open]);
}

/// The daemon cannot know: the mail waits, and the log says why; healed, it goes out.
fn defers_what_is_not_known(world: &World, exim: &Exim) {
    world.dns.change().fault(BOGUS, Some(dns::Fault::ServFail));
    let recipient = format!("one@{BOGUS}");
    let line = send(exim, &recipient);
    assert!(line.contains(&format!("TLS policy of {BOGUS} is not known: ")) && line.contains(" == "), "{line}");
    println!("{BOGUS:20} {line}");
    world.dns.change().fault(BOGUS, None);
    let receiver = world.receiver("mx.bogus.example");
    let begin = Instant::now();
    while got(receiver) == 0 {
        assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", exim.deliveries(&recipient, 0));
        std::thread::sleep(Duration::from_secs(1));
        exim.flush().unwrap();
    }
}

/// No daemon; one that hangs; one that says nothing; one that says something else: the mail waits, whatever the domain.
fn defers_without_an_answer(world: &World, exim: &Exim) {
    let deferred = |recipient: &str, what: &str| {
        let line = send(exim, recipient);
        assert!(line.contains(" == ") && line.contains("R=tlswarden"), "{what}: {line}");
        println!("{what:20} {line}");
    };
    deferred("down@none.test", "no daemon");
    let taken = UnixListener::bind(world.readsocket()).unwrap();
    std::fs::set_permissions(world.readsocket(), std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    // Nobody accepts, and the connection stands.
    deferred("hangs@none.test", "hangs");
    drop(taken.accept().unwrap());
    for (answer, recipient) in [("", "empty@none.test"), ("mode=nonesuch dane=no\n", "other@none.test")] {
        let taken = taken.try_clone().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = taken.accept().unwrap();
            let mut request = String::new();
            stream.read_to_string(&mut request).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            request
        });
        deferred(recipient, &format!("says `{}`", answer.trim()));
        assert_eq!(server.join().unwrap(), "policy none.test\n");
    }
    drop(taken);
    assert_eq!(got(world.receiver("mx.none.test")), 1);
}

fn delivers_when_the_daemon_is_back(world: &World, exim: &Exim) {
    exim.flush().unwrap();
    assert_eq!(got(world.receiver("mx.none.test")), 5, "{}", std::fs::read_to_string(exim.log()).unwrap());
    // What was deferred for its policy is deferred still, and nothing was bounced.
    for case in cases() {
        let delivered = got(world.receiver(case.host));
        let want = match case.host {
            "mx.none.test" => 5,
            // That of the other domain.
            "mx.wrong-name.test" => 1,
            _ => usize::from(case.delivered),
        };
        assert_eq!(delivered, want, "{}", case.host);
        let lines = exim.deliveries(&format!("one@{}", case.domain.name()), 0);
        assert!(!lines.iter().any(|line| line.contains(" ** ")), "{lines:?}");
    }
}

/// RFC 8460 §3: a report reaches a domain whose TLS is broken, where any other mail waits.
fn reports_reach_domains_with_broken_tls(exim: &Exim) {
    // The hosts failed a moment ago; Exim's retry rule here is a second.
    std::thread::sleep(Duration::from_secs(2));
    for case in cases().iter().filter(|case| !case.delivered) {
        let recipient = format!("report@{}", case.domain.name());
        let report = "Subject: Report\nTLS-Required: No\nTLS-Report-Domain: x\n\nhello\n";
        let from = exim.log_length();
        exim.submit("tlsrpt@sender.test", &[&recipient], report).unwrap();
        let line = exim.deliveries(&recipient, from).last().cloned().unwrap_or_default();
        assert!(line.contains(" => ") && line.contains("R=tlswarden_reports"), "{recipient}: {line}");
        println!("report, {:20} {line}", case.domain.name());
    }
    let line = send(exim, "after@wrong-name.test");
    assert!(line.contains(" == "), "other mail waits still: {line}");
}

/// Sends a message; the line of Exim's log that says what became of it.
fn send(exim: &Exim, recipient: &str) -> String {
    let from = exim.log_length();
    exim.submit("someone@sender.test", &[recipient], "Subject: hello\n\nhello\n").unwrap();
    let lines = exim.deliveries(recipient, from);
    lines.last().cloned().unwrap_or_else(|| {
        let log = std::fs::read_to_string(exim.log()).unwrap_or_default();
        panic!("no delivery to {recipient} in\n{log}")
    })
}

/// Messages that a server took in.
fn got(server: &Sink) -> usize {
    server.record().mail.len()
}
