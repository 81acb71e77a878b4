//! DKIM keys (RFC 6376, RFC 8463): made, read, and compared with the records in DNS.

pub(crate) mod key;
pub mod signer;
