//! A real Exim with folders of its own, held by `packaging/exim.example` to what the world's daemon answers.
//!
//! Takes: a world whose resolver is the host's. Gives: an Exim that delivers what it is given at once, with the
//! example's routers and transport and no others; its log is in the world's folder.
//! Limits: root, namespaces of its own (it needs the user `Debian-exim`), and the program that `unpack-exim` unpacks.
//! When it fails: a text that says what is missing, or what Exim said.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::daemon::tail;
use crate::host;
use crate::world::World;

/// The user that Debian's Exim runs as, and the number that it gets where the host has none.
const USER: (&str, u32) = ("Debian-exim", 61_025);

/// An Exim with its configuration. It runs when it is given something to do.
#[derive(Debug)]
pub struct Exim {
    program: PathBuf,
    folder: PathBuf,
}

/// The program; an error says how to come by it.
pub fn program() -> Result<PathBuf, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let path = root.join("target/exim/usr/sbin/exim4");
    let found = path.canonicalize();
    found.map_err(|e| format!("{}: {e}; as root on Debian or Ubuntu: tests/lab/unpack-exim", path.display()))
}

/// The main log of the Exim of a world, which is in this folder.
pub fn log(world: &Path) -> PathBuf {
    world.join("exim/log/main")
}

impl Exim {
    /// Writes its configuration and has Exim check it. `timeout`: how long it waits for the daemon; `macros`: more
    /// settings of the example, such as `TLSWARDEN_OWN_VERIFY = mx.example`, one a line.
    pub fn new(world: &World, timeout: &str, macros: &str) -> Result<Exim, String> {
        let macros = format!(
            "TLSWARDEN_SOCKET = {}\nTLSWARDEN_TIMEOUT = {timeout}\nTLSWARDEN_ROOTS = {}\n{macros}\n",
            world.readsocket().display(),
            world.ca_file().display()
        );
        Exim::with(world, "exim", &macros, include_str!("../../../packaging/exim.example"))
    }

    /// The same host without the daemon; `options`: those of its transport for TLS, such as `hosts_require_tls = *`, one a
    /// line.
    pub fn alone(world: &World, options: &str) -> Result<Exim, String> {
        let parts = format!(
            "begin routers\ndnslookup:\n driver = dnslookup\n domains = ! +local_domains\n transport = remote_smtp\n\
             \x20dnssec_request_domains = *\n no_more\n\
             begin transports\nremote_smtp:\n driver = smtp\n tls_verify_certificates = {}\n{options}\n",
            world.ca_file().display()
        );
        Exim::with(world, "exim-alone", "", &parts)
    }

    /// `parts`: the routers and the transports, which go into a file of their own.
    fn with(world: &World, name: &str, macros: &str, parts: &str) -> Result<Exim, String> {
        let program = program()?;
        host::add_user(USER.0, USER.1)?;
        let folder = world.folder().join(name);
        let text = |e: std::io::Error| format!("{}: {e}", folder.display());
        for part in ["spool", "log"] {
            fs::create_dir_all(folder.join(part)).map_err(text)?;
        }
        fs::write(folder.join("exim.example"), parts).map_err(text)?;
        let here = folder.display();
        let conf = format!(
            "{macros}\
             exim_path = {}\n\
             spool_directory = {here}/spool\n\
             log_file_path = {here}/log/%s\n\
             primary_hostname = mta.sender.test\n\
             domainlist local_domains =\n\
             deliver_drop_privilege = true\n\
             disable_ipv6 = true\n\
             keep_environment =\n\
             timezone = UTC\n\
             log_selector = +dnssec +outgoing_port\n\
             .include {here}/exim.example\n\
             begin retry\n\
             * * F,1d,1s\n",
            program.display(),
        );
        fs::write(folder.join("exim.conf"), conf).map_err(text)?;
        let owner = format!("{0}:{0}", USER.0);
        let mut chown = Command::new("chown");
        chown.arg(owner).args(["spool", "log"].map(|part| folder.join(part)));
        if !chown.status().map_err(text)?.success() {
            return Err(format!("{here}: cannot be given to {}", USER.0));
        }
        let exim = Exim { program, folder };
        let checked = exim.run(&["-bV"], "")?;
        if !String::from_utf8_lossy(&checked.stdout).contains("Configuration file is") {
            return Err(format!("exim -bV: {}", said(&checked)));
        }
        Ok(exim)
    }

    /// Its configuration file.
    pub fn config(&self) -> PathBuf {
        self.folder.join("exim.conf")
    }

    /// The version, such as `4.96`.
    pub fn version(&self) -> Result<String, String> {
        let output = self.run(&["-bV"], "")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(text.split_whitespace().nth(2).unwrap_or_default().to_owned())
    }

    /// Hands it one message, which it tries to deliver before this returns.
    pub fn submit(&self, from: &str, to: &[&str], message: &str) -> Result<(), String> {
        let mut arguments = vec!["-odf", "-oi", "-f", from];
        arguments.extend(to);
        let output = self.run(&arguments, message)?;
        if output.status.success() { Ok(()) } else { Err(self.fault(&format!("exim: {}", said(&output)))) }
    }

    /// Tries all waiting mail again, before this returns.
    pub fn flush(&self) -> Result<(), String> {
        let output = self.run(&["-qff"], "")?;
        if output.status.success() { Ok(()) } else { Err(self.fault(&format!("exim -qff: {}", said(&output)))) }
    }

    /// Forgets the mail that waits and the hosts that failed: what it does next depends on nothing before.
    pub fn forget(&self) -> Result<(), String> {
        for part in ["db", "input", "msglog"] {
            let folder = self.folder.join("spool").join(part);
            match fs::remove_dir_all(&folder) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(format!("{}: {e}", folder.display())),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// The lines of its log that name a recipient, behind the first `from` octets: `=>` or `->` delivered, `==`
    /// deferred, `**` bounced.
    pub fn deliveries(&self, recipient: &str, from: usize) -> Vec<String> {
        let log = fs::read(self.log()).unwrap_or_default();
        let text = String::from_utf8_lossy(log.get(from..).unwrap_or_default()).into_owned();
        let marks = ["=>", "->", "==", "**"].map(|mark| format!(" {mark} {recipient} "));
        text.lines().filter(|line| marks.iter().any(|mark| line.contains(mark))).map(str::to_owned).collect()
    }

    /// How long the log is, in octets.
    pub fn log_length(&self) -> usize {
        fs::metadata(self.log()).map_or(0, |m| usize::try_from(m.len()).unwrap_or(usize::MAX))
    }

    /// Its main log.
    pub fn log(&self) -> PathBuf {
        self.folder.join("log/main")
    }

    /// Where it says what should never happen.
    pub fn panic_log(&self) -> PathBuf {
        self.folder.join("log/panic")
    }

    fn run(&self, arguments: &[&str], input: &str) -> Result<Output, String> {
        let failed = |e: std::io::Error| format!("{}: {e}", self.program.display());
        let mut child = Command::new(&self.program)
            .arg("-C")
            .arg(self.folder.join("exim.conf"))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        if let Some(mut stdin) = child.stdin.take() {
            // Where Exim ends before it has read all, its status and text say why.
            let _ = stdin.write_all(input.as_bytes());
        }
        child.wait_with_output().map_err(failed)
    }

    fn fault(&self, what: &str) -> String {
        format!("{what}; the end of {}:\n{}", self.log().display(), tail(&self.log()))
    }
}

fn said(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr].concat();
    format!("{}: {}", output.status, String::from_utf8_lossy(&text).trim())
}
