//! A store that cannot be written: answers go on, nothing that is in memory is lost, and every session is counted once.
//! The real daemon, asked as Postfix asks, with its store on a small file system of its own.
//!
//! Needs a mount namespace (unshare(1)), or root.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use hickory_proto::rr::RecordType;
use lab::daemon::{Daemon, Program};
use lab::socketmap;
use lab::world::{Domain, Server, World};
use rustix::process::{Signal, kill_process};
use serde_json::Value;

/// Set in the process that may mount.
const MAY_MOUNT: &str = "TLSWARDEN_TEST_MAY_MOUNT";

/// How long anything may take: a machine under load, not a measure of the daemon.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs one test of this program where it may mount, unless it is there already.
fn may_mount(test: &str) -> bool {
    if std::env::var_os(MAY_MOUNT).is_some() {
        return true;
    }
    let done = Command::new("unshare")
        .args(["--map-root-user", "--mount"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(MAY_MOUNT, "1")
        .output()
        .unwrap_or_else(|e| panic!("this test needs unshare(1) of util-linux: {e}"));
    let said = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}");
    false
}

fn mount(arguments: &[&str], at: &Path) {
    let done = Command::new("mount").args(arguments).arg(at).output().unwrap();
    assert!(done.status.success(), "mount: {}", String::from_utf8_lossy(&done.stderr));
}

/// A world whose daemon has its store on a file system of 64 MiB.
struct Host {
    world: World,
    program: Program,
    daemon: Option<Daemon>,
    /// The mail log, and how many sessions it has.
    log: fs::File,
    sessions: usize,
}

impl Host {
    async fn new() -> Host {
        let domain = |name: &str| Domain::new(name).host("mx", Server::Sound).sts("enforce", "mx");
        let domains = ["first.test", "second.test", "third.test"].map(domain);
        let world = World::start(lab::world::Options::default(), &domains).await.unwrap();
        let config = fs::read_to_string(world.config()).unwrap();
        fs::write(world.config(), config.replace("[closed_network]\n", "[closed_network]\nretry = \"1s\"\n")).unwrap();
        fs::create_dir(world.folder().join("store")).unwrap();
        mount(&["-t", "tmpfs", "-o", "size=64m", "tmpfs"], &world.folder().join("store"));
        let log = fs::OpenOptions::new().create(true).append(true).open(world.log()).unwrap();
        let program = Program::lab(env!("CARGO_BIN_EXE_lab"));
        Host { world, program, daemon: None, log, sessions: 0 }
    }

    async fn start(&mut self) {
        self.daemon = Some(Daemon::start(&self.program, &self.world).await.unwrap());
    }

    async fn kill(&mut self) {
        self.daemon.take().unwrap().kill().await.unwrap();
    }

    fn store(&self) -> PathBuf {
        self.world.folder().join("store")
    }

    /// Leaves no octet free.
    fn fill(&self) {
        let mut file = fs::File::create(self.store().join("filler")).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
    }

    fn free(&self) {
        fs::remove_file(self.store().join("filler")).unwrap();
    }

    /// A session to a domain, in the log.
    fn deliver(&mut self, domain: &str) {
        self.sessions += 1;
        let (at, id) = (jiff::Timestamp::now(), self.sessions);
        let relay = format!("mx.{domain}[127.0.1.1]:25");
        let lines = format!(
            "{at} mta postfix/smtp[{id}]: Verified TLS connection established to {relay}: TLSv1.3 with cipher \
             TLS_AES_256_GCM_SHA384 (256/256 bits)\n\
             {at} mta postfix/smtp[{id}]: 4jXBgb2Tz{id:06}: to=<user@{domain}>, relay={relay}, delay=0.02, \
             delays=0/0/0.02/0, dsn=2.0.0, status=sent (250 2.0.0 Ok)\n"
        );
        self.log.write_all(lines.as_bytes()).unwrap();
    }

    /// The domain gets its enforced policy.
    async fn secure(&self, domain: &str) {
        let answer = socketmap::ask(&self.world.socketmap(), "policy", domain).await.unwrap();
        assert_eq!(answer, format!("OK secure match=mx.{domain} servername=hostname"), "{}", self.daemon_log());
    }

    /// From now on a domain's policy is in no other place than the daemon.
    fn unpublish(&self, domain: &str) {
        self.world.dns.change().remove(&format!("_mta-sts.{domain}"), RecordType::TXT);
    }

    fn daemon_log(&self) -> String {
        fs::read_to_string(self.world.folder().join("daemon.log")).unwrap()
    }

    async fn json(&self, arguments: &[&str]) -> Value {
        let output = self.program.run(&self.world, arguments).await.unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }

    async fn until(&self, what: &str, done: impl AsyncFn(&Host) -> bool) {
        let limit = Instant::now() + PATIENCE;
        while !done(self).await {
            assert!(Instant::now() < limit, "not reached: {what}\n{}", self.daemon_log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The store was read from a copy, of which nothing is left.
    async fn reads_a_copy(&self) {
        let log = self.daemon_log();
        assert!(log.contains("store: it cannot be written, and is read from a copy "), "{log}");
        let gone = async |host: &Host| {
            let mut names = fs::read_dir(host.world.folder()).unwrap().map(|entry| entry.unwrap().file_name());
            !names.any(|name| name.as_encoded_bytes().starts_with(b"tlswarden-store-"))
        };
        self.until("the copy is gone", gone).await;
    }

    async fn store_is(&self, state: &str) {
        let is = async |host: &Host| host.json(&["status", "--json"]).await["parts"]["store"]["state"] == state;
        self.until(&format!("the store is {state}"), is).await;
    }

    async fn counted(&self) -> usize {
        let rows = self.json(&["results", "--json"]).await;
        let rows = rows.as_array().cloned().unwrap_or_default();
        let sum = |row: &Value| row["successful"].as_u64().unwrap_or(0) + row["failed"].as_u64().unwrap_or(0);
        usize::try_from(rows.iter().map(sum).sum::<u64>()).unwrap()
    }

    /// A domain's policy is in the store: a copy of it has the policy.
    async fn is_written(&self, domain: &str) {
        let written = async |host: &Host| {
            let folder = tempfile::tempdir().unwrap();
            let (copy, config) = (folder.path().join("store"), folder.path().join("config.toml"));
            let copied = host.program.run(&host.world, &["backup", &copy.display().to_string()]).await.unwrap();
            let text = fs::read_to_string(host.world.config()).unwrap();
            let text = text.replace(&host.store().display().to_string(), &copy.display().to_string());
            let control = host.world.folder().join("control").display().to_string();
            fs::write(&config, text.replace(&control, &folder.path().join("control").display().to_string())).unwrap();
            let mut list = Command::new(env!("CARGO_BIN_EXE_lab"));
            list.args(["daemon", "policy", "list", "--json", "--config"]).arg(config);
            let listed = String::from_utf8(list.output().unwrap().stdout).unwrap();
            copied.status.success() && listed.contains(domain)
        };
        self.until(&format!("the policy of {domain} is written"), written).await;
    }

    /// Every session is counted, and no more.
    async fn all_counted(&self) {
        self.until("all is counted", async |host: &Host| host.counted().await >= host.sessions).await;
        assert_eq!(self.counted().await, self.sessions);
    }

    async fn reload(&self) -> (Option<i32>, String) {
        let output = self.program.run(&self.world, &["reload"]).await.unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(said).unwrap())
    }

    /// A host whose daemon has answered and counted `first.test`, before its disk filled up and the store was off.
    async fn on_a_full_disk() -> Host {
        let mut host = Host::new().await;
        host.start().await;
        host.secure("first.test").await;
        host.deliver("first.test");
        host.all_counted().await;
        host.fill();
        host.fails_to_count().await;
        host
    }

    /// More sessions are in the log than the store has room for.
    async fn fails_to_count(&mut self) {
        for n in 0..5000 {
            self.deliver(&format!("d{n}.test"));
        }
        self.store_is("off").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_up_while_it_runs_and_at_a_reload() {
    if !may_mount("a_disk_that_fills_up_while_it_runs_and_at_a_reload") {
        return;
    }
    let mut host = Host::on_a_full_disk().await;
    // Learned while the store is off: in memory alone.
    host.secure("second.test").await;
    host.unpublish("first.test");
    host.unpublish("second.test");
    assert_eq!(host.reload().await.0, Some(0), "{}", host.daemon_log());
    for domain in ["first.test", "second.test", "third.test"] {
        host.secure(domain).await;
    }
    host.deliver("second.test");
    // As `systemctl reload postfix` does.
    kill_process(host.daemon.as_ref().unwrap().id().unwrap(), Signal::HUP).unwrap();
    host.until("the second reload", async |host: &Host| host.daemon_log().matches(": taken").count() == 2).await;
    host.secure("second.test").await;
    host.store_is("off").await;
    let said = String::from_utf8(host.program.run(&host.world, &["status"]).await.unwrap().stdout).unwrap();
    assert!(said.starts_with("OFF "), "{said}");
    host.free();
    host.store_is("running").await;
    host.all_counted().await;
    // Written as well: it survives what ends the memory.
    host.is_written("first.test").await;
    host.is_written("second.test").await;
    host.kill().await;
    host.start().await;
    host.secure("first.test").await;
    host.secure("second.test").await;
    host.all_counted().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_on_a_full_disk() {
    if !may_mount("a_start_on_a_full_disk") {
        return;
    }
    let mut host = Host::on_a_full_disk().await;
    host.kill().await;
    // Its policy is on that disk alone.
    host.unpublish("first.test");
    host.start().await;
    host.secure("first.test").await;
    host.reads_a_copy().await;
    host.secure("second.test").await;
    host.deliver("second.test");
    host.store_is("off").await;
    host.unpublish("second.test");
    assert_eq!(host.reload().await.0, Some(0), "{}", host.daemon_log());
    host.secure("second.test").await;
    host.kill().await;
    host.start().await;
    host.store_is("off").await;
    host.secure("third.test").await;
    host.unpublish("third.test");
    host.free();
    host.store_is("running").await;
    host.all_counted().await;
    host.secure("third.test").await;
    host.is_written("third.test").await;
    host.kill().await;
    host.start().await;
    // The first was on disk all the time, the last was written when there was room.
    host.secure("first.test").await;
    host.secure("third.test").await;
    host.all_counted().await;
    let log = host.daemon_log();
    assert!(log.contains("store: off: ") && log.contains("store: on again"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_store_and_a_folder_that_is_none() {
    if !may_mount("a_read_only_store_and_a_folder_that_is_none") {
        return;
    }
    let mut host = Host::new().await;
    host.start().await;
    host.secure("first.test").await;
    host.deliver("first.test");
    host.all_counted().await;
    host.is_written("first.test").await;
    host.kill().await;
    mount(&["-o", "remount,ro"], &host.store());
    host.deliver("second.test");
    host.unpublish("first.test");
    host.start().await;
    host.secure("first.test").await;
    host.reads_a_copy().await;
    host.store_is("off").await;
    mount(&["-o", "remount,rw"], &host.store());
    host.store_is("running").await;
    host.all_counted().await;
    host.kill().await;

    let mut host = Host::new().await;
    assert!(Command::new("umount").arg(host.store()).status().unwrap().success());
    fs::remove_dir(host.store()).unwrap();
    fs::write(host.store(), "").unwrap();
    host.start().await;
    host.secure("first.test").await;
    host.deliver("first.test");
    host.store_is("off").await;
    fs::remove_file(host.store()).unwrap();
    host.store_is("running").await;
    host.all_counted().await;
}
