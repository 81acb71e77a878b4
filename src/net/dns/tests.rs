//! The resolver against name servers of our own, which answer byte by byte as the test wants, over real UDP and TCP.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

#[path = "../../../tests/name_server/mod.rs"]
mod name_server;

use name_server::{A, AAAA, CNAME, MX, NameServer, Query, TLSA, TXT, exchange, text, wire};

/// The resolver that asks this server alone.
fn resolver_of(server: &NameServer, trusted: bool) -> Resolver {
    Resolver::with_servers([server.address], trusted)
}

/// A server that never answers, and never refuses: its port is taken.
fn silent() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

fn cause(error: DnsError) -> String {
    match error {
        DnsError::Failed(failure) => failure.to_string(),
        other => panic!("no failure: {other:?}"),
    }
}

#[tokio::test]
async fn every_query_asks_for_the_ad_bit() {
    let server = NameServer::start(|query| match (query.ad, query.kind) {
        // A resolver that gives its verdict only where the AD bit asks for it.
        (ad, MX) => query.answer(0, ad, &[("a.test", MX, exchange("mx.a.test"))]),
        (ad, _) => query.answer(0, ad, &[(query.name.as_str(), TLSA, vec![3, 1, 1, 7])]),
    });
    let resolver = resolver_of(&server, true);
    assert!(resolver.mx("a.test").await.unwrap().secure);
    assert!(resolver.tlsa(25, "mx.a.test").await.unwrap().secure);
    assert!(server.queries().iter().all(|query| query.ad && query.edns));
    // Whoever is not believed is not believed either way.
    assert!(!resolver_of(&server, false).mx("a.test").await.unwrap().secure);
}

#[tokio::test]
async fn one_record_that_cannot_be_decoded_takes_nothing_from_the_others() {
    let server = NameServer::start(|query| {
        let owner = query.name.as_str();
        let good = match query.kind {
            TLSA => vec![3, 1, 1, 0xab],
            MX => exchange("mx.a.test"),
            TXT => text("v=STSv1; id=1"),
            A => vec![192, 0, 2, 1],
            _ => vec![0; 16],
        };
        let bad = if query.kind == TXT { vec![9, b'x'] } else { vec![0, 1] };
        query.answer(0, true, &[(owner, query.kind, bad.clone()), (owner, query.kind, good), (owner, query.kind, bad)])
    });
    let resolver = resolver_of(&server, true);
    let tlsa = resolver.tlsa(25, "mx.a.test").await.unwrap();
    assert!(tlsa.secure);
    assert_eq!(tlsa.records, [TlsaRecord { usage: 3, selector: 1, matching: 1, data: vec![0xab] }]);
    assert_eq!(resolver.mx("a.test").await.unwrap().records, [(10, "mx.a.test".to_owned())]);
    assert_eq!(resolver.txt("_mta-sts.a.test").await.unwrap().records, ["v=STSv1; id=1"]);
    assert_eq!(resolver.addresses("mx.a.test").await.unwrap().records.len(), 2);
}

#[tokio::test]
async fn records_of_which_none_can_be_decoded_are_not_none() {
    let server = NameServer::start(|query| query.answer(0, true, &[(query.name.as_str(), query.kind, vec![3, 1])]));
    let error = resolver_of(&server, true).tlsa(25, "mx.a.test").await.unwrap_err();
    assert_eq!(cause(error), "no TLSA record of _25._tcp.mx.a.test can be decoded");
}

#[tokio::test]
async fn an_unknown_response_code_is_a_failure() {
    for (rcode, text) in [(12, "12"), (3841, "3841"), (6, "6"), (9, "9")] {
        let server = NameServer::start(move |query| query.answer(rcode, true, &[]));
        let resolver = resolver_of(&server, true);
        let want = format!("the resolver {} answered with the unknown response code {text}", server.address);
        assert_eq!(cause(resolver.tlsa(25, "mx.a.test").await.unwrap_err()), want);
        assert_eq!(cause(resolver.mx("a.test").await.unwrap_err()), want);
        assert_eq!(cause(resolver.txt("_mta-sts.a.test").await.unwrap_err()), want);
        assert_eq!(cause(resolver.addresses("mx.a.test").await.unwrap_err()), want);
    }
    for (rcode, text) in [(2, "SERVFAIL (DNSSEC validation, or its servers, failed)"), (5, "REFUSED")] {
        let server = NameServer::start(move |query| query.answer(rcode, true, &[]));
        let want = format!("the resolver {} answered {text}", server.address);
        assert_eq!(cause(resolver_of(&server, true).mx("a.test").await.unwrap_err()), want);
    }
}

#[tokio::test]
async fn an_alias_that_comes_without_its_target_is_followed() {
    // Every name below `a.test` is an alias to the same below `b.test`, which is answered only when it is asked for.
    let server = NameServer::start(|query| match query.name.strip_suffix("a.test") {
        Some(above) => query.answer(0, true, &[(&query.name, CNAME, wire(&format!("{above}b.test")))]),
        None => {
            let data = match query.kind {
                TLSA => vec![3, 1, 1, 7],
                TXT => text("v=STSv1; id=1"),
                MX => exchange("mx.b.test"),
                A => vec![192, 0, 2, 1],
                AAAA => vec![0; 16],
                _ => return query.answer(0, true, &[]),
            };
            query.answer(0, query.name != "unsigned.b.test", &[(&query.name, query.kind, data)])
        }
    });
    let resolver = resolver_of(&server, true);
    let tlsa = resolver.tlsa(25, "mx.a.test").await.unwrap();
    assert!(tlsa.secure && tlsa.name == "_25._tcp.mx.b.test");
    assert_eq!(resolver.txt("_mta-sts.a.test").await.unwrap().records, ["v=STSv1; id=1"]);
    assert_eq!(resolver.mx("a.test").await.unwrap().records, [(10, "mx.b.test".to_owned())]);
    let addresses = resolver.addresses("mx.a.test").await.unwrap();
    assert_eq!((addresses.name.as_str(), addresses.records.len(), addresses.secure), ("mx.b.test", 2, true));
    assert!(!resolver.addresses("unsigned.a.test").await.unwrap().secure, "the end of the chain is not signed");
    // The alias itself is what this asks for.
    assert!(resolver.is_alias_secure("mx.a.test").await.unwrap());
}

#[tokio::test]
async fn where_the_target_of_an_alias_fails_it_is_asked_without_validation() {
    let server = NameServer::start(|query| match (query.name.as_str(), query.cd) {
        ("target.test", false) => query.answer(2, false, &[]),
        ("target.test", true) => query.answer(0, false, &[("target.test", MX, exchange("mx.a.test"))]),
        (name, false) => query.answer(0, true, &[(name, CNAME, wire("target.test"))]),
        (_, true) => query.answer(2, false, &[]),
    });
    let Err(DnsError::Failed(failure)) = resolver_of(&server, true).mx("a.test").await else { panic!("SERVFAIL") };
    assert!(failure.dnssec().is_some(), "{:?}", server.queries());
}

#[tokio::test]
async fn aliases_without_an_end_are_a_failure_after_a_few_queries() {
    let next = AtomicUsize::new(0);
    let server = NameServer::start(move |query| {
        let target = format!("n{}.test", next.fetch_add(1, Ordering::Relaxed));
        query.answer(0, true, &[(&query.name, CNAME, wire(&target))])
    });
    let error = resolver_of(&server, true).txt("_mta-sts.a.test").await.unwrap_err();
    assert_eq!(cause(error), "the CNAMEs lead nowhere");
    assert_eq!(server.queries().len(), 1 + alias_chain::MAX_FURTHER_QUERIES);
}

/// Refuses EDNS with a response code, or by silence.
fn without_edns(refusal: Option<u16>, ad: bool) -> NameServer {
    NameServer::start(move |query| match (query.edns, refusal) {
        (true, Some(rcode)) => Query { edns: false, ..query.clone() }.answer(rcode, false, &[]),
        (true, None) => None,
        (false, _) => {
            let data = if query.kind == MX { exchange("mx.a.test") } else { text("v=STSv1; id=1") };
            query.answer(0, ad, &[(&query.name, query.kind, data)])
        }
    })
}

#[tokio::test]
async fn a_server_that_refuses_edns_is_asked_without_and_that_is_remembered() {
    for rcode in [1, 4] {
        let server = without_edns(Some(rcode), false);
        let resolver = resolver_of(&server, false);
        for _ in 0..3 {
            assert_eq!(resolver.txt("_mta-sts.a.test").await.unwrap().records, ["v=STSv1; id=1"]);
        }
        assert_eq!(server.counts(), (1, 3), "response code {rcode}");
    }
}

#[tokio::test]
async fn a_refusal_of_edns_may_be_a_header_alone() {
    let server = NameServer::start(|query| match query.edns {
        true => {
            let mut header = query.bytes[..12].to_vec();
            header[2] |= 0x80;
            header[3] = 1;
            Some(header)
        }
        false => query.answer(0, false, &[(&query.name, TXT, text("v=STSv1; id=1"))]),
    });
    let resolver = resolver_of(&server, false);
    assert_eq!(resolver.txt("_mta-sts.a.test").await.unwrap().records, ["v=STSv1; id=1"]);
    assert_eq!(server.counts(), (1, 1));
}

#[tokio::test]
async fn silence_to_edns_costs_one_time_out() {
    let server = without_edns(None, false);
    let resolver = resolver_of(&server, false);
    for _ in 0..3 {
        assert_eq!(resolver.txt("_mta-sts.a.test").await.unwrap().records, ["v=STSv1; id=1"]);
    }
    assert_eq!(server.counts(), (1, 3));
}

#[tokio::test]
async fn an_answer_without_edns_is_no_verdict() {
    for refusal in [Some(1), None] {
        let server = without_edns(refusal, false);
        let resolver = resolver_of(&server, true);
        let error = cause(resolver.mx("a.test").await.unwrap_err());
        assert!(error.contains("without EDNS") && error.contains(&server.address.to_string()), "{error}");
        assert!(resolver.tlsa(25, "mx.a.test").await.is_err() && resolver.addresses("mx.a.test").await.is_err());
        // Where nothing depends on DNSSEC it counts.
        assert!(resolver.txt("_mta-sts.a.test").await.is_ok());
    }
    // The AD bit needs no EDNS.
    let server = without_edns(Some(1), true);
    assert!(resolver_of(&server, true).mx("a.test").await.unwrap().secure);
}

#[tokio::test]
async fn one_name_does_not_take_edns_from_the_others() {
    let server = NameServer::start(|query| match (query.edns, query.name.as_str()) {
        (true, "bad.test") => query.answer(1, false, &[]),
        (edns, _) => query.answer(0, edns, &[(&query.name, MX, exchange("mx.a.test"))]),
    });
    let resolver = resolver_of(&server, true);
    assert!(resolver.mx("a.test").await.unwrap().secure);
    assert!(cause(resolver.mx("bad.test").await.unwrap_err()).contains("without EDNS"));
    assert!(resolver.mx("a.test").await.unwrap().secure);
}

#[tokio::test]
async fn the_second_server_is_asked_where_the_first_says_nothing() {
    let answers = |query: &Query| query.answer(0, false, &[(&query.name, TXT, text("v=STSv1; id=1"))]);
    let (taken, silent) = silent();
    let refused = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let servfail = NameServer::start(|query| query.answer(2, false, &[]));
    for first in [silent, refused, servfail.address] {
        let second = NameServer::start(answers);
        let resolver = Resolver::with_servers([first, second.address], false);
        for _ in 0..2 {
            assert_eq!(resolver.txt("_mta-sts.a.test").await.unwrap().records, ["v=STSv1; id=1"], "{first}");
        }
        assert!(second.counts().0 >= 2, "{first}");
    }
    assert_eq!(servfail.queries().len(), 2, "a server that answers is asked first again");
    // Silence costs one time-out: then the others are asked first.
    taken.set_nonblocking(true).unwrap();
    assert!(taken.recv(&mut [0; 512]).is_ok() && taken.recv(&mut [0; 512]).is_err());
}

#[tokio::test]
async fn a_failure_names_the_servers() {
    let (_taken, first) = silent();
    let (_taken_too, second) = silent();
    let error = cause(Resolver::with_servers([first, second], false).txt("_mta-sts.a.test").await.unwrap_err());
    assert_eq!(error, format!("no answer from the resolver {first}, {second} within 4 s"));
}

#[tokio::test]
async fn a_query_that_this_host_cannot_send_is_its_own_fault() {
    // A socket must be allowed to send to the broadcast address.
    let forbidden: SocketAddr = "255.255.255.255:53".parse().unwrap();
    let resolver = Resolver::with_servers([forbidden], false);
    let Err(DnsError::Failed(failure)) = resolver.txt("_mta-sts.a.test").await else { panic!("it could be sent") };
    assert!(failure.is_local() && failure.to_string().contains("this host cannot send queries"), "{failure}");
    // Not where another server could be asked.
    let server = NameServer::start(|query| query.answer(2, false, &[]));
    let both = Resolver::with_servers([forbidden, server.address], false);
    let Err(DnsError::Failed(failure)) = both.txt("_mta-sts.a.test").await else { panic!("SERVFAIL") };
    assert!(!failure.is_local(), "{failure}");
}

#[tokio::test]
async fn an_answer_that_is_truncated_comes_over_tcp() {
    let server = NameServer::start(|query| {
        let mut answer = query.answer(0, true, &[(&query.name, TXT, text("v=STSv1; id=1"))])?;
        answer[2] |= if query.tcp { 0 } else { 2 };
        Some(answer)
    });
    assert_eq!(resolver_of(&server, true).txt("_mta-sts.a.test").await.unwrap().records, ["v=STSv1; id=1"]);
    assert_eq!(server.queries().iter().map(|query| query.tcp).collect::<Vec<_>>(), [false, true]);
    let cut = NameServer::start(|query| {
        let mut answer = query.answer(0, true, &[])?;
        answer[2] |= 2;
        Some(answer)
    });
    let error = cause(resolver_of(&cut, true).tlsa(25, "mx.a.test").await.unwrap_err());
    assert_eq!(error, format!("the resolver {}: the answer is truncated over TCP", cut.address));
}

#[tokio::test]
async fn what_does_not_belong_to_the_query_is_ignored() {
    let server = NameServer::start(|query| {
        let mut answer = query.answer(0, true, &[(&query.name, TXT, text("forged"))])?;
        // The first query gets another number, the second another question.
        match query.edns {
            true => answer[0] ^= 1,
            false if query.name == "b.test" => answer[13] ^= 1,
            false => {}
        }
        Some(answer)
    });
    let error = cause(resolver_of(&server, true).txt("b.test").await.unwrap_err());
    assert!(error.starts_with("no answer from the resolver"), "{error}");
}

#[tokio::test]
async fn a_failed_query_is_noted_with_a_command_that_repeats_it() {
    let server = NameServer::start(|query| query.answer(2, false, &[]));
    let resolver = resolver_of(&server, true).noting_failures();
    let cause = cause(resolver.tlsa(25, "mx.a.test").await.unwrap_err());
    let port = server.address.port();
    let command = format!("dig @127.0.0.1 -p {port} +dnssec _25._tcp.mx.a.test. TLSA");
    assert_eq!(resolver.failed_queries(), [FailedQuery { query: "TLSA of _25._tcp.mx.a.test".into(), cause, command }]);
    assert!(resolver_of(&server, true).failed_queries().is_empty());
}

#[tokio::test]
async fn a_probe_says_what_the_resolver_says_now() {
    let server = NameServer::start(|query| match query.name.as_str() {
        "" => query.answer(0, true, &[("", 2, wire("ns.root.test"))]),
        _ => query.answer(2, false, &[]),
    });
    let probe = resolver_of(&server, true).probe("bogus.test").await;
    assert!(probe.validates && probe.edns && probe.failure.is_none());
    assert_eq!(probe.refuses_bogus, Some(true));
    let strips = NameServer::start(|query| query.answer(0, false, &[("", 2, wire("ns.root.test"))]));
    let probe = resolver_of(&strips, true).probe("bogus.test").await;
    assert!(!probe.validates && probe.edns && probe.refuses_bogus.is_none());
    let dead = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let resolver = Resolver::with_servers([dead], true);
    let probe = resolver.probe("").await;
    assert!(!probe.validates && probe.failure.unwrap().contains(&dead.to_string()));
    let status = resolver.status();
    assert!(status.failure.is_some() && status.answered_seconds_ago.is_none() && !status.validates);
    assert!(resolver.is_failing() && resolver.outage().is_none(), "not for ten seconds");
}
