//! `tlswarden results`: what has been counted so far, for people or as JSON.
//!
//! Takes: what the daemon has counted; where none runs, what the store has. Gives: a line a policy, and one a kind of failure.
//! Not here: the report that is made of it (`tlswarden reports preview`).

use clap::Args;

use super::control::query;
use super::render::{table, to_pretty_json};
use super::{CliError, ConfigFile, EX_USAGE, print_stdout};
use crate::base::domain_name;
use crate::base::tlsrpt::{Day, TallyRow};
use crate::daemon::control::ControlRequest;

#[derive(Args)]
pub(crate) struct ResultsOptions {
    /// The UTC day, YYYY-MM-DD; without it every day that has counts.
    #[arg(long)]
    day: Option<Day>,
    /// One recipient domain alone.
    #[arg(long)]
    domain: Option<String>,
    #[command(flatten)]
    config: ConfigFile,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn results(options: &ResultsOptions) -> Result<(), CliError> {
    if let Some(name) = options.domain.as_deref().filter(|name| domain_name::normalize(name).is_none()) {
        return Err(CliError::new(EX_USAGE, format!("--domain: `{name}` is no domain name; nothing is shown")));
    }
    let (day, domain) = (options.day, options.domain.clone());
    let request = ControlRequest::Results { day, domain: domain.clone() };
    let config = options.config.load()?;
    let rows: Vec<TallyRow> =
        query(&config, &request, async |services| services.results(day, domain.as_deref()).await)?;
    if options.json { print_stdout(&to_pretty_json(&rows)) } else { print_stdout(&render_rows(&rows)) }
}

fn render_rows(rows: &[TallyRow]) -> String {
    if rows.is_empty() {
        return "nothing has been counted\n".to_owned();
    }
    let mut lines = Vec::new();
    for row in rows {
        let policy = match row.policy.policy_domain == row.domain {
            true => row.policy.policy_type.to_string(),
            false => format!("{} of {}", row.policy.policy_type, row.policy.policy_domain),
        };
        let (successful, failed) = (row.successful.to_string(), row.failed.to_string());
        lines.push(vec![row.day.to_string(), row.domain.clone(), policy, successful, failed, String::new()]);
        for (failure, count) in &row.details {
            let parts = [failure.receiving_mx_hostname.as_deref(), failure.failure_reason_code.as_deref()];
            let where_and_why = parts.into_iter().flatten().collect::<Vec<_>>().join(", ");
            let how = format!("{count} {} {where_and_why}", failure.result_type).trim_end().to_owned();
            lines.push([vec![String::new(); 5], vec![how]].concat());
        }
    }
    table(&["day", "domain", "policy", "successful", "failed", "how"], &lines) + "\n"
}
