//! `tlswarden replay`: what logs would have been counted as.
//!
//! Takes: log files (`.gz` too, `-` for standard input), in the order given, or what `journalctl -o json` prints. Gives: the rows of RFC 8460, as JSON or as a
//! table. Sends and stores nothing, asks no network.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use jiff::tz::TimeZone;
use serde::Serialize;
use tlswarden_parsers::Dialect;

use super::render::table;
use super::{CliError, EX_CONFIG, EX_DATAERR, EX_NOINPUT, EX_USAGE, print_stdout};
use crate::base::tlsrpt::{Failure, Policy, TallyRow};
use crate::config;
use crate::daemon::services::{self, LineSample, PROGRAM_NAME_ADVICE, ReplayError, ReplayRequest, ReplayResult};

pub(crate) const HELP: &str = "\
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

Sessions that carried the daemon's own reports are counted here, because only the daemon knows them. Those to hosts of local
networks are left out, as the daemon leaves them out without another `[count] local_networks`, unless
`--private-addresses` is given; how many is shown.

If no line was recognized, the exit status is 65.";

#[derive(Args)]
pub(crate) struct ReplayOptions {
    /// Whose logs they are.
    #[arg(long, value_enum, default_value_t = MtaOption::Auto)]
    mta: MtaOption,
    /// The policies in force (TOML, see below); without it every destination has none.
    #[arg(long, value_name = "FILE")]
    policies: Option<PathBuf>,
    /// The year of the first line, for time stamps without one; without it the latest that is not in the future.
    #[arg(long, value_name = "YYYY", value_parser = clap::value_parser!(i16).range(1970..=9000))]
    year: Option<i16>,
    /// The IANA zone of time stamps without one, such as `Europe/Berlin`; without it the host's.
    #[arg(long, value_name = "TZ")]
    timezone: Option<String>,
    /// Count sessions with hosts of local networks too, as in a closed network.
    #[arg(long)]
    private_addresses: bool,
    /// As JSON, with the names of RFC 8460.
    #[arg(long)]
    json: bool,
    /// Log files, oldest first; `-` is standard input, `.gz` is unpacked; `journalctl -o json` output is read too.
    #[arg(required = true, value_name = "LOG")]
    logs: Vec<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum MtaOption {
    /// Told by the lines.
    Auto,
    Postfix,
    Exim,
}

impl MtaOption {
    fn dialect(self) -> Option<Dialect> {
        match self {
            MtaOption::Auto => None,
            MtaOption::Postfix => Some(Dialect::Postfix),
            MtaOption::Exim => Some(Dialect::Exim),
        }
    }
}

pub(crate) fn replay(options: &ReplayOptions) -> Result<(), CliError> {
    let zone = match &options.timezone {
        None => TimeZone::system(),
        Some(name) => config::time_zone(name)
            .map_err(|e| CliError::new(EX_USAGE, format!("--timezone: {e}; nothing was read")))?,
    };
    let replayed = services::replay(&ReplayRequest {
        dialect: options.mta.dialect(),
        policies: options.policies.as_deref(),
        zone,
        year: options.year,
        private_addresses: options.private_addresses,
        logs: &options.logs,
    })?;
    print_stdout(&if options.json { render_json(&replayed) } else { render_rows(&replayed) })?;
    if replayed.recognized || replayed.read == 0 {
        return Ok(());
    }
    let cause = if replayed.without_program_name > 0 {
        PROGRAM_NAME_ADVICE
    } else {
        "none is of Postfix or Exim in a known form"
    };
    let sample = replayed.first_line.as_deref().map(|line| format!(", such as \"{line}\"")).unwrap_or_default();
    let logs: Vec<String> = options.logs.iter().map(|log| log.display().to_string()).collect();
    let read = replayed.read;
    Err(CliError::new(
        EX_DATAERR,
        format!("{}: no line of {read} was recognized: {cause}{sample}; nothing was counted", logs.join(", ")),
    ))
}

impl From<ReplayError> for CliError {
    fn from(error: ReplayError) -> CliError {
        let status = match error {
            ReplayError::Log { .. } | ReplayError::Policies { .. } => EX_NOINPUT,
            ReplayError::Syntax(_) | ReplayError::Policy(_) => EX_CONFIG,
        };
        CliError::new(status, error.to_string())
    }
}

fn render_json(replayed: &ReplayResult) -> String {
    let ReplayResult { read, used, malformed, .. } = *replayed;
    let shown = ReplayOutput {
        lines: ReplayLineCounts { read, used, malformed },
        results: replayed.rows.iter().map(ReplayRow::new).collect(),
        left_out: LeftOut {
            lines_without_program_name: replayed.without_program_name,
            lines_not_recognized: replayed.unrecognized_families.iter().copied().collect(),
            lines_lost_by_syslog: replayed.lost,
            sessions_to_local_networks: replayed.local,
            sessions_relayed: replayed.relayed,
            sessions_without_delivery: replayed.without_delivery,
            sessions_without_trust_anchors: replayed.without_anchors,
            samples: &replayed.samples,
        },
        sessions_contradicting_policy: replayed.contradicted,
        warnings: warnings(replayed),
    };
    serde_json::to_string(&shown).expect("plain structures always serialise") + "\n"
}

/// What `--json` prints.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct ReplayOutput<'a> {
    lines: ReplayLineCounts,
    results: Vec<ReplayRow<'a>>,
    left_out: LeftOut<'a>,
    /// They count as no-policy-found.
    sessions_contradicting_policy: u64,
    /// The same for people.
    warnings: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct LeftOut<'a> {
    lines_without_program_name: u64,
    /// By family.
    lines_not_recognized: BTreeMap<&'static str, u64>,
    lines_lost_by_syslog: u64,
    sessions_to_local_networks: u64,
    sessions_relayed: u64,
    sessions_without_delivery: u64,
    sessions_without_trust_anchors: u64,
    /// The first line of each family.
    samples: &'a [LineSample],
}

#[derive(Serialize)]
struct ReplayLineCounts {
    read: u64,
    used: u64,
    malformed: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct ReplayRow<'a> {
    day: String,
    recipient_domain: &'a str,
    policy: &'a Policy,
    summary: ReplaySummary,
    failure_details: Vec<ReplayDetail<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct ReplaySummary {
    total_successful_session_count: u64,
    total_failure_session_count: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct ReplayDetail<'a> {
    #[serde(flatten)]
    failure: &'a Failure,
    failed_session_count: u64,
}

impl<'a> ReplayRow<'a> {
    fn new(row: &'a TallyRow) -> ReplayRow<'a> {
        ReplayRow {
            day: row.day.to_string(),
            recipient_domain: &row.domain,
            policy: &row.policy,
            summary: ReplaySummary {
                total_successful_session_count: row.successful,
                total_failure_session_count: row.failed,
            },
            failure_details: row
                .details
                .iter()
                .map(|(failure, n)| ReplayDetail { failure, failed_session_count: *n })
                .collect(),
        }
    }
}

fn render_rows(replayed: &ReplayResult) -> String {
    let rows = &replayed.rows;
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
    let ReplayResult { read, used, malformed, .. } = replayed;
    text.push_str(&format!("{read} lines read, {used} used, {malformed} could not be read\n"));
    for warning in warnings(replayed) {
        text.push_str(&warning);
        text.push('\n');
    }
    for LineSample { family, line } in &replayed.samples {
        text.push_str(&format!("not read ({family}): {line}\n"));
    }
    text
}

/// What was left out or counted otherwise than it might be expected, a line each.
fn warnings(replayed: &ReplayResult) -> Vec<String> {
    [
        (replayed.without_program_name, "lines", &*format!("could not be read: {PROGRAM_NAME_ADVICE}")),
        (
            replayed.unrecognized,
            "lines",
            "may be about TLS sessions and are in no known wording, perhaps that of a new version",
        ),
        (replayed.lost, "lines", "are missing: a syslog daemon left them out, because there were too many"),
        (
            replayed.local,
            "sessions",
            "with hosts of local networks (loopback and private addresses, such as content filters) were left out",
        ),
        (replayed.relayed, "sessions", "with relay hosts whose next hop is not known were left out"),
        (replayed.without_delivery, "sessions", "whose delivery is not in these logs were not counted"),
        (
            replayed.without_anchors,
            "sessions",
            "under a policy in testing mode were not counted: the MTA has not shown that it has trust anchors",
        ),
        (replayed.contradicted, "sessions", "contradicted the policy given and were counted as no-policy-found"),
    ]
    .into_iter()
    .filter(|(number, ..)| *number > 0)
    .map(|(number, of, what)| {
        let of = if number == 1 { of.trim_end_matches('s') } else { of };
        format!("{number} {of} {what}")
    })
    .collect()
}
