//! A decision in the words of Postfix's `smtp_tls_policy_maps` (postconf(5), socketmap(5)).
//!
//! Takes: a decision, and the map that was asked. Gives: the reply, without its netstring.
//! [`Wording::Policy`] is for Postfix up to 3.9, [`Wording::PolicyTlsrpt`] for 3.10 and later: an attribute that the
//! asking Postfix does not know would defer the mail.
//! Limits: [`MAX_REPLY`] octets; beyond, policy strings are left out, then all that only reports and newer Postfixes need.
//! Not here: frames (`netstring`), deciding (`policy`).

#[cfg(test)]
mod model;

use std::fmt::Write;

use crate::answering::policy::decision::{Decision, Level};
use crate::answering::policy::sts::document::Document;
use crate::config::PostfixLevel as DefaultLevel;

/// The longest reply that every Postfix takes, in octets (`socketmap_max_reply_size`).
pub const MAX_REPLY: usize = 100_000;

/// How a decision is worded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wording {
    /// For Postfix up to 3.9.
    Policy,
    /// For Postfix 3.10 and later.
    PolicyTlsrpt,
}

impl Wording {
    /// The names of our maps, and those of other programs that we can stand in for.
    pub fn of_map(name: &[u8]) -> Option<Wording> {
        match name {
            b"policy" | b"QUERY" | b"postfix" => Some(Wording::Policy),
            b"policy-tlsrpt" | b"QUERYwithTLSRPT" => Some(Wording::PolicyTlsrpt),
            _ => None,
        }
    }

    /// Each with the name of its map.
    pub const ALL: [(Wording, &'static str); 2] =
        [(Wording::Policy, "policy"), (Wording::PolicyTlsrpt, "policy-tlsrpt")];
}

/// The reply: `OK POLICY`, `NOTFOUND `, `TEMP CAUSE`. `default` is the host's own level.
pub fn reply(wording: Wording, decision: &Decision, default: DefaultLevel) -> String {
    match (&decision.level, &decision.sts, wording) {
        (Level::DaneOnly, ..) => "OK dane-only".into(),
        (Level::Dane, ..) => "OK dane".into(),
        // Checked at load against the grammar of the Postfix that asks.
        (Level::Fixed(answer), ..) => format!("OK {answer}"),
        (Level::Temp(cause), ..) => format!("TEMP {}", one_line(cause)),
        (Level::Secure, Some(policy), wording) => secure(wording, &decision.domain, &policy.document(&decision.domain)),
        (Level::Default, Some(policy), Wording::PolicyTlsrpt) => {
            testing(&decision.domain, &policy.document(&decision.domain), default)
        }
        (Level::Default, ..) => "NOTFOUND ".into(),
        // `policy` gives every enforced decision its policy.
        (Level::Secure, None, _) => "TEMP the policy is missing".into(),
    }
}

fn secure(wording: Wording, domain: &str, policy: &Document) -> String {
    let names: Vec<&str> = policy.mx.iter().map(|mx| mx.strip_prefix('*').unwrap_or(mx)).collect();
    let plain = format!("OK secure match={} servername=hostname", names.join(":"));
    match wording {
        Wording::Policy => plain,
        Wording::PolicyTlsrpt => with_attributes(&plain, domain, policy, true).unwrap_or(plain),
    }
}

/// Delivered as the host delivers without a policy; the attributes are for reports. At `dane`, `verify` and `secure`
/// Postfix would enforce the patterns, which a testing policy does not ask for.
fn testing(domain: &str, policy: &Document, default: DefaultLevel) -> String {
    let (level, patterns) = match default {
        DefaultLevel::None => return "NOTFOUND ".into(),
        DefaultLevel::May => ("may", true),
        DefaultLevel::Encrypt => ("encrypt", true),
        DefaultLevel::Dane => ("dane", false),
        DefaultLevel::DaneOnly => ("dane-only", false),
        DefaultLevel::Verify => ("verify", false),
        DefaultLevel::Secure => ("secure", false),
    };
    with_attributes(&format!("OK {level}"), domain, policy, patterns).unwrap_or_else(|| "NOTFOUND ".into())
}

/// `policy_failure` is never among them: it makes an enforced delivery fail. Policies without any string end Postfix
/// 3.10.0 to 3.10.5: where there is no room for all, the short ones stay; nothing where there is no room for those.
fn with_attributes(plain: &str, domain: &str, policy: &Document, patterns: bool) -> Option<String> {
    let mut text = format!("{plain} policy_type=sts policy_domain={domain}");
    if patterns {
        for mx in &policy.mx {
            // Writing to a String cannot fail.
            let _ = write!(text, " mx_host_pattern={mx}");
        }
    }
    let strings: Vec<String> = policy.lines.iter().filter_map(|line| attribute(line)).collect();
    let all: usize = strings.iter().map(String::len).sum();
    let wanted = |s: &&String| text.len() + all <= MAX_REPLY || !s.starts_with(MX_STRING);
    let chosen: Vec<&String> = strings.iter().filter(wanted).collect();
    let size = text.len() + chosen.iter().map(|s| s.len()).sum::<usize>();
    if chosen.is_empty() || size > MAX_REPLY {
        return None;
    }
    chosen.into_iter().for_each(|s| text.push_str(s));
    Some(text)
}

/// How the attribute of an `mx` line begins: the lines that make a document long.
const MX_STRING: &str = " { policy_string = mx:";

/// A line of the document as an attribute. Braces would end it, other octets than printable ASCII may not survive
/// Postfix: lines with them are left out.
fn attribute(line: &str) -> Option<String> {
    let line = line.trim();
    let safe = !line.is_empty() && line.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'{' && b != b'}');
    safe.then(|| format!(" {{ policy_string = {line} }}"))
}

/// Causes come from DNS: printable, one line, short.
fn one_line(cause: &str) -> String {
    cause.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).take(200).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::model::{accepted, postfix};
    use super::*;
    use crate::answering::policy::sts::document;
    use crate::answering::policy::sts::policy::Cached;
    use crate::base::tlsrpt::Mode;

    fn cached(lines: &str) -> Arc<Cached> {
        Arc::new(Cached::of("example.com", "1", &document::parse(lines.as_bytes()).unwrap(), 0))
    }

    fn word(wording: Wording, level: Level, lines: &str, default: DefaultLevel) -> String {
        let sts = (!lines.is_empty()).then(|| cached(lines));
        reply(wording, &Decision::for_tests("example.com", level, sts), default)
    }

    const ENFORCE: &str = "version: STSv1\nmode: enforce\nmx: mx1.example.com\nmx: *.example.net\nmax_age: 604800\n";

    #[test]
    fn enforced() {
        assert_eq!(
            word(Wording::Policy, Level::Secure, ENFORCE, DefaultLevel::May),
            "OK secure match=mx1.example.com:.example.net servername=hostname"
        );
        assert_eq!(
            word(Wording::PolicyTlsrpt, Level::Secure, ENFORCE, DefaultLevel::May),
            "OK secure match=mx1.example.com:.example.net servername=hostname policy_type=sts \
             policy_domain=example.com mx_host_pattern=mx1.example.com mx_host_pattern=*.example.net \
             { policy_string = version: STSv1 } { policy_string = mode: enforce } \
             { policy_string = mx: mx1.example.com } { policy_string = mx: *.example.net } \
             { policy_string = max_age: 604800 }"
        );
    }

    #[test]
    fn testing_is_delivered_as_without_a_policy() {
        let lines = "version: STSv1\nmode: testing\nmx: mx1.example.com\nmax_age: 1\n";
        let newer = |default| word(Wording::PolicyTlsrpt, Level::Default, lines, default);
        assert_eq!(word(Wording::Policy, Level::Default, lines, DefaultLevel::May), "NOTFOUND ");
        assert_eq!(newer(DefaultLevel::None), "NOTFOUND ");
        let strings = "{ policy_string = version: STSv1 } { policy_string = mode: testing } \
                       { policy_string = mx: mx1.example.com } { policy_string = max_age: 1 }";
        let sts = "policy_type=sts policy_domain=example.com";
        for level in [DefaultLevel::May, DefaultLevel::Encrypt] {
            let name = if level == DefaultLevel::May { "may" } else { "encrypt" };
            assert_eq!(newer(level), format!("OK {name} {sts} mx_host_pattern=mx1.example.com {strings}"));
        }
        assert_eq!(newer(DefaultLevel::Dane), format!("OK dane {sts} {strings}"));
        assert_eq!(newer(DefaultLevel::Verify), format!("OK verify {sts} {strings}"));
        assert_eq!(newer(DefaultLevel::Secure), format!("OK secure {sts} {strings}"));
    }

    #[test]
    fn the_other_levels_have_no_attributes() {
        for (wording, _) in Wording::ALL {
            let say = |level| word(wording, level, "", DefaultLevel::May);
            assert_eq!(say(Level::DaneOnly), "OK dane-only");
            assert_eq!(say(Level::Dane), "OK dane");
            assert_eq!(say(Level::Default), "NOTFOUND ");
            assert_eq!(say(Level::Temp("no\nanswer".into())), "TEMP no?answer");
        }
    }

    #[test]
    fn served_text_cannot_break_out() {
        let lines = format!("{ENFORCE}x: a }} match=evil.example {{ b\ny: {{\nz: \u{e9}\n");
        let text = word(Wording::PolicyTlsrpt, Level::Secure, &lines, DefaultLevel::May);
        assert!(!text.contains("evil") && !text.contains('\u{e9}'), "{text}");
        let (level, attributes) = postfix(text.strip_prefix("OK ").unwrap()).unwrap();
        assert_eq!(level, "secure");
        assert_eq!(attributes.iter().filter(|(name, _)| name == "match").count(), 1);
        assert_eq!(attributes.iter().filter(|(name, _)| name == "policy_string").count(), 5);
    }

    #[test]
    fn a_reply_over_the_limit_drops_what_only_reports_need() {
        let with = |count: usize, label: usize| {
            let mx: String = (0..count).map(|n| format!("mx: {n:05}{}.example\n", "a".repeat(label))).collect();
            let lines = format!("version: STSv1\nmode: enforce\n{mx}max_age: 1\n");
            assert!(lines.len() <= document::MAX_DOCUMENT);
            (
                word(Wording::Policy, Level::Secure, &lines, DefaultLevel::May),
                word(Wording::PolicyTlsrpt, Level::Secure, &lines, DefaultLevel::May),
            )
        };
        let (_, small) = with(300, 0);
        assert_eq!(small.matches("policy_string = mx:").count(), 300);
        let (_, large) = with(1800, 0);
        assert!(large.len() <= MAX_REPLY && large.contains("mode: enforce") && !large.contains("policy_string = mx:"));
        assert_eq!(large.matches("mx_host_pattern=").count(), 1800);
        let (plain, largest) = with(900, 50);
        assert_eq!(plain, largest);
    }

    proptest::proptest! {
        #[test]
        fn postfix_takes_every_answer(
            lines in proptest::collection::vec("[ -~\u{e9}{}=,:\t]{0,40}", 0..8),
            mx in proptest::collection::vec("(\\*\\.)?[a-z0-9-]{1,9}\\.[a-z]{2,4}", 0..5),
            mode in 0..2,
            default in 0..7usize,
        ) {
            use DefaultLevel as L;
            let default = [L::None, L::May, L::Encrypt, L::Dane, L::DaneOnly, L::Verify, L::Secure][default];
            let mode = ["enforce", "testing"][mode as usize];
            let mx: String = mx.iter().map(|mx| format!("mx: {mx}\n")).collect();
            let extra: String = lines.iter().map(|l| format!("x: a{l}\n")).collect();
            let text = format!("version: STSv1\nmode: {mode}\nmax_age: 1\nmx: a.example\n{mx}{extra}");
            let Ok(document) = document::parse(text.as_bytes()) else { return Ok(()) };
            let level = if document.mode == Mode::Enforce { Level::Secure } else { Level::Default };
            for (wording, _) in Wording::ALL {
                let said = word(wording, level.clone(), &text, default);
                assert!(said.len() <= MAX_REPLY);
                if let Some(policy) = said.strip_prefix("OK ") {
                    let (level, attributes) = postfix(policy).unwrap();
                    accepted(&level, &attributes, wording == Wording::PolicyTlsrpt).unwrap();
                    let matched = |name: &str| attributes.iter().filter(|(n, _)| n == name).count();
                    assert_eq!(matched("match"), usize::from(document.mode == Mode::Enforce));
                    if matches!(level.as_str(), "dane" | "dane-only" | "verify") {
                        assert_eq!(matched("mx_host_pattern"), 0);
                    }
                } else {
                    assert_eq!(said, "NOTFOUND ");
                }
            }
        }
    }
}
