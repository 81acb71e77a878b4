//! The sendmail command of this host's MTA.
//!
//! Takes: the path of the command, one message for one recipient. Gives: an [`DeliveryOutcome`] from its exit code (sysexits(3)).
//! The end of its input is what the final dot is to SMTP: the flag `dot_sent` becomes true when all is written.
//! `intent` is awaited before the command starts: killed later, this process would end the command's input, and the command
//! would send what it had got by then.
//! Limits: [`MAX_REPLY_TEXT`] characters of standard error; the deadlines are those of `transport`.
//! When it fails: an outcome. Dropped early, the command is killed before its input ends.

use std::future::Future;
use std::io;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use super::{DeliveryOutcome, MAX_REPLY_TEXT, OutgoingMail, outcome_without_reply};
use crate::base::printable::escape_and_cut;

pub(super) async fn run_sendmail(
    path: &Path,
    mail: OutgoingMail<'_>,
    intent: impl Future<Output = Result<(), String>>,
    dot_sent: &AtomicBool,
) -> DeliveryOutcome {
    if let Err(e) = intent.await {
        return DeliveryOutcome::Retry(escape_and_cut(&e, MAX_REPLY_TEXT));
    }
    let spawned = Command::new(path)
        .args(["-i", "-f", &mail.from.to_string(), "--", &mail.to.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut running = match spawned {
        Ok(child) => SendmailProcess(child),
        Err(e) => return DeliveryOutcome::Retry(escape_and_cut(&format!("{}: {e}", path.display()), MAX_REPLY_TEXT)),
    };
    let stderr = running.0.stderr.take();
    let ((written, status), stderr_text) =
        tokio::join!(running.write_and_wait(mail.message, dot_sent), read_stderr(stderr));
    let name = path.display();
    match (status, written) {
        (Err(e), _) => outcome_without_reply(dot_sent, &format!("{name}: {e}")),
        (Ok(status), _) if !status.success() => {
            exit_outcome(status, &format!("{name}: {status}: {stderr_text}"), dot_sent)
        }
        (Ok(_), Err(e)) => DeliveryOutcome::Unknown(escape_and_cut(
            &format!("{name}: said yes, and did not read it all: {e}"),
            MAX_REPLY_TEXT,
        )),
        (Ok(_), Ok(())) => DeliveryOutcome::Accepted(
            escape_and_cut(&format!("{name}: taken {stderr_text}"), MAX_REPLY_TEXT).trim_end().to_owned(),
        ),
    }
}

/// The running command. Dropped early, it is killed before its input ends: it would take half a message for a whole one.
struct SendmailProcess(Child);

impl Drop for SendmailProcess {
    fn drop(&mut self) {
        // Fails only where it has ended already.
        let _ = self.0.start_kill();
    }
}

impl SendmailProcess {
    async fn write_and_wait(
        &mut self,
        message: &[u8],
        dot_sent: &AtomicBool,
    ) -> (io::Result<()>, io::Result<ExitStatus>) {
        let written = self.write_message(message, dot_sent).await;
        (written, self.0.wait().await)
    }

    /// Writes the message, lines ended as the command wants them, and ends its input.
    async fn write_message(&mut self, message: &[u8], dot_sent: &AtomicBool) -> io::Result<()> {
        let Some(input) = self.0.stdin.as_mut() else { return Err(io::Error::other("no standard input")) };
        let written = async {
            input.write_all(&with_local_line_ends(message)).await?;
            input.flush().await
        }
        .await;
        // After an error too: the command must not wait for more.
        dot_sent.store(written.is_ok(), Ordering::Relaxed);
        self.0.stdin = None;
        written
    }
}

/// The message with the line ends of the host, as sendmail reads them.
fn with_local_line_ends(message: &[u8]) -> Vec<u8> {
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

/// Reads standard error; returns its beginning.
async fn read_stderr(stderr: Option<tokio::process::ChildStderr>) -> String {
    let Some(mut stderr) = stderr else { return String::new() };
    let mut stderr_text = Vec::new();
    let mut chunk = [0; 1024];
    // All is read, so that the command is not stopped by a full pipe; little is kept.
    while let Ok(n @ 1..) = stderr.read(&mut chunk).await {
        if stderr_text.len() < MAX_REPLY_TEXT {
            stderr_text.extend_from_slice(&chunk[..n]);
        }
    }
    escape_and_cut(String::from_utf8_lossy(&stderr_text).trim(), MAX_REPLY_TEXT)
}

/// The outcome that sendmail's exit code means (sysexits(3)). A failing exit is an answer: the message was not accepted.
fn exit_outcome(status: ExitStatus, text: &str, dot_sent: &AtomicBool) -> DeliveryOutcome {
    /// EX_DATAERR, EX_NOUSER, EX_NOHOST: about this report or its recipient. All else is the host's trouble or set-up.
    const FINAL: [i32; 3] = [65, 67, 68];
    match status.code() {
        Some(code) if FINAL.contains(&code) => DeliveryOutcome::Refused(escape_and_cut(text, MAX_REPLY_TEXT)),
        Some(_) => DeliveryOutcome::Retry(escape_and_cut(text, MAX_REPLY_TEXT)),
        // Killed by a signal: it may have queued the message before.
        None => outcome_without_reply(dot_sent, text),
    }
}
