//! What people are told of the resolver: what it said when it was last asked, and what speaks against believing it.
//!
//! Takes: the addresses of the servers, whether they are believed, the last probe. Gives: a [`ResolverStatus`], one line
//! long when it is displayed; a warning for a resolver whose word on DNSSEC is worth little.
//! When it fails: a resolver that was never asked is said to be unknown, neither good nor bad.
//! Not here: asking (`Resolver`).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

/// systemd-resolved's stub (systemd-resolved.service(8)).
const SYSTEMD_STUBS: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53)), IpAddr::V4(Ipv4Addr::new(127, 0, 0, 54))];

/// The resolver that Docker puts into its containers.
const DOCKER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 11));

/// What is said of nameservers that resolv.conf names, none of them on loopback.
pub const NOT_BELIEVED: &str = "not on this host, so that its AD bit is not believed: no DANE";

/// How the resolver stands, as its last probe showed: a query for the NS records of the root, which are signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ResolverStatus {
    /// Its servers, in the order in which they are asked.
    pub servers: Vec<SocketAddr>,
    /// Whether its AD bit is believed.
    pub trusted: bool,
    /// How long ago the probe was, in seconds; nothing if there was none.
    pub probed_seconds_ago: Option<u64>,
    /// How long ago it last answered anything; nothing if it never did.
    pub answered_seconds_ago: Option<u64>,
    /// Whether it validates: believed, and the root was signed.
    pub validates: bool,
    /// Whether it answered a query with EDNS, which DNSSEC needs.
    pub edns: bool,
    /// Whether it refused a name whose signatures are broken on purpose; nothing where that is not known.
    pub refuses_bogus: Option<bool>,
    /// Why it did not answer the probe.
    pub failure: Option<String>,
    /// What speaks against believing it, by its address.
    pub warning: Option<String>,
}

impl ResolverStatus {
    /// What is wrong with it as far as DNSSEC goes, in one sentence; nothing where it validates, and where it is not
    /// known.
    pub fn problem(&self) -> Option<&'static str> {
        match self {
            ResolverStatus { failure: Some(_), .. } | ResolverStatus { probed_seconds_ago: None, .. } => None,
            ResolverStatus { trusted: false, .. } => Some(NOT_BELIEVED),
            ResolverStatus { edns: false, validates: false, .. } => Some(
                "answers queries without EDNS only, so that nothing is validated: DANE is not known, mail is deferred",
            ),
            ResolverStatus { validates: false, .. } => {
                Some("does not validate, for it does not set the AD bit for the root, which is signed: no DANE")
            }
            ResolverStatus { refuses_bogus: Some(false), .. } => {
                Some("accepts a name whose signatures are broken: DANE is as safe as if nobody validated")
            }
            _ => None,
        }
    }
}

impl ResolverStatus {
    /// What to do so that the host has a resolver that validates; a line for the shell where there is one.
    pub fn fix(&self) -> &'static str {
        match self.servers.first().map(SocketAddr::ip) {
            Some(ip) if SYSTEMD_STUBS.contains(&ip) => {
                "resolved.conf: DNSSEC=yes, then systemctl restart systemd-resolved   # or: apt-get install unbound"
            }
            Some(DOCKER) => "tlswarden.toml: [resolver] address = \"…\", a resolver in the same network namespace",
            _ => "apt-get install unbound   # then `nameserver 127.0.0.1` and `options trust-ad` in /etc/resolv.conf",
        }
    }
}

impl fmt::Display for ResolverStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.servers.iter().map(ToString::to_string).collect();
        write!(f, "resolver {}: ", names.join(", "))?;
        let ago = |seconds: Option<u64>| seconds.map_or_else(|| "never".to_owned(), |s| format!("{s} s ago"));
        let Some(probed) = self.probed_seconds_ago else { return f.write_str("not asked yet") };
        match (&self.failure, self.problem()) {
            (Some(failure), _) => {
                write!(f, "no answer: {failure}")?;
            }
            (None, Some(problem)) => f.write_str(problem)?,
            (None, None) => {
                f.write_str("validates")?;
                if self.refuses_bogus == Some(true) {
                    f.write_str(", refuses broken signatures")?;
                }
            }
        }
        write!(f, " (last probe {probed} s ago, last answer {})", ago(self.answered_seconds_ago))
    }
}

/// What speaks against believing a resolver at this address, where it is believed.
pub(crate) fn placement_warning(server: SocketAddr) -> Option<&'static str> {
    match server.ip() {
        ip if SYSTEMD_STUBS.contains(&ip) => Some(
            "the stub of systemd-resolved, which passes on the AD bit of another resolver unless DNSSEC=yes is set in \
             resolved.conf",
        ),
        DOCKER => Some(
            "the resolver of Docker, which validates nothing and passes on the AD bit of another resolver: name one that \
             validates in [resolver] address",
        ),
        ip if !ip.is_loopback() => Some(
            "not on this host, and believed because [resolver] address names it: whoever changes packets on the way can \
             forge DANE",
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> ResolverStatus {
        ResolverStatus {
            servers: vec!["127.0.0.1:53".parse().unwrap()],
            trusted: true,
            probed_seconds_ago: Some(5),
            answered_seconds_ago: Some(3),
            validates: true,
            edns: true,
            refuses_bogus: Some(true),
            failure: None,
            warning: None,
        }
    }

    #[test]
    fn it_says_what_the_last_probe_showed() {
        let said = |change: fn(&mut ResolverStatus)| {
            let mut status = status();
            change(&mut status);
            let text = status.to_string();
            text.strip_prefix("resolver 127.0.0.1:53: ").unwrap().to_owned()
        };
        assert_eq!(said(|_| {}), "validates, refuses broken signatures (last probe 5 s ago, last answer 3 s ago)");
        assert_eq!(said(|s| s.refuses_bogus = None), "validates (last probe 5 s ago, last answer 3 s ago)");
        assert!(said(|s| s.refuses_bogus = Some(false)).starts_with("accepts a name whose signatures are broken"));
        assert!(said(|s| s.validates = false).starts_with("does not validate, "));
        assert!(said(|s| (s.validates, s.edns) = (false, false)).starts_with("answers queries without EDNS only"));
        assert!(said(|s| (s.trusted, s.validates) = (false, false)).starts_with("not on this host"));
        assert_eq!(
            said(|s| (s.failure, s.answered_seconds_ago) = (Some("silence".into()), None)),
            "no answer: silence (last probe 5 s ago, last answer never)"
        );
        assert_eq!(said(|s| s.probed_seconds_ago = None), "not asked yet");
    }

    #[test]
    fn a_resolver_whose_ad_bit_is_worth_little_is_named() {
        for (address, words) in [
            ("127.0.0.1:53", ""),
            ("[::1]:53", ""),
            ("127.0.0.53:53", "systemd-resolved"),
            ("127.0.0.11:53", "Docker"),
            ("9.9.9.9:53", "not on this host"),
            ("[2620:fe::fe]:53", "not on this host"),
        ] {
            let warning = placement_warning(address.parse().unwrap());
            assert_eq!(warning.is_some(), !words.is_empty(), "{address}");
            assert!(warning.unwrap_or_default().contains(words), "{address}: {warning:?}");
        }
    }
}
