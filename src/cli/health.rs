//! Whether all is well: what is wrong with the running daemon, and how bad that is, from its status.
//!
//! Takes: a [`DaemonStatus`]. Gives: a list of [`Problem`]s, and from it the exit status of `status` and the one line of
//! `status --check`, as monitoring plugins print it (Monitoring Plugins Development Guidelines).
//! Critical is what makes mail wait; everything else that is off is a warning.
//! Limits: [`MAX_CHECK_LINE`] characters of problems in the line.
//! Not here: what may be wrong with the host (`checking::host`), which takes longer to find out.

use std::collections::BTreeMap;

use super::render::format_time;
use super::{EX_OK, EXIT_ERRORS, EXIT_WARNINGS};
use crate::daemon::control::{DaemonStatus, PartState, RefusedReload, ReportState};

/// The most characters of problems in the line of `--check`: some monitoring servers cut a line at 1 KB.
const MAX_CHECK_LINE: usize = 600;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    /// Nothing is wrong.
    Ok,
    /// Something is off, and no mail waits because of it.
    Warning,
    /// No daemon answers, or mail waits.
    Critical,
    /// It could not be found out.
    Unknown,
}

impl Level {
    /// The exit status, which is that of a monitoring plugin.
    pub(super) fn exit_status(self) -> u8 {
        match self {
            Level::Ok => EX_OK,
            Level::Warning => EXIT_WARNINGS,
            Level::Critical => EXIT_ERRORS,
            Level::Unknown => 3,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Level::Ok => "OK",
            Level::Warning => "WARNING",
            Level::Critical => "CRITICAL",
            Level::Unknown => "UNKNOWN",
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) level: Level,
    /// One line.
    pub(super) line: String,
}

/// What is wrong, in the order in which `status` shows it.
pub(super) fn problems(status: &DaemonStatus) -> Vec<Problem> {
    let mut found = Vec::new();
    let mut add = |level, line: String| found.push(Problem { level, line });
    if !status.running {
        add(Level::Critical, "NOT RUNNING: no daemon answers; an MTA that asks it defers its mail".to_owned());
    }
    if let Some(RefusedReload { since, reason }) = &status.refused_reload {
        let since = since.map_or_else(String::new, |at| format!("; since {}", format_time(at)));
        add(Level::Warning, format!("configuration on disk is not in use: {reason}{since}"));
    }
    for (part, state) in &status.parts {
        if let PartState::Off { reason, since, next_try } = state {
            let next = next_try.map_or_else(String::new, |at| format!(", next try at {}", format_time(at)));
            let level = if is_answering(part) { Level::Critical } else { Level::Warning };
            add(level, format!("OFF {part}: {reason}; since {}{next}", format_time(*since)));
        }
    }
    if status.running {
        problems_of_running(status, &mut add);
    }
    if let Some(line) = incomplete_identity(status) {
        add(Level::Warning, line);
    }
    if let Some(why) = &status.due.mail_held {
        add(Level::Warning, format!("reports by mail wait: {why}"));
    }
    found
}

fn problems_of_running(status: &DaemonStatus, add: &mut impl FnMut(Level, String)) {
    if !status.parts.keys().any(|part| is_answering(part)) {
        let line = "NOT ANSWERING: neither [socketmap] nor [readsocket] has an address where an MTA can ask";
        add(Level::Warning, line.to_owned());
    }
    let resolver = &status.resolver;
    let dnssec_fails = resolver.problem().is_some() && status.wants_dane;
    if resolver.failure.is_some() || (dnssec_fails && (status.waits_without_dnssec || !resolver.edns)) {
        add(Level::Critical, format!("{resolver}; mail to destinations that are not cached waits"));
    } else if dnssec_fails {
        add(Level::Warning, resolver.to_string());
    }
    if status.inputs.is_empty() {
        add(Level::Warning, "NOT COUNTING: no log is read: there is no [[input]], or no file that it names".to_owned());
    }
    for (name, progress) in &status.inputs {
        let is_off = |state: &PartState| matches!(state, PartState::Off { .. });
        let known = status.parts.get(&format!("input {name}")).or(status.parts.get("store")).is_some_and(is_off);
        if let Some(trouble) = progress.trouble.as_ref().filter(|_| !known) {
            add(Level::Warning, format!("input {name}: {trouble}"));
        }
    }
}

/// A `[report]` section that was begun: who set nothing wants no reports.
fn incomplete_identity(status: &DaemonStatus) -> Option<String> {
    let missing = &status.missing_identity;
    let begun = !missing.is_empty() && missing.len() < status.identity_options;
    begun.then(|| format!("no report is sent: [report] lacks {}", missing.join(", ")))
}

/// Whether an MTA gets its answers from a part.
fn is_answering(part: &str) -> bool {
    part.starts_with("socketmap ") || part.starts_with("readsocket ")
}

/// The highest level; [`Level::Ok`] if there is no problem.
pub(super) fn highest_level(problems: &[Problem]) -> Level {
    problems.iter().map(|problem| problem.level).max().unwrap_or(Level::Ok)
}

/// The line of `--check`: `TLSWARDEN LEVEL: text | performance data`.
pub(super) fn check_line(status: &DaemonStatus) -> (Level, String) {
    let mut problems = problems(status);
    // The worst is what fits.
    problems.sort_by_key(|problem| std::cmp::Reverse(problem.level));
    let level = highest_level(&problems);
    let text = match problems.as_slice() {
        [] => summary(status),
        [one] => one.line.clone(),
        all => {
            let lines: Vec<&str> = all.iter().map(|problem| problem.line.as_str()).collect();
            format!("{} problems: {}", all.len(), lines.join("; "))
        }
    };
    (level, format!("{} | {}", plain_line(level, &text), performance_data(status)))
}

/// The line of `--check` where there is no status to show.
pub(super) fn plain_line(level: Level, text: &str) -> String {
    // A bar begins the performance data.
    let mut text: String =
        text.chars().take(MAX_CHECK_LINE).map(|c| if c == '|' || c.is_control() { ' ' } else { c }).collect();
    if text.chars().count() == MAX_CHECK_LINE {
        text.push_str("...");
    }
    format!("TLSWARDEN {}: {text}", level.name())
}

fn summary(status: &DaemonStatus) -> String {
    let count = |number: usize, what: &str| format!("{number} {what}{}", if number == 1 { "" } else { "s" });
    let sockets = status.parts.keys().filter(|part| is_answering(part)).count();
    let reports = if status.missing_identity.is_empty() { "reports on" } else { "reports not configured" };
    format!(
        "version {}, answering at {}, counting {}, {reports}",
        status.version,
        count(sockets, "socket"),
        count(status.inputs.len(), "input")
    )
}

fn performance_data(status: &DaemonStatus) -> String {
    let counter = |name: &str| status.counters.get(name).copied().unwrap_or(0);
    let (waiting, failed) = waiting_and_failed(&status.due.counts);
    let behind: u64 = status.inputs.values().map(|progress| progress.behind).sum();
    [
        format!("requests={}c", counter("socketmap_requests") + counter("readsocket_requests")),
        format!("answers_temp={}c", counter("answers_temp")),
        format!("policies={};;;0", status.policies.policies),
        format!("behind={behind}B;;;0"),
        format!("reports_waiting={waiting};;;0"),
        format!("reports_failed={failed};;;0"),
        format!("store={}B;;;0", status.store_size),
    ]
    .join(" ")
}

/// How many reports are still to arrive, and how many did not.
fn waiting_and_failed(counts: &BTreeMap<ReportState, u64>) -> (u64, u64) {
    let (mut waiting, mut failed) = (0, 0);
    for (state, number) in counts {
        match state {
            ReportState::Waiting | ReportState::Planned | ReportState::Attempting | ReportState::Deferred => {
                waiting += number;
            }
            ReportState::Refused | ReportState::Unknown | ReportState::Expired | ReportState::Bounced => {
                failed += number;
            }
            ReportState::Nothing | ReportState::Sent | ReportState::Suppressed => {}
        }
    }
    (waiting, failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_waiting_or_failed_also_when_the_mta_had_accepted_it() {
        for (state, want) in [
            (ReportState::Waiting, (3, 0)),
            (ReportState::Planned, (3, 0)),
            (ReportState::Attempting, (3, 0)),
            (ReportState::Deferred, (3, 0)),
            (ReportState::Refused, (0, 3)),
            (ReportState::Unknown, (0, 3)),
            (ReportState::Expired, (0, 3)),
            (ReportState::Bounced, (0, 3)),
            (ReportState::Nothing, (0, 0)),
            (ReportState::Sent, (0, 0)),
            (ReportState::Suppressed, (0, 0)),
        ] {
            assert_eq!(waiting_and_failed(&BTreeMap::from([(state, 3)])), want, "{state}");
        }
        let both = BTreeMap::from([(ReportState::Bounced, 1), (ReportState::Refused, 2), (ReportState::Deferred, 4)]);
        assert_eq!(waiting_and_failed(&both), (4, 3));
    }
}
