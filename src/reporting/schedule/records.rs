//! What is kept of a report that is to go, or went: a plan for a day and domain, a delivery for each destination, and
//! for each of them that is not done a place in the order of time.
//!
//! Takes: octets of the store. Gives: the records, and keys that sort by day and domain, or by queue, day and time.
//! When it fails: a record that cannot be read counts as done: what may have been sent is not sent again.
//! Not here: when a record changes (`planner`, `attempt`).

use serde::{Deserialize, Serialize};

use crate::base::rua_record::Destination;
use crate::base::tlsrpt::Day;
use crate::reporting::report::build::ReportId;
use crate::reporting::report::recipients::ReportSubject;
use crate::store::{Batch, Store, StoreError, Table};

/// The key of a report: its day and subject, and whether it is the supplement, with the counts that came after the first
/// report's snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ReportKey {
    /// The UTC day.
    pub(crate) day: Day,
    /// The recipient domain or MX host.
    pub(crate) subject: ReportSubject,
    /// Whether it is the second one.
    pub(crate) supplement: bool,
}

/// The look-up for a report: when it is due, and its result. Key: `day/domain`, `day/domain~` for a supplement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct ReportPlan {
    /// How far it is.
    pub(crate) state: PlanState,
    /// Its moment within the spread, which a restart does not move: seconds since 1970-01-01T00:00:00Z.
    pub(crate) moment: i64,
    /// When the record is looked up, or looked up again.
    pub(crate) next: i64,
    /// When it was first looked up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) first: Option<i64>,
    /// How often it was looked up.
    pub(crate) attempts: u32,
    /// What the last look-up said, where it gave no destination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last: Option<String>,
    /// The sum of all counts of the day and domain that have a place in a report, or were dropped.
    pub(crate) counted: u64,
    /// The sum of all counts when the record was looked up and gave no report: what came later may be for an MX host.
    #[serde(default)]
    pub(crate) seen: u64,
}

/// How far a plan is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum PlanState {
    /// The record is still to be looked up.
    Waiting,
    /// It was: what the report says is settled, and there are deliveries.
    Planned,
    /// The domain gets no such report.
    Nothing,
}

/// The delivery of a report to one destination. Key: `day/domain/destination`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct ReportDelivery {
    /// How far it is.
    pub(crate) state: DeliveryState,
    /// When it goes, or goes again: seconds since 1970-01-01T00:00:00Z.
    pub(crate) next: i64,
    /// When it was first tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) first: Option<i64>,
    /// When it was last tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tried: Option<i64>,
    /// How often it was tried.
    pub(crate) attempts: u32,
    /// The report's identifier, the same for all destinations and tries.
    pub(crate) report_id: ReportId,
    /// The message's, without angle brackets, the same for all tries.
    pub(crate) message_id: String,
    /// The queue id that the MTA gave it, as far as that is known: of the message that it deferred or bounced, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) queue_id: Option<String>,
    /// What the last try came to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last: Option<String>,
}

/// How far a delivery is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum DeliveryState {
    /// To be tried.
    Planned,
    /// Being tried. Found at start, it means that nobody knows.
    Attempting,
    /// Taken by the MTA.
    Sent,
    /// Taken by the MTA, which could not deliver it yet and tries again.
    Deferred,
    /// Taken by the MTA, which has given up.
    Bounced,
    /// Refused for good.
    Refused,
    /// It may have been taken; not tried again.
    Unknown,
    /// Given up.
    Expired,
    /// Left out, because `[report]` does not want it any more.
    Suppressed,
}

/// The queues of due work. Each has its own rule of when an entry is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Queue {
    /// Look-ups: once the day is closed.
    LookUp,
    /// Look-ups for supplements: once no input lags any more.
    Supplement,
    /// Deliveries by mail.
    Send,
    /// Deliveries by https.
    Post,
    /// Deliveries in progress.
    InProgress,
}

/// The key of a record in the store, decoded.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum RecordKey {
    /// A plan.
    Plan(ReportKey),
    /// A delivery.
    Delivery(ReportKey, Destination),
}

impl ReportKey {
    /// The first report of a day and domain.
    pub(crate) fn first(day: Day, subject: ReportSubject) -> ReportKey {
        ReportKey { day, subject, supplement: false }
    }

    /// The subject as text: the domain, or `mx:` and the host.
    pub(crate) fn subject_text(&self) -> String {
        self.subject.to_string()
    }

    /// The key of its supplement.
    pub(crate) fn as_supplement(&self) -> ReportKey {
        ReportKey { supplement: true, ..self.clone() }
    }

    /// The key of its plan, and of its snapshot.
    pub(crate) fn encode(&self) -> Vec<u8> {
        self.to_text().into_bytes()
    }

    /// The subject, with a tilde behind it for a supplement.
    pub(crate) fn subject_and_part(&self) -> String {
        // No domain has a tilde, and it sorts behind the slash.
        format!("{}{}", self.subject, if self.supplement { "~" } else { "" })
    }

    fn to_text(&self) -> String {
        format!("{}/{}", self.day, self.subject_and_part())
    }
}

impl std::fmt::Display for ReportKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let supplement = if self.supplement { " (supplement)" } else { "" };
        write!(f, "{} {}{supplement}", self.day, self.subject)
    }
}

impl ReportPlan {
    /// A plan whose look-up comes at `moment`.
    pub(crate) fn waiting_until(moment: i64) -> ReportPlan {
        ReportPlan {
            state: PlanState::Waiting,
            moment,
            next: moment,
            first: None,
            attempts: 0,
            last: None,
            counted: 0,
            seen: 0,
        }
    }

    /// Decodes a plan; one that cannot be decoded counts as done.
    pub(crate) fn decode(bytes: &[u8]) -> ReportPlan {
        let last = Some("its record in the store cannot be read".to_owned());
        let unreadable = ReportPlan { state: PlanState::Nothing, last, ..ReportPlan::waiting_until(0) };
        serde_json::from_slice(bytes).unwrap_or(unreadable)
    }

    /// Its key in [`Table::Due`]; `None` when it is done.
    fn due_key(&self, report_key: &ReportKey) -> Option<Vec<u8>> {
        let queue = if report_key.supplement { Queue::Supplement } else { Queue::LookUp };
        (self.state == PlanState::Waiting).then(|| due_key(queue, report_key.day, self.next, &report_key.encode()))
    }

    /// Adds the record and its entry in [`Table::Due`] to a batch; `before` is the stored record.
    pub(crate) fn add_to_batch(&self, batch: &mut Batch, report_key: &ReportKey, before: Option<&ReportPlan>) {
        move_due_entry(batch, before.and_then(|plan| plan.due_key(report_key)), self.due_key(report_key));
        batch.set.push((Table::Delivery, report_key.encode(), Some(to_json(self))));
    }
}

impl ReportDelivery {
    fn due_key(&self, report_key: &ReportKey, to: &Destination) -> Option<Vec<u8>> {
        let queue = match (self.state, to) {
            (DeliveryState::Planned, Destination::Mail(_)) => Queue::Send,
            (DeliveryState::Planned, Destination::Https(_)) => Queue::Post,
            (DeliveryState::Attempting, _) => Queue::InProgress,
            (
                DeliveryState::Sent
                | DeliveryState::Deferred
                | DeliveryState::Bounced
                | DeliveryState::Refused
                | DeliveryState::Unknown
                | DeliveryState::Expired
                | DeliveryState::Suppressed,
                _,
            ) => return None,
        };
        Some(due_key(queue, report_key.day, self.next, &delivery_key(report_key, to)))
    }

    /// Adds the record and its entry in [`Table::Due`] to a batch; `before` is the stored record, or those of which either
    /// may be stored.
    pub(crate) fn add_to_batch(
        &self,
        batch: &mut Batch,
        report_key: &ReportKey,
        to: &Destination,
        before: &[&ReportDelivery],
    ) {
        let due_key = self.due_key(report_key, to);
        for stale in before.iter().filter_map(|before| before.due_key(report_key, to)) {
            if due_key.as_ref() != Some(&stale) {
                move_due_entry(batch, Some(stale), None);
            }
        }
        if !before.iter().any(|before| before.due_key(report_key, to) == due_key) {
            move_due_entry(batch, None, due_key);
        }
        batch.set.push((Table::Delivery, delivery_key(report_key, to), Some(to_json(self))));
    }
}

/// Reads the plan of a report.
pub(crate) fn read_plan(store: &dyn Store, report_key: &ReportKey) -> Result<Option<ReportPlan>, StoreError> {
    Ok(store.read(Table::Delivery, &report_key.encode())?.map(|bytes| ReportPlan::decode(&bytes)))
}

/// Reads a delivery; one that cannot be decoded is none.
pub(crate) fn read_delivery(store: &dyn Store, key: &[u8]) -> Result<Option<ReportDelivery>, StoreError> {
    Ok(store.read(Table::Delivery, key)?.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}

/// Adds the removal of a record, as it was read, to a batch. Returns whether it was open.
pub(crate) fn remove_record(batch: &mut Batch, key: &[u8], value: &[u8]) -> bool {
    let due_key = match RecordKey::decode(key) {
        Some(RecordKey::Plan(report_key)) => {
            batch.set.push((Table::Snapshot, report_key.encode(), None));
            ReportPlan::decode(value).due_key(&report_key)
        }
        Some(RecordKey::Delivery(report_key, to)) => {
            batch.set.push((Table::Snapshot, delivery_key(&report_key, &to), None));
            serde_json::from_slice::<ReportDelivery>(value).ok().and_then(|delivery| delivery.due_key(&report_key, &to))
        }
        None => None,
    };
    let open = due_key.is_some();
    move_due_entry(batch, due_key, None);
    batch.set.push((Table::Delivery, key.to_vec(), None));
    open
}

impl RecordKey {
    /// Decodes a key of [`Table::Delivery`].
    pub(crate) fn decode(key: &[u8]) -> Option<RecordKey> {
        let mut parts = std::str::from_utf8(key).ok()?.splitn(3, '/');
        let (day, subject) = (parts.next()?.parse().ok()?, parts.next()?);
        let supplement = subject.ends_with('~');
        let report_key = ReportKey { day, subject: subject.trim_end_matches('~').parse().ok()?, supplement };
        Some(match parts.next() {
            None => RecordKey::Plan(report_key),
            Some(uri) => RecordKey::Delivery(report_key, Destination::try_from(uri.to_owned()).ok()?),
        })
    }

    /// Decodes a key of [`Table::Due`]: its time, and the record's key.
    pub(crate) fn decode_due_key(key: &[u8]) -> Option<(i64, RecordKey)> {
        let (_, rest) = key.split_at_checked(1 + size_of::<i32>())?;
        let (time, key) = rest.split_first_chunk()?;
        Some((i64::from_be_bytes(*time) ^ i64::MIN, RecordKey::decode(key)?))
    }
}

/// The key of a delivery.
pub(crate) fn delivery_key(report_key: &ReportKey, destination: &Destination) -> Vec<u8> {
    format!("{}/{destination}", report_key.to_text()).into_bytes()
}

/// The key, in [`Table::Due`], of a domain that has sessions under the TLSA records of an MX host.
pub(crate) fn host_domain_key(day: Day, host: &str, domain: &str) -> Vec<u8> {
    [&host_domains_prefix(day, host)[..], domain.as_bytes()].concat()
}

/// The prefix of those keys for one host.
pub(crate) fn host_domains_prefix(day: Day, host: &str) -> Vec<u8> {
    [&hosts_prefix(day)[..], host.as_bytes(), b"/"].concat()
}

/// The prefix of those keys for a day.
pub(crate) fn hosts_prefix(day: Day) -> Vec<u8> {
    day_prefix(b'h', Some(day))
}

/// The prefix of all keys of a queue; with a day, of those of the day.
pub(crate) fn queue_prefix(queue: Queue, day: Option<Day>) -> Vec<u8> {
    let letter = match queue {
        Queue::LookUp => b'l',
        Queue::Supplement => b's',
        Queue::Send => b't',
        Queue::Post => b'p',
        Queue::InProgress => b'u',
    };
    day_prefix(letter, day)
}

fn day_prefix(letter: u8, day: Option<Day>) -> Vec<u8> {
    let mut prefix = vec![letter];
    // The sign flipped, so that octets sort as the numbers do.
    prefix.extend(day.into_iter().flat_map(|day| (day.0 ^ i32::MIN).to_be_bytes()));
    prefix
}

fn due_key(at: Queue, day: Day, time: i64, key: &[u8]) -> Vec<u8> {
    [&queue_prefix(at, Some(day))[..], &(time ^ i64::MIN).to_be_bytes(), key].concat()
}

fn move_due_entry(batch: &mut Batch, before: Option<Vec<u8>>, after: Option<Vec<u8>>) {
    if before != after {
        batch.set.extend(before.map(|due_key| (Table::Due, due_key, None)));
        batch.set.extend(after.map(|due_key| (Table::Due, due_key, Some(Vec::new()))));
    }
}

/// Encodes a record.
pub(crate) fn to_json<T: Serialize>(record: &T) -> Vec<u8> {
    // Structures of strings and numbers always serialise.
    serde_json::to_vec(record).expect("a record of strings and numbers")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn day() -> Day {
        "2026-11-22".parse().unwrap()
    }

    fn delivery(state: DeliveryState, next: i64) -> ReportDelivery {
        let report_id = ReportId::preview(day(), "sender.example");
        ReportDelivery {
            state,
            next,
            first: None,
            tried: None,
            attempts: 0,
            report_id,
            message_id: "a@b".into(),
            queue_id: None,
            last: None,
        }
    }

    #[test]
    fn keys_read_back() {
        let to = Destination::try_from("https://r.example/a/b?c=d".to_owned()).unwrap();
        let first = ReportKey::first(day(), ReportSubject::Domain("a.example".into()));
        let host = ReportKey::first(day(), ReportSubject::Host("mx.a.example".into()));
        for report_key in [first.clone(), first.as_supplement(), host.as_supplement(), host] {
            assert_eq!(RecordKey::decode(&report_key.encode()), Some(RecordKey::Plan(report_key.clone())));
            let record_key = RecordKey::Delivery(report_key.clone(), to.clone());
            assert_eq!(RecordKey::decode(&delivery_key(&report_key, &to)), Some(record_key.clone()));
            for time in [-1, 0, 1_795_392_000] {
                let key = due_key(Queue::Send, report_key.day, time, &delivery_key(&report_key, &to));
                assert_eq!(RecordKey::decode_due_key(&key), Some((time, record_key.clone())));
            }
        }
        for bad in [&b"\xff"[..], b"", b"2026-11-22", b"2026-11-22/a.example/gopher:x"] {
            assert_eq!(RecordKey::decode(bad), None);
        }
        assert_eq!(RecordKey::decode_due_key(b"short"), None);
    }

    #[test]
    fn places_sort_by_day_and_time() {
        let at = |day, time| due_key(Queue::LookUp, Day(day), time, b"k");
        assert!(at(-1, 9) < at(0, 1) && at(0, -1) < at(0, 1) && at(0, 1) < at(0, 256) && at(0, 256) < at(1, 0));
    }

    #[test]
    fn what_is_done_has_no_place_and_what_moves_has_one() {
        let (report_key, to) = (
            ReportKey::first(day(), ReportSubject::Domain("a.example".into())),
            Destination::try_from("mailto:a@b.example".to_owned()),
        );
        let to = to.unwrap();
        let due = |batch: &Batch| -> Vec<bool> {
            batch.set.iter().filter(|(family, ..)| *family == Table::Due).map(|(.., v)| v.is_some()).collect()
        };
        let [planned, sent, attempting] =
            [DeliveryState::Planned, DeliveryState::Sent, DeliveryState::Attempting].map(|state| delivery(state, 7));
        for (before, after, wanted) in [
            (vec![], &planned, vec![true]),
            (vec![&planned], &planned, vec![]),
            (vec![&planned], &attempting, vec![false, true]),
            (vec![&planned], &sent, vec![false]),
            (vec![], &sent, vec![]),
            // It is not known which of the two is stored.
            (vec![&planned, &attempting], &delivery(DeliveryState::Planned, 9), vec![false, false, true]),
        ] {
            let mut batch = Batch::default();
            after.add_to_batch(&mut batch, &report_key, &to, &before);
            assert_eq!(due(&batch), wanted);
        }
        let mut batch = Batch::default();
        assert!(remove_record(&mut batch, &delivery_key(&report_key, &to), &to_json(&planned)));
        assert!(!remove_record(&mut batch, &report_key.encode(), b"{"), "what cannot be read is done");
        assert_eq!(batch.set.iter().filter(|(.., value)| value.is_some()).count(), 0);
    }
}
