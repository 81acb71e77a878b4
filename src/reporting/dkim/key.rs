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
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use rsa::pkcs1::DecodeRsaPublicKey;
use rsa::pkcs8::{EncodePrivateKey, EncodePublicKey, LineEnding, SecretDocument};
use rsa::{RsaPrivateKey, RsaPublicKey};

use crate::base::own_reports::random_bytes;
use crate::base::printable::escape_and_cut;
use crate::net::dns::{DnsError, Resolver};

/// Bits of an RSA key that is made: what every verifier takes (RFC 8301 §3.2), and a record of two strings.
pub(crate) const RSA_BITS: usize = 2048;

/// The length of the private half of an Ed25519 key, in bytes.
const ED25519_SEED_LENGTH: usize = 32;

/// What stands before the private half in PKCS#8 version 1 (RFC 8410 §7). Version 2, which ring writes, cannot be read by
/// OpenSSL 3.0, and so not by OpenDKIM or Rspamd.
const ED25519_PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// The type of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum KeyType {
    /// RSA with SHA-256: every receiver verifies it.
    Rsa,
    /// Ed25519 (RFC 8463): short, and not known to every receiver; sign with an RSA key too.
    Ed25519,
}

impl KeyType {
    /// The value of `k=`.
    fn name(self) -> &'static str {
        match self {
            KeyType::Rsa => "rsa",
            KeyType::Ed25519 => "ed25519",
        }
    }
}

/// The public half of a key, and where it is published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DkimPublicKey {
    /// `s=` of a signature.
    pub(crate) selector: String,
    /// `d=`.
    pub(crate) domain: String,
    /// `k=` of the record.
    pub(crate) key_type: KeyType,
    /// Whether the record has `s=tlsrpt`: the key is for reports alone (RFC 8460 §3). Verifiers that check a report as any other
    /// mail do not take such a key, so that the same key under a second selector has a record without it.
    pub(crate) for_reports_only: bool,
    /// The content of `p=`: SubjectPublicKeyInfo of an RSA key, the 32 octets of an Ed25519 key.
    public_key: Vec<u8>,
}

/// Generates a key. Returns the private half, PKCS#8 in PEM, and the public one. Takes up to a second.
pub(crate) fn generate_key(key_type: KeyType, selector: &str, domain: &str) -> Result<(String, DkimPublicKey), String> {
    let public = |bytes| DkimPublicKey::new(selector, domain, key_type, bytes);
    match key_type {
        KeyType::Rsa => {
            let key = RsaPrivateKey::new(&mut rsa::rand_core::OsRng, RSA_BITS).map_err(|e| e.to_string())?;
            let pem = key.to_pkcs8_pem(LineEnding::LF).map_err(|e| e.to_string())?;
            Ok((pem.to_string(), public(spki_der(&key.to_public_key())?)))
        }
        KeyType::Ed25519 => {
            let seed = random_bytes::<ED25519_SEED_LENGTH>().map_err(|e| e.to_string())?;
            let key = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|e| e.to_string())?;
            let der = SecretDocument::try_from(&[&ED25519_PKCS8_PREFIX[..], &seed].concat()[..])
                .map_err(|e| e.to_string())?;
            let pem = der.to_pem("PRIVATE KEY", LineEnding::LF).map_err(|e| e.to_string())?;
            Ok((pem.to_string(), public(key.public_key().as_ref().to_vec())))
        }
    }
}

fn spki_der(key: &RsaPublicKey) -> Result<Vec<u8>, String> {
    Ok(key.to_public_key_der().map_err(|e| e.to_string())?.into_vec())
}

impl DkimPublicKey {
    fn new(selector: &str, domain: &str, key_type: KeyType, public_key: Vec<u8>) -> DkimPublicKey {
        let (selector, domain) = (selector.to_owned(), domain.to_owned());
        DkimPublicKey { selector, domain, key_type, for_reports_only: true, public_key }
    }

    /// The same key under another selector, for verifiers that check a report as any other mail.
    pub(crate) fn for_all_mail(&self, selector: String) -> DkimPublicKey {
        DkimPublicKey { selector, for_reports_only: false, ..self.clone() }
    }

    /// Whether both have the same private half.
    pub(crate) fn is_same_as(&self, other: &DkimPublicKey) -> bool {
        (self.key_type, &self.public_key) == (other.key_type, &other.public_key)
    }

    /// The public key of an RSA key whose public half is `RSAPublicKey` (RFC 8017 §A.1.1) in DER.
    pub(crate) fn from_rsa(selector: &str, domain: &str, pkcs1: &[u8]) -> Result<DkimPublicKey, String> {
        let bytes = spki_der(&RsaPublicKey::from_pkcs1_der(pkcs1).map_err(|e| e.to_string())?)?;
        Ok(DkimPublicKey::new(selector, domain, KeyType::Rsa, bytes))
    }

    /// The public key of an Ed25519 key.
    pub(crate) fn from_ed25519(selector: &str, domain: &str, bytes: Vec<u8>) -> DkimPublicKey {
        DkimPublicKey::new(selector, domain, KeyType::Ed25519, bytes)
    }

    /// The name of the record: `SELECTOR._domainkey.DOMAIN`.
    pub(crate) fn record_name(&self) -> String {
        format!("{}._domainkey.{}", self.selector, self.domain)
    }

    /// The record; for reports alone with the service type that RFC 8460 §3 wants.
    pub(crate) fn record(&self) -> String {
        let service = if self.for_reports_only { "s=tlsrpt; " } else { "" };
        format!("v=DKIM1; k={}; {service}p={}", self.key_type.name(), BASE64_STANDARD.encode(&self.public_key))
    }

    /// The record as a zone file has it: strings of 255 octets at most (RFC 1035 §3.3.14).
    pub(crate) fn zone_line(&self) -> String {
        let record = self.record();
        let strings: Vec<String> =
            record.as_bytes().chunks(255).map(|part| format!("\"{}\"", String::from_utf8_lossy(part))).collect();
        format!("{}. IN TXT ( {} )", self.record_name(), strings.join("\n    "))
    }

    /// Compares the key with its record in DNS. An error is one line that names the key and ends with what to publish.
    pub(crate) async fn check_record(&self, resolver: &Resolver) -> Result<(), String> {
        let name = self.record_name();
        match self.find_fault(resolver).await {
            Ok(None) => Ok(()),
            Ok(Some(wrong)) => Err(format!(
                "[[report.dkim]] {}: {name}: {wrong}; receivers ignore reports that it signs; publish: {}",
                self.selector,
                self.record()
            )),
            Err(why) => Err(format!("[[report.dkim]] {}: {name} not checked: {why}; going on", self.selector)),
        }
    }

    /// What a verifier would find wrong in the record in DNS. An error says why DNS does not answer.
    pub(crate) async fn find_fault(&self, resolver: &Resolver) -> Result<Option<String>, String> {
        match resolver.txt(&self.record_name()).await {
            Ok(answer) => Ok(self.compare(&answer.records).err().map(|wrong| match under_systemd() {
                true if wrong == OTHER_KEY => format!("{wrong}; {TAKEN_AT_START}"),
                _ => wrong,
            })),
            Err(DnsError::NoSuchDomain { .. } | DnsError::NoRecords { .. }) => {
                Ok(Some("there is no such record".into()))
            }
            Err(DnsError::Failed(why)) => Err(escape_and_cut(&why.to_string(), 200)),
        }
    }

    /// Compares the key with the records at its name; an error is what a verifier would find wrong.
    fn compare(&self, records: &[String]) -> Result<(), String> {
        let mut keys = records.iter().filter(|record| tag_value(record, "p").is_some());
        let (Some(record), None) = (keys.next(), keys.next()) else {
            let found = records.iter().filter(|record| tag_value(record, "p").is_some()).count();
            return Err(format!("{found} key records, where there must be one"));
        };
        let key_type = tag_value(record, "k").unwrap_or_else(|| "rsa".to_owned());
        if key_type != self.key_type.name() {
            return Err(format!(
                "k={} there, and the key is of kind {}",
                escape_and_cut(&key_type, 40),
                self.key_type.name()
            ));
        }
        let allows = |name: &str, words: [&str; 2]| {
            tag_value(record, name).is_none_or(|list| list.split(':').any(|word| words.contains(&word)))
        };
        if !allows("s", ["*", "tlsrpt"]) {
            return Err("its s= does not allow tlsrpt".to_owned());
        }
        if !allows("h", ["sha256", "sha256"]) {
            return Err("its h= does not allow sha256".to_owned());
        }
        match tag_value(record, "p").unwrap_or_default() {
            revoked if revoked.is_empty() => Err("it is revoked (empty p=)".to_owned()),
            published => match BASE64_STANDARD.decode(published) {
                Ok(bytes) if self.is_same_key(&bytes) => Ok(()),
                Ok(_) => Err(OTHER_KEY.to_owned()),
                Err(_) => Err("its p= is not valid base64".to_owned()),
            },
        }
    }

    /// Whether the content of `p=` is this key. RFC 6376 §3.6.1 says `RSAPublicKey`, everybody publishes SubjectPublicKeyInfo, and verifiers take both.
    fn is_same_key(&self, bytes: &[u8]) -> bool {
        bytes == self.public_key
            || (self.key_type == KeyType::Rsa
                && RsaPublicKey::from_pkcs1_der(bytes)
                    .is_ok_and(|key| spki_der(&key).is_ok_and(|der| der == self.public_key)))
    }
}

/// What is wrong with the record of another key.
const OTHER_KEY: &str = "it has another key";

/// Why the daemon may have another key than its file.
const TAKEN_AT_START: &str =
    "the daemon reads the key file only when it starts; if the file has changed, run `systemctl restart tlswarden`";

/// Whether systemd handed copies of files to this process.
fn under_systemd() -> bool {
    std::env::var_os("CREDENTIALS_DIRECTORY").is_some()
}

/// The value of a tag of a DKIM tag list (RFC 6376 §3.2), white space taken out.
fn tag_value(record: &str, name: &str) -> Option<String> {
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

    fn generated_keys() -> Vec<(String, DkimPublicKey)> {
        [KeyType::Rsa, KeyType::Ed25519]
            .into_iter()
            .map(|key_type| generate_key(key_type, "s1", "sender.example").unwrap())
            .collect()
    }

    #[test]
    fn a_key_that_is_made_can_sign_and_is_the_one_described() {
        let folder = tempfile::tempdir().unwrap();
        for (pem, public) in generated_keys() {
            let path = folder.path().join("key.pem");
            std::fs::write(&path, pem).unwrap();
            let keys = [DkimKeySection { selector: "s1".into(), domain: None, key: path }];
            let signer = Signer::load(&keys, "sender.example").unwrap();
            assert_eq!(signer.public_keys, [public]);
        }
    }

    #[test]
    fn a_record_is_held_against_the_key() {
        for (_, public) in generated_keys() {
            let right = public.record();
            let other = generate_key(public.key_type, "s1", "sender.example").unwrap().1.record();
            let at = right.find("p=").unwrap() + 20;
            let folded = format!("{} {}", &right[..at], &right[at..]);
            let ok = [vec![right.clone()], vec!["v=spf1 -all".into(), right.clone()], vec![folded]];
            for records in ok {
                assert_eq!(public.compare(&records), Ok(()), "{records:?}");
            }
            for (records, said) in [
                (vec![], "0 key records"),
                (vec![right.clone(), right.clone()], "2 key records"),
                (vec![other], "another key"),
                (vec![right.replace("s=tlsrpt", "s=email")], "does not allow tlsrpt"),
                (vec![right.replace("s=tlsrpt", "h=sha1")], "does not allow sha256"),
                (vec!["v=DKIM1; k=rsa; p=".replace("rsa", public.key_type.name())], "revoked"),
                (vec![right.replace("p=", "p=?")], "not valid base64"),
                (vec![right.replace("k=", "k=x")], "the key is of kind"),
            ] {
                let wrong = public.compare(&records).unwrap_err();
                assert!(wrong.contains(said), "{said}: {wrong}");
            }
        }
    }

    #[test]
    fn one_key_has_a_record_for_reports_and_one_for_all_mail() {
        for (_, public) in generated_keys() {
            let other = public.for_all_mail("s1-mail".into());
            assert!(other.is_same_as(&public) && other.record_name() == "s1-mail._domainkey.sender.example");
            assert_eq!(other.record(), public.record().replace("s=tlsrpt; ", ""));
            assert_eq!(other.compare(&[other.record()]), Ok(()));
        }
    }

    #[test]
    fn an_ed25519_key_has_the_form_that_openssl_reads() {
        let (pem, _) = generate_key(KeyType::Ed25519, "s1", "sender.example").unwrap();
        let base64: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        let der = BASE64_STANDARD.decode(base64).unwrap();
        assert_eq!((&der[..16], der.len()), (&ED25519_PKCS8_PREFIX[..], 48));
    }

    #[test]
    fn strings_of_a_zone_line_are_short() {
        for (_, public) in generated_keys() {
            let line = public.zone_line();
            assert!(line.starts_with("s1._domainkey.sender.example. IN TXT ( \"v=DKIM1; k="), "{line}");
            let strings: Vec<&str> = line.split('"').skip(1).step_by(2).collect();
            assert!(strings.iter().all(|s| s.len() <= 255));
            assert_eq!(strings.concat(), public.record());
        }
    }
}
