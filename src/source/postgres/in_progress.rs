//! Transactions in progress: what the server sends of them before they end. Pure.
//!
//! From version 14 on a server that decodes more than its `logical_decoding_work_mem` sends what it has of a
//! transaction in *blocks*, instead of keeping it on its disk until the commit
//! (<https://www.postgresql.org/docs/current/protocol-logical-replication.html>,
//! <https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html>):
//!
//! ```text
//! 'S' xid u32 | first u8                   a block of this transaction begins
//! 'E'                                      it ends
//! 'A' xid u32 | subxid u32                 rolled back: the subtransaction, or all if both are the same
//! 'c' xid u32 | flags u8 | commit u64 | end u64 | at i64
//! ```
//! Within a block each message names its (sub)transaction behind its kind, but for Origin. Blocks of several
//! transactions, and whole transactions in the usual form, come between each other.
//!
//! **Invariants:** what a transaction gives at its commit is what the server would have sent then without
//! blocks: `B`, its messages in order without those of subtransactions that were rolled back, `C`. A
//! subtransaction takes its Relation messages with it: told of its end, the server forgets which tables it has
//! described in the whole transaction (`pgoutput_stream_abort` in
//! <https://github.com/postgres/postgres/blob/REL_15_STABLE/src/backend/replication/pgoutput/pgoutput.c>), and
//! all that follows in the log comes later. A message out of place is an error (I16).

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
};

use super::{aside::Laid, error::SourceError, message::unknown};

/// The transactions that have begun and not ended.
#[derive(Debug, Default)]
pub(crate) struct InProgress {
    /// Whose block has begun and not ended.
    block: Option<u32>,
    transactions: BTreeMap<u32, Transaction>,
    /// Bytes of all that is in memory.
    held_bytes: usize,
}

/// What there is of one transaction.
#[derive(Debug, Default)]
pub(crate) struct Transaction {
    /// What was laid aside of it, before what is held.
    pub(crate) laid: Option<Laid>,
    /// Framed messages: `u32 LE length of message | u32 LE xid | message` as outside of a block.
    pub(crate) held: Vec<u8>,
    rolled_back: BTreeSet<u32>,
    /// How it described tables last.
    described: BTreeMap<u32, Description>,
    /// Tables that others described since, and otherwise.
    overtaken: BTreeSet<u32>,
}

/// What became of a message.
#[derive(Debug)]
pub(crate) enum Taken {
    /// It is of no block: it counts now.
    Outside,
    /// It is kept, or says what is kept.
    Kept,
    /// A transaction was committed: it counts now.
    Committed(Committed),
    /// A transaction was rolled back.
    RolledBack(Transaction),
}

/// A transaction that was committed.
#[derive(Debug)]
pub(crate) struct Committed {
    /// Its BEGIN.
    pub(crate) begin: Vec<u8>,
    /// What happened in it.
    pub(crate) transaction: Transaction,
    /// Its COMMIT.
    pub(crate) commit: Vec<u8>,
    /// It describes a table otherwise than another transaction did behind it: what the server thinks we know of
    /// the table is not what we read last. Behind the commit a new session is to begin, with new descriptions.
    pub(crate) overtaken: bool,
}

/// A Relation message, as far as one is told from another.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Description(u64);

impl InProgress {
    /// Takes one message, if it is of a transaction in progress.
    pub(crate) fn take(&mut self, message: &[u8]) -> Result<Taken, SourceError> {
        let Some((&kind, body)) = message.split_first() else { return Ok(Taken::Outside) };
        match (kind, self.block) {
            (b'S', None) => self.begin_block(body)?,
            (b'E', Some(_)) if body.is_empty() => self.block = None,
            (b'c', None) => return self.commit(body),
            (b'A', None) => return self.roll_back(body),
            (b'O', Some(top)) => self.keep((top, top), (kind, body)),
            (b'R' | b'Y' | b'I' | b'U' | b'D' | b'T' | b'M', Some(top)) => {
                let cut = || unknown("a message of a transaction in progress", "cut short");
                let (xid, body) = body.split_first_chunk::<4>().ok_or_else(cut)?;
                self.keep((top, u32::from_be_bytes(*xid)), (kind, body));
            }
            (b'E', _) | (_, Some(_)) => {
                let found = format!("`{}` out of place", kind.escape_ascii());
                return Err(unknown("a message of a transaction in progress", &found));
            }
            (_, None) => {
                if kind == b'R' && !self.transactions.is_empty() {
                    self.overtake(&BTreeMap::from_iter(described(body)));
                }
                return Ok(Taken::Outside);
            }
        }
        Ok(Taken::Kept)
    }

    /// What is to be laid aside, lest too much is held.
    pub(crate) fn too_much(&mut self) -> Option<(u32, Vec<u8>)> {
        let largest = || self.transactions.iter().max_by_key(|(_, one)| one.held.len());
        let full = |xid: &u32| self.transactions[xid].held.len() >= HELD_BYTES_MAX;
        let xid = match self.block.filter(full) {
            Some(xid) => xid,
            None if self.held_bytes > HELD_BYTES_MAX_ALL => *largest()?.0,
            None => return None,
        };
        let held = std::mem::take(&mut self.transactions.get_mut(&xid)?.held);
        self.held_bytes -= held.len();
        Some((xid, held))
    }

    /// What was laid aside of a transaction so far.
    pub(crate) fn laid(&mut self, xid: u32) -> Option<&mut Option<Laid>> {
        self.transactions.get_mut(&xid).map(|one| &mut one.laid)
    }

    /// Bytes that are held in memory.
    pub(crate) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    fn begin_block(&mut self, body: &[u8]) -> Result<(), SourceError> {
        let wrong = |found| unknown("the beginning of a block", found);
        let (xid, first) = body.split_first_chunk::<4>().ok_or_else(|| wrong("cut short"))?;
        let xid = u32::from_be_bytes(*xid);
        match (first, self.transactions.contains_key(&xid)) {
            ([1], false) => drop(self.transactions.insert(xid, Transaction::default())),
            ([0], true) => {}
            ([0 | 1], _) => return Err(wrong("not the first, or not the next one")),
            _ => return Err(wrong("cut short or too long")),
        }
        self.block = Some(xid);
        Ok(())
    }

    fn keep(&mut self, (top, xid): (u32, u32), (kind, body): (u8, &[u8])) {
        let one = self.transactions.get_mut(&top).expect("a block is of a transaction");
        let length = u32::try_from(body.len() + 1).expect("PostgreSQL's messages are below 2 GiB");
        if body.len() > HELD_BYTES_MAX {
            one.held.reserve_exact(body.len() + HEAD_BYTES + 1);
        }
        if let (b'R', Some((id, description))) = (kind, described(body)) {
            one.described.insert(id, description);
            one.overtaken.remove(&id);
        }
        let before = one.held.len();
        one.held.extend_from_slice(&length.to_le_bytes());
        one.held.extend_from_slice(&xid.to_le_bytes());
        one.held.push(kind);
        one.held.extend_from_slice(body);
        self.held_bytes += one.held.len() - before;
    }

    fn roll_back(&mut self, body: &[u8]) -> Result<Taken, SourceError> {
        let wrong = |found| unknown("the end of a transaction in progress", found);
        let read = || Some((number(body)?, number(body.get(4..)?)?));
        let (top, xid) =
            read().filter(|_| body.len() == 8).ok_or_else(|| wrong("cut short or too long"))?;
        if top == xid {
            return self.remove(top).map(Taken::RolledBack).ok_or_else(|| wrong("not begun"));
        }
        let one = self.transactions.get_mut(&top).ok_or_else(|| wrong("not begun"))?;
        one.rolled_back.insert(xid);
        Ok(Taken::Kept)
    }

    fn commit(&mut self, body: &[u8]) -> Result<Taken, SourceError> {
        let wrong = |found| unknown("the commit of a transaction in progress", found);
        let (xid, rest) = body.split_first_chunk::<4>().ok_or_else(|| wrong("cut short"))?;
        let &[_flags, ref place @ ..] =
            <&[u8; 25]>::try_from(rest).map_err(|_| wrong("cut short or too long"))?;
        let transaction =
            self.remove(u32::from_be_bytes(*xid)).ok_or_else(|| wrong("not begun"))?;
        self.overtake(&transaction.described);
        let (begins, at) = (&place[..8], &place[16..]);
        let begin = [b"B", begins, at, xid].concat();
        let (commit, overtaken) = ([b"C", rest].concat(), !transaction.overtaken.is_empty());
        Ok(Taken::Committed(Committed { begin, transaction, commit, overtaken }))
    }

    /// What is described so counts before what the others have.
    fn overtake(&mut self, described: &BTreeMap<u32, Description>) {
        for one in self.transactions.values_mut() {
            let own = |(id, description): (&u32, &Description)| {
                one.described.get(id).filter(|own| *own != description).map(|_| *id)
            };
            let overtaken: Vec<u32> = described.iter().filter_map(own).collect();
            one.overtaken.extend(overtaken);
        }
    }

    fn remove(&mut self, xid: u32) -> Option<Transaction> {
        let one = self.transactions.remove(&xid)?;
        self.held_bytes -= one.held.len();
        Some(one)
    }
}

impl Transaction {
    /// The first message in `framed` that counts, and how many bytes it and those before it take.
    /// `None` for the message: none of those that are there as a whole does.
    pub(crate) fn next<'a>(&self, framed: &'a [u8]) -> (Option<&'a [u8]>, usize) {
        let mut passed = 0;
        while let Some((xid, message)) = first(&framed[passed..]) {
            passed += HEAD_BYTES + message.len();
            if !self.rolled_back.contains(&xid) {
                return (Some(message), passed);
            }
        }
        (None, passed)
    }
}

/// The first message, if it is there as a whole.
fn first(framed: &[u8]) -> Option<(u32, &[u8])> {
    let (length, rest) = framed.split_first_chunk::<4>()?;
    let (xid, rest) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    Some((u32::from_le_bytes(*xid), rest.get(..length)?))
}

/// How many bytes the first message takes, if its head is there.
pub(crate) fn whole_bytes(framed: &[u8]) -> usize {
    let length = framed.first_chunk::<4>().map_or(0, |bytes| u32::from_le_bytes(*bytes));
    usize::try_from(length).unwrap_or(usize::MAX).saturating_add(HEAD_BYTES)
}

/// Which table a Relation message describes, and how.
fn described(body: &[u8]) -> Option<(u32, Description)> {
    let mut hasher = DefaultHasher::new();
    body.hash(&mut hasher);
    Some((number(body)?, Description(hasher.finish())))
}

fn number(body: &[u8]) -> Option<u32> {
    body.first_chunk::<4>().map(|bytes| u32::from_be_bytes(*bytes))
}

const HEAD_BYTES: usize = 8;
/// Of one transaction no more is held in memory, but for one message.
const HELD_BYTES_MAX: usize = 1 << 20;
/// Of all together no more is.
const HELD_BYTES_MAX_ALL: usize = 8 << 20;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn start(xid: u32, first: u8) -> Vec<u8> {
        [&b"S"[..], &xid.to_be_bytes(), &[first]].concat()
    }

    fn stop() -> Vec<u8> {
        b"E".to_vec()
    }

    /// In a block.
    fn of(xid: u32, message: &[u8]) -> Vec<u8> {
        [&message[..1], &xid.to_be_bytes(), &message[1..]].concat()
    }

    fn commit(xid: u32, begins: u64) -> Vec<u8> {
        let numbers = [begins, begins + 1, 9].map(u64::to_be_bytes).concat();
        [&b"c"[..], &xid.to_be_bytes(), b"\0", &numbers].concat()
    }

    fn abort(top: u32, xid: u32) -> Vec<u8> {
        [&b"A"[..], &top.to_be_bytes(), &xid.to_be_bytes()].concat()
    }

    fn row(id: u32, what: &str) -> Vec<u8> {
        [&b"I"[..], &id.to_be_bytes(), what.as_bytes()].concat()
    }

    fn relation(id: u32, what: &str) -> Vec<u8> {
        [&b"R"[..], &id.to_be_bytes(), what.as_bytes()].concat()
    }

    fn whole(xid: u32, begins: u64, messages: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let [begins, end, at] = [begins, begins + 1, 9].map(u64::to_be_bytes);
        let begin = [&b"B"[..], &begins, &at, &xid.to_be_bytes()].concat();
        let commit = [&b"C\0"[..], &begins, &end, &at].concat();
        [&[begin], messages, &[commit]].concat()
    }

    /// What the batcher is given.
    fn given(in_progress: &mut InProgress, sent: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, SourceError> {
        let mut given = vec![];
        for message in sent {
            match in_progress.take(message)? {
                Taken::Outside => given.push(message.clone()),
                Taken::Kept | Taken::RolledBack(_) => {}
                Taken::Committed(Committed { begin, transaction, commit, .. }) => {
                    given.push(begin);
                    let mut rest = &transaction.held[..];
                    while let (Some(message), passed) = transaction.next(rest) {
                        given.push(message.to_vec());
                        rest = &rest[passed..];
                    }
                    given.push(commit);
                }
            }
        }
        Ok(given)
    }

    fn all_given(sent: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut in_progress = InProgress::default();
        let given = given(&mut in_progress, sent).unwrap();
        assert_eq!(in_progress.held_bytes(), 0);
        given
    }

    #[test]
    fn blocks_of_several_transactions_count_at_their_commits() {
        let outside = whole(9, 10, &[row(1, "outside")]);
        let mut sent = vec![start(7, 1), of(7, &relation(1, "t")), of(7, &row(1, "a")), stop()];
        sent.extend(outside.clone());
        sent.extend([start(8, 1), of(8, &row(2, "x")), stop()]);
        sent.extend([start(7, 0), of(7, &row(1, "b")), stop(), commit(8, 20), commit(7, 30)]);
        let expected = [
            outside,
            whole(8, 20, &[row(2, "x")]),
            whole(7, 30, &[relation(1, "t"), row(1, "a"), row(1, "b")]),
        ];
        assert_eq!(all_given(&sent), expected.concat());
    }

    #[test]
    fn of_a_subtransaction_that_is_rolled_back_nothing_comes() {
        let sent = [
            start(7, 1),
            of(7, &relation(1, "t")),
            of(7, &row(1, "a")),
            of(8, &relation(2, "u")),
            of(8, &row(2, "gone")),
            of(9, &row(1, "stays")),
            stop(),
            abort(7, 8),
            start(7, 0),
            of(7, &relation(2, "u")),
            of(7, &row(2, "b")),
            stop(),
            commit(7, 30),
        ];
        let stays = [relation(1, "t"), row(1, "a"), row(1, "stays"), relation(2, "u"), row(2, "b")];
        assert_eq!(all_given(&sent), whole(7, 30, &stays));
    }

    #[test]
    fn a_transaction_that_is_rolled_back_leaves_no_trace() {
        let rolled_back = [start(7, 1), of(8, &row(1, "a")), stop(), abort(7, 8), abort(7, 7)];
        let again = [start(7, 1), of(7, &row(1, "b")), stop(), commit(7, 30)];
        let sent = [&rolled_back[..], &again].concat();
        assert_eq!(all_given(&sent), whole(7, 30, &[row(1, "b")]));
    }

    #[test]
    fn origins_have_no_number_and_logical_messages_have_one() {
        let (origin, logical) = (b"O\0\0\0\0\0\0\0\x01there\0".to_vec(), b"M\x01rest".to_vec());
        let sent = [start(7, 1), origin.clone(), of(8, &logical), stop(), commit(7, 30)];
        assert_eq!(all_given(&sent), whole(7, 30, &[origin, logical]));
    }

    #[test]
    fn messages_out_of_place_stop_the_stream_and_are_named() {
        let block = [start(7, 1), of(7, &row(1, "a"))];
        let cases: &[(&[Vec<u8>], &str)] = &[
            (&[stop()], "`E` out of place"),
            (&[start(7, 0)], "not the first"),
            (&[commit(7, 30)], "not begun"),
            (&[abort(7, 7)], "not begun"),
            (&[abort(7, 8)], "not begun"),
            (&[start(7, 2)], "cut short or too long"),
            (&[start(7, 1)[..3].to_vec()], "cut short"),
            (&[block[0].clone(), start(8, 1)], "`S` out of place"),
            (&[block[0].clone(), commit(7, 30)], "`c` out of place"),
            (&[block[0].clone(), abort(7, 7)], "`A` out of place"),
            (&[block[0].clone(), b"B".to_vec()], "`B` out of place"),
            (&[block[0].clone(), b"I\0\0".to_vec()], "cut short"),
            (&[block[0].clone(), b"Ex".to_vec()], "`E` out of place"),
            (&[block[0].clone(), stop(), start(7, 1)], "not the first"),
            (&[block[0].clone(), stop(), commit(7, 30)[..20].to_vec()], "cut short or too long"),
            (&[block[0].clone(), stop(), [abort(7, 7), vec![0; 16]].concat()], "too long"),
        ];
        for (sent, said) in cases {
            let error = given(&mut InProgress::default(), sent).unwrap_err().to_string();
            assert!(error.contains(said), "{sent:?}: {error}");
        }
    }

    #[test]
    fn what_is_too_much_is_given_out_oldest_first() {
        let mut in_progress = InProgress::default();
        let large = "x".repeat(HELD_BYTES_MAX / 4);
        given(&mut in_progress, &[start(7, 1)]).unwrap();
        let mut out = vec![];
        for _ in 0..9 {
            given(&mut in_progress, &[of(7, &row(1, &large))]).unwrap();
            if let Some((xid, held)) = in_progress.too_much() {
                assert_eq!((xid, in_progress.held_bytes()), (7, 0));
                out.extend(held);
            }
        }
        assert!(in_progress.held_bytes() > 0 && in_progress.held_bytes() < HELD_BYTES_MAX);
        given(&mut in_progress, &[stop()]).unwrap();
        let Taken::Committed(Committed { transaction, .. }) =
            in_progress.take(&commit(7, 30)).unwrap()
        else {
            panic!("it was committed");
        };
        out.extend_from_slice(&transaction.held);
        let (mut rest, mut count) = (&out[..], 0);
        while let (Some(message), passed) = transaction.next(rest) {
            assert_eq!((message.len(), passed), (large.len() + 5, whole_bytes(rest)));
            (rest, count) = (&rest[passed..], count + 1);
        }
        assert_eq!((rest.len(), count), (0, 9));
        // Of many small ones together the largest.
        for xid in 100..200 {
            let some = "x".repeat(100_000 + usize::try_from(xid).unwrap());
            given(&mut in_progress, &[start(xid, 1), of(xid, &row(1, &some)), stop()]).unwrap();
            let largest = in_progress.too_much();
            assert_eq!(largest.map(|(xid, _)| xid), (xid >= 183).then_some(xid));
        }
    }

    #[test]
    fn a_table_described_otherwise_since_by_another_is_said_at_the_commit() {
        let overtaken = |between: &[Vec<u8>], after: &[Vec<u8>]| {
            let block = [start(7, 1), of(7, &relation(1, "old")), of(7, &row(1, "a")), stop()];
            let mut in_progress = InProgress::default();
            given(&mut in_progress, &[&block, between, after].concat()).unwrap();
            match in_progress.take(&commit(7, 30)).unwrap() {
                Taken::Committed(committed) => committed.overtaken,
                other => panic!("{other:?}"),
            }
        };
        let other =
            [start(8, 1), of(8, &relation(1, "new")), of(8, &row(1, "a")), stop(), commit(8, 20)];
        assert!(!overtaken(&[], &[]));
        assert!(!overtaken(&[relation(1, "old"), relation(2, "new")], &[]));
        assert!(overtaken(&[relation(1, "new")], &[]));
        assert!(overtaken(&other, &[]));
        assert!(!overtaken(&other[..4], &[]), "it is not committed");
        let again = [start(7, 0), of(7, &relation(1, "new")), stop()];
        assert!(!overtaken(&[relation(1, "new")], &again));
    }

    proptest! {
        /// Whatever comes between: each transaction gives what is its own, in order.
        #[test]
        fn any_interleaving_gives_each_its_own(
            steps in prop::collection::vec((0u32..4, 0u32..3, 0u8..8), 1..80),
        ) {
            let (mut sent, mut expected) = (vec![], vec![]);
            let mut model: BTreeMap<u32, Vec<(u32, Vec<u8>)>> = BTreeMap::new();
            for (number, (one, sub, what)) in steps.into_iter().enumerate() {
                let (top, begins) = (100 + one * 10, number as u64 * 10 + 10);
                match (what, model.contains_key(&top)) {
                    (0, true) => {
                        let messages = model.remove(&top).unwrap();
                        let messages: Vec<_> = messages.into_iter().map(|(_, m)| m).collect();
                        sent.push(commit(top, begins));
                        expected.extend(whole(top, begins, &messages));
                    }
                    (1, true) if sub == 0 => {
                        model.remove(&top);
                        sent.push(abort(top, top));
                    }
                    (1, true) => {
                        // A number is not used again: what it named before and later is the same to the model.
                        let gone = top + sub;
                        model.get_mut(&top).unwrap().retain(|(xid, _)| *xid != gone);
                        sent.push(abort(top, gone));
                        let all = model.remove(&top).unwrap();
                        let all: Vec<_> = all.into_iter().map(|(_, message)| message).collect();
                        sent.push(commit(top, begins));
                        expected.extend(whole(top, begins, &all));
                    }
                    (2, _) => {
                        let outside = whole(1, begins, &[row(3, "outside")]);
                        expected.extend(outside.clone());
                        sent.extend(outside);
                    }
                    (_, known) => {
                        let message = row(sub, &number.to_string());
                        sent.push(start(top, u8::from(!known)));
                        sent.push(of(top + sub, &message));
                        sent.push(stop());
                        model.entry(top).or_default().push((top + sub, message));
                    }
                }
            }
            prop_assert_eq!(given(&mut InProgress::default(), &sent).unwrap(), expected);
        }

        #[test]
        fn no_bytes_make_the_reader_panic(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..20),
            kinds in prop::collection::vec(prop::sample::select(b"SEcAIRMO".to_vec()), 20),
        ) {
            let mut in_progress = InProgress::default();
            for (message, kind) in messages.into_iter().zip(kinds) {
                drop(in_progress.take(&[&[kind], &message[..]].concat()));
            }
        }
    }
}
