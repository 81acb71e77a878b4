//! Reports meet receivers by https and submission servers, good and nasty: what certainly did not arrive is tried again, what
//! may have arrived is not, and a yes or no is believed.
//!
//! Real TLS on loopback with the world's authority, and the world's DNS.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use data_encoding::BASE64;
use lab::ca::{Authority, Fault};
use lab::dns::Dns;
use tlswarden::config::{Certificates, ClosedNetworkSection, Deliver, ReportSection, ResolverSection};
use tlswarden::dns::Resolver;
use tlswarden::https::Client;
use tlswarden::report::deliver::{Letter, Limits, Outcome, Way, deliver, post};
use tlswarden::report::recipients::Mailbox;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufStream};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

const HOST: &str = "reports.receiver.test";

const LIMITS: Limits = Limits { before_dot: Duration::from_secs(2), after_dot: Duration::from_millis(500) };

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
        TlsAcceptor::from(self.authority.certify(host, fault).unwrap().server_config().unwrap())
    }

    fn client(&self, private_addresses: bool, certificates: Certificates) -> Client {
        let resolver = Resolver::new(&ResolverSection { address: Some(self.dns.address()) }).unwrap();
        let extra_root = Some(self.root());
        let closed = ClosedNetworkSection { extra_root, private_addresses, ..ClosedNetworkSection::default() };
        Client::for_reports(resolver, &closed, certificates).unwrap()
    }

    async fn receiver(&self, turn: Turn, fault: Option<Fault>) -> (SocketAddr, Taken) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (acceptor, taken) = (self.acceptor(HOST, fault), Taken::default());
        let all = Arc::clone(&taken);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(receive(stream, acceptor.clone(), turn, Arc::clone(&all)));
            }
        });
        (address, taken)
    }

    async fn posted(&self, turn: Turn, body: &[u8]) -> (Outcome, Taken) {
        let (address, taken) = self.receiver(turn, None).await;
        let uri = format!("https://{HOST}:{}/v1/tlsrpt?token=a%20b", address.port());
        let client = self.client(true, Certificates::Check);
        (post(&client, &uri, body, LIMITS, std::future::pending()).await, taken)
    }
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
async fn silence_by_https_is_told_apart_by_the_last_octet() {
    let world = World::new().await;
    let large = vec![7; 30_000_000];
    for (turn, body, wanted) in [
        (Turn::Closes, &b"gzip"[..], "unknown"),
        (Turn::Hangs, b"gzip", "unknown"),
        (Turn::Closes, &large, "unknown"),
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

#[tokio::test]
async fn certificates_are_ignored_or_checked_as_configured() {
    let world = World::new().await;
    for fault in [Fault::Expired, Fault::WrongName, Fault::SelfSigned, Fault::OtherAuthority] {
        for (certificates, wanted) in [(Certificates::Ignore, "accepted"), (Certificates::Check, "retry")] {
            let (address, taken) = world.receiver(Turn::Answers("200 OK"), Some(fault)).await;
            let uri = format!("https://{HOST}:{}/", address.port());
            let client = world.client(true, certificates);
            let outcome = post(&client, &uri, b"gzip", LIMITS, std::future::pending()).await;
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
    let client = world.client(false, Certificates::Ignore);
    let outcome = post(&client, &uri, b"gzip", LIMITS, std::future::pending()).await;
    assert_eq!(outcome, Outcome::Refused("no address: 127.0.0.1 is not a public address".into()));
    assert!(taken.lock().unwrap().is_empty());
    let gone = world.client(true, Certificates::Ignore);
    let outcome = post(&gone, "https://nowhere.test/", b"gzip", LIMITS, std::future::pending()).await;
    assert_eq!(kind(&outcome), "retry", "{outcome:?}");
}

fn kind(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Accepted(_) => "accepted",
        Outcome::Refused(_) => "refused",
        Outcome::Retry(_) => "retry",
        Outcome::Unknown(_) => "unknown",
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

async fn submitted(world: &World, by: Submission, password: &str) -> (Outcome, Taken) {
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
        true => Deliver::Submissions("localhost".into(), port),
        false => Deliver::Submission("localhost".into(), port),
    };
    let section = ReportSection {
        deliver: to(port),
        user: Some("tlsrpt".into()),
        password: Some(file),
        ca_file: Some(world.root()),
        ..ReportSection::default()
    };
    let way = Way::load(&section).unwrap();
    assert!(!format!("{way:?}").contains(password), "{way:?}");
    let from: Mailbox = "bounces@sender.test".parse().unwrap();
    let letter = Letter { from: &from, to: &from, message: b"Subject: x\r\n\r\nreport\r\n" };
    (deliver(&way, letter, LIMITS, std::future::pending()).await, taken)
}

#[tokio::test]
async fn submission_by_both_kinds_of_tls_with_a_login() {
    let world = World::new().await;
    for implicit in [false, true] {
        let (outcome, taken) = submitted(&world, Submission { implicit, ..GOOD }, SECRET).await;
        assert_eq!(outcome, Outcome::Accepted("250 2.0.0 taken".into()), "implicit: {implicit}");
        let taken = taken.lock().unwrap();
        let (said, body) = &taken[0];
        assert!(said.contains("MAIL FROM:<bounces@sender.test>"), "{said}");
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
        deliver: Deliver::Submissions("mail.example.com".into(), 465),
        user: Some("tlsrpt".into()),
        password: Some(empty.clone()),
        ca_file: Some(empty),
        ..ReportSection::default()
    };
    let faults = Way::load(&section).unwrap_err();
    assert_eq!(faults.len(), 2, "{faults:?}");
    for (fault, said) in faults.iter().zip(["[report] ca_file: ", "[report] password: "]) {
        assert!(fault.starts_with(said) && fault.ends_with("; not started") && !fault.contains('\n'), "{fault}");
    }
    let credential = ReportSection { password: Some("credential:x".into()), ca_file: None, ..section };
    assert!(Way::load(&credential).unwrap_err()[0].contains("LoadCredential"));
}
