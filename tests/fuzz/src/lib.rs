//! What the fuzz targets hold true, one function each: any bytes in, a panic is the finding.
//!
//! Takes: the fuzzer's bytes. Gives: nothing.
//! Not here: the programs (`fuzz_targets/`, a line each), how they are run (`run`).

use tlswarden_parsers::{Dialect, parse};

#[path = "../../../parsers/tests/borrowed/mod.rs"]
mod borrowed;

/// A log of Postfix: no line panics, and whatever an event borrows lies in its line.
pub fn parse_postfix(data: &[u8]) {
    for line in data.split(|&b| b == b'\n') {
        if let Ok(Some(event)) = parse(Dialect::Postfix, line) {
            for text in borrowed::texts(&event) {
                assert!(borrowed::lies_in(text, line), "{event:?}");
            }
        }
    }
}
