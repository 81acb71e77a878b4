//! Signs messages with the configured DKIM keys (RFC 6376, RFC 8463). The only user of mail-auth.
//!
//! Takes: `[[report.dkim]]`; a message. Gives: the message with one `DKIM-Signature` for each key.
//! Limits: [`MAX_KEY_FILE`] octets of a key file.
//! When it fails: one [`DkimKeyError`] for each key that cannot be used; a [`SignError`] for one that does not sign.
//! Not here: making keys and comparing them with DNS (`key`).

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use mail_auth::common::crypto::{Ed25519Key, RsaKey, Sha256, SigningKey};
use mail_auth::common::headers::HeaderWriter;
use mail_auth::dkim::{Canonicalization, DkimSigner, Done};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;

use crate::base::domain_name;
use crate::base::printable::escape_and_cut;
use crate::config::DkimKeySection;
use crate::reporting::dkim::key::{DkimPublicKey, KeyType};

/// The folder whose keys systemd hands over (`packaging/systemd/tlswarden.service`).
const KEY_FOLDER: &str = "/etc/tlswarden/dkim.d";

/// The largest key file that is read, in octets: an RSA key of 4096 bits has 3.3 KiB.
pub(crate) const MAX_KEY_FILE: u64 = 64 * 1024;

/// The headers that are signed: all that a receiver relies on. From, To and Subject twice, so that no second one can be added.
const SIGNED_HEADERS: [&str; 14] = [
    "From",
    "From",
    "To",
    "To",
    "Subject",
    "Subject",
    "Date",
    "Message-ID",
    "MIME-Version",
    "Content-Type",
    "TLS-Report-Domain",
    "TLS-Report-Submitter",
    "TLS-Required",
    "Auto-Submitted",
];

/// The keys that sign every report.
pub struct Signer {
    keys: Vec<LoadedKey>,
    /// Warnings about the keys and the password, one line each.
    pub(crate) warnings: Vec<String>,
    /// Their public halves.
    pub(crate) public_keys: Vec<DkimPublicKey>,
}

/// A key, bound to its selector and domain.
enum LoadedKey {
    Rsa(DkimSigner<RsaKey<Sha256>, Done>),
    Ed25519(DkimSigner<Ed25519Key, Done>),
}

/// Why a key cannot sign; its text is one line that names the selector and the file.
#[derive(Debug, thiserror::Error)]
#[error("[[report.dkim]] {selector}: {}: {fault}", .path.display())]
pub struct DkimKeyError {
    /// `s=`.
    pub(crate) selector: String,
    /// The file.
    pub(crate) path: PathBuf,
    /// What is wrong.
    pub(crate) fault: DkimKeyFault,
}

/// What is wrong with a key.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DkimKeyFault {
    /// The selector or the domain is not a valid DNS name.
    #[error("invalid selector and domain \"{0}\": expected DNS labels, such as \"tlsrpt\"")]
    InvalidName(String),
    /// The file is missing, a folder, or not readable.
    #[error("cannot be read: {0}")]
    Unreadable(io::Error),
    /// systemd has made copies of the keys, and this one is not among them.
    #[error("cannot be read: {0}; systemd hands over keys at a start alone: run `systemctl restart tlswarden`")]
    NotHandedOver(io::Error),
    /// The file holds no private key in PEM.
    #[error("no private key in the file: expected an RSA or Ed25519 key in PEM form")]
    NoKey,
    /// The file holds a public key.
    #[error("the file has a public key: expected the private one")]
    Public,
    /// The key needs a passphrase.
    #[error("the key is encrypted: remove the passphrase with `openssl pkey -in FILE -out FILE.new`")]
    Encrypted,
    /// An elliptic-curve key (RFC 5480), which DKIM has no algorithm for.
    #[error("an EC key: expected RSA of 2048 to 4096 bits, or Ed25519")]
    EllipticCurve,
    /// An RSA key below 2048 bits (RFC 8301 §3.2).
    #[error("the RSA key is too short: expected 2048 to 4096 bits")]
    TooSmall,
    /// A key of another kind, or a broken one.
    #[error("the key cannot be used: {0}; expected RSA of 2048 to 4096 bits, or Ed25519")]
    Unusable(String),
}

/// A key did not sign.
#[derive(Debug, thiserror::Error)]
#[error("the DKIM key of selector `{selector}` did not sign: {why}")]
pub struct SignError {
    /// `s=`.
    pub(crate) selector: String,
    /// What the signing library says.
    pub(crate) why: String,
}

impl Signer {
    /// Reads the keys. Fails with every bad key, not just the first; `from_domain` is `d=` where none is set.
    pub fn load(keys: &[DkimKeySection], from_domain: &str) -> Result<Signer, Vec<DkimKeyError>> {
        let mut signer = Signer { keys: Vec::new(), warnings: Vec::new(), public_keys: Vec::new() };
        let mut errors = Vec::new();
        for key in keys {
            match signer.load_key(key, from_domain) {
                Ok(loaded) => signer.keys.push(loaded),
                Err(fault) => {
                    errors.push(DkimKeyError {
                        selector: escape_and_cut(&key.selector, 80),
                        path: key.key.clone(),
                        fault,
                    });
                }
            }
        }
        for i in 0..signer.public_keys.len() {
            // A key that signs under two selectors has the second record for verifiers of all mail.
            let (before, rest) = signer.public_keys.split_at_mut(i);
            rest[0].for_reports_only = !before.iter().any(|key| key.is_same_as(&rest[0]));
        }
        if errors.is_empty() { Ok(signer) } else { Err(errors) }
    }

    /// A warning where all keys are Ed25519 keys. It is about the keys together: [`warnings`](Self::warnings) are about
    /// one file each.
    pub(crate) fn key_type_warning(&self) -> Option<String> {
        let ed25519_alone =
            !self.public_keys.is_empty() && self.public_keys.iter().all(|key| key.key_type == KeyType::Ed25519);
        let warning = "[[report.dkim]]: no RSA key: receivers that do not verify Ed25519 (RFC 8463) ignore all reports; add an RSA key";
        ed25519_alone.then(|| warning.to_owned())
    }

    fn load_key(&mut self, key: &DkimKeySection, from_domain: &str) -> Result<LoadedKey, DkimKeyFault> {
        let wanted = key.domain.as_deref().unwrap_or(from_domain);
        let name = format!("{}._domainkey.{wanted}", key.selector);
        let bad_name = || DkimKeyFault::InvalidName(escape_and_cut(&name, 300));
        let domain = domain_name::normalize(wanted).ok_or_else(bad_name)?;
        domain_name::normalize(&name).ok_or_else(bad_name)?;

        let path = credential_path(&key.key);
        let awaits_restart = path == key.key && path.starts_with(KEY_FOLDER) && handed_over_by_systemd().is_some();
        let file = File::open(path).map_err(|error| match awaits_restart {
            true => DkimKeyFault::NotHandedOver(error),
            false => DkimKeyFault::Unreadable(error),
        })?;
        let mode = file.metadata().map_err(DkimKeyFault::Unreadable)?.permissions().mode();
        let mut pem = Vec::new();
        file.take(MAX_KEY_FILE).read_to_end(&mut pem).map_err(DkimKeyFault::Unreadable)?;
        if mode & 0o007 != 0 {
            self.warnings.push(format!(
                "[[report.dkim]] {}: {}: others may read or write it (mode {:04o}); anyone on this host can sign as {domain}",
                key.selector,
                key.key.display(),
                mode & 0o7777
            ));
        }
        let der = read_pem(&pem)?;
        match read_ed25519(&der) {
            Some(result) => {
                let signing = result?;
                self.public_keys.push(DkimPublicKey::from_ed25519(&key.selector, &domain, signing.public_key()));
                Ok(LoadedKey::Ed25519(configure_signer(signing, &domain, &key.selector)))
            }
            None => {
                let signing = read_rsa(der)?;
                let public = DkimPublicKey::from_rsa(&key.selector, &domain, &signing.public_key());
                self.public_keys.push(public.map_err(DkimKeyFault::Unusable)?);
                Ok(LoadedKey::Rsa(configure_signer(signing, &domain, &key.selector)))
            }
        }
    }

    /// Puts one `DKIM-Signature` a key before the message; each covers the same octets.
    pub fn sign(&self, message: Vec<u8>) -> Result<Vec<u8>, SignError> {
        let mut signed = Vec::new();
        for key in &self.keys {
            let signature = match key {
                LoadedKey::Rsa(signer) => signer.sign(&message),
                LoadedKey::Ed25519(signer) => signer.sign(&message),
            };
            let signature =
                signature.map_err(|e| SignError { selector: key.selector().to_owned(), why: e.to_string() })?;
            signed.extend_from_slice(signature.to_header().as_bytes());
        }
        signed.extend_from_slice(&message);
        Ok(signed)
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.keys.iter().map(LoadedKey::selector)).finish()
    }
}

impl LoadedKey {
    fn selector(&self) -> &str {
        match self {
            LoadedKey::Rsa(signer) => &signer.template.s,
            LoadedKey::Ed25519(signer) => &signer.template.s,
        }
    }
}

/// The folder of the copies that systemd makes when it starts the daemon.
fn handed_over_by_systemd() -> Option<PathBuf> {
    std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from)
}

/// Whether the copy of a key that systemd made when it started the daemon is not what the file has now. Nothing is known
/// of it where one of them cannot be read.
pub(crate) fn differs_from_copy(key: &Path, copies: &Path) -> bool {
    credential_name(key).is_some_and(|name| are_different(key, &copies.join(name)))
}

fn are_different(file: &Path, copy: &Path) -> bool {
    matches!((std::fs::read(file), std::fs::read(copy)), (Ok(file), Ok(copy)) if file != copy)
}

/// The daemon's own copy of a key, if systemd made one (`LoadCredential=dkim:…`, systemd.exec(5)); else the file itself.
fn credential_path(key: &Path) -> PathBuf {
    let copy = || {
        let copy = handed_over_by_systemd()?.join(credential_name(key)?);
        copy.exists().then_some(copy)
    };
    copy().unwrap_or_else(|| key.to_owned())
}

/// The name under which systemd hands over a file of [`KEY_FOLDER`]: subfolders are joined with `_`.
fn credential_name(key: &Path) -> Option<String> {
    let below = key.strip_prefix(KEY_FOLDER).ok()?.to_str()?;
    Some(format!("dkim_{}", below.replace('/', "_")))
}

fn configure_signer<K: SigningKey>(key: K, domain: &str, selector: &str) -> DkimSigner<K, Done> {
    DkimSigner::from_key(key)
        .domain(domain)
        .selector(selector)
        .headers(SIGNED_HEADERS)
        .header_canonicalization(Canonicalization::Relaxed)
        .body_canonicalization(Canonicalization::Relaxed)
}

/// Reads the first private key of a PEM file. What else is there is named: an encrypted key, a public one, an EC one.
fn read_pem(pem: &[u8]) -> Result<PrivateKeyDer<'static>, DkimKeyFault> {
    let has = |label: &str| memchr::memmem::find(pem, label.as_bytes()).is_some();
    if has("BEGIN ENCRYPTED PRIVATE KEY") || has("Proc-Type: 4,ENCRYPTED") {
        return Err(DkimKeyFault::Encrypted);
    }
    let public = has("BEGIN PUBLIC KEY") || has("BEGIN RSA PUBLIC KEY");
    let absent = || if public { DkimKeyFault::Public } else { DkimKeyFault::NoKey };
    let der = PrivateKeyDer::from_pem_slice(pem).map_err(|_| absent())?;
    // id-ecPublicKey, 1.2.840.10045.2.1 (RFC 5480 §2.1.1), stands at the beginning of the PKCS#8 form.
    const EC: [u8; 9] = [0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
    let bytes = der.secret_der();
    let elliptic = bytes[..bytes.len().min(32)].windows(EC.len()).any(|window| window == EC);
    if elliptic || matches!(der, PrivateKeyDer::Sec1(_)) { Err(DkimKeyFault::EllipticCurve) } else { Ok(der) }
}

/// Reads the key, if its PKCS#8 structure says that it is Ed25519 (RFC 8410 §3: OID 1.3.101.112).
fn read_ed25519(der: &PrivateKeyDer<'_>) -> Option<Result<Ed25519Key, DkimKeyFault>> {
    const OID: [u8; 5] = [0x06, 0x03, 0x2b, 0x65, 0x70];
    let PrivateKeyDer::Pkcs8(der) = der else { return None };
    let bytes = der.secret_pkcs8_der();
    let head = &bytes[..bytes.len().min(24)];
    head.windows(OID.len()).any(|w| w == OID).then(|| {
        // `maybe_unchecked`: openssl writes the form without the public key.
        Ed25519Key::from_pkcs8_maybe_unchecked_der(bytes).map_err(|e| DkimKeyFault::Unusable(e.to_string()))
    })
}

fn read_rsa(der: PrivateKeyDer<'_>) -> Result<RsaKey<Sha256>, DkimKeyFault> {
    RsaKey::from_key_der(der).map_err(|e| match e.to_string() {
        text if text.contains("TooSmall") => DkimKeyFault::TooSmall,
        text => DkimKeyFault::Unusable(text),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn key(file: &str) -> DkimKeySection {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/dkim").join(file);
        DkimKeySection { selector: file.split('.').next().unwrap().into(), domain: None, key: path }
    }

    #[test]
    fn a_key_that_was_changed_is_not_its_copy() {
        let folder = tempfile::tempdir().unwrap();
        let (file, copy) = (folder.path().join("file"), folder.path().join("copy"));
        std::fs::write(&file, "new").unwrap();
        assert!(!are_different(&file, &copy), "no copy: not started by systemd");
        std::fs::write(&copy, "old").unwrap();
        assert!(are_different(&file, &copy));
        std::fs::write(&copy, "new").unwrap();
        assert!(!are_different(&file, &copy));
        assert!(!differs_from_copy(&file, folder.path()), "systemd hands over one folder alone");
    }

    #[test]
    fn each_bad_key_is_one_line() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("text.pem"), "no key\n").unwrap();
        let at = |name: &str| DkimKeySection { selector: "s".into(), domain: None, key: folder.path().join(name) };
        let keys = [
            key("rsa2048-pkcs1.pem"),
            at("missing.pem"),
            at(""),
            at("text.pem"),
            key("rsa1024.pem"),
            key("p256.pem"),
            key("ec-sec1.pem"),
            key("encrypted.pem"),
            key("public.pem"),
            DkimKeySection { selector: "a b".into(), ..key("ed25519.pem") },
        ];
        let errors = Signer::load(&keys, "sender.example").unwrap_err();
        let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(lines.len(), 9, "{lines:#?}");
        for (line, said) in lines.iter().zip([
            "No such file",
            "directory",
            "no private key",
            "the RSA key is too short",
            "an EC key: expected RSA",
            "an EC key: expected RSA",
            "the key is encrypted",
            "a public key: expected the private one",
            "invalid selector",
        ]) {
            assert!(line.contains(said) && !line.contains('\n'), "{said}: {line}");
        }
    }

    #[test]
    fn keys_in_subfolders_have_the_names_that_systemd_gives_them() {
        let name = |path: &str| credential_name(Path::new(path));
        assert_eq!(name("/etc/tlswarden/dkim.d/tlsrpt.pem").as_deref(), Some("dkim_tlsrpt.pem"));
        assert_eq!(name("/etc/tlswarden/dkim.d/example.com/a.pem").as_deref(), Some("dkim_example.com_a.pem"));
        assert_eq!(name("/etc/tlswarden/tlsrpt.pem"), None);
    }

    #[test]
    fn ed25519_alone_is_warned_of() {
        let warned = |keys: &[DkimKeySection]| {
            let signer = Signer::load(keys, "sender.example").unwrap();
            signer.key_type_warning().is_some_and(|line| line.contains("no RSA key"))
        };
        assert!(warned(&[key("ed25519.pem")]));
        assert!(!warned(&[key("ed25519.pem"), key("rsa2048-pkcs8.pem")]));
        assert!(!warned(&[]));
    }

    #[test]
    fn a_key_that_others_can_read_is_warned_of() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.pem");
        std::fs::copy(key("ed25519.pem").key, &path).unwrap();
        let one = [DkimKeySection { selector: "s".into(), domain: None, key: path.clone() }];
        for (mode, warnings) in [(0o640, 0), (0o644, 1)] {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            let signer = Signer::load(&one, "sender.example").unwrap();
            let said = signer.warnings.iter().filter(|line| line.contains("others may read")).count();
            assert_eq!(said, warnings, "{mode:o}");
        }
    }
}
