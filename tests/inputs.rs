//! Datagrams and standard input, of which nothing is kept on disk, through a daemon that is killed, restarted and reloaded;
//! one log that comes in twice.
//!
//! Every session has a domain of its own, so that the store tells which were counted, and how often.

mod running;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tlswarden::base::clock::Clock;
use tlswarden::store::Store;
use tlswarden::store::embedded::EmbeddedStore;

use running::Running;

const BINARY: &str = env!("CARGO_BIN_EXE_tlswarden");

/// How long the daemon may take until something is there.
const PATIENCE: Duration = Duration::from_secs(60);

/// How many times the daemon is killed.
const KILLS: u64 = 4;

/// A folder with a configuration, for one input.
struct Host {
    folder: tempfile::TempDir,
}

impl Host {
    fn new(input: &str) -> Host {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().display();
        let config = format!(
            "[store]\npath = \"{at}/store\"\n[control]\nsocket = \"{at}/control\"\n[socketmap]\nlisten = []\n\
             [resolver]\naddress = \"127.0.0.1:9\"\n{}",
            input.replace("DIR", &at.to_string())
        );
        fs::write(folder.path().join("config.toml"), config).unwrap();
        Host { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts `serve` and waits until it answers.
    fn start(&self, mut command: Command) -> Running {
        let running = Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        self.wait_for("the daemon does not answer", || UnixStream::connect(self.path("control")).is_ok());
        assert!(self.ask(&["status"]).contains(", running"));
        running
    }

    fn serve(&self) -> Command {
        let mut command = Command::new(BINARY);
        command.args(["serve", "--config"]).arg(self.path("config.toml")).stdin(Stdio::null());
        command
    }

    /// `serve` with a socket that is open already, as systemd hands it over (sd_listen_fds(3)).
    fn serve_on(&self, socket: &UnixDatagram) -> Command {
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg("LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\" 3<&0 </dev/null")
            .args(["sh", BINARY, "serve", "--config"])
            .arg(self.path("config.toml"))
            .stdin(OwnedFd::from(socket.try_clone().unwrap()));
        command
    }

    fn ask(&self, arguments: &[&str]) -> String {
        let (name, rest) = arguments.split_first().unwrap();
        let output = Command::new(BINARY).arg(name).arg("--config").arg(self.path("config.toml")).args(rest).output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    }

    /// Waits until a session is committed: `results` tells what is in the store.
    fn wait_for_session(&self, number: u64) {
        let name = domain(number);
        let counted = || self.ask(&["results", "--json", "--domain", &name]).contains(&name);
        self.wait_for(&format!("{name} is not counted"), counted);
    }

    fn wait_for(&self, what: &str, done: impl Fn() -> bool) {
        let limit = Instant::now() + PATIENCE;
        while !done() {
            assert!(Instant::now() < limit, "{what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What is in the store, which no daemon may have open: sessions by the number in their domain.
    fn counted(&self) -> BTreeMap<u64, u64> {
        let store = EmbeddedStore::open(&self.path("store"), Clock::default()).unwrap().store;
        let mut counted = BTreeMap::new();
        for day in store.days().unwrap() {
            for domain in store.domains(day).unwrap() {
                let sum: u64 = store.rows(day, &domain).unwrap().iter().map(|row| row.successful + row.failed).sum();
                let number = domain.trim_start_matches('d').trim_end_matches(".test").parse().unwrap();
                *counted.entry(number).or_default() += sum;
            }
        }
        counted
    }
}

impl Running {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(i32::try_from(self.0.id()).unwrap()).unwrap(), signal).unwrap();
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    fn stop(mut self) {
        self.signal(Signal::TERM);
        assert!(self.0.wait().unwrap().success());
    }
}

fn domain(number: u64) -> String {
    format!("d{number}.test")
}

/// Sends the datagram of a session that succeeded; `false` where nobody receives it.
fn send(number: u64, to: &Path) -> bool {
    let name = domain(number);
    let text = format!(
        r#"{{"dpv":"1","d":"{name}","pr":"v=TLSRPTv1;rua=mailto:r@{name}","policies":[{{"policy-type":9,"policy-domain":"{name}","t":0,"f":0}}]}}"#
    );
    UnixDatagram::unbound().unwrap().send_to(text.as_bytes(), to).is_ok()
}

/// The lines of a session that succeeded.
fn lines(number: u64) -> String {
    let mx = "mx.a.test[203.0.113.10]:25";
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    format!(
        "{now} mta postfix/smtp[7]: Trusted TLS connection established to {mx}: TLSv1.3 with cipher X (256/256 bits)\n\
         {now} mta postfix/smtp[7]: F35CEA26071: to=<user@{}>, relay={mx}, delay=0.1, delays=0/0/0/0.1, dsn=2.0.0, \
         status=sent (250 2.0.0 Ok)\n",
        domain(number)
    )
}

fn each_once(counted: &BTreeMap<u64, u64>) -> bool {
    counted.values().all(|n| *n == 1)
}

const DATAGRAMS: &str = "[postfix]\ntlsrpt = \"datagrams\"\n[[input]]\ndatagrams = \"DIR/tlsrpt\"\n";

#[test]
fn a_kill_among_datagrams_loses_the_last_and_counts_none_twice() {
    let host = Host::new(DATAGRAMS);
    let socket = host.path("tlsrpt");
    let (mut next, mut committed, mut rounds) = (0, Vec::new(), Vec::new());
    for round in 0..KILLS {
        let daemon = host.start(host.serve());
        let first = next;
        while next < first + 100 {
            assert!(send(next, &socket));
            next += 1;
        }
        host.wait_for_session(next - 1);
        committed.extend(first..next);
        // Some commits later, at any moment between two.
        let until = Instant::now() + Duration::from_millis(1000 + 97 * round);
        let begin = next;
        while Instant::now() < until {
            assert!(send(next, &socket));
            next += 1;
            std::thread::sleep(Duration::from_millis(1));
        }
        daemon.kill();
        assert!(!send(next, &socket), "nobody is there");
        rounds.push(begin..next);
    }
    let daemon = host.start(host.serve());
    let last = next..next + 100;
    assert!(last.clone().all(|number| send(number, &socket)));
    daemon.stop();
    committed.extend(last);
    let counted = host.counted();
    assert!(each_once(&counted), "{counted:?}");
    assert!(committed.iter().all(|number| counted.contains_key(number)), "what was committed is there");
    for round in rounds {
        let there: Vec<bool> = round.clone().map(|number| counted.contains_key(&number)).collect();
        assert!(there.is_sorted_by(|earlier, later| earlier >= later), "{round:?}: only the last are lost");
        println!("{} of {} sent while it was killed are counted", there.iter().filter(|c| **c).count(), there.len());
    }
}

#[test]
fn datagrams_wait_in_systemd_s_socket_while_no_daemon_runs() {
    let host = Host::new(DATAGRAMS);
    let path = host.path("tlsrpt");
    let socket = UnixDatagram::bind(&path).unwrap();
    let mut numbers = 0..;
    let mut send_some = |n| assert!(numbers.by_ref().take(n).all(|number| send(number, &path)));
    let daemon = host.start(host.serve_on(&socket));
    send_some(100);
    daemon.stop();
    // As many as the kernel lets wait by default, less one.
    send_some(9);
    let daemon = host.start(host.serve_on(&socket));
    send_some(100);
    host.wait_for_session(208);
    daemon.kill();
    send_some(9);
    let daemon = host.start(host.serve_on(&socket));
    host.wait_for_session(217);
    daemon.stop();
    assert!(path.exists(), "the socket is systemd's");
    let counted = host.counted();
    assert!(each_once(&counted), "{counted:?}");
    assert_eq!(counted.len(), 218);
}

#[test]
fn standard_input_goes_on_over_reloads_and_restarts() {
    let host = Host::new("[[input]]\nstdin = true\ntimezone = \"UTC\"\n");
    let mut next = 0;
    for _ in 0..2 {
        let mut command = host.serve();
        command.stdin(Stdio::piped());
        let mut daemon = host.start(command);
        let mut stdin = daemon.0.stdin.take().unwrap();
        for _ in 0..3 {
            // Again and again within the lines of a session, while it reads.
            let text: String = (next..next + 500).map(lines).collect();
            for piece in text.as_bytes().chunks(text.len() / 5 + 1) {
                stdin.write_all(piece).unwrap();
                daemon.signal(Signal::HUP);
            }
            next += 500;
            host.wait_for_session(next - 1);
        }
        // The daemon does not end with its input.
        drop(stdin);
        daemon.stop();
    }
    let counted = host.counted();
    assert!(each_once(&counted), "{counted:?}");
    assert_eq!(counted.len(), 3000);
}

#[test]
fn a_file_of_two_names_that_a_pattern_finds_is_read_once() {
    let host = Host::new("[[input]]\nfile = \"DIR/logs/*\"\ntimezone = \"UTC\"\n");
    fs::create_dir(host.path("logs")).unwrap();
    fs::write(host.path("logs/mail.log"), (0..100).map(lines).collect::<String>()).unwrap();
    std::os::unix::fs::symlink("mail.log", host.path("logs/maillog")).unwrap();
    let daemon = host.start(host.serve());
    host.wait_for_session(99);
    let shown = host.ask(&["status"]);
    assert_eq!(shown.matches("/logs/mail.log ").count() + shown.matches("/logs/maillog ").count(), 1, "{shown}");
    daemon.stop();
    let counted = host.counted();
    assert!(each_once(&counted) && counted.len() == 100, "{counted:?}");
}

#[test]
fn two_inputs_with_the_same_lines_are_noticed() {
    // Exim writes both with `log_file_path = main:syslog`.
    let exim = |number: u64| {
        let to = domain(number);
        let text = format!("1xUwZB-0006OQ-{number} => u@{to} R=r T=t H=mx.a.test [203.0.113.9] C=\"250 ok\"\n");
        let line = format!("2026-11-22 01:40:29 {text}");
        (line.clone(), format!("Nov 22 01:40:29 mta exim[9743]: {line}"))
    };
    let postfix = |number: u64| (lines(number), lines(number));
    let both = [("postfix", (10..20).map(postfix).collect::<Vec<_>>()), ("exim", (10..20).map(exim).collect())];
    for (mta, texts) in both {
        let host = Host::new(&format!(
            "[[input]]\nfile = \"DIR/mail.log\"\nmta = \"{mta}\"\n[[input]]\nfile = \"DIR/copy.log\"\nmta = \"{mta}\"\n"
        ));
        for (one, other) in texts {
            append(&host.path("mail.log"), &one);
            append(&host.path("copy.log"), &other);
        }
        let daemon = host.start(host.serve());
        host.wait_for("it is not noticed", || host.ask(&["status"]).contains("it has the same lines as input"));
        daemon.stop();
    }
}

fn append(path: &Path, text: &str) {
    let mut file = fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

#[test]
fn an_input_that_is_exchanged_counts_nothing_twice() {
    let host = Host::new("[[input]]\nfile = \"DIR/a.log\"\ntimezone = \"UTC\"\n");
    let change = |from: &str, to: &str| {
        let config = host.path("config.toml");
        let text = fs::read_to_string(&config).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(config, text.replace(from, to)).unwrap();
    };
    // Lines have seconds: the new ones are of later ones.
    let later = || std::thread::sleep(Duration::from_millis(1_100));
    let run = |last: u64| {
        let daemon = host.start(host.serve());
        host.wait_for_session(last);
        daemon.stop();
        let counted = host.counted();
        assert!(each_once(&counted) && counted.len() as u64 == last + 1, "{counted:?}");
    };
    append(&host.path("a.log"), &(0..50).map(lines).collect::<String>());
    run(49);
    // Moved with its path.
    fs::rename(host.path("a.log"), host.path("b.log")).unwrap();
    append(&host.path("b.log"), &(50..60).map(lines).collect::<String>());
    change("a.log", "b.log");
    run(59);
    // Exchanged for a log that has the same lines in another form, as of rsyslog after the journal.
    let same = fs::read_to_string(host.path("b.log")).unwrap().replace(" mta ", " mta.example.test ");
    fs::write(host.path("c.log"), same).unwrap();
    later();
    append(&host.path("c.log"), &(60..70).map(lines).collect::<String>());
    change("b.log", "c.log");
    run(69);
    // And back, where the first has gone on.
    append(
        &host.path("b.log"),
        &fs::read_to_string(host.path("c.log")).unwrap().split_inclusive('\n').skip(120).collect::<String>(),
    );
    later();
    append(&host.path("b.log"), &(70..80).map(lines).collect::<String>());
    change("c.log", "b.log");
    run(79);
}

/// Descriptors of a process, and how many of them are inotify instances (proc(5)).
fn descriptors(process: u32) -> (usize, usize) {
    let (all, mut inotify) = (fs::read_dir(format!("/proc/{process}/fd")).unwrap(), 0);
    let number = all
        .filter_map(Result::ok)
        .inspect(|one| {
            let target = fs::read_link(one.path()).unwrap_or_default();
            inotify += usize::from(target.to_string_lossy() == "anon_inode:inotify");
        })
        .count();
    (number, inotify)
}

#[test]
fn a_thousand_logs_need_few_descriptors_and_one_watch() {
    const LOGS: u64 = 1000;
    let host = Host::new("[[input]]\nfile = \"DIR/logs/*.log\"\ntimezone = \"UTC\"\n");
    fs::create_dir(host.path("logs")).unwrap();
    let log = |number: u64| host.path(&format!("logs/{number}.log"));
    (0..LOGS).for_each(|number| append(&log(number), &lines(number)));
    let daemon = host.start(host.serve());
    let sessions = |wanted: u64| {
        let shown: serde_json::Value = serde_json::from_str(&host.ask(&["results", "--json"])).unwrap_or_default();
        shown.as_array().is_some_and(|rows| rows.len() as u64 == wanted)
    };
    host.wait_for("not all logs are counted", || sessions(LOGS));
    let few = |(all, inotify)| all < 100 && inotify == 1;
    let process = daemon.0.id();
    host.wait_for("too many descriptors", || few(descriptors(process)));
    // Those whose files are closed are still followed.
    (0..LOGS).for_each(|number| append(&log(number), &lines(LOGS + number)));
    host.wait_for("not all logs are counted again", || sessions(2 * LOGS));
    host.wait_for("too many descriptors again", || few(descriptors(process)));
    daemon.stop();
    let counted = host.counted();
    assert!(each_once(&counted) && counted.len() as u64 == 2 * LOGS);
}

/// The two lines of a session to `d0.test`, one before midnight and one after it; and what tells that both were read.
fn over_midnight(mta: &str) -> (String, String, &'static str) {
    if mta == "postfix" {
        let lines = lines(0);
        let (before, after) = lines.split_once('\n').unwrap();
        return (format!("{before}\n"), after.to_owned(), "no-policy-found 1 0");
    }
    let message = jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M:%S 1xUwZC-0006Ou-0S").to_string();
    let failed = "H=mx.a.test [203.0.113.10]: TLS session: (SSL_connect): error:0A000086:SSL routines::certificate verify failed";
    (
        format!(
            "{message} [203.0.113.10] SSL verify error: depth=0 error=certificate has expired cert=/CN=mx.a.test\n"
        ),
        format!("{message} == user@{} R=r T=t defer (-37) {failed}\n", domain(0)),
        "certificate-expired",
    )
}

#[test]
fn a_session_over_midnight_in_files_named_by_their_date_is_counted_once() {
    // The first two with a restart between the two files.
    for (mta, pattern, files, restarts) in [
        ("postfix", "maillog-*", ["maillog-20261127", "maillog-20261128"], true),
        ("exim", "mainlog-*", ["mainlog-20261127", "mainlog-20261128"], true),
        ("postfix", "*/*/*/mail.log", ["2026/11/30/mail.log", "2026/12/01/mail.log"], false),
        ("exim", "*mainlog", ["202611mainlog", "202612mainlog"], false),
    ] {
        let input = format!("[[input]]\nfile = \"DIR/logs/{pattern}\"\nmta = \"{mta}\"\ntimezone = \"UTC\"\n");
        let host = Host::new(&input);
        let [old, new] = files.map(|name| host.path("logs").join(name));
        fs::create_dir_all(old.parent().unwrap()).unwrap();
        let (before, after, wanted) = over_midnight(mta);
        let now = jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M:%S").to_string();
        let other = |number: u64| match mta {
            "postfix" => lines(number),
            _ => format!(
                "{now} 1xUwZB-0006OQ-{number} => u@{} R=r T=t H=mx.a.test [203.0.113.9] X=TLS1.3:X:256 CV=yes C=\"250 ok\"\n",
                domain(number)
            ),
        };
        append(&old, &(other(50) + &before));
        let mut daemon = host.start(host.serve());
        host.wait_for_session(50);
        if restarts {
            daemon.stop();
            daemon = host.start(host.serve());
        }
        fs::create_dir_all(new.parent().unwrap()).unwrap();
        append(&new, &(after + &other(60)));
        host.wait_for_session(60);
        let shown = host.ask(&["status"]);
        assert_eq!(shown.matches(&format!("/logs/{pattern} ")).count(), 1, "{shown}");
        let shown = host.ask(&["results", "--domain", &domain(0)]);
        let words = shown.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words.contains(wanted), "{mta} {pattern}: {shown}");
        daemon.stop();
        assert_eq!(host.counted(), BTreeMap::from([(0, 1), (50, 1), (60, 1)]), "{mta} {pattern}");
    }
}
