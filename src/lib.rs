//! tlswarden runs beside Postfix or Exim. It answers which TLS policy a destination published, counts how every outbound
//! TLS session ended, and reports the counts to the domains that ask for them.
//!
//! The code is three pipelines that never import each other, and the parts that they share.
//!
//! **Answering** ([`answering`]) is request and reply. Postfix asks over [`answering::socketmap`], Exim over
//! [`answering::readsocket`]; both ask [`answering::policy`], which answers from memory where it can. Otherwise it looks
//! up MTA-STS (RFC 8461) and DANE (RFC 7672) through [`net`], within the answer budget. Which policy was in force when is
//! kept in [`answering::policy::history`].
//!
//! **Counting** ([`counting`]) is one thread. [`counting::input`] follows log files, the journal, standard input and
//! Postfix's TLSRPT datagrams. The `tlswarden_parsers` crate turns each line into an event, [`counting::session`] puts
//! the events of one session together, [`counting::rules`] and [`counting::tally`] decide what it counts as, and
//! [`counting::pipeline`] commits the tallies together with the position of the input.
//!
//! **Reporting** ([`reporting`]) begins when a day is over. [`reporting::schedule`] plans each report and remembers its
//! state, [`reporting::report`] finds the recipients and builds the message, [`reporting::dkim`] has the keys that sign
//! it, and [`reporting::transport`] delivers it, at most once per destination.
//!
//! **Checking** ([`checking`]) is for administrators: `doctor` examines this host, `check-domain` examines a domain as
//! senders see it.
//!
//! The pipelines keep their state in [`store`], read [`config`], and count what they do in [`metrics`]. [`base`] has the
//! types that they share. [`daemon`] opens all of it, connects the pipelines, and runs them; [`cli`] turns the command
//! line into calls. `tests/architecture.rs` holds the rules of who may import whom.

pub mod answering;
pub mod base;
pub mod checking;
pub mod cli;
pub mod config;
pub mod counting;
pub mod daemon;
pub mod metrics;
pub mod net;
pub mod reporting;
pub mod store;
