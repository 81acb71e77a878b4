//! What the configuration tells the network clients.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What to do about a certificate that is not valid (RFC 8460 §3: it MAY be ignored; §7: a report that another party
/// reads is better than none).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HttpsCertificates {
    /// The report is sent all the same, and the log says so.
    Ignore,
    /// It is not sent, and tried again later.
    Check,
}

/// What is different in a closed network, for tests alone (`[closed_network]`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkExceptions {
    /// One more root certificate for policy hosts, a PEM file.
    pub extra_root: Option<PathBuf>,
    /// Where every policy host is reached, in place of its own address and port 443.
    pub policy_hosts: Option<SocketAddr>,
    /// Whether policy hosts and receivers may have private and loopback addresses.
    pub private_addresses: bool,
}
