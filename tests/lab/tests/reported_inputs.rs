//! Inputs that public reports of programs of this kind name, asked of the real program: a table of each input, what it
//! must lead to, and what it led to. The table is printed (`--nocapture`).
//!
//! Needs root: the policy hosts and two nameservers of resolv.conf have public addresses, in a network of the test's own.
//! What a real MTA does with such answers is in `own_levels.rs`.

#[path = "../../name_server/mod.rs"]
mod name_server;

use std::fmt::Write as _;
use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use lab::dns;
use lab::host;
use lab::https::Answer;
use lab::openssl;
use lab::socketmap;
use lab::world::{Domain, Options, Server, World};
use name_server::{CNAME, NameServer, Query, TLSA, TXT, wire};
use serde_json::Value;
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::process::{Child, Command};

const TEST: &str = "what_public_reports_found_is_answered_rightly";

/// How long anything may take: a machine under load, not a measure of the program.
const PATIENCE: Duration = Duration::from_secs(60);

/// Public addresses, on loopback in this network alone.
const DEAD_NAMESERVER: &str = "11.0.0.1";
const NAMESERVER: &str = "11.0.0.2";
const POLICY_HOSTS: &str = "11.0.0.3";
const P521_HOST: &str = "11.0.0.4";
const BLACK_HOLE: &str = "11.0.0.5";

/// One input.
struct Row {
    input: &'static str,
    /// Each of these is in what came.
    wanted: Vec<String>,
    came: String,
}

#[test]
fn what_public_reports_found_is_answered_rightly() {
    if host::inside().is_some() {
        tokio::runtime::Runtime::new().unwrap().block_on(ask_all());
        return;
    }
    host::run_inside(TEST, "all").unwrap_or_else(|e| panic!("{e}"));
}

async fn ask_all() {
    for address in [DEAD_NAMESERVER, NAMESERVER, POLICY_HOSTS, P521_HOST, BLACK_HOLE] {
        host::run("ip", &["addr", "add", &format!("{address}/32"), "dev", "lo"]).unwrap();
    }
    let setting = Setting::new().await;
    let mut rows = Vec::new();
    setting.ask_about_domains(&mut rows).await;
    setting.ask_at_encrypt(&mut rows).await;
    setting.count_sessions(&mut rows).await;
    setting.ask_odd_resolvers(&mut rows).await;
    let mut faults = String::new();
    println!("| input | wanted | answer |\n|---|---|---|");
    for Row { input, wanted, came } in rows {
        let line = format!("| {input} | {} | {} |", wanted.join(" … "), came.replace('\n', " / "));
        println!("{line}");
        if !wanted.iter().all(|part| came.contains(part)) {
            let _ = writeln!(faults, "{line}");
        }
    }
    assert!(faults.is_empty(), "not as wanted:\n{faults}");
}

/// The world, and a resolver that lays oddities over it.
struct Setting {
    world: World,
    resolver: NameServer,
    /// Keeps the queue of an address full: a connection to it is neither taken nor refused.
    _black_hole: (tokio::net::TcpListener, TcpStream),
    _p521: (tempfile::TempDir, openssl::OpensslServer),
}

fn enforced(name: &str) -> Domain {
    Domain::new(name).host("mx", Server::Plain).sts("enforce", "mx")
}

fn domains() -> Vec<Domain> {
    let plain = Server::Plain;
    let commas = "version: STSv1\r\nmode: enforce\r\nmx: mx1.commas.test, mx2.commas.test\r\nmx: mx3.commas.test\r\n\
                  max_age: 604800\r\n";
    vec![
        Domain::new("one-mx-fails.test").host("mx1", plain).host("mx2", plain),
        Domain::new("dead-backup.example").signed().host("mx1", plain).host("mx2", plain).sts("enforce", "*"),
        Domain::new("testing.test").host("mx1", plain).host("mx2", plain).sts("testing", "*"),
        Domain::new("alias.test").host("mx", plain).sts("enforce", "mx"),
        Domain::new("rcode.example").signed().host("mx", plain),
        Domain::new("dataless.example").signed().host("mx", plain),
        Domain::new("dataless-beside.example").signed().host("mx", plain),
        enforced("any.test"),
        enforced("broken-record.test"),
        // No A-label that IDNA takes.
        enforced("xn--a.test"),
        enforced("p521.test"),
        enforced("two-addresses.test"),
        enforced("bad-id.test"),
        Domain::new("commas.test")
            .host("mx1", plain)
            .host("mx2", plain)
            .host("mx3", plain)
            .sts_answer(Answer::Document(commas.into())),
        Domain::new("slashes.test").host("mx", plain),
        Domain::new("near-miss.test").host("mx", plain),
    ]
}

impl Setting {
    async fn new() -> Setting {
        let policy_hosts = SocketAddr::new(POLICY_HOSTS.parse().unwrap(), 443);
        let world = World::start(Options { policy_hosts, ..Options::default() }, &domains()).await.unwrap();
        let hole = TcpSocket::new_v4().unwrap();
        hole.bind(SocketAddr::new(BLACK_HOLE.parse().unwrap(), 443)).unwrap();
        // One connection fills it.
        let hole = hole.listen(0).unwrap();
        let waiting = TcpStream::connect(hole.local_addr().unwrap()).await.unwrap();
        {
            let mut zone = world.dns.change();
            for host in ["mx2.one-mx-fails.test", "mx2.dead-backup.example", "mx2.testing.test"] {
                zone.fault(host, Some(dns::Fault::ServFail));
            }
            zone.fault("_mta-sts.broken-record.test", Some(dns::Fault::ServFail));
            zone.cut("mx1.dead-backup.example", false);
            for host in ["mx.dataless.example", "mx.dataless-beside.example"] {
                zone.tlsa(host, 3, 1, 1, &[]);
            }
            zone.tlsa("mx.dataless-beside.example", 3, 1, 1, &[7; 32]);
            zone.txt("_mta-sts.provider.test", "v=STSv1; id=1;");
            for (host, addresses) in [("p521", &[P521_HOST][..]), ("two-addresses", &[BLACK_HOLE, POLICY_HOSTS])] {
                let host = format!("mta-sts.{host}.test");
                zone.remove(&host, hickory_proto::rr::RecordType::A);
                addresses.iter().for_each(|address| zone.address(&host, address.parse().unwrap()));
            }
            zone.txt("_mta-sts.bad-id.test", "v=STSv1; id=2026-01-01;");
            zone.txt("_smtp._tls.slashes.test", "v=TLSRPTv1; rua=mailto://a@b.example");
            zone.txt("_smtp._tls.near-miss.test", "v=TLSRPTv1 rua=mailto:a@b.example");
        }
        let folder = tempfile::tempdir().unwrap();
        openssl::certify(folder.path(), "mta-sts.p521.test", &["ec", "-pkeyopt", "ec_paramgen_curve:P-521"]);
        let p521 = openssl::serve(folder.path(), SocketAddr::new(P521_HOST.parse().unwrap(), 443), &[]).await;
        let upstream = world.dns.address();
        let resolver = NameServer::start(move |query| match (query.name.as_str(), query.kind) {
            // unbound does so where `local-data` has an alias out of its own zone.
            (name @ "_mta-sts.alias.test", TXT) => {
                query.answer(0, false, &[(name, CNAME, wire("_mta-sts.provider.test"))])
            }
            ("_25._tcp.mx.rcode.example", TLSA) => query.answer(12, true, &[]),
            _ => forward(upstream, query),
        });
        Setting { world, resolver, _black_hole: (hole, waiting), _p521: (folder, p521) }
    }

    /// Starts the daemon of a Postfix like that; without a resolver it is that of resolv.conf.
    async fn start(&self, postfix: &str, level: &str, resolver: Option<SocketAddr>) -> Program {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().display();
        let closed = format!("extra_root = \"{}\"\nprivate_addresses = true\n", self.world.ca_file().display());
        let resolver = resolver.map_or_else(String::new, |address| {
            format!("[resolver]\naddress = \"{address}\"\n[closed_network]\n{closed}")
        });
        let config = format!(
            "[store]\npath = \"{at}/store\"\n[control]\nsocket = \"{at}/control\"\n\
             [socketmap]\nlisten = [\"unix:{at}/socketmap\"]\n[postfix]\nversion = \"{postfix}\"\n\
             default_level = \"{level}\"\ndnssec = true\n[[input]]\nfile = \"{at}/mail.log\"\nmta = \"postfix\"\n{resolver}"
        );
        fs::write(folder.path().join("config"), config).unwrap();
        fs::write(folder.path().join("mail.log"), "").unwrap();
        let mut program = Program { folder, roots: self.world.ca_file(), daemon: None };
        program.serve().await;
        program
    }

    /// Of many domains, one question each.
    async fn ask_about_domains(&self, rows: &mut Vec<Row>) {
        let program = self.start("3.7", "may", Some(self.resolver.address)).await;
        let secure = |names: &str| format!("OK secure match={names} servername=hostname");
        for (input, domain, wanted) in [
            (
                "signed MX, MTA-STS enforced, the backup's address look-up fails",
                "dead-backup.example",
                secure(".dead-backup.example"),
            ),
            ("`_mta-sts` is an alias, and comes without its target", "alias.test", secure("mx.alias.test")),
            ("the TLSA look-up is answered with the unassigned response code 12", "rcode.example", "TEMP ".into()),
            ("one TLSA record without data (Postfix 3.7)", "dataless.example", "OK encrypt".into()),
            ("a TLSA record without data beside a good one", "dataless-beside.example", "TEMP ".into()),
            ("`mx: a, b` in an enforced document", "commas.test", "NOTFOUND ".into()),
            (
                "the first of two addresses of the policy host is a black hole, cold",
                "two-addresses.test",
                secure("mx.two-addresses.test"),
            ),
            ("a label that begins `xn--` and that IDNA refuses", "xn--a.test", secure("mx.xn--a.test")),
            ("a next hop with the name of its service", "any.test:mail", secure("mx.any.test")),
        ] {
            rows.push(Row { input, wanted: vec![wanted], came: program.ask("policy", domain).await });
        }
        for (input, arguments, wanted) in [
            (
                "the same document: its fault is told",
                &["policy", "explain", "commas.test"][..],
                &["invalid document: line 3: `mx` is \"mx1.commas.test, mx2.commas.test\": several hosts"][..],
            ),
            ("a policy host with an ECDSA key on P-521", &["policy", "explain", "p521.test"], &["NOTFOUND", "P-521"]),
            (
                "the `_mta-sts` record fails",
                &["policy", "explain", "broken-record.test"],
                &["because: no policy is known: the MTA-STS record could not be asked: "],
            ),
            (
                "a TLSRPT record with `mailto://`",
                &["check-domain", "slashes.test"],
                &["`mailto:` is followed by an address, without `//`"],
            ),
            (
                "a TLSRPT record without its semicolon",
                &["check-domain", "near-miss.test"],
                &["v=TLSRPTv1 rua=mailto:a@b.example", "there is no semicolon after `v=TLSRPTv1`"],
            ),
            (
                "an `_mta-sts` record with a bad id, and an enforced document",
                &["check-domain", "bad-id.test"],
                &["its id `2026-01-01` has `-` in it", "mode: enforce"],
            ),
        ] {
            let came = program.run(arguments).await;
            let wanted: Vec<String> = wanted.iter().map(|part| (*part).to_owned()).collect();
            rows.push(Row { input, came: shorten(&came, &wanted), wanted });
        }
    }

    async fn ask_at_encrypt(&self, rows: &mut Vec<Row>) {
        let program = self.start("3.7", "encrypt", Some(self.resolver.address)).await;
        rows.push(Row {
            input: "own level encrypt, unsigned MX, one host's address look-up fails",
            wanted: vec!["NOTFOUND ".into()],
            came: program.ask("policy", "one-mx-fails.test").await,
        });
    }

    /// Sessions under a testing policy one of whose MX hosts fails in DNS, and under a document that is refused.
    async fn count_sessions(&self, rows: &mut Vec<Row>) {
        let program = self.start("3.10.5", "may", Some(self.resolver.address)).await;
        let came = program.ask("policy-tlsrpt", "testing.test").await;
        let wanted = vec!["OK may policy_type=sts policy_domain=testing.test ".into()];
        let input = "MTA-STS testing, one host's address look-up fails (Postfix 3.10)";
        rows.push(Row { input, came: shorten(&came, &wanted), wanted });
        assert_eq!(program.ask("policy-tlsrpt", "commas.test").await, "NOTFOUND ");
        let (now, mut sessions) = (jiff::Timestamp::now(), String::new());
        let domains = ["testing.test", "commas.test"];
        for (n, domain) in domains.iter().enumerate() {
            let relay = format!("mx1.{domain}[192.0.2.9]:25");
            let _ = write!(
                sessions,
                "{now} mta postfix/smtp[{n}]: Trusted TLS connection established to {relay}: TLSv1.3 with cipher \
                 TLS_AES_256_GCM_SHA384 (256/256 bits)\n\
                 {now} mta postfix/smtp[{n}]: 4jXBgb2Tz00000{n}: to=<user@{domain}>, relay={relay}, delay=0.02, \
                 delays=0/0/0.02/0, dsn=2.0.0, status=sent (250 2.0.0 Ok)\n"
            );
        }
        fs::write(program.path("mail.log"), sessions).unwrap();
        let limit = Instant::now() + PATIENCE;
        let counted = loop {
            let results = program.run(&["results", "--json"]).await;
            if domains.iter().all(|domain| results.contains(domain)) || Instant::now() > limit {
                break serde_json::from_str::<Vec<Value>>(&results).unwrap();
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        for (domain, input, wanted) in [
            (domains[0], "one session to that domain, counted", &["\"sts\"", "mode: testing"][..]),
            (domains[1], "one session to the domain with `mx: a, b`, counted", &["\"sts\"", "sts-policy-invalid"]),
        ] {
            let of_domain = counted.iter().filter(|row| row["domain"] == domain);
            let came = of_domain.map(Value::to_string).collect::<Vec<_>>().join("\n");
            let wanted = wanted.iter().map(|part| (*part).to_owned()).collect();
            rows.push(Row { input, came, wanted });
        }
    }

    /// Resolvers that other programs get answers from.
    async fn ask_odd_resolvers(&self, rows: &mut Vec<Row>) {
        let upstream = self.world.dns.address();
        let _dead = UdpSocket::bind((DEAD_NAMESERVER, 53)).unwrap();
        let without_edns = move |query: &Query| match query.edns {
            true => Query { edns: false, ..query.clone() }.answer(1, false, &[]),
            false => forward(upstream, query),
        };
        let _without_edns = NameServer::start_at(format!("{NAMESERVER}:53").parse().unwrap(), without_edns);
        for (input, nameservers) in [
            ("the nameserver answers FORMERR to every query with EDNS", &[NAMESERVER][..]),
            ("the first nameserver of resolv.conf is dead", &[DEAD_NAMESERVER, NAMESERVER]),
        ] {
            let resolv: String = nameservers.iter().map(|address| format!("nameserver {address}\n")).collect();
            // Laid over the host's own, in this test's mounts alone.
            fs::write("/etc/resolv.conf", resolv).unwrap();
            let program = self.start("3.7", "may", None).await;
            rows.push(Row {
                input,
                wanted: vec!["OK secure match=mx.any.test servername=hostname".into()],
                came: program.ask("policy", "any.test").await,
            });
        }
        let never_ad = NameServer::start(move |query| {
            let mut answer = forward(upstream, query)?;
            answer[3] &= !0x20;
            Some(answer)
        });
        let program = self.start("3.7", "may", Some(never_ad.address)).await;
        let wanted = "does not validate, for it does not set the AD bit";
        let limit = Instant::now() + PATIENCE;
        while !program.log().contains(wanted) && Instant::now() < limit {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        for (input, came) in [
            ("a resolver on loopback that never sets AD: `status`", program.run(&["status"]).await),
            ("the same: the log at the start", program.log()),
        ] {
            let wanted = vec![wanted.to_owned()];
            rows.push(Row { input, came: shorten(&came, &wanted), wanted });
        }
    }
}

/// What a real resolver in the background says.
fn forward(upstream: SocketAddr, query: &Query) -> Option<Vec<u8>> {
    let socket = UdpSocket::bind("127.0.0.1:0").ok()?;
    socket.set_read_timeout(Some(PATIENCE)).ok()?;
    socket.send_to(&query.bytes, upstream).ok()?;
    let mut answer = vec![0; 4096];
    let length = socket.recv(&mut answer).ok()?;
    answer.truncate(length);
    Some(answer)
}

/// The lines with what is wanted; the first ones where it is in none.
fn shorten(text: &str, wanted: &[String]) -> String {
    let has = |line: &&str| wanted.iter().any(|part| line.contains(part));
    let mut lines: Vec<&str> = text.lines().filter(has).map(str::trim).collect();
    if lines.is_empty() {
        lines = text.lines().take(3).map(str::trim).collect();
    }
    lines.iter().map(|line| line.chars().take(300).collect::<String>()).collect::<Vec<_>>().join("\n")
}

/// A folder with a configuration, and the daemon that runs with it.
struct Program {
    folder: tempfile::TempDir,
    roots: PathBuf,
    daemon: Option<Child>,
}

impl Program {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lab"));
        command.arg("daemon").args(arguments).arg("--config").arg(self.path("config"));
        command.env("NO_COLOR", "1").env("SSL_CERT_FILE", &self.roots).kill_on_drop(true);
        command
    }

    async fn run(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().await.unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    }

    /// Starts the daemon, and waits until it answers.
    async fn serve(&mut self) {
        let log = fs::File::create(self.path("log")).unwrap();
        self.daemon = Some(self.command(&["serve"]).stderr(log).spawn().unwrap());
        let limit = Instant::now() + PATIENCE;
        while UnixStream::connect(self.path("socketmap")).await.is_err() {
            assert!(Instant::now() < limit, "the daemon does not answer: {}", self.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap()
    }

    async fn ask(&self, map: &str, domain: &str) -> String {
        socketmap::ask(&self.path("socketmap"), map, domain).await.unwrap()
    }
}
