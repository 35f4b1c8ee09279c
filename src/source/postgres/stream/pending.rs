//! A stream's transactions in progress: kept until they end, and then given on as if they came at once.
//!
//! **Invariant:** while one is given on, nothing is read from the server, and it hears of us.

use tokio::task::spawn_blocking;

use super::{
    super::{
        aside::{Laid, Reading},
        batch::Then,
        error::SourceError,
        in_progress::{Committed, Taken, whole_bytes},
        session::Shared,
    },
    End, Stream, begun,
};

impl Stream {
    /// Goes on with a transaction in progress.
    pub(super) async fn follow(&mut self, taken: Taken) -> Result<Option<End>, SourceError> {
        let end = match taken {
            Taken::Outside => return Ok(None),
            Taken::Kept => self.lay_aside().await?,
            Taken::Committed(committed) => self.give_on(committed).await?,
            Taken::RolledBack(transaction) => self.remove(transaction.laid).await?,
        };
        let laid_bytes = self.line.shared.aside.bytes();
        self.line.in_progress_bytes = laid_bytes + self.in_progress.held_bytes() as u64;
        Ok(end)
    }

    /// Lays aside what is too much to be held.
    async fn lay_aside(&mut self) -> Result<Option<End>, SourceError> {
        while let Some((xid, held)) = self.in_progress.too_much() {
            let Some(laid) = self.in_progress.laid(xid).copied() else { continue };
            let aside = self.line.shared.aside.clone();
            let lay = spawn_blocking(move || aside.lay(laid, &held));
            match self.line.meanwhile(lay).await?.expect(WHOLE) {
                Ok(laid) => self.in_progress.laid(xid).into_iter().for_each(|to| *to = Some(laid)),
                Err(why) => return Ok(Some(crowded(&why))),
            }
        }
        Ok(None)
    }

    /// A transaction in progress was committed: as if it had come at once.
    async fn give_on(&mut self, committed: Committed) -> Result<Option<End>, SourceError> {
        let Committed { begin, mut transaction, commit, overtaken } = committed;
        if let Some(end) = self.give(&begin).await? {
            return Ok(Some(end));
        }
        let (mut framed, mut reading) = (vec![], transaction.laid.map(Reading::new));
        loop {
            let mut at = 0;
            while let (Some(message), passed) = transaction.next(&framed[at..]) {
                at += passed;
                let then = self.push(message)?;
                if passed > FRAMED_BYTES {
                    // A large message goes before the journal takes its copy on.
                    framed.drain(..std::mem::take(&mut at));
                    framed.shrink_to(FRAMED_BYTES);
                }
                if let Some(end) = self.settle(then).await? {
                    return Ok(Some(end));
                }
                if passed > FRAMED_BYTES {
                    self.large = None;
                }
            }
            at += transaction.next(&framed[at..]).1;
            if at > FRAMED_BYTES {
                // It was rolled back.
                self.large = None;
            }
            framed.drain(..at);
            framed.shrink_to(FRAMED_BYTES);
            let Some(mut on) = reading.take() else {
                if transaction.held.is_empty() {
                    break;
                }
                framed.append(&mut transaction.held);
                continue;
            };
            // A large message comes in pieces.
            self.wait_for_turn(whole_bytes(&framed)).await?;
            framed.reserve_exact(whole_bytes(&framed).saturating_sub(framed.len()) + FRAMED_BYTES);
            let aside = self.line.shared.aside.clone();
            let read = spawn_blocking(move || {
                let read = aside.read(&mut on, &mut framed);
                read.map(|more| (framed, more.then_some(on)))
            });
            match self.line.meanwhile(read).await?.expect(WHOLE) {
                Ok(read) => (framed, reading) = read,
                Err(why) => return Ok(Some(crowded(&why))),
            }
        }
        if let Some(end) = self.give(&commit).await? {
            return Ok(Some(end));
        }
        let end = self.remove(transaction.laid).await?;
        if !overtaken || end.is_some() {
            return Ok(end);
        }
        while let Some(run) = self.batcher.take(true) {
            self.append(run).await?;
        }
        Ok(Some(End::Again))
    }

    /// Gives on one message of a transaction that was in progress.
    async fn give(&mut self, message: &[u8]) -> Result<Option<End>, SourceError> {
        let then = self.push(message)?;
        self.settle(then).await
    }

    fn push(&mut self, message: &[u8]) -> Result<Then, SourceError> {
        begun(&mut self.xid, message);
        let then = self.batcher.push(message, self.line.shared.clock.now())?;
        self.unproven.extend(self.vocabulary.is_news(message));
        Ok(then)
    }

    /// Removes what was laid aside of a transaction.
    async fn remove(&mut self, laid: Option<Laid>) -> Result<Option<End>, SourceError> {
        let Some(laid) = laid else { return Ok(None) };
        let aside = self.line.shared.aside.clone();
        let removed = self.line.meanwhile(spawn_blocking(move || aside.remove(laid))).await?;
        Ok(removed.expect(WHOLE).err().map(|why| crowded(&why)))
    }
}

/// Removes what a session before laid aside.
pub(super) async fn forget(shared: &Shared) {
    if shared.aside.bytes() == 0 {
        return;
    }
    let aside = shared.aside.clone();
    if let Err(error) = spawn_blocking(move || aside.clear()).await.expect(WHOLE) {
        tracing::warn!(%error, "transactions in progress of an earlier session are left on the disk");
    }
}

/// A server may be able to send a transaction once it is committed, and not before: where a savepoint took back what it
/// altered of a table, and it alters the table again, 15.18 "could not map filenode" of the rows in between.
pub(super) fn refused(error: &SourceError) -> End {
    tracing::warn!(%error, "the database cannot send transactions in progress: it is asked for them at their commits");
    End::AtCommit
}

/// Nothing is lost: the server sends all of them again.
fn crowded(why: &dyn std::fmt::Display) -> End {
    tracing::warn!(%why, "transactions in progress find no room in `data_dir`: the database keeps them on its disk");
    End::AtCommit
}

const WHOLE: &str = "work on files does not panic, and is not aborted";
/// What is read at once of what was laid aside.
const FRAMED_BYTES: usize = 1 << 20;
