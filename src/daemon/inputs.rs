//! The inputs that the configuration names: looked at, opened where the store left them, and run.
//!
//! Takes: `[[input]]` sections. Gives: a task for each, which feeds the river; files of a pattern get one each as they appear.
//! When it fails: at start, a [`DaemonError`] that names the input; later, a trouble that `status` shows.
//! Not here: reading (`input`), counting (`pipeline`).

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use jiff::tz::TimeZone;
use tlswarden_parsers::Dialect;
use tokio::sync::{Mutex, mpsc, oneshot, watch};

use super::{DaemonError, House, Tasks, until};
use crate::base::clock::Clock;
use crate::base::own_reports::MessageIdKey;
use crate::config::{Config, InputKind as Named, InputSection};
use crate::counting::input::datagram::{self, DatagramQueue};
use crate::counting::input::stdin::StdinReader;
use crate::counting::input::{InputError, file, journald};
use crate::counting::pipeline::{self, CountedInput, Counter, InputEvent};
use crate::counting::rules::CountingRules;
use crate::metrics::Metrics;
use crate::store::{Store, StoreError};

/// How often a pattern is looked through for new files.
const LOOK: Duration = Duration::from_secs(5);

/// The most files that one pattern has: an instance each, and each a task.
const MAX_FILES: usize = 1000;

/// Standard input, which outlives a reload.
pub type SharedStdin = Arc<Mutex<StdinReader>>;

/// Whether every input can be read: what is not there yet may come.
pub fn check(config: &Config) -> Result<(), DaemonError> {
    let mut known: HashMap<(u64, u64), &Path> = HashMap::new();
    for source in config.inputs.iter().filter_map(InputSection::kind) {
        match source {
            Named::File(path) => {
                if let Some(found) = readable(path)?
                    && let Some(other) = known.insert(found, path)
                {
                    let (path, other) = (path.display(), other.display());
                    let problem = format!("{path}: is the same file as {other}; every session would be counted twice");
                    return Err(DaemonError::Input(problem));
                }
            }
            Named::Journal(Some(folder)) if !folder.is_dir() => {
                return Err(DaemonError::Input(format!("{}: is no folder; not started", folder.display())));
            }
            Named::Journal(_) | Named::Files(_) | Named::Stdin | Named::Datagrams(_) => {}
        }
    }
    Ok(())
}

/// A log may be missing as yet; one that is there must be one that can be read: its device and inode.
fn readable(path: &Path) -> Result<Option<(u64, u64)>, DaemonError> {
    // Opening a fifo would wait for its writer.
    let problem = match std::fs::metadata(path) {
        Ok(found) if !found.is_file() => "it is no file".to_owned(),
        found => match found.and_then(|found| File::open(path).map(|_| (found.dev(), found.ino()))) {
            Ok(identity) => return Ok(Some(identity)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => error.to_string(),
        },
    };
    Err(DaemonError::Input(format!("{}: cannot be read: {problem}; not started", path.display())))
}

/// The datagram sockets that are to be bound, each with its mode.
pub fn datagrams(config: &Config) -> Vec<(PathBuf, u32)> {
    let mode = |input: &InputSection| input.socket_mode().unwrap_or(0o666);
    config.inputs.iter().filter_map(|input| Some((input.datagrams.clone()?, mode(input)))).collect()
}

/// What counters are made of.
#[derive(Clone)]
pub struct Makes {
    pub store: Arc<dyn Store>,
    pub own: MessageIdKey,
    pub rules: Arc<CountingRules>,
    pub metrics: Metrics,
    pub clock: Clock,
}

impl Makes {
    /// An input's counter where the store left it, and its mark.
    fn source(&self, name: &str, mta: Dialect, zone: TimeZone) -> Result<Restored, StoreError> {
        let (mark, open) = pipeline::load_input_state(&*self.store, name)?;
        let secret = self.own.clone();
        let counter = Counter::new(mta, zone.clone(), Arc::new(move |id: &[u8]| secret.is_ours(id)));
        let (counter, unread) = counter.with_rules(Arc::clone(&self.rules)).with_open_state(zone, &open);
        if unread > 0 {
            let line = format!("input {name}: {unread} records of open sessions cannot be read; those are not counted");
            self.metrics.log_error(self.clock, line);
        }
        Ok(Restored { source: CountedInput { name: name.to_owned(), counter }, mark })
    }

    fn trouble(&self, name: &str, line: String) {
        self.metrics.update_input(name, |p| p.trouble = Some(line.clone()));
        self.metrics.log_error(self.clock, format!("input {name}: {line}"));
    }
}

struct Restored {
    source: CountedInput,
    mark: Option<crate::counting::input::Position>,
}

/// All inputs, opened.
pub struct Inputs {
    makes: Makes,
    each: Vec<One>,
    patterns: Vec<(PathBuf, Dialect, TimeZone)>,
    queue: Arc<DatagramQueue>,
}

struct One {
    source: CountedInput,
    reads: Reads,
}

enum Reads {
    File(file::FileFollower),
    Journal(Box<journald::JournalFollower>),
    Stdin(SharedStdin),
    Datagrams(UnixDatagram),
}

/// Opens the inputs. Whatever can fail at start fails here.
pub fn open(house: &mut House, config: &Config, zones: Vec<TimeZone>, makes: Makes) -> Result<Inputs, DaemonError> {
    let mut inputs = Inputs { makes, each: Vec::new(), patterns: Vec::new(), queue: Arc::default() };
    for (input, zone) in config.inputs.iter().zip(zones) {
        // Invariant: the configuration has been checked.
        let Some(named) = input.kind() else { continue };
        let name = named.to_string();
        let restored = |zone| inputs.makes.source(&name, input.mta, zone);
        let (restored, reads) = match named {
            Named::Files(pattern) => {
                inputs.patterns.push((pattern.to_owned(), input.mta, zone));
                continue;
            }
            Named::File(path) => {
                let mut restored = restored(zone)?;
                let follower = file::FileFollower::new(path, restored.mark.take());
                (restored, Reads::File(follower))
            }
            Named::Journal(folder) => {
                let mut restored = restored(zone)?;
                let journal = journald::JournalFilter {
                    folder: folder.map(Path::to_owned),
                    identifiers: input.identifiers.clone(),
                    units: input.units.clone(),
                };
                let follower = journald::JournalFollower::new(journal, restored.mark.take());
                (restored, Reads::Journal(Box::new(follower)))
            }
            Named::Stdin => {
                let stdin = match &house.stdin {
                    Some(stdin) => Arc::clone(stdin),
                    None => {
                        let failed = |e| DaemonError::Host(format!("stdin: cannot be read: {e}; not started"));
                        Arc::new(Mutex::new(StdinReader::open().map_err(failed)?))
                    }
                };
                house.stdin = Some(Arc::clone(&stdin));
                tracing::warn!(
                    "input stdin: it has no mark: what is read and not yet counted when the daemon is killed is lost"
                );
                (restored(zone)?, Reads::Stdin(stdin))
            }
            Named::Datagrams(path) => {
                let socket = house.sockets.datagrams(path, input.socket_mode().unwrap_or(0o666))?;
                (restored(zone)?, Reads::Datagrams(socket))
            }
        };
        inputs.each.push(One { source: restored.source, reads });
    }
    let metrics = &inputs.makes.metrics;
    metrics.set_inputs(inputs.each.iter().map(|one| (one.source.name.as_str(), one.source.counter.newest_line_time())));
    for path in config.inputs.iter().filter_map(|input| match input.kind()? {
        Named::File(path) if !path.exists() => Some(path),
        _ => None,
    }) {
        let missing = Some("does not exist; it is waited for".to_owned());
        metrics.update_input(&path.display().to_string(), |p| p.trouble = missing);
    }
    if inputs.each.iter().any(|one| matches!(one.reads, Reads::Datagrams(_))) {
        say_queue_length();
    }
    Ok(inputs)
}

/// Says what to add where the kernel lets too few datagrams wait.
fn say_queue_length() {
    if let Some(found) = datagram::kernel_queue_length().filter(|found| *found < datagram::MIN_SOCKET_QUEUE) {
        let wanted = datagram::MIN_SOCKET_QUEUE;
        tracing::warn!(
            "input datagrams: net.unix.max_dgram_qlen is {found}: a burst of more can be lost; add \
             `net.unix.max_dgram_qlen = {wanted}` to /etc/sysctl.d/tlswarden.conf, run `sysctl --system`, restart"
        );
    }
}

impl Inputs {
    /// Runs all of them; the queue that datagrams wait in.
    pub fn start(
        self,
        tasks: &mut Tasks,
        feed: &mpsc::Sender<InputEvent>,
        shutdown: &watch::Receiver<bool>,
    ) -> Arc<DatagramQueue> {
        let numbers = Arc::new(AtomicUsize::new(0));
        for One { source, reads } in self.each {
            let number = numbers.fetch_add(1, Ordering::Relaxed);
            let name = source.name.clone();
            let task = Feeding { number, feed: feed.clone(), makes: self.makes.clone() };
            let title = format!("input {name}");
            match reads {
                Reads::File(follower) => tasks.spawn(title, until(shutdown.clone(), task.file(source, follower))),
                Reads::Journal(follower) => tasks.spawn(title, until(shutdown.clone(), task.journal(source, follower))),
                Reads::Stdin(stdin) => tasks.spawn(title, until(shutdown.clone(), task.stdin(source, stdin))),
                Reads::Datagrams(socket) => {
                    let queue = Arc::clone(&self.queue);
                    tasks.spawn(title, task.datagrams(source, socket, queue, shutdown.clone()));
                }
            }
        }
        for (pattern, mta, zone) in self.patterns {
            let title = format!("input {}", pattern.display());
            let task = Feeding { number: 0, feed: feed.clone(), makes: self.makes.clone() };
            tasks.spawn(title, until(shutdown.clone(), task.pattern(pattern, mta, zone, Arc::clone(&numbers))));
        }
        self.queue
    }
}

/// What an input's task has.
struct Feeding {
    number: usize,
    feed: mpsc::Sender<InputEvent>,
    makes: Makes,
}

impl Feeding {
    /// Reads a file for as long as somebody takes its blocks.
    async fn file(self, source: CountedInput, mut follower: file::FileFollower) {
        let name = source.name.clone();
        if self.feed.send(InputEvent::LogInput(self.number, Box::new(source))).await.is_err() {
            return self.ended().await;
        }
        loop {
            match follower.next().await {
                Ok(block) => {
                    if self.feed.send(InputEvent::Block(self.number, block)).await.is_err() {
                        return self.ended().await;
                    }
                }
                Err(InputError::Stopped(_)) => return self.ended().await,
                Err(error @ (InputError::NotAFile(_) | InputError::Unreadable(_))) => {
                    let line = error.to_string();
                    self.makes.metrics.update_input(&name, |p| p.trouble = Some(line.clone()));
                    self.makes.metrics.log_error(self.makes.clock, line);
                }
            }
        }
    }

    async fn journal(self, source: CountedInput, mut follower: Box<journald::JournalFollower>) {
        let name = source.name.clone();
        if self.feed.send(InputEvent::LogInput(self.number, Box::new(source))).await.is_err() {
            return self.ended().await;
        }
        loop {
            match follower.next().await {
                journald::JournalEvent::Entries(block) => {
                    if self.feed.send(InputEvent::Block(self.number, block)).await.is_err() {
                        return self.ended().await;
                    }
                }
                journald::JournalEvent::Failed(line) => self.makes.trouble(&name, line),
                journald::JournalEvent::Gap(line) => {
                    self.makes.metrics.add("journal-gaps", 1);
                    self.makes.trouble(&name, line);
                }
            }
        }
    }

    async fn stdin(self, source: CountedInput, stdin: SharedStdin) {
        let name = source.name.clone();
        if self.feed.send(InputEvent::LogInput(self.number, Box::new(source))).await.is_err() {
            return self.ended().await;
        }
        let mut stdin = stdin.lock().await;
        // A place first: what is taken from the input must not be dropped on its way.
        while let Ok(place) = self.feed.reserve().await {
            match stdin.next().await {
                Some(Ok(block)) => place.send(InputEvent::Block(self.number, block)),
                Some(Err(error)) => self.makes.trouble(&name, format!("cannot be read: {error}; nothing more is read")),
                None => {
                    drop(place);
                    tracing::info!("input stdin: has ended; nothing more is counted from it");
                    return self.ended().await;
                }
            }
        }
        self.ended().await;
    }

    async fn datagrams(
        self,
        source: CountedInput,
        socket: UnixDatagram,
        queue: Arc<DatagramQueue>,
        mut shutdown: watch::Receiver<bool>,
    ) -> Result<(), String> {
        let name = source.name.clone();
        let (metrics, clock) = (self.makes.metrics.clone(), self.makes.clock);
        let (known, is_known) = oneshot::channel();
        if self.feed.send(InputEvent::DatagramInput(self.number, Box::new(source), known)).await.is_err()
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

    /// Looks for the files of a pattern, and reads each as an input of its own.
    async fn pattern(self, pattern: PathBuf, mta: Dialect, zone: TimeZone, numbers: Arc<AtomicUsize>) {
        let mut known: BTreeSet<PathBuf> = BTreeSet::new();
        let mut readers = tokio::task::JoinSet::new();
        let name = pattern.display().to_string();
        let mut said = false;
        loop {
            let text = name.clone();
            let found = tokio::task::spawn_blocking(move || matching(&text)).await.unwrap_or_default();
            for path in found {
                if known.contains(&path) || self.is_followed(&path) {
                    continue;
                }
                if known.len() >= MAX_FILES {
                    if !said {
                        said = true;
                        let line =
                            format!("more than {MAX_FILES} files; {} and later ones are not read", path.display());
                        self.makes.trouble(&name, line);
                    }
                    break;
                }
                let file = path.display().to_string();
                match self.makes.source(&file, mta, zone.clone()) {
                    Ok(Restored { source, mark }) => {
                        tracing::info!("input: following {file}");
                        let number = numbers.fetch_add(1, Ordering::Relaxed);
                        let newest = source.counter.newest_line_time();
                        self.makes.metrics.update_input(&file, |p| p.newest = newest);
                        let task = Feeding { number, feed: self.feed.clone(), makes: self.makes.clone() };
                        readers.spawn(task.file(source, file::FileFollower::new(&path, mark)));
                        known.insert(path);
                    }
                    Err(error) => self.makes.trouble(&name, format!("{file}: {error}; it is tried again")),
                }
            }
            let _ = tokio::time::timeout(LOOK, readers.join_next()).await;
            if readers.is_empty() {
                tokio::time::sleep(LOOK).await;
            }
        }
    }

    /// Whether a file is an input already, by itself or by another pattern, under this name or another.
    fn is_followed(&self, path: &Path) -> bool {
        let identity = |path: &Path| std::fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
        let this = identity(path);
        let same = |other: &Path| other == path || other.is_absolute() && this.is_some() && identity(other) == this;
        self.makes.metrics.inputs().keys().any(|name| same(Path::new(name)))
    }

    /// The counting has ended, and says why itself.
    async fn ended(&self) {
        std::future::pending().await
    }
}

/// The log files of a pattern: regular files, without the rotated ones beside another that is one of them.
fn matching(pattern: &str) -> Vec<PathBuf> {
    let Ok(found) = glob::glob(pattern) else { return Vec::new() };
    let files: Vec<PathBuf> = found.filter_map(Result::ok).filter(|path| path.is_file()).collect();
    let rotated = |path: &PathBuf| files.iter().any(|other| other != path && file::is_rotated(other, path));
    files.iter().filter(|path| !rotated(path)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_leaves_rotated_files_out() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["mail.log", "mail.log.1", "mail.log.2.gz", "mail.log-20261122", "mail-out.log", "other"] {
            std::fs::write(folder.path().join(name), "x").unwrap();
        }
        std::fs::create_dir(folder.path().join("mail.d")).unwrap();
        let found = matching(&format!("{}/mail*", folder.path().display()));
        let names: Vec<_> = found.iter().map(|p| p.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["mail-out.log", "mail.log"]);
    }
}
