//! The policy domain of relayed mail: no domain is told of sessions that were not with its hosts.
//!
//! Takes: lines as Postfix writes them, the next hops that it asked about, and their MX hosts. Gives: what counts, and where.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use jiff::tz::TimeZone;
use tlswarden::answering::policy::history::PolicyHistory;
use tlswarden::answering::policy::history::compact::StoredPolicy;
use tlswarden::base::clock::Clock;
use tlswarden::base::next_hop::NextHop;
use tlswarden::base::tlsrpt::sum_tallies;
use tlswarden::config::{self, Config};
use tlswarden::counting::pipeline::Counter;
use tlswarden::counting::rules::CountingRules;
use tlswarden::metrics::Metrics;
use tlswarden_parsers::Dialect;

/// 2026-11-22T01:41:05Z, the time of all lines.
const NOW: i64 = 1_795_311_665;

/// What a host was asked about, and what it counts.
struct Host {
    history: Arc<PolicyHistory>,
    rules: &'static str,
}

impl Host {
    fn new() -> Host {
        Host { history: Arc::new(PolicyHistory::new(Clock::starting_at(NOW), Metrics::default())), rules: "" }
    }

    /// The MTA asks about these next hops, just before the sessions.
    fn asked(self, keys: &[&str]) -> Host {
        for key in keys {
            let hop = NextHop::parse(key.as_bytes()).unwrap();
            let domain: Arc<str> = hop.domain.as_str().into();
            self.history.record_answer(&hop, &domain, NOW - 1, StoredPolicy::None);
        }
        self
    }

    /// A look-up finds a domain's MX hosts.
    fn mx(self, domain: &str, hosts: &[&str]) -> Host {
        self.history.note_mx_hosts(&domain.into(), hosts.iter().copied(), NOW - 2);
        self
    }

    /// Sessions by domain, (successful, failed), and how many were left out as relayed.
    fn counts(&self, sessions: &[String]) -> (BTreeMap<String, (u64, u64)>, u64) {
        let text = format!("{}\n[[input]]\nfile = \"/m\"\n", self.rules);
        let config: Config = config::parse_toml(&text, Path::new("test")).unwrap();
        let mut counter = Counter::new(Dialect::Postfix, TimeZone::UTC, Arc::new(|_| false))
            .with_rules(Arc::new(CountingRules::from_config(&config)));
        counter.count_lines(sessions.concat().as_bytes(), NOW, &self.history);
        let rows = sum_tallies(counter.take_counts());
        let found = rows.into_iter().map(|row| (row.domain, (row.successful, row.failed))).collect();
        (found, counter.take_stats().0.relayed)
    }
}

fn wanted(domains: &[(&str, (u64, u64))]) -> BTreeMap<String, (u64, u64)> {
    domains.iter().map(|(domain, counts)| ((*domain).to_owned(), *counts)).collect()
}

/// A session that succeeded, for mail to a domain.
fn sent(process: u32, domain: &str, relay: &str) -> String {
    format!(
        "2026-11-22T01:41:05Z mta postfix/smtp[{process}]: Trusted TLS connection established to {relay}: TLSv1.3 with \
         cipher TLS_AES_256_GCM_SHA384 (256/256 bits)\n\
         2026-11-22T01:41:05Z mta postfix/smtp[{process}]: F35CEA2607{process}: to=<user@{domain}>, relay={relay}, \
         delay=0.1, delays=0/0/0/0.1, dsn=2.0.0, status=sent (250 2.0.0 Ok)\n"
    )
}

#[test]
fn a_smart_host_has_the_sessions_of_all_recipient_domains() {
    let sessions = ["a.test", "b.test"].map(|domain| sent(1, domain, "smart.relay.test[203.0.113.1]:587"));
    let bracketed = Host::new().asked(&["[smart.relay.test]:587"]);
    assert_eq!(bracketed.counts(&sessions), (wanted(&[("smart.relay.test", (2, 0))]), 0));
    // By its MX records.
    let sessions = ["a.test", "b.test"].map(|domain| sent(1, domain, "mx1.relay.test[203.0.113.1]:25"));
    let by_mx = Host::new().asked(&["relay.test"]).mx("relay.test", &["mx1.relay.test", "mx2.relay.test"]);
    assert_eq!(by_mx.counts(&sessions), (wanted(&[("relay.test", (2, 0))]), 0));
}

#[test]
fn a_transport_map_concerns_its_domain_alone() {
    let host = Host::new().asked(&["a.test", "[mail.inner.test]"]).mx("a.test", &["mx.a.test"]);
    let sessions =
        [sent(1, "a.test", "mx.a.test[203.0.113.1]:25"), sent(2, "b.test", "mail.inner.test[203.0.113.2]:25")];
    assert_eq!(host.counts(&sessions), (wanted(&[("a.test", (1, 0)), ("mail.inner.test", (1, 0))]), 0));
}

#[test]
fn a_fallback_relay_has_its_own_sessions() {
    let host = Host::new().asked(&["a.test", "[backup.test]"]).mx("a.test", &["mx.a.test"]);
    let failed = "2026-11-22T01:41:05Z mta postfix/smtp[1]: SSL_connect error to mx.a.test[203.0.113.1]:25: lost connection\n\
        2026-11-22T01:41:05Z mta postfix/smtp[1]: F35CEA26071: Cannot start TLS: handshake failure\n";
    let sessions = [failed.to_owned(), sent(1, "a.test", "backup.test[203.0.113.2]:25")];
    assert_eq!(host.counts(&sessions), (wanted(&[("a.test", (0, 1)), ("backup.test", (1, 0))]), 0));
}

#[test]
fn a_relay_host_that_depends_on_the_sender_leaves_direct_mail_where_it_is() {
    let sessions = [sent(1, "a.test", "mx.a.test[203.0.113.1]:25"), sent(2, "a.test", "out.esp.test[203.0.113.2]:587")];
    let asked = ["a.test", "[out.esp.test]:587"];
    let both = wanted(&[("a.test", (1, 0)), ("out.esp.test", (1, 0))]);
    assert_eq!(Host::new().asked(&asked).mx("a.test", &["mx.a.test"]).counts(&sessions), (both.clone(), 0));
    // The domain's MX hosts are not known yet, as after a restart.
    assert_eq!(Host::new().asked(&asked).counts(&sessions), (both.clone(), 0));
    // A rule by the relay host, without a look-up.
    let rules = "[[nexthop]]\nrelay = \"out.esp.test\"\nnexthop = \"[out.esp.test]:587\"\n";
    assert_eq!(Host { rules, ..Host::new() }.counts(&sessions), (both, 0));
    // A provider's host, of two next hops that were asked about: it cannot be told which.
    let host = Host::new()
        .asked(&["esp.test", "esp2.test"])
        .mx("esp.test", &["mx.esp.test"])
        .mx("esp2.test", &["mx.esp.test"]);
    assert_eq!(host.counts(&[sent(1, "a.test", "mx.esp.test[203.0.113.2]:25")]), (wanted(&[]), 1));
}

#[test]
fn a_domain_has_the_sessions_with_its_own_hosts() {
    let direct = |relay: &str| [sent(1, "a.test", relay)];
    let a = (wanted(&[("a.test", (1, 0))]), 0);
    let (own, mx, other) = ("a.test[203.0.113.1]:25", "MX.a.test[203.0.113.1]:25", "mx.b.test[203.0.113.1]:25");
    let known = || Host::new().asked(&["a.test"]).mx("a.test", &["mx.a.test"]);
    assert_eq!(known().counts(&direct(mx)), a);
    assert_eq!(known().counts(&direct(other)), (wanted(&[]), 1));
    // No MX record: the domain's own address.
    assert_eq!(Host::new().asked(&["a.test"]).mx("a.test", &["a.test"]).counts(&direct(own)), a);
    assert_eq!(Host::new().counts(&direct(own)), a);
    // The MX records have changed since Postfix looked them up, or before it did.
    let changed = known().mx("a.test", &["new.a.test"]);
    assert_eq!(changed.counts(&direct(mx)), a);
    assert_eq!(changed.counts(&direct("new.a.test[203.0.113.1]:25")), a);
    // Two domains at one provider.
    let shared = known().mx("a.test", &["mx.shared.test"]).asked(&["b.test"]).mx("b.test", &["mx.shared.test"]);
    assert_eq!(shared.counts(&direct("mx.shared.test[203.0.113.1]:25")), a);
}

#[test]
fn without_a_look_up_the_log_alone_tells() {
    let nothing = Host::new();
    let to = |relay: &str| nothing.counts(&[sent(1, "a.test", relay)]);
    assert_eq!(to("mx.a.test[203.0.113.1]:25"), (wanted(&[("a.test", (1, 0))]), 0));
    // Another port than that of MX hosts; a next hop that is an address.
    assert_eq!(to("smtp.relay.test[203.0.113.1]:587"), (wanted(&[]), 1));
    assert_eq!(to("203.0.113.1[203.0.113.1]:25"), (wanted(&[]), 1));
    // What postconf tells: a relayhost, and the other next hops.
    let rules = "[postfix]\nrelayhost = \"[smart.test]\"\nrelays = [\"backup.test\"]\n";
    let configured = Host { rules, ..Host::new() };
    for (relay, want) in [
        ("smart.test[203.0.113.1]:25", (wanted(&[("smart.test", (1, 0))]), 0)),
        ("mx.backup.test[203.0.113.1]:25", (wanted(&[("backup.test", (1, 0))]), 0)),
        ("mx.a.test[203.0.113.1]:25", (wanted(&[]), 1)),
        ("a.test[203.0.113.1]:25", (wanted(&[("a.test", (1, 0))]), 0)),
    ] {
        assert_eq!(configured.counts(&[sent(1, "a.test", relay)]), want, "{relay}");
    }
    let rules = "[postfix]\nrelays = [\"[backup.test]\"]\n";
    let fallback = Host { rules, ..Host::new() };
    let both = [sent(1, "a.test", "mx.a.test[203.0.113.1]:25"), sent(2, "a.test", "backup.test[203.0.113.2]:25")];
    assert_eq!(fallback.counts(&both), (wanted(&[("a.test", (1, 0)), ("backup.test", (1, 0))]), 0));
    // A transport map for one domain only: the others are asked about.
    let rules = "[postfix]\nrelayhost = \"[smart.test]\"\nrelays = []\n";
    let direct = Host { rules, ..Host::new() }.asked(&["a.test"]);
    assert_eq!(direct.counts(&both[..1]), (wanted(&[("a.test", (1, 0))]), 0));
    // The domain's transport has that port.
    let own = Host::new().asked(&["a.test:2525"]);
    assert_eq!(own.counts(&[sent(1, "a.test", "mx.a.test[203.0.113.1]:2525")]), (wanted(&[("a.test", (1, 0))]), 0));
    // A log that is replayed, of another host: nothing is reported.
    let mut counter = Counter::new(Dialect::Postfix, TimeZone::UTC, Arc::new(|_| false));
    counter.count_lines(sent(1, "a.test", "smtp.relay.test[203.0.113.1]:587").as_bytes(), NOW, &nothing.history);
    assert_eq!(sum_tallies(counter.take_counts())[0].domain, "a.test");
}
