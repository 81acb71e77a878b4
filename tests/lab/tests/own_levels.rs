//! What each MTA does with each answer at each level of its own, where no server offers STARTTLS.
//!
//! For this host's Postfix and a newer one, every level that `smtp_tls_security_level` can have, and a domain for every
//! row of the table of decisions: what the daemon answers to the map `NAME@LEVEL`, whether the mail went out in clear
//! text, and whether it would have without the daemon. The same for Exim, with what its transport can demand by itself. No
//! mail goes out in clear text that the host alone would have deferred. Needs what `postfix.rs` and `exim.rs` need; where
//! something is missing the test fails and says what.

use std::fmt::Write as _;
use std::fs;

use lab::daemon::{Daemon, Program};
use lab::exim::{self, Exim};
use lab::postfix::{Installation, Postfix};
use lab::smtp::submit;
use lab::world::{Domain, Options, Server, Tlsa, World};
use lab::{both, dns, host, socketmap};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const TEST: &str = "no_answer_weakens_a_level";

const LEVELS: [&str; 8] = ["none", "may", "encrypt", "dane", "dane-only", "verify", "secure", "fingerprint"];

/// TLSA records of exactly 3 bytes end the smtp(8) of some Postfixes: there the host alone is not tried.
const DATALESS: [&str; 2] = ["dataless.example", "dataless-beside.example"];

#[test]
fn no_answer_weakens_a_level() {
    let Some(played) = both::play(TEST, |installation| async move { play_all(&installation).await }) else { return };
    let mut faults = Vec::new();
    println!("| Postfix | own level | domain | answer | delivered | without the daemon |\n|---|---|---|---|---|---|");
    for (postfix, rows) in &played {
        for row in rows.as_array().unwrap() {
            let [level, domain, answer, did, alone] = [0, 1, 2, 3, 4].map(|n| row[n].as_str().unwrap());
            let shown = answer.split(" { ").next().unwrap();
            let mut line = format!("| {} | {level} | {domain} | `{}` |", postfix.version(), shown.trim());
            let _ = write!(line, " {did} | {alone} |");
            println!("{line}");
            let want = wanted(domain, level, postfix.knows_attributes());
            let cleartext = did == "clear text" && (alone != "clear text" || must_not_be_clear(domain, level));
            if !answer.starts_with(&want) || cleartext || did == "panic" {
                faults.push(format!("wanted `{want}`: {line}"));
            }
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

/// Domains that published that clear text must not be used. Where the own level leaves no answer to give, or none of it
/// is looked at, the own level holds.
fn must_not_be_clear(domain: &str, level: &str) -> bool {
    level != "fingerprint"
        && matches!(domain, "row1.example" | "row2.example" | "row4.example" | "enforce.test")
        && !(domain == "row2.example" && matches!(level, "none" | "may" | "dane"))
}

fn domains() -> Vec<Domain> {
    let plain = Server::Plain;
    let signed = |name: &str| Domain::new(name).signed();
    vec![
        signed("row1.example").dane_host("mx1", plain, Tlsa::Matching).dane_host("mx2", plain, Tlsa::Matching),
        signed("row2.example").dane_host("mx1", plain, Tlsa::Matching).host("mx2", plain),
        signed("row3.example").host("mx1", plain).dane_host("mx2", plain, Tlsa::Matching),
        signed("row3-sts.example").host("mx1", plain).dane_host("mx2", plain, Tlsa::Matching).sts("enforce", "*"),
        signed("row4.example").host("mx1", plain),
        signed("row4-one.example").host("mx1", plain).host("mx2", plain),
        signed("row5.example").host("mx1", plain).host("mx2", plain),
        signed("row5-sts.example").host("mx1", plain).host("mx2", plain).sts("enforce", "*"),
        signed("row6.example").host("mx1", plain),
        Domain::new("row7.test").host("mx1", plain),
        Domain::new("row7-dead-backup.test").host("mx1", plain).host("mx2", plain),
        Domain::new("row8.test").dane_host("mx1", plain, Tlsa::Matching),
        Domain::new("row9.test").host("mx1", plain),
        signed("row2-testing.example").dane_host("mx1", plain, Tlsa::Matching).host("mx2", plain).sts("testing", "*"),
        Domain::new("row10.test").host("mx1", plain),
        Domain::new("testing.test").host("mx1", plain).sts("testing", "mx1"),
        Domain::new("enforce.test").host("mx1", plain).sts("enforce", "mx1"),
        signed(DATALESS[0]).host("mx1", plain),
        signed(DATALESS[1]).host("mx1", plain),
    ]
}

/// What a description of domains cannot say.
fn prepare_dns(world: &World) {
    let mut zone = world.dns.change();
    let servfail = Some(dns::Fault::ServFail);
    for host in ["mx1.row4.example", "mx1.row4-one.example"] {
        // PKIX-EE (RFC 7672 §3.1.3).
        zone.tlsa(host, 1, 1, 1, &[7; 32]);
    }
    for host in ["mx2.row5.example", "mx2.row5-sts.example", "mx1.row6.example", "mx1.row9.test"] {
        zone.fault(&format!("_25._tcp.{host}"), servfail);
    }
    zone.fault("mx2.row7-dead-backup.test", servfail);
    zone.fault("row10.test", servfail);
    for host in ["mx1.row8.test", "mx1.row9.test"] {
        zone.cut(host, true);
    }
    for host in DATALESS.map(|domain| format!("mx1.{domain}")) {
        zone.tlsa(&host, 3, 1, 1, &[]);
    }
    zone.tlsa(&format!("mx1.{}", DATALESS[1]), 3, 1, 1, &[7; 32]);
}

/// How the answer begins.
fn wanted(domain: &str, level: &str, newer: bool) -> String {
    // none, may; encrypt; dane; dane-only; verify, secure.
    let own = "NOTFOUND ";
    let narrowed = |domain: &str| format!("OK secure match=mx1.{domain} servername=hostname");
    let testing =
        |level: &str| if newer && level != "none" { format!("OK {level} policy_type=sts ") } else { own.into() };
    let secure = "OK secure match=mx1.enforce.test servername=hostname".to_owned();
    let row: [&str; 5] = match domain {
        _ if level == "fingerprint" => return own.into(),
        "row1.example" => ["OK dane-only"; 5],
        "row2.example" => ["OK dane", "OK dane-only", own, own, "OK dane-only"],
        "row3.example" => ["OK dane", own, own, own, own],
        "row3-sts.example" | "row5-sts.example" if level == "dane-only" => return own.into(),
        "row3-sts.example" | "row5-sts.example" => return narrowed(domain),
        "row4.example" => ["OK encrypt", own, own, own, own],
        "row4-one.example" => ["OK dane", own, own, own, own],
        "row5.example" => ["OK dane", "TEMP ", own, own, own],
        "row6.example" => ["TEMP ", "TEMP ", "TEMP ", "TEMP ", own],
        "row8.test" => [if newer { "OK dane" } else { own }, own, own, own, own],
        "row2-testing.example" if !newer => return wanted("row2.example", level, newer),
        "row2-testing.example" => match level {
            "none" | "may" | "dane" => return "OK dane policy_type=sts ".into(),
            "dane-only" => return "OK dane-only policy_type=sts ".into(),
            _ => return "OK dane-only".into(),
        },
        "row10.test" => ["TEMP "; 5],
        "testing.test" => return testing(level),
        "enforce.test" if level == "dane-only" => return own.into(),
        "enforce.test" => return secure,
        // The newer one takes such records.
        "dataless.example" if newer => ["OK encrypt", own, own, own, own],
        "dataless.example" => ["OK encrypt", "OK encrypt", "OK encrypt", "TEMP ", own],
        "dataless-beside.example" if newer => ["OK dane-only"; 5],
        "dataless-beside.example" => ["TEMP "; 5],
        _ => [own; 5],
    };
    let column = match level {
        "none" | "may" => 0,
        "encrypt" => 1,
        "dane" => 2,
        "dane-only" => 3,
        _ => 4,
    };
    row[column].to_owned()
}

async fn play_all(installation: &Installation) -> Value {
    let domains = domains();
    let options = Options {
        submission: Some(Postfix::SMTPD),
        postfix: installation.version().to_owned(),
        ..Options::on_standard_ports()
    };
    let world = World::start(options, &domains).await.unwrap();
    prepare_dns(&world);
    let daemon = Daemon::start(&Program::lab(env!("CARGO_BIN_EXE_lab")), &world).await.unwrap();
    let postfix = Postfix::start(&world, installation, "may").unwrap();
    let mut rows = Vec::new();
    for level in LEVELS {
        let names = |alone: bool| {
            let tried = move |name: &&str| !(alone && DATALESS.contains(name));
            domains.iter().map(Domain::name).filter(tried).collect::<Vec<_>>()
        };
        let map = format!("{}@{level}", installation.map());
        let maps = format!("socketmap:unix:{}:{map}", world.socketmap().display());
        let alone = deliver(&world, &postfix, level, "", &names(true)).await;
        let with = deliver(&world, &postfix, level, &maps, &names(false)).await;
        for (name, did) in names(false).iter().zip(with) {
            let alone = names(true).iter().position(|other| other == name).map_or("not tried", |n| alone[n]);
            let answer = socketmap::ask(&world.socketmap(), &map, name).await.unwrap();
            rows.push(json!([level, name, answer, did, alone]));
        }
    }
    daemon.stop().await.unwrap();
    Value::Array(rows)
}

/// What a transport of Exim can demand by itself: the options of the host alone, and the settings of the example that keep
/// them.
const EXIM_DEMANDS: [(&str, &str, &str); 3] = [
    ("nothing", "", ""),
    ("hosts_require_tls = *", " hosts_require_tls = *", "TLSWARDEN_OWN_REQUIRE_TLS = *"),
    ("tls_verify_hosts = *", " tls_verify_hosts = *", "TLSWARDEN_OWN_VERIFY = *"),
];

#[test]
fn no_answer_weakens_what_exim_demands() {
    const TEST: &str = "no_answer_weakens_what_exim_demands";
    exim::program().unwrap();
    match host::inside() {
        Some(_) => tokio::runtime::Runtime::new().unwrap().block_on(play_exim()),
        None => host::run_inside(TEST, "exim").unwrap_or_else(|e| panic!("{e}")),
    }
}

async fn play_exim() {
    let domains = domains();
    let options = Options { exim: true, ..Options::on_standard_ports() };
    let world = World::start(options, &domains).await.unwrap();
    prepare_dns(&world);
    let _daemon = Daemon::start(&Program::lab(env!("CARGO_BIN_EXE_lab")), &world).await.unwrap();
    let mut faults = Vec::new();
    println!("| Exim demands | domain | answer | delivered | without the daemon |\n|---|---|---|---|---|");
    for (demand, options, macros) in EXIM_DEMANDS {
        let with = Exim::new(&world, "7s", macros).unwrap();
        let alone = Exim::alone(&world, options).unwrap();
        for domain in &domains {
            let name = domain.name();
            let [did, alone] = [&with, &alone].map(|exim| deliver_by_exim(exim, name));
            let answer = ask_for_exim(&world, name).await;
            let line = format!("| {demand} | {name} | `{answer}` | {did} | {alone} |");
            println!("{line}");
            let want = wanted_by_exim(name);
            let enforced = want.contains("enforce") || want.contains("require");
            let weaker = did == "clear text" && (alone != "clear text" || enforced);
            if !answer.starts_with(want) || weaker {
                faults.push(format!("wanted `{want}`: {line}"));
            }
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

/// How the answer begins.
fn wanted_by_exim(domain: &str) -> &'static str {
    match domain {
        "row1.example" | "dataless-beside.example" => "mode=none dane=require",
        "row3-sts.example" | "row5-sts.example" | "enforce.test" => "mode=enforce dane=no mx=",
        "row7.test" | "row7-dead-backup.test" => "mode=none dane=no",
        "row10.test" => "mode=defer cause=",
        "testing.test" => "mode=testing dane=no mx=",
        _ => "mode=none dane=try",
    }
}

async fn ask_for_exim(world: &World, domain: &str) -> String {
    let mut stream = UnixStream::connect(world.readsocket()).await.unwrap();
    stream.write_all(format!("policy {domain}\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer.trim_end().to_owned()
}

/// What became of one message.
fn deliver_by_exim(exim: &Exim, domain: &str) -> &'static str {
    // What was deferred is tried again, and its hosts are not asked for a second.
    exim.forget().unwrap();
    let (from, to) = (exim.log_length(), format!("someone@{domain}"));
    exim.submit("someone@sender.test", &[&to], "Subject: hello\n\nhello\n").unwrap();
    match exim.deliveries(&to, from).last() {
        Some(line) if line.contains(" => ") && !line.contains(" X=TLS") => "clear text",
        Some(line) if line.contains(" == ") => "deferred",
        Some(line) if line.contains(" ** ") => "bounced",
        _ => "no delivery",
    }
}

/// What became of one message to each of these domains.
async fn deliver(world: &World, postfix: &Postfix, level: &str, maps: &str, names: &[&str]) -> Vec<&'static str> {
    postfix.restart_with(world, level, &[("smtp_tls_policy_maps", maps)]).unwrap();
    let from = postfix.log_length();
    for name in names {
        let to = format!("someone@{name}");
        submit(Postfix::SMTPD, "someone@sender.test", &[&to], "Subject: hello\n\nhello").await.unwrap();
    }
    let did = |name: &&str| match postfix.await_delivery(&format!("someone@{name}"), from) {
        // No server here has STARTTLS.
        Ok(line) if line.contains(" status=sent ") => "clear text",
        Ok(line) if line.contains(" status=deferred ") => "deferred",
        Ok(_) => "bounced",
        Err(_) => "no delivery",
    };
    let did = names.iter().map(did).collect();
    let log = fs::read(world.log()).unwrap();
    let log = String::from_utf8_lossy(&log[from..]).into_owned();
    assert!(!log.contains("panic:") && !log.contains("killed by signal"), "{level}: {log}");
    did
}
