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
use crate::reporting::schedule::records::{Named, Plan, PlanState, Which, delivery_key};
use crate::reporting::schedule::{Scheduler, snapshot, within};
use crate::store::{Batch, Store, StoreError, Table};

/// How many domains are read in one go.
const PAGE: usize = 200;

/// What the reports about recipient domains told of a host.
pub(super) struct Told {
    /// The rows of a report about it.
    pub rows: Vec<TallyRow>,
    /// Where each of the domains' reports go.
    pub to: Vec<Vec<Destination>>,
    /// Whether one of the domains has not been looked up yet.
    pub open: bool,
}

impl Told {
    /// Leaves out where all of it goes already.
    pub fn narrow(&self, found: Recipients) -> Result<Recipients, NoRecipients> {
        found.without(&self.to)
    }
}

impl Scheduler {
    /// Plans the reports about the hosts of a recipient domain that have no plan yet; with a domain's supplement, those of
    /// the hosts whose report is settled without it.
    pub(super) async fn plan_hosts(&self, which: &Which, rows: &[TallyRow], spread: i64) -> Result<(), String> {
        let own = rows.iter().filter(|row| row.policy.policy_type == PolicyType::Tlsa);
        let hosts: BTreeSet<String> = own.map(|row| row.policy.policy_domain.clone()).collect();
        if hosts.is_empty() {
            return Ok(());
        }
        // One at a time: what another look-up has planned meanwhile may be sent already, and must not begin anew.
        let _turn = self.planning_hosts.lock().await;
        let (day, supplement) = (which.day, which.supplement);
        let unplanned = self.blocking(move |store| unplanned(store, day, hosts, supplement)).await;
        let begin = if supplement { self.context.clock.seconds() } else { day.end() };
        let mut batch = Batch::default();
        for host in unplanned.map_err(|e| e.to_string())? {
            // After those of the recipient domains.
            Plan::at(begin + spread + within(spread)).put(&mut batch, &host, None);
        }
        if batch.set.is_empty() { Ok(()) } else { self.journal.write(batch).await }
    }

    /// What a report about a host says, and where it is known already.
    pub(super) async fn told_of(&self, which: &Which) -> Result<Told, StoreError> {
        let which = which.clone();
        self.blocking(move |store| told(store, &which)).await
    }
}

/// Those of the hosts that have no plan; of what came late also those that have said the rest.
fn unplanned(store: &dyn Store, day: Day, hosts: BTreeSet<String>, supplement: bool) -> Result<Vec<Which>, StoreError> {
    let mut unplanned = Vec::new();
    for host in hosts {
        let host = Which::first(day, ReportSubject::Host(host));
        match planner::read(store, &host)?.map(|plan| plan.state) {
            None => unplanned.push(host),
            Some(PlanState::Planned) if supplement && planner::read(store, &host.supplement())?.is_none() => {
                unplanned.push(host.supplement());
            }
            Some(_) => {}
        }
    }
    Ok(unplanned)
}

fn told(store: &dyn Store, which: &Which) -> Result<Told, StoreError> {
    let (day, host) = (which.day, which.about.name());
    let mut told = Told { rows: Vec::new(), to: Vec::new(), open: false };
    let mut after: Option<String> = None;
    loop {
        let domains = store.domain_sums(day, after.as_deref(), PAGE)?;
        let Some((last, _)) = domains.last() else { break };
        after = Some(last.clone());
        for (domain, _) in domains {
            let rows = rows_of_host(host, &store.rows(day, &domain)?);
            if rows.is_empty() {
                continue;
            }
            told.rows.extend(rows);
            let Ok(about) = domain.parse() else { continue };
            let of_domain = Which { about, ..which.clone() };
            match planner::read(store, &of_domain)? {
                // Nothing came late for this one.
                None if which.supplement => {}
                // A domain whose look-up fails for the time being is not waited for.
                plan => {
                    told.open |= plan.is_none_or(|p| p.state == PlanState::Waiting && p.attempts == 0);
                    told.to.push(destinations(store, &of_domain)?);
                }
            }
        }
    }
    if which.supplement {
        let first = snapshot::read(store, &Which { supplement: false, ..which.clone() })?;
        told.rows = snapshot::since(snapshot::merged(told.rows), &snapshot::merged(first));
    }
    Ok(told)
}

fn destinations(store: &dyn Store, which: &Which) -> Result<Vec<Destination>, StoreError> {
    let prefix = [&which.key()[..], b"/"].concat();
    let records = store.scan(Table::Delivery, &prefix)?;
    Ok(records
        .iter()
        .filter_map(|(key, _)| match Named::read(key)? {
            Named::Delivery(of, to) if delivery_key(&of, &to) == *key => Some(to),
            _ => None,
        })
        .collect())
}
