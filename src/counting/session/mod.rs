//! Puts events together: one [`SessionOutcome`](crate::base::tlsrpt::SessionOutcome) for each attempt at TLS on a new connection.
//!
//! Takes: events of one input, in order, with their times. Gives: outcomes, and what must be kept over a restart.
//! Pure: no clock, no I/O. Limits: every table has its own; evicted entries are counted in [`Uncounted`].
//! Not here: which policy was in force, and what an outcome counts as (`tally`).

pub mod datagram;
pub(crate) mod exim;
mod handshake;
pub mod postfix;
pub(crate) mod reason;
mod text;
pub(crate) mod tracked_map;

use serde::{Deserialize, Serialize};
use tlswarden_parsers::event::Event;
use tlswarden_parsers::event::exim::EventAction;
use tlswarden_parsers::{DeliveryResult, DeliveryStatus, Dialect};

use self::tracked_map::{RecordChange, TrackedMap};
use crate::base::own_reports::{OwnReportResult, OwnReportStatus};
use crate::base::printable::escape_and_cut;
use crate::base::tlsrpt::{ResultType, SessionOutcome};

/// How long a session may stay open by the time in the lines, or by the clock once its input is at the end, in seconds.
/// A transfer may take smtp_data_xfer_timeout (180 s) a buffer; an hour has room for a large message on a slow line.
pub(crate) const SESSION_TIMEOUT: i64 = 3600;

/// How much is kept of what a line says about a report of ours, in characters.
const MAX_STATUS_REASON: usize = 300;

/// Sessions that were seen and not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uncounted {
    /// Sessions whose domain is in no line.
    pub(crate) without_domain: u64,
    /// Sessions that a delivery to another host followed: lines are missing between.
    pub unmatched: u64,
    /// Entries that were evicted from a full table.
    pub(crate) evicted: u64,
    /// Sessions that carried our own reports: not lost, left out.
    pub(crate) own_reports: u64,
}

/// The sessions of one input: each MTA's lines are put together in their own way.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // One of them for each input: a box would save nothing.
pub enum Sessions {
    /// From Postfix's lines.
    Postfix(postfix::PostfixSessions),
    /// From Exim's.
    Exim(exim::EximSessions),
}

/// A report of ours that is on its way: its Message-ID, without angle brackets, where the log has shown it.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct OwnReport(Option<String>);

impl OwnReport {
    pub(crate) fn with_message_id(message_id: &[u8]) -> OwnReport {
        OwnReport(Some(text::lossy(message_id)))
    }
}

impl Sessions {
    /// No sessions yet, of an MTA.
    pub fn new(mta: Dialect) -> Sessions {
        match mta {
            Dialect::Postfix => Sessions::Postfix(postfix::PostfixSessions::new()),
            Dialect::Exim => Sessions::Exim(exim::EximSessions::new()),
        }
    }

    /// Takes back one record of [`take_changes`](Self::take_changes); `false` if it does not read.
    pub fn load(&mut self, key: &[u8], value: &[u8]) -> bool {
        match self {
            Sessions::Postfix(sessions) => sessions.load(key, value),
            Sessions::Exim(sessions) => sessions.load(key, value),
        }
    }

    /// Takes the records that have changed since the last call.
    pub fn take_changes(&mut self) -> Vec<RecordChange> {
        match self {
            Sessions::Postfix(sessions) => sessions.take_changes(),
            Sessions::Exim(sessions) => sessions.take_changes(),
        }
    }

    /// Takes the sessions that were not counted since the last call.
    pub(crate) fn take_uncounted(&mut self) -> Uncounted {
        match self {
            Sessions::Postfix(sessions) => sessions.take_uncounted(),
            Sessions::Exim(sessions) => sessions.take_uncounted(),
        }
    }

    /// Takes one event at its time; `is_own_report` tells whether a Message-ID is one of our reports. Outcomes go to `out`.
    pub fn handle_event(
        &mut self,
        event: &Event<'_>,
        time: i64,
        is_own_report: impl Fn(&[u8]) -> bool,
        out: &mut Vec<SessionOutcome>,
    ) {
        match self {
            Sessions::Postfix(sessions) => sessions.handle_event(event, time, is_own_report, out),
            Sessions::Exim(sessions) => sessions.handle_event(event, time, is_own_report, out),
        }
    }

    /// Adds a queue id that the MTA gave one of our reports at `time`: its sessions are not counted.
    pub(crate) fn add_own_queue_id(&mut self, queue_id: &str, time: i64) {
        match self {
            Sessions::Postfix(sessions) => sessions.carries_own(queue_id.as_bytes(), time),
            Sessions::Exim(sessions) => sessions.carries_own(queue_id.as_bytes(), time),
        }
    }

    /// Whether any of our reports is on its way.
    pub(crate) fn has_own_reports(&self) -> bool {
        !self.own_reports().is_empty()
    }

    /// What a line says of one of our reports; nothing of another message.
    pub(crate) fn own_report_status(&self, status: &DeliveryStatus<'_>) -> Option<OwnReportStatus> {
        let (_, OwnReport(message_id)) = self.own_reports().peek(status.queue_id)?;
        let result = match status.result {
            DeliveryResult::Delivered => OwnReportResult::Delivered,
            DeliveryResult::Deferred => OwnReportResult::Deferred,
            DeliveryResult::Bounced => OwnReportResult::Bounced,
        };
        Some(OwnReportStatus {
            queue_id: text::lossy(status.queue_id),
            message_id: message_id.clone(),
            result,
            reason: escape_and_cut(&text::lossy(status.reason), MAX_STATUS_REASON),
        })
    }

    fn own_reports(&self) -> &TrackedMap<OwnReport> {
        match self {
            Sessions::Postfix(sessions) => sessions.own_reports(),
            Sessions::Exim(sessions) => sessions.own_reports(),
        }
    }

    /// Takes a failed session that Exim reports outside the log; of no other MTA.
    pub fn handle_event_action(&mut self, event: &EventAction<'_>) {
        match self {
            Sessions::Postfix(_) => {}
            Sessions::Exim(sessions) => sessions.handle_event_action(event),
        }
    }

    /// An instance has found a certificate trusted, which a line alone could not tell. Exim's lines tell it themselves.
    pub(crate) fn set_has_trust_anchors(&mut self, instance: &[u8], time: i64) {
        match self {
            Sessions::Postfix(sessions) => sessions.has_anchors(instance, time),
            Sessions::Exim(_) => {}
        }
    }

    /// Lines before the next one are missing. Exim's lines each tell all of a session.
    pub(crate) fn note_missing_lines(&mut self) {
        match self {
            Sessions::Postfix(sessions) => sessions.note_missing_lines(),
            Sessions::Exim(_) => {}
        }
    }

    /// Ends what is open at `now`: the input has been at its end for [`SESSION_TIMEOUT`].
    pub fn end_all(&mut self, now: i64, out: &mut Vec<SessionOutcome>) {
        match self {
            Sessions::Postfix(sessions) => sessions.end_all(now, out),
            Sessions::Exim(sessions) => sessions.end_all(now, out),
        }
    }

    /// Whether nothing is open.
    pub fn is_idle(&self) -> bool {
        match self {
            Sessions::Postfix(sessions) => sessions.is_idle(),
            Sessions::Exim(sessions) => sessions.is_idle(),
        }
    }
}

/// Why a session failed: the result type of RFC 8460 §4.3 and, where one is known, a reason code.
pub(crate) type FailureCause = (ResultType, Option<String>);
