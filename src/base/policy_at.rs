//! The policy in force at a time, and the next hop of a session: how counting learns what answering was asked and answered.
//!
//! Takes: nothing. Gives: the trait that answering implements and counting asks, and what it answers with.
//! Not here: the history itself (`answering::policy::history`), what follows from it (`counting`).

use std::sync::Arc;

use crate::base::tlsrpt::PolicyInForce;

/// The policy that was in force, by recipient domain and time.
pub trait PolicyAt {
    /// The decision that our responder had given at `seconds`; `None` where it was not asked.
    fn at(&self, domain: &str, seconds: i64) -> Option<PolicyInForce>;

    /// What is known at `seconds` of the next hop by which mail for `domain` came to `host`; nothing, unless there is a
    /// history.
    fn host_evidence(&self, domain: &str, host: &str, seconds: i64) -> HostEvidence {
        let _ = (domain, host, seconds);
        HostEvidence::default()
    }
}

/// What is known of a host that mail for a domain went to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostEvidence {
    /// Whether the MTA asked about the domain as its next hop.
    pub domain_asked: bool,
    /// Whether the host is one of the domain's MX hosts; `None` where these are not known.
    pub is_mx_host: Option<bool>,
    /// Whether the MTA asked about the host as its next hop, such as `[relay.example]:587`.
    pub host_asked: bool,
    /// The other next hops that the MTA asked about and that have this MX host.
    pub others: OtherNextHops,
}

/// Next hops that a host may have been reached by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum OtherNextHops {
    /// None is known.
    #[default]
    None,
    /// This domain.
    One(Arc<str>),
    /// Several: a provider's host.
    Several,
}
