//! What Exim's lines come to, as sessions.
//!
//! Takes: lines, as Exim writes them. Gives: sessions, by recipient domain.
//! Not here: the wording of a line (`parsers`).

use std::collections::BTreeMap;

use tlswarden_parsers::event::LogTimestamp;
use tlswarden_parsers::{Dialect, parse, parse_event_action};

use super::*;
use crate::base::tlsrpt::SessionResult;

const ID: &str = "1xUwYd-0005p2-2C";
const TLS: &str = "X=TLS1.3:X:256 CV=yes C=\"250 ok\"";
const BAD: &str = "TLS session: (certificate verification failed)";

/// What lines come to: `domain ok`, `domain failed: …`, `domain clear`. Each is written `SECOND TEXT`, of the message
/// [`ID`]; `!` begins what Exim tells.
fn outcomes(lines: &[&str]) -> Vec<String> {
    let (mut sessions, mut out) = (EximSessions::new(), Vec::new());
    for line in lines {
        if let Some(text) = line.strip_prefix('!') {
            sessions.handle_event_action(&parse_event_action(text.as_bytes()).unwrap());
            continue;
        }
        let (second, text) = line.split_once(' ').unwrap();
        let line = format!(
            "1970-01-01 00:{:02}:{:02} {ID} {text}",
            second.parse::<u32>().unwrap() / 60,
            second.parse::<u32>().unwrap() % 60
        );
        let event = parse(Dialect::Exim, line.as_bytes()).unwrap().unwrap_or_else(|| panic!("{line}"));
        let LogTimestamp::Local(time) = event.timestamp else { panic!("{line}") };
        sessions.handle_event(&event, time, |id| id.starts_with(b"ours."), &mut out);
    }
    sessions.end_all(9999, &mut out);
    out.iter()
        .map(|o| match &o.observed {
            None if o.deferred => format!("{} deferred", o.domain),
            None => format!("{} clear", o.domain),
            Some(SessionResult::Success) => format!("{} ok", o.domain),
            Some(SessionResult::Failure(result, _)) => {
                format!("{} failed at {}: {result}", o.domain, o.mx.as_deref().unwrap_or("-"))
            }
        })
        .collect()
}

fn sent(arrow: &str, to: &str, host: &str, rest: &str) -> String {
    format!("{arrow} {to} R=r T=t H={host} [192.0.2.1] {rest}")
}

fn deferred(to: &str, host: &str) -> String {
    format!("== {to} R=r T=t defer (-37) H={host} [192.0.2.1]: {BAD}")
}

#[test]
fn several_recipients_are_one_session_and_another_transaction_without_an_asterisk_is_another() {
    let first = sent("1 =>", "u@a.test", "mx.a.test", TLS);
    let too = sent("1 ->", "v@a.test", "mx.a.test", TLS);
    assert_eq!(outcomes(&[&first, &too]), ["a.test ok"]);
    let again = sent("2 =>", "w@a.test", "mx.a.test", TLS);
    assert_eq!(outcomes(&[&first, &too, &again]), ["a.test ok", "a.test ok"]);
    let on = again.replace("[192.0.2.1]", "[192.0.2.1]*");
    assert_eq!(outcomes(&[&first, &too, &on]), ["a.test ok"]);
    // Of several domains in one transaction the first one counts it.
    assert_eq!(outcomes(&[&first, &sent("1 ->", "v@b.test", "mx.a.test", TLS)]), ["a.test ok"]);
    // A refused one before it, and one that is put off, are of the same session.
    let refused = "1 ** x@a.test R=r T=t H=mx.a.test [192.0.2.1] X=TLS1.3:X:256 CV=yes: SMTP error: 550 no";
    let put_off = "1 == y@a.test R=r T=t defer (-44) H=mx.a.test [192.0.2.1]: SMTP error: 450 no";
    assert_eq!(outcomes(&[refused, put_off, &first, &too]), ["a.test ok"]);
    assert_eq!(outcomes(&[put_off]), [""; 0]);
}

#[test]
fn a_policy_that_is_not_known_is_one_attempt_for_each_domain() {
    let defer = |second: u32, to: &str, domain: &str, number: &str| {
        format!(
            "{second} == {to}@{domain} R=tlswarden defer{number}: TLS policy of {domain} is not known: TLSA at mx: x"
        )
    };
    for number in ["", " (-1)"] {
        let lines = [
            defer(1, "u", "a.test", number),
            defer(1, "u", "b.test", number),
            defer(1, "v", "a.test", number),
            defer(900, "u", "a.test", number),
        ];
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        assert_eq!(outcomes(&lines), ["a.test deferred", "b.test deferred", "a.test deferred"]);
    }
    assert_eq!(outcomes(&["1 == u@a.test R=other defer (-1): TLS policy of the house: not today"]), [""; 0]);
}

#[test]
fn the_same_recipient_again_is_another_attempt() {
    let failed = |second: u32| {
        [deferred("u@a.test", "mx.a.test"), deferred("v@a.test", "mx.a.test")].map(|l| format!("{second} {l}"))
    };
    let ([a, b], [c, d]) = (failed(1), failed(2));
    let once = "a.test failed at mx.a.test: certificate-host-mismatch";
    assert_eq!(outcomes(&[&a, &b]), [once]);
    assert_eq!(outcomes(&[&a, &b, &c, &d]), [once, once]);
    // Where the addresses are not tried again, neither is their session.
    let not_yet = "3 == u@a.test R=r T=t defer (-54): retry time not reached for any host for 'a.test'";
    assert_eq!(outcomes(&[&a, &b, not_yet]), [once]);
}

#[test]
fn a_failed_session_and_then_clear_text_is_one_that_failed() {
    let failed = "1 TLS session: (gnutls_handshake): timed out: delivering unencrypted to H=mx.a.test [192.0.2.1] (not in hosts_require_tls)";
    let clear = sent("2 =>", "u@a.test", "mx.a.test", "C=\"250 ok\"");
    assert_eq!(outcomes(&[failed, &clear]), ["a.test failed at mx.a.test: validation-failure"]);
    // One recipient was refused in clear text, or put off, and another one accepted.
    let other = sent("1 =>", "u@b.test", "mx.b.test", TLS);
    for first in [
        "2 ** v@a.test R=r T=t H=mx.a.test [192.0.2.1]: SMTP error from remote mail server after RCPT TO:<v@a.test>: 550 no",
        "2 == v@a.test R=r T=t defer (-44) H=mx.a.test [192.0.2.1]: SMTP error from remote mail server after RCPT TO:<v@a.test>: 450 no",
    ] {
        let want = ["b.test ok", "a.test failed at mx.a.test: validation-failure"];
        assert_eq!(outcomes(&[&other, failed, first, &clear]), want, "{first}");
    }
    // Without `X=` anywhere before, the selector may be off.
    assert_eq!(outcomes(&[&clear]), [""; 0]);
    let other = sent("1 =>", "u@b.test", "mx.b.test", TLS);
    assert_eq!(outcomes(&[&other, &clear]), ["b.test ok", "a.test clear"]);
}

#[test]
fn a_host_is_its_domain_s_whatever_comes_first() {
    let dane = "1 DANE attempt failed; TLS connection to mx1.a.test [192.0.2.7]: (certificate verification failed): Verification failed. The certificate differs. ";
    let (b, a) = (sent("2 =>", "u@b.test", "mx.b.test", TLS), sent("2 =>", "u@a.test", "mx2.a.test", TLS));
    let failed = "a.test failed at mx1.a.test: certificate-not-trusted";
    assert_eq!(counts(&[dane, &b, &a, "2 Completed"]), [failed, "a.test ok", "b.test ok"]);
    // Hosts of a provider, beside each other.
    let (dane, hosted) = (dane.replace("mx1.a.test", "mx1.mail.test"), a.replace("mx2.a.test", "mx2.mail.test"));
    let failed = "a.test failed at mx1.mail.test: certificate-not-trusted";
    assert_eq!(counts(&[&dane, &b, &hosted, "2 Completed"]), [failed, "a.test ok", "b.test ok"]);
    // Nothing tells: the first recipient's, at the end.
    let failed = "b.test failed at mx1.mail.test: certificate-not-trusted";
    assert_eq!(counts(&[&dane, &b, &a, "2 Completed"]), ["a.test ok", failed, "b.test ok"]);
}

#[test]
fn what_exim_tells_fills_in_what_its_log_leaves_out_and_nothing_else() {
    let event = |second: u32, host: &str, ip: &str| format!("!{second} {ID} {host} {ip} 25 a.test {BAD}");
    let first = event(1, "mx1.a.test", "192.0.2.7");
    let second = sent("2 =>", "u@a.test", "mx2.a.test", TLS);
    let failed = |host: &str| format!("a.test failed at {host}: certificate-host-mismatch");
    assert_eq!(outcomes(&[&first, &second]), [failed("mx1.a.test"), "a.test ok".into()]);
    // The log says it of the last host: before, after, and of another recipient of the same.
    let (last, line) = (event(1, "mx2.a.test", "192.0.2.1"), format!("2 {}", deferred("u@a.test", "mx2.a.test")));
    let too = format!("2 {}", deferred("v@a.test", "mx2.a.test"));
    let both = [failed("mx1.a.test"), failed("mx2.a.test")];
    assert_eq!(outcomes(&[&first, &last, &line, &too]), both);
    let late = event(2, "mx2.a.test", "192.0.2.1");
    assert_eq!(outcomes(&[&first, &line, &late, &too]), both);
    // DANE's own line, and the one about clear text.
    let dane =
        "1 DANE attempt failed; TLS connection to mx1.a.test [192.0.2.7]: (certificate verification failed)".to_owned();
    let clear = format!("1 {BAD}: delivering unencrypted to H=mx1.a.test [192.0.2.7] (not in hosts_require_tls)");
    for line in [&dane, &clear] {
        assert_eq!(outcomes(&[line, &first, &second]), [failed("mx1.a.test"), "a.test ok".into()]);
        assert_eq!(outcomes(&[&first, line, &second]), [failed("mx1.a.test"), "a.test ok".into()]);
    }
    // Lines of an earlier attempt, read late, take nothing of a later one.
    let later = event(600, "mx1.a.test", "192.0.2.7");
    let again = sent("601 =>", "u@a.test", "mx2.a.test", TLS);
    let all = [failed("mx2.a.test"), failed("mx1.a.test"), "a.test ok".into()];
    assert_eq!(outcomes(&[&later, &line, &again]), all);
    // Of a message that its log never names again.
    assert_eq!(outcomes(&[&first]), [failed("mx1.a.test")]);
}

#[test]
fn a_certificate_error_explains_the_attempt_that_it_was_found_in() {
    let found =
        |second: u32, error: &str| format!("{second} [192.0.2.1] SSL verify error: depth=0 error={error} cert=/CN=a");
    let rejected = |second: u32, to: &str| {
        format!(
            "{second} == {to} R=r T=t defer (-37) H=mx.a.test [192.0.2.1]: TLS session: (SSL_connect): error:0A000086:SSL routines::certificate verify failed"
        )
    };
    let (expired, own) = (found(1, "certificate has expired"), found(600, "self-signed certificate"));
    let (first, second) = (rejected(1, "u@a.test"), rejected(600, "u@a.test"));
    let failed = |result: &str| format!("a.test failed at mx.a.test: {result}");
    let (is_expired, is_untrusted) = (failed("certificate-expired"), failed("certificate-not-trusted"));
    assert_eq!(outcomes(&[&expired, &first, &own, &second]), [&*is_expired, &is_untrusted]);
    // Nothing is logged of the later attempt's certificate.
    assert_eq!(outcomes(&[&expired, &first, &second]), [&*is_expired, &is_untrusted]);
    // Two recipients of one attempt, and two domains at the same server.
    assert_eq!(outcomes(&[&expired, &first, &rejected(1, "v@a.test")]), [&*is_expired]);
    assert_eq!(outcomes(&[&expired, &first, &rejected(1, "v@b.test")]).len(), 2);
    // The name, and then the chain, of one certificate; the chain of an attempt that no recipient's line is about.
    let name = "1 [192.0.2.1] SSL verify error: certificate name mismatch: DN=\"/CN=b\" H=\"mx.a.test\"";
    assert_eq!(outcomes(&[name, &expired, &first]), [&*is_expired]);
    assert_eq!(outcomes(&[&expired, name, &first]), [&*is_expired]);
    assert_eq!(outcomes(&[&expired, &own, &second]), [&*is_untrusted]);
}

#[test]
fn unusable_tlsa_records_are_of_the_host_that_follows() {
    let unusable = "1 DANE error: No usable TLSA records";
    let dane = "1 DANE attempt failed; TLS connection to mx.a.test [192.0.2.1]: NULL";
    let first = "1 == u@a.test R=r T=t defer (-37) H=mx.a.test [192.0.2.1]: TLS session: NULL";
    let other = "2 == u@b.test R=r T=t defer (-37) H=mx.b.test [192.0.2.2]: TLS session: (SSL_connect): timed out";
    let later = "600 == u@a.test R=r T=t defer (-37) H=mx.a.test [192.0.2.1]: TLS session: (SSL_connect): timed out";
    let (a, b) = ("a.test failed at mx.a.test: tlsa-invalid", "b.test failed at mx.b.test: validation-failure");
    assert_eq!(outcomes(&[unusable, dane, first, other]), [a, b]);
    assert_eq!(outcomes(&[unusable, first, other]), [a, b]);
    assert_eq!(outcomes(&[unusable, dane, first, later]), [a, "a.test failed at mx.a.test: validation-failure"]);
}

#[test]
fn hosts_outside_the_policy_count_with_the_recipient_and_not_later() {
    let text = |host: &str, domain: &str| {
        format!("deferred by smtp:connect event expansion: MX host {host} is not in the MTA-STS policy of {domain}")
    };
    let host = |host: &str, domain: &str| format!("1 H={host} [192.0.2.1]:25: {}", text(host, domain));
    let recipient =
        |to: &str, host: &str, domain: &str| format!("1 == {to} R=r T=t defer (-27): {}", text(host, domain));
    let lines = [
        host("mx1.b.test", "b.test"),
        host("mx2.b.test", "b.test"),
        host("mx.provider.test", "A.test"),
        recipient("u@a.test", "mx.provider.test", "a.test"),
        recipient("u@b.test", "mx2.b.test", "b.test"),
    ];
    let wanted = ["a.test failed at mx.provider.test", "b.test failed at mx1.b.test", "b.test failed at mx2.b.test"];
    let wanted = wanted.map(|start| format!("{start}: validation-failure"));
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    assert_eq!(outcomes(&lines), wanted);
    // Each is out with its recipient's line, not once the message is done with.
    let (mut sessions, mut out) = (EximSessions::new(), Vec::new());
    for line in &lines[2..4] {
        let line = format!("1970-01-01 00:00:01 {ID} {}", line.split_once(' ').unwrap().1);
        let event = parse(Dialect::Exim, line.as_bytes()).unwrap().unwrap();
        sessions.handle_event(&event, 1, |_| false, &mut out);
    }
    assert_eq!(out.len(), 1);
}

#[test]
fn our_own_report_is_not_counted() {
    let arrived = "1 <= s@h.test U=u P=local S=9 id=ours.1@h.test";
    let dane = "1 DANE attempt failed; TLS connection to mx1.a.test [192.0.2.7]: (certificate verification failed)";
    let sent = sent("2 =>", "u@a.test", "mx2.a.test", TLS);
    assert_eq!(outcomes(&[arrived, dane, &sent, "2 Completed"]), [""; 0]);
    assert_eq!(outcomes(&[&arrived.replace("ours", "theirs"), &sent]), ["a.test ok"]);
}

#[test]
fn a_message_with_a_null_sender_is_known_by_its_arrival() {
    let line = |text: &str| format!("1970-01-01 00:00:01 {text}");
    let sent =
        |id: &str, domain: &str| line(&format!("{id} {}", self::sent("=>", &format!("u@{domain}"), "mx.x.test", TLS)));
    let failed = |id: &str, domain: &str| line(&format!("{id} {}", deferred(&format!("u@{domain}"), "mx.x.test")));
    let lines = [
        line("1xUwYd-0005p2-2C <= <> R=1xUwYb-0005p0-1A U=Debian-exim P=local S=1611"),
        sent("1xUwYd-0005p2-2C", "a.test"),
        failed("1xUwYd-0005p2-2C", "b.test"),
        line("1xUwYe-0005p3-2D <= s@h.test H=c.test [192.0.2.9] P=esmtp S=9 id=x@c.test"),
        sent("1xUwYe-0005p3-2D", "c.test"),
        line("1xUwYf-0005p4-2E <= <> H=d.test [192.0.2.9] P=esmtp S=9 id=y@d.test"),
        sent("1xUwYf-0005p4-2E", "d.test"),
        // Its arrival is in no log that is read.
        sent("1xUwYg-0005p5-2F", "e.test"),
        line("1xUwYh-0005p6-2G <= \"<> \"@h.test U=u P=local S=9"),
        sent("1xUwYh-0005p6-2G", "f.test"),
    ];
    let mut sessions = EximSessions::new();
    let mut out = Vec::new();
    for text in &lines {
        let Some(event) = parse(Dialect::Exim, text.as_bytes()).unwrap() else { continue };
        sessions.handle_event(&event, 1, |_| false, &mut out);
    }
    sessions.end_all(9, &mut out);
    let found: BTreeMap<&str, bool> = out.iter().map(|o| (&*o.domain, o.null_sender)).collect();
    let wanted =
        [("a.test", true), ("b.test", true), ("c.test", false), ("d.test", true), ("e.test", false), ("f.test", false)];
    assert_eq!(found, BTreeMap::from(wanted));
}

#[test]
fn tlsa_records_that_cannot_be_looked_up_count_where_the_mail_waits() {
    let line = |host: &str, ip: &str| format!("1 H={host} [{ip}]: DANE error: tlsa lookup DEFER");
    let (one, two) = (line("mx1.a.test", "192.0.2.7"), line("mx2.a.test", "192.0.2.8"));
    let waits = "2 == u@a.test R=r T=t defer (-36): DANE error: tlsa lookup DEFER";
    let failed = |host: &str| format!("a.test failed at {host}: dnssec-invalid");
    assert_eq!(outcomes(&[&one, &two, waits]), [failed("mx1.a.test"), failed("mx2.a.test")]);
    assert_eq!(outcomes(&[waits]), [failed("-")]);
    // Each of two domains has its own.
    let of_b = "1 H=mx.b.test [192.0.2.9]: DANE error: tlsa lookup DEFER";
    let b_waits = "2 == u@b.test R=r T=t defer (-36): DANE error: tlsa lookup DEFER";
    let (a, b) = (failed("mx1.a.test"), "b.test failed at mx.b.test: dnssec-invalid");
    assert_eq!(counts(&[&one, of_b, waits, b_waits]), [&*a, b]);
    assert_eq!(counts(&[&one, of_b, b_waits, waits]), [&*a, b]);
    assert_eq!(outcomes(&[&one, &sent("2 =>", "u@a.test", "mx2.a.test", TLS), "3 Completed"]), ["a.test ok"]);
}

const NO_STARTTLS: &str = "a TLS session is required, but the server did not offer TLS support";

/// `H=HOST [IP]: …`: STARTTLS is missing there.
fn missing(second: u32, host: &str, ip: &str) -> String {
    format!("{second} H={host} [{ip}]: {NO_STARTTLS}")
}

/// A recipient whose last host has no STARTTLS.
fn waits_for_starttls(second: u32, to: &str, host: &str, ip: &str) -> String {
    format!("{second} == {to} R=r T=t defer (-38) H={host} [{ip}]: {NO_STARTTLS}")
}

fn in_clear(second: u32, host: &str, ip: &str) -> String {
    format!(
        "{second} TLS session: (gnutls_handshake): timed out: delivering unencrypted to H={host} [{ip}] (not in hosts_require_tls)"
    )
}

fn delivered(second: u32, arrow: &str, to: &str, host: &str, ip: &str, rest: &str) -> String {
    format!("{second} {arrow} {to} R=r T=t H={host} [{ip}] {rest}")
}

/// Sorted, for the order in which sessions become known says nothing.
fn counts(lines: &[&str]) -> Vec<String> {
    let mut found = outcomes(lines);
    found.sort();
    found
}

fn no_starttls(domain: &str, host: &str) -> String {
    format!("{domain} failed at {host}: starttls-not-supported")
}

#[test]
fn a_host_that_is_named_twice_is_one_session_whatever_stands_between() {
    for (v4, v6) in [("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2"), ("192.0.2.1", "2001:db8::2")] {
        let host = missing(1, "mx2.d.test", v6);
        let taken = delivered(2, "=>", "a@d.test", "mx1.d.test", v4, TLS);
        let waits = waits_for_starttls(3, "b@d.test", "mx2.d.test", v6);
        let want = [no_starttls("d.test", "mx2.d.test"), "d.test ok".into()];
        assert_eq!(counts(&[&host, &taken, &waits]), want);
        assert_eq!(counts(&[&host, &waits, &taken]), want);
        // Another recipient that waits for the same host, and the message is done with.
        let too = waits_for_starttls(3, "c@d.test", "mx2.d.test", v6);
        assert_eq!(counts(&[&host, &taken, &waits, &too, "4 Completed"]), want);
        // From 4.100 on without an error number.
        let waits = waits.replace("defer (-38)", "defer");
        assert_eq!(counts(&[&host, &taken, &waits]), want);
    }
    // Required TLS failed at the same host and address twice: DANE's own line, and the recipient's.
    let dane = "1 DANE attempt failed; TLS connection to mx2.d.test [192.0.2.2]: (gnutls_handshake): timed out";
    let taken = delivered(2, "=>", "a@d.test", "mx1.d.test", "192.0.2.1", TLS);
    let waits =
        "3 == b@d.test R=r T=t defer (-37) H=mx2.d.test [192.0.2.2]: TLS session: (gnutls_handshake): timed out";
    let want = ["d.test failed at mx2.d.test: validation-failure", "d.test ok"];
    assert_eq!(counts(&[dane, &taken, waits]), want);
}

#[test]
fn domains_at_one_provider_each_have_the_host_that_failed_for_them() {
    let fail = |second| missing(second, "mx1.prov.test", "192.0.2.1");
    let ok = |second, to: &str| delivered(second, "=>", to, "mx2.prov.test", "192.0.2.2", TLS);
    let (f1, f2, f3) = (fail(1), fail(1), fail(2));
    let (a, b, c) = (ok(3, "u@a.test"), ok(3, "u@b.test"), ok(4, "u@c.test"));
    let failed = |domain: &str| no_starttls(domain, "mx1.prov.test");
    let all = [failed("a.test"), "a.test ok".into(), failed("b.test"), "b.test ok".into()];
    assert_eq!(counts(&[&f1, &f2, &a, &b, "5 Completed"]), all);
    // The second process is slower than the first one's recipients.
    assert_eq!(counts(&[&f1, &a, &f3, &b, "5 Completed"]), all);
    // Without `Completed`, as long as another recipient waits.
    assert_eq!(counts(&[&f1, &f2, &a, &b]), all);
    // Three domains.
    let three = [&all[..], &[failed("c.test"), "c.test ok".into()]].concat();
    assert_eq!(counts(&[&f1, &f2, &f3, &a, &b, &c, "5 Completed"]), three);
    // One host failed, and of the three the first one has it.
    let one = [failed("a.test"), "a.test ok".into(), "b.test ok".into(), "c.test ok".into()];
    assert_eq!(counts(&[&f1, &a, &b, &c, "5 Completed"]), one);
    // All of the provider's hosts failed, and each domain's recipients wait.
    let g = || missing(2, "mx2.prov.test", "192.0.2.2");
    let wait = |to: &str| waits_for_starttls(3, to, "mx2.prov.test", "192.0.2.2");
    let (g1, g2, a, b) = (g(), g(), wait("u@a.test"), wait("u@b.test"));
    let want = [
        failed("a.test"),
        no_starttls("a.test", "mx2.prov.test"),
        failed("b.test"),
        no_starttls("b.test", "mx2.prov.test"),
    ];
    assert_eq!(counts(&[&f1, &f2, &g1, &g2, &a, &b]), want);
    // A domain of another provider is in the message too, and first.
    let other = delivered(3, "=>", "u@x.test", "mx.x.test", "192.0.2.9", TLS);
    let with_other = [&want[..], &["x.test ok".into()]].concat();
    assert_eq!(counts(&[&f1, &f2, &g1, &g2, &other, &a, &b]), with_other);
}

#[test]
fn recipients_of_several_domains_share_a_connection_where_exim_may_join_them() {
    // multi_domain, as it is by default: one process, and each host is named once.
    let (f1, f2) = (missing(1, "mx1.prov.test", "192.0.2.1"), missing(1, "mx2.prov.test", "192.0.2.2"));
    let wait = |to: &str| waits_for_starttls(2, to, "mx2.prov.test", "192.0.2.2");
    let (a, b) = (wait("u@a.test"), wait("u@b.test"));
    let both = [no_starttls("a.test", "mx1.prov.test"), no_starttls("a.test", "mx2.prov.test")];
    assert_eq!(counts(&[&f1, &f2, &a, &b]), both);
    let taken = delivered(2, "=>", "u@a.test", "mx2.prov.test", "192.0.2.2", TLS);
    let too = delivered(2, "->", "u@b.test", "mx2.prov.test", "192.0.2.2", TLS);
    let want = [no_starttls("a.test", "mx1.prov.test"), "a.test ok".into()];
    assert_eq!(counts(&[&f1, &taken, &too, "3 Completed"]), want);
    // TLS failed, and in clear text one domain's recipient was refused and the other's accepted.
    let x = delivered(1, "=>", "u@x.test", "mx.x.test", "192.0.2.9", TLS);
    let clear = in_clear(2, "mx1.prov.test", "192.0.2.1");
    let refused = "3 ** u@a.test R=r T=t H=mx1.prov.test [192.0.2.1]: SMTP error from remote mail server after RCPT TO:<u@a.test>: 550 no";
    let taken = delivered(3, "=>", "u@b.test", "mx1.prov.test", "192.0.2.1", "C=\"250 ok\"");
    let want = ["a.test failed at mx1.prov.test: validation-failure", "x.test ok"];
    assert_eq!(counts(&[&x, &clear, refused, &taken]), want);
    // multi_domain = false: each had a connection of its own.
    let own = [
        "a.test failed at mx1.prov.test: validation-failure",
        "b.test failed at mx1.prov.test: validation-failure",
        "x.test ok",
    ];
    assert_eq!(counts(&[&x, &clear, &clear, refused, &taken]), own);
    // A domain that needs no TLS there, beside one that does.
    let (f, b) = (missing(1, "mx1.prov.test", "192.0.2.1"), taken);
    let a = waits_for_starttls(2, "u@a.test", "mx1.prov.test", "192.0.2.1");
    let want = [no_starttls("a.test", "mx1.prov.test"), "b.test clear".into(), "x.test ok".into()];
    assert_eq!(counts(&[&x, &f, &a, &b]), want);
    assert_eq!(counts(&[&x, &f, &b, &a]), want);
}

#[test]
fn a_provider_s_host_for_each_customer_tells_whose_it_is() {
    for v6 in ["192.0.2.2", "2001:db8::2"] {
        let clear = in_clear(1, "d2-test.mail.out.test", v6);
        let of_1 = delivered(2, "=>", "a@d1.test", "d1-test.mail.out.test", "192.0.2.1", TLS);
        let of_2 = delivered(3, "=>", "b@d2.test", "d2-test.mail.out.test", v6, "C=\"250 ok\"");
        let of_3 = delivered(4, "=>", "c@d3.test", "d3-test.mail.out.test", "192.0.2.3", TLS);
        let want = ["d1.test ok", "d2.test failed at d2-test.mail.out.test: validation-failure", "d3.test ok"];
        assert_eq!(counts(&[&clear, &of_1, &of_2, &of_3, "5 Completed"]), want);
        assert_eq!(counts(&[&clear, &of_2, &of_3, &of_1, "5 Completed"]), want);
        // The mail got through at another address of the host, or at a host of another name.
        let want = ["d1.test ok", want[1], "d2.test ok", "d3.test ok"];
        for host in ["d2-test.mail.out.test", "d2-test.backup.test"] {
            let of_2 = delivered(3, "=>", "b@d2.test", host, "192.0.2.4", TLS);
            assert_eq!(counts(&[&clear, &of_1, &of_3, &of_2, "5 Completed"]), want);
        }
    }
}

#[test]
fn a_process_number_tells_whose_a_host_is() {
    // The processes of two domains write at the same time; with +pid each line begins with its process.
    let line = |pid: u32, text: &str| format!("1970-01-01 00:00:01 [{pid}] {ID} {text}");
    let fail = |pid, host: &str, ip: &str| line(pid, &format!("H={host} [{ip}]: {NO_STARTTLS}"));
    let lines = [
        fail(21, "one.prov.test", "192.0.2.1"),
        fail(22, "two.prov.test", "192.0.2.2"),
        fail(22, "last.prov.test", "192.0.2.3"),
        line(20, &format!("=> u@a.test R=r T=t H=four.prov.test [192.0.2.4] {TLS}")),
        line(20, &format!("== u@b.test R=r T=t defer (-38) H=last.prov.test [192.0.2.3]: {NO_STARTTLS}")),
    ];
    let (mut sessions, mut out) = (EximSessions::new(), Vec::new());
    for line in &lines {
        let event = parse(Dialect::Exim, line.as_bytes()).unwrap().unwrap();
        sessions.handle_event(&event, 1, |_| false, &mut out);
    }
    sessions.end_all(9, &mut out);
    let mut found: Vec<_> = out.iter().map(|o| (&*o.domain, o.mx.as_deref().unwrap())).collect();
    found.sort_unstable();
    let want = [
        ("a.test", "four.prov.test"),
        ("a.test", "one.prov.test"),
        ("b.test", "last.prov.test"),
        ("b.test", "two.prov.test"),
    ];
    assert_eq!(found, want);
}

#[test]
fn each_attempt_of_a_message_has_its_own_failures() {
    let attempt = |second: u32| {
        [
            missing(second, "mx1.a.test", "192.0.2.1"),
            format!(
                "{second} == u@a.test R=r T=t defer (-44) H=mx2.a.test [192.0.2.2] X=TLS1.3:X:256 CV=yes: SMTP error from remote mail server after RCPT TO:<u@a.test>: 450 later"
            ),
        ]
    };
    // Hours of retries, and no `Completed`.
    let lines: Vec<String> = [0, 900, 1800, 3500].into_iter().flat_map(attempt).collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    assert_eq!(counts(&lines), vec![no_starttls("a.test", "mx1.a.test"); 4]);
    // A domain that got its mail at the first attempt has no part in the second.
    let first = missing(1, "mx1.prov.test", "192.0.2.1");
    let a = delivered(2, "=>", "u@a.test", "mx2.prov.test", "192.0.2.2", TLS);
    let b = "2 == u@b.test R=r T=t defer (-54) DT=0s: retry time not reached for any host for 'b.test'";
    let second = missing(1000, "mx1.prov.test", "192.0.2.1");
    let c = delivered(1001, "=>", "u@b.test", "mx2.prov.test", "192.0.2.2", TLS);
    let failed = |domain: &str| no_starttls(domain, "mx1.prov.test");
    let want = [failed("a.test"), "a.test ok".into(), failed("b.test"), "b.test ok".into()];
    assert_eq!(counts(&[&first, &a, b, &second, &c, "1001 Completed"]), want);
}
