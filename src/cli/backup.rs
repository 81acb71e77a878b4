//! `tlswarden backup DIR`: a copy of the store, of one moment, while the daemon runs or without it.
//!
//! The daemon is confined to its own folders: it copies within the store's, and the copy is fetched from there. Back in
//! place of the store's folder it is the store.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown, lchown};
use std::path::{Path, PathBuf};

use super::control::query;
use super::{CliError, EX_IOERR, EX_USAGE, print_stdout};
use crate::config::Config;
use crate::daemon::control::ControlRequest;

pub(crate) fn backup(config: &Config, to: &Path) -> Result<(), CliError> {
    let shown = to.display();
    let empty = |folder: &Path| fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none());
    if to.symlink_metadata().is_ok() && !empty(to) {
        return Err(CliError::new(
            EX_USAGE,
            format!("{shown}: is there already: allowed: a new or an empty folder; nothing done"),
        ));
    }
    let copy: PathBuf = query(config, &ControlRequest::Backup, async |services| services.backup().await)?;
    let fetched = fetch(&copy, to).map_err(|e| {
        // What was copied so far is no backup.
        let _ = fs::remove_dir_all(to);
        CliError::new(EX_IOERR, format!("{shown}: cannot be written: {e}; there is no backup"))
    });
    // After a rename there is nothing left.
    let _ = fs::remove_dir_all(&copy);
    fetched?;
    print_stdout(&format!(
        "{shown}: the store as it was just now; put in place of {} it is the store\n",
        config.store.path.display()
    ))
}

/// Moves the copy; to another file system file by file.
fn fetch(copy: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(copy, to) {
        Err(e) if e.kind() == io::ErrorKind::CrossesDevices => {}
        renamed => return renamed,
    }
    copy_folder(copy, to)?;
    to.parent().map_or(Ok(()), |parent| {
        File::open(if parent.as_os_str().is_empty() { Path::new(".") } else { parent })?.sync_all()
    })
}

/// Copies a folder of plain files and folders, with their owners: the daemon must be able to open what is put back.
fn copy_folder(from: &Path, to: &Path) -> io::Result<()> {
    let owner = fs::metadata(from)?;
    match DirBuilder::new().mode(0o700).create(to) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        made => made?,
    }
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (path, here) = (entry.path(), to.join(entry.file_name()));
        let found = fs::symlink_metadata(&path)?;
        if found.is_dir() {
            copy_folder(&path, &here)?;
        } else {
            copy_file(&path, &found, &here)?;
        }
    }
    lchown(to, Some(owner.uid()), Some(owner.gid()))?;
    File::open(to)?.sync_all()
}

/// Copies one file; never what a link leads to, for the folder is not root's.
fn copy_file(from: &Path, found: &Metadata, to: &Path) -> io::Result<()> {
    let mut source = File::open(from)?;
    let opened = source.metadata()?;
    if !opened.is_file() || (opened.dev(), opened.ino()) != (found.dev(), found.ino()) {
        return Err(io::Error::other(format!("{} is no plain file", from.display())));
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    io::copy(&mut source, &mut file)?;
    fchown(&file, Some(found.uid()), Some(found.gid()))?;
    file.sync_all()
}
