//! What is counted from real Postfix's log, held to what the receiving servers saw and, from 3.10 on, to Postfix's own
//! TLSRPT datagrams of the same run.
//!
//! One Postfix after the other sends to every scenario, in several configurations (log levels, long queue ids, names,
//! connection reuse). The log is read without its `TLSRPT:` lines. Prints a table per version and form (`--nocapture`).
//! `TLSWARDEN_RELEASES="bullseye sid"` names more chroots (tests/chroot) beside this host's and trixie's; with
//! `TLSWARDEN_KEEP=folder` the logs stay there. Needs what `postfix.rs` needs; where something is missing the test fails.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::tz::TimeZone;
use lab::dns;
use lab::host;
use lab::postfix::{Installation, Postfix};
use lab::smtp::submit;
use lab::world::{Options, World};
use scenarios::{Counts, Scenario};
use serde_json::Value;
use tlswarden::base::policy_at::PolicyAt;
use tlswarden::base::tlsrpt::{Failure, PolicyInForce, ResultType, sum_tallies};
use tlswarden::counting::pipeline::Counter;
use tlswarden_parsers::Dialect;

#[path = "accuracy/scenarios.rs"]
mod scenarios;

const TEST: &str = "counts_are_what_servers_saw_and_postfix_reports";

/// How the same mail is sent once more.
struct Form {
    name: &'static str,
    settings: &'static [(&'static str, &'static str)],
    level_0: bool,
}

const FORMS: [Form; 4] = [
    Form { name: "log level 1", settings: &[("smtp_tls_loglevel", "1")], level_0: false },
    Form {
        name: "log level 2, long queue ids, syslog_name postfix-out",
        settings: &[("smtp_tls_loglevel", "2"), ("enable_long_queue_ids", "yes"), ("syslog_name", "postfix-out")],
        level_0: false,
    },
    Form {
        name: "all through tlsproxy",
        settings: &[("smtp_tls_loglevel", "1"), ("smtp_tls_connection_reuse", "yes")],
        level_0: false,
    },
    Form { name: "log level 0", settings: &[("smtp_tls_loglevel", "0")], level_0: true },
];

#[test]
fn counts_are_what_servers_saw_and_postfix_reports() {
    if let Some(argument) = host::inside() {
        let installation = Installation::at(Path::new(&argument)).unwrap();
        let wrong = tokio::runtime::Runtime::new().unwrap().block_on(play_all(&installation));
        assert!(wrong.is_empty(), "Postfix {}:\n{}", installation.version(), wrong.join("\n"));
        return;
    }
    let more = std::env::var("TLSWARDEN_RELEASES").unwrap_or_default();
    let mut postfixes = vec![Installation::of_this_host(), Installation::of_release("trixie")];
    postfixes.extend(more.split_whitespace().map(Installation::of_release));
    let postfixes: Vec<_> = postfixes.into_iter().map(|found| found.unwrap_or_else(|e| panic!("{e}"))).collect();
    // Side by side: each has a network of its own, and they mostly wait.
    let failed: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            postfixes.iter().map(|postfix| scope.spawn(|| host::run_inside(TEST, postfix.root()))).collect();
        threads.into_iter().filter_map(|thread| thread.join().unwrap().err()).collect()
    });
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// What one source says of one destination.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Told {
    counts: Counts,
    details: BTreeMap<(ResultType, Option<String>), u64>,
}

impl Told {
    fn add(&mut self, failure: Option<(ResultType, Option<String>)>) {
        match failure {
            None => self.counts.0 += 1,
            Some(kind) => {
                self.counts.1 += 1;
                *self.details.entry(kind).or_default() += 1;
            }
        }
    }
}

impl std::fmt::Display for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = format!("{} ok, {} failed", self.counts.0, self.counts.1);
        for ((kind, reason), n) in &self.details {
            text += &format!(", {n} {kind}");
            text += &reason.as_ref().map(|r| format!("/{r}")).unwrap_or_default();
        }
        f.pad(&text)
    }
}

struct Decisions(HashMap<String, PolicyInForce>);

impl PolicyAt for Decisions {
    fn at(&self, domain: &str, _: i64) -> Option<PolicyInForce> {
        self.0.get(domain).cloned()
    }
}

async fn play_all(installation: &Installation) -> Vec<String> {
    host::wait_for_room_before_midnight(Duration::from_secs(180));
    let scenarios = scenarios::all();
    let domains: Vec<_> = scenarios.iter().map(|s| s.domain.clone()).collect();
    let options = Options {
        dns: "127.0.0.1:53".parse().unwrap(),
        receivers: Some(25),
        postfix: installation.short_version(),
        ..Options::default()
    };
    let world = World::start(options, &domains).await.unwrap();
    {
        let mut zone = world.dns.change();
        for name in ["dane-unusable", "dane-only-unusable"] {
            // PKIX-EE: SMTP clients do not use it (RFC 7672 §3.1.3).
            zone.tlsa(&format!("mx.{name}.example"), 1, 1, 1, &[0xAA; 32]);
        }
        zone.fault("_25._tcp.mx.dane-servfail.example", Some(dns::Fault::ServFail));
    }
    for scenario in &scenarios {
        if let Some((recipient, reply)) = scenario.refused {
            let name = scenario.domain.name();
            world.receiver(&format!("mx.{name}")).refuse(&format!("{recipient}@{name}"), reply);
        }
    }
    let table = world.folder().join("policy");
    let lines: Vec<String> = scenarios
        .iter()
        .filter_map(|s| Some(format!("{} {}\n", s.domain.name(), s.policy(installation.knows_attributes())?)))
        .collect();
    fs::write(&table, lines.concat()).unwrap();
    let maps = format!("texthash:{}", table.display());
    let queue = world.folder().join("postfix/queue");
    fs::create_dir_all(&queue).unwrap();
    let collector = installation.knows_attributes().then(|| Collector::bind(&queue.join("tlsrpt.socket")));

    let mut postfix: Option<Postfix> = None;
    let mut wrong = Vec::new();
    for form in &FORMS {
        let mut settings = vec![
            ("smtp_tls_policy_maps", &*maps),
            ("smtp_tls_session_cache_database", "btree:${data_directory}/smtp_scache"),
            ("smtp_starttls_timeout", "2s"),
            ("smtp_connection_cache_destinations", "reuse-ok.test"),
            ("smtp_connection_cache_time_limit", "60s"),
        ];
        if collector.is_some() {
            settings.extend([
                ("smtp_tlsrpt_enable", "yes"),
                ("smtp_tlsrpt_socket_name", "tlsrpt.socket"),
                ("smtp_tlsrpt_skip_reused_handshakes", "no"),
            ]);
        }
        settings.extend(form.settings);
        let from = fs::metadata(world.log()).map_or(0, |m| usize::try_from(m.len()).unwrap());
        match &postfix {
            None => postfix = Some(Postfix::start_with(&world, installation, "may", &settings).unwrap()),
            Some(postfix) => postfix.restart_with(&world, "may", &settings).unwrap(),
        }
        let postfix = postfix.as_ref().unwrap();
        let before: Vec<Counts> = scenarios.iter().map(|s| seen(&world, s)).collect();
        send(postfix, &scenarios, from).await;
        let log = fs::read(world.log()).unwrap().split_off(from);
        if let Some(folder) = std::env::var_os("TLSWARDEN_KEEP") {
            let name = format!("{}-{}", installation.version(), form.name.replace(' ', "-"));
            fs::write(Path::new(&folder).join(name + ".log"), &log).unwrap();
        }
        let ours = ours(&log, &scenarios);
        let native = collector.as_ref().map(Collector::take);
        println!("Postfix {}, {}:", installation.version(), form.name);
        println!("  {:20} {:60} {:60} what differs, and why", "destination", "counted from the log", "native");
        for (scenario, before) in scenarios.iter().zip(before) {
            let seen = {
                let now = seen(&world, scenario);
                (now.0 - before.0, now.1 - before.1)
            };
            let faults = judge(scenario, form, installation, seen, &ours, native.as_ref());
            wrong.extend(faults.into_iter().map(|fault| format!("{}: {}: {fault}", form.name, scenario.name)));
        }
    }
    wrong
}

/// Sends every message of every scenario, the first of each at once, then the second.
async fn send(postfix: &Postfix, scenarios: &[Scenario], from: usize) {
    for round in 0..2 {
        let mut recipients = Vec::new();
        for scenario in scenarios {
            let Some(message) = scenario.messages.get(round) else { continue };
            let to: Vec<String> = message.iter().map(|local| format!("{local}@{}", scenario.domain.name())).collect();
            let names: Vec<&str> = to.iter().map(String::as_str).collect();
            let text = format!("Subject: {}\n{}\nhello", scenario.name, scenario.header);
            submit(Postfix::SMTPD, "sender@sender.test", &names, &text).await.unwrap();
            // The first: it shows that there are trust anchors, before anything is judged that needs them.
            if (round, scenario.name) == (0, "may-ok") {
                postfix.await_delivery(&to[0], from).unwrap();
            }
            recipients.extend(to);
        }
        for recipient in recipients {
            postfix.await_delivery(&recipient, from).unwrap();
        }
    }
    // Messages that are older than this go on in clear text; until here none did, however slow the host is.
    postfix.set("minimal_backoff_time = 1s").unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    for scenario in scenarios.iter().filter(|s| s.retried) {
        let recipient = format!("u@{}", scenario.domain.name());
        let (line, length) = (postfix.delivery(&recipient, from).unwrap(), postfix.log_length());
        postfix.flush_one(&line).unwrap();
        assert!(postfix.await_delivery(&recipient, length).unwrap().contains("status=sent"), "{recipient}");
    }
    // A connection that is given up says QUIT behind its delivery line.
    tokio::time::sleep(Duration::from_millis(500)).await;
}

/// TLS connections that carried a message or a recipient, and such that did not, over all hosts of a scenario.
fn seen(world: &World, scenario: &Scenario) -> Counts {
    let mut counts = (0, 0);
    for host in scenario.domain.hosts() {
        for connection in world.receiver(host).record().connections.iter().filter(|c| c.asked_tls) {
            match connection.tls && (connection.messages > 0 || connection.recipients > 0) {
                true => counts.0 += 1,
                false => counts.1 += 1,
            }
        }
    }
    counts
}

/// What is counted of a log without its `TLSRPT:` lines.
fn ours(log: &[u8], scenarios: &[Scenario]) -> BTreeMap<String, Told> {
    let lines: Vec<u8> = log
        .split_inclusive(|b| *b == b'\n')
        .filter(|line| !String::from_utf8_lossy(line).contains("]: TLSRPT: status="))
        .flatten()
        .copied()
        .collect();
    let decisions = Decisions(scenarios.iter().map(|s| (s.domain.name().to_owned(), s.in_force())).collect());
    let mut counter = Counter::new(Dialect::Postfix, TimeZone::UTC, Arc::new(|_| false));
    let now = i64::try_from(host::seconds()).unwrap();
    counter.count_lines(&lines, now, &decisions);
    counter.end_sessions(now, &decisions);
    let (seen, losses) = counter.take_stats();
    assert_eq!((seen.lines.total().malformed, losses.unmatched), (0, 0), "{seen:?} {losses:?}");
    let mut told: BTreeMap<String, Told> = BTreeMap::new();
    for row in sum_tallies(counter.take_counts()) {
        let told = told.entry(row.domain).or_default();
        told.counts.0 += row.successful;
        told.counts.1 += row.failed;
        for (Failure { result_type, failure_reason_code, .. }, n) in row.details {
            *told.details.entry((result_type, failure_reason_code)).or_default() += n;
        }
    }
    told
}

/// Holds one scenario to what must be; prints its line of the table.
fn judge(
    scenario: &Scenario,
    form: &Form,
    installation: &Installation,
    seen: Counts,
    ours: &BTreeMap<String, Told>,
    native: Option<&BTreeMap<String, Told>>,
) -> Vec<String> {
    let name = scenario.domain.name();
    let told = ours.get(name).cloned().unwrap_or_default();
    let mut faults = Vec::new();
    let (want, want_seen) = scenario.wanted(installation, form.level_0);
    if told.counts != want {
        faults.push(format!("counted {told}, wanted {want:?}"));
    }
    if let Some(kind) =
        scenario.kind_at(installation, form.level_0).filter(|kind| told.details.keys().any(|(k, _)| k != kind))
    {
        faults.push(format!("counted {told}, wanted {kind}"));
    }
    if seen != want_seen {
        faults.push(format!("the servers saw {seen:?}, wanted {want_seen:?}"));
    }
    let Some(native) = native else {
        println!("  {name:28} {told:60}");
        return faults;
    };
    let reported = native.get(name).cloned().unwrap_or_default();
    let (mut like, mut why) = (as_native(&told), "");
    let proxied = form.settings.contains(&("smtp_tls_connection_reuse", "yes"));
    if let Some((counts, reason)) = scenario.exception(installation, proxied) {
        like = Told { counts, details: reported.details.clone() };
        why = reason;
    } else if form.level_0 && scenario.hidden_at(installation, &told) {
        like.counts = reported.counts;
        why = "log level 0 hides it";
    }
    if like != reported {
        faults.push(format!("from the log {told}, native {reported}"));
    }
    println!("  {name:28} {told:60} {reported:60} {why}");
    faults
}

/// Our words as native's: it has none for a TLSA record that does not match, and one for all handshakes that fail.
fn as_native(told: &Told) -> Told {
    let handshake = ["tls-remote-", "tls-local-", "tls-record-", "io-timeout-", "connection-closed-"];
    let word = |reason: &Option<String>| match reason.as_deref() {
        Some("dane-no-match") => None,
        Some(code) if handshake.iter().any(|front| code.starts_with(front)) => Some("tls-handshake-failure".to_owned()),
        other => other.map(str::to_owned),
    };
    let mut like = Told { counts: told.counts, ..Told::default() };
    for ((kind, reason), n) in &told.details {
        *like.details.entry((*kind, word(reason))).or_default() += n;
    }
    like
}

/// Native's result types and reasons as ours (`tlsrpt_failure_t` of libtlsrpt; a verification failure that is not one of
/// RFC 8460's own has the cause as its reason): the one table.
fn as_ours(code: u64, reason: Option<&str>) -> (ResultType, Option<String>) {
    use ResultType as R;
    let kind = match (code, reason) {
        (201, _) => R::StarttlsNotSupported,
        (202, _) => R::CertificateHostMismatch,
        (203, _) => R::CertificateNotTrusted,
        (204, _) => R::CertificateExpired,
        (205, Some("tls-handshake-failure")) => R::ValidationFailure,
        // The chain or the certificate did not pass.
        (205, Some(_)) => R::CertificateNotTrusted,
        (205, None) => R::ValidationFailure,
        (301, _) => R::StsPolicyFetchError,
        (302, _) => R::StsPolicyInvalid,
        (303, _) => R::StsWebpkiInvalid,
        (304, _) => R::TlsaInvalid,
        (305, _) => R::DnssecInvalid,
        (306, _) => R::DaneRequired,
        other => panic!("{other:?} is no result of libtlsrpt"),
    };
    let reason = match reason {
        // The log says `untrusted issuer` of both.
        Some("self-signed_certificate_in_certificate_chain") => Some("unable_to_get_local_issuer_certificate"),
        // OpenSSL 3.5 has more words.
        Some("certificate_is_not_yet_valid_or_the_system_clock_is_incorrect") => Some("certificate_is_not_yet_valid"),
        other => other,
    };
    (kind, reason.map(str::to_owned))
}

/// The datagrams of libtlsrpt, read here and not by the daemon: at once, for the kernel keeps only ten of them by default
/// and libtlsrpt does not wait.
struct Collector(Arc<Mutex<Vec<Vec<u8>>>>);

impl Collector {
    fn bind(path: &Path) -> Collector {
        let socket = UnixDatagram::bind(path).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o666)).unwrap();
        let datagrams = Arc::new(Mutex::new(Vec::new()));
        let kept = datagrams.clone();
        std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 20];
            while let Ok(length) = socket.recv(&mut buffer) {
                kept.lock().unwrap().push(buffer[..length].to_vec());
            }
        });
        Collector(datagrams)
    }

    fn take(&self) -> BTreeMap<String, Told> {
        let mut told: BTreeMap<String, Told> = BTreeMap::new();
        for datagram in std::mem::take(&mut *self.0.lock().unwrap()) {
            let datagram: Value = serde_json::from_slice(&datagram).unwrap();
            let domain = datagram["d"].as_str().unwrap().to_owned();
            for policy in datagram["policies"].as_array().unwrap() {
                let told = told.entry(domain.clone()).or_default();
                match policy["f"].as_u64() {
                    Some(0) => told.add(None),
                    _ => {
                        let failure = &policy["failure-details"][0];
                        told.add(Some(as_ours(failure["c"].as_u64().unwrap(), failure["f"].as_str())));
                    }
                }
            }
        }
        told
    }
}
