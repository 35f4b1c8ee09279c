//! What the spool lost before S3 had it is made anew, at the start behind that: by the journal, or by the source.

use std::{sync::Arc, thread, time::Duration};

use super::RunError;
use crate::{
    error::{Cause, Classified},
    facts::Facts,
    journal::{Decode, Journal, ReadBatches, Table},
    ledger,
    seal::{Mending, Sealer},
    ship::upload,
    source::postgres::{gone, pgoutput::PgDecoder},
};

/// [`mend`], with the room that the journal keeps free where there is no other.
///
/// # Errors
///
/// As [`mend`].
pub(super) fn mend_with_room(journal: &Journal, sealer: &Sealer) -> Result<(), RunError> {
    let mending = || mend(journal, &|behind| journal.reader(behind), sealer);
    match mending() {
        Err(error) if error.cause() == Cause::DiskFull => {
            journal.lend_reserve();
            thread::sleep(ROOM_PAUSE);
            mending()
        }
        mended => mended,
    }
}

/// Makes anew what ship found to be lost, and what is not there; where there is some of it, all that waits is looked through.
/// `read` reads the journal behind a batch. Blocks.
///
/// # Errors
///
/// The journal has the changes no more, the disk failed, or a fact does not read.
pub(crate) fn mend(
    facts: &dyn Facts,
    read: &dyn Fn(u64) -> Box<dyn ReadBatches>,
    sealer: &Sealer,
) -> Result<(), RunError> {
    let shipped = |key: &str| facts.get(&upload::done_fact(key)).is_some();
    let mut lost = upload::lost(facts);
    lost.extend(sealer.missing(false, shipped)?);
    if lost.is_empty() {
        return Ok(());
    }
    tracing::warn!(
        objects = lost.len(),
        "the spool lost some of what waits: looking through all of it"
    );
    lost.extend(sealer.missing(true, shipped)?);
    let mending = Mending {
        lost: &lost,
        proven: ledger::proven(facts)?.batch,
        read,
        decode: &|tables: Vec<Arc<Table>>| -> Box<dyn Decode> { Box::new(PgDecoder::new(tables)) },
        read_again: &|table, batch| gone::read_again(facts, table, batch),
        abandon: &|key, batch| upload::abandon(facts, key, batch),
    };
    let mut mended = sealer.mend(&mending);
    if mended.as_ref().is_err_and(|why| why.cause() == Cause::DiskFull) {
        // They are as lost as before.
        sealer.discard(&lost)?;
        mended = sealer.mend(&mending);
    }
    Ok(mended?)
}

/// In it the journal gives up its reserve.
const ROOM_PAUSE: Duration = Duration::from_secs(1);
