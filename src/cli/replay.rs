//! `tlswarden replay`: what logs would have been counted as.
//!
//! Takes: log files (`.gz` too, `-` for standard input), in the order given, or what `journalctl -o json` prints. Gives: the rows of RFC 8460, as JSON or as a
//! table. Sends and stores nothing, asks no network.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueEnum};
use flate2::read::MultiGzDecoder;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use tlswarden_parsers::Dialect;

use super::render::table;
use super::{CONFIG, Fault, NO_INPUT, USAGE, print};
use crate::answering::policy::sts::document;
use crate::base::clock::Clock;
use crate::base::domain_name;
use crate::base::policy_at::PolicyAt;
use crate::base::tlsrpt::{Failure, InForce, Policy, PolicyType, Row, rows};
use crate::config;
use crate::counting::input::BLOCK;
use crate::counting::input::journald::MAX_ENTRY as MAX_LINE;
use crate::counting::pipeline::{Counter, is_of};
use crate::metrics::line_counts::OfFamily;

pub const HELP: &str = "\
A policies file gives the policies in force, as the daemon's own decisions would:

  [[policy]]
  domain = \"example.com\"
  sts = \"\"\"
  version: STSv1
  mode: enforce
  mx: mx.example.com
  max_age: 604800
  \"\"\"

  [[policy]]
  domain = \"example.net\"
  tlsa = { \"mx.example.net\" = [\"3 1 1 0C72AC70…\"] }

Sessions that carried the daemon's own reports are counted here, for only the daemon can tell them, and so are those to hosts of
local networks.";

#[derive(Args)]
pub struct Options {
    /// Whose logs they are.
    #[arg(long, value_enum, default_value_t = Mta::Auto)]
    mta: Mta,
    /// The policies in force (TOML, see below); without it every destination has none.
    #[arg(long, value_name = "FILE")]
    policies: Option<PathBuf>,
    /// The year of the first line, for time stamps without one; without it the latest that is not in the future.
    #[arg(long, value_name = "YYYY", value_parser = clap::value_parser!(i16).range(1970..=9000))]
    year: Option<i16>,
    /// The IANA zone of time stamps without one, such as `Europe/Berlin`; without it the host's.
    #[arg(long, value_name = "TZ")]
    timezone: Option<String>,
    /// As JSON, with the names of RFC 8460.
    #[arg(long)]
    json: bool,
    /// Log files, oldest first; `-` is standard input, `.gz` is unpacked; `journalctl -o json` output is read too.
    #[arg(required = true, value_name = "LOG")]
    logs: Vec<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mta {
    /// Told by the lines.
    Auto,
    Postfix,
    Exim,
}

impl Mta {
    fn dialect(self) -> Option<Dialect> {
        match self {
            Mta::Auto => None,
            Mta::Postfix => Some(Dialect::Postfix),
            Mta::Exim => Some(Dialect::Exim),
        }
    }
}

/// How many lines tell whose log it is.
const AUTO_LINES: usize = 1000;

pub fn replay(options: &Options) -> Result<(), Fault> {
    let zone = match &options.timezone {
        None => TimeZone::system(),
        Some(name) => {
            config::time_zone(name).map_err(|e| Fault::new(USAGE, format!("--timezone: {e}; nothing was read")))?
        }
    };
    let policies = options.policies.as_deref().map_or(Ok(Fixed::default()), Fixed::load)?;
    let mut counter: Option<Counter> = None;
    let now = Clock::default().seconds();
    let new = |mta| Counter::new(mta, zone.clone(), Arc::new(|_| false)).with_first_year(options.year);
    let mut count = |mta, lines: &[u8]| counter.get_or_insert_with(|| new(mta)).lines(lines, now, &policies);
    let mut lines = Lines { dialect: options.mta.dialect(), ..Lines::default() };
    for log in &options.logs {
        let unreadable = |error: io::Error| {
            Fault::new(NO_INPUT, format!("{}: cannot be read: {error}; nothing is shown", log.display()))
        };
        let mut source = open(log).map_err(unreadable)?;
        lines.read(&mut *source, &mut count).map_err(|error| match error {
            LinesError::Io(error) => unreadable(error),
            LinesError::NoLog => Fault::new(
                USAGE,
                format!(
                    "{}: no line of Postfix's or Exim's in the first {AUTO_LINES}; if it is such a log, say --mta postfix or exim",
                    log.display()
                ),
            ),
        })?;
    }
    // A log so short that nothing in it tells whose it is counts as nothing.
    count(lines.dialect.unwrap_or_default(), &lines.held);
    let mut counter = counter.unwrap_or_else(|| new(Dialect::Postfix));
    counter.end(counter.newest().unwrap_or(now), &policies);
    let (seen, losses) = counter.seen();
    let OfFamily { used, malformed } = seen.lines.total();
    let rows = rows(counter.counts());
    if options.json {
        let shown = Shown {
            lines: LineCounts { read: seen.read + lines.skipped, used, malformed: malformed + lines.skipped },
            results: rows.iter().map(ShownRow::new).collect(),
        };
        let mut text = serde_json::to_string(&shown).expect("plain structures always serialise");
        text.push('\n');
        return print(&text);
    }
    let mut text = people(&rows);
    text.push_str(&format!(
        "{} lines read, {} used, {} could not be read\n",
        seen.read + lines.skipped,
        used,
        malformed + lines.skipped
    ));
    if losses.without_domain + losses.unmatched > 0 {
        let lost = losses.without_domain + losses.unmatched;
        text.push_str(&format!("{lost} sessions whose delivery is not in these logs were not counted\n"));
    }
    if seen.without_anchors > 0 {
        text.push_str(&format!(
            "{} sessions under a policy in testing mode were not counted: the MTA has not shown that it has trust anchors\n",
            seen.without_anchors
        ));
    }
    if seen.contradicted > 0 {
        text.push_str(&format!(
            "{} sessions contradict the policy given and were counted as no-policy-found\n",
            seen.contradicted
        ));
    }
    print(&text)
}

fn open(log: &Path) -> io::Result<Box<dyn Read>> {
    if log == Path::new("-") {
        return Ok(Box::new(io::stdin()));
    }
    let file = File::open(log)?;
    if log.extension().is_some_and(|e| e == "gz") {
        return Ok(Box::new(MultiGzDecoder::new(BufReader::new(file))));
    }
    Ok(Box::new(file))
}

/// Cuts a stream into blocks of whole lines.
#[derive(Default)]
struct Lines {
    /// Whose log it is, once that is known.
    dialect: Option<Dialect>,
    /// Lines that came before it was known: at most [`AUTO_LINES`].
    held: Vec<u8>,
    looked_at: usize,
    skipped: u64,
}

enum LinesError {
    Io(io::Error),
    NoLog,
}

impl Lines {
    fn read(&mut self, source: &mut dyn Read, take: &mut dyn FnMut(Dialect, &[u8])) -> Result<(), LinesError> {
        let mut buffer = Vec::with_capacity(BLOCK);
        let mut too_long = false;
        loop {
            let filled = buffer.len();
            buffer.resize(BLOCK, 0);
            let read = source.read(&mut buffer[filled..]);
            buffer.truncate(filled + read.as_ref().map_or(0, |read| *read));
            let read = match read {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other.map_err(LinesError::Io)?,
            };
            if read == 0 {
                // A last line that nobody ended.
                if !too_long {
                    self.hand_on(&buffer, take)?;
                }
                return Ok(());
            }
            let whole = buffer.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
            let mut lines = &buffer[..whole];
            if too_long && whole > 0 {
                let end = lines.iter().position(|b| *b == b'\n').map_or(0, |at| at + 1);
                lines = &lines[end..];
                too_long = false;
            }
            self.hand_on(lines, take)?;
            buffer.drain(..whole);
            if buffer.len() > MAX_LINE {
                buffer.clear();
                if !too_long {
                    self.skipped += 1;
                }
                too_long = true;
            }
        }
    }

    /// Hands lines on, as soon as it is known whose they are.
    fn hand_on(&mut self, lines: &[u8], take: &mut dyn FnMut(Dialect, &[u8])) -> Result<(), LinesError> {
        for line in lines.split(|b| *b == b'\n') {
            if self.dialect.is_some() || self.looked_at >= AUTO_LINES {
                break;
            }
            self.looked_at += 1;
            let of = |dialect: &Dialect| is_of(*dialect, line);
            self.dialect = [Dialect::Postfix, Dialect::Exim].into_iter().find(of);
        }
        match self.dialect {
            Some(dialect) => {
                if !self.held.is_empty() {
                    take(dialect, &std::mem::take(&mut self.held));
                }
                take(dialect, lines);
                Ok(())
            }
            None if self.looked_at >= AUTO_LINES => Err(LinesError::NoLog),
            None => {
                self.held.extend_from_slice(lines);
                if !lines.is_empty() && !lines.ends_with(b"\n") {
                    self.held.push(b'\n');
                }
                Ok(())
            }
        }
    }
}

/// Policies that do not change.
#[derive(Default)]
struct Fixed(HashMap<String, InForce>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PoliciesFile {
    #[serde(default)]
    policy: Vec<PolicyEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyEntry {
    domain: String,
    sts: Option<String>,
    tlsa: Option<BTreeMap<String, Vec<String>>>,
}

impl Fixed {
    fn load(path: &Path) -> Result<Fixed, Fault> {
        let name = path.display();
        let text = std::fs::read_to_string(path)
            .map_err(|e| Fault::new(NO_INPUT, format!("{name}: cannot be read: {e}; nothing was read")))?;
        let file: PoliciesFile = config::parse(&text, path)?;
        let mut policies = HashMap::new();
        for entry in file.policy {
            let bad = |why: String| {
                Fault::new(CONFIG, format!("{name}: policy of {}: {why}; nothing was read", entry.domain))
            };
            let domain = domain_name::normalise(&entry.domain).ok_or_else(|| bad("no domain name".into()))?;
            let in_force = match (&entry.sts, &entry.tlsa) {
                (Some(text), None) => {
                    let document = document::parse(text.as_bytes()).map_err(|e| bad(e.to_string()))?;
                    sts_policy(&domain, document)
                }
                (None, Some(hosts)) => InForce::Dane { hosts: hosts.iter().map(tlsa_host).collect() },
                _ => return Err(bad("one of `sts` and `tlsa` is needed".into())),
            };
            policies.insert(domain, in_force);
        }
        Ok(Fixed(policies))
    }
}

fn sts_policy(domain: &str, document: document::Document) -> InForce {
    let policy = Policy {
        policy_type: PolicyType::Sts,
        policy_string: document.lines,
        policy_domain: domain.to_owned(),
        mx_host: document.mx,
    };
    InForce::Sts { mode: document.mode, policy: Arc::new(policy), failure: None }
}

fn tlsa_host((host, records): (&String, &Vec<String>)) -> (String, Arc<Policy>) {
    let host = domain_name::normalise(host).unwrap_or_else(|| host.to_ascii_lowercase());
    let policy = Policy {
        policy_type: PolicyType::Tlsa,
        policy_string: records.clone(),
        policy_domain: host.clone(),
        mx_host: Vec::new(),
    };
    (host, Arc::new(policy))
}

impl PolicyAt for Fixed {
    fn at(&self, domain: &str, _: i64) -> Option<InForce> {
        Some(self.0.get(domain).cloned().unwrap_or(InForce::None))
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Shown<'a> {
    lines: LineCounts,
    results: Vec<ShownRow<'a>>,
}

#[derive(Serialize)]
struct LineCounts {
    read: u64,
    used: u64,
    malformed: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct ShownRow<'a> {
    day: String,
    recipient_domain: &'a str,
    policy: &'a Policy,
    summary: Summary,
    failure_details: Vec<ShownDetail<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Summary {
    total_successful_session_count: u64,
    total_failure_session_count: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct ShownDetail<'a> {
    #[serde(flatten)]
    failure: &'a Failure,
    failed_session_count: u64,
}

impl<'a> ShownRow<'a> {
    fn new(row: &'a Row) -> ShownRow<'a> {
        ShownRow {
            day: row.day.to_string(),
            recipient_domain: &row.domain,
            policy: &row.policy,
            summary: Summary {
                total_successful_session_count: row.successful,
                total_failure_session_count: row.failed,
            },
            failure_details: row
                .details
                .iter()
                .map(|(failure, n)| ShownDetail { failure, failed_session_count: *n })
                .collect(),
        }
    }
}

fn people(rows: &[Row]) -> String {
    let mut lines = Vec::new();
    let (mut successful, mut failed) = (0, 0);
    for row in rows {
        successful += row.successful;
        failed += row.failed;
        let mut why: Vec<String> = Vec::new();
        for (failure, n) in &row.details {
            let code = failure.failure_reason_code.as_deref().map(|c| format!(" ({c})")).unwrap_or_default();
            let host = failure.receiving_mx_hostname.as_deref().unwrap_or("-");
            why.push(format!("{n} × {}{code} at {host}", failure.result_type));
        }
        lines.push(vec![
            row.day.to_string(),
            row.domain.clone(),
            row.policy.policy_type.to_string(),
            row.successful.to_string(),
            row.failed.to_string(),
            why.join(", "),
        ]);
    }
    let mut text = table(&["day", "recipient domain", "policy", "ok", "failed", "why"], &lines);
    text.push_str(&format!("\n{} rows, {successful} sessions succeeded, {failed} failed\n", rows.len()));
    text
}
