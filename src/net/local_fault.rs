//! Which errors of sockets are this host's own fault. Pure.
//!
//! Takes: an error. Gives: whether any connection would fail like that.
//! Not here: what follows for the mail (`policy`).

use std::io;

use rustix::io::Errno;

/// Whether the host has nothing left to open a socket with: descriptors, buffers, memory.
pub(crate) fn is_exhausted(error: &io::Error) -> bool {
    let exhausted = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    exhausted.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_any_connection_would_fail_with() {
        let exhausted = |errno: Errno| is_exhausted(&io::Error::from_raw_os_error(errno.raw_os_error()));
        assert!([Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM].into_iter().all(exhausted));
        // A policy host with IPv6 addresses alone has no route from a host without IPv6: that is not every connection.
        assert!(![Errno::CONNREFUSED, Errno::NETUNREACH, Errno::TIMEDOUT].into_iter().any(exhausted));
    }
}
