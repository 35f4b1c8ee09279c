//! Random histories of writing, reading, trimming and restarts, against a model.

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Whole { bytes: usize, changes: u64 },
    Large { pieces: usize },
    Torn { pieces: usize },
    Fact { key: u8, value: Option<u8> },
    Trim,
    Restart(End),
}

#[derive(Clone, Copy, Debug)]
enum End {
    Stop,
    Kill,
    PowerCut,
    LoseIndex,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let end =
        prop_oneof![Just(End::Stop), Just(End::Kill), Just(End::PowerCut), Just(End::LoseIndex)];
    let step = prop_oneof![
        6 => (0..3000_usize, 0..4_u64).prop_map(|(bytes, changes)| Step::Whole { bytes, changes }),
        2 => (0..3_usize).prop_map(|pieces| Step::Large { pieces }),
        1 => (0..2_usize).prop_map(|pieces| Step::Torn { pieces }),
        4 => (0..6_u8, any::<Option<u8>>()).prop_map(|(key, value)| Step::Fact { key, value }),
        1 => Just(Step::Trim),
        2 => end.prop_map(Step::Restart),
    ];
    proptest::collection::vec(step, 1..40)
}

/// What the journal must hold.
#[derive(Default)]
struct Model {
    /// Bytes, changes and commit of each batch that must be read, by its number.
    batches: Vec<(u64, Vec<u8>, u64, Option<Commit>)>,
    facts: BTreeMap<String, Vec<u8>>,
    next_batch: u64,
    position: u64,
    trimmed: u64,
}

impl Model {
    fn run(&mut self, piece: Piece, bytes: usize, changes: u64) -> Run {
        self.position += 10;
        let ends = matches!(piece, Piece::Whole | Piece::Last);
        let commit = if ends { commit(self.position) } else { None };
        Run { piece, bytes: noise(bytes), changes, commit, ..Run::new(piece) }
    }

    async fn append(&mut self, journal: &Journal, run: Run, kept: bool) {
        self.next_batch += 1;
        if kept {
            self.batches.push((self.next_batch, run.bytes.clone(), run.changes, run.commit));
        }
        journal.append(run).await.unwrap();
    }

    async fn check(&self, journal: &Journal) {
        let held: Vec<_> =
            self.batches.iter().filter(|(number, ..)| *number > self.trimmed).collect();
        if let Some((last, ..)) = self.batches.last() {
            durable_at(journal, *last).await;
        }
        let mut first = 1;
        let firsts: BTreeMap<u64, u64> = self
            .batches
            .iter()
            .map(|(number, _, changes, _)| {
                first += changes;
                (*number, first - changes)
            })
            .collect();
        let read = read_all(journal.reader(self.trimmed));
        assert_eq!(read.len(), held.len());
        for (batch, (number, bytes, changes, commit)) in read.iter().zip(held) {
            let found = (&batch.number, &batch.changes, &batch.commit, &batch.first.0);
            assert_eq!(found, (number, changes, commit, &firsts[number]));
            assert!(batch.bytes == *bytes);
        }
        assert_eq!(facts_of(journal), self.facts);
    }
}

async fn restart(site: &Site, journal: Arc<Journal>, end: End, model: &mut Model) -> Arc<Journal> {
    model.check(&journal).await;
    if matches!(end, End::Stop) {
        journal.stop().await;
        drop(journal);
    } else {
        // What nobody was promised: it may be there afterwards, or not.
        let run = model.run(Piece::First, 700, 1);
        journal.append(run).await.unwrap();
        kill(journal).await;
    }
    match end {
        End::Stop | End::Kill => {}
        End::PowerCut => site.cut_power(|unsynced| fastrand::u64(0..=unsynced)),
        End::LoseIndex => fs::remove_dir_all(site.path().join("index")).unwrap(),
    }
    assert_eq!(site.check().damage, [""; 0]);
    let journal = site.open();
    let durable = journal.session().await.unwrap();
    assert_eq!(durable.batch, model.batches.last().map_or(0, |(number, ..)| *number));
    let torn = lock(&journal.shared.published).torn.clone();
    let torn_end = torn.ranges().last().map_or(0, |(_, to)| *to);
    model.next_batch = durable.batch.max(torn_end);
    journal
}

async fn play(steps: Vec<Step>) {
    let site = Site::with(1 << 20, 6000);
    let mut journal = site.open();
    let mut model = Model::default();
    for step in steps {
        match step {
            Step::Whole { bytes, changes } => {
                let run = model.run(Piece::Whole, bytes, changes);
                model.append(&journal, run, true).await;
            }
            Step::Large { pieces } => {
                let middle = std::iter::repeat_n(Piece::Middle, pieces);
                for piece in std::iter::once(Piece::First).chain(middle).chain([Piece::Last]) {
                    let run = model.run(piece, 500, 2);
                    model.append(&journal, run, true).await;
                }
            }
            Step::Torn { pieces } => {
                let middle = std::iter::repeat_n(Piece::Middle, pieces);
                for piece in std::iter::once(Piece::First).chain(middle) {
                    let run = model.run(piece, 300, 2);
                    model.append(&journal, run, false).await;
                }
                journal.session().await.unwrap();
            }
            Step::Fact { key, value } => {
                let key = format!("room/{key}");
                let value = value.map(|value| vec![value; 40]);
                match &value {
                    Some(value) => model.facts.insert(key.clone(), value.clone()),
                    None => model.facts.remove(&key),
                };
                journal.record(FactBatch { changes: vec![(key, value)] }).await.unwrap();
            }
            Step::Trim => {
                model.check(&journal).await;
                model.trimmed = journal.durable().borrow().batch;
                journal.trim(model.trimmed);
            }
            Step::Restart(end) => journal = restart(&site, journal, end, &mut model).await,
        }
    }
    model.check(&journal).await;
    journal.stop().await;
    assert_eq!(site.check().damage, [""; 0]);
    assert_eq!(site.board.read().journal_damage, [""; 0]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_what_was_promised_is_read(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(play(steps));
    }
}
