//! Counts what a thread has allocated, and the most that it had at once.
//!
//! The one place with unsafe code: an allocator cannot be made without. It hands every call on to the system's.
#![allow(unsafe_code, reason = "GlobalAlloc is an unsafe trait")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

use lakehead::fuzz::Target;

/// The system's allocator, counted.
pub(crate) struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: usize, sign: isize) {
    let bytes = isize::try_from(bytes).unwrap_or(isize::MAX).saturating_mul(sign);
    // A thread that ends frees after its cells are gone.
    let held =
        HELD.try_with(|held| held.replace(held.get().saturating_add(bytes)).saturating_add(bytes));
    if let Ok(held) = held {
        MOST.try_with(|most| most.set(most.get().max(held))).ok();
    }
}

// SAFETY: every call goes to the system's allocator with the arguments that it came with.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 1);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(layout.size(), -1);
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 1);
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count(bytes, 1);
        count(layout.size(), -1);
        unsafe { System.realloc(at, layout, bytes) }
    }
}

/// Has a target make what it makes once and keeps.
pub(crate) fn warm(target: &Target) {
    (target.run)(&[0; 16]);
}

/// Runs a target on an input, and holds it to its memory.
///
/// # Panics
///
/// As the target; or it had more at once than it may.
pub(crate) fn hold(target: &Target, input: &[u8]) {
    MOST.set(0);
    HELD.set(0);
    (target.run)(input);
    let (most, allowed) = (MOST.get(), target.memory_max(input.len()));
    let most = usize::try_from(most).unwrap_or(0);
    assert!(
        most <= allowed,
        "{} took {most} bytes for {}, {allowed} at most",
        target.name,
        input.len()
    );
}
