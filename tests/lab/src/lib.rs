//! A closed mail world on loopback: everything that a mail host meets, in one process, without root.
//!
//! In the order in which a host meets it: [`dns`] answers its questions, [`https`] serves MTA-STS documents with
//! certificates of [`ca`], or [`openssl`] with such as Rust has not, [`smtp`] takes its mail in; [`dkim`] makes keys and
//! verifies what was signed with them.
//! [`world`] puts these together from a description of mail domains and writes the daemon's configuration;
//! [`daemon`] runs the real one, [`postfix`] and [`exim`] the real MTAs beside it, on a [`host`] of their own or a booted
//! [`machine`], whose log [`timeshift`] carries over into other days; [`socketmap`] asks the daemon as Postfix does,
//! [`report`] reads what it sends, and programs of others do ([`external_validators`]); [`demo`] is `lab try`.

pub mod both;
pub mod ca;
pub mod daemon;
pub mod demo;
pub mod dkim;
pub mod dns;
pub mod exim;
pub mod external_validators;
pub mod host;
pub mod https;
pub mod machine;
pub mod openssl;
pub mod postfix;
pub mod report;
pub mod smtp;
pub mod socketmap;
pub mod timeshift;
pub mod world;
