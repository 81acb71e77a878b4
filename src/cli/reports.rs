//! `tlswarden reports`: what was sent to whom, when, with what answer; one report as it went; one sent once more; the
//! reports that would be sent.
//!
//! Takes: what the daemon knows; where none runs, what the store has. Gives: a table for people, or JSON; files.
//! Not here: what has been counted so far, without the reports that it makes (`tlswarden results`).

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::control::query;
use super::render::{format_time, table, to_pretty_json};
use super::{CliError, ConfigFile, EX_IOERR, EX_UNAVAILABLE, EX_USAGE, print_stdout};
use crate::base::domain_name;
use crate::base::tlsrpt::Day;
use crate::config::Config;
use crate::daemon::control::{
    ArchivedReport, ControlRequest, DayPreview, ReportPreview, ReportState, ReportStatus, ResendResult, ResendSelection,
};
use crate::daemon::services::gzip;

#[derive(Args)]
pub(crate) struct ReportsOptions {
    #[command(subcommand)]
    command: ReportsCommand,
    #[command(flatten)]
    config: ConfigFile,
}

#[derive(Subcommand)]
enum ReportsCommand {
    /// Lists the reports of the days that are kept, and what came of them.
    ///
    /// The states: `sent` is a report that the MTA or the receiver accepted. If the MTA's log says later that a report could not
    /// be delivered, it is `deferred` while the MTA tries again, and `bounced` once it has given up; the last answer begins with
    /// the queue id. `refused` and `expired` were not accepted, `unknown` may have been, `suppressed` is left out by [report].
    List {
        /// The UTC day, YYYY-MM-DD.
        #[arg(long)]
        day: Option<Day>,
        /// Lists the domains that get no report, too.
        #[arg(long)]
        all: bool,
        /// As JSON; times are seconds since 1970-01-01T00:00:00Z.
        #[arg(long)]
        json: bool,
    },
    /// Shows one report: where it went, and its JSON.
    Show {
        /// Its report-id, or what stands before the `@`.
        id: String,
        /// As JSON; times are seconds since 1970-01-01T00:00:00Z.
        #[arg(long)]
        json: bool,
    },
    /// Shows, or writes as files, the reports that would be sent for a day; sends nothing.
    Preview {
        /// The UTC day, YYYY-MM-DD; without it every day that has counts.
        #[arg(long)]
        day: Option<Day>,
        /// One recipient domain alone.
        #[arg(long)]
        domain: Option<String>,
        /// Writes each report into this folder, under its RFC 8460 file name.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    /// Sends reports once more under the same report-id, with another Message-ID: one report to all its destinations, or
    /// those of a day that ended in certain states. What [report] does not want is left out, with a warning.
    Resend {
        /// Its report-id, or what stands before the `@`.
        #[arg(required_unless_present = "day", conflicts_with = "day")]
        id: Option<String>,
        /// The UTC day, YYYY-MM-DD.
        #[arg(long, requires = "state")]
        day: Option<Day>,
        /// The states to send again, separated by commas.
        #[arg(long, value_enum, value_delimiter = ',', requires = "day")]
        state: Vec<ResendState>,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
}

/// The states of reports that can be sent once more.
#[derive(Clone, Copy, clap::ValueEnum)]
enum ResendState {
    /// Refused for good.
    Refused,
    /// Given up after 24 hours.
    Expired,
    /// Perhaps taken: the receiver may get it twice, under the same report-id.
    Unknown,
    /// Taken by the MTA, which gave up later, as its log says.
    Bounced,
    /// Taken by the MTA.
    Sent,
    /// Left out by [report] allow or suppress at the time.
    Suppressed,
}

impl From<ResendState> for ReportState {
    fn from(state: ResendState) -> ReportState {
        match state {
            ResendState::Refused => ReportState::Refused,
            ResendState::Expired => ReportState::Expired,
            ResendState::Unknown => ReportState::Unknown,
            ResendState::Bounced => ReportState::Bounced,
            ResendState::Sent => ReportState::Sent,
            ResendState::Suppressed => ReportState::Suppressed,
        }
    }
}

pub(crate) fn reports(options: &ReportsOptions) -> Result<(), CliError> {
    let config = options.config.load()?;
    match &options.command {
        ReportsCommand::List { day, all, json } => list(&config, *day, *all, *json),
        ReportsCommand::Show { id, json } => show(&config, id, *json),
        ReportsCommand::Preview { day, domain, out } => preview(&config, *day, domain.as_deref(), out.as_deref()),
        ReportsCommand::Resend { id, day, state, json } => {
            let selection = match (id, day) {
                (Some(id), _) => ResendSelection::Report(id.clone()),
                (None, Some(day)) => ResendSelection::Day(*day, state.iter().map(|state| (*state).into()).collect()),
                // clap has asked for one of them.
                (None, None) => return Err(CliError::new(EX_USAGE, "a report-id or --day: missing; nothing is sent")),
            };
            resend(&config, selection, *json)
        }
    }
}

fn list(config: &Config, day: Option<Day>, all: bool, json: bool) -> Result<(), CliError> {
    let mut due: Vec<ReportStatus> =
        query(config, &ControlRequest::ReportsList, async |services| services.list_reports().await)?;
    due.retain(|due| day.is_none_or(|day| due.day == day) && (all || due.state != ReportState::Nothing));
    if json { print_stdout(&to_pretty_json(&due)) } else { print_stdout(&render_list(&due)) }
}

fn show(config: &Config, id: &str, json: bool) -> Result<(), CliError> {
    let request = ControlRequest::ReportsShow { id: id.to_owned() };
    let archived: ArchivedReport =
        query(config, &request, async |services| services.archived_report(id.to_owned()).await)?;
    if json {
        return print_stdout(&to_pretty_json(&archived));
    }
    print_stdout(&format!("{}{}\n\n{}\n", render_list(&archived.deliveries), archived.file_name, archived.json))
}

fn resend(config: &Config, selection: ResendSelection, json: bool) -> Result<(), CliError> {
    let request = ControlRequest::ReportsResend { selection: selection.clone() };
    let result: ResendResult =
        query(config, &request, async |services| services.resend_reports(selection.clone()).await)?;
    if json {
        return print_stdout(&to_pretty_json(&result));
    }
    let mut text = format!("sent again: to {} destinations\n", result.destinations);
    result.left_out.iter().for_each(|line| text.push_str(&format!("warning: not sent again: {line}\n")));
    print_stdout(&text)
}

fn preview(config: &Config, day: Option<Day>, domain: Option<&str>, out: Option<&Path>) -> Result<(), CliError> {
    if let Some(name) = domain.filter(|name| domain_name::normalize(name).is_none()) {
        return Err(CliError::new(EX_USAGE, format!("--domain: `{name}` is no domain name; nothing is shown")));
    }
    let request = ControlRequest::ReportsPreview { day, domain: domain.map(str::to_owned) };
    let days: Vec<DayPreview> = query(config, &request, async |services| services.preview_reports(day, domain).await)?;
    let mut text = String::new();
    for DayPreview { day, reports } in &days {
        for report in reports {
            text.push_str(&format!("{day} {}\n", headline(report)));
            report
                .skipped
                .iter()
                .for_each(|skipped| text.push_str(&format!("  left out: {}: {}\n", skipped.uri, skipped.why)));
            match out {
                None => text.push_str(&format!("{}\n", report.json)),
                Some(folder) => {
                    let Some(file) = path_in(folder, &report.file_name) else {
                        return Err(CliError::new(
                            EX_UNAVAILABLE,
                            format!(
                                "`{}`: not the file name of a report: expected SUBMITTER!DOMAIN!BEGIN!END!ID.json.gz (RFC \
                                 8460 §5.1); stopped",
                                report.file_name.escape_debug()
                            ),
                        ));
                    };
                    let failed =
                        |e| CliError::new(EX_IOERR, format!("{}: cannot be written: {e}; stopped", file.display()));
                    std::fs::create_dir_all(folder)
                        .and_then(|()| std::fs::write(&file, gzip(report.json.as_bytes())))
                        .map_err(failed)?;
                    text.push_str(&format!("  {}\n", file.display()));
                }
            }
        }
    }
    if days.iter().all(|day| day.reports.is_empty()) {
        text.push_str("nothing was counted that a report could say\n");
    }
    print_stdout(&text)
}

/// Where a report is written: a plain file in `folder`.
///
/// The name comes from the daemon, which may have been taken over, and this command may run as root.
fn path_in(folder: &Path, file_name: &str) -> Option<PathBuf> {
    let parts: Vec<&str> = file_name.strip_suffix(".json.gz")?.split('!').collect();
    let is_plain = |part: &&str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
    };
    (parts.len() == 5 && parts.iter().all(is_plain)).then(|| folder.join(file_name))
}

/// What a report is about, and where it would go.
fn headline(report: &ReportPreview) -> String {
    let to: Vec<String> = report.recipients.iter().map(ToString::to_string).collect();
    let goes = match (&report.reported, &report.why_not) {
        (Some(id), _) => format!("reported already (report-id {id}); this is the whole day as counted by now"),
        (None, Some(why)) => format!("would not be sent: {why}"),
        (None, None) => format!("to {}", to.join(", ")),
    };
    format!("{}{}: {goes}", report.domain, if report.supplement { " (supplement)" } else { "" })
}

fn render_list(due: &[ReportStatus]) -> String {
    if due.is_empty() {
        return "no reports\n".to_owned();
    }
    let lines: Vec<Vec<String>> = due
        .iter()
        .map(|due| {
            let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
            vec![
                due.day.to_string(),
                format!("{}{}", due.domain, if due.supplement { " (supplement)" } else { "" }),
                or_dash(due.destination.as_ref().map(ToString::to_string)),
                due.state.to_string(),
                or_dash(due.tried.or(due.next).map(format_time)),
                due.attempts.to_string(),
                or_dash(due.report_id.clone()),
                due.last.clone().unwrap_or_default(),
            ]
        })
        .collect();
    table(&["day", "report for", "to", "state", "when", "tries", "report-id", "last answer"], &lines) + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_written_into_the_folder_alone() {
        let folder = Path::new("/root/reports");
        let path = |name: &str| path_in(folder, name);
        let name = "sender.example!xn--exmple-cua.net!1795305600!1795391999!00112233aabbccdd.json.gz";
        assert_eq!(path(name), Some(folder.join(name)));
        for other in [
            "",
            "/etc/passwd",
            "../../etc/cron.d/x",
            "a!b!1!2!../../x.json.gz",
            "/etc!b!1!2!3.json.gz",
            "a!b!1!2!3.json",
            "a!b!1!2!3!4.json.gz",
            "a!b!1!2!.json.gz",
            "a!b!1!2!\n.json.gz",
        ] {
            assert_eq!(path(other), None, "{other:?}");
        }
    }
}
