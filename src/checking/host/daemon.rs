//! What the running daemon knows of itself: whether it is asked, what it follows, what went wrong.
//!
//! Takes: its state, as the control socket tells it. Gives: findings.
//! Not here: asking it (`daemon::services`), why Postfix might not ask (`postfix`).

use std::collections::BTreeMap;

use crate::answering::policy::admin::list::PolicyStatus;
use crate::base::parts::PartState;
use crate::checking::finding::{Finding, Findings, Severity};
use crate::checking::host::log_lines;
use crate::config::Config;
use crate::metrics::InputProgress;

/// How far an input may be behind its log, in octets: a busy minute.
const MAX_BEHIND: u64 = 16 * 1024 * 1024;

/// A log with this many lines and no session among them is a wrong log.
const MIN_LINES_TO_JUDGE: u64 = 1000;

/// How far a log may be ahead of the clock, in seconds.
const MAX_CLOCK_LEAD: i64 = 600;

/// Whether a daemon runs, as far as this process can see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DaemonPresence {
    /// It answers, and no MTA has asked it since its start.
    Running,
    /// It answers, and an MTA has asked it.
    Asked,
    /// Nothing listens.
    NotRunning,
    /// This process may not ask it, or it does not answer.
    Unknown,
}

/// What a running daemon says of itself, as far as `doctor` looks at it.
#[derive(Clone, Debug, Default)]
pub(crate) struct DaemonState {
    /// Why the last reload was refused, if it was.
    pub(crate) refused_reload: Option<String>,
    /// The version of the program.
    pub(crate) version: String,
    /// The time, in seconds since 1970-01-01T00:00:00Z.
    pub(crate) now: i64,
    /// The settings that were detected on the host when the daemon started or was reloaded, one line each.
    pub(crate) detected: Vec<String>,
    /// The parts of the daemon.
    pub(crate) parts: BTreeMap<String, PartState>,
    /// Each input, by name, and how far it is.
    pub(crate) inputs: BTreeMap<String, InputProgress>,
    /// What happened how often, since the daemon started.
    pub(crate) counters: BTreeMap<String, u64>,
    /// The last errors, oldest first, with their times.
    pub(crate) errors: Vec<(i64, String)>,
    /// What is known of each next hop.
    pub(crate) policies: Vec<PolicyStatus>,
}

/// Why the daemon's state is not known.
#[derive(Debug)]
pub(crate) enum DaemonStateError {
    /// No daemon answers.
    NotRunning,
    /// It could not be asked; one line.
    Failed(String),
}

/// Checks the daemon's state. `host` is what is detected on the host now, as the daemon did at its start.
pub(crate) fn check_daemon(
    config: &Config,
    state: Result<DaemonState, DaemonStateError>,
    host: &[String],
    found: &mut Findings,
) -> DaemonPresence {
    let state = match state {
        Ok(state) => state,
        Err(DaemonStateError::NotRunning) => {
            let problem = format!("no daemon answers at {}", config.control.socket.display());
            let impact = "An MTA that cannot ask defers its mail, and nothing is counted or reported.";
            let finding = Finding::new(Severity::Error, "daemon-down", "tlswarden", problem, impact);
            found.push(finding.fix("systemctl start tlswarden; journalctl -u tlswarden   # says why it ended"));
            return DaemonPresence::NotRunning;
        }
        Err(DaemonStateError::Failed(line)) => {
            found.not_looked_at.push(format!("the running daemon: {line}"));
            return DaemonPresence::Unknown;
        }
    };
    found.looked_at.push(format!("the daemon, version {}: {}", state.version, describe_requests(&state)));
    let mut all = Vec::new();
    check_configuration(&state, found);
    check_parts(&state, found);
    check_requests(&state, &mut all);
    check_tlsa_without_data(&state, &mut all);
    check_host_changes(&state, host, &mut all);
    check_inputs(&state, config, found, &mut all);
    log_lines::check_lines(&state.inputs, &mut all);
    check_errors(&state, &mut all);
    found.extend(all);
    match counter(&state, "socketmap_requests") + counter(&state, "readsocket_requests") {
        0 => DaemonPresence::Running,
        _ => DaemonPresence::Asked,
    }
}

/// How many requests there were, and when the last one was.
fn describe_requests(status: &DaemonState) -> String {
    let (postfix, exim) = (counter(status, "socketmap_requests"), counter(status, "readsocket_requests"));
    let last = status.policies.iter().max_by_key(|listed| listed.used).filter(|listed| listed.used > 0);
    let last = last.map_or_else(String::new, |listed| {
        let at = jiff::Timestamp::from_second(listed.used).map_or_else(|_| listed.used.to_string(), |t| t.to_string());
        format!(", last at {at} about {}", listed.next_hop)
    });
    format!("asked {postfix} times over socketmap, {exim} times over readsocket{last}")
}

fn counter(status: &DaemonState, name: &str) -> u64 {
    status.counters.get(name).copied().unwrap_or(0)
}

/// Whether the daemon refused the configuration on disk.
fn check_configuration(state: &DaemonState, found: &mut Findings) {
    let Some(reason) = &state.refused_reload else { return };
    let problem = format!("the configuration on disk is not in use: {reason}");
    let impact = "The daemon goes on with the configuration before; it would not start with the new one.";
    let finding = Finding::new(Severity::Error, "config-not-in-use", "tlswarden", problem, impact);
    found.push(finding.fix("tlswarden check-config && tlswarden reload"));
}

/// The parts that are off: what that means, and where to look.
fn check_parts(state: &DaemonState, found: &mut Findings) {
    for (part, state) in &state.parts {
        let PartState::Off { reason, .. } = state else { continue };
        let (kind, subject) = part.split_once(' ').unwrap_or((part, part));
        let (impact, fix) = match kind {
            "socketmap" | "readsocket" => (
                "An MTA that asks at this address gets no answer, and defers its mail.",
                format!("ss -lnp | grep -F '{}'   # which process has it", address(subject)),
            ),
            "metrics" | "control" | "status" => (
                "Nobody is answered at this address; mail is not affected.",
                format!("ss -lnp | grep -F '{}'   # which process has it", address(subject)),
            ),
            "input" => ("Sessions in it are not counted, and days stay open for it.", format!("ls -lL '{subject}'")),
            "reports" => (
                "No report is sent. Days wait within `retention`, and are then dropped.",
                "tlswarden check-config   # a key in /etc/tlswarden/dkim.d is handed over at a restart only".to_owned(),
            ),
            "https" => (
                "MTA-STS policies are not fetched: only those that are cached are applied. Reports by https wait.",
                "apt install ca-certificates".to_owned(),
            ),
            _ => (
                "Nothing is counted or reported; policies are answered from memory and DNS.",
                "journalctl -u tlswarden -p err".to_owned(),
            ),
        };
        found.push(
            Finding::new(Severity::Error, "part-off", subject, format!("{part} is off: {reason}"), impact).fix(fix),
        );
    }
}

/// An address as ss(8) shows it.
fn address(text: &str) -> &str {
    text.split_once(':').map_or(text, |(_, address)| address)
}

fn check_requests(status: &DaemonState, found: &mut Vec<Finding>) {
    let asked = counter(status, "socketmap_requests") + counter(status, "readsocket_requests");
    let not_asked = counter(status, "sessions-not-asked");
    let mut add = |severity, name: &str, problem: String, impact: &str| {
        found.push(Finding::new(severity, name, "tlswarden", problem, impact));
    };
    if not_asked > 0 && asked == 0 {
        let problem =
            format!("{not_asked} sessions were counted since the daemon started, and it was asked about none");
        add(
            Severity::Error,
            "never-asked",
            problem,
            "Published policies are not followed; `smtp_tls_policy_maps` says whom the MTA asks.",
        );
    } else if not_asked >= 10 && not_asked * 2 >= asked {
        let problem = format!("{not_asked} sessions went to destinations that the daemon was not asked about");
        add(
            Severity::Warning,
            "seldom-asked",
            problem,
            "They are counted under no policy. Another table or another instance may send past the daemon.",
        );
    }
    let unknown = counter(status, "socketmap_unknown_map");
    if unknown > 0 {
        let problem = format!("{unknown} requests were for a map that the daemon has not");
        add(
            Severity::Warning,
            "map-unknown-asked",
            problem,
            "They got PERM, and the mail was deferred. The maps are `policy` and `policy-tlsrpt`.",
        );
    }
    let temp = counter(status, "answers_temp");
    if temp > 0 && temp * 10 >= asked {
        let problem = format!("{temp} of {asked} answers were `ask again`");
        add(
            Severity::Warning,
            "answers-temporary",
            problem,
            "Mail was deferred because nothing could be found out: the resolver fails. \
             `tlswarden policy explain DOMAIN` says how.",
        );
    }
}

/// TLSA records that the Postfix of this host must never look up.
fn check_tlsa_without_data(status: &DaemonState, found: &mut Vec<Finding>) {
    let decisions = counter(status, "tlsa_without_data");
    if decisions > 0 {
        let problem = format!(
            "{decisions} decisions were about domains with TLSA records without data, which crash smtp(8) of this Postfix"
        );
        let impact = "Postfix gets no answer that makes it look them up; mail to some of these domains is deferred.";
        let finding = Finding::new(Severity::Warning, "tlsa-without-data", "tlswarden", problem, impact);
        let fix = "postconf -h mail_version   # 3.8.18, 3.9.12, 3.10.11, 3.11.4 and later ones do not crash";
        found.push(finding.fix(fix));
    }
}

/// Finds detected settings that have changed since the daemon started.
fn check_host_changes(status: &DaemonState, host: &[String], found: &mut Vec<Finding>) {
    let without = |lines: &[String], others: &[String]| -> String {
        let lines: Vec<&str> = lines.iter().filter(|line| !others.contains(line)).map(String::as_str).collect();
        if lines.is_empty() { "nothing of it".into() } else { lines.join("; ") }
    };
    if status.detected == host {
        return;
    }
    let problem =
        format!("at its start: {}; now: {}", without(&status.detected, host), without(host, &status.detected));
    let impact =
        "It goes by what it found at its start: answers are worded, and sessions counted, for a host that has changed.";
    let finding = Finding::new(Severity::Error, "host-changed", "tlswarden", problem, impact);
    found.push(finding.fix("systemctl reload tlswarden"));
}

fn check_inputs(status: &DaemonState, config: &Config, known: &Findings, found: &mut Vec<Finding>) {
    let said = |name: &str| known.findings.iter().any(|finding| finding.subject == name);
    for (name, progress) in &status.inputs {
        let mut add = |severity, kind: &str, problem: String, impact: &str| {
            found.push(Finding::new(severity, kind, name.clone(), problem, impact));
        };
        if let Some(trouble) = progress.trouble.as_ref().filter(|_| !said(name)) {
            add(Severity::Error, "input-trouble", trouble.clone(), "Sessions are not counted, and days stay open.");
        }
        if progress.at_end_since.is_none() && progress.behind > MAX_BEHIND {
            let problem = format!("the daemon is {} bytes behind", progress.behind);
            add(Severity::Warning, "input-behind", problem, "Reports wait until it has caught up, at most 12 h.");
        }
        let unreadable = progress.malformed.saturating_sub(log_lines::lines_without_program_name(progress));
        if unreadable > 0 && unreadable * 100 > progress.used {
            let problem = format!("{unreadable} lines about sessions could not be read");
            add(Severity::Warning, "lines-unreadable", problem, "Those are not counted. Please report such a line.");
        }
        if progress.lines >= MIN_LINES_TO_JUDGE && progress.used == 0 {
            let problem = format!("{} lines were read, and none was about an outbound session", progress.lines);
            add(
                Severity::Warning,
                "log-of-another",
                problem,
                "It may be the log of another program, or this host sends no mail.",
            );
        }
        if config.closed_network.clock.is_none() && progress.newest.is_some_and(|t| t > status.now + MAX_CLOCK_LEAD) {
            let problem =
                "its newest line is in the future: the clock went back, or [[input]] timezone is wrong".to_owned();
            add(
                Severity::Error,
                "clock-behind",
                problem,
                "Counts go to the wrong day, and reports leave at the wrong time.",
            );
        }
    }
}

fn check_errors(status: &DaemonState, found: &mut Vec<Finding>) {
    if status.version != env!("CARGO_PKG_VERSION") {
        let problem = format!("the daemon is version {}, this program {}", status.version, env!("CARGO_PKG_VERSION"));
        let finding = Finding::new(
            Severity::Warning,
            "daemon-older",
            "tlswarden",
            problem,
            "It was not restarted after an upgrade.",
        );
        found.push(finding.fix("systemctl restart tlswarden"));
    }
    if let Some((_, last)) = status.errors.last() {
        let problem = format!("{} errors lately, the last: {last}", status.errors.len());
        found.push(Finding::new(
            Severity::Note,
            "last-errors",
            "tlswarden",
            problem,
            "`tlswarden status` shows all of them with their times.",
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(counters: &[(&str, u64)]) -> DaemonState {
        DaemonState {
            refused_reload: None,
            version: env!("CARGO_PKG_VERSION").into(),
            now: 1_000_000,
            counters: counters.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect(),
            ..DaemonState::default()
        }
    }

    fn names(found: &[Finding]) -> Vec<&str> {
        found.iter().map(|f| f.name.as_str()).collect()
    }

    #[test]
    fn who_does_not_ask_is_found() {
        let names_of = |counters: &[(&str, u64)]| {
            let mut found = Vec::new();
            check_requests(&status(counters), &mut found);
            names(&found).join(" ")
        };
        assert_eq!(names_of(&[]), "");
        assert_eq!(names_of(&[("socketmap_requests", 100), ("sessions-not-asked", 3)]), "");
        assert_eq!(names_of(&[("sessions-not-asked", 1)]), "never-asked");
        assert_eq!(names_of(&[("readsocket_requests", 20), ("sessions-not-asked", 10)]), "seldom-asked");
        assert_eq!(names_of(&[("socketmap_requests", 20), ("answers_temp", 2)]), "answers-temporary");
        assert_eq!(names_of(&[("socketmap_requests", 1), ("socketmap_unknown_map", 1)]), "map-unknown-asked");
    }

    #[test]
    fn a_host_that_has_changed_is_found() {
        let lines = |version: &str| vec![format!("postfix: found: version {version}"), "input: found: f".to_owned()];
        let mut running = status(&[]);
        running.detected = lines("3.7");
        let mut found = Vec::new();
        check_host_changes(&running, &lines("3.7"), &mut found);
        assert!(found.is_empty());
        check_host_changes(&running, &lines("3.10"), &mut found);
        assert_eq!(found[0].problem, "at its start: postfix: found: version 3.7; now: postfix: found: version 3.10");
        check_host_changes(&status(&[]), &lines("3.7")[1..], &mut found);
        assert_eq!(found[1].problem, "at its start: nothing of it; now: input: found: f");
    }

    #[test]
    fn tlsa_records_without_data_are_named_once_they_were_met() {
        let mut found = Vec::new();
        check_tlsa_without_data(&status(&[]), &mut found);
        assert_eq!(names(&found), Vec::<&str>::new());
        check_tlsa_without_data(&status(&[("tlsa_without_data", 2)]), &mut found);
        assert_eq!(names(&found), ["tlsa-without-data"]);
    }

    #[test]
    fn inputs_in_trouble_are_found_once() {
        let mut status = status(&[]);
        let progress = |change: fn(&mut InputProgress)| {
            let mut progress = InputProgress { at_end_since: Some(1), ..InputProgress::default() };
            change(&mut progress);
            progress
        };
        for (name, change) in [
            ("trouble", (|p| p.trouble = Some("gone".into())) as fn(&mut InputProgress)),
            ("said", |p| p.trouble = Some("gone".into())),
            ("behind", |p| (p.at_end_since, p.behind) = (None, MAX_BEHIND + 1)),
            ("unreadable", |p| (p.lines, p.used, p.malformed) = (50, 50, 1)),
            ("other", |p| p.lines = MIN_LINES_TO_JUDGE),
            ("future", |p| p.newest = Some(1_000_000 + MAX_CLOCK_LEAD + 1)),
            ("well", |p| (p.lines, p.used, p.newest) = (5000, 4000, Some(1_000_000))),
        ] {
            status.inputs.insert(name.into(), progress(change));
        }
        let mut known = Findings::default();
        known.push(Finding::new(Severity::Error, "log-missing", "said", "x", "y"));
        let mut found = Vec::new();
        check_inputs(&status, &Config::default(), &known, &mut found);
        let found: Vec<_> = found.iter().map(|f| (f.subject.as_str(), f.name.as_str())).collect();
        assert_eq!(
            found,
            [
                ("behind", "input-behind"),
                ("future", "clock-behind"),
                ("other", "log-of-another"),
                ("trouble", "input-trouble"),
                ("unreadable", "lines-unreadable")
            ]
        );
    }
}
