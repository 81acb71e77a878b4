//! One query to one server: over UDP, and over TCP where the answer does not fit.
//!
//! Takes: the address of a server, a question, whether to send EDNS. Gives: the answer, whatever its response code.
//! Limits: none of time: whoever waits sets it. A datagram of [`MAX_DATAGRAM`] bytes; one socket for each query, with a
//! port and a number that nobody can guess.
//! When it fails: an [`ExchangeError`], which tells a fault of this host from one of the server. What does not belong to
//! the query is ignored.
//! Not here: which server is asked, and when again (`servers`).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ring::rand::{SecureRandom, SystemRandom};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use crate::net::dns::message::{AnswerMessage, Question, UndecodableMessage};
use crate::net::local_fault::is_exhausted;

/// The longest datagram that is read: more than a query with EDNS allows.
const MAX_DATAGRAM: usize = 4096;

/// Why a server gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ExchangeError {
    /// This host could not send the query: no descriptors, no route.
    #[error("this host cannot send queries: {0}")]
    Local(String),
    /// The server, or the way to it.
    #[error("{0}")]
    Server(String),
}

/// Asks a server.
pub(crate) async fn exchange(
    server: SocketAddr,
    question: &Question,
    edns: bool,
) -> Result<AnswerMessage, ExchangeError> {
    let mut id = [0; 2];
    let no_number = |_| ExchangeError::Local("the system gave no random number".into());
    SystemRandom::new().fill(&mut id).map_err(no_number)?;
    let id = u16::from_be_bytes(id);
    let invalid_name = || ExchangeError::Local("not a name that DNS can hold".into());
    let query = question.to_query(id, edns).ok_or_else(invalid_name)?;
    let answer = over_udp(server, question, id, &query).await?;
    if !answer.truncated {
        return Ok(answer);
    }
    let answer = over_tcp(server, question, id, &query).await.map_err(|error| match error {
        ExchangeError::Local(cause) => ExchangeError::Local(cause),
        ExchangeError::Server(cause) => {
            ExchangeError::Server(format!("the answer is truncated, and over TCP: {cause}"))
        }
    })?;
    if answer.truncated { Err(ExchangeError::Server("the answer is truncated over TCP".into())) } else { Ok(answer) }
}

async fn over_udp(
    server: SocketAddr,
    question: &Question,
    id: u16,
    query: &[u8],
) -> Result<AnswerMessage, ExchangeError> {
    let any = match server {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind((any, 0)).await.map_err(sending_error)?;
    // Datagrams of others do not arrive; an ICMP error does.
    socket.connect(server).await.map_err(sending_error)?;
    socket.send(query).await.map_err(sending_error)?;
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        let length = socket.recv(&mut buffer).await.map_err(|e| ExchangeError::Server(e.to_string()))?;
        if let Some(answer) = read_answer(&buffer[..length], question, id)? {
            return Ok(answer);
        }
    }
}

async fn over_tcp(
    server: SocketAddr,
    question: &Question,
    id: u16,
    query: &[u8],
) -> Result<AnswerMessage, ExchangeError> {
    let failed = |e: io::Error| ExchangeError::Server(e.to_string());
    let mut stream = TcpStream::connect(server).await.map_err(sending_error)?;
    // Behind its length (RFC 1035 §4.2.2), in one segment. A query is never longer than 300 bytes.
    let length = u16::try_from(query.len()).unwrap_or(u16::MAX);
    stream.write_all(&[&length.to_be_bytes(), query].concat()).await.map_err(failed)?;
    loop {
        let mut bytes = vec![0; usize::from(stream.read_u16().await.map_err(failed)?)];
        stream.read_exact(&mut bytes).await.map_err(failed)?;
        if let Some(answer) = read_answer(&bytes, question, id)? {
            return Ok(answer);
        }
    }
}

/// The answer to the question; nothing where a message does not belong to the query.
fn read_answer(bytes: &[u8], question: &Question, id: u16) -> Result<Option<AnswerMessage>, ExchangeError> {
    if bytes.get(..2) != Some(&id.to_be_bytes()) {
        return Ok(None);
    }
    match AnswerMessage::decode(bytes) {
        Ok(answer) => Ok(Some(answer).filter(|answer| question.is_answered_by(answer))),
        Err(error @ UndecodableMessage) => Err(ExchangeError::Server(error.to_string())),
    }
}

/// Whose fault it is that a query cannot be sent.
fn sending_error(error: io::Error) -> ExchangeError {
    use io::ErrorKind as Kind;
    let local = matches!(
        error.kind(),
        Kind::NetworkUnreachable
            | Kind::HostUnreachable
            | Kind::NetworkDown
            | Kind::AddrNotAvailable
            | Kind::PermissionDenied
    );
    if local || is_exhausted(&error) {
        ExchangeError::Local(error.to_string())
    } else {
        ExchangeError::Server(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_of_this_host_is_told_from_one_of_the_server() {
        let local = |errno: rustix::io::Errno| {
            matches!(sending_error(io::Error::from_raw_os_error(errno.raw_os_error())), ExchangeError::Local(_))
        };
        use rustix::io::Errno;
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NETUNREACH, Errno::HOSTUNREACH, Errno::NETDOWN, Errno::NOBUFS]
        {
            assert!(local(errno), "{errno}");
        }
        for errno in [Errno::CONNREFUSED, Errno::CONNRESET, Errno::TIMEDOUT] {
            assert!(!local(errno), "{errno}");
        }
    }
}
