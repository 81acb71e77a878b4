//! Any text as the `_smtp._tls` TXT records of a domain.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tlswarden_fuzz::tlsrpt_record(data));
