//! What the lines of the inputs show of the log: wordings that nobody knows, a program's name that is lost, lines that are
//! missing.
//!
//! Takes: the counts of lines of the running daemon, by family. Gives: findings, each with the setting that helps.
//! Limits: the counts are those since the daemon's start.
//! When it fails: never.
//! Not here: whether an input is read (`daemon`), whether Postfix logs TLS at all (`postfix`).

use std::collections::BTreeMap;

use tlswarden_parsers::LineFamily;

use crate::checking::finding::{Finding, Severity};
use crate::metrics::InputProgress;

/// The least number of lines in unknown words that are an error, and of how many recipients' lines one is: as in the daemon
/// (`counting::unrecognized`).
const MIN_UNRECOGNIZED: u64 = 20;
const UNRECOGNIZED_SHARE: u64 = 50;

/// Checks the lines of each input.
pub(super) fn check_lines(inputs: &BTreeMap<String, InputProgress>, found: &mut Vec<Finding>) {
    for (name, progress) in inputs {
        found.extend(
            [unrecognized(name, progress), without_program_name(name, progress), lost(name, progress)]
                .into_iter()
                .flatten(),
        );
    }
}

/// How many lines of an input have lost the name of their program.
pub(super) fn lines_without_program_name(progress: &InputProgress) -> u64 {
    progress.families.get(LineFamily::ProgramName.name()).map_or(0, |lines| lines.malformed)
}

fn unrecognized(name: &str, progress: &InputProgress) -> Option<Finding> {
    let used = |family: LineFamily| progress.families.get(family.name()).map_or(0, |lines| lines.used);
    let recipients = used(LineFamily::Delivery) + used(LineFamily::EximRecipient);
    let lines = progress.unrecognized;
    if lines < MIN_UNRECOGNIZED || lines.saturating_mul(UNRECOGNIZED_SHARE) < recipients {
        return None;
    }
    let families = progress.families.iter().filter(|(_, lines)| lines.unrecognized > 0);
    let families: Vec<String> = families.map(|(family, lines)| format!("{} {family}", lines.unrecognized)).collect();
    let problem = format!(
        "{lines} lines that may be about TLS sessions were not recognized ({}), beside {recipients} about recipients",
        families.join(", ")
    );
    let impact = "Reports miss these sessions. The MTA may be newer than this version of tlswarden knows.";
    let finding = Finding::new(Severity::Error, "lines-unrecognized", name, problem, impact);
    Some(finding.fix("journalctl -u tlswarden | grep 'not recognized'   # shows samples; please report one"))
}

fn without_program_name(name: &str, progress: &InputProgress) -> Option<Finding> {
    let lines = lines_without_program_name(progress);
    let problem = format!("{lines} lines have `postfix` in the place of the program's name, such as `postfix/smtp`");
    let impact = "Nothing is counted from these lines: whose they are cannot be told.";
    let finding = Finding::new(Severity::Error, "program-name-lost", name, problem, impact);
    let fix = "rsyslog.conf: global(parser.permitSlashInProgramName=\"on\")   # journalctl: not with -o with-unit";
    (lines > 0).then(|| finding.fix(fix))
}

fn lost(name: &str, progress: &InputProgress) -> Option<Finding> {
    let problem = format!("the syslog daemon left out {} lines, at least", progress.lost);
    let impact = "Sessions in them are not counted. Under a policy in testing mode, sessions in clear text are not counted \
                  for some time after such a gap.";
    let finding = Finding::new(Severity::Warning, "lines-lost", name, problem, impact);
    let fix = "journald.conf: RateLimitBurst=0; rsyslog.conf: imuxsock's SysSock.RateLimit.Interval=\"0\", \
               $RepeatedMsgReduction off";
    (progress.lost > 0).then(|| finding.fix(fix))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::line_counts::FamilyCounts;

    fn input(lost: u64, families: &[(LineFamily, FamilyCounts)]) -> InputProgress {
        let unrecognized = families.iter().map(|(_, lines)| lines.unrecognized).sum();
        let families = families.iter().map(|(family, lines)| (family.name().to_owned(), *lines)).collect();
        InputProgress { lost, unrecognized, families, ..InputProgress::default() }
    }

    #[test]
    fn what_the_lines_show_is_found() {
        let counts = |used, malformed, unrecognized| FamilyCounts { used, malformed, unrecognized };
        let inputs = BTreeMap::from([
            (
                "well".to_owned(),
                input(0, &[(LineFamily::Delivery, counts(5000, 0, 0)), (LineFamily::UnknownText, counts(0, 0, 30))]),
            ),
            (
                "new".to_owned(),
                input(
                    0,
                    &[(LineFamily::EximRecipient, counts(900, 0, 0)), (LineFamily::UnknownEximText, counts(0, 0, 20))],
                ),
            ),
            ("cut".to_owned(), input(0, &[(LineFamily::ProgramName, counts(0, 3, 0))])),
            ("gaps".to_owned(), input(7, &[])),
        ]);
        let mut found = Vec::new();
        check_lines(&inputs, &mut found);
        let names: Vec<(&str, &str)> = found.iter().map(|f| (f.subject.as_str(), f.name.as_str())).collect();
        assert_eq!(names, [("cut", "program-name-lost"), ("gaps", "lines-lost"), ("new", "lines-unrecognized")]);
        assert!(found[2].problem.contains("20 unknown Exim text"), "{}", found[2].problem);
        assert!(found[0].fix[0].contains("permitSlashInProgramName"));
    }
}
