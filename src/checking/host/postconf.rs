//! What Postfix is configured to do, as postconf(1) says it.
//!
//! Takes: a configuration folder, or Postfix's own default. Gives: a [`PostfixInstance`] for it and for each further one of
//! `multi_instance_directories`, its parameters expanded, with the overrides of the services that deliver by SMTP.
//! Limits: [`MAX_OUTPUT`] octets of a postconf; [`MAX_INSTANCES`].
//! When it fails: one line with what postconf said.
//! Not here: whether that is right (`doctor::postfix`).

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::config::{PostfixVersion, split_list};

/// The most that is read of what a postconf prints, in octets: a thousand parameters have 60 KiB.
const MAX_OUTPUT: u64 = 4 * 1024 * 1024;

/// The most instances that are looked at.
const MAX_INSTANCES: usize = 64;

/// Where postconf is, which is not on everybody's path.
const SBIN: &str = "/usr/sbin:/sbin:/usr/local/sbin";

/// One configured Postfix instance.
#[derive(Clone, Debug, Default)]
pub(crate) struct PostfixInstance {
    /// Its configuration folder.
    pub(crate) folder: PathBuf,
    parameters: BTreeMap<String, String>,
    /// The services that deliver by SMTP.
    pub(crate) smtp_clients: Vec<MasterService>,
    /// Other services, by name and command, and whether they are chrooted.
    other_services: Vec<MasterService>,
}

/// A service of master.cf.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct MasterService {
    /// Its name, the first column.
    pub(crate) name: String,
    /// Its type, the second column.
    pub(crate) kind: String,
    /// The program, the eighth column.
    pub(crate) command: String,
    /// Whether it runs chrooted in the queue directory.
    pub(crate) chroot: bool,
    /// Its `-o` parameters, expanded.
    pub(crate) overrides: BTreeMap<String, String>,
}

impl PostfixInstance {
    /// All instances, the primary one first; the second value says which could not be looked at. Fails where there is no
    /// postconf, or the primary instance cannot be read.
    pub(crate) fn read_all(folder: Option<&Path>) -> Result<(Vec<PostfixInstance>, Vec<String>), String> {
        let primary = PostfixInstance::read(folder)?;
        let mut skipped = Vec::new();
        let more = primary.list("multi_instance_directories");
        let mut instances = vec![primary];
        for folder in more.iter().take(MAX_INSTANCES) {
            match PostfixInstance::read(Some(Path::new(folder))) {
                Ok(instance) if instance.is_yes("multi_instance_enable") => instances.push(instance),
                Ok(_) => skipped.push(format!("Postfix instance {folder}: multi_instance_enable is no")),
                Err(error) => skipped.push(format!("Postfix instance {folder}: {error}")),
            }
        }
        Ok((instances, skipped))
    }

    fn read(folder: Option<&Path>) -> Result<PostfixInstance, String> {
        let parameters = parse_parameters(&run_postconf(folder, &["-x"])?);
        let folder = folder.map(Path::to_owned);
        let folder = folder.or_else(|| parameters.get("config_directory").map(PathBuf::from)).unwrap_or_default();
        let mut instance = PostfixInstance { folder, parameters, ..PostfixInstance::default() };
        let overrides = parse_overrides(&run_postconf(Some(&instance.folder), &["-P", "-x"])?);
        let chroot_is_default = instance.get("compatibility_level").split('.').next() == Some("0");
        for mut service in parse_services(&run_postconf(Some(&instance.folder), &["-M"])?, chroot_is_default) {
            service.overrides =
                overrides.get(&format!("{}/{}", service.name, service.kind)).cloned().unwrap_or_default();
            match service.command.as_str() {
                "smtp" => instance.smtp_clients.push(service),
                _ => instance.other_services.push(service),
            }
        }
        Ok(instance)
    }

    /// A parameter of main.cf, expanded; empty where it has none.
    pub(crate) fn get(&self, name: &str) -> &str {
        self.parameters.get(name).map_or("", String::as_str)
    }

    /// A parameter as a service sees it.
    pub(crate) fn service_parameter<'a>(&'a self, service: &'a MasterService, name: &str) -> &'a str {
        service.overrides.get(name).map_or_else(|| self.get(name), String::as_str)
    }

    /// Whether this Postfix knows a parameter at all.
    pub(crate) fn has_parameter(&self, name: &str) -> bool {
        self.parameters.contains_key(name)
    }

    /// Whether a parameter is `yes`.
    pub(crate) fn is_yes(&self, name: &str) -> bool {
        self.get(name) == "yes"
    }

    /// A parameter that is a list.
    pub(crate) fn list(&self, name: &str) -> Vec<String> {
        split_list(self.get(name))
    }

    /// Its version.
    pub(crate) fn version(&self) -> Option<PostfixVersion> {
        self.get("mail_version").to_owned().try_into().ok()
    }

    /// Whether the services of a program other than smtp(8) are chrooted.
    pub(crate) fn is_chrooted(&self, command: &str) -> bool {
        self.other_services.iter().any(|service| service.command == command && service.chroot)
    }

    /// The `postconf` command for this instance.
    pub(crate) fn postconf_command(&self) -> String {
        match self.is_default_folder() {
            true => "postconf".to_owned(),
            false => format!("postconf -c {}", self.folder.display()),
        }
    }

    /// The `postfix reload` command for this instance.
    pub(crate) fn reload_command(&self) -> String {
        match self.is_default_folder() {
            true => "postfix reload".to_owned(),
            false => format!("postfix -c {} reload", self.folder.display()),
        }
    }

    fn is_default_folder(&self) -> bool {
        self.folder == Path::new("/etc/postfix")
    }
}

/// Runs postconf to its end.
fn run_postconf(folder: Option<&Path>, arguments: &[&str]) -> Result<String, String> {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("postconf");
    command.env("PATH", format!("{path}:{SBIN}"));
    if let Some(folder) = folder {
        command.arg("-c").arg(folder);
    }
    let child = command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.map_err(|e| format!("postconf: {e}"))?;
    let mut text = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(MAX_OUTPUT).read_to_end(&mut text).map_err(|e| format!("postconf: {e}"))?;
    }
    let ended = child.wait_with_output().map_err(|e| format!("postconf: {e}"))?;
    if ended.status.success() {
        return Ok(String::from_utf8_lossy(&text).into_owned());
    }
    let said = String::from_utf8_lossy(&ended.stderr);
    Err(said.lines().last().unwrap_or("postconf failed and said nothing").to_owned())
}

/// `name = value`, a line each.
fn parse_parameters(text: &str) -> BTreeMap<String, String> {
    let pair = |line: &str| line.split_once(" =").map(|(name, value)| (name.to_owned(), value.trim().to_owned()));
    text.lines().filter_map(pair).collect()
}

/// `name/type/parameter = value`, a line each; by `name/type`.
fn parse_overrides(text: &str) -> BTreeMap<String, BTreeMap<String, String>> {
    let mut all: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for (key, value) in parse_parameters(text) {
        if let Some((service, name)) = key.rsplit_once('/') {
            all.entry(service.to_owned()).or_default().insert(name.to_owned(), value);
        }
    }
    all
}

/// The lines of `postconf -M`, without their arguments. `-` in the chroot column has the meaning that master(5) gives
/// it.
fn parse_services(text: &str, chroot_is_default: bool) -> Vec<MasterService> {
    let service = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let chroot = match *columns.get(4)? {
            "y" => true,
            "n" => false,
            _ => chroot_is_default,
        };
        Some(MasterService {
            name: (*columns.first()?).to_owned(),
            kind: (*columns.get(1)?).to_owned(),
            command: (*columns.get(7)?).to_owned(),
            chroot,
            overrides: BTreeMap::new(),
        })
    };
    text.lines().filter(|line| !line.starts_with([' ', '\t', '#'])).filter_map(service).collect()
}

#[cfg(test)]
impl PostfixInstance {
    /// One that was never read.
    pub(crate) fn for_tests(parameters: &[(&str, &str)], clients: &[MasterService]) -> PostfixInstance {
        let parameters = parameters.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        PostfixInstance {
            folder: "/etc/postfix".into(),
            parameters,
            smtp_clients: clients.to_vec(),
            other_services: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_and_their_overrides() {
        let text = "smtp       inet  n       -       y       -       -       smtpd\n\
                    smtp       unix  -       -       y       -       -       smtp\n\
                    relay      unix  -       -       -       -       -       smtp -o syslog_name=postfix/$service_name\n";
        let found = parse_services(text, false);
        let short: Vec<_> = found.iter().map(|s| (s.name.as_str(), s.command.as_str(), s.chroot)).collect();
        assert_eq!(short, [("smtp", "smtpd", true), ("smtp", "smtp", true), ("relay", "smtp", false)]);
        assert!(parse_services(text, true)[2].chroot);
        let found = parse_overrides("relay/unix/smtp_tls_loglevel = 0\nrelay/unix/x =\nslow/unix/y = a = b\n");
        assert_eq!(found["relay/unix"]["smtp_tls_loglevel"], "0");
        assert_eq!((found["relay/unix"]["x"].as_str(), found["slow/unix"]["y"].as_str()), ("", "a = b"));
    }
}
