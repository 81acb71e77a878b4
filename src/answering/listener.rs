//! The sockets that an MTA asks on: unix-domain or TCP, and accepting on them.
//!
//! Takes: a [`Listener`], and what is done with a connection. Gives: a task for each client, and those that still run
//! when the daemon ends.
//! Limits: connections as descriptors last.
//! When it fails: no more descriptors: it waits until connections end, and says so once a minute.
//! Not here: binding (`daemon`), what is said on a connection (`socketmap`, `readsocket`).

use std::io;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::base::shutdown::wait_for_shutdown;
use crate::metrics::Metrics;

/// How long accepting waits when there are no descriptors left.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// How often it is said that there are none.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// How often it is said that accepting goes on.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);

/// A socket that is listened on.
#[derive(Debug)]
pub enum Listener {
    /// A unix-domain socket.
    Unix(UnixListener),
    /// TCP.
    Tcp(TcpListener),
}

/// A connection.
#[derive(Debug)]
pub enum Stream {
    /// Over a unix-domain socket.
    Unix(UnixStream),
    /// Over TCP.
    Tcp(TcpStream),
}

impl Listener {
    /// Its name in the log and for the watchdog: who listens, and where.
    pub fn name(&self, subject: &str) -> String {
        match self {
            Listener::Unix(listener) => {
                let at = listener.local_addr().ok();
                let path = at.as_ref().and_then(|at| at.as_pathname());
                path.map_or_else(|| subject.to_owned(), |path| format!("{subject} unix:{}", path.display()))
            }
            Listener::Tcp(listener) => {
                listener.local_addr().map_or_else(|_| subject.to_owned(), |at| format!("{subject} inet:{at}"))
            }
        }
    }

    /// Begins a task for everyone who connects, until `shutdown` turns true; the tasks that are under way then.
    /// `subject` is who speaks in the log. Tells `metrics` every [`HEARTBEAT_INTERVAL`] that it gets on.
    pub async fn accept_all<T>(
        &self,
        subject: &str,
        metrics: &Metrics,
        shutdown: &mut watch::Receiver<bool>,
        begin: impl Fn(Stream) -> T,
    ) -> JoinSet<()>
    where
        T: Future<Output = ()> + Send + 'static,
    {
        let mut connections = JoinSet::new();
        let mut said: Option<Instant> = None;
        let name = self.name(subject);
        let mut alive = tokio::time::interval(HEARTBEAT_INTERVAL);
        loop {
            let accepted = tokio::select! {
                // Before the others, for there may be no end of connections.
                biased;
                _ = alive.tick() => {
                    metrics.heartbeat(&name);
                    continue;
                }
                () = wait_for_shutdown(shutdown) => return connections,
                accepted = self.accept() => accepted,
            };
            while connections.try_join_next().is_some() {}
            match accepted {
                Ok(stream) => drop(connections.spawn(begin(stream))),
                // The client went away before it was accepted.
                Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(e) => {
                    if said.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
                        tracing::warn!("{subject}: cannot accept a connection: {e}; it waits until others end");
                        said = Some(Instant::now());
                    }
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }

    async fn accept(&self) -> io::Result<Stream> {
        match self {
            Listener::Unix(listener) => listener.accept().await.map(|(stream, _)| Stream::Unix(stream)),
            Listener::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // Replies are small and waited for. Where it cannot be set they are only slower.
                let _ = stream.set_nodelay(true);
                Ok(Stream::Tcp(stream))
            }
        }
    }
}
