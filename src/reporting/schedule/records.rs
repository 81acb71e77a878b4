//! What is kept of a report that is to go, or went: a plan for a day and domain, a delivery for each destination, and
//! for each of them that is not done a place in the order of time.
//!
//! Takes: octets of the store. Gives: the records, and keys that sort by day and domain, or by lane, day and time.
//! When it fails: a record that cannot be read counts as done: what may have been sent is not sent again.
//! Not here: when a record changes (`plan`, `attempt`).

use serde::{Deserialize, Serialize};

use crate::base::rua_record::Destination;
use crate::base::tlsrpt::Day;
use crate::reporting::report::build::ReportId;
use crate::reporting::report::recipients::ReportSubject;
use crate::store::{Batch, Table};

/// Which report: the one of a day and domain, or its supplement: what was counted after the first one was settled.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Which {
    /// The UTC day.
    pub day: Day,
    /// The recipient domain or MX host.
    pub about: ReportSubject,
    /// Whether it is the second one.
    pub supplement: bool,
}

/// What is to be done for a report. Key: `day/domain`, `day/domain~` for a supplement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Plan {
    /// How far it is.
    pub state: PlanState,
    /// Its moment within the spread, which a restart does not move: seconds since 1970-01-01T00:00:00Z.
    pub moment: i64,
    /// When the record is looked up, or looked up again.
    pub next: i64,
    /// When it was first looked up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<i64>,
    /// How often it was looked up.
    pub attempts: u32,
    /// What the last look-up said, where it gave no destination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<String>,
    /// The sum of all counts of the day and domain that have a place in a report, or were dropped.
    pub counted: u64,
}

/// How far a plan is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PlanState {
    /// The record is still to be looked up.
    Waiting,
    /// It was: what the report says is settled, and there are deliveries.
    Planned,
    /// The domain gets no such report.
    Nothing,
}

/// A report to one destination. Key: `day/domain/destination`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Delivery {
    /// How far it is.
    pub state: DeliveryState,
    /// When it goes, or goes again: seconds since 1970-01-01T00:00:00Z.
    pub next: i64,
    /// When it was first tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<i64>,
    /// When it was last tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tried: Option<i64>,
    /// How often it was tried.
    pub attempts: u32,
    /// The report's identifier, the same for all destinations and tries.
    pub report_id: ReportId,
    /// The message's, without angle brackets, the same for all tries.
    pub message_id: String,
    /// What the last try came to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<String>,
}

/// How far a delivery is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeliveryState {
    /// To be tried.
    Planned,
    /// Being tried. Found at start, it means that nobody knows.
    Attempting,
    /// Taken by the MTA.
    Sent,
    /// Refused for good.
    Refused,
    /// It may have been taken; not tried again.
    Unknown,
    /// Given up.
    Expired,
}

/// Where in the order of time something stands. Each has its own rule of when its time has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Look-ups: once the day is closed.
    LookUp,
    /// Look-ups for supplements: once no input lags any more.
    Supplement,
    /// Tries.
    Send,
    /// Tries under way.
    UnderWay,
}

/// What a key in the store is of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Named {
    /// A plan.
    Plan(Which),
    /// A delivery.
    Delivery(Which, Destination),
}

impl Which {
    /// The first report of a day and domain.
    pub fn first(day: Day, about: ReportSubject) -> Which {
        Which { day, about, supplement: false }
    }

    /// Under what its counts stand in the store.
    pub fn name(&self) -> String {
        self.about.to_string()
    }

    /// What was counted after the first one was settled.
    pub fn supplement(&self) -> Which {
        Which { supplement: true, ..self.clone() }
    }

    /// The key of its plan, and of what it says.
    pub fn key(&self) -> Vec<u8> {
        self.text().into_bytes()
    }

    fn text(&self) -> String {
        // No domain has a tilde, and it sorts behind the slash.
        format!("{}/{}{}", self.day, self.about, if self.supplement { "~" } else { "" })
    }
}

impl std::fmt::Display for Which {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let supplement = if self.supplement { " (supplement)" } else { "" };
        write!(f, "{} {}{supplement}", self.day, self.about)
    }
}

impl Plan {
    /// A plan whose look-up comes at `moment`.
    pub fn at(moment: i64) -> Plan {
        Plan { state: PlanState::Waiting, moment, next: moment, first: None, attempts: 0, last: None, counted: 0 }
    }

    /// Reads a plan; one that makes no sense is done.
    pub fn read(octets: &[u8]) -> Plan {
        let last = Some("its record in the store cannot be read".to_owned());
        let unreadable = Plan { state: PlanState::Nothing, last, ..Plan::at(0) };
        serde_json::from_slice(octets).unwrap_or(unreadable)
    }

    /// Its place in the order of time; none when it is done.
    fn place(&self, which: &Which) -> Option<Vec<u8>> {
        let lane = if which.supplement { Lane::Supplement } else { Lane::LookUp };
        (self.state == PlanState::Waiting).then(|| place(lane, which.day, self.next, &which.key()))
    }

    /// Adds what keeps it to a batch; `before` is what is kept so far.
    pub fn put(&self, batch: &mut Batch, which: &Which, before: Option<&Plan>) {
        move_place(batch, before.and_then(|plan| plan.place(which)), self.place(which));
        batch.set.push((Table::Delivery, which.key(), Some(octets(self))));
    }
}

impl Delivery {
    fn place(&self, which: &Which, to: &Destination) -> Option<Vec<u8>> {
        let lane = match self.state {
            DeliveryState::Planned => Lane::Send,
            DeliveryState::Attempting => Lane::UnderWay,
            DeliveryState::Sent | DeliveryState::Refused | DeliveryState::Unknown | DeliveryState::Expired => {
                return None;
            }
        };
        Some(place(lane, which.day, self.next, &delivery_key(which, to)))
    }

    /// Adds what keeps it to a batch; `before` is what is kept so far.
    pub fn put(&self, batch: &mut Batch, which: &Which, to: &Destination, before: Option<&Delivery>) {
        move_place(batch, before.and_then(|delivery| delivery.place(which, to)), self.place(which, to));
        batch.set.push((Table::Delivery, delivery_key(which, to), Some(octets(self))));
    }
}

/// Adds what forgets a record, as it was read, to a batch; whether it was open.
pub fn forget(batch: &mut Batch, key: &[u8], value: &[u8]) -> bool {
    let place = match Named::read(key) {
        Some(Named::Plan(which)) => {
            batch.set.push((Table::Snapshot, which.key(), None));
            Plan::read(value).place(&which)
        }
        Some(Named::Delivery(which, to)) => {
            serde_json::from_slice::<Delivery>(value).ok().and_then(|delivery| delivery.place(&which, &to))
        }
        None => None,
    };
    let open = place.is_some();
    move_place(batch, place, None);
    batch.set.push((Table::Delivery, key.to_vec(), None));
    open
}

impl Named {
    /// What a key of [`Table::Delivery`] is of.
    pub fn read(key: &[u8]) -> Option<Named> {
        let mut parts = std::str::from_utf8(key).ok()?.splitn(3, '/');
        let (day, about) = (parts.next()?.parse().ok()?, parts.next()?);
        let supplement = about.ends_with('~');
        let which = Which { day, about: about.trim_end_matches('~').parse().ok()?, supplement };
        Some(match parts.next() {
            None => Named::Plan(which),
            Some(uri) => Named::Delivery(which, Destination::try_from(uri.to_owned()).ok()?),
        })
    }

    /// What a key of [`Table::Due`] is of, and its time.
    pub fn placed(key: &[u8]) -> Option<(i64, Named)> {
        let (_, rest) = key.split_at_checked(1 + size_of::<i32>())?;
        let (time, key) = rest.split_first_chunk()?;
        Some((i64::from_be_bytes(*time) ^ i64::MIN, Named::read(key)?))
    }
}

/// The key of a delivery.
pub fn delivery_key(which: &Which, destination: &Destination) -> Vec<u8> {
    format!("{}/{destination}", which.text()).into_bytes()
}

/// What all places in a lane begin with; with a day, those of the day.
pub fn lane(lane: Lane, day: Option<Day>) -> Vec<u8> {
    let letter = match lane {
        Lane::LookUp => b'l',
        Lane::Supplement => b's',
        Lane::Send => b't',
        Lane::UnderWay => b'u',
    };
    let mut prefix = vec![letter];
    // The sign flipped, so that octets sort as the numbers do.
    prefix.extend(day.into_iter().flat_map(|day| (day.0 ^ i32::MIN).to_be_bytes()));
    prefix
}

fn place(at: Lane, day: Day, time: i64, key: &[u8]) -> Vec<u8> {
    [&lane(at, Some(day))[..], &(time ^ i64::MIN).to_be_bytes(), key].concat()
}

fn move_place(batch: &mut Batch, before: Option<Vec<u8>>, after: Option<Vec<u8>>) {
    if before != after {
        batch.set.extend(before.map(|place| (Table::Due, place, None)));
        batch.set.extend(after.map(|place| (Table::Due, place, Some(Vec::new()))));
    }
}

/// The octets of a record.
pub fn octets<T: Serialize>(record: &T) -> Vec<u8> {
    // Structures of strings and numbers always serialise.
    serde_json::to_vec(record).expect("a record of strings and numbers")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn day() -> Day {
        "2026-11-22".parse().unwrap()
    }

    fn delivery(state: DeliveryState, next: i64) -> Delivery {
        let report_id = ReportId::preview(day(), "sender.example");
        let message_id = "a@b".into();
        Delivery { state, next, first: None, tried: None, attempts: 0, report_id, message_id, last: None }
    }

    #[test]
    fn keys_read_back() {
        let to = Destination::try_from("https://r.example/a/b?c=d".to_owned()).unwrap();
        let first = Which::first(day(), ReportSubject::Domain("a.example".into()));
        let host = Which::first(day(), ReportSubject::Host("mx.a.example".into()));
        for which in [first.clone(), first.supplement(), host.supplement(), host] {
            assert_eq!(Named::read(&which.key()), Some(Named::Plan(which.clone())));
            let named = Named::Delivery(which.clone(), to.clone());
            assert_eq!(Named::read(&delivery_key(&which, &to)), Some(named.clone()));
            for time in [-1, 0, 1_795_392_000] {
                let key = place(Lane::Send, which.day, time, &delivery_key(&which, &to));
                assert_eq!(Named::placed(&key), Some((time, named.clone())));
            }
        }
        for bad in [&b"\xff"[..], b"", b"2026-11-22", b"2026-11-22/a.example/gopher:x"] {
            assert_eq!(Named::read(bad), None);
        }
        assert_eq!(Named::placed(b"short"), None);
    }

    #[test]
    fn places_sort_by_day_and_time() {
        let at = |day, time| place(Lane::LookUp, Day(day), time, b"k");
        assert!(at(-1, 9) < at(0, 1) && at(0, -1) < at(0, 1) && at(0, 1) < at(0, 256) && at(0, 256) < at(1, 0));
    }

    #[test]
    fn what_is_done_has_no_place_and_what_moves_has_one() {
        let (which, to) = (
            Which::first(day(), ReportSubject::Domain("a.example".into())),
            Destination::try_from("mailto:a@b.example".to_owned()),
        );
        let to = to.unwrap();
        let due = |batch: &Batch| -> Vec<bool> {
            batch.set.iter().filter(|(family, ..)| *family == Table::Due).map(|(.., v)| v.is_some()).collect()
        };
        let (planned, sent) = (delivery(DeliveryState::Planned, 7), delivery(DeliveryState::Sent, 7));
        for (before, after, wanted) in [
            (None, &planned, vec![true]),
            (Some(&planned), &planned, vec![]),
            (Some(&planned), &delivery(DeliveryState::Attempting, 7), vec![false, true]),
            (Some(&planned), &sent, vec![false]),
            (None, &sent, vec![]),
        ] {
            let mut batch = Batch::default();
            after.put(&mut batch, &which, &to, before);
            assert_eq!(due(&batch), wanted);
        }
        let mut batch = Batch::default();
        assert!(forget(&mut batch, &delivery_key(&which, &to), &octets(&planned)));
        assert!(!forget(&mut batch, &which.key(), b"{"), "what cannot be read is done");
        assert_eq!(batch.set.iter().filter(|(.., value)| value.is_some()).count(), 0);
    }
}
