//! An SMTP connection (RFC 5321), one command at a time: the only user of lettre.
//!
//! Takes: an open TCP stream, or a host name for TLS from the first byte; commands. Gives: the server's replies.
//! Limits: none of its own; the deadlines are those of `transport`.
//! When it fails: a [`CommandError`] has the code of a 4xx or 5xx reply; without one the connection broke.
//! Not here: the order of the commands and what a reply means (`smtp`), the server's settings (`submission`).

use std::sync::atomic::{AtomicBool, Ordering};

use lettre::Address;
use lettre::transport::smtp::Error as SmtpError;
use lettre::transport::smtp::authentication::{Credentials, Mechanism};
use lettre::transport::smtp::client::{AsyncSmtpConnection, Certificate, TlsParameters};
use lettre::transport::smtp::commands::{Data, Mail, Quit, Rcpt};
use lettre::transport::smtp::extension::{ClientId, Extension, MailBodyParameter, MailParameter};
use lettre::transport::smtp::response::Response;
use tokio::net::TcpStream;

use super::MAX_REPLY_TEXT;
use crate::base::printable::escape_and_cut;
use crate::base::rua_record::Mailbox;

/// A connection after EHLO.
pub(super) struct SmtpConnection(AsyncSmtpConnection);

/// A reply of class 2 or 3.
pub(super) struct SmtpReply {
    pub(super) code: u16,
    /// The code and its text, escaped and cut.
    pub(super) text: String,
}

/// A command that failed.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(super) struct CommandError {
    /// The code of a 4xx or 5xx reply; `None` where there was no reply that can be understood.
    pub(super) code: Option<u16>,
    /// The reply or the cause, escaped and cut.
    pub(super) text: String,
}

/// Which certificates of a server are accepted.
#[derive(Clone)]
pub(super) struct ServerTls(TlsParameters);

/// The name in EHLO.
#[derive(Clone)]
pub(super) struct EhloName(ClientId);

/// A user name and a password.
pub(super) struct Login(Credentials);

impl ServerTls {
    /// The platform's roots and this one (PEM), for a host name.
    pub(super) fn new(host: &str, extra_root: Option<&[u8]>) -> Result<ServerTls, CommandError> {
        let mut tls = TlsParameters::builder(host.to_owned());
        if let Some(pem) = extra_root {
            tls = tls.add_root_certificate(Certificate::from_pem(pem)?);
        }
        Ok(ServerTls(tls.build_rustls()?))
    }
}

impl EhloName {
    pub(super) fn new(name: String) -> EhloName {
        EhloName(ClientId::Domain(name))
    }
}

impl Login {
    pub(super) fn new(user: &str, password: String) -> Login {
        Login(Credentials::new(user.to_owned(), password))
    }
}

impl SmtpConnection {
    /// Waits for the greeting and sends EHLO.
    pub(super) async fn open(stream: TcpStream, name: &EhloName) -> Result<SmtpConnection, CommandError> {
        Ok(SmtpConnection(AsyncSmtpConnection::connect_with_transport(Box::new(stream), &name.0).await?))
    }

    /// Connects with TLS from the first byte (RFC 8314 §3.3), waits for the greeting and sends EHLO.
    pub(super) async fn open_tls(
        host: &str,
        port: u16,
        tls: &ServerTls,
        name: &EhloName,
    ) -> Result<SmtpConnection, CommandError> {
        let tls = Some(tls.0.clone());
        let connected = AsyncSmtpConnection::connect_tokio1((host, port), None, &name.0, tls, None).await;
        Ok(SmtpConnection(connected?))
    }

    /// STARTTLS, and EHLO once more.
    pub(super) async fn start_tls(&mut self, tls: &ServerTls, name: &EhloName) -> Result<(), CommandError> {
        Ok(self.0.starttls(tls.0.clone(), &name.0).await?)
    }

    pub(super) async fn log_in(&mut self, login: &Login) -> Result<(), CommandError> {
        self.0.auth(&[Mechanism::Plain, Mechanism::Login], &login.0).await?;
        Ok(())
    }

    /// Whether the server takes addresses in UTF-8 (RFC 6531).
    pub(super) fn takes_smtputf8(&self) -> bool {
        self.0.server_info().supports_feature(Extension::SmtpUtfEight)
    }

    /// `smtputf8`: the message has an address in UTF-8, which the server must be told of.
    pub(super) async fn mail_from(&mut self, sender: &Mailbox, smtputf8: bool) -> Result<SmtpReply, CommandError> {
        let parameters = match smtputf8 {
            true => vec![MailParameter::SmtpUtfEight, MailParameter::Body(MailBodyParameter::EightBitMime)],
            false => vec![],
        };
        Ok(self.0.command(Mail::new(Some(lettre_address(sender)), parameters)).await?.into())
    }

    pub(super) async fn rcpt_to(&mut self, recipient: &Mailbox) -> Result<SmtpReply, CommandError> {
        Ok(self.0.command(Rcpt::new(lettre_address(recipient), vec![])).await?.into())
    }

    pub(super) async fn data(&mut self) -> Result<SmtpReply, CommandError> {
        Ok(self.0.command(Data).await?.into())
    }

    /// Sends the message (CRLF at the end of each line) and the final dot. `dot_sent` becomes true when the dot is next.
    pub(super) async fn message(&mut self, message: &[u8], dot_sent: &AtomicBool) -> Result<SmtpReply, CommandError> {
        let parts = MessageParts { message: Some(without_final_crlf(message)), dot_sent };
        Ok(self.0.message_iter(parts).await?.into())
    }

    pub(super) async fn quit(&mut self) -> Result<(), CommandError> {
        self.0.command(Quit).await?;
        Ok(())
    }
}

impl From<Response> for SmtpReply {
    fn from(reply: Response) -> SmtpReply {
        let text: Vec<_> = reply.message().collect();
        let text = escape_and_cut(&format!("{} {}", reply.code(), text.join(" ")), MAX_REPLY_TEXT);
        SmtpReply { code: u16::from(reply.code()), text }
    }
}

impl From<SmtpError> for CommandError {
    fn from(e: SmtpError) -> CommandError {
        CommandError { code: e.status().map(u16::from), text: escape_and_cut(&e.to_string(), MAX_REPLY_TEXT) }
    }
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
