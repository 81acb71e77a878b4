//! The rotated files beside a log file, oldest first.
//!
//! Takes: the log file's path. Gives: `mail.log.2.gz`, `mail.log.1`, `mail.log-20261122`, `mail-20261122.log`, ….
//! Limits: [`MOST`] files; names of the two kinds that logrotate, savelog and rsyslog make: numbered and dated.
//! When it fails: an I/O error on the folder. Files that cannot be looked at are left out.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::SystemTime;

use regex::bytes::Regex;

/// The most rotated files that are looked at; the newest are kept.
const MOST: usize = 1000;

/// A rotated file.
#[derive(Debug)]
pub(super) struct Sibling {
    pub path: PathBuf,
    pub inode: u64,
    pub device: u64,
    /// Octets on disk.
    pub length: u64,
    packed: bool,
    written: SystemTime,
    rank: Rank,
}

/// What its name says of its age.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Rank {
    /// The higher, the older.
    Number(u32),
    /// The digits of a date, and of a time or a number behind it.
    Date(String),
}

/// The rotated files of `log`, oldest first.
pub(super) fn of(log: &Path) -> io::Result<Vec<Sibling>> {
    let Some(name) = log.file_name() else { return Ok(Vec::new()) };
    let folder = folder(log);
    let mut found = Vec::new();
    for entry in folder.read_dir()? {
        let entry = entry?;
        let other = entry.file_name();
        let (plain, packed) = match other.as_encoded_bytes().strip_suffix(b".gz") {
            Some(plain) => (plain, true),
            None => (other.as_encoded_bytes(), false),
        };
        let Some(rank) = rank(name.as_encoded_bytes(), plain) else { continue };
        let path = folder.join(&other);
        let Ok(meta) = path.metadata() else { continue };
        if meta.is_file() {
            let written = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let (inode, device, length) = (meta.ino(), meta.dev(), meta.len());
            found.push(Sibling { path, inode, device, length, packed, written, rank });
        }
    }
    sort(&mut found);
    // A file that is being packed stands there twice; until that is done only the first is whole.
    let plain: Vec<Rank> = found.iter().filter(|s| !s.packed).map(|s| s.rank.clone()).collect();
    found.retain(|sibling| !sibling.packed || !plain.contains(&sibling.rank));
    found.drain(..found.len().saturating_sub(MOST));
    Ok(found)
}

/// Whether `other` has the name of one of them.
pub(super) fn is_of(log: &Path, other: &Path) -> bool {
    let (Some(name), Some(other_name)) = (log.file_name(), other.file_name()) else { return false };
    let other_name = other_name.as_encoded_bytes();
    let plain = other_name.strip_suffix(b".gz").unwrap_or(other_name);
    folder(log) == folder(other) && rank(name.as_encoded_bytes(), plain).is_some()
}

/// When a name in the folder of `log` was last made, changed or removed.
pub(super) fn changed(log: &Path) -> io::Result<SystemTime> {
    folder(log).metadata()?.modified()
}

fn folder(log: &Path) -> &Path {
    match log.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// By one measure for all, so that it is an order: their names where they are of one kind, else their last change.
fn sort(siblings: &mut [Sibling]) {
    let numbered = siblings.iter().filter(|sibling| matches!(sibling.rank, Rank::Number(_))).count();
    if numbered == 0 || numbered == siblings.len() {
        siblings.sort_by(|a, b| match (&a.rank, &b.rank) {
            (Rank::Number(a), Rank::Number(b)) => b.cmp(a),
            (Rank::Date(a), Rank::Date(b)) => a.cmp(b),
            (Rank::Number(_), Rank::Date(_)) => std::cmp::Ordering::Less,
            (Rank::Date(_), Rank::Number(_)) => std::cmp::Ordering::Greater,
        });
    } else {
        siblings.sort_by_key(|sibling| sibling.written);
    }
}

/// What `name` says as a rotated file of `log`, if it is one: what it has more, at the end or before the extension.
fn rank(log: &[u8], name: &[u8]) -> Option<Rank> {
    let at_end = name.strip_prefix(log).and_then(added);
    at_end.or_else(|| {
        let dot = log.iter().rposition(|octet| *octet == b'.')?;
        name.strip_prefix(&log[..dot])?.strip_suffix(&log[dot..]).and_then(added)
    })
}

/// What a rotated file's name has more: `.1`, `-20261122`, `-20261122-1795305600`, `.2026-11-22_05:00`.
static ADDED: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"^[._-](?:(?<number>[0-9]{1,5})|(?<date>[0-9][0-9_:T.-]{7,40}))$")
        .expect("a constant that a test reads")
});

fn added(text: &[u8]) -> Option<Rank> {
    let found = ADDED.captures(text)?;
    if let Some(number) = found.name("number") {
        return str::from_utf8(number.as_bytes()).ok()?.parse().ok().map(Rank::Number);
    }
    let date = found.name("date")?.as_bytes();
    let digits: String = date.iter().filter(|octet| octet.is_ascii_digit()).map(|octet| char::from(*octet)).collect();
    (8..=24).contains(&digits.len()).then_some(Rank::Date(digits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_rotated_files_are_known() {
        let date = |digits: &str| Some(Rank::Date(digits.into()));
        for (name, want) in [
            ("mail.log.1", Some(Rank::Number(1))),
            ("mail.1.log", Some(Rank::Number(1))),
            ("mail.log.12", Some(Rank::Number(12))),
            ("mail.log-20261122", date("20261122")),
            ("mail-20261122.log", date("20261122")),
            ("mail.log-2026-11-22_05", date("2026112205")),
            ("mail.log-20261122-1795305600", date("202611221795305600")),
            ("mail.log", None),
            ("mail.log.old", None),
            ("mail.log.1.save", None),
            ("mail.log.", None),
            ("mail.log.1.2", None),
            ("mail.logs.1", None),
            ("xmail.log.1", None),
            ("mail.err.1", None),
        ] {
            assert_eq!(rank(b"mail.log", name.as_bytes()), want, "{name}");
        }
    }

    #[test]
    fn the_oldest_comes_first_and_half_packed_ones_do_not_count() {
        let home = tempfile::tempdir().unwrap();
        let names = |log: &str| -> Vec<String> {
            let found = of(&home.path().join(log)).unwrap();
            found.iter().map(|s| s.path.file_name().unwrap().to_str().unwrap().to_owned()).collect()
        };
        for name in ["a.log", "a.log.1", "a.log.2.gz", "a.log.10.gz", "a.log.1.gz", "a.log.2.xz"] {
            std::fs::write(home.path().join(name), "x").unwrap();
        }
        assert_eq!(names("a.log"), ["a.log.10.gz", "a.log.2.gz", "a.log.1"]);
        for name in ["b.log-20261122", "b.log-20261121.gz", "b.log-20261130"] {
            std::fs::write(home.path().join(name), "x").unwrap();
        }
        assert_eq!(names("b.log"), ["b.log-20261121.gz", "b.log-20261122", "b.log-20261130"]);
        assert_eq!(names("c.log"), [""; 0]);
    }
}
