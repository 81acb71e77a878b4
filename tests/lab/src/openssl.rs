//! TLS servers with keys and cipher suites that the world's own servers do not have, as OpenSSL serves them.
//!
//! Takes: a kind of key, an address, options of openssl-s_server(1). Gives: a server that answers HTTP requests with a
//! page of its own; it ends when it is dropped.
//! Limits: it must listen within `START`.
//! When it fails: a panic that says what openssl(1) did not do.
//! Not here: policy hosts that serve policies (`https`).

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long the server may take to listen.
const START: Duration = Duration::from_secs(60);

/// A running server.
#[derive(Debug)]
pub struct OpensslServer(Child);

impl Drop for OpensslServer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Makes a self-signed certificate for a name in a folder, with a key of this kind (`-newkey`).
pub fn certify(folder: &Path, name: &str, key: &[&str]) {
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-nodes", "-days", "2", "-subj", &format!("/CN={name}"), "-newkey"]).args(key);
    openssl.args(["-keyout", "key.pem", "-out", "cert.pem"]).current_dir(folder).stderr(Stdio::null());
    assert!(openssl.status().expect("openssl can be run").success(), "{key:?}");
}

/// Serves with the certificate in a folder, and waits until it does.
pub async fn serve(folder: &Path, address: SocketAddr, options: &[&str]) -> OpensslServer {
    let mut openssl = Command::new("openssl");
    openssl.args(["s_server", "-quiet", "-www", "-key", "key.pem", "-cert", "cert.pem"]);
    openssl.args(["-accept", &address.to_string()]).args(options).current_dir(folder);
    openssl.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let server = OpensslServer(openssl.spawn().expect("openssl can be run"));
    let until = Instant::now() + START;
    while tokio::net::TcpStream::connect(address).await.is_err() {
        assert!(Instant::now() < until, "openssl s_server {options:?} does not listen");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    server
}
