//! Any bytes as what Exim tells of a failed session.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tlswarden_fuzz::exim_event_action(data));
