//! The recipients of one delivery process at one host: one session.
//!
//! Takes: recipient lines in the order of the log. Gives: which lines are of the same session, and how it ended.
//! Exim forks a process for each group of recipients that it delivers together (deliver.c, `do_remote_deliveries`). When
//! that process has ended, its parent writes the lines of the group's recipients, one after another. `=>` begins a
//! transaction, and without `*` a connection; `->` is of the same transaction. With `multi_domain`, the default, a group may
//! have recipients of several domains.
//! Limits: [`MAX_RECIPIENTS`], [`BATCH_WINDOW`].
//! Not here: the hosts that failed before the one that the lines name (`host_failure`).

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use tlswarden_parsers::event::exim::{RecipientLine, RecipientStatus};

use crate::counting::session::text::lower_case;

/// Recipients of one session that are remembered, to know them again: max_rcpt is 100 unless set otherwise.
const MAX_RECIPIENTS: usize = 128;

/// How far apart the lines of one session's recipients may be, in seconds: Exim writes them at once.
const BATCH_WINDOW: i64 = 60;

/// The recipients of one session.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct DeliveryBatch {
    last_time: i64,
    pid: u32,
    host: String,
    ip: Option<IpAddr>,
    domain: String,
    recipients: Vec<u64>,
    /// `=>` was there.
    delivered: bool,
    /// The first and the last of its lines, counted from the beginning of the delivery attempt.
    first_line: u32,
    last_line: u32,
    end: Option<SessionEnd>,
}

/// How the session of a batch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum SessionEnd {
    /// A connection that was there before: the session is another batch's.
    Continued,
    /// With TLS.
    Encrypted,
    /// TLS failed, as the recipient's line alone says.
    Failed,
    /// TLS failed, as a line about the host says too.
    FailedAsLogged {
        /// The mail was sent to that host in clear text then.
        in_clear_text: bool,
    },
    /// In clear text.
    ClearText,
    /// Policy excluded the host.
    Excluded,
    /// The policy was not known, so that no host was tried.
    Deferred,
}

/// The recipient of a line, to know it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Recipient(u64);

impl Recipient {
    pub(super) fn of(line: &RecipientLine<'_>) -> Recipient {
        let mut hasher = DefaultHasher::new();
        line.address.hash(&mut hasher);
        Recipient(hasher.finish())
    }
}

impl DeliveryBatch {
    /// A batch that has no line yet.
    pub(super) fn new(line: &RecipientLine<'_>, domain: &str, pid: u32, time: i64, number: u32) -> DeliveryBatch {
        DeliveryBatch {
            last_time: time,
            pid,
            host: line.peer.map(|peer| lower_case(peer.host)).unwrap_or_default(),
            ip: line.peer.and_then(|peer| peer.ip),
            domain: domain.to_owned(),
            recipients: Vec::new(),
            delivered: false,
            first_line: number,
            last_line: number,
            end: None,
        }
    }

    /// Whether a recipient's line is about the same session.
    pub(super) fn takes(&self, line: &RecipientLine<'_>, domain: &str, pid: u32, time: i64) -> bool {
        let named = line.peer.map(|peer| lower_case(peer.host)).unwrap_or_default();
        self.is_at(&named, line.peer.and_then(|peer| peer.ip))
            && (self.pid == 0 || pid == 0 || self.pid == pid)
            && time - self.last_time <= BATCH_WINDOW
            && match line.status {
                RecipientStatus::DeliveredInSameTransaction => self.delivered || self.domain == domain,
                RecipientStatus::Delivered => !self.delivered && self.domain == domain,
                RecipientStatus::Deferred | RecipientStatus::Failed => self.domain == domain,
            }
    }

    /// Adds a recipient's line, the `number`th of its delivery attempt.
    pub(super) fn add(&mut self, line: &RecipientLine<'_>, time: i64, number: u32) {
        self.last_time = time;
        self.last_line = number;
        self.delivered |= line.status == RecipientStatus::Delivered;
        if self.recipients.len() < MAX_RECIPIENTS {
            self.recipients.push(Recipient::of(line).0);
        }
    }

    pub(super) fn has(&self, recipient: Recipient) -> bool {
        self.recipients.contains(&recipient.0)
    }

    pub(super) fn is_at(&self, host: &str, ip: Option<IpAddr>) -> bool {
        self.host == host && self.ip == ip
    }

    /// The host, in lower case; empty where none was connected to.
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    pub(super) fn ip(&self) -> Option<IpAddr> {
        self.ip
    }

    pub(super) fn domain(&self) -> &str {
        &self.domain
    }

    pub(super) fn last_time(&self) -> i64 {
        self.last_time
    }

    pub(super) fn first_line(&self) -> u32 {
        self.first_line
    }

    pub(super) fn last_line(&self) -> u32 {
        self.last_line
    }

    pub(super) fn end(&self) -> Option<SessionEnd> {
        self.end
    }

    pub(super) fn set_end(&mut self, end: SessionEnd) {
        self.end = Some(end);
    }

    /// Whether it connected to its host itself.
    pub(super) fn connected(&self) -> bool {
        !self.host.is_empty() && self.end != Some(SessionEnd::Continued)
    }

    /// Whether it is known how its own session went.
    pub(super) fn had_session(&self) -> bool {
        !matches!(self.end, None | Some(SessionEnd::Continued | SessionEnd::Excluded | SessionEnd::Deferred))
    }
}
