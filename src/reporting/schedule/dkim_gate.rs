//! Whether reports by mail wait for a DKIM record: receivers must ignore a report without a valid signature (RFC 8460 §3), so
//! one that is sent before its key is published is lost.
//!
//! Takes: what a verifier would find wrong with each key, or that DNS does not answer. Gives: whether mail reports wait.
//! They wait only after a definite answer for every key; a failing look-up holds nothing back, and lets nothing go that
//! waits.
//! Limits: DNS is asked again after [`RECHECK_HELD`], or [`RECHECK_OPEN`].
//! Not here: what is wrong with a record (`dkim::key`); reports by https, which need no signature (RFC 8460 §5.4).

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::reporting::schedule::Scheduler;

/// How soon the records are looked up again while reports wait: an administrator is about to publish one.
const RECHECK_HELD: Duration = Duration::from_secs(60);

/// How soon while none waits.
const RECHECK_OPEN: Duration = Duration::from_secs(3600);

/// Whether mail reports wait.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum DkimGate {
    /// Not looked up yet with these keys: they wait until it is known.
    #[default]
    Unchecked,
    /// They go.
    Open,
    /// They wait: why.
    Held(String),
}

/// What a look-up found for one key: its record's name, and what is wrong, or why DNS did not answer.
type KeyCheck = (String, Result<Option<String>, String>);

impl DkimGate {
    /// The state after the records were looked up.
    fn after_check(&self, checks: &[KeyCheck]) -> DkimGate {
        let matches = checks.iter().any(|(_, found)| *found == Ok(None));
        let unanswered = checks.iter().any(|(_, found)| found.is_err());
        if matches || checks.is_empty() {
            return DkimGate::Open;
        }
        if unanswered {
            return if matches!(self, DkimGate::Held(_)) { self.clone() } else { DkimGate::Open };
        }
        let wrong =
            checks.iter().filter_map(|(name, found)| Some(format!("{name}: {}", found.as_ref().ok()?.as_ref()?)));
        DkimGate::Held(wrong.collect::<Vec<_>>().join(", "))
    }
}

impl Scheduler {
    /// Why reports by mail wait, while they do.
    pub(super) fn mail_held(&self) -> Option<String> {
        match &*self.dkim_gate.lock() {
            DkimGate::Held(why) => Some(format!("no published DKIM record matches a key: {why}")),
            _ => None,
        }
    }

    /// Whether reports by mail may go.
    pub(super) fn mail_may_go(&self) -> bool {
        *self.dkim_gate.lock() == DkimGate::Open
    }

    /// Looks up the records; returns when to do so again.
    pub(super) async fn check_dkim_gate(&self) -> Instant {
        let settings = Arc::clone(&self.settings.read());
        let mut checks = Vec::new();
        if let Some(sender) = settings.sender.as_ref().filter(|_| settings.check_dkim) {
            for key in &sender.signer.public_keys {
                checks.push((key.record_name(), key.find_fault(&self.context.resolver).await));
            }
        }
        // Other settings, other keys: they are looked up at once.
        if !Arc::ptr_eq(&settings, &self.settings.read()) {
            return Instant::now();
        }
        let before = self.dkim_gate.lock().clone();
        let after = before.after_check(&checks);
        *self.dkim_gate.lock() = after.clone();
        match (&before, &after) {
            (DkimGate::Held(before), DkimGate::Held(after)) if before == after => {}
            (_, DkimGate::Held(why)) => self.log_error(format!(
                "report: reports by mail wait: no published DKIM record matches a key: {why}; they go once one does, within \
                 [report] retention"
            )),
            (DkimGate::Held(_), _) => tracing::info!("report: a published DKIM record matches; reports by mail go again"),
            _ => {}
        }
        if before != after {
            self.new_plans.notify_one();
        }
        Instant::now() + if after == DkimGate::Open { RECHECK_OPEN } else { RECHECK_HELD }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mail_waits_only_after_a_definite_answer_for_every_key() {
        let check = |found: &Result<Option<&str>, &str>| {
            ("k".to_owned(), found.map(|fault| fault.map(str::to_owned)).map_err(str::to_owned))
        };
        let held = DkimGate::Held("k: none".into());
        for (before, found, wanted) in [
            (DkimGate::Unchecked, vec![], DkimGate::Open),
            (DkimGate::Unchecked, vec![Ok(None)], DkimGate::Open),
            (DkimGate::Unchecked, vec![Ok(Some("none"))], held.clone()),
            (DkimGate::Unchecked, vec![Err("SERVFAIL")], DkimGate::Open),
            (DkimGate::Unchecked, vec![Ok(Some("none")), Err("SERVFAIL")], DkimGate::Open),
            (DkimGate::Open, vec![Ok(Some("none"))], held.clone()),
            (held.clone(), vec![Err("SERVFAIL")], held.clone()),
            (held.clone(), vec![Ok(Some("none")), Ok(None)], DkimGate::Open),
            (held.clone(), vec![Err("SERVFAIL"), Ok(None)], DkimGate::Open),
            (DkimGate::Open, vec![Ok(Some("none")), Ok(Some("two"))], DkimGate::Held("k: none, k: two".into())),
        ] {
            let checks: Vec<KeyCheck> = found.iter().map(check).collect();
            assert_eq!(before.after_check(&checks), wanted, "{before:?} {found:?}");
        }
    }
}
