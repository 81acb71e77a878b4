//! The rotated files beside a log file, oldest first.
//!
//! Takes: the log file's path. Gives: `mail.log.2.gz`, `mail.log.1`, `mail.log-20261122`, `mail-20261122.log`, ….
//! Limits: [`MAX_ROTATED_FILES`] files; names of the two kinds that logrotate, savelog and rsyslog make: numbered and dated.
//! When it fails: an I/O error on the folder. Files that cannot be looked at are left out.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::SystemTime;

use regex::bytes::Regex;

/// The most rotated files that are looked at; the newest are kept.
const MAX_ROTATED_FILES: usize = 1000;

/// A rotated file.
#[derive(Debug)]
pub(super) struct RotatedFile {
    pub path: PathBuf,
    pub(crate) inode: u64,
    pub(crate) device: u64,
    /// Bytes on disk.
    pub(crate) length: u64,
    compressed: bool,
    modified_at: SystemTime,
    order: RotationOrder,
}

/// The age of a rotated file by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
enum RotationOrder {
    /// The higher, the older.
    Number(u32),
    /// The digits of a date, and of a time or a number behind it.
    Date(String),
}

/// The rotated files of `log`, oldest first.
pub(super) fn rotated_files(log: &Path) -> io::Result<Vec<RotatedFile>> {
    let Some(name) = log.file_name() else { return Ok(Vec::new()) };
    let folder = folder(log);
    let mut found = Vec::new();
    for entry in folder.read_dir()? {
        let entry = entry?;
        let other = entry.file_name();
        let (plain, compressed) = match other.as_encoded_bytes().strip_suffix(b".gz") {
            Some(plain) => (plain, true),
            None => (other.as_encoded_bytes(), false),
        };
        let Some(order) = parse_rotation_order(name.as_encoded_bytes(), plain) else { continue };
        let path = folder.join(&other);
        let Ok(meta) = path.metadata() else { continue };
        if meta.is_file() {
            let modified_at = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let (inode, device, length) = (meta.ino(), meta.dev(), meta.len());
            found.push(RotatedFile { path, inode, device, length, compressed, modified_at, order });
        }
    }
    sort_oldest_first(&mut found);
    // A file that is being packed stands there twice; until that is done only the first is whole.
    let plain: Vec<RotationOrder> = found.iter().filter(|s| !s.compressed).map(|s| s.order.clone()).collect();
    found.retain(|file| !file.compressed || !plain.contains(&file.order));
    found.drain(..found.len().saturating_sub(MAX_ROTATED_FILES));
    Ok(found)
}

/// Whether `other` has the name of a rotated file of `log`.
pub(super) fn is_rotated_name(log: &Path, other: &Path) -> bool {
    let (Some(name), Some(other_name)) = (log.file_name(), other.file_name()) else { return false };
    let other_name = other_name.as_encoded_bytes();
    let plain = other_name.strip_suffix(b".gz").unwrap_or(other_name);
    folder(log) == folder(other) && parse_rotation_order(name.as_encoded_bytes(), plain).is_some()
}

/// When a name in the folder of `log` was last made, changed or removed.
pub(super) fn folder_changed_at(log: &Path) -> io::Result<SystemTime> {
    folder(log).metadata()?.modified()
}

fn folder(log: &Path) -> &Path {
    match log.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// Sorts all by one criterion: by name if all names are of one kind, else by the last change.
fn sort_oldest_first(files: &mut [RotatedFile]) {
    let numbered = files.iter().filter(|file| matches!(file.order, RotationOrder::Number(_))).count();
    if numbered == 0 || numbered == files.len() {
        files.sort_by(|a, b| match (&a.order, &b.order) {
            (RotationOrder::Number(a), RotationOrder::Number(b)) => b.cmp(a),
            (RotationOrder::Date(a), RotationOrder::Date(b)) => a.cmp(b),
            (RotationOrder::Number(_), RotationOrder::Date(_)) => std::cmp::Ordering::Less,
            (RotationOrder::Date(_), RotationOrder::Number(_)) => std::cmp::Ordering::Greater,
        });
    } else {
        files.sort_by_key(|file| file.modified_at);
    }
}

/// The order of `name` as a rotated file of `log`, if it is one: from the suffix at the end or before the extension.
fn parse_rotation_order(log: &[u8], name: &[u8]) -> Option<RotationOrder> {
    let at_end = name.strip_prefix(log).and_then(parse_suffix);
    at_end.or_else(|| {
        let dot = log.iter().rposition(|byte| *byte == b'.')?;
        name.strip_prefix(&log[..dot])?.strip_suffix(&log[dot..]).and_then(parse_suffix)
    })
}

/// The suffix of a rotated file: `.1`, `-20261122`, `-20261122-1795305600`, `.2026-11-22_05:00`.
static ROTATION_SUFFIX: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"^[._-](?:(?<number>[0-9]{1,5})|(?<date>[0-9][0-9_:T.-]{7,40}))$")
        .expect("a constant that a test reads")
});

fn parse_suffix(text: &[u8]) -> Option<RotationOrder> {
    let found = ROTATION_SUFFIX.captures(text)?;
    if let Some(number) = found.name("number") {
        return str::from_utf8(number.as_bytes()).ok()?.parse().ok().map(RotationOrder::Number);
    }
    let date = found.name("date")?.as_bytes();
    let digits: String = date.iter().filter(|byte| byte.is_ascii_digit()).map(|byte| char::from(*byte)).collect();
    (8..=24).contains(&digits.len()).then_some(RotationOrder::Date(digits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_rotated_files_are_known() {
        let date = |digits: &str| Some(RotationOrder::Date(digits.into()));
        for (name, want) in [
            ("mail.log.1", Some(RotationOrder::Number(1))),
            ("mail.1.log", Some(RotationOrder::Number(1))),
            ("mail.log.12", Some(RotationOrder::Number(12))),
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
            assert_eq!(parse_rotation_order(b"mail.log", name.as_bytes()), want, "{name}");
        }
    }

    #[test]
    fn the_oldest_comes_first_and_half_packed_ones_do_not_count() {
        let home = tempfile::tempdir().unwrap();
        let names = |log: &str| -> Vec<String> {
            let found = rotated_files(&home.path().join(log)).unwrap();
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
