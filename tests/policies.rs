//! `tlswarden policy`, the real program: of the store where no daemon runs, and over the control socket.

use std::path::PathBuf;
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

use tlswarden::answering::policy::sts::document;
use tlswarden::answering::policy::sts::policy::StsPolicy;
use tlswarden::base::clock::Clock;
use tlswarden::store::embedded::EmbeddedStore;
use tlswarden::store::{Batch, Store, Table};

const PROGRAM: &str = env!("CARGO_BIN_EXE_tlswarden");

struct Host {
    folder: tempfile::TempDir,
}

impl Host {
    /// A host whose store has the policies of two domains.
    fn new() -> Host {
        let host = Host { folder: tempfile::tempdir().unwrap() };
        let at = |name: &str| host.folder.path().join(name).display().to_string();
        let config = format!(
            "[store]\npath = \"{}\"\n[control]\nsocket = \"{}\"\n[socketmap]\nlisten = [\"unix:{}\"]\n\
             [resolver]\naddress = \"127.0.0.1:9\"\n",
            at("store"),
            at("control"),
            at("socketmap")
        );
        std::fs::write(host.config(), config).unwrap();
        let clock = Clock::default();
        let store = EmbeddedStore::open(&host.folder.path().join("store"), clock).unwrap().store;
        let mut batch = Batch::default();
        for (domain, mode, mx, ago) in
            [("b.example", "testing", "mx.b.example", 60), ("a.example", "enforce", "*.a.example", 3600)]
        {
            let text = format!("version: STSv1\nmode: {mode}\nmx: {mx}\nmax_age: 604800\n");
            let fetched = clock.seconds() - ago;
            let policy = StsPolicy::new(domain, "1", &document::parse(text.as_bytes()).unwrap(), fetched);
            batch.set.push((Table::Sts, domain.into(), Some(policy.encode(fetched, None, None))));
        }
        store.write(batch).unwrap();
        host
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("tlswarden.toml")
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(PROGRAM).arg("policy").args(arguments).arg("--config").arg(self.config()).output().unwrap()
    }

    fn says(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn listed(&self, arguments: &[&str]) -> Vec<String> {
        let json = self.says(&[&["list", "--json"], arguments].concat());
        let listed: Vec<serde_json::Value> = serde_json::from_str(&json).unwrap();
        listed.iter().map(|one| one["next-hop"].as_str().unwrap().to_owned()).collect()
    }

    fn daemon(&self) -> Daemon {
        let mut command = Command::new(PROGRAM);
        let child =
            command.env("TLSWARDEN_LOG", "error").arg("serve").arg("--config").arg(self.config()).spawn().unwrap();
        let daemon = Daemon(child);
        let until = Instant::now() + Duration::from_secs(20);
        while std::os::unix::net::UnixStream::connect(self.folder.path().join("control")).is_err() {
            assert!(Instant::now() < until, "the daemon does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        daemon
    }
}

struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        // SIGKILL: what was said to be done must be in the store.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn check_all(host: &Host) {
    assert_eq!(host.listed(&[]), ["a.example", "b.example"]);
    assert_eq!(host.listed(&["--sort", "fetched"]), ["b.example", "a.example"]);
    assert_eq!(host.listed(&["--sort", "expires"]), ["a.example", "b.example"]);
    assert_eq!(host.listed(&["--filter", "mode=enforce"]), ["a.example"]);
    assert_eq!(host.listed(&["--filter", "answer=secure", "--filter", "domain=B."]), [""; 0]);
    assert_eq!(host.listed(&["--filter", "domain=.example", "--filter", "domain=b"]), ["b.example"]);
    assert_eq!(host.listed(&["--filter", "failing"]), [""; 0]);
    let people = host.says(&["list"]);
    assert!(people.starts_with("next hop ") && people.ends_with("\n2 next hops\n"), "{people}");
    let show = host.says(&["show", "A.example."]);
    assert!(show.starts_with("a.example\n  answer        secure\n"), "{show}");
    assert!(show.contains("    mx: *.a.example\n") && show.contains("policy        id 1, mode enforce"), "{show}");
    assert_eq!(host.says(&["show", "c.example"]), "nothing is known of c.example: it was not asked about\n");
    let table = host.says(&["export"]);
    let lines: Vec<&str> = table.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(lines, ["a.example\tsecure match=.a.example servername=hostname"]);
    for bad in [
        &["show", "[192.0.2.1]"][..],
        &["purge"],
        &["purge", "a.example", "--all"],
        &["list", "--filter", "x=y"],
        &["export", "--all"],
        &[],
        &["a.example"],
    ] {
        assert_eq!(host.run(bad).status.code(), Some(64), "{bad:?}");
    }
}

#[test]
fn without_a_daemon_the_store_is_asked() {
    let host = Host::new();
    check_all(&host);
    assert_eq!(host.says(&["purge", "a.example"]), "forgotten: 1 domains\n");
    assert_eq!(host.listed(&[]), ["b.example"]);
    assert_eq!(host.says(&["purge", "a.example"]), "forgotten: 0 domains\n");
}

#[test]
fn the_daemon_is_asked_and_what_it_forgets_is_gone_for_good() {
    let host = Host::new();
    let daemon = host.daemon();
    check_all(&host);
    assert_eq!(host.says(&["purge", "b.example"]), "forgotten: 1 domains\n");
    assert_eq!(host.listed(&[]), ["a.example"]);
    drop(daemon);
    assert_eq!(host.listed(&[]), ["a.example"]);
    let daemon = host.daemon();
    assert_eq!(host.says(&["purge", "--all"]), "forgotten: 1 domains\n");
    drop(daemon);
    assert_eq!(host.listed(&["--all"]), [""; 0]);
}

#[test]
fn a_refresh_that_fails_takes_nothing_away() {
    let host = Host::new();
    let _daemon = host.daemon();
    let said = host.says(&["refresh", "a.example"]);
    assert!(said.contains("mode enforce"), "{said}");
    assert_eq!(host.listed(&[]), ["a.example", "b.example"]);
}

/// The table is one that the real Postfix reads (`tests/run` installs it).
#[test]
fn postmap_reads_the_table() {
    let host = Host::new();
    let folder = host.folder.path();
    std::fs::write(folder.join("main.cf"), "compatibility_level = 3.6\n").unwrap();
    std::fs::write(folder.join("table"), host.says(&["export"])).unwrap();
    let asked = |key: &str| {
        let map = format!("texthash:{}", folder.join("table").display());
        let mut postmap = Command::new("/usr/sbin/postmap");
        let output = postmap.arg("-c").arg(folder).args(["-q", key, &map]).output().expect("Postfix is installed");
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(asked("a.example"), "secure match=.a.example servername=hostname\n");
    assert_eq!(asked("b.example"), "");
}
