//! The bare loop: the queries and the GET that a policy needs, by hand, and nothing made of them.
//!
//! A socket per query, as a resolver's client needs against forged replies; a TLS connection per policy host, its
//! certificate verified. What does not need the other runs beside it, as in the daemon. A reply that lacks what the
//! world publishes is a panic.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_proto::op::{Edns, Message, Query};
use hickory_proto::rr::{Name, RecordType};
use lab::ca::client_config;
use lab::world::World;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

/// All of a part of the names, so many at once.
pub(crate) async fn fill(world: &Arc<World>, names: &Arc<[String]>, part: Range<usize>, at_once: usize) {
    let connector = TlsConnector::from(client_config(&world.authority).expect("a client"));
    let next = Arc::new(AtomicUsize::new(part.start));
    let mut tasks = JoinSet::new();
    for _ in 0..at_once {
        let (world, names, next) = (Arc::clone(world), Arc::clone(names), Arc::clone(&next));
        let (connector, end) = (connector.clone(), part.end);
        tasks.spawn(async move {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= end {
                    return;
                }
                let (dane, sts) = tokio::join!(dane(&world, &names[n]), sts(&world, &connector, &names[n]));
                assert!(dane.expect("asked") && sts.expect("fetched"), "{}", names[n]);
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("filled");
    }
}

async fn dane(world: &World, name: &str) -> io::Result<bool> {
    let mx = query(world, name, RecordType::MX).await?;
    let host = format!("mx.{name}");
    let (four, six) = tokio::join!(query(world, &host, RecordType::A), query(world, &host, RecordType::AAAA));
    let tlsa = query(world, &format!("_25._tcp.{host}"), RecordType::TLSA).await?;
    let counts = [mx, four?, six?, tlsa].map(|answer| answer.answers.len());
    Ok(counts == [1, 1, 0, 0])
}

async fn sts(world: &World, connector: &TlsConnector, name: &str) -> io::Result<bool> {
    let record = query(world, &format!("_mta-sts.{name}"), RecordType::TXT).await?;
    let host = format!("mta-sts.{name}");
    let tcp = TcpStream::connect(world.policy_hosts.address()).await?;
    tcp.set_nodelay(true)?;
    let server = ServerName::try_from(host.clone()).map_err(io::Error::other)?;
    let mut tls = connector.connect(server, tcp).await?;
    tls.write_all(format!("GET /.well-known/mta-sts.txt HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).await?;
    let mut response = Vec::new();
    tls.read_to_end(&mut response).await?;
    Ok(record.answers.len() == 1
        && response.starts_with(b"HTTP/1.1 200 ")
        && response.ends_with(b"max_age: 604800\r\n"))
}

async fn query(world: &World, name: &str, kind: RecordType) -> io::Result<Message> {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    let mut asked = Name::from_ascii(name).map_err(io::Error::other)?;
    asked.set_fqdn(true);
    message.add_query(Query::query(asked, kind));
    let mut edns = Edns::new();
    edns.set_max_payload(1232).set_dnssec_ok(true);
    message.set_edns(edns);
    let socket = UdpSocket::bind("127.0.0.1:0").await?;
    socket.connect(world.dns.address()).await?;
    socket.send(&message.to_vec().map_err(io::Error::other)?).await?;
    let mut reply = [0; 1500];
    let size = socket.recv(&mut reply).await?;
    Message::from_vec(&reply[..size]).map_err(io::Error::other)
}
