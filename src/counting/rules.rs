//! The configured rules for sessions: which count, under which next hop, sent from which address.
//!
//! Takes: `[count]`, `[[nexthop]]` and `[postfix] tlsrpt`. Gives: answers about single sessions.
//! Limits: [`MAX_CACHED_ADDRESSES`] destinations whose source address is cached, for [`ADDRESS_TTL`].
//! When it fails: an address that the host cannot tell is left out.
//! Not here: what a session came to (`session`), and what it counts as (`tally`).

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use parking_lot::Mutex;

use crate::base::domain_name;
use crate::base::next_hop::NextHop;
use crate::base::tlsrpt::{Mode, Policy, PolicyInForce, SessionOutcome};
use crate::config::{Config, InputKind, NativeTlsrpt, NextHopSection, VaryingFamilies, default_local_networks};
use crate::counting::session::datagram::ReportedSession;

/// Destinations whose source address is cached; when full, all are dropped: to ask again costs microseconds.
const MAX_CACHED_ADDRESSES: usize = 10_000;

/// How long a source address is cached: routes change.
const ADDRESS_TTL: Duration = Duration::from_secs(600);

/// Destinations that datagrams report on; beyond, only those of the last hour stay.
const MAX_REPORTED_DESTINATIONS: usize = 100_000;

/// How long a destination is known after its last datagram, in seconds.
const REPORTED_DESTINATION_TTL: i64 = 86_400;

/// The port that a route is asked for; nothing is sent there.
const SMTP_PORT: u16 = 25;

/// The configured rules for sessions.
#[derive(Debug)]
pub struct CountingRules {
    /// Which of Postfix's own results count.
    pub tlsrpt: NativeTlsrpt,
    /// Whether there is a log input beside the datagrams.
    pub(crate) has_log_input: bool,
    /// Whether the log is of this host, so that its domains would get reports.
    pub(crate) is_own_host: bool,
    local_networks: Vec<IpNet>,
    next_hops: NextHopRules,
    /// The next hops that Postfix is configured to use beside the recipient domains' own hosts.
    relays: Vec<NextHop>,
    /// Whether all mail with no other next hop goes to one of these.
    pub(crate) relays_all: bool,
    sending_addresses: Option<SendingAddresses>,
    /// The destinations that datagrams report on.
    reported_destinations: Mutex<HashMap<Arc<str>, ReportedDestination>>,
}

#[derive(Debug)]
struct ReportedDestination {
    /// When the last datagram arrived.
    last_datagram: i64,
    /// The MTA-STS policy in testing mode that it named: no log line shows it.
    testing_policy: Option<Arc<Policy>>,
}

impl Default for CountingRules {
    /// Without a configuration, as for another host's log: every host is of the world, no sending address.
    fn default() -> CountingRules {
        CountingRules {
            tlsrpt: NativeTlsrpt::Log,
            has_log_input: true,
            is_own_host: false,
            local_networks: Vec::new(),
            next_hops: NextHopRules::default(),
            relays: Vec::new(),
            relays_all: false,
            sending_addresses: None,
            reported_destinations: Mutex::default(),
        }
    }
}

impl CountingRules {
    /// Those for the log of another host; in a closed network the world has private addresses.
    pub(crate) fn of_another_host(private_addresses: bool) -> CountingRules {
        let local_networks = if private_addresses { Vec::new() } else { default_local_networks() };
        CountingRules { local_networks, ..CountingRules::default() }
    }

    /// The rules of a checked configuration.
    pub fn from_config(config: &Config) -> CountingRules {
        // In a closed network the world has such addresses.
        let world_is_private = config.closed_network.private_addresses;
        let postfix = &config.postfix;
        let relays = postfix.relayhost.iter().chain(postfix.relays.iter().flatten());
        CountingRules {
            tlsrpt: config.postfix.tlsrpt,
            has_log_input: config.inputs.iter().any(|i| !matches!(i.kind(), None | Some(InputKind::Datagrams(_)))),
            is_own_host: true,
            local_networks: if world_is_private { Vec::new() } else { config.count.local_networks.clone() },
            next_hops: NextHopRules::from_sections(&config.next_hops),
            relays: relays.filter_map(|relay| NextHop::parse(relay.as_bytes())).collect(),
            relays_all: postfix.relayhost.is_some() || postfix.relays_all,
            sending_addresses: Some(SendingAddresses {
                configured: config.count.sending_addresses.clone(),
                vary: config.count.sending_addresses_vary,
                cache: Mutex::new(HashMap::new()),
            }),
            reported_destinations: Mutex::default(),
        }
    }

    /// Records that a datagram received at `at` reports on a destination, and whether its policy is in testing mode.
    pub(crate) fn record_reported(&self, session: &ReportedSession, at: i64) {
        let mut destinations = self.reported_destinations.lock();
        if destinations.len() >= MAX_REPORTED_DESTINATIONS && !destinations.contains_key(&session.domain) {
            destinations.retain(|_, known| at - known.last_datagram < REPORTED_DESTINATION_TTL / 24);
            if destinations.len() >= MAX_REPORTED_DESTINATIONS {
                return;
            }
        }
        let testing_policy = session.testing.then(|| Arc::clone(&session.policy));
        destinations.insert(Arc::clone(&session.domain), ReportedDestination { last_datagram: at, testing_policy });
    }

    /// Whether a session in the log is one that Postfix's own datagrams count: the log says so itself, or, where it never
    /// shows what Postfix reports, there are datagrams of that destination.
    pub(crate) fn is_counted_by_datagrams(&self, outcome: &SessionOutcome) -> bool {
        let known = || {
            let destinations = self.reported_destinations.lock();
            destinations
                .get(&outcome.domain)
                .is_some_and(|known| (outcome.ended - known.last_datagram).abs() < REPORTED_DESTINATION_TTL)
        };
        outcome.reported.unwrap_or_else(known)
    }

    /// The policy in force for a session that began at `at`: our own decision, or, where we were not asked, a policy in
    /// testing mode that datagrams tell of.
    pub(crate) fn policy_in_force(
        &self,
        decided: Option<PolicyInForce>,
        domain: &str,
        at: i64,
    ) -> Option<PolicyInForce> {
        if decided.is_some() || self.tlsrpt != NativeTlsrpt::Datagrams {
            return decided;
        }
        let destinations = self.reported_destinations.lock();
        let known =
            destinations.get(domain).filter(|known| (at - known.last_datagram).abs() < REPORTED_DESTINATION_TTL)?;
        let policy = known.testing_policy.as_ref()?;
        Some(PolicyInForce::Sts { mode: Mode::Testing, policy: Arc::clone(policy), failure: None })
    }

    /// Whether a host is not of the world: its sessions do not count.
    pub(crate) fn is_local(&self, host: IpAddr) -> bool {
        let host = host.to_canonical();
        self.local_networks.iter().any(|network| network.contains(&host))
    }

    /// The policy domain of the next hop of a recipient domain, where that is another.
    pub fn next_hop(&self, recipient_domain: &str) -> Option<&str> {
        self.next_hops.for_domain(recipient_domain)
    }

    /// The policy domain of the configured relay that a host belongs to: it is the host, or the host is below it.
    pub(crate) fn relay_of(&self, host: &str) -> Option<&str> {
        let is_at = |relay: &&NextHop| {
            let front = host.len().checked_sub(relay.domain.len()).filter(|at| host.is_char_boundary(*at));
            let same = front.is_some_and(|at| host[at..].eq_ignore_ascii_case(&relay.domain));
            same && (front == Some(0) || relay.mx && front.is_some_and(|at| host[..at].ends_with('.')))
        };
        self.relays.iter().find(is_at).map(|relay| relay.domain.as_str())
    }

    /// The policy domain that a rule about a relay host names, by the host's name or address.
    pub(crate) fn next_hop_by_relay(&self, host: Option<&str>, ip: Option<IpAddr>) -> Option<&str> {
        self.next_hops.for_relay(host, ip)
    }

    /// The address that mail to a host is sent from, as far as it is known.
    pub(crate) fn sending_address(&self, host: IpAddr) -> Option<IpAddr> {
        self.sending_addresses.as_ref()?.address_for(host)
    }
}

/// `[[nexthop]]`.
#[derive(Debug, Default)]
struct NextHopRules {
    domains: NameRules,
    relays: NameRules,
    relay_addresses: HashMap<IpAddr, String>,
}

/// Policy domains by a name or the names below it.
#[derive(Debug, Default)]
struct NameRules {
    exact: HashMap<String, String>,
    /// Without the dot in front.
    below: HashMap<String, String>,
    all: Option<String>,
}

impl NextHopRules {
    fn from_sections(rules: &[NextHopSection]) -> NextHopRules {
        let mut hops = NextHopRules::default();
        for rule in rules {
            let Some(hop) = NextHop::parse(rule.nexthop.as_bytes()) else { continue };
            if let Some(address) = rule.relay.as_deref().and_then(|relay| relay.parse::<IpAddr>().ok()) {
                hops.relay_addresses.insert(address.to_canonical(), hop.domain);
            } else if let Some(relay) = &rule.relay {
                hops.relays.insert(relay, hop.domain);
            } else if let Some(domain) = &rule.domain {
                hops.domains.insert(domain, hop.domain);
            }
        }
        hops
    }

    fn for_domain(&self, domain: &str) -> Option<&str> {
        self.domains.nearest(domain)
    }

    fn for_relay(&self, host: Option<&str>, ip: Option<IpAddr>) -> Option<&str> {
        let by_address = || ip.and_then(|ip| self.relay_addresses.get(&ip.to_canonical())).map(String::as_str);
        host.and_then(|host| self.relays.nearest(host)).or_else(by_address)
    }
}

impl NameRules {
    fn insert(&mut self, pattern: &str, policy_domain: String) {
        match pattern.strip_prefix('.') {
            _ if pattern == "*" => self.all = Some(policy_domain),
            Some(parent) => drop(domain_name::normalize(parent).map(|name| self.below.insert(name, policy_domain))),
            None => drop(domain_name::normalize(pattern).map(|name| self.exact.insert(name, policy_domain))),
        }
    }

    /// The nearest rule: the name itself, what it is below, all.
    fn nearest(&self, domain: &str) -> Option<&str> {
        if let Some(hop) = self.exact.get(domain) {
            return Some(hop);
        }
        let mut rest = domain;
        while let Some((_, parent)) = rest.split_once('.') {
            if let Some(hop) = self.below.get(parent) {
                return Some(hop);
            }
            rest = parent;
        }
        self.all.as_deref()
    }
}

#[derive(Debug)]
struct SendingAddresses {
    configured: Vec<IpAddr>,
    /// Of these families the MTA has several, and no line tells which.
    vary: VaryingFamilies,
    cache: Mutex<HashMap<IpAddr, (Instant, Option<IpAddr>)>>,
}

impl SendingAddresses {
    fn address_for(&self, host: IpAddr) -> Option<IpAddr> {
        if let Some(configured) = self.configured.iter().find(|address| address.is_ipv4() == host.is_ipv4()) {
            return Some(*configured);
        }
        if if host.is_ipv4() { self.vary.v4 } else { self.vary.v6 } {
            return None;
        }
        let mut cache = self.cache.lock();
        if let Some((when, address)) = cache.get(&host)
            && when.elapsed() < ADDRESS_TTL
        {
            return *address;
        }
        if cache.len() >= MAX_CACHED_ADDRESSES {
            cache.clear();
        }
        let address = source_address(host);
        cache.insert(host, (Instant::now(), address));
        address
    }
}

/// The address that the kernel would send from: a connected UDP socket has it, and no packet is sent.
fn source_address(host: IpAddr) -> Option<IpAddr> {
    let any: IpAddr = match host {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).ok()?;
    socket.connect(SocketAddr::new(host, SMTP_PORT)).ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_unspecified()).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relayhost_that_can_have_no_policy_relays_all_the_same() {
        let mut config = Config::default();
        assert!(!CountingRules::from_config(&config).relays_all);
        config.postfix.relays_all = true;
        assert!(CountingRules::from_config(&config).relays_all);
    }

    #[test]
    fn the_nearest_next_hop_counts() {
        let rule = |domain: &str, nexthop: &str| NextHopSection {
            domain: Some(domain.into()),
            relay: None,
            nexthop: nexthop.into(),
        };
        let hops = NextHopRules::from_sections(&[
            rule("*", "[Smarthost.example]:587"),
            rule(".example.com", "inner.example:25"),
            rule("direct.example.com", "direct.example.com"),
        ]);
        for (domain, want) in [
            ("a.test", "smarthost.example"),
            ("example.com", "smarthost.example"),
            ("a.example.com", "inner.example"),
            ("a.b.example.com", "inner.example"),
            ("direct.example.com", "direct.example.com"),
            ("below.direct.example.com", "inner.example"),
        ] {
            assert_eq!(hops.for_domain(domain), Some(want), "{domain}");
        }
        assert_eq!(NextHopRules::default().for_domain("a.test"), None);
        let relay = |relay: &str, nexthop: &str| NextHopSection {
            domain: None,
            relay: Some(relay.into()),
            nexthop: nexthop.into(),
        };
        let hops = NextHopRules::from_sections(&[
            relay("Out.relay.example", "[out.relay.example]:587"),
            relay(".pool.example", "pool.example"),
            relay("192.0.2.9", "[smarthost.example]"),
        ]);
        for (host, ip, want) in [
            ("out.relay.example", "192.0.2.1", Some("out.relay.example")),
            ("mx7.pool.example", "192.0.2.1", Some("pool.example")),
            ("x.example", "::ffff:192.0.2.9", Some("smarthost.example")),
            ("192.0.2.9", "192.0.2.9", Some("smarthost.example")),
            ("mx.a.test", "192.0.2.1", None),
        ] {
            assert_eq!(hops.for_relay(Some(host), ip.parse().ok()), want, "{host}");
        }
        assert_eq!(hops.for_domain("a.test"), None);
    }

    #[test]
    fn loopback_and_private_hosts_are_not_the_world() {
        let rules = CountingRules::of_another_host(false);
        for local in ["127.0.0.1", "::1", "10.1.2.3", "192.168.1.1", "172.31.0.1", "fd00::1", "::ffff:127.0.0.1"] {
            assert!(rules.is_local(local.parse().unwrap()), "{local}");
        }
        for world in ["203.0.113.5", "172.32.0.1", "2001:db8::1", "9.9.9.9"] {
            assert!(!rules.is_local(world.parse().unwrap()), "{world}");
        }
    }

    #[test]
    fn the_sending_address_is_configured_or_the_kernels() {
        let sending = |configured: &[&str]| SendingAddresses {
            configured: configured.iter().map(|a| a.parse().unwrap()).collect(),
            vary: VaryingFamilies::default(),
            cache: Mutex::new(HashMap::new()),
        };
        let to =
            |sending: &SendingAddresses, host: &str| sending.address_for(host.parse().unwrap()).map(|a| a.to_string());
        let both = sending(&["192.0.2.1", "2001:db8::1"]);
        assert_eq!(to(&both, "203.0.113.1").as_deref(), Some("192.0.2.1"));
        assert_eq!(to(&both, "2001:db8::7").as_deref(), Some("2001:db8::1"));
        let none = sending(&[]);
        assert_eq!(to(&none, "127.0.0.1").as_deref(), Some("127.0.0.1"));
        assert_eq!(none.cache.lock().len(), 1);
        // Of several addresses none is named.
        let several = SendingAddresses { vary: VaryingFamilies { v4: true, v6: false }, ..sending(&["2001:db8::1"]) };
        assert_eq!(to(&several, "127.0.0.1"), None);
        assert_eq!(to(&several, "2001:db8::7").as_deref(), Some("2001:db8::1"));
    }
}
