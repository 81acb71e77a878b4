//! The network clients: DNS queries to the host's resolver, and HTTPS requests.

pub mod dns;
pub(crate) mod host_name;
pub(crate) mod hosts_file;
pub mod https;
mod local_fault;
pub mod tlsrpt_record;
