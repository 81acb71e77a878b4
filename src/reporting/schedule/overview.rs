//! What is due, under way or done, to be looked at; and a report that went, to be sent once more.
//!
//! Takes: the records in the store. Gives: [`Due`]s, all or in short, and [`Kept`] reports.
//! Limits: [`MAX_DUE`] lines in one answer, [`MAX_SHOWN`] in short.
//! When it fails: a line that says why; nothing is changed.
//! Not here: the counts that no report has yet (`store`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::base::own_reports;
use crate::base::rua_record::Destination;
use crate::base::tlsrpt::Day;
use crate::reporting::report::build::Report;
use crate::reporting::schedule::records::{Delivery, DeliveryState, Named, Plan, PlanState, Which};
use crate::reporting::schedule::snapshot::Said;
use crate::reporting::schedule::{Job, Scheduler};
use crate::store::{Batch, StoreError, Table};

/// The most lines in one answer: what a terminal can be asked to show, and some tens of MiB.
pub const MAX_DUE: usize = 100_000;

/// The most lines of what is due in short: a screen or two.
pub const MAX_SHOWN: usize = 50;

/// How many records are read at once.
const PAGE: usize = 1000;

/// One line of what is due, or done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Due {
    /// The UTC day.
    pub day: Day,
    /// The recipient domain; `mx:` and its name for an MX host.
    pub domain: String,
    /// Whether it is about what was counted after the day's first report was settled.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub supplement: bool,
    /// The destination, once it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination: Option<Destination>,
    /// The report's identifier, once it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report_id: Option<String>,
    /// How far it is.
    pub state: DueState,
    /// When something happens next, in seconds since 1970-01-01T00:00:00Z; nothing where it is done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<i64>,
    /// When it was last tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tried: Option<i64>,
    /// How often it was tried.
    pub attempts: u32,
    /// What the last try came to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<String>,
}

/// How far a line of [`Due`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DueState {
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
    /// Refused for good.
    Refused,
    /// It may have been taken; not tried again.
    Unknown,
    /// Given up.
    Expired,
}

/// What is due, in short.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Overview {
    /// How many lines there are in each state.
    pub counts: BTreeMap<DueState, u64>,
    /// The first of those that are still to go or went wrong, oldest day first, [`MAX_SHOWN`] at most.
    pub open: Vec<Due>,
}

/// A report that went or is to go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Kept {
    /// The name of the attached file.
    pub file_name: String,
    /// The JSON, as it is compressed for its receivers.
    pub json: String,
    /// Where it goes, and how far that is.
    pub deliveries: Vec<Due>,
}

impl std::fmt::Display for DueState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.serialize(f)
    }
}

impl From<DeliveryState> for DueState {
    fn from(state: DeliveryState) -> DueState {
        match state {
            DeliveryState::Planned => DueState::Planned,
            DeliveryState::Attempting => DueState::Attempting,
            DeliveryState::Sent => DueState::Sent,
            DeliveryState::Refused => DueState::Refused,
            DeliveryState::Unknown => DueState::Unknown,
            DeliveryState::Expired => DueState::Expired,
        }
    }
}

impl Scheduler {
    /// Everything that is planned, under way or done within retention, oldest day first, [`MAX_DUE`] at most.
    /// Blocks for as long as the store does.
    pub fn due(&self) -> Result<Vec<Due>, StoreError> {
        let mut due = Vec::new();
        self.records(|key, value| {
            due.extend(line(key, value));
            due.len() < MAX_DUE
        })?;
        Ok(due)
    }

    /// How many there are of what, and the first that ask for attention. Blocks for as long as the store does.
    pub fn overview(&self) -> Result<Overview, StoreError> {
        let mut overview = Overview::default();
        self.records(|key, value| {
            if let Some(due) = line(key, value) {
                *overview.counts.entry(due.state).or_default() += 1;
                let over = matches!(due.state, DueState::Sent | DueState::Nothing);
                if !over && overview.open.len() < MAX_SHOWN {
                    overview.open.push(due);
                }
            }
            true
        })?;
        Ok(overview)
    }

    /// A report by its identifier, or by what stands before its `@`. Blocks for as long as the store does.
    pub fn kept(&self, id: &str) -> Result<Kept, String> {
        let (which, deliveries) = self.find(id)?;
        let setup = self.setup.read();
        let Some(sending) = &setup.sending else { return Err("[report] is incomplete; nothing is shown".to_owned()) };
        let packed = self.context.store.read(Table::Snapshot, &which.key()).map_err(|e| e.to_string())?;
        let packed = packed.ok_or_else(|| format!("report {which}: what it says is not kept; nothing is shown"))?;
        let said =
            Said::unpack(&packed).map_err(|e| format!("report {which}: cannot be read: {e}; nothing is shown"))?;
        let identity = said.identity(&sending.identity);
        let (about, id, rows) = (&which.about, &said.report_id, &said.rows);
        let report = Report::build(&identity, which.day, about.name(), id, rows, sending.max_size);
        let deliveries = deliveries.iter().map(|(to, delivery)| delivered(&which, to, delivery)).collect();
        Ok(Kept { file_name: report.file_name, json: String::from_utf8_lossy(&report.json).into_owned(), deliveries })
    }

    /// Has a report sent once more, wherever it went or was to go: the same report under a new Message-ID. Returns to how
    /// many destinations; those to which it is on its way are left alone. Blocks for as long as the store does.
    pub fn resend(&self, id: &str) -> Result<usize, String> {
        let (which, deliveries) = self.find(id)?;
        let setup = self.setup.read();
        let Some(sending) = &setup.sending else { return Err("[report] is incomplete; nothing is sent".to_owned()) };
        let mut batch = Batch::default();
        let mut again = 0;
        // Held until it is written: what is picked meanwhile would be tried beside it.
        let board = self.board.lock();
        for (to, before) in deliveries {
            let on_its_way = matches!(before.state, DeliveryState::Planned | DeliveryState::Attempting)
                || board.busy.contains(&Job::Send(which.clone(), to.clone()));
            if on_its_way {
                continue;
            }
            let message_id =
                self.message_id(which.day, sending).map_err(|e| format!("report {which}: {e}; nothing is sent"))?;
            let now = self.context.clock.seconds();
            let planned = Delivery {
                state: DeliveryState::Planned,
                next: now,
                first: None,
                attempts: 0,
                message_id,
                ..before.clone()
            };
            planned.put(&mut batch, &which, &to, Some(&before));
            again += 1;
        }
        if again > 0 {
            self.context.store.write(batch).map_err(|e| format!("report {which}: {e}; nothing is sent"))?;
            self.planned.notify_one();
        }
        Ok(again)
    }

    /// A Message-ID that nobody else can have made.
    pub(super) fn message_id(
        &self,
        day: Day,
        sending: &crate::reporting::report::ReportSender,
    ) -> std::io::Result<String> {
        let unique =
            format!("{}-{}", day.to_string().replace('-', ""), own_reports::hex(&own_reports::random_bytes::<8>()?));
        Ok(self.context.own.message_id(&unique, &sending.identity.from.domain))
    }

    fn find(&self, id: &str) -> Result<(Which, Vec<(Destination, Delivery)>), String> {
        let mut found: Option<(Which, Vec<(Destination, Delivery)>)> = None;
        let same = |known: &str| known == id || known.split('@').next() == Some(id);
        let read = self.records(|key, value| {
            let Some(Named::Delivery(which, to)) = Named::read(key) else { return true };
            match serde_json::from_slice::<Delivery>(value) {
                Ok(delivery) if same(delivery.report_id.as_str()) => {
                    found.get_or_insert_with(|| (which, Vec::new())).1.push((to, delivery));
                    true
                }
                // They stand together.
                _ => found.is_none(),
            }
        });
        read.map_err(|e| e.to_string())?;
        found.ok_or_else(|| format!("`{}` is no report that is kept; see `tlswarden reports list`", id.escape_debug()))
    }

    /// Hands each record to `each`, until it returns false.
    fn records(&self, mut each: impl FnMut(&[u8], &[u8]) -> bool) -> Result<(), StoreError> {
        let mut from = Vec::new();
        loop {
            let page = self.context.store.scan_page(Table::Delivery, b"", &from, PAGE)?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            // The next key there can be.
            from = [&last[..], &[0]].concat();
            if !page.iter().all(|(key, value)| each(key, value)) {
                return Ok(());
            }
        }
    }
}

/// The line of a record; none for a plan whose deliveries have their own.
fn line(key: &[u8], value: &[u8]) -> Option<Due> {
    match Named::read(key)? {
        Named::Delivery(which, to) => Some(delivered(&which, &to, &serde_json::from_slice(value).ok()?)),
        Named::Plan(which) => {
            let plan = Plan::read(value);
            let state = match plan.state {
                PlanState::Waiting => DueState::Waiting,
                PlanState::Nothing => DueState::Nothing,
                PlanState::Planned => return None,
            };
            Some(Due {
                day: which.day,
                domain: which.name(),
                supplement: which.supplement,
                destination: None,
                report_id: None,
                state,
                next: (state == DueState::Waiting).then_some(plan.next),
                tried: None,
                attempts: plan.attempts,
                last: plan.last,
            })
        }
    }
}

fn delivered(which: &Which, to: &Destination, delivery: &Delivery) -> Due {
    Due {
        day: which.day,
        domain: which.name(),
        supplement: which.supplement,
        destination: Some(to.clone()),
        report_id: Some(delivery.report_id.to_string()),
        state: delivery.state.into(),
        next: (delivery.state == DeliveryState::Planned).then_some(delivery.next),
        tried: delivery.tried,
        attempts: delivery.attempts,
        last: delivery.last.clone(),
    }
}
