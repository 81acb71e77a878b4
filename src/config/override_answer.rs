//! Whether a fixed answer is one that a Postfix of this version takes (`smtp_tls_policy_maps`, postconf(5)).
//!
//! Takes: the text of `[[policy.override]] answer`, the version. Gives: nothing, or what is wrong and what is allowed.
//! An attribute that Postfix does not know, or takes at another level alone, would defer all mail to the domain.
//! Limits: [`MAX_ANSWER`] octets of printable ASCII. `policy_failure` is refused: it makes an enforced delivery fail. So is
//! what crashes the smtp(8) of some releases.

use std::io::ErrorKind;
use std::path::Path;

use crate::base::domain_name;
use crate::config::{PostfixVersion, similar};

/// The longest fixed answer, in octets: far below what Postfix takes, far above what anybody writes.
const MAX_ANSWER: usize = 10_000;

/// An attribute: its name, the version that introduced it, and whether it may be repeated.
struct AttributeRule {
    name: &'static str,
    since: (u16, u16),
    once: bool,
}

const ATTRIBUTES: [AttributeRule; 13] = [
    AttributeRule { name: "ciphers", since: (2, 3), once: true },
    AttributeRule { name: "protocols", since: (2, 3), once: true },
    AttributeRule { name: "match", since: (2, 3), once: false },
    AttributeRule { name: "exclude", since: (2, 6), once: true },
    AttributeRule { name: "tafile", since: (2, 11), once: false },
    AttributeRule { name: "servername", since: (3, 4), once: true },
    AttributeRule { name: "connection_reuse", since: (3, 4), once: false },
    AttributeRule { name: "enable_rpk", since: (3, 9), once: false },
    AttributeRule { name: "policy_type", since: (3, 10), once: true },
    AttributeRule { name: "policy_domain", since: (3, 10), once: true },
    AttributeRule { name: "policy_string", since: (3, 10), once: false },
    AttributeRule { name: "mx_host_pattern", since: (3, 10), once: false },
    AttributeRule { name: "policy_ttl", since: (3, 10), once: true },
];

const LEVELS: [&str; 8] = ["none", "may", "encrypt", "fingerprint", "dane", "dane-only", "verify", "secure"];

/// Checks an answer; fails with the problem and what is allowed.
pub(super) fn check(answer: &str, version: PostfixVersion, dnssec: bool) -> Result<(), String> {
    if answer.len() > MAX_ANSWER || !answer.bytes().all(|b| (b' '..=b'~').contains(&b)) {
        return Err(format!("longer than {MAX_ANSWER} bytes, or not printable ASCII on one line"));
    }
    let tokens = split_tokens(answer);
    let Some((level, attributes)) = tokens.split_first() else {
        return Err("the answer is empty: expected a level and attributes, such as \"encrypt\"".into());
    };
    if !LEVELS.contains(level) {
        let meant = similar::meant(similar::nearest(level, &LEVELS));
        return Err(format!("invalid level \"{level}\": expected one of {}{meant}", LEVELS.join(", ")));
    }
    if level.starts_with("dane") && !dnssec {
        return Err(format!("`{level}` needs [postfix] dnssec; without it Postfix defers the mail"));
    }
    if *level == "none" && !attributes.is_empty() {
        return Err("level `none` takes no attributes".into());
    }
    let mut seen = Vec::new();
    for token in attributes {
        let (name, value) = split_attribute(token, version)?;
        let known = ATTRIBUTES.iter().find(|a| a.name == name);
        let Some(attribute) = known.filter(|a| (version.major, version.minor) >= a.since) else {
            return Err(describe_unknown(&name, known, version));
        };
        if attribute.once && seen.contains(&attribute.name) {
            return Err(format!("duplicate attribute \"{name}\""));
        }
        seen.push(attribute.name);
        check_value(level, attribute.name, value, version)
            .map_err(|allowed| format!("invalid attribute \"{name}={value}\": expected {allowed}"))?;
    }
    let of_policy = |name: &&&str| name.starts_with("policy_") || **name == "mx_host_pattern";
    if let Some(name) = seen.iter().find(of_policy)
        && !seen.contains(&"policy_type")
    {
        return Err(format!("`{name}` needs `policy_type`"));
    }
    if *level == "fingerprint" && !seen.contains(&"match") {
        return Err(
            "level \"fingerprint\" without match: there is no fingerprint to compare with; Postfix would defer the \
                    mail; expected such as \"fingerprint match=3D:95:...\""
                .into(),
        );
    }
    let names_sts = attributes.iter().any(|token| {
        split_attribute(token, version).is_ok_and(|(name, value)| name == "policy_type" && value == "sts")
    });
    let missing = ["policy_string", "mx_host_pattern"].into_iter().find(|name| !seen.contains(name));
    match missing {
        Some(missing) if names_sts && version.crashes_without_policy_details() => {
            let known = match version.patch {
                Some(_) => "",
                None => ", and [postfix] version does not say which 3.10 this is",
            };
            Err(format!(
                "\"policy_type=sts\" without {missing}: it crashes smtp(8) of Postfix 3.10.0 to 3.10.5{known}; mail to the \
                 domain would stay in the queue"
            ))
        }
        _ => Ok(()),
    }
}

/// Where Debian's smtp(8) is chrooted: it opens the files of an answer below.
const QUEUE_DIRECTORY: &str = "var/spool/postfix";

/// Checks that the files that an answer names exist, for a chrooted smtp(8) or for one that is not; `root` is `/`, but in
/// tests.
pub(super) fn check_files(answer: &str, root: &Path) -> Result<(), String> {
    let is_missing = |path: &Path| path.metadata().is_err_and(|error| error.kind() == ErrorKind::NotFound);
    for file in files(answer) {
        let below = file.trim_start_matches('/');
        if is_missing(&root.join(below)) && is_missing(&root.join(QUEUE_DIRECTORY).join(below)) {
            return Err(format!(
                "tafile \"{file}\": no such file, nor one below /{QUEUE_DIRECTORY}; Postfix would defer the mail"
            ));
        }
    }
    Ok(())
}

/// The files that an answer names.
pub(super) fn files(answer: &str) -> Vec<&str> {
    let attributes = split_tokens(answer).into_iter();
    let attributes = attributes.filter_map(|token| split_attribute(token, PostfixVersion::new(u16::MAX, 0)).ok());
    attributes.filter(|(name, _)| name == "tafile").map(|(_, file)| file).collect()
}

/// Checks that an answer can be given to Exim, if only Exim asks: the readsocket protocol has modes of MTA-STS and DANE, but
/// no level.
pub(super) fn check_for_exim(answer: &str) -> Result<(), String> {
    match split_tokens(answer).first() {
        Some(&"none" | &"may") | None => Ok(()),
        Some(level) => Err(format!(
            "level \"{level}\" cannot be given to Exim: the readsocket answers with a mode of MTA-STS and DANE; every message \
             to the domain would be deferred; expected \"none\" or \"may\""
        )),
    }
}

/// The tokens between commas and blanks; braces keep together what is within them.
fn split_tokens(answer: &str) -> Vec<&str> {
    let mut depth = 0usize;
    let ends = |c: char| {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth == 0 && matches!(c, ' ' | ',')
    };
    answer.split(ends).filter(|token| !token.is_empty()).collect()
}

fn split_attribute(token: &str, version: PostfixVersion) -> Result<(String, &str), String> {
    let braces = PostfixVersion::new(3, 10);
    let inside = match token.strip_prefix('{') {
        Some(_) if version < braces => return Err(format!("`{token}`: braces are known from Postfix 3.10 on")),
        Some(rest) => rest.strip_suffix('}').ok_or(format!("`{token}` has no closing brace at its end"))?,
        None => token,
    };
    let (name, value) = inside.split_once('=').ok_or(format!("invalid attribute \"{token}\": expected name=value"))?;
    Ok((name.trim().to_ascii_lowercase(), value.trim()))
}

fn describe_unknown(name: &str, known: Option<&AttributeRule>, version: PostfixVersion) -> String {
    let PostfixVersion { major, minor, .. } = version;
    match known {
        Some(AttributeRule { since: (a, b), .. }) => {
            format!("`{name}` is known from Postfix {a}.{b} on, and [postfix] version is {major}.{minor}")
        }
        None if name == "policy_failure" => "`policy_failure` makes an enforced delivery fail; leave it out".into(),
        None => {
            let known: Vec<&str> = ATTRIBUTES.iter().map(|attribute| attribute.name).collect();
            let meant = similar::meant(similar::nearest(name, &known));
            format!("unknown attribute \"{name}\": Postfix has none of that name{meant}")
        }
    }
}

/// Checks the value of an attribute at a level; fails with what is allowed.
fn check_value(level: &str, name: &str, value: &str, version: PostfixVersion) -> Result<(), &'static str> {
    let ok = |good: bool, allowed: &'static str| if good { Ok(()) } else { Err(allowed) };
    let hostname = |name: &str| domain_name::normalize(name).is_some() && name.is_ascii();
    match name {
        "match" if level == "fingerprint" => {
            let digest = |d: &str| !d.is_empty() && d.bytes().all(|b| b.is_ascii_hexdigit() || b == b':');
            ok(value.split('|').all(digest), "fingerprints in hexadecimal, with `|` between them")
        }
        "match" if matches!(level, "verify" | "secure") => {
            let name = |n: &str| {
                matches!(n, "nexthop" | "dot-nexthop" | "hostname") || hostname(n.strip_prefix('.').unwrap_or(n))
            };
            ok(value.split(':').all(name), "nexthop, dot-nexthop, hostname, names, `.name`, with `:` between them")
        }
        "match" => Err("`match` at fingerprint, verify and secure alone"),
        "tafile" => ok(
            matches!(level, "verify" | "secure") && value.starts_with('/'),
            "at verify and secure, the path of a file",
        ),
        "servername" => {
            ok(matches!(value, "hostname" | "nexthop") || hostname(value), "hostname, nexthop, or a host name")
        }
        "ciphers" => {
            ok(["export", "low", "medium", "high", "null"].contains(&value), "export, low, medium, high, null")
        }
        "protocols" => ok(!value.is_empty() && value.split(':').all(|p| is_protocol(p, version)), {
            "such as `!SSLv3:!TLSv1`, or from Postfix 3.6 on `>=TLSv1.2`, with `:` between them"
        }),
        "connection_reuse" | "enable_rpk" => ok(matches!(value, "yes" | "no"), "yes, no"),
        "policy_type" => ok(matches!(value, "sts" | "no-policy-found"), "sts, no-policy-found"),
        "policy_domain" => ok(hostname(value), "a domain name"),
        // A C `int`; more is malformed for Postfix.
        "policy_ttl" => {
            ok(value.bytes().all(|b| b.is_ascii_digit()) && value.parse::<i32>().is_ok(), "seconds, at most 2147483647")
        }
        // exclude, policy_string, mx_host_pattern
        _ => ok(!value.is_empty() && !value.contains(['{', '}']), "text without braces"),
    }
}

fn is_protocol(text: &str, version: PostfixVersion) -> bool {
    let bounds = version >= PostfixVersion::new(3, 6);
    let bound = text.strip_prefix(">=").or_else(|| text.strip_prefix("<=")).filter(|_| bounds);
    let name = bound.or_else(|| text.strip_prefix('!')).unwrap_or(text);
    ["SSLv2", "SSLv3", "TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"].iter().any(|known| known.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_for(answer: &str, minor: u16) -> Result<(), String> {
        check(answer, PostfixVersion::new(3, minor), true)
    }

    #[test]
    fn what_postfix_takes() {
        for answer in [
            "none",
            "may",
            "encrypt",
            "encrypt protocols=!SSLv3:!TLSv1,ciphers=high, exclude=aNULL",
            "dane-only",
            "secure",
            "secure match=mx.example.com:.example.net:nexthop:dot-nexthop servername=hostname",
            "verify MATCH=hostname tafile=/etc/ssl/one.pem tafile=/etc/ssl/two.pem",
            "fingerprint match=3D:95|AB:CD match=00",
            "may connection_reuse=no servername=mx.example.com",
        ] {
            assert_eq!(check_for(answer, 4), Ok(()), "{answer}");
        }
        for (answer, since) in [
            ("encrypt protocols=>=TLSv1.2", 6),
            ("encrypt protocols=>=TLSv1.2:<=TLSv1.3", 6),
            ("may enable_rpk=yes", 9),
            (
                "may policy_type=sts policy_domain=a.example { policy_string = mode: testing } mx_host_pattern=*.a.example",
                10,
            ),
            ("encrypt { protocols = !TLSv1 }", 10),
        ] {
            assert_eq!(check_for(answer, since), Ok(()), "{answer}");
            assert!(check_for(answer, since - 1).is_err(), "{answer}");
        }
    }

    #[test]
    fn what_would_defer_the_mail() {
        for (answer, want) in [
            ("", "the answer is empty: expected a level and attributes, such as \"encrypt\""),
            (
                "Secure",
                "invalid level \"Secure\": expected one of none, may, encrypt, fingerprint, dane, dane-only, verify, secure; did \
                 you mean \"secure\"?",
            ),
            (
                "half dane",
                "invalid level \"half\": expected one of none, may, encrypt, fingerprint, dane, dane-only, verify, secure",
            ),
            ("none ciphers=high", "level `none` takes no attributes"),
            (
                "encrypt match=nexthop",
                "invalid attribute \"match=nexthop\": expected `match` at fingerprint, verify and secure alone",
            ),
            (
                "secure match=",
                "invalid attribute \"match=\": expected nexthop, dot-nexthop, hostname, names, `.name`, with `:` between them",
            ),
            (
                "secure match=a.example::b.example",
                "invalid attribute \"match=a.example::b.example\": expected nexthop, dot-nexthop, hostname, names, `.name`, with `:` between them",
            ),
            ("encrypt tafile=/x", "invalid attribute \"tafile=/x\": expected at verify and secure, the path of a file"),
            ("may servername=a servername=b", "duplicate attribute \"servername\""),
            ("may enable_rpk=yes", "`enable_rpk` is known from Postfix 3.9 on, and [postfix] version is 3.7"),
            ("may { ciphers = high }", "`{ ciphers = high }`: braces are known from Postfix 3.10 on"),
            ("may nonsense", "invalid attribute \"nonsense\": expected name=value"),
            ("may enforce_mx=yes", "unknown attribute \"enforce_mx\": Postfix has none of that name"),
            ("may policy_failure=sts-policy-invalid", "`policy_failure` makes an enforced delivery fail; leave it out"),
            (
                "fingerprint",
                "level \"fingerprint\" without match: there is no fingerprint to compare with; Postfix would defer the mail; \
                 expected such as \"fingerprint match=3D:95:...\"",
            ),
            ("may connection_reuse=maybe", "invalid attribute \"connection_reuse=maybe\": expected yes, no"),
            ("may ciphers=strong", "invalid attribute \"ciphers=strong\": expected export, low, medium, high, null"),
            ("secure match=b\u{fc}cher.example", "longer than 10000 bytes, or not printable ASCII on one line"),
        ] {
            assert_eq!(check_for(answer, 7), Err(want.to_owned()), "{answer}");
        }
        assert_eq!(check_for("may mx_host_pattern=a.example", 10), Err("`mx_host_pattern` needs `policy_type`".into()));
        assert!(check_for("may policy_type=sts { policy_string = a } b }", 10).is_err());
        assert!(check("dane", PostfixVersion::new(3, 7), false).is_err());
    }

    #[test]
    fn what_crashes_some_releases() {
        let of = |text: &str| PostfixVersion::try_from(text.to_owned()).unwrap();
        let both =
            "may policy_type=sts policy_domain=a.test { policy_string = mode: testing } mx_host_pattern=mx.a.test";
        let no_string = "may policy_type=sts policy_domain=a.test mx_host_pattern=mx.a.test";
        let no_pattern = "may {policy_type = sts} policy_domain=a.test policy_string=a";
        let bare = "secure match=mx.a.test policy_type=sts policy_domain=a.test";
        for version in ["3.10", "3.10.0", "3.10.5"] {
            assert_eq!(check(both, of(version), true), Ok(()), "{version}");
            assert_eq!(check("may policy_type=no-policy-found", of(version), true), Ok(()), "{version}");
            for (answer, missing) in
                [(no_string, "policy_string"), (no_pattern, "mx_host_pattern"), (bare, "policy_string")]
            {
                let problem = check(answer, of(version), true).unwrap_err();
                let begin =
                    format!("\"policy_type=sts\" without {missing}: it crashes smtp(8) of Postfix 3.10.0 to 3.10.5");
                assert!(problem.starts_with(&begin), "{version}: {problem}");
                assert_eq!(problem.contains("does not say which 3.10"), version == "3.10", "{problem}");
            }
        }
        for version in ["3.10.6", "3.10.13", "3.11"] {
            for answer in [both, no_string, no_pattern, bare] {
                assert_eq!(check(answer, of(version), true), Ok(()), "{version} {answer}");
            }
        }
        for (ttl, good) in [("2147483647", true), ("2147483648", false), ("99999999999999999999", false), ("", false)] {
            let answer = format!("may policy_type=no-policy-found policy_ttl={ttl}");
            assert_eq!(check(&answer, of("3.10"), true).is_ok(), good, "{ttl}");
        }
    }

    #[test]
    fn files_that_are_not_there() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("var/spool/postfix/etc")).unwrap();
        std::fs::write(root.path().join("one.pem"), "").unwrap();
        std::fs::write(root.path().join("var/spool/postfix/etc/two.pem"), "").unwrap();
        let good = "secure tafile=/one.pem { tafile = /etc/two.pem }";
        assert_eq!(check_files(good, root.path()), Ok(()));
        assert_eq!(
            check_files("verify tafile=/one.pem tafile=/three.pem", root.path()),
            Err("tafile \"/three.pem\": no such file, nor one below /var/spool/postfix; Postfix would defer the mail"
                .into())
        );
    }

    #[test]
    fn what_exim_cannot_hold() {
        for good in ["none", "may", "may ciphers=high"] {
            assert_eq!(check_for_exim(good), Ok(()));
        }
        for bad in ["encrypt", "dane", "dane-only", "verify", "secure match=mx.a.test", "fingerprint match=00"] {
            let problem = check_for_exim(bad).unwrap_err();
            assert!(problem.contains("cannot be given to Exim") && problem.contains("deferred"), "{problem}");
        }
    }
}
