//! Every form in which people have the log of an MTA: syslog daemons, containers, collectors, journalctl.
//!
//! Each form is written once, as what stands before the text, and read with a line of Postfix and one of Exim: the same
//! event, at the same time, of the same host and process.

use tlswarden_parsers::event::exim::{EximLine, LineKind};
use tlswarden_parsers::event::{Event, EventKind, LogTimestamp};
use tlswarden_parsers::{Dialect, LineFamily, is_log_line, parse};

/// 2026-11-22T22:44:00Z.
const AT: i64 = 1_795_387_440;

const fn civil(month: u8, day: u8) -> LogTimestamp {
    LogTimestamp::Civil { month, day, hour: 22, minute: 44, second: 0 }
}

const CIVIL: LogTimestamp = civil(11, 22);
const LOCAL: LogTimestamp = LogTimestamp::Local(AT);
const UTC: LogTimestamp = LogTimestamp::Utc(AT);

/// What stands before the text, with `TAG` for `postfix/qmgr[1520]:` and `APP` for `postfix/qmgr 1520`; the time, the host.
const FORMS: &[(&str, LogTimestamp, &str)] = &[
    // Postfix's maillog_file, traditional syslog, rsyslog's and journalctl's ISO dates.
    ("Nov 22 22:44:00 mta TAG ", CIVIL, "mta"),
    ("<22>Nov 22 22:44:00 mta TAG ", CIVIL, "mta"),
    ("2026-11-22T22:44:00.247699+00:00 mta TAG ", UTC, "mta"),
    ("2026-11-22T23:44:00+0100 mta TAG ", UTC, "mta"),
    ("2026-11-22T22:44:00.247699Z mta TAG ", UTC, "mta"),
    ("Nov 22 22:44:00 2001:db8::25 TAG ", CIVIL, "2001:db8::25"),
    ("Nov 22 22:44:00 2001:db8:: TAG ", CIVIL, "2001:db8::"),
    // A template that doubles the space.
    ("Nov 22 22:44:00 mta TAG  ", CIVIL, "mta"),
    // RFC 5424: of the RFC, as rsyslog writes it, with structured data, with a byte order mark, without the priority.
    ("<22>1 2026-11-22T22:44:00.1+00:00 mta APP - - ", UTC, "mta"),
    ("<22>1 2026-11-22T22:44:00.1+00:00 mta APP - -  ", UTC, "mta"),
    (
        "<22>1 2026-11-22T23:44:00+01:00 OPNsense.example.com APP - [meta sequenceId=\"1\"] ",
        UTC,
        "OPNsense.example.com",
    ),
    ("<22>1 2026-11-22T22:44:00Z mta APP ID7 [a@1 b=\"x ] \\\"\"][c d=\"\"]  ", UTC, "mta"),
    ("<22>1 2026-11-22T22:44:00Z mta APP - - \u{feff}", UTC, "mta"),
    ("<22>1 2026-11-22T22:44:00Z - APP - - ", UTC, ""),
    ("1 2026-11-22T22:44:00Z mta APP - - ", UTC, "mta"),
    // A fraction; syslog-ng; a comma.
    ("Nov 22 22:44:00.123456 mta TAG ", CIVIL, "mta"),
    ("Nov  2 22:44:00.123 mta TAG ", civil(11, 2), "mta"),
    ("2026-11-22 22:44:00,123 mta TAG ", LOCAL, "mta"),
    ("2026 Nov 22 22:44:00 mta TAG ", LOCAL, "mta"),
    ("2026 Nov 22 22:44:00.123 mta TAG ", LOCAL, "mta"),
    ("Nov 22 2026 22:44:00 mta TAG ", LOCAL, "mta"),
    ("1795387440 mta TAG ", UTC, "mta"),
    // journalctl: short-full, short-unix, short-iso-precise, --no-hostname.
    ("Sun 2026-11-22 22:44:00 UTC mta TAG ", UTC, "mta"),
    ("Sun 2026-11-22 22:44:00 CEST mta TAG ", LOCAL, "mta"),
    ("Mon 2026-11-23 01:44:00 +03 mta TAG ", UTC, "mta"),
    ("1795387440.123456 mta TAG ", UTC, "mta"),
    ("2026-11-22T23:44:00.123456+0100 mta TAG ", UTC, "mta"),
    ("2026-11-22T23:44:00.123456+01:00 mta TAG ", UTC, "mta"),
    ("Nov 22 22:44:00 TAG ", CIVIL, ""),
    ("2026-11-22T22:44:00+0000 TAG ", UTC, ""),
    // A space between date and time; no zone; the zone behind a space.
    ("2026-11-22 22:44:00 mta TAG ", LOCAL, "mta"),
    ("2026-11-22 22:44:00.123456 mta TAG ", LOCAL, "mta"),
    ("2026-11-22 23:44:00+01:00 mta TAG ", UTC, "mta"),
    ("2026-11-22 23:44:00 +0100 mta TAG ", UTC, "mta"),
    ("2026-11-22 22:44:00 UTC mta TAG ", UTC, "mta"),
    ("2026-11-22T22:44:00 mta TAG ", LOCAL, "mta"),
    ("2026-11-22T22:44:00.123456 mta TAG ", LOCAL, "mta"),
    // busybox, with a host and without (-S); logread of OpenWrt; FreeBSD -v and -vv; AIX; Solaris.
    ("Nov 22 22:44:00 mta mail.info TAG ", CIVIL, "mta"),
    ("Nov 22 22:44:00 mta mail.warn TAG ", CIVIL, "mta"),
    ("Nov 22 22:44:00 mta local0.notice TAG ", CIVIL, "mta"),
    ("Nov 22 22:44:00 mail.info TAG ", CIVIL, ""),
    ("Sun Nov 22 22:44:00 2026 mail.info TAG ", LOCAL, ""),
    ("Nov 22 22:44:00 <mail.info> mta TAG ", CIVIL, "mta"),
    ("Nov 22 22:44:00 <2.6> mta TAG ", CIVIL, "mta"),
    ("Nov 22 22:44:00 mta mail:info TAG ", CIVIL, "mta"),
    ("Nov 22 22:44:00 mta TAG [ID 197553 mail.info] ", CIVIL, "mta"),
    // A severity in the place of the host's name, or before it.
    ("2026-11-22T23:44:00.052659+01:00 INFO    TAG ", UTC, ""),
    ("2026-11-22T23:44:00.052659+01:00 WARNING TAG ", UTC, ""),
    ("2026-11-22T23:44:00.052659+01:00 [info] mta TAG ", UTC, "mta"),
    ("Nov 22 22:44:00 info mta TAG ", CIVIL, "mta"),
    // s6-log, socklog, svlogd, multilog.
    ("2026-11-22 22:44:00.685309102  mail.info: Nov 22 22:44:00 TAG ", LOCAL, ""),
    ("2026-11-22_22:44:00.68530 mail.info: Nov 22 23:44:00 TAG ", UTC, ""),
    ("2026-11-22T22:44:00.68530 mail.info: Nov 22 23:44:00 TAG ", UTC, ""),
    ("mail.info: Nov 22 22:44:00 TAG ", CIVIL, ""),
    ("@400000006b03703a28a5b4c4 mail.info: Nov 22 23:44:00 TAG ", UTC, ""),
    // Docker compose and podman-compose, with and without times and colors; docker logs -t; CRI; kubectl.
    ("postfixrelay-1  | Nov 22 22:44:00 183ccece54a3 TAG ", CIVIL, "183ccece54a3"),
    ("postfix-1  | Nov 22 22:44:00 TAG ", CIVIL, "postfix-1"),
    ("[mail]     | Nov 22 22:44:00 mta TAG ", CIVIL, "mta"),
    ("mail.1.x7@node7    | 2026-11-22T22:44:00.1Z Nov 22 23:44:00 mta TAG ", UTC, "mta"),
    ("\u{1b}[36mpostfix-1  | \u{1b}[0mNov 22 22:44:00 mta TAG ", CIVIL, "mta"),
    ("2026-11-22T22:44:00.123456789Z Nov 22 23:44:00 183ccece54a3 TAG ", UTC, "183ccece54a3"),
    ("2026-11-22T22:44:00.123456789+00:00 stdout F Nov 22 23:44:00 mta TAG ", UTC, "mta"),
    ("2026-11-22T22:44:00.123456789Z stderr F 2026-11-22T22:44:00+00:00 mta TAG ", UTC, "mta"),
    ("[pod/mail-0/postfix] Nov 22 22:44:00 mta TAG ", CIVIL, "mta"),
    ("[pod/mail-0/postfix] 2026-11-22T22:44:00.1Z Nov 22 23:44:00 mta TAG ", UTC, "mta"),
    // A container's line in the host's: the journald and syslog drivers, as text.
    ("Nov 22 22:44:00 mail.example.com mailu-smtp[840]: Nov 22 23:44:00 mail TAG ", CIVIL, "mail"),
    ("Nov 22 22:44:00 docker mailcow/postfix[840]: Nov 22 23:44:00 TAG ", CIVIL, "docker"),
    ("2026-11-22T22:44:00+00:00 docker 1f2e3d[840]: Nov 22 23:44:00 mail TAG ", UTC, "mail"),
    ("Nov 22 22:44:00 docker 1f2e3d[840]: 2026-11-22T22:44:00.1+00:00 INFO    TAG ", UTC, "docker"),
    ("<30>1 2026-11-22T22:44:00Z docker mail 840 mail - Nov 22 23:44:00 mta TAG ", UTC, "mta"),
    ("Nov 22 22:44:00 docker mail[840]: <22>Nov 22 23:44:00 mta TAG ", CIVIL, "mta"),
    // A relay that keeps the line as it came.
    ("2026-11-22T22:44:00Z relay.example Nov 22 23:44:00 mta TAG ", UTC, "mta"),
    // A byte order mark at the front of a file.
    ("\u{feff}Nov 22 22:44:00 mta TAG ", CIVIL, "mta"),
    ("\u{feff}<22>1 2026-11-22T22:44:00Z mta APP - - ", UTC, "mta"),
    // Months of other languages, as journalctl prints them.
    ("Mai 22 22:44:00 mta TAG ", civil(5, 22), "mta"),
    ("Mär 22 22:44:00 mta TAG ", civil(3, 22), "mta"),
    ("Okt 22 22:44:00 mta TAG ", civil(10, 22), "mta"),
    ("Dez 22 22:44:00 mta TAG ", civil(12, 22), "mta"),
    ("22. Nov 22:44:00 mta TAG ", CIVIL, "mta"),
    ("janv. 22 22:44:00 mta TAG ", civil(1, 22), "mta"),
    ("févr. 22 22:44:00 mta TAG ", civil(2, 22), "mta"),
    ("февр. 22 22:44:00 mta TAG ", civil(2, 22), "mta"),
    ("марта 22 22:44:00 mta TAG ", civil(3, 22), "mta"),
    ("июня 22 22:44:00 mta TAG ", civil(6, 22), "mta"),
    ("июля 22 22:44:00 mta TAG ", civil(7, 22), "mta"),
    ("szept. 22 22:44:00 mta TAG ", civil(9, 22), "mta"),
    ("avril 22 22:44:00 mta TAG ", civil(4, 22), "mta"),
    ("juin 22 22:44:00 mta TAG ", civil(6, 22), "mta"),
    ("juil. 22 22:44:00 mta TAG ", civil(7, 22), "mta"),
    ("août 22 22:44:00 mta TAG ", civil(8, 22), "mta"),
    ("22 nov. 22:44:00 mta TAG ", CIVIL, "mta"),
    ("déc. 02 22:44:00.123456 mta TAG ", civil(12, 2), "mta"),
    ("ene 22 22:44:00 mta TAG ", civil(1, 22), "mta"),
    ("abr 22 22:44:00 mta TAG ", civil(4, 22), "mta"),
    ("ago 22 22:44:00 mta TAG ", civil(8, 22), "mta"),
    ("dic 22 22:44:00 mta TAG ", civil(12, 22), "mta"),
    ("sept. 22 22:44:00 mta TAG ", civil(9, 22), "mta"),
    ("gen 22 22:44:00 mta TAG ", civil(1, 22), "mta"),
    ("mag 22 22:44:00 mta TAG ", civil(5, 22), "mta"),
    ("giu 22 22:44:00 mta TAG ", civil(6, 22), "mta"),
    ("lug 22 22:44:00 mta TAG ", civil(7, 22), "mta"),
    ("set 22 22:44:00 mta TAG ", civil(9, 22), "mta"),
    ("ott 22 22:44:00 mta TAG ", civil(10, 22), "mta"),
    ("авг 09 22:44:00 mv334 TAG ", civil(8, 9), "mv334"),
    ("мая 22 22:44:00 mta TAG ", civil(5, 22), "mta"),
    ("июн 22 22:44:00.1 mta mail.info TAG ", civil(6, 22), "mta"),
    ("11月 22 22:44:00 mta TAG ", CIVIL, "mta"),
    (" 8月 02 22:44:00 mta TAG ", civil(8, 2), "mta"),
];

fn line(form: &str, program: &str, text: &str) -> String {
    form.replace("TAG", &format!("{program}[1520]:")).replace("APP", &format!("{program} 1520")) + text
}

#[track_caller]
fn event(dialect: Dialect, line: &str) -> Event<'_> {
    match parse(dialect, line.as_bytes()) {
        Ok(Some(event)) => event,
        other => panic!("{other:?}: {line}"),
    }
}

#[test]
fn postfix_is_read_in_every_form() {
    for (form, timestamp, host) in FORMS {
        for end in ["", "\r"] {
            let line = line(form, "postfix/relay/qmgr", "1818EA260B5: removed") + end;
            let event = event(Dialect::Postfix, &line);
            let process = event.process;
            assert_eq!(event.kind, EventKind::QueueRemoved { queue_id: b"1818EA260B5" }, "{line}");
            assert_eq!((event.timestamp, process.host), (*timestamp, host.as_bytes()), "{line}");
            assert_eq!(
                (process.instance, process.name, process.pid),
                (&b"postfix/relay"[..], &b"qmgr"[..], 1520),
                "{line}"
            );
            assert!(is_log_line(line.as_bytes()), "{line}");
        }
    }
}

#[test]
fn exim_is_read_in_every_form() {
    const ID: &str = "1xUwZB-0006OQ-0w";
    let completed = EventKind::Exim(EximLine { id: ID.as_bytes(), kind: LineKind::Completed });
    for (form, timestamp, host) in FORMS {
        // syslog_timestamp = no, and yes: then the line has a year.
        for (own, without_year) in [("", *timestamp), ("2026-11-22 22:44:00 ", LOCAL)] {
            let wanted = if matches!(timestamp, LogTimestamp::Civil { .. }) { without_year } else { *timestamp };
            let line = line(form, "exim", &format!("{own}{ID} Completed"));
            let event = event(Dialect::Exim, &line);
            assert_eq!(event.kind, completed, "{line}");
            assert_eq!((event.timestamp, event.process.host), (wanted, host.as_bytes()), "{line}");
            assert_eq!(event.process.pid, 1520, "{line}");
        }
    }
}

/// Exim's main log on a container's standard output.
#[test]
fn exim_without_a_tag_is_read_in_every_envelope() {
    for (front, timestamp) in [
        ("", LOCAL),
        ("exim-1  | ", LOCAL),
        ("2026-11-22T22:44:00.123456789Z ", UTC),
        ("2026-11-22T22:44:00.123456789Z stdout F ", UTC),
        ("exim-1  | 2026-11-22T22:44:00.123456789Z ", UTC),
        ("[pod/mail-0/exim] ", LOCAL),
        ("\u{feff}", LOCAL),
        ("Nov 22 22:44:00 docker mailu-exim[840]: ", LOCAL),
        ("2026-11-22T23:44:00+01:00 docker mailu-exim[840]: ", UTC),
        ("<30>1 2026-11-22T22:44:00Z docker mail 840 mail - ", UTC),
        ("@400000006b03703a28a5b4c4 ", UTC),
    ] {
        for own in ["2026-11-22 22:44:00 ", "2026-11-22 22:44:00.123 [77] "] {
            let line = format!("{front}{own}1xUwZB-0006OQ-0w Completed");
            assert_eq!(event(Dialect::Exim, &line).timestamp, timestamp, "{line}");
        }
    }
}

/// The lines of a severity each have another word there: they are of one process all the same.
#[test]
fn a_priority_is_never_a_host() {
    for word in ["INFO", "WARNING", "mail.info", "mail.err", "<mail.info>", "[warn]", "debug"] {
        let line = format!("2026-11-22T22:44:00Z {word} postfix/qmgr[1]: 1818EA260B5: removed");
        assert_eq!(event(Dialect::Postfix, &line).process.host, b"", "{line}");
    }
}

#[test]
fn a_text_is_not_searched_for_a_line() {
    let ours = "Nov 22 22:44:00 mta postfix/qmgr[1]: 1818EA260B5: removed";
    for line in [
        // Strangers' text stands behind words of the program.
        &format!("Nov 22 22:44:00 mta dovecot: imap-login: Login: user=<{ours}>"),
        &format!("Nov 22 22:44:00 mta sshd[5]: Invalid user {ours}"),
        &format!("Nov 22 22:44:00 mta amavis[5]: < {ours}"),
        &format!("Nov 22 22:44:00 mta postfix/smtpd[5]: {ours}"),
        &format!("2026-11-22 22:44:00 H=(x) [192.0.2.1] rejected EHLO: {ours}"),
        // A host and a tag without a time of their own.
        "Nov 22 22:44:00 mta php[5]: <x postfix/qmgr[1]: 1818EA260B5: removed",
        "Nov 22 22:44:00 mta php[5]: mta postfix/qmgr[1]: 1818EA260B5: removed",
        "mta postfix/qmgr[1]: 1818EA260B5: removed",
        "mail.info: postfix/qmgr[1]: 1818EA260B5: removed",
        // Two words in the place of the host's name.
        "Nov 22 22:44:00 mta x postfix/qmgr[1]: 1818EA260B5: removed",
        "Nov 22 22:44:00 mta postfix/qmgr[1520] 1818EA260B5: removed",
        "",
        "\u{feff}",
        "<22>1 2026-11-22T22:44:00Z mta postfix/qmgr 1 - [a 1818EA260B5: removed",
        "<22>1 2026-11-22T22:44:00Z mta postfix/qmgr 1",
    ] {
        assert_eq!(parse(Dialect::Postfix, line.as_bytes()), Ok(None), "{line}");
        assert_eq!(parse(Dialect::Exim, line.as_bytes()), Ok(None), "{line}");
    }
}

#[test]
fn a_time_that_does_not_exist_is_none() {
    for time in [
        "Nov 31 22:44:00.1",
        "Now 22 22:44:00.1",
        "2026 Feb 29 22:44:00",
        "2026-02-29 22:44:00",
        "2026-11-22 25:44:00",
        "2026-11-22 22:44:00.",
        "99999999999",
        "123456789",
        "@400000006b03703a28a5b4",
        "@ffffffffffffffffffffffff",
        "@000000006b031e7a28a5b4c4",
        "13月 22 22:44:00",
        "Xyz 2026-11-22 22:44:00 UTC",
    ] {
        let line = format!("{time} mta postfix/qmgr[1]: 1818EA260B5: removed");
        assert_eq!(parse(Dialect::Postfix, line.as_bytes()), Ok(None), "{line}");
    }
}

/// rsyslog cuts it at the slash, with-unit of journalctl has the unit in its place.
#[test]
fn a_program_whose_name_is_lost_is_malformed() {
    for line in [
        "<22>1 2026-11-22T22:44:00Z mta postfix 1520 - -  1818EA260B5: removed",
        "Nov 22 22:44:00 mta postfix[1520]: 1818EA260B5: removed",
        "Nov 22 22:44:00 mta postfix-out[1520]: 1818EA260B5: removed",
        "Nov 22 22:44:00 mta postfix: 1818EA260B5: removed",
        "Sun 2026-11-22 22:44:00 UTC mta postfix@-.service[1520]: SSL_connect error to mx.a.test[192.0.2.1]:25: lost connection",
        "postfix-1  | Nov 22 22:44:00 postfix[1520]: SSL_connect error to mx.a.test[192.0.2.1]:25: lost connection",
    ] {
        let family = parse(Dialect::Postfix, line.as_bytes()).map_err(|error| error.family);
        assert_eq!(family, Err(LineFamily::ProgramName), "{line}");
    }
    for line in [
        "Nov 22 22:44:00 mta postfix-script[7]: starting the Postfix mail system",
        "Nov 22 22:44:00 mta postfix/postfix-script[7]: starting the Postfix mail system",
        "Nov 22 22:44:00 mta postfix[1520]: connect from unknown[192.0.2.1]",
        "Nov 22 22:44:00 mta opendkim[1520]: 1818EA260B5: DKIM-Signature field added",
    ] {
        assert_eq!(parse(Dialect::Postfix, line.as_bytes()), Ok(None), "{line}");
    }
}

/// 5 digits of microseconds and 16 of an inode, or 12, 4, `z` and 12 characters, are the longest that Postfix makes.
#[test]
fn a_queue_id_that_is_too_long_is_malformed() {
    for (id, program, family) in [
        ("F423FFFFFFFFFFFFFFFFF".to_owned(), "qmgr", None),
        ("4jXBhc1f2vz1WkvY".to_owned(), "qmgr", None),
        ("BCDFGHJKLMNPQRSTzBCDFGHJKLMNP".to_owned(), "cleanup", None),
        ("A".repeat(1100), "qmgr", Some(LineFamily::QueueId)),
        ("A".repeat(33), "smtp", Some(LineFamily::QueueId)),
        ("B".repeat(33), "cleanup", Some(LineFamily::QueueId)),
    ] {
        let line = format!("Nov 22 22:44:00 mta postfix/{program}[1]: {id}: removed");
        assert_eq!(parse(Dialect::Postfix, line.as_bytes()).err().map(|error| error.family), family, "{line}");
    }
}

#[test]
fn a_prefix_that_is_incomplete_or_too_long_is_malformed() {
    let host = |length: usize| "h".repeat(length);
    for (line, wanted) in [
        (format!("Nov 22 22:44:00 {} postfix/qmgr[1]: 1818EA260B5: removed", host(255)), true),
        (format!("Nov 22 22:44:00 {} postfix/qmgr[1]: 1818EA260B5: removed", host(256)), false),
        (format!("Nov 22 22:44:00 mta {}/qmgr[1]: 1818EA260B5: removed", host(251)), true),
        (format!("Nov 22 22:44:00 mta {}/qmgr[1]: 1818EA260B5: removed", host(252)), false),
        (format!("{}  | Nov 22 22:44:00 postfix/qmgr[1]: 1818EA260B5: removed", host(256)), false),
        ("Nov 22 22:44:00 mta postfix/qmgr: 1818EA260B5: removed".to_owned(), false),
        ("<22>1 2026-11-22T22:44:00Z mta postfix/qmgr - - - 1818EA260B5: removed".to_owned(), false),
    ] {
        let family = parse(Dialect::Postfix, line.as_bytes()).map_err(|error| error.family);
        match (wanted, family) {
            (true, Ok(Some(_))) | (false, Err(LineFamily::Prefix)) => {}
            (_, other) => panic!("{other:?}: {line}"),
        }
    }
}
