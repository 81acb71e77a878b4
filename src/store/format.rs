//! What the keys and values in the store mean.
//!
//! Takes: days, domains, policies, failures, counts. Gives: octets that sort as they are asked for, and back.
//! Limits: a key is never longer than [`KEY_LIMIT`]; a value is cut into parts of at most [`PART`] octets.
//! When it fails: octets that no version of this program wrote give [`Malformed`], never a panic.
//! Not here: how octets are kept (`store/embedded.rs`), what other modules put into their records.
//!
//! ```text
//! 'c' DAY DOMAIN 00 POLICY               totals:  01 SUCCESSFUL FAILED
//! 'c' DAY DOMAIN 00 POLICY 01 DIGEST     detail:  01 COUNT FAILURE-AS-JSON
//! 'p' DAY DIGEST                         record:  policy as JSON, once a day however often it is counted
//! 'm' 'o' 's' 't' 'd' 'r' 'q' 'w' '1'  KEY
//!                                        record of a family (mark, open, sts, dane, decision, delivery, due, said, single)
//! '~' LENGTH KEY NUMBER                  one part of a long record
//! '!'                                    seal: COMMITS SUM
//! record value: 01 OCTETS, or 02 PARTS LENGTH
//! DAY: 4 octets, sign flipped; POLICY: 00 (none, of the recipient domain) or 01 DIGEST
//! ```
//! Numbers are big-endian; a digest is the first 16 octets of SHA-256.

use crate::base::tlsrpt::{Day, Failure, Policy};
use crate::store::Family;

/// The number of this layout, raised with each change to it. A store of another one is refused.
pub const VERSION: u32 = 2;

/// Where the version stands, in [`Family::Single`].
pub const VERSION_KEY: &[u8] = b"store-format";

/// The longest key that is kept, in octets: an index page holds 256 of them and must stay under half a mebibyte.
pub const KEY_LIMIT: usize = 1024;

/// The longest value that is kept in one piece, in octets: a leaf holds 17 of them and must stay under half a
/// mebibyte, over which sled writes a file of its own that it never syncs.
pub const PART: usize = 16 * 1024;

/// What a policy or a failure is known by inside a key.
pub type Digest = [u8; 16];

/// Octets that are not in this layout.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub String);

const COUNT: u8 = b'c';
const POLICY: u8 = b'p';
const PARTS: u8 = b'~';
const SEAL: u8 = b'!';
const VALUE: u8 = 1;
const VALUE_IN_PARTS: u8 = 2;
const NO_POLICY: u8 = 0;
const BY_DIGEST: u8 = 1;

/// The key of a family's record.
pub fn record_key(family: Family, key: &[u8]) -> Vec<u8> {
    let tag = match family {
        Family::Mark => b'm',
        Family::Open => b'o',
        Family::Sts => b's',
        Family::Dane => b't',
        Family::Decision => b'd',
        Family::Delivery => b'r',
        Family::Due => b'q',
        Family::Said => b'w',
        Family::Single => b'1',
    };
    [&[tag], key].concat()
}

/// The key of one part of a long record.
pub fn part_key(record: &[u8], number: u32) -> Vec<u8> {
    let length = u32::try_from(record.len()).unwrap_or(u32::MAX);
    [&[PARTS], &length.to_be_bytes()[..], record, &number.to_be_bytes()].concat()
}

/// A record's value as it stands under its key.
#[derive(Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// All of it.
    Whole(&'a [u8]),
    /// In so many parts.
    Parts {
        /// How many.
        parts: u32,
        /// Octets altogether.
        length: u64,
    },
}

impl Value<'_> {
    /// Its octets.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Value::Whole(octets) => [&[VALUE], *octets].concat(),
            Value::Parts { parts, length } => {
                [&[VALUE_IN_PARTS], &parts.to_be_bytes()[..], &length.to_be_bytes()].concat()
            }
        }
    }

    /// Reads it back.
    pub fn decode(octets: &[u8]) -> Result<Value<'_>, Malformed> {
        match octets.split_first() {
            Some((&VALUE, rest)) => Ok(Value::Whole(rest)),
            Some((&VALUE_IN_PARTS, rest)) => {
                let (parts, rest) = rest.split_first_chunk().ok_or_else(|| malformed("value", octets))?;
                let length = rest.try_into().map_err(|_| malformed("value", octets))?;
                Ok(Value::Parts { parts: u32::from_be_bytes(*parts), length: u64::from_be_bytes(length) })
            }
            _ => Err(malformed("value", octets)),
        }
    }
}

/// What stands beside all else and is written with each commit: a store in which it does not add up is damaged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seal {
    /// How many commits the store has taken.
    pub commits: u64,
    /// The sum of the checksums of all keys and values but this one's.
    pub sum: u64,
}

impl Seal {
    /// Its octets.
    pub fn encode(self) -> [u8; 16] {
        (u128::from(self.commits) << 64 | u128::from(self.sum)).to_be_bytes()
    }

    /// Reads it back.
    pub fn decode(octets: &[u8]) -> Result<Seal, Malformed> {
        let both = u128::from_be_bytes(octets.try_into().map_err(|_| malformed("seal", octets))?);
        Ok(Seal { commits: (both >> 64) as u64, sum: both as u64 })
    }
}

/// The key of the seal.
pub fn seal_key() -> Vec<u8> {
    vec![SEAL]
}

/// What a key and its value add to the seal's sum.
pub fn checksum(key: &[u8], value: &[u8]) -> u64 {
    let mut crc = flate2::Crc::new();
    crc.update(key);
    let of_key = crc.sum();
    crc.update(value);
    u64::from(of_key) << 32 | u64::from(crc.sum())
}

/// Which policy a count belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyRef {
    /// None was published, and its policy domain is the recipient domain: by far the most, so it has no record.
    None,
    /// The one with this digest.
    Digest(Digest),
}

/// What is counted under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CountKey {
    /// The UTC day.
    pub day: Day,
    /// The recipient domain.
    pub domain: String,
    /// The policy in force.
    pub policy: PolicyRef,
    /// `None` for the totals, else the digest of the failure.
    pub failure: Option<Digest>,
}

impl CountKey {
    /// Its octets.
    pub fn encode(&self) -> Vec<u8> {
        let mut key = domain_prefix(self.day, &self.domain);
        match &self.policy {
            PolicyRef::None => key.push(NO_POLICY),
            PolicyRef::Digest(digest) => {
                key.push(BY_DIGEST);
                key.extend_from_slice(digest);
            }
        }
        if let Some(failure) = &self.failure {
            key.push(BY_DIGEST);
            key.extend_from_slice(failure);
        }
        key
    }

    /// Reads it back.
    pub fn decode(octets: &[u8]) -> Result<CountKey, Malformed> {
        let wrong = || malformed("count key", octets);
        let rest = octets.strip_prefix(&[COUNT]).ok_or_else(wrong)?;
        let (day, mut rest) = rest.split_first_chunk::<4>().ok_or_else(wrong)?;
        let mut domain = Vec::new();
        loop {
            match rest {
                [0, 0xff, more @ ..] => {
                    domain.push(0);
                    rest = more;
                }
                [0, more @ ..] => {
                    rest = more;
                    break;
                }
                [octet, more @ ..] => {
                    domain.push(*octet);
                    rest = more;
                }
                [] => return Err(wrong()),
            }
        }
        let (tag, rest) = rest.split_first().ok_or_else(wrong)?;
        let (policy, rest) = match *tag {
            NO_POLICY => (PolicyRef::None, rest),
            BY_DIGEST => {
                let (digest, rest) = rest.split_first_chunk::<16>().ok_or_else(wrong)?;
                (PolicyRef::Digest(*digest), rest)
            }
            _ => return Err(wrong()),
        };
        let failure = match rest {
            [] => None,
            [BY_DIGEST, digest @ ..] => Some(digest.try_into().map_err(|_| wrong())?),
            _ => return Err(wrong()),
        };
        let domain = String::from_utf8(domain).map_err(|_| wrong())?;
        Ok(CountKey { day: day_from(*day), domain, policy, failure })
    }
}

/// The first key that counts of a day can have; that of the next day ends them.
pub fn day_prefix(day: Day) -> Vec<u8> {
    [&[COUNT][..], &day_octets(day)].concat()
}

/// The first key that any count can have, and the first beyond them.
pub fn all_counts() -> (Vec<u8>, Vec<u8>) {
    (vec![COUNT], vec![COUNT + 1])
}

/// The first key that counts of a recipient domain can have on a day.
pub fn domain_prefix(day: Day, domain: &str) -> Vec<u8> {
    let mut key = day_prefix(day);
    for octet in domain.bytes() {
        key.push(octet);
        if octet == 0 {
            key.push(0xff);
        }
    }
    key.push(0);
    key
}

/// The first key beyond the counts of a recipient domain on a day.
pub fn domain_end(day: Day, domain: &str) -> Vec<u8> {
    let mut key = domain_prefix(day, domain);
    key.push(BY_DIGEST + 1);
    key
}

/// The key of a policy's text.
pub fn policy_key(day: Day, digest: &Digest) -> Vec<u8> {
    [&[POLICY][..], &day_octets(day), digest].concat()
}

/// The first key that any policy's text can have, and the first that one of `day` can have.
pub fn policies_before(day: Day) -> (Vec<u8>, Vec<u8>) {
    (vec![POLICY], [&[POLICY][..], &day_octets(day)].concat())
}

/// How a policy is named in a count's key, and its text where that needs a record.
pub fn policy_ref(policy: &Policy, domain: &str) -> (PolicyRef, Option<Vec<u8>>) {
    if *policy == Policy::none(domain) {
        return (PolicyRef::None, None);
    }
    let text = json(policy);
    (PolicyRef::Digest(digest(&text)), Some(text))
}

/// Reads a policy's text back.
pub fn policy_from(text: &[u8]) -> Result<Policy, Malformed> {
    serde_json::from_slice(text).map_err(|e| Malformed(format!("a policy's text does not read back ({e})")))
}

/// A failure's text.
pub fn failure_text(failure: &Failure) -> Vec<u8> {
    json(failure)
}

/// The value of totals: sessions that succeeded, and that failed.
pub fn totals(successful: u64, failed: u64) -> Vec<u8> {
    [&[VALUE], &successful.to_be_bytes()[..], &failed.to_be_bytes()].concat()
}

/// Reads totals back.
pub fn totals_from(octets: &[u8]) -> Result<(u64, u64), Malformed> {
    let numbers: [u8; 16] = match octets {
        [VALUE, numbers @ ..] => numbers.try_into().map_err(|_| malformed("totals", octets))?,
        _ => return Err(malformed("totals", octets)),
    };
    let both = u128::from_be_bytes(numbers);
    Ok(((both >> 64) as u64, both as u64))
}

/// The value of a detail: how many sessions failed that way, and the failure's text.
pub fn detail(count: u64, failure: &[u8]) -> Vec<u8> {
    [&[VALUE], &count.to_be_bytes()[..], failure].concat()
}

/// Reads a detail back, the failure as its text.
pub fn detail_from(octets: &[u8]) -> Result<(u64, &[u8]), Malformed> {
    match octets {
        [VALUE, rest @ ..] => {
            let (count, text) = rest.split_first_chunk().ok_or_else(|| malformed("detail", octets))?;
            Ok((u64::from_be_bytes(*count), text))
        }
        _ => Err(malformed("detail", octets)),
    }
}

/// Reads a failure's text back.
pub fn failure_from(text: &[u8]) -> Result<Failure, Malformed> {
    serde_json::from_slice(text).map_err(|e| Malformed(format!("a failure's text does not read back ({e})")))
}

/// The digest of a text.
pub fn digest(text: &[u8]) -> Digest {
    let whole = ring::digest::digest(&ring::digest::SHA256, text);
    let mut cut = Digest::default();
    cut.copy_from_slice(&whole.as_ref()[..16]);
    cut
}

fn json<T: serde::Serialize>(words: &T) -> Vec<u8> {
    // Invariant: structs of strings, addresses and unit variants; no map with other keys, no writer that fails.
    serde_json::to_vec(words).expect("words of RFC 8460 serialise")
}

fn day_octets(day: Day) -> [u8; 4] {
    (day.0.cast_unsigned() ^ 0x8000_0000).to_be_bytes()
}

fn day_from(octets: [u8; 4]) -> Day {
    Day((u32::from_be_bytes(octets) ^ 0x8000_0000).cast_signed())
}

fn malformed(what: &str, octets: &[u8]) -> Malformed {
    let shown = &octets[..octets.len().min(48)];
    Malformed(format!("a {what} of {} octets is not in this layout (`{}`)", octets.len(), shown.escape_ascii()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::base::tlsrpt::{PolicyType, ResultType};

    fn policy_refs() -> impl Strategy<Value = PolicyRef> {
        prop_oneof![Just(PolicyRef::None), any::<Digest>().prop_map(PolicyRef::Digest)]
    }

    fn keys() -> impl Strategy<Value = CountKey> {
        (any::<i32>(), "[a\\x00\\x01b.\u{ff}]{0,6}", policy_refs(), any::<Option<Digest>>())
            .prop_map(|(day, domain, policy, failure)| CountKey { day: Day(day), domain, policy, failure })
    }

    proptest! {
        #[test]
        fn count_keys_read_back_and_sort(a in keys(), b in keys()) {
            prop_assert_eq!(&CountKey::decode(&a.encode()).unwrap(), &a);
            if (a.day, &a.domain) != (b.day, &b.domain) {
                let words = (a.day, a.domain.as_bytes()).cmp(&(b.day, b.domain.as_bytes()));
                prop_assert_eq!(a.encode().cmp(&b.encode()), words);
            }
            for key in [&a, &b] {
                let inside = domain_prefix(a.day, &a.domain)..domain_end(a.day, &a.domain);
                prop_assert_eq!(inside.contains(&key.encode()), (key.day, &key.domain) == (a.day, &a.domain));
            }
        }

        #[test]
        fn strange_octets_are_refused_or_read_back(octets in proptest::collection::vec(any::<u8>(), 0..64)) {
            for key in [octets.clone(), [b"c".to_vec(), octets.clone()].concat()] {
                if let Ok(read) = CountKey::decode(&key) {
                    prop_assert_eq!(read.encode(), key);
                }
            }
            for value in [octets.clone(), [vec![1], octets.clone()].concat(), [vec![2], octets].concat()] {
                if let Ok(read) = Value::decode(&value) {
                    prop_assert_eq!(read.encode(), value.clone());
                }
                if let Ok((s, f)) = totals_from(&value) {
                    prop_assert_eq!(totals(s, f), value.clone());
                }
                if let Ok((n, text)) = detail_from(&value) {
                    prop_assert_eq!(detail(n, text), value.clone());
                    prop_assert!(failure_from(text).is_err());
                    prop_assert!(policy_from(text).is_err());
                }
            }
        }

        #[test]
        fn counts_read_back(a: u64, b: u64, text: Vec<u8>) {
            prop_assert_eq!(totals_from(&totals(a, b)).unwrap(), (a, b));
            let seal = Seal { commits: a, sum: b };
            prop_assert_eq!(Seal::decode(&seal.encode()).unwrap(), seal);
            prop_assert!(Seal::decode(&seal.encode()[1..]).is_err());
            let value = detail(a, &text);
            prop_assert_eq!(detail_from(&value).unwrap(), (a, &text[..]));
        }
    }

    #[test]
    fn texts_read_back() {
        let policy = Policy {
            policy_type: PolicyType::Sts,
            policy_string: vec!["version: STSv1".into(), "mode: enforce".into()],
            policy_domain: "example.com".into(),
            mx_host: vec!["*.example.com".into()],
        };
        let (name, text) = policy_ref(&policy, "example.com");
        let text = text.unwrap();
        assert_eq!(name, PolicyRef::Digest(digest(&text)));
        assert_eq!(policy_from(&text).unwrap(), policy);
        assert_eq!(policy_ref(&Policy::none("a.example"), "a.example"), (PolicyRef::None, None));
        assert!(policy_ref(&Policy::none("a.example"), "b.example").1.is_some());
        let mut failure = Failure::new(ResultType::CertificateExpired, Some("certificate has expired"));
        failure.receiving_ip = Some("2001:db8::1".parse().unwrap());
        assert_eq!(failure_from(&failure_text(&failure)).unwrap(), failure);
    }

    #[test]
    fn parts_of_one_record_are_never_those_of_another() {
        assert_ne!(part_key(b"ra", 0x6200_0000), part_key(b"rab", 0));
        assert!(part_key(b"ra", 1) < part_key(b"ra", 256));
    }
}
