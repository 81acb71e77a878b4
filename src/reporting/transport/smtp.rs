//! One message over SMTP (RFC 5321), on a new connection or on one that has carried another message.
//!
//! Takes: an open connection, or how to open one; a message. Gives: the server's last reply, and the [`Outcome`] that it
//! means. The flag `ended` becomes true when the final dot is next: until then nothing can have been taken.
//! A connection that has carried a report waits for the next one until [`IdleConnections::rest`]. One that the server has
//! closed meanwhile is replaced: nothing of the report was said over it.
//! Limits: [`MAX_MESSAGES`] messages a connection, which waits for [`MAX_WAIT`]; the deadlines are those of `transport`.
//! When it fails: a [`Stop`] says at which stage.
//! Not here: TLS and login (`submission`).

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lettre::Address;
use lettre::transport::smtp::Error as SmtpError;
use lettre::transport::smtp::client::AsyncSmtpConnection;
use lettre::transport::smtp::commands::{Data, Mail, Quit, Rcpt};
use lettre::transport::smtp::extension::ClientId;
use lettre::transport::smtp::response::Response;
use parking_lot::Mutex;
use tokio::net::{TcpStream, ToSocketAddrs};

use super::{Letter, MAX_ANSWER, Outcome, unanswered};
use crate::base::printable::escape_and_cut;
use crate::base::rua_record::Mailbox;

/// How many messages go over one connection: few enough that one process of the MTA is not kept for hours, and below
/// the limits of MTAs (Exim's `smtp_accept_max_per_connection` is 1000).
pub(super) const MAX_MESSAGES: u32 = 100;

/// How long a connection waits for the next message: MTAs have few of them (Exim 20 by default), and close it some day.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// How long taking leave may take.
pub(super) const LEAVE: Duration = Duration::from_millis(500);

/// A connection that has carried messages, and may carry another.
struct Line {
    server: AsyncSmtpConnection,
    messages: u32,
    since: Instant,
}

impl Line {
    async fn mail(&mut self, letter: Letter<'_>) -> Result<(), SmtpError> {
        self.server.command(Mail::new(Some(lettre_address(letter.from)), vec![])).await.map(drop)
    }

    /// The messages are theirs: how they take leave changes nothing.
    async fn leave(mut self) {
        let _ = tokio::time::timeout(LEAVE, self.server.command(Quit)).await;
    }
}

/// The connections that wait for the next message.
#[derive(Default)]
pub(super) struct IdleConnections(Mutex<Vec<Line>>);

impl IdleConnections {
    /// Takes leave of the server: nothing is to be handed over for the time being. It is waited for half a second at most.
    pub(super) async fn rest(&self) {
        let lines = std::mem::take(&mut *self.0.lock());
        let leave = async {
            for line in lines {
                line.leave().await;
            }
        };
        let _ = tokio::time::timeout(LEAVE, leave).await;
    }

    /// Says MAIL over a connection that waits, where one still stands, else over a new one.
    async fn begin(
        &self,
        open: impl Future<Output = Result<AsyncSmtpConnection, Stop>>,
        letter: Letter<'_>,
    ) -> Result<Line, Stop> {
        loop {
            let Some(mut line) = self.0.lock().pop() else { break };
            if line.messages == MAX_MESSAGES || line.since.elapsed() >= MAX_WAIT {
                line.leave().await;
                continue;
            }
            match line.mail(letter).await {
                Ok(()) => return Ok(line),
                Err(e) if is_answer(&e) => return Err(e.into()),
                // It was closed meanwhile: the server knows nothing of this message.
                Err(_) => {}
            }
        }
        let mut line = Line { server: open.await?, messages: 0, since: Instant::now() };
        line.mail(letter).await?;
        Ok(line)
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }
}

/// Why the conversation ended early.
pub(super) enum Stop {
    Io(io::Error),
    Smtp(SmtpError),
    /// Before any address was named: what a no means for is us, not the report. Or a yes that may not come here.
    Here(String),
}

impl From<SmtpError> for Stop {
    fn from(e: SmtpError) -> Stop {
        Stop::Smtp(e)
    }
}

pub(super) async fn converse(
    idle: &IdleConnections,
    open: impl Future<Output = Result<AsyncSmtpConnection, Stop>>,
    letter: Letter<'_>,
    ended: &AtomicBool,
) -> Result<Response, Stop> {
    let mut line = idle.begin(open, letter).await?;
    line.server.command(Rcpt::new(lettre_address(letter.to), vec![])).await?;
    let go = line.server.command(Data).await?;
    if !go.has_code(354) {
        return Err(Stop::Here(format!("DATA answered with {}", text_of(&go))));
    }
    let reply = line.server.message_iter(Parts { message: Some(body(letter.message)), ended }).await?;
    // A reply that is none of the expected ones may not be the last.
    if reply.has_code(250) {
        (line.messages, line.since) = (line.messages + 1, Instant::now());
        idle.0.lock().push(line);
    }
    Ok(reply)
}

pub(super) async fn connect(address: SocketAddr) -> Result<AsyncSmtpConnection, Stop> {
    let stream = tcp(address).await?;
    Ok(AsyncSmtpConnection::connect_with_transport(Box::new(stream), &ClientId::default()).await?)
}

pub(super) async fn tcp(address: impl ToSocketAddrs) -> Result<TcpStream, Stop> {
    let stream = TcpStream::connect(address).await.map_err(Stop::Io)?;
    // Many small writes, each waited for: with Nagle's algorithm every message takes 40 ms.
    stream.set_nodelay(true).map_err(Stop::Io)?;
    Ok(stream)
}

pub(super) fn judge(said: Result<Response, Stop>, server: &dyn fmt::Display, ended: &AtomicBool) -> Outcome {
    match said {
        Ok(reply) if reply.has_code(250) => Outcome::Accepted(text_of(&reply)),
        // RFC 5321 §4.2.1: what begins with 2 is a yes, whatever follows.
        Ok(reply) if u16::from(reply.code()) / 100 == 2 => Outcome::Accepted(text_of(&reply)),
        Ok(reply) => unanswered(ended, &text_of(&reply)),
        Err(Stop::Io(e)) => unanswered(ended, &format!("{server}: {e}")),
        Err(Stop::Here(why)) => Outcome::Retry(escape_and_cut(&format!("{server}: {why}"), MAX_ANSWER)),
        // A 4xx or 5xx is the server's word that it did not take it, before the dot and after.
        Err(Stop::Smtp(e)) if e.is_permanent() => Outcome::Refused(text_of_error(&e)),
        Err(Stop::Smtp(e)) if e.is_transient() => Outcome::Retry(text_of_error(&e)),
        Err(Stop::Smtp(e)) => unanswered(ended, &format!("{server}: {}", text_of_error(&e))),
    }
}

/// Whether it is the server's word about this message. 421 is not: it says that the connection ends (RFC 5321 §3.8).
fn is_answer(error: &SmtpError) -> bool {
    error.status().is_some_and(|code| u16::from(code) != 421)
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
    escape_and_cut(&format!("{} {}", reply.code(), text.join(" ")), MAX_ANSWER)
}

pub(super) fn text_of_error(error: &SmtpError) -> String {
    escape_and_cut(&error.to_string(), MAX_ANSWER)
}
