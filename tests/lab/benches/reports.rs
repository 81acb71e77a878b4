//! What a day's reports cost a large host: 10,000 domains, a million sessions, five kinds of failure for each domain.
//!
//! `cargo bench -p lab --bench reports` (add `-- COUNT` for another number of domains). A daemon, a process of its own,
//! starts on a store that holds the counts of a closed day; it looks up each domain's record, builds, packs, signs (RSA
//! 2048 and Ed25519), writes down the intent and the outcome of each, and hands all to a sink. Then, in the same run, the
//! floor: the same messages signed once more with the same keys on two threads, and handed to the same sink by a bare
//! loop on one connection. Prints both, their ratio, the time to the first report and the daemon's memory.
//! Ends with an error unless each domain got one report and they sum to the counts.
//! Without `--bench` (`cargo test --benches`) there are few domains.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lab::daemon::{Daemon, Program};
use lab::report;
use lab::smtp::Mail;
use lab::world::{Options, World};
use tlswarden::base::clock::Clock;
use tlswarden::base::tlsrpt::{Day, Failure, Policy, PolicyType, ResultType, TallyKey, TallyResult};
use tlswarden::config::{Config, DkimKeySection};
use tlswarden::reporting::dkim::signer::Signer;
use tlswarden::store::embedded::EmbeddedStore;
use tlswarden::store::{Batch, Store};

const FULL: usize = 10_000;
const SHORT: usize = 200;

/// What is counted of each domain.
const SUCCESSFUL: u64 = 90;
const FAILED: [ResultType; 5] = [
    ResultType::CertificateExpired,
    ResultType::CertificateHostMismatch,
    ResultType::CertificateNotTrusted,
    ResultType::StarttlsNotSupported,
    ResultType::ValidationFailure,
];
const EACH: u64 = 2;

const DAY: &str = "2026-11-22";
const AFTER: &str = "2026-11-23T00:10:00Z";
/// Says that the log has been read past the day.
const NEXT_DAY: &str =
    "Nov 23 00:05:00 mta postfix/qmgr[1]: 0123456789A: from=<a@sender.test>, size=1, nrcpt=1 (queue active)\n";

/// How long all of it may take.
const PATIENCE: Duration = Duration::from_secs(600);

fn main() -> ExitCode {
    let count = if std::env::args().any(|arg| arg == "--bench") { FULL } else { SHORT };
    let count: usize = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(count);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let world = runtime.block_on(World::start(Options::default(), &[])).expect("a world");
    {
        let mut zone = world.dns.change();
        zone.ttl(3600);
        zone.cut("example", false);
        (0..count).for_each(|n| zone.txt(&format!("_smtp._tls.{}", name(n)), &record(n)));
    }
    world.configure(Some(AFTER)).expect("a configuration");
    fs::write(world.log(), NEXT_DAY).expect("a log");
    let filled = Instant::now();
    fill(&world, count);
    let sessions = count as u64 * (SUCCESSFUL + EACH * FAILED.len() as u64);
    println!(
        "{count} domains, {sessions} sessions, {} details each; the store filled in {:.1} s",
        FAILED.len(),
        filled.elapsed().as_secs_f64()
    );

    let program = Program::lab(env!("CARGO_BIN_EXE_lab"));
    let sink = world.submission();
    let began = Instant::now();
    let daemon = runtime.block_on(async { Daemon::spawn(&program, &world) }).expect("a daemon");
    let (mut ready, mut first, mut resident) = (None, None, 0.0_f64);
    let ours = loop {
        let taken = sink.taken();
        ready = ready.or_else(|| world.socketmap().exists().then(|| began.elapsed()));
        first = first.or_else(|| (taken > 0).then(|| began.elapsed()));
        resident = resident.max(memory(&daemon, "VmRSS:"));
        if taken >= count {
            break began.elapsed();
        }
        assert!(began.elapsed() < PATIENCE, "{taken} of {count} after {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(5));
    };
    // One too many would come now.
    std::thread::sleep(Duration::from_millis(500));
    let peak = memory(&daemon, "VmHWM:");
    runtime.block_on(daemon.stop()).expect("an orderly end");
    let mail = sink.record().mail;

    let messages: Vec<Vec<u8>> = mail.iter().map(|mail| unsigned(&mail.data)).collect();
    let signer = Arc::new(signer(&world));
    let (signing, signed) = timed(|| sign(&signer, &messages));
    let (handing, ()) = timed(|| hand_over(sink.address(), &mail, &signed));
    let floor = signing + handing;

    let (first, ready) = (first.unwrap_or_default(), ready.unwrap_or_default());
    println!("                                        seconds | reports/s");
    let line = |what: &str, time: Duration| {
        println!("{what:40}{:7.2} | {:9.0}", time.as_secs_f64(), count as f64 / time.as_secs_f64());
    };
    line("floor: signatures, two threads", signing);
    line("floor: bare SMTP loop, one connection", handing);
    line("floor", floor);
    line("daemon, from its start", ours);
    println!("ratio {:.2}", ours.as_secs_f64() / floor.as_secs_f64());
    println!(
        "first report {:.2} s after the start of the process, {:.2} s after it was ready",
        first.as_secs_f64(),
        first.saturating_sub(ready).as_secs_f64()
    );
    println!("resident {resident:.1} MB at most (peak {peak:.1} MB, the start included)");
    if all_there(count, &mail) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn name(n: usize) -> String {
    format!("destination-{n:05}.example")
}

fn record(n: usize) -> String {
    format!("v=TLSRPTv1; rua=mailto:tlsrpt@{}", name(n))
}

/// Puts the counts of a day into the daemon's store.
fn fill(world: &World, count: usize) {
    let day: Day = DAY.parse().expect("a day");
    let store = EmbeddedStore::open(&world.folder().join("store"), Clock::default()).expect("a store").store;
    for part in (0..count).collect::<Vec<_>>().chunks(1000) {
        let mut batch = Batch::default();
        for n in part {
            let domain: Arc<str> = name(*n).into();
            let policy = Arc::new(Policy {
                policy_type: PolicyType::Sts,
                policy_string: vec!["version: STSv1".into(), "mode: enforce".into(), format!("mx: mx.{domain}")],
                policy_domain: domain.to_string(),
                mx_host: vec![format!("mx.{domain}")],
            });
            let mut add = |counted, n| {
                batch.add.push((
                    TallyKey { day, domain: Arc::clone(&domain), policy: Arc::clone(&policy), result: counted },
                    n,
                ));
            };
            add(TallyResult::Success, SUCCESSFUL);
            add(TallyResult::Failure, EACH * FAILED.len() as u64);
            for kind in FAILED {
                let mut failure = Failure::new(kind, Some("as the log says"));
                failure.receiving_mx_hostname = Some(format!("mx.{domain}"));
                failure.receiving_ip = "192.0.2.1".parse().ok();
                add(TallyResult::Detail(failure), EACH);
            }
        }
        store.write(batch).expect("written");
    }
}

fn signer(world: &World) -> Signer {
    let config = Config::load(&world.config()).expect("a configuration");
    let keys: Vec<DkimKeySection> = world
        .keys
        .iter()
        .map(|key| DkimKeySection {
            selector: key.selector.to_owned(),
            domain: None,
            key: config.store.path.with_file_name(format!("{}.pem", key.selector)),
        })
        .collect();
    Signer::load(&keys, "sender.test").expect("keys")
}

/// The message as it was before it was signed.
fn unsigned(message: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.len());
    let (mut header, mut signature) = (true, false);
    for line in message.split_inclusive(|b| *b == b'\n') {
        header &= line != b"\r\n";
        signature = header
            && (line.starts_with(b"DKIM-Signature:")
                || signature && line.starts_with(b" ")
                || signature && line.starts_with(b"\t"));
        if !signature {
            out.extend_from_slice(line);
        }
    }
    out
}

fn sign(signer: &Signer, messages: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let (one, other) = messages.split_at(messages.len() / 2);
    let all = |part: &[Vec<u8>]| -> Vec<Vec<u8>> {
        part.iter().map(|message| signer.sign(message.clone()).expect("signed")).collect()
    };
    std::thread::scope(|scope| {
        let second = scope.spawn(|| all(other));
        let mut signed = all(one);
        signed.extend(second.join().expect("signed"));
        signed
    })
}

/// One message after the other, each reply waited for.
fn hand_over(to: SocketAddr, mail: &[Mail], messages: &[Vec<u8>]) {
    let stream = TcpStream::connect(to).expect("connected");
    stream.set_nodelay(true).expect("no delay");
    let (mut replies, mut stream) = (BufReader::new(stream.try_clone().expect("a copy")), stream);
    let mut reply = move |wanted: &str| {
        let mut line = String::new();
        while line.is_empty() || line.as_bytes().get(3) == Some(&b'-') {
            line.clear();
            replies.read_line(&mut line).expect("a reply");
        }
        assert!(line.starts_with(wanted), "{line}");
    };
    reply("220");
    let mut say = |text: &[u8], wanted: &str| {
        stream.write_all(text).expect("written");
        reply(wanted);
    };
    say(b"EHLO bench.test\r\n", "250");
    for (mail, message) in mail.iter().zip(messages) {
        say(format!("MAIL FROM:<{}>\r\n", mail.from).as_bytes(), "250");
        say(format!("RCPT TO:<{}>\r\n", mail.to[0]).as_bytes(), "250");
        say(b"DATA\r\n", "354");
        // No line of a report begins with a dot: base64 and header fields have none there.
        say(&[message, &b".\r\n"[..]].concat(), "250");
    }
}

fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let began = Instant::now();
    let done = work();
    (began.elapsed(), done)
}

/// Whether each domain got one report, with what was counted of it.
fn all_there(count: usize, mail: &[Mail]) -> bool {
    let mut reports: BTreeMap<String, u64> = BTreeMap::new();
    let mut right = true;
    for mail in mail {
        match report::read(&mail.data) {
            Ok(report) => {
                let totals = report.totals();
                let details: u64 = totals.details.iter().map(|(_, n)| n).sum();
                let failed = EACH * FAILED.len() as u64;
                right &= (totals.successful, totals.failed, details) == (SUCCESSFUL, failed, failed);
                *reports.entry(report.domain).or_default() += 1;
            }
            Err(faults) => {
                println!("not a report: {}", faults.join("; "));
                right = false;
            }
        }
    }
    let once = reports.len() == count && reports.values().all(|n| *n == 1);
    println!("{} reports for {} domains, sums {}", mail.len(), reports.len(), if right { "right" } else { "WRONG" });
    right && once
}

/// A line of the daemon's status in MB.
fn memory(daemon: &Daemon, field: &str) -> f64 {
    let id = daemon.id().map_or(0, |id| id.as_raw_nonzero().get());
    let text = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok()).map_or(0.0, |kib| kib / 1024.0)
}
