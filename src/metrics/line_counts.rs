//! How many lines of each family said something, and how many could not be read.
//!
//! Takes: the family of a line. Gives: numbers by family; there are some twenty families.
//! Not here: telling the families apart (`parsers`).

use serde::{Deserialize, Serialize};

/// The numbers of lines of one family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FamilyCounts {
    /// Lines that said something.
    pub used: u64,
    /// Lines that looked ours and could not be read.
    pub malformed: u64,
    /// Lines that look like the MTA's and match no known wording.
    #[serde(default)]
    pub unrecognized: u64,
}

/// Numbers of lines by family. A list, because it is short and searched for every line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LineCounts(Vec<(&'static str, FamilyCounts)>);

impl LineCounts {
    /// The numbers of a family, zero at first.
    pub fn entry(&mut self, family: &'static str) -> &mut FamilyCounts {
        let at = self.0.iter().position(|(name, _)| *name == family).unwrap_or_else(|| {
            self.0.push((family, FamilyCounts::default()));
            self.0.len() - 1
        });
        &mut self.0[at].1
    }

    /// Every family that there was a line of.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, FamilyCounts)> {
        self.0.iter().copied()
    }

    /// All families together.
    pub fn total(&self) -> FamilyCounts {
        let add = |sum: FamilyCounts, (_, lines): (_, FamilyCounts)| FamilyCounts {
            used: sum.used + lines.used,
            malformed: sum.malformed + lines.malformed,
            unrecognized: sum.unrecognized + lines.unrecognized,
        };
        self.iter().fold(FamilyCounts::default(), add)
    }
}
