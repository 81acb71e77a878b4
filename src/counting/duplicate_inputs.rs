//! Notices inputs that carry the same lines: rsyslog's file beside the journal.
//!
//! Takes: a fingerprint of each delivery of an input. Gives: the other input that has them too. The administrator decides
//! which of the two to remove.
//! Limits: `MAX_COMPARED` deliveries, the oldest out first; `MIN_MATCHES` in two inputs are not a coincidence.

use std::collections::{HashMap, VecDeque};

/// Compares the deliveries of all inputs.
#[derive(Default)]
pub(crate) struct DuplicateInputs {
    seen: HashMap<u64, usize>,
    order: VecDeque<u64>,
    hits: HashMap<(usize, usize), u32>,
    /// Inputs that are duplicates, and the input that has the same lines.
    duplicates: HashMap<usize, usize>,
}

/// Deliveries that are stored for comparison with other inputs.
const MAX_COMPARED: usize = 16_384;

/// Deliveries in two inputs after which they are duplicates.
const MIN_MATCHES: u32 = 3;

impl DuplicateInputs {
    /// Notes deliveries of an input; returns another input that has its lines too. This stays so until the configuration
    /// changes.
    pub(crate) fn note(&mut self, input: usize, delivered: &[u64]) -> Option<usize> {
        for fingerprint in delivered {
            match self.seen.get(fingerprint) {
                Some(other) if *other != input => {
                    let hits = self.hits.entry((*other, input)).or_default();
                    *hits = hits.saturating_add(1);
                    if *hits >= MIN_MATCHES {
                        self.duplicates.insert(input, *other);
                    }
                }
                Some(_) => {}
                None => {
                    if self.order.len() == MAX_COMPARED
                        && let Some(oldest) = self.order.pop_front()
                    {
                        self.seen.remove(&oldest);
                    }
                    self.order.push_back(*fingerprint);
                    self.seen.insert(*fingerprint, input);
                }
            }
        }
        self.duplicates.get(&input).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_of_an_input_stays_known() {
        let mut duplicates = DuplicateInputs::default();
        assert_eq!(duplicates.note(1, &[1, 2, 3, 4]), None);
        assert_eq!(duplicates.note(2, &[4, 3]), None, "two may be chance");
        assert_eq!(duplicates.note(2, &[2]), Some(1));
        assert_eq!(duplicates.note(2, &[]), Some(1), "nothing new in it");
        assert_eq!(duplicates.note(1, &[5]), None);
    }
}
