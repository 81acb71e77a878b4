//! The daemon's own log on standard error, as `--log-format json` has it.

mod running;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use running::Running;

const MAIL_LOG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/postfix-3.7.11/sts-expired.iso.log");

/// How long the daemon may take until it has read a log of a few lines.
const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn as_json_each_line_is_an_object_and_a_destination_that_begins_to_fail_has_one() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().display();
    let config = format!(
        "[store]\npath = \"{at}/store\"\n[control]\nsocket = \"{at}/control\"\n[socketmap]\nlisten = []\n\
         [resolver]\naddress = \"127.0.0.1:9\"\n[[input]]\nfile = \"{MAIL_LOG}\"\n"
    );
    let file = folder.path().join("config.toml");
    fs::write(&file, config).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tlswarden"));
    command.args(["serve", "--log-format", "json", "--config"]).arg(file).stdin(Stdio::null()).stderr(Stdio::piped());
    let mut daemon = Running(command.spawn().unwrap());
    let said = BufReader::new(daemon.0.stderr.take().unwrap());
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || said.lines().map_while(Result::ok).try_for_each(|line| tell.send(line)));
    loop {
        let line = told.recv_timeout(PATIENCE).expect("a line about the destination that fails");
        let object: BTreeMap<String, String> = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
        let keys: Vec<&str> = object.keys().map(String::as_str).collect();
        assert_eq!(keys, ["level", "message", "timestamp"], "{line}");
        assert!(object["timestamp"].parse::<jiff::Timestamp>().is_ok(), "{line}");
        if object["message"].starts_with("session: sts-expired.test: fails: certificate-expired") {
            assert_eq!(object["level"], "WARN");
            break;
        }
    }
}
