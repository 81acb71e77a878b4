//! `tlswarden policy`: why a domain gets its answer, step by step; the cached policies, listed, shown, looked at again,
//! forgotten, written as a table for Postfix.
//!
//! Takes: what the daemon knows; where none runs, what the store has. Gives: text and tables for people, or JSON.

use std::cmp::Reverse;
use std::str::FromStr;

use clap::{Args, Subcommand, ValueEnum};

use super::control::query;
use super::render::{format_time, table, to_pretty_json};
use super::{CliError, ConfigFile, EX_USAGE, print_stdout};
use crate::base::next_hop::NextHop;
use crate::base::tlsrpt::Mode;
use crate::daemon::control::{ControlRequest, Explanation, PolicyStatus, RecordState};

#[derive(Args)]
pub(crate) struct PolicyOptions {
    #[command(subcommand)]
    command: PolicyCommand,
    #[command(flatten)]
    config: ConfigFile,
    /// As JSON; times are seconds since 1970-01-01T00:00:00Z.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum PolicyCommand {
    /// Shows what Postfix would be answered about a domain now, in both wordings, and why, step by step.
    Explain {
        /// The next hop as Postfix would ask: `example.com`, `[mx.example.com]:587`.
        domain: String,
    },
    /// Lists the cached policies.
    List(PolicyListOptions),
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
struct PolicyListOptions {
    /// What the list is sorted by.
    #[arg(long, value_enum, default_value_t = PolicySort::Domain)]
    sort: PolicySort,
    /// Lists only what fits; several must all fit. `domain=TEXT` (part of the name; `.example.com`: what is below it),
    /// `mode=enforce|testing|none`, `answer=dane-only|dane|secure|default|fixed|temp`, `failing` (the document cannot be had).
    #[arg(long, value_name = "FILTER")]
    filter: Vec<PolicyFilter>,
    /// Lists domains without any policy too.
    #[arg(long)]
    all: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PolicySort {
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
enum PolicyFilter {
    Domain(String),
    Mode(Mode),
    Answer(String),
    Failing,
}

pub(crate) fn policy(options: &PolicyOptions) -> Result<(), CliError> {
    match &options.command {
        PolicyCommand::Explain { domain } => explain(options, domain),
        PolicyCommand::List(list_options) => list(options, list_options),
        PolicyCommand::Show { domain } => show(options, domain, false),
        PolicyCommand::Refresh { domain } => show(options, domain, true),
        PolicyCommand::Purge { domain, .. } => purge(options, domain.as_deref()),
        PolicyCommand::Export => export(options),
    }
}

fn explain(options: &PolicyOptions, next_hop: &str) -> Result<(), CliError> {
    if !is_address_literal(next_hop) {
        parse_next_hop(next_hop)?;
    }
    let config = options.config.load()?;
    let request = ControlRequest::PolicyExplain { next_hop: next_hop.to_owned() };
    let explanation: Explanation =
        query(&config, &request, async |services| Ok(services.explain_policy(next_hop).await))?;
    if options.json { print_stdout(&to_pretty_json(&explanation)) } else { print_stdout(&explanation.to_string()) }
}

fn list(options: &PolicyOptions, list_options: &PolicyListOptions) -> Result<(), CliError> {
    let config = options.config.load()?;
    let listed = query(&config, &ControlRequest::PolicyList, async |services| Ok(services.policies.list()))?;
    let listed = filter_and_sort(listed, list_options);
    if options.json {
        return print_stdout(&to_pretty_json(&listed));
    }
    print_stdout(&render_list(&listed))
}

/// The policies that match the filters, sorted.
fn filter_and_sort(mut listed: Vec<PolicyStatus>, options: &PolicyListOptions) -> Vec<PolicyStatus> {
    listed.retain(|one| {
        (options.all || !options.filter.is_empty() || one.is_notable()) && options.filter.iter().all(|f| f.matches(one))
    });
    let policy = |one: &PolicyStatus| one.sts.as_ref().map(|p| (p.fetched, p.expires));
    match options.sort {
        PolicySort::Domain => listed.sort_by(|a, b| a.next_hop.cmp(&b.next_hop)),
        PolicySort::Expires => listed.sort_by_key(|one| policy(one).map_or(i64::MAX, |(_, expires)| expires)),
        PolicySort::Fetched => listed.sort_by_key(|one| Reverse(policy(one).map(|(fetched, _)| fetched))),
        PolicySort::Used => listed.sort_by_key(|one| Reverse(one.used)),
    }
    listed
}

fn show(options: &PolicyOptions, domain: &str, refresh: bool) -> Result<(), CliError> {
    let next_hop = parse_next_hop(domain)?;
    let config = options.config.load()?;
    let request = match refresh {
        false => ControlRequest::PolicyShow { next_hop: next_hop.clone() },
        true => ControlRequest::PolicyRefresh { next_hop: next_hop.clone() },
    };
    let found: Option<PolicyStatus> =
        query(&config, &request, async |services| services.show_policy(&next_hop, refresh).await)?;
    match (found, options.json) {
        (found, true) => print_stdout(&to_pretty_json(&found)),
        (Some(found), false) => print_stdout(&render_policy(&found)),
        (None, false) => print_stdout(&format!("nothing is known of {next_hop}: it was not asked about\n")),
    }
}

fn purge(options: &PolicyOptions, domain: Option<&str>) -> Result<(), CliError> {
    let domain = domain.map(parse_next_hop).transpose()?;
    let config = options.config.load()?;
    let request = ControlRequest::PolicyPurge { domain: domain.clone() };
    let gone: usize = query(&config, &request, async |services| services.purge_policies(domain.as_deref()).await)?;
    if options.json {
        print_stdout(&to_pretty_json(&gone))
    } else {
        print_stdout(&format!("forgotten: {gone} domains\n"))
    }
}

fn export(options: &PolicyOptions) -> Result<(), CliError> {
    let config = options.config.load()?;
    let lines: Vec<(String, String)> =
        query(&config, &ControlRequest::PolicyExport, async |services| Ok(services.export_policies()))?;
    if options.json {
        return print_stdout(&to_pretty_json(&lines));
    }
    let mut text = String::from(
        "# Written by tlswarden policy export. In main.cf: smtp_tls_policy_maps = texthash:/path/of/this/file\n\
         # It does not change by itself: domains change their policies, and their certificates under DANE, at any time.\n",
    );
    lines.iter().for_each(|(key, answer)| text.push_str(&format!("{key}\t{answer}\n")));
    print_stdout(&text)
}

/// Whether Postfix asks about it though it can have no policy: `[192.0.2.1]`, `[ipv6:2001:db8::1]:25`.
fn is_address_literal(next_hop: &str) -> bool {
    let Some((host, _port)) = next_hop.strip_prefix('[').and_then(|rest| rest.split_once(']')) else { return false };
    let host = match host.get(..5) {
        Some(prefix) if prefix.eq_ignore_ascii_case("ipv6:") => &host[5..],
        _ => host,
    };
    host.parse::<std::net::IpAddr>().is_ok()
}

fn parse_next_hop(domain: &str) -> Result<String, CliError> {
    let hop = NextHop::parse(domain.as_bytes()).map(|hop| hop.key());
    hop.ok_or_else(|| {
        let text = domain.escape_debug();
        let meant = domain_within(domain).map_or_else(String::new, |meant| format!("; did you mean `{meant}`?"));
        CliError::new(
            EX_USAGE,
            format!(
                "`{text}`: not a next hop that can have a policy: expected `example.com` or `[mx.example.com]:587`{meant}"
            ),
        )
    })
}

/// The domain in an email address or a URL, if there is one.
fn domain_within(text: &str) -> Option<String> {
    let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
    let rest = rest.strip_prefix("mailto:").unwrap_or(rest);
    let authority = rest.split(['/', '?', '#']).next()?;
    let host = authority.rsplit('@').next()?.split(':').next()?.trim();
    NextHop::parse(host.as_bytes()).map(|hop| hop.key()).filter(|found| found != text)
}

fn render_list(listed: &[PolicyStatus]) -> String {
    let time = |at: Option<i64>| at.map_or_else(|| "-".to_owned(), format_time);
    let row = |one: &PolicyStatus| {
        let policy = one.sts.as_ref();
        vec![
            one.next_hop.clone(),
            one.answer.clone(),
            policy.map_or("-", |p| mode_name(p.mode)).to_owned(),
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

fn render_policy(one: &PolicyStatus) -> String {
    let mut text = format!("{}\n  answer        {}\n", one.next_hop, one.answer);
    let mut add = |name: &str, value: String| text.push_str(&format!("  {name:<12}  {value}\n"));
    if one.used > 0 {
        add("last used", format_time(one.used));
    }
    if let Some(dane) = &one.dane {
        add("DANE", format!("{}, until {}", dane.found, format_time(dane.until)));
    }
    if let Some(record) = &one.record {
        let found = match record {
            RecordState::Id { id } => format!("id {id}"),
            RecordState::None { reason, .. } => format!("none: {}", reason.escape_debug()),
            RecordState::Failed { cause, .. } => format!("not known: {}", cause.escape_debug()),
        };
        add("record", found);
    }
    if let Some(at) = one.checked {
        add("record asked", format_time(at));
    }
    if let Some(failure) = &one.failure {
        let (at, retry) = (format_time(failure.at), format_time(failure.retry));
        add("failure", format!("{at}: {}; next try {retry}", failure.text.escape_debug()));
    }
    if let Some(policy) = &one.sts {
        add("policy", format!("id {}, mode {}", policy.id, mode_name(policy.mode)));
        add("fetched", format_time(policy.fetched));
        add("fetched anew", format_time(policy.refresh));
        add("expires", format_time(policy.expires));
        text.push_str("  document\n");
        policy.document.iter().for_each(|line| text.push_str(&format!("    {}\n", line.escape_debug())));
    }
    text
}

fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Enforce => "enforce",
        Mode::Testing => "testing",
        Mode::None => "none",
    }
}

impl PolicyFilter {
    fn matches(&self, one: &PolicyStatus) -> bool {
        match self {
            PolicyFilter::Domain(text) if text.starts_with('.') => {
                one.next_hop.trim_end_matches(']').ends_with(text.as_str())
            }
            PolicyFilter::Domain(text) => one.next_hop.contains(text.as_str()),
            PolicyFilter::Mode(mode) => one.sts.as_ref().is_some_and(|policy| policy.mode == *mode),
            PolicyFilter::Answer(answer) => one.answer == *answer,
            PolicyFilter::Failing => one.failure.is_some(),
        }
    }
}

impl FromStr for PolicyFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<PolicyFilter, String> {
        match text.split_once('=') {
            None if text == "failing" => Ok(PolicyFilter::Failing),
            Some(("domain", part)) => Ok(PolicyFilter::Domain(part.to_ascii_lowercase())),
            Some(("mode", "enforce")) => Ok(PolicyFilter::Mode(Mode::Enforce)),
            Some(("mode", "testing")) => Ok(PolicyFilter::Mode(Mode::Testing)),
            Some(("mode", "none")) => Ok(PolicyFilter::Mode(Mode::None)),
            Some(("answer", level @ ("dane-only" | "dane" | "secure" | "default" | "fixed" | "temp"))) => {
                Ok(PolicyFilter::Answer(level.to_owned()))
            }
            _ => Err(
                "allowed: domain=TEXT, mode=enforce|testing|none, answer=dane-only|dane|secure|default|fixed|temp, failing"
                    .into(),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_a_next_hop_is_an_error_with_the_domain_in_it() {
        let line = |text: &str| parse_next_hop(text).unwrap_err().message;
        for (text, meant) in [
            ("user@sts.test", Some("sts.test")),
            ("https://sts.test", Some("sts.test")),
            ("https://sts.test:8443/.well-known/mta-sts.txt?x", Some("sts.test")),
            ("mailto:user@sts.test", Some("sts.test")),
            ("", None),
            ("two words", None),
            ("..", None),
        ] {
            let line = line(text);
            assert!(line.contains("not a next hop that can have a policy"), "{line}");
            let shown = line.split_once("did you mean `").map(|(_, rest)| rest.trim_end_matches("`?"));
            assert_eq!(shown, meant, "{line}");
        }
        for literal in ["[192.0.2.1]", "[192.0.2.1]:587", "[2001:db8::1]", "[IPv6:2001:db8::1]:25"] {
            assert!(is_address_literal(literal), "{literal}");
        }
        assert!(!is_address_literal("[mx.example.com]"));
    }
}
