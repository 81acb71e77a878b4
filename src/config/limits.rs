//! The largest numbers and durations that an option may have: what is computed from them must not overflow.
//!
//! Takes: a configuration. Gives: nothing, or the option that is out of range, and the range.
//! Limits: the constants here. Each is far above what a host needs, and far below what a 64-bit number holds.
//! When it fails: section, key, and what is allowed.
//! Not here: the smallest values, and values that depend on one another (`validate`).

use std::time::Duration;

use crate::config::Config;

/// `[policy] max_domains`: there are fewer mail domains in the world. Memory is counted as this times a few hundred bytes.
const MAX_DOMAINS: usize = 100_000_000;

/// `[report] max_size`, in bytes: no mail server takes such a message, and it is held in memory several times.
const MAX_REPORT_SIZE: usize = 1_000_000_000;

/// `[report] retention`: each day within it is looked at again and again.
const MAX_RETENTION: Duration = Duration::from_secs(400 * 86_400);

/// `[closed_network] retry`: a timer can neither be zero nor reach beyond the clock.
const RETRY_RANGE: std::ops::RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(86_400);

/// Checks the upper limits. Fails with section, key, and what is wrong.
pub(super) fn check(config: &Config) -> Result<(), (&'static str, &'static str, String)> {
    for (section, key, found, limit) in [
        ("policy", "max_domains", config.policy.max_domains, MAX_DOMAINS),
        ("report", "max_size", config.report.max_size, MAX_REPORT_SIZE),
    ] {
        if found > limit {
            return Err((section, key, format!("invalid number {found}: expected at most {limit}")));
        }
    }
    let retention = config.report.retention.0;
    if retention > MAX_RETENTION {
        let found = humantime::format_duration(retention);
        return Err(("report", "retention", format!("{found} is too long: expected at most 400days")));
    }
    if let Some(retry) = config.closed_network.retry.filter(|retry| !RETRY_RANGE.contains(&retry.0)) {
        let found = humantime::format_duration(retry.0);
        return Err(("closed_network", "retry", format!("invalid duration {found}: expected 1ms to 1day")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ConfigDuration;

    #[test]
    fn what_would_overflow_is_refused() {
        let problem = |change: &dyn Fn(&mut Config)| {
            let mut config = Config::default();
            change(&mut config);
            check(&config).err().map(|(section, key, problem)| format!("[{section}] {key}: {problem}"))
        };
        assert_eq!(problem(&|_| ()), None);
        for (max_domains, refused) in
            [(1, false), (MAX_DOMAINS, false), (MAX_DOMAINS + 1, true), (1 << 54, true), (usize::MAX, true)]
        {
            assert_eq!(problem(&|config| config.policy.max_domains = max_domains).is_some(), refused, "{max_domains}");
        }
        for (size, refused) in [(10_000_000, false), (MAX_REPORT_SIZE + 1, true), (usize::MAX, true)] {
            assert_eq!(problem(&|config| config.report.max_size = size).is_some(), refused, "{size}");
        }
        for (retention, refused) in [(MAX_RETENTION, false), (Duration::MAX, true)] {
            let found = problem(&|config| config.report.retention = ConfigDuration(retention));
            assert_eq!(found.is_some(), refused, "{retention:?}");
        }
        for (retry, refused) in [(Duration::from_secs(1), false), (Duration::ZERO, true), (Duration::MAX, true)] {
            let found = problem(&|config| config.closed_network.retry = Some(ConfigDuration(retry)));
            assert_eq!(found.is_some(), refused, "{retry:?}");
        }
    }
}
