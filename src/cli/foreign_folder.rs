//! Copies and gives away folders that another user may write to, as root and never through a link.
//!
//! Takes: folders, by descriptors. Gives: a copy of folders and plain files, with the owners that they had or with one,
//! synced.
//! Limits: [`MAX_DEPTH`] levels of folders.
//! When it fails: at a link, a socket or a device, or where something is in the way; what was copied so far stays.
//! Why: the daemon may have been taken over. Were anything in its folder opened by a path, a link put in place meanwhile
//! would have root read, write or give away anything.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Uid, chownat, fchown, mkdirat, openat, statat};

/// The levels of folders that are copied; a store has two.
const MAX_DEPTH: usize = 8;

/// A user and a group.
pub(super) type Owner = (u32, u32);

/// Opens the folder at a path that is the administrator's, and may lead through links.
pub(super) fn open(path: &Path) -> io::Result<OwnedFd> {
    Ok(openat(CWD, path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Opens the folder `name` in `parent`; a link of that name is an error.
pub(super) fn open_in(parent: impl AsFd, name: impl rustix::path::Arg) -> io::Result<OwnedFd> {
    Ok(openat(parent, name, OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?)
}

/// Makes the folder `name` in `parent`, of mode 0700; it is an error if there is anything of that name.
pub(super) fn create_in(parent: impl AsFd, name: impl rustix::path::Arg + Copy) -> io::Result<OwnedFd> {
    mkdirat(&parent, name, Mode::RWXU)?;
    open_in(parent, name)
}

/// Copies what is in a folder into another, with its owners, or all of it with the one that is named.
pub(super) fn copy_folder(from: &OwnedFd, to: &OwnedFd, owner: Option<Owner>) -> io::Result<()> {
    copy_level(from, to, owner, MAX_DEPTH)
}

fn copy_level(from: &OwnedFd, to: &OwnedFd, owner: Option<Owner>, depth: usize) -> io::Result<()> {
    if depth == 0 {
        return Err(io::Error::other("too many levels of folders"));
    }
    for name in entries(from)? {
        // A FIFO must not keep us waiting for its writer.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut opened = File::from(openat(from, &*name, flags, Mode::empty())?);
        let metadata = opened.metadata()?;
        if metadata.is_dir() {
            copy_level(&opened.into(), &create_in(to, &*name)?, owner, depth - 1)?;
        } else if metadata.is_file() {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut file = File::from(openat(to, &*name, flags, Mode::RUSR | Mode::WUSR)?);
            io::copy(&mut opened, &mut file)?;
            chown_like(&file, owner.unwrap_or((metadata.uid(), metadata.gid())))?;
            file.sync_all()?;
        } else {
            let name = String::from_utf8_lossy(&name).into_owned();
            return Err(io::Error::other(format!("{name} is not a plain file")));
        }
    }
    let like = File::from(from.try_clone()?).metadata()?;
    chown_like(to, owner.unwrap_or((like.uid(), like.gid())))?;
    File::from(to.try_clone()?).sync_all()
}

/// Gives what is in a folder to an owner; a link is given away itself, and not what it leads to.
pub(super) fn give_to(folder: &OwnedFd, owner: Owner) -> io::Result<()> {
    give_level_to(folder, owner, MAX_DEPTH)
}

fn give_level_to(folder: &OwnedFd, owner: Owner, depth: usize) -> io::Result<()> {
    if depth == 0 {
        return Err(io::Error::other("too many levels of folders"));
    }
    let (user, group) = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
    for name in entries(folder)? {
        let found = statat(folder, &*name, AtFlags::SYMLINK_NOFOLLOW)?;
        if found.st_uid != owner.0 {
            chownat(folder, &*name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
            give_level_to(&open_in(folder, &*name)?, owner, depth - 1)?;
        }
    }
    Ok(())
}

fn chown_like(file: impl AsFd, (user, group): Owner) -> io::Result<()> {
    Ok(fchown(file, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))?)
}

/// The names in a folder.
fn entries(folder: &OwnedFd) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let name = entry?.file_name().to_bytes().to_owned();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn copy(root: &Path, from: &str, to: &str) -> io::Result<()> {
        let root = open(root)?;
        copy_folder(&open_in(&root, from)?, &create_in(&root, to)?, None)
    }

    #[test]
    fn copies_plain_files_and_folders_alone() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        fs::create_dir_all(at("from/deep")).unwrap();
        fs::write(at("from/deep/file"), "text").unwrap();
        copy(root.path(), "from", "to").unwrap();
        assert_eq!(fs::read_to_string(at("to/deep/file")).unwrap(), "text");

        fs::write(at("secret"), "secret").unwrap();
        symlink(at("secret"), at("from/link")).unwrap();
        assert!(copy(root.path(), "from", "other").is_err());
        assert!(!at("other/link").exists());
        symlink(at("from"), at("linked")).unwrap();
        assert!(copy(root.path(), "linked", "third").is_err());
    }

    #[test]
    fn nothing_is_written_where_something_is_in_the_way() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        fs::create_dir_all(at("from")).unwrap();
        fs::write(at("from/file"), "text").unwrap();
        fs::create_dir(at("victim")).unwrap();
        symlink(at("victim"), at("to")).unwrap();
        assert_eq!(copy(root.path(), "from", "to").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_dir(at("victim")).unwrap().count(), 0);
    }

    #[test]
    fn a_fifo_is_refused_and_not_waited_for() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("from")).unwrap();
        let fifo = root.path().join("from/fifo");
        rustix::fs::mknodat(CWD, fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let refused = copy(root.path(), "from", "to").unwrap_err();
        assert!(refused.to_string().contains("not a plain file"), "{refused}");
    }

    #[test]
    fn a_link_is_given_away_and_not_what_it_leads_to() {
        assert!(rustix::process::geteuid().is_root(), "this test needs root, to give files to another user");
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        fs::create_dir_all(at("folder/deep")).unwrap();
        fs::write(at("folder/deep/file"), "").unwrap();
        fs::write(at("victim"), "").unwrap();
        symlink(at("victim"), at("folder/link")).unwrap();
        give_to(&open(&at("folder")).unwrap(), (65534, 65534)).unwrap();
        let owner = |name: &str| fs::symlink_metadata(at(name)).unwrap().uid();
        assert_eq!(["folder/deep/file", "folder/link", "victim"].map(owner), [65534, 65534, 0]);
    }
}
