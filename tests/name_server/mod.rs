//! A name server whose answers a test makes byte by byte, over real UDP and TCP on loopback.
//!
//! Takes: what to answer to a query, if anything. Gives: its address, and the queries that came.
//! Limits: none; its threads end with the test program.
//! Not here: a zone (`tests/lab` has one).

#![allow(dead_code)] // Each test program uses some of it.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::{Arc, Mutex};
use std::thread;

/// A query as a server sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Query {
    pub(crate) bytes: Vec<u8>,
    pub(crate) name: String,
    pub(crate) kind: u16,
    pub(crate) edns: bool,
    pub(crate) ad: bool,
    pub(crate) cd: bool,
    pub(crate) tcp: bool,
}

impl Query {
    fn read(bytes: &[u8], tcp: bool) -> Query {
        let mut name = Vec::new();
        let mut at = 12;
        while bytes[at] != 0 {
            let end = at + 1 + usize::from(bytes[at]);
            name.push(String::from_utf8(bytes[at + 1..end].to_vec()).unwrap());
            at = end;
        }
        let kind = u16::from_be_bytes([bytes[at + 1], bytes[at + 2]]);
        let (edns, ad, cd) = (bytes[11] == 1, bytes[3] & 0x20 != 0, bytes[3] & 0x10 != 0);
        Query { bytes: bytes.to_vec(), name: name.join("."), kind, edns, ad, cd, tcp }
    }

    /// An answer with these records, each an owner, a type and its data; with EDNS if the query had it.
    pub(crate) fn answer(&self, rcode: u16, ad: bool, records: &[(&str, u16, Vec<u8>)]) -> Option<Vec<u8>> {
        let question_end = 12 + wire(&self.name).len() + 4;
        let mut bytes = self.bytes[..2].to_vec();
        let flags = 0x8180 | if ad { 0x20 } else { 0 } | (rcode & 15);
        let count = u16::try_from(records.len()).unwrap();
        bytes.extend([flags, 1, count, 0, u16::from(self.edns)].map(u16::to_be_bytes).concat());
        bytes.extend(&self.bytes[12..question_end]);
        for (owner, kind, data) in records {
            bytes.extend(wire(owner));
            bytes.extend([*kind, 1, 0, 60, u16::try_from(data.len()).unwrap()].map(u16::to_be_bytes).concat());
            bytes.extend(data);
        }
        if self.edns {
            bytes.extend(b"\0\0\x29\x04\xd0");
            bytes.extend([u8::try_from(rcode >> 4).unwrap(), 0, 0x80, 0, 0, 0]);
        }
        Some(bytes)
    }
}

/// An answer with EDNS, with an extended error (RFC 8914) in it.
pub(crate) fn with_extended_error(answer: Option<Vec<u8>>, code: u16) -> Option<Vec<u8>> {
    let mut bytes = answer?;
    let length = bytes.len() - 2;
    bytes[length..].copy_from_slice(&[0, 6]);
    bytes.extend([15, 2, code].map(u16::to_be_bytes).concat());
    Some(bytes)
}

/// A name as it is sent.
pub(crate) fn wire(name: &str) -> Vec<u8> {
    let labels = name.split('.').filter(|label| !label.is_empty());
    let mut bytes: Vec<u8> = labels.flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat()).collect();
    bytes.push(0);
    bytes
}

/// A TXT record's data.
pub(crate) fn text(value: &str) -> Vec<u8> {
    [&[value.len() as u8], value.as_bytes()].concat()
}

/// An MX record's data.
pub(crate) fn exchange(host: &str) -> Vec<u8> {
    [&[0, 10], wire(host).as_slice()].concat()
}

pub(crate) const A: u16 = 1;
pub(crate) const CNAME: u16 = 5;
pub(crate) const MX: u16 = 15;
pub(crate) const TXT: u16 = 16;
pub(crate) const AAAA: u16 = 28;
pub(crate) const TLSA: u16 = 52;

/// A server on loopback, over UDP and TCP; the threads end with the test.
pub(crate) struct NameServer {
    pub(crate) address: SocketAddr,
    queries: Arc<Mutex<Vec<Query>>>,
}

impl NameServer {
    /// `answer` gives the bytes to send, or nothing.
    pub(crate) fn start(answer: impl Fn(&Query) -> Option<Vec<u8>> + Send + Sync + 'static) -> NameServer {
        NameServer::start_at("127.0.0.1:0".parse().unwrap(), answer)
    }

    /// The same at an address; port 0 takes a free one.
    pub(crate) fn start_at(
        address: SocketAddr,
        answer: impl Fn(&Query) -> Option<Vec<u8>> + Send + Sync + 'static,
    ) -> NameServer {
        // A port that is free for both.
        let (tcp, udp) = loop {
            let tcp = TcpListener::bind(address).unwrap();
            if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()) {
                break (tcp, udp);
            }
        };
        let (address, queries, answer) =
            (tcp.local_addr().unwrap(), Arc::<Mutex<Vec<Query>>>::default(), Arc::new(answer));
        let (noted, answers) = (Arc::clone(&queries), Arc::clone(&answer));
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok((length, from)) = udp.recv_from(&mut buffer) {
                let query = Query::read(&buffer[..length], false);
                noted.lock().unwrap().push(query.clone());
                if let Some(bytes) = answers(&query) {
                    let _ = udp.send_to(&bytes, from);
                }
            }
        });
        let noted = Arc::clone(&queries);
        thread::spawn(move || {
            use std::io::{Read, Write};
            while let Ok((mut stream, _)) = tcp.accept() {
                let mut length = [0; 2];
                if stream.read_exact(&mut length).is_err() {
                    continue;
                }
                let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
                stream.read_exact(&mut bytes).unwrap();
                let query = Query::read(&bytes, true);
                noted.lock().unwrap().push(query.clone());
                if let Some(bytes) = answer(&query) {
                    let length = u16::try_from(bytes.len()).unwrap().to_be_bytes();
                    let _ = stream.write_all(&[&length, bytes.as_slice()].concat());
                }
            }
        });
        NameServer { address, queries }
    }

    pub(crate) fn queries(&self) -> Vec<Query> {
        self.queries.lock().unwrap().clone()
    }

    /// How many queries came, with EDNS and without.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let queries = self.queries();
        let with = queries.iter().filter(|query| query.edns).count();
        (with, queries.len() - with)
    }
}
