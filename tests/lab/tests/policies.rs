//! What each Postfix does with each policy: this host's, and a newer one that knows the attributes for TLSRPT.
//!
//! For every scenario: what our responder answers, what the real Postfix makes of it, and what is counted; printed as one
//! table. Needs what `postfix.rs` needs; where something is missing the test fails and says what.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::time::{Duration, Instant};

use lab::ca::Fault;
use lab::daemon::{Daemon, Program, line, reports};
use lab::https::Answer;
use lab::postfix::{Installation, Postfix};
use lab::smtp::{Kind, submit};
use lab::world::{Domain, Options, Server, Tlsa, World};
use lab::{both, dns, host, socketmap};
use serde_json::{Value, json};

const TEST: &str = "each_postfix_does_what_each_policy_asks";

/// How long answers of the world's DNS stand, in seconds: short, so that the test outlives them.
const TTL: u32 = 4;
/// Longer than that, than "ask again" stands (5 s), and than a DANE verdict does at least (10 s).
const PAST_TTL: Duration = Duration::from_secs(12);

#[test]
fn each_postfix_does_what_each_policy_asks() {
    let Some(played) = both::play(TEST, |installation| async move { play_all(&installation).await }) else { return };
    let (postfixes, played): (Vec<Installation>, Vec<Value>) = played.into_iter().unzip();
    assert!(!postfixes[0].knows_attributes() && postfixes[1].knows_attributes(), "{postfixes:?}");
    print!("{}", table(&postfixes, &played));
    let faults: Vec<String> = postfixes.iter().zip(&played).flat_map(|(postfix, rows)| faults(postfix, rows)).collect();
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

/// What there is to see of one scenario, as wanted or as it came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Seen {
    /// What the responder says.
    answer: String,
    /// What Postfix wrote about the delivery.
    did: String,
    /// What the day's report says.
    counted: String,
}

/// One domain, asked and sent to once.
struct Case {
    what: &'static str,
    domain: Domain,
    /// The security level of the host, and what the daemon is told of it.
    level: &'static str,
    wanted: Seen,
}

fn cases(newer: bool) -> Vec<Case> {
    let at = |name: &str| Domain::new(name).reports_to("tlsrpt@reports.test");
    let enforce = |name: &str, server| at(name).host("mx", server).sts("enforce", "mx");
    let case = |what, domain: Domain, answer: String, did: &str, counted: &str| {
        let wanted = Seen { answer, did: did.into(), counted: counted.into() };
        Case { what, domain, level: "may", wanted }
    };
    let secure = |name: &str, pattern: &str| {
        let host = format!("{pattern}.{name}");
        let plain = format!("OK secure match={} servername=hostname", host.trim_start_matches('*'));
        if newer { plain + &attributes(name, "enforce", pattern, true) } else { plain }
    };
    let testing = |level: &str, name: &str| match newer {
        true => format!("OK {level}{}", attributes(name, "testing", "mx", level == "may")),
        false => "NOTFOUND ".into(),
    };
    let serves = |name: &str, more: &str| {
        let begin = format!("version: STSv1\r\nmode: enforce\r\nmx: mx.{name}\r\nmax_age: 604800\r\n");
        at(name).host("mx", Server::Sound).sts_answer(Answer::Document(begin + more))
    };
    let many: String = (0..1200).map(|n| format!("mx: {n:04}.example\r\n")).collect();
    let none = || "NOTFOUND ".to_owned();
    let ok = |level| format!("OK {level}");
    let self_signed = Server::Faulty(Fault::SelfSigned);
    let verified = "sent over Verified TLS";
    let not_verified = "deferred (Server certificate not verified)";
    let mismatch = "validation-failure/mtasts-policy-mx-mismatch";
    vec![
        case(
            "MTA-STS enforce, all is well",
            enforce("good.test", Server::Sound),
            secure("good.test", "mx"),
            verified,
            "sts: 1 ok",
        ),
        case(
            "enforce, certificate for another name",
            enforce("wrongname.test", Server::Faulty(Fault::WrongName)),
            secure("wrongname.test", "mx"),
            not_verified,
            "sts: 1 failed, 1 certificate-host-mismatch",
        ),
        case(
            "enforce, self-signed certificate",
            enforce("selfsigned.test", self_signed),
            secure("selfsigned.test", "mx"),
            not_verified,
            "sts: 1 failed, 1 certificate-not-trusted/self-signed_certificate",
        ),
        case(
            "enforce, no STARTTLS",
            enforce("plain.test", Server::Plain),
            secure("plain.test", "mx"),
            "deferred (TLS is required, but was not offered by host mx.plain.test",
            "sts: 1 failed, 1 starttls-not-supported",
        ),
        case(
            "enforce, MX outside the pattern",
            at("outside.test").host("rogue", Server::Sound).sts("enforce", "mx"),
            secure("outside.test", "mx"),
            if newer { "deferred (server unavailable or unable to receive mail)" } else { not_verified },
            &format!("sts: 1 failed, 1 {mismatch}"),
        ),
        case(
            "enforce, wildcard, MX one label deep",
            at("deep1.test").host("mx", Server::Sound).sts("enforce", "*"),
            secure("deep1.test", "*"),
            verified,
            "sts: 1 ok",
        ),
        case(
            "enforce, wildcard, MX two labels deep",
            at("deep2.test").host("a.b", Server::Sound).sts("enforce", "*"),
            secure("deep2.test", "*"),
            if newer { "deferred (server unavailable or unable to receive mail)" } else { verified },
            &format!("sts: 1 failed, 1 {mismatch}"),
        ),
        case(
            "enforce, fields that would break out of an attribute",
            serves("braces.test", "x: a } match=evil.test { b\r\ny: {{\r\nz: =,\t\r\n"),
            match newer {
                // The line without braces is passed on.
                true => secure("braces.test", "mx") + " { policy_string = z: =, }",
                false => secure("braces.test", "mx"),
            },
            verified,
            "sts: 1 ok",
        ),
        case(
            "enforce, 1,201 mx lines",
            serves("many.test", &many),
            "OK secure match=mx.many.test:0000.example:0001.example:".into(),
            verified,
            "sts: 1 ok",
        ),
        case(
            "DANE, TLSA fits",
            at("dane.example").signed().dane_host("mx", self_signed, Tlsa::Matching),
            ok("dane-only"),
            verified,
            "tlsa: 1 ok",
        ),
        case(
            "DANE, TLSA does not fit",
            at("dane-bad.example").signed().dane_host("mx", Server::Sound, Tlsa::Mismatching),
            ok("dane-only"),
            not_verified,
            "tlsa: 1 failed, 1 certificate-not-trusted/dane-no-match",
        ),
        case(
            "DANE on one of two MX hosts",
            at("half.example").signed().host("mx1", Server::Sound).dane_host("mx2", self_signed, Tlsa::Matching),
            ok("dane"),
            "sent over Trusted TLS",
            // The first host, which has none.
            "no-policy-found: 1 ok",
        ),
        case(
            "DANE host under unsigned MX",
            at("unsigned.test").dane_host("mx", self_signed, Tlsa::Matching),
            // Older ones treat `dane` as `may` there unless their default is `dane` (smtp_tls_dane_insecure_mx_policy).
            if newer { ok("dane") } else { none() },
            if newer { "sent over Trusted TLS" } else { "sent over Untrusted TLS" },
            if newer { "tlsa: 1 ok" } else { "no-policy-found: 1 ok" },
        ),
        case(
            "DANE with MTA-STS, TLSA fits, certificate self-signed",
            at("both.example").signed().dane_host("mx", self_signed, Tlsa::Matching).sts("enforce", "mx"),
            ok("dane-only"),
            verified,
            "tlsa: 1 ok",
        ),
        case(
            "DANE with MTA-STS, TLSA does not fit, certificate sound",
            at("both-bad.example").signed().dane_host("mx", Server::Sound, Tlsa::Mismatching).sts("enforce", "mx"),
            ok("dane-only"),
            not_verified,
            "tlsa: 1 failed, 1 certificate-not-trusted/dane-no-match",
        ),
        case(
            "DANE, TLSA bogus (SERVFAIL)",
            at("bogus-tlsa.example").signed().dane_host("mx", Server::Sound, Tlsa::Matching),
            "TEMP ".into(),
            "deferred (client TLS configuration problem)",
            "nothing",
        ),
        case(
            "zone bogus (SERVFAIL), MX too",
            at("bogus.example").signed().dane_host("mx", Server::Sound, Tlsa::Matching).sts("enforce", "mx"),
            "TEMP ".into(),
            "deferred (Host or domain name not found. Name service error",
            "nothing",
        ),
        case(
            "_mta-sts delegation broken (SERVFAIL)",
            at("broken-txt.test").host("mx", Server::Sound).sts("enforce", "mx"),
            none(),
            "sent over Trusted TLS",
            "no-policy-found: 1 ok",
        ),
        case(
            "policy host down, no policy cached",
            at("hostdown.test").host("mx", Server::Sound).sts_answer(Answer::Close),
            none(),
            "sent over Trusted TLS",
            "sts: 1 ok, 1 sts-policy-fetch-error/connection-failed",
        ),
        case(
            "policy host down, a policy cached",
            enforce("kept.test", Server::Sound),
            secure("kept.test", "mx"),
            verified,
            "sts: 1 ok, 1 sts-policy-fetch-error/connection-failed+fallback-to-cached-policy",
        ),
        case(
            "policy host down, a policy cached, certificate self-signed",
            enforce("kept-bad.test", self_signed),
            secure("kept-bad.test", "mx"),
            not_verified,
            "sts: 1 failed, 1 certificate-not-trusted/self-signed_certificate, \
             1 sts-policy-fetch-error/connection-failed+fallback-to-cached-policy",
        ),
        case(
            "testing, MX outside the pattern and self-signed",
            at("try-may.test").host("rogue", self_signed).sts("testing", "mx"),
            testing("may", "try-may.test"),
            "sent over Untrusted TLS",
            &format!("sts: 1 failed, 1 {mismatch}"),
        ),
        Case {
            level: "dane",
            ..case(
                "testing at default dane, MX outside the pattern, TLSA fits",
                at("try-dane.example").signed().dane_host("rogue", self_signed, Tlsa::Matching).sts("testing", "mx"),
                ok("dane-only"),
                verified,
                "tlsa: 1 ok",
            )
        },
        Case {
            level: "dane",
            ..case(
                TLSA_SINCE,
                at("try-since.example").signed().host("rogue", self_signed).sts("testing", "mx"),
                testing("dane", "try-since.example"),
                verified,
                &format!("sts: 1 failed, 1 {mismatch}"),
            )
        },
        Case {
            level: "secure",
            ..case(
                "testing at default secure, MX outside the pattern",
                at("try-secure.test").host("rogue", Server::Sound).sts("testing", "mx"),
                testing("secure", "try-secure.test"),
                verified,
                &format!("sts: 1 failed, 1 {mismatch}"),
            )
        },
    ]
}

const TLSA_SINCE: &str = "testing at default dane, TLSA published since the answer";

/// The attributes that a newer Postfix is told of the policies that [`Domain::sts`] publishes.
fn attributes(domain: &str, mode: &str, pattern: &str, patterns: bool) -> String {
    let mx = format!("{pattern}.{domain}");
    let patterns = if patterns { format!(" mx_host_pattern={mx}") } else { String::new() };
    format!(
        " policy_type=sts policy_domain={domain}{patterns} {{ policy_string = version: STSv1 }} \
         {{ policy_string = mode: {mode} }} {{ policy_string = mx: {mx} }} {{ policy_string = max_age: 604800 }}"
    )
}

/// Everything that one Postfix plays.
struct Stage {
    program: Program,
    // Before the world: it is stopped while its folder is still there.
    postfix: Postfix,
    world: World,
    map: &'static str,
    rows: Vec<(&'static str, Seen, Seen)>,
    today: String,
}

async fn play_all(installation: &Installation) -> Value {
    host::wait_for_room_before_midnight(Duration::from_secs(240));
    let cases = cases(installation.knows_attributes());
    let mut domains: Vec<Domain> = cases.iter().map(|case| case.domain.clone()).collect();
    let at = |name: &str| Domain::new(name).reports_to("tlsrpt@reports.test");
    domains.push(at("dark.test").host("mx", Server::Sound).sts("enforce", "mx"));
    domains.push(at("dark.example").signed().dane_host("mx", Server::Sound, Tlsa::Matching));
    domains.push(at("dark-new.test").host("mx", Server::Sound).sts("enforce", "mx"));
    let options = Options {
        submission: Some(Postfix::SMTPD),
        postfix: installation.short_version(),
        ..Options::on_standard_ports()
    };
    let world = World::start(options, &domains).await.unwrap();
    prepare_dns(&world);
    let program = Program::lab(env!("CARGO_BIN_EXE_lab"));
    let mut daemon = Daemon::start(&program, &world).await.unwrap();
    let postfix = Postfix::start(&world, installation, "may").unwrap();
    let (map, rows, today) = (installation.map(), Vec::new(), host::today());
    let mut stage = Stage { program, postfix, world, map, rows, today };

    daemon = stage.loses_its_policy_hosts(daemon, &["kept.test", "kept-bad.test"]).await;
    stage.plays(&cases, "may").await;
    stage.heals("bogus-tlsa.example", "DANE, TLSA bogus, then mended").await;
    stage.heals("bogus.example", "zone bogus, then mended").await;
    stage.loses_all_dns().await;
    for level in ["dane", "secure"] {
        daemon.stop().await.unwrap();
        stage.world.set_default_level(level);
        stage.world.configure(None).unwrap();
        daemon = Daemon::start(&stage.program, &stage.world).await.unwrap();
        stage.postfix.restart(&stage.world, level).unwrap();
        stage.plays(&cases, level).await;
    }
    daemon.stop().await.unwrap();
    stage.finds_every_answer_well_formed();
    let rows = stage.rows.iter().map(|(what, wanted, came)| json!([what, wanted.to_json(), came.to_json()]));
    Value::Array(rows.collect())
}

/// What a description of domains cannot say.
fn prepare_dns(world: &World) {
    let mut zone = world.dns.change();
    zone.ttl(TTL);
    zone.cut("mx.unsigned.test", true);
    zone.fault("_mta-sts.broken-txt.test", Some(dns::Fault::ServFail));
    for name in names_below("bogus.example").iter().chain(&["_25._tcp.mx.bogus-tlsa.example".to_owned()]) {
        zone.fault(name, Some(dns::Fault::ServFail));
    }
}

/// The names that a bogus zone makes fail.
fn names_below(domain: &str) -> [String; 5] {
    ["", "mx.", "_25._tcp.mx.", "_mta-sts.", "mta-sts."].map(|label| format!("{label}{domain}"))
}

impl Stage {
    async fn ask(&self, domain: &str) -> String {
        socketmap::ask(&self.world.socketmap(), self.map, domain).await.unwrap()
    }

    /// The policies are cached; then the domains announce new ones, and their policy hosts are down. The daemon is
    /// started again, for then it asks for every record anew.
    async fn loses_its_policy_hosts(&self, daemon: Daemon, domains: &[&str]) -> Daemon {
        for domain in domains {
            assert!(self.ask(domain).await.starts_with("OK secure "), "{domain}");
            self.world.policy_hosts.answer(domain, Answer::Close);
            self.world.dns.change().txt(&format!("_mta-sts.{domain}"), "v=STSv1; id=20261102T000000;");
        }
        daemon.stop().await.unwrap();
        let daemon = Daemon::start(&self.program, &self.world).await.unwrap();
        for domain in domains {
            let begin = Instant::now();
            while self.world.policy_hosts.requests(domain) < 2 {
                self.ask(domain).await;
                assert!(begin.elapsed() < Duration::from_secs(20), "{domain}: the new id is not fetched");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        // Until the daemon has noted that nothing came.
        tokio::time::sleep(Duration::from_secs(1)).await;
        daemon
    }

    /// One message to each domain of this level.
    async fn plays(&mut self, cases: &[Case], level: &str) {
        let cases: Vec<&Case> = cases.iter().filter(|case| case.level == level).collect();
        let from = self.postfix.log_length();
        let mut seen = Vec::new();
        for case in &cases {
            let answer = self.ask(case.domain.name()).await;
            if case.what == TLSA_SINCE {
                self.publish_tlsa("rogue.try-since.example");
            }
            self.submit(case.domain.name()).await;
            seen.push(Seen { answer, ..Seen::default() });
        }
        for (case, seen) in cases.iter().zip(&mut seen) {
            seen.did = self.did(case.domain.name(), from);
        }
        let wanted: BTreeMap<&str, &str> =
            cases.iter().map(|case| (case.domain.name(), case.wanted.counted.as_str())).collect();
        let counted = self.counted(&wanted).await;
        for (case, mut seen) in cases.into_iter().zip(seen) {
            seen.counted = counted[case.domain.name()].clone();
            self.rows.push((case.what, case.wanted.clone(), seen));
        }
    }

    /// A host has a TLSA record from now on.
    fn publish_tlsa(&self, host: &str) {
        let identity = self.world.authority.certify(host, Some(Fault::SelfSigned)).unwrap();
        self.world.dns.change().tlsa(host, 3, 1, 1, &identity.tlsa_3_1_1());
        self.world.receiver(host).set_kind(Kind::Tls(identity));
    }

    /// A zone that failed is mended: the deferred message goes out.
    async fn heals(&mut self, domain: &str, what: &'static str) {
        for name in names_below(domain) {
            self.world.dns.change().fault(&name, None);
        }
        tokio::time::sleep(PAST_TTL).await;
        let answer = self.ask(domain).await;
        let did = self.again(domain);
        let counted = self.counted(&BTreeMap::from([(domain, "tlsa: 1 ok")])).await;
        let wanted =
            Seen { answer: "OK dane-only".into(), did: "sent over Verified TLS".into(), counted: "tlsa: 1 ok".into() };
        self.rows.push((what, wanted, Seen { answer, did, counted: counted[domain].clone() }));
    }

    /// No name is answered for, longer than any answer stands: what was known serves.
    async fn loses_all_dns(&mut self) {
        let known = ["dark.test", "dark.example"];
        let mut answers = BTreeMap::new();
        for domain in known {
            answers.insert(domain, self.ask(domain).await);
        }
        self.world.dns.change().outage(Some(dns::Fault::ServFail));
        tokio::time::sleep(PAST_TTL).await;
        let from = self.postfix.log_length();
        let not_found = "deferred (Host or domain name not found. Name service error";
        for (domain, what) in [
            ("dark.test", "all DNS down, policy cached"),
            ("dark.example", "all DNS down, TLSA records known from before"),
            ("dark-new.test", "all DNS down, nothing known"),
        ] {
            let answer = self.ask(domain).await;
            self.submit(domain).await;
            let did = self.did(domain, from);
            let counted = self.counted(&BTreeMap::from([(domain, "nothing")])).await;
            let wanted = answers.get(domain).cloned().unwrap_or_else(|| "TEMP ".into());
            let wanted = Seen { answer: wanted, did: not_found.into(), counted: "nothing".into() };
            self.rows.push((what, wanted, Seen { answer, did, counted: counted[domain].clone() }));
        }
        self.world.dns.change().outage(None);
        tokio::time::sleep(PAST_TTL).await;
        for (domain, kind, what) in [
            ("dark.test", "sts", "all DNS down, policy cached; then DNS is back"),
            ("dark.example", "tlsa", "all DNS down, TLSA records known; then DNS is back"),
            ("dark-new.test", "sts", "all DNS down, nothing known; then DNS is back"),
        ] {
            let answer = self.ask(domain).await;
            let did = self.again(domain);
            let counted = self.counted(&BTreeMap::from([(domain, format!("{kind}: 1 ok").as_str())])).await;
            let wanted = answers.get(domain).cloned().unwrap_or_else(|| "OK secure match=mx.dark-new.test ".into());
            let wanted =
                Seen { answer: wanted, did: "sent over Verified TLS".into(), counted: format!("{kind}: 1 ok") };
            self.rows.push((what, wanted, Seen { answer, did, counted: counted[domain].clone() }));
        }
    }

    /// Postfix complains about no attribute of any answer.
    fn finds_every_answer_well_formed(&self) {
        let log = fs::read_to_string(self.world.log()).unwrap();
        let complaints: Vec<&str> = log
            .lines()
            .filter(|line| line.contains(": warning: "))
            .filter(|line| ["attribute", "malformed", "policy table", "missing"].iter().any(|word| line.contains(word)))
            // How it says that an answer was TEMP.
            .filter(|line| !line.contains("policy table lookup error"))
            .collect();
        assert!(complaints.is_empty(), "{}", complaints.join("\n"));
    }

    async fn submit(&self, domain: &str) {
        let to = format!("someone@{domain}");
        submit(Postfix::SMTPD, "someone@sender.test", &[&to], "Subject: hello\n\nhello").await.unwrap();
    }

    /// Tries the deferred message to a domain again.
    fn again(&self, domain: &str) -> String {
        let line = self.postfix.delivery(&format!("someone@{domain}"), 0).unwrap();
        let from = self.postfix.log_length();
        self.postfix.flush_one(&line).unwrap();
        self.did(domain, from)
    }

    /// What Postfix wrote of the delivery to a domain.
    fn did(&self, domain: &str, from: usize) -> String {
        let line = self.postfix.await_delivery(&format!("someone@{domain}"), from).unwrap();
        let (_, status) = line.split_once(" status=").unwrap();
        let (status, reason) = status.split_once(' ').unwrap();
        if status != "sent" {
            return format!("{status} {reason}");
        }
        let host = line.split_once("relay=").unwrap().1.split_once('[').unwrap().0;
        let log = fs::read_to_string(self.world.log()).unwrap();
        let trust = log.lines().rev().find_map(|line| {
            let (before, _) = line.split_once(&format!(" TLS connection established to {host}["))?;
            before.rsplit(' ').next()
        });
        trust.map_or_else(|| "sent in clear text".into(), |trust| format!("sent over {trust} TLS"))
    }

    /// What is counted of these domains; waits until it is what is wanted, but not for ever.
    async fn counted(&self, wanted: &BTreeMap<&str, &str>) -> BTreeMap<String, String> {
        let begin = Instant::now();
        loop {
            let reports = reports(&self.program, &self.world, &self.today).await.unwrap();
            let line = |domain: &str| reports.get(domain).map_or_else(|| "nothing".to_owned(), line);
            let counted: BTreeMap<String, String> =
                wanted.keys().map(|&domain| (domain.to_owned(), line(domain))).collect();
            let all = wanted.iter().all(|(domain, wanted)| counted[*domain] == *wanted);
            if all || begin.elapsed() > Duration::from_secs(20) {
                return counted;
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }
}

impl Seen {
    fn to_json(&self) -> Value {
        json!([self.answer, self.did, self.counted])
    }
}

/// Every scenario that did not come as wanted. Answers and deliveries are compared by how they begin where they end in
/// a cause of the moment.
fn faults(postfix: &Installation, rows: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    for row in rows.as_array().unwrap() {
        for (n, part) in ["answer", "delivery", "count"].iter().enumerate() {
            let (wanted, came) = (row[1][n].as_str().unwrap(), row[2][n].as_str().unwrap());
            let open = wanted.ends_with([' ', ':']) && wanted != "NOTFOUND " || wanted.starts_with("deferred ");
            if !(came == wanted || open && came.starts_with(wanted)) {
                let what = row[0].as_str().unwrap();
                faults.push(format!("Postfix {}: {what}: {part}: `{came}`, wanted `{wanted}`", postfix.version()));
            }
        }
    }
    faults
}

/// The longest answer that is shown whole, in characters.
const LONGEST: usize = 200;

fn table(postfixes: &[Installation], played: &[Value]) -> String {
    let mut text =
        String::from("| scenario | Postfix | answer | what Postfix did | counted |\n|---|---|---|---|---|\n");
    for n in 0..played[0].as_array().unwrap().len() {
        for (postfix, rows) in postfixes.iter().zip(played) {
            let [what, seen] = [&rows[n][0], &rows[n][2]];
            let said = |n: usize| seen[n].as_str().unwrap().trim().to_owned();
            let answer = said(0);
            // What only reports need fills pages.
            let answer = match answer.split_once(" { policy_string") {
                Some((begin, rest)) => format!("{begin} + {} policy_string", rest.matches("policy_string").count() + 1),
                None => answer,
            };
            let answer = match answer.char_indices().nth(LONGEST) {
                Some((cut, _)) => format!("{}… ({} octets)", &answer[..cut], said(0).len()),
                None => answer,
            };
            let _ = writeln!(
                text,
                "| {} | {} | `{answer}` | {} | {} |",
                what.as_str().unwrap(),
                postfix.version(),
                said(1),
                said(2)
            );
        }
    }
    text
}
