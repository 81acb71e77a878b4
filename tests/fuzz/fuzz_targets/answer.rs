//! Any document, worded and read back as Postfix reads it.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tlswarden_fuzz::answer(data));
