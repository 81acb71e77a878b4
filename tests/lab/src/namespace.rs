//! A host of one's own for a test that needs one: network, mounts and processes apart from this host's.
//!
//! Takes: the name of the test. Gives: the same test in new namespaces, with loopback up and the world's DNS as the
//! host's trusted resolver.
//! Limits: root, `unshare`, `ip` and `mount`. When it fails: a panic that says what is missing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Tells the process inside the namespaces that it is.
const INSIDE: &str = "TLSWARDEN_LAB_INSIDE";

/// Whether this is the process inside the namespaces. Outside it runs itself again in new ones, and holds it to its
/// result.
pub fn inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        run("ip", &["link", "set", "lo", "up"]);
        replace(Path::new("/etc/resolv.conf"), "nameserver 127.0.0.1\noptions trust-ad edns0\n");
        return true;
    }
    assert!(rustix::process::geteuid().is_root(), "needs root: network namespaces and a mail server of its own");
    let status = Command::new("unshare")
        .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"])
        .arg(std::env::current_exe().expect("a running program has a path"))
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .expect("needs unshare (util-linux)");
    assert!(status.success(), "inside the namespaces: {status} (unshare needs CAP_SYS_ADMIN; see above)");
    false
}

/// Adds a user with a group of the same name and number, if there is none of this name. Call it inside alone.
pub fn add_user(name: &str, number: u32) {
    assert!(std::env::var_os(INSIDE).is_some(), "the host's own users stay as they are");
    let lines = [
        ("/etc/passwd", format!("{name}:x:{number}:{number}::/nonexistent:/usr/sbin/nologin\n")),
        ("/etc/group", format!("{name}:x:{number}:\n")),
    ];
    for (file, line) in lines {
        let text = fs::read_to_string(file).unwrap_or_else(|e| panic!("{file}: {e}"));
        if !text.lines().any(|l| l.split(':').next() == Some(name)) {
            replace(Path::new(file), &format!("{}\n{line}", text.trim_end()));
        }
    }
}

/// Lays another text over a file, in these namespaces alone.
fn replace(file: &Path, text: &str) {
    let name = file.file_name().map(PathBuf::from).unwrap_or_default();
    let folder = tempfile::tempdir().unwrap_or_else(|e| panic!("a temporary folder: {e}"));
    let other = folder.path().join(name);
    fs::write(&other, text).unwrap_or_else(|e| panic!("{}: {e}", other.display()));
    run("mount", &["--bind", &other.to_string_lossy(), &file.to_string_lossy()]);
}

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status().unwrap_or_else(|e| panic!("needs {program}: {e}"));
    assert!(status.success(), "{program} {}: {status}", arguments.join(" "));
}
