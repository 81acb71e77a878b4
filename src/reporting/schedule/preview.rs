//! The reports of a day as they would go now, to be looked at.
//!
//! Takes: the counts in the store, what was said of them already, the receivers' records in DNS. Gives: a [`Preview`] for
//! each report about a recipient domain, for each supplement, and for each MX host that has sessions under its own TLSA
//! records. Sends nothing, changes nothing; what `[report]` lacks stands in it as not set.
//! Limits: all reports of a day are in memory, for they are all shown.
//! When it fails: one line. Not here: when they go (`plan`), what went (`due`).

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use crate::base::rua_record::{Destination, Recipients, Skipped};
use crate::base::tlsrpt::{Day, PolicyType, TallyRow};
use crate::config::ReportSection;
use crate::config::identity::Identity;
use crate::net::tlsrpt_record::TlsrptLookupError;
use crate::reporting::report::build::{Report, ReportId};
use crate::reporting::report::recipients::{RecipientFilter, ReportSubject};
use crate::reporting::report::{has_failures, look_up_served_recipients, rows_of_host};
use crate::reporting::schedule::records::{Plan, PlanState, Which};
use crate::reporting::schedule::snapshot::{self, Said};
use crate::reporting::schedule::{Scheduler, planner};
use crate::store::{StoreError, Table};

/// A report as it would go.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Preview {
    /// The recipient domain; `mx:` and its name for an MX host.
    pub domain: String,
    /// Whether it has only what was counted after the day's report was settled.
    pub supplement: bool,
    /// The identifier of the report that has gone, or goes, about this day already: what is shown then is the whole day.
    pub reported: Option<String>,
    /// Where it would go.
    pub recipients: Vec<Destination>,
    /// What of `rua` is left out.
    pub skipped: Vec<Skipped>,
    /// Why it would not go anywhere.
    pub why_not: Option<String>,
    /// The name of the attached file.
    pub file_name: String,
    /// The JSON, as it would be compressed.
    pub json: String,
}

/// What previews of one day have in common.
struct Making<'a> {
    scheduler: &'a Scheduler,
    section: &'a ReportSection,
    identity: Identity,
    audience: RecipientFilter,
    day: Day,
    previews: Vec<Preview>,
}

impl Scheduler {
    /// The reports of a day as they would go now: about one domain or MX host, or all that have counts. The report-ids are
    /// not those that sent reports have. Blocks for as long as the store does; fails with one line.
    pub async fn preview(&self, section: &ReportSection, day: Day, name: Option<&str>) -> Result<Vec<Preview>, String> {
        let identity = Identity::read(section).map_err(|faults| faults.join("; "))?;
        let audience = RecipientFilter::from_section(section);
        let making = Making { scheduler: self, section, identity, audience, day, previews: Vec::new() };
        making.all(name).await.map_err(|e| e.to_string())
    }
}

impl Making<'_> {
    async fn all(mut self, name: Option<&str>) -> Result<Vec<Preview>, StoreError> {
        let wanted = |about: &str| name.is_none_or(|name| name == about);
        let store = &*self.scheduler.context.store;
        // Of each host its rows, and the domains that they are from.
        let mut hosts: BTreeMap<String, (Vec<TallyRow>, Vec<String>)> = BTreeMap::new();
        for domain in store.domains(self.day)? {
            let rows = store.rows(self.day, &domain)?;
            for row in rows.iter().filter(|row| row.policy.policy_type == PolicyType::Tlsa) {
                let host = &row.policy.policy_domain;
                if wanted(host) {
                    let (of_host, from) = hosts.entry(host.clone()).or_default();
                    of_host.extend(rows_of_host(host, [row]));
                    from.push(domain.clone());
                }
            }
            if wanted(&domain) {
                self.domain(domain, rows).await?;
            }
        }
        let mut known: HashMap<String, Vec<Destination>> = HashMap::new();
        for (host, (rows, mut from)) in hosts {
            from.dedup();
            let about = ReportSubject::Host(host);
            let mut found = self.find(&about, &rows).await;
            if let Ok(recipients) = found {
                for domain in &from {
                    if !known.contains_key(domain) {
                        let of = ReportSubject::Domain(domain.clone());
                        let found =
                            look_up_served_recipients(&self.scheduler.context.resolver, &self.audience, &of, self.day)
                                .await;
                        known.insert(domain.clone(), found.map(|found| found.destinations).unwrap_or_default());
                    }
                }
                let told: Vec<Vec<Destination>> = from.iter().map(|domain| known[domain].clone()).collect();
                found = recipients.without(&told).map_err(TlsrptLookupError::None);
            }
            let reported = self.reported(&Which::first(self.day, about.clone()))?.map(|(_, said)| said.report_id);
            self.add(&about, false, reported, &rows, found);
        }
        Ok(self.previews)
    }

    /// The report about a domain; where it is settled already, the supplement as well, if there is to be one.
    async fn domain(&mut self, domain: String, rows: Vec<TallyRow>) -> Result<(), StoreError> {
        let about = ReportSubject::Domain(domain);
        let found = self.find(&about, &rows).await;
        let which = Which::first(self.day, about.clone());
        let Some((plan, said)) = self.reported(&which)? else {
            self.add(&about, false, None, &rows, found);
            return Ok(());
        };
        self.add(&about, false, Some(said.report_id), &rows, found);
        let supplement = planner::read(&*self.scheduler.context.store, &which.supplement())?;
        if snapshot::sum(&rows) > plan.counted && supplement.is_none_or(|plan| plan.state == PlanState::Waiting) {
            let since = snapshot::since(rows, &said.rows);
            let found = self.find(&about, &since).await;
            self.add(&about, true, None, &since, found);
        }
        Ok(())
    }

    /// The plan of a report that is settled, and what it says.
    fn reported(&self, which: &Which) -> Result<Option<(Plan, Said)>, StoreError> {
        let store = &*self.scheduler.context.store;
        let Some(plan) = planner::read(store, which)?.filter(|plan| plan.state == PlanState::Planned) else {
            return Ok(None);
        };
        let packed = store.read(Table::Snapshot, &which.key())?;
        Ok(packed.and_then(|packed| Some((plan, Said::unpack(&packed).ok()?))))
    }

    async fn find(&self, about: &ReportSubject, rows: &[TallyRow]) -> Result<Recipients, TlsrptLookupError> {
        self.audience.check_wanted(about, self.day, has_failures(rows))?;
        look_up_served_recipients(&self.scheduler.context.resolver, &self.audience, about, self.day).await
    }

    fn add(
        &mut self,
        about: &ReportSubject,
        supplement: bool,
        reported: Option<ReportId>,
        rows: &[TallyRow],
        found: Result<Recipients, TlsrptLookupError>,
    ) {
        let id = if supplement { ReportId::preview_of_supplement } else { ReportId::preview };
        let id = id(self.day, self.identity.submitter());
        let report = Report::build(&self.identity, self.day, about.name(), &id, rows, self.section.max_size);
        let why_not = found.as_ref().err().map(ToString::to_string);
        let Recipients { destinations, skipped, .. } = found.unwrap_or_default();
        self.previews.push(Preview {
            domain: about.to_string(),
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
