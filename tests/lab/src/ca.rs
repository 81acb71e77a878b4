//! A throwaway certificate authority, and server certificates with every fault that a test wants.
//!
//! Takes: a host name and a [`Fault`]. Gives: a certificate with its key, ready for a TLS server, and its TLSA data.
//! Limits: ECDSA P-256 throughout; certificates that are valid are so from 2020 to 2050, whatever a test's clock shows.
//! Not here: who presents what (`https`, `smtp`).

use std::sync::Arc;

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;

/// What is wrong with a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    /// It was valid until 2021.
    Expired,
    /// It will be valid from 2049.
    NotYetValid,
    /// It is for another host.
    WrongName,
    /// It is signed with its own key.
    SelfSigned,
    /// It is signed by an authority that nobody trusts.
    OtherAuthority,
}

/// An authority, and the second one that nobody trusts.
#[derive(Debug)]
pub struct Authority {
    trusted: Root,
    other: Root,
}

#[derive(Debug)]
struct Root {
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

/// A server's certificate chain and key.
#[derive(Clone, Debug)]
pub struct Identity {
    key: Arc<CertifiedKey>,
    public_key: Vec<u8>,
    /// The key, PEM.
    pem: String,
}

impl Authority {
    /// Makes both roots.
    pub fn generate() -> Result<Authority, rcgen::Error> {
        Ok(Authority { trusted: Root::generate("Closed World Root CA")?, other: Root::generate("Unknown Root CA")? })
    }

    /// The root that the world trusts, PEM.
    pub fn pem(&self) -> String {
        self.trusted.certificate.pem()
    }

    /// The same, DER.
    pub fn der(&self) -> CertificateDer<'static> {
        self.trusted.certificate.der().clone()
    }

    /// A server certificate for `host`, sound or with a fault.
    pub fn certify(&self, host: &str, fault: Option<Fault>) -> Result<Identity, rcgen::Error> {
        let shown = if fault == Some(Fault::WrongName) { "elsewhere.invalid" } else { host };
        let mut params = CertificateParams::new(vec![shown.to_owned()])?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, shown);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let years = match fault {
            Some(Fault::Expired) => (2020, 2021),
            Some(Fault::NotYetValid) => (2049, 2050),
            _ => (2020, 2050),
        };
        params.not_before = date_time_ymd(years.0, 1, 1);
        params.not_after = date_time_ymd(years.1, 1, 1);
        let key = KeyPair::generate()?;
        let (certificate, root) = match fault {
            Some(Fault::SelfSigned) => (params.self_signed(&key)?, None),
            Some(Fault::OtherAuthority) => (params.signed_by(&key, &self.other.issuer)?, Some(&self.other)),
            _ => (params.signed_by(&key, &self.trusted.issuer)?, Some(&self.trusted)),
        };
        let mut chain = vec![certificate.der().clone()];
        chain.extend(root.map(|r| r.certificate.der().clone()));
        Identity::new(chain, &key)
    }
}

impl Root {
    fn generate(common_name: &str) -> Result<Root, rcgen::Error> {
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2050, 1, 1);
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        Ok(Root { certificate, issuer: Issuer::new(params, key) })
    }
}

impl Identity {
    fn new(chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> Result<Identity, rcgen::Error> {
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let signer = provider().key_provider.load_private_key(der).map_err(|_| rcgen::Error::RemoteKeyError)?;
        Ok(Identity {
            key: Arc::new(CertifiedKey::new(chain, signer)),
            public_key: rcgen::PublicKeyData::subject_public_key_info(key),
            pem: key.serialize_pem(),
        })
    }

    /// For a TLS server that chooses among several.
    pub fn certified_key(&self) -> Arc<CertifiedKey> {
        self.key.clone()
    }

    /// The key and then the chain, PEM, as Postfix's `smtpd_tls_chain_files` wants them.
    pub fn pem(&self) -> String {
        let certificate = |der: &CertificateDer<'_>| {
            let base64 = data_encoding::BASE64_MIME.encode(der);
            format!("-----BEGIN CERTIFICATE-----\n{}-----END CERTIFICATE-----\n", base64.replace('\r', ""))
        };
        self.key.cert.iter().fold(self.pem.clone(), |pem, der| pem + &certificate(der))
    }

    /// A TLS server that always presents this certificate.
    pub fn server_config(&self) -> Result<Arc<ServerConfig>, rustls::Error> {
        let resolver = rustls::sign::SingleCertAndKey::from(self.key.clone());
        Ok(Arc::new(server_config()?.with_cert_resolver(Arc::new(resolver))))
    }

    /// The data of a `TLSA 3 1 1` record: SHA-256 of the public key (RFC 7671 §5.1).
    pub fn tlsa_3_1_1(&self) -> Vec<u8> {
        ring::digest::digest(&ring::digest::SHA256, &self.public_key).as_ref().to_vec()
    }
}

/// A TLS server, all but its certificate.
pub(crate) fn server_config()
-> Result<rustls::ConfigBuilder<ServerConfig, rustls::server::WantsServerCert>, rustls::Error> {
    Ok(ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?.with_no_client_auth())
}

/// The one cryptographic provider of the world.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// A TLS client that trusts the world's root and nothing else.
pub fn client_config(authority: &Authority) -> Result<Arc<rustls::ClientConfig>, rustls::Error> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.der())?;
    Ok(Arc::new(
        rustls::ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::CertificateError;
    use rustls::pki_types::ServerName;
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    /// What a client that trusts the world says of a certificate.
    async fn verdict(authority: &Authority, fault: Option<Fault>) -> Result<(), rustls::Error> {
        let identity = authority.certify("mx.a.test", fault).unwrap();
        let (client, server) = tokio::io::duplex(32 * 1024);
        let acceptor = TlsAcceptor::from(identity.server_config().unwrap());
        let server = tokio::spawn(async move { acceptor.accept(server).await.is_ok() });
        let connector = TlsConnector::from(client_config(authority).unwrap());
        let shaken = connector.connect(ServerName::try_from("mx.a.test").unwrap(), client).await;
        server.await.unwrap();
        match shaken {
            Ok(_) => Ok(()),
            Err(e) => Err(e.into_inner().unwrap().downcast_ref::<rustls::Error>().unwrap().clone()),
        }
    }

    #[tokio::test]
    async fn every_fault_is_what_it_says() {
        let authority = Authority::generate().unwrap();
        verdict(&authority, None).await.unwrap();
        let fault = async |fault| match verdict(&authority, Some(fault)).await.unwrap_err() {
            rustls::Error::InvalidCertificate(e) => e,
            other => panic!("{other}"),
        };
        assert!(matches!(fault(Fault::Expired).await, CertificateError::ExpiredContext { .. }));
        assert!(matches!(fault(Fault::NotYetValid).await, CertificateError::NotValidYetContext { .. }));
        assert!(matches!(fault(Fault::WrongName).await, CertificateError::NotValidForNameContext { .. }));
        assert_eq!(fault(Fault::SelfSigned).await, CertificateError::UnknownIssuer);
        assert_eq!(fault(Fault::OtherAuthority).await, CertificateError::UnknownIssuer);
    }

    #[test]
    fn tlsa_data_is_a_digest_of_the_key_alone() {
        let authority = Authority::generate().unwrap();
        let one = authority.certify("mx.a.test", None).unwrap();
        assert_eq!(one.tlsa_3_1_1().len(), 32);
        assert_ne!(one.tlsa_3_1_1(), authority.certify("mx.a.test", None).unwrap().tlsa_3_1_1());
    }
}
