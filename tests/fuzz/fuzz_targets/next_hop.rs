//! Any bytes as the key of a look-up.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tlswarden_fuzz::next_hop(data));
