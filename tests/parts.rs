//! Only answering is vital: what cannot be opened at start or at a reload is off, and comes back by itself.
//!
//! Each test runs the real daemon with one thing broken, asks it over the socketmap, reads `status`, and then repairs it.
//! The daemon tries again every [`RETRY`] here, so that nothing waits for a minute.

mod running;

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use running::Running;

const BINARY: &str = env!("CARGO_BIN_EXE_tlswarden");
const KEYS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/dkim");
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/tls/root.pem");
const LOG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/postfix-3.7.11/sts-expired.iso.log");

/// How often the daemon tries a part again.
const RETRY: &str = "100ms";

/// How long anything may take: a machine under load, not a measure of the daemon.
const PATIENCE: Duration = Duration::from_secs(60);

/// `[report]` with a key in the daemon's folder.
const REPORT: &str = "[report]\norganization = \"O\"\ncontact = \"a@b.example\"\nfrom = \"a@b.example\"\n\
                      [[report.dkim]]\nselector = \"s\"\nkey = \"DIR/key.pem\"\n";

/// A folder with a configuration, and the daemon that runs with it.
struct Host {
    folder: tempfile::TempDir,
    daemon: Option<Running>,
}

impl Host {
    /// `more` is added to a configuration that answers at one socket; `DIR` stands for the folder.
    fn new(more: &str) -> Host {
        let host = Host { folder: tempfile::tempdir().unwrap(), daemon: None };
        host.configure(more);
        host
    }

    fn configure(&self, more: &str) {
        let config = format!(
            "[store]\npath = \"DIR/store\"\n[control]\nsocket = \"DIR/control\"\n\
             [resolver]\naddress = \"127.0.0.1:9\"\n[closed_network]\nretry = \"{RETRY}\"\n\
             [[policy.override]]\ndomain = \"fixed.example\"\nanswer = \"encrypt\"\n{more}"
        );
        let listen = "[socketmap]\nlisten = [\"unix:DIR/socketmap\"]\n";
        let config = if config.contains("[socketmap]") { config } else { config + listen };
        let text = config.replace("DIR", &self.folder.path().display().to_string());
        fs::write(self.path("config.toml"), text).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(BINARY);
        command.arg(name).arg("--config").arg(self.path("config.toml")).stdin(Stdio::null()).env("NO_COLOR", "1");
        command
    }

    fn start(&mut self) {
        self.start_with(&[]);
    }

    /// Starts the daemon with variables in its environment, and waits until it answers.
    fn start_with(&mut self, environment: &[(&str, String)]) {
        let log = fs::File::create(self.path("log")).unwrap();
        let mut command = self.command("serve");
        command.envs(environment.iter().map(|(name, value)| (name, value))).stderr(log);
        self.daemon = Some(Running(command.spawn().unwrap()));
        self.until("the daemon answers", |host| UnixStream::connect(host.path("control")).is_ok());
    }

    /// Rereads the configuration, and waits until the daemon has done so.
    fn reload(&self) {
        let taken = |host: &Host| host.log().matches("reload: ").count();
        let before = taken(self);
        let id = self.daemon.as_ref().unwrap().0.id().to_string();
        assert!(Command::new("kill").args(["-HUP", &id]).status().unwrap().success());
        self.until("the reload is done", |host| taken(host) > before);
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap().replace(&self.folder.path().display().to_string(), "@")
    }

    fn until(&self, what: &str, done: impl Fn(&Host) -> bool) {
        let limit = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(Instant::now() < limit, "not reached: {what}\n{:#}\n{}", self.status(), self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn status(&self) -> Value {
        let output = self.command("status").arg("--json").output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }

    fn is(&self, part: &str, state: &str) -> bool {
        let part = part.replace("DIR", &self.folder.path().display().to_string());
        self.status()["parts"][part]["state"] == state
    }

    /// What Postfix is answered at a socket.
    fn asks(&self, socket: &str) -> String {
        let mut stream = UnixStream::connect(self.path(socket)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"20:policy fixed.example,").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// A part is off: it is answered all the same, and log and status name the reason once.
    fn is_off(&self, part: &str, reason: &str) {
        self.until(&format!("{part} is off"), |host| host.is(part, "off"));
        assert_eq!(self.asks("socketmap"), "10:OK encrypt,");
        let part = part.replace("DIR", "@");
        let named = |line: &str| line.contains(&part) && line.contains(reason);
        let log = self.log();
        let errors: Vec<&str> = log.lines().filter(|line| line.contains("ERROR") && line.contains(&part)).collect();
        assert!(errors.len() == 1 && named(errors[0]), "{part}: {reason}: {errors:#?}\n{log}");
        let shown = String::from_utf8(self.command("status").output().unwrap().stdout).unwrap();
        let shown = shown.replace(&self.folder.path().display().to_string(), "@");
        let first: Vec<&str> = shown.lines().take_while(|line| line.starts_with("OFF ")).collect();
        assert!(first.iter().any(|line| named(line)), "{part}: {reason}: {shown}");
    }

    /// `doctor` names a part that is off, and the reason. It waits for a resolver that does not answer.
    fn doctor_names(&self, part: &str, reason: &str) {
        let part = part.replace("DIR", "@");
        let named = |text: &str| text.contains(&part) && text.contains(reason);
        let doctor = self.command("doctor").args(["--json", "--bogus-name", ""]).output().unwrap();
        let findings: Value = serde_json::from_slice(&doctor.stdout).unwrap();
        let found = findings["findings"].as_array().unwrap();
        let found = found.iter().filter(|finding| finding["name"] == "part-off").map(ToString::to_string);
        let found: Vec<String> =
            found.map(|text| text.replace(&self.folder.path().display().to_string(), "@")).collect();
        assert!(found.iter().any(|text| named(text)), "{part}: {reason}: {findings:#}");
    }

    /// A part runs, and answering went on.
    fn is_on(&self, part: &str) {
        self.until(&format!("{part} is on"), |host| host.is(part, "running"));
        assert_eq!(self.asks("socketmap"), "10:OK encrypt,");
        let part = part.replace("DIR", "@");
        self.until("the log says so", |host| host.log().contains(&format!("{part}: on again")));
    }

    /// The exit status of `check-config`.
    fn check(&self) -> Option<i32> {
        self.command("check-config").output().unwrap().status.code()
    }
}

/// Breaks something at start and at a reload; it must be off, named by `reason`, and come back once it is repaired.
fn at_start_and_reload(more: &str, part: &str, reason: &str, refused: Option<i32>, repair: impl Fn(&Host)) {
    let mut host = Host::new(more);
    fs::create_dir(host.path("mail.log")).unwrap();
    if let Some(status) = refused {
        assert_eq!(host.check(), Some(status), "check-config");
    }
    host.start();
    host.is_off(part, reason);
    repair(&host);
    host.is_on(part);

    let mut host = Host::new("");
    fs::create_dir(host.path("mail.log")).unwrap();
    host.start();
    host.configure(more);
    host.reload();
    host.is_off(part, reason);
    repair(&host);
    host.is_on(part);
}

#[test]
fn reports_wait_for_a_dkim_key() {
    at_start_and_reload(REPORT, "reports", "@/key.pem: cannot be read: No such file", Some(78), |host| {
        fs::copy(format!("{KEYS}/ed25519.pem"), host.path("key.pem")).unwrap();
    });
}

#[test]
fn a_key_that_goes_bad_is_off_at_the_reload_and_its_reason_is_logged_anew() {
    let mut host = Host::new(REPORT);
    fs::copy(format!("{KEYS}/ed25519.pem"), host.path("key.pem")).unwrap();
    host.start();
    assert!(host.is("reports", "running"));
    fs::remove_file(host.path("key.pem")).unwrap();
    host.reload();
    host.is_off("reports", "No such file");
    fs::copy(format!("{KEYS}/rsa1024.pem"), host.path("key.pem")).unwrap();
    host.until("the new reason is logged", |host| host.log().matches("reports: off: ").count() == 2);
    fs::copy(format!("{KEYS}/ed25519.pem"), host.path("key.pem")).unwrap();
    host.is_on("reports");
}

#[test]
fn reports_wait_for_a_password_and_for_a_root() {
    let submission = "[report]\norganization = \"O\"\ncontact = \"a@b.example\"\nfrom = \"a@b.example\"\ndkim = \"mta\"\n\
                      deliver = \"submission:mail.b.example:587\"\n";
    let password = format!("{submission}user = \"u\"\npassword = \"DIR/password\"\n");
    at_start_and_reload(&password, "reports", "@/password: No such file", Some(78), |host| {
        fs::write(host.path("password"), "secret\n").unwrap();
    });
    let root = format!("{submission}ca_file = \"DIR/ca.pem\"\n");
    at_start_and_reload(&root, "reports", "@/ca.pem: No such file", Some(78), |host| {
        fs::copy(ROOT, host.path("ca.pem")).unwrap();
    });
}

#[test]
fn an_address_of_the_metrics_that_is_taken() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("inet:{}", taken.local_addr().unwrap());
    let more = format!("[status]\nlisten = [\"{address}\", \"unix:DIR/metrics\"]\n");
    let mut host = Host::new(&more);
    host.start();
    let part = format!("metrics {address}");
    host.is_off(&part, "Address already in use");
    host.doctor_names(&part, "Address already in use");
    let mut stream = UnixStream::connect(host.path("metrics")).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let metric = |part: &str, value: u8| text.contains(&format!("tlswarden_part_running{{part=\"{part}\"}} {value}\n"));
    assert!(metric(&part, 0) && metric("counting", 1) && metric("store", 1), "{text}");
    drop(taken);
    host.is_on(&part);
    assert!(std::net::TcpStream::connect(address.trim_start_matches("inet:")).is_ok());
}

#[test]
fn a_second_socket_that_is_taken() {
    for (section, part) in [
        ("[socketmap]\nlisten = [\"unix:DIR/socketmap\", \"unix:DIR/second\"]\n", "socketmap unix:DIR/second"),
        ("[readsocket]\nlisten = [\"unix:DIR/second\"]\n", "readsocket unix:DIR/second"),
        ("[status]\nlisten = [\"unix:DIR/second\"]\n", "metrics unix:DIR/second"),
        ("[postfix]\ntlsrpt = \"datagrams\"\n[[input]]\ndatagrams = \"DIR/second\"\n", "input datagrams DIR/second"),
    ] {
        for reload in [false, true] {
            let mut host = Host::new(if reload { "" } else { section });
            let taken = UnixListener::bind(host.path("second")).unwrap();
            host.start();
            if reload {
                host.configure(section);
                host.reload();
            }
            host.is_off(part, "cannot listen");
            // A leftover is replaced.
            drop(taken);
            host.is_on(part);
            assert!(fs::metadata(host.path("second")).unwrap().permissions().mode() & 0o200 != 0);
        }
    }
}

#[test]
fn a_reload_that_would_leave_no_answering_socket_is_refused() {
    let mut host = Host::new("");
    host.start();
    host.configure("[socketmap]\nlisten = [\"unix:DIR/missing/socketmap\"]\n");
    host.reload();
    assert_eq!(host.asks("socketmap"), "10:OK encrypt,");
    assert!(host.log().contains("the configuration was not taken"), "{}", host.log());
}

#[test]
fn a_log_that_is_a_folder() {
    at_start_and_reload(
        "[[input]]\nfile = \"DIR/mail.log\"\n",
        "input DIR/mail.log",
        "not a log file",
        Some(66),
        |host| {
            fs::remove_dir(host.path("mail.log")).unwrap();
            fs::copy(LOG, host.path("mail.log")).unwrap();
        },
    );
}

#[test]
fn the_same_log_under_two_names_is_read_once() {
    let more = "[[input]]\nfile = \"DIR/mail.log\"\n[[input]]\nfile = \"DIR/link.log\"\n";
    let mut host = Host::new(more);
    fs::copy(LOG, host.path("mail.log")).unwrap();
    std::os::unix::fs::symlink(host.path("mail.log"), host.path("link.log")).unwrap();
    assert_eq!(host.check(), Some(66), "check-config");
    host.start();
    host.is_off("input DIR/link.log", "the same file");
    host.doctor_names("input DIR/link.log", "the same file");
    assert!(host.is("input DIR/mail.log", "running"));
    fs::remove_file(host.path("link.log")).unwrap();
    fs::write(host.path("link.log"), "").unwrap();
    host.is_on("input DIR/link.log");
}

#[test]
fn a_journal_without_journalctl() {
    let mut host = Host::new("[[input]]\njournal = true\n");
    fs::create_dir(host.path("bin")).unwrap();
    host.start_with(&[("PATH", host.path("bin").display().to_string())]);
    host.is_off("input journal", "journalctl cannot be started");
    let journalctl = host.path("bin/journalctl");
    fs::write(&journalctl, "#!/bin/sh\nexec /bin/sleep 1000\n").unwrap();
    fs::set_permissions(&journalctl, fs::Permissions::from_mode(0o755)).unwrap();
    host.is_on("input journal");
}

#[test]
fn root_certificates_that_are_missing() {
    let mut host = Host::new("");
    let roots = host.path("roots.pem");
    let variables =
        [("SSL_CERT_FILE", roots.display().to_string()), ("SSL_CERT_DIR", host.path("none").display().to_string())];
    host.start_with(&variables);
    host.is_off("https", "root certificates");
    host.reload();
    host.is_off("https", "root certificates");
    fs::copy(ROOT, roots).unwrap();
    host.is_on("https");
}

#[test]
fn a_reload_exits_with_its_verdict_and_status_says_what_is_not_in_use() {
    let mut host = Host::new("");
    let run = |host: &Host, name: &str| {
        let output = host.command(name).output().unwrap();
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (output.status.code(), said.replace(&host.folder.path().display().to_string(), "@"))
    };
    let (status, said) = run(&host, "reload");
    assert_eq!(status, Some(69), "{said}");
    assert!(said.contains("no daemon answers at @/control"), "{said}");
    host.start();
    assert_eq!(run(&host, "reload").0, Some(0));

    // A mistake: nobody has asked for a reload yet, and then it is refused.
    host.configure("[contrl]\nx = 1\n");
    let (status, said) = run(&host, "status");
    // Nobody answers at the resolver either.
    assert_eq!(status, Some(2), "{said}");
    assert!(said.starts_with("configuration on disk is not in use: @/config.toml:"), "{said}");
    let (status, said) = run(&host, "reload");
    assert_eq!(status, Some(78), "{said}");
    assert!(said.contains("contrl") && said.ends_with("going on with the old one\n"), "{said}");
    let (_, said) = run(&host, "status");
    assert!(said.starts_with("configuration on disk is not in use: @/config.toml:"), "{said}");
    assert!(said.lines().next().unwrap().contains("; since "), "{said}");
    assert!(host.log().contains("ERROR reload: the configuration was not taken"), "{}", host.log());
    assert_eq!(host.asks("socketmap"), "10:OK encrypt,");

    // It is taken, and a part is off because of it; the second time that is known.
    host.configure(REPORT);
    let (status, said) = run(&host, "reload");
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("reports: off: ") && said.contains("@/key.pem"), "{said}");
    assert!(run(&host, "status").1.starts_with("OFF reports: "));
    assert_eq!(run(&host, "reload").0, Some(0));
}

#[test]
fn lines_in_the_journal_have_priorities_and_a_look_up_can_be_traced() {
    let mut host = Host::new(
        "[report]\norganization = \"O\"\ncontact = \"a@b.example\"\nfrom = \"a@b.example\"\n\
                              [[report.dkim]]\nselector = \"s\"\nkey = \"/etc/tlswarden/dkim.d/none.pem\"\n",
    );
    let log = fs::File::create(host.path("log")).unwrap().metadata().unwrap();
    host.start_with(&[
        ("JOURNAL_STREAM", format!("{}:{}", log.dev(), log.ino())),
        ("TLSWARDEN_LOG", "info,answering=debug,net=debug".to_owned()),
        ("CREDENTIALS_DIRECTORY", host.path("credentials").display().to_string()),
    ]);
    host.until("the first line", |host| host.log().contains("<6>INFO tlswarden "));
    let text = host.log();
    assert!(text.lines().all(|line| line.starts_with('<')), "{text}");
    let off = text.lines().find(|line| line.starts_with("<3>ERROR reports: off: ")).expect("an error");
    assert!(off.contains("run `systemctl restart tlswarden`"), "{off}");
    let first = text.lines().find(|line| line.starts_with("<6>INFO tlswarden ")).expect("what is on");
    let shown = ["answering at ", "socketmap unix:@/socketmap", "; no reports", "; off: ", "reports"];
    assert!(shown.iter().all(|text| first.contains(text)), "{first}");

    let mut stream = UnixStream::connect(host.path("socketmap")).unwrap();
    stream.write_all(b"20:policy trace.example,").unwrap();
    host.until("the look-up is traced", |host| {
        let text = host.log();
        let traced = |what: &str| text.lines().any(|line| line.starts_with("<7>DEBUG ") && line.contains(what));
        traced("policy decided next_hop=trace.example") && traced("DNS answered name=\"_mta-sts.trace.example\"")
    });
}

#[test]
fn systemd_is_told_what_is_on_and_an_unknown_map_is_a_warning_that_names_those_there_are() {
    let mut host = Host::new("");
    let systemd = std::os::unix::net::UnixDatagram::bind(host.path("notify")).unwrap();
    systemd.set_read_timeout(Some(PATIENCE)).unwrap();
    host.start_with(&[("NOTIFY_SOCKET", host.path("notify").display().to_string())]);
    let mut buffer = [0; 4096];
    let status = loop {
        let length = systemd.recv(&mut buffer).expect("a status");
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        if let Some(status) = text.strip_prefix("STATUS=") {
            break status.to_owned();
        }
    };
    assert!(status.starts_with("answering at socketmap unix:") && status.contains("; no reports"), "{status}");
    let line = format!("INFO tlswarden {}: answering at socketmap unix:@/socketmap", env!("CARGO_PKG_VERSION"));
    assert!(host.log().contains(&line), "{}", host.log());

    let mut stream = UnixStream::connect(host.path("socketmap")).unwrap();
    stream.write_all(b"19:polcy fixed.example,").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("PERM"), "{answer}");
    host.until("the map is logged", |host| {
        let log = host.log();
        let line = log.lines().find(|line| line.contains("no such map: polcy"));
        line.is_some_and(|line| line.contains(" WARN ") && line.contains("there are policy and policy-tlsrpt"))
    });
}
