//! Inputs that come, go, and come back: where reading begins, so that no line is counted twice.
//!
//! Takes: the inputs of the configuration, and the store, which knows those that were read. Gives: records for the new
//! inputs: the position of a removed input whose log it is under another name, or the time up to which lines are left out:
//! that of the newest line counted of the inputs that are gone.
//! Limits: records of a removed input go after [`REMOVED_INPUT_AGE`]. Times are seconds: of the lines of that very second none is
//! counted again, and those that nobody counted are lost.
//! When it fails: a [`StoreError`]; nothing was changed.
//! Not here: reading (`input`), which inputs there are (`config`).

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use crate::config::{InputKind, InputStart};
use crate::counting::counted_before::CountedBefore;
use crate::counting::input::{Position, file};
use crate::counting::pipeline::{load_newest_line_time, open_key};
use crate::store::{Batch, Store, StoreError, Table};

/// The key of the record of inputs, in [`Table::NamedValue`].
const KEY: &[u8] = b"inputs";

/// How long the position of a removed input is kept, in seconds.
const REMOVED_INPUT_AGE: i64 = 90 * 86_400;

/// The inputs that the store knows: `None`, or since when they are removed.
type KnownInputs = BTreeMap<String, Option<i64>>;

/// An input of the configuration.
pub(crate) struct ConfiguredInput<'a> {
    /// What it reads.
    pub(crate) kind: InputKind<'a>,
    /// Where it begins, if the administrator says so.
    pub(crate) start: Option<InputStart>,
    /// For a pattern, the files that it matches now.
    pub(crate) files: Vec<PathBuf>,
}

/// What was decided about the inputs that are new or came back.
pub(crate) struct PreparedInputs {
    /// Until when lines are left out of each, by name.
    pub(crate) left_out: HashMap<String, i64>,
    /// Whether that is stored; where it is not, it holds until the daemon ends.
    pub(crate) stored: Result<(), StoreError>,
}

/// Compares the configuration with what was read before, and prepares the inputs that are new or came back. Logs what it
/// decides. Fails where the store cannot be read.
pub(crate) fn prepare_inputs(
    store: &dyn Store,
    configured: &[ConfiguredInput<'_>],
    now: i64,
) -> Result<PreparedInputs, StoreError> {
    let known: Option<KnownInputs> =
        store.read(Table::NamedValue, KEY)?.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let stored: BTreeMap<String, Vec<u8>> = store
        .scan(Table::Position, b"")?
        .into_iter()
        .filter_map(|(name, position)| Some((String::from_utf8(name).ok()?, position)))
        .collect();
    let mut gone: BTreeMap<&str, Option<i64>> = BTreeMap::new();
    for name in stored.keys().filter(|name| !configured.iter().any(|input| input.reads(name))) {
        gone.insert(name, load_newest_line_time(store, name)?);
    }
    let mut batch = Batch::default();
    let mut left_out = HashMap::new();
    let mut taken_over: Vec<(String, i64)> = Vec::new();
    let was_active = |input: &ConfiguredInput<'_>| match &known {
        Some(known) => known.get(&input.kind.to_string()) == Some(&None),
        None => stored.contains_key(&input.kind.to_string()),
    };
    let mut new: Vec<(Option<InputStart>, String)> = Vec::new();
    for input in configured.iter().filter(|input| input.has_position() && !was_active(input)) {
        for name in input.names() {
            let same = same_log(Path::new(&name), &stored, &gone).filter(|_| !stored.contains_key(&name));
            let (None, Some(old)) = (input.start, same) else {
                new.push((input.start, name));
                continue;
            };
            // One that has another name is not gone.
            let newest = gone.remove(old).flatten();
            move_records(store, old, &name, &stored[old], &mut batch)?;
            tracing::info!("input {name}: it is the log that was read as {old}; reading continues where that ended");
            taken_over.extend(newest.map(|newest| (name, newest)));
        }
    }
    let newest = gone.iter().filter_map(|(name, newest)| Some(((*newest)?, *name))).max();
    for (start, name) in new {
        let (until, why) = match (start, newest) {
            (Some(InputStart::Beginning), _) => continue,
            (Some(InputStart::Now), _) => (now, "as `start` says".to_owned()),
            (Some(InputStart::Time(time)), _) => (time.as_second() - 1, "as `start` says".to_owned()),
            (None, None) => continue,
            (None, Some((newest, of))) => {
                (newest, format!("the newest line counted of {of}, which is not an input any more"))
            }
        };
        // One that comes back has its own position, which may be newer.
        if load_newest_line_time(store, &name)?.is_some_and(|own| own >= until) {
            continue;
        }
        let shown = Timestamp::from_second(until).map(|time| time.to_string()).unwrap_or_default();
        tracing::warn!("input {name}: lines up to {shown} are not counted from it: {why}");
        let value = Some(until.to_string().into_bytes());
        batch.set.push((Table::OpenState, open_key(&name, CountedBefore::KEY), value));
        left_out.insert(name, until);
    }
    let mut inputs: KnownInputs =
        configured.iter().filter(|input| input.has_position()).map(|input| (input.kind.to_string(), None)).collect();
    for name in gone.keys() {
        let since = known.as_ref().and_then(|known| known.get(*name).copied().flatten()).unwrap_or(now);
        if now.saturating_sub(since) > REMOVED_INPUT_AGE {
            remove_records(store, name, &mut batch)?;
        } else {
            inputs.insert((*name).to_owned(), Some(since));
        }
    }
    if known.as_ref() != Some(&inputs) {
        let record = serde_json::to_vec(&inputs).expect("plain structures always serialise");
        batch.set.push((Table::NamedValue, KEY.to_vec(), Some(record)));
    }
    let written = if batch.set.is_empty() { Ok(()) } else { store.write(batch) };
    if written.is_err() {
        // Their positions are still those of the old names.
        left_out.extend(taken_over);
    }
    Ok(PreparedInputs { left_out, stored: written })
}

impl ConfiguredInput<'_> {
    /// Whether it can be read again, and has a position.
    fn has_position(&self) -> bool {
        matches!(self.kind, InputKind::File(_) | InputKind::Files(_) | InputKind::Journal(_))
    }

    /// Whether a stored position is its own, or that of one of its files.
    fn reads(&self, name: &str) -> bool {
        match self.kind {
            InputKind::Files(pattern) => {
                let pattern = glob::Pattern::new(&pattern.to_string_lossy());
                let options = glob::MatchOptions { require_literal_separator: true, ..glob::MatchOptions::new() };
                // A file of a series is not an input of its own.
                let series = file::DatedSeries::of_file(Path::new(name));
                let of_series = series.is_some_and(|series| self.files.iter().any(|log| log == series.name()));
                pattern.is_ok_and(|pattern| pattern.matches_with(name, options)) && !of_series
                    || self.files.iter().any(|log| log == Path::new(name))
            }
            _ => self.kind.to_string() == name,
        }
    }

    /// The names under which its positions are stored.
    fn names(&self) -> Vec<String> {
        match self.kind {
            InputKind::Files(_) => self.files.iter().map(|path| path.display().to_string()).collect(),
            _ => vec![self.kind.to_string()],
        }
    }
}

/// The removed input whose log stands at `path` now.
fn same_log<'a>(
    path: &Path,
    stored: &BTreeMap<String, Vec<u8>>,
    gone: &BTreeMap<&'a str, Option<i64>>,
) -> Option<&'a str> {
    gone.keys().find_map(|name| match Position::decode(stored.get(*name)?) {
        Ok(Position::File(position)) => file::is_log_of(path, &position).then_some(*name),
        _ => None,
    })
}

/// Moves the position and the open state of an input to another name.
fn move_records(store: &dyn Store, old: &str, new: &str, position: &[u8], batch: &mut Batch) -> Result<(), StoreError> {
    batch.set.push((Table::Position, new.as_bytes().to_vec(), Some(position.to_vec())));
    let prefix = open_key(old, b"");
    for (key, value) in store.scan(Table::OpenState, &prefix)? {
        batch.set.push((Table::OpenState, open_key(new, &key[prefix.len()..]), Some(value)));
    }
    remove_records(store, old, batch)
}

fn remove_records(store: &dyn Store, name: &str, batch: &mut Batch) -> Result<(), StoreError> {
    batch.set.push((Table::Position, name.as_bytes().to_vec(), None));
    for (key, _) in store.scan(Table::OpenState, &open_key(name, b""))? {
        batch.set.push((Table::OpenState, key, None));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::Clock;
    use crate::counting::counter::NEWEST_LINE_KEY;
    use crate::counting::input::file_position::{FilePosition, HeadDigest};
    use crate::store::embedded::EmbeddedStore;

    struct Host {
        store: EmbeddedStore,
        _folder: tempfile::TempDir,
    }

    impl Host {
        fn new() -> Host {
            let folder = tempfile::tempdir().unwrap();
            let store = EmbeddedStore::open(folder.path(), Clock::default()).unwrap().store;
            Host { store, _folder: folder }
        }

        /// An input that was counted up to `newest`.
        fn counted(&self, name: &str, newest: i64) {
            let position = Position::File(FilePosition { inode: 1, offset: 1, ..FilePosition::default() });
            let newest = Some(newest.to_string().into_bytes());
            let set = vec![
                (Table::Position, name.into(), Some(position.encode())),
                (Table::OpenState, open_key(name, NEWEST_LINE_KEY), newest),
            ];
            self.store.write(Batch { add: vec![], set }).unwrap();
        }

        fn start(&self, kinds: &[InputKind<'_>], now: i64) -> Vec<(String, i64)> {
            self.start_at(kinds, None, now)
        }

        fn start_at(&self, kinds: &[InputKind<'_>], start: Option<InputStart>, now: i64) -> Vec<(String, i64)> {
            let files = vec![PathBuf::from("/logs/one.log"), PathBuf::from("/logs/two.log")];
            let inputs: Vec<ConfiguredInput<'_>> =
                kinds.iter().map(|kind| ConfiguredInput { kind: kind.clone(), start, files: files.clone() }).collect();
            let prepared = prepare_inputs(&self.store, &inputs, now).unwrap();
            prepared.stored.unwrap();
            let mut left_out: Vec<(String, i64)> = prepared.left_out.into_iter().collect();
            left_out.sort();
            left_out
        }
    }

    const JOURNAL: InputKind<'static> = InputKind::Journal(None);

    fn log(path: &str) -> InputKind<'_> {
        InputKind::File(Path::new(path))
    }

    #[test]
    fn an_exchanged_input_begins_after_the_one_that_is_gone() {
        let host = Host::new();
        assert_eq!(host.start(&[log("/a")], 1000), []);
        host.counted("/a", 900);
        assert_eq!(host.start(&[log("/a")], 1001), []);
        // Exchanged, and stored: also after a kill before the first commit.
        assert_eq!(host.start(&[JOURNAL], 1002), [("journal".to_owned(), 900)]);
        let stored = host.store.read(Table::OpenState, &open_key("journal", CountedBefore::KEY)).unwrap();
        assert_eq!(stored.as_deref(), Some(&b"900"[..]));
        host.counted("journal", 950);
        assert_eq!(host.start(&[JOURNAL], 1003), []);
        // And back again: its own position is older.
        assert_eq!(host.start(&[log("/a")], 1004), [("/a".to_owned(), 950)]);
        host.counted("/a", 1000);
        assert_eq!(host.start(&[JOURNAL, log("/a")], 1005), []);
    }

    #[test]
    fn a_log_under_another_name_is_not_gone_for_an_input_that_is_added() {
        let (host, folder) = (Host::new(), tempfile::tempdir().unwrap());
        let (log_path, added) = (folder.path().join("moved.log"), folder.path().join("added.log"));
        let text = b"Nov 22 01:02:03 mta postfix/smtp[1]: a line that was counted\n";
        std::fs::write(&log_path, text).unwrap();
        let position =
            FilePosition { head: HeadDigest::of(text), offset: text.len() as u64, ..FilePosition::default() };
        let position = Position::File(position);
        host.counted("/a", 900);
        let set = vec![(Table::Position, b"/a".to_vec(), Some(position.encode()))];
        host.store.write(Batch { add: vec![], set }).unwrap();
        assert_eq!(host.start(&[InputKind::File(&added), InputKind::File(&log_path)], 1000), []);
        let name = log_path.to_str().unwrap();
        assert_eq!(host.store.read(Table::Position, name.as_bytes()).unwrap(), Some(position.encode()));
    }

    #[test]
    fn an_input_that_stays_and_one_that_is_added_read_all() {
        let host = Host::new();
        host.start(&[log("/a"), log("/b")], 1000);
        host.counted("/a", 900);
        host.counted("/b", 100);
        assert_eq!(host.start(&[log("/a"), log("/b"), log("/c")], 1001), []);
        // `/b` stays, however old its newest line is.
        assert_eq!(host.start(&[log("/b")], 1002), []);
        assert_eq!(host.start(&[log("/b"), log("/d")], 1003), [("/d".to_owned(), 900)]);
    }

    #[test]
    fn files_of_a_pattern_begin_after_what_it_replaces() {
        let host = Host::new();
        let pattern = InputKind::Files(Path::new("/logs/*.log"));
        host.start(&[log("/logs/one.log"), log("/a")], 1000);
        host.counted("/logs/one.log", 900);
        host.counted("/a", 950);
        assert_eq!(host.start(&[pattern.clone(), log("/a")], 1001), []);
        let both = [("/logs/one.log".to_owned(), 950), ("/logs/two.log".to_owned(), 950)];
        let host = Host::new();
        host.start(&[log("/a")], 1000);
        host.counted("/a", 950);
        assert_eq!(host.start(std::slice::from_ref(&pattern), 1001), both);
        assert_eq!(host.start(&[pattern], 1002), []);
    }

    #[test]
    fn the_administrator_says_where_it_begins() {
        let host = Host::new();
        assert_eq!(host.start_at(&[log("/a")], Some(InputStart::Now), 1000), [("/a".to_owned(), 1000)]);
        host.counted("/a", 1100);
        assert_eq!(host.start_at(&[log("/a")], Some(InputStart::Now), 2000), []);
        assert_eq!(host.start_at(&[JOURNAL], Some(InputStart::Beginning), 2001), []);
        let time = InputStart::Time(Timestamp::from_second(1500).unwrap());
        assert_eq!(host.start_at(&[log("/c")], Some(time), 2002), [("/c".to_owned(), 1499)]);
    }

    #[test]
    fn positions_of_removed_inputs_go_after_a_time() {
        let host = Host::new();
        host.start(&[log("/a")], 1000);
        host.counted("/a", 900);
        host.start(&[JOURNAL], 1001);
        host.start(&[JOURNAL], 1001 + REMOVED_INPUT_AGE);
        assert!(host.store.read(Table::Position, b"/a").unwrap().is_some());
        host.start(&[JOURNAL], 1002 + REMOVED_INPUT_AGE);
        assert_eq!(host.store.scan(Table::Position, b"").unwrap(), []);
        assert_eq!(host.store.scan(Table::OpenState, &open_key("/a", b"")).unwrap(), []);
    }
}
