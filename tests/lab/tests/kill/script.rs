//! What the log of the test says, and what must be counted of it: the model that the daemon is held to.
//!
//! Takes: a seed, the places that mail goes to, the phase and the time of each line. Gives: lines, and a [`Ledger`] of
//! the counts that each line brings, worked out from the story that the line ends, never by parsing it.
//! The wording is that of real runs (`fixtures/postfix-*`); seven lines of ten are of other kinds (`parsers/benches/mix.rs`).
//! Some stories are slow: their sessions stay open over commits, kills, policy changes and midnight.
//! Not here: files (`log`), kills (`kill.rs`).

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use lab::world::SENDING;
use tlswarden::base::tlsrpt::{
    Day, Failure, Mode, Policy, PolicyType, ResultType, TallyKey, TallyResult, Trust, mx_matches,
};

use crate::random::SplitMix64;

#[path = "../../../../parsers/benches/mix.rs"]
#[allow(dead_code, missing_docs)]
mod mix;

/// How many stories run at a time.
const AT_ONCE: usize = 30;
/// How many smtp(8) processes there are, of each instance.
const PROCESSES: u64 = 40;
const INSTANCES: [&str; 2] = ["postfix/smtp", "postfix-out/smtp"];
/// How long the model trusts the daemon to remember a verification failure, in seconds; it does for an hour.
const REMEMBERED: i64 = 1900;

/// What a domain does over the phases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Enforces a policy that is a new one in each phase.
    Enforces,
    /// Goes from testing to enforce to none, and begins again.
    Moves,
    /// Enforces the same policy all the time.
    Stays,
    /// Has TLSA records, others in each phase.
    Rolls,
    /// Publishes nothing.
    Plain,
    /// Nobody asks about it.
    Unasked,
}

/// A mail domain.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub name: String,
    pub kind: Kind,
    number: usize,
}

/// What a domain publishes in a phase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Published {
    Nothing,
    Sts { id: String, mode: Mode, lines: Vec<String>, patterns: Vec<String> },
    Tlsa { digest: [u8; 32] },
}

/// All domains of the test.
pub(crate) fn places() -> Vec<Place> {
    let kinds = [
        ("enforces", "test", Kind::Enforces, 3),
        ("moves", "test", Kind::Moves, 4),
        ("stays", "test", Kind::Stays, 1),
        ("rolls", "example", Kind::Rolls, 2),
        ("plain", "test", Kind::Plain, 3),
        ("unasked", "test", Kind::Unasked, 3),
    ];
    let all =
        kinds.into_iter().flat_map(|(name, top, kind, n)| (0..n).map(move |i| (format!("{name}-{i}.{top}"), kind)));
    all.enumerate().map(|(number, (name, kind))| Place { name, kind, number }).collect()
}

impl Place {
    pub(crate) fn host(&self, label: &str) -> String {
        format!("{label}.{}", self.name)
    }

    pub(crate) fn published(&self, phase: usize) -> Published {
        let mode = match self.kind {
            Kind::Plain | Kind::Unasked => return Published::Nothing,
            Kind::Rolls => return Published::Tlsa { digest: [0xA0 + phase as u8; 32] },
            Kind::Enforces | Kind::Stays => Mode::Enforce,
            Kind::Moves => [Mode::Testing, Mode::Enforce, Mode::None][(self.number + phase) % 3],
        };
        let version = if self.kind == Kind::Stays { 0 } else { phase };
        let word = match mode {
            Mode::Enforce => "enforce",
            Mode::Testing => "testing",
            Mode::None => "none",
        };
        let patterns = vec![self.host("mx"), self.host("mx2")];
        let mut lines = vec!["version: STSv1".to_owned(), format!("mode: {word}")];
        lines.extend(patterns.iter().map(|p| format!("mx: {p}")));
        lines.push(format!("max_age: {}", max_age(version)));
        Published::Sts { id: format!("phase{version}"), mode, lines, patterns }
    }

    /// Whether an answer of the map `policy-tlsrpt` is that of the phase.
    pub(crate) fn answered(&self, phase: usize, answer: &str) -> bool {
        match self.published(phase) {
            Published::Nothing | Published::Sts { mode: Mode::None, .. } => answer == "NOTFOUND ",
            Published::Tlsa { .. } => answer == "OK dane-only",
            Published::Sts { mode, lines, .. } => {
                let level = if mode == Mode::Enforce { "OK secure " } else { "OK may " };
                let last = format!("{{ policy_string = {} }}", lines.last().expect("a document has lines"));
                answer.starts_with(level) && answer.contains(&last)
            }
        }
    }

    fn address(&self, label: &str) -> IpAddr {
        let last = 10 + 2 * self.number as u8 + u8::from(label == "mx2");
        IpAddr::from([203, 0, 113, last])
    }

    fn peer(&self, label: &str) -> String {
        format!("{}[{}]", self.host(label), self.address(label))
    }
}

fn max_age(version: usize) -> usize {
    604_800 + version
}

/// The counts that the lines up to an offset bring, in the order of the log.
#[derive(Default)]
pub(crate) struct Ledger(Vec<(u64, TallyKey)>);

impl Ledger {
    /// What must be counted once the log has been read up to `offset`.
    pub(crate) fn until(&self, offset: u64) -> impl Iterator<Item = (TallyKey, u64)> + '_ {
        self.0.iter().take_while(move |(end, _)| *end <= offset).map(|(_, tally)| (tally.clone(), 1))
    }
}

/// One session as its story has it.
#[derive(Clone)]
struct Session {
    host: String,
    address: Option<IpAddr>,
    trust: Option<Trust>,
    failure: Option<(ResultType, Option<&'static str>)>,
    /// The phase of its first line.
    began: usize,
}

/// One line to come.
struct Step {
    program: &'static str,
    pid: u64,
    text: String,
    begins: Option<usize>,
    ends: Vec<usize>,
    /// It tells that the second host's certificate is self-signed.
    tells_cause: bool,
}

/// A delivery that has begun.
struct Story {
    place: usize,
    process: (&'static str, u64),
    slow: bool,
    steps: VecDeque<Step>,
    sessions: Vec<Session>,
}

/// The log's author.
pub(crate) struct Script {
    random: SplitMix64,
    places: Arc<Vec<Place>>,
    stories: Vec<Story>,
    messages: u64,
    other: mix::MixedLog,
    other_lines: VecDeque<String>,
    /// By place: when a verification failure of the second host was logged.
    causes: BTreeMap<usize, i64>,
    /// Octets written.
    offset: u64,
    lines: u64,
}

impl Script {
    pub(crate) fn new(seed: u64, places: Arc<Vec<Place>>) -> Script {
        Script {
            random: SplitMix64(seed),
            places,
            stories: Vec::new(),
            messages: 0,
            other: mix::MixedLog::new(seed, mix::TimestampForm::Traditional),
            other_lines: VecDeque::new(),
            causes: BTreeMap::new(),
            offset: 0,
            lines: 0,
        }
    }

    /// Lines written.
    pub(crate) fn lines(&self) -> u64 {
        self.lines
    }

    /// Appends lines to `log`, as they are written at `now` in `phase`.
    pub(crate) fn write(&mut self, count: u64, now: i64, phase: usize, log: &mut Vec<u8>, ledger: &mut Ledger) {
        for _ in 0..count {
            if self.lines == 0 {
                self.begin_with_trust(now, phase, log, ledger);
            }
            if self.random.below(10) < 7 {
                let line = self.other_line();
                self.put(&line, now, phase, log);
                continue;
            }
            while self.stories.len() < AT_ONCE {
                let story = self.begin(now);
                self.stories.push(story);
            }
            let at = loop {
                let at = self.random.below(AT_ONCE as u64) as usize;
                if !self.stories[at].slow || self.random.below(60) == 0 {
                    break at;
                }
            };
            self.tell(at, now, phase, log, ledger);
        }
    }

    /// Appends the rest of every story.
    pub(crate) fn finish(&mut self, now: i64, phase: usize, log: &mut Vec<u8>, ledger: &mut Ledger) {
        while !self.stories.is_empty() {
            self.tell(0, now, phase, log, ledger);
        }
    }

    /// Both instances show first that they have trust anchors: without, `Untrusted` says nothing under a testing policy.
    fn begin_with_trust(&mut self, now: i64, phase: usize, log: &mut Vec<u8>, ledger: &mut Ledger) {
        for program in INSTANCES {
            let mut story = self.delivery(0, (program, 7));
            story.handshake("mx", Trust::Trusted, &self.places[0]);
            story.sent(1, "mx", &self.places[0], &self.messages);
            self.stories.push(story);
        }
        self.finish(now, phase, log, ledger);
    }

    fn delivery(&mut self, place: usize, process: (&'static str, u64)) -> Story {
        self.messages += 1;
        Story { place, process, slow: false, steps: VecDeque::new(), sessions: Vec::new() }
    }

    fn begin(&mut self, now: i64) -> Story {
        let place = self.random.below(self.places.len() as u64) as usize;
        let process = loop {
            let process = (INSTANCES[self.random.below(2) as usize], 40_000 + self.random.below(PROCESSES));
            if self.stories.iter().all(|other| other.process != process) {
                break process;
            }
        };
        let mut story = self.delivery(place, process);
        story.slow = self.random.below(5) == 0;
        let (at, number) = (&self.places[place], &self.messages);
        let id = queue_id(*number);
        let knows_cause = self.causes.get(&place).is_some_and(|then| now - then <= REMEMBERED);
        story.other("postfix/cleanup", 907, format!("{id}: message-id=<{number}@mta.example.net>"));
        story.active(&id);
        match self.random.below(13) {
            0..=3 => {
                story.handshake("mx", Trust::Verified, at);
                story.sent(1, "mx", at, number);
            }
            4 => {
                story.handshake("mx", Trust::Verified, at);
                story.sent(3, "mx", at, number);
            }
            5 => {
                story.handshake("mx2", Trust::Trusted, at);
                story.sent(2, "mx2", at, number);
            }
            6 => {
                story.handshake("mx", Trust::Untrusted, at);
                story.sent(1, "mx", at, number);
            }
            7 => {
                story.session("mx", Some(Trust::Trusted), at);
                story.sessions[0].failure = Some((ResultType::CertificateHostMismatch, None));
                let peer = at.peer("mx");
                story.says(
                    format!("server certificate verification failed for {peer}:25: num=62:hostname mismatch"),
                    Some(0),
                );
                story.established("mx", Trust::Trusted, at, None);
                story.deferred(2, "mx", "Server certificate not verified", at, number);
            }
            8 => {
                // The first host is left for the second.
                story.session("mx2", Some(Trust::Untrusted), at);
                story.sessions[0].failure = Some(SELF_SIGNED);
                let peer = at.peer("mx2");
                story.says(format!("certificate verification failed for {peer}:25: self-signed certificate"), Some(0));
                story.steps.back_mut().expect("just pushed").tells_cause = true;
                story.established("mx2", Trust::Untrusted, at, None);
                story.says(format!("{id}: Server certificate not verified"), None);
                story.handshake("mx", Trust::Verified, at);
                story.sent(2, "mx", at, number);
            }
            9 if knows_cause => {
                // A resumed session is not verified again: the cause is the one of before.
                story.session("mx2", Some(Trust::Untrusted), at);
                story.sessions[0].failure = Some(SELF_SIGNED);
                story.established("mx2", Trust::Untrusted, at, Some(0));
                story.deferred(1, "mx2", "Server certificate not verified", at, number);
            }
            10 => {
                story.session("mx", None, at);
                story.sessions[0].failure = Some((ResultType::ValidationFailure, Some("tls-handshake-failure")));
                let (peer, name) = (at.peer("mx"), &at.name);
                story.says(format!("SSL_connect error to {peer}:25: -1"), Some(0));
                story.says(
                    format!(
                        "TLSRPT: status=failure, domain={name}, receiving_mx={peer}, failure_type=validation_failure, \
                         failure_reason=tls-handshake-failure"
                    ),
                    None,
                );
                story.deferred(1, "mx", "Cannot start TLS: handshake failure", at, number);
            }
            11 => {
                // Two tries, each of several recipients: only the queue manager tells them apart.
                let reason = format!("TLS is required, but was not offered by host {}", at.peer("mx"));
                for attempt in 0..2 {
                    story.session("mx", None, at);
                    story.sessions[attempt].failure = Some((ResultType::StarttlsNotSupported, None));
                    story.deferred(3, "mx", &reason, at, number);
                    let first = story.steps.len() - 3;
                    story.steps[first].begins = Some(attempt);
                    if attempt == 0 {
                        story.active(&id);
                    }
                }
            }
            12 => {
                let (rogue, name) = (at.host("rogue"), &at.name);
                story.session("rogue", None, at);
                story.sessions[0].address = None;
                story.sessions[0].failure = Some((ResultType::ValidationFailure, Some(MISMATCH)));
                story.says(format!("warning: MX name '{rogue}' does not match STS MX pattern for '{name}'"), Some(0));
                story.handshake("mx", Trust::Verified, at);
                story.sent(1, "mx", at, number);
            }
            _ => {
                // No session of its own: a connection that is used again, and one that is never made.
                let peer = at.peer("mx");
                story.says(format!("Verified TLS connection reused to {peer}:25: {CIPHER}"), None);
                story.says(
                    format!(
                        "{id}: to=<user0@{}>, relay={peer}:25, conn_use=2, delay=0.11, delays=0.01/0/0.05/0.05, dsn=2.0.0, \
                         status=sent (250 2.0.0 Ok: queued as 4AB0CDEF12)",
                        at.name
                    ),
                    None,
                );
                story.says(format!("connect to {peer}:25: Connection timed out"), None);
            }
        }
        story.other("postfix/qmgr", 811, format!("{id}: removed"));
        story
    }

    fn tell(&mut self, at: usize, now: i64, phase: usize, log: &mut Vec<u8>, ledger: &mut Ledger) {
        let step = self.stories[at].steps.pop_front().expect("a story without lines is over");
        self.put(&format!(" mta {}[{}]: {}", step.program, step.pid, step.text), now, phase, log);
        let story = &mut self.stories[at];
        if let Some(session) = step.begins {
            story.sessions[session].began = phase;
        }
        if step.tells_cause {
            self.causes.insert(story.place, now);
        }
        let place = &self.places[story.place];
        for session in step.ends {
            let counted = counted(place, &story.sessions[session], Day::of(now));
            ledger.0.extend(counted.into_iter().map(|tally| (self.offset, tally)));
        }
        if story.steps.is_empty() {
            self.stories.remove(at);
        }
    }

    /// A line that is not about outbound TLS.
    fn other_line(&mut self) -> String {
        loop {
            if let Some(line) = self.other_lines.pop_front() {
                return line;
            }
            let mut more = Vec::new();
            self.other.write(&mut more, 1 << 16);
            let more = String::from_utf8(more).expect("the mix is ASCII");
            // Behind the stamp, `Nov 22 01:39:01`.
            let other = more.lines().filter(|line| !line.contains(" postfix/smtp["));
            self.other_lines.extend(other.map(|line| line[15..].to_owned()));
        }
    }

    fn put(&mut self, rest: &str, now: i64, phase: usize, log: &mut Vec<u8>) {
        let before = log.len();
        let time = Timestamp::from_second(now).expect("a time of this century");
        // One phase as syslog writes it, the next with rsyslog's RFC 3339 stamps.
        let stamp = match phase % 2 {
            0 => time.strftime("%b %e %H:%M:%S").to_string(),
            _ => format!("{}.{:06}+00:00", time.strftime("%Y-%m-%dT%H:%M:%S"), self.lines % 1_000_000),
        };
        log.extend_from_slice(stamp.as_bytes());
        log.extend_from_slice(rest.as_bytes());
        log.push(b'\n');
        self.lines += 1;
        self.offset += (log.len() - before) as u64;
    }
}

const CIPHER: &str = "TLSv1.3 with cipher TLS_AES_256_GCM_SHA384 (256/256 bits) key-exchange X25519 server-signature \
                      RSA-PSS (2048 bits) server-digest SHA256";
const SELF_SIGNED: (ResultType, Option<&str>) = (ResultType::CertificateNotTrusted, Some("self-signed_certificate"));
const MISMATCH: &str = "mtasts-policy-mx-mismatch";

impl Story {
    fn other(&mut self, program: &'static str, pid: u64, text: String) {
        self.steps.push_back(Step { program, pid, text, begins: None, ends: Vec::new(), tells_cause: false });
    }

    fn active(&mut self, id: &str) {
        self.other("postfix/qmgr", 811, format!("{id}: from=<alice@example.net>, size=273, nrcpt=1 (queue active)"));
    }

    fn says(&mut self, text: String, begins: Option<usize>) {
        let (program, pid) = self.process;
        self.steps.push_back(Step { program, pid, text, begins, ends: Vec::new(), tells_cause: false });
    }

    fn session(&mut self, label: &str, trust: Option<Trust>, at: &Place) {
        let (host, address) = (at.host(label), Some(at.address(label)));
        self.sessions.push(Session { host, address, trust, failure: None, began: 0 });
    }

    /// A session whose first line is the one of its handshake.
    fn handshake(&mut self, label: &str, trust: Trust, at: &Place) {
        self.session(label, Some(trust), at);
        self.established(label, trust, at, Some(self.sessions.len() - 1));
    }

    fn established(&mut self, label: &str, trust: Trust, at: &Place, begins: Option<usize>) {
        let peer = at.peer(label);
        self.says(format!("{trust:?} TLS connection established to {peer}:25: {CIPHER}"), begins);
    }

    /// The first of the lines of the recipients ends all sessions that have not ended.
    fn delivered(&mut self, recipients: u64, label: &str, dsn: &str, status: &str, at: &Place, number: &u64) {
        let ended: usize = self.steps.iter().map(|step| step.ends.len()).sum();
        let (id, peer, domain) = (queue_id(*number), at.peer(label), &at.name);
        for recipient in 0..recipients {
            let text = format!(
                "{id}: to=<user{recipient}@{domain}>, relay={peer}:25, delay=0.11, delays=0.01/0/0.05/0.05, dsn={dsn}, \
                 status={status}"
            );
            self.says(text, None);
            if recipient == 0 {
                self.steps.back_mut().expect("just pushed").ends = (ended..self.sessions.len()).collect();
            }
        }
    }

    fn sent(&mut self, recipients: u64, label: &str, at: &Place, number: &u64) {
        self.delivered(recipients, label, "2.0.0", "sent (250 2.0.0 Ok: queued as 4AB0CDEF12)", at, number);
    }

    fn deferred(&mut self, recipients: u64, label: &str, reason: &str, at: &Place, number: &u64) {
        self.delivered(recipients, label, "4.7.5", &format!("deferred ({reason})"), at, number);
    }
}

/// Other than those of the mix, which are longer.
fn queue_id(number: u64) -> String {
    format!("4{number:08X}")
}

/// What a session counts as, under what its domain published when it began (design page; RFC 8460 §4.3).
fn counted(place: &Place, session: &Session, day: Day) -> Vec<TallyKey> {
    let mut policy = Policy::none(&place.name);
    let mut failure = session.failure;
    let delivered_as = |trust: &[Trust]| failure.is_none() && session.trust.is_some_and(|t| trust.contains(&t));
    match place.published(session.began) {
        Published::Nothing | Published::Sts { mode: Mode::None, .. } => {}
        Published::Sts { mode, lines, patterns, .. } => {
            // Delivered without the check that `secure` makes: another table was asked.
            let contradicts = mode == Mode::Enforce && delivered_as(&[Trust::Trusted, Trust::Untrusted]);
            let would_have_failed = mode == Mode::Testing && delivered_as(&[Trust::Untrusted]);
            let allowed = patterns.iter().any(|pattern| mx_matches(pattern, &session.host));
            if !contradicts {
                policy.policy_type = PolicyType::Sts;
                policy.policy_string = lines;
                policy.mx_host = patterns;
            }
            if would_have_failed {
                failure = Some((ResultType::CertificateNotTrusted, None));
            }
            if !allowed && !contradicts {
                failure = Some((ResultType::ValidationFailure, Some(MISMATCH)));
            }
        }
        Published::Tlsa { digest } => {
            let has_records = ["mx", "mx2"].iter().any(|label| place.host(label) == session.host);
            // Behind signed MX records, what was checked against TLSA records is `Verified`.
            if has_records && !delivered_as(&[Trust::Trusted, Trust::Untrusted]) {
                policy.policy_type = PolicyType::Tlsa;
                policy.policy_domain.clone_from(&session.host);
                let digest: String = digest.iter().map(|octet| format!("{octet:02x}")).collect();
                policy.policy_string = vec![format!("3 1 1 {digest}")];
                // Under DANE-EE no name is checked: it was the key (RFC 7672 §3.1.1).
                if failure.is_some_and(|(result, _)| result == ResultType::CertificateHostMismatch) {
                    failure = Some((ResultType::CertificateNotTrusted, Some("dane-no-match")));
                }
            }
        }
    }
    if place.kind == Kind::Unasked {
        policy = Policy::none(&place.name);
    }
    let policy = Arc::new(policy);
    let tally =
        |counted| TallyKey { day, domain: place.name.as_str().into(), policy: Arc::clone(&policy), result: counted };
    match failure {
        None => vec![tally(TallyResult::Success)],
        Some((result_type, reason)) => {
            let detail = Failure {
                sending_mta_ip: session.address.map(|_| SENDING),
                receiving_mx_hostname: Some(session.host.clone()),
                receiving_ip: session.address,
                ..Failure::new(result_type, reason)
            };
            vec![tally(TallyResult::Failure), tally(TallyResult::Detail(detail))]
        }
    }
}
