//! The seats of the status page: how many connections are served at once. Pure.
//!
//! Takes a peer's address and gives a [`Seat`], or none: nobody waits for one. Keeps a count for each
//! address that holds a seat.
//!
//! **Invariant:** there are at most [`CONNECTIONS_MAX`], at most [`CONNECTIONS_PER_ADDRESS_MAX`] of one
//! address, and [`CONNECTIONS_LOOPBACK`] of all are for loopback only.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

/// All seats.
#[derive(Clone, Debug, Default)]
pub(super) struct Seats(Arc<Mutex<BTreeMap<IpAddr, usize>>>);

/// One seat; free again when dropped.
#[derive(Debug)]
pub(super) struct Seat {
    seats: Seats,
    peer: IpAddr,
}

impl Seats {
    /// A seat for a connection from `peer`; `None` if it must be closed.
    pub(super) fn take(&self, peer: IpAddr) -> Option<Seat> {
        // To a socket of IPv6, 127.0.0.1 is ::ffff:127.0.0.1.
        let peer = peer.to_canonical();
        self.with(|taken| {
            let beyond: usize = of(taken, |address| !address.is_loopback());
            let held = taken.get(&peer).copied().unwrap_or_default();
            let full = held >= CONNECTIONS_PER_ADDRESS_MAX
                || of(taken, |_| true) >= CONNECTIONS_MAX
                || (!peer.is_loopback() && beyond >= CONNECTIONS_MAX - CONNECTIONS_LOOPBACK);
            (!full).then(|| {
                taken.insert(peer, held + 1);
                Seat { seats: self.clone(), peer }
            })
        })
    }

    fn with<T>(&self, work: impl FnOnce(&mut BTreeMap<IpAddr, usize>) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.with(|taken| match taken.get_mut(&self.peer) {
            Some(held) if *held > 1 => *held -= 1,
            _ => drop(taken.remove(&self.peer)),
        });
    }
}

/// Seats held by the addresses that are `meant`.
fn of(taken: &BTreeMap<IpAddr, usize>, meant: impl Fn(&IpAddr) -> bool) -> usize {
    taken.iter().filter(|(address, _)| meant(address)).map(|(_, held)| held).sum()
}

/// Connections at once.
pub(super) const CONNECTIONS_MAX: usize = 64;
/// Those of one address.
pub(super) const CONNECTIONS_PER_ADDRESS_MAX: usize = 8;
/// Those that only loopback gets.
pub(super) const CONNECTIONS_LOOPBACK: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn stranger(number: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, number])
    }

    #[test]
    fn one_address_has_eight_seats_and_gets_them_back() {
        let seats = Seats::default();
        let mut held: Vec<Seat> = (0..8).map(|_| seats.take(stranger(1)).unwrap()).collect();
        assert!(seats.take(stranger(1)).is_none());
        let mapped = "::ffff:192.0.2.1".parse().unwrap();
        assert!(seats.take(mapped).is_none(), "it is the same address");
        assert!(seats.take(stranger(2)).is_some());
        held.pop();
        let again = seats.take(mapped);
        assert!(again.is_some() && seats.take(stranger(1)).is_none());
        drop((held, again));
        assert!(seats.with(|taken| taken.is_empty()), "an address that left is forgotten");
    }

    #[test]
    fn strangers_leave_seats_for_loopback() {
        let seats = Seats::default();
        let mut held: Vec<Seat> = (0..56).map(|at| seats.take(stranger(at)).unwrap()).collect();
        assert!(seats.take(stranger(99)).is_none());
        let near = IpAddr::from([127, 0, 0, 1]);
        held.extend((0..8).map(|_| seats.take(near).unwrap()));
        assert!(seats.take("::1".parse().unwrap()).is_none(), "all 64 are taken");
        held.remove(0);
        assert!(seats.take(near).is_none());
        assert!(seats.take("::1".parse().unwrap()).is_some());
        assert!(seats.take(stranger(99)).is_some());
    }
}
