//! [`Planted::CutOpen`]: the journal's batches as they look to a sealer that takes each for whole.
//!
//! A transaction that lies in several batches gets a COMMIT at the end of each but the last, and a BEGIN at
//! the start of each but the first, so that an epoch may end between them.

use std::time::Duration;

use bytes::BufMut;

use super::planted::Planted;
use crate::{
    journal::{Batch, Commit, JournalError, Piece, ReadBatches},
    source::{RecordKind, Run, records},
};

/// The reader that gives them.
struct Halved {
    inner: Box<dyn ReadBatches>,
    /// Of the transaction whose batches are being read.
    xid: u32,
    commit: Commit,
}

/// What the sealer reads from.
pub(crate) fn seen(reader: Box<dyn ReadBatches>, planted: Option<Planted>) -> Box<dyn ReadBatches> {
    match planted {
        Some(Planted::CutOpen) => {
            Box::new(Halved { inner: reader, xid: 0, commit: Commit::default() })
        }
        _ => reader,
    }
}

impl ReadBatches for Halved {
    fn next(&mut self, wait: Duration) -> Result<Option<Batch>, JournalError> {
        let Some(mut batch) = self.inner.next(wait)? else { return Ok(None) };
        let piece = std::mem::replace(&mut batch.piece, Piece::Whole);
        if piece == Piece::First {
            self.xid = begun(&batch.bytes);
            self.commit = batch.ends.unwrap_or_default();
        }
        if matches!(piece, Piece::Middle | Piece::Last) {
            batch.bytes.splice(..0, self.begin());
        }
        if matches!(piece, Piece::First | Piece::Middle) {
            batch.bytes.extend(self.end());
            batch.commit = Some(self.commit);
        }
        Ok(Some(batch))
    }
}

impl Halved {
    fn begin(&self) -> Vec<u8> {
        let mut message = vec![b'B'];
        message.put_u64(self.commit.begins.0);
        message.put_i64(self.commit.at.0 - EPOCH_US);
        message.put_u32(self.xid);
        record(&message)
    }

    fn end(&self) -> Vec<u8> {
        let mut message = vec![b'C', 0];
        message.put_u64(self.commit.begins.0);
        message.put_u64(self.commit.position.0);
        message.put_i64(self.commit.at.0 - EPOCH_US);
        record(&message)
    }
}

/// The xid of the first BEGIN.
fn begun(bytes: &[u8]) -> u32 {
    let messages = records(bytes).flatten().map(|(_, message)| message);
    let xid = messages.filter(|message| message.first() == Some(&b'B')).find_map(|message| {
        message.get(17..).and_then(<[u8]>::first_chunk::<4>).map(|xid| u32::from_be_bytes(*xid))
    });
    xid.unwrap_or(0)
}

fn record(message: &[u8]) -> Vec<u8> {
    let mut run = Run::new(Piece::Whole);
    run.push(RecordKind::Message, message);
    run.bytes
}

/// 2000-01-01, where PostgreSQL's times begin, in microseconds.
const EPOCH_US: i64 = 946_684_800_000_000;
