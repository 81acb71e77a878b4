//! What the configuration says of sessions: which count, under which next hop, sent from which address.
//!
//! Takes: `[count]`, `[[nexthop]]` and `[postfix] tlsrpt`. Gives: answers about single sessions.
//! Limits: [`MAX_SOURCES`] destinations whose source address is remembered, for [`REMEMBERED`].
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
use crate::config::{Config, InputKind, NativeTlsrpt, NextHopSection};
use crate::counting::session::datagram::ReportedSession;

/// Destinations whose source address is remembered; when full, all are forgotten: asking again costs microseconds.
const MAX_SOURCES: usize = 10_000;

/// How long a source address is remembered: routes change.
const REMEMBERED: Duration = Duration::from_secs(600);

/// Destinations that datagrams tell of; beyond, those of the last hour are kept.
const MAX_NATIVE: usize = 100_000;

/// How long one is known after its last datagram, in seconds.
const NATIVE_MEMORY: i64 = 86_400;

/// The port that a route is asked for; nothing is sent there.
const SMTP: u16 = 25;

/// What the configuration says of sessions.
#[derive(Debug)]
pub struct Rules {
    /// Which of Postfix's own results count.
    pub tlsrpt: NativeTlsrpt,
    /// Whether there is a log beside the datagrams.
    pub logs: bool,
    local: Vec<IpNet>,
    next_hops: NextHops,
    sending: Option<Sending>,
    /// The destinations that datagrams tell of.
    native: Mutex<HashMap<Arc<str>, Native>>,
}

#[derive(Debug)]
struct Native {
    /// When the last one came.
    last: i64,
    /// The MTA-STS policy in testing mode that it named: no log says it.
    tested: Option<Arc<Policy>>,
}

impl Default for Rules {
    /// Without a configuration, as for another host's log: every host is of the world, no sending address.
    fn default() -> Rules {
        Rules {
            tlsrpt: NativeTlsrpt::Log,
            logs: true,
            local: Vec::new(),
            next_hops: NextHops::default(),
            sending: None,
            native: Mutex::default(),
        }
    }
}

impl Rules {
    /// Those of a checked configuration.
    pub fn of(config: &Config) -> Rules {
        // In a closed network the world has such addresses.
        let world_is_private = config.closed_network.private_addresses;
        Rules {
            tlsrpt: config.postfix.tlsrpt,
            logs: config.inputs.iter().any(|i| !matches!(i.kind(), None | Some(InputKind::Datagrams(_)))),
            local: if world_is_private { Vec::new() } else { config.count.local_networks.clone() },
            next_hops: NextHops::of(&config.next_hops),
            sending: Some(Sending {
                configured: config.count.sending_addresses.clone(),
                found: Mutex::new(HashMap::new()),
            }),
            native: Mutex::default(),
        }
    }

    /// Notes that datagrams tell of a destination, the last one received at `at`, and whether its policy is in testing mode.
    pub fn note_reported(&self, session: &ReportedSession, at: i64) {
        let mut native = self.native.lock();
        if native.len() >= MAX_NATIVE && !native.contains_key(&session.domain) {
            native.retain(|_, known| at - known.last < NATIVE_MEMORY / 24);
            if native.len() >= MAX_NATIVE {
                return;
            }
        }
        let tested = session.testing.then(|| Arc::clone(&session.policy));
        native.insert(Arc::clone(&session.domain), Native { last: at, tested });
    }

    /// Whether a session in the log is one that Postfix's own datagrams count: the log says so itself, or, where it never
    /// shows what Postfix reports, there are datagrams of that destination.
    pub fn is_native(&self, outcome: &SessionOutcome) -> bool {
        let known = || {
            let native = self.native.lock();
            native.get(&outcome.domain).is_some_and(|known| (outcome.ended - known.last).abs() < NATIVE_MEMORY)
        };
        outcome.reported.unwrap_or_else(known)
    }

    /// The policy in force for a session that began at `at`: our own decision, or, where we were not asked, a policy in
    /// testing mode that datagrams tell of.
    pub fn in_force(&self, decided: Option<PolicyInForce>, domain: &str, at: i64) -> Option<PolicyInForce> {
        if decided.is_some() || self.tlsrpt != NativeTlsrpt::Datagrams {
            return decided;
        }
        let native = self.native.lock();
        let known = native.get(domain).filter(|known| (at - known.last).abs() < NATIVE_MEMORY)?;
        let policy = known.tested.as_ref()?;
        Some(PolicyInForce::Sts { mode: Mode::Testing, policy: Arc::clone(policy), failure: None })
    }

    /// Whether a host is not of the world: its sessions do not count.
    pub fn is_local(&self, host: IpAddr) -> bool {
        let host = host.to_canonical();
        self.local.iter().any(|network| network.contains(&host))
    }

    /// The policy domain of the next hop of a recipient domain, where that is another.
    pub fn next_hop(&self, recipient_domain: &str) -> Option<&str> {
        self.next_hops.of_domain(recipient_domain)
    }

    /// The address that mail to a host is sent from, as far as it is known.
    pub fn sending_address(&self, host: IpAddr) -> Option<IpAddr> {
        self.sending.as_ref()?.to(host)
    }
}

/// `[[nexthop]]`.
#[derive(Debug, Default)]
struct NextHops {
    exact: HashMap<String, String>,
    /// Without the dot in front.
    below: HashMap<String, String>,
    all: Option<String>,
}

impl NextHops {
    fn of(rules: &[NextHopSection]) -> NextHops {
        let mut hops = NextHops::default();
        for rule in rules {
            let Some(hop) = NextHop::parse(rule.nexthop.as_bytes()) else { continue };
            let policy_domain = hop.domain;
            match rule.domain.strip_prefix('.') {
                _ if rule.domain == "*" => hops.all = Some(policy_domain),
                Some(parent) => drop(domain_name::normalize(parent).map(|name| hops.below.insert(name, policy_domain))),
                None => drop(domain_name::normalize(&rule.domain).map(|name| hops.exact.insert(name, policy_domain))),
            }
        }
        hops
    }

    /// The nearest rule: the domain itself, what it is below, all.
    fn of_domain(&self, domain: &str) -> Option<&str> {
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
struct Sending {
    configured: Vec<IpAddr>,
    found: Mutex<HashMap<IpAddr, (Instant, Option<IpAddr>)>>,
}

impl Sending {
    fn to(&self, host: IpAddr) -> Option<IpAddr> {
        if let Some(configured) = self.configured.iter().find(|address| address.is_ipv4() == host.is_ipv4()) {
            return Some(*configured);
        }
        let mut found = self.found.lock();
        if let Some((when, address)) = found.get(&host)
            && when.elapsed() < REMEMBERED
        {
            return *address;
        }
        if found.len() >= MAX_SOURCES {
            found.clear();
        }
        let address = source_address(host);
        found.insert(host, (Instant::now(), address));
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
    socket.connect(SocketAddr::new(host, SMTP)).ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_unspecified()).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::default_local_networks;

    #[test]
    fn the_nearest_next_hop_counts() {
        let rule = |domain: &str, nexthop: &str| NextHopSection { domain: domain.into(), nexthop: nexthop.into() };
        let hops = NextHops::of(&[
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
            assert_eq!(hops.of_domain(domain), Some(want), "{domain}");
        }
        assert_eq!(NextHops::default().of_domain("a.test"), None);
    }

    #[test]
    fn loopback_and_private_hosts_are_not_the_world() {
        let rules = Rules { local: default_local_networks(), ..Rules::default() };
        for local in ["127.0.0.1", "::1", "10.1.2.3", "192.168.1.1", "172.31.0.1", "fd00::1", "::ffff:127.0.0.1"] {
            assert!(rules.is_local(local.parse().unwrap()), "{local}");
        }
        for world in ["203.0.113.5", "172.32.0.1", "2001:db8::1", "9.9.9.9"] {
            assert!(!rules.is_local(world.parse().unwrap()), "{world}");
        }
    }

    #[test]
    fn the_sending_address_is_configured_or_the_kernels() {
        let sending = |configured: &[&str]| Sending {
            configured: configured.iter().map(|a| a.parse().unwrap()).collect(),
            found: Mutex::new(HashMap::new()),
        };
        let to = |sending: &Sending, host: &str| sending.to(host.parse().unwrap()).map(|a| a.to_string());
        let both = sending(&["192.0.2.1", "2001:db8::1"]);
        assert_eq!(to(&both, "203.0.113.1").as_deref(), Some("192.0.2.1"));
        assert_eq!(to(&both, "2001:db8::7").as_deref(), Some("2001:db8::1"));
        let none = sending(&[]);
        assert_eq!(to(&none, "127.0.0.1").as_deref(), Some("127.0.0.1"));
        assert_eq!(none.found.lock().len(), 1);
    }
}
