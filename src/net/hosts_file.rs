//! The hosts file (hosts(5)): the names that this host knows without DNS.
//!
//! Takes: the file. Gives: the names in it. Bytes that are not UTF-8 spoil the name that they are in, and nothing else.
//! Limits: [`MAX_SIZE`] bytes.
//! When it fails: a file that cannot be read names no host.
//! Not here: what a name means for mail.

use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Where it is.
const PATH: &str = "/etc/hosts";

/// How much of it is read.
const MAX_SIZE: u64 = 1024 * 1024;

/// The hosts file as it was read.
#[derive(Debug, Default)]
pub(crate) struct HostsFile(String);

impl HostsFile {
    /// Reads that of this host. Blocks for as long as the disk does.
    pub(crate) fn read() -> HostsFile {
        HostsFile::read_at(Path::new(PATH))
    }

    fn read_at(path: &Path) -> HostsFile {
        let mut bytes = Vec::new();
        // What was read before an error is as good as the rest.
        let _ = File::open(path).and_then(|file| file.take(MAX_SIZE).read_to_end(&mut bytes));
        HostsFile(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Whether it names a host, in any case, with or without a dot at the end.
    pub(crate) fn has(&self, host: &str) -> bool {
        self.names().any(|name| name.trim_end_matches('.').eq_ignore_ascii_case(host))
    }

    /// All names, in order; those of one address beside each other.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        let lines = self.0.lines().map(|line| line.split('#').next().unwrap_or_default());
        lines.flat_map(|line| line.split_whitespace().skip(1))
    }
}

#[cfg(test)]
impl From<&str> for HostsFile {
    fn from(text: &str) -> HostsFile {
        HostsFile(text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_behind_an_address_whatever_else_is_in_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = b"127.0.0.1 localhost\n# 192.0.2.1 comment.test\n192.0.2.2\tMailhub.test. mailhub # not.test\n\
                     192.0.2.3 caf\xe9.test after.test\n192.0.2.4 last.test";
        std::fs::write(file.path(), text).unwrap();
        let hosts = HostsFile::read_at(file.path());
        for (host, known) in [
            ("localhost", true),
            ("mailhub.test", true),
            ("mailhub", true),
            ("after.test", true),
            ("last.test", true),
            ("comment.test", false),
            ("not.test", false),
            ("192.0.2.2", false),
            ("hub", false),
        ] {
            assert_eq!(hosts.has(host), known, "{host}");
        }
        assert!(!HostsFile::read_at(Path::new("/nonexistent/hosts")).has("localhost"));
    }
}
