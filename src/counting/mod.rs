//! The counting pipeline: lines and datagrams in, tallies of TLS sessions out.
//!
//! The inputs ([`input`]) feed one thread ([`pipeline`]), which parses each line, puts the lines of a session together
//! ([`session`]), applies the counting rules ([`rules`], [`tally`]) and commits the result with the position of the input.

mod attribution;
pub(crate) mod changed_inputs;
mod commit;
mod counted_before;
mod counter;
mod digest;
mod duplicate_inputs;
mod failure_notices;
pub mod input;
pub mod pipeline;
mod progress;
pub mod rules;
pub mod session;
pub(crate) mod tally;
pub(crate) mod timestamps;
mod unrecognized;
mod whole_lines;
