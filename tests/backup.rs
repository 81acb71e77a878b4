//! `backup` and `restore` of the program: what comes back, what is refused, and what a daemon that was taken over cannot
//! have root do.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output};

use tlswarden::base::clock::Clock;
use tlswarden::store::embedded::{EmbeddedStore, OpenedStore};
use tlswarden::store::{Batch, Store, Table};

fn configure(folder: &Path) {
    let at = folder.display();
    let config = format!(
        "[store]\npath = \"{at}/store\"\n[control]\nsocket = \"{at}/control\"\n[socketmap]\nlisten = [\"unix:{at}/ask\"]\n\
         [resolver]\naddress = \"127.0.0.1:9\"\n"
    );
    fs::write(folder.join("config.toml"), config).unwrap();
}

fn run(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tlswarden"));
    command.args(arguments).arg("--config").arg(folder.join("config.toml")).output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

fn open(folder: &Path) -> OpenedStore {
    EmbeddedStore::open(&folder.join("store"), Clock::default()).unwrap()
}

fn write(folder: &Path, value: &str) {
    let set = vec![(Table::NamedValue, b"test".to_vec(), Some(value.into()))];
    open(folder).store.write(Batch { add: vec![], set }).unwrap();
}

fn read(folder: &Path) -> Option<String> {
    let opened = open(folder);
    assert!(opened.moved_aside.is_none() && opened.missing_commits == 0, "{:?}", opened.notices);
    opened.store.read(Table::NamedValue, b"test").unwrap().map(|value| String::from_utf8(value).unwrap())
}

#[test]
fn a_backup_comes_back_and_the_former_store_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    configure(folder.path());
    write(folder.path(), "first");
    // Folders above it are made.
    let backup = at("backups/of/today");
    let made = run(folder.path(), &["backup", backup.to_str().unwrap()]);
    assert!(made.status.success(), "{}", text(&made));

    // Older than the store, then newer than it, then where there is no store: it comes back each time.
    for value in ["second", "third"] {
        write(folder.path(), value);
    }
    let newer = at("newer");
    assert!(run(folder.path(), &["backup", newer.to_str().unwrap()]).status.success());
    for (from, wanted) in [(&backup, "first"), (&newer, "third"), (&backup, "first")] {
        let restored = run(folder.path(), &["restore", from.to_str().unwrap()]);
        assert!(restored.status.success(), "{}", text(&restored));
        assert!(text(&restored).contains("the former store is in "), "{}", text(&restored));
        assert_eq!(read(folder.path()).as_deref(), Some(wanted));
        assert!(from.join("embedded").is_dir(), "the backup itself stays");
    }
    let former = fs::read_dir(at("store")).unwrap().filter_map(Result::ok);
    assert_eq!(former.filter(|entry| entry.file_name().to_string_lossy().starts_with("replaced-")).count(), 3);

    fs::remove_dir_all(at("store")).unwrap();
    let restored = run(folder.path(), &["restore", newer.to_str().unwrap()]);
    assert!(restored.status.success() && !text(&restored).contains("former"), "{}", text(&restored));
    assert_eq!(read(folder.path()).as_deref(), Some("third"));
}

#[test]
fn what_is_not_a_whole_backup_is_refused_and_the_store_stays() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    configure(folder.path());
    write(folder.path(), "kept");
    let backup = at("backup");
    assert!(run(folder.path(), &["backup", backup.to_str().unwrap()]).status.success());
    fs::create_dir(at("empty")).unwrap();
    fs::write(at("file"), "").unwrap();
    let damaged = backup.join("embedded/db");
    let mut bytes = fs::read(&damaged).unwrap();
    bytes.iter_mut().for_each(|byte| *byte ^= 0x55);
    fs::write(&damaged, bytes).unwrap();
    for (from, why) in [
        ("missing", "No such file or directory"),
        ("file", "not a folder"),
        ("empty", "it has no folder `embedded`"),
        ("backup", "damaged"),
    ] {
        let refused = run(folder.path(), &["restore", at(from).to_str().unwrap()]);
        assert!(!refused.status.success(), "{from}");
        let text = text(&refused);
        assert!(text.contains(why) && text.contains("not restored") && text.contains("is left as it was"), "{text}");
        assert_eq!(read(folder.path()).as_deref(), Some("kept"), "{from}");
    }
    let whole = at("whole");
    assert!(run(folder.path(), &["backup", whole.to_str().unwrap()]).status.success());
    let in_use = open(folder.path());
    let refused = run(folder.path(), &["restore", whole.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(69), "{}", text(&refused));
    assert!(text(&refused).contains("stop the daemon first: systemctl stop tlswarden"), "{}", text(&refused));
    drop(in_use);
    let left = fs::read_dir(at("store")).unwrap().filter_map(Result::ok).map(|entry| entry.file_name());
    let left: Vec<_> = left.filter(|name| name.to_string_lossy().starts_with("backup-")).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// The backup is root's, as one from an archive is; the store is the daemon's.
#[test]
fn what_is_restored_is_the_store_s_owner_s() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
    const NOBODY: u32 = 65534;
    assert!(rustix::process::geteuid().is_root(), "this test needs root, to give files to another user");
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let at = |name: &str| folder.path().join(name);
    configure(folder.path());
    write(folder.path(), "kept");
    assert!(run(folder.path(), &["backup", at("backup").to_str().unwrap()]).status.success());
    fs::remove_dir_all(at("store")).unwrap();
    fs::create_dir(at("store")).unwrap();
    chown(at("store"), Some(NOBODY), Some(NOBODY)).unwrap();
    let restored = run(folder.path(), &["restore", at("backup").to_str().unwrap()]);
    assert!(restored.status.success(), "{}", text(&restored));
    let mut folders = vec![at("store")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            assert_eq!(entry.metadata().unwrap().uid(), NOBODY, "{:?}", entry.path());
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            }
        }
    }
    assert_eq!(read(folder.path()).as_deref(), Some("kept"));
}

/// A control socket that answers one request with `answer`.
fn answer_once(socket: &Path, answer: String) -> std::thread::JoinHandle<()> {
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        BufReader::new(&stream).read_line(&mut String::new()).unwrap();
        stream.write_all(answer.as_bytes()).unwrap();
    })
}

#[test]
fn a_daemon_that_was_taken_over_cannot_have_files_moved_read_or_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    configure(folder.path());
    fs::create_dir_all(at("store")).unwrap();
    fs::create_dir_all(at("victim/embedded")).unwrap();
    fs::write(at("victim/embedded/secret"), "secret").unwrap();
    std::os::unix::fs::symlink(at("victim"), at("store/backup-1-0")).unwrap();
    let to = at("to");
    for path in [at("victim"), at("store/backup-1-0"), at("store/../victim"), at("store/backup-1-0/embedded")] {
        let server = answer_once(&at("control"), format!("{{\"answer\":{:?}}}", path.to_str().unwrap()));
        let refused = run(folder.path(), &["backup", to.to_str().unwrap()]);
        server.join().unwrap();
        fs::remove_file(at("control")).unwrap();
        assert!(!refused.status.success(), "{path:?}: {}", text(&refused));
        assert!(text(&refused).contains("there is no backup"), "{}", text(&refused));
        assert!(!to.exists(), "{path:?}");
        assert_eq!(fs::read_to_string(at("victim/embedded/secret")).unwrap(), "secret", "{path:?}");
    }

    fs::write(at("passwd"), "root").unwrap();
    let report = format!(
        "{{\"domain\":\"a.test\",\"supplement\":false,\"recipients\":[],\"skipped\":[],\"reported\":null,\
         \"why-not\":null,\"file-name\":{:?},\"json\":\"{{}}\"}}",
        at("passwd").to_str().unwrap()
    );
    let answer = format!("{{\"answer\":[{{\"day\":\"2026-11-22\",\"reports\":[{report}]}}]}}");
    let server = answer_once(&at("control"), answer);
    let refused = run(folder.path(), &["reports", "preview", "--out", at("out").to_str().unwrap()]);
    server.join().unwrap();
    assert!(
        !refused.status.success() && text(&refused).contains("not the file name of a report"),
        "{}",
        text(&refused)
    );
    assert_eq!(fs::read_to_string(at("passwd")).unwrap(), "root");
}
