//! Sends reports once more: one report, or those of a day that ended in certain states.
//!
//! Takes: a [`ResendSelection`]. Gives: deliveries that are planned anew, under the same report-id and a new Message-ID, and a
//! [`ResendResult`].
//! Limits: [`MAX_BATCH_RECORDS`] records are written at once. What is on its way is left alone; what `[report]` does not want
//! (any more) is left out, with the reason.
//! When it fails: one line; what was planned before that goes.
//! Not here: the attempts (`attempt`), which are as those of any report.

use serde::{Deserialize, Serialize};

use crate::base::own_reports;
use crate::base::rua_record::Destination;
use crate::base::tlsrpt::Day;
use crate::reporting::report::ReportSender;
use crate::reporting::schedule::overview::ReportState;
use crate::reporting::schedule::records::{DeliveryState, RecordKey, ReportDelivery, ReportKey};
use crate::reporting::schedule::{Job, Scheduler};
use crate::store::{Batch, MAX_BATCH_RECORDS};

/// The reports to send once more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ResendSelection {
    /// One report, by its identifier or by what stands before its `@`.
    Report(String),
    /// Those of a day that are in one of these states.
    Day(Day, Vec<ReportState>),
}

/// What is sent once more.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct ResendResult {
    /// To how many destinations.
    pub(crate) destinations: usize,
    /// What is not, one line each: the report, its destination, why.
    pub(crate) left_out: Vec<String>,
}

/// A delivery as it is stored.
type StoredDelivery = (ReportKey, Destination, ReportDelivery);

impl Scheduler {
    /// Plans the selected deliveries anew. Blocks for as long as the store does.
    pub(crate) fn resend(&self, selection: &ResendSelection) -> Result<ResendResult, String> {
        let deliveries = match selection {
            ResendSelection::Report(id) => {
                let (report_key, deliveries) = self.find_report(id)?;
                deliveries.into_iter().map(|(to, delivery)| (report_key.clone(), to, delivery)).collect()
            }
            ResendSelection::Day(day, states) => self.deliveries_in(*day, states)?,
        };
        let settings = self.settings.read().clone();
        let Some(sender) = &settings.sender else { return Err("[report] is incomplete; nothing is sent".to_owned()) };
        let mut result = ResendResult::default();
        for page in deliveries.chunks(MAX_BATCH_RECORDS / 4) {
            self.resend_page(page, sender, &mut result)?;
        }
        Ok(result)
    }

    fn resend_page(
        &self,
        deliveries: &[StoredDelivery],
        sender: &ReportSender,
        result: &mut ResendResult,
    ) -> Result<(), String> {
        let (mut batch, mut again) = (Batch::default(), 0);
        // Held until it is written: what is picked meanwhile would be tried beside it.
        let _changing = self.changing_final.lock();
        let in_flight = self.in_flight.lock();
        for (report_key, to, before) in deliveries {
            let on_its_way = matches!(before.state, DeliveryState::Planned | DeliveryState::Attempting)
                || in_flight.jobs.contains(&Job::Send(report_key.clone(), to.clone()));
            if on_its_way {
                continue;
            }
            if let Err(why) = sender.recipient_filter.check_planned(&report_key.subject, report_key.day, to) {
                result.left_out.push(format!("report {report_key} to {to}: {why}"));
                continue;
            }
            let message_id = self
                .new_message_id(report_key.day, sender)
                .map_err(|e| format!("report {report_key}: {e}; nothing is sent"))?;
            let planned = ReportDelivery {
                state: DeliveryState::Planned,
                next: self.context.clock.seconds(),
                first: None,
                attempts: 0,
                message_id,
                queue_id: None,
                ..before.clone()
            };
            planned.add_to_batch(&mut batch, report_key, to, &[before]);
            again += 1;
        }
        if again > 0 {
            self.context.store.write(batch).map_err(|e| format!("reports not sent again: {e}"))?;
            result.destinations += again;
            self.new_plans.notify_one();
        }
        Ok(())
    }

    fn deliveries_in(&self, day: Day, states: &[ReportState]) -> Result<Vec<StoredDelivery>, String> {
        let mut found = Vec::new();
        let read = self.visit_records(|key, value| {
            if let Some(RecordKey::Delivery(report_key, to)) = RecordKey::decode(key)
                && report_key.day == day
                && let Ok(delivery) = serde_json::from_slice::<ReportDelivery>(value)
                && states.contains(&delivery.state.into())
            {
                found.push((report_key, to, delivery));
            }
            true
        });
        read.map(|()| found).map_err(|e| e.to_string())
    }

    /// A new Message-ID that nobody else can have made.
    pub(super) fn new_message_id(&self, day: Day, sender: &ReportSender) -> std::io::Result<String> {
        let unique =
            format!("{}-{}", day.to_string().replace('-', ""), own_reports::hex(&own_reports::random_bytes::<8>()?));
        Ok(self.context.message_id_key.message_id(&unique, &sender.identity.from.domain))
    }
}
