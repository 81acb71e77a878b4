//! What is wrong with what a domain publishes, and with the hosts that it names.
//!
//! Takes: all that was found. Gives: findings.
//! Not here: the records that mend it all together (`advice`).

use crate::answering::policy::dane::lookup::{self, Coverage};
use crate::answering::policy::sts::record::NoRecord;
use crate::base::rua_record::NoRecipients;
use crate::base::tlsrpt::{Mode, mx_matches};
use crate::checking::domain::probe::ProbeFault;
use crate::checking::domain::smtp::SmtpError;
use crate::checking::domain::{Host, Outcome, Seen, Sts, Whole};
use crate::checking::finding::{Finding, Findings, Weight};
use crate::net::dns::DnsError;
use crate::net::https::CertificateFault;
use crate::net::tlsrpt_record::TlsrptLookupError;

/// The shortest `max_age` that protects over a weekend, in seconds; RFC 8461 §3.2 speaks of weeks.
const SHORT: u64 = 86_400;

impl Whole<'_> {
    /// Everything that is wrong.
    pub fn judge(&self, found: &mut Findings) {
        if !self.mx(found) {
            return;
        }
        self.sts(found);
        self.dane(found);
        for host in self.hosts {
            self.host(host, found);
        }
        self.reports(found);
        let held = self.hosts.iter().map(|host| host.addresses.len()).sum::<usize>();
        found.looked_at.push(format!("{} MX hosts at {held} addresses", self.hosts.len()));
    }

    /// Whether the domain takes mail at all.
    fn mx(&self, found: &mut Findings) -> bool {
        let mut say = |weight, name: &str, what: String, why: &str| {
            found.push(Finding::new(weight, name, self.domain, what, why));
            false
        };
        match (self.mx, &self.verdict.mx) {
            (Err(DnsError::Failed(cause)), _) => say(
                Weight::Error,
                "mx-failed",
                format!("its MX records cannot be had: {cause}"),
                "Senders defer their mail.",
            ),
            (Err(DnsError::NoSuchDomain { .. }), _) => {
                say(Weight::Error, "no-domain", "there is no such domain".into(), "Mail to it bounces.")
            }
            (_, lookup::Mx::Null) => say(Weight::Note, "null-mx", self.mx_words(), "There is nothing to protect."),
            (_, lookup::Mx::Nowhere) => {
                say(Weight::Error, "no-host", "no host of it has an address".into(), "Mail to it bounces or waits.")
            }
            _ => true,
        }
    }

    /// What senders hold it to.
    pub(super) fn mode(&self) -> Mode {
        match self.sts {
            Sts::Policy(_, document) => document.mode,
            Sts::Unknown(_) | Sts::NoRecord(_) | Sts::NoDocument(..) => Mode::None,
        }
    }

    /// Whether DANE protects all of it.
    pub(super) fn all_dane(&self) -> bool {
        self.verdict.coverage() == Coverage::Every
    }

    fn sts(&self, found: &mut Findings) {
        let record = format!("_mta-sts.{}", self.domain);
        let document = format!("https://mta-sts.{}/.well-known/mta-sts.txt", self.domain);
        match self.sts {
            Sts::Unknown(cause) => found.not_looked_at.push(format!("{record}: {cause}")),
            Sts::NoRecord(NoRecord::Absent) => {
                let (weight, why) = match self.all_dane() {
                    true => (Weight::Note, "DANE protects it where the sender validates; others would go by MTA-STS."),
                    false => {
                        (Weight::Warning, "Senders take any certificate, or none: who is on the way can read the mail.")
                    }
                };
                found.push(Finding::new(weight, "sts-absent", record, "there is no MTA-STS policy", why));
            }
            Sts::NoRecord(none) => {
                let why = "Senders take it for no policy at all.";
                found.push(Finding::new(Weight::Error, "sts-record", record, none.to_string(), why));
            }
            Sts::NoDocument(_, fault) => {
                let what = format!("{}: {fault}", fault.result_type());
                let why = "Senders take it for no policy at all, and count it as a failure.";
                found.push(Finding::new(Weight::Error, "sts-document", document, what, why));
            }
            Sts::Policy(_, policy) => {
                self.policy(&document, policy.mode, policy.max_age, found);
                self.patterns(&document, policy.mode, &policy.mx, found);
            }
        }
    }

    fn policy(&self, document: &str, mode: Mode, max_age: u64, found: &mut Findings) {
        let mut say = |weight, name: &str, what: String, why: &str| {
            found.push(Finding::new(weight, name, document, what, why));
        };
        match mode {
            Mode::Enforce if max_age < SHORT => {
                let what = format!("max_age is {max_age} s");
                let why = "Who can hold back the record for that long is no longer held off by the policy; RFC 8461 §3.2 has weeks.";
                say(Weight::Warning, "sts-max-age", what, why);
            }
            Mode::Enforce => {}
            Mode::Testing => {
                let why = "Failures are reported, and mail is delivered all the same.";
                say(Weight::Note, "sts-testing", "the policy is in mode testing".into(), why);
            }
            Mode::None => {
                let why = "It tells senders to forget what they were told before.";
                say(Weight::Warning, "sts-none", "the policy is in mode none".into(), why);
            }
        }
    }

    fn patterns(&self, document: &str, mode: Mode, patterns: &[String], found: &mut Findings) {
        if mode == Mode::None {
            return;
        }
        let weight = if mode == Mode::Enforce { Weight::Error } else { Weight::Warning };
        for host in self.hosts.iter().filter(|host| !patterns.iter().any(|p| mx_matches(p, &host.name))) {
            let what = format!("no mx pattern names the MX host {}", host.name);
            let why = "RFC 8461 §4.1: an enforcing sender does not deliver to it.";
            found.push(Finding::new(weight, "sts-mx", document, what, why).fix(format!("mx: {}", host.name)));
        }
        for pattern in patterns.iter().filter(|p| !self.hosts.iter().any(|host| mx_matches(p, &host.name))) {
            let what = format!("mx pattern {pattern} names no MX host of the domain");
            let why = "It is not wrong, for a host that is to come; of one that is gone it should go too.";
            found.push(Finding::new(Weight::Note, "sts-mx-unused", document, what, why));
        }
    }

    fn dane(&self, found: &mut Findings) {
        let with: Vec<&str> = self.hosts.iter().filter(|host| host.has_dane()).map(|host| host.name.as_str()).collect();
        if with.is_empty() || self.all_dane() {
            return;
        }
        if matches!(self.verdict.mx, lookup::Mx::Unsigned) {
            let what = format!("{} has TLSA records, and the MX records are not signed", with.join(", "));
            let why =
                "Who forges the MX records sends the mail to another host: DANE protects nothing (RFC 7672 §2.2.1).";
            found.push(Finding::new(Weight::Warning, "mx-unsigned", self.domain, what, why));
        } else if let without @ [_, ..] = &self
            .hosts
            .iter()
            .filter(|h| !h.has_dane() && h.found.failure.is_none())
            .map(|h| h.name.as_str())
            .collect::<Vec<_>>()[..]
        {
            let what = format!("{} has usable TLSA records, {} has none", with.join(", "), without.join(", "));
            let why = "Who blocks the protected hosts has the mail go to the others.";
            found.push(Finding::new(Weight::Warning, "tlsa-some", self.domain, what, why));
        }
    }

    fn host(&self, host: &Host, found: &mut Findings) {
        self.tlsa(host, found);
        for seen in &host.addresses {
            self.address(host, seen, found);
        }
        if host.addresses.is_empty() && host.found.failure.is_none() {
            let why = "Senders try the other hosts.";
            found.push(Finding::new(Weight::Warning, "host-no-address", host.name.clone(), "it has no address", why));
        }
    }

    fn tlsa(&self, host: &Host, found: &mut Findings) {
        let records = &host.found.records;
        let name = format!("_25._tcp.{}", host.found.base);
        let mut say = |weight, kind: &str, what: String, why: &str| {
            found.push(Finding::new(weight, kind, name.clone(), what, why));
        };
        if let Some(cause) = &host.found.failure {
            let why = "Senders that do DANE defer their mail until it can be had (RFC 7672 §2.1.1).";
            return say(Weight::Error, "tlsa-failed", cause.clone(), why);
        }
        if records.is_empty() {
            return;
        }
        if !host.found.records_signed {
            let why = "Unsigned records count for nothing (RFC 7672 §2.1).";
            return say(
                Weight::Warning,
                "tlsa-unsigned",
                "there are TLSA records, and DNSSEC does not prove them".into(),
                why,
            );
        }
        for record in records {
            if let Err(fault) = lookup::usability(record) {
                let why = match host.has_dane() {
                    true => "Senders leave it out.",
                    false => "None is usable: TLS is required, and any certificate will do (RFC 7672 §2.2).",
                };
                say(Weight::Warning, "tlsa-unusable", format!("{record}: {fault}"), why);
            }
        }
    }

    fn address(&self, host: &Host, seen: &Seen, found: &mut Findings) {
        let subject = format!("{} [{}]", host.name, seen.address);
        let enforced = self.mode() == Mode::Enforce || host.has_dane();
        let weight = if enforced { Weight::Error } else { Weight::Warning };
        let lost = "Mail to it is not delivered by senders that keep to what is published.";
        let open = "Mail to it goes in clear text.";
        let mut say = |weight, name: &str, what: String, why: &str| {
            found.push(Finding::new(weight, name, subject.clone(), what, why));
        };
        match &seen.outcome {
            Outcome::Private => {
                let why = "No sender on the Internet reaches it, and it is not connected to from here.";
                say(Weight::Warning, "host-private", "it is not a public address".into(), why);
            }
            Outcome::Fault(fault @ (ProbeFault::Connect(_) | ProbeFault::Timeout)) => {
                let why = "Many networks block port 25 outwards: try from a mail host before you believe it.";
                say(Weight::Warning, "unreachable", fault.to_string(), why);
            }
            Outcome::Fault(ProbeFault::Smtp(SmtpError::Refused(text))) => {
                let why = "It may refuse this host alone: what TLS it offers was not seen.";
                say(Weight::Warning, "refused", format!("it does not talk to this host: {text}"), why);
            }
            Outcome::Fault(ProbeFault::Smtp(fault @ (SmtpError::NotOffered | SmtpError::NotStarted(_)))) => {
                say(weight, "no-starttls", fault.to_string(), if enforced { lost } else { open });
            }
            Outcome::Fault(fault @ (ProbeFault::Smtp(_) | ProbeFault::Handshake(_))) => {
                say(weight, "no-tls", fault.to_string(), if enforced { lost } else { open });
            }
            Outcome::Tls(faults) => {
                if host.has_dane() && seen.fits.is_none() {
                    let why = "Senders that do DANE do not deliver to it (RFC 7672 §2.2).";
                    say(Weight::Error, "tlsa-mismatch", "its certificate fits none of its TLSA records".into(), why);
                }
                self.certificate(host, faults, &mut say);
            }
        }
    }

    /// Under MTA-STS the certificate counts; without a policy nobody looks, and it keeps from publishing one.
    fn certificate(&self, host: &Host, faults: &[CertificateFault], say: &mut impl FnMut(Weight, &str, String, &str)) {
        let (weight, why) = match (self.mode(), host.has_dane()) {
            (Mode::Enforce, _) => {
                (Weight::Error, "RFC 8461 §4.2: senders that keep to the policy do not deliver to it.")
            }
            (Mode::Testing, _) => {
                (Weight::Warning, "Senders report it, and would not deliver once the policy enforces.")
            }
            (Mode::None, true) => return,
            (Mode::None, false) => {
                (Weight::Note, "Nobody looks as long as there is no policy, and there can be none until it is mended.")
            }
        };
        for fault in faults {
            let (name, what) = match fault {
                CertificateFault::Expired => {
                    ("certificate-expired", "its certificate has expired, or is not valid yet")
                }
                CertificateFault::Name => ("certificate-name", "its certificate is for another name"),
                CertificateFault::Trust => ("certificate-trust", "its certificate leads to no root that senders trust"),
            };
            say(weight, name, what.to_owned(), why);
        }
    }

    fn reports(&self, found: &mut Findings) {
        let name = format!("_smtp._tls.{}", self.domain);
        match self.reports {
            Err(TlsrptLookupError::None(NoRecipients::NoRecord)) => {
                let why = "Nobody tells the domain how TLS to it fails.";
                found.push(Finding::new(Weight::Warning, "tlsrpt-absent", name, "there is no TLSRPT record", why));
            }
            Err(TlsrptLookupError::None(fault)) => {
                let why = "No sender can report.";
                found.push(Finding::new(Weight::Error, "tlsrpt-record", name, fault.to_string(), why));
            }
            Err(TlsrptLookupError::Temporary(cause)) => found.not_looked_at.push(format!("{name}: {cause}")),
            Ok(recipients) => {
                for skipped in &recipients.skipped {
                    let what = format!("{} gets no report: {}", skipped.uri, skipped.why);
                    found.push(Finding::new(Weight::Warning, "tlsrpt-uri", name.clone(), what, "The others do."));
                }
            }
        }
        for host in self.hosts.iter().filter(|host| host.has_dane() && host.name != self.domain) {
            let name = format!("_smtp._tls.{}", host.name);
            match &host.found.reports {
                Some(Err(TlsrptLookupError::None(NoRecipients::NoRecord))) => {
                    let why = "Some senders report DANE failures to the host, whose policy it is (RFC 8460 §3), and not to the domain.";
                    found.push(Finding::new(Weight::Note, "tlsrpt-host", name, "the host has no TLSRPT record", why));
                }
                Some(Err(TlsrptLookupError::None(fault))) => {
                    let why = "No sender can report to it.";
                    found.push(Finding::new(Weight::Warning, "tlsrpt-host", name, fault.to_string(), why));
                }
                Some(Err(TlsrptLookupError::Temporary(_)) | Ok(_)) | None => {}
            }
        }
    }
}
