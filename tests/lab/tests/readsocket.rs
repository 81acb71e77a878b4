//! What Exim is told by the running daemon, and that it is noted as the policy in force.

use std::path::Path;
use std::time::{Duration, Instant};

use lab::ca::Fault;
use lab::daemon::{Daemon, Program};
use lab::dns;
use lab::https::Answer;
use lab::world::{Domain, Options, Server, Tlsa, World};
use tlswarden::answering::policy::history::PolicyHistory;
use tlswarden::base::clock::Clock;
use tlswarden::base::tlsrpt::{Mode, PolicyInForce};
use tlswarden::metrics::Metrics;
use tlswarden::store::embedded::EmbeddedStore;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// As Exim asks: the request and a half-close; everything up to the end.
async fn ask(socket: &Path, next_hop: &str) -> String {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    stream.write_all(format!("policy {next_hop}\n").as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn each_decision_is_told_and_noted() {
    let domains = [
        Domain::new("enforce.test").host("mx", Server::Sound).sts("enforce", "*"),
        Domain::new("mx.smart.test").host("mx", Server::Sound).sts("enforce", "mx"),
        Domain::new("testing.test").host("mx", Server::Sound).sts("testing", "mx"),
        Domain::new("none.test").host("mx", Server::Sound),
        Domain::new("lost.test").host("mx", Server::Sound).sts_answer(Answer::Status(404)),
        Domain::new("dane.example").signed().dane_host("mx", Server::Sound, Tlsa::Matching).sts("enforce", "mx"),
        Domain::new("some.example")
            .signed()
            .dane_host("a", Server::Sound, Tlsa::Matching)
            .host("b", Server::Faulty(Fault::SelfSigned)),
        Domain::new("bogus.example").signed().host("mx", Server::Sound),
    ];
    let world = World::start(Options::default(), &domains).await.unwrap();
    world.dns.change().fault("bogus.example", Some(dns::Fault::ServFail));
    let program = Program::lab(env!("CARGO_BIN_EXE_lab"));
    let daemon = Daemon::start(&program, &world).await.unwrap();
    for (next_hop, want) in [
        ("enforce.test", "mode=enforce dane=no mx=\"*.enforce.test\"\n"),
        ("Enforce.TEST.:587", "mode=enforce dane=no mx=\"*.enforce.test\"\n"),
        ("testing.test", "mode=testing dane=no mx=\"mx.testing.test\"\n"),
        ("none.test", "mode=none dane=no\n"),
        ("lost.test", "mode=none dane=no\n"),
        ("dane.example", "mode=none dane=require\n"),
        ("some.example", "mode=none dane=try\n"),
        ("[192.0.2.1]", "mode=none dane=no\n"),
        // A smart host that its own policy does not name.
        ("[mx.smart.test]:587", "mode=none dane=no\n"),
    ] {
        assert_eq!(ask(&world.readsocket(), next_hop).await, want, "{next_hop}");
    }
    let begin = Instant::now();
    let bogus = ask(&world.readsocket(), "bogus.example").await;
    assert!(bogus.starts_with("mode=defer cause=\"") && bogus.contains("SERVFAIL"), "{bogus}");
    assert!(begin.elapsed() < Duration::from_secs(6));

    daemon.stop().await.unwrap();
    let clock = Clock::default();
    let store = EmbeddedStore::open(&world.folder().join("store"), clock).unwrap().store;
    let history = PolicyHistory::open(&store, clock, Metrics::default()).unwrap();
    let noted = |domain: &str| history.policy_at(domain, clock.seconds());
    for (domain, want) in [("enforce.test", Mode::Enforce), ("testing.test", Mode::Testing), ("lost.test", Mode::None)]
    {
        let found = noted(domain);
        assert!(matches!(found.in_force, PolicyInForce::Sts { mode, .. } if mode == want), "{domain}: {found:?}");
    }
    for domain in ["dane.example", "some.example"] {
        assert!(matches!(noted(domain).in_force, PolicyInForce::Dane { .. }), "{domain}: {:?}", noted(domain));
    }
    assert!(noted("none.test").asked && noted("none.test").in_force == PolicyInForce::None);
    assert!(!noted("bogus.example").asked);
}
