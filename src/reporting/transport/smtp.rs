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
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::net::{TcpStream, ToSocketAddrs};

use super::smtp_client::{CommandError, SmtpConnection, SmtpReply};
use super::{DeliveryOutcome, MAX_REPLY_TEXT, OutgoingMail, outcome_without_reply};
use crate::base::printable::escape_and_cut;

/// How many messages go over one connection: few enough that one process of the MTA is not kept for hours, and below
/// the limits of MTAs (Exim's `smtp_accept_max_per_connection` is 1000).
pub(super) const MAX_MESSAGES: u32 = 100;

/// How long a connection is kept idle: MTAs have few of them (Exim 20 by default), and close it some day.
const MAX_IDLE: Duration = Duration::from_secs(5);

/// How long QUIT may take.
pub(super) const QUIT_TIMEOUT: Duration = Duration::from_millis(500);

/// A connection that has carried messages, and may carry another.
struct PooledConnection {
    connection: SmtpConnection,
    messages: u32,
    last_used: Instant,
}

impl PooledConnection {
    /// Best effort: the messages are already accepted.
    async fn quit(mut self) {
        let _ = tokio::time::timeout(QUIT_TIMEOUT, self.connection.quit()).await;
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
        open: impl Future<Output = Result<SmtpConnection, SmtpFailure>>,
        mail: OutgoingMail<'_>,
    ) -> Result<PooledConnection, SmtpFailure> {
        loop {
            let Some(mut connection) = self.0.lock().pop() else { break };
            if connection.messages == MAX_MESSAGES || connection.last_used.elapsed() >= MAX_IDLE {
                connection.quit().await;
                continue;
            }
            match connection.connection.mail_from(mail.from).await {
                Ok(_) => return Ok(connection),
                Err(e) if is_about_message(&e) => return Err(e.into()),
                // It was closed meanwhile: the server knows nothing of this message.
                Err(_) => {}
            }
        }
        let mut connection = PooledConnection { connection: open.await?, messages: 0, last_used: Instant::now() };
        connection.connection.mail_from(mail.from).await?;
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
    Command(CommandError),
    /// The session failed before MAIL FROM, so the rejection concerns this client, not the report; or the reply was positive
    /// where none is allowed.
    Session(String),
}

impl From<CommandError> for SmtpFailure {
    fn from(e: CommandError) -> SmtpFailure {
        SmtpFailure::Command(e)
    }
}

pub(super) async fn send_mail(
    idle: &IdleConnections,
    open: impl Future<Output = Result<SmtpConnection, SmtpFailure>>,
    mail: OutgoingMail<'_>,
    dot_sent: &AtomicBool,
) -> Result<SmtpReply, SmtpFailure> {
    let mut connection = idle.start_mail(open, mail).await?;
    connection.connection.rcpt_to(mail.to).await?;
    let go = connection.connection.data().await?;
    if go.code != 354 {
        return Err(SmtpFailure::Session(format!("DATA answered with {}", go.text)));
    }
    let reply = connection.connection.message(mail.message, dot_sent).await?;
    // A reply that is none of the expected ones may not be the last.
    if reply.code == 250 {
        (connection.messages, connection.last_used) = (connection.messages + 1, Instant::now());
        idle.0.lock().push(connection);
    }
    Ok(reply)
}

pub(super) async fn connect(address: SocketAddr) -> Result<SmtpConnection, SmtpFailure> {
    Ok(SmtpConnection::open(connect_tcp(address).await?).await?)
}

pub(super) async fn connect_tcp(address: impl ToSocketAddrs) -> Result<TcpStream, SmtpFailure> {
    let stream = TcpStream::connect(address).await.map_err(SmtpFailure::Io)?;
    // Many small writes, each waited for: with Nagle's algorithm every message takes 40 ms.
    stream.set_nodelay(true).map_err(SmtpFailure::Io)?;
    Ok(stream)
}

pub(super) fn reply_outcome(
    reply: Result<SmtpReply, SmtpFailure>,
    server: &dyn fmt::Display,
    dot_sent: &AtomicBool,
) -> DeliveryOutcome {
    match reply {
        // RFC 5321 §4.2.1: what begins with 2 is a yes, whatever follows.
        Ok(reply) if reply.code / 100 == 2 => DeliveryOutcome::Accepted(reply.text),
        Ok(reply) => outcome_without_reply(dot_sent, &reply.text),
        Err(SmtpFailure::Io(e)) => outcome_without_reply(dot_sent, &format!("{server}: {e}")),
        Err(SmtpFailure::Session(why)) => {
            DeliveryOutcome::Retry(escape_and_cut(&format!("{server}: {why}"), MAX_REPLY_TEXT))
        }
        // A 4xx or 5xx is the server's word that it did not take it, before the dot and after.
        Err(SmtpFailure::Command(CommandError { code: Some(500..), text })) => DeliveryOutcome::Refused(text),
        Err(SmtpFailure::Command(CommandError { code: Some(_), text })) => DeliveryOutcome::Retry(text),
        Err(SmtpFailure::Command(e)) => outcome_without_reply(dot_sent, &format!("{server}: {e}")),
    }
}

/// Whether the server's reply concerns this message. 421 does not: it closes the connection (RFC 5321 §3.8).
fn is_about_message(error: &CommandError) -> bool {
    error.code.is_some_and(|code| code != 421)
}
