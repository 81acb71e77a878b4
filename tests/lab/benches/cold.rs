//! What 50,000 policies cost: to find out, to keep, to start with, and whether `kill -9` loses one.
//!
//! `cargo bench -p lab --bench cold` (add `-- COUNT` for another number of domains, and the path of a `tlswarden` to
//! measure that one: the daemon is else part of this lab's program, which has more pages). Prints
//! - a cold fill at 64 connections, beside a bare loop at 64 tasks (`cold/bare.rs`) that sends the same queries and GETs
//!   to the same local servers, in turn in one run: each domain has MX, A, TXT and a policy host of its own, all signed,
//!   and no TLSA, so that each of five queries is needed (MX, A, AAAA, TLSA, TXT; the policy hosts' address is fixed);
//! - the resident memory of the daemon, a process of its own, sled's cache included, once what it does behind the last
//!   answer is done;
//! - `kill -9` a second and the write-behind after the last answer: how many of all do not answer `secure` afterwards,
//!   while DNS and the policy hosts are silent;
//! - the time from starting the process to its first answer.
//!
//! Ends with an error if a policy was lost. Without `--bench` (`cargo test --benches`) there are few domains, one round.

#[path = "cold/bare.rs"]
mod bare;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lab::daemon::{Daemon, Program};
use lab::dns::Fault;
use lab::https::{Answer, Site};
use lab::world::{Options, World};
use rustix::process::{Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

/// Domains; of them, those of one round of the race; the rounds.
const FULL: (usize, usize, usize) = (50_000, 4000, 3);
const SHORT: (usize, usize, usize) = (300, 100, 1);

/// Who asks at once.
const CONNECTIONS: usize = 64;

/// How long an answered policy may take to be on disk: what is written behind, and a second.
const DURABLE: Duration = Duration::from_millis(1050);

const STARTS: usize = 5;

/// How long what is done behind the answers takes: what is read at start is let go, looks at records that are in vain time
/// out, and the allocator gives back.
const SETTLED: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let (count, round, rounds) = if std::env::args().any(|arg| arg == "--bench") { FULL } else { SHORT };
    let count: usize = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(count);
    let round = round.min(count / rounds);
    let (servers, asker) = (runtime("servers"), runtime("asker"));
    let world = servers.block_on(World::start(Options::default(), &[])).expect("a world");
    let names: Arc<[String]> = (0..count).map(|n| format!("destination-{n:05}.example")).collect();
    publish(&world, &names);
    let given = std::env::args().skip(1).find(|arg| arg.contains('/'));
    let program = given.map_or_else(|| Program::lab(env!("CARGO_BIN_EXE_lab")), Program::tlswarden);
    let daemon = asker.block_on(Daemon::start(&program, &world)).expect("a daemon");
    let world = Arc::new(world);

    println!("{count} domains; cold, {CONNECTIONS} at once, {rounds} rounds of {round} domains");
    println!("round | bare loop/s |  ours/s | ratio");
    let mut best = [0.0_f64; 2];
    for n in 0..rounds {
        let part = n * round..(n + 1) * round;
        let floor = rate(round, || asker.block_on(bare::fill(&world, &names, part.clone(), CONNECTIONS)));
        let ours = rate(round, || assert_eq!(asker.block_on(ask(&world, &names, part.clone())), 0, "not secure"));
        best = [best[0].max(floor), best[1].max(ours)];
        println!("{n:5} | {floor:11.0} | {ours:7.0} | {:.2}", ours / floor);
    }
    println!(" best | {:11.0} | {:7.0} | {:.2}", best[0], best[1], best[1] / best[0]);
    let (rest, last) = (rounds * round..count - count / 100, count - count / 100..count);
    let (length, done) = (rest.len(), Instant::now());
    let refused = asker.block_on(ask(&world, &names, rest));
    println!("of the others {length}: {:.0}/s", length as f64 / done.elapsed().as_secs_f64());
    assert_eq!(refused, 0, "answers that are not secure");
    println!("resident after the cold fill: {}", resident(&daemon));
    std::thread::sleep(SETTLED);
    println!("  {} s later: {}", SETTLED.as_secs(), resident(&daemon));
    assert_eq!(asker.block_on(ask(&world, &names, last)), 0, "answers that are not secure");
    std::thread::sleep(DURABLE);

    // Nobody says anything any more.
    world.dns.change().outage(Some(Fault::Silence));
    for name in names.iter() {
        world.policy_hosts.answer(name, Answer::Hang);
    }
    let mut starts = Vec::new();
    let (mut daemon, mut lost) = (daemon, 0);
    for n in 0..STARTS {
        end(daemon, &asker);
        let began = Instant::now();
        daemon = asker.block_on(async { Daemon::spawn(&program, &world) }).expect("a daemon");
        let name = &names[(n * 7919 + 1) % count];
        while asker.block_on(one(&world, name)).is_none() {
            assert!(began.elapsed() < Duration::from_secs(30), "no answer");
            std::thread::sleep(Duration::from_millis(1));
        }
        starts.push(began.elapsed().as_secs_f64() * 1000.0);
        if n == 0 {
            println!("resident after a restart, one asked: {}", resident(&daemon));
            std::thread::sleep(SETTLED);
            println!("  {} s later: {}", SETTLED.as_secs(), resident(&daemon));
            let done = Instant::now();
            lost = asker.block_on(ask(&world, &names, 0..count));
            let per_second = count as f64 / done.elapsed().as_secs_f64();
            println!(
                "lost by kill -9: {lost} of {count} (asked again at {per_second:.0}/s, DNS and policy hosts silent)"
            );
            println!("resident after a restart, all asked: {}", resident(&daemon));
            std::thread::sleep(SETTLED);
            println!("  {} s later: {}", SETTLED.as_secs(), resident(&daemon));
        }
    }
    let shown: Vec<String> = starts.iter().map(|ms| format!("{ms:.0}")).collect();
    println!("start after kill -9 to the first answer, {STARTS} times: {} ms", shown.join(", "));
    end(daemon, &asker);
    servers.shutdown_background();
    if lost == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn runtime(name: &str) -> Runtime {
    Builder::new_multi_thread().worker_threads(2).thread_name(name).enable_all().build().expect("a runtime")
}

fn rate(count: usize, work: impl FnOnce()) -> f64 {
    let began = Instant::now();
    work();
    count as f64 / began.elapsed().as_secs_f64()
}

/// All domains, each with an MX host, a record and an enforced policy.
fn publish(world: &World, names: &[String]) {
    let mut zone = world.dns.change();
    zone.ttl(3600);
    zone.cut("example", true);
    for name in names {
        zone.mx(name, 10, &format!("mx.{name}"));
        zone.address(&format!("mx.{name}"), Ipv4Addr::LOCALHOST.into());
        zone.txt(&format!("_mta-sts.{name}"), "v=STSv1; id=20261101T000000;");
    }
    drop(zone);
    for name in names {
        let identity = world.authority.certify(&format!("mta-sts.{name}"), None).expect("a certificate");
        let document = format!("version: STSv1\r\nmode: enforce\r\nmx: mx.{name}\r\nmax_age: 604800\r\n");
        world.policy_hosts.set(name, Site { identity, answer: Answer::Document(document) });
    }
}

/// Asks the daemon about each of a part of the names once; how many of them are not `secure`.
async fn ask(world: &Arc<World>, names: &Arc<[String]>, part: std::ops::Range<usize>) -> usize {
    let next = Arc::new(AtomicUsize::new(part.start));
    let mut tasks = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (world, names, next, end) = (Arc::clone(world), Arc::clone(names), Arc::clone(&next), part.end);
        tasks.spawn(async move {
            let mut stream = UnixStream::connect(world.socketmap()).await.expect("connected");
            let mut other = BTreeSet::new();
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= end {
                    return other;
                }
                let said = exchange(&mut stream, &names[n]).await.unwrap_or_else(|e| e.to_string());
                if !said.contains(&format!(":OK secure match=mx.{} ", names[n])) {
                    other.insert(format!("{}: {said}", names[n]));
                }
            }
        });
    }
    let mut other = BTreeSet::new();
    while let Some(done) = tasks.join_next().await {
        other.extend(done.expect("asked"));
    }
    other.iter().take(3).for_each(|line| println!("  not secure: {line}"));
    other.len()
}

async fn one(world: &World, name: &str) -> Option<String> {
    let mut stream = UnixStream::connect(world.socketmap()).await.ok()?;
    exchange(&mut stream, name).await.ok()
}

/// One request and its reply, as a netstring.
async fn exchange(stream: &mut UnixStream, name: &str) -> std::io::Result<String> {
    let request = format!("policy {name}");
    stream.write_all(format!("{}:{request},", request.len()).as_bytes()).await?;
    let (mut reply, mut filled) = ([0; 2048], 0);
    loop {
        match stream.read(&mut reply[filled..]).await? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            read => filled += read,
        }
        // Nothing is asked meanwhile, and no reply has a comma but at its end.
        if reply[..filled].ends_with(b",") {
            return Ok(String::from_utf8_lossy(&reply[..filled]).into_owned());
        }
    }
}

fn end(daemon: Daemon, asker: &Runtime) {
    if let Some(id) = daemon.id() {
        kill_process(id, Signal::KILL).expect("killed");
    }
    asker.block_on(daemon.kill()).expect("ended");
}

/// The memory of the daemon, as the kernel counts it: all, its own, the program's pages.
fn resident(daemon: &Daemon) -> String {
    let id = daemon.id().expect("it runs").as_raw_nonzero();
    let text = std::fs::read_to_string(format!("/proc/{id}/status")).expect("a status");
    let megabytes = |field: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(field));
        let kib = line.and_then(|rest| rest.split_whitespace().nth(1)?.parse::<f64>().ok());
        kib.map_or("?".into(), |kib| format!("{:.1} MB", kib / 1024.0))
    };
    format!(
        "{} (anonymous {}, files {}, peak {})",
        megabytes("VmRSS"),
        megabytes("RssAnon"),
        megabytes("RssFile"),
        megabytes("VmHWM")
    )
}
