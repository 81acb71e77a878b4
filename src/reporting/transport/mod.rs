//! Hands a report over: to the MTA of this host (SMTP, or the sendmail command), to a submission server, or to a receiver by
//! https. The only user of lettre (`smtp`, `submission`).
//!
//! Takes: one message for one recipient, or a gzipped report and a URI. Gives: an [`Outcome`] that says whether it may be
//! tried again. The line between them is the final dot (the end of sendmail's input, the last octet of a POST): an error
//! before it is tried again, a reply after it is believed, silence after it is `Unknown` and never tried again, for the
//! report may have been taken.
//! Limits: [`Limits`]; no wait is without one. One recipient a message.
//! When it fails: never; a failure is an outcome. [`Way::load`] names a password or root that cannot be read.
//! Not here: when to try again (`schedule`), the protocols (`smtp`, `submission`, `sendmail`, `https`).

mod https;
mod sendmail;
mod smtp;
mod submission;

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::printable::escape_and_cut;
use crate::base::rua_record::Mailbox;
use crate::config::{Deliver, ReportSection};
pub use https::post;
use smtp::{IdleConnections, connect, converse, judge};
use submission::Submission;
pub use submission::readable_by_others;

/// How much of an answer is kept, in characters.
const MAX_ANSWER: usize = 300;

/// The longest queue id, in octets: Postfix's long ones have some 20, Exim's 23.
const MAX_QUEUE_ID: usize = 40;

/// How mail is handed over, all that it needs read; and the connections that wait for the next message.
pub struct Way {
    by: By,
    idle: IdleConnections,
}

enum By {
    /// SMTP without TLS to an MTA on this host.
    Smtp(SocketAddr),
    /// The sendmail command.
    Sendmail(PathBuf),
    /// A submission server.
    Submission(Box<Submission>),
}

impl Way {
    /// What the section says, its password and root read. Fails with one line a fault.
    pub fn load(section: &ReportSection) -> Result<Way, Vec<String>> {
        Ok(Way { by: By::load(section)?, idle: IdleConnections::default() })
    }

    /// Takes leave of the server: nothing is to be handed over for the time being. It is waited for half a second at most.
    pub async fn rest(&self) {
        self.idle.rest().await;
    }

    /// The queue id in a reply of this host's MTA to the final dot: `250 2.0.0 Ok: queued as ID` (Postfix), `250 OK id=ID`
    /// (Exim). Nothing of another host's: its queue ids are in no log here.
    pub fn queue_id<'a>(&self, answer: &'a str) -> Option<&'a str> {
        if !matches!(self.by, By::Smtp(_)) {
            return None;
        }
        let rest = answer.split_once(": queued as ").or_else(|| answer.split_once("OK id="))?.1;
        let id = rest.split(' ').next()?;
        let shaped =
            (5..=MAX_QUEUE_ID).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        shaped.then_some(id)
    }
}

impl By {
    fn load(section: &ReportSection) -> Result<By, Vec<String>> {
        let (host, port, implicit) = match &section.deliver {
            Deliver::Smtp(address) => return Ok(By::Smtp(*address)),
            Deliver::Sendmail(path) => return Ok(By::Sendmail(path.clone())),
            Deliver::Submission(host, port) => (host, *port, false),
            Deliver::Submissions(host, port) => (host, *port, true),
        };
        Ok(By::Submission(Box::new(Submission::load(section, host.clone(), port, implicit)?)))
    }
}

impl fmt::Debug for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.by {
            By::Smtp(address) => write!(f, "smtp:{address}"),
            By::Sendmail(path) => write!(f, "sendmail:{}", path.display()),
            By::Submission(server) => write!(f, "submission to {}:{}", server.host, server.port),
        }
    }
}

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
pub async fn deliver(way: &Way, letter: Letter<'_>, limits: Limits, cut: impl Future<Output = ()>) -> Outcome {
    let ended = AtomicBool::new(false);
    let handing = async {
        match &way.by {
            By::Smtp(address) => judge(converse(&way.idle, connect(*address), letter, &ended).await, address, &ended),
            By::Sendmail(path) => sendmail::sendmail(path, letter, &ended).await,
            By::Submission(server) => {
                let said = converse(&way.idle, submission::log_in(server), letter, &ended).await;
                judge(said, &format_args!("{}:{}", server.host, server.port), &ended)
            }
        }
    };
    bounded(handing, &ended, limits, cut).await
}

/// Holds a hand-over to its limits.
async fn bounded(
    handing: impl Future<Output = Outcome>,
    ended: &AtomicBool,
    limits: Limits,
    cut: impl Future<Output = ()>,
) -> Outcome {
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
        why = limit => unanswered(ended, why),
        why = cut => unanswered(ended, why),
    }
}

/// What is certain when there was no answer.
fn unanswered(ended: &AtomicBool, why: &str) -> Outcome {
    let why = escape_and_cut(why, MAX_ANSWER);
    if ended.load(Ordering::Relaxed) { Outcome::Unknown(why) } else { Outcome::Retry(why) }
}

#[cfg(test)]
pub(crate) mod tests;
