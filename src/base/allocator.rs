//! The allocator of the programs: jemalloc, which gives back to the system what is free, and wastes little between.
//!
//! A daemon that makes a TLS connection for each new domain allocates and frees fifty times what it keeps. glibc's
//! allocator keeps a third more than is needed after that; see `.cargo/config.toml` for how this one is set.
//! The binaries set it, not the library, so that tests under a sanitizer have their own.

pub use tikv_jemallocator::Jemalloc as Allocator;
