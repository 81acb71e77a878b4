//! Every stage at which a server or command can fail, and the outcome of each; servers on loopback.

use super::smtp::{LEAVE, MAX_MESSAGES};
use super::*;
use std::future::pending;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Instant;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

const MESSAGE: &[u8] = b"Subject: x\r\n\r\n.leading dot\r\n..two\r\nlast\r\n";

/// Where the server turns nasty.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Turn {
    Never,
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
pub(crate) async fn server(turn: Turn) -> (SocketAddr, mpsc::UnboundedReceiver<(String, String, Vec<u8>)>) {
    let (address, taken, _) = counting_server(turn).await;
    (address, taken)
}

/// With the number of connections that it had.
async fn counting_server(
    turn: Turn,
) -> (SocketAddr, mpsc::UnboundedReceiver<(String, String, Vec<u8>)>, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (send, taken) = mpsc::unbounded_channel();
    let connections = Arc::new(AtomicUsize::new(0));
    let had = Arc::clone(&connections);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            had.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(serve(stream, turn, send.clone()));
        }
    });
    (address, taken, connections)
}

async fn serve(stream: TcpStream, turn: Turn, taken: mpsc::UnboundedSender<(String, String, Vec<u8>)>) {
    let mut stream = BufReader::new(stream);
    let (mut from, mut to) = (String::new(), String::new());
    let mut verb = "greeting".to_owned();
    let mut message = Vec::new();
    let mut number = 0;
    loop {
        number += usize::from(verb == "MAIL");
        match turn {
            Turn::Drop(at) if at == verb => return,
            Turn::Second(at, "") if at == verb && number == 2 => return,
            Turn::Silence(at) if at == verb => return pending().await,
            _ => {}
        }
        let usual = match verb.as_str() {
            "greeting" => "220 sink.example ESMTP",
            "EHLO" => "250 sink.example",
            "DATA" => "354 go",
            "QUIT" => "221 bye",
            "." => "250 2.0.0 Ok: queued as 4Xyz12",
            _ => "250 ok",
        };
        let reply = match turn {
            Turn::Reply(at, reply) if at == verb => reply,
            Turn::Second(at, reply) if at == verb && number == 2 => reply,
            _ => usual,
        };
        if verb == "." && reply.starts_with('2') {
            taken.send((from.clone(), to.clone(), std::mem::take(&mut message))).unwrap();
            if let Turn::Slow(by) = turn {
                tokio::time::sleep(by).await;
            }
        }
        if stream.get_mut().write_all(format!("{reply}\r\n").as_bytes()).await.is_err() || verb == "QUIT" {
            return;
        }
        if let Turn::Ends(with) = turn
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
            "MAIL" => from = line.trim_end().to_owned(),
            "RCPT" => to = line.trim_end().to_owned(),
            _ => {}
        }
    }
}

const SHORT: Limits = Limits { before_dot: Duration::from_millis(300), after_dot: Duration::from_millis(300) };

impl Way {
    fn smtp(address: SocketAddr) -> Way {
        Way { by: By::Smtp(address), idle: IdleConnections::default() }
    }

    fn sendmail(path: &Path) -> Way {
        Way { by: By::Sendmail(path.to_owned()), idle: IdleConnections::default() }
    }
}

async fn hand_over(by: &Way, limits: Limits) -> Outcome {
    let from: Mailbox = "bounces@sender.example".parse().unwrap();
    let to: Mailbox = "-odd!one@example.net".parse().unwrap();
    deliver(by, Letter { from: &from, to: &to, message: MESSAGE }, limits, pending()).await
}

async fn smtp_outcome(turn: Turn) -> Outcome {
    let (address, _taken) = server(turn).await;
    hand_over(&Way::smtp(address), SHORT).await
}

#[tokio::test]
async fn a_message_arrives_octet_for_octet() {
    let (address, mut taken) = server(Turn::Never).await;
    let outcome = hand_over(&Way::smtp(address), Limits::default()).await;
    assert_eq!(outcome, Outcome::Accepted("250 2.0.0 Ok: queued as 4Xyz12".into()));
    let (from, to, message) = taken.try_recv().unwrap();
    assert_eq!((from.as_str(), to.as_str()), ("MAIL FROM:<bounces@sender.example>", "RCPT TO:<-odd!one@example.net>"));
    assert_eq!(message, MESSAGE);
}

#[tokio::test]
async fn a_no_of_five_hundred_is_for_ever_and_of_four_hundred_for_now() {
    for at in ["greeting", "EHLO", "MAIL", "RCPT", "DATA", "."] {
        let no = smtp_outcome(Turn::Reply(at, "550 5.7.1 no")).await;
        assert!(matches!(&no, Outcome::Refused(text) if text.contains("no")), "{at}: {no:?}");
        let later = smtp_outcome(Turn::Reply(at, "451 4.3.0 later")).await;
        assert!(matches!(&later, Outcome::Retry(text) if text.contains("later")), "{at}: {later:?}");
    }
}

#[tokio::test]
async fn before_the_final_dot_all_else_is_tried_again() {
    for at in ["greeting", "EHLO", "MAIL", "RCPT", "DATA"] {
        for turn in [Turn::Drop(at), Turn::Silence(at), Turn::Reply(at, "garbage")] {
            let outcome = smtp_outcome(turn).await;
            assert!(matches!(outcome, Outcome::Retry(_)), "{turn:?}: {outcome:?}");
        }
    }
    let outcome = smtp_outcome(Turn::Reply("DATA", "250 what?")).await;
    assert!(matches!(outcome, Outcome::Retry(_)), "{outcome:?}");
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let outcome = hand_over(&Way::smtp(closed), SHORT).await;
    assert!(matches!(outcome, Outcome::Retry(_)), "{outcome:?}");
}

#[tokio::test]
async fn after_the_final_dot_all_else_is_unknown() {
    for turn in [Turn::Drop("."), Turn::Silence("."), Turn::Reply(".", "garbage"), Turn::Reply(".", "354 go on")] {
        let outcome = smtp_outcome(turn).await;
        assert!(matches!(outcome, Outcome::Unknown(_)), "{turn:?}: {outcome:?}");
    }
}

#[tokio::test]
async fn leave_taking_does_not_matter() {
    for turn in [Turn::Drop("QUIT"), Turn::Silence("QUIT"), Turn::Reply("QUIT", "500 no")] {
        let (address, mut taken) = server(turn).await;
        let way = Way::smtp(address);
        let outcome = hand_over(&way, Limits::default()).await;
        assert!(matches!(outcome, Outcome::Accepted(_)), "{turn:?}: {outcome:?}");
        let begun = Instant::now();
        way.rest().await;
        assert!(begun.elapsed() < 2 * LEAVE, "{turn:?}");
        assert!(taken.try_recv().is_ok());
    }
}

#[test]
fn the_reply_tells_the_queue_id() {
    let mta = Way::smtp("127.0.0.1:25".parse().unwrap());
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
    assert_eq!(Way::sendmail("/usr/sbin/sendmail".as_ref()).queue_id("x: queued as 4Xyz12z3AbczQ"), None);
}

#[tokio::test]
async fn one_connection_carries_many_messages() {
    let (address, mut taken, connections) = counting_server(Turn::Never).await;
    let way = Way::smtp(address);
    for _ in 0..=MAX_MESSAGES {
        let outcome = hand_over(&way, Limits::default()).await;
        assert!(matches!(outcome, Outcome::Accepted(_)), "{outcome:?}");
        assert_eq!(taken.try_recv().unwrap().2, MESSAGE);
    }
    assert_eq!(connections.load(Ordering::Relaxed), 2, "one has its limit");
    way.rest().await;
    hand_over(&way, Limits::default()).await;
    assert_eq!(connections.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn a_connection_that_the_server_has_closed_is_replaced_and_nothing_is_lost_or_sent_twice() {
    for end in ["", "421 4.4.2 idle for too long\r\n"] {
        let (address, mut taken, connections) = counting_server(Turn::Ends(end)).await;
        let way = Way::smtp(address);
        for number in 1..=3 {
            let outcome = hand_over(&way, Limits::default()).await;
            assert!(matches!(outcome, Outcome::Accepted(_)), "{end:?}: {outcome:?}");
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
        (Turn::Second("MAIL", "451 4.3.0 later"), "retry"),
        (Turn::Second("MAIL", "550 5.7.1 no"), "refused"),
        (Turn::Second("RCPT", ""), "retry"),
        (Turn::Second("DATA", ""), "retry"),
        (Turn::Second(".", ""), "unknown"),
        (Turn::Second(".", "421 4.3.0 going down"), "retry"),
    ] {
        let (address, mut taken, connections) = counting_server(turn).await;
        let way = Way::smtp(address);
        assert!(matches!(hand_over(&way, SHORT).await, Outcome::Accepted(_)));
        assert!(taken.try_recv().is_ok());
        let outcome = match hand_over(&way, SHORT).await {
            Outcome::Accepted(_) => "accepted",
            Outcome::Refused(_) => "refused",
            Outcome::Retry(_) => "retry",
            Outcome::Unknown(_) => "unknown",
        };
        assert_eq!(outcome, wanted, "{turn:?}");
        assert_eq!(connections.load(Ordering::Relaxed), 1, "{turn:?}");
        // What became of one message is no word about the next one.
        assert!(way.idle.is_empty(), "{turn:?}");
    }
}

#[tokio::test]
async fn an_end_of_the_daemon_is_told_apart_too() {
    let from: Mailbox = "a@sender.example".parse().unwrap();
    for (at, unknown) in [("RCPT", false), (".", true)] {
        let (address, _taken) = server(Turn::Silence(at)).await;
        let letter = Letter { from: &from, to: &from, message: MESSAGE };
        let cut = tokio::time::sleep(Duration::from_millis(200));
        let outcome = deliver(&Way::smtp(address), letter, Limits::default(), cut).await;
        assert_eq!(matches!(outcome, Outcome::Unknown(_)), unknown, "{at}: {outcome:?}");
    }
}

async fn sendmail_outcome(script: &str, limits: Limits) -> (Outcome, Vec<u8>, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sendmail");
    let text = format!("#!/bin/sh\ncd {}\necho \"$@\" > args\n{script}\n", folder.path().display());
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    let outcome = hand_over(&Way::sendmail(&path), limits).await;
    let read = |name: &str| std::fs::read(folder.path().join(name)).unwrap_or_default();
    (outcome, read("message"), String::from_utf8(read("args")).unwrap())
}

#[tokio::test]
async fn sendmail_gets_local_lines_and_a_guarded_recipient() {
    let (outcome, message, args) = sendmail_outcome("cat > message", Limits::default()).await;
    assert!(matches!(outcome, Outcome::Accepted(_)), "{outcome:?}");
    assert_eq!(message, b"Subject: x\n\n.leading dot\n..two\nlast\n");
    assert_eq!(args, "-i -f bounces@sender.example -- -odd!one@example.net\n");
}

#[tokio::test]
async fn sendmail_exit_codes() {
    for (script, retry) in [("exit 75", true), ("exit 71", true), ("exit 67", false), ("exit 1", false)] {
        let (outcome, ..) =
            sendmail_outcome(&format!("cat > /dev/null; echo why >&2; {script}"), Limits::default()).await;
        match outcome {
            Outcome::Retry(text) => assert!(retry && text.contains("why"), "{script}: {text}"),
            Outcome::Refused(text) => assert!(!retry && text.contains("why"), "{script}: {text}"),
            other => panic!("{script}: {other:?}"),
        }
    }
    let (killed, ..) = sendmail_outcome("cat > /dev/null; kill -9 $$", Limits::default()).await;
    assert!(matches!(killed, Outcome::Unknown(_)), "{killed:?}");
    let limits = Limits { before_dot: Duration::from_millis(500), after_dot: Duration::from_millis(200) };
    let (silent, ..) = sendmail_outcome("cat > /dev/null; exec sleep 60", limits).await;
    assert!(matches!(silent, Outcome::Unknown(_)), "{silent:?}");
    let missing = hand_over(&Way::sendmail("/no/such/sendmail".as_ref()), SHORT).await;
    assert!(matches!(missing, Outcome::Retry(_)), "{missing:?}");
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
    let letter = Letter { from: &from, to: &from, message: &large };
    let outcome = deliver(&Way::sendmail(&path), letter, SHORT, pending()).await;
    assert!(matches!(outcome, Outcome::Retry(_)), "{outcome:?}");
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert!(!folder.path().join("done").exists());
}
