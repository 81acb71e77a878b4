//! A real Postfix with folders of its own, that asks the world's daemon and sends into the world.
//!
//! Takes: a world whose resolver is the host's. Gives: a running instance with the lines for main.cf that the README
//! names, and nothing beside them that touches TLS; its log is the world's.
//! Limits: root, and an installed Postfix. It listens on 127.0.0.1:25, so it wants a network of its own.
//! When it fails: a text that says what is missing, or what `postfix start` said.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use crate::daemon::tail;
use crate::world::World;

/// How long Postfix may take until it answers.
const START: Duration = Duration::from_secs(30);

const MASTER_CF: &str = "\
smtp      inet  n       -       n       -       -       smtpd
pickup    unix  n       -       n       60      1       pickup
cleanup   unix  n       -       n       -       0       cleanup
qmgr      unix  n       -       n       300     1       qmgr
tlsmgr    unix  -       -       n       1000?   1       tlsmgr
rewrite   unix  -       -       n       -       -       trivial-rewrite
bounce    unix  -       -       n       -       0       bounce
defer     unix  -       -       n       -       0       bounce
trace     unix  -       -       n       -       0       bounce
verify    unix  -       -       n       -       1       verify
flush     unix  n       -       n       1000?   0       flush
proxymap  unix  -       -       n       -       -       proxymap
smtp      unix  -       -       n       -       -       smtp
showq     unix  n       -       n       -       -       showq
error     unix  -       -       n       -       -       error
retry     unix  -       -       n       -       -       error
discard   unix  -       -       n       -       -       discard
postlog   unix-dgram n  -       n       -       1       postlogd
";

/// A running Postfix. It is stopped when it is dropped.
#[derive(Debug)]
pub struct Postfix {
    folder: PathBuf,
    log: PathBuf,
}

/// The version of the installed Postfix, such as `3.7.11`; an error says that there is none.
pub fn version() -> Result<String, String> {
    let output = Command::new("postconf")
        .args(["-d", "-h", "mail_version"])
        .output()
        .map_err(|e| format!("Postfix is not installed (postconf: {e}); try: apt-get install postfix"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The map that this version asks: the attributes for TLSRPT are known from 3.10 on.
pub fn map_name(version: &str) -> &'static str {
    let mut parts = version.split('.').map(|p| p.parse::<u32>().unwrap_or(0));
    if (parts.next(), parts.next()) >= (Some(3), Some(10)) { "policy-tlsrpt" } else { "policy" }
}

impl Postfix {
    /// Where it takes mail from this host.
    pub const SMTPD: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 25);

    /// Starts it and waits until it takes mail.
    pub fn start(world: &World) -> Result<Postfix, String> {
        let map = map_name(&version()?);
        let folder = world.folder().join("postfix");
        let text = |e: std::io::Error| format!("{}: {e}", folder.display());
        for part in ["queue", "data"] {
            fs::create_dir_all(folder.join(part)).map_err(text)?;
        }
        // The owner of Postfix's own data is the user `postfix` (mail_owner).
        run("chown", &["postfix", &folder.join("data").to_string_lossy()])?;
        let (here, world_folder) = (folder.display(), world.folder().display());
        let main_cf = format!(
            "smtp_tls_policy_maps = socketmap:unix:{}:{map}\n\
             smtp_tls_security_level = may\n\
             smtp_dns_support_level = dnssec\n\
             smtp_tls_CAfile = {}\n\
             smtp_tls_loglevel = 1\n\
             \n\
             compatibility_level = 3.6\n\
             queue_directory = {here}/queue\n\
             data_directory = {here}/data\n\
             maillog_file = {}\n\
             maillog_file_prefixes = {world_folder}\n\
             myhostname = mta.sender.test\n\
             mydestination =\n\
             local_recipient_maps =\n\
             alias_maps =\n\
             alias_database =\n\
             mynetworks = 127.0.0.0/8\n\
             inet_interfaces = 127.0.0.1\n\
             inet_protocols = ipv4\n\
             notify_classes =\n\
             smtpd_tls_security_level = none\n",
            world.socketmap().display(),
            world.ca_file().display(),
            world.log().display(),
        );
        fs::write(folder.join("main.cf"), main_cf).map_err(text)?;
        fs::write(folder.join("master.cf"), MASTER_CF).map_err(text)?;
        let postfix = Postfix { folder, log: world.log() };
        let started = postfix.command("postfix", &["start"])?;
        if !started.status.success() {
            return Err(postfix.fault(&format!("postfix start: {}", String::from_utf8_lossy(&started.stderr))));
        }
        let begin = Instant::now();
        while std::net::TcpStream::connect(Postfix::SMTPD).is_err() {
            if begin.elapsed() > START {
                return Err(postfix.fault("Postfix does not answer"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(postfix)
    }

    /// Tries all deferred mail again.
    pub fn flush(&self) -> Result<(), String> {
        let output = self.command("postqueue", &["-f"])?;
        if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    }

    /// `postmap -q KEY TABLE`: the value, or nothing where the table has none.
    pub fn postmap(&self, table: &str, key: &str) -> Result<Option<String>, String> {
        let output = self.command("postmap", &["-q", key, table])?;
        let errors = String::from_utf8_lossy(&output.stderr);
        match output.status.code() {
            Some(0) => Ok(Some(String::from_utf8_lossy(&output.stdout).trim_end_matches('\n').to_owned())),
            Some(1) if errors.trim().is_empty() => Ok(None),
            _ => Err(format!("postmap -q {key} {table}: {errors}")),
        }
    }

    /// The last delivery line of a recipient that was written behind the first `from` octets of the log.
    pub fn delivery(&self, recipient: &str, from: usize) -> Option<String> {
        let log = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(log.get(from..).unwrap_or_default()).into_owned();
        let needle = format!(": to=<{recipient}>, ");
        text.lines().rev().find(|line| line.contains(&needle)).map(str::to_owned)
    }

    /// Waits for such a line.
    pub fn await_delivery(&self, recipient: &str, from: usize) -> Result<String, String> {
        let begin = Instant::now();
        loop {
            match self.delivery(recipient, from) {
                Some(line) => return Ok(line),
                None if begin.elapsed() > START => return Err(self.fault(&format!("no delivery to {recipient}"))),
                None => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// How long the log is, in octets.
    pub fn log_length(&self) -> usize {
        fs::metadata(&self.log).map_or(0, |m| usize::try_from(m.len()).unwrap_or(usize::MAX))
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Result<Output, String> {
        // Another MAIL_CONFIG or time zone in the environment must not reach Postfix.
        let mut command = Command::new(program);
        command.env_remove("MAIL_CONFIG").env("TZ", "UTC").arg("-c").arg(&self.folder).args(arguments);
        command.output().map_err(|e| format!("{program}: {e}"))
    }

    fn fault(&self, what: &str) -> String {
        format!("{what}; the end of {}:\n{}", self.log.display(), tail(&self.log))
    }
}

impl Drop for Postfix {
    fn drop(&mut self) {
        let _ = self.command("postfix", &["stop"]);
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output().map_err(|e| format!("{program}: {e}"))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr)))
    }
}

#[cfg(test)]
mod tests {
    use super::map_name;

    #[test]
    fn newer_versions_get_the_attributes() {
        for (version, map) in
            [("3.7.11", "policy"), ("3.9.1", "policy"), ("3.10.0", "policy-tlsrpt"), ("4.0", "policy-tlsrpt")]
        {
            assert_eq!(map_name(version), map, "{version}");
        }
    }
}
