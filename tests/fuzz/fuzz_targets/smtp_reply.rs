//! Any octets as the replies of an SMTP server.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tlswarden_fuzz::smtp_reply(data));
