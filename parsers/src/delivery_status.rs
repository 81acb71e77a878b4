//! The vocabulary of [`parse_delivery_status`](crate::parse_delivery_status): what became of one recipient, in the words of
//! any delivery agent.
//!
//! Takes: nothing. Gives: a type that borrows from the line; no allocation.
//! It is read beside [`Event`](crate::Event), for the few messages whose result matters: error(8), local(8) and others deliver
//! messages, and no TLS session is theirs.
//! Not here: the forms of the lines (`postfix::status`, `exim::status`).

/// A line that says what became of one recipient of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeliveryStatus<'a> {
    /// The message.
    pub queue_id: &'a [u8],
    /// What became of it.
    pub result: DeliveryResult,
    /// Why, in the words of the line: a stranger's text. Empty where the line was cut off before it.
    pub reason: &'a [u8],
}

/// What became of one recipient.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeliveryResult {
    /// The next host or a mailbox has it.
    Delivered,
    /// The MTA keeps it and tries again.
    Deferred,
    /// The MTA has given up, and returns it to its sender.
    Bounced,
}
