//! Who gets a report: what `[report]` says of single domains and destinations.
//!
//! Takes: the destinations that a domain published (`base::rua_record`), and the `[report]` section. Gives: those that are
//! served. Pure.
//! Limits: `max_destinations` of a record are served.
//! When it fails: [`NoRecipients`] says why the domain gets no report.
//! Not here: the record (`base::rua_record`), sending (`reporting::transport`).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::base::domain_name;
use crate::base::rua_record::{Destination, NoRecipients, Recipients, parse_destination};
use crate::base::tlsrpt::Day;
use crate::config::{ReportSection, SuppressSection};

/// The policy domain that a report is about (RFC 8460 §1.1). Its text form, a domain or `mx:` and a host, reads back equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) enum ReportSubject {
    /// A recipient domain: all its sessions, whatever the policy.
    Domain(String),
    /// An MX host (a TLSA base domain): its sessions under its own TLSA records, of all recipient domains together.
    Host(String),
}

impl ReportSubject {
    /// The policy domain: where `_smtp._tls` is looked up, `TLS-Report-Domain`, the name in file name and Subject.
    pub(crate) fn name(&self) -> &str {
        match self {
            ReportSubject::Domain(name) | ReportSubject::Host(name) => name,
        }
    }
}

impl fmt::Display for ReportSubject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReportSubject::Domain(name) => f.write_str(name),
            ReportSubject::Host(name) => write!(f, "mx:{name}"),
        }
    }
}

impl From<ReportSubject> for String {
    fn from(subject: ReportSubject) -> String {
        subject.to_string()
    }
}

impl FromStr for ReportSubject {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<ReportSubject, &'static str> {
        let (name, subject): (_, fn(String) -> ReportSubject) =
            text.strip_prefix("mx:").map_or((text, ReportSubject::Domain), |host| (host, ReportSubject::Host));
        domain_name::normalize(name)
            .filter(|normal| normal == name)
            .map(subject)
            .ok_or("no domain name in its one form")
    }
}

impl TryFrom<String> for ReportSubject {
    type Error = &'static str;

    fn try_from(text: String) -> Result<ReportSubject, &'static str> {
        text.parse()
    }
}

/// Which domains and destinations get reports, by `[report]`.
#[derive(Clone, Debug)]
pub(crate) struct RecipientFilter {
    only_failures: bool,
    null_sender: bool,
    allow: Vec<String>,
    suppress: Vec<SuppressSection>,
    max_destinations: usize,
}

impl RecipientFilter {
    /// Reads the section, which the configuration has checked.
    pub(crate) fn from_section(section: &ReportSection) -> RecipientFilter {
        RecipientFilter {
            only_failures: section.only_failures,
            null_sender: section.null_sender,
            allow: section.allow.clone(),
            suppress: section.suppress.clone(),
            max_destinations: section.max_destinations,
        }
    }

    /// Whether a report without any failure is not sent: then [`RecipientFilter::check_wanted`] needs to know whether there is one.
    pub(crate) fn only_failures(&self) -> bool {
        self.only_failures
    }

    /// Checks that a report of this day about this subject is wanted at all; `failures`: whether it has any.
    pub(crate) fn check_wanted(&self, subject: &ReportSubject, day: Day, failures: bool) -> Result<(), NoRecipients> {
        let name = subject.name();
        let unwanted = |option: String| Err(NoRecipients::Unwanted(option));
        if !self.allow.is_empty() && !self.allow.iter().any(|pattern| pattern_matches(pattern, name)) {
            return unwanted("it is not in [report] allow".to_owned());
        }
        let suppressed =
            |s: &&SuppressSection| s.in_force(day) && s.domain.as_deref().is_some_and(|p| pattern_matches(p, name));
        if let Some(by) = self.suppress.iter().find(suppressed) {
            return unwanted(by.describe());
        }
        if self.only_failures && !failures {
            return unwanted("nothing failed, and [report] only_failures is set".to_owned());
        }
        Ok(())
    }

    /// Checks that a report is wanted by the senders of the day's mail to its subject; `only_null`: all were null. Spam with
    /// a forged sender makes such mail, and a report about it tells a stranger of mail that he never sent.
    pub(crate) fn check_senders(&self, only_null: bool) -> Result<(), NoRecipients> {
        if only_null && !self.null_sender {
            let why = "only mail with a null sender (bounces) went there, and [report] null_sender is not set";
            return Err(NoRecipients::Unwanted(why.to_owned()));
        }
        Ok(())
    }

    /// Checks that a report that was planned before is still wanted, by the domains and destinations in `[report]`.
    pub(crate) fn check_planned(
        &self,
        subject: &ReportSubject,
        day: Day,
        to: &Destination,
    ) -> Result<(), NoRecipients> {
        // Whether it has failures was asked when it was planned.
        self.check_wanted(subject, day, true)?;
        match self.suppress.iter().find(|s| s.in_force(day) && s.matches(to)) {
            Some(by) => Err(NoRecipients::Unwanted(by.describe())),
            None => Ok(()),
        }
    }

    /// Leaves out the destinations that are suppressed, and those above `max_destinations`.
    pub(crate) fn apply_limits(&self, found: Recipients, day: Day) -> Result<Recipients, NoRecipients> {
        let Recipients { destinations, skipped, more_skipped } = found;
        let mut limited = Recipients { destinations: Vec::new(), skipped, more_skipped };
        for destination in destinations {
            let suppressed = |s: &&SuppressSection| s.in_force(day) && s.matches(&destination);
            if let Some(by) = self.suppress.iter().find(suppressed) {
                limited.skip(&destination.to_string(), by.describe());
            } else if limited.destinations.len() == self.max_destinations {
                limited.skip(&destination.to_string(), "more destinations than are served");
            } else {
                limited.destinations.push(destination);
            }
        }
        if limited.destinations.is_empty() { Err(NoRecipients::NoneUsable(limited.skipped)) } else { Ok(limited) }
    }
}

/// Whether a pattern of the configuration, `example.com` or `.example.com` for what is below it, covers a name.
fn pattern_matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_prefix('.') {
        Some(_) => name.len() > pattern.len() && name.ends_with(pattern),
        None => name == pattern,
    }
}

impl SuppressSection {
    /// The last day counts as well.
    fn in_force(&self, day: Day) -> bool {
        self.until.is_none_or(|until| day <= until)
    }

    /// Whether the rule names this destination: by its URI, by its address, or by its host alone.
    fn matches(&self, destination: &Destination) -> bool {
        let Some(wanted) = self.destination.as_deref() else { return false };
        if wanted.contains([':', '@']) {
            return parse_destination(wanted).is_ok_and(|wanted| wanted == *destination);
        }
        pattern_matches(wanted, &destination.host().trim_end_matches('.').to_ascii_lowercase())
    }

    fn describe(&self) -> String {
        let of = self.domain.iter().map(|d| format!("domain = \"{d}\""));
        let to = self.destination.iter().map(|d| format!("destination = \"{d}\""));
        let until = self.until.iter().map(|day| format!("until {day}"));
        let said: Vec<String> = of.chain(to).chain(until).collect();
        format!("[[report.suppress]] {}", said.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rua_record::parse_recipients;

    fn recipient_filter(edit: impl FnOnce(&mut ReportSection)) -> RecipientFilter {
        let mut section = ReportSection::default();
        edit(&mut section);
        RecipientFilter::from_section(&section)
    }

    fn suppress(domain: Option<&str>, destination: Option<&str>, until: Option<&str>) -> SuppressSection {
        let until = until.map(|day| day.parse().unwrap());
        SuppressSection { domain: domain.map(Into::into), destination: destination.map(Into::into), until }
    }

    fn day(text: &str) -> Day {
        text.parse().unwrap()
    }

    #[test]
    fn allow_suppress_and_only_failures_say_who_gets_a_report() {
        let subject = |name: &str| ReportSubject::Domain(name.into());
        let today = day("2026-11-22");
        let all = recipient_filter(|_| {});
        assert_eq!(all.check_wanted(&subject("a.example"), today, false), Ok(()));
        let some = recipient_filter(|s| s.allow = vec!["a.example".into(), ".b.example".into()]);
        for (name, wanted) in [("a.example", true), ("x.a.example", false), ("x.b.example", true), ("b.example", false)]
        {
            assert_eq!(some.check_wanted(&subject(name), today, true).is_ok(), wanted, "{name}");
        }
        assert!(some.check_wanted(&ReportSubject::Host("mx.b.example".into()), today, true).is_ok());
        let none = recipient_filter(|s| s.suppress = vec![suppress(Some(".a.example"), None, Some("2026-11-22"))]);
        let said = none.check_wanted(&subject("x.a.example"), today, true).unwrap_err().to_string();
        assert_eq!(said, "not wanted: [[report.suppress]] domain = \".a.example\", until 2026-11-22");
        assert!(none.check_wanted(&subject("x.a.example"), day("2026-11-23"), true).is_ok(), "the last day is over");
        let failures = recipient_filter(|s| s.only_failures = true);
        assert!(failures.check_wanted(&subject("a.example"), today, true).is_ok());
        assert!(failures.check_wanted(&subject("a.example"), today, false).is_err());
    }

    #[test]
    fn bounces_alone_make_no_report_unless_that_is_set() {
        let unset = recipient_filter(|_| {});
        assert_eq!(unset.check_senders(false), Ok(()));
        assert!(unset.check_senders(true).unwrap_err().to_string().contains("[report] null_sender"));
        assert_eq!(recipient_filter(|s| s.null_sender = true).check_senders(true), Ok(()));
    }

    #[test]
    fn suppressed_destinations_and_those_above_the_cap_are_left_out_by_name() {
        let record = "v=TLSRPTv1;rua=mailto:a@b.example,https://R.example:443/x,mailto:c@d.example,mailto:e@f.example";
        let found = || parse_recipients(&[record]).unwrap();
        let today = day("2026-11-22");
        let limited = |recipient_filter: RecipientFilter| recipient_filter.apply_limits(found(), today);
        let texts = |r: &Recipients| r.destinations.iter().map(ToString::to_string).collect::<Vec<_>>();
        let by = |to: &str| recipient_filter(|s| s.suppress = vec![suppress(None, Some(to), None)]);
        for to in ["a@b.example", "mailto:a@B.example", "b.example", ".example"] {
            let left = limited(by(to));
            match to {
                ".example" => assert!(matches!(left, Err(NoRecipients::NoneUsable(_)))),
                _ => assert!(!texts(&left.unwrap()).contains(&"mailto:a@b.example".to_owned()), "{to}"),
            }
        }
        let left = limited(by("r.example")).unwrap();
        assert_eq!(texts(&left), ["mailto:a@b.example", "mailto:c@d.example", "mailto:e@f.example"]);
        assert_eq!(left.skipped[0].why, "[[report.suppress]] destination = \"r.example\"");
        let left = limited(recipient_filter(|s| s.max_destinations = 2)).unwrap();
        assert_eq!((texts(&left).len(), left.skipped.len()), (2, 2));
        assert_eq!(left.skipped[0].why, "more destinations than are served");
    }

    #[test]
    fn whom_a_report_is_about_reads_back() {
        for text in ["example.net", "mx:mx1.example.net"] {
            assert_eq!(text.parse::<ReportSubject>().unwrap().to_string(), text);
        }
        for no in ["", "mx:", "Example.net", "mx:mx:a.example", "a b.example", "x/y.example"] {
            assert!(no.parse::<ReportSubject>().is_err(), "{no}");
        }
    }
}
