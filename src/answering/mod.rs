//! The answering pipeline: which TLS policy a destination published, for the MTA that asks.
//!
//! Postfix asks over [`socketmap`], Exim over [`readsocket`]; both ask [`policy`], which answers from memory or looks up
//! DNS and HTTPS within its budget.

pub mod connections;
pub mod listener;
pub mod policy;
pub mod readsocket;
pub mod socketmap;
