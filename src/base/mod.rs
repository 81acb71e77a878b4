//! What every pipeline needs and none owns: names, time, shutdown, the words of RFC 8460. No I/O of its own.

pub mod allocator;
pub mod clock;
pub mod domain_name;
pub mod exim_event;
pub mod network;
pub mod next_hop;
pub mod own_reports;
pub mod parts;
pub mod policy_at;
pub mod printable;
pub mod requester;
pub mod rua_record;
pub mod shutdown;
pub mod tlsrpt;
