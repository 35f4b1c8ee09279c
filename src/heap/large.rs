//! Who may have large values in memory at the same time (P4).
//!
//! Each place has at most two copies of a value while it passes. That not all places have a large one at
//! once is seen to here: values of [`ROOM_BYTES`] together are on their way, or one that is larger.
//!
//! Who takes values out of a journal goes before who reads them from a source: a reader may wait for room in
//! its journal with a value in its hand. For the same reason nobody waits longer than [`PATIENCE`]: it then
//! goes on all the same, as too much memory is better than a standstill.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::sleep;

/// A message, row or run of more than this waits for its turn.
pub(crate) const LARGE_BYTES: usize = 8 << 20;

/// Waits until a value of so many bytes may be read from a source.
pub(crate) async fn read(bytes: usize) -> Held<'static> {
    ROOM.read(bytes).await
}

/// Waits until a value of so many bytes may be taken out of a journal. Blocks.
pub(crate) fn take_out(bytes: usize) -> Held<'static> {
    ROOM.take_out(bytes)
}

/// A value that is on its way, until this is dropped.
#[derive(Debug)]
#[must_use = "others may have large values once it is dropped"]
pub(crate) struct Held<'a> {
    room: &'a Room,
    bytes: i64,
}

/// Of the whole process.
static ROOM: Room = Room::new();

#[derive(Debug)]
struct Room(Mutex<State>);

#[derive(Debug)]
struct State {
    /// Below zero where somebody lost patience.
    free: i64,
    /// How many wait to take something out.
    takers: usize,
    /// Those who wait to read, in the order in which they came.
    readers: VecDeque<u64>,
    /// The next one's number.
    next: u64,
}

/// A place among those who wait to read.
struct Ticket<'a> {
    room: &'a Room,
    number: u64,
}

impl Room {
    const fn new() -> Self {
        let readers = VecDeque::new();
        Self(Mutex::new(State { free: ROOM_BYTES, takers: 0, readers, next: 0 }))
    }

    async fn read(&self, bytes: usize) -> Held<'_> {
        let ticket = Ticket::draw(self);
        for _ in 0..looks() {
            if let Some(held) = ticket.admit(bytes) {
                return held;
            }
            sleep(LOOK).await;
        }
        self.state().give(self, bytes)
    }

    fn take_out(&self, bytes: usize) -> Held<'_> {
        self.state().takers += 1;
        for _ in 0..looks() {
            if self.state().fits(bytes) {
                break;
            }
            std::thread::sleep(LOOK);
        }
        let mut state = self.state();
        state.takers -= 1;
        state.give(self, bytes)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn fits(&self, bytes: usize) -> bool {
        self.free >= weight(bytes)
    }

    fn give<'a>(&mut self, room: &'a Room, bytes: usize) -> Held<'a> {
        let bytes = weight(bytes);
        self.free -= bytes;
        Held { room, bytes }
    }
}

impl<'a> Ticket<'a> {
    fn draw(room: &'a Room) -> Self {
        let mut state = room.state();
        let number = state.next;
        state.next += 1;
        state.readers.push_back(number);
        Self { room, number }
    }

    fn admit(&self, bytes: usize) -> Option<Held<'a>> {
        let mut state = self.room.state();
        let first = state.readers.front() == Some(&self.number);
        (first && state.takers == 0 && state.fits(bytes)).then(|| state.give(self.room, bytes))
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.room.state().readers.retain(|number| *number != self.number);
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.room.state().free += self.bytes;
    }
}

/// One that is larger than all the room has it alone.
fn weight(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX).min(ROOM_BYTES)
}

fn looks() -> u128 {
    PATIENCE.as_millis() / LOOK.as_millis()
}

/// DESIGN P4: what is larger has twice its size beside the budget.
const ROOM_BYTES: i64 = 64 << 20;
/// A value of 8 MiB takes longer on its way.
const LOOK: Duration = Duration::from_millis(5);
const PATIENCE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const ALL: usize = 64 << 20;

    #[tokio::test(start_paused = true)]
    async fn small_ones_are_there_together_and_a_large_one_alone() {
        let room = Room::new();
        let (half, other) = (room.read(ALL / 2).await, room.read(ALL / 2).await);
        let mut large = Box::pin(room.read(9 * ALL));
        assert!((&mut large).now_or_never().is_none());
        drop(half);
        // Who comes later does not go first, although there is room.
        let mut small = Box::pin(room.read(ALL / 4));
        assert!((&mut small).now_or_never().is_none());
        drop(other);
        let large = large.await;
        assert!((&mut small).now_or_never().is_none());
        drop(large);
        drop(small.await);
        assert_eq!(room.state().free, ROOM_BYTES);
    }

    #[tokio::test(start_paused = true)]
    async fn who_gives_up_is_waited_for_by_nobody() {
        let room = Room::new();
        let held = room.read(ALL).await;
        assert!(room.read(1).now_or_never().is_none());
        drop(held);
        drop(room.read(ALL).now_or_never().unwrap());
        assert!(room.state().readers.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_ever() {
        let room = Room::new();
        let stuck = room.read(ALL).await;
        let second = room.read(ALL).await;
        assert_eq!(room.state().free, -ROOM_BYTES);
        drop((stuck, second));
        assert_eq!(room.state().free, ROOM_BYTES);
    }

    #[test]
    fn who_takes_out_goes_before_who_reads() {
        let room = Room::new();
        let held = room.take_out(ALL);
        std::thread::scope(|scope| {
            let mut reader = Box::pin(room.read(1));
            let taker = scope.spawn(|| room.take_out(ALL));
            while room.state().takers == 0 {
                std::thread::yield_now();
            }
            drop(held);
            let held = taker.join().unwrap();
            drop(held);
            let ticket = Ticket::draw(&room);
            room.state().takers = 1;
            assert!(ticket.admit(1).is_none());
            room.state().takers = 0;
            assert!(ticket.admit(1).is_some());
            drop(ticket);
            assert!((&mut reader).now_or_never().is_some());
        });
    }
}
