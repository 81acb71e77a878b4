//! The addresses of an HTTPS server.
//!
//! Takes: a host name. Gives: the addresses to connect to, as our resolver finds them, or the one of a closed network.
//! Limits: private, loopback and link-local addresses are left out unless the configuration allows them: strangers
//! must not make us ask hosts of our own network.
//! When it fails: an [`HttpsError`] about the address.
//! Not here: which of them is used (`race`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::base::requester::Requester;
use crate::net::dns::{DnsError, Resolver};
use crate::net::https::error::HttpsError;

/// Looks up addresses with our resolver.
#[derive(Clone)]
pub(super) struct AddressLookup {
    pub(super) resolver: Resolver,
    pub(super) fixed_address: Option<SocketAddr>,
    pub(super) allow_private: bool,
}

impl AddressLookup {
    /// The addresses of a host, for this port unless one is fixed.
    pub(super) async fn look_up(
        &self,
        host: &str,
        port: u16,
        requester: Requester,
    ) -> Result<Vec<SocketAddr>, HttpsError> {
        if let Some(address) = self.fixed_address {
            return Ok(vec![address]);
        }
        let found = self.resolver.for_requester(requester).addresses_to_connect(host).await;
        let found = found.map_err(|error| match error {
            DnsError::Failed(failure) if failure.is_local() => HttpsError::CannotConnect(failure.to_string()),
            error => HttpsError::NoAddress(error.to_string()),
        });
        let found = found?.records;
        let (public, other): (Vec<IpAddr>, _) = found.into_iter().partition(|ip| self.allow_private || is_public(*ip));
        match other.first() {
            Some(ip) if public.is_empty() => Err(HttpsError::PrivateAddress(*ip)),
            _ => Ok(public.into_iter().map(|ip| SocketAddr::new(ip, port)).collect()),
        }
    }
}

/// Whether an address can be that of a server on the Internet.
pub fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => match embedded_v4(ip) {
            Some(v4) => is_public_v4(v4),
            // Global unicast is 2000::/3 (RFC 4291 §2.4); 2001:db8::/32 is documentation.
            None => ip.segments()[0] & 0xe000 == 0x2000 && (ip.segments()[0], ip.segments()[1]) != (0x2001, 0xdb8),
        },
    }
}

/// The IPv4 address inside a mapped, NAT64 or 6to4 address.
fn embedded_v4(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let s = ip.segments();
    let join = |a: u16, b: u16| Ipv4Addr::from((u32::from(a) << 16) | u32::from(b));
    match s {
        [0x64, 0xff9b, 0, 0, 0, 0, a, b] | [0x2002, a, b, ..] => Some(join(a, b)),
        _ => ip.to_ipv4_mapped(),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, ..] = ip.octets();
    // Shared address space, RFC 6598; benchmarking, RFC 2544; reserved and multicast, RFC 1112.
    let other = (a == 100 && (64..128).contains(&b)) || (a == 198 && (b == 18 || b == 19)) || a >= 224 || a == 0;
    !(ip.is_private() || ip.is_loopback() || ip.is_link_local() || ip.is_documentation() || other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_query_that_this_host_cannot_send_says_nothing_of_the_server() {
        // A socket must be allowed to send to the broadcast address.
        let resolver = Resolver::with_servers(["255.255.255.255:53".parse().unwrap()], false);
        let lookup = AddressLookup { resolver, fixed_address: None, allow_private: false };
        let error = lookup.look_up("mta-sts.a.test", 443, Requester::Daemon).await.unwrap_err();
        assert!(matches!(error, HttpsError::CannotConnect(_)) && error.is_own_fault(), "{error:?}");
    }

    #[test]
    fn only_public_addresses() {
        for no in [
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "127.0.0.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "198.18.0.1",
            "192.0.2.1",
            "::1",
            "::",
            "fe80::1",
            "fc00::1",
            "ff02::1",
            "::ffff:10.0.0.1",
            "64:ff9b::a00:1",
            "2002:a00:1::",
            "2001:db8::1",
            "::10.0.0.1",
        ] {
            assert!(!is_public(no.parse().unwrap()), "{no}");
        }
        for yes in ["9.9.9.9", "172.32.0.1", "100.128.0.1", "2620:fe::fe", "64:ff9b::909:909", "::ffff:9.9.9.9"] {
            assert!(is_public(yes.parse().unwrap()), "{yes}");
        }
    }
}
