//! A submission server (RFC 6409): its settings, its password and its root, and the login.
//!
//! Takes: the `[report]` section. Gives: a connection that is ready for MAIL FROM.
//! Limits: [`MAX_FILE_SIZE`] octets of a password file or a root; the deadlines are those of `transport`.
//! When it fails: [`SubmissionServer::load`] names a password or root that cannot be read; a failed login is a [`SmtpFailure::Session`],
//! which is tried again.
//! Not here: the mail transaction (`smtp`).

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::smtp::{SmtpFailure, about_us, connect_tcp};
use super::smtp_client::{EhloName, Login, ServerTls, SmtpConnection};
use crate::config::ReportSection;

/// The most that is read of a password file or a root, in octets.
const MAX_FILE_SIZE: u64 = 64 * 1024;

/// A submission server and how to talk to it.
pub(super) struct SubmissionServer {
    pub(crate) host: String,
    pub(crate) port: u16,
    /// TLS from the first octet; otherwise STARTTLS.
    implicit_tls: bool,
    tls: ServerTls,
    login: Option<Login>,
}

impl SubmissionServer {
    /// Reads the server's password and root. Fails with one line a fault.
    pub(super) fn load(
        section: &ReportSection,
        host: String,
        port: u16,
        implicit: bool,
    ) -> Result<SubmissionServer, Vec<String>> {
        let mut faults = Vec::new();
        let mut extra_root = None;
        if let Some(path) = &section.ca_file {
            match read_file(path).map_err(|e| e.to_string()).and_then(check_root) {
                Ok(pem) => extra_root = Some(pem),
                Err(why) => faults.push(format!("[report] ca_file: {}: {why}", path.display())),
            }
        }
        let login = match (&section.user, &section.password) {
            (Some(user), Some(path)) => match read_password(path) {
                Ok(password) => Some(Login::new(user, password)),
                Err(why) => {
                    faults.push(format!("[report] password: {}: {why}", path.display()));
                    None
                }
            },
            _ => None,
        };
        match ServerTls::new(&host, extra_root.as_deref()) {
            Ok(tls) if faults.is_empty() => Ok(SubmissionServer { host, port, implicit_tls: implicit, tls, login }),
            Ok(_) => Err(faults),
            Err(e) => {
                faults.push(format!("[report] deliver: TLS cannot be used: {e}"));
                Err(faults)
            }
        }
    }
}

/// A warning if other users than the daemon's can read the password file.
pub(crate) fn password_warning(section: &ReportSection) -> Option<String> {
    let path = section.password.as_ref()?;
    let mode = std::fs::metadata(path).ok()?.permissions().mode();
    let shown = path.display();
    (mode & 0o007 != 0).then(|| {
        format!(
            "[report] password: {shown}: others may read or write it (mode {:04o}); they can send as us",
            mode & 0o7777
        )
    })
}

/// Checks that a file has a certificate in PEM form.
fn check_root(pem: Vec<u8>) -> Result<Vec<u8>, String> {
    match CertificateDer::pem_slice_iter(&pem).next() {
        Some(Ok(_)) => Ok(pem),
        _ => Err("no certificate in it; allowed: PEM".to_owned()),
    }
}

/// Reads the first line of a password file; `credential:NAME` is a file that systemd hands over (`LoadCredential=`).
fn read_password(path: &Path) -> Result<String, String> {
    let file = match path.to_str().and_then(|text| text.strip_prefix("credential:")) {
        None => path.to_owned(),
        Some(name) => {
            let folder = std::env::var_os("CREDENTIALS_DIRECTORY");
            PathBuf::from(folder.ok_or("no credentials: systemd handed none over (LoadCredential=)")?).join(name)
        }
    };
    let bytes = read_file(&file).map_err(|e| e.to_string())?;
    let text = String::from_utf8(bytes).map_err(|_| "not UTF-8")?;
    match text.lines().next() {
        Some(line) if !line.is_empty() => Ok(line.to_owned()),
        _ => Err("its first line is empty".to_owned()),
    }
}

fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE_SIZE).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Opens a connection with TLS, and logs in if there are credentials. Failures here do not concern the report itself;
/// delivery is retried.
pub(super) async fn log_in(server: &SubmissionServer, name: &EhloName) -> Result<SmtpConnection, SmtpFailure> {
    let mut connection = if server.implicit_tls {
        SmtpConnection::open_tls(&server.host, server.port, &server.tls, name).await.map_err(about_us("TLS"))?
    } else {
        let stream = connect_tcp((server.host.as_str(), server.port)).await?;
        let mut connection = SmtpConnection::open(stream, name).await.map_err(about_us("greeting"))?;
        connection.start_tls(&server.tls, name).await.map_err(about_us("STARTTLS"))?;
        connection
    };
    if let Some(login) = &server.login {
        connection.log_in(login).await.map_err(about_us("login"))?;
    }
    Ok(connection)
}
