//! Which answer: the table of decisions, for each own level of Postfix and for Exim.
//!
//! Takes: what the MX hosts have ([`Coverage`]), whether an MTA-STS policy is enforced, the level that the host has by
//! itself. Gives: an [`Answer`] for Postfix, an [`EximAnswer`] for Exim. Pure.
//! No answer is weaker than what was published, nor than the own level, but for row 3 at `encrypt` and above: Postfix has
//! no answer that means DANE at one host and the own level at another.
//! Postfix applies one answer to all hosts of a next hop (the key is the next hop): under `dane` a host without TLSA
//! records gets `may`, one with unusable ones `encrypt`, and one whose TLSA look-up fails no mail (smtp_tls_policy.c).
//! Exim decides for each host by itself.
//! Not here: looking anything up (`dane`, `sts`), for how long a decision stands (`decide`), the words (`reply`).

use std::sync::Arc;

use crate::answering::policy::dane::coverage::Coverage;
use crate::answering::policy::history::compact::StoredPolicy;
use crate::answering::policy::sts::policy::{PolicyFailure, StsPolicy};
use crate::answering::policy::sts::text::PolicyText;
use crate::base::tlsrpt::{Failure, Mode};
use crate::config::{InsecureMxPolicy, PostfixLevel, PostfixSection, PostfixVersion};
use crate::metrics::answers::AnswerKind;

/// What Postfix is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// `NOTFOUND`: the own level.
    OwnLevel,
    /// `encrypt`.
    Encrypt,
    /// `dane`: DANE at each host that has TLSA records.
    Dane,
    /// `dane-only`: DANE at every host.
    DaneOnly,
    /// `secure`: the MTA-STS policy.
    Secure,
    /// `secure` for those hosts only that the policy allows and that have no usable TLSA records.
    SecureNarrowed,
    /// `TEMP`: not known, the mail waits.
    Temp,
}

/// What Exim is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EximAnswer {
    /// `mode=enforce dane=no`, with the patterns of the policy.
    Enforce,
    /// `mode=testing dane=no`, with the patterns of the policy.
    Testing,
    /// `mode=none dane=no`.
    NoPolicy,
    /// `mode=none dane=try`: DANE at each host that has TLSA records.
    TryDane,
    /// `mode=none dane=require`: DANE at every host.
    RequireDane,
    /// `mode=defer`: not known, the mail waits.
    Defer,
}

/// TLSA records of exactly 3 bytes, which have no data: Postfix asks for a memory block of no bytes and ends (`panic:
/// mymalloc: requested length 0`), where it looks them up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum DatalessTlsa {
    /// There are none.
    #[default]
    Absent,
    /// There are some, and no usable record at any host.
    Alone,
    /// There are some, and usable records too.
    BesideUsable,
}

/// What is known of the Postfix that asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PostfixTraits {
    /// Its `smtp_tls_security_level`.
    pub own_level: PostfixLevel,
    /// Whether it knows the `policy_*` attributes.
    pub attributes: bool,
    /// Whether, told `dane`, it follows TLSA records under unsigned MX records (`smtp_tls_dane_insecure_mx_policy`).
    pub dane_under_unsigned_mx: bool,
    /// Whether a TLSA record without data ends it.
    pub ends_at_dataless_tlsa: bool,
    /// Whether it crashes at `policy_type=sts` without a `policy_string` or without an `mx_host_pattern`.
    pub crashes_without_policy_details: bool,
}

/// What the answer follows from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The row.
    pub coverage: Coverage,
    /// Whether there are TLSA records without data.
    pub dataless: DatalessTlsa,
    /// The mode of the MTA-STS policy, if there is one.
    pub sts: Option<Mode>,
    /// Whether the policy allows a host without usable TLSA records whose look-up did not fail.
    pub allows_host_without_tlsa: bool,
}

impl Facts {
    /// The cell of the table.
    pub fn for_postfix(&self, own: PostfixLevel, postfix: PostfixTraits) -> Answer {
        if matches!(own, PostfixLevel::Fingerprint | PostfixLevel::Unknown) {
            return Answer::OwnLevel;
        }
        let answer = match self.sts {
            Some(Mode::Enforce) => self.enforced(own),
            Some(Mode::Testing | Mode::None) | None => self.not_enforced(own, postfix),
        };
        if postfix.ends_at_dataless_tlsa { self.without_dataless(answer, own, postfix) } else { answer }
    }

    /// No MTA-STS, mode `none` or `testing`.
    #[rustfmt::skip]
    fn not_enforced(&self, own: PostfixLevel, postfix: PostfixTraits) -> Answer {
        use Answer::{Dane, DaneOnly, Encrypt, OwnLevel as Own, Temp};
        let insecure_mx = if postfix.dane_under_unsigned_mx { Dane } else { Own };
        let row = match self.coverage {
            //                                        none, may    encrypt   dane      dane-only verify, secure
            Coverage::AllHosts                     => [DaneOnly,    DaneOnly, DaneOnly, DaneOnly, DaneOnly],
            Coverage::BestHosts                    => [Dane,        DaneOnly, Own,      Own,      DaneOnly],
            Coverage::WorseHosts                   => [Dane,        Own,      Own,      Own,      Own],
            Coverage::Unusable { every_host: true } => [Encrypt,    Own,      Own,      Own,      Own],
            Coverage::Unusable { every_host: false } => [Dane,      Own,      Own,      Own,      Own],
            Coverage::SomeFailed                   => [Dane,        Temp,     Own,      Own,      Own],
            Coverage::AllFailed                    => [Temp,        Temp,     Temp,     Temp,     Own],
            Coverage::NoTlsa                       => [Own,         Own,      Own,      Own,      Own],
            Coverage::UnsignedMx                   => [insecure_mx, Own,      Own,      Own,      Own],
            Coverage::UnsignedFailed               => [Own,         Own,      Own,      Own,      Own],
            Coverage::MxFailed | Coverage::NoAddress => [Temp,      Temp,     Temp,     Temp,     Temp],
        };
        row[match own {
            PostfixLevel::None | PostfixLevel::May => 0,
            PostfixLevel::Encrypt => 1,
            PostfixLevel::Dane => 2,
            PostfixLevel::DaneOnly => 3,
            PostfixLevel::Verify | PostfixLevel::Secure | PostfixLevel::Fingerprint | PostfixLevel::Unknown => 4,
        }]
    }

    /// MTA-STS in mode `enforce`.
    #[rustfmt::skip]
    fn enforced(&self, own: PostfixLevel) -> Answer {
        use Answer::{DaneOnly, OwnLevel as Own, Secure, SecureNarrowed, Temp};
        let narrowed_or = |none_left| if self.allows_host_without_tlsa { SecureNarrowed } else { none_left };
        let (others, dane_only) = match self.coverage {
            //                                             all but dane-only      dane-only
            Coverage::AllHosts | Coverage::BestHosts   => (DaneOnly,              DaneOnly),
            Coverage::WorseHosts                       => (narrowed_or(DaneOnly), Own),
            // At dane-only the administrator demands DNSSEC.
            Coverage::Unusable { .. }
            | Coverage::NoTlsa
            | Coverage::UnsignedMx
            | Coverage::UnsignedFailed                 => (Secure,                Own),
            Coverage::SomeFailed                       => (narrowed_or(Temp),     Own),
            // MTA-STS must not override a failing DANE validation (RFC 8461 §2).
            Coverage::AllFailed                        => (Temp,                  Temp),
            Coverage::MxFailed | Coverage::NoAddress   => (Temp,                  Temp),
        };
        if own == PostfixLevel::DaneOnly { dane_only } else { others }
    }

    /// The answer in place of one that makes smtp(8) look up a TLSA record without data.
    fn without_dataless(&self, answer: Answer, own: PostfixLevel, postfix: PostfixTraits) -> Answer {
        let enforced = self.sts == Some(Mode::Enforce);
        let all_unusable = match self.coverage {
            Coverage::Unusable { .. } => true,
            // Unsigned MX records: below `dane` they are not looked up.
            Coverage::NoTlsa => own == PostfixLevel::Dane && postfix.dane_under_unsigned_mx,
            _ => false,
        };
        match self.dataless {
            DatalessTlsa::Absent => answer,
            DatalessTlsa::Alone if all_unusable && !enforced => match own {
                PostfixLevel::None | PostfixLevel::May | PostfixLevel::Encrypt | PostfixLevel::Dane => Answer::Encrypt,
                PostfixLevel::DaneOnly => Answer::Temp,
                PostfixLevel::Verify | PostfixLevel::Secure | PostfixLevel::Fingerprint | PostfixLevel::Unknown => {
                    Answer::OwnLevel
                }
            },
            _ if self.follows_tlsa(answer, own, postfix) => Answer::Temp,
            _ => answer,
        }
    }

    /// Whether Postfix, told this, looks up TLSA records.
    pub fn follows_tlsa(&self, answer: Answer, own: PostfixLevel, postfix: PostfixTraits) -> bool {
        let signed = !matches!(self.coverage, Coverage::NoTlsa | Coverage::UnsignedMx | Coverage::UnsignedFailed);
        match (answer, own) {
            (Answer::DaneOnly, _) | (Answer::OwnLevel, PostfixLevel::DaneOnly) => signed,
            (Answer::Dane, _) | (Answer::OwnLevel, PostfixLevel::Dane) => signed || postfix.dane_under_unsigned_mx,
            _ => false,
        }
    }

    /// Whether the own level holds in row 3 although it gives a less preferred host less than its TLSA records ask for.
    pub fn own_level_is_weaker_at_some_host(&self, own: PostfixLevel, postfix: PostfixTraits) -> bool {
        let above = matches!(own, PostfixLevel::Encrypt | PostfixLevel::Verify | PostfixLevel::Secure);
        above && self.coverage == Coverage::WorseHosts && self.for_postfix(own, postfix) == Answer::OwnLevel
    }

    /// What Exim is told: never narrowed, and never deferred because of one host.
    pub fn for_exim(&self) -> EximAnswer {
        match (self.coverage, self.sts) {
            (Coverage::AllHosts, _) => EximAnswer::RequireDane,
            (Coverage::MxFailed, _) => EximAnswer::Defer,
            (_, Some(Mode::Enforce)) => EximAnswer::Enforce,
            (Coverage::NoTlsa, Some(Mode::Testing)) => EximAnswer::Testing,
            (Coverage::NoTlsa, Some(Mode::None) | None) => EximAnswer::NoPolicy,
            (_, Some(Mode::Testing | Mode::None) | None) => EximAnswer::TryDane,
        }
    }
}

impl PostfixTraits {
    /// What the configuration says, or what was asked of `postconf`.
    pub fn of(section: &PostfixSection) -> PostfixTraits {
        PostfixTraits {
            own_level: section.default_level(),
            attributes: section.version() >= ATTRIBUTES_SINCE,
            dane_under_unsigned_mx: section.dane_insecure_mx_policy() == InsecureMxPolicy::Dane,
            ends_at_dataless_tlsa: section.version().ends_at_dataless_tlsa(),
            // postconf(1) tells the patch level; where only "3.10" is configured, reports keep their attributes.
            crashes_without_policy_details: section.version().patch.is_some()
                && section.version().crashes_without_policy_details(),
        }
    }
}

/// What was decided for a next hop; the answer follows with the own level of the service that asks.
#[derive(Clone, Debug)]
pub struct Decision {
    /// The policy domain.
    pub domain: Arc<str>,
    /// What it rests on.
    pub basis: Basis,
    /// The MTA-STS policy in force, in mode `enforce` or `testing`.
    pub sts: Option<Arc<StsPolicy>>,
    /// The MTA-STS document could not be had, whatever the answer rests on.
    pub failure: Option<Arc<PolicyFailure>>,
}

/// What a decision rests on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Basis {
    /// What the administrator has set, in the words of Postfix.
    Override(Arc<str>),
    /// What is published.
    Published(Published),
}

/// What is published, as far as DNS can say it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The row of the table.
    pub coverage: Coverage,
    /// Whether there are TLSA records without data.
    pub dataless: DatalessTlsa,
    /// What most decisions have none of.
    pub details: Option<Arc<PublishedDetails>>,
}

/// What some decisions have besides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PublishedDetails {
    /// The first cause of what is not known.
    pub cause: String,
    /// The hosts without usable TLSA records that an enforced MTA-STS policy allows, where others have some or failed.
    pub narrowed: Vec<String>,
}

impl Published {
    /// No TLSA records and no failure.
    pub const NOTHING: Published =
        Published { coverage: Coverage::NoTlsa, dataless: DatalessTlsa::Absent, details: None };

    /// A row, with the cause of what is not known, and the hosts that a narrowed answer may allow.
    pub fn new(coverage: Coverage, dataless: DatalessTlsa, cause: &str, narrowed: Vec<String>) -> Published {
        let cause = if coverage.is_failure() { cause.to_owned() } else { String::new() };
        let some = !cause.is_empty() || !narrowed.is_empty();
        Published { coverage, dataless, details: some.then(|| Arc::new(PublishedDetails { cause, narrowed })) }
    }

    /// Nothing is known, for this cause.
    pub fn unknown(cause: &str) -> Published {
        Published::new(Coverage::MxFailed, DatalessTlsa::Absent, cause, Vec::new())
    }

    /// The first cause of what is not known.
    pub fn cause(&self) -> &str {
        let cause = self.details.as_ref().map_or("", |details| &details.cause);
        match (cause, self.coverage) {
            ("", Coverage::NoAddress) => "no MX host has an address",
            ("", _) if self.dataless != DatalessTlsa::Absent => "a TLSA record without data, which ends this Postfix",
            ("", _) => "not known",
            (cause, _) => cause,
        }
    }

    /// The hosts that a narrowed answer allows.
    pub fn narrowed(&self) -> &[String] {
        self.details.as_ref().map_or(&[], |details| &details.narrowed)
    }

    /// What the answer follows from.
    pub fn facts(&self, sts: Option<Mode>) -> Facts {
        Facts {
            coverage: self.coverage,
            dataless: self.dataless,
            sts,
            allows_host_without_tlsa: !self.narrowed().is_empty(),
        }
    }
}

/// The first Postfix that knows the `policy_*` attributes.
pub const ATTRIBUTES_SINCE: PostfixVersion = PostfixVersion::new(3, 10);

impl Decision {
    /// What is published for a next hop without a domain name, and for one that an override excepts: nothing.
    pub(super) fn no_policy() -> Decision {
        Decision::from_basis(Basis::Published(Published::NOTHING))
    }

    /// Nothing is known, for this cause.
    pub(super) fn temp(cause: &str) -> Decision {
        Decision::from_basis(Basis::Published(Published::unknown(cause)))
    }

    pub(super) fn from_basis(basis: Basis) -> Decision {
        Decision { domain: "".into(), basis, sts: None, failure: None }
    }

    /// A decision as it would be made for such a policy.
    #[cfg(test)]
    pub(crate) fn for_tests(domain: &str, published: Published, sts: Option<Arc<StsPolicy>>) -> Decision {
        Decision { domain: domain.into(), sts, ..Decision::from_basis(Basis::Published(published)) }
    }

    /// What the answer follows from; nothing where an override says it.
    pub fn facts(&self) -> Option<Facts> {
        facts(&self.basis, self.sts.as_deref())
    }
}

/// What the answer follows from; nothing where an override says it.
pub fn facts(basis: &Basis, sts: Option<&StsPolicy>) -> Option<Facts> {
    match basis {
        Basis::Override(_) => None,
        Basis::Published(published) => Some(published.facts(sts.map(|policy| policy.mode))),
    }
}

/// The kind of answer that Postfix gets at a level.
pub fn kind_for_postfix(facts: Option<Facts>, own: PostfixLevel, postfix: PostfixTraits) -> AnswerKind {
    let Some(facts) = facts else { return AnswerKind::Override };
    match facts.for_postfix(own, postfix) {
        Answer::OwnLevel if facts.sts == Some(Mode::Testing) => AnswerKind::Testing,
        Answer::OwnLevel => AnswerKind::None,
        Answer::Secure | Answer::SecureNarrowed => AnswerKind::Enforce,
        Answer::Dane | Answer::Encrypt => AnswerKind::Dane,
        Answer::DaneOnly => AnswerKind::DaneOnly,
        Answer::Temp => AnswerKind::Temp,
    }
}

/// The kind of answer that Exim gets.
pub fn kind_for_exim(facts: Option<Facts>) -> AnswerKind {
    let Some(facts) = facts else { return AnswerKind::Override };
    match facts.for_exim() {
        EximAnswer::Enforce => AnswerKind::Enforce,
        EximAnswer::Testing => AnswerKind::Testing,
        EximAnswer::NoPolicy => AnswerKind::None,
        EximAnswer::TryDane => AnswerKind::Dane,
        EximAnswer::RequireDane => AnswerKind::DaneOnly,
        EximAnswer::Defer => AnswerKind::Temp,
    }
}

impl StsPolicy {
    /// This policy, though a newer document could perhaps not be had.
    pub(super) fn stored_policy(&self, failure: Option<&PolicyFailure>) -> StoredPolicy {
        let fallback = |failure: &PolicyFailure| {
            let reason = format!("{}+fallback-to-cached-policy", failure.reason);
            Arc::new(Failure::new(failure.result_type, Some(&reason)))
        };
        StoredPolicy::Sts { mode: self.mode, text: self.text.clone(), failure: failure.map(fallback) }
    }
}

impl PolicyFailure {
    /// No policy, because the document could not be had: the sessions are counted under what was served of it.
    pub(super) fn stored_policy(&self, domain: &str) -> StoredPolicy {
        let failure = Arc::new(Failure::new(self.result_type, Some(&self.reason)));
        StoredPolicy::Sts { mode: Mode::None, text: PolicyText::new(domain, &self.lines), failure: Some(failure) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No MTA-STS, mode `none` or `testing`. `insecure`: `dane` where smtp_tls_dane_insecure_mx_policy is `dane`.
    const NOT_ENFORCED: &str = "
        row               | none, may | encrypt   | dane      | dane-only | verify, secure
        1                 | dane-only | dane-only | dane-only | dane-only | dane-only
        2                 | dane      | dane-only | NOTFOUND  | NOTFOUND  | dane-only
        3                 | dane      | NOTFOUND  | NOTFOUND  | NOTFOUND  | NOTFOUND
        4 every host      | encrypt   | NOTFOUND  | NOTFOUND  | NOTFOUND  | NOTFOUND
        4 not every host  | dane      | NOTFOUND  | NOTFOUND  | NOTFOUND  | NOTFOUND
        5                 | dane      | TEMP      | NOTFOUND  | NOTFOUND  | NOTFOUND
        6                 | TEMP      | TEMP      | TEMP      | TEMP      | NOTFOUND
        7                 | NOTFOUND  | NOTFOUND  | NOTFOUND  | NOTFOUND  | NOTFOUND
        8                 | insecure  | NOTFOUND  | NOTFOUND  | NOTFOUND  | NOTFOUND
        9                 | NOTFOUND  | NOTFOUND  | NOTFOUND  | NOTFOUND  | NOTFOUND
        10                | TEMP      | TEMP      | TEMP      | TEMP      | TEMP
        no address        | TEMP      | TEMP      | TEMP      | TEMP      | TEMP";

    /// MTA-STS in mode `enforce`; in rows 3 and 5 with a host that the policy allows and that has no usable TLSA records,
    /// and without one.
    const ENFORCED: &str = "
        row               | none, may, encrypt, dane, verify, secure | dane-only
        1                 | dane-only | dane-only
        2                 | dane-only | dane-only
        3                 | narrowed  | NOTFOUND
        3 none left       | dane-only | NOTFOUND
        4 every host      | secure    | NOTFOUND
        4 not every host  | secure    | NOTFOUND
        5                 | narrowed  | NOTFOUND
        5 none left       | TEMP      | NOTFOUND
        6                 | TEMP      | TEMP
        7                 | secure    | NOTFOUND
        8                 | secure    | NOTFOUND
        9                 | secure    | NOTFOUND
        10                | TEMP      | TEMP
        no address        | TEMP      | TEMP";

    /// All TLSA records are without data; with usable ones beside them.
    const DATALESS: &str = "
        row               | none, may | encrypt  | dane     | dane-only | verify, secure
        alone             | encrypt   | encrypt  | encrypt  | TEMP      | NOTFOUND
        beside, row 1     | TEMP      | TEMP     | TEMP     | TEMP      | TEMP
        beside, row 2     | TEMP      | TEMP     | TEMP     | TEMP      | TEMP
        beside, row 3     | TEMP      | NOTFOUND | TEMP     | TEMP      | NOTFOUND
        alone, row 5      | TEMP      | TEMP     | TEMP     | TEMP      | NOTFOUND
        alone, unsigned   | NOTFOUND  | NOTFOUND | encrypt  | NOTFOUND  | NOTFOUND";

    const EXIM: &str = "
        row               | no policy            | testing              | enforce
        1                 | mode=none require    | mode=none require    | mode=none require
        2                 | mode=none try        | mode=none try        | mode=enforce
        3                 | mode=none try        | mode=none try        | mode=enforce
        4 every host      | mode=none try        | mode=none try        | mode=enforce
        4 not every host  | mode=none try        | mode=none try        | mode=enforce
        5                 | mode=none try        | mode=none try        | mode=enforce
        6                 | mode=none try        | mode=none try        | mode=enforce
        7                 | mode=none no         | mode=testing         | mode=enforce
        8                 | mode=none try        | mode=none try        | mode=enforce
        9                 | mode=none try        | mode=none try        | mode=enforce
        10                | mode=defer           | mode=defer           | mode=defer
        no address        | mode=none try        | mode=none try        | mode=enforce";

    const OLDER: PostfixTraits = PostfixTraits {
        own_level: PostfixLevel::May,
        attributes: false,
        dane_under_unsigned_mx: false,
        ends_at_dataless_tlsa: false,
        crashes_without_policy_details: false,
    };
    const NEWER: PostfixTraits = PostfixTraits { attributes: true, dane_under_unsigned_mx: true, ..OLDER };

    /// The cells: the first column, the levels that the column is for, what stands there.
    fn cells(table: &str) -> Vec<(&str, &str, &str)> {
        let row = |line: &'static str| line.split('|').map(str::trim).collect::<Vec<_>>();
        let table: &'static str = String::from(table).leak();
        let mut lines = table.lines().map(str::trim).filter(|line| !line.is_empty()).map(row);
        let head = lines.next().unwrap();
        lines
            .flat_map(|line| {
                assert_eq!(line.len(), head.len(), "{line:?}");
                let cell = |n: usize| (line[0], head[n], line[n]);
                (1..head.len()).map(cell).collect::<Vec<_>>()
            })
            .collect()
    }

    fn coverage(row: &str) -> Coverage {
        match row.trim_end_matches(" none left") {
            "1" => Coverage::AllHosts,
            "2" => Coverage::BestHosts,
            "3" => Coverage::WorseHosts,
            "4 every host" => Coverage::Unusable { every_host: true },
            "4 not every host" => Coverage::Unusable { every_host: false },
            "5" => Coverage::SomeFailed,
            "6" => Coverage::AllFailed,
            "7" => Coverage::NoTlsa,
            "8" => Coverage::UnsignedMx,
            "9" => Coverage::UnsignedFailed,
            "10" => Coverage::MxFailed,
            "no address" => Coverage::NoAddress,
            other => panic!("{other}"),
        }
    }

    fn levels(column: &str) -> impl Iterator<Item = PostfixLevel> {
        column.split(", ").map(|name| PostfixLevel::from_name(name).unwrap())
    }

    fn word(answer: Answer) -> &'static str {
        match answer {
            Answer::OwnLevel => "NOTFOUND",
            Answer::Encrypt => "encrypt",
            Answer::Dane => "dane",
            Answer::DaneOnly => "dane-only",
            Answer::Secure => "secure",
            Answer::SecureNarrowed => "narrowed",
            Answer::Temp => "TEMP",
        }
    }

    fn facts(row: &str, sts: Option<Mode>) -> Facts {
        let allows_host_without_tlsa = !row.ends_with(" none left");
        Facts { coverage: coverage(row), dataless: DatalessTlsa::Absent, sts, allows_host_without_tlsa }
    }

    #[test]
    fn each_cell_without_an_enforced_policy() {
        for (row, column, want) in cells(NOT_ENFORCED) {
            for own in levels(column) {
                for sts in [None, Some(Mode::None), Some(Mode::Testing)] {
                    for (postfix, insecure) in [(OLDER, "NOTFOUND"), (NEWER, "dane")] {
                        let want = if want == "insecure" { insecure } else { want };
                        let got = word(facts(row, sts).for_postfix(own, postfix));
                        assert_eq!(got, want, "row {row}, {own:?}, {sts:?}, {postfix:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn each_cell_with_an_enforced_policy() {
        for (row, column, want) in cells(ENFORCED) {
            for own in levels(column) {
                for postfix in [OLDER, NEWER] {
                    let got = word(facts(row, Some(Mode::Enforce)).for_postfix(own, postfix));
                    assert_eq!(got, want, "row {row}, {own:?}, {postfix:?}");
                }
            }
        }
    }

    #[test]
    fn at_fingerprint_and_unknown_levels_the_own_level_holds() {
        for (row, ..) in cells(ENFORCED) {
            for own in [PostfixLevel::Fingerprint, PostfixLevel::Unknown] {
                for sts in [None, Some(Mode::None), Some(Mode::Testing), Some(Mode::Enforce)] {
                    for postfix in [OLDER, NEWER, PostfixTraits { ends_at_dataless_tlsa: true, ..OLDER }] {
                        let facts = Facts { dataless: DatalessTlsa::BesideUsable, ..facts(row, sts) };
                        assert_eq!(facts.for_postfix(own, postfix), Answer::OwnLevel, "row {row}, {own:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn each_cell_for_exim() {
        for (row, column, want) in cells(EXIM) {
            let sts = match column {
                "no policy" => vec![None, Some(Mode::None)],
                "testing" => vec![Some(Mode::Testing)],
                _ => vec![Some(Mode::Enforce)],
            };
            for sts in sts {
                let got = match facts(row, sts).for_exim() {
                    EximAnswer::Enforce => "mode=enforce",
                    EximAnswer::Testing => "mode=testing",
                    EximAnswer::NoPolicy => "mode=none no",
                    EximAnswer::TryDane => "mode=none try",
                    EximAnswer::RequireDane => "mode=none require",
                    EximAnswer::Defer => "mode=defer",
                };
                assert_eq!(got, want, "row {row}, {sts:?}");
            }
        }
    }

    #[test]
    fn tlsa_records_without_data_are_never_asked_for() {
        let ends = PostfixTraits { ends_at_dataless_tlsa: true, ..NEWER };
        for (row, column, want) in cells(DATALESS) {
            let (coverage, dataless) = match row {
                "alone" => (Coverage::Unusable { every_host: true }, DatalessTlsa::Alone),
                "beside, row 1" => (Coverage::AllHosts, DatalessTlsa::BesideUsable),
                "beside, row 2" => (Coverage::BestHosts, DatalessTlsa::BesideUsable),
                "beside, row 3" => (Coverage::WorseHosts, DatalessTlsa::BesideUsable),
                "alone, row 5" => (Coverage::SomeFailed, DatalessTlsa::Alone),
                _ => (Coverage::NoTlsa, DatalessTlsa::Alone),
            };
            for own in levels(column) {
                let facts = Facts { coverage, dataless, sts: None, allows_host_without_tlsa: true };
                let answer = facts.for_postfix(own, ends);
                assert_eq!(word(answer), want, "{row}, {own:?}");
                assert!(!facts.follows_tlsa(answer, own, ends), "{row}, {own:?}");
                // A Postfix that takes such records gets what any unusable record gets.
                let absent = Facts { dataless: DatalessTlsa::Absent, ..facts };
                assert_eq!(facts.for_postfix(own, NEWER), absent.for_postfix(own, NEWER));
            }
        }
        // Whatever the row, the mode and the level.
        for (row, ..) in cells(ENFORCED) {
            for dataless in [DatalessTlsa::Alone, DatalessTlsa::BesideUsable] {
                for sts in [None, Some(Mode::Testing), Some(Mode::Enforce)] {
                    for own in levels("none, may, encrypt, dane, dane-only, verify, secure") {
                        let facts = Facts { dataless, ..facts(row, sts) };
                        let answer = facts.for_postfix(own, ends);
                        assert!(!facts.follows_tlsa(answer, own, ends), "row {row}, {sts:?}, {own:?}");
                    }
                }
            }
        }
    }

    /// What a host gets of Postfix: whether TLS is required, and whether the peer is authenticated.
    fn protection(level: &str, host: char) -> (bool, bool) {
        match (level, host) {
            ("none" | "may", _) => (false, false),
            ("encrypt", _) => (true, false),
            // A host whose TLSA look-up fails gets no mail.
            ("dane", 'u' | 'x') => (true, true),
            ("dane", 'b') => (true, false),
            ("dane", _) => (false, false),
            _ => (true, true),
        }
    }

    #[test]
    fn no_answer_is_weaker_than_the_own_level() {
        use Coverage::*;
        for (coverage, hosts) in [
            (AllHosts, "u"),
            (BestHosts, "unx"),
            (WorseHosts, "nux"),
            (Unusable { every_host: true }, "b"),
            (Unusable { every_host: false }, "bn"),
            (SomeFailed, "nxb"),
            (AllFailed, "x"),
            (NoTlsa, "nb"),
            (UnsignedMx, "un"),
            (UnsignedFailed, "nux"),
        ] {
            for sts in [None, Some(Mode::Testing), Some(Mode::Enforce)] {
                for name in ["none", "may", "encrypt", "dane", "dane-only", "verify", "secure"] {
                    for postfix in [OLDER, NEWER] {
                        let own = PostfixLevel::from_name(name).unwrap();
                        let facts =
                            Facts { coverage, dataless: DatalessTlsa::Absent, sts, allows_host_without_tlsa: true };
                        let answered = match facts.for_postfix(own, postfix) {
                            Answer::OwnLevel | Answer::Temp => continue,
                            Answer::SecureNarrowed => "secure",
                            answer => word(answer),
                        };
                        for host in hosts.chars() {
                            let (got, own) = (protection(answered, host), protection(name, host));
                            assert!(
                                got.0 >= own.0 && got.1 >= own.1,
                                "{coverage:?} {sts:?} {name}: {answered}, {host}"
                            );
                        }
                    }
                }
            }
        }
    }
}
