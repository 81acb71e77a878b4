//! DKIM: keys for the daemon, their DNS records, and the check of what it signed.
//!
//! Takes: nothing, or a signed message. Gives: private keys in PKCS#8 PEM with their `p=` records
//! (RFC 6376 §3.6.1, RFC 8463 §4); one verdict a signature, the keys looked up in the world's DNS.
//! When it fails: a signature that does not verify is a verdict, not an error.
//! Not here: signing (the daemon).

use std::net::SocketAddr;

use data_encoding::BASE64;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use mail_auth::{AuthenticatedMessage, DkimResult, MessageAuthenticator};
use rcgen::{KeyPair, PublicKeyData};
use rsa::pkcs8::{EncodePrivateKey, EncodePublicKey, LineEnding};

use crate::ca;

/// A key of the signer.
#[derive(Clone, Debug)]
pub struct Key {
    /// `s=`.
    pub selector: &'static str,
    /// `rsa-sha256` or `ed25519-sha256`.
    pub algorithm: &'static str,
    /// The private key, PKCS#8 PEM.
    pub pem: String,
    /// The record at `SELECTOR._domainkey.DOMAIN`.
    pub record: String,
}

/// What became of one signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// `s=`.
    pub selector: String,
    /// `d=`.
    pub domain: String,
    /// `a=`.
    pub algorithm: String,
    /// The header fields that it covers, lower case.
    pub headers: Vec<String>,
    /// It verifies; otherwise why not.
    pub result: Result<(), String>,
}

/// An RSA key of 2048 bits and an Ed25519 key.
pub fn generate() -> Result<[Key; 2], String> {
    let rsa = rsa::RsaPrivateKey::new(&mut rsa::rand_core::OsRng, 2048).map_err(|e| e.to_string())?;
    let public = rsa.to_public_key().to_public_key_der().map_err(|e| e.to_string())?;
    let pem = rsa.to_pkcs8_pem(LineEnding::LF).map_err(|e| e.to_string())?.to_string();
    let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).map_err(|e| e.to_string())?;
    Ok([
        Key {
            selector: "lab-rsa",
            algorithm: "rsa-sha256",
            pem,
            record: format!("v=DKIM1; k=rsa; s=tlsrpt; p={}", BASE64.encode(public.as_bytes())),
        },
        Key {
            selector: "lab-ed25519",
            algorithm: "ed25519-sha256",
            pem: ed25519.serialize_pem(),
            record: format!("v=DKIM1; k=ed25519; s=tlsrpt; p={}", BASE64.encode(ed25519.der_bytes())),
        },
    ])
}

/// Verifies every signature of a message.
pub async fn verify(message: &[u8], dns: SocketAddr) -> Result<Vec<Verdict>, String> {
    let message = AuthenticatedMessage::parse(message).ok_or("no message that can be parsed")?;
    let outputs = authenticator(dns)?.verify_dkim(&message).await;
    Ok(outputs
        .iter()
        .map(|output| {
            let result = match output.result() {
                DkimResult::Pass => Ok(()),
                other => Err(format!("{other:?}")),
            };
            match output.signature() {
                None => Verdict {
                    selector: String::new(),
                    domain: String::new(),
                    algorithm: String::new(),
                    headers: Vec::new(),
                    result,
                },
                Some(signature) => Verdict {
                    selector: signature.s.clone(),
                    domain: signature.d.clone(),
                    algorithm: match signature.a {
                        mail_auth::common::crypto::Algorithm::RsaSha1 => "rsa-sha1",
                        mail_auth::common::crypto::Algorithm::RsaSha256 => "rsa-sha256",
                        mail_auth::common::crypto::Algorithm::Ed25519Sha256 => "ed25519-sha256",
                    }
                    .to_owned(),
                    headers: signature.h.iter().map(|h| h.to_ascii_lowercase()).collect(),
                    result,
                },
            }
        })
        .collect())
}

/// A verifier that asks the world's DNS. Its own TLS configuration spares it the host's root certificates.
fn authenticator(dns: SocketAddr) -> Result<MessageAuthenticator, String> {
    let mut server = NameServerConfig::udp_and_tcp(dns.ip());
    for connection in &mut server.connections {
        connection.port = dns.port();
    }
    let tls = rustls::ClientConfig::builder_with_provider(ca::provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let config = ResolverConfig::from_name_servers(vec![server]);
    TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        .with_options(ResolverOpts::default())
        .with_tls_config(tls)
        .build()
        .map(MessageAuthenticator)
        .map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::Dns;
    use mail_auth::common::crypto::{Ed25519Key, RsaKey, Sha256};
    use mail_auth::common::headers::HeaderWriter;
    use mail_auth::dkim::DkimSigner;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

    const MESSAGE: &str = "From: reports@sender.test\r\nTo: tlsrpt@a.test\r\nSubject: x\r\n\r\nbody\r\n";

    fn sign(keys: &[Key; 2], message: &str) -> String {
        let rsa = RsaKey::<Sha256>::from_key_der(PrivateKeyDer::from_pem_slice(keys[0].pem.as_bytes()).unwrap());
        let der = PrivatePkcs8KeyDer::from_pem_slice(keys[1].pem.as_bytes()).unwrap();
        let ed25519 = Ed25519Key::from_pkcs8_maybe_unchecked_der(der.secret_pkcs8_der()).unwrap();
        let headers = ["From", "To", "Subject"];
        let one = DkimSigner::from_key(rsa.unwrap()).domain("sender.test").selector("lab-rsa").headers(headers);
        let two = DkimSigner::from_key(ed25519).domain("sender.test").selector("lab-ed25519").headers(headers);
        let (one, two) = (one.sign(message.as_bytes()).unwrap(), two.sign(message.as_bytes()).unwrap());
        format!("{}{}{message}", one.to_header(), two.to_header())
    }

    #[tokio::test]
    async fn both_kinds_of_key_verify_and_a_changed_message_does_not() {
        let keys = generate().unwrap();
        let dns = Dns::start("127.0.0.1:0".parse().unwrap()).await.unwrap();
        for key in &keys {
            dns.change().txt(&format!("{}._domainkey.sender.test", key.selector), &key.record);
        }
        let signed = sign(&keys, MESSAGE);
        let verdicts = verify(signed.as_bytes(), dns.address()).await.unwrap();
        let algorithms: Vec<&str> = verdicts.iter().map(|v| v.algorithm.as_str()).collect();
        assert_eq!(algorithms, ["rsa-sha256", "ed25519-sha256"]);
        for verdict in &verdicts {
            assert_eq!(verdict.result, Ok(()), "{verdict:?}");
            for header in ["from", "to", "subject"] {
                assert!(verdict.headers.iter().any(|h| h == header), "{verdict:?}");
            }
        }
        let changed = verify(signed.replace("body", "B0dy").as_bytes(), dns.address()).await.unwrap();
        assert!(changed.len() == 2 && changed.iter().all(|v| v.result.is_err()), "{changed:?}");
    }
}
