//! `kill -9` of the daemon at 50 random moments, and the counts of one undisturbed run.
//!
//! A log of 200,000 lines is written in bursts, rotated (rename + create, copytruncate) and packed; the policies of its
//! domains change five times, once at midnight; the daemon is killed while it reads, commits, starts, or
//! learns a new policy, and comes back at once or when much is unread; about half of the kills wait for the next write to the
//! store, for a commit is short. The test knows what each line brings
//! (`kill/script.rs`): after each kill, the store must hold exactly the counts of the lines up to its mark, and at the
//! end those of all lines, which are also what a second daemon comes to that reads the same log undisturbed.
//! `KILL_SEED=n` repeats a run (the moments of the kills are the host's); even seeds number the rotated files, odd ones
//! date them. `KILL_LINES` and `KILL_TIMES` make it longer. On failure the folder is kept and named.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use hickory_proto::rr::RecordType;
use jiff::Timestamp;
use lab::daemon::{Daemon, Program};
use lab::https::Answer;
use lab::socketmap;
use lab::world::{Domain, Options, Server, Tlsa, World};
use tlswarden::base::clock::Clock;
use tlswarden::base::tlsrpt::{TallyKey, TallyResult, TallyRow};
use tlswarden::counting::input::Position;
use tlswarden::store::embedded::EmbeddedStore;
use tlswarden::store::{Store, Table};
use tokio::sync::oneshot;
use tokio::task::{JoinSet, spawn_blocking};

use log::{Order, Rotation, Time, Written};
use random::SplitMix64;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use rustix::process::{Signal, kill_process};
use script::{Kind, Ledger, Place, Published};

#[path = "kill/log.rs"]
mod log;
#[path = "../../random/mod.rs"]
mod random;
#[path = "kill/script.rs"]
mod script;

const LINES: u64 = 200_000;
const KILLS: u64 = 50;
/// How many must have hit while lines were unread or uncommitted, in percent of these. A host that reads faster than the
/// kills come gets more of them, up to twice as many.
const HITS: u64 = 80;

const PHASES: usize = 6;
/// When the first phase begins; the fourth begins at midnight.
const BEGIN: &str = "2026-11-22T22:45:00Z";
/// From one phase to the next, in seconds: longer than a decision stands unasked (20 min), shorter than a session (1 h).
const PHASE: i64 = 25 * 60;

/// How soon a decision that was answered is durable.
const DURABLE: Duration = Duration::from_secs(1);
/// How long an answer or the end of the log may be waited for.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_loses_nothing_and_counts_nothing_twice() {
    let seed = number("KILL_SEED", 1);
    let (lines, kills) = (number("KILL_LINES", LINES), number("KILL_TIMES", KILLS));
    println!("KILL_SEED={seed} KILL_LINES={lines} KILL_TIMES={kills}");
    let begun = Instant::now();

    let mut run = Run::start("killed", seed).await;
    let mut phase_kills: Vec<u64> = (0..PHASES as u64).map(|p| kills * (p + 1) / 6 - kills * p / 6).collect();
    for (phase, kills) in phase_kills.iter_mut().enumerate() {
        let quota = lines * (phase as u64 + 1) / PHASES as u64;
        run.phase(phase, *kills, quota).await;
    }
    run.end().await;
    let (written, disturbed) = (Arc::clone(&run.written), run.counts());
    let (hits, done) = (run.hits, run.kills);
    println!(
        "{done} kills, {hits} of them with lines unread or uncommitted (octets: {:?}); {} files; {} s",
        run.unread,
        written.files(),
        begun.elapsed().as_secs()
    );
    assert!(done >= kills);
    assert!(hits * 100 >= kills * HITS, "only {hits} of {kills} kills hit the reading: the test shows too little");
    let total = written.octets.load(Ordering::SeqCst);
    let model = flat(written.ledger.lock().unwrap().until(total));
    let sessions: u64 = model.iter().filter(|((.., what), _)| !what.starts_with("how: ")).map(|(_, n)| n).sum();
    println!("{total} octets, {sessions} sessions in {} rows of counts", model.len());
    run.same("the killed daemon", &model, &disturbed);

    let mut calm = Run::start("undisturbed", seed).await;
    let text = written.text.lock().unwrap().clone();
    calm.undisturbed(&text).await;
    calm.same("the undisturbed daemon", &model, &calm.counts());
    calm.same("the killed daemon beside the undisturbed one", &calm.counts(), &disturbed);
    for run in [run, calm] {
        fs::remove_dir_all(run.world.folder()).unwrap();
    }
    println!("equal after {} s", begun.elapsed().as_secs());
}

fn number(variable: &str, default: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable}: `{text}` is no number")),
        Err(_) => default,
    }
}

/// A daemon in a world of its own, and the log that it follows.
struct Run {
    program: Program,
    world: World,
    places: Arc<Vec<Place>>,
    time: Arc<Time>,
    random: SplitMix64,
    orders: mpsc::Sender<Order>,
    written: Arc<Written>,
    daemon: Option<Daemon>,
    kills: u64,
    /// Kills that were planned so far; more follow where they hit nothing.
    planned: u64,
    hits: u64,
    /// Octets that were unread or uncommitted, by kill.
    unread: Vec<u64>,
    looks: JoinSet<Result<u64, String>>,
}

impl Run {
    async fn start(what: &str, seed: u64) -> Run {
        let places = Arc::new(script::places());
        let domains: Vec<Domain> = places.iter().filter(|p| p.kind != Kind::Unasked).map(domain).collect();
        let mut world = World::start(Options { postfix: "3.10".into(), ..Options::default() }, &domains).await.unwrap();
        // Removed at the end, if all is well.
        world.keep_folder();
        println!("{what}: {}", world.folder().display());
        let (time, written) = (Arc::new(Time::default()), Arc::new(Written::default()));
        let (orders, _) = log::start(&world.log(), seed, Arc::clone(&places), Arc::clone(&time), Arc::clone(&written));
        Run {
            program: Program::lab(env!("CARGO_BIN_EXE_lab")),
            world,
            places,
            time,
            random: SplitMix64(seed ^ 0xD1CE),
            orders,
            written,
            daemon: None,
            kills: 0,
            planned: 0,
            hits: 0,
            unread: Vec::new(),
            looks: JoinSet::new(),
        }
    }

    /// New policies, their lines, and so many kills in between; `quota` lines have been written in all at its end.
    async fn phase(&mut self, phase: usize, kills: u64, quota: u64) {
        self.publish(phase);
        self.time.set(begin(phase));
        self.order(Order::Phase(phase));
        let last = self.kills + kills;
        self.planned += kills;
        if phase > 0 {
            // While it learns the new policies and reads what was left unread of the phase before.
            self.spawn();
            let moment = Duration::from_millis(self.random.below(400));
            let _ = tokio::time::timeout(moment, self.ask_until(phase)).await;
            self.kill().await;
        }
        self.spawn();
        self.ask_until(phase).await;
        tokio::time::sleep(DURABLE).await;
        while self.short_of(last).await {
            let over = self.write_on(quota, last.saturating_sub(self.kills)).await;
            let begun = Instant::now();
            if self.daemon.is_none() {
                self.spawn();
                if self.kills + 1 < last && self.random.below(6) == 0 {
                    // Before it is ready.
                    tokio::time::sleep(Duration::from_millis(self.random.below(150))).await;
                    self.kill().await;
                    self.spawn();
                }
                self.ask_once(phase).await;
            }
            // Any moment while more is being written; on a slow host that may be over.
            let left = over.saturating_sub(u64::try_from(begun.elapsed().as_millis()).unwrap());
            let moment = self.random.below(left + 1);
            tokio::time::sleep(Duration::from_millis(moment)).await;
            match self.random.below(2) {
                0 => self.kill().await,
                _ => self.kill_at_a_write().await,
            }
            match self.random.below(6) {
                // Packed while nobody reads; much is unread at the start.
                0..=2 => {
                    self.order(Order::Pack);
                    self.lines().await;
                }
                // Packed while it starts.
                3 => self.order(Order::Pack),
                _ => {}
            }
        }
        // Unread when the next phase begins.
        let left = quota.saturating_sub(self.lines().await);
        self.order(Order::UpTo(quota.saturating_sub(left / 2)));
        if self.random.below(2) == 0 {
            self.order(Order::Rotate(Rotation::Rename(0)));
        }
        self.order(Order::UpTo(quota));
        self.lines().await;
    }

    /// Whether more kills are wanted: up to `last`, and beyond it while too few have hit.
    async fn short_of(&mut self, last: u64) -> bool {
        if self.kills < last {
            return true;
        }
        while let Some(look) = self.looks.join_next().await {
            self.hit(look.unwrap());
        }
        self.hits * 100 < self.planned * HITS && self.kills < 2 * self.planned
    }

    /// Orders the lines until the next kill, some of them about a rotation. Returns how long they take, in milliseconds.
    async fn write_on(&mut self, quota: u64, kills: u64) -> u64 {
        let left = quota.saturating_sub(self.lines().await) / (kills + 2);
        let lines = left / 2 + self.random.below(left + 1);
        let over = 700 + self.random.below(600);
        let rotation = match self.random.below(8) {
            0 | 1 => Some(Rotation::Rename(self.random.below(3) * lines / 8)),
            2 | 3 => Some(Rotation::CopyTruncate),
            _ => None,
        };
        // Before, within or after the burst.
        let before = over * self.random.below(3) / 2;
        if before > 0 {
            self.order(Order::Burst(lines * before / over, Duration::from_millis(before)));
        }
        if let Some(rotation) = rotation {
            self.order(Order::Rotate(rotation));
        }
        if before < over {
            self.order(Order::Burst(lines * (over - before) / over, Duration::from_millis(over - before)));
        }
        over
    }

    /// The rest of every story, read to the end.
    async fn end(&mut self) {
        self.order(Order::Finish);
        self.lines().await;
        self.spawn();
        self.read_to_the_end().await;
        while let Some(look) = self.looks.join_next().await {
            self.hit(look.unwrap());
        }
    }

    /// Reads a log without any disturbance, with the policies of each phase learnt before.
    async fn undisturbed(&mut self, text: &[u8]) {
        for phase in 0..PHASES {
            self.publish(phase);
            self.time.set(begin(phase) - 60);
            self.spawn();
            self.ask_until(phase).await;
            self.daemon.take().unwrap().stop().await.unwrap();
        }
        self.time.set(begin(PHASES - 1) + 60);
        fs::write(self.world.log(), text).unwrap();
        self.written.text.lock().unwrap().extend_from_slice(text);
        self.written.octets.store(text.len() as u64, Ordering::SeqCst);
        self.spawn();
        self.read_to_the_end().await;
    }

    fn order(&self, order: Order) {
        self.orders.send(order).expect("the writer runs");
    }

    /// How many lines have been written, once all orders have been obeyed.
    async fn lines(&self) -> u64 {
        let (tell, told) = oneshot::channel();
        self.order(Order::Tell(tell));
        told.await.expect("the writer runs")
    }

    fn publish(&self, phase: usize) {
        let mut zone = self.world.dns.change();
        for place in self.places.iter() {
            match place.published(phase) {
                Published::Nothing => {}
                Published::Sts { id, lines, .. } => {
                    zone.txt(&format!("_mta-sts.{}", place.name), &format!("v=STSv1; id={id};"));
                    let document = lines.iter().fold(String::new(), |text, line| text + line + "\r\n");
                    self.world.policy_hosts.answer(&place.name, Answer::Document(document));
                }
                Published::Tlsa { digest } => {
                    for host in ["mx", "mx2"].map(|label| place.host(label)) {
                        zone.remove(&format!("_25._tcp.{host}"), RecordType::TLSA);
                        zone.tlsa(&host, 3, 1, 1, &digest);
                    }
                }
            }
        }
    }

    fn spawn(&mut self) {
        let clock = Timestamp::from_second(self.time.now()).unwrap().to_string();
        self.world.configure(Some(&clock)).unwrap();
        self.daemon = Some(Daemon::spawn(&self.program, &self.world).unwrap());
    }

    /// Kills the daemon.
    async fn kill(&mut self) {
        let written = self.written.octets.load(Ordering::SeqCst);
        self.killed(written).await;
    }

    /// Kills the daemon just when it has begun to write to its store: few moments last so short and matter so much.
    async fn kill_at_a_write(&mut self) {
        let (id, store, all) = (self.daemon().id(), self.world.folder().join("store"), Arc::clone(&self.written));
        let id = id.expect("it has not been waited for");
        let delay = Duration::from_micros(self.random.below(300));
        let written = spawn_blocking(move || {
            wait_for_write(&store);
            let since = Instant::now();
            while since.elapsed() < delay {
                std::hint::spin_loop();
            }
            let written = all.octets.load(Ordering::SeqCst);
            kill_process(id, Signal::KILL).expect("it can be killed");
            written
        });
        let written = written.await.unwrap();
        self.killed(written).await;
    }

    /// Has the store of a killed daemon looked at as it is on the disk.
    async fn killed(&mut self, written: u64) {
        self.daemon.take().expect("it runs").kill().await.unwrap();
        self.kills += 1;
        let (number, store, all) = (self.kills, self.world.folder().join("store"), Arc::clone(&self.written));
        let copy = self.world.folder().join(format!("store-at-kill-{number}"));
        if store.exists() {
            copy_folder(&store, &copy);
        }
        self.looks.spawn(async move {
            let look = spawn_blocking(move || {
                let position = look(&copy, &all).map_err(|e| format!("kill {number}: {}: {e}", copy.display()))?;
                let _ = fs::remove_dir_all(&copy);
                Ok(written.saturating_sub(position))
            });
            look.await.unwrap_or_else(|e| Err(e.to_string()))
        });
        while let Some(look) = self.looks.try_join_next() {
            self.hit(look.unwrap());
        }
    }

    fn hit(&mut self, unread: Result<u64, String>) {
        let unread = unread.unwrap_or_else(|e| panic!("{e}"));
        self.hits += u64::from(unread > 0);
        self.unread.push(unread);
    }

    fn daemon(&mut self) -> &mut Daemon {
        self.daemon.as_mut().expect("it runs")
    }

    fn asked(&self) -> impl Iterator<Item = &Place> {
        self.places.iter().filter(|place| place.kind != Kind::Unasked)
    }

    async fn ask(&mut self, place: &str) -> String {
        let begun = Instant::now();
        loop {
            match socketmap::ask(&self.world.socketmap(), "policy-tlsrpt", place).await {
                Ok(answer) if !answer.starts_with("TEMP ") => return answer,
                // Postfix defers the mail and asks again.
                other => assert!(begun.elapsed() < PATIENCE, "no answer about {place}: {other:?}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Asks about every domain until the answers are those of the phase.
    async fn ask_until(&mut self, phase: usize) {
        self.daemon.as_mut().expect("it runs").ready(&self.world).await.unwrap();
        let places: Vec<Place> = self.asked().cloned().collect();
        for place in places {
            let begun = Instant::now();
            loop {
                let answer = self.ask(&place.name).await;
                if place.answered(phase, &answer) {
                    break;
                }
                assert!(begun.elapsed() < PATIENCE, "{} in phase {phase}: still `{answer}`", place.name);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    /// Asks about every domain once: what was durable is answered at once.
    async fn ask_once(&mut self, phase: usize) {
        self.daemon.as_mut().expect("it runs").ready(&self.world).await.unwrap();
        let places: Vec<Place> = self.asked().cloned().collect();
        for place in places {
            let answer = self.ask(&place.name).await;
            assert!(place.answered(phase, &answer), "{} in phase {phase} after a kill: `{answer}`", place.name);
        }
    }

    /// Waits until all is read, ends the daemon, and makes sure that its mark is at the end.
    async fn read_to_the_end(&mut self) {
        self.daemon.as_mut().expect("it runs").ready(&self.world).await.unwrap();
        let begun = Instant::now();
        loop {
            let status = self.program.run(&self.world, &["status", "--json"]).await.unwrap();
            let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap_or_default();
            let input = &status["inputs"][self.world.log().to_string_lossy().as_ref()];
            if input["at-end-since"].is_i64() && input["behind"] == 0 {
                break;
            }
            assert!(begun.elapsed() < PATIENCE, "the log is not read to its end: {status:#}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        self.daemon.take().unwrap().stop().await.unwrap();
    }

    /// What the daemon's store holds, and that it has read everything.
    fn counts(&self) -> Counts {
        let folder = self.world.folder().join("store");
        let opened = EmbeddedStore::open(&folder, Clock::default()).unwrap();
        assert!(opened.moved_aside.is_none(), "{:?}", opened.moved_aside);
        stored(&opened.store)
    }

    /// Panics with the rows that differ.
    fn same(&self, who: &str, wanted: &Counts, found: &Counts) {
        if let Some(difference) = difference(wanted, found) {
            panic!("{who} ({}):\n{difference}", self.world.folder().display());
        }
    }
}

fn begin(phase: usize) -> i64 {
    BEGIN.parse::<Timestamp>().unwrap().as_second() + PHASE * phase as i64
}

fn domain(place: &Place) -> Domain {
    let domain = Domain::new(&place.name);
    match place.kind {
        Kind::Rolls => {
            let host = |domain: Domain, label| domain.dane_host(label, Server::Sound, Tlsa::Matching);
            host(host(domain.signed(), "mx"), "mx2")
        }
        Kind::Plain | Kind::Unasked => domain.host("mx", Server::Sound).host("mx2", Server::Sound),
        Kind::Enforces | Kind::Moves | Kind::Stays => {
            domain.host("mx", Server::Sound).host("mx2", Server::Sound).sts("enforce", "mx")
        }
    }
}

/// Counts by day, domain, policy and what is counted.
type Counts = BTreeMap<(String, String, String, String), u64>;

fn flat(counts: impl Iterator<Item = (TallyKey, u64)>) -> Counts {
    let mut flat = Counts::new();
    for (tally, n) in counts {
        let what = match &tally.result {
            TallyResult::Success => "successful".to_owned(),
            TallyResult::Failure => "failed".to_owned(),
            TallyResult::NullSender => "null sender".to_owned(),
            TallyResult::Detail(failure) => format!("how: {}", serde_json::to_string(failure).unwrap()),
        };
        let policy = serde_json::to_string(&*tally.policy).unwrap();
        *flat.entry((tally.day.to_string(), tally.domain.to_string(), policy, what)).or_default() += n;
    }
    flat
}

fn stored(store: &EmbeddedStore) -> Counts {
    let mut flat = Counts::new();
    let days = store.days().unwrap();
    let rows = days.into_iter().flat_map(|day| {
        let domains = store.domains(day).unwrap();
        domains.into_iter().flat_map(move |domain| store.rows(day, &domain).unwrap())
    });
    for TallyRow { day, domain, policy, successful, failed, null_sender, details } in rows {
        let policy = serde_json::to_string(&policy).unwrap();
        let details = details.into_iter().map(|(f, n)| (format!("how: {}", serde_json::to_string(&f).unwrap()), n));
        let totals = [("successful", successful), ("failed", failed), ("null sender", null_sender)];
        for (what, n) in totals.map(|(what, n)| (what.to_owned(), n)).into_iter().chain(details) {
            if n > 0 {
                flat.insert((day.to_string(), domain.clone(), policy.clone(), what), n);
            }
        }
    }
    flat
}

fn difference(wanted: &Counts, found: &Counts) -> Option<String> {
    let keys: std::collections::BTreeSet<_> = wanted.keys().chain(found.keys()).collect();
    let mut text = String::new();
    for key in keys {
        let of = |counts: &Counts| counts.get(key).copied().unwrap_or(0);
        if of(wanted) != of(found) {
            let (day, domain, policy, what) = key;
            let _ = writeln!(text, "{} instead of {}: {day} {domain} {what} under {policy}", of(found), of(wanted));
        }
    }
    (!text.is_empty()).then_some(text)
}

/// Compares a store with the model: the counts are those of the lines up to the mark. Returns how far that is.
fn look(folder: &Path, written: &Written) -> Result<u64, String> {
    if !folder.exists() {
        return Ok(0);
    }
    let opened = EmbeddedStore::open(folder, Clock::default()).map_err(|e| e.to_string())?;
    if let Some(lost) = opened.moved_aside {
        return Err(format!("the store was lost: {lost:?}"));
    }
    let marks = opened.store.scan(Table::Position, b"").map_err(|e| e.to_string())?;
    let position = match &marks[..] {
        [] => 0,
        [(_, mark)] => {
            let mark = Position::decode(mark).map_err(|e| e.to_string())?;
            written.position(&mark).ok_or_else(|| format!("{mark:?} is nowhere in the log"))?
        }
        more => return Err(format!("{} marks", more.len())),
    };
    let model = flat(Ledger::until(&written.ledger.lock().unwrap(), position));
    match difference(&model, &stored(&opened.store)) {
        None => Ok(position),
        Some(difference) => Err(format!("the mark is at octet {position}, and the counts are not:\n{difference}")),
    }
}

/// Waits until something is written in the store, or a while.
fn wait_for_write(store: &Path) {
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC).unwrap();
    inotify::add_watch(&watch, store.join("embedded"), inotify::WatchFlags::MODIFY).unwrap();
    let mut ready = [PollFd::new(&watch, PollFlags::IN)];
    poll(&mut ready, Some(&Timespec { tv_sec: 1, tv_nsec: 0 })).unwrap();
}

/// Files only: a store's folder has folders of blobs at most.
fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path: PathBuf = entry.unwrap().path();
        let copy = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_folder(&path, &copy);
        } else {
            fs::copy(&path, &copy).unwrap();
        }
    }
}
