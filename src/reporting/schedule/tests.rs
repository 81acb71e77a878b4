//! The scheduler against a real store, a name server and an SMTP server on loopback.

use super::attempt::{delay_after, retry_delay};
use super::https_hosts::Turn;
use super::records::{PlanState, ReportDelivery, ReportPlan};
use super::*;
use crate::base::network::{HttpsCertificates, NetworkExceptions};
use crate::base::own_reports::{OwnReportResult, OwnReportStatus};
use crate::base::tlsrpt::{Failure, Policy, PolicyType, ResultType, TallyKey, TallyResult};
use crate::config::{ConfigDuration, DeliveryMethod, DkimKeySection, DkimSigning};
use crate::metrics::OUT_OF_ORDER_TIME;
use crate::reporting::transport::DeliveryOutcome;
use crate::reporting::transport::tests::{ServerFault, smtp_server};
use crate::store::embedded::EmbeddedStore;
use mail_auth::report::tlsrpt::TlsReport;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use tempfile::TempDir;
use tokio::net::UdpSocket;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinHandle;

const SECRET: [u8; 32] = [7; 32];

fn day() -> Day {
    "2026-11-22".parse().unwrap()
}

/// A name server on loopback that answers TXT questions with what the name is mapped to; `None` is SERVFAIL, a name
/// that is not there NXDOMAIN. The names below `https.example` are at 127.0.0.1.
async fn name_server(records: Vec<(&'static str, Option<&'static str>)>) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut bytes = [0; 1500];
        while let Ok((n, from)) = socket.recv_from(&mut bytes).await {
            let query = &bytes[..n];
            let (mut at, mut labels) = (12, Vec::new());
            while query[at] != 0 {
                let end = at + 1 + usize::from(query[at]);
                labels.push(String::from_utf8_lossy(&query[at + 1..end]).into_owned());
                at = end;
            }
            let name = labels.join(".");
            if query[at + 2] == 1 && name.ends_with(".https.example") {
                let mut reply = query[..2].to_vec();
                reply.extend([0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
                reply.extend(&query[12..at + 5]);
                reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
                socket.send_to(&reply, from).await.unwrap();
                continue;
            }
            let found = records.iter().find(|(n, _)| *n == name).map(|(_, text)| *text);
            let (code, text) = match found {
                None => (3, None),
                Some(None) => (2, None),
                Some(Some(text)) => (0, Some(text)),
            };
            let mut reply = query[..2].to_vec();
            reply.extend([0x81, 0x80 | code, 0, 1, 0, u8::from(text.is_some()), 0, 0, 0, 0]);
            reply.extend(&query[12..at + 5]);
            if let Some(text) = text {
                let strings: Vec<u8> = text
                    .as_bytes()
                    .chunks(255)
                    .flat_map(|part| std::iter::once(u8::try_from(part.len()).unwrap()).chain(part.iter().copied()))
                    .collect();
                reply.extend([0xc0, 12, 0, 16, 0, 1, 0, 0, 0, 60]);
                reply.extend(u16::try_from(strings.len()).unwrap().to_be_bytes());
                reply.extend(strings);
            }
            socket.send_to(&reply, from).await.unwrap();
        }
    });
    address
}

fn section(deliver: DeliveryMethod) -> ReportSection {
    ReportSection {
        organization: Some("Example".into()),
        contact: Some("postmaster@sender.example".into()),
        from: Some("tlsrpt@sender.example".into()),
        envelope: Some("bounces@sender.example".into()),
        deliver,
        spread: ConfigDuration(Duration::ZERO),
        check_dkim: false,
        dkim: DkimSigning::Keys(vec![DkimKeySection {
            selector: "ed".into(),
            domain: None,
            key: Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/dkim/ed25519.pem"),
        }]),
        ..ReportSection::default()
    }
}

fn count(store: &dyn Store, day: Day, domain: &str) {
    count_some(store, day, domain, 3);
}

fn count_some(store: &dyn Store, day: Day, domain: &str, n: u64) {
    let tally = |counted| TallyKey { day, domain: domain.into(), policy: Policy::none(domain).into(), result: counted };
    store.write(Batch { add: vec![(tally(TallyResult::Success), n)], set: Vec::new() }).unwrap();
}

/// A store folder that outlives the scheduler on it, and what the scheduler asks and sends to.
struct World {
    folder: TempDir,
    dns: SocketAddr,
    section: ReportSection,
    metrics: Metrics,
    post_timeout: Duration,
}

impl World {
    async fn new(
        records: Vec<(&'static str, Option<&'static str>)>,
        turn: ServerFault,
    ) -> (World, UnboundedReceiver<(String, String, Vec<u8>)>) {
        let (sink, taken) = smtp_server(turn).await;
        let metrics = Metrics::default();
        metrics.update_input("maillog", |input| input.newest = Some(day().end() + OUT_OF_ORDER_TIME));
        let folder = tempfile::tempdir().unwrap();
        let world = World {
            folder,
            dns: name_server(records).await,
            section: section(DeliveryMethod::Smtp(sink)),
            metrics,
            post_timeout: Duration::from_millis(500),
        };
        count(&world.store(), day(), "example.net");
        (world, taken)
    }

    fn store(&self) -> EmbeddedStore {
        // One that is just being let go is waited for.
        for _ in 0..500 {
            match EmbeddedStore::open(self.folder.path(), Clock::default()) {
                Ok(opened) => return opened.store,
                Err(StoreError::Locked(_)) => std::thread::sleep(Duration::from_millis(10)),
                Err(e) => panic!("{e}"),
            }
        }
        panic!("the store is not let go");
    }

    fn open(&self, now: i64) -> Arc<Scheduler> {
        self.open_with(Clock::starting_at(now))
    }

    fn open_with(&self, clock: Clock) -> Arc<Scheduler> {
        let resolver = Resolver::new(Some(self.dns)).unwrap();
        let closed = NetworkExceptions { private_addresses: true, ..NetworkExceptions::default() };
        let context = SchedulerContext {
            store: Arc::new(self.store()),
            https: https::HttpsClient::for_reports(resolver.clone(), &closed, HttpsCertificates::Ignore).unwrap(),
            resolver,
            metrics: self.metrics.clone(),
            clock,
            message_id_key: MessageIdKey::from_bytes(&SECRET),
        };
        let mut scheduler = Scheduler::open(context, SchedulerSettings::load(&self.section).unwrap()).unwrap();
        let short = Duration::from_millis(500);
        Arc::get_mut(&mut scheduler).unwrap().timeouts =
            DeliveryTimeouts { before_dot: short, after_dot: short, post: self.post_timeout };
        scheduler
    }

    /// Runs a scheduler from `now` until `done`, then stops it in order and gives what it held then.
    async fn run(&self, now: i64, done: impl Fn(&[ReportStatus]) -> bool) -> Vec<ReportStatus> {
        let scheduler = self.open(now);
        let (stop, task) = start(&scheduler);
        let due = until(&scheduler, done).await;
        stop.send(true).unwrap();
        task.await.unwrap();
        due
    }

    fn said(&self, text: &str) -> bool {
        self.metrics.recent_errors().iter().any(|(_, line)| line.contains(text))
    }
}

fn start(scheduler: &Arc<Scheduler>) -> (watch::Sender<bool>, JoinHandle<()>) {
    let (stop, stopping) = watch::channel(false);
    (stop, tokio::spawn(Arc::clone(scheduler).run(stopping)))
}

/// Stops everything where it is, and waits until a call that was in the store has let go of it.
async fn crash(scheduler: Arc<Scheduler>, task: JoinHandle<()>) {
    let store = Arc::downgrade(&scheduler.context.store);
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    drop(scheduler);
    while store.strong_count() > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn until(scheduler: &Scheduler, done: impl Fn(&[ReportStatus]) -> bool) -> Vec<ReportStatus> {
    let limit = Instant::now() + Duration::from_secs(60);
    loop {
        let due = scheduler.list_reports().unwrap();
        if done(&due) {
            return due;
        }
        assert!(Instant::now() < limit, "{due:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// No shutdown.
fn going() -> watch::Receiver<bool> {
    watch::channel(false).1
}

fn states(due: &[ReportStatus]) -> Vec<ReportState> {
    due.iter().map(|d| d.state).collect()
}

const RECORD: (&str, Option<&str>) = ("_smtp._tls.example.net", Some("v=TLSRPTv1; rua=mailto:tls@example.net"));

#[tokio::test]
async fn a_closed_day_is_reported_once() {
    let (world, mut taken) = World::new(vec![RECORD], ServerFault::Never).await;
    let due = world.run(day().end() + 60, |due| states(due) == [ReportState::Sent]).await;
    let (from, to, message) = taken.try_recv().unwrap();
    assert_eq!((from.as_str(), to.as_str()), ("MAIL FROM:<bounces@sender.example>", "RCPT TO:<tls@example.net>"));
    let text = String::from_utf8(message).unwrap();
    assert!(text.starts_with("DKIM-Signature:") && text.contains("TLS-Report-Domain: example.net"), "{text}");
    let id = text.split("Message-ID: <").nth(1).unwrap().split('>').next().unwrap();
    assert!(MessageIdKey::from_bytes(&SECRET).is_ours(id.as_bytes()), "{id}");
    assert_eq!(due[0].last.as_deref(), Some("250 2.0.0 Ok: queued as 4Xyz12"));

    // A restart remembers, a day later too.
    for now in [day().end() + 120, day().end() + 90_000] {
        world.run(now, |due| states(due) == [ReportState::Sent]).await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(taken.try_recv().is_err());
    let text = serde_json::to_string(&due).unwrap();
    assert_eq!(serde_json::from_str::<Vec<ReportStatus>>(&text).unwrap(), due);
}

#[tokio::test]
async fn a_day_stays_open_while_an_input_lags_and_not_for_ever() {
    let (world, mut taken) = World::new(vec![RECORD], ServerFault::Never).await;
    world.metrics.update_input("maillog", |update_input| update_input.newest = Some(day().end() - 1));
    let scheduler = world.open(day().end() + 60);
    let (stop, task) = start(&scheduler);
    until(&scheduler, |due| states(due) == [ReportState::Waiting]).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(states(&scheduler.list_reports().unwrap()), [ReportState::Waiting]);
    stop.send(true).unwrap();
    task.await.unwrap();
    drop(scheduler);
    assert!(taken.try_recv().is_err());
    world.run(day().end() + WAIT_FOR_INPUTS + 1, |due| states(due) == [ReportState::Sent]).await;
    assert!(world.said("closed late: maillog lagged"));
}

#[tokio::test]
async fn no_input_that_has_begun_keeps_all_days_open() {
    let (mut world, _taken) = World::new(vec![RECORD], ServerFault::Never).await;
    world.metrics = Metrics::default();
    let scheduler = world.open(day().end() + 60);
    scheduler.plan_days(&going()).await;
    assert!(scheduler.take_due_jobs(8).await.is_empty());
    assert_eq!(states(&scheduler.list_reports().unwrap()), [ReportState::Waiting]);
}

#[tokio::test]
async fn a_no_for_now_is_tried_again_with_the_same_ids_and_not_for_ever() {
    let (mut world, _taken) = World::new(vec![RECORD], ServerFault::Reply("RCPT", "451 4.3.0 later")).await;
    let now = day().end() + 60;
    let tried = |due: &[ReportStatus]| states(due) == [ReportState::Planned] && due[0].attempts == 1;
    let due = world.run(now, tried).await;
    let again = due[0].next.unwrap();
    assert!((now + FIRST_RETRY_DELAY..now + FIRST_RETRY_DELAY + 10).contains(&again), "{due:?}");
    let ids = |world: &World| {
        let records = world.store().scan(Table::Delivery, b"").unwrap();
        let delivery: ReportDelivery = serde_json::from_slice(&records[1].1).unwrap();
        (delivery.report_id, delivery.message_id)
    };
    let first = ids(&world);
    let (sink, mut taken) = smtp_server(ServerFault::Never).await;
    let busy = world.section.deliver.clone();
    world.section.deliver = DeliveryMethod::Smtp(sink);
    let due = world.run(again + 1, |due| states(due) == [ReportState::Sent]).await;
    assert_eq!((due[0].attempts, ids(&world)), (2, first));
    assert!(taken.try_recv().is_ok());

    count(&world.store(), day(), "other.example.net");
    world.section.deliver = busy;
    let due = world.run(now, |due| due.iter().any(|d| d.state == ReportState::Nothing)).await;
    assert_eq!(due.len(), 2, "{due:?}");
}

#[test]
fn a_receiver_says_when_it_is_asked_again_within_limits() {
    let after = |seconds| DeliveryOutcome::RetryAfter(String::new(), seconds);
    for (outcome, attempts, wanted) in [
        (DeliveryOutcome::Retry(String::new()), 1, FIRST_RETRY_DELAY),
        (DeliveryOutcome::Retry(String::new()), 20, MAX_RETRY_DELAY),
        (after(7200), 1, 7200),
        (after(60), 1, 60),
        (after(0), 1, FIRST_RETRY_DELAY / 10),
        (after(0), 20, MAX_RETRY_DELAY / 10),
        (after(100 * 86_400), 1, MAX_RETRY_AFTER),
    ] {
        assert_eq!(delay_after(&outcome, attempts), wanted, "{outcome:?} {attempts}");
    }
}

#[tokio::test]
async fn tries_end_after_a_day() {
    let (world, _taken) = World::new(vec![RECORD], ServerFault::Reply("RCPT", "451 4.3.0 later")).await;
    let now = day().end() + 60;
    world.run(now, |due| states(due) == [ReportState::Planned] && due[0].attempts == 1).await;
    world.run(now + RETRY_FOR, |due| states(due) == [ReportState::Expired]).await;
    assert!(world.said("given up after 24 hours"));
    assert_eq!([1, 2, 3, 6, 7, 100].map(retry_delay), [300, 600, 1200, 9600, MAX_RETRY_DELAY, MAX_RETRY_DELAY]);
}

#[tokio::test]
async fn what_may_have_arrived_is_not_sent_again() {
    let (world, _taken) = World::new(vec![RECORD], ServerFault::Silence(".")).await;
    world.run(day().end() + 60, |due| states(due) == [ReportState::Unknown]).await;
    let due = world.run(day().end() + 90_000, |due| !due.is_empty()).await;
    assert_eq!((states(&due), due[0].attempts), (vec![ReportState::Unknown], 1));
}

#[tokio::test]
async fn a_try_that_a_crash_cut_off_is_unknown() {
    let (mut world, _taken) = World::new(vec![RECORD], ServerFault::Silence(".")).await;
    let scheduler = world.open(day().end() + 60);
    let (_stop, task) = start(&scheduler);
    until(&scheduler, |due| states(due) == [ReportState::Attempting]).await;
    crash(scheduler, task).await;
    let (sink, mut taken) = smtp_server(ServerFault::Never).await;
    world.section.deliver = DeliveryMethod::Smtp(sink);
    let due = world.run(day().end() + 90_000, |due| !due.is_empty()).await;
    assert_eq!((states(&due), due[0].attempts), (vec![ReportState::Unknown], 1));
    assert!(world.said("the daemon ended while it was being sent"));
    assert!(taken.try_recv().is_err());
}

#[tokio::test]
async fn a_5xx_of_the_mta_about_this_host_is_tried_again() {
    for turn in [
        ServerFault::Reply("greeting", "554 5.7.1 no SMTP service here"),
        ServerFault::Reply("RCPT", "554 5.7.1 <tls@example.net>: Relay access denied"),
    ] {
        let (mut world, _taken) = World::new(vec![RECORD], turn).await;
        let now = day().end() + 60;
        world.run(now, |due| states(due) == [ReportState::Planned] && due[0].attempts == 1).await;
        let (sink, mut taken) = smtp_server(ServerFault::Never).await;
        world.section.deliver = DeliveryMethod::Smtp(sink);
        world.run(now + FIRST_RETRY_DELAY + 10, |due| states(due) == [ReportState::Sent]).await;
        assert!(taken.try_recv().is_ok());
    }
}

/// soak: 8 reports were lost when the daemon was killed while the MTA had not even greeted.
#[tokio::test]
async fn a_crash_while_the_mta_is_slow_to_greet_makes_no_report_unknown() {
    for at in ["greeting", "RCPT", "DATA"] {
        let (mut world, _taken) = World::new(vec![RECORD], ServerFault::Silence(at)).await;
        let mut scheduler = world.open(day().end() + 60);
        let long = Duration::from_secs(600);
        Arc::get_mut(&mut scheduler).unwrap().timeouts =
            DeliveryTimeouts { before_dot: long, after_dot: long, post: long };
        let (_stop, task) = start(&scheduler);
        until(&scheduler, |due| states(due) == [ReportState::Planned]).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        crash(scheduler, task).await;
        let (sink, mut taken) = smtp_server(ServerFault::Never).await;
        world.section.deliver = DeliveryMethod::Smtp(sink);
        world.run(day().end() + 120, |due| states(due) == [ReportState::Sent]).await;
        assert!(taken.try_recv().is_ok() && taken.try_recv().is_err(), "{at}");
    }
}

/// hosts: `sent` was shown though Postfix deferred the report.
#[tokio::test]
async fn a_report_that_the_mta_defers_or_bounces_is_not_shown_as_sent() {
    let (world, mut taken) = World::new(vec![RECORD], ServerFault::Never).await;
    let scheduler = world.open(day().end() + 60);
    let statuses = scheduler.own_report_statuses();
    let (stop, task) = start(&scheduler);
    until(&scheduler, |due| states(due) == [ReportState::Sent]).await;
    let message = String::from_utf8(taken.try_recv().unwrap().2).unwrap();
    let message_id = message.split("Message-ID: <").nth(1).unwrap().split('>').next().unwrap().to_owned();
    let bounced = || world.metrics.counter("reports_bounced").load(Ordering::Relaxed);
    let line = |queue_id: &str, message_id: Option<&str>, result, reason: &str| OwnReportStatus {
        queue_id: queue_id.to_owned(),
        message_id: message_id.map(str::to_owned),
        result,
        reason: reason.to_owned(),
    };
    let timed_out = "connect to mx.example.net[192.0.2.1]:25: Connection timed out";
    // The queue id of the reply is enough.
    statuses.add(vec![
        line("another", Some("another@sender.example"), OwnReportResult::Bounced, "x"),
        line("4Xyz12", None, OwnReportResult::Deferred, timed_out),
    ]);
    let due = until(&scheduler, |due| states(due) == [ReportState::Deferred]).await;
    assert_eq!(due[0].last, Some(format!("4Xyz12: {timed_out}")));
    assert_eq!(scheduler.overview().unwrap().open, due, "status shows it");
    statuses.add(vec![line("4Xyz12", None, OwnReportResult::Delivered, "250 ok")]);
    until(&scheduler, |due| states(due) == [ReportState::Sent]).await;
    assert_eq!(bounced(), 0);
    // A content filter has given the message another one.
    let refused = "host mx.example.net[192.0.2.1] said: 550 5.1.1 no such user (in reply to RCPT TO command)";
    statuses.add(vec![line("5Xyz12", Some(&message_id), OwnReportResult::Bounced, refused)]);
    let due = until(&scheduler, |due| states(due) == [ReportState::Bounced]).await;
    assert_eq!(due[0].last, Some(format!("5Xyz12: {refused}")));
    assert_eq!(bounced(), 1);
    assert!(world.said("bounced after the MTA had accepted it: 5Xyz12: host mx.example.net[192.0.2.1] said: 550"));

    // Sent once more, it is another message: the lines of the first say nothing of it.
    let selection = ResendSelection::Day(day(), vec![ReportState::Bounced]);
    assert_eq!(scheduler.resend(&selection).unwrap().destinations, 1);
    let due = until(&scheduler, |due| states(due) == [ReportState::Sent]).await;
    statuses.add(vec![line("5Xyz12", Some(&message_id), OwnReportResult::Bounced, refused)]);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(scheduler.list_reports().unwrap(), due);
    stop.send(true).unwrap();
    task.await.unwrap();
}

/// A server on loopback that takes connections and says nothing.
async fn silent_server() -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let mut taken = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            taken.push(stream);
        }
    });
    port
}

fn leak(text: String) -> &'static str {
    Box::leak(text.into_boxed_str())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_https_receivers_delay_no_mail() {
    let port = silent_server().await;
    let mut records = Vec::new();
    for i in 0..40 {
        let uris: Vec<String> = (0..5).map(|n| format!("https://h{n}.d{i}.https.example:{port}/")).collect();
        // The last one is by mail.
        let rua = format!("v=TLSRPTv1;rua={},mailto:r@d{i}.example", uris[..4].join(","));
        records.push((leak(format!("_smtp._tls.d{i}.example")), Some(leak(rua))));
    }
    let (mut world, _taken) = World::new(records, ServerFault::Never).await;
    world.post_timeout = Duration::from_secs(600);
    {
        let store = world.store();
        (0..40).for_each(|i| count(&store, day(), &format!("d{i}.example")));
    }
    let sent = |due: &[ReportStatus]| due.iter().filter(|d| d.state == ReportState::Sent).count();
    let due = world.run(day().end() + 60, |due| sent(due) == 40).await;
    assert_eq!(due.iter().filter(|d| d.state == ReportState::Planned).count(), 160, "{due:#?}");
}

#[tokio::test]
async fn an_https_host_that_fails_in_a_row_is_put_off_as_a_whole_and_its_reports_expire_after_a_day() {
    let port = silent_server().await;
    let record = |i| {
        let rua = format!("v=TLSRPTv1;rua=https://dead.https.example:{port}/{i}");
        (leak(format!("_smtp._tls.d{i}.example")), Some(leak(rua)))
    };
    let (mut world, _taken) = World::new((0..20).map(record).collect(), ServerFault::Never).await;
    world.post_timeout = Duration::from_millis(50);
    {
        let store = world.store();
        (0..20).for_each(|i| count(&store, day(), &format!("d{i}.example")));
    }
    let now = day().end() + 60;
    let put_off = |due: &&ReportStatus| due.last.as_ref().is_some_and(|last| last.contains("put off"));
    let due = world.run(now, |due| due.iter().filter(put_off).count() == 17).await;
    let posts = due.iter().filter(|d| d.destination.is_some());
    assert_eq!(posts.map(|d| d.attempts).sum::<u32>(), 3, "{due:#?}");
    assert!(due.iter().filter(put_off).all(|d| d.next.unwrap() >= now + FIRST_RETRY_DELAY), "{due:#?}");
    let errors = world.metrics.recent_errors();
    assert!(world.said("https host dead.https.example:"), "{errors:#?}");
    world.run(now + RETRY_FOR, |due| due.iter().filter(|d| d.state == ReportState::Expired).count() == 20).await;
}

#[tokio::test]
async fn a_turn_of_a_host_that_panics_leaves_the_host_and_the_other_reports_free() {
    let (world, _taken) = World::new(Vec::new(), ServerFault::Never).await;
    let scheduler = world.open(day().end() + 60);
    let post = |i| {
        let to = Destination::try_from(format!("https://r.https.example/{i}")).unwrap();
        (ReportKey::first(day(), format!("d{i}.example").parse().unwrap()), to)
    };
    let posts = vec![post(0), post(1), post(2)];
    let jobs = |posts: &[(ReportKey, Destination)]| -> HashSet<Job> {
        posts.iter().map(|(report_key, to)| Job::Send(report_key.clone(), to.clone())).collect()
    };
    scheduler.in_flight.lock().jobs = jobs(&posts);
    assert_eq!(scheduler.https_hosts.lock().take_turn("r.https.example", 0), Turn::Now);
    // Dropped where it is at work on the first report, as a panic drops it.
    let blocked =
        scheduler.blocking_slots.acquire_many(u32::try_from(scheduler.blocking_slots.available_permits()).unwrap());
    let blocked = blocked.await.unwrap();
    let turn = Arc::clone(&scheduler).run_turn("r.https.example".into(), posts.clone(), going());
    assert!(tokio::time::timeout(Duration::from_millis(100), turn).await.is_err());
    drop(blocked);
    assert_eq!(scheduler.in_flight.lock().jobs, jobs(&posts[..1]), "it waits for a restart");
    assert_eq!(scheduler.https_hosts.lock().take_turn("r.https.example", 0), Turn::Now);
}

#[tokio::test]
async fn reports_of_a_day_are_sent_again_by_their_state_and_the_suppressed_ones_are_named() {
    let refusal = ServerFault::Reply("RCPT", "550 5.1.1 no such user");
    let (mut world, _taken) = World::new(many(3), refusal).await;
    {
        let store = world.store();
        (0..3).for_each(|i| count(&store, day(), &format!("d{i}.example")));
    }
    let now = day().end() + 60;
    let all = |state| move |due: &[ReportStatus]| due.iter().filter(|d| d.state == state).count();
    world.run(now, |due| all(ReportState::Refused)(due) == 3).await;
    let (sink, mut taken) = smtp_server(ServerFault::Never).await;
    world.section.deliver = DeliveryMethod::Smtp(sink);
    let domain = Some("d1.example".into());
    world.section.suppress = vec![crate::config::SuppressSection { domain, destination: None, until: None }];
    {
        let scheduler = world.open(now + 100);
        let select = |day, state| ResendSelection::Day(day, vec![state, ReportState::Expired]);
        let none = scheduler.resend(&select(Day(day().0 + 1), ReportState::Refused)).unwrap();
        assert_eq!(none, ResendResult::default());
        assert_eq!(scheduler.resend(&select(day(), ReportState::Unknown)).unwrap(), ResendResult::default());
        let again = scheduler.resend(&select(day(), ReportState::Refused)).unwrap();
        assert_eq!(again.destinations, 2);
        let why = "report 2026-11-22 d1.example to mailto:r@d1.example: not wanted: [[report.suppress]] domain = \"d1.example\"";
        assert_eq!(again.left_out, [why]);
    }
    world.run(now + 200, |due| all(ReportState::Sent)(due) == 2).await;
    assert!(taken.try_recv().is_ok() && taken.try_recv().is_ok() && taken.try_recv().is_err());
}

/// The record that matches the key of [`section`].
fn dkim_record() -> (&'static str, Option<&'static str>) {
    let public = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/dkim/ed25519.pub"));
    ("ed._domainkey.sender.example", Some(leak(format!("v=DKIM1; k=ed25519; p={}", public.unwrap().trim()))))
}

#[tokio::test]
async fn mail_waits_for_a_published_key_and_https_does_not() {
    let rua = leak(format!("v=TLSRPTv1; rua=mailto:a@example.net,https://r.https.example:{}/", silent_server().await));
    let record = ("_smtp._tls.example.net", Some(rua));
    let (mut world, mut taken) = World::new(vec![record], ServerFault::Never).await;
    world.section.check_dkim = true;
    let now = day().end() + 60;
    {
        let scheduler = world.open(now);
        let (stop, task) = start(&scheduler);
        let due = until(&scheduler, |due| due.len() == 2 && due.iter().any(|d| d.attempts == 1)).await;
        assert_eq!(states(&due), [ReportState::Planned; 2]);
        assert!(
            due.iter().all(|d| (d.attempts == 1) == matches!(d.destination, Some(Destination::Https(_)))),
            "{due:?}"
        );
        let held = scheduler.overview().unwrap().mail_held.unwrap();
        assert!(held.ends_with("ed._domainkey.sender.example: there is no such record"), "{held}");
        assert!(world.said("reports by mail wait: no published DKIM record matches a key"));
        stop.send(true).unwrap();
        task.await.unwrap();
    }
    assert!(taken.try_recv().is_err());
    world.dns = name_server(vec![record, dkim_record()]).await;
    world.run(now + 90_000, |due| due.iter().any(|d| d.state == ReportState::Sent)).await;
    assert!(taken.try_recv().is_ok());
}

#[tokio::test]
async fn mail_does_not_wait_where_dns_does_not_answer_about_the_key() {
    let unanswered = ("ed._domainkey.sender.example", None);
    let (mut world, _taken) = World::new(vec![RECORD, unanswered], ServerFault::Never).await;
    world.section.check_dkim = true;
    world.run(day().end() + 60, |due| states(due) == [ReportState::Sent]).await;
}

#[tokio::test]
async fn what_is_suppressed_after_it_was_planned_is_not_sent() {
    for by_domain in [true, false] {
        let (mut world, _taken) = World::new(vec![RECORD], ServerFault::Reply("RCPT", "451 4.3.0 later")).await;
        let now = day().end() + 60;
        world.run(now, |due| states(due) == [ReportState::Planned] && due[0].attempts == 1).await;
        let (sink, mut taken) = smtp_server(ServerFault::Never).await;
        world.section.deliver = DeliveryMethod::Smtp(sink);
        match by_domain {
            true => world.section.allow = vec!["other.example".into()],
            false => {
                let destination = Some("tls@example.net".into());
                world.section.suppress =
                    vec![crate::config::SuppressSection { domain: None, destination, until: None }];
            }
        }
        let due = world.run(now + FIRST_RETRY_DELAY + 10, |due| states(due) == [ReportState::Suppressed]).await;
        assert!(due[0].last.as_ref().unwrap().starts_with("not wanted: "), "{due:?}");
        assert!(taken.try_recv().is_err());
    }
}

fn count_bounces(store: &dyn Store, domain: &str, n: u64) {
    let tally = |result| TallyKey { day: day(), domain: domain.into(), policy: Policy::none(domain).into(), result };
    let add = vec![(tally(TallyResult::Success), n), (tally(TallyResult::NullSender), n)];
    store.write(Batch { add, set: Vec::new() }).unwrap();
}

#[tokio::test]
async fn a_domain_that_only_bounces_went_to_gets_no_report_before_other_mail_does() {
    let record = |name| (name, Some("v=TLSRPTv1; rua=mailto:tls@example.net"));
    let records = vec![RECORD, record("_smtp._tls.bounced.example"), record("_smtp._tls.mixed.example")];
    let (mut world, mut taken) = World::new(records, ServerFault::Never).await;
    count_bounces(&world.store(), "bounced.example", 2);
    count_bounces(&world.store(), "mixed.example", 2);
    count_some(&world.store(), day(), "mixed.example", 1);
    let section = world.section.clone();
    let preview = world.open(day().end() + 60).preview(&section, day(), Some("bounced.example")).await.unwrap();
    let why = preview[0].why_not.as_deref().unwrap();
    assert!(why.contains("null sender") && preview[0].recipients.is_empty(), "{why}");

    let settled = |due: &[ReportStatus]| {
        due.len() == 3 && due.iter().all(|d| d.state >= ReportState::Sent || d.state == ReportState::Nothing)
    };
    let due = world.run(day().end() + 60, settled).await;
    assert_eq!(states(&due), [ReportState::Nothing, ReportState::Sent, ReportState::Sent]);
    assert!(
        due[0].domain == "bounced.example" && due[0].last.as_ref().unwrap().contains("[report] null_sender"),
        "{due:?}"
    );
    assert_eq!(sums(&mut taken).0, BTreeMap::from([("2026-11-22".into(), 6)]));

    // Mail that comes late makes the report, with all that was counted; a bounce that comes late makes none.
    count_bounces(&world.store(), "bounced.example", 1);
    let supplement = |due: &[ReportStatus]| due.iter().any(|d| d.supplement && d.attempts > 0);
    let due = world.run(day().end() + 5000, |due| due.iter().any(|d| d.supplement)).await;
    assert!(!supplement(&due), "{due:?}");
    count_some(&world.store(), day(), "bounced.example", 1);
    let later = day().end() + 5000 + SUPPLEMENT_DELAY + 60;
    let due = world.run(later, |due| due.iter().any(|d| d.supplement && d.state == ReportState::Sent)).await;
    assert!(due.iter().any(|d| d.supplement && d.domain == "bounced.example"), "{due:?}");
    assert_eq!(sums(&mut taken).0, BTreeMap::from([("2026-11-22".into(), 4)]));

    // With the option, bounces alone are reported.
    world.section.null_sender = true;
    count_bounces(&world.store(), "other.example", 1);
    let due = world.run(later, |due| due.iter().any(|d| d.domain == "other.example" && d.attempts > 0)).await;
    let other = due.iter().find(|d| d.domain == "other.example").unwrap();
    assert_eq!(other.last.as_deref(), Some("no TLSRPT record"));
}

#[tokio::test]
async fn each_destination_has_its_own_delivery_and_https_is_not_lost_silently() {
    let record = "v=TLSRPTv1; rua=mailto:a@example.net,mailto:b@example.org,https://r.example.net/,ftp://x/";
    let (world, mut taken) = World::new(vec![("_smtp._tls.example.net", Some(record))], ServerFault::Never).await;
    // The https host has no address here: that is tried again, as a mail server's trouble is.
    let all =
        |due: &[ReportStatus]| due.len() == 3 && due.iter().all(|d| d.state == ReportState::Sent || d.last.is_some());
    let due = world.run(day().end() + 60, all).await;
    assert_eq!(due.iter().filter(|d| d.state == ReportState::Sent).count(), 2);
    assert!(world.said("to https://r.example.net/: not taken: no address: no such domain; it is tried again"));
    let id = |mail: (String, String, Vec<u8>)| {
        let text = String::from_utf8(mail.2).unwrap();
        text.split("Report-ID:").nth(1).unwrap().split('>').next().unwrap().trim().to_owned()
    };
    assert_eq!(id(taken.try_recv().unwrap()), id(taken.try_recv().unwrap()));
}

#[tokio::test]
async fn dns_trouble_is_waited_out_for_a_day() {
    let (world, _taken) = World::new(vec![("_smtp._tls.example.net", None)], ServerFault::Never).await;
    let now = day().end() + 60;
    let due = world.run(now, |due| due.first().is_some_and(|d| d.attempts == 1)).await;
    assert_eq!(states(&due), [ReportState::Waiting]);
    assert!(due[0].next.unwrap() >= now + FIRST_RETRY_DELAY);
    world.run(now + RETRY_FOR, |due| states(due) == [ReportState::Nothing]).await;
    assert!(world.said("given up after 24 hours"));
}

#[tokio::test]
async fn without_an_identity_days_wait_within_retention() {
    let (mut world, mut taken) = World::new(vec![RECORD], ServerFault::Never).await;
    let complete = world.section.clone();
    world.section.contact = None;
    let scheduler = world.open(day().end() + 60);
    let (stop, task) = start(&scheduler);
    until(&scheduler, |due| states(due) == [ReportState::Waiting]).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(states(&scheduler.list_reports().unwrap()), [ReportState::Waiting]);
    scheduler.configure(SchedulerSettings::load(&complete).unwrap());
    until(&scheduler, |due| states(due) == [ReportState::Sent]).await;
    stop.send(true).unwrap();
    task.await.unwrap();
    drop(scheduler);
    assert!(taken.try_recv().is_ok());

    let next = Day(day().0 + 1);
    count(&world.store(), next, "example.net");
    let late = next.end() + 3 * Day::SECONDS;
    world.run(next.end() + 1, |due| due.len() == 2).await;
    world.run(late + Day::SECONDS, <[ReportStatus]>::is_empty).await;
    assert!(world.said("the results of 1 domains were not reported"), "{:?}", world.metrics.recent_errors());
    assert_eq!(world.store().days().unwrap(), []);
    assert_eq!(world.store().scan(Table::Delivery, b"").unwrap(), []);
}

/// The daemon was off for longer than retention; or the clock is wrong by weeks.
#[tokio::test]
async fn days_that_were_never_planned_expire_with_a_word_and_not_by_a_wrong_clock() {
    let (world, mut taken) = World::new(vec![RECORD], ServerFault::Never).await;
    {
        let scheduler = world.open(day().end() + 28 * Day::SECONDS);
        assert!(scheduler.plan_days(&going()).await && scheduler.plan_days(&going()).await);
        assert_eq!(scheduler.context.store.days().unwrap(), [day()]);
        let errors = world.metrics.recent_errors();
        let said =
            errors.iter().filter(|(_, line)| line.contains("not dropped: no input has a line of the last 7 days"));
        assert_eq!(said.count(), 1, "{errors:?}");
    }
    world.run(day().end() + 60, |due| states(due) == [ReportState::Sent]).await;
    assert!(taken.try_recv().is_ok(), "the clock is right again");

    let (world, _taken) = World::new(vec![RECORD], ServerFault::Never).await;
    let scheduler = world.open(day().end() + 4 * Day::SECONDS);
    assert!(scheduler.plan_days(&going()).await);
    assert_eq!(scheduler.context.store.days().unwrap(), []);
    assert!(world.said("report 2026-11-22: expired: retention is over; the results of 1 domains were never planned"));
}

#[tokio::test]
async fn after_a_lost_store_old_days_are_not_reported() {
    let (world, _taken) = World::new(vec![RECORD], ServerFault::Never).await;
    // A start that fails comes between the loss and the first scheduler.
    Scheduler::record_store_loss(&world.store(), Clock::starting_at(day().end() + 60), &world.metrics).unwrap();
    for _ in 0..2 {
        let scheduler = world.open(day().end() + 60);
        scheduler.plan_days(&going()).await;
        assert_eq!(scheduler.list_reports().unwrap(), []);
    }
    count(&world.store(), Day(day().0 + 1), "example.net");
    let scheduler = world.open(day().end() + Day::SECONDS + 60);
    scheduler.plan_days(&going()).await;
    assert_eq!(scheduler.list_reports().unwrap().len(), 1);
}

#[tokio::test]
async fn a_preview_shows_what_would_go_and_sends_nothing() {
    let (mut world, mut taken) = World::new(vec![RECORD], ServerFault::Never).await;
    count(&world.store(), day(), "silent.example");
    world.section.organization = None;
    let scheduler = world.open(day().end() + 60);
    let shown = scheduler.preview(&world.section, day(), None).await.unwrap();
    assert_eq!(shown.iter().map(|p| p.domain.as_str()).collect::<Vec<_>>(), ["example.net", "silent.example"]);
    assert_eq!(shown[0].recipients[0].to_string(), "mailto:tls@example.net");
    assert!(shown[0].json.contains("\"total-successful-session-count\":3") && shown[0].file_name.ends_with(".json.gz"));
    assert_eq!((shown[1].recipients.len(), shown[1].why_not.as_deref()), (0, Some("no TLSRPT record")));
    let one = scheduler.preview(&world.section, day(), Some("silent.example")).await.unwrap();
    assert_eq!(one.len(), 1);
    assert_eq!(scheduler.context.store.scan(Table::Delivery, b"").unwrap(), []);
    assert!(taken.try_recv().is_err());
}

#[tokio::test]
async fn a_preview_of_a_reported_day_says_so_and_shows_the_supplement() {
    let (world, _taken) = World::new(vec![RECORD], ServerFault::Never).await;
    let due = world.run(day().end() + 60, |due| states(due) == [ReportState::Sent]).await;
    let scheduler = world.open(day().end() + 90);
    let gist = |shown: &[ReportPreview]| -> Vec<(bool, bool, bool)> {
        let sessions = |n: u64| format!("\"total-successful-session-count\":{n},");
        shown.iter().map(|p| (p.supplement, p.json.contains(&sessions(8)), p.json.contains(&sessions(5)))).collect()
    };
    let shown = scheduler.preview(&world.section, day(), None).await.unwrap();
    assert_eq!((shown.len(), &shown[0].reported), (1, &due[0].report_id));
    count_some(&*scheduler.context.store, day(), "example.net", 5);
    let shown = scheduler.preview(&world.section, day(), Some("example.net")).await.unwrap();
    assert_eq!(gist(&shown), [(false, true, false), (true, false, true)]);
    assert_eq!((&shown[0].reported, &shown[1].reported), (&due[0].report_id, &None));
    assert_ne!(shown[0].file_name, shown[1].file_name);
    drop(scheduler);
    world.run(day().end() + 600, |due| due.len() == 2).await;
    world.run(day().end() + 600 + SUPPLEMENT_DELAY + 60, |due| states(due) == [ReportState::Sent; 2]).await;
    let scheduler = world.open(day().end() + 20_000);
    let shown = scheduler.preview(&world.section, day(), None).await.unwrap();
    assert_eq!(gist(&shown), [(false, true, false)], "there is one supplement");
}

#[tokio::test]
async fn the_overview_counts_all_and_lists_what_is_open() {
    let (world, _taken) = World::new(vec![RECORD], ServerFault::Never).await;
    for n in 0..2 * overview::MAX_OPEN_LISTED {
        count(&world.store(), day(), &format!("d{n:03}.example"));
    }
    world
        .run(day().end() + 60, |due| due.iter().all(|d| d.next.is_none()) && due.len() > overview::MAX_OPEN_LISTED)
        .await;
    (0..2 * overview::MAX_OPEN_LISTED)
        .for_each(|n| count(&world.store(), Day(day().0 + 1), &format!("d{n:03}.example")));
    let scheduler = world.open(day().end() + Day::SECONDS + 60);
    scheduler.plan_days(&going()).await;
    let overview = scheduler.overview().unwrap();
    let all = 2 * overview::MAX_OPEN_LISTED as u64;
    let counts = [(ReportState::Waiting, all), (ReportState::Nothing, all), (ReportState::Sent, 1)];
    assert_eq!(overview.counts, counts.into());
    assert_eq!(overview.open.len(), overview::MAX_OPEN_LISTED);
    assert!(overview.open.iter().all(|due| due.state == ReportState::Waiting && due.day == Day(day().0 + 1)));
}

#[tokio::test]
async fn moments_are_spread_and_kept() {
    let (mut world, _taken) = World::new(vec![RECORD], ServerFault::Never).await;
    world.section.spread = ConfigDuration(Duration::from_secs(4 * 3600));
    for i in 0..50 {
        count(&world.store(), day(), &format!("d{i}.example"));
    }
    let moments = |world: &World| {
        let scheduler = world.open(day().end() + 1);
        async move {
            scheduler.plan_days(&going()).await;
            scheduler.list_reports().unwrap().iter().map(|d| d.next.unwrap()).collect::<Vec<_>>()
        }
    };
    let first = moments(&world).await;
    assert_eq!(first.len(), 51);
    assert!(first.iter().all(|m| (day().end()..=day().end() + 4 * 3600).contains(m)));
    assert!(first.iter().collect::<BTreeSet<_>>().len() > 40, "{first:?}");
    assert_eq!(moments(&world).await, first);
}

/// The records of `count` domains `dN.example`, each with one address.
fn many(count: usize) -> Vec<(&'static str, Option<&'static str>)> {
    let record =
        |i| (leak(format!("_smtp._tls.d{i}.example")), Some(leak(format!("v=TLSRPTv1;rua=mailto:r@d{i}.example"))));
    (0..count).map(record).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_at_any_moment_nothing_is_sent_twice() {
    const DOMAINS: usize = 60;
    let (world, mut taken) = World::new(many(DOMAINS), ServerFault::Slow(Duration::from_millis(10))).await;
    (0..DOMAINS).for_each(|i| count(&world.store(), day(), &format!("d{i}.example")));
    for round in 0..12 {
        let scheduler = world.open(day().end() + 60 + round);
        let (_stop, task) = start(&scheduler);
        let stage = |due: &[ReportStatus]| {
            due.iter().any(|d| d.state == ReportState::Attempting) || due.iter().all(|d| d.next.is_none())
        };
        until(&scheduler, stage).await;
        tokio::time::sleep(Duration::from_millis(3 * u64::try_from(round).unwrap())).await;
        crash(scheduler, task).await;
    }
    let over = |due: &[ReportStatus]| {
        due.len() == DOMAINS + 1 && due.iter().all(|d| d.next.is_none() && d.state != ReportState::Attempting)
    };
    let due = world.run(day().end() + 600, over).await;
    let mut arrived: BTreeMap<String, usize> = BTreeMap::new();
    while let Ok((_, to, _)) = taken.try_recv() {
        *arrived.entry(to).or_default() += 1;
    }
    let mut unknown = 0;
    for one in due.iter().filter(|d| d.destination.is_some()) {
        let n = arrived.get(&format!("RCPT TO:<r@{}>", one.domain)).copied().unwrap_or_default();
        match one.state {
            ReportState::Sent => assert_eq!(n, 1, "{one:?}"),
            ReportState::Unknown => unknown += 1,
            _ => panic!("{one:?}"),
        }
        assert!(n <= 1, "{one:?} arrived {n} times");
    }
    assert!((1..DOMAINS).contains(&unknown), "{unknown} were cut off; some must be, and some sent in peace");
}

/// A clock of one's own, and its hand.
fn by_hand(now: i64) -> (Clock, &'static AtomicI64) {
    let hand: &'static AtomicI64 = Box::leak(Box::new(AtomicI64::new(now)));
    (Clock::manual(hand), hand)
}

/// Successful sessions in a report as it arrived, by the day that it is about, and its report-id.
fn received(message: &[u8]) -> (String, u64, String) {
    use mail_parser::{MessageParser, MimeHeaders};
    use std::io::Read;
    let parsed = MessageParser::default().parse(message).unwrap();
    let part = parsed.parts.iter().find(|part| part.attachment_name().is_some()).unwrap();
    let mut json = String::new();
    flate2::read::GzDecoder::new(part.contents()).read_to_string(&mut json).unwrap();
    let report: crate::reporting::report::build::ReportDocument = serde_json::from_str(&json).unwrap();
    let sum = report.policies.iter().map(|p| p.summary.total_successful_session_count).sum();
    (report.date_range.start_datetime[..10].to_owned(), sum, report.report_id)
}

/// All that arrived: sessions by day, and how many reports there were.
fn sums(taken: &mut UnboundedReceiver<(String, String, Vec<u8>)>) -> (BTreeMap<String, u64>, usize) {
    let (mut sums, mut ids) = (BTreeMap::new(), BTreeSet::new());
    let mut reports = 0;
    while let Ok((_, _, message)) = taken.try_recv() {
        let (day, n, id) = received(&message);
        *sums.entry(day).or_insert(0) += n;
        reports += 1;
        assert!(ids.insert(id), "a report-id twice");
    }
    (sums, reports)
}

#[tokio::test]
async fn what_comes_late_goes_into_one_supplement_and_then_is_dropped_and_counted() {
    let (world, mut taken) = World::new(vec![RECORD], ServerFault::Never).await;
    let now = day().end() + 60;
    world.run(now, |due| states(due) == [ReportState::Sent]).await;
    count_some(&world.store(), day(), "example.net", 5);
    // A restart in between changes nothing: what was said stands in the store.
    let due = world.run(now + 600, |due| due.len() == 2).await;
    assert_eq!((due[1].supplement, due[1].state), (true, ReportState::Waiting), "{due:?}");
    count_some(&world.store(), day(), "example.net", 7);
    let due = world.run(now + 600 + SUPPLEMENT_DELAY + 60, |due| states(due) == [ReportState::Sent; 2]).await;
    assert_ne!(due[0].report_id, due[1].report_id);
    let (_, _, first) = taken.try_recv().unwrap();
    let (_, _, second) = taken.try_recv().unwrap();
    assert_eq!((received(&first).1, received(&second).1), (3, 12));

    count_some(&world.store(), day(), "example.net", 11);
    for round in 0..2 {
        let scheduler = world.open(now + 40_000 + round);
        assert!(scheduler.plan_days(&going()).await);
        assert!(scheduler.take_due_jobs(8).await.is_empty());
    }
    assert_eq!(world.metrics.counters().get("late-counts-dropped"), Some(&11));
    assert!(taken.try_recv().is_err());
}

#[tokio::test]
async fn what_a_report_says_is_the_same_at_every_try() {
    let (mut world, _taken) = World::new(vec![RECORD], ServerFault::Reply("RCPT", "451 4.3.0 later")).await;
    let now = day().end() + 60;
    world.run(now, |due| states(due) == [ReportState::Planned] && due[0].attempts == 1).await;
    count_some(&world.store(), day(), "example.net", 100);
    let (sink, mut taken) = smtp_server(ServerFault::Never).await;
    world.section.deliver = DeliveryMethod::Smtp(sink);
    world.section.organization = Some("Another".into());
    world.run(now + FIRST_RETRY_DELAY + 10, |due| due.iter().any(|d| d.state == ReportState::Sent)).await;
    let (_, _, message) = taken.try_recv().unwrap();
    assert_eq!(received(&message).1, 3);
    let due =
        world.run(now + 2 * SUPPLEMENT_DELAY + 60, |due| due.len() == 2 && states(due) == [ReportState::Sent; 2]).await;
    assert!(due[1].supplement);
    assert_eq!(received(&taken.try_recv().unwrap().2).1, 100);
}

#[tokio::test]
async fn a_report_is_kept_shown_and_sent_once_more() {
    let (world, mut taken) = World::new(vec![RECORD], ServerFault::Never).await;
    let due = world.run(day().end() + 60, |due| states(due) == [ReportState::Sent]).await;
    let (_, _, first) = taken.try_recv().unwrap();
    let id = due[0].report_id.clone().unwrap();
    {
        let scheduler = world.open(day().end() + 90);
        let kept = scheduler.archived_report(id.split('@').next().unwrap()).unwrap();
        assert!(kept.json.contains(&id) && kept.json.contains("\"total-successful-session-count\":3"));
        assert_eq!(kept.deliveries, due);
        assert_eq!(due[0].tried.map(|t| (t - day().end() - 60) / 10), Some(0));
        assert!(scheduler.archived_report("20261122.nothing").unwrap_err().contains("is no report that is kept"));
        let again =
            |scheduler: &Scheduler| scheduler.resend(&ResendSelection::Report(id.clone())).unwrap().destinations;
        assert_eq!((again(&scheduler), again(&scheduler)), (1, 0), "it is on its way then");
    }
    world.run(day().end() + 100, |due| states(due) == [ReportState::Sent]).await;
    let (_, _, second) = taken.try_recv().unwrap();
    assert_eq!(received(&first), received(&second));
    let id = |m: &[u8]| String::from_utf8_lossy(m).split("Message-ID: <").nth(1).unwrap()[..40].to_owned();
    assert_ne!(id(&first), id(&second));
}

/// A store that was put back sends a day again; the receiver knows it by its report-id.
#[tokio::test]
async fn a_restored_store_sends_the_same_report_under_the_same_id() {
    let mut ids = Vec::new();
    for _ in 0..2 {
        let (world, mut taken) = World::new(vec![RECORD], ServerFault::Never).await;
        world.run(day().end() + 60, |due| states(due) == [ReportState::Sent]).await;
        ids.push(received(&taken.try_recv().unwrap().2).2);
    }
    assert_eq!(ids[0], ids[1]);
    let (world, mut taken) = World::new(vec![RECORD], ServerFault::Never).await;
    count(&world.store(), day(), "example.net");
    world.run(day().end() + 60, |due| states(due) == [ReportState::Sent]).await;
    assert_ne!(received(&taken.try_recv().unwrap().2).2, ids[0], "other counts");
}

/// A week over a leap day passes in seconds, with a nap of half a day and a clock that is set back by an hour after midnight.
#[tokio::test]
async fn a_week_in_seconds_each_day_once() {
    let (world, mut taken) = World::new(vec![RECORD], ServerFault::Never).await;
    let first: Day = "2028-02-26".parse().unwrap();
    let (clock, hand) = by_hand(first.start());
    let scheduler = world.open_with(clock);
    let store = Arc::clone(&scheduler.context.store);
    store.drop_days_before(first).unwrap();
    let (stop, task) = start(&scheduler);
    let mut wanted = BTreeMap::new();
    for (i, day) in (first.0..first.0 + 7).map(Day).enumerate() {
        hand.store(day.start() + 43_000, Ordering::SeqCst);
        let n = 10 + i as u64;
        count_some(&*store, day, "example.net", n);
        wanted.insert(day.to_string(), n);
        let over = match i {
            // Suspended from the evening to noon.
            2 => day.end() + 43_000,
            _ => day.end() + 30,
        };
        hand.store(over, Ordering::SeqCst);
        world.metrics.update_input("maillog", |input| input.newest = Some(day.end() + OUT_OF_ORDER_TIME));
        let sent =
            |due: &[ReportStatus]| due.iter().any(|d| d.day == day && d.state == ReportState::Sent && !d.supplement);
        until(&scheduler, sent).await;
        if i == 3 {
            // Back before midnight: the day that was reported goes on.
            hand.store(day.end() - 3000, Ordering::SeqCst);
            count_some(&*store, day, "example.net", 1000);
            *wanted.get_mut(&day.to_string()).unwrap() += 1000;
            hand.store(day.end() + 600, Ordering::SeqCst);
            until(&scheduler, |due| due.iter().any(|d| d.day == day && d.supplement)).await;
            hand.store(day.end() + 600 + SUPPLEMENT_DELAY + 10, Ordering::SeqCst);
            until(&scheduler, |due| due.iter().any(|d| d.day == day && d.supplement && d.state == ReportState::Sent))
                .await;
        }
    }
    stop.send(true).unwrap();
    task.await.unwrap();
    assert!(wanted.contains_key("2028-02-29"));
    assert_eq!(sums(&mut taken), (wanted, 8));
}

/// The host was off for two days: both are reported, the older one first.
#[tokio::test]
async fn missed_days_are_sent_late_and_the_oldest_first() {
    const DOMAINS: usize = 2 * MAX_JOBS;
    let (world, mut taken) = World::new(many(DOMAINS), ServerFault::Never).await;
    let next = Day(day().0 + 1);
    {
        let store = world.store();
        (0..DOMAINS).for_each(|i| count(&store, day(), &format!("d{i}.example")));
        count_some(&store, next, "d0.example", 4);
    }
    world.metrics.update_input("maillog", |input| input.newest = Some(next.end() + OUT_OF_ORDER_TIME));
    world.run(next.end() + 40_000, |due| due.iter().filter(|d| d.state == ReportState::Sent).count() > DOMAINS).await;
    let mut days = Vec::new();
    while let Ok((_, _, message)) = taken.try_recv() {
        days.push(received(&message).0);
    }
    let newer = days.iter().position(|day| day == "2026-11-23").unwrap();
    assert!(newer >= DOMAINS - MAX_JOBS, "{newer}");
}

/// A session with a detail under the TLSA records of an MX host, counted for a recipient domain.
fn count_dane(store: &dyn Store, domain: &str, host: &str, named: &str) {
    let policy = Policy { policy_type: PolicyType::Tlsa, policy_string: vec!["3 1 1 00".into()], ..Policy::none(host) };
    let failure = Failure {
        receiving_mx_hostname: Some(named.into()),
        ..Failure::new(ResultType::CertificateNotTrusted, Some("dane-no-match"))
    };
    let tally =
        |counted| TallyKey { day: day(), domain: domain.into(), policy: policy.clone().into(), result: counted };
    let add =
        [TallyResult::Success, TallyResult::Failure, TallyResult::Detail(failure)].map(|counted| (tally(counted), 1));
    store.write(Batch { add: add.to_vec(), set: Vec::new() }).unwrap();
}

#[tokio::test]
async fn an_mx_host_gets_a_report_of_its_own_that_names_no_recipient_domain() {
    let records = vec![
        ("_smtp._tls.one.example", Some("v=TLSRPTv1; rua=mailto:r@provider.example")),
        ("_smtp._tls.mx.provider.example", Some("v=TLSRPTv1; rua=mailto:r@provider.example")),
        ("_smtp._tls.mx.told.example", Some("v=TLSRPTv1; rua=mailto:r@provider.example")),
    ];
    let (world, mut taken) = World::new(records, ServerFault::Never).await;
    let store = world.store();
    count_dane(&store, "one.example", "mx.provider.example", "mx.provider.example");
    count_dane(&store, "two.example", "mx.provider.example", "mail.two.example");
    count_dane(&store, "one.example", "mx.told.example", "mx.told.example");
    drop(store);
    let done = |due: &[ReportStatus]| {
        due.len() == 5 && due.iter().all(|d| matches!(d.state, ReportState::Sent | ReportState::Nothing))
    };
    let due = world.run(day().end() + 60, done).await;
    let told = due.iter().find(|d| d.domain == "mx:mx.told.example").unwrap();
    assert!(told.last.as_ref().unwrap().contains("went to the same destinations"), "{told:?}");
    let mut mails = Vec::new();
    while let Ok((_, _, message)) = taken.try_recv() {
        mails.push(TlsReport::parse_rfc5322(&message, 1 << 20).map(|report| (report, message)).unwrap());
    }
    assert_eq!(mails.len(), 2);
    let about = |name: &str| {
        let header = format!("TLS-Report-Domain: {name}\r\n");
        mails.iter().find(|(_, m)| String::from_utf8_lossy(m).contains(&header)).unwrap()
    };
    let (domain, _) = about("one.example");
    assert_eq!(domain.policies.len(), 2);
    let (host, message) = about("mx.provider.example");
    assert_eq!(host.policies.len(), 1);
    assert_eq!(host.policies[0].policy.policy_domain, "mx.provider.example");
    // The sessions of one.example went to the same address in its own report.
    assert_eq!((host.policies[0].summary.total_success, host.policies[0].summary.total_failure), (1, 1));
    let text = format!("{host:?}{}", String::from_utf8_lossy(message));
    assert!(!text.contains("one.example") && !text.contains("two.example"), "{text}");
    assert!(text.contains("!mx.provider.example!"), "{text}");
    // A restart plans nothing anew.
    world.run(day().end() + 7200, done).await;
    assert!(taken.try_recv().is_err());
}

/// The same address behind a domain and its host gets each session once: the host's report has the other domains' alone.
#[tokio::test]
async fn a_host_s_report_leaves_out_what_the_same_address_got_in_a_domain_s() {
    let records = vec![
        ("_smtp._tls.d1.example", Some("v=TLSRPTv1; rua=mailto:r@h.example")),
        ("_smtp._tls.d3.example", Some("v=TLSRPTv1; rua=mailto:other@x.example")),
        ("_smtp._tls.mx.h.example", Some("v=TLSRPTv1; rua=mailto:r@h.example,mailto:all@y.example")),
    ];
    let (world, mut taken) = World::new(records, ServerFault::Never).await;
    {
        let store = world.store();
        (0..10).for_each(|_| count_dane(&store, "d1.example", "mx.h.example", "mx.h.example"));
        count_dane(&store, "d2.example", "mx.h.example", "mx.h.example");
        (0..2).for_each(|_| count_dane(&store, "d3.example", "mx.h.example", "mx.h.example"));
    }
    let sent = |due: &[ReportStatus]| due.iter().filter(|d| d.state == ReportState::Sent).count();
    let due = world.run(day().end() + 60, |due| sent(due) == 4).await;
    let mut got = BTreeMap::new();
    while let Ok((_, to, message)) = taken.try_recv() {
        let about = String::from_utf8_lossy(&message).split("TLS-Report-Domain: ").nth(1).unwrap().to_owned();
        let about = about.split("\r\n").next().unwrap().to_owned();
        let (_, n, id) = received(&message);
        assert!(got.insert((about, to), (n, id)).is_none());
    }
    let counts: Vec<(&str, &str, u64)> =
        got.iter().map(|((about, to), (n, _))| (about.as_str(), &to[9..to.len() - 1], *n)).collect();
    let wanted = [
        ("d1.example", "r@h.example", 10),
        ("d3.example", "other@x.example", 2),
        ("mx.h.example", "all@y.example", 13),
        ("mx.h.example", "r@h.example", 3),
    ];
    assert_eq!(counts, wanted);
    // Other content, another report-id; each is shown as it went.
    let scheduler = world.open(day().end() + 90);
    for ((about, _), (n, id)) in got.iter().filter(|((about, _), _)| about == "mx.h.example") {
        let shown = scheduler.archived_report(id).unwrap();
        assert_eq!(shown.deliveries.len(), 1, "{about}");
        assert!(shown.json.contains(&format!("\"total-successful-session-count\":{n},")), "{}", shown.json);
    }
    let shown = scheduler.preview(&world.section, day(), Some("mx.h.example")).await.unwrap();
    let mut previews: Vec<usize> = shown.iter().map(|p| p.recipients.len()).collect();
    previews.sort_unstable();
    assert_eq!(previews, [1, 1], "{shown:#?}");
    assert_eq!(due.len(), 6, "d2.example and example.net have no record");
}

/// Late rows of a domain without a record are nobody's but the host's.
#[tokio::test]
async fn late_rows_of_a_domain_without_a_record_reach_the_host_s_supplement() {
    let records = vec![("_smtp._tls.mx.h.example", Some("v=TLSRPTv1; rua=mailto:r@h.example"))];
    let (world, mut taken) = World::new(records, ServerFault::Never).await;
    count_dane(&world.store(), "d1.example", "mx.h.example", "mx.h.example");
    let now = day().end() + 60;
    let sent = |supplement| {
        move |due: &[ReportStatus]| due.iter().any(|d| d.supplement == supplement && d.state == ReportState::Sent)
    };
    world.run(now, sent(false)).await;
    (0..4).for_each(|_| count_dane(&world.store(), "d1.example", "mx.h.example", "mx.h.example"));
    count_dane(&world.store(), "new.example", "mx.h.example", "mx.h.example");
    world.run(now + 600, |due| due.iter().any(|d| d.supplement)).await;
    world.run(now + 600 + 2 * SUPPLEMENT_DELAY, sent(true)).await;
    let (first, second) = (taken.try_recv().unwrap().2, taken.try_recv().unwrap().2);
    assert_eq!((received(&first).1, received(&second).1), (1, 5));
    assert!(taken.try_recv().is_err());
    // With the day its index goes, too.
    world.metrics.update_input("maillog", |input| input.newest = Some(day().end() + 5 * Day::SECONDS));
    world.run(day().end() + 5 * Day::SECONDS, <[ReportStatus]>::is_empty).await;
    assert_eq!(world.store().scan(Table::Due, b"").unwrap(), []);
    assert_eq!(world.store().scan(Table::Snapshot, b"").unwrap(), []);
}

/// Of two plans for one host the first would leave its due entry behind, which nothing removes.
#[test]
fn late_rows_of_two_domains_plan_their_common_host_once() {
    let folder = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(folder.path(), Clock::default()).unwrap().store;
    for domain in ["one.example", "two.example"] {
        count_dane(&store, domain, "mx.h.example", "mx.h.example");
        let plan = ReportPlan { state: PlanState::Nothing, ..ReportPlan::waiting_until(day().end()) };
        let mut batch = Batch::default();
        plan.add_to_batch(&mut batch, &ReportKey::first(day(), domain.parse().unwrap()), None);
        store.write(batch).unwrap();
    }
    let spread = 4 * 3600;
    let page = planner::plan_page(&store, day(), None, day().end() + 7200, spread).unwrap();
    store.write(page.batch).unwrap();
    let entries = store.scan(Table::Due, b"").unwrap();
    let plans = entries.iter().filter(|(key, _)| !key.starts_with(b"h")).count();
    assert_eq!((plans, entries.len()), (1, 3), "{entries:?}");
}

/// The report of a host goes, and what comes late for one of its domains is told to it as well, once.
#[tokio::test]
async fn an_mx_host_gets_what_came_late_in_one_supplement() {
    let records = vec![
        ("_smtp._tls.one.example", Some("v=TLSRPTv1; rua=mailto:r@one.example")),
        ("_smtp._tls.mx.provider.example", Some("v=TLSRPTv1; rua=mailto:r@provider.example")),
    ];
    let (world, mut taken) = World::new(records, ServerFault::Never).await;
    count_dane(&world.store(), "one.example", "mx.provider.example", "mx.provider.example");
    count_dane(&world.store(), "two.example", "mx.provider.example", "mx.provider.example");
    let now = day().end() + 60;
    let sent = |name: &'static str, supplement: bool| {
        move |due: &[ReportStatus]| {
            due.iter().any(|d| d.domain == name && d.supplement == supplement && d.state == ReportState::Sent)
        }
    };
    world.run(now, sent("mx:mx.provider.example", false)).await;
    while taken.try_recv().is_ok() {}
    {
        let scheduler = world.open(now + 30);
        let shown = scheduler.preview(&world.section, day(), Some("mx.provider.example")).await.unwrap();
        assert_eq!((shown.len(), shown[0].domain.as_str()), (1, "mx:mx.provider.example"));
        assert!(shown[0].reported.is_some() && shown[0].json.contains("\"total-successful-session-count\":2,"));
    }
    for _ in 0..5 {
        count_dane(&world.store(), "one.example", "mx.provider.example", "mx.provider.example");
    }
    let planned = |due: &[ReportStatus]| due.iter().any(|d| d.domain == "one.example" && d.supplement);
    world.run(now + 600, planned).await;
    world.run(now + 600 + 2 * SUPPLEMENT_DELAY, sent("mx:mx.provider.example", true)).await;
    let mut late = BTreeMap::new();
    while let Ok((_, to, message)) = taken.try_recv() {
        assert!(late.insert(to, received(&message).1).is_none());
    }
    let to = |to: &str| format!("RCPT TO:<r@{to}>");
    assert_eq!(late, [(to("one.example"), 5), (to("provider.example"), 5)].into());
    world.run(now + 8 * SUPPLEMENT_DELAY, sent("mx:mx.provider.example", true)).await;
    assert!(taken.try_recv().is_err());
}
