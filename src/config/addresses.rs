//! The addresses of all sockets that the daemon opens: none twice, none that cannot be opened.
//!
//! Takes: a configuration. Gives: nothing, or the option that is wrong and why. Addresses are compared as the kernel
//! would: paths without `//`, `.` and `..`, symbolic links followed as far as they exist, IPv4 addresses however written.
//! Limits: [`MAX_SOCKET_PATH`] bytes for the path of a socket.
//! When it fails: what cannot be followed on this host, because it does not exist yet, is compared as it is written.
//! Not here: whether an address can be opened on this host (`daemon::listeners`).

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::path::{Component, Path, PathBuf};

use crate::config::{Config, InputKind, ListenAddress};

/// The longest path of a unix socket, in bytes (unix(7), `sun_path`).
const MAX_SOCKET_PATH: usize = 107;

/// One option with the address of a socket.
struct Socket<'a> {
    /// Its section, the number of that section among several of its name, and its key.
    section: &'static str,
    nth: usize,
    key: &'static str,
    address: Address<'a>,
}

enum Address<'a> {
    Path(Cow<'a, Path>),
    Inet(SocketAddr),
}

/// Checks all addresses. Fails with section, number of the section, key, and what is wrong.
pub(super) fn check(config: &Config) -> Result<(), (&'static str, usize, &'static str, String)> {
    let sockets = sockets(config);
    let store = resolve(&config.store.path);
    for (n, socket) in sockets.iter().enumerate() {
        let fault = |problem: String| Err((socket.section, socket.nth, socket.key, problem));
        if let Address::Path(path) = &socket.address
            && let Err(problem) = check_path(path, &store)
        {
            return fault(problem);
        }
        if let Some((earlier, reason)) =
            sockets[..n].iter().find_map(|earlier| Some((earlier, conflict(earlier, socket)?)))
        {
            return fault(format!(
                "duplicate address \"{}\": {} \"{}\" {reason}; one of them would get the connections of the other",
                socket.shown(),
                earlier.name(),
                earlier.shown()
            ));
        }
    }
    Ok(())
}

fn sockets(config: &Config) -> Vec<Socket<'_>> {
    let control = |key, path| Socket { section: "control", nth: 0, key, address: Address::Path(path) };
    let mut sockets = vec![
        control("socket", Cow::Borrowed(config.control.socket.as_path())),
        control("status_socket", Cow::Owned(config.control.status_socket())),
    ];
    for (section, listen) in [
        ("socketmap", &config.socketmap.listen),
        ("readsocket", &config.readsocket.listen),
        ("status", &config.status.listen),
    ] {
        sockets.extend(listen.iter().map(|listen| {
            let address = match listen {
                ListenAddress::Unix(path) => Address::Path(Cow::Borrowed(path)),
                ListenAddress::Inet(address) => Address::Inet(*address),
            };
            Socket { section, nth: 0, key: "listen", address }
        }));
    }
    sockets.extend(config.inputs.iter().enumerate().filter_map(|(nth, input)| match input.kind() {
        Some(InputKind::Datagrams(path)) => {
            Some(Socket { section: "input", nth, key: "datagrams", address: Address::Path(Cow::Borrowed(path)) })
        }
        _ => None,
    }));
    sockets
}

impl Socket<'_> {
    fn name(&self) -> String {
        match self.section {
            "input" => format!("[[input]] {}", self.key),
            section => format!("[{section}] {}", self.key),
        }
    }

    /// The address as the option has it.
    fn shown(&self) -> String {
        match &self.address {
            Address::Path(path) if self.key == "listen" => format!("unix:{}", path.display()),
            Address::Path(path) => path.display().to_string(),
            Address::Inet(address) => format!("inet:{address}"),
        }
    }
}

/// Whether a socket can have this path at all.
fn check_path(path: &Path, store: &Path) -> Result<(), String> {
    let shown = path.display();
    if !path.is_absolute() {
        return Err(format!("invalid path \"{shown}\": expected an absolute path"));
    }
    let length = path.as_os_str().len();
    if length > MAX_SOCKET_PATH {
        return Err(format!(
            "invalid path \"{shown}\": {length} bytes; the path of a socket has at most {MAX_SOCKET_PATH} bytes"
        ));
    }
    let resolved = resolve(path);
    if resolved == store {
        return Err(format!("invalid path \"{shown}\": it is the folder of the store ([store] path)"));
    }
    if resolved.starts_with(store) {
        return Err(format!(
            "invalid path \"{shown}\": it is inside the store ([store] path = \"{}\"); only the store may write there",
            store.display()
        ));
    }
    if store.starts_with(&resolved) {
        return Err(format!("invalid path \"{shown}\": it is a folder that the store is in ([store] path)"));
    }
    Ok(())
}

/// Why two sockets cannot both be opened, if so.
fn conflict(earlier: &Socket<'_>, later: &Socket<'_>) -> Option<&'static str> {
    match (&earlier.address, &later.address) {
        (Address::Path(a), Address::Path(b)) => {
            let (a, b) = (resolve(a), resolve(b));
            if a == b {
                Some("names the same socket")
            } else if b.starts_with(&a) || a.starts_with(&b) {
                Some("would have to be a folder and a socket at once")
            } else {
                None
            }
        }
        (Address::Inet(a), Address::Inet(b)) => {
            // Port 0: the kernel chooses one.
            let same_port = a.port() == b.port() && a.port() != 0;
            let (a, b) = (a.ip().to_canonical(), b.ip().to_canonical());
            if !same_port {
                None
            } else if a == b {
                Some("names the same socket")
            } else if takes_all_of(a, b) || takes_all_of(b, a) {
                Some("takes the port on the same addresses")
            } else {
                None
            }
        }
        (Address::Path(_), Address::Inet(_)) | (Address::Inet(_), Address::Path(_)) => None,
    }
}

/// Whether a socket at this address leaves no room for one at the other: `::` takes IPv4 too (ipv6(7), `bindv6only`).
fn takes_all_of(address: IpAddr, other: IpAddr) -> bool {
    address.is_unspecified() && (address.is_ipv6() || other.is_ipv4())
}

/// A path as the kernel finds it: what exists is followed, and in the rest `..` goes up.
fn resolve(path: &Path) -> PathBuf {
    let mut rest = Vec::new();
    let mut existing = path;
    let mut resolved = loop {
        if let Ok(real) = existing.canonicalize() {
            break real;
        }
        match (existing.components().next_back(), existing.parent()) {
            (Some(last @ (Component::Normal(_) | Component::ParentDir)), Some(parent)) => {
                rest.push(last);
                existing = parent;
            }
            _ => break existing.to_owned(),
        }
    };
    for component in rest.into_iter().rev() {
        match component {
            Component::Normal(name) => resolved.push(name),
            Component::ParentDir => drop(resolved.pop()),
            Component::Prefix(_) | Component::RootDir | Component::CurDir => {}
        }
    }
    resolved
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{InputSection, NativeTlsrpt};

    fn config(control: &str, socketmap: &[&str], readsocket: &[&str], status: &[&str]) -> Config {
        let listen = |all: &[&str]| all.iter().map(|text| (*text).to_owned().try_into().unwrap()).collect();
        let mut config = Config::default();
        config.store.path = "/nowhere/state".into();
        config.control.socket = control.into();
        config.socketmap.listen = listen(socketmap);
        config.readsocket.listen = listen(readsocket);
        config.status.listen = listen(status);
        config
    }

    fn problem(config: &Config) -> Option<String> {
        check(config).err().map(|(section, _, key, problem)| format!("[{section}] {key}: {problem}"))
    }

    #[test]
    fn addresses_of_their_own_are_taken() {
        for config in [
            Config::default(),
            config(
                "/nowhere/c",
                &["unix:/nowhere/a", "inet:127.0.0.1:8461"],
                &["unix:/nowhere/b"],
                &["inet:[::1]:8461"],
            ),
            config("/nowhere/c", &["inet:127.0.0.1:0", "inet:127.0.0.1:0"], &[], &["inet:127.0.0.1:0"]),
            config("/nowhere/c", &["inet:127.0.0.1:1", "inet:127.0.0.2:1", "inet:0.0.0.0:2"], &[], &["inet:[::1]:2"]),
            // A name that begins as the store's does is beside it.
            config("/nowhere/state-control", &["unix:/nowhere/states/a"], &[], &[]),
        ] {
            assert_eq!(problem(&config), None);
        }
    }

    #[test]
    fn the_same_socket_is_found_however_it_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().canonicalize().unwrap();
        std::fs::create_dir(real.join("run")).unwrap();
        std::os::unix::fs::symlink(real.join("run"), real.join("link")).unwrap();
        std::os::unix::fs::symlink(real.join("run/a"), real.join("to-socket")).unwrap();
        std::fs::write(real.join("run/a"), "").unwrap();
        let at = |path: &str| format!("unix:{}/{path}", real.display());
        let pairs = [
            ("unix:/nowhere/a".to_owned(), "unix:/nowhere/a".to_owned()),
            ("unix:/nowhere/a".into(), "unix:/nowhere//a".into()),
            ("unix:/nowhere/a".into(), "unix:/nowhere/./a".into()),
            ("unix:/nowhere/a".into(), "unix:/nowhere/x/../a".into()),
            ("unix:/nowhere/a".into(), "unix://nowhere/a/".into()),
            (at("run/a"), at("link/a")),
            (at("run/new"), at("link/new")),
            (at("run/new"), at("link/x/../new")),
            (at("run/a"), at("to-socket")),
            ("inet:127.0.0.1:8461".into(), "inet:127.0.0.1:8461".into()),
            ("inet:127.0.0.1:8461".into(), "inet:[::ffff:127.0.0.1]:8461".into()),
            ("inet:[::1]:8461".into(), "inet:[0:0:0:0:0:0:0:1]:8461".into()),
        ];
        for (one, other) in &pairs {
            for config in [
                config("/nowhere/c", &[one, other], &[], &[]),
                config("/nowhere/c", &[one], &[other], &[]),
                config("/nowhere/c", &[one], &[], &[other]),
                config("/nowhere/c", &[], &[other], &[one]),
            ] {
                let problem = problem(&config).unwrap_or_default();
                assert!(problem.contains("names the same socket"), "{one} {other}: {problem}");
            }
        }
        let control = config("/nowhere//c", &["unix:/nowhere/c"], &[], &[]);
        assert_eq!(
            problem(&control).unwrap(),
            "[socketmap] listen: duplicate address \"unix:/nowhere/c\": [control] socket \"/nowhere//c\" names the same \
             socket; one of them would get the connections of the other"
        );
        let mut datagrams = config("/nowhere/c", &["unix:/nowhere/a"], &[], &[]);
        datagrams.postfix.tlsrpt = NativeTlsrpt::Datagrams;
        datagrams.inputs = vec![
            InputSection::file("/x"),
            InputSection { datagrams: Some("/nowhere/b/../a".into()), ..InputSection::default() },
        ];
        assert_eq!(
            check(&datagrams).map_err(|(section, nth, key, _)| (section, nth, key)),
            Err(("input", 1, "datagrams"))
        );
    }

    #[test]
    fn a_wildcard_takes_the_port_of_all_addresses() {
        for (one, other) in [
            ("inet:0.0.0.0:1", "inet:127.0.0.1:1"),
            ("inet:127.0.0.1:1", "inet:0.0.0.0:1"),
            ("inet:[::]:1", "inet:127.0.0.1:1"),
            ("inet:[::]:1", "inet:0.0.0.0:1"),
            ("inet:[::1]:1", "inet:[::]:1"),
        ] {
            let problem = problem(&config("/nowhere/c", &[one], &[], &[other])).unwrap_or_default();
            assert!(problem.contains("takes the port on the same addresses"), "{one} {other}: {problem}");
        }
    }

    #[test]
    fn what_cannot_be_the_path_of_a_socket() {
        let long = format!("/nowhere/{}", "a".repeat(MAX_SOCKET_PATH - 8));
        for (path, want) in [
            (long.as_str(), "108 bytes; the path of a socket has at most 107 bytes"),
            ("/nowhere/state", "it is the folder of the store ([store] path)"),
            ("/nowhere/x/../state/", "it is the folder of the store ([store] path)"),
            ("/nowhere/state/a", "it is inside the store ([store] path = \"/nowhere/state\")"),
            ("/nowhere//state/./b/a", "it is inside the store ([store] path = \"/nowhere/state\")"),
            ("/nowhere", "it is a folder that the store is in ([store] path)"),
        ] {
            for config in [
                config(path, &[], &[], &[]),
                config("/elsewhere/c", &[&format!("unix:{path}")], &[], &[]),
                config("/elsewhere/c", &[], &[], &[&format!("unix:{path}")]),
            ] {
                let problem = problem(&config).unwrap_or_default();
                assert!(problem.contains(want), "{path}: {problem}");
            }
        }
        assert_eq!(problem(&config(&long[..MAX_SOCKET_PATH], &[], &[], &[])), None);
        let relative = problem(&config("unix:/nowhere/c", &[], &[], &[])).unwrap();
        assert!(relative.ends_with("invalid path \"unix:/nowhere/c\": expected an absolute path"), "{relative}");
        let nested = config("/nowhere/c", &["unix:/nowhere/c/a"], &[], &[]);
        assert!(problem(&nested).unwrap().contains("would have to be a folder and a socket at once"));
    }
}
