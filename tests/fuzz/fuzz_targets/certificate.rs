//! Any octets as the certificate of an SMTP server.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tlswarden_fuzz::certificate(data));
