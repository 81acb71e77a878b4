//! Reports about MX hosts (RFC 8460 §1.1: under DANE the policy domain is the TLSA base domain).
//!
//! Takes: the rows of a recipient domain, when its record is looked up. Gives: a plan for each MX host that has sessions under
//! its own TLSA records, due after those of the recipient domains; and what a report about the host says, out of all of them.
//! Limits: one report and one supplement a day and host. Only of a host that publishes a TLSRPT record all rows of the day
//! are read, a page of domains at a time.
//! When it fails: the look-up that called is hindered, and tried again.
//! Not here: which rows those are, and without which names (`report::rows_of_host`).

use std::collections::BTreeSet;

use crate::base::rua_record::{Destination, NoRecipients, Recipients};
use crate::base::tlsrpt::{Day, PolicyType, TallyRow};
use crate::reporting::report::recipients::ReportSubject;
use crate::reporting::report::rows_of_host;
use crate::reporting::schedule::planner;
use crate::reporting::schedule::records::{PlanState, RecordKey, ReportKey, ReportPlan, delivery_key};
use crate::reporting::schedule::{Scheduler, random_delay, snapshot};
use crate::store::{Batch, Store, StoreError, Table};

/// How many domains are read at once.
const PAGE_SIZE: usize = 200;

/// The counts of an MX host, from the reports about recipient domains.
pub(super) struct HostCounts {
    /// The rows of a report about it.
    pub(crate) rows: Vec<TallyRow>,
    /// For each of the domains, the destinations of its report.
    pub(crate) domain_destinations: Vec<Vec<Destination>>,
    /// Whether one of the domains has not been looked up yet.
    pub(crate) lookups_pending: bool,
}

impl HostCounts {
    /// Excludes the destinations that get all of it already.
    pub(crate) fn exclude_reported(&self, found: Recipients) -> Result<Recipients, NoRecipients> {
        found.excluding(&self.domain_destinations)
    }
}

impl Scheduler {
    /// Plans the reports about the hosts of a recipient domain that have no plan yet; with a domain's supplement, those of
    /// the hosts whose report is settled without it.
    pub(super) async fn plan_mx_hosts(
        &self,
        report_key: &ReportKey,
        rows: &[TallyRow],
        spread: i64,
    ) -> Result<(), String> {
        let own = rows.iter().filter(|row| row.policy.policy_type == PolicyType::Tlsa);
        let hosts: BTreeSet<String> = own.map(|row| row.policy.policy_domain.clone()).collect();
        if hosts.is_empty() {
            return Ok(());
        }
        // One at a time: what another look-up has planned meanwhile may be sent already, and must not begin anew.
        let _turn = self.planning_mx_hosts.lock().await;
        let (day, supplement) = (report_key.day, report_key.supplement);
        let unplanned = self.run_blocking(move |store| unplanned_hosts(store, day, hosts, supplement)).await;
        let begin = if supplement { self.context.clock.seconds() } else { day.end() };
        let mut batch = Batch::default();
        for host in unplanned.map_err(|e| e.to_string())? {
            // After those of the recipient domains.
            ReportPlan::waiting_until(begin + spread + random_delay(spread)).add_to_batch(&mut batch, &host, None);
        }
        if batch.set.is_empty() { Ok(()) } else { self.group_commit.write(batch).await }
    }

    /// Reads the counts of a host, and the destinations that get them already.
    pub(super) async fn host_counts(&self, report_key: &ReportKey) -> Result<HostCounts, StoreError> {
        let report_key = report_key.clone();
        self.run_blocking(move |store| read_host_counts(store, &report_key)).await
    }
}

/// The hosts that have no plan; for a supplement also those whose first report is planned.
fn unplanned_hosts(
    store: &dyn Store,
    day: Day,
    hosts: BTreeSet<String>,
    supplement: bool,
) -> Result<Vec<ReportKey>, StoreError> {
    let mut unplanned = Vec::new();
    for host in hosts {
        let host = ReportKey::first(day, ReportSubject::Host(host));
        match planner::read_plan(store, &host)?.map(|plan| plan.state) {
            None => unplanned.push(host),
            Some(PlanState::Planned) if supplement && planner::read_plan(store, &host.as_supplement())?.is_none() => {
                unplanned.push(host.as_supplement());
            }
            Some(_) => {}
        }
    }
    Ok(unplanned)
}

fn read_host_counts(store: &dyn Store, report_key: &ReportKey) -> Result<HostCounts, StoreError> {
    let (day, host) = (report_key.day, report_key.subject.name());
    let mut host_counts = HostCounts { rows: Vec::new(), domain_destinations: Vec::new(), lookups_pending: false };
    let mut after: Option<String> = None;
    loop {
        let domains = store.domain_sums(day, after.as_deref(), PAGE_SIZE)?;
        let Some((last, _)) = domains.last() else { break };
        after = Some(last.clone());
        for (domain, _) in domains {
            let rows = rows_of_host(host, &store.rows(day, &domain)?);
            if rows.is_empty() {
                continue;
            }
            host_counts.rows.extend(rows);
            let Ok(subject) = domain.parse() else { continue };
            let of_domain = ReportKey { subject, ..report_key.clone() };
            match planner::read_plan(store, &of_domain)? {
                // Nothing came late for this one.
                None if report_key.supplement => {}
                // A domain whose look-up fails for the time being is not waited for.
                plan => {
                    host_counts.lookups_pending |=
                        plan.is_none_or(|p| p.state == PlanState::Waiting && p.attempts == 0);
                    host_counts.domain_destinations.push(planned_destinations(store, &of_domain)?);
                }
            }
        }
    }
    if report_key.supplement {
        let first = snapshot::read_rows(store, &ReportKey { supplement: false, ..report_key.clone() })?;
        host_counts.rows =
            snapshot::counted_since(snapshot::merge_by_policy(host_counts.rows), &snapshot::merge_by_policy(first));
    }
    Ok(host_counts)
}

fn planned_destinations(store: &dyn Store, report_key: &ReportKey) -> Result<Vec<Destination>, StoreError> {
    let prefix = [&report_key.encode()[..], b"/"].concat();
    let records = store.scan(Table::Delivery, &prefix)?;
    Ok(records
        .iter()
        .filter_map(|(key, _)| match RecordKey::decode(key)? {
            RecordKey::Delivery(of, to) if delivery_key(&of, &to) == *key => Some(to),
            _ => None,
        })
        .collect())
}
