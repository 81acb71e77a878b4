//! The store as others use it; crashes and damage are in `tests/store.rs`.

use std::sync::Arc;

use super::*;
use crate::base::tlsrpt::{Failure, PolicyType, ResultType, TallyKey, TallyResult};

const DAY: Day = Day(20_779);

fn opened() -> (tempfile::TempDir, EmbeddedStore) {
    let store_folder = tempfile::tempdir().unwrap();
    let opened = EmbeddedStore::open(store_folder.path(), Clock::default()).unwrap();
    assert_eq!((opened.notices, opened.moved_aside), (vec![], None));
    (store_folder, opened.store)
}

fn files(store: &EmbeddedStore) -> MappedRwLockReadGuard<'_, SledFiles> {
    store.lock_for_reading().unwrap()
}

fn sts(domain: &str, lines: usize) -> Arc<Policy> {
    let line = |n| format!("mx: mx{n}.{domain}");
    Arc::new(Policy {
        policy_type: PolicyType::Sts,
        policy_string: (0..lines).map(line).collect(),
        policy_domain: domain.into(),
        mx_host: vec![format!("*.{domain}")],
    })
}

fn tally(day: Day, domain: &str, policy: &Arc<Policy>, counted: TallyResult) -> TallyKey {
    TallyKey { day, domain: domain.into(), policy: Arc::clone(policy), result: counted }
}

fn expired(reason: &str) -> Failure {
    Failure::new(ResultType::CertificateExpired, Some(reason))
}

/// Whoever reads whole tables at start has what was read already; then sled's files are opened anew, and all is there.
#[test]
fn what_was_read_at_start_is_let_go_and_all_is_there() {
    let (store_folder, store) = opened();
    let tables = [Table::Decision, Table::Sts, Table::Dane, Table::Position];
    let mut batch = Batch::default();
    for table in tables {
        for n in 0..500 {
            batch.set.push((table, format!("{n:03}").into_bytes(), Some(vec![n as u8; n])));
        }
    }
    store.write(batch).unwrap();
    drop(store);
    let store = EmbeddedStore::open(store_folder.path(), Clock::default()).unwrap().store;
    let all = |store: &EmbeddedStore| tables.map(|table| store.scan(table, b"").unwrap());
    let first = all(&store);
    assert!(first.iter().all(|records| records.len() == 500));
    store.drop_preloaded();
    assert!(store.state.read().preloaded.lock().is_empty());
    assert_eq!(all(&store), first);
    let one =
        |value: &[u8]| Batch { set: vec![(Table::Sts, b"new".to_vec(), Some(value.to_vec()))], ..Batch::default() };
    store.write(one(b"1")).unwrap();
    store.drop_preloaded();
    store.write(one(b"2")).unwrap();
    drop(store);
    let opened = EmbeddedStore::open(store_folder.path(), Clock::default()).unwrap();
    assert_eq!((opened.notices, opened.missing_commits), (vec![], 0));
    assert_eq!(opened.store.read(Table::Sts, b"new").unwrap().as_deref(), Some(&b"2"[..]));
}

#[test]
fn counts_add_up_under_their_policies() {
    let (store_folder, store) = opened();
    let policy = sts("b.example", 3);
    let none = Arc::new(Policy::none("b.example"));
    let add = vec![
        (tally(DAY, "b.example", &policy, TallyResult::Success), 2),
        (tally(DAY, "b.example", &policy, TallyResult::Failure), 1),
        (tally(DAY, "b.example", &policy, TallyResult::Detail(expired("x"))), 1),
        (tally(DAY, "b.example", &policy, TallyResult::Success), 5),
        (tally(DAY, "b.example", &policy, TallyResult::NullSender), 3),
        (tally(DAY, "b.example", &none, TallyResult::Success), 1),
        (tally(DAY, "a.example", &Arc::new(Policy::none("a.example")), TallyResult::Failure), 4),
        (tally(Day(DAY.0 - 1), "c.example", &policy, TallyResult::Success), 9),
    ];
    let batch = Batch { add, set: vec![] };
    store.write(batch.clone()).unwrap();
    store.write(batch).unwrap();
    drop(store);
    let store = EmbeddedStore::open(store_folder.path(), Clock::default()).unwrap().store;
    assert_eq!(store.days().unwrap(), [Day(DAY.0 - 1), DAY]);
    assert_eq!(store.domains(DAY).unwrap(), ["a.example", "b.example"]);
    let rows = store.rows(DAY, "b.example").unwrap();
    let want = |policy: &Policy, successful, failed, null_sender, details| TallyRow {
        day: DAY,
        domain: "b.example".into(),
        policy: policy.clone(),
        successful,
        failed,
        null_sender,
        details,
    };
    assert_eq!(rows, [want(&policy, 14, 2, 6, vec![(expired("x"), 2)]), want(&none, 2, 0, 0, vec![])]);
    // A neighbour in the order of keys is not the domain itself.
    assert_eq!(store.rows(DAY, "b.exampl").unwrap(), []);
    assert_eq!(store.domains(Day(DAY.0 - 2)).unwrap(), [""; 0]);
}

#[test]
fn a_domain_of_one_policy_counts_apart_from_the_policy_domain() {
    let (_home, store) = opened();
    // The same policy under two recipient domains (a smarthost), and one that is not the recipient's own.
    let relay = Arc::new(Policy::none("relay.example"));
    let add = ["x.example", "relay.example"].map(|d| (tally(DAY, d, &relay, TallyResult::Success), 1));
    store.write(Batch { add: add.into(), set: vec![] }).unwrap();
    for domain in ["x.example", "relay.example"] {
        assert_eq!(store.rows(DAY, domain).unwrap()[0].policy, *relay, "{domain}");
    }
}

#[test]
fn records_are_set_removed_and_scanned() {
    let (store_folder, store) = opened();
    let long = vec![7; 5 * format::MAX_PART + 1];
    let set = vec![
        (Table::Sts, b"a".to_vec(), Some(b"1".to_vec())),
        (Table::Sts, b"ab".to_vec(), Some(long.clone())),
        (Table::Sts, b"b".to_vec(), Some(vec![])),
        (Table::Sts, b"c".to_vec(), Some(b"first".to_vec())),
        (Table::Sts, b"c".to_vec(), Some(b"last".to_vec())),
        (Table::Position, b"a".to_vec(), Some(b"mark".to_vec())),
    ];
    store.write(Batch { add: vec![], set }).unwrap();
    let scanned = store.scan(Table::Sts, b"a").unwrap();
    assert_eq!(scanned, [(b"a".to_vec(), b"1".to_vec()), (b"ab".to_vec(), long)]);
    assert_eq!(store.read(Table::Sts, b"b").unwrap(), Some(vec![]));
    assert_eq!(store.read(Table::Sts, b"c").unwrap(), Some(b"last".to_vec()));
    assert_eq!(store.read(Table::Position, b"b").unwrap(), None);
    // Shorter over longer, then gone: no part stays behind.
    let two = vec![8; format::MAX_PART + 1];
    store.write(Batch { add: vec![], set: vec![(Table::Sts, b"ab".to_vec(), Some(two.clone()))] }).unwrap();
    assert_eq!(store.read(Table::Sts, b"ab").unwrap(), Some(two));
    store.write(Batch { add: vec![], set: vec![(Table::Sts, b"ab".to_vec(), None)] }).unwrap();
    drop(store);
    let store = EmbeddedStore::open(store_folder.path(), Clock::default()).unwrap().store;
    assert_eq!(store.scan(Table::Sts, b"").unwrap().len(), 3);
    assert_eq!(files(&store).db.scan_prefix(b"~").count(), 0);
}

#[test]
fn days_are_dropped_with_their_policies() {
    let (_home, store) = opened();
    let policy = sts("a.example", 5_000);
    for n in 0..4 {
        let day = Day(DAY.0 + n);
        let add = vec![
            (tally(day, "a.example", &policy, TallyResult::Success), 1),
            (tally(day, "b.example", &Arc::new(Policy::none("b.example")), TallyResult::Success), 1),
        ];
        store.write(Batch { add, set: vec![] }).unwrap();
    }
    assert!(store.drop_days_before(Day(DAY.0 + 2)).unwrap() >= 6);
    assert_eq!(store.days().unwrap(), [Day(DAY.0 + 2), Day(DAY.0 + 3)]);
    assert_eq!(store.rows(Day(DAY.0 + 2), "a.example").unwrap()[0].policy, *policy);
    assert_eq!(files(&store).db.scan_prefix(b"p").count(), 2);
    // The parts of a long policy go with it; a count of a dropped day brings its policy again.
    store.drop_days_before(Day(DAY.0 + 4)).unwrap();
    assert_eq!(files(&store).db.scan_prefix(b"~").count(), 0);
    store.write(Batch { add: vec![(tally(DAY, "a.example", &policy, TallyResult::Failure), 1)], set: vec![] }).unwrap();
    assert_eq!(store.rows(DAY, "a.example").unwrap()[0].policy, *policy);
    assert!(store.size().unwrap() > 0);
}

#[test]
fn values_that_nobody_wrote_are_errors() {
    let (_home, store) = opened();
    let key = CountKey { day: DAY, domain: "a.example".into(), policy: PolicyRef::None, failure: None };
    files(&store).db.insert(key.encode(), b"\x01short").unwrap();
    assert!(matches!(store.rows(DAY, "a.example"), Err(StoreError::Corrupt(_))));
    let none = Arc::new(Policy::none("a.example"));
    let add = vec![(tally(DAY, "a.example", &none, TallyResult::Success), 1)];
    let set = vec![(Table::Position, b"m".to_vec(), Some(b"later".to_vec()))];
    assert!(matches!(store.write(Batch { add, set }), Err(StoreError::Corrupt(_))));
    // Nothing of the refused batch was kept, and the store goes on.
    assert_eq!(store.read(Table::Position, b"m").unwrap(), None);
    files(&store).db.insert(b"c\x01", b"").unwrap();
    assert!(matches!(store.days(), Err(StoreError::Corrupt(_))));
    files(&store).db.insert(b"mm", b"\x02\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff").unwrap();
    assert!(matches!(store.read(Table::Position, b"m"), Err(StoreError::Corrupt(_))));
    let long = vec![(Table::Position, vec![b'k'; format::MAX_KEY], Some(vec![]))];
    assert!(matches!(store.write(Batch { add: vec![], set: long }), Err(StoreError::Refused { .. })));
}

/// A store whose next commit gets onto the disk, but cannot be acknowledged, nor can it be opened again.
fn in_doubt(store_folder: &std::path::Path, store: &mut EmbeddedStore, batch: &Batch) {
    store.acknowledged = File::options().write(true).open("/dev/full").unwrap();
    store.state.write().last_reopen = None;
    assert!(matches!(store.write(batch.clone()), Err(StoreError::Io(_))));
    store.acknowledged = File::options().write(true).open(store_folder.join("acknowledged")).unwrap();
    assert!(store.days().is_err() && store.write(batch.clone()).is_err(), "tried again at once");
    store.state.write().last_reopen = None;
}

#[test]
fn a_batch_that_was_on_disk_all_the_same_counts_once() {
    let (store_folder, mut store) = opened();
    let policy = sts("a.example", 1);
    let batch = |n: u64| Batch {
        add: vec![(tally(DAY, "a.example", &policy, TallyResult::Success), n)],
        set: vec![(Table::Position, b"log".to_vec(), Some(vec![1]))],
    };
    let other = Batch { add: vec![], set: vec![(Table::Sts, b"a".to_vec(), Some(vec![2]))] };
    let counted = |store: &EmbeddedStore| store.rows(DAY, "a.example").unwrap()[0].successful;
    store.write(batch(1)).unwrap();
    in_doubt(store_folder.path(), &mut store, &batch(10));
    // Others come in between: readers, and a writer who had no part in it.
    assert_eq!(counted(&store), 11);
    store.write(other.clone()).unwrap();
    store.write(batch(10)).unwrap();
    assert_eq!(counted(&store), 11);
    // Only the repetition is left out, not what comes to the same later.
    store.write(batch(10)).unwrap();
    assert_eq!(counted(&store), 21);
    // Its writer may have given up: the next batch is another one.
    in_doubt(store_folder.path(), &mut store, &batch(100));
    store.write(batch(1000)).unwrap();
    assert_eq!(counted(&store), 1121);
    // Records that are set are set again.
    in_doubt(store_folder.path(), &mut store, &other);
    store.write(other).unwrap();
    drop(store);
    let opened = EmbeddedStore::open(store_folder.path(), Clock::default()).unwrap();
    assert_eq!((opened.notices, opened.missing_commits), (vec![], 0));
    assert_eq!(counted(&opened.store), 1121);
}

#[test]
fn a_failed_commit_is_settled_before_its_writer_is_told() {
    let (_home, store) = opened();
    let failed = |checksum| FailedCommit {
        error: StoreError::Io(std::io::ErrorKind::Other.into()),
        checksum,
        handed_over: true,
    };
    let mut state = store.lock_for_writing().unwrap();
    let last = state.checksum;
    let set = [(
        format::record_key(Table::Position, b"log"),
        KeyChange { old: None, new: Some(StoredValue::Whole(b"1").encode()) },
    )];
    let Ok(Ok(checksum)) = state.files.as_ref().map(|files| files.commit(&store.acknowledged, last, set.into())) else {
        panic!("not committed")
    };
    store.resolve_failed_commit(&mut state, failed(checksum)).unwrap();
    assert_eq!(state.checksum, checksum);
    state.last_reopen = None;
    // One that did not get there.
    let next = StoreChecksum { commits: checksum.commits + 1, sum: 7 };
    assert!(store.resolve_failed_commit(&mut state, failed(next)).is_err());
    assert!(state.files.is_ok() && state.checksum == checksum);
    drop(state);
    assert_eq!(store.read(Table::Position, b"log").unwrap(), Some(b"1".to_vec()));
}

#[test]
fn damage_found_when_opening_again_waits_until_nobody_is_at_work() {
    for cut in [true, false] {
        let (store_folder, mut store) = opened();
        let policy = sts("a.example", 1);
        let batch = Batch { add: vec![(tally(DAY, "a.example", &policy, TallyResult::Success), 1)], set: vec![] };
        (0..200).for_each(|_| store.write(batch.clone()).unwrap());
        in_doubt(store_folder.path(), &mut store, &batch);
        let log = File::options().write(true).open(store_folder.path().join("embedded/db")).unwrap();
        match cut {
            true => log.set_len(0).unwrap(),
            false => log.write_all_at(&[0x55; 4096], 20_000).unwrap(),
        }
        for _ in 0..2 {
            store.state.write().last_reopen = None;
            assert!(store.write(batch.clone()).is_err());
        }
        store.state.write().last_reopen = None;
        assert!(matches!(store.days(), Err(StoreError::Corrupt(_))));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(store.wait_for_damage());
        assert!(store.recover().unwrap());
        let mut names =
            std::fs::read_dir(store_folder.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        assert!(names.any(|name| name.starts_with("aside-")));
        let before: u64 = store.rows(DAY, "a.example").unwrap().iter().map(|row| row.successful).sum();
        store.write(batch.clone()).unwrap();
        assert_eq!(store.rows(DAY, "a.example").unwrap()[0].successful, before + 1);
        drop(store);
        assert_eq!(EmbeddedStore::open(store_folder.path(), Clock::default()).unwrap().notices, [""; 0]);
    }
}

/// Sixty days of counts, positions and open state, of which three stay: the room is bounded by that of a fresh copy.
#[test]
fn the_room_of_sixty_days_is_bounded_by_that_of_a_copy() {
    const DAYS: i32 = 60;
    const COMMITS: u32 = 6;
    const DOMAINS: u32 = 600;
    let (store_folder, mut store) = opened();
    let mut largest = 0;
    for day in 0..DAYS {
        let today = Day(DAY.0 + day);
        for commit in 0..COMMITS {
            let mut batch = Batch::default();
            for domain in (commit % 3..DOMAINS).step_by(3) {
                let name = format!("domain-{domain}.example");
                let policy = sts(&name, 2);
                batch.add.push((tally(today, &name, &policy, TallyResult::Success), 3));
                if domain % 10 == 0 {
                    batch.add.push((tally(today, &name, &policy, TallyResult::Failure), 1));
                }
            }
            batch.set.push((Table::Position, b"log".to_vec(), Some(vec![commit as u8; 5_000])));
            for session in 0..200_u32 {
                let key = format!("log\0d{}", (session + commit * 50) % 1_000).into_bytes();
                batch.set.push((Table::OpenState, key, (session % 4 > 0).then(|| vec![day as u8; 300])));
            }
            store.write(batch).unwrap();
        }
        store.drop_days_before(Day(today.0 - 2)).unwrap();
        largest = largest.max(store.size().unwrap());
        if day % 10 == 9 {
            let copy = store_folder.path().join("copy");
            store.copy(&copy).unwrap();
            let (size, fresh) = (store.size().unwrap(), file_sizes(&copy).unwrap());
            std::fs::remove_dir_all(&copy).unwrap();
            println!("day {}: {size} bytes, at most {largest}; a fresh backup has {fresh}", day + 1);
            assert!(largest <= 3 * fresh + 8_000_000);
            // A restart in between.
            let sums = store.domain_sums(today, None, 10_000).unwrap();
            assert_eq!(sums.len(), DOMAINS as usize);
            drop(store);
            store = EmbeddedStore::open(store_folder.path(), Clock::default()).unwrap().store;
            assert_eq!(store.domain_sums(today, None, 10_000).unwrap(), sums);
            assert_eq!(store.days().unwrap().len(), 3);
        }
    }
}

/// Files that cannot be opened do not take the place of those that can.
#[test]
fn a_store_whose_new_files_cannot_be_opened_keeps_the_old_ones() {
    let (store_folder, store) = opened();
    let set = |n: u8| Batch { add: Vec::new(), set: vec![(Table::OpenState, vec![n], Some(vec![n]))] };
    store.write(set(1)).unwrap();
    let rewritten = store_folder.path().join("rewritten");
    std::fs::create_dir(&rewritten).unwrap();
    std::fs::write(rewritten.join("embedded"), "not a folder").unwrap();
    store.put_in_place(&mut store.state.write(), &rewritten).unwrap_err();
    store.write(set(2)).unwrap();
    assert_eq!(store.scan(Table::OpenState, b"").unwrap().len(), 2);
    assert!(rewritten.join("embedded").is_file());
    drop(store);
    let opened = EmbeddedStore::open(store_folder.path(), Clock::default()).unwrap();
    assert_eq!((opened.notices, opened.missing_commits), (vec![], 0));
    assert_eq!(opened.store.scan(Table::OpenState, b"").unwrap().len(), 2);
}

/// What is rewritten is the same store, and is written on.
#[test]
fn a_store_that_is_rewritten_holds_what_it_held() {
    let (store_folder, store) = opened();
    let policy = sts("a.test", 3);
    let mut rewritten = false;
    for round in 0..40_u8 {
        let mut batch = Batch { add: vec![(tally(DAY, "a.test", &policy, TallyResult::Success), 1)], set: Vec::new() };
        for n in 0..100_u8 {
            batch.set.push((Table::OpenState, vec![n, round], Some(vec![n; 8_000])));
            batch.set.push((Table::OpenState, vec![n, round.wrapping_sub(1)], None));
        }
        let before = std::fs::metadata(store_folder.path().join("embedded/db")).unwrap();
        store.write(batch).unwrap();
        let after = std::fs::metadata(store_folder.path().join("embedded/db")).unwrap();
        rewritten |= std::os::unix::fs::MetadataExt::ino(&before) != std::os::unix::fs::MetadataExt::ino(&after);
        assert_eq!(store.scan(Table::OpenState, b"").unwrap().len(), 100);
        assert_eq!(store.rows(DAY, "a.test").unwrap()[0].successful, u64::from(round) + 1);
    }
    assert!(rewritten);
    assert_eq!(std::fs::read_dir(store_folder.path()).unwrap().count(), 4, "what was replaced is gone");
    drop(store);
    let opened = EmbeddedStore::open(store_folder.path(), Clock::default()).unwrap();
    assert_eq!((opened.notices, opened.missing_commits), (vec![], 0));
    assert_eq!(opened.store.rows(DAY, "a.test").unwrap()[0].successful, 40);
}
