//! Warm socketmap look-ups a second, beside the floor: a bare netstring server on tokio that gives every request one
//! fixed reply of the same size. Same load generator, same cores, alternating in one run.
//!
//! `cargo bench --bench socketmap` (add `-- SECONDS` for another length of each measurement; 2 by default).
//! 5,000 next hops with an enforced MTA-STS policy each, all of them asked before; the tasks that write behind run.
//! Then both again at half the floor's rate, whatever the replies do (`paced.rs`): how late the latest in a thousand is.
//! Both are measured one right after the other, [`ROUNDS`] times, and the median of the ratios counts: what else the
//! host does then is in both, and a round in which it does much more is left out.
//! Without `--bench` (`cargo test --benches`) each measurement is short and made once.

#[path = "socketmap/paced.rs"]
mod paced;

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tlswarden::answering::connections::ClientConnections;
use tlswarden::answering::listener::Listener;
use tlswarden::answering::policy::history::PolicyHistory;
use tlswarden::answering::policy::policies::Policies;
use tlswarden::answering::policy::sts::document;
use tlswarden::answering::policy::sts::policy::StsPolicy;
use tlswarden::answering::socketmap::netstring::{self, Frame};
use tlswarden::answering::socketmap::server;
use tlswarden::base::allocator::Allocator;
use tlswarden::base::clock::Clock;
use tlswarden::base::requester::Requester;
use tlswarden::config::Config;
use tlswarden::metrics::Metrics;
use tlswarden::net::dns::Resolver;
use tlswarden::net::https::HttpsClient;
use tlswarden::store::embedded::EmbeddedStore;
use tlswarden::store::{Batch, Store, Table};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket, UnixListener, UnixStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::task::JoinSet;

// As in the program itself.
#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

const KEYS: usize = 5000;
const CONNECTIONS: [usize; 5] = [1, 8, 64, 256, 1000];

/// Odd, for the median.
const ROUNDS: usize = 7;

fn main() {
    // Cargo passes `--bench`; what else is there may be the number of seconds.
    let (rounds, seconds) = if std::env::args().any(|arg| arg == "--bench") { (ROUNDS, 2.0) } else { (1, 0.02) };
    let seconds = std::env::args().skip(1).find_map(|a| a.parse().ok()).unwrap_or(seconds);
    let length = Duration::from_secs_f64(seconds);
    let _ = rustls::crypto::ring::default_provider().install_default();
    let folder = tempfile::tempdir().expect("a temporary folder");
    // Two runtimes, as two processes would have: one serves, the other asks.
    let (server, asker) = (runtime("server"), runtime("asker"));
    let keys: Vec<String> = (0..KEYS).map(|n| format!("destination-{n:05}.example.com")).collect();
    let (ours, size, each) = server.block_on(daemon(folder.path(), &keys));
    let floor = server.block_on(floor(folder.path(), size));
    let requests: Arc<Vec<Vec<u8>>> = Arc::new(keys.iter().map(|key| request(key)).collect());

    println!("{KEYS} warm next hops, {size} octets a reply, {rounds} rounds of {seconds} s of each, the medians shown");
    println!("from memory to the reply, without sockets: {each} ns");
    println!("transport  connections | floor/s   p50 us  p99 us |  ours/s   p50 us  p99 us | ratio (least, most)");
    let mut halves = Vec::new();
    for unix in [false, true] {
        for connections in CONNECTIONS {
            let mut found: [Vec<Measured>; 2] = Default::default();
            for _ in 0..rounds {
                for (place, target) in found.iter_mut().zip([&floor, &ours]) {
                    let load = load(target.clone(), unix, connections, Arc::clone(&requests), size, length);
                    place.push(asker.block_on(load));
                }
            }
            let ratios = found[1].iter().zip(&found[0]).map(|(ours, floor)| ours.rate / floor.rate).collect();
            let mut line = format!("{:9}  {connections:11} |", transport(unix));
            for of in &found {
                let middle = |of: &[Measured], what: fn(&Measured) -> f64| median(of.iter().map(what).collect()).1;
                let (rate, p50, p99) = (middle(of, |m| m.rate), middle(of, |m| m.p50), middle(of, |m| m.p99));
                // Writing to a String cannot fail.
                let _ = write!(line, " {rate:7.0}  {p50:7.1} {p99:7.1} |");
            }
            println!("{line} {}", shown(median(ratios)));
            halves.push((unix, connections, median(found[0].iter().map(|m| m.rate).collect()).1 / 2.0));
        }
    }
    println!("at half the floor's rate, from when each was due");
    println!("transport  connections  asked/s | floor p50 us  p99.9 us | ours p50 us  p99.9 us | ratio of p99.9");
    for (unix, connections, rate) in halves {
        let mut found: [Vec<(f64, f64)>; 2] = Default::default();
        for _ in 0..rounds {
            for (place, target) in found.iter_mut().zip([&floor, &ours]) {
                place.push(paced::late(&asker, target, unix, connections, rate, &requests, size, length));
            }
        }
        let ratios = found[1].iter().zip(&found[0]).map(|(ours, floor)| ours.1 / floor.1).collect();
        let [floor, ours] = found.map(|of| of.into_iter().unzip());
        let middle = |(p50, late): (Vec<f64>, Vec<f64>)| (median(p50).1, median(late).1);
        let (floor, ours) = (middle(floor), middle(ours));
        println!(
            "{:9}  {connections:11}  {rate:7.0} | {:12.1}  {:8.1} | {:11.1}  {:8.1} | {}",
            transport(unix),
            floor.0,
            floor.1,
            ours.0,
            ours.1,
            shown(median(ratios))
        );
    }
    server.shutdown_background();
}

fn transport(unix: bool) -> &'static str {
    if unix { "unix" } else { "tcp" }
}

/// The least, the one in the middle, the most.
fn median(mut of: Vec<f64>) -> (f64, f64, f64) {
    of.sort_by(f64::total_cmp);
    (of[0], of[of.len() / 2], of[of.len() - 1])
}

fn shown((least, middle, most): (f64, f64, f64)) -> String {
    format!("{middle:.2} ({least:.2}, {most:.2})")
}

/// Where a server is asked.
#[derive(Clone)]
struct Target {
    tcp: SocketAddr,
    unix: PathBuf,
}

struct Measured {
    rate: f64,
    p50: f64,
    p99: f64,
}

fn runtime(name: &str) -> Runtime {
    Builder::new_multi_thread().worker_threads(2).thread_name(name).enable_all().build().expect("a runtime")
}

fn request(key: &str) -> Vec<u8> {
    let mut frame = Vec::new();
    netstring::encode(format!("policy {key}").as_bytes(), &mut frame);
    frame
}

/// The real responder, its store filled beforehand; also the size of its replies, and nanoseconds a decision.
async fn daemon(folder: &Path, keys: &[String]) -> (Target, usize, u128) {
    let (clock, metrics) = (Clock::default(), Metrics::default());
    let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open(&folder.join("store"), clock).expect("a store").store);
    let now = clock.seconds();
    let mut batch = Batch::default();
    for key in keys {
        let text = format!("version: STSv1\nmode: enforce\nmx: mx1.{key}\nmax_age: 604800\n");
        let policy = StsPolicy::new(key, "1", &document::parse(text.as_bytes()).expect("a policy"), now);
        batch.set.push((Table::Sts, key.clone().into_bytes(), Some(policy.encode(now, None, None))));
    }
    store.write(batch).expect("written");
    let mut config = Config::default();
    config.resolver.address = Some(dns().await);
    let resolver = Resolver::new(config.resolver.address).expect("a resolver");
    let client = HttpsClient::new(resolver.clone(), &config.closed_network.exceptions()).expect("an HTTPS client");
    let history = Arc::new(PolicyHistory::open(&*store, clock, metrics.clone()).expect("a history"));
    let policies =
        Policies::new(&config, resolver, client, Arc::clone(&store), Arc::clone(&history), clock, metrics.clone());
    policies.load().expect("policies");
    // The sender is kept: nothing ends before the process does.
    let (stop, stopped) = watch::channel(false);
    Box::leak(Box::new(stop));
    tokio::spawn(Arc::clone(&policies).run(stopped.clone()));
    tokio::spawn(history.run(store, stopped.clone()));
    for some in keys.chunks(200) {
        let mut warming = JoinSet::new();
        for key in some {
            let (policies, key) = (Arc::clone(&policies), key.clone());
            warming.spawn(async move { policies.decide(key.as_bytes(), Requester::User(0)).await });
        }
        while warming.join_next().await.is_some() {}
    }
    let began = Instant::now();
    for _ in 0..20 {
        for key in keys {
            std::hint::black_box(policies.cached(key.as_bytes()));
        }
    }
    let each = began.elapsed().as_nanos() / (20 * keys.len()) as u128;
    let unix = folder.join("ours");
    let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bound");
    let at = tcp.local_addr().expect("bound");
    for listener in [Listener::Tcp(tcp), Listener::Unix(UnixListener::bind(&unix).expect("bound"))] {
        let (policies, metrics) = (Arc::clone(&policies), metrics.clone());
        let (clients, stopped) = (ClientConnections::new(metrics.clone()), stopped.clone());
        tokio::spawn(server::serve(listener, policies, config.postfix.clone(), clients, metrics, stopped));
    }
    let mut probe = UnixStream::connect(&unix).await.expect("connected");
    probe.write_all(&request(&keys[0])).await.expect("asked");
    let mut reply = [0; 1024];
    let size = probe.read(&mut reply).await.expect("answered");
    let text = String::from_utf8_lossy(&reply[..size]);
    assert!(text.contains(":OK secure match=mx1.destination-00000.example.com servername=hostname,"), "{text}");
    (Target { tcp: at, unix }, size, each)
}

/// A resolver in whose world there are no names.
async fn dns() -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bound");
    let at = socket.local_addr().expect("bound");
    tokio::spawn(async move {
        let mut query = [0; 1500];
        while let Ok((size, from)) = socket.recv_from(&mut query).await {
            // Twelve octets of header, the question up to the root label, its type and class.
            let Some(end) = query[12..size].iter().position(|b| *b == 0).map(|root| 12 + root + 5) else { continue };
            let mut reply = query[..end].to_vec();
            // A response, recursion available, NXDOMAIN; one question, and a SOA of the root for an hour.
            reply[2..12].copy_from_slice(&[0x81, 0x83, 0, 1, 0, 0, 0, 1, 0, 0]);
            reply.extend([0, 0, 6, 0, 1, 0, 0, 0x0e, 0x10, 0, 22, 0, 0]);
            reply.extend([0, 0, 0, 1, 0, 0, 0x0e, 0x10, 0, 0, 0x0e, 0x10, 0, 0, 0x0e, 0x10, 0, 0, 0x0e, 0x10]);
            let _ = socket.send_to(&reply, from).await;
        }
    });
    at
}

/// The least that a server of netstrings can do.
async fn floor(folder: &Path, size: usize) -> Target {
    let digits = 2 + usize::from(size > 103);
    let mut reply = Vec::new();
    netstring::encode(&vec![b'x'; size - digits - 2], &mut reply);
    assert_eq!(reply.len(), size);
    let reply: Arc<[u8]> = reply.into();
    let unix = folder.join("floor");
    let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bound");
    let target = Target { tcp: tcp.local_addr().expect("bound"), unix: unix.clone() };
    let unix = UnixListener::bind(unix).expect("bound");
    let other = Arc::clone(&reply);
    tokio::spawn(async move {
        while let Ok((stream, _)) = tcp.accept().await {
            let _ = stream.set_nodelay(true);
            tokio::spawn(echo(stream, Arc::clone(&reply)));
        }
    });
    tokio::spawn(async move {
        while let Ok((stream, _)) = unix.accept().await {
            tokio::spawn(echo(stream, Arc::clone(&other)));
        }
    });
    target
}

async fn echo(mut stream: impl AsyncRead + AsyncWrite + Unpin, reply: Arc<[u8]>) {
    let (mut input, mut filled) = (vec![0; 4096], 0);
    loop {
        match stream.read(&mut input[filled..]).await {
            Ok(count) if count > 0 => filled += count,
            _ => return,
        }
        let mut done = 0;
        while let Frame::Whole { used, .. } = netstring::decode(&input[done..filled]) {
            done += used;
            if stream.write_all(&reply).await.is_err() {
                return;
            }
        }
        input.copy_within(done..filled, 0);
        filled -= done;
    }
}

async fn load(
    target: Target,
    unix: bool,
    connections: usize,
    requests: Arc<Vec<Vec<u8>>>,
    size: usize,
    length: Duration,
) -> Measured {
    let mut askers = JoinSet::new();
    // Half the length to get going, which is not counted.
    let began = Instant::now() + length / 4;
    let until = began + length;
    for n in 0..connections {
        let (requests, target) = (Arc::clone(&requests), target.clone());
        let first = n * 37;
        if unix {
            let stream = UnixStream::connect(&target.unix).await.expect("connected");
            askers.spawn(async move { ask(stream, &requests, first, size, began, until).await });
        } else {
            let stream = TcpStream::connect(target.tcp).await.expect("connected");
            stream.set_nodelay(true).expect("no delay");
            askers.spawn(async move { ask(stream, &requests, first, size, began, until).await });
        }
    }
    let mut times = Vec::new();
    while let Some(done) = askers.join_next().await {
        times.extend(done.expect("asked"));
    }
    times.sort_unstable();
    let at = |part: f64| times.get((times.len() as f64 * part) as usize).map_or(0.0, |ns| f64::from(*ns) / 1000.0);
    Measured { rate: times.len() as f64 / length.as_secs_f64(), p50: at(0.50), p99: at(0.99) }
}

/// One request after the other, as Postfix asks; nanoseconds of each.
async fn ask(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    requests: &[Vec<u8>],
    first: usize,
    size: usize,
    began: Instant,
    until: Instant,
) -> Vec<u32> {
    let mut times = Vec::with_capacity(1 << 16);
    let mut reply = vec![0; size];
    let mut sent = Instant::now();
    for n in first.. {
        stream.write_all(&requests[n % requests.len()]).await.expect("asked");
        stream.read_exact(&mut reply).await.expect("answered");
        assert_eq!(reply[size - 1], b',');
        let now = Instant::now();
        if now >= until {
            break;
        }
        if now >= began {
            times.push(u32::try_from((now - sent).as_nanos()).unwrap_or(u32::MAX));
        }
        sent = now;
    }
    times
}
