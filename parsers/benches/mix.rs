//! Writes the log of a busy mail host: seven lines of ten are not about outbound TLS.
//!
//! Takes: a seed, the form of the stamps. Gives: lines, the same for the same seed on every machine, and how many
//! outbound TLS sessions they tell of.
//! The wording is that of real runs of Postfix 3.7 and 3.10; Dovecot, SpamAssassin and OpenDKIM as they log by default.
//! Each scenario (a message, a login, a scan) keeps its own process and queue id; several run at a time, so that their
//! lines lie between each other's, as they do in life.
//! Limits: the log begins on November 1st; at `LINES_PER_SECOND` it has room for 250 million lines before December.
//! Not here: lines of the other kind only, for which there are real ones (`outbound.log`).

use std::fmt::Write as _;

/// How many lines share a second.
const LINES_PER_SECOND: u64 = 100;
/// How many scenarios run at a time.
const AT_ONCE: usize = 12;
/// Destinations of the mail that goes out.
const DESTINATIONS: u64 = 4000;

/// The form of the timestamp at the beginning of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TimestampForm {
    /// `Nov 22 01:39:01`
    Traditional,
    /// `2026-11-22T01:46:13.565141+00:00`
    Rfc3339,
}

/// A log without end.
pub(crate) struct MixedLog {
    random: SplitMix64,
    form: TimestampForm,
    running: Vec<RunningScenario>,
    lines: u64,
    /// Lines of smtp(8) and tlsproxy(8).
    outbound: u64,
    sessions: u64,
    line: String,
}

/// A scenario that has begun.
struct RunningScenario {
    scenario: &'static Scenario,
    next: usize,
    pid: u64,
    queue_id: String,
    number: u64,
}

/// The lines of one scenario.
struct Scenario {
    /// Outbound TLS sessions in it.
    sessions: u64,
    /// Who says what. In the text: `{q}` queue id, `{d}` destination, `{m}` MX host, `{i}` its address, `{j}` the address
    /// of a second MX, `{c}` a client's address, `{n}` a number.
    lines: &'static [(&'static str, &'static str)],
}

impl MixedLog {
    /// A log that depends on the seed alone.
    pub(crate) fn new(seed: u64, form: TimestampForm) -> MixedLog {
        let random = SplitMix64(seed);
        MixedLog { random, form, running: Vec::new(), lines: 0, outbound: 0, sessions: 0, line: String::new() }
    }

    /// Appends whole lines until `log` has at least `bytes`; scenarios go on in the next call.
    pub(crate) fn write(&mut self, log: &mut Vec<u8>, bytes: usize) {
        while log.len() < bytes {
            while self.running.len() < AT_ONCE {
                let scenario = self.start_scenario();
                self.running.push(scenario);
            }
            let at = self.random.below(AT_ONCE as u64) as usize;
            self.write_line(at, log);
        }
    }

    /// Appends the rest of every scenario that has begun.
    pub(crate) fn finish(&mut self, log: &mut Vec<u8>) {
        while !self.running.is_empty() {
            self.write_line(0, log);
        }
    }

    /// Lines written.
    pub(crate) fn lines(&self) -> u64 {
        self.lines
    }

    /// Lines of smtp(8) and tlsproxy(8) among them: three of ten.
    pub(crate) fn outbound_lines(&self) -> u64 {
        self.outbound
    }

    /// TLS sessions in the scenarios that are written to their end.
    pub(crate) fn sessions(&self) -> u64 {
        self.sessions
    }

    fn start_scenario(&mut self) -> RunningScenario {
        let wanted = self.outbound * 10 < self.lines * 3;
        let scenarios = if wanted { OUTBOUND } else { OTHER };
        let whole = scenarios.iter().map(|(weight, _)| weight).sum();
        let mut at = self.random.below(whole);
        let scenario = scenarios.iter().find_map(|(weight, scenario)| {
            let found = at < *weight;
            at = at.saturating_sub(*weight);
            found.then_some(scenario)
        });
        // Two scenarios at a time never share a process.
        let pid = loop {
            let pid = 1000 + self.random.below(30_000);
            if self.running.iter().all(|other| other.pid != pid) {
                break pid;
            }
        };
        let number = self.random.next();
        let queue_id = format!("{:05X}{:06X}", number >> 40 & 0xF_FFFF, number & 0xFF_FFFF);
        RunningScenario { scenario: scenario.expect("the weights cover every draw"), next: 0, pid, queue_id, number }
    }

    /// The next line of one scenario.
    fn write_line(&mut self, at: usize, log: &mut Vec<u8>) {
        let running = &mut self.running[at];
        let (program, text) = running.scenario.lines[running.next];
        running.next += 1;
        self.line.clear();
        self.form.write(self.lines, running.number, &mut self.line);
        match program {
            // Dovecot logs without a process id; these two have one process for all messages.
            "dovecot" => write!(self.line, " mta {program}: "),
            "postfix/qmgr" => write!(self.line, " mta {program}[811]: "),
            "postfix/cleanup" => write!(self.line, " mta {program}[907]: "),
            _ => write!(self.line, " mta {program}[{}]: ", running.pid),
        }
        .expect("a string takes all");
        running.expand(text, &mut self.line);
        log.extend_from_slice(self.line.as_bytes());
        log.push(b'\n');
        self.lines += 1;
        self.outbound += u64::from(matches!(program, "postfix/smtp" | "postfix/tlsproxy"));
        if running.next == running.scenario.lines.len() {
            self.sessions += running.scenario.sessions;
            self.running.remove(at);
        }
    }
}

impl RunningScenario {
    fn expand(&self, text: &str, line: &mut String) {
        let mut pieces = text.split('{');
        line.push_str(pieces.next().unwrap_or_default());
        let destination = self.number % DESTINATIONS;
        for piece in pieces {
            let (name, rest) = piece.split_once('}').expect("every brace is closed");
            match name {
                "q" => write!(line, "{}", self.queue_id),
                "d" => write!(line, "customer-{destination}.example"),
                "m" => write!(line, "mx{}.mail-{}.example", destination % 3, destination / 4),
                "i" => write!(line, "198.51.100.{}", destination % 254 + 1),
                "j" => write!(line, "203.0.113.{}", destination % 254 + 1),
                "c" => write!(line, "192.0.2.{}", self.number % 254 + 1),
                "n" => write!(line, "{}", self.number >> 32),
                _ => panic!("an unknown name in a story: {name}"),
            }
            .expect("a string takes all");
            line.push_str(rest);
        }
    }
}

impl TimestampForm {
    fn write(self, line_number: u64, number: u64, line: &mut String) {
        let seconds = line_number / LINES_PER_SECOND;
        let (day, hour) = (seconds / 86_400 + 1, seconds / 3600 % 24);
        assert!(day <= 30, "the month is over");
        let (minute, second) = (seconds / 60 % 60, seconds % 60);
        match self {
            TimestampForm::Traditional => write!(line, "Nov {day:2} {hour:02}:{minute:02}:{second:02}"),
            TimestampForm::Rfc3339 => {
                let micros = number % 1_000_000;
                write!(line, "2026-11-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}+00:00")
            }
        }
        .expect("a string takes all");
    }
}

/// SplitMix64: small, and good enough for drawing scenarios.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

const MESSAGE: (&str, &str) = ("postfix/cleanup", "{q}: message-id=<{n}.{q}@mta.example.net>");
const ACTIVE: (&str, &str) = ("postfix/qmgr", "{q}: from=<alice@example.net>, size=27{n}, nrcpt=1 (queue active)");
const REMOVED: (&str, &str) = ("postfix/qmgr", "{q}: removed");
const PICKUP: (&str, &str) = ("postfix/pickup", "{q}: uid=1000 from=<alice@example.net>");
const TRUSTED: (&str, &str) = (
    "postfix/smtp",
    "Trusted TLS connection established to {m}[{i}]:25: TLSv1.3 with cipher TLS_AES_256_GCM_SHA384 (256/256 bits) \
     key-exchange X25519 server-signature RSA-PSS (2048 bits) server-digest SHA256",
);
const SENT: (&str, &str) = (
    "postfix/smtp",
    "{q}: to=<user{n}@{d}>, relay={m}[{i}]:25, delay=0.11, delays=0.01/0/0.05/0.05, dsn=2.0.0, status=sent (250 2.0.0 \
     Ok: queued as {q}7)",
);
const SECOND_SENT: (&str, &str) = (
    "postfix/smtp",
    "{q}: to=<\"o{n} r\"@{d}>, orig_to=<list@example.net>, relay={m}[{i}]:25, delay=0.11, delays=0.01/0/0.05/0.05, \
     dsn=2.0.0, status=sent (250 2.0.0 Ok: queued as {q}7)",
);

/// Mail that goes out, by weight.
const OUTBOUND: &[(u64, Scenario)] = &[
    (40, Scenario { sessions: 1, lines: &[MESSAGE, ACTIVE, TRUSTED, SENT, REMOVED] }),
    (10, Scenario { sessions: 1, lines: &[PICKUP, MESSAGE, ACTIVE, TRUSTED, SENT, SECOND_SENT, SECOND_SENT, REMOVED] }),
    (
        15,
        Scenario {
            sessions: 1,
            lines: &[
                MESSAGE,
                ACTIVE,
                (
                    "postfix/smtp",
                    "Untrusted TLS connection established to {m}[{i}]:25: TLSv1.2 with cipher \
                     ECDHE-RSA-AES256-GCM-SHA384 (256/256 bits)",
                ),
                SENT,
                REMOVED,
            ],
        },
    ),
    (
        15,
        Scenario {
            sessions: 1,
            lines: &[
                MESSAGE,
                ACTIVE,
                (
                    "postfix/smtp",
                    "Verified TLS connection established to {m}[{i}]:25: TLSv1.3 with cipher TLS_AES_256_GCM_SHA384 \
                     (256/256 bits) key-exchange X25519 server-signature ECDSA (prime256v1) server-digest SHA256",
                ),
                SENT,
                REMOVED,
            ],
        },
    ),
    (
        5,
        Scenario {
            sessions: 0,
            lines: &[
                MESSAGE,
                ACTIVE,
                (
                    "postfix/smtp",
                    "Trusted TLS connection reused to {m}[{i}]:25: TLSv1.3 with cipher TLS_AES_256_GCM_SHA384 (256/256 \
                     bits) key-exchange x25519",
                ),
                (
                    "postfix/smtp",
                    "{q}: to=<user{n}@{d}>, relay={m}[{i}]:25, conn_use=2, delay=0.05, delays=0/0/0/0.04, dsn=2.0.0, \
                     status=sent (250 2.0.0 Ok: queued as {q}7)",
                ),
                REMOVED,
            ],
        },
    ),
    (
        5,
        Scenario {
            sessions: 1,
            lines: &[
                MESSAGE,
                ACTIVE,
                ("postfix/smtp", "server certificate verification failed for {m}[{i}]:25: num=62:hostname mismatch"),
                (
                    "postfix/smtp",
                    "Trusted TLS connection established to {m}[{i}]:25: TLSv1.3 with cipher TLS_AES_256_GCM_SHA384 \
                     (256/256 bits) key-exchange x25519 server-signature RSA-PSS (2048 bits) server-digest SHA256",
                ),
                (
                    "postfix/smtp",
                    "{q}: to=<user{n}@{d}>, relay={m}[{i}]:25, delay=0.01, delays=0/0/0.01/0, dsn=4.7.5, \
                     status=deferred (Server certificate not verified)",
                ),
            ],
        },
    ),
    (
        5,
        Scenario {
            sessions: 2,
            lines: &[
                MESSAGE,
                ACTIVE,
                ("postfix/smtp", "certificate verification failed for {m}[{j}]:25: self-signed certificate"),
                (
                    "postfix/smtp",
                    "Untrusted TLS connection established to {m}[{j}]:25: TLSv1.3 with cipher TLS_AES_256_GCM_SHA384 \
                     (256/256 bits) key-exchange x25519 server-signature RSA-PSS (2048 bits) server-digest SHA256",
                ),
                ("postfix/smtp", "{q}: Server certificate not verified"),
                (
                    "postfix/smtp",
                    "Verified TLS connection established to {m}[{i}]:25: TLSv1.3 with cipher TLS_AES_256_GCM_SHA384 \
                     (256/256 bits) key-exchange X25519 server-signature ECDSA (prime256v1) server-digest SHA256",
                ),
                SENT,
                REMOVED,
            ],
        },
    ),
    (
        2,
        Scenario {
            sessions: 1,
            lines: &[
                MESSAGE,
                ACTIVE,
                ("postfix/smtp", "SSL_connect error to {m}[{i}]:25: -1"),
                (
                    "postfix/smtp",
                    "warning: TLS library problem: error:0A000410:SSL routines::ssl/tls alert handshake \
                     failure:../ssl/record/rec_layer_s3.c:918:SSL alert number 40:",
                ),
                (
                    "postfix/smtp",
                    "{q}: to=<user{n}@{d}>, relay={m}[{i}]:25, delay=0.01, delays=0/0.01/0/0, dsn=4.7.5, \
                     status=deferred (Cannot start TLS: handshake failure)",
                ),
            ],
        },
    ),
    (
        3,
        Scenario {
            sessions: 0,
            lines: &[
                ACTIVE,
                ("postfix/smtp", "connect to {m}[{i}]:25: Connection timed out"),
                (
                    "postfix/smtp",
                    "{q}: to=<user{n}@{d}>, relay=none, delay=30, delays=0/0/30/0, dsn=4.4.1, status=deferred (connect \
                     to {m}[{i}]:25: Connection timed out)",
                ),
            ],
        },
    ),
];

/// Everything else that a mail host logs, by weight.
const OTHER: &[(u64, Scenario)] = &[
    (
        20,
        Scenario {
            sessions: 0,
            lines: &[
                ("postfix/smtpd", "connect from mail{n}.sender.example[{c}]"),
                (
                    "postfix/smtpd",
                    "Anonymous TLS connection established from mail{n}.sender.example[{c}]: TLSv1.3 with cipher \
                     TLS_AES_256_GCM_SHA384 (256/256 bits) key-exchange X25519 server-signature RSA-PSS (2048 bits) \
                     server-digest SHA256",
                ),
                ("postfix/smtpd", "{q}: client=mail{n}.sender.example[{c}]"),
                ("postfix/cleanup", "{q}: message-id=<{n}.{q}@sender.example>"),
                ("opendkim", "{q}: mail{n}.sender.example [{c}] not internal"),
                ("opendkim", "{q}: DKIM verification successful"),
                ("spamd", "spamd: connection from localhost [127.0.0.1]:40252 to port 783, fd 5"),
                ("spamd", "spamd: processing message <{n}.{q}@sender.example> for alice:1000"),
                ("spamd", "spamd: clean message (-1.9/5.0) for alice:1000 in 0.9 seconds, 4{n} bytes."),
                (
                    "spamd",
                    "spamd: result: . -1 - BAYES_00,DKIM_SIGNED,DKIM_VALID,HTML_MESSAGE,SPF_PASS \
                     scantime=0.9,size=4321,user=alice,uid=1000,required_score=5.0,rhost=localhost,raddr=127.0.0.1,\
                     rport=40252,mid=<{n}.{q}@sender.example>,bayes=0.000000,autolearn=ham",
                ),
                ("postfix/qmgr", "{q}: from=<news@sender.example>, size=411, nrcpt=1 (queue active)"),
                (
                    "postfix/smtpd",
                    "disconnect from mail{n}.sender.example[{c}] ehlo=2 starttls=1 mail=1 rcpt=1 data=1 quit=1 commands=7",
                ),
                (
                    "dovecot",
                    "lmtp(alice@example.net)<{n}><q0Y2{q}>: msgid=<{n}.{q}@sender.example>: saved mail to INBOX",
                ),
                (
                    "postfix/lmtp",
                    "{q}: to=<alice@example.net>, relay=mta.example.net[private/dovecot-lmtp], delay=0.9, \
                     delays=0.85/0.01/0.01/0.03, dsn=2.0.0, status=sent (250 2.0.0 <alice@example.net> q0Y2{q} Saved)",
                ),
                ("postfix/qmgr", "{q}: removed"),
            ],
        },
    ),
    (
        20,
        Scenario {
            sessions: 0,
            lines: &[
                ("postfix/smtpd", "connect from unknown[{c}]"),
                (
                    "postfix/smtpd",
                    "NOQUEUE: reject: RCPT from unknown[{c}]: 454 4.7.1 <user@elsewhere.example>: Relay access denied; \
                     from=<x{n}@sender.example> to=<user@elsewhere.example> proto=ESMTP helo=<mail.sender.example>",
                ),
                ("postfix/smtpd", "disconnect from unknown[{c}] ehlo=1 mail=1 rcpt=0/1 quit=1 commands=3/4"),
            ],
        },
    ),
    (
        10,
        Scenario {
            sessions: 0,
            lines: &[
                ("postfix/smtpd", "warning: hostname host{n}.sender.example does not resolve to address {c}"),
                ("postfix/smtpd", "connect from unknown[{c}]"),
                ("postfix/smtpd", "lost connection after AUTH from unknown[{c}]"),
                ("postfix/smtpd", "disconnect from unknown[{c}] ehlo=1 auth=0/1 commands=1/2"),
            ],
        },
    ),
    (
        10,
        Scenario {
            sessions: 0,
            lines: &[
                ("postfix/submission/smtpd", "connect from client.example.net[{c}]"),
                (
                    "postfix/submission/smtpd",
                    "{q}: client=client.example.net[{c}], sasl_method=PLAIN, sasl_username=bob@example.net",
                ),
                ("postfix/cleanup", "{q}: message-id=<{n}@client.example.net>"),
                ("opendkim", "{q}: DKIM-Signature field added (s=mail, d=example.net)"),
                (
                    "postfix/submission/smtpd",
                    "disconnect from client.example.net[{c}] ehlo=2 starttls=1 auth=1 mail=1 rcpt=1 data=1 quit=1 commands=8",
                ),
            ],
        },
    ),
    (
        30,
        Scenario {
            sessions: 0,
            lines: &[
                (
                    "dovecot",
                    "imap-login: Login: user=<alice@example.net>, method=PLAIN, rip={c}, lip=192.0.2.25, mpid={n}, TLS, \
                     session=<k7dV{q}>",
                ),
                (
                    "dovecot",
                    "imap(alice@example.net)<{n}><k7dV{q}>: Disconnected: Logged out in=412 out=2{n} deleted=0 expunged=0 \
                     trashed=0 hdr_count=0 hdr_bytes=0 body_count=0 body_bytes=0",
                ),
            ],
        },
    ),
    (
        10,
        Scenario {
            sessions: 0,
            lines: &[(
                "dovecot",
                "imap-login: Disconnected: Connection closed (auth failed, 1 attempts in 2 secs): \
                 user=<info@example.net>, method=PLAIN, rip={c}, lip=192.0.2.25, TLS, session=<k7dV{q}>",
            )],
        },
    ),
    (
        5,
        Scenario {
            sessions: 0,
            lines: &[("postfix/anvil", "statistics: max connection rate 1/60s for (smtp:{c}) at Nov 22 03:13:23")],
        },
    ),
];
