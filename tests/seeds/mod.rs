//! Runs a test once for each seed of a range, in several threads.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// No further seed is begun after this many failures.
const MAX_FAILURES: usize = 3;

/// Runs `each` for the seeds `FROM..TO` in the environment variable `variable`, or for the first `default` ones without
/// it; gives what each returned. Panics with the failures, if there are any.
pub(crate) fn run_seeds<T: Send>(
    variable: &str,
    default: u64,
    threads: usize,
    each: impl Fn(u64) -> Result<T, String> + Sync,
) -> Vec<T> {
    let (from, to) = match std::env::var(variable) {
        Ok(range) => {
            let (from, to) = range.split_once("..").unwrap();
            (from.parse().unwrap(), to.parse().unwrap())
        }
        Err(_) => (0, default),
    };
    let next = AtomicU64::new(from);
    let (results, failures) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= to || failures.lock().unwrap().len() >= MAX_FAILURES {
                        break;
                    }
                    match catch_unwind(AssertUnwindSafe(|| each(seed))) {
                        Ok(Ok(result)) => results.lock().unwrap().push(result),
                        Ok(Err(failure)) => failures.lock().unwrap().push(failure),
                        Err(_) => failures.lock().unwrap().push(format!("seed {seed}: panicked")),
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    results.into_inner().unwrap()
}
