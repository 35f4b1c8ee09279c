//! Room kept on the disk, given back when it is full, so that facts can still be written and the box
//! ships, trims and drains (I26).

use std::path::{Path, PathBuf};

use super::{
    device::{Device, is_full},
    queue::QUEUE_BYTES,
};

/// The reserve.
#[derive(Debug)]
pub(crate) struct Reserve {
    path: PathBuf,
    dir: PathBuf,
    bytes: u64,
}

/// The most that is kept.
const RESERVE_BYTES_MAX: u64 = 64 << 20;

/// Room that the open segment has ahead of it on a full disk, for facts: the reserve is anybody's once it is
/// given back, and what is shipped makes room only when that is written down.
pub(crate) const FACTS_ROOM: u64 = 256 << 10;

impl Reserve {
    /// For a journal of `max_bytes` in `dir`. Makes nothing yet.
    pub(crate) fn new(dir: &Path, max_bytes: u64) -> Self {
        let bytes = (max_bytes / 16).min(RESERVE_BYTES_MAX);
        Self { path: dir.join("reserve"), dir: dir.to_owned(), bytes }
    }

    /// Makes the reserve, if it is not there, provided that a queue's worth of room is left beside
    /// it. Whether runs can be written.
    pub(crate) fn restore(&self, device: &dyn Device) -> bool {
        let kept = device.exists(&self.path);
        let wanted = QUEUE_BYTES as u64 + if kept { 0 } else { self.bytes };
        match device.free_bytes(&self.dir) {
            Ok(free) if free < wanted => return false,
            // What cannot be asked is found out when writing.
            Ok(_) | Err(_) if kept => return true,
            Ok(_) | Err(_) => {}
        }
        let made = device.create(&self.path).and_then(|file| file.reserve(self.bytes));
        match made {
            Err(error) if is_full(&error) => {
                self.release(device);
                false
            }
            // A file system that cannot reserve has no reserve.
            Ok(()) | Err(_) => true,
        }
    }

    /// Gives it back.
    pub(crate) fn release(&self, device: &dyn Device) {
        if let Err(error) = device.remove(&self.path) {
            tracing::warn!(%error, "the journal's reserve is not given back");
        }
    }
}
