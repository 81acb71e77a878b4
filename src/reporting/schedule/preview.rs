//! The reports of a day as they would go now, to be looked at.
//!
//! Takes: the counts in the store, what was said of them already, the receivers' records in DNS. Gives: a [`ReportPreview`] for
//! each report about a recipient domain, for each supplement, and for each MX host that has sessions under its own TLSA
//! records. Sends nothing, changes nothing; what `[report]` lacks stands in it as not set.
//! Limits: all reports of a day are in memory, for they are all shown.
//! When it fails: one line. Not here: when they are sent (`planner`), what was sent (`overview`).

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use crate::base::rua_record::{Destination, NoRecipients, Recipients, SkippedUri};
use crate::base::tlsrpt::{Day, TallyRow};
use crate::config::ReportSection;
use crate::config::identity::Identity;
use crate::net::tlsrpt_record::TlsrptLookupError;
use crate::reporting::report::build::{Report, ReportId};
use crate::reporting::report::recipients::{RecipientFilter, ReportSubject};
use crate::reporting::report::{has_failures, look_up_served_recipients, only_null_senders, rows_of_host};
use crate::reporting::schedule::mx_hosts::hosts_of;
use crate::reporting::schedule::records::{PlanState, ReportKey, ReportPlan};
use crate::reporting::schedule::snapshot::{self, ReportSnapshot};
use crate::reporting::schedule::{Scheduler, records};
use crate::store::{StoreError, Table};

/// A report as it would be sent now.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct ReportPreview {
    /// The recipient domain; `mx:` and its name for an MX host.
    pub(crate) domain: String,
    /// Whether it has only what was counted after the day's report was settled.
    pub(crate) supplement: bool,
    /// The identifier of the report that has gone, or goes, about this day already: what is shown then is the whole day.
    pub(crate) reported: Option<String>,
    /// Where it would go.
    pub(crate) recipients: Vec<Destination>,
    /// What of `rua` is left out.
    pub(crate) skipped: Vec<SkippedUri>,
    /// Why it would not go anywhere.
    pub(crate) why_not: Option<String>,
    /// The name of the attached file.
    pub(crate) file_name: String,
    /// The JSON, as it would be compressed.
    pub(crate) json: String,
}

/// Builds the previews of one day.
struct PreviewBuilder<'a> {
    scheduler: &'a Scheduler,
    section: &'a ReportSection,
    identity: Identity,
    recipient_filter: RecipientFilter,
    day: Day,
    previews: Vec<ReportPreview>,
}

impl Scheduler {
    /// The reports of a day as they would go now: about one domain or MX host, or all that have counts. The report-ids are
    /// not those that sent reports have. Blocks for as long as the store does; fails with one line.
    pub(crate) async fn preview(
        &self,
        section: &ReportSection,
        day: Day,
        name: Option<&str>,
    ) -> Result<Vec<ReportPreview>, String> {
        let identity = Identity::read(section).map_err(|faults| faults.join("; "))?;
        let recipient_filter = RecipientFilter::from_section(section);
        let builder =
            PreviewBuilder { scheduler: self, section, identity, recipient_filter, day, previews: Vec::new() };
        builder.build(name).await.map_err(|e| e.to_string())
    }
}

impl PreviewBuilder<'_> {
    async fn build(mut self, name: Option<&str>) -> Result<Vec<ReportPreview>, StoreError> {
        let wanted = |subject: &str| name.is_none_or(|name| name == subject);
        let store = &*self.scheduler.context.store;
        // Of each host the domains and their rows.
        let mut hosts: BTreeMap<String, Vec<(String, Vec<TallyRow>)>> = BTreeMap::new();
        for domain in store.domains(self.day)? {
            let rows = store.rows(self.day, &domain)?;
            for host in hosts_of(&rows).into_iter().filter(|host| wanted(host)) {
                let of_host = rows_of_host(&host, &rows);
                hosts.entry(host).or_default().push((domain.clone(), of_host));
            }
            if wanted(&domain) {
                self.add_domain(domain, rows).await?;
            }
        }
        let mut known: HashMap<String, Vec<Destination>> = HashMap::new();
        for (host, of_domains) in hosts {
            let subject = ReportSubject::Host(host);
            let all: Vec<TallyRow> = of_domains.iter().flat_map(|(_, rows)| rows.clone()).collect();
            let found = self.find_recipients(&subject, &all, &all).await;
            let reported = self
                .read_reported(&ReportKey::first(self.day, subject.clone()))?
                .map(|(_, snapshot)| snapshot.report_id);
            let Ok(recipients) = found else {
                self.add(&subject, false, reported, &all, found);
                continue;
            };
            for (domain, _) in &of_domains {
                if !known.contains_key(domain) {
                    let of = ReportSubject::Domain(domain.clone());
                    let found = look_up_served_recipients(
                        &self.scheduler.context.resolver,
                        &self.recipient_filter,
                        &of,
                        self.day,
                    )
                    .await;
                    known.insert(domain.clone(), found.map(|found| found.destinations).unwrap_or_default());
                }
            }
            // To each destination the rows of those domains whose report does not go there.
            let mut contents: BTreeMap<Vec<&str>, Vec<Destination>> = BTreeMap::new();
            for destination in &recipients.destinations {
                let from = of_domains.iter().map(|(domain, _)| domain.as_str());
                let from = from.filter(|domain| !known[*domain].contains(destination)).collect();
                contents.entry(from).or_default().push(destination.clone());
            }
            let all_told = contents.len() == 1 && contents.contains_key(&Vec::new());
            if all_told {
                let already = Err(TlsrptLookupError::None(NoRecipients::AlreadyReported));
                self.add(&subject, false, reported, &all, already);
                continue;
            }
            for (from, destinations) in contents.into_iter().filter(|(from, _)| !from.is_empty()) {
                let rows = of_domains.iter().filter(|(domain, _)| from.contains(&domain.as_str()));
                let rows: Vec<TallyRow> = rows.flat_map(|(_, rows)| rows.clone()).collect();
                let found = Ok(Recipients { destinations, ..recipients.clone() });
                self.add(&subject, false, reported.clone(), &rows, found);
            }
        }
        Ok(self.previews)
    }

    /// The report about a domain; where it is settled already, the supplement as well, if there is to be one.
    async fn add_domain(&mut self, domain: String, rows: Vec<TallyRow>) -> Result<(), StoreError> {
        let subject = ReportSubject::Domain(domain);
        let found = self.find_recipients(&subject, &rows, &rows).await;
        let report_key = ReportKey::first(self.day, subject.clone());
        let Some((plan, snapshot)) = self.read_reported(&report_key)? else {
            self.add(&subject, false, None, &rows, found);
            return Ok(());
        };
        self.add(&subject, false, Some(snapshot.report_id), &rows, found);
        let supplement = records::read_plan(&*self.scheduler.context.store, &report_key.as_supplement())?;
        if snapshot::total_count(&rows) > plan.counted && supplement.is_none_or(|plan| plan.state == PlanState::Waiting)
        {
            let since = snapshot::counted_since(rows.clone(), &snapshot.rows);
            let found = self.find_recipients(&subject, &since, &rows).await;
            self.add(&subject, true, None, &since, found);
        }
        Ok(())
    }

    /// Reads the plan and the snapshot of a report that has recipients.
    fn read_reported(&self, report_key: &ReportKey) -> Result<Option<(ReportPlan, ReportSnapshot)>, StoreError> {
        let store = &*self.scheduler.context.store;
        let Some(plan) = records::read_plan(store, report_key)?.filter(|plan| plan.state == PlanState::Planned) else {
            return Ok(None);
        };
        let encoded = store.read(Table::Snapshot, &report_key.encode())?;
        Ok(encoded.and_then(|encoded| Some((plan, ReportSnapshot::decode(&encoded).ok()?))))
    }

    /// Finds the recipients of a report of `rows`; `of_day`: all of the day.
    async fn find_recipients(
        &self,
        subject: &ReportSubject,
        rows: &[TallyRow],
        of_day: &[TallyRow],
    ) -> Result<Recipients, TlsrptLookupError> {
        self.recipient_filter.check_wanted(subject, self.day, has_failures(rows))?;
        self.recipient_filter.check_senders(only_null_senders(of_day))?;
        look_up_served_recipients(&self.scheduler.context.resolver, &self.recipient_filter, subject, self.day).await
    }

    fn add(
        &mut self,
        subject: &ReportSubject,
        supplement: bool,
        reported: Option<ReportId>,
        rows: &[TallyRow],
        found: Result<Recipients, TlsrptLookupError>,
    ) {
        let id = if supplement { ReportId::preview_of_supplement } else { ReportId::preview };
        let id = id(self.day, self.identity.submitter());
        let report = Report::build(&self.identity, self.day, subject.name(), &id, rows, self.section.max_size);
        let why_not = found.as_ref().err().map(ToString::to_string);
        let Recipients { destinations, skipped, .. } = found.unwrap_or_default();
        self.previews.push(ReportPreview {
            domain: subject.to_string(),
            supplement,
            reported: reported.map(|id| id.to_string()),
            recipients: destinations,
            skipped,
            why_not,
            file_name: report.file_name,
            json: String::from_utf8_lossy(&report.json).into_owned(),
        });
    }
}
