//! The report itself: one domain's counts of one day as RFC 8460 §4.4 wants them, and gzipped.
//!
//! Takes: who reports, the day, the domain, the report-id, the rows. Gives: the document, its JSON, the gzip, file name, Subject.
//! The same input gives the same octets: everything is sorted, equal details are merged, the gzip has no time in it.
//! Limits: the caller's size. Of a report that is larger the rarest kinds of failure are put together, by policy and result
//! type: every count stays right, and a detail says how many kinds it stands for. Counts have 64 bits.
//! Not here: the mail around it (`report::message`).

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::io::Write;

use flate2::{Compression, GzBuilder};
use serde::{Deserialize, Serialize};

use crate::base::own_reports::MessageIdKey;
use crate::base::tlsrpt::{Day, Failure, Policy, ResultType, TallyRow};
use crate::config::identity::Identity;

/// A report, ready to be put into a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    /// The day.
    pub(crate) day: Day,
    /// The domain that it is about.
    pub(crate) domain: String,
    /// What the JSON says.
    pub(crate) document: ReportDocument,
    /// The JSON.
    pub(crate) json: Vec<u8>,
    /// The JSON, gzipped.
    pub(crate) gzip: Vec<u8>,
    /// The file name (RFC 8460 §5.1).
    pub(crate) file_name: String,
    /// The Subject (RFC 8460 §5.3).
    pub(crate) subject: String,
    /// How many failure details were merged by result type, so that the report fits.
    pub(crate) merged_details: usize,
}

/// The octets that a message may need for its headers and its text part, at most.
const MESSAGE_OVERHEAD: usize = 300_000;

/// The largest JSON, in octets before it is compressed: receivers limit what they unpack (mox at 20 MiB).
const MAX_JSON: usize = 20_000_000;

/// The report as JSON has it (RFC 8460 §4.4).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct ReportDocument {
    /// Who reports.
    pub(crate) organization_name: String,
    /// The day.
    pub(crate) date_range: DateRange,
    /// Whom to ask.
    pub(crate) contact_info: String,
    /// The identifier.
    pub(crate) report_id: String,
    /// One element a policy.
    pub(crate) policies: Vec<PolicyResult>,
}

/// `date-range`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct DateRange {
    /// The first second, RFC 3339.
    pub(crate) start_datetime: String,
    /// The last second.
    pub(crate) end_datetime: String,
}

/// An element of `policies`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct PolicyResult {
    /// The policy.
    pub(crate) policy: Policy,
    /// Its sessions.
    pub(crate) summary: Summary,
    /// How they failed; left out when none did, as the large senders do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) failure_details: Vec<FailureDetail>,
}

/// `summary`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Summary {
    /// Sessions that succeeded.
    pub(crate) total_successful_session_count: u64,
    /// Sessions that failed.
    pub(crate) total_failure_session_count: u64,
}

/// An element of `failure-details`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct FailureDetail {
    /// What is common to them.
    #[serde(flatten)]
    pub(crate) failure: Failure,
    /// How many.
    pub(crate) failed_session_count: u64,
}

/// A `report-id`: `day.unique@submitter`, the form that the Subject wants (RFC 5322 §3.6.4).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct ReportId(String);

impl ReportId {
    /// That of a report with these rows; `subject`: what it is about, and whether it is a supplement. The same content has the
    /// same one, so that a receiver recognizes a report that is sent again, also from a restored store (RFC 8460 §5.3).
    pub(crate) fn of_content(
        key: &MessageIdKey,
        day: Day,
        subject: &str,
        rows: &[TallyRow],
        submitter: &str,
    ) -> ReportId {
        // Structures of strings and numbers always serialize.
        let content = serde_json::to_vec(&(day, subject, merge_rows(rows))).expect("strings and numbers");
        ReportId::from_parts(day, &key.content_id(&content), submitter)
    }

    /// One that no report is sent under.
    pub(crate) fn preview(day: Day, submitter: &str) -> ReportId {
        ReportId::from_parts(day, "preview", submitter)
    }

    /// One that no supplement is sent under.
    pub(crate) fn preview_of_supplement(day: Day, submitter: &str) -> ReportId {
        ReportId::from_parts(day, "supplement", submitter)
    }

    fn from_parts(day: Day, unique: &str, submitter: &str) -> ReportId {
        ReportId(format!("{}.{unique}@{submitter}", day.to_string().replace('-', "")))
    }

    /// The text between the angle brackets.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The `unique-id` of the file name: letters and digits.
    fn unique_id(&self) -> &str {
        let left = self.0.split('@').next().unwrap_or_default();
        left.rsplit('.').next().unwrap_or_default()
    }
}

impl fmt::Display for ReportId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Report {
    /// Builds the report from the rows of a day and domain (or MX host). `max_size`: its largest size as a message, in octets.
    pub(crate) fn build(
        identity: &Identity,
        day: Day,
        domain: &str,
        id: &ReportId,
        rows: &[TallyRow],
        max_size: usize,
    ) -> Report {
        let mut document = ReportDocument {
            organization_name: identity.organization.clone(),
            date_range: DateRange {
                start_datetime: format!("{day}T00:00:00Z"),
                end_datetime: format!("{day}T23:59:59Z"),
            },
            contact_info: identity.contact.to_string(),
            report_id: id.to_string(),
            policies: merge_rows(rows),
        };
        let (json, gzip, merged_details) = fit_to_size(&mut document, max_size);
        let submitter = identity.submitter();
        Report {
            day,
            domain: domain.to_owned(),
            gzip,
            json,
            file_name: format!("{submitter}!{domain}!{}!{}!{}.json.gz", day.start(), day.end() - 1, id.unique_id()),
            subject: format!("Report Domain: {domain} Submitter: {submitter} Report-ID: <{id}>"),
            document,
            merged_details,
        }
    }

    /// All policies' sessions together.
    pub(crate) fn total(&self) -> Summary {
        self.document.policies.iter().fold(Summary::default(), |sum, p| sum.add(p.summary))
    }
}

impl Summary {
    fn add(self, other: Summary) -> Summary {
        let add = u64::saturating_add;
        Summary {
            total_successful_session_count: add(
                self.total_successful_session_count,
                other.total_successful_session_count,
            ),
            total_failure_session_count: add(self.total_failure_session_count, other.total_failure_session_count),
        }
    }
}

/// Merges rows of equal policy into one element, and details that are equal but for the count into one.
fn merge_rows(rows: &[TallyRow]) -> Vec<PolicyResult> {
    let mut merged: BTreeMap<&Policy, (Summary, BTreeMap<&Failure, u64>)> = BTreeMap::new();
    for row in rows {
        let (summary, details) = merged.entry(&row.policy).or_default();
        *summary = summary
            .add(Summary { total_successful_session_count: row.successful, total_failure_session_count: row.failed });
        for (failure, count) in &row.details {
            let sum = details.entry(failure).or_default();
            *sum = sum.saturating_add(*count);
        }
    }
    let detail =
        |(failure, count): (&Failure, u64)| FailureDetail { failure: failure.clone(), failed_session_count: count };
    merged
        .into_iter()
        .map(|(policy, (summary, details))| PolicyResult {
            policy: policy.clone(),
            summary,
            failure_details: details.into_iter().map(detail).collect(),
        })
        .collect()
}

/// Merges details until the document fits. Returns its JSON, its gzip, and how many details were merged.
fn fit_to_size(document: &mut ReportDocument, max_size: usize) -> (Vec<u8>, Vec<u8>, usize) {
    // 57 octets of gzip are a line of 76 characters and CRLF (RFC 2045 §6.8).
    let limit = max_size.saturating_sub(MESSAGE_OVERHEAD) / 78 * 57;
    let encode = |document: &ReportDocument| {
        let json = to_json(document);
        let compressed = gzip(&json);
        (json, compressed)
    };
    let (mut json, mut compressed) = encode(document);
    if compressed.len() <= limit && json.len() <= MAX_JSON {
        return (json, compressed, 0);
    }
    let all_policies = document.policies.clone();
    let all: usize = all_policies.iter().map(|p| p.failure_details.len()).sum();
    let mut kept = all;
    // Each turn keeps at least a tenth less. With none kept there is one detail a policy and result type, and no smaller form.
    while (compressed.len() > limit || json.len() > MAX_JSON) && kept > 0 {
        let share = (limit * 100 / compressed.len()).min(MAX_JSON * 100 / json.len()).min(90);
        kept = kept * share / 100;
        document.policies = keep_most_frequent(&all_policies, kept);
        (json, compressed) = encode(document);
    }
    (json, compressed, all - kept)
}

/// Keeps so many details, those with the highest counts (of equal counts the first), and merges the others by result type.
fn keep_most_frequent(policies: &[PolicyResult], kept: usize) -> Vec<PolicyResult> {
    let all = policies.iter().flat_map(|p| p.failure_details.iter().map(|d| d.failed_session_count));
    let mut counts: Vec<(Reverse<u64>, usize)> = all.zip(0..).map(|(count, nth)| (Reverse(count), nth)).collect();
    counts.sort_unstable();
    let rare: HashSet<usize> = counts.into_iter().skip(kept).map(|(_, nth)| nth).collect();
    let mut nth = 0..;
    let mut fewer = |policy: &PolicyResult| {
        let mut rest: BTreeMap<ResultType, (usize, u64)> = BTreeMap::new();
        let mut failure_details = policy.failure_details.clone();
        failure_details.retain(|detail| {
            let rare = nth.next().is_some_and(|nth| rare.contains(&nth));
            if rare {
                let (kinds, sessions) = rest.entry(detail.failure.result_type).or_default();
                *kinds += 1;
                *sessions = sessions.saturating_add(detail.failed_session_count);
            }
            !rare
        });
        failure_details.extend(rest.into_iter().map(|(result_type, (kinds, sessions))| {
            let said = format!("{kinds} kinds of failure in one, for the size of the report");
            FailureDetail { failure: Failure::new(result_type, Some(&said)), failed_session_count: sessions }
        }));
        PolicyResult { policy: policy.policy.clone(), summary: policy.summary, failure_details }
    };
    policies.iter().map(&mut fewer).collect()
}

fn to_json(document: &ReportDocument) -> Vec<u8> {
    // serde_json fails on maps whose keys are no strings and on types that refuse; the document has neither.
    serde_json::to_vec(document).expect("a document of strings and numbers")
}

/// Compressed, the same octets always giving the same: no name, no time.
pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzBuilder::new().mtime(0).write(Vec::new(), Compression::default());
    // Writing into a Vec does not fail.
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("room in memory")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::base::tlsrpt::PolicyType;
    use crate::config::ReportSection;
    use flate2::read::GzDecoder;
    use mail_auth::report::tlsrpt::{PolicyType as TheirType, TlsReport};
    use proptest::prelude::*;
    use std::io::Read;

    pub(crate) fn identity() -> Identity {
        Identity::read(&ReportSection {
            organization: Some("Example GmbH & Söhne".into()),
            contact: Some("postmaster@sender.example".into()),
            from: Some("tlsrpt@sender.example".into()),
            ..ReportSection::default()
        })
        .unwrap()
    }

    #[test]
    fn the_report_id_follows_from_the_content() {
        let day: Day = "2026-11-22".parse().unwrap();
        let key = MessageIdKey::from_bytes(&[7; 32]);
        let id = |day, subject: &str, rows: &[TallyRow]| ReportId::of_content(&key, day, subject, rows, "s.example");
        let all = rows(day);
        let first = id(day, "example.net", &all);
        let turned: Vec<TallyRow> = all.iter().rev().cloned().collect();
        assert_eq!(id(day, "example.net", &turned), first, "the order does not count");
        let mut more = all.clone();
        more[0].successful += 1;
        let next = Day(day.0 + 1);
        let others = [id(next, "example.net", &all), id(day, "example.org", &all), id(day, "example.net", &more)];
        assert!(!others.contains(&first) && others[0] != others[1], "{others:?}");
        assert!(first.as_str().starts_with("20261122.") && first.as_str().ends_with("@s.example"), "{first}");
    }

    pub(crate) fn rows(day: Day) -> Vec<TallyRow> {
        let sts = Policy {
            policy_type: PolicyType::Sts,
            policy_string: vec!["version: STSv1".into(), "mode: enforce".into(), "mx: *.example.net".into()],
            policy_domain: "example.net".into(),
            mx_host: vec!["*.example.net".into()],
        };
        let tlsa = Policy {
            policy_type: PolicyType::Tlsa,
            policy_string: vec!["3 1 1 00ff".into()],
            policy_domain: "mx1.example.net".into(),
            mx_host: Vec::new(),
        };
        let expired = Failure {
            receiving_mx_hostname: Some("mx1.example.net".into()),
            receiving_ip: Some("2001:db8::1".parse().unwrap()),
            sending_mta_ip: Some("192.0.2.1".parse().unwrap()),
            ..Failure::new(ResultType::CertificateExpired, Some("certificate has expired"))
        };
        let row = |policy, successful, failed, details| TallyRow {
            null_sender: 0,
            day,
            domain: "example.net".into(),
            policy,
            successful,
            failed,
            details,
        };
        vec![
            row(
                sts.clone(),
                5_000_000_000,
                3,
                vec![(expired.clone(), 2), (Failure::new(ResultType::StarttlsNotSupported, None), 1)],
            ),
            row(tlsa, 7, 0, vec![]),
            row(Policy::none("example.net"), 0, 1, vec![(Failure::new(ResultType::ValidationFailure, None), 1)]),
            row(sts, 1, 4, vec![(expired, 4)]),
        ]
    }

    fn day() -> Day {
        "2026-11-22".parse().unwrap()
    }

    fn report(rows: &[TallyRow]) -> Report {
        let id = ReportId::from_parts(day(), "00112233aabbccdd", "sender.example");
        Report::build(&identity(), day(), "example.net", &id, rows, 10_000_000)
    }

    #[test]
    fn the_document_is_that_of_the_rfc() {
        let report = report(&rows(day()));
        let json: serde_json::Value = serde_json::from_slice(&report.json).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "organization-name": "Example GmbH & Söhne",
                "date-range": {"start-datetime": "2026-11-22T00:00:00Z", "end-datetime": "2026-11-22T23:59:59Z"},
                "contact-info": "postmaster@sender.example",
                "report-id": "20261122.00112233aabbccdd@sender.example",
                "policies": [
                    {
                        "policy": {"policy-type": "tlsa", "policy-string": ["3 1 1 00ff"], "policy-domain": "mx1.example.net"},
                        "summary": {"total-successful-session-count": 7, "total-failure-session-count": 0}
                    },
                    {
                        "policy": {
                            "policy-type": "sts",
                            "policy-string": ["version: STSv1", "mode: enforce", "mx: *.example.net"],
                            "policy-domain": "example.net",
                            "mx-host": ["*.example.net"]
                        },
                        "summary": {"total-successful-session-count": 5_000_000_001_u64, "total-failure-session-count": 7},
                        "failure-details": [
                            {"result-type": "starttls-not-supported", "failed-session-count": 1},
                            {
                                "result-type": "certificate-expired",
                                "sending-mta-ip": "192.0.2.1",
                                "receiving-mx-hostname": "mx1.example.net",
                                "receiving-ip": "2001:db8::1",
                                "failure-reason-code": "certificate has expired",
                                "failed-session-count": 6
                            }
                        ]
                    },
                    {
                        "policy": {"policy-type": "no-policy-found", "policy-domain": "example.net"},
                        "summary": {"total-successful-session-count": 0, "total-failure-session-count": 1},
                        "failure-details": [{"result-type": "validation-failure", "failed-session-count": 1}]
                    }
                ]
            })
        );
        assert_eq!(serde_json::from_slice::<ReportDocument>(&report.json).unwrap(), report.document);
        assert_eq!(report.total().total_failure_session_count, 8);
    }

    #[test]
    fn names_follow_the_abnf() {
        let report = report(&rows(day()));
        assert_eq!(report.file_name, "sender.example!example.net!1795305600!1795391999!00112233aabbccdd.json.gz");
        assert_eq!(
            report.subject,
            "Report Domain: example.net Submitter: sender.example Report-ID: <20261122.00112233aabbccdd@sender.example>"
        );
        let key = MessageIdKey::from_bytes(&[7; 32]);
        let made = ReportId::of_content(&key, day(), "example.net", &rows(day()), "sender.example");
        assert!(made.unique_id().bytes().all(|b| b.is_ascii_alphanumeric()), "{made}");
    }

    #[test]
    fn the_order_of_the_rows_changes_no_octet() {
        let mut rows = rows(day());
        let one = report(&rows);
        rows.reverse();
        for row in &mut rows {
            row.details.reverse();
        }
        let other = report(&rows);
        assert_eq!(one.gzip, other.gzip);
        assert_eq!(&one.gzip[4..8], [0; 4], "no time in the gzip header");
        let mut unpacked = Vec::new();
        GzDecoder::new(&one.gzip[..]).read_to_end(&mut unpacked).unwrap();
        assert_eq!(unpacked, one.json);
    }

    #[test]
    fn another_parser_reads_it_equal() {
        let mut rows = rows(day());
        rows[0].successful = 5; // that parser's counts have 32 bits
        let theirs = TlsReport::parse_json(&report(&rows).json).unwrap();
        assert_eq!(theirs.report_id, "20261122.00112233aabbccdd@sender.example");
        assert_eq!(theirs.policies.len(), 3);
        assert_eq!(theirs.policies[1].policy.policy_type, TheirType::Sts);
        assert_eq!(theirs.policies[1].policy.policy_string, ["version: STSv1", "mode: enforce", "mx: *.example.net"]);
        assert_eq!(theirs.policies[1].summary.total_success, 6);
        assert_eq!(theirs.policies[1].failure_details[1].failed_session_count, 6);
        assert_eq!(theirs.policies[0].failure_details, []);
    }

    /// Failures that nothing compresses, each with another count.
    fn many(kinds: u32) -> Vec<TallyRow> {
        let mut rows = rows(day());
        rows[0].details = (0..kinds)
            .map(|n| {
                let noise = ring::digest::digest(&ring::digest::SHA256, &n.to_be_bytes());
                let kind = if n % 2 == 0 { ResultType::CertificateExpired } else { ResultType::CertificateNotTrusted };
                (Failure::new(kind, Some(&crate::base::own_reports::hex(noise.as_ref()))), u64::from(n) + 1)
            })
            .collect();
        rows
    }

    fn by_type(document: &ReportDocument) -> BTreeMap<ResultType, u64> {
        let mut sums = BTreeMap::new();
        for detail in document.policies.iter().flat_map(|p| &p.failure_details) {
            *sums.entry(detail.failure.result_type).or_default() += detail.failed_session_count;
        }
        sums
    }

    #[test]
    fn a_report_that_is_too_large_tells_the_rarest_failures_as_one() {
        let rows = many(40_000);
        let id = ReportId::from_parts(day(), "00112233aabbccdd", "sender.example");
        let full = Report::build(&identity(), day(), "example.net", &id, &rows, 10_000_000);
        assert_eq!(full.merged_details, 0);
        let cut = Report::build(&identity(), day(), "example.net", &id, &rows, 1_000_000);
        assert!(cut.gzip.len() / 57 * 78 + MESSAGE_OVERHEAD <= 1_000_000, "{}", cut.gzip.len());
        assert!((10_000..40_000).contains(&cut.merged_details), "{}", cut.merged_details);
        assert_eq!(cut.total(), full.total());
        assert_eq!(by_type(&cut.document), by_type(&full.document));
        let details = &cut.document.policies.iter().find(|p| p.failure_details.len() > 2).unwrap().failure_details;
        let merged: Vec<&FailureDetail> = details
            .iter()
            .filter(|d| d.failure.failure_reason_code.as_deref().is_some_and(|r| r.contains("kinds of failure")))
            .collect();
        assert_eq!(merged.len(), 2, "one a result type");
        let rarest = details.iter().filter(|d| !merged.contains(d)).map(|d| d.failed_session_count).min().unwrap();
        assert!(rarest > cut.merged_details as u64 - 10, "the most frequent are told apart: {rarest}");
        let again = Report::build(&identity(), day(), "example.net", &id, &rows, 1_000_000);
        assert_eq!(again.gzip, cut.gzip);
    }

    fn failures() -> impl Strategy<Value = (Failure, u64)> {
        let kind = prop::sample::select(vec![
            ResultType::StarttlsNotSupported,
            ResultType::ValidationFailure,
            ResultType::StsPolicyFetchError,
        ]);
        let text = || prop::option::of("\\PC{0,20}");
        let ip = || prop::option::of(any::<std::net::IpAddr>());
        (kind, text(), text(), ip(), any::<u64>()).prop_map(|(kind, reason, host, receiving_ip, count)| {
            let receiving_mx_hostname = host;
            (Failure { receiving_mx_hostname, receiving_ip, ..Failure::new(kind, reason.as_deref()) }, count)
        })
    }

    fn any_row() -> impl Strategy<Value = TallyRow> {
        let policy_type = prop::sample::select(vec![PolicyType::Sts, PolicyType::Tlsa, PolicyType::NoPolicyFound]);
        let texts = || prop::collection::vec("\\PC{0,20}", 0..3);
        let details = prop::collection::vec(failures(), 0..5);
        (policy_type, texts(), texts(), "[a-z]{1,3}", any::<u64>(), any::<u64>(), details).prop_map(
            |(policy_type, policy_string, mx_host, policy_domain, successful, failed, details)| TallyRow {
                day: day(),
                domain: "example.net".into(),
                policy: Policy { policy_type, policy_string, policy_domain, mx_host },
                successful,
                failed,
                null_sender: 0,
                details,
            },
        )
    }

    proptest! {
        #[test]
        fn the_json_reads_back_equal_and_has_no_null(rows in prop::collection::vec(any_row(), 0..6)) {
            let report = report(&rows);
            prop_assert_eq!(&serde_json::from_slice::<ReportDocument>(&report.json).unwrap(), &report.document);
            let value: serde_json::Value = serde_json::from_slice(&report.json).unwrap();
            fn has_null(value: &serde_json::Value) -> bool {
                match value {
                    serde_json::Value::Null => true,
                    serde_json::Value::Array(all) => all.iter().any(has_null),
                    serde_json::Value::Object(all) => all.values().any(has_null),
                    _ => false,
                }
            }
            prop_assert!(!has_null(&value));
            let sum = |of: fn(&TallyRow) -> u64| rows.iter().fold(0_u64, |sum, row| sum.saturating_add(of(row)));
            prop_assert_eq!(report.total().total_successful_session_count, sum(|row| row.successful));
            prop_assert_eq!(report.total().total_failure_session_count, sum(|row| row.failed));
        }
    }
}
