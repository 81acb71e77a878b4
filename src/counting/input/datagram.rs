//! The socket that Postfix's libtlsrpt sends to: drained at once, whatever the store does.
//!
//! Takes: a bound unix datagram socket. Gives: datagrams, each with the second of its receipt, in a [`DatagramQueue`] that the
//! counting takes from. A datagram is sent without waiting and without an answer: what the socket has no room for is lost at
//! the sender, who logs it (`Could not report TLS handshake result to tlsrpt library`), and the log counts that session.
//! Limits: [`MAX_DATAGRAM`] bytes each, [`MAX_QUEUED_BYTES`] and [`MAX_QUEUED_DATAGRAMS`] waiting; beyond, they are dropped and counted.
//! When it fails: an error of the socket, with a pause before it is tried again.
//! Not here: binding (`daemon::sockets`), what a datagram says (`session::datagram`).

use std::io;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::base::clock::Clock;
use crate::metrics::Metrics;

/// The longest datagram that is read, in bytes. Postfix sends one or two thousand: a policy, and a reply to EHLO.
pub(crate) const MAX_DATAGRAM: usize = 64 * 1024;

/// The most bytes in the queue: half a minute at full speed.
pub(crate) const MAX_QUEUED_BYTES: usize = 64 * 1024 * 1024;

/// The most datagrams in the queue.
pub(crate) const MAX_QUEUED_DATAGRAMS: usize = 400_000;

/// The receive buffer that is asked for, in bytes; the kernel gives as much as net.core.rmem_max allows.
pub const RECEIVE_BUFFER: usize = 4 * 1024 * 1024;

/// How many datagrams a socket should hold (net.unix.max_dgram_qlen): a burst while this process is not scheduled.
pub(crate) const MIN_SOCKET_QUEUE: u32 = 512;

/// How long one call to receive may block, so that a receiver notices the end of the daemon.
const RECEIVE_TIMEOUT: Duration = Duration::from_millis(50);

/// How long to wait before a socket that failed is read again.
const ERROR_RETRY_DELAY: Duration = Duration::from_secs(1);

/// The datagrams of all sockets that have been received and not yet counted.
#[derive(Default)]
pub struct DatagramQueue {
    waiting: Mutex<DatagramBatch>,
    ready: Notify,
    /// Receivers at work.
    receivers: AtomicUsize,
    closed: AtomicBool,
}

/// Datagrams in the order of their receipt, in one buffer.
#[derive(Default)]
pub(crate) struct DatagramBatch {
    bytes: Vec<u8>,
    entries: Vec<DatagramEntry>,
    lost: Vec<(usize, u64)>,
}

/// One datagram: its input, its time of receipt and its end in the buffer.
#[derive(Clone, Copy)]
struct DatagramEntry {
    input: usize,
    received_at: i64,
    end: usize,
    oversized: bool,
}

impl DatagramBatch {
    /// Each datagram: the number of its input, the second of its receipt, its bytes; `None` for one that was too long.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, i64, Option<&[u8]>)> {
        let mut from = 0;
        self.entries.iter().map(move |entry| {
            let bytes = &self.bytes[from..entry.end];
            from = entry.end;
            (entry.input, entry.received_at, (!entry.oversized).then_some(bytes))
        })
    }

    /// How many there was no room for, by input.
    pub(crate) fn lost(&self) -> &[(usize, u64)] {
        &self.lost
    }

    /// Whether nothing is in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.lost.is_empty()
    }

    fn push(&mut self, input: usize, received_at: i64, bytes: Option<&[u8]>) {
        let length = bytes.map_or(0, <[u8]>::len);
        if self.entries.len() >= MAX_QUEUED_DATAGRAMS || self.bytes.len() + length > MAX_QUEUED_BYTES {
            match self.lost.iter_mut().find(|(of, _)| *of == input) {
                Some((_, n)) => *n += 1,
                None => self.lost.push((input, 1)),
            }
            return;
        }
        self.bytes.extend_from_slice(bytes.unwrap_or_default());
        self.entries.push(DatagramEntry { input, received_at, end: self.bytes.len(), oversized: bytes.is_none() });
    }
}

impl DatagramQueue {
    /// Takes everything in the queue. The caller hands back the last batch as `cleared`, so that its memory is used again.
    pub(crate) fn take(&self, mut cleared: DatagramBatch) -> DatagramBatch {
        cleared.bytes.clear();
        cleared.entries.clear();
        cleared.lost.clear();
        std::mem::replace(&mut *self.waiting.lock(), cleared)
    }

    /// Waits until there is something that was not there when [`DatagramQueue::take`] was called. For one waiter.
    pub(crate) async fn ready(&self) {
        self.ready.notified().await;
    }

    /// Tells the receivers to end, and waits until they have: what they have taken is in the queue then, and what they
    /// have not stays in the socket for whoever reads it next.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        while self.receivers.load(Ordering::Acquire) > 0 {
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Registers a receiver before its thread starts, so that [`DatagramQueue::close`] waits for it.
    pub fn register_receiver(self: &Arc<Self>) -> DatagramReceiver {
        self.receivers.fetch_add(1, Ordering::AcqRel);
        DatagramReceiver(Arc::clone(self))
    }
}

/// A registered receiver; dropping it ends the registration.
pub struct DatagramReceiver(Arc<DatagramQueue>);

impl Drop for DatagramReceiver {
    fn drop(&mut self) {
        self.0.receivers.fetch_sub(1, Ordering::AcqRel);
    }
}

impl DatagramReceiver {
    /// Receives until the queue is closed. Blocks the thread that it runs on.
    pub fn run(self, socket: &UnixDatagram, input: usize, name: &str, metrics: &Metrics, clock: Clock) {
        let queue = &self.0;
        let mut buffer = vec![0; MAX_DATAGRAM + 1];
        let mut failing = false;
        if let Err(log_error) =
            socket.set_nonblocking(false).and_then(|()| socket.set_read_timeout(Some(RECEIVE_TIMEOUT)))
        {
            metrics.log_error(
                clock,
                format!("input {name}: cannot be received from: {log_error}; nothing is counted from it"),
            );
        }
        while !queue.closed.load(Ordering::Acquire) {
            match socket.recv(&mut buffer) {
                Ok(length) => {
                    failing = false;
                    let bytes = (length <= MAX_DATAGRAM).then(|| &buffer[..length]);
                    let mut waiting = queue.waiting.lock();
                    let first = waiting.is_empty();
                    waiting.push(input, clock.seconds(), bytes);
                    drop(waiting);
                    if first {
                        queue.ready.notify_one();
                    }
                }
                Err(error) if is_transient(&error) => {}
                Err(error) => {
                    if !failing {
                        let line = format!("input {name}: cannot be received from: {error}; trying again");
                        metrics.log_error(clock, line);
                    }
                    failing = true;
                    std::thread::sleep(ERROR_RETRY_DELAY);
                }
            }
        }
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

/// How many datagrams the kernel queues in a newly bound socket; `None` where /proc does not have it.
pub fn kernel_queue_length() -> Option<u32> {
    std::fs::read_to_string("/proc/sys/net/unix/max_dgram_qlen").ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_a_burst_are_taken_in_order_and_what_is_too_long_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let socket = UnixDatagram::bind(&path).unwrap();
        let queue = Arc::new(DatagramQueue::default());
        let receiver = queue.register_receiver();
        let thread = std::thread::spawn(move || receiver.run(&socket, 3, "s", &Metrics::default(), Clock::default()));
        let sender = UnixDatagram::unbound().unwrap();
        for n in 0..150u32 {
            sender.send_to(&n.to_be_bytes(), &path).unwrap();
        }
        sender.send_to(&vec![b'x'; MAX_DATAGRAM + 1], &path).unwrap();
        sender.send_to(b"", &path).unwrap();
        let mut got = Vec::new();
        while got.len() < 152 {
            got.extend(
                queue.take(DatagramBatch::default()).iter().map(|(of, _, bytes)| (of, bytes.map(<[u8]>::to_vec))),
            );
        }
        queue.close();
        thread.join().unwrap();
        for n in 0..150u32 {
            assert_eq!(got[n as usize], (3, Some(n.to_be_bytes().to_vec())));
        }
        assert_eq!(got[150..], [(3, None), (3, Some(Vec::new()))]);
    }

    #[test]
    fn what_there_is_no_room_for_is_counted() {
        let mut batch = DatagramBatch::default();
        let long = vec![0; MAX_DATAGRAM];
        for _ in 0..MAX_QUEUED_BYTES / MAX_DATAGRAM {
            batch.push(1, 0, Some(&long));
        }
        batch.push(1, 0, Some(b"x"));
        batch.push(2, 0, Some(b"x"));
        batch.push(1, 0, Some(b"x"));
        assert_eq!((batch.iter().count(), batch.lost()), (MAX_QUEUED_BYTES / MAX_DATAGRAM, &[(1, 2), (2, 1)][..]));
    }
}
