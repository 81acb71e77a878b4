//! A real Postfix with folders of its own, that asks the world's daemon and sends into the world.
//!
//! Takes: an [`Installation`], of this host or in a chroot, and a world whose resolver is the host's. Gives: a running
//! instance with the lines for main.cf that the README names, and nothing beside them that touches TLS; its log is the world's.
//! Limits: root. It listens on 127.0.0.1:25, so it wants a network of its own; a chroot also wants mounts of its own (`host`).
//! When it fails: a text that says what is missing, or what `postfix start` said.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::daemon::tail;
use crate::host::run;
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
scache    unix  -       -       n       -       1       scache
tlsproxy  unix  -       -       n       -       0       tlsproxy
smtp      unix  -       -       n       -       -       smtp
showq     unix  n       -       n       -       -       showq
error     unix  -       -       n       -       -       error
retry     unix  -       -       n       -       -       error
discard   unix  -       -       n       -       -       discard
postlog   unix-dgram n  -       n       -       1       postlogd
";

/// Where Debian's Postfix has its programs.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// An installed Postfix.
#[derive(Clone, Debug)]
pub struct Installation {
    /// `/`, or the folder of a chroot.
    root: PathBuf,
    version: String,
}

/// What a Postfix is to the world.
#[derive(Clone, Debug)]
pub struct Role {
    /// Where it takes mail, at port 25.
    pub address: Ipv4Addr,
    /// Its host name.
    pub name: String,
    /// A domain whose mail it takes and throws away.
    pub receives: Option<String>,
    /// The file with its key and certificate, for receiving over TLS.
    pub chain: Option<PathBuf>,
    /// All mail that comes in goes through another smtpd of it before it goes on, as through a content filter: what goes
    /// on has another queue id.
    pub filters: bool,
}

impl Default for Role {
    /// The world's sender.
    fn default() -> Role {
        let name = "mta.sender.test".to_owned();
        Role { address: Ipv4Addr::LOCALHOST, name, receives: None, chain: None, filters: false }
    }
}

/// A running Postfix. It is stopped when it is dropped.
#[derive(Debug)]
pub struct Postfix {
    installation: Installation,
    folder: PathBuf,
    log: PathBuf,
    role: Role,
}

impl Installation {
    /// That of this host.
    pub fn of_this_host() -> Result<Installation, String> {
        Installation::at(Path::new("/"))
    }

    /// That of another Debian release, which `tests/chroot RELEASE` has made.
    pub fn of_release(release: &str) -> Result<Installation, String> {
        let chroots = std::env::var_os("TLSWARDEN_CHROOTS").unwrap_or_else(|| "/var/cache/tlswarden-tests".into());
        let root = Path::new(&chroots).join(release);
        // Written last.
        if !root.join(".recipe").exists() {
            return Err(format!("no chroot in {}; make it with: tests/chroot {release}", root.display()));
        }
        Installation::at(&root)
    }

    /// That in a root folder; an error says that there is none.
    pub fn at(root: &Path) -> Result<Installation, String> {
        let mut installation = Installation { root: root.to_owned(), version: String::new() };
        if !installation.is_this_host() && !rustix::process::geteuid().is_root() {
            return Err(format!("needs root: a Postfix in the chroot {}", root.display()));
        }
        let output = installation
            .command("postconf")
            .args(["-d", "-h", "mail_version"])
            .output()
            .map_err(|e| format!("Postfix is not installed (postconf: {e}); try: apt-get install postfix"))?;
        installation.version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if output.status.success() && installation.numbers().is_some() {
            Ok(installation)
        } else {
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            Err(format!("Postfix in {}: postconf: {}: {errors}", root.display(), output.status))
        }
    }

    /// Its root folder, by which [`Installation::at`] finds it again.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Its version, such as `3.7.11`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The first two numbers of its version, as the daemon is told them: `3.7`.
    pub fn short_version(&self) -> String {
        self.version.split('.').take(2).collect::<Vec<_>>().join(".")
    }

    /// Whether it knows the attributes for TLSRPT: from 3.10 on.
    pub fn knows_attributes(&self) -> bool {
        self.numbers() >= Some((3, 10))
    }

    /// The map that it is to ask.
    pub fn map(&self) -> &'static str {
        if self.knows_attributes() { "policy-tlsrpt" } else { "policy" }
    }

    /// Whether it is this version or a later one.
    pub fn at_least(&self, version: [u32; 3]) -> bool {
        let numbers = self.version.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
        numbers.chain(std::iter::repeat(0)).take(3).cmp(version) != std::cmp::Ordering::Less
    }

    fn numbers(&self) -> Option<(u32, u32)> {
        let mut numbers = self.version.split('.').map(|part| part.parse().ok());
        Some((numbers.next()??, numbers.next()??))
    }

    /// One of its programs.
    fn command(&self, program: &str) -> Command {
        let mut command = if self.is_this_host() {
            Command::new(program)
        } else {
            let mut command = Command::new("chroot");
            command.arg(&self.root).arg(program);
            command
        };
        // Another MAIL_CONFIG or time zone in the environment must not reach Postfix.
        command.env("PATH", PATH).env_remove("MAIL_CONFIG").env("TZ", "UTC");
        command
    }

    fn is_this_host(&self) -> bool {
        self.root == Path::new("/")
    }

    /// Lets a chroot see the world's folder, under its own name, and the resolver that the host has now.
    fn open(&self, folder: &Path) -> Result<(), String> {
        if self.is_this_host() {
            return Ok(());
        }
        let within = |path: &Path| self.root.join(path.strip_prefix("/").unwrap_or(path));
        let text = |path: &Path| path.to_string_lossy().into_owned();
        run("mount", &["-t", "proc", "proc", &text(&within(Path::new("/proc")))])?;
        // The folders that are made for mounts are gone with it.
        run("mount", &["-t", "tmpfs", "tmpfs", &text(&within(Path::new("/tmp")))])?;
        // A copy: the host's may itself be a mount of a file that is gone, which cannot be mounted again.
        let (resolver, copy) = (Path::new("/etc/resolv.conf"), folder.join("resolv.conf"));
        fs::copy(resolver, &copy).map_err(|e| format!("{}: {e}", resolver.display()))?;
        run("mount", &["--bind", &text(&copy), &text(&within(resolver))])?;
        fs::create_dir_all(within(folder)).map_err(|e| format!("{}: {e}", within(folder).display()))?;
        run("mount", &["--bind", &text(folder), &text(&within(folder))])
    }
}

impl Role {
    /// What it adds to main.cf and master.cf.
    fn lines(&self) -> (String, String) {
        let (mut main, mut master) = (String::new(), String::new());
        main += &match &self.chain {
            None => "smtpd_tls_security_level = none\n".to_owned(),
            Some(chain) => format!("smtpd_tls_security_level = may\nsmtpd_tls_chain_files = {}\n", chain.display()),
        };
        if let Some(domain) = &self.receives {
            main += &format!("transport_maps = inline:{{ {{ {domain} = discard: }} }}\nrelay_domains = {domain}\n");
        }
        if self.filters {
            let address = self.address;
            main += &format!("content_filter = smtp:[{address}]:10026\n");
            master += &format!("{address}:10026 inet n - n - - smtpd\n");
            master += "  -o content_filter= -o smtpd_tls_security_level=none -o receive_override_options=no_address_mappings\n";
        }
        (main, master)
    }
}

impl Postfix {
    /// Where it takes mail from this host.
    pub const SMTPD: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 25);

    /// Starts it, with this `smtp_tls_security_level`, and waits until it takes mail. What an earlier one left in the
    /// queue is still there. Once a world for an installation in a chroot: see [`Postfix::restart`].
    pub fn start(world: &World, installation: &Installation, level: &str) -> Result<Postfix, String> {
        Postfix::start_full(Role::default(), world, installation, level, &[])
    }

    /// The same in another role; several may run beside each other.
    pub fn start_as(role: Role, world: &World, installation: &Installation, level: &str) -> Result<Postfix, String> {
        Postfix::start_full(role, world, installation, level, &[])
    }

    /// The same with these settings in place of, or beside, those of main.cf.
    pub fn start_with(
        world: &World,
        installation: &Installation,
        level: &str,
        settings: &[(&str, &str)],
    ) -> Result<Postfix, String> {
        Postfix::start_full(Role::default(), world, installation, level, settings)
    }

    fn start_full(
        role: Role,
        world: &World,
        installation: &Installation,
        level: &str,
        settings: &[(&str, &str)],
    ) -> Result<Postfix, String> {
        installation.open(world.folder())?;
        let folder = world.folder().join("postfix");
        let text = |e: std::io::Error| format!("{}: {e}", folder.display());
        for part in ["queue", "data"] {
            fs::create_dir_all(folder.join(part)).map_err(text)?;
        }
        let postfix = Postfix { installation: installation.clone(), folder, log: world.log(), role };
        // The owner of Postfix's own data is the user `postfix` (mail_owner), whose number is the installation's.
        postfix.succeeds(installation.command("chown").arg("postfix").arg(postfix.folder.join("data")))?;
        postfix.configure(world, level, settings)?;
        postfix.run()?;
        Ok(postfix)
    }

    /// Stops it and starts it with another `smtp_tls_security_level`.
    pub fn restart(&self, world: &World, level: &str) -> Result<(), String> {
        self.restart_with(world, level, &[])
    }

    /// The same with settings, as [`Postfix::start_with`] has them; what was deferred is gone.
    pub fn restart_with(&self, world: &World, level: &str, settings: &[(&str, &str)]) -> Result<(), String> {
        if !settings.is_empty() {
            // While postlogd(8) runs: postsuper(1) logs as a user who may not write the log.
            self.succeeds(&mut self.command("postsuper", &["-d", "ALL"]))?;
        }
        self.succeeds(&mut self.command("postfix", &["stop"]))?;
        self.configure(world, level, settings)?;
        self.run()
    }

    /// Sets one parameter (`name = value`) until it is started again.
    pub fn set(&self, parameter: &str) -> Result<(), String> {
        self.succeeds(&mut self.command("postconf", &["-e", parameter]))?;
        self.succeeds(&mut self.command("postfix", &["reload"]))
    }

    /// The folder of its configuration; its queue is in `queue` there.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn configure(&self, world: &World, level: &str, settings: &[(&str, &str)]) -> Result<(), String> {
        let map = self.installation.map();
        let text = |e: std::io::Error| format!("{}: {e}", self.folder.display());
        let (here, world_folder) = (self.folder.display(), world.folder().display());
        let main_cf = format!(
            "smtp_tls_policy_maps = socketmap:unix:{}:{map}\n\
             smtp_tls_security_level = {level}\n\
             smtp_dns_support_level = dnssec\n\
             smtp_tls_CAfile = {}\n\
             smtp_tls_loglevel = 1\n\
             \n\
             compatibility_level = 3.6\n\
             queue_directory = {here}/queue\n\
             data_directory = {here}/data\n\
             maillog_file = {}\n\
             maillog_file_prefixes = {world_folder}\n\
             myhostname = {}\n\
             mydestination =\n\
             local_recipient_maps =\n\
             alias_maps =\n\
             alias_database =\n\
             mynetworks = 127.0.0.0/8\n\
             inet_interfaces = {}\n\
             inet_protocols = ipv4\n\
             notify_classes =\n",
            world.socketmap().display(),
            world.ca_file().display(),
            world.log().display(),
            self.role.name,
            self.role.address,
        );
        let (more_main, more_master) = self.role.lines();
        let is_set = |line: &str| settings.iter().any(|(name, _)| line.split(' ').next() == Some(name));
        let mut lines: Vec<String> = main_cf.lines().filter(|line| !is_set(line)).map(str::to_owned).collect();
        lines.extend(settings.iter().map(|(name, value)| format!("{name} = {value}")));
        if !world.is_native() {
            fs::write(self.folder.join("main.cf"), lines.join("\n") + "\n" + &more_main).map_err(text)?;
            return fs::write(self.folder.join("master.cf"), MASTER_CF.to_owned() + &more_master).map_err(text);
        }
        lines.push(format!("smtp_tls_policy_maps = socketmap:unix:tlswarden/socketmap:{map}"));
        lines.push("smtp_tlsrpt_enable = yes\nsmtp_tlsrpt_socket_name = tlswarden/tlsrpt\n".to_owned());
        fs::write(self.folder.join("main.cf"), lines.join("\n") + &more_main).map_err(text)?;
        let chrooted = MASTER_CF.replace("smtp      unix  -       -       n ", "smtp      unix  -       -       y ");
        fs::write(self.folder.join("master.cf"), chrooted + &more_master).map_err(text)?;
        // All that a chrooted smtp(8) needs of /etc to ask the resolver.
        let etc = self.folder.join("queue/etc");
        fs::create_dir_all(&etc).map_err(text)?;
        fs::copy("/etc/resolv.conf", etc.join("resolv.conf")).map(drop).map_err(text)
    }

    /// Where it takes mail.
    pub fn smtpd(&self) -> SocketAddr {
        (self.role.address, 25).into()
    }

    fn run(&self) -> Result<(), String> {
        self.succeeds(&mut self.command("postfix", &["start"]))?;
        let begin = Instant::now();
        while std::net::TcpStream::connect(self.smtpd()).is_err() {
            if begin.elapsed() > START {
                return Err(self.fault("Postfix does not answer"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Gives reports the transport of `packaging/postfix.example`.
    pub fn set_up_reports(&self, envelope: &str) -> Result<(), String> {
        let example = include_str!("../../../packaging/postfix.example").replace("tlsrpt@example.com", envelope);
        let part = |file: &str| {
            let begin = format!("# ---- {file}: ");
            let text = example.split("# ---- ").map(|part| format!("# ---- {part}")).find(|p| p.starts_with(&begin));
            text.ok_or_else(|| format!("packaging/postfix.example has no part `{begin}`"))
        };
        for file in ["main.cf", "master.cf"] {
            let path = self.folder.join(file);
            let before = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
            fs::write(&path, before + &part(file)?).map_err(|e| format!("{}: {e}", path.display()))?;
        }
        self.succeeds(&mut self.command("postfix", &["check"]))?;
        self.succeeds(&mut self.command("postfix", &["reload"]))
    }

    /// Changes main.cf or master.cf as an administrator does, with `postconf`, and has it read by what runs.
    pub fn postconf(&self, arguments: &[&str]) -> Result<(), String> {
        self.succeeds(&mut self.command("postconf", arguments))?;
        self.succeeds(&mut self.command("postfix", &["reload"]))
    }

    /// Tries all deferred mail again.
    pub fn flush(&self) -> Result<(), String> {
        self.succeeds(&mut self.command("postqueue", &["-f"]))
    }

    /// Tries one deferred message again: the one that a delivery line is about.
    pub fn flush_one(&self, line: &str) -> Result<(), String> {
        let before = line.split(": to=<").next().unwrap_or_default();
        let queue_id = before.rsplit(' ').next().unwrap_or_default();
        self.succeeds(&mut self.command("postqueue", &["-i", queue_id]))
    }

    /// `postmap -q KEY TABLE`: the value, or nothing where the table has none.
    pub fn postmap(&self, table: &str, key: &str) -> Result<Option<String>, String> {
        let output = self.command("postmap", &["-q", key, table]).output().map_err(|e| format!("postmap: {e}"))?;
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

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = self.installation.command(program);
        command.arg("-c").arg(&self.folder).args(arguments);
        command
    }

    fn succeeds(&self, command: &mut Command) -> Result<(), String> {
        let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
        if output.status.success() {
            return Ok(());
        }
        Err(self.fault(&format!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr))))
    }

    fn fault(&self, what: &str) -> String {
        format!("{what}; the end of {}:\n{}", self.log.display(), tail(&self.log))
    }
}

impl Drop for Postfix {
    fn drop(&mut self) {
        let _ = self.command("postfix", &["stop"]).output();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_versions_get_the_attributes() {
        for (version, map) in
            [("3.7.11", "policy"), ("3.9.1", "policy"), ("3.10.0", "policy-tlsrpt"), ("4.0", "policy-tlsrpt")]
        {
            let installation = Installation { root: "/".into(), version: version.into() };
            assert_eq!(installation.map(), map, "{version}");
        }
    }
}
