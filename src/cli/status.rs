//! `tlswarden status`: each input and how far it is, the policies, what is due, the last errors.
//!
//! Takes: what the daemon knows; where none runs, what the store has. Gives: lines and tables for people, or JSON.

use super::control::answer;
use super::render::{moment, pretty, table};
use super::{Fault, print};
use crate::config::Config;
use crate::daemon::control::{ControlRequest, DaemonStatus, ReportOverview, ReportStatus};

pub fn status(config: &Config, json: bool) -> Result<(), Fault> {
    let status: DaemonStatus = answer(config, &ControlRequest::Status, async |desk| Ok(desk.status().await))?;
    if json { print(&pretty(&status)) } else { print(&people(&status)) }
}

fn people(status: &DaemonStatus) -> String {
    let mut text = String::new();
    let mut say = |line: String| {
        text.push_str(&line);
        text.push('\n');
    };
    say(format!("tlswarden {}, {}", status.version, if status.running { "running" } else { "not running" }));
    if !status.missing_identity.is_empty() {
        say(format!("no report is sent: [report] lacks {}", status.missing_identity.join(", ")));
    }
    let validates = if status.validating { "validates" } else { "does not validate: no DANE" };
    say(format!("resolver {} {validates}", status.resolver));
    let policies = &status.policies;
    say(format!(
        "policies: {} MTA-STS policies in force, {} domains known, {} decisions in memory, {} periods of history",
        policies.policies, policies.domains, policies.decisions, policies.periods
    ));
    say(format!("store: {} octets", status.store_size));
    status.found.iter().for_each(|line| say(line.clone()));
    say(String::new());
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
            let newest = p.newest.map_or_else(|| "-".to_owned(), moment);
            vec![name.clone(), lag, newest, p.lines.to_string(), p.used.to_string(), p.malformed.to_string()]
        })
        .collect();
    say(table(&["input", "how far", "newest line", "lines", "used", "unreadable"], &inputs));
    say(reports(&status.due));
    if !status.errors.is_empty() {
        say("last errors:".to_owned());
        status.errors.iter().for_each(|(at, line)| say(format!("  {} {line}", moment(*at))));
    }
    text
}

/// How many reports there are of which state, and the first that are still to go or went wrong.
fn reports(due: &ReportOverview) -> String {
    if due.counts.is_empty() {
        return "reports: none due".to_owned();
    }
    let counts: Vec<String> = due.counts.iter().map(|(state, n)| format!("{n} {state}")).collect();
    let counts = format!("reports: {}", counts.join(", "));
    let row = |due: &ReportStatus| {
        let to = due.destination.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
        let next = due.next.map_or_else(|| "-".to_owned(), moment);
        let last = due.last.clone().unwrap_or_default();
        vec![due.day.to_string(), due.domain.clone(), to, due.state.to_string(), next, last]
    };
    let lines: Vec<Vec<String>> = due.open.iter().map(row).collect();
    if lines.is_empty() {
        return counts;
    }
    format!("{counts}\n{}", table(&["day", "report for", "to", "state", "next", "last answer"], &lines))
}
