//! Opens parts of the daemon, and tries again those that failed, while everything else runs.
//!
//! Takes: the name of a part and how it is opened. Gives: what was opened, and an updated state in the list of parts.
//! Limits: one try for each part in [`RETRY_INTERVAL`].
//! When it fails: the part is off, with the reason, until a later try succeeds.
//! Not here: the list (`base/parts.rs`), what each part does.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::listeners::{BoundSocket, SocketAccess, SocketError, Sockets};
use crate::answering::listener::Listener;
use crate::base::clock::Clock;
use crate::base::parts::Parts;
use crate::base::shutdown::wait_for_shutdown;
use crate::config::{Config, ListenAddress};
use crate::metrics::Metrics;

/// How often a part that is off is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(60);

/// Opens parts, and tells the list of parts how that went.
#[derive(Clone)]
pub(crate) struct PartOpener {
    pub(crate) parts: Parts,
    clock: Clock,
    interval: Duration,
}

impl PartOpener {
    pub(crate) fn new(parts: Parts, clock: Clock, config: &Config) -> PartOpener {
        let interval = config.closed_network.retry.as_ref().map_or(RETRY_INTERVAL, |retry| retry.0);
        PartOpener { parts, clock, interval }
    }

    /// Tries once.
    pub(crate) fn try_open<T>(&self, part: &str, open: impl FnOnce() -> Result<T, String>) -> Option<T> {
        self.note(part, open())
    }

    /// Tries at each interval until it succeeds; nothing at shutdown. A try may block.
    pub(crate) async fn open_later<T: Send + 'static>(
        &self,
        part: &str,
        open: impl Fn() -> Result<T, String> + Clone + Send + 'static,
        shutdown: &mut watch::Receiver<bool>,
    ) -> Option<T> {
        loop {
            tokio::select! {
                () = tokio::time::sleep(self.interval) => {}
                () = wait_for_shutdown(shutdown) => return None,
            }
            let opened = tokio::task::spawn_blocking(open.clone()).await.unwrap_or_else(|e| Err(e.to_string()));
            if let Some(opened) = self.note(part, opened) {
                return Some(opened);
            }
        }
    }

    /// How often a part that is off is tried again.
    pub(crate) fn interval(&self) -> Duration {
        self.interval
    }

    /// Notes that a part runs.
    pub(crate) fn turn_on(&self, part: &str) {
        self.parts.turn_on(part);
    }

    /// Turns off a part that its own task tries again.
    pub(crate) fn turn_off(&self, part: &str, reason: &str) {
        self.parts.turn_off(self.clock, part, reason, None);
    }

    fn note<T>(&self, part: &str, opened: Result<T, String>) -> Option<T> {
        match opened {
            Ok(opened) => {
                self.parts.turn_on(part);
                Some(opened)
            }
            Err(reason) => {
                self.parts.turn_off(self.clock, part, &reason, Some(self.interval));
                None
            }
        }
    }
}

/// A socket that is listened on, open or yet to be opened.
pub(crate) struct ListeningPart {
    /// The name of the part: who listens, and where.
    pub(crate) name: String,
    pub(crate) address: ListenAddress,
    access: SocketAccess,
    listener: Option<Listener>,
}

impl ListeningPart {
    /// Tries to listen on each of the addresses. `subject` is who listens.
    pub(crate) fn open_each(
        subject: &str,
        addresses: &[ListenAddress],
        sockets: &Mutex<Sockets>,
        opener: &PartOpener,
    ) -> Vec<ListeningPart> {
        let open = |address: &ListenAddress| {
            let name = format!("{subject} {address}");
            ListeningPart::open(name, address.clone(), SocketAccess::Everybody, sockets, opener)
        };
        addresses.iter().map(open).collect()
    }

    /// Tries to listen on an address. `name` is who listens, and where.
    pub(crate) fn open(
        name: String,
        address: ListenAddress,
        access: SocketAccess,
        sockets: &Mutex<Sockets>,
        opener: &PartOpener,
    ) -> ListeningPart {
        let listener = opener.try_open(&name, || listen(sockets, &address, &access).map_err(|e| e.problem()));
        ListeningPart { name, address, access, listener }
    }

    /// Whether it is listened on already.
    pub(crate) fn is_open(&self) -> bool {
        self.listener.is_some()
    }
}

/// What a task needs to listen on a socket that could not be opened at start.
#[derive(Clone)]
pub(crate) struct Listening {
    pub(crate) sockets: Arc<Mutex<Sockets>>,
    pub(crate) opener: PartOpener,
    pub(crate) metrics: Metrics,
    pub(crate) shutdown: watch::Receiver<bool>,
}

impl Listening {
    /// Waits until the socket is open, and serves it until shutdown. The watchdog expects a heartbeat within `limit`.
    pub(crate) async fn run<T: Future<Output = ()>>(
        mut self,
        part: ListeningPart,
        limit: Option<Duration>,
        serve: impl FnOnce(Listener) -> T,
    ) -> Result<(), String> {
        let ListeningPart { name, address, access, listener } = part;
        let listener = match listener {
            Some(listener) => listener,
            None => {
                let open = move || listen(&self.sockets, &address, &access).map_err(|e| e.problem());
                let Some(listener) = self.opener.open_later(&name, open, &mut self.shutdown).await else {
                    return Ok(());
                };
                limit.into_iter().for_each(|limit| self.metrics.expect_heartbeat(&name, limit));
                listener
            }
        };
        serve(listener).await;
        Ok(())
    }
}

fn listen(sockets: &Mutex<Sockets>, address: &ListenAddress, access: &SocketAccess) -> Result<Listener, SocketError> {
    let socket = sockets.lock().bind_or_share(address, access)?;
    into_listener(socket).map_err(|e| SocketError::new(address, &e))
}

fn into_listener(bound: BoundSocket) -> io::Result<Listener> {
    Ok(match bound {
        BoundSocket::Unix(listener) => Listener::Unix(tokio::net::UnixListener::from_std(listener)?),
        BoundSocket::Inet(listener) => Listener::Tcp(tokio::net::TcpListener::from_std(listener)?),
        BoundSocket::Datagrams(_) => return Err(io::Error::other("it takes datagrams, not connections")),
    })
}
