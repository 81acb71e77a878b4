//! One message over SMTP (RFC 5321), on a new connection or on one that has carried another message.
//!
//! Takes: an open connection, or how to open one; a message. Gives: the server's last reply, and the [`DeliveryOutcome`] that it
//! means. The flag `dot_sent` becomes true when the final dot is next: until then nothing can have been taken.
//! A connection that has carried a report waits for the next one until [`IdleConnections::close`]. One that the server has
//! closed meanwhile is replaced: nothing of the report was said over it.
//! Limits: [`MAX_MESSAGES`] messages a connection, which waits for [`MAX_IDLE`]; the deadlines are those of `transport`.
//! When it fails: a [`SmtpFailure`] says at which stage.
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

use super::{DeliveryOutcome, MAX_REPLY_TEXT, OutgoingMail, outcome_without_reply};
use crate::base::printable::escape_and_cut;
use crate::base::rua_record::Mailbox;

/// How many messages go over one connection: few enough that one process of the MTA is not kept for hours, and below
/// the limits of MTAs (Exim's `smtp_accept_max_per_connection` is 1000).
pub(super) const MAX_MESSAGES: u32 = 100;

/// How long a connection is kept idle: MTAs have few of them (Exim 20 by default), and close it some day.
const MAX_IDLE: Duration = Duration::from_secs(5);

/// How long QUIT may take.
pub(super) const QUIT_TIMEOUT: Duration = Duration::from_millis(500);

/// A connection that has carried messages, and may carry another.
struct PooledConnection {
    connection: AsyncSmtpConnection,
    messages: u32,
    last_used: Instant,
}

impl PooledConnection {
    async fn mail_from(&mut self, mail: OutgoingMail<'_>) -> Result<(), SmtpError> {
        self.connection.command(Mail::new(Some(lettre_address(mail.from)), vec![])).await.map(drop)
    }

    /// Best effort: the messages are already accepted.
    async fn quit(mut self) {
        let _ = tokio::time::timeout(QUIT_TIMEOUT, self.connection.command(Quit)).await;
    }
}

/// The connections that wait for the next message.
#[derive(Default)]
pub(super) struct IdleConnections(Mutex<Vec<PooledConnection>>);

impl IdleConnections {
    /// Closes all of them. Waits [`QUIT_TIMEOUT`] at most.
    pub(super) async fn close(&self) {
        let connections = std::mem::take(&mut *self.0.lock());
        let leave = async {
            for connection in connections {
                connection.quit().await;
            }
        };
        let _ = tokio::time::timeout(QUIT_TIMEOUT, leave).await;
    }

    /// Sends MAIL FROM over an idle connection that still works, else over a new one.
    async fn start_mail(
        &self,
        open: impl Future<Output = Result<AsyncSmtpConnection, SmtpFailure>>,
        mail: OutgoingMail<'_>,
    ) -> Result<PooledConnection, SmtpFailure> {
        loop {
            let Some(mut connection) = self.0.lock().pop() else { break };
            if connection.messages == MAX_MESSAGES || connection.last_used.elapsed() >= MAX_IDLE {
                connection.quit().await;
                continue;
            }
            match connection.mail_from(mail).await {
                Ok(()) => return Ok(connection),
                Err(e) if is_about_message(&e) => return Err(e.into()),
                // It was closed meanwhile: the server knows nothing of this message.
                Err(_) => {}
            }
        }
        let mut connection = PooledConnection { connection: open.await?, messages: 0, last_used: Instant::now() };
        connection.mail_from(mail).await?;
        Ok(connection)
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }
}

/// Why a mail transaction ended early.
pub(super) enum SmtpFailure {
    Io(io::Error),
    Smtp(SmtpError),
    /// The session failed before MAIL FROM, so the rejection concerns this client, not the report; or the reply was positive
    /// where none is allowed.
    Session(String),
}

impl From<SmtpError> for SmtpFailure {
    fn from(e: SmtpError) -> SmtpFailure {
        SmtpFailure::Smtp(e)
    }
}

pub(super) async fn send_mail(
    idle: &IdleConnections,
    open: impl Future<Output = Result<AsyncSmtpConnection, SmtpFailure>>,
    mail: OutgoingMail<'_>,
    dot_sent: &AtomicBool,
) -> Result<Response, SmtpFailure> {
    let mut connection = idle.start_mail(open, mail).await?;
    connection.connection.command(Rcpt::new(lettre_address(mail.to), vec![])).await?;
    let go = connection.connection.command(Data).await?;
    if !go.has_code(354) {
        return Err(SmtpFailure::Session(format!("DATA answered with {}", reply_text(&go))));
    }
    let reply = connection
        .connection
        .message_iter(MessageParts { message: Some(without_final_crlf(mail.message)), dot_sent })
        .await?;
    // A reply that is none of the expected ones may not be the last.
    if reply.has_code(250) {
        (connection.messages, connection.last_used) = (connection.messages + 1, Instant::now());
        idle.0.lock().push(connection);
    }
    Ok(reply)
}

pub(super) async fn connect(address: SocketAddr) -> Result<AsyncSmtpConnection, SmtpFailure> {
    let stream = connect_tcp(address).await?;
    Ok(AsyncSmtpConnection::connect_with_transport(Box::new(stream), &ClientId::default()).await?)
}

pub(super) async fn connect_tcp(address: impl ToSocketAddrs) -> Result<TcpStream, SmtpFailure> {
    let stream = TcpStream::connect(address).await.map_err(SmtpFailure::Io)?;
    // Many small writes, each waited for: with Nagle's algorithm every message takes 40 ms.
    stream.set_nodelay(true).map_err(SmtpFailure::Io)?;
    Ok(stream)
}

pub(super) fn reply_outcome(
    reply: Result<Response, SmtpFailure>,
    server: &dyn fmt::Display,
    dot_sent: &AtomicBool,
) -> DeliveryOutcome {
    match reply {
        Ok(reply) if reply.has_code(250) => DeliveryOutcome::Accepted(reply_text(&reply)),
        // RFC 5321 §4.2.1: what begins with 2 is a yes, whatever follows.
        Ok(reply) if u16::from(reply.code()) / 100 == 2 => DeliveryOutcome::Accepted(reply_text(&reply)),
        Ok(reply) => outcome_without_reply(dot_sent, &reply_text(&reply)),
        Err(SmtpFailure::Io(e)) => outcome_without_reply(dot_sent, &format!("{server}: {e}")),
        Err(SmtpFailure::Session(why)) => {
            DeliveryOutcome::Retry(escape_and_cut(&format!("{server}: {why}"), MAX_REPLY_TEXT))
        }
        // A 4xx or 5xx is the server's word that it did not take it, before the dot and after.
        Err(SmtpFailure::Smtp(e)) if e.is_permanent() => DeliveryOutcome::Refused(error_text(&e)),
        Err(SmtpFailure::Smtp(e)) if e.is_transient() => DeliveryOutcome::Retry(error_text(&e)),
        Err(SmtpFailure::Smtp(e)) => outcome_without_reply(dot_sent, &format!("{server}: {}", error_text(&e))),
    }
}

/// Whether the server's reply concerns this message. 421 does not: it closes the connection (RFC 5321 §3.8).
fn is_about_message(error: &SmtpError) -> bool {
    error.status().is_some_and(|code| u16::from(code) != 421)
}

/// The message without its final CRLF, which the dot brings along.
fn without_final_crlf(message: &[u8]) -> &[u8] {
    message.strip_suffix(b"\r\n").unwrap_or(message)
}

/// The message in one part. When lettre asks for another part, the final dot comes next: until then nothing can have been
/// accepted.
struct MessageParts<'a> {
    message: Option<&'a [u8]>,
    dot_sent: &'a AtomicBool,
}

impl<'a> Iterator for MessageParts<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.message.is_none() {
            self.dot_sent.store(true, Ordering::Relaxed);
        }
        self.message.take()
    }
}

/// The address for lettre: a [`Mailbox`] is of the plain form that needs no further check.
fn lettre_address(mailbox: &Mailbox) -> Address {
    Address::new_dangerous(&mailbox.local, &mailbox.domain)
}

fn reply_text(reply: &Response) -> String {
    let text: Vec<_> = reply.message().collect();
    escape_and_cut(&format!("{} {}", reply.code(), text.join(" ")), MAX_REPLY_TEXT)
}

pub(super) fn error_text(error: &SmtpError) -> String {
    escape_and_cut(&error.to_string(), MAX_REPLY_TEXT)
}
