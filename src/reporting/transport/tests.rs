//! Every stage at which a server or command can fail, and the outcome of each; servers on loopback.

use super::smtp::{MAX_MESSAGES, QUIT_TIMEOUT};
use super::*;
use std::future::pending;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Instant;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

const MESSAGE: &[u8] = b"Subject: x\r\n\r\n.leading dot\r\n..two\r\nlast\r\n";

/// The fault that the server shows, and where.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum ServerFault {
    Never,
    /// None; it takes addresses in UTF-8.
    SmtpUtf8,
    /// This reply in place of the usual one to a command of this name; `.` is the final dot, `greeting` the banner.
    Reply(&'static str, &'static str),
    /// The connection is closed when this command came.
    Drop(&'static str),
    /// Nothing more is said when this command came.
    Silence(&'static str),
    /// The message is taken, and the reply to the final dot comes this much later.
    Slow(Duration),
    /// After the reply to the final dot this is said, and the connection is closed.
    Ends(&'static str),
    /// The second message of a connection meets this reply at this command; an empty one closes the connection.
    Second(&'static str, &'static str),
}

/// An SMTP server on loopback; gives its address and, per message, its envelope and octets.
pub(crate) async fn smtp_server(turn: ServerFault) -> (SocketAddr, mpsc::UnboundedReceiver<(String, String, Vec<u8>)>) {
    let (address, taken, _) = counting_smtp_server(turn).await;
    (address, taken)
}

/// With the number of connections that it had.
async fn counting_smtp_server(
    turn: ServerFault,
) -> (SocketAddr, mpsc::UnboundedReceiver<(String, String, Vec<u8>)>, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (send, taken) = mpsc::unbounded_channel();
    let connections = Arc::new(AtomicUsize::new(0));
    let had = Arc::clone(&connections);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            had.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(serve_smtp(stream, turn, send.clone()));
        }
    });
    (address, taken, connections)
}

async fn serve_smtp(stream: TcpStream, turn: ServerFault, taken: mpsc::UnboundedSender<(String, String, Vec<u8>)>) {
    let mut stream = BufReader::new(stream);
    let (mut from, mut to) = (String::new(), String::new());
    let mut verb = "greeting".to_owned();
    let mut message = Vec::new();
    let mut number = 0;
    loop {
        number += usize::from(verb == "MAIL");
        match turn {
            ServerFault::Drop(at) if at == verb => return,
            ServerFault::Second(at, "") if at == verb && number == 2 => return,
            ServerFault::Silence(at) if at == verb => return pending().await,
            _ => {}
        }
        let usual = match verb.as_str() {
            "greeting" => "220 sink.example ESMTP",
            "EHLO" if matches!(turn, ServerFault::SmtpUtf8) => "250-sink.example\r\n250-8BITMIME\r\n250 SMTPUTF8",
            "EHLO" => "250 sink.example",
            "DATA" => "354 go",
            "QUIT" => "221 bye",
            "." => "250 2.0.0 Ok: queued as 4Xyz12",
            _ => "250 ok",
        };
        let reply = match turn {
            ServerFault::Reply(at, reply) if at == verb => reply,
            ServerFault::Second(at, reply) if at == verb && number == 2 => reply,
            _ => usual,
        };
        if verb == "." && reply.starts_with('2') {
            taken.send((from.clone(), to.clone(), std::mem::take(&mut message))).unwrap();
            if let ServerFault::Slow(by) = turn {
                tokio::time::sleep(by).await;
            }
        }
        if stream.get_mut().write_all(format!("{reply}\r\n").as_bytes()).await.is_err() || verb == "QUIT" {
            return;
        }
        if let ServerFault::Ends(with) = turn
            && verb == "."
        {
            return stream.get_mut().write_all(with.as_bytes()).await.unwrap();
        }
        if verb == "DATA" && reply.starts_with('3') {
            loop {
                let mut line = Vec::new();
                if stream.read_until(b'\n', &mut line).await.unwrap_or(0) == 0 {
                    return;
                }
                if line == b".\r\n" {
                    break;
                }
                message.extend_from_slice(line.strip_prefix(b".").unwrap_or(&line));
            }
            verb = ".".into();
            continue;
        }
        let mut line = String::new();
        if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
            return;
        }
        verb = line.trim_end().split([' ', ':']).next().unwrap().to_owned();
        match verb.as_str() {
            "EHLO" => assert_eq!(line.trim_end().split(' ').count(), 2, "{line}"),
            "MAIL" => from = line.trim_end().to_owned(),
            "RCPT" => to = line.trim_end().to_owned(),
            _ => {}
        }
    }
}

const SHORT: DeliveryTimeouts = DeliveryTimeouts {
    before_dot: Duration::from_millis(300),
    after_dot: Duration::from_millis(300),
    post: Duration::from_millis(300),
};

impl Transport {
    fn of_kind(kind: TransportKind) -> Transport {
        Transport { kind, idle: IdleConnections::default(), ehlo_name: EhloName::new("mx.sender.example".into()) }
    }

    fn smtp(address: SocketAddr) -> Transport {
        Transport::of_kind(TransportKind::Smtp(MtaAddress::At(address)))
    }

    fn sendmail(path: &Path) -> Transport {
        Transport::of_kind(TransportKind::Sendmail(path.to_owned()))
    }
}

async fn hand_over_to(by: &Transport, to: &Mailbox, limits: DeliveryTimeouts) -> DeliveryOutcome {
    let from: Mailbox = "bounces@sender.example".parse().unwrap();
    let mail = OutgoingMail { from: &from, to, message: MESSAGE };
    deliver(by, mail, async { Ok(()) }, limits, pending()).await
}

async fn hand_over(by: &Transport, limits: DeliveryTimeouts) -> DeliveryOutcome {
    let to: Mailbox = "-odd!one@example.net".parse().unwrap();
    hand_over_to(by, &to, limits).await
}

async fn smtp_outcome(turn: ServerFault) -> DeliveryOutcome {
    let (address, _taken) = smtp_server(turn).await;
    hand_over(&Transport::smtp(address), SHORT).await
}

#[tokio::test]
async fn a_message_arrives_octet_for_octet() {
    let (address, mut taken) = smtp_server(ServerFault::Never).await;
    let outcome = hand_over(&Transport::smtp(address), DeliveryTimeouts::default()).await;
    assert_eq!(outcome, DeliveryOutcome::Accepted("250 2.0.0 Ok: queued as 4Xyz12".into()));
    let (from, to, message) = taken.try_recv().unwrap();
    assert_eq!((from.as_str(), to.as_str()), ("MAIL FROM:<bounces@sender.example>", "RCPT TO:<-odd!one@example.net>"));
    assert_eq!(message, MESSAGE);
}

#[tokio::test]
async fn a_5xx_about_the_report_is_final_and_one_about_this_host_is_not() {
    for (at, reply, refused) in [
        ("greeting", "554 5.7.1 no SMTP service here", false),
        ("EHLO", "550 5.7.1 not you", false),
        ("MAIL", "553 5.7.1 <b@sender.example>: Sender address rejected: not owned by user", false),
        ("RCPT", "554 5.7.1 <x@example.net>: Relay access denied", false),
        ("RCPT", "550 relay not permitted", false),
        ("RCPT", "550 5.1.1 no such user", true),
        ("DATA", "554 5.7.1 no", false),
        (".", "550 5.7.1 no", true),
    ] {
        let no = smtp_outcome(ServerFault::Reply(at, reply)).await;
        let said = reply.rsplit(' ').next().unwrap();
        match &no {
            DeliveryOutcome::Refused(text) => assert!(refused && text.contains(said), "{at}: {no:?}"),
            DeliveryOutcome::Retry(text) => assert!(!refused && text.contains(said), "{at}: {no:?}"),
            _ => panic!("{at}: {no:?}"),
        }
    }
    for at in ["greeting", "EHLO", "MAIL", "RCPT", "DATA", "."] {
        let later = smtp_outcome(ServerFault::Reply(at, "451 4.3.0 later")).await;
        assert!(matches!(&later, DeliveryOutcome::Retry(text) if text.contains("later")), "{at}: {later:?}");
    }
}

/// RFC 5321 §4.1.1.1: the host's name. Relays refuse an address literal.
#[tokio::test]
async fn ehlo_gives_the_name_of_the_host() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let transport = Transport::smtp(listener.local_addr().unwrap());
    let server = async {
        let mut stream = BufReader::new(listener.accept().await.unwrap().0);
        stream.get_mut().write_all(b"220 relay.example ESMTP\r\n").await.unwrap();
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        line
    };
    let (_, line) = tokio::join!(hand_over(&transport, DeliveryTimeouts::default()), server);
    assert_eq!(line, "EHLO mx.sender.example\r\n");
}

/// hosts: on IPv6-only hosts no report left.
#[tokio::test]
async fn the_mta_of_this_host_is_found_at_the_loopback_address_of_either_family() {
    let localhost =
        |port| Transport::load(&ReportSection { deliver: DeliveryMethod::Localhost(port), ..ReportSection::default() });
    for ip in ["127.0.0.1", "[::1]"] {
        let listener = TcpListener::bind(format!("{ip}:0")).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (send, mut taken) = mpsc::unbounded_channel();
        tokio::spawn(async move { serve_smtp(listener.accept().await.unwrap().0, ServerFault::Never, send).await });
        let outcome = hand_over(&localhost(port).unwrap(), DeliveryTimeouts::default()).await;
        assert!(matches!(outcome, DeliveryOutcome::Accepted(_)), "{ip}: {outcome:?}");
        assert!(taken.try_recv().is_ok(), "{ip}");
    }
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let outcome = hand_over(&localhost(closed).unwrap(), DeliveryTimeouts::default()).await;
    let DeliveryOutcome::Retry(why) = &outcome else { panic!("{outcome:?}") };
    let begin = format!("localhost:{closed}: 127.0.0.1: Connection refused");
    assert!(why.starts_with(&begin) && why.contains("; ::1: "), "{why}");
    assert_eq!(ReportSection::default().deliver.to_string(), "smtp:localhost:25");
}

/// RFC 6531 §3.2, §3.4.
#[tokio::test]
async fn an_address_in_utf8_goes_to_an_mta_that_takes_it() {
    let to = Mailbox { local: "meldungen.für".into(), domain: "example.net".into() };
    let (address, mut taken) = smtp_server(ServerFault::SmtpUtf8).await;
    let transport = Transport::smtp(address);
    let outcome = hand_over_to(&transport, &to, DeliveryTimeouts::default()).await;
    assert!(matches!(outcome, DeliveryOutcome::Accepted(_)), "{outcome:?}");
    let (from, rcpt, _) = taken.try_recv().unwrap();
    assert_eq!(from, "MAIL FROM:<bounces@sender.example> SMTPUTF8 BODY=8BITMIME");
    assert_eq!(rcpt, "RCPT TO:<meldungen.für@example.net>");
    hand_over(&transport, DeliveryTimeouts::default()).await;
    assert_eq!(taken.try_recv().unwrap().0, "MAIL FROM:<bounces@sender.example>");
    let (address, mut taken) = smtp_server(ServerFault::Never).await;
    let outcome = hand_over_to(&Transport::smtp(address), &to, DeliveryTimeouts::default()).await;
    assert!(matches!(&outcome, DeliveryOutcome::Refused(why) if why.contains("SMTPUTF8")), "{outcome:?}");
    assert!(taken.try_recv().is_err());
}

/// The message goes only once the intent is stored, and that happens when the server waits for it.
#[tokio::test]
async fn the_intent_is_stored_when_the_server_waits_for_the_message() {
    let from: Mailbox = "a@sender.example".parse().unwrap();
    let mail = OutgoingMail { from: &from, to: &from, message: MESSAGE };
    for at in ["greeting", "EHLO", "MAIL", "RCPT", "DATA"] {
        let (address, _taken) = smtp_server(ServerFault::Silence(at)).await;
        let stored = AtomicBool::new(false);
        let intent = async {
            stored.store(true, Ordering::SeqCst);
            Ok(())
        };
        deliver(&Transport::smtp(address), mail, intent, SHORT, pending()).await;
        assert!(!stored.load(Ordering::SeqCst), "{at}");
    }
    let (address, mut taken) = smtp_server(ServerFault::Never).await;
    let full = async { Err("the disk is full".to_owned()) };
    let outcome = deliver(&Transport::smtp(address), mail, full, SHORT, pending()).await;
    assert!(matches!(&outcome, DeliveryOutcome::Retry(why) if why.contains("the disk is full")), "{outcome:?}");
    assert!(taken.try_recv().is_err());
}

#[tokio::test]
async fn before_the_final_dot_all_else_is_tried_again() {
    for at in ["greeting", "EHLO", "MAIL", "RCPT", "DATA"] {
        for turn in [ServerFault::Drop(at), ServerFault::Silence(at), ServerFault::Reply(at, "garbage")] {
            let outcome = smtp_outcome(turn).await;
            assert!(matches!(outcome, DeliveryOutcome::Retry(_)), "{turn:?}: {outcome:?}");
        }
    }
    let outcome = smtp_outcome(ServerFault::Reply("DATA", "250 what?")).await;
    assert!(matches!(outcome, DeliveryOutcome::Retry(_)), "{outcome:?}");
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let outcome = hand_over(&Transport::smtp(closed), SHORT).await;
    assert!(matches!(outcome, DeliveryOutcome::Retry(_)), "{outcome:?}");
}

#[tokio::test]
async fn after_the_final_dot_all_else_is_unknown() {
    for turn in [
        ServerFault::Drop("."),
        ServerFault::Silence("."),
        ServerFault::Reply(".", "garbage"),
        ServerFault::Reply(".", "354 go on"),
    ] {
        let outcome = smtp_outcome(turn).await;
        assert!(matches!(outcome, DeliveryOutcome::Unknown(_)), "{turn:?}: {outcome:?}");
    }
}

#[tokio::test]
async fn leave_taking_does_not_matter() {
    for turn in [ServerFault::Drop("QUIT"), ServerFault::Silence("QUIT"), ServerFault::Reply("QUIT", "500 no")] {
        let (address, mut taken) = smtp_server(turn).await;
        let transport = Transport::smtp(address);
        let outcome = hand_over(&transport, DeliveryTimeouts::default()).await;
        assert!(matches!(outcome, DeliveryOutcome::Accepted(_)), "{turn:?}: {outcome:?}");
        let started = Instant::now();
        transport.close_idle().await;
        assert!(started.elapsed() < 2 * QUIT_TIMEOUT, "{turn:?}");
        assert!(taken.try_recv().is_ok());
    }
}

#[test]
fn the_reply_tells_the_queue_id() {
    let mta = Transport::smtp("127.0.0.1:25".parse().unwrap());
    for (answer, id) in [
        ("250 2.0.0 Ok: queued as 4Xyz12z3AbczQ", Some("4Xyz12z3AbczQ")),
        ("250 2.0.0 Ok: queued as 9F6B55C2E7", Some("9F6B55C2E7")),
        ("250 OK id=1vNxyZ-00000003Abc-1aBC", Some("1vNxyZ-00000003Abc-1aBC")),
        ("250 2.0.0 Ok: queued as ", None),
        ("250 2.0.0 Ok: queued as \\u{202e}", None),
        ("250 taken", None),
    ] {
        assert_eq!(mta.queue_id(answer), id, "{answer}");
    }
    assert_eq!(Transport::sendmail("/usr/sbin/sendmail".as_ref()).queue_id("x: queued as 4Xyz12z3AbczQ"), None);
}

#[tokio::test]
async fn one_connection_carries_many_messages() {
    let (address, mut taken, connections) = counting_smtp_server(ServerFault::Never).await;
    let transport = Transport::smtp(address);
    for _ in 0..=MAX_MESSAGES {
        let outcome = hand_over(&transport, DeliveryTimeouts::default()).await;
        assert!(matches!(outcome, DeliveryOutcome::Accepted(_)), "{outcome:?}");
        assert_eq!(taken.try_recv().unwrap().2, MESSAGE);
    }
    assert_eq!(connections.load(Ordering::Relaxed), 2, "one has its limit");
    transport.close_idle().await;
    hand_over(&transport, DeliveryTimeouts::default()).await;
    assert_eq!(connections.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn a_connection_that_the_server_has_closed_is_replaced_and_nothing_is_lost_or_sent_twice() {
    for end in ["", "421 4.4.2 idle for too long\r\n"] {
        let (address, mut taken, connections) = counting_smtp_server(ServerFault::Ends(end)).await;
        let transport = Transport::smtp(address);
        for number in 1..=3 {
            let outcome = hand_over(&transport, DeliveryTimeouts::default()).await;
            assert!(matches!(outcome, DeliveryOutcome::Accepted(_)), "{end:?}: {outcome:?}");
            assert!(taken.try_recv().is_ok() && taken.try_recv().is_err());
            assert_eq!(connections.load(Ordering::Relaxed), number, "{end:?}");
            // Until the end has arrived.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test]
async fn a_connection_that_carried_one_message_is_no_reason_to_believe_less_of_the_next() {
    for (turn, wanted) in [
        (ServerFault::Second("MAIL", "451 4.3.0 later"), "retry"),
        (ServerFault::Second("MAIL", "550 5.7.1 no"), "retry"),
        (ServerFault::Second("RCPT", "550 5.1.1 no"), "refused"),
        (ServerFault::Second("RCPT", ""), "retry"),
        (ServerFault::Second("DATA", ""), "retry"),
        (ServerFault::Second(".", ""), "unknown"),
        (ServerFault::Second(".", "421 4.3.0 going down"), "retry"),
    ] {
        let (address, mut taken, connections) = counting_smtp_server(turn).await;
        let transport = Transport::smtp(address);
        assert!(matches!(hand_over(&transport, SHORT).await, DeliveryOutcome::Accepted(_)));
        assert!(taken.try_recv().is_ok());
        let outcome = match hand_over(&transport, SHORT).await {
            DeliveryOutcome::Accepted(_) => "accepted",
            DeliveryOutcome::Refused(_) => "refused",
            DeliveryOutcome::Retry(_) | DeliveryOutcome::RetryAfter(..) => "retry",
            DeliveryOutcome::Unknown(_) => "unknown",
        };
        assert_eq!(outcome, wanted, "{turn:?}");
        assert_eq!(connections.load(Ordering::Relaxed), 1, "{turn:?}");
        // What became of one message is no word about the next one.
        assert!(transport.idle.is_empty(), "{turn:?}");
    }
}

#[tokio::test]
async fn an_end_of_the_daemon_is_told_apart_too() {
    let from: Mailbox = "a@sender.example".parse().unwrap();
    for (at, unknown) in [("RCPT", false), (".", true)] {
        let (address, _taken) = smtp_server(ServerFault::Silence(at)).await;
        let mail = OutgoingMail { from: &from, to: &from, message: MESSAGE };
        let cancel = tokio::time::sleep(Duration::from_millis(200));
        let outcome =
            deliver(&Transport::smtp(address), mail, async { Ok(()) }, DeliveryTimeouts::default(), cancel).await;
        assert_eq!(matches!(outcome, DeliveryOutcome::Unknown(_)), unknown, "{at}: {outcome:?}");
    }
}

async fn sendmail_outcome(script: &str, limits: DeliveryTimeouts) -> (DeliveryOutcome, Vec<u8>, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sendmail");
    let text = format!("#!/bin/sh\ncd {}\necho \"$@\" > args\n{script}\n", folder.path().display());
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    let outcome = hand_over(&Transport::sendmail(&path), limits).await;
    let read = |name: &str| std::fs::read(folder.path().join(name)).unwrap_or_default();
    (outcome, read("message"), String::from_utf8(read("args")).unwrap())
}

#[tokio::test]
async fn sendmail_gets_local_lines_and_a_guarded_recipient() {
    let (outcome, message, args) = sendmail_outcome("cat > message", DeliveryTimeouts::default()).await;
    assert!(matches!(outcome, DeliveryOutcome::Accepted(_)), "{outcome:?}");
    assert_eq!(message, b"Subject: x\n\n.leading dot\n..two\nlast\n");
    assert_eq!(args, "-i -f bounces@sender.example -- -odd!one@example.net\n");
}

#[tokio::test]
async fn sendmail_exit_codes() {
    for (script, retry) in
        [("exit 75", true), ("exit 71", true), ("exit 67", false), ("exit 1", true), ("exit 77", true)]
    {
        let (outcome, ..) =
            sendmail_outcome(&format!("cat > /dev/null; echo why >&2; {script}"), DeliveryTimeouts::default()).await;
        match outcome {
            DeliveryOutcome::Retry(text) => assert!(retry && text.contains("why"), "{script}: {text}"),
            DeliveryOutcome::Refused(text) => assert!(!retry && text.contains("why"), "{script}: {text}"),
            other => panic!("{script}: {other:?}"),
        }
    }
    let (killed, ..) = sendmail_outcome("cat > /dev/null; kill -9 $$", DeliveryTimeouts::default()).await;
    assert!(matches!(killed, DeliveryOutcome::Unknown(_)), "{killed:?}");
    let limits = DeliveryTimeouts {
        before_dot: Duration::from_millis(500),
        after_dot: Duration::from_millis(200),
        ..DeliveryTimeouts::default()
    };
    let (silent, ..) = sendmail_outcome("cat > /dev/null; exec sleep 60", limits).await;
    assert!(matches!(silent, DeliveryOutcome::Unknown(_)), "{silent:?}");
    let missing = hand_over(&Transport::sendmail("/no/such/sendmail".as_ref()), SHORT).await;
    assert!(matches!(missing, DeliveryOutcome::Retry(_)), "{missing:?}");
}

#[tokio::test]
async fn a_sendmail_that_does_not_read_is_killed_before_its_input_ends() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sendmail");
    let script = format!("#!/bin/sh\nsleep 1\ncat > {}/message\necho done > {0}/done\n", folder.path().display());
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    let from: Mailbox = "a@sender.example".parse().unwrap();
    let large = b"0123456789\r\n".repeat(100_000);
    let mail = OutgoingMail { from: &from, to: &from, message: &large };
    let outcome = deliver(&Transport::sendmail(&path), mail, async { Ok(()) }, SHORT, pending()).await;
    assert!(matches!(outcome, DeliveryOutcome::Retry(_)), "{outcome:?}");
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert!(!folder.path().join("done").exists());
}
