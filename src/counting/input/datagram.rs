//! The socket that Postfix's libtlsrpt sends to: drained at once, whatever the store does.
//!
//! Takes: a bound unix datagram socket. Gives: datagrams, each with the second of its receipt, in a [`Queue`] that the
//! counting takes from. A datagram is sent without waiting and without an answer: what the socket has no room for is lost at
//! the sender, who logs it (`Could not report TLS handshake result to tlsrpt library`), and the log counts that session.
//! Limits: [`MAX_DATAGRAM`] octets each, [`MAX_OCTETS`] and [`MAX_NUMBER`] waiting; beyond, they are dropped and counted.
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

/// The longest datagram that is read, in octets. Postfix sends one or two thousand: a policy, and a reply to EHLO.
pub const MAX_DATAGRAM: usize = 64 * 1024;

/// The most that waits, in octets: half a minute at full speed.
pub const MAX_OCTETS: usize = 64 * 1024 * 1024;

/// The most datagrams that wait.
pub const MAX_NUMBER: usize = 400_000;

/// The receive buffer that is asked for, in octets; the kernel gives as much as net.core.rmem_max allows.
pub const RECEIVE_BUFFER: usize = 4 * 1024 * 1024;

/// How many datagrams a socket should hold (net.unix.max_dgram_qlen): a burst while this process is not scheduled.
pub const QUEUE_LENGTH: u32 = 512;

/// How soon a receiver sees that it is to end.
const LOOK: Duration = Duration::from_millis(50);

/// How long a socket that fails is left alone.
const PAUSE: Duration = Duration::from_secs(1);

/// Datagrams that wait for the counting, of all sockets.
#[derive(Default)]
pub struct Queue {
    waiting: Mutex<Taken>,
    ready: Notify,
    /// Receivers at work.
    receivers: AtomicUsize,
    closed: AtomicBool,
}

/// Datagrams in the order of their receipt.
#[derive(Default)]
pub struct Taken {
    octets: Vec<u8>,
    each: Vec<One>,
    lost: Vec<(usize, u64)>,
}

/// Where one datagram is, whose it is, and when it came.
#[derive(Clone, Copy)]
struct One {
    input: usize,
    at: i64,
    end: usize,
    oversized: bool,
}

impl Taken {
    /// Each datagram: the number of its input, the second of its receipt, its octets; `None` for one that was too long.
    pub fn each(&self) -> impl Iterator<Item = (usize, i64, Option<&[u8]>)> {
        let mut from = 0;
        self.each.iter().map(move |one| {
            let octets = &self.octets[from..one.end];
            from = one.end;
            (one.input, one.at, (!one.oversized).then_some(octets))
        })
    }

    /// How many there was no room for, by input.
    pub fn lost(&self) -> &[(usize, u64)] {
        &self.lost
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.each.is_empty() && self.lost.is_empty()
    }

    fn push(&mut self, input: usize, at: i64, octets: Option<&[u8]>) {
        let length = octets.map_or(0, <[u8]>::len);
        if self.each.len() >= MAX_NUMBER || self.octets.len() + length > MAX_OCTETS {
            match self.lost.iter_mut().find(|(of, _)| *of == input) {
                Some((_, n)) => *n += 1,
                None => self.lost.push((input, 1)),
            }
            return;
        }
        self.octets.extend_from_slice(octets.unwrap_or_default());
        self.each.push(One { input, at, end: self.octets.len(), oversized: octets.is_none() });
    }
}

impl Queue {
    /// Everything that waits; what was taken before is handed back in `emptied`, for its memory.
    pub fn take(&self, mut emptied: Taken) -> Taken {
        emptied.octets.clear();
        emptied.each.clear();
        emptied.lost.clear();
        std::mem::replace(&mut *self.waiting.lock(), emptied)
    }

    /// Waits until there is something that was not there when [`Queue::take`] was called. For one waiter.
    pub async fn ready(&self) {
        self.ready.notified().await;
    }

    /// Tells the receivers to end, and waits until they have: what they have taken is in the queue then, and what they
    /// have not stays in the socket for whoever reads it next.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        while self.receivers.load(Ordering::Acquire) > 0 {
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Announces a receiver, before its thread runs.
    pub fn announce(self: &Arc<Self>) -> Receiver {
        self.receivers.fetch_add(1, Ordering::AcqRel);
        Receiver(Arc::clone(self))
    }
}

/// A receiver's place at the queue, given back when it is dropped.
pub struct Receiver(Arc<Queue>);

impl Drop for Receiver {
    fn drop(&mut self) {
        self.0.receivers.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Receiver {
    /// Receives until the queue is closed. Blocks the thread that it runs on.
    pub fn run(self, socket: &UnixDatagram, input: usize, name: &str, metrics: &Metrics, clock: Clock) {
        let queue = &self.0;
        let mut buffer = vec![0; MAX_DATAGRAM + 1];
        let mut failing = false;
        if let Err(error) = socket.set_nonblocking(false).and_then(|()| socket.set_read_timeout(Some(LOOK))) {
            metrics.error(clock, format!("input {name}: cannot be received from: {error}; nothing is counted from it"));
        }
        while !queue.closed.load(Ordering::Acquire) {
            match socket.recv(&mut buffer) {
                Ok(length) => {
                    failing = false;
                    let octets = (length <= MAX_DATAGRAM).then(|| &buffer[..length]);
                    let mut waiting = queue.waiting.lock();
                    let first = waiting.is_empty();
                    waiting.push(input, clock.seconds(), octets);
                    drop(waiting);
                    if first {
                        queue.ready.notify_one();
                    }
                }
                Err(error) if is_no_news(&error) => {}
                Err(error) => {
                    if !failing {
                        let line = format!("input {name}: cannot be received from: {error}; trying again");
                        metrics.error(clock, line);
                    }
                    failing = true;
                    std::thread::sleep(PAUSE);
                }
            }
        }
    }
}

fn is_no_news(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

/// How many datagrams the kernel lets wait in a socket that is bound now; `None` where it does not say.
pub fn queue_length() -> Option<u32> {
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
        let queue = Arc::new(Queue::default());
        let receiver = queue.announce();
        let thread = std::thread::spawn(move || receiver.run(&socket, 3, "s", &Metrics::default(), Clock::default()));
        let sender = UnixDatagram::unbound().unwrap();
        for n in 0..150u32 {
            sender.send_to(&n.to_be_bytes(), &path).unwrap();
        }
        sender.send_to(&vec![b'x'; MAX_DATAGRAM + 1], &path).unwrap();
        sender.send_to(b"", &path).unwrap();
        let mut got = Vec::new();
        while got.len() < 152 {
            got.extend(queue.take(Taken::default()).each().map(|(of, _, octets)| (of, octets.map(<[u8]>::to_vec))));
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
        let mut taken = Taken::default();
        let long = vec![0; MAX_DATAGRAM];
        for _ in 0..MAX_OCTETS / MAX_DATAGRAM {
            taken.push(1, 0, Some(&long));
        }
        taken.push(1, 0, Some(b"x"));
        taken.push(2, 0, Some(b"x"));
        taken.push(1, 0, Some(b"x"));
        assert_eq!((taken.each().count(), taken.lost()), (MAX_OCTETS / MAX_DATAGRAM, &[(1, 2), (2, 1)][..]));
    }
}
