//! Hands a report over: to the MTA of this host (SMTP, or the sendmail command), to a submission server, or to a receiver by
//! https. The only file that names lettre is `smtp_client`.
//!
//! Takes: one message for one recipient, or a gzipped report and a URI. Gives: an [`DeliveryOutcome`] that says whether it may be
//! tried again. The line between them is the final dot (the end of sendmail's input): an error before it is tried again, a
//! reply after it is believed, silence after it is `Unknown` and never tried again, for the report may have been taken. A
//! POST without a reply is tried again: its receiver knows the report by its report-id (RFC 8460 §5.3, §5.5).
//! A 5xx of the MTA about this host and not the report (greeting, EHLO, MAIL, relaying) is tried again, too.
//! The caller's `intent` is awaited right before the message is handed over; where it fails, nothing is.
//! Limits: [`DeliveryTimeouts`]; no wait is without one. One recipient a message.
//! When it fails: every failure is an outcome. [`Transport::load`] names a password or root that cannot be read.
//! Not here: when to try again (`schedule`), the protocols (`smtp`, `submission`, `sendmail`, `https`).

mod https;
mod sendmail;
mod smtp;
mod smtp_client;
mod submission;

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::printable::escape_and_cut;
use crate::base::rua_record::Mailbox;
use crate::config::{DeliveryMethod, ReportSection};
use crate::net::host_name;
pub use https::post_report;
use smtp::{IdleConnections, MtaAddress, connect, reply_outcome, send_mail};
use smtp_client::EhloName;
use submission::SubmissionServer;
pub(crate) use submission::password_warning;

/// How much of a reply is kept, in characters.
const MAX_REPLY_TEXT: usize = 300;

/// What is said of a delivery that took too long, and of one that the end of the daemon cut off.
const TOO_LATE: &str = "no answer in time";
const CANCELED: &str = "stopped while it was under way";

/// The longest queue id, in octets: Postfix's long ones have some 20, Exim's 23.
const MAX_QUEUE_ID: usize = 40;

/// How mail is handed over, with the password and root that it needs; and the idle connections.
pub struct Transport {
    kind: TransportKind,
    idle: IdleConnections,
    ehlo_name: EhloName,
}

enum TransportKind {
    /// SMTP without TLS to an MTA.
    Smtp(MtaAddress),
    /// The sendmail command.
    Sendmail(PathBuf),
    /// A submission server.
    Submission(Box<SubmissionServer>),
}

impl Transport {
    /// Reads the section, its password and root. Fails with one line a fault.
    pub fn load(section: &ReportSection) -> Result<Transport, Vec<String>> {
        let ehlo_name = EhloName::new(host_name::ehlo_name(section.from.as_deref()));
        Ok(Transport { kind: TransportKind::load(section)?, idle: IdleConnections::default(), ehlo_name })
    }

    /// Closes the idle connections. Waits half a second at most.
    pub(crate) async fn close_idle(&self) {
        self.idle.close().await;
    }

    /// The queue id in a reply of this host's MTA to the final dot: `250 2.0.0 Ok: queued as ID` (Postfix), `250 OK id=ID`
    /// (Exim). Nothing of another host's: its queue ids are in no log here.
    pub(crate) fn queue_id<'a>(&self, answer: &'a str) -> Option<&'a str> {
        if !matches!(self.kind, TransportKind::Smtp(_)) {
            return None;
        }
        let rest = answer.split_once(": queued as ").or_else(|| answer.split_once("OK id="))?.1;
        let id = rest.split(' ').next()?;
        let shaped =
            (5..=MAX_QUEUE_ID).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        shaped.then_some(id)
    }
}

impl TransportKind {
    fn load(section: &ReportSection) -> Result<TransportKind, Vec<String>> {
        let (host, port, implicit) = match &section.deliver {
            DeliveryMethod::Localhost(port) => return Ok(TransportKind::Smtp(MtaAddress::Localhost(*port))),
            DeliveryMethod::Smtp(address) => return Ok(TransportKind::Smtp(MtaAddress::At(*address))),
            DeliveryMethod::Sendmail(path) => return Ok(TransportKind::Sendmail(path.clone())),
            DeliveryMethod::Submission(host, port) => (host, *port, false),
            DeliveryMethod::Submissions(host, port) => (host, *port, true),
        };
        Ok(TransportKind::Submission(Box::new(SubmissionServer::load(section, host.clone(), port, implicit)?)))
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            TransportKind::Smtp(address) => write!(f, "smtp:{address}"),
            TransportKind::Sendmail(path) => write!(f, "sendmail:{}", path.display()),
            TransportKind::Submission(server) => write!(f, "submission to {}:{}", server.host, server.port),
        }
    }
}

/// A message to hand over.
#[derive(Clone, Copy, Debug)]
pub struct OutgoingMail<'a> {
    /// The envelope sender.
    pub from: &'a Mailbox,
    /// The one recipient.
    pub to: &'a Mailbox,
    /// The octets, CRLF at the end of each line.
    pub message: &'a [u8],
}

/// What became of a delivery.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "outcome", content = "answer")]
pub enum DeliveryOutcome {
    /// It was taken; what the receiver said.
    Accepted(String),
    /// It will never be taken.
    Refused(String),
    /// It was certainly not taken this time, and may be later.
    Retry(String),
    /// The same; the receiver said after how many seconds.
    RetryAfter(String, i64),
    /// It may have been taken.
    Unknown(String),
}

/// How long a delivery may take.
#[derive(Clone, Copy, Debug)]
pub struct DeliveryTimeouts {
    /// From the connect to the final dot.
    pub before_dot: Duration,
    /// For the reply to it (RFC 5321 §4.5.3.2.6: 10 minutes, so that slow content filters make no duplicates).
    pub after_dot: Duration,
    /// For a POST as a whole: a receiver that needs longer is tried again.
    pub post: Duration,
}

impl Default for DeliveryTimeouts {
    fn default() -> Self {
        DeliveryTimeouts {
            before_dot: Duration::from_secs(120),
            after_dot: Duration::from_secs(600),
            post: Duration::from_secs(45),
        }
    }
}

/// Delivers one message. `intent` is awaited right before it is handed over. When `cancel` resolves (the daemon ends), it
/// returns at once: the outcome is what is certain by then.
pub async fn deliver(
    transport: &Transport,
    mail: OutgoingMail<'_>,
    intent: impl Future<Output = Result<(), String>>,
    limits: DeliveryTimeouts,
    cancel: impl Future<Output = ()>,
) -> DeliveryOutcome {
    let dot_sent = AtomicBool::new(false);
    let Transport { kind, idle, ehlo_name } = transport;
    let delivery = async {
        match kind {
            TransportKind::Smtp(address) => {
                let reply = send_mail(idle, connect(*address, ehlo_name), mail, intent, &dot_sent).await;
                reply_outcome(reply, address, &dot_sent)
            }
            TransportKind::Sendmail(path) => sendmail::run_sendmail(path, mail, intent, &dot_sent).await,
            TransportKind::Submission(server) => {
                let reply = send_mail(idle, submission::log_in(server, ehlo_name), mail, intent, &dot_sent).await;
                reply_outcome(reply, &format_args!("{}:{}", server.host, server.port), &dot_sent)
            }
        }
    };
    // Two deadlines: once the final dot has been sent, `after_dot` replaces `before_dot`.
    let limit = async {
        tokio::time::sleep(limits.before_dot).await;
        if dot_sent.load(Ordering::Relaxed) {
            tokio::time::sleep(limits.after_dot).await;
        }
    };
    tokio::select! {
        outcome = delivery => outcome,
        () = limit => outcome_without_reply(&dot_sent, TOO_LATE),
        () = cancel => outcome_without_reply(&dot_sent, CANCELED),
    }
}

/// What is certain when there was no reply.
fn outcome_without_reply(dot_sent: &AtomicBool, why: &str) -> DeliveryOutcome {
    let why = escape_and_cut(why, MAX_REPLY_TEXT);
    if dot_sent.load(Ordering::Relaxed) { DeliveryOutcome::Unknown(why) } else { DeliveryOutcome::Retry(why) }
}

#[cfg(test)]
pub(crate) mod tests;
