//! Sessions from Exim's lines.
//!
//! Takes: events in the order of the log. Gives: outcomes, once a line tells the recipient domain.
//! A process of its own connects to the hosts of one recipient domain, in turn, and says which failed: a [`Trouble`], that
//! has no recipient. Then the message's delivery process says what became of each recipient, and of the last host: lines
//! about one host and domain are a [`Group`], one session. `=>` begins a transaction, and without `*` a connection; `->` is
//! of the same one. A recipient that comes again is of the next delivery attempt.
//! Exim can be made to tell a trouble as it happens ([`EventAction`]), with its domain: the log leaves out a host where required TLS
//! failed and the next one took the mail. It is one more trouble then, and whatever the log says of the same host of the
//! same message is the same session, be it before or after: the log counts, what is told fills in. So nothing hangs on who
//! comes first, on a daemon that was down (the log is what it was), or on lines that are read late.
//! The host of a trouble tells whose it is, where it is the recipient's, or a neighbour of the recipient's; else the
//! first recipient that follows does, once the message is done with or nothing was logged of it for [`SESSION_TIMEOUT`].
//! Limits: the constants below. Not here: the wording of a line (`parsers`).

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use tlswarden_parsers::event::exim::{
    CertificateCheck, EventAction, EximLine, HostProblem, LineKind, RecipientLine, RecipientStatus,
};
use tlswarden_parsers::event::{Event, EventKind, Peer};

use crate::base::domain_name;
use crate::base::tlsrpt::{ResultType, SessionOutcome, SessionResult, Trust};
use crate::counting::session::reason::{HANDSHAKE_FAILURE, MX_MISMATCH, reason_code, verification};
use crate::counting::session::text::{lossy, lower_case};
use crate::counting::session::tracked_map::{Change, Kept};
use crate::counting::session::{Cause, Losses, SESSION_TIMEOUT};

/// Messages of which something is open. Exim's deliver_queue_load_max and queue_run_max keep deliveries to far fewer.
const MAX_MESSAGES: usize = 100_000;

/// Hosts that failed for one message and wait for a recipient: hosts_max_try_hardlimit is 50 for each of its domains.
const MAX_TROUBLES: usize = 256;

/// Hosts of one message whose session is known: as many as it has batches of recipients.
const MAX_GROUPS: usize = 256;

/// Recipients of one session that are remembered, to know them again: max_rcpt is 100 unless told otherwise.
const MAX_RECIPIENTS: usize = 128;

/// Servers whose verification error is remembered for one message.
const MAX_CAUSES: usize = 64;

/// How far apart the lines of one session's recipients may be, in seconds: they are written in one go.
const ONE_GO: i64 = 60;

/// How far a line may be from what was told of the same attempt, in seconds: Exim writes a line as soon as it knows.
const ORDER_SLACK: i64 = 1;

/// How long our own report's id is remembered after its last line, in seconds: Exim gives up after four days (its
/// default retry rule), and a host that is down for a day more is no reason to forget.
const OWN_MEMORY: i64 = 5 * 86_400;

/// How long it is remembered after `Completed`, in seconds: lines can be out of order.
const COMPLETED_MEMORY: i64 = 60;

/// The record that some certificate was verified by its chain, so that there are trust anchors.
const ANCHORED: &[u8] = b"anchors";

/// The record that the log shows `X=`, so that a line without it is about clear text.
const SHOWS_TLS: &[u8] = b"cipher";

/// The sessions of one input.
#[derive(Debug)]
pub struct Sessions {
    messages: Kept<Message>,
    own: Kept<()>,
    shown: Kept<()>,
    swept: i64,
    losses: Losses,
}

/// What is open of one message.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Message {
    troubles: Vec<Trouble>,
    groups: Vec<Group>,
    causes: Vec<(IpAddr, Cause)>,
    no_usable_tlsa: bool,
}

/// A host that failed, and has no recipient yet.
#[derive(Debug, Serialize, Deserialize)]
struct Trouble {
    began: i64,
    host: String,
    ip: Option<IpAddr>,
    why: Cause,
    kind: Kind,
    /// The recipient domain, where Exim told it.
    domain: Option<String>,
    /// The domain of the first recipient that followed.
    next: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Kind {
    /// A session that failed.
    Session,
    /// The host was ruled out before any.
    RuledOut,
    /// So it was, for its TLSA records could not be looked up: that counts only where no other host took the mail, for
    /// Exim goes on to the next without a word about the recipient.
    NoLookup,
}

/// The recipients of one delivery attempt at one host: one session.
#[derive(Debug, Serialize, Deserialize)]
struct Group {
    last: i64,
    pid: u32,
    host: String,
    ip: Option<IpAddr>,
    domain: String,
    recipients: Vec<u64>,
    /// `=>` was there.
    delivered: bool,
    /// What it comes to is counted, or it is known that nothing is to be.
    settled: bool,
}

impl Sessions {
    /// No sessions.
    pub fn new() -> Sessions {
        Sessions {
            messages: Kept::new(MAX_MESSAGES),
            own: Kept::new(MAX_MESSAGES),
            shown: Kept::new(2),
            swept: 0,
            losses: Losses::default(),
        }
    }

    /// Takes back one record of [`changes`](Self::changes); `false` if it does not read.
    pub fn load(&mut self, key: &[u8], value: &[u8]) -> bool {
        match key.split_first() {
            Some((b'm', key)) => self.messages.load(key, value),
            Some((b'o', key)) => self.own.load(key, value),
            Some((b't', key)) => self.shown.load(key, value),
            _ => false,
        }
    }

    /// The records that have changed since the last call.
    pub fn changes(&mut self) -> Vec<Change> {
        let mut all = Vec::new();
        let mut add = |table: u8, changes: Vec<Change>| {
            all.extend(changes.into_iter().map(|(key, value)| ([&[table], &key[..]].concat(), value)));
        };
        add(b'm', self.messages.changes());
        add(b'o', self.own.changes());
        add(b't', self.shown.changes());
        all
    }

    /// What could not be counted since the last call.
    pub fn losses(&mut self) -> Losses {
        std::mem::take(&mut self.losses)
    }

    /// Takes one event at its time; `own` tells whether a Message-ID is one of our reports. Outcomes go to `out`.
    pub fn event(&mut self, event: &Event<'_>, time: i64, own: impl Fn(&[u8]) -> bool, out: &mut Vec<SessionOutcome>) {
        if time >= self.swept + 60 {
            self.swept = time;
            self.sweep(time, out);
        }
        let EventKind::Exim(EximLine { id, kind: says }) = &event.kind else { return };
        match says {
            LineKind::Arrived { message_id } => {
                if own(message_id) {
                    self.own.change(id, time + OWN_MEMORY, || ());
                }
            }
            LineKind::Host { peer, problem } => self.trouble(id, *peer, *problem, time),
            LineKind::VerifyError { ip, cause } => {
                let found = verification(*cause);
                let message = self.message(id, time);
                // A chain can fail at several depths; the name counts only where nothing else is wrong.
                match message.causes.iter_mut().find(|(known, _)| known == ip) {
                    Some((_, known)) if known.0 == ResultType::CertificateHostMismatch => *known = found,
                    Some(_) => {}
                    None => push(&mut message.causes, MAX_CAUSES, (*ip, found)),
                }
            }
            LineKind::NoUsableTlsa => self.message(id, time).no_usable_tlsa = true,
            LineKind::Recipient(recipient) => self.recipient(id, recipient, event.process.pid, time, out),
            LineKind::Completed => self.completed(id, time, out),
        }
    }

    /// Ends what is open at `now`: the input has been at its end for [`SESSION_TIMEOUT`].
    pub fn end_all(&mut self, now: i64, out: &mut Vec<SessionOutcome>) {
        for message in self.messages.remove_before(i64::MAX) {
            self.abandon(message, now, out);
        }
    }

    /// Whether anything is open.
    pub fn is_idle(&self) -> bool {
        self.messages.is_empty()
    }

    fn trouble(&mut self, id: &[u8], peer: Peer<'_>, problem: HostProblem<'_>, time: i64) {
        let message = self.message(id, time);
        let why = message.why(problem, peer.ip);
        let host = lower_case(peer.host);
        let kind = match problem {
            HostProblem::TlsaLookup => Kind::NoLookup,
            problem if problem.excludes_host() => Kind::RuledOut,
            _ => Kind::Session,
        };
        // DANE's line, and then that it is tried in clear text: the same session.
        let known = |t: &&mut Trouble| t.kind == kind && t.next.is_none() && t.host == host && t.ip == peer.ip;
        if message.troubles.iter_mut().rfind(known).is_some() {
            return;
        }
        let trouble = Trouble { began: time, host, ip: peer.ip, why, kind, domain: None, next: None };
        self.keep(id, trouble);
    }

    /// An id that Exim gave one of our reports at `time`.
    pub fn carries_own(&mut self, id: &[u8], time: i64) {
        let (_, crowded) = self.own.change(id, time + OWN_MEMORY, || ());
        self.losses.crowded_out += crowded;
    }

    /// Takes a failed session that Exim reports by its event action, outside the log.
    pub fn event_action(&mut self, event: &EventAction<'_>) {
        if !event.problem.is_session_failure() {
            return;
        }
        let why = why(event.problem, None, false);
        let host = event.host.to_ascii_lowercase();
        let id = event.id.as_bytes();
        let message = self.message(id, event.time);
        let domain = Some(event.domain.to_owned());
        // The log may have been read further already: what it says of that host is the same session.
        let same = |t: &&mut Trouble| t.kind == Kind::Session && (&t.host, t.ip) == (&host, Some(event.ip));
        if let Some(known) = message.troubles.iter_mut().rfind(same).filter(|t| t.domain.is_none()) {
            known.domain = domain;
            return;
        }
        let recent = |g: &Group| (0..=ORDER_SLACK).contains(&(g.last - event.time)) && g.settled;
        if message.groups.iter().any(|g| recent(g) && (&g.host, g.ip) == (&host, Some(event.ip))) {
            return;
        }
        let ip = Some(event.ip);
        self.keep(id, Trouble { began: event.time, host, ip, why, kind: Kind::Session, domain, next: None });
    }

    fn keep(&mut self, id: &[u8], trouble: Trouble) {
        let message = self.message(id, trouble.began);
        if message.troubles.len() >= MAX_TROUBLES {
            message.troubles.remove(0);
            self.losses.crowded_out += 1;
        }
        self.message(id, trouble.began).troubles.push(trouble);
    }

    fn recipient(&mut self, id: &[u8], line: &RecipientLine<'_>, pid: u32, time: i64, out: &mut Vec<SessionOutcome>) {
        if self.own.contains(id) {
            let message = self.messages.remove(id);
            let failed = message.map_or(0, |m| m.troubles.len() as u64);
            self.losses.own_reports +=
                failed + u64::from(line.tls.is_some() && line.status != RecipientStatus::DeliveredInSameTransaction);
            return;
        }
        if line.tls.is_some() {
            self.show(SHOWS_TLS, time);
        }
        if line.tls == Some(CertificateCheck::Pkix) {
            self.show(ANCHORED, time);
        }
        let (anchors, shows_tls) = (self.shown.contains(ANCHORED), self.shown.contains(SHOWS_TLS));
        let domain = lossy(line.domain);
        let mut found = Vec::new();
        let message = self.message(id, time);
        message.settle_troubles(line, &domain, time, &mut found);
        let group = message.group(line, &domain, pid, time);
        if !group.settled {
            let began = time;
            let ended = |observed, trust, dane| Found {
                began,
                host: line.peer.map(|peer| lower_case(peer.host)),
                ip: line.peer.and_then(|peer| peer.ip),
                trust,
                dane,
                observed,
                cause: None,
                clear_text: false,
            };
            if line.continued_connection {
                group.settled = true;
            } else if let Some(checked) = line.tls {
                group.settled = true;
                let (trust, dane) = match checked {
                    CertificateCheck::Dane => (Some(Trust::Verified), Some(true)),
                    CertificateCheck::Pkix => (Some(Trust::Verified), Some(false)),
                    CertificateCheck::No => (Some(Trust::Untrusted), Some(false)),
                    CertificateCheck::NotLogged => (None, None),
                };
                let cause = line.peer.and_then(|peer| message.cause(peer.ip));
                found.push(Found { cause, ..ended(Some(SessionResult::Success), trust, dane) });
            } else if line.problem.is_session_failure() && line.peer.is_some() {
                group.settled = true;
                // It may have been told by the process that made the connection.
                let told = found.iter().any(|f| f.ip == line.peer.and_then(|peer| peer.ip) && f.observed.is_some());
                if !told {
                    let (result, code) = message.why(line.problem, line.peer.and_then(|peer| peer.ip));
                    found.push(ended(Some(SessionResult::Failure(result, code)), None, None));
                }
            } else if line.problem.excludes_host() {
                group.settled = true;
                // The hosts are told one by one where a version does so; else this is all there is.
                if !found.iter().any(|f| f.observed.is_some()) {
                    let (result, code) = message.why(line.problem, None);
                    found.push(ended(Some(SessionResult::Failure(result, code)), None, None));
                }
            } else if matches!(line.status, RecipientStatus::Delivered | RecipientStatus::DeliveredInSameTransaction)
                && line.peer.is_some()
            {
                group.settled = true;
                let failed_first = found.iter().any(|f| f.ip == line.peer.and_then(|peer| peer.ip));
                if shows_tls && !failed_first {
                    found.push(Found { clear_text: true, ..ended(None, None, None) });
                }
            }
        }
        for found in found {
            self.emit(found, &domain, time, anchors, out);
        }
    }

    fn completed(&mut self, id: &[u8], time: i64, out: &mut Vec<SessionOutcome>) {
        if self.own.contains(id) {
            self.own.change(id, time + COMPLETED_MEMORY, || ());
        }
        if let Some(message) = self.messages.remove(id) {
            self.abandon(message, time, out);
        }
    }

    /// Ends a message: its troubles are its first recipient's after them.
    fn abandon(&mut self, message: Message, ended: i64, out: &mut Vec<SessionOutcome>) {
        let anchors = self.shown.contains(ANCHORED);
        for trouble in message.troubles {
            // A look-up that failed on the way to a host that took the mail.
            if trouble.kind == Kind::NoLookup {
                continue;
            }
            let domain = trouble.domain.clone().or_else(|| trouble.next.clone()).unwrap_or_default();
            self.emit(trouble.found(), &domain, ended, anchors, out);
        }
    }

    fn emit(&mut self, found: Found, domain: &str, ended: i64, anchors: bool, out: &mut Vec<SessionOutcome>) {
        let Some(name) = domain_name::normalize(domain) else {
            self.losses.without_domain += u64::from(found.observed.is_some());
            return;
        };
        out.push(SessionOutcome {
            began: found.began,
            ended,
            domain: name.into(),
            mx: found.host,
            ip: found.ip,
            trust: found.trust,
            dane: found.dane,
            observed: found.observed,
            native: None,
            cause: found.cause,
            clear_text: found.clear_text,
            anchors,
            next_hop_named: false,
            reported: None,
            anchors_shown_by: None,
        });
    }

    fn show(&mut self, what: &[u8], time: i64) {
        if !self.shown.contains(what) {
            self.shown.change(what, time, || ());
        }
    }

    fn message(&mut self, id: &[u8], time: i64) -> &mut Message {
        let (message, crowded) = self.messages.change(id, time, Message::default);
        self.losses.crowded_out += crowded;
        message
    }

    fn sweep(&mut self, time: i64, out: &mut Vec<SessionOutcome>) {
        for message in self.messages.remove_before(time - SESSION_TIMEOUT) {
            self.abandon(message, time, out);
        }
        // The time of an own report's entry is when it may go.
        self.own.remove_before(time);
    }
}

impl Default for Sessions {
    fn default() -> Self {
        Self::new()
    }
}

/// What is known of a session that has ended, but its domain.
struct Found {
    began: i64,
    host: Option<String>,
    ip: Option<IpAddr>,
    trust: Option<Trust>,
    dane: Option<bool>,
    observed: Option<SessionResult>,
    cause: Option<Cause>,
    clear_text: bool,
}

impl Trouble {
    fn found(self) -> Found {
        let (result, code) = self.why;
        Found {
            began: self.began,
            host: Some(self.host),
            ip: self.ip,
            trust: None,
            dane: None,
            observed: Some(SessionResult::Failure(result, code)),
            cause: None,
            clear_text: false,
        }
    }

    /// Whether a recipient's line is about this host, or about one beside it.
    fn belongs_to(&self, line: &RecipientLine<'_>, domain: &str) -> bool {
        if let Some(told) = &self.domain {
            return told.eq_ignore_ascii_case(domain);
        }
        let Some(peer) = line.peer else {
            return is_below(&self.host, domain);
        };
        let host = lower_case(peer.host);
        let neighbours =
            |a: &str, b: &str| a.split_once('.').is_some_and(|(_, parent)| parent.contains('.') && is_below(b, parent));
        (self.ip == peer.ip && self.host == host)
            || is_below(&self.host, domain)
            || neighbours(&self.host, &host)
            || neighbours(&host, &self.host)
    }
}

impl Message {
    /// The troubles that a recipient's line belongs to; the others keep its domain, if they have none.
    fn settle_troubles(&mut self, line: &RecipientLine<'_>, domain: &str, time: i64, found: &mut Vec<Found>) {
        let mut waiting = Vec::new();
        for mut trouble in std::mem::take(&mut self.troubles) {
            // Told of a later attempt than the line is of: the log is being read up.
            if trouble.began > time + ORDER_SLACK {
                waiting.push(trouble);
                continue;
            }
            let belongs = trouble.belongs_to(line, domain);
            match trouble.kind {
                Kind::NoLookup if line.problem == HostProblem::TlsaLookup => found.push(trouble.found()),
                // Another host took the mail, or did not want it.
                Kind::NoLookup if belongs => {}
                Kind::Session | Kind::RuledOut if belongs => found.push(trouble.found()),
                _ => {
                    if trouble.domain.is_none() {
                        trouble.next.get_or_insert_with(|| domain.to_owned());
                    }
                    waiting.push(trouble);
                }
            }
        }
        self.troubles = waiting;
    }

    /// The session that a recipient's line is about: one that is known, or a new one.
    fn group(&mut self, line: &RecipientLine<'_>, domain: &str, pid: u32, time: i64) -> &mut Group {
        let host = line.peer.map(|peer| lower_case(peer.host)).unwrap_or_default();
        let ip = line.peer.and_then(|peer| peer.ip);
        let recipient = hash(line.address);
        let same = |group: &Group| {
            group.host == host
                && group.ip == ip
                && (group.pid == 0 || pid == 0 || group.pid == pid)
                && time - group.last <= ONE_GO
                && !group.recipients.contains(&recipient)
                && match line.status {
                    RecipientStatus::DeliveredInSameTransaction => group.delivered || group.domain == domain,
                    RecipientStatus::Delivered => !group.delivered && group.domain == domain,
                    RecipientStatus::Deferred | RecipientStatus::Failed => group.domain == domain,
                }
        };
        let at = match self.groups.iter().rposition(same) {
            Some(at) => at,
            None => {
                // The same recipient again: what was known of it is of an attempt that is over.
                self.groups.retain(|group| time - group.last <= ONE_GO && !group.recipients.contains(&recipient));
                let group = Group {
                    last: time,
                    pid,
                    host,
                    ip,
                    domain: domain.to_owned(),
                    recipients: Vec::new(),
                    delivered: false,
                    settled: false,
                };
                push(&mut self.groups, MAX_GROUPS, group);
                self.groups.len() - 1
            }
        };
        let group = &mut self.groups[at];
        group.last = time;
        group.delivered |= line.status == RecipientStatus::Delivered;
        if group.recipients.len() < MAX_RECIPIENTS {
            group.recipients.push(recipient);
        }
        group
    }

    /// What the TLS library said of a server's certificate.
    fn cause(&self, ip: Option<IpAddr>) -> Option<Cause> {
        self.causes.iter().find(|(known, _)| Some(*known) == ip).map(|(_, cause)| cause.clone())
    }

    fn why(&self, problem: HostProblem<'_>, ip: Option<IpAddr>) -> Cause {
        why(problem, self.cause(ip), self.no_usable_tlsa)
    }
}

/// RFC 8460 §4.3's words for a problem; `cause`: what the TLS library said of that server's certificate.
fn why(problem: HostProblem<'_>, cause: Option<Cause>, no_usable_tlsa: bool) -> Cause {
    use ResultType::{
        CertificateHostMismatch, CertificateNotTrusted, DaneRequired, DnssecInvalid, StarttlsNotSupported, TlsaInvalid,
        ValidationFailure,
    };
    let with = |result: ResultType, code: &str| (result, Some(code.to_owned()));
    let tlsa_invalid = || with(TlsaInvalid, "all-TLSA-records-unusable");
    match problem {
        HostProblem::StarttlsNotOffered | HostProblem::StarttlsRefused => (StarttlsNotSupported, None),
        HostProblem::Handshake(_) | HostProblem::CertificateRejected if no_usable_tlsa => tlsa_invalid(),
        HostProblem::Handshake(_) | HostProblem::Local | HostProblem::Other => {
            with(ValidationFailure, HANDSHAKE_FAILURE)
        }
        HostProblem::CertificateRejected | HostProblem::CertificateInvalid => {
            cause.unwrap_or((CertificateNotTrusted, None))
        }
        HostProblem::CertificateName => (CertificateHostMismatch, None),
        HostProblem::CertificateRevoked => with(ValidationFailure, "certificate-revoked"),
        HostProblem::CertificateMissing => with(ValidationFailure, "certificate-not-supplied"),
        HostProblem::DaneMismatch(words) => (CertificateNotTrusted, Some(dane_mismatch(words))),
        HostProblem::TlsaUnusable => tlsa_invalid(),
        HostProblem::TlsaLookup => (DnssecInvalid, None),
        HostProblem::DaneRequired => (DaneRequired, None),
        HostProblem::StsMxMismatch => with(ValidationFailure, MX_MISMATCH),
    }
}

/// libdane's words, `Verification failed. The certificate differs. `, as a reason code.
fn dane_mismatch(words: &[u8]) -> String {
    let words = words.strip_prefix(b"Verification failed. ").unwrap_or(words).trim_ascii();
    match words.strip_suffix(b".").unwrap_or(words) {
        b"The certificate differs" => "dane-no-match".to_owned(),
        words => reason_code(words),
    }
}

/// Whether a host is a domain, or a name below it.
fn is_below(host: &str, domain: &str) -> bool {
    let Some(front) = host.len().checked_sub(domain.len()) else { return false };
    let same = host.is_char_boundary(front) && host[front..].eq_ignore_ascii_case(domain);
    !domain.is_empty() && same && (front == 0 || host[..front].ends_with('.'))
}

fn hash(address: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    address.hash(&mut hasher);
    hasher.finish()
}

/// Appends; what was there first gives way where there is no room.
fn push<T>(list: &mut Vec<T>, limit: usize, item: T) {
    if list.len() >= limit {
        list.remove(0);
    }
    list.push(item);
}

#[cfg(test)]
mod tests {
    use tlswarden_parsers::event::LogTimestamp;
    use tlswarden_parsers::{Dialect, parse, parse_event_action};

    use super::*;

    const ID: &str = "1xUwYd-0005p2-2C";
    const TLS: &str = "X=TLS1.3:X:256 CV=yes C=\"250 ok\"";
    const BAD: &str = "TLS session: (certificate verification failed)";

    /// What lines come to: `domain ok`, `domain failed: …`, `domain clear`. Each is written `SECOND TEXT`, of the message
    /// [`ID`]; `!` begins what Exim tells.
    fn come_to(lines: &[&str]) -> Vec<String> {
        let (mut sessions, mut out) = (Sessions::new(), Vec::new());
        for line in lines {
            if let Some(told) = line.strip_prefix('!') {
                sessions.event_action(&parse_event_action(told.as_bytes()).unwrap());
                continue;
            }
            let (second, text) = line.split_once(' ').unwrap();
            let line = format!(
                "1970-01-01 00:{:02}:{:02} {ID} {text}",
                second.parse::<u32>().unwrap() / 60,
                second.parse::<u32>().unwrap() % 60
            );
            let event = parse(Dialect::Exim, line.as_bytes()).unwrap().unwrap_or_else(|| panic!("{line}"));
            let LogTimestamp::Local(time) = event.timestamp else { panic!("{line}") };
            sessions.event(&event, time, |id| id.starts_with(b"ours."), &mut out);
        }
        sessions.end_all(9999, &mut out);
        out.iter()
            .map(|o| match &o.observed {
                None => format!("{} clear", o.domain),
                Some(SessionResult::Success) => format!("{} ok", o.domain),
                Some(SessionResult::Failure(result, _)) => {
                    format!("{} failed at {}: {result}", o.domain, o.mx.as_deref().unwrap_or("-"))
                }
            })
            .collect()
    }

    fn sent(arrow: &str, to: &str, host: &str, rest: &str) -> String {
        format!("{arrow} {to} R=r T=t H={host} [192.0.2.1] {rest}")
    }

    fn deferred(to: &str, host: &str) -> String {
        format!("== {to} R=r T=t defer (-37) H={host} [192.0.2.1]: {BAD}")
    }

    #[test]
    fn several_recipients_are_one_session_and_another_transaction_without_an_asterisk_is_another() {
        let first = sent("1 =>", "u@a.test", "mx.a.test", TLS);
        let too = sent("1 ->", "v@a.test", "mx.a.test", TLS);
        assert_eq!(come_to(&[&first, &too]), ["a.test ok"]);
        let again = sent("2 =>", "w@a.test", "mx.a.test", TLS);
        assert_eq!(come_to(&[&first, &too, &again]), ["a.test ok", "a.test ok"]);
        let on = again.replace("[192.0.2.1]", "[192.0.2.1]*");
        assert_eq!(come_to(&[&first, &too, &on]), ["a.test ok"]);
        // Of several domains in one transaction the first one counts it.
        assert_eq!(come_to(&[&first, &sent("1 ->", "v@b.test", "mx.a.test", TLS)]), ["a.test ok"]);
        // A refused one before it, and one that is put off, are of the same session.
        let refused = "1 ** x@a.test R=r T=t H=mx.a.test [192.0.2.1] X=TLS1.3:X:256 CV=yes: SMTP error: 550 no";
        let put_off = "1 == y@a.test R=r T=t defer (-44) H=mx.a.test [192.0.2.1]: SMTP error: 450 no";
        assert_eq!(come_to(&[refused, put_off, &first, &too]), ["a.test ok"]);
        assert_eq!(come_to(&[put_off]), [""; 0]);
    }

    #[test]
    fn the_same_recipient_again_is_another_attempt() {
        let failed = |second: u32| {
            [deferred("u@a.test", "mx.a.test"), deferred("v@a.test", "mx.a.test")].map(|l| format!("{second} {l}"))
        };
        let ([a, b], [c, d]) = (failed(1), failed(2));
        let once = "a.test failed at mx.a.test: certificate-host-mismatch";
        assert_eq!(come_to(&[&a, &b]), [once]);
        assert_eq!(come_to(&[&a, &b, &c, &d]), [once, once]);
        // Where the addresses are not tried again, neither is their session.
        let not_yet = "3 == u@a.test R=r T=t defer (-54): retry time not reached for any host for 'a.test'";
        assert_eq!(come_to(&[&a, &b, not_yet]), [once]);
    }

    #[test]
    fn a_failed_session_and_then_clear_text_is_one_that_failed() {
        let failed = "1 TLS session: (gnutls_handshake): timed out: delivering unencrypted to H=mx.a.test [192.0.2.1] (not in hosts_require_tls)";
        let clear = sent("2 =>", "u@a.test", "mx.a.test", "C=\"250 ok\"");
        assert_eq!(come_to(&[failed, &clear]), ["a.test failed at mx.a.test: validation-failure"]);
        // Without `X=` anywhere before, the selector may be off.
        assert_eq!(come_to(&[&clear]), [""; 0]);
        let other = sent("1 =>", "u@b.test", "mx.b.test", TLS);
        assert_eq!(come_to(&[&other, &clear]), ["b.test ok", "a.test clear"]);
    }

    #[test]
    fn a_host_is_its_domain_s_whatever_comes_first() {
        let dane = "1 DANE attempt failed; TLS connection to mx1.a.test [192.0.2.7]: (certificate verification failed): Verification failed. The certificate differs. ";
        let (b, a) = (sent("2 =>", "u@b.test", "mx.b.test", TLS), sent("2 =>", "u@a.test", "mx2.a.test", TLS));
        let failed = "a.test failed at mx1.a.test: certificate-not-trusted";
        assert_eq!(come_to(&[dane, &b, &a, "2 Completed"]), ["b.test ok", failed, "a.test ok"]);
        // Hosts of a provider, beside each other.
        let (dane, hosted) = (dane.replace("mx1.a.test", "mx1.mail.test"), a.replace("mx2.a.test", "mx2.mail.test"));
        let failed = "a.test failed at mx1.mail.test: certificate-not-trusted";
        assert_eq!(come_to(&[&dane, &b, &hosted, "2 Completed"]), ["b.test ok", failed, "a.test ok"]);
        // Nothing tells: the first recipient's, at the end.
        let failed = "b.test failed at mx1.mail.test: certificate-not-trusted";
        assert_eq!(come_to(&[&dane, &b, &a, "2 Completed"]), ["b.test ok", "a.test ok", failed]);
    }

    #[test]
    fn what_exim_tells_fills_in_what_its_log_leaves_out_and_nothing_else() {
        let told = |second: u32, host: &str, ip: &str| format!("!{second} {ID} {host} {ip} 25 a.test {BAD}");
        let first = told(1, "mx1.a.test", "192.0.2.7");
        let second = sent("2 =>", "u@a.test", "mx2.a.test", TLS);
        let failed = |host: &str| format!("a.test failed at {host}: certificate-host-mismatch");
        assert_eq!(come_to(&[&first, &second]), [failed("mx1.a.test"), "a.test ok".into()]);
        // The log says it of the last host: before, after, and of another recipient of the same.
        let (last, line) = (told(1, "mx2.a.test", "192.0.2.1"), format!("2 {}", deferred("u@a.test", "mx2.a.test")));
        let too = format!("2 {}", deferred("v@a.test", "mx2.a.test"));
        let both = [failed("mx1.a.test"), failed("mx2.a.test")];
        assert_eq!(come_to(&[&first, &last, &line, &too]), both);
        let late = told(2, "mx2.a.test", "192.0.2.1");
        assert_eq!(come_to(&[&first, &line, &late, &too]), both);
        // DANE's own line, and the one about clear text.
        let dane = "1 DANE attempt failed; TLS connection to mx1.a.test [192.0.2.7]: (certificate verification failed)"
            .to_owned();
        let clear = format!("1 {BAD}: delivering unencrypted to H=mx1.a.test [192.0.2.7] (not in hosts_require_tls)");
        for line in [&dane, &clear] {
            assert_eq!(come_to(&[line, &first, &second]), [failed("mx1.a.test"), "a.test ok".into()]);
            assert_eq!(come_to(&[&first, line, &second]), [failed("mx1.a.test"), "a.test ok".into()]);
        }
        // Lines of an earlier attempt, read late, take nothing of a later one.
        let later = told(600, "mx1.a.test", "192.0.2.7");
        let again = sent("601 =>", "u@a.test", "mx2.a.test", TLS);
        let all = [failed("mx2.a.test"), failed("mx1.a.test"), "a.test ok".into()];
        assert_eq!(come_to(&[&later, &line, &again]), all);
        // Of a message that its log never names again.
        assert_eq!(come_to(&[&first]), [failed("mx1.a.test")]);
    }

    #[test]
    fn our_own_report_is_not_counted() {
        let arrived = "1 <= s@h.test U=u P=local S=9 id=ours.1@h.test";
        let dane = "1 DANE attempt failed; TLS connection to mx1.a.test [192.0.2.7]: (certificate verification failed)";
        let sent = sent("2 =>", "u@a.test", "mx2.a.test", TLS);
        assert_eq!(come_to(&[arrived, dane, &sent, "2 Completed"]), [""; 0]);
        assert_eq!(come_to(&[&arrived.replace("ours", "theirs"), &sent]), ["a.test ok"]);
    }

    #[test]
    fn tlsa_records_that_cannot_be_looked_up_count_where_the_mail_waits() {
        let line = |host: &str, ip: &str| format!("1 H={host} [{ip}]: DANE error: tlsa lookup DEFER");
        let (one, two) = (line("mx1.a.test", "192.0.2.7"), line("mx2.a.test", "192.0.2.8"));
        let waits = "2 == u@a.test R=r T=t defer (-36): DANE error: tlsa lookup DEFER";
        let failed = |host: &str| format!("a.test failed at {host}: dnssec-invalid");
        assert_eq!(come_to(&[&one, &two, waits]), [failed("mx1.a.test"), failed("mx2.a.test")]);
        assert_eq!(come_to(&[waits]), [failed("-")]);
        assert_eq!(come_to(&[&one, &sent("2 =>", "u@a.test", "mx2.a.test", TLS), "3 Completed"]), ["a.test ok"]);
    }
}
