//! What is wrong with what a domain publishes, and with the hosts that it names.
//!
//! Takes: all that was found. Gives: findings.
//! Not here: the records that mend it all together (`advice`).

use crate::answering::policy::dane::coverage::Coverage;
use crate::answering::policy::dane::lookup;
use crate::answering::policy::sts::record::NoRecord;
use crate::base::printable::escape_and_cut;
use crate::base::rua_record::NoRecipients;
use crate::base::tlsrpt::{Mode, mx_matches};
use crate::checking::domain::near_miss::{self, NearMiss};
use crate::checking::domain::probe::ProbeError;
use crate::checking::domain::smtp::SmtpError;
use crate::checking::domain::{
    AddressResult, CheckedHost, ConnectionOutcome, DomainFacts, MissingRecord, PublishedSts,
};
use crate::checking::finding::{Finding, Findings, Severity};
use crate::net::dns::DnsError;
use crate::net::https::CertificateFault;
use crate::net::tlsrpt_record::TlsrptLookupError;

/// The shortest `max_age` that protects over a weekend, in seconds; RFC 8461 §3.2 speaks of weeks.
const SHORT_MAX_AGE: u64 = 86_400;

/// Names the records that a sender ignores because of how they begin.
fn report_near_misses(name: &str, subject: &str, impact: &str, misses: &[NearMiss], found: &mut Findings) {
    for miss in misses {
        let problem = format!("there is a TXT record that is almost one: \"{}\": {}", miss.record, miss.fault);
        found.push(Finding::new(Severity::Error, name, subject, problem, impact));
    }
}

impl DomainFacts<'_> {
    /// Adds everything that is wrong.
    pub(crate) fn add_findings(&self, found: &mut Findings) {
        if !self.check_mx(found) {
            return;
        }
        self.check_sts(found);
        self.check_dane(found);
        for host in self.hosts {
            self.check_host(host, found);
        }
        self.check_tlsrpt(found);
        let held = self.hosts.iter().map(|host| host.addresses.len()).sum::<usize>();
        found.looked_at.push(format!("{} MX hosts at {held} addresses", self.hosts.len()));
    }

    /// Checks the MX records; returns whether the domain takes mail at all.
    fn check_mx(&self, found: &mut Findings) -> bool {
        let mut add = |severity, name: &str, problem: String, impact: &str| {
            found.push(Finding::new(severity, name, self.domain, problem, impact));
            false
        };
        match (self.mx, &self.verdict.mx) {
            (Err(DnsError::Failed(cause)), _) => add(
                Severity::Error,
                "mx-failed",
                format!("its MX records cannot be had: {cause}"),
                "Senders defer their mail.",
            ),
            (Err(DnsError::NoSuchDomain { .. }), _) => {
                add(Severity::Error, "no-domain", "there is no such domain".into(), "Mail to it bounces.")
            }
            (_, lookup::MxStatus::Null) => {
                add(Severity::Note, "null-mx", self.describe_mx(), "There is nothing to protect.")
            }
            (_, lookup::MxStatus::NoHost) => {
                add(Severity::Error, "no-host", "no host of it has an address".into(), "Mail to it bounces or waits.")
            }
            _ => true,
        }
    }

    /// The mode that senders apply.
    pub(super) fn sts_mode(&self) -> Mode {
        match self.sts {
            PublishedSts::Policy(_, document) => document.mode,
            PublishedSts::Unknown(..) | PublishedSts::NoRecord(_) | PublishedSts::NoDocument(..) => Mode::None,
        }
    }

    /// Whether DANE protects all of its hosts.
    pub(super) fn is_fully_dane(&self) -> bool {
        self.verdict.coverage() == Coverage::AllHosts
    }

    fn check_sts(&self, found: &mut Findings) {
        let record = format!("_mta-sts.{}", self.domain);
        let document = format!("https://mta-sts.{}/.well-known/mta-sts.txt", self.domain);
        match self.sts {
            PublishedSts::Unknown(cause, _) => found.not_looked_at.push(format!("{record}: {cause}")),
            PublishedSts::NoRecord(missing @ MissingRecord { reason: NoRecord::Absent, .. }) => {
                let misses = near_miss::find(&missing.records, near_miss::STS);
                if !misses.is_empty() {
                    let impact = "Senders take it for no policy at all.";
                    return report_near_misses("sts-record", &record, impact, &misses, found);
                }
                let (severity, impact) = match self.is_fully_dane() {
                    true => {
                        (Severity::Note, "DANE protects it where the sender validates; others would go by MTA-STS.")
                    }
                    false => (
                        Severity::Warning,
                        "Senders take any certificate, or none: who is on the way can read the mail.",
                    ),
                };
                found.push(Finding::new(severity, "sts-absent", record, "there is no MTA-STS policy", impact));
            }
            PublishedSts::NoRecord(missing) => {
                let impact = "Senders take it for no policy at all.";
                let mut problem = missing.reason.to_string();
                for text in near_miss::of_version(&missing.records, near_miss::STS) {
                    let fault = match missing.reason {
                        NoRecord::Malformed => format!(": {}", near_miss::fault_of_sts_record(text)),
                        NoRecord::Absent | NoRecord::Multiple => String::new(),
                    };
                    problem.push_str(&format!("; there is \"{}\"{fault}", escape_and_cut(text, 200)));
                }
                found.push(Finding::new(Severity::Error, "sts-record", record, problem, impact));
            }
            PublishedSts::NoDocument(_, fault) => {
                let problem = format!("{}: {fault}", fault.result_type());
                let impact = "Senders take it for no policy at all, and count it as a failure.";
                found.push(Finding::new(Severity::Error, "sts-document", document, problem, impact));
            }
            PublishedSts::Policy(_, policy) => {
                self.check_sts_policy(&document, policy.mode, policy.max_age, found);
                self.check_mx_patterns(&document, policy.mode, &policy.mx, found);
            }
        }
    }

    fn check_sts_policy(&self, document: &str, mode: Mode, max_age: u64, found: &mut Findings) {
        let mut add = |severity, name: &str, problem: String, impact: &str| {
            found.push(Finding::new(severity, name, document, problem, impact));
        };
        match mode {
            Mode::Enforce if max_age < SHORT_MAX_AGE => {
                let problem = format!("max_age is {max_age} s");
                let impact = "Who can hold back the record for that long is no longer held off by the policy; RFC 8461 §3.2 has weeks.";
                add(Severity::Warning, "sts-max-age", problem, impact);
            }
            Mode::Enforce => {}
            Mode::Testing => {
                let impact = "Failures are reported, and mail is delivered all the same.";
                add(Severity::Note, "sts-testing", "the policy is in mode testing".into(), impact);
            }
            Mode::None => {
                let impact = "It tells senders to forget what they were told before.";
                add(Severity::Warning, "sts-none", "the policy is in mode none".into(), impact);
            }
        }
    }

    fn check_mx_patterns(&self, document: &str, mode: Mode, patterns: &[String], found: &mut Findings) {
        if mode == Mode::None {
            return;
        }
        let severity = if mode == Mode::Enforce { Severity::Error } else { Severity::Warning };
        for host in self.hosts.iter().filter(|host| !patterns.iter().any(|p| mx_matches(p, &host.name))) {
            let problem = format!("no mx pattern names the MX host {}", host.name);
            let impact = "RFC 8461 §4.1: an enforcing sender does not deliver to it.";
            found.push(Finding::new(severity, "sts-mx", document, problem, impact).fix(format!("mx: {}", host.name)));
        }
        for pattern in patterns.iter().filter(|p| !self.hosts.iter().any(|host| mx_matches(p, &host.name))) {
            let problem = format!("mx pattern {pattern} names no MX host of the domain");
            let impact = "It is not wrong, for a host that is to come; of one that is gone it should go too.";
            found.push(Finding::new(Severity::Note, "sts-mx-unused", document, problem, impact));
        }
    }

    fn check_dane(&self, found: &mut Findings) {
        let with: Vec<&str> = self.hosts.iter().filter(|host| host.has_dane()).map(|host| host.name.as_str()).collect();
        if with.is_empty() || self.is_fully_dane() {
            return;
        }
        if matches!(self.verdict.mx, lookup::MxStatus::Unsigned) {
            let problem = format!("{} has TLSA records, and the MX records are not signed", with.join(", "));
            let impact =
                "Who forges the MX records sends the mail to another host: DANE protects nothing (RFC 7672 §2.2.1).";
            found.push(Finding::new(Severity::Warning, "mx-unsigned", self.domain, problem, impact));
        } else if let without @ [_, ..] = &self
            .hosts
            .iter()
            .filter(|h| !h.has_dane() && h.dns.failure.is_none())
            .map(|h| h.name.as_str())
            .collect::<Vec<_>>()[..]
        {
            let problem = format!("{} has usable TLSA records, {} has none", with.join(", "), without.join(", "));
            let impact = "Who blocks the protected hosts has the mail go to the others.";
            found.push(Finding::new(Severity::Warning, "tlsa-some", self.domain, problem, impact));
        }
    }

    fn check_host(&self, host: &CheckedHost, found: &mut Findings) {
        self.check_tlsa(host, found);
        for seen in &host.addresses {
            self.check_address(host, seen, found);
        }
        if host.addresses.is_empty() && host.dns.failure.is_none() {
            let impact = "Senders try the other hosts.";
            found.push(Finding::new(
                Severity::Warning,
                "host-no-address",
                host.name.clone(),
                "it has no address",
                impact,
            ));
        }
    }

    fn check_tlsa(&self, host: &CheckedHost, found: &mut Findings) {
        let records = &host.dns.records;
        let name = format!("_25._tcp.{}", host.dns.base);
        let mut add = |severity, kind: &str, problem: String, impact: &str| {
            found.push(Finding::new(severity, kind, name.clone(), problem, impact));
        };
        if let Some(cause) = &host.dns.failure {
            let impact = "Senders that do DANE defer their mail until it can be had (RFC 7672 §2.1.1).";
            return add(Severity::Error, "tlsa-failed", cause.clone(), impact);
        }
        if records.is_empty() {
            return;
        }
        if !host.dns.records_signed {
            let impact = "Unsigned records count for nothing (RFC 7672 §2.1).";
            return add(
                Severity::Warning,
                "tlsa-unsigned",
                "there are TLSA records, and DNSSEC does not prove them".into(),
                impact,
            );
        }
        for record in records {
            if let Err(fault) = lookup::check_usability(record) {
                let impact = match host.has_dane() {
                    true => "Senders leave it out.",
                    false => "None is usable: TLS is required, and any certificate will do (RFC 7672 §2.2).",
                };
                add(Severity::Warning, "tlsa-unusable", format!("{record}: {fault}"), impact);
            }
        }
    }

    fn check_address(&self, host: &CheckedHost, seen: &AddressResult, found: &mut Findings) {
        let subject = format!("{} [{}]", host.name, seen.address);
        let enforced = self.sts_mode() == Mode::Enforce || host.has_dane();
        let severity = if enforced { Severity::Error } else { Severity::Warning };
        let lost = "Mail to it is not delivered by senders that keep to what is published.";
        let open = "Mail to it goes in clear text.";
        let mut add = |severity, name: &str, problem: String, impact: &str| {
            found.push(Finding::new(severity, name, subject.clone(), problem, impact));
        };
        match &seen.outcome {
            ConnectionOutcome::Private => {
                let impact = "No sender on the Internet reaches it, and it is not connected to from here.";
                add(Severity::Warning, "host-private", "it is not a public address".into(), impact);
            }
            ConnectionOutcome::Fault(fault @ (ProbeError::Connect(_) | ProbeError::Timeout)) => {
                let impact = "Many networks block port 25 outwards: try from a mail host before you believe it.";
                add(Severity::Warning, "unreachable", fault.to_string(), impact);
            }
            ConnectionOutcome::Fault(ProbeError::Smtp(SmtpError::Refused(text))) => {
                let impact = "It may refuse this host alone: what TLS it offers was not seen.";
                add(Severity::Warning, "refused", format!("it does not talk to this host: {text}"), impact);
            }
            ConnectionOutcome::Fault(ProbeError::Smtp(
                fault @ (SmtpError::StarttlsNotOffered | SmtpError::StarttlsRefused(_)),
            )) => {
                add(severity, "no-starttls", fault.to_string(), if enforced { lost } else { open });
            }
            ConnectionOutcome::Fault(fault @ (ProbeError::Smtp(_) | ProbeError::Handshake(_))) => {
                add(severity, "no-tls", fault.to_string(), if enforced { lost } else { open });
            }
            ConnectionOutcome::Tls(faults) => {
                if host.has_dane() && seen.fits.is_none() {
                    let impact = "Senders that do DANE do not deliver to it (RFC 7672 §2.2).";
                    add(
                        Severity::Error,
                        "tlsa-mismatch",
                        "its certificate fits none of its TLSA records".into(),
                        impact,
                    );
                }
                self.check_certificate(host, faults, &mut add);
            }
        }
    }

    /// Under MTA-STS the certificate counts; without a policy no sender checks it, but it prevents publishing one.
    fn check_certificate(
        &self,
        host: &CheckedHost,
        faults: &[CertificateFault],
        add: &mut impl FnMut(Severity, &str, String, &str),
    ) {
        let (severity, impact) = match (self.sts_mode(), host.has_dane()) {
            (Mode::Enforce, _) => {
                (Severity::Error, "RFC 8461 §4.2: senders that keep to the policy do not deliver to it.")
            }
            (Mode::Testing, _) => {
                (Severity::Warning, "Senders report it, and would not deliver once the policy enforces.")
            }
            (Mode::None, true) => return,
            (Mode::None, false) => (
                Severity::Note,
                "Nobody looks as long as there is no policy, and there can be none until it is mended.",
            ),
        };
        for fault in faults {
            let (name, problem) = match fault {
                CertificateFault::Expired => {
                    ("certificate-expired", "its certificate has expired, or is not valid yet")
                }
                CertificateFault::Name => ("certificate-name", "its certificate is for another name"),
                CertificateFault::Trust => ("certificate-trust", "its certificate leads to no root that senders trust"),
            };
            add(severity, name, problem.to_owned(), impact);
        }
    }

    fn check_tlsrpt(&self, found: &mut Findings) {
        let name = format!("_smtp._tls.{}", self.domain);
        let report_misses = near_miss::find(self.report_records, near_miss::TLSRPT);
        match self.reports {
            Err(TlsrptLookupError::None(NoRecipients::NoRecord)) if !report_misses.is_empty() => {
                report_near_misses("tlsrpt-record", &name, "No sender can report.", &report_misses, found);
            }
            Err(TlsrptLookupError::None(NoRecipients::NoRecord)) => {
                let impact = "Nobody tells the domain how TLS to it fails.";
                found.push(Finding::new(Severity::Warning, "tlsrpt-absent", name, "there is no TLSRPT record", impact));
            }
            Err(TlsrptLookupError::None(fault)) => {
                let impact = "No sender can report.";
                found.push(Finding::new(Severity::Error, "tlsrpt-record", name, fault.to_string(), impact));
            }
            Err(TlsrptLookupError::Temporary(cause)) => found.not_looked_at.push(format!("{name}: {cause}")),
            Ok(recipients) => {
                for skipped in &recipients.skipped {
                    let problem = format!("{} gets no report: {}", skipped.uri, skipped.why);
                    found.push(Finding::new(Severity::Warning, "tlsrpt-uri", name.clone(), problem, "The others do."));
                }
            }
        }
        for host in self.hosts.iter().filter(|host| host.has_dane() && host.name != self.domain) {
            let name = format!("_smtp._tls.{}", host.name);
            match &host.dns.reports {
                Some(Err(TlsrptLookupError::None(NoRecipients::NoRecord))) => {
                    let impact = "Some senders report DANE failures to the host, whose policy it is (RFC 8460 §3), and not to the domain.";
                    found.push(Finding::new(
                        Severity::Note,
                        "tlsrpt-host",
                        name,
                        "the host has no TLSRPT record",
                        impact,
                    ));
                }
                Some(Err(TlsrptLookupError::None(fault))) => {
                    let impact = "No sender can report to it.";
                    found.push(Finding::new(Severity::Warning, "tlsrpt-host", name, fault.to_string(), impact));
                }
                Some(Err(TlsrptLookupError::Temporary(_)) | Ok(_)) | None => {}
            }
        }
    }
}
