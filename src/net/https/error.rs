//! Why there is no response of an HTTPS server, by fault.
//!
//! Takes: an error of the HTTP or TLS library. Gives: an [`HttpsError`]: whose fault it is, in words for an administrator.
//! A handshake that fails for what our TLS library lacks is named as such: another sender may succeed there.

use std::error::Error;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use rustls::{AlertDescription, CertificateError, PeerIncompatible};

/// The largest header of a response that is read, in bytes.
pub(super) const MAX_HEADER: usize = 64 * 1024;

/// The most fields of a header that are read.
pub(super) const MAX_HEADER_FIELDS: usize = 1024;

/// Why there is no response, by fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HttpsError {
    /// The host has no address.
    #[error("no address: {0}")]
    NoAddress(String),
    /// All its addresses are of networks that a stranger must not send us to.
    #[error("no address: {0} is not a public address")]
    PrivateAddress(IpAddr),
    /// No connection, or it broke, or what came was no HTTP.
    #[error("{0}")]
    Connection(String),
    /// The handshake failed, perhaps because our TLS library lacks what the server needs.
    #[error("{0}")]
    TlsLimit(TlsLimit),
    /// The certificate did not pass.
    #[error("certificate: {0}")]
    Certificate(CertificateFault),
    /// Not done in time.
    #[error("not done within {} s", .0.as_secs())]
    Timeout(Duration),
    /// This host's own fault: no root certificate was loaded, so that no server can be authenticated.
    #[error("this host has no root certificates")]
    NoRootCertificates,
    /// This host's own fault: it could not open a connection, or ask for an address.
    #[error("this host cannot connect: {0}")]
    CannotConnect(String),
    /// The body is larger than the caller takes.
    #[error("larger than {0} bytes")]
    TooLarge(usize),
    /// The header fields of the response are, or they name a length beyond all bounds.
    #[error(
        "a header larger than {} KiB or of more than {MAX_HEADER_FIELDS} fields, or an impossible Content-Length",
        MAX_HEADER / 1024
    )]
    HeaderTooLarge,
}

/// What a TLS handshake failed for that another client may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsLimit {
    /// The server ended the handshake: it can use nothing that we offer.
    #[error(
        "TLS: the server ended the handshake (handshake_failure): it does not serve this host name, or it needs what \
         tlswarden does not support: a P-521 or Ed448 key, a group other than X25519, P-256 and P-384, a CBC cipher suite, \
         or RSA key exchange"
    )]
    Handshake,
    /// It has neither TLS 1.2 nor 1.3.
    #[error("TLS: the server supports neither TLS 1.2 nor TLS 1.3")]
    Version,
    /// A certificate of the chain has a key or signature that we cannot check.
    #[error(
        "TLS: the server's certificates need a key or signature that tlswarden does not support, such as P-521, Ed448 or \
         SHA-1: it checks RSA, P-256, P-384 and Ed25519 with SHA-2"
    )]
    Signature,
}

/// What is wrong with a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateFault {
    /// Its time is over, or has not begun.
    #[error("expired or not yet valid")]
    Expired,
    /// It is for another name.
    #[error("not for this host name")]
    Name,
    /// It leads to no trusted root, or is broken.
    #[error("not trusted")]
    Trust,
}

impl HttpsError {
    /// Whether it is this host that failed, and says nothing of the server.
    pub fn is_own_fault(&self) -> bool {
        matches!(self, HttpsError::NoRootCertificates | HttpsError::CannotConnect(_))
    }
}

/// Finds the fault in the chain of causes.
pub(super) fn classify(error: &(dyn Error + 'static)) -> HttpsError {
    let mut cause = Some(error);
    while let Some(e) = cause {
        if let Some(e) = e.downcast_ref::<HttpsError>() {
            return e.clone();
        }
        if let Some(e) = e.downcast_ref::<rustls::Error>() {
            return classify_tls(e);
        }
        if e.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse_too_large) {
            return HttpsError::HeaderTooLarge;
        }
        // An io::Error's `source` is that of the error inside it: step into it by hand.
        let io = e.downcast_ref::<io::Error>();
        let inside = io.and_then(io::Error::get_ref);
        let has_cause = inside.is_some_and(|inside| inside.downcast_ref::<rustls::Error>().is_some());
        if !has_cause && io.is_some_and(|e| e.kind() == io::ErrorKind::UnexpectedEof) {
            // RFC 8446 §6.1: whoever cuts the connection could cut the document.
            return HttpsError::Connection("the server closed the connection without a TLS close_notify".to_owned());
        }
        cause = match inside {
            Some(inside) => Some(inside as &(dyn Error + 'static)),
            None => e.source(),
        };
    }
    HttpsError::Connection(root_cause(error))
}

fn classify_tls(error: &rustls::Error) -> HttpsError {
    use CertificateError as E;
    let limit = match error {
        rustls::Error::AlertReceived(AlertDescription::HandshakeFailure | AlertDescription::InsufficientSecurity) => {
            TlsLimit::Handshake
        }
        rustls::Error::AlertReceived(AlertDescription::ProtocolVersion)
        | rustls::Error::PeerIncompatible(
            PeerIncompatible::ServerDoesNotSupportTls12Or13 | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig,
        ) => TlsLimit::Version,
        rustls::Error::InvalidCertificate(
            E::UnsupportedSignatureAlgorithmContext { .. } | E::UnsupportedSignatureAlgorithmForPublicKeyContext { .. },
        ) => TlsLimit::Signature,
        _ => {
            return match certificate_fault(error) {
                Some(fault) => HttpsError::Certificate(fault),
                None => HttpsError::Connection(format!("TLS: {error}")),
            };
        }
    };
    HttpsError::TlsLimit(limit)
}

/// What is wrong with a certificate; nothing where the error is about something else.
pub fn certificate_fault(error: &rustls::Error) -> Option<CertificateFault> {
    use rustls::CertificateError as E;
    match error {
        rustls::Error::InvalidCertificate(
            E::Expired | E::ExpiredContext { .. } | E::NotValidYet | E::NotValidYetContext { .. },
        ) => Some(CertificateFault::Expired),
        rustls::Error::InvalidCertificate(E::NotValidForName | E::NotValidForNameContext { .. }) => {
            Some(CertificateFault::Name)
        }
        rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented => Some(CertificateFault::Trust),
        _ => None,
    }
}

/// The last cause in the chain, the most specific one.
pub(super) fn root_cause(error: &dyn Error) -> String {
    let mut last = error;
    while let Some(next) = last.source() {
        last = next;
    }
    last.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_our_library_lacks_is_named() {
        let signature = CertificateError::UnsupportedSignatureAlgorithmContext {
            signature_algorithm_id: Vec::new(),
            supported_algorithms: Vec::new(),
        };
        for (error, want) in [
            (rustls::Error::AlertReceived(AlertDescription::HandshakeFailure), TlsLimit::Handshake),
            (rustls::Error::AlertReceived(AlertDescription::InsufficientSecurity), TlsLimit::Handshake),
            (rustls::Error::AlertReceived(AlertDescription::ProtocolVersion), TlsLimit::Version),
            (PeerIncompatible::ServerDoesNotSupportTls12Or13.into(), TlsLimit::Version),
            (signature.into(), TlsLimit::Signature),
        ] {
            let wrapped = io::Error::new(io::ErrorKind::InvalidData, error);
            assert_eq!(classify(&wrapped), HttpsError::TlsLimit(want));
        }
        let other = rustls::Error::AlertReceived(AlertDescription::UnrecognisedName);
        assert!(matches!(classify(&other), HttpsError::Connection(text) if text.starts_with("TLS: ")));
    }

    #[test]
    fn no_message_has_the_address_of_a_manual() {
        let library = "peer closed connection without sending TLS close_notify: https://docs.rs/rustls/latest/";
        let error = io::Error::new(io::ErrorKind::UnexpectedEof, library);
        let text = classify(&error).to_string();
        assert!(!text.contains("://") && text.contains("close_notify"), "{text}");
    }
}
