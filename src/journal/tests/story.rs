//! The life of a journal up to the moment in which it is damaged, and all that is true of it.

use std::collections::BTreeMap;

use super::{harm::Contents, *};
use crate::{journal::watermark::Progress, source::Durable};

/// A journal before it is damaged, and all that is true of it.
pub(super) struct Story {
    pub(super) site: Site,
    rng: fastrand::Rng,
    /// Every batch ever given to it, torn ones too.
    all: Vec<Batch>,
    model: Progress,
    pub(super) facts: BTreeMap<String, Vec<u8>>,
    trimmed: u64,
    /// What the lake has, or the spool.
    pub(super) sealed: Durable,
    /// What the source was told that it may forget.
    pub(super) confirmed: Position,
    /// It was stopped, not killed: the index covers all of it.
    pub(super) clean: bool,
    /// The index as it was at an earlier stop.
    pub(super) old_index: Contents,
    position: u64,
}

impl Story {
    pub(super) async fn tell(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let site = Site::in_memory(rng.u64(2_000..12_000));
        let mut story = Self {
            site,
            clean: rng.bool(),
            rng,
            all: vec![],
            model: Progress::default(),
            facts: BTreeMap::new(),
            trimmed: 0,
            sealed: Durable::default(),
            confirmed: Position(0),
            old_index: Contents::new(),
            position: 10,
        };
        let starts = story.rng.usize(1..4);
        for start in 1..=starts {
            let journal = story.site.open();
            story.model.tear();
            for _ in 0..story.rng.usize(5..30) {
                story.step(&journal).await;
            }
            let last = start == starts;
            if last {
                story.choose_sealed();
            }
            if if last { story.clean } else { story.rng.bool() } {
                journal.stop().await;
            } else {
                kill(journal).await;
            }
            if !last {
                story.old_index = harm::index_files(&story.site.path());
            }
        }
        story.model.tear();
        story.choose_confirmed();
        story
    }

    async fn step(&mut self, journal: &Arc<Journal>) {
        match self.rng.u32(0..12) {
            0..=4 => self.append(journal, Piece::Whole, true).await,
            5 => {
                self.append(journal, Piece::First, false).await;
                for _ in 0..self.rng.u32(0..3) {
                    self.append(journal, Piece::Middle, false).await;
                }
                match self.rng.u32(0..4) {
                    0 => {
                        journal.session().await.unwrap();
                        self.model.tear();
                    }
                    _ => self.append(journal, Piece::Last, true).await,
                }
            }
            6 => {
                // A mark.
                self.give(journal, Piece::Whole, 0, vec![], true).await;
            }
            7..=9 => {
                let key = format!("ship/{}", self.rng.u32(0..12));
                let value = self.rng.u64(..).to_le_bytes().repeat(self.rng.usize(1..20));
                let kept = self.rng.u32(0..4) > 0;
                let value = kept.then_some(value);
                match &value {
                    Some(value) => drop(self.facts.insert(key.clone(), value.clone())),
                    None => drop(self.facts.remove(&key)),
                }
                journal.record(FactBatch { changes: vec![(key, value)] }).await.unwrap();
            }
            10 => {
                let durable = self.model.durable.batch;
                self.trimmed = self.trimmed.max(self.rng.u64(0..=durable));
                journal.trim(self.trimmed);
                // What is unlinked before a kill is to be the same always.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            _ => tokio::time::sleep(Duration::from_millis(3)).await,
        }
    }

    async fn append(&mut self, journal: &Arc<Journal>, piece: Piece, commits: bool) {
        let bytes = (0..self.rng.usize(1..400)).map(|_| self.rng.u8(..)).collect();
        let changes = self.rng.u64(1..5);
        self.give(journal, piece, changes, bytes, commits).await;
    }

    async fn give(
        &mut self,
        journal: &Arc<Journal>,
        piece: Piece,
        changes: u64,
        bytes: Vec<u8>,
        commits: bool,
    ) {
        self.position += 10;
        let commit = if commits { commit(self.position) } else { None };
        let number = self.model.next_batch;
        let first = Sequence(self.model.next_sequence);
        let bytes_kept = bytes.clone();
        journal.append(Run { piece, bytes, changes, commit, ..Run::new(piece) }).await.unwrap();
        self.model.advance(piece, changes, commit);
        self.all.push(Batch {
            number,
            piece,
            first,
            changes,
            commit,
            ends: None,
            bytes: bytes_kept,
        });
        if commits {
            durable_at(&**journal, number).await;
        }
    }

    /// Some transaction that is not trimmed, or none.
    fn choose_sealed(&mut self) {
        let whole: Vec<_> = self.transactions();
        let ends = whole.iter().map(|pieces| pieces[pieces.len() - 1]);
        let ends: Vec<_> = ends.filter(|last| last.number >= self.trimmed).map(state).collect();
        let nothing = self.trimmed == 0 && self.rng.u32(0..4) == 0;
        if let Some(sealed) = self.rng.choice(ends).filter(|_| !nothing) {
            self.sealed = sealed;
        } else if self.trimmed > 0 {
            self.sealed = self.model.durable;
        }
    }

    /// As `release` has it: all that is durable, all that is in the lake, or something between.
    fn choose_confirmed(&mut self) {
        let ends: Vec<_> = self.states().iter().map(|state| state.point.position).collect();
        self.confirmed = match self.rng.u32(0..3) {
            0 => self.model.durable.point.position,
            1 => self.sealed.point.position,
            _ => self.rng.choice(ends).unwrap_or_default(),
        };
    }

    /// Whole transactions that end after `position`.
    pub(super) fn after(&self, position: Position) -> Vec<Vec<&Batch>> {
        let mut transactions = self.transactions();
        transactions.retain(|pieces| state(pieces[pieces.len() - 1]).point.position > position);
        transactions
    }

    /// The batches of each transaction that was not torn.
    pub(super) fn transactions(&self) -> Vec<Vec<&Batch>> {
        let open = self.model.open.unwrap_or(u64::MAX);
        let read = self
            .all
            .iter()
            .filter(|batch| self.model.torn.end_of(batch.number).is_none() && batch.number < open);
        let mut transactions: Vec<Vec<&Batch>> = vec![];
        for batch in read {
            match batch.piece {
                Piece::Whole | Piece::First => transactions.push(vec![batch]),
                Piece::Middle | Piece::Last => transactions.last_mut().unwrap().push(batch),
            }
        }
        transactions
    }

    /// All there is about the end of each transaction.
    pub(super) fn states(&self) -> Vec<Durable> {
        let transactions = self.transactions();
        std::iter::once(Durable::default())
            .chain(transactions.iter().map(|pieces| state(pieces[pieces.len() - 1])))
            .collect()
    }
}

/// The watermark at the end of a transaction, transactions uncounted.
pub(super) fn state(last: &Batch) -> Durable {
    let commit = last.commit.unwrap();
    let sequence = Sequence(last.first.0 + last.changes - 1);
    let point = crate::units::Point { sequence, position: commit.position };
    Durable { point, batch: last.number, begins: commit.begins, at: commit.at, transactions: 0 }
}

impl fmt::Display for Story {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sealed, confirmed, clean, .. } = self;
        write!(f, "sealed {}, confirmed {confirmed}, clean {clean}", sealed.batch)
    }
}
