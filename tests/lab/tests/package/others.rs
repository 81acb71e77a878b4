//! Hosts that are not a plain Postfix beside rsyslog: the journal alone; no MTA yet, then Exim, then Postfix in its place.

use std::fs;
use std::time::Duration;

use lab::postfix::Installation;

use crate::site::{SOCKET, Site};

/// How long one of them may take.
const ROOM: Duration = Duration::from_secs(180);

/// Exim's configuration: what the package's example has, and what the world needs.
const EXIM: &str = "primary_hostname = mta.sender.test\ndomainlist local_domains =\ndisable_ipv6 = true\n\
    keep_environment =\ntimezone = UTC\n.include /usr/share/doc/tlswarden/examples/exim.example\n\
    begin retry\n* * F,1d,1s\n";

/// What is read beside each other, for `printf`: datagrams, and the journal for what those do not say.
const INPUTS: &str =
    "\\n[[input]]\\njournal = true\\n[[input]]\\ndatagrams = \"/var/spool/postfix/tlswarden/tlsrpt\"\\n";

/// No syslog daemon: the journal is counted from, and then Postfix's own datagrams.
pub(crate) async fn journal(installation: &Installation) {
    let site = Site::boot(installation, ROOM).await;
    site.run("dpkg --purge rsyslog && rm -f /var/log/mail.log");
    site.set_up_postfix();
    let printed = site.install();
    site.said("input: found: the journal (no syslog daemon is installed)").await;
    site.take_the_lines(&printed);
    site.close_network();
    site.policies_hold("one").await;
    site.await_counts().await;
    site.doctor_finds(&["warning no-identity"]);
    site.say("counted from the journal what the servers saw");

    // Postfix alone is told, and the daemon still goes by what it found.
    site.run("postconf -e smtp_tls_security_level=encrypt && postfix reload");
    site.doctor_finds(&["error host-changed", "warning no-identity"]);
    site.run("postconf -e smtp_tls_security_level=may && systemctl reload postfix");

    // Confined as it is, it takes Postfix's datagrams, and sees how many of them may wait.
    site.run("echo 10 >/proc/sys/net/unix/max_dgram_qlen");
    site.run(&format!("printf '{INPUTS}' >>/etc/tlswarden/tlswarden.toml"));
    site.configure(&[("postfix", "tlsrpt = \"datagrams\"\n")]);
    site.run("postconf -e smtp_tlsrpt_enable=yes smtp_tlsrpt_socket_name=tlswarden/tlsrpt && systemctl reload postfix");
    site.said("net.unix.max_dgram_qlen is 10").await;
    site.policies_hold("native").await;
    site.await_counts().await;
    site.doctor_finds(&["warning no-identity"]);
    site.say("counted from Postfix's datagrams what the servers saw");

    // From the first unit on, as after a boot; systemd 254 and later can.
    let process = "systemctl show --value --property MainPID tlswarden";
    let first = site.run(process);
    // What is run while systemd goes down is stopped by it, and must not stay so.
    assert_eq!(site.run("kill -STOP $$; echo woken"), "woken\n");
    site.run("systemctl soft-reboot");
    let up = "systemctl is-active postfix && systemctl is-active tlswarden && systemctl is-active tlswarden.socket";
    let is_new = || ![&first, "0\n"].contains(&&*site.machine.output(process).1) && site.machine.output(up).0;
    site.eventually("the machine is up again", is_new).await;
    site.policies_hold("booted").await;
    site.await_counts().await;
    site.say("booted anew: it started by itself, and policies held");
    site.run("dpkg --purge tlswarden");
    site.nothing_is_left();
}

/// The MTA comes after the package: Exim first, then Postfix, which takes its place.
pub(crate) async fn exim(installation: &Installation) {
    let site = Site::boot(installation, ROOM).await;
    site.run("dpkg --purge --force-depends postfix && rm -rf /var/spool/postfix");
    let printed = site.install();
    assert!(printed.contains("no Postfix or Exim is installed here"), "{printed}");
    site.run("systemctl is-active tlswarden");
    site.say("runs without an MTA");

    fs::create_dir_all(site.machine.path("/etc/exim4")).unwrap();
    site.run("apt-get install --yes --no-download --no-install-recommends exim4-daemon-light");
    fs::write(site.machine.path("/etc/exim4/exim4.conf"), EXIM).unwrap();
    site.said("readsocket: found: Exim is installed; it may ask at unix:/run/tlswarden/exim").await;
    site.said("input: found: /var/log/exim4/mainlog (Exim's log)").await;
    site.run("systemctl is-active tlswarden-exim.socket");
    site.close_network();
    for (domain, mark) in [("flow.test", "=>"), ("dane.example", "=>"), ("bad.test", "==")] {
        let to = format!("one@{domain}");
        site.run(&format!("printf 'Subject: hello\\n\\nhello\\n' | exim4 -odf -oi -f someone@sender.test {to}"));
        let log = site.run("cat /var/log/exim4/mainlog");
        assert!(log.contains(&format!(" {mark} {to} ")), "{log}");
    }
    site.await_counts().await;
    site.doctor_finds(&["warning no-identity"]);
    site.say("Exim, installed later, asked, and was counted");

    site.run("apt-get install --yes --no-download --no-install-recommends postfix");
    site.said("socketmap: listening on unix:/var/spool/postfix/tlswarden/socketmap").await;
    site.run(&format!("test -S {SOCKET} && systemctl is-active tlswarden.socket && systemctl is-active tlswarden"));
    site.say("Postfix in its place: it has its socket");
    site.run("dpkg --purge tlswarden");
    site.nothing_is_left();
}
