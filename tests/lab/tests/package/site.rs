//! A machine with an MTA, and the world that it sends into: what every test of the package does with them.
//!
//! Takes: an installed release. Gives: a booted [`Site`]; what is done to it is said with the time that it took.
//! When it fails: a panic with the ends of the mail log and of the journal.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lab::ca::Fault;
use lab::host::{self, today};
use lab::machine::Machine;
use lab::postfix::{Installation, Postfix};
use lab::report::{self, Totals};
use lab::smtp::submit;
use lab::world::{Domain, Options, SENDER, Server, Tlsa, World};

/// How long whatever is waited for may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where Postfix asks.
pub(crate) const SOCKET: &str = "/var/spool/postfix/tlswarden/socketmap";

/// The domains of the world that mail is sent to.
const DOMAINS: [&str; 3] = ["flow.test", "bad.test", "dane.example"];

/// A machine and its world.
#[derive(Clone)]
pub(crate) struct Site {
    pub world: Arc<World>,
    pub machine: Arc<Machine>,
    pub installation: Installation,
    begin: Instant,
}

impl Site {
    /// Boots it. `room` is what the test may take.
    pub(crate) async fn boot(installation: &Installation, room: Duration) -> Site {
        host::wait_for_room_before_midnight(room);
        let begin = Instant::now();
        let at = |name: &str| Domain::new(name).reports_to("tlsrpt@reports.test");
        let domains = [
            at("flow.test").host("mx", Server::Sound).sts("enforce", "mx"),
            at("bad.test").host("mx", Server::Faulty(Fault::SelfSigned)).sts("enforce", "mx"),
            at("dane.example").signed().dane_host("mx", Server::Faulty(Fault::SelfSigned), Tlsa::Matching),
            Domain::new("reports.test").host("mx", Server::Sound),
        ];
        let options = Options { submission: Some(Postfix::SMTPD), ..Options::on_standard_ports() };
        let world = World::start(options, &domains).await.unwrap();
        {
            let mut zone = world.dns.change();
            zone.txt(SENDER, "v=spf1 mx -all");
            zone.txt(&format!("_smtp._tls.{SENDER}"), "v=TLSRPTv1; rua=mailto:tlsrpt@sender.test");
        }
        let machine = Machine::boot(installation.root()).unwrap();
        fs::copy(world.ca_file(), machine.path("/usr/local/share/ca-certificates/lab.crt")).unwrap();
        machine.run("update-ca-certificates").unwrap();
        fs::copy(package(), machine.path("/root/tlswarden.deb")).unwrap();
        let (world, machine) = (Arc::new(world), Arc::new(machine));
        let site = Site { world, machine, installation: installation.clone(), begin };
        let systemd = site.run("systemctl --version | head -n 1");
        site.say(&format!("booted, {}", systemd.trim()));
        site
    }

    /// Says what was done, where and when.
    pub(crate) fn say(&self, what: &str) {
        let release = self.installation.root().file_name().unwrap_or_default().to_string_lossy();
        println!("{:>6.1} s  {release:8}  {what}", self.begin.elapsed().as_secs_f32());
    }

    /// Runs a shell command as root on the machine, which must go well; what it printed.
    pub(crate) fn run(&self, command: &str) -> String {
        self.machine.run(command).unwrap_or_else(|e| panic!("{e}"))
    }

    /// The release's Postfix as Debian sets it up, with the world's network and nothing about TLS policies.
    pub(crate) fn set_up_postfix(&self) {
        let main_cf = "compatibility_level = 3.6\nmyhostname = mta.sender.test\nmydestination =\nlocal_recipient_maps =\n\
                       alias_maps =\nalias_database =\nmynetworks = 127.0.0.0/8\ninet_interfaces = 127.0.0.1\n\
                       inet_protocols = ipv4\nnotify_classes =\nsmtpd_tls_security_level = none\n\
                       # The recipients of a flow are of one domain.\ndefault_destination_recipient_limit = 1\n";
        fs::write(self.machine.path("/etc/postfix/main.cf"), main_cf).unwrap();
        self.run("systemctl restart postfix");
    }

    /// Installs the package; what it printed.
    pub(crate) fn install(&self) -> String {
        let printed = self.run("apt-get install --yes /root/tlswarden.deb 2>&1");
        self.say(&format!("apt-get install {}", package().file_name().unwrap().to_string_lossy()));
        printed
    }

    /// Puts into main.cf what the package has printed, and nothing else.
    pub(crate) fn take_the_lines(&self, printed: &str) {
        let lines: Vec<&str> =
            printed.lines().map(str::trim).filter(|line| line.starts_with("smtp_") && line.contains(" = ")).collect();
        assert_eq!(lines.len(), 5, "{printed}");
        assert!(lines[0].ends_with(self.installation.map()), "{printed}");
        for line in lines {
            self.run(&format!("postconf -e '{line}'"));
        }
        self.run("systemctl reload postfix");
    }

    /// Waits until the daemon has said something, in its log.
    pub(crate) async fn said(&self, wanted: &str) {
        self.eventually(wanted, || self.daemon_log().contains(wanted)).await;
    }

    pub(crate) fn daemon_log(&self) -> String {
        self.run("journalctl --no-pager -o cat -u tlswarden")
    }

    /// Adds to sections of the configuration, and restarts the daemon; the shipped file has each section.
    pub(crate) fn configure(&self, sections: &[(&str, &str)]) {
        let file = self.machine.path("/etc/tlswarden/tlswarden.toml");
        let mut all = fs::read_to_string(&file).unwrap();
        for (section, text) in sections {
            let head = format!("\n[{section}]\n");
            assert!(all.contains(&head), "{head} is not in {all}");
            all = all.replacen(&head, &format!("{head}{text}"), 1);
        }
        fs::write(&file, all).unwrap();
        self.run("tlswarden check-config >/dev/null && systemctl restart tlswarden");
    }

    /// What a world without the Internet needs.
    pub(crate) fn close_network(&self) {
        self.run("printf '\\n[closed_network]\\nprivate_addresses = true\\n' >>/etc/tlswarden/tlswarden.toml");
        self.configure(&[("resolver", "address = \"127.0.0.1:53\"\n")]);
    }

    /// One message, handed to Postfix.
    pub(crate) async fn send(&self, domain: &str, name: &str) {
        let to = format!("{name}@{domain}");
        submit(Postfix::SMTPD, "someone@sender.test", &[&to], "Subject: hello\n\nhello").await.unwrap();
    }

    /// What Postfix has logged.
    pub(crate) fn log(&self) -> String {
        match fs::read(self.machine.path("/var/log/mail.log")) {
            Ok(octets) => String::from_utf8_lossy(&octets).into_owned(),
            Err(_) => self.run("journalctl --no-pager -o short SYSLOG_FACILITY=2"),
        }
    }

    /// Sends one message to each domain, and holds what becomes of it to the policies.
    pub(crate) async fn policies_hold(&self, name: &str) {
        let before = self.log().len();
        for (domain, status) in [("flow.test", "sent"), ("dane.example", "sent"), ("bad.test", "deferred")] {
            self.send(domain, name).await;
            let line =
                || self.log().lines().find(|line| line.contains(&format!("to=<{name}@{domain}>"))).map(str::to_owned);
            self.eventually(&format!("a delivery to {domain}"), || line().is_some()).await;
            let line = line().unwrap();
            assert!(line.contains(&format!("status={status} ")), "{line}");
        }
        let log = self.log();
        for host in ["mx.flow.test", "mx.dane.example"] {
            assert!(log[before..].contains(&format!("Verified TLS connection established to {host}[")), "{log}");
        }
        assert_eq!(self.world.receiver("mx.bad.test").record().sessions_with_mail(), 0);
    }

    pub(crate) async fn eventually(&self, what: &str, done: impl Fn() -> bool) {
        let begin = Instant::now();
        while !done() {
            assert!(begin.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}\n{}", self.ends());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn ends(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        format!("{}\n{}", lines[lines.len().saturating_sub(30)..].join("\n"), self.machine.journal())
    }

    /// What the daemon has counted on a day, by domain.
    pub(crate) fn counted(&self, day: &str) -> BTreeMap<String, Totals> {
        self.run(&format!("rm -rf /tmp/reports; tlswarden reports preview --day {day} --out /tmp/reports"));
        let mut totals = BTreeMap::new();
        for file in fs::read_dir(self.machine.path("/tmp/reports")).into_iter().flatten() {
            let path = file.unwrap().path();
            let domain = path.file_name().unwrap().to_string_lossy().split('!').nth(1).unwrap().to_owned();
            if !DOMAINS.contains(&&*domain) {
                // About the MX host of one of them: the same sessions.
                continue;
            }
            let mut text = String::new();
            flate2::read::GzDecoder::new(&fs::read(&path).unwrap()[..]).read_to_string(&mut text).unwrap();
            totals.insert(domain, report::totals(&serde_json::from_str(&text).unwrap()));
        }
        totals
    }

    /// Waits until today's counts are what the receiving servers saw.
    pub(crate) async fn await_counts(&self) {
        let wanted = |domain: &str| {
            let record = self.world.receiver(&format!("mx.{domain}")).record();
            (record.sessions_with_mail(), record.sessions_without_mail())
        };
        let begin = Instant::now();
        loop {
            let counted = self.counted(&today());
            let of =
                |domain: &str| counted.get(domain).map(|totals| (totals.successful, totals.failed)).unwrap_or_default();
            let all = DOMAINS.map(|domain| (domain, of(domain), wanted(domain)));
            if all.iter().all(|(_, counted, wanted)| counted == wanted) {
                return;
            }
            assert!(begin.elapsed() < PATIENCE, "(counted), (seen): {all:?}\n{}", self.ends());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// What `tlswarden doctor` finds: `weight name` each. It must be this.
    pub(crate) fn doctor_finds(&self, wanted: &[&str]) {
        self.finds("tlswarden doctor --json", wanted);
    }

    /// The same of `doctor` for somebody who may not ask the daemon nor read the log.
    pub(crate) fn doctor_finds_for_anybody(&self, wanted: &[&str]) {
        self.finds("setpriv --reuid=nobody --regid=nogroup --clear-groups tlswarden doctor --json", wanted);
    }

    fn finds(&self, doctor: &str, wanted: &[&str]) {
        let json = self.machine.output(doctor).1;
        let found: tlswarden::checking::finding::Findings =
            serde_json::from_str(&json).unwrap_or_else(|e| panic!("{e}: {json}"));
        let names: Vec<String> =
            found.findings.iter().map(|f| format!("{} {}", f.severity.to_string().to_lowercase(), f.name)).collect();
        println!("{found}");
        assert_eq!(names, wanted);
    }

    /// Nothing of the package is there.
    pub(crate) fn nothing_is_left(&self) {
        let found = self.run(
            "find / /run -xdev -not -path '/proc/*' -not -path '/root/*' -not -path '/tmp/*' -iname '*tlswarden*'",
        );
        assert_eq!(found, "");
        for database in ["passwd", "group"] {
            assert!(!self.machine.output(&format!("getent {database} tlswarden")).0);
        }
        assert!(!self.run("systemctl list-units --all --no-pager --plain --no-legend").contains("tlswarden"));
    }
}

/// The package, newest version.
pub(crate) fn package() -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/debian");
    let all: Vec<_> =
        fs::read_dir(&folder).map(|files| files.flatten().map(|file| file.path()).collect()).unwrap_or_default();
    let newest = all.into_iter().filter(|path| path.extension().is_some_and(|end| end == "deb")).max();
    newest.unwrap_or_else(|| panic!("no package in {}; make it with: packaging/deb", folder.display()))
}
