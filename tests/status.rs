//! `tlswarden status`: the exit status and the line for monitoring servers, with a real daemon in each state, and the
//! socket on which a group may read.

mod name_server;
mod running;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use name_server::{NameServer, wire};
use running::Running;

const BINARY: &str = env!("CARGO_BIN_EXE_tlswarden");
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/tls/root.pem");

/// How long anything may take: a machine under load, not a measure of the daemon.
const PATIENCE: Duration = Duration::from_secs(60);

const NS: u16 = 2;

/// Users and groups that own nothing.
const NOBODY: u32 = 65534;
const MONITORING: u32 = 65533;

/// A folder with a configuration, and the daemon that runs with it.
struct Host {
    folder: tempfile::TempDir,
    resolver: NameServer,
    daemon: Option<Running>,
}

impl Host {
    /// A host on which all is well. `DIR` stands for the folder.
    fn new(more: &str) -> Host {
        let resolver = NameServer::start(|query| match (query.name.as_str(), query.kind) {
            ("", NS) => query.answer(0, true, &[("", NS, wire("ns.root.test"))]),
            _ => query.answer(0, true, &[]),
        });
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let host = Host { folder, resolver, daemon: None };
        fs::write(host.path("mail.log"), "").unwrap();
        host.configure(more);
        host
    }

    fn configure(&self, more: &str) {
        let resolver = if more.contains("[resolver]") {
            String::new()
        } else {
            format!("[resolver]\naddress = \"{}\"\n", self.resolver.address)
        };
        let socketmap =
            if more.contains("[socketmap]") { "" } else { "[socketmap]\nlisten = [\"unix:DIR/socketmap\"]\n" };
        let control = if more.contains("[control]") { "" } else { "[control]\nsocket = \"DIR/control\"\n" };
        let config = format!(
            "[store]\npath = \"DIR/store\"\n{control}{socketmap}{resolver}[closed_network]\nretry = \"100ms\"\n\
             [postfix]\nversion = \"3.10.13\"\ndefault_level = \"may\"\ndnssec = true\n\
             dane_insecure_mx_policy = \"dane\"\n[[input]]\nfile = \"DIR/mail.log\"\n{more}"
        );
        fs::write(self.path("config.toml"), config.replace("DIR", &self.folder.path().display().to_string())).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command.args(arguments).arg("--config").arg(self.path("config.toml")).stdin(Stdio::null()).env("NO_COLOR", "1");
        command.env("SSL_CERT_FILE", ROOT);
        command
    }

    /// The exit status of a command, and what it printed.
    fn run(&self, arguments: &[&str]) -> (Option<i32>, String) {
        self.output(self.command(arguments))
    }

    /// The same as another user.
    fn run_as(&self, user: u32, group: u32, arguments: &[&str]) -> (Option<i32>, String) {
        let mut command = self.command(arguments);
        command.uid(user).gid(group);
        self.output(command)
    }

    fn output(&self, mut command: Command) -> (Option<i32>, String) {
        let output = command.output().unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (output.status.code(), text.replace(&self.folder.path().display().to_string(), "@"))
    }

    fn start(&mut self) {
        let log = fs::File::create(self.path("log")).unwrap();
        self.daemon = Some(Running(self.command(&["serve"]).stderr(log).spawn().unwrap()));
        self.until("the daemon answers", |host| UnixStream::connect(host.path("status.sock")).is_ok());
    }

    fn until(&self, what: &str, done: impl Fn(&Host) -> bool) {
        let limit = Instant::now() + PATIENCE;
        while !done(self) {
            let log = fs::read_to_string(self.path("log")).unwrap_or_default();
            assert!(Instant::now() < limit, "not reached: {what}\n{}\n{log}", self.run(&["status"]).1);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The state in which `status` and `status --check` end with a status, and name a reason.
    fn is(&self, want: i32, level: &str, reason: &str) {
        self.until(&format!("{level}: {reason}"), |host| {
            let (status, line) = host.run(&["status", "--check"]);
            status == Some(want) && line.starts_with(&format!("TLSWARDEN {level}: ")) && line.contains(reason)
        });
        let (status, line) = self.run(&["status", "--check"]);
        println!("{want} {line}");
        assert_eq!((status, line.lines().count()), (Some(want), 1), "{line}");
        let (status, shown) = self.run(&["status"]);
        assert_eq!(status, Some(want), "{shown}");
        assert!(want == 0 || shown.contains(reason), "{shown}");
        assert_eq!(self.run(&["status", "--json"]).0, Some(want));
    }
}

#[test]
fn the_exit_status_says_whether_all_is_well() {
    let mut host = Host::new("");
    host.is_down();
    host.start();
    host.is(0, "OK", "answering at 1 socket, counting 1 input, reports not configured");
    let (_, line) = host.run(&["status", "--check"]);
    let data = line.trim_end().split_once(" | ").expect("performance data").1;
    let names: Vec<&str> = data.split(' ').map(|word| word.split_once('=').unwrap().0).collect();
    let wanted = ["requests", "answers_temp", "policies", "behind", "reports_waiting", "reports_failed", "store"];
    assert_eq!(names, wanted, "{line}");

    // Refused: what runs goes on with what it has.
    host.configure("[contrl]\nx = 1\n");
    host.is(1, "WARNING", "configuration on disk is not in use: @/config.toml:");
    host.configure("");
    host.is(0, "OK", "version ");

    // A part that mail does not wait for.
    let taken = UnixListener::bind(host.path("metrics")).unwrap();
    host.configure("[status]\nlisten = [\"unix:DIR/metrics\"]\n");
    assert_eq!(host.run(&["reload"]).0, Some(1));
    host.is(1, "WARNING", "OFF metrics unix:@/metrics: cannot listen");
    drop(taken);
    host.is(0, "OK", "version ");

    // One that mail waits for, beside one that it does not.
    let taken = UnixListener::bind(host.path("second")).unwrap();
    host.configure(
        "[socketmap]\nlisten = [\"unix:DIR/socketmap\", \"unix:DIR/second\"]\n\
         [report]\norganization = \"O\"\ncontact = \"a@b.example\"\n",
    );
    assert_eq!(host.run(&["reload"]).0, Some(1));
    host.is(2, "CRITICAL", "OFF socketmap unix:@/second: ");
    assert!(host.run(&["status", "--check"]).1.contains("CRITICAL: 2 problems: OFF socketmap "));
    drop(taken);
    host.is(1, "WARNING", "no report is sent: [report] lacks from, dkim");

    // Nobody answers the daemon.
    host.configure("[resolver]\naddress = \"127.0.0.1:9\"\n");
    assert_eq!(host.run(&["reload"]).0, Some(0));
    host.is(2, "CRITICAL", "resolver 127.0.0.1:9: no answer");
    // Nothing is read.
    let config = fs::read_to_string(host.path("config.toml")).unwrap();
    let resolver = host.resolver.address.to_string();
    fs::write(host.path("config.toml"), config.replace("mail.log", "*.log").replace("127.0.0.1:9", &resolver)).unwrap();
    fs::remove_file(host.path("mail.log")).unwrap();
    assert_eq!(host.run(&["reload"]).0, Some(0));
    host.is(1, "WARNING", "NOT COUNTING: ");
    host.daemon = None;
    host.is_down();
}

impl Host {
    fn is_down(&self) {
        let (status, line) = self.run(&["status", "--check"]);
        assert_eq!((status, line.as_str()), (Some(2), "TLSWARDEN CRITICAL: no daemon answers at @/control\n"));
        let (status, shown) = self.run(&["status"]);
        assert_eq!(status, Some(2), "{shown}");
        assert!(shown.contains("no daemon answers"), "{shown}");
    }
}

#[test]
fn a_group_reads_and_changes_nothing() {
    assert!(rustix::process::geteuid().is_root(), "this test needs root, to become a member of the group");
    let control = format!("[control]\nsocket = \"DIR/control\"\nstatus_group = \"{MONITORING}\"\n");
    let mut host = Host::new(&control);
    host.start();
    host.is(0, "OK", "version ");
    let found = fs::metadata(host.path("status.sock")).unwrap();
    assert_eq!((found.mode() & 0o777, found.gid()), (0o660, MONITORING));
    assert_eq!(fs::metadata(host.path("control")).unwrap().mode() & 0o777, 0o600);

    // Members need not say where to ask.
    for reading in [
        vec!["status", "--check"],
        vec!["status"],
        vec!["status", "--json"],
        vec!["results"],
        vec!["reports", "list"],
        vec!["policy", "list"],
        vec!["policy", "export"],
    ] {
        let (status, text) = host.run_as(NOBODY, MONITORING, &reading);
        assert_eq!(status, Some(0), "{reading:?}: {text}");
    }
    for other in [
        vec!["reload"],
        vec!["policy", "purge", "--all"],
        vec!["policy", "refresh", "a.example"],
        vec!["policy", "explain", "a.example"],
        vec!["reports", "preview"],
        vec!["reports", "resend", "x"],
    ] {
        let (status, text) = host.run_as(NOBODY, MONITORING, &other);
        assert_eq!((status, text.lines().count()), (Some(69), 1), "{other:?}: {text}");
        assert!(text.contains("@/control: permission denied: ") && text.contains("run this command as root"), "{text}");
    }
    // Whoever writes to the socket by hand is refused as well.
    for request in [
        "{\"ask\":\"reload\"}",
        "{\"ask\":\"policy-purge\"}",
        "{\"ask\":\"policy-purge\",\"domain\":null}",
        "{\"ask\":\"backup\"}",
        "{\"ask\":\"policy-refresh\",\"next_hop\":\"a.example\"}",
        "{\"ask\":\"reports-resend\",\"selection\":{\"id\":\"x\"}}",
        "no request",
    ] {
        let mut stream = UnixStream::connect(host.path("status.sock")).unwrap();
        stream.write_all(format!("{request}\n").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("{\"fault\":\"control: "), "{request}: {answer}");
        assert!(answer.contains("permission denied") || answer.contains("no question"), "{request}: {answer}");
    }

    // Others are told what to do.
    let (status, text) = host.run_as(NOBODY, NOBODY, &["status"]);
    assert_eq!(status, Some(69), "{text}");
    assert!(text.contains("permission denied") && text.contains("a member of the group of @/status.sock"), "{text}");
    let (status, text) = host.run_as(NOBODY, NOBODY, &["status", "--check"]);
    assert_eq!((status, text.starts_with("TLSWARDEN UNKNOWN: ")), (Some(3), true), "{text}");
    // A daemon that is gone is not a question of permissions.
    host.daemon = None;
    let (status, text) = host.run_as(NOBODY, MONITORING, &["status", "--check"]);
    assert_eq!((status, text.starts_with("TLSWARDEN CRITICAL: no daemon answers")), (Some(2), true), "{text}");
}

#[test]
fn the_group_changes_with_a_reload_and_an_unknown_one_is_refused_by_check_config() {
    let control = |group: &str| format!("[control]\nsocket = \"DIR/control\"\n{group}");
    let mut host = Host::new(&control(""));
    host.start();
    let group = |host: &Host| fs::metadata(host.path("status.sock")).unwrap().gid();
    let own = fs::metadata(host.path("control")).unwrap().gid();
    assert_eq!(group(&host), own);
    assert_eq!(own, 0, "this test needs root, to give the socket to a group");
    host.configure(&control(&format!("status_group = \"{MONITORING}\"\n")));
    assert_eq!(host.run(&["reload"]), (Some(0), "reloaded: the configuration on disk is in use\n".to_owned()));
    assert_eq!(group(&host), MONITORING);
    host.configure(&control(""));
    assert_eq!(host.run(&["reload"]).0, Some(0));
    assert_eq!(group(&host), own);
    host.configure(&control("status_group = \"no-such-group\"\n"));
    let (status, text) = host.run(&["check-config"]);
    assert_eq!(status, Some(78), "{text}");
    assert!(text.contains("[control] status_group: unknown group \"no-such-group\""), "{text}");
    assert_eq!(host.run(&["reload"]).0, Some(1));
    host.is(1, "WARNING", "OFF status unix:@/status.sock: ");
    if own == 0 {
        let (status, line) = host.run_as(NOBODY, own, &["status", "--check"]);
        assert_eq!(
            (status, line.starts_with("TLSWARDEN UNKNOWN: @/status.sock: no such socket: ")),
            (Some(3), true),
            "{line}"
        );
    }
}

/// Any user may check the configuration, and may not connect to the control socket.
#[test]
fn an_address_of_the_running_daemon_is_not_in_use_by_another_process() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut host = Host::new(&format!("[status]\nlisten = [\"inet:127.0.0.1:{port}\"]\n"));
    host.start();
    host.until("it has the address", |_| TcpListener::bind(("127.0.0.1", port)).is_err());
    for user in [0, NOBODY] {
        let (status, text) = host.run_as(user, user, &["check-config"]);
        assert_eq!(status, Some(0), "{text}");
        assert!(!text.contains("already in use"), "{text}");
    }
    host.daemon = None;
    let _taken = TcpListener::bind(("127.0.0.1", port)).unwrap();
    fs::remove_file(host.path("control")).unwrap();
    for user in [0, NOBODY] {
        let (status, text) = host.run_as(user, user, &["check-config"]);
        assert_eq!(status, Some(0), "{text}");
        assert!(text.contains(&format!("\"inet:127.0.0.1:{port}\" is already in use by another process")), "{text}");
    }
}
