//! Reads what syslog daemons log of the lines that they left out.
//!
//! Takes: the tag and the text of a line of another program. Gives: how many lines of an MTA's are missing, at least.
//! journald(8) names the unit; rsyslogd(8) names a process, or nothing: then the MTA's lines may be among them.
//! Not here: `message repeated N times: [ …]` of rsyslogd(8), whose text is read once (`syslog`).

use memchr::memmem;

use crate::number::decimal;

/// Lines that were left out; `None` for every other line.
pub(crate) fn lines_lost(ident: &[u8], text: &[u8]) -> Option<u32> {
    if ident.starts_with(b"systemd-journal") {
        // `Suppressed 123 messages from postfix@-.service`
        let (number, rest) = decimal(text.strip_prefix(b"Suppressed ")?)?;
        let unit = rest.strip_prefix(b" messages from ")?;
        let of_mta = [&b"postfix"[..], b"exim", b"docker", b"containerd", b"podman"];
        return of_mta.iter().any(|name| memmem::find(unit, name).is_some()).then_some(number);
    }
    if !ident.starts_with(b"rsyslogd") || !contains(text, b"rate-limiting") {
        return None;
    }
    // `imuxsock lost 123 messages from pid 456 due to rate-limiting`,
    // `imjournal: 123 messages lost due to rate-limiting (20000 allowed within 600 seconds)`,
    // `imjournal: begin to drop messages due to rate-limiting`
    let counted = || {
        let at = memmem::find(text, b" messages ")?;
        let digits = text.get(..at)?;
        let digits = digits.get(digits.iter().rposition(|b| !b.is_ascii_digit()).map_or(0, |at| at + 1)..)?;
        decimal(digits).map(|(number, _)| number)
    };
    counted().or(contains(text, b"begin to drop messages").then_some(1))
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    memmem::find(text, part).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_how_many_lines_are_missing() {
        for (ident, text, want) in [
            ("systemd-journald", "Suppressed 123 messages from postfix@-.service", Some(123)),
            ("systemd-journal", "Suppressed 7 messages from /system.slice/exim4.service", Some(7)),
            ("systemd-journald", "Suppressed 123 messages from nginx.service", None),
            ("systemd-journald", "Journal started", None),
            ("rsyslogd", "imuxsock lost 1042 messages from pid 456 due to rate-limiting", Some(1042)),
            (
                "rsyslogd",
                "imjournal: 77 messages lost due to rate-limiting (20000 allowed within 600 seconds)",
                Some(77),
            ),
            ("rsyslogd", "imjournal: begin to drop messages due to rate-limiting", Some(1)),
            (
                "rsyslogd",
                "imuxsock[pid: 456, name: smtp] from <x>: begin to drop messages due to rate-limiting",
                Some(1),
            ),
            ("rsyslogd", "action 'action-8' resumed (module 'builtin:omfile')", None),
            ("postfix/smtp", "Suppressed 123 messages from postfix.service", None),
        ] {
            assert_eq!(lines_lost(ident.as_bytes(), text.as_bytes()), want, "{ident}: {text}");
        }
    }
}
