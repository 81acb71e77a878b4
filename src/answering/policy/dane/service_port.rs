//! The port of a next hop: a TLSA record is at `_PORT._tcp.HOST` (RFC 6698 §3), and an MTA may name the service instead.
//!
//! Takes: the port of a next hop. Gives: its number, by services(5) where it is the name of a service that is not known
//! by itself (`base::next_hop`).
//! Limits: [`MAX_FILE`] bytes of the file.
//! When it fails: the TLSA records of that service cannot be asked for, which counts as a look-up that failed.
//! Not here: anything about MTA-STS, which applies whatever the port (RFC 8461 §3.4).

use tokio::io::AsyncReadExt;

use crate::base::next_hop::Port;

/// Where the host keeps the names of services (services(5)).
const FILE: &str = "/etc/services";

/// How much of it is read, in bytes: IANA's whole list has 1 MB.
const MAX_FILE: u64 = 2 * 1024 * 1024;

/// The number of a port; else why it is not known.
pub(crate) async fn port_number(port: &Port) -> Result<u16, String> {
    let name = match port {
        Port::Number(number) => return Ok(*number),
        Port::Service(name) => name,
    };
    let mut text = Vec::new();
    let file = tokio::fs::File::open(FILE).await.map_err(|e| format!("service {name}: {FILE}: {e}"))?;
    file.take(MAX_FILE).read_to_end(&mut text).await.map_err(|e| format!("service {name}: {FILE}: {e}"))?;
    find_port(&String::from_utf8_lossy(&text), name).ok_or_else(|| format!("service {name}: not in {FILE}"))
}

/// The TCP port of a service by its name or one of its aliases: `NAME PORT/tcp ALIAS...  # comment`.
fn find_port(services: &str, name: &str) -> Option<u16> {
    services.lines().find_map(|line| {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let (official, port) = (words.next()?, words.next()?);
        let number = port.strip_suffix("/tcp")?.parse().ok().filter(|number| *number > 0)?;
        (official == name || words.any(|alias| alias == name)).then_some(number)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICES: &str = "# Network services\n\
        tcpmux\t\t1/tcp\t\t\t\t# TCP port service multiplexer\n\
        smtp\t\t25/tcp\t\tmail\n\
        backup-mx\t2525/udp\n\
        backup-mx\t2526/tcp\tspare other # not-an-alias\n\
        broken\n\
        zero\t0/tcp\n\
        large\t65536/tcp\n";

    #[test]
    fn a_service_is_found_by_its_name_and_its_aliases() {
        for (name, want) in [
            ("backup-mx", Some(2526)),
            ("spare", Some(2526)),
            ("other", Some(2526)),
            ("mail", Some(25)),
            ("Backup-MX", None),
            ("not-an-alias", None),
            ("broken", None),
            ("zero", None),
            ("large", None),
            ("absent", None),
            ("#", None),
        ] {
            assert_eq!(find_port(SERVICES, name), want, "{name}");
        }
    }

    #[tokio::test]
    async fn a_number_needs_no_file_and_an_unknown_name_says_so() {
        assert_eq!(port_number(&Port::Number(2525)).await, Ok(2525));
        let error = port_number(&Port::Service("no-such-service".into())).await.unwrap_err();
        assert!(error.starts_with("service no-such-service: "), "{error}");
    }
}
