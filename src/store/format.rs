//! What the keys and values in the store mean.
//!
//! Takes: days, domains, policies, failures, counts. Gives: octets that sort as they are asked for, and back.
//! Limits: a key is never longer than [`MAX_KEY`]; a value is cut into parts of at most [`MAX_PART`] octets.
//! When it fails: octets that no version of this program wrote give [`MalformedRecord`], never a panic.
//! Not here: how octets are kept (`store/embedded.rs`), what other modules put into their records.
//!
//! ```text
//! 'c' DAY DOMAIN 00 POLICY               totals:  01 SUCCESSFUL FAILED NULL-SENDER
//! 'c' DAY DOMAIN 00 POLICY 01 DIGEST     detail:  01 COUNT FAILURE-AS-JSON
//! 'p' DAY DIGEST                         record:  policy as JSON, once a day however often it is counted
//! 'm' 'o' 's' 't' 'd' 'r' 'q' 'w' '1'  KEY
//!                                        record of a table (position, open, sts, dane, decision, delivery, due, said, single)
//! '~' LENGTH KEY NUMBER                  one part of a long record
//! '!'                                    store checksum: COMMITS SUM
//! record value: 01 OCTETS, or 02 PARTS LENGTH
//! DAY: 4 octets, sign flipped; POLICY: 00 (none, of the recipient domain) or 01 DIGEST
//! ```
//! Numbers are big-endian; a digest is the first 16 octets of SHA-256.

use crate::base::tlsrpt::{Day, Failure, Policy};
use crate::store::Table;

/// The number of this layout, raised with each change to it. A store of another one is refused.
pub const VERSION: u32 = 4;

/// The key of the version in [`Table::NamedValue`].
pub const VERSION_KEY: &[u8] = b"store-format";

/// The longest key, in octets: an index page holds 256 of them and must stay under half a mebibyte.
pub(crate) const MAX_KEY: usize = 1024;

/// The longest value that is stored as one record, in octets: a leaf holds 17 of them and must stay under half a
/// mebibyte, over which sled writes a file of its own that it never syncs.
pub(crate) const MAX_PART: usize = 16 * 1024;

/// What a policy or a failure is known by inside a key.
pub(crate) type Digest = [u8; 16];

/// Stored octets that are not in this layout.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct MalformedRecord(pub(crate) String);

const COUNT_TAG: u8 = b'c';
const POLICY_TAG: u8 = b'p';
const PART_TAG: u8 = b'~';
const CHECKSUM_TAG: u8 = b'!';
const WHOLE_VALUE: u8 = 1;
const VALUE_IN_PARTS: u8 = 2;
const NO_POLICY: u8 = 0;
const BY_DIGEST: u8 = 1;

/// The key of a table's record.
pub(crate) fn record_key(table: Table, key: &[u8]) -> Vec<u8> {
    let tag = match table {
        Table::Position => b'm',
        Table::OpenState => b'o',
        Table::Sts => b's',
        Table::Dane => b't',
        Table::Decision => b'd',
        Table::Delivery => b'r',
        Table::Due => b'q',
        Table::Snapshot => b'w',
        Table::NamedValue => b'1',
    };
    [&[tag], key].concat()
}

/// The key of one part of a long record.
pub(crate) fn part_key(record: &[u8], number: u32) -> Vec<u8> {
    let length = u32::try_from(record.len()).unwrap_or(u32::MAX);
    [&[PART_TAG], &length.to_be_bytes()[..], record, &number.to_be_bytes()].concat()
}

/// The value that is stored under a record's key.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum StoredValue<'a> {
    /// All of it.
    Whole(&'a [u8]),
    /// Split into parts.
    Parts {
        /// How many.
        parts: u32,
        /// Octets altogether.
        length: u64,
    },
}

impl StoredValue<'_> {
    /// Its octets.
    pub(crate) fn encode(&self) -> Vec<u8> {
        match self {
            StoredValue::Whole(bytes) => [&[WHOLE_VALUE], *bytes].concat(),
            StoredValue::Parts { parts, length } => {
                [&[VALUE_IN_PARTS], &parts.to_be_bytes()[..], &length.to_be_bytes()].concat()
            }
        }
    }

    /// Reads it back.
    pub(crate) fn decode(bytes: &[u8]) -> Result<StoredValue<'_>, MalformedRecord> {
        match bytes.split_first() {
            Some((&WHOLE_VALUE, rest)) => Ok(StoredValue::Whole(rest)),
            Some((&VALUE_IN_PARTS, rest)) => {
                let (parts, rest) = rest.split_first_chunk().ok_or_else(|| malformed("value", bytes))?;
                let length = rest.try_into().map_err(|_| malformed("value", bytes))?;
                Ok(StoredValue::Parts { parts: u32::from_be_bytes(*parts), length: u64::from_be_bytes(length) })
            }
            _ => Err(malformed("value", bytes)),
        }
    }
}

/// Stored with each commit. A store whose records do not add up to it is damaged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct StoreChecksum {
    /// How many commits the store has taken.
    pub(crate) commits: u64,
    /// The sum of [`record_checksum`] over all records except this one.
    pub(crate) sum: u64,
}

impl StoreChecksum {
    /// Its octets.
    pub(crate) fn encode(self) -> [u8; 16] {
        (u128::from(self.commits) << 64 | u128::from(self.sum)).to_be_bytes()
    }

    /// Reads it back.
    pub(crate) fn decode(bytes: &[u8]) -> Result<StoreChecksum, MalformedRecord> {
        let both = u128::from_be_bytes(bytes.try_into().map_err(|_| malformed("seal", bytes))?);
        Ok(StoreChecksum { commits: (both >> 64) as u64, sum: both as u64 })
    }
}

/// The key of the store's checksum.
pub(crate) fn store_checksum_key() -> Vec<u8> {
    vec![CHECKSUM_TAG]
}

/// What a key and its value add to the sum of [`StoreChecksum`].
pub(crate) fn record_checksum(key: &[u8], value: &[u8]) -> u64 {
    let mut crc = flate2::Crc::new();
    crc.update(key);
    let of_key = crc.sum();
    crc.update(value);
    u64::from(of_key) << 32 | u64::from(crc.sum())
}

/// Which policy a count belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PolicyRef {
    /// None was published, and its policy domain is the recipient domain: by far the most, so it has no record.
    None,
    /// The one with this digest.
    Digest(Digest),
}

/// What is counted under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CountKey {
    /// The UTC day.
    pub(crate) day: Day,
    /// The recipient domain.
    pub(crate) domain: String,
    /// The policy in force.
    pub(crate) policy: PolicyRef,
    /// `None` for the totals, else the digest of the failure.
    pub(crate) failure: Option<Digest>,
}

impl CountKey {
    /// Its octets.
    pub(crate) fn encode(&self) -> Vec<u8> {
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
    pub(crate) fn decode(bytes: &[u8]) -> Result<CountKey, MalformedRecord> {
        let wrong = || malformed("count key", bytes);
        let rest = bytes.strip_prefix(&[COUNT_TAG]).ok_or_else(wrong)?;
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
        Ok(CountKey { day: decode_day(*day), domain, policy, failure })
    }
}

/// The first key that counts of a day can have; that of the next day ends them.
pub(crate) fn day_prefix(day: Day) -> Vec<u8> {
    [&[COUNT_TAG][..], &encode_day(day)].concat()
}

/// The range of all counts' keys: the first (inclusive) and the end (exclusive).
pub(crate) fn counts_range() -> (Vec<u8>, Vec<u8>) {
    (vec![COUNT_TAG], vec![COUNT_TAG + 1])
}

/// The first key that counts of a recipient domain can have on a day.
pub(crate) fn domain_prefix(day: Day, domain: &str) -> Vec<u8> {
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
pub(crate) fn domain_end(day: Day, domain: &str) -> Vec<u8> {
    let mut key = domain_prefix(day, domain);
    key.push(BY_DIGEST + 1);
    key
}

/// The key of a policy's text.
pub(crate) fn policy_key(day: Day, digest: &Digest) -> Vec<u8> {
    [&[POLICY_TAG][..], &encode_day(day), digest].concat()
}

/// The range of the keys of all policies before `day`: the first (inclusive) and the end (exclusive).
pub(crate) fn policies_range_before(day: Day) -> (Vec<u8>, Vec<u8>) {
    (vec![POLICY_TAG], [&[POLICY_TAG][..], &encode_day(day)].concat())
}

/// How a policy is named in a count's key, and its text where that needs a record.
pub(crate) fn policy_ref(policy: &Policy, domain: &str) -> (PolicyRef, Option<Vec<u8>>) {
    if *policy == Policy::none(domain) {
        return (PolicyRef::None, None);
    }
    let text = to_json(policy);
    (PolicyRef::Digest(digest(&text)), Some(text))
}

/// Decodes a policy's text.
pub(crate) fn decode_policy(text: &[u8]) -> Result<Policy, MalformedRecord> {
    serde_json::from_slice(text).map_err(|e| MalformedRecord(format!("a policy's text does not read back ({e})")))
}

/// Encodes a failure.
pub(crate) fn encode_failure(failure: &Failure) -> Vec<u8> {
    to_json(failure)
}

/// How many sessions there were under a policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SessionTotals {
    /// Those that succeeded.
    pub(crate) successful: u64,
    /// Those that failed.
    pub(crate) failed: u64,
    /// Those of them whose message has a null sender.
    pub(crate) null_sender: u64,
}

impl SessionTotals {
    /// Their sum with others.
    pub(crate) fn add(self, other: SessionTotals) -> SessionTotals {
        SessionTotals {
            successful: self.successful.saturating_add(other.successful),
            failed: self.failed.saturating_add(other.failed),
            null_sender: self.null_sender.saturating_add(other.null_sender),
        }
    }

    /// Their octets.
    pub(crate) fn encode(self) -> Vec<u8> {
        let numbers = [self.successful, self.failed, self.null_sender];
        [WHOLE_VALUE].into_iter().chain(numbers.into_iter().flat_map(u64::to_be_bytes)).collect()
    }

    /// Reads them back.
    pub(crate) fn decode(bytes: &[u8]) -> Result<SessionTotals, MalformedRecord> {
        let (numbers, []) = bytes.strip_prefix(&[WHOLE_VALUE]).unwrap_or_default().as_chunks::<8>() else {
            return Err(malformed("totals", bytes));
        };
        let &[successful, failed, null_sender] = numbers else { return Err(malformed("totals", bytes)) };
        let [successful, failed, null_sender] = [successful, failed, null_sender].map(u64::from_be_bytes);
        Ok(SessionTotals { successful, failed, null_sender })
    }
}

/// Encodes a detail: how many sessions failed that way, and the failure's text.
pub(crate) fn encode_detail(count: u64, failure: &[u8]) -> Vec<u8> {
    [&[WHOLE_VALUE], &count.to_be_bytes()[..], failure].concat()
}

/// Decodes a detail: the count, and the failure's text.
pub(crate) fn decode_detail(bytes: &[u8]) -> Result<(u64, &[u8]), MalformedRecord> {
    match bytes {
        [WHOLE_VALUE, rest @ ..] => {
            let (count, text) = rest.split_first_chunk().ok_or_else(|| malformed("detail", bytes))?;
            Ok((u64::from_be_bytes(*count), text))
        }
        _ => Err(malformed("detail", bytes)),
    }
}

/// Decodes a failure's text.
pub(crate) fn decode_failure(text: &[u8]) -> Result<Failure, MalformedRecord> {
    serde_json::from_slice(text).map_err(|e| MalformedRecord(format!("a failure's text does not read back ({e})")))
}

/// The digest of a text.
pub(crate) fn digest(text: &[u8]) -> Digest {
    let whole = ring::digest::digest(&ring::digest::SHA256, text);
    let mut cut = Digest::default();
    cut.copy_from_slice(&whole.as_ref()[..16]);
    cut
}

fn to_json<T: serde::Serialize>(words: &T) -> Vec<u8> {
    // Invariant: structs of strings, addresses and unit variants; no map with other keys, no writer that fails.
    serde_json::to_vec(words).expect("words of RFC 8460 serialise")
}

fn encode_day(day: Day) -> [u8; 4] {
    (day.0.cast_unsigned() ^ 0x8000_0000).to_be_bytes()
}

fn decode_day(bytes: [u8; 4]) -> Day {
    Day((u32::from_be_bytes(bytes) ^ 0x8000_0000).cast_signed())
}

fn malformed(what: &str, bytes: &[u8]) -> MalformedRecord {
    let shown = &bytes[..bytes.len().min(48)];
    MalformedRecord(format!("a {what} of {} bytes is not in this layout (`{}`)", bytes.len(), shown.escape_ascii()))
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
        fn strange_octets_are_refused_or_read_back(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            for key in [bytes.clone(), [b"c".to_vec(), bytes.clone()].concat()] {
                if let Ok(read) = CountKey::decode(&key) {
                    prop_assert_eq!(read.encode(), key);
                }
            }
            for value in [bytes.clone(), [vec![1], bytes.clone()].concat(), [vec![2], bytes].concat()] {
                if let Ok(read) = StoredValue::decode(&value) {
                    prop_assert_eq!(read.encode(), value.clone());
                }
                if let Ok(totals) = SessionTotals::decode(&value) {
                    prop_assert_eq!(totals.encode(), value.clone());
                }
                if let Ok((n, text)) = decode_detail(&value) {
                    prop_assert_eq!(encode_detail(n, text), value.clone());
                    prop_assert!(decode_failure(text).is_err());
                    prop_assert!(decode_policy(text).is_err());
                }
            }
        }

        #[test]
        fn counts_read_back(a: u64, b: u64, c: u64, text: Vec<u8>) {
            let totals = SessionTotals { successful: a, failed: b, null_sender: c };
            prop_assert_eq!(SessionTotals::decode(&totals.encode()).unwrap(), totals);
            let checksum = StoreChecksum { commits: a, sum: b };
            prop_assert_eq!(StoreChecksum::decode(&checksum.encode()).unwrap(), checksum);
            prop_assert!(StoreChecksum::decode(&checksum.encode()[1..]).is_err());
            let value = encode_detail(a, &text);
            prop_assert_eq!(decode_detail(&value).unwrap(), (a, &text[..]));
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
        assert_eq!(decode_policy(&text).unwrap(), policy);
        assert_eq!(policy_ref(&Policy::none("a.example"), "a.example"), (PolicyRef::None, None));
        assert!(policy_ref(&Policy::none("a.example"), "b.example").1.is_some());
        let mut failure = Failure::new(ResultType::CertificateExpired, Some("certificate has expired"));
        failure.receiving_ip = Some("2001:db8::1".parse().unwrap());
        assert_eq!(decode_failure(&encode_failure(&failure)).unwrap(), failure);
    }

    #[test]
    fn parts_of_one_record_are_never_those_of_another() {
        assert_ne!(part_key(b"ra", 0x6200_0000), part_key(b"rab", 0));
        assert!(part_key(b"ra", 1) < part_key(b"ra", 256));
    }
}
