//! DNS that misbehaves, asked by the real program: what an MTA is answered, and what an administrator is told.
//!
//! Needs unbound(8); it fails without it.

mod name_server;
mod running;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use name_server::{A, CNAME, MX, NameServer, Query, TLSA, TXT, exchange, text, wire, with_extended_error};
use running::Running;
use serde_json::Value;

const BINARY: &str = env!("CARGO_BIN_EXE_tlswarden");

/// How long anything may take: a machine under load, not a measure of the program.
const PATIENCE: Duration = Duration::from_secs(60);

/// A real resolver; Debian's package is `unbound`.
const UNBOUND: &str = "/usr/sbin/unbound";

const NS: u16 = 2;

/// What a server answers in place of the world: bytes, nothing at all, or what the world says.
type Change = fn(&Query) -> Option<Option<Vec<u8>>>;

/// A folder with a configuration.
struct Host {
    folder: tempfile::TempDir,
}

impl Host {
    /// A host whose resolver is at an address; `more` is added to the configuration.
    fn new(resolver: SocketAddr, more: &str) -> Host {
        let host = Host { folder: tempfile::tempdir().unwrap() };
        let config = format!(
            "[store]\npath = \"DIR/store\"\n[control]\nsocket = \"DIR/control\"\n\
             [socketmap]\nlisten = [\"unix:DIR/socketmap\"]\n[resolver]\naddress = \"{resolver}\"\n{more}"
        );
        let config = config.replace("DIR", &host.folder.path().display().to_string());
        fs::write(host.path("config.toml"), config).unwrap();
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command.args(arguments).arg("--config").arg(self.path("config.toml")).stdin(Stdio::null()).env("NO_COLOR", "1");
        command
    }

    fn run(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        // The exit status of `status` says how the daemon is.
        let shown = output.status.success() || (arguments[0] == "status" && !output.stdout.is_empty());
        assert!(shown, "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Starts the daemon, and waits until it answers.
    fn start(&self) -> Running {
        let log = fs::File::create(self.path("log")).unwrap();
        let daemon = Running(self.command(&["serve"]).stderr(log).spawn().unwrap());
        self.until("the daemon answers", || UnixStream::connect(self.path("control")).is_ok());
        daemon
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap()
    }

    fn until(&self, what: &str, done: impl Fn() -> bool) {
        let limit = Instant::now() + PATIENCE;
        while !done() {
            assert!(Instant::now() < limit, "not reached: {what}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn status(&self) -> Value {
        serde_json::from_str(&self.run(&["status", "--json"])).unwrap()
    }

    /// What Postfix is answered.
    fn asks(&self, next_hop: &str) -> String {
        let mut stream = UnixStream::connect(self.path("socketmap")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let request = format!("policy {next_hop}");
        stream.write_all(format!("{}:{request},", request.len()).as_bytes()).unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b",") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            answer.push(byte[0]);
        }
        let answer = String::from_utf8(answer).unwrap();
        answer.split_once(':').unwrap().1.trim_end_matches(',').to_owned()
    }
}

/// A signed world with one mail host: `mx.dane.test`, with a TLSA record. What `change` answers goes before.
fn world(change: impl Fn(&Query) -> Option<Option<Vec<u8>>> + Send + Sync + 'static) -> NameServer {
    NameServer::start(move |query| match change(query) {
        Some(answer) => answer,
        None => answer_of_world(query),
    })
}

fn answer_of_world(query: &Query) -> Option<Vec<u8>> {
    let digest = [&[3, 1, 1], [7; 32].as_slice()].concat();
    let records = match (query.name.as_str(), query.kind) {
        ("", NS) => vec![("", NS, wire("ns.root.test"))],
        ("dane.test", MX) => vec![("dane.test", MX, exchange("mx.dane.test"))],
        ("mx.dane.test", A) => vec![("mx.dane.test", A, vec![192, 0, 2, 1])],
        ("_25._tcp.mx.dane.test", TLSA) => vec![("_25._tcp.mx.dane.test", TLSA, digest)],
        _ => Vec::new(),
    };
    query.answer(0, true, &records)
}

/// The configuration of a Postfix that asks for DNSSEC, or not.
fn postfix(dnssec: bool) -> String {
    format!("[postfix]\nversion = \"3.7\"\ndefault_level = \"may\"\ndnssec = {dnssec}\n")
}

/// An address at which nobody answers, and nobody refuses.
fn silent() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

#[test]
fn a_broken_answer_of_the_resolver_weakens_nothing() {
    let cases: [(&str, Change, &str); 6] = [
        ("nothing is wrong", |_| None, "OK dane-only"),
        (
            "a TLSA record of two bytes beside a good one",
            |query| match query.kind {
                TLSA => {
                    let owner = query.name.as_str();
                    let digest = [&[3, 1, 1], [7; 32].as_slice()].concat();
                    Some(query.answer(0, true, &[(owner, TLSA, vec![3, 1]), (owner, TLSA, digest)]))
                }
                _ => None,
            },
            "OK dane-only",
        ),
        ("an unknown response code", |query| (query.kind == TLSA).then(|| query.answer(12, true, &[])), "TEMP "),
        (
            "an alias without its target",
            |query| match query.name.as_str() {
                "dane.test" if query.kind == MX => {
                    Some(query.answer(0, true, &[("dane.test", MX, exchange("alias.test"))]))
                }
                "alias.test" => Some(query.answer(0, true, &[("alias.test", CNAME, wire("mx.dane.test"))])),
                _ => None,
            },
            "OK dane-only",
        ),
        ("no AD bit unless the query has it", |query| (!query.ad).then(|| query.answer(0, false, &[])), "OK dane-only"),
        (
            "EDNS refused, and no verdict without",
            |query| match query.edns {
                true => Some(Query { edns: false, ..query.clone() }.answer(1, false, &[])),
                false => answer_of_world(query).map(|mut answer| {
                    answer[3] &= !0x20;
                    Some(answer)
                }),
            },
            "TEMP ",
        ),
    ];
    for (what, change, want) in cases {
        let server = world(change);
        let host = Host::new(server.address, &postfix(true));
        let _daemon = host.start();
        let answer = host.asks("dane.test");
        assert!(answer.starts_with(want), "{what}: {answer}");
    }
}

#[test]
fn a_resolver_that_answers_nothing_defers_mail_and_is_named() {
    let (_taken, dead) = silent();
    let host = Host::new(dead, &postfix(false));
    let _daemon = host.start();
    host.until("mail is deferred", || host.asks("sts.test").starts_with("TEMP every query has failed for "));
    // A domain that is asked about for the first time too; and whatever the hosts file names is delivered to.
    assert!(host.asks("other.test").contains(&format!("no answer from the resolver {dead}")));
    assert_eq!(host.asks("[localhost]:10025"), "NOTFOUND ");
    assert!(host.log().contains(&format!("resolver {dead}: no answer: ")), "{}", host.log());
    let with_dane = Host::new(dead, &postfix(true));
    let _other_daemon = with_dane.start();
    assert_eq!(with_dane.asks("[localhost]:10025"), "NOTFOUND ");
    assert!(with_dane.asks("[smarthost.test]").starts_with("TEMP "));
    let status = host.status();
    assert_eq!(status["resolver"]["answered-seconds-ago"], Value::Null);
    assert!(status["counters"]["dns_queries_failed"].as_u64().unwrap() >= 5);
    assert!(host.run(&["status"]).contains(&format!("resolver {dead}: no answer: no answer from the resolver {dead}")));
}

#[test]
fn one_broken_record_defers_no_mail_and_is_named() {
    let server = world(|query| (query.name == "_mta-sts.bad.test").then(|| query.answer(2, false, &[])));
    let host = Host::new(server.address, &postfix(false));
    let _daemon = host.start();
    let began = Instant::now();
    // Longer than an outage takes to be one.
    while began.elapsed() < Duration::from_secs(13) {
        assert_eq!(host.asks("bad.test"), "NOTFOUND ");
        std::thread::sleep(Duration::from_millis(500));
    }
    let said = host.run(&["policy", "explain", "bad.test"]);
    let cause = "SERVFAIL (DNSSEC validation, or its servers, failed)";
    let server = server.address;
    for line in [
        format!(
            "because: no policy is known: the MTA-STS record could not be asked: the resolver {server} answered {cause}\n"
        ),
        format!("- failed query: TXT of _mta-sts.bad.test: the resolver {server} answered {cause}\n"),
        format!("    to repeat it: dig @127.0.0.1 -p {} +dnssec _mta-sts.bad.test. TXT\n", server.port()),
    ] {
        assert!(said.contains(&line), "{line}{said}");
    }
}

#[test]
fn a_record_that_is_wrong_is_not_none() {
    let server = world(|query| {
        let owner = query.name.as_str();
        let records = match (owner, query.kind) {
            ("_mta-sts.form.test", TXT) => vec![(owner, TXT, text("v=STSv1; id=2026-01-01;"))],
            ("_mta-sts.two.test", TXT) => {
                vec![(owner, TXT, text("v=STSv1; id=1")), (owner, TXT, text("v=STSv1; id=2"))]
            }
            _ => return None,
        };
        Some(query.answer(0, true, &records))
    });
    let host = Host::new(server.address, &postfix(true));
    let _daemon = host.start();
    for (domain, want) in [
        ("form.test", "no policy: the MTA-STS record is invalid: the record is not of the form `v=STSv1; id=...`"),
        ("two.test", "no policy: the MTA-STS record is invalid: more than one record begins `v=STSv1;`"),
        ("none.test", "no policy is published"),
    ] {
        let said = host.run(&["policy", "explain", domain]);
        assert!(said.contains(&format!("because: {want}\n")), "{said}");
    }
}

#[test]
fn temp_comes_with_the_query_that_failed_and_a_command_that_repeats_it() {
    let server = world(|query| (query.kind == TLSA).then(|| query.answer(2, false, &[])));
    let host = Host::new(server.address, &postfix(true));
    let _daemon = host.start();
    assert!(host.asks("dane.test").starts_with("TEMP "));
    let said = host.run(&["policy", "explain", "dane.test"]);
    let port = server.address.port();
    for line in [
        "- failed query: TLSA of _25._tcp.mx.dane.test: the resolver ".to_owned(),
        format!("    to repeat it: dig @127.0.0.1 -p {port} +dnssec _25._tcp.mx.dane.test. TLSA\n"),
    ] {
        assert!(said.contains(&line), "{said}");
    }
}

/// From the answer that Postfix gets to the report: mail that waits, because the signatures of the destination's TLSA
/// records have expired.
#[test]
fn a_destination_with_broken_dnssec_gets_a_report_of_the_mail_that_waited() {
    let server = world(|query| match (query.kind, query.name.as_str()) {
        (TLSA, _) if !query.cd => Some(with_extended_error(query.answer(2, false, &[]), 7)),
        (TXT, owner @ "_smtp._tls.dane.test") => {
            Some(query.answer(0, true, &[(owner, TXT, text("v=TLSRPTv1; rua=mailto:reports@dane.test"))]))
        }
        _ => None,
    });
    let more = format!(
        "{}[[input]]\nfile = \"DIR/mail.log\"\nmta = \"postfix\"\n[report]\norganization = \"o\"\n\
         contact = \"c@mta.test\"\nfrom = \"c@mta.test\"\n",
        postfix(true)
    );
    let host = Host::new(server.address, &more);
    fs::write(host.path("mail.log"), "").unwrap();
    let _daemon = host.start();
    assert!(host.asks("dane.test").starts_with("TEMP "));
    let time = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ mta postfix/smtp[7]:").to_string();
    let lines = format!(
        "{time} warning: smtp_tls_policy_maps, next-hop destination \"dane.test\": policy table lookup error\n\
         {time} warning: TLS policy lookup for dane.test/mx.dane.test: client TLS configuration problem\n\
         {time} 4AB0CDEF12: to=<u@dane.test>, relay=none, delay=0.2, delays=0.1/0/0.1/0, dsn=4.7.5, status=deferred \
         (client TLS configuration problem)\n"
    );
    fs::write(host.path("mail.log"), lines).unwrap();
    let preview = || host.run(&["reports", "preview", "--domain", "dane.test"]);
    host.until("the report has the failure", || preview().contains("dnssec-invalid"));
    let report = preview();
    for part in [
        "\"policy-type\":\"tlsa\"",
        "\"policy-domain\":\"mx.dane.test\"",
        "\"total-failure-session-count\":1",
        "\"receiving-mx-hostname\":\"mx.dane.test\"",
        "\"failure-reason-code\":\"extended-dns-error-7-signature-expired\"",
    ] {
        assert!(report.contains(part), "{part}: {report}");
    }
}

/// What Unbound answers where DNSSEC fails: a trust anchor whose key the zone does not have.
#[test]
fn unbound_answers_a_bogus_name_as_soon_as_it_is_not_to_validate() {
    let zone = world(|_| None);
    let folder = tempfile::tempdir().unwrap();
    let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let digest = "7".repeat(64);
    let config = format!(
        "server:\n directory: \"{0}\"\n chroot: \"\"\n username: \"\"\n pidfile: \"{0}/pid\"\n use-syslog: no\n \
         do-daemonize: no\n interface: 127.0.0.1@{port}\n do-not-query-localhost: no\n ede: yes\n \
         module-config: \"validator iterator\"\n trust-anchor: \"dane.test. DS 12345 13 2 {digest}\"\n \
         local-zone: \"test.\" transparent\nstub-zone:\n name: \"dane.test.\"\n stub-addr: 127.0.0.1@{1}\n",
        folder.path().display(),
        zone.address.port()
    );
    fs::write(folder.path().join("unbound.conf"), config).unwrap();
    let log = fs::File::create(folder.path().join("log")).unwrap();
    let mut unbound = Command::new(UNBOUND);
    let unbound = unbound.arg("-c").arg(folder.path().join("unbound.conf")).stderr(log).spawn();
    let _unbound = Running(unbound.unwrap_or_else(|e| panic!("{UNBOUND}: {e}; try: apt-get install unbound")));
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let resolver = tlswarden::net::dns::Resolver::new(Some(address)).unwrap();
    let limit = Instant::now() + PATIENCE;
    loop {
        let failure = runtime.block_on(resolver.tlsa(25, "mx.dane.test")).unwrap_err();
        let tlswarden::net::dns::DnsError::Failed(failure) = failure else { panic!("{failure}") };
        if let Some(dnssec) = failure.dnssec() {
            assert_eq!(dnssec.reason_code(), "extended-dns-error-9-dnskey-missing");
            return;
        }
        let said = fs::read_to_string(folder.path().join("log")).unwrap();
        assert!(Instant::now() < limit, "{failure}: {said}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn a_resolver_that_never_sets_the_ad_bit_is_named() {
    let server = NameServer::start(|query| {
        let mut answer = answer_of_world(query)?;
        answer[3] &= !0x20;
        Some(answer)
    });
    let host = Host::new(server.address, &postfix(true));
    let _daemon = host.start();
    let problem = format!("resolver {}: does not validate, for it does not set the AD bit", server.address);
    host.until("the log says so", || host.log().contains(&problem));
    assert!(host.run(&["status"]).contains(&problem), "{}", host.run(&["status"]));
    assert_eq!(host.status()["resolver"]["validates"], false);
    assert_eq!(host.asks("dane.test"), "NOTFOUND ");
    // The program by itself sees the same.
    let alone = Host::new(server.address, &postfix(true));
    drop(alone.start());
    assert!(alone.run(&["status"]).contains(&problem));
}

/// Whether they answer or not.
#[test]
fn a_resolver_whose_word_on_dnssec_is_worth_little_is_named_at_start() {
    let stub = NameServer::start_at("127.0.0.53:0".parse().unwrap(), answer_of_world);
    let remote: SocketAddr = "192.0.2.1:53".parse().unwrap();
    let cases = [
        (remote, "not on this host, and believed because [resolver] address names it: whoever changes packets"),
        (
            stub.address,
            "the stub of systemd-resolved, which passes on the AD bit of another resolver unless DNSSEC=yes",
        ),
    ];
    for (resolver, warning) in cases {
        let host = Host::new(resolver, &postfix(true));
        let _daemon = host.start();
        let line = format!("resolver {resolver}: {warning}");
        host.until("the log says so", || host.log().contains(&line));
        assert!(host.log().lines().any(|logged| logged.contains("WARN") && logged.contains(&line)), "{}", host.log());
        assert!(host.run(&["status"]).contains(warning), "{}", host.run(&["status"]));
        // Without DANE it does not matter.
        let host = Host::new(resolver, &postfix(false));
        let _daemon = host.start();
        host.until("the resolver is probed", || host.status()["resolver"]["probed-seconds-ago"].is_u64());
        assert!(!host.log().contains(warning), "{}", host.log());
    }
}

#[test]
fn without_dnssec_mail_waits_if_the_administrator_wants_it() {
    let server = NameServer::start(|query| {
        let mut answer = answer_of_world(query)?;
        answer[3] &= !0x20;
        Some(answer)
    });
    let host = Host::new(server.address, &format!("{}[policy]\nwithout_dnssec = \"temp\"\n", postfix(true)));
    let _daemon = host.start();
    let want = format!("TEMP the resolver {} does not validate ([policy] without_dnssec)", server.address);
    assert_eq!(host.asks("dane.test"), want);
    // A Postfix that asks for no DNSSEC has no DANE to lose.
    let host = Host::new(server.address, &format!("{}[policy]\nwithout_dnssec = \"temp\"\n", postfix(false)));
    let _daemon = host.start();
    assert_eq!(host.asks("dane.test"), "NOTFOUND ");
    let validating = world(|_| None);
    let host = Host::new(validating.address, &format!("{}[policy]\nwithout_dnssec = \"temp\"\n", postfix(true)));
    let _daemon = host.start();
    assert_eq!(host.asks("dane.test"), "OK dane-only");
    assert_eq!(host.status()["resolver"]["validates"], true);
}

/// The fault is ours: in a network namespace of its own the host has no route to its resolver.
#[test]
fn a_host_that_cannot_send_queries_defers_mail_at_once() {
    let server = world(|_| None);
    let host = Host::new(server.address, &postfix(false));
    drop(host.start());
    let mut explain = Command::new("unshare");
    explain.args(["--map-root-user", "--net", BINARY, "policy", "explain", "sts.test", "--config"]);
    let output = explain.arg(host.path("config.toml")).output().expect("unshare(1) of util-linux");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains("unshare: "), "this test must be allowed to make a network namespace: {said}");
    assert!(
        said.contains("TEMP the MTA-STS record: the resolver ") && said.contains("this host cannot send queries"),
        "{said}"
    );
}

/// The folder of a test that runs itself once more, in namespaces of its own.
const OWN_NAMESPACES: &str = "TLSWARDEN_TEST_NAMESPACES";

/// Two nameservers in resolv.conf, neither on loopback: the first is dead, the second refuses EDNS, as in the worst home
/// router. The C library gets its answers. Later the file names another.
#[test]
fn every_nameserver_of_resolv_conf_is_asked() {
    if let Some(folder) = std::env::var_os(OWN_NAMESPACES) {
        return ask_two_nameservers(PathBuf::from(folder));
    }
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("resolv.conf"), "nameserver 192.0.2.1\nnameserver 192.0.2.2\n").unwrap();
    let prepared = "ip link set lo up && ip addr add 192.0.2.1/32 dev lo && ip addr add 192.0.2.2/32 dev lo && \
                    mount --bind \"$1/resolv.conf\" /etc/resolv.conf || exit 77; \
                    exec \"$0\" --exact every_nameserver_of_resolv_conf_is_asked --nocapture";
    let done = Command::new("unshare")
        .args(["--map-root-user", "--mount", "--net", "sh", "-c", prepared])
        .args([std::env::current_exe().unwrap().as_path(), folder.path()])
        .env(OWN_NAMESPACES, folder.path())
        .output()
        .unwrap_or_else(|e| panic!("this test needs unshare(1) of util-linux: {e}"));
    let said = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    let may = done.status.code() != Some(77) && !said.contains("unshare: ");
    assert!(may, "this test must be allowed to make namespaces, and needs ip(8) of iproute2: {said}");
    assert!(done.status.success() && said.contains("1 passed"), "{said}");
}

fn ask_two_nameservers(folder: PathBuf) {
    let _dead = UdpSocket::bind("192.0.2.1:53").unwrap();
    let _second =
        NameServer::start_at("192.0.2.2:53".parse().unwrap(), |query| match (query.edns, query.name.as_str()) {
            (true, _) => Query { edns: false, ..query.clone() }.answer(1, false, &[]),
            (false, name @ "_mta-sts.sts.test") if query.kind == TXT => {
                query.answer(0, false, &[(name, TXT, text("v=STSv1; id=20261128;"))])
            }
            (false, _) => query.answer(0, false, &[]),
        });
    let config = folder.join("config.toml");
    let at = folder.display();
    let text = format!(
        "[store]\npath = \"{at}/store\"\n[control]\nsocket = \"{at}/control\"\n\
                        [socketmap]\nlisten = [\"unix:{at}/socketmap\"]\n{}",
        postfix(true)
    );
    fs::write(&config, text).unwrap();
    let run = |arguments: &[&str]| Command::new(BINARY).args(arguments).arg("--config").arg(&config).output().unwrap();
    let log = fs::File::create(folder.join("log")).unwrap();
    let mut serve = Command::new(BINARY);
    let _daemon = Running(serve.args(["serve", "--config"]).arg(&config).stderr(log).spawn().unwrap());
    let limit = Instant::now() + PATIENCE;
    while UnixStream::connect(folder.join("control")).is_err() {
        assert!(Instant::now() < limit, "the daemon does not answer");
        std::thread::sleep(Duration::from_millis(100));
    }
    let said = String::from_utf8(run(&["policy", "explain", "sts.test"]).stdout).unwrap();
    assert!(said.contains("- TXT of _mta-sts.sts.test [not signed]: a policy with id 20261128\n"), "{said}");
    let status = || String::from_utf8(run(&["status"]).stdout).unwrap();
    assert!(status().contains("resolver 192.0.2.1:53, 192.0.2.2:53: not on this host, "), "{}", status());
    // At start too, before anything was asked.
    let log = || fs::read_to_string(folder.join("log")).unwrap();
    let line = "resolver 192.0.2.1:53, 192.0.2.2:53: not on this host, so that its AD bit is not believed: no DANE; MTA-STS \
                alone is answered";
    assert!(log().lines().any(|logged| logged.contains("WARN") && logged.contains(line)), "{}", log());

    // What is written there later is read without a reload.
    let _validating = NameServer::start_at("127.0.0.1:53".parse().unwrap(), answer_of_world);
    fs::write(folder.join("resolv.conf"), "nameserver 127.0.0.1\n").unwrap();
    while !status().contains("resolver 127.0.0.1:53: ") {
        assert!(Instant::now() < limit, "{}", status());
        std::thread::sleep(Duration::from_millis(100));
    }
    let said = String::from_utf8(run(&["policy", "explain", "dane.test"]).stdout).unwrap();
    assert!(said.contains("OK dane-only"), "{said}");
    assert!(log().contains("the nameservers in /etc/resolv.conf have changed"), "{}", log());
}
