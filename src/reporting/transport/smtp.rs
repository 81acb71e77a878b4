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
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::net::{TcpStream, ToSocketAddrs};

use super::smtp_client::{CommandError, EhloName, SmtpConnection, SmtpReply};
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
    async fn mail_from(&mut self, mail: OutgoingMail<'_>) -> Result<(), SmtpFailure> {
        let smtputf8 = !mail.to.local.is_ascii();
        if smtputf8 && !self.connection.takes_smtputf8() {
            let why = format!("{}: the MTA does not take addresses in UTF-8 (no SMTPUTF8 in its EHLO reply)", mail.to);
            return Err(SmtpFailure::Refused(why));
        }
        self.connection.mail_from(mail.from, smtputf8).await?;
        Ok(())
    }

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
            match connection.mail_from(mail).await {
                // It was closed meanwhile: the server knows nothing of this message. 421 closes it (RFC 5321 §3.8).
                Err(SmtpFailure::Command(CommandError { code: None | Some(421), .. })) => {}
                Err(SmtpFailure::Command(e)) => return Err(about_us("MAIL")(e)),
                started => return started.map(|()| connection),
            }
        }
        let mut connection = PooledConnection { connection: open.await?, messages: 0, last_used: Instant::now() };
        match connection.mail_from(mail).await {
            Err(SmtpFailure::Command(e)) => Err(about_us("MAIL")(e)),
            started => started.map(|()| connection),
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }
}

/// Why a mail transaction ended early.
pub(super) enum SmtpFailure {
    Io(io::Error),
    /// A command about this message failed.
    Command(CommandError),
    /// The server refused this client and not the report: at the greeting, EHLO, login, MAIL, or with a reply about relaying; or
    /// the reply was positive where none is allowed.
    Session(String),
    /// The server cannot take this report.
    Refused(String),
    /// The intent to send was not stored.
    NotStored(String),
}

impl From<CommandError> for SmtpFailure {
    fn from(e: CommandError) -> SmtpFailure {
        SmtpFailure::Command(e)
    }
}

/// Sends one message. `intent` is awaited after the server asked for the message, before its first byte goes.
pub(super) async fn send_mail(
    idle: &IdleConnections,
    open: impl Future<Output = Result<SmtpConnection, SmtpFailure>>,
    mail: OutgoingMail<'_>,
    intent: impl Future<Output = Result<(), String>>,
    dot_sent: &AtomicBool,
) -> Result<SmtpReply, SmtpFailure> {
    let mut connection = idle.start_mail(open, mail).await?;
    connection.connection.rcpt_to(mail.to).await.map_err(about_recipient)?;
    let go = connection.connection.data().await.map_err(about_recipient)?;
    if go.code != 354 {
        return Err(SmtpFailure::Session(format!("DATA answered with {}", go.text)));
    }
    intent.await.map_err(SmtpFailure::NotStored)?;
    let reply = connection.connection.message(mail.message, dot_sent).await?;
    // A reply that is none of the expected ones may not be the last.
    if reply.code == 250 {
        (connection.messages, connection.last_used) = (connection.messages + 1, Instant::now());
        idle.0.lock().push(connection);
    }
    Ok(reply)
}

/// Where the MTA listens.
#[derive(Clone, Copy, Debug)]
pub(super) enum MtaAddress {
    At(SocketAddr),
    /// At a loopback address, of either family.
    Localhost(u16),
}

impl fmt::Display for MtaAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MtaAddress::At(address) => address.fmt(f),
            MtaAddress::Localhost(port) => write!(f, "localhost:{port}"),
        }
    }
}

pub(super) async fn connect(address: MtaAddress, name: &EhloName) -> Result<SmtpConnection, SmtpFailure> {
    let stream = match address {
        MtaAddress::At(address) => connect_tcp(address).await?,
        MtaAddress::Localhost(port) => connect_to_localhost(port).await?,
    };
    SmtpConnection::open(stream, name).await.map_err(about_us("greeting"))
}

/// Fails with the reason of each address: the family that the host lacks must not hide that the MTA is down.
async fn connect_to_localhost(port: u16) -> Result<TcpStream, SmtpFailure> {
    let mut failures = Vec::new();
    for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)] {
        match connect_tcp((ip, port)).await {
            Err(SmtpFailure::Io(e)) => failures.push(format!("{ip}: {e}")),
            connected => return connected,
        }
    }
    Err(SmtpFailure::Io(io::Error::other(failures.join("; "))))
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
    let retry = |why: String| DeliveryOutcome::Retry(escape_and_cut(&format!("{server}: {why}"), MAX_REPLY_TEXT));
    match reply {
        // RFC 5321 §4.2.1: what begins with 2 is a yes, whatever follows.
        Ok(reply) if reply.code / 100 == 2 => DeliveryOutcome::Accepted(reply.text),
        Ok(reply) => outcome_without_reply(dot_sent, &reply.text),
        Err(SmtpFailure::Io(e)) => outcome_without_reply(dot_sent, &format!("{server}: {e}")),
        Err(SmtpFailure::Session(why) | SmtpFailure::NotStored(why)) => retry(why),
        Err(SmtpFailure::Refused(why)) => DeliveryOutcome::Refused(escape_and_cut(&why, MAX_REPLY_TEXT)),
        // A 4xx or 5xx is the server's word that it did not take it, before the dot and after.
        Err(SmtpFailure::Command(CommandError { code: Some(500..), text })) => DeliveryOutcome::Refused(text),
        Err(SmtpFailure::Command(CommandError { code: Some(_), text })) => DeliveryOutcome::Retry(text),
        Err(SmtpFailure::Command(e)) => outcome_without_reply(dot_sent, &format!("{server}: {e}")),
    }
}

/// A failure at a stage at which the server knows nothing of the report but its sender: it concerns this host's set-up.
pub(super) fn about_us(stage: &'static str) -> impl Fn(CommandError) -> SmtpFailure {
    move |e| SmtpFailure::Session(format!("{stage}: {e}"))
}

/// A failure of RCPT or DATA. A 5xx that is not about the recipient concerns this host: relaying is not allowed to it, its
/// sender is refused, it has to log in.
fn about_recipient(e: CommandError) -> SmtpFailure {
    match e.code {
        Some(500..) if !names_recipient(&e.text) => SmtpFailure::Session(e.text),
        _ => SmtpFailure::Command(e),
    }
}

/// Whether a 5xx reply to RCPT says that the recipient cannot get mail: by its enhanced code (RFC 3463 §3.2, §3.3, §3.5; not
/// X.1.7 and X.1.8, which are about the sender), or in words where it has none.
fn names_recipient(reply: &str) -> bool {
    match enhanced_code(reply) {
        Some((1, detail)) => !matches!(detail, 7 | 8),
        Some((2 | 4, _)) => true,
        Some((1.., _)) => false,
        Some((0, _)) | None => {
            const WORDS: [&str; 6] = ["unknown", "no such", "unrout", "not exist", "not found", "mailbox"];
            let reply = reply.to_ascii_lowercase();
            WORDS.iter().any(|word| reply.contains(word))
        }
    }
}

/// Subject and detail of the first enhanced code 5.S.D in a reply.
fn enhanced_code(reply: &str) -> Option<(u16, u16)> {
    reply.split_whitespace().find_map(|word| {
        let (subject, detail) = word.strip_prefix("5.")?.split_once('.')?;
        Some((subject.parse().ok()?, detail.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::names_recipient;

    #[test]
    fn a_refusal_of_rcpt_is_about_the_recipient_or_about_us() {
        for about_us in [
            "554 5.7.1 <r@x.example>: Relay access denied",
            "554 5.7.1 <vm[192.0.2.1]>: Client host rejected: Access denied",
            "553 5.7.1 <a@b.example>: Sender address rejected: not owned by user",
            "550 5.1.8 <a@b.example>: Sender address rejected: Domain not found",
            "550 5.7.1 <vm>: Helo command rejected: Host not found",
            "530 5.7.0 Must issue a STARTTLS command first",
            "503 5.5.1 Error: need MAIL command",
            "550 relay not permitted",
            "550 Administrative prohibition",
        ] {
            assert!(!names_recipient(about_us), "{about_us}");
        }
        for about_recipient in [
            "550 5.1.1 <r@x.example>: Recipient address rejected: User unknown",
            "550 5.1.2 <r@x.example>: Recipient address rejected: Domain not found",
            "552 5.2.2 over quota",
            "550 5.4.4 unable to route",
            "550 Unrouteable address",
            "550 no such user",
        ] {
            assert!(names_recipient(about_recipient), "{about_recipient}");
        }
    }
}
