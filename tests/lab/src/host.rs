//! The host that a test plays with a real MTA: namespaces of its own, and the world's DNS as its trusted resolver.
//!
//! Takes: the name of a test, which runs itself again inside. Gives: a network with loopback alone, mounts and processes
//! that end with the test; nothing of the real host is touched.
//! Limits: root with CAP_SYS_ADMIN; `unshare`, `mount` and `ip`.
//! When it fails: a text that says what is missing, or what went wrong inside.
//! Not here: the MTA (`postfix`, `exim`).

use std::ffi::OsStr;
use std::fs;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Seconds of a UTC day.
pub const DAY: u64 = 86_400;

/// Set in the process inside the host, to its argument.
const INSIDE: &str = "TLSWARDEN_LAB_INSIDE";

/// In the process inside the host: its argument, once the host is set up. `None` outside.
pub fn inside() -> Option<String> {
    let argument = std::env::var(INSIDE).ok()?;
    set_up().unwrap_or_else(|e| panic!("{e}"));
    Some(argument)
}

/// Runs one test of this test program again, inside a host of its own, with `argument`; its output goes where ours goes.
pub fn run_inside(test: &str, argument: &(impl AsRef<OsStr> + ?Sized)) -> Result<(), String> {
    run_with(test, argument, &[])
}

/// The same for a test that is run only where it is asked for.
pub fn run_ignored_inside(test: &str, argument: &(impl AsRef<OsStr> + ?Sized)) -> Result<(), String> {
    run_with(test, argument, &["--ignored"])
}

fn run_with(test: &str, argument: &(impl AsRef<OsStr> + ?Sized), more: &[&str]) -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("needs root: network namespaces and a Postfix of its own".into());
    }
    let itself = std::env::current_exe().map_err(|e| e.to_string())?;
    let status = Command::new("unshare")
        .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"])
        .arg(itself)
        .args(["--exact", test, "--nocapture"])
        .args(more)
        .env(INSIDE, argument)
        .status()
        .map_err(|e| format!("needs unshare (util-linux): {e}"))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("inside the namespaces: {status} (unshare needs CAP_SYS_ADMIN; see above)"))
    }
}

/// Loopback up, and the world's DNS as the host's trusted resolver.
fn set_up() -> Result<(), String> {
    run("ip", &["link", "set", "lo", "up"])?;
    replace("/etc/resolv.conf", "nameserver 127.0.0.1\noptions trust-ad edns0\n")
}

/// Adds a user with a group of the same name and number, if there is none of this name. Inside alone: the host's own
/// users stay as they are.
pub fn add_user(name: &str, number: u32) -> Result<(), String> {
    std::env::var(INSIDE).map_err(|_| "users are added inside the namespaces alone".to_owned())?;
    let lines = [
        ("/etc/passwd", format!("{name}:x:{number}:{number}::/nonexistent:/usr/sbin/nologin\n")),
        ("/etc/group", format!("{name}:x:{number}:\n")),
    ];
    for (file, line) in lines {
        let text = fs::read_to_string(file).map_err(|e| format!("{file}: {e}"))?;
        if !text.lines().any(|l| l.split(':').next() == Some(name)) {
            replace(file, &format!("{}\n{line}", text.trim_end()))?;
        }
    }
    Ok(())
}

/// Lays another text over a file, in these namespaces alone.
fn replace(path: &str, text: &str) -> Result<(), String> {
    let file = tempfile::NamedTempFile::new().map_err(|e| format!("the folder for temporary files: {e}"))?;
    fs::write(file.path(), text).map_err(|e| e.to_string())?;
    // Other users of the host read it too.
    let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    fs::set_permissions(file.path(), everybody).map_err(|e| e.to_string())?;
    run("mount", &["--bind", &file.path().to_string_lossy(), path])
}

/// Runs a program to its end; an error says what it said.
pub fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output().map_err(|e| format!("needs {program}: {e}"))?;
    if output.status.success() {
        Ok(())
    } else {
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(format!("{program} {}: {}: {errors}", arguments.join(" "), output.status))
    }
}

/// The stamps in an MTA's log are the host's: waits until `room` is left of the UTC day, for a test that must not run
/// over its end.
pub fn wait_for_room_before_midnight(room: Duration) {
    let left = DAY - seconds() % DAY;
    if left < room.as_secs() {
        println!("it is {left} s before midnight UTC: waiting");
        std::thread::sleep(Duration::from_secs(left + 1));
    }
}

/// The host's clock, in seconds since 1970.
pub fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// The same as RFC 3339 has it.
pub fn stamp(seconds: u64) -> String {
    jiff::Timestamp::from_second(i64::try_from(seconds).unwrap_or(0)).unwrap_or_default().to_string()
}

/// Today, UTC: `2026-11-22`.
pub fn today() -> String {
    stamp(seconds())[..10].to_owned()
}
