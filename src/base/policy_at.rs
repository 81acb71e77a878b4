//! The policy in force at a time: how counting learns what answering answered.

use crate::base::tlsrpt::PolicyInForce;

/// The policy that was in force, by recipient domain and time.
pub trait PolicyAt {
    /// The decision that our responder had given at `seconds`; `None` where it was not asked.
    fn at(&self, domain: &str, seconds: i64) -> Option<PolicyInForce>;
}
