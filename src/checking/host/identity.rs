//! Who reports, and whether receivers can believe it: keys, their DNS records, SPF, a TLSRPT record of one's own.
//!
//! Takes: the `[report]` section and the resolver. Gives: findings, with the records to publish.
//! Not here: signing (`report::message`), where others want their reports (`report::recipients`).

use std::io;

use crate::base::rua_record::NoRecipients;
use crate::checking::finding::{Finding, Findings, Weight};
use crate::config::identity::{Identity, missing_identity};
use crate::config::{DkimKey, ReportSection};
use crate::net::dns::{DnsError, Resolver};
use crate::net::tlsrpt_record::{LookupError, published};
use crate::reporting::report::message::{KeyError, KeyFault, Signer};

/// Everything about who reports.
pub async fn look(section: &ReportSection, resolver: &Resolver, found: &mut Findings) {
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
        dkim(key, &identity.from.domain, resolver, found).await;
    }
    spf(&identity.envelope.domain, resolver, found).await;
    own_reports(&identity.contact.domain, resolver, found).await;
    match section.dkim.keys().len() {
        0 => found.not_looked_at.push("the DKIM key: the MTA signs (dkim = \"mta\")".into()),
        keys => found.looked_at.push(format!("[report]: {keys} keys of {}", identity.from.domain)),
    }
}

async fn dkim(key: &DkimKey, from: &str, resolver: &Resolver, found: &mut Findings) {
    let file = key.key.display().to_string();
    let signer = match Signer::load(std::slice::from_ref(key), from) {
        Ok(signer) => signer,
        Err(faults) => {
            for KeyError { fault, .. } in faults {
                match fault {
                    KeyFault::Unreadable(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                        found.not_looked_at.push(format!("the key {file}: {error}"));
                    }
                    fault => {
                        let why = "The daemon does not start with it.";
                        let fault = fault.to_string();
                        found.push(Finding::new(Weight::Error, "dkim-key", file.clone(), fault, why));
                    }
                }
            }
            return;
        }
    };
    for warning in signer.warnings {
        let finding = Finding::new(Weight::Warning, "dkim-key-open", file.clone(), warning, "It is a secret.");
        found.push(finding.fix(format!("chmod 600 {file}   # or 640 and a group that the daemon is in")));
    }
    for public in signer.published {
        match public.fault(resolver).await {
            Ok(None) => {}
            Ok(Some(wrong)) => {
                let why = "RFC 8460 §3 wants reports signed: receivers drop those whose signature does not verify.";
                let finding = Finding::new(Weight::Error, "dkim-record", public.name(), wrong, why);
                found.push(finding.fix(public.zone_line().replace('\n', "")));
            }
            Err(error) => found.not_looked_at.push(format!("the DKIM record {}: {error}", public.name())),
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
    match published(resolver, domain).await {
        Ok(_) => {}
        Err(LookupError::None(NoRecipients::NoRecord)) => {
            found.push(Finding::new(Weight::Note, "no-tlsrpt", name, "there is no TLSRPT record", why).fix(line));
        }
        Err(LookupError::None(fault)) => {
            found.push(Finding::new(Weight::Warning, "tlsrpt-record", name, fault.to_string(), why).fix(line));
        }
        Err(LookupError::Temporary(error)) => found.not_looked_at.push(format!("{name}: {error}")),
    }
}
