//! What is wrong with a TOML text, in the words of the configuration.
//!
//! Takes: the text and the error of the TOML reader. Gives: the line, and one sentence that names the option, what was
//! found, what is expected, and what was probably meant.
//! Limits: one error, the first; [`MAX_SHOWN`] characters of a value.
//! When it fails: an error of a form that is not known here is passed on in the reader's own words.
//! Not here: what values mean together (`config::validate`).

use std::str::Utf8Error;

use serde::de::DeserializeOwned;
use toml::de::Error;

use crate::config::similar::{meant, nearest};

/// The most characters of a value that a message shows.
const MAX_SHOWN: usize = 80;

/// The sections that can be given several times.
const LISTS: [&str; 5] = ["input", "nexthop", "policy.override", "report.dkim", "report.suppress"];

/// The options that are durations.
const DURATIONS: [&str; 4] = ["answer_budget", "spread", "retention", "retry"];

/// A value that is printed by `check-config --print` and that nobody should write.
const NOT_OFFERED: &str = "unknown";

/// The line, counted from 1, and the problem: `[section] option: problem: expectation`. `sections` are the sections that
/// have a given option.
pub(super) fn explain(text: &str, error: &Error, sections: &dyn Fn(&str) -> Vec<String>) -> (Option<usize>, String) {
    let Some(at) = error.span().map(|span| span.start.min(text.len())) else {
        return (None, one_line(error.message()));
    };
    let place = Place::at(text, at);
    let message = one_line(error.message());
    let problem = place.problem(&message, error, text, sections);
    (Some(place.number), format!("{}{problem}", place.subject()))
}

/// The line in which something is wrong.
struct Place<'a> {
    /// Counted from 1.
    number: usize,
    /// The head of its section, as it stands there; nothing before the first one.
    section: Option<&'a str>,
    /// Whether the line is such a head itself.
    is_head: bool,
    /// Left of the first `=`.
    key: Option<&'a str>,
    /// Right of it, without a comment.
    value: &'a str,
    /// The whole line.
    line: &'a str,
}

impl<'a> Place<'a> {
    fn at(text: &'a str, at: usize) -> Place<'a> {
        let before = text.get(..at).unwrap_or(text);
        let number = before.matches('\n').count() + 1;
        let line = text.lines().nth(number - 1).unwrap_or_default().trim();
        let is_head = line.starts_with('[');
        let section = text.lines().take(number).map(str::trim).filter(|line| line.starts_with('[')).last();
        let (key, value) = match line.split_once('=').filter(|_| !is_head) {
            Some((key, value)) => (Some(key.trim()).filter(|key| !key.is_empty()), without_comment(value).trim()),
            None => (None, ""),
        };
        Place { number, section, is_head, key, value, line }
    }

    fn subject(&self) -> String {
        let words = [self.section.filter(|_| !self.is_head), self.key];
        let words: Vec<&str> = words.into_iter().flatten().collect();
        if words.is_empty() { String::new() } else { format!("{}: ", words.join(" ")) }
    }

    fn problem(&self, message: &str, error: &Error, text: &str, sections: &dyn Fn(&str) -> Vec<String>) -> String {
        let key = self.key.unwrap_or("option");
        let value = self.value;
        if let Some(option) = message.strip_prefix("missing field ") {
            let head = self.section.map_or("", |head| head.split('#').next().unwrap_or_default().trim());
            return format!("{head} {}: the option is missing", option.trim_matches('`'));
        }
        if let Some(rest) = message.strip_prefix("unknown field ") {
            return self.unknown_name(rest, sections);
        }
        if let Some((found, allowed)) =
            message.strip_prefix("unknown variant ").and_then(|m| m.split_once(", expected "))
        {
            let found = found.trim_matches('`');
            let allowed: Vec<&str> = quoted_names(allowed).into_iter().filter(|name| *name != NOT_OFFERED).collect();
            let question = meant(nearest(found, &allowed));
            return format!("invalid value \"{}\": expected {}{question}", shown(found), list(&allowed));
        }
        if let Some((found, expected)) =
            message.strip_prefix("invalid type: ").and_then(|m| m.split_once(", expected "))
        {
            return self.wrong_type(found, expected);
        }
        if message.starts_with("invalid value: integer") || message.contains("out of range") {
            return format!("invalid number {}: expected a whole number, not negative", shown(value));
        }
        if message.contains("duplicate key") {
            return self.duplicate(text);
        }
        if let Some(problem) = self.unquoted(message) {
            return problem;
        }
        if self.key.is_some() && value.is_empty() {
            return format!("the value is missing: expected such as {key} = \"...\"");
        }
        if message.contains("unexpected leading zero") || message.contains("leading zero") {
            return format!(
                "invalid number {}: a number has no leading zero; write {key} = \"{}\"",
                shown(value),
                shown(value)
            );
        }
        if ["invalid basic string", "invalid literal string"].iter().any(|form| message.contains(form))
            && !value.is_empty()
        {
            return format!("missing closing quote: {}", shown(value));
        }
        if message.contains("unicode") || message.contains("escape") {
            return format!(
                "invalid escape in {}: a text with a backslash needs single quotes: {key} = '...'",
                shown(value)
            );
        }
        if let Some((key, value)) = self.line.split_once(':').filter(|_| message.contains("expected `=`")) {
            return format!("missing \"=\": write {} = {}", shown(key.trim()), shown(value.trim()));
        }
        if message == "invalid IP address syntax" {
            let raw = error.span().and_then(|span| text.get(span)).unwrap_or(value).trim();
            return format!("invalid address {}: expected an IP address, such as \"192.0.2.1\"", shown(raw));
        }
        message.to_owned()
    }

    /// A value without quotes, or with quotes that are none to TOML.
    fn unquoted(&self, message: &str) -> Option<String> {
        let (key, value) = (self.key?, self.value);
        let syntax = [
            "invalid boolean",
            "invalid float",
            "invalid integer",
            "must be quoted",
            "literal string",
            "wanted string",
        ];
        let is_plain = !value.is_empty() && !value.starts_with(['"', '\'', '[', '{']);
        if !is_plain || !syntax.iter().any(|form| message.contains(form)) {
            return None;
        }
        let truth = ["yes", "no", "on", "off", "true", "false"];
        if truth.contains(&value.to_ascii_lowercase().as_str()) && !message.contains("wanted string") {
            return Some(format!(
                "invalid value {}: expected true or false, in lower case and without quotes",
                shown(value)
            ));
        }
        if let Some(number) = bytes(value) {
            return Some(format!("invalid number {}: expected a number of bytes: {key} = {number}", shown(value)));
        }
        let bare = value.trim_matches(['“', '”', '„', '‘', '’', '«', '»', '`']);
        let what = if bare == value { "missing quotes" } else { "wrong kind of quotes" };
        Some(format!("{what}: write {key} = \"{}\"", shown(bare)))
    }

    /// An option or a section that does not exist.
    fn unknown_name(&self, rest: &str, sections: &dyn Fn(&str) -> Vec<String>) -> String {
        let (name, allowed) = rest.split_once(", expected ").unwrap_or((rest, ""));
        let name = name.trim_matches('`');
        let allowed = quoted_names(allowed);
        if self.is_head {
            let head = self.section.map_or("", name_of_head);
            let parent = head.rsplit_once('.').map(|(parent, _)| parent);
            let full = |name: &str| parent.map_or_else(|| name.to_owned(), |parent| format!("{parent}.{name}"));
            // Below a section, options are allowed as well.
            let allowed: Vec<String> = allowed.iter().map(|name| full(name)).collect();
            let allowed: Vec<&str> = allowed.iter().map(String::as_str).collect();
            let sections: Vec<&str> =
                allowed.into_iter().filter(|name| parent.is_none() || LISTS.contains(name)).collect();
            let nearest =
                nearest(&full(name), &sections).map(|name| format!("; did you mean {}?", with_brackets(name)));
            let names: Vec<String> = sections.iter().map(|name| with_brackets(name)).collect();
            let rest = nearest.unwrap_or_else(|| format!(": expected one of {}", names.join(", ")));
            return format!("unknown section [{}]{rest}", shown(&full(name)));
        }
        let homes: Vec<String> = sections(name).iter().map(|head| with_brackets(head)).collect();
        let homes = homes.join(" or ");
        match (homes.is_empty(), self.section, nearest(name, &allowed)) {
            (false, None, _) => format!("the option stands before the first section: it belongs below {homes}"),
            (false, Some(_), _) => format!("unknown option here: it belongs below {homes}"),
            (true, _, Some(nearest)) => format!("unknown option; did you mean \"{nearest}\"?"),
            (true, _, None) => format!("unknown option: expected {}", list(&allowed)),
        }
    }

    fn wrong_type(&self, found: &str, expected: &str) -> String {
        let key = self.key.unwrap_or("option");
        let value = shown(self.value);
        let inner = found.split_once('"').and_then(|(_, rest)| rest.rsplit_once('"')).map_or("", |(inner, _)| inner);
        match expected {
            _ if self.is_head => self.other_brackets(),
            _ if expected.starts_with("struct ") => {
                let parent = self.section.map_or("", name_of_head);
                let full = if parent.is_empty() { key.to_owned() } else { format!("{parent}.{key}") };
                format!("expected a section: write {} on a line of its own", with_brackets(&full))
            }
            "a sequence" => format!("expected a list: {key} = [{value}]"),
            "a boolean" => format!("invalid value {value}: expected true or false, without quotes"),
            "a string" | "path string" if found.starts_with("map") && self.value.starts_with('{') => {
                "expected a text in quotes, not a section".to_owned()
            }
            "a string" if DURATIONS.contains(&key) && found.starts_with(['i', 'f']) => {
                format!("missing quotes and unit (s, min, h, days): expected such as {key} = \"{value}h\"")
            }
            "a string" | "path string" if found == "sequence" => match value.contains(',') {
                true => "expected one value in quotes, not a list".to_owned(),
                false => format!(
                    "expected one value in quotes, not a list: {key} = {}",
                    value.trim_matches(['[', ']']).trim()
                ),
            },
            "a string" if self.value.starts_with('[') => {
                format!("missing quotes: write {key} = [\"{}\"]", value.trim_matches(['[', ']']).trim())
            }
            "a string" | "path string" => format!("missing quotes: write {key} = \"{value}\""),
            _ if is_number(expected) && found.starts_with("string") => match inner.parse::<u64>() {
                Ok(number) => format!("expected a number without quotes: {key} = {number}"),
                Err(_) => match bytes(inner) {
                    Some(number) => format!("invalid number {value}: expected a number of bytes: {key} = {number}"),
                    None => format!("invalid number {value}: expected a whole number without quotes"),
                },
            },
            _ if is_number(expected) => format!("invalid number {value}: expected a whole number"),
            _ if found == "sequence" => format!("expected one value, not a list: {expected}"),
            _ => format!("invalid value {value}: expected {expected}"),
        }
    }

    /// A head with the wrong number of brackets.
    fn other_brackets(&self) -> String {
        let section = self.section.unwrap_or_default();
        let head = name_of_head(section);
        match section.starts_with("[[") {
            true => format!("write [{head}], with one bracket: the section is given once"),
            false => format!("write [[{head}]], with two brackets: the section can be given several times"),
        }
    }

    fn duplicate(&self, text: &str) -> String {
        if let Some(section) = self.section.filter(|_| self.is_head)
            && LISTS.contains(&name_of_head(section)) != section.starts_with("[[")
        {
            return self.other_brackets();
        }
        let mut head = None;
        for (number, line) in text.lines().enumerate().take(self.number - 1) {
            let line = line.trim();
            if line.starts_with('[') {
                head = Some(line);
            }
            let same = match self.is_head {
                true => Some(line) == self.section,
                false => {
                    head == self.section && line.split_once('=').is_some_and(|(key, _)| Some(key.trim()) == self.key)
                }
            };
            if same {
                let what = if self.is_head { format!("section {line}") } else { "option".to_owned() };
                return format!("duplicate {what}: it is there already, in line {}", number + 1);
            }
        }
        "duplicate: it is there already".to_owned()
    }
}

/// The line of the first byte that is not UTF-8, and the problem.
pub(super) fn not_utf8(bytes: &[u8], error: Utf8Error) -> (usize, String) {
    let at = error.valid_up_to();
    let number = bytes[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
    let begin = bytes[..at].iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    let found = bytes.get(at).copied().unwrap_or_default();
    (number, format!("byte {} of the line (0x{found:02X}) is not UTF-8: save the file as UTF-8", at - begin + 1))
}

/// The sections of `T` that have an option of this name, as their heads are written, without brackets.
pub(super) fn sections_with<T: DeserializeOwned>(option: &str) -> Vec<String> {
    /// A name that no option has: the reader's error lists those that exist.
    const NONE: &str = "no-such-option = 0\n";
    let names = |text: String| -> Vec<String> {
        let Err(error) = toml::from_str::<T>(&text) else { return Vec::new() };
        let expected = error.message().split_once(", expected ").map_or("", |(_, names)| names);
        if error.message().starts_with("unknown field `no-such-option`") {
            quoted_names(expected).into_iter().map(str::to_owned).collect()
        } else {
            Vec::new()
        }
    };
    let of = |head: &str| -> Vec<String> {
        let single = names(format!("[{head}]\n{NONE}"));
        if single.is_empty() { names(format!("[[{head}]]\n{NONE}")) } else { single }
    };
    let mut heads = names(NONE.to_owned());
    let nested: Vec<String> =
        heads.iter().flat_map(|head| of(head).into_iter().map(move |name| format!("{head}.{name}"))).collect();
    heads.extend(nested);
    heads.retain(|head| of(head).iter().any(|name| name == option));
    heads
}

/// `report.dkim` of `[[report.dkim]]`.
fn name_of_head(head: &str) -> &str {
    head.split('#').next().unwrap_or_default().trim().trim_matches(['[', ']']).trim()
}

/// The head of a section as it must be written.
fn with_brackets(name: &str) -> String {
    if LISTS.contains(&name) { format!("[[{name}]]") } else { format!("[{name}]") }
}

fn is_number(expected: &str) -> bool {
    ["usize", "u64", "u32", "u16", "u8", "i64", "i32"].contains(&expected)
}

/// `10MB`, `64 KiB` as a number of bytes.
fn bytes(text: &str) -> Option<u64> {
    let digits = text.trim().find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.trim().split_at(digits);
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "k" | "kb" => 1_000,
        "m" | "mb" => 1_000_000,
        "g" | "gb" => 1_000_000_000,
        "ki" | "kib" => 1 << 10,
        "mi" | "mib" => 1 << 20,
        "gi" | "gib" => 1 << 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// The names between backticks.
fn quoted_names(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

fn list(names: &[&str]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
    match names.as_slice() {
        [] => "another name".to_owned(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

/// The text up to a `#` that is not within quotes.
fn without_comment(value: &str) -> &str {
    let mut quote = None;
    for (at, c) in value.char_indices() {
        match (quote, c) {
            (None, '#') => return &value[..at],
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), _) if open == c => quote = None,
            _ => {}
        }
    }
    value
}

fn one_line(text: &str) -> String {
    text.trim().replace('\n', " ")
}

fn shown(text: &str) -> String {
    let mut out: String = text.chars().take(MAX_SHOWN).map(|c| if c.is_control() { '?' } else { c }).collect();
    if text.chars().count() > MAX_SHOWN {
        out.push_str("...");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn explained(text: &str) -> String {
        let error = toml::from_str::<Config>(text).unwrap_err();
        let (line, problem) = explain(text, &error, &sections_with::<Config>);
        format!("{}: {problem}", line.unwrap_or(0))
    }

    #[test]
    fn mistakes_are_explained() {
        for (text, want) in [
            (
                "[policy]\nmax_domains = \"100\"",
                "2: [policy] max_domains: expected a number without quotes: max_domains = 100",
            ),
            (
                "[policy]\nmax_domains = -1",
                "2: [policy] max_domains: invalid number -1: expected a whole number, not negative",
            ),
            ("[policy]\nmax_domains = 1.5", "2: [policy] max_domains: invalid number 1.5: expected a whole number"),
            (
                "[report]\nmax_size = \"10MB\"",
                "2: [report] max_size: invalid number \"10MB\": expected a number of bytes: max_size = 10000000",
            ),
            (
                "[report]\nonly_failures = \"yes\"",
                "2: [report] only_failures: invalid value \"yes\": expected true or false, without quotes",
            ),
            (
                "[report]\norganisation = \"E\"",
                "2: [report] organisation: unknown option; did you mean \"organization\"?",
            ),
            ("[report]\nmax_domains = 1", "2: [report] max_domains: unknown option here: it belongs below [policy]"),
            ("[reports]\n", "1: unknown section [reports]; did you mean [report]?"),
            (
                "\ncontact = \"a@b.example\"",
                "2: contact: the option stands before the first section: it belongs below [report]",
            ),
            (
                "[socketmap]\nlisten = \"inet:127.0.0.1:1\"  # one",
                "2: [socketmap] listen: expected a list: listen = [\"inet:127.0.0.1:1\"]",
            ),
            ("[postfix]\nversion = 3.10", "2: [postfix] version: missing quotes: write version = \"3.10\""),
            ("[input]\nstdin = true", "1: write [[input]], with two brackets: the section can be given several times"),
            ("[policy]\n[report]\n[policy]\n", "3: duplicate section [policy]: it is there already, in line 1"),
            (
                "[report]\nfrom = \"a\"\nfrom = \"b\"",
                "3: [report] from: duplicate option: it is there already, in line 2",
            ),
            ("[report]\nfrom =\n", "2: [report] from: the value is missing: expected such as from = \"...\""),
            ("[report]\nfrom = me", "2: [report] from: missing quotes: write from = \"me\""),
            ("[report]\nfrom = \"me\n", "2: [report] from: missing closing quote: \"me"),
            (
                "[[input]]\nmode = 0666",
                "2: [[input]] mode: invalid number 0666: a number has no leading zero; write mode = \"0666\"",
            ),
            (
                "[count]\nsending_addresses = [\"mx.example\"]",
                "2: [count] sending_addresses: invalid address \"mx.example\": expected an IP address, such as \"192.0.2.1\"",
            ),
        ] {
            assert_eq!(explained(text), want);
        }
    }

    #[test]
    fn bytes_that_are_not_utf_8_are_named() {
        let text = b"[report]\norganization = \"M\xfcller\"\n".to_vec();
        let error = std::str::from_utf8(&text).unwrap_err();
        let want = "byte 18 of the line (0xFC) is not UTF-8: save the file as UTF-8";
        assert_eq!(not_utf8(&text, error), (2, want.to_owned()));
    }

    #[test]
    fn any_text_is_explained() {
        for text in
            ["=", "[", "[[", "[report", "\"", "a.b.c", "é = 1", "[report]\n\u{0}", "[report]\nfrom = \"é\u{7}\""]
        {
            if let Err(error) = toml::from_str::<Config>(text) {
                let (_, problem) = explain(text, &error, &sections_with::<Config>);
                assert!(!problem.is_empty() && !problem.contains('\n'), "{text}");
            }
        }
    }
}
