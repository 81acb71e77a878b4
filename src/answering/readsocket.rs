//! Answers Exim's `${readsocket{…}{policy DOMAIN\n}…}`, on unix-domain and TCP sockets.
//!
//! Takes: one request a connection, `policy NEXTHOP`, ended by a line end or by the client's half-close; a next hop is
//! written as for Postfix: `domain`, `domain:port`, `[host]`, `[host]:port`. Gives: one line, and closes:
//!
//! - `mode=enforce dane=no mx="mx.example.com,*.example.net"`: an MTA-STS policy is enforced
//! - `mode=testing dane=no mx="…"`: one in testing mode; delivered as without
//! - `mode=none dane=no`: nothing was published
//! - `mode=none dane=try`: DANE where a host has TLSA records, as Exim does by itself
//! - `mode=none dane=require`: TLS on every host, by TLSA records or else by the host's certificate
//! - `mode=defer cause="…"`: not known; the mail is to wait. Whatever else a router reads means the same.
//!
//! What was answered is noted as the policy in force, as for Postfix.
//!
//! Exim's event action can tell a failed TLS session as well, `failed TIME ID HOST IP PORT DOMAIN TEXT`, for its log leaves
//! some out: the answer, `noted`, comes when it is committed, or `lost` after [`COMMIT_TIMEOUT`].
//! Limits: [`MAX_REQUEST`] octets; [`REQUEST_TIMEOUT`] for a client to ask, `[policy] answer_budget` and a second for the
//! answer, [`REPLY_TIMEOUT`] for the client to take it. A slow client holds up itself alone.
//! When it fails: text that is no request gets `mode=defer`; who does not ask in time is closed without an answer, and
//! an empty answer defers too.
//! Not here: what is decided (`policy`), the routers and the transport that hold Exim to it (`packaging/exim.example`).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use crate::answering::connections::{ClientConnection, ClientConnections};
use crate::answering::listener::{Listener, Stream};
use crate::answering::policy::decision::{Basis, Decision, EximAnswer, kind_for_exim};
use crate::answering::policy::policies::Policies;
use crate::base::exim_event::{EventReply, EximEvent};
use crate::base::requester::Requester;
use crate::metrics::answers::{AnswerKind, AnswerMetrics};
use crate::metrics::{Metrics, MtaProtocol};

/// The longest request, in octets: longer than any domain name can be.
pub const MAX_REQUEST: usize = 1100;

/// How long a client may take to ask. Exim asks at once.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a client may take to read its answer. Exim's own limit for the whole is 5 s if not told otherwise.
pub const REPLY_TIMEOUT: Duration = Duration::from_secs(5);

/// How much behind a request is passed over, in bytes.
const MAX_TRAILING_BYTES: u64 = 64 * 1024;

/// How long connections may go on when the daemon ends.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// How much of a cause is told, in characters: it becomes a line of Exim's log.
const MAX_CAUSE_CHARS: usize = 200;

/// How long a failed session may wait for its commit: Exim waits with it. A commit is due 250 ms after its first line.
pub const COMMIT_TIMEOUT: Duration = Duration::from_secs(2);

/// What stands before a next hop.
const POLICY_COMMAND: &[u8] = b"policy ";

/// What stands before a failed session.
const FAILED_COMMAND: &[u8] = b"failed ";

/// Serves everyone who connects, until `shutdown` turns true.
pub async fn serve(
    listener: Listener,
    policies: Arc<Policies>,
    events: mpsc::Sender<EximEvent>,
    clients: ClientConnections,
    metrics: Metrics,
    mut shutdown: watch::Receiver<bool>,
) {
    let service = Arc::new(ReadsocketServer {
        policies,
        events,
        failures_received: metrics.counter("exim_told"),
        failures_lost: metrics.counter("exim_told_lost"),
        answers: metrics.answers(MtaProtocol::Readsocket),
        requests: metrics.counter("readsocket_requests"),
        malformed: metrics.counter("readsocket_malformed"),
        slow_clients: metrics.counter("readsocket_slow_clients"),
    });
    let connections_total = metrics.counter("readsocket_connections");
    let begin = |stream, client| {
        connections_total.fetch_add(1, Ordering::Relaxed);
        let service = Arc::clone(&service);
        async move {
            match stream {
                Stream::Unix(stream) => service.serve_connection(stream, client).await,
                Stream::Tcp(stream) => service.serve_connection(stream, client).await,
            }
        }
    };
    let mut connections = listener.accept_all("readsocket", &metrics, &clients, &mut shutdown, begin).await;
    // Whoever is not answered by then reads an empty answer, and its mail waits.
    let _ = timeout(DRAIN_TIMEOUT, async { while connections.join_next().await.is_some() {} }).await;
    connections.shutdown().await;
}

/// What was read so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadsocketRequest<'a> {
    /// No whole request yet.
    Partial,
    /// The policy of a next hop is asked for. What stands there may be none.
    Policy(&'a [u8]),
    /// A TLS session has failed: what stands behind the command.
    Failed(&'a [u8]),
    /// Longer than any next hop.
    TooLong,
    /// Something else.
    Malformed,
}

/// Reads what a client has sent; `ended`: it sends no more. What stands behind the first line is not looked at.
pub fn parse_request(bytes: &[u8], ended: bool) -> ReadsocketRequest<'_> {
    let line = match bytes.iter().position(|b| *b == b'\n') {
        Some(end) => &bytes[..end],
        None if bytes.len() >= MAX_REQUEST && bytes.starts_with(POLICY_COMMAND) => return ReadsocketRequest::TooLong,
        None if !ended && bytes.len() < MAX_REQUEST => return ReadsocketRequest::Partial,
        None => bytes,
    };
    if let Some(failure) = line.strip_prefix(FAILED_COMMAND) {
        return ReadsocketRequest::Failed(failure);
    }
    match line.strip_prefix(POLICY_COMMAND).map(<[u8]>::trim_ascii) {
        Some(key) if !key.is_empty() => ReadsocketRequest::Policy(key),
        _ => ReadsocketRequest::Malformed,
    }
}

/// A decision in the words that a router reads, without a line end. Names are those of `policy`, letters, digits and
/// `-_.*` alone: nothing in them ends the quotes.
pub fn format_answer(decision: &Decision) -> String {
    let published = match &decision.basis {
        Basis::Published(published) => published,
        // In Postfix's words: those that ask for nothing are the same here, the others must not be lost.
        Basis::Override(answer) => {
            return match answer.split([' ', ',']).next() {
                Some("none" | "may") => NO_POLICY.into(),
                _ => format_defer("the answer that is configured for this domain is Postfix's alone"),
            };
        }
    };
    let patterns = |mode| match &decision.sts {
        Some(policy) => format_sts(mode, &policy.document(&decision.domain).mx),
        // Every enforced or testing decision has its policy.
        None => format_defer("the policy is missing"),
    };
    match published.facts(decision.sts.as_ref().map(|policy| policy.mode)).for_exim() {
        EximAnswer::Enforce => patterns("enforce"),
        EximAnswer::Testing => patterns("testing"),
        EximAnswer::NoPolicy => NO_POLICY.into(),
        EximAnswer::TryDane => "mode=none dane=try".into(),
        EximAnswer::RequireDane => "mode=none dane=require".into(),
        EximAnswer::Defer => format_defer(published.cause()),
    }
}

const NO_POLICY: &str = "mode=none dane=no";

fn format_sts(mode: &str, mx: &[String]) -> String {
    format!("mode={mode} dane=no mx=\"{}\"", mx.join(","))
}

/// Causes come from DNS: printable, one line, short, and nothing that Exim reads as the end of the value.
fn format_defer(cause: &str) -> String {
    let plain = |c: char| if (c.is_ascii_graphic() || c == ' ') && c != '"' && c != '\\' { c } else { '?' };
    let cause: String = cause.chars().take(MAX_CAUSE_CHARS).map(plain).collect();
    format!("mode=defer cause=\"{cause}\"")
}

struct ReadsocketServer {
    policies: Arc<Policies>,
    events: mpsc::Sender<EximEvent>,
    failures_received: Arc<AtomicU64>,
    failures_lost: Arc<AtomicU64>,
    answers: Arc<AnswerMetrics>,
    requests: Arc<AtomicU64>,
    malformed: Arc<AtomicU64>,
    slow_clients: Arc<AtomicU64>,
}

impl ReadsocketServer {
    async fn serve_connection<S: AsyncRead + AsyncWrite + Unpin>(&self, mut stream: S, client: ClientConnection) {
        let (bytes, ended) = match timeout(REQUEST_TIMEOUT, read_request(&mut stream)).await {
            Ok(Ok(read)) => read,
            Ok(Err(_)) => return,
            Err(_) => return self.count_slow_client(),
        };
        if bytes.is_empty() {
            // It only looked whether somebody answers.
            return;
        }
        client.go_on();
        let mut line = self.reply_line(parse_request(&bytes, ended), client.requester()).await;
        line.push('\n');
        client.wait_for_client(line.capacity());
        let taken = timeout(REPLY_TIMEOUT, async {
            stream.write_all(line.as_bytes()).await?;
            stream.shutdown().await?;
            // What was sent behind the request is passed over: closing on it would be an error at the client's end.
            tokio::io::copy(&mut (&mut stream).take(MAX_TRAILING_BYTES), &mut tokio::io::sink()).await
        });
        if taken.await.is_err() {
            self.count_slow_client();
        }
    }

    async fn reply_line(&self, request: ReadsocketRequest<'_>, requester: Requester) -> String {
        self.requests.fetch_add(1, Ordering::Relaxed);
        match request {
            ReadsocketRequest::Policy(key) => {
                let since = Instant::now();
                let decision = self.policies.decide(key, requester).await;
                self.answers.add_waited(kind_for_exim(decision.facts()), since.elapsed());
                format_answer(&decision)
            }
            ReadsocketRequest::Failed(text) => self.forward_failure(text).await.into(),
            // No name is so long, and what is no name has no policy.
            ReadsocketRequest::TooLong => {
                self.answers.add_waited(AnswerKind::None, Duration::ZERO);
                NO_POLICY.into()
            }
            ReadsocketRequest::Partial | ReadsocketRequest::Malformed => {
                self.malformed.fetch_add(1, Ordering::Relaxed);
                format_defer("the request is not: policy DOMAIN")
            }
        }
    }

    /// Hands a failed session to the counting, and waits until it is kept.
    async fn forward_failure(&self, text: &[u8]) -> &'static str {
        let (reply, noted) = oneshot::channel();
        // A queue that is full is that of a store that does not write: Exim is not to wait for that.
        let sent = self.events.try_send(EximEvent { text: text.to_vec(), reply });
        let replied = if sent.is_ok() { timeout(COMMIT_TIMEOUT, noted).await.ok().and_then(Result::ok) } else { None };
        if replied == Some(EventReply::Malformed) {
            self.malformed.fetch_add(1, Ordering::Relaxed);
            return "malformed";
        }
        self.failures_received.fetch_add(1, Ordering::Relaxed);
        if replied == Some(EventReply::Committed) {
            return "noted";
        }
        self.failures_lost.fetch_add(1, Ordering::Relaxed);
        "lost"
    }

    fn count_slow_client(&self) {
        self.slow_clients.fetch_add(1, Ordering::Relaxed);
    }
}

/// Reads until there is a request or the client sends no more; and whether it sends no more.
async fn read_request<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<(Vec<u8>, bool)> {
    let mut bytes = Vec::new();
    loop {
        let room = MAX_REQUEST - bytes.len();
        let ended = (&mut *stream).take(room as u64).read_buf(&mut bytes).await? == 0;
        if ended || parse_request(&bytes, false) != ReadsocketRequest::Partial {
            return Ok((bytes, ended));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use tokio::net::{UnixListener, UnixStream};
    use tokio::task::JoinSet;
    use tokio::time::Instant;

    use super::*;
    use crate::answering::policy::dane::coverage::Coverage;
    use crate::answering::policy::decision::{DatalessTlsa, Published};
    use crate::answering::policy::history::PolicyHistory;
    use crate::answering::policy::sts::document;
    use crate::answering::policy::sts::policy::StsPolicy;
    use crate::base::clock::Clock;
    use crate::config::Config;
    use crate::net::dns::Resolver;
    use crate::net::https::HttpsClient;
    use crate::store::Store;
    use crate::store::embedded::EmbeddedStore;

    /// A daemon without DNS: names that are none have no policy at once, others are not known within 300 ms.
    struct Daemon {
        folder: tempfile::TempDir,
        history: Arc<PolicyHistory>,
        metrics: Metrics,
        events: mpsc::Receiver<EximEvent>,
        stop: watch::Sender<bool>,
        tasks: JoinSet<()>,
    }

    fn start() -> Daemon {
        let folder = tempfile::tempdir().unwrap();
        let (clock, metrics) = (Clock::default(), Metrics::default());
        let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open(&folder.path().join("store"), clock).unwrap().store);
        let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let config = format!(
            "[policy]\nanswer_budget = \"300ms\"\n[resolver]\naddress = \"{}\"\n",
            silent.local_addr().unwrap()
        );
        let config: Config = crate::config::parse_toml(&config, Path::new("F")).unwrap();
        let resolver = Resolver::new(config.resolver.address).unwrap();
        let client = HttpsClient::new(resolver.clone(), &config.closed_network.exceptions()).unwrap();
        let history = Arc::new(PolicyHistory::open(&*store, clock, metrics.clone()).unwrap());
        let policies = Policies::new(&config, resolver, client, store, Arc::clone(&history), clock, metrics.clone());
        policies.load().unwrap();
        let listener = UnixListener::bind(folder.path().join("exim")).unwrap();
        let (stop, shutdown) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let (sender, events) = mpsc::channel(1);
        let clients = ClientConnections::new(metrics.clone());
        tasks.spawn(serve(Listener::Unix(listener), policies, sender, clients, metrics.clone(), shutdown));
        // Nobody answers there for as long as the test runs.
        tasks.spawn(async move {
            let _silent = silent;
            std::future::pending::<()>().await
        });
        Daemon { folder, history, metrics, events, stop, tasks }
    }

    impl Daemon {
        fn path(&self) -> PathBuf {
            self.folder.path().join("exim")
        }

        async fn connect(&self) -> UnixStream {
            UnixStream::connect(self.path()).await.unwrap()
        }

        /// As Exim asks: all at once, half-close, read to the end.
        async fn ask(&self, request: &[u8]) -> String {
            let mut stream = self.connect().await;
            stream.write_all(request).await.unwrap();
            stream.shutdown().await.unwrap();
            rest(stream).await
        }

        fn count(&self, name: &'static str) -> u64 {
            self.metrics.counters().get(name).copied().unwrap_or_default()
        }
    }

    async fn rest(mut stream: UnixStream) -> String {
        let mut answer = String::new();
        timeout(Duration::from_secs(20), stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        answer
    }

    #[tokio::test]
    async fn one_line_and_the_end() {
        let daemon = start();
        for request in ["policy [192.0.2.1]\n", "policy [192.0.2.1]", "policy  [192.0.2.1] \r\n", "policy .a.b\nmore\n"]
        {
            assert_eq!(daemon.ask(request.as_bytes()).await, "mode=none dane=no\n", "{request:?}");
        }
        assert_eq!(daemon.ask(&[b"policy ".as_slice(), &[b'a'; 10_000]].concat()).await, "mode=none dane=no\n");
        for request in ["policy\n", "policy \n", "\n", "POLICY a.b\n", "mode=none", "\u{0}\u{ff}"] {
            let want = "mode=defer cause=\"the request is not: policy DOMAIN\"\n";
            assert_eq!(daemon.ask(request.as_bytes()).await, want, "{request:?}");
        }
        assert_eq!(daemon.ask(&[b'x'; 5000]).await, "mode=defer cause=\"the request is not: policy DOMAIN\"\n");
        assert_eq!(daemon.ask(b"").await, "");
        let counts =
            ["readsocket_connections", "readsocket_requests", "readsocket_malformed", "readsocket_slow_clients"];
        assert_eq!(counts.map(|name| daemon.count(name)), [13, 12, 7, 0]);
    }

    #[tokio::test]
    async fn a_failed_session_is_noted_when_it_is_committed_or_said_to_be_lost() {
        let failed = "failed 1795311595 1xUwYd-0005p2-2C mx.a.test 192.0.2.1 25 a.test TLS session: (gnutls_handshake): timed out";
        let mut daemon = start();
        let mut events = std::mem::replace(&mut daemon.events, mpsc::channel(1).1);
        let counting = async {
            let event = events.recv().await.unwrap();
            assert_eq!(event.text, &failed.as_bytes()[7..]);
            tokio::time::sleep(Duration::from_millis(50)).await;
            event.reply.send(EventReply::Committed).unwrap();
            events
        };
        let (answer, mut events) = tokio::join!(daemon.ask(failed.as_bytes()), counting);
        assert_eq!(answer, "noted\n");
        let counting = async {
            events.recv().await.unwrap().reply.send(EventReply::Malformed).unwrap();
            events
        };
        let (answer, events) = tokio::join!(daemon.ask(b"failed \n"), counting);
        assert_eq!(answer, "malformed\n");
        // Nobody takes it: Exim goes on all the same.
        drop(events);
        assert_eq!(daemon.ask(failed.as_bytes()).await, "lost\n");
        assert_eq!(["exim_told", "exim_told_lost"].map(|name| daemon.count(name)), [2, 1]);
    }

    #[tokio::test]
    async fn a_client_that_does_not_half_close_is_answered_and_closed() {
        let daemon = start();
        let mut stream = daemon.connect().await;
        for part in ["pol", "icy [192.0", ".2.1]", "\n"] {
            stream.write_all(part.as_bytes()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(rest(stream).await, "mode=none dane=no\n");
    }

    #[tokio::test]
    async fn what_is_not_known_defers_within_the_budget_and_is_not_noted() {
        let daemon = start();
        let begin = Instant::now();
        let answer = daemon.ask(b"policy example.com\n").await;
        assert!(answer.starts_with("mode=defer cause=\"") && answer.ends_with("\"\n"), "{answer}");
        assert!(begin.elapsed() < Duration::from_millis(1500), "{:?}", begin.elapsed());
        assert!(daemon.history.is_empty());
    }

    #[tokio::test]
    async fn slow_clients_are_closed_and_hold_up_nobody() {
        let daemon = start();
        let mut slow = Vec::new();
        for number in 0..200 {
            let mut stream = daemon.connect().await;
            stream.write_all(&b"policy example.com"[..number % 18]).await.unwrap();
            slow.push(stream);
        }
        let begin = Instant::now();
        assert_eq!(daemon.ask(b"policy [192.0.2.1]\n").await, "mode=none dane=no\n");
        assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
        for stream in slow {
            assert_eq!(rest(stream).await, "");
        }
        assert!(
            (REQUEST_TIMEOUT..REQUEST_TIMEOUT + Duration::from_secs(3)).contains(&begin.elapsed()),
            "{:?}",
            begin.elapsed()
        );
        assert_eq!(daemon.count("readsocket_slow_clients"), 200);
    }

    #[tokio::test]
    async fn many_at_once() {
        let daemon = Arc::new(start());
        let mut asking = JoinSet::new();
        for _ in 0..500 {
            let daemon = Arc::clone(&daemon);
            asking.spawn(async move { daemon.ask(b"policy [192.0.2.1]\n").await });
        }
        while let Some(answer) = asking.join_next().await {
            assert_eq!(answer.unwrap(), "mode=none dane=no\n");
        }
        assert_eq!(daemon.count("readsocket_requests"), 500);
    }

    #[tokio::test]
    async fn at_the_end_who_has_not_asked_is_closed() {
        let mut daemon = start();
        let idle = daemon.connect().await;
        assert_eq!(daemon.ask(b"policy [192.0.2.1]\n").await, "mode=none dane=no\n");
        daemon.stop.send_replace(true);
        assert_eq!(rest(idle).await, "");
        timeout(DRAIN_TIMEOUT * 2, daemon.tasks.join_next()).await.unwrap().unwrap().unwrap();
    }

    fn decided(coverage: Coverage, cause: &str, document: &str) -> Decision {
        let sts = document::parse(document.as_bytes()).ok();
        let sts = sts.map(|document| Arc::new(StsPolicy::new("example.com", "1", &document, 0)));
        let published = Published::new(coverage, DatalessTlsa::Absent, cause, Vec::new());
        Decision::for_tests("example.com", published, sts)
    }

    const DOCUMENT: &str = "version: STSv1\nmode: enforce\nmx: mx.example.com\nmx: *.example.net\nmax_age: 604800\n";

    #[test]
    fn each_decision_in_words() {
        let patterns = "mx=\"mx.example.com,*.example.net\"";
        let testing = DOCUMENT.replace("enforce", "testing");
        let long = "x".repeat(1000);
        for (coverage, cause, document, want) in [
            (Coverage::NoTlsa, "", DOCUMENT, format!("mode=enforce dane=no {patterns}")),
            (Coverage::SomeFailed, "", DOCUMENT, format!("mode=enforce dane=no {patterns}")),
            (Coverage::NoTlsa, "", &testing, format!("mode=testing dane=no {patterns}")),
            (Coverage::NoTlsa, "", "", "mode=none dane=no".into()),
            (Coverage::UnsignedMx, "", "", "mode=none dane=try".into()),
            (Coverage::AllFailed, "", "", "mode=none dane=try".into()),
            (Coverage::AllHosts, "", DOCUMENT, "mode=none dane=require".into()),
            (
                Coverage::MxFailed,
                "a \"b\" \\N\nmode=none \u{e9}",
                DOCUMENT,
                "mode=defer cause=\"a ?b? ?N?mode=none ?\"".into(),
            ),
            (Coverage::MxFailed, &long, "", format!("mode=defer cause=\"{}\"", "x".repeat(MAX_CAUSE_CHARS))),
        ] {
            assert_eq!(format_answer(&decided(coverage, cause, document)), want);
        }
    }

    #[test]
    fn a_request_is_a_line_or_all_there_is() {
        let long = [b"policy ".as_slice(), &[b'a'; MAX_REQUEST]].concat();
        for (octets, open, ended) in [
            (b"".as_slice(), ReadsocketRequest::Partial, ReadsocketRequest::Malformed),
            (b"policy a.b", ReadsocketRequest::Partial, ReadsocketRequest::Policy(b"a.b")),
            (b"policy a.b\n", ReadsocketRequest::Policy(b"a.b"), ReadsocketRequest::Policy(b"a.b")),
            (b"policy a.b\r\nx", ReadsocketRequest::Policy(b"a.b"), ReadsocketRequest::Policy(b"a.b")),
            (b"policies a.b\n", ReadsocketRequest::Malformed, ReadsocketRequest::Malformed),
            (&long, ReadsocketRequest::TooLong, ReadsocketRequest::TooLong),
            (&long[7..], ReadsocketRequest::Malformed, ReadsocketRequest::Malformed),
        ] {
            assert_eq!(parse_request(octets, false), open, "{octets:?}");
            assert_eq!(parse_request(octets, true), ended, "{octets:?}");
        }
    }

    /// A model of Exim's `${extract{KEY}{TEXT}}`: `key=value` or `key="value"`, spaces between.
    fn extract(text: &str, key: &str) -> Option<String> {
        let mut rest = text.trim_start();
        while let Some((name, after)) = rest.split_once('=') {
            let (value, behind) = match after.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"')?,
                None => after.split_once(' ').unwrap_or((after, "")),
            };
            if name.trim() == key {
                return Some(value.to_owned());
            }
            rest = behind.trim_start();
        }
        None
    }

    proptest::proptest! {
        #[test]
        fn any_octets_in_any_pieces(octets in proptest::collection::vec(proptest::num::u8::ANY, 0..1300), cut in 0..1300usize) {
            let mut octets = octets;
            if cut % 2 == 0 {
                octets.splice(0..0, b"policy ".iter().copied());
            }
            let cut = cut.min(octets.len());
            let early = parse_request(&octets[..cut], false);
            if early != ReadsocketRequest::Partial && cut < MAX_REQUEST {
                assert_eq!(early, parse_request(&octets, false));
            }
            assert_ne!(parse_request(&octets, true), ReadsocketRequest::Partial);
            if let ReadsocketRequest::Policy(key) = parse_request(&octets, true) {
                assert!(!key.is_empty() && !key.contains(&b'\n'));
            }
        }

        #[test]
        fn served_text_cannot_break_out(
            cause in ".{0,300}",
            mx in proptest::collection::vec("(\\*\\.)?[A-Za-z0-9]([a-z0-9_-]{0,9}[a-z0-9])?\\.[a-z]{2,4}\\.?", 0..5),
            lines in proptest::collection::vec("[ -~\u{e9}]{0,30}", 0..5),
            mode in 0..2,
        ) {
            let told = format_answer(&decided(Coverage::MxFailed, &cause, ""));
            assert_eq!(extract(&told, "mode").as_deref(), Some("defer"));
            assert!(!told.contains('\n') && told.is_ascii());
            let mode = ["enforce", "testing"][mode as usize];
            let mx: String = mx.iter().map(|mx| format!("mx: {mx}\n")).collect();
            let lines: String = lines.iter().map(|line| format!("x: {line}\n")).collect();
            let text = format!("version: STSv1\nmode: {mode}\nmax_age: 1\nmx: a.example\n{mx}{lines}");
            let decision = decided(Coverage::NoTlsa, "", &text);
            let told = format_answer(&decision);
            assert_eq!(extract(&told, "mode").as_deref(), Some(mode));
            assert_eq!(extract(&told, "dane").as_deref(), Some("no"));
            let patterns = extract(&told, "mx").unwrap();
            assert_eq!(patterns.split(',').collect::<Vec<_>>(), decision.sts.unwrap().document("example.com").mx);
        }
    }
}
