//! A report's day is the UTC day, whatever the zone of the host and of its log: where summer time begins and ends, and over
//! a leap day. A log in local time is read, the daemon runs in that zone, and what was reported is held against UTC.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use lab::daemon::{Daemon, Program};
use lab::report;
use lab::world::{Options, World};

/// The log of a host: stamps in local time, each with the UTC day that it is in.
struct Case {
    zone: &'static str,
    /// When the daemon is started: the first two days are over.
    now: &'static str,
    log: &'static [(&'static str, &'static str)],
}

const CASES: [Case; 4] = [
    Case {
        zone: "America/New_York",
        now: "2026-11-02T01:00:00Z",
        log: &[
            ("Oct 31 19:30:00", "2026-10-31"),
            ("Oct 31 20:30:00", "2026-11-01"),
            ("Nov  1 01:30:00", "2026-11-01"),
            // An hour later: the clock was set back.
            ("Nov  1 01:30:00", "2026-11-01"),
            ("Nov  1 18:30:00", "2026-11-01"),
            ("Nov  1 19:30:00", "2026-11-02"),
        ],
    },
    Case {
        zone: "Europe/Berlin",
        now: "2027-03-29T01:00:00Z",
        log: &[
            ("Mar 28 00:59:00", "2027-03-27"),
            ("Mar 28 01:30:00", "2027-03-28"),
            ("Mar 28 03:30:00", "2027-03-28"),
            ("Mar 29 01:30:00", "2027-03-28"),
            ("Mar 29 02:30:00", "2027-03-29"),
        ],
    },
    Case {
        zone: "Europe/Berlin",
        now: "2028-03-01T01:00:00Z",
        log: &[
            ("Feb 29 00:30:00", "2028-02-28"),
            ("Feb 29 12:00:00", "2028-02-29"),
            ("Mar  1 00:30:00", "2028-02-29"),
            ("Mar  1 01:30:00", "2028-03-01"),
        ],
    },
    Case {
        zone: "Pacific/Kiritimati",
        now: "2026-12-31T01:00:00Z",
        log: &[
            ("Dec 30 13:59:59", "2026-12-29"),
            ("Dec 30 14:00:00", "2026-12-30"),
            ("Dec 31 13:59:59", "2026-12-30"),
            ("Dec 31 14:10:00", "2026-12-31"),
        ],
    },
];

#[tokio::test(flavor = "multi_thread")]
async fn days_are_utc_days_in_every_zone() {
    for case in CASES {
        let world = World::start(Options::default(), &[]).await.unwrap();
        world.dns.change().txt("_smtp._tls.a.test", "v=TLSRPTv1; rua=mailto:tlsrpt@a.test");
        let mut log = String::new();
        let mut wanted: BTreeMap<&str, u64> = BTreeMap::new();
        for (number, (stamp, day)) in case.log.iter().enumerate() {
            *wanted.entry(day).or_default() += 1;
            log += &format!(
                "{stamp} mta postfix/smtp[{number}]: Trusted TLS connection established to mx.a.test[192.0.2.1]:25: TLSv1.3 \
                 with cipher X (256/256 bits)\n{stamp} mta postfix/smtp[{number}]: 4AB0CDEF{number:02}: to=<u@a.test>, \
                 relay=mx.a.test[192.0.2.1]:25, delay=1, delays=0/0/0/1, dsn=2.0.0, status=sent (250 ok)\n"
            );
        }
        fs::write(world.log(), log).unwrap();
        world.configure(Some(case.now)).unwrap();
        let config = fs::read_to_string(world.config()).unwrap();
        fs::write(world.config(), config.replace("timezone = \"UTC\"\n", "")).unwrap();
        let program = Program::lab(env!("CARGO_BIN_EXE_lab")).in_zone(case.zone);
        let daemon = Daemon::start(&program, &world).await.unwrap();
        let begun = Instant::now();
        while world.submission().taken() < 2 {
            let log = lab::daemon::tail(&world.folder().join("daemon.log"));
            assert!(begun.elapsed() < Duration::from_secs(20), "{}: no report\n{log}", case.zone);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // The day that is not over would come now.
        tokio::time::sleep(Duration::from_secs(2)).await;
        daemon.stop().await.unwrap();
        let (today, _) = wanted.pop_last().unwrap();
        let mut told = BTreeMap::new();
        for mail in world.submission().record().mail {
            let report = report::read(&mail.data).unwrap_or_else(|faults| panic!("{}", faults.join("\n")));
            let range = &report.value["date-range"];
            let day = range["start-datetime"].as_str().unwrap()[..10].to_owned();
            assert_eq!(range["start-datetime"], format!("{day}T00:00:00Z"));
            assert_eq!(range["end-datetime"], format!("{day}T23:59:59Z"));
            println!("{:20} {} {} sessions; {}", case.zone, day, report.totals().successful, report.file_name);
            told.insert(day, report.totals().successful);
        }
        let wanted: BTreeMap<String, u64> = wanted.into_iter().map(|(day, n)| (day.to_owned(), n)).collect();
        assert_eq!(told, wanted, "{}, {today} is not over", case.zone);
    }
}
