//! Hands a report to the MTA of this host, by SMTP or by the sendmail command. The only user of lettre.
//!
//! Takes: one message for one recipient. Gives: an [`Outcome`] that says whether it may be tried again.
//! The line between them is the final dot (the end of sendmail's input): an error before it is tried again, a reply after it
//! is believed, silence after it is `Unknown` and never tried again, for the message may have been taken.
//! Limits: [`Limits`]; no wait is without one. One recipient a message, one message a connection.
//! When it fails: never; a failure is an outcome.
//! Not here: when to try again (`scheduler`), https (issue of its own: [`Outcome::Refused`] says so).

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lettre::Address;
use lettre::transport::smtp::client::AsyncSmtpConnection;
use lettre::transport::smtp::commands::{Data, Mail, Quit, Rcpt};
use lettre::transport::smtp::extension::ClientId;
use lettre::transport::smtp::response::Response;
use lettre::transport::smtp::Error as SmtpError;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::config::Deliver;
use crate::report::recipients::Mailbox;
use crate::report::shown;

/// How much of an answer is kept, in characters.
const MAX_ANSWER: usize = 300;

/// A message on its way.
#[derive(Clone, Copy, Debug)]
pub struct Letter<'a> {
    /// The envelope sender.
    pub from: &'a Mailbox,
    /// The one recipient.
    pub to: &'a Mailbox,
    /// The octets, CRLF at the end of each line.
    pub message: &'a [u8],
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "outcome", content = "answer")]
pub enum Outcome {
    /// It was taken; what the receiver said.
    Accepted(String),
    /// It will never be taken.
    Refused(String),
    /// It was certainly not taken this time, and may be later.
    Retry(String),
    /// It may have been taken.
    Unknown(String),
}

/// How long is waited.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From the connect to the final dot.
    pub before_dot: Duration,
    /// For the reply to it (RFC 5321 §4.5.3.2.6: 10 minutes, so that slow content filters make no duplicates).
    pub after_dot: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { before_dot: Duration::from_secs(120), after_dot: Duration::from_secs(600) }
    }
}

/// Delivers one message. When `cut` resolves (the daemon ends), no longer waits: the outcome is what is certain by then.
pub async fn deliver(by: &Deliver, letter: Letter<'_>, limits: Limits, cut: impl Future<Output = ()>) -> Outcome {
    let ended = AtomicBool::new(false);
    let handing = async {
        match by {
            Deliver::Smtp(address) => smtp(*address, letter, &ended).await,
            Deliver::Sendmail(path) => sendmail(path, letter, &ended).await,
        }
    };
    // Two limits in one: the first one's end is no end when the final dot had gone by then.
    let limit = async {
        tokio::time::sleep(limits.before_dot).await;
        if ended.load(Ordering::Relaxed) {
            tokio::time::sleep(limits.after_dot).await;
        }
        "no answer in time"
    };
    let cut = async {
        cut.await;
        "stopped while it was under way"
    };
    tokio::select! {
        outcome = handing => outcome,
        why = limit => unanswered(&ended, why),
        why = cut => unanswered(&ended, why),
    }
}

/// What is certain when there was no answer.
fn unanswered(ended: &AtomicBool, why: &str) -> Outcome {
    let why = shown(why, MAX_ANSWER);
    if ended.load(Ordering::Relaxed) { Outcome::Unknown(why) } else { Outcome::Retry(why) }
}

async fn smtp(address: SocketAddr, letter: Letter<'_>, ended: &AtomicBool) -> Outcome {
    match converse(address, letter, ended).await {
        Ok(reply) if reply.has_code(250) => Outcome::Accepted(text_of(&reply)),
        // RFC 5321 §4.2.1: what begins with 2 is a yes, whatever follows.
        Ok(reply) if u16::from(reply.code()) / 100 == 2 => Outcome::Accepted(text_of(&reply)),
        Ok(reply) => unanswered(ended, &text_of(&reply)),
        Err(Stop::Io(e)) => unanswered(ended, &format!("{address}: {e}")),
        Err(Stop::Reply(reply)) => Outcome::Retry(shown(&format!("{address}: {reply}"), MAX_ANSWER)),
        // A 4xx or 5xx is the server's word that it did not take it, before the dot and after.
        Err(Stop::Smtp(e)) if e.is_permanent() => Outcome::Refused(text_of_error(&e)),
        Err(Stop::Smtp(e)) if e.is_transient() => Outcome::Retry(text_of_error(&e)),
        Err(Stop::Smtp(e)) => unanswered(ended, &format!("{address}: {}", text_of_error(&e))),
    }
}

/// Why the conversation ended early.
enum Stop {
    Io(io::Error),
    Smtp(SmtpError),
    /// A positive reply that is none of those that may come here.
    Reply(String),
}

impl From<SmtpError> for Stop {
    fn from(e: SmtpError) -> Stop {
        Stop::Smtp(e)
    }
}

async fn converse(address: SocketAddr, letter: Letter<'_>, ended: &AtomicBool) -> Result<Response, Stop> {
    let stream = TcpStream::connect(address).await.map_err(Stop::Io)?;
    // Many small writes, each waited for: with Nagle's algorithm every message takes 40 ms.
    stream.set_nodelay(true).map_err(Stop::Io)?;
    let mut server = AsyncSmtpConnection::connect_with_transport(Box::new(stream), &ClientId::default()).await?;
    server.command(Mail::new(Some(lettre_address(letter.from)), vec![])).await?;
    server.command(Rcpt::new(lettre_address(letter.to), vec![])).await?;
    let go = server.command(Data).await?;
    if !go.has_code(354) {
        return Err(Stop::Reply(format!("DATA answered with {}", text_of(&go))));
    }
    let reply = server.message_iter(Parts { message: Some(body(letter.message)), ended }).await?;
    // The message is theirs; how they take leave changes nothing and is not waited for long.
    let _ = tokio::time::timeout(Duration::from_millis(500), server.command(Quit)).await;
    Ok(reply)
}

/// The message without its final CRLF, which the dot brings along.
fn body(message: &[u8]) -> &[u8] {
    message.strip_suffix(b"\r\n").unwrap_or(message)
}

/// The message in one part. Asked for another, it notes that the final dot comes next: until then nothing can have been taken.
struct Parts<'a> {
    message: Option<&'a [u8]>,
    ended: &'a AtomicBool,
}

impl<'a> Iterator for Parts<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.message.is_none() {
            self.ended.store(true, Ordering::Relaxed);
        }
        self.message.take()
    }
}

/// The address for lettre: a [`Mailbox`] is of the plain form that needs no further check.
fn lettre_address(mailbox: &Mailbox) -> Address {
    Address::new_dangerous(&mailbox.local, &mailbox.domain)
}

fn text_of(reply: &Response) -> String {
    let text: Vec<_> = reply.message().collect();
    shown(&format!("{} {}", reply.code(), text.join(" ")), MAX_ANSWER)
}

fn text_of_error(error: &SmtpError) -> String {
    shown(&error.to_string(), MAX_ANSWER)
}

async fn sendmail(path: &Path, letter: Letter<'_>, ended: &AtomicBool) -> Outcome {
    let spawned = Command::new(path)
        .args(["-i", "-f", &letter.from.to_string(), "--", &letter.to.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut running = match spawned {
        Ok(child) => Running(child),
        Err(e) => return Outcome::Retry(shown(&format!("{}: {e}", path.display()), MAX_ANSWER)),
    };
    let written = running.feed(letter.message, ended).await;
    let (said, status) = tokio::join!(complaint(running.0.stderr.take()), running.0.wait());
    let name = path.display();
    match (status, written) {
        (Err(e), _) => unanswered(ended, &format!("{name}: {e}")),
        (Ok(status), _) if !status.success() => by_exit_code(status, &format!("{name}: {status}: {said}"), ended),
        (Ok(_), Err(e)) => Outcome::Unknown(shown(&format!("{name}: said yes, and did not read it all: {e}"), MAX_ANSWER)),
        (Ok(_), Ok(())) => Outcome::Accepted(shown(&format!("{name}: taken {said}"), MAX_ANSWER).trim_end().to_owned()),
    }
}

/// The command. Dropped early, it is killed before its input ends: it would take the half for the whole.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Fails only where it has ended already.
        let _ = self.0.start_kill();
    }
}

impl Running {
    /// Writes the message, lines ended as the command wants them, and ends its input.
    async fn feed(&mut self, message: &[u8], ended: &AtomicBool) -> io::Result<()> {
        let Some(input) = self.0.stdin.as_mut() else { return Err(io::Error::other("no standard input")) };
        let written = async {
            input.write_all(&local_lines(message)).await?;
            input.flush().await
        }
        .await;
        // After an error too: the command must not wait for more.
        ended.store(written.is_ok(), Ordering::Relaxed);
        self.0.stdin = None;
        written
    }
}

/// sendmail's input has the line ends of the host.
fn local_lines(message: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.len());
    for line in message.split_inclusive(|b| *b == b'\n') {
        match line.strip_suffix(b"\r\n") {
            Some(text) => {
                out.extend_from_slice(text);
                out.push(b'\n');
            }
            None => out.extend_from_slice(line),
        }
    }
    out
}

/// The first of what the command said on standard error.
async fn complaint(stderr: Option<tokio::process::ChildStderr>) -> String {
    let Some(mut stderr) = stderr else { return String::new() };
    let mut said = Vec::new();
    let mut chunk = [0; 1024];
    // All is read, so that the command is not stopped by a full pipe; little is kept.
    while let Ok(n @ 1..) = stderr.read(&mut chunk).await {
        if said.len() < MAX_ANSWER {
            said.extend_from_slice(&chunk[..n]);
        }
    }
    shown(String::from_utf8_lossy(&said).trim(), MAX_ANSWER)
}

/// What sendmail's exit code means (sysexits(3)). An exit is an answer, as a reply is: it was not taken.
fn by_exit_code(status: ExitStatus, text: &str, ended: &AtomicBool) -> Outcome {
    /// EX_SOFTWARE, EX_OSERR, EX_CANTCREAT, EX_IOERR, EX_TEMPFAIL: the host's trouble, which may pass.
    const PASSING: [i32; 5] = [70, 71, 73, 74, 75];
    match status.code() {
        Some(code) if PASSING.contains(&code) => Outcome::Retry(shown(text, MAX_ANSWER)),
        Some(_) => Outcome::Refused(shown(text, MAX_ANSWER)),
        // Killed by a signal: it may have queued the message before.
        None => unanswered(ended, text),
    }
}
