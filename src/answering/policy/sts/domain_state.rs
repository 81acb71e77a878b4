//! What is known of one domain's MTA-STS, and what is to be found out next (RFC 8461 §3.3, §5.1, §10.2).
//!
//! Takes: records, documents and faults as they are learned, and moments. Gives: what holds at a moment, and what is due.
//! A policy serves until its `max_age` has run out, whatever DNS and HTTPS do in between; a record that is gone does
//! not end it, a document with `mode: none` does. The record is asked again when its TTL has run out; a changed id
//! fetches at once; a policy in use is fetched anew once a day, whatever the record says.
//! Limits: what was recorded by a clock that was ahead is due; a policy of that kind serves while it is fetched anew. An
//! expired policy is not applied, but kept for [`EXPIRED_KEPT`] and fetched: perhaps the clock is wrong.
//! When it fails: a fetch is tried again after [`FIRST_RETRY`], doubling up to [`LAST_RETRY`]; a new id is tried at once.
//! Not here: all domains (`cache`), asking and fetching.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::answering::policy::sts::document::PolicyDocument;
use crate::answering::policy::sts::fetch::FetchError;
use crate::answering::policy::sts::policy::{PolicyFailure, RestoredPolicy, StsPolicy, keep_beginning};
use crate::answering::policy::sts::record;
use crate::base::clock::{CompactTime, SharedCompactTime, holds, is_future};
use crate::base::tlsrpt::Mode;
use crate::net::dns::{DnsAnswer, DnsError};

/// Seconds until a failed fetch is tried again, the first time.
pub const FIRST_RETRY: i64 = 300;

/// Seconds until a failed fetch is tried again, at most.
pub const LAST_RETRY: i64 = 3600;

/// The shortest and longest that a record holds, in seconds, whatever its TTL.
const RECORD_TTL_BOUNDS: (i64, i64) = (60, 86_400);

/// How long an expired policy is kept once the clock has run evenly, in seconds.
pub const EXPIRED_KEPT: i64 = 6 * 3600;

/// Seconds until a record whose query failed is asked again.
const RECORD_RETRY: i64 = 60;

/// The state of a domain's `_mta-sts` record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum RecordState {
    /// It has one.
    Id {
        /// Its `id`.
        id: Box<str>,
    },
    /// It has none, or none that counts.
    None {
        /// Why.
        reason: Cow<'static, str>,
        /// Whether there is a record that means MTA-STS, and is wrong.
        #[serde(default)]
        invalid: bool,
    },
    /// It could not be asked.
    Failed {
        /// Why.
        cause: Box<str>,
        /// Whether it is this host that could not ask.
        #[serde(default)]
        local: bool,
    },
}

/// What is known of a domain's MTA-STS at a given time.
#[derive(Clone, Debug, Default)]
pub struct DomainSnapshot {
    /// Its policy, unexpired, of any mode.
    pub policy: Option<Arc<StsPolicy>>,
    /// Its record, and until when that holds.
    pub record: Option<(RecordState, i64)>,
    /// When the record was last asked, in seconds since 1970-01-01T00:00:00Z.
    pub checked: Option<i64>,
    /// Why the document that the record names is not the policy.
    pub failure: Option<Arc<PolicyFailure>>,
    /// Whether the document that the record names could not be asked for, through a fault of this host.
    pub not_asked: bool,
    /// When something is to be asked again; a past moment where something is to be asked now.
    pub due: i64,
}

/// What a failed fetch means.
#[derive(Debug)]
pub struct FetchFailure {
    /// Why, and when it is tried again.
    pub failure: Arc<PolicyFailure>,
    /// The policy that stays in force.
    pub cached: Option<Arc<StsPolicy>>,
    /// How the failure is logged.
    pub report: FailureReport,
}

/// How a failed fetch is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureReport {
    /// As any other failure.
    Ordinary,
    /// An enforced policy could not be refreshed again and again, or ends before the next attempt: once, by itself.
    KeepsFailing,
    /// Not at all: that was logged already, or the policy asks for nothing (RFC 8461 §3.3).
    Silent,
}

/// The MTA-STS state of one policy domain.
pub struct DomainState {
    /// Its name in canonical form.
    pub name: Arc<str>,
    /// Counts the changes of what is known.
    version: AtomicU32,
    /// When it was last asked about.
    last_used: SharedCompactTime,
    data: Mutex<DomainData>,
}

#[derive(Default)]
struct DomainData {
    policy: Option<Arc<StsPolicy>>,
    failure: Option<Arc<PolicyFailure>>,
    record: Option<RecordState>,
    /// Until when the record holds.
    record_expires: CompactTime,
    /// When it was last asked; the first of all moments for never.
    record_checked: CompactTime,
    /// Whether the document must be fetched even before it is due.
    fetch_forced: bool,
    /// Whether the last fetch could not begin, through a fault of this host.
    not_asked: bool,
    /// Whether it was logged that the record of an enforced policy has vanished.
    loss_logged: bool,
    /// Whether it was logged that the refresh of an enforced policy keeps failing.
    failing_logged: bool,
}

impl DomainState {
    /// A domain of which nothing is known.
    pub fn new(name: Arc<str>, used: i64) -> DomainState {
        DomainState {
            name,
            version: AtomicU32::new(0),
            last_used: SharedCompactTime::from_seconds(used),
            data: Mutex::default(),
        }
    }

    /// A domain with the policy that the store had.
    pub fn restored(name: Arc<str>, restored: RestoredPolicy) -> DomainState {
        let domain = DomainState::new(name, restored.used);
        {
            let mut state = domain.data.lock();
            state.policy = Some(Arc::new(restored.policy));
            state.failure = restored.failure.map(Arc::new);
            state.record_checked = CompactTime::from_seconds(restored.checked.unwrap_or(0));
        }
        domain
    }

    /// Takes over the policy that the store has, where none is known here.
    pub fn adopt(&self, restored: RestoredPolicy) {
        let mut state = self.data.lock();
        if state.policy.is_none() {
            state.policy = Some(Arc::new(restored.policy));
            state.failure = state.failure.take().or(restored.failure.map(Arc::new));
            drop(state);
            self.bump_version();
        }
    }

    /// Changes with what is known.
    pub fn version(&self) -> u32 {
        self.version.load(Ordering::Acquire)
    }

    /// Records that it was asked for.
    pub fn touch(&self, now: i64) {
        if self.last_used.seconds() != now {
            self.last_used.set(now);
        }
    }

    /// When it was last asked for, in seconds since 1970-01-01T00:00:00Z.
    pub fn last_used(&self) -> i64 {
        self.last_used.seconds()
    }

    /// The size of its texts, in bytes.
    pub fn text_bytes(&self) -> usize {
        let state = self.data.lock();
        let failure = state.failure.as_ref().map_or(0, |failure| failure.text_bytes());
        state.policy.as_ref().map_or(0, |policy| policy.text_bytes()) + failure
    }

    /// Makes the record due at `now`, as if its TTL had run out; with `fetch` also the document, whatever failed before.
    pub fn request_refresh(&self, now: i64, fetch: bool) {
        let mut state = self.data.lock();
        state.record_expires = state.record_expires.min(CompactTime::from_seconds(now));
        state.fetch_forced |= fetch;
    }

    /// What is known at a given time.
    pub fn snapshot(&self, now: i64) -> DomainSnapshot {
        let state = self.data.lock();
        let failure = match &state.record {
            Some(RecordState::Id { id }) => state.failure.as_ref().filter(|failure| *failure.id == **id),
            // The refresh of a policy that serves fails.
            Some(RecordState::None { .. } | RecordState::Failed { .. }) => {
                let serves = |failure: &&Arc<PolicyFailure>| {
                    state.unexpired_policy(now).is_some_and(|policy| *policy.id == *failure.id)
                };
                state.failure.as_ref().filter(serves)
            }
            // From before a restart.
            None => state.failure.as_ref(),
        };
        let failure = failure.map(Arc::clone);
        DomainSnapshot {
            policy: state.unexpired_policy(now).map(Arc::clone),
            record: state.record.clone().map(|record| (record, state.record_expires.seconds())),
            checked: state.record_checked(),
            failure,
            not_asked: state.not_asked && matches!(state.record, Some(RecordState::Id { .. })),
            due: state.next_due(now),
        }
    }

    /// Its policy at a moment, unexpired, of any mode.
    pub fn policy(&self, now: i64) -> Option<Arc<StsPolicy>> {
        self.data.lock().unexpired_policy(now).map(Arc::clone)
    }

    /// When something is to be asked again; a past moment where something is to be asked now.
    pub fn next_due(&self, at: i64) -> i64 {
        self.data.lock().next_due(at)
    }

    /// Whether the record is to be asked.
    pub fn record_due(&self, at: i64) -> bool {
        self.data.lock().record_due(at)
    }

    /// The id to fetch for, where a fetch is due.
    pub fn due_fetch(&self, at: i64) -> Option<Box<str>> {
        self.data.lock().due_fetch(at)
    }

    /// Whether it has a policy, expired or not, and was asked about since that was fetched.
    pub fn is_in_use(&self) -> bool {
        let used = self.last_used();
        self.data.lock().policy.as_ref().is_some_and(|policy| used > policy.fetched())
    }

    /// Returns the reason and the policy if the record of an enforced policy has vanished and that has not been logged yet.
    pub fn take_lost_record(&self, now: i64) -> Option<(Cow<'static, str>, Arc<StsPolicy>)> {
        let mut state = self.data.lock();
        let Some(RecordState::None { reason, .. }) = &state.record else { return None };
        let policy = state.unexpired_policy(now).filter(|policy| policy.mode == Mode::Enforce)?;
        let lost = (reason.clone(), Arc::clone(policy));
        (!std::mem::replace(&mut state.loss_logged, true)).then_some(lost)
    }

    /// Bounds what a wrong clock has left, by one that has run evenly for long; whether the stored form changed. A
    /// policy from the future was fetched now at the latest; no policy outlives its own `max_age`; one that expired
    /// long ago goes.
    pub fn settle(&self, now: i64) -> bool {
        if is_future(self.last_used(), now) {
            self.last_used.set(now);
        }
        let mut state = self.data.lock();
        let Some(policy) = &state.policy else { return false };
        if policy.expires() + EXPIRED_KEPT <= now {
            state.policy = None;
        } else if let Some(settled) = policy.settled(&self.name, now) {
            state.policy = Some(Arc::new(settled));
        } else {
            return false;
        }
        drop(state);
        self.bump_version();
        true
    }

    /// A record that could not be asked is asked at the next look, not only when its time has come.
    pub fn forget_failed_record(&self) {
        let mut state = self.data.lock();
        if matches!(state.record, Some(RecordState::Failed { .. })) {
            state.record = None;
        }
    }

    /// Removes everything that is known; returns whether there was anything.
    pub fn clear(&self) -> bool {
        let state = std::mem::take(&mut *self.data.lock());
        self.bump_version();
        state.policy.is_some() || state.record.is_some() || state.failure.is_some()
    }

    /// Whether its policy has its place in the store.
    pub fn has_policy(&self) -> bool {
        self.data.lock().policy.is_some()
    }

    /// Applies the result of a query for its record (`now` in seconds).
    pub fn apply_record(&self, found: Result<DnsAnswer<String>, DnsError>, now: i64) {
        let clamp = |ttl: Duration| {
            i64::try_from(ttl.as_secs()).unwrap_or(RECORD_TTL_BOUNDS.1).clamp(RECORD_TTL_BOUNDS.0, RECORD_TTL_BOUNDS.1)
        };
        let mut state = self.data.lock();
        let (record, ttl) = match found {
            Ok(answer) => match record::parse_id(&answer.records) {
                Ok(id) => (RecordState::Id { id: id.into() }, clamp(answer.ttl)),
                Err(reason) => {
                    let invalid = reason != record::NoRecord::Absent;
                    (RecordState::None { reason: reason.description().into(), invalid }, clamp(answer.ttl))
                }
            },
            Err(DnsError::Failed(cause)) => match state.record.take() {
                // What was known stands while the resolver fails.
                Some(known @ RecordState::Id { .. }) => (known, RECORD_RETRY),
                _ => (RecordState::Failed { cause: cause.to_string().into(), local: cause.is_local() }, RECORD_RETRY),
            },
            Err(none @ DnsError::NoSuchDomain { ttl }) | Err(none @ DnsError::NoRecords { ttl }) => {
                let reason =
                    if matches!(none, DnsError::NoRecords { .. }) { "no such records" } else { "no such domain" };
                (RecordState::None { reason: reason.into(), invalid: false }, clamp(ttl))
            }
        };
        state.loss_logged &= !matches!(record, RecordState::Id { .. });
        state.record = Some(record);
        state.record_expires = CompactTime::from_seconds(now + ttl);
        state.record_checked = CompactTime::from_seconds(now);
        drop(state);
        self.bump_version();
    }

    /// Applies the document that was fetched for an id (`now` in seconds).
    pub fn apply_policy(&self, id: &str, document: &PolicyDocument, now: i64) {
        let mut policy = StsPolicy::new(&self.name, id, document, now);
        let mut state = self.data.lock();
        // The clock was ahead, or it is behind now: by the clock put right the new one could be over at once.
        if let Some(old) = state.policy.as_ref().filter(|old| is_future(old.fetched(), now)) {
            policy.extend_until(old.expires());
        }
        state.policy = Some(Arc::new(policy));
        state.failure = None;
        (state.fetch_forced, state.not_asked, state.failing_logged) = (false, false, false);
        drop(state);
        self.bump_version();
    }

    /// Applies a failed fetch for an id (`now` in seconds); returns what it means.
    pub fn apply_failure(&self, id: &str, fault: FetchError, now: i64) -> FetchFailure {
        let mut state = self.data.lock();
        let before = state.failure.as_ref().filter(|before| before.id == id);
        let again = before.is_some();
        let wait = before.map_or(FIRST_RETRY, |before| (before.retry - before.at) * 2).clamp(FIRST_RETRY, LAST_RETRY);
        let text = fault.to_string();
        let (result_type, reason) = (fault.result_type(), fault.reason_code());
        let lines = match fault {
            FetchError::Invalid(_, lines) => keep_beginning(lines),
            _ => Vec::new(),
        };
        let id = id.to_owned();
        let failure = Arc::new(PolicyFailure { id, result_type, reason, text, lines, at: now, retry: now + wait });
        state.failure = Some(Arc::clone(&failure));
        (state.fetch_forced, state.not_asked) = (false, false);
        let cached = state.unexpired_policy(now).map(Arc::clone);
        let report = match &cached {
            Some(policy) if policy.mode == Mode::None => FailureReport::Silent,
            Some(policy) if policy.mode == Mode::Enforce && (again || policy.expires() <= failure.retry) => {
                match std::mem::replace(&mut state.failing_logged, true) {
                    true => FailureReport::Silent,
                    false => FailureReport::KeepsFailing,
                }
            }
            _ => FailureReport::Ordinary,
        };
        drop(state);
        self.bump_version();
        FetchFailure { failure, cached, report }
    }

    /// Notes that the document could not be asked for, through a fault of this host: nothing was learned of the domain,
    /// and the fetch stays due.
    pub fn apply_own_fault(&self) {
        self.data.lock().not_asked = true;
        self.bump_version();
    }

    /// The stored form; `None` without a policy.
    pub fn encode(&self) -> Option<Vec<u8>> {
        let (policy, checked, failure) = {
            let state = self.data.lock();
            (state.policy.clone()?, state.record_checked(), state.failure.clone())
        };
        Some(policy.encode(self.last_used(), checked, failure.as_deref()))
    }

    fn bump_version(&self) {
        self.version.fetch_add(1, Ordering::Release);
    }
}

impl DomainData {
    fn record_checked(&self) -> Option<i64> {
        Some(self.record_checked.seconds()).filter(|at| *at > 0)
    }

    fn unexpired_policy(&self, now: i64) -> Option<&Arc<StsPolicy>> {
        self.policy.as_ref().filter(|policy| policy.expires() > now)
    }

    fn record_due(&self, at: i64) -> bool {
        self.record.is_none() || !holds(self.record_checked.seconds(), self.record_expires.seconds(), at)
    }

    /// The id to fetch for, where a fetch is due.
    fn due_fetch(&self, at: i64) -> Option<Box<str>> {
        self.id_to_fetch().filter(|id| self.fetch_at(id, at) <= at).map(Box::from)
    }

    /// The id whose document is wanted: that of the record, or the policy's own where the record is gone or cannot be
    /// asked. Who suppresses a TXT answer must not keep a policy from being refreshed (RFC 8461 §10.2).
    fn id_to_fetch(&self) -> Option<&str> {
        match self.record.as_ref()? {
            RecordState::Id { id } => Some(id),
            RecordState::None { .. } | RecordState::Failed { .. } => {
                self.policy.as_ref().filter(|policy| policy.mode != Mode::None).map(|policy| &*policy.id)
            }
        }
    }

    /// When the document of `id` is to be fetched.
    fn fetch_at(&self, id: &str, now: i64) -> i64 {
        if self.fetch_forced {
            return i64::MIN;
        }
        let wanted = match self.unexpired_policy(now) {
            Some(policy) if *policy.id == *id && !is_future(policy.fetched(), now) => {
                policy.refresh_at().min(policy.expires())
            }
            _ => i64::MIN,
        };
        let failed = self.failure.as_ref().filter(|failure| failure.id == id && !is_future(failure.at, now));
        wanted.max(failed.map_or(i64::MIN, |failure| failure.retry))
    }

    /// When something is to be asked again.
    fn next_due(&self, now: i64) -> i64 {
        if self.record.is_none() || is_future(self.record_checked.seconds(), now) {
            return i64::MIN;
        }
        let record = self.record_expires.seconds();
        self.id_to_fetch().map_or(record, |id| record.min(self.fetch_at(id, now)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answering::policy::sts::document;
    use crate::base::tlsrpt::{Mode, ResultType};

    const DAY: i64 = 86_400;

    fn domain() -> DomainState {
        DomainState::new("example.com".into(), 0)
    }

    fn record(text: &str, ttl: u64) -> Result<DnsAnswer<String>, DnsError> {
        Ok(DnsAnswer { name: "x".into(), records: vec![text.into()], secure: false, ttl: Duration::from_secs(ttl) })
    }

    fn document(mode: &str, max_age: i64) -> PolicyDocument {
        let text = format!("version: STSv1\nmode: {mode}\nmx: mx.example.com\nmax_age: {max_age}\n");
        document::parse(text.as_bytes()).unwrap()
    }

    fn due(domain: &DomainState, at: i64) -> (bool, Option<Box<str>>) {
        (domain.record_due(at), domain.due_fetch(at))
    }

    #[test]
    fn a_policy_lives_and_ends() {
        let d = domain();
        assert_eq!(due(&d, 0), (true, None));
        d.apply_record(record("v=STSv1; id=1", 300), 1000);
        assert_eq!(due(&d, 1000), (false, Some("1".into())));
        d.apply_policy("1", &document("enforce", 10 * DAY), 1000);
        assert_eq!(due(&d, 1299), (false, None));
        assert_eq!(d.snapshot(1299).due, 1300);
        assert_eq!(due(&d, 1300), (true, None));
        // The record is gone: the policy stays to its end, and is fetched at its time.
        d.apply_record(Err(DnsError::NoSuchDomain { ttl: Duration::from_secs(60) }), 1300);
        assert_eq!(due(&d, 1000 + DAY / 2), (true, None));
        assert_eq!(due(&d, 1300 + DAY), (true, Some("1".into())));
        assert!(d.snapshot(1000 + 10 * DAY - 1).policy.is_some());
        assert!(d.snapshot(1000 + 10 * DAY).policy.is_none());
    }

    #[test]
    fn a_changed_id_fetches_while_the_old_policy_serves() {
        let d = domain();
        d.apply_record(record("v=STSv1; id=1", 60), 0);
        d.apply_policy("1", &document("enforce", 10 * DAY), 0);
        d.apply_record(record("v=STSv1; id=2", 60), 60);
        assert_eq!(due(&d, 60), (false, Some("2".into())));
        assert_eq!(d.snapshot(60).policy.unwrap().id, "1".into());
        d.apply_policy("2", &document("none", DAY), 61);
        assert_eq!(d.snapshot(62).policy.unwrap().mode, Mode::None);
    }

    #[test]
    fn a_failed_fetch_backs_off_per_id() {
        let d = domain();
        d.apply_record(record("v=STSv1; id=1", 86_400), 0);
        let mut at = 0;
        for wait in [300, 600, 1200, 2400, 3600, 3600] {
            let failure = d.apply_failure("1", FetchError::Status(500), at).failure;
            assert_eq!(failure.retry, at + wait);
            assert_eq!(due(&d, at + wait - 1).1, None);
            at += wait;
            assert_eq!(due(&d, at).1.as_deref(), Some("1"));
        }
        assert_eq!(d.snapshot(at).failure.unwrap().result_type, ResultType::StsPolicyFetchError);
        d.apply_record(record("v=STSv1; id=2", 86_400), at);
        assert_eq!(due(&d, at).1.as_deref(), Some("2"), "a new id is tried at once");
        assert!(d.snapshot(at).failure.is_none());
        assert_eq!(d.apply_failure("2", FetchError::Status(500), at).failure.retry, at + 300);
    }

    #[test]
    fn a_fault_of_this_host_says_nothing_of_the_domain() {
        let d = domain();
        d.apply_record(record("v=STSv1; id=1", 86_400), 0);
        d.apply_own_fault();
        assert!(d.snapshot(1).not_asked && d.snapshot(1).failure.is_none());
        assert_eq!(due(&d, 1).1.as_deref(), Some("1"), "it stays due");
        // Without a record there is no policy to ask for.
        d.apply_record(Err(DnsError::NoSuchDomain { ttl: Duration::from_secs(60) }), 2);
        assert!(!d.snapshot(2).not_asked);
        d.apply_record(record("v=STSv1; id=1", 86_400), 3);
        assert!(d.snapshot(3).not_asked);
        d.apply_policy("1", &document("enforce", DAY), 4);
        assert!(!d.snapshot(4).not_asked);
    }

    #[test]
    fn a_policy_that_cannot_be_refreshed_serves_on() {
        let d = domain();
        d.apply_record(record("v=STSv1; id=1", 86_400), 0);
        d.apply_policy("1", &document("enforce", 10 * DAY), 0);
        let refresh = d.snapshot(0).policy.unwrap().refresh_at();
        assert!((DAY * 9 / 10..=DAY).contains(&refresh));
        assert_eq!(due(&d, refresh).1.as_deref(), Some("1"));
        let failed = d.apply_failure("1", FetchError::Status(500), refresh);
        assert!(failed.cached.is_some() && d.snapshot(refresh).policy.is_some());
        assert_eq!(due(&d, refresh + 1).1, None);

        // Over a restart why, and when it is tried again.
        let restored = StsPolicy::decode(&d.encode().unwrap()).unwrap();
        let again = DomainState::restored("example.com".into(), restored);
        assert_eq!(again.snapshot(refresh).failure, d.snapshot(refresh).failure);
        again.apply_record(record("v=STSv1; id=1", 86_400), refresh + 1);
        assert_eq!(due(&again, refresh + FIRST_RETRY - 1).1, None);
        assert_eq!(
            again.apply_failure("1", FetchError::Status(500), refresh + FIRST_RETRY).failure.retry,
            refresh + 900
        );
    }

    #[test]
    fn a_failing_resolver_changes_nothing_that_is_known() {
        let d = domain();
        d.apply_record(record("v=STSv1; id=1", 60), 0);
        d.apply_record(Err(DnsError::Failed("SERVFAIL".into())), 60);
        assert_eq!(d.snapshot(61).record.unwrap(), (RecordState::Id { id: "1".into() }, 120));
        let d = domain();
        d.apply_record(Err(DnsError::Failed("SERVFAIL".into())), 0);
        assert_eq!(due(&d, 59), (false, None));
    }

    #[test]
    fn ttls_and_ages_have_bounds() {
        let d = domain();
        d.apply_record(record("v=STSv1; id=1", 0), 0);
        assert_eq!(d.snapshot(0).record.unwrap().1, 60);
        d.apply_record(record("v=STSv1; id=1", 10_000_000), 0);
        assert_eq!(d.snapshot(0).record.unwrap().1, DAY);
        d.apply_policy("1", &document("enforce", 0), 0);
        assert_eq!(d.snapshot(0).policy.unwrap().expires(), 60);
    }

    fn no_record() -> Result<DnsAnswer<String>, DnsError> {
        Err(DnsError::NoRecords { ttl: Duration::from_secs(60) })
    }

    fn two_records() -> Result<DnsAnswer<String>, DnsError> {
        let records = vec!["v=STSv1; id=2".into(), "v=STSv1; id=3".into()];
        Ok(DnsAnswer { name: "x".into(), records, secure: false, ttl: Duration::from_secs(60) })
    }

    fn failed_record() -> Result<DnsAnswer<String>, DnsError> {
        Err(DnsError::Failed("SERVFAIL".into()))
    }

    /// RFC 8461 §10.2: "regardless of the state of the `_mta-sts` TXT record".
    #[test]
    fn a_policy_is_refreshed_whatever_the_record_says() {
        type Record = fn() -> Result<DnsAnswer<String>, DnsError>;
        for (name, found) in
            [("none", no_record as Record), ("two", two_records as Record), ("failed", failed_record as Record)]
        {
            for mode in ["enforce", "testing"] {
                let d = domain();
                d.apply_record(record("v=STSv1; id=1", 60), 0);
                d.apply_policy("1", &document(mode, 10 * DAY), 0);
                // As after a restart, which knows no record.
                let restored = StsPolicy::decode(&d.encode().unwrap()).unwrap();
                let d = DomainState::restored("example.com".into(), restored);
                let refresh = d.snapshot(0).policy.unwrap().refresh_at();
                d.apply_record(found(), refresh - 10);
                assert_eq!(due(&d, refresh - 1).1, None, "{name} {mode}");
                assert_eq!(due(&d, refresh).1.as_deref(), Some("1"), "{name} {mode}");
                assert_eq!(d.next_due(refresh - 5), refresh, "{name} {mode}");
                // It fails: the failure is known, and tried again.
                d.apply_failure("1", FetchError::Status(500), refresh);
                assert!(d.snapshot(refresh).failure.is_some() && due(&d, refresh + FIRST_RETRY - 1).1.is_none());
                assert_eq!(due(&d, refresh + FIRST_RETRY).1.as_deref(), Some("1"), "{name} {mode}");
                d.apply_policy("1", &document(mode, 10 * DAY), refresh + FIRST_RETRY);
                assert!(d.snapshot(10 * DAY + 60).policy.is_some(), "{name} {mode}");
            }
            // There is nothing to protect.
            let d = domain();
            d.apply_policy("1", &document("none", 10 * DAY), 0);
            d.apply_record(found(), 2 * DAY);
            assert_eq!(due(&d, 2 * DAY).1, None, "{name}");
            // Nothing was known.
            let d = domain();
            d.apply_record(found(), 0);
            assert_eq!(due(&d, 0).1, None, "{name}");
        }
    }

    #[test]
    fn a_lost_record_is_reported_once_until_it_is_back() {
        let d = domain();
        d.apply_record(record("v=STSv1; id=1", 60), 0);
        d.apply_policy("1", &document("enforce", 10 * DAY), 0);
        assert!(d.take_lost_record(1).is_none());
        d.apply_record(failed_record(), 60);
        assert!(d.take_lost_record(60).is_none(), "it was not asked");
        for at in [120, 100_000] {
            d.apply_record(no_record(), at);
            let (reason, policy) = d.take_lost_record(at).unwrap();
            assert_eq!((&*reason, policy.expires()), ("no such records", 10 * DAY));
            d.apply_record(two_records(), at + 60);
            assert!(d.take_lost_record(at + 60).is_none());
            d.apply_record(record("v=STSv1; id=1", 60), at + 120);
            assert!(d.take_lost_record(at + 120).is_none());
        }
        d.apply_record(no_record(), 10 * DAY);
        assert!(d.take_lost_record(10 * DAY).is_none(), "the policy has ended");
    }

    #[test]
    fn a_refresh_that_keeps_failing_is_reported_once_until_it_works() {
        let fails = |d: &DomainState, at| d.apply_failure("1", FetchError::Status(500), at).report;
        for (mode, max_age, want) in [
            ("enforce", 10 * DAY, [FailureReport::Ordinary, FailureReport::KeepsFailing, FailureReport::Silent]),
            // It ends before the next attempt.
            ("enforce", 150, [FailureReport::KeepsFailing, FailureReport::Silent, FailureReport::Silent]),
            ("testing", 10 * DAY, [FailureReport::Ordinary; 3]),
            ("none", 10 * DAY, [FailureReport::Silent; 3]),
        ] {
            let d = domain();
            for begin in [0, 1000] {
                d.apply_policy("1", &document(mode, max_age), begin);
                let found = [1, 2, 3].map(|n| fails(&d, begin + n));
                assert_eq!(found, want, "{mode} {max_age}");
            }
        }
        // Without a policy a failure is one like any other.
        let d = domain();
        assert_eq!([1, 2].map(|at| fails(&d, at)), [FailureReport::Ordinary; 2]);
    }

    #[test]
    fn what_a_clock_that_was_ahead_recorded_is_due() {
        for ahead in [3600, DAY, 400 * DAY] {
            let d = domain();
            d.apply_record(no_record(), ahead);
            assert_eq!((due(&d, 0), d.next_due(0)), ((true, None), i64::MIN), "no record, {ahead} s ahead");

            let d = domain();
            d.apply_record(record("v=STSv1; id=1", 86_400), ahead);
            d.apply_failure("1", FetchError::Status(500), ahead);
            assert_eq!(due(&d, 0), (true, Some("1".into())), "a failed fetch, {ahead} s ahead");

            d.apply_policy("1", &document("enforce", 10 * DAY), ahead);
            d.apply_record(record("v=STSv1; id=1", 86_400), 0);
            assert!(d.snapshot(0).policy.is_some(), "it serves, {ahead} s ahead");
            assert_eq!(due(&d, 0).1.as_deref(), Some("1"), "and is fetched, {ahead} s ahead");
            assert_eq!(d.apply_failure("1", FetchError::Status(500), 0).failure.retry, FIRST_RETRY);
            assert_eq!(due(&d, 1).1, None);
            // Once the clock has run evenly for hours it has its own lifetime from then on.
            assert!(d.settle(10) && !d.settle(10));
            let policy = d.snapshot(10).policy.unwrap();
            assert_eq!((policy.fetched(), policy.expires()), (10, 10 + 10 * DAY));
        }
    }

    /// A host without a battery starts days or years behind, until its time is synchronized.
    #[test]
    fn what_a_clock_that_was_behind_recorded_ends_nothing() {
        for behind in [3600, DAY, 400 * DAY] {
            let d = domain();
            let (right, wrong) = (1000 * DAY, 1000 * DAY - behind);
            d.touch(right);
            d.apply_record(record("v=STSv1; id=1", 60), right);
            d.apply_policy("1", &document("enforce", DAY / 2), right);
            // Fetched anew by the wrong clock, and then put right.
            d.apply_record(record("v=STSv1; id=1", 60), wrong);
            assert_eq!(due(&d, wrong).1.as_deref(), Some("1"), "{behind} s behind");
            d.apply_policy("1", &document("enforce", DAY / 2), wrong);
            assert!(d.snapshot(right + 60).policy.is_some(), "{behind} s behind");
            assert_eq!(due(&d, right + 60), (true, (behind >= DAY / 4).then(|| "1".into())), "{behind} s behind");
            // It was not longer for it: by a clock that runs evenly it ends.
            d.settle(right + DAY);
            assert!(d.snapshot(right + DAY).policy.is_none(), "{behind} s behind");
        }
    }

    #[test]
    fn an_expired_policy_is_kept_and_fetched_but_not_applied() {
        let d = domain();
        d.touch(1);
        d.apply_record(record("v=STSv1; id=1", 60), 0);
        d.apply_policy("1", &document("enforce", DAY), 0);
        assert!(d.is_in_use());
        for found in [record("v=STSv1; id=1", 60), no_record(), failed_record()] {
            d.apply_record(found, 30 * DAY);
            assert!(d.snapshot(30 * DAY).policy.is_none() && d.has_policy() && d.is_in_use());
            assert_eq!(due(&d, 30 * DAY).1.as_deref(), Some("1"));
        }
        // The clock is put right: nothing is lost.
        assert!(d.snapshot(DAY - 1).policy.is_some());
        assert!(!d.settle(DAY + EXPIRED_KEPT - 1) && d.settle(DAY + EXPIRED_KEPT) && !d.has_policy());
    }
}
