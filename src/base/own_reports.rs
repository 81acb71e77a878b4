//! Our own reports, known by their Message-ID and by nobody forged: the sessions that carried them are not counted.
//!
//! Takes: a unique word and a domain. Gives: a Message-ID that carries a tag made with a secret key, and the answer whether a Message-ID
//! in a log is one of those. Counting needs no message from reporting for that, and no list that grows.
//! Beside it go the queue ids that the MTA of this host gave our reports when it took them ([`OwnQueueIds`]): where the log does
//! not show the Message-ID, they tell as well. The other way go the lines that the log has about such a report
//! ([`OwnReportStatuses`]): the MTA may defer or bounce what it had accepted.
//! Limits: [`MAX_MESSAGE_ID`] octets; anything longer is not ours. The tag has 128 bits. [`MAX_QUEUE_IDS`] queue ids, and as many lines, on their way.
//! Not here: which queue ids carry the message (`counting::session`), where the key is stored (`store::message_id_key`).

use std::fmt;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};

/// Length of the key, in bytes.
pub(crate) const KEY_LENGTH: usize = 32;

/// Length of the tag, in bytes: 128 bits cannot be guessed, and the header stays on one line.
const TAG_LENGTH: usize = 16;

/// Length of a content's word, in bytes: of 100,000 reports a day two have the same once in millions of years.
const CONTENT_ID_LENGTH: usize = 8;

/// The longest Message-ID that is examined, in bytes.
pub(crate) const MAX_MESSAGE_ID: usize = 512;

/// The most queue ids that wait for the counting. It takes them several times a second, and signing a report takes
/// longer than that. A report beyond the limit is recognized by its Message-ID alone.
pub(crate) const MAX_QUEUE_IDS: usize = 10_000;

/// The key that marks our Message-IDs, so that they can be told from all others.
#[derive(Clone)]
pub(crate) struct MessageIdKey(hmac::Key);

impl MessageIdKey {
    /// A key made of these bytes.
    pub(crate) fn from_bytes(bytes: &[u8]) -> MessageIdKey {
        MessageIdKey(hmac::Key::new(hmac::HMAC_SHA256, bytes))
    }

    /// The Message-ID, without angle brackets, of a message that is `unique` (letters, digits and hyphens) at `domain`.
    pub(crate) fn message_id(&self, unique: &str, domain: &str) -> String {
        let tag = self.tag(unique.as_bytes(), domain.as_bytes());
        format!("{unique}.{}@{domain}", hex(&tag))
    }

    /// Whether we made this Message-ID; it may stand in angle brackets.
    pub(crate) fn is_ours(&self, message_id: &[u8]) -> bool {
        let id = message_id.strip_prefix(b"<").and_then(|id| id.strip_suffix(b">")).unwrap_or(message_id);
        let Some((unique, tag, domain)) = split_message_id(id) else { return false };
        let wanted = hex(&self.tag(unique, domain));
        // Every octet is compared, so that the time taken tells nothing.
        wanted.as_bytes().iter().zip(tag).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
    }

    /// A word that stands for this content: the same for the same content, and not to be guessed without the key.
    pub(crate) fn content_id(&self, content: &[u8]) -> String {
        let mut context = hmac::Context::with_key(&self.0);
        // No Message-ID begins so: the two uses of the key cannot be mixed up.
        context.update(b"\0content\0");
        context.update(content);
        hex(&context.sign().as_ref()[..CONTENT_ID_LENGTH])
    }

    fn tag(&self, unique: &[u8], domain: &[u8]) -> [u8; TAG_LENGTH] {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(unique);
        context.update(b"@");
        context.update(domain);
        let full = context.sign();
        let mut tag = [0; TAG_LENGTH];
        tag.iter_mut().zip(full.as_ref()).for_each(|(to, from)| *to = *from);
        tag
    }
}

impl fmt::Debug for MessageIdKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MessageIdKey")
    }
}

/// Queue ids of our reports, from the sender of reports to the counting; copies share one list.
#[derive(Clone, Debug, Default)]
pub struct OwnQueueIds(Arc<Mutex<Vec<String>>>);

impl OwnQueueIds {
    /// Adds the queue id of a report that the MTA accepted.
    pub fn add(&self, id: &str) {
        let mut ids = self.0.lock();
        if ids.len() < MAX_QUEUE_IDS {
            ids.push(id.to_owned());
        }
    }

    /// The queue ids added since the last call.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock())
    }
}

/// What a line of the MTA's log says of one of our reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnReportStatus {
    /// The queue id in the line: a content filter gives a message a second one.
    pub(crate) queue_id: String,
    /// The Message-ID, without angle brackets, where the log has shown it.
    pub(crate) message_id: Option<String>,
    /// What became of the report.
    pub(crate) result: OwnReportResult,
    /// Why, in the words of the line; escaped and cut.
    pub(crate) reason: String,
}

/// What became of a report that the MTA had accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OwnReportResult {
    /// The next host or a mailbox has it.
    Delivered,
    /// The MTA tries again.
    Deferred,
    /// The MTA has given up.
    Bounced,
}

/// What the log says of our reports, from the counting to the sender of reports; copies share one list.
#[derive(Clone, Debug, Default)]
pub struct OwnReportStatuses(Arc<Mutex<Vec<OwnReportStatus>>>);

impl OwnReportStatuses {
    /// Adds what was read, in the order of the lines. Returns how many were too much and are left out.
    pub(crate) fn add(&self, statuses: Vec<OwnReportStatus>) -> usize {
        let mut waiting = self.0.lock();
        let room = MAX_QUEUE_IDS.saturating_sub(waiting.len());
        let dropped = statuses.len().saturating_sub(room);
        waiting.extend(statuses.into_iter().take(room));
        dropped
    }

    /// The first `most` of what waits.
    pub(crate) fn take(&self, most: usize) -> Vec<OwnReportStatus> {
        let mut waiting = self.0.lock();
        let most = most.min(waiting.len());
        waiting.drain(..most).collect()
    }
}

/// Splits `unique.tag@domain`; `None` for any other form, as nearly all Message-IDs of others have.
fn split_message_id(id: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    if id.len() > MAX_MESSAGE_ID {
        return None;
    }
    let at = id.iter().position(|b| *b == b'@')?;
    let (left, domain) = (&id[..at], &id[at + 1..]);
    let dot = left.len().checked_sub(2 * TAG_LENGTH + 1)?;
    let (unique, tag) = (&left[..dot], &left[dot + 1..]);
    let shaped = left[dot] == b'.' && !unique.is_empty() && tag.iter().all(u8::is_ascii_hexdigit);
    shaped.then_some((unique, tag, domain))
}

/// Random bytes from the operating system.
pub(crate) fn random_bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| io::Error::other("the system gave no random bytes"))?;
    Ok(bytes)
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|b| [b >> 4, b & 15]).map(|d| char::from(DIGITS[usize::from(d)])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_its_own() {
        let secret = MessageIdKey::from_bytes(&[7; KEY_LENGTH]);
        let id = secret.message_id("20261122-0123456789abcdef", "example.com");
        assert!(secret.is_ours(id.as_bytes()));
        assert!(secret.is_ours(format!("<{id}>").as_bytes()));
        assert!(!MessageIdKey::from_bytes(&[8; KEY_LENGTH]).is_ours(id.as_bytes()), "another secret");
    }

    #[test]
    fn equal_content_has_equal_words() {
        let key = MessageIdKey::from_bytes(&[7; KEY_LENGTH]);
        let other = MessageIdKey::from_bytes(&[8; KEY_LENGTH]);
        assert_eq!(key.content_id(b"a"), key.content_id(b"a"));
        assert_eq!(key.content_id(b"a").len(), 2 * CONTENT_ID_LENGTH);
        assert!(key.content_id(b"a") != key.content_id(b"b") && key.content_id(b"a") != other.content_id(b"a"));
    }

    #[test]
    fn any_change_shows() {
        let secret = MessageIdKey::from_bytes(&[7; KEY_LENGTH]);
        let id = secret.message_id("20261122-0123456789abcdef", "example.com").into_bytes();
        for at in 0..id.len() {
            for flip in [1, 0x20, 0x80] {
                let mut other = id.clone();
                other[at] ^= flip;
                assert!(!secret.is_ours(&other), "{}", String::from_utf8_lossy(&other));
            }
            assert!(!secret.is_ours(&id[..at]));
            assert!(!secret.is_ours(&id[at + 1..]));
        }
    }

    #[test]
    fn other_shapes_are_not_ours() {
        let secret = MessageIdKey::from_bytes(&[7; KEY_LENGTH]);
        let tag = "0".repeat(2 * TAG_LENGTH);
        for other in ["", "@", "<>", "a@b", ".@b", "CAF=x@mail.example.com", &format!(".{tag}@b"), &format!("{tag}@b")]
        {
            assert!(!secret.is_ours(other.as_bytes()), "{other}");
        }
        assert!(!secret.is_ours(&vec![b'@'; 100_000]));
        assert!(!secret.is_ours(format!("{}.{tag}@b", "a".repeat(MAX_MESSAGE_ID)).as_bytes()));
        assert!(!secret.is_ours(&[0xff; 64]));
    }

    #[test]
    fn statuses_that_are_not_taken_wait_and_those_beyond_the_limit_are_counted() {
        let status = |n: usize| OwnReportStatus {
            queue_id: n.to_string(),
            message_id: None,
            result: OwnReportResult::Bounced,
            reason: String::new(),
        };
        let statuses = OwnReportStatuses::default();
        assert_eq!(statuses.add((0..MAX_QUEUE_IDS - 1).map(status).collect()), 0);
        assert_eq!(statuses.add(vec![status(1), status(2), status(3)]), 2);
        assert_eq!(statuses.take(2), [status(0), status(1)]);
        assert_eq!(statuses.take(usize::MAX).len(), MAX_QUEUE_IDS - 2);
        assert!(statuses.take(usize::MAX).is_empty());
    }

    #[test]
    fn random_is_not_constant() {
        assert_ne!(random_bytes::<16>().unwrap(), random_bytes::<16>().unwrap());
        assert_eq!(hex(&[0x00, 0xab, 0xff]), "00abff");
    }
}
