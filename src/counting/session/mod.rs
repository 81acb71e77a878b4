//! Puts events together: one [`SessionOutcome`](crate::base::tlsrpt::SessionOutcome) for each attempt at TLS on a new connection.
//!
//! Takes: events of one input, in order, with their times. Gives: outcomes, and what must be kept over a restart.
//! Pure: no clock, no I/O. Limits: every table has its own; what had to give way is counted in [`Losses`].
//! Not here: which policy was in force, and what an outcome counts as (`tally`).

pub mod datagram;
pub mod exim;
pub mod postfix;
pub mod reason;
mod text;
pub mod tracked_map;

use serde::{Deserialize, Serialize};
use tlswarden_parsers::Dialect;
use tlswarden_parsers::event::Event;
use tlswarden_parsers::event::exim::EventAction;

use self::tracked_map::Change;
use crate::base::tlsrpt::{ResultType, SessionOutcome};

/// How long a session may stay open by the time in the lines, or by the clock once its input is at the end, in seconds.
/// A transfer may take smtp_data_xfer_timeout (180 s) a buffer; an hour has room for a large message on a slow line.
pub const SESSION_TIMEOUT: i64 = 3600;

/// What was seen and could not be counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Losses {
    /// Sessions whose domain no line ever told.
    pub without_domain: u64,
    /// Sessions that a delivery to another host followed: lines are missing between.
    pub unmatched: u64,
    /// Entries of a full table that gave way to newer ones.
    pub crowded_out: u64,
    /// Sessions that carried our own reports: not lost, left out.
    pub own_reports: u64,
}

/// The sessions of one input: each MTA's lines are put together in their own way.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // One of them for each input: a box would save nothing.
pub enum Sessions {
    /// From Postfix's lines.
    Postfix(postfix::Sessions),
    /// From Exim's.
    Exim(exim::Sessions),
}

impl Sessions {
    /// No sessions yet, of an MTA.
    pub fn new(mta: Dialect) -> Sessions {
        match mta {
            Dialect::Postfix => Sessions::Postfix(postfix::Sessions::new()),
            Dialect::Exim => Sessions::Exim(exim::Sessions::new()),
        }
    }

    /// Takes back one record of [`changes`](Self::changes); `false` if it does not read.
    pub fn load(&mut self, key: &[u8], value: &[u8]) -> bool {
        match self {
            Sessions::Postfix(sessions) => sessions.load(key, value),
            Sessions::Exim(sessions) => sessions.load(key, value),
        }
    }

    /// The records that have changed since the last call.
    pub fn changes(&mut self) -> Vec<Change> {
        match self {
            Sessions::Postfix(sessions) => sessions.changes(),
            Sessions::Exim(sessions) => sessions.changes(),
        }
    }

    /// What could not be counted since the last call.
    pub fn losses(&mut self) -> Losses {
        match self {
            Sessions::Postfix(sessions) => sessions.losses(),
            Sessions::Exim(sessions) => sessions.losses(),
        }
    }

    /// Takes one event at its time; `own` tells whether a Message-ID is one of our reports. Outcomes go to `out`.
    pub fn event(&mut self, event: &Event<'_>, time: i64, own: impl Fn(&[u8]) -> bool, out: &mut Vec<SessionOutcome>) {
        match self {
            Sessions::Postfix(sessions) => sessions.event(event, time, own, out),
            Sessions::Exim(sessions) => sessions.event(event, time, own, out),
        }
    }

    /// A queue id that the MTA gave one of our reports at `time`: its sessions are not counted.
    pub fn carries_own(&mut self, queue_id: &str, time: i64) {
        match self {
            Sessions::Postfix(sessions) => sessions.carries_own(queue_id.as_bytes(), time),
            Sessions::Exim(sessions) => sessions.carries_own(queue_id.as_bytes(), time),
        }
    }

    /// Takes a failed session that Exim reports outside the log; of no other MTA.
    pub fn event_action(&mut self, event: &EventAction<'_>) {
        match self {
            Sessions::Postfix(_) => {}
            Sessions::Exim(sessions) => sessions.event_action(event),
        }
    }

    /// An instance has found a certificate trusted, which a line alone could not tell. Exim's lines tell it themselves.
    pub fn has_anchors(&mut self, instance: &[u8], time: i64) {
        match self {
            Sessions::Postfix(sessions) => sessions.has_anchors(instance, time),
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
pub type Cause = (ResultType, Option<String>);
