//! The counting river: lines become events, sessions, tallies, and one commit.
//!
//! Takes: blocks of lines from the inputs. Gives: commits to the store: the counts, the marks of the lines that they came
//! from, and the open state, in one batch. What is committed is counted, what is not is read again: nothing twice.
//! Limits: a commit at most `COMMIT` after its first line, or as soon as an input is at its end.
//! When it fails: a store that does not write is tried again, and reading waits; the log file is the queue.
//! Not here: reading (`input`), what lines come to (`counter`), what the store does with a batch (`store`).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tlswarden_parsers::Dialect;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};

use crate::base::clock::Clock;
use crate::base::exim_event::{EventReply, EximEvent};
use crate::base::own_reports::OwnQueueIds;
use crate::base::policy_at::PolicyAt;
use crate::base::shutdown::wait_for_shutdown;
use crate::counting::counter::CALENDAR;
pub use crate::counting::counter::{Counter, OwnReports, Seen, is_of};
use crate::counting::duplicate_inputs::Twice;
use crate::counting::failure_notices::Failing;
use crate::counting::input::datagram::{DatagramBatch, DatagramQueue};
use crate::counting::input::{LineBlock, MAX_LINE, Position};
use crate::counting::session::{SESSION_TIMEOUT, Uncounted};
use crate::metrics::{InputProgress, Metrics};
use crate::store::{Batch, Store, StoreError, StoredRecord, Table};

/// How long a line may wait for its commit: few enough commits for a disk, soon enough for a report.
const COMMIT: Duration = Duration::from_millis(250);

/// How long to wait before a commit that failed is tried again; twice as long each time, up to the second figure.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_AT_MOST: Duration = Duration::from_secs(60);

/// How often a trouble with an input as a whole is said, in seconds.
const SAY_AGAIN: i64 = 3600;

/// How far a line may be ahead of the clock, in seconds, before that is said: clocks of two hosts differ by less.
const FUTURE: i64 = 600;

/// One input of the river.
pub struct Source {
    /// Its name, under which its mark and open state are stored.
    pub name: String,
    /// Its counter.
    pub counter: Counter,
}

/// What inputs hand to the river; the number is the input's.
pub enum Fed {
    /// A new input, before its first block.
    Source(usize, Box<Source>),
    /// A new input whose datagrams come by the queue: none may be put there until it is said that the input is known.
    Receiver(usize, Box<Source>, oneshot::Sender<()>),
    /// What it has read.
    Block(usize, LineBlock),
}

/// What the river writes to, and looks up.
pub struct River {
    /// Where commits go.
    pub store: Arc<dyn Store>,
    /// Which policy was in force.
    pub policies: Box<dyn PolicyAt + Send>,
    /// Where the domains go to which a session failed under an MTA-STS policy: perhaps a newer one is published
    /// (RFC 8461 §5.1). Never waited for: what does not fit is left out.
    pub hints: mpsc::Sender<Arc<str>>,
    /// The datagrams that wait.
    pub datagrams: Arc<DatagramQueue>,
    /// Queue ids of our own reports that are on their way here.
    pub queued: OwnQueueIds,
    /// Where progress is shown.
    pub metrics: Metrics,
    /// The time of reading.
    pub clock: Clock,
}

/// What is waiting for its commit.
#[derive(Default)]
struct Pending {
    since: Option<Instant>,
    marks: HashMap<usize, Position>,
    failing: Failing,
    events: Vec<oneshot::Sender<EventReply>>,
}

/// The inputs, and what has been noticed of them.
#[derive(Default)]
struct Inputs {
    sources: HashMap<usize, Source>,
    twice: Twice,
    /// When a trouble was last said, by input.
    said: HashMap<String, i64>,
}

struct Closing<'a>(&'a DatagramQueue);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl River {
    /// Counts blocks and datagrams until the inputs have ended or `shutdown` turns true; what was taken by then is
    /// committed. Blocks the thread that it runs on.
    pub fn run(
        self,
        runtime: &Handle,
        mut feed: mpsc::Receiver<Fed>,
        mut events: mpsc::Receiver<EximEvent>,
        mut shutdown: watch::Receiver<bool>,
    ) -> Result<(), StoreError> {
        enum Next {
            Fed(Option<Fed>),
            Event(EximEvent),
            Datagrams,
            Nothing,
        }
        // However this ends, the receivers end as well.
        let _closing = Closing(&self.datagrams);
        let mut pending = Pending::default();
        let mut inputs = Inputs::default();
        let mut taken = DatagramBatch::default();
        loop {
            self.metrics.heartbeat("counting");
            let wait = pending.since.map_or(COMMIT, |since| COMMIT.saturating_sub(since.elapsed()));
            let next = runtime.block_on(async {
                tokio::select! {
                    () = self.datagrams.ready() => Next::Datagrams,
                    fed = feed.recv() => Next::Fed(fed),
                    Some(event) = events.recv() => Next::Event(event),
                    () = tokio::time::sleep(wait) => Next::Nothing,
                }
            });
            let ended = matches!(next, Next::Fed(None));
            let ending = ended || *shutdown.borrow();
            let mut due = ending;
            // Before the next lines, for they may be of such a report.
            self.queued(&mut inputs, &mut pending);
            // First, for a datagram is sent before the log has the delivery.
            taken = self.datagrams.take(taken);
            self.received(&mut inputs, &taken, &mut pending);
            match next {
                Next::Fed(Some(fed)) => due |= self.fed(&mut inputs, fed, &mut pending),
                Next::Event(event) => self.event_action(&mut inputs, event, &mut pending),
                Next::Fed(None) | Next::Datagrams => {}
                Next::Nothing => self.idle(&mut inputs, &mut pending),
            }
            if ending {
                // What is on its way has left its source, and may be nowhere else.
                self.datagrams.close();
                taken = self.datagrams.take(taken);
                self.received(&mut inputs, &taken, &mut pending);
                feed.close();
                while let Some(fed) = runtime.block_on(feed.recv()) {
                    self.fed(&mut inputs, fed, &mut pending);
                }
            }
            due |= pending.since.is_some_and(|since| since.elapsed() >= COMMIT);
            if due && pending.since.is_some() {
                self.commit(runtime, &mut inputs.sources, &mut pending, &mut shutdown)?;
            }
            if ending {
                return Ok(());
            }
        }
    }

    /// Hands what Exim's event action reports to the sessions of its log, where it is kept and held against the lines.
    fn event_action(&self, inputs: &mut Inputs, event: EximEvent, pending: &mut Pending) {
        let Some(read) = tlswarden_parsers::parse_event_action(&event.text) else {
            // Who asked may have gone.
            let _ = event.reply.send(EventReply::Malformed);
            return;
        };
        let mut exim = inputs.sources.values_mut().filter(|source| source.counter.dialect() == Dialect::Exim);
        match (exim.next(), exim.next()) {
            (Some(source), None) => {
                source.counter.event_action(&read);
                pending.events.push(event.reply);
                pending.since.get_or_insert_with(Instant::now);
            }
            // Without its log nothing is known of the same message, and of two logs not which is its own.
            // The readsocket reports a dropped reply as lost.
            _ => drop(event.reply),
        }
    }

    /// Hands the queue ids of our own reports to every input: which one has the MTA's lines is not known.
    fn queued(&self, inputs: &mut Inputs, pending: &mut Pending) {
        let now = self.clock.seconds();
        for id in self.queued.take() {
            inputs.sources.values_mut().for_each(|source| source.counter.carries_own(&id, now));
            pending.since.get_or_insert_with(Instant::now);
        }
    }

    /// Takes what an input hands on; whether it is at its end.
    fn fed(&self, inputs: &mut Inputs, fed: Fed, pending: &mut Pending) -> bool {
        match fed {
            Fed::Source(number, source) => {
                inputs.sources.insert(number, *source);
                false
            }
            Fed::Receiver(number, source, known) => {
                inputs.sources.insert(number, *source);
                // Who asked may have ended already.
                let _ = known.send(());
                false
            }
            Fed::Block(number, block) => {
                let at_end = block.at_end;
                self.block(inputs, block, number, pending);
                at_end
            }
        }
    }

    fn block(&self, inputs: &mut Inputs, block: LineBlock, number: usize, pending: &mut Pending) {
        let now = self.clock.seconds();
        // Invariant: an input feeds its source before its first block.
        let source = inputs.sources.get_mut(&number).expect("an input is known before its blocks");
        source.counter.lines(&block.lines, now, &*self.policies);
        self.tell(source, block.skipped, |p| {
            p.at_end_since = block.at_end.then_some(now);
            p.behind = block.bytes_behind;
        });
        let delivered = source.counter.delivered();
        let wrong = wrong_with(source, block.skipped, now);
        let name = source.name.clone();
        pending.marks.insert(number, block.position);
        pending.since.get_or_insert_with(Instant::now);
        for (what, line) in wrong {
            self.trouble(inputs, &name, what, line, now);
        }
        if inputs.sources.len() > 1
            && let Some(other) = inputs.twice.note(number, &delivered)
            && let Some(other) = inputs.sources.get(&other).map(|source| source.name.clone())
        {
            let line = format!(
                "input {name}: it has the same lines as input {other}; every session in both is counted twice: remove \
                 one of the two"
            );
            self.trouble(inputs, &name, "twice", line, now);
        }
    }

    /// Counts datagrams that were taken from the queue.
    fn received(&self, inputs: &mut Inputs, taken: &DatagramBatch, pending: &mut Pending) {
        if taken.is_empty() {
            return;
        }
        let now = self.clock.seconds();
        let mut touched: Vec<usize> = Vec::new();
        for (number, at, octets) in taken.iter() {
            // Invariant: what a receiver puts into the queue comes after its input is known.
            let source = inputs.sources.get_mut(&number).expect("an input is known before its datagrams");
            source.counter.datagram(octets, at, &*self.policies);
            if !touched.contains(&number) {
                touched.push(number);
            }
        }
        for (number, lost) in taken.lost() {
            self.metrics.add("datagrams-lost", *lost);
            if let Some(name) = inputs.sources.get(number).map(|source| source.name.clone()) {
                let line =
                    format!("input {name}: {lost} datagrams dropped: too many wait; those sessions are not counted");
                self.trouble(inputs, &name, "lost", line, now);
            }
        }
        for number in touched {
            let Some(source) = inputs.sources.get_mut(&number) else { continue };
            self.tell(source, 0, |p| p.at_end_since = Some(now));
            pending.since.get_or_insert_with(Instant::now);
        }
    }

    /// Shows what came of an input, and hands its hints on.
    fn tell(&self, source: &mut Source, skipped: u64, more: impl FnOnce(&mut InputProgress)) {
        for domain in source.counter.failed() {
            if self.hints.try_send(domain).is_err() {
                self.metrics.add("hints-dropped", 1);
            }
        }
        let (seen, losses) = source.counter.seen();
        let newest = source.counter.newest();
        self.metrics.update_input(&source.name, |p| {
            p.newest = newest;
            p.lines += seen.read;
            p.add_lines(&seen.lines);
            p.skipped += skipped;
            p.trouble = None;
            more(p);
        });
        self.count_losses(&seen, losses);
    }

    /// Says what is wrong with an input as a whole, once an hour for as long as it stands.
    fn trouble(&self, inputs: &mut Inputs, name: &str, what: &str, line: String, now: i64) {
        let last = inputs.said.entry(format!("{what} {name}")).or_insert(i64::MIN);
        if now.saturating_sub(*last) >= SAY_AGAIN {
            *last = now;
            self.metrics.log_error(self.clock, line.clone());
        }
        self.metrics.update_input(name, |p| p.trouble = Some(line));
    }

    /// Ends the sessions of inputs that have been at their end for long.
    fn idle(&self, inputs: &mut Inputs, pending: &mut Pending) {
        let now = self.clock.seconds();
        let progress = self.metrics.inputs();
        for source in inputs.sources.values_mut().filter(|s| !s.counter.is_idle()) {
            let since = progress.get(&source.name).and_then(|p| p.at_end_since);
            if since.is_some_and(|since| now - since >= SESSION_TIMEOUT) {
                source.counter.end(now, &*self.policies);
                let (seen, losses) = source.counter.seen();
                self.count_losses(&seen, losses);
                pending.since.get_or_insert_with(Instant::now);
            }
        }
    }

    fn commit(
        &self,
        runtime: &Handle,
        sources: &mut HashMap<usize, Source>,
        pending: &mut Pending,
        shutdown: &mut watch::Receiver<bool>,
    ) -> Result<(), StoreError> {
        let mut batch = Batch::default();
        for (number, source) in sources {
            batch.add.extend(source.counter.counts());
            for (key, value) in source.counter.changes() {
                batch.set.push((Table::OpenState, open_key(&source.name, &key), value));
            }
            if let Some(mark) = pending.marks.remove(number).filter(|mark| *mark != Position::Nowhere) {
                let mark = serde_json::to_vec(&mark).expect("plain structures always serialise");
                batch.set.push((Table::Position, source.name.clone().into_bytes(), Some(mark)));
            }
        }
        pending.since = None;
        for line in pending.failing.lines(&batch.add, self.clock.seconds()) {
            tracing::warn!("{line}");
        }
        let mut wait = RETRY;
        loop {
            self.metrics.heartbeat("counting");
            let Err(error) = self.store.write(batch.clone()) else {
                self.metrics.add("commits", 1);
                self.metrics.add_sessions(&batch.add);
                for reply in pending.events.drain(..) {
                    // Who asked may have gone.
                    let _ = reply.send(EventReply::Committed);
                }
                return Ok(());
            };
            if *shutdown.borrow() {
                return Err(error);
            }
            self.metrics
                .log_error(self.clock, format!("store: cannot write counts: {error}; reading waits, trying again"));
            let _ = runtime.block_on(async { tokio::time::timeout(wait, wait_for_shutdown(shutdown)).await });
            wait = (wait * 2).min(RETRY_AT_MOST);
        }
    }

    fn count_losses(&self, seen: &Seen, losses: Uncounted) {
        self.metrics.add("sessions-not-asked", seen.not_asked);
        self.metrics.add("sessions-contradicting", seen.contradicted);
        self.metrics.add("sessions-without-trust-anchors", seen.without_anchors);
        self.metrics.add("sessions-local", seen.local);
        self.metrics.add("sessions-left-to-datagrams", seen.left_to_native);
        self.metrics.add("datagrams-left-to-log", seen.left_to_log);
        self.metrics.add("sessions-without-domain", losses.without_domain);
        self.metrics.add("sessions-unmatched", losses.unmatched);
        self.metrics.add("sessions-crowded-out", losses.evicted);
        self.metrics.add("sessions-of-own-reports", losses.own_reports);
    }
}

/// What is wrong with an input as a whole after a block of it: its kind, and a line.
fn wrong_with(source: &Source, skipped: u64, now: i64) -> Vec<(&'static str, String)> {
    let (name, counter) = (&source.name, &source.counter);
    let mut wrong = Vec::new();
    if let Some(advice) = counter.hides_tls() {
        wrong.push(("level", format!("input {name}: many deliveries and no TLS session: {advice}")));
    }
    if counter.is_no_log() {
        let line = format!("input {name}: no log: no line of it begins with a time; nothing is counted from it");
        wrong.push(("no log", line));
    }
    if skipped > 0 {
        let line = format!("input {name}: a line of more than {MAX_LINE} octets: no log has any; it is not counted");
        wrong.push(("long", line));
    }
    if let Some(newest) = counter.newest().filter(|newest| *newest > now + FUTURE) {
        let ahead = (newest - now) / 60;
        let line = format!(
            "input {name}: its newest line is of the future, by {ahead} minutes: this host's clock went back, or \
             `timezone` is wrong; its lines count for the days that they name"
        );
        wrong.push(("future", line));
    }
    wrong
}

/// What a store keeps of an input: its mark, and the open state that belongs to it.
pub fn restore(store: &dyn Store, name: &str) -> Result<(Option<Position>, Vec<StoredRecord>), StoreError> {
    let mark = match store.read(Table::Position, name.as_bytes())? {
        None => None,
        Some(bytes) => Some(
            serde_json::from_slice(&bytes)
                .map_err(|e| StoreError::Corrupt(format!("store: the mark of {name} cannot be read: {e}")))?,
        ),
    };
    let prefix = open_key(name, b"");
    let open = store.scan(Table::OpenState, &prefix)?;
    Ok((mark, open.into_iter().map(|(key, value)| (key[prefix.len()..].to_vec(), value)).collect()))
}

/// The time of the newest line that was counted of an input.
pub fn newest(store: &dyn Store, name: &str) -> Result<Option<i64>, StoreError> {
    let stored = store.read(Table::OpenState, &open_key(name, CALENDAR))?;
    Ok(stored.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}

fn open_key(name: &str, key: &[u8]) -> Vec<u8> {
    [name.as_bytes(), b"\0", key].concat()
}
