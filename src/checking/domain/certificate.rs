//! What a server's certificate says, and whether a sender would take it.
//!
//! Takes: the chain as presented. Gives: [`CertificateFacts`] for people, the verdict of the web's authorities (RFC 8461 §4.2), and
//! which TLSA record fits (RFC 7672 §3).
//! Limits: [`MAX_NAMES`] names of a certificate.
//! When it fails: a chain that cannot be read has no facts, and passes nothing.
//! Not here: how the chain was got (`probe`).

use std::sync::Arc;

use ring::digest;
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use serde::Serialize;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::answering::policy::dane::lookup::check_usability;
use crate::net::dns::TlsaRecord;
use crate::net::https::{CertificateFault, certificate_fault};

/// How many names are shown: a certificate of a large host has a hundred.
pub const MAX_NAMES: usize = 100;

/// How much of a stranger's text is shown, in characters.
const MAX_TEXT: usize = 200;

/// The contents of a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct CertificateFacts {
    /// Whom it is for.
    pub subject: String,
    /// Who signed it.
    pub issuer: String,
    /// The DNS names in it.
    pub names: Vec<String>,
    /// From when it is valid, in seconds since 1970-01-01T00:00:00Z.
    pub not_before: i64,
    /// Until when.
    pub not_after: i64,
    /// The data of a `TLSA 3 1 1` record for its key.
    pub tlsa_3_1_1: String,
}

/// The contents of the first certificate of a chain; `None` where it cannot be read.
pub fn read_facts(certificate: &[u8]) -> Option<CertificateFacts> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let alternative = parsed.subject_alternative_name().ok().flatten();
    let names = alternative.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    let dns = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some(escape(name)),
        _ => None,
    };
    let validity = parsed.validity();
    let key = parsed.public_key().raw;
    Some(CertificateFacts {
        subject: escape(&parsed.subject().to_string()),
        issuer: escape(&parsed.issuer().to_string()),
        names: names.iter().filter_map(dns).take(MAX_NAMES).collect(),
        not_before: validity.not_before.timestamp(),
        not_after: validity.not_after.timestamp(),
        tlsa_3_1_1: data_encoding::HEXLOWER.encode(digest::digest(&digest::SHA256, key).as_ref()),
    })
}

/// Every fault of the chain for a sender that verifies it against the public certificate authorities: trust, time and
/// name separately.
pub(crate) fn find_faults(
    verifier: &dyn ServerCertVerifier,
    chain: &[CertificateDer<'_>],
    host: &str,
    now: UnixTime,
) -> Vec<CertificateFault> {
    let (Some((leaf, others)), Ok(name)) = (chain.split_first(), ServerName::try_from(host)) else {
        return vec![CertificateFault::Trust];
    };
    let mut faults = Vec::new();
    if let Err(error) = verifier.verify_server_cert(leaf, others, &name, &[], now) {
        faults.push(certificate_fault(&error).unwrap_or(CertificateFault::Trust));
    }
    // A verifier stops at the first fault.
    let named = ParsedCertificate::try_from(leaf).and_then(|leaf| rustls::client::verify_server_name(&leaf, &name));
    if named.is_err() {
        faults.push(CertificateFault::Name);
    }
    let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    if read_facts(leaf).is_none_or(|facts| !(facts.not_before..=facts.not_after).contains(&seconds)) {
        faults.push(CertificateFault::Expired);
    }
    faults.sort_by_key(|fault| *fault as u8);
    faults.dedup();
    faults
}

/// The first TLSA record that the chain matches; `names` are the names that a certificate under usage 2 may have: the
/// TLSA base domain and the next hop (RFC 7672 §3.2.2).
pub fn matching_record<'a>(
    records: &'a [TlsaRecord],
    chain: &[CertificateDer<'_>],
    names: &[&str],
    now: UnixTime,
) -> Option<&'a TlsaRecord> {
    records.iter().filter(|record| check_usability(record).is_ok()).find(|record| match record.usage {
        3 => chain.first().is_some_and(|leaf| record_matches(record, leaf)),
        _ => chains_to_anchor(record, chain, names, now),
    })
}

/// Usage 2: the chain leads to a certificate that the record names (RFC 7671 §5.2).
fn chains_to_anchor(record: &TlsaRecord, chain: &[CertificateDer<'_>], names: &[&str], now: UnixTime) -> bool {
    let Some((leaf, others)) = chain.split_first() else { return false };
    let mut anchors = RootCertStore::empty();
    for certificate in others.iter().filter(|certificate| record_matches(record, certificate)) {
        // One that cannot be an anchor leads nowhere.
        let _ = anchors.add(certificate.clone().into_owned());
    }
    if record.selector == 0 && record.matching == 0 {
        // The record itself brings the certificate.
        let _ = anchors.add(CertificateDer::from(record.data.clone()));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let Ok(verifier) = WebPkiServerVerifier::builder_with_provider(Arc::new(anchors), provider).build() else {
        return false;
    };
    let names = names.iter().filter_map(|name| ServerName::try_from(*name).ok());
    names.into_iter().any(|name| verifier.verify_server_cert(leaf, others, &name, &[], now).is_ok())
}

/// Whether a record matches this certificate (RFC 6698 §2.1).
fn record_matches(record: &TlsaRecord, certificate: &CertificateDer<'_>) -> bool {
    let selected = match record.selector {
        0 => certificate.to_vec(),
        _ => match ParsedCertificate::try_from(certificate) {
            Ok(parsed) => parsed.subject_public_key_info().to_vec(),
            Err(_) => return false,
        },
    };
    match record.matching {
        0 => record.data == selected,
        1 => digest::digest(&digest::SHA256, &selected).as_ref() == record.data,
        _ => digest::digest(&digest::SHA512, &selected).as_ref() == record.data,
    }
}

fn escape(text: &str) -> String {
    text.chars().take(MAX_TEXT).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_certificate_passes_nothing() {
        assert_eq!(read_facts(b""), None);
        assert_eq!(read_facts(b"\x30\x03\x02\x01\x01"), None);
        let junk = [CertificateDer::from(vec![0x30, 0x00])];
        let record = TlsaRecord { usage: 3, selector: 1, matching: 1, data: vec![0; 32] };
        assert_eq!(matching_record(&[record], &junk, &["a.test"], UnixTime::now()), None);
    }
}
