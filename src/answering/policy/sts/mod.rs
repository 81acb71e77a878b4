//! MTA-STS (RFC 8461): record, document, fetch and cache, in the order in which a sender meets them.

pub mod cache;
pub mod document;
pub mod document_fault;
pub mod domain_state;
pub mod fetch;
pub mod policy;
pub mod record;
pub mod text;
