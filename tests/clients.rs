//! Clients of the sockets that ask for nothing, read nothing, or ask for too much: the real daemon answers others and reads
//! its log meanwhile, with as few descriptors as there may be.

mod name_server;
mod running;

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tlswarden::base::clock::Clock;

use name_server::{MX, NameServer, exchange};
use running::Running;

const BINARY: &str = env!("CARGO_BIN_EXE_tlswarden");

/// How long the daemon may take until something is there.
const PATIENCE: Duration = Duration::from_secs(60);

/// The descriptors that the daemon may have, and more clients than that.
const DESCRIPTORS: usize = 256;
const CLIENTS: usize = 400;

struct Host {
    folder: tempfile::TempDir,
    socketmap: SocketAddr,
}

impl Host {
    /// A host whose resolver answers nothing.
    fn new() -> Host {
        Host::with_resolver(SocketAddr::from((Ipv4Addr::LOCALHOST, 9)))
    }

    fn with_resolver(resolver: SocketAddr) -> Host {
        // Some test beside this one may take the port before the daemon does; then it does not start, and that shows.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let socketmap = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().display();
        let long: String = (0..480).map(|n| format!(":mx{n}.long.example")).collect();
        let config = format!(
            "[store]\npath = \"{at}/store\"\n[control]\nsocket = \"{at}/control\"\n[socketmap]\n\
             listen = [\"unix:{at}/socketmap\", \"inet:{socketmap}\"]\n[readsocket]\nlisten = [\"unix:{at}/exim\"]\n\
             [postfix]\nversion = \"3.7\"\ndefault_level = \"may\"\ndnssec = true\n\
             [status]\nlisten = [\"unix:{at}/status\"]\n[resolver]\naddress = \"{resolver}\"\n\
             [policy]\nanswer_budget = \"1s\"\n[[policy.override]]\ndomain = \"long.example\"\nanswer = \"secure match=mx{long}\"\n\
             [[input]]\nmta = \"postfix\"\nfile = \"{at}/mail.log\"\n"
        );
        fs::write(folder.path().join("config.toml"), config).unwrap();
        fs::write(folder.path().join("mail.log"), "").unwrap();
        Host { folder, socketmap }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts `serve` with so many descriptors, soft and hard, and waits until it answers.
    fn start(&self, descriptors: usize) -> Running {
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg(format!("ulimit -n {descriptors} && exec \"$@\""))
            .args(["sh", BINARY, "serve", "--config"]);
        command.arg(self.path("config.toml")).stdin(Stdio::null()).stdout(Stdio::null());
        let running = Running(command.stderr(fs::File::create(self.path("log")).unwrap()).spawn().unwrap());
        self.wait_for("the daemon does not answer", || self.status().contains(", running"));
        running
    }

    fn status(&self) -> String {
        self.ask_program(&["status"])
    }

    fn ask_program(&self, arguments: &[&str]) -> String {
        let (name, rest) = arguments.split_first().unwrap();
        let output = Command::new(BINARY).arg(name).arg("--config").arg(self.path("config.toml")).args(rest).output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.path("socketmap")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn wait_for(&self, problem: &str, mut done: impl FnMut() -> bool) {
        let until = Instant::now() + PATIENCE;
        while !done() {
            assert!(Instant::now() < until, "{problem}:\n{}", fs::read_to_string(self.path("log")).unwrap());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Asks as Postfix does: a connection that is closed without a reply is tried once more.
    fn assert_answered(&self) {
        let mut answer = Vec::new();
        self.wait_for("no answer", || {
            answer.clear();
            let mut stream = self.connect();
            stream.write_all(b"18:policy [192.0.2.1],").is_ok() && read_reply(&mut stream, &mut answer)
        });
        assert_eq!(String::from_utf8_lossy(&answer), "9:NOTFOUND ,");
        let mut exim = UnixStream::connect(self.path("exim")).unwrap();
        exim.set_read_timeout(Some(PATIENCE)).unwrap();
        exim.write_all(b"policy [192.0.2.1]\n").unwrap();
        let mut answer = String::new();
        exim.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "mode=none dane=no\n");
    }

    /// Writes a session to a log that was rotated away meanwhile, and waits until it is counted.
    fn assert_counted(&self, domain: &str) {
        fs::rename(self.path("mail.log"), self.path("mail.log.1")).unwrap();
        let now = jiff::Timestamp::from_second(Clock::default().seconds()).unwrap();
        let lines = format!(
            "{now} host postfix/smtp[77]: Untrusted TLS connection established to mx.{domain}[192.0.2.7]:25: TLSv1.3 with \
             cipher TLS_AES_256_GCM_SHA384 (256/256 bits)\n{now} host postfix/smtp[77]: F35CEA26071: \
             to=<a@{domain}>, relay=mx.{domain}[192.0.2.7]:25, delay=1, delays=0/0/0/1, dsn=2.0.0, status=sent (250 ok)\n"
        );
        fs::write(self.path("mail.log"), lines).unwrap();
        self.wait_for(&format!("{domain} is not counted"), || {
            self.ask_program(&["results", "--json", "--domain", domain]).contains(domain)
        });
    }
}

fn read_reply(stream: &mut UnixStream, reply: &mut Vec<u8>) -> bool {
    let mut byte = [0];
    while stream.read(&mut byte).is_ok_and(|read| read == 1) {
        reply.push(byte[0]);
        if byte[0] == b',' {
            return true;
        }
    }
    false
}

#[test]
fn idle_clients_take_no_descriptor_from_others() {
    let host = Host::new();
    let _daemon = host.start(DESCRIPTORS);
    host.assert_counted("before.example");
    let mut idle = Vec::new();
    for n in 0..CLIENTS {
        match n % 4 {
            0 => idle.push(host.connect()),
            1 => idle.push(UnixStream::connect(host.path("exim")).unwrap()),
            2 => idle.push(UnixStream::connect(host.path("status")).unwrap()),
            _ => idle.push({
                // Half a request.
                let mut stream = host.connect();
                let _ = stream.write_all(b"18:policy [192");
                stream
            }),
        }
    }
    let tcp: Vec<_> = (0..CLIENTS).map(|_| TcpStream::connect(host.socketmap).unwrap()).collect();
    host.assert_answered();
    host.assert_counted("during.example");
    assert!(host.status().contains(", running"));
    // Those that came last are still there.
    let mut last = tcp.last().unwrap();
    last.set_read_timeout(Some(PATIENCE)).unwrap();
    last.write_all(b"18:policy [192.0.2.1],").unwrap();
    let mut reply = [0; 12];
    last.read_exact(&mut reply).unwrap();
    assert_eq!(&reply, b"9:NOTFOUND ,");
}

/// Each asks for all that it can of a long answer, and reads nothing.
#[test]
fn clients_that_do_not_read_hold_a_bounded_memory() {
    let host = Host::new();
    let daemon = host.start(4096);
    let memory = || -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", daemon.0.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
    };
    let request = b"19:policy long.example,".repeat(500);
    let before = memory();
    let mut clients = Vec::new();
    for _ in 0..1500 {
        let mut stream = host.connect();
        stream.set_nonblocking(true).unwrap();
        let _ = stream.write(&request);
        clients.push(stream);
    }
    host.assert_answered();
    let peak = memory().saturating_sub(before);
    assert!(peak < 150 * 1024, "{peak} KiB");
}

/// A client over TCP asks for thousands of names with many MX hosts whose servers do not answer; another, on the unix-domain
/// socket, for a few that are answered at once.
#[test]
fn one_client_leaves_queries_to_the_others() {
    let silent = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&silent);
    let server = NameServer::start(move |query| {
        let name = query.name.as_str();
        match (name.ends_with("hostile.test"), query.kind) {
            (true, MX) => {
                let hosts = (0..32).map(|n| (name, MX, exchange(&format!("h{n}.{name}"))));
                query.answer(0, true, &hosts.collect::<Vec<_>>())
            }
            (true, _) => {
                seen.fetch_add(1, Ordering::Relaxed);
                None
            }
            (false, _) => query.answer(0, true, &[]),
        }
    });
    let host = Host::with_resolver(server.address);
    let _daemon = host.start(DESCRIPTORS);
    let mut hostile = Vec::new();
    for client in 0..90 {
        let mut stream = TcpStream::connect(host.socketmap).unwrap();
        let name = |n| format!("policy {client:02}{n:02}.hostile.test");
        let requests: String = (0..60).map(name).map(|text| format!("{}:{text},", text.len())).collect();
        stream.write_all(requests.as_bytes()).unwrap();
        hostile.push(stream);
    }
    host.wait_for("the hostile names are not looked up", || silent.load(Ordering::Relaxed) >= 200);
    // Ten in a row: now and then one is answered by chance.
    let (mut asked, mut in_a_row) = (0, 0);
    host.wait_for("the other client is not answered", || {
        asked += 1;
        let (request, mut answer) = (format!("policy {asked:03}.ordinary.test"), Vec::new());
        let mut stream = host.connect();
        stream.write_all(format!("{}:{request},", request.len()).as_bytes()).unwrap();
        let answered = read_reply(&mut stream, &mut answer) && answer == b"9:NOTFOUND ,";
        in_a_row = if answered { in_a_row + 1 } else { 0 };
        in_a_row == 10
    });
}
