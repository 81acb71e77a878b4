//! Counts logs as the daemon would have, for `tlswarden replay`; sends and stores nothing.
//!
//! Takes: log files (`.gz` too, `-` for standard input), oldest first, or what `journalctl -o json` prints; the policies in
//! force. Gives: the rows of RFC 8460, and how many lines were read.
//! Limits: `MAX_LINE` octets a line; the MTA is detected from the first [`MTA_DETECTION_LINES`] lines.
//! When it fails: a [`ReplayError`]; nothing was counted then.
//! Not here: how the result is printed (`cli::replay`).

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::read::MultiGzDecoder;
use jiff::tz::TimeZone;
use serde::Deserialize;
use tlswarden_parsers::{Dialect, LineFamily, is_mta_line};

use crate::answering::policy::sts::document;
use crate::base::clock::Clock;
use crate::base::domain_name;
use crate::base::policy_at::PolicyAt;
use crate::base::tlsrpt::{Policy, PolicyInForce, PolicyType, TallyRow, sum_tallies};
use crate::config::{self, ConfigError};
use crate::counting::input::MAX_BLOCK;
use crate::counting::input::journald::MAX_ENTRY as MAX_LINE;
use crate::counting::input::json_entry;
use crate::counting::pipeline::{Counter, LineSample};
use crate::counting::rules::CountingRules;
use crate::metrics::line_counts::FamilyCounts;

/// The longest line that is shown, in bytes.
const MAX_SHOWN_LINE: usize = 300;

/// What to read, and how.
#[derive(Debug)]
pub(crate) struct ReplayRequest<'a> {
    /// Whose logs they are; without it the lines tell.
    pub(crate) dialect: Option<Dialect>,
    /// A file with the policies in force; without it every destination has none.
    pub(crate) policies: Option<&'a Path>,
    /// The zone of time stamps without one.
    pub(crate) zone: TimeZone,
    /// The year of the first line, for time stamps without one.
    pub(crate) year: Option<i16>,
    /// Count sessions with hosts of local networks too.
    pub(crate) private_addresses: bool,
    /// The files, oldest first.
    pub(crate) logs: &'a [PathBuf],
}

/// The result.
#[derive(Debug)]
pub(crate) struct ReplayResult {
    /// The rows of all days.
    pub(crate) rows: Vec<TallyRow>,
    /// Lines read.
    pub(crate) read: u64,
    /// Lines about sessions.
    pub(crate) used: u64,
    /// Some line is of the MTA, if not about sessions.
    pub(crate) recognized: bool,
    /// Lines that should have been understood and were not.
    pub(crate) malformed: u64,
    /// Lines that look like the MTA's and match no known wording.
    pub(crate) unrecognized: u64,
    /// The same by family.
    pub(crate) unrecognized_families: Vec<(&'static str, u64)>,
    /// Lines that a syslog daemon left out, at least.
    pub(crate) lost: u64,
    /// The first of the lines that were left out, of each family.
    pub(crate) samples: Vec<LineSample>,
    /// The first line of all.
    pub(crate) first_line: Option<String>,
    /// Sessions whose delivery is not in these logs.
    pub(crate) without_delivery: u64,
    /// Lines of Postfix's among those without the name of their program.
    pub(crate) without_program_name: u64,
    /// Sessions to hosts of local networks, such as content filters.
    pub(crate) local: u64,
    /// Sessions with hosts that are not the recipient domain's.
    pub(crate) relayed: u64,
    /// Sessions under a policy in testing mode that were not counted, for the MTA has not shown that it has trust anchors.
    pub(crate) without_anchors: u64,
    /// Sessions that contradict the policy given.
    pub(crate) contradicted: u64,
}

/// Why nothing was counted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReplayError {
    /// A log.
    #[error("{}: cannot be read: {error}; nothing is shown", .log.display())]
    Log {
        /// The file.
        log: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The file of policies.
    #[error("{}: cannot be read: {error}; nothing was read", .file.display())]
    Policies {
        /// The file.
        file: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The syntax of that file.
    #[error(transparent)]
    Syntax(#[from] ConfigError),
    /// A policy in it.
    #[error("{0}")]
    Policy(String),
}

/// Counts the logs.
pub(crate) fn replay(request: &ReplayRequest<'_>) -> Result<ReplayResult, ReplayError> {
    let policies = request.policies.map_or(Ok(FixedPolicies::default()), FixedPolicies::load)?;
    let now = Clock::default().seconds();
    let rules = Arc::new(CountingRules::of_another_host(request.private_addresses));
    let new = |mta| {
        let counter = Counter::new(mta, request.zone.clone(), Arc::new(|_| false));
        counter.with_rules(Arc::clone(&rules)).with_first_year(request.year).with_samples()
    };
    // Until a line tells whose log it is, each MTA's counter reads it.
    let dialects = request.dialect.map_or(vec![Dialect::Postfix, Dialect::Exim], |dialect| vec![dialect]);
    let mut counters: Vec<Counter> = dialects.iter().map(|dialect| new(*dialect)).collect();
    let mut recognized = false;
    let mut first_line = None;
    let mut count = |lines: &[u8]| {
        if first_line.is_none() {
            let first = lines.split(|b| *b == b'\n').find(|line| !line.trim_ascii().is_empty());
            first_line = first.map(|line| line.get(..MAX_SHOWN_LINE).unwrap_or(line).escape_ascii().to_string());
        }
        counters.iter_mut().for_each(|counter| counter.count_lines(lines, now, &policies));
        if counters.len() > 1 && counters.iter().any(|counter| counter.used_mta_lines() > 0) {
            counters.sort_by_key(|counter| Reverse(counter.used_mta_lines()));
            counters.truncate(1);
        }
        recognized = recognized
            || counters.iter().any(|counter| counter.used_mta_lines() > 0)
            || lines.split(|b| *b == b'\n').any(|line| is_of_mta(&dialects, line));
    };
    let mut lines = LineReader::default();
    for log in request.logs {
        let failed = |error| ReplayError::Log { log: log.clone(), error };
        lines.read(&mut *open(log).map_err(failed)?, &mut count).map_err(failed)?;
    }
    let mut counter = counters.swap_remove(0);
    counter.end_sessions(counter.newest_line_time().unwrap_or(now), &policies);
    let (mut seen, losses) = counter.take_stats();
    let FamilyCounts { used, malformed, unrecognized } = seen.lines.total();
    let by_family = seen.lines.iter().map(|(family, lines)| (family, lines.unrecognized));
    let unrecognized_families = by_family.filter(|(_, lines)| *lines > 0).collect();
    Ok(ReplayResult {
        rows: sum_tallies(counter.take_counts()),
        read: seen.lines_read + lines.skipped,
        used,
        recognized,
        malformed: malformed + lines.skipped,
        unrecognized,
        unrecognized_families,
        lost: seen.lines_lost,
        samples: counter.take_samples(),
        first_line,
        without_program_name: seen.lines.entry(LineFamily::ProgramName.name()).malformed,
        local: seen.local,
        relayed: seen.relayed,
        without_delivery: losses.without_domain + losses.unmatched,
        without_anchors: seen.without_anchors,
        contradicted: seen.contradicted,
    })
}

/// Whether a line, or the text of an entry in JSON, is of one of the MTAs.
fn is_of_mta(dialects: &[Dialect], line: &[u8]) -> bool {
    let of_mta = |line: &[u8]| dialects.iter().any(|dialect| is_mta_line(*dialect, line));
    if !line.starts_with(b"{") {
        return of_mta(line);
    }
    match json_entry::decode_entry(line) {
        Ok(Some(entry)) if entry.ident.is_empty() => of_mta(&entry.text),
        Ok(Some(entry)) => of_mta(&[b"Jan  1 00:00:00 host ", &entry.ident[..], b"[1]: ", &entry.text[..]].concat()),
        Ok(None) | Err(_) => false,
    }
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

/// Splits a stream into blocks of whole lines.
#[derive(Default)]
struct LineReader {
    skipped: u64,
}

impl LineReader {
    fn read(&mut self, source: &mut dyn Read, take: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        let mut buffer = Vec::with_capacity(MAX_BLOCK);
        let mut too_long = false;
        loop {
            let filled = buffer.len();
            buffer.resize(MAX_BLOCK, 0);
            let read = source.read(&mut buffer[filled..]);
            buffer.truncate(filled + read.as_ref().map_or(0, |read| *read));
            let read = match read {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            if read == 0 {
                // A last line that nobody ended.
                if !too_long {
                    take(&buffer);
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
            take(lines);
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
}

/// Policies that do not change.
#[derive(Default)]
struct FixedPolicies(HashMap<String, PolicyInForce>);

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

impl FixedPolicies {
    fn load(path: &Path) -> Result<FixedPolicies, ReplayError> {
        let name = path.display();
        let text =
            std::fs::read_to_string(path).map_err(|error| ReplayError::Policies { file: path.to_owned(), error })?;
        let file: PoliciesFile = config::parse_toml(&text, path)?;
        let mut policies = HashMap::new();
        for entry in file.policy {
            let bad = |why: String| {
                ReplayError::Policy(format!("{name}: policy of {}: {why}; nothing was read", entry.domain))
            };
            let domain = domain_name::normalize(&entry.domain).ok_or_else(|| bad("no domain name".into()))?;
            let in_force = match (&entry.sts, &entry.tlsa) {
                (Some(text), None) => {
                    let document = document::parse(text.as_bytes()).map_err(|e| bad(e.to_string()))?;
                    sts_policy(&domain, document)
                }
                (None, Some(hosts)) => {
                    PolicyInForce::Dane { hosts: hosts.iter().map(tlsa_host).collect(), unsigned_mx: true }
                }
                _ => return Err(bad("one of `sts` and `tlsa` is needed".into())),
            };
            policies.insert(domain, in_force);
        }
        Ok(FixedPolicies(policies))
    }
}

fn sts_policy(domain: &str, document: document::PolicyDocument) -> PolicyInForce {
    let policy = Policy {
        policy_type: PolicyType::Sts,
        policy_string: document.lines,
        policy_domain: domain.to_owned(),
        mx_host: document.mx,
    };
    PolicyInForce::Sts { mode: document.mode, policy: Arc::new(policy), failure: None }
}

fn tlsa_host((host, records): (&String, &Vec<String>)) -> (String, Arc<Policy>) {
    let host = domain_name::normalize(host).unwrap_or_else(|| host.to_ascii_lowercase());
    let policy = Policy {
        policy_type: PolicyType::Tlsa,
        policy_string: records.clone(),
        policy_domain: host.clone(),
        mx_host: Vec::new(),
    };
    (host, Arc::new(policy))
}

impl PolicyAt for FixedPolicies {
    fn at(&self, domain: &str, _: i64) -> Option<PolicyInForce> {
        Some(self.0.get(domain).cloned().unwrap_or(PolicyInForce::None))
    }
}
