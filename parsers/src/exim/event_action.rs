//! What Exim's event action tells of one host: `failed TIME ID HOST IP PORT DOMAIN TEXT`.
//!
//! Takes: the text behind `failed `, without its line end. Gives: an attempt that failed at one MX host, with what the log
//! leaves out: where the next host takes the mail, Exim (4.94 to 4.100) logs nothing of the first.
//! TIME is Exim's own `$tod_epoch`, so that lines and requests are of one clock. TEXT is the message that Exim would log.
//! Limits: [`MAX_NAME_BYTES`] bytes a name, [`MAX_TIME`].
//! When it fails: `None`. Not here: how it is kept from being counted twice (`counting::session::exim`).

use core::net::IpAddr;
use core::str;

use super::tls::parse_problem;
use crate::event::exim::EventAction;

/// Reads the text behind `failed `.
pub fn parse_event_action(text: &[u8]) -> Option<EventAction<'_>> {
    let text = str::from_utf8(text).ok()?;
    let mut words = text.splitn(7, ' ');
    let mut word = || words.next().filter(|word| !word.is_empty());
    let (time, id, host, ip, port, domain) = (word()?, word()?, word()?, word()?, word()?, word()?);
    let problem = parse_problem(words.next().unwrap_or_default().as_bytes());
    let id_fits = (16..=23).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    port.parse::<u16>().ok()?;
    (id_fits && host.len() <= MAX_NAME_BYTES && domain.len() <= MAX_NAME_BYTES).then_some(())?;
    let time = time.parse().ok().filter(|time| (0..=MAX_TIME).contains(time))?;
    Some(EventAction { time, id, host, ip: ip.parse::<IpAddr>().ok()?, domain, problem })
}

/// Longest name, in bytes: 255 of DNS, and room for a UTF-8 form.
const MAX_NAME_BYTES: usize = 512;

/// The year 9999: a time behind it is none.
const MAX_TIME: i64 = 253_402_300_799;

#[cfg(test)]
mod tests {
    use super::*;

    const FRONT: &str = "1795311595 1xUwYd-0005p2-2C MX1.a.test 192.0.2.1 25 a.test ";

    #[test]
    fn reads_what_the_example_tells() {
        let text = format!("{FRONT}TLS session: (certificate verification failed)");
        let event = parse_event_action(text.as_bytes()).unwrap();
        assert_eq!((event.host, event.domain, event.time), ("MX1.a.test", "a.test", 1_795_311_595));
        assert_eq!(event.problem, parse_problem(b"TLS session: (certificate verification failed)"));
        assert!(event.problem.is_session_failure());
        let other = format!("{FRONT}SMTP timeout after initial connection");
        assert!(!parse_event_action(other.as_bytes()).unwrap().problem.is_session_failure());
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
            assert_eq!(parse_event_action(text.as_bytes()), None, "{text}");
        }
    }
}
