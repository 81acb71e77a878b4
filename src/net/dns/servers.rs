//! The nameservers that are asked: which one, how often, and with or without EDNS.
//!
//! Takes: a question. Gives: the first answer that says something (NOERROR or NXDOMAIN), from whom, and whether the query
//! had EDNS. The servers are asked in their order, those that were silent lately last; each again where it is silent.
//! EDNS is left out where a server answers FORMERR, NOTIMP or BADVERS to it, or only to a query without it (RFC 6891
//! §6.2.2, §7); that is remembered for each server, so that it costs one time-out.
//! Limits: the caller's deadline; [`MAX_SERVERS`] servers; two queries or three to each.
//! When it fails: a [`QueryFailure`] that names the server.
//! Not here: what is asked, CNAMEs (`Resolver`), sending (`exchange`).

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

use crate::net::dns::exchange::{ExchangeError, exchange};
use crate::net::dns::message::{AnswerMessage, NOERROR, NXDOMAIN, Question};

/// How many servers are asked: the C library uses three (resolv.conf(5), MAXNS).
pub(crate) const MAX_SERVERS: usize = 8;

/// How long it is remembered that a server does not answer queries with EDNS.
const EDNS_RECHECK: Duration = Duration::from_secs(60);

/// For how long a server that was silent is asked after the others.
const DOWN_FOR: Duration = Duration::from_secs(30);

/// How long the answer to a query with EDNS is waited for after the one to a query without: a server that was busy sends
/// both at once.
const EDNS_GRACE: Duration = Duration::from_millis(250);

/// The shortest time after which the next query is sent.
const MIN_STEP: Duration = Duration::from_millis(400);

const FORMERR: u16 = 1;
const SERVFAIL: u16 = 2;
const NOTIMP: u16 = 4;
const BADVERS: u16 = 16;

/// The servers, and what is remembered of each.
pub(crate) struct Servers {
    list: Vec<Server>,
}

struct Server {
    address: SocketAddr,
    memory: Mutex<ServerMemory>,
}

struct ServerMemory {
    edns: EdnsSupport,
    /// It was silent; until then the others are asked first.
    down_until: Option<Instant>,
}

/// Whether a server answers queries with EDNS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EdnsSupport {
    Unknown,
    Confirmed,
    /// It does not; to be tried again at that time.
    Missing(Instant),
}

/// An answer that says something: its response code is NOERROR or NXDOMAIN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServerAnswer {
    pub(crate) message: AnswerMessage,
    /// Whether the query had EDNS: without, some resolvers validate nothing.
    pub(crate) edns: bool,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct QueryFailure {
    /// For people; names the server.
    pub(crate) cause: String,
    /// Whether it is this host that cannot ask.
    pub(crate) local: bool,
    /// How many queries were sent.
    pub(crate) queries: u32,
    /// The answer was SERVFAIL, with this extended error: what a resolver also says where DNSSEC fails.
    pub(crate) servfail: Option<ExtendedError>,
}

/// The extended error of an answer (RFC 8914), if it had one.
pub(crate) type ExtendedError = Option<u16>;

/// One query to one server that has ended.
struct Attempt {
    server: usize,
    edns: bool,
    /// Whether the server refused EDNS just before.
    edns_refused: bool,
    outcome: Result<AnswerMessage, ExchangeError>,
}

type RunningAttempt<'a> = Pin<Box<dyn Future<Output = Attempt> + Send + 'a>>;

impl Servers {
    /// These servers, in the order in which they are asked; no more than [`MAX_SERVERS`].
    pub(crate) fn new(addresses: impl IntoIterator<Item = SocketAddr>) -> Servers {
        let server = |address| Server {
            address,
            memory: Mutex::new(ServerMemory { edns: EdnsSupport::Unknown, down_until: None }),
        };
        Servers { list: addresses.into_iter().take(MAX_SERVERS).map(server).collect() }
    }

    /// Their addresses, in the order of the configuration.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.list.iter().map(|server| server.address)
    }

    /// Asks until one of them says something, or until `deadline`.
    pub(crate) async fn ask(&self, question: &Question, deadline: Instant) -> Result<ServerAnswer, QueryFailure> {
        let began = Instant::now();
        let mut round = Round::new(self, deadline.saturating_duration_since(began));
        let mut deadline = deadline;
        let mut running: Vec<RunningAttempt<'_>> = Vec::new();
        let mut next_turn = began;
        // The answer to a query without EDNS, while the same server may yet answer one with EDNS.
        let mut plain: Option<(usize, AnswerMessage)> = None;
        loop {
            let may_ask = plain.is_none() && round.has_turn();
            if running.is_empty() && !may_ask {
                break;
            }
            tokio::select! {
                biased;
                attempt = first_done(&mut running) => match round.note(attempt) {
                    Some((server, answer)) if !answer.edns && plain.is_none() && round.waits_with_edns(server) => {
                        plain = Some((server, answer.message));
                        deadline = deadline.min(Instant::now() + EDNS_GRACE);
                    }
                    Some((_, answer)) => {
                        round.note_silent_servers(began.elapsed());
                        return Ok(answer);
                    }
                    // There is no point in waiting for the turn of the next.
                    None if running.is_empty() => next_turn = Instant::now(),
                    None => {}
                },
                () = sleep_until(next_turn), if may_ask => {
                    if let Some((server, edns)) = round.next_turn() {
                        running.push(Box::pin(self.attempt(server, question, edns)));
                    }
                    next_turn = Instant::now() + round.step;
                }
                () = sleep_until(deadline) => break,
            }
        }
        match plain {
            // What it says with EDNS counts.
            Some((server, message)) if !round.codes.iter().any(|(other, ..)| *other == server) => {
                self.list[server].note_plain_only();
                Ok(ServerAnswer { message, edns: false })
            }
            _ => Err(round.failure(began)),
        }
    }

    /// One query; once more without EDNS where the server refuses that.
    async fn attempt(&self, server: usize, question: &Question, edns: bool) -> Attempt {
        let address = self.list[server].address;
        let outcome = exchange(address, question, edns).await;
        let edns_refused = edns && outcome.as_ref().is_ok_and(|message| refuses_edns(message.rcode));
        if edns_refused {
            let outcome = exchange(address, question, false).await;
            return Attempt { server, edns: false, edns_refused, outcome };
        }
        Attempt { server, edns, edns_refused, outcome }
    }
}

/// The turns of one question: who is asked next, and what came of it.
struct Round<'a> {
    servers: &'a Servers,
    order: Vec<usize>,
    turn: usize,
    turns: usize,
    /// Time from one query to the next while nobody answers.
    step: Duration,
    /// Of each server: the queries sent with EDNS and without, and whether one of them came back.
    asked: Vec<AskedServer>,
    failures: Vec<(usize, ExchangeError)>,
    /// The response codes that are failures, with the extended error.
    codes: Vec<(usize, u16, ExtendedError)>,
}

#[derive(Clone, Copy, Default)]
struct AskedServer {
    with_edns: u32,
    without: u32,
    /// Queries with EDNS that have not ended.
    edns_open: u32,
    ended: bool,
}

impl<'a> Round<'a> {
    fn new(servers: &'a Servers, time: Duration) -> Round<'a> {
        let now = Instant::now();
        let mut order: Vec<usize> = (0..servers.list.len()).collect();
        // Stable: those that are up stay in the order of the configuration.
        order.sort_by_key(|&index| servers.list[index].is_down(now));
        let turns = (2 * order.len()).max(3);
        let step = time / u32::try_from(turns).unwrap_or(u32::MAX);
        Round {
            servers,
            turn: 0,
            turns,
            step: step.max(MIN_STEP),
            asked: vec![AskedServer::default(); order.len()],
            order,
            failures: Vec::new(),
            codes: Vec::new(),
        }
    }

    fn has_turn(&self) -> bool {
        (self.turn..self.turns).any(|turn| !self.asked[self.server_at(turn)].ended)
    }

    fn server_at(&self, turn: usize) -> usize {
        self.order[turn % self.order.len()]
    }

    /// The next server to ask, and whether with EDNS.
    fn next_turn(&mut self) -> Option<(usize, bool)> {
        while self.turn < self.turns {
            let server = self.server_at(self.turn);
            self.turn += 1;
            let asked = &mut self.asked[server];
            if asked.ended {
                continue;
            }
            let edns = self.servers.list[server].sends_edns(asked.with_edns + asked.without);
            if edns {
                asked.with_edns += 1;
                asked.edns_open += 1;
            } else {
                asked.without += 1;
            }
            return Some((server, edns));
        }
        None
    }

    /// Whether a server may yet answer a query with EDNS.
    fn waits_with_edns(&self, server: usize) -> bool {
        self.asked[server].edns_open > 0
    }

    /// Remembers what came of a query; gives the answer, if it says something.
    fn note(&mut self, attempt: Attempt) -> Option<(usize, ServerAnswer)> {
        let Attempt { server: index, edns, edns_refused, outcome } = attempt;
        let server = &self.servers.list[index];
        let asked = &mut self.asked[index];
        asked.ended = true;
        asked.edns_open -= u32::from(edns || edns_refused);
        let message = match outcome {
            Ok(message) => message,
            Err(error) => {
                if matches!(error, ExchangeError::Server(_)) {
                    server.note_silence();
                }
                self.failures.push((index, error));
                return None;
            }
        };
        server.memory.lock().down_until = None;
        if edns {
            server.memory.lock().edns = EdnsSupport::Confirmed;
        } else if edns_refused && !refuses_edns(message.rcode) {
            server.note_plain_only();
        }
        if matches!(message.rcode, NOERROR | NXDOMAIN) {
            return Some((index, ServerAnswer { message, edns }));
        }
        self.codes.push((index, message.rcode, message.extended_error));
        None
    }

    /// Remembers who was asked and is silent until now.
    fn note_silent_servers(&self, elapsed: Duration) {
        for (server, asked) in self.servers.list.iter().zip(&self.asked) {
            if !asked.ended && asked.with_edns + asked.without > 0 && elapsed >= self.step {
                server.note_silence();
            }
        }
    }

    /// Why nobody said anything.
    fn failure(&self, began: Instant) -> QueryFailure {
        let list = &self.servers.list;
        let elapsed = began.elapsed();
        self.note_silent_servers(elapsed);
        let queries = self.asked.iter().map(|asked| asked.with_edns + asked.without).sum();
        let local = |(_, error): &&(usize, ExchangeError)| matches!(error, ExchangeError::Local(_));
        if let Some((index, code, extended)) = self.codes.first() {
            let cause = format!("the resolver {} answered {}", list[*index].address, ResponseCodeText(*code));
            let servfail = (*code == SERVFAIL).then_some(*extended);
            return QueryFailure { cause, local: false, queries, servfail };
        }
        let silent = self.asked.iter().any(|asked| !asked.ended);
        match self.failures.iter().find(|failure| !local(failure)).or_else(|| self.failures.first()) {
            Some(failure @ (index, error)) if !silent || !local(&failure) => {
                let cause = format!("the resolver {}: {error}", list[*index].address);
                QueryFailure { cause, local: local(&failure), queries, servfail: None }
            }
            Some(_) | None => {
                let names: Vec<String> = list.iter().map(|server| server.address.to_string()).collect();
                let cause = format!("no answer from the resolver {} within {} s", names.join(", "), elapsed.as_secs());
                QueryFailure { cause, local: false, queries, servfail: None }
            }
        }
    }
}

impl Server {
    fn is_down(&self, now: Instant) -> bool {
        self.memory.lock().down_until.is_some_and(|until| now < until)
    }

    /// Whether the next query to it has EDNS, `before` queries for the same question being unanswered. The first query
    /// after a while finds out whether a server without EDNS has it by now.
    fn sends_edns(&self, before: u32) -> bool {
        let now = Instant::now();
        let mut memory = self.memory.lock();
        match (memory.edns, before) {
            (EdnsSupport::Missing(until), 0) if now >= until => {
                memory.edns = EdnsSupport::Missing(now + EDNS_RECHECK);
                true
            }
            (EdnsSupport::Missing(_), _) => false,
            (EdnsSupport::Confirmed, 0 | 1) | (EdnsSupport::Unknown, 0) => true,
            (EdnsSupport::Confirmed | EdnsSupport::Unknown, _) => false,
        }
    }

    /// It answered a query without EDNS, and none with it. One that was known to answer both has to do so twice.
    fn note_plain_only(&self) {
        let mut memory = self.memory.lock();
        memory.edns = match memory.edns {
            EdnsSupport::Confirmed => EdnsSupport::Unknown,
            EdnsSupport::Unknown | EdnsSupport::Missing(_) => EdnsSupport::Missing(Instant::now() + EDNS_RECHECK),
        };
    }

    fn note_silence(&self) {
        self.memory.lock().down_until = Some(Instant::now() + DOWN_FOR);
    }
}

/// The first of some futures that ends; it is removed. Of none: never.
async fn first_done<T>(running: &mut Vec<Pin<Box<dyn Future<Output = T> + Send + '_>>>) -> T {
    std::future::poll_fn(|context| {
        for index in 0..running.len() {
            if let Poll::Ready(value) = running[index].as_mut().poll(context) {
                drop(running.swap_remove(index));
                return Poll::Ready(value);
            }
        }
        Poll::Pending
    })
    .await
}

fn refuses_edns(rcode: u16) -> bool {
    matches!(rcode, FORMERR | NOTIMP | BADVERS)
}

/// A response code as people know it (RFC 6895 §2.3).
struct ResponseCodeText(u16);

impl fmt::Display for ResponseCodeText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            FORMERR => f.write_str("FORMERR"),
            SERVFAIL => f.write_str("SERVFAIL (DNSSEC validation, or its servers, failed)"),
            NOTIMP => f.write_str("NOTIMP"),
            5 => f.write_str("REFUSED"),
            BADVERS => f.write_str("BADVERS"),
            code => write!(f, "with the unknown response code {code}"),
        }
    }
}
