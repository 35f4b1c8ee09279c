//! Judges every step by the invariants that the models can see. Each check is a function that begins with the
//! invariant's number and has its sentence.
//!
//! What it knows it knows from the models, not from the road: the database's own log by timeline, what the
//! disk was promised to hold, what lies in the bucket. Of the road it is told only what the road itself has
//! published: the durable watermark, and which facts it was answered to be recorded.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::{sync::watch, time::Instant};

use super::{
    bucket::{Ask, Who},
    chain::Chain,
    chronicle::Chronicle,
    lock,
    server::ModelServer,
};
use crate::{
    config::Release,
    facts::FactBatch,
    journal::{Durable, gap::GAP_FACTS},
    ledger::PublicKey,
    ship::{
        Request, ShipError, StoredPart,
        upload::{Begun, PartFact, part_facts, upload_fact},
    },
    units::{Point, Position},
};

/// The judge. Clones are one.
#[derive(Clone)]
pub(crate) struct Oracle {
    state: Arc<Mutex<State>>,
    chronicle: Chronicle,
    server: ModelServer,
}

struct State {
    boxes: Vec<View>,
    chain: Option<Chain>,
    /// What was sent under each key, by its checksum.
    contents: BTreeMap<(Option<Who>, String), u64>,
    /// Failures of requests by box and key, in the second that began then.
    failures: BTreeMap<(Who, String), (Instant, u32)>,
}

/// What is known of one box.
#[derive(Default)]
pub(crate) struct View {
    pub(crate) appliance: String,
    pub(crate) slot: String,
    release: Option<Release>,
    /// Where its first slot began, and on which timeline.
    pub(crate) began: (Position, usize),
    /// Where it went on behind gaps, and on which timelines.
    pub(crate) passes: BTreeMap<Position, usize>,
    /// Where its slot begins now.
    consistent: Position,
    durable: Option<watch::Receiver<Durable>>,
    /// The greatest watermark that it published.
    published: Durable,
    /// Watermarks by their batch.
    batches: BTreeMap<u64, Point>,
    /// Facts that it was told are durable.
    promised: BTreeMap<String, Vec<u8>>,
    /// Facts on their way, in order.
    unanswered: VecDeque<(u64, FactBatch)>,
    tickets: u64,
}

impl View {
    /// What it still has to say, or to read: a gap, or tables behind one.
    pub(crate) fn owes(&self) -> Option<&str> {
        let owed = |prefix: &str| {
            let facts = self.promised.range(prefix.to_owned()..);
            facts.map(|(fact, _)| fact.as_str()).next().filter(|fact| fact.starts_with(prefix))
        };
        owed(GAP_FACTS).or(owed("source/repair/"))
    }

    /// What the facts that it was told are durable say of an object's upload: its id and its parts.
    fn recorded(&self, key: &str) -> (Option<String>, Vec<StoredPart>) {
        if key.contains("/_ledger/") {
            let pending: Value = read(self.promised.get("ledger/pending")).unwrap_or_default();
            let stage = &pending["stage"];
            let known = stage["sent"]["upload"].as_str().or(stage["open"]["upload"].as_str());
            let part = StoredPart::deserialize(&stage["sent"]["part"]).ok();
            return (known.map(Into::into), part.into_iter().collect());
        }
        let begun: Option<Begun> = read(self.promised.get(&upload_fact(key)));
        let Some(Begun { upload, .. }) = begun else { return (None, vec![]) };
        let parts = self.promised.range(part_facts(key)..);
        let parts = parts.take_while(|(fact, _)| fact.starts_with(&part_facts(key)));
        let parts = parts.filter_map(|(_, value)| read::<PartFact>(Some(value)));
        let parts = parts.filter(|fact| fact.upload == upload).map(|fact| fact.part);
        let parts = parts.collect();
        (Some(upload), parts)
    }
}

fn read<T: DeserializeOwned>(value: Option<&Vec<u8>>) -> Option<T> {
    serde_json::from_slice(value?).ok()
}

impl Oracle {
    pub(crate) fn new(chronicle: Chronicle, server: ModelServer) -> Self {
        let state = State {
            boxes: vec![],
            chain: None,
            contents: BTreeMap::new(),
            failures: BTreeMap::new(),
        };
        Self { state: Arc::new(Mutex::new(state)), chronicle, server }
    }

    /// A box is set up.
    pub(crate) fn admit(&self, appliance: &str, slot: String, release: Release) {
        let view =
            View { appliance: appliance.into(), slot, release: Some(release), ..View::default() };
        lock(&self.state).boxes.push(view);
    }

    /// The public keys of all boxes are known: chains can be judged.
    pub(crate) fn trust(&self, keys: &[PublicKey]) {
        lock(&self.state).chain = Some(Chain::new(keys));
    }

    pub(crate) fn note(&self, line: fmt::Arguments<'_>) {
        self.chronicle.note(line);
    }

    /// A box has made its slot.
    pub(crate) fn slot_made(&self, who: Who, at: Position) {
        let timeline = self.server.with(|server| server.timelines().len() - 1);
        let view = &mut lock(&self.state).boxes[who];
        (view.consistent, view.began) = (at, (at, timeline));
    }

    /// A box goes on behind a gap that ends at `to`.
    pub(crate) fn goes_on(&self, who: Who, to: Position) {
        let timeline = self.server.with(|server| server.timelines().len() - 1);
        let view = &mut lock(&self.state).boxes[who];
        view.consistent = to;
        view.passes.insert(to, timeline);
        self.note(format_args!("{} goes on behind a gap at {to}", view.appliance));
    }

    // ---- a life begins ----

    /// A box has recovered its journal.
    pub(crate) fn recovered(
        &self,
        who: Who,
        durable: watch::Receiver<Durable>,
        facts: Vec<(String, Vec<u8>)>,
    ) {
        let state = &mut *lock(&self.state);
        let view = &mut state.boxes[who];
        let now = *durable.borrow();
        view.durable = Some(durable);
        self.i6_what_was_durable_is_there(view, now);
        self.promised_facts_are_there(view, facts);
        view.published = now;
    }

    /// I6, I7: what was published as durable is there after any crash.
    fn i6_what_was_durable_is_there(&self, view: &View, now: Durable) {
        let before = view.published;
        if now.batch < before.batch || now.point.sequence < before.point.sequence {
            let what = format!("{}: {before:?} was durable, {now:?} is there", view.appliance);
            self.chronicle.violated("I6", what);
        }
    }

    /// A fact that was answered to be recorded is there after any crash; those on their way are there in
    /// the order in which they came, or not.
    fn promised_facts_are_there(&self, view: &mut View, facts: Vec<(String, Vec<u8>)>) {
        let found: BTreeMap<String, Vec<u8>> = facts.into_iter().collect();
        let mut expected = std::mem::take(&mut view.promised);
        let mut waiting = std::mem::take(&mut view.unanswered).into_iter();
        while expected != found {
            let Some((_, batch)) = waiting.next() else {
                let differs = |key: &&String| expected.get(*key) != found.get(*key);
                let key = expected.keys().chain(found.keys()).find(differs);
                let what = format!("{}: {key:?} is not as it was recorded", view.appliance);
                self.chronicle.violated("I2 facts", what);
                break;
            };
            apply(&mut expected, &batch);
        }
        view.promised = found;
    }

    // ---- a life goes on ----

    /// Facts are on their way. Their ticket.
    pub(crate) fn recording(&self, who: Who, batch: FactBatch) -> u64 {
        let view = &mut lock(&self.state).boxes[who];
        view.tickets += 1;
        view.unanswered.push_back((view.tickets, batch));
        view.tickets
    }

    /// They were answered to be durable.
    pub(crate) fn recorded(&self, who: Who, ticket: u64) {
        let view = &mut lock(&self.state).boxes[who];
        while let Some((number, batch)) = view.unanswered.pop_front() {
            if number > ticket {
                view.unanswered.push_front((number, batch));
                return;
            }
            apply(&mut view.promised, &batch);
        }
    }

    /// The journal has moved on.
    pub(crate) fn turned(&self, who: Who) {
        let view = &mut lock(&self.state).boxes[who];
        let Some(now) = view.durable.as_ref().map(|durable| *durable.borrow()) else { return };
        let before = view.published;
        if now == before {
            return;
        }
        self.i3_the_watermark_grows(view, now);
        view.published = now;
        view.batches.insert(now.batch, now.point);
        self.note(format_args!("{}: durable {} {}", view.appliance, now.batch, now.point.position));
    }

    /// I3: a watermark never goes back.
    fn i3_the_watermark_grows(&self, view: &View, now: Durable) {
        let (a, b) = (view.published, now);
        if b.batch < a.batch
            || b.point.sequence < a.point.sequence
            || b.point.position < a.point.position
        {
            self.chronicle.violated("I3", format!("{}: {a:?}, then {b:?}", view.appliance));
        }
    }

    /// A status update has come. `before`: the last position confirmed in the session.
    pub(crate) fn confirmed(&self, slot: &str, position: Position, before: Position) {
        let state = lock(&self.state);
        let Some(who) = state.boxes.iter().position(|view| view.slot == slot) else { return };
        if position != before {
            self.note(format_args!("{} confirms {position}", state.boxes[who].appliance));
        }
        self.i3_confirmed_grows(position, before);
        self.i1_confirmed_is_safe(&state, who, position);
    }

    /// I3: within a session the confirmed position never goes back.
    fn i3_confirmed_grows(&self, position: Position, before: Position) {
        if position < before {
            self.chronicle.violated("I3", format!("confirmed {before}, then {position}"));
        }
    }

    /// I1, I4, I5: every transaction of ours that begins before the confirmed position is, as a whole, where
    /// the release rule wants it.
    fn i1_confirmed_is_safe(&self, state: &State, who: Who, position: Position) {
        let view = &state.boxes[who];
        let safe = match view.release {
            Some(Release::Lake) => state.chain.as_ref().map(|chain| chain.reached_by(who)),
            _ => view.durable.as_ref().map(|durable| durable.borrow().point.position),
        };
        let safe = safe.unwrap_or_default();
        let last = self.server.with(|server| {
            let changes = &server.timeline().changes;
            let before = changes.partition_point(|change| change.begins < position);
            changes.get(before.checked_sub(1)?).cloned()
        });
        if let Some(last) =
            last.filter(|last| last.begins >= view.consistent && last.position > safe)
        {
            let what = format!(
                "{} confirmed {position}, the transaction up to {} is safe only up to {safe}",
                view.appliance, last.position
            );
            self.chronicle.violated("I1", what);
        }
    }

    /// I12: a table that is read in one part has nothing to be read again.
    pub(crate) fn i12_one_part_is_enough(&self, what: &str) {
        self.chronicle.violated("I12", what);
    }

    /// I8: what is trimmed is in the ledger.
    pub(crate) fn i8_trimmed_is_proven(&self, who: Who, through: u64) {
        let state = lock(&self.state);
        let view = &state.boxes[who];
        let Some((_, point)) = view.batches.range(..=through).next_back() else { return };
        let proven = state.chain.as_ref().map(|chain| chain.reached_by(who)).unwrap_or_default();
        if point.position > proven {
            let what = format!(
                "{} trims batch {through}, at {}; the ledger is at {proven}",
                view.appliance, point.position
            );
            self.chronicle.violated("I8", what);
        }
    }

    /// I10: nothing that the models do to a disk is damage.
    pub(crate) fn i10_no_damage_is_found(&self, who: Who, damage: &[String]) {
        if let Some(first) = damage.first() {
            let what = format!("{}: {first}", lock(&self.state).boxes[who].appliance);
            self.chronicle.violated("I10", what);
        }
    }

    /// I7: what a fact names is on the disk, unless it rotted there.
    pub(crate) fn i7_what_a_fact_names_is_there(&self, name: &str) {
        self.chronicle.violated("I7", format!("{name} is not"));
    }

    /// I9: recovering twice finds what recovering once found.
    pub(crate) fn i9_recovery_is_idempotent(&self, one: (Durable, usize), two: (Durable, usize)) {
        if one != two {
            self.chronicle.violated("I9", format!("{one:?}, then {two:?}"));
        }
    }

    /// I17: a position or sequence that the road itself finds out of order was given twice, or left out.
    pub(crate) fn i17_the_road_finds_order(&self, what: &str) {
        self.chronicle.violated("I17", what);
    }

    /// A gap is said only where the world has made one.
    pub(crate) fn a_gap_is_real(&self, allowed: bool, what: &str) {
        if !allowed {
            self.chronicle.violated("GAP", format!("there is none: {what}"));
        }
    }

    // ---- the lake ----

    /// I18: what is sent under a key is always the same bytes; where the key does not name their hash, by one
    /// box: of another's an entry tells.
    pub(crate) fn i18_a_key_has_one_content(&self, who: Who, key: &str, body: &[u8]) {
        let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, body);
        let named = key.contains("/_ledger/") || key.contains("/_schema/");
        let whose = named.then_some(who);
        let known = *lock(&self.state).contents.entry((whose, key.into())).or_insert(sum);
        if known != sum {
            self.chronicle.violated("I18", format!("{key} was sent with other bytes before"));
        }
    }

    /// A request is about to be sent.
    pub(crate) fn sends(&self, who: Who, ask: &Ask) {
        match ask {
            Ask::Part { key, upload, .. } => self.i21_the_upload_is_recorded(who, key, upload),
            Ask::Complete { key, upload, parts, .. } => {
                self.i21_the_upload_is_recorded(who, key, upload);
                self.i20_the_parts_are_recorded(who, key, parts);
            }
            Ask::Put { .. } | Ask::Create { .. } => {}
            Ask::Abort { .. } | Ask::Parts { .. } | Ask::Uploads { .. } => {}
        }
    }

    /// I21: an upload's id is durable before anything is sent to it.
    fn i21_the_upload_is_recorded(&self, who: Who, key: &str, upload: &str) {
        let (known, _) = lock(&self.state).boxes[who].recorded(key);
        if known.as_deref() != Some(upload) {
            self.chronicle.violated("I21", format!("{upload} of {key} is used and not recorded"));
        }
    }

    /// I20: every part is durable, as S3 acknowledged it, before Complete names it.
    fn i20_the_parts_are_recorded(&self, who: Who, key: &str, parts: &[StoredPart]) {
        let (_, known) = lock(&self.state).boxes[who].recorded(key);
        if known != parts {
            self.chronicle.violated("I20", format!("{parts:?} of {key}, {known:?} is recorded"));
        }
    }

    /// I20: Complete is sent only for all parts, with the right length and sums.
    pub(crate) fn i20_complete_has_all_parts(&self, key: &str, what: &str) {
        self.chronicle.violated("I20", format!("{key}: {what}"));
    }

    /// An object is stored.
    pub(crate) fn landed(
        &self,
        bucket: &BTreeMap<String, Bytes>,
        who: Who,
        key: &str,
        body: &[u8],
    ) {
        let state = &mut *lock(&self.state);
        let (Some(chain), views) = (&mut state.chain, &state.boxes) else { return };
        if let Err((invariant, what)) = chain.landed(bucket, who, key, body, views, &self.server) {
            self.chronicle.violated(invariant, format!("{key}: {what}"));
        }
    }

    /// A request was answered, or is known not to be.
    pub(crate) fn answered<T>(
        &self,
        who: Who,
        request: Request,
        key: &str,
        good: bool,
        answer: &Result<T, ShipError>,
    ) {
        if let Err(error) = answer {
            self.note(format_args!("box {who}: {} {error}", request.name()));
        }
        if !good {
            self.i28_retries_are_spaced(who, key);
        }
    }

    /// I28: no request is tried again without a pause.
    fn i28_retries_are_spaced(&self, who: Who, key: &str) {
        let mut state = lock(&self.state);
        let now = Instant::now();
        let entry = state.failures.entry((who, key.into())).or_insert((now, 0));
        if now.duration_since(entry.0).as_secs() >= 1 {
            *entry = (now, 0);
        }
        entry.1 += 1;
        if entry.1 > FAILURES_PER_S_MAX {
            self.chronicle.violated("I28", format!("{key} failed {} times in a second", entry.1));
        }
    }

    /// Whether the chain holds every change of the timeline in force. Why not.
    pub(crate) fn complete(&self) -> Result<Who, String> {
        let state = lock(&self.state);
        let chain = state.chain.as_ref().ok_or("no chain")?;
        chain.complete(&state.boxes, &self.server)
    }

    /// The box that owns the chain.
    pub(crate) fn owner(&self) -> Option<Who> {
        lock(&self.state).chain.as_ref().and_then(Chain::owner)
    }
}

/// Applies facts.
pub(crate) fn apply(facts: &mut BTreeMap<String, Vec<u8>>, batch: &FactBatch) {
    for (key, value) in &batch.changes {
        match value {
            Some(value) => drop(facts.insert(key.clone(), value.clone())),
            None => drop(facts.remove(key)),
        }
    }
}

/// A request that fails is tried again after a tenth of a second at the earliest, with jitter below.
const FAILURES_PER_S_MAX: u32 = 40;
