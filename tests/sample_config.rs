//! The sample configuration is what the code reads: as it is, and with every option uncommented.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use tlswarden::config::Config;

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/config.toml");

/// The sample with each `#key = …` and `#[section]` in force, but for options that exclude each other.
fn uncommented() -> String {
    let sample = std::fs::read_to_string(SAMPLE).unwrap();
    let sample = sample.replace("#deliver = \"smtp:localhost:25\"", "deliver = \"submission:mail.example.com:587\"");
    let sample: String =
        sample.split_inclusive('\n').filter(|line| !line.contains("# example; not together")).collect();
    let option = |line: &str| {
        line.strip_prefix('#')
            .filter(|rest| rest.starts_with(|c: char| c == '[' || c.is_ascii_lowercase()))
            .map(str::to_owned)
    };
    sample.lines().map(|line| option(line).unwrap_or_else(|| line.to_owned()) + "\n").collect()
}

fn keys(text: &str) -> BTreeSet<String> {
    fn walk(at: &str, value: &toml::Value, keys: &mut BTreeSet<String>) {
        match value {
            toml::Value::Table(table) => {
                table.iter().for_each(|(key, value)| walk(&format!("{at}.{key}"), value, keys))
            }
            toml::Value::Array(items) if items.iter().any(toml::Value::is_table) => {
                items.iter().for_each(|item| walk(at, item, keys));
            }
            _ => drop(keys.insert(at.to_owned())),
        }
    }
    let mut found = BTreeSet::new();
    walk("", &toml::Value::Table(text.parse().unwrap()), &mut found);
    found
}

#[test]
fn as_shipped_it_is_the_defaults() {
    assert_eq!(Config::load(Path::new(SAMPLE)).unwrap(), Config::default());
}

#[test]
fn every_option_is_in_it_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("all.toml");
    std::fs::write(&path, uncommented()).unwrap();
    let all = Config::load(&path).unwrap();
    let printed = keys(&all.to_toml());
    let mut sample = keys(&uncommented());
    // A default is not printed where its section is for closed networks.
    assert!(sample.remove(".closed_network.private_addresses"));
    assert_eq!(sample, printed);
}

#[test]
fn check_prints_what_reads_back() {
    let check = |path: &Path| {
        let program = env!("CARGO_BIN_EXE_tlswarden");
        let output = Command::new(program).args(["check-config", "--print", "--config"]).arg(path).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let printed = check(Path::new(SAMPLE));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("printed.toml");
    std::fs::write(&path, &printed).unwrap();
    // What this host shows is in it; all else is as shipped.
    let mut read = Config::load(&path).unwrap();
    let shipped = Config::load(Path::new(SAMPLE)).unwrap();
    assert!(read.postfix.version.is_some() && read.postfix.default_level.is_some() && read.postfix.dnssec.is_some());
    (read.postfix, read.inputs) = (shipped.postfix.clone(), shipped.inputs.clone());
    (read.socketmap, read.readsocket) = (shipped.socketmap.clone(), shipped.readsocket.clone());
    assert_eq!(read, shipped);
}

#[test]
fn without_print_it_says_ok() {
    let output =
        Command::new(env!("CARGO_BIN_EXE_tlswarden")).args(["check-config", "--config", SAMPLE]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains(&format!("{SAMPLE}: OK")), "{text}");
    assert!(!text.contains(" = "), "{text}");
}

#[test]
fn a_fault_is_one_line_and_status_78() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.toml");
    std::fs::write(&path, "[postfix]\nversion = 3.7\n").unwrap();
    let output =
        Command::new(env!("CARGO_BIN_EXE_tlswarden")).args(["check-config", "--config"]).arg(&path).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(78), "{error}");
    assert!(
        error.starts_with(&format!("tlswarden: {}:2: [postfix] version: ", path.display()))
            && error.lines().count() == 1,
        "{error}"
    );
}
