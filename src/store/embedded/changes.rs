//! What a batch changes in the embedded store, before it is committed.
//!
//! Takes: records to set or remove, counts to add, and what stands. Gives: the changes by key, each with what stood before.
//! When it fails: a key over the limit, or what stands cannot be read; nothing is written here.
//! Not here: committing (`embedded`), the bytes of keys and values (`format`).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::SledFiles;
use crate::base::tlsrpt::{Day, Policy, TallyKey, TallyResult};
use crate::store::format::{self, CountKey, Digest, MalformedRecord, PolicyRef, SessionTotals, StoredValue};
use crate::store::{BatchItem, StoreError};

/// The changes of a batch, by key.
pub(super) type KeyChanges = BTreeMap<Vec<u8>, KeyChange>;

/// The old and the new value of a key; `None` where there is none.
pub(super) struct KeyChange {
    pub(crate) old: Option<sled::IVec>,
    pub(crate) new: Option<Vec<u8>>,
}

/// Policy texts that a batch stores for the first time.
pub(super) type NewPolicies = HashSet<(Day, Digest)>;

/// What a batch adds to the count under one key.
enum CountSum {
    Totals(SessionTotals),
    Detail(u64, Vec<u8>),
}

impl CountSum {
    /// The new value: the sum added to the stored value.
    fn add_to(self, old: Option<&[u8]>) -> Result<Vec<u8>, MalformedRecord> {
        match self {
            CountSum::Totals(totals) => {
                Ok(old.map(SessionTotals::decode).transpose()?.unwrap_or_default().add(totals).encode())
            }
            CountSum::Detail(count, text) => match old.map(format::decode_detail).transpose()? {
                Some((_, stored)) if stored != text => {
                    Err(MalformedRecord("a failure's text is not the one of its digest".to_owned()))
                }
                Some((n, _)) => Ok(format::encode_detail(n.saturating_add(count), &text)),
                None => Ok(format::encode_detail(count, &text)),
            },
        }
    }
}

impl SledFiles {
    pub(super) fn add_change(
        &self,
        changes: &mut KeyChanges,
        key: Vec<u8>,
        new: Option<Vec<u8>>,
    ) -> Result<(), StoreError> {
        let old = self.get(&key)?;
        changes.insert(key, KeyChange { old, new });
        Ok(())
    }

    /// Adds the setting or the removal of a record to `changes`.
    pub(super) fn add_record_change(
        &self,
        changes: &mut KeyChanges,
        key: Vec<u8>,
        value: Option<&[u8]>,
    ) -> Result<(), StoreError> {
        let parts_of = |value: &[u8]| match StoredValue::decode(value) {
            Ok(StoredValue::Parts { parts, .. }) => parts,
            _ => 0,
        };
        let old = self.get(&key)?;
        let before = old.as_deref().map_or(0, parts_of);
        let mut after = 0;
        match value {
            Some(bytes) if bytes.len() > format::MAX_PART => {
                for part in bytes.chunks(format::MAX_PART) {
                    self.add_change(changes, format::part_key(&key, after), Some(part.to_vec()))?;
                    after += 1;
                }
                let length = bytes.len() as u64;
                let new = Some(StoredValue::Parts { parts: after, length }.encode());
                changes.insert(key.clone(), KeyChange { old, new });
            }
            _ => {
                let new = value.map(|bytes| StoredValue::Whole(bytes).encode());
                changes.insert(key.clone(), KeyChange { old, new });
            }
        }
        for number in after..before {
            self.add_change(changes, format::part_key(&key, number), None)?;
        }
        Ok(())
    }

    /// Refuses an item of a batch whose key is too long.
    pub(super) fn check_key(&self, key: &[u8], item: BatchItem) -> Result<(), StoreError> {
        let (length, limit, folder) = (key.len(), format::MAX_KEY, self.folder.display());
        if length <= limit {
            return Ok(());
        }
        let problem = format!("store: {folder}: a key of {length} bytes: over the limit of {limit}");
        Err(StoreError::Refused { item, problem })
    }

    /// Adds the tallies to the stored counts, as `changes`.
    pub(super) fn add_count_changes(
        &self,
        known_policies: &HashSet<(Day, Digest)>,
        changes: &mut KeyChanges,
        add: &[(TallyKey, u64)],
    ) -> Result<NewPolicies, StoreError> {
        let mut policies: HashMap<(*const Policy, *const str), (Day, PolicyRef)> = HashMap::new();
        let mut sums: BTreeMap<Vec<u8>, CountSum> = BTreeMap::new();
        let mut new = NewPolicies::new();
        for (index, (tally, count)) in add.iter().enumerate() {
            let item = BatchItem::Count(index);
            // Pointers are only compared: the batch keeps what they point to where it is.
            let known = (Arc::as_ptr(&tally.policy), Arc::as_ptr(&tally.domain));
            let policy = match policies.get(&known) {
                Some((day, policy)) if *day == tally.day => *policy,
                _ => {
                    let (policy, text) = format::policy_ref(&tally.policy, &tally.domain);
                    if let (PolicyRef::Digest(digest), Some(text)) = (policy, text)
                        && !known_policies.contains(&(tally.day, digest))
                        && new.insert((tally.day, digest))
                    {
                        self.add_policy(changes, tally.day, &digest, &text)?;
                    }
                    policies.insert(known, (tally.day, policy));
                    policy
                }
            };
            let mut key = CountKey { day: tally.day, domain: tally.domain.to_string(), policy, failure: None };
            if let TallyResult::Detail(failure) = &tally.result {
                let text = format::encode_failure(failure);
                key.failure = Some(format::digest(&text));
                let key = key.encode();
                self.check_key(&key, item)?;
                let sum = sums.entry(key).or_insert(CountSum::Detail(0, text));
                if let CountSum::Detail(n, _) = sum {
                    *n = n.saturating_add(*count);
                }
                continue;
            }
            let key = key.encode();
            self.check_key(&key, item)?;
            if let CountSum::Totals(totals) = sums.entry(key).or_insert(CountSum::Totals(SessionTotals::default())) {
                *totals = totals.add(match tally.result {
                    TallyResult::Success => SessionTotals { successful: *count, ..SessionTotals::default() },
                    TallyResult::NullSender => SessionTotals { null_sender: *count, ..SessionTotals::default() },
                    TallyResult::Failure | TallyResult::Detail(_) => {
                        SessionTotals { failed: *count, ..SessionTotals::default() }
                    }
                });
            }
        }
        for (key, sum) in sums {
            let old = self.get(&key)?;
            let value = sum.add_to(old.as_deref()).map_err(|e| self.corrupt_error(&e))?;
            changes.insert(key, KeyChange { old, new: Some(value) });
        }
        Ok(new)
    }

    /// Adds a policy's text, unless it is stored. Checks that the stored text is the one of its digest.
    fn add_policy(&self, changes: &mut KeyChanges, day: Day, digest: &Digest, text: &[u8]) -> Result<(), StoreError> {
        let key = format::policy_key(day, digest);
        match self.get(&key)? {
            Some(value) if self.join_parts(&key, &value)? == text => Ok(()),
            Some(_) => {
                Err(self.corrupt_error(&MalformedRecord("a policy's text is not the one of its digest".to_owned())))
            }
            None => self.add_record_change(changes, key, Some(text)),
        }
    }
}
