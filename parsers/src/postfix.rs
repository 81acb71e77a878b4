//! Reads the lines of Postfix 3.4 to 3.12.
//!
//! Takes: a line without its line end. Gives: the event in it, or nothing.
//! The program's name decides first, because seven of ten lines of a mail log end there: smtp(8) and tlsproxy(8)
//! write about outbound TLS, smtp(8) about deliveries, cleanup(8), qmgr(8) and master(8) about the life of messages.
//! When it fails: the name of the line family that could not be read.
//! Not here: the prefix (`syslog`); lmtp(8), which speaks to mail stores and not to the Internet's MX hosts.

use crate::{
    Entry,
    delivery_status::DeliveryStatus,
    envelope,
    envelope::entry_line,
    event::{Event, EventKind, Process},
    family::{LineFamily, ParseResult},
    gap,
    syslog::{self, MAX_HOST, MAX_IDENT, SyslogLine},
    unrecognized,
};

mod delivery;
mod peer;
mod policy;
mod queue;
mod status;
mod tls;
mod tlsrpt;

/// Reads one line.
pub(crate) fn parse(line: &[u8]) -> ParseResult<Event<'_>> {
    envelope::split(line).map_or_else(|| Ok(gap::last_line_repeated(line)), |line| parse_line(&line))
}

/// Whether a line is of a daemon of Postfix.
pub(crate) fn is_postfix_line(line: &[u8]) -> bool {
    const DAEMONS: [&[u8]; 24] = [
        b"anvil",
        b"bounce",
        b"cleanup",
        b"discard",
        b"dnsblog",
        b"error",
        b"flush",
        b"lmtp",
        b"local",
        b"master",
        b"oqmgr",
        b"pickup",
        b"pipe",
        b"postscreen",
        b"proxymap",
        b"qmgr",
        b"scache",
        b"smtp",
        b"smtpd",
        b"tlsmgr",
        b"tlsproxy",
        b"trivial-rewrite",
        b"verify",
        b"virtual",
    ];
    let Some(line) = envelope::split(line) else { return false };
    let slash = line.ident.iter().rposition(|b| *b == b'/').filter(|slash| *slash > 0);
    slash.and_then(|slash| line.ident.get(slash + 1..)).is_some_and(|daemon| DAEMONS.contains(&daemon))
}

/// Reads an entry whose parts are known.
pub(crate) fn parse_entry<'a>(entry: &Entry<'a>) -> ParseResult<Event<'a>> {
    entry_line(entry).map_or(Ok(None), |line| parse_line(&line))
}

/// Reads what became of a recipient from a line of any daemon.
pub(crate) fn parse_status(line: &[u8]) -> Option<DeliveryStatus<'_>> {
    envelope::split(line).as_ref().and_then(status::parse)
}

/// The same from an entry whose parts are known.
pub(crate) fn parse_entry_status<'a>(entry: &Entry<'a>) -> Option<DeliveryStatus<'a>> {
    entry_line(entry).as_ref().and_then(status::parse)
}

#[inline]
fn parse_line<'a>(line: &SyslogLine<'a>) -> ParseResult<Event<'a>> {
    let Some(program) = Program::from_ident(line.ident) else { return without_program(line) };
    let Some((pid, text)) = line.pid_and_text() else { return Ok(None) };
    let Some(kind) = program.parse(text)? else { return Ok(None) };
    let host = line.host();
    if !line.has_pid() || host.len() > MAX_HOST || line.ident.len() > MAX_IDENT {
        return Err(LineFamily::Prefix);
    }
    let timestamp = line.timestamp().ok_or(LineFamily::Timestamp)?;
    Ok(Some(Event { timestamp, process: program.process(host, line.ident, pid), kind }))
}

/// A line of an instance, or of a unit of the journal, with the words of smtp(8): its program's name is lost, and with it
/// whose process it is.
#[inline]
fn without_program<'a>(line: &SyslogLine<'a>) -> ParseResult<Event<'a>> {
    match line.ident.strip_prefix(b"postfix") {
        None if matches!(line.ident.first(), Some(b'r' | b's')) => return Ok(lines_lost(line)),
        None | Some([b'/', ..]) => return Ok(None),
        Some(rest) if rest.contains(&b'/') => return Ok(None),
        Some(_) => {}
    }
    let Some((_, text)) = line.pid_and_text() else { return Ok(None) };
    match smtp(syslog::unwrap_repeated(text)) {
        // Without the program's name it may be any daemon's.
        Ok(None) | Err(LineFamily::UnknownText) => Ok(None),
        Ok(Some(_)) | Err(_) => Err(LineFamily::ProgramName),
    }
}

/// A syslog daemon's line about lines that it left out.
fn lines_lost<'a>(line: &SyslogLine<'a>) -> Option<Event<'a>> {
    let (pid, text) = line.pid_and_text()?;
    let kind = EventKind::LinesLost { number: gap::lines_lost(line.ident, text)? };
    let process = Process { host: line.host(), instance: b"", name: line.ident, pid };
    Some(Event { timestamp: line.timestamp()?, process, kind })
}

/// The daemons whose lines we read.
#[derive(Clone, Copy)]
enum Program {
    Smtp,
    Tlsproxy,
    Cleanup,
    Qmgr,
    /// qmgr(8) of old, which master.cf may still name.
    Oqmgr,
    Master,
}

impl Program {
    /// By what follows the last slash: `syslog_name` may have slashes of its own.
    #[inline]
    fn from_ident(ident: &[u8]) -> Option<Program> {
        let program = match ident {
            [.., b's', b'm', b't', b'p'] => Program::Smtp,
            [.., b'o', b'q', b'm', b'g', b'r'] => Program::Oqmgr,
            [.., b'q', b'm', b'g', b'r'] => Program::Qmgr,
            [.., b'a', b'n', b'u', b'p'] => Program::Cleanup,
            [.., b'r', b'o', b'x', b'y'] => Program::Tlsproxy,
            [.., b's', b't', b'e', b'r'] => Program::Master,
            _ => return None,
        };
        (ident.len() > program.tag().len() && ident.ends_with(program.tag())).then_some(program)
    }

    const fn tag(self) -> &'static [u8] {
        match self {
            Program::Smtp => b"/smtp",
            Program::Tlsproxy => b"/tlsproxy",
            Program::Cleanup => b"/cleanup",
            Program::Qmgr => b"/qmgr",
            Program::Oqmgr => b"/oqmgr",
            Program::Master => b"/master",
        }
    }

    #[inline]
    fn parse(self, text: &[u8]) -> ParseResult<EventKind<'_>> {
        let text = syslog::unwrap_repeated(text);
        match self {
            Program::Smtp => smtp(text),
            // `CONNECT from` is a client's, of postscreen(8).
            Program::Tlsproxy if text.starts_with(b"CONNECT to [") => Ok(Some(EventKind::TlsproxyConnect)),
            Program::Tlsproxy => tls_line(text),
            Program::Cleanup => queue::cleanup(text),
            Program::Qmgr | Program::Oqmgr => queue::qmgr(text),
            Program::Master => queue::master(text),
        }
    }

    /// The process of this program that calls itself `ident`.
    fn process<'a>(self, host: &'a [u8], ident: &'a [u8], pid: u32) -> Process<'a> {
        let (slash_instance, name) = ident.split_at(ident.len() - self.tag().len() + 1);
        Process { host, instance: slash_instance.strip_suffix(b"/").unwrap_or(slash_instance), name, pid }
    }
}

/// A line of smtp(8): its TLS library's, or `QID: …`.
fn smtp(text: &[u8]) -> ParseResult<EventKind<'_>> {
    if let Some((queue_id, text)) = queue::split_queue_id(text)? {
        return delivery::parse(queue_id, text);
    }
    match tls_line(text)? {
        Some(event) => Ok(Some(event)),
        None => {
            let behind_peer = peer::with_port(text).and_then(|(_, rest)| rest.strip_prefix(b": "));
            if unrecognized::is_smtp_text(text, behind_peer) { Err(LineFamily::UnknownText) } else { Ok(None) }
        }
    }
}

/// A line without a queue id, of smtp(8) or tlsproxy(8).
fn tls_line(text: &[u8]) -> ParseResult<EventKind<'_>> {
    // The first octet tells the families apart, but for those that begin with a host name.
    let found = match text.first() {
        Some(b'T' | b'U' | b'V' | b'A') => match text.strip_prefix(b"TLSRPT: ") {
            Some(status) => return tlsrpt::parse(status),
            None => tls::summary(text),
        },
        Some(b'c' | b's' | b'C') => tls::verification(text),
        Some(b'S') => tls::handshake(text),
        Some(b'w') => match text.strip_prefix(b"warning: ") {
            Some(text) => return warning(text),
            None => None,
        },
        _ => None,
    };
    found.unwrap_or_else(|| Ok(tls::resumed_untrusted(text)))
}

fn warning(text: &[u8]) -> ParseResult<EventKind<'_>> {
    if let Some(text) = text.strip_prefix(b"TLS library problem: ") {
        return Ok(Some(EventKind::LibraryProblem { text }));
    }
    if text.starts_with(b"Could not report TLS handshake result to tlsrpt library: ") {
        return Ok(Some(EventKind::TlsrptNotSent));
    }
    Ok(policy::parse(text).or_else(|| tls::tlsa_unusable(text)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{LogTimestamp, TlsReason, Trust};

    fn read(line: &str) -> Option<Event<'_>> {
        parse(line.as_bytes()).unwrap_or_else(|family| panic!("{family}: {line}"))
    }

    #[test]
    fn names_the_writer() {
        for (ident, instance, name) in [
            ("postfix/smtp", "postfix", "smtp"),
            ("postfix/relay/smtp", "postfix/relay", "smtp"),
            ("postfix-out/tlsproxy", "postfix-out", "tlsproxy"),
            ("mail-out/submission/smtp", "mail-out/submission", "smtp"),
        ] {
            let line = format!(
                "2026-11-22T01:46:13.565141+00:00 mta {ident}[26510]: Verified TLS connection established to \
                 mx.a.test[192.0.2.1]:25: TLSv1.3 with cipher X (256/256 bits)"
            );
            let event = read(&line).expect("an event");
            let process = Process { host: b"mta", instance: instance.as_bytes(), name: name.as_bytes(), pid: 26510 };
            assert_eq!((event.process, event.timestamp), (process, LogTimestamp::Utc(1_795_311_973)), "{line}");
            assert!(
                matches!(event.kind, EventKind::Established { trust: Trust::Verified, reused: false, .. }),
                "{line}"
            );
        }
    }

    #[test]
    fn leaves_other_programs_alone() {
        for ident in [
            "postfix/smtpd",
            "postfix/lmtp",
            "postfix/local",
            "postfix/discard",
            "postfix/bounce",
            "postfix/smtp/smtpd",
            "postfix/xsmtp",
            "smtp",
            "/smtp",
            "mypostfix-smtp",
            "opendkim",
        ] {
            let line = format!(
                "Nov 22 01:42:15 mta {ident}[26510]: 5D7DBA26162: to=<user@a.test>, relay=mx.a.test[203.0.113.161]:25, \
                 delay=0.05, delays=0/0/0/0.04, dsn=2.0.0, status=sent (250 2.0.0 Ok)"
            );
            assert_eq!(read(&line), None, "{line}");
        }
    }

    #[test]
    fn reads_each_family_behind_its_program() {
        let kind = |line| match read(line).map(|event| event.kind) {
            None => "none",
            Some(EventKind::Established { .. }) => "established",
            Some(EventKind::VerificationFailed { .. }) => "verification failed",
            Some(EventKind::HandshakeFailed { .. }) => "handshake failed",
            Some(EventKind::LibraryProblem { .. }) => "library problem",
            Some(EventKind::ResumedUntrusted { .. }) => "resumed untrusted",
            Some(EventKind::TlsaUnusable { .. }) => "TLSA unusable",
            Some(EventKind::HostExcluded { .. }) => "host ruled out",
            Some(EventKind::TlsrptResult { .. }) => "native",
            Some(EventKind::TlsrptNotSent) => "native unsent",
            Some(EventKind::HostGivenUp { reason: TlsReason::Other, .. }) => "host left",
            Some(EventKind::HostGivenUp { .. }) => "host left for TLS",
            Some(EventKind::Delivery { .. }) => "delivery",
            Some(EventKind::MessageId { .. }) => "message id",
            Some(EventKind::QueueActive { .. }) => "active",
            Some(EventKind::QueueRemoved { .. }) => "removed",
            Some(EventKind::DaemonStarted { .. }) => "started",
            Some(EventKind::Exim(_)) => "Exim",
            Some(EventKind::DaemonReloaded) => "reloaded",
            Some(EventKind::TlsproxyConnect) => "proxied",
            Some(EventKind::LinesLost { .. } | EventKind::LastLineRepeated { .. }) => "lost",
        };
        for (line, want) in [
            (
                "Nov 22 01:42:20 mta postfix/tlsproxy[24918]: server certificate verification failed for \
                 mx.dane-reuse-mismatch.example[203.0.113.162]:25: num=65:no matching DANE TLSA records",
                "verification failed",
            ),
            (
                "Nov 22 01:41:04 mta postfix/smtp[25764]: SSL_connect error to mx.may-hangup.test[203.0.113.20]:25: lost connection",
                "handshake failed",
            ),
            (
                "Nov 22 01:39:57 mta postfix/smtp[19290]: warning: TLS library problem: error:0A000410:SSL routines::ssl/tls \
                 alert handshake failure:../ssl/record/rec_layer_s3.c:918:SSL alert number 40:",
                "library problem",
            ),
            (
                "Nov 22 01:40:31 mta postfix/smtp[19290]: mx.sts-retry-tls12.test[203.0.113.79]:25: re-using session with \
                 untrusted peer credential, look for details earlier in the log",
                "resumed untrusted",
            ),
            // A host's name may begin like a line family.
            (
                "Nov 22 01:40:31 mta postfix/smtp[19290]: Trusted.test[203.0.113.79]:25: re-using session with untrusted \
                 certificate, look for details earlier in the log",
                "resumed untrusted",
            ),
            (
                "Nov 22 01:41:59 mta postfix/smtp[26588]: warning: mx.dane-unusable-mtype.example[203.0.113.140]:25: all TLSA \
                 records unusable, fallback to unauthenticated TLS",
                "TLSA unusable",
            ),
            (
                "Nov 22 01:42:00 mta postfix/smtp[26416]: warning: TLS policy lookup for \
                 dane-only-unusable.example/mx.dane-only-unusable.example: TLSA records unusable",
                "host ruled out",
            ),
            (
                "Nov 22 01:42:11 mta postfix/smtp[26510]: TLSRPT: status=success, domain=dane-2mx-bogus.example, \
                 receiving_mx=mx2.dane-2mx-bogus.example[203.0.113.156]",
                "native",
            ),
            (
                "Nov 22 01:50:28 mta postfix/smtp[2181]: warning: Could not report TLS handshake result to tlsrpt library: \
                 No such file or directory (errno 2)",
                "native unsent",
            ),
            (
                "Nov 22 01:41:44 mta postfix/smtp[1]: message repeated 2 times: [ TLSRPT: status=success, domain=a.test, \
                 receiving_mx=mx.a.test[203.0.113.156]]",
                "native",
            ),
            (
                "Nov 22 01:41:44 mta postfix/smtp[1]: Last message 'TLSRPT: status=success, domain=a.test, \
                 receiving_mx=mx.a.test[203.0.113.156]' repeated 5 times, suppressed by syslog-ng on mta",
                "native",
            ),
            ("Nov 22 01:41:44 mta last message repeated 2 times", "lost"),
            ("Nov 22 01:41:44 mta postfix/oqmgr[19250]: 1818EA260B5: removed", "removed"),
            ("<22>1 2026-11-22T01:46:13.565141+00:00 mta postfix/qmgr 19250 - - 1818EA260B5: removed", "removed"),
            (
                "<22>1 2026-11-22T01:46:13Z mta postfix/qmgr 19250 - [meta@1 a=\"b\\]\" c=\"d\"][x] 1818EA260B5: removed",
                "removed",
            ),
            (
                "Nov 22 01:39:20 mta postfix/smtp[19290]: B809AA26161: Cannot start TLS: handshake failure",
                "host left for TLS",
            ),
            (
                "2026-11-22T01:44:41.1+00:00 mta postfix/smtp[19290]: 4jXBhc1f2vz1WkvY: lost connection with \
                 mx.a.test[203.0.113.27] while performing the EHLO handshake",
                "host left",
            ),
            (
                "Nov 22 01:42:29 mta postfix/smtp[25764]: F35CEA26071: to=<user@bogus-may.example>, relay=none, delay=0.01, \
                 delays=0/0/0/0, dsn=4.4.3, status=deferred (Host or domain name not found. Name service error for \
                 name=bogus-may.example type=MX: Host not found, try again)",
                "delivery",
            ),
            (
                "Nov 22 01:41:44 mta postfix/cleanup[26108]: 1818EA260B5: message-id=<lab143.1795311704088@mta.lab.test>",
                "message id",
            ),
            (
                "Nov 22 01:41:44 mta postfix/qmgr[19250]: 1818EA260B5: from=<tester@mta.lab.test>, size=275, nrcpt=1 (queue active)",
                "active",
            ),
            ("Nov 22 01:41:44 mta postfix/qmgr[19250]: 1818EA260B5: removed", "removed"),
            (
                "Nov 22 01:39:01 mta postfix/master[19243]: daemon started -- version 3.10.13, configuration /etc/postfix",
                "started",
            ),
            ("Nov 22 01:42:20 mta postfix/tlsproxy[24918]: CONNECT to [203.0.113.162]:25", "proxied"),
            ("Nov 22 01:42:20 mta postfix/tlsproxy[24918]: CONNECT from [203.0.113.162]:4711", "none"),
            ("Nov 22 01:42:20 mta postfix/smtp[24918]: CONNECT to [203.0.113.162]:25", "none"),
            (
                "Nov 22 01:42:20 mta postfix/master[1]: reload -- version 3.10.13, configuration /etc/postfix",
                "reloaded",
            ),
            (
                "Nov 22 01:42:20 mta postfix/smtp[24918]: connect to mx.sts-refused.test[203.0.113.62]:25: Connection refused",
                "none",
            ),
            ("Nov 22 01:42:20 mta postfix/smtp[24918]: SSL_connect:SSLv3/TLS write client hello", "none"),
            (
                "Nov 22 01:42:20 mta postfix/smtp[24918]: mx.a.test[203.0.113.62]:25: depth=0 verify=1 subject=/CN=a",
                "none",
            ),
            ("Nov 22 01:42:20 mta postfix/smtp[24918]: fatal: x: to=<a@b>", "none"),
        ] {
            assert_eq!(kind(line), want, "{line}");
        }
    }

    #[test]
    fn an_entry_of_a_journal_is_a_line_without_its_prefix() {
        let line = b"2026-11-22T01:46:13Z mta postfix/relay/qmgr[19250]: 1818EA260B5: removed";
        let entry = Entry {
            timestamp: Some(LogTimestamp::Utc(1_795_311_973)),
            host: b"mta",
            ident: b"postfix/relay/qmgr",
            pid: 19250,
            text: b"1818EA260B5: removed",
        };
        let entry = crate::parse_entry(crate::Dialect::Postfix, &entry);
        assert_eq!(entry.expect("well-formed"), parse(line).expect("well-formed"));
    }

    #[test]
    fn a_carriage_return_at_the_end_is_let_pass() {
        let line = b"Nov 22 01:41:44 mta postfix/qmgr[19250]: 1818EA260B5: removed\r";
        let event = crate::parse(crate::Dialect::Postfix, line).expect("well-formed").expect("an event");
        assert_eq!(event.kind, EventKind::QueueRemoved { queue_id: b"1818EA260B5" });
    }

    #[test]
    fn only_a_line_of_ours_needs_a_readable_stamp() {
        let ours = b"Nov 99 01:41:44 mta postfix/qmgr[19250]: 1818EA260B5: removed";
        assert_eq!(parse(ours), Err(LineFamily::Timestamp));
        assert_eq!(parse(b"Nov 99 01:41:44 mta postfix/smtpd[19250]: connect from x"), Ok(None));
    }

    #[test]
    fn octets_that_are_no_utf_8_pass() {
        let line =
            b"Nov 22 01:42:29 mta postfix/smtp[1]: F35CEA26071: to=<\xffser@a.test>, relay=mx.a.test[192.0.2.1]:25, \
                     delay=0.01, delays=0/0/0/0, dsn=4.4.3, status=deferred (host said \xfe\x00)";
        let event = parse(line).expect("well-formed").expect("an event");
        assert!(matches!(event.kind, EventKind::Delivery { recipient_domain: b"a.test", sent: false, .. }));
    }
}
