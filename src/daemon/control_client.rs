//! The client of the control socket: sends one request to the running daemon, and reads its response.
//!
//! Takes: the `[control]` section, and a [`ControlRequest`]. Gives: the answer.
//! A user who may not use the control socket is answered at the socket that only reads, if the request does no more.
//! Limits: [`MAX_RESPONSE`] bytes.
//! When it fails: a [`RequestError`]; nothing is known of the daemon then.
//! Not here: how requests are answered (`control`), what a command does without a daemon (`services`).

use std::io;
use std::path::Path;

use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::control::{ControlRequest, ControlResponse, to_json};
use crate::config::ControlSection;

/// The longest response that is read, in bytes: the reports of a day of a large host.
const MAX_RESPONSE: u64 = 1 << 30;

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
    let socket = &control.socket;
    match UnixStream::connect(socket).await {
        Ok(stream) => exchange(stream, socket, request).await,
        Err(error) if is_absent(&error) => Err(RequestError::NotRunning),
        Err(error) if error.kind() != io::ErrorKind::PermissionDenied => Err(failed(socket, &error)),
        Err(_) if request.only_reads() => {
            let reading = control.status_socket();
            match UnixStream::connect(&reading).await {
                Ok(stream) => exchange(stream, &reading, request).await,
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Err(RequestError::NotRunning),
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
    mut stream: UnixStream,
    socket: &Path,
    request: &ControlRequest,
) -> Result<T, RequestError> {
    let mut line = to_json(request);
    line.push(b'\n');
    stream.write_all(&line).await.map_err(|e| failed(socket, &e))?;
    let mut answer = Vec::new();
    stream.take(MAX_RESPONSE).read_to_end(&mut answer).await.map_err(|e| failed(socket, &e))?;
    match serde_json::from_slice(&answer) {
        Ok(ControlResponse::Answer(answer)) => Ok(answer),
        Ok(ControlResponse::Fault(line)) => Err(RequestError::Failed(line)),
        Err(error) => Err(failed(socket, &error)),
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

fn failed(socket: &Path, problem: &dyn std::fmt::Display) -> RequestError {
    RequestError::Failed(format!("{}: the daemon did not answer: {problem}; nothing is shown", socket.display()))
}
