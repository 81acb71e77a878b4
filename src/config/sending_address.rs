//! The addresses that Postfix sends from, where its settings bind smtp(8) to one.
//!
//! Takes: the output of `postconf` for [`PARAMETERS`], and that of `postconf -P` for the services of master.cf. Gives: of each
//! family the address, or that there are several.
//! postconf(5): `smtp_bind_address`, `smtp_bind_address6`, of main.cf or of a service (`-o`); without them `inet_interfaces`,
//! where it has one address of the family, and not that of the loopback. The service `smtp` delivers to other hosts unless
//! told otherwise; where another service has another address, no line of the log tells which one a session had.
//! When it fails: a value that is no address, such as a name, counts as several.
//! Not here: asking `postconf` (`detect`), the address that the kernel chooses (`counting::rules`).

use std::net::IpAddr;

use crate::config::VaryingFamilies;
use crate::config::postconf_output::parameter;

/// What is asked of `postconf`, by family.
pub(super) const PARAMETERS: [&str; 3] = ["smtp_bind_address", "smtp_bind_address6", "inet_interfaces"];

/// The addresses that smtp(8) is bound to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct BoundAddresses {
    /// At most one of each family.
    pub(super) addresses: Vec<IpAddr>,
    /// The families of which there are several.
    pub(super) vary: VaryingFamilies,
}

impl BoundAddresses {
    /// What two instances have in common: of each family, the address that both send from.
    pub(super) fn common(self, other: BoundAddresses) -> BoundAddresses {
        let of = |found: &BoundAddresses, is_ours: fn(&IpAddr) -> bool| found.addresses.iter().copied().find(is_ours);
        let v4 = (of(&self, IpAddr::is_ipv4), of(&other, IpAddr::is_ipv4));
        let v6 = (of(&self, IpAddr::is_ipv6), of(&other, IpAddr::is_ipv6));
        let vary = VaryingFamilies {
            v4: self.vary.v4 || other.vary.v4 || v4.0 != v4.1,
            v6: self.vary.v6 || other.vary.v6 || v6.0 != v6.1,
        };
        let same = [(v4.0, vary.v4), (v6.0, vary.v6)];
        let addresses = same.into_iter().filter(|(_, varies)| !varies).filter_map(|(address, _)| address).collect();
        BoundAddresses { addresses, vary }
    }
}

/// What the settings of main.cf (`main`) and of its services (`services`) come to.
pub(super) fn bound_addresses(main: &str, services: &str) -> BoundAddresses {
    let v4 = of_family(main, services, PARAMETERS[0], IpAddr::is_ipv4);
    let v6 = of_family(main, services, PARAMETERS[1], IpAddr::is_ipv6);
    let vary = VaryingFamilies { v4: v4.is_err(), v6: v6.is_err() };
    BoundAddresses { addresses: [v4, v6].into_iter().filter_map(|found| found.ok().flatten()).collect(), vary }
}

/// There are several addresses of a family, or one that is not known.
struct Varies;

fn of_family(main: &str, services: &str, name: &str, is_ours: fn(&IpAddr) -> bool) -> Result<Option<IpAddr>, Varies> {
    let set = |value: &str| match value {
        "" => Ok(None),
        value => address(value).filter(is_ours).map(Some).ok_or(Varies),
    };
    let mut chosen = set(parameter(main, name).unwrap_or_default())?.or_else(|| of_interfaces(main, is_ours));
    let of_services: Vec<(&str, &str)> = services.lines().filter_map(|line| of_service(line, name)).collect();
    if let Some((_, value)) = of_services.iter().find(|(service, _)| *service == "smtp/unix") {
        chosen = set(value)?;
    }
    for (_, value) in of_services {
        if set(value)? != chosen {
            return Err(Varies);
        }
    }
    Ok(chosen)
}

/// `SERVICE/TYPE/PARAMETER = VALUE` of `postconf -P`: the service and the value, of one parameter.
fn of_service<'a>(line: &'a str, name: &str) -> Option<(&'a str, &'a str)> {
    let (key, value) = line.split_once('=')?;
    let (service, parameter) = key.trim().rsplit_once('/')?;
    (parameter == name).then_some((service, value.trim()))
}

/// The one address of a family in `inet_interfaces` (smtp_connect.c: a virtual host sends from its own address).
fn of_interfaces(main: &str, is_ours: fn(&IpAddr) -> bool) -> Option<IpAddr> {
    let words = parameter(main, "inet_interfaces")?.split([',', ' ', '\t']).filter(|word| !word.is_empty());
    let all: Vec<IpAddr> = words.map(address).collect::<Option<_>>()?;
    let mut ours = all.into_iter().filter(is_ours);
    let one = ours.next().filter(|address| !address.is_loopback() && !address.is_unspecified());
    one.filter(|_| ours.next().is_none())
}

fn address(word: &str) -> Option<IpAddr> {
    word.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(word).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_that_the_settings_bind_to() {
        let v4: IpAddr = "192.0.2.11".parse().unwrap();
        let v6: IpAddr = "2001:db8::11".parse().unwrap();
        let varies = |v4, v6| VaryingFamilies { v4, v6 };
        for (main, services, addresses, vary) in [
            ("smtp_bind_address =\nsmtp_bind_address6 =\ninet_interfaces = all\n", "", vec![], varies(false, false)),
            ("smtp_bind_address = 192.0.2.11\n", "", vec![v4], varies(false, false)),
            (
                "smtp_bind_address = 192.0.2.11\nsmtp_bind_address6 = [2001:db8::11]\n",
                "relay/unix/syslog_name = postfix/x\n",
                vec![v4, v6],
                varies(false, false),
            ),
            ("inet_interfaces = 192.0.2.11\n", "", vec![v4], varies(false, false)),
            ("inet_interfaces = 192.0.2.11, [2001:db8::11]\n", "", vec![v4, v6], varies(false, false)),
            ("inet_interfaces = 192.0.2.11 192.0.2.12\n", "", vec![], varies(false, false)),
            ("inet_interfaces = 127.0.0.1, localhost\n", "", vec![], varies(false, false)),
            ("inet_interfaces = loopback-only\n", "", vec![], varies(false, false)),
            // The service that sends, and others.
            ("smtp_bind_address =\n", "smtp/unix/smtp_bind_address = 192.0.2.11\n", vec![v4], varies(false, false)),
            (
                "smtp_bind_address = 192.0.2.9\n",
                "smtp/unix/smtp_bind_address = 192.0.2.11\nrelay/unix/smtp_bind_address = 192.0.2.11\n",
                vec![v4],
                varies(false, false),
            ),
            ("smtp_bind_address =\n", "out1/unix/smtp_bind_address = 192.0.2.11\n", vec![], varies(true, false)),
            (
                "smtp_bind_address = 192.0.2.11\n",
                "out1/unix/smtp_bind_address = 192.0.2.12\nout1/unix/smtp_bind_address6 = 2001:db8::11\n",
                vec![],
                varies(true, true),
            ),
            ("smtp_bind_address = mail.example\n", "", vec![], varies(true, false)),
            ("smtp_bind_address = 192.0.2.11\n", "smtp/unix/smtp_bind_address = $own\n", vec![], varies(true, false)),
        ] {
            assert_eq!(bound_addresses(main, services), BoundAddresses { addresses, vary }, "{main}{services}");
        }
    }

    #[test]
    fn instances_that_send_from_several_addresses_have_none_in_common() {
        let (a, b) = ("smtp_bind_address = 192.0.2.1\n", "smtp_bind_address = 192.0.2.2\n");
        for (one, other, addresses, varies) in [
            (a, a, vec!["192.0.2.1".parse::<IpAddr>().unwrap()], false),
            (a, b, vec![], true),
            (a, "", vec![], true),
            ("", "", vec![], false),
        ] {
            let found = bound_addresses(one, "").common(bound_addresses(other, ""));
            let vary = VaryingFamilies { v4: varies, v6: false };
            assert_eq!(found, BoundAddresses { addresses, vary }, "{one}{other}");
        }
    }
}
