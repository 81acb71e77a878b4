//! A bounded table that knows which of its entries have changed since they were last stored.
//!
//! Takes: entries by key, with the time of their last line. Gives: them back, and the changes for a commit.
//! Limits: `limit` entries; when it is full, the sixteenth part that was touched longest ago is evicted.

use foldhash::quality::RandomState;
use hashbrown::HashMap;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// One entry of so many is evicted at once from a full table: to find the oldest costs a pass over all.
const EVICTED_FRACTION: usize = 16;

/// A bounded map that tracks which entries have changed since the last commit.
#[derive(Debug)]
pub(crate) struct TrackedMap<V> {
    limit: usize,
    entries: HashMap<Vec<u8>, TrackedEntry<V>, RandomState>,
    /// Keys of entries that are new or changed; one that has gone since is passed over.
    changed: Vec<Vec<u8>>,
    /// Keys of removed entries that the store still has.
    removed: Vec<Vec<u8>>,
}

#[derive(Debug)]
struct TrackedEntry<V> {
    time: i64,
    value: V,
    /// Its key is among `changed`.
    dirty: bool,
    /// The store has it, as it is or as it was.
    stored: bool,
}

/// One change for the store: a key, and the value to set or `None` to remove it.
pub(crate) type RecordChange = (Vec<u8>, Option<Vec<u8>>);

impl<V: Serialize + DeserializeOwned> TrackedMap<V> {
    /// An empty table.
    pub(crate) fn new(limit: usize) -> TrackedMap<V> {
        TrackedMap { limit, entries: HashMap::default(), changed: Vec::new(), removed: Vec::new() }
    }

    /// Takes back an entry that was stored; one that does not read is left out, and `false` says so.
    pub(crate) fn load(&mut self, key: &[u8], stored: &[u8]) -> bool {
        let Ok((time, value)) = serde_json::from_slice(stored) else { return false };
        self.entries.insert(key.to_vec(), TrackedEntry { time, value, dirty: false, stored: true });
        true
    }

    /// The entry and its time, unchanged.
    pub(crate) fn peek(&self, key: &[u8]) -> Option<(i64, &V)> {
        self.entries.get(key).map(|entry| (entry.time, &entry.value))
    }

    /// Whether there is such an entry.
    pub(crate) fn contains(&self, key: &[u8]) -> bool {
        self.entries.contains_key(key)
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entry to change, made by `new` if there is none, and how many entries were evicted for it.
    pub(crate) fn upsert(&mut self, key: &[u8], time: i64, new: impl FnOnce() -> V) -> (&mut V, u64) {
        let full = self.entries.len() >= self.limit && !self.entries.contains_key(key);
        let evicted = if full { self.evict_oldest() } else { 0 };
        let new = || TrackedEntry { time, value: new(), dirty: false, stored: false };
        let entry = self.entries.entry_ref(key).or_insert_with(new);
        entry.time = time;
        if !entry.dirty {
            entry.dirty = true;
            self.changed.push(key.to_vec());
        }
        (&mut entry.value, evicted)
    }

    /// Sets the time of an entry, if there is one, and returns its value; the store keeps its old time.
    pub(crate) fn touch(&mut self, key: &[u8], time: i64) -> Option<&V> {
        let entry = self.entries.get_mut(key)?;
        entry.time = time;
        Some(&entry.value)
    }

    /// Takes an entry out.
    pub(crate) fn remove(&mut self, key: &[u8]) -> Option<V> {
        let (key, entry) = self.entries.remove_entry(key)?;
        if entry.stored {
            self.removed.push(key);
        }
        Some(entry.value)
    }

    /// All keys, in no order.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &Vec<u8>> {
        self.entries.keys()
    }

    /// Removes the entries whose key matches.
    pub(crate) fn remove_matching(&mut self, like: impl Fn(&[u8]) -> bool) {
        for (key, entry) in self.entries.extract_if(|key, _| like(key)) {
            if entry.stored {
                self.removed.push(key);
            }
        }
    }

    /// Takes out the entries that were last touched before `time`.
    pub(crate) fn remove_before(&mut self, time: i64) -> Vec<V> {
        let mut out = Vec::new();
        for (key, entry) in self.entries.extract_if(|_, entry| entry.time < time) {
            if entry.stored {
                self.removed.push(key);
            }
            out.push(entry.value);
        }
        out
    }

    /// Takes the changes since the last call.
    pub(crate) fn take_changes(&mut self) -> Vec<RecordChange> {
        let mut changes = Vec::new();
        for key in self.removed.drain(..) {
            if !self.entries.contains_key(&key) {
                changes.push((key, None));
            }
        }
        for key in self.changed.drain(..) {
            let Some(entry) = self.entries.get_mut(&key).filter(|entry| entry.dirty) else { continue };
            entry.dirty = false;
            entry.stored = true;
            let value = serde_json::to_vec(&(entry.time, &entry.value)).expect("plain structures always serialise");
            changes.push((key, Some(value)));
        }
        changes
    }

    fn evict_oldest(&mut self) -> u64 {
        let mut times: Vec<i64> = self.entries.values().map(|entry| entry.time).collect();
        let part = (times.len() / EVICTED_FRACTION).max(1);
        let (_, last, _) = times.select_nth_unstable(part - 1);
        let last = *last;
        let older = self.remove_before(last).len();
        // Of those touched in the same second as the last one, as many as are still to go.
        let same: Vec<Vec<u8>> = self
            .entries
            .iter()
            .filter(|(_, e)| e.time == last)
            .take(part - older)
            .map(|(key, _)| key.clone())
            .collect();
        same.iter().for_each(|key| drop(self.remove(key)));
        part as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_gives_way_and_changes_are_told_once() {
        let mut table: TrackedMap<u32> = TrackedMap::new(2);
        *table.upsert(b"a", 1, || 0).0 += 1;
        *table.upsert(b"b", 2, || 0).0 += 1;
        *table.upsert(b"a", 3, || 0).0 += 1;
        let (_, evicted) = table.upsert(b"c", 4, || 9);
        assert_eq!(evicted, 1);
        assert!(!table.contains(b"b"));
        assert_eq!(table.peek(b"a"), Some((3, &2)));
        let mut told = table.take_changes();
        told.sort();
        assert_eq!(told, [(b"a".to_vec(), Some(b"[3,2]".to_vec())), (b"c".to_vec(), Some(b"[4,9]".to_vec()))]);
        assert_eq!(table.take_changes(), []);
        assert_eq!(table.remove_before(4), [2]);
        assert_eq!(table.take_changes(), [(b"a".to_vec(), None)]);
    }

    #[test]
    fn an_entry_that_comes_and_goes_between_commits_is_never_told_unless_the_store_has_it() {
        let mut table: TrackedMap<u32> = TrackedMap::new(9);
        table.upsert(b"a", 1, || 1);
        table.remove(b"a");
        assert_eq!(table.take_changes(), []);
        table.upsert(b"a", 1, || 2);
        assert_eq!(table.take_changes().len(), 1);
        table.remove(b"a");
        table.upsert(b"a", 2, || 3);
        assert_eq!(table.take_changes(), [(b"a".to_vec(), Some(b"[2,3]".to_vec()))]);
        table.remove(b"a");
        table.upsert(b"a", 3, || 4);
        table.remove(b"a");
        assert_eq!(table.take_changes(), [(b"a".to_vec(), None)]);
    }

    #[test]
    fn a_sixteenth_gives_way_at_once() {
        let mut table: TrackedMap<u32> = TrackedMap::new(32);
        for n in 0..32 {
            table.upsert(&[n], i64::from(n / 4), || 0);
        }
        assert_eq!(table.upsert(b"new", 99, || 0).1, 2);
        assert_eq!(table.entries.values().filter(|e| e.time == 0).count(), 2);
        assert!(table.contains(b"new") && table.entries.len() == 31);
    }

    #[test]
    fn what_was_stored_comes_back() {
        let mut table: TrackedMap<String> = TrackedMap::new(2);
        table.upsert(b"k", 7, || "v".into());
        let (key, value) = table.take_changes().remove(0);
        let mut again: TrackedMap<String> = TrackedMap::new(2);
        assert!(again.load(&key, &value.unwrap()));
        assert!(!again.load(b"x", b"{"));
        assert_eq!(again.peek(b"k"), Some((7, &"v".to_owned())));
        assert_eq!(again.take_changes(), []);
    }
}
