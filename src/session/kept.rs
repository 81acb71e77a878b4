//! A bounded table that knows which of its entries have changed since they were last stored.
//!
//! Takes: entries by key, with the time of their last line. Gives: them back, and the changes for a commit.
//! Limits: `limit` entries; the one that was touched longest ago gives way to a new one.

use std::collections::{BTreeSet, HashMap, HashSet};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// See the head of this file.
#[derive(Debug)]
pub struct Kept<V> {
    limit: usize,
    entries: HashMap<Box<[u8]>, (i64, V)>,
    by_age: BTreeSet<(i64, Box<[u8]>)>,
    dirty: HashSet<Box<[u8]>>,
    stored: HashSet<Box<[u8]>>,
}

/// One change for the store: a key, and the value to set or `None` to remove it.
pub type Change = (Vec<u8>, Option<Vec<u8>>);

impl<V: Serialize + DeserializeOwned> Kept<V> {
    /// An empty table.
    pub fn new(limit: usize) -> Kept<V> {
        Kept { limit, entries: HashMap::new(), by_age: BTreeSet::new(), dirty: HashSet::new(), stored: HashSet::new() }
    }

    /// Takes back an entry that was stored; one that does not read is left out, and `false` says so.
    pub fn load(&mut self, key: &[u8], stored: &[u8]) -> bool {
        let Ok((time, value)) = serde_json::from_slice::<(i64, V)>(stored) else { return false };
        self.by_age.insert((time, key.into()));
        self.entries.insert(key.into(), (time, value));
        self.stored.insert(key.into());
        true
    }

    /// The entry, unchanged.
    pub fn peek(&self, key: &[u8]) -> Option<(i64, &V)> {
        self.entries.get(key).map(|(time, value)| (*time, value))
    }

    /// Whether there is such an entry.
    pub fn contains(&self, key: &[u8]) -> bool {
        self.entries.contains_key(key)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entry to change, made by `new` if there is none; `true` if another had to give way.
    pub fn change(&mut self, key: &[u8], time: i64, new: impl FnOnce() -> V) -> (&mut V, bool) {
        let mut crowded = false;
        match self.entries.get_mut(key) {
            Some((then, _)) => {
                if *then != time {
                    self.by_age.remove(&(*then, Box::from(key)));
                    self.by_age.insert((time, key.into()));
                    *then = time;
                }
            }
            None => {
                if self.entries.len() >= self.limit {
                    crowded = self.give_way();
                }
                self.by_age.insert((time, key.into()));
                self.entries.insert(key.into(), (time, new()));
            }
        }
        if !self.dirty.contains(key) {
            self.dirty.insert(key.into());
        }
        let (_, value) = self.entries.get_mut(key).expect("the entry was found or made above");
        (value, crowded)
    }

    /// Takes an entry out.
    pub fn remove(&mut self, key: &[u8]) -> Option<V> {
        let (time, value) = self.entries.remove(key)?;
        self.by_age.remove(&(time, Box::from(key)));
        if !self.dirty.contains(key) {
            self.dirty.insert(key.into());
        }
        Some(value)
    }

    /// Takes out the entries that were last touched before `time`.
    pub fn remove_before(&mut self, time: i64) -> Vec<V> {
        let mut gone = Vec::new();
        while let Some((oldest, key)) = self.by_age.first() {
            if *oldest >= time {
                break;
            }
            let key = key.clone();
            gone.extend(self.remove(&key));
        }
        gone
    }

    /// What has changed since the last call.
    pub fn changes(&mut self) -> Vec<Change> {
        let mut changes = Vec::with_capacity(self.dirty.len());
        for key in self.dirty.drain() {
            match self.entries.get(&key) {
                Some(entry) => {
                    let value = serde_json::to_vec(entry).expect("plain structures always serialise");
                    changes.push((key.to_vec(), Some(value)));
                    self.stored.insert(key);
                }
                None if self.stored.remove(&key) => changes.push((key.to_vec(), None)),
                None => {}
            }
        }
        changes
    }

    fn give_way(&mut self) -> bool {
        match self.by_age.first().map(|(_, key)| key.clone()) {
            Some(oldest) => self.remove(&oldest).is_some(),
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_gives_way_and_changes_are_told_once() {
        let mut table: Kept<u32> = Kept::new(2);
        *table.change(b"a", 1, || 0).0 += 1;
        *table.change(b"b", 2, || 0).0 += 1;
        *table.change(b"a", 3, || 0).0 += 1;
        let (_, crowded) = table.change(b"c", 4, || 9);
        assert!(crowded);
        assert!(!table.contains(b"b"));
        assert_eq!(table.peek(b"a"), Some((3, &2)));
        let mut told = table.changes();
        told.sort();
        assert_eq!(told, [(b"a".to_vec(), Some(b"[3,2]".to_vec())), (b"c".to_vec(), Some(b"[4,9]".to_vec()))]);
        assert_eq!(table.changes(), []);
        assert_eq!(table.remove_before(4), [2]);
        assert_eq!(table.changes(), [(b"a".to_vec(), None)]);
    }

    #[test]
    fn what_was_stored_comes_back() {
        let mut table: Kept<String> = Kept::new(2);
        table.change(b"k", 7, || "v".into());
        let (key, value) = table.changes().remove(0);
        let mut again: Kept<String> = Kept::new(2);
        assert!(again.load(&key, &value.unwrap()));
        assert!(!again.load(b"x", b"{"));
        assert_eq!(again.peek(b"k"), Some((7, &"v".to_owned())));
        assert_eq!(again.changes(), []);
    }
}
