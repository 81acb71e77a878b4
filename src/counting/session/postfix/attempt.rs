//! One connection of smtp(8) that is being put together, and the keys that lines are joined by.
//!
//! Takes: what the lines about it say. Gives: whether another line is about it as well.
//! Not here: when it ends and what it comes to (`postfix`).

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use tlswarden_parsers::event::{Peer, Process};

use crate::base::tlsrpt::{SessionResult, Trust};
use crate::counting::session::FailureCause;
use crate::counting::session::reason::HANDSHAKE_FAILURE;
use crate::counting::session::text::lower_case;

/// The port of MX hosts. Content filters and relays that want a password are elsewhere.
pub(super) const SMTP_PORT: u16 = 25;

/// One connection that is being put together, or a host that was ruled out before any.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Attempt {
    pub(crate) began: i64,
    pub host: Option<String>,
    pub(crate) ip: Option<IpAddr>,
    pub port: Option<u16>,
    pub(crate) trust: Option<Trust>,
    pub(crate) handshake_failed: bool,
    /// Why, where a line says so.
    #[serde(default)]
    pub(crate) handshake_code: Option<String>,
    pub(crate) verification: Option<FailureCause>,
    pub(crate) resumed_untrusted: bool,
    pub(crate) tlsa_unusable: bool,
    pub(crate) excluded: Option<FailureCause>,
    /// No host was connected to, because the policy could not be looked up.
    #[serde(default)]
    pub(crate) policy_unknown: bool,
    pub(crate) tlsrpt_result: Option<SessionResult>,
    /// Postfix could not send its own report of this session.
    pub(crate) tlsrpt_not_sent: bool,
    /// The next hop, where the line names it.
    pub next_hop: Option<String>,
    /// There is no line about it but the delivery's.
    pub(crate) unlogged: Option<UnloggedSession>,
    /// `QID: reason` has ended it: the queue id, and the verdict that follows from the reason.
    pub(crate) given_up: Option<(String, Option<SessionResult>)>,
}

/// A session that only the delivery line shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum UnloggedSession {
    /// TLS, and as much as the level asks is known of the certificate.
    Encrypted(Option<Trust>),
    /// No TLS.
    ClearText,
}

impl Attempt {
    pub(super) fn new(began: i64, peer: Option<Peer<'_>>) -> Attempt {
        Attempt {
            began,
            host: peer.map(|p| lower_case(p.host)),
            ip: peer.and_then(|p| p.ip),
            port: peer.and_then(|p| p.port),
            trust: None,
            handshake_failed: false,
            handshake_code: None,
            verification: None,
            resumed_untrusted: false,
            tlsa_unusable: false,
            excluded: None,
            policy_unknown: false,
            tlsrpt_result: None,
            tlsrpt_not_sent: false,
            next_hop: None,
            unlogged: None,
            given_up: None,
        }
    }

    /// Whether it has not ended: a line may be about it.
    pub(crate) fn is_open(&self) -> bool {
        self.given_up.is_none() && !self.is_excluded()
    }

    /// Whether there was no connection at all, for policy kept Postfix from it.
    pub(crate) fn is_excluded(&self) -> bool {
        self.excluded.is_some() || self.policy_unknown
    }

    pub(crate) fn is_to(&self, peer: Peer<'_>) -> bool {
        self.ip == peer.ip
            && self.host.as_deref().is_none_or(|host| host.as_bytes().eq_ignore_ascii_case(peer.host))
            && (self.port.is_none() || peer.port.is_none() || self.port == peer.port)
    }

    /// Whether TLS was made or tried at `peer`; of a handshake failure through tlsproxy(8) no line names the peer.
    pub(crate) fn had_tls_at(&self, peer: Peer<'_>) -> bool {
        let failed = |verdict: &SessionResult| matches!(verdict, SessionResult::Failure(_, Some(code)) if code == HANDSHAKE_FAILURE);
        let failed = self.given_up.as_ref().and_then(|(_, verdict)| verdict.as_ref()).is_some_and(failed);
        if self.has_finished_handshake() { self.is_to(peer) } else { failed && (self.ip.is_none() || self.is_to(peer)) }
    }

    /// Whether its handshake has finished: another line about a handshake belongs to another connection.
    pub(crate) fn has_finished_handshake(&self) -> bool {
        self.trust.is_some() || self.handshake_failed
    }

    pub(crate) fn peer_key(&self) -> TableKey {
        address_key(self.host.as_deref().unwrap_or("").as_bytes(), self.ip, self.port)
    }
}

/// A key of a table: on the stack where it is as short as usual.
pub(super) type TableKey = SmallVec<[u8; 96]>;

pub(super) fn join_key(parts: &[&[u8]]) -> TableKey {
    let mut key = TableKey::new();
    parts.iter().for_each(|part| key.extend_from_slice(part));
    key
}

pub(super) fn process_key(process: &Process<'_>) -> TableKey {
    let Process { host, instance, name, pid } = process;
    join_key(&[host, b"\0", instance, b"/", name, b"\0", &pid.to_be_bytes()])
}

/// The instance of a process on its host; those of its services begin with it.
pub(super) fn instance_key(process: &Process<'_>) -> TableKey {
    join_key(&[process.host, b"\0", process.instance])
}

/// A message in the queue of a host.
pub(super) fn message_key(process: &Process<'_>, queue_id: &[u8]) -> TableKey {
    join_key(&[process.host, b"\0", queue_id])
}

pub(super) fn peer_key(peer: Peer<'_>) -> TableKey {
    address_key(peer.host, peer.ip, peer.port)
}

/// The host in lower case, its address and port.
fn address_key(host: &[u8], ip: Option<IpAddr>, port: Option<u16>) -> TableKey {
    let port = port.unwrap_or(SMTP_PORT).to_be_bytes();
    let mut key = match ip {
        Some(IpAddr::V4(ip)) => join_key(&[host, b"\0", &ip.octets(), &port]),
        Some(IpAddr::V6(ip)) => join_key(&[host, b"\0", &ip.octets(), &port]),
        None => join_key(&[host, b"\0", &port]),
    };
    key[..host.len()].make_ascii_lowercase();
    key
}

/// A host and its address, of any port.
pub(super) fn host_key(host: &[u8], ip: Option<IpAddr>) -> TableKey {
    address_key(host, ip, None)
}
