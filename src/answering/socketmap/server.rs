//! Answers Postfix over socketmap(5), on unix-domain and TCP sockets.
//!
//! Takes: requests `MAP KEY` as netstrings, any number on a connection, pipelined or not. Gives: their replies in
//! order; what can be answered at once goes out in one write.
//! A client that keeps the protocol may be idle for ten minutes: Postfix holds connections over the time that a dead MX
//! host takes. A slow client, or one that does not read, holds up itself alone.
//! Limits: `netstring::MAX_REQUEST` bytes a request (longer ones get NOTFOUND); [`WRITE_TIMEOUT`] for a client to take
//! what was answered; connections, and what they hold, as `connections` allows.
//! When it fails: an unknown map gets PERM; text that is not a netstring gets PERM and the connection ends, for nothing
//! behind it can be found.
//! Not here: what is answered (`policy`), how it is worded (`reply`).

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::watch;

use crate::answering::connections::{ClientConnection, ClientConnections};
use crate::answering::listener::{Listener, Stream};
use crate::answering::policy::admin::explain::Explanation;
use crate::answering::policy::decision::{Decision, PostfixTraits, kind_for_postfix};
use crate::answering::policy::policies::Policies;
use crate::answering::policy::throttle::Throttle;
use crate::answering::readsocket;
use crate::answering::socketmap::netstring::{self, Frame};
use crate::answering::socketmap::reply::{self, MapName, ReplyFormat};
use crate::config::{PostfixLevel, PostfixSection};
use crate::metrics::answers::{AnswerKind, AnswerMetrics, CountsByKind};
use crate::metrics::{Metrics, MtaProtocol};

/// How much is read at once, in bytes: some eighty requests.
const READ_CHUNK: usize = 4096;

/// How much of a reply batch waits for a client to read it, in bytes, before no more requests of it are taken: what was
/// read at once is mostly answered at once, and a client that does not read costs little.
const MAX_UNSENT_BYTES: usize = 8 * 1024;

/// How long a client may take to read what was answered. Postfix reads at once.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// The capacity that an idle connection keeps, in bytes.
const IDLE_CAPACITY: usize = 1024;

/// How long connections may go on with what they are at when the daemon ends.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// Serves everyone who connects, until `shutdown` turns true. `postfix` is what is known of who asks: its own level
/// without a policy, where the map's name does not say another (`policy@encrypt`), and whether its version knows the
/// attributes of `policy-tlsrpt`; where not, it is not given any.
pub async fn serve(
    listener: Listener,
    policies: Arc<Policies>,
    postfix: PostfixSection,
    clients: ClientConnections,
    metrics: Metrics,
    mut shutdown: watch::Receiver<bool>,
) {
    let service = Arc::new(SocketmapServer {
        policies,
        postfix: PostfixTraits::of(&postfix),
        pending_answers: AtomicUsize::new(0),
        answers: metrics.answers(MtaProtocol::Socketmap),
        requests: metrics.counter("socketmap_requests"),
        malformed: metrics.counter("socketmap_malformed"),
        unknown_maps: metrics.counter("socketmap_unknown_map"),
        slow_clients: metrics.counter("socketmap_slow_clients"),
        throttle: Throttle::default(),
        metrics: metrics.clone(),
    });
    let connections_total = metrics.counter("socketmap_connections");
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
    let mut connections = listener.accept_all("socketmap", &metrics, &clients, &mut shutdown, begin).await;
    // A warm answer is given without a pause between reading and writing: only those that wait for one are waited for.
    let until = tokio::time::Instant::now() + DRAIN_TIMEOUT;
    while service.pending_answers.load(Ordering::Relaxed) > 0 && tokio::time::Instant::now() < until {
        tokio::time::sleep(DRAIN_TIMEOUT / 100).await;
    }
    connections.shutdown().await;
}

/// What would be answered to a next hop, in Postfix's two wordings and in Exim's, and why; Postfix at this own level, and
/// at those of services that have asked with another one.
pub async fn explain(policies: &Arc<Policies>, key: &str, own_level: PostfixLevel) -> Explanation {
    let traits = policies.postfix();
    policies
        .explain(key, |decision| {
            let mut answers = BTreeMap::from([("exim".to_owned(), readsocket::format_answer(decision))]);
            for (wording, map) in ReplyFormat::ALL {
                answers.insert(map.to_owned(), reply::format_reply(wording, decision, own_level, traits));
                for level in policies.levels() {
                    let name = format!("{map}@{}", level.name());
                    answers.insert(name, reply::format_reply(wording, decision, level, traits));
                }
            }
            answers
        })
        .await
}

/// Every next hop that has a policy, with the answer in the words that every Postfix knows: a table for a day without
/// the daemon. A testing policy has none, for it asks for nothing.
pub fn export_table(policies: &Policies, own_level: PostfixLevel) -> Vec<(String, String)> {
    let traits = policies.postfix();
    let render = |decision: &Decision| {
        reply::format_reply(ReplyFormat::Policy, decision, own_level, traits).strip_prefix("OK ").map(str::to_owned)
    };
    policies.export_table(render)
}

struct SocketmapServer {
    policies: Arc<Policies>,
    postfix: PostfixTraits,
    /// Connections that wait for an answer to be made.
    pending_answers: AtomicUsize,
    answers: Arc<AnswerMetrics>,
    requests: Arc<AtomicU64>,
    malformed: Arc<AtomicU64>,
    unknown_maps: Arc<AtomicU64>,
    slow_clients: Arc<AtomicU64>,
    throttle: Throttle,
    metrics: Metrics,
}

/// Whether a connection goes on.
enum NextStep {
    Continue,
    Close,
}

impl SocketmapServer {
    async fn serve_connection<S: AsyncRead + AsyncWrite + Unpin>(&self, mut stream: S, client: ClientConnection) {
        // What was read and is no whole request yet; mostly empty.
        let mut input: Vec<u8> = Vec::new();
        let mut out: Vec<u8> = Vec::new();
        // Octets of an over-long request still to pass over.
        let mut skip = 0;
        loop {
            client.wait_for_client(if input.is_empty() { 0 } else { input.capacity() });
            match poll_fn(|cx| poll_read(&mut stream, &mut input, &mut skip, cx)).await {
                Ok(true) => client.go_on(),
                Ok(false) | Err(_) => return,
            }
            let mut writer = ReplyWriter { stream: &mut stream, client: &client, out: &mut out };
            let next = self.answer_requests(&mut input, &mut skip, &mut writer).await;
            if matches!(&next, Err(error) if error.kind() == io::ErrorKind::TimedOut) {
                self.slow_clients.fetch_add(1, Ordering::Relaxed);
            }
            if matches!(next, Err(_) | Ok(NextStep::Close)) {
                return;
            }
            release_capacity(&mut input);
            release_capacity(&mut out);
        }
    }

    /// Answers all whole requests in `input`, and leaves there what is no whole one.
    async fn answer_requests<S: AsyncWrite + Unpin>(
        &self,
        input: &mut Vec<u8>,
        skip: &mut usize,
        writer: &mut ReplyWriter<'_, S>,
    ) -> io::Result<NextStep> {
        let mut done = 0;
        let mut answered = 0;
        let mut ready = CountsByKind::default();
        let next = loop {
            match netstring::decode(&input[done..]) {
                Frame::Partial => break NextStep::Continue,
                Frame::Whole { data, used } => {
                    answered += 1;
                    if let Err((map, hop)) = self.answer_from_cache(data, writer.out, &mut ready) {
                        let since = Instant::now();
                        let _pending = PendingGuard::new(&self.pending_answers);
                        // What is ready does not wait for what is not.
                        writer.flush(input.capacity()).await?;
                        let (level, requester) = (self.service_level(map), writer.client.requester());
                        let decision = self.policies.decide_at(hop, level, requester).await;
                        let kind = kind_for_postfix(decision.facts(), self.own_level(map), self.postfix);
                        self.answers.add_waited(kind, since.elapsed());
                        writer.out.extend_from_slice(&self.render_frame(map, &decision));
                        writer.flush(input.capacity()).await?;
                    }
                    done += used;
                    if writer.out.len() >= MAX_UNSENT_BYTES {
                        writer.flush(input.capacity()).await?;
                    }
                }
                Frame::TooLong { header, data } => {
                    answered += 1;
                    netstring::encode(b"NOTFOUND ", writer.out);
                    ready[AnswerKind::None as usize] += 1;
                    let here = (input.len() - done).min(header + data + 1);
                    done += here;
                    *skip = header + data + 1 - here;
                    if *skip > 0 {
                        break NextStep::Continue;
                    }
                }
                Frame::Malformed => {
                    self.malformed.fetch_add(1, Ordering::Relaxed);
                    netstring::encode(b"PERM the request is not a valid netstring", writer.out);
                    break NextStep::Close;
                }
            }
        };
        input.drain(..done);
        self.requests.fetch_add(answered, Ordering::Relaxed);
        self.answers.add_ready(&ready);
        writer.flush(input.capacity()).await?;
        Ok(next)
    }

    /// Appends the reply, if it is known, and adds it to `ready`; else says for which map and next hop it must be made.
    fn answer_from_cache<'a>(
        &self,
        data: &'a [u8],
        out: &mut Vec<u8>,
        ready: &mut CountsByKind,
    ) -> Result<(), (MapName, &'a [u8])> {
        let space = data.iter().position(|b| *b == b' ').unwrap_or(data.len());
        let (name, key) = (&data[..space], data.get(space + 1..).unwrap_or_default());
        let Some(mut map) = MapName::parse(name) else {
            self.unknown_maps.fetch_add(1, Ordering::Relaxed);
            self.log_unknown_map(name);
            netstring::encode(b"PERM no such map; there are policy and policy-tlsrpt", out);
            return Ok(());
        };
        if map.own_level == Some(PostfixLevel::Unknown) {
            self.unknown_maps.fetch_add(1, Ordering::Relaxed);
            self.log_unknown_level(name);
        }
        // An attribute that the asking Postfix does not know makes it defer the mail.
        if !self.postfix.attributes {
            map.wording = ReplyFormat::Policy;
        }
        let own_level = self.own_level(map);
        let slot = own_level as u8 * 2 + u8::from(map.wording == ReplyFormat::PolicyTlsrpt);
        let level = self.service_level(map);
        let facts = self
            .policies
            .write_reply(key, level, slot, |decision| self.render_frame(map, decision), out)
            .ok_or((map, key))?;
        ready[kind_for_postfix(facts, own_level, self.postfix) as usize] += 1;
        Ok(())
    }

    /// That of the service that asks.
    fn own_level(&self, map: MapName) -> PostfixLevel {
        map.own_level.unwrap_or(self.postfix.own_level)
    }

    /// The same, where it is not that of main.cf.
    fn service_level(&self, map: MapName) -> Option<PostfixLevel> {
        map.own_level.filter(|level| *level != self.postfix.own_level)
    }

    /// A whole frame.
    fn render_frame(&self, map: MapName, decision: &Decision) -> Box<[u8]> {
        let own_level = self.own_level(map);
        if decision.facts().is_some_and(|facts| facts.own_level_is_weaker_at_some_host(own_level, self.postfix)) {
            self.log(
                "worse-hosts",
                format!(
                    "policy of {}: the own level ({}) holds, although MX hosts of lesser preference have TLSA records: no \
                     answer means DANE at these and the own level at the others",
                    decision.domain,
                    own_level.name()
                ),
            );
        }
        let mut frame = Vec::new();
        let reply = reply::format_reply(map.wording, decision, own_level, self.postfix);
        netstring::encode(reply.as_bytes(), &mut frame);
        frame.into_boxed_slice()
    }

    fn log_unknown_map(&self, name: &[u8]) {
        let name = printable(name);
        self.log(
            "unknown-map",
            format!(
                "socketmap: no such map: {name}; there are policy and policy-tlsrpt, and with the level of the service that \
                 asks policy@LEVEL and policy-tlsrpt@LEVEL; the mail is deferred"
            ),
        );
    }

    fn log_unknown_level(&self, name: &[u8]) {
        let name = printable(name);
        let levels = PostfixLevel::ALL.map(|(_, name)| name).join(", ");
        self.log(
            "unknown-level",
            format!(
                "socketmap: map {name}: unknown level; there are {levels}; no policy is answered, the own level holds"
            ),
        );
    }

    /// At most once a minute for each kind.
    fn log(&self, kind: &'static str, line: String) {
        let clock = self.policies.clock();
        if self.throttle.permits(kind, clock.seconds()) {
            self.metrics.log_error(clock, line);
        }
    }
}

/// A client's text on one line, short.
fn printable(text: &[u8]) -> String {
    text.iter().take(100).flat_map(|byte| byte.escape_ascii()).map(char::from).collect()
}

/// Counts who waits for an answer that is being made.
struct PendingGuard<'a>(&'a AtomicUsize);

impl<'a> PendingGuard<'a> {
    fn new(count: &'a AtomicUsize) -> PendingGuard<'a> {
        count.fetch_add(1, Ordering::Relaxed);
        PendingGuard(count)
    }
}

impl Drop for PendingGuard<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Reads what is there into `input`; false where the client is gone. The buffer is on the stack, so that an idle
/// connection has none.
fn poll_read<S: AsyncRead + Unpin>(
    stream: &mut S,
    input: &mut Vec<u8>,
    skip: &mut usize,
    cx: &mut Context<'_>,
) -> Poll<io::Result<bool>> {
    let mut chunk = [const { MaybeUninit::uninit() }; READ_CHUNK];
    let mut chunk = ReadBuf::uninit(&mut chunk);
    ready!(Pin::new(stream).poll_read(cx, &mut chunk))?;
    let read = chunk.filled();
    let passed = read.len().min(*skip);
    *skip -= passed;
    input.extend_from_slice(&read[passed..]);
    Poll::Ready(Ok(!read.is_empty()))
}

/// The replies to a client that are not written yet.
struct ReplyWriter<'a, S> {
    stream: &'a mut S,
    client: &'a ClientConnection,
    out: &'a mut Vec<u8>,
}

impl<S: AsyncWrite + Unpin> ReplyWriter<'_, S> {
    /// Writes all of them. `input`: how many bytes the connection holds besides. A client that does not read them in time
    /// is an error of the kind `TimedOut`.
    async fn flush(&mut self, input: usize) -> io::Result<()> {
        let mut written = 0;
        while written < self.out.len() {
            // Nearly always all of it is taken at once, and no timer is needed.
            let part = &self.out[written..];
            let attempt = |cx: &mut Context<'_>| Poll::Ready(Pin::new(&mut *self.stream).poll_write(cx, part));
            match poll_fn(attempt).await {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(taken) => written += taken?,
                Poll::Pending => {
                    self.client.wait_for_client(self.out.capacity() + input);
                    let rest = self.stream.write_all(&self.out[written..]);
                    tokio::time::timeout(WRITE_TIMEOUT, rest).await.map_err(|_| io::ErrorKind::TimedOut)??;
                    self.client.go_on();
                    written = self.out.len();
                }
            }
        }
        self.out.clear();
        Ok(())
    }
}

fn release_capacity(buffer: &mut Vec<u8>) {
    if buffer.is_empty() && buffer.capacity() > IDLE_CAPACITY {
        *buffer = Vec::new();
    }
}
