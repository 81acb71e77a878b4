//! The network clients: DNS queries to the host's resolver, and HTTPS requests.

pub mod dns;
pub(crate) mod host_name;
pub mod https;
pub mod tlsrpt_record;
