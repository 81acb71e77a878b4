//! The world, put together from a description of its mail domains.
//!
//! Takes: [`Options`] and [`Domain`]s. Gives: DNS, policy hosts, receiving servers and a server for our own reports, all
//! running, and in a temporary folder the CA file, the DKIM keys and the daemon's configuration.
//! Limits: `MAX_HOSTS` MX hosts. When it fails: a text that says what could not be started.
//! Not here: the daemon itself (`daemon`).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::ca::{Authority, Fault, Identity};
use crate::dkim::{self, Key};
use crate::dns::Dns;
use crate::https::{Answer, PolicyHosts, Site};
use crate::smtp::{Kind, Sink};

/// MX hosts have addresses from 127.0.1.1 upwards, one each.
const MAX_HOSTS: usize = 254;

/// The domain that reports come from.
pub const SENDER: &str = "sender.test";

/// The address that its mail comes from, as the reports name it.
pub const SENDING: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 25));

/// Where things listen, and what the daemon is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// The resolver.
    pub dns: SocketAddr,
    /// The policy hosts.
    pub policy_hosts: SocketAddr,
    /// The port of the receiving servers; without it the MX hosts are names and addresses alone.
    pub receivers: Option<u16>,
    /// Where the daemon hands its reports over; without it the world runs a server for them.
    pub submission: Option<SocketAddr>,
    /// A TCP address for the daemon's socketmap, beside the unix-domain socket.
    pub socketmap: Option<SocketAddr>,
    /// The Postfix version that the daemon is told.
    pub postfix: String,
    /// The security level that the host has without a policy, as the daemon is told it.
    pub default_level: &'static str,
    /// Whether Postfix's smtp(8) is chrooted in its queue directory and sends TLSRPT datagrams to the daemon.
    pub native: bool,
    /// Whether the log that is followed is that of an [`Exim`](crate::exim::Exim), and not Postfix's.
    pub exim: bool,
}

impl Default for Options {
    fn default() -> Options {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Options {
            dns: any,
            policy_hosts: any,
            receivers: None,
            submission: None,
            socketmap: None,
            postfix: "3.7".into(),
            default_level: "may",
            native: false,
            exim: false,
        }
    }
}

impl Options {
    /// With everything on the port that real mail servers use: in a network namespace of its own.
    pub fn on_standard_ports() -> Options {
        let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Options { dns: at(53), policy_hosts: at(443), receivers: Some(25), ..Options::default() }
    }
}

/// A mail domain.
#[derive(Clone, Debug)]
pub struct Domain {
    name: String,
    signed: bool,
    hosts: Vec<Host>,
    policy: Option<Policy>,
    reports_to: Option<String>,
}

/// An MX host.
#[derive(Clone, Debug)]
pub struct Host {
    name: String,
    server: Server,
    tlsa: Option<Tlsa>,
}

/// What an MX host does about TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// STARTTLS, with a sound certificate.
    Sound,
    /// STARTTLS, with a certificate that has this fault.
    Faulty(Fault),
    /// No STARTTLS.
    Plain,
    /// STARTTLS is offered and refused with 454.
    Refuses,
    /// The connection is closed at the ClientHello.
    HangsUp,
    /// The ClientHello is answered with these octets.
    Says(&'static [u8]),
    /// The ClientHello is not answered.
    Stalls,
}

/// What the TLSA record of an MX host says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tlsa {
    /// Its key.
    Matching,
    /// Another key.
    Mismatching,
}

/// An MTA-STS policy as published.
#[derive(Clone, Debug)]
struct Policy {
    document: String,
    answer: Option<Answer>,
    fault: Option<Fault>,
}

impl Domain {
    /// A domain in an unsigned zone that publishes nothing.
    pub fn new(name: &str) -> Domain {
        Domain { name: name.to_owned(), signed: false, hosts: Vec::new(), policy: None, reports_to: None }
    }

    /// In a signed zone.
    pub fn signed(mut self) -> Domain {
        self.signed = true;
        self
    }

    /// With one more MX host, `LABEL.DOMAIN`; the first is preferred.
    pub fn host(self, label: &str, server: Server) -> Domain {
        self.any_host(label, server, None)
    }

    /// With one more MX host that has a TLSA record.
    pub fn dane_host(self, label: &str, server: Server, tlsa: Tlsa) -> Domain {
        self.any_host(label, server, Some(tlsa))
    }

    fn any_host(mut self, label: &str, server: Server, tlsa: Option<Tlsa>) -> Domain {
        self.hosts.push(Host { name: format!("{label}.{}", self.name), server, tlsa });
        self
    }

    /// With an MTA-STS policy of this mode that allows this MX host.
    pub fn sts(mut self, mode: &str, label: &str) -> Domain {
        let document = format!("version: STSv1\r\nmode: {mode}\r\nmx: {label}.{}\r\nmax_age: 604800\r\n", self.name);
        self.policy = Some(Policy { document, answer: None, fault: None });
        self
    }

    /// With an MTA-STS record, and a policy host that does this.
    pub fn sts_answer(mut self, answer: Answer) -> Domain {
        self.policy = Some(Policy { document: String::new(), answer: Some(answer), fault: None });
        self
    }

    /// The certificate of the policy host has this fault.
    pub fn sts_certificate(mut self, fault: Fault) -> Domain {
        if let Some(policy) = &mut self.policy {
            policy.fault = Some(fault);
        }
        self
    }

    /// Asks for reports by mail.
    pub fn reports_to(mut self, address: &str) -> Domain {
        self.reports_to = Some(address.to_owned());
        self
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The names of its MX hosts.
    pub fn hosts(&self) -> impl Iterator<Item = &str> {
        self.hosts.iter().map(|host| host.name.as_str())
    }

    /// Those that have a TLSA record.
    pub fn dane_hosts(&self) -> impl Iterator<Item = &str> {
        self.hosts.iter().filter(|host| host.tlsa.is_some()).map(|host| host.name.as_str())
    }

    /// The address that it wants its reports at.
    pub fn report_address(&self) -> Option<&str> {
        self.reports_to.as_deref()
    }
}

/// A running world. It ends, and its folder with it, when it is dropped.
#[derive(Debug)]
pub struct World {
    /// The resolver.
    pub dns: Dns,
    /// The authority that signs the world's certificates.
    pub authority: Authority,
    /// The policy hosts.
    pub policy_hosts: PolicyHosts,
    /// The keys that the daemon signs with.
    pub keys: [Key; 2],
    folder: tempfile::TempDir,
    receivers: BTreeMap<String, Sink>,
    submission: Option<Sink>,
    options: Options,
}

impl World {
    /// Starts everything but the daemon.
    pub async fn start(options: Options, domains: &[Domain]) -> Result<World, String> {
        let text = |what: &str, e: &dyn std::fmt::Display| format!("{what}: {e}");
        let folder = tempfile::Builder::new().prefix("tlswarden-lab-").tempdir().map_err(|e| text("the folder", &e))?;
        let dns = Dns::start(options.dns).await.map_err(|e| text("DNS", &e))?;
        let policy_hosts = PolicyHosts::start(options.policy_hosts).await.map_err(|e| text("policy hosts", &e))?;
        let submission = match options.submission {
            Some(_) => None,
            None => {
                let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
                Some(Sink::start("mta.sender.test", any, Kind::Plain).await.map_err(|e| text("the MTA", &e))?)
            }
        };
        let mut world = World {
            dns,
            authority: Authority::generate().map_err(|e| text("the authority", &e))?,
            policy_hosts,
            keys: dkim::generate().map_err(|e| text("DKIM keys", &e))?,
            folder,
            receivers: BTreeMap::new(),
            submission,
            options,
        };
        world.publish_sender();
        let mut number = 0;
        for domain in domains {
            for (rank, host) in domain.hosts.iter().enumerate() {
                number += 1;
                world.open(domain, rank, host, number).await?;
            }
            world.publish(domain)?;
        }
        world.write_files().map_err(|e| text("the folder", &e))?;
        Ok(world)
    }

    /// The folder that everything is kept in.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Leaves the folder where it is when the world ends.
    pub fn keep_folder(&mut self) {
        self.folder.disable_cleanup(true);
    }

    /// The daemon's configuration.
    pub fn config(&self) -> PathBuf {
        self.folder().join("tlswarden.toml")
    }

    /// The mail log that the daemon follows.
    pub fn log(&self) -> PathBuf {
        self.folder().join("mail.log")
    }

    /// The daemon's unix-domain socketmap socket.
    pub fn socketmap(&self) -> PathBuf {
        self.folder().join("socketmap")
    }

    /// The daemon's unix-domain readsocket socket.
    pub fn readsocket(&self) -> PathBuf {
        self.folder().join("readsocket")
    }

    /// The root certificate that the world trusts.
    pub fn ca_file(&self) -> PathBuf {
        self.folder().join("ca.pem")
    }

    /// The receiving server of an MX host.
    pub fn receiver(&self, host: &str) -> &Sink {
        self.receivers.get(host).unwrap_or_else(|| panic!("the world has no server `{host}`"))
    }

    /// The server that takes the daemon's reports, where no real MTA does.
    pub fn submission(&self) -> &Sink {
        self.submission.as_ref().unwrap_or_else(|| panic!("a real MTA takes the reports in this world"))
    }

    /// Tells the daemon another default level, from the next [`World::configure`] on.
    pub fn set_default_level(&mut self, level: &'static str) {
        self.options.default_level = level;
    }

    /// The default of `smtp_tls_dane_insecure_mx_policy` of the Postfixes that the tests use.
    fn insecure_mx_policy(&self) -> &'static str {
        let newer = ["3.10", "3.11"].iter().any(|version| self.options.postfix.starts_with(version));
        if newer || self.options.default_level == "dane" { "dane" } else { "may" }
    }

    /// Writes the daemon's configuration; its clock shows `clock` (RFC 3339) at start, or the host's time.
    pub fn configure(&self, clock: Option<&str>) -> std::io::Result<()> {
        let quoted = |path: PathBuf| serde_json::Value::from(path.to_string_lossy()).to_string();
        let submission = self.options.submission.unwrap_or_else(|| self.submission().address());
        let mut listen = format!("\"unix:{}\"", self.socketmap().display());
        if let Some(address) = self.options.socketmap {
            let _ = write!(listen, ", \"inet:{address}\"");
        }
        let mut native = String::new();
        if self.options.native {
            // As on a real host: what a chrooted smtp(8) asks and reports to is below the queue directory.
            fs::create_dir_all(self.in_chroot())?;
            let _ = write!(listen, ", \"unix:{}\"", self.in_chroot().join("socketmap").display());
            let _ = write!(native, "\n[[input]]\ndatagrams = {}\n", quoted(self.in_chroot().join("tlsrpt")));
        }
        let tlsrpt = if self.options.native { "datagrams" } else { "log" };
        let mut text = format!(
            "[store]\npath = {}\n\n[control]\nsocket = {}\n\n[postfix]\nversion = \"{}\"\n\
             default_level = \"{}\"\ndnssec = true\ndane_insecure_mx_policy = \"{}\"\ntlsrpt = \"{tlsrpt}\"\n\n\
             [socketmap]\nlisten = [{listen}]\n\n[readsocket]\nlisten = [\"unix:{}\"]\n\n\
             [resolver]\naddress = \"{}\"\n\n\
             [report]\norganization = \"Closed World\"\ncontact = \"postmaster@{SENDER}\"\n\
             from = \"tlsrpt@{SENDER}\"\nenvelope = \"tlsrpt-bounces@{SENDER}\"\n\
             deliver = \"smtp:{submission}\"\nspread = \"0s\"\n\n\
             [count]\nsending_addresses = [\"{SENDING}\"]\n\n",
            quoted(self.folder().join("store")),
            quoted(self.folder().join("control")),
            self.options.postfix,
            self.options.default_level,
            self.insecure_mx_policy(),
            self.readsocket().display(),
            self.dns.address(),
        );
        for key in &self.keys {
            let path = quoted(self.key_file(key));
            let _ = write!(text, "[[report.dkim]]\nselector = \"{}\"\nkey = {path}\n\n", key.selector);
        }
        let clock = clock.map(|clock| format!("clock = \"{clock}\"\n")).unwrap_or_default();
        let (log, mta) = match self.options.exim {
            false => (self.log(), "postfix"),
            true => (crate::exim::log(self.folder()), "exim"),
        };
        let _ = write!(
            text,
            "[closed_network]\nextra_root = {}\npolicy_hosts = \"{}\"\nprivate_addresses = true\n{clock}\n\
             [[input]]\nfile = {}\nmta = \"{mta}\"\ntimezone = \"UTC\"\n{native}",
            quoted(self.ca_file()),
            self.policy_hosts.address(),
            quoted(log),
        );
        fs::write(self.config(), text)
    }

    /// The daemon's folder below Postfix's queue directory.
    pub fn in_chroot(&self) -> PathBuf {
        self.folder().join("postfix/queue/tlswarden")
    }

    /// Whether Postfix is to send TLSRPT datagrams.
    pub fn is_native(&self) -> bool {
        self.options.native
    }

    fn key_file(&self, key: &Key) -> PathBuf {
        self.folder().join(format!("{}.pem", key.selector))
    }

    fn write_files(&self) -> std::io::Result<()> {
        // Other users of the host, such as Postfix's, must reach the socket and the CA file.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(self.folder(), open)?;
        fs::write(self.ca_file(), self.authority.pem())?;
        for key in &self.keys {
            fs::write(self.key_file(key), &key.pem)?;
            fs::set_permissions(self.key_file(key), std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        }
        self.configure(None)
    }

    fn publish_sender(&self) {
        let mut zone = self.dns.change();
        for key in &self.keys {
            zone.txt(&format!("{}._domainkey.{SENDER}", key.selector), &key.record);
        }
        for apex in ["test", SENDER] {
            zone.cut(apex, false);
        }
    }

    /// Gives a host its address, its records and, where servers run, its server.
    async fn open(&mut self, domain: &Domain, rank: usize, host: &Host, number: usize) -> Result<(), String> {
        let last = u8::try_from(number).ok().filter(|_| number <= MAX_HOSTS).ok_or("too many MX hosts")?;
        let address = IpAddr::V4(Ipv4Addr::new(127, 0, 1, last));
        let fault = match host.server {
            Server::Faulty(fault) => Some(fault),
            Server::Sound | Server::Plain | Server::Refuses | Server::HangsUp | Server::Says(_) | Server::Stalls => {
                None
            }
        };
        let identity: Identity = self.authority.certify(&host.name, fault).map_err(|e| e.to_string())?;
        {
            let mut zone = self.dns.change();
            let preference = u16::try_from(10 * (rank + 1)).unwrap_or(u16::MAX);
            zone.mx(&domain.name, preference, &host.name);
            zone.address(&host.name, address);
            match host.tlsa {
                Some(Tlsa::Matching) => zone.tlsa(&host.name, 3, 1, 1, &identity.tlsa_3_1_1()),
                Some(Tlsa::Mismatching) => zone.tlsa(&host.name, 3, 1, 1, &[0xAA; 32]),
                None => {}
            }
        }
        let Some(port) = self.options.receivers else { return Ok(()) };
        let kind = match host.server {
            Server::Sound | Server::Faulty(_) => Kind::Tls(identity),
            Server::Plain => Kind::Plain,
            Server::Refuses => Kind::Refuses,
            Server::HangsUp => Kind::HangsUp,
            Server::Says(octets) => Kind::Says(octets),
            Server::Stalls => Kind::Stalls,
        };
        let sink = Sink::start(&host.name, SocketAddr::new(address, port), kind)
            .await
            .map_err(|e| format!("{} on {address}:{port}: {e}", host.name))?;
        self.receivers.insert(host.name.clone(), sink);
        Ok(())
    }

    /// Publishes what a domain says about TLS and reports.
    fn publish(&self, domain: &Domain) -> Result<(), String> {
        let name = &domain.name;
        {
            let mut zone = self.dns.change();
            zone.cut(name, domain.signed);
            if let Some(address) = &domain.reports_to {
                zone.txt(&format!("_smtp._tls.{name}"), &format!("v=TLSRPTv1; rua=mailto:{address}"));
            }
            if domain.policy.is_some() {
                zone.txt(&format!("_mta-sts.{name}"), "v=STSv1; id=20261101T000000;");
                zone.address(&format!("mta-sts.{name}"), self.policy_hosts.address().ip());
            }
        }
        if let Some(policy) = &domain.policy {
            let host = format!("mta-sts.{name}");
            let identity = self.authority.certify(&host, policy.fault).map_err(|e| e.to_string())?;
            let answer = policy.answer.clone().unwrap_or_else(|| Answer::Document(policy.document.clone()));
            self.policy_hosts.set(name, Site { identity, answer });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_described_world_is_published_and_configured() {
        let domains = [
            Domain::new("a.test").host("mx", Server::Sound).sts("enforce", "mx").reports_to("tlsrpt@a.test"),
            Domain::new("d.example").signed().dane_host("mx", Server::Faulty(Fault::SelfSigned), Tlsa::Matching),
        ];
        let options = Options { receivers: Some(0), ..Options::default() };
        let world = World::start(options, &domains).await.unwrap();
        let text = |name: &str| world.dns.zone().text(name).unwrap();
        assert_eq!(text("_smtp._tls.a.test"), "v=TLSRPTv1; rua=mailto:tlsrpt@a.test");
        assert!(text("lab-rsa._domainkey.sender.test").contains("k=rsa"));
        crate::smtp::submit(world.receiver("mx.a.test").address(), "s@b.test", &["u@a.test"], "x").await.unwrap();
        assert_eq!(world.receiver("mx.a.test").record().mail.len(), 1);
        for clock in [None, Some("2026-11-22T01:38:50Z")] {
            world.configure(clock).unwrap();
            let config = tlswarden::config::Config::load(&world.config()).unwrap();
            assert_eq!(config.resolver.address, Some(world.dns.address()));
            assert_eq!(config.report.dkim.keys().len(), 2);
            assert_eq!(config.closed_network.clock.map(|c| c.to_string()).as_deref(), clock);
        }
    }
}
