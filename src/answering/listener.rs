//! The sockets that an MTA asks on: unix-domain or TCP, and accepting on them.
//!
//! Takes: a [`Listener`], and what is done with a connection. Gives: a task for each client, and those that still run
//! when the daemon ends. Who a client is, is its user on a unix-domain socket and its address over TCP.
//! Limits: as many connections as there is room for (`connections`), which those that wait longest for their client make.
//! When it fails: no room, or no more descriptors: it waits until connections end, and logs so once a minute.
//! Not here: binding (`daemon`), what is said on a connection (`socketmap`, `readsocket`).

use std::io;
use std::time::Duration;

use rustix::net::sockopt::set_socket_send_buffer_size;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::answering::connections::{ClientConnection, ClientConnections};
use crate::base::requester::Requester;
use crate::base::shutdown::wait_for_shutdown;
use crate::metrics::Metrics;

/// How long accepting waits when there are no descriptors left.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// The socket buffer for what a client has not read yet, in bytes. The kernel takes twice as much: some hundred answers.
const SEND_BUFFER: usize = 8 * 1024;

/// How often it is logged that there are none.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// How often a listener reports that it goes on.
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
        clients: &ClientConnections,
        shutdown: &mut watch::Receiver<bool>,
        begin: impl Fn(Stream, ClientConnection) -> T,
    ) -> JoinSet<()>
    where
        T: Future<Output = ()> + Send + 'static,
    {
        let mut connections = JoinSet::new();
        let mut logged: Option<Instant> = None;
        let name = self.name(subject);
        let mut heartbeat = tokio::time::interval(HEARTBEAT_INTERVAL);
        loop {
            let accepted = tokio::select! {
                // Before the others, for there may be no end of connections.
                biased;
                _ = heartbeat.tick() => {
                    metrics.heartbeat(&name);
                    clients.close_idle();
                    continue;
                }
                () = wait_for_shutdown(shutdown) => return connections,
                accepted = self.accept_in_room(clients) => accepted,
            };
            while connections.try_join_next().is_some() {}
            match accepted {
                Ok((stream, requester)) => {
                    let Some(client) = clients.open(requester) else { continue };
                    let id = client.id();
                    let task = connections.spawn(begin(stream, client));
                    clients.served_by(id, task);
                }
                // The client went away before it was accepted.
                Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(e) => {
                    if logged.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
                        tracing::warn!("{subject}: cannot accept a connection: {e}; it waits until others end");
                        logged = Some(Instant::now());
                    }
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }

    async fn accept_in_room(&self, clients: &ClientConnections) -> io::Result<(Stream, Requester)> {
        if !clients.make_room() {
            let limit = clients.limit();
            return Err(io::Error::other(format!("{limit} are open, and each of them waits for its answer")));
        }
        self.accept().await
    }

    async fn accept(&self) -> io::Result<(Stream, Requester)> {
        match self {
            Listener::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                // What a client does not read is the memory of this process; where it cannot be set that is more.
                let _ = set_socket_send_buffer_size(&stream, SEND_BUFFER);
                // Those whose user is not known, if there are any, are one requester.
                let user = stream.peer_cred().map_or(u32::MAX, |peer| peer.uid());
                Ok((Stream::Unix(stream), Requester::User(user)))
            }
            Listener::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                // Replies are small and waited for. Where it cannot be set they are only slower.
                let _ = stream.set_nodelay(true);
                let _ = set_socket_send_buffer_size(&stream, SEND_BUFFER);
                Ok((Stream::Tcp(stream), Requester::at(peer.ip())))
            }
        }
    }
}
