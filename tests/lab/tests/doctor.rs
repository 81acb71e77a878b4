//! `tlswarden doctor` on a healthy host, and on hosts that are broken in one way each: it names that, and nothing else.
//!
//! The MTAs are real: this host's Postfix, a newer one in a chroot (`tests/chroot trixie`), and Exim
//! (`tests/lab/unpack-exim`). Where Postfix is what is broken, the line that doctor gives is typed, and mends it.
//! Needs root, for namespaces of the test's own.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use hickory_proto::rr::RecordType;
use lab::daemon::{Daemon, Program};
use lab::dns::Fault;
use lab::exim::{self, Exim};
use lab::host;
use lab::postfix::{Installation, Postfix};
use lab::smtp::submit;
use lab::world::{Domain, Options, SENDER, Server, Tlsa, World};
use tlswarden::checking::finding::{Finding, Findings};

/// What stands for the host: its world, and where its Postfix is configured.
struct Host {
    world: World,
    /// `--postfix-config DIR` or what Exim needs, and the name of the configuration copy that is broken.
    mta: Vec<OsString>,
    /// Before the path of this process: where `postconf` is another's.
    path: Option<PathBuf>,
    rows: String,
    faults: Vec<String>,
}

/// What doctor said.
struct Said {
    status: i32,
    found: Findings,
}

impl Said {
    /// `weight name` of each finding, the heaviest first.
    fn names(&self) -> Vec<String> {
        let name = |f: &Finding| format!("{} {}", f.severity.to_string().to_lowercase(), f.name);
        self.found.findings.iter().map(name).collect()
    }

    /// The lines that mend, and begin with this word.
    fn lines(&self, word: &str) -> Vec<String> {
        let lines = self.found.findings.iter().flat_map(|finding| &finding.fix);
        lines.filter(|line| line.starts_with(word)).cloned().collect()
    }
}

impl Host {
    fn new(world: World, mta: Vec<OsString>) -> Host {
        Host { world, mta, path: None, rows: String::new(), faults: Vec::new() }
    }

    fn doctor(&self, config: &Path) -> Said {
        self.doctor_of(config, &self.mta, &[])
    }

    fn doctor_of(&self, config: &Path, mta: &[OsString], more: &[&str]) -> Said {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lab"));
        command.args(["daemon", "doctor", "--json", "--config"]).arg(config).args(mta).args(more);
        let output = self.with_path(&mut command).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        let found = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {errors}"));
        Said { status: output.status.code().unwrap(), found }
    }

    fn with_path<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        if let Some(first) = &self.path {
            let rest = std::env::var("PATH").unwrap_or_default();
            command.env("PATH", format!("{}:{rest}", first.display()));
        }
        command
    }

    /// Holds what was said to what is broken: `wanted`, and nothing else.
    fn hold(&mut self, what: &str, said: &Said, wanted: &[&str]) {
        let status = match wanted.first().map(|first| first.split(' ').next().unwrap()) {
            Some("error") => 2,
            Some("warning") => 1,
            _ => 0,
        };
        let _ = writeln!(self.rows, "{what:62} {}  {}", said.status, said.names().join(", "));
        for finding in &said.found.findings {
            let _ = writeln!(self.rows, "     {}: {}", finding.subject, finding.problem);
        }
        if said.names() != wanted || said.status != status {
            self.faults.push(format!("{what}: wanted {status} {wanted:?}, and it said:\n{}", said.found));
        }
    }

    /// A Postfix that is broken by these `postconf` arguments, and mended by the lines that doctor gives.
    fn postfix(&mut self, what: &str, breaks: &[&[&str]], wanted: &[&str]) {
        let config = self.world.config();
        self.postfix_and(what, breaks, &config, wanted);
    }

    fn postfix_and(&mut self, what: &str, breaks: &[&[&str]], config: &Path, wanted: &[&str]) {
        let sound = PathBuf::from(&self.mta[1]);
        let broken = self.world.folder().join("broken");
        let _ = fs::remove_dir_all(&broken);
        copy(&sound, &broken);
        for arguments in breaks {
            let mut command = Command::new("postconf");
            let done = self.with_path(command.arg("-c").arg(&broken).args(*arguments)).output().unwrap();
            assert!(done.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
        }
        cool_down(&broken);
        let mta = ["--postfix-config".into(), broken.clone().into_os_string()];
        let said = self.doctor_of(config, &mta, &[]);
        self.hold(what, &said, wanted);
        let lines = said.lines("postconf");
        for line in &lines {
            // This copy does not run, and cannot be reloaded.
            let line = line.split(" && ").next().unwrap();
            let done = self.with_path(Command::new("sh").args(["-c", line])).output().unwrap();
            assert!(done.status.success(), "{line}: {}", String::from_utf8_lossy(&done.stderr));
        }
        cool_down(&broken);
        // Where ours has to be changed too, the other half is left.
        if !lines.is_empty() && said.lines("tlswarden.toml").is_empty() {
            let after = self.doctor_of(config, &mta, &[]);
            if !after.names().is_empty() {
                self.faults.push(format!("{what}: after {lines:#?}:\n{}", after.found));
            }
        }
    }

    /// A configuration of ours in which one text is another.
    fn config(&mut self, what: &str, replaced: &[(&str, &str)], wanted: &[&str]) {
        let path = self.edited(replaced);
        let said = self.doctor(&path);
        self.hold(what, &said, wanted);
    }

    fn edited(&self, replaced: &[(&str, &str)]) -> PathBuf {
        let mut text = fs::read_to_string(self.world.config()).unwrap();
        for (from, to) in replaced {
            assert!(text.contains(from), "{from} is not in\n{text}");
            text = text.replace(from, to);
        }
        let path = self.world.folder().join("broken.toml");
        fs::write(&path, text).unwrap();
        path
    }

    /// Something of the host or its world.
    fn host(&mut self, what: &str, break_it: impl FnOnce(&World), mend: impl FnOnce(&World), wanted: &[&str]) {
        break_it(&self.world);
        let said = self.doctor(&self.world.config());
        mend(&self.world);
        self.hold(what, &said, wanted);
    }

    fn end(self) {
        println!("{}", self.rows);
        assert!(self.faults.is_empty(), "{}", self.faults.join("\n"));
    }
}

/// Copies Postfix's configuration into a folder that is not there yet.
fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for file in ["main.cf", "master.cf"] {
        fs::copy(from.join(file), to.join(file)).unwrap();
    }
    cool_down(to);
}

/// Postfix reads no file that was changed within the last two seconds: it waits. These are old.
fn cool_down(folder: &Path) {
    for file in ["main.cf", "master.cf"] {
        let file = fs::File::options().append(true).open(folder.join(file)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(60)).unwrap();
    }
}

fn options(installation: Option<&Installation>) -> Options {
    Options {
        submission: installation.map(|_| Postfix::SMTPD),
        exim: installation.is_none(),
        postfix: installation.map_or_else(|| "3.7".into(), Installation::short_version),
        ..Options::on_standard_ports()
    }
}

async fn start(installation: Option<&Installation>) -> World {
    let domains = [
        Domain::new("good.test").host("mx", Server::Sound).sts("enforce", "mx"),
        Domain::new("dane.example").signed().dane_host("mx", Server::Sound, Tlsa::Matching),
    ];
    let world = World::start(options(installation), &domains).await.unwrap();
    publish_sender(&world);
    world
}

fn publish_sender(world: &World) {
    let mut zone = world.dns.change();
    zone.txt(SENDER, "v=spf1 mx -all");
    zone.txt(&format!("_smtp._tls.{SENDER}"), "v=TLSRPTv1; rua=mailto:tlsrpt@sender.test");
}

/// Runs `test_body` in a host of its own.
fn inside<F: Future<Output = ()>>(test: &str, test_body: impl FnOnce() -> F) {
    match host::inside() {
        Some(_) => tokio::runtime::Runtime::new().unwrap().block_on(test_body()),
        None => host::run_inside(test, "all").unwrap_or_else(|e| panic!("{e}")),
    }
}

#[test]
fn postfix_and_its_host() {
    inside("postfix_and_its_host", play_postfix);
}

async fn play_postfix() {
    let installation = Installation::of_this_host().unwrap();
    let world = start(Some(&installation)).await;
    let program = Program::lab(env!("CARGO_BIN_EXE_lab"));
    let mut daemon = Daemon::start(&program, &world).await.unwrap();
    let postfix = Postfix::start(&world, &installation, "may").unwrap();
    let mta = vec!["--postfix-config".into(), postfix.folder().as_os_str().to_owned()];
    let mut host = Host::new(world, mta);

    // The transport of reports, from packaging/postfix.example.
    postfix.postconf(&["-M", "tlswarden/unix=tlswarden unix - - n - - smtp"]).unwrap();
    postfix
        .postconf(&["-P", "tlswarden/unix/smtp_tls_security_level=may", "tlswarden/unix/smtp_tls_policy_maps="])
        .unwrap();
    let transport = "sender_dependent_default_transport_maps = inline:{ { tlsrpt@sender.test = tlswarden: } }";
    postfix.postconf(&["-e", transport]).unwrap();

    // First a host whose Postfix was never told to ask.
    postfix.postconf(&["-X", "smtp_tls_policy_maps"]).unwrap();
    deliver(&host.world, &postfix, "unasked@good.test").await;
    let begin = Instant::now();
    let said = loop {
        let said = host.doctor(&host.world.config());
        if said.names().len() > 1 || begin.elapsed() > Duration::from_secs(20) {
            break said;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    host.hold("delivered, and Postfix was never told to ask", &said, &["error never-asked", "error not-asked"]);

    daemon.stop().await.unwrap();
    daemon = Daemon::start(&program, &host.world).await.unwrap();
    postfix
        .postconf(&[
            "-e",
            &format!("smtp_tls_policy_maps = socketmap:unix:{}:policy", host.world.socketmap().display()),
        ])
        .unwrap();
    deliver(&host.world, &postfix, "asked@good.test").await;
    let said = host.doctor(&host.world.config());
    host.hold("a healthy host", &said, &[]);
    println!("{}", said.found);
    assert!(said.found.to_string().contains("about good.test"), "{}", said.found);

    // Postfix asks for the AD bit by itself (RES_TRUSTAD), so that its doctor does not miss the option.
    fs::write("/etc/resolv.conf", "nameserver 127.0.0.1\n").unwrap();
    deliver(&host.world, &postfix, "signed@dane.example").await;
    let log = fs::read_to_string(host.world.log()).unwrap();
    assert!(log.contains("Verified TLS connection established to mx.dane.example["), "{log}");
    let said = host.doctor(&host.world.config());
    host.hold("no `options trust-ad`, which Postfix does not need", &said, &[]);

    postfix_is_broken(&mut host);
    our_configuration_is_broken(&mut host);
    the_host_is_broken(&mut host);
    the_reporter_is_broken(&mut host);
    let said = host.doctor(&host.world.config());
    host.hold("mended again", &said, &[]);
    daemon.stop().await.unwrap();
    let said = host.doctor(&host.world.config());
    host.hold("no daemon", &said, &["error daemon-down"]);
    drop(postfix);
    host.end();
}

/// One message, delivered.
async fn deliver(world: &World, postfix: &Postfix, to: &str) {
    submit(Postfix::SMTPD, "someone@sender.test", &[to], "Subject: hello\n\nhello").await.unwrap();
    let line = postfix.await_delivery(to, 0).unwrap();
    assert!(line.contains("status=sent "), "{line}; {}", world.folder().display());
}

fn postfix_is_broken(host: &mut Host) {
    let socket = host.world.socketmap().display().to_string();
    let table = format!("socketmap:unix:{socket}:policy");
    let maps = |tables: &str| format!("smtp_tls_policy_maps = {tables}");

    host.postfix("Postfix asks nobody", &[&["-X", "smtp_tls_policy_maps"]], &["error not-asked"]);
    host.postfix(
        "Postfix asks at another path",
        &[&["-e", &maps("socketmap:unix:tlswarden/socketmap:policy")]],
        &["error socket-elsewhere"],
    );
    host.postfix(
        "smtp(8) is chrooted, and the socket outside",
        &[&["-F", "smtp/unix/chroot=y"]],
        &["error socket-elsewhere"],
    );
    host.postfix(
        "the map's name is wrong",
        &[&["-e", &maps(&table.replace(":policy", ":polcy"))]],
        &["error map-unknown"],
    );
    host.postfix(
        "attributes for a Postfix that is told right",
        &[&["-e", &maps(&table.replace(":policy", ":policy-tlsrpt"))]],
        &["warning attributes-unused"],
    );
    let newer = host.edited(&[("version = \"3.7\"", "version = \"3.10\"")]);
    host.postfix_and(
        "attributes, [postfix] version = 3.10, Postfix 3.7",
        &[&["-e", &maps(&table.replace(":policy", ":policy-tlsrpt"))]],
        &newer,
        &["error attributes-unknown"],
    );
    host.postfix(
        "another policy server before ours",
        &[&["-e", &maps(&format!("socketmap:inet:127.0.0.1:8642:QUERY, {table}"))]],
        &["warning map-before"],
    );
    host.postfix(
        "a table before ours that answers for all",
        &[&["-e", &maps(&format!("static:may, {table}"))]],
        &["error map-before"],
    );
    host.postfix("smtp_tls_loglevel = 0", &[&["-e", "smtp_tls_loglevel = 0"]], &["error log-level"]);
    host.postfix(
        "smtp_tls_loglevel = 0 in master.cf, service relay",
        &[&["-M", "relay/unix=relay unix - - n - - smtp -o smtp_tls_loglevel=0"]],
        &["error log-level"],
    );
    host.postfix(
        "a service with another level in master.cf",
        &[&["-M", "relay/unix=relay unix - - n - - smtp -o smtp_tls_security_level=encrypt"]],
        &["error service-level"],
    );
    host.postfix(
        "the same, asking with a level that Postfix does not have",
        &[&[
            "-M",
            &format!(
                "relay/unix=relay unix - - n - - smtp -o smtp_tls_security_level=encrypt -o smtp_tls_policy_maps={table}@encrpyt"
            ),
        ]],
        &["error level-unknown"],
    );
    host.postfix("smtp_tls_loglevel = 2", &[&["-e", "smtp_tls_loglevel = 2"]], &["warning log-level-high"]);
    host.postfix("smtp_dns_support_level is not dnssec", &[&["-X", "smtp_dns_support_level"]], &["error no-dnssec"]);
    host.postfix(
        "search lists in smtp_dns_resolver_options",
        &[&["-e", "smtp_dns_resolver_options = res_defnames"]],
        &["error dane-impossible"],
    );
    host.postfix("no roots", &[&["-X", "smtp_tls_CAfile"]], &["error no-roots"]);
    host.postfix(
        "a file of roots that is not there",
        &[&["-e", "smtp_tls_CAfile = /nonexistent.pem"]],
        &["error no-roots"],
    );
    host.postfix(
        "DANE under unsigned MX records as the daemon is not told",
        &[&["-e", "smtp_tls_dane_insecure_mx_policy = dane"]],
        &["warning insecure-mx"],
    );
    let told = host.edited(&[("default_level = \"may\"", "default_level = \"none\"")]);
    host.postfix_and(
        "smtp_tls_security_level = none",
        &[&["-e", "smtp_tls_security_level = none"]],
        &told,
        &["warning level-none"],
    );
    host.postfix(
        "the log is written to another file",
        &[&["-e", &format!("maillog_file = {}/other.log", host.world.folder().display())]],
        &["error log-elsewhere"],
    );
    host.postfix(
        "connection reuse, and tlsproxy(8) does not log",
        &[&["-e", "smtp_tls_connection_reuse = yes", "tlsproxy_client_loglevel = 0"]],
        &["warning tlsproxy-log-level"],
    );
    host.postfix("a relay host, and reports", &[&["-e", "relayhost = [mx.good.test]"]], &["warning relayhost"]);
    host.postfix(
        "a relay host for each sender",
        &[&["-e", "sender_dependent_relayhost_maps = static:[mx.good.test]"]],
        &["warning relay-by-sender"],
    );
    host.postfix(
        "some domains are sent elsewhere",
        &[&["-e", "transport_maps = static:smtp:[mx.good.test]"]],
        &["note relay-by-domain"],
    );
    host.postfix(
        "no transport for reports about broken TLS",
        &[&["-X", "sender_dependent_default_transport_maps"], &["-MX", "tlswarden/unix"]],
        &["warning no-report-transport"],
    );
    // What an input instance does: everything goes to a content filter.
    host.postfix(
        "all mail goes to a filter on this host, and no policy is asked for",
        &[&["-e", "relayhost = [127.0.0.1]:10025"], &["-X", "smtp_tls_policy_maps"]],
        &[],
    );
    a_second_instance(host);
    a_chroot(host);
}

/// As Debian has it: smtp(8) chrooted in the queue directory, and the socket below that.
fn a_chroot(host: &mut Host) {
    let root = host.world.folder().to_owned();
    let queue = format!("queue_directory = {}", root.display());
    let chrooted: [&[&str]; 2] =
        [&["-e", &queue, "smtp_tls_policy_maps = socketmap:unix:socketmap:policy"], &["-F", "smtp/unix/chroot=y"]];
    host.postfix("smtp(8) chrooted above the socket", &chrooted, &[]);
    let ca_path: &[&str] = &["-e", "smtp_tls_CAfile =", "smtp_tls_CApath = /certs"];
    let chrooted_too = [chrooted[0], chrooted[1], ca_path];
    host.postfix("the same, and no roots in the chroot (smtp_tls_CApath)", &chrooted_too, &["error no-roots"]);
    fs::create_dir_all(root.join("certs")).unwrap();
    fs::write(root.join("certs/0a1b2c3d.0"), "").unwrap();
    host.postfix("the same, with roots in the chroot", &chrooted_too, &[]);
    fs::create_dir_all(root.join("etc")).unwrap();
    fs::write(root.join("etc/resolv.conf"), "nameserver 192.0.2.53\n").unwrap();
    host.postfix("a nameserver on another host in the chroot's resolv.conf", &chrooted, &["error nameserver-remote"]);
    fs::remove_file(root.join("etc/resolv.conf")).unwrap();
}

/// The first instance is healthy, and names a second one that is not.
fn a_second_instance(host: &mut Host) {
    let (sound, second) = (PathBuf::from(&host.mta[1]), host.world.folder().join("second"));
    copy(&sound, &second);
    let edit = |folder: &Path, line: &str| {
        let done = Command::new("postconf").arg("-c").arg(folder).args(["-e", line]).status().unwrap();
        assert!(done.success());
    };
    edit(&second, "smtp_tls_loglevel = 0");
    edit(&second, "multi_instance_enable = yes");
    cool_down(&second);
    host.postfix(
        "a second instance with smtp_tls_loglevel = 0",
        &[&["-e", &format!("multi_instance_directories = {}", second.display())]],
        &["error log-level"],
    );
}

fn our_configuration_is_broken(host: &mut Host) {
    host.config("[postfix] version = 3.9", &[("version = \"3.7\"", "version = \"3.9\"")], &["warning version-differs"]);
    host.config(
        "[postfix] default_level = dane",
        &[("default_level = \"may\"", "default_level = \"dane\"")],
        &["warning level-differs"],
    );
    host.config("[postfix] dnssec = false", &[("dnssec = true", "dnssec = false")], &["warning dnssec-unused"]);
    host.config("an option that is none", &[("[socketmap]", "[socketmap]\nlisten_on = 1")], &["error config"]);
    let log = host.world.log().display().to_string();
    host.config(
        "a log that does not exist",
        &[(&log, "/nonexistent/mail.log")],
        &["error log-missing", "error log-elsewhere"],
    );
    host.config(
        "reports without an organization",
        &[("organization = \"Closed World\"\n", "")],
        &["warning no-identity"],
    );
}

fn the_host_is_broken(host: &mut Host) {
    let mode = |path: &Path, mode: u32| fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    host.host(
        "the socket's folder is closed to Postfix's user",
        |world| mode(world.folder(), 0o700),
        |world| mode(world.folder(), 0o755),
        &["error socket-denied"],
    );
    host.host(
        "the socket is closed to Postfix's user",
        |world| mode(&world.socketmap(), 0o600),
        |world| mode(&world.socketmap(), 0o666),
        &["error socket-denied"],
    );
    let owner =
        |path: &Path, owner: &str| assert!(Command::new("chown").arg(owner).arg(path).status().unwrap().success());
    host.host(
        "the log is closed to the daemon's user",
        |world| {
            owner(&world.folder().join("store"), "nobody");
            mode(&world.log(), 0o600);
        },
        |world| {
            owner(&world.folder().join("store"), "root");
            mode(&world.log(), 0o644);
        },
        &["error log-denied"],
    );
    host.host(
        "the resolver does not validate",
        |world| world.dns.change().cut(".", false),
        |world| world.dns.change().cut(".", true),
        &["error resolver-not-validating"],
    );
    host.host(
        "the resolver is out of order",
        |world| world.dns.change().outage(Some(Fault::ServFail)),
        |world| world.dns.change().outage(None),
        &["error resolver-dead"],
    );
    let resolv_conf = |text: &'static str| move |_: &World| fs::write("/etc/resolv.conf", text).unwrap();
    host.host(
        "a nameserver on another host",
        resolv_conf("nameserver 127.0.0.1\nnameserver 192.0.2.53\noptions trust-ad edns0\n"),
        resolv_conf("nameserver 127.0.0.1\noptions trust-ad edns0\n"),
        &["error nameserver-remote"],
    );
    let said = host.doctor_of(&host.world.config(), &host.mta, &["--bogus-name", "mx.good.test"]);
    host.hold("the resolver answers about a name that is forged", &said, &["error resolver-accepts-bogus"]);
}

fn the_reporter_is_broken(host: &mut Host) {
    let key = format!("lab-rsa._domainkey.{SENDER}");
    let record = host.world.dns.zone().text(&key).unwrap();
    let other = host.world.keys[1].record.clone();
    let (wanted, name) = (&["error dkim-record"], key.clone());
    host.host(
        "no DKIM record",
        |w| w.dns.change().remove(&key, RecordType::TXT),
        |w| w.dns.change().txt(&name, &record),
        wanted,
    );
    host.host(
        "the DKIM record of another key",
        |w| w.dns.change().txt(&key, &other),
        |w| w.dns.change().txt(&name, &record),
        wanted,
    );
    host.host(
        "the DKIM key is revoked",
        |w| w.dns.change().txt(&key, "v=DKIM1; p="),
        |w| w.dns.change().txt(&name, &record),
        wanted,
    );
    let file = |world: &World, mode: u32| {
        let path = world.folder().join("lab-rsa.pem");
        fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    };
    host.host("the DKIM key is open to all", |w| file(w, 0o644), |w| file(w, 0o600), &["warning dkim-key-open"]);
    host.host("no SPF record", |w| w.dns.change().txt(SENDER, "unrelated"), publish_sender, &["warning spf"]);
    let own = format!("_smtp._tls.{SENDER}");
    host.host(
        "a TLSRPT record without rua",
        |w| w.dns.change().txt(&own, "v=TLSRPTv1;"),
        publish_sender,
        &["warning tlsrpt-record"],
    );
    host.host(
        "no TLSRPT record",
        |w| w.dns.change().remove(&own, RecordType::TXT),
        publish_sender,
        &["note no-tlsrpt"],
    );
}

#[test]
fn a_newer_postfix() {
    inside("a_newer_postfix", play_newer);
}

async fn play_newer() {
    let installation = Installation::of_release("trixie").unwrap();
    let world = start(Some(&installation)).await;
    let program = Program::lab(env!("CARGO_BIN_EXE_lab"));
    let daemon = Daemon::start(&program, &world).await.unwrap();
    let postfix = Postfix::start(&world, &installation, "may").unwrap();
    // The postconf of that release, in its chroot.
    let bin = world.folder().join("bin");
    fs::create_dir(&bin).unwrap();
    let script = format!("#!/bin/sh\nexec chroot {} /usr/sbin/postconf \"$@\"\n", installation.root().display());
    fs::write(bin.join("postconf"), script).unwrap();
    fs::set_permissions(bin.join("postconf"), PermissionsExt::from_mode(0o755)).unwrap();
    let mta = vec!["--postfix-config".into(), postfix.folder().as_os_str().to_owned()];
    let mut host = Host { path: Some(bin), ..Host::new(world, mta) };
    deliver(&host.world, &postfix, "asked@good.test").await;
    let said = host.doctor(&host.world.config());
    host.hold("Postfix makes its log readable for root alone", &said, &["warning log-private"]);
    postfix.postconf(&["-e", "maillog_file_permissions = 0644"]).unwrap();
    let said = host.doctor(&host.world.config());
    host.hold(&format!("a healthy host with Postfix {}", installation.version()), &said, &[]);

    let table = format!("socketmap:unix:{}:policy", host.world.socketmap().display());
    host.postfix(
        "the map without attributes",
        &[&["-e", &format!("smtp_tls_policy_maps = {table}")]],
        &["warning attributes-missing"],
    );
    let socket = postfix.folder().join("queue/run/tlsrpt");
    fs::create_dir_all(socket.parent().unwrap()).unwrap();
    let collector = UnixDatagram::bind(&socket).unwrap();
    host.postfix(
        "another program takes Postfix's own TLSRPT results",
        &[&["-e", "smtp_tlsrpt_enable = yes", "smtp_tlsrpt_socket_name = run/tlsrpt"]],
        &["warning reported-twice"],
    );
    drop(collector);
    datagrams(&mut host);
    host.postfix(
        "MX hosts outside the policy are not skipped",
        &[&["-e", "smtp_tls_enforce_sts_mx_patterns = no"]],
        &["warning patterns-ignored"],
    );
    host.postfix(
        "DANE under unsigned MX records is `may`",
        &[&["-e", "smtp_tls_dane_insecure_mx_policy = may"]],
        &["warning insecure-mx"],
    );
    host.postfix("short answers alone", &[&["-e", "socketmap_max_reply_size = 1000"]], &["warning reply-size"]);
    let encrypt = host.edited(&[("default_level = \"may\"", "default_level = \"encrypt\"")]);
    let said = |host: &Host, config: &Path, level: &str| {
        let folder = host.world.folder().join("level");
        let _ = fs::remove_dir_all(&folder);
        copy(Path::new(&host.mta[1]), &folder);
        let text = fs::read_to_string(folder.join("main.cf")).unwrap();
        let text = text.replace("security_level = may", &format!("security_level = {level}"));
        fs::write(folder.join("main.cf"), text).unwrap();
        cool_down(&folder);
        host.doctor_of(config, &["--postfix-config".into(), folder.into_os_string()], &[])
    };
    let stricter = said(&host, &encrypt, "encrypt");
    host.hold("smtp_tls_security_level = encrypt", &stricter, &[]);
    let weaker = said(&host, &host.world.config(), "encrypt");
    host.hold("the same, and [postfix] default_level = may", &weaker, &["error level-differs"]);
    daemon.stop().await.unwrap();
    drop(postfix);
    host.end();
}

/// What counting from Postfix's datagrams needs.
fn datagrams(host: &mut Host) {
    let ours = host.world.folder().join("datagrams");
    let config = host.edited(&[
        ("tlsrpt = \"log\"", "tlsrpt = \"datagrams\""),
        ("[[input]]", &format!("[[input]]\ndatagrams = \"{}\"\n\n[[input]]", ours.display())),
    ]);
    let name = format!("smtp_tlsrpt_socket_name = {}", ours.display());
    host.postfix_and("datagrams are waited for, and not sent", &[&["-e", &name]], &config, &["error no-datagrams"]);
    host.postfix_and(
        "datagrams are sent elsewhere",
        &[&["-e", "smtp_tlsrpt_enable = yes", "smtp_tlsrpt_socket_name = run/tlsrpt"]],
        &config,
        &["error datagrams-elsewhere"],
    );
    host.postfix_and(
        "datagrams, and smtp_tls_loglevel = 0, which they do not need",
        &[&["-e", "smtp_tlsrpt_enable = yes", &name, "smtp_tls_loglevel = 0"]],
        &config,
        &[],
    );
}

#[test]
fn exim_and_its_host() {
    match host::inside() {
        Some(_) => tokio::runtime::Runtime::new().unwrap().block_on(play_exim()),
        None => host::run_inside("exim_and_its_host", "exim").unwrap_or_else(|e| panic!("{e}")),
    }
}

async fn play_exim() {
    let world = start(None).await;
    let program = Program::lab(env!("CARGO_BIN_EXE_lab"));
    let daemon = Daemon::start(&program, &world).await.unwrap();
    let exim = Exim::new(&world, "7s", "").unwrap();
    let mta = |config: PathBuf| -> Vec<OsString> {
        vec!["--exim".into(), exim::program().unwrap().into(), "--exim-config".into(), config.into()]
    };
    let mut host = Host::new(world, mta(exim.config()));
    exim.submit("someone@sender.test", &["asked@good.test"], "Subject: hello\n\nhello\n").unwrap();
    // The daemon has to find the log that Exim has just made.
    let begin = Instant::now();
    let mut said = host.doctor(&host.world.config());
    while !said.names().is_empty() && begin.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(100));
        said = host.doctor(&host.world.config());
    }
    host.hold(&format!("a healthy host with Exim {}", exim.version().unwrap()), &said, &[]);

    let folder = exim.config().parent().unwrap().to_owned();
    let example = fs::read_to_string(folder.join("exim.example")).unwrap();
    let conf = fs::read_to_string(exim.config()).unwrap();
    for (what, from, to, wanted) in [
        (
            "Exim asks at another path",
            format!("{}", host.world.readsocket().display()),
            "/run/other".to_owned(),
            "error exim-socket",
        ),
        (
            "Exim waits too short",
            "TLSWARDEN_TIMEOUT = 7s".into(),
            "TLSWARDEN_TIMEOUT = 3s".into(),
            "warning exim-timeout",
        ),
        (
            "no router asks",
            "  address_data = ${readsocket".into(),
            "  #address_data = ${readsocket".into(),
            "error exim-not-asked",
        ),
        (
            "TLS is not required",
            "  hosts_require_tls = ${if TLSWARDEN_MUST{*}{TLSWARDEN_OWN_REQUIRE_TLS}}\n".into(),
            String::new(),
            "error exim-transport",
        ),
        (
            "certificates are not checked",
            "  tls_verify_hosts = ${if TLSWARDEN_MUST{*}{TLSWARDEN_OWN_VERIFY}}\n".into(),
            String::new(),
            "error exim-transport",
        ),
        (
            "names in certificates do not matter",
            "tls_verify_cert_hostnames = *".into(),
            "tls_verify_cert_hostnames =".into(),
            "error exim-transport",
        ),
        (
            "hosts outside the policy are taken",
            "  event_action = ".into(),
            "  debug_print = ".into(),
            "error exim-transport",
        ),
        (
            "several domains share a delivery",
            "multi_domain = false".into(),
            "multi_domain = true".into(),
            "error exim-transport",
        ),
        ("connections are used on", "  connection_max_messages = 1\n".into(), String::new(), "warning exim-transport"),
        (
            "Exim does not log what became of TLS",
            "log_selector = ".into(),
            "log_selector = -tls_cipher ".into(),
            "error log-level",
        ),
        ("the daemon is not told where TLS failed", "{TLSWARDEN_TELL}".into(), "{}".into(), "warning exim-not-told"),
        ("Exim logs to another file", "/log/%s\n".into(), "/log/other-%s\n".into(), "error log-elsewhere"),
        ("no DANE", "hosts_try_dane = *".into(), "hosts_try_dane =".into(), "warning exim-transport"),
    ] {
        assert!(example.contains(&from) || conf.contains(&from), "{from}");
        fs::write(folder.join("broken.example"), example.replace(&from, &to)).unwrap();
        let text = conf.replace(&from, &to).replace("exim.example", "broken.example");
        fs::write(folder.join("broken.conf"), text).unwrap();
        let said = host.doctor_of(&host.world.config(), &mta(folder.join("broken.conf")), &[]);
        host.hold(what, &said, &[wanted]);
    }
    let mode = |path: &Path, mode: u32| fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    host.host(
        "the socket is closed to Exim's user",
        |world| mode(&world.readsocket(), 0o600),
        |world| mode(&world.readsocket(), 0o666),
        &["error socket-denied"],
    );
    // Exim does need it.
    let send = |to: &str| {
        exim.submit("someone@sender.test", &[to], "Subject: hello\n\nhello\n").unwrap();
        exim.deliveries(to, 0).join("\n")
    };
    let with = send("with@dane.example");
    fs::write("/etc/resolv.conf", "nameserver 127.0.0.1\n").unwrap();
    let without = send("without@dane.example");
    assert!(with.contains("CV=dane") && without.contains("was found without DNSSEC"), "{with}\n{without}");
    let said = host.doctor(&host.world.config());
    host.hold("no `options trust-ad`", &said, &["error no-trust-ad"]);
    daemon.stop().await.unwrap();
    host.end();
}
