//! Who reports, and whether receivers can believe it: keys, their DNS records, SPF, a TLSRPT record of one's own.
//!
//! Takes: the `[report]` section, the keys as the reporting pipeline reads them, and the resolver. Gives: findings, with the records to publish.
//! Not here: signing (`dkim::signer`), where others want their reports (`report::recipients`).

use crate::base::rua_record::NoRecipients;
use crate::checking::finding::{Finding, Findings, Severity};
use crate::checking::host::HostCheckContext;
use crate::config::ReportSection;
use crate::config::identity::{Identity, missing_identity};
use crate::net::dns::{DnsError, Resolver};
use crate::net::tlsrpt_record::{TlsrptLookupError, look_up_recipients};

/// Checks the submitter, its keys and their DNS records.
pub(crate) async fn check_identity(
    program: &impl HostCheckContext,
    section: &ReportSection,
    resolver: &Resolver,
    found: &mut Findings,
) {
    let missing = missing_identity(section);
    if !missing.is_empty() {
        let problem = format!("no report is sent: it lacks {}", missing.join(", "));
        let impact = "Policy and counting go on; counts wait within `retention` and are then dropped.";
        let finding = Finding::new(Severity::Warning, "no-identity", "tlswarden.toml [report]", problem, impact);
        found.push(finding.fix("tlswarden.toml: [report] organization, contact, from and [[report.dkim]]"));
        return;
    }
    let identity = match Identity::read(section) {
        Ok(identity) => identity,
        Err(faults) => {
            let impact = "The daemon does not start with it.";
            found.extend(
                faults.into_iter().map(|f| Finding::new(Severity::Error, "identity", "tlswarden.toml", f, impact)),
            );
            return;
        }
    };
    for doubt in program.report_warnings(section) {
        let impact = "Receivers may ignore the reports, or none can be delivered.";
        found.push(Finding::new(Severity::Warning, "report-section", "tlswarden.toml", doubt, impact));
    }
    for key in section.dkim.keys() {
        check_dkim(program.check_key(key, &identity.from.domain, resolver).await, found);
    }
    check_spf(&identity.envelope.domain, resolver, found).await;
    check_own_tlsrpt(&identity.contact.domain, resolver, found).await;
    match section.dkim.keys().len() {
        0 => found.not_looked_at.push("the DKIM key: the MTA signs (dkim = \"mta\")".into()),
        keys => found.looked_at.push(format!("[report]: {keys} keys of {}", identity.from.domain)),
    }
}

/// One key file, as the reporting pipeline reads it.
#[derive(Debug, Default)]
pub(crate) struct DkimKeyCheck {
    /// The file.
    pub(crate) file: String,
    /// Whether the daemon signs with a copy of another key, which systemd made when it started it.
    pub(crate) awaits_restart: bool,
    /// Why it cannot be used.
    pub(crate) fault: Option<KeyFileError>,
    /// What is unwise about it, one line each.
    pub(crate) warnings: Vec<String>,
    /// Its DNS records.
    pub(crate) records: Vec<DkimRecordCheck>,
}

/// Why a key file cannot be used; one line.
#[derive(Debug)]
pub(crate) enum KeyFileError {
    /// This user may not read it.
    Denied(String),
    /// It is missing, or not a usable key.
    Unusable(String),
}

/// A DKIM record in DNS, compared with its key.
#[derive(Debug)]
pub(crate) struct DkimRecordCheck {
    /// Its name.
    pub(crate) name: String,
    /// The line of a zone file that publishes the key.
    pub(crate) zone_line: String,
    /// What is wrong with what is published, if anything; or why it is not known.
    pub(crate) fault: Result<Option<String>, String>,
}

fn check_dkim(key: DkimKeyCheck, found: &mut Findings) {
    let file = key.file;
    match key.fault {
        Some(KeyFileError::Denied(error)) => {
            found.not_looked_at.push(format!("the key {file}: {error}"));
            return;
        }
        Some(KeyFileError::Unusable(fault)) => {
            let impact = "The daemon does not start with it.";
            found.push(Finding::new(Severity::Error, "dkim-key", file, fault, impact));
            return;
        }
        None => {}
    }
    if key.awaits_restart {
        let problem = "the file was changed: the daemon signs with the copy that systemd made at its last start";
        let impact =
            "A reload does not take the new key: reports are signed with the old one, whose record may be gone.";
        let finding = Finding::new(Severity::Error, "dkim-key-not-in-use", file.clone(), problem, impact);
        found.push(finding.fix("systemctl restart tlswarden"));
    }
    for warning in key.warnings {
        let finding = Finding::new(Severity::Warning, "dkim-key-open", file.clone(), warning, "It is a secret.");
        found.push(finding.fix(format!(
            "chown root:root {file} && chmod 600 {file}   # in /etc/tlswarden/dkim.d systemd hands the daemon a copy"
        )));
    }
    for record in key.records {
        match record.fault {
            Ok(None) => {}
            Ok(Some(wrong)) => {
                let impact = "RFC 8460 §3 wants reports signed: receivers drop those whose signature does not verify.";
                let finding = Finding::new(Severity::Error, "dkim-record", record.name, wrong, impact);
                found.push(finding.fix(record.zone_line.replace('\n', "")));
            }
            Err(error) => found.not_looked_at.push(format!("the DKIM record {}: {error}", record.name)),
        }
    }
}

async fn check_spf(domain: &str, resolver: &Resolver, found: &mut Findings) {
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
    let impact = "Receivers see where reports come from; many refuse mail of a domain that does not say.";
    let add = |problem: String| {
        let finding = Finding::new(Severity::Warning, "spf", domain, problem, impact);
        finding.fix(format!("{domain}. IN TXT \"v=spf1 mx -all\"   # or the addresses that this host sends from"))
    };
    match spf.as_slice() {
        [] => found.push(add("the envelope sender's domain has no SPF record".into())),
        [one] if one.split_whitespace().nth(1).is_some_and(|first| first == "-all") => {
            found.push(add(format!("`{one}`: no host may send for it")));
        }
        [_] => {}
        many => found.push(add(format!("{} SPF records, which is an error (RFC 7208 §4.5)", many.len()))),
    }
}

/// A submitter of reports may want to receive them as well.
async fn check_own_tlsrpt(domain: &str, resolver: &Resolver, found: &mut Findings) {
    let name = format!("_smtp._tls.{domain}");
    let impact = "Without it nobody tells this domain how TLS to it fails.";
    let line = format!("{name}. IN TXT \"v=TLSRPTv1; rua=mailto:tlsrpt@{domain}\"");
    match look_up_recipients(resolver, domain).await {
        Ok(_) => {}
        Err(TlsrptLookupError::None(NoRecipients::NoRecord)) => {
            found.push(Finding::new(Severity::Note, "no-tlsrpt", name, "there is no TLSRPT record", impact).fix(line));
        }
        Err(TlsrptLookupError::None(fault)) => {
            found.push(Finding::new(Severity::Warning, "tlsrpt-record", name, fault.to_string(), impact).fix(line));
        }
        Err(TlsrptLookupError::Temporary(error)) => found.not_looked_at.push(format!("{name}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_key_file_is_named_with_a_command_for_the_whole_job() {
        let mut found = Findings::default();
        let warnings = vec!["others may read it".to_owned()];
        check_dkim(
            DkimKeyCheck { file: "/k.pem".into(), awaits_restart: true, warnings, ..DkimKeyCheck::default() },
            &mut found,
        );
        let found: Vec<(&str, &str)> = found.findings.iter().map(|f| (f.name.as_str(), f.fix[0].as_str())).collect();
        assert_eq!(found[0], ("dkim-key-not-in-use", "systemctl restart tlswarden"));
        assert_eq!(found[1].0, "dkim-key-open");
        assert!(found[1].1.starts_with("chown root:root /k.pem && chmod 600 /k.pem "), "{}", found[1].1);
    }
}
