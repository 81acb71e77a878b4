//! Reads what became of a recipient: `=>`, `->`, `>>`, `==` and `**`, of mailboxes and pipes too.
//!
//! Takes: a line. Gives: a [`DeliveryStatus`], or nothing. Its reason is all that follows the address: router, transport,
//! host and what the host said.
//! When it fails: nothing; the readers whose lines are counted say so (`delivery`).

use super::{delivery, message_id, prefix_of, strip_own_time};
use crate::Entry;
use crate::delivery_status::{DeliveryResult, DeliveryStatus};

pub(crate) fn parse(line: &[u8]) -> Option<DeliveryStatus<'_>> {
    let (id, text) = match strip_own_time(line).and_then(message_id) {
        Some(found) => found,
        None => message_id(prefix_of(line)?.text)?,
    };
    status(id, text)
}

pub(crate) fn parse_entry<'a>(entry: &Entry<'a>) -> Option<DeliveryStatus<'a>> {
    let (id, text) = message_id(super::prefix_of_entry(entry)?.text)?;
    status(id, text)
}

fn status<'a>(queue_id: &'a [u8], text: &'a [u8]) -> Option<DeliveryStatus<'a>> {
    let (arrow, rest) = text.split_at_checked(3)?;
    let result = match arrow {
        b"=> " | b"-> " | b">> " => DeliveryResult::Delivered,
        b"== " => DeliveryResult::Deferred,
        b"** " => DeliveryResult::Bounced,
        _ => return None,
    };
    let reason = delivery::recipient(rest).map_or(rest, |(_, _, rest)| rest);
    // `** a@b.test: retry timeout exceeded` has no field before the reason.
    let reason = reason.strip_prefix(b":").unwrap_or(reason);
    Some(DeliveryStatus { queue_id, result, reason: reason.strip_prefix(b" ").unwrap_or(reason) })
}

#[cfg(test)]
mod tests {
    use crate::delivery_status::{DeliveryResult, DeliveryStatus};
    use crate::{Dialect, parse_delivery_status};

    fn read(line: &str) -> Option<(&str, DeliveryResult, &str)> {
        let DeliveryStatus { queue_id, result, reason } = parse_delivery_status(Dialect::Exim, line.as_bytes())?;
        Some((str::from_utf8(queue_id).expect("UTF-8"), result, str::from_utf8(reason).expect("UTF-8")))
    }

    #[test]
    fn reads_what_became_of_a_recipient() {
        use DeliveryResult::{Bounced, Deferred, Delivered};
        for (text, result, reason) in [
            (
                "=> r@x.test R=dnslookup T=remote_smtp H=mx.x.test [192.0.2.1] X=TLS1.3:X:256 CV=yes C=\"250 ok\"",
                Delivered,
                "R=dnslookup T=remote_smtp H=mx.x.test [192.0.2.1] X=TLS1.3:X:256 CV=yes C=\"250 ok\"",
            ),
            ("=> r <r@x.test> R=local T=mail_spool", Delivered, "r <r@x.test> R=local T=mail_spool"),
            (
                "== r@x.test R=dnslookup T=remote_smtp defer (-44) H=mx.x.test [192.0.2.1]: SMTP error from remote mail server \
                 after RCPT TO:<r@x.test>: 450 4.2.0 busy",
                Deferred,
                "R=dnslookup T=remote_smtp defer (-44) H=mx.x.test [192.0.2.1]: SMTP error from remote mail server after RCPT \
                 TO:<r@x.test>: 450 4.2.0 busy",
            ),
            (
                "** r@x.test R=dnslookup T=remote_smtp H=mx.x.test [192.0.2.1]: SMTP error from remote mail server after RCPT \
                 TO:<r@x.test>: 550 no such user",
                Bounced,
                "R=dnslookup T=remote_smtp H=mx.x.test [192.0.2.1]: SMTP error from remote mail server after RCPT \
                 TO:<r@x.test>: 550 no such user",
            ),
            ("** r@x.test: Unrouteable address", Bounced, "Unrouteable address"),
            ("** r@x.test: retry timeout exceeded", Bounced, "retry timeout exceeded"),
        ] {
            for prefix in [
                "2026-11-23 00:05:00 ",
                "2026-11-23 00:05:00.123 +0000 [77] ",
                "Nov 23 00:05:00 mta exim[77]: 2026-11-23 00:05:00 ",
                "2026-11-23T00:05:00+00:00 mta exim[77]: ",
            ] {
                for id in ["1xUwZB-0006OQ-0w", "1xUwgo-000000005mC-2Ih7"] {
                    let line = format!("{prefix}{id} {text}");
                    assert_eq!(read(&line), Some((id, result, reason)), "{line}");
                }
            }
        }
    }

    #[test]
    fn other_lines_say_nothing_of_a_recipient() {
        for text in
            ["<= a@b.test U=x P=local S=1 id=x@y", "Completed", "Message is frozen", "*> r@x.test R=r T=t", "=>"]
        {
            assert_eq!(read(&format!("2026-11-23 00:05:00 1xUwZB-0006OQ-0w {text}")), None, "{text}");
        }
        assert_eq!(read("2026-11-23 00:05:00 == r@x.test: no message"), None);
    }
}
