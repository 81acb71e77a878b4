//! How tasks learn that the daemon ends: a value that turns true, once.

use tokio::sync::watch;

/// Waits until the daemon ends: the value turns true, or its sender is gone.
pub(crate) async fn wait_for_shutdown(shutdown: &mut watch::Receiver<bool>) {
    // The guard of the value must not live over what the caller does next.
    drop(shutdown.wait_for(|stop| *stop).await);
}
