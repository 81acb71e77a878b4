//! Where a Postfix service sends mail that does not go to the MX hosts of its recipient domains.
//!
//! Takes: a service's view, and our configuration. Gives: a finding for each way of relaying that our configuration does
//! not know: sessions with a relay host do not belong to the recipient domains, which would get reports about them.
//! Not here: how the sessions of a relay are counted (`counting::rules`).

use crate::checking::finding::{Finding, Severity};
use crate::checking::host::postfix::ServiceCheck;
use crate::config::split_list;

/// What the finding about a relay says of its impact.
const IMPACT: &str = "Unless the daemon is asked about the relay host, its sessions are left out, or counted under the recipient \
                      domains, which they do not belong to.";

impl ServiceCheck<'_> {
    /// Whether all its mail goes to a program on this host, such as a content filter: no policy is needed then.
    pub(super) fn delivers_to_this_host(&self) -> bool {
        let default_transport = self.get("default_transport").split_once(':').map_or("", |(_, next_hop)| next_hop);
        let relayhost = self.get("relayhost");
        // default_transport with a next hop overrides relayhost (postconf(5)).
        let next_hop = split_list(if default_transport.is_empty() { relayhost } else { default_transport });
        !next_hop.is_empty()
            && next_hop.iter().all(|destination| is_this_host(destination))
            && self.get("transport_maps").is_empty()
            && self.get("sender_dependent_relayhost_maps").is_empty()
    }

    pub(super) fn check_relays(&self, found: &mut Vec<Finding>) {
        let all_known = self.config.next_hops.iter().any(|rule| rule.domain.as_deref() == Some("*"));
        if all_known {
            return;
        }
        let transport = self.get("default_transport").split_once(':').map_or("", |(_, next_hop)| next_hop);
        for (parameter, relay) in [("relayhost", self.get("relayhost")), ("default_transport", transport)] {
            if relay.is_empty() {
                continue;
            }
            let problem = format!("all mail goes to {relay}, which the log does not say");
            let finding = self.finding(Severity::Warning, "relayhost", parameter, problem, IMPACT);
            // Of a list of destinations, a rule names one.
            let first = split_list(relay).into_iter().next().unwrap_or_default();
            found.push(finding.fix(format!("tlswarden.toml: [[nexthop]] domain = \"*\", nexthop = \"{first}\"")));
        }
        let by_sender = self.get("sender_dependent_relayhost_maps");
        if !by_sender.is_empty() {
            let problem = format!("the relay host depends on the sender ({by_sender}), which the log does not say");
            let parameter = "sender_dependent_relayhost_maps";
            let finding = self.finding(Severity::Warning, "relay-by-sender", parameter, problem, IMPACT);
            found.push(
                finding.fix("tlswarden.toml: [[nexthop]] relay = \"HOST\", nexthop = \"NEXTHOP\" for each relay host"),
            );
        }
        for (parameter, name) in [("transport_maps", "relay-by-domain"), ("smtp_fallback_relay", "fallback-relay")] {
            let value = self.get(parameter);
            let rules = split_list(value);
            // A domain that is sent elsewhere is named by a rule, if the administrator knows of it.
            if rules.is_empty() || !self.config.next_hops.is_empty() {
                continue;
            }
            let problem = format!("{parameter} is {value}: some mail goes to other hosts than the MX hosts");
            let finding = self.finding(Severity::Note, name, parameter, problem, IMPACT);
            found.push(
                finding.fix("tlswarden.toml: [[nexthop]] domain = \"DOMAIN\", nexthop = \"NEXTHOP\" for each domain"),
            );
        }
    }
}

/// Whether a next hop is this host: `[127.0.0.1]:10025`, `[::1]`, `[localhost]:25`.
fn is_this_host(next_hop: &str) -> bool {
    let Some((host, _port)) = next_hop.strip_prefix('[').and_then(|rest| rest.split_once(']')) else { return false };
    let host = host.strip_prefix("ipv6:").unwrap_or(host);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_hops_on_this_host() {
        for (next_hop, wanted) in [
            ("[127.0.0.1]:10025", true),
            ("[::1]", true),
            ("[ipv6:::1]:25", true),
            ("[localhost]:10024", true),
            ("127.0.0.1", false),
            ("[192.0.2.1]:25", false),
            ("[relay.example]", false),
            ("", false),
        ] {
            assert_eq!(is_this_host(next_hop), wanted, "{next_hop}");
        }
    }
}
