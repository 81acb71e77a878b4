//! Hostile DNS, policy hosts and clients: what they cost is bounded in time, memory and lines of the log, and others are
//! answered meanwhile. The real daemon, asked as Postfix asks.
//!
//! Needs no root and no MTA. Text that is merely malformed is the fuzz targets' part (`tests/fuzz`).

use std::fs;
use std::io::Write;
use std::time::{Duration, Instant};

use hickory_proto::rr::RecordType;
use lab::daemon::{Daemon, Program};
use lab::dns;
use lab::https::Answer;
use lab::socketmap;
use lab::world::{Domain, Options, Server, Tlsa, World};
use tlswarden::config::Config;
use tlswarden::net::dns::Resolver;
use tlswarden::net::https::{HttpsClient, HttpsError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const NONE: &str = "NOTFOUND ";

/// The default `answer_budget`, and what a busy host takes besides.
const BUDGET: Duration = Duration::from_secs(7);

async fn start(domains: &[Domain]) -> (World, Daemon) {
    let world = World::start(Options::default(), domains).await.unwrap();
    let daemon = Daemon::start(&Program::lab(env!("CARGO_BIN_EXE_lab")), &world).await.unwrap();
    (world, daemon)
}

fn enforce(name: &str) -> Domain {
    Domain::new(name).host("mx", Server::Sound).sts("enforce", "mx")
}

fn secure(domain: &str) -> String {
    format!("OK secure match=mx.{domain} servername=hostname")
}

/// The answer, which is there within the budget.
async fn ask(world: &World, domain: &str) -> String {
    let begin = Instant::now();
    let answer = socketmap::ask(&world.socketmap(), "policy", domain).await.unwrap();
    assert!(begin.elapsed() < BUDGET, "{domain}: {:?}", begin.elapsed());
    answer
}

/// The most memory that the daemon has had, in KiB.
fn most_memory(daemon: &Daemon) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.id().unwrap().as_raw_nonzero())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
}

/// How many lines of the daemon's log say this.
fn lines(world: &World, what: &str) -> usize {
    let log = fs::read_to_string(world.folder().join("daemon.log")).unwrap();
    log.lines().filter(|line| line.contains(what)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_dns_is_bounded_and_never_weakens_an_answer() {
    let dane = |name: &str| Domain::new(name).signed().dane_host("mx", Server::Sound, Tlsa::Matching);
    let domains = [
        enforce("good.test"),
        dane("owner-mx.example"),
        dane("owner-tlsa.example"),
        enforce("owner-txt.test"),
        Domain::new("loop-mx.test"),
        dane("loop-host.example").host("mx2", Server::Sound),
        enforce("loop-txt.test"),
        Domain::new("many.example").signed(),
        enforce("long-txt.test"),
        enforce("long-junk.test"),
        enforce("crowd-txt.test"),
    ];
    let (world, daemon) = start(&domains).await;
    assert_eq!(ask(&world, "good.test").await, secure("good.test"));
    let before = most_memory(&daemon);
    {
        let mut zone = world.dns.change();
        // Records that are not what was asked for say nothing: neither that there is a policy nor that there is none.
        for name in ["owner-mx.example", "_25._tcp.mx.owner-tlsa.example", "_mta-sts.owner-txt.test"] {
            zone.fault(name, Some(dns::Fault::WrongOwner));
        }
        zone.remove("mx2.loop-host.example", RecordType::A);
        zone.remove("_mta-sts.loop-txt.test", RecordType::TXT);
        for name in ["loop-mx.test", "mx2.loop-host.example", "_mta-sts.loop-txt.test"] {
            zone.cname(name, &format!("a.{name}"));
            zone.cname(&format!("a.{name}"), name);
        }
        for n in 0..1000 {
            let host = format!("h{n}.many.example");
            zone.mx("many.example", n, &host);
            zone.address(&host, std::net::Ipv4Addr::LOCALHOST.into());
            zone.tlsa(&host, 3, 1, 1, &[7; 32]);
        }
        // An extension field of 60,000 octets is in the grammar; 60,000 octets of anything are not.
        zone.txt("_mta-sts.long-txt.test", &format!("v=STSv1; id=1; x={};", "a".repeat(60_000)));
        zone.txt("_mta-sts.long-junk.test", &"v=STSv1; ".repeat(6_000));
        for n in 0..500 {
            zone.more_txt("_mta-sts.crowd-txt.test", &format!("v=STSv1; id={n};{}", " ".repeat(60)));
        }
    }
    for (name, want) in [
        ("owner-mx.example", "TEMP the answer is about another name"),
        ("owner-tlsa.example", "TEMP TLSA at mx.owner-tlsa.example: the answer is about another name"),
        ("owner-txt.test", NONE),
        ("loop-mx.test", "TEMP the CNAMEs lead nowhere"),
        // The host that loops cannot be reached: it is left out, and all the others have TLSA records.
        ("loop-host.example", "OK dane-only"),
        ("loop-txt.test", NONE),
        // The hosts that are not asked about count as hosts without TLSA records.
        ("many.example", "OK dane"),
        ("long-txt.test", &secure("long-txt.test")),
        ("long-junk.test", NONE),
        ("crowd-txt.test", NONE),
    ] {
        assert_eq!(ask(&world, name).await, want, "{name}");
    }
    let asked = (0..1000).filter(|n| world.dns.zone().asked(&format!("h{n}.many.example"), RecordType::A) > 0);
    assert_eq!(asked.count(), 32);
    assert!(most_memory(&daemon) - before < 32 * 1024, "{} KiB, before {before}", most_memory(&daemon));
    // Three deferred, one line.
    assert_eq!(lines(&world, ": not known: "), 1);
    daemon.stop().await.unwrap();
}

/// A name with 32 MX hosts whose servers answer for addresses (or not even these), and never for TLSA records.
fn publish_hostile(world: &World, name: &str, silent_addresses: bool) {
    let mut zone = world.dns.change();
    zone.cut(name, true);
    for n in 0..32 {
        let host = format!("h{n}.{name}");
        zone.mx(name, n, &host);
        zone.address(&host, std::net::Ipv4Addr::LOCALHOST.into());
        let silent = if silent_addresses { host } else { format!("_25._tcp.{host}") };
        zone.fault(&silent, Some(dns::Fault::Silence));
    }
}

/// Asks about so many such names a second, whatever the answers do.
async fn ask_hostile(world: std::sync::Arc<World>, per_second: u32, silent_addresses: bool) {
    let mut asking = tokio::task::JoinSet::new();
    let mut next = tokio::time::interval(Duration::from_secs(1) / per_second);
    for n in 0.. {
        next.tick().await;
        while let Some(answer) = asking.try_join_next() {
            let answer: String = answer.unwrap();
            assert!(answer.starts_with("TEMP "), "{answer}");
        }
        let name = format!("x{n}.example");
        publish_hostile(&world, &name, silent_addresses);
        let world = std::sync::Arc::clone(&world);
        asking.spawn(async move { socketmap::ask(&world.socketmap(), "policy", &name).await.unwrap() });
    }
}

/// Twenty such names a second (ten without addresses) want two and a half times as many queries as may be under way.
/// Whoever asks about another name, or about one that is known, is answered as without them.
#[tokio::test(flavor = "multi_thread")]
async fn hostile_names_leave_other_look_ups_alone() {
    for (silent_addresses, per_second) in [(false, 20), (true, 10)] {
        let ordinary: Vec<String> = (0..12).map(|n| format!("ordinary{n}.test")).collect();
        let domains: Vec<Domain> = ordinary.iter().map(|name| enforce(name)).collect();
        let (world, daemon) = start(&domains).await;
        let world = std::sync::Arc::new(world);
        let hostile = tokio::spawn(ask_hostile(std::sync::Arc::clone(&world), per_second, silent_addresses));
        for name in &ordinary {
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert!(!hostile.is_finished());
            assert_eq!(ask(&world, name).await, secure(name));
            assert_eq!(ask(&world, &ordinary[0]).await, secure(&ordinary[0]));
        }
        hostile.abort();
        daemon.stop().await.unwrap();
    }
}

const HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n";

fn document(name: &str, length: usize) -> String {
    let text = format!("version: STSv1\r\nmode: enforce\r\nmx: mx.{name}\r\nmax_age: 604800\r\nx: ");
    let fill = "a".repeat(length.saturating_sub(text.len()));
    text + &fill
}

/// A policy host for each way of wasting time and memory, and what comes of it.
fn wasters() -> Vec<(&'static str, Answer, &'static str)> {
    let endless = |head: &str, part: &str, millis| Answer::Endless {
        head: head.into(),
        part: part.into(),
        pause: Duration::from_millis(millis),
    };
    let raw = |more: &str, body: &[u8]| Answer::Raw([HEAD.as_bytes(), more.as_bytes(), b"\r\n", body].concat());
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    bomb.write_all(&vec![b'\n'; 60_000_000]).unwrap();
    let bomb = bomb.finish().unwrap();
    assert!(bomb.len() < 64 * 1024);
    let short = document("short.test", 0);
    vec![
        ("headers.test", endless(HEAD, &"X-Header: and so on\r\n".repeat(100), 0), "header too large"),
        ("header.test", endless(&format!("{HEAD}X: "), &"x".repeat(4096), 0), "header too large"),
        ("body.test", endless(&format!("{HEAD}\r\n"), &"x: y\n".repeat(1000), 0), "too large"),
        (
            "chunks.test",
            endless(&format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n"), &"5\r\nx: y\n\r\n".repeat(1000), 0),
            "too large",
        ),
        ("over.test", Answer::Document(document("over.test", 64 * 1024 + 1)), "too large"),
        ("huge.test", raw("Content-Length: 18446744073709551615\r\n", b"x: y\n"), "header too large"),
        ("bomb.test", raw(&format!("Content-Encoding: gzip\r\nContent-Length: {}\r\n", bomb.len()), &bomb), "served"),
        // A length that is not true: what is missing is not made up, and what is beyond is not read.
        ("long.test", raw("Content-Length: 5000\r\n", document("long.test", 0).as_bytes()), "connection"),
        ("short.test", raw(&format!("Content-Length: {}\r\n", short.len() - 40), short.as_bytes()), "served"),
        ("lengths.test", raw("Content-Length: 5\r\nContent-Length: 6\r\n", b"x: y\n\n"), "connection"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_policy_hosts_cost_a_bounded_time_and_stop_no_mail() {
    let domain = |name: &str, answer: Answer| Domain::new(name).host("mx", Server::Sound).sts_answer(answer);
    let drip = Answer::Endless { head: format!("{HEAD}\r\n"), part: "x".into(), pause: Duration::from_millis(100) };
    let mut domains = vec![
        enforce("good.test"),
        domain("drip.test", drip),
        domain("whole.test", Answer::Document(document("whole.test", 64 * 1024))),
    ];
    domains.extend(wasters().into_iter().map(|(name, answer, _)| domain(name, answer)));
    let (world, daemon) = start(&domains).await;
    let begin = Instant::now();
    // As large as may be, and no larger.
    assert_eq!(ask(&world, "whole.test").await, secure("whole.test"));
    let before = most_memory(&daemon);
    for (name, _, _) in wasters() {
        assert_eq!(ask(&world, name).await, NONE, "{name}");
    }
    // One octet at a time: the answer does not wait for it, nor does anybody else's.
    let (slow, good) = tokio::join!(ask(&world, "drip.test"), async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let begin = Instant::now();
        (ask(&world, "good.test").await, begin.elapsed())
    });
    assert_eq!((slow.as_str(), good.0), (NONE, secure("good.test")));
    assert!(good.1 < Duration::from_secs(2), "{:?}", good.1);
    assert!(most_memory(&daemon) - before < 32 * 1024, "{} KiB, before {before}", most_memory(&daemon));
    // A dozen domains, two causes: the document cannot be had, or is none.
    let said = lines(&world, ": the policy cannot be had: ");
    assert!(said <= 2 || begin.elapsed() > Duration::from_secs(60), "{said} lines");
    daemon.stop().await.unwrap();
    // Each ends, and says why, within the time that it is given.
    let config = Config::load(&world.config()).unwrap();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client =
        HttpsClient::new(Resolver::new(config.resolver.address).unwrap(), &config.closed_network.exceptions()).unwrap();
    let time = Duration::from_secs(2);
    let wanted = wasters().into_iter().map(|(name, _, want)| (name, want));
    for (name, want) in wanted.chain([("drip.test", "too late")]) {
        let begin = Instant::now();
        let found = client.get(&format!("mta-sts.{name}"), ".well-known/mta-sts.txt", time, 64 * 1024).await;
        assert!(begin.elapsed() < time + Duration::from_secs(1), "{name}: {:?}", begin.elapsed());
        let outcome = match &found {
            Ok(_) => "served",
            Err(HttpsError::TooLarge(_)) => "too large",
            Err(HttpsError::HeaderTooLarge) => "header too large",
            Err(HttpsError::Connection(_)) => "connection",
            Err(HttpsError::Timeout(_)) => "too late",
            Err(
                HttpsError::NoAddress(_)
                | HttpsError::PrivateAddress(_)
                | HttpsError::Certificate(_)
                | HttpsError::TlsLimit(_)
                | HttpsError::NoRootCertificates
                | HttpsError::CannotConnect(_),
            ) => "something else",
        };
        assert_eq!(outcome, want, "{name}: {found:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_clients_cost_a_bounded_memory_and_no_line_of_the_log() {
    let many: String = (0..1200).map(|n| format!("mx: {n:04}.example\r\n")).collect();
    let large = format!("version: STSv1\r\nmode: enforce\r\n{many}max_age: 604800\r\n");
    let domains =
        [enforce("good.test"), Domain::new("large.test").host("mx", Server::Sound).sts_answer(Answer::Document(large))];
    let (world, daemon) = start(&domains).await;
    assert_eq!(ask(&world, "good.test").await, secure("good.test"));
    assert!(ask(&world, "large.test").await.len() > 15_000);
    let (before, said) = (most_memory(&daemon), lines(&world, ""));
    let mut held = Vec::new();
    let connect = async || UnixStream::connect(world.socketmap()).await.unwrap();
    for n in 0..600 {
        let mut client = connect().await;
        match n % 3 {
            // Half a netstring, as long as may be.
            0 => client.write_all(&[b"12000:policy ".as_slice(), &[b'a'; 11_000]].concat()).await.unwrap(),
            // Asks for large answers and reads none.
            1 => while client.try_write(&b"17:policy large.test,".repeat(100)).is_ok_and(|n| n == 2100) {},
            // A length that no request has, or none at all.
            _ => {
                let text: &[u8] = if n % 2 == 0 { b"99999999999999999999:" } else { b"\0\xff\r\n\r\n" };
                client.write_all(text).await.unwrap();
                let mut reply = Vec::new();
                client.read_to_end(&mut reply).await.unwrap();
                assert!(String::from_utf8_lossy(&reply).contains(":PERM "), "{reply:?}");
            }
        }
        held.push(client);
    }
    let begin = Instant::now();
    assert_eq!(ask(&world, "good.test").await, secure("good.test"));
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    // 200 that do not read hold 256 KiB and an answer each, at most.
    let grown = most_memory(&daemon) - before;
    assert!(grown < 200 * 400, "{grown} KiB");
    assert_eq!(lines(&world, ""), said);
    daemon.stop().await.unwrap();
}

/// RFC 8461 §3.3 wants TLS 1.2 at least: a host that speaks less is not fetched from, whatever it would serve. The real
/// OpenSSL; the same with TLS 1.2 is served.
#[tokio::test(flavor = "multi_thread")]
async fn a_policy_host_with_less_than_tls_1_2_is_a_fetch_error() {
    let name = "old.test";
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let own = rcgen::generate_simple_self_signed([format!("mta-sts.{name}")]).unwrap();
    fs::write(file("cert.pem"), own.cert.pem()).unwrap();
    fs::write(file("key.pem"), own.signing_key.serialize_pem()).unwrap();
    fs::create_dir(file(".well-known")).unwrap();
    let document = format!("version: STSv1\nmode: enforce\nmx: mx.{name}\nmax_age: 604800\n");
    fs::write(file(".well-known/mta-sts.txt"), document).unwrap();
    for (version, served) in [("-tls1", false), ("-tls1_1", false), ("-tls1_2", true)] {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut host = tokio::process::Command::new("openssl")
            .args(["s_server", "-accept", &format!("127.0.0.1:{port}"), "-WWW", version])
            .args(["-cipher", "ALL:@SECLEVEL=0", "-cert", "cert.pem", "-key", "key.pem"])
            .current_dir(folder.path())
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("needs openssl");
        let world = World::start(Options::default(), &[enforce(name)]).await.unwrap();
        let config = fs::read_to_string(world.config()).unwrap();
        let line = |config: &str, key: &str, value: &str| -> String {
            let other = |line: &str| if line.starts_with(key) { format!("{key} = \"{value}\"") } else { line.into() };
            config.lines().map(|l| other(l) + "\n").collect()
        };
        let config = line(&config, "policy_hosts", &format!("127.0.0.1:{port}"));
        fs::write(world.config(), line(&config, "extra_root", &file("cert.pem").display().to_string())).unwrap();
        let until = Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(host.try_wait().unwrap().is_none() && Instant::now() < until, "openssl s_server {version}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let daemon = Daemon::start(&Program::lab(env!("CARGO_BIN_EXE_lab")), &world).await.unwrap();
        let want = if served { secure(name) } else { NONE.to_owned() };
        assert_eq!(ask(&world, name).await, want, "{version}");
        assert_eq!(lines(&world, "MTA-STS of old.test: the policy cannot be had: "), usize::from(!served), "{version}");
        let shown = Program::lab(env!("CARGO_BIN_EXE_lab")).run(&world, &["policy", "show", name, "--json"]).await;
        let shown = String::from_utf8(shown.unwrap().stdout).unwrap();
        assert_eq!(shown.contains("sts-policy-fetch-error"), !served, "{version}: {shown}");
        daemon.stop().await.unwrap();
    }
}
