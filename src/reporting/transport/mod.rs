//! Hands a report over: to the MTA of this host (SMTP, or the sendmail command), to a submission server, or to a receiver by
//! https. The only user of lettre.
//!
//! Takes: one message for one recipient, or a gzipped report and a URI. Gives: an [`Outcome`] that says whether it may be
//! tried again. The line between them is the final dot (the end of sendmail's input, the last octet of a POST): an error
//! before it is tried again, a reply after it is believed, silence after it is `Unknown` and never tried again, for the
//! report may have been taken.
//! A connection that has carried a report waits for the next one until [`Way::rest`]. One that the server has closed
//! meanwhile is replaced: nothing of the report was said over it.
//! Limits: [`Limits`]; no wait is without one. One recipient a message, [`MAX_MESSAGES`] messages a connection, which waits
//! for [`MAX_WAIT`].
//! When it fails: never; a failure is an outcome. [`Way::load`] names a password or root that cannot be read.
//! Not here: when to try again (`scheduler`), how a POST is made (`https`).

use std::fmt;
use std::fs::File;
use std::future::Future;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lettre::Address;
use lettre::transport::smtp::Error as SmtpError;
use lettre::transport::smtp::authentication::{Credentials, Mechanism};
use lettre::transport::smtp::client::{AsyncSmtpConnection, Certificate, TlsParameters};
use lettre::transport::smtp::commands::{Data, Mail, Quit, Rcpt};
use lettre::transport::smtp::extension::ClientId;
use lettre::transport::smtp::response::Response;
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, ToSocketAddrs};
use tokio::process::{Child, Command};

use crate::base::printable::shown;
use crate::base::rua_record::Mailbox;
use crate::config::{Deliver, ReportSection};
use crate::net::https::{self, HttpsError};

/// How much of an answer is kept, in characters.
const MAX_ANSWER: usize = 300;

/// How much of a password file or a root is read, in octets.
const MAX_FILE: u64 = 64 * 1024;

/// How many messages go over one connection: few enough that one process of the MTA is not kept for hours, and below
/// the limits of MTAs (Exim's `smtp_accept_max_per_connection` is 1000).
const MAX_MESSAGES: u32 = 100;

/// How long a connection waits for the next message: MTAs have few of them (Exim 20 by default), and close it some day.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// The longest queue id, in octets: Postfix's long ones have some 20, Exim's 23.
const MAX_QUEUE_ID: usize = 40;

/// How long taking leave may take.
const LEAVE: Duration = Duration::from_millis(500);

/// How mail is handed over, all that it needs read; and the connections that wait for the next message.
pub struct Way {
    by: By,
    waiting: Mutex<Vec<Line>>,
}

enum By {
    /// SMTP without TLS to an MTA on this host.
    Smtp(SocketAddr),
    /// The sendmail command.
    Sendmail(PathBuf),
    /// A submission server.
    Submission(Box<Submission>),
}

/// A submission server and how to talk to it.
struct Submission {
    host: String,
    port: u16,
    /// TLS from the first octet; otherwise STARTTLS.
    implicit: bool,
    tls: TlsParameters,
    credentials: Option<Credentials>,
}

/// A connection that has carried messages, and may carry another.
struct Line {
    server: AsyncSmtpConnection,
    messages: u32,
    since: Instant,
}

impl Way {
    /// What the section says, its password and root read. Fails with one line a fault.
    pub fn load(section: &ReportSection) -> Result<Way, Vec<String>> {
        Ok(Way { by: By::load(section)?, waiting: Mutex::default() })
    }

    /// Takes leave of the server: nothing is to be handed over for the time being. It is waited for half a second at most.
    pub async fn rest(&self) {
        let lines = std::mem::take(&mut *self.waiting.lock());
        let leave = async {
            for line in lines {
                line.leave().await;
            }
        };
        let _ = tokio::time::timeout(LEAVE, leave).await;
    }

    /// The queue id in a reply of this host's MTA to the final dot: `250 2.0.0 Ok: queued as ID` (Postfix), `250 OK id=ID`
    /// (Exim). Nothing of another host's: its queue ids are in no log here.
    pub fn queue_id<'a>(&self, answer: &'a str) -> Option<&'a str> {
        if !matches!(self.by, By::Smtp(_)) {
            return None;
        }
        let rest = answer.split_once(": queued as ").or_else(|| answer.split_once("OK id="))?.1;
        let id = rest.split(' ').next()?;
        let shaped =
            (5..=MAX_QUEUE_ID).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        shaped.then_some(id)
    }

    /// Says MAIL over a connection that waits, where one still stands, else over a new one.
    async fn begin(
        &self,
        open: impl Future<Output = Result<AsyncSmtpConnection, Stop>>,
        letter: Letter<'_>,
    ) -> Result<Line, Stop> {
        loop {
            let Some(mut line) = self.waiting.lock().pop() else { break };
            if line.messages == MAX_MESSAGES || line.since.elapsed() >= MAX_WAIT {
                line.leave().await;
                continue;
            }
            match line.mail(letter).await {
                Ok(()) => return Ok(line),
                Err(e) if is_answer(&e) => return Err(e.into()),
                // It was closed meanwhile: the server knows nothing of this message.
                Err(_) => {}
            }
        }
        let mut line = Line { server: open.await?, messages: 0, since: Instant::now() };
        line.mail(letter).await?;
        Ok(line)
    }
}

impl By {
    fn load(section: &ReportSection) -> Result<By, Vec<String>> {
        let (host, port, implicit) = match &section.deliver {
            Deliver::Smtp(address) => return Ok(By::Smtp(*address)),
            Deliver::Sendmail(path) => return Ok(By::Sendmail(path.clone())),
            Deliver::Submission(host, port) => (host.clone(), *port, false),
            Deliver::Submissions(host, port) => (host.clone(), *port, true),
        };
        let mut faults = Vec::new();
        let mut tls = TlsParameters::builder(host.clone());
        if let Some(path) = &section.ca_file {
            match read(path).map_err(|e| e.to_string()).and_then(|pem| root(&pem)) {
                Ok(root) => tls = tls.add_root_certificate(root),
                Err(why) => faults.push(format!("[report] ca_file: {}: {why}; not started", path.display())),
            }
        }
        let credentials = match (&section.user, &section.password) {
            (Some(user), Some(path)) => match password(path) {
                Ok(password) => Some(Credentials::new(user.clone(), password)),
                Err(why) => {
                    faults.push(format!("[report] password: {}: {why}; not started", path.display()));
                    None
                }
            },
            _ => None,
        };
        match tls.build_rustls() {
            Ok(tls) if faults.is_empty() => {
                Ok(By::Submission(Box::new(Submission { host, port, implicit, tls, credentials })))
            }
            Ok(_) => Err(faults),
            Err(e) => {
                faults.push(format!("[report] deliver: TLS cannot be used: {}; not started", text_of_error(&e)));
                Err(faults)
            }
        }
    }
}

impl fmt::Debug for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.by {
            By::Smtp(address) => write!(f, "smtp:{address}"),
            By::Sendmail(path) => write!(f, "sendmail:{}", path.display()),
            By::Submission(server) => write!(f, "submission to {}:{}", server.host, server.port),
        }
    }
}

/// One line where others than the daemon's user can read the password.
pub fn readable_by_others(section: &ReportSection) -> Option<String> {
    let path = section.password.as_ref()?;
    let mode = std::fs::metadata(path).ok()?.permissions().mode();
    let shown = path.display();
    (mode & 0o007 != 0).then(|| {
        format!(
            "[report] password: {shown}: others may read or write it (mode {:04o}); they can send as us",
            mode & 0o7777
        )
    })
}

fn root(pem: &[u8]) -> Result<Certificate, String> {
    match (CertificateDer::pem_slice_iter(pem).next(), Certificate::from_pem(pem)) {
        (Some(Ok(_)), Ok(root)) => Ok(root),
        _ => Err("no certificate in it; allowed: PEM".to_owned()),
    }
}

/// The first line of a password file; `credential:NAME` is a file that systemd hands over (`LoadCredential=`).
fn password(path: &Path) -> Result<String, String> {
    let file = match path.to_str().and_then(|text| text.strip_prefix("credential:")) {
        None => path.to_owned(),
        Some(name) => {
            let folder = std::env::var_os("CREDENTIALS_DIRECTORY");
            PathBuf::from(folder.ok_or("no credentials: systemd handed none over (LoadCredential=)")?).join(name)
        }
    };
    let octets = read(&file).map_err(|e| e.to_string())?;
    let text = String::from_utf8(octets).map_err(|_| "not UTF-8")?;
    match text.lines().next() {
        Some(line) if !line.is_empty() => Ok(line.to_owned()),
        _ => Err("its first line is empty".to_owned()),
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut octets = Vec::new();
    File::open(path)?.take(MAX_FILE).read_to_end(&mut octets)?;
    Ok(octets)
}

/// A message on its way.
#[derive(Clone, Copy, Debug)]
pub struct Letter<'a> {
    /// The envelope sender.
    pub from: &'a Mailbox,
    /// The one recipient.
    pub to: &'a Mailbox,
    /// The octets, CRLF at the end of each line.
    pub message: &'a [u8],
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "outcome", content = "answer")]
pub enum Outcome {
    /// It was taken; what the receiver said.
    Accepted(String),
    /// It will never be taken.
    Refused(String),
    /// It was certainly not taken this time, and may be later.
    Retry(String),
    /// It may have been taken.
    Unknown(String),
}

/// How long is waited.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From the connect to the final dot.
    pub before_dot: Duration,
    /// For the reply to it (RFC 5321 §4.5.3.2.6: 10 minutes, so that slow content filters make no duplicates).
    pub after_dot: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { before_dot: Duration::from_secs(120), after_dot: Duration::from_secs(600) }
    }
}

/// Delivers one message. When `cut` resolves (the daemon ends), no longer waits: the outcome is what is certain by then.
pub async fn deliver(way: &Way, letter: Letter<'_>, limits: Limits, cut: impl Future<Output = ()>) -> Outcome {
    let ended = AtomicBool::new(false);
    let handing = async {
        match &way.by {
            By::Smtp(address) => judge(converse(way, connect(*address), letter, &ended).await, address, &ended),
            By::Sendmail(path) => sendmail(path, letter, &ended).await,
            By::Submission(server) => {
                let said = converse(way, log_in(server), letter, &ended).await;
                judge(said, &format_args!("{}:{}", server.host, server.port), &ended)
            }
        }
    };
    bounded(handing, &ended, limits, cut).await
}

/// Posts a gzipped report to a URI (RFC 8460 §5.4).
pub async fn post(
    client: &https::Client,
    uri: &str,
    gzip: &[u8],
    limits: Limits,
    cut: impl Future<Output = ()>,
) -> Outcome {
    let ended = Arc::new(AtomicBool::new(false));
    let handing = async {
        match client.post(uri, "application/tlsrpt+gzip", gzip, Arc::clone(&ended)).await {
            Ok(status) => by_status(status),
            // Nothing was connected to; it will not be another time either.
            Err(e @ HttpsError::Private(_)) => Outcome::Refused(shown(&e.to_string(), MAX_ANSWER)),
            Err(e) => unanswered(&ended, &e.to_string()),
        }
    };
    bounded(handing, &ended, limits, cut).await
}

/// What an HTTP status means: 2xx is a yes (RFC 8460 §5.4). Of the others those are tried again that may pass (RFC 9110
/// §15.5.9, §15.6; RFC 8470 §5.2; RFC 6585 §4); redirects are not followed, for who is asked is what DNS says.
fn by_status(status: u16) -> Outcome {
    match status {
        200..=299 => Outcome::Accepted(format!("HTTP {status}")),
        408 | 425 | 429 | 500..=599 => Outcome::Retry(format!("HTTP {status}")),
        300..=399 => Outcome::Refused(format!("HTTP {status}: a redirect, which is not followed")),
        _ => Outcome::Refused(format!("HTTP {status}")),
    }
}

/// Holds a hand-over to its limits.
async fn bounded(
    handing: impl Future<Output = Outcome>,
    ended: &AtomicBool,
    limits: Limits,
    cut: impl Future<Output = ()>,
) -> Outcome {
    // Two limits in one: the first one's end is no end when the final dot had gone by then.
    let limit = async {
        tokio::time::sleep(limits.before_dot).await;
        if ended.load(Ordering::Relaxed) {
            tokio::time::sleep(limits.after_dot).await;
        }
        "no answer in time"
    };
    let cut = async {
        cut.await;
        "stopped while it was under way"
    };
    tokio::select! {
        outcome = handing => outcome,
        why = limit => unanswered(ended, why),
        why = cut => unanswered(ended, why),
    }
}

/// What is certain when there was no answer.
fn unanswered(ended: &AtomicBool, why: &str) -> Outcome {
    let why = shown(why, MAX_ANSWER);
    if ended.load(Ordering::Relaxed) { Outcome::Unknown(why) } else { Outcome::Retry(why) }
}

fn judge(said: Result<Response, Stop>, server: &dyn fmt::Display, ended: &AtomicBool) -> Outcome {
    match said {
        Ok(reply) if reply.has_code(250) => Outcome::Accepted(text_of(&reply)),
        // RFC 5321 §4.2.1: what begins with 2 is a yes, whatever follows.
        Ok(reply) if u16::from(reply.code()) / 100 == 2 => Outcome::Accepted(text_of(&reply)),
        Ok(reply) => unanswered(ended, &text_of(&reply)),
        Err(Stop::Io(e)) => unanswered(ended, &format!("{server}: {e}")),
        Err(Stop::Here(why)) => Outcome::Retry(shown(&format!("{server}: {why}"), MAX_ANSWER)),
        // A 4xx or 5xx is the server's word that it did not take it, before the dot and after.
        Err(Stop::Smtp(e)) if e.is_permanent() => Outcome::Refused(text_of_error(&e)),
        Err(Stop::Smtp(e)) if e.is_transient() => Outcome::Retry(text_of_error(&e)),
        Err(Stop::Smtp(e)) => unanswered(ended, &format!("{server}: {}", text_of_error(&e))),
    }
}

/// Why the conversation ended early.
enum Stop {
    Io(io::Error),
    Smtp(SmtpError),
    /// Before any address was named: what a no means for is us, not the report. Or a yes that may not come here.
    Here(String),
}

impl From<SmtpError> for Stop {
    fn from(e: SmtpError) -> Stop {
        Stop::Smtp(e)
    }
}

async fn connect(address: SocketAddr) -> Result<AsyncSmtpConnection, Stop> {
    let stream = tcp(address).await?;
    Ok(AsyncSmtpConnection::connect_with_transport(Box::new(stream), &ClientId::default()).await?)
}

async fn tcp(address: impl ToSocketAddrs) -> Result<TcpStream, Stop> {
    let stream = TcpStream::connect(address).await.map_err(Stop::Io)?;
    // Many small writes, each waited for: with Nagle's algorithm every message takes 40 ms.
    stream.set_nodelay(true).map_err(Stop::Io)?;
    Ok(stream)
}

/// TLS always, then the login where there is one. A no to these is no word about the report: it is tried again.
async fn log_in(server: &Submission) -> Result<AsyncSmtpConnection, Stop> {
    let here = |what: &'static str| move |e: SmtpError| Stop::Here(format!("{what}: {}", text_of_error(&e)));
    let (name, tls) = (ClientId::default(), server.tls.clone());
    let at = (server.host.as_str(), server.port);
    let mut connection = if server.implicit {
        let connected = AsyncSmtpConnection::connect_tokio1(at, None, &name, Some(tls), None).await;
        connected.map_err(here("TLS"))?
    } else {
        let stream = Box::new(tcp(at).await?);
        let mut connection =
            AsyncSmtpConnection::connect_with_transport(stream, &name).await.map_err(here("greeting"))?;
        connection.starttls(tls, &name).await.map_err(here("STARTTLS"))?;
        connection
    };
    if let Some(credentials) = &server.credentials {
        connection.auth(&[Mechanism::Plain, Mechanism::Login], credentials).await.map_err(here("login"))?;
    }
    Ok(connection)
}

async fn converse(
    way: &Way,
    open: impl Future<Output = Result<AsyncSmtpConnection, Stop>>,
    letter: Letter<'_>,
    ended: &AtomicBool,
) -> Result<Response, Stop> {
    let mut line = way.begin(open, letter).await?;
    line.server.command(Rcpt::new(lettre_address(letter.to), vec![])).await?;
    let go = line.server.command(Data).await?;
    if !go.has_code(354) {
        return Err(Stop::Here(format!("DATA answered with {}", text_of(&go))));
    }
    let reply = line.server.message_iter(Parts { message: Some(body(letter.message)), ended }).await?;
    // A reply that is none of the expected ones may not be the last.
    if reply.has_code(250) {
        (line.messages, line.since) = (line.messages + 1, Instant::now());
        way.waiting.lock().push(line);
    }
    Ok(reply)
}

impl Line {
    async fn mail(&mut self, letter: Letter<'_>) -> Result<(), SmtpError> {
        self.server.command(Mail::new(Some(lettre_address(letter.from)), vec![])).await.map(drop)
    }

    /// The messages are theirs: how they take leave changes nothing.
    async fn leave(mut self) {
        let _ = tokio::time::timeout(LEAVE, self.server.command(Quit)).await;
    }
}

/// Whether it is the server's word about this message. 421 is not: it says that the connection ends (RFC 5321 §3.8).
fn is_answer(error: &SmtpError) -> bool {
    error.status().is_some_and(|code| u16::from(code) != 421)
}

/// The message without its final CRLF, which the dot brings along.
fn body(message: &[u8]) -> &[u8] {
    message.strip_suffix(b"\r\n").unwrap_or(message)
}

/// The message in one part. Asked for another, it notes that the final dot comes next: until then nothing can have been taken.
struct Parts<'a> {
    message: Option<&'a [u8]>,
    ended: &'a AtomicBool,
}

impl<'a> Iterator for Parts<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.message.is_none() {
            self.ended.store(true, Ordering::Relaxed);
        }
        self.message.take()
    }
}

/// The address for lettre: a [`Mailbox`] is of the plain form that needs no further check.
fn lettre_address(mailbox: &Mailbox) -> Address {
    Address::new_dangerous(&mailbox.local, &mailbox.domain)
}

fn text_of(reply: &Response) -> String {
    let text: Vec<_> = reply.message().collect();
    shown(&format!("{} {}", reply.code(), text.join(" ")), MAX_ANSWER)
}

fn text_of_error(error: &SmtpError) -> String {
    shown(&error.to_string(), MAX_ANSWER)
}

async fn sendmail(path: &Path, letter: Letter<'_>, ended: &AtomicBool) -> Outcome {
    let spawned = Command::new(path)
        .args(["-i", "-f", &letter.from.to_string(), "--", &letter.to.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut running = match spawned {
        Ok(child) => Running(child),
        Err(e) => return Outcome::Retry(shown(&format!("{}: {e}", path.display()), MAX_ANSWER)),
    };
    let stderr = running.0.stderr.take();
    let ((written, status), said) = tokio::join!(running.finish(letter.message, ended), complaint(stderr));
    let name = path.display();
    match (status, written) {
        (Err(e), _) => unanswered(ended, &format!("{name}: {e}")),
        (Ok(status), _) if !status.success() => by_exit_code(status, &format!("{name}: {status}: {said}"), ended),
        (Ok(_), Err(e)) => {
            Outcome::Unknown(shown(&format!("{name}: said yes, and did not read it all: {e}"), MAX_ANSWER))
        }
        (Ok(_), Ok(())) => Outcome::Accepted(shown(&format!("{name}: taken {said}"), MAX_ANSWER).trim_end().to_owned()),
    }
}

/// The command. Dropped early, it is killed before its input ends: it would take the half for the whole.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Fails only where it has ended already.
        let _ = self.0.start_kill();
    }
}

impl Running {
    async fn finish(&mut self, message: &[u8], ended: &AtomicBool) -> (io::Result<()>, io::Result<ExitStatus>) {
        let written = self.feed(message, ended).await;
        (written, self.0.wait().await)
    }

    /// Writes the message, lines ended as the command wants them, and ends its input.
    async fn feed(&mut self, message: &[u8], ended: &AtomicBool) -> io::Result<()> {
        let Some(input) = self.0.stdin.as_mut() else { return Err(io::Error::other("no standard input")) };
        let written = async {
            input.write_all(&local_lines(message)).await?;
            input.flush().await
        }
        .await;
        // After an error too: the command must not wait for more.
        ended.store(written.is_ok(), Ordering::Relaxed);
        self.0.stdin = None;
        written
    }
}

/// sendmail's input has the line ends of the host.
fn local_lines(message: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.len());
    for line in message.split_inclusive(|b| *b == b'\n') {
        match line.strip_suffix(b"\r\n") {
            Some(text) => {
                out.extend_from_slice(text);
                out.push(b'\n');
            }
            None => out.extend_from_slice(line),
        }
    }
    out
}

/// The first of what the command said on standard error.
async fn complaint(stderr: Option<tokio::process::ChildStderr>) -> String {
    let Some(mut stderr) = stderr else { return String::new() };
    let mut said = Vec::new();
    let mut chunk = [0; 1024];
    // All is read, so that the command is not stopped by a full pipe; little is kept.
    while let Ok(n @ 1..) = stderr.read(&mut chunk).await {
        if said.len() < MAX_ANSWER {
            said.extend_from_slice(&chunk[..n]);
        }
    }
    shown(String::from_utf8_lossy(&said).trim(), MAX_ANSWER)
}

/// What sendmail's exit code means (sysexits(3)). An exit is an answer, as a reply is: it was not taken.
fn by_exit_code(status: ExitStatus, text: &str, ended: &AtomicBool) -> Outcome {
    /// EX_SOFTWARE, EX_OSERR, EX_CANTCREAT, EX_IOERR, EX_TEMPFAIL: the host's trouble, which may pass.
    const PASSING: [i32; 5] = [70, 71, 73, 74, 75];
    match status.code() {
        Some(code) if PASSING.contains(&code) => Outcome::Retry(shown(text, MAX_ANSWER)),
        Some(_) => Outcome::Refused(shown(text, MAX_ANSWER)),
        // Killed by a signal: it may have queued the message before.
        None => unanswered(ended, text),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::future::pending;
    use std::sync::atomic::AtomicUsize;
    use tokio::io::{AsyncBufReadExt, BufReader};
    use tokio::net::TcpListener;
    use tokio::sync::mpsc;

    const MESSAGE: &[u8] = b"Subject: x\r\n\r\n.leading dot\r\n..two\r\nlast\r\n";

    /// Where the server turns nasty.
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub(crate) enum Turn {
        Never,
        /// This reply in place of the usual one to a command of this name; `.` is the final dot, `greeting` the banner.
        Reply(&'static str, &'static str),
        /// The connection is closed when this command came.
        Drop(&'static str),
        /// Nothing more is said when this command came.
        Silence(&'static str),
        /// The message is taken, and the reply to the final dot comes this much later.
        Slow(Duration),
        /// After the reply to the final dot this is said, and the connection is closed.
        Ends(&'static str),
        /// The second message of a connection meets this reply at this command; an empty one closes the connection.
        Second(&'static str, &'static str),
    }

    /// An SMTP server on loopback; gives its address and, per message, its envelope and octets.
    pub(crate) async fn server(turn: Turn) -> (SocketAddr, mpsc::UnboundedReceiver<(String, String, Vec<u8>)>) {
        let (address, taken, _) = counting_server(turn).await;
        (address, taken)
    }

    /// With the number of connections that it had.
    async fn counting_server(
        turn: Turn,
    ) -> (SocketAddr, mpsc::UnboundedReceiver<(String, String, Vec<u8>)>, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (send, taken) = mpsc::unbounded_channel();
        let connections = Arc::new(AtomicUsize::new(0));
        let had = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                had.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(serve(stream, turn, send.clone()));
            }
        });
        (address, taken, connections)
    }

    async fn serve(stream: TcpStream, turn: Turn, taken: mpsc::UnboundedSender<(String, String, Vec<u8>)>) {
        let mut stream = BufReader::new(stream);
        let (mut from, mut to) = (String::new(), String::new());
        let mut verb = "greeting".to_owned();
        let mut message = Vec::new();
        let mut number = 0;
        loop {
            number += usize::from(verb == "MAIL");
            match turn {
                Turn::Drop(at) if at == verb => return,
                Turn::Second(at, "") if at == verb && number == 2 => return,
                Turn::Silence(at) if at == verb => return pending().await,
                _ => {}
            }
            let usual = match verb.as_str() {
                "greeting" => "220 sink.example ESMTP",
                "EHLO" => "250 sink.example",
                "DATA" => "354 go",
                "QUIT" => "221 bye",
                "." => "250 2.0.0 Ok: queued as 4Xyz12",
                _ => "250 ok",
            };
            let reply = match turn {
                Turn::Reply(at, reply) if at == verb => reply,
                Turn::Second(at, reply) if at == verb && number == 2 => reply,
                _ => usual,
            };
            if verb == "." && reply.starts_with('2') {
                taken.send((from.clone(), to.clone(), std::mem::take(&mut message))).unwrap();
                if let Turn::Slow(by) = turn {
                    tokio::time::sleep(by).await;
                }
            }
            if stream.get_mut().write_all(format!("{reply}\r\n").as_bytes()).await.is_err() || verb == "QUIT" {
                return;
            }
            if let Turn::Ends(with) = turn
                && verb == "."
            {
                return stream.get_mut().write_all(with.as_bytes()).await.unwrap();
            }
            if verb == "DATA" && reply.starts_with('3') {
                loop {
                    let mut line = Vec::new();
                    if stream.read_until(b'\n', &mut line).await.unwrap_or(0) == 0 {
                        return;
                    }
                    if line == b".\r\n" {
                        break;
                    }
                    message.extend_from_slice(line.strip_prefix(b".").unwrap_or(&line));
                }
                verb = ".".into();
                continue;
            }
            let mut line = String::new();
            if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
                return;
            }
            verb = line.trim_end().split([' ', ':']).next().unwrap().to_owned();
            match verb.as_str() {
                "MAIL" => from = line.trim_end().to_owned(),
                "RCPT" => to = line.trim_end().to_owned(),
                _ => {}
            }
        }
    }

    const SHORT: Limits = Limits { before_dot: Duration::from_millis(300), after_dot: Duration::from_millis(300) };

    impl Way {
        fn smtp(address: SocketAddr) -> Way {
            Way { by: By::Smtp(address), waiting: Mutex::default() }
        }

        fn sendmail(path: &Path) -> Way {
            Way { by: By::Sendmail(path.to_owned()), waiting: Mutex::default() }
        }
    }

    async fn hand_over(by: &Way, limits: Limits) -> Outcome {
        let from: Mailbox = "bounces@sender.example".parse().unwrap();
        let to: Mailbox = "-odd!one@example.net".parse().unwrap();
        deliver(by, Letter { from: &from, to: &to, message: MESSAGE }, limits, pending()).await
    }

    async fn smtp_outcome(turn: Turn) -> Outcome {
        let (address, _taken) = server(turn).await;
        hand_over(&Way::smtp(address), SHORT).await
    }

    #[tokio::test]
    async fn a_message_arrives_octet_for_octet() {
        let (address, mut taken) = server(Turn::Never).await;
        let outcome = hand_over(&Way::smtp(address), Limits::default()).await;
        assert_eq!(outcome, Outcome::Accepted("250 2.0.0 Ok: queued as 4Xyz12".into()));
        let (from, to, message) = taken.try_recv().unwrap();
        assert_eq!(
            (from.as_str(), to.as_str()),
            ("MAIL FROM:<bounces@sender.example>", "RCPT TO:<-odd!one@example.net>")
        );
        assert_eq!(message, MESSAGE);
    }

    #[tokio::test]
    async fn a_no_of_five_hundred_is_for_ever_and_of_four_hundred_for_now() {
        for at in ["greeting", "EHLO", "MAIL", "RCPT", "DATA", "."] {
            let no = smtp_outcome(Turn::Reply(at, "550 5.7.1 no")).await;
            assert!(matches!(&no, Outcome::Refused(text) if text.contains("no")), "{at}: {no:?}");
            let later = smtp_outcome(Turn::Reply(at, "451 4.3.0 later")).await;
            assert!(matches!(&later, Outcome::Retry(text) if text.contains("later")), "{at}: {later:?}");
        }
    }

    #[tokio::test]
    async fn before_the_final_dot_all_else_is_tried_again() {
        for at in ["greeting", "EHLO", "MAIL", "RCPT", "DATA"] {
            for turn in [Turn::Drop(at), Turn::Silence(at), Turn::Reply(at, "garbage")] {
                let outcome = smtp_outcome(turn).await;
                assert!(matches!(outcome, Outcome::Retry(_)), "{turn:?}: {outcome:?}");
            }
        }
        let outcome = smtp_outcome(Turn::Reply("DATA", "250 what?")).await;
        assert!(matches!(outcome, Outcome::Retry(_)), "{outcome:?}");
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let outcome = hand_over(&Way::smtp(closed), SHORT).await;
        assert!(matches!(outcome, Outcome::Retry(_)), "{outcome:?}");
    }

    #[tokio::test]
    async fn after_the_final_dot_all_else_is_unknown() {
        for turn in [Turn::Drop("."), Turn::Silence("."), Turn::Reply(".", "garbage"), Turn::Reply(".", "354 go on")] {
            let outcome = smtp_outcome(turn).await;
            assert!(matches!(outcome, Outcome::Unknown(_)), "{turn:?}: {outcome:?}");
        }
    }

    #[tokio::test]
    async fn leave_taking_does_not_matter() {
        for turn in [Turn::Drop("QUIT"), Turn::Silence("QUIT"), Turn::Reply("QUIT", "500 no")] {
            let (address, mut taken) = server(turn).await;
            let way = Way::smtp(address);
            let outcome = hand_over(&way, Limits::default()).await;
            assert!(matches!(outcome, Outcome::Accepted(_)), "{turn:?}: {outcome:?}");
            let begun = Instant::now();
            way.rest().await;
            assert!(begun.elapsed() < 2 * LEAVE, "{turn:?}");
            assert!(taken.try_recv().is_ok());
        }
    }

    #[test]
    fn the_reply_tells_the_queue_id() {
        let mta = Way::smtp("127.0.0.1:25".parse().unwrap());
        for (answer, id) in [
            ("250 2.0.0 Ok: queued as 4Xyz12z3AbczQ", Some("4Xyz12z3AbczQ")),
            ("250 2.0.0 Ok: queued as 9F6B55C2E7", Some("9F6B55C2E7")),
            ("250 OK id=1vNxyZ-00000003Abc-1aBC", Some("1vNxyZ-00000003Abc-1aBC")),
            ("250 2.0.0 Ok: queued as ", None),
            ("250 2.0.0 Ok: queued as \\u{202e}", None),
            ("250 taken", None),
        ] {
            assert_eq!(mta.queue_id(answer), id, "{answer}");
        }
        assert_eq!(Way::sendmail("/usr/sbin/sendmail".as_ref()).queue_id("x: queued as 4Xyz12z3AbczQ"), None);
    }

    #[tokio::test]
    async fn one_connection_carries_many_messages() {
        let (address, mut taken, connections) = counting_server(Turn::Never).await;
        let way = Way::smtp(address);
        for _ in 0..=MAX_MESSAGES {
            let outcome = hand_over(&way, Limits::default()).await;
            assert!(matches!(outcome, Outcome::Accepted(_)), "{outcome:?}");
            assert_eq!(taken.try_recv().unwrap().2, MESSAGE);
        }
        assert_eq!(connections.load(Ordering::Relaxed), 2, "one has its limit");
        way.rest().await;
        hand_over(&way, Limits::default()).await;
        assert_eq!(connections.load(Ordering::Relaxed), 3);
    }

    #[tokio::test]
    async fn a_connection_that_the_server_has_closed_is_replaced_and_nothing_is_lost_or_sent_twice() {
        for end in ["", "421 4.4.2 idle for too long\r\n"] {
            let (address, mut taken, connections) = counting_server(Turn::Ends(end)).await;
            let way = Way::smtp(address);
            for number in 1..=3 {
                let outcome = hand_over(&way, Limits::default()).await;
                assert!(matches!(outcome, Outcome::Accepted(_)), "{end:?}: {outcome:?}");
                assert!(taken.try_recv().is_ok() && taken.try_recv().is_err());
                assert_eq!(connections.load(Ordering::Relaxed), number, "{end:?}");
                // Until the end has arrived.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    #[tokio::test]
    async fn a_connection_that_carried_one_message_is_no_reason_to_believe_less_of_the_next() {
        for (turn, wanted) in [
            (Turn::Second("MAIL", "451 4.3.0 later"), "retry"),
            (Turn::Second("MAIL", "550 5.7.1 no"), "refused"),
            (Turn::Second("RCPT", ""), "retry"),
            (Turn::Second("DATA", ""), "retry"),
            (Turn::Second(".", ""), "unknown"),
            (Turn::Second(".", "421 4.3.0 going down"), "retry"),
        ] {
            let (address, mut taken, connections) = counting_server(turn).await;
            let way = Way::smtp(address);
            assert!(matches!(hand_over(&way, SHORT).await, Outcome::Accepted(_)));
            assert!(taken.try_recv().is_ok());
            let outcome = match hand_over(&way, SHORT).await {
                Outcome::Accepted(_) => "accepted",
                Outcome::Refused(_) => "refused",
                Outcome::Retry(_) => "retry",
                Outcome::Unknown(_) => "unknown",
            };
            assert_eq!(outcome, wanted, "{turn:?}");
            assert_eq!(connections.load(Ordering::Relaxed), 1, "{turn:?}");
            // What became of one message is no word about the next one.
            assert!(way.waiting.lock().is_empty(), "{turn:?}");
        }
    }

    #[tokio::test]
    async fn an_end_of_the_daemon_is_told_apart_too() {
        let from: Mailbox = "a@sender.example".parse().unwrap();
        for (at, unknown) in [("RCPT", false), (".", true)] {
            let (address, _taken) = server(Turn::Silence(at)).await;
            let letter = Letter { from: &from, to: &from, message: MESSAGE };
            let cut = tokio::time::sleep(Duration::from_millis(200));
            let outcome = deliver(&Way::smtp(address), letter, Limits::default(), cut).await;
            assert_eq!(matches!(outcome, Outcome::Unknown(_)), unknown, "{at}: {outcome:?}");
        }
    }

    async fn sendmail_outcome(script: &str, limits: Limits) -> (Outcome, Vec<u8>, String) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sendmail");
        let text = format!("#!/bin/sh\ncd {}\necho \"$@\" > args\n{script}\n", folder.path().display());
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        let outcome = hand_over(&Way::sendmail(&path), limits).await;
        let read = |name: &str| std::fs::read(folder.path().join(name)).unwrap_or_default();
        (outcome, read("message"), String::from_utf8(read("args")).unwrap())
    }

    #[tokio::test]
    async fn sendmail_gets_local_lines_and_a_guarded_recipient() {
        let (outcome, message, args) = sendmail_outcome("cat > message", Limits::default()).await;
        assert!(matches!(outcome, Outcome::Accepted(_)), "{outcome:?}");
        assert_eq!(message, b"Subject: x\n\n.leading dot\n..two\nlast\n");
        assert_eq!(args, "-i -f bounces@sender.example -- -odd!one@example.net\n");
    }

    #[tokio::test]
    async fn sendmail_exit_codes() {
        for (script, retry) in [("exit 75", true), ("exit 71", true), ("exit 67", false), ("exit 1", false)] {
            let (outcome, ..) =
                sendmail_outcome(&format!("cat > /dev/null; echo why >&2; {script}"), Limits::default()).await;
            match outcome {
                Outcome::Retry(text) => assert!(retry && text.contains("why"), "{script}: {text}"),
                Outcome::Refused(text) => assert!(!retry && text.contains("why"), "{script}: {text}"),
                other => panic!("{script}: {other:?}"),
            }
        }
        let (killed, ..) = sendmail_outcome("cat > /dev/null; kill -9 $$", Limits::default()).await;
        assert!(matches!(killed, Outcome::Unknown(_)), "{killed:?}");
        let limits = Limits { before_dot: Duration::from_millis(500), after_dot: Duration::from_millis(200) };
        let (silent, ..) = sendmail_outcome("cat > /dev/null; exec sleep 60", limits).await;
        assert!(matches!(silent, Outcome::Unknown(_)), "{silent:?}");
        let missing = hand_over(&Way::sendmail("/no/such/sendmail".as_ref()), SHORT).await;
        assert!(matches!(missing, Outcome::Retry(_)), "{missing:?}");
    }

    #[tokio::test]
    async fn a_sendmail_that_does_not_read_is_killed_before_its_input_ends() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sendmail");
        let script = format!("#!/bin/sh\nsleep 1\ncat > {}/message\necho done > {0}/done\n", folder.path().display());
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        let from: Mailbox = "a@sender.example".parse().unwrap();
        let large = b"0123456789\r\n".repeat(100_000);
        let letter = Letter { from: &from, to: &from, message: &large };
        let outcome = deliver(&Way::sendmail(&path), letter, SHORT, pending()).await;
        assert!(matches!(outcome, Outcome::Retry(_)), "{outcome:?}");
        tokio::time::sleep(Duration::from_millis(1200)).await;
        assert!(!folder.path().join("done").exists());
    }
}
