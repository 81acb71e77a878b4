//! Any text as the `_mta-sts` TXT records of a domain.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tlswarden_fuzz::sts_record(data));
