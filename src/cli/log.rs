//! The log of the daemon on standard error: lines for people, for systemd's journal, or JSON.
//!
//! Takes: the format, and `TLSWARDEN_LOG`. Gives: a subscriber that writes the lines.
//! In the journal each line begins with its priority (sd-daemon(3)), so that `journalctl -p warning` finds warnings.
//! When it fails: a filter that cannot be read is the default one, and that is logged.
//! Not here: what is logged.

use std::fmt;
use std::fs::File;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use clap::ValueEnum;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// The default filter.
const DEFAULT_FILTER: &str = "info,sled=warn";

/// The parts of the program that may have a level of their own.
const SUBSYSTEMS: [&str; 8] = ["answering", "checking", "config", "counting", "daemon", "net", "reporting", "store"];

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line: timestamp, level, message.
    Json,
}

/// Logs to standard error from now on.
pub(super) fn start(format: LogFormat) {
    let wanted = std::env::var("TLSWARDEN_LOG").ok();
    let filter = wanted.as_deref().map(|text| EnvFilter::try_new(expand_subsystems(text)));
    let (filter, unread) = match filter {
        Some(Ok(filter)) => (filter, None),
        Some(Err(error)) => (EnvFilter::new(DEFAULT_FILTER), Some(error)),
        None => (EnvFilter::new(DEFAULT_FILTER), None),
    };
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    match format {
        LogFormat::Json => lines.json().flatten_event(true).init(),
        LogFormat::Text if is_journal() => lines.event_format(JournalLines).init(),
        LogFormat::Text => lines.init(),
    }
    if let Some(error) = unread {
        tracing::warn!("TLSWARDEN_LOG: cannot be read: {error}; logging with {DEFAULT_FILTER}");
    }
}

/// What stands before an error on standard error: its priority, where the journal reads it.
pub(super) fn error_prefix() -> &'static str {
    if is_journal() { "<3>" } else { "" }
}

/// Whether standard error is a stream of systemd's journal: `JOURNAL_STREAM` is its device and inode (systemd.exec(5)).
fn is_journal() -> bool {
    let Some(stream) = std::env::var_os("JOURNAL_STREAM") else { return false };
    let stderr = std::io::stderr().as_fd().try_clone_to_owned().map(File::from);
    let found = stderr.and_then(|file| file.metadata()).map(|found| format!("{}:{}", found.dev(), found.ino()));
    found.is_ok_and(|found| *stream == *found)
}

/// `answering=debug` for `tlswarden::answering=debug`.
fn expand_subsystems(filter: &str) -> String {
    let expand = |directive: &str| {
        let name = directive.split_once('=').map_or("", |(name, _)| name);
        if SUBSYSTEMS.contains(&name) { format!("tlswarden::{directive}") } else { directive.to_owned() }
    };
    filter.split(',').map(|directive| expand(directive.trim())).collect::<Vec<_>>().join(",")
}

/// One line for each event: `<PRIORITY>LEVEL message`. The journal has the time and takes the priority off.
struct JournalLines;

impl<S, N> FormatEvent<S, N> for JournalLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let level = event.metadata().level();
        write!(writer, "<{}>{level} ", priority(level))?;
        let mut line = String::new();
        context.field_format().format_fields(Writer::new(&mut line), event)?;
        // Each line of the stream is an entry of its own.
        writeln!(writer, "{}", line.replace('\n', " "))
    }
}

/// syslog(3)'s.
fn priority(level: &Level) -> u8 {
    match *level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subsystem_may_have_a_level_of_its_own() {
        assert_eq!(expand_subsystems("info,answering=debug"), "info,tlswarden::answering=debug");
        assert_eq!(expand_subsystems("warn, net=trace,sled=warn"), "warn,tlswarden::net=trace,sled=warn");
        assert_eq!(expand_subsystems("debug"), "debug");
        for name in SUBSYSTEMS {
            assert!(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(name).exists(), "{name}");
        }
    }

    #[test]
    fn priorities_are_those_of_syslog() {
        let found = [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG].map(|level| priority(&level));
        assert_eq!(found, [3, 4, 6, 7]);
    }
}
