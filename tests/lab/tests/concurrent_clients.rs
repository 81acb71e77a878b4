//! Ten thousand clients at once: none is refused while descriptors last, who is idle is not closed, who is slow holds up
//! nobody else. The real daemon, which must raise its own limit of descriptors for that.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use lab::daemon::{Daemon, Program};
use lab::socketmap;
use lab::world::{Domain, Options, Server, World};

const CLIENTS: usize = 10_000;

/// Clients that send an octet and no more, or ask and read nothing.
const SLOW: usize = 500;

/// The descriptors that the daemon keeps for all but its clients.
const RESERVED: usize = 2048;

/// The longest that a busy host may take for what a quiet one does in less than a second.
const PATIENCE: Duration = Duration::from_secs(30);

/// A client as Postfix is one: a blocking socket with a deadline.
fn connect(path: &Path) -> UnixStream {
    let client = UnixStream::connect(path).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.set_write_timeout(Some(PATIENCE)).unwrap();
    client
}

fn send(client: &mut UnixStream, domain: &str) {
    let request = format!("policy {domain}");
    client.write_all(format!("{}:{request},", request.len()).as_bytes()).unwrap();
}

fn receive(client: &mut UnixStream, want: &str) {
    let frame = format!("{}:{want},", want.len());
    let mut reply = vec![0; frame.len()];
    client.read_exact(&mut reply).unwrap();
    assert_eq!(String::from_utf8_lossy(&reply), frame);
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_clients_at_once() {
    let names: Vec<String> = (0..20).map(|n| format!("d{n}.test")).collect();
    let domains: Vec<Domain> =
        names.iter().map(|name| Domain::new(name).host("mx", Server::Sound).sts("enforce", "mx")).collect();
    let world = World::start(Options::default(), &domains).await.unwrap();
    // The daemon begins with the limit that most hosts give.
    let (_, hard) = rlimit::getrlimit(rlimit::Resource::NOFILE).unwrap();
    rlimit::setrlimit(rlimit::Resource::NOFILE, 1024, hard).unwrap();
    let daemon = Daemon::start(&Program::lab(env!("CARGO_BIN_EXE_lab")), &world).await.unwrap();
    let limit = rlimit::increase_nofile_limit(u64::MAX).unwrap();
    assert!(
        limit as usize > CLIENTS + SLOW + RESERVED,
        "this host allows {limit} descriptors (ulimit -Hn): too few to show it"
    );
    let secure = |name: &str| format!("OK secure match=mx.{name} servername=hostname");
    for name in &names {
        assert_eq!(socketmap::ask(&world.socketmap(), "policy", name).await.unwrap(), secure(name));
    }
    let path = world.socketmap();
    let asking = tokio::task::spawn_blocking(move || {
        let mut slow: Vec<UnixStream> = (0..SLOW).map(|_| connect(&path)).collect();
        for (n, client) in slow.iter_mut().enumerate() {
            match n % 2 {
                0 => client.write_all(b"1").unwrap(),
                _ => (0..50).for_each(|_| send(client, &names[0])),
            }
        }
        let mut clients: Vec<UnixStream> = (0..CLIENTS).map(|_| connect(&path)).collect();
        let begin = Instant::now();
        // All have asked before the first reads; then the other way round, after a pause.
        for (n, client) in clients.iter_mut().enumerate() {
            send(client, &names[n % names.len()]);
        }
        for (n, client) in clients.iter_mut().enumerate() {
            receive(client, &secure(&names[n % names.len()]));
        }
        assert!(begin.elapsed() < PATIENCE, "{:?}", begin.elapsed());
        std::thread::sleep(Duration::from_secs(2));
        for (n, client) in clients.iter_mut().enumerate().rev() {
            send(client, &names[n % names.len()]);
            receive(client, &secure(&names[n % names.len()]));
        }
        // So are those who were slow, from where they are.
        for (n, client) in slow.iter_mut().enumerate() {
            if n % 2 == 0 {
                client.write_all(b"4:policy d1.test,").unwrap();
                receive(client, &secure("d1.test"));
            } else {
                (0..50).for_each(|_| receive(client, &secure("d0.test")));
            }
        }
        drop(slow);
        clients
    });
    let clients = asking.await.unwrap();
    // One more, who asks what is not known yet, is answered beside them.
    let begin = Instant::now();
    world.dns.change().cut("nothing.test", false);
    assert_eq!(socketmap::ask(&world.socketmap(), "policy", "nothing.test").await.unwrap(), "NOTFOUND ");
    assert!(begin.elapsed() < PATIENCE);
    drop(clients);
    daemon.stop().await.unwrap();
}
