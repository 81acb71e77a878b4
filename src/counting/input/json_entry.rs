//! Entries of the systemd journal, as `journalctl -o json` prints them.
//!
//! Takes: a line. Gives: the time, the writer and the text in it.
//! When it fails: what could not be read, as the name of a counter.
//! Not here: where the lines come from (`journald`), what a text means (`parsers`).

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, de};
use tlswarden_parsers::event::LogTimestamp;
use tlswarden_parsers::{Dialect, Entry, Event, MalformedLine, parse_entry};

/// One entry of the journal.
#[derive(Debug)]
pub struct JournalEntry<'a> {
    /// When the journal took it, in seconds since 1970-01-01T00:00:00Z.
    pub(crate) timestamp: i64,
    /// The host that it is of.
    pub host: Cow<'a, [u8]>,
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
        let timestamp = Some(LogTimestamp::Utc(self.timestamp));
        let entry = Entry { timestamp, host: &self.host, ident: &self.ident, pid: self.pid, text: &self.text };
        parse_entry(dialect, &entry)
    }
}

#[derive(Deserialize)]
struct JournalFields<'a> {
    #[serde(rename = "__REALTIME_TIMESTAMP", borrow)]
    at: BytesField<'a>,
    #[serde(rename = "_HOSTNAME", borrow, default)]
    host: BytesField<'a>,
    #[serde(rename = "SYSLOG_IDENTIFIER", borrow, default)]
    ident: BytesField<'a>,
    #[serde(rename = "SYSLOG_PID", borrow, default)]
    syslog_pid: BytesField<'a>,
    #[serde(rename = "_PID", borrow, default)]
    pid: BytesField<'a>,
    #[serde(rename = "MESSAGE", borrow, default)]
    text: BytesField<'a>,
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
    Ok(Some(JournalEntry {
        timestamp: at,
        host: fields.host.0,
        ident: fields.ident.0,
        pid: pid.unwrap_or(0),
        text: fields.text.0,
    }))
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
