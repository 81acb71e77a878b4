//! SMTP servers that take mail in and write down what they saw.
//!
//! Takes: a host name, an address and a [`Kind`]. Gives: the record of every connection, in the order in which they
//! came: the TLS handshake, and the messages with envelope and octets.
//! Limits: `MAX_LINE` octets a command, `MAX_MESSAGE` a message, `IDLE` without a command.
//! When it fails: a client that breaks off ends its connection; the record says how far it came.
//! Not here: delivering anything onwards.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::ca::Identity;

/// The longest command, in octets. RFC 5321 §4.5.3.1.4 asks for 512 and more with extensions.
const MAX_LINE: u64 = 4096;
/// The largest message, in octets.
const MAX_MESSAGE: usize = 32 * 1024 * 1024;
/// How long a client may say nothing.
const IDLE: Duration = Duration::from_secs(60);

/// What a server does about TLS.
#[derive(Clone, Debug)]
pub enum Kind {
    /// Offers STARTTLS with this certificate.
    Tls(Identity),
    /// Does not offer it.
    Plain,
    /// Offers it and answers 454 when asked (RFC 3207 §4).
    Refuses,
    /// Says 220 to STARTTLS and hangs up at the ClientHello.
    HangsUp,
    /// Answers the ClientHello with these octets and hangs up.
    Says(&'static [u8]),
    /// Says 220 to STARTTLS and nothing any more.
    Stalls,
}

/// One connection, as far as it came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Connection {
    /// STARTTLS was asked for.
    pub asked_tls: bool,
    /// The handshake was completed on both sides.
    pub tls: bool,
    /// The name in the client's SNI.
    pub sni: Option<String>,
    /// Messages that were taken in.
    pub messages: usize,
    /// Recipients that were named.
    pub recipients: usize,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mail {
    /// The envelope sender, without angle brackets.
    pub from: String,
    /// The envelope recipients.
    pub to: Vec<String>,
    /// The octets between DATA and the final dot, without the dots of transparency (RFC 5321 §4.5.2).
    pub data: Vec<u8>,
    /// It came over TLS.
    pub tls: bool,
}

/// What a server saw.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// Every connection.
    pub connections: Vec<Connection>,
    /// Every message.
    pub mail: Vec<Mail>,
}

impl Record {
    /// Connections on which TLS came about and that carried a message.
    pub fn sessions_with_mail(&self) -> u64 {
        self.connections.iter().filter(|c| c.tls && c.messages > 0).count() as u64
    }

    /// Connections on which TLS was asked for and that carried nothing.
    pub fn sessions_without_mail(&self) -> u64 {
        self.connections.iter().filter(|c| c.asked_tls && c.messages == 0).count() as u64
    }
}

#[derive(Debug)]
struct State {
    host: String,
    kind: Mutex<Kind>,
    record: Mutex<Record>,
    /// Replies in place of 250 to `RCPT TO`, by recipient.
    refused: Mutex<BTreeMap<String, String>>,
    /// That of the certificate now: sessions that were begun with it can be resumed.
    config: Mutex<Option<Arc<ServerConfig>>>,
}

impl State {
    fn tls_config(&self, identity: &Identity) -> io::Result<Arc<ServerConfig>> {
        let mut config = lock(&self.config);
        if config.is_none() {
            *config = Some(identity.server_config().map_err(io::Error::other)?);
        }
        Ok(config.clone().expect("it was there, or was put there above"))
    }
}

/// A running server. It stops when it is dropped.
#[derive(Debug)]
pub struct Sink {
    address: SocketAddr,
    state: Arc<State>,
    _tasks: JoinSet<()>,
}

impl Sink {
    /// Takes mail in as `host` on `address`; port 0 takes a free one.
    pub async fn start(host: &str, address: SocketAddr, kind: Kind) -> io::Result<Sink> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let state = Arc::new(State {
            host: host.to_owned(),
            kind: Mutex::new(kind),
            record: Mutex::default(),
            refused: Mutex::default(),
            config: Mutex::default(),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, state.clone()));
        Ok(Sink { address, state, _tasks: tasks })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it saw up to now.
    pub fn record(&self) -> Record {
        lock(&self.state.record).clone()
    }

    /// How many messages it has taken in.
    pub fn taken(&self) -> usize {
        lock(&self.state.record).mail.len()
    }

    /// Changes what it does about TLS, from the next connection on.
    pub fn set_kind(&self, kind: Kind) {
        *lock(&self.state.kind) = kind;
        *lock(&self.state.config) = None;
    }

    /// Answers `RCPT TO` for one recipient with this reply, such as `550 5.1.1 no such user`.
    pub fn refuse(&self, recipient: &str, reply: &str) {
        lock(&self.state.refused).insert(recipient.to_owned(), reply.to_owned());
    }
}

async fn serve(listener: TcpListener, state: Arc<State>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        if let Ok((stream, _)) = listener.accept().await {
            let state = state.clone();
            connections.spawn(async move {
                let number = {
                    let mut record = lock(&state.record);
                    record.connections.push(Connection::default());
                    record.connections.len() - 1
                };
                // A client that breaks off has left its record; there is nobody to tell.
                let _ = connection(stream, &state, number).await;
            });
        }
    }
}

/// How a conversation went on.
enum Next {
    Quit,
    StartTls,
}

async fn connection(stream: TcpStream, state: &State, number: usize) -> io::Result<()> {
    let _ = stream.set_nodelay(true);
    let kind = lock(&state.kind).clone();
    let offers = !matches!(kind, Kind::Plain);
    let mut plain = BufStream::new(stream);
    say(&mut plain, &format!("220 {} ESMTP", state.host)).await?;
    loop {
        if let Next::Quit = converse(&mut plain, state, number, offers, false).await? {
            return Ok(());
        }
        lock(&state.record).connections[number].asked_tls = true;
        match &kind {
            Kind::Plain => say(&mut plain, "502 5.5.1 not offered").await?,
            Kind::Refuses => say(&mut plain, "454 4.7.0 TLS not available due to local problem").await?,
            Kind::HangsUp => return answer_hello(plain, &[]).await,
            Kind::Says(octets) => return answer_hello(plain, octets).await,
            Kind::Stalls => {
                say(&mut plain, "220 2.0.0 ready").await?;
                tokio::time::sleep(IDLE).await;
                return Ok(());
            }
            Kind::Tls(identity) => {
                say(&mut plain, "220 2.0.0 ready").await?;
                let config = state.tls_config(identity)?;
                return encrypted(plain.into_inner(), config, state, number).await;
            }
        }
    }
}

async fn answer_hello(mut stream: BufStream<TcpStream>, octets: &[u8]) -> io::Result<()> {
    say(&mut stream, "220 2.0.0 ready").await?;
    let _ = stream.read_u8().await;
    stream.write_all(octets).await?;
    stream.flush().await
}

async fn encrypted(stream: TcpStream, config: Arc<ServerConfig>, state: &State, number: usize) -> io::Result<()> {
    let stream = TlsAcceptor::from(config).accept(stream).await?;
    {
        let mut record = lock(&state.record);
        record.connections[number].tls = true;
        record.connections[number].sni = stream.get_ref().1.server_name().map(str::to_owned);
    }
    let mut stream = BufStream::new(stream);
    converse(&mut stream, state, number, false, true).await?;
    stream.get_mut().shutdown().await
}

/// Answers commands until the client leaves or asks for TLS.
async fn converse<S>(stream: &mut S, state: &State, number: usize, offers: bool, tls: bool) -> io::Result<Next>
where
    S: AsyncBufRead + AsyncWrite + Unpin,
{
    let mut from = None;
    let mut to: Vec<String> = Vec::new();
    loop {
        let line = command(stream).await?;
        let (verb, argument) = line.split_once([' ', ':']).unwrap_or((&line, ""));
        match verb.to_ascii_uppercase().as_str() {
            "EHLO" => {
                let starttls = if offers { "250-STARTTLS\r\n" } else { "" };
                let host = &state.host;
                let text = format!("250-{host}\r\n250-PIPELINING\r\n250-SIZE {MAX_MESSAGE}\r\n{starttls}250 8BITMIME");
                say(stream, &text).await?;
            }
            "HELO" => say(stream, &format!("250 {}", state.host)).await?,
            "STARTTLS" if !tls => return Ok(Next::StartTls),
            "MAIL" => {
                (from, to) = (Some(path(argument)), Vec::new());
                say(stream, "250 2.1.0 ok").await?;
            }
            "RCPT" if from.is_some() => {
                let recipient = path(argument);
                lock(&state.record).connections[number].recipients += 1;
                let refusal = lock(&state.refused).get(&recipient).cloned();
                if refusal.is_none() {
                    to.push(recipient);
                }
                say(stream, refusal.as_deref().unwrap_or("250 2.1.5 ok")).await?;
            }
            "DATA" if !to.is_empty() => {
                say(stream, "354 go on").await?;
                let data = message(stream).await?;
                let queued = {
                    let mut record = lock(&state.record);
                    let mail = Mail { from: from.take().unwrap_or_default(), to: std::mem::take(&mut to), data, tls };
                    record.mail.push(mail);
                    record.connections[number].messages += 1;
                    record.mail.len()
                };
                say(stream, &format!("250 2.0.0 Ok: queued as SINK{queued}")).await?;
            }
            "RSET" => {
                (from, to) = (None, Vec::new());
                say(stream, "250 2.0.0 ok").await?;
            }
            "NOOP" => say(stream, "250 2.0.0 ok").await?,
            "QUIT" => {
                say(stream, "221 2.0.0 bye").await?;
                return Ok(Next::Quit);
            }
            _ => say(stream, "503 5.5.1 not now").await?,
        }
    }
}

/// The address in `FROM:<a@b> SIZE=1` or `TO:<a@b>`.
fn path(argument: &str) -> String {
    let after = argument.split_once('<').map_or(argument, |(_, rest)| rest);
    after.rsplit_once('>').map_or(after, |(path, _)| path).to_owned()
}

async fn command<S: AsyncBufRead + Unpin>(stream: &mut S) -> io::Result<String> {
    let line = line(stream).await?;
    Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
}

/// One line with its end; an error where there is none within the limits.
async fn line<S: AsyncRead + AsyncBufRead + Unpin>(stream: &mut S) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut limited = stream.take(MAX_LINE);
    tokio::time::timeout(IDLE, limited.read_until(b'\n', &mut line)).await??;
    if line.last() != Some(&b'\n') {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line)
}

/// The octets up to the final dot.
async fn message<S: AsyncBufRead + Unpin>(stream: &mut S) -> io::Result<Vec<u8>> {
    let mut data = Vec::new();
    loop {
        let line = line(stream).await?;
        if line == b".\r\n" {
            return Ok(data);
        }
        data.extend_from_slice(line.strip_prefix(b".").unwrap_or(&line));
        if data.len() > MAX_MESSAGE {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
}

async fn say<S: AsyncWrite + Unpin>(stream: &mut S, text: &str) -> io::Result<()> {
    stream.write_all(text.as_bytes()).await?;
    stream.write_all(b"\r\n").await?;
    stream.flush().await
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Hands one message to a server in clear text, as a mail program does.
///
/// Limits: one recipient or more; the message needs no final line end. Fails with the server's reply where one is not 2xx or 3xx.
pub async fn submit(server: SocketAddr, from: &str, to: &[&str], message: &str) -> io::Result<()> {
    let mut stream = BufStream::new(TcpStream::connect(server).await?);
    expect(&mut stream, "the greeting").await?;
    say(&mut stream, "EHLO client.test").await?;
    expect(&mut stream, "EHLO").await?;
    say(&mut stream, &format!("MAIL FROM:<{from}>")).await?;
    expect(&mut stream, "MAIL").await?;
    for recipient in to {
        say(&mut stream, &format!("RCPT TO:<{recipient}>")).await?;
        expect(&mut stream, "RCPT").await?;
    }
    say(&mut stream, "DATA").await?;
    expect(&mut stream, "DATA").await?;
    for text in message.lines() {
        let dot = if text.starts_with('.') { "." } else { "" };
        say(&mut stream, &format!("{dot}{text}")).await?;
    }
    say(&mut stream, ".").await?;
    expect(&mut stream, "the message").await?;
    say(&mut stream, "QUIT").await
}

/// Reads one reply, of one line or more.
async fn expect(stream: &mut BufStream<TcpStream>, what: &str) -> io::Result<()> {
    loop {
        let reply = command(stream).await?;
        if !reply.starts_with(['2', '3']) {
            return Err(io::Error::other(format!("{what}: {reply}")));
        }
        if reply.as_bytes().get(3) != Some(&b'-') {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::{Authority, client_config};
    use rustls::pki_types::ServerName;
    use tokio_rustls::TlsConnector;

    async fn sink(kind: Kind) -> Sink {
        Sink::start("mx.a.test", "127.0.0.1:0".parse().unwrap(), kind).await.unwrap()
    }

    #[tokio::test]
    async fn mail_is_kept_as_it_was_sent() {
        let sink = sink(Kind::Plain).await;
        submit(sink.address(), "s@b.test", &["u@a.test", "v@a.test"], "Subject: x\n\n.dot\n..two").await.unwrap();
        let record = sink.record();
        assert_eq!(record.mail[0].to, ["u@a.test", "v@a.test"]);
        assert_eq!(record.mail[0].from, "s@b.test");
        assert_eq!(String::from_utf8_lossy(&record.mail[0].data), "Subject: x\r\n\r\n.dot\r\n..two\r\n");
        assert_eq!(record.connections, [Connection { messages: 1, recipients: 2, ..Connection::default() }]);
        assert_eq!(record.sessions_with_mail(), 0);
    }

    #[tokio::test]
    async fn a_refused_recipient_gets_nothing() {
        let sink = sink(Kind::Plain).await;
        sink.refuse("u@a.test", "550 5.1.1 no such user");
        let error = submit(sink.address(), "s@b.test", &["u@a.test"], "x").await.unwrap_err();
        assert!(error.to_string().contains("550 5.1.1"), "{error}");
        assert!(sink.record().mail.is_empty());
    }

    #[tokio::test]
    async fn starttls_is_offered_and_recorded() {
        let authority = Authority::generate().unwrap();
        let sink = sink(Kind::Tls(authority.certify("mx.a.test", None).unwrap())).await;
        let mut stream = BufStream::new(TcpStream::connect(sink.address()).await.unwrap());
        expect(&mut stream, "greeting").await.unwrap();
        say(&mut stream, "EHLO client.test").await.unwrap();
        expect(&mut stream, "EHLO").await.unwrap();
        say(&mut stream, "STARTTLS").await.unwrap();
        expect(&mut stream, "STARTTLS").await.unwrap();
        let connector = TlsConnector::from(client_config(&authority).unwrap());
        let name = ServerName::try_from("mx.a.test").unwrap();
        let mut stream = BufStream::new(connector.connect(name, stream.into_inner()).await.unwrap());
        for line in ["EHLO c", "MAIL FROM:<>", "RCPT TO:<u@a.test>", "DATA", "hello\r\n.", "QUIT"] {
            say(&mut stream, line).await.unwrap();
        }
        let mut replies = String::new();
        stream.read_to_string(&mut replies).await.unwrap();
        assert!(!replies.contains("STARTTLS") && replies.contains("250 2.0.0 Ok: queued"), "{replies}");
        let record = sink.record();
        assert_eq!(record.connections[0].sni.as_deref(), Some("mx.a.test"));
        assert!(record.mail[0].tls && record.mail[0].from.is_empty());
        assert_eq!((record.sessions_with_mail(), record.sessions_without_mail()), (1, 0));
    }

    #[tokio::test]
    async fn starttls_is_refused_or_broken_off() {
        for kind in [Kind::Refuses, Kind::HangsUp] {
            let sink = sink(kind.clone()).await;
            let mut stream = BufStream::new(TcpStream::connect(sink.address()).await.unwrap());
            expect(&mut stream, "greeting").await.unwrap();
            say(&mut stream, "STARTTLS").await.unwrap();
            let reply = expect(&mut stream, "STARTTLS").await;
            match kind {
                Kind::Refuses => assert!(reply.unwrap_err().to_string().contains("454 ")),
                _ => {
                    reply.unwrap();
                    stream.write_all(&[0x16]).await.unwrap();
                    stream.flush().await.unwrap();
                    assert_eq!(stream.read(&mut [0]).await.unwrap_or(0), 0);
                }
            }
            assert_eq!(sink.record().sessions_without_mail(), 1);
        }
    }
}
