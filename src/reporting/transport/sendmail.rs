//! The sendmail command of this host's MTA.
//!
//! Takes: the path of the command, one message for one recipient. Gives: an [`Outcome`] from its exit code (sysexits(3)).
//! The end of its input is what the final dot is to SMTP: the flag `ended` becomes true when all is written.
//! Limits: [`MAX_ANSWER`] characters of standard error; the deadlines are those of `transport`.
//! When it fails: an outcome. Dropped early, the command is killed before its input ends.

use std::io;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use super::{Letter, MAX_ANSWER, Outcome, unanswered};
use crate::base::printable::escape_and_cut;

pub(super) async fn sendmail(path: &Path, letter: Letter<'_>, ended: &AtomicBool) -> Outcome {
    let spawned = Command::new(path)
        .args(["-i", "-f", &letter.from.to_string(), "--", &letter.to.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut running = match spawned {
        Ok(child) => Running(child),
        Err(e) => return Outcome::Retry(escape_and_cut(&format!("{}: {e}", path.display()), MAX_ANSWER)),
    };
    let stderr = running.0.stderr.take();
    let ((written, status), said) = tokio::join!(running.finish(letter.message, ended), complaint(stderr));
    let name = path.display();
    match (status, written) {
        (Err(e), _) => unanswered(ended, &format!("{name}: {e}")),
        (Ok(status), _) if !status.success() => by_exit_code(status, &format!("{name}: {status}: {said}"), ended),
        (Ok(_), Err(e)) => {
            Outcome::Unknown(escape_and_cut(&format!("{name}: said yes, and did not read it all: {e}"), MAX_ANSWER))
        }
        (Ok(_), Ok(())) => {
            Outcome::Accepted(escape_and_cut(&format!("{name}: taken {said}"), MAX_ANSWER).trim_end().to_owned())
        }
    }
}

/// The command. Dropped early, it is killed before its input ends: it would take the half for the whole.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Fails only where it has ended already.
        let _ = self.0.start_kill();
    }
}

impl Running {
    async fn finish(&mut self, message: &[u8], ended: &AtomicBool) -> (io::Result<()>, io::Result<ExitStatus>) {
        let written = self.feed(message, ended).await;
        (written, self.0.wait().await)
    }

    /// Writes the message, lines ended as the command wants them, and ends its input.
    async fn feed(&mut self, message: &[u8], ended: &AtomicBool) -> io::Result<()> {
        let Some(input) = self.0.stdin.as_mut() else { return Err(io::Error::other("no standard input")) };
        let written = async {
            input.write_all(&local_lines(message)).await?;
            input.flush().await
        }
        .await;
        // After an error too: the command must not wait for more.
        ended.store(written.is_ok(), Ordering::Relaxed);
        self.0.stdin = None;
        written
    }
}

/// sendmail's input has the line ends of the host.
fn local_lines(message: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.len());
    for line in message.split_inclusive(|b| *b == b'\n') {
        match line.strip_suffix(b"\r\n") {
            Some(text) => {
                out.extend_from_slice(text);
                out.push(b'\n');
            }
            None => out.extend_from_slice(line),
        }
    }
    out
}

/// The first of what the command said on standard error.
async fn complaint(stderr: Option<tokio::process::ChildStderr>) -> String {
    let Some(mut stderr) = stderr else { return String::new() };
    let mut said = Vec::new();
    let mut chunk = [0; 1024];
    // All is read, so that the command is not stopped by a full pipe; little is kept.
    while let Ok(n @ 1..) = stderr.read(&mut chunk).await {
        if said.len() < MAX_ANSWER {
            said.extend_from_slice(&chunk[..n]);
        }
    }
    escape_and_cut(String::from_utf8_lossy(&said).trim(), MAX_ANSWER)
}

/// What sendmail's exit code means (sysexits(3)). An exit is an answer, as a reply is: it was not taken.
fn by_exit_code(status: ExitStatus, text: &str, ended: &AtomicBool) -> Outcome {
    /// EX_SOFTWARE, EX_OSERR, EX_CANTCREAT, EX_IOERR, EX_TEMPFAIL: the host's trouble, which may pass.
    const PASSING: [i32; 5] = [70, 71, 73, 74, 75];
    match status.code() {
        Some(code) if PASSING.contains(&code) => Outcome::Retry(escape_and_cut(text, MAX_ANSWER)),
        Some(_) => Outcome::Refused(escape_and_cut(text, MAX_ANSWER)),
        // Killed by a signal: it may have queued the message before.
        None => unanswered(ended, text),
    }
}
