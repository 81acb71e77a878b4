//! Reports about MX hosts (RFC 8460 §1.1: under DANE the policy domain is the TLSA base domain).
//!
//! Takes: the rows of a recipient domain, when its record is looked up or they come late. Gives: a plan for each MX host that
//! has sessions under its own TLSA records, due after those of the recipient domains; and what a report about the host says
//! to each destination: the sessions of all those domains, without those that the destination gets in the domains' reports.
//! An index in [`Table::Due`] has the domains of each host, so that a report costs what its own domains cost.
//! Limits: one report and one supplement a day and host; [`PAGE_SIZE`] domains are read at once.
//! When it fails: the look-up that called is hindered, and tried again.
//! Not here: which rows those are, and without which names (`report::rows_of_host`).

use std::collections::{BTreeMap, BTreeSet};

use crate::base::rua_record::Destination;
use crate::base::tlsrpt::{Day, PolicyType, TallyRow};
use crate::reporting::report::recipients::ReportSubject;
use crate::reporting::report::{only_null_senders, rows_of_host};
use crate::reporting::schedule::records;
use crate::reporting::schedule::records::{
    DeliveryState, PlanState, Queue, RecordKey, ReportKey, ReportPlan, delivery_key, host_domain_key,
    host_domains_prefix, queue_prefix,
};
use crate::reporting::schedule::snapshot::{self, RowSums};
use crate::reporting::schedule::{Scheduler, random_delay};
use crate::store::{Batch, Store, StoreError, Table};

/// How many domains are read at once.
const PAGE_SIZE: usize = 200;

/// What the reports about an MX host say.
pub(super) struct HostReport {
    /// For each destination the rows that it has not got in the reports about recipient domains.
    pub(super) rows: BTreeMap<Destination, Vec<TallyRow>>,
    /// Whether all mail to the host on that day had a null sender.
    pub(super) only_null_senders: bool,
    /// Whether a domain has not been looked up yet, so that it is not known what it gets.
    pub(super) lookups_pending: bool,
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
        let hosts = hosts_of(rows);
        let ReportSubject::Domain(domain) = report_key.subject.clone() else { return Ok(()) };
        if hosts.is_empty() {
            return Ok(());
        }
        // One at a time: what another look-up has planned meanwhile may be sent already, and must not begin anew.
        let _turn = self.planning_mx_hosts.lock().await;
        let (day, supplement) = (report_key.day, report_key.supplement);
        // After those of the recipient domains.
        let begin = spread + if supplement { self.context.clock.seconds() } else { day.end() };
        let batch = self.run_blocking(move |store| {
            let mut batch = Batch::default();
            let hosts = hosts.into_iter().map(|host| (host, vec![domain.clone()])).collect();
            add_hosts(store, &mut batch, day, hosts, supplement, begin, spread).map(|()| batch)
        });
        let batch = batch.await.map_err(|e| e.to_string())?;
        if batch.set.is_empty() { Ok(()) } else { self.group_commit.write(batch).await }
    }

    /// Reads what the report about a host says to each of these destinations.
    pub(super) async fn host_report(
        &self,
        report_key: &ReportKey,
        destinations: &[Destination],
    ) -> Result<HostReport, StoreError> {
        let (report_key, destinations, now) = (report_key.clone(), destinations.to_vec(), self.context.clock.seconds());
        self.run_blocking(move |store| read_host_report(store, &report_key, &destinations, now)).await
    }

    /// Whether anything failed at a host.
    pub(super) async fn host_has_failures(&self, report_key: &ReportKey) -> Result<bool, StoreError> {
        let (day, host) = (report_key.day, report_key.subject.name().to_owned());
        self.run_blocking(move |store| {
            let mut failures = false;
            visit_domains(store, day, &host, |_, rows| {
                failures |= crate::reporting::report::has_failures(&rows);
                Ok(())
            })?;
            Ok(failures)
        })
        .await
    }
}

/// The MX hosts that have sessions under their own TLSA records.
pub(super) fn hosts_of(rows: &[TallyRow]) -> BTreeSet<String> {
    let own = rows.iter().filter(|row| row.policy.policy_type == PolicyType::Tlsa);
    own.map(|row| row.policy.policy_domain.clone()).collect()
}

/// The domains that have sessions at each MX host.
pub(super) type DomainsOfHosts = BTreeMap<String, Vec<String>>;

/// Adds domains to the index of their hosts, and plans the hosts that have no plan; for late rows also the supplement of
/// those whose first report is settled. Each host is planned once: of two plans in a batch the first would leave its
/// entry in [`Table::Due`] behind.
pub(super) fn add_hosts(
    store: &dyn Store,
    batch: &mut Batch,
    day: Day,
    hosts: DomainsOfHosts,
    late: bool,
    begin: i64,
    spread: i64,
) -> Result<(), StoreError> {
    for (host, domains) in hosts {
        let index = domains.iter().map(|domain| (Table::Due, host_domain_key(day, &host, domain), Some(Vec::new())));
        batch.set.extend(index);
        let host = ReportKey::first(day, ReportSubject::Host(host));
        let unplanned = match records::read_plan(store, &host)?.map(|plan| plan.state) {
            None => Some(host),
            Some(PlanState::Planned) if late && records::read_plan(store, &host.as_supplement())?.is_none() => {
                Some(host.as_supplement())
            }
            Some(_) => None,
        };
        if let Some(unplanned) = unplanned {
            ReportPlan::waiting_until(begin + random_delay(spread)).add_to_batch(batch, &unplanned, None);
        }
    }
    Ok(())
}

/// Hands each domain of a host, with its rows, to `each`.
fn visit_domains(
    store: &dyn Store,
    day: Day,
    host: &str,
    mut each: impl FnMut(&str, Vec<TallyRow>) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let prefix = host_domains_prefix(day, host);
    let mut from = prefix.clone();
    loop {
        let page = store.scan_page(Table::Due, &prefix, &from, PAGE_SIZE)?;
        let Some((last, _)) = page.last() else { return Ok(()) };
        // The next key there can be.
        from = [&last[..], &[0]].concat();
        for (key, _) in &page {
            let domain = String::from_utf8_lossy(&key[prefix.len()..]);
            let rows = rows_of_host(host, &store.rows(day, &domain)?);
            if !rows.is_empty() {
                each(&domain, rows)?;
            }
        }
    }
}

fn read_host_report(
    store: &dyn Store,
    report_key: &ReportKey,
    destinations: &[Destination],
    now: i64,
) -> Result<HostReport, StoreError> {
    let (day, host) = (report_key.day, report_key.subject.name());
    if lookups_pending(store, report_key, now)? {
        return Ok(HostReport { rows: BTreeMap::new(), only_null_senders: false, lookups_pending: true });
    }
    let mut total = RowSums::default();
    let mut known: BTreeMap<&Destination, RowSums> =
        destinations.iter().map(|destination| (destination, RowSums::default())).collect();
    visit_domains(store, day, host, |domain, rows| {
        total.add(rows);
        let Ok(subject) = domain.parse() else { return Ok(()) };
        let first = ReportKey::first(day, subject);
        for of_domain in [first.as_supplement(), first] {
            for (destination, known) in &mut known {
                if has_got(store, &of_domain, destination)? {
                    known.add(rows_of_host(host, &snapshot::read_rows_for(store, &of_domain, destination)?));
                }
            }
        }
        Ok(())
    })?;
    if report_key.supplement {
        let first = ReportKey { supplement: false, ..report_key.clone() };
        for (destination, known) in &mut known {
            if store.read(Table::Delivery, &delivery_key(&first, destination))?.is_some() {
                known.add(snapshot::read_rows_for(store, &first, destination)?);
            }
        }
    }
    let total = total.into_rows();
    let only_null_senders = only_null_senders(&total);
    let rest =
        |(destination, known): (&Destination, RowSums)| (destination.clone(), known.subtract_from(total.clone()));
    let rows = known.into_iter().map(rest).filter(|(_, rows)| !rows.is_empty()).collect();
    Ok(HostReport { rows, only_null_senders, lookups_pending: false })
}

/// Whether a look-up of a recipient domain is due that has not been tried: a domain whose look-up fails for the time being is
/// not waited for.
fn lookups_pending(store: &dyn Store, report_key: &ReportKey, now: i64) -> Result<bool, StoreError> {
    let queue = if report_key.supplement { Queue::Supplement } else { Queue::LookUp };
    let prefix = queue_prefix(queue, Some(report_key.day));
    let mut from = prefix.clone();
    loop {
        let page = store.scan_page(Table::Due, &prefix, &from, PAGE_SIZE)?;
        for (key, _) in &page {
            let Some((time, RecordKey::Plan(of))) = RecordKey::decode_due_key(key) else { continue };
            if time > now {
                return Ok(false);
            }
            let untried = |plan: Option<ReportPlan>| plan.is_some_and(|plan| plan.attempts == 0);
            if matches!(of.subject, ReportSubject::Domain(_)) && untried(records::read_plan(store, &of)?) {
                return Ok(true);
            }
        }
        let Some((last, _)) = page.last() else { return Ok(false) };
        from = [&last[..], &[0]].concat();
    }
}

/// Whether a destination gets a report, or may have got it.
fn has_got(store: &dyn Store, report_key: &ReportKey, destination: &Destination) -> Result<bool, StoreError> {
    let delivery = records::read_delivery(store, &delivery_key(report_key, destination))?;
    Ok(delivery.is_some_and(|delivery| match delivery.state {
        DeliveryState::Planned
        | DeliveryState::Attempting
        | DeliveryState::Sent
        | DeliveryState::Deferred
        | DeliveryState::Unknown => true,
        DeliveryState::Bounced | DeliveryState::Refused | DeliveryState::Expired | DeliveryState::Suppressed => false,
    }))
}
