//! `tlswarden check-domain` on domains of the world: what it finds, and that what it proposes mends it.
//!
//! Needs root: the receiving servers are at port 25, in a network of the test's own.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use lab::ca::Fault;
use lab::daemon::Program;
use lab::dns;
use lab::host;
use lab::https::{Answer, Site};
use lab::world::{Domain, Options, Server, Tlsa, World};
use serde_json::Value;

const TEST: &str = "a_domain_is_seen_as_a_sender_sees_it";

/// A domain, and what is to be found: the exit status, and each finding with its weight.
struct Case {
    what: &'static str,
    domain: Domain,
    status: i32,
    finds: &'static [&'static str],
}

fn cases() -> Vec<Case> {
    let at = |name: &str| Domain::new(name).reports_to("tlsrpt@reports.test");
    let enforce = |name: &str, server| at(name).host("mx", server).sts("enforce", "mx");
    let dane = |name: &str, tlsa| at(name).signed().dane_host("mx", Server::Faulty(Fault::SelfSigned), tlsa);
    let case = |what, domain, status, finds| Case { what, domain, status, finds };
    vec![
        case("MTA-STS, all is well", enforce("good.test", Server::Sound), 0, &[]),
        case(
            "self-signed certificate",
            enforce("selfsigned.test", Server::Faulty(Fault::SelfSigned)),
            2,
            &["error certificate-trust"],
        ),
        case(
            "unknown authority",
            enforce("otherca.test", Server::Faulty(Fault::OtherAuthority)),
            2,
            &["error certificate-trust"],
        ),
        case(
            "expired certificate",
            enforce("expired.test", Server::Faulty(Fault::Expired)),
            2,
            &["error certificate-expired"],
        ),
        case(
            "certificate for another name",
            enforce("wrongname.test", Server::Faulty(Fault::WrongName)),
            2,
            &["error certificate-name"],
        ),
        case("no STARTTLS", enforce("plain.test", Server::Plain), 2, &["error no-starttls"]),
        case("STARTTLS refused", enforce("refuses.test", Server::Refuses), 2, &["error no-starttls"]),
        case("closed at the ClientHello", enforce("hangsup.test", Server::HangsUp), 2, &["error no-tls"]),
        case(
            "policy host answers 404",
            at("lost.test").host("mx", Server::Sound).sts_answer(Answer::Status(404)),
            2,
            &["error sts-document"],
        ),
        case(
            "policy host with an expired certificate",
            enforce("webpki.test", Server::Sound).sts_certificate(Fault::Expired),
            2,
            &["error sts-document"],
        ),
        case(
            "policy without mx",
            at("invalid.test")
                .host("mx", Server::Sound)
                .sts_answer(Answer::Document("version: STSv1\nmode: enforce\nmax_age: 604800\n".into())),
            2,
            &["error sts-document"],
        ),
        case(
            "MX host outside the policy",
            at("outside.test").host("mx", Server::Sound).host("rogue", Server::Sound).sts("enforce", "mx"),
            2,
            &["error sts-mx"],
        ),
        case(
            "max_age of an hour",
            at("short.test").host("mx", Server::Sound).sts_answer(Answer::Document(
                "version: STSv1\r\nmode: enforce\r\nmx: *.short.test\r\nmax_age: 3600\r\n".into(),
            )),
            1,
            &["warning sts-max-age"],
        ),
        case(
            "testing, self-signed certificate",
            at("testing.test").host("mx", Server::Faulty(Fault::SelfSigned)).sts("testing", "mx"),
            1,
            &["note sts-testing", "warning certificate-trust"],
        ),
        case(
            "a TLSRPT record without its semicolon",
            enforce("near-miss.test", Server::Sound),
            2,
            &["error tlsrpt-record"],
        ),
        case("a TLSRPT record to mailto://", enforce("slashes.test", Server::Sound), 2, &["error tlsrpt-record"]),
        case("a bad id, and an enforced document", enforce("bad-id.test", Server::Sound), 2, &["error sts-record"]),
        case(
            "a record in capitals, and an enforced document",
            enforce("capitals.test", Server::Sound),
            2,
            &["error sts-record"],
        ),
        case("two _mta-sts records", enforce("twice.test", Server::Sound), 2, &["error sts-record"]),
        case(
            "no policy, no TLSRPT",
            Domain::new("open.test").host("mx", Server::Sound),
            1,
            &["warning sts-absent", "warning tlsrpt-absent"],
        ),
        case(
            "TLSRPT without a usable URI",
            enforce("rua.test", Server::Sound).reports_to("nobody"),
            2,
            &["error tlsrpt-record"],
        ),
        case("DANE, TLSA fits", dane("dane.example", Tlsa::Matching), 0, &["note sts-absent", "note tlsrpt-host"]),
        case(
            "DANE, TLSA does not fit",
            dane("mismatch.example", Tlsa::Mismatching),
            2,
            &["error tlsa-mismatch", "note sts-absent", "note tlsrpt-host"],
        ),
        case(
            "TLSA of usage 1 alone",
            at("unusable.example").signed().host("mx", Server::Sound),
            1,
            &["warning sts-absent", "warning tlsa-unusable"],
        ),
        case(
            "TLSA 2 1 1 of the authority",
            at("anchor.example").signed().host("mx", Server::Sound),
            0,
            &["note sts-absent", "note tlsrpt-host"],
        ),
        case(
            "TLSA 2 1 1, certificate for another name",
            at("anchor-name.example").signed().host("mx", Server::Faulty(Fault::WrongName)),
            2,
            &["error tlsa-mismatch", "note sts-absent", "note tlsrpt-host"],
        ),
        case(
            "TLSA on one of two hosts",
            at("some.example").signed().dane_host("a", Server::Sound, Tlsa::Matching).host("b", Server::Sound),
            1,
            &["note tlsrpt-host", "warning sts-absent", "warning tlsa-some"],
        ),
        case(
            "TLSA look-up fails",
            at("tlsafail.example").signed().host("mx", Server::Sound),
            2,
            &["error tlsa-failed", "warning sts-absent"],
        ),
        case(
            "TLSA in an unsigned zone",
            at("unsigned.test").dane_host("mx", Server::Sound, Tlsa::Matching),
            1,
            &["warning sts-absent", "warning tlsa-unsigned"],
        ),
        case(
            "DANE and MTA-STS, self-signed certificate",
            dane("both.example", Tlsa::Matching).sts("enforce", "mx"),
            2,
            &["error certificate-trust", "note tlsrpt-host"],
        ),
        case("null MX", at("null.test"), 0, &["note null-mx"]),
        case("no such domain", Domain::new("nowhere.test"), 2, &["error no-domain"]),
        case("MX look-up fails", enforce("servfail.test", Server::Sound), 2, &["error mx-failed"]),
    ]
}

/// What the world's builder has no word for.
fn more(world: &World) {
    let anchor = tlsa_of_root(world);
    let mut zone = world.dns.change();
    zone.more_txt("_mta-sts.twice.test", "v=STSv1; id=2;");
    for (name, text) in NEAR_MISSES {
        zone.remove(name, hickory_proto::rr::RecordType::TXT);
        zone.txt(name, text);
    }
    zone.tlsa("mx.unusable.example", 1, 1, 1, &[7; 32]);
    zone.tlsa("mx.anchor.example", 2, 1, 1, &anchor);
    zone.tlsa("mx.anchor-name.example", 2, 1, 1, &anchor);
    zone.fault("_25._tcp.mx.tlsafail.example", Some(dns::Fault::ServFail));
    zone.fault("servfail.test", Some(dns::Fault::ServFail));
    zone.mx("null.test", 0, ".");
    zone.remove("_smtp._tls.nowhere.test", hickory_proto::rr::RecordType::TXT);
}

/// Records that no sender takes for what they are meant to be.
const NEAR_MISSES: [(&str, &str); 4] = [
    ("_smtp._tls.near-miss.test", "v=TLSRPTv1 rua=mailto:a@reports.test"),
    ("_smtp._tls.slashes.test", "v=TLSRPTv1; rua=mailto://a@reports.test"),
    ("_mta-sts.bad-id.test", "v=STSv1; id=2026-01-01;"),
    ("_mta-sts.capitals.test", "V=STSV1; id=1;"),
];

/// SHA-256 of the public key of the world's authority.
fn tlsa_of_root(world: &World) -> Vec<u8> {
    let certificate =
        rustls::server::ParsedCertificate::try_from(&world.authority.der()).unwrap().subject_public_key_info().to_vec();
    ring::digest::digest(&ring::digest::SHA256, &certificate).as_ref().to_vec()
}

#[test]
fn a_domain_is_seen_as_a_sender_sees_it() {
    if host::inside().is_some() {
        tokio::runtime::Runtime::new().unwrap().block_on(look_at_all());
        return;
    }
    host::run_inside(TEST, "all").unwrap_or_else(|e| panic!("{e}"));
}

async fn look_at_all() {
    let cases = cases();
    let domains: Vec<Domain> = cases.iter().map(|case| case.domain.clone()).collect();
    let options = Options { receivers: Some(25), ..Options::default() };
    let world = World::start(options, &domains).await.unwrap();
    more(&world);
    let program = Program::lab(env!("CARGO_BIN_EXE_lab"));
    let mut table = String::new();
    let mut faults = Vec::new();
    for case in &cases {
        let name = case.domain.name();
        let (status, seen) = look(&program, &world, name).await;
        let _ = writeln!(table, "{:42} {name:20} {status}  {}", case.what, found(&seen).join(", "));
        if (status, found(&seen)) != (case.status, case.finds.iter().map(|f| (*f).to_owned()).collect()) {
            faults.push(format!("{name}: wanted {} {:?}:\n{seen:#}", case.status, case.finds));
        }
    }
    let output = program.run(&world, &["check-domain", "mismatch.example"]).await.unwrap();
    println!("{table}\n{}", String::from_utf8_lossy(&output.stdout));
    assert!(faults.is_empty(), "{}", faults.join("\n"));

    for ((record, text), what) in NEAR_MISSES.iter().zip([
        "there is no semicolon after `v=TLSRPTv1`",
        "`mailto:` is followed by an address, without `//`",
        "its id `2026-01-01` has `-` in it: only letters and digits are allowed",
        "it must begin with exactly `v=STSv1;`, in this case of letters and without blanks",
    ]) {
        let name = record.split_once('.').unwrap().1.trim_start_matches("_tls.");
        let (_, seen) = look(&program, &world, name).await;
        let problem = seen["findings"][0]["what"].as_str().unwrap();
        let shown = text.contains("mailto://") || problem.contains(text);
        assert!(problem.contains(what) && shown, "{record}: {problem}");
    }
    for name in ["bad-id.test", "capitals.test", "twice.test"] {
        let (_, seen) = look(&program, &world, name).await;
        assert_eq!(seen["advice"]["policy-state"], "stays", "{name}: {seen:#}");
        assert_eq!(seen["advice"]["policy"][1], "mode: enforce", "{name}: {seen:#}");
        assert_eq!(seen["advice"]["zone"][0]["state"], "replaces", "{name}: {seen:#}");
    }

    // What it proposes is what it asks for.
    let mut mended = String::new();
    for (name, left) in [
        ("lost.test", &["note sts-testing"][..]),
        ("invalid.test", &["note sts-testing"]),
        ("webpki.test", &["note sts-testing"]),
        ("outside.test", &[]),
        ("short.test", &[]),
        ("near-miss.test", &[]),
        ("slashes.test", &[]),
        // The document that is enforced stays.
        ("bad-id.test", &[]),
        ("capitals.test", &[]),
        ("twice.test", &[]),
        ("open.test", &["note sts-testing"]),
        ("rua.test", &[]),
        ("mismatch.example", &["note sts-testing", "warning certificate-trust"]),
        ("unusable.example", &["note sts-testing"]),
        ("anchor-name.example", &["note sts-testing", "warning certificate-name"]),
        ("some.example", &["note sts-testing"]),
    ] {
        let (_, before) = look(&program, &world, name).await;
        publish(&world, name, &before["advice"]);
        let (status, after) = look(&program, &world, name).await;
        let _ = writeln!(mended, "{name:20} as proposed: {status}  {}", found(&after).join(", "));
        assert_eq!(found(&after), left, "{name}: {after:#}");
    }
    println!("{mended}");
    keeps_off_private_addresses(&world).await;
}

/// Strangers must not make us connect to hosts of our own network.
async fn keeps_off_private_addresses(world: &World) {
    let text = std::fs::read_to_string(world.config()).unwrap().replace("private_addresses = true", "");
    let config = world.folder().join("public.toml");
    std::fs::write(&config, text).unwrap();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_lab"));
    let command = command.args(["daemon", "check-domain", "good.test", "--json", "--config"]).arg(config);
    let before = world.receiver("mx.good.test").record().connections.len();
    let output = command.output().await.unwrap();
    let seen: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found(&seen), ["warning host-private"], "{seen:#}");
    assert_eq!(world.receiver("mx.good.test").record().connections.len(), before);
}

async fn look(program: &Program, world: &World, name: &str) -> (i32, Value) {
    let output = program.run(world, &["check-domain", name, "--json"]).await.unwrap();
    let seen = serde_json::from_slice(&output.stdout);
    let seen = seen.unwrap_or_else(|e| panic!("{name}: {e}: {}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code().unwrap(), seen)
}

/// Each finding with its weight, sorted.
fn found(seen: &Value) -> Vec<String> {
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap().to_owned();
    let all = seen["findings"].as_array().unwrap();
    let mut found: Vec<String> = all.iter().map(|f| format!("{} {}", text(f, "weight"), text(f, "name"))).collect();
    found.sort();
    found.dedup();
    found
}

/// Publishes what is proposed in place of what is there.
fn publish(world: &World, name: &str, advice: &Value) {
    let mut zone = world.dns.change();
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for line in advice["zone"].as_array().unwrap() {
        let record = line["record"].as_str().unwrap();
        let (owner, rest) = record.split_once(". IN ").unwrap();
        let (kind, value) = rest.split_once(' ').unwrap();
        let kind: hickory_proto::rr::RecordType = kind.parse().unwrap();
        let times = seen.entry(format!("{owner} {kind}")).or_default();
        if *times == 0 {
            zone.remove(owner, kind);
        }
        *times += 1;
        match kind {
            hickory_proto::rr::RecordType::TXT => zone.more_txt(owner, value.trim_matches('"')),
            _ => {
                let fields: Vec<&str> = value.split(' ').collect();
                let number = |n: usize| fields[n].parse().unwrap();
                let data = data_encoding::HEXLOWER.decode(fields[3].as_bytes()).unwrap();
                zone.tlsa(owner.strip_prefix("_25._tcp.").unwrap(), number(0), number(1), number(2), &data);
            }
        }
    }
    let lines: Vec<&str> = advice["policy"].as_array().unwrap().iter().map(|line| line.as_str().unwrap()).collect();
    let policy_host = format!("mta-sts.{name}");
    zone.remove(&policy_host, hickory_proto::rr::RecordType::A);
    zone.address(&policy_host, world.policy_hosts.address().ip());
    let identity = world.authority.certify(&policy_host, None).unwrap();
    world.policy_hosts.set(name, Site { identity, answer: Answer::Document(lines.join("\r\n") + "\r\n") });
}
