//! `tlswarden status`, `policy` and `report`: asked of the running daemon; where none runs, of the store itself.
//!
//! The embedded store has one owner, so the store is opened only where nobody listens on the control socket.

use std::os::unix::fs::{MetadataExt, lchown};
use std::path::Path;

use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::render::table;
use super::{CONFIG, Fault, IO, SOFTWARE, UNAVAILABLE, USAGE, print};
use crate::base::domain_name;
use crate::base::tlsrpt::Day;
use crate::config::Config;
use crate::daemon::control::{AskError, DayPreview, Desk, Due, Explanation, Overview, Preview, Question, Status, ask};
use crate::daemon::services::{self, OpenError, StoreError, gzip};

impl From<OpenError> for Fault {
    fn from(error: OpenError) -> Fault {
        let status = match error {
            OpenError::NoStore { .. } | OpenError::Store(StoreError::Locked(_)) => UNAVAILABLE,
            OpenError::Store(_) | OpenError::Host(_) => IO,
            OpenError::Keys(_) => CONFIG,
        };
        Fault::new(status, error.to_string())
    }
}

pub fn status(config: &Config, json: bool) -> Result<(), Fault> {
    let status: Status = answer(config, &Question::Status, async |desk| Ok(desk.status().await))?;
    if json { print(&pretty(&status)) } else { print(&people(&status)) }
}

pub fn policy(config: &Config, next_hop: &str, json: bool) -> Result<(), Fault> {
    let question = Question::Policy { next_hop: next_hop.to_owned() };
    let explanation: Explanation = answer(config, &question, async |desk| Ok(desk.policy(next_hop).await))?;
    if json { print(&pretty(&explanation)) } else { print(&explanation.to_string()) }
}

pub fn report(config: &Config, day: Option<Day>, domain: Option<String>, out: Option<&Path>) -> Result<(), Fault> {
    if let Some(name) = domain.as_deref().filter(|name| domain_name::normalise(name).is_none()) {
        return Err(Fault::new(USAGE, format!("--domain: `{name}` is no domain name; nothing is shown")));
    }
    let question = Question::Report { day, domain: domain.clone() };
    let days: Vec<DayPreview> = answer(config, &question, async |desk| desk.report(day, domain.as_deref()).await)?;
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
                    let file = folder.join(&report.file_name);
                    let failed = |e| Fault::new(IO, format!("{}: cannot be written: {e}; stopped", file.display()));
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
    print(&text)
}

/// What a report is about, and where it would go.
fn headline(report: &Preview) -> String {
    let to: Vec<String> = report.recipients.iter().map(ToString::to_string).collect();
    let goes = match (&report.reported, &report.why_not) {
        (Some(id), _) => format!("reported already (report-id {id}); this is the whole day as counted by now"),
        (None, Some(why)) => format!("would not be sent: {why}"),
        (None, None) => format!("to {}", to.join(", ")),
    };
    format!("{}{}: {goes}", report.domain, if report.supplement { " (supplement)" } else { "" })
}

/// Asks the daemon, or does what it would do.
pub(super) fn answer<T: DeserializeOwned>(
    config: &Config,
    question: &Question,
    here: impl AsyncFnOnce(&Desk) -> Result<T, String>,
) -> Result<T, Fault> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|e| Fault::new(SOFTWARE, format!("runtime: cannot start: {e}; nothing is shown")))?;
    let mut opened_here = false;
    let result = runtime.block_on(async {
        match ask(&config.control.socket, question).await {
            Ok(answer) => Ok(answer),
            Err(AskError::Failed(line)) => Err(Fault::new(UNAVAILABLE, line)),
            Err(AskError::NobodyThere) => {
                opened_here = true;
                let desk = services::open_offline(config)?;
                here(&desk).await.map_err(|line| Fault::new(CONFIG, line))
            }
        }
    });
    runtime.shutdown_timeout(std::time::Duration::from_millis(100));
    if opened_here && let Err(error) = give_back(&config.store.path) {
        tracing::debug!("store: owner not set: {error}");
    }
    result
}

/// Gives what root has made in the store to the store's owner: the daemon must be able to open it.
fn give_back(folder: &Path) -> std::io::Result<()> {
    let owner = std::fs::metadata(folder)?;
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let found = entry.metadata()?;
            if found.uid() != owner.uid() {
                // Never through a link: the folder is not root's.
                lchown(entry.path(), Some(owner.uid()), Some(owner.gid()))?;
            }
            if found.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    Ok(())
}

pub(super) fn pretty(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).expect("plain structures always serialise") + "\n"
}

fn people(status: &Status) -> String {
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
fn reports(due: &Overview) -> String {
    if due.counts.is_empty() {
        return "reports: none due".to_owned();
    }
    let counts: Vec<String> = due.counts.iter().map(|(state, n)| format!("{n} {state}")).collect();
    let counts = format!("reports: {}", counts.join(", "));
    let row = |due: &Due| {
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

pub(super) fn moment(seconds: i64) -> String {
    Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |t| t.to_string())
}
