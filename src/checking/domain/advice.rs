//! The records and the policy file that would make a domain right.
//!
//! Takes: all that was found. Gives: an [`Advice`]: zone lines, each marked with whether it is there already, and a policy
//! file that names the MX hosts of today.
//! Not here: what is wrong (`judge`).

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::Serialize;

use crate::base::rua_record::Recipients;
use crate::base::tlsrpt::{Mode, mx_matches};
use crate::checking::domain::probe::ProbeFault;
use crate::checking::domain::smtp::SmtpError;
use crate::checking::domain::{Host, Outcome, Sts, Whole};

/// How long a policy in mode enforce is to hold, in seconds: four weeks (RFC 8461 §3.2 speaks of weeks).
const ENFORCED: u64 = 4 * 7 * 86_400;

/// The same in mode testing: a day, so that a change is soon known.
const TESTED: u64 = 86_400;

/// What to publish.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Advice {
    /// Records, as in a zone file.
    pub zone: Vec<Line>,
    /// Where the policy file is served.
    pub policy_url: String,
    /// The policy file, its lines without their ends.
    pub policy: Vec<String>,
    /// Whether it is served as it is.
    pub policy_state: State,
    /// What to know before it is published.
    pub remarks: Vec<String>,
}

/// A record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Line {
    /// `NAME. IN TYPE VALUE`.
    pub record: String,
    /// Whether it is there.
    pub state: State,
}

/// How what should be relates to what is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It is published so.
    #[default]
    Stays,
    /// There is none.
    New,
    /// There is another one, which it replaces.
    Replaces,
}

impl Whole<'_> {
    /// What would make it right; `now` is in seconds since 1970-01-01T00:00:00Z.
    pub fn advise(&self, now: i64) -> Advice {
        let mut advice = Advice::default();
        if self.hosts.is_empty() {
            return advice;
        }
        self.policy_advice(now, &mut advice);
        self.report_advice(&mut advice);
        for host in self.hosts {
            self.tlsa_advice(host, &mut advice);
        }
        advice
    }

    /// A host that a sender under MTA-STS cannot deliver to.
    fn fails(host: &Host) -> bool {
        let fails = |outcome: &Outcome| match outcome {
            Outcome::Private
            | Outcome::Fault(ProbeFault::Connect(_) | ProbeFault::Timeout | ProbeFault::Smtp(SmtpError::Refused(_))) => {
                false
            }
            Outcome::Fault(ProbeFault::Smtp(_) | ProbeFault::Handshake(_)) => true,
            Outcome::Tls(faults) => !faults.is_empty(),
        };
        host.addresses.iter().any(|seen| fails(&seen.outcome))
    }

    fn policy_advice(&self, now: i64, advice: &mut Advice) {
        let domain = self.domain;
        advice.policy_url = format!("https://mta-sts.{domain}/.well-known/mta-sts.txt");
        let failing: Vec<&str> =
            self.hosts.iter().filter(|host| Whole::fails(host)).map(|host| host.name.as_str()).collect();
        let (mode, id) = match self.sts {
            Sts::Policy(id, document) => {
                let named = |host: &Host| document.mx.iter().any(|pattern| mx_matches(pattern, &host.name));
                let sound = document.mode != Mode::None
                    && self.hosts.iter().all(named)
                    && (document.mode == Mode::Testing || document.max_age >= TESTED);
                if sound {
                    // Strangers' text, and shown.
                    advice.policy = document.lines.iter().map(|line| line.escape_debug().to_string()).collect();
                    advice.zone.push(Line { record: sts_record(domain, id), state: State::Stays });
                    self.policy_remarks(document.mode, &failing, advice);
                    return;
                }
                advice.policy_state = State::Replaces;
                (if document.mode == Mode::Enforce { Mode::Enforce } else { Mode::Testing }, Some(id))
            }
            Sts::NoDocument(id, _) => {
                advice.policy_state = State::Replaces;
                (Mode::Testing, Some(id))
            }
            Sts::NoRecord(_) | Sts::Unknown(_) => {
                advice.policy_state = State::New;
                (Mode::Testing, None)
            }
        };
        let names: BTreeSet<&str> = self.hosts.iter().map(|host| host.name.as_str()).collect();
        let max_age = if mode == Mode::Enforce { ENFORCED } else { TESTED };
        advice.policy = vec!["version: STSv1".into(), format!("mode: {mode}")];
        advice.policy.extend(names.iter().map(|name| format!("mx: {name}")));
        advice.policy.push(format!("max_age: {max_age}"));
        let state = match self.sts {
            Sts::NoRecord(crate::answering::policy::sts::record::NoRecord::Absent) => State::New,
            _ => State::Replaces,
        };
        advice.zone.push(Line { record: sts_record(domain, &new_id(now, id.map(String::as_str))), state });
        if state == State::New {
            let record = format!(
                "mta-sts.{domain}. IN CNAME a host that serves the policy file over HTTPS, with a certificate for mta-sts.{domain}"
            );
            advice.remarks.push(record);
        }
        self.policy_remarks(mode, &failing, advice);
    }

    fn policy_remarks(&self, mode: Mode, failing: &[&str], advice: &mut Advice) {
        if !failing.is_empty() && mode != Mode::None {
            let then = if mode == Mode::Enforce {
                "until then enforcing senders do not deliver to it"
            } else {
                "stay in mode testing until then"
            };
            advice.remarks.push(format!("mend TLS of {} first: {then}", failing.join(", ")));
        } else if mode == Mode::Testing {
            advice.remarks.push(format!(
                "when reports show no failures for a week or two: mode: enforce, max_age: {ENFORCED}, and a new id"
            ));
        }
    }

    fn report_advice(&self, advice: &mut Advice) {
        let own = self.reports.as_ref().ok();
        let state = match (own, self.reports) {
            (Some(_), _) => State::Stays,
            (
                None,
                Err(crate::net::tlsrpt_record::TlsrptLookupError::None(
                    crate::base::rua_record::NoRecipients::NoRecord,
                )),
            ) => State::New,
            (None, _) => State::Replaces,
        };
        advice.zone.push(Line { record: report_record(self.domain, own, self.domain), state });
        for host in self.hosts.iter().filter(|host| host.name != self.domain) {
            let theirs = host.found.reports.as_ref().and_then(|found| found.as_ref().ok());
            let within = host.name.ends_with(&format!(".{}", self.domain));
            // A host of somebody else's is somebody else's affair.
            if theirs.is_some() || (within && host.found.signed) {
                let state = if theirs.is_some() { State::Stays } else { State::New };
                advice.zone.push(Line { record: report_record(&host.name, theirs.or(own), self.domain), state });
            }
        }
    }

    /// Records for the keys that were seen, where the zone is signed.
    fn tlsa_advice(&self, host: &Host, advice: &mut Advice) {
        let name = format!("_25._tcp.{}", host.found.base);
        if !host.found.signed || host.found.failure.is_some() {
            return;
        }
        let all_fit = host.addresses.iter().all(|seen| seen.certificate.is_none() || seen.fits.is_some());
        if host.has_dane() && all_fit {
            let stays = |record: &crate::net::dns::TlsaRecord| Line {
                record: format!("{name}. IN TLSA {record}"),
                state: State::Stays,
            };
            advice.zone.extend(host.found.records.iter().map(stays));
            return;
        }
        let keys: BTreeSet<&str> =
            host.addresses.iter().filter_map(|seen| Some(seen.certificate.as_ref()?.tlsa_3_1_1.as_str())).collect();
        let state = if host.found.records.is_empty() { State::New } else { State::Replaces };
        let record = |key| Line { record: format!("{name}. IN TLSA 3 1 1 {key}"), state };
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
        assert_eq!(record::id(&[text]), Ok("20261125T094640"));
    }
}
