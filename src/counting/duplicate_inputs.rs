//! Notices inputs that carry the same lines: rsyslog's file beside the journal.
//!
//! Takes: a mark for each delivery of an input. Gives: the other input that has them too. It only notices: which of the two
//! is to go is the administrator's to say.
//! Limits: `MAX_COMPARED` deliveries, the oldest out first; `SAME` of them are no chance.

use std::collections::{HashMap, VecDeque};

/// See the head of this file.
#[derive(Default)]
pub struct Twice {
    seen: HashMap<u64, usize>,
    order: VecDeque<u64>,
    hits: HashMap<(usize, usize), u32>,
    /// Inputs of which it is known, and the one that has the same.
    copies: HashMap<usize, usize>,
}

/// Deliveries that are remembered for comparison with other inputs.
const MAX_COMPARED: usize = 16_384;

/// Deliveries in two inputs after which it is no chance.
const SAME: u32 = 3;

impl Twice {
    /// Notes deliveries of an input; the other that has its lines too, if one has. Once that is so it stays so: what mends
    /// it is another configuration.
    pub fn note(&mut self, input: usize, delivered: &[u64]) -> Option<usize> {
        for mark in delivered {
            match self.seen.get(mark) {
                Some(other) if *other != input => {
                    let hits = self.hits.entry((*other, input)).or_default();
                    *hits = hits.saturating_add(1);
                    if *hits >= SAME {
                        self.copies.insert(input, *other);
                    }
                }
                Some(_) => {}
                None => {
                    if self.order.len() == MAX_COMPARED
                        && let Some(oldest) = self.order.pop_front()
                    {
                        self.seen.remove(&oldest);
                    }
                    self.order.push_back(*mark);
                    self.seen.insert(*mark, input);
                }
            }
        }
        self.copies.get(&input).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_of_an_input_stays_known() {
        let mut twice = Twice::default();
        assert_eq!(twice.note(1, &[1, 2, 3, 4]), None);
        assert_eq!(twice.note(2, &[4, 3]), None, "two may be chance");
        assert_eq!(twice.note(2, &[2]), Some(1));
        assert_eq!(twice.note(2, &[]), Some(1), "nothing new in it");
        assert_eq!(twice.note(1, &[5]), None);
    }
}
