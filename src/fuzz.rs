//! The parsers of foreign bytes, each behind one door: for tests/fuzz. Not in the firmware.
//!
//! A target takes any bytes, reads them as its parser would get them, and panics if a promise is broken: what
//! is read is written again as it was, what was not sealed with the key does not open, an error changes
//! nothing. Whoever runs it holds it to [`Target::memory_max`] and to a time.
//!
//! | bytes of | target |
//! |---|---|
//! | the database's server, before and after the log-in | `wire`, `scram`, `messages` |
//! | its change stream, also as the journal gives it back | `pgoutput` |
//! | its rows of a snapshot, and every value | `copy`, `values` |
//! | a table's definition, in journal and lake | `definition` |
//! | the journal's disk | `frame`, `plaintext`, `segment` |
//! | the spool's disk | `spool` |
//! | S3: answers | `answers` |
//! | the lake: objects, keys, entries, Parquet | `envelope`, `keys`, `entry`, `chain`, `plans`, `parquet` |
//! | an operator: configuration, URLs, keys, quantities | `site`, `urls`, `credentials`, `names` |
//! | who asks for the status | `http`, `admin` |
//!
//! sled, rustls, hyper and the AWS SDK read what is theirs; the last two are under `http` and `answers`.

use crate::{
    config, journal, ledger, pipeline, replay, seal, ship,
    source::postgres,
    status,
    units::{Age, BitRate, ByteSize, Position, Timestamp},
};

/// A parser of foreign bytes.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, and that of its corpus.
    pub name: &'static str,
    /// Reads any bytes. Panics if a promise is broken.
    pub run: fn(&[u8]),
    /// What it may allocate at once for nothing.
    base_bytes: usize,
    /// What it may allocate at once for a byte of input.
    bytes_per_byte: usize,
}

impl Target {
    /// What it may allocate at once for an input of this length, in bytes.
    pub fn memory_max(&self, input_bytes: usize) -> usize {
        self.base_bytes + self.bytes_per_byte * input_bytes
    }
}

const fn target(
    name: &'static str,
    run: fn(&[u8]),
    base_bytes: usize,
    bytes_per_byte: usize,
) -> Target {
    Target { name, run, base_bytes, bytes_per_byte }
}

/// All of them.
pub const TARGETS: &[Target] = &[
    target("admin", status::fuzz::admin, 256 * KIB, 64),
    target("answers", ship::fuzz::answers, 4 * MIB, 256),
    target("chain", ledger::fuzz::chain, 256 * KIB, 256),
    target("copy", postgres::fuzz::copy, 64 * KIB, 64),
    target("credentials", ship::fuzz::credentials, 16 * KIB, 16),
    target("definition", postgres::fuzz::definition, 64 * KIB, 256),
    target("entry", ledger::fuzz::entry, 64 * KIB, 256),
    target("envelope", seal::fuzz::envelope, 64 * KIB, 64),
    target("frame", journal::fuzz::frame, 16 * KIB, 16),
    target("http", status::fuzz::http, 4 * MIB, 64),
    target("keys", keys, 16 * KIB, 32),
    target("messages", postgres::fuzz::messages, 64 * KIB, 256),
    target("names", names, 16 * KIB, 64),
    target("parquet", replay::fuzz::parquet, 64 * MIB, 1024),
    target("pgoutput", postgres::fuzz::pgoutput, MIB, 512),
    target("plaintext", journal::fuzz::plaintext, 192 * MIB, 64),
    target("plans", plans, 256 * KIB, 256),
    target("scram", postgres::fuzz::scram, 64 * KIB, 32),
    target("segment", journal::fuzz::segment, 192 * MIB, 64),
    target("site", site, 512 * KIB, 2048),
    target("spool", seal::fuzz::spool, 512 * KIB, 16),
    target("urls", urls, 64 * KIB, 64),
    target("values", postgres::fuzz::values, 512 * KIB, 16 * KIB),
    target("wire", postgres::fuzz::wire, 2 * MIB + MESSAGE_BYTES_MAX, 64),
];

fn keys(bytes: &[u8]) {
    seal::fuzz::keys(bytes);
    replay::fuzz::keys(bytes);
}

fn plans(bytes: &[u8]) {
    replay::fuzz::plans(bytes);
    pipeline::fuzz::estate(bytes);
}

fn site(bytes: &[u8]) {
    config::fuzz::site(bytes);
    config::fuzz::secret(bytes);
}

fn urls(bytes: &[u8]) {
    postgres::fuzz::urls(bytes);
    ship::fuzz::endpoints(bytes);
}

fn names(bytes: &[u8]) {
    ledger::fuzz::names(bytes);
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    drop(text.parse::<ByteSize>());
    if let Ok(age) = text.parse::<Age>() {
        let again = format!("{} ms", age.0.as_millis());
        assert_eq!(again.parse(), Ok(age), "{text}");
    }
    if let Ok(rate) = text.parse::<BitRate>() {
        assert_eq!(rate.to_string().parse(), Ok(rate), "{text}");
    }
    if let Ok(position) = text.parse::<Position>() {
        assert_eq!(position.to_string().parse(), Ok(position), "{text}");
    }
    if let Ok(at) = text.parse::<Timestamp>() {
        assert_eq!(at.rfc3339().parse(), Ok(at), "{text}");
    }
}

/// Room is made for a message as soon as it has said its length: PostgreSQL makes none above 1 GiB.
const MESSAGE_BYTES_MAX: usize = (1 << 30) + 64 * KIB;
const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
