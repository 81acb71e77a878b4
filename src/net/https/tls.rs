//! TLS towards HTTPS servers: versions, cipher suites, roots.
//!
//! Takes: the extra root of a closed network, and what is done about certificates that do not pass. Gives: a
//! configuration of rustls, or its verifier alone.
//! Limits: what ring has: TLS 1.2 and 1.3; ECDHE over X25519, P-256 and P-384; AES-GCM and ChaCha20-Poly1305; keys of
//! RSA, P-256, P-384 and Ed25519.
//! When it fails: a line for the log: no root certificate can be loaded (the package ca-certificates).

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use rustls_platform_verifier::Verifier;

use crate::base::network::{HttpsCertificates, NetworkExceptions};

/// The configuration of a client.
pub(super) fn client_config(
    closed: &NetworkExceptions,
    certificates: HttpsCertificates,
) -> Result<rustls::ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = platform_verifier(closed)?;
    let verifier: Arc<dyn ServerCertVerifier> = match certificates {
        HttpsCertificates::Check => Arc::new(verifier),
        HttpsCertificates::Ignore => Arc::new(PermissiveVerifier(verifier)),
    };
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    // A policy host is asked once a day: what would be kept of a session is never used.
    tls.resumption = rustls::client::Resumption::disabled();
    Ok(tls)
}

/// Logs a certificate that does not pass and continues (RFC 8460 §3, §7). The handshake's own signature must fit.
#[derive(Debug)]
struct PermissiveVerifier(Verifier);

impl ServerCertVerifier for PermissiveVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.0.verify_server_cert(end_entity, intermediates, name, ocsp, now).or_else(|e| {
            let name = name.to_str();
            tracing::info!("https: {name}: the certificate does not pass: {e}; the report is sent all the same");
            Ok(ServerCertVerified::assertion())
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// A verifier with the roots of the platform and the extra one of a closed network. Fails as [`HttpsClient::new`].
pub fn certificate_verifier(closed: &NetworkExceptions) -> Result<Arc<dyn ServerCertVerifier>, String> {
    Ok(Arc::new(platform_verifier(closed)?))
}

fn platform_verifier(closed: &NetworkExceptions) -> Result<Verifier, String> {
    let extra = match &closed.extra_root {
        None => Vec::new(),
        Some(path) => CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect)
            .map_err(|e| format!("{}: no certificate: {e}", path.display()))?,
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Verifier::new_with_extra_roots(extra, provider).map_err(|e| format!("root certificates: {e}"))
}
