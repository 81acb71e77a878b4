//! What Exim's event action tells of one host: `failed TIME ID HOST IP PORT DOMAIN TEXT`.
//!
//! Takes: a request on the readsocket, without its line end. Gives: a TLS session that failed at one MX host, with what the
//! log leaves out: where the next host takes the mail, Exim (4.94 to 4.100) logs nothing of the first.
//! TIME is Exim's own `$tod_epoch`, so that lines and requests are of one clock. TEXT is the message that Exim would log.
//! When it fails: `None`. Not here: how it is kept from being counted twice (`session::exim`).

use std::net::IpAddr;
use std::str;

use tlswarden_parsers::event::exim::Problem;

use crate::counting::session::exim::Cause;

/// A failed session, as Exim told it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// When, in seconds since 1970-01-01T00:00:00Z.
    pub(super) time: i64,
    /// The message.
    pub(super) id: String,
    /// The MX host, in lower case.
    pub(super) host: String,
    /// Its address.
    pub(super) ip: IpAddr,
    /// The recipient domain.
    pub(super) domain: String,
    /// Why; `None` where it is no session that failed.
    pub(super) why: Option<Cause>,
}

impl Told {
    /// Reads what stands behind `failed `.
    pub fn parse(text: &[u8]) -> Option<Told> {
        let text = str::from_utf8(text).ok()?;
        let mut words = text.splitn(7, ' ');
        let mut word = || words.next().filter(|word| !word.is_empty());
        let (time, id, host, ip, port, domain) = (word()?, word()?, word()?, word()?, word()?, word()?);
        let problem = Problem::of(words.next().unwrap_or_default().as_bytes());
        let id_fits = (16..=23).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        port.parse::<u16>().ok()?;
        (id_fits && host.len() <= MAX_NAME && domain.len() <= MAX_NAME).then_some(())?;
        Some(Told {
            time: time.parse().ok().filter(|time| (0..=MAX_TIME).contains(time))?,
            id: id.to_owned(),
            host: host.to_ascii_lowercase(),
            ip: ip.parse().ok()?,
            domain: domain.to_owned(),
            why: problem.fails_session().then(|| crate::counting::session::exim::why(problem, None, false)),
        })
    }
}

/// Longest name, in octets: 255 of DNS, and room for a UTF-8 form.
const MAX_NAME: usize = 512;

/// The year 9999: a time behind it is none.
const MAX_TIME: i64 = 253_402_300_799;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::tlsrpt::ResultType;

    const FRONT: &str = "1795311595 1xUwYd-0005p2-2C MX1.a.test 192.0.2.1 25 a.test ";

    #[test]
    fn reads_what_the_example_tells() {
        let text = format!("{FRONT}TLS session: (certificate verification failed)");
        let told = Told::parse(text.as_bytes()).unwrap();
        assert_eq!((told.host.as_str(), told.domain.as_str(), told.time), ("mx1.a.test", "a.test", 1_795_311_595));
        assert_eq!(told.why, Some((ResultType::CertificateHostMismatch, None)));
        let other = Told::parse(format!("{FRONT}SMTP timeout after initial connection").as_bytes()).unwrap();
        assert_eq!(other.why, None);
    }

    #[test]
    fn anything_else_is_none() {
        for text in [
            "",
            "x",
            "1795311595 1xUwYd-0005p2-2C mx1.a.test 192.0.2.1 25",
            "-1 1xUwYd-0005p2-2C mx1.a.test 192.0.2.1 25 a.test x",
            "1795311595 1xUwYd mx1.a.test 192.0.2.1 25 a.test x",
            "1795311595 1xUwYd-0005p2-2C mx1.a.test nowhere 25 a.test x",
            "1795311595 1xUwYd-0005p2-2C mx1.a.test 192.0.2.1 99999 a.test x",
            "1795311595 1xUwYd-0005p2-2C  192.0.2.1 25 a.test x",
        ] {
            assert_eq!(Told::parse(text.as_bytes()), None, "{text}");
        }
    }
}
