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

/// Prints one line a signature: its number, `pass` or why not. The first argument says how, see [`Verifier`]; the second one
/// has the key records by name, as JSON, or is empty: then DNS is asked.
const DKIMPY: &str = "\
import sys, json, dkim
message = sys.stdin.buffer.read()
how = {'reports': 'strict', 'mail': False}[sys.argv[1]]
known = json.loads(sys.argv[2]) if sys.argv[2] else None
look_up = {} if known is None else {'dnsfunc': lambda name, timeout=5: known.get(name.decode().rstrip('.'), '').encode()}
for n in range(message[:message.index(b'\\r\\n\\r\\n')].lower().count(b'dkim-signature:')):
    try:
        good = dkim.DKIM(message, minkey=2048, tlsrpt=how).verify(n, **look_up)
        print(n, 'pass' if good else 'fail')
    except dkim.DKIMException as problem:
        print(n, problem)
";

/// How a receiver verifies a report.
#[derive(Clone, Copy, Debug)]
pub enum Verifier {
    /// Strictly as a report: keys whose service type is tlsrpt alone (RFC 8460 §3).
    OfReports,
    /// As any other mail: no key whose service type is tlsrpt alone (RFC 6376 §3.6.1).
    OfMail,
}

/// Prints the report as JSON.
const PARSEDMARC: &str = "\
import sys, json, parsedmarc
report = parsedmarc.parse_report_email(sys.stdin.buffer.read(), offline=True)
print(json.dumps(report, default=str))
";

/// The python of the distribution, which has the distribution's modules.
const PYTHON: &str = "/usr/bin/python3";

/// What dkimpy says of each signature of a report, in order: `pass`, or why not.
pub fn dkimpy(message: &[u8]) -> Result<Vec<String>, String> {
    dkimpy_as(Verifier::OfReports, message, "")
}

/// The same of one kind of verifier, with these key records in the place of DNS: a JSON object, by name.
pub fn dkimpy_with(verifier: Verifier, message: &[u8], records: &Value) -> Result<Vec<String>, String> {
    dkimpy_as(verifier, message, &records.to_string())
}

fn dkimpy_as(verifier: Verifier, message: &[u8], records: &str) -> Result<Vec<String>, String> {
    let how = match verifier {
        Verifier::OfReports => "reports",
        Verifier::OfMail => "mail",
    };
    let install = "apt-get install python3-dkim python3-nacl python3-dnspython";
    let said = ask(Path::new(PYTHON), &[DKIMPY, how, records], message, install)?;
    Ok(said.lines().map(|line| line.split_once(' ').map_or(line, |(_, verdict)| verdict).to_owned()).collect())
}

/// What parsedmarc reads: `report_type`, and the report in its own words.
pub fn parsedmarc(message: &[u8]) -> Result<Value, String> {
    let folder = std::env::var_os("TLSWARDEN_PARSEDMARC")
        .map_or_else(|| PathBuf::from("/var/cache/tlswarden-tests/parsedmarc"), PathBuf::from);
    let said = ask(&folder.join("bin/python3"), &[PARSEDMARC], message, "tests/parsedmarc")?;
    serde_json::from_str(&said).map_err(|e| format!("parsedmarc: {e}: {said}"))
}

fn ask(python: &Path, program: &[&str], message: &[u8], install: &str) -> Result<String, String> {
    let name = python.display();
    let mut child = Command::new(python)
        .arg("-c")
        .args(program)
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
