//! Who may send the next query: all look-ups share the slots, and neither a look-up nor a client takes all of them.
//!
//! Takes: the [`LookupShare`] that a query belongs to, and who it is made for. Gives: a [`QuerySlot`], held while the query
//! is under way.
//! Limits: [`MAX_QUERIES`] at once, [`MAX_PER_LOOKUP`] for one look-up, three quarters of all for one requester
//! (`base::requester`). A third of all slots is for everybody, in the order of asking. The others are for look-ups younger
//! than [`FRESH_AGE`], [`MAX_RESERVED_PER_LOOKUP`] for each: names whose servers do not answer hold the first third for as
//! long as they like, and a new look-up is as fast as without them, also where one client asks for all of these names.
//! When it fails: never; a query without a slot waits for one.
//! Not here: sending queries (`servers`), which queries a look-up needs (`policy/dane/lookup`).

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

use crate::base::requester::{FairSlot, FairSlots, Requester};

/// How many queries are under way at once: each has a socket of its own (a port that nobody can guess) and some 10 kB.
/// At 20 ms a query that is 50,000 a second.
const MAX_QUERIES: usize = 1024;

/// The part of the descriptors that queries may take: a process that may have few must not spend them all on DNS.
const DESCRIPTORS_PER_QUERY: u64 = 4;

/// How many queries of one look-up are under way at once.
const MAX_PER_LOOKUP: usize = 8;

/// How many slots of the reserve one look-up holds at once: the addresses of two MX hosts.
const MAX_RESERVED_PER_LOOKUP: usize = 4;

/// How long a look-up counts as new: as long as an MTA is kept waiting by default.
const FRESH_AGE: Duration = Duration::from_secs(5);

/// The slots of all queries.
pub(super) struct QuerySlots {
    shared: FairSlots,
    reserve: FairSlots,
}

/// The part of one look-up.
pub(super) struct LookupShare {
    queries: Semaphore,
    reserved: Semaphore,
    began: Instant,
    requester: Requester,
}

/// A query may be under way while this is held.
pub(super) struct QuerySlot<'a> {
    _own: SemaphorePermit<'a>,
    _reserved: Option<SemaphorePermit<'a>>,
    _slot: FairSlot<'a>,
}

impl QuerySlots {
    /// As many as this process may have, all free.
    pub(super) fn new() -> QuerySlots {
        let descriptors = rlimit::getrlimit(rlimit::Resource::NOFILE).map_or(u64::MAX, |(soft, _)| soft);
        let allowed = usize::try_from(descriptors / DESCRIPTORS_PER_QUERY).unwrap_or(usize::MAX);
        QuerySlots::with(MAX_QUERIES.min(allowed).max(2 * MAX_PER_LOOKUP))
    }

    fn with(slots: usize) -> QuerySlots {
        QuerySlots { shared: FairSlots::new(slots / 3), reserve: FairSlots::new(slots - slots / 3) }
    }

    /// Waits for a slot.
    pub(super) async fn acquire<'a>(&'a self, share: &'a LookupShare) -> QuerySlot<'a> {
        let own = acquire(&share.queries).await;
        let reserved = async {
            let reserved = acquire(&share.reserved).await;
            (self.reserve.acquire(share.requester).await, Some(reserved))
        };
        let (slot, reserved) = tokio::select! {
            // The reserve is for when nothing else is free.
            biased;
            slot = self.shared.acquire(share.requester) => (slot, None),
            slot = reserved, if share.began.elapsed() < FRESH_AGE => slot,
        };
        QuerySlot { _own: own, _reserved: reserved, _slot: slot }
    }
}

impl LookupShare {
    /// That of a look-up that begins now.
    pub(super) fn new(requester: Requester) -> Arc<LookupShare> {
        LookupShare::begun(requester, Instant::now())
    }

    fn begun(requester: Requester, began: Instant) -> Arc<LookupShare> {
        Arc::new(LookupShare {
            queries: Semaphore::new(MAX_PER_LOOKUP),
            reserved: Semaphore::new(MAX_RESERVED_PER_LOOKUP),
            began,
            requester,
        })
    }
}

async fn acquire(semaphore: &Semaphore) -> SemaphorePermit<'_> {
    // Invariant: neither semaphore of a look-up is ever closed.
    semaphore.acquire().await.expect("a semaphore that is never closed")
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    const ONE: Requester = Requester::User(1000);
    const OTHER: Requester = Requester::User(33);

    /// The slot, if there is one now.
    fn now<'a>(slots: &'a QuerySlots, share: &'a LookupShare) -> Option<QuerySlot<'a>> {
        let mut waiting = pin!(tokio::task::unconstrained(slots.acquire(share)));
        match waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(slot) => Some(slot),
            Poll::Pending => None,
        }
    }

    #[tokio::test]
    async fn one_look_up_has_eight_queries_under_way() {
        let (slots, share) = (QuerySlots::with(100), LookupShare::new(ONE));
        let mut held: Vec<_> = (0..MAX_PER_LOOKUP).map(|_| now(&slots, &share).unwrap()).collect();
        assert!(now(&slots, &share).is_none());
        held.pop();
        assert!(now(&slots, &share).is_some());
    }

    #[tokio::test]
    async fn a_new_look_up_has_slots_whoever_holds_the_others() {
        let slots = QuerySlots::with(60);
        let old = |n: u32| LookupShare::begun(Requester::User(n), Instant::now() - FRESH_AGE);
        let hostile: Vec<_> = (0..30).map(old).collect();
        let held: Vec<_> = hostile.iter().flat_map(|share| (0..8).map(|_| now(&slots, share))).flatten().collect();
        assert_eq!(held.len(), 20, "look-ups that are no longer new have a third of all slots");
        let new = LookupShare::new(ONE);
        let mut own: Vec<_> = (0..MAX_RESERVED_PER_LOOKUP).map(|_| now(&slots, &new).unwrap()).collect();
        assert!(now(&slots, &new).is_none());
        own.pop();
        assert!(now(&slots, &new).is_some(), "what it gives back it may take again");
        drop((own, held));
        assert!((0..8).all(|_| now(&slots, &new).is_some()));
    }

    #[tokio::test]
    async fn one_client_leaves_slots_of_both_kinds_to_the_others() {
        let slots = QuerySlots::with(60);
        let hostile: Vec<_> = (0..30).map(|_| LookupShare::new(ONE)).collect();
        let held: Vec<_> = hostile.iter().flat_map(|share| (0..8).map(|_| now(&slots, share))).flatten().collect();
        assert_eq!(held.len(), 45, "three quarters of all, whatever is new");
        let old = LookupShare::begun(OTHER, Instant::now() - FRESH_AGE);
        assert!(now(&slots, &old).is_some(), "a slot for everybody is left");
        let own: Vec<_> = (0..8).map(|_| LookupShare::new(OTHER)).collect();
        let own: Vec<_> = own.iter().filter_map(|share| now(&slots, share)).collect();
        assert_eq!(own.len(), 8);
        drop(held);
        assert!((0..8).all(|_| now(&slots, &hostile[0]).is_some()));
    }

    #[tokio::test]
    async fn who_waits_gets_the_slot_that_is_given_back() {
        let slots = Arc::new(QuerySlots::with(3));
        let (one, two, new) = (LookupShare::new(ONE), LookupShare::new(OTHER), LookupShare::new(OTHER));
        let held = now(&slots, &one).unwrap();
        let _reserved = [now(&slots, &two).unwrap(), now(&slots, &two).unwrap()];
        assert!(now(&slots, &new).is_none());
        let waiting = tokio::spawn({
            let (slots, new) = (Arc::clone(&slots), Arc::clone(&new));
            async move { drop(slots.acquire(&new).await) }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(held);
        waiting.await.unwrap();
    }
}
