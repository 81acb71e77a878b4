//! Second opinions on a report mail: programs of others, in another language, say what they make of it.
//!
//! Takes: the octets of a message. Gives: dkimpy's verdict on each signature, the keys looked up where the host looks names
//! up; what parsedmarc reads out of it.
//! Needs: Debian's `python3-dkim`, `python3-nacl`, `python3-dnspython`; parsedmarc where `tests/parsedmarc` has put it.
//! When it fails: a text that says what is missing, or what the program said.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// Prints one line a signature: its number, `pass` or why not.
const DKIMPY: &str = "\
import sys, dkim
message = sys.stdin.buffer.read()
for n in range(message[:message.index(b'\\r\\n\\r\\n')].lower().count(b'dkim-signature:')):
    try:
        # strict: a report, signed with keys whose service type is tlsrpt (RFC 8460 section 3)
        good = dkim.DKIM(message, minkey=2048, tlsrpt='strict').verify(n)
        print(n, 'pass' if good else 'fail')
    except dkim.DKIMException as problem:
        print(n, problem)
";

/// Prints the report as JSON.
const PARSEDMARC: &str = "\
import sys, json, parsedmarc
report = parsedmarc.parse_report_email(sys.stdin.buffer.read(), offline=True)
print(json.dumps(report, default=str))
";

/// The python of the distribution, which has the distribution's modules.
const PYTHON: &str = "/usr/bin/python3";

/// What dkimpy says of each signature, in order: `pass`, or why not.
pub fn dkimpy(message: &[u8]) -> Result<Vec<String>, String> {
    let said = ask(Path::new(PYTHON), DKIMPY, message, "apt-get install python3-dkim python3-nacl python3-dnspython")?;
    Ok(said.lines().map(|line| line.split_once(' ').map_or(line, |(_, verdict)| verdict).to_owned()).collect())
}

/// What parsedmarc reads: `report_type`, and the report in its own words.
pub fn parsedmarc(message: &[u8]) -> Result<Value, String> {
    let folder = std::env::var_os("TLSWARDEN_PARSEDMARC")
        .map_or_else(|| PathBuf::from("/var/cache/tlswarden-tests/parsedmarc"), PathBuf::from);
    let said = ask(&folder.join("bin/python3"), PARSEDMARC, message, "tests/parsedmarc")?;
    serde_json::from_str(&said).map_err(|e| format!("parsedmarc: {e}: {said}"))
}

fn ask(python: &Path, program: &str, message: &[u8], install: &str) -> Result<String, String> {
    let name = python.display();
    let mut child = Command::new(python)
        .args(["-c", program])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("{name}: {e}; try: {install}"))?;
    if let Some(mut input) = child.stdin.take() {
        // A program that ends early says why on its standard error.
        let _ = input.write_all(message);
    }
    let output = child.wait_with_output().map_err(|e| format!("{name}: {e}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(format!("{name}: {}: {errors}; try: {install}", output.status))
}
