//! The rotated files of a log file, oldest first.
//!
//! Takes: the log file's path. Gives: `mail.log.2.gz`, `mail.log.1`, `mail.log-20261122`, `mail-20261122.log`, …: beside the
//! path, beside the file that a symlink there points to, and in the folders below (logrotate's `olddir`).
//! Limits: [`MAX_ROTATED_FILES`] files, [`MAX_FOLDERS`] folders.
//! When it fails: an I/O error that names the folder or file. Folders below that refuse us are passed over.
//! Not here: what a name means (`rotated_name`).

use std::cmp::Ordering;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::RwLock;

use crate::counting::input::file::file_system::{LogFileKind, LogFileSystem};
use crate::counting::input::file::rotated_name::{self, Compression, DateForm, RotationOrder};
use crate::counting::input::file::series::{DatedFile, DatedSeries};

/// The most rotated files that are looked at; the newest are kept.
const MAX_ROTATED_FILES: usize = 1000;

/// The most folders below the log's own that are searched.
const MAX_FOLDERS: usize = 64;

/// The paths that are inputs of their own: never a rotated file of another.
pub type InputPaths = Arc<RwLock<HashSet<PathBuf>>>;

/// A rotated file.
#[derive(Clone, Debug)]
pub(super) struct RotatedFile {
    pub path: PathBuf,
    pub(crate) inode: u64,
    pub(crate) device: u64,
    /// Bytes on disk.
    pub(crate) length: u64,
    compression: Compression,
    /// When it last changed.
    pub(crate) modified: SystemTime,
    order: RotationOrder,
}

impl RotatedFile {
    /// Whether a writer may still add to it.
    pub(super) fn is_plain(&self) -> bool {
        self.compression == Compression::None
    }
}

/// What rotation has left of a log.
#[derive(Debug, Default)]
pub(super) struct RotatedFiles {
    /// The files that can be read, oldest first.
    pub(crate) readable: Vec<RotatedFile>,
    /// Those that are compressed otherwise than by gzip.
    pub(crate) unsupported: Vec<PathBuf>,
}

/// An error on a folder or file beside the log.
#[derive(Debug)]
pub(super) struct RotatedError {
    pub(crate) path: PathBuf,
    pub(crate) error: io::Error,
}

/// The files of a series, named by their date; `inputs` are left out.
pub(super) fn series_files(
    files: &dyn LogFileSystem,
    series: &DatedSeries,
    inputs: &InputPaths,
) -> Result<RotatedFiles, RotatedError> {
    let dated = series.files(files).map_err(|error| RotatedError { path: series.name().to_owned(), error })?;
    let (mut found, mut unsupported) = (Vec::new(), Vec::new());
    for DatedFile { path, digits } in dated {
        let compression = rotated_name::split_compression(path.as_os_str().as_bytes()).1;
        match look_at(files, &path, compression, RotationOrder::Date(digits), inputs)? {
            Some(file) if file.compression == Compression::Unsupported => unsupported.push(file.path),
            Some(file) => found.push(file),
            None => {}
        }
    }
    Ok(RotatedFiles { readable: in_order(found), unsupported })
}

/// The rotated files of `log`.
pub(super) fn rotated_files(
    files: &dyn LogFileSystem,
    log: &Path,
    inputs: &InputPaths,
) -> Result<RotatedFiles, RotatedError> {
    let mut found = Vec::new();
    let mut unsupported = Vec::new();
    for place in places(files, log) {
        let Some(name) = place.file_name() else { continue };
        let folder = folder(&place);
        let mut folders = Vec::new();
        for other in names(files, folder)? {
            let path = folder.join(&other);
            match rotated_file(files, name, &path, inputs)? {
                Some(file) if file.compression == Compression::Unsupported => unsupported.push(file.path),
                Some(file) => found.push(file),
                None if other.as_bytes().contains(&b'.') || folders.len() >= MAX_FOLDERS => {}
                None => folders.push(path),
            }
        }
        for below in folders {
            let names = match files.names(&below) {
                Ok(names) => names,
                // A file, or a folder of others.
                Err(e) if is_not_ours(&e) => continue,
                Err(error) => return Err(RotatedError { path: below, error }),
            };
            // Then what is rotated there is that log's.
            if names.iter().any(|other| other == name) {
                continue;
            }
            for other in names {
                match rotated_file(files, name, &below.join(other), inputs)? {
                    Some(file) if file.compression == Compression::Unsupported => unsupported.push(file.path),
                    Some(file) => found.push(file),
                    None => {}
                }
            }
        }
    }
    Ok(RotatedFiles { readable: in_order(found), unsupported })
}

/// Each file once, oldest first, without those that are being packed.
fn in_order(mut found: Vec<RotatedFile>) -> Vec<RotatedFile> {
    let mut known = HashSet::new();
    found.retain(|file| known.insert((file.device, file.inode)));
    sort_oldest_first(&mut found);
    // A file that is being packed stands there twice; until that is done only the first is whole.
    let plain: Vec<RotationOrder> =
        found.iter().filter(|file| file.compression == Compression::None).map(|file| file.order.clone()).collect();
    found.retain(|file| file.compression == Compression::None || !plain.contains(&file.order));
    found.drain(..found.len().saturating_sub(MAX_ROTATED_FILES));
    found
}

/// The logs in the same folder of which a file of this name can be a rotated one.
pub(super) fn possible_logs(path: &Path) -> Vec<PathBuf> {
    let names = path.file_name().map(|name| rotated_name::possible_logs(name.as_bytes())).unwrap_or_default();
    names.iter().map(|name| path.with_file_name(OsStr::from_bytes(name))).collect()
}

/// The log whose rotated file has this name, where the name alone says so.
pub(super) fn log_of_numbered_name(path: &Path) -> Option<PathBuf> {
    let base = rotated_name::base_of_numbered(path.file_name()?.as_bytes())?;
    Some(path.with_file_name(OsStr::from_bytes(base)))
}

/// When a name in the folder of `log` was last made, changed or removed.
pub(super) fn folder_changed_at(files: &dyn LogFileSystem, log: &Path) -> io::Result<SystemTime> {
    let mut newest = SystemTime::UNIX_EPOCH;
    for place in places(files, log) {
        newest = newest.max(files.metadata(folder(&place))?.modified);
    }
    Ok(newest)
}

/// The path, and where it is a symlink, the file that it points to: rotation happens beside either.
fn places(files: &dyn LogFileSystem, log: &Path) -> Vec<PathBuf> {
    let mut places = vec![log.to_owned()];
    // A log that is not there yet has no target.
    if let Ok(target) = files.resolve(log)
        && target.file_name().is_some()
        && (target.file_name() != log.file_name() || files.resolve(folder(log)).ok().as_deref() != target.parent())
    {
        places.push(target);
    }
    places
}

fn rotated_file(
    files: &dyn LogFileSystem,
    log: &OsStr,
    path: &Path,
    inputs: &InputPaths,
) -> Result<Option<RotatedFile>, RotatedError> {
    let Some(name) = path.file_name() else { return Ok(None) };
    let (plain, compression) = rotated_name::split_compression(name.as_bytes());
    let Some(order) = rotated_name::parse_rotation_order(log.as_bytes(), plain) else { return Ok(None) };
    look_at(files, path, compression, order, inputs)
}

/// A file by its name, if it is there and no input of its own.
fn look_at(
    files: &dyn LogFileSystem,
    path: &Path,
    compression: Compression,
    order: RotationOrder,
    inputs: &InputPaths,
) -> Result<Option<RotatedFile>, RotatedError> {
    if inputs.read().contains(path) {
        return Ok(None);
    }
    let meta = match files.metadata(path) {
        Ok(meta) if meta.kind == LogFileKind::Regular => meta,
        Ok(_) => return Ok(None),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(RotatedError { path: path.to_owned(), error }),
    };
    let (inode, device, length, modified) = (meta.inode, meta.device, meta.length, meta.modified);
    Ok(Some(RotatedFile { path: path.to_owned(), inode, device, length, compression, modified, order }))
}

/// Whether a name below the log's folder cannot be listed because it is not a folder, or not one for us.
fn is_not_ours(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotADirectory | io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied)
}

fn names(files: &dyn LogFileSystem, folder: &Path) -> Result<Vec<std::ffi::OsString>, RotatedError> {
    files.names(folder).map_err(|error| RotatedError { path: folder.to_owned(), error })
}

fn folder(log: &Path) -> &Path {
    match log.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// Sorts by name where the names are of one kind and mean one order, else by the last change.
fn sort_oldest_first(files: &mut [RotatedFile]) {
    let dates: Vec<&str> = files
        .iter()
        .filter_map(|file| match &file.order {
            RotationOrder::Date(digits) => Some(digits.as_str()),
            RotationOrder::Number(_) => None,
        })
        .collect();
    if dates.is_empty() {
        files.sort_by_key(|file| match file.order {
            RotationOrder::Number(number) => std::cmp::Reverse(number),
            RotationOrder::Date(_) => std::cmp::Reverse(0),
        });
        return;
    }
    if dates.len() < files.len() {
        files.sort_by_key(|file| file.modified);
        return;
    }
    let fits = |form: &DateForm| dates.iter().all(|digits| form.sort_key(digits).is_some());
    let forms: Vec<DateForm> = DateForm::ALL.into_iter().filter(fits).collect();
    match forms[..] {
        [form] => files.sort_by(|a, b| compare_dates(form, a, b)),
        // Seconds since 1970, or something else that grows.
        [] => files.sort_by(|a, b| digits(a).cmp(digits(b))),
        // The day first, or the month.
        _ => files.sort_by_key(|file| file.modified),
    }
}

fn compare_dates(form: DateForm, a: &RotatedFile, b: &RotatedFile) -> Ordering {
    form.sort_key(digits(a)).cmp(&form.sort_key(digits(b)))
}

fn digits(file: &RotatedFile) -> &str {
    match &file.order {
        RotationOrder::Date(digits) => digits,
        RotationOrder::Number(_) => "",
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::counting::input::file::file_system::HostFileSystem;

    fn names(log: &Path) -> Vec<String> {
        let found = rotated_files(&HostFileSystem, log, &InputPaths::default()).unwrap();
        found.readable.iter().map(|s| s.path.file_name().unwrap().to_str().unwrap().to_owned()).collect()
    }

    fn make(folder: &Path, all: &[&str]) {
        for name in all {
            fs::write(folder.join(name), "x").unwrap();
        }
    }

    #[test]
    fn the_oldest_comes_first_and_half_packed_ones_do_not_count() {
        let home = tempfile::tempdir().unwrap();
        make(home.path(), &["a.log", "a.log.1", "a.log.2.gz", "a.log.10.gz", "a.log.1.gz", "a.log.2.xz"]);
        assert_eq!(names(&home.path().join("a.log")), ["a.log.10.gz", "a.log.2.gz", "a.log.1"]);
        let found = rotated_files(&HostFileSystem, &home.path().join("a.log"), &InputPaths::default()).unwrap();
        assert_eq!(found.unsupported, [home.path().join("a.log.2.xz")]);
        make(home.path(), &["b.log-20261122", "b.log-20261121.gz", "b.log-20261130"]);
        assert_eq!(names(&home.path().join("b.log")), ["b.log-20261121.gz", "b.log-20261122", "b.log-20261130"]);
        assert_eq!(names(&home.path().join("c.log")), [""; 0]);
    }

    #[test]
    fn dates_are_read_in_every_order() {
        let home = tempfile::tempdir().unwrap();
        make(home.path(), &["d.log-30112026", "d.log-01122026", "d.log-31102026"]);
        assert_eq!(names(&home.path().join("d.log")), ["d.log-31102026", "d.log-30112026", "d.log-01122026"]);
        make(home.path(), &["e.log-12312026", "e.log-01012027"]);
        assert_eq!(names(&home.path().join("e.log")), ["e.log-12312026", "e.log-01012027"]);
        make(home.path(), &["f.log-1795305600", "f.log-1795392000"]);
        assert_eq!(names(&home.path().join("f.log")), ["f.log-1795305600", "f.log-1795392000"]);
        // Which form it is only the times tell.
        make(home.path(), &["g.log-02012027", "g.log-01022027"]);
        let later = SystemTime::now() + std::time::Duration::from_secs(60);
        fs::File::open(home.path().join("g.log-01022027")).unwrap().set_modified(later).unwrap();
        assert_eq!(names(&home.path().join("g.log")), ["g.log-02012027", "g.log-01022027"]);
    }

    #[test]
    fn rotated_files_are_found_beside_a_link_its_target_and_below() {
        let home = tempfile::tempdir().unwrap();
        let (link, target) = (home.path().join("log"), home.path().join("data"));
        fs::create_dir_all(link.join("old")).unwrap();
        fs::create_dir_all(link.join("other")).unwrap();
        fs::create_dir(&target).unwrap();
        make(&target, &["mail.log", "mail.log.1"]);
        make(&link, &["mail.log.3"]);
        make(&link.join("old"), &["mail.log.2", "mail.log.4.gz"]);
        // The rotated file of another log.
        make(&link.join("other"), &["mail.log", "mail.log.5"]);
        std::os::unix::fs::symlink(target.join("mail.log"), link.join("mail.log")).unwrap();
        assert_eq!(names(&link.join("mail.log")), ["mail.log.4.gz", "mail.log.3", "mail.log.2", "mail.log.1"]);
    }

    #[test]
    fn an_input_is_never_a_rotated_file_of_another() {
        let home = tempfile::tempdir().unwrap();
        make(home.path(), &["mail.log", "mail.1.log", "mail.2.log"]);
        let inputs = InputPaths::default();
        inputs.write().insert(home.path().join("mail.1.log"));
        let found = rotated_files(&HostFileSystem, &home.path().join("mail.log"), &inputs).unwrap();
        let found: Vec<&Path> = found.readable.iter().map(|file| file.path.as_path()).collect();
        assert_eq!(found, [home.path().join("mail.2.log")]);
    }
}
