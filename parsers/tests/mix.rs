//! The generator of the benchmarks' log: it must be what it says, or its figures are about something else.

use tlswarden_parsers::{Dialect, event::EventKind, parse};

#[path = "../benches/mix.rs"]
mod mix;

use mix::{MixedLog, TimestampForm};

#[test]
fn tells_as_many_sessions_as_it_says() {
    for form in [TimestampForm::Traditional, TimestampForm::Rfc3339] {
        let mut log = Vec::new();
        let mut mix = MixedLog::new(7, form);
        mix.write(&mut log, 4 << 20);
        mix.finish(&mut log);
        let (mut lines, mut sessions, mut smtp) = (0, 0, 0);
        for line in log.split_inclusive(|&b| b == b'\n') {
            let line = line.strip_suffix(b"\n").expect("whole lines");
            lines += 1;
            let event =
                parse(Dialect::Postfix, line).unwrap_or_else(|error| panic!("{error}: {}", line.escape_ascii()));
            let Some(event) = event else { continue };
            smtp += u64::from(event.process.name == b"smtp");
            sessions += u64::from(matches!(
                event.kind,
                EventKind::Established { reused: false, .. } | EventKind::HandshakeFailed { .. }
            ));
        }
        assert_eq!((lines, sessions), (mix.lines(), mix.sessions()));
        assert!((29..=31).contains(&(mix.outbound_lines() * 100 / lines)));
        // All of them are understood but `connect to …`.
        assert!(smtp * 100 / mix.outbound_lines() >= 97);
    }
}

#[test]
fn is_the_same_for_the_same_seed() {
    let log = |seed| {
        let mut log = Vec::new();
        MixedLog::new(seed, TimestampForm::Traditional).write(&mut log, 1 << 16);
        log
    };
    assert_eq!(log(3), log(3));
    assert_ne!(log(3), log(4));
}
