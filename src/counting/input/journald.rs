//! The systemd journal, by cursor: journalctl(1) as a supervised child.
//!
//! Takes: which journal and which entries, and the cursor of the last one counted. Gives: blocks of entries as
//! `journalctl -o json` prints them, a line each, in order, each once, with the cursor after them. Without a cursor it begins
//! with the oldest entry; days that are too old are dropped by the counting.
//! Limits: [`MAX_ENTRY`] bytes an entry; longer ones are skipped and counted. journalctl waits while nobody reads.
//! When it fails: journalctl that ends or cannot be started is started anew after a pause, and what it said is said. An
//! entry that was counted last and is gone (vacuumed) is said and counted: reading goes on at the nearest later one.
//! Not here: how an entry is read (`json_entry`), what it means (`parsers`).

use std::borrow::Cow;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tokio::time::{Instant, timeout};

use crate::counting::input::line_splitter::LineSplitter;
use crate::counting::input::{LineBlock, MAX_BLOCK, MAX_LINE, Position, RepeatedLines};

/// The longest entry that is read, in bytes: a text of `MAX_LINE` as an array of numbers, and the other fields.
pub(crate) const MAX_ENTRY: usize = 4 * MAX_LINE + 64 * 1024;

/// How long to wait for more entries before a batch is returned.
const BATCH_WAIT: Duration = Duration::from_millis(20);

/// The longest time that a batch is collected while more entries arrive.
const MAX_BATCH_WAIT: Duration = Duration::from_millis(100);

/// How long journalctl must print nothing before the journal is considered to be at its end.
const END_OF_JOURNAL_WAIT: Duration = Duration::from_secs(1);

/// How long to wait before journalctl is started anew; twice as long each time, up to the second figure.
const MIN_RESTART_DELAY: Duration = Duration::from_secs(1);
const MAX_RESTART_DELAY: Duration = Duration::from_secs(60);

/// How long journalctl must have run for the restart delay to begin again at its minimum.
const HEALTHY_RUN_TIME: Duration = Duration::from_secs(60);

/// The most bytes of journalctl's stderr that are kept to describe its exit.
const MAX_STDERR: usize = 1024;

/// Which journal is followed, and which of its entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JournalFilter {
    /// Another journal than the host's.
    pub folder: Option<PathBuf>,
    /// The identifiers, such as `postfix/smtp`; with no unit either, all of facility mail.
    pub identifiers: Vec<String>,
    /// The units, patterns allowed.
    pub units: Vec<String>,
}

impl JournalFilter {
    /// The arguments of journalctl that choose the entries. Those of journald itself tell of entries that it suppressed.
    fn selection(&self) -> Vec<String> {
        const JOURNALD: &str = "systemd-journald";
        if self.identifiers.is_empty() && self.units.is_empty() {
            // syslog(3)'s LOG_MAIL.
            return ["SYSLOG_FACILITY=2", "+", &format!("SYSLOG_IDENTIFIER={JOURNALD}")].map(str::to_owned).into();
        }
        // Of identifiers any matches, and of units; an entry must match both.
        let with_journald = |option: &str, names: &[String], journald: String| match names {
            [] => Vec::new(),
            names => names.iter().cloned().chain([journald]).map(|name| format!("--{option}={name}")).collect(),
        };
        let identifiers = with_journald("identifier", &self.identifiers, JOURNALD.to_owned());
        [identifiers, with_journald("unit", &self.units, format!("{JOURNALD}.service"))].concat()
    }
}

/// Follows a journal.
pub struct JournalFollower {
    journal: JournalFilter,
    cursor: Option<String>,
    /// Whether the next entry should be that of `cursor`, which has been counted and is left out.
    expects_cursor_entry: bool,
    /// Entries before the next ones are missing.
    lines_missing: bool,
    process: Option<JournalctlProcess>,
    splitter: LineSplitter,
    restart_delay: Duration,
    reported_end: bool,
    /// Since when complete entries are buffered.
    buffered_since: Option<Instant>,
}

struct JournalctlProcess {
    child: Child,
    stdout: ChildStdout,
    stderr: BufReader<ChildStderr>,
    started_at: Instant,
}

/// One result of [`JournalFollower::next`].
#[derive(Debug)]
pub enum JournalEvent {
    /// Entries, or the end of the journal.
    Entries(LineBlock),
    /// journalctl failed: the message without its subject. It is started again.
    Failed(String),
    /// The entry that was counted last is gone: in a line without its subject.
    Gap(String),
}

impl JournalFollower {
    /// Follows a journal, from a position if there is one.
    pub fn new(journal: JournalFilter, position: Option<Position>) -> JournalFollower {
        let cursor = match position {
            Some(Position::Journal { cursor }) => Some(cursor),
            _ => None,
        };
        let splitter = LineSplitter::new(MAX_ENTRY);
        JournalFollower {
            journal,
            cursor,
            expects_cursor_entry: false,
            lines_missing: false,
            process: None,
            splitter,
            restart_delay: MIN_RESTART_DELAY,
            reported_end: false,
            buffered_since: None,
        }
    }

    /// The next entries or event. After the future has been dropped, nothing may be read any more.
    pub async fn next(&mut self) -> JournalEvent {
        loop {
            if self.process.is_none() {
                match self.start() {
                    Ok(running) => self.process = Some(running),
                    Err(error) => {
                        let message = format!("journalctl cannot be started: {error}; trying again");
                        return self.back_off(message).await;
                    }
                }
            }
            let Some(running) = &mut self.process else { continue };
            let mut chunk = [0; 64 * 1024];
            let wait = if self.splitter.complete_bytes() > 0 { BATCH_WAIT } else { END_OF_JOURNAL_WAIT };
            match timeout(wait, running.stdout.read(&mut chunk)).await {
                Ok(Ok(0) | Err(_)) => {
                    let message = self.describe_exit().await;
                    return self.back_off(message).await;
                }
                Ok(Ok(length)) => {
                    self.splitter.push(&chunk[..length]);
                    self.reported_end = false;
                    let buffered_since = *self.buffered_since.get_or_insert_with(Instant::now);
                    if self.splitter.complete_bytes() < MAX_BLOCK / 2 && buffered_since.elapsed() < MAX_BATCH_WAIT {
                        continue;
                    }
                }
                Err(_) => {}
            }
            if let Some(next) = self.next_block() {
                return next;
            }
        }
    }

    /// Takes the entries that are complete, with the cursor after them.
    fn next_block(&mut self) -> Option<JournalEvent> {
        self.buffered_since = None;
        if self.splitter.complete_bytes() == 0 {
            if self.reported_end {
                return None;
            }
            self.reported_end = true;
            return Some(JournalEvent::Entries(self.block(Vec::new(), 0, true)));
        }
        if self.expects_cursor_entry {
            self.expects_cursor_entry = false;
            let first = self.splitter.first_line();
            if parse_cursor(first).is_some_and(|found| Some(&*found) == self.cursor.as_deref()) {
                self.splitter.drop_first_line();
                if self.splitter.complete_bytes() == 0 {
                    return None;
                }
            } else {
                let what = "the entry that was counted last is not there any more (vacuumed, or not of these identifiers \
                            and units); going on at the nearest later one: what was between is not counted";
                self.lines_missing = true;
                return Some(JournalEvent::Gap(what.to_owned()));
            }
        }
        let (lines, skipped) = self.splitter.take_lines();
        let last = lines.strip_suffix(b"\n").unwrap_or(&lines);
        let last = memchr::memrchr(b'\n', last).map_or(last, |at| &last[at + 1..]);
        if let Some(found) = parse_cursor(last) {
            self.cursor = Some(found.into_owned());
        }
        let mut block = self.block(lines, skipped, false);
        block.lines_missing = std::mem::take(&mut self.lines_missing);
        Some(JournalEvent::Entries(block))
    }

    fn block(&self, lines: Vec<u8>, skipped: u64, at_end: bool) -> LineBlock {
        let position = self.cursor.clone().map_or(Position::Nowhere, |cursor| Position::Journal { cursor });
        LineBlock {
            lines,
            position,
            skipped,
            bytes_behind: 0,
            at_end,
            repeated: RepeatedLines::AsBefore,
            lines_missing: false,
        }
    }

    fn start(&mut self) -> std::io::Result<JournalctlProcess> {
        let mut command = Command::new("journalctl");
        command
            .args(["--output=json", "--follow", "--no-tail", "--all", "--no-pager"])
            .arg("--output-fields=MESSAGE,SYSLOG_IDENTIFIER,SYSLOG_PID,_PID,_HOSTNAME")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        if let Some(folder) = &self.journal.folder {
            command.arg("--directory").arg(folder);
        }
        command.args(self.journal.selection());
        // From the entry itself on: where it is gone, `--after-cursor` would leave the next one out.
        if let Some(cursor) = &self.cursor {
            command.arg(format!("--cursor={cursor}"));
        }
        let mut child = command.spawn()?;
        let piped = || std::io::Error::other("it has no pipes");
        let out = child.stdout.take().ok_or_else(piped)?;
        let message = BufReader::new(child.stderr.take().ok_or_else(piped)?);
        self.expects_cursor_entry = self.cursor.is_some();
        // What was not whole comes again.
        self.splitter = LineSplitter::new(MAX_ENTRY);
        Ok(JournalctlProcess { child, stdout: out, stderr: message, started_at: Instant::now() })
    }

    /// Ends the process and describes why it exited.
    async fn describe_exit(&mut self) -> String {
        let Some(mut running) = self.process.take() else { return "journalctl has ended; starting it anew".into() };
        if running.started_at.elapsed() >= HEALTHY_RUN_TIME {
            self.restart_delay = MIN_RESTART_DELAY;
        }
        let mut message = String::new();
        let mut line = Vec::new();
        while let Ok(Ok(1..)) =
            timeout(MIN_RESTART_DELAY, (&mut running.stderr).take(MAX_STDERR as u64).read_until(b'\n', &mut line)).await
        {
            let text = String::from_utf8_lossy(&line);
            if message.len() < MAX_STDERR && !text.trim().is_empty() {
                message.push_str(if message.is_empty() { "" } else { " | " });
                message.push_str(&text.trim().escape_debug().to_string());
            }
            line.clear();
        }
        let _ = running.child.start_kill();
        let status = match timeout(MIN_RESTART_DELAY, running.child.wait()).await {
            Ok(Ok(status)) => status.to_string(),
            _ => "it does not say how".to_owned(),
        };
        let message = if message.is_empty() { status } else { format!("{status}: {message}") };
        format!("journalctl has ended: {message}; starting it anew")
    }

    async fn back_off(&mut self, message: String) -> JournalEvent {
        tokio::time::sleep(self.restart_delay).await;
        self.restart_delay = (self.restart_delay * 2).min(MAX_RESTART_DELAY);
        JournalEvent::Failed(message)
    }
}

#[derive(Deserialize)]
struct CursorField<'a> {
    #[serde(rename = "__CURSOR", borrow)]
    cursor: Cow<'a, str>,
}

fn parse_cursor(line: &[u8]) -> Option<Cow<'_, str>> {
    serde_json::from_slice(line).ok().map(|position: CursorField<'_>| position.cursor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_the_mta_and_those_of_journald_are_chosen() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let selection = |identifiers: &[&str], units: &[&str]| {
            JournalFilter { folder: None, identifiers: names(identifiers), units: names(units) }.selection().join(" ")
        };
        assert_eq!(selection(&[], &[]), "SYSLOG_FACILITY=2 + SYSLOG_IDENTIFIER=systemd-journald");
        assert_eq!(
            selection(&["postfix/smtp"], &["postfix@*"]),
            "--identifier=postfix/smtp --identifier=systemd-journald --unit=postfix@* --unit=systemd-journald.service"
        );
        assert_eq!(selection(&[], &["exim4"]), "--unit=exim4 --unit=systemd-journald.service");
    }
}
