//! From a name over its CNAMEs to the records: what one answer after the other says of it. Pure.
//!
//! Takes: the answers, in the order in which they come. Gives: the records at the end of the chain, or the name that is
//! to be asked next: a resolver may answer with an alias alone, and it is for whoever asks to go on (RFC 7672 §2.1.3,
//! RFC 8461 §3.1).
//! Limits: [`MAX_CHAIN`] aliases, [`MAX_FURTHER_QUERIES`] answers after the first, [`MAX_RECORDS`] records.
//! When it fails: a chain without an end, an answer about another name, and records of which none can be decoded are
//! failures, never "there is none".

use crate::net::dns::message::{AnswerMessage, AnswerRecord, NXDOMAIN, Question, RecordData, RecordKind};
use crate::net::dns::servers::ServerAnswer;

/// How many CNAMEs are followed, as resolvers do.
pub const MAX_CHAIN: usize = 16;

/// How many records of one answer are looked at: more than any honest answer has.
pub const MAX_RECORDS: usize = 256;

/// How many further queries are sent for the targets of aliases.
pub(crate) const MAX_FURTHER_QUERIES: usize = 8;

/// The way from a name to its records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AliasChain {
    /// What is asked now.
    pub(crate) question: Question,
    /// Whether the resolver validated all answers so far.
    pub(crate) authentic: bool,
    /// Whether each answer so far came to a query with EDNS, or is validated.
    pub(crate) with_edns: bool,
    /// How long all of it holds, in seconds.
    pub(crate) ttl: u32,
    aliases: usize,
    answers: usize,
}

/// What follows from an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ChainStep {
    /// The chain has an end.
    End(ChainEnd),
    /// The target of an alias is to be asked next.
    AskNext,
}

/// What there is at the end of the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ChainEnd {
    /// These records.
    Records(Vec<RecordData>),
    /// None of that type.
    NoRecords {
        /// How long that holds, in seconds, if the answer says it.
        ttl: Option<u32>,
        /// Whether there is no such name.
        no_such_domain: bool,
    },
}

impl AliasChain {
    /// Begins with a question.
    pub(crate) fn new(question: Question) -> AliasChain {
        AliasChain { question, authentic: true, with_edns: true, ttl: u32::MAX, aliases: 0, answers: 0 }
    }

    /// Takes the next answer. Fails with a text for people.
    pub(crate) fn follow(&mut self, answer: &ServerAnswer) -> Result<ChainStep, String> {
        let ServerAnswer { message, edns } = answer;
        self.answers += 1;
        self.authentic &= message.authentic;
        self.with_edns &= *edns || message.authentic;
        let about = |name: &str| {
            let undecodable = message.undecodable.iter().any(|(owner, _)| owner == name || owner.is_empty());
            undecodable || message.records.iter().any(|record| record.owner == name)
        };
        let says_nothing = message.records.is_empty() && message.undecodable.is_empty();
        if !says_nothing && !about(&self.question.name) {
            // Not "there is none": nothing was said of this name.
            return Err("the answer is about another name".into());
        }
        let before = self.aliases;
        while let Some((target, ttl)) = self.alias(&message.records) {
            self.aliases += 1;
            if self.aliases > MAX_CHAIN {
                return Err("the CNAMEs lead nowhere".into());
            }
            self.ttl = self.ttl.min(ttl);
            self.question.name = target;
        }
        let here = message.records.iter().filter(|record| record.owner == self.question.name);
        let found: Vec<&AnswerRecord> =
            here.filter(|record| is_of_kind(&record.data, self.question.kind)).take(MAX_RECORDS).collect();
        if let Some(ttl) = found.iter().map(|record| record.ttl).min() {
            self.ttl = self.ttl.min(ttl);
            let records = found.into_iter().map(|record| record.data.clone()).collect();
            return Ok(ChainStep::End(ChainEnd::Records(records)));
        }
        if self.lacks_undecodable(message) {
            return Err(format!("no {} record of {} can be decoded", self.question.kind, self.question.name));
        }
        let no_such_domain = message.rcode == NXDOMAIN;
        let says_none = message.negative.as_ref().is_some_and(|(_, apex)| is_below(&self.question.name, apex));
        if self.aliases > before && !no_such_domain && !says_none {
            if self.answers > MAX_FURTHER_QUERIES {
                return Err("the CNAMEs lead nowhere".into());
            }
            return Ok(ChainStep::AskNext);
        }
        let ttl = message.negative.as_ref().map(|(ttl, _)| *ttl);
        Ok(ChainStep::End(ChainEnd::NoRecords { ttl, no_such_domain }))
    }

    /// Where the name is an alias to, unless aliases are what is asked for.
    fn alias(&self, records: &[AnswerRecord]) -> Option<(String, u32)> {
        records.iter().filter(|_| self.question.kind != RecordKind::Cname).find_map(|record| match &record.data {
            RecordData::Alias(target) if record.owner == self.question.name => Some((target.clone(), record.ttl)),
            _ => None,
        })
    }

    /// Whether there was a record at the end of the chain that could not be decoded, and that would have counted.
    fn lacks_undecodable(&self, message: &AnswerMessage) -> bool {
        let counts = |kind: u16| kind == self.question.kind.number() || kind == RecordKind::Cname.number();
        let here = |owner: &str| owner == self.question.name || owner.is_empty();
        message.undecodable.iter().any(|(owner, kind)| here(owner) && counts(*kind))
    }
}

fn is_of_kind(data: &RecordData, kind: RecordKind) -> bool {
    match data {
        RecordData::Address(ip) => kind == if ip.is_ipv4() { RecordKind::A } else { RecordKind::Aaaa },
        RecordData::NameServer(_) => kind == RecordKind::Ns,
        RecordData::Alias(_) => kind == RecordKind::Cname,
        RecordData::Exchange(..) => kind == RecordKind::Mx,
        RecordData::Text(_) => kind == RecordKind::Txt,
        RecordData::Tlsa(_) => kind == RecordKind::Tlsa,
    }
}

/// Whether a name is the apex or below it.
fn is_below(name: &str, apex: &str) -> bool {
    apex == "." || name.strip_suffix(apex).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer: records as `owner>target` or `owner=1`, each an alias or an address; `no` is the apex of a SOA record.
    fn answer(records: &str, rcode: u16, no: Option<&str>) -> ServerAnswer {
        let record = |text: &str| match text.split_once('>') {
            Some((owner, target)) => {
                AnswerRecord { owner: owner.into(), ttl: 50, data: RecordData::Alias(target.into()) }
            }
            None => {
                let (owner, last) = text.split_once('=').unwrap();
                let ip = format!("192.0.2.{last}").parse().unwrap();
                AnswerRecord { owner: owner.into(), ttl: 60, data: RecordData::Address(ip) }
            }
        };
        let message = AnswerMessage {
            id: 0,
            question: None,
            rcode,
            truncated: false,
            authentic: true,
            records: records.split_whitespace().map(record).collect(),
            undecodable: Vec::new(),
            negative: no.map(|apex| (30, apex.to_owned())),
            extended_error: None,
        };
        ServerAnswer { message, edns: true }
    }

    fn chain() -> AliasChain {
        AliasChain::new(Question::new("a.test", RecordKind::A).unwrap())
    }

    fn addresses(last: &[u8]) -> ChainStep {
        let records = last.iter().map(|n| RecordData::Address([192, 0, 2, *n].into())).collect();
        ChainStep::End(ChainEnd::Records(records))
    }

    fn none(ttl: Option<u32>, no_such_domain: bool) -> ChainStep {
        ChainStep::End(ChainEnd::NoRecords { ttl, no_such_domain })
    }

    #[test]
    fn aliases_are_followed_in_whatever_order_they_come() {
        let mut whole = chain();
        let step = whole.follow(&answer("c.test=1 b.test>c.test a.test>b.test c.test=2 d.test=3", 0, None));
        assert_eq!(step, Ok(addresses(&[1, 2])));
        assert_eq!((whole.question.name.as_str(), whole.ttl), ("c.test", 50));
    }

    #[test]
    fn an_alias_without_its_target_is_asked_further() {
        let mut parts = chain();
        assert_eq!(parts.follow(&answer("a.test>b.test", 0, None)), Ok(ChainStep::AskNext));
        assert_eq!(parts.question.name, "b.test");
        let mut unsigned = answer("b.test=1", 0, None);
        unsigned.message.authentic = false;
        assert_eq!(parts.follow(&unsigned), Ok(addresses(&[1])));
        assert!(!parts.authentic, "one unsigned answer makes all of it unsigned");
    }

    #[test]
    fn an_alias_whose_target_is_said_to_have_none_is_not() {
        for (rcode, no, want) in [
            (0, Some("test"), none(Some(30), false)),
            (3, None, none(None, true)),
            // The SOA record of another zone says nothing of the target.
            (0, Some("a.test"), ChainStep::AskNext),
            (0, Some("est"), ChainStep::AskNext),
        ] {
            assert_eq!(chain().follow(&answer("a.test>b.test", rcode, no)), Ok(want), "{rcode} {no:?}");
        }
    }

    #[test]
    fn chains_end() {
        let lost = Err("the CNAMEs lead nowhere".to_owned());
        assert_eq!(chain().follow(&answer("a.test>a.test", 0, None)), lost);
        assert_eq!(chain().follow(&answer("a.test>b.test b.test>a.test", 0, None)), lost);
        let mut parts = chain();
        for n in 0..MAX_FURTHER_QUERIES {
            let text = format!("{}>n{n}.test", parts.question.name);
            assert_eq!(parts.follow(&answer(&text, 0, None)), Ok(ChainStep::AskNext));
        }
        let text = format!("{}>a.test", parts.question.name);
        assert_eq!(parts.follow(&answer(&text, 0, None)), lost);
    }

    #[test]
    fn nothing_that_can_be_decoded_is_not_nothing() {
        let mut alone = answer("", 0, None);
        alone.message.undecodable = vec![("a.test".into(), RecordKind::A.number())];
        assert_eq!(chain().follow(&alone), Err("no A record of a.test can be decoded".into()));
        let mut beside = answer("a.test=1", 0, None);
        beside.message.undecodable = vec![("a.test".into(), RecordKind::A.number())];
        assert_eq!(chain().follow(&beside), Ok(addresses(&[1])));
        let mut other_type = answer("", 0, Some("test"));
        other_type.message.undecodable = vec![("a.test".into(), RecordKind::Txt.number())];
        assert_eq!(chain().follow(&other_type), Ok(none(Some(30), false)));
    }

    #[test]
    fn an_answer_about_another_name_is_no_answer() {
        assert_eq!(chain().follow(&answer("b.test=1", 0, None)), Err("the answer is about another name".into()));
    }
}
