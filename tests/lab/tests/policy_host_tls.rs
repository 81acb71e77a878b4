//! Policy hosts with TLS that this program's library does not have, as OpenSSL serves them: each is named as such.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tlswarden::base::network::NetworkExceptions;
use tlswarden::net::dns::Resolver;
use tlswarden::net::https::{HttpsClient, HttpsError, TlsLimit};

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A self-signed certificate of this kind of key: a handshake that fails does not get as far as its name.
fn certify(folder: &Path, key: &[&str]) {
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=mta-sts.p.test", "-newkey"]).args(key);
    openssl.args(["-keyout", "key.pem", "-out", "cert.pem"]).current_dir(folder).stderr(Stdio::null());
    assert!(openssl.status().unwrap().success(), "{key:?}");
}

/// Serves on a free port with these options, and waits until it does.
async fn serve(folder: &Path, options: &[&str]) -> (Server, SocketAddr) {
    let address = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let mut openssl = Command::new("openssl");
    openssl.args([
        "s_server",
        "-quiet",
        "-www",
        "-key",
        "key.pem",
        "-cert",
        "cert.pem",
        "-accept",
        &address.to_string(),
    ]);
    openssl.args(options).current_dir(folder).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let server = Server(openssl.spawn().unwrap());
    let until = Instant::now() + Duration::from_secs(60);
    while tokio::net::TcpStream::connect(address).await.is_err() {
        assert!(Instant::now() < until, "openssl s_server {options:?} does not listen");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    (server, address)
}

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
        certify(folder.path(), key);
        let (_server, address) = serve(folder.path(), options).await;
        let closed = NetworkExceptions { policy_hosts: Some(address), ..NetworkExceptions::default() };
        let client = HttpsClient::new(Resolver::new(Some(address)).unwrap(), &closed).unwrap();
        let got = client.get("mta-sts.p.test", ".well-known/mta-sts.txt", Duration::from_secs(60), 65_536).await;
        assert_eq!(got, Err(HttpsError::TlsLimit(want)), "{key:?} {options:?}");
    }
}
