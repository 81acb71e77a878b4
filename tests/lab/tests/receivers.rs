//! Reports meet receivers by https and submission servers, good and nasty: what certainly did not arrive is tried again, what
//! may have arrived is not, and a yes or no is believed. Last, the daemon itself posts a day's reports.
//!
//! `SILENT=1000 cargo test -p lab --test receivers when_each_report_leaves -- --ignored --nocapture` prints when each report
//! leaves that has so many silent receivers beside it.
//!
//! Real TLS on loopback with the world's authority, and the world's DNS.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use data_encoding::BASE64;
use flate2::read::GzDecoder;
use lab::ca::{Authority, Fault};
use lab::daemon::{Daemon, Program};
use lab::dns::Dns;
use lab::world::{self, Options};
use serde_json::Value;
use tlswarden::base::clock::Clock;
use tlswarden::base::network::{HttpsCertificates, NetworkExceptions};
use tlswarden::base::rua_record::Mailbox;
use tlswarden::base::tlsrpt::{Day, Policy, TallyKey, TallyResult};
use tlswarden::config::{DeliveryMethod, ReportSection};
use tlswarden::net::dns::Resolver;
use tlswarden::net::https::HttpsClient;
use tlswarden::reporting::transport::{
    DeliveryOutcome, DeliveryTimeouts, OutgoingMail, Transport, deliver, post_report,
};
use tlswarden::store::embedded::EmbeddedStore;
use tlswarden::store::{Batch, Store};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufStream};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

const HOST: &str = "reports.receiver.test";

const LIMITS: DeliveryTimeouts = DeliveryTimeouts {
    before_dot: Duration::from_secs(2),
    after_dot: Duration::from_millis(500),
    post: Duration::from_secs(5),
};

/// What a receiver by https does.
#[derive(Clone, Copy, Debug)]
enum Turn {
    /// Reads all, and answers with this status.
    Answers(&'static str),
    /// Answers with this status when it has the header, reads nothing more and closes.
    AnswersEarly(&'static str),
    /// Closes when it has the header.
    ClosesEarly,
    /// Reads all, and closes.
    Closes,
    /// Reads all, and says nothing.
    Hangs,
    /// Takes the connection, and says nothing.
    HangsAtOnce,
    /// Has the header, and neither reads on nor says anything.
    StopsReading,
}

/// Posts that arrived whole: header and body.
type Taken = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

struct World {
    folder: tempfile::TempDir,
    authority: Authority,
    dns: Dns,
}

impl World {
    async fn new() -> World {
        let authority = Authority::generate().unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), authority.pem()).unwrap();
        let dns = Dns::start("127.0.0.1:0".parse().unwrap()).await.unwrap();
        dns.change().address(HOST, "127.0.0.1".parse().unwrap());
        World { folder, authority, dns }
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    fn acceptor(&self, host: &str, fault: Option<Fault>) -> TlsAcceptor {
        acceptor(&self.authority, host, fault)
    }

    fn client(&self, private_addresses: bool, certificates: HttpsCertificates) -> HttpsClient {
        let resolver = Resolver::new(Some(self.dns.address())).unwrap();
        let extra_root = Some(self.root());
        let closed = NetworkExceptions { extra_root, private_addresses, ..NetworkExceptions::default() };
        HttpsClient::for_reports(resolver, &closed, certificates).unwrap()
    }

    async fn receiver(&self, turn: Turn, fault: Option<Fault>) -> (SocketAddr, Taken) {
        let (port, _, taken) = receiver(&self.authority, turn, fault).await;
        (([127, 0, 0, 1], port).into(), taken)
    }

    async fn posted(&self, turn: Turn, body: &[u8]) -> (DeliveryOutcome, Taken) {
        let (address, taken) = self.receiver(turn, None).await;
        let uri = format!("https://{HOST}:{}/v1/tlsrpt?token=a%20b", address.port());
        let client = self.client(true, HttpsCertificates::Check);
        (post_report(&client, &uri, body, async { Ok(()) }, LIMITS, std::future::pending()).await, taken)
    }
}

fn acceptor(authority: &Authority, host: &str, fault: Option<Fault>) -> TlsAcceptor {
    TlsAcceptor::from(authority.certify(host, fault).unwrap().server_config().unwrap())
}

/// A receiver of [`HOST`]: its port, what it does, which may be changed, and what it got.
async fn receiver(authority: &Authority, turn: Turn, fault: Option<Fault>) -> (u16, Arc<Mutex<Turn>>, Taken) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (acceptor, turn, taken) = (acceptor(authority, HOST, fault), Arc::new(Mutex::new(turn)), Taken::default());
    let (does, all) = (Arc::clone(&turn), Arc::clone(&taken));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let turn = *does.lock().unwrap();
            tokio::spawn(receive(stream, acceptor.clone(), turn, Arc::clone(&all)));
        }
    });
    (port, turn, taken)
}

async fn receive(stream: TcpStream, acceptor: TlsAcceptor, turn: Turn, taken: Taken) {
    if matches!(turn, Turn::HangsAtOnce) {
        return tokio::time::sleep(Duration::from_secs(30)).await;
    }
    let Ok(stream) = acceptor.accept(stream).await else { return };
    let mut stream = BufStream::new(stream);
    let mut header = String::new();
    while !header.ends_with("\r\n\r\n") {
        if stream.read_line(&mut header).await.unwrap_or(0) == 0 {
            return;
        }
    }
    match turn {
        Turn::ClosesEarly => return,
        Turn::StopsReading => return tokio::time::sleep(Duration::from_secs(30)).await,
        Turn::AnswersEarly(status) => return answer(&mut stream, status).await,
        _ => {}
    }
    let length =
        header.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.expect("a Content-Length")];
    if stream.read_exact(&mut body).await.is_err() {
        return;
    }
    taken.lock().unwrap().push((header, body));
    match turn {
        Turn::Hangs => tokio::time::sleep(Duration::from_secs(30)).await,
        Turn::Answers(status) => answer(&mut stream, status).await,
        _ => {}
    }
}

async fn answer(stream: &mut (impl AsyncWrite + Unpin), status: &str) {
    let _ =
        stream.write_all(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nLocation: /x\r\n\r\n").as_bytes()).await;
    let _ = stream.flush().await;
    let _ = stream.shutdown().await;
}

#[tokio::test]
async fn a_yes_and_a_no_by_https_are_believed() {
    let world = World::new().await;
    for (status, wanted) in [
        ("200 OK", "accepted"),
        ("201 Created", "accepted"),
        ("204 No Content", "accepted"),
        ("301 Moved Permanently", "refused"),
        ("307 Temporary Redirect", "refused"),
        ("400 Bad Request", "refused"),
        ("403 Forbidden", "refused"),
        ("404 Not Found", "refused"),
        ("410 Gone", "refused"),
        ("413 Content Too Large", "refused"),
        ("408 Request Timeout", "retry"),
        ("425 Too Early", "retry"),
        ("429 Too Many Requests", "retry"),
        ("500 Internal Server Error", "retry"),
        ("503 Service Unavailable", "retry"),
        ("not HTTP at all", "unknown"),
    ] {
        let (outcome, taken) = world.posted(Turn::Answers(status), b"gzip").await;
        println!("{status:26} {outcome:?}");
        assert_eq!(kind(&outcome), wanted, "{status}: {outcome:?}");
        let taken = taken.lock().unwrap();
        assert_eq!(taken.len(), 1, "one request each");
        let (header, body) = &taken[0];
        let header = header.to_ascii_lowercase();
        assert!(header.starts_with("post /v1/tlsrpt?token=a%20b http/1.1\r\n"), "{header}");
        assert!(header.contains("\r\ncontent-type: application/tlsrpt+gzip\r\n"), "{header}");
        assert!(header.contains("\r\ncontent-length: 4\r\n"), "{header}");
        assert_eq!(body, b"gzip");
    }
}

#[tokio::test]
async fn a_post_without_a_reply_is_tried_again() {
    let world = World::new().await;
    let large = vec![7; 30_000_000];
    for (turn, body, wanted) in [
        (Turn::Closes, &b"gzip"[..], "retry"),
        (Turn::Hangs, b"gzip", "retry"),
        (Turn::Closes, &large, "retry"),
        (Turn::ClosesEarly, b"gzip", "retry"),
        (Turn::HangsAtOnce, b"gzip", "retry"),
        (Turn::ClosesEarly, &large, "retry"),
        (Turn::StopsReading, &large, "retry"),
    ] {
        let (outcome, _) = world.posted(turn, body).await;
        println!("{turn:?}, {} octets: {outcome:?}", body.len());
        assert_eq!(kind(&outcome), wanted, "{turn:?}: {outcome:?}");
    }
    // A no to the first half is a no to all; where the connection ends under the writing, it is at least no yes.
    let (outcome, _) = world.posted(Turn::AnswersEarly("413 Content Too Large"), &large).await;
    assert!(["refused", "retry"].contains(&kind(&outcome)), "{outcome:?}");
    let (whole, taken) = world.posted(Turn::Answers("200 OK"), &large).await;
    assert_eq!((kind(&whole), taken.lock().unwrap()[0].1.len()), ("accepted", large.len()));
}

/// RFC 9110 §10.2.3: a number of seconds or a date.
#[tokio::test]
async fn retry_after_is_obeyed() {
    let world = World::new().await;
    for (status, wanted) in [
        ("429 Too Many Requests\r\nRetry-After: 7200", 7200..=7200),
        ("503 Service Unavailable\r\nRetry-After: 30", 30..=30),
        ("503 Service Unavailable\r\nRetry-After: Fri, 31 Dec 2100 23:59:59 GMT", 86_400..=i64::MAX),
    ] {
        let (outcome, _) = world.posted(Turn::Answers(status), b"gzip").await;
        assert!(matches!(&outcome, DeliveryOutcome::RetryAfter(_, after) if wanted.contains(after)), "{outcome:?}");
    }
}

/// The intent is stored once the receiver can get the report, and no byte goes where that fails.
#[tokio::test]
async fn no_byte_of_a_report_goes_before_its_intent_is_stored() {
    let world = World::new().await;
    let (address, taken) = world.receiver(Turn::Answers("200 OK"), None).await;
    let uri = format!("https://{HOST}:{}/", address.port());
    let client = world.client(true, HttpsCertificates::Check);
    let full = async { Err("the disk is full".to_owned()) };
    let outcome = post_report(&client, &uri, b"gzip", full, LIMITS, std::future::pending()).await;
    assert_eq!(outcome, DeliveryOutcome::Retry("the disk is full".into()));
    assert!(taken.lock().unwrap().is_empty());

    let (silent, _) = world.receiver(Turn::HangsAtOnce, None).await;
    let asked = std::sync::atomic::AtomicBool::new(false);
    let intent = async {
        asked.store(true, std::sync::atomic::Ordering::SeqCst);
        Ok(())
    };
    let uri = format!("https://{HOST}:{}/", silent.port());
    let short = DeliveryTimeouts { post: Duration::from_millis(500), ..LIMITS };
    let outcome = post_report(&client, &uri, b"gzip", intent, short, std::future::pending()).await;
    assert_eq!(kind(&outcome), "retry");
    assert!(!asked.load(std::sync::atomic::Ordering::SeqCst), "before the TLS handshake nothing is intended");
}

#[tokio::test]
async fn certificates_are_ignored_or_checked_as_configured() {
    let world = World::new().await;
    for fault in [Fault::Expired, Fault::WrongName, Fault::SelfSigned, Fault::OtherAuthority] {
        for (certificates, wanted) in [(HttpsCertificates::Ignore, "accepted"), (HttpsCertificates::Check, "retry")] {
            let (address, taken) = world.receiver(Turn::Answers("200 OK"), Some(fault)).await;
            let uri = format!("https://{HOST}:{}/", address.port());
            let client = world.client(true, certificates);
            let outcome = post_report(&client, &uri, b"gzip", async { Ok(()) }, LIMITS, std::future::pending()).await;
            println!("{fault:?}, {certificates:?}: {outcome:?}");
            assert_eq!(kind(&outcome), wanted, "{fault:?} {certificates:?}: {outcome:?}");
            assert_eq!(taken.lock().unwrap().len(), usize::from(wanted == "accepted"));
        }
    }
}

#[tokio::test]
async fn no_stranger_sends_us_to_our_own_network() {
    let world = World::new().await;
    let (address, taken) = world.receiver(Turn::Answers("200 OK"), None).await;
    let uri = format!("https://{HOST}:{}/", address.port());
    let client = world.client(false, HttpsCertificates::Ignore);
    let outcome = post_report(&client, &uri, b"gzip", async { Ok(()) }, LIMITS, std::future::pending()).await;
    assert_eq!(outcome, DeliveryOutcome::Refused("no address: 127.0.0.1 is not a public address".into()));
    assert!(taken.lock().unwrap().is_empty());
    let gone = world.client(true, HttpsCertificates::Ignore);
    let outcome =
        post_report(&gone, "https://nowhere.test/", b"gzip", async { Ok(()) }, LIMITS, std::future::pending()).await;
    assert_eq!(kind(&outcome), "retry", "{outcome:?}");
}

fn kind(outcome: &DeliveryOutcome) -> &'static str {
    match outcome {
        DeliveryOutcome::Accepted(_) => "accepted",
        DeliveryOutcome::Refused(_) => "refused",
        DeliveryOutcome::Retry(_) | DeliveryOutcome::RetryAfter(..) => "retry",
        DeliveryOutcome::Unknown(_) => "unknown",
    }
}

/// A submission server.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Submission {
    /// TLS from the first octet; else STARTTLS.
    implicit: bool,
    offers_tls: bool,
    fault: Option<Fault>,
    /// What it says to a right password.
    login: &'static str,
    /// What it says to the final dot; empty: it closes.
    dot: &'static str,
}

const GOOD: Submission =
    Submission { implicit: false, offers_tls: true, fault: None, login: "235 2.7.0 welcome", dot: "250 2.0.0 taken" };

const SECRET: &str = "correct horse";

async fn serve(stream: TcpStream, acceptor: TlsAcceptor, by: Submission, taken: Taken) {
    if by.implicit {
        let Ok(stream) = acceptor.accept(stream).await else { return };
        let mut stream = BufStream::new(stream);
        say(&mut stream, "220 submission ESMTP").await;
        return session(&mut stream, by, true, taken).await.map_or((), drop);
    }
    let mut stream = BufStream::new(stream);
    say(&mut stream, "220 submission ESMTP").await;
    if session(&mut stream, by, false, Arc::clone(&taken)).await.is_some() {
        let Ok(stream) = acceptor.accept(stream.into_inner()).await else { return };
        session(&mut BufStream::new(stream), by, true, taken).await;
    }
}

async fn say(stream: &mut (impl AsyncWrite + Unpin), line: &str) {
    let _ = stream.write_all(format!("{line}\r\n").as_bytes()).await;
    let _ = stream.flush().await;
}

/// Until the client goes, or asks for STARTTLS.
async fn session<S>(stream: &mut BufStream<S>, by: Submission, tls: bool, taken: Taken) -> Option<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let right = BASE64.encode(format!("\0tlsrpt\0{SECRET}").as_bytes());
    let mut known = false;
    let mut said = String::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
            return None;
        }
        said.push_str(&line);
        let line = line.trim_end();
        match line.split([' ', ':']).next().unwrap_or_default() {
            "EHLO" if !tls && by.offers_tls => say(stream, "250-submission\r\n250 STARTTLS").await,
            "EHLO" if tls => say(stream, "250-submission\r\n250 AUTH PLAIN LOGIN").await,
            "EHLO" => say(stream, "250 submission").await,
            "STARTTLS" => {
                say(stream, "220 go").await;
                return Some(());
            }
            "AUTH" => {
                assert!(tls, "a password in clear text: {line}");
                known = line == format!("AUTH PLAIN {right}");
                say(stream, if known { by.login } else { "535 5.7.8 no" }).await;
            }
            "MAIL" if !known => say(stream, "530 5.7.0 who are you").await,
            "DATA" => {
                say(stream, "354 go").await;
                let mut body = Vec::new();
                while !body.ends_with(b"\r\n.\r\n") {
                    if stream.read_until(b'\n', &mut body).await.unwrap_or(0) == 0 {
                        return None;
                    }
                }
                taken.lock().unwrap().push((said.clone(), body));
                if by.dot.is_empty() {
                    return None;
                }
                say(stream, by.dot).await;
            }
            _ => say(stream, "250 ok").await,
        }
    }
}

async fn submitted(world: &World, by: Submission, password: &str) -> (DeliveryOutcome, Taken) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (acceptor, taken) = (world.acceptor("localhost", by.fault), Taken::default());
    let all = Arc::clone(&taken);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, acceptor.clone(), by, Arc::clone(&all)));
        }
    });
    let file = world.folder.path().join("password");
    std::fs::write(&file, format!("{password}\n")).unwrap();
    let to = |port| match by.implicit {
        true => DeliveryMethod::Submissions("localhost".into(), port),
        false => DeliveryMethod::Submission("localhost".into(), port),
    };
    let section = ReportSection {
        deliver: to(port),
        user: Some("tlsrpt".into()),
        password: Some(file),
        ca_file: Some(world.root()),
        ..ReportSection::default()
    };
    let way = Transport::load(&section).unwrap();
    assert!(!format!("{way:?}").contains(password), "{way:?}");
    let from: Mailbox = "bounces@sender.test".parse().unwrap();
    let letter = OutgoingMail { from: &from, to: &from, message: b"Subject: x\r\n\r\nreport\r\n" };
    (deliver(&way, letter, async { Ok(()) }, LIMITS, std::future::pending()).await, taken)
}

#[tokio::test]
async fn submission_by_both_kinds_of_tls_with_a_login() {
    let world = World::new().await;
    for implicit in [false, true] {
        let (outcome, taken) = submitted(&world, Submission { implicit, ..GOOD }, SECRET).await;
        assert_eq!(outcome, DeliveryOutcome::Accepted("250 2.0.0 taken".into()), "implicit: {implicit}");
        let taken = taken.lock().unwrap();
        let (said, body) = &taken[0];
        assert!(said.contains("MAIL FROM:<bounces@sender.test>"), "{said}");
        let names: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("EHLO ")).collect();
        assert!(!names.is_empty() && names.iter().all(|name| name.contains('.') && !name.contains('[')), "{said}");
        assert_eq!(body, b"Subject: x\r\n\r\nreport\r\n.\r\n");
    }
}

#[tokio::test]
async fn a_submission_server_in_trouble() {
    let world = World::new().await;
    for implicit in [false, true] {
        let good = Submission { implicit, ..GOOD };
        for (by, password, wanted) in [
            // Nothing of these is the report's fault: it goes when they are mended.
            (good, "wrong", "retry"),
            (Submission { login: "454 4.7.0 later", ..good }, SECRET, "retry"),
            (Submission { fault: Some(Fault::Expired), ..good }, SECRET, "retry"),
            (Submission { fault: Some(Fault::WrongName), ..good }, SECRET, "retry"),
            (Submission { fault: Some(Fault::OtherAuthority), ..good }, SECRET, "retry"),
            (Submission { dot: "451 4.3.0 later", ..good }, SECRET, "retry"),
            (Submission { dot: "554 5.7.1 no", ..good }, SECRET, "refused"),
            (Submission { dot: "", ..good }, SECRET, "unknown"),
        ] {
            let (outcome, taken) = submitted(&world, by, password).await;
            println!("{by:?}: {outcome:?}");
            assert_eq!(kind(&outcome), wanted, "{by:?}: {outcome:?}");
            assert_eq!(taken.lock().unwrap().len(), usize::from(by.dot != GOOD.dot), "{by:?}");
        }
    }
    let (outcome, taken) = submitted(&world, Submission { offers_tls: false, ..GOOD }, SECRET).await;
    assert_eq!(kind(&outcome), "retry", "{outcome:?}");
    assert!(format!("{outcome:?}").contains("STARTTLS"), "{outcome:?}");
    assert!(taken.lock().unwrap().is_empty());
}

#[test]
fn passwords_and_roots_that_cannot_be_read_are_one_line_each() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty");
    std::fs::write(&empty, "\n").unwrap();
    let section = ReportSection {
        deliver: DeliveryMethod::Submissions("mail.example.com".into(), 465),
        user: Some("tlsrpt".into()),
        password: Some(empty.clone()),
        ca_file: Some(empty),
        ..ReportSection::default()
    };
    let faults = Transport::load(&section).unwrap_err();
    assert_eq!(faults.len(), 2, "{faults:?}");
    for (fault, said) in faults.iter().zip(["[report] ca_file: ", "[report] password: "]) {
        assert!(fault.starts_with(said) && !fault.contains('\n'), "{fault}");
    }
    let credential = ReportSection { password: Some("credential:x".into()), ca_file: None, ..section };
    assert!(Transport::load(&credential).unwrap_err()[0].contains("LoadCredential"));
}

/// A host whose daemon posts: what was counted of one day for domains that want their reports by https.
struct Posting {
    program: Program,
    world: world::World,
    receivers: BTreeMap<&'static str, (Arc<Mutex<Turn>>, Taken)>,
}

impl Posting {
    async fn new(receivers: &[(&'static str, Turn, Option<Fault>)]) -> Posting {
        let world = world::World::start(Options::default(), &[]).await.unwrap();
        let (day, mut batch, mut all): (Day, _, _) = ("2026-11-22".parse().unwrap(), Batch::default(), BTreeMap::new());
        for (name, turn, fault) in receivers {
            let (port, turn, taken) = receiver(&world.authority, *turn, *fault).await;
            all.insert(*name, (turn, taken));
            let domain = format!("{name}.test");
            let mut zone = world.dns.change();
            zone.address(HOST, [127, 0, 0, 1].into());
            zone.txt(&format!("_smtp._tls.{domain}"), &format!("v=TLSRPTv1; rua=https://{HOST}:{port}/{name}"));
            let tally = TallyKey {
                day,
                policy: Policy::none(&domain).into(),
                domain: domain.as_str().into(),
                result: TallyResult::Success,
            };
            batch.add.push((tally, 7));
        }
        EmbeddedStore::open(&world.folder().join("store"), Clock::default()).unwrap().store.write(batch).unwrap();
        let next_day = "Nov 23 00:05:00 mta postfix/qmgr[1]: 0123456789A: from=<>, size=1, nrcpt=1 (queue active)\n";
        fs::write(world.log(), next_day).unwrap();
        Posting { program: Program::lab(env!("CARGO_BIN_EXE_lab")), world, receivers: all }
    }

    /// Runs a daemon from `time` on, its configuration edited, until each of the domains is in its state; what was last
    /// said of each.
    async fn run(&self, time: &str, edit: (&str, &str), wanted: &[(&str, &str)]) -> BTreeMap<String, String> {
        self.world.configure(Some(time)).unwrap();
        let config = fs::read_to_string(self.world.config()).unwrap();
        assert!(config.contains(edit.0), "{config}");
        fs::write(self.world.config(), config.replace(edit.0, edit.1)).unwrap();
        let daemon = Daemon::start(&self.program, &self.world).await.unwrap();
        let begun = Instant::now();
        let due = loop {
            let output = self.program.run(&self.world, &["reports", "list", "--json"]).await.unwrap();
            let due: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap_or_default();
            let is = |(name, state): &(&str, &str)| {
                due.iter()
                    .any(|d| d["domain"] == format!("{name}.test") && d["state"] == *state && !d["last"].is_null())
            };
            if wanted.iter().all(is) {
                break due;
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "{wanted:?}: {due:#?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        daemon.stop().await.unwrap();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let last = due.iter().map(|d| (text(&d["domain"]).replace(".test", ""), text(&d["last"]))).collect();
        println!("{time}, {edit:?}: {last:#?}");
        last
    }

    /// The reports that a receiver got whole.
    fn got(&self, name: &str) -> Vec<Value> {
        let read = |(header, body): &(String, Vec<u8>)| {
            let header = header.to_ascii_lowercase();
            assert!(header.starts_with(&format!("post /{name} http/1.1\r\n")), "{header}");
            assert!(header.contains("\r\ncontent-type: application/tlsrpt+gzip\r\n"), "{header}");
            let mut json = String::new();
            GzDecoder::new(&body[..]).read_to_string(&mut json).unwrap();
            let report: Value = serde_json::from_str(&json).unwrap();
            assert_eq!(lab::report::json_faults(&report), Vec::<String>::new());
            assert_eq!(report["policies"][0]["policy"]["policy-domain"], format!("{name}.test"));
            assert_eq!(report["policies"][0]["summary"]["total-successful-session-count"], 7);
            report
        };
        self.receivers[name].1.lock().unwrap().iter().map(read).collect()
    }
}

const AT_NIGHT: &str = "2026-11-23T00:10:00Z";
const AS_IT_IS: (&str, &str) = ("", "");

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_posts_a_days_reports_and_tries_again_where_it_may() {
    let host = Posting::new(&[
        ("accepts", Turn::Answers("201 Created"), None),
        ("forbids", Turn::Answers("403 Forbidden"), None),
        ("redirects", Turn::Answers("307 Temporary Redirect"), None),
        ("mends", Turn::Answers("503 Service Unavailable"), None),
        ("falls-silent", Turn::Closes, None),
        ("later", Turn::Answers("429 Too Many Requests\r\nRetry-After: 7200"), None),
        ("expired", Turn::Answers("200 OK"), Some(Fault::Expired)),
        ("other-name", Turn::Answers("200 OK"), Some(Fault::WrongName)),
        ("self-signed", Turn::Answers("200 OK"), Some(Fault::SelfSigned)),
    ])
    .await;
    let after_first = [
        ("accepts", "sent"),
        ("forbids", "refused"),
        ("redirects", "refused"),
        ("mends", "planned"),
        ("falls-silent", "planned"),
        // Not asked again ten minutes later.
        ("later", "planned"),
        // What is the default: who has broken certificates needs the report most.
        ("expired", "sent"),
        ("other-name", "sent"),
        ("self-signed", "sent"),
    ];
    let last = host.run(AT_NIGHT, AS_IT_IS, &after_first).await;
    assert_eq!((last["accepts"].as_str(), last["mends"].as_str()), ("HTTP 201", "HTTP 503"));
    assert!(last["redirects"].contains("not followed"), "{last:?}");
    let again = ["mends", "falls-silent"];
    let first = again.map(|name| host.got(name).remove(0));
    again.iter().for_each(|name| *host.receivers[name].0.lock().unwrap() = Turn::Answers("200 OK"));
    let mut after_second = after_first;
    (after_second[3].1, after_second[4].1) = ("sent", "sent");
    host.run("2026-11-23T00:20:00Z", AS_IT_IS, &after_second).await;
    for (name, first) in again.iter().zip(first) {
        let both = host.got(name);
        assert_eq!((both.len(), &both[0], &both[1]), (2, &first, &first), "{name}: the same report at both tries");
    }
    for name in host.receivers.keys().filter(|name| !again.contains(name)) {
        assert_eq!(host.got(name).len(), 1, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_posts_nothing_past_a_certificate_that_it_is_to_check() {
    let host = Posting::new(&[
        ("sound", Turn::Answers("200 OK"), None),
        ("expired", Turn::Answers("200 OK"), Some(Fault::Expired)),
        ("other-name", Turn::Answers("200 OK"), Some(Fault::WrongName)),
        ("self-signed", Turn::Answers("200 OK"), Some(Fault::SelfSigned)),
    ])
    .await;
    let check = ("[report]\n", "[report]\nhttps_certificates = \"check\"\n");
    let kept_back = [("sound", "sent"), ("expired", "planned"), ("other-name", "planned"), ("self-signed", "planned")];
    let last = host.run(AT_NIGHT, check, &kept_back).await;
    for (name, said) in
        [("expired", "expired"), ("other-name", "not for this host name"), ("self-signed", "not trusted")]
    {
        assert!(last[name].contains(said), "{name}: {last:?}");
        assert!(host.got(name).is_empty(), "{name}");
    }
    assert_eq!(host.got("sound").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_posts_nothing_to_its_own_network_unless_told_so() {
    let host = Posting::new(&[("inside", Turn::Answers("200 OK"), None)]).await;
    let as_on_the_internet = ("private_addresses = true\n", "");
    let last = host.run(AT_NIGHT, as_on_the_internet, &[("inside", "refused")]).await;
    assert_eq!(last["inside"], "no address: 127.0.0.1 is not a public address");
    assert!(host.got("inside").is_empty());
}

/// So many domains that want their reports by https, each at a host of its own that never answers, and as many by mail.
struct Silent {
    program: Program,
    world: world::World,
    connections: Arc<Mutex<usize>>,
}

impl Silent {
    async fn new(count: usize) -> Silent {
        let world = world::World::start(Options::default(), &[]).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections = Arc::new(Mutex::new(0));
        let had = Arc::clone(&connections);
        tokio::spawn(async move {
            let mut open = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                *had.lock().unwrap() += 1;
                open.push(stream);
            }
        });
        let day: Day = "2026-11-22".parse().unwrap();
        let mut batch = Batch::default();
        {
            let mut zone = world.dns.change();
            for n in 0..count {
                let host = format!("r{n}.silent.test");
                zone.address(&host, [127, 0, 0, 1].into());
                for (domain, rua) in [
                    (format!("d{n}.silent.test"), format!("https://{host}:{port}/")),
                    (format!("d{n}.mail.test"), format!("mailto:r@d{n}.mail.test")),
                ] {
                    zone.txt(&format!("_smtp._tls.{domain}"), &format!("v=TLSRPTv1; rua={rua}"));
                    let policy = Policy::none(&domain).into();
                    let domain = domain.as_str().into();
                    batch.add.push((TallyKey { day, domain, policy, result: TallyResult::Success }, 7));
                }
            }
        }
        let store = EmbeddedStore::open(&world.folder().join("store"), Clock::default()).unwrap().store;
        store.write(batch).unwrap();
        let next_day = "Nov 23 00:05:00 mta postfix/qmgr[1]: 0123456789A: from=<>, size=1, nrcpt=1 (queue active)\n";
        fs::write(world.log(), next_day).unwrap();
        Silent { program: Program::lab(env!("CARGO_BIN_EXE_lab")), world, connections }
    }

    async fn start(&self, spread: &str) -> Daemon {
        self.world.configure(Some("2026-11-23T00:00:00Z")).unwrap();
        let config = fs::read_to_string(self.world.config()).unwrap();
        let edited = config.replace("spread = \"0s\"", &format!("spread = \"{spread}\""));
        fs::write(self.world.config(), edited).unwrap();
        Daemon::start(&self.program, &self.world).await.unwrap()
    }
}

/// Receivers that do not answer have turns of their own: no report by mail waits for one of them.
#[tokio::test(flavor = "multi_thread")]
async fn no_report_by_mail_waits_for_a_receiver_that_never_answers() {
    const COUNT: usize = 200;
    let silent = Silent::new(COUNT).await;
    let daemon = silent.start("0s").await;
    let begun = Instant::now();
    while silent.world.submission().taken() < COUNT || *silent.connections.lock().unwrap() == 0 {
        let taken = silent.world.submission().taken();
        assert!(begun.elapsed() < Duration::from_secs(60), "{taken} of {COUNT} in a minute");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let output = silent.program.run(&silent.world, &["reports", "list", "--json"]).await.unwrap();
    let reports: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let unanswered = |report: &&Value| {
        let by_https = report["destination"].as_str().is_some_and(|to| to.starts_with("https:"));
        by_https && !matches!(report["state"].as_str(), Some("sent" | "refused" | "unknown"))
    };
    assert_eq!(reports.iter().filter(unanswered).count(), COUNT);
    daemon.stop().await.unwrap();
}

/// By hand: a thousand silent receivers beside a thousand ordinary ones, over a minute; prints when each report left.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute and prints a list"]
async fn when_each_report_leaves() {
    let count = std::env::var("SILENT").map_or(1000, |count| count.parse().unwrap());
    let silent = Silent::new(count).await;
    let begun = Instant::now();
    let daemon = silent.start("60s").await;
    let mut left: Vec<f64> = Vec::new();
    while left.len() < count {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let taken = silent.world.submission().taken();
        left.resize(taken, begun.elapsed().as_secs_f64());
        assert!(begun.elapsed() < Duration::from_secs(600), "{taken} of {count}");
    }
    let mail = silent.world.submission().record().mail;
    for (mail, second) in mail.iter().zip(&left) {
        println!("{second:6.2} s {}", mail.to[0]);
    }
    let until = |second: f64| left.iter().filter(|left| **left < second).count();
    for second in (10..).step_by(10).take_while(|second| f64::from(second - 10) < left[count - 1]) {
        println!("{:5} of {count} reports by mail within {second} s", until(f64::from(second)));
    }
    let connections = *silent.connections.lock().unwrap();
    println!("the last one after {:.1} s; {connections} connections to silent receivers by then", left[count - 1]);
    daemon.stop().await.unwrap();
}
