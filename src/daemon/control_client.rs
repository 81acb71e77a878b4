//! The client of the control socket: sends one request to the running daemon, and reads its response.
//!
//! Takes: the `[control]` section, and a [`ControlRequest`]. Gives: the answer.
//! A user who may not use the control socket is answered at the socket that only reads, if the request does no more.
//! Limits: [`MAX_RESPONSE`] bytes; [`STATUS_TIMEOUT`] for the status, which monitoring servers wait for.
//! When it fails: a [`RequestError`]; nothing is known of the daemon then.
//! Not here: how requests are answered (`control`), what a command does without a daemon (`services`).

use std::io;
use std::path::Path;
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::control::{ControlRequest, ControlResponse, to_json};
use crate::config::ControlSection;

/// The longest response that is read, in bytes: the reports of a day of a large host.
const MAX_RESPONSE: u64 = 1 << 30;

/// How long the daemon may take to answer how it is. Other requests may wait for DNS, other hosts or a large store.
const STATUS_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a request got no response.
#[derive(Debug)]
pub(crate) enum RequestError {
    /// Nothing listens on the control socket: no daemon is running.
    NotRunning,
    /// One line.
    Failed(String),
}

/// Sends a request to the daemon.
pub(crate) async fn send_request<T: DeserializeOwned>(
    control: &ControlSection,
    request: &ControlRequest,
) -> Result<T, RequestError> {
    let limit = matches!(request, ControlRequest::Status).then_some(STATUS_TIMEOUT);
    send_request_within(control, request, limit).await
}

async fn send_request_within<T: DeserializeOwned>(
    control: &ControlSection,
    request: &ControlRequest,
    limit: Option<Duration>,
) -> Result<T, RequestError> {
    let socket = &control.socket;
    match UnixStream::connect(socket).await {
        Ok(stream) => exchange(stream, socket, request, limit).await,
        Err(error) if is_absent(&error) => Err(RequestError::NotRunning),
        Err(error) if error.kind() != io::ErrorKind::PermissionDenied => Err(failed(socket, &error)),
        Err(_) if request.only_reads() => {
            let reading = control.status_socket();
            match UnixStream::connect(&reading).await {
                Ok(stream) => exchange(stream, &reading, request, limit).await,
                // A daemon that was killed leaves its socket; one that runs removes a socket that it does not serve.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Err(RequestError::NotRunning),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Err(RequestError::Failed(format!(
                    "{}: no such socket: the daemon does not listen there; run this command as root to see why",
                    reading.display()
                ))),
                Err(_) => Err(RequestError::Failed(format!(
                    "{}: permission denied: the daemon answers its own user and root alone; run this command as root, or \
                     as a member of the group of {}",
                    socket.display(),
                    reading.display()
                ))),
            }
        }
        Err(_) => Err(RequestError::Failed(format!(
            "{}: permission denied: the daemon answers its own user and root alone; run this command as root",
            socket.display()
        ))),
    }
}

async fn exchange<T: DeserializeOwned>(
    stream: UnixStream,
    socket: &Path,
    request: &ControlRequest,
    limit: Option<Duration>,
) -> Result<T, RequestError> {
    let answered = read_answer(stream, request);
    let answer = match limit {
        Some(limit) => {
            let answered = tokio::time::timeout(limit, answered).await;
            answered.map_err(|_| failed(socket, &format!("timed out after {} s", limit.as_secs())))?
        }
        None => answered.await,
    };
    let answer = answer.map_err(|e| failed(socket, &e))?;
    match serde_json::from_slice(&answer) {
        Ok(ControlResponse::Answer(answer)) => Ok(answer),
        Ok(ControlResponse::Fault(line)) => Err(RequestError::Failed(line)),
        Err(error) => Err(failed(socket, &error)),
    }
}

async fn read_answer(mut stream: UnixStream, request: &ControlRequest) -> io::Result<Vec<u8>> {
    let mut line = to_json(request);
    line.push(b'\n');
    stream.write_all(&line).await?;
    let mut answer = Vec::new();
    stream.take(MAX_RESPONSE).read_to_end(&mut answer).await?;
    Ok(answer)
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

fn failed(socket: &Path, problem: &dyn std::fmt::Display) -> RequestError {
    RequestError::Failed(format!("{}: the daemon did not answer: {problem}; nothing is shown", socket.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_that_nobody_serves_is_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let control = ControlSection { socket: folder.path().join("s"), ..ControlSection::default() };
        let _unserved = std::os::unix::net::UnixListener::bind(&control.socket).unwrap();
        let limit = Some(Duration::from_secs(1));
        let answer = send_request_within::<serde_json::Value>(&control, &ControlRequest::Status, limit).await;
        let Err(RequestError::Failed(line)) = answer else { panic!("{answer:?}") };
        assert!(line.ends_with("s: the daemon did not answer: timed out after 1 s; nothing is shown"), "{line}");
    }
}
