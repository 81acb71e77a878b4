//! `tlswarden reports`: what was sent to whom, when, with what answer; one report as it went; one sent once more.
//!
//! Takes: what the daemon knows; where none runs, what the store has. Gives: a table for people, or JSON.
//! Not here: a report of what has been counted so far (`tlswarden report`).

use clap::{Args, Subcommand};

use super::control::{answer, moment, pretty};
use super::render::table;
use super::{ConfigFile, Fault, print};
use crate::base::tlsrpt::Day;
use crate::daemon::control::{Due, DueState, Kept, Question};

#[derive(Args)]
pub struct Options {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    config: ConfigFile,
    /// As JSON; times are seconds since 1970-01-01T00:00:00Z.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum What {
    /// Lists the reports of the days that are kept, and what came of them. What is listed without a subcommand, too.
    List {
        /// The UTC day, YYYY-MM-DD.
        #[arg(long)]
        day: Option<Day>,
        /// Lists the domains that get no report, too.
        #[arg(long)]
        all: bool,
    },
    /// Shows one report: where it went, and its JSON.
    Show {
        /// Its report-id, or what stands before the `@`.
        id: String,
    },
    /// Sends one report once more, to all its destinations: the same report-id, another Message-ID.
    Resend {
        /// Its report-id, or what stands before the `@`.
        id: String,
    },
}

pub fn reports(options: &Options) -> Result<(), Fault> {
    let config = options.config.load()?;
    match options.what.as_ref().unwrap_or(&What::List { day: None, all: false }) {
        What::List { day, all } => {
            let mut due: Vec<Due> = answer(&config, &Question::Reports, async |desk| desk.reports().await)?;
            due.retain(|due| day.is_none_or(|day| due.day == day) && (*all || due.state != DueState::Nothing));
            if options.json { print(&pretty(&due)) } else { print(&people(&due)) }
        }
        What::Show { id } => {
            let question = Question::ReportsShow { id: id.clone() };
            let kept: Kept = answer(&config, &question, async |desk| desk.kept(id.clone()).await)?;
            if options.json {
                return print(&pretty(&kept));
            }
            print(&format!("{}{}\n\n{}\n", people(&kept.deliveries), kept.file_name, kept.json))
        }
        What::Resend { id } => {
            let question = Question::ReportsResend { id: id.clone() };
            let again: usize = answer(&config, &question, async |desk| desk.resend(id.clone()).await)?;
            if options.json { print(&pretty(&again)) } else { print(&format!("sent again: to {again} destinations\n")) }
        }
    }
}

fn people(due: &[Due]) -> String {
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
                or_dash(due.tried.or(due.next).map(moment)),
                due.attempts.to_string(),
                or_dash(due.report_id.clone()),
                due.last.clone().unwrap_or_default(),
            ]
        })
        .collect();
    table(&["day", "report for", "to", "state", "when", "tries", "report-id", "last answer"], &lines) + "\n"
}
