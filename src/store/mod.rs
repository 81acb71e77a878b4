//! What outlives the process: counts, positions, cached policies, decisions, and what was sent.
//!
//! Takes: a [`Batch`]: counts to add, records to set or remove. Gives: the same back, after any crash.
//! A batch is written whole or not at all, and is durable when [`Store::write`] returns.
//! When it fails: a [`StoreError`] that says whose fault it is; nothing of the batch was kept, or, where the disk cannot
//! be asked, that is not known until it can: then the same batch, written again, is counted once.
//! Not here: how a store keeps it (`store/embedded.rs`), what the bytes mean (`store/format.rs`).

pub mod embedded;
pub mod format;
pub(crate) mod group_commit;
pub(crate) mod message_id_key;

use std::path::Path;

use crate::base::tlsrpt::{Day, TallyKey, TallyRow};

/// A table of the store: one kind of record, with keys of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    /// How far an input has been counted, by input name.
    Position,
    /// The open state that belongs to the position of the same name: sessions under way, own reports, the year.
    OpenState,
    /// Cached MTA-STS policies, by domain.
    Sts,
    /// DANE verdicts, by next hop.
    Dane,
    /// The history of decisions, by next-hop key and time.
    Decision,
    /// Reports: planned, attempted, sent, by day, domain and destination.
    Delivery,
    /// An index over [`Table::Delivery`]: the records that are not done, by time.
    Due,
    /// The content of a report, frozen when its recipients were looked up, by day and domain.
    Snapshot,
    /// Values that exist once, by name.
    NamedValue,
}

/// What is written together.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Counts to add.
    pub add: Vec<(TallyKey, u64)>,
    /// Records to set (`Some`) or remove (`None`), in order.
    pub set: Vec<(Table, Vec<u8>, Option<Vec<u8>>)>,
}

/// An item of a [`Batch`], by its index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchItem {
    /// In [`Batch::add`].
    Count(usize),
    /// In [`Batch::set`].
    Record(usize),
}

/// The most records in a batch whose records need not be written together: the embedded store holds a batch in memory.
pub const MAX_BATCH_RECORDS: usize = 500;

/// A record as a scan returns it: its key and its value.
pub(crate) type StoredRecord = (Vec<u8>, Vec<u8>);

/// The store. Calls block for as long as the disk does; call them off the answering path.
pub trait Store: Send + Sync + 'static {
    /// Writes a batch: atomic, and durable on return. After an error, one that adds counts is written again as it is,
    /// before any other that adds counts: it is applied exactly once, even if it was on disk already.
    fn write(&self, batch: Batch) -> Result<(), StoreError>;
    /// One record.
    fn read(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;
    /// All records of a table whose keys begin with `prefix`, in key order.
    fn scan(&self, table: Table, prefix: &[u8]) -> Result<Vec<StoredRecord>, StoreError>;
    /// At most `limit` records of a table whose keys begin with `prefix` and are not below `from`, in key order.
    fn scan_page(
        &self,
        table: Table,
        prefix: &[u8],
        from: &[u8],
        limit: usize,
    ) -> Result<Vec<StoredRecord>, StoreError>;
    /// Hands all records of a table whose keys begin with `prefix` to `each`, in key order: key, value. Nothing is
    /// copied for it; `each` must not come back to the store.
    fn visit(&self, table: Table, prefix: &[u8], each: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), StoreError>;
    /// The days that have counts, oldest first.
    fn days(&self) -> Result<Vec<Day>, StoreError>;
    /// The recipient domains that have counts on a day, sorted.
    fn domains(&self, day: Day) -> Result<Vec<String>, StoreError>;
    /// At most `limit` recipient domains that have counts on a day, sorted, from the first one after `after`, each with
    /// the sum of all its counts, details included: two sums of one domain are equal when nothing was counted in between.
    fn domain_sums(&self, day: Day, after: Option<&str>, limit: usize) -> Result<Vec<(String, u64)>, StoreError>;
    /// The counts of a day and recipient domain, sorted by policy.
    fn rows(&self, day: Day, domain: &str) -> Result<Vec<TallyRow>, StoreError>;
    /// Forgets the counts of all days before `day`; returns how many records went.
    fn drop_days_before(&self, day: Day) -> Result<u64, StoreError>;
    /// Copies all of it, as it stands at one commit, into a folder that does not exist; put in place it is a store.
    fn copy(&self, to: &Path) -> Result<(), StoreError>;
    /// Octets on disk.
    fn size(&self) -> Result<u64, StoreError>;
}

/// Why the store did not do what was asked, by whose fault it is.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The administrator's: the folder, its permissions.
    #[error("{0}")]
    Unusable(String),
    /// Another process has it open.
    #[error("{0}")]
    Locked(String),
    /// The disk's: full, failing.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// What was read is not what was written.
    #[error("{0}")]
    Corrupt(String),
    /// The writer's: one item of the batch cannot be stored, whatever the disk does. Nothing of the batch was written;
    /// without that item it can be.
    #[error("{problem}; its batch is not written")]
    Refused {
        /// The item.
        item: BatchItem,
        /// What is wrong with it.
        problem: String,
    },
}
