//! Loss of power under the real daemon, on a real ext4: its log and its store are on an image that is mounted through a loop
//! device, copied while it is mounted, and mounted again, which replays its journal.
//!
//! The store is on disk when a commit returns; the log, which nobody syncs, comes back without its end. Every session has a
//! domain of its own, so that the store tells which were counted, and how often.
//! Needs root, loop devices and mke2fs(8); it fails without them.

mod running;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tlswarden::base::clock::Clock;
use tlswarden::store::Store;
use tlswarden::store::embedded::EmbeddedStore;

use running::Running;

const BINARY: &str = env!("CARGO_BIN_EXE_tlswarden");

/// Set in the process that may mount.
const MAY_MOUNT: &str = "TLSWARDEN_TEST_MAY_MOUNT";

/// How long the daemon may take until something is there.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often power is cut before the kernel is held to write everything back at once.
const MAX_CUTS: u32 = 10;

/// The sessions that are synced before power is cut, those that are not, and those that follow.
const SYNCED: u64 = 100;
const UNSYNCED: u64 = 150;
const NEW: u64 = 400;

fn run(program: &str, arguments: &[&str]) {
    let done = Command::new(program).args(arguments).output();
    let done = done.unwrap_or_else(|e| panic!("this test needs {program}: {e}"));
    assert!(done.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// A file system in an image, mounted in a folder of the same name for every image.
struct Image {
    image: PathBuf,
    folder: PathBuf,
}

impl Image {
    fn make(home: &Path) -> Image {
        let image = home.join("disk");
        File::create(&image).unwrap().set_len(96 << 20).unwrap();
        run("mke2fs", &["-q", "-F", "-t", "ext4", image.to_str().unwrap()]);
        Image::mount(image, home.join("mounted"))
    }

    fn mount(image: PathBuf, folder: PathBuf) -> Image {
        fs::create_dir_all(&folder).unwrap();
        run("mount", &["-o", "loop", image.to_str().unwrap(), folder.to_str().unwrap()]);
        Image { image, folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// What the disk holds at this moment; then the host is gone.
    fn cut_power(self, daemon: Running, to: PathBuf) -> Image {
        fs::copy(&self.image, &to).unwrap();
        drop(daemon);
        let folder = self.folder.clone();
        drop(self);
        Image::mount(to, folder)
    }

    fn append(&self, lines: &str) -> File {
        let mut log = OpenOptions::new().create(true).append(true).open(self.path("mail.log")).unwrap();
        log.write_all(lines.as_bytes()).unwrap();
        log
    }

    fn log_length(&self) -> u64 {
        fs::metadata(self.path("mail.log")).unwrap().len()
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // Fails with the test; the namespace ends with it.
        let _ = Command::new("umount").arg(&self.folder).status();
    }
}

/// The lines of sessions that succeeded.
fn lines(numbers: std::ops::Range<u64>) -> String {
    let mx = "mx.a.test[203.0.113.10]:25";
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let of_one = |number| {
        format!(
            "{now} mta postfix/smtp[7]: Trusted TLS connection established to {mx}: TLSv1.3 with cipher X\n\
             {now} mta postfix/smtp[7]: F35CEA26071: to=<user@d{number}.test>, relay={mx}, delay=0.1, \
             delays=0/0/0/0.1, dsn=2.0.0, status=sent (250 2.0.0 Ok)\n"
        )
    };
    numbers.map(of_one).collect()
}

fn wait_for(what: &str, done: impl Fn() -> bool) {
    let limit = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < limit, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Starts the daemon on the image; what it logs goes to `errors`.
fn start(on: &Image, errors: &Path) -> Running {
    let at = on.folder.display();
    let config = format!(
        "[store]\npath = \"{at}/store\"\n[control]\nsocket = \"{at}/control\"\n[socketmap]\nlisten = []\n\
         [resolver]\naddress = \"127.0.0.1:9\"\n[[input]]\nfile = \"{at}/mail.log\"\n"
    );
    fs::write(on.path("config.toml"), config).unwrap();
    let _ = fs::remove_file(on.path("control"));
    let mut command = Command::new(BINARY);
    command.args(["serve", "--config"]).arg(on.path("config.toml")).stdin(Stdio::null()).stdout(Stdio::null());
    let errors = OpenOptions::new().create(true).append(true).open(errors).unwrap();
    let running = Running(command.stderr(errors).spawn().unwrap());
    wait_for("the daemon does not answer", || UnixStream::connect(on.path("control")).is_ok());
    running
}

fn wait_for_session(on: &Image, number: u64) {
    let name = format!("d{number}.test");
    wait_for(&format!("{name} is not counted"), || {
        let mut command = Command::new(BINARY);
        let config = on.path("config.toml");
        let asked = command.args(["results", "--json", "--domain", &name, "--config"]).arg(config).output().unwrap();
        String::from_utf8_lossy(&asked.stdout).contains(&name)
    });
}

/// Each session once, and nothing else.
fn assert_counted_once(on: &Image, sessions: u64) {
    let store = EmbeddedStore::open(&on.path("store"), Clock::default()).unwrap().store;
    let mut counted = 0;
    for day in store.days().unwrap() {
        for domain in store.domains(day).unwrap() {
            let sum: u64 = store.rows(day, &domain).unwrap().iter().map(|row| row.successful + row.failed).sum();
            assert_eq!(sum, 1, "{domain}");
            counted += sum;
        }
    }
    assert_eq!(counted, sessions);
}

/// Cuts power after all sessions have been counted, until the log has lost some of them.
fn lose_the_end_of_the_log(home: &Path, errors: &Path) -> (Image, u64) {
    let mut image = Image::make(home);
    let mut written = SYNCED;
    image.append(&lines(0..written)).sync_all().unwrap();
    for cut in 0..MAX_CUTS {
        let daemon = start(&image, errors);
        image.append(&lines(written..written + UNSYNCED));
        written += UNSYNCED;
        wait_for_session(&image, written - 1);
        let length = image.log_length();
        image = image.cut_power(daemon, home.join(format!("disk-{cut}")));
        if image.log_length() < length {
            println!("the log of {length} bytes came back with {}", image.log_length());
            return (image, written);
        }
    }
    panic!("this kernel writes a log back at once: nothing is lost in {MAX_CUTS} losses of power");
}

/// Starts the daemon after the loss, `before` it or after it with new lines.
fn assert_nothing_is_counted_twice(new_lines_first: bool) {
    let home = tempfile::tempdir().unwrap();
    let errors = home.path().join("errors");
    let (image, counted) = lose_the_end_of_the_log(home.path(), &errors);
    let daemon = (!new_lines_first).then(|| start(&image, &errors));
    if daemon.is_some() {
        wait_for("the loss is not logged", || is_loss_logged(&errors));
    }
    let text = fs::read(image.path("mail.log")).unwrap();
    let end = if text.last().is_some_and(|byte| *byte != b'\n') { "\n" } else { "" };
    // More than what was lost.
    drop(image.append(&[end, &lines(counted..counted + NEW)].concat()));
    let daemon = daemon.unwrap_or_else(|| start(&image, &errors));
    wait_for_session(&image, counted + NEW - 1);
    assert!(is_loss_logged(&errors), "{}", fs::read_to_string(&errors).unwrap());
    drop(daemon);
    assert_counted_once(&image, counted + NEW);
}

fn is_loss_logged(errors: &Path) -> bool {
    let text = fs::read_to_string(errors).unwrap();
    text.lines().any(|line| {
        line.contains("is not as it was read")
            && line.contains(" bytes that were read within ")
            && line.contains(" minutes")
    })
}

/// Runs one test of this program in a mount namespace, unless it is there already.
fn may_mount(test: &str) -> bool {
    if std::env::var_os(MAY_MOUNT).is_some() {
        return true;
    }
    let done = Command::new("unshare")
        .arg("--mount")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(MAY_MOUNT, "1")
        .output()
        .unwrap_or_else(|e| panic!("this test needs unshare(1) of util-linux: {e}"));
    let said = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    println!("{said}");
    assert!(done.status.success(), "this test needs root and loop devices: {said}");
    false
}

#[test]
fn a_log_that_lost_its_end_is_read_on_and_nothing_is_counted_twice() {
    if may_mount("a_log_that_lost_its_end_is_read_on_and_nothing_is_counted_twice") {
        assert_nothing_is_counted_twice(false);
    }
}

#[test]
fn a_log_that_lost_its_end_and_grew_again_loses_nothing_and_nothing_is_counted_twice() {
    if may_mount("a_log_that_lost_its_end_and_grew_again_loses_nothing_and_nothing_is_counted_twice") {
        assert_nothing_is_counted_twice(true);
    }
}
