//! Reads a TLS report as a receiver would, and says what is wrong with it.
//!
//! Takes: a message as it arrived. Gives: its parts, the report's JSON, and every departure from RFC 8460
//! §4.4 (the report), §5.1 (the file name), §5.3 (the message). Limits: `MAX_JSON` octets after decompression.
//! Not here: the signature (`dkim`).

use std::io::Read;

use flate2::read::GzDecoder;
use mail_parser::{MessageParser, MimeHeaders};
use serde_json::Value;

/// The largest report that is read, in octets.
const MAX_JSON: u64 = 16 * 1024 * 1024;

const RESULT_TYPES: [&str; 11] = [
    "starttls-not-supported",
    "certificate-host-mismatch",
    "certificate-not-trusted",
    "certificate-expired",
    "validation-failure",
    "tlsa-invalid",
    "dnssec-invalid",
    "dane-required",
    "sts-policy-fetch-error",
    "sts-policy-invalid",
    "sts-webpki-invalid",
];

/// A report, taken out of its message.
#[derive(Clone, Debug)]
pub struct Report {
    /// `TLS-Report-Domain`.
    pub domain: String,
    /// `TLS-Report-Submitter`.
    pub submitter: String,
    /// The name of the attachment.
    pub file_name: String,
    /// The part for people.
    pub text: String,
    /// The report itself, as text.
    pub json: String,
    /// The same, parsed.
    pub value: Value,
}

/// Sessions in a report, over all its policies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// `total-successful-session-count`.
    pub successful: u64,
    /// `total-failure-session-count`.
    pub failed: u64,
    /// (`result-type`, `failed-session-count`), sorted, one for each type.
    pub details: Vec<(String, u64)>,
}

/// Takes the report out of a message; otherwise everything that is wrong with it.
pub fn read(message: &[u8]) -> Result<Report, Vec<String>> {
    let mut faults = Vec::new();
    let parsed = MessageParser::default().parse(message).ok_or_else(|| vec!["no message".to_owned()])?;
    let header = |name: &str| parsed.header_raw(name).map(unfold).unwrap_or_default();
    let (domain, submitter) = (header("TLS-Report-Domain"), header("TLS-Report-Submitter"));
    let subject = parsed.subject().unwrap_or_default().to_owned();
    let begins = format!("Report Domain: {domain} Submitter: {submitter} Report-ID: <");
    if domain.is_empty() || submitter.is_empty() || !subject.starts_with(&begins) || !subject.ends_with('>') {
        faults.push(format!("the subject `{subject}` does not fit domain `{domain}` and submitter `{submitter}`"));
    }
    for name in ["Message-ID", "Date", "From", "To", "MIME-Version"] {
        if header(name).is_empty() {
            faults.push(format!("no {name}"));
        }
    }
    let kind = parsed.content_type();
    let is = |c: &mail_parser::ContentType<'_>, main: &str, sub: &str| {
        c.ctype().eq_ignore_ascii_case(main) && c.subtype().is_some_and(|s| s.eq_ignore_ascii_case(sub))
    };
    if !kind.is_some_and(|c| is(c, "multipart", "report") && c.attribute("report-type") == Some("tlsrpt")) {
        faults.push("the message is no multipart/report; report-type=tlsrpt".into());
    }
    let text = parsed.body_text(0).unwrap_or_default().into_owned();
    if text.trim().is_empty() {
        faults.push("no part for people".into());
    }
    let part = parsed.parts.iter().find(|p| p.content_type().is_some_and(|c| is(c, "application", "tlsrpt+gzip")));
    let Some(part) = part else {
        faults.push("no part application/tlsrpt+gzip".into());
        return Err(faults);
    };
    let file_name = part.attachment_name().unwrap_or_default().to_owned();
    let mut json = String::new();
    if let Err(e) = GzDecoder::new(part.contents()).take(MAX_JSON).read_to_string(&mut json) {
        faults.push(format!("the attachment: {e}"));
    }
    let value: Value = serde_json::from_str(&json).unwrap_or_else(|e| {
        faults.push(format!("the JSON: {e}"));
        Value::Null
    });
    faults.extend(json_faults(&value));
    let id = value["report-id"].as_str().unwrap_or_default();
    if !subject.contains(id) {
        faults.push(format!("the report-id `{id}` is not in the subject"));
    }
    faults.extend(file_name_fault(&file_name, &submitter, &domain, &value));
    if faults.is_empty() { Ok(Report { domain, submitter, file_name, text, json, value }) } else { Err(faults) }
}

impl Report {
    /// The sum over all policies.
    pub fn totals(&self) -> Totals {
        totals(&self.value)
    }

    /// The `policy-type` of every policy, in order.
    pub fn policy_types(&self) -> Vec<&str> {
        let policies = self.value["policies"].as_array().map_or(&[][..], Vec::as_slice);
        policies.iter().filter_map(|p| p["policy"]["policy-type"].as_str()).collect()
    }
}

/// The sum over all policies of a report.
pub fn totals(report: &Value) -> Totals {
    let mut totals = Totals::default();
    let mut details = std::collections::BTreeMap::new();
    for policy in report["policies"].as_array().map_or(&[][..], Vec::as_slice) {
        totals.successful += policy["summary"]["total-successful-session-count"].as_u64().unwrap_or(0);
        totals.failed += policy["summary"]["total-failure-session-count"].as_u64().unwrap_or(0);
        for detail in policy["failure-details"].as_array().map_or(&[][..], Vec::as_slice) {
            let kind = detail["result-type"].as_str().unwrap_or_default().to_owned();
            *details.entry(kind).or_insert(0) += detail["failed-session-count"].as_u64().unwrap_or(0);
        }
    }
    totals.details = details.into_iter().collect();
    totals
}

/// Every departure of a report from RFC 8460 §4.4.
pub fn json_faults(report: &Value) -> Vec<String> {
    let mut faults = Faults::default();
    let top = ["organization-name", "date-range", "contact-info", "report-id", "policies"];
    faults.keys("report", report, &top, &[]);
    for key in ["organization-name", "contact-info", "report-id"] {
        faults.text("report", report, key);
    }
    faults.keys("date-range", &report["date-range"], &["start-datetime", "end-datetime"], &[]);
    let time = |key: &str| report["date-range"][key].as_str().and_then(|t| t.parse::<jiff::Timestamp>().ok());
    match (time("start-datetime"), time("end-datetime")) {
        (Some(start), Some(end)) => {
            let whole_day = start.as_second().rem_euclid(86_400) == 0 && end.as_second() - start.as_second() == 86_399;
            faults.unless(whole_day, || format!("date-range is no UTC day: {start} to {end}"));
        }
        _ => faults.unless(false, || "date-range: no RFC 3339 times".into()),
    }
    let policies = report["policies"].as_array().map_or(&[][..], Vec::as_slice);
    faults.unless(!policies.is_empty(), || "no policies".into());
    for policy in policies {
        faults.policy(policy);
    }
    faults.0
}

#[derive(Default)]
struct Faults(Vec<String>);

impl Faults {
    fn unless(&mut self, right: bool, fault: impl FnOnce() -> String) {
        if !right {
            self.0.push(fault());
        }
    }

    /// An object with these keys, these perhaps, and no others.
    fn keys(&mut self, what: &str, value: &Value, needed: &[&str], allowed: &[&str]) {
        let Some(object) = value.as_object() else { return self.0.push(format!("{what} is no object")) };
        for key in needed {
            self.unless(object.contains_key(*key), || format!("{what}: no {key}"));
        }
        for key in object.keys() {
            let known = needed.contains(&key.as_str()) || allowed.contains(&key.as_str());
            self.unless(known, || format!("{what}: `{key}` is no key of RFC 8460"));
        }
    }

    fn text(&mut self, what: &str, value: &Value, key: &str) {
        let right = value[key].as_str().is_some_and(|s| !s.is_empty());
        self.unless(right, || format!("{what}: {key} is no text"));
    }

    fn count(&mut self, what: &str, value: &Value, key: &str) {
        self.unless(value[key].as_u64().is_some(), || format!("{what}: {key} is no count"));
    }

    fn policy(&mut self, entry: &Value) {
        self.keys("policies", entry, &["policy", "summary"], &["failure-details"]);
        let policy = &entry["policy"];
        self.keys("policy", policy, &["policy-type", "policy-domain"], &["policy-string", "mx-host"]);
        self.text("policy", policy, "policy-domain");
        let kind = policy["policy-type"].as_str().unwrap_or_default();
        self.unless(["tlsa", "sts", "no-policy-found"].contains(&kind), || format!("policy-type `{kind}`"));
        for key in ["policy-string", "mx-host"] {
            let right = match &policy[key] {
                Value::Null => policy.get(key).is_none(),
                Value::Array(texts) => !texts.is_empty() && texts.iter().all(Value::is_string),
                _ => false,
            };
            self.unless(right, || format!("{key} is no array of texts"));
        }
        let summary = &entry["summary"];
        let counts = ["total-successful-session-count", "total-failure-session-count"];
        self.keys("summary", summary, &counts, &[]);
        for key in counts {
            self.count("summary", summary, key);
        }
        let details = entry["failure-details"].as_array().map_or(&[][..], Vec::as_slice);
        self.unless(entry.get("failure-details").is_none_or(Value::is_array), || "failure-details is no array".into());
        for detail in details {
            self.detail(detail);
        }
        let failed = summary["total-failure-session-count"].as_u64().unwrap_or(0);
        let detailed: u64 = details.iter().filter_map(|d| d["failed-session-count"].as_u64()).sum();
        self.unless(detailed >= failed, || format!("{failed} failures, details for {detailed}"));
    }

    fn detail(&mut self, detail: &Value) {
        let optional = [
            "sending-mta-ip",
            "receiving-mx-hostname",
            "receiving-mx-helo",
            "receiving-ip",
            "additional-information",
            "failure-reason-code",
        ];
        self.keys("failure-details", detail, &["result-type", "failed-session-count"], &optional);
        let kind = detail["result-type"].as_str().unwrap_or_default();
        self.unless(RESULT_TYPES.contains(&kind), || format!("result-type `{kind}`"));
        self.count("failure-details", detail, "failed-session-count");
        for key in optional.into_iter().filter(|key| detail.get(*key).is_some()) {
            self.text("failure-details", detail, key);
        }
        for key in ["sending-mta-ip", "receiving-ip"] {
            let right = detail[key].as_str().is_none_or(|ip| ip.parse::<std::net::IpAddr>().is_ok());
            self.unless(right, || format!("{key} is no address"));
        }
    }
}

/// `sender!policy-domain!begin!end[!unique].json.gz` (RFC 8460 §5.1).
fn file_name_fault(name: &str, submitter: &str, domain: &str, report: &Value) -> Option<String> {
    let second = |key: &str| {
        let time = report["date-range"][key].as_str()?.parse::<jiff::Timestamp>().ok()?;
        Some(time.as_second().to_string())
    };
    let (begin, end) = (second("start-datetime").unwrap_or_default(), second("end-datetime").unwrap_or_default());
    let parts: Vec<&str> = name.strip_suffix(".json.gz").unwrap_or_default().split('!').collect();
    let right = (4..=5).contains(&parts.len()) && parts[..4] == [submitter, domain, &begin, &end];
    (!right).then(|| format!("the file name `{name}`"))
}

/// A header's text on one line.
fn unfold(raw: &str) -> String {
    raw.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::io::Write;

    fn report() -> Value {
        json!({
            "organization-name": "Closed World",
            "date-range": {"start-datetime": "2026-11-22T00:00:00Z", "end-datetime": "2026-11-22T23:59:59Z"},
            "contact-info": "postmaster@sender.test",
            "report-id": "2026-11-22_a.test",
            "policies": [{
                "policy": {"policy-type": "no-policy-found", "policy-domain": "a.test"},
                "summary": {"total-successful-session-count": 3, "total-failure-session-count": 1},
                "failure-details": [{"result-type": "certificate-expired", "failed-session-count": 1}]
            }]
        })
    }

    fn message(report: &Value) -> Vec<u8> {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gzip.write_all(report.to_string().as_bytes()).unwrap();
        let attachment = data_encoding::BASE64.encode(&gzip.finish().unwrap());
        format!(
            "From: tlsrpt@sender.test\r\nTo: r@a.test\r\nDate: Mon, 23 Nov 2026 00:00:10 +0000\r\nMessage-ID: <1@s>\r\n\
             MIME-Version: 1.0\r\nTLS-Report-Domain: a.test\r\nTLS-Report-Submitter: sender.test\r\n\
             Subject: Report Domain: a.test Submitter: sender.test\r\n Report-ID: <2026-11-22_a.test>\r\n\
             Content-Type: multipart/report; report-type=\"tlsrpt\"; boundary=\"b\"\r\n\r\n--b\r\n\
             Content-Type: text/plain\r\n\r\nA report.\r\n--b\r\nContent-Type: application/tlsrpt+gzip\r\n\
             Content-Transfer-Encoding: base64\r\nContent-Disposition: attachment;\r\n \
             filename=\"sender.test!a.test!1795305600!1795391999.json.gz\"\r\n\r\n{attachment}\r\n--b--\r\n"
        )
        .into_bytes()
    }

    #[test]
    fn a_right_report_is_read() {
        let read = read(&message(&report())).unwrap();
        assert_eq!((read.domain.as_str(), read.submitter.as_str()), ("a.test", "sender.test"));
        let totals = read.totals();
        assert_eq!((totals.successful, totals.failed), (3, 1));
        assert_eq!(totals.details, [("certificate-expired".to_owned(), 1)]);
        assert_eq!(read.policy_types(), ["no-policy-found"]);
    }

    #[test]
    fn every_departure_is_found() {
        type Spoil = fn(&mut Value);
        let spoils: [Spoil; 9] = [
            |r| r["policies"][0]["policy"]["mx-host"] = json!("mx.a.test"),
            |r| r["policies"][0]["policy"]["policy-type"] = json!("dane"),
            |r| r["policies"][0]["failure-details"][0]["result-type"] = json!("certificate_expired"),
            |r| r["policies"][0]["failure-details"][0]["receiving-ip"] = json!("mx.a.test"),
            |r| r["policies"][0]["failure-details"] = json!([]),
            |r| r["policies"][0]["summary"]["total-successful-session-count"] = json!("3"),
            |r| r["contact-info"] = Value::Null,
            |r| r["date-range"]["end-datetime"] = json!("2026-11-22T24:00:00Z"),
            |r| r["extra"] = json!(1),
        ];
        assert_eq!(json_faults(&report()), Vec::<String>::new());
        for (number, spoil) in spoils.into_iter().enumerate() {
            let mut wrong = report();
            spoil(&mut wrong);
            assert!(!json_faults(&wrong).is_empty(), "spoil {number}");
        }
    }

    #[test]
    fn a_message_of_another_form_is_refused() {
        let right = String::from_utf8(message(&report())).unwrap();
        for (from, to) in [
            ("TLS-Report-Domain: a.test", "TLS-Report-Domain: b.test"),
            ("multipart/report", "multipart/mixed"),
            ("tlsrpt+gzip", "octet-stream"),
            ("!1795391999", "!1795392000"),
            ("Message-ID: <1@s>\r\n", ""),
        ] {
            assert!(read(right.replace(from, to).as_bytes()).is_err(), "{from}");
        }
    }
}
