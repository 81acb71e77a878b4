//! The nameservers that `/etc/resolv.conf` names, at start and whenever the file changes.
//!
//! Takes: the path of a resolv.conf(5). Gives: the [`Nameservers`] to ask: the first on loopback, whose AD bit is believed;
//! else all of them; 127.0.0.1 where there is none, as resolv.conf(5) has it. New ones when the file has changed, as the C
//! library does.
//! Limits: the file is looked at once in [`LOOK_INTERVAL`], and only when something is asked. A change counts once the file
//! has been left alone for [`SETTLED_AFTER`], so that a half-written file is not read.
//! When it fails: at start an error; later the previous nameservers are still used, as they are while the file is gone, and
//! it is read again after [`RETRY_INTERVAL`].
//! Not here: asking (`servers`).

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::time::Instant;

/// Time between two looks at the file.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Time to the next look after a file could not be read.
const RETRY_INTERVAL: Duration = Duration::from_secs(60);

/// How long a file must have been left alone before it is read again.
const SETTLED_AFTER: Duration = Duration::from_secs(1);

const DNS_PORT: u16 = 53;

/// The servers to ask, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Nameservers {
    pub(super) addresses: Vec<SocketAddr>,
    /// Whether their AD bit is believed.
    pub(super) trusted: bool,
}

/// The file, and what was last read of it.
pub(super) struct ResolvConf {
    path: PathBuf,
    watched: Mutex<Watched>,
}

struct Watched {
    /// None where the file was not there, or was being written.
    read: Option<FileStamp>,
    next_look: Instant,
}

/// What differs once a file is written, or another takes its place.
#[derive(Clone, Debug, PartialEq, Eq)]
struct FileStamp {
    file: (u64, u64),
    size: u64,
    modified: SystemTime,
}

impl ResolvConf {
    /// Reads the file. Fails where it is there and cannot be read.
    pub(super) fn open(path: &Path) -> io::Result<(ResolvConf, Nameservers)> {
        let stamp = FileStamp::of(path).filter(FileStamp::is_settled);
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error),
        };
        let watched = Mutex::new(Watched { read: stamp, next_look: Instant::now() + LOOK_INTERVAL });
        Ok((ResolvConf { path: path.to_owned(), watched }, Nameservers::choose(&nameservers(&text))))
    }

    /// What the file names, if it has been written since it was read.
    pub(super) fn read_again(&self, now: Instant) -> Option<Nameservers> {
        let mut watched = self.watched.lock();
        if now < watched.next_look {
            return None;
        }
        watched.next_look = now + LOOK_INTERVAL;
        let stamp = FileStamp::of(&self.path)?;
        if watched.read.as_ref() == Some(&stamp) || !stamp.is_settled() {
            return None;
        }
        match fs::read_to_string(&self.path) {
            Ok(text) => {
                watched.read = Some(stamp);
                Some(Nameservers::choose(&nameservers(&text)))
            }
            Err(error) => {
                watched.next_look = now + RETRY_INTERVAL;
                let path = self.path.display();
                tracing::warn!(%path, %error, "resolver: cannot read the changed file; the previous nameservers are still used");
                None
            }
        }
    }
}

impl Nameservers {
    fn choose(servers: &[IpAddr]) -> Nameservers {
        let (chosen, trusted) = match servers.iter().find(|ip| ip.is_loopback()) {
            Some(loopback) => (vec![*loopback], true),
            None if servers.is_empty() => (vec![Ipv4Addr::LOCALHOST.into()], true),
            None => (servers.to_vec(), false),
        };
        Nameservers { addresses: chosen.into_iter().map(|ip| SocketAddr::new(ip, DNS_PORT)).collect(), trusted }
    }
}

impl FileStamp {
    /// Nothing where there is no file.
    fn of(path: &Path) -> Option<FileStamp> {
        let status = fs::metadata(path).ok()?;
        let modified = status.modified().ok()?;
        Some(FileStamp { file: (status.dev(), status.ino()), size: status.size(), modified })
    }

    /// A time in the future is that of a wrong clock.
    fn is_settled(&self) -> bool {
        SystemTime::now().duration_since(self.modified).map_or(true, |age| age >= SETTLED_AFTER)
    }
}

/// The `nameserver` lines of a resolv.conf(5).
pub fn nameservers(resolv_conf: &str) -> Vec<IpAddr> {
    let lines = resolv_conf.lines().filter_map(|line| line.trim_start().strip_prefix("nameserver"));
    let values = lines.filter(|rest| rest.starts_with([' ', '\t']));
    values.filter_map(|rest| rest.split_whitespace().next()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn named(nameservers: Option<Nameservers>) -> Option<(String, bool)> {
        let Nameservers { addresses, trusted } = nameservers?;
        Some((addresses.iter().map(|server| server.ip().to_string()).collect::<Vec<_>>().join(" "), trusted))
    }

    #[test]
    fn nameservers_on_loopback_come_alone_and_are_believed() {
        let chosen = |text: &str| named(Some(Nameservers::choose(&nameservers(text)))).unwrap();
        assert_eq!(chosen("nameserver 192.0.2.1\nnameserver 127.0.0.1\n"), ("127.0.0.1".into(), true));
        assert_eq!(chosen("nameserver 192.0.2.1\nnameserver ::1"), ("::1".into(), true));
        assert_eq!(chosen("# nameserver 127.0.0.1\nnameserver\t192.0.2.1 # x\n"), ("192.0.2.1".into(), false));
        assert_eq!(chosen("nameserver 192.0.2.1\nnameserver 192.0.2.2\n"), ("192.0.2.1 192.0.2.2".into(), false));
        assert_eq!(chosen("search example.com\nnameservers 192.0.2.1\n"), ("127.0.0.1".into(), true));
    }

    #[test]
    fn a_file_that_was_changed_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        let hour_ago = SystemTime::now() - Duration::from_secs(3600);
        let write = |text: &str, modified: SystemTime| {
            fs::write(&path, text).unwrap();
            File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
        };
        // Not there yet, as early after boot.
        let (file, at_start) = ResolvConf::open(&path).unwrap();
        assert_eq!(named(Some(at_start)), Some(("127.0.0.1".into(), true)));
        let mut now = Instant::now();
        let mut look = || {
            now += LOOK_INTERVAL;
            named(file.read_again(now))
        };
        assert_eq!(look(), None);
        write("nameserver 192.0.2.1\n", hour_ago);
        assert_eq!(look(), Some(("192.0.2.1".into(), false)));
        assert_eq!(look(), None, "nothing has changed");
        write("nameserver 127.0.0.1\n", hour_ago + Duration::from_nanos(1));
        assert_eq!(look(), Some(("127.0.0.1".into(), true)));
        write("", SystemTime::now() + Duration::from_secs(3600));
        assert_eq!(look(), Some(("127.0.0.1".into(), true)), "a clock that was set back");
        fs::remove_file(&path).unwrap();
        assert_eq!(look(), None, "a file that is gone changes nothing");
        // Another file in its place, of the same time.
        write("nameserver 192.0.2.2\n", hour_ago);
        assert_eq!(look(), Some(("192.0.2.2".into(), false)));
    }

    #[test]
    fn a_file_that_could_not_be_read_is_read_later() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        let hour_ago = SystemTime::now() - Duration::from_secs(3600);
        let write = |text: &[u8]| {
            fs::write(&path, text).unwrap();
            File::options().write(true).open(&path).unwrap().set_modified(hour_ago).unwrap();
        };
        let (file, _) = ResolvConf::open(&path).unwrap();
        // Not UTF-8, in place of a disk that cannot be read; then the same file without another time or size.
        write(b"nameserver 192.0.2.\xff\n");
        let now = Instant::now() + LOOK_INTERVAL;
        assert_eq!(file.read_again(now), None);
        write(b"nameserver 192.0.2.1\n");
        assert_eq!(file.read_again(now + RETRY_INTERVAL - LOOK_INTERVAL), None, "not at every question");
        assert_eq!(named(file.read_again(now + RETRY_INTERVAL)), Some(("192.0.2.1".into(), false)));
    }

    #[test]
    fn a_file_that_is_being_written_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        fs::write(&path, "nameserver 192.0.2.1\n").unwrap();
        let (file, _) = ResolvConf::open(&path).unwrap();
        let written = |ago: Duration| {
            File::options().write(true).open(&path).unwrap().set_modified(SystemTime::now() - ago).unwrap();
        };
        // Truncated a moment ago; a busy machine may take a while to look.
        fs::write(&path, "").unwrap();
        File::options().write(true).open(&path).unwrap().set_modified(SystemTime::now()).unwrap();
        let began = SystemTime::now();
        let seen = file.read_again(Instant::now() + LOOK_INTERVAL);
        assert!(seen.is_none() || began.elapsed().unwrap() >= SETTLED_AFTER);
        fs::write(&path, "nameserver 192.0.2.2\n").unwrap();
        written(Duration::from_secs(5));
        assert_eq!(named(file.read_again(Instant::now() + 2 * LOOK_INTERVAL)), Some(("192.0.2.2".into(), false)));
    }
}
