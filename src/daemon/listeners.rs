//! The sockets that are listened on: bound here, or taken from systemd.
//!
//! Takes: addresses. Gives: listeners that do not block, kept over a reload of the configuration so that no connection
//! is refused in between. A unix socket that nobody answers on is a leftover and is replaced; one that somebody answers
//! on is taken, and that is an error.
//! When it fails: [`SocketError`], one line, before anything was started.

use std::io;
use std::net::TcpListener;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;

use listenfd::ListenFd;

use crate::config::ListenAddress;
use crate::counting::input::datagram::RECEIVE_BUFFER;

/// Who may connect to a unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SocketAccess {
    /// Any user; the folder limits who can. smtp(8) runs as user postfix.
    Everybody,
    /// Only the daemon's user and root.
    Owner,
    /// The members of a group too: this one, or the daemon's own.
    Group(Option<String>),
}

impl SocketAccess {
    fn mode(&self) -> u32 {
        match self {
            SocketAccess::Everybody => 0o666,
            SocketAccess::Owner => 0o600,
            SocketAccess::Group(_) => 0o660,
        }
    }

    /// Sets the group and the mode of a socket.
    fn apply(&self, path: &Path) -> Result<(), String> {
        if let SocketAccess::Group(group) = self {
            let own = rustix::process::getegid().as_raw();
            let gid = group.as_deref().map_or(Ok(own), find_group)?;
            let shown = group.as_deref().unwrap_or("the daemon's own");
            let failed =
                |e| format!("group {shown}: cannot be given the socket: {e}; the daemon's user must be a member");
            if std::fs::metadata(path).map_err(|e| e.to_string())?.gid() != gid {
                std::os::unix::fs::chown(path, None, Some(gid)).map_err(failed)?;
            }
        }
        std::fs::set_permissions(path, PermissionsExt::from_mode(self.mode())).map_err(|e| e.to_string())
    }
}

/// The number of a group of this host (group(5)).
pub(crate) fn find_group(group: &str) -> Result<u32, String> {
    if let Ok(number) = group.parse() {
        return Ok(number);
    }
    let groups = std::fs::read_to_string("/etc/group").map_err(|e| format!("/etc/group: cannot be read: {e}"))?;
    let number = |line: &str| {
        let mut fields = line.split(':');
        if fields.next()? == group { fields.nth(1)?.parse().ok() } else { None }
    };
    groups.lines().find_map(number).ok_or_else(|| format!("unknown group \"{group}\": not in /etc/group"))
}

/// A socket that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("{address}: cannot listen: {problem}")]
pub(crate) struct SocketError {
    address: String,
    problem: String,
}

impl SocketError {
    /// A socket that fails after it was bound.
    pub(crate) fn new(address: &ListenAddress, error: &io::Error) -> SocketError {
        SocketError { address: address.to_string(), problem: error.to_string() }
    }

    /// The problem and its cause, without the address.
    pub(crate) fn problem(&self) -> String {
        format!("cannot listen: {}", self.problem)
    }
}

/// A listening socket.
#[derive(Debug)]
pub(crate) enum BoundSocket {
    /// A unix-domain socket.
    Unix(UnixListener),
    /// TCP.
    Inet(TcpListener),
    /// A unix-domain socket that takes datagrams.
    Datagrams(UnixDatagram),
}

impl BoundSocket {
    /// Another handle of the same socket.
    pub(crate) fn try_clone(&self) -> io::Result<BoundSocket> {
        Ok(match self {
            BoundSocket::Unix(listener) => BoundSocket::Unix(listener.try_clone()?),
            BoundSocket::Inet(listener) => BoundSocket::Inet(listener.try_clone()?),
            BoundSocket::Datagrams(socket) => BoundSocket::Datagrams(socket.try_clone()?),
        })
    }

    fn address(&self) -> Option<ListenAddress> {
        match self {
            BoundSocket::Unix(listener) => {
                listener.local_addr().ok()?.as_pathname().map(|p| ListenAddress::Unix(p.to_owned()))
            }
            BoundSocket::Inet(listener) => listener.local_addr().ok().map(ListenAddress::Inet),
            BoundSocket::Datagrams(socket) => {
                socket.local_addr().ok()?.as_pathname().map(|p| ListenAddress::Unix(p.to_owned()))
            }
        }
    }
}

/// All listening sockets of the daemon, by address.
pub(crate) struct Sockets {
    bound: Vec<(ListenAddress, BoundSocket, SocketOrigin)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum SocketOrigin {
    Systemd,
    Own,
}

impl Sockets {
    /// Takes the sockets that systemd passed, if any.
    pub(crate) fn from_systemd() -> Sockets {
        let mut passed = ListenFd::from_env();
        let mut bound = Vec::new();
        for number in 0..passed.len() {
            let unix = passed.take_unix_listener(number).ok().flatten().map(BoundSocket::Unix);
            let socket = unix.or_else(|| passed.take_tcp_listener(number).ok().flatten().map(BoundSocket::Inet));
            let socket =
                socket.or_else(|| passed.take_unix_datagram(number).ok().flatten().map(BoundSocket::Datagrams));
            match socket.and_then(|socket| Some((socket.address()?, socket))) {
                Some((address, socket)) => bound.push((address, socket, SocketOrigin::Systemd)),
                None => tracing::warn!(
                    "systemd: socket {number}: neither a unix nor a TCP listener, nor a unix datagram socket; not used"
                ),
            }
        }
        Sockets { bound }
    }

    /// A handle of a socket that takes datagrams.
    pub(crate) fn datagram_socket(&mut self, path: &Path, mode: u32) -> Result<UnixDatagram, SocketError> {
        let address = ListenAddress::Unix(path.to_owned());
        let failed = |problem: String| SocketError { address: address.to_string(), problem };
        if !self.bound.iter().any(|(bound, _, _)| *bound == address) {
            let socket = bind_datagrams(path, mode).map_err(failed)?;
            self.bound.push((address.clone(), BoundSocket::Datagrams(socket), SocketOrigin::Own));
        }
        let (_, socket, _) = self.bound.iter().find(|(bound, _, _)| *bound == address).expect("found or bound above");
        match socket.try_clone().map_err(|e| failed(e.to_string()))? {
            BoundSocket::Datagrams(socket) => {
                // The kernel gives what net.core.rmem_max allows; less is no fault.
                let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER);
                Ok(socket)
            }
            _ => Err(failed("it takes connections, not datagrams".into())),
        }
    }

    /// Checks that one of these sockets can be listened on, or that there are none; if not, nothing new stays bound.
    /// Fails with the first socket's error.
    pub(crate) fn check_any(&mut self, addresses: &[&ListenAddress]) -> Result<(), SocketError> {
        let before: Vec<ListenAddress> = self.bound.iter().map(|(address, _, _)| address.clone()).collect();
        let mut failed = None;
        for address in addresses {
            match self.bind_or_share(address, &SocketAccess::Everybody) {
                Ok(_) => return Ok(()),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        self.close_except(&before);
        failed.map_or(Ok(()), Err)
    }

    /// The sockets of systemd that `used` does not name: a client that connects there waits for ever.
    pub(crate) fn unused_systemd_sockets<'a>(
        &'a self,
        used: &'a [ListenAddress],
    ) -> impl Iterator<Item = &'a ListenAddress> {
        let idle = |(address, _, origin): &&(ListenAddress, BoundSocket, SocketOrigin)| {
            *origin == SocketOrigin::Systemd && !used.contains(address)
        };
        self.bound.iter().filter(idle).map(|(address, _, _)| address)
    }

    /// Closes and removes the sockets that `keep` does not name; systemd's sockets stay open.
    pub(crate) fn close_except(&mut self, keep: &[ListenAddress]) {
        self.bound.retain(|(address, _, origin)| {
            let stays = *origin == SocketOrigin::Systemd || keep.contains(address);
            if let (false, ListenAddress::Unix(path)) = (stays, address) {
                remove_socket_file(path);
            }
            stays
        });
    }

    /// A handle of a socket, which is bound if it is not yet.
    pub(crate) fn bind_or_share(
        &mut self,
        address: &ListenAddress,
        access: &SocketAccess,
    ) -> Result<BoundSocket, SocketError> {
        let failed = |problem: String| SocketError { address: address.to_string(), problem };
        if !self.bound.iter().any(|(bound, _, _)| bound == address) {
            let socket = bind_listener(address, access).map_err(failed)?;
            self.bound.push((address.clone(), socket, SocketOrigin::Own));
        }
        let (_, socket, origin) =
            self.bound.iter().find(|(bound, _, _)| bound == address).expect("found or bound above");
        // A reload may name another group. A socket that is not served must not take connections either.
        if let (ListenAddress::Unix(path), SocketAccess::Group(_), SocketOrigin::Own) = (address, access, origin)
            && let Err(problem) = access.apply(path)
        {
            remove_socket_file(path);
            self.bound.retain(|(bound, _, _)| bound != address);
            return Err(failed(problem));
        }
        socket.try_clone().and_then(set_nonblocking).map_err(|e| failed(e.to_string()))
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        self.close_except(&[]);
    }
}

fn set_nonblocking(socket: BoundSocket) -> io::Result<BoundSocket> {
    match &socket {
        BoundSocket::Unix(listener) => listener.set_nonblocking(true)?,
        BoundSocket::Inet(listener) => listener.set_nonblocking(true)?,
        BoundSocket::Datagrams(_) => return Err(io::Error::other("it takes datagrams, not connections")),
    }
    Ok(socket)
}

fn bind_listener(address: &ListenAddress, access: &SocketAccess) -> Result<BoundSocket, String> {
    match address {
        ListenAddress::Inet(address) => TcpListener::bind(address).map(BoundSocket::Inet).map_err(|e| e.to_string()),
        ListenAddress::Unix(path) => {
            remove_leftover(path, || UnixStream::connect(path).map(drop))?;
            let listener = UnixListener::bind(path).map_err(|e| describe_bind_error(&e, path))?;
            access.apply(path).inspect_err(|_| remove_socket_file(path))?;
            Ok(BoundSocket::Unix(listener))
        }
    }
}

fn bind_datagrams(path: &Path, mode: u32) -> Result<UnixDatagram, String> {
    remove_leftover(path, || UnixDatagram::unbound()?.connect(path))?;
    let socket = UnixDatagram::bind(path).map_err(|e| describe_bind_error(&e, path))?;
    let permitted = std::fs::set_permissions(path, PermissionsExt::from_mode(mode));
    permitted.inspect_err(|_| remove_socket_file(path)).map_err(|e| e.to_string())?;
    Ok(socket)
}

fn describe_bind_error(error: &io::Error, path: &Path) -> String {
    match (error.kind(), path.parent()) {
        (io::ErrorKind::NotFound, Some(folder)) => format!("the folder {} is missing", folder.display()),
        _ => error.to_string(),
    }
}

/// Removes a leftover socket; fails where the file is not a socket, or a process listens on it.
fn remove_leftover(path: &Path, connect: impl FnOnce() -> io::Result<()>) -> Result<(), String> {
    match std::fs::symlink_metadata(path) {
        Err(_) => Ok(()),
        Ok(found) if !found.file_type().is_socket() => Err("there is something that is no socket".into()),
        Ok(_) => match connect() {
            Ok(()) => Err("another process answers there".into()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).map_err(|e| format!("a leftover cannot be removed: {e}"))
            }
            Err(error) => Err(error.to_string()),
        },
    }
}

fn remove_socket_file(path: &Path) {
    // A socket file that stays is replaced at the next start.
    let _ = std::fs::remove_file(path);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leftover_is_replaced_and_what_is_taken_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        let mut sockets = Sockets { bound: Vec::new() };
        let first = sockets.bind_or_share(&ListenAddress::Unix(path.clone()), &SocketAccess::Owner).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let mut others = Sockets { bound: Vec::new() };
        let taken =
            others.bind_or_share(&ListenAddress::Unix(path.clone()), &SocketAccess::Owner).unwrap_err().to_string();
        assert_eq!(taken, format!("unix:{}: cannot listen: another process answers there", path.display()));
        drop(first);
        sockets.close_except(&[]);
        assert!(!path.exists());
        std::fs::write(&path, "").unwrap();
        assert!(
            others
                .bind_or_share(&ListenAddress::Unix(path.clone()), &SocketAccess::Owner)
                .unwrap_err()
                .to_string()
                .contains("no socket")
        );
        let nowhere = others
            .bind_or_share(&ListenAddress::Unix(folder.path().join("no/s")), &SocketAccess::Owner)
            .unwrap_err()
            .to_string();
        assert!(nowhere.contains("is missing"), "{nowhere}");
    }

    #[test]
    fn a_socket_whose_group_cannot_be_set_is_closed_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let address = ListenAddress::Unix(path.clone());
        let unknown = SocketAccess::Group(Some("no-such-group".into()));
        let mut sockets = Sockets { bound: Vec::new() };
        // At a start, and at a reload of what is bound already.
        assert!(sockets.bind_or_share(&address, &unknown).unwrap_err().to_string().contains("unknown group"));
        assert!(!path.exists());
        drop(sockets.bind_or_share(&address, &SocketAccess::Group(None)).unwrap());
        UnixStream::connect(&path).unwrap();
        assert!(sockets.bind_or_share(&address, &unknown).unwrap_err().to_string().contains("unknown group"));
        assert!(!path.exists() && sockets.bound.is_empty());
        sockets.bind_or_share(&address, &SocketAccess::Group(None)).unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_datagram_socket_is_bound_with_its_mode_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tlsrpt");
        drop(UnixDatagram::bind(&path).unwrap());
        let mut sockets = Sockets { bound: Vec::new() };
        let socket = sockets.datagram_socket(&path, 0o620).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o620);
        let mut others = Sockets { bound: Vec::new() };
        assert!(
            others.datagram_socket(&path, 0o620).unwrap_err().to_string().contains("another process answers there")
        );
        assert!(
            sockets
                .bind_or_share(&ListenAddress::Unix(path.clone()), &SocketAccess::Owner)
                .unwrap_err()
                .to_string()
                .contains("takes datagrams")
        );
        drop(socket);
        UnixDatagram::unbound().unwrap().send_to(b"x", &path).unwrap();
        let mut octets = [0; 2];
        assert_eq!(sockets.datagram_socket(&path, 0o620).unwrap().recv(&mut octets).unwrap(), 1, "kept in between");
        sockets.close_except(&[]);
        assert!(!path.exists());
    }

    #[test]
    fn one_socket_of_several_is_enough_and_none_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| ListenAddress::Unix(folder.path().join(name));
        let mut sockets = Sockets { bound: Vec::new() };
        assert!(sockets.check_any(&[]).is_ok());
        sockets.check_any(&[&at("no/s"), &at("old")]).unwrap();
        let failed = sockets.check_any(&[&at("no/s"), &at("no/t")]).unwrap_err();
        assert!(failed.to_string().contains("no/s: cannot listen: the folder"), "{failed}");
        assert!(folder.path().join("old").exists(), "what runs keeps its sockets");
    }
}
