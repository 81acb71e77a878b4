//! Which jobs' time has come: the oldest day first, and within it what was begun before what was not.
//!
//! Takes: the places in the store, the clock, the progress of the inputs. Gives: [`Job`]s, which are busy from then on.
//! Limits: as many as there is room for; what is read of the store is no more than that and what is busy.
//! Not here: what a job does (`attempt`).

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use crate::base::tlsrpt::Day;
use crate::reporting::schedule::records::{Lane, Named, lane};
use crate::reporting::schedule::{Job, RETRY_FOR, Scheduler, Setup, WAIT_FOR_INPUTS};
use crate::store::{Store, StoreError, Table};

/// Until when the places in a lane of a day count as reached.
struct Reached {
    lane: Lane,
    until: i64,
}

impl Scheduler {
    /// Up to `room` jobs whose time has come, oldest day first; they are busy from now on.
    pub(super) async fn ready(&self, room: usize) -> Vec<Job> {
        let now = self.context.clock.seconds();
        let setup = Arc::clone(&self.setup.read());
        let busy = {
            let board = self.board.lock();
            if setup.sending.is_none() || board.rest_until.is_some_and(|until| Instant::now() < until) {
                return Vec::new();
            }
            board.busy.clone()
        };
        let mut wanted = Vec::new();
        // One day more than is kept: what is about to be dropped is dropped by `plan`.
        for day in (Day::of(now.saturating_sub(setup.retention)).0..=Day::of(now).0).map(Day) {
            wanted.push((day, self.reached(day, now, &setup)));
        }
        let mut jobs = match self.blocking(move |store| pick(store, &wanted, &busy, room)).await {
            Ok(jobs) => jobs,
            Err(e) => {
                self.rest();
                self.error(format!("report: what is due is not known: {e}; it is asked again in a minute"));
                return Vec::new();
            }
        };
        // What became busy while the store was read is not picked once more; what has ended meanwhile finds its record
        // done.
        jobs.retain(|job| self.board.lock().busy.insert(job.clone()));
        self.say_forced(&jobs, now);
        jobs
    }

    fn reached(&self, day: Day, now: i64, setup: &Setup) -> [Reached; 3] {
        let closed = self.lagging(day, now).is_empty();
        let look_ups = if closed { now } else { now - WAIT_FOR_INPUTS };
        // The only supplement there will be: it waits for all that comes, as long as there is time for its tries.
        let last_call = day.end().saturating_add(setup.retention) - RETRY_FOR;
        let supplements = if closed || now >= last_call { now } else { i64::MIN };
        [(Lane::Send, now), (Lane::Supplement, supplements), (Lane::LookUp, look_ups)]
            .map(|(lane, until)| Reached { lane, until })
    }

    /// Says of each day once that it was closed though inputs lagged.
    fn say_forced(&self, jobs: &[Job], now: i64) {
        let days = jobs.iter().filter_map(|job| match job {
            Job::LookUp(which) => Some(which.day),
            Job::Send(..) => None,
        });
        for day in days.collect::<HashSet<_>>() {
            let behind = self.lagging(day, now);
            if !behind.is_empty() && self.board.lock().forced.insert(day) {
                let inputs = behind.join(", ");
                self.error(format!(
                    "report {day}: closed late: {inputs} lagged for 12 hours; what is counted later goes into supplements"
                ));
            }
        }
    }
}

fn pick(
    store: &dyn Store,
    wanted: &[(Day, [Reached; 3])],
    busy: &HashSet<Job>,
    room: usize,
) -> Result<Vec<Job>, StoreError> {
    let mut jobs = Vec::new();
    for (day, lanes) in wanted {
        for reached in lanes {
            let prefix = lane(reached.lane, Some(*day));
            let places = store.scan_page(Table::Due, &prefix, &prefix, room + busy.len())?;
            let due = places
                .iter()
                .filter_map(|(place, _)| Named::placed(place))
                .take_while(|(time, _)| *time <= reached.until)
                .map(|(_, named)| match named {
                    Named::Plan(which) => Job::LookUp(which),
                    Named::Delivery(which, to) => Job::Send(which, to),
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
