//! DANE (RFC 7672): the look-up of a next hop's TLSA records, the cached verdict, and its storage.

pub mod cached_verdict;
pub mod coverage;
mod der;
pub mod lookup;
pub(crate) mod service_port;
pub mod store;
