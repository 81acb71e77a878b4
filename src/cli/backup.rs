//! `tlswarden backup DIR` and `tlswarden restore DIR`: a copy of the store, of one moment; and back.
//!
//! Takes: the daemon, or the store where none runs. The daemon is confined to its own folders: it copies within the
//! store's, and the copy is fetched from there. Gives: a folder; a line that says what was done.
//! When it fails: `backup` leaves nothing behind, `restore` leaves the store as it was.
//! Not here: what a copy consists of (`store/embedded`).

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::control::query;
use super::foreign_folder::{Owner, copy_folder, create_in, open, open_in};
use super::{CliError, EX_IOERR, EX_UNAVAILABLE, EX_USAGE, print_stdout};
use crate::config::Config;
use crate::daemon::control::ControlRequest;
use crate::daemon::services::{BACKUP_PREFIX, RestoredStore, StoreError, restore_store};

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
    let Some(name) = name_of_copy(&copy, &config.store.path) else {
        return Err(CliError::new(
            EX_UNAVAILABLE,
            format!(
                "{}: the daemon's copy has an unexpected path: it must be {}/{BACKUP_PREFIX}NUMBER-NUMBER; it is left \
                 alone, there is no backup",
                copy.display(),
                config.store.path.display()
            ),
        ));
    };
    let fetched = fs::create_dir_all(to).and_then(|()| {
        copy_folder(&open_in(open(&config.store.path)?, &*name)?, &open(to)?, None)?;
        sync_parent(to)
    });
    // Removes a link, never what a link points to.
    let _ = fs::remove_dir_all(config.store.path.join(&name));
    fetched.map_err(|e| {
        // A part of a copy is not a backup.
        let _ = fs::remove_dir_all(to);
        CliError::new(EX_IOERR, format!("{shown}: cannot be written: {e}; there is no backup"))
    })?;
    print_stdout(&format!("{shown}: a backup of the store; `tlswarden restore {shown}` puts it back\n"))
}

/// The name of the daemon's copy, if it is one that a daemon makes in the store's own folder.
///
/// The path comes from the daemon, which may have been taken over, and this command runs as root.
fn name_of_copy(copy: &Path, store_folder: &Path) -> Option<PathBuf> {
    let name = copy.strip_prefix(store_folder).ok()?;
    let mut components = name.components();
    let (Some(Component::Normal(only)), None) = (components.next(), components.next()) else { return None };
    let (process, number) = only.to_str()?.strip_prefix(BACKUP_PREFIX)?.split_once('-')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    (is_number(process) && is_number(number)).then(|| PathBuf::from(only))
}

fn sync_parent(of: &Path) -> io::Result<()> {
    let parent = of.parent().filter(|parent| !parent.as_os_str().is_empty());
    fs::File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

pub(crate) fn restore(config: &Config, from: &Path) -> Result<(), CliError> {
    let (shown, store) = (from.display(), config.store.path.display());
    let failed = |status, cause: &dyn std::fmt::Display| {
        CliError::new(status, format!("{shown}: not restored: {cause}; {store} is left as it was"))
    };
    let folder = fs::metadata(from).map_err(|e| failed(EX_USAGE, &e))?;
    if !folder.is_dir() {
        return Err(failed(EX_USAGE, &"not a folder"));
    }
    let name = PathBuf::from(format!("{BACKUP_PREFIX}{}-restore", std::process::id()));
    let owner = copy_into_store(from, &config.store.path, &name).map_err(|e| failed(EX_IOERR, &e))?;
    // From here on nothing needs root; what is in the store is its owner's.
    become_user(owner).map_err(|e| failed(EX_IOERR, &e))?;
    let copy = config.store.path.join(&name);
    let RestoredStore { former, not_synced } = restore_store(config, &copy).map_err(|error| {
        let _ = fs::remove_dir_all(&copy);
        let in_use = matches!(error, StoreError::Locked(_));
        let advice = if in_use { "; stop the daemon first: systemctl stop tlswarden" } else { "" };
        failed(if in_use { EX_UNAVAILABLE } else { EX_IOERR }, &format_args!("{error}{advice}"))
    })?;
    let former = former.map_or_else(String::new, |folder| {
        format!("; the former store is in {}: remove it when it is not needed any more", folder.display())
    });
    print_stdout(&format!(
        "{store}: the store is now the one of {shown}{former}\n\
         Lines of the log that were counted after the backup are counted again; reports that were sent after it may be \
         sent once more.\n"
    ))?;
    not_synced.map_or(Ok(()), |error| {
        Err(CliError::new(
            EX_IOERR,
            format!("{store}: restored, but not synced: {error}; run `sync` before the daemon starts"),
        ))
    })
}

/// Copies a backup into the store's folder, which is made if need be, under a name that nothing has. Gives the owner of the
/// store's folder, who has the copy as well.
fn copy_into_store(from: &Path, store: &Path, name: &Path) -> io::Result<Owner> {
    fs::create_dir_all(store)?;
    let (from, folder) = (open(from)?, open(store)?);
    let metadata = fs::File::from(folder.try_clone()?).metadata()?;
    let owner = (metadata.uid(), metadata.gid());
    let copied = copy_folder(&from, &create_in(&folder, name)?, Some(owner));
    if copied.is_err() {
        // Removes a link, never what a link points to.
        let _ = fs::remove_dir_all(store.join(name));
    }
    copied.map(|()| owner)
}

/// Makes root another user for the rest of this command, in this thread and in those that it starts.
fn become_user((user, group): Owner) -> io::Result<()> {
    if !rustix::process::geteuid().is_root() || user == 0 {
        return Ok(());
    }
    let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
    set_thread_groups(&[])?;
    set_thread_res_gid(group, group, group)?;
    Ok(set_thread_res_uid(user, user, user)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_lies_in_the_stores_own_folder() {
        let store = Path::new("/var/lib/tlswarden");
        let name = |copy: &str| name_of_copy(Path::new(copy), store);
        assert_eq!(name("/var/lib/tlswarden/backup-12-0"), Some(PathBuf::from("backup-12-0")));
        for other in [
            "/etc",
            "/var/lib/tlswarden",
            "/var/lib/tlswarden/",
            "/var/lib/tlswarden/embedded",
            "/var/lib/tlswarden/backup-12",
            "/var/lib/tlswarden/backup-12-0/x",
            "/var/lib/tlswarden/backup-12-0/../../../etc",
            "/var/lib/tlswarden/../../etc/backup-12-0",
            "/var/lib/tlswarden2/backup-12-0",
            "backup-12-0",
        ] {
            assert_eq!(name(other), None, "{other}");
        }
    }
}
