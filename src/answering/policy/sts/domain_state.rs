//! What is known of one domain's MTA-STS, and what is to be found out next (RFC 8461 §3.3, §5.1, §10.2).
//!
//! Takes: records, documents and faults as they are learned, and moments. Gives: what holds at a moment, and what is due.
//! A policy serves until its `max_age` has run out, whatever DNS and HTTPS do in between; a record that is gone does
//! not end it, a document with `mode: none` does. The record is asked again when its TTL has run out; a changed id
//! fetches at once; a policy in use is fetched anew once a day.
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
use crate::base::clock::{CompactTime, SharedCompactTime};
use crate::net::dns::{DnsAnswer, DnsError};

/// Seconds until a failed fetch is tried again, the first time.
pub const FIRST_RETRY: i64 = 300;

/// Seconds until a failed fetch is tried again, at most.
pub const LAST_RETRY: i64 = 3600;

/// The shortest and longest that a record holds, in seconds, whatever its TTL.
const RECORD_TTL_BOUNDS: (i64, i64) = (60, 86_400);

/// Seconds until a record whose query failed is asked again.
const RECORD_RETRY: i64 = 60;

/// The state of a domain's `_mta-sts` record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum RecordState {
    /// It has one.
    Id {
        /// Its `parse_id`.
        id: Box<str>,
    },
    /// It has none, or none that counts.
    None {
        /// Why.
        reason: Cow<'static, str>,
    },
    /// It could not be asked.
    Failed {
        /// Why.
        cause: Box<str>,
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
        let failure = match (&state.record, &state.failure) {
            (Some(RecordState::Id { id }), Some(failure)) if *failure.id == **id => Some(Arc::clone(failure)),
            // From before a restart.
            (None, failure) => failure.clone(),
            _ => None,
        };
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
        let (record, holds) = match found {
            Ok(answer) => match record::parse_id(&answer.records) {
                Ok(id) => (RecordState::Id { id: id.into() }, clamp(answer.ttl)),
                Err(reason) => (RecordState::None { reason: reason.description().into() }, clamp(answer.ttl)),
            },
            Err(DnsError::Failed(cause)) => match state.record.take() {
                // What was known stands while the resolver fails.
                Some(known @ RecordState::Id { .. }) => (known, RECORD_RETRY),
                _ => (RecordState::Failed { cause: cause.to_string().into() }, RECORD_RETRY),
            },
            Err(none @ DnsError::NoSuchDomain { ttl }) | Err(none @ DnsError::NoRecords { ttl }) => {
                let reason =
                    if matches!(none, DnsError::NoRecords { .. }) { "no such records" } else { "no such domain" };
                (RecordState::None { reason: reason.into() }, clamp(ttl))
            }
        };
        state.record = Some(record);
        state.record_expires = CompactTime::from_seconds(now + holds);
        state.record_checked = CompactTime::from_seconds(now);
        drop(state);
        self.bump_version();
    }

    /// Applies the document that was fetched for an id (`now` in seconds).
    pub fn apply_policy(&self, id: &str, document: &PolicyDocument, now: i64) {
        let policy = StsPolicy::new(&self.name, id, document, now);
        let mut state = self.data.lock();
        state.policy = Some(Arc::new(policy));
        state.failure = None;
        (state.fetch_forced, state.not_asked) = (false, false);
        drop(state);
        self.bump_version();
    }

    /// Applies a failed fetch for an id (`now` in seconds); returns the failure and the policy that stays in force.
    pub fn apply_failure(&self, id: &str, fault: FetchError, now: i64) -> (Arc<PolicyFailure>, Option<Arc<StsPolicy>>) {
        let mut state = self.data.lock();
        let wait = match &state.failure {
            Some(before) if before.id == id => ((before.retry - before.at) * 2).clamp(FIRST_RETRY, LAST_RETRY),
            _ => FIRST_RETRY,
        };
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
        drop(state);
        self.bump_version();
        (failure, cached)
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
        self.record.is_none() || self.record_expires.seconds() <= at
    }

    /// The id to fetch for, where a fetch is due.
    fn due_fetch(&self, at: i64) -> Option<Box<str>> {
        let Some(RecordState::Id { id }) = &self.record else { return None };
        (self.fetch_at(id, at) <= at).then(|| id.clone())
    }

    /// When the document of `parse_id` is to be fetched.
    fn fetch_at(&self, id: &str, now: i64) -> i64 {
        if self.fetch_forced {
            return i64::MIN;
        }
        let wanted = match self.unexpired_policy(now) {
            Some(policy) if *policy.id == *id => policy.refresh_at().min(policy.expires()),
            _ => i64::MIN,
        };
        let held = self.failure.as_ref().filter(|failure| failure.id == id).map_or(i64::MIN, |failure| failure.retry);
        wanted.max(held)
    }

    /// When something is to be asked again.
    fn next_due(&self, now: i64) -> i64 {
        match &self.record {
            None => i64::MIN,
            Some(RecordState::Id { id }) => self.record_expires.seconds().min(self.fetch_at(id, now)),
            Some(RecordState::None { .. } | RecordState::Failed { .. }) => self.record_expires.seconds(),
        }
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
        // The record is gone: the policy stays to its end.
        d.apply_record(Err(DnsError::NoSuchDomain { ttl: Duration::from_secs(60) }), 1300);
        assert_eq!(due(&d, 1300 + DAY), (true, None));
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
            let (failure, _) = d.apply_failure("1", FetchError::Status(500), at);
            assert_eq!(failure.retry, at + wait);
            assert_eq!(due(&d, at + wait - 1).1, None);
            at += wait;
            assert_eq!(due(&d, at).1.as_deref(), Some("1"));
        }
        assert_eq!(d.snapshot(at).failure.unwrap().result_type, ResultType::StsPolicyFetchError);
        d.apply_record(record("v=STSv1; id=2", 86_400), at);
        assert_eq!(due(&d, at).1.as_deref(), Some("2"), "a new id is tried at once");
        assert!(d.snapshot(at).failure.is_none());
        assert_eq!(d.apply_failure("2", FetchError::Status(500), at).0.retry, at + 300);
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
        let (_, cached) = d.apply_failure("1", FetchError::Status(500), refresh);
        assert!(cached.is_some() && d.snapshot(refresh).policy.is_some());
        assert_eq!(due(&d, refresh + 1).1, None);

        // Over a restart why, and when it is tried again.
        let restored = StsPolicy::decode(&d.encode().unwrap()).unwrap();
        let again = DomainState::restored("example.com".into(), restored);
        assert_eq!(again.snapshot(refresh).failure, d.snapshot(refresh).failure);
        again.apply_record(record("v=STSv1; id=1", 86_400), refresh + 1);
        assert_eq!(due(&again, refresh + FIRST_RETRY - 1).1, None);
        assert_eq!(again.apply_failure("1", FetchError::Status(500), refresh + FIRST_RETRY).0.retry, refresh + 900);
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
}
