//! DNS messages (RFC 1035 §4): a query as bytes, and an answer record by record; the only user of hickory.
//!
//! Takes: a question; the bytes of an answer. Gives: the bytes of the query; an [`AnswerMessage`].
//! Limits: bytes of strangers. No name is followed further than hickory does (pointers lead backwards only), nothing is
//! read twice, and each record takes 11 bytes or more of the message.
//! When it fails: a record that cannot be decoded is skipped and counted ([`AnswerMessage::undecodable`]), the others
//! stand. A message whose lengths do not fit is refused as a whole.
//! Not here: sending and waiting (`exchange`), CNAME chains and what an answer means (`Resolver`).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::rr::Name;
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder, BinEncodable};
use serde::{Deserialize, Serialize};

/// The largest answer that is taken over UDP, in bytes: no fragments on any path (DNS flag day 2020).
pub(crate) const UDP_PAYLOAD: u16 = 1232;

/// The bytes of a record between its owner and its data.
const RECORD_HEADER: usize = 10;

/// The response code of an answer that has, or has not, what was asked for.
pub(crate) const NOERROR: u16 = 0;

/// The response code of a name that does not exist.
pub(crate) const NXDOMAIN: u16 = 3;

const CLASS_IN: u16 = 1;

/// The pseudo-record of EDNS (RFC 6891 §6.1.2).
const TYPE_OPT: u16 = 41;

const TYPE_SOA: u16 = 6;

/// The option of EDNS for an extended error (RFC 8914 §2).
const OPTION_EXTENDED_ERROR: u16 = 15;

/// A type of record that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RecordKind {
    /// IPv4 address.
    A,
    /// Name server.
    Ns,
    /// Alias.
    Cname,
    /// Mail exchange.
    Mx,
    /// Text.
    Txt,
    /// IPv6 address.
    Aaaa,
    /// Certificate association (RFC 6698).
    Tlsa,
}

/// What is asked: the records of one type at one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Question {
    /// The name in canonical form (lower case, without the final dot); the root is `.`.
    pub(crate) name: String,
    /// The type.
    pub(crate) kind: RecordKind,
    /// Whether the resolver is to answer without validating (the CD bit, RFC 4035 §3.2.2).
    pub(crate) checking_disabled: bool,
}

/// An answer, as far as it can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnswerMessage {
    /// The number that the query had.
    pub id: u16,
    /// The question that it answers; servers that cannot read a query leave it out.
    pub question: Option<(String, u16)>,
    /// The response code, with the upper bits that EDNS adds (RFC 6891 §6.1.3).
    pub rcode: u16,
    /// Whether something was left out for lack of room.
    pub truncated: bool,
    /// Whether the resolver says that it validated all of it (RFC 4035 §3.2.3).
    pub authentic: bool,
    /// The records of the answer section, in their order, of the types that are read.
    pub records: Vec<AnswerRecord>,
    /// The owner and type of each record of the answer section that could not be decoded.
    pub undecodable: Vec<(String, u16)>,
    /// How long a negative answer holds, in seconds, and the apex of the zone that it comes from (RFC 2308 §5).
    pub negative: Option<(u32, String)>,
    /// The extended error of EDNS (RFC 8914): of several, the first that concerns DNSSEC.
    pub extended_error: Option<u16>,
}

/// A record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnswerRecord {
    /// Its owner in canonical form.
    pub owner: String,
    /// How long it holds, in seconds.
    pub ttl: u32,
    /// What it says.
    pub data: RecordData,
}

/// What a record says. Names are in canonical form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordData {
    /// An A or AAAA record.
    Address(IpAddr),
    /// An NS record.
    NameServer(String),
    /// A CNAME record.
    Alias(String),
    /// An MX record: preference and host.
    Exchange(u16, String),
    /// A TXT record, its strings joined.
    Text(Vec<u8>),
    /// A TLSA record.
    Tlsa(TlsaRecord),
}

/// A TLSA record (RFC 6698 §2.1), as it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TlsaRecord {
    /// Certificate usage.
    pub usage: u8,
    /// Selector.
    pub selector: u8,
    /// Matching type.
    pub matching: u8,
    /// Certificate association data.
    pub data: Vec<u8>,
}

/// Why an answer cannot be used at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the answer cannot be decoded")]
pub struct UndecodableMessage;

impl RecordKind {
    /// Its number (RFC 1035 §3.2.2, RFC 3596, RFC 6698).
    pub(crate) const fn number(self) -> u16 {
        match self {
            RecordKind::A => 1,
            RecordKind::Ns => 2,
            RecordKind::Cname => 5,
            RecordKind::Mx => 15,
            RecordKind::Txt => 16,
            RecordKind::Aaaa => 28,
            RecordKind::Tlsa => 52,
        }
    }
}

impl fmt::Display for RecordKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RecordKind::A => "A",
            RecordKind::Ns => "NS",
            RecordKind::Cname => "CNAME",
            RecordKind::Mx => "MX",
            RecordKind::Txt => "TXT",
            RecordKind::Aaaa => "AAAA",
            RecordKind::Tlsa => "TLSA",
        })
    }
}

impl Question {
    /// A question about a name as people write it; nothing where DNS cannot hold such a name.
    pub(crate) fn new(name: &str, kind: RecordKind) -> Option<Question> {
        let mut name = Name::from_ascii(name).ok()?;
        name.set_fqdn(true);
        Some(Question { name: canonical_text(&name), kind, checking_disabled: false })
    }

    /// The same, to be answered without validating.
    pub(crate) fn without_validation(&self) -> Question {
        Question { checking_disabled: true, ..self.clone() }
    }

    /// The query as it is sent. It asks for the AD bit (RFC 6840 §5.7) unless nothing is to be validated; with `edns` also for larger answers and,
    /// by the DO bit, for the signatures that some resolvers validate only then. Nothing where DNS cannot hold the name.
    pub(crate) fn to_query(&self, id: u16, edns: bool) -> Option<Vec<u8>> {
        let mut name = Name::from_ascii(&self.name).ok()?;
        name.set_fqdn(true);
        // RD, and AD or CD; one question; with EDNS one additional record.
        let flags = if self.checking_disabled { 0x0110 } else { 0x0120 };
        let mut query = [id, flags, 1, 0, 0, u16::from(edns)].map(u16::to_be_bytes).concat();
        query.extend(name.to_bytes().ok()?);
        query.extend([self.kind.number(), CLASS_IN].map(u16::to_be_bytes).concat());
        if edns {
            // Owner: the root. The class is the payload, the TTL has the version (0) and the DO bit.
            query.push(0);
            query.extend([TYPE_OPT, UDP_PAYLOAD, 0, 0x8000, 0].map(u16::to_be_bytes).concat());
        }
        Some(query)
    }

    /// Whether a message answers this question. A server that could not read the query repeats nothing of it.
    pub(crate) fn is_answered_by(&self, message: &AnswerMessage) -> bool {
        match &message.question {
            Some((name, kind)) => *name == self.name && *kind == self.kind.number(),
            None => message.rcode != 0,
        }
    }
}

impl AnswerMessage {
    /// Reads an answer. Fails where its lengths do not fit.
    pub fn decode(bytes: &[u8]) -> Result<AnswerMessage, UndecodableMessage> {
        let mut reader = Reader { bytes, at: 0 };
        let [id, flags, questions, answers, authorities, additional] = reader.numbers().ok_or(UndecodableMessage)?;
        if flags & 0x8000 == 0 {
            // A query.
            return Err(UndecodableMessage);
        }
        let mut message = AnswerMessage {
            id,
            question: None,
            rcode: flags & 0x000f,
            truncated: flags & 0x0200 != 0,
            authentic: flags & 0x0020 != 0,
            records: Vec::new(),
            undecodable: Vec::new(),
            negative: None,
            extended_error: None,
        };
        match message.decode_sections(&mut reader, questions, answers, authorities, additional) {
            Some(()) => Ok(message),
            // What was left out for lack of room is asked again over TCP: only the header counts.
            None if message.truncated => Ok(message),
            // Old servers that refuse a query send its header back and nothing else.
            None if !matches!(message.rcode, NOERROR | NXDOMAIN) => {
                Ok(AnswerMessage { question: None, records: Vec::new(), undecodable: Vec::new(), ..message })
            }
            None => Err(UndecodableMessage),
        }
    }

    fn decode_sections(
        &mut self,
        reader: &mut Reader<'_>,
        questions: u16,
        answers: u16,
        authorities: u16,
        additional: u16,
    ) -> Option<()> {
        for _ in 0..questions {
            let name = reader.name()?;
            let [kind, class] = reader.numbers()?;
            if let (None, Ok(name), CLASS_IN) = (&self.question, name, class) {
                self.question = Some((name, kind));
            }
        }
        for _ in 0..answers {
            let record = reader.record()?;
            let Ok(owner) = record.owner else {
                self.undecodable.push((String::new(), record.kind));
                continue;
            };
            match reader.data(record.kind, record.data) {
                Some(Ok(data)) if record.class == CLASS_IN => {
                    self.records.push(AnswerRecord { owner, ttl: valid_ttl(record.ttl), data })
                }
                Some(Ok(_)) | None => {}
                Some(Err(UndecodableMessage)) => self.undecodable.push((owner, record.kind)),
            }
        }
        for _ in 0..authorities {
            let record = reader.record()?;
            if let (TYPE_SOA, Ok(apex), None) = (record.kind, record.owner, &self.negative) {
                self.negative = reader
                    .soa_minimum(record.data)
                    .map(|minimum| (valid_ttl(minimum).min(valid_ttl(record.ttl)), apex));
            }
        }
        for _ in 0..additional {
            let record = reader.record()?;
            if record.kind == TYPE_OPT {
                // The upper 8 bits of the TTL are the upper bits of the response code.
                self.rcode |= u16::try_from(record.ttl >> 24).unwrap_or(0) << 4;
                self.extended_error = reader.extended_error(record.data);
            }
        }
        Some(())
    }
}

/// Reads a message from its beginning to its end.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// A record of any type; its data as the place where that is.
struct RawRecord {
    owner: Result<String, UndecodableMessage>,
    kind: u16,
    class: u16,
    ttl: u32,
    data: (usize, usize),
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(count)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn numbers<const N: usize>(&mut self) -> Option<[u16; N]> {
        let bytes = self.take(2 * N)?;
        Some(std::array::from_fn(|i| u16::from_be_bytes([bytes[2 * i], bytes[2 * i + 1]])))
    }

    /// A name. Where it ends is known even where it cannot be decoded; nothing where it does not end in the message.
    fn name(&mut self) -> Option<Result<String, UndecodableMessage>> {
        let begin = self.at;
        loop {
            let length = usize::from(*self.take(1)?.first()?);
            match length {
                0 => break,
                1..=63 => drop(self.take(length)?),
                0xc0.. => {
                    self.take(1)?;
                    break;
                }
                // Other kinds of label have gone out of use (RFC 6891 §5): their length is not known.
                _ => return None,
            }
        }
        Some(self.name_at(begin))
    }

    fn name_at(&self, at: usize) -> Result<String, UndecodableMessage> {
        let at = u16::try_from(at).map_err(|_| UndecodableMessage)?;
        if usize::from(at) > self.bytes.len() {
            return Err(UndecodableMessage);
        }
        let mut decoder = BinDecoder::new(self.bytes).clone(at);
        Name::read(&mut decoder).map(|name| canonical_text(&name)).map_err(|_| UndecodableMessage)
    }

    fn record(&mut self) -> Option<RawRecord> {
        let owner = self.name()?;
        let header = self.take(RECORD_HEADER)?;
        let number = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let ttl = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
        let begin = self.at;
        self.take(usize::from(number(8)))?;
        Some(RawRecord { owner, kind: number(0), class: number(2), ttl, data: (begin, self.at) })
    }

    /// What the data of a record says; nothing for a type that is not read.
    fn data(&self, kind: u16, (begin, end): (usize, usize)) -> Option<Result<RecordData, UndecodableMessage>> {
        let data = self.bytes.get(begin..end).unwrap_or_default();
        let kinds = [
            RecordKind::A,
            RecordKind::Ns,
            RecordKind::Cname,
            RecordKind::Mx,
            RecordKind::Txt,
            RecordKind::Aaaa,
            RecordKind::Tlsa,
        ];
        let kind = kinds.into_iter().find(|known| known.number() == kind)?;
        Some(
            match kind {
                RecordKind::A => {
                    <[u8; 4]>::try_from(data).map(|bytes| RecordData::Address(IpAddr::V4(Ipv4Addr::from(bytes)))).ok()
                }
                RecordKind::Aaaa => {
                    <[u8; 16]>::try_from(data).map(|bytes| RecordData::Address(IpAddr::V6(Ipv6Addr::from(bytes)))).ok()
                }
                RecordKind::Ns => self.whole_name(begin, end).map(RecordData::NameServer),
                RecordKind::Cname => self.whole_name(begin, end).map(RecordData::Alias),
                RecordKind::Mx => match data {
                    [high, low, _, ..] => {
                        let preference = u16::from_be_bytes([*high, *low]);
                        self.whole_name(begin + 2, end).map(|host| RecordData::Exchange(preference, host))
                    }
                    _ => None,
                },
                RecordKind::Txt => join_strings(data).map(RecordData::Text),
                RecordKind::Tlsa => match data {
                    [usage, selector, matching, data @ ..] => Some(RecordData::Tlsa(TlsaRecord {
                        usage: *usage,
                        selector: *selector,
                        matching: *matching,
                        data: data.to_vec(),
                    })),
                    _ => None,
                },
            }
            .ok_or(UndecodableMessage),
        )
    }

    /// The info code of an extended error among the options of EDNS (RFC 8914 §2). What a server says of it in words is
    /// not read.
    fn extended_error(&self, (begin, end): (usize, usize)) -> Option<u16> {
        let mut reader = Reader { bytes: self.bytes.get(..end)?, at: begin };
        let mut found = None;
        while let Some([option, length]) = reader.numbers() {
            let Some(value) = reader.take(usize::from(length)) else { break };
            if let (OPTION_EXTENDED_ERROR, Some(code)) = (option, value.first_chunk()) {
                let code = u16::from_be_bytes(*code);
                match found {
                    None => found = Some(code),
                    Some(first) if !concerns_dnssec(first) && concerns_dnssec(code) => found = Some(code),
                    Some(_) => {}
                }
            }
        }
        found
    }

    /// A name that takes these bytes, no more and no less.
    fn whole_name(&self, begin: usize, end: usize) -> Option<String> {
        let mut reader = Reader { bytes: self.bytes, at: begin };
        let name = reader.name()?.ok()?;
        (reader.at == end).then_some(name)
    }

    /// The last number of a SOA record (RFC 1035 §3.3.13): how long a negative answer holds.
    fn soa_minimum(&self, (begin, end): (usize, usize)) -> Option<u32> {
        let mut reader = Reader { bytes: self.bytes.get(..end)?, at: begin };
        let _ = (reader.name()?, reader.name()?);
        reader.take(16)?;
        let [high, low] = reader.numbers()?;
        Some(u32::from(high) << 16 | u32::from(low))
    }
}

/// Whether an extended error says what is wrong with signatures, keys or proofs (RFC 8914 §4, RFC 9276 §6).
fn concerns_dnssec(code: u16) -> bool {
    matches!(code, 1 | 2 | 5..=12 | 25 | 27)
}

/// A time to live with the upper bit is none (RFC 2181 §8).
fn valid_ttl(ttl: u32) -> u32 {
    if ttl > i32::MAX.unsigned_abs() { 0 } else { ttl }
}

/// The strings of a TXT record, joined (RFC 8461 §3.1); nothing where their lengths do not fit.
fn join_strings(mut data: &[u8]) -> Option<Vec<u8>> {
    let mut text = Vec::with_capacity(data.len());
    while let Some((length, rest)) = data.split_first() {
        let (string, rest) = rest.split_at_checked(usize::from(*length))?;
        text.extend_from_slice(string);
        data = rest;
    }
    Some(text)
}

/// The canonical form (see `domain_name`); the root is `.`.
fn canonical_text(name: &Name) -> String {
    let text = name.to_ascii().to_ascii_lowercase();
    match text.strip_suffix('.') {
        Some("") | None => text,
        Some(name) => name.to_owned(),
    }
}

impl fmt::Display for TlsaRecord {
    /// `3 1 1 HEX`, as in a zone file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} ", self.usage, self.selector, self.matching)?;
        self.data.iter().try_for_each(|octet| write!(f, "{octet:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer with these records, each an owner, a type and its data.
    fn answer(flags: u16, records: &[(&str, u16, &[u8])]) -> Vec<u8> {
        let count = u16::try_from(records.len()).unwrap();
        let mut bytes = [7, 0x8000 | flags, 1, count, 0, 0].map(u16::to_be_bytes).concat();
        bytes.extend(b"\x04Host\x04test\0");
        bytes.extend([52, 1].map(u16::to_be_bytes).concat());
        for (owner, kind, data) in records {
            bytes.extend(Name::from_ascii(owner).unwrap().to_bytes().unwrap());
            bytes.extend([*kind, 1, 0, 60, u16::try_from(data.len()).unwrap()].map(u16::to_be_bytes).concat());
            bytes.extend(*data);
        }
        bytes
    }

    fn decoded(records: &[(&str, u16, &[u8])]) -> AnswerMessage {
        AnswerMessage::decode(&answer(0, records)).unwrap()
    }

    #[test]
    fn names_have_one_form() {
        let name = |text| Question::new(text, RecordKind::A).map(|question| question.name);
        assert_eq!(name("MX.Example.COM").as_deref(), Some("mx.example.com"));
        assert_eq!(name("mx.example.com.").as_deref(), Some("mx.example.com"));
        assert_eq!(name(".").as_deref(), Some("."));
        assert_eq!(name(&"x".repeat(64)), None);
    }

    #[test]
    fn records_print_as_in_a_zone_file() {
        let tlsa = TlsaRecord { usage: 3, selector: 1, matching: 1, data: vec![0, 0xab] };
        assert_eq!(tlsa.to_string(), "3 1 1 00ab");
    }

    #[test]
    fn every_query_asks_for_the_ad_bit() {
        let question = Question::new("a.test", RecordKind::Tlsa).unwrap();
        let plain = question.to_query(0x1234, false).unwrap();
        assert_eq!(plain, b"\x12\x34\x01\x20\0\x01\0\0\0\0\0\0\x01a\x04test\0\0\x34\0\x01");
        let edns = question.to_query(0x1234, true).unwrap();
        assert_eq!(edns[..12], *b"\x12\x34\x01\x20\0\x01\0\0\0\0\0\x01");
        assert_eq!(edns[plain.len()..], *b"\0\0\x29\x04\xd0\0\0\x80\0\0\0");
        // But one that is to be answered without validating, which has the CD bit.
        assert_eq!(question.without_validation().to_query(0x1234, false).unwrap()[2..4], *b"\x01\x10");
    }

    #[test]
    fn a_record_that_cannot_be_decoded_is_skipped() {
        let good: &[u8] = &[3, 1, 1, 0xab];
        let message = decoded(&[
            ("host.test", 52, &[3, 1]),
            ("host.test", 52, good),
            ("host.test", 1, &[192, 0, 2]),
            ("host.test", 28, &[0; 4]),
            ("host.test", 15, &[0, 10]),
            ("host.test", 15, b"\0\x0a\x02mx\0\0"),
            ("host.test", 16, &[200, b'x']),
            ("host.test", 5, &[0xc0, 0xff]),
            // A type that nobody asks for.
            ("host.test", 46, &[1]),
        ]);
        let tlsa = TlsaRecord { usage: 3, selector: 1, matching: 1, data: vec![0xab] };
        let record = AnswerRecord { owner: "host.test".into(), ttl: 60, data: RecordData::Tlsa(tlsa) };
        assert_eq!(message.records, [record]);
        let skipped: Vec<u16> = message.undecodable.iter().map(|(_, kind)| *kind).collect();
        assert_eq!(skipped, [52, 1, 28, 15, 15, 16, 5]);
        assert_eq!(message.question, Some(("host.test".into(), 52)));
    }

    #[test]
    fn a_message_whose_lengths_do_not_fit_is_refused() {
        let whole = answer(0, &[("host.test", 1, &[192, 0, 2, 1])]);
        for length in 0..whole.len() {
            assert!(AnswerMessage::decode(&whole[..length]).is_err(), "{length}");
        }
        assert_eq!(AnswerMessage::decode(&whole).unwrap().records.len(), 1);
        // Cut by the server, which says so.
        let truncated = answer(0x0200, &[("host.test", 1, &[192, 0, 2, 1])]);
        assert!(AnswerMessage::decode(&truncated[..truncated.len() - 3]).unwrap().truncated);
        // A query is not an answer, although it has the same form.
        let query = Question::new("host.test", RecordKind::A).unwrap().to_query(1, true).unwrap();
        assert!(AnswerMessage::decode(&query).is_err());
    }

    #[test]
    fn a_refusal_that_is_a_header_alone_is_read() {
        // The header of the query, which says that a question and an EDNS record follow.
        for (rcode, read) in [(1, true), (4, true), (5, true), (0, false), (3, false)] {
            let bytes = [7, 0x8100 | rcode, 1, 0, 0, 1].map(u16::to_be_bytes).concat();
            let answer = AnswerMessage::decode(&bytes);
            assert_eq!(answer.is_ok_and(|answer| answer.rcode == rcode && answer.question.is_none()), read, "{rcode}");
        }
    }

    #[test]
    fn the_response_code_has_its_upper_bits_from_edns() {
        let mut bytes = answer(1, &[]);
        bytes[11] = 1;
        bytes.extend(b"\0\0\x29\x04\xd0\x01\0\0\0\0\0");
        assert_eq!(AnswerMessage::decode(&bytes).unwrap().rcode, 17);
    }

    #[test]
    fn an_extended_error_is_read_and_one_about_dnssec_is_preferred() {
        let with_options = |options: &[u8]| {
            let mut bytes = answer(2, &[]);
            bytes[11] = 1;
            bytes.extend(b"\0\0\x29\x04\xd0\0\0\0\0");
            bytes.extend(u16::try_from(options.len()).unwrap().to_be_bytes());
            bytes.extend(options);
            AnswerMessage::decode(&bytes).unwrap().extended_error
        };
        assert_eq!(with_options(b""), None);
        assert_eq!(with_options(b"\0\x0f\0\x0b\0\x07signature"), Some(7));
        // A cookie, "no reachable authority", "DNSSEC bogus".
        assert_eq!(with_options(b"\0\x0a\0\x02xx\0\x0f\0\x02\0\x16\0\x0f\0\x02\0\x06"), Some(6));
        for broken in [&b"\0\x0f\0\x01\0"[..], b"\0\x0f\0\x09\0\x07", b"\0\x0f\0"] {
            assert_eq!(with_options(broken), None, "{broken:?}");
        }
    }

    #[test]
    fn a_negative_answer_holds_for_the_minimum_of_its_zone() {
        let mut bytes = answer(0, &[]);
        bytes[9] = 1;
        bytes.extend(b"\x04test\0\0\x06\0\x01\0\0\0\x3c\0\x16\0\0");
        bytes.extend([0, 1, 0, 2, 0, 3, 0, 4, 0, 30].map(u16::to_be_bytes).concat());
        assert_eq!(AnswerMessage::decode(&bytes).unwrap().negative, Some((30, "test".into())));
    }

    #[test]
    fn every_message_that_differs_in_one_byte_is_read_or_refused() {
        let whole = answer(0, &[("host.test", 5, b"\x01a\xc0\x0c"), ("a.host.test", 52, &[3, 1, 1, 2])]);
        for at in 0..whole.len() {
            for byte in 0..=255 {
                let mut changed = whole.clone();
                changed[at] = byte;
                let _ = AnswerMessage::decode(&changed);
            }
        }
    }
}
