//! Findings: what is wrong, its impact, and how to fix it; the results of `doctor` and `check-domain`.
//!
//! Takes: findings, in any order. Gives: [`Findings`], the most severe first, for people and scripts.
//! Not here: what is looked for (`host`, `domain`).

use std::fmt::{self, Write};

use serde::{Deserialize, Serialize};

/// How serious a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Mail waits, or is delivered with less than was published, or nothing is counted.
    Error,
    /// It works, and less well than it could.
    Warning,
    /// Good to know; nothing has to be done.
    Note,
}

/// One thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Finding {
    /// How serious it is.
    #[serde(rename = "weight")]
    pub severity: Severity,
    /// One word for scripts, which stays the same from release to release.
    pub name: String,
    /// Where: a file, a service, a host.
    pub subject: String,
    /// What is wrong.
    #[serde(rename = "what")]
    pub problem: String,
    /// Why it matters.
    #[serde(rename = "why")]
    pub impact: String,
    /// The lines to type, or to write into a file or a zone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fix: Vec<String>,
}

/// Everything that was looked at, and what came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Findings {
    /// The findings, the most severe first.
    pub findings: Vec<Finding>,
    /// What was looked at.
    pub looked_at: Vec<String>,
    /// What could not be looked at, and why not.
    pub not_looked_at: Vec<String>,
}

impl Finding {
    /// A finding without a fix.
    pub fn new(
        severity: Severity,
        name: &str,
        subject: impl Into<String>,
        problem: impl Into<String>,
        impact: impl Into<String>,
    ) -> Finding {
        let (subject, problem, impact) = (subject.into(), problem.into(), impact.into());
        Finding { severity, name: name.to_owned(), subject, problem, impact, fix: Vec::new() }
    }

    /// Adds one more line to the fix.
    pub fn fix(mut self, line: impl Into<String>) -> Finding {
        self.fix.push(line.into());
        self
    }
}

impl Findings {
    /// Adds one. The same about another subject is one finding with two subjects.
    pub fn push(&mut self, finding: Finding) {
        let same = |f: &&mut Finding| {
            (f.severity, &f.name, &f.problem, &f.fix)
                == (finding.severity, &finding.name, &finding.problem, &finding.fix)
        };
        match self.findings.iter_mut().find(same) {
            Some(known) if known.subject.split(", ").any(|subject| subject == finding.subject) => {}
            Some(known) => known.subject = format!("{}, {}", known.subject, finding.subject),
            None => {
                let behind = self.findings.iter().take_while(|f| f.severity <= finding.severity).count();
                self.findings.insert(behind, finding);
            }
        }
    }

    /// Adds what others found.
    pub fn extend(&mut self, others: impl IntoIterator<Item = Finding>) {
        others.into_iter().for_each(|finding| self.push(finding));
    }

    /// The highest severity.
    pub(crate) fn highest_severity(&self) -> Option<Severity> {
        self.findings.first().map(|finding| finding.severity)
    }

    fn count(&self, severity: Severity) -> usize {
        self.findings.iter().filter(|finding| finding.severity == severity).count()
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Severity::Error => "ERROR",
            Severity::Warning => "warning",
            Severity::Note => "note",
        })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:7}  {}: {} [{}]", self.severity.to_string(), self.subject, self.problem, self.name)?;
        writeln!(f, "         {}", self.impact)?;
        self.fix.iter().try_for_each(|line| writeln!(f, "           {line}"))
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.findings.iter().try_for_each(|finding| writeln!(f, "{finding}"))?;
        self.looked_at.iter().try_for_each(|line| writeln!(f, "looked at: {line}"))?;
        self.not_looked_at.iter().try_for_each(|line| writeln!(f, "not looked at: {line}"))?;
        let mut sum = String::new();
        for (severity, name) in
            [(Severity::Error, "errors"), (Severity::Warning, "warnings"), (Severity::Note, "notes")]
        {
            let comma = if sum.is_empty() { "" } else { ", " };
            write!(sum, "{comma}{} {name}", self.count(severity))?;
        }
        writeln!(f, "{sum}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_heaviest_is_first_and_the_same_is_said_once() {
        let mut found = Findings::default();
        assert_eq!(found.highest_severity(), None);
        let low = |subject: &str| Finding::new(Severity::Warning, "level", subject, "it is 0", "x").fix("set it to 1");
        found.push(low("smtp"));
        found.push(Finding::new(Severity::Note, "n", "a", "b", "c"));
        found.push(low("relay"));
        found.push(low("relay"));
        found.push(Finding::new(Severity::Error, "e", "a", "b", "c"));
        let names: Vec<&str> = found.findings.iter().map(|f| f.name.as_str()).collect();
        assert_eq!(names, ["e", "level", "n"]);
        assert_eq!(found.findings[1].subject, "smtp, relay");
        assert_eq!(found.highest_severity(), Some(Severity::Error));
        assert!(found.to_string().ends_with("1 errors, 1 warnings, 1 notes\n"), "{found}");
    }
}
