//! Who reports, and whether receivers can believe it: keys, their DNS records, SPF, a TLSRPT record of one's own.
//!
//! Takes: the `[report]` section and the resolver. Gives: findings, with the records to publish.
//! Not here: signing (`report::message`), where others want their reports (`report::recipients`).

use std::io;

use data_encoding::BASE64;

use crate::config::{DkimKey, ReportSection};
use crate::dns::{DnsError, Resolver};
use crate::finding::{Finding, Findings, Weight};
use crate::report::message::{KeyFault, PublicKey, Signer, public_key};
use crate::report::recipients::NoRecipients;
use crate::report::{Identity, LookupError, missing_identity, published};

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
    found.looked_at.push(format!("[report]: {} keys of {}", section.dkim.keys().len(), identity.from.domain));
}

async fn dkim(key: &DkimKey, from: &str, resolver: &Resolver, found: &mut Findings) {
    let domain = key.domain.as_deref().unwrap_or(from);
    let name = format!("{}._domainkey.{domain}", key.selector);
    let unsigned = "RFC 8460 §3 wants reports signed: receivers drop those whose signature does not verify.";
    let loaded = Signer::load(std::slice::from_ref(key), from);
    let public = match public_key(key) {
        Ok(public) => public,
        Err(KeyFault::Unreadable(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
            found.not_looked_at.push(format!("the key {}: {error}", key.key.display()));
            return;
        }
        Err(fault) => {
            let why = "The daemon does not start with it.";
            found.push(Finding::new(Weight::Error, "dkim-key", key.key.display().to_string(), fault.to_string(), why));
            return;
        }
    };
    for warning in loaded.map(|signer| signer.warnings).unwrap_or_default() {
        let finding =
            Finding::new(Weight::Warning, "dkim-key-open", key.key.display().to_string(), warning, "It is a secret.");
        found.push(finding.fix(format!("chmod 640 {}", key.key.display())));
    }
    let wanted = record_of(&public);
    let say = |weight, kind: &str, what: String| Finding::new(weight, kind, name.clone(), what, unsigned);
    let publish = |finding: Finding| finding.fix(format!("{name}. IN TXT {}", strings(&wanted)));
    let records = match resolver.txt(&name).await {
        Ok(answer) => answer.records,
        Err(DnsError::Failed(error)) => {
            found.not_looked_at.push(format!("the DKIM record {name}: {error}"));
            return;
        }
        Err(_) => Vec::new(),
    };
    match records.as_slice() {
        [] => found.push(publish(say(Weight::Error, "dkim-record", "there is no DKIM record".into()))),
        [one] => match fault(one, &public) {
            None => {
                if tag(one, "t").is_some_and(|flags| flags.split(':').any(|flag| flag.trim() == "y")) {
                    found.push(publish(say(Weight::Warning, "dkim-testing", "the record is for testing (t=y)".into())));
                }
            }
            Some(what) => found.push(publish(say(Weight::Error, "dkim-record", what.to_owned()))),
        },
        many => {
            let what = format!("{} TXT records where there must be one", many.len());
            found.push(publish(say(Weight::Error, "dkim-record", what)));
        }
    }
}

/// Why a record does not verify what a key signs (RFC 6376 §3.6.1).
fn fault(record: &str, public: &PublicKey) -> Option<&'static str> {
    if tag(record, "v").is_some_and(|version| version != "DKIM1") {
        return Some("it is no DKIM record: `v` is not DKIM1");
    }
    let Some(published) = tag(record, "p") else { return Some("it is no DKIM record: it has no `p`") };
    if published.is_empty() {
        return Some("the key is revoked (p= is empty)");
    }
    let kind = tag(record, "k").unwrap_or_else(|| "rsa".into());
    if tag(record, "h").is_some_and(|hashes| !hashes.split(':').any(|hash| hash.trim() == "sha256")) {
        return Some("it does not allow sha256 (h=)");
    }
    let services = tag(record, "s").unwrap_or_else(|| "*".into());
    if !services.split(':').any(|service| matches!(service.trim(), "*" | "email" | "tlsrpt")) {
        return Some("it is for another service (s=)");
    }
    let Ok(published) = BASE64.decode(published.as_bytes()) else { return Some("`p` is no base64") };
    let same = match public {
        // As it is, or in a SubjectPublicKeyInfo, which ends with it.
        PublicKey::Rsa(key) => kind == "rsa" && published.ends_with(key),
        PublicKey::Ed25519(key) => kind == "ed25519" && published == *key,
    };
    (!same).then_some("it has another key than the one that signs")
}

/// The value of a tag, without white space (RFC 6376 §3.2).
fn tag(record: &str, name: &str) -> Option<String> {
    let pair = |field: &str| field.split_once('=').map(|(n, value)| (n.trim().to_owned(), value.to_owned()));
    let value = record.split(';').filter_map(pair).find(|(n, _)| n == name)?.1;
    Some(value.chars().filter(|c| !c.is_whitespace()).collect())
}

fn record_of(public: &PublicKey) -> String {
    match public {
        PublicKey::Rsa(key) => format!("v=DKIM1; k=rsa; p={}", BASE64.encode(&subject_public_key_info(key))),
        PublicKey::Ed25519(key) => format!("v=DKIM1; k=ed25519; p={}", BASE64.encode(key)),
    }
}

/// An RSAPublicKey in the form that DKIM records have (RFC 8017 §A.1: rsaEncryption, NULL).
fn subject_public_key_info(key: &[u8]) -> Vec<u8> {
    const ALGORITHM: [u8; 15] =
        [0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];
    let bits = der(0x03, &[&[0], key].concat());
    der(0x30, &[&ALGORITHM[..], &bits].concat())
}

/// One DER value. Keys are shorter than 64 KiB.
fn der(tag: u8, value: &[u8]) -> Vec<u8> {
    let [.., high, low] = value.len().to_be_bytes();
    let length: &[u8] = match value.len() {
        0..=127 => &[low],
        128..=255 => &[0x81, low],
        _ => &[0x82, high, low],
    };
    [&[tag], length, value].concat()
}

/// A TXT value as zone files have it: strings of 255 octets at most (RFC 1035 §3.3).
fn strings(text: &str) -> String {
    let strings: Vec<String> =
        text.as_bytes().chunks(255).map(|part| format!("\"{}\"", String::from_utf8_lossy(part))).collect();
    strings.join(" ")
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

#[cfg(test)]
mod tests {
    use super::*;

    fn key(file: &str) -> PublicKey {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/dkim").join(file);
        public_key(&DkimKey { selector: "s".into(), domain: None, key: path }).unwrap()
    }

    #[test]
    fn the_record_that_is_proposed_is_the_one_that_openssl_wrote() {
        for (file, kind) in [("rsa2048-pkcs1", "rsa"), ("rsa2048-pkcs8", "rsa"), ("ed25519", "ed25519")] {
            let path = format!("{}/fixtures/dkim/{file}.pub", env!("CARGO_MANIFEST_DIR"));
            let published = std::fs::read_to_string(path).unwrap();
            let public = key(&format!("{file}.pem"));
            assert_eq!(record_of(&public), format!("v=DKIM1; k={kind}; p={}", published.trim()), "{file}");
            assert_eq!(fault(&record_of(&public), &public), None);
        }
    }

    #[test]
    fn records_that_do_not_verify() {
        let public = key("rsa2048-pkcs1.pem");
        let good = record_of(&public);
        assert_eq!(fault(&good.replace("k=rsa; ", ""), &public), None);
        assert_eq!(fault(&good.replace("; p=", "; s = email : x ; h=sha1:sha256; p = "), &public), None);
        for (record, says) in [
            (record_of(&key("rsa2048-pkcs8.pem")), "another key"),
            (record_of(&key("ed25519.pem")), "another key"),
            (good.replace("k=rsa", "k=ed25519"), "another key"),
            (good.replace("DKIM1", "DKIM2"), "no DKIM"),
            ("v=DKIM1; k=rsa".into(), "no DKIM"),
            ("v=spf1 -all".into(), "no DKIM"),
            ("v=DKIM1; p=".into(), "revoked"),
            ("v=DKIM1; p=!".into(), "base64"),
            (good.clone() + "; h=sha1", "sha256"),
            (good.clone() + "; s=calendar", "service"),
        ] {
            assert!(fault(&record, &public).is_some_and(|what| what.contains(says)), "{record}");
        }
    }

    #[test]
    fn long_records_are_split() {
        assert_eq!(strings("abc"), "\"abc\"");
        assert_eq!(strings(&"a".repeat(300)).matches('"').count(), 4);
    }
}
