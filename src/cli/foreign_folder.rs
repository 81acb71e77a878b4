//! Copies a folder that another user may write to, as root and never through a link.
//!
//! Takes: a folder of folders and plain files, opened without following a link. Gives: the same below another path, with
//! its owners, synced.
//! Limits: [`MAX_DEPTH`] levels of folders.
//! When it fails: at a link, a socket or a device; what was copied so far stays.
//! Why: the daemon may have been taken over. Were a path of its folder opened by name, a link put in place meanwhile
//! would have root read or write anywhere.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown, lchown};
use std::path::Path;

use rustix::fs::{CWD, Dir, Mode, OFlags, openat};

/// The levels of folders that are copied; a store has two.
const MAX_DEPTH: usize = 8;

/// Opens the folder `name` in `parent`; a link of that name is an error.
///
/// `parent` itself is the administrator's, and may be reached through links.
pub(super) fn open_in(parent: &Path, name: &Path) -> io::Result<OwnedFd> {
    let parent = openat(CWD, parent, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    open_folder(parent, name)
}

fn open_folder(parent: impl AsFd, name: impl rustix::path::Arg) -> io::Result<OwnedFd> {
    Ok(openat(parent, name, OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?)
}

/// Copies a folder to a path that does not exist, or is an empty folder.
pub(super) fn copy_folder(from: &OwnedFd, to: &Path) -> io::Result<()> {
    copy_level(from, to, MAX_DEPTH)
}

fn copy_level(from: &OwnedFd, to: &Path, depth: usize) -> io::Result<()> {
    if depth == 0 {
        return Err(io::Error::other("too many levels of folders"));
    }
    match DirBuilder::new().mode(0o700).create(to) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        made => made?,
    }
    for entry in Dir::read_from(from)? {
        let entry = entry?;
        let name = Path::new(std::ffi::OsStr::from_bytes(entry.file_name().to_bytes()));
        if name.as_os_str() == "." || name.as_os_str() == ".." {
            continue;
        }
        // A FIFO must not keep us waiting for its writer.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = File::from(openat(from, name, flags, Mode::empty())?);
        let metadata = opened.metadata()?;
        if metadata.is_dir() {
            copy_level(&opened.into(), &to.join(name), depth - 1)?;
        } else if metadata.is_file() {
            copy_file(opened, &to.join(name))?;
        } else {
            return Err(io::Error::other(format!("{} is not a plain file", name.display())));
        }
    }
    let owner = File::from(from.try_clone()?).metadata()?;
    lchown(to, Some(owner.uid()), Some(owner.gid()))?;
    File::open(to)?.sync_all()
}

fn copy_file(mut from: File, to: &Path) -> io::Result<()> {
    let owner = from.metadata()?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    io::copy(&mut from, &mut file)?;
    fchown(&file, Some(owner.uid()), Some(owner.gid()))?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn copies_plain_files_and_folders_alone() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        fs::create_dir_all(at("from/deep")).unwrap();
        fs::write(at("from/deep/file"), "text").unwrap();
        let from = open_in(root.path(), Path::new("from")).unwrap();
        copy_folder(&from, &at("to")).unwrap();
        assert_eq!(fs::read_to_string(at("to/deep/file")).unwrap(), "text");

        fs::write(at("secret"), "secret").unwrap();
        symlink(at("secret"), at("from/link")).unwrap();
        assert!(copy_folder(&open_in(root.path(), Path::new("from")).unwrap(), &at("other")).is_err());
        assert!(!at("other/link").exists());
        symlink(at("from"), at("linked")).unwrap();
        assert!(open_in(root.path(), Path::new("linked")).is_err());
    }

    #[test]
    fn a_fifo_is_refused_and_not_waited_for() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("from")).unwrap();
        rustix::fs::mknodat(CWD, root.path().join("from/fifo"), rustix::fs::FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
            .unwrap();
        let from = open_in(root.path(), Path::new("from")).unwrap();
        let refused = copy_folder(&from, &root.path().join("to")).unwrap_err();
        assert!(refused.to_string().contains("not a plain file"), "{refused}");
    }
}
