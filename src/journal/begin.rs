//! Begins an empty journal at a point: for a box that continues the chain of another.
//!
//! **Invariant:** a journal that has ever held a batch, or began elsewhere, is left as it is. Where it
//! begins is durable, in the head of a segment, before this returns.

use std::sync::Arc;

use super::{
    JournalError, Options,
    device::{Device, FileSystem},
    open::{begin, hold},
    recover::{mend, remove_young, survey},
    watermark::Progress,
};
use crate::units::Point;

/// Makes the stopped journal of a source begin behind `point`: it counts as durable, with all before
/// it, and changes are numbered from there. Facts that are there stay. Can be repeated. Blocks.
///
/// # Errors
///
/// [`JournalError::Begun`]: it holds changes of its own; nothing was done. Or as `Journal::open`.
pub fn begin_at(options: &Options, point: Point) -> Result<(), JournalError> {
    let (dir, wanted) = (&options.dir, Progress::behind(point));
    let _hold = hold(dir, options)?;
    let device: Arc<dyn Device> = Arc::new(FileSystem);
    remove_young(&*device, dir)?;
    let mut found = survey(&*device, dir, options.key.expose(), None)?;
    if found.progress == wanted {
        return Ok(());
    }
    if found.progress != Progress::default() {
        let held = found.progress.durable.point.position;
        return Err(JournalError::Begun { path: dir.display().to_string(), held });
    }
    mend(&*device, &found)?;
    found.progress = wanted;
    begin(&device, options, found).map(drop)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        clock::SystemClock,
        config::Secret,
        facts::{FactBatch, Facts},
        journal::{Commit, Journal, Keep, Piece, Run},
        shutdown::Tasks,
        source::Durable,
        telemetry::board::SourceBoard,
        units::{Position, Sequence, Timestamp},
    };

    const POINT: Point = Point { sequence: Sequence(41), position: Position(1000) };

    fn options(dir: &tempfile::TempDir) -> Options {
        let (dir, key) = (dir.path().join("erp"), Secret::new(vec![7; 32]));
        Options { dir, key, max_bytes: 1 << 30, segment_bytes: 1 << 20 }
    }

    fn open(options: &Options) -> Arc<Journal> {
        let clock = Arc::new(SystemClock);
        Journal::open(options.clone(), SourceBoard::default(), clock, &Tasks::new()).unwrap()
    }

    async fn append(journal: &Journal, position: u64, changes: u64) {
        let (position, begins) = (Position(position), Position(position - 1));
        let commit = Some(Commit { position, begins, at: Timestamp(5), transactions: 1 });
        let bytes = b"a transaction".to_vec();
        journal
            .append(Run { piece: Piece::Whole, bytes, changes, commit, ..Run::new(Piece::Whole) })
            .await
            .unwrap();
        let mut durable = journal.durable();
        durable.wait_for(|durable| durable.point.position >= position).await.unwrap();
    }

    #[tokio::test]
    async fn an_empty_journal_begins_where_another_ended_and_goes_on_from_there() {
        let dir = tempfile::tempdir().unwrap();
        let options = options(&dir);
        let journal = open(&options);
        let mut batch = FactBatch::default();
        batch.put("a", &1);
        journal.record(batch).await.unwrap();
        journal.stop().await;
        begin_at(&options, POINT).unwrap();
        begin_at(&options, POINT).unwrap();
        let journal = open(&options);
        assert_eq!(journal.get("a").as_deref(), Some(&b"1"[..]));
        let begun = Durable { point: POINT, begins: Position(999), ..Durable::default() };
        assert_eq!(journal.session().await.unwrap(), begun);
        append(&journal, 1010, 3).await;
        let read = journal.reader(0).next(Duration::from_secs(20)).unwrap().unwrap();
        assert_eq!((read.number, read.first, read.changes), (1, Sequence(42), 3));
        journal.stop().await;
        // And after a restart.
        let journal = open(&options);
        let durable = journal.session().await.unwrap();
        assert_eq!((durable.point.sequence, durable.batch), (Sequence(44), 1));
        journal.stop().await;
    }

    #[tokio::test]
    async fn a_journal_that_holds_changes_or_began_elsewhere_begins_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let options = options(&dir);
        let journal = open(&options);
        assert!(matches!(begin_at(&options, POINT), Err(JournalError::Held { .. })));
        append(&journal, 10, 1).await;
        journal.stop().await;
        let refused = begin_at(&options, POINT).unwrap_err();
        assert!(refused.to_string().contains("holds changes up to 00000000/0000000A"), "{refused}");
        let journal = open(&options);
        assert_eq!(journal.session().await.unwrap().point.sequence, Sequence(1));
        journal.stop().await;
        let elsewhere = tempfile::tempdir().unwrap();
        let options = self::options(&elsewhere);
        begin_at(&options, POINT).unwrap();
        let further = Point { sequence: Sequence(50), ..POINT };
        assert!(matches!(begin_at(&options, further), Err(JournalError::Begun { .. })));
    }
}
