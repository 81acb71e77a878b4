//! Any bytes from a socketmap client.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tlswarden_fuzz::netstring(data));
