//! The policy domain that a session counts under: that of its next hop, where this is known.
//!
//! Takes: a session, the `[[nexthop]]` rules, the relays of Postfix's configuration, and what the MTA has asked about.
//! Gives: the domain, or nothing if the host is not known to be one of the recipient domain's: the session was relayed,
//! and is not reported.
//! RFC 8460 §1.1: the policy domain is that of the next hop where mail does not go to the domain's own MX hosts.
//! Pure. Not here: the look-ups and the MX hosts that are known (`answering::policy::history`).

use std::net::IpAddr;
use std::sync::Arc;

use crate::base::policy_at::{HostEvidence, OtherNextHops, PolicyAt};
use crate::base::tlsrpt::SessionOutcome;
use crate::counting::rules::CountingRules;

/// The port of MX hosts.
const SMTP_PORT: u16 = 25;

/// The policy domain of a session's next hop; `None` where it is not known, and not the recipient domain.
pub(crate) fn policy_domain(
    outcome: &SessionOutcome,
    rules: &CountingRules,
    policies: &dyn PolicyAt,
) -> Option<Arc<str>> {
    let domain = &outcome.domain;
    if outcome.next_hop_named {
        return Some(Arc::clone(domain));
    }
    let by_rule = rules.next_hop_by_relay(outcome.mx.as_deref(), outcome.ip).or_else(|| rules.next_hop(domain));
    if let Some(next_hop) = by_rule {
        return Some(next_hop.into());
    }
    let Some(host) = outcome.mx.as_deref() else { return Some(Arc::clone(domain)) };
    let evidence = policies.host_evidence(domain, host, outcome.began);
    if let Some(found) = by_evidence(domain, host, &evidence) {
        return found;
    }
    // The MTA did not ask about the domain: what Postfix is configured to do tells.
    if let Some(relay) = rules.relay_of(host) {
        return Some(relay.into());
    }
    // An address in the place of a name: the next hop is `[192.0.2.1]`, which has no policy domain. MX hosts have port 25.
    let is_relay = host.parse::<IpAddr>().is_ok() || outcome.port.is_some_and(|port| port != SMTP_PORT);
    (!(rules.is_own_host && (is_relay || rules.relays_all))).then(|| Arc::clone(domain))
}

/// What follows from the look-ups of the MTA; `None` where nothing does.
fn by_evidence(domain: &Arc<str>, host: &str, evidence: &HostEvidence) -> Option<Option<Arc<str>>> {
    let HostEvidence { domain_asked, is_mx_host, host_asked, others } = evidence;
    let is_its_own = *is_mx_host == Some(true) || host.eq_ignore_ascii_case(domain);
    if is_its_own && (*domain_asked || !host_asked) {
        return Some(Some(Arc::clone(domain)));
    }
    if *host_asked {
        return Some(Some(host.to_ascii_lowercase().into()));
    }
    match (is_mx_host, others) {
        // Its hosts are not known, and it was asked about.
        (None, _) if *domain_asked => Some(Some(Arc::clone(domain))),
        (_, OtherNextHops::One(next_hop)) => Some(Some(Arc::clone(next_hop))),
        (_, OtherNextHops::Several) | (Some(_), OtherNextHops::None) => Some(None),
        (None, OtherNextHops::None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_mta_asked_about_tells_the_next_hop() {
        let domain: Arc<str> = "a.example".into();
        let (own, relay): (Option<&str>, _) = (Some("a.example"), Some("relay.example"));
        let one = || OtherNextHops::One("relay.example".into());
        // Asked about the domain, host among its MX hosts, asked about the host, others; the host; wanted.
        let (none, several) = (OtherNextHops::None, OtherNextHops::Several);
        for (asked, mx, host_asked, others, host, want) in [
            (true, Some(true), false, none.clone(), "mx.a.example", Some(own)),
            (false, Some(true), false, one(), "mx.a.example", Some(own)),
            // The relay host is the domain's MX host as well.
            (true, Some(true), true, none.clone(), "relay.example", Some(own)),
            (false, Some(true), true, none.clone(), "relay.example", Some(relay)),
            // Its own address.
            (false, None, false, none.clone(), "A.example", Some(own)),
            // Relayed: relayhost, a transport map, a fallback relay, a relay host for each sender.
            (false, None, true, none.clone(), "Relay.example", Some(relay)),
            (true, Some(false), true, none.clone(), "relay.example", Some(relay)),
            (true, None, true, none.clone(), "relay.example", Some(relay)),
            (true, Some(false), false, one(), "mx.relay.example", Some(relay)),
            (false, None, false, one(), "mx.relay.example", Some(relay)),
            // By which next hop is not known.
            (true, Some(false), false, several.clone(), "mx.provider.example", Some(None)),
            (false, None, false, several.clone(), "mx.provider.example", Some(None)),
            (true, Some(false), false, none.clone(), "mx.b.example", Some(None)),
            // MX hosts that are not known.
            (true, None, false, one(), "mx.provider.example", Some(own)),
            (true, None, false, none.clone(), "mx.a.example", Some(own)),
            (false, None, false, none.clone(), "mx.a.example", None),
        ] {
            let evidence = HostEvidence { domain_asked: asked, is_mx_host: mx, host_asked, others };
            let found = by_evidence(&domain, host, &evidence);
            assert_eq!(found.as_ref().map(Option::as_deref), want, "{evidence:?} {host}");
        }
    }
}
