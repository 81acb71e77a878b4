//! The content of a report, frozen when its recipients are looked up: the same at every attempt and for every destination,
//! whatever is counted meanwhile; and the difference between it and what has been counted since.
//!
//! Takes: the rows of a day and domain. Gives: octets for the store, gzipped, and the rows back.
//! The counts themselves stay where they are: what was said is subtracted from them, which is exact because counts only
//! grow, and safe because what was said is stored in one batch with the plan.
//! Limits: [`MAX_SNAPSHOT`] octets unpacked. When it fails: octets that make no sense give an error, and nothing is sent.
//! Not here: the report that is made of it (`report::build`).

use std::collections::BTreeMap;
use std::io::Read;

use flate2::read::GzDecoder;
use serde::{Deserialize, Serialize};

use crate::base::rua_record::Destination;
use crate::base::tlsrpt::{Failure, Policy, TallyRow};
use crate::config::identity::Identity;
use crate::reporting::report::build::{ReportId, gzip};
use crate::reporting::schedule::records::{ReportKey, delivery_key, to_json};
use crate::store::{Store, StoreError, Table};

/// The largest snapshot that is unpacked, in octets: the rows of the largest receivers have a few MiB.
const MAX_SNAPSHOT: u64 = 1 << 30;

/// The frozen content of a report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct ReportSnapshot {
    /// Its identifier.
    pub(crate) report_id: ReportId,
    /// `organization-name` at the time.
    pub(crate) organization: String,
    /// `contact-info` at the time.
    pub(crate) contact: String,
    /// The counts.
    pub(crate) rows: Vec<TallyRow>,
}

impl ReportSnapshot {
    /// Encodes it for the store.
    pub(crate) fn encode(&self) -> Vec<u8> {
        gzip(&to_json(self))
    }

    /// Decodes it; the error says why that failed.
    pub(crate) fn decode(encoded: &[u8]) -> Result<ReportSnapshot, String> {
        let mut json = Vec::new();
        GzDecoder::new(encoded).take(MAX_SNAPSHOT).read_to_end(&mut json).map_err(|e| e.to_string())?;
        serde_json::from_slice(&json).map_err(|e| e.to_string())
    }

    /// The reporting identity as of the snapshot; envelope fields come from the current configuration.
    pub(crate) fn identity(&self, now: &Identity) -> Identity {
        let mut identity = now.clone();
        // What was stored was read from an identity, so it reads back.
        if let Ok(contact) = self.contact.parse() {
            identity.contact = contact;
        }
        identity.organization.clone_from(&self.organization);
        identity
    }
}

/// Reads the counts that a report has; none if it has no snapshot.
pub(super) fn read_rows(store: &dyn Store, report_key: &ReportKey) -> Result<Vec<TallyRow>, StoreError> {
    let snapshot =
        store.read(Table::Snapshot, &report_key.encode())?.map(|encoded| ReportSnapshot::decode(&encoded)).transpose();
    let snapshot = snapshot.map_err(|e| StoreError::Corrupt(format!("report snapshot: cannot be decoded: {e}")))?;
    Ok(snapshot.map(|snapshot| snapshot.rows).unwrap_or_default())
}

/// Reads the counts that a report has for one destination: that of an MX host may have a snapshot for each.
pub(super) fn read_rows_for(
    store: &dyn Store,
    report_key: &ReportKey,
    to: &Destination,
) -> Result<Vec<TallyRow>, StoreError> {
    match read_encoded(store, report_key, to)? {
        None => Ok(Vec::new()),
        Some(encoded) => ReportSnapshot::decode(&encoded)
            .map(|snapshot| snapshot.rows)
            .map_err(|e| StoreError::Corrupt(format!("report snapshot: cannot be decoded: {e}"))),
    }
}

/// The stored snapshot of a report for one destination.
pub(super) fn read_encoded(
    store: &dyn Store,
    report_key: &ReportKey,
    to: &Destination,
) -> Result<Option<Vec<u8>>, StoreError> {
    match store.read(Table::Snapshot, &delivery_key(report_key, to))? {
        None => store.read(Table::Snapshot, &report_key.encode()),
        own => Ok(own),
    }
}

/// Sums of rows by policy: those of a host come from many domains.
#[derive(Clone, Debug, Default)]
pub(super) struct RowSums(BTreeMap<Policy, (TallyRow, BTreeMap<Failure, u64>)>);

impl RowSums {
    pub(super) fn add(&mut self, rows: Vec<TallyRow>) {
        for mut row in rows {
            let added = std::mem::take(&mut row.details);
            let (successful, failed, null_sender) = (row.successful, row.failed, row.null_sender);
            let empty = || (TallyRow { successful: 0, failed: 0, null_sender: 0, ..row.clone() }, BTreeMap::new());
            let (sum, details) = self.0.entry(row.policy.clone()).or_insert_with(empty);
            sum.successful = sum.successful.saturating_add(successful);
            sum.failed = sum.failed.saturating_add(failed);
            sum.null_sender = sum.null_sender.saturating_add(null_sender);
            for (failure, count) in added {
                let of_kind = details.entry(failure).or_default();
                *of_kind = of_kind.saturating_add(count);
            }
        }
    }

    pub(super) fn into_rows(self) -> Vec<TallyRow> {
        let row = |(row, details): (TallyRow, BTreeMap<Failure, u64>)| TallyRow {
            details: details.into_iter().collect(),
            ..row
        };
        self.0.into_values().map(row).collect()
    }

    /// What `rows` have more than these sums; rows and details that have not more are left out.
    pub(super) fn subtract_from(&self, rows: Vec<TallyRow>) -> Vec<TallyRow> {
        let more = |mut row: TallyRow| {
            if let Some((known, details)) = self.0.get(&row.policy) {
                row.successful = row.successful.saturating_sub(known.successful);
                row.failed = row.failed.saturating_sub(known.failed);
                row.null_sender = row.null_sender.saturating_sub(known.null_sender);
                for (failure, count) in &mut row.details {
                    *count = count.saturating_sub(details.get(failure).copied().unwrap_or_default());
                }
            }
            row.details.retain(|(_, count)| *count > 0);
            row
        };
        let says_something = |row: &TallyRow| row.successful > 0 || row.failed > 0 || !row.details.is_empty();
        rows.into_iter().map(more).filter(says_something).collect()
    }
}

/// The sum of all counts, as in [`crate::store::Store::domain_sums`].
pub(crate) fn total_count(rows: &[TallyRow]) -> u64 {
    let details = |row: &TallyRow| row.details.iter().fold(0_u64, |sum, (_, n)| sum.saturating_add(*n));
    rows.iter().fold(0_u64, |sum, row| {
        sum.saturating_add(row.successful.saturating_add(row.failed)).saturating_add(details(row))
    })
}

/// The counts that `rows` have more than the snapshot; rows and details that have not grown are left out.
pub(crate) fn counted_since(rows: Vec<TallyRow>, snapshot: &[TallyRow]) -> Vec<TallyRow> {
    let mut known = RowSums::default();
    known.add(snapshot.to_vec());
    known.subtract_from(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::tlsrpt::Day;
    use crate::reporting::report::build::tests::{identity, rows};

    #[test]
    fn it_reads_back_and_what_came_since_is_the_rest() {
        let day: Day = "2026-11-22".parse().unwrap();
        let snapshot = ReportSnapshot {
            report_id: ReportId::preview(day, "sender.example"),
            organization: "Then Ltd.".into(),
            contact: "then@sender.example".into(),
            rows: rows(day)[..3].to_vec(),
        };
        assert_eq!(ReportSnapshot::decode(&snapshot.encode()).unwrap(), snapshot);
        assert!(ReportSnapshot::decode(b"no gzip").is_err());
        assert_eq!(snapshot.identity(&identity()).contact.to_string(), "then@sender.example");
        assert_eq!(counted_since(snapshot.rows.clone(), &snapshot.rows), []);
        let mut later = snapshot.rows.clone();
        later[0].successful += 2;
        later[0].details[0].1 += 5;
        let mut new = later[1].clone();
        new.policy.policy_domain = "new.example".into();
        later.push(new.clone());
        let more = counted_since(later.clone(), &snapshot.rows);
        assert_eq!((more.len(), more[0].successful, more[0].failed), (2, 2, 0));
        assert_eq!(more[0].details, [(later[0].details[0].0.clone(), 5)]);
        assert_eq!(more[1], new);
        assert_eq!(total_count(&later), total_count(&snapshot.rows) + total_count(&more));
    }
}
