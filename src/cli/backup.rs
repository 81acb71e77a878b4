//! `tlswarden backup DIR` and `tlswarden restore DIR`: a copy of the store, of one moment; and back.
//!
//! Takes: the daemon, or the store where none runs. The daemon is confined to its own folders: it copies within the
//! store's, and the copy is fetched from there. Gives: a folder; a line that says what was done.
//! When it fails: `backup` leaves nothing behind, `restore` leaves the store as it was.
//! Not here: what a copy consists of (`store/embedded`).

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::{Component, Path, PathBuf};

use super::control::query;
use super::foreign_folder::{copy_folder, open_in};
use super::{CliError, EX_IOERR, EX_UNAVAILABLE, EX_USAGE, print_stdout};
use crate::config::Config;
use crate::daemon::control::ControlRequest;
use crate::daemon::services::{BACKUP_PREFIX, StoreError, restore_store};

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
    let fetched = fs::create_dir_all(to.parent().unwrap_or(Path::new("/")))
        .and_then(|()| copy_folder(&open_in(&config.store.path, &name)?, to))
        .and_then(|()| sync_parent(to));
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
    fs::create_dir_all(&config.store.path).map_err(|e| failed(EX_IOERR, &e))?;
    let owner = fs::metadata(&config.store.path).map_err(|e| failed(EX_IOERR, &e))?;
    let name = PathBuf::from(format!("{BACKUP_PREFIX}{}-restore", std::process::id()));
    let copy = config.store.path.join(&name);
    let parent = from.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let copied = from
        .file_name()
        .ok_or_else(|| io::Error::other("not a folder with a name"))
        .and_then(|last| open_in(parent, Path::new(last)))
        .and_then(|opened| copy_folder(&opened, &copy));
    let restored = copied.map_err(|e| failed(EX_IOERR, &e)).and_then(|()| {
        let former = restore_store(config, &copy).map_err(|error| {
            let in_use = matches!(error, StoreError::Locked(_));
            let advice = if in_use { "; stop the daemon first: systemctl stop tlswarden" } else { "" };
            failed(if in_use { EX_UNAVAILABLE } else { EX_IOERR }, &format_args!("{error}{advice}"))
        })?;
        give_to(&config.store.path, owner.uid(), owner.gid()).map_err(|e| {
            let cause = format!("{store}: restored, but its owner cannot be set: {e}; the daemon may not read it");
            CliError::new(EX_IOERR, cause)
        })?;
        Ok(former)
    });
    if copy.exists() {
        let _ = fs::remove_dir_all(&copy);
    }
    let former = restored?.map_or_else(String::new, |folder| {
        format!("; the former store is in {}: remove it when it is not needed any more", folder.display())
    });
    print_stdout(&format!(
        "{store}: the store is now the one of {shown}{former}\n\
         Lines of the log that were counted after the backup are counted again; reports that were sent after it may be \
         sent once more.\n"
    ))
}

/// Gives what lies in the store to the owner of its folder: the daemon must be able to open it.
fn give_to(folder: &Path, user: u32, group: u32) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        lchown(entry.path(), Some(user), Some(group))?;
        if entry.file_type()?.is_dir() {
            give_to(&entry.path(), user, group)?;
        }
    }
    Ok(())
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
