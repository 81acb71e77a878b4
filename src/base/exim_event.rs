//! Failed sessions that Exim's event action reports, on their way from the readsocket to the counting.

use tokio::sync::oneshot;

/// One event. Exim waits for the reply, so that `kill -9` loses none that was acknowledged.
#[derive(Debug)]
pub struct EximEvent {
    /// What stands behind `failed ` in the request, without its line end.
    pub text: Vec<u8>,
    /// Where the reply goes. Dropped without one: the event is not counted.
    pub reply: oneshot::Sender<EventReply>,
}

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventReply {
    /// It is committed.
    Committed,
    /// It cannot be read.
    Malformed,
}
