//! Any bytes as a Postfix log.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tlswarden_fuzz::parse_postfix(data));
