//! Where the commands get their answers: from the running daemon; where none runs, from the store itself.
//!
//! The embedded store has one owner, so the store is opened only where nobody listens on the control socket.

use std::os::unix::fs::{MetadataExt, lchown};
use std::path::Path;

use serde::de::DeserializeOwned;

use super::{CONFIG, Fault, IO, SOFTWARE, UNAVAILABLE};
use crate::config::Config;
use crate::daemon::control::{ControlRequest, RequestError, Services, send_request};
use crate::daemon::services::{self, OpenError, StoreError};

impl From<OpenError> for Fault {
    fn from(error: OpenError) -> Fault {
        let status = match error {
            OpenError::NoStore { .. } | OpenError::Store(StoreError::Locked(_)) => UNAVAILABLE,
            OpenError::Store(_) | OpenError::System(_) => IO,
            OpenError::Named(_) => CONFIG,
        };
        Fault::new(status, error.to_string())
    }
}

/// Asks the daemon, or does what it would do.
pub(super) fn answer<T: DeserializeOwned>(
    config: &Config,
    question: &ControlRequest,
    here: impl AsyncFnOnce(&Services) -> Result<T, String>,
) -> Result<T, Fault> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|e| Fault::new(SOFTWARE, format!("runtime: cannot start: {e}; nothing is shown")))?;
    let mut opened_here = false;
    let result = runtime.block_on(async {
        match send_request(&config.control.socket, question).await {
            Ok(answer) => Ok(answer),
            Err(RequestError::Failed(line)) => Err(Fault::new(UNAVAILABLE, line)),
            Err(RequestError::NotRunning) => {
                opened_here = true;
                let desk = services::open_offline(config)?;
                here(&desk).await.map_err(|line| Fault::new(CONFIG, line))
            }
        }
    });
    runtime.shutdown_timeout(std::time::Duration::from_millis(100));
    if opened_here && let Err(error) = give_back(&config.store.path) {
        tracing::debug!("store: owner not set: {error}");
    }
    result
}

/// Gives what root has made in the store to the store's owner: the daemon must be able to open it.
fn give_back(folder: &Path) -> std::io::Result<()> {
    let owner = std::fs::metadata(folder)?;
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let found = entry.metadata()?;
            if found.uid() != owner.uid() {
                // Never through a link: the folder is not root's.
                lchown(entry.path(), Some(owner.uid()), Some(owner.gid()))?;
            }
            if found.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    Ok(())
}
