//! The journal of one life, turned by hand, and its two faces to the rooms: [`Keep`] and [`Facts`].
//!
//! Each turn comes a moment after it is asked for, as a sync takes its time; between asking and answering
//! the box can die. The journal is the real one, on the model disk.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::{
    sync::{Notify, watch},
    time::{sleep, timeout},
};

use super::{bucket::Who, fuse::Fuse, lock, oracle::Oracle, planted::Planted};
use crate::{
    facts::{FactBatch, Facts, FactsError},
    journal::{Durable, Journal, Keep, KeepError, Run, gap::GAP_FACTS, hand::Hand},
    seal::EPOCH_FACT,
    ship::upload::UPLOAD_FACTS,
    units::Position,
};

/// The journal and who turns it.
pub(crate) struct Engine {
    pub(crate) journal: Arc<Journal>,
    pub(crate) who: Who,
    pub(crate) fuse: Fuse,
    pub(crate) oracle: Oracle,
    pub(crate) planted: Option<Planted>,
    hand: Mutex<Hand>,
    random: Mutex<fastrand::Rng>,
    poke: Notify,
    /// Of [`Planted::PartLate`]: what waits to be recorded with the next facts.
    late: Mutex<FactBatch>,
}

impl Engine {
    pub(crate) fn new(
        journal: Arc<Journal>,
        hand: Hand,
        who: Who,
        fuse: Fuse,
        oracle: Oracle,
        planted: Option<Planted>,
        seed: u64,
    ) -> Arc<Self> {
        let random = Mutex::new(fastrand::Rng::with_seed(seed));
        let (hand, poke, late) = (Mutex::new(hand), Notify::new(), Mutex::default());
        Arc::new(Self { journal, who, fuse, oracle, planted, hand, random, poke, late })
    }

    /// Turns whenever there is something to do.
    pub(crate) async fn run(&self) {
        loop {
            // Now and then without being asked: it looks after the disk.
            let _asked = timeout(LOOK_EVERY, self.poke.notified()).await;
            self.rest(4_000).await;
            while self.turn() {
                self.rest(6_000).await;
            }
        }
    }

    /// One turn. Whether there is more to do at once.
    fn turn(&self) -> bool {
        let more = lock(&self.hand).turn();
        if self.fuse.is_dead() {
            return false;
        }
        self.oracle.turned(self.who);
        more
    }

    /// Trims, and lets the segments be unlinked.
    pub(crate) fn trim(&self, through: u64) {
        if !self.fuse.is_dead() {
            self.oracle.i8_trimmed_is_proven(self.who, through);
        }
        self.journal.trim(through);
        self.poke.notify_one();
    }

    async fn rest(&self, most_us: u64) {
        let rest_us = lock(&self.random).u64(0..most_us);
        sleep(Duration::from_micros(rest_us)).await;
    }

    /// Holds facts back if they are of uploads: they go before the next ones. Whether it does.
    fn holds_back(&self, batch: &mut FactBatch) -> bool {
        let late = &mut *lock(&self.late);
        let uploads = batch.changes.iter().all(|(key, value)| {
            value.is_some() && (key.starts_with(UPLOAD_FACTS) || key.starts_with(PART_FACTS))
        });
        late.changes.append(&mut batch.changes);
        if !uploads {
            std::mem::swap(late, batch);
        }
        uploads
    }

    fn record(&self, mut batch: FactBatch) -> (u64, BoxFuture<'static, Result<(), FactsError>>) {
        if self.planted == Some(Planted::CutForgotten) {
            batch.changes.retain(|(key, _)| key != EPOCH_FACT);
        }
        if let Some(prefix) = match self.planted {
            Some(Planted::GapUnsaid) => Some(GAP_FACTS),
            Some(Planted::RepairForgotten) => Some(REPAIR_FACTS),
            _ => None,
        } {
            batch.changes.retain(|(key, _)| !key.starts_with(prefix));
        }
        let ticket = self.oracle.recording(self.who, batch.clone());
        let answer = self.journal.record(batch);
        self.poke.notify_one();
        (ticket, answer)
    }
}

/// The journal as the source sees it.
pub(crate) struct Kept(pub(crate) Arc<Engine>);

impl Keep for Kept {
    fn session(&self) -> BoxFuture<'_, Result<Durable, KeepError>> {
        let answer = self.0.journal.session();
        self.0.poke.notify_one();
        Box::pin(async move {
            let mut durable = answer.await?;
            if self.0.planted == Some(Planted::NoDedupe) {
                durable.begins = Position(0);
            }
            Ok(durable)
        })
    }

    fn room(&self, bytes: u64) -> BoxFuture<'_, Result<(), KeepError>> {
        self.0.journal.room(bytes)
    }

    fn append(&self, run: Run) -> BoxFuture<'_, Result<(), KeepError>> {
        Box::pin(async move {
            self.0.journal.append(run).await?;
            self.0.poke.notify_one();
            Ok(())
        })
    }

    fn durable(&self) -> watch::Receiver<Durable> {
        self.0.journal.durable()
    }

    fn grown(&self) -> &Notify {
        self.0.journal.grown()
    }
}

/// The journal as all rooms see it.
pub(crate) struct Recorded(pub(crate) Arc<Engine>);

impl Facts for Recorded {
    fn get(&self, key: &str) -> Option<Vec<u8>> {
        self.0.journal.get(key)
    }

    fn scan(&self, prefix: &str) -> Vec<(String, Vec<u8>)> {
        self.0.journal.scan(prefix)
    }

    fn record(&self, mut batch: FactBatch) -> BoxFuture<'static, Result<(), FactsError>> {
        let engine = Arc::clone(&self.0);
        if engine.planted == Some(Planted::PartLate) && engine.holds_back(&mut batch) {
            return Box::pin(async { Ok(()) });
        }
        let (ticket, answer) = engine.record(batch);
        if engine.planted == Some(Planted::FactsEarly) {
            engine.oracle.recorded(engine.who, ticket);
            // Whoever asks until it is there would ask for ever in no time.
            return Box::pin(async {
                sleep(EARLY).await;
                Ok(())
            });
        }
        Box::pin(async move {
            answer.await?;
            if !engine.fuse.is_dead() {
                engine.oracle.recorded(engine.who, ticket);
            }
            Ok(())
        })
    }

    /// The thread that waits here lets the journal's threads go on; nobody else moves meanwhile.
    fn record_blocking(&self, batch: FactBatch) -> Result<(), FactsError> {
        let engine = &self.0;
        let (ticket, mut answer) = engine.record(batch);
        for _ in 0..TURNS_MAX {
            engine.turn();
            if let Some(answer) = (&mut answer).now_or_never() {
                answer?;
                engine.oracle.recorded(engine.who, ticket);
                return Ok(());
            }
            if engine.fuse.is_dead() {
                break;
            }
        }
        // It would wait here for as long as the disk is full: someone switches the box off.
        engine.fuse.die();
        Err(FactsError("the box is dead".into()))
    }
}

const REPAIR_FACTS: &str = "source/repair/";
const PART_FACTS: &str = "ship/part/";
const EARLY: Duration = Duration::from_millis(1);
const LOOK_EVERY: Duration = Duration::from_millis(700);
/// Turns in which facts find room, if there is any.
const TURNS_MAX: usize = 64;
