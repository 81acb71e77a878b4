//! Which https receivers may get a POST now: each host has a budget of its own, apart from the MTA's connections.
//!
//! Takes: the host of a report that is due; what became of a POST. Gives: a [`Turn`]. Pure: the time comes from outside.
//! Limits: [`MAX_POSTS`] hosts at once, one POST to each; of those [`MAX_UNPROVEN`] that have not taken a report since the
//! start or failed last time, so that silent hosts leave room for the others. [`MAX_HOSTS`] are remembered.
//! When it fails: a host that failed [`FAILURES`] times in a row is put off as a whole, for longer each time.
//! Not here: the POST (`transport::https`), when a report is due (`due_jobs`).

use std::collections::HashMap;

use crate::reporting::schedule::attempt::retry_delay;

/// The most hosts that get a POST at one time: each takes a connection and a report in memory.
pub(super) const MAX_POSTS: usize = 64;

/// The most of them that are not known to answer.
const MAX_UNPROVEN: usize = 48;

/// After so many failures in a row a host is put off.
pub(super) const FAILURES: u32 = 3;

/// The most hosts that are remembered.
const MAX_HOSTS: usize = 10_000;

/// Whether a host may get a POST.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Yes; [`HttpsHosts::finish`] must follow.
    Now,
    /// Not before this time, for it failed too often.
    PutOff(i64),
    /// Once another POST has ended.
    Full,
}

/// The hosts of https receivers.
#[derive(Debug, Default)]
pub(super) struct HttpsHosts {
    hosts: HashMap<String, HostState>,
    posts: usize,
    unproven_posts: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct HostState {
    /// Whether it has a POST under way, and whether that is counted as unproven.
    busy: Option<Unproven>,
    proven: bool,
    failures: u32,
    put_off_until: i64,
}

#[derive(Clone, Copy, Debug)]
struct Unproven(bool);

impl HttpsHosts {
    /// Asks for a turn.
    pub(super) fn take_turn(&mut self, host: &str, now: i64) -> Turn {
        let state = self.hosts.get(host).copied().unwrap_or_default();
        if state.put_off_until > now {
            return Turn::PutOff(state.put_off_until);
        }
        let unproven = !state.proven;
        if state.busy.is_some() || self.is_full() || (unproven && self.unproven_posts == MAX_UNPROVEN) {
            return Turn::Full;
        }
        self.make_room(now);
        self.hosts.insert(host.to_owned(), HostState { busy: Some(Unproven(unproven)), ..state });
        self.posts += 1;
        self.unproven_posts += usize::from(unproven);
        Turn::Now
    }

    /// Whether no host can get a turn.
    pub(super) fn is_full(&self) -> bool {
        self.posts == MAX_POSTS
    }

    /// Until when a host is put off, if it is.
    pub(super) fn put_off_until(&self, host: &str, now: i64) -> Option<i64> {
        self.hosts.get(host).map(|state| state.put_off_until).filter(|until| *until > now)
    }

    /// Records a POST: whether the host answered it for good, and when it wants to be asked again. Returns the number of
    /// failures in a row where the host is put off because of them.
    pub(super) fn record(&mut self, host: &str, answered: bool, not_before: Option<i64>, now: i64) -> Option<u32> {
        let state = self.hosts.get_mut(host)?;
        state.proven = answered;
        state.failures = if answered { 0 } else { state.failures.saturating_add(1) };
        let failed = !answered && state.failures >= FAILURES;
        let until = if failed { now + retry_delay(state.failures - FAILURES + 1) } else { 0 };
        state.put_off_until = until.max(not_before.unwrap_or(0));
        failed.then_some(state.failures)
    }

    /// Gives a turn back.
    pub(super) fn finish(&mut self, host: &str) {
        let Some(Unproven(unproven)) = self.hosts.get_mut(host).and_then(|state| state.busy.take()) else { return };
        self.posts -= 1;
        self.unproven_posts -= usize::from(unproven);
    }

    /// Forgets the hosts of which nothing bad is known, when there are too many; else those that are put off no longer.
    fn make_room(&mut self, now: i64) {
        if self.hosts.len() >= MAX_HOSTS {
            self.hosts.retain(|_, state| state.busy.is_some() || state.put_off_until > now);
        }
        if self.hosts.len() >= MAX_HOSTS {
            self.hosts.retain(|_, state| state.busy.is_some());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_post_to_a_host_and_room_for_those_that_answer() {
        let mut hosts = HttpsHosts::default();
        assert_eq!(hosts.take_turn("good.example", 0), Turn::Now);
        assert_eq!(hosts.take_turn("good.example", 0), Turn::Full);
        hosts.record("good.example", true, None, 0);
        hosts.finish("good.example");
        for i in 0..MAX_UNPROVEN {
            assert_eq!(hosts.take_turn(&format!("silent{i}.example"), 0), Turn::Now);
        }
        assert_eq!(hosts.take_turn("another.example", 0), Turn::Full);
        assert_eq!(hosts.take_turn("good.example", 0), Turn::Now);
        hosts.finish("good.example");
        hosts.finish("silent0.example");
        assert_eq!(hosts.take_turn("another.example", 0), Turn::Now);
    }

    #[test]
    fn a_host_that_fails_in_a_row_is_put_off_for_longer_each_time_and_one_that_says_when_until_then() {
        let mut hosts = HttpsHosts::default();
        let mut now = 1000;
        for failed in 1..FAILURES {
            assert_eq!(hosts.take_turn("r.example", now), Turn::Now);
            assert_eq!(hosts.record("r.example", false, None, now), None, "{failed}");
            hosts.finish("r.example");
        }
        for wait in [300, 600, 1200] {
            assert_eq!(hosts.take_turn("r.example", now), Turn::Now);
            assert!(hosts.record("r.example", false, None, now).is_some());
            hosts.finish("r.example");
            assert_eq!(hosts.take_turn("r.example", now), Turn::PutOff(now + wait));
            assert_eq!(hosts.put_off_until("r.example", now), Some(now + wait));
            now += wait;
        }
        assert_eq!(hosts.take_turn("r.example", now), Turn::Now);
        hosts.record("r.example", true, None, now);
        hosts.finish("r.example");
        assert_eq!(hosts.put_off_until("r.example", now), None);
        assert_eq!(hosts.take_turn("r.example", now), Turn::Now);
        hosts.record("r.example", false, Some(now + 7200), now);
        hosts.finish("r.example");
        assert_eq!(hosts.take_turn("r.example", now), Turn::PutOff(now + 7200));
    }

    #[test]
    fn the_memory_of_hosts_is_bounded() {
        let mut hosts = HttpsHosts::default();
        for i in 0..2 * MAX_HOSTS {
            let host = format!("h{i}.example");
            assert_eq!(hosts.take_turn(&host, 0), Turn::Now);
            hosts.record(&host, false, Some(i64::MAX), 0);
            hosts.finish(&host);
        }
        assert!(hosts.hosts.len() <= MAX_HOSTS);
    }
}
