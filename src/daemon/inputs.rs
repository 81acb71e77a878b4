//! The inputs that the configuration names: checked, opened at the stored position, and run.
//!
//! Takes: `[[input]]` sections. Gives: a task for each, which feeds the counting; files of a pattern get one each as they appear.
//! When it fails: at start, a [`DaemonError`] that names the input; later, a trouble that `status` shows.
//! Not here: reading (`input`), counting (`pipeline`).

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use jiff::tz::TimeZone;
use tlswarden_parsers::Dialect;
use tokio::sync::{Mutex, mpsc, oneshot, watch};

use super::listeners::Sockets;
use super::parts::PartOpener;
use super::tasks::{TaskGroup, run_until_shutdown};
use super::{DaemonError, PersistentState};
use crate::base::clock::Clock;
use crate::base::own_reports::MessageIdKey;
use crate::config::{Config, InputKind as Named, InputSection};
use crate::counting::changed_inputs::{self, ConfiguredInput};
use crate::counting::input::datagram::{self, DatagramQueue};
use crate::counting::input::file::{self, FileInputs};
use crate::counting::input::stdin::StdinReader;
use crate::counting::input::{InputError, journald};
use crate::counting::pipeline::{self, CountedInput, Counter, InputEvent};
use crate::counting::rules::CountingRules;
use crate::metrics::Metrics;
use crate::store::{Store, StoreError, Table};

/// How often a pattern is checked for new files.
const PATTERN_INTERVAL: Duration = Duration::from_secs(5);

/// The most files that one pattern may match: each takes a counter and a task.
const MAX_PATTERN_FILES: usize = 1000;

/// Standard input, which outlives a reload.
pub(crate) type SharedStdin = Arc<Mutex<StdinReader>>;

/// Checks that every input can be read; a log file that does not exist yet is allowed.
pub(crate) fn check_inputs(config: &Config) -> Result<(), DaemonError> {
    let mut known: HashMap<(u64, u64), &Path> = HashMap::new();
    for source in config.inputs.iter().filter_map(InputSection::kind) {
        match source {
            Named::File(path) => {
                if let Some(found) = file_identity(path)?
                    && let Some(other) = known.insert(found, path)
                {
                    let (path, other) = (path.display(), other.display());
                    let problem = format!(
                        "[[input]] file: {path}: is the same file as {other}; every session would be counted twice"
                    );
                    return Err(DaemonError::Input(problem));
                }
            }
            Named::Journal(Some(folder)) if !folder.is_dir() => {
                let problem = format!("[[input]] journal: {}: not a folder", folder.display());
                return Err(DaemonError::Input(problem));
            }
            Named::Journal(_) | Named::Files(_) | Named::Stdin | Named::Datagrams(_) => {}
        }
    }
    Ok(())
}

/// The device and inode of a log file, `None` where it does not exist yet. Fails where it cannot be read.
fn file_identity(path: &Path) -> Result<Option<(u64, u64)>, DaemonError> {
    // Opening a fifo would wait for its writer.
    let problem = match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => "not a log file: it is a folder".to_owned(),
        Ok(found) if !found.is_file() => "not a log file: it is a device, a pipe or a socket".to_owned(),
        found => match found.and_then(|found| File::open(path).map(|_| (found.dev(), found.ino()))) {
            Ok(identity) => return Ok(Some(identity)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => format!("cannot be read: {error}"),
        },
    };
    Err(DaemonError::Input(format!("[[input]] file: {}: {problem}", path.display())))
}

/// The datagram sockets to bind, each with its mode.
pub(crate) fn datagram_sockets(config: &Config) -> Vec<(PathBuf, u32)> {
    let mode = |input: &InputSection| input.socket_mode().unwrap_or(0o666);
    config.inputs.iter().filter_map(|input| Some((input.datagrams.clone()?, mode(input)))).collect()
}

/// Creates the counter of an input.
#[derive(Clone)]
pub(crate) struct CounterFactory {
    pub(crate) opener: PartOpener,
    pub(crate) sockets: Arc<parking_lot::Mutex<Sockets>>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) message_id_key: MessageIdKey,
    pub(crate) rules: Arc<CountingRules>,
    pub(crate) metrics: Metrics,
    pub(crate) clock: Clock,
    /// Until when lines are left out, by input.
    pub(crate) left_out: Arc<HashMap<String, i64>>,
}

impl CounterFactory {
    /// An input's counter and position, as the store has them.
    fn restore_input(&self, name: &str, mta: Dialect, zone: TimeZone) -> Result<RestoredInput, StoreError> {
        let (position, open) = pipeline::load_input_state(&*self.store, name)?;
        let secret = self.message_id_key.clone();
        let counter = Counter::new(mta, zone.clone(), Arc::new(move |id: &[u8]| secret.is_ours(id)));
        let (mut counter, unread) = counter.with_rules(Arc::clone(&self.rules)).with_open_state(zone, &open);
        if let Some(until) = self.left_out.get(name) {
            counter.leave_out_until(*until);
        }
        if unread > 0 {
            let line = format!("input {name}: {unread} records of open sessions cannot be read; those are not counted");
            self.metrics.log_error(self.clock, line);
        }
        Ok(RestoredInput { input: CountedInput { name: name.to_owned(), counter }, position })
    }

    /// The files that have been read, by the store.
    fn paths_with_position(&self) -> BTreeSet<PathBuf> {
        let stored = self.store.scan(Table::Position, b"").unwrap_or_default();
        stored.into_iter().map(|(name, _)| PathBuf::from(OsString::from_vec(name))).collect()
    }

    fn report_problem(&self, name: &str, line: String) {
        self.metrics.update_input(name, |p| p.trouble = Some(line.clone()));
        self.metrics.log_error(self.clock, format!("input {name}: {line}"));
    }

    /// Notes that an input cannot be read for now.
    fn turn_off(&self, name: &str, reason: String) {
        self.opener.turn_off(&part_name(name), &reason);
        self.metrics.update_input(name, |p| p.trouble = Some(reason));
    }
}

struct RestoredInput {
    input: CountedInput,
    position: Option<crate::counting::input::Position>,
}

/// All inputs, opened.
pub(crate) struct OpenInputs {
    counters: CounterFactory,
    inputs: Vec<OpenInput>,
    patterns: Vec<(PathBuf, Dialect, TimeZone)>,
    files: FileInputs,
    queue: Arc<DatagramQueue>,
}

struct OpenInput {
    input: CountedInput,
    reader: InputReader,
}

enum InputReader {
    /// The follower, and the files before it in the configuration, none of which may be the same file.
    File(file::FileFollower, Vec<PathBuf>),
    Journal(Box<journald::JournalFollower>),
    Stdin(SharedStdin),
    /// The path and mode of the socket, and the socket unless it cannot be bound yet.
    Datagrams(PathBuf, u32, Option<UnixDatagram>),
}

/// The name of an input in the list of parts.
pub(crate) fn part_name(input: &str) -> String {
    format!("input {input}")
}

/// Fails if a log file is that of another input as well.
fn check_not_same(path: &Path, others: &[PathBuf]) -> Result<(), String> {
    let identity = |path: &Path| std::fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
    let this = identity(path);
    match others.iter().find(|other| this.is_some() && identity(other) == this) {
        Some(other) => Err(format!("is the same file as {}; every session would be counted twice", other.display())),
        None => Ok(()),
    }
}

/// Opens the inputs; one that cannot be opened is off, and its task tries again. Fails where the store does.
pub(crate) fn open_inputs(
    state: &mut PersistentState,
    config: &Config,
    zones: &[TimeZone],
    counters: CounterFactory,
) -> Result<OpenInputs, StoreError> {
    let mut inputs = OpenInputs {
        counters,
        inputs: Vec::new(),
        patterns: Vec::new(),
        files: FileInputs::default(),
        queue: Arc::default(),
    };
    let mut files: Vec<PathBuf> = Vec::new();
    inputs.counters.left_out = Arc::new(prepare_inputs(config, &inputs.counters)?);
    for (input, zone) in config.inputs.iter().zip(zones.iter().cloned()) {
        // Invariant: the configuration has been checked.
        let Some(named) = input.kind() else { continue };
        let name = named.to_string();
        let restored = |zone| inputs.counters.restore_input(&name, input.mta, zone);
        let (restored, reader) = match named {
            Named::Files(pattern) => {
                inputs.patterns.push((pattern.to_owned(), input.mta, zone));
                continue;
            }
            Named::File(path) => {
                let mut restored = restored(zone)?;
                inputs.files.paths.write().insert(path.to_owned());
                let follower = file::FileFollower::beside(&inputs.files, path, restored.position.take());
                let others = files.clone();
                files.push(path.to_owned());
                (restored, InputReader::File(follower, others))
            }
            Named::Journal(folder) => {
                let mut restored = restored(zone)?;
                let journal = journald::JournalFilter {
                    folder: folder.map(Path::to_owned),
                    identifiers: input.identifiers.clone(),
                    units: input.units.clone(),
                };
                let follower = journald::JournalFollower::new(journal, restored.position.take());
                (restored, InputReader::Journal(Box::new(follower)))
            }
            Named::Stdin => {
                let opened = match &state.stdin {
                    Some(stdin) => Ok(Arc::clone(stdin)),
                    None => StdinReader::open().map(|stdin| Arc::new(Mutex::new(stdin))),
                };
                let stdin = match opened {
                    Ok(stdin) => stdin,
                    Err(error) => {
                        inputs.counters.opener.turn_off(&part_name(&name), &format!("cannot be read: {error}"));
                        continue;
                    }
                };
                state.stdin = Some(Arc::clone(&stdin));
                tracing::warn!(
                    "input stdin: it has no position: lines that were read and not yet counted when the daemon is killed are lost"
                );
                (restored(zone)?, InputReader::Stdin(stdin))
            }
            Named::Datagrams(path) => {
                let mode = input.socket_mode().unwrap_or(0o666);
                let bind = || state.sockets.lock().datagram_socket(path, mode).map_err(|e| e.problem());
                let socket = inputs.counters.opener.try_open(&part_name(&name), bind);
                (restored(zone)?, InputReader::Datagrams(path.to_owned(), mode, socket))
            }
        };
        inputs.inputs.push(OpenInput { input: restored.input, reader });
    }
    let metrics = &inputs.counters.metrics;
    metrics.set_inputs(inputs.inputs.iter().map(|one| (one.input.name.as_str(), one.input.counter.newest_line_time())));
    for path in config.inputs.iter().filter_map(|input| match input.kind()? {
        Named::File(path) if !path.exists() => Some(path),
        _ => None,
    }) {
        let missing = Some("does not exist; it is waited for".to_owned());
        metrics.update_input(&path.display().to_string(), |p| p.trouble = missing);
    }
    if inputs.inputs.iter().any(|one| matches!(one.reader, InputReader::Datagrams(..))) {
        warn_of_short_queue();
    }
    Ok(inputs)
}

/// Prepares the inputs that the configuration has changed: until when lines are left out of each.
fn prepare_inputs(config: &Config, counters: &CounterFactory) -> Result<HashMap<String, i64>, StoreError> {
    let with_position = counters.paths_with_position();
    let configured: Vec<ConfiguredInput<'_>> = config
        .inputs
        .iter()
        .filter_map(|input| {
            let kind = input.kind()?;
            let files = match kind {
                Named::Files(pattern) => matching_files(&pattern.to_string_lossy(), &with_position).logs,
                _ => Vec::new(),
            };
            Some(ConfiguredInput { kind, start: input.start, files })
        })
        .collect();
    let prepared = changed_inputs::prepare_inputs(&*counters.store, &configured, counters.clock.seconds())?;
    if let Err(error) = prepared.stored {
        let line = format!("store: cannot write which inputs there are: {error}; it is written at the next start");
        counters.metrics.log_error(counters.clock, line);
    }
    Ok(prepared.left_out)
}

/// Warns, with what to add, where the kernel limits the datagram queue too much.
fn warn_of_short_queue() {
    if let Some(found) = datagram::kernel_queue_length().filter(|found| *found < datagram::MIN_SOCKET_QUEUE) {
        let wanted = datagram::MIN_SOCKET_QUEUE;
        tracing::warn!(
            "input datagrams: net.unix.max_dgram_qlen is {found}: a burst of more can be lost; add \
             `net.unix.max_dgram_qlen = {wanted}` to /etc/sysctl.d/tlswarden.conf, run `sysctl --system`, restart"
        );
    }
}

impl OpenInputs {
    /// Starts a task for each input; returns the queue that datagrams wait in.
    pub(crate) fn start(
        self,
        tasks: &mut TaskGroup,
        feed: &mpsc::Sender<InputEvent>,
        shutdown: &watch::Receiver<bool>,
    ) -> Arc<DatagramQueue> {
        let numbers = Arc::new(AtomicUsize::new(0));
        for OpenInput { input: source, reader } in self.inputs {
            let number = numbers.fetch_add(1, Ordering::Relaxed);
            let name = source.name.clone();
            let task = InputTask { number, events: feed.clone(), counters: self.counters.clone() };
            let title = part_name(&name);
            match reader {
                InputReader::File(follower, others) => {
                    let task = task.read_file(source, follower, others, shutdown.clone());
                    tasks.spawn(title, run_until_shutdown(shutdown.clone(), task));
                }
                InputReader::Journal(follower) => {
                    tasks.spawn(title, run_until_shutdown(shutdown.clone(), task.read_journal(source, follower)))
                }
                InputReader::Stdin(stdin) => {
                    tasks.spawn(title, run_until_shutdown(shutdown.clone(), task.read_stdin(source, stdin)))
                }
                InputReader::Datagrams(path, mode, socket) => {
                    let (queue, sockets) = (Arc::clone(&self.queue), Arc::clone(&self.counters.sockets));
                    let (opener, mut shutdown) = (self.counters.opener.clone(), shutdown.clone());
                    tasks.spawn(title.clone(), async move {
                        let bind = move || sockets.lock().datagram_socket(&path, mode).map_err(|e| e.problem());
                        let socket = match socket {
                            Some(socket) => Some(socket),
                            None => opener.open_later(&title, bind, &mut shutdown).await,
                        };
                        match socket {
                            Some(socket) => task.receive_datagrams(source, socket, queue, shutdown).await,
                            None => Ok(()),
                        }
                    });
                }
            }
        }
        for (pattern, mta, zone) in self.patterns {
            let title = format!("input {}", pattern.display());
            let task = InputTask { number: 0, events: feed.clone(), counters: self.counters.clone() };
            let (files, numbers) = (self.files.clone(), Arc::clone(&numbers));
            tasks.spawn(
                title,
                run_until_shutdown(
                    shutdown.clone(),
                    task.follow_pattern(pattern, mta, zone, files, numbers, shutdown.clone()),
                ),
            );
        }
        self.queue
    }
}

/// The task of one input.
struct InputTask {
    number: usize,
    events: mpsc::Sender<InputEvent>,
    counters: CounterFactory,
}

impl InputTask {
    /// Reads a file for as long as its blocks are taken.
    async fn read_file(
        self,
        source: CountedInput,
        mut follower: file::FileFollower,
        others: Vec<PathBuf>,
        mut shutdown: watch::Receiver<bool>,
    ) {
        let name = source.name.clone();
        let (part, path) = (part_name(&name), PathBuf::from(&name));
        let check = move || check_not_same(&path, &others);
        let opener = &self.counters.opener;
        if opener.try_open(&part, check.clone()).is_none()
            && opener.open_later(&part, check, &mut shutdown).await.is_none()
        {
            return;
        }
        if self.events.send(InputEvent::LogInput(self.number, Box::new(source))).await.is_err() {
            return self.wait_forever().await;
        }
        loop {
            match follower.next().await {
                Ok(block) => {
                    self.counters.opener.parts.turn_on(&part);
                    if self.events.send(InputEvent::Block(self.number, block)).await.is_err() {
                        return self.wait_forever().await;
                    }
                }
                Err(InputError::Stopped(_)) => return self.wait_forever().await,
                Err(error @ (InputError::NotAFile(_) | InputError::Unreadable(_))) => {
                    self.counters.turn_off(&name, error.to_string());
                }
            }
        }
    }

    async fn read_journal(self, source: CountedInput, mut follower: Box<journald::JournalFollower>) {
        let name = source.name.clone();
        if self.events.send(InputEvent::LogInput(self.number, Box::new(source))).await.is_err() {
            return self.wait_forever().await;
        }
        loop {
            match follower.next().await {
                journald::JournalEvent::Entries(block) => {
                    self.counters.opener.parts.turn_on(&part_name(&name));
                    if self.events.send(InputEvent::Block(self.number, block)).await.is_err() {
                        return self.wait_forever().await;
                    }
                }
                journald::JournalEvent::Failed(line) => self.counters.turn_off(&name, line),
                journald::JournalEvent::Gap(line) => {
                    self.counters.metrics.add("journal-gaps", 1);
                    self.counters.report_problem(&name, line);
                }
            }
        }
    }

    async fn read_stdin(self, source: CountedInput, stdin: SharedStdin) {
        let name = source.name.clone();
        if self.events.send(InputEvent::LogInput(self.number, Box::new(source))).await.is_err() {
            return self.wait_forever().await;
        }
        let mut stdin = stdin.lock().await;
        // A place first: what is taken from the input must not be dropped on its way.
        while let Ok(place) = self.events.reserve().await {
            match stdin.next().await {
                Some(Ok(block)) => place.send(InputEvent::Block(self.number, block)),
                Some(Err(error)) => {
                    self.counters.turn_off(&name, format!("cannot be read: {error}; nothing more is read"))
                }
                None => {
                    drop(place);
                    tracing::info!("input stdin: has ended; nothing more is counted from it");
                    return self.wait_forever().await;
                }
            }
        }
        self.wait_forever().await;
    }

    async fn receive_datagrams(
        self,
        source: CountedInput,
        socket: UnixDatagram,
        queue: Arc<DatagramQueue>,
        mut shutdown: watch::Receiver<bool>,
    ) -> Result<(), String> {
        let name = source.name.clone();
        let (metrics, clock) = (self.counters.metrics.clone(), self.counters.clock);
        let (known, is_known) = oneshot::channel();
        if self.events.send(InputEvent::DatagramInput(self.number, Box::new(source), known)).await.is_err()
            || is_known.await.is_err()
        {
            return Ok(());
        }
        // Nothing waits yet as far as is known: the day may close without a datagram.
        metrics.update_input(&name, |p| p.at_end_since = Some(clock.seconds()));
        let number = self.number;
        // Not before: a queue that is closed waits for those that were announced.
        let receiver = queue.register_receiver();
        let thread = tokio::task::spawn_blocking(move || receiver.run(&socket, number, &name, &metrics, clock));
        // It ends when the counting closes its queue.
        let ended = thread.await.map_err(|e| e.to_string());
        crate::base::shutdown::wait_for_shutdown(&mut shutdown).await;
        ended
    }

    /// Finds the files of a pattern, and reads each as a separate input.
    async fn follow_pattern(
        self,
        pattern: PathBuf,
        mta: Dialect,
        zone: TimeZone,
        files: FileInputs,
        numbers: Arc<AtomicUsize>,
        shutdown: watch::Receiver<bool>,
    ) {
        let mut known: BTreeSet<PathBuf> = BTreeSet::new();
        // A log that is being rotated may not be there at this moment.
        let mut logs = self.counters.paths_with_position();
        let mut left_out: BTreeSet<PathBuf> = BTreeSet::new();
        let mut readers = tokio::task::JoinSet::new();
        let name = pattern.display().to_string();
        let mut warned = false;
        loop {
            let (text, others) = (name.clone(), logs.clone());
            let mut found =
                tokio::task::spawn_blocking(move || matching_files(&text, &others)).await.unwrap_or_default();
            for path in found.without_log {
                if left_out.insert(path.clone()) {
                    let path = path.display();
                    let line =
                        format!("{path} is not read: by its name it is a rotated file of a log that is not there");
                    tracing::warn!("input {name}: {line}");
                }
            }
            found.logs.retain(|path| !known.contains(path));
            let mut followed = if found.logs.is_empty() { FollowedFiles::default() } else { self.followed_files() };
            for path in found.logs {
                // By itself or by another pattern, under this name or another.
                if !followed.add(&path) {
                    continue;
                }
                if known.len() >= MAX_PATTERN_FILES {
                    if !warned {
                        warned = true;
                        let line = format!(
                            "more than {MAX_PATTERN_FILES} files; {} and later ones are not read",
                            path.display()
                        );
                        self.counters.report_problem(&name, line);
                    }
                    break;
                }
                let file = path.display().to_string();
                match self.counters.restore_input(&file, mta, zone.clone()) {
                    Ok(RestoredInput { input: source, position: mark }) => {
                        tracing::info!("input: following {file}");
                        let number = numbers.fetch_add(1, Ordering::Relaxed);
                        let newest = source.counter.newest_line_time();
                        self.counters.metrics.update_input(&file, |p| p.newest = newest);
                        let task = InputTask { number, events: self.events.clone(), counters: self.counters.clone() };
                        files.paths.write().insert(path.clone());
                        let follower = file::FileFollower::beside(&files, &path, mark);
                        readers.spawn(task.read_file(source, follower, Vec::new(), shutdown.clone()));
                        logs.insert(path.clone());
                        known.insert(path);
                    }
                    Err(error) => self.counters.report_problem(&name, format!("{file}: {error}; it is tried again")),
                }
            }
            let _ = tokio::time::timeout(PATTERN_INTERVAL, readers.join_next()).await;
            if readers.is_empty() {
                tokio::time::sleep(PATTERN_INTERVAL).await;
            }
        }
    }

    /// The files that are inputs already.
    fn followed_files(&self) -> FollowedFiles {
        let mut followed = FollowedFiles::default();
        for name in self.counters.metrics.inputs().keys() {
            followed.add(Path::new(name));
        }
        followed
    }

    /// The counting has ended, and logs the reason itself.
    async fn wait_forever(&self) {
        std::future::pending().await
    }
}

/// Files, each under one of its names.
#[derive(Default)]
struct FollowedFiles {
    paths: HashSet<PathBuf>,
    identities: HashSet<(u64, u64)>,
}

impl FollowedFiles {
    /// Adds a file; false where it is one of them.
    fn add(&mut self, path: &Path) -> bool {
        let identity = if path.is_absolute() { std::fs::metadata(path).ok() } else { None };
        let is_new = identity.is_none_or(|found| self.identities.insert((found.dev(), found.ino())));
        self.paths.insert(path.to_owned()) && is_new
    }
}

/// The files of a pattern.
#[derive(Debug, Default)]
struct MatchingFiles {
    /// The logs, without their rotated files; of those that are named by their date the names of the series.
    logs: Vec<PathBuf>,
    /// Files whose names say that they are rotated ones of a log that nobody knows.
    without_log: Vec<PathBuf>,
}

/// The files of a pattern; `others` are logs that were read, and may be missing while they are rotated.
fn matching_files(pattern: &str, others: &BTreeSet<PathBuf>) -> MatchingFiles {
    let Ok(found) = glob::glob(pattern) else { return MatchingFiles::default() };
    let files: Vec<PathBuf> = found.filter_map(Result::ok).filter(|path| path.is_file()).collect();
    let mut matching = MatchingFiles::default();
    let known: HashSet<&PathBuf> = files.iter().chain(others).collect();
    for path in &files {
        if file::possible_logs(path).iter().any(|log| known.contains(log)) {
            continue;
        }
        match (file::log_of_rotated(path), file::DatedSeries::of_file(path)) {
            (Some(_), _) => matching.without_log.push(path.clone()),
            (None, Some(series)) if matching.logs.iter().any(|log| log == series.name()) => {}
            (None, Some(series)) => matching.logs.push(series.name().to_owned()),
            (None, None) => matching.logs.push(path.clone()),
        }
    }
    matching
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_leaves_rotated_files_out() {
        let folder = tempfile::tempdir().unwrap();
        let all =
            ["mail.log", "mail.log.1", "mail.log.2.gz", "mail.log-20261122", "mail-out.log", "mail-1.log", "other"];
        for name in all {
            std::fs::write(folder.path().join(name), "x").unwrap();
        }
        std::fs::create_dir(folder.path().join("mail.d")).unwrap();
        let pattern = format!("{}/mail*", folder.path().display());
        let names = |paths: &[PathBuf]| -> Vec<String> {
            paths.iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect()
        };
        let found = matching_files(&pattern, &BTreeSet::new());
        assert_eq!(names(&found.logs), ["mail-1.log", "mail-out.log", "mail.log"]);
        // Rotated, and the next one is not made yet.
        std::fs::remove_file(folder.path().join("mail.log")).unwrap();
        let found = matching_files(&pattern, &BTreeSet::from([folder.path().join("mail.log")]));
        assert_eq!((names(&found.logs), found.without_log), (vec!["mail-1.log".into(), "mail-out.log".into()], vec![]));
        // Nobody has read it.
        let found = matching_files(&pattern, &BTreeSet::new());
        assert_eq!(names(&found.logs), ["mail-1.log", "mail-out.log", "mail.log-*"]);
        assert_eq!(names(&found.without_log), ["mail.log.1", "mail.log.2.gz"]);
    }
}
