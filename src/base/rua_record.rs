//! The `_smtp._tls` record (RFC 8460 §3): where a domain wants its reports.
//!
//! Takes: the TXT records of `_smtp._tls.<domain>`, each joined from its strings. Gives: the destinations, and each URI that
//! was left out with its reason. Pure: any input is answered, none panics.
//! Limits: [`MAX_PARSED_DESTINATIONS`] destinations of a record; [`MAX_URI`] octets a URI; [`MAX_SKIPPED`] reasons.
//! When it fails: [`NoRecipients`] says why the domain gets no report.
//! Not here: the DNS query (`net::tlsrpt_record`), the administrator's own limits (`reporting::report::recipients`).

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::base::domain_name;
use crate::base::printable::escape_and_cut;

/// How many destinations of one record are read, so that suppressed ones do not use up the places of the others.
pub const MAX_PARSED_DESTINATIONS: usize = 64;

/// The longest URI that is read, in octets: far above any real one, and below what a key of the store holds.
pub(crate) const MAX_URI: usize = 512;

/// The most reasons that are kept; what is left out above it is only counted.
pub const MAX_SKIPPED: usize = 8;

/// One place that a report goes to. Its text form is a URI that reads back equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Destination {
    /// An address, decoded: `tls-reports@example.com`.
    Mail(Mailbox),
    /// A URI, as published.
    Https(String),
}

/// A mail address in the form that headers and envelopes take without quoting.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mailbox {
    /// Before the `@`: an RFC 5321 dot-string.
    pub local: String,
    /// After it: A-labels, lower case.
    pub domain: String,
}

/// What a record says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recipients {
    /// At least one, in the order of the record, each once.
    pub destinations: Vec<Destination>,
    /// What was left out, [`MAX_SKIPPED`] at most.
    pub skipped: Vec<SkippedUri>,
    /// How much more was left out.
    pub more_skipped: usize,
}

/// A URI that gets no report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedUri {
    /// The URI, escaped and cut.
    pub uri: String,
    /// Why.
    pub why: Cow<'static, str>,
}

/// Why a domain gets no report.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRecipients {
    /// No record begins with `v=TLSRPTv1;`.
    #[error("no TLSRPT record")]
    NoRecord,
    /// More than one does, which counts as none (RFC 8460 §3).
    #[error("{0} TLSRPT records where there must be one")]
    SeveralRecords(usize),
    /// The record has no `rua`.
    #[error("the TLSRPT record has no rua")]
    NoRua,
    /// It has, and none of its URIs can be used.
    #[error("no URI of rua can be used: {}", SkippedReasons(.0))]
    NoneUsable(Vec<SkippedUri>),
    /// The administrator does not want it; the option.
    #[error("not wanted: {0}")]
    Unwanted(String),
    /// An MX host whose destinations have its results already, in the reports about the recipient domains.
    #[error("its results are in the reports about the recipient domains, which went to the same destinations")]
    AlreadyReported,
}

/// A destination as the administrator writes it: a URI, or a bare mail address.
pub(crate) fn parse_destination(text: &str) -> Result<Destination, &'static str> {
    match Mailbox::internationalized(text) {
        Ok(mailbox) if !text.contains(':') => Ok(Destination::Mail(mailbox)),
        _ => parse_uri(text),
    }
}

/// Parses the TXT records of `_smtp._tls.<domain>`.
pub fn parse_recipients<S: AsRef<str>>(records: &[S]) -> Result<Recipients, NoRecipients> {
    let mut fields = records.iter().filter_map(|record| strip_version(record.as_ref()));
    let record = match (fields.next(), fields.count()) {
        (None, _) => return Err(NoRecipients::NoRecord),
        (Some(record), 0) => record,
        (Some(_), others) => return Err(NoRecipients::SeveralRecords(others + 1)),
    };
    let mut found = Recipients::default();
    let mut has_rua = false;
    // A field that is not `rua=` is an extension or broken; either way it is none of ours (RFC 8460 §3).
    for list in record.split(';').filter_map(|field| field.trim_matches(WSP).strip_prefix("rua=")) {
        has_rua = true;
        list.split(',').map(|uri| uri.trim_matches(WSP)).for_each(|uri| found.add_uri(uri));
    }
    match (has_rua, found.destinations.is_empty()) {
        (false, _) => Err(NoRecipients::NoRua),
        (true, true) => Err(NoRecipients::NoneUsable(found.skipped)),
        (true, false) => Ok(found),
    }
}

/// ABNF `WSP` (RFC 5234 §B.1).
const WSP: [char; 2] = [' ', '\t'];

/// The fields after `v=TLSRPTv1` and its delimiter; `None` for a record of another kind.
fn strip_version(record: &str) -> Option<&str> {
    record.strip_prefix("v=TLSRPTv1")?.trim_start_matches(WSP).strip_prefix(';')
}

impl Recipients {
    fn add_uri(&mut self, uri: &str) {
        match parse_uri(uri) {
            Ok(destination) if self.destinations.contains(&destination) => {}
            Ok(_) if self.destinations.len() == MAX_PARSED_DESTINATIONS => {
                self.skip(uri, "more destinations than are looked at")
            }
            Ok(destination) => self.destinations.push(destination),
            Err(why) => self.skip(uri, why),
        }
    }

    /// Notes a URI that gets no report.
    pub(crate) fn skip(&mut self, uri: &str, why: impl Into<Cow<'static, str>>) {
        if self.skipped.len() < MAX_SKIPPED {
            self.skipped.push(SkippedUri { uri: escape_and_cut(uri, 80), why: why.into() });
        } else {
            self.more_skipped += 1;
        }
    }
}

fn parse_uri(uri: &str) -> Result<Destination, &'static str> {
    if uri.is_empty() {
        return Err("empty");
    }
    if uri.len() > MAX_URI {
        return Err("too long");
    }
    if !uri.bytes().all(|b| b.is_ascii_graphic()) {
        return Err("an octet that no URI may have");
    }
    let (scheme, rest) = uri.split_once(':').ok_or("no scheme")?;
    if scheme.eq_ignore_ascii_case("mailto") {
        parse_mailto(rest).map(Destination::Mail)
    } else if scheme.eq_ignore_ascii_case("https") {
        check_https(rest).map(|()| Destination::Https(uri.to_owned()))
    } else {
        Err("unknown scheme")
    }
}

/// The address of a `mailto:` (RFC 6068 §2). Header fields are ignored, as §7 there advises; one address only.
fn parse_mailto(rest: &str) -> Result<Mailbox, &'static str> {
    if rest.starts_with("//") {
        // The slashes would become a part of the address.
        return Err("`mailto:` is followed by an address, without `//`");
    }
    let address = rest.split_once('?').map_or(rest, |(address, _)| address);
    let decoded = percent_decode(address).ok_or("bad percent-encoding")?;
    if decoded.bytes().any(|b| b.is_ascii_control()) {
        return Err("a control character in the address");
    }
    let mailbox = Mailbox::internationalized(&decoded).map_err(|InvalidMailbox| "not a plain mail address")?;
    if is_local_name(&mailbox.domain) { Err("a name of the local network") } else { Ok(mailbox) }
}

/// Whether a name means something else on each network, so that a stranger could have us write to ourselves: one label,
/// `localhost` and `invalid` (RFC 6761), `local` (RFC 6762), `onion` (RFC 7686), `home.arpa` (RFC 8375), `internal` (ICANN).
fn is_local_name(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or_default();
    last == name
        || ["localhost", "invalid", "local", "onion", "internal"].contains(&last)
        || name.ends_with(".home.arpa")
}

/// Checks what follows `https:`: an authority with a host name and no user, and no fragment (RFC 3986 §3).
fn check_https(rest: &str) -> Result<(), &'static str> {
    let rest = rest.strip_prefix("//").ok_or("no host")?;
    if rest.contains('#') {
        return Err("a fragment");
    }
    if percent_decode(rest).is_none() {
        return Err("bad percent-encoding");
    }
    if !rest.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~:/?[]@$&'()*+=%".contains(&b)) {
        return Err("an octet that no URI may have");
    }
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    if authority.contains('@') {
        return Err("a user in the URI");
    }
    let (host, port) = authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port)));
    match domain_name::normalize(host) {
        None => return Err("no host name"),
        Some(name) if is_local_name(&name) => return Err("a name of the local network"),
        Some(_) => {}
    }
    match port {
        Some(port) if port.parse::<u16>().is_err() || !port.bytes().all(|b| b.is_ascii_digit()) => Err("bad port"),
        _ => Ok(()),
    }
}

/// `%XX` undone (RFC 3986 §2.1); `None` for a broken escape or what is not UTF-8 then.
fn percent_decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut octets = text.bytes();
    while let Some(octet) = octets.next() {
        out.push(match octet {
            b'%' => hex_digit(octets.next()?)? << 4 | hex_digit(octets.next()?)?,
            other => other,
        });
    }
    String::from_utf8(out).ok()
}

fn hex_digit(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|d| u8::try_from(d).ok())
}

/// The text is no address of the plain form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a mail address of the form local@domain")]
pub struct InvalidMailbox;

impl FromStr for Mailbox {
    type Err = InvalidMailbox;

    /// Takes `dot-string@domain` (RFC 5321 §4.1.2): what needs no quoting anywhere, and so cannot inject anything.
    fn from_str(text: &str) -> Result<Mailbox, InvalidMailbox> {
        Mailbox::internationalized(text)
            .and_then(|mailbox| if mailbox.local.is_ascii() { Ok(mailbox) } else { Err(InvalidMailbox) })
    }
}

impl Mailbox {
    /// Takes the same with letters and digits of any script in the local part (RFC 6531 §3.3), which needs an MTA with
    /// SMTPUTF8. Signs that cannot be seen or change the direction of writing are not among them.
    pub(crate) fn internationalized(text: &str) -> Result<Mailbox, InvalidMailbox> {
        let (local, domain) = text.rsplit_once('@').ok_or(InvalidMailbox)?;
        let atext = |c: char| match c.is_ascii() {
            true => c.is_ascii_alphanumeric() || "!#$%&'*+-/=?^_`{|}~".contains(c),
            false => c.is_alphanumeric(),
        };
        let atom = |a: &str| !a.is_empty() && a.chars().all(atext);
        if local.len() > 64 || !local.split('.').all(atom) {
            return Err(InvalidMailbox);
        }
        let domain = domain_name::normalize(domain).ok_or(InvalidMailbox)?;
        Ok(Mailbox { local: local.to_owned(), domain })
    }
}

impl fmt::Display for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.local, self.domain)
    }
}

impl Destination {
    /// The name of the mail domain or web server.
    pub fn host(&self) -> &str {
        match self {
            Destination::Mail(mailbox) => &mailbox.domain,
            Destination::Https(uri) => uri.split(['/', ':', '?']).find(|part| part.contains('.')).unwrap_or_default(),
        }
    }

    /// The server: the mail domain, or the web server with its port where one is named, in lower case.
    pub(crate) fn server(&self) -> String {
        match self {
            Destination::Mail(mailbox) => mailbox.domain.clone(),
            Destination::Https(uri) => {
                let rest = uri.split_once("//").map_or("", |(_, rest)| rest);
                rest.split(['/', '?']).next().unwrap_or_default().to_ascii_lowercase()
            }
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Destination::Https(uri) => f.write_str(uri),
            Destination::Mail(mailbox) => {
                f.write_str("mailto:")?;
                // RFC 6068 §2: `%`, `?` and `&` of a local part are encoded; RFC 8460 §3 adds `!`.
                for byte in mailbox.local.bytes() {
                    match byte {
                        b'%' | b'!' | b'?' | b'&' | b'/' | b'#' | 0x80.. => write!(f, "%{byte:02X}")?,
                        plain => write!(f, "{}", char::from(plain))?,
                    }
                }
                write!(f, "@{}", mailbox.domain)
            }
        }
    }
}

impl From<Destination> for String {
    fn from(destination: Destination) -> String {
        destination.to_string()
    }
}

impl TryFrom<String> for Destination {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Destination, &'static str> {
        parse_uri(&text)
    }
}

/// The reasons of several URIs, as one text.
struct SkippedReasons<'a>(&'a [SkippedUri]);

impl fmt::Display for SkippedReasons<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, skipped) in self.0.iter().enumerate() {
            write!(f, "{}{} ({})", if i == 0 { "" } else { ", " }, skipped.uri, skipped.why)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mail(record: &str) -> Vec<String> {
        parse_recipients(&[record]).unwrap().destinations.iter().map(ToString::to_string).collect()
    }

    fn why(uri: &str) -> String {
        match parse_recipients(&[format!("v=TLSRPTv1;rua={uri}")]) {
            Err(NoRecipients::NoneUsable(skipped)) => skipped[0].why.to_string(),
            other => panic!("{uri}: {other:?}"),
        }
    }

    #[test]
    fn a_local_part_may_have_letters_of_any_script() {
        let uri = "mailto:meldungen.f%C3%BCr.%E6%8A%A5%E5%91%8A@b%C3%BCcher.example";
        let found = parse_recipients(&[format!("v=TLSRPTv1;rua={uri}")]).unwrap().destinations;
        let mailbox = Mailbox { local: "meldungen.für.报告".into(), domain: "xn--bcher-kva.example".into() };
        assert_eq!(found, [Destination::Mail(mailbox)]);
        let text = found[0].to_string();
        assert!(text.is_ascii(), "{text}");
        assert_eq!(Destination::try_from(text).as_ref(), Ok(&found[0]));
        assert!("für@example.com".parse::<Mailbox>().is_err(), "our own addresses are ASCII");
        // A direction mark, a blank without width, a letter that is broken off.
        for hidden in ["a%E2%80%AEb", "a%E2%80%8Bb", "a%C3"] {
            assert!(parse_recipients(&[format!("v=TLSRPTv1;rua=mailto:{hidden}@b.example")]).is_err(), "{hidden}");
        }
    }

    #[test]
    fn records_of_the_rfc() {
        assert_eq!(mail("v=TLSRPTv1;rua=mailto:reports@example.com"), ["mailto:reports@example.com"]);
        assert_eq!(
            mail("v=TLSRPTv1; rua=https://reporting.example.com/v1/tlsrpt"),
            ["https://reporting.example.com/v1/tlsrpt"]
        );
    }

    #[test]
    fn white_space_case_extensions_and_a_second_rua() {
        assert_eq!(
            mail(
                "v=TLSRPTv1 \t; x-new=1 ;rua=MAILTO:A.b@Example.COM. \t,\thttps://r.example/x?token=abcd ; rua=mailto:c@d.example;"
            ),
            ["mailto:A.b@example.com", "https://r.example/x?token=abcd", "mailto:c@d.example"]
        );
    }

    #[test]
    fn exactly_one_record() {
        let ours = "v=TLSRPTv1;rua=mailto:a@b.example";
        assert_eq!(parse_recipients(&["v=spf1 -all", ours, "v=TLSRPTv1"]).unwrap().destinations.len(), 1);
        assert_eq!(parse_recipients(&[ours, ours]), Err(NoRecipients::SeveralRecords(2)));
        for none in ["", "v=TLSRPTv1", "V=TLSRPTv1;rua=mailto:a@b.example", " v=TLSRPTv1;", "v=TLSRPTv2;rua=mailto:a@b"]
        {
            assert_eq!(parse_recipients(&[none]), Err(NoRecipients::NoRecord), "{none}");
        }
        assert_eq!(parse_recipients(&["v=TLSRPTv1;RUA=mailto:a@b.example"]), Err(NoRecipients::NoRua));
        assert_eq!(parse_recipients::<&str>(&[]), Err(NoRecipients::NoRecord));
    }

    #[test]
    fn percent_encoding_is_undone_once() {
        let found =
            parse_recipients(&["v=TLSRPTv1;rua=mailto:a%21b%2Bc@example.com,mailto:p%2525@example.com"]).unwrap();
        let locals: Vec<_> = found
            .destinations
            .iter()
            .map(|d| match d {
                Destination::Mail(mailbox) => mailbox.local.as_str(),
                Destination::Https(_) => panic!("no mail"),
            })
            .collect();
        assert_eq!(locals, ["a!b+c", "p%25"]);
        for destination in &found.destinations {
            assert_eq!(&Destination::try_from(destination.to_string()).unwrap(), destination);
        }
    }

    #[test]
    fn an_unknown_scheme_skips_that_uri_alone() {
        let found = parse_recipients(&["v=TLSRPTv1;rua=ftp://x.example/,mailto:a@b.example,gopher:x"]).unwrap();
        assert_eq!(found.destinations.len(), 1);
        assert_eq!(found.skipped.iter().map(|s| &*s.why).collect::<Vec<_>>(), ["unknown scheme"; 2]);
    }

    #[test]
    fn traps_are_refused_by_name() {
        assert_eq!(why("mailto:a@b.example%0D%0ABcc:%20victim@c.example"), "a control character in the address");
        assert_eq!(why("mailto:a%00@b.example"), "a control character in the address");
        assert_eq!(why("mailto:a@b.example%2Cc@d.example"), "not a plain mail address");
        assert_eq!(why("mailto:a%20b@c.example"), "not a plain mail address");
        assert_eq!(why("mailto:%22a%40b%22@c.example"), "not a plain mail address");
        assert_eq!(why("mailto:-f@[127.0.0.1]"), "not a plain mail address");
        assert_eq!(why("mailto:?to=a@b.example"), "not a plain mail address");
        for uri in ["mailto://a@b.example", "MAILTO://a@b.example", "mailto:///a@b.example"] {
            assert_eq!(why(uri), "`mailto:` is followed by an address, without `//`");
        }
        assert_eq!(why("mailto:a%2@b.example"), "bad percent-encoding");
        assert_eq!(why("mailto:a%ff@b.example"), "bad percent-encoding");
        assert_eq!(why("mailto:a@b.example\r\nX: y"), "an octet that no URI may have");
        assert_eq!(why(&format!("mailto:{}@b.example", "a".repeat(10_000))), "too long");
        assert_eq!(why(&format!("mailto:{}@b.example", "a".repeat(65))), "not a plain mail address");
        assert_eq!(why("https:x.example"), "no host");
        assert_eq!(why("https://user:secret@x.example/"), "a user in the URI");
        assert_eq!(why("https://[::1]/"), "no host name");
        assert_eq!(why("https://10.0.0.1/"), "no host name");
        assert_eq!(why("https://x.example:99999/"), "bad port");
        assert_eq!(why("https://x.example:/"), "bad port");
        assert_eq!(why("https://x.example/#a"), "a fragment");
        assert_eq!(why("https://x.example/\\evil"), "an octet that no URI may have");
        assert_eq!(why("a@b.example"), "no scheme");
        assert_eq!(why(""), "empty");
    }

    #[test]
    fn header_fields_of_a_mailto_are_ignored() {
        assert_eq!(mail("v=TLSRPTv1;rua=mailto:a@b.example?subject=x&bcc=v@c.example"), ["mailto:a@b.example"]);
    }

    #[test]
    fn names_of_the_local_network_are_refused() {
        for host in [
            "localhost",
            "mailhost",
            "a.localhost",
            "printer.local",
            "db.internal",
            "x.home.arpa",
            "a.onion",
            "a.invalid",
        ] {
            assert_eq!(why(&format!("mailto:root@{host}")), "a name of the local network", "{host}");
            assert_eq!(why(&format!("https://{host}:8443/x")), "a name of the local network", "{host}");
        }
    }

    #[test]
    fn thousands_of_uris_are_cut() {
        let many = (0..5000).map(|i| format!("mailto:a{i}@b.example")).collect::<Vec<_>>().join(",");
        let found = parse_recipients(&[format!("v=TLSRPTv1;rua={many}")]).unwrap();
        assert_eq!(found.destinations.len(), MAX_PARSED_DESTINATIONS);
        assert_eq!(found.skipped.len() + found.more_skipped, 5000 - MAX_PARSED_DESTINATIONS);
        assert_eq!(found.skipped.len(), MAX_SKIPPED);
        let same = vec!["mailto:a@b.example"; 5000].join(",");
        assert_eq!(mail(&format!("v=TLSRPTv1;rua={same}")), ["mailto:a@b.example"]);
    }

    proptest! {
        #[test]
        fn any_text_is_answered(records in proptest::collection::vec("(v=TLSRPTv1;)?(rua=)?\\PC{0,80}", 0..3)) {
            let _ = parse_recipients(&records);
        }

        #[test]
        fn what_is_taken_is_clean_and_reads_back(uri in "(mailto:|https://)[!-~\r\n]{1,40}@?[a-z.%0-9]{1,20}") {
            if let Ok(found) = parse_recipients(&[format!("v=TLSRPTv1;rua={uri}")]) {
                for destination in found.destinations {
                    let text = destination.to_string();
                    prop_assert!(text.bytes().all(|b| b.is_ascii_graphic()), "{}", text);
                    prop_assert_eq!(Destination::try_from(text).unwrap(), destination);
                }
            }
        }
    }
}
