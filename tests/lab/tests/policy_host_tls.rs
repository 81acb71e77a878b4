//! Policy hosts with TLS that this program's library does not have, as OpenSSL serves them: each is named as such.

use std::net::Ipv4Addr;
use std::time::Duration;

use lab::openssl;
use tlswarden::base::network::NetworkExceptions;
use tlswarden::net::dns::Resolver;
use tlswarden::net::https::{HttpsClient, HttpsError, TlsLimit};

#[tokio::test(flavor = "multi_thread")]
async fn what_the_tls_library_lacks_is_named() {
    const P521: &[&str] = &["ec", "-pkeyopt", "ec_paramgen_curve:P-521"];
    const P256: &[&str] = &["ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
    const RSA: &[&str] = &["rsa:2048"];
    for (key, options, want) in [
        (P521, &[][..], TlsLimit::Handshake),
        (P521, &["-tls1_2"], TlsLimit::Handshake),
        (P256, &["-groups", "P-521"], TlsLimit::Handshake),
        (RSA, &["-tls1_2", "-cipher", "ECDHE-RSA-AES256-SHA384:ECDHE-RSA-AES128-SHA"], TlsLimit::Handshake),
        (RSA, &["-tls1_2", "-cipher", "AES128-GCM-SHA256:AES256-SHA"], TlsLimit::Handshake),
        (RSA, &["-tls1_1", "-cipher", "DEFAULT:@SECLEVEL=0"], TlsLimit::Version),
    ] {
        let folder = tempfile::tempdir().unwrap();
        // A handshake that fails does not get as far as the certificate's name.
        openssl::certify(folder.path(), "mta-sts.p.test", key);
        let address = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        let _server = openssl::serve(folder.path(), address, options).await;
        let closed = NetworkExceptions { policy_hosts: Some(address), ..NetworkExceptions::default() };
        let client = HttpsClient::new(Resolver::new(Some(address)).unwrap(), &closed).unwrap();
        let got = client.get("mta-sts.p.test", ".well-known/mta-sts.txt", Duration::from_secs(60), 65_536).await;
        assert_eq!(got, Err(HttpsError::TlsLimit(want)), "{key:?} {options:?}");
    }
}
