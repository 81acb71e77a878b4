//! One closed day of one domain, from its counts to a message that is handed over.
//!
//! Takes: the `[report]` section, the rows of a day. Gives: [`ReportSender`]; where a domain wants its reports.
//! When it fails: one line a fault, in the words of the configuration.
//! Not here: when a report is sent (`schedule`).

pub(crate) mod build;
pub(crate) mod message;
pub(crate) mod recipients;

use crate::base::rua_record::{Destination, Recipients};
use crate::base::tlsrpt::{Day, PolicyType, TallyRow};
use crate::config::ReportSection;
use crate::config::identity::{Identity, missing_identity};
use crate::net::dns::Resolver;
use crate::net::https;
use crate::net::tlsrpt_record::{TlsrptLookupError, look_up_recipients};
use crate::reporting::dkim::signer::Signer;
use crate::reporting::transport::{self, DeliveryOutcome, DeliveryTimeouts, OutgoingMail, Transport};
use build::Report;
use message::MessageError;
use recipients::{RecipientFilter, ReportSubject};

/// Builds, signs and delivers reports; holds what every report needs.
#[derive(Debug)]
pub(crate) struct ReportSender {
    /// Who reports.
    pub(crate) identity: Identity,
    /// The DKIM keys.
    pub(crate) signer: Signer,
    /// Who gets reports.
    pub(crate) recipient_filter: RecipientFilter,
    /// How mail is handed over.
    pub(crate) transport: Transport,
    /// The largest report, in octets, as it is on its way.
    pub(crate) max_size: usize,
}

impl ReportSender {
    /// Reads addresses and keys; nothing while [`missing_identity`] names something. Fails with one line a fault.
    pub(crate) fn load(section: &ReportSection) -> Result<Option<ReportSender>, Vec<String>> {
        let recipient_filter = RecipientFilter::from_section(section);
        if !missing_identity(section).is_empty() {
            return Ok(None);
        }
        let identity = Identity::read(section)?;
        let mut signer = Signer::load(section.dkim.keys(), &identity.from.domain)
            .map_err(|keys| keys.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        signer.warnings.extend(transport::password_warning(section));
        let key_type_warning = signer.key_type_warning();
        signer.warnings.extend(key_type_warning);
        signer.warnings.extend(domain_warnings(&identity, &signer));
        let transport = Transport::load(section)?;
        Ok(Some(ReportSender { identity, signer, recipient_filter, transport, max_size: section.max_size }))
    }

    /// Builds what is sent to a destination: a signed message, or the gzip alone for a POST. `identity` is who reported,
    /// `message_id` has no angle brackets, `now` is in seconds since 1970-01-01T00:00:00Z. It signs: not for a task's thread.
    pub(crate) fn build_payload(
        &self,
        identity: &Identity,
        report: &Report,
        to: &Destination,
        message_id: &str,
        now: i64,
    ) -> Result<Vec<u8>, MessageError> {
        match to {
            Destination::Mail(to) => message::build_message(identity, report, to, message_id, now, &self.signer),
            Destination::Https(_) => Ok(report.gzip.clone()),
        }
    }

    /// Delivers what [`ReportSender::build_payload`] built. `intent` is awaited right before it is handed over. When `cancel`
    /// resolves (the daemon ends), it returns at once.
    pub(crate) async fn deliver(
        &self,
        https: &https::HttpsClient,
        to: &Destination,
        bytes: &[u8],
        intent: impl Future<Output = Result<(), String>>,
        limits: DeliveryTimeouts,
        cancel: impl Future<Output = ()>,
    ) -> DeliveryOutcome {
        match to {
            Destination::Mail(to) => {
                let mail = OutgoingMail { from: &self.identity.envelope, to, message: bytes };
                transport::deliver(&self.transport, mail, intent, limits, cancel).await
            }
            Destination::Https(uri) => transport::post_report(https, uri, bytes, intent, limits, cancel).await,
        }
    }
}

/// What receivers make of a contact, a From address and keys of different domains, one line each.
fn domain_warnings(identity: &Identity, signer: &Signer) -> Vec<String> {
    let (from, contact) = (&identity.from.domain, identity.submitter());
    let mut warnings = Vec::new();
    if from != contact {
        warnings.push(format!(
            "[report] contact: its domain {contact} is not that of from, {from}: the submitter is contact's (RFC 8460 §5.3), and \
             receivers that want the signature of the submitter ignore reports from {from}; use one domain for both"
        ));
    }
    let signs = |domain: &str| signer.public_keys.iter().any(|key| key.domain == domain);
    if !signer.public_keys.is_empty() && !signs(from) {
        warnings.push(format!(
            "[[report.dkim]] domain: no key signs as {from}, the domain of from: receivers want the signature of the From \
             domain (RFC 8460 §3) and ignore the reports, and DMARC rests on SPF alone; add a key of {from}"
        ));
    }
    warnings
}

/// The rows of a day that a report about an MX host has, out of those of recipient domains: the sessions under its own
/// TLSA records. They name no recipient domain: another name of the host is left out of the details, for it may be one.
pub(crate) fn rows_of_host<'a>(host: &str, rows: impl IntoIterator<Item = &'a TallyRow>) -> Vec<TallyRow> {
    let own = |row: &&TallyRow| row.policy.policy_type == PolicyType::Tlsa && row.policy.policy_domain == host;
    let nameless = |row: &TallyRow| {
        let mut row = TallyRow { domain: host.to_owned(), ..row.clone() };
        for (failure, _) in &mut row.details {
            failure.receiving_mx_hostname.take_if(|name| !name.eq_ignore_ascii_case(host));
        }
        row
    };
    rows.into_iter().filter(own).map(nameless).collect()
}

/// Whether all mail behind these rows had a null sender, as bounces have, as far as the log shows it.
pub(crate) fn only_null_senders(rows: &[TallyRow]) -> bool {
    let sum = |of: fn(&TallyRow) -> u64| rows.iter().fold(0_u64, |sum, row| sum.saturating_add(of(row)));
    let sessions = sum(|row| row.successful.saturating_add(row.failed));
    sessions > 0 && sum(|row| row.null_sender) >= sessions
}

/// Whether a report of these rows has anything that failed, a policy included.
pub(crate) fn has_failures(rows: &[TallyRow]) -> bool {
    rows.iter().any(|row| row.failed > 0 || !row.details.is_empty())
}

/// Looks up where a domain or MX host wants its reports of a day, without the destinations that the administrator
/// suppressed. Whether a report is wanted at all is for [`RecipientFilter::check_wanted`].
pub(crate) async fn look_up_served_recipients(
    resolver: &Resolver,
    recipient_filter: &RecipientFilter,
    subject: &ReportSubject,
    day: Day,
) -> Result<Recipients, TlsrptLookupError> {
    Ok(recipient_filter.apply_limits(look_up_recipients(resolver, subject.name()).await?, day)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_that_differ_are_warned_of() {
        let load = |contact: &str, from: &str, domain: Option<&str>| {
            let mut key = crate::reporting::dkim::signer::tests::key("rsa2048-pkcs8.pem");
            key.domain = domain.map(str::to_owned);
            let section = ReportSection {
                organization: Some("Example".into()),
                contact: Some(contact.into()),
                from: Some(from.into()),
                dkim: crate::config::DkimSigning::Keys(vec![key]),
                ..ReportSection::default()
            };
            ReportSender::load(&section).unwrap().unwrap().signer.warnings
        };
        let warned = |contact: &str, from: &str, domain: Option<&str>| {
            let warnings = load(contact, from, domain);
            ["[report] contact: ", "[[report.dkim]] domain: "]
                .map(|of| warnings.iter().any(|line| line.starts_with(of)))
        };
        assert_eq!(warned("p@a.example", "t@a.example", None), [false, false]);
        assert_eq!(warned("p@a.example", "t@A.example", Some("a.example")), [false, false]);
        assert_eq!(warned("p@other.example", "t@a.example", None), [true, false]);
        assert_eq!(warned("p@a.example", "t@a.example", Some("other.example")), [false, true]);
        assert_eq!(warned("p@b.example", "t@a.example", Some("c.example")), [true, true]);
    }

    #[test]
    fn says_what_is_missing_and_what_is_wrong() {
        let mut section = ReportSection::default();
        assert_eq!(missing_identity(&section), ["organization", "contact", "from", "dkim"]);
        assert!(ReportSender::load(&section).unwrap().is_none());
        section.organization = Some("Example\r\nBcc: a@b.example".into());
        section.contact = Some("postmaster".into());
        section.from = Some("tlsrpt@example.com".into());
        section.envelope = Some("<>".into());
        let faults = Identity::read(&section).unwrap_err();
        assert_eq!(faults.len(), 3, "{faults:?}");
        assert!(faults.iter().all(|f| !f.contains(['\r', '\n'])), "{faults:?}");
    }
}
