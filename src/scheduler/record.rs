//! What is kept of a report that is to go, or went: a plan for a day and domain, a delivery for each destination.
//!
//! Takes: octets of the store. Gives: the records, and keys that sort by day and domain.
//! When it fails: a record that cannot be read counts as done: what may have been sent is not sent again.
//! Not here: when a record changes (`scheduler`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::report::build::ReportId;
use crate::report::recipients::Destination;
use crate::tlsrpt::Day;

/// What is known of a day and domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The plan.
    pub plan: Plan,
    /// One for each destination; none until the record was looked up.
    pub deliveries: BTreeMap<Destination, Delivery>,
}

/// What is to be done for a day and domain. Key: `day/domain`.
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
}

/// How far a plan is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PlanState {
    /// The record is still to be looked up.
    Waiting,
    /// It was, and there are deliveries.
    Planned,
    /// The domain gets no report of this day.
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

impl Plan {
    /// A plan whose look-up comes at `moment`.
    pub fn at(moment: i64) -> Plan {
        Plan { state: PlanState::Waiting, moment, next: moment, first: None, attempts: 0, last: None }
    }

    fn unreadable() -> Plan {
        let last = Some("its record in the store cannot be read".to_owned());
        Plan { state: PlanState::Nothing, last, ..Plan::at(0) }
    }
}

/// The key of a plan.
pub fn plan_key(day: Day, domain: &str) -> Vec<u8> {
    format!("{day}/{domain}").into_bytes()
}

/// The key of a delivery.
pub fn delivery_key(day: Day, domain: &str, destination: &Destination) -> Vec<u8> {
    format!("{day}/{domain}/{destination}").into_bytes()
}

/// The octets of a record.
pub fn octets<T: Serialize>(record: &T) -> Vec<u8> {
    // Structures of strings and numbers always serialise.
    serde_json::to_vec(record).expect("a record of strings and numbers")
}

/// All that a store holds, by day and domain.
pub type Entries = BTreeMap<(Day, String), Entry>;

/// Reads the store's records; gives the keys that made no sense besides, as text.
pub fn entries(records: Vec<(Vec<u8>, Vec<u8>)>) -> (Entries, Vec<String>) {
    let mut entries = Entries::new();
    let mut bad = Vec::new();
    for (key, value) in records {
        let text = String::from_utf8_lossy(&key).into_owned();
        let mut parts = text.splitn(3, '/');
        let day = parts.next().and_then(|day| day.parse::<Day>().ok());
        let (Some(day), Some(domain)) = (day, parts.next()) else {
            bad.push(text);
            continue;
        };
        let entry = entries
            .entry((day, domain.to_owned()))
            .or_insert_with(|| Entry { plan: Plan::unreadable(), deliveries: BTreeMap::new() });
        match parts.next() {
            // A plan sorts before its deliveries, and each key comes once.
            None => match serde_json::from_slice(&value) {
                Ok(plan) => entry.plan = plan,
                Err(_) => bad.push(text),
            },
            Some(uri) => match (Destination::try_from(uri.to_owned()), serde_json::from_slice(&value)) {
                (Ok(destination), Ok(delivery)) => drop(entry.deliveries.insert(destination, delivery)),
                _ => bad.push(text),
            },
        }
    }
    (entries, bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_read_back_and_bad_ones_count_as_done() {
        let day: Day = "2026-11-22".parse().unwrap();
        let destination = Destination::try_from("https://r.example/a/b?c=d".to_owned()).unwrap();
        let plan = Plan { state: PlanState::Planned, ..Plan::at(7) };
        let delivery = Delivery {
            state: DeliveryState::Sent,
            next: 8,
            first: Some(8),
            attempts: 1,
            report_id: ReportId::preview(day, "sender.example"),
            message_id: "a@b".into(),
            last: Some("250 ok".into()),
        };
        let (entries, bad) = entries(vec![
            (plan_key(day, "a.example"), octets(&plan)),
            (delivery_key(day, "a.example", &destination), octets(&delivery)),
            (plan_key(day, "b.example"), b"{".to_vec()),
            (b"\xff".to_vec(), Vec::new()),
        ]);
        assert_eq!(bad.len(), 2, "{bad:?}");
        let first = &entries[&(day, "a.example".to_owned())];
        assert_eq!((&first.plan, &first.deliveries[&destination]), (&plan, &delivery));
        assert_eq!(entries[&(day, "b.example".to_owned())].plan.state, PlanState::Nothing);
    }
}
