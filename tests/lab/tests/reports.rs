//! A report reaches the domain whose TLS is broken, through the real Postfix, and is what others say that it should be.
//!
//! Needs root (network and mount namespaces, Postfix's own users), an installed Postfix, a newer one (`tests/chroot trixie`),
//! dkimpy (Debian's python3-dkim) and parsedmarc (`tests/parsedmarc`). Where one is missing the test fails and says which.
//! Nothing outside the namespaces and the temporary folder is touched.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use data_encoding::BASE64;
use lab::ca::Fault;
use lab::daemon::{Daemon, Program, counted};
use lab::external_validators::Verifier;
use lab::host::{self, DAY, seconds, stamp, today};
use lab::postfix::{Installation, Postfix};
use lab::report::{self, Report};
use lab::smtp::submit;
use lab::world::{Domain, Options, Server, World};
use lab::{dkim, external_validators};
use serde_json::Value;
use tlswarden::config::DkimKeySection;
use tlswarden::reporting::dkim::signer::Signer;

const HOST: &str = "mx.broken.test";
const REPORTS: &str = "tlsrpt@broken.test";

#[test]
fn past_the_broken_certificate_by_the_transport_of_the_example() {
    run_in_host("past_the_broken_certificate_by_the_transport_of_the_example", Installation::of_this_host);
}

#[test]
fn past_the_broken_certificate_by_tls_required_no() {
    run_in_host("past_the_broken_certificate_by_tls_required_no", || Installation::of_release("trixie"));
}

fn run_in_host(test: &str, installation: impl FnOnce() -> Result<Installation, String>) {
    match host::inside() {
        Some(root) => {
            let installation = Installation::at(Path::new(&root)).unwrap();
            tokio::runtime::Runtime::new().unwrap().block_on(day(&installation));
        }
        None => {
            let root = installation().unwrap_or_else(|e| panic!("{e}")).root().to_owned();
            host::run_inside(test, &root).unwrap_or_else(|e| panic!("{e}"));
        }
    }
}

/// Reports pass as reports and as any other mail (a receiver's DMARC), under two selectors for each key, whichever form the key
/// was written in by OpenSSL.
#[test]
fn dkimpy_verifies_the_keys_of_openssl_both_ways() {
    let folder = tempfile::tempdir().unwrap();
    let openssl = |arguments: &[&str]| {
        let output = Command::new("openssl").args(arguments).current_dir(folder.path()).output();
        let output = output.unwrap_or_else(|e| panic!("openssl: {e}; try: apt-get install openssl"));
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    openssl(&["genrsa", "-traditional", "-out", "pkcs1", "2048"]);
    openssl(&["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", "pkcs8"]);
    openssl(&["genpkey", "-algorithm", "ed25519", "-out", "ed25519"]);
    let head = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap().lines().next().unwrap().to_owned();
    assert_eq!(head("pkcs1"), "-----BEGIN RSA PRIVATE KEY-----");
    assert_eq!((head("pkcs8"), head("ed25519")), (head("ed25519"), "-----BEGIN PRIVATE KEY-----".to_owned()));

    let (mut keys, mut records) = (Vec::new(), serde_json::Map::new());
    for name in ["pkcs1", "pkcs8", "ed25519"] {
        let public = openssl(&["pkey", "-in", name, "-pubout", "-outform", "DER"]);
        let (kind, bytes) = match name {
            // RFC 8463 §4: the 32 bytes of the key, which stand last.
            "ed25519" => ("ed25519", &public[public.len() - 32..]),
            _ => ("rsa", &public[..]),
        };
        for (selector, service) in [(name.to_owned(), "s=tlsrpt; "), (format!("{name}-mail"), "")] {
            let record = format!("v=DKIM1; k={kind}; {service}p={}", BASE64.encode(bytes));
            records.insert(format!("{selector}._domainkey.sender.test"), record.into());
            keys.push(DkimKeySection { selector, domain: None, key: folder.path().join(name) });
        }
    }
    let message = "From: tlsrpt@sender.test\r\nTo: r@broken.test\r\nSubject: Report Domain: broken.test\r\n\
                   Message-ID: <1@sender.test>\r\nDate: Mon, 23 Nov 2026 00:10:00 +0000\r\nMIME-Version: 1.0\r\n\
                   Content-Type: text/plain\r\nTLS-Report-Domain: broken.test\r\nTLS-Report-Submitter: sender.test\r\n\
                   TLS-Required: No\r\nAuto-Submitted: auto-generated\r\n\r\nreport\r\n";
    let signed = Signer::load(&keys, "sender.test").unwrap().sign(message.into()).unwrap();
    for (verifier, passes) in [(Verifier::OfReports, [true, false]), (Verifier::OfMail, [false, true])] {
        let verdicts = external_validators::dkimpy_with(verifier, &signed, &records.clone().into()).unwrap();
        println!("{verifier:?}: {verdicts:?}");
        let passed: Vec<bool> = verdicts.iter().map(|verdict| verdict == "pass").collect();
        assert_eq!(passed, passes.repeat(3), "{verifier:?}: {verdicts:?}");
    }
}

async fn day(installation: &Installation) {
    host::wait_for_room_before_midnight(Duration::from_secs(120));
    let domain = Domain::new("broken.test").host("mx", Server::Faulty(Fault::SelfSigned)).sts("enforce", "mx");
    let options = Options {
        submission: Some(Postfix::SMTPD),
        postfix: installation.short_version(),
        ..Options::on_standard_ports()
    };
    let world = World::start(options, &[domain.reports_to(REPORTS)]).await.unwrap();
    let program = Program::lab(env!("CARGO_BIN_EXE_lab"));
    let daemon = Daemon::start(&program, &world).await.unwrap();
    let postfix = Postfix::start(&world, installation, "may").unwrap();

    submit(Postfix::SMTPD, "someone@sender.test", &["a@broken.test"], "Subject: hello\n\nhello").await.unwrap();
    let line = postfix.await_delivery("a@broken.test", 0).unwrap();
    assert!(line.contains("status=deferred (Server certificate not "), "{line}");
    let (today, begin) = (today(), Instant::now());
    while !counted(&program, &world, &today).await.unwrap().contains_key("broken.test") {
        assert!(begin.elapsed() < Duration::from_secs(20), "nothing was counted");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    daemon.stop().await.unwrap();
    assert!(world.receiver(HOST).record().mail.is_empty());

    let midnight = (seconds() / DAY + 1) * DAY;
    world.configure(Some(&stamp(midnight + 310))).unwrap();
    let daemon = Daemon::start(&program, &world).await.unwrap();
    // Postfix's clock is the host's; one line of the next day says that the log has been read past this one.
    let stamp = jiff::Timestamp::from_second(midnight as i64 + 300).unwrap().strftime("%b %d %H:%M:%S");
    let line = format!("{stamp} mta postfix/qmgr[1]: 0123456789A: from=<>, size=1, nrcpt=1 (queue active)\n");
    fs::OpenOptions::new().append(true).open(world.log()).unwrap().write_all(line.as_bytes()).unwrap();

    let line = postfix.await_delivery(REPORTS, 0).unwrap();
    let line = if installation.knows_attributes() {
        line
    } else {
        // The report is held to the policy that it says is not met, as any mail is ...
        assert!(line.contains("status=deferred (Server certificate not "), "{line}");
        let last = await_state(&program, &world, "deferred").await;
        assert!(last.contains(": Server certificate not "), "{last}");
        // ... until it has a transport of its own.
        postfix.set_up_reports("tlsrpt-bounces@sender.test").unwrap();
        let before = postfix.log_length();
        postfix.flush_one(&line).unwrap();
        let line = postfix.await_delivery(REPORTS, before).unwrap();
        assert!(line.contains(" postfix/tlswarden/smtp["), "{line}");
        line
    };
    assert!(line.contains("status=sent "), "{line}");
    await_state(&program, &world, "sent").await;
    let mails = world.receiver(HOST).record().mail;
    assert_eq!(mails.len(), 1);
    assert!(mails[0].tls, "over TLS, whatever its certificate");
    others_read_it(&mails[0].data, &world).await;

    // The session that carried it is no session that is counted.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let totals = &counted(&program, &world, &today).await.unwrap()["broken.test"];
    assert_eq!((totals.successful, totals.failed), (0, 1), "{totals:?}");
    daemon.stop().await.unwrap();
}

/// Waits until the one report is in this state; what was last said of it.
async fn await_state(program: &Program, world: &World, state: &str) -> String {
    let begin = Instant::now();
    loop {
        let output = program.run(world, &["reports", "list", "--json"]).await.unwrap();
        let reports: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap_or_default();
        if let [report] = &reports[..]
            && report["state"] == state
        {
            return report["last"].as_str().unwrap_or_default().to_owned();
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "not {state}: {reports:#?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Our own reader, mail-auth, dkimpy and parsedmarc agree about the message as it was received.
async fn others_read_it(message: &[u8], world: &World) {
    let ours: Report = report::read(message).unwrap_or_else(|faults| panic!("{}", faults.join("\n")));
    let verdicts = dkim::verify(message, world.dns.address()).await.unwrap();
    assert!(verdicts.len() == 2 && verdicts.iter().all(|v| v.result.is_ok()), "{verdicts:?}");
    assert_eq!(external_validators::dkimpy(message).unwrap(), ["pass", "pass"]);
    let changed = String::from_utf8_lossy(message).replacen("TLS-Report-Domain: b", "TLS-Report-Domain: c", 1);
    let verdicts = external_validators::dkimpy(changed.as_bytes()).unwrap();
    assert!(verdicts.len() == 2 && verdicts.iter().all(|v| v != "pass"), "{verdicts:?}");

    let theirs = external_validators::parsedmarc(message).unwrap();
    assert_eq!(theirs["report_type"], "smtp_tls", "{theirs}");
    let read = &theirs["report"];
    for (their, our) in
        [("organization_name", "organization-name"), ("report_id", "report-id"), ("contact_info", "contact-info")]
    {
        assert_eq!(read[their], ours.value[our], "{theirs:#}");
    }
    let (their, our) = (&read["policies"][0], &ours.value["policies"][0]);
    assert_eq!(their["policy_domain"], our["policy"]["policy-domain"], "{theirs:#}");
    assert_eq!(their["policy_type"], our["policy"]["policy-type"], "{theirs:#}");
    assert_eq!(their["policy_strings"], our["policy"]["policy-string"], "{theirs:#}");
    // It looks for `mx-host-pattern`, the name of the type in RFC 8460 section 4.4, not for the key `mx-host`.
    assert!(their.get("mx_host_patterns").is_none(), "{theirs:#}");
    let counts = &our["summary"];
    assert_eq!(their["failed_session_count"], counts["total-failure-session-count"], "{theirs:#}");
    assert_eq!(their["successful_session_count"], counts["total-successful-session-count"], "{theirs:#}");
    let (their, our) = (&their["failure_details"][0], &our["failure-details"][0]);
    for (their_key, our_key) in [
        ("result_type", "result-type"),
        ("failed_session_count", "failed-session-count"),
        ("receiving_mx_hostname", "receiving-mx-hostname"),
        ("receiving_ip", "receiving-ip"),
        ("failure_reason_code", "failure-reason-code"),
    ] {
        assert_eq!(their[their_key], our[our_key], "{their_key}: {theirs:#}");
    }
    println!("{}\n\nparsedmarc reads: {theirs:#}", String::from_utf8_lossy(message));
}
