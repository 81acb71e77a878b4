//! Policies as the administrator sees them: one explained, all listed.

pub mod explain;
pub mod list;
