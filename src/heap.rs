//! How the C library's heap deals with memory that is free; and who may have how much of it ([`large`]).
//!
//! Left alone, glibc asks the kernel for each block above 128 KiB (a bound that grows as such blocks are
//! freed), and gives back the end of the heap as soon as 128 KiB of it are free. A gateway takes and frees
//! buffers of about 1 MiB all the time: every one of them meant zeroed pages and faults, 15 to 19 %
//! of the CPU of sealing a snapshot (benches/README.md). What a row group held is needed again for the
//! next: some of it stays. Before a large value comes, once a minute, and every two seconds while much is
//! resident, all that is free goes back.
#![expect(unsafe_code, reason = "the C library has no safe interface for it")]

use nix::libc;

pub mod large;

/// Sets the bounds. To be called before the second thread starts.
pub(crate) fn begin() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes two numbers, and no other thread is there yet.
    unsafe {
        // Refused, it would go on as before.
        libc::mallopt(libc::M_MMAP_THRESHOLD, MMAP_BYTES);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_BYTES);
        libc::mallopt(libc::M_ARENA_MAX, HEAPS);
    }
}

/// Gives back all that is free.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it may be called at any time, from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Blocks from here on are the kernel's: large values give their memory back at once.
#[cfg(target_env = "gnu")]
const MMAP_BYTES: libc::c_int = 4 << 20;
/// Threads share them: each keeps what it has free, and in pieces, so that there must not be one for each thread. Of four a
/// snapshot held 8 MiB more, for no less CPU.
#[cfg(target_env = "gnu")]
const HEAPS: libc::c_int = 2;
/// Of each heap, at its end.
#[cfg(target_env = "gnu")]
const KEPT_BYTES: libc::c_int = 2 << 20;
