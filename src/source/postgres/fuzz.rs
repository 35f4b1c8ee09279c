//! The doors of tests/fuzz to what a database server sends, and to the URL that names it.
//!
//! Each takes any bytes, and asserts more than that nothing panics: what it reads it writes again, or
//! reads again in another way, and both must agree.

use std::{cell::RefCell, os::fd::OwnedFd, os::unix::net::UnixStream};

use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use tokio::runtime::{Builder, Runtime};

use super::{
    super::{
        Cell, Change, Column, Decode, Event, Identity, Piece, RecordKind, Row, Run, Table, records,
    },
    batch::{Batcher, Sizes, Then},
    builtin, calendar, copy,
    in_progress::{Committed, InProgress, Taken},
    login,
    message::{self, TextRow},
    origin::parse_history,
    pattern::Patterns,
    pgoutput::PgDecoder,
    relation::Relation,
    statements::{Told, unread},
    tls::{self, Channel},
    types,
    url::Url,
    vocabulary::Vocabulary,
    wire::Wire,
};
use crate::{
    clock::{Clock, SystemClock},
    config::{Config, Secret},
    units::Position,
};

/// A run of records, as the journal keeps them: decoded, looked through, and cut into runs again.
pub fn pgoutput(bytes: &[u8]) {
    let mut decoder = PgDecoder::default();
    let mut vocabulary = Vocabulary::default();
    let mut batcher =
        Some(Batcher::new(Position::default(), Position::default(), Sizes::default()));
    let (mut in_progress, mut runs) = (InProgress::default(), vec![]);
    for record in records(bytes) {
        let Some((kind, payload)) = record else { break };
        let before = decoder.tables();
        let ahead = Decode::commit(&decoder, kind, payload);
        match decoder.decode(kind, payload) {
            Ok(Event::Commit(commit)) => assert_eq!(ahead, Some(commit), "a commit seen ahead"),
            Ok(event) => {
                assert_eq!(ahead, None, "no commit, seen ahead");
                look_at(&decoder, &mut vocabulary, event, payload);
            }
            Err(_) => {
                assert_eq!(ahead, None, "an error, seen ahead as a commit");
                assert!(decoder.tables() == before, "an error changes nothing");
            }
        }
        if kind == RecordKind::Message {
            vocabulary.is_news(payload);
            batcher =
                batcher.and_then(|batcher| sent(batcher, &mut in_progress, payload, &mut runs));
        }
    }
    runs.extend(batcher.and_then(|mut batcher| batcher.take(true)));
    runs.iter().for_each(check_run);
}

fn look_at(decoder: &PgDecoder, vocabulary: &mut Vocabulary, event: Event, payload: &[u8]) {
    match event {
        Event::Table(table) => {
            vocabulary.describe(
                table.id,
                table.columns.iter().map(|column| column.lake == types::lake_type(25, -1)),
            );
        }
        Event::Change(Change { table, new, old, .. }) => {
            let tables = decoder.tables();
            let table =
                tables.iter().find(|known| known.id == table).expect("a row of a known table");
            let old = old.map(|(_, row)| row);
            new.iter().chain(&old).for_each(|row| print_row(table, row, payload));
        }
        _ => {}
    }
}

fn print_row(table: &Table, row: &Row, payload: &[u8]) {
    assert_eq!(row.len(), table.columns.len());
    for (column, cell) in table.columns.iter().zip(row) {
        if let Ok(value) = types::value(column, cell, payload) {
            value.print(column.lake, &mut String::new());
        }
    }
}

/// [`pushed`], at the commit what comes of a transaction in progress.
fn sent(
    batcher: Batcher,
    in_progress: &mut InProgress,
    message: &[u8],
    runs: &mut Vec<Run>,
) -> Option<Batcher> {
    match in_progress.take(message).ok()? {
        Taken::Outside => pushed(batcher, message, runs),
        Taken::Kept | Taken::RolledBack(_) => Some(batcher),
        Taken::Committed(Committed { begin, transaction, commit, .. }) => {
            let mut batcher = pushed(batcher, &begin, runs)?;
            let mut rest = &transaction.held[..];
            while let (Some(message), passed) = transaction.next(rest) {
                rest = &rest[passed..];
                batcher = pushed(batcher, message, runs)?;
            }
            assert_eq!(transaction.next(rest), (None, rest.len()), "messages are kept whole");
            pushed(batcher, &commit, runs)
        }
    }
}

/// Gives the batcher back unless the session would end here.
fn pushed(mut batcher: Batcher, message: &[u8], runs: &mut Vec<Run>) -> Option<Batcher> {
    match batcher.push(message, SystemClock.now()).ok()? {
        Then::Nothing => {}
        Then::WentBack => return None,
        Then::Decide(relation, message) if relation.id % 8 == 7 => {
            assert!(message.first() == Some(&b'R'));
            batcher.exclude(relation.id);
        }
        Then::Decide(relation, message) => batcher.relation(&message, relation.id, None),
        Then::State(content) => {
            let all = Patterns::new(&["*".into()]).expect("a pattern");
            let inserts =
                Told::parse(&content).map_or_else(|| vec![unread()], |told| told.inserts(&all));
            batcher.statement(&inserts, &[]);
        }
    }
    runs.extend(std::iter::from_fn(|| batcher.take(false)));
    Some(batcher)
}

fn check_run(run: &Run) {
    let whole = matches!(run.piece, Piece::Whole | Piece::Last);
    assert_eq!(whole, run.commit.is_some(), "a run with its last piece has a commit");
    let mut changes = 0;
    for record in records(&run.bytes) {
        let (_, payload) = record.expect("a run holds records");
        changes += match payload {
            [b'I' | b'U' | b'D', ..] => 1,
            [b'T', a, b, c, d, ..] => u64::from(u32::from_be_bytes([*a, *b, *c, *d])),
            _ => 0,
        };
    }
    assert_eq!(run.changes, changes, "a run counts its changes");
}

/// `columns u8 | cut u16 | binary COPY`: cut anywhere it gives the same rows, and rows are what was sent.
pub fn copy(bytes: &[u8]) {
    let Some(([columns, cut @ ..], data)) = bytes.split_first_chunk::<3>() else { return };
    let cut = usize::from(u16::from_be_bytes(*cut)) % (data.len() + 1);
    let whole = framed(&[data]);
    let (before, after) = data.split_at(cut);
    assert_eq!(whole, framed(&[before, after]), "the same rows wherever it is cut");
    let Some(tuples) = whole else { return };
    let columns = vec![column(25, -1); usize::from(columns % 8)];
    let mut again = vec![];
    let read = PgDecoder::default().rows(&table(columns), &tuples, &mut |row| {
        again.extend(u16::try_from(row.len()).unwrap_or(u16::MAX).to_be_bytes());
        for cell in row {
            match cell {
                Cell::Binary(range) => {
                    again.extend(u32::try_from(range.len()).unwrap_or(u32::MAX).to_be_bytes());
                    again.extend(&tuples[range.clone()]);
                }
                _ => again.extend((-1i32).to_be_bytes()),
            }
        }
        Ok(())
    });
    // What begins as a message does has that many columns, and is taken for one.
    let is_of_many_columns = tuples.len() > usize::from(u16::from_be_bytes([b'd', 0])) * 4;
    assert!(read.is_err() || again == tuples || is_of_many_columns, "rows are what was sent");
}

fn framed(pieces: &[&[u8]]) -> Option<Vec<u8>> {
    let (mut framer, mut tuples, mut count) = (copy::CopyFramer::new(), vec![], 0);
    for piece in pieces {
        count += framer.push(piece, &mut tuples).ok()?;
    }
    (framer.finish().ok()? == count).then_some(tuples)
}

/// `type u8 | array u8 | modifier i32 | value`: its text reads back as the same value.
pub fn values(bytes: &[u8]) {
    let Some(([pick, array, modifier @ ..], value)) = bytes.split_first_chunk::<6>() else {
        return;
    };
    let (type_id, array_id) = builtin::ALL[usize::from(*pick) % builtin::ALL.len()];
    let type_id = if array % 2 == 1 { array_id } else { type_id };
    let column = column(type_id, i32::from_be_bytes(*modifier));
    for cell in [Cell::Binary(0..value.len()), Cell::Text(0..value.len())] {
        if let Some(text) = printed(&column, &cell, value) {
            let again = printed(&column, &Cell::Text(0..text.len()), text.as_bytes());
            assert_eq!(again.as_ref(), Some(&text), "{}", column.source_type);
        }
    }
    let Ok(text) = std::str::from_utf8(value) else { return };
    let mut again = String::new();
    if let Some((days, within)) = calendar::parse_timestamp(text) {
        calendar::print_timestamp(days, within, true, &mut again);
        assert_eq!(calendar::parse_timestamp(&again), Some((days, within)), "{text}");
    }
}

/// An input of [`values`]; `None` for a type that is not built in.
pub fn value(type_id: u32, modifier: i32, bytes: &[u8]) -> Option<Vec<u8>> {
    let place = |(one, array): &(u32, u32)| [*one, *array].contains(&type_id);
    let pick = builtin::ALL.iter().position(place)?;
    let array = u8::from(builtin::ALL[pick].0 != type_id);
    Some([&[u8::try_from(pick).ok()?, array], &modifier.to_be_bytes()[..], bytes].concat())
}

fn printed(column: &Column, cell: &Cell, bytes: &[u8]) -> Option<String> {
    let mut text = String::new();
    types::value(column, cell, bytes).ok()?.print(column.lake, &mut text);
    Some(text)
}

/// A column of a built-in type.
pub fn column(type_id: u32, type_modifier: i32) -> Column {
    Column {
        name: "c".into(),
        source_type: format!("type {type_id}"),
        type_id,
        type_modifier,
        lake: types::lake_type(type_id, type_modifier),
        identity: false,
        not_null: false,
        default: None,
        generated: None,
        number: None,
        before: None,
    }
}

/// A table of these columns.
pub fn table(columns: Vec<Column>) -> Table {
    let (schema, name) = ("public".into(), "t".into());
    let (key, types, identity) = (vec![], vec![], Identity::Default);
    Table { id: 1, schema, name, version: 0, columns, key, identity, types }
}

/// A definition as JSON, from the journal or the lake: it reads back, and rows are read by it.
pub fn definition(bytes: &[u8]) {
    let Ok(table) = serde_json::from_slice::<Table>(bytes) else { return };
    let json = serde_json::to_vec(&table).expect("a table is plain data");
    assert_eq!(serde_json::from_slice::<Table>(&json).ok().as_ref(), Some(&table));
    for column in &table.columns {
        for value in [&b"-12.50"[..], b"\0\x01\0\0\0\0\0\x02\0\x0c", b"2026-11-21 08:30:00+00"] {
            for cell in [Cell::Text(0..value.len()), Cell::Binary(0..value.len())] {
                print_row(&self::table(vec![column.clone()]), &vec![cell], value);
            }
        }
    }
    let mut decoder = PgDecoder::new([table]);
    decoder.decode(RecordKind::Definition, bytes).expect("the same definition again");
}

/// The body of a message that is no row, a row of text, a history, a relation, a certificate.
pub fn messages(bytes: &[u8]) {
    if let Ok(Some(head)) = message::head(bytes) {
        assert!((5..=5 + (1 << 30) + (64 << 10)).contains(&head.length));
    }
    let error = message::server_error(bytes);
    assert!(error.code.len() + error.message.len() + error.detail.len() <= 3 * bytes.len());
    drop(message::parameter(bytes));
    assert!(message::mechanisms(bytes).len() <= bytes.len());
    if let Ok(row) = TextRow::parse(bytes) {
        assert_eq!(data_row(&row), bytes, "a row is what was sent");
    }
    if let Ok(relation) = Relation::parse(bytes) {
        // What the stream goes by and what the journal's reader goes by.
        let read = PgDecoder::default().decode(RecordKind::Message, bytes);
        if let Ok(Event::Table(table)) = read {
            assert_eq!((table.id, &table.name), (relation.id, &relation.name));
            assert_eq!(table.columns.len(), relation.columns.len());
        }
    }
    tls::end_point(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        assert!(parse_history(text).len() <= text.lines().count());
        let lines: Vec<String> = text.lines().map(String::from).collect();
        if let Ok(patterns) = Patterns::new(&lines) {
            patterns.include("public", "orders");
        }
    }
}

fn data_row(row: &TextRow) -> Vec<u8> {
    let mut bytes = u16::try_from(row.0.len()).unwrap_or(u16::MAX).to_be_bytes().to_vec();
    for value in &row.0 {
        match value {
            Some(text) => {
                bytes.extend(u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
                bytes.extend(text.as_bytes());
            }
            None => bytes.extend((-1i32).to_be_bytes()),
        }
    }
    bytes
}

/// The server's first and last message of SCRAM, a zero byte between; `NONCE` stands for what we sent. No
/// server that lacks the password is believed.
pub fn scram(bytes: &[u8]) {
    let at = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let (first, last) = (&bytes[..at], bytes.get(at + 1..).unwrap_or_default());
    let mut scram = ScramSha256::new(b"pencil", ChannelBinding::unsupported());
    let sent = String::from_utf8_lossy(scram.message()).into_owned();
    let nonce = sent.rsplit_once("r=").map_or("", |(_, nonce)| nonce);
    let first = String::from_utf8_lossy(first).replace("NONCE", nonce);
    if scram.update(first.as_bytes()).is_ok() {
        assert!(scram.finish(last).is_err(), "a signature made without the password");
    }
}

/// `road u8 | what the server sends until it closes`: log-in, a query, COPY OUT or COPY BOTH.
pub fn wire(bytes: &[u8]) {
    let Some((road, sent)) = bytes.split_first() else { return };
    // More would not fit the socket's buffer, and nobody reads it there.
    if sent.len() > SENT_BYTES_MAX {
        return;
    }
    RUNTIME.with_borrow(|runtime| runtime.block_on(Box::pin(converse(*road, sent))));
}

async fn converse(road: u8, sent: &[u8]) {
    let Some(channel) = answering(sent) else { return };
    let mut wire = Wire::new(channel, "fuzz:1".into());
    match road % 5 {
        0 => {
            let url = Url::parse("postgresql://fuzz@localhost/fuzz").expect("a URL");
            let password = Secret::new(b"pencil".to_vec());
            let purpose = login::Purpose::Sql;
            if login::login(&mut wire, &url, Some(&password), purpose).await.is_ok() {
                drop(wire.query("fuzz", "SELECT 1").await);
            }
        }
        1 => drop(wire.query("fuzz", "SELECT 1").await),
        2 => {
            let Ok(gulp) = wire.copy_out("fuzz", "COPY").await else { return };
            // As a table is read, if what comes is of an odd length.
            let mut gulp = if sent.len() % 2 == 1 { gulp.framed() } else { gulp };
            while let Ok(Some(rows)) = wire.rows("fuzz", &mut gulp, 1 << 20).await {
                assert!(rows.bytes.len() <= sent.len());
            }
        }
        3 => {
            let Ok(mut gulp) = wire.open_cursor("fuzz", "SELECT").await else { return };
            gulp.sip(64 << 10);
            while let Ok(Some(rows)) = wire.rows("fuzz", &mut gulp, 1 << 20).await {
                assert!(rows.bytes.len() <= sent.len());
            }
        }
        _ => {
            if wire.copy_both("fuzz", "START_REPLICATION").await.is_ok() {
                while wire.next(std::time::Duration::from_secs(1), "fuzz").await.is_ok() {}
            }
        }
    }
    assert!(wire.version() < 100_000_000);
}

/// A connection whose server has sent this and closed its side.
fn answering(sent: &[u8]) -> Option<Channel> {
    use std::io::Write;
    let (ours, mut server) = UnixStream::pair().ok()?;
    server.write_all(sent).ok()?;
    server.shutdown(std::net::Shutdown::Write).ok()?;
    ours.set_nonblocking(true).ok()?;
    // What we say has room in the buffer; the other end lives as long as the thread asks nothing of it.
    SERVER.with_borrow_mut(|kept| *kept = Some(server));
    let ours = std::net::TcpStream::from(OwnedFd::from(ours));
    Some(Channel::Plain(tokio::net::TcpStream::from_std(ours).ok()?))
}

/// A URL: what the configuration takes the source takes too, and no error says the password.
pub fn urls(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(complete) = Config::database_url("--to", text) {
        let read = Url::parse(&complete);
        assert!(read.is_ok(), "{complete}: {read:?}");
    }
    drop(Url::parse(text));
    let secret = format!("postgresql://u:hunter2@{text}");
    if let Err(why) = Url::parse(&secret) {
        assert!(!why.to_string().contains("hunter2") || text.contains("hunter2"), "{why}");
    }
}

thread_local! {
    static RUNTIME: RefCell<Runtime> =
        RefCell::new(Builder::new_current_thread().enable_all().build().expect("a runtime"));
    static SERVER: RefCell<Option<UnixStream>> = const { RefCell::new(None) };
}
const SENT_BYTES_MAX: usize = 64 << 10;
