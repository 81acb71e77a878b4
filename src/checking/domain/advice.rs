//! The records and the policy file that would make a domain right.
//!
//! Takes: all that was found. Gives: an [`Advice`]: zone lines, each marked with whether it is there already, and a policy
//! file that names the MX hosts of today.
//! Not here: what is wrong (`judge`).

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::Serialize;

use crate::answering::policy::sts::document::PolicyDocument;
use crate::answering::policy::sts::record::NoRecord;
use crate::base::rua_record::Recipients;
use crate::base::tlsrpt::{Mode, mx_matches};
use crate::checking::domain::probe::ProbeError;
use crate::checking::domain::smtp::SmtpError;
use crate::checking::domain::{CheckedHost, ConnectionOutcome, DomainFacts, MissingRecord, PublishedSts, near_miss};

/// The `max_age` of a policy in mode enforce, in seconds: four weeks (RFC 8461 §3.2 speaks of weeks).
const ENFORCE_MAX_AGE: u64 = 4 * 7 * 86_400;

/// The `max_age` in mode testing, in seconds: a day, so that a change is known soon.
const TESTING_MAX_AGE: u64 = 86_400;

/// What to publish.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Advice {
    /// Records, as in a zone file.
    pub(crate) zone: Vec<AdvisedRecord>,
    /// Where the policy file is served.
    pub(crate) policy_url: String,
    /// The policy file, its lines without their ends.
    pub(crate) policy: Vec<String>,
    /// Whether it is served as it is.
    pub(crate) policy_state: PublicationState,
    /// What to know before it is published.
    pub(crate) remarks: Vec<String>,
}

/// A record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct AdvisedRecord {
    /// `NAME. IN TYPE VALUE`.
    pub(crate) record: String,
    /// Whether it is there.
    pub(crate) state: PublicationState,
}

/// How what should be published relates to what is published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PublicationState {
    /// It is published so.
    #[default]
    Stays,
    /// There is none.
    New,
    /// There is another one, which it replaces.
    Replaces,
}

impl DomainFacts<'_> {
    /// What would make it right; `now` is in seconds since 1970-01-01T00:00:00Z.
    pub(crate) fn advise(&self, now: i64) -> Advice {
        let mut advice = Advice::default();
        if self.hosts.is_empty() {
            return advice;
        }
        self.add_policy_advice(now, &mut advice);
        self.add_report_advice(&mut advice);
        for host in self.hosts {
            self.add_tlsa_advice(host, &mut advice);
        }
        advice
    }

    /// Whether a sender under MTA-STS cannot deliver to a host.
    fn fails_under_sts(host: &CheckedHost) -> bool {
        let fails = |outcome: &ConnectionOutcome| match outcome {
            ConnectionOutcome::Private
            | ConnectionOutcome::Fault(
                ProbeError::Connect(_) | ProbeError::Timeout | ProbeError::Smtp(SmtpError::Refused(_)),
            ) => false,
            ConnectionOutcome::Fault(ProbeError::Smtp(_) | ProbeError::Handshake(_)) => true,
            ConnectionOutcome::Tls(faults) => !faults.is_empty(),
        };
        host.addresses.iter().any(|seen| fails(&seen.outcome))
    }

    fn add_policy_advice(&self, now: i64, advice: &mut Advice) {
        let domain = self.domain;
        advice.policy_url = format!("https://mta-sts.{domain}/.well-known/mta-sts.txt");
        let failing: Vec<&str> = self
            .hosts
            .iter()
            .filter(|host| DomainFacts::fails_under_sts(host))
            .map(|host| host.name.as_str())
            .collect();
        let (document, id) = match self.sts {
            PublishedSts::Policy(id, document) => (Some(document), Some(id.as_str())),
            PublishedSts::NoDocument(id, _) => (None, Some(id.as_str())),
            PublishedSts::NoRecord(missing) => (missing.document.as_ref(), None),
            PublishedSts::Unknown(_, document) => (document.as_ref(), None),
        };
        let sound = document.filter(|document| self.is_sound(document));
        let record_state = self.sts_record_state(sound.is_some());
        if let Some(state) = record_state {
            let id = match (state, id) {
                (PublicationState::Stays, Some(id)) => id.to_owned(),
                _ => new_id(now, id),
            };
            advice.zone.push(AdvisedRecord { record: sts_record(domain, &id), state });
        }
        if let Some(document) = sound {
            // Strangers' text, and shown.
            advice.policy = document.lines.iter().map(|line| line.escape_debug().to_string()).collect();
            self.add_policy_remarks(document.mode, &failing, advice);
            return;
        }
        // What is enforced is never taken back to testing.
        let enforced = document.is_some_and(|document| document.mode == Mode::Enforce);
        let mode = if enforced { Mode::Enforce } else { Mode::Testing };
        advice.policy_state = match (document, self.sts) {
            (None, PublishedSts::NoRecord(_) | PublishedSts::Unknown(..)) => PublicationState::New,
            _ => PublicationState::Replaces,
        };
        let names: BTreeSet<&str> = self.hosts.iter().map(|host| host.name.as_str()).collect();
        let max_age = if mode == Mode::Enforce { ENFORCE_MAX_AGE } else { TESTING_MAX_AGE };
        advice.policy = vec!["version: STSv1".into(), format!("mode: {mode}")];
        advice.policy.extend(names.iter().map(|name| format!("mx: {name}")));
        advice.policy.push(format!("max_age: {max_age}"));
        if matches!(self.sts, PublishedSts::NoDocument(..)) {
            let remark = "if the document that could not be fetched has `mode: enforce`, keep that mode";
            advice.remarks.push(remark.to_owned());
        }
        if record_state == Some(PublicationState::New) && document.is_none() {
            let record = format!(
                "mta-sts.{domain}. IN CNAME a host that serves the policy file over HTTPS, with a certificate for mta-sts.{domain}"
            );
            advice.remarks.push(record);
        }
        self.add_policy_remarks(mode, &failing, advice);
    }

    /// Whether a document that is served can stay as it is.
    fn is_sound(&self, document: &PolicyDocument) -> bool {
        let is_named = |host: &CheckedHost| document.mx.iter().any(|pattern| mx_matches(pattern, &host.name));
        document.mode != Mode::None
            && self.hosts.iter().all(is_named)
            && (document.mode == Mode::Testing || document.max_age >= TESTING_MAX_AGE)
    }

    /// How the record to publish relates to the one that is there; nothing where that is not known and need not change.
    /// `document_stays`: the policy file is served as it should be.
    fn sts_record_state(&self, document_stays: bool) -> Option<PublicationState> {
        match self.sts {
            PublishedSts::Policy(..) if document_stays => Some(PublicationState::Stays),
            PublishedSts::Unknown(..) if document_stays => None,
            PublishedSts::NoRecord(MissingRecord { reason: NoRecord::Absent, records, .. })
                if near_miss::find(records, near_miss::STS).is_empty() =>
            {
                Some(PublicationState::New)
            }
            _ => Some(PublicationState::Replaces),
        }
    }

    fn add_policy_remarks(&self, mode: Mode, failing: &[&str], advice: &mut Advice) {
        if !failing.is_empty() && mode != Mode::None {
            let then = if mode == Mode::Enforce {
                "until then enforcing senders do not deliver to it"
            } else {
                "stay in mode testing until then"
            };
            advice.remarks.push(format!("mend TLS of {} first: {then}", failing.join(", ")));
        } else if mode == Mode::Testing {
            advice.remarks.push(format!(
                "when reports show no failures for a week or two: mode: enforce, max_age: {ENFORCE_MAX_AGE}, and a new id"
            ));
        }
    }

    fn add_report_advice(&self, advice: &mut Advice) {
        let own = self.reports.as_ref().ok();
        let state = match (own, self.reports) {
            (Some(_), _) => PublicationState::Stays,
            (
                None,
                Err(crate::net::tlsrpt_record::TlsrptLookupError::None(
                    crate::base::rua_record::NoRecipients::NoRecord,
                )),
            ) if near_miss::find(self.report_records, near_miss::TLSRPT).is_empty() => PublicationState::New,
            (None, _) => PublicationState::Replaces,
        };
        advice.zone.push(AdvisedRecord { record: report_record(self.domain, own, self.domain), state });
        for host in self.hosts.iter().filter(|host| host.name != self.domain) {
            let theirs = host.dns.reports.as_ref().and_then(|found| found.as_ref().ok());
            let within = host.name.ends_with(&format!(".{}", self.domain));
            // A host of somebody else's is somebody else's affair.
            if theirs.is_some() || (within && host.dns.signed) {
                let state = if theirs.is_some() { PublicationState::Stays } else { PublicationState::New };
                advice
                    .zone
                    .push(AdvisedRecord { record: report_record(&host.name, theirs.or(own), self.domain), state });
            }
        }
    }

    /// Adds records for the keys that were presented, where the zone is signed.
    fn add_tlsa_advice(&self, host: &CheckedHost, advice: &mut Advice) {
        let name = format!("_25._tcp.{}", host.dns.base);
        if !host.dns.signed || host.dns.failure.is_some() {
            return;
        }
        let all_fit = host.addresses.iter().all(|seen| seen.certificate.is_none() || seen.fits.is_some());
        if host.has_dane() && all_fit {
            let stays = |record: &crate::net::dns::TlsaRecord| AdvisedRecord {
                record: format!("{name}. IN TLSA {record}"),
                state: PublicationState::Stays,
            };
            advice.zone.extend(host.dns.records.iter().map(stays));
            return;
        }
        let keys: BTreeSet<&str> =
            host.addresses.iter().filter_map(|seen| Some(seen.certificate.as_ref()?.tlsa_3_1_1.as_str())).collect();
        let state = if host.dns.records.is_empty() { PublicationState::New } else { PublicationState::Replaces };
        let record = |key| AdvisedRecord { record: format!("{name}. IN TLSA 3 1 1 {key}"), state };
        if !keys.is_empty() {
            advice.zone.extend(keys.into_iter().map(record));
            advice
                .remarks
                .push(format!("publish the TLSA record of a new key of {} two TTLs before the key is used", host.name));
        }
    }
}

fn sts_record(domain: &str, id: &str) -> String {
    format!("_mta-sts.{domain}. IN TXT \"v=STSv1; id={id};\"")
}

/// As it is where there is one; else to the mailbox that is usual.
fn report_record(name: &str, as_it_is: Option<&Recipients>, domain: &str) -> String {
    let to: Vec<String> = match as_it_is {
        Some(recipients) => recipients.destinations.iter().map(ToString::to_string).collect(),
        None => vec![format!("mailto:tlsrpt@{domain}")],
    };
    format!("_smtp._tls.{name}. IN TXT \"v=TLSRPTv1; rua={}\"", to.join(","))
}

/// An id that no sender has seen: the time, `20261125T093000`.
fn new_id(now: i64, old: Option<&str>) -> String {
    let text = Timestamp::from_second(now).map_or_else(|_| now.to_string(), |t| t.to_string());
    let id: String = text.chars().filter(char::is_ascii_alphanumeric).take_while(|c| *c != 'Z').collect();
    if old == Some(id.as_str()) { format!("{id}a") } else { id }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answering::policy::sts::record;

    #[test]
    fn an_id_is_new_and_an_id() {
        assert_eq!(new_id(1_795_600_000, None), "20261125T094640");
        assert_eq!(new_id(1_795_600_000, Some("20261125T094640")), "20261125T094640a");
        let record = sts_record("a.test", &new_id(1_795_600_000, None));
        let text = record.split('"').nth(1).unwrap();
        assert_eq!(record::parse_id(&[text]), Ok("20261125T094640"));
    }
}
