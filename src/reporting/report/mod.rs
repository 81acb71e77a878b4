//! One closed day of one domain, from its counts to a message that is handed over.
//!
//! Takes: the `[report]` section, the rows of a day. Gives: [`Sending`], what every report needs; where a domain wants its reports.
//! When it fails: one line a fault, in the words of the configuration.
//! Not here: when what goes (`scheduler`).

pub mod build;
pub mod message;
pub mod recipients;

use crate::base::tlsrpt::{Day, PolicyType, Row};
use crate::config::{Dkim, ReportSection};
use crate::net::dns::{DnsError, Resolver};
use crate::net::https;
use crate::reporting::transport::{self, Letter, Limits, Outcome, Way};
use build::Report;
use message::{MessageError, Signer};
use recipients::{About, Audience, Destination, Mailbox, NoRecipients, Recipients};

/// The longest `organization`, in octets: it must fit in a line of mail.
pub const MAX_ORGANIZATION: usize = 200;

/// What has to be set before any report is sent, and is not. Empty when all is there.
pub fn missing_identity(section: &ReportSection) -> Vec<&'static str> {
    let unset = [
        ("organization", section.organization.is_none()),
        ("contact", section.contact.is_none()),
        ("from", section.from.is_none()),
        ("dkim", section.dkim == Dkim::Keys(Vec::new())),
    ];
    unset.into_iter().filter_map(|(name, missing)| missing.then_some(name)).collect()
}

/// Who reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// `organization-name`.
    pub organization: String,
    /// `contact-info`; its domain is the submitter, as RFC 8460 §5.3 demands.
    pub contact: Mailbox,
    /// The From address.
    pub from: Mailbox,
    /// The envelope sender.
    pub envelope: Mailbox,
}

impl Identity {
    /// The identity that `[report]` names; one line for each value that cannot be used. What is unset stands as
    /// a name under `.invalid` (RFC 2606 §2), for previews.
    pub fn read(section: &ReportSection) -> Result<Identity, Vec<String>> {
        let mut faults = Vec::new();
        let mut address = |key: &str, value: &Option<String>| {
            let text = value.as_deref().unwrap_or("not-set@tlswarden.invalid");
            text.parse().unwrap_or_else(|_| {
                let found = shown(text, 80);
                faults.push(format!(
                    "[report] {key}: `{found}` is no mail address; allowed: such as `tlsrpt@example.com`"
                ));
                Mailbox { local: String::new(), domain: String::new() }
            })
        };
        let contact = address("contact", &section.contact);
        let from: Mailbox = address("from", &section.from);
        let envelope = match &section.envelope {
            None => from.clone(),
            set => address("envelope", set),
        };
        let organization = section.organization.clone().unwrap_or_else(|| "(not set)".to_owned());
        if organization.trim().is_empty()
            || organization.len() > MAX_ORGANIZATION
            || organization.chars().any(char::is_control)
        {
            let found = shown(&organization, 80);
            faults.push(format!(
                "[report] organization: `{found}` is no name; allowed: 1 to {MAX_ORGANIZATION} octets without control characters"
            ));
        }
        if faults.is_empty() { Ok(Identity { organization, contact, from, envelope }) } else { Err(faults) }
    }

    /// The submitter: the domain of `contact-info` (RFC 8460 §5.3).
    pub fn submitter(&self) -> &str {
        &self.contact.domain
    }
}

/// All that sending needs.
#[derive(Debug)]
pub struct Sending {
    /// Who reports.
    pub identity: Identity,
    /// The DKIM keys.
    pub signer: Signer,
    /// Who gets reports.
    pub audience: Audience,
    /// How mail is handed over.
    pub way: Way,
    /// The largest report, in octets, as it is on its way.
    pub max_size: usize,
}

impl Sending {
    /// Reads addresses and keys; nothing while [`missing_identity`] names something. Fails with one line a fault.
    pub fn load(section: &ReportSection) -> Result<Option<Sending>, Vec<String>> {
        let audience = Audience::of(section)?;
        if !missing_identity(section).is_empty() {
            return Ok(None);
        }
        let identity = Identity::read(section)?;
        let mut signer = Signer::load(section.dkim.keys(), &identity.from.domain)
            .map_err(|keys| keys.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        signer.warnings.extend(transport::readable_by_others(section));
        let way = Way::load(section)?;
        Ok(Some(Sending { identity, signer, audience, way, max_size: section.max_size }))
    }

    /// The octets that go to a destination: a signed message, or the gzip alone for a POST. `identity` is who reported,
    /// `message_id` has no angle brackets, `now` is in seconds since 1970-01-01T00:00:00Z. It signs: not for a task's thread.
    pub fn octets(
        &self,
        identity: &Identity,
        report: &Report,
        to: &Destination,
        message_id: &str,
        now: i64,
    ) -> Result<Vec<u8>, MessageError> {
        match to {
            Destination::Mail(to) => message::message(identity, report, to, message_id, now, &self.signer),
            Destination::Https(_) => Ok(report.gzip.clone()),
        }
    }

    /// Hands over what [`Sending::octets`] made. When `cut` resolves (the daemon ends), no longer waits.
    pub async fn deliver(
        &self,
        https: &https::Client,
        to: &Destination,
        octets: &[u8],
        limits: Limits,
        cut: impl Future<Output = ()>,
    ) -> Outcome {
        match to {
            Destination::Mail(to) => {
                let letter = Letter { from: &self.identity.envelope, to, message: octets };
                transport::deliver(&self.way, letter, limits, cut).await
            }
            Destination::Https(uri) => transport::post(https, uri, octets, limits, cut).await,
        }
    }
}

/// The rows of a day that a report about an MX host has, out of those of recipient domains: the sessions under its own
/// TLSA records. They name no recipient domain: another name of the host is left out of the details, for it may be one.
pub fn rows_of_host<'a>(host: &str, rows: impl IntoIterator<Item = &'a Row>) -> Vec<Row> {
    let own = |row: &&Row| row.policy.policy_type == PolicyType::Tlsa && row.policy.policy_domain == host;
    let nameless = |row: &Row| {
        let mut row = Row { domain: host.to_owned(), ..row.clone() };
        for (failure, _) in &mut row.details {
            failure.receiving_mx_hostname.take_if(|name| !name.eq_ignore_ascii_case(host));
        }
        row
    };
    rows.into_iter().filter(own).map(nameless).collect()
}

/// Whether a report of these rows has anything that failed, a policy included.
pub fn has_failures(rows: &[Row]) -> bool {
    rows.iter().any(|row| row.failed > 0 || !row.details.is_empty())
}

/// Why a domain's recipients are not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// It wants no report, or none that can be sent.
    #[error("{0}")]
    None(#[from] NoRecipients),
    /// It may say otherwise next time.
    #[error("_smtp._tls look-up: {0}")]
    Temporary(String),
}

/// Asks where a domain or MX host wants its reports of a day, and leaves out what the administrator does not want.
/// Whether it wants any is for [`Audience::wants`].
pub async fn look_up(
    resolver: &Resolver,
    audience: &Audience,
    about: &About,
    day: Day,
) -> Result<Recipients, LookupError> {
    Ok(audience.narrow(published(resolver, about.name()).await?, day)?)
}

/// Where a domain or MX host wants its reports, as it published it.
pub async fn published(resolver: &Resolver, name: &str) -> Result<Recipients, LookupError> {
    match resolver.txt(&format!("_smtp._tls.{name}")).await {
        Ok(answer) => Ok(recipients::recipients(&answer.records)?),
        Err(DnsError::NoSuchDomain { .. } | DnsError::NoRecords { .. }) => Err(NoRecipients::NoRecord.into()),
        Err(DnsError::Failed(why)) => Err(LookupError::Temporary(why)),
    }
}

/// A stranger's text, fit for a line of log or mail: printable ASCII, `max` characters at most.
pub(crate) fn shown(text: &str, max: usize) -> String {
    let mut out = String::new();
    for c in text.chars() {
        let plain = c.is_ascii_graphic() || c == ' ';
        let escaped = if plain { c.to_string() } else { c.escape_default().to_string() };
        if out.len() + escaped.len() > max {
            out.push_str("...");
            break;
        }
        out.push_str(&escaped);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_is_missing_and_what_is_wrong() {
        let mut section = ReportSection::default();
        assert_eq!(missing_identity(&section), ["organization", "contact", "from", "dkim"]);
        assert!(Sending::load(&section).unwrap().is_none());
        section.organization = Some("Example\r\nBcc: a@b.example".into());
        section.contact = Some("postmaster".into());
        section.from = Some("tlsrpt@example.com".into());
        section.envelope = Some("<>".into());
        let faults = Identity::read(&section).unwrap_err();
        assert_eq!(faults.len(), 3, "{faults:?}");
        assert!(faults.iter().all(|f| !f.contains(['\r', '\n'])), "{faults:?}");
    }

    #[test]
    fn the_envelope_is_from_unless_set() {
        let mut section = ReportSection {
            organization: Some("Example".into()),
            contact: Some("postmaster@Example.com".into()),
            from: Some("tlsrpt@mail.example.com".into()),
            ..ReportSection::default()
        };
        let identity = Identity::read(&section).unwrap();
        assert_eq!(identity.envelope, identity.from);
        assert_eq!(identity.submitter(), "example.com");
        section.envelope = Some("bounces@example.com".into());
        assert_eq!(Identity::read(&section).unwrap().envelope.to_string(), "bounces@example.com");
    }

    #[test]
    fn strangers_text_is_escaped_and_cut() {
        assert_eq!(shown("a\r\nb\u{202e}", 40), "a\\r\\nb\\u{202e}");
        assert_eq!(shown("abcdef", 3), "abc...");
    }
}
