//! The policies and the socketmap server against real DNS, HTTPS and sockets, with the embedded store.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, RwLockWriteGuard};
use std::time::{Duration, Instant};

use hickory_proto::rr::RecordType;
use lab::ca::{self, Authority};
use lab::dns::{self, Dns, Zone};
use lab::https::{Answer, PolicyHosts, Site};
use tlswarden::answering::connections::ClientConnections;
use tlswarden::answering::listener::Listener;
use tlswarden::answering::policy::decision::{Answer as PolicyAnswer, Decision};
use tlswarden::answering::policy::history::PolicyHistory;
use tlswarden::answering::policy::policies::Policies;
use tlswarden::answering::policy::sts::cache::{MAX_BACKGROUND_LOOKUPS, TEXT_BYTES_PER_DOMAIN};
use tlswarden::answering::policy::sts::document;
use tlswarden::answering::policy::sts::policy::StsPolicy;
use tlswarden::answering::socketmap::server;
use tlswarden::base::clock::Clock;
use tlswarden::base::next_hop::NextHop;
use tlswarden::base::requester::Requester;
use tlswarden::base::tlsrpt::{Failure, Mode, PolicyInForce, PolicyType, ResultType, TallyRow, sum_tallies};
use tlswarden::config::{
    Config, ConfigDuration, ListenAddress, OverrideSection, OverrideSkip, PostfixLevel as Default_, PostfixSection,
    PostfixVersion,
};
use tlswarden::counting::pipeline::Counter;
use tlswarden::metrics::Metrics;
use tlswarden::net::dns::Resolver;
use tlswarden::net::https::HttpsClient;
use tlswarden::store::embedded::EmbeddedStore;
use tlswarden::store::{Batch, MAX_BATCH_RECORDS, Store, Table};
use tlswarden_parsers::Dialect;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

const DAY: i64 = 86_400;
const DIGEST: [u8; 32] = [7; 32];

/// DNS, policy hosts, a folder and the configuration that joins them.
struct World {
    dns: Dns,
    hosts: PolicyHosts,
    authority: Authority,
    folder: tempfile::TempDir,
    config: Config,
}

/// What a daemon has of it.
struct Daemon {
    policies: Arc<Policies>,
    history: Arc<PolicyHistory>,
    metrics: Metrics,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl World {
    async fn new() -> World {
        // Another test of this process may have installed it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let dns = Dns::start(any).await.unwrap();
        let hosts = PolicyHosts::start(any).await.unwrap();
        let authority = Authority::generate().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root.pem");
        std::fs::write(&root, authority.pem()).unwrap();
        let mut config = Config::default();
        config.resolver.address = Some(dns.address());
        config.closed_network.extra_root = Some(root);
        config.closed_network.policy_hosts = Some(hosts.address());
        config.closed_network.private_addresses = true;
        config.policy.answer_budget = ConfigDuration(Duration::from_secs(2));
        World { dns, hosts, authority, folder, config }
    }

    /// A domain with `hosts` below it, in a signed zone or not.
    fn domain(&self, name: &str, signed: bool, hosts: &[&str]) {
        let mut zone = self.dns.change();
        zone.cut(name, signed);
        for (n, host) in hosts.iter().enumerate() {
            zone.mx(name, u16::try_from(n * 10).unwrap(), &format!("{host}.{name}"));
            zone.address(&format!("{host}.{name}"), Ipv4Addr::LOCALHOST.into());
        }
    }

    /// Its MTA-STS policy.
    fn sts(&self, name: &str, id: &str, document: &str) {
        self.site(name, None, Answer::Document(document.into()));
        self.dns.change().txt(&format!("_mta-sts.{name}"), &format!("v=STSv1; id={id};"));
    }

    fn site(&self, name: &str, fault: Option<ca::Fault>, answer: Answer) {
        let identity = self.authority.certify(&format!("mta-sts.{name}"), fault).unwrap();
        self.hosts.set(name, Site { identity, answer });
    }

    /// Starts what the daemon would start, with a clock that shows `ahead` seconds more.
    fn daemon(&self, ahead: i64) -> Daemon {
        let resolver = Resolver::new(self.config.resolver.address).unwrap();
        let client = HttpsClient::new(resolver.clone(), &self.config.closed_network.exceptions()).unwrap();
        self.daemon_with(client, Clock::starting_at(Clock::default().seconds() + ahead))
    }

    /// The same with a clock that the test moves, and how: by so many seconds from the host's clock as it was.
    fn daemon_by_hand(&self, ahead: i64) -> (Daemon, impl Fn(i64)) {
        let right = Clock::default().seconds();
        let hand: &AtomicI64 = Box::leak(Box::new(AtomicI64::new(right + ahead)));
        let resolver = Resolver::new(self.config.resolver.address).unwrap();
        let client = HttpsClient::new(resolver.clone(), &self.config.closed_network.exceptions()).unwrap();
        let daemon = self.daemon_with(client, Clock::manual(hand));
        (daemon, move |ahead| hand.store(right + ahead, Ordering::SeqCst))
    }

    fn daemon_with(&self, client: HttpsClient, clock: Clock) -> Daemon {
        let metrics = Metrics::default();
        let store: Arc<dyn Store> =
            Arc::new(EmbeddedStore::open(&self.folder.path().join("store"), clock).unwrap().store);
        let resolver = Resolver::new(self.config.resolver.address).unwrap();
        let history = Arc::new(PolicyHistory::open(&*store, clock, metrics.clone()).unwrap());
        let (stop, stopped) = watch::channel(false);
        let policies = Policies::new(
            &self.config,
            resolver,
            client,
            Arc::clone(&store),
            Arc::clone(&history),
            clock,
            metrics.clone(),
        );
        policies.load().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(&policies).run(stopped.clone()));
        tasks.spawn(Arc::clone(&history).run(store, stopped));
        Daemon { policies, history, metrics, stop, tasks }
    }
}

/// What Postfix is told at the level of main.cf.
fn postfix_answer(policies: &Policies, decision: &Decision) -> PolicyAnswer {
    let postfix = policies.postfix();
    decision.facts().map_or(PolicyAnswer::OwnLevel, |facts| facts.for_postfix(postfix.own_level, postfix))
}

impl Daemon {
    async fn level(&self, key: &str) -> PolicyAnswer {
        postfix_answer(&self.policies, &self.policies.decide(key.as_bytes(), Requester::User(0)).await)
    }

    /// Waits until the level is another, asking as Postfix would.
    async fn becomes(&self, key: &str, want: &PolicyAnswer) {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            let level = self.level(key).await;
            if level == *want {
                return;
            }
            assert!(Instant::now() < until, "{key} stays {level:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Serves as for this Postfix; returns where, if it is TCP.
    async fn listen(&mut self, address: ListenAddress, postfix: PostfixSection) -> SocketAddr {
        let (listener, at) = match address {
            ListenAddress::Inet(address) => {
                let tcp = TcpListener::bind(address).await.unwrap();
                let at = tcp.local_addr().unwrap();
                (Listener::Tcp(tcp), at)
            }
            ListenAddress::Unix(path) => {
                (Listener::Unix(UnixListener::bind(path).unwrap()), SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
            }
        };
        let (policies, metrics, stopped) = (Arc::clone(&self.policies), self.metrics.clone(), self.stop.subscribe());
        let clients = ClientConnections::new(metrics.clone());
        self.tasks.spawn(server::serve(listener, policies, postfix, clients, metrics, stopped));
        at
    }

    async fn end(mut self) {
        self.stop.send_replace(true);
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
    }
}

fn document(mode: &str, mx: &str, max_age: i64) -> String {
    format!("version: STSv1\r\nmode: {mode}\r\nmx: {mx}\r\nmax_age: {max_age}\r\n")
}

fn tlsa(zone: &mut Zone, host: &str) {
    zone.tlsa(host, 3, 1, 1, &DIGEST);
}

async fn ask(stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin), request: &str) -> String {
    stream.write_all(format!("{}:{request},", request.len()).as_bytes()).await.unwrap();
    reply(stream).await
}

async fn reply(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut length = 0;
    loop {
        match stream.read_u8().await.unwrap() {
            b':' => break,
            digit => length = length * 10 + usize::from(digit - b'0'),
        }
    }
    let mut data = vec![0; length + 1];
    stream.read_exact(&mut data).await.unwrap();
    assert_eq!(data.pop(), Some(b','));
    String::from_utf8(data).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_enforced_policy_in_both_wordings_over_both_sockets() {
    let world = World::new().await;
    world.domain("enforced.test", false, &["mx1"]);
    world.sts("enforced.test", "1", &document("enforce", "*.enforced.test", 10 * DAY));
    let mut daemon = world.daemon(0);
    let path = world.folder.path().join("socket");
    let postfix = |minor| PostfixSection { version: Some(PostfixVersion::new(3, minor)), ..PostfixSection::default() };
    daemon.listen(ListenAddress::Unix(path.clone()), postfix(10)).await;
    let at = daemon.listen(ListenAddress::Inet((Ipv4Addr::LOCALHOST, 0).into()), postfix(10)).await;
    let older = daemon.listen(ListenAddress::Inet((Ipv4Addr::LOCALHOST, 0).into()), postfix(9)).await;
    let mut unix = UnixStream::connect(&path).await.unwrap();
    let mut tcp = TcpStream::connect(at).await.unwrap();
    let plain = "OK secure match=.enforced.test servername=hostname";
    assert_eq!(ask(&mut unix, "policy Enforced.test").await, plain);
    assert_eq!(ask(&mut tcp, "QUERY enforced.test").await, plain);
    assert_eq!(ask(&mut unix, "postfix enforced.test.").await, plain);
    let newer = ask(&mut tcp, "policy-tlsrpt enforced.test").await;
    assert!(newer.starts_with(&format!("{plain} policy_type=sts policy_domain=enforced.test mx_host_pattern=*.")));
    assert_eq!(ask(&mut unix, "QUERYwithTLSRPT enforced.test").await, newer);
    for none in ["policy .enforced.test", "policy [192.0.2.1]", "policy /run/lmtp", "policy ", "policy a b", "policy"] {
        assert_eq!(ask(&mut unix, none).await, "NOTFOUND ", "{none}");
    }
    assert_eq!(ask(&mut unix, "policy nowhere.test").await, "NOTFOUND ");
    assert!(ask(&mut unix, "other enforced.test").await.starts_with("PERM "));
    assert_eq!(world.hosts.requests("enforced.test"), 1);
    // An older Postfix defers mail over an attribute that it does not know, whatever map it asks.
    let mut older = TcpStream::connect(older).await.unwrap();
    assert_eq!(ask(&mut older, "policy-tlsrpt enforced.test").await, plain);
    let now = Clock::default().seconds();
    let found = daemon.history.policy_at("enforced.test", now);
    assert!(found.asked && matches!(found.in_force, PolicyInForce::Sts { mode: Mode::Enforce, .. }), "{found:?}");
    assert!(!daemon.history.policy_at("enforced.test", now - 100).asked);
    daemon.end().await;
}

/// A service with a level of its own gets another answer, and its sessions are counted under what that answer asked for.
#[tokio::test(flavor = "multi_thread")]
async fn sessions_of_a_service_are_held_to_the_answer_at_its_own_level() {
    let mut world = World::new().await;
    world.config.postfix.default_level = Some(Default_::May);
    // The host that has TLSA records is the less preferred one.
    world.domain("worse.test", true, &["mx1", "mx2"]);
    tlsa(&mut world.dns.change(), "mx2.worse.test");
    world.domain("same.test", true, &["mx1"]);
    tlsa(&mut world.dns.change(), "mx1.same.test");
    let (mut daemon, set) = world.daemon_by_hand(0);
    let path = world.folder.path().join("socket");
    daemon.listen(ListenAddress::Unix(path.clone()), world.config.postfix.clone()).await;
    let mut stream = UnixStream::connect(&path).await.unwrap();
    let begin = daemon.policies.clock().seconds();
    let counted_at = |seconds: i64| daemon.history.policy_at("worse.test", begin + seconds);
    // The first answer is made for the service, the others stand already.
    for (seconds, map, answer, dane) in [
        (0, "policy@encrypt", "NOTFOUND ", false),
        (10, "policy", "OK dane", true),
        (20, "policy@encrypt", "NOTFOUND ", false),
        (30, "policy@may", "OK dane", true),
        (40, "policy@secure", "NOTFOUND ", false),
        (50, "policy@dane", "NOTFOUND ", true),
    ] {
        set(seconds);
        assert_eq!(ask(&mut stream, &format!("{map} worse.test")).await, answer, "{map}");
        let found = counted_at(seconds);
        assert!(found.asked, "{map} {seconds}");
        assert_eq!(matches!(found.in_force, PolicyInForce::Dane { .. }), dane, "{map}: {:?}", found.in_force);
    }
    // Where the level makes no difference, all are counted as one.
    let periods = daemon.history.len();
    for map in ["policy", "policy@encrypt", "policy@secure"] {
        assert_eq!(ask(&mut stream, &format!("{map} same.test")).await, "OK dane-only", "{map}");
    }
    assert_eq!(daemon.history.len(), periods + 1);
    let told = server::explain(&daemon.policies, "worse.test", Default_::May).await;
    for (map, answer) in [("policy", "OK dane"), ("policy@encrypt", "NOTFOUND "), ("policy@dane", "NOTFOUND ")] {
        assert_eq!(told.answers[map], answer, "{map}: {:?}", told.answers);
    }
    drop(stream);
    daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_root_certificates_mail_waits_where_a_policy_may_be_enforced() {
    let world = World::new().await;
    world.domain("sts.example", false, &["mx"]);
    world.sts("sts.example", "1", &document("enforce", "mx.sts.example", DAY));
    world.domain("dane.example", true, &["mx"]);
    tlsa(&mut world.dns.change(), "mx.dane.example");
    world.sts("dane.example", "1", &document("enforce", "mx.dane.example", DAY));
    world.domain("none.example", false, &["mx"]);
    let resolver = Resolver::new(world.config.resolver.address).unwrap();
    let client = HttpsClient::unloaded(resolver, &world.config.closed_network.exceptions());
    let daemon = world.daemon_with(client.clone(), Clock::default());
    assert_eq!(daemon.level("sts.example").await, PolicyAnswer::Temp);
    // What the policy says makes no difference here, and here there is none.
    assert_eq!(daemon.level("dane.example").await, PolicyAnswer::DaneOnly);
    assert_eq!(daemon.level("none.example").await, PolicyAnswer::OwnLevel);
    client.load().unwrap();
    daemon.becomes("sts.example", &PolicyAnswer::Secure).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_fetch_however_many_ask() {
    let world = World::new().await;
    world.domain("busy.test", true, &["mx1"]);
    world.sts("busy.test", "1", &document("enforce", "mx1.busy.test", DAY));
    let daemon = world.daemon(0);
    let mut askers = JoinSet::new();
    for _ in 0..500 {
        let policies = Arc::clone(&daemon.policies);
        askers
            .spawn(async move { postfix_answer(&policies, &policies.decide(b"busy.test", Requester::User(0)).await) });
    }
    while let Some(level) = askers.join_next().await {
        assert_eq!(level.unwrap(), PolicyAnswer::Secure);
    }
    assert_eq!(world.hosts.requests("busy.test"), 1);
    assert_eq!(world.dns.zone().asked("_mta-sts.busy.test", RecordType::TXT), 1);
    assert_eq!(world.dns.zone().asked("busy.test", RecordType::MX), 1);
    daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dane_before_mta_sts_and_never_weaker() {
    let world = World::new().await;
    let enforce = |name: &str| world.sts(name, "1", &document("enforce", &format!("*.{name}"), DAY));
    // Each with and without an enforced MTA-STS policy: the table.
    for (kind, signed, without, with) in [
        ("every", true, PolicyAnswer::DaneOnly, PolicyAnswer::DaneOnly),
        ("some", true, PolicyAnswer::Dane, PolicyAnswer::DaneOnly),
        ("unusable", true, PolicyAnswer::Dane, PolicyAnswer::Secure),
        ("unsigned", false, PolicyAnswer::OwnLevel, PolicyAnswer::Secure),
        ("none", true, PolicyAnswer::OwnLevel, PolicyAnswer::Secure),
        ("partly", true, PolicyAnswer::Dane, PolicyAnswer::DaneOnly),
    ] {
        for (name, sts) in [(format!("{kind}.test"), false), (format!("{kind}-sts.test"), true)] {
            world.domain(&name, signed, &["mx1", "mx2"]);
            if sts {
                enforce(&name);
            }
            let (one, two) = (format!("mx1.{name}"), format!("mx2.{name}"));
            let change = |mut zone: RwLockWriteGuard<'_, dns::Zone>| match kind {
                "every" => [&one, &two].into_iter().for_each(|host| tlsa(&mut zone, host)),
                "some" => tlsa(&mut zone, &one),
                "unusable" => zone.tlsa(&one, 1, 1, 1, &DIGEST),
                "unsigned" => {
                    zone.cut(&one, true);
                    tlsa(&mut zone, &one);
                }
                "partly" => {
                    tlsa(&mut zone, &one);
                    zone.fault(&format!("_25._tcp.{two}"), Some(dns::Fault::ServFail));
                }
                _ => {}
            };
            change(world.dns.change());
            let daemon = world.daemon(0);
            let want = if sts { &with } else { &without };
            assert_eq!(daemon.level(&name).await, *want, "{name}");
            if matches!(want, PolicyAnswer::Dane | PolicyAnswer::DaneOnly) {
                let found = daemon.history.policy_at(&name, Clock::default().seconds()).in_force;
                match (kind, found) {
                    // Postfix 3.7 at default `may` does not follow TLSA records under unsigned MX records.
                    ("unsigned", found) => assert_eq!(found, PolicyInForce::None),
                    (_, PolicyInForce::Dane { hosts, .. }) => {
                        assert_eq!(hosts[0].0, one);
                        let want = if kind == "unusable" { "1 1 1 0707" } else { "3 1 1 0707" };
                        assert!(hosts[0].1.policy_string[0].starts_with(want));
                        assert_eq!(hosts.len(), if kind == "every" { 2 } else { 1 });
                    }
                    (_, found) => panic!("{name}: {found:?}"),
                }
            }
            daemon.end().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bogus_zone_defers_and_heals() {
    let world = World::new().await;
    world.domain("bogus.test", true, &["mx1"]);
    world.sts("bogus.test", "1", &document("enforce", "mx1.bogus.test", DAY));
    tlsa(&mut world.dns.change(), "mx1.bogus.test");
    world.dns.change().fault("_25._tcp.mx1.bogus.test", Some(dns::Fault::ServFail));
    let daemon = world.daemon(0);
    assert!(daemon.level("bogus.test").await == PolicyAnswer::Temp);
    assert!(!daemon.history.policy_at("bogus.test", Clock::default().seconds()).asked);
    world.dns.change().fault("_25._tcp.mx1.bogus.test", None);
    daemon.becomes("bogus.test", &PolicyAnswer::DaneOnly).await;
    // The MX itself: nothing is known.
    world.domain("bogusmx.test", true, &["mx1"]);
    world.dns.change().fault("bogusmx.test", Some(dns::Fault::ServFail));
    assert!(daemon.level("bogusmx.test").await == PolicyAnswer::Temp);
    daemon.end().await;
}

/// What is counted of a log whose last line was written now, under the policies that a daemon has answered.
fn counted(mta: Dialect, daemon: &Daemon, log: &str) -> Vec<TallyRow> {
    let now = Clock::default().seconds();
    let at = jiff::Timestamp::from_second(now).unwrap();
    let own = |_: &[u8]| false;
    let mut counter = Counter::new(mta, jiff::tz::TimeZone::UTC, Arc::new(own));
    let time = match mta {
        Dialect::Postfix => at.strftime("%Y-%m-%dT%H:%M:%SZ mta"),
        Dialect::Exim => at.strftime("%Y-%m-%d %H:%M:%S +0000"),
    };
    let time = time.to_string();
    let lines: String = log.lines().map(|line| format!("{time} {}\n", line.trim_start())).collect();
    counter.count_lines(lines.as_bytes(), now, &daemon.history);
    counter.end_sessions(now, &daemon.history);
    sum_tallies(counter.take_counts())
}

/// What smtp(8) logs of one attempt to deliver to two recipients of a domain of two hosts while we answer TEMP.
const POSTFIX_DEFERS: &str = "\
    postfix/smtp[7]: warning: socketmap:unix:tlswarden/socketmap:policy-tlsrpt socketmap server temporary error: TLSA at mx1.DOMAIN: the resolver answered SERVFAIL
    postfix/smtp[7]: warning: socketmap:unix:tlswarden/socketmap:policy-tlsrpt lookup error for \"DOMAIN\"
    postfix/smtp[7]: warning: smtp_tls_policy_maps, next-hop destination \"DOMAIN\": policy table lookup error
    postfix/smtp[7]: warning: TLS policy lookup for DOMAIN/mx1.DOMAIN: client TLS configuration problem
    postfix/smtp[7]: warning: TLS policy lookup for DOMAIN/mx2.DOMAIN: client TLS configuration problem
    postfix/smtp[7]: 4AB0CDEF12: to=<u@DOMAIN>, relay=none, delay=0.2, delays=0.1/0/0.1/0, tls=unknown?, dsn=4.7.5, status=deferred (client TLS configuration problem)
    postfix/smtp[7]: 4AB0CDEF12: to=<v@DOMAIN>, relay=none, delay=0.2, delays=0.1/0/0.1/0, tls=unknown?, dsn=4.7.5, status=deferred (client TLS configuration problem)";

/// RFC 8460 §4.3.2.1: mail that waits because the DNSSEC or the TLSA records of the destination are broken is its failure.
#[tokio::test(flavor = "multi_thread")]
async fn mail_that_waits_for_broken_dns_of_the_destination_is_its_failure() {
    let mut world = World::new().await;
    world.config.postfix.version = Some(PostfixVersion::new(3, 7));
    for (name, broken, fault) in [
        ("expired.test", "_25._tcp.mx1.expired.test", dns::Fault::Bogus(7)),
        ("dead.test", "_25._tcp.mx1.dead.test", dns::Fault::ServFail),
        ("bogusmx.test", "bogusmx.test", dns::Fault::Bogus(6)),
        ("dataless.test", "unused.test", dns::Fault::ServFail),
    ] {
        world.domain(name, true, &["mx1"]);
        tlsa(&mut world.dns.change(), &format!("mx1.{name}"));
        world.dns.change().fault(broken, Some(fault));
    }
    world.dns.change().tlsa("mx1.dataless.test", 3, 1, 1, &[]);
    let daemon = world.daemon(0);
    let postfix = |domain: &str| POSTFIX_DEFERS.replace("DOMAIN", domain);
    // Before any answer of ours the fault is this host's own.
    assert_eq!(counted(Dialect::Postfix, &daemon, &postfix("expired.test")), []);
    for (name, result_type, host, reason) in [
        ("expired.test", ResultType::DnssecInvalid, Some("mx1.expired.test"), "extended-dns-error-7-signature-expired"),
        ("bogusmx.test", ResultType::DnssecInvalid, None, "extended-dns-error-6-dnssec-bogus"),
        ("dataless.test", ResultType::TlsaInvalid, Some("mx1.dataless.test"), "tlsa-record-without-data"),
    ] {
        assert!(daemon.level(name).await == PolicyAnswer::Temp, "{name}");
        let exim = format!(
            "1xUwZB-0006OQ-0w == u@{name} R=tlswarden defer (-1): TLS policy of {name} is not known: TLSA at mx1: SERVFAIL\n\
             1xUwZB-0006OQ-0w == v@{name} R=tlswarden defer (-1): TLS policy of {name} is not known: TLSA at mx1: SERVFAIL"
        );
        let newer_exim = exim.replace("defer (-1):", "defer:");
        // Without the warnings, as where another log has them.
        let warnings_elsewhere: Vec<String> = postfix(name).lines().skip(5).map(str::to_owned).collect();
        for (mta, log) in [
            (Dialect::Postfix, postfix(name)),
            (Dialect::Postfix, warnings_elsewhere.join("\n")),
            (Dialect::Exim, exim),
            (Dialect::Exim, newer_exim),
        ] {
            let rows = counted(mta, &daemon, &log);
            let [row] = &rows[..] else { panic!("{rows:?}: {log}") };
            assert_eq!((&*row.domain, row.successful, row.failed), (name, 0, 1), "{log}");
            let domain = host.unwrap_or(name);
            assert_eq!((row.policy.policy_type, &*row.policy.policy_domain), (PolicyType::Tlsa, domain));
            let want =
                Failure { receiving_mx_hostname: host.map(str::to_owned), ..Failure::new(result_type, Some(reason)) };
            assert_eq!(row.details, [(want, 1)]);
        }
    }
    // A server that does not answer at all may be out of our reach.
    assert!(daemon.level("dead.test").await == PolicyAnswer::Temp);
    assert_eq!(counted(Dialect::Postfix, &daemon, &postfix("dead.test")), []);
    world.dns.change().fault("_25._tcp.mx1.expired.test", None);
    daemon.becomes("expired.test", &PolicyAnswer::DaneOnly).await;
    assert_eq!(counted(Dialect::Postfix, &daemon, &postfix("expired.test")), []);
    daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn aliases_implicit_mx_and_smart_hosts() {
    let world = World::new().await;
    {
        let mut zone = world.dns.change();
        let local = Ipv4Addr::LOCALHOST.into();
        // No MX records: the name itself, signed if its addresses are.
        for (name, signed) in [("implicit.test", true), ("implicit-unsigned.test", false)] {
            zone.cut(name, signed);
            zone.address(name, local);
            tlsa(&mut zone, name);
        }
        // A null MX, and a domain that is not there.
        zone.cut("null.test", true);
        zone.mx("null.test", 0, ".");
        // TLSA at the name that the alias leads to, and at the alias alone where its target is not signed.
        zone.cut("alias.test", true);
        zone.cut("target.test", true);
        zone.cut("plain.test", false);
        zone.mx("alias.test", 10, "mx.alias.test");
        zone.cname("mx.alias.test", "mx.target.test");
        zone.address("mx.target.test", local);
        tlsa(&mut zone, "mx.target.test");
        zone.cut("half.test", true);
        zone.mx("half.test", 10, "mx.half.test");
        zone.cname("mx.half.test", "mx.plain.test");
        zone.address("mx.plain.test", local);
        tlsa(&mut zone, "mx.half.test");
        // TLSA at the alias alone, though the name that it leads to is signed as well: looked for there second.
        zone.cut("second.test", true);
        zone.mx("second.test", 10, "mx.second.test");
        zone.cname("mx.second.test", "other.target.test");
        zone.address("other.target.test", local);
        tlsa(&mut zone, "mx.second.test");
        // Anybody could have forged the alias: what it leads to does not count.
        zone.cut("forged.test", false);
        zone.mx("forged.test", 10, "mx.forged.test");
        zone.cname("mx.forged.test", "mx.target.test");
        // The domain itself is an alias of one with MX records.
        for (name, signed) in [("www.test", true), ("www-unsigned.test", false)] {
            zone.cut(name, signed);
            zone.cname(name, "alias.test");
        }
        // A host that is reached by name alone, at another port.
        zone.cut("smart.test", true);
        zone.address("relay.smart.test", local);
        zone.add(
            "_587._tcp.relay.smart.test",
            hickory_proto::rr::RData::TLSA(hickory_proto::rr::rdata::TLSA::new(
                3.into(),
                1.into(),
                1.into(),
                DIGEST.to_vec(),
            )),
        );
        // Its addresses are not signed: it is not asked for TLSA records, which may break there.
        zone.cut("broken-tlsa.test", false);
        zone.mx("broken-tlsa.test", 10, "mx.broken-tlsa.test");
        zone.address("mx.broken-tlsa.test", local);
        zone.fault("_25._tcp.mx.broken-tlsa.test", Some(dns::Fault::Silence));
    }
    world.domain("gateway.test", false, &[]);
    world.dns.change().address("in.gateway.test", Ipv4Addr::LOCALHOST.into());
    world.dns.change().address("out.gateway.test", Ipv4Addr::LOCALHOST.into());
    for (host, allowed) in [("in.gateway.test", "in.gateway.test"), ("out.gateway.test", "elsewhere.test")] {
        world.sts(host, "1", &document("enforce", allowed, DAY));
    }
    let daemon = world.daemon(0);
    for (key, want) in [
        ("implicit.test", PolicyAnswer::DaneOnly),
        ("implicit-unsigned.test", PolicyAnswer::OwnLevel),
        ("null.test", PolicyAnswer::OwnLevel),
        ("nowhere.test", PolicyAnswer::OwnLevel),
        ("alias.test", PolicyAnswer::DaneOnly),
        ("half.test", PolicyAnswer::DaneOnly),
        ("second.test", PolicyAnswer::DaneOnly),
        ("forged.test", PolicyAnswer::OwnLevel),
        ("www.test", PolicyAnswer::DaneOnly),
        ("www-unsigned.test", PolicyAnswer::OwnLevel),
        ("[relay.smart.test]:587", PolicyAnswer::DaneOnly),
        ("[relay.smart.test]:submission", PolicyAnswer::DaneOnly),
        ("[relay.smart.test]", PolicyAnswer::OwnLevel),
        ("[relay.smart.test]:smtps", PolicyAnswer::OwnLevel),
        // TLSA records of a service without a known number cannot be asked for.
        ("[relay.smart.test]:no-such-service", PolicyAnswer::Temp),
        ("broken-tlsa.test", PolicyAnswer::OwnLevel),
        ("[in.gateway.test]", PolicyAnswer::Secure),
        // MTA-STS applies whatever the port (RFC 8461 §3.4).
        ("[in.gateway.test]:mail", PolicyAnswer::Secure),
        ("[in.gateway.test]:ssmtp", PolicyAnswer::Secure),
        ("[in.gateway.test]:smtps", PolicyAnswer::Secure),
        ("[in.gateway.test]:2525", PolicyAnswer::Secure),
        ("[in.gateway.test]:no-such-service", PolicyAnswer::Secure),
        ("in.gateway.test:mail", PolicyAnswer::Secure),
        ("in.gateway.test:no-such-service", PolicyAnswer::Secure),
        ("[out.gateway.test]:25", PolicyAnswer::OwnLevel),
    ] {
        assert_eq!(daemon.level(key).await, want, "{key}");
    }
    assert_eq!(world.dns.zone().asked("_25._tcp.mx.broken-tlsa.test", RecordType::TLSA), 0);
    let found = daemon.history.policy_at("alias.test", Clock::default().seconds()).in_force;
    let PolicyInForce::Dane { hosts, .. } = found else { panic!("{found:?}") };
    assert_eq!((hosts[0].0.as_str(), hosts[0].1.policy_domain.as_str()), ("mx.alias.test", "mx.target.test"));
    daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_dane_where_the_mta_has_no_dnssec() {
    let mut world = World::new().await;
    world.domain("signed.test", true, &["mx1"]);
    tlsa(&mut world.dns.change(), "mx1.signed.test");
    world.config.postfix.dnssec = Some(false);
    let daemon = world.daemon(0);
    assert_eq!(daemon.level("signed.test").await, PolicyAnswer::OwnLevel);
    assert_eq!(world.dns.zone().asked("signed.test", RecordType::MX), 0);
    let told = server::explain(&daemon.policies, "signed.test", Default_::May).await.to_string();
    assert!(
        told.contains(
            "- DANE: not looked at: no validating resolver, or Postfix asks for no DNSSEC ([postfix] dnssec)\n"
        ),
        "{told}"
    );
    daemon.end().await;
}

/// `smtp_tls_dane_insecure_mx_policy`: which Postfix follows TLSA records under unsigned MX records, and which sends as
/// if there were none, so that its sessions are held to nothing.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_unsigned_mx_with_dane_is_counted_under_depends_on_the_postfix() {
    let mut world = World::new().await;
    for (minor, default_level, followed, answer) in [
        (5, Default_::May, true, PolicyAnswer::Dane),
        (6, Default_::May, false, PolicyAnswer::OwnLevel),
        (9, Default_::Encrypt, false, PolicyAnswer::OwnLevel),
        // Postfix follows them by itself.
        (9, Default_::Dane, true, PolicyAnswer::OwnLevel),
        (10, Default_::May, true, PolicyAnswer::Dane),
    ] {
        let name = format!("unsigned{minor}-{followed}.test");
        world.domain(&name, false, &["mx"]);
        world.dns.change().cut(&format!("mx.{name}"), true);
        tlsa(&mut world.dns.change(), &format!("mx.{name}"));
        world.config.postfix.version = Some(PostfixVersion::new(3, minor));
        world.config.postfix.default_level = Some(default_level);
        let daemon = world.daemon(0);
        assert_eq!(daemon.level(&name).await, answer, "{name}");
        let found = daemon.history.policy_at(&name, Clock::default().seconds());
        assert!(found.asked);
        assert_eq!(matches!(found.in_force, PolicyInForce::Dane { .. }), followed, "{name}: {:?}", found.in_force);
        assert_eq!(matches!(found.in_force, PolicyInForce::None), !followed, "{name}: {:?}", found.in_force);
        daemon.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn verdicts_hold_for_their_ttl_and_are_asked_again_before_it_ends() {
    let world = World::new().await;
    world.domain("used.test", true, &["mx"]);
    tlsa(&mut world.dns.change(), "mx.used.test");
    let asked = |name: &str| world.dns.zone().asked(name, RecordType::MX);
    let daemon = world.daemon(0);
    assert_eq!(daemon.level("used.test").await, PolicyAnswer::DaneOnly);
    // "No such domain" holds as long as the SOA record says (RFC 2308 §5).
    world.dns.change().ttl(1200);
    assert_eq!(daemon.level("absent.test").await, PolicyAnswer::OwnLevel);
    daemon.end().await;
    // Of its 60 s the verdict has ten left: it answers, and is asked for behind the answer, as it is in use.
    world.dns.change().ttl(60);
    world.dns.change().fault("used.test", Some(dns::Fault::Late(Duration::from_secs(1))));
    let daemon = world.daemon(50);
    let until = Instant::now() + Duration::from_secs(10);
    while asked("used.test") < 2 {
        let began = Instant::now();
        assert_eq!(daemon.level("used.test").await, PolicyAnswer::DaneOnly);
        assert!(began.elapsed() < Duration::from_millis(500), "{:?}", began.elapsed());
        assert!(Instant::now() < until, "it is not asked again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    daemon.end().await;
    for (ahead, want) in [(1150, 1), (1300, 2)] {
        let daemon = world.daemon(ahead);
        daemon.level("absent.test").await;
        assert_eq!(asked("absent.test"), want, "after {ahead} s");
        daemon.end().await;
    }
}

/// More names at once than refreshes may be under way, none of them answered.
#[tokio::test(flavor = "multi_thread")]
async fn refreshes_are_not_postponed_because_a_client_asks_for_many_names() {
    let world = World::new().await;
    world.domain("used.test", true, &["mx"]);
    tlsa(&mut world.dns.change(), "mx.used.test");
    let asked = |name: &str| world.dns.zone().asked(name, RecordType::MX);
    world.dns.change().ttl(60);
    let daemon = world.daemon(0);
    assert_eq!(daemon.level("used.test").await, PolicyAnswer::DaneOnly);
    daemon.end().await;
    // Of its 60 s the verdict has ten left.
    let daemon = world.daemon(50);
    let names: Vec<String> = (0..400).map(|n| format!("silent{n}.test")).collect();
    for name in &names {
        world.dns.change().fault(name, Some(dns::Fault::Silence));
    }
    let mut askers = JoinSet::new();
    for name in names.clone() {
        let policies = Arc::clone(&daemon.policies);
        askers.spawn(async move { policies.decide(name.as_bytes(), Requester::User(1000)).await });
    }
    let until = Instant::now() + Duration::from_secs(60);
    while names.iter().any(|name| asked(name) == 0) || asked("used.test") < 2 {
        assert_eq!(daemon.level("used.test").await, PolicyAnswer::DaneOnly);
        assert!(Instant::now() < until, "it is not asked again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(daemon.metrics.counters()["refreshes_postponed"], 0);
    askers.shutdown().await;
    daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_host_at_a_private_address_is_not_asked() {
    let mut world = World::new().await;
    world.config.closed_network.policy_hosts = None;
    world.config.closed_network.private_addresses = false;
    let addresses = ["127.0.0.1", "10.0.0.1", "169.254.1.1", "::1", "fe80::1", "fd00::1", "::ffff:127.0.0.1"];
    let daemon = world.daemon(0);
    for (n, address) in addresses.into_iter().enumerate() {
        let name = format!("private{n}.test");
        world.domain(&name, false, &["mx"]);
        world.sts(&name, "1", &document("enforce", &format!("mx.{name}"), DAY));
        world.dns.change().address(&format!("mta-sts.{name}"), address.parse().unwrap());
        let decision = daemon.policies.decide(name.as_bytes(), Requester::User(0)).await;
        assert_eq!(postfix_answer(&daemon.policies, &decision), PolicyAnswer::OwnLevel, "{address}");
        assert_eq!(decision.failure.as_ref().map(|f| f.reason.as_str()), Some("no-address"), "{address}");
        assert_eq!(world.hosts.handshakes(&name), 0);
    }
    daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_behind_an_alias_is_the_domains_own() {
    let world = World::new().await;
    world.domain("hosted.test", false, &["mx"]);
    world.site("hosted.test", None, Answer::Document(document("enforce", "mx.hosted.test", DAY)));
    world.dns.change().cname("_mta-sts.hosted.test", "_mta-sts.provider.test");
    world.dns.change().txt("_mta-sts.provider.test", "v=STSv1; id=1;");
    let daemon = world.daemon(0);
    assert_eq!(daemon.level("hosted.test").await, PolicyAnswer::Secure);
    daemon.end().await;
}

/// RFC 8461 §3.1: the strings of a record are one text; exactly one record begins with the version; others do not count.
#[tokio::test(flavor = "multi_thread")]
async fn the_strings_of_a_record_are_joined_and_two_records_are_none() {
    let world = World::new().await;
    for (name, records) in [
        ("strings.test", vec![vec!["v=STSv1", "; id=", "1", ";"]]),
        ("beside.test", vec![vec!["v=STSv1; id=1;"], vec!["v=spf1 -all"], vec!["v=STSv10; id=1;"]]),
        ("two.test", vec![vec!["v=STSv1; id=1;"], vec!["v=STSv1; id=2;"]]),
    ] {
        world.domain(name, false, &["mx"]);
        world.site(name, None, Answer::Document(document("enforce", &format!("mx.{name}"), DAY)));
        for strings in records {
            let strings = strings.into_iter().map(str::to_owned).collect();
            let record = hickory_proto::rr::RData::TXT(hickory_proto::rr::rdata::TXT::new(strings));
            world.dns.change().add(&format!("_mta-sts.{name}"), record);
        }
    }
    let daemon = world.daemon(0);
    for (name, want) in [
        ("strings.test", PolicyAnswer::Secure),
        ("beside.test", PolicyAnswer::Secure),
        ("two.test", PolicyAnswer::OwnLevel),
    ] {
        assert_eq!(daemon.level(name).await, want, "{name}");
    }
    assert_eq!(world.hosts.requests("two.test"), 0);
    daemon.end().await;
}

/// RFC 8461 §3.3, §10.2: fetched anew once a day under the same id, behind the answers, while it is in use. One that has
/// expired is not applied, and stays in the store all the same: the clock may be wrong.
#[tokio::test(flavor = "multi_thread")]
async fn a_policy_in_use_is_fetched_anew_each_day_and_an_expired_one_is_kept() {
    let world = World::new().await;
    for name in ["used.test", "unused.test"] {
        world.domain(name, false, &["mx"]);
        world.sts(name, "1", &document("enforce", &format!("mx.{name}"), 10 * DAY));
    }
    let daemon = world.daemon(0);
    for name in ["used.test", "unused.test"] {
        assert_eq!(daemon.level(name).await, PolicyAnswer::Secure, "{name}");
    }
    daemon.end().await;
    // Half a day later nothing is fetched; after a day what is asked about is.
    for (ahead, want) in [(DAY / 2, 1), (DAY + 1, 2)] {
        let daemon = world.daemon(ahead);
        assert_eq!(daemon.level("used.test").await, PolicyAnswer::Secure);
        let until = Instant::now() + Duration::from_secs(if want == 1 { 1 } else { 20 });
        while world.hosts.requests("used.test") < 2 && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(world.hosts.requests("used.test"), want, "after {ahead} s");
        daemon.end().await;
    }
    let daemon = world.daemon(10 * DAY + 2);
    assert_eq!((daemon.policies.counts().policies, world.hosts.requests("unused.test")), (1, 1));
    daemon.end().await;
    world.site("unused.test", None, Answer::Close);
    let daemon = world.daemon(10 * DAY + 2);
    assert_eq!(daemon.level("unused.test").await, PolicyAnswer::OwnLevel);
    daemon.end().await;
    let daemon = world.daemon(0);
    for name in ["used.test", "unused.test"] {
        assert_eq!(daemon.level(name).await, PolicyAnswer::Secure, "{name}");
    }
    daemon.end().await;
}

/// Who can suppress one TXT answer must not be able to end a policy with it (RFC 8461 §10.2).
#[tokio::test(flavor = "multi_thread")]
async fn a_policy_is_fetched_anew_whatever_its_record_says() {
    let world = World::new().await;
    let names = ["gone.test", "two.test", "fails.test"];
    for name in names {
        world.domain(name, false, &["mx"]);
        world.sts(name, "1", &document("enforce", &format!("mx.{name}"), 10 * DAY));
    }
    let daemon = world.daemon(0);
    for name in names {
        assert_eq!(daemon.level(name).await, PolicyAnswer::Secure, "{name}");
    }
    daemon.end().await;
    world.dns.change().remove("_mta-sts.gone.test", RecordType::TXT);
    world.dns.change().more_txt("_mta-sts.two.test", "v=STSv1; id=2;");
    world.dns.change().fault("_mta-sts.fails.test", Some(dns::Fault::ServFail));
    // After 19 days the first policies are long over.
    for (day, want) in [(1, 2), (10, 3), (19, 4)] {
        let daemon = world.daemon(day * DAY + 1);
        for name in names {
            assert_eq!(daemon.level(name).await, PolicyAnswer::Secure, "{name}, day {day}");
            let until = Instant::now() + Duration::from_secs(60);
            while world.hosts.requests(name) < want {
                assert!(Instant::now() < until, "{name} is not fetched on day {day}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            // The document is read, not only served.
            let fetched =
                async || daemon.policies.decide(name.as_bytes(), Requester::User(0)).await.sts.unwrap().fetched();
            let today = Clock::default().seconds() + day * DAY;
            while fetched().await < today - 120 {
                assert!(Instant::now() < until, "{name} is not renewed on day {day}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        daemon.end().await;
    }
}

/// What was found out by a clock that was ahead is asked again when it is right, at once and after a restart.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_was_ahead_holds_nothing_up() {
    for (ahead, restart) in [(3600, false), (DAY, true), (400 * DAY, false), (400 * DAY, true)] {
        let world = World::new().await;
        for (name, signed) in [("none.test", false), ("fails.test", false), ("new.test", true), ("dane.test", true)] {
            world.domain(name, signed, &["mx"]);
        }
        world.dns.change().ttl(3600);
        tlsa(&mut world.dns.change(), "mx.dane.test");
        world.sts("fails.test", "1", &document("enforce", "mx.fails.test", DAY));
        world.site("fails.test", None, Answer::Status(500));
        let ask = async |daemon: &Daemon, want: [PolicyAnswer; 4]| {
            for (name, want) in ["none.test", "fails.test", "new.test", "dane.test"].into_iter().zip(want) {
                assert_eq!(daemon.level(name).await, want, "{name}, {ahead} s ahead, restart {restart}");
            }
        };
        let (daemon, set) = world.daemon_by_hand(ahead);
        use PolicyAnswer::{DaneOnly, OwnLevel, Secure};
        ask(&daemon, [OwnLevel, OwnLevel, OwnLevel, DaneOnly]).await;
        world.sts("none.test", "1", &document("enforce", "mx.none.test", DAY));
        world.site("fails.test", None, Answer::Document(document("enforce", "mx.fails.test", DAY)));
        tlsa(&mut world.dns.change(), "mx.new.test");
        world.dns.change().remove("_25._tcp.mx.dane.test", RecordType::TLSA);
        let daemon = if restart {
            daemon.end().await;
            world.daemon(0)
        } else {
            set(0);
            daemon
        };
        ask(&daemon, [Secure, Secure, DaneOnly, OwnLevel]).await;
        daemon.end().await;
    }
}

/// A start with a wrong clock, ahead or behind, costs no policy: neither its record nor its host has to be there when the
/// clock is right again.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_with_a_wrong_clock_loses_no_policy() {
    for (wrong, while_wrong) in [
        (3600, PolicyAnswer::Secure),
        (31 * DAY, PolicyAnswer::OwnLevel),
        (400 * DAY, PolicyAnswer::OwnLevel),
        (-3600, PolicyAnswer::Secure),
        (-31 * DAY, PolicyAnswer::Secure),
        (-400 * DAY, PolicyAnswer::Secure),
    ] {
        let world = World::new().await;
        world.domain("kept.test", false, &["mx"]);
        world.sts("kept.test", "1", &document("enforce", "mx.kept.test", 10 * DAY));
        let daemon = world.daemon(0);
        assert_eq!(daemon.level("kept.test").await, PolicyAnswer::Secure);
        daemon.end().await;
        // Ahead, it has expired and cannot be fetched; behind, it is from the future and is fetched.
        if wrong > 0 {
            world.site("kept.test", None, Answer::Close);
        }
        let daemon = world.daemon(wrong);
        assert_eq!(daemon.level("kept.test").await, while_wrong, "{wrong} s");
        let until = Instant::now() + Duration::from_secs(60);
        while wrong < 0 && world.hosts.requests("kept.test") < 2 {
            assert!(Instant::now() < until, "it is not fetched, {wrong} s");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        daemon.end().await;
        world.site("kept.test", None, Answer::Close);
        world.dns.change().remove("_mta-sts.kept.test", RecordType::TXT);
        let daemon = world.daemon(0);
        assert_eq!(daemon.level("kept.test").await, PolicyAnswer::Secure, "{wrong} s");
        daemon.end().await;
    }
}

/// A host that was suspended wakes with a clock that jumps ahead, and its timers have stood still.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_suspension_everything_whose_time_is_over_is_asked_again() {
    let world = World::new().await;
    world.domain("sts.test", false, &["mx"]);
    world.sts("sts.test", "1", &document("enforce", "mx.sts.test", 10 * DAY));
    world.domain("dane.test", true, &["mx"]);
    tlsa(&mut world.dns.change(), "mx.dane.test");
    let (daemon, set) = world.daemon_by_hand(0);
    assert_eq!(daemon.level("sts.test").await, PolicyAnswer::Secure);
    assert_eq!(daemon.level("dane.test").await, PolicyAnswer::DaneOnly);
    world.dns.change().remove("_25._tcp.mx.dane.test", RecordType::TLSA);
    set(2 * DAY);
    assert_eq!(daemon.level("dane.test").await, PolicyAnswer::OwnLevel);
    assert_eq!(daemon.level("sts.test").await, PolicyAnswer::Secure);
    let until = Instant::now() + Duration::from_secs(60);
    while world.hosts.requests("sts.test") < 2 {
        assert!(Instant::now() < until, "it is not fetched anew");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Longer than the policy holds: it is fetched within the answer.
    set(30 * DAY);
    assert_eq!(daemon.level("sts.test").await, PolicyAnswer::Secure);
    daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_least_recently_used_go_first_and_enforced_policies_last() {
    let mut world = World::new().await;
    world.config.policy.max_domains = 20;
    for (name, mode) in [("enforced.test", "enforce"), ("tried.test", "testing")] {
        world.domain(name, false, &["mx"]);
        world.sts(name, "1", &document(mode, &format!("mx.{name}"), 10 * DAY));
    }
    let daemon = world.daemon(0);
    assert_eq!(daemon.level("enforced.test").await, PolicyAnswer::Secure);
    assert_eq!(daemon.level("tried.test").await, PolicyAnswer::OwnLevel);
    // Later than both, to the second.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    for n in 0..60 {
        assert_eq!(daemon.level(&format!("absent{n}.test")).await, PolicyAnswer::OwnLevel);
        assert!(daemon.policies.counts().domains <= 20);
    }
    assert!(daemon.metrics.counters()["sts_domains_evicted"] >= 42);
    assert_eq!(daemon.policies.counts().policies, 1);
    daemon.end().await;
    // In the store as well: nobody is asked for it again.
    world.site("enforced.test", None, Answer::Close);
    let daemon = world.daemon(10);
    assert_eq!(daemon.policies.counts().policies, 1);
    assert_eq!(daemon.level("enforced.test").await, PolicyAnswer::Secure);
    daemon.end().await;
}

/// A hundred domains have a kibibyte of text each, or two of them what a hundred may have.
#[tokio::test(flavor = "multi_thread")]
async fn the_text_of_all_policies_is_bounded() {
    let mut world = World::new().await;
    world.config.policy.max_domains = 100;
    let daemon = world.daemon(0);
    for n in 0..6 {
        let name = format!("long{n}.test");
        let mx: String = (0..2000).map(|m| format!("mx: {m:04}.other-{n}.example\r\n")).collect();
        let mode = if n == 0 { "enforce" } else { "testing" };
        world.domain(&name, false, &["mx"]);
        world.sts(&name, "1", &format!("version: STSv1\r\nmode: {mode}\r\n{mx}max_age: 604800\r\n"));
        daemon.policies.decide(name.as_bytes(), Requester::User(0)).await;
    }
    let counts = daemon.policies.counts();
    assert!((2..=3).contains(&counts.policies), "{counts:?}");
    assert!(counts.sts_octets <= 100 * TEXT_BYTES_PER_DOMAIN && counts.sts_octets > 30_000, "{counts:?}");
    assert!(daemon.metrics.counters()["sts_domains_evicted"] >= 3);
    // The enforced one has stayed, though it was used least recently.
    assert_eq!(daemon.level("long0.test").await, PolicyAnswer::Secure);
    assert_eq!(world.hosts.requests("long0.test"), 1);
    daemon.end().await;
}

/// Long policies push out each other, never a policy of ordinary size.
#[tokio::test(flavor = "multi_thread")]
async fn long_policies_never_push_out_small_enforced_ones() {
    const SMALL: usize = 60;
    let mut world = World::new().await;
    world.config.policy.max_domains = 100;
    let small: Vec<String> = (0..SMALL).map(|n| format!("small{n}.test")).collect();
    for name in &small {
        world.domain(name, false, &["mx"]);
        world.sts(name, "1", &document("enforce", &format!("mx.{name}"), 10 * DAY));
    }
    let daemon = world.daemon(0);
    for name in &small {
        assert_eq!(daemon.level(name).await, PolicyAnswer::Secure, "{name}");
    }
    for n in 0..8 {
        let name = format!("long{n}.test");
        let mx: String = (0..2000).map(|m| format!("mx: {m:04}.other-{n}.example\r\n")).collect();
        world.domain(&name, false, &["mx"]);
        world.sts(&name, "1", &format!("version: STSv1\r\nmode: enforce\r\n{mx}max_age: 604800\r\n"));
        assert_eq!(daemon.level(&name).await, PolicyAnswer::Secure, "{name}");
    }
    let counts = daemon.policies.counts();
    assert!(counts.policies > SMALL && counts.policies < SMALL + 8, "{counts:?}");
    assert!(counts.sts_octets <= 100 * TEXT_BYTES_PER_DOMAIN, "{counts:?}");
    daemon.end().await;
    for name in &small {
        world.dns.change().remove(&format!("_mta-sts.{name}"), RecordType::TXT);
    }
    let daemon = world.daemon(100);
    for name in &small {
        assert_eq!(daemon.level(name).await, PolicyAnswer::Secure, "{name}");
        assert_eq!(world.hosts.requests(name), 1, "{name}");
    }
    daemon.end().await;
}

/// A domain that is looked at stays, however many come meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_domain_is_not_evicted_while_it_is_looked_at() {
    let mut world = World::new().await;
    world.config.policy.max_domains = 20;
    world.config.policy.answer_budget = ConfigDuration(Duration::from_millis(100));
    world.domain("late.test", false, &["mx"]);
    world.sts("late.test", "1", &document("enforce", "mx.late.test", DAY));
    world.dns.change().fault("_mta-sts.late.test", Some(dns::Fault::Late(Duration::from_millis(1500))));
    let daemon = world.daemon(0);
    daemon.level("late.test").await;
    for n in 0..60 {
        daemon.level(&format!("absent{n}.test")).await;
    }
    let until = Instant::now() + Duration::from_secs(60);
    while daemon.policies.counts().policies == 0 {
        assert!(Instant::now() < until, "the policy is lost");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(daemon.metrics.counters()["sts_domains_evicted"] >= 40);
    assert_eq!(world.hosts.requests("late.test"), 1);
    daemon.becomes("late.test", &PolicyAnswer::Secure).await;
    daemon.end().await;
}

/// After a restart with thousands of policies and silent DNS each is answered at once, and few are looked at meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_looked_at_while_policies_serve_is_bounded() {
    const DOMAINS: usize = 3000;
    let mut world = World::new().await;
    world.config.postfix.dnssec = Some(false);
    let names: Vec<String> = (0..DOMAINS).map(|n| format!("d{n}.test")).collect();
    let clock = Clock::default();
    let store = EmbeddedStore::open(&world.folder.path().join("store"), clock).unwrap().store;
    for some in names.chunks(MAX_BATCH_RECORDS) {
        let mut batch = Batch::default();
        for name in some {
            let text = document("enforce", &format!("mx.{name}"), DAY);
            let policy = StsPolicy::new(name, "1", &document::parse(text.as_bytes()).unwrap(), clock.seconds());
            batch.set.push((Table::Sts, name.clone().into_bytes(), Some(policy.encode(clock.seconds(), None, None))));
        }
        store.write(batch).unwrap();
    }
    drop(store);
    world.dns.change().outage(Some(dns::Fault::Silence));
    let daemon = world.daemon(0);
    let begin = Instant::now();
    for name in &names {
        assert_eq!(daemon.level(name).await, PolicyAnswer::Secure, "{name}");
    }
    assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
    let counters = daemon.metrics.counters();
    let rounds = begin.elapsed().as_secs() / 4 + 1;
    let looked = DOMAINS as u64 - counters["sts_looks_postponed"];
    assert!(
        looked >= MAX_BACKGROUND_LOOKUPS as u64 && looked <= MAX_BACKGROUND_LOOKUPS as u64 * rounds,
        "{looked} in {:?}",
        begin.elapsed()
    );
    daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_the_policy_host_are_told_apart() {
    let world = World::new().await;
    let sound = document("enforce", "mx.test", DAY);
    let serve = |body: &str| Answer::Document(body.into());
    let fetch = ResultType::StsPolicyFetchError;
    let invalid = ResultType::StsPolicyInvalid;
    let webpki = ResultType::StsWebpkiInvalid;
    // So many KiB of header fields, on so many lines of half a KiB.
    let with_header = |kib: usize| {
        let fields: String = (0..kib * 2).map(|n| format!("X-Field-{n:04}: {}\r\n", "x".repeat(496))).collect();
        format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n{fields}Content-Length: {}\r\n\r\n{sound}", sound.len())
            .into_bytes()
    };
    let encoded =
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Encoding: br\r\nContent-Length: 3\r\n\r\n\x0b\x02\x80";
    let encoded = encoded.to_vec();
    let cases = [
        ("status", None, Answer::Status(404), fetch, "http-status-404"),
        ("redirect", None, Answer::Redirect("https://mta-sts.status.test/".into()), fetch, "redirect"),
        ("media", None, Answer::MediaType("text/html".into(), sound.clone()), fetch, "media-type"),
        ("flood", None, Answer::Flood(64 * 1024 + 1), fetch, "too-large"),
        ("close", None, Answer::Close, fetch, "connection-failed"),
        ("header", None, Answer::Raw(with_header(70)), fetch, "header-too-large"),
        ("encoded", None, Answer::Raw(encoded), invalid, "content-encoding"),
        ("bom", None, serve(&format!("\u{feff}{sound}")), invalid, "byte-order-mark"),
        ("beside", None, serve(&document("enforce", "mx.beside.test\r\nmx: 10 b.test", DAY)), invalid, "invalid-mx"),
        ("html", None, serve("<html></html>"), invalid, "malformed-line"),
        ("nomx", None, serve("version: STSv1\nmode: enforce\nnmx: a.test\nmax_age: 1\n"), invalid, "missing-mx"),
        ("literal", None, serve(&document("enforce", "192.0.2.1", DAY)), invalid, "invalid-mx"),
        ("expired", Some(ca::Fault::Expired), serve(&sound), webpki, "certificate-expired"),
        ("notyet", Some(ca::Fault::NotYetValid), serve(&sound), webpki, "certificate-expired"),
        ("name", Some(ca::Fault::WrongName), serve(&sound), webpki, "certificate-host-mismatch"),
        ("self", Some(ca::Fault::SelfSigned), serve(&sound), webpki, "certificate-not-trusted"),
        ("other", Some(ca::Fault::OtherAuthority), serve(&sound), webpki, "certificate-not-trusted"),
    ];
    let daemon = world.daemon(0);
    for (name, fault, answer, result_type, reason) in cases {
        let domain = format!("{name}.test");
        world.domain(&domain, false, &["mx"]);
        world.sts(&domain, "1", "");
        world.site(&domain, fault, answer);
        let decision = daemon.policies.decide(domain.as_bytes(), Requester::User(0)).await;
        assert_eq!(postfix_answer(&daemon.policies, &decision), PolicyAnswer::OwnLevel, "{domain}");
        let failure = decision.failure.clone().unwrap_or_else(|| panic!("{domain}: no failure"));
        assert_eq!((failure.result_type, failure.reason.as_str()), (result_type, reason), "{domain}: {}", failure.text);
        assert_eq!(failure.retry - failure.at, 300);
    }
    // A media type with parameters, and in capitals, is one.
    world.domain("charset.test", false, &["mx"]);
    world.sts("charset.test", "1", "");
    world.site("charset.test", None, Answer::MediaType("Text/Plain; charset=utf-8; x=y".into(), sound.clone()));
    assert_eq!(daemon.level("charset.test").await, PolicyAnswer::Secure);
    // 60 KiB of header on 120 lines are within the limits; labels that IDNA refuses are labels.
    for (name, octets) in
        [("long.test", with_header(60)), ("xn--a.test", with_header(0)), ("xn--1ug.test", with_header(0))]
    {
        world.domain(name, false, &["mx"]);
        world.sts(name, "1", "");
        world.site(name, None, Answer::Raw(octets));
        assert_eq!(daemon.level(name).await, PolicyAnswer::Secure, "{name}");
    }
    daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn patience_ends_with_the_budget_and_the_fetch_goes_on() {
    let mut world = World::new().await;
    world.config.policy.answer_budget = ConfigDuration(Duration::from_millis(500));
    world.domain("hang.test", false, &["mx"]);
    world.sts("hang.test", "1", "");
    world.site("hang.test", None, Answer::Hang);
    // Nothing of MTA-STS defers mail: a silent `_mta-sts`, a broken one.
    world.domain("silent-txt.test", false, &["mx"]);
    world.dns.change().fault("_mta-sts.silent-txt.test", Some(dns::Fault::Silence));
    world.domain("broken-txt.test", false, &["mx"]);
    world.dns.change().fault("_mta-sts.broken-txt.test", Some(dns::Fault::ServFail));
    // Slow DNS is waited for behind the answer too.
    world.domain("late.test", false, &["mx"]);
    world.sts("late.test", "1", &document("enforce", "mx.late.test", DAY));
    world.dns.change().fault("_mta-sts.late.test", Some(dns::Fault::Late(Duration::from_millis(1200))));
    world.domain("silent.test", true, &["mx"]);
    world.dns.change().fault("silent.test", Some(dns::Fault::Silence));
    let daemon = world.daemon(0);
    let timed = async |key: &str| {
        let began = Instant::now();
        let level = daemon.level(key).await;
        assert!(began.elapsed() < Duration::from_millis(900), "{key}: {:?}", began.elapsed());
        (level, began.elapsed())
    };
    for key in ["hang.test", "silent-txt.test", "broken-txt.test", "late.test"] {
        assert_eq!(timed(key).await.0, PolicyAnswer::OwnLevel, "{key}");
    }
    assert!(matches!(timed("silent.test").await.0, PolicyAnswer::Temp));
    // Who comes next does not wait for the same again.
    let (level, took) = timed("hang.test").await;
    assert_eq!(level, PolicyAnswer::OwnLevel);
    assert!(took < Duration::from_millis(100), "{took:?}");
    daemon.becomes("late.test", &PolicyAnswer::Secure).await;
    daemon.end().await;
}

/// Each query takes 300 ms, and a look-up three of them in turn: more than the budget. Its verdict serves who asks next.
#[tokio::test(flavor = "multi_thread")]
async fn a_look_up_that_outlasts_the_budget_serves_who_asks_next() {
    let mut world = World::new().await;
    world.config.policy.answer_budget = ConfigDuration(Duration::from_millis(100));
    for (name, signed) in [("slow.example", true), ("slow.test", false)] {
        world.domain(name, signed, &["mx"]);
        tlsa(&mut world.dns.change(), &format!("mx.{name}"));
        for name in [name, &format!("mx.{name}"), &format!("_25._tcp.mx.{name}")] {
            world.dns.change().fault(name, Some(dns::Fault::Late(Duration::from_millis(300))));
        }
    }
    world.dns.change().ttl(3600);
    let daemon = world.daemon(0);
    for (name, want) in [("slow.example", PolicyAnswer::DaneOnly), ("slow.test", PolicyAnswer::OwnLevel)] {
        assert_eq!(daemon.level(name).await, PolicyAnswer::Temp, "{name}");
        daemon.becomes(name, &want).await;
        assert_eq!(world.dns.zone().asked(name, RecordType::MX), 1, "{name}");
    }
    daemon.end().await;
    // It is in the store too, though nobody waited for it.
    world.dns.change().outage(Some(dns::Fault::Silence));
    let daemon = world.daemon(0);
    assert_eq!(daemon.level("slow.example").await, PolicyAnswer::DaneOnly);
    daemon.end().await;
}

/// Nobody waits for a look-up that fails, and it takes nothing from what was known.
#[tokio::test(flavor = "multi_thread")]
async fn a_look_up_that_fails_behind_the_answer_replaces_nothing() {
    let mut world = World::new().await;
    world.config.policy.answer_budget = ConfigDuration(Duration::from_millis(100));
    world.domain("kept.example", true, &["mx1", "mx2"]);
    ["mx1.kept.example", "mx2.kept.example"].iter().for_each(|host| tlsa(&mut world.dns.change(), host));
    let daemon = world.daemon(0);
    daemon.becomes("kept.example", &PolicyAnswer::DaneOnly).await;
    daemon.end().await;
    let late = Duration::from_millis(300);
    world.dns.change().fault("kept.example", Some(dns::Fault::Late(late)));
    world.dns.change().fault("_25._tcp.mx1.kept.example", Some(dns::Fault::ServFail));
    let daemon = world.daemon(3600);
    assert_eq!(daemon.level("kept.example").await, PolicyAnswer::DaneOnly);
    let until = Instant::now() + Duration::from_secs(60);
    while world.dns.zone().asked("_25._tcp.mx1.kept.example", RecordType::TLSA) < 2 {
        assert!(Instant::now() < until, "the look-up does not go on");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(daemon.level("kept.example").await, PolicyAnswer::DaneOnly);
    daemon.end().await;
}

/// The answer comes from a part of the look-up, and the verdict of before outranks its end: it is not asked for again
/// before its time.
#[tokio::test(flavor = "multi_thread")]
async fn a_look_up_whose_verdict_is_not_kept_does_not_begin_anew_by_itself() {
    let mut world = World::new().await;
    world.config.postfix.version = Some(PostfixVersion::try_from("3.10.11".to_owned()).unwrap());
    world.domain("held.example", true, &["mx1", "mx2", "mx3"]);
    ["mx1", "mx2", "mx3"].iter().for_each(|host| tlsa(&mut world.dns.change(), &format!("{host}.held.example")));
    let daemon = world.daemon(0);
    daemon.becomes("held.example", &PolicyAnswer::DaneOnly).await;
    daemon.end().await;
    world.dns.change().fault("_25._tcp.mx2.held.example", Some(dns::Fault::ServFail));
    world.dns.change().fault("_25._tcp.mx3.held.example", Some(dns::Fault::Late(Duration::from_millis(200))));
    let daemon = world.daemon(3600);
    assert_eq!(daemon.level("held.example").await, PolicyAnswer::DaneOnly);
    let asked = |host: &str| world.dns.zone().asked(&format!("_25._tcp.{host}.held.example"), RecordType::TLSA);
    let until = Instant::now() + Duration::from_secs(60);
    while asked("mx3") < 2 {
        assert!(Instant::now() < until, "the look-up does not go on");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(world.dns.zone().asked("held.example", RecordType::MX), 2);
    daemon.end().await;
}

/// The third host is not known within the budget, and cannot change the row. It is looked up all the same, for counting.
#[tokio::test(flavor = "multi_thread")]
async fn the_answer_comes_when_it_cannot_change_and_the_rest_is_looked_up_for_counting() {
    let mut world = World::new().await;
    world.config.policy.answer_budget = ConfigDuration(Duration::from_secs(1));
    world.config.postfix.version = Some(PostfixVersion::try_from("3.10.11".to_owned()).unwrap());
    world.domain("three.example", true, &["mx1", "mx2", "mx3"]);
    ["mx1.three.example", "mx3.three.example"].iter().for_each(|host| tlsa(&mut world.dns.change(), host));
    let late = dns::Fault::Late(Duration::from_millis(1600));
    world.dns.change().fault("_25._tcp.mx3.three.example", Some(late));
    let daemon = world.daemon(0);
    assert_eq!(daemon.level("three.example").await, PolicyAnswer::Dane);
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let found = daemon.history.policy_at("three.example", Clock::default().seconds()).in_force;
        let PolicyInForce::Dane { hosts, .. } = found else { panic!("{found:?}") };
        if hosts.iter().map(|(host, _)| host.as_str()).eq(["mx1.three.example", "mx3.three.example"]) {
            break;
        }
        assert!(Instant::now() < until, "{hosts:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(daemon.level("three.example").await, PolicyAnswer::Dane);
    assert_eq!(world.dns.zone().asked("three.example", RecordType::MX), 1);
    daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_most_preferred_hosts_are_looked_up_first_and_eight_queries_are_under_way() {
    let world = World::new().await;
    let hosts: Vec<String> = (0..32).map(|n| format!("mx{n:02}")).collect();
    world.domain("many.example", true, &hosts.iter().map(String::as_str).collect::<Vec<_>>());
    let tlsa_name = |n: usize| format!("_25._tcp.mx{n:02}.many.example");
    (0..32).for_each(|n| world.dns.change().fault(&tlsa_name(n), Some(dns::Fault::Silence)));
    let daemon = world.daemon(0);
    assert_eq!(daemon.level("many.example").await, PolicyAnswer::Temp);
    {
        let zone = world.dns.zone();
        let asked = |n: usize| zone.asked(&tlsa_name(n), RecordType::TLSA) > 0;
        assert!((0..8).all(asked) && !(8..32).any(asked));
    }
    daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_serves_whatever_fails_until_it_expires() {
    let world = World::new().await;
    world.domain("kept.test", false, &["mx"]);
    world.sts("kept.test", "1", &document("enforce", "mx.kept.test", 10 * DAY));
    let daemon = world.daemon(0);
    assert_eq!(daemon.level("kept.test").await, PolicyAnswer::Secure);
    // Killed, not ended: what was answered from is in the store.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut tasks = daemon.tasks;
    tasks.shutdown().await;
    drop((tasks, daemon.policies, daemon.history));
    // The record is gone, and later the policy host too.
    world.dns.change().remove("_mta-sts.kept.test", RecordType::TXT);
    let daemon = world.daemon(DAY);
    assert_eq!(daemon.level("kept.test").await, PolicyAnswer::Secure);
    let until = Instant::now() + Duration::from_secs(60);
    let renewed = Clock::default().seconds() + DAY - 120;
    while daemon.policies.decide(b"kept.test", Requester::User(0)).await.sts.unwrap().fetched() < renewed {
        assert!(Instant::now() < until, "it is not fetched anew");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    daemon.end().await;
    world.sts("kept.test", "2", "");
    world.site("kept.test", None, Answer::Status(500));
    let daemon = world.daemon(2 * DAY);
    assert_eq!(daemon.level("kept.test").await, PolicyAnswer::Secure);
    let until = Instant::now() + Duration::from_secs(10);
    while daemon.policies.decide(b"kept.test", Requester::User(0)).await.failure.is_none() {
        assert!(Instant::now() < until, "the new id is not fetched");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(daemon.level("kept.test").await, PolicyAnswer::Secure);
    assert_eq!(world.hosts.requests("kept.test"), 3);
    daemon.end().await;
    let daemon = world.daemon(11 * DAY + 120);
    assert_eq!(daemon.level("kept.test").await, PolicyAnswer::OwnLevel);
    daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_id_replaces_the_policy_behind_the_answer() {
    let world = World::new().await;
    world.domain("changes.test", false, &["mx"]);
    world.sts("changes.test", "1", &document("enforce", "mx.changes.test", 10 * DAY));
    let daemon = world.daemon(0);
    assert_eq!(daemon.level("changes.test").await, PolicyAnswer::Secure);
    daemon.end().await;
    world.sts("changes.test", "2", &document("testing", "mx.changes.test", 10 * DAY));
    // Late, so that the first answer is surely given before the new policy is there.
    world.dns.change().fault("_mta-sts.changes.test", Some(dns::Fault::Late(Duration::from_secs(1))));
    let daemon = world.daemon(100);
    assert_eq!(daemon.level("changes.test").await, PolicyAnswer::Secure, "the cached policy serves");
    daemon.becomes("changes.test", &PolicyAnswer::OwnLevel).await;
    assert_eq!(
        daemon.policies.decide(b"changes.test", Requester::User(0)).await.sts.as_ref().unwrap().mode,
        Mode::Testing
    );
    let now = Clock::default().seconds() + 100;
    assert!(matches!(
        daemon.history.policy_at("changes.test", now).in_force,
        PolicyInForce::Sts { mode: Mode::Testing, .. }
    ));
    daemon.end().await;
    world.sts("changes.test", "3", "version: STSv1\nmode: none\nmax_age: 86400\n");
    let daemon = world.daemon(200);
    let until = Instant::now() + Duration::from_secs(10);
    while daemon.policies.decide(b"changes.test", Requester::User(0)).await.sts.is_some() {
        assert!(Instant::now() < until, "mode none does not replace");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cached_answer_stands_while_dns_is_down() {
    let world = World::new().await;
    world.domain("down.test", true, &["mx"]);
    world.sts("down.test", "1", &document("enforce", "mx.down.test", 10 * DAY));
    let daemon = world.daemon(0);
    assert_eq!(daemon.level("down.test").await, PolicyAnswer::Secure);
    for name in ["down.test", "mx.down.test", "_25._tcp.mx.down.test", "_mta-sts.down.test"] {
        world.dns.change().fault(name, Some(dns::Fault::ServFail));
    }
    assert_eq!(daemon.level("down.test").await, PolicyAnswer::Secure);
    // Another port is another verdict, and nothing is known of it.
    assert!(daemon.level("down.test:587").await == PolicyAnswer::Temp);
    daemon.end().await;
}

/// Mail that was deferred because DNS failed as a whole does not go out without its policy when DNS is back.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_failed_with_all_of_dns_is_asked_with_the_next_answer() {
    let world = World::new().await;
    world.domain("back.test", false, &["mx"]);
    world.sts("back.test", "1", &document("enforce", "mx.back.test", DAY));
    world.dns.change().outage(Some(dns::Fault::ServFail));
    let daemon = world.daemon(0);
    assert!(daemon.level("back.test").await == PolicyAnswer::Temp);
    world.dns.change().outage(None);
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        match daemon.level("back.test").await {
            PolicyAnswer::Temp => assert!(Instant::now() < until, "does not heal"),
            level => break assert_eq!(level, PolicyAnswer::Secure),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_history_outlives_a_restart() {
    let world = World::new().await;
    world.domain("asked.test", false, &["mx"]);
    world.sts("asked.test", "1", &document("testing", "mx.asked.test", DAY));
    let daemon = world.daemon(0);
    let now = Clock::default().seconds();
    daemon.level("asked.test").await;
    daemon.end().await;
    let daemon = world.daemon(5000);
    let found = daemon.history.policy_at("asked.test", now + 1);
    assert!(found.asked && matches!(found.in_force, PolicyInForce::Sts { mode: Mode::Testing, .. }), "{found:?}");
    daemon.end().await;
}

/// A store that could not be opened at the start is read twice: first its copy, later the store itself.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_loaded_twice_is_there_once() {
    let world = World::new().await;
    world.domain("kept.test", false, &["mx"]);
    world.sts("kept.test", "1", &document("enforce", "mx.kept.test", DAY));
    let daemon = world.daemon(0);
    assert_eq!(daemon.level("kept.test").await, PolicyAnswer::Secure);
    // A document that is refused is kept too, for reports.
    world.sts("kept.test", "2", "version: STSv1\r\nmode: enforce\r\nmx: a b\r\nmax_age: 86400\r\n");
    let hop = NextHop::parse(b"kept.test").unwrap();
    assert!(daemon.policies.refresh(&hop).await.unwrap().unwrap().failure.is_some());
    let counts = daemon.policies.counts();
    daemon.end().await;
    let daemon = world.daemon(0);
    assert_eq!(daemon.policies.counts().sts_octets, counts.sts_octets);
    daemon.policies.load().unwrap();
    let again = daemon.policies.counts();
    assert_eq!((again.domains, again.policies, again.sts_octets), (1, 1, counts.sts_octets));
    assert_eq!(daemon.level("kept.test").await, PolicyAnswer::Secure);
    daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_misbehave_hold_up_themselves_alone() {
    let world = World::new().await;
    world.domain("plain.test", false, &["mx"]);
    world.domain("hang.test", false, &["mx"]);
    world.sts("hang.test", "1", "");
    world.site("hang.test", None, Answer::Hang);
    let mut daemon = world.daemon(0);
    let path = world.folder.path().join("socket");
    daemon.listen(ListenAddress::Unix(path.clone()), PostfixSection::default()).await;
    let connect = async || UnixStream::connect(&path).await.unwrap();
    // Half a request, an endless pipeline that is never read, a first look-up that takes its time.
    let mut half = connect().await;
    half.write_all(b"17:policy pl").await.unwrap();
    let deaf = connect().await;
    while deaf.try_write(&b"17:policy plain.test,".repeat(200)).is_ok() {
        tokio::task::yield_now().await;
    }
    let mut waiting = connect().await;
    waiting.write_all(b"16:policy hang.test,17:policy plain.test,").await.unwrap();
    let mut idle = Vec::new();
    for _ in 0..300 {
        idle.push(connect().await);
    }
    let mut quick = connect().await;
    let began = Instant::now();
    assert_eq!(ask(&mut quick, "policy plain.test").await, "NOTFOUND ");
    assert!(began.elapsed() < Duration::from_millis(500));
    half.write_all(b"ain.test,").await.unwrap();
    assert_eq!(reply(&mut half).await, "NOTFOUND ");
    assert_eq!(reply(&mut waiting).await, "NOTFOUND ");
    assert_eq!(reply(&mut waiting).await, "NOTFOUND ");
    for stream in &mut idle {
        assert_eq!(ask(stream, "policy plain.test").await, "NOTFOUND ");
    }
    // Too long for a next hop: read and answered. No netstring: answered and closed.
    let mut long = connect().await;
    for size in [10_000, 12_000, 12_001, 200_000] {
        assert_eq!(ask(&mut long, &format!("policy {}", "a".repeat(size - 7))).await, "NOTFOUND ", "{size}");
    }
    assert_eq!(ask(&mut long, "policy plain.test").await, "NOTFOUND ");
    for bad in ["GET / HTTP/1.1\r\n\r\n", "99999999:", "17:policy plain.test;", ":", "1000001:"] {
        let mut stream = connect().await;
        stream.write_all(bad.as_bytes()).await.unwrap();
        assert!(reply(&mut stream).await.starts_with("PERM "), "{bad}");
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
    }
    // Many at once, in one write: as many answers, in order.
    let mut pipeline = connect().await;
    pipeline.write_all(&b"17:policy plain.test,5:a b c,".repeat(1000)).await.unwrap();
    for _ in 0..1000 {
        assert_eq!(reply(&mut pipeline).await, "NOTFOUND ");
        assert!(reply(&mut pipeline).await.starts_with("PERM "));
    }
    drop(deaf);
    daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_explained() {
    let mut world = World::new().await;
    world.config.postfix.version = Some(PostfixVersion::new(3, 10));
    world.domain("told.test", true, &["mx1", "mx2"]);
    world.sts("told.test", "20260101", &document("enforce", "mx1.told.test", 10 * DAY));
    world.dns.change().tlsa("mx1.told.test", 1, 1, 1, &DIGEST);
    let daemon = world.daemon(0);
    let told = server::explain(&daemon.policies, "told.test", Default_::May).await;
    let text = told.to_string();
    for want in [
        "policy         OK secure match=mx1.told.test servername=hostname\n",
        "exim           mode=enforce dane=no mx=\"mx1.told.test\"\n",
        "- MX of told.test [signed]: 2 records, for 60 s\n    0 mx1.told.test\n    10 mx2.told.test\n",
        "- TLSA of mx1.told.test [signed]: at _25._tcp.mx1.told.test, none usable\n",
        ": unusable: usages 0 and 1 are not for SMTP",
        "- TLSA of mx2.told.test: none: there is none\n",
        "- TXT of _mta-sts.told.test [signed]: a policy with id 20260101\n    v=STSv1; id=20260101;\n",
        "    mode: enforce\n",
        "- MX host mx1.told.test: allowed by mx: mx1.told.test\n",
        "- MX host mx2.told.test: allowed by no mx pattern",
    ] {
        assert!(text.contains(want), "missing {want:?} in\n{text}");
    }
    let told = server::explain(&daemon.policies, ".told.test", Default_::May).await;
    assert_eq!(told.answers["policy"], "NOTFOUND ");
    daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_an_answer_explained_has_not_asked() {
    let world = World::new().await;
    world.domain("told.test", false, &["mx1"]);
    world.sts("told.test", "1", &document("enforce", "mx1.told.test", 10 * DAY));
    world.domain("asked.test", false, &["mx1"]);
    world.sts("asked.test", "1", &document("enforce", "mx1.asked.test", 10 * DAY));
    let daemon = world.daemon(0);
    let explain = async |daemon: &Daemon, name: &str| {
        let told = server::explain(&daemon.policies, name, Default_::May).await;
        let want = format!("OK secure match=mx1.{name} servername=hostname");
        assert_eq!(told.answers["policy"], want);
    };
    let now = Clock::default().seconds();
    // No mail is held to it, while it looks and when it is known.
    for _ in 0..2 {
        explain(&daemon, "told.test").await;
        assert!(!daemon.history.policy_at("told.test", Clock::default().seconds()).asked);
    }
    assert_eq!(world.hosts.requests("told.test"), 1);
    // Who asks then is noted; so is who asks while another has it explained.
    assert_eq!(daemon.level("told.test").await, PolicyAnswer::Secure);
    assert!(daemon.history.policy_at("told.test", Clock::default().seconds()).asked);
    world.dns.change().fault("_mta-sts.asked.test", Some(dns::Fault::Late(Duration::from_millis(300))));
    let (_, level) = tokio::join!(explain(&daemon, "asked.test"), daemon.level("asked.test"));
    assert_eq!(level, PolicyAnswer::Secure);
    assert!(daemon.history.policy_at("asked.test", Clock::default().seconds()).asked);
    daemon.end().await;
    // Nor is it an asking that goes on: ten minutes later, and 25 after the mail.
    let daemon = world.daemon(600);
    explain(&daemon, "told.test").await;
    explain(&daemon, "told.test").await;
    assert!(daemon.history.policy_at("told.test", now + 600).asked);
    assert!(!daemon.history.policy_at("told.test", now + 1500).asked);
    daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_administrator_looks_again_and_forgets() {
    let world = World::new().await;
    world.domain("told.test", true, &["mx1"]);
    world.sts("told.test", "1", &document("enforce", "mx1.told.test", 10 * DAY));
    world.site("told.test", None, Answer::Status(500));
    let daemon = world.daemon(0);
    let hop = NextHop::parse(b"told.test").unwrap();
    assert!(daemon.policies.policy_status(&hop).is_none());
    assert_eq!(daemon.level("told.test").await, PolicyAnswer::OwnLevel);
    assert_eq!(daemon.policies.policy_status(&hop).unwrap().failure.unwrap().reason, "http-status-500");
    // It backs off, but for who is told to look.
    world.site("told.test", None, Answer::Document(document("enforce", "mx1.told.test", 10 * DAY)));
    let found = daemon.policies.refresh(&hop).await.unwrap().unwrap();
    assert_eq!((found.answer.as_str(), found.failure), ("secure", None));
    assert_eq!(found.sts.unwrap().document.len(), 4);
    assert_eq!(daemon.level("told.test").await, PolicyAnswer::Secure);
    let asked = world.dns.zone().asked("told.test", RecordType::MX);
    // A changed document under the same id, and a DANE verdict that still holds: both are asked for again.
    world.site("told.test", None, Answer::Document(document("testing", "mx1.told.test", 10 * DAY)));
    tlsa(&mut world.dns.change(), "mx1.told.test");
    let found = daemon.policies.refresh(&hop).await.unwrap().unwrap();
    assert_eq!((found.answer.as_str(), found.sts.unwrap().mode), ("dane-only", Mode::Testing));
    assert_eq!(world.dns.zone().asked("told.test", RecordType::MX), asked + 1);
    assert_eq!(daemon.level("told.test").await, PolicyAnswer::DaneOnly);
    // What cannot be had anew stays.
    world.site("told.test", None, Answer::Close);
    world.dns.change().fault("told.test", Some(dns::Fault::ServFail));
    let found = daemon.policies.refresh(&hop).await.unwrap().unwrap();
    assert_eq!((found.answer.as_str(), found.sts.unwrap().mode), ("dane-only", Mode::Testing));
    assert_eq!(daemon.level("told.test").await, PolicyAnswer::DaneOnly);
    // Forgotten: as if it had never been asked about.
    assert_eq!(daemon.policies.purge(Some("told.test")).await, Ok(1));
    assert_eq!(daemon.policies.purge(Some("told.test")).await, Ok(0));
    assert!(daemon.level("told.test").await == PolicyAnswer::Temp);
    daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn overrides_go_before_what_is_published() {
    let mut world = World::new().await;
    let rule = |domain: &str, answer: Option<&str>, skip: Option<OverrideSkip>| OverrideSection {
        domain: domain.into(),
        answer: answer.map(str::to_owned),
        skip,
        none: answer.is_none() && skip.is_none(),
    };
    world.config.policy.overrides = vec![
        rule("fixed.test", Some("encrypt ciphers=high"), None),
        rule("none.test", None, None),
        rule("nodane.test", None, Some(OverrideSkip::Dane)),
        rule("nosts.test", None, Some(OverrideSkip::Sts)),
        rule(".below.test", Some("may"), None),
    ];
    for name in ["fixed.test", "none.test", "nodane.test", "nosts.test", "a.below.test", "below.test"] {
        world.domain(name, true, &["mx1"]);
        world.sts(name, "1", &document("enforce", &format!("mx1.{name}"), 10 * DAY));
        // DANE that is broken: whoever looks at it can only say that nothing is known.
        if !matches!(name, "nosts.test" | "below.test") {
            world.dns.change().fault(name, Some(dns::Fault::ServFail));
        }
    }
    let mut daemon = world.daemon(0);
    let at = daemon.listen(ListenAddress::Inet((Ipv4Addr::LOCALHOST, 0).into()), PostfixSection::default()).await;
    let mut tcp = TcpStream::connect(at).await.unwrap();
    for (key, want) in [
        ("fixed.test", "OK encrypt ciphers=high"),
        ("[fixed.test]:587", "OK encrypt ciphers=high"),
        ("none.test", "NOTFOUND "),
        ("nodane.test", "OK secure match=mx1.nodane.test servername=hostname"),
        ("nosts.test", "NOTFOUND "),
        ("a.below.test", "OK may"),
        ("below.test", "OK secure match=mx1.below.test servername=hostname"),
    ] {
        for _ in 0..2 {
            assert_eq!(ask(&mut tcp, &format!("policy {key}")).await, want, "{key}");
        }
    }
    for quiet in ["fixed.test", "none.test", "nosts.test", "a.below.test"] {
        assert_eq!(world.dns.zone().asked(&format!("_mta-sts.{quiet}"), RecordType::TXT), 0, "{quiet}");
        assert_eq!(
            daemon.history.policy_at(quiet, Clock::default().seconds()).in_force,
            PolicyInForce::None,
            "{quiet}"
        );
    }
    assert_eq!(world.dns.zone().asked("fixed.test", RecordType::MX), 0);
    let table = server::export_table(&daemon.policies, Default_::May);
    let table: Vec<String> = table.into_iter().map(|(key, answer)| format!("{key} {answer}")).collect();
    assert_eq!(
        table,
        [
            ".below.test may",
            "[fixed.test]:587 encrypt ciphers=high",
            "a.below.test may",
            "below.test secure match=mx1.below.test servername=hostname",
            "fixed.test encrypt ciphers=high",
            "nodane.test secure match=mx1.nodane.test servername=hostname",
        ]
    );
    let because = server::explain(&daemon.policies, "fixed.test", Default_::May).await.because;
    assert_eq!(because, "the configuration says so ([[policy.override]])");
    daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn verdicts_outlive_a_restart_and_serve_for_a_day_while_dns_fails() {
    let world = World::new().await;
    for name in ["dane.test", "none.test", "none-sts.test"] {
        world.domain(name, true, &["mx1"]);
    }
    tlsa(&mut world.dns.change(), "mx1.dane.test");
    world.sts("none-sts.test", "1", &document("enforce", "mx1.none-sts.test", 10 * DAY));
    let names = [
        ("dane.test", PolicyAnswer::DaneOnly),
        ("none.test", PolicyAnswer::OwnLevel),
        ("none-sts.test", PolicyAnswer::Secure),
    ];
    let daemon = world.daemon(0);
    for (name, level) in &names {
        assert_eq!(daemon.level(name).await, *level, "{name}");
    }
    daemon.end().await;
    // Within the TTL nothing is asked again.
    let asked = |name: &str| world.dns.zone().asked(name, RecordType::MX);
    let daemon = world.daemon(10);
    for (name, level) in &names {
        assert_eq!(daemon.level(name).await, *level, "{name}");
        assert_eq!(asked(name), 1, "{name}");
    }
    daemon.end().await;
    for (name, _) in &names {
        world.dns.change().fault(name, Some(dns::Fault::ServFail));
    }
    // Past the TTL the last verdict serves, whatever it was.
    let daemon = world.daemon(DAY - 60);
    assert_eq!(daemon.level("dane.test").await, PolicyAnswer::DaneOnly);
    assert_eq!(daemon.level("none.test").await, PolicyAnswer::OwnLevel);
    assert_eq!(daemon.level("none-sts.test").await, PolicyAnswer::Secure);
    assert!(asked("dane.test") > 1);
    daemon.end().await;
    let daemon = world.daemon(3 * DAY);
    for (name, _) in &names {
        assert!(daemon.level(name).await == PolicyAnswer::Temp, "{name}");
    }
    daemon.end().await;
    // What was forgotten stays so.
    world.dns.change().fault("dane.test", None);
    let daemon = world.daemon(0);
    assert_eq!(daemon.level("dane.test").await, PolicyAnswer::DaneOnly);
    // Verdicts that have ended are kept: nothing is deleted soon after a start.
    assert_eq!(daemon.policies.purge(None).await, Ok(3));
    daemon.end().await;
    world.dns.change().fault("dane.test", Some(dns::Fault::ServFail));
    let daemon = world.daemon(0);
    assert!(daemon.level("dane.test").await == PolicyAnswer::Temp);
    daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_delivery_brings_the_newer_policy() {
    let world = World::new().await;
    world.domain("moved.test", false, &["mx1", "mx2"]);
    world.sts("moved.test", "1", &document("enforce", "mx1.moved.test", 10 * DAY));
    let daemon = world.daemon(0);
    assert_eq!(daemon.level("moved.test").await, PolicyAnswer::Secure);
    daemon.end().await;
    world.site("moved.test", None, Answer::Document(document("enforce", "mx2.moved.test", 10 * DAY)));
    world.dns.change().txt("_mta-sts.moved.test", "v=STSv1; id=2;");
    // The record holds for its TTL: nothing is asked within it without a hint, and within a minute not even with one.
    let asked = || world.dns.zone().asked("_mta-sts.moved.test", RecordType::TXT);
    let daemon = world.daemon(30);
    daemon.policies.recheck_after_failure("moved.test");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(asked(), 1);
    daemon.end().await;
    let daemon = world.daemon(100);
    for _ in 0..100 {
        daemon.policies.recheck_after_failure("moved.test");
        daemon.policies.recheck_after_failure("never-asked.test");
    }
    let hop = NextHop::parse(b"moved.test").unwrap();
    let until = Instant::now() + Duration::from_secs(20);
    while daemon.policies.policy_status(&hop).unwrap().sts.unwrap().mx != ["mx2.moved.test"] {
        assert!(Instant::now() < until);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(asked(), 2);
    assert_eq!(world.dns.zone().asked("_mta-sts.never-asked.test", RecordType::TXT), 0);
    daemon.end().await;
}

/// What broken DNS at one MX host, and records that nobody should publish, once did to a whole domain.
#[tokio::test(flavor = "multi_thread")]
async fn a_failure_at_one_mx_host_is_that_hosts() {
    let mut world = World::new().await;
    world.config.postfix.version = Some(PostfixVersion::new(3, 7));
    let servfail = Some(dns::Fault::ServFail);
    for (name, signed, mode) in [
        ("undefended.test", false, ""),
        ("dead-backup.test", true, "enforce"),
        ("testing.test", false, "testing"),
        ("narrowed.test", true, "enforce"),
    ] {
        world.domain(name, signed, &["mx1", "mx2"]);
        world.dns.change().cut(&format!("mx1.{name}"), name == "narrowed.test");
        if !mode.is_empty() {
            world.sts(name, "1", &document(mode, &format!("*.{name}"), 10 * DAY));
        }
        let broken = if name == "narrowed.test" { "_25._tcp.mx2." } else { "mx2." };
        world.dns.change().fault(&format!("{broken}{name}"), servfail);
    }
    for name in ["dataless.test", "dataless-beside.test"] {
        world.domain(name, true, &["mx1"]);
        world.dns.change().tlsa(&format!("mx1.{name}"), 3, 1, 1, &[]);
    }
    tlsa(&mut world.dns.change(), "mx1.dataless-beside.test");
    let mut daemon = world.daemon(0);
    let newer = PostfixSection { version: Some(PostfixVersion::new(3, 10)), ..PostfixSection::default() };
    let at = daemon.listen(ListenAddress::Inet((Ipv4Addr::LOCALHOST, 0).into()), newer).await;
    let mut stream = TcpStream::connect(at).await.unwrap();
    for (request, want) in [
        ("policy@encrypt undefended.test", "NOTFOUND "),
        ("policy undefended.test", "NOTFOUND "),
        ("policy dead-backup.test", "OK secure match=.dead-backup.test servername=hostname"),
        ("policy-tlsrpt testing.test", "OK may policy_type=sts policy_domain=testing.test "),
        ("policy narrowed.test", "OK secure match=mx1.narrowed.test servername=hostname"),
        ("policy dataless.test", "OK encrypt"),
        ("policy@dane-only dataless.test", "TEMP "),
        ("policy dataless-beside.test", "TEMP "),
        ("policy@fingerprint dataless-beside.test", "NOTFOUND "),
        ("policy@secrue dead-backup.test", "NOTFOUND "),
    ] {
        let answer = ask(&mut stream, request).await;
        assert!(answer.starts_with(want) && (want.ends_with(' ') || answer == want), "{request}: {answer}");
    }
    daemon.end().await;
}
