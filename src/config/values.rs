//! How single values are written in the configuration, and printed again.
//!
//! Takes: a text. Gives: the value, and the same text back.
//! When it fails: what was found and what is allowed; where it stands is added by `load`.

use std::fmt;
use std::net::SocketAddr;

use crate::base::domain_name;
use crate::config::{ConfigDuration, DeliveryMethod, ListenAddress, PostfixVersion};

impl TryFrom<String> for ConfigDuration {
    type Error = String;

    fn try_from(text: String) -> Result<ConfigDuration, String> {
        humantime::parse_duration(&text).map(ConfigDuration).map_err(|_| {
            format!("invalid duration \"{text}\": expected a number with a unit (s, min, h, days), such as \"5s\"")
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
            let expected = "expected \"unix:/path\" or \"inet:127.0.0.1:8461\"";
            let meant = match text.parse::<SocketAddr>() {
                Ok(address) => format!("; did you mean \"inet:{address}\"?"),
                Err(_) if text.starts_with('/') => format!("; did you mean \"unix:{text}\"?"),
                Err(_) => String::new(),
            };
            format!("invalid address \"{text}\": {expected}{meant}")
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
                 \"submission:mail.example.com:587\" or \"submissions:mail.example.com:465\""
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
