//! Restarts and reloads: a look-up does not wait for report mail that hangs, and a reload says how it went.
//! The real daemon, asked as Postfix asks.

use std::fs;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use lab::daemon::{Daemon, Program};
use lab::socketmap;
use lab::world::{Domain, Options, Server, World};
use rustix::process::{Signal, kill_process};
use tokio::net::{TcpListener, TcpStream};

/// How long anything may take: a machine under load, not a measure of the daemon.
const PATIENCE: Duration = Duration::from_secs(60);

const SECURE: &str = "OK secure match=mx.a.test servername=hostname";

/// Two days of a log: the first one is over, and its report is due.
const LOG: &str = "\
2026-11-20T12:00:00Z mta postfix/smtp[7]: Verified TLS connection established to mx.a.test[127.0.1.1]:25: TLSv1.3 with cipher TLS_AES_256_GCM_SHA384 (256/256 bits)
2026-11-20T12:00:00Z mta postfix/smtp[7]: 4jXBgb2TzBz1Wkpt: to=<user@a.test>, relay=mx.a.test[127.0.1.1]:25, delay=0.02, delays=0/0/0.02/0, dsn=2.0.0, status=sent (250 2.0.0 Ok)
2026-11-21T00:01:00Z mta postfix/qmgr[9]: 4jXBgb2TzBz1Wkpt: removed
";

/// A daemon whose report is handed to an MTA that does not greet; its connection to that MTA.
async fn with_hanging_mail() -> (World, Program, Daemon, TcpStream) {
    let mta = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await.unwrap();
    let options = Options { submission: Some(mta.local_addr().unwrap()), ..Options::default() };
    let domain = Domain::new("a.test").host("mx", Server::Sound).sts("enforce", "mx").reports_to("reports@a.test");
    let world = World::start(options, &[domain]).await.unwrap();
    fs::write(world.log(), LOG).unwrap();
    world.configure(Some("2026-11-21T00:10:00Z")).unwrap();
    let program = Program::lab(env!("CARGO_BIN_EXE_lab"));
    let daemon = Daemon::start(&program, &world).await.unwrap();
    assert_eq!(ask(&world).await.unwrap(), SECURE);
    let (mail, _) = tokio::time::timeout(PATIENCE, mta.accept()).await.expect("the report is handed over").unwrap();
    (world, program, daemon, mail)
}

async fn ask(world: &World) -> std::io::Result<String> {
    socketmap::ask(&world.socketmap(), "policy", "a.test").await
}

/// Whether the daemon still waits for the MTA's greeting.
fn hangs(mail: &TcpStream) -> bool {
    matches!(mail.try_read(&mut [0; 16]), Err(error) if error.kind() == ErrorKind::WouldBlock)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_answers_before_the_mail_that_hangs_has_ended() {
    let (world, program, daemon, mail) = with_hanging_mail().await;
    assert!(hangs(&mail));
    let reloaded = program.run(&world, &["reload"]).await.unwrap();
    assert!(reloaded.status.success(), "{}", String::from_utf8_lossy(&reloaded.stderr));
    assert_eq!(ask(&world).await.unwrap(), SECURE);
    assert!(hangs(&mail), "the verdict and the answer came after the mail was given up");
    // As long as it hangs, and after.
    while hangs(&mail) {
        assert_eq!(ask(&world).await.unwrap(), SECURE);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(ask(&world).await.unwrap(), SECURE);
    daemon.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_ends_answers_until_the_mail_that_hangs_has_ended() {
    let (world, _, daemon, mail) = with_hanging_mail().await;
    assert!(hangs(&mail));
    kill_process(daemon.id().unwrap(), Signal::TERM).unwrap();
    let mut answers = 0;
    loop {
        let answer = ask(&world).await;
        if !hangs(&mail) {
            break;
        }
        assert_eq!(answer.unwrap(), SECURE);
        answers += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(answers > 0);
    daemon.stop().await.unwrap();
}
