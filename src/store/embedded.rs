//! The embedded store, in sled.
