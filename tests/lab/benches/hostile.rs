//! What hostile names and clients cost the others: answers and memory, with and without them, in one run.
//!
//! `cargo bench -p lab --bench hostile` (add the path of a `tlswarden` that knows the lab's configuration to measure that
//! one). Prints
//! - how long look-ups of ordinary new names take, alone and beside twelve hostile names a second: names with 32 MX hosts
//!   whose name servers do not answer for TLSA records;
//! - how long warm look-ups take, alone and beside 16,000 clients that ask for long answers and never read, and the memory
//!   of the daemon with them.
//!
//! Without `--bench` (`cargo test --benches`) there are few of all, and nothing is compared.

use std::io::Write;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lab::daemon::{Daemon, Program};
use lab::dns::Fault;
use lab::https::Answer;
use lab::socketmap;
use lab::world::{Domain, Options, Server, World};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

/// Ordinary names that are looked up alone and beside the hostile ones; seconds of hostile names before that; clients that
/// do not read.
const FULL: (usize, u64, usize) = (300, 30, 16_000);
const SHORT: (usize, u64, usize) = (10, 1, 200);

const HOSTILE_PER_SECOND: u32 = 12;
const HOSTILE_HOSTS: u16 = 32;

fn main() {
    let (names, seconds, clients) = if std::env::args().any(|arg| arg == "--bench") { FULL } else { SHORT };
    let given = std::env::args().skip(1).find(|arg| arg.contains('/'));
    let program = given.map_or_else(|| Program::lab(env!("CARGO_BIN_EXE_lab")), Program::tlswarden);
    // The daemon starts with the limit of this process, and raises it by itself.
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    let (servers, asker) = (runtime("servers"), runtime("asker"));
    let long: String = (0..1200).map(|n| format!("mx: {n:04}.example\r\n")).collect();
    let long = format!("version: STSv1\r\nmode: enforce\r\n{long}max_age: 604800\r\n");
    let domains = [
        Domain::new("warm.test").host("mx", Server::Sound).sts("enforce", "mx"),
        Domain::new("long.test").host("mx", Server::Sound).sts_answer(Answer::Document(long)),
    ];
    let world = Arc::new(servers.block_on(World::start(Options::default(), &domains)).expect("a world"));
    let daemon = asker.block_on(Daemon::start(&program, &world)).expect("a daemon");

    println!("ordinary new names: {names}, one after the other");
    let alone = asker.block_on(look_up_new(&world, "alone", names));
    println!("  alone                                  {}", shown(&alone));
    let hostile = servers.spawn(ask_hostile(Arc::clone(&world)));
    std::thread::sleep(Duration::from_secs(seconds));
    let beside = asker.block_on(look_up_new(&world, "beside", names));
    println!("  beside {HOSTILE_PER_SECOND} hostile names a second         {}", shown(&beside));
    println!("  ratio of the medians {:.2}, of p99 {:.2}", ratio(&beside, &alone, 50), ratio(&beside, &alone, 99));
    hostile.abort();

    println!("warm look-ups, one after the other, each on a connection of its own");
    asker.block_on(ask(&world, "long.test"));
    let alone = asker.block_on(look_up_warm(&world, names));
    let memory = resident(&daemon);
    println!("  alone                                  {}, resident {memory} MiB", shown(&alone));
    let silent = connect_without_reading(&world.socketmap(), clients);
    let beside = asker.block_on(look_up_warm(&world, names));
    let with_them = resident(&daemon);
    println!("  beside {clients} clients that do not read  {}, resident {with_them} MiB", shown(&beside));
    println!("  ratio of the medians {:.2}, of p99 {:.2}", ratio(&beside, &alone, 50), ratio(&beside, &alone, 99));
    drop(silent);
    asker.block_on(daemon.stop()).expect("it ends");
}

fn runtime(name: &str) -> Runtime {
    Builder::new_multi_thread().worker_threads(2).thread_name(name).enable_all().build().expect("a runtime")
}

/// Asks; how long it took, in milliseconds, and whether there was an answer other than TEMP.
async fn ask(world: &World, name: &str) -> (f64, bool) {
    let began = Instant::now();
    let answer = socketmap::ask(&world.socketmap(), "policy", name).await;
    (began.elapsed().as_secs_f64() * 1000.0, answer.is_ok_and(|answer| !answer.starts_with("TEMP ")))
}

/// Names with one MX host and no policy, never asked before.
async fn look_up_new(world: &World, kind: &str, count: usize) -> Vec<(f64, bool)> {
    let mut found = Vec::new();
    for n in 0..count {
        let name = format!("{kind}{n}.test");
        {
            let mut zone = world.dns.change();
            zone.cut(&name, true);
            zone.mx(&name, 10, &format!("mx.{name}"));
            zone.address(&format!("mx.{name}"), Ipv4Addr::LOCALHOST.into());
        }
        found.push(ask(world, &name).await);
    }
    sorted(found)
}

async fn look_up_warm(world: &World, count: usize) -> Vec<(f64, bool)> {
    let mut found = Vec::new();
    for _ in 0..count {
        found.push(ask(world, "warm.test").await);
    }
    sorted(found)
}

async fn ask_hostile(world: Arc<World>) {
    let mut asking = JoinSet::new();
    let mut next = tokio::time::interval(Duration::from_secs(1) / HOSTILE_PER_SECOND);
    for n in 0.. {
        next.tick().await;
        while asking.try_join_next().is_some() {}
        let name = format!("hostile{n}.example");
        {
            let mut zone = world.dns.change();
            zone.cut(&name, true);
            for n in 0..HOSTILE_HOSTS {
                let host = format!("h{n}.{name}");
                zone.mx(&name, n, &host);
                zone.address(&host, Ipv4Addr::LOCALHOST.into());
                zone.fault(&format!("_25._tcp.{host}"), Some(Fault::Silence));
            }
        }
        let world = Arc::clone(&world);
        asking.spawn(async move { ask(&world, &name).await });
    }
}

/// Clients that have asked for as much as the sockets take.
fn connect_without_reading(socket: &Path, count: usize) -> Vec<UnixStream> {
    let requests = b"16:policy long.test,".repeat(200);
    let mut clients = Vec::new();
    for _ in 0..count {
        let mut client = UnixStream::connect(socket).expect("connected");
        client.set_nonblocking(true).expect("a socket");
        let _ = client.write(&requests);
        clients.push(client);
    }
    clients
}

fn sorted(mut found: Vec<(f64, bool)>) -> Vec<(f64, bool)> {
    found.sort_by(|one, other| one.0.total_cmp(&other.0));
    found
}

fn percentile(found: &[(f64, bool)], percent: usize) -> f64 {
    found[(found.len() * percent / 100).min(found.len() - 1)].0
}

fn ratio(of: &[(f64, bool)], to: &[(f64, bool)], percent: usize) -> f64 {
    percentile(of, percent) / percentile(to, percent)
}

fn shown(found: &[(f64, bool)]) -> String {
    let deferred = found.iter().filter(|(_, answered)| !answered).count();
    format!(
        "p50 {:8.2} ms, p99 {:8.2} ms, not answered or TEMP: {deferred}",
        percentile(found, 50),
        percentile(found, 99)
    )
}

/// Resident memory, in MiB.
fn resident(daemon: &Daemon) -> usize {
    let id = daemon.id().expect("it runs").as_raw_nonzero();
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().strip_suffix(" kB").and_then(|kib| kib.parse::<usize>().ok()).expect("kB") / 1024
}
