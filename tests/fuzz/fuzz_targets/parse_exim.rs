//! Any bytes as an Exim log.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tlswarden_fuzz::parse_exim(data));
