//! The journal's threads, turned by hand: for simulation, where nothing may run beside anything else.
//!
//! It is the journal itself, without its index: the same queue, writer, segments and recovery. Only who
//! calls them, and when, is decided by the one who turns.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{
    Journal, JournalError, Options,
    device::Device,
    open::{mended, start},
    pack::Packer,
    recover::{remove_young, survey},
    segment::write_error,
    store::Changes,
    writer::{Writer, pack_one},
};
use crate::{clock::Clock, telemetry::board::SourceBoard};

/// What the threads would do.
pub(crate) struct Hand {
    journal: Arc<Journal>,
    writer: Option<Writer>,
    packer: Packer,
}

impl Journal {
    /// [`Journal::open`] without threads and without an index.
    pub(crate) fn open_by_hand(
        device: Arc<dyn Device>,
        options: Options,
        board: SourceBoard,
        clock: Arc<dyn Clock>,
    ) -> Result<(Arc<Self>, Hand), JournalError> {
        let dir = options.dir.clone();
        remove_young(&*device, &dir)?;
        let survey = survey(&*device, &dir, options.key.expose(), None)?;
        let started = mended(&device, &options, survey, Changes::new())?;
        let token = CancellationToken::new();
        let (journal, writer) = start(device, options, board, clock, token, started);
        journal.shared.mailbox.give_index_up();
        let packer = Packer::new().map_err(|why| write_error(&dir, why))?;
        let journal = Arc::new(journal);
        Ok((journal.clone(), Hand { journal, writer: Some(writer), packer }))
    }
}

impl Hand {
    /// Packs what waits, writes one group of it, unlinks what is trimmed. Whether more can be done at once.
    pub(crate) fn turn(&mut self) -> bool {
        let shared = &self.journal.shared;
        let Some(writer) = &mut self.writer else { return false };
        while shared.queue.has_raw() {
            let Some(raw) = shared.queue.take_raw() else { break };
            if let Err(error) = pack_one(shared, &mut self.packer, raw) {
                shared.fail(error);
            }
        }
        match writer.turn(Duration::ZERO) {
            Ok(true) => {}
            Ok(false) => self.writer = None,
            Err(error) => {
                shared.fail(error);
                self.writer = None;
            }
        }
        if shared.mailbox.takes_trim() {
            shared.unlink_trimmed();
        }
        let Some(writer) = &mut self.writer else { return false };
        !std::mem::take(&mut writer.stuck) && shared.queue.has_work(writer.disk_full)
    }
}
