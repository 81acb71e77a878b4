//! The same play with this host's Postfix and with a newer one, side by side: each has a host of its own.
//!
//! Takes: the name of a test, and what it plays with an installation. Gives: what each play came to, as JSON.
//! Limits: those of `host` and `postfix`.
//! When it fails: the test panics, and says what is missing.
//! Not here: what is played.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::host;
use crate::postfix::Installation;

/// Plays with both, the newer one second; nothing inside the host, where the caller has no more to do.
pub fn play<P: Future<Output = Value>>(
    test: &str,
    play: impl FnOnce(Installation) -> P,
) -> Option<[(Installation, Value); 2]> {
    if let Some(argument) = host::inside() {
        let (root, out) = argument.split_once('\n').expect("the argument is a root and a file");
        let installation = Installation::at(Path::new(root)).unwrap_or_else(|e| panic!("{e}"));
        let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
        let played = runtime.block_on(play(installation));
        fs::write(out, played.to_string()).unwrap_or_else(|e| panic!("{out}: {e}"));
        return None;
    }
    let postfixes = [Installation::of_this_host(), Installation::of_release("trixie")]
        .map(|found| found.unwrap_or_else(|e| panic!("{e}")));
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let played: Vec<Result<Value, String>> = std::thread::scope(|scope| {
        let threads = postfixes.each_ref().map(|postfix| {
            let out = folder.path().join(postfix.version());
            scope.spawn(move || {
                host::run_inside(test, &format!("{}\n{}", postfix.root().display(), out.display()))?;
                let text = fs::read(&out).map_err(|e| e.to_string())?;
                serde_json::from_slice(&text).map_err(|e| e.to_string())
            })
        });
        threads.into_iter().map(|thread| thread.join().expect("the play reports its faults")).collect()
    });
    let mut played = played.into_iter().map(|played| played.unwrap_or_else(|e| panic!("{e}")));
    Some(postfixes.map(|postfix| (postfix, played.next().expect("one for each"))))
}
