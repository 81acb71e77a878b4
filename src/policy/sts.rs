//! MTA-STS (RFC 8461): record, document, fetch and cache, in the order in which a sender meets them.

pub mod cache;
pub mod cached;
pub mod document;
pub mod domain;
pub mod fetch;
pub mod record;
pub mod text;
