//! Postfix's socketmap protocol (socketmap_table(5)): the server, netstrings, and the text of the replies.

pub mod netstring;
pub mod reply;
pub mod server;
