//! Reads what became of a recipient from the lines of every daemon of Postfix that logs it: `QID: to=<…>, …, status=…`,
//! and qmgr(8)'s `QID: from=<…>, status=expired, returned to sender`.
//!
//! Takes: a line behind its prefix. Gives: a [`DeliveryStatus`], or nothing.
//! When it fails: nothing; the daemons whose lines are counted have readers that say so (`delivery`, `queue`).

use memchr::memchr;

use super::{delivery, queue};
use crate::delivery_status::{DeliveryResult, DeliveryStatus};
use crate::syslog::{self, SyslogLine};

/// The daemons that log what became of a recipient: the delivery agents, cleanup(8) for a message that it does not take,
/// qmgr(8) for one that is too old.
const DAEMONS: [&[u8]; 10] =
    [b"smtp", b"lmtp", b"error", b"local", b"virtual", b"pipe", b"discard", b"cleanup", b"qmgr", b"oqmgr"];

pub(super) fn parse<'a>(line: &SyslogLine<'a>) -> Option<DeliveryStatus<'a>> {
    let slash = line.ident.iter().rposition(|b| *b == b'/').filter(|slash| *slash > 0)?;
    line.ident.get(slash + 1..).filter(|daemon| DAEMONS.contains(daemon))?;
    let (_, text) = line.pid_and_text()?;
    let (queue_id, text) = queue::split_queue_id(syslog::unwrap_repeated(text)).ok()??;
    let (result, reason) = match text.strip_prefix(b"to=<") {
        Some(text) => recipient_result(text)?,
        None => (DeliveryResult::Bounced, given_up_reason(text)?),
    };
    Some(DeliveryStatus { queue_id, result, reason })
}

fn recipient_result(text: &[u8]) -> Option<(DeliveryResult, &[u8])> {
    let (status, reason) = delivery::status_and_reason(delivery::status_of(text)?)?;
    let result = match status {
        b"sent" => DeliveryResult::Delivered,
        // bounce(8) with `soft_bounce = yes`.
        b"deferred" | b"SOFTBOUNCE" => DeliveryResult::Deferred,
        b"bounced" => DeliveryResult::Bounced,
        _ => return None,
    };
    Some((result, reason))
}

/// `from=<…>, status=expired, returned to sender`, since 3.5 also `status=force-expired`: read from the end, for the sender's
/// address is a stranger's text.
fn given_up_reason(text: &[u8]) -> Option<&[u8]> {
    let rest = text.strip_prefix(b"from=<")?.strip_suffix(b", returned to sender")?;
    let status = rest.iter().rposition(|b| *b == b'=')?;
    let reason = rest.get(status + 1..)?;
    let is_word = memchr(b',', reason).is_none() && rest.get(..status)?.ends_with(b">, status");
    is_word.then_some(reason)
}

#[cfg(test)]
mod tests {
    use crate::delivery_status::{DeliveryResult, DeliveryStatus};
    use crate::{Dialect, parse_delivery_status};

    fn read(line: &str) -> Option<(&str, DeliveryResult, &str)> {
        let DeliveryStatus { queue_id, result, reason } = parse_delivery_status(Dialect::Postfix, line.as_bytes())?;
        Some((str::from_utf8(queue_id).expect("UTF-8"), result, str::from_utf8(reason).expect("UTF-8")))
    }

    #[test]
    fn reads_the_lines_of_every_delivery_agent() {
        use DeliveryResult::{Bounced, Deferred, Delivered};
        for (daemon, text, result, reason) in [
            (
                "smtp",
                "to=<r@x.test>, relay=mx.x.test[192.0.2.1]:25, delay=0.1, delays=0/0/0/0.1, dsn=2.0.0, status=sent (250 2.0.0 Ok: \
                 queued as 4Xyz)",
                Delivered,
                "250 2.0.0 Ok: queued as 4Xyz",
            ),
            (
                "smtp",
                "to=<r@x.test>, relay=none, delay=30, delays=0/0/30/0, dsn=4.4.1, status=deferred (connect to \
                 mx.x.test[192.0.2.1]:25: Connection timed out)",
                Deferred,
                "connect to mx.x.test[192.0.2.1]:25: Connection timed out",
            ),
            (
                "relay/smtp",
                "to=<r@x.test>, orig_to=<q@y.test>, relay=mx.x.test[192.0.2.1]:25, conn_use=2, delay=0.1, delays=0/0/0/0.1, \
                 tls=may, dsn=5.1.1, status=bounced (host mx.x.test[192.0.2.1] said: 550 5.1.1 <r@x.test>: no such user (in \
                 reply to RCPT TO command))",
                Bounced,
                "host mx.x.test[192.0.2.1] said: 550 5.1.1 <r@x.test>: no such user (in reply to RCPT TO command)",
            ),
            (
                "error",
                "to=<r@x.test>, relay=none, delay=1, delays=1/0/0/0, dsn=4.4.1, status=deferred (delivery temporarily suspended: \
                 connect to mx.x.test[192.0.2.1]:25: Connection timed out)",
                Deferred,
                "delivery temporarily suspended: connect to mx.x.test[192.0.2.1]:25: Connection timed out",
            ),
            (
                "local",
                "to=<r@x.test>, relay=local, delay=0, delays=0/0/0/0, dsn=5.1.1, status=bounced (unknown user: \"r\")",
                Bounced,
                "unknown user: \"r\"",
            ),
            (
                "lmtp",
                "to=<r@x.test>, relay=x.test[private/dovecot-lmtp], delay=0, delays=0/0/0/0, dsn=5.2.2, status=SOFTBOUNCE (over \
                 quota)",
                Deferred,
                "over quota",
            ),
            ("qmgr", "from=<b@sender.test>, status=expired, returned to sender", Bounced, "expired"),
            (
                "qmgr",
                "from=<\"a>, status=x\"@sender.test>, status=force-expired, returned to sender",
                Bounced,
                "force-expired",
            ),
        ] {
            for prefix in ["Nov 23 00:05:00 mta postfix/", "2026-11-23T00:05:00.123456+00:00 mta postfix-out/"] {
                let line = format!("{prefix}{daemon}[77]: 4jXBhc1f2vz1WkvY: {text}");
                assert_eq!(read(&line), Some(("4jXBhc1f2vz1WkvY", result, reason)), "{line}");
            }
        }
    }

    #[test]
    fn other_lines_say_nothing_of_a_recipient() {
        for text in [
            "postfix/qmgr[1]: 0123456789A: from=<a@sender.test>, size=1, nrcpt=1 (queue active)",
            "postfix/qmgr[1]: 0123456789A: removed",
            "postfix/smtp[1]: 0123456789A: to=<r@x.test>, relay=none, delay=0, delays=0/0/0/0, dsn=4.0.0, status=deferred",
            "postfix/smtp[1]: 0123456789A: to=<r@x.test>, relay=none, delay=0, delays=0/0/0/0, dsn=2.1.5, status=deliverable (x)",
            "postfix/smtp[1]: 0123456789A: host mx.x.test[192.0.2.1] said: 450 4.2.0 busy (in reply to RCPT TO command)",
            "postfix/smtpd[1]: 0123456789A: to=<r@x.test>, relay=none, delay=0, delays=0/0/0/0, dsn=5.0.0, status=bounced (x)",
            "postfix[1]: 0123456789A: to=<r@x.test>, relay=none, delay=0, delays=0/0/0/0, dsn=5.0.0, status=bounced (x)",
            "other/smtpx[1]: 0123456789A: to=<r@x.test>, relay=none, delay=0, delays=0/0/0/0, dsn=5.0.0, status=bounced (x)",
            // The sender chose its address.
            "postfix/qmgr[1]: 0123456789A: from=<a>, status=expired, returned to sender>, size=1, nrcpt=1 (queue active)",
        ] {
            assert_eq!(read(&format!("Nov 23 00:05:00 mta {text}")), None, "{text}");
        }
    }
}
