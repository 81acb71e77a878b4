//! `tlswarden dkim-key`: the file is private and never overwritten, the record is that of the key.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Output};

fn run(out: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tlswarden"));
    command.args(["dkim-key", "--domain", "Sender.example", "--config", "/nowhere.toml", "--out"]).arg(out).args(more);
    command.output().unwrap()
}

#[test]
fn a_key_is_private_described_and_never_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    for (kind, words) in [("rsa", "v=DKIM1; k=rsa; s=tlsrpt; p="), ("ed25519", "v=DKIM1; k=ed25519; s=tlsrpt; p=")] {
        let out = folder.path().join(kind);
        let made = run(&out, &["--type", kind, "--selector", "s2026"]);
        let text = String::from_utf8(made.stdout).unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        assert!(text.contains("s2026._domainkey.sender.example. IN TXT ( \"") && text.contains(words), "{text}");
        assert!(text.contains("s2026-mail._domainkey.sender.example. IN TXT ( \"v=DKIM1; k="), "{text}");
        assert_eq!(text.matches("s=tlsrpt; p=").count(), 1, "{text}");
        assert_eq!(text.matches(&format!("key = \"{}\"", out.display())).count(), 2, "{text}");
        assert_eq!(out.metadata().unwrap().permissions().mode() & 0o7777, 0o600);
        let (key, inode) = (std::fs::read(&out).unwrap(), out.metadata().unwrap().ino());
        assert!(key.starts_with(b"-----BEGIN PRIVATE KEY-----\n"));

        let again = run(&out, &["--type", kind]);
        let error = String::from_utf8(again.stderr).unwrap();
        assert_eq!(again.status.code(), Some(74), "{error}");
        assert!(error.lines().count() == 1 && error.contains("File exists"), "{error}");
        assert_eq!((std::fs::read(&out).unwrap(), out.metadata().unwrap().ino()), (key, inode));
    }
}

#[test]
fn the_key_is_named_by_its_whole_path() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tlswarden"));
    let args =
        ["dkim-key", "--type", "ed25519", "--domain", "a.example", "--config", "/nowhere.toml", "--out", "k.pem"];
    let made = command.current_dir(folder.path()).args(args).output().unwrap();
    let whole = folder.path().canonicalize().unwrap().join("k.pem");
    let text = String::from_utf8(made.stdout).unwrap();
    assert!(text.contains(&format!("key = \"{}\"", whole.display())), "{text}");
}

#[test]
fn what_is_no_name_makes_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("key.pem");
    let bad = run(&out, &["--selector", "a b"]);
    assert_eq!(bad.status.code(), Some(64));
    assert!(!out.exists());
}

#[test]
fn without_a_place_it_goes_beside_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("tlswarden.toml");
    std::fs::write(&config, "[report]\nfrom = \"tlsrpt@sender.example\"\n").unwrap();
    let make = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tlswarden"));
        let made = command.args(["dkim-key", "--type", "ed25519", "--config"]).arg(&config).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    };
    make();
    assert!(folder.path().join("dkim-tlsrpt.pem").exists());
    std::fs::create_dir(folder.path().join("dkim.d")).unwrap();
    make();
    assert!(folder.path().join("dkim.d/tlsrpt.pem").exists());
}
