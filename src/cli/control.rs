//! Where the commands get their answers: from the running daemon; where none runs, from the store itself.
//!
//! The embedded store has one owner, so the store is opened only where nobody listens on the control socket.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;

use super::foreign_folder;
use super::{CliError, EX_CONFIG, EX_IOERR, EX_SOFTWARE, EX_UNAVAILABLE};
use crate::config::{Config, ControlSection};
use crate::daemon::control::{ControlRequest, Services};
use crate::daemon::control_client::{RequestError, send_request};
use crate::daemon::services::{self, OpenError, StoreError};

/// How long a daemon that has its store may take until its control socket answers.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// The time between two attempts to reach a daemon that starts.
const START_RETRY: Duration = Duration::from_millis(100);

impl From<OpenError> for CliError {
    fn from(error: OpenError) -> CliError {
        let status = match error {
            OpenError::NoStore { .. } | OpenError::Store(StoreError::Locked(_)) => EX_UNAVAILABLE,
            OpenError::Store(_) | OpenError::System(_) => EX_IOERR,
            OpenError::Named(_) => EX_CONFIG,
        };
        CliError::new(status, error.to_string())
    }
}

/// Asks the daemon; where none runs, nobody.
pub(super) fn query_daemon<T: DeserializeOwned>(
    control: &ControlSection,
    request: &ControlRequest,
) -> Result<T, RequestError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime =
        runtime.map_err(|e| RequestError::Failed(format!("runtime: cannot start: {e}; nothing was asked")))?;
    runtime.block_on(send_request(control, request))
}

/// Asks the daemon; where none runs, opens the store and computes the answer here.
pub(super) fn query<T: DeserializeOwned>(
    config: &Config,
    request: &ControlRequest,
    here: impl AsyncFnOnce(&Services) -> Result<T, String>,
) -> Result<T, CliError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime =
        runtime.map_err(|e| CliError::new(EX_SOFTWARE, format!("runtime: cannot start: {e}; nothing is shown")))?;
    let mut opened_here = false;
    let result = runtime.block_on(async {
        let begun = Instant::now();
        loop {
            match send_request(&config.control, request).await {
                Ok(answer) => return Ok(answer),
                Err(RequestError::Failed(line)) => return Err(CliError::new(EX_UNAVAILABLE, line)),
                Err(RequestError::NotRunning) => {}
            }
            match services::open_offline(config) {
                // A daemon that starts has its store before its control socket.
                Err(OpenError::Store(StoreError::Locked(_))) if begun.elapsed() < START_TIMEOUT => {
                    tokio::time::sleep(START_RETRY).await;
                }
                opened => {
                    opened_here = true;
                    return here(&opened?).await.map_err(|line| CliError::new(EX_CONFIG, line));
                }
            }
        }
    });
    runtime.shutdown_timeout(Duration::from_millis(100));
    if opened_here && let Err(error) = restore_owner(&config.store.path) {
        tracing::debug!("store: owner not set: {error}");
    }
    result
}

/// Gives the files that root has created in the store to the store's owner: the daemon must be able to open them.
fn restore_owner(folder: &Path) -> std::io::Result<()> {
    let owner = std::fs::metadata(folder)?;
    foreign_folder::give_to(&foreign_folder::open(folder)?, (owner.uid(), owner.gid()))
}
