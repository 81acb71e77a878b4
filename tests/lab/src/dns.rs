//! A DNS server that plays the host's validating resolver.
//!
//! Takes: a zone in memory, changeable while it runs. Gives: answers over UDP and TCP, with the AD bit where
//! the zone is signed and the query asked for it (DO or AD), and the faults that are set for a name.
//! Limits: A, AAAA, CNAME, MX, NS, SOA, TLSA and TXT; no recursion; chains of `MAX_CHAIN` aliases.
//! When it fails: a query that cannot be read gets no answer.
//! Not here: signatures. Whoever asks trusts the AD bit, as a mail host trusts its own resolver.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::rdata::tlsa::{CertUsage, Matching, Selector};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, MX, NS, SOA, TLSA, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;

/// Aliases that are followed for one question.
const MAX_CHAIN: usize = 8;

/// The time to live of every record until another is set, in seconds.
const TTL: u32 = 60;

/// The largest answer over UDP to a query without EDNS, in octets (RFC 1035 §4.2.1).
const UDP_WITHOUT_EDNS: usize = 512;

/// What goes wrong for a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The resolver says SERVFAIL: a dead server, or signatures that do not validate.
    ServFail,
    /// Signatures that do not validate: SERVFAIL with this extended error, and the records to who does not want them
    /// validated.
    Bogus(u16),
    /// No answer at all.
    Silence,
    /// Over UDP nothing but the TC bit; the answer comes over TCP.
    Truncate,
    /// The answer comes this late.
    Late(Duration),
    /// The records are there, under another name than was asked for.
    WrongOwner,
}

/// All names of the world.
#[derive(Debug, Default)]
pub struct Zone {
    records: BTreeMap<Name, Vec<RData>>,
    /// Zone cuts, and whether the zone below is signed.
    cuts: BTreeMap<Name, bool>,
    faults: BTreeMap<Name, Fault>,
    /// What goes wrong for every name.
    outage: Option<Fault>,
    ttl: Option<u32>,
    asked: BTreeMap<(Name, RecordType), u64>,
}

/// A running server. It stops when it is dropped.
#[derive(Debug)]
pub struct Dns {
    address: SocketAddr,
    zone: Arc<RwLock<Zone>>,
    _tasks: JoinSet<()>,
}

impl Dns {
    /// Serves an empty, signed root on `address`, UDP and TCP; port 0 takes a free one.
    pub async fn start(address: SocketAddr) -> io::Result<Dns> {
        let (udp, tcp) = bind_both(address).await?;
        let address = tcp.local_addr()?;
        let mut zone = Zone::default();
        zone.cut(".", true);
        // Postfix asks for `. NS` to learn whether its resolver validates (`dnssec_probe`).
        zone.add(".", RData::NS(NS(name("ns.root-servers.test"))));
        let zone = Arc::new(RwLock::new(zone));
        let mut tasks = JoinSet::new();
        tasks.spawn(serve_udp(Arc::new(udp), zone.clone()));
        tasks.spawn(serve_tcp(tcp, zone.clone()));
        Ok(Dns { address, zone, _tasks: tasks })
    }

    /// Where it answers.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The zone, to look at.
    pub fn zone(&self) -> RwLockReadGuard<'_, Zone> {
        self.zone.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The zone, to change: the next answer has it.
    pub fn change(&self) -> RwLockWriteGuard<'_, Zone> {
        self.zone.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Zone {
    /// Begins a zone at `apex`: all names at and below it, down to the next cut, are signed or not.
    pub fn cut(&mut self, apex: &str, signed: bool) {
        self.cuts.insert(name(apex), signed);
    }

    /// Adds a record.
    pub fn add(&mut self, owner: &str, data: RData) {
        self.records.entry(name(owner)).or_default().push(data);
    }

    /// Removes the records of one type.
    pub fn remove(&mut self, owner: &str, kind: RecordType) {
        let owner = name(owner);
        if let Some(records) = self.records.get_mut(&owner) {
            records.retain(|r| r.record_type() != kind);
            if records.is_empty() {
                self.records.remove(&owner);
            }
        }
    }

    /// Adds an A or AAAA record.
    pub fn address(&mut self, owner: &str, address: IpAddr) {
        self.add(
            owner,
            match address {
                IpAddr::V4(v4) => RData::A(A(v4)),
                IpAddr::V6(v6) => RData::AAAA(AAAA(v6)),
            },
        );
    }

    /// Adds an MX record.
    pub fn mx(&mut self, owner: &str, preference: u16, host: &str) {
        self.add(owner, RData::MX(MX::new(preference, name(host))));
    }

    /// Adds an alias.
    pub fn cname(&mut self, owner: &str, target: &str) {
        self.add(owner, RData::CNAME(CNAME(name(target))));
    }

    /// Sets the one TXT record of a name; texts over 255 octets are split.
    pub fn txt(&mut self, owner: &str, text: &str) {
        self.remove(owner, RecordType::TXT);
        self.more_txt(owner, text);
    }

    /// Adds a TXT record beside those that are there.
    pub fn more_txt(&mut self, owner: &str, text: &str) {
        self.add(owner, RData::TXT(TXT::from_bytes(text.as_bytes().chunks(255).collect())));
    }

    /// Adds a TLSA record for port 25 of a host (RFC 7672 §2.2).
    pub fn tlsa(&mut self, host: &str, usage: u8, selector: u8, matching: u8, data: &[u8]) {
        let tlsa = TLSA::new(CertUsage::from(usage), Selector::from(selector), Matching::from(matching), data.to_vec());
        self.add(&format!("_25._tcp.{host}"), RData::TLSA(tlsa));
    }

    /// Sets what goes wrong for exactly this name, or mends it.
    pub fn fault(&mut self, owner: &str, fault: Option<Fault>) {
        match fault {
            Some(fault) => self.faults.insert(name(owner), fault),
            None => self.faults.remove(&name(owner)),
        };
    }

    /// Sets what goes wrong for every name, or mends it.
    pub fn outage(&mut self, fault: Option<Fault>) {
        self.outage = fault;
    }

    /// Sets the time to live of all answers from now on, in seconds.
    pub fn ttl(&mut self, seconds: u32) {
        self.ttl = Some(seconds);
    }

    /// How often a question was asked.
    pub fn asked(&self, owner: &str, kind: RecordType) -> u64 {
        self.asked.get(&(name(owner), kind)).copied().unwrap_or(0)
    }

    /// The text of the TXT record of a name.
    pub fn text(&self, owner: &str) -> Option<String> {
        self.records.get(&name(owner))?.iter().find_map(|r| match r {
            RData::TXT(txt) => {
                let octets: Vec<u8> = txt.txt_data.iter().flat_map(|part| part.iter().copied()).collect();
                Some(String::from_utf8_lossy(&octets).into_owned())
            }
            _ => None,
        })
    }

    /// Whether a domain has this MX host.
    pub fn has_mx(&self, domain: &str, host: &str) -> bool {
        let host = name(host);
        let mut records = self.records.get(&name(domain)).into_iter().flatten();
        records.any(|r| matches!(r, RData::MX(mx) if mx.exchange == host))
    }

    /// The apex of the zone that holds a name, and whether it is signed.
    fn apex(&self, owner: &Name) -> (Name, bool) {
        let mut at = owner.clone();
        loop {
            if let Some(&signed) = self.cuts.get(&at) {
                return (at, signed);
            }
            if at.is_root() {
                return (at, false);
            }
            at = at.base_name();
        }
    }

    /// Whether a name exists, with records of its own or only above others (RFC 8020).
    fn exists(&self, owner: &Name) -> bool {
        // The order of names is canonical (RFC 4034 §6.1): what is below a name follows it.
        self.records.range(owner..).next().is_some_and(|(n, _)| owner.zone_of(n))
    }

    /// Fills in the answer to the message's question. Its AD bit says that every part of the answer is signed.
    fn answer(&self, owner: &Name, kind: RecordType, response: &mut Message) {
        let ttl = self.ttl.unwrap_or(TTL);
        let mut at = owner.clone();
        let mut signed = true;
        let mut seen = BTreeSet::new();
        while seen.len() < MAX_CHAIN && seen.insert(at.clone()) {
            let (apex, zone_signed) = self.apex(&at);
            signed &= zone_signed;
            let here = self.records.get(&at).map_or(&[][..], Vec::as_slice);
            let wanted: Vec<&RData> = here.iter().filter(|r| r.record_type() == kind).collect();
            if !wanted.is_empty() {
                response.add_answers(wanted.into_iter().map(|r| Record::from_rdata(at.clone(), ttl, r.clone())));
                break;
            }
            let alias = here.iter().find_map(|r| match r {
                RData::CNAME(CNAME(target)) => Some(target.to_lowercase()),
                _ => None,
            });
            match alias {
                Some(target) => {
                    response.add_answer(Record::from_rdata(at, ttl, RData::CNAME(CNAME(target.clone()))));
                    at = target;
                }
                None => {
                    if !self.exists(&at) {
                        response.metadata.response_code = ResponseCode::NXDomain;
                    }
                    let soa = SOA::new(apex.clone(), name("hostmaster.root-servers.test"), 1, 3600, 600, 86_400, ttl);
                    response.add_authority(Record::from_rdata(apex, ttl, RData::SOA(soa)));
                    break;
                }
            }
        }
        response.metadata.authentic_data = signed;
    }
}

/// What is to be done with a query.
enum Reply {
    Never,
    Now(Message),
    Later(Duration, Message),
}

/// Answers one query; `None` where it cannot be read as one.
fn reply(zone: &RwLock<Zone>, query: &[u8], over_udp: bool) -> Option<Reply> {
    let query = Message::from_vec(query).ok()?;
    let question = query.queries.first()?.clone();
    let owner = question.name().to_lowercase();
    let mut response = Message::response(query.metadata.id, query.metadata.op_code);
    response.metadata = Metadata::response_from_request(&query.metadata);
    response.metadata.recursion_available = true;
    response.add_query(question.clone());
    let mut wants_verdict = query.metadata.authentic_data;
    if let Some(asked) = &query.edns {
        wants_verdict |= asked.flags().dnssec_ok;
        let mut edns = Edns::new();
        edns.set_max_payload(1232).set_version(0).set_dnssec_ok(asked.flags().dnssec_ok);
        response.set_edns(edns);
    }
    if query.metadata.op_code != OpCode::Query {
        response.metadata.response_code = ResponseCode::NotImp;
        return Some(Reply::Now(response));
    }
    let mut zone = zone.write().unwrap_or_else(PoisonError::into_inner);
    *zone.asked.entry((owner.clone(), question.query_type())).or_default() += 1;
    let fault = zone.outage.or_else(|| zone.faults.get(&owner).copied());
    match fault {
        Some(Fault::Silence) => return Some(Reply::Never),
        Some(Fault::ServFail) => {
            response.metadata.response_code = ResponseCode::ServFail;
            return Some(Reply::Now(response));
        }
        Some(Fault::Bogus(code)) if !query.metadata.checking_disabled => {
            response.metadata.response_code = ResponseCode::ServFail;
            if let Some(edns) = &mut response.edns {
                edns.options_mut().insert(EdnsOption::Unknown(15, code.to_be_bytes().to_vec()));
            }
            return Some(Reply::Now(response));
        }
        Some(Fault::Truncate) if over_udp => return Some(Reply::Now(response.truncate())),
        Some(Fault::Bogus(_) | Fault::Truncate | Fault::Late(_) | Fault::WrongOwner) | None => {}
    }
    zone.answer(&owner, question.query_type(), &mut response);
    response.metadata.authentic_data &= wants_verdict && !query.metadata.checking_disabled;
    if fault == Some(Fault::WrongOwner) {
        response.answers.iter_mut().for_each(|record| record.name = name("somebody.else.test"));
    }
    Some(match fault {
        Some(Fault::Late(wait)) => Reply::Later(wait, response),
        _ => Reply::Now(response),
    })
}

async fn serve_udp(socket: Arc<UdpSocket>, zone: Arc<RwLock<Zone>>) {
    let mut late = JoinSet::new();
    let mut buffer = vec![0; 4096];
    loop {
        while late.try_join_next().is_some() {}
        // A closed port at an asker's end comes back as an error here; it concerns nobody else.
        let Ok((length, asker)) = socket.recv_from(&mut buffer).await else { continue };
        let (wait, message) = match reply(&zone, &buffer[..length], true) {
            None | Some(Reply::Never) => continue,
            Some(Reply::Now(message)) => (Duration::ZERO, message),
            Some(Reply::Later(wait, message)) => (wait, message),
        };
        let limit = message.edns.as_ref().map_or(UDP_WITHOUT_EDNS, |e| usize::from(e.max_payload()));
        let octets = match message.to_vec() {
            Ok(octets) if octets.len() <= limit => octets,
            Ok(_) => message.truncate().to_vec().unwrap_or_default(),
            Err(_) => continue,
        };
        if wait.is_zero() {
            let _ = socket.send_to(&octets, asker).await;
        } else {
            let socket = socket.clone();
            late.spawn(async move {
                tokio::time::sleep(wait).await;
                let _ = socket.send_to(&octets, asker).await;
            });
        }
    }
}

async fn serve_tcp(listener: TcpListener, zone: Arc<RwLock<Zone>>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        if let Ok((stream, _)) = listener.accept().await {
            connections.spawn(tcp_connection(stream, zone.clone()));
        }
    }
}

/// Answers the queries of one connection, each behind its length (RFC 1035 §4.2.2), until it ends.
async fn tcp_connection(mut stream: TcpStream, zone: Arc<RwLock<Zone>>) {
    while let Ok(length) = stream.read_u16().await {
        let mut query = vec![0; usize::from(length)];
        if stream.read_exact(&mut query).await.is_err() {
            return;
        }
        let message = match reply(&zone, &query, false) {
            None => return,
            Some(Reply::Never) => std::future::pending().await,
            Some(Reply::Now(message)) => message,
            Some(Reply::Later(wait, message)) => {
                tokio::time::sleep(wait).await;
                message
            }
        };
        let Ok(octets) = message.to_vec() else { return };
        let Ok(length) = u16::try_from(octets.len()) else { return };
        let framed = [&length.to_be_bytes()[..], &octets].concat();
        if stream.write_all(&framed).await.is_err() {
            return;
        }
    }
}

/// UDP and TCP on one port. With port 0 the port that TCP got may be taken for UDP: then another is tried.
async fn bind_both(address: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let mut tries = 0;
    loop {
        let tcp = TcpListener::bind(address).await?;
        match UdpSocket::bind(tcp.local_addr()?).await {
            Ok(udp) => return Ok((udp, tcp)),
            Err(_) if address.port() == 0 && tries < 20 => tries += 1,
            Err(e) => return Err(e),
        }
    }
}

/// A name in the form that is compared: absolute, lower case.
fn name(text: &str) -> Name {
    let mut name = Name::from_ascii(text).unwrap_or_else(|e| panic!("`{text}` in the world's DNS: {e}")).to_lowercase();
    name.set_fqdn(true);
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::Query;

    struct Asked {
        code: ResponseCode,
        secure: bool,
        truncated: bool,
        answers: Vec<RData>,
        has_soa: bool,
    }

    fn query(owner: &str, kind: RecordType, dnssec_ok: bool) -> Message {
        let mut message = Message::query();
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(name(owner), kind));
        if dnssec_ok {
            let mut edns = Edns::new();
            edns.set_max_payload(1232).set_dnssec_ok(true);
            message.set_edns(edns);
        }
        message
    }

    fn read(octets: &[u8]) -> Asked {
        let m = Message::from_vec(octets).unwrap();
        Asked {
            code: m.metadata.response_code,
            secure: m.metadata.authentic_data,
            truncated: m.metadata.truncation,
            answers: m.answers.iter().map(|r| r.data.clone()).collect(),
            has_soa: m.authorities.iter().any(|r| r.record_type() == RecordType::SOA),
        }
    }

    async fn ask(dns: &Dns, owner: &str, kind: RecordType, dnssec_ok: bool) -> Option<Asked> {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(&query(owner, kind, dnssec_ok).to_vec().unwrap(), dns.address()).await.unwrap();
        let mut buffer = [0; 4096];
        let length = tokio::time::timeout(Duration::from_millis(500), socket.recv(&mut buffer)).await.ok()?.unwrap();
        Some(read(&buffer[..length]))
    }

    async fn ask_tcp(dns: &Dns, owner: &str, kind: RecordType) -> Asked {
        let mut stream = TcpStream::connect(dns.address()).await.unwrap();
        let octets = query(owner, kind, true).to_vec().unwrap();
        stream.write_u16(octets.len() as u16).await.unwrap();
        stream.write_all(&octets).await.unwrap();
        let mut answer = vec![0; usize::from(stream.read_u16().await.unwrap())];
        stream.read_exact(&mut answer).await.unwrap();
        read(&answer)
    }

    async fn world() -> Dns {
        let dns = Dns::start("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let mut zone = dns.change();
        zone.cut("test", false);
        zone.mx("signed.example", 10, "mx.signed.example");
        zone.tlsa("mx.signed.example", 3, 1, 1, &[7; 32]);
        zone.mx("plain.test", 10, "mx.plain.test");
        zone.address("mx.plain.test", "127.0.0.9".parse().unwrap());
        zone.cname("alias.example", "mx.plain.test");
        zone.txt("long.test", &"x".repeat(400));
        for i in 0..40 {
            zone.more_txt("wide.test", &format!("{i:0>60}"));
        }
        drop(zone);
        dns
    }

    #[tokio::test]
    async fn signed_names_have_the_verdict_when_asked_for() {
        let dns = world().await;
        let a = ask(&dns, "Signed.Example", RecordType::MX, true).await.unwrap();
        assert!(a.secure && a.answers.len() == 1);
        assert!(!ask(&dns, "signed.example", RecordType::MX, false).await.unwrap().secure);
        assert!(!ask(&dns, "plain.test", RecordType::MX, true).await.unwrap().secure);
        let tlsa = ask(&dns, "_25._tcp.mx.signed.example", RecordType::TLSA, true).await.unwrap();
        assert!(tlsa.secure && matches!(&tlsa.answers[..], [RData::TLSA(t)] if t.cert_data == [7; 32]));
        assert!(ask(&dns, ".", RecordType::NS, true).await.unwrap().secure);
    }

    #[tokio::test]
    async fn an_alias_out_of_a_signed_zone_is_not_signed() {
        let dns = world().await;
        let a = ask(&dns, "alias.example", RecordType::A, true).await.unwrap();
        assert_eq!((a.answers.len(), a.secure), (2, false));
    }

    #[tokio::test]
    async fn nothing_and_no_such_name_are_told_apart() {
        let dns = world().await;
        let nodata = ask(&dns, "_tcp.mx.signed.example", RecordType::A, true).await.unwrap();
        assert_eq!((nodata.code, nodata.has_soa, nodata.secure), (ResponseCode::NoError, true, true));
        let none = ask(&dns, "absent.test", RecordType::A, true).await.unwrap();
        assert_eq!((none.code, none.has_soa, none.secure), (ResponseCode::NXDomain, true, false));
    }

    #[tokio::test]
    async fn faults_and_changes_are_in_the_next_answer() {
        let dns = world().await;
        dns.change().fault("plain.test", Some(Fault::ServFail));
        assert_eq!(ask(&dns, "plain.test", RecordType::MX, true).await.unwrap().code, ResponseCode::ServFail);
        dns.change().fault("plain.test", Some(Fault::Silence));
        assert!(ask(&dns, "plain.test", RecordType::MX, true).await.is_none());
        dns.change().fault("plain.test", Some(Fault::Truncate));
        let cut = ask(&dns, "plain.test", RecordType::MX, true).await.unwrap();
        assert!(cut.truncated && cut.answers.is_empty());
        assert_eq!(ask_tcp(&dns, "plain.test", RecordType::MX).await.answers.len(), 1);
        dns.change().fault("plain.test", Some(Fault::WrongOwner));
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let octets = query("plain.test", RecordType::MX, true).to_vec().unwrap();
        socket.send_to(&octets, dns.address()).await.unwrap();
        let mut buffer = [0; 4096];
        let length = socket.recv(&mut buffer).await.unwrap();
        assert_eq!(Message::from_vec(&buffer[..length]).unwrap().answers[0].name, name("somebody.else.test"));
        dns.change().fault("plain.test", None);
        assert_eq!(ask(&dns, "plain.test", RecordType::MX, true).await.unwrap().answers.len(), 1);
        dns.change().outage(Some(Fault::ServFail));
        assert_eq!(ask(&dns, "plain.test", RecordType::MX, true).await.unwrap().code, ResponseCode::ServFail);
        dns.change().outage(None);
        assert_eq!(ask(&dns, "plain.test", RecordType::MX, true).await.unwrap().code, ResponseCode::NoError);
        assert_eq!(dns.zone().asked("plain.test", RecordType::MX), 8);
    }

    #[tokio::test]
    async fn large_answers_go_to_tcp() {
        let dns = world().await;
        assert!(ask(&dns, "wide.test", RecordType::TXT, true).await.unwrap().truncated);
        assert_eq!(ask_tcp(&dns, "wide.test", RecordType::TXT).await.answers.len(), 40);
        assert_eq!(dns.zone().text("long.test").unwrap().len(), 400);
    }

    #[tokio::test]
    async fn garbage_gets_no_answer_and_does_no_harm() {
        let dns = world().await;
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(b"\xff\xff garbage", dns.address()).await.unwrap();
        assert!(ask(&dns, "plain.test", RecordType::MX, true).await.is_some());
    }
}
