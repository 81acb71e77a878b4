//! What the MTA's log says of reports that the MTA had accepted: `sent` becomes `deferred` or `bounced`, and `unknown` is
//! cleared up.
//!
//! Takes: [`OwnReportStatus`]es from the counting. Gives: new states of deliveries, in the store.
//! A delivery is found by the Message-ID of its last attempt, or by the queue id in the MTA's reply. All records are read
//! for it, so that nothing more is written for each report; reading takes one part in [`PASS_TIME_FACTOR`] of the time.
//! Limits: [`MAX_UNMATCHED`] lines wait for their report, [`UNMATCHED_TTL`] at most: the MTA can log a bounce before its reply
//! is stored.
//! When it fails: the lines wait and are applied later.
//! Not here: which lines are about our reports (`counting::session`), what a line says (`parsers`).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::own_reports::{MAX_QUEUE_IDS, OwnReportResult, OwnReportStatus};
use crate::base::rua_record::Destination;
use crate::reporting::schedule::records::{
    DeliveryState, RecordKey, ReportDelivery, ReportKey, delivery_key, read_delivery,
};
use crate::reporting::schedule::{Job, MAX_SCAN_INTERVAL, MIN_SCAN_INTERVAL, Scheduler};
use crate::store::{Batch, StoreError};

/// The most lines that wait for their report.
const MAX_UNMATCHED: usize = MAX_QUEUE_IDS;

/// How long a line waits for its report, in seconds: an outcome that cannot be stored is stored again within a minute.
const UNMATCHED_TTL: i64 = 600;

/// Reading the records takes one part in so many of the time.
const PASS_TIME_FACTOR: u32 = 100;

/// The longest pause between two passes: half of [`UNMATCHED_TTL`], so that a line is looked at more than once.
const MAX_PASS_INTERVAL: Duration = Duration::from_secs(300);

/// The lines that wait for their report.
#[derive(Debug, Default)]
pub(super) struct UnmatchedStatuses(Vec<(i64, OwnReportStatus)>);

impl UnmatchedStatuses {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Scheduler {
    /// Applies what the log has said since the last call. Returns when to look again.
    pub(super) async fn apply_log_statuses(self: Arc<Self>) -> Instant {
        let now = self.context.clock.seconds();
        {
            let mut unmatched = self.unmatched_statuses.lock();
            unmatched.0.retain(|(at, _)| (0..=UNMATCHED_TTL).contains(&(now - at)));
            let room = MAX_UNMATCHED.saturating_sub(unmatched.0.len());
            unmatched.0.extend(self.own_report_statuses.take(room).into_iter().map(|status| (now, status)));
            if unmatched.is_empty() {
                return Instant::now() + MIN_SCAN_INTERVAL;
            }
        }
        let started = Instant::now();
        let scheduler = Arc::clone(&self);
        let applied = self.run_blocking(move |_| scheduler.apply_to_records()).await;
        if let Err(e) = applied {
            self.log_error(format!(
                "report: what the log says of reports cannot be stored: {e}; trying again in a minute"
            ));
            return Instant::now() + MAX_SCAN_INTERVAL;
        }
        Instant::now() + (started.elapsed() * PASS_TIME_FACTOR).clamp(MIN_SCAN_INTERVAL, MAX_PASS_INTERVAL)
    }

    fn apply_to_records(&self) -> Result<(), StoreError> {
        let mut unmatched = std::mem::take(&mut *self.unmatched_statuses.lock()).0;
        let applied = self.apply_each(&mut unmatched);
        // What came meanwhile is newer.
        self.unmatched_statuses.lock().0.splice(0..0, unmatched);
        applied
    }

    /// Takes those out of `unmatched` whose report is found.
    fn apply_each(&self, unmatched: &mut Vec<(i64, OwnReportStatus)>) -> Result<(), StoreError> {
        let mut by_id: HashMap<&str, Vec<usize>> = HashMap::new();
        for (i, (_, status)) in unmatched.iter().enumerate() {
            by_id.entry(&status.queue_id).or_default().push(i);
            status.message_id.iter().for_each(|id| by_id.entry(id).or_default().push(i));
        }
        let mut found: Vec<(ReportKey, Destination, Vec<usize>)> = Vec::new();
        self.visit_records(|key, value| {
            if let Some(RecordKey::Delivery(report_key, to)) = RecordKey::decode(key)
                && let Ok(delivery) = serde_json::from_slice::<ReportDelivery>(value)
            {
                let ids = delivery.queue_id.iter().chain([&delivery.message_id]);
                let mut lines: Vec<usize> = ids.filter_map(|id| by_id.get(id.as_str())).flatten().copied().collect();
                lines.sort_unstable();
                lines.dedup();
                if !lines.is_empty() {
                    found.push((report_key, to, lines));
                }
            }
            true
        })?;
        let mut matched = vec![false; unmatched.len()];
        for (report_key, to, lines) in found {
            let statuses: Vec<&OwnReportStatus> = lines.iter().map(|i| &unmatched[*i].1).collect();
            if self.apply_to_delivery(&report_key, &to, &statuses)? {
                lines.iter().for_each(|i| matched[*i] = true);
            }
        }
        let mut matched = matched.into_iter();
        unmatched.retain(|_| !matched.next().unwrap_or_default());
        Ok(())
    }

    /// Returns whether the lines are done with: not while the delivery is being attempted.
    fn apply_to_delivery(
        &self,
        report_key: &ReportKey,
        to: &Destination,
        statuses: &[&OwnReportStatus],
    ) -> Result<bool, StoreError> {
        // Held until it is written, as in `resend`: what is planned again meanwhile must stay planned. `in_flight` is not:
        // the scheduler would wait for the disk. A delivery that a job takes from now on is one that is planned, and
        // no line changes such a one.
        let changing = self.changing_final.lock();
        if self.in_flight.lock().jobs.contains(&Job::Send(report_key.clone(), to.clone())) {
            return Ok(false);
        }
        let Some(before) = read_delivery(&*self.context.store, &delivery_key(report_key, to))? else { return Ok(true) };
        let mut delivery = before.clone();
        for status in statuses {
            delivery = after_log_status(&delivery, status).unwrap_or(delivery);
        }
        if delivery == before {
            return Ok(true);
        }
        let mut batch = Batch::default();
        delivery.add_to_batch(&mut batch, report_key, to, &[&before]);
        self.context.store.write(batch)?;
        drop(changing);
        if delivery.state != before.state {
            self.log_new_state(report_key, to, &delivery);
        }
        Ok(true)
    }

    fn log_new_state(&self, report_key: &ReportKey, to: &Destination, delivery: &ReportDelivery) {
        let why = delivery.last.as_deref().unwrap_or_default();
        match delivery.state {
            DeliveryState::Bounced => {
                self.context.metrics.add("reports_bounced", 1);
                self.log_error(format!(
                    "report {report_key} to {to}: bounced after the MTA had accepted it: {why}; it is not tried again"
                ));
            }
            DeliveryState::Deferred => {
                tracing::info!("report {report_key} to {to}: deferred by the MTA, which tries again: {why}");
            }
            _ => tracing::info!("report {report_key} to {to}: delivered by the MTA: {why}"),
        }
    }
}

/// The delivery after a line of the log; `None` where the line changes nothing. A bounce is final: of a message that a
/// content filter passes on, the first part is logged as delivered, and perhaps later than the bounce of the second.
fn after_log_status(delivery: &ReportDelivery, status: &OwnReportStatus) -> Option<ReportDelivery> {
    use DeliveryState::{Bounced, Deferred, Sent, Unknown};
    let is_deferred_part = delivery.queue_id.as_ref() == Some(&status.queue_id);
    let state = match (delivery.state, status.result) {
        (Sent | Deferred | Unknown, OwnReportResult::Bounced) => Bounced,
        (Sent | Deferred | Unknown, OwnReportResult::Deferred) => Deferred,
        (Deferred, OwnReportResult::Delivered) if is_deferred_part => Sent,
        (Unknown, OwnReportResult::Delivered) => Sent,
        _ => return None,
    };
    let (queue_id, last) = (Some(status.queue_id.clone()), Some(format!("{}: {}", status.queue_id, status.reason)));
    Some(ReportDelivery { state, queue_id, last, ..delivery.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reporting::report::build::ReportId;

    #[test]
    fn a_line_of_the_log_changes_the_state_of_a_report_that_the_mta_has() {
        use DeliveryState::{Attempting, Bounced, Deferred, Expired, Planned, Refused, Sent, Suppressed, Unknown};
        use OwnReportResult::Delivered;
        let day = "2026-11-22".parse().unwrap();
        let delivery = |state| ReportDelivery {
            state,
            next: 7,
            first: None,
            tried: None,
            attempts: 1,
            report_id: ReportId::preview(day, "sender.example"),
            message_id: "m@sender.example".into(),
            queue_id: Some("first".into()),
            last: None,
        };
        let after = |state, queue_id: &str, result| {
            let reason = "why".to_owned();
            let status = OwnReportStatus { queue_id: queue_id.to_owned(), message_id: None, result, reason };
            after_log_status(&delivery(state), &status).map(|after| {
                assert_eq!((after.queue_id.as_deref(), after.last), (Some(queue_id), Some(format!("{queue_id}: why"))));
                after.state
            })
        };
        for (before, queue_id, result, wanted) in [
            (Sent, "first", OwnReportResult::Deferred, Some(Deferred)),
            (Sent, "first", OwnReportResult::Bounced, Some(Bounced)),
            (Sent, "second", OwnReportResult::Bounced, Some(Bounced)),
            (Sent, "first", Delivered, None),
            (Deferred, "first", OwnReportResult::Deferred, Some(Deferred)),
            (Deferred, "first", OwnReportResult::Bounced, Some(Bounced)),
            (Deferred, "first", Delivered, Some(Sent)),
            // The content filter has it, and not the receiver.
            (Deferred, "second", Delivered, None),
            (Unknown, "first", Delivered, Some(Sent)),
            (Unknown, "first", OwnReportResult::Deferred, Some(Deferred)),
            (Unknown, "first", OwnReportResult::Bounced, Some(Bounced)),
            (Bounced, "first", Delivered, None),
            (Bounced, "first", OwnReportResult::Deferred, None),
        ] {
            assert_eq!(after(before, queue_id, result), wanted, "{before:?} {queue_id} {result:?}");
        }
        for state in [Planned, Attempting, Refused, Expired, Suppressed] {
            assert_eq!(after(state, "first", OwnReportResult::Bounced), None, "{state:?}");
        }
    }
}
