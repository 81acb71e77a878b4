//! The other end of a connection: its name and address, and what the MTA found of its certificate.
//!
//! Takes: nothing. Gives: types that borrow from the line; no allocation.
//! Limits: a host name and the text of a verification error were chosen by strangers.
//! When it fails: never.
//! Not here: how Postfix and Exim write them (`postfix::peer`, `exim::fields`).

use core::net::IpAddr;

/// The other end of a connection, as Postfix prints it: `HOST[IP]` or `HOST[IP]:PORT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Peer<'a> {
    /// The host name that Postfix connected to (the MX host, not what the server calls itself).
    pub host: &'a [u8],
    /// Its address; `None` for a unix-domain socket.
    pub ip: Option<IpAddr>,
    /// The port, where the line has one.
    pub port: Option<u16>,
}

/// The first word of the TLS summary line.
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Trust {
    /// No certificate.
    Anonymous,
    /// A chain that leads to no trusted root, or (before 3.10.4) a certificate that did not match.
    Untrusted,
    /// A trusted chain, the name not required or not matched.
    Trusted,
    /// Matched as the policy requires.
    Verified,
}

/// Why a certificate was not verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerificationError<'a> {
    /// `not trusted by local or TLSA policy`.
    NotTrusted,
    /// `self-signed certificate`.
    SelfSigned,
    /// `untrusted issuer …`; the issuer's name is a stranger's text and is not kept.
    UntrustedIssuer,
    /// `certificate not yet valid`.
    NotYetValid,
    /// `certificate has expired`.
    Expired,
    /// `not designated for use as a … certificate`.
    WrongPurpose,
    /// `certificate chain longer than limit(…)`.
    ChainTooLong,
    /// `num=N:text`: any other X.509 verification code, the text without its spaces' meaning.
    Code(u16, &'a [u8]),
    /// `external policy failure (…)`: the `policy_failure` attribute of the policy table (3.10).
    ExternalPolicy(&'a [u8]),
}
