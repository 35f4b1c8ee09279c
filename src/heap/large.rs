//! Who may have large values in memory at the same time (P4).
//!
//! Each place has at most two copies of a value while it passes. That not all places have a large one at
//! once is seen to here: values of [`ROOM_BYTES`] together are on their way, or one that is larger. Who has his
//! turn has it from before the value is read until it is in a file: of the journal, of the spool, or of what is laid aside.
//!
//! Who takes values out of a journal goes before who reads them from a source, as that makes room for those. Those
//! who have held theirs while nothing moved for [`PATIENCE`] are counted no longer: a database may stall in the
//! middle of a value, and too much memory is better than a standstill.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
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
    generation: u64,
}

/// The turn of a value that goes from room to room; none of a small one. As part of a value it is equal to any other.
#[derive(Clone, Debug, Default)]
pub struct Turn(#[expect(dead_code, reason = "held for its drop")] Option<Arc<Held<'static>>>);

impl Turn {
    pub(crate) fn of(held: Option<Held<'static>>) -> Self {
        Self(held.map(Arc::new))
    }
}

impl PartialEq for Turn {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Turn {}

/// Of the whole process.
static ROOM: Room = Room::new();

#[derive(Debug)]
struct Room(Mutex<State>);

#[derive(Debug)]
struct State {
    free: i64,
    /// Those who came in under an older one stood still, and are counted no longer.
    generation: u64,
    /// How often somebody came in or went.
    moved: u64,
    /// Those who wait, in the order in which they came: to take something out, and what it weighs, …
    takers: VecDeque<(u64, i64)>,
    /// … and to read.
    readers: VecDeque<u64>,
    /// The next one's number.
    next: u64,
}

/// A place among those who wait.
struct Ticket<'a> {
    room: &'a Room,
    number: u64,
    weight: i64,
    /// What had moved at the last look, and at how many looks it was the same.
    moved: u64,
    idle: u128,
}

impl Room {
    const fn new() -> Self {
        Self(Mutex::new(State {
            free: ROOM_BYTES,
            generation: 0,
            moved: 0,
            takers: VecDeque::new(),
            readers: VecDeque::new(),
            next: 0,
        }))
    }

    async fn read(&self, bytes: usize) -> Held<'_> {
        let mut ticket = Ticket::draw(self, bytes, false);
        loop {
            if let Some(held) = ticket.admit() {
                return held;
            }
            sleep(LOOK).await;
        }
    }

    fn take_out(&self, bytes: usize) -> Held<'_> {
        let mut ticket = Ticket::draw(self, bytes, true);
        loop {
            if let Some(held) = ticket.admit() {
                return held;
            }
            std::thread::sleep(LOOK);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<'a> Ticket<'a> {
    fn draw(room: &'a Room, bytes: usize, takes: bool) -> Self {
        let weight = weight(bytes);
        let mut state = room.state();
        let (number, moved) = (state.next, state.moved);
        state.next += 1;
        match takes {
            true => state.takers.push_back((number, weight)),
            false => state.readers.push_back(number),
        }
        Self { room, number, weight, moved, idle: 0 }
    }

    fn admit(&mut self) -> Option<Held<'a>> {
        let mut state = self.room.state();
        if self.moved != state.moved {
            (self.moved, self.idle) = (state.moved, 0);
        } else if self.idle >= PATIENCE.as_millis() / LOOK.as_millis() {
            tracing::warn!("a large value stands still: others go on beside it");
            state.generation += 1;
            state.free = ROOM_BYTES;
            self.idle = 0;
        }
        self.idle += 1;
        let free = match state.takers.front() {
            Some((first, _)) if *first == self.number => state.free,
            _ if state.readers.front() == Some(&self.number) => {
                state.free - state.takers.iter().map(|(_, weight)| weight).sum::<i64>()
            }
            _ => return None,
        };
        (free >= self.weight).then(|| {
            state.free -= self.weight;
            state.moved += 1;
            Held { room: self.room, bytes: self.weight, generation: state.generation }
        })
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut state = self.room.state();
        state.takers.retain(|(number, _)| *number != self.number);
        state.readers.retain(|number| *number != self.number);
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut state = self.room.state();
        state.moved += 1;
        if self.generation == state.generation {
            state.free += self.bytes;
        }
    }
}

/// One that is larger than all the room has it alone.
fn weight(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX).min(ROOM_BYTES)
}

/// DESIGN P4: what is larger has twice its size beside the budget.
const ROOM_BYTES: i64 = 64 << 20;
/// A value of 8 MiB takes longer on its way.
const LOOK: Duration = Duration::from_millis(5);
/// 500 MB come in this time over 70 Mbit/s.
const PATIENCE: Duration = Duration::from_secs(60);

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
    async fn what_stands_still_is_counted_no_longer() {
        let room = Room::new();
        let stuck = room.read(ALL).await;
        let (second, mut third) = (room.read(ALL), Box::pin(room.read(ALL)));
        let second = second.await;
        // Only one more: that one moves.
        assert!((&mut third).now_or_never().is_none());
        drop(stuck);
        assert!((&mut third).now_or_never().is_none());
        drop(second);
        drop(third.await);
        assert_eq!(room.state().free, ROOM_BYTES);
    }

    #[tokio::test(start_paused = true)]
    async fn what_moves_is_waited_for_however_long_it_takes() {
        let room = Room::new();
        let slow = room.read(ALL / 2).await;
        let mut large = Box::pin(room.read(ALL));
        let began = tokio::time::Instant::now();
        while began.elapsed() < 3 * PATIENCE {
            let waited = tokio::time::timeout(PATIENCE / 2, &mut large).await;
            assert!(waited.is_err());
            // Somebody takes something out, and is done.
            let mut taker = Ticket::draw(&room, ALL / 4, true);
            drop(taker.admit().unwrap());
        }
        drop(slow);
        drop(large.await);
    }

    #[test]
    fn who_takes_out_goes_before_who_reads() {
        let room = Room::new();
        let held = room.take_out(ALL / 2);
        let mut small = Ticket::draw(&room, ALL / 4, false);
        let mut taker = Ticket::draw(&room, ALL, true);
        assert!(taker.admit().is_none() && small.admit().is_none());
        std::thread::scope(|scope| {
            let taker = scope.spawn(move || {
                loop {
                    if let Some(held) = taker.admit() {
                        return held;
                    }
                    std::thread::yield_now();
                }
            });
            drop(held);
            let held = taker.join().unwrap();
            assert!(small.admit().is_none());
            drop(held);
        });
        // Where there is room for both nobody waits.
        let taker = Ticket::draw(&room, ALL / 2, true);
        assert!(small.admit().is_some());
        drop(taker);
        drop(room.take_out(ALL / 2));
    }
}
