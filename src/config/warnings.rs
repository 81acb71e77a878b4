//! What is accepted and probably not meant, or will not work on this host.
//!
//! Takes: a configuration that passed all checks. Gives: one line for each doubt: `[section] key: problem`.
//! When it fails: what cannot be looked at gives no line.
//! Not here: what is refused (`validate`, `addresses`), what only the daemon's own user can tell (`checking::host`).

use std::io::ErrorKind;
use std::net::{IpAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::config::identity::missing_identity;
use crate::config::{Config, DeliveryMethod, ListenAddress, ReportSection};

/// Ports below this one need a privilege that the packaged unit does not have.
const FIRST_UNPRIVILEGED_PORT: u16 = 1024;

/// What `password` begins with where systemd hands over the file.
const CREDENTIAL: &str = "credential:";

/// The warnings.
pub(crate) fn warnings(config: &Config) -> Vec<String> {
    let mut lines = Vec::new();
    for (section, listen) in [
        ("socketmap", &config.socketmap.listen),
        ("readsocket", &config.readsocket.listen),
        ("status", &config.status.listen),
    ] {
        let problems = listen.iter().flat_map(|address| address_warnings(address, &config.control.socket));
        lines.extend(problems.map(|problem| format!("[{section}] listen: {problem}")));
    }
    if let Some(address) = config.resolver.address.filter(|address| !is_local(address.ip())) {
        lines.push(format!(
            "[resolver] address: {address} is not on this host, and is trusted all the same: whoever changes packets on the \
             way can forge DANE; expected a validating resolver on this host, such as \"127.0.0.1:53\""
        ));
    }
    lines.extend(report_warnings(config));
    lines
}

/// The section as far as it can be checked by a process to which systemd hands no password: without that password.
pub(crate) fn without_credentials(report: &ReportSection) -> ReportSection {
    let mut report = report.clone();
    if credential(&report).is_some() {
        (report.user, report.password) = (None, None);
    }
    report
}

/// The name of the password that only systemd has.
fn credential(report: &ReportSection) -> Option<&str> {
    let name = report.password.as_deref().and_then(credential_name);
    name.filter(|_| std::env::var_os("CREDENTIALS_DIRECTORY").is_none())
}

fn address_warnings(address: &ListenAddress, control: &Path) -> Vec<String> {
    let ListenAddress::Inet(inet) = address else { return Vec::new() };
    let mut problems = Vec::new();
    if !is_local(inet.ip()) {
        problems.push(format!("\"{address}\" can be reached from other hosts: expected a loopback address"));
    }
    if (1..FIRST_UNPRIVILEGED_PORT).contains(&inet.port()) {
        problems.push(format!(
            "\"{address}\": the packaged unit cannot use ports below {FIRST_UNPRIVILEGED_PORT}: expected a higher port"
        ));
    }
    // A daemon that runs has it.
    let is_taken = || TcpListener::bind(inet).is_err_and(|error| error.kind() == ErrorKind::AddrInUse);
    if !has_daemon(control) && is_taken() {
        problems.push(format!(
            "\"{address}\" is already in use by another process; if a socket unit of systemd holds it for the daemon \
             (`systemctl list-sockets`), ignore this line"
        ));
    }
    problems
}

/// Whether a daemon has the control socket. A user who may not connect cannot tell whether it still runs: then it does.
fn has_daemon(control: &Path) -> bool {
    UnixStream::connect(control).map_or_else(|error| error.kind() == ErrorKind::PermissionDenied, |_| true)
}

fn report_warnings(config: &Config) -> Vec<String> {
    let report = &config.report;
    let mut lines = Vec::new();
    let mut missing = |option: &str, path: &Path, impact: &str| {
        if let Err(error) = path.metadata() {
            lines.push(format!("{option}: {}: {error}; {impact}", path.display()));
        }
    };
    if let DeliveryMethod::Sendmail(program) = &report.deliver {
        missing("[report] deliver", program, "no report by mail can be delivered");
    }
    // Where nothing is missing, these files have been read already.
    if !missing_identity(report).is_empty() {
        let waits = "reports will be off because of it";
        for key in report.dkim.keys() {
            missing(&format!("[[report.dkim]] {}", key.selector), &key.key, waits);
        }
        report.ca_file.iter().for_each(|file| missing("[report] ca_file", file, waits));
        let password = report.password.iter().filter(|file| credential_name(file).is_none());
        password.for_each(|file| missing("[report] password", file, waits));
    }
    if let Some(name) = credential(report) {
        lines.push(format!(
            "[report] password: {CREDENTIAL}{name}: not checked: only systemd has it; the unit needs \
             `LoadCredential={name}:FILE`"
        ));
    }
    lines
}

fn credential_name(file: &Path) -> Option<&str> {
    file.to_str()?.strip_prefix(CREDENTIAL)
}

fn is_local(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}
