//! Any bytes as an MTA-STS document.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tlswarden_fuzz::sts_document(data));
