//! Logs whose files are named by their date, as one log: a new file follows the one of the day before.
//!
//! Takes: the path of a file with a date in its name, or in those of its folders: `maillog-20261128`, Exim's `%slog-%D` and
//! `%M`, `2026/11/28/mail.log` of rsyslog and syslog-ng. Gives: the name of the series, which is the path with `*` in the
//! place of each date, and the files that belong to it.
//! Limits: dates with the year first, or with the day or month first and all of them in one name; [`MAX_FOLDERS`] folders.
//! When it fails: the I/O error of a folder. A folder with a date's name that refuses us is passed over, but not the first.
//! Not here: which file is the newest (`rotated`).

use std::io;
use std::ops::Range;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};
use std::sync::LazyLock;

use regex::bytes::Regex;

use crate::counting::input::file::file_system::LogFileSystem;
use crate::counting::input::file::rotated_name;

/// The most folders that are searched: for one file a day, a month and more.
const MAX_FOLDERS: usize = 40;

/// A date within a name: the year first, with or without an hour, or the year last.
static DATE: LazyLock<Regex> = LazyLock::new(|| {
    const MONTH: &str = "(?:0[1-9]|1[0-2])";
    const DAY: &str = "(?:0[1-9]|[12][0-9]|3[01])";
    const YEAR: &str = "(?:19|20)[0-9]{2}";
    let separator = "[-_.]?";
    let year_first = format!("{YEAR}{separator}{MONTH}(?:{separator}{DAY}(?:[-_.T]?(?:[01][0-9]|2[0-3]))?)?");
    let year_last = format!("{DAY}{separator}{DAY}{separator}{YEAR}");
    Regex::new(&format!("(?:^|[^0-9])(?<date>{year_first}|{year_last})(?:[^0-9]|$)"))
        .expect("a constant that a test reads")
});

/// A series, by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DatedSeries {
    name: PathBuf,
}

/// A file of a series.
#[derive(Debug)]
pub(super) struct DatedFile {
    pub(super) path: PathBuf,
    /// The digits of its date.
    pub(super) digits: String,
}

impl DatedSeries {
    /// The series that a file belongs to.
    pub(crate) fn of_file(path: &Path) -> Option<DatedSeries> {
        split(path).map(|(name, _)| DatedSeries { name })
    }

    /// The series of a name.
    pub(crate) fn from_name(name: &Path) -> Option<DatedSeries> {
        name.as_os_str().as_bytes().contains(&b'*').then(|| DatedSeries { name: name.to_owned() })
    }

    /// Its name.
    pub(crate) fn name(&self) -> &Path {
        &self.name
    }

    /// Its files, in no order.
    pub(super) fn files(&self, files: &dyn LogFileSystem) -> io::Result<Vec<DatedFile>> {
        let mut found = Vec::new();
        let mut folders = 0;
        self.search(files, PathBuf::new(), &self.name, &mut folders, &mut found)?;
        Ok(found)
    }

    /// Searches `rest` below `folder`, the latest dates first.
    fn search(
        &self,
        files: &dyn LogFileSystem,
        mut folder: PathBuf,
        rest: &Path,
        folders: &mut usize,
        found: &mut Vec<DatedFile>,
    ) -> io::Result<()> {
        let mut parts = rest.components();
        let Some(part) = parts.by_ref().find(|part| {
            let dated = part.as_os_str().as_bytes().contains(&b'*');
            if !dated {
                folder.push(part);
            }
            dated
        }) else {
            // The dates are all in the names of folders.
            found.extend(self.file(&folder));
            return Ok(());
        };
        let is_first = *folders == 0;
        *folders += 1;
        let names = files.names(if folder == Path::new("") { Path::new(".") } else { &folder });
        let mut names = match names {
            Ok(names) => names,
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(()),
            // A folder below that is named by a number may be another program's.
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied && !is_first => return Ok(()),
            Err(e) => return Err(e),
        };
        let pattern = part.as_os_str().as_bytes();
        let star = pattern.iter().position(|byte| *byte == b'*').unwrap_or(pattern.len());
        let (before, after) = (&pattern[..star], pattern.get(star + 1..).unwrap_or_default());
        let rest = parts.as_path();
        let is_last = rest == Path::new("");
        names.retain(|name| {
            let (plain, _) = rotated_name::split_compression(name.as_bytes());
            let plain = if is_last { plain } else { name.as_bytes() };
            plain.strip_prefix(before).and_then(|rest| rest.strip_suffix(after)).is_some_and(may_be_date)
        });
        if is_last {
            found.extend(names.into_iter().filter_map(|name| self.file(&folder.join(name))));
            return Ok(());
        }
        names.sort();
        for name in names.into_iter().rev() {
            if *folders >= MAX_FOLDERS {
                break;
            }
            self.search(files, folder.join(name), rest, folders, found)?;
        }
        Ok(())
    }

    fn file(&self, path: &Path) -> Option<DatedFile> {
        let (name, digits) = split(path)?;
        (name == self.name).then(|| DatedFile { path: path.to_owned(), digits })
    }
}

/// The name of the series and the digits of the date, where a path has one.
fn split(path: &Path) -> Option<(PathBuf, String)> {
    let parts: Vec<Component<'_>> = path.components().collect();
    let (last, folders) = parts.split_last()?;
    let (mut name, mut digits) = (PathBuf::new(), String::new());
    let mut add = |name: &mut PathBuf, part: &[u8], date: Range<usize>| {
        digits.extend(part[date.clone()].iter().filter(|byte| byte.is_ascii_digit()).map(|byte| char::from(*byte)));
        let starred = [&part[..date.start], b"*", &part[date.end..]].concat();
        name.push(std::ffi::OsString::from_vec(starred));
    };
    let mut at = 0;
    while let Some(folder) = folders.get(at) {
        let text = folder.as_os_str().as_bytes();
        let of_tree = date_folders(&folders[at..]);
        match find_date(text) {
            _ if of_tree > 0 => {
                for folder in &folders[at..at + of_tree] {
                    let text = folder.as_os_str().as_bytes();
                    add(&mut name, text, 0..text.len());
                }
                at += of_tree - 1;
            }
            Some(date) => add(&mut name, text, date),
            None => name.push(folder),
        }
        at += 1;
    }
    let (plain, _) = rotated_name::split_compression(last.as_os_str().as_bytes());
    match find_date(plain) {
        Some(date) => add(&mut name, plain, date),
        None => name.push(std::ffi::OsStr::from_bytes(plain)),
    }
    (!digits.is_empty()).then_some((name, digits))
}

/// The last date in a name.
fn find_date(name: &[u8]) -> Option<Range<usize>> {
    let mut last = None;
    let mut from = 0;
    // Dates share the byte between them.
    while let Some(found) = DATE.captures_at(name, from).and_then(|found| found.name("date")) {
        last = Some(found.range());
        from = found.end();
    }
    last
}

/// Whether a part of a name has only what [`DATE`] and the folders of a date are made of. Other names are not searched.
fn may_be_date(part: &[u8]) -> bool {
    !part.is_empty() && part.iter().all(|byte| byte.is_ascii_digit() || b"-_.T".contains(byte))
}

/// How many folders from here on are a year, a month, and a day: none, 2 or 3.
fn date_folders(folders: &[Component<'_>]) -> usize {
    let number = |at: usize, digits: usize| -> Option<u16> {
        let text = folders.get(at)?.as_os_str().to_str()?;
        (text.len() == digits && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?
    };
    let year = number(0, 4).is_some_and(|year| (1990..=2100).contains(&year));
    let month = number(1, 2).is_some_and(|month| (1..=12).contains(&month));
    let day = number(2, 2).is_some_and(|day| (1..=31).contains(&day));
    match (year && month, day) {
        (false, _) => 0,
        (true, false) => 2,
        (true, true) => 3,
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::sync::Arc;
    use std::time::{Instant, SystemTime};

    use super::*;
    use crate::counting::input::file::file_system::{HostFileSystem, LogFileHandle, LogFileMetadata};

    #[test]
    fn a_date_in_a_path_names_its_series() {
        for (path, want) in [
            ("/v/maillog-20261128", Some(("/v/maillog-*", "20261128"))),
            ("/v/maillog-20261127.gz", Some(("/v/maillog-*", "20261127"))),
            ("/v/mainlog-202611", Some(("/v/mainlog-*", "202611"))),
            ("/v/20261128mainlog", Some(("/v/*mainlog", "20261128"))),
            ("/v/exim-20261128-main.log", Some(("/v/exim-*-main.log", "20261128"))),
            ("/v/mail-2026-11-28.log", Some(("/v/mail-*.log", "20261128"))),
            ("/v/mail.2026_11_28_05.log", Some(("/v/mail.*.log", "2026112805"))),
            ("/v/mail-28112026.log", Some(("/v/mail-*.log", "28112026"))),
            ("/v/2026/11/28/mail.log", Some(("/v/*/*/*/mail.log", "20261128"))),
            ("/v/host/2026/11/mail.log", Some(("/v/host/*/*/mail.log", "202611"))),
            ("/v/2026-11-28/mail.log", Some(("/v/*/mail.log", "20261128"))),
            ("/v/2026/11/mail-20261128.log", Some(("/v/*/*/mail-*.log", "20261120261128"))),
            ("/v/mail.log", None),
            ("/v/postfix-2.log", None),
            ("/v/mail.log-1795305600", None),
            ("/v/mail-20261328.log", None),
            ("/v/2026/mail.log", None),
            ("/v/mail-120261128.log", None),
        ] {
            let found = split(Path::new(path));
            let found = found.as_ref().map(|(name, digits)| (name.to_str().unwrap(), digits.as_str()));
            assert_eq!(found, want, "{path}");
        }
    }

    /// Of a host's folders, of which one cannot be listed.
    struct PrivateFolder(PathBuf);

    impl LogFileSystem for PrivateFolder {
        fn metadata(&self, path: &Path) -> io::Result<LogFileMetadata> {
            HostFileSystem.metadata(path)
        }

        fn open(&self, path: &Path) -> io::Result<Arc<dyn LogFileHandle>> {
            HostFileSystem.open(path)
        }

        fn names(&self, folder: &Path) -> io::Result<Vec<OsString>> {
            match folder == self.0 {
                true => Err(io::ErrorKind::PermissionDenied.into()),
                false => HostFileSystem.names(folder),
            }
        }

        fn resolve(&self, path: &Path) -> io::Result<PathBuf> {
            HostFileSystem.resolve(path)
        }

        fn now(&self) -> Instant {
            HostFileSystem.now()
        }

        fn time(&self) -> SystemTime {
            HostFileSystem.time()
        }
    }

    /// `/var/log` has many folders beside those of a year.
    #[test]
    fn other_folders_do_not_hide_those_of_a_date() {
        let home = tempfile::tempdir().unwrap();
        let log = home.path().join("2026/11/28/mail.log");
        std::fs::create_dir_all(log.parent().unwrap()).unwrap();
        std::fs::write(&log, "x").unwrap();
        for number in 0..50 {
            std::fs::create_dir_all(home.path().join(format!("program{number}/11/28"))).unwrap();
        }
        std::fs::create_dir(home.path().join("2027")).unwrap();
        let series = DatedSeries::of_file(&log).unwrap();
        for private in ["program7", "2027"] {
            let found = series.files(&PrivateFolder(home.path().join(private))).unwrap();
            assert_eq!(found.iter().map(|file| &file.path).collect::<Vec<_>>(), [&log], "{private}");
        }
        let refused = series.files(&PrivateFolder(home.path().to_owned())).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn the_files_of_a_series_are_found() {
        let home = tempfile::tempdir().unwrap();
        let names = |name: &str| -> Vec<String> {
            let series = DatedSeries::from_name(&home.path().join(name)).unwrap();
            let files = series.files(&HostFileSystem).unwrap();
            let mut names: Vec<String> =
                files.iter().map(|f| f.path.strip_prefix(home.path()).unwrap().to_str().unwrap().to_owned()).collect();
            names.sort();
            names
        };
        for path in [
            "maillog-20261127.gz",
            "maillog-20261128",
            "maillog-20261128.1",
            "maillog-x",
            "rejectlog-20261128",
            "2026/11/27/mail.log",
            "2026/11/28/mail.log",
            "2026/11/28/other.log",
            "2026/12/01/mail.log",
            "2026/xx/01/mail.log",
        ] {
            let path = home.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        }
        assert_eq!(names("maillog-*"), ["maillog-20261127.gz", "maillog-20261128"]);
        assert_eq!(names("*/*/*/mail.log"), ["2026/11/27/mail.log", "2026/11/28/mail.log", "2026/12/01/mail.log"]);
        assert_eq!(names("mainlog-*"), [""; 0]);
        assert_eq!(names("gone/*/mail.log"), [""; 0]);
    }
}
