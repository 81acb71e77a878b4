//! `tlswarden policy`: why a domain gets its answer, step by step; the cached policies, listed, shown, looked at again,
//! forgotten, written as a table for Postfix.
//!
//! Takes: what the daemon knows; where none runs, what the store has. Gives: text and tables for people, or JSON.

use std::cmp::Reverse;
use std::str::FromStr;

use clap::{Args, Subcommand, ValueEnum};

use super::control::answer;
use super::render::{moment, pretty, table};
use super::{ConfigFile, Fault, USAGE, print};
use crate::base::next_hop::NextHop;
use crate::base::tlsrpt::Mode;
use crate::daemon::control::{ControlRequest, Explanation, Listed, Record};

#[derive(Args)]
pub struct Options {
    #[command(subcommand)]
    what: What,
    #[command(flatten)]
    config: ConfigFile,
    /// As JSON; times are seconds since 1970-01-01T00:00:00Z.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum What {
    /// Shows what Postfix would be answered about a domain now, in both wordings, and why, step by step.
    Explain {
        /// The next hop as Postfix would ask: `example.com`, `[mx.example.com]:587`.
        domain: String,
    },
    /// Lists the cached policies.
    List(ListOptions),
    /// Shows what is known of one domain: record, document, times, the last failure. Asks nobody.
    Show {
        /// The next hop as Postfix would ask: `example.com`, `[mx.example.com]:587`.
        domain: String,
    },
    /// Asks DNS and the policy host again now; what cannot be had anew stays as it was.
    Refresh {
        /// The next hop as Postfix would ask.
        domain: String,
    },
    /// Forgets a domain: the next mail to it is looked up as if it were the first.
    ///
    /// Until then nothing is known of it, and an attacker who withholds its record or its policy host is not noticed.
    Purge {
        /// The domain.
        #[arg(required_unless_present = "all")]
        domain: Option<String>,
        /// Forgets all domains.
        #[arg(long, conflicts_with = "domain")]
        all: bool,
    },
    /// Writes the policies in force as a Postfix texthash table, for a day without the daemon.
    ///
    /// It does not change by itself: renew it daily, and go back to the daemon soon.
    Export,
}

#[derive(Args)]
struct ListOptions {
    /// What the list is sorted by.
    #[arg(long, value_enum, default_value_t = Sort::Domain)]
    sort: Sort,
    /// Lists only what fits; several must all fit. `domain=TEXT` (part of the name; `.example.com`: what is below it),
    /// `mode=enforce|testing|none`, `answer=dane-only|dane|secure|default|fixed|temp`, `failing` (the document cannot be had).
    #[arg(long, value_name = "FILTER")]
    filter: Vec<Filter>,
    /// Lists domains without any policy too.
    #[arg(long)]
    all: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Sort {
    /// By name.
    Domain,
    /// What ends first comes first.
    Expires,
    /// What was fetched last comes first.
    Fetched,
    /// What was asked about last comes first.
    Used,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Filter {
    Domain(String),
    Mode(Mode),
    Answer(String),
    Failing,
}

pub fn policy(options: &Options) -> Result<(), Fault> {
    match &options.what {
        What::Explain { domain } => explain(options, domain),
        What::List(list_options) => list(options, list_options),
        What::Show { domain } => show(options, domain, false),
        What::Refresh { domain } => show(options, domain, true),
        What::Purge { domain, .. } => purge(options, domain.as_deref()),
        What::Export => export(options),
    }
}

fn explain(options: &Options, next_hop: &str) -> Result<(), Fault> {
    let config = options.config.load()?;
    let question = ControlRequest::PolicyExplain { next_hop: next_hop.to_owned() };
    let explanation: Explanation = answer(&config, &question, async |desk| Ok(desk.explain_policy(next_hop).await))?;
    if options.json { print(&pretty(&explanation)) } else { print(&explanation.to_string()) }
}

fn list(options: &Options, list_options: &ListOptions) -> Result<(), Fault> {
    let config = options.config.load()?;
    let listed = answer(&config, &ControlRequest::PolicyList, async |desk| Ok(desk.policies.listed()))?;
    let listed = chosen(listed, list_options);
    if options.json {
        return print(&pretty(&listed));
    }
    print(&people(&listed))
}

/// What fits, sorted.
fn chosen(mut listed: Vec<Listed>, options: &ListOptions) -> Vec<Listed> {
    listed.retain(|one| {
        (options.all || !options.filter.is_empty() || one.says_something())
            && options.filter.iter().all(|f| f.fits(one))
    });
    let policy = |one: &Listed| one.sts.as_ref().map(|p| (p.fetched, p.expires));
    match options.sort {
        Sort::Domain => listed.sort_by(|a, b| a.next_hop.cmp(&b.next_hop)),
        Sort::Expires => listed.sort_by_key(|one| policy(one).map_or(i64::MAX, |(_, expires)| expires)),
        Sort::Fetched => listed.sort_by_key(|one| Reverse(policy(one).map(|(fetched, _)| fetched))),
        Sort::Used => listed.sort_by_key(|one| Reverse(one.used)),
    }
    listed
}

fn show(options: &Options, domain: &str, refresh: bool) -> Result<(), Fault> {
    let next_hop = checked(domain)?;
    let config = options.config.load()?;
    let question = match refresh {
        false => ControlRequest::PolicyShow { next_hop: next_hop.clone() },
        true => ControlRequest::PolicyRefresh { next_hop: next_hop.clone() },
    };
    let found: Option<Listed> = answer(&config, &question, async |desk| desk.show_policy(&next_hop, refresh).await)?;
    match (found, options.json) {
        (found, true) => print(&pretty(&found)),
        (Some(found), false) => print(&whole(&found)),
        (None, false) => print(&format!("nothing is known of {next_hop}: it was not asked about\n")),
    }
}

fn purge(options: &Options, domain: Option<&str>) -> Result<(), Fault> {
    let domain = domain.map(checked).transpose()?;
    let config = options.config.load()?;
    let question = ControlRequest::PolicyPurge { domain: domain.clone() };
    let gone: usize = answer(&config, &question, async |desk| desk.purge_policies(domain.as_deref()).await)?;
    if options.json { print(&pretty(&gone)) } else { print(&format!("forgotten: {gone} domains\n")) }
}

fn export(options: &Options) -> Result<(), Fault> {
    let config = options.config.load()?;
    let lines: Vec<(String, String)> =
        answer(&config, &ControlRequest::PolicyExport, async |desk| Ok(desk.export_policies()))?;
    if options.json {
        return print(&pretty(&lines));
    }
    let mut text = String::from(
        "# Written by tlswarden policy export. In main.cf: smtp_tls_policy_maps = texthash:/path/of/this/file\n\
         # It does not change by itself: domains change their policies, and their certificates under DANE, at any time.\n",
    );
    lines.iter().for_each(|(key, answer)| text.push_str(&format!("{key}\t{answer}\n")));
    print(&text)
}

fn checked(domain: &str) -> Result<String, Fault> {
    let hop = NextHop::parse(domain.as_bytes()).map(|hop| hop.key());
    hop.ok_or_else(|| {
        let text = domain.escape_debug();
        Fault::new(
            USAGE,
            format!("`{text}` is no next hop that can have a policy; allowed: `example.com`, `[mx.example.com]:587`"),
        )
    })
}

fn people(listed: &[Listed]) -> String {
    let time = |at: Option<i64>| at.map_or_else(|| "-".to_owned(), moment);
    let row = |one: &Listed| {
        let policy = one.sts.as_ref();
        vec![
            one.next_hop.clone(),
            one.answer.clone(),
            policy.map_or("-", |p| mode(p.mode)).to_owned(),
            time(policy.map(|p| p.fetched)),
            time(policy.map(|p| p.expires)),
            time(one.checked),
            time(Some(one.used).filter(|used| *used > 0)),
            one.failure.as_ref().map_or_else(String::new, |f| format!("{} ({})", f.result_type, f.reason)),
        ]
    };
    let head = ["next hop", "answer", "MTA-STS", "fetched", "expires", "record asked", "last used", "failure"];
    let rows: Vec<Vec<String>> = listed.iter().map(row).collect();
    format!("{}\n{} next hops\n", table(&head, &rows), rows.len())
}

fn whole(one: &Listed) -> String {
    let mut text = format!("{}\n  answer        {}\n", one.next_hop, one.answer);
    let mut say = |name: &str, value: String| text.push_str(&format!("  {name:<12}  {value}\n"));
    if one.used > 0 {
        say("last used", moment(one.used));
    }
    if let Some(dane) = &one.dane {
        say("DANE", format!("{}, until {}", dane.found, moment(dane.until)));
    }
    if let Some(record) = &one.record {
        let found = match record {
            Record::Id { id } => format!("id {id}"),
            Record::None { reason } => format!("none: {}", reason.escape_debug()),
            Record::Failed { cause } => format!("not known: {}", cause.escape_debug()),
        };
        say("record", found);
    }
    if let Some(at) = one.checked {
        say("record asked", moment(at));
    }
    if let Some(failure) = &one.failure {
        let (at, retry) = (moment(failure.at), moment(failure.retry));
        say("failure", format!("{at}: {}; next try {retry}", failure.text.escape_debug()));
    }
    if let Some(policy) = &one.sts {
        say("policy", format!("id {}, mode {}", policy.id, mode(policy.mode)));
        say("fetched", moment(policy.fetched));
        say("fetched anew", moment(policy.refresh));
        say("expires", moment(policy.expires));
        text.push_str("  document\n");
        policy.document.iter().for_each(|line| text.push_str(&format!("    {}\n", line.escape_debug())));
    }
    text
}

fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Enforce => "enforce",
        Mode::Testing => "testing",
        Mode::None => "none",
    }
}

impl Filter {
    fn fits(&self, one: &Listed) -> bool {
        match self {
            Filter::Domain(text) if text.starts_with('.') => {
                one.next_hop.trim_end_matches(']').ends_with(text.as_str())
            }
            Filter::Domain(text) => one.next_hop.contains(text.as_str()),
            Filter::Mode(mode) => one.sts.as_ref().is_some_and(|policy| policy.mode == *mode),
            Filter::Answer(answer) => one.answer == *answer,
            Filter::Failing => one.failure.is_some(),
        }
    }
}

impl FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Filter, String> {
        match text.split_once('=') {
            None if text == "failing" => Ok(Filter::Failing),
            Some(("domain", part)) => Ok(Filter::Domain(part.to_ascii_lowercase())),
            Some(("mode", "enforce")) => Ok(Filter::Mode(Mode::Enforce)),
            Some(("mode", "testing")) => Ok(Filter::Mode(Mode::Testing)),
            Some(("mode", "none")) => Ok(Filter::Mode(Mode::None)),
            Some(("answer", level @ ("dane-only" | "dane" | "secure" | "default" | "fixed" | "temp"))) => {
                Ok(Filter::Answer(level.to_owned()))
            }
            _ => Err(
                "allowed: domain=TEXT, mode=enforce|testing|none, answer=dane-only|dane|secure|default|fixed|temp, failing"
                    .into(),
            ),
        }
    }
}
