//! The counting task: lines become events, sessions, tallies, and one commit.
//!
//! Takes: blocks of lines from the inputs. Gives: commits to the store: the counts, the positions of the lines that they came
//! from, and the open state, in one batch. What is committed is counted, what is not is read again: nothing twice.
//! Limits: a commit begins at most `COMMIT_INTERVAL` after its first line, or as soon as an input is at its end, or when
//! the commit before it has ended.
//! While a commit is written the next lines are counted, at most [`MAX_PENDING_BLOCKS`] blocks: then reading waits, and the
//! log file is the queue.
//! Not here: reading (`input`), how lines are counted (`counter`), how a commit is written (`commit`).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tlswarden_parsers::Dialect;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::base::clock::Clock;
use crate::base::exim_event::{EventReply, EximEvent};
use crate::base::own_reports::{OwnQueueIds, OwnReportStatuses};
use crate::base::policy_at::PolicyAt;
use crate::counting::commit::{CommitWriter, MAX_PENDING_BLOCKS};
pub(crate) use crate::counting::counter::LineSample;
use crate::counting::counter::NEWEST_LINE_KEY;
pub(crate) use crate::counting::counter::PROGRAM_NAME_ADVICE;
pub use crate::counting::counter::{Counter, CounterStats};
use crate::counting::duplicate_inputs::DuplicateInputs;
use crate::counting::failure_notices::FailureNotices;
use crate::counting::input::datagram::{DatagramBatch, DatagramQueue};
use crate::counting::input::{LineBlock, MAX_LINE, Position, RepeatedLines};
use crate::counting::progress::UncommittedProgress;
use crate::counting::session::{SESSION_TIMEOUT, Uncounted};
use crate::metrics::Metrics;
use crate::store::{Batch, Store, StoreError, StoredRecord, Table};

/// How long a line may wait for its commit: few enough commits for a disk, soon enough for a report.
const COMMIT_INTERVAL: Duration = Duration::from_millis(250);

/// The most reports of Exim's event action that wait for a commit: further ones wait in their queue, which refuses more
/// once it is full.
const MAX_PENDING_EVENTS: usize = 64;

/// How often a problem with an input as a whole is logged, in seconds.
const PROBLEM_LOG_INTERVAL: i64 = 3600;

/// How long a line of the far future is reported after it was read, in seconds.
const FUTURE_LINE_TTL: i64 = 60;

/// How far a line may be ahead of the clock before that is logged, in seconds: clocks of two hosts differ by less.
const MAX_CLOCK_SKEW: i64 = 600;

/// An input with its counter.
pub struct CountedInput {
    /// Its name, under which its position and open state are stored.
    pub name: String,
    /// Its counter.
    pub counter: Counter,
}

/// What inputs send to the counting task; the number is the input's.
pub enum InputEvent {
    /// A new input, before its first block.
    LogInput(usize, Box<CountedInput>),
    /// A new input whose datagrams come by the queue: it may queue none until the sender confirms that the input is known.
    DatagramInput(usize, Box<CountedInput>, oneshot::Sender<()>),
    /// Lines that it has read.
    Block(usize, LineBlock),
}

/// The counting task, with what it writes to and looks up.
pub struct CountingTask {
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
    pub own_queue_ids: OwnQueueIds,
    /// Where it goes what the log says of our own reports.
    pub own_report_statuses: OwnReportStatuses,
    /// Where progress is shown.
    pub metrics: Metrics,
    /// The time of reading.
    pub clock: Clock,
}

/// The state that waits for the next commit.
#[derive(Default)]
struct PendingCommit {
    since: Option<Instant>,
    /// It is to be written as soon as no other is being written.
    due: bool,
    /// Blocks and batches of datagrams.
    blocks: usize,
    positions: HashMap<usize, Position>,
    progress: UncommittedProgress,
    failure_notices: FailureNotices,
    event_replies: Vec<oneshot::Sender<EventReply>>,
}

/// A commit that is being written.
struct CommitUnderWay {
    written: JoinHandle<Result<Batch, StoreError>>,
    event_replies: Vec<oneshot::Sender<EventReply>>,
}

/// The inputs by number, with what has been logged about them.
#[derive(Default)]
struct CountedInputs {
    by_number: HashMap<usize, CountedInput>,
    duplicates: DuplicateInputs,
    /// When a problem was last logged, by kind and input.
    last_logged: HashMap<String, i64>,
}

struct QueueCloser<'a>(&'a DatagramQueue);

impl Drop for QueueCloser<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl CountingTask {
    /// Counts blocks and datagrams until the inputs have ended or `shutdown` turns true; what was taken by then is
    /// committed. Blocks the thread that it runs on.
    pub fn run(
        self,
        runtime: &Handle,
        mut feed: mpsc::Receiver<InputEvent>,
        mut exim_events: mpsc::Receiver<EximEvent>,
        shutdown: watch::Receiver<bool>,
    ) -> Result<(), StoreError> {
        enum Wakeup {
            Input(Option<InputEvent>),
            EximEvent(EximEvent),
            Datagrams,
            Written(Result<Batch, StoreError>),
            Timeout,
        }
        // However this ends, the receivers end as well.
        let _closing = QueueCloser(&self.datagrams);
        let writer = CommitWriter::new(Arc::clone(&self.store), self.metrics.clone(), self.clock, shutdown.clone());
        let mut pending = PendingCommit::default();
        let mut under_way: Option<CommitUnderWay> = None;
        let mut inputs = CountedInputs::default();
        let mut batch = DatagramBatch::default();
        loop {
            if under_way.is_none() {
                self.metrics.heartbeat("counting");
            }
            let since = pending.since.filter(|_| under_way.is_none());
            let wait = since.map_or(COMMIT_INTERVAL, |since| COMMIT_INTERVAL.saturating_sub(since.elapsed()));
            let may_count = under_way.is_none() || pending.blocks < MAX_PENDING_BLOCKS;
            let may_take_event = pending.event_replies.len() < MAX_PENDING_EVENTS;
            let next = runtime.block_on(async {
                tokio::select! {
                    written = wait_until_written(&mut under_way) => Wakeup::Written(written),
                    () = self.datagrams.ready(), if may_count => Wakeup::Datagrams,
                    event = feed.recv(), if may_count => Wakeup::Input(event),
                    Some(event) = exim_events.recv(), if may_take_event => Wakeup::EximEvent(event),
                    () = tokio::time::sleep(wait) => Wakeup::Timeout,
                }
            });
            let ended = matches!(next, Wakeup::Input(None));
            let ending = ended || *shutdown.borrow();
            pending.due |= ending;
            // Before the next lines, for they may be of such a report.
            self.take_own_queue_ids(&mut inputs, &mut pending);
            if may_count {
                // First, for a datagram is sent before the log has the delivery.
                batch = self.datagrams.take(batch);
                self.count_datagrams(&mut inputs, &batch, &mut pending);
            }
            match next {
                Wakeup::Input(Some(event)) => pending.due |= self.take_input_event(&mut inputs, event, &mut pending),
                Wakeup::EximEvent(event) => self.handle_event_action(&mut inputs, event, &mut pending),
                Wakeup::Written(written) => self.end_commit(&mut under_way, written?, &mut pending),
                Wakeup::Input(None) | Wakeup::Datagrams => {}
                Wakeup::Timeout => self.end_idle_sessions(&mut inputs, &mut pending),
            }
            if ending {
                // What is on its way has left its source, and may be nowhere else.
                self.datagrams.close();
                batch = self.datagrams.take(batch);
                self.count_datagrams(&mut inputs, &batch, &mut pending);
                feed.close();
                while let Some(event) = runtime.block_on(feed.recv()) {
                    self.take_input_event(&mut inputs, event, &mut pending);
                }
                self.wait_for_commit(runtime, &mut under_way, &mut pending)?;
            }
            pending.due |= pending.since.is_some_and(|since| since.elapsed() >= COMMIT_INTERVAL);
            if pending.due && pending.since.is_some() && under_way.is_none() {
                under_way = Some(self.begin_commit(runtime, &writer, &mut inputs.by_number, &mut pending));
            }
            if ending {
                return self.wait_for_commit(runtime, &mut under_way, &mut pending);
            }
        }
    }

    /// Hands what Exim's event action reports to the sessions of its log, where it is kept and held against the lines.
    fn handle_event_action(&self, inputs: &mut CountedInputs, event: EximEvent, pending: &mut PendingCommit) {
        let Some(read) = tlswarden_parsers::parse_event_action(&event.text) else {
            // Who asked may have gone.
            let _ = event.reply.send(EventReply::Malformed);
            return;
        };
        let mut exim = inputs.by_number.values_mut().filter(|input| input.counter.dialect() == Dialect::Exim);
        match (exim.next(), exim.next()) {
            (Some(input), None) => {
                input.counter.handle_event_action(&read);
                pending.event_replies.push(event.reply);
                pending.since.get_or_insert_with(Instant::now);
            }
            // Without its log nothing is known of the same message, and of two logs not which is its own.
            // The readsocket reports a dropped reply as lost.
            _ => drop(event.reply),
        }
    }

    /// Hands the queue ids of our own reports to every input: which one has the MTA's lines is not known.
    fn take_own_queue_ids(&self, inputs: &mut CountedInputs, pending: &mut PendingCommit) {
        let now = self.clock.seconds();
        for id in self.own_queue_ids.take() {
            inputs.by_number.values_mut().for_each(|input| input.counter.add_own_queue_id(&id, now));
            pending.since.get_or_insert_with(Instant::now);
        }
    }

    /// Takes an event of an input; returns whether the input is at its end.
    fn take_input_event(&self, inputs: &mut CountedInputs, event: InputEvent, pending: &mut PendingCommit) -> bool {
        match event {
            InputEvent::LogInput(number, input) => {
                inputs.by_number.insert(number, *input);
                false
            }
            InputEvent::DatagramInput(number, input, known) => {
                inputs.by_number.insert(number, *input);
                // Who asked may have ended already.
                let _ = known.send(());
                false
            }
            InputEvent::Block(number, block) => {
                let at_end = block.at_end;
                self.count_block(inputs, block, number, pending);
                at_end
            }
        }
    }

    fn count_block(&self, inputs: &mut CountedInputs, block: LineBlock, number: usize, pending: &mut PendingCommit) {
        let now = self.clock.seconds();
        // Invariant: an input feeds its source before its first block.
        let input = inputs.by_number.get_mut(&number).expect("an input is known before its blocks");
        match block.repeated {
            RepeatedLines::AsBefore => {}
            RepeatedLines::Possible => input.counter.leave_out_counted_lines(),
            RepeatedLines::Excluded => input.counter.expect_new_lines(),
        }
        if block.lines_missing {
            input.counter.note_missing_lines();
        }
        input.counter.count_lines(&block.lines, now, &*self.policies);
        let skipped = self.publish_lines(input, block.skipped);
        pending.progress.add_block(&self.metrics, &input.name, &block, input.counter.newest_line_time());
        let delivered = input.counter.take_delivery_fingerprints();
        let problems = input_problems(input, skipped, now);
        let name = input.name.clone();
        pending.positions.insert(number, block.position);
        pending.blocks += 1;
        pending.since.get_or_insert_with(Instant::now);
        for (what, line) in problems {
            self.log_input_problem(inputs, &name, what, line, now);
        }
        // The first input too, whose blocks may come before the second one is known.
        if let Some(other) = inputs.duplicates.note(number, &delivered)
            && let Some(other) = inputs.by_number.get(&other).map(|input| input.name.clone())
        {
            let line = format!(
                "input {name}: it has the same lines as input {other}; every session in both is counted twice: remove \
                 one of the two"
            );
            self.log_input_problem(inputs, &name, "twice", line, now);
        }
    }

    /// Counts datagrams that were taken from the queue.
    fn count_datagrams(&self, inputs: &mut CountedInputs, batch: &DatagramBatch, pending: &mut PendingCommit) {
        if batch.is_empty() {
            return;
        }
        let now = self.clock.seconds();
        let mut touched: Vec<usize> = Vec::new();
        for (number, at, bytes) in batch.iter() {
            // Invariant: what a receiver puts into the queue comes after its input is known.
            let input = inputs.by_number.get_mut(&number).expect("an input is known before its datagrams");
            input.counter.count_datagram(bytes, at, &*self.policies);
            if !touched.contains(&number) {
                touched.push(number);
            }
        }
        for (number, lost) in batch.lost() {
            self.metrics.add("datagrams-lost", *lost);
            if let Some(name) = inputs.by_number.get(number).map(|input| input.name.clone()) {
                let line =
                    format!("input {name}: {lost} datagrams dropped: too many wait; those sessions are not counted");
                self.log_input_problem(inputs, &name, "lost", line, now);
            }
        }
        pending.blocks += 1;
        for number in touched {
            let Some(input) = inputs.by_number.get_mut(&number) else { continue };
            self.publish_lines(input, 0);
            pending.progress.add_datagrams(&self.metrics, &input.name, input.counter.newest_line_time());
            pending.since.get_or_insert_with(Instant::now);
        }
    }

    /// Publishes what was read of an input, and passes its hints on. Returns how many lines were too long: `skipped` by
    /// the reader, or once their parts were joined.
    fn publish_lines(&self, input: &mut CountedInput, skipped: u64) -> u64 {
        for domain in input.counter.take_failed_domains() {
            if self.hints.try_send(domain).is_err() {
                self.metrics.add("hints-dropped", 1);
            }
        }
        let (stats, uncounted) = input.counter.take_stats();
        let skipped = skipped + stats.lines_too_long;
        self.metrics.update_input(&input.name, |p| {
            p.lines += stats.lines_read;
            p.add_lines(&stats.lines);
            p.lost += stats.lines_lost;
            p.skipped += skipped;
            p.trouble = None;
        });
        self.record_uncounted(&stats, uncounted);
        skipped
    }

    /// Logs a problem with an input as a whole, once an hour for as long as it lasts.
    fn log_input_problem(&self, inputs: &mut CountedInputs, name: &str, what: &str, line: String, now: i64) {
        let last = inputs.last_logged.entry(format!("{what} {name}")).or_insert(i64::MIN);
        if now.saturating_sub(*last) >= PROBLEM_LOG_INTERVAL {
            *last = now;
            self.metrics.log_error(self.clock, line.clone());
        }
        self.metrics.update_input(name, |p| p.trouble = Some(line));
    }

    /// Ends the sessions of inputs that have been at their end for long.
    fn end_idle_sessions(&self, inputs: &mut CountedInputs, pending: &mut PendingCommit) {
        let now = self.clock.seconds();
        if inputs.by_number.values().all(|input| input.counter.is_idle()) {
            return;
        }
        let at_end = self.metrics.inputs_at_end_since(now - SESSION_TIMEOUT);
        for input in inputs.by_number.values_mut().filter(|input| !input.counter.is_idle()) {
            if at_end.contains(&input.name) {
                input.counter.end_sessions(now, &*self.policies);
                let (stats, uncounted) = input.counter.take_stats();
                self.record_uncounted(&stats, uncounted);
                pending.since.get_or_insert_with(Instant::now);
            }
        }
    }

    /// Hands what was counted since the last commit to the writer.
    fn begin_commit(
        &self,
        runtime: &Handle,
        writer: &CommitWriter,
        inputs: &mut HashMap<usize, CountedInput>,
        pending: &mut PendingCommit,
    ) -> CommitUnderWay {
        let mut batch = Batch::default();
        for (number, input) in inputs {
            batch.add.extend(input.counter.take_counts());
            for (key, value) in input.counter.take_changes() {
                batch.set.push((Table::OpenState, open_key(&input.name, &key), value));
            }
            if let Some(position) = pending.positions.remove(number).filter(|position| *position != Position::Nowhere) {
                batch.set.push((Table::Position, input.name.clone().into_bytes(), Some(position.encode())));
            }
            let dropped = self.own_report_statuses.add(input.counter.take_own_report_statuses());
            self.metrics.add("own_report_lines_dropped", dropped as u64);
        }
        (pending.since, pending.due, pending.blocks) = (None, false, 0);
        pending.progress.begin_commit();
        for line in pending.failure_notices.take_lines(&batch.add, self.clock.seconds()) {
            tracing::warn!("{line}");
        }
        let event_replies = std::mem::take(&mut pending.event_replies);
        CommitUnderWay { written: writer.start(runtime, batch), event_replies }
    }

    /// Publishes what was written.
    fn end_commit(&self, under_way: &mut Option<CommitUnderWay>, written: Batch, pending: &mut PendingCommit) {
        self.metrics.add("commits", 1);
        pending.progress.publish(&self.metrics, self.clock.seconds());
        self.metrics.add_sessions(&written.add);
        for reply in under_way.take().into_iter().flat_map(|commit| commit.event_replies) {
            // Who asked may have gone.
            let _ = reply.send(EventReply::Committed);
        }
    }

    /// Waits until the commit that is being written, if there is one, is on disk.
    fn wait_for_commit(
        &self,
        runtime: &Handle,
        under_way: &mut Option<CommitUnderWay>,
        pending: &mut PendingCommit,
    ) -> Result<(), StoreError> {
        if under_way.is_some() {
            let written = runtime.block_on(wait_until_written(under_way))?;
            self.end_commit(under_way, written, pending);
        }
        Ok(())
    }

    fn record_uncounted(&self, stats: &CounterStats, uncounted: Uncounted) {
        self.metrics.add("sessions-not-asked", stats.not_asked);
        self.metrics.add("sessions-contradicting", stats.contradicted);
        self.metrics.add("sessions-without-trust-anchors", stats.without_anchors);
        self.metrics.add("sessions-local", stats.local);
        self.metrics.add("sessions-relayed", stats.relayed);
        self.metrics.add("sessions-left-to-datagrams", stats.left_to_datagrams);
        self.metrics.add("datagrams-left-to-log", stats.left_to_log);
        self.metrics.add("sessions-without-domain", uncounted.without_domain);
        self.metrics.add("sessions-unmatched", uncounted.unmatched);
        self.metrics.add("sessions-crowded-out", uncounted.evicted);
        self.metrics.add("sessions-of-own-reports", uncounted.own_reports);
    }
}

/// Waits until the commit that is being written is on disk, or was given up; for ever where there is none.
async fn wait_until_written(under_way: &mut Option<CommitUnderWay>) -> Result<Batch, StoreError> {
    match under_way {
        Some(commit) => (&mut commit.written).await.unwrap_or_else(|ended| match ended.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(cancelled) => Err(StoreError::Io(std::io::Error::other(cancelled))),
        }),
        None => std::future::pending().await,
    }
}

/// The problems with an input as a whole after a block: each with its kind and its message.
fn input_problems(input: &CountedInput, skipped: u64, now: i64) -> Vec<(&'static str, String)> {
    let (name, counter) = (&input.name, &input.counter);
    let mut problems = Vec::new();
    if let Some(advice) = counter.missing_tls_advice() {
        problems.push(("level", format!("input {name}: many deliveries and no TLS session: {advice}")));
    }
    if let Some(advice) = counter.unrecognized_advice() {
        problems.push(("unrecognized", format!("input {name}: {advice}")));
    }
    if counter.is_not_a_log() {
        let line = format!("input {name}: not a log file: no line begins with a timestamp; nothing is counted");
        problems.push(("no log", line));
    }
    if skipped > 0 {
        let line = format!("input {name}: a line is longer than {MAX_LINE} bytes; not counted");
        problems.push(("long", line));
    }
    if let Some(newest) = counter.newest_line_time().filter(|newest| *newest > now + MAX_CLOCK_SKEW) {
        let ahead = (newest - now) / 60;
        let line = format!(
            "input {name}: the newest line is {ahead} minutes in the future: this host's clock went back, or \
             `timezone` is wrong; lines count for the days that they name"
        );
        problems.push(("future", line));
    }
    if let Some((time, _)) = counter.future_line().filter(|(_, read)| (read - now).abs() <= FUTURE_LINE_TTL) {
        let ahead = (time - now) / 60;
        let line = format!(
            "input {name}: lines are {ahead} minutes in the future: the clock of the host that writes them is wrong, or \
             this host's; they count as of now"
        );
        problems.push(("future", line));
    }
    problems
}

/// Loads the stored position of an input, and the open state that belongs to it.
pub(crate) fn load_input_state(
    store: &dyn Store,
    name: &str,
) -> Result<(Option<Position>, Vec<StoredRecord>), StoreError> {
    let position = match store.read(Table::Position, name.as_bytes())? {
        None => None,
        Some(bytes) => Some(
            Position::decode(&bytes)
                .map_err(|e| StoreError::Corrupt(format!("store: the position of {name} cannot be read: {e}")))?,
        ),
    };
    let prefix = open_key(name, b"");
    let open = store.scan(Table::OpenState, &prefix)?;
    Ok((position, open.into_iter().map(|(key, value)| (key[prefix.len()..].to_vec(), value)).collect()))
}

/// The time of the newest line that was counted of an input.
pub(crate) fn load_newest_line_time(store: &dyn Store, name: &str) -> Result<Option<i64>, StoreError> {
    let stored = store.read(Table::OpenState, &open_key(name, NEWEST_LINE_KEY))?;
    Ok(stored.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}

/// The key of a record of an input's open state.
pub(super) fn open_key(name: &str, key: &[u8]) -> Vec<u8> {
    [name.as_bytes(), b"\0", key].concat()
}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;

    use super::*;
    use crate::base::tlsrpt::PolicyInForce;
    use crate::counting::input::file_position::FilePosition;
    use crate::store::embedded::EmbeddedStore;

    struct NoPolicy;

    impl PolicyAt for NoPolicy {
        fn at(&self, _: &str, _: i64) -> Option<PolicyInForce> {
            Some(PolicyInForce::None)
        }
    }

    fn task(store: Arc<dyn Store>) -> CountingTask {
        CountingTask {
            store,
            policies: Box::new(NoPolicy),
            hints: mpsc::channel(1).0,
            datagrams: Arc::default(),
            own_queue_ids: OwnQueueIds::default(),
            own_report_statuses: Default::default(),
            metrics: Metrics::default(),
            clock: Clock::default(),
        }
    }

    /// A session of one host with its delivery, or its first line alone.
    fn lines(clock: Clock, domain: &str, whole: bool) -> Vec<u8> {
        let time = jiff::Timestamp::from_second(clock.seconds()).unwrap();
        let peer = format!("mx.{domain}[192.0.2.7]:25");
        let mut text = format!(
            "{time} mta postfix/smtp[7]: Trusted TLS connection established to {peer}: TLSv1.3 with cipher X\n"
        );
        if whole {
            text += &format!(
                "{time} mta postfix/smtp[7]: F35CEA26071: to=<u@{domain}>, relay={peer}, delay=1, delays=0/0/0/1, dsn=2.0.0, \
                 status=sent (250 ok)\n"
            );
        }
        text.into_bytes()
    }

    #[test]
    fn a_record_that_the_store_refuses_is_left_out_and_shown_and_the_rest_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open(folder.path(), Clock::default()).unwrap().store);
        let task = task(Arc::clone(&store));
        let (metrics, clock) = (task.metrics.clone(), task.clock);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        // The position of this input fits into a key, its open state does not.
        let names = ["x".repeat(1010), "log".to_owned()];
        let (feed, blocks) = mpsc::channel(8);
        for (number, name) in names.iter().enumerate() {
            let counter = Counter::new(Dialect::Postfix, TimeZone::UTC, Arc::new(|_| false));
            let input = CountedInput { name: name.clone(), counter };
            feed.try_send(InputEvent::LogInput(number, Box::new(input))).ok().unwrap();
            let lines = match number {
                0 => [lines(clock, "long.test", true), lines(clock, "long.test", false)].concat(),
                _ => lines(clock, "a.test", true),
            };
            let position = Position::File(FilePosition { inode: 1, offset: 100, ..FilePosition::default() });
            let repeated = RepeatedLines::AsBefore;
            let lines_missing = false;
            let block =
                LineBlock { lines, position, skipped: 0, bytes_behind: 0, at_end: true, repeated, lines_missing };
            feed.try_send(InputEvent::Block(number, block)).ok().unwrap();
        }
        drop(feed);
        let (_stop, shutdown) = watch::channel(false);
        task.run(runtime.handle(), blocks, mpsc::channel(1).1, shutdown).unwrap();
        let day = store.days().unwrap()[0];
        assert_eq!(store.domains(day).unwrap(), ["a.test", "long.test"]);
        for name in &names {
            assert!(store.read(Table::Position, name.as_bytes()).unwrap().is_some());
        }
        assert!(metrics.counters()["records-refused"] > 0);
        let errors = metrics.recent_errors();
        let shown = errors.iter().any(|(_, line)| {
            line.contains("over the limit of 1024; open state \"xxx")
                && line
                    .ends_with("is not stored and will be lost at the next restart; the rest of the commit continues")
        });
        assert!(shown, "{errors:?}");
    }
}
