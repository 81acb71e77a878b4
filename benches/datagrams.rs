//! How fast Postfix's TLSRPT datagrams are taken and counted, commits included, beside a floor in the same run.
//!
//! `cargo bench --bench datagrams`. A sender in a process of its own, the river with the embedded store on this disk; then
//! - `floor`: a bare loop of recv(2) from a sender that waits for room: no reader can be faster;
//! - `counted`: the same sender, every datagram read, counted and committed;
//! - `paced`: 20,000/s from a sender that does not wait, as Postfix's: how many are lost;
//! - `burst`: 150 at once, the same.
//!
//! Ends with an error if a datagram that was sent was not counted. `paced` and `burst` hold for a socket that lets 512 wait
//! (net.unix.max_dgram_qlen): root runs it in a network namespace of its own with that; else the host's limit holds, and is shown.
//! Without `--bench` (`cargo test --benches`) few are sent.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use jiff::tz::TimeZone;
use tlswarden::base::clock::Clock;
use tlswarden::base::policy_at::PolicyAt;
use tlswarden::base::tlsrpt::PolicyInForce;
use tlswarden::counting::input::datagram::{DatagramQueue, RECEIVE_BUFFER, kernel_queue_length};
use tlswarden::counting::pipeline::{CountedInput, Counter, CountingTask, InputEvent};
use tlswarden::metrics::Metrics;
use tlswarden::store::Store;
use tlswarden::store::embedded::EmbeddedStore;
use tlswarden_parsers::Dialect;
use tokio::sync::{mpsc, oneshot, watch};

const RUNS: usize = 5;

/// Set where this runs in a network namespace of its own.
const INSIDE: &str = "TLSWARDEN_BENCH_INSIDE";

struct NoPolicy;

impl PolicyAt for NoPolicy {
    fn at(&self, _: &str, _: i64) -> Option<PolicyInForce> {
        Some(PolicyInForce::None)
    }
}

/// What a busy host sends: a thousand domains, one session in ten failed.
fn datagrams() -> Vec<Vec<u8>> {
    let one = |n: usize| {
        let domain = format!("d{n}.example");
        let policy = match n % 3 {
            0 => r#""policy-type":9,"policy-domain": "D""#,
            1 => {
                r#""policy-type":2,"policy-domain": "D","policy-string":["version: STSv1","mode: enforce","mx: mx.D","max_age: 604800"],"mx-host":["mx.D"]"#
            }
            _ => {
                r#""policy-type":1,"policy-domain": "mx.D","policy-string":["3 1 1 0C72AC70B745AC19998811B131D662C9AC69DBDBE7CB23E5B514B56664C5D3D6"]"#
            }
        };
        let failure = match n % 10 {
            0 => {
                r#""failure-details":[{"c":203,"s": "192.0.2.10","n": "mx.D","h": "250-mx.D\r\n250-PIPELINING\r\n250-SIZE 10240000\r\n250-STARTTLS\r\n250 8BITMIME","r": "198.51.100.7"}],"t":1,"f":1"#
            }
            _ => r#""t":0,"f":0"#,
        };
        format!(
            r#"{{"dpv": "1","d": "D","pr": "v=TLSRPTv1;rua=mailto:reports@D","policies":[{{{policy},{failure}}}]}}"#
        )
        .replace('D', &domain)
        .into_bytes()
    };
    (0..1000).map(one).collect()
}

/// `send PATH COUNT RATE`: sends and prints how many were taken; a rate of 0 waits for room, and is as fast as it can be.
fn send(path: &Path, count: usize, rate: u64) -> io::Result<()> {
    let all = datagrams();
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(rate > 0)?;
    socket.connect(path)?;
    let begin = Instant::now();
    let mut taken = 0u64;
    for n in 0..count {
        if rate > 0 && n % 20 == 0 {
            let due = begin + Duration::from_nanos(1_000_000_000 / rate * n as u64);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        match socket.send(&all[n % all.len()]) {
            Ok(_) => taken += 1,
            Err(e) if rate > 0 && e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
    println!("{taken}");
    Ok(())
}

/// Runs a sender; how many it got rid of.
fn sender(path: &Path, count: usize, rate: u64) -> u64 {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["send", path.to_str().unwrap(), &count.to_string(), &rate.to_string()])
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
}

fn bound(path: &Path) -> UnixDatagram {
    let _ = std::fs::remove_file(path);
    let socket = UnixDatagram::bind(path).unwrap();
    let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER);
    socket
}

/// Seconds that a bare loop takes.
fn floor(folder: &Path, count: usize) -> f64 {
    let path = folder.join("floor");
    let socket = bound(&path);
    std::thread::scope(|threads| {
        let sending = threads.spawn(|| sender(&path, count, 0));
        let mut octets = vec![0; 65_537];
        socket.recv(&mut octets).unwrap();
        let begin = Instant::now();
        for _ in 1..count {
            socket.recv(&mut octets).unwrap();
        }
        let seconds = begin.elapsed().as_secs_f64();
        sending.join().unwrap();
        seconds
    })
}

/// What became of datagrams that were sent: seconds from the first to the last commit, how many were sent and not counted,
/// and how many the socket had no room for.
struct Flow {
    seconds: f64,
    uncounted: i64,
    lost: u64,
}

fn flow(folder: &Path, count: usize, rate: u64) -> Flow {
    let store_folder = tempfile::tempdir_in(folder).unwrap();
    let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open(store_folder.path(), Clock::default()).unwrap().store);
    let path = folder.join("counted");
    let socket = bound(&path);
    let queue = Arc::new(DatagramQueue::default());
    let metrics = Metrics::default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let river = CountingTask {
        store: Arc::clone(&store),
        policies: Box::new(NoPolicy),
        hints: mpsc::channel(1).0,
        datagrams: Arc::clone(&queue),
        own_queue_ids: tlswarden::base::own_reports::OwnQueueIds::default(),
        own_report_statuses: tlswarden::base::own_reports::OwnReportStatuses::default(),
        metrics: metrics.clone(),
        clock: Clock::default(),
    };
    let (feed, fed) = mpsc::channel(4);
    let (stop, shutdown) = watch::channel(false);
    let counter = Counter::new(Dialect::Postfix, TimeZone::UTC, Arc::new(|_: &[u8]| false));
    let (known, is_known) = oneshot::channel();
    feed.blocking_send(InputEvent::DatagramInput(
        0,
        Box::new(CountedInput { name: "datagrams".into(), counter }),
        known,
    ))
    .unwrap();
    let begin = Instant::now();
    let mut taken = 0;
    std::thread::scope(|threads| {
        threads.spawn(move || river.run(runtime.handle(), fed, mpsc::channel(1).1, shutdown).unwrap());
        is_known.blocking_recv().unwrap();
        let receiver = queue.register_receiver();
        let of_thread = metrics.clone();
        threads.spawn(move || receiver.run(&socket, 0, "datagrams", &of_thread, Clock::default()));
        taken = sender(&path, count, rate);
        // What there was no room for in the queue is lost, and shows as not counted.
        let dropped = metrics.counter("datagrams-lost");
        let seen = || metrics.inputs().get("datagrams").map_or(0, |p| p.lines) + dropped.load(Ordering::Relaxed);
        while seen() < taken {
            std::thread::sleep(Duration::from_millis(1));
        }
        // Ends with the last commit.
        stop.send(true).unwrap();
        drop(feed);
    });
    let seconds = begin.elapsed().as_secs_f64();
    let mut counted = 0;
    for day in store.days().unwrap() {
        for domain in store.domains(day).unwrap() {
            counted += store.rows(day, &domain).unwrap().iter().map(|row| row.successful + row.failed).sum::<u64>();
        }
    }
    Flow { seconds, uncounted: taken as i64 - counted as i64, lost: count as u64 - taken }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, word, path, count, rate] = &arguments[..]
        && word == "send"
    {
        send(Path::new(path), count.parse().unwrap(), rate.parse().unwrap()).unwrap();
        return ExitCode::SUCCESS;
    }
    let measured = arguments.iter().any(|arg| arg == "--bench");
    let (count, runs) = if measured { (1_000_000, RUNS) } else { (5_000, 1) };
    if std::env::var_os(INSIDE).is_some() {
        // The limit is the network namespace's, and this one is nobody else's.
        let _ = std::fs::write("/proc/sys/net/unix/max_dgram_qlen", "512");
    } else if let Ok(status) = Command::new("unshare").arg("--net").args(&arguments).env(INSIDE, "1").status() {
        // 1 is the verdict of the run within; anything else, that there could be none.
        match status.code() {
            Some(0) => return ExitCode::SUCCESS,
            Some(1) if rustix::process::geteuid().is_root() => return ExitCode::FAILURE,
            _ => {}
        }
    }
    let waiting = kernel_queue_length().unwrap_or(0);
    println!("{count} datagrams of {} octets on average; {waiting} may wait", {
        let all = datagrams();
        all.iter().map(Vec::len).sum::<usize>() / all.len()
    });
    let folder = tempfile::tempdir().unwrap();
    let (mut floors, mut counts, mut sound) = (Vec::new(), Vec::new(), true);
    for _ in 0..runs {
        floors.push(floor(folder.path(), count));
        let flow = flow(folder.path(), count, 0);
        sound &= flow.uncounted == 0 && flow.lost == 0;
        counts.push(flow.seconds);
    }
    for (what, seconds) in [("floor", &mut floors), ("counted", &mut counts)] {
        seconds.sort_by(f64::total_cmp);
        let rate = |seconds: f64| count as f64 / seconds;
        let (slowest, fastest) = (rate(seconds[seconds.len() - 1]), rate(seconds[0]));
        println!("  {what:8} {:9.0}/s   ({slowest:.0} to {fastest:.0})", rate(seconds[seconds.len() / 2]));
    }
    println!("  counted is {:.3} of the floor", floors[runs / 2] / counts[runs / 2]);
    let paced = flow(folder.path(), if measured { 200_000 } else { 2_000 }, 20_000);
    println!("  paced    20000/s without waiting: {} lost, {} not counted", paced.lost, paced.uncounted);
    let mut burst = 0;
    for _ in 0..if measured { 20 } else { 2 } {
        let flow = flow(folder.path(), 150, 1_000_000_000);
        burst += flow.lost;
        sound &= flow.uncounted == 0;
    }
    println!("  burst    150 at once, 20 times: {burst} lost");
    sound &= paced.uncounted == 0 && (waiting < 512 || paced.lost + burst == 0);
    if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
