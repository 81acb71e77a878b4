//! The secret that marks our own Message-IDs, as the store keeps it.
//!
//! Takes: the store. Gives: the [`MessageIdKey`], made at the first start and the same ever after.
//! When it fails: the store's own errors, and `Corrupt` for a secret of another length.
//! Not here: what the secret is for (`base::own_reports`).

use crate::base::own_reports::{KEY_LENGTH, MessageIdKey, random_bytes};
use crate::store::{Batch, Store, StoreError, Table};

/// The key of the record, in [`Table::NamedValue`].
const KEY: &[u8] = b"own-message-id-secret";

/// Reads the secret from the store, or makes one and stores it.
///
/// # Errors
/// Those of the store; [`StoreError::Corrupt`] where the stored secret has another length.
pub(crate) fn load_or_create(store: &dyn Store) -> Result<MessageIdKey, StoreError> {
    match store.read(Table::NamedValue, KEY)? {
        Some(bytes) if bytes.len() == KEY_LENGTH => Ok(MessageIdKey::from_bytes(&bytes)),
        Some(bytes) => Err(StoreError::Corrupt(format!("the Message-ID secret has {} bytes", bytes.len()))),
        None => {
            let bytes = random_bytes::<KEY_LENGTH>()?;
            store
                .write(Batch { add: Vec::new(), set: vec![(Table::NamedValue, KEY.to_vec(), Some(bytes.to_vec()))] })?;
            Ok(MessageIdKey::from_bytes(&bytes))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::Clock;
    use crate::store::embedded::EmbeddedStore;

    #[test]
    fn the_secret_is_made_once_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let open = || EmbeddedStore::open(folder.path(), Clock::default()).unwrap().store;
        let id = load_or_create(&open()).unwrap().message_id("u", "example.com");
        let store = open();
        assert!(load_or_create(&store).unwrap().is_ours(id.as_bytes()), "after a restart");
        store.write(Batch { add: vec![], set: vec![(Table::NamedValue, KEY.to_vec(), Some(vec![1]))] }).unwrap();
        assert!(matches!(load_or_create(&store), Err(StoreError::Corrupt(_))));
    }
}
