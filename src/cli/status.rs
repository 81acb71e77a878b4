//! `tlswarden status`: each input and how far it is, the policies, what is due, the last errors.
//!
//! Takes: what the daemon knows; where none runs, what the store has. Gives: lines and tables for people, or JSON.

use super::control::{query, query_daemon};
use super::render::{format_time, table, to_pretty_json};
use super::{CliError, ConfigFile, print_stdout};
use crate::config::Config;
use crate::daemon::control::{ControlRequest, DaemonStatus, PartState, RefusedReload, ReportOverview, ReportStatus};

pub(crate) fn status(file: &ConfigFile, json: bool) -> Result<(), CliError> {
    let status: DaemonStatus = match file.load() {
        Ok(config) => query(&config, &ControlRequest::Status, async |services| Ok(services.status().await))?,
        // The daemon goes on with the configuration that it has.
        Err(error) => {
            let socket = Config::control_socket_of(&file.config);
            let Ok(mut status) = query_daemon::<DaemonStatus>(&socket, &ControlRequest::Status) else {
                return Err(error);
            };
            status.refused_reload.get_or_insert(RefusedReload { since: None, reason: error.message });
            status
        }
    };
    if json { print_stdout(&to_pretty_json(&status)) } else { print_stdout(&render_status(&status)) }
}

fn render_status(status: &DaemonStatus) -> String {
    let mut text = String::new();
    let mut add = |line: String| {
        text.push_str(&line);
        text.push('\n');
    };
    if let Some(RefusedReload { since, reason }) = &status.refused_reload {
        let since = since.map_or_else(String::new, |at| format!("; since {}", format_time(at)));
        add(format!("configuration on disk is not in use: {reason}{since}"));
    }
    for (part, state) in &status.parts {
        if let PartState::Off { reason, since, next_try } = state {
            let next = next_try.map_or_else(String::new, |at| format!(", next try at {}", format_time(at)));
            add(format!("OFF {part}: {reason}; since {}{next}", format_time(*since)));
        }
    }
    add(format!("tlswarden {}, {}", status.version, if status.running { "running" } else { "not running" }));
    if !status.missing_identity.is_empty() {
        add(format!("no report is sent: [report] lacks {}", status.missing_identity.join(", ")));
    }
    if let Some(why) = &status.due.mail_held {
        add(format!("reports by mail wait: {why}"));
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
    add(format!("store: {} octets", status.store_size));
    status.found.iter().for_each(|line| add(line.clone()));
    add(String::new());
    let inputs: Vec<Vec<String>> = status
        .inputs
        .iter()
        .map(|(name, p)| {
            let lag = match (&p.trouble, p.at_end_since) {
                (Some(trouble), _) => trouble.clone(),
                (None, Some(_)) => "at its end".to_owned(),
                (None, None) if status.running => format!("{} octets behind", p.behind),
                (None, None) => "not followed now".to_owned(),
            };
            let newest = p.newest.map_or_else(|| "-".to_owned(), format_time);
            let numbers = [p.lines, p.used, p.malformed, p.unrecognized, p.lost].map(|n| n.to_string());
            [vec![name.clone(), lag, newest], numbers.to_vec()].concat()
        })
        .collect();
    add(table(&["input", "how far", "newest line", "lines", "used", "unreadable", "unrecognized", "lost"], &inputs));
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
