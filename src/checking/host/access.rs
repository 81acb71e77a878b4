//! Whether a user of this host gets at a file, by owner, group and mode.
//!
//! Takes: a [`Person`] and a path. Gives: the first obstacle, in words; nothing where there is none.
//! Limits: mode bits alone; access lists and security modules may say otherwise.
//! When it fails: what cannot be looked at is [`Obstacle::Unknown`].

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A user with its groups, as the host's name service has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Person {
    /// Its name, or its number where it has none.
    pub name: String,
    uid: u32,
    gids: Vec<u32>,
    groups: Vec<String>,
}

/// What is in the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// There is nothing of this name.
    Missing(PathBuf),
    /// The mode says no; the octal mode, owner and group are in the words.
    Mode(PathBuf, String),
    /// Whoever looks may not look.
    Unknown(PathBuf, String),
}

/// What somebody wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Read the file.
    Read,
    /// Connect to the socket, which takes the right to write (unix(7)).
    Write,
}

impl Person {
    /// A user by name or number; one line where the host does not know it.
    pub fn named(name: &str) -> Result<Person, String> {
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
        Ok(Person { name: shown, uid: id("-u")?[0], gids: id("-G")?, groups })
    }

    /// Whether it is in one of these groups, or root.
    pub fn is_in(&self, groups: &[&str]) -> bool {
        self.uid == 0 || self.groups.iter().any(|group| groups.contains(&group.as_str()))
    }

    /// What keeps it from a path, if it begins in the folder `from`; symbolic links are followed.
    pub fn obstacle(&self, path: &Path, from: &Path, wish: Wish) -> Option<Obstacle> {
        let mut folders: Vec<&Path> = path.ancestors().skip(1).filter(|folder| folder.starts_with(from)).collect();
        folders.reverse();
        for folder in folders {
            if let Some(obstacle) = self.denied(folder, 0o1, "enter") {
                return Some(obstacle);
            }
        }
        match wish {
            Wish::Read => self.denied(path, 0o4, "read"),
            Wish::Write => self.denied(path, 0o2, "write to"),
        }
    }

    fn denied(&self, path: &Path, bit: u32, verb: &str) -> Option<Obstacle> {
        let found = match std::fs::metadata(path) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Some(Obstacle::Missing(path.to_owned())),
            Err(error) => return Some(Obstacle::Unknown(path.to_owned(), error.to_string())),
        };
        if self.may(found.mode(), found.uid(), found.gid(), bit) {
            return None;
        }
        let (mode, uid, gid) = (found.mode() & 0o7777, found.uid(), found.gid());
        let words = format!("{} may not {verb} it (mode {mode:04o}, user {uid}, group {gid})", self.name);
        Some(Obstacle::Mode(path.to_owned(), words))
    }

    /// path_resolution(7): the first class that fits decides, and root may all.
    fn may(&self, mode: u32, uid: u32, gid: u32, bit: u32) -> bool {
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
        let person = Person { name: "p".into(), uid: 7, gids: vec![8, 9], groups: Vec::new() };
        assert!(person.may(0o750, 0, 9, 0o1) && person.may(0o666, 0, 0, 0o2) && person.may(0o400, 7, 0, 0o4));
        assert!(!person.may(0o750, 0, 1, 0o1) && !person.may(0o607, 1, 8, 0o4) && !person.may(0o077, 7, 8, 0o1));
        let root = Person { name: "root".into(), uid: 0, gids: vec![0], groups: Vec::new() };
        assert!(root.may(0, 7, 7, 0o2));
    }

    #[test]
    fn the_obstacle_is_named() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let file = folder.path().join("f");
        let nobody = Person::named("nobody").unwrap();
        assert_eq!(nobody.obstacle(&file, Path::new("/"), Wish::Read), Some(Obstacle::Missing(file.clone())));
        std::fs::write(&file, "").unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).unwrap();
        assert_eq!(nobody.obstacle(&file, Path::new("/"), Wish::Read), None);
        assert!(
            matches!(nobody.obstacle(&file, Path::new("/"), Wish::Write), Some(Obstacle::Mode(at, _)) if at == file)
        );
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o700)).unwrap();
        assert!(
            matches!(nobody.obstacle(&file, Path::new("/"), Wish::Read), Some(Obstacle::Mode(at, _)) if at == folder.path())
        );
        assert!(Person::named("no-such-user-here").is_err());
    }
}
