//! One connection to one address of an MX host, as a sender makes it: STARTTLS, and what certificate comes.
//!
//! Takes: an address and the host's name. Gives: a [`TlsProbe`]. Any certificate is taken, and kept to be judged.
//! Limits: [`CONNECT_TIME`], [`PROBE_TIME`] in all; TLS 1.2 and 1.3.
//! When it fails: a [`ProbeError`].
//! Not here: what is made of the certificate (`certificate`).

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::checking::domain::smtp::{SmtpError, start_tls};

/// How long a connection may take to stand.
const CONNECT_TIME: Duration = Duration::from_secs(10);

/// How long all of it may take: some servers greet late on purpose.
const PROBE_TIME: Duration = Duration::from_secs(45);

/// What a server presented.
#[derive(Clone, Debug)]
pub(crate) struct TlsProbe {
    /// Such as `TLSv1_3`.
    pub(crate) protocol: String,
    /// The certificates, the server's own first.
    pub(crate) chain: Vec<CertificateDer<'static>>,
}

/// Why a server presented no certificate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ProbeError {
    /// No connection.
    #[error("no connection: {0}")]
    Connect(String),
    /// It is there, and does not come to TLS.
    #[error(transparent)]
    Smtp(#[from] SmtpError),
    /// The handshake failed.
    #[error("the TLS handshake failed: {0}")]
    Handshake(String),
    /// Not done in time.
    #[error("not done within {} s", PROBE_TIME.as_secs())]
    Timeout,
}

/// Connects, as `name`, to one address of `host`.
pub(crate) async fn probe(address: SocketAddr, host: &str, name: &str) -> Result<TlsProbe, ProbeError> {
    timeout(PROBE_TIME, connect_and_start_tls(address, host, name)).await.unwrap_or(Err(ProbeError::Timeout))
}

async fn connect_and_start_tls(address: SocketAddr, host: &str, name: &str) -> Result<TlsProbe, ProbeError> {
    let mut stream = match timeout(CONNECT_TIME, TcpStream::connect(address)).await {
        Err(_) => return Err(ProbeError::Connect(format!("no answer within {} s", CONNECT_TIME.as_secs()))),
        Ok(Err(error)) => return Err(ProbeError::Connect(error.to_string())),
        Ok(Ok(stream)) => stream,
    };
    start_tls(&mut stream, name).await?;
    let failed = |text: String| ProbeError::Handshake(text.chars().take(200).flat_map(char::escape_debug).collect());
    let server = ServerName::try_from(host.to_owned()).map_err(|e| failed(e.to_string()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let recorder =
        Arc::new(ChainRecorder { algorithms: provider.signature_verification_algorithms, chain: Mutex::default() });
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| failed(e.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&recorder) as Arc<dyn ServerCertVerifier>)
        .with_no_client_auth();
    let shaken = TlsConnector::from(Arc::new(config)).connect(server, stream).await;
    let stream = shaken.map_err(|e| failed(e.to_string()))?;
    let protocol = stream.get_ref().1.protocol_version().map_or_else(String::new, |version| format!("{version:?}"));
    let chain = recorder.chain.lock().unwrap_or_else(PoisonError::into_inner).clone();
    Ok(TlsProbe { protocol, chain })
}

/// Accepts any certificate and records the chain; the signature that proves possession of the key is still verified.
#[derive(Debug)]
struct ChainRecorder {
    algorithms: rustls::crypto::WebPkiSupportedAlgorithms,
    chain: Mutex<Vec<CertificateDer<'static>>>,
}

impl ServerCertVerifier for ChainRecorder {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain = std::iter::once(leaf).chain(others).map(|c| c.clone().into_owned()).collect();
        *self.chain.lock().unwrap_or_else(PoisonError::into_inner) = chain;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
