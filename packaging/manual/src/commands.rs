//! `tlswarden(8)`: what the command line takes, and what the daemon shows.

use clap::{Arg, ArgAction, Command};
use tlswarden::metrics::catalogue::{CATALOGUE, SNAPSHOT_METRICS};

use crate::page::Page;

const DESCRIPTION: &[&str] = &[
    "`tlswarden serve` runs beside Postfix or Exim. It answers the MTA which TLS policy a destination published: DANE \
     (RFC 7672) where DNSSEC proves it, MTA-STS (RFC 8461) otherwise. It follows the MTA's log and counts how every \
     outbound TLS session ended. Once a day it reports the counts, signed with DKIM, to the domains that ask for them \
     (TLSRPT, RFC 8460).",
    "The other commands ask the running daemon over its control socket; where none runs, they open its store.",
];

const SIGNALS: &[(&str, &str)] = &[
    ("SIGTERM, SIGINT", "The daemon ends in order: what was read is counted, who was asking is answered."),
    (
        "SIGHUP",
        "The configuration is read again. What runs is drained and starts anew on the same sockets; a configuration \
         that does not pass changes nothing.",
    ),
];

const FILES: &[(&str, &str)] = &[
    ("/etc/tlswarden/tlswarden.toml", "The configuration, tlswarden.toml(5)."),
    ("/var/lib/tlswarden", "Counts, positions, cached policies, and what was sent."),
    ("/run/tlswarden/control", "The control socket, mode 0600."),
    (
        "/run/tlswarden/status.sock",
        "The socket that only reads, mode 0660: members of group `tlswarden` can run `tlswarden status` without root.",
    ),
    ("/var/spool/postfix/tlswarden/socketmap", "Where Postfix asks, within its chroot."),
];

/// The page.
pub(crate) fn page(mut command: Command) -> String {
    command.build();
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let mut page = Page::new("tlswarden", "8", about.trim_end_matches('.'));
    page.section("SYNOPSIS");
    for sub in subcommands(&command) {
        page.verbatim(&usage(sub));
    }
    page.section("DESCRIPTION");
    DESCRIPTION.iter().for_each(|text| page.paragraph(text));
    page.section("COMMANDS");
    page.paragraph(
        "Each takes `--config FILE`, the configuration file; without it `/etc/tlswarden/tlswarden.toml`. The output of \
         `--json` has times in seconds since 1970-01-01T00:00:00Z. `tlswarden help COMMAND` prints the help of a command.",
    );
    for sub in subcommands(&command) {
        describe(sub, &mut page);
    }
    page.section("EXIT STATUS");
    let statuses = text(command.get_after_help());
    page.verbatim(statuses.trim_start_matches("Exit status:\n"));
    page.section("SIGNALS");
    SIGNALS.iter().for_each(|(signal, meaning)| page.term(signal, meaning));
    page.section("ENVIRONMENT");
    page.term(
        "TLSWARDEN_LOG",
        "How much `serve` logs: a level, and levels of parts of the program, such as `info,answering=debug`, which \
         traces each look-up; `info,sled=warn` without it.",
    );
    page.section("METRICS");
    page.paragraph("At `/metrics` of the addresses in `[status] listen`, in Prometheus' text format.");
    for metric in SNAPSHOT_METRICS {
        page.term(&format!("{} ({})", metric.metric, metric.kind), metric.help);
    }
    for family in CATALOGUE {
        let labels: Vec<&str> = family.samples.iter().map(|(_, labels)| *labels).filter(|l| !l.is_empty()).collect();
        let labels = if labels.is_empty() { String::new() } else { format!(" With {}.", labels.join(" or ")) };
        page.term(&format!("{} (counter)", family.metric), &format!("{}{labels}", family.help));
    }
    page.section("FILES");
    FILES.iter().for_each(|(file, meaning)| page.term(file, meaning));
    page.section("SEE ALSO");
    page.paragraph("tlswarden.toml(5), socketmap_table(5), postconf(5), exim4(8)");
    page.render()
}

fn subcommands(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help")
}

fn usage(command: &Command) -> String {
    command.clone().render_usage().to_string().trim_start_matches("Usage: ").to_owned()
}

fn describe(command: &Command, page: &mut Page) {
    page.subsection(&usage(command));
    page.paragraph(&sentence(text(command.get_long_about().or_else(|| command.get_about()))));
    let known =
        |argument: &&Arg| argument.is_hide_set() || argument.get_id() == "help" || argument.get_id() == "config";
    for argument in command.get_arguments().filter(|argument| !known(argument)) {
        page.term(&form(argument), &meaning(argument));
    }
    if let Some(more) = command.get_after_help() {
        page.verbatim(&more.to_string());
    }
    for sub in subcommands(command) {
        describe(sub, page);
    }
}

fn form(argument: &Arg) -> String {
    let values =
        argument.get_value_names().unwrap_or_default().iter().map(|v| v.as_str()).collect::<Vec<_>>().join(" ");
    let takes = matches!(argument.get_action(), ArgAction::Set | ArgAction::Append);
    match (argument.get_short(), argument.get_long()) {
        (None, None) => values,
        (short, long) => {
            let short = short.map(|s| format!("-{s}"));
            let long = long.map(|l| format!("--{l}"));
            let names = [short, long].into_iter().flatten().collect::<Vec<_>>().join(", ");
            if takes { format!("{names} {values}") } else { names }
        }
    }
}

fn meaning(argument: &Arg) -> String {
    let mut meaning = sentence(text(argument.get_long_help().or_else(|| argument.get_help())));
    let named = argument.get_possible_values();
    let takes = matches!(argument.get_action(), ArgAction::Set | ArgAction::Append);
    if takes && !named.is_empty() {
        let names: Vec<String> = named.iter().filter(|v| !v.is_hide_set()).map(|v| v.get_name().to_owned()).collect();
        meaning.push_str(&format!(" One of {}.", names.join(", ")));
    }
    let defaults: Vec<String> =
        argument.get_default_values().iter().map(|v| v.to_string_lossy().into_owned()).collect();
    if takes && !defaults.is_empty() {
        meaning.push_str(&format!(" Default: {}.", defaults.join(" ")));
    }
    meaning
}

/// The help of clap's has lost the dot of a single sentence.
fn sentence(text: String) -> String {
    if text.is_empty() || text.ends_with(['.', ')', ':']) { text } else { text + "." }
}

fn text(text: Option<&clap::builder::StyledStr>) -> String {
    text.map(ToString::to_string).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_option_and_metric_is_in_it() {
        let mut command = tlswarden::cli::command();
        let page = page(command.clone()).replace("\\-", "-");
        command.build();
        let mut left = vec![&command];
        let mut seen = 0;
        while let Some(next) = left.pop() {
            for sub in next.get_subcommands().filter(|sub| sub.get_name() != "help") {
                assert!(
                    page.contains(&format!("tlswarden {}", sub.get_name())) || next.get_name() != "tlswarden",
                    "{sub}"
                );
                left.push(sub);
            }
            for long in next.get_arguments().filter_map(|a| a.get_long()).filter(|l| *l != "help" && *l != "version") {
                assert!(page.contains(&format!("--{long}")), "{} --{long}", next.get_name());
                seen += 1;
            }
        }
        assert!(seen > 10, "{seen}");
        for metric in SNAPSHOT_METRICS.iter().map(|s| s.metric).chain(CATALOGUE.iter().map(|f| f.metric)) {
            assert!(page.contains(&format!("{metric} (")), "{metric}");
        }
    }
}
