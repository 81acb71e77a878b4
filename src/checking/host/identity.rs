//! Who reports, and whether receivers can believe it: keys, their DNS records, SPF, a TLSRPT record of one's own.
//!
//! Takes: the `[report]` section, the keys as the reporting pipeline reads them, and the resolver. Gives: findings, with the records to publish.
//! Not here: signing (`dkim::signer`), where others want their reports (`report::recipients`).

use crate::base::rua_record::NoRecipients;
use crate::checking::finding::{Finding, Findings, Weight};
use crate::checking::host::Program;
use crate::config::ReportSection;
use crate::config::identity::{Identity, missing_identity};
use crate::net::dns::{DnsError, Resolver};
use crate::net::tlsrpt_record::{TlsrptLookupError, look_up_recipients};

/// Everything about who reports.
pub async fn look(program: &impl Program, section: &ReportSection, resolver: &Resolver, found: &mut Findings) {
    let missing = missing_identity(section);
    if !missing.is_empty() {
        let what = format!("no report is sent: it lacks {}", missing.join(", "));
        let why = "Policy and counting go on; counts wait within `retention` and are then dropped.";
        let finding = Finding::new(Weight::Warning, "no-identity", "tlswarden.toml [report]", what, why);
        found.push(finding.fix("tlswarden.toml: [report] organization, contact, from and [[report.dkim]]"));
        return;
    }
    let identity = match Identity::read(section) {
        Ok(identity) => identity,
        Err(faults) => {
            let why = "The daemon does not start with it.";
            found.extend(faults.into_iter().map(|f| Finding::new(Weight::Error, "identity", "tlswarden.toml", f, why)));
            return;
        }
    };
    for key in section.dkim.keys() {
        dkim(program.check_key(key, &identity.from.domain, resolver).await, found);
    }
    spf(&identity.envelope.domain, resolver, found).await;
    own_reports(&identity.contact.domain, resolver, found).await;
    match section.dkim.keys().len() {
        0 => found.not_looked_at.push("the DKIM key: the MTA signs (dkim = \"mta\")".into()),
        keys => found.looked_at.push(format!("[report]: {keys} keys of {}", identity.from.domain)),
    }
}

/// One key file, as the reporting pipeline reads it.
#[derive(Debug, Default)]
pub struct KeyCheck {
    /// The file.
    pub file: String,
    /// Why it cannot be used.
    pub fault: Option<KeyFault>,
    /// What is unwise about it, one line each.
    pub warnings: Vec<String>,
    /// Its DNS records.
    pub records: Vec<RecordCheck>,
}

/// Why a key file cannot be used; one line.
#[derive(Debug)]
pub enum KeyFault {
    /// Whoever looks may not read it.
    Denied(String),
    /// It is missing, or not a usable key.
    Unusable(String),
}

/// A DKIM record in DNS, compared with its key.
#[derive(Debug)]
pub struct RecordCheck {
    /// Its name.
    pub name: String,
    /// The line of a zone file that publishes the key.
    pub zone_line: String,
    /// What is wrong with what is published, if anything; or why it is not known.
    pub fault: Result<Option<String>, String>,
}

fn dkim(key: KeyCheck, found: &mut Findings) {
    let file = key.file;
    match key.fault {
        Some(KeyFault::Denied(error)) => {
            found.not_looked_at.push(format!("the key {file}: {error}"));
            return;
        }
        Some(KeyFault::Unusable(fault)) => {
            let why = "The daemon does not start with it.";
            found.push(Finding::new(Weight::Error, "dkim-key", file, fault, why));
            return;
        }
        None => {}
    }
    for warning in key.warnings {
        let finding = Finding::new(Weight::Warning, "dkim-key-open", file.clone(), warning, "It is a secret.");
        found.push(finding.fix(format!("chmod 600 {file}   # or 640 and a group that the daemon is in")));
    }
    for record in key.records {
        match record.fault {
            Ok(None) => {}
            Ok(Some(wrong)) => {
                let why = "RFC 8460 §3 wants reports signed: receivers drop those whose signature does not verify.";
                let finding = Finding::new(Weight::Error, "dkim-record", record.name, wrong, why);
                found.push(finding.fix(record.zone_line.replace('\n', "")));
            }
            Err(error) => found.not_looked_at.push(format!("the DKIM record {}: {error}", record.name)),
        }
    }
}

async fn spf(domain: &str, resolver: &Resolver, found: &mut Findings) {
    let records = match resolver.txt(domain).await {
        Ok(answer) => answer.records,
        Err(DnsError::Failed(error)) => {
            found.not_looked_at.push(format!("the SPF record of {domain}: {error}"));
            return;
        }
        Err(_) => Vec::new(),
    };
    let spf: Vec<&String> =
        records.iter().filter(|text| *text == "v=spf1" || text.to_ascii_lowercase().starts_with("v=spf1 ")).collect();
    let why = "Receivers see where reports come from; many refuse mail of a domain that does not say.";
    let say = |what: String| {
        let finding = Finding::new(Weight::Warning, "spf", domain, what, why);
        finding.fix(format!("{domain}. IN TXT \"v=spf1 mx -all\"   # or the addresses that this host sends from"))
    };
    match spf.as_slice() {
        [] => found.push(say("the envelope sender's domain has no SPF record".into())),
        [one] if one.split_whitespace().nth(1).is_some_and(|first| first == "-all") => {
            found.push(say(format!("`{one}`: no host may send for it")));
        }
        [_] => {}
        many => found.push(say(format!("{} SPF records, which is an error (RFC 7208 §4.5)", many.len()))),
    }
}

/// Who reports to others may want to hear about itself.
async fn own_reports(domain: &str, resolver: &Resolver, found: &mut Findings) {
    let name = format!("_smtp._tls.{domain}");
    let why = "Without it nobody tells this domain how TLS to it fails.";
    let line = format!("{name}. IN TXT \"v=TLSRPTv1; rua=mailto:tlsrpt@{domain}\"");
    match look_up_recipients(resolver, domain).await {
        Ok(_) => {}
        Err(TlsrptLookupError::None(NoRecipients::NoRecord)) => {
            found.push(Finding::new(Weight::Note, "no-tlsrpt", name, "there is no TLSRPT record", why).fix(line));
        }
        Err(TlsrptLookupError::None(fault)) => {
            found.push(Finding::new(Weight::Warning, "tlsrpt-record", name, fault.to_string(), why).fix(line));
        }
        Err(TlsrptLookupError::Temporary(error)) => found.not_looked_at.push(format!("{name}: {error}")),
    }
}
