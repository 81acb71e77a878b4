//! The systemd journal, by cursor: journalctl(1) as a supervised child.
//!
//! Takes: which journal and which entries, and the cursor of the last one counted. Gives: blocks of entries as
//! `journalctl -o json` prints them, a line each, in order, each once, with the cursor after them. Without a cursor it begins
//! with the oldest entry; days that are too old are dropped by the counting.
//! Limits: [`MAX_ENTRY`] bytes an entry; longer ones are skipped and counted. journalctl waits while nobody reads.
//! When it fails: journalctl that ends or cannot be started is started anew after a pause, and what it said is said. An
//! entry that was counted last and is gone (vacuumed) is said and counted: reading goes on at the nearest later one.
//! Not here: what an entry means (`parsers`).

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, de};
use tlswarden_parsers::event::LogTimestamp;
use tlswarden_parsers::{Dialect, Event, MalformedLine, parse_entry};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tokio::time::{Instant, timeout};

use crate::counting::input::line_splitter::LineSplitter;
use crate::counting::input::{LineBlock, MAX_BLOCK, MAX_LINE, Position};

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

/// Follows a journal.
pub struct JournalFollower {
    journal: JournalFilter,
    cursor: Option<String>,
    /// Whether the next entry should be that of `cursor`, which has been counted and is left out.
    expects_cursor_entry: bool,
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
                return Some(JournalEvent::Gap(what.to_owned()));
            }
        }
        let (lines, skipped) = self.splitter.take_lines();
        let last = lines.strip_suffix(b"\n").unwrap_or(&lines);
        let last = memchr::memrchr(b'\n', last).map_or(last, |at| &last[at + 1..]);
        if let Some(found) = parse_cursor(last) {
            self.cursor = Some(found.into_owned());
        }
        Some(JournalEvent::Entries(self.block(lines, skipped, false)))
    }

    fn block(&self, lines: Vec<u8>, skipped: u64, at_end: bool) -> LineBlock {
        let position = self.cursor.clone().map_or(Position::Nowhere, |cursor| Position::Journal { cursor });
        LineBlock { lines, position, skipped, bytes_behind: 0, at_end }
    }

    fn start(&mut self) -> std::io::Result<JournalctlProcess> {
        let mut command = Command::new("journalctl");
        command
            .args(["--output=json", "--follow", "--no-tail", "--all", "--no-pager"])
            .arg("--output-fields=MESSAGE,SYSLOG_IDENTIFIER,SYSLOG_PID,_PID")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        if let Some(folder) = &self.journal.folder {
            command.arg("--directory").arg(folder);
        }
        for name in &self.journal.identifiers {
            command.arg(format!("--identifier={name}"));
        }
        for unit in &self.journal.units {
            command.arg(format!("--unit={unit}"));
        }
        // From the entry itself on: where it is gone, `--after-cursor` would leave the next one out.
        if let Some(cursor) = &self.cursor {
            command.arg(format!("--cursor={cursor}"));
        }
        if self.journal.identifiers.is_empty() && self.journal.units.is_empty() {
            // syslog(3)'s LOG_MAIL.
            command.arg("SYSLOG_FACILITY=2");
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

/// One entry of the journal.
#[derive(Debug)]
pub struct JournalEntry<'a> {
    /// When the journal took it, in seconds since 1970-01-01T00:00:00Z.
    pub(crate) timestamp: i64,
    /// What its writer calls itself: `postfix/smtp`.
    pub ident: Cow<'a, [u8]>,
    /// Its writer's process id; 0 where the journal has none.
    pub(crate) pid: u32,
    /// The text.
    pub text: Cow<'a, [u8]>,
}

impl JournalEntry<'_> {
    /// Reads the text as a log line of an MTA's.
    pub fn parse_text(&self, dialect: Dialect) -> Result<Option<Event<'_>>, MalformedLine> {
        parse_entry(dialect, LogTimestamp::Utc(self.timestamp), &self.ident, self.pid, &self.text)
    }
}

#[derive(Deserialize)]
struct JournalFields<'a> {
    #[serde(rename = "__REALTIME_TIMESTAMP", borrow)]
    at: BytesField<'a>,
    #[serde(rename = "SYSLOG_IDENTIFIER", borrow, default)]
    ident: BytesField<'a>,
    #[serde(rename = "SYSLOG_PID", borrow, default)]
    syslog_pid: BytesField<'a>,
    #[serde(rename = "_PID", borrow, default)]
    pid: BytesField<'a>,
    #[serde(rename = "MESSAGE", borrow, default)]
    text: BytesField<'a>,
}

#[derive(Deserialize)]
struct CursorField<'a> {
    #[serde(rename = "__CURSOR", borrow)]
    cursor: Cow<'a, str>,
}

fn parse_cursor(line: &[u8]) -> Option<Cow<'_, str>> {
    serde_json::from_slice(line).ok().map(|position: CursorField<'_>| position.cursor)
}

/// Reads one entry as `journalctl -o json` prints it; `None` for one that no MTA can have written. An error is what could
/// not be read, for a counter.
pub fn decode_entry(line: &[u8]) -> Result<Option<JournalEntry<'_>>, &'static str> {
    if line.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    let fields: JournalFields<'_> = serde_json::from_slice(line).map_err(|_| "journal entry")?;
    let number = |text: &BytesField<'_>| std::str::from_utf8(&text.0).ok()?.trim().parse::<i64>().ok();
    let at = number(&fields.at).ok_or("journal time stamp")?.div_euclid(1_000_000);
    if fields.ident.0.is_empty() || fields.text.0.is_empty() {
        return Ok(None);
    }
    let pid = number(&fields.syslog_pid).or_else(|| number(&fields.pid)).and_then(|pid| u32::try_from(pid).ok());
    Ok(Some(JournalEntry { timestamp: at, ident: fields.ident.0, pid: pid.unwrap_or(0), text: fields.text.0 }))
}

/// The value of a field: text, an array of bytes if it is not UTF-8, null if it is too long; the first of several.
#[derive(Debug, Default)]
struct BytesField<'a>(Cow<'a, [u8]>);

impl<'de: 'a, 'a> Deserialize<'de> for BytesField<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct BytesVisitor;
        impl<'de> Visitor<'de> for BytesVisitor {
            type Value = BytesField<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, an array of octets, or null")
            }

            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<BytesField<'de>, E> {
                Ok(BytesField(Cow::Borrowed(text.as_bytes())))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<BytesField<'de>, E> {
                Ok(BytesField(Cow::Owned(text.as_bytes().to_vec())))
            }

            fn visit_unit<E: de::Error>(self) -> Result<BytesField<'de>, E> {
                Ok(BytesField::default())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<BytesField<'de>, A::Error> {
                let mut bytes = Vec::new();
                while let Some(item) = items.next_element::<BytesItem<'de>>()? {
                    match item {
                        BytesItem::Octet(byte) => bytes.push(byte),
                        BytesItem::Text(text) => {
                            while items.next_element::<IgnoredAny>()?.is_some() {}
                            return Ok(BytesField(Cow::Owned(text.as_bytes().to_vec())));
                        }
                        BytesItem::Octets(first) => {
                            while items.next_element::<IgnoredAny>()?.is_some() {}
                            return Ok(BytesField(Cow::Owned(first)));
                        }
                    }
                }
                Ok(BytesField(Cow::Owned(bytes)))
            }
        }
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum BytesItem<'a> {
            Octet(u8),
            #[serde(borrow)]
            Text(Cow<'a, str>),
            Octets(Vec<u8>),
        }
        from.deserialize_any(BytesVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_entries_in_every_form_of_their_fields() {
        let read =
            |line: &str| decode_entry(line.as_bytes()).map(|e| e.map(|e| (e.timestamp, e.pid, e.text.into_owned())));
        let rest = r#""SYSLOG_IDENTIFIER":"postfix/smtp","__REALTIME_TIMESTAMP":"1795312226645918","#;
        let text = |message: &str| read(&format!("{{{rest}\"_PID\":\"7\",\"MESSAGE\":{message}}}"));
        let want = |text: &[u8]| Ok(Some((1_795_312_226, 7, text.to_vec())));
        assert_eq!(text(r#""a \"b\" ü""#), want("a \"b\" ü".as_bytes()));
        assert_eq!(text("[97,255,10]"), want(b"a\xff\n"));
        assert_eq!(text(r#"["first","second"]"#), want(b"first"));
        assert_eq!(text(r#"[[97,255],[98]]"#), want(b"a\xff"));
        assert_eq!(text("null"), Ok(None));
        assert_eq!(text("[97,300]"), Err("journal entry"));
        assert_eq!(read(&format!("{{{rest}\"MESSAGE\":\"x\"}}")), Ok(Some((1_795_312_226, 0, b"x".to_vec()))));
        assert_eq!(
            read(&format!("{{{rest}\"_PID\":\"7\",\"SYSLOG_PID\":\"8\",\"MESSAGE\":\"x\"}}")),
            Ok(Some((1_795_312_226, 8, b"x".to_vec())))
        );
        assert_eq!(read(r#"{"__REALTIME_TIMESTAMP":"1","MESSAGE":"x"}"#), Ok(None));
        assert_eq!(read(r#"{"MESSAGE":"x"}"#), Err("journal entry"));
        assert_eq!(read(r#"{"__REALTIME_TIMESTAMP":"soon","MESSAGE":"x"}"#), Err("journal time stamp"));
        assert_eq!(read(""), Ok(None));
        assert_eq!(read(&"[".repeat(100_000)), Err("journal entry"));
    }
}
