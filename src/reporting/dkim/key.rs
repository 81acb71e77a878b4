//! DKIM keys: made, described as the record to publish, and held against the record that is published (RFC 6376 §3.6.1,
//! RFC 8463 §4, RFC 8460 §3).
//!
//! Takes: a kind of key; or a public half, and the TXT records at its name. Gives: a private key in PEM and its record; or one
//! line that says what a receiver would find wrong, and what to publish.
//! Limits: none of its own; DNS is asked once a key.
//! When it fails: making a key fails only where the system has no random octets.
//! Not here: reading keys and signing (`signer`).

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use rsa::pkcs1::DecodeRsaPublicKey;
use rsa::pkcs8::{EncodePrivateKey, EncodePublicKey, LineEnding, SecretDocument};
use rsa::{RsaPrivateKey, RsaPublicKey};

use crate::base::printable::escape_and_cut;
use crate::net::dns::{DnsError, Resolver};

/// Bits of an RSA key that is made: what every verifier takes (RFC 8301 §3.2), and a record of two strings.
pub const RSA_BITS: usize = 2048;

/// A kind of key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// RSA with SHA-256: every receiver verifies it.
    Rsa,
    /// Ed25519 (RFC 8463): short, and not known to every receiver; sign with an RSA key too.
    Ed25519,
}

impl Kind {
    /// `k=`.
    fn word(self) -> &'static str {
        match self {
            Kind::Rsa => "rsa",
            Kind::Ed25519 => "ed25519",
        }
    }
}

/// The public half of a key, and where it is published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Public {
    /// `s=` of a signature.
    pub selector: String,
    /// `d=`.
    pub domain: String,
    /// `k=` of the record.
    pub kind: Kind,
    /// SubjectPublicKeyInfo of an RSA key, the 32 octets of an Ed25519 key: what `p=` has.
    octets: Vec<u8>,
}

/// Makes a key. Gives the private half, PKCS#8 in PEM, and the public one. Takes up to a second.
pub fn make(kind: Kind, selector: &str, domain: &str) -> Result<(String, Public), String> {
    let public = |octets| Public { selector: selector.to_owned(), domain: domain.to_owned(), kind, octets };
    match kind {
        Kind::Rsa => {
            let key = RsaPrivateKey::new(&mut rsa::rand_core::OsRng, RSA_BITS).map_err(|e| e.to_string())?;
            let pem = key.to_pkcs8_pem(LineEnding::LF).map_err(|e| e.to_string())?;
            Ok((pem.to_string(), public(info(&key.to_public_key())?)))
        }
        Kind::Ed25519 => {
            let der = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|e| e.to_string())?;
            let key = Ed25519KeyPair::from_pkcs8(der.as_ref()).map_err(|e| e.to_string())?;
            let der = SecretDocument::try_from(der.as_ref()).map_err(|e| e.to_string())?;
            let pem = der.to_pem("PRIVATE KEY", LineEnding::LF).map_err(|e| e.to_string())?;
            Ok((pem.to_string(), public(key.public_key().as_ref().to_vec())))
        }
    }
}

fn info(key: &RsaPublicKey) -> Result<Vec<u8>, String> {
    Ok(key.to_public_key_der().map_err(|e| e.to_string())?.into_vec())
}

impl Public {
    /// Of an RSA key whose public half is `RSAPublicKey` (RFC 8017 §A.1.1) in DER.
    pub(crate) fn rsa(selector: &str, domain: &str, pkcs1: &[u8]) -> Result<Public, String> {
        let octets = info(&RsaPublicKey::from_pkcs1_der(pkcs1).map_err(|e| e.to_string())?)?;
        Ok(Public { selector: selector.to_owned(), domain: domain.to_owned(), kind: Kind::Rsa, octets })
    }

    /// Of an Ed25519 key.
    pub(crate) fn ed25519(selector: &str, domain: &str, octets: Vec<u8>) -> Public {
        Public { selector: selector.to_owned(), domain: domain.to_owned(), kind: Kind::Ed25519, octets }
    }

    /// Where the record is: `SELECTOR._domainkey.DOMAIN`.
    pub fn name(&self) -> String {
        format!("{}._domainkey.{}", self.selector, self.domain)
    }

    /// The record, with the service type that RFC 8460 §3 wants.
    pub fn record(&self) -> String {
        format!("v=DKIM1; k={}; s=tlsrpt; p={}", self.kind.word(), BASE64_STANDARD.encode(&self.octets))
    }

    /// The record as a zone file has it: strings of 255 octets at most (RFC 1035 §3.3.14).
    pub fn zone_line(&self) -> String {
        let record = self.record();
        let strings: Vec<String> =
            record.as_bytes().chunks(255).map(|part| format!("\"{}\"", String::from_utf8_lossy(part))).collect();
        format!("{}. IN TXT ( {} )", self.name(), strings.join("\n    "))
    }

    /// Asks DNS. An error is one line that names the key and ends with what to publish.
    pub async fn check(&self, resolver: &Resolver) -> Result<(), String> {
        let name = self.name();
        match self.fault(resolver).await {
            Ok(None) => Ok(()),
            Ok(Some(wrong)) => Err(format!(
                "[[report.dkim]] {}: {name}: {wrong}; receivers ignore reports that it signs; publish: {}",
                self.selector,
                self.record()
            )),
            Err(why) => Err(format!("[[report.dkim]] {}: {name} not checked: {why}; going on", self.selector)),
        }
    }

    /// Asks DNS what a verifier would find wrong. An error says why it cannot be known.
    pub async fn fault(&self, resolver: &Resolver) -> Result<Option<String>, String> {
        match resolver.txt(&self.name()).await {
            Ok(answer) => Ok(self.matches(&answer.records).err()),
            Err(DnsError::NoSuchDomain { .. } | DnsError::NoRecords { .. }) => {
                Ok(Some("there is no such record".into()))
            }
            Err(DnsError::Failed(why)) => Err(escape_and_cut(&why, 200)),
        }
    }

    /// What a verifier would find wrong in the records at the key's name.
    fn matches(&self, records: &[String]) -> Result<(), String> {
        let mut keys = records.iter().filter(|record| tag(record, "p").is_some());
        let (Some(record), None) = (keys.next(), keys.next()) else {
            let found = records.iter().filter(|record| tag(record, "p").is_some()).count();
            return Err(format!("{found} key records, where there must be one"));
        };
        let kind = tag(record, "k").unwrap_or_else(|| "rsa".to_owned());
        if kind != self.kind.word() {
            return Err(format!("k={} there, and the key is of kind {}", escape_and_cut(&kind, 40), self.kind.word()));
        }
        let allows = |name: &str, words: [&str; 2]| {
            tag(record, name).is_none_or(|list| list.split(':').any(|word| words.contains(&word)))
        };
        if !allows("s", ["*", "tlsrpt"]) {
            return Err("its s= does not allow tlsrpt".to_owned());
        }
        if !allows("h", ["sha256", "sha256"]) {
            return Err("its h= does not allow sha256".to_owned());
        }
        match tag(record, "p").unwrap_or_default() {
            revoked if revoked.is_empty() => Err("it is revoked (empty p=)".to_owned()),
            published => match BASE64_STANDARD.decode(published) {
                Ok(octets) if self.is(&octets) => Ok(()),
                Ok(_) => Err("it has another key".to_owned()),
                Err(_) => Err("its p= is no base64".to_owned()),
            },
        }
    }

    /// RFC 6376 §3.6.1 says `RSAPublicKey`, everybody publishes SubjectPublicKeyInfo, and verifiers take both.
    fn is(&self, octets: &[u8]) -> bool {
        octets == self.octets
            || (self.kind == Kind::Rsa
                && RsaPublicKey::from_pkcs1_der(octets).is_ok_and(|key| info(&key).is_ok_and(|der| der == self.octets)))
    }
}

/// The value of a tag of a DKIM tag list (RFC 6376 §3.2), white space taken out.
fn tag(record: &str, name: &str) -> Option<String> {
    record.split(';').find_map(|field| {
        let (tag, value) = field.split_once('=')?;
        (tag.trim() == name).then(|| value.split_whitespace().collect())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DkimKeySection;
    use crate::reporting::dkim::signer::Signer;

    fn made() -> Vec<(String, Public)> {
        [Kind::Rsa, Kind::Ed25519].into_iter().map(|kind| make(kind, "s1", "sender.example").unwrap()).collect()
    }

    #[test]
    fn a_key_that_is_made_can_sign_and_is_the_one_described() {
        let folder = tempfile::tempdir().unwrap();
        for (pem, public) in made() {
            let path = folder.path().join("key.pem");
            std::fs::write(&path, pem).unwrap();
            let keys = [DkimKeySection { selector: "s1".into(), domain: None, key: path }];
            let signer = Signer::load(&keys, "sender.example").unwrap();
            assert_eq!(signer.published, [public]);
        }
    }

    #[test]
    fn a_record_is_held_against_the_key() {
        for (_, public) in made() {
            let right = public.record();
            let other = make(public.kind, "s1", "sender.example").unwrap().1.record();
            let at = right.find("p=").unwrap() + 20;
            let folded = format!("{} {}", &right[..at], &right[at..]);
            let ok = [vec![right.clone()], vec!["v=spf1 -all".into(), right.clone()], vec![folded]];
            for records in ok {
                assert_eq!(public.matches(&records), Ok(()), "{records:?}");
            }
            for (records, said) in [
                (vec![], "0 key records"),
                (vec![right.clone(), right.clone()], "2 key records"),
                (vec![other], "another key"),
                (vec![right.replace("s=tlsrpt", "s=email")], "does not allow tlsrpt"),
                (vec![right.replace("s=tlsrpt", "h=sha1")], "does not allow sha256"),
                (vec!["v=DKIM1; k=rsa; p=".replace("rsa", public.kind.word())], "revoked"),
                (vec![right.replace("p=", "p=?")], "no base64"),
                (vec![right.replace("k=", "k=x")], "the key is of kind"),
            ] {
                let wrong = public.matches(&records).unwrap_err();
                assert!(wrong.contains(said), "{said}: {wrong}");
            }
        }
    }

    #[test]
    fn strings_of_a_zone_line_are_short() {
        for (_, public) in made() {
            let line = public.zone_line();
            assert!(line.starts_with("s1._domainkey.sender.example. IN TXT ( \"v=DKIM1; k="), "{line}");
            let strings: Vec<&str> = line.split('"').skip(1).step_by(2).collect();
            assert!(strings.iter().all(|s| s.len() <= 255));
            assert_eq!(strings.concat(), public.record());
        }
    }
}
