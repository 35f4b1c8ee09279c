//! How the model server speaks: simple queries, and the replication protocol with pgoutput inside.
//!
//! Messages: <https://www.postgresql.org/docs/current/protocol-replication.html>. Transactions come whole or
//! with pauses inside, keepalives at any moment: their position can lie beyond a transaction of which only a
//! part was sent. A server that goes on from what was confirmed, whatever it is asked for (`resends`), is
//! allowed: the road must know again what it holds.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::{Buf, BufMut, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    time::{Instant, sleep_until},
};

use super::{
    oracle::Oracle,
    planted::Planted,
    server::{Arrival, ModelServer, table_id, table_name},
    timeline::{Row, Transaction},
};
use crate::units::Position;

/// How a server behaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manners {
    /// It goes on from what was confirmed, whatever was asked for.
    pub(crate) resends: bool,
    pub(crate) planted: Option<Planted>,
}

/// One session.
struct Session {
    server: ModelServer,
    oracle: Oracle,
    manners: Manners,
    slot: Option<String>,
    random: fastrand::Rng,
    input: BytesMut,
    output: BytesMut,
    stream: Option<Streaming>,
}

/// COPY BOTH is under way.
struct Streaming {
    /// Transactions that begin before it are not sent.
    from: Position,
    /// The next transaction of the log.
    next: usize,
    /// Messages of the transaction that is being sent.
    rest: Vec<Vec<u8>>,
    /// All was sent up to here.
    sent: Position,
    /// The last position in a keepalive.
    named: Position,
    /// What was described in this session: columns beyond the first two.
    described: BTreeMap<usize, usize>,
    /// The last position confirmed in it.
    confirmed: Position,
}

/// Serves one connection to its end.
pub(crate) async fn serve(
    server: ModelServer,
    oracle: Oracle,
    manners: Manners,
    arrival: Arrival,
    seed: u64,
) {
    let Arrival { stream, slot } = arrival;
    let mut session = Session {
        server: server.clone(),
        oracle,
        manners,
        slot: slot.clone(),
        random: fastrand::Rng::with_seed(seed),
        input: BytesMut::new(),
        output: BytesMut::new(),
        stream: None,
    };
    session.run(stream).await;
    if let Some(slot) = slot
        && session.stream.is_some()
    {
        server.with(|state| state.set_active(&slot, false));
    }
}

impl Session {
    async fn run(&mut self, stream: DuplexStream) {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let server = self.server.clone();
        let (mut cut, mut committed) = (server.cuts.count(), server.committed.count());
        let mut wake = Instant::now();
        loop {
            let writes = !self.output.is_empty();
            let more =
                self.stream.as_ref().is_some_and(|stream| stream.next_is_there(&self.server));
            tokio::select! {
                biased;
                () = server.cuts.rings(&mut cut) => return,
                read = reader.read_buf(&mut self.input) => match read {
                    Ok(0) | Err(_) => return,
                    Ok(_) => if !self.hear() { return },
                },
                written = writer.write(&self.output), if writes => match written {
                    Ok(count) => self.output.advance(count),
                    Err(_) => return,
                },
                () = sleep_until(wake), if !writes && self.stream.is_some() => {
                    self.speak();
                    let pause = if self.random.u8(..4) == 0 { 400 } else { 12 };
                    let rest = more || self.stream.as_ref().is_some_and(|s| !s.rest.is_empty());
                    let pause = if rest { self.random.u64(1..pause) } else { self.random.u64(500..4000) };
                    wake = Instant::now() + Duration::from_millis(pause);
                }
                () = server.committed.rings(&mut committed), if self.stream.is_some() && !more => {
                    wake = wake.min(Instant::now() + Duration::from_millis(self.random.u64(1..20)));
                }
            }
        }
    }

    /// Takes what the box says. False: it says good-bye.
    fn hear(&mut self) -> bool {
        loop {
            let Some(head) = self.input.first_chunk::<5>() else { return true };
            let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            if self.input.len() <= length {
                return true;
            }
            let tag = head[0];
            let mut message = self.input.split_to(length + 1);
            message.advance(5);
            match tag {
                b'Q' => self.query(&message),
                b'd' if message.first() == Some(&b'r') && message.len() >= 34 => {
                    let position = |at: usize| {
                        message[at..].first_chunk::<8>().map(|b| u64::from_be_bytes(*b))
                    };
                    self.status(Position(position(9).unwrap_or(0)), message[33] == 1);
                }
                b'c' => {}
                _ => return false,
            }
        }
    }

    fn query(&mut self, sql: &[u8]) {
        let text = String::from_utf8_lossy(sql);
        let Some(slot) = self.slot.clone().filter(|_| text.starts_with("START_REPLICATION")) else {
            framed(&mut self.output, b'C', b"SELECT 0\0");
            framed(&mut self.output, b'Z', b"I");
            return;
        };
        let asked = text.split_whitespace().nth(4).and_then(|text| text.parse().ok());
        let asked: Position = asked.unwrap_or_default();
        let found = self.server.with(|state| {
            let slot = state.slot(&slot)?.clone();
            state.set_active(&self.slot.clone().unwrap_or_default(), true);
            Some((slot, state.timeline().log.clone()))
        });
        let Some((slot, log)) = found else {
            framed(&mut self.output, b'E', b"SERROR\0C42704\0Mno such slot\0\0");
            framed(&mut self.output, b'Z', b"I");
            return;
        };
        let from = if self.manners.resends { slot.confirmed } else { slot.confirmed.max(asked) };
        let next = log.partition_point(|transaction| transaction.begins < from);
        let described = BTreeMap::new();
        self.stream = Some(Streaming {
            from,
            next,
            rest: vec![],
            sent: from,
            named: from,
            described,
            confirmed: Position(0),
        });
        self.oracle.note(format_args!("server: streams from {from} (asked for {asked})"));
        framed(&mut self.output, b'W', &[0, 0, 0]);
    }

    fn status(&mut self, told: Position, asks: bool) {
        let (Some(stream), Some(slot)) = (&mut self.stream, self.slot.clone()) else { return };
        let confirmed = match self.manners.planted {
            Some(Planted::ConfirmEarly) if stream.rest.is_empty() => told.max(stream.sent),
            Some(Planted::ConfirmQueued) if stream.rest.is_empty() => told.max(stream.named),
            Some(Planted::ConfirmOpen) => told.max(stream.named),
            _ => told,
        };
        self.oracle.confirmed(&slot, confirmed, stream.confirmed);
        stream.confirmed = stream.confirmed.max(confirmed);
        self.server.with(|state| state.confirm(&slot, confirmed));
        if asks {
            self.keepalive();
        }
    }

    /// Says something: the next messages, or a keepalive.
    fn speak(&mut self) {
        if self.random.u8(..5) == 0 {
            self.keepalive();
        }
        let Some(stream) = &mut self.stream else { return };
        let mut budget = if self.random.bool() { self.random.usize(1..6) } else { usize::MAX };
        while budget > 0 {
            if stream.rest.is_empty() {
                let next = self.server.with(|state| state.timeline().log.get(stream.next).cloned());
                let Some(next) = next else { break };
                stream.next += 1;
                stream.rest = stream.messages(&next);
                stream.rest.reverse();
                stream.sent = next.end;
            }
            while let Some(message) = stream.rest.pop() {
                let at = stream.sent.0;
                copy_data(&mut self.output, |out| {
                    out.put_u8(b'w');
                    out.put_u64(at);
                    out.put_u64(at);
                    out.put_i64(0);
                    out.put_slice(&message);
                });
                budget -= 1;
                if budget == 0 || self.output.len() > OUTPUT_BYTES {
                    return;
                }
            }
        }
        if budget == usize::MAX && self.random.bool() {
            self.keepalive();
        }
    }

    fn keepalive(&mut self) {
        let Some(stream) = &mut self.stream else { return };
        // With everything sent the server names the end of its log, else what it has read so far.
        let all = !stream.next_is_there(&self.server) && stream.rest.is_empty();
        let position = if all { self.server.with(|state| state.end()) } else { stream.sent };
        stream.named = stream.named.max(position);
        let asks = self.random.u8(..4) == 0;
        copy_data(&mut self.output, |out| {
            out.put_u8(b'k');
            out.put_u64(position.0);
            out.put_i64(0);
            out.put_u8(u8::from(asks));
        });
    }
}

impl Streaming {
    /// Whether something waits to be sent.
    fn next_is_there(&self, server: &ModelServer) -> bool {
        !self.rest.is_empty() || server.with(|state| state.timeline().log.len() > self.next)
    }

    /// A transaction as pgoutput says it.
    fn messages(&mut self, transaction: &Arc<Transaction>) -> Vec<Vec<u8>> {
        let Transaction { begins, end, xid, at, rows, .. } = &**transaction;
        debug_assert!(*begins >= self.from);
        let mut begin = vec![b'B'];
        begin.put_u64(begins.0);
        begin.put_i64(*at);
        begin.put_u32(*xid);
        let mut messages = vec![begin];
        for row in rows {
            if self.described.get(&row.table) != Some(&row.more) {
                self.described.insert(row.table, row.more);
                messages.push(relation(row.table, row.more));
            }
            messages.push(change(row));
        }
        let mut commit = vec![b'C', 0];
        commit.put_u64(begins.0);
        commit.put_u64(end.0);
        commit.put_i64(*at);
        messages.push(commit);
        messages
    }
}

/// A table's Relation message.
pub(crate) fn relation(table: usize, more: usize) -> Vec<u8> {
    let mut out = vec![b'R'];
    out.put_u32(table_id(table));
    out.put_slice(b"public\0");
    out.put_slice(table_name(table).as_bytes());
    out.put_slice(b"\0d");
    out.put_u16(u16::try_from(2 + more).unwrap_or(0));
    let mut column = |key: bool, name: &str, type_id: u32| {
        out.put_u8(u8::from(key));
        out.put_slice(name.as_bytes());
        out.put_u8(0);
        out.put_u32(type_id);
        out.put_i32(-1);
    };
    column(true, "id", 20);
    column(false, "note", 25);
    (0..more).for_each(|number| column(false, &format!("c{number}"), 25));
    out
}

fn change(row: &Row) -> Vec<u8> {
    let mut out = vec![row.op];
    if row.op == b'T' {
        out.put_u32(1);
        out.put_u8(0);
        out.put_u32(table_id(row.table));
        return out;
    }
    out.put_u32(table_id(row.table));
    out.put_u8(if row.op == b'D' { b'K' } else { b'N' });
    out.put_u16(u16::try_from(2 + row.more).unwrap_or(0));
    let text = |out: &mut Vec<u8>, text: &str| {
        out.put_u8(b't');
        out.put_u32(u32::try_from(text.len()).unwrap_or(0));
        out.put_slice(text.as_bytes());
    };
    text(&mut out, &row.key.to_string());
    if row.op == b'D' {
        out.put_bytes(b'n', 1 + row.more);
        return out;
    }
    match row.unchanged {
        true => out.put_u8(b'u'),
        false => text(&mut out, &row.note),
    }
    (0..row.more).for_each(|_| text(&mut out, "x"));
    out
}

fn framed(out: &mut BytesMut, tag: u8, body: &[u8]) {
    out.put_u8(tag);
    out.put_u32(u32::try_from(body.len() + 4).unwrap_or(0));
    out.put_slice(body);
}

fn copy_data(out: &mut BytesMut, body: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = vec![];
    body(&mut bytes);
    framed(out, b'd', &bytes);
}

/// Written before the box is listened to again.
const OUTPUT_BYTES: usize = 128 << 10;
