//! What was found wrong, and what would mend it: the words of `doctor` and `check-domain`.
//!
//! Takes: findings, in any order. Gives: [`Findings`], the heaviest first, which people and scripts read.
//! Not here: what is looked for (`doctor`, `receiving`).

use std::fmt::{self, Write};

use serde::{Deserialize, Serialize};

/// How much a finding weighs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Weight {
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
    /// How much it weighs.
    pub weight: Weight,
    /// One word for scripts, which stays the same from release to release.
    pub name: String,
    /// Where: a file, a service, a host.
    pub subject: String,
    /// What is so.
    pub what: String,
    /// Why it matters.
    pub why: String,
    /// The lines to type, or to write into a file or a zone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fix: Vec<String>,
}

/// Everything that was looked at, and what came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Findings {
    /// What was found wrong, the heaviest first.
    pub findings: Vec<Finding>,
    /// What was looked at.
    pub looked_at: Vec<String>,
    /// What could not be looked at, and why not.
    pub not_looked_at: Vec<String>,
}

impl Finding {
    /// A finding without a line that mends it.
    pub fn new(
        weight: Weight,
        name: &str,
        subject: impl Into<String>,
        what: impl Into<String>,
        why: impl Into<String>,
    ) -> Finding {
        let (subject, what, why) = (subject.into(), what.into(), why.into());
        Finding { weight, name: name.to_owned(), subject, what, why, fix: Vec::new() }
    }

    /// With one more line that mends it.
    pub fn fix(mut self, line: impl Into<String>) -> Finding {
        self.fix.push(line.into());
        self
    }
}

impl Findings {
    /// Adds one. The same about another subject is one finding with two subjects.
    pub fn push(&mut self, finding: Finding) {
        let same = |f: &&mut Finding| {
            (f.weight, &f.name, &f.what, &f.fix) == (finding.weight, &finding.name, &finding.what, &finding.fix)
        };
        match self.findings.iter_mut().find(same) {
            Some(known) if known.subject.split(", ").any(|subject| subject == finding.subject) => {}
            Some(known) => known.subject = format!("{}, {}", known.subject, finding.subject),
            None => {
                let behind = self.findings.iter().take_while(|f| f.weight <= finding.weight).count();
                self.findings.insert(behind, finding);
            }
        }
    }

    /// Adds what others found.
    pub fn extend(&mut self, others: impl IntoIterator<Item = Finding>) {
        others.into_iter().for_each(|finding| self.push(finding));
    }

    /// The heaviest weight.
    pub fn heaviest(&self) -> Option<Weight> {
        self.findings.first().map(|finding| finding.weight)
    }

    fn count(&self, weight: Weight) -> usize {
        self.findings.iter().filter(|finding| finding.weight == weight).count()
    }
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Weight::Error => "ERROR",
            Weight::Warning => "warning",
            Weight::Note => "note",
        })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:7}  {}: {} [{}]", self.weight.to_string(), self.subject, self.what, self.name)?;
        writeln!(f, "         {}", self.why)?;
        self.fix.iter().try_for_each(|line| writeln!(f, "           {line}"))
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.findings.iter().try_for_each(|finding| writeln!(f, "{finding}"))?;
        self.looked_at.iter().try_for_each(|line| writeln!(f, "looked at: {line}"))?;
        self.not_looked_at.iter().try_for_each(|line| writeln!(f, "not looked at: {line}"))?;
        let mut sum = String::new();
        for (weight, name) in [(Weight::Error, "errors"), (Weight::Warning, "warnings"), (Weight::Note, "notes")] {
            let comma = if sum.is_empty() { "" } else { ", " };
            write!(sum, "{comma}{} {name}", self.count(weight))?;
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
        assert_eq!(found.heaviest(), None);
        let low = |subject: &str| Finding::new(Weight::Warning, "level", subject, "it is 0", "x").fix("set it to 1");
        found.push(low("smtp"));
        found.push(Finding::new(Weight::Note, "n", "a", "b", "c"));
        found.push(low("relay"));
        found.push(low("relay"));
        found.push(Finding::new(Weight::Error, "e", "a", "b", "c"));
        let names: Vec<&str> = found.findings.iter().map(|f| f.name.as_str()).collect();
        assert_eq!(names, ["e", "level", "n"]);
        assert_eq!(found.findings[1].subject, "smtp, relay");
        assert_eq!(found.heaviest(), Some(Weight::Error));
        assert!(found.to_string().ends_with("1 errors, 1 warnings, 1 notes\n"), "{found}");
    }
}
