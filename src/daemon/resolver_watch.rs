//! Asks the resolver for the root now and then, and says when it stops answering or validating.
//!
//! Takes: the resolver. Gives: its probes, which `status` and `/metrics` show and answers rest on; a line in the log that
//! names the resolver for each change.
//! The root is asked at start, every [`PROBE_INTERVAL`], soon after a query has failed, and every [`FAILING_INTERVAL`]
//! while queries fail. A resolver whose word on DNSSEC is not believed, or is worth little, is named at start and where
//! resolv.conf names another, whether it answers or not.
//! Limits: one probe at a time; at most one line a minute for each problem.
//! When it fails: it is about failure.
//! Not here: asking (`net::dns`), what is answered meanwhile (`policy`).

use std::time::Duration;

use crate::answering::policy::throttle::Throttle;
use crate::base::clock::Clock;
use crate::config::{ClosedNetworkSection, Config, WithoutDnssec};
use crate::metrics::Metrics;
use crate::net::dns::{NOT_BELIEVED, Resolver, ResolverStatus};

/// Time between two probes of a resolver that answers.
const PROBE_INTERVAL: Duration = Duration::from_secs(300);

/// The shortest time between two probes, however many queries fail: some domains always do.
const MIN_PROBE_INTERVAL: Duration = Duration::from_secs(10);

/// Time between two probes while every query fails.
const FAILING_INTERVAL: Duration = Duration::from_secs(2);

/// A name whose signatures are broken on purpose.
const BOGUS_NAME: &str = "dnssec-failed.org";

/// What the log was last told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reported {
    Nothing,
    Good,
    Silent,
    Problem(&'static str),
}

/// Watches the resolver; it never ends.
pub(super) async fn watch_resolver(resolver: Resolver, config: Config, metrics: Metrics, clock: Clock) {
    // In a closed network that name means nothing.
    let bogus = if config.closed_network == ClosedNetworkSection::default() { BOGUS_NAME } else { "" };
    let throttle = Throttle::default();
    let mut reported = Reported::Nothing;
    let mut placed = Vec::new();
    loop {
        let status = resolver.status();
        if placed != status.servers {
            if let Some(warning) = placement_problem(&status, &config) {
                metrics.log_error(clock, format!("resolver {}: {warning}", resolver.server_names()));
            }
            placed = status.servers;
        }
        resolver.probe(bogus).await;
        let status = resolver.status();
        // Without DANE it does not matter whether anything validates.
        let problem = status.problem().filter(|_| config.postfix.dnssec() && status.trusted);
        let state = match (&status.failure, problem) {
            (Some(_), _) => Reported::Silent,
            (None, Some(problem)) => Reported::Problem(problem),
            (None, None) => Reported::Good,
        };
        if state != reported && report(&status, state, &throttle, &metrics, clock) {
            reported = state;
        }
        if resolver.is_failing() {
            tokio::time::sleep(FAILING_INTERVAL).await;
        } else {
            tokio::time::sleep(MIN_PROBE_INTERVAL).await;
            let rest = PROBE_INTERVAL - MIN_PROBE_INTERVAL;
            let _ = tokio::time::timeout(rest, resolver.query_failure()).await;
        }
    }
}

/// What is wrong with a resolver by its address alone; nothing where nobody wants DNSSEC.
fn placement_problem(status: &ResolverStatus, config: &Config) -> Option<String> {
    if !config.postfix.dnssec() {
        return None;
    }
    if status.trusted {
        return status.warning.clone();
    }
    let consequence = match config.policy.without_dnssec {
        WithoutDnssec::StsOnly => "MTA-STS alone is answered",
        WithoutDnssec::Temp => "mail is deferred",
    };
    Some(format!("{NOT_BELIEVED}; {consequence}"))
}

/// Logs a change; whether it was logged.
fn report(status: &ResolverStatus, state: Reported, throttle: &Throttle, metrics: &Metrics, clock: Clock) -> bool {
    let names: Vec<String> = status.servers.iter().map(ToString::to_string).collect();
    let names = names.join(", ");
    match state {
        Reported::Nothing => false,
        Reported::Good => {
            let message = if status.validates { "resolver: answers and validates" } else { "resolver: answers" };
            tracing::info!(resolver = %names, "{message}");
            true
        }
        Reported::Silent if throttle.permits("silent", clock.seconds()) => {
            let cause = status.failure.as_deref().unwrap_or_default();
            metrics.log_error(
                clock,
                format!("resolver {names}: no answer: {cause}; policies that are not in memory are not known"),
            );
            true
        }
        Reported::Problem(problem) if throttle.permits(problem, clock.seconds()) => {
            metrics.log_error(clock, format!("resolver {names}: {problem}"));
            true
        }
        // The throttle still holds back this line; the next probe tries again.
        Reported::Silent | Reported::Problem(_) => false,
    }
}
