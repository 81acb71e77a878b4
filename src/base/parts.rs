//! The parts of the daemon, and why each one that is off is off.
//!
//! Takes: state changes from the code that opens or runs a part. Gives: one list, which `status`, `doctor`, the log and `/metrics` read.
//! Only answering is vital: a part that fails is turned off and tried again, and everything else runs.
//! Limits: one entry for each part that the configuration names.
//! When it fails: it cannot.
//! Not here: opening a part and trying it again (`daemon/parts.rs`).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::base::clock::Clock;

/// The embedded store.
pub const STORE: &str = "store";

/// Counting sessions, which needs the store.
pub const COUNTING: &str = "counting";

/// Making and sending reports.
pub const REPORTS: &str = "reports";

/// Fetching MTA-STS policies, and sending reports by https.
pub const HTTPS: &str = "https";

/// Whether a part runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "kebab-case", tag = "state")]
pub enum PartState {
    /// It does what the configuration says.
    Running,
    /// It does nothing for now.
    Off {
        /// The problem and its cause, in one line without the name of the part.
        reason: String,
        /// When it was turned off, in seconds since 1970-01-01T00:00:00Z.
        since: i64,
        /// When it is tried again, likewise; nothing where it is watched or waits for another part.
        next_try: Option<i64>,
    },
}

/// All parts by name. Copies share it.
#[derive(Clone, Default)]
pub struct Parts(Arc<Mutex<BTreeMap<String, PartState>>>);

impl Parts {
    /// Sets which parts there are: one that is new runs until it is turned off, the others are forgotten.
    pub fn set_parts(&self, names: impl IntoIterator<Item = String>) {
        let mut parts = self.0.lock();
        let state = |name: String| {
            let state = parts.remove(&name).unwrap_or(PartState::Running);
            (name, state)
        };
        let named = names.into_iter().map(state).collect();
        *parts = named;
    }

    /// Turns a part off, or notes why it is still off. Logged once for each reason.
    pub fn turn_off(&self, clock: Clock, part: &str, reason: &str, retry: Option<Duration>) {
        let now = clock.seconds();
        let mut parts = self.0.lock();
        let known = parts.get(part).cloned();
        let (since, logged) = match known {
            Some(PartState::Off { reason: before, since, .. }) => (since, before == reason),
            _ => (now, false),
        };
        let seconds = |pause: Duration| i64::try_from(pause.as_secs()).unwrap_or(i64::MAX);
        let next_try = retry.map(|pause| now.saturating_add(seconds(pause)));
        parts.insert(part.to_owned(), PartState::Off { reason: reason.to_owned(), since, next_try });
        drop(parts);
        if !logged {
            tracing::error!("{part}: off: {reason}; everything else runs, and it starts again by itself");
        }
    }

    /// Notes that a part runs.
    pub fn turn_on(&self, part: &str) {
        let mut parts = self.0.lock();
        let before = match parts.get_mut(part) {
            Some(state) => std::mem::replace(state, PartState::Running),
            None => parts.insert(part.to_owned(), PartState::Running).unwrap_or(PartState::Running),
        };
        drop(parts);
        if matches!(before, PartState::Off { .. }) {
            tracing::info!("{part}: on again");
        }
    }

    /// Every part and its state, by name.
    pub fn states(&self) -> BTreeMap<String, PartState> {
        self.0.lock().clone()
    }

    /// Why a part is off; nothing while it runs or is not there.
    pub fn off_reason(&self, part: &str) -> Option<String> {
        match self.0.lock().get(part) {
            Some(PartState::Off { reason, .. }) => Some(reason.clone()),
            _ => None,
        }
    }
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.0.lock().iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn off(reason: &str, since: i64, next_try: Option<i64>) -> PartState {
        PartState::Off { reason: reason.to_owned(), since, next_try }
    }

    #[test]
    fn a_part_keeps_the_time_it_was_turned_off_until_it_runs_again() {
        let parts = Parts::default();
        parts.set_parts(["reports".to_owned(), "store".to_owned()]);
        assert_eq!(parts.states()["reports"], PartState::Running);
        parts.turn_off(Clock::starting_at(100), "reports", "no key", Some(Duration::from_secs(60)));
        parts.turn_off(Clock::starting_at(160), "reports", "bad key", Some(Duration::from_secs(60)));
        assert_eq!(parts.states()["reports"], off("bad key", 100, Some(220)));
        // A reload: the part is still there, and still off.
        parts.set_parts(["reports".to_owned()]);
        assert_eq!(parts.off_reason("reports").as_deref(), Some("bad key"));
        assert_eq!(parts.states().len(), 1);
        parts.turn_on("reports");
        assert_eq!(parts.off_reason("reports"), None);
        parts.turn_off(Clock::starting_at(900), "reports", "bad key", None);
        assert_eq!(parts.states()["reports"], off("bad key", 900, None));
    }

    #[test]
    fn its_json_is_fixed() {
        let json = |state| serde_json::to_string(&state).unwrap();
        assert_eq!(json(PartState::Running), r#"{"state":"running"}"#);
        let text = r#"{"state":"off","reason":"r","since":1,"next-try":61}"#;
        assert_eq!(json(off("r", 1, Some(61))), text);
        assert_eq!(serde_json::from_str::<PartState>(text).unwrap(), off("r", 1, Some(61)));
    }
}
