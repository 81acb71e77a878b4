//! How many lines of each family said something, and how many could not be read.
//!
//! Takes: the family of a line. Gives: numbers by family; there are some twenty families.
//! Not here: telling the families apart (`parsers`).

use serde::{Deserialize, Serialize};

/// What came of the lines of one family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfFamily {
    /// OfFamily that said something.
    pub used: u64,
    /// OfFamily that looked ours and could not be read.
    pub malformed: u64,
}

/// The same by family. A list, for it is short and looked at for every line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Families(Vec<(&'static str, OfFamily)>);

impl Families {
    /// The numbers of a family, zero at first.
    pub fn of(&mut self, family: &'static str) -> &mut OfFamily {
        let at = self.0.iter().position(|(name, _)| *name == family).unwrap_or_else(|| {
            self.0.push((family, OfFamily::default()));
            self.0.len() - 1
        });
        &mut self.0[at].1
    }

    /// Every family that there was a line of.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, OfFamily)> {
        self.0.iter().copied()
    }

    /// All families together.
    pub fn total(&self) -> OfFamily {
        let add = |sum: OfFamily, (_, lines): (_, OfFamily)| OfFamily {
            used: sum.used + lines.used,
            malformed: sum.malformed + lines.malformed,
        };
        self.iter().fold(OfFamily::default(), add)
    }
}
