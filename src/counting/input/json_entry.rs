//! Lines of a log that are JSON objects: entries of the systemd journal, as `journalctl -o json` prints them, docker's
//! json-file, and what rsyslog, syslog-ng, Fluent Bit or Vector write.
//!
//! Takes: a line. Gives: the time, the writer and the text in it.
//! A field is known by its name, whatever the order. Where none names the program, the text is a whole line.
//! When it fails: what could not be read, as the name of a counter.
//! Not here: where the lines come from (`journald`), what a text means (`parsers`).

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};
use tlswarden_parsers::event::LogTimestamp;
use tlswarden_parsers::{
    DeliveryStatus, Dialect, Entry, Event, MalformedLine, parse_entry, parse_entry_delivery_status, parse_timestamp,
};

/// One entry.
#[derive(Debug)]
pub struct JsonEntry<'a> {
    /// When it was written or collected, where a field tells.
    pub(crate) timestamp: Option<LogTimestamp>,
    /// The host that it is of.
    pub host: Cow<'a, [u8]>,
    /// What its writer calls itself: `postfix/smtp`; empty where the text is a whole line.
    pub ident: Cow<'a, [u8]>,
    /// Its writer's process id; 0 where no field has it.
    pub(crate) pid: u32,
    /// The text.
    pub text: Cow<'a, [u8]>,
}

impl JsonEntry<'_> {
    /// Reads the text as a log line of an MTA's.
    pub fn parse_text(&self, dialect: Dialect) -> Result<Option<Event<'_>>, MalformedLine> {
        parse_entry(dialect, &self.entry())
    }

    /// What the text says of a recipient of a message.
    pub(crate) fn parse_delivery_status(&self, dialect: Dialect) -> Option<DeliveryStatus<'_>> {
        parse_entry_delivery_status(dialect, &self.entry())
    }

    fn entry(&self) -> Entry<'_> {
        let timestamp = self.timestamp;
        Entry { timestamp, host: &self.host, ident: &self.ident, pid: self.pid, text: &self.text }
    }
}

/// The fields of the journal (systemd.journal-fields(7)).
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

/// What a field of another writer's holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Content {
    Time,
    Host,
    /// `postfix/smtp[1520]:`
    Tag,
    Program,
    ProcessId,
    Text,
}

/// The names that writers use, in lower case and without `-`, `_` and `@`; of several fields the first name here is taken.
const FIELD_NAMES: [(&str, Content); 26] = [
    ("isodate", Content::Time),
    ("timereported", Content::Time),
    ("timestamp", Content::Time),
    ("time", Content::Time),
    ("date", Content::Time),
    ("hostname", Content::Host),
    ("host", Content::Host),
    ("fromhost", Content::Host),
    ("source", Content::Host),
    ("containerid", Content::Host),
    // rsyslog cuts `programname` at the slash, and leaves the tag whole.
    ("syslogtag", Content::Tag),
    ("tag", Content::Tag),
    ("syslogidentifier", Content::Program),
    ("appname", Content::Program),
    ("program", Content::Program),
    ("programname", Content::Program),
    ("ident", Content::Program),
    ("procid", Content::ProcessId),
    ("pid", Content::ProcessId),
    ("syslogpid", Content::ProcessId),
    // docker's json-file, and fluentd
    ("log", Content::Text),
    ("message", Content::Text),
    ("msg", Content::Text),
    ("line", Content::Text),
    ("text", Content::Text),
    ("rawmsg", Content::Text),
];

/// Reads one line; `None` for one that no MTA can have written. An error is what could not be read, for a counter.
pub fn decode_entry(line: &[u8]) -> Result<Option<JsonEntry<'_>>, &'static str> {
    if line.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    match serde_json::from_slice::<JournalFields<'_>>(line) {
        Ok(fields) => decode_journal_entry(fields),
        Err(_) => decode_other_entry(serde_json::from_slice(line).map_err(|_| "journal entry")?),
    }
}

fn decode_journal_entry(fields: JournalFields<'_>) -> Result<Option<JsonEntry<'_>>, &'static str> {
    let number = |text: &BytesField<'_>| std::str::from_utf8(&text.0).ok()?.trim().parse::<i64>().ok();
    let at = number(&fields.at).ok_or("journal time stamp")?.div_euclid(1_000_000);
    if fields.ident.0.is_empty() || fields.text.0.is_empty() {
        return Ok(None);
    }
    let pid = number(&fields.syslog_pid).or_else(|| number(&fields.pid)).and_then(|pid| u32::try_from(pid).ok());
    Ok(Some(JsonEntry {
        timestamp: Some(LogTimestamp::Utc(at)),
        host: fields.host.0,
        ident: fields.ident.0,
        pid: pid.unwrap_or(0),
        text: fields.text.0,
    }))
}

fn decode_other_entry(fields: OtherFields<'_>) -> Result<Option<JsonEntry<'_>>, &'static str> {
    let OtherFields { time, host, tag, program, pid, text } = fields;
    let Some(text) = text else { return Err("journal entry") };
    let text = trimmed(text.1.0);
    let (named, pid_of_tag) = tag.map(|(_, tag)| split_tag(tag.0)).unwrap_or_default();
    let ident = if named.is_empty() { program.map(|(_, program)| program.0).unwrap_or_default() } else { named };
    if text.is_empty() {
        return Ok(None);
    }
    let pid = pid.and_then(|(_, pid)| std::str::from_utf8(&pid.0).ok()?.trim().parse().ok());
    Ok(Some(JsonEntry {
        timestamp: time.and_then(|(_, time)| parse_timestamp(&time.0)),
        host: host.map(|(_, host)| host.0).unwrap_or_default(),
        ident,
        pid: pid.unwrap_or(pid_of_tag),
        text,
    }))
}

/// Without the space that a syslog message begins with and the end of the line.
fn trimmed(text: Cow<'_, [u8]>) -> Cow<'_, [u8]> {
    let is_space = |b: &u8| matches!(b, b' ' | b'\n' | b'\r');
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(text.trim_ascii()),
        Cow::Owned(mut text) => {
            text.truncate(text.iter().rposition(|b| !is_space(b)).map_or(0, |last| last + 1));
            text.drain(..text.iter().position(|b| !is_space(b)).unwrap_or(0));
            Cow::Owned(text)
        }
    }
}

/// `postfix/smtp[1520]:` as name and process id.
fn split_tag(tag: Cow<'_, [u8]>) -> (Cow<'_, [u8]>, u32) {
    let text = tag.strip_suffix(b":").unwrap_or(&tag);
    let (name, pid) =
        match text.strip_suffix(b"]").and_then(|text| Some((text, text.iter().rposition(|b| *b == b'[')?))) {
            Some((text, open)) => {
                let pid = std::str::from_utf8(&text[open + 1..]).ok().and_then(|pid| pid.parse().ok());
                (open, pid.unwrap_or(0))
            }
            None => (text.len(), 0),
        };
    match tag {
        Cow::Borrowed(tag) => (Cow::Borrowed(&tag[..name]), pid),
        Cow::Owned(mut tag) => {
            tag.truncate(name);
            (Cow::Owned(tag), pid)
        }
    }
}

/// The fields of another writer's object, each with the rank of its name among [`FIELD_NAMES`].
#[derive(Default)]
struct OtherFields<'a> {
    time: RankedField<'a>,
    host: RankedField<'a>,
    tag: RankedField<'a>,
    program: RankedField<'a>,
    pid: RankedField<'a>,
    text: RankedField<'a>,
}

type RankedField<'a> = Option<(usize, BytesField<'a>)>;

impl<'de: 'a, 'a> Deserialize<'de> for OtherFields<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct FieldsVisitor;
        impl<'de> Visitor<'de> for FieldsVisitor {
            type Value = OtherFields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<OtherFields<'de>, A::Error> {
                let mut fields = OtherFields::default();
                while let Some(name) = map.next_key::<Cow<'de, str>>()? {
                    let is_letter = |c: &char| !matches!(c, '-' | '_' | '@' | '.');
                    let plain: String = name.chars().filter(is_letter).take(32).collect();
                    let known = FIELD_NAMES.iter().position(|(known, _)| plain.eq_ignore_ascii_case(known));
                    let Some(rank) = known else {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    };
                    let value = BytesField(map.next_value::<AnyField<'de>>()?.0);
                    let field = match FIELD_NAMES[rank].1 {
                        Content::Time => &mut fields.time,
                        Content::Host => &mut fields.host,
                        Content::Tag => &mut fields.tag,
                        Content::Program => &mut fields.program,
                        Content::ProcessId => &mut fields.pid,
                        Content::Text => &mut fields.text,
                    };
                    if !value.0.is_empty() && field.as_ref().is_none_or(|(taken, _)| rank < *taken) {
                        *field = Some((rank, value));
                    }
                }
                Ok(fields)
            }
        }
        from.deserialize_map(FieldsVisitor)
    }
}

/// A value of any type: text as it is, a number as text, everything else as nothing.
#[derive(Default)]
struct AnyField<'a>(Cow<'a, [u8]>);

impl<'de: 'a, 'a> Deserialize<'de> for AnyField<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Value<'a> {
            #[serde(borrow)]
            Text(Cow<'a, str>),
            Number(serde_json::Number),
            Other(IgnoredAny),
        }
        Ok(AnyField(match Value::deserialize(from)? {
            Value::Text(Cow::Borrowed(text)) => Cow::Borrowed(text.as_bytes()),
            Value::Text(Cow::Owned(text)) => Cow::Owned(text.into_bytes()),
            Value::Number(number) => Cow::Owned(number.to_string().into_bytes()),
            Value::Other(_) => Cow::default(),
        }))
    }
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
                f.write_str("a text, an array of bytes, or null")
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
        let read = |line: &str| {
            decode_entry(line.as_bytes()).map(|e| e.map(|e| (e.timestamp.unwrap(), e.pid, e.text.into_owned())))
        };
        let rest = r#""SYSLOG_IDENTIFIER":"postfix/smtp","__REALTIME_TIMESTAMP":"1795312226645918","#;
        let text = |message: &str| read(&format!("{{{rest}\"_PID\":\"7\",\"MESSAGE\":{message}}}"));
        let want = |text: &[u8]| Ok(Some((LogTimestamp::Utc(1_795_312_226), 7, text.to_vec())));
        assert_eq!(text(r#""a \"b\" ü""#), want("a \"b\" ü".as_bytes()));
        assert_eq!(text("[97,255,10]"), want(b"a\xff\n"));
        assert_eq!(text(r#"["first","second"]"#), want(b"first"));
        assert_eq!(text(r#"[[97,255],[98]]"#), want(b"a\xff"));
        assert_eq!(text("null"), Ok(None));
        assert_eq!(text("[97,300]"), Err("journal entry"));
        assert_eq!(
            read(&format!("{{{rest}\"MESSAGE\":\"x\"}}")),
            Ok(Some((LogTimestamp::Utc(1_795_312_226), 0, b"x".to_vec())))
        );
        assert_eq!(
            read(&format!("{{{rest}\"_PID\":\"7\",\"SYSLOG_PID\":\"8\",\"MESSAGE\":\"x\"}}")),
            Ok(Some((LogTimestamp::Utc(1_795_312_226), 8, b"x".to_vec())))
        );
        assert_eq!(read(r#"{"__REALTIME_TIMESTAMP":"1","MESSAGE":"x"}"#), Ok(None));
        assert_eq!(read(r#"{"level":"info"}"#), Err("journal entry"));
        assert_eq!(read(r#"{"__REALTIME_TIMESTAMP":"soon","MESSAGE":"x"}"#), Err("journal time stamp"));
        assert_eq!(read(""), Ok(None));
        assert_eq!(read(&"[".repeat(100_000)), Err("journal entry"));
    }

    #[test]
    fn reads_what_containers_and_log_collectors_write() {
        const TEXT: &str = "Trusted TLS connection established to mx.a.test[192.0.2.1]:25: TLSv1.3 with cipher X";
        let time = "2026-11-22T12:16:30.123456789Z";
        for line in [
            // docker's json-file, and a container whose program writes no time
            format!(r#"{{"log":"Nov 22 12:16:30 c postfix/smtp[1520]: {TEXT}\n","stream":"stdout","time":"{time}"}}"#),
            format!(
                r#"{{"log":"postfix/smtp[1520]: {TEXT}\r\n","stream":"stdout","attrs":{{"tag":"x"}},"time":"{time}"}}"#
            ),
            format!(r#"{{"log":"Nov 22 12:16:30 c postfix/smtp[1520]: {TEXT}\n","stream":"stderr"}}"#),
            // rsyslog, by property names and as its manual's example has them
            format!(
                r#"{{"timestamp":"{time}","host":"mta","syslogtag":"postfix/smtp[1520]:","programname":"postfix","msg":" {TEXT}"}}"#
            ),
            format!(
                r#"{{"@timestamp":"{time}","host":"mta","severity":"info","facility":"mail","syslog-tag":"postfix/smtp[1520]:","message":" {TEXT}"}}"#
            ),
            // syslog-ng's format-json, Vector and Fluent Bit
            format!(
                r#"{{"PROGRAM":"postfix/smtp","PRIORITY":"info","PID":"1520","MESSAGE":"{TEXT}","HOST":"mta","DATE":"Nov 22 12:16:30"}}"#
            ),
            format!(
                r#"{{"appname":"postfix/smtp","hostname":"mta","message":"{TEXT}","procid":1520,"timestamp":"{time}"}}"#
            ),
            format!(
                r#"{{"time":"Nov 22 12:16:30","host":{{"name":"mta"}},"ident":"postfix/smtp","pid":"1520","message":"{TEXT}","extra":[1,{{}}]}}"#
            ),
        ] {
            let entry = decode_entry(line.as_bytes()).unwrap().unwrap();
            let event = entry.parse_text(Dialect::Postfix).unwrap().unwrap_or_else(|| panic!("{line}"));
            assert_eq!((event.process.name, event.process.pid), (&b"smtp"[..], 1520), "{line}");
        }
        let exim = format!(
            r#"{{"log":"2026-11-22 12:16:30 1xUwYd-0005p2-2C Completed\n","stream":"stdout","time":"{time}"}}"#
        );
        assert!(decode_entry(exim.as_bytes()).unwrap().unwrap().parse_text(Dialect::Exim).unwrap().is_some());
    }
}
