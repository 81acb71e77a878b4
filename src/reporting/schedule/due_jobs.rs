//! Which jobs' time has come: the oldest day first, and within it what was begun before what was not.
//!
//! Takes: the places in the store, the clock, the progress of the inputs. Gives: [`Job`]s, which are in flight from then on.
//! Limits: as many as there is room for; what is read of the store is no more than that and what is busy.
//! Not here: what a job does (`attempt`).

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use crate::base::tlsrpt::Day;
use crate::reporting::schedule::records::{Queue, RecordKey, queue_prefix};
use crate::reporting::schedule::{Job, RETRY_FOR, Scheduler, SchedulerSettings, WAIT_FOR_INPUTS};
use crate::store::{Store, StoreError, Table};

/// A queue of a day, and the time until which its entries are due.
struct QueueCutoff {
    queue: Queue,
    until: i64,
}

impl Scheduler {
    /// Whether reports can be sent, and the store has not just failed.
    pub(super) fn may_start_jobs(&self) -> bool {
        let back_off_until = self.in_flight.lock().back_off_until;
        self.settings.read().sender.is_some() && back_off_until.is_none_or(|until| until <= Instant::now())
    }

    /// Takes up to `room` due jobs, oldest day first; they are in flight from now on.
    pub(super) async fn take_due_jobs(&self, room: usize) -> Vec<Job> {
        if !self.may_start_jobs() {
            return Vec::new();
        }
        let now = self.context.clock.seconds();
        let settings = Arc::clone(&self.settings.read());
        let busy = self.in_flight.lock().jobs.clone();
        let mut wanted = Vec::new();
        // One day more than is kept: what is about to be dropped is dropped by `planner`.
        for day in (Day::of(now.saturating_sub(settings.retention)).0..=Day::of(now).0).map(Day) {
            wanted.push((day, self.queue_cutoffs(day, now, &settings)));
        }
        let mut jobs = match self.run_blocking(move |store| read_due_jobs(store, &wanted, &busy, room)).await {
            Ok(jobs) => jobs,
            Err(e) => {
                self.back_off();
                self.log_error(format!("report: what is due is not known: {e}; it is asked again in a minute"));
                return Vec::new();
            }
        };
        // What became busy while the store was read is not picked once more; what has ended meanwhile finds its record
        // done.
        jobs.retain(|job| self.in_flight.lock().jobs.insert(job.clone()));
        self.log_closed_late(&jobs, now);
        jobs
    }

    fn queue_cutoffs(&self, day: Day, now: i64, settings: &SchedulerSettings) -> [QueueCutoff; 3] {
        let closed = self.lagging_inputs(day, now).is_empty();
        let look_ups = if closed { now } else { now - WAIT_FOR_INPUTS };
        // The only supplement there will be: it waits for all that comes, as long as there is time for its tries.
        let last_call = day.end().saturating_add(settings.retention) - RETRY_FOR;
        let supplements = if closed || now >= last_call { now } else { i64::MIN };
        let mails = if self.mail_may_go() { now } else { i64::MIN };
        [(Queue::Send, mails), (Queue::Supplement, supplements), (Queue::LookUp, look_ups)]
            .map(|(queue, until)| QueueCutoff { queue, until })
    }

    /// Logs once for each day that it was closed although inputs lagged.
    fn log_closed_late(&self, jobs: &[Job], now: i64) {
        let days = jobs.iter().filter_map(|job| match job {
            Job::LookUp(report_key) => Some(report_key.day),
            Job::Send(..) => None,
        });
        for day in days.collect::<HashSet<_>>() {
            let behind = self.lagging_inputs(day, now);
            if !behind.is_empty() && self.in_flight.lock().closed_late.insert(day) {
                let inputs = behind.join(", ");
                self.log_error(format!(
                    "report {day}: closed late: {inputs} lagged for 12 hours; what is counted later goes into supplements"
                ));
            }
        }
    }
}

fn read_due_jobs(
    store: &dyn Store,
    wanted: &[(Day, [QueueCutoff; 3])],
    busy: &HashSet<Job>,
    room: usize,
) -> Result<Vec<Job>, StoreError> {
    let mut jobs = Vec::new();
    for (day, lanes) in wanted {
        for reached in lanes {
            let prefix = queue_prefix(reached.queue, Some(*day));
            let places = store.scan_page(Table::Due, &prefix, &prefix, room + busy.len())?;
            let due = places
                .iter()
                .filter_map(|(due_key, _)| RecordKey::decode_due_key(due_key))
                .take_while(|(time, _)| *time <= reached.until)
                .map(|(_, record_key)| match record_key {
                    RecordKey::Plan(report_key) => Job::LookUp(report_key),
                    RecordKey::Delivery(report_key, to) => Job::Send(report_key, to),
                })
                .filter(|job| !busy.contains(job));
            jobs.extend(due.take(room - jobs.len()));
            if jobs.len() == room {
                return Ok(jobs);
            }
        }
    }
    Ok(jobs)
}
