//! Connects to a server by the first of its addresses that works (RFC 8305).
//!
//! Takes: addresses in any order. Gives: one TLS connection. The families take turns; the next address is tried when one has
//! failed, or [`ATTEMPT_DELAY`] later; the others are given up when the first handshake is complete.
//! Limits: [`CONNECT_TIMEOUT`] for all of it; [`MAX_ADDRESSES`].
//! When it fails: the most telling error of all attempts.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::net::https::CONNECT_TIMEOUT;
use crate::net::https::error::{HttpsError, classify};
use crate::net::local_fault::is_exhausted;

/// How long after one attempt the next begins (RFC 8305 §5: 250 ms).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// The same while some address has accepted the connection: a handshake takes longer than that over half the world.
const HANDSHAKE_DELAY: Duration = Duration::from_secs(2);

/// How many addresses are tried: a name with more of them is not a policy host that serves anybody.
const MAX_ADDRESSES: usize = 32;

/// Connects; `addresses` are of the host that `name` names.
pub(super) async fn connect(
    addresses: Vec<SocketAddr>,
    tls: &TlsConnector,
    name: &ServerName<'static>,
) -> Result<TlsStream<TcpStream>, HttpsError> {
    race(addresses, CONNECT_TIMEOUT, |address, accepted| attempt(address, tls.clone(), name.clone(), accepted)).await
}

async fn race<T, F>(
    addresses: Vec<SocketAddr>,
    timeout: Duration,
    attempt: impl Fn(SocketAddr, Arc<AtomicUsize>) -> F,
) -> Result<T, HttpsError>
where
    T: Send + 'static,
    F: Future<Output = Result<T, HttpsError>> + Send + 'static,
{
    let mut waiting = alternate_families(addresses).into_iter().take(MAX_ADDRESSES);
    // How many attempts have a TCP connection.
    let accepted = Arc::new(AtomicUsize::new(0));
    let mut attempts = JoinSet::new();
    let mut fault = HttpsError::NoAddress("the name has none".to_owned());
    let deadline = Instant::now() + timeout;
    let mut last_start = Instant::now();
    let mut next_check = last_start;
    loop {
        let idle = attempts.is_empty();
        if idle || Instant::now() >= next_check {
            let stalled = accepted.load(Ordering::Relaxed) == 0 || last_start.elapsed() >= HANDSHAKE_DELAY;
            if idle || stalled {
                match waiting.next() {
                    Some(address) => {
                        attempts.spawn(attempt(address, Arc::clone(&accepted)));
                        last_start = Instant::now();
                    }
                    None if idle => return Err(fault),
                    None => {}
                }
            }
            next_check = Instant::now() + ATTEMPT_DELAY;
        }
        tokio::select! {
            Some(ended) = attempts.join_next() => match ended.unwrap_or_else(|e| Err(classify(&e))) {
                Ok(stream) => return Ok(stream),
                Err(e) => {
                    fault = more_telling(fault, e);
                    // The next address is tried at once.
                    (last_start, next_check) = (last_start - HANDSHAKE_DELAY, Instant::now());
                }
            },
            () = tokio::time::sleep_until(deadline) => {
                return Err(more_telling(fault, HttpsError::Timeout(timeout)));
            }
            () = tokio::time::sleep_until(next_check) => {}
        }
    }
}

/// One attempt: TCP, then TLS.
async fn attempt(
    address: SocketAddr,
    tls: TlsConnector,
    name: ServerName<'static>,
    accepted: Arc<AtomicUsize>,
) -> Result<TlsStream<TcpStream>, HttpsError> {
    let stream = TcpStream::connect(address).await.map_err(|e| match is_exhausted(&e) {
        true => HttpsError::CannotConnect(e.to_string()),
        false => HttpsError::Connection(format!("{}: {e}", address.ip())),
    })?;
    // The request goes out in one piece.
    let _ = stream.set_nodelay(true);
    accepted.fetch_add(1, Ordering::Relaxed);
    let handshake = tls.connect(name, stream).await.map_err(|e| classify(&e));
    if handshake.is_err() {
        accepted.fetch_sub(1, Ordering::Relaxed);
    }
    handshake
}

/// The addresses of both families by turns, each family in its order, the family of the first one first.
fn alternate_families(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|address| address.is_ipv6() == first_is_v6);
    let longer = first.len().max(second.len());
    (0..longer).flat_map(|n| [first.get(n).copied(), second.get(n).copied()]).flatten().collect()
}

/// The one of two errors that says more of the server; the first of two that say the same.
fn more_telling(one: HttpsError, other: HttpsError) -> HttpsError {
    let rank = |error: &HttpsError| match error {
        HttpsError::Certificate(_) => 3,
        HttpsError::TlsLimit(_) => 2,
        HttpsError::NoAddress(_) => 0,
        _ => 1,
    };
    if rank(&other) > rank(&one) { other } else { one }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use parking_lot::Mutex;

    use super::*;
    use crate::net::https::error::CertificateFault;

    fn address(text: &str) -> SocketAddr {
        SocketAddr::new(text.parse().unwrap(), 443)
    }

    /// What happens at an address.
    #[derive(Clone, Copy, PartialEq)]
    enum Server {
        Answers,
        BlackHole,
        /// It accepts the connection and is silent.
        Silent,
        Refuses,
        WrongName,
    }

    /// The address that was used, or why none; and those that were tried, in order.
    async fn run(servers: &[(&str, Server)]) -> (Result<SocketAddr, HttpsError>, Vec<SocketAddr>) {
        run_for(CONNECT_TIMEOUT, servers).await
    }

    async fn run_for(
        timeout: Duration,
        servers: &[(&str, Server)],
    ) -> (Result<SocketAddr, HttpsError>, Vec<SocketAddr>) {
        let tried = Mutex::new(Vec::new());
        let server = |wanted| servers.iter().find(|(at, _)| address(at) == wanted).unwrap().1;
        let result = race(servers.iter().map(|(at, _)| address(at)).collect(), timeout, |at, accepted| {
            tried.lock().push(at);
            let server = server(at);
            async move {
                match server {
                    Server::BlackHole => pending().await,
                    Server::Refuses => Err(HttpsError::Connection(format!("{at} refuses"))),
                    Server::Answers => Ok(at),
                    Server::Silent => {
                        accepted.fetch_add(1, Ordering::Relaxed);
                        pending().await
                    }
                    Server::WrongName => Err(HttpsError::Certificate(CertificateFault::Name)),
                }
            }
        });
        let result = result.await;
        (result, tried.into_inner())
    }

    #[tokio::test]
    async fn a_dead_address_costs_a_moment() {
        use Server::*;
        for servers in [
            // One family, the other, and both.
            &[("192.0.2.1", BlackHole), ("192.0.2.2", Answers)][..],
            &[("192.0.2.1", BlackHole), ("192.0.2.3", BlackHole), ("192.0.2.2", Answers)],
            &[("2001:db8::1", BlackHole), ("2001:db8::2", Answers)],
            &[("192.0.2.1", BlackHole), ("192.0.2.3", BlackHole), ("2001:db8::2", Answers)],
            &[("2001:db8::1", Refuses), ("192.0.2.2", Answers)],
            &[("192.0.2.1", Silent), ("192.0.2.2", Answers)],
            &[("192.0.2.1", WrongName), ("192.0.2.2", Answers)],
            &[("192.0.2.1", BlackHole), ("192.0.2.4", Refuses), ("192.0.2.5", Silent), ("192.0.2.2", Answers)],
        ] {
            let want = address(servers.iter().find(|(_, server)| *server == Answers).unwrap().0);
            assert_eq!(run(servers).await.0, Ok(want));
        }
        // The first one that works is not raced.
        let (found, tried) = run(&[("192.0.2.2", Answers), ("192.0.2.1", BlackHole)]).await;
        assert_eq!((found, tried), (Ok(address("192.0.2.2")), vec![address("192.0.2.2")]));
    }

    #[tokio::test]
    async fn the_most_telling_error_is_given() {
        use Server::*;
        let (found, tried) = run(&[("192.0.2.1", Refuses), ("192.0.2.2", WrongName), ("2001:db8::1", Refuses)]).await;
        assert_eq!(found, Err(HttpsError::Certificate(CertificateFault::Name)));
        assert_eq!(tried, ["192.0.2.1", "2001:db8::1", "192.0.2.2"].map(address));
        let (found, _) = run(&[("192.0.2.1", Refuses), ("192.0.2.2", Refuses)]).await;
        assert_eq!(found, Err(HttpsError::Connection("192.0.2.1:443 refuses".into())));
        // Also when the time is over: the other address never answers.
        let (found, _) = run_for(Duration::from_secs(1), &[("192.0.2.2", WrongName), ("2001:db8::1", BlackHole)]).await;
        assert_eq!(found, Err(HttpsError::Certificate(CertificateFault::Name)));
        assert!(matches!(run(&[]).await.0, Err(HttpsError::NoAddress(_))));
    }
}
