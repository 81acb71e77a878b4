//! Whether a user of this host may access a file, by owner, group and mode.
//!
//! Takes: a [`SystemUser`] and a path. Gives: the first obstacle, in words; nothing where there is none.
//! Limits: mode bits alone; access lists and security modules may say otherwise.
//! When it fails: what cannot be examined is [`AccessObstacle::Unknown`].

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A user with its groups, as the host's name service has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SystemUser {
    /// Its name, or its number where it has none.
    pub(crate) name: String,
    uid: u32,
    gids: Vec<u32>,
    groups: Vec<String>,
}

/// What denies access.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AccessObstacle {
    /// There is nothing of this name.
    Missing(PathBuf),
    /// The mode says no; the octal mode, owner and group are in the words.
    Mode(PathBuf, String),
    /// Whoever looks may not look.
    Unknown(PathBuf, String),
}

/// The access that is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AccessKind {
    /// Read the file.
    Read,
    /// Connect to the socket, which takes the right to write (unix(7)).
    Write,
}

impl SystemUser {
    /// Looks up a user by name or number; fails with one line where the host does not know it.
    pub(crate) fn look_up(name: &str) -> Result<SystemUser, String> {
        let id = |option: &str| {
            let output = Command::new("id").args([option, "--", name]).output().map_err(|e| format!("id: {e}"))?;
            let numbers = String::from_utf8_lossy(&output.stdout);
            let numbers: Vec<u32> = numbers.split_whitespace().filter_map(|n| n.parse().ok()).collect();
            if numbers.is_empty() { Err(format!("the host has no user `{name}`")) } else { Ok(numbers) }
        };
        let words = |option: &str| {
            let output = Command::new("id").args([option, "--", name]).output().map_err(|e| format!("id: {e}"))?;
            Ok::<String, String>(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        let known = words("-nu")?;
        let groups = words("-nG")?.split_whitespace().map(str::to_owned).collect();
        let shown = if known.is_empty() { name.to_owned() } else { known };
        Ok(SystemUser { name: shown, uid: id("-u")?[0], gids: id("-G")?, groups })
    }

    /// Whether it is in one of these groups, or root.
    pub(crate) fn is_in_any_group(&self, groups: &[&str]) -> bool {
        self.uid == 0 || self.groups.iter().any(|group| groups.contains(&group.as_str()))
    }

    /// The first thing that denies access to a path below the folder `from`; symbolic links are followed.
    pub(crate) fn find_obstacle(&self, path: &Path, from: &Path, access: AccessKind) -> Option<AccessObstacle> {
        let mut folders: Vec<&Path> = path.ancestors().skip(1).filter(|folder| folder.starts_with(from)).collect();
        folders.reverse();
        for folder in folders {
            if let Some(obstacle) = self.check_permission(folder, 0o1, "enter") {
                return Some(obstacle);
            }
        }
        match access {
            AccessKind::Read => self.check_permission(path, 0o4, "read"),
            AccessKind::Write => self.check_permission(path, 0o2, "write to"),
        }
    }

    fn check_permission(&self, path: &Path, bit: u32, verb: &str) -> Option<AccessObstacle> {
        let found = match std::fs::metadata(path) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Some(AccessObstacle::Missing(path.to_owned()));
            }
            Err(error) => return Some(AccessObstacle::Unknown(path.to_owned(), error.to_string())),
        };
        if self.is_permitted(found.mode(), found.uid(), found.gid(), bit) {
            return None;
        }
        let (mode, uid, gid) = (found.mode() & 0o7777, found.uid(), found.gid());
        let words = format!("{} may not {verb} it (mode {mode:04o}, user {uid}, group {gid})", self.name);
        Some(AccessObstacle::Mode(path.to_owned(), words))
    }

    /// path_resolution(7): the first class that fits decides, and root may do anything.
    fn is_permitted(&self, mode: u32, uid: u32, gid: u32, bit: u32) -> bool {
        let class = match (self.uid == uid, self.gids.contains(&gid)) {
            (true, _) => mode >> 6,
            (false, true) => mode >> 3,
            (false, false) => mode,
        };
        self.uid == 0 || class & bit != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_class_that_fits_decides() {
        let person = SystemUser { name: "p".into(), uid: 7, gids: vec![8, 9], groups: Vec::new() };
        assert!(
            person.is_permitted(0o750, 0, 9, 0o1)
                && person.is_permitted(0o666, 0, 0, 0o2)
                && person.is_permitted(0o400, 7, 0, 0o4)
        );
        assert!(
            !person.is_permitted(0o750, 0, 1, 0o1)
                && !person.is_permitted(0o607, 1, 8, 0o4)
                && !person.is_permitted(0o077, 7, 8, 0o1)
        );
        let root = SystemUser { name: "root".into(), uid: 0, gids: vec![0], groups: Vec::new() };
        assert!(root.is_permitted(0, 7, 7, 0o2));
    }

    #[test]
    fn the_obstacle_is_named() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let file = folder.path().join("f");
        let nobody = SystemUser::look_up("nobody").unwrap();
        assert_eq!(
            nobody.find_obstacle(&file, Path::new("/"), AccessKind::Read),
            Some(AccessObstacle::Missing(file.clone()))
        );
        std::fs::write(&file, "").unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).unwrap();
        assert_eq!(nobody.find_obstacle(&file, Path::new("/"), AccessKind::Read), None);
        assert!(
            matches!(nobody.find_obstacle(&file, Path::new("/"), AccessKind::Write), Some(AccessObstacle::Mode(at, _)) if at == file)
        );
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o700)).unwrap();
        assert!(
            matches!(nobody.find_obstacle(&file, Path::new("/"), AccessKind::Read), Some(AccessObstacle::Mode(at, _)) if at == folder.path())
        );
        assert!(SystemUser::look_up("no-such-user-here").is_err());
    }
}
