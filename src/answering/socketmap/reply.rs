//! A decision in the words of Postfix's `smtp_tls_policy_maps` (postconf(5), socketmap(5)).
//!
//! Takes: a decision, and the map that was asked. Gives: the reply, without its netstring.
//! [`ReplyFormat::Policy`] is for Postfix up to 3.9, [`ReplyFormat::PolicyTlsrpt`] for 3.10 and later: an attribute that the
//! asking Postfix does not know would defer the mail.
//! Limits: [`MAX_REPLY`] octets; beyond, policy strings are left out, then all that only reports and newer Postfixes need.
//! Not here: frames (`netstring`), deciding (`policy`).

#[cfg(test)]
mod model;

use std::fmt::Write;

use crate::answering::policy::decision::{Answer, Basis, Decision, PostfixTraits};
use crate::answering::policy::sts::document::PolicyDocument;
use crate::base::tlsrpt::Mode;
use crate::config::PostfixLevel;

/// The longest reply that every Postfix takes, in octets (`socketmap_max_reply_size`).
pub const MAX_REPLY: usize = 100_000;

/// How a decision is worded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyFormat {
    /// For Postfix up to 3.9.
    Policy,
    /// For Postfix 3.10 and later.
    PolicyTlsrpt,
}

impl ReplyFormat {
    /// The names of our maps, and those of other programs that we can stand in for.
    pub fn of_map(name: &[u8]) -> Option<ReplyFormat> {
        match name {
            b"policy" | b"QUERY" | b"postfix" => Some(ReplyFormat::Policy),
            b"policy-tlsrpt" | b"QUERYwithTLSRPT" => Some(ReplyFormat::PolicyTlsrpt),
            _ => None,
        }
    }

    /// Each with the name of its map.
    pub const ALL: [(ReplyFormat, &'static str); 2] =
        [(ReplyFormat::Policy, "policy"), (ReplyFormat::PolicyTlsrpt, "policy-tlsrpt")];
}

/// A map as it is asked: how its answers are worded, and the own level of the service that asks, where it names one:
/// `policy`, `policy@encrypt`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapName {
    /// How its answers are worded.
    pub wording: ReplyFormat,
    /// The level behind the `@`.
    pub own_level: Option<PostfixLevel>,
}

impl MapName {
    /// Reads it; nothing where there is no such map. A level that Postfix does not have is [`PostfixLevel::Unknown`].
    pub fn parse(name: &[u8]) -> Option<MapName> {
        let at = name.iter().position(|byte| *byte == b'@');
        let (map, level) = at.map_or((name, None), |at| (&name[..at], Some(&name[at + 1..])));
        let known = |level| std::str::from_utf8(level).ok().and_then(PostfixLevel::from_name);
        let own_level = level.map(|level| known(level).unwrap_or(PostfixLevel::Unknown));
        Some(MapName { wording: ReplyFormat::of_map(map)?, own_level })
    }
}

/// The reply to a service with this own level: `OK POLICY`, `NOTFOUND `, `TEMP CAUSE`.
pub fn format_reply(
    wording: ReplyFormat,
    decision: &Decision,
    own_level: PostfixLevel,
    postfix: PostfixTraits,
) -> String {
    let published = match &decision.basis {
        Basis::Published(published) => published,
        // Checked at load against the grammar of the Postfix that asks.
        Basis::Override(answer) => return format!("OK {answer}"),
    };
    let domain = &*decision.domain;
    let sts = decision.sts.as_ref().map(|policy| (policy.mode, policy.document(domain)));
    let answer = published.facts(decision.sts.as_ref().map(|policy| policy.mode)).for_postfix(own_level, postfix);
    let testing = match &sts {
        Some((Mode::Testing, document)) if wording == ReplyFormat::PolicyTlsrpt => Some(document),
        _ => None,
    };
    match (answer, testing, &sts) {
        (Answer::DaneOnly, ..) => "OK dane-only".into(),
        (Answer::Encrypt, ..) => "OK encrypt".into(),
        (Answer::Dane, None, _) => "OK dane".into(),
        (Answer::Dane, Some(document), _) => {
            format_testing_at(PostfixLevel::Dane, domain, document, postfix).unwrap_or_else(|| "OK dane".into())
        }
        (Answer::OwnLevel, None, _) => "NOTFOUND ".into(),
        (Answer::OwnLevel, Some(document), _) => {
            format_testing_at(own_level, domain, document, postfix).unwrap_or_else(|| "NOTFOUND ".into())
        }
        (Answer::Temp, ..) => format!("TEMP {}", sanitize_cause(published.cause())),
        (Answer::Secure, _, Some((_, document))) => format_secure(wording, domain, document, None),
        (Answer::SecureNarrowed, _, Some((_, document))) => {
            format_secure(wording, domain, document, Some(published.narrowed()))
        }
        // Every enforced decision has its policy.
        (Answer::Secure | Answer::SecureNarrowed, _, None) => "TEMP the policy is missing".into(),
    }
}

/// `narrowed`: the only hosts that are allowed.
fn format_secure(wording: ReplyFormat, domain: &str, policy: &PolicyDocument, narrowed: Option<&[String]>) -> String {
    let patterns = narrowed.unwrap_or(&policy.mx);
    let names: Vec<&str> = patterns.iter().map(|mx| mx.strip_prefix('*').unwrap_or(mx)).collect();
    let plain = format!("OK secure match={} servername=hostname", names.join(":"));
    match wording {
        ReplyFormat::Policy => plain,
        ReplyFormat::PolicyTlsrpt => add_attributes(&plain, domain, policy, patterns).unwrap_or(plain),
    }
}

/// Delivered at a level as without a policy; the attributes are for reports. Above `encrypt` Postfix would enforce the
/// patterns, which a testing policy does not ask for. Nothing where the level takes no attributes, and where Postfix would
/// crash because the patterns are left out.
fn format_testing_at(
    level: PostfixLevel,
    domain: &str,
    policy: &PolicyDocument,
    postfix: PostfixTraits,
) -> Option<String> {
    let patterns = match level {
        PostfixLevel::None | PostfixLevel::Fingerprint | PostfixLevel::Unknown => return None,
        PostfixLevel::May | PostfixLevel::Encrypt => policy.mx.as_slice(),
        PostfixLevel::Dane | PostfixLevel::DaneOnly | PostfixLevel::Verify | PostfixLevel::Secure => &[],
    };
    if patterns.is_empty() && postfix.crashes_without_policy_details {
        return None;
    }
    add_attributes(&format!("OK {}", level.name()), domain, policy, patterns)
}

/// `policy_failure` is never among them: it makes an enforced delivery fail. Policies without any string end Postfix
/// 3.10.0 to 3.10.5: where there is no room for all, the short ones stay; nothing where there is no room for those.
fn add_attributes(plain: &str, domain: &str, policy: &PolicyDocument, patterns: &[String]) -> Option<String> {
    let mut text = format!("{plain} policy_type=sts policy_domain={domain}");
    for mx in patterns {
        // Writing to a String cannot fail.
        let _ = write!(text, " mx_host_pattern={mx}");
    }
    let strings: Vec<String> = policy.lines.iter().filter_map(|line| policy_string_attribute(line)).collect();
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
fn policy_string_attribute(line: &str) -> Option<String> {
    let line = line.trim();
    let safe = !line.is_empty() && line.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'{' && b != b'}');
    safe.then(|| format!(" {{ policy_string = {line} }}"))
}

/// Causes come from DNS: printable, one line, short.
fn sanitize_cause(cause: &str) -> String {
    cause.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).take(200).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::model::{accepted, postfix};
    use super::*;
    use crate::answering::policy::dane::coverage::Coverage;
    use crate::answering::policy::decision::{DatalessTlsa, Published};
    use crate::answering::policy::sts::document;
    use crate::answering::policy::sts::policy::StsPolicy;

    fn cached(lines: &str) -> Arc<StsPolicy> {
        Arc::new(StsPolicy::new("example.com", "1", &document::parse(lines.as_bytes()).unwrap(), 0))
    }

    const POSTFIX: PostfixTraits = PostfixTraits {
        own_level: PostfixLevel::May,
        attributes: true,
        dane_under_unsigned_mx: true,
        ends_at_dataless_tlsa: false,
        crashes_without_policy_details: false,
    };

    fn word(wording: ReplyFormat, coverage: Coverage, lines: &str, own_level: PostfixLevel) -> String {
        let published = Published::new(coverage, DatalessTlsa::Absent, "no\nanswer", Vec::new());
        let sts = (!lines.is_empty()).then(|| cached(lines));
        format_reply(wording, &Decision::for_tests("example.com", published, sts), own_level, POSTFIX)
    }

    const ENFORCE: &str = "version: STSv1\nmode: enforce\nmx: mx1.example.com\nmx: *.example.net\nmax_age: 604800\n";

    #[test]
    fn enforced() {
        assert_eq!(
            word(ReplyFormat::Policy, Coverage::NoTlsa, ENFORCE, PostfixLevel::May),
            "OK secure match=mx1.example.com:.example.net servername=hostname"
        );
        assert_eq!(
            word(ReplyFormat::PolicyTlsrpt, Coverage::NoTlsa, ENFORCE, PostfixLevel::May),
            "OK secure match=mx1.example.com:.example.net servername=hostname policy_type=sts \
             policy_domain=example.com mx_host_pattern=mx1.example.com mx_host_pattern=*.example.net \
             { policy_string = version: STSv1 } { policy_string = mode: enforce } \
             { policy_string = mx: mx1.example.com } { policy_string = mx: *.example.net } \
             { policy_string = max_age: 604800 }"
        );
    }

    #[test]
    fn a_testing_policy_never_crashes_postfix() {
        let testing = ENFORCE.replace("enforce", "testing");
        let crashes = PostfixTraits { crashes_without_policy_details: true, ..POSTFIX };
        let ask = |coverage, level, postfix| {
            let published = Published::new(coverage, DatalessTlsa::Absent, "", Vec::new());
            let decision = Decision::for_tests("example.com", published, Some(cached(&testing)));
            format_reply(ReplyFormat::PolicyTlsrpt, &decision, level, postfix)
        };
        for (level, name) in PostfixLevel::ALL {
            let answer = ask(Coverage::NoTlsa, level, crashes);
            let patterns = matches!(level, PostfixLevel::May | PostfixLevel::Encrypt);
            assert_eq!(answer.starts_with(&format!("OK {name} policy_type=sts")), patterns, "{answer}");
            assert!(patterns || answer == "NOTFOUND ", "{answer}");
            assert_eq!(patterns, answer.contains(" mx_host_pattern="), "{answer}");
        }
        assert_eq!(ask(Coverage::WorseHosts, PostfixLevel::May, crashes), "OK dane");
        let later = ask(Coverage::WorseHosts, PostfixLevel::May, POSTFIX);
        assert!(later.starts_with("OK dane policy_type=sts ") && !later.contains("mx_host_pattern"), "{later}");
    }

    #[test]
    fn narrowed_to_the_hosts_without_tlsa_records() {
        let hosts = vec!["mx1.example.com".to_owned(), "b.example.net".to_owned()];
        let published = Published::new(Coverage::WorseHosts, DatalessTlsa::Absent, "", hosts);
        let decision = Decision::for_tests("example.com", published, Some(cached(ENFORCE)));
        let plain = "OK secure match=mx1.example.com:b.example.net servername=hostname";
        assert_eq!(format_reply(ReplyFormat::Policy, &decision, PostfixLevel::May, POSTFIX), plain);
        assert_eq!(
            format_reply(ReplyFormat::PolicyTlsrpt, &decision, PostfixLevel::May, POSTFIX),
            format!(
                "{plain} policy_type=sts policy_domain=example.com mx_host_pattern=mx1.example.com \
                 mx_host_pattern=b.example.net {{ policy_string = version: STSv1 }} {{ policy_string = mode: enforce }} \
                 {{ policy_string = mx: mx1.example.com }} {{ policy_string = mx: *.example.net }} \
                 {{ policy_string = max_age: 604800 }}"
            )
        );
    }

    const TESTING: &str = "version: STSv1\nmode: testing\nmx: mx1.example.com\nmax_age: 1\n";

    /// In mode testing, to Postfix 3.10 and later: `+` is the level with attributes, `+mx` with patterns too.
    const TESTING_ATTRIBUTES: &str = "
        row | none      | may       | encrypt    | dane      | dane-only   | verify    | secure    | fingerprint
        1   | dane-only | dane-only | dane-only  | dane-only | dane-only   | dane-only | dane-only | NOTFOUND
        2   | dane+     | dane+     | dane-only  | dane+     | dane-only+  | dane-only | dane-only | NOTFOUND
        3   | dane+     | dane+     | encrypt+mx | dane+     | dane-only+  | verify+   | secure+   | NOTFOUND
        4   | encrypt   | encrypt   | encrypt+mx | dane+     | dane-only+  | verify+   | secure+   | NOTFOUND
        5   | dane+     | dane+     | TEMP       | dane+     | dane-only+  | verify+   | secure+   | NOTFOUND
        6   | TEMP      | TEMP      | TEMP       | TEMP      | TEMP        | verify+   | secure+   | NOTFOUND
        7   | NOTFOUND  | may+mx    | encrypt+mx | dane+     | dane-only+  | verify+   | secure+   | NOTFOUND
        8   | dane+     | dane+     | encrypt+mx | dane+     | dane-only+  | verify+   | secure+   | NOTFOUND
        9   | NOTFOUND  | may+mx    | encrypt+mx | dane+     | dane-only+  | verify+   | secure+   | NOTFOUND
        10  | TEMP      | TEMP      | TEMP       | TEMP      | TEMP        | TEMP      | TEMP      | NOTFOUND";

    #[test]
    fn testing_is_delivered_as_without_a_policy_and_has_attributes() {
        let strings = "{ policy_string = version: STSv1 } { policy_string = mode: testing } \
                       { policy_string = mx: mx1.example.com } { policy_string = max_age: 1 }";
        let sts = "policy_type=sts policy_domain=example.com";
        let mut lines =
            TESTING_ATTRIBUTES.lines().filter(|line| !line.is_empty()).map(|line| line.split('|').map(str::trim));
        let levels: Vec<&str> = lines.next().unwrap().skip(1).collect();
        for mut cells in lines {
            let row = cells.next().unwrap();
            let coverage = match row {
                "1" => Coverage::AllHosts,
                "2" => Coverage::BestHosts,
                "3" => Coverage::WorseHosts,
                "4" => Coverage::Unusable { every_host: true },
                "5" => Coverage::SomeFailed,
                "6" => Coverage::AllFailed,
                "7" => Coverage::NoTlsa,
                "8" => Coverage::UnsignedMx,
                "9" => Coverage::UnsignedFailed,
                _ => Coverage::MxFailed,
            };
            for (level, cell) in levels.iter().zip(cells) {
                let want = match cell {
                    "NOTFOUND" => "NOTFOUND ".to_owned(),
                    "TEMP" => "TEMP no?answer".to_owned(),
                    cell => match cell.split_once('+') {
                        Some((level, "mx")) => format!("OK {level} {sts} mx_host_pattern=mx1.example.com {strings}"),
                        Some((level, _)) => format!("OK {level} {sts} {strings}"),
                        None => format!("OK {cell}"),
                    },
                };
                let own_level = PostfixLevel::from_name(level).unwrap();
                assert_eq!(word(ReplyFormat::PolicyTlsrpt, coverage, TESTING, own_level), want, "row {row}, {level}");
                let older = word(ReplyFormat::Policy, coverage, TESTING, own_level);
                assert_eq!(older, word(ReplyFormat::Policy, coverage, "", own_level), "row {row}, {level}");
                assert!(!older.contains("policy_type"), "{older}");
            }
        }
    }

    #[test]
    fn the_level_of_a_service_stands_behind_the_name_of_its_map() {
        use PostfixLevel as L;
        for (name, wording, own_level) in [
            ("policy", ReplyFormat::Policy, None),
            ("QUERY@may", ReplyFormat::Policy, Some(L::May)),
            ("policy@encrypt", ReplyFormat::Policy, Some(L::Encrypt)),
            ("policy-tlsrpt@dane-only", ReplyFormat::PolicyTlsrpt, Some(L::DaneOnly)),
            ("policy-tlsrpt@fingerprint", ReplyFormat::PolicyTlsrpt, Some(L::Fingerprint)),
            ("policy@Secure", ReplyFormat::Policy, Some(L::Unknown)),
            ("policy@", ReplyFormat::Policy, Some(L::Unknown)),
            ("policy@unknown", ReplyFormat::Policy, Some(L::Unknown)),
        ] {
            assert_eq!(MapName::parse(name.as_bytes()), Some(MapName { wording, own_level }), "{name}");
        }
        for name in ["", "@may", "other", "Policy", "policy @may"] {
            assert_eq!(MapName::parse(name.as_bytes()), None, "{name}");
        }
    }

    #[test]
    fn served_text_cannot_break_out() {
        let lines = format!("{ENFORCE}x: a }} match=evil.example {{ b\ny: {{\nz: \u{e9}\n");
        let text = word(ReplyFormat::PolicyTlsrpt, Coverage::NoTlsa, &lines, PostfixLevel::May);
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
                word(ReplyFormat::Policy, Coverage::NoTlsa, &lines, PostfixLevel::May),
                word(ReplyFormat::PolicyTlsrpt, Coverage::NoTlsa, &lines, PostfixLevel::May),
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
            mx in proptest::collection::vec("(\\*\\.)?[a-z0-9]([a-z0-9-]{0,7}[a-z0-9])?\\.[a-z]{2,4}", 0..5),
            mode in 0..2,
            level in 0..8usize,
        ) {
            let own_level = PostfixLevel::ALL[level].0;
            let mode = ["enforce", "testing"][mode as usize];
            let mx: String = mx.iter().map(|mx| format!("mx: {mx}\n")).collect();
            let extra: String = lines.iter().map(|l| format!("x: a{l}\n")).collect();
            let text = format!("version: STSv1\nmode: {mode}\nmax_age: 1\nmx: a.example\n{mx}{extra}");
            let Ok(document) = document::parse(text.as_bytes()) else { return Ok(()) };
            for (wording, _) in ReplyFormat::ALL {
                let said = word(wording, Coverage::NoTlsa, &text, own_level);
                assert!(said.len() <= MAX_REPLY);
                if let Some(policy) = said.strip_prefix("OK ") {
                    let (level, attributes) = postfix(policy).unwrap();
                    accepted(&level, &attributes, wording == ReplyFormat::PolicyTlsrpt).unwrap();
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
