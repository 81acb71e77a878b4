//! The systemd journal, by cursor: journalctl(1) as a supervised child.
//!
//! Takes: which journal and which entries, and the cursor of the last one counted. Gives: blocks of entries as
//! `journalctl -o json` prints them, a line each, in order, each once, with the cursor after them. Without a cursor it begins
//! with the oldest entry; days that are too old are dropped by the counting.
//! Limits: [`MAX_ENTRY`] octets an entry; longer ones are skipped and counted. journalctl waits while nobody reads.
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

use crate::counting::input::line_splitter::Cutter;
use crate::counting::input::{BLOCK, Block, MAX_LINE, Mark};

/// The longest entry that is read, in octets: a text of `MAX_LINE` as an array of numbers, and the other fields.
pub const MAX_ENTRY: usize = 4 * MAX_LINE + 64 * 1024;

/// How long to wait for more entries before those that are there are handed on.
const PACE: Duration = Duration::from_millis(20);

/// How long entries are held at most, while more come.
const HELD: Duration = Duration::from_millis(100);

/// How long journalctl must be silent before the journal is thought to be at its end.
const SILENCE: Duration = Duration::from_secs(1);

/// How long to wait before journalctl is started anew; twice as long each time, up to the second figure.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_AT_MOST: Duration = Duration::from_secs(60);

/// How long journalctl must have run for its end to be the first in a row.
const HEALTHY: Duration = Duration::from_secs(60);

/// Octets of what journalctl says that are kept for its end.
const MAX_SAID: usize = 1024;

/// Which entries of which journal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Journal {
    /// Another journal than the host's.
    pub folder: Option<PathBuf>,
    /// The identifiers, such as `postfix/smtp`; with no unit either, all of facility mail.
    pub identifiers: Vec<String>,
    /// The units, patterns allowed.
    pub units: Vec<String>,
}

/// A journal, followed.
pub struct Follower {
    journal: Journal,
    cursor: Option<String>,
    /// Whether the entry of `cursor` is still to be seen, and left out.
    resumes: bool,
    running: Option<Running>,
    cutter: Cutter,
    pause: Duration,
    told_end: bool,
    /// Since when whole entries are held.
    held: Option<Instant>,
}

struct Running {
    child: Child,
    out: ChildStdout,
    said: BufReader<ChildStderr>,
    since: Instant,
}

/// What there is.
#[derive(Debug)]
pub enum Next {
    /// Entries, or the news that the end is reached.
    Read(Block),
    /// Trouble, in a line without its subject; reading goes on.
    Trouble(String),
    /// The entry that was counted last is gone: in a line without its subject.
    Gap(String),
}

impl Follower {
    /// Follows a journal, from a mark if there is one.
    pub fn new(journal: Journal, mark: Option<Mark>) -> Follower {
        let cursor = match mark {
            Some(Mark::Journal { cursor }) => Some(cursor),
            _ => None,
        };
        let cutter = Cutter::new(MAX_ENTRY);
        Follower { journal, cursor, resumes: false, running: None, cutter, pause: PAUSE, told_end: false, held: None }
    }

    /// The next entries, or what is to be said. Where the future is dropped, nothing may be read any more.
    pub async fn next(&mut self) -> Next {
        loop {
            if self.running.is_none() {
                match self.start() {
                    Ok(running) => self.running = Some(running),
                    Err(error) => {
                        let said = format!("journalctl cannot be started: {error}; trying again");
                        return self.fail(said).await;
                    }
                }
            }
            let Some(running) = &mut self.running else { continue };
            let mut piece = [0; 64 * 1024];
            let wait = if self.cutter.whole() > 0 { PACE } else { SILENCE };
            match timeout(wait, running.out.read(&mut piece)).await {
                Ok(Ok(0) | Err(_)) => {
                    let said = self.ended().await;
                    return self.fail(said).await;
                }
                Ok(Ok(length)) => {
                    self.cutter.push(&piece[..length]);
                    self.told_end = false;
                    let held = *self.held.get_or_insert_with(Instant::now);
                    if self.cutter.whole() < BLOCK / 2 && held.elapsed() < HELD {
                        continue;
                    }
                }
                Err(_) => {}
            }
            if let Some(next) = self.hand_out() {
                return next;
            }
        }
    }

    /// What has come so far, with the cursor after it.
    fn hand_out(&mut self) -> Option<Next> {
        self.held = None;
        if self.cutter.whole() == 0 {
            if self.told_end {
                return None;
            }
            self.told_end = true;
            return Some(Next::Read(self.block(Vec::new(), 0, true)));
        }
        if self.resumes {
            self.resumes = false;
            let first = self.cutter.first();
            if cursor(first).is_some_and(|found| Some(&*found) == self.cursor.as_deref()) {
                self.cutter.drop_first();
                if self.cutter.whole() == 0 {
                    return None;
                }
            } else {
                let what = "the entry that was counted last is not there any more (vacuumed, or not of these identifiers \
                            and units); going on at the nearest later one: what was between is not counted";
                return Some(Next::Gap(what.to_owned()));
            }
        }
        let (lines, skipped) = self.cutter.take();
        let last = lines.strip_suffix(b"\n").unwrap_or(&lines);
        let last = memchr::memrchr(b'\n', last).map_or(last, |at| &last[at + 1..]);
        if let Some(found) = cursor(last) {
            self.cursor = Some(found.into_owned());
        }
        Some(Next::Read(self.block(lines, skipped, false)))
    }

    fn block(&self, lines: Vec<u8>, skipped: u64, at_end: bool) -> Block {
        let mark = self.cursor.clone().map_or(Mark::Nowhere, |cursor| Mark::Journal { cursor });
        Block { lines, mark, skipped, behind: 0, at_end }
    }

    fn start(&mut self) -> std::io::Result<Running> {
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
        let said = BufReader::new(child.stderr.take().ok_or_else(piped)?);
        self.resumes = self.cursor.is_some();
        // What was not whole comes again.
        self.cutter = Cutter::new(MAX_ENTRY);
        Ok(Running { child, out, said, since: Instant::now() })
    }

    /// Why journalctl has ended.
    async fn ended(&mut self) -> String {
        let Some(mut running) = self.running.take() else { return "journalctl has ended; starting it anew".into() };
        if running.since.elapsed() >= HEALTHY {
            self.pause = PAUSE;
        }
        let mut said = String::new();
        let mut line = Vec::new();
        while let Ok(Ok(1..)) =
            timeout(PAUSE, (&mut running.said).take(MAX_SAID as u64).read_until(b'\n', &mut line)).await
        {
            let text = String::from_utf8_lossy(&line);
            if said.len() < MAX_SAID && !text.trim().is_empty() {
                said.push_str(if said.is_empty() { "" } else { " | " });
                said.push_str(&text.trim().escape_debug().to_string());
            }
            line.clear();
        }
        let _ = running.child.start_kill();
        let status = match timeout(PAUSE, running.child.wait()).await {
            Ok(Ok(status)) => status.to_string(),
            _ => "it does not say how".to_owned(),
        };
        let said = if said.is_empty() { status } else { format!("{status}: {said}") };
        format!("journalctl has ended: {said}; starting it anew")
    }

    async fn fail(&mut self, said: String) -> Next {
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(PAUSE_AT_MOST);
        Next::Trouble(said)
    }
}

/// One entry.
#[derive(Debug)]
pub struct Entry<'a> {
    /// When the journal took it, in seconds since 1970-01-01T00:00:00Z.
    pub at: i64,
    /// What its writer calls itself: `postfix/smtp`.
    pub ident: Cow<'a, [u8]>,
    /// Its writer's process id; 0 where the journal has none.
    pub pid: u32,
    /// The text.
    pub text: Cow<'a, [u8]>,
}

impl Entry<'_> {
    /// Reads the text as a log line of an MTA's.
    pub fn parse(&self, dialect: Dialect) -> Result<Option<Event<'_>>, MalformedLine> {
        parse_entry(dialect, LogTimestamp::Utc(self.at), &self.ident, self.pid, &self.text)
    }
}

#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(rename = "__REALTIME_TIMESTAMP", borrow)]
    at: Octets<'a>,
    #[serde(rename = "SYSLOG_IDENTIFIER", borrow, default)]
    ident: Octets<'a>,
    #[serde(rename = "SYSLOG_PID", borrow, default)]
    syslog_pid: Octets<'a>,
    #[serde(rename = "_PID", borrow, default)]
    pid: Octets<'a>,
    #[serde(rename = "MESSAGE", borrow, default)]
    text: Octets<'a>,
}

#[derive(Deserialize)]
struct Position<'a> {
    #[serde(rename = "__CURSOR", borrow)]
    cursor: Cow<'a, str>,
}

fn cursor(line: &[u8]) -> Option<Cow<'_, str>> {
    serde_json::from_slice(line).ok().map(|position: Position<'_>| position.cursor)
}

/// Reads one entry as `journalctl -o json` prints it; `None` for one that no MTA can have written. An error is what could
/// not be read, for a counter.
pub fn entry(line: &[u8]) -> Result<Option<Entry<'_>>, &'static str> {
    if line.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    let fields: Fields<'_> = serde_json::from_slice(line).map_err(|_| "journal entry")?;
    let number = |text: &Octets<'_>| std::str::from_utf8(&text.0).ok()?.trim().parse::<i64>().ok();
    let at = number(&fields.at).ok_or("journal time stamp")?.div_euclid(1_000_000);
    if fields.ident.0.is_empty() || fields.text.0.is_empty() {
        return Ok(None);
    }
    let pid = number(&fields.syslog_pid).or_else(|| number(&fields.pid)).and_then(|pid| u32::try_from(pid).ok());
    Ok(Some(Entry { at, ident: fields.ident.0, pid: pid.unwrap_or(0), text: fields.text.0 }))
}

/// A field's value: a text, an array of octets where it is not UTF-8, null where it is too long; of several the first.
#[derive(Debug, Default)]
struct Octets<'a>(Cow<'a, [u8]>);

impl<'de: 'a, 'a> Deserialize<'de> for Octets<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Value;
        impl<'de> Visitor<'de> for Value {
            type Value = Octets<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, an array of octets, or null")
            }

            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Octets<'de>, E> {
                Ok(Octets(Cow::Borrowed(text.as_bytes())))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Octets<'de>, E> {
                Ok(Octets(Cow::Owned(text.as_bytes().to_vec())))
            }

            fn visit_unit<E: de::Error>(self) -> Result<Octets<'de>, E> {
                Ok(Octets::default())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Octets<'de>, A::Error> {
                let mut octets = Vec::new();
                while let Some(item) = items.next_element::<Item<'de>>()? {
                    match item {
                        Item::Octet(octet) => octets.push(octet),
                        Item::Text(text) => {
                            while items.next_element::<IgnoredAny>()?.is_some() {}
                            return Ok(Octets(Cow::Owned(text.as_bytes().to_vec())));
                        }
                        Item::Octets(first) => {
                            while items.next_element::<IgnoredAny>()?.is_some() {}
                            return Ok(Octets(Cow::Owned(first)));
                        }
                    }
                }
                Ok(Octets(Cow::Owned(octets)))
            }
        }
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Item<'a> {
            Octet(u8),
            #[serde(borrow)]
            Text(Cow<'a, str>),
            Octets(Vec<u8>),
        }
        from.deserialize_any(Value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_entries_in_every_form_of_their_fields() {
        let read = |line: &str| entry(line.as_bytes()).map(|e| e.map(|e| (e.at, e.pid, e.text.into_owned())));
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
