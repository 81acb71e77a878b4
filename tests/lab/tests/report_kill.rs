//! `kill -9` of the daemon at 100 random moments of a report run: no report is sent twice, and none is missing but those
//! that the daemon says it does not know about.
//!
//! A store holds the counts of a closed day for some thousand domains. The daemon is started and killed, every other time
//! just when it has begun to write to its store, until all kills are done; then it may finish. The receiving server
//! knows what arrived, the daemon's log what it called unknown, and `tlswarden reports list` what it holds to have sent.
//! `KILL_SEED=n` repeats the moments as far as the host does; `KILL_TIMES` and `KILL_DOMAINS` make it longer.

#[path = "../../random/mod.rs"]
mod random;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lab::daemon::{Daemon, Program};
use lab::report;
use lab::world::{Options, World};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use rustix::process::{Signal, kill_process};
use serde_json::Value;
use tlswarden::base::clock::Clock;
use tlswarden::base::tlsrpt::{Day, Policy, TallyKey, TallyResult};
use tlswarden::store::embedded::EmbeddedStore;
use tlswarden::store::{Batch, Store};
use tokio::task::spawn_blocking;

use random::SplitMix64;

const KILLS: u64 = 100;
const DOMAINS: u64 = 4000;
/// How many of the kills must have come while reports went out, in percent.
const HITS: u64 = 80;

const DAY: &str = "2026-11-22";
const AFTER: &str = "2026-11-23T00:10:00Z";
const NEXT_DAY: &str =
    "Nov 23 00:05:00 mta postfix/qmgr[1]: 0123456789A: from=<a@sender.test>, size=1, nrcpt=1 (queue active)\n";

const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_sends_no_report_twice_and_loses_none_unsaid() {
    let (seed, kills) = (number("KILL_SEED", 1), number("KILL_TIMES", KILLS));
    let domains = number("KILL_DOMAINS", DOMAINS);
    println!("KILL_SEED={seed} KILL_TIMES={kills} KILL_DOMAINS={domains}");
    let begun = Instant::now();
    let world = World::start(Options::default(), &[]).await.unwrap();
    {
        let mut zone = world.dns.change();
        zone.ttl(3600);
        zone.cut("example", false);
        for n in 0..domains {
            zone.txt(&format!("_smtp._tls.{}", name(n)), &format!("v=TLSRPTv1; rua=mailto:tlsrpt@{}", name(n)));
        }
    }
    world.configure(Some(AFTER)).unwrap();
    fs::write(world.log(), NEXT_DAY).unwrap();
    fill(&world, domains);
    let program = Program::lab(env!("CARGO_BIN_EXE_lab"));
    let mut random = SplitMix64(seed);
    let (mut hits, mut at_writes) = (0, 0);
    for kill in 0..kills {
        let before = world.submission().taken();
        let daemon = Daemon::spawn(&program, &world).unwrap();
        // From within its start to the middle of the run.
        if random.below(10) > 0 {
            until(|| world.submission().taken() > before || before as u64 == domains).await;
        }
        tokio::time::sleep(Duration::from_millis(random.below(120))).await;
        if kill % 2 == 1 {
            at_writes += 1;
            let (id, store) = (daemon.id().unwrap(), world.folder().join("store"));
            let delay = Duration::from_micros(random.below(2000));
            spawn_blocking(move || {
                wait_for_write(&store);
                std::thread::sleep(delay);
                kill_process(id, Signal::KILL).unwrap();
            })
            .await
            .unwrap();
        }
        daemon.kill().await.unwrap();
        hits += u64::from(world.submission().taken() > before);
    }
    let at_the_kills = world.submission().taken();
    assert!(hits * 100 >= kills * HITS, "only {hits} of {kills} kills came while reports went out");
    assert!((at_the_kills as u64) < domains, "all had gone before the last kill: set KILL_DOMAINS higher");

    let daemon = Daemon::start(&program, &world).await.unwrap();
    let states = over(&program, &world).await;
    daemon.stop().await.unwrap();

    let mut arrived: BTreeMap<String, u64> = BTreeMap::new();
    for mail in world.submission().record().mail {
        let report = report::read(&mail.data).unwrap_or_else(|faults| panic!("{}", faults.join("\n")));
        assert_eq!(report.totals().successful, 7, "{}", report.domain);
        *arrived.entry(report.domain).or_default() += 1;
    }
    let log = fs::read_to_string(world.folder().join("daemon.log")).unwrap();
    let said: BTreeSet<&str> = log
        .lines()
        .filter_map(|line| line.split_once(&format!("report {DAY} "))?.1.split_once(" to mailto:"))
        .filter(|(_, rest)| rest.contains("unknown: the daemon ended while it was being sent"))
        .map(|(domain, _)| domain)
        .collect();
    let (mut sent, mut unknown, mut arrived_all_the_same) = (0, 0, 0);
    for n in 0..domains {
        let (name, state) = (name(n), states.get(&name(n)).map(String::as_str));
        let times = arrived.get(&name).copied().unwrap_or_default();
        match state {
            Some("sent") => {
                sent += 1;
                assert_eq!(times, 1, "{name} is said to be sent");
                assert!(!said.contains(name.as_str()), "{name} was unknown, and was sent");
            }
            Some("unknown") => {
                unknown += 1;
                arrived_all_the_same += times;
                assert!(times <= 1, "{name} arrived {times} times");
                assert!(said.contains(name.as_str()), "{name} is unknown, and nobody said so");
            }
            other => panic!("{name}: {other:?}"),
        }
    }
    println!(
        "{kills} kills, {at_writes} of them at a write, {hits} while reports went out; {at_the_kills} had gone by the last\n\
         {domains} domains: {sent} sent, each arrived once; {unknown} unknown, each said in the log, {arrived_all_the_same} of \
         them arrived once, none twice; 0 missing unsaid; {} s",
        begun.elapsed().as_secs()
    );
    assert_eq!(said.len(), unknown);
    assert!(unknown > 0, "no kill came between an intent and its outcome: the test shows too little");
}

fn number(variable: &str, default: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable}: `{text}` is no number")),
        Err(_) => default,
    }
}

fn name(n: u64) -> String {
    format!("d{n:05}.example")
}

fn fill(world: &World, domains: u64) {
    let day: Day = DAY.parse().unwrap();
    let store = EmbeddedStore::open(&world.folder().join("store"), Clock::default()).unwrap().store;
    let tally = |n| {
        let domain: Arc<str> = name(n).into();
        (TallyKey { day, policy: Policy::none(&domain).into(), domain, result: TallyResult::Success }, 7)
    };
    store.write(Batch { add: (0..domains).map(tally).collect(), set: Vec::new() }).unwrap();
}

/// The states of all reports, by domain, once none is open.
async fn over(program: &Program, world: &World) -> BTreeMap<String, String> {
    let begun = Instant::now();
    loop {
        let output = program.run(world, &["reports", "list", "--json"]).await.unwrap();
        let due: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let due = due.as_array().cloned().unwrap_or_default();
        let open = due.iter().filter(|due| due["next"].is_i64() || due["state"] == "attempting").count();
        if open == 0 && !due.is_empty() {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let states: BTreeMap<String, String> =
                due.iter().map(|due| (text(&due["domain"]), text(&due["state"]))).collect();
            assert_eq!(states.len(), due.len(), "a domain with two reports");
            return states;
        }
        let log = lab::daemon::tail(&world.folder().join("daemon.log"));
        assert!(begun.elapsed() < PATIENCE, "{open} of {} are open\n{log}", due.len());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

async fn until(holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "no report goes out");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Waits until something is written in the store, or a while.
fn wait_for_write(store: &Path) {
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC).unwrap();
    inotify::add_watch(&watch, store.join("embedded"), inotify::WatchFlags::MODIFY).unwrap();
    let mut ready = [PollFd::new(&watch, PollFlags::IN)];
    poll(&mut ready, Some(&Timespec { tv_sec: 1, tv_nsec: 0 })).unwrap();
}
