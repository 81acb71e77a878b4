//! What keeps the daemon from starting: one line that says what, the documented exit status, and nothing half started.

mod running;

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use running::Running;

const BINARY: &str = env!("CARGO_BIN_EXE_tlswarden");

/// A folder with a configuration; `more` is added to it.
struct Host {
    folder: tempfile::TempDir,
}

impl Host {
    fn new(more: &str) -> Host {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().display();
        let config = format!(
            "[store]\npath = \"{at}/store\"\n[control]\nsocket = \"{at}/control\"\n\
             [socketmap]\nlisten = [\"unix:{at}/socketmap\"]\n[resolver]\naddress = \"127.0.0.1:9\"\n{}",
            more.replace("DIR", &at.to_string())
        );
        fs::write(folder.path().join("config.toml"), config).unwrap();
        Host { folder }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(BINARY);
        command.arg(name).arg("--config").arg(self.path("config.toml")).stdin(Stdio::null());
        command
    }

    /// Runs `serve`, which must end by itself.
    fn refused(&self) -> (Option<i32>, String) {
        let mut child = self.command("serve").stderr(Stdio::piped()).spawn().unwrap();
        let limit = Instant::now() + Duration::from_secs(20);
        while child.try_wait().unwrap().is_none() {
            if Instant::now() > limit {
                child.kill().unwrap();
                panic!("it started");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let Output { status, stderr, .. } = child.wait_with_output().unwrap();
        let text = String::from_utf8(stderr).unwrap();
        let last = text.lines().last().unwrap_or_default().to_owned();
        assert!(!text.contains("panicked"), "{text}");
        assert!(!text.contains("listening"), "half a start: {text}");
        (status.code(), last.replace(&self.folder.path().display().to_string(), "@"))
    }

    /// Runs `check-config`: its status and its line.
    fn checked(&self) -> (Option<i32>, String) {
        let output = self.command("check-config").output().unwrap();
        let line = String::from_utf8(output.stderr).unwrap().trim_end().to_owned();
        (output.status.code(), line.replace(&self.folder.path().display().to_string(), "@"))
    }

    /// Starts `serve` and waits until it answers.
    fn running(&self) -> Running {
        self.running_and(Stdio::null())
    }

    fn running_and(&self, errors: Stdio) -> Running {
        let child = self.command("serve").stderr(errors).spawn().unwrap();
        let limit = Instant::now() + Duration::from_secs(20);
        while !self.command("status").output().unwrap().stdout.windows(8).any(|w| w == b", runnin") {
            assert!(Instant::now() < limit, "the daemon does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        Running(child)
    }
}

#[test]
fn check_config_refuses_a_log_that_is_no_file() {
    let host = Host::new("[[input]]\nfile = \"DIR/dir\"\n");
    fs::create_dir(host.path("dir")).unwrap();
    assert_eq!(
        host.checked(),
        (Some(66), "tlswarden: @/config.toml:10: [[input]] file: @/dir: not a log file: it is a folder".into())
    );
    let fifo = Host::new("[[input]]\nfile = \"DIR/fifo\"\n");
    assert!(Command::new("mkfifo").arg(fifo.path("fifo")).status().unwrap().success());
    assert_eq!(
        fifo.checked(),
        (
            Some(66),
            "tlswarden: @/config.toml:10: [[input]] file: @/fifo: not a log file: it is a device, a pipe or a socket"
                .into()
        )
    );
}

#[test]
fn what_is_no_mail_log_is_said_in_one_line() {
    let inputs: String =
        ["binary", "long", "parts", "future"].map(|n| format!("[[input]]\nfile = \"DIR/{n}\"\n")).concat();
    let host = Host::new(&inputs);
    fs::write(host.path("binary"), b"\x7fELF\x00\xff\n".repeat(5000)).unwrap();
    fs::write(host.path("long"), [&vec![b'x'; 100_000][..], b"\nNov 22 01:00:00 mta dovecot: x\n"].concat()).unwrap();
    let part = format!("2026-11-22T01:00:00Z stdout P {}\n", "x".repeat(16_384));
    let end = "2026-11-22T01:00:00Z stdout F end\n2026-11-22T01:00:01Z stdout F Nov 22 01:00:00 mta dovecot: x\n";
    fs::write(host.path("parts"), part.repeat(3) + end).unwrap();
    let line = "2099-01-01T00:00:00Z mta postfix/qmgr[7]: 4AB0CDEF12: removed\n";
    fs::write(host.path("future"), line.repeat(3)).unwrap();
    let said = host.path("said");
    let _running = host.running_and(fs::File::create(&said).unwrap().into());
    let lines_of = |name: &str| -> Vec<String> {
        let subject = format!("input {}: ", host.path(name).display());
        let text = fs::read_to_string(&said).unwrap();
        text.lines().filter_map(|line| Some(line.split_once(&subject)?.1.to_owned())).collect()
    };
    for (name, wanted) in [
        ("binary", "not a log file: no line begins with a timestamp; nothing is counted"),
        ("long", "a line is longer than 32768 bytes; not counted"),
        ("parts", "a line is longer than 32768 bytes; not counted"),
        ("future", "lines are "),
    ] {
        let limit = Instant::now() + Duration::from_secs(20);
        while lines_of(name).is_empty() {
            assert!(Instant::now() < limit, "nothing is said of {name}");
            std::thread::sleep(Duration::from_millis(20));
        }
        let lines = lines_of(name);
        assert!(lines.len() == 1 && lines[0].starts_with(wanted), "{lines:?}");
    }
}

#[test]
fn a_socket_path_that_is_taken() {
    let host = Host::new("");
    let _other = UnixListener::bind(host.path("socketmap")).unwrap();
    let line = "tlswarden: unix:@/socketmap: cannot listen: another process answers there";
    assert_eq!(host.refused(), (Some(74), line.into()));
}

#[test]
fn check_config_refuses_a_missing_dkim_key() {
    let host = Host::new(
        "[report]\norganization = \"O\"\ncontact = \"a@b.example\"\nfrom = \"a@b.example\"\n\
         [[report.dkim]]\nselector = \"s\"\nkey = \"DIR/none.pem\"\n",
    );
    let (status, line) = host.checked();
    assert_eq!(status, Some(78), "{line}");
    assert!(line.contains("@/none.pem") && line.contains("No such file"), "{line}");
}

#[test]
fn a_store_that_another_process_has() {
    let host = Host::new("");
    let _running = host.running();
    let second = Host::new("");
    let text = fs::read_to_string(second.path("config.toml")).unwrap();
    let own = format!("path = \"{}", second.path("store").display());
    let taken = format!("path = \"{}", host.path("store").display());
    fs::write(second.path("config.toml"), text.replace(&own, &taken)).unwrap();
    let (status, line) = second.refused();
    assert_eq!(status, Some(69), "{line}");
    assert!(line.starts_with("tlswarden: store: "), "{line}");
}

#[test]
fn nobody_to_ask_and_no_store() {
    let host = Host::new("");
    let output = host.command("status").output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("no daemon answers at") && error.lines().count() == 1, "{error}");
    assert!(!Path::new(&host.path("store")).exists(), "asking must not make a store");
}

#[test]
fn a_reload_that_does_not_pass_changes_nothing_and_one_that_does_takes_effect() {
    let host = Host::new("");
    let running = host.running();
    let reload = |text: &str| {
        fs::write(host.path("config.toml"), text).unwrap();
        let pid = running.0.id().to_string();
        assert!(Command::new("kill").args(["-HUP", &pid]).status().unwrap().success());
    };
    let good = fs::read_to_string(host.path("config.toml")).unwrap();
    let status = |file: &Path| {
        let output = Command::new(BINARY).args(["status", "--json", "--config"]).arg(file).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let asking = host.path("asking.toml");
    fs::write(&asking, &good).unwrap();
    let until = |wanted: &str| {
        let limit = Instant::now() + Duration::from_secs(20);
        while !status(&asking).contains(wanted) {
            assert!(Instant::now() < limit, "{wanted} is not in {}", status(&asking));
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    reload(&good.replace("[control]", "[contrl]"));
    until("the configuration was not taken");
    reload(&format!("{good}[[input]]\nfile = \"{}\"\n", host.path("mail.log").display()));
    until("mail.log");
}
