//! The reports that are due, in progress or done, for display.
//!
//! Takes: the records in the store. Gives: a [`ReportStatus`] for each, or a [`ReportOverview`], and an [`ArchivedReport`].
//! Limits: [`MAX_LISTED`] lines in one answer, [`MAX_OPEN_LISTED`] in an overview.
//! When it fails: a line that says why; nothing is changed.
//! Not here: the counts that no report has yet (`store`), sending a report again (`resend`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::base::rua_record::Destination;
use crate::base::tlsrpt::Day;
use crate::reporting::report::build::Report;
use crate::reporting::schedule::Scheduler;
use crate::reporting::schedule::records::{DeliveryState, PlanState, RecordKey, ReportDelivery, ReportKey, ReportPlan};
use crate::reporting::schedule::snapshot::{self, ReportSnapshot};
use crate::store::{StoreError, Table};

/// The most lines in one answer: what a terminal can be asked to show, and some tens of MiB.
pub(crate) const MAX_LISTED: usize = 100_000;

/// The most lines of an overview: a screen or two.
pub(crate) const MAX_OPEN_LISTED: usize = 50;

/// How many records are read at once.
const PAGE_SIZE: usize = 1000;

/// The status of a report that is due, in progress or done, for one destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct ReportStatus {
    /// The UTC day.
    pub(crate) day: Day,
    /// The recipient domain; `mx:` and its name for an MX host.
    pub(crate) domain: String,
    /// Whether it is about what was counted after the day's first report was settled.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) supplement: bool,
    /// The destination, once it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) destination: Option<Destination>,
    /// The report's identifier, once it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) report_id: Option<String>,
    /// How far it is.
    pub(crate) state: ReportState,
    /// When something happens next, in seconds since 1970-01-01T00:00:00Z; nothing where it is done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) next: Option<i64>,
    /// When it was last tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tried: Option<i64>,
    /// How often it was tried.
    pub(crate) attempts: u32,
    /// What the last try came to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) last: Option<String>,
}

/// The state of a [`ReportStatus`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ReportState {
    /// For its moment, for an input that lags, or for DNS.
    Waiting,
    /// The domain gets no report of this day.
    Nothing,
    /// To be tried.
    Planned,
    /// Being tried.
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

/// All reports in short.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct ReportOverview {
    /// How many lines there are in each state.
    pub(crate) counts: BTreeMap<ReportState, u64>,
    /// The first of those that are still to go or went wrong, oldest day first, [`MAX_OPEN_LISTED`] at most.
    pub(crate) open: Vec<ReportStatus>,
    /// Why reports by mail wait, while they do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) mail_held: Option<String>,
}

/// The content of a report that was sent or will be, and its deliveries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct ArchivedReport {
    /// The name of the attached file.
    pub(crate) file_name: String,
    /// The JSON, as it is compressed for its receivers.
    pub(crate) json: String,
    /// Where it goes, and how far that is.
    pub(crate) deliveries: Vec<ReportStatus>,
}

impl std::fmt::Display for ReportState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.serialize(f)
    }
}

impl From<DeliveryState> for ReportState {
    fn from(state: DeliveryState) -> ReportState {
        match state {
            DeliveryState::Planned => ReportState::Planned,
            DeliveryState::Attempting => ReportState::Attempting,
            DeliveryState::Sent => ReportState::Sent,
            DeliveryState::Deferred => ReportState::Deferred,
            DeliveryState::Bounced => ReportState::Bounced,
            DeliveryState::Refused => ReportState::Refused,
            DeliveryState::Unknown => ReportState::Unknown,
            DeliveryState::Expired => ReportState::Expired,
            DeliveryState::Suppressed => ReportState::Suppressed,
        }
    }
}

impl Scheduler {
    /// Everything that is planned, in progress or done within retention, oldest day first, [`MAX_LISTED`] at most.
    /// Blocks for as long as the store does.
    pub(crate) fn list_reports(&self) -> Result<Vec<ReportStatus>, StoreError> {
        let mut due = Vec::new();
        self.visit_records(|key, value| {
            due.extend(record_status(key, value).map(|status| self.with_reason(status)));
            due.len() < MAX_LISTED
        })?;
        Ok(due)
    }

    /// How many reports are in each state, and the first that need attention. Blocks for as long as the store does.
    pub(crate) fn overview(&self) -> Result<ReportOverview, StoreError> {
        let mut overview = ReportOverview { mail_held: self.mail_held(), ..ReportOverview::default() };
        self.visit_records(|key, value| {
            if let Some(due) = record_status(key, value) {
                *overview.counts.entry(due.state).or_default() += 1;
                let over = matches!(due.state, ReportState::Sent | ReportState::Nothing | ReportState::Suppressed);
                if !over && overview.open.len() < MAX_OPEN_LISTED {
                    overview.open.push(self.with_reason(due));
                }
            }
            true
        })?;
        Ok(overview)
    }

    /// Adds why a report waits whose moment has come: for inputs that are not yet past its day.
    fn with_reason(&self, mut status: ReportStatus) -> ReportStatus {
        let now = self.context.clock.seconds();
        if status.state == ReportState::Waiting && status.next.is_none_or(|next| next <= now) && status.last.is_none() {
            let behind = self.lagging_inputs(status.day, now);
            status.last = (!behind.is_empty()).then(|| format!("waiting for input {}", behind.join(", ")));
        }
        status
    }

    /// A report by its identifier, or by what stands before its `@`. Blocks for as long as the store does.
    pub(crate) fn archived_report(&self, id: &str) -> Result<ArchivedReport, String> {
        let (report_key, deliveries) = self.find_report(id)?;
        let settings = self.settings.read();
        let Some(sender) = &settings.sender else { return Err("[report] is incomplete; nothing is shown".to_owned()) };
        let encoded = match deliveries.first() {
            Some((to, _)) => {
                snapshot::read_encoded(&*self.context.store, &report_key, to).map_err(|e| e.to_string())?
            }
            None => None,
        };
        let encoded =
            encoded.ok_or_else(|| format!("report {report_key}: what it says is not kept; nothing is shown"))?;
        let snapshot = ReportSnapshot::decode(&encoded)
            .map_err(|e| format!("report {report_key}: cannot be read: {e}; nothing is shown"))?;
        let identity = snapshot.identity(&sender.identity);
        let (subject, id, rows) = (&report_key.subject, &snapshot.report_id, &snapshot.rows);
        let report = Report::build(&identity, report_key.day, subject.name(), id, rows, sender.max_size);
        let deliveries = deliveries.iter().map(|(to, delivery)| delivery_status(&report_key, to, delivery)).collect();
        Ok(ArchivedReport {
            file_name: report.file_name,
            json: String::from_utf8_lossy(&report.json).into_owned(),
            deliveries,
        })
    }

    pub(super) fn find_report(&self, id: &str) -> Result<(ReportKey, Vec<(Destination, ReportDelivery)>), String> {
        let mut found: Option<(ReportKey, Vec<(Destination, ReportDelivery)>)> = None;
        let same = |known: &str| known == id || known.split('@').next() == Some(id);
        let read = self.visit_records(|key, value| {
            let Some(RecordKey::Delivery(report_key, to)) = RecordKey::decode(key) else { return true };
            let stands_together = found.as_ref().is_none_or(|(of, _)| *of == report_key);
            if let Ok(delivery) = serde_json::from_slice::<ReportDelivery>(value)
                && same(delivery.report_id.as_str())
            {
                found.get_or_insert_with(|| (report_key, Vec::new())).1.push((to, delivery));
            }
            stands_together
        });
        read.map_err(|e| e.to_string())?;
        found.ok_or_else(|| format!("`{}` is no report that is kept; see `tlswarden reports list`", id.escape_debug()))
    }

    /// Hands each record to `each`, until it returns false.
    pub(super) fn visit_records(&self, mut each: impl FnMut(&[u8], &[u8]) -> bool) -> Result<(), StoreError> {
        let mut from = Vec::new();
        loop {
            let page = self.context.store.scan_page(Table::Delivery, b"", &from, PAGE_SIZE)?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            // The next key there can be.
            from = [&last[..], &[0]].concat();
            if !page.iter().all(|(key, value)| each(key, value)) {
                return Ok(());
            }
        }
    }
}

/// The status of a record; `None` for a plan whose deliveries have their own.
fn record_status(key: &[u8], value: &[u8]) -> Option<ReportStatus> {
    match RecordKey::decode(key)? {
        RecordKey::Delivery(report_key, to) => {
            Some(delivery_status(&report_key, &to, &serde_json::from_slice(value).ok()?))
        }
        RecordKey::Plan(report_key) => {
            let plan = ReportPlan::decode(value);
            let state = match plan.state {
                PlanState::Waiting => ReportState::Waiting,
                PlanState::Nothing => ReportState::Nothing,
                PlanState::Planned => return None,
            };
            Some(ReportStatus {
                day: report_key.day,
                domain: report_key.subject_text(),
                supplement: report_key.supplement,
                destination: None,
                report_id: None,
                state,
                next: (state == ReportState::Waiting).then_some(plan.next),
                tried: None,
                attempts: plan.attempts,
                last: plan.last,
            })
        }
    }
}

fn delivery_status(report_key: &ReportKey, to: &Destination, delivery: &ReportDelivery) -> ReportStatus {
    ReportStatus {
        day: report_key.day,
        domain: report_key.subject_text(),
        supplement: report_key.supplement,
        destination: Some(to.clone()),
        report_id: Some(delivery.report_id.to_string()),
        state: delivery.state.into(),
        next: (delivery.state == DeliveryState::Planned).then_some(delivery.next),
        tried: delivery.tried,
        attempts: delivery.attempts,
        last: delivery.last.clone(),
    }
}
