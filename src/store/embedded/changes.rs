//! What a batch changes in the embedded store, before it is committed.
//!
//! Takes: records to set or remove, counts to add, and what stands. Gives: the changes by key, each with what stood before.
//! When it fails: a key over the limit, or what stands cannot be read; nothing is written here.
//! Not here: committing (`embedded`), the octets of keys and values (`format`).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::Files;
use crate::base::tlsrpt::{Counted, Day, Policy, Tally};
use crate::store::StoreError;
use crate::store::format::{self, CountKey, Digest, Malformed, PolicyRef, Value};

/// What is to be set or removed, by key.
pub(super) type Changes = BTreeMap<Vec<u8>, Change>;

/// What stands under a key, and what shall.
pub(super) struct Change {
    pub old: Option<sled::IVec>,
    pub new: Option<Vec<u8>>,
}

/// Policy texts that a batch stores for the first time.
pub(super) type New = HashSet<(Day, Digest)>;

/// What a batch adds under one key.
enum Sum {
    Totals(u64, u64),
    Detail(u64, Vec<u8>),
}

impl Sum {
    /// The value that stands after adding to the one that is there.
    fn onto(self, old: Option<&[u8]>) -> Result<Vec<u8>, Malformed> {
        match self {
            Sum::Totals(successful, failed) => {
                let (s, f) = old.map_or(Ok((0, 0)), format::totals_from)?;
                Ok(format::totals(s.saturating_add(successful), f.saturating_add(failed)))
            }
            Sum::Detail(count, text) => match old.map(format::detail_from).transpose()? {
                Some((_, stored)) if stored != text => {
                    Err(Malformed("a failure's text is not the one of its digest".to_owned()))
                }
                Some((n, _)) => Ok(format::detail(n.saturating_add(count), &text)),
                None => Ok(format::detail(count, &text)),
            },
        }
    }
}

impl Files {
    pub(super) fn change(&self, changes: &mut Changes, key: Vec<u8>, new: Option<Vec<u8>>) -> Result<(), StoreError> {
        let old = self.value(&key)?;
        changes.insert(key, Change { old, new });
        Ok(())
    }

    /// Adds what sets or removes a record to `changes`.
    pub(super) fn change_record(
        &self,
        changes: &mut Changes,
        key: Vec<u8>,
        value: Option<&[u8]>,
    ) -> Result<(), StoreError> {
        if key.len() > format::KEY_LIMIT {
            let (length, limit) = (key.len(), format::KEY_LIMIT);
            let folder = self.folder.display();
            return Err(StoreError::Unusable(format!(
                "store: {folder}: a key of {length} octets: over the limit of {limit}; its batch is not written"
            )));
        }
        let parts_of = |value: &[u8]| match Value::decode(value) {
            Ok(Value::Parts { parts, .. }) => parts,
            _ => 0,
        };
        let old = self.value(&key)?;
        let before = old.as_deref().map_or(0, parts_of);
        let mut after = 0;
        match value {
            Some(octets) if octets.len() > format::PART => {
                for part in octets.chunks(format::PART) {
                    self.change(changes, format::part_key(&key, after), Some(part.to_vec()))?;
                    after += 1;
                }
                let length = octets.len() as u64;
                let new = Some(Value::Parts { parts: after, length }.encode());
                changes.insert(key.clone(), Change { old, new });
            }
            _ => {
                let new = value.map(|octets| Value::Whole(octets).encode());
                changes.insert(key.clone(), Change { old, new });
            }
        }
        for number in after..before {
            self.change(changes, format::part_key(&key, number), None)?;
        }
        Ok(())
    }

    /// Adds what the tallies make of the counts that are there to `changes`.
    pub(super) fn change_counts(
        &self,
        remembered: &HashSet<(Day, Digest)>,
        changes: &mut Changes,
        add: &[(Tally, u64)],
    ) -> Result<New, StoreError> {
        let mut policies: HashMap<(*const Policy, *const str), (Day, PolicyRef)> = HashMap::new();
        let mut sums: BTreeMap<Vec<u8>, Sum> = BTreeMap::new();
        let mut new = New::new();
        for (tally, count) in add {
            // Pointers are only compared: the batch keeps what they point to where it is.
            let known = (Arc::as_ptr(&tally.policy), Arc::as_ptr(&tally.domain));
            let policy = match policies.get(&known) {
                Some((day, policy)) if *day == tally.day => *policy,
                _ => {
                    let (policy, text) = format::policy_ref(&tally.policy, &tally.domain);
                    if let (PolicyRef::Digest(digest), Some(text)) = (policy, text)
                        && !remembered.contains(&(tally.day, digest))
                        && new.insert((tally.day, digest))
                    {
                        self.keep_policy(changes, tally.day, &digest, &text)?;
                    }
                    policies.insert(known, (tally.day, policy));
                    policy
                }
            };
            let mut key = CountKey { day: tally.day, domain: tally.domain.to_string(), policy, failure: None };
            if let Counted::Detail(failure) = &tally.counted {
                let text = format::failure_text(failure);
                key.failure = Some(format::digest(&text));
                let sum = sums.entry(key.encode()).or_insert(Sum::Detail(0, text));
                if let Sum::Detail(n, _) = sum {
                    *n = n.saturating_add(*count);
                }
            } else if let Sum::Totals(successful, failed) = sums.entry(key.encode()).or_insert(Sum::Totals(0, 0)) {
                let n = if tally.counted == Counted::Success { successful } else { failed };
                *n = n.saturating_add(*count);
            }
        }
        for (key, sum) in sums {
            let old = self.value(&key)?;
            let value = sum.onto(old.as_deref()).map_err(|e| self.corrupt(&e))?;
            changes.insert(key, Change { old, new: Some(value) });
        }
        Ok(new)
    }

    /// Sees to it that a policy's text is there, and is the one that its digest stands for.
    fn keep_policy(&self, changes: &mut Changes, day: Day, digest: &Digest, text: &[u8]) -> Result<(), StoreError> {
        let key = format::policy_key(day, digest);
        match self.value(&key)? {
            Some(value) if self.assemble(&key, &value)? == text => Ok(()),
            Some(_) => Err(self.corrupt(&Malformed("a policy's text is not the one of its digest".to_owned()))),
            None => self.change_record(changes, key, Some(text)),
        }
    }
}
