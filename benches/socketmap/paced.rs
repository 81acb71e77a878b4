//! Asks at a fixed rate, whether or not the replies come (an open loop): a server that pauses is late for all that was
//! due meanwhile, which a client that waits for each reply does not see.
//!
//! Takes: a server and a rate. Gives: median and 99.9th percentile of the time from when a request was due to its reply.
//! One thread asks on all connections in turn; it sleeps between what is due, so the host's timers (some 60 µs) are
//! part of both figures.

use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::Target;

type Reader = Box<dyn AsyncRead + Send + Unpin>;
type Writer = Box<dyn Write + Send>;

/// Microseconds: the median, the 99.9th percentile.
#[allow(clippy::too_many_arguments)] // One measurement, described.
pub(crate) fn late(
    asker: &Runtime,
    target: &Target,
    unix: bool,
    connections: usize,
    rate: f64,
    requests: &Arc<Vec<Vec<u8>>>,
    size: usize,
    length: Duration,
) -> (f64, f64) {
    let (readers, writers): (Vec<Reader>, Vec<Writer>) =
        (0..connections).map(|_| asker.block_on(async { connect(target, unix) })).unzip();
    let interval = Duration::from_secs_f64(1.0 / rate);
    let count = (rate * length.as_secs_f64()) as usize;
    let began = Instant::now() + Duration::from_millis(20);
    let due = move |n: usize| began + interval.mul_f64(n as f64);
    let mut tasks = JoinSet::new();
    for (at, mut reader) in readers.into_iter().enumerate() {
        let read = async move {
            let mut reply = vec![0; size];
            let mut times = Vec::new();
            for n in (at..count).step_by(connections) {
                reader.read_exact(&mut reply).await.expect("answered");
                times.push(Instant::now().saturating_duration_since(due(n)).as_nanos() as u64);
            }
            times
        };
        tasks.spawn_on(read, asker.handle());
    }
    ask(writers, requests, count, due);
    let mut times: Vec<u64> = Vec::with_capacity(count);
    asker.block_on(async {
        while let Some(done) = tasks.join_next().await {
            times.extend(done.expect("read"));
        }
    });
    assert_eq!(times.len(), count);
    times.sort_unstable();
    let at = |part: f64| times.get((count as f64 * part) as usize).map_or(0.0, |ns| *ns as f64 / 1000.0);
    (at(0.5), at(0.999))
}

fn ask(mut writers: Vec<Writer>, requests: &[Vec<u8>], count: usize, due: impl Fn(usize) -> Instant) {
    let connections = writers.len();
    for n in 0..count {
        let wait = due(n).saturating_duration_since(Instant::now());
        if !wait.is_zero() {
            std::thread::sleep(wait);
        }
        let (mut left, writer) = (requests[n % requests.len()].as_slice(), &mut writers[n % connections]);
        while !left.is_empty() {
            match writer.write(left) {
                Ok(written) => left = &left[written..],
                Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
                Err(e) => panic!("asked: {e}"),
            }
        }
    }
}

/// Both sides of a connection: tokio reads, a thread writes.
fn connect(target: &Target, unix: bool) -> (Reader, Writer) {
    if unix {
        let stream = UnixStream::connect(&target.unix).expect("connected");
        stream.set_nonblocking(true).expect("set");
        let reader = tokio::net::UnixStream::from_std(stream.try_clone().expect("cloned")).expect("in tokio");
        (Box::new(reader), Box::new(stream))
    } else {
        let stream = TcpStream::connect(target.tcp).expect("connected");
        stream.set_nodelay(true).expect("no delay");
        stream.set_nonblocking(true).expect("set");
        let reader = tokio::net::TcpStream::from_std(stream.try_clone().expect("cloned")).expect("in tokio");
        (Box::new(reader), Box::new(stream))
    }
}
