//! A store in memory, for the tests of this folder: what a batch sets is there at once.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use crate::store::{Batch, Family, Record, Store, StoreError};
use crate::tlsrpt::{Day, Row};

type Records = BTreeMap<(Family, Vec<u8>), Vec<u8>>;

#[derive(Default)]
pub struct MemoryStore(Mutex<Records>);

impl Store for MemoryStore {
    fn write(&self, batch: Batch) -> Result<(), StoreError> {
        let mut records = self.0.lock();
        for (family, key, value) in batch.set {
            match value {
                Some(value) => records.insert((family, key), value),
                None => records.remove(&(family, key)),
            };
        }
        Ok(())
    }

    fn read(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.0.lock().get(&(family, key.to_vec())).cloned())
    }

    fn scan(&self, family: Family, prefix: &[u8]) -> Result<Vec<Record>, StoreError> {
        let records = self.0.lock();
        let ours = records.iter().filter(|((f, key), _)| *f == family && key.starts_with(prefix));
        Ok(ours.map(|((_, key), value)| (key.clone(), value.clone())).collect())
    }

    fn days(&self) -> Result<Vec<Day>, StoreError> {
        Ok(Vec::new())
    }

    fn domains(&self, _: Day) -> Result<Vec<String>, StoreError> {
        Ok(Vec::new())
    }

    fn rows(&self, _: Day, _: &str) -> Result<Vec<Row>, StoreError> {
        Ok(Vec::new())
    }

    fn drop_days_before(&self, _: Day) -> Result<u64, StoreError> {
        Ok(0)
    }

    fn size(&self) -> Result<u64, StoreError> {
        Ok(0)
    }
}
