//! Any octets as a datagram of libtlsrpt.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tlswarden_fuzz::datagram(data));
