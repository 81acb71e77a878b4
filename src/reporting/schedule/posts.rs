//! Reports by https: they go apart from those by mail, and each host by itself.
//!
//! Takes: the due entries of [`Queue::Post`]. Gives: one task for each host that may get a POST (`https_hosts`), which sends
//! what is due for that host, one report after the other.
//! Limits: those of `https_hosts`; [`MAX_POSTS_A_TURN`] reports a turn; [`PAGE_SIZE`] entries are read at once.
//! When it fails: the reports for a host that is put off are due again when it may be asked again; after 24 hours of that they
//! expire, as others do. A panic ends a turn, and the host gets the next one.
//! Not here: the attempt itself (`attempt`).

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::base::rua_record::Destination;
use crate::base::tlsrpt::Day;
use crate::reporting::schedule::https_hosts::Turn;
use crate::reporting::schedule::records;
use crate::reporting::schedule::records::{
    DeliveryState, Queue, RecordKey, ReportDelivery, ReportKey, delivery_key, queue_prefix,
};
use crate::reporting::schedule::{Job, RETRY_FOR, Scheduler, random_delay};
use crate::store::{Batch, Store, StoreError, Table};

/// How many reports a host gets in one turn.
const MAX_POSTS_A_TURN: usize = 50;

/// How many due entries are read, or records put off, at once.
const PAGE_SIZE: usize = 500;

/// Over how long the reports for a host that was put off are spread when it may be asked again, in seconds.
const PUT_OFF_SPREAD: i64 = 60;

/// A report for one https destination.
type Post = (ReportKey, Destination);

impl Scheduler {
    /// Starts a task for each host that has reports due and may get a POST now.
    pub(super) async fn start_posts(self: &Arc<Self>, tasks: &mut JoinSet<()>, shutdown: &watch::Receiver<bool>) {
        if !self.may_start_jobs() {
            return;
        }
        let now = self.context.clock.seconds();
        let retention = self.settings.read().retention;
        let mut turns: HashMap<String, Vec<Post>> = HashMap::new();
        for day in (Day::of(now.saturating_sub(retention)).0..=Day::of(now).0).map(Day) {
            let mut from = queue_prefix(Queue::Post, Some(day));
            while !self.https_hosts.lock().is_full() {
                let start = from.clone();
                let page = match self.run_blocking(move |store| read_due_page(store, day, &start, now)).await {
                    Ok(page) => page,
                    Err(e) => {
                        self.back_off();
                        self.log_error(format!("report: due POSTs not read: {e}; they are read again in a minute"));
                        break;
                    }
                };
                let put_off = self.sort_by_host(page.posts, now, &mut turns);
                self.put_off(put_off, now).await;
                match page.next {
                    Some(next) => from = next,
                    None => break,
                }
            }
        }
        for (host, posts) in turns {
            tasks.spawn(Arc::clone(self).run_turn(host, posts, shutdown.clone()));
        }
    }

    /// Puts each report into the turn of its host; returns those whose host is put off. Both are in flight from then on.
    fn sort_by_host(&self, posts: Vec<Post>, now: i64, turns: &mut HashMap<String, Vec<Post>>) -> Vec<(Post, i64)> {
        let mut put_off = Vec::new();
        let (mut hosts, mut in_flight) = (self.https_hosts.lock(), self.in_flight.lock());
        for post in posts {
            let job = Job::Send(post.0.clone(), post.1.clone());
            let host = post.1.server();
            if in_flight.jobs.contains(&job) || turns.get(&host).is_some_and(|turn| turn.len() == MAX_POSTS_A_TURN) {
                continue;
            }
            if let Some(turn) = turns.get_mut(&host) {
                turn.push(post);
            } else {
                match hosts.take_turn(&host, now) {
                    Turn::Now => drop(turns.insert(host, vec![post])),
                    Turn::PutOff(until) => put_off.push((post, until)),
                    Turn::Full => continue,
                }
            }
            in_flight.jobs.insert(job);
        }
        put_off
    }

    pub(super) async fn run_turn(self: Arc<Self>, host: String, posts: Vec<Post>, shutdown: watch::Receiver<bool>) {
        let mut turn = HostTurn { scheduler: Arc::clone(&self), host, posts: posts.into(), put_off: Vec::new() };
        while let Some((report_key, to)) = turn.posts.pop_front() {
            let now = self.context.clock.seconds();
            let until = self.https_hosts.lock().put_off_until(&turn.host, now);
            match until {
                Some(until) => turn.put_off.push(((report_key, to), until)),
                None => {
                    if !*shutdown.borrow() {
                        let settings = Arc::clone(&self.settings.read());
                        self.send_planned(&report_key, &to, &settings, shutdown.clone()).await;
                    }
                    self.in_flight.lock().jobs.remove(&Job::Send(report_key, to));
                }
            }
        }
        // They stay in the turn meanwhile, so that it frees them if this panics.
        self.put_off(turn.put_off.clone(), self.context.clock.seconds()).await;
        turn.put_off.clear();
    }

    /// Moves reports to the time at which their host may be asked again.
    async fn put_off(&self, put_off: Vec<(Post, i64)>, now: i64) {
        for page in put_off.chunks(PAGE_SIZE) {
            let moved = page.to_vec();
            let batch = self.run_blocking(move |store| put_off_batch(store, &moved, now)).await;
            let written = match batch {
                Ok((batch, expired)) => self.group_commit.write(batch).await.map(|()| expired),
                Err(e) => Err(e.to_string()),
            };
            match written {
                Ok(expired) => {
                    self.context.metrics.add("reports_expired", expired.len() as u64);
                    for (report_key, to) in expired {
                        let why = "its host failed again and again; given up after 24 hours";
                        self.log_error(format!("report {report_key} to {to}: expired: {why}"));
                    }
                }
                Err(e) => {
                    self.back_off();
                    self.log_error(format!("report: reports by https not put off: {e}; it is tried again in a minute"));
                }
            }
            let mut in_flight = self.in_flight.lock();
            for ((report_key, to), _) in page {
                in_flight.jobs.remove(&Job::Send(report_key.clone(), to.clone()));
            }
        }
    }
}

/// The turn of a host. However it ends, the host may have another one. After a panic the reports that were not reached are
/// due again; the one that panicked waits for a restart, as one by mail does.
struct HostTurn {
    scheduler: Arc<Scheduler>,
    host: String,
    posts: VecDeque<Post>,
    put_off: Vec<(Post, i64)>,
}

impl Drop for HostTurn {
    fn drop(&mut self) {
        let put_off = self.put_off.drain(..).map(|(post, _)| post);
        for (report_key, to) in self.posts.drain(..).chain(put_off) {
            self.scheduler.in_flight.lock().jobs.remove(&Job::Send(report_key, to));
        }
        self.scheduler.https_hosts.lock().finish(&self.host);
        self.scheduler.new_plans.notify_one();
    }
}

/// Due reports, and where to read on.
struct DuePage {
    posts: Vec<Post>,
    next: Option<Vec<u8>>,
}

fn read_due_page(store: &dyn Store, day: Day, from: &[u8], now: i64) -> Result<DuePage, StoreError> {
    let entries = store.scan_page(Table::Due, &queue_prefix(Queue::Post, Some(day)), from, PAGE_SIZE)?;
    let due: Vec<Post> = entries
        .iter()
        .filter_map(|(due_key, _)| RecordKey::decode_due_key(due_key))
        .take_while(|(time, _)| *time <= now)
        .filter_map(|(_, record_key)| match record_key {
            RecordKey::Delivery(report_key, to) => Some((report_key, to)),
            RecordKey::Plan(_) => None,
        })
        .collect();
    // The next key there can be.
    let next = entries.last().filter(|_| due.len() == PAGE_SIZE).map(|(last, _)| [&last[..], &[0]].concat());
    Ok(DuePage { posts: due, next })
}

fn put_off_batch(store: &dyn Store, put_off: &[(Post, i64)], now: i64) -> Result<(Batch, Vec<Post>), StoreError> {
    let (mut batch, mut expired) = (Batch::default(), Vec::new());
    for ((report_key, to), until) in put_off {
        let Some(before) = records::read_delivery(store, &delivery_key(report_key, to))? else { continue };
        if before.state != DeliveryState::Planned {
            continue;
        }
        let first = before.first.unwrap_or(now);
        let mut delivery = ReportDelivery {
            next: until + random_delay(PUT_OFF_SPREAD),
            first: Some(first),
            last: Some(format!("{}: put off, because it failed several times in a row or asked for it", to.server())),
            ..before.clone()
        };
        if delivery.next - first > RETRY_FOR {
            delivery.state = DeliveryState::Expired;
            expired.push((report_key.clone(), to.clone()));
        }
        delivery.add_to_batch(&mut batch, report_key, to, &[&before]);
    }
    Ok((batch, expired))
}
