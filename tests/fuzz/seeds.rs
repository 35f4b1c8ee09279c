//! Where the corpus began: bytes that a real PostgreSQL sent, files that our own rooms wrote, and texts as
//! people and S3 write them. `make fuzz-seeds` makes them anew; `make fuzz-merge` keeps what they add.

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use lakehead::{
    clock::SystemClock,
    demo::cluster::{Cluster, ClusterOptions, SUPERUSER},
    facts::{FactBatch, Facts},
    journal::{self, Cell, Commit, Journal, Keep, Piece, RecordKind, Run, fuzz::journal_key},
    seal::{
        self, Op,
        columns::{RowBuilder, RowMeta, file_metadata},
    },
    shutdown::Tasks,
    source::postgres::{fuzz, pgoutput::PgDecoder},
    telemetry::{
        board::{Board, SourceBoard},
        heartbeat::Heartbeat,
        report::Reporter,
    },
    units::{Position, Timestamp},
};

const TEXTS: &str = include_str!("texts.txt");

#[test]
fn the_corpus_begins_with_bytes_of_those_who_write_them() {
    let Some(dir) = std::env::var_os("LAKEHEAD_SEEDS") else { return };
    let dir = Path::new(&dir);
    texts(dir);
    stream(dir);
    values(dir);
    ours(dir);
    server(dir);
}

fn put(dir: &Path, target: &str, bytes: impl AsRef<[u8]>) {
    let bytes = bytes.as_ref();
    let folder = dir.join(target);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(format!("{:08x}", crc32c::crc32c(bytes))), bytes).unwrap();
}

/// `texts.txt`: `== target`, and what follows up to the next one. `\r` and `\0` stand for themselves.
fn texts(dir: &Path) {
    for text in TEXTS.split("\n== ").skip(1) {
        let (target, body) = text.split_once('\n').unwrap();
        let body = body.replace("\\r", "\r").replace("\\0", "\0");
        if target == "end" {
            return;
        }
        put(dir, target, &body);
        if target == "chain" {
            put(dir, "plans", &body);
            body.lines().for_each(|line| put(dir, "entry", line));
        }
    }
}

/// The change stream of PostgreSQL 15 that the decoder's own tests read.
fn stream(dir: &Path) {
    let lines = include_str!("../fixtures/postgres-15-pgoutput.hex").lines();
    let messages: Vec<Vec<u8>> = lines.map(|line| hex::decode(line).unwrap()).collect();
    let mut decoder = PgDecoder::default();
    for many in [&messages[..], &messages[..12]] {
        let mut run = Run::new(Piece::Whole);
        for message in many {
            run.push(RecordKind::Message, message);
            put(dir, "messages", message);
            let event = journal::Decode::decode(&mut decoder, RecordKind::Message, message);
            if let Ok(journal::Event::Table(table)) = event {
                let json = serde_json::to_vec(&*table).unwrap();
                put(dir, "definition", &json);
                run.push(RecordKind::Definition, &json);
            }
        }
        put(dir, "pgoutput", &run.bytes);
    }
    let mut run = Run::new(Piece::Whole);
    for message in in_progress(&messages) {
        put(dir, "messages", &message);
        run.push(RecordKind::Message, &message);
    }
    put(dir, "pgoutput", &run.bytes);
}

/// As a server sends transactions that have not ended: each in two blocks, of subtransactions every other of which
/// is rolled back.
fn in_progress(messages: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let (mut sent, mut top, mut within) = (vec![], [0; 4], 0);
    for message in messages {
        match message[0] {
            b'B' => {
                (top, within) = (*message.last_chunk::<4>().unwrap(), 0);
                sent.push([&b"S"[..], &top, &[1]].concat());
            }
            b'C' => {
                sent.push(b"E".to_vec());
                sent.push([&b"A"[..], &top, &[1, 2, 3, 4]].concat());
                sent.push([&b"c"[..], &top, &message[1..]].concat());
            }
            b'O' => sent.push(message.clone()),
            kind => {
                within += 1;
                let xid = if within % 2 == 0 { [1, 2, 3, 4] } else { top };
                sent.push([&[kind], &xid[..], &message[1..]].concat());
                if within == 3 {
                    sent.push(b"E".to_vec());
                    sent.push([&b"S"[..], &top, &[0]].concat());
                }
            }
        }
    }
    sent
}

fn values(dir: &Path) {
    for line in include_str!("../fixtures/postgres-15-values.tsv").lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let (type_id, text) = (fields[0].parse().unwrap(), fields[2].as_bytes());
        for value in [&hex::decode(fields[1]).unwrap()[..], text] {
            for modifier in [-1, (12 << 16 | 2) + 4] {
                put(dir, "values", fuzz::value(type_id, modifier, value).unwrap());
            }
        }
    }
}

/// A segment, spool files, sealed objects, an object of the lake, a certificate, a report.
fn ours(dir: &Path) {
    let scratch = tempfile::tempdir().unwrap();
    segment(dir, scratch.path());
    for length in [0, 5, 300] {
        let [spool, envelope] = seal::fuzz::sealed(&scratch.path().join("spool"), length).unwrap();
        put(dir, "spool", spool);
        put(dir, "envelope", envelope);
    }
    put(dir, "parquet", parquet());
    let names = vec!["localhost".to_owned()];
    put(dir, "messages", rcgen::generate_simple_self_signed(names).unwrap().cert.der());
    let board = Board::default();
    board.source("erp").write(|status| status.changes = 42);
    let reporter = Reporter::new("a", board, Heartbeat::default(), Arc::new(SystemClock));
    put(dir, "admin", serde_json::to_vec(&reporter.report()).unwrap());
}

fn segment(dir: &Path, scratch: &Path) {
    let options = journal::Options {
        dir: scratch.join("journal"),
        key: journal_key(),
        max_bytes: 64 << 20,
        segment_bytes: 16 << 20,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (board, clock) = (SourceBoard::default(), Arc::new(SystemClock));
        let journal = Journal::open(options, board, clock, &Tasks::new()).unwrap();
        journal.session().await.unwrap();
        for (piece, number) in
            [Piece::Whole, Piece::First, Piece::Middle, Piece::Last].into_iter().zip(1..)
        {
            let mut run = Run::new(piece);
            run.push(RecordKind::Message, format!("row {number}").as_bytes());
            run.changes = 1;
            let (position, begins) = (Position(100 * number), Position(100 * number - 9));
            let ends = matches!(piece, Piece::Whole | Piece::Last);
            run.commit =
                ends.then_some(Commit { position, begins, at: Timestamp(7), transactions: 1 });
            journal.append(run).await.unwrap();
        }
        let mut facts = FactBatch::default();
        facts.put("ship/a", &1).delete("ship/b");
        journal.record(facts).await.unwrap();
        journal.session().await.unwrap();
        journal.stop().await;
    });
    for entry in fs::read_dir(scratch.join("journal")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "log") {
            let file = fs::read(path).unwrap();
            let unsealed = journal::fuzz::unsealed(&file);
            put(dir, "frame", &file[..76]);
            journal::fuzz::plaintexts(&unsealed).iter().for_each(|(head, plain)| {
                put(dir, "frame", head);
                put(dir, "plaintext", plain);
            });
            put(dir, "segment", unsealed);
            put(dir, "segment", [&[0][..], &file].concat());
        }
    }
}

fn parquet() -> Vec<u8> {
    let types = [
        (20, -1, "1"),
        (701, -1, "-0.5"),
        (1184, -1, "infinity"),
        (1700, (8 << 16 | 2) + 4, "12.50"),
        (17, -1, "\\x00ff"),
        (25, -1, "a"),
        (2950, -1, "00010203-0405-0607-0809-0a0b0c0d0e0f"),
        (16, -1, "t"),
        (1082, -1, "2024-02-29"),
    ];
    let table =
        fuzz::table(types.iter().map(|(id, modifier, _)| fuzz::column(*id, *modifier)).collect());
    let mut builder = RowBuilder::new(&table);
    for op in [Op::Snapshot, Op::Update] {
        let (mut bytes, mut cells) = (vec![], vec![]);
        for (_, _, text) in types {
            cells.push(Cell::Text(bytes.len()..bytes.len() + text.len()));
            bytes.extend_from_slice(text.as_bytes());
        }
        let (sequence, position) = (1, Position(7));
        let meta = RowMeta { op, sequence, position, committed_at: Timestamp(42), xid: Some(9) };
        builder.append(meta, Some(&cells), None, &bytes, &PgDecoder::default()).unwrap();
    }
    let batch = builder.finish();
    let metadata = Some(file_metadata(&table));
    let properties =
        parquet::file::properties::WriterProperties::builder().set_key_value_metadata(metadata);
    let mut file = vec![];
    let mut writer =
        parquet::arrow::ArrowWriter::try_new(&mut file, batch.schema(), Some(properties.build()))
            .unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    file
}

/// What a server sends to psql and pg_recvlogical, over a connection that listens in.
fn server(dir: &Path) {
    let scratch = tempfile::tempdir().unwrap();
    let settings =
        [("wal_level", "logical")].map(|(name, value)| (name.to_owned(), value.to_owned()));
    let options = ClusterOptions {
        dir: scratch.path().join("pg"),
        settings: settings.to_vec(),
        ..ClusterOptions::default()
    };
    let mut cluster = Cluster::create(&options).unwrap();
    cluster.start().unwrap();
    let run = |program: &str, arguments: &[&str]| {
        let heard = listen(cluster.port());
        let url =
            format!("postgresql://{SUPERUSER}@127.0.0.1:{}/postgres?sslmode=disable", heard.port);
        let options = "-c TimeZone=UTC -c IntervalStyle=postgres -c client_encoding=UTF8";
        let status = Command::new(cluster.binaries().join(program))
            .args(["-d", &url])
            .args(arguments)
            .env("PGPASSWORD", cluster.password())
            .env("PGOPTIONS", options)
            .stdout(std::process::Stdio::null())
            .status()
            .unwrap();
        assert!(status.success(), "{program}");
        std::thread::sleep(Duration::from_millis(200));
        heard.bytes.lock().unwrap().clone()
    };
    let psql = |sql: &str| run("psql", &["-X", "-q", "-v", "ON_ERROR_STOP=0", "-c", sql]);
    psql(
        "CREATE TABLE t (id int PRIMARY KEY, note text, cost numeric(8,2)); INSERT INTO t VALUES (1, 'a', 1.5), (2, NULL, 2); \
          CREATE PUBLICATION p FOR ALL TABLES;",
    );
    psql("SELECT pg_create_logical_replication_slot('s', 'pgoutput')");
    psql(
        "INSERT INTO t VALUES (3, 'c', 3); UPDATE t SET note = 'd'; DELETE FROM t WHERE id = 2; TRUNCATE t;",
    );
    let asked = psql("SELECT 1 AS a, NULL AS b, 'x' AS c");
    conversation(dir, 1, &asked);
    conversation(
        dir,
        2,
        &psql("INSERT INTO t VALUES (1, 'a', 1.5), (2, NULL, 2); COPY t TO STDOUT (FORMAT binary)"),
    );
    let end = messages(&psql("SELECT pg_current_wal_lsn()"));
    let end = end.iter().find(|message| message[0] == b'D').unwrap();
    let end = std::str::from_utf8(&end[11..]).unwrap();
    let received = [
        "--slot",
        "s",
        "--start",
        "--endpos",
        end,
        "-o",
        "proto_version=1",
        "-o",
        "publication_names=p",
        "-f",
        "/dev/null",
    ];
    conversation(dir, 3, &run("pg_recvlogical", &received));
    cluster.remove().unwrap();
}

/// One conversation, as the targets take it.
fn conversation(dir: &Path, road: u8, bytes: &[u8]) {
    let messages = messages(bytes);
    let ready = messages.iter().position(|message| message[0] == b'Z').unwrap() + 1;
    put(dir, "wire", [&[road][..], &messages[ready..].concat()].concat());
    for message in &messages {
        put(dir, "messages", &message[5..]);
        put(dir, "messages", message);
    }
    let trusted =
        messages.iter().filter(|message| !(message[0] == b'R' && message[5..9] != [0; 4]));
    put(dir, "wire", [&[0][..], &trusted.cloned().collect::<Vec<_>>().concat()].concat());
    let tag = |tag: u8| {
        messages.iter().filter(move |message| message[0] == tag).map(|message| &message[5..])
    };
    let scram: Vec<&[u8]> =
        tag(b'R').filter(|body| matches!(body[3], 11 | 12)).map(|body| &body[4..]).collect();
    if let [first, last] = scram[..] {
        let server = first.strip_prefix(b"r=").unwrap();
        put(dir, "scram", [&b"r=NONCE"[..], &server[24..], b"\0", last].concat());
    }
    let rows: Vec<&[u8]> = tag(b'd').collect();
    if road == 2 {
        put(dir, "copy", [&[3, 0, 30][..], &rows.concat()].concat());
    } else if !rows.is_empty() {
        let mut run = Run::new(Piece::Whole);
        let changes = rows.iter().filter(|row| row[0] == b'w');
        changes.for_each(|row| run.push(RecordKind::Message, &row[25..]));
        put(dir, "pgoutput", &run.bytes);
    }
}

fn messages(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut found = vec![];
    while let Some((head, _)) = bytes.split_first_chunk::<5>() {
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
        let (message, rest) = bytes.split_at(1 + usize::try_from(length).unwrap());
        found.push(message.to_vec());
        bytes = rest;
    }
    found
}

struct Heard {
    port: u16,
    bytes: Arc<Mutex<Vec<u8>>>,
}

/// A port for one connection to the server's, whose answers are kept.
fn listen(server: u16) -> Heard {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let heard = Heard { port: listener.local_addr().unwrap().port(), bytes: Arc::default() };
    let bytes = heard.bytes.clone();
    std::thread::spawn(move || {
        let (client, _) = listener.accept().unwrap();
        let server = TcpStream::connect(("127.0.0.1", server)).unwrap();
        let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        std::thread::spawn(move || std::io::copy(&mut from, &mut to));
        let (mut server, mut client) = (server, client);
        let mut buffer = [0; 4096];
        while let Ok(read @ 1..) = server.read(&mut buffer) {
            bytes.lock().unwrap().extend_from_slice(&buffer[..read]);
            if client.write_all(&buffer[..read]).is_err() {
                break;
            }
        }
    });
    heard
}
