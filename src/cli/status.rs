//! `tlswarden status`: each input and how far it is, the policies, what is due, the last errors.
//!
//! Takes: what the daemon knows; where none runs, what the store has. Gives: lines and tables for people, JSON, or the one
//! line that a monitoring server reads; an exit status.
//! When it fails: where no daemon answers and there is no store, one line and exit status 2.
//! Not here: what is wrong, and how bad that is (`health`).

use clap::Args;

use super::control::{query, query_daemon};
use super::health::{self, Level};
use super::render::{format_time, table, to_pretty_json};
use super::{CliError, ConfigFile, EX_UNAVAILABLE, print_stdout};
use crate::config::Config;
use crate::daemon::control::{ControlRequest, DaemonStatus, RefusedReload, ReportOverview, ReportStatus};
use crate::daemon::control_client::RequestError;

#[derive(Args)]
pub(crate) struct StatusOptions {
    #[command(flatten)]
    config: ConfigFile,
    /// As JSON.
    #[arg(long)]
    json: bool,
    /// Prints one line with performance data, for Icinga and Nagios: OK, WARNING, CRITICAL or UNKNOWN, with exit status
    /// 0, 1, 2 or 3.
    #[arg(long, conflicts_with = "json")]
    check: bool,
}

/// Why there is no status.
enum NoStatus {
    /// No daemon answers, and there is nothing else to show.
    NotRunning(CliError),
    /// It cannot be found out whether one does.
    Unknown(CliError),
}

/// Prints the status; the exit status says whether all is well.
pub(crate) fn status(options: &StatusOptions) -> Result<u8, CliError> {
    let status = match (load(&options.config, options.check), options.check) {
        (Ok(status), _) => status,
        (Err(NoStatus::NotRunning(error)), false) => {
            return Err(CliError::new(Level::Critical.exit_status(), error.message));
        }
        (Err(NoStatus::Unknown(error)), false) => return Err(error),
        (Err(none), true) => {
            let (level, error) = match none {
                NoStatus::NotRunning(error) => (Level::Critical, error),
                NoStatus::Unknown(error) => (Level::Unknown, error),
            };
            print_stdout(&(health::plain_line(level, &error.message) + "\n"))?;
            return Ok(level.exit_status());
        }
    };
    if options.check {
        let (level, line) = health::check_line(&status);
        print_stdout(&(line + "\n"))?;
        return Ok(level.exit_status());
    }
    print_stdout(&if options.json { to_pretty_json(&status) } else { render_status(&status) })?;
    Ok(health::highest_level(&health::problems(&status)).exit_status())
}

/// The status of the daemon; where none runs, that of the store, unless `daemon_only`.
fn load(file: &ConfigFile, daemon_only: bool) -> Result<DaemonStatus, NoStatus> {
    let (control, config) = match file.load() {
        Ok(config) => (config.control.clone(), Ok(config)),
        // The daemon goes on with the configuration that it has.
        Err(error) => (Config::control_section_of(&file.config), Err(error)),
    };
    match (query_daemon::<DaemonStatus>(&control, &ControlRequest::Status), config) {
        (Ok(status), Ok(_)) => Ok(status),
        (Ok(mut status), Err(error)) => {
            status.refused_reload.get_or_insert(RefusedReload { since: None, reason: error.message });
            Ok(status)
        }
        (Err(RequestError::Failed(line)), _) => Err(NoStatus::Unknown(CliError::new(EX_UNAVAILABLE, line))),
        (Err(RequestError::NotRunning), Err(error)) => Err(NoStatus::NotRunning(error)),
        (Err(RequestError::NotRunning), Ok(_)) if daemon_only => {
            let line = format!("no daemon answers at {}", control.socket.display());
            Err(NoStatus::NotRunning(CliError::new(EX_UNAVAILABLE, line)))
        }
        (Err(RequestError::NotRunning), Ok(config)) => {
            query(&config, &ControlRequest::Status, async |services| Ok(services.status().await))
                .map_err(NoStatus::NotRunning)
        }
    }
}

fn render_status(status: &DaemonStatus) -> String {
    let mut text = String::new();
    let mut add = |line: String| {
        text.push_str(&line);
        text.push('\n');
    };
    let problems = health::problems(status);
    problems.iter().for_each(|problem| add(problem.line.clone()));
    add(format!("tlswarden {}, {}", status.version, if status.running { "running" } else { "not running" }));
    if status.missing_identity.len() == status.identity_options {
        add(format!("no report is sent: [report] lacks {}", status.missing_identity.join(", ")));
    }
    add(status.resolver.to_string());
    if let Some(warning) = &status.resolver.warning {
        add(format!("resolver: {warning}"));
    }
    let policies = &status.policies;
    add(format!(
        "policies: {} MTA-STS policies in force, {} domains known, {} decisions in memory, {} periods of history",
        policies.policies, policies.domains, policies.decisions, policies.periods
    ));
    add(format!("store: {} bytes", status.store_size));
    status.found.iter().for_each(|line| add(line.clone()));
    add(String::new());
    let inputs: Vec<Vec<String>> = status
        .inputs
        .iter()
        .map(|(name, p)| {
            let lag = match (&p.trouble, p.at_end_since) {
                (Some(trouble), _) => trouble.clone(),
                (None, Some(_)) => "at its end".to_owned(),
                (None, None) if status.running => format!("{} bytes behind", p.behind),
                (None, None) => "not followed now".to_owned(),
            };
            let newest = p.newest.map_or_else(|| "-".to_owned(), format_time);
            let numbers = [p.lines, p.used, p.malformed, p.unrecognized, p.lost].map(|n| n.to_string());
            [vec![name.clone(), lag, newest], numbers.to_vec()].concat()
        })
        .collect();
    add(table(&["input", "how far", "newest line", "lines", "used", "unreadable", "unrecognized", "lost"], &inputs));
    if let Some(relayed) = status.counters.get("sessions-relayed").filter(|number| **number > 0) {
        add(format!(
            "{relayed} sessions with relay hosts were not counted since the daemon started, because their next hop is not known: \
             [[nexthop]] with `relay` and `nexthop` names it"
        ));
    }
    add(render_reports(&status.due));
    if !status.errors.is_empty() {
        add("last errors:".to_owned());
        status.errors.iter().for_each(|(at, line)| add(format!("  {} {line}", format_time(*at))));
    }
    text
}

/// The number of reports by state, and the first that are pending or failed.
fn render_reports(due: &ReportOverview) -> String {
    if due.counts.is_empty() {
        return "reports: none due".to_owned();
    }
    let counts: Vec<String> = due.counts.iter().map(|(state, n)| format!("{n} {state}")).collect();
    let counts = format!("reports: {}", counts.join(", "));
    let row = |due: &ReportStatus| {
        let to = due.destination.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
        let next = due.next.map_or_else(|| "-".to_owned(), format_time);
        let last = due.last.clone().unwrap_or_default();
        vec![due.day.to_string(), due.domain.clone(), to, due.state.to_string(), next, last]
    };
    let lines: Vec<Vec<String>> = due.open.iter().map(row).collect();
    if lines.is_empty() {
        return counts;
    }
    format!("{counts}\n{}", table(&["day", "report for", "to", "state", "next", "last answer"], &lines))
}
