//! Who reports: the addresses and the name in `[report]`.
//!
//! Takes: the `[report]` section. Gives: [`Identity`], or what is missing or cannot be used, one line each.
//! Not here: DKIM keys (`reporting::dkim`).

use crate::base::printable::escape_and_cut;
use crate::base::rua_record::Mailbox;
use crate::config::{DkimSigning, ReportSection};

/// The longest `organization`, in octets: it must fit in a line of mail.
pub(crate) const MAX_ORGANIZATION: usize = 200;

/// What has to be set before any report is sent, and is not. Empty when all is there.
pub(crate) fn missing_identity(section: &ReportSection) -> Vec<&'static str> {
    let unset = [
        ("organization", section.organization.is_none()),
        ("contact", section.contact.is_none()),
        ("from", section.from.is_none()),
        ("dkim", section.dkim == DkimSigning::Keys(Vec::new())),
    ];
    unset.into_iter().filter_map(|(name, missing)| missing.then_some(name)).collect()
}

/// Who reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// `organization-name`.
    pub(crate) organization: String,
    /// `contact-info`; its domain is the submitter, as RFC 8460 §5.3 demands.
    pub(crate) contact: Mailbox,
    /// The From address.
    pub(crate) from: Mailbox,
    /// The envelope sender.
    pub(crate) envelope: Mailbox,
}

impl Identity {
    /// The identity that `[report]` names; one line for each value that cannot be used. What is unset stands as
    /// a name under `.invalid` (RFC 2606 §2), for previews.
    pub(crate) fn read(section: &ReportSection) -> Result<Identity, Vec<String>> {
        let mut faults = Vec::new();
        let mut address = |key: &str, value: &Option<String>| {
            let text = value.as_deref().unwrap_or("not-set@tlswarden.invalid");
            text.parse().unwrap_or_else(|_| {
                let found = escape_and_cut(text, 80);
                faults.push(format!(
                    "[report] {key}: invalid mail address \"{found}\": expected an address such as \"tlsrpt@example.com\""
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
            let found = escape_and_cut(&organization, 80);
            faults.push(format!(
                "[report] organization: invalid name \"{found}\": expected 1 to {MAX_ORGANIZATION} bytes without control characters"
            ));
        }
        if faults.is_empty() { Ok(Identity { organization, contact, from, envelope }) } else { Err(faults) }
    }

    /// The submitter: the domain of `contact-info` (RFC 8460 §5.3).
    pub(crate) fn submitter(&self) -> &str {
        &self.contact.domain
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
