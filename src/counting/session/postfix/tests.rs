//! What a log level hides, and what proves that there was no TLS.

use tlswarden_parsers::{Dialect, event::LogTimestamp, parse};

use super::*;

const TRUSTED: &str =
    "Trusted TLS connection established to mx.a.test[192.0.2.1]:25: TLSv1.3 with cipher X (256/256 bits)";

/// The outcomes of lines of one process, behind `postfix/`.
fn outcomes(sessions: &mut PostfixSessions, lines: &[&str]) -> Vec<SessionOutcome> {
    let mut out = Vec::new();
    for line in lines {
        let line = format!("2026-11-22T01:00:00Z h postfix/{line}").replace("postfix//../", "");
        let event = parse(Dialect::Postfix, line.as_bytes()).unwrap().unwrap();
        let LogTimestamp::Utc(time) = event.timestamp else { panic!("{line}") };
        sessions.handle_event(&event, time, |_| false, &mut out);
    }
    out
}

fn delivery(queue_id: &str, to: &str, tls: &str, end: &str) -> String {
    format!(
        "smtp[2]: {queue_id}: to=<{to}@a.test>, relay=mx.a.test[192.0.2.1]:25, delay=1, delays=0/0/0/1, {tls}dsn=2.0.0, {end}"
    )
}

fn sent(queue_id: &str, tls: &str) -> String {
    delivery(queue_id, "u", tls, "status=sent (250 ok)")
}

/// (success, trust, clear text) of each.
fn gist(outcomes: &[SessionOutcome]) -> Vec<(bool, Option<Trust>, bool)> {
    outcomes.iter().map(|o| (o.observed == Some(SessionResult::Success), o.trust, o.clear_text)).collect()
}

#[test]
fn at_log_level_0_postfix_3_11_tells_by_the_tls_feature() {
    for (tls, want) in [
        ("tls=may, ", vec![(true, None, false)]),
        ("tls=encrypt, ", vec![(true, None, false)]),
        ("tls=dane:encrypt, ", vec![(true, None, false)]),
        ("tls=dane:halfdane, ", vec![(true, Some(Trust::Trusted), false)]),
        ("tls=dane-only, ", vec![(true, Some(Trust::Verified), false)]),
        ("tls=secure/requiretls, ", vec![(true, Some(Trust::Verified), false)]),
        ("tls=may:none, ", vec![(false, None, true)]),
        // A cached connection, our own decision, a look-up that failed.
        ("tls=may?, ", vec![]),
        ("tls=none, ", vec![]),
        ("tls=unknown?, ", vec![]),
        ("conn_use=2, tls=may, ", vec![]),
        ("", vec![]),
    ] {
        let mut sessions = PostfixSessions::new();
        assert_eq!(gist(&outcomes(&mut sessions, &[&sent("4AB0CDEF12", tls)])), want, "{tls}");
    }
}

#[test]
fn a_session_is_told_once_by_its_line_or_by_the_tls_feature() {
    let (one, two) = (
        delivery("4AB0CDEF12", "one", "tls=may, ", "status=sent (250 ok)"),
        delivery("4AB0CDEF12", "two", "tls=may, ", "status=deferred (host mx.a.test[192.0.2.1] said: 450 later)"),
    );
    assert_eq!(outcomes(&mut PostfixSessions::new(), &[&one, &two]).len(), 1);
    let active = "qmgr[3]: 4AB0CDEF12: from=<s@h>, size=1, nrcpt=1 (queue active)";
    assert_eq!(outcomes(&mut PostfixSessions::new(), &[&one, &two, active, &two]).len(), 2);
    let established = format!("smtp[2]: {TRUSTED}");
    assert_eq!(outcomes(&mut PostfixSessions::new(), &[&established, &one, &two]).len(), 1);
    // tlsproxy(8)'s sessions are always logged: that proves nothing of the others.
    let connect = "tlsproxy[4]: CONNECT to [192.0.2.1]:25";
    assert_eq!(outcomes(&mut PostfixSessions::new(), &[connect, &established, &one, &two]).len(), 1);
    let of_others = "tlsproxy[4]: Anonymous TLS connection established from h[192.0.2.9]:4711: TLSv1.3 with cipher X";
    assert_eq!(parse(Dialect::Postfix, format!("2026-11-22T01:00:00Z h postfix/{of_others}").as_bytes()), Ok(None));
}

#[test]
fn a_failed_handshake_says_why_where_a_line_of_its_connection_does() {
    let failed = |host: &str, cause: &str| format!("smtp[2]: SSL_connect error to {host}[192.0.2.1]:25: {cause}");
    let library = "smtp[2]: warning: TLS library problem: error:0A000410:SSL routines::ssl/tls alert handshake \
                   failure:../ssl/record/rec_layer_s3.c:918:SSL alert number 40:";
    let given_up = "smtp[2]: 4AB0CDEF12: Cannot start TLS: handshake failure";
    let end = delivery("4AB0CDEF12", "u", "", "status=deferred (Cannot start TLS: handshake failure)");
    let codes = |lines: &[&str]| {
        let found = outcomes(&mut PostfixSessions::new(), lines);
        let code = |o: &SessionOutcome| match &o.observed {
            Some(SessionResult::Failure(_, code)) => code.clone().unwrap_or_default(),
            other => panic!("{other:?}"),
        };
        found.iter().map(code).collect::<Vec<_>>()
    };
    let (minus_one, lost) = (failed("mx.a.test", "-1"), failed("mx.a.test", "lost connection"));
    assert_eq!(codes(&[&minus_one, library, &end]), ["tls-remote-alert-40-handshake-failure"]);
    assert_eq!(codes(&[&lost, &end]), ["connection-closed-during-handshake"]);
    assert_eq!(codes(&[&minus_one, &end]), ["tls-handshake-failure"]);
    // Each line explains its own connection; one of another process explains nothing.
    let first = failed("mx1.a.test", "-1");
    let both = ["tls-remote-alert-40-handshake-failure", "connection-closed-during-handshake"];
    assert_eq!(codes(&[&first, library, given_up, &lost, &end]), both);
    assert_eq!(codes(&[&minus_one, &library.replace("smtp[2]", "smtp[3]"), &end]), ["tls-handshake-failure"]);
    // Postfix's own word for it is more general.
    let reported = "smtp[2]: TLSRPT: status=failure, domain=a.test, receiving_mx=mx.a.test[192.0.2.1], \
                    failure_type=validation_failure, failure_reason=tls-handshake-failure";
    assert_eq!(codes(&[&minus_one, library, reported, &end]), ["tls-remote-alert-40-handshake-failure"]);
}

#[test]
fn a_policy_that_is_not_known_is_one_attempt_for_each_delivery_request() {
    let warning = |host: &str| {
        format!("smtp[2]: warning: TLS policy lookup for a.test:25/{host}: client TLS configuration problem")
    };
    let (one, two) = (warning("mx1.a.test"), warning("mx2.a.test"));
    let to = |who: &str, delays: &str| {
        format!(
            "smtp[2]: 4AB0CDEF12: to=<{who}@b.test>, relay=none, delay=1, delays={delays}, dsn=4.7.5, status=deferred \
             (client TLS configuration problem)"
        )
    };
    let (first, second) = (to("u", "0/0/0/0"), to("v", "0/0/0/0"));
    let gist = |lines: &[&str]| {
        let found = outcomes(&mut PostfixSessions::new(), lines);
        let of = |o: &SessionOutcome| (o.domain.to_string(), o.deferred, o.observed.is_none());
        found.iter().map(of).collect::<Vec<_>>()
    };
    // The warning names the next hop, the delivery only the recipient domain.
    assert_eq!(gist(&[&one, &two, &first, &second]), [("a.test".to_owned(), true, true)]);
    assert_eq!(gist(&[&first, &second]), [("b.test".to_owned(), true, true)]);
    let later = to("u", "900/0/0/0");
    assert_eq!(gist(&[&one, &first, &one, &later]).len(), 2);
    // The server's greeting came first: a fault of this host's.
    let greeted = first.replace("relay=none", "relay=mx.a.test[192.0.2.1]:25").replace("4.7.5", "4.7.0");
    assert_eq!(gist(&[&greeted]), []);
}

#[test]
fn a_second_delivery_request_of_a_message_is_another_session() {
    let later = |line: &str| line.replace("delays=0/0/0/1", "delays=0/1.1/0.5/0.6");
    let (one, two) = (
        delivery("4AB0CDEF12", "one", "tls=may, ", "status=sent (250 ok)"),
        delivery("4AB0CDEF12", "two", "tls=may, ", "status=sent (250 ok)"),
    );
    let all = outcomes(&mut PostfixSessions::new(), &[&one, &two, &later(&one), &later(&two)]);
    assert_eq!(gist(&all), [(true, None, false); 2]);
    // Of one request, the time of the transfer alone differs.
    assert_eq!(outcomes(&mut PostfixSessions::new(), &[&one, &two.replace("0/0/0/1", "0/0/0/2")]).len(), 1);
    // Refused TLS, and a handshake failure of tlsproxy(8), which has no line of its own.
    for why in
        ["TLS is required, but was not offered by host mx.a.test[192.0.2.1]", "Cannot start TLS: handshake failure"]
    {
        let end = format!("status=deferred ({why})");
        let (one, two) = (delivery("4AB0CDEF12", "one", "", &end), delivery("4AB0CDEF12", "two", "", &end));
        let all = outcomes(&mut PostfixSessions::new(), &[&one, &two, &later(&one), &later(&two)]);
        assert_eq!(all.len(), 2, "{why}");
    }
    // A list, all by one process.
    let many: Vec<String> = (0..100).map(|n| one.replace("delays=0/0/0/1", &format!("delays=0/{n}/0/1"))).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(outcomes(&mut PostfixSessions::new(), &many).len(), 100);
}

#[test]
fn clear_text_is_proved_by_a_log_level_that_shows_every_session() {
    let elsewhere = |line: &str| line.replace("mx.a.test[192.0.2.1]", "mx.b.test[192.0.2.9]");
    let (first, plain) = (elsewhere(&sent("4AB0CDEF11", "")), sent("4AB0CDEF12", ""));
    let established = elsewhere(&format!("smtp[2]: {TRUSTED}"));
    let clear = |lines: &[&str]| {
        let all = outcomes(&mut PostfixSessions::new(), lines);
        all.iter().filter(|o| o.clear_text).count()
    };
    assert_eq!(clear(&[&plain]), 0);
    assert_eq!(clear(&[&established, &first, &plain]), 1);
    let started = "master[1]: daemon started -- version 3.7.11, configuration /etc/postfix";
    let reloaded = "master[1]: reload -- version 3.7.11, configuration /etc/postfix";
    assert_eq!(clear(&[&established, &first, started, &plain]), 0);
    assert_eq!(clear(&[&established, &first, reloaded, &plain]), 0);
    // tlsproxy(8)'s sessions are shown at every level, its own lines only from level 1 on.
    let connect = "tlsproxy[4]: CONNECT to [192.0.2.1]:25";
    let proxied = format!("tlsproxy[4]: {TRUSTED}");
    assert_eq!(clear(&[connect, &established, &first, &plain]), 0);
    assert_eq!(clear(&[connect, &proxied, &established, &first, &plain]), 1);
    // Lines are missing: the one about TLS may be among them.
    for lost in [
        "systemd-journald[1]: Suppressed 9 messages from postfix@-.service",
        "rsyslogd: imuxsock lost 9 messages from pid 2 due to rate-limiting",
    ] {
        let lost = format!("/../{lost}");
        let (second, third) = (elsewhere(&sent("4AB0CDEF13", "")), sent("4AB0CDEF14", ""));
        assert_eq!(clear(&[&established, &first, &lost, &plain]), 0, "{lost}");
        assert_eq!(clear(&[&established, &first, &lost, &established, &second, &third]), 0, "{lost}");
    }
    // A content filter is no MX host, a cached connection no session.
    assert_eq!(clear(&[&established, &first, &plain.replace("]:25", "]:10024")]), 0);
    assert_eq!(clear(&[&established, &first, &sent("4AB0CDEF12", "conn_use=2, ")]), 0);
}

#[test]
fn clear_text_after_a_failed_handshake_is_the_same_session() {
    let established = format!("smtp[2]: {TRUSTED}");
    let first = sent("4AB0CDEF11", "");
    let left = "smtp[2]: 4AB0CDEF12: Cannot start TLS: handshake failure";
    for own_line in [Some("smtp[2]: SSL_connect error to mx.a.test[192.0.2.1]:25: lost connection"), None] {
        for tls in ["", "tls=may:none, "] {
            let plain = sent("4AB0CDEF12", tls);
            let lines: Vec<&str> = [Some(&*established), Some(&*first), own_line, Some(left), Some(&*plain)]
                .into_iter()
                .flatten()
                .collect();
            let all = gist(&outcomes(&mut PostfixSessions::new(), &lines));
            assert_eq!(all, [(true, Some(Trust::Trusted), false), (false, None, false)], "{lines:?}");
        }
    }
}

#[test]
fn a_host_that_has_just_made_tls_is_not_without_it() {
    let established = format!("smtp[2]: {TRUSTED}");
    let elsewhere = established.replace("mx.a.test[192.0.2.1]", "mx.b.test[192.0.2.9]");
    let other = sent("4AB0CDEF11", "").replace("mx.a.test[192.0.2.1]", "mx.b.test[192.0.2.9]");
    let count = |lines: &[&str]| {
        let all = outcomes(&mut PostfixSessions::new(), lines);
        (all.iter().filter(|o| !o.clear_text).count(), all.iter().filter(|o| o.clear_text).count())
    };
    // One recipient is put off, the next one is accepted on the same connection, and the first is tried elsewhere.
    let put_off = "smtp[2]: 4AB0CDEF12: host mx.a.test[192.0.2.1] said: 450 later (in reply to RCPT TO command)";
    let lost = "smtp[2]: 4AB0CDEF12: lost connection with mx.a.test[192.0.2.1] while performing the EHLO handshake";
    for tls in ["", "tls=may, ", "tls=may:none, "] {
        let (one, two) = (
            delivery("4AB0CDEF12", "one", tls, "status=sent (250 ok)"),
            delivery("4AB0CDEF12", "two", tls, "status=sent (250 ok)"),
        );
        for ended in [put_off, lost] {
            assert_eq!(count(&[&established, ended, &one, &two]), (1, 0), "{tls} {ended}");
            assert_eq!(count(&[&established, ended, &elsewhere, ended, &one, &two]).1, 0, "{tls} {ended}");
        }
    }
    // The line of a session is lost, and another process had one; a host that never had TLS has none.
    let plain = sent("4AB0CDEF13", "");
    assert_eq!(
        count(&[&established.replace("[2]", "[3]"), &sent("4AB0CDEF12", "").replace("[2]", "[3]"), &plain]),
        (1, 0)
    );
    assert_eq!(count(&[&elsewhere, &other, &plain]), (1, 1));
}

/// Nothing follows from a line that is not there: the log level may hide it, or it was lost with its file.
#[test]
fn missing_lines_are_no_clear_text() {
    let at = |line: &str, process: u32, host: &str| {
        line.replace("smtp[2]", &format!("smtp[{process}]")).replace("mx.a.test[192.0.2.1]", host)
    };
    let (known, plain) = ("mx.known.test[192.0.2.9]", "mx.plain.test[192.0.2.8]");
    let (established, sent) = (at(&format!("smtp[2]: {TRUSTED}"), 2, known), |queue_id: &str, process, host: &str| {
        at(&sent(queue_id, "").replace("mx.a.test[192.0.2.1]", host), process, host)
    });
    let clear = |sessions: &mut PostfixSessions, lines: &[&str]| {
        outcomes(sessions, lines).iter().filter(|o| o.clear_text).count()
    };
    let first = sent("4AB0CDEF11", 2, known);
    let other_recipient = first.replace("to=<u@", "to=<v@");
    let of_plain = sent("4AB0CDEF12", 3, plain);
    assert_eq!(clear(&mut PostfixSessions::new(), &[&established, &first, &other_recipient, &of_plain]), 1);
    // `smtp_tls_loglevel = 0` without a reload: new processes show no TLS to a host that has it.
    let hidden = sent("4AB0CDEF13", 3, known);
    assert_eq!(clear(&mut PostfixSessions::new(), &[&established, &first, &hidden, &of_plain]), 0);
    // Nor to many hosts in a row.
    let mut sessions = PostfixSessions::new();
    assert_eq!(clear(&mut sessions, &[&established, &first]), 0);
    let many: Vec<String> =
        (0..100).map(|n| sent(&format!("4AB0CDE{n:03}"), 100 + n, &format!("mx{n}.test[198.51.100.{n}]"))).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(clear(&mut sessions, &many), MAX_SILENT_DELIVERIES as usize);
    // A file that is gone, or a journal that was vacuumed, took lines with it.
    let mut sessions = PostfixSessions::new();
    assert_eq!(clear(&mut sessions, &[&established, &first]), 0);
    sessions.note_missing_lines();
    assert_eq!(clear(&mut sessions, &[&of_plain]), 0);
}

/// One of several servers behind a name may have lost STARTTLS; Postfix 3.11 says so of each delivery.
#[test]
fn the_tls_feature_proves_clear_text_also_where_the_host_has_just_made_tls() {
    let established = format!("smtp[2]: {TRUSTED}");
    let first = sent("4AB0CDEF11", "tls=may, ");
    for process in ["[2]", "[3]"] {
        let plain = sent("4AB0CDEF12", "tls=may:none, ").replace("[2]", process);
        let too = delivery("4AB0CDEF12", "v", "tls=may:none, ", "status=sent (250 ok)").replace("[2]", process);
        let all = outcomes(&mut PostfixSessions::new(), &[&established, &first, &plain, &too]);
        assert_eq!(gist(&all), [(true, Some(Trust::Trusted), false), (false, None, true)], "{process}");
        // Not where the log shows nothing either way.
        let silent = plain.replace("tls=may:none, ", "");
        let all = outcomes(&mut PostfixSessions::new(), &[&established, &first, &silent]);
        assert_eq!(gist(&all), [(true, Some(Trust::Trusted), false)], "{process}");
    }
}

#[test]
fn further_recipients_of_a_session_are_no_clear_text() {
    let (one, two) = (
        delivery("4AB0CDEF12", "one", "", "status=sent (250 ok)"),
        delivery("4AB0CDEF12", "two", "", "status=sent (250 ok)"),
    );
    let established = format!("smtp[2]: {TRUSTED}");
    let told = outcomes(&mut PostfixSessions::new(), &[&established, &one, &two]);
    assert_eq!(gist(&told), [(true, Some(Trust::Trusted), false)]);
    // After a handshake that failed the same message goes on in clear text: one session, whatever the recipients.
    let failed = [
        "smtp[2]: SSL_connect error to mx.a.test[192.0.2.1]:25: -1",
        "smtp[2]: 4AB0CDEF12: Cannot start TLS: handshake failure",
    ];
    let mut sessions = PostfixSessions::new();
    outcomes(&mut sessions, &[&established, &sent("4AB0CDEF11", "")]);
    let told = outcomes(&mut sessions, &[failed[0], failed[1], &one, &two]);
    assert_eq!(gist(&told), [(false, None, false)]);
}

#[test]
fn a_services_own_name_belongs_to_its_master() {
    let mut sessions = PostfixSessions::new();
    outcomes(&mut sessions, &[&format!("relay/smtp[2]: {TRUSTED}")]);
    assert!(sessions.logs_all_sessions(b"h\0postfix/relay", 1_795_309_200));
    outcomes(&mut sessions, &["master[1]: daemon started -- version 3.7.11, configuration /etc/postfix"]);
    assert!(!sessions.logs_all_sessions(b"h\0postfix/relay", 1_795_309_200));
    assert!(belongs_to_master(b"postfix", b"postfix") && !belongs_to_master(b"postfix-out", b"postfix"));
}

#[test]
fn open_sessions_are_bounded_and_what_gives_way_is_counted() {
    let mut sessions = PostfixSessions::new();
    let many = MAX_PROCESSES + 20_000;
    let mut out = Vec::new();
    for pid in 0..many {
        let line = format!("2026-11-22T01:00:00Z h postfix/smtp[{pid}]: {TRUSTED}");
        let event = parse(Dialect::Postfix, line.as_bytes()).unwrap().unwrap();
        sessions.handle_event(&event, 1_795_309_200, |_| false, &mut out);
    }
    let open = sessions.deliveries.keys().count();
    assert!(open <= MAX_PROCESSES && open > MAX_PROCESSES / 2, "{open}");
    assert_eq!(sessions.take_uncounted().evicted, (many - open) as u64);
}

/// A log server's file, or a journal that was collected: hosts have the same process ids, containers nearly always.
#[test]
fn lines_of_two_hosts_are_of_two_processes() {
    let failed = "SSL_connect error to mx.b.test[192.0.2.2]:25: lost connection";
    let end = "relay=mx.b.test[192.0.2.2]:25, delay=1, delays=0/0/0/1, dsn=4.7.5, \
               status=deferred (Cannot start TLS: handshake failure)";
    let of_a = sent("3A3A3A3A3A", "");
    let lines = [
        ("mx1 postfix/smtp[2]", TRUSTED.to_owned()),
        ("mx2 postfix/smtp[2]", failed.to_owned()),
        ("mx1 postfix/smtp[2]", of_a.strip_prefix("smtp[2]: ").unwrap().to_owned()),
        ("mx2 postfix/smtp[2]", format!("4A3A3A3A3A: to=<u@b.test>, {end}")),
    ];
    let mut sessions = PostfixSessions::new();
    let mut out = Vec::new();
    for (writer, text) in lines {
        let line = format!("2026-11-22T01:00:00Z {writer}: {text}");
        let event = parse(Dialect::Postfix, line.as_bytes()).unwrap().unwrap();
        sessions.handle_event(&event, 1_795_309_200, |_| false, &mut out);
    }
    let domains: Vec<_> = out.iter().map(|o| (&*o.domain, o.observed == Some(SessionResult::Success))).collect();
    assert_eq!(domains, [("a.test", true), ("b.test", false)]);
    // One host shows its sessions, of the other that is not known.
    assert!(
        sessions.logs_all_sessions(b"mx1\0postfix", 1_795_309_200)
            && !sessions.logs_all_sessions(b"mx2\0postfix", 1_795_309_200)
    );
}

#[test]
fn a_message_with_a_null_sender_is_known_by_its_queue_id() {
    let session = |queue_id: &str| [format!("smtp[2]: {TRUSTED}"), sent(queue_id, "")];
    let active = |queue_id: &str, sender: &str| {
        format!("qmgr[3]: {queue_id}: from=<{sender}>, size=2278, nrcpt=1 (queue active)")
    };
    let mut sessions = PostfixSessions::new();
    let mut known = |lines: &[String]| -> Vec<bool> {
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        outcomes(&mut sessions, &lines).iter().map(|o| o.null_sender).collect()
    };
    let with = |first: String, queue_id: &str| [&[first], &session(queue_id)[..]].concat();
    assert_eq!(known(&with(active("4AB0CDEF12", ""), "4AB0CDEF12")), [true]);
    assert_eq!(known(&with(active("4AB0CDEF13", "s@h.test"), "4AB0CDEF13")), [false]);
    // Tried again: qmgr(8) logs it each time.
    assert_eq!(known(&with(active("4AB0CDEF12", ""), "4AB0CDEF12")), [true]);
    // The line of qmgr(8) was not seen.
    assert_eq!(known(&session("4AB0CDEF14")), [false]);
    // A queue id comes again, for another message.
    assert_eq!(known(&with("qmgr[3]: 4AB0CDEF12: removed".into(), "4AB0CDEF12")), [true], "a line out of order");
    assert_eq!(known(&with(active("4AB0CDEF12", "s@h.test"), "4AB0CDEF12")), [false]);
    // Of another host that logs here, with the same queue id.
    let elsewhere = active("4AB0CDEF15", "");
    let line = format!("2026-11-22T01:00:00Z other postfix/{elsewhere}");
    let event = parse(Dialect::Postfix, line.as_bytes()).unwrap().unwrap();
    sessions.handle_event(&event, 1_795_309_200, |_| false, &mut Vec::new());
    let lines = session("4AB0CDEF15");
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    assert!(outcomes(&mut sessions, &lines).iter().all(|o| !o.null_sender));
}

#[test]
fn another_host_with_the_same_queue_id_does_not_end_what_is_counted() {
    let (one, two) =
        (delivery("4AB0CDEF12", "one", "tls=may, ", "status=sent (250 ok)"), sent("4AB0CDEF12", "tls=may, "));
    let removed = parse(Dialect::Postfix, b"2026-11-22T01:00:00Z other postfix/qmgr[3]: 4AB0CDEF12: removed");
    let mut sessions = PostfixSessions::new();
    assert_eq!(outcomes(&mut sessions, &[&one]).len(), 1);
    sessions.handle_event(&removed.unwrap().unwrap(), 1_795_309_200, |_| false, &mut Vec::new());
    assert_eq!(outcomes(&mut sessions, &[&two]).len(), 0, "the same request");
}
