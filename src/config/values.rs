//! How single values are written in the configuration, and printed again.
//!
//! Takes: a text. Gives: the value, and the same text back.
//! When it fails: what was found and what is allowed; where it stands is added by `load`.

use std::fmt;
use std::net::IpAddr;

use crate::base::domain_name;
use crate::config::similar;
use crate::config::{ConfigDuration, DeliveryMethod, ListenAddress, PostfixVersion};

impl TryFrom<String> for ConfigDuration {
    type Error = String;

    fn try_from(text: String) -> Result<ConfigDuration, String> {
        humantime::parse_duration(&text).map(ConfigDuration).map_err(|_| {
            let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            let number = if is_number { text.as_str() } else { "5" };
            let meant = similar::meant(similar::duration(&text));
            format!("invalid duration \"{text}\": expected a number with a unit (s, min, h, days), such as \"{number}s\"{meant}")
        })
    }
}

impl From<ConfigDuration> for String {
    fn from(span: ConfigDuration) -> String {
        humantime::format_duration(span.0).to_string()
    }
}

impl TryFrom<String> for PostfixVersion {
    type Error = String;

    fn try_from(text: String) -> Result<PostfixVersion, String> {
        // A snapshot or a release candidate has `-DATE` or `-RC1` behind it.
        let mut parts = text.split('-').next().unwrap_or_default().split('.').map(|part| part.parse().ok());
        match (parts.next().flatten(), parts.next().flatten()) {
            (Some(major), Some(minor)) => Ok(PostfixVersion { major, minor, patch: parts.next().flatten() }),
            _ => Err(format!("invalid Postfix version \"{text}\": expected a version such as \"3.7\"")),
        }
    }
}

impl From<PostfixVersion> for String {
    fn from(v: PostfixVersion) -> String {
        let patch = v.patch.map(|patch| format!(".{patch}")).unwrap_or_default();
        format!("{}.{}{patch}", v.major, v.minor)
    }
}

impl TryFrom<String> for ListenAddress {
    type Error = String;

    fn try_from(text: String) -> Result<ListenAddress, String> {
        let bad = || {
            let expected = match text.strip_prefix("unix:") {
                Some(_) => "expected an absolute path, such as \"unix:/var/spool/postfix/tlswarden/socketmap\"",
                None => "expected \"unix:/path\" or \"inet:127.0.0.1:8461\"",
            };
            let bare = ["socketmap:", "inet:", "tcp:"]
                .iter()
                .fold(text.as_str(), |rest, prefix| rest.strip_prefix(prefix).unwrap_or(rest));
            let path = bare.strip_prefix("unix:").unwrap_or(bare);
            // As Postfix writes it, with the name of the map.
            let path = if text.starts_with("socketmap:") {
                path.rsplit_once(':').map_or(path, |(path, _)| path)
            } else {
                path
            };
            let meant = match similar::socket_address(bare) {
                Some(address) => Some(format!("inet:{address}")),
                None => path.starts_with('/').then(|| format!("unix:{path}")),
            };
            format!("invalid address \"{text}\": {expected}{}", similar::meant(meant))
        };
        match text.split_once(':') {
            Some(("unix", path)) if path.starts_with('/') => Ok(ListenAddress::Unix(path.into())),
            Some(("inet", addr)) => addr.parse().map(ListenAddress::Inet).map_err(|_| bad()),
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListenAddress::Unix(path) => write!(f, "unix:{}", path.display()),
            ListenAddress::Inet(addr) => write!(f, "inet:{addr}"),
        }
    }
}

impl From<ListenAddress> for String {
    fn from(listen: ListenAddress) -> String {
        listen.to_string()
    }
}

impl TryFrom<String> for DeliveryMethod {
    type Error = String;

    fn try_from(text: String) -> Result<DeliveryMethod, String> {
        let bad = || {
            format!(
                "invalid delivery method \"{text}\": expected \"smtp:localhost:25\", \"sendmail:/usr/sbin/sendmail\", \
                 \"submission:mail.example.com:587\" or \"submissions:mail.example.com:465\"{}",
                similar::meant(meant_delivery(&text))
            )
        };
        let server = |at: &str| {
            let (host, port) = at.rsplit_once(':')?;
            Some((domain_name::normalize(host)?, port.parse().ok()?))
        };
        match text.split_once(':') {
            Some(("smtp", at)) => match at.strip_prefix("localhost:") {
                Some(port) => port.parse().map(DeliveryMethod::Localhost).map_err(|_| bad()),
                None => at.parse().map(DeliveryMethod::Smtp).map_err(|_| bad()),
            },
            Some(("sendmail", path)) if path.starts_with('/') => Ok(DeliveryMethod::Sendmail(path.into())),
            Some(("submission", at)) => {
                server(at).map(|(host, port)| DeliveryMethod::Submission(host, port)).ok_or_else(bad)
            }
            Some(("submissions", at)) => {
                server(at).map(|(host, port)| DeliveryMethod::Submissions(host, port)).ok_or_else(bad)
            }
            _ => Err(bad()),
        }
    }
}

/// The delivery method that was probably meant.
fn meant_delivery(text: &str) -> Option<String> {
    let prefixes = ["smtp:", "submission:", "submissions:", "smtps:", "sendmail:"];
    let prefix = prefixes.into_iter().find(|prefix| text.starts_with(prefix));
    let rest = prefix.map_or(text, |prefix| &text[prefix.len()..]);
    let rest = rest.trim_start_matches('/');
    if prefix.is_none_or(|prefix| prefix == "sendmail:") && text.contains('/') {
        return Some(format!("sendmail:/{rest}"));
    }
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok() => (host, port.parse().ok()?),
        _ => match prefix? {
            "smtp:" => (rest, 25),
            "submission:" => (rest, 587),
            _ => (rest, 465),
        },
    };
    if host == "localhost" {
        return Some(format!("smtp:localhost:{port}"));
    }
    let is_here = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    match (is_here, domain_name::normalize(host)) {
        (true, _) => Some(format!("smtp:{}", similar::socket_address(&format!("{host}:{port}"))?)),
        (false, Some(name)) if port == 465 => Some(format!("submissions:{name}:465")),
        (false, Some(name)) => Some(format!("submission:{name}:{}", if port == 25 { 587 } else { port })),
        (false, None) => None,
    }
}

impl fmt::Display for DeliveryMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeliveryMethod::Localhost(port) => write!(f, "smtp:localhost:{port}"),
            DeliveryMethod::Smtp(addr) => write!(f, "smtp:{addr}"),
            DeliveryMethod::Sendmail(path) => write!(f, "sendmail:{}", path.display()),
            DeliveryMethod::Submission(host, port) => write!(f, "submission:{host}:{port}"),
            DeliveryMethod::Submissions(host, port) => write!(f, "submissions:{host}:{port}"),
        }
    }
}

impl From<DeliveryMethod> for String {
    fn from(deliver: DeliveryMethod) -> String {
        deliver.to_string()
    }
}
