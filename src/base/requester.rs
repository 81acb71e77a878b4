//! Who look-ups are made for, and slots of which nobody can take all.
//!
//! Takes: a [`Requester`]: the user or the address at the other end of a socket, or this program itself. Gives: a
//! [`FairSlot`], held for as long as the work takes.
//! Limits: three quarters of all slots ([`share_of`]) for one requester, so that a quarter is left for the others. An IPv6
//! requester is a /64 network, for one host may have all of its addresses.
//! When it fails: never; a requester that holds its share waits for its own slots, and delays nobody else.
//! Not here: what the slots are for (`net::dns`, `answering`), which connections are closed (`answering::connections`).

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

/// Who look-ups are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Requester {
    /// The user of a process that asks on a unix-domain socket.
    User(u32),
    /// The address of a client that asks over TCP; of an IPv6 address the first 64 bits.
    Address(IpAddr),
    /// Someone who uses the control socket or the command line.
    Administrator,
    /// This program itself: refreshes, probes, reports.
    Daemon,
}

/// How much of `all` one requester may have: three quarters, and at least one.
pub fn share_of(all: usize) -> usize {
    (all - all / 4).max(1)
}

/// Slots that all requesters share.
pub struct FairSlots {
    slots: Semaphore,
    share: usize,
    /// The shares that are in use.
    shares: Mutex<HashMap<Requester, Weak<Semaphore>>>,
}

/// One slot, until it is dropped.
pub struct FairSlot<'a> {
    _share: OwnedSemaphorePermit,
    _slot: SemaphorePermit<'a>,
}

impl Requester {
    /// The requester at an address.
    pub fn at(address: IpAddr) -> Requester {
        Requester::Address(match address.to_canonical() {
            IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into(),
            v4 => v4,
        })
    }
}

impl FairSlots {
    /// So many, all free.
    pub fn new(slots: usize) -> FairSlots {
        FairSlots { slots: Semaphore::new(slots), share: share_of(slots), shares: Mutex::default() }
    }

    /// Waits for a slot: for one of the requester's own share first, then in the order of asking.
    pub async fn acquire(&self, requester: Requester) -> FairSlot<'_> {
        let share = self.share_of(requester).acquire_owned().await;
        let slot = self.slots.acquire().await;
        // Invariant: neither semaphore is ever closed.
        let closed = "a semaphore that is never closed";
        FairSlot { _share: share.expect(closed), _slot: slot.expect(closed) }
    }

    fn share_of(&self, requester: Requester) -> Arc<Semaphore> {
        let mut shares = self.shares.lock();
        if let Some(share) = shares.get(&requester).and_then(Weak::upgrade) {
            return share;
        }
        shares.retain(|_, share| share.strong_count() > 0);
        let share = Arc::new(Semaphore::new(self.share));
        shares.insert(requester, Arc::downgrade(&share));
        share
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    /// The slot, if there is one now.
    fn now(slots: &FairSlots, requester: Requester) -> Option<FairSlot<'_>> {
        let mut waiting = pin!(tokio::task::unconstrained(slots.acquire(requester)));
        match waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(slot) => Some(slot),
            Poll::Pending => None,
        }
    }

    #[tokio::test]
    async fn one_requester_leaves_a_quarter_to_the_others() {
        let slots = FairSlots::new(8);
        let (one, other) = (Requester::User(1000), Requester::User(33));
        let mut held: Vec<_> = (0..6).map(|_| now(&slots, one).unwrap()).collect();
        assert!(now(&slots, one).is_none());
        let others: Vec<_> = (0..2).map(|_| now(&slots, other).unwrap()).collect();
        assert!(now(&slots, other).is_none(), "all are taken");
        held.pop();
        assert!(now(&slots, one).is_some());
        drop((held, others));
        assert!(now(&slots, one).is_some() && now(&slots, other).is_some());
    }

    #[tokio::test]
    async fn shares_that_are_not_in_use_are_forgotten() {
        let slots = FairSlots::new(8);
        for user in 0..1000 {
            drop(now(&slots, Requester::User(user)).unwrap());
        }
        assert_eq!(slots.shares.lock().len(), 1);
    }

    #[test]
    fn the_addresses_of_one_network_are_one_requester() {
        let at = |text: &str| Requester::at(text.parse().unwrap());
        assert_eq!(at("2001:db8:1:2::3"), at("2001:db8:1:2:ffff::1"));
        assert_ne!(at("2001:db8:1:2::3"), at("2001:db8:1:3::3"));
        assert_eq!(at("::ffff:192.0.2.1"), at("192.0.2.1"));
        assert_ne!(at("127.0.0.1"), at("127.0.0.2"));
        assert_ne!(at("127.0.0.1"), Requester::User(0));
    }

    #[test]
    fn a_share_is_three_quarters() {
        assert_eq!([1, 2, 4, 8, 1024, 10_240].map(share_of), [1, 2, 3, 6, 768, 7680]);
    }
}
