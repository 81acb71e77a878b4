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

use crate::shutdown::stopped;

/// How long accepting waits when there are no descriptors left.
const NO_DESCRIPTORS: Duration = Duration::from_millis(50);

/// How often it is said that there are none.
const SAID: Duration = Duration::from_secs(60);

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
    /// Begins a task for everyone who connects, until `shutdown` turns true; the tasks that are under way then.
    /// `subject` is who speaks in the log.
    pub async fn accept_all<T>(
        &self,
        subject: &str,
        shutdown: &mut watch::Receiver<bool>,
        begin: impl Fn(Stream) -> T,
    ) -> JoinSet<()>
    where
        T: Future<Output = ()> + Send + 'static,
    {
        let mut connections = JoinSet::new();
        let mut said: Option<Instant> = None;
        loop {
            let accepted = tokio::select! {
                accepted = self.accept() => accepted,
                () = stopped(shutdown) => return connections,
            };
            while connections.try_join_next().is_some() {}
            match accepted {
                Ok(stream) => drop(connections.spawn(begin(stream))),
                // The client went away before it was accepted.
                Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(e) => {
                    if said.is_none_or(|at| at.elapsed() >= SAID) {
                        tracing::warn!("{subject}: cannot accept a connection: {e}; it waits until others end");
                        said = Some(Instant::now());
                    }
                    tokio::time::sleep(NO_DESCRIPTORS).await;
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
