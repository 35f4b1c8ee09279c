//! What is said to a walsender: START_REPLICATION, and how far we are. Pure.

use bytes::{BufMut, BytesMut};

use super::{catalog, session::Shared};
use crate::units::Position;

/// `'r' | written u64 | fsynced u64 | applied u64 | clock i64 | answer wanted u8`
/// (<https://www.postgresql.org/docs/current/protocol-replication.html>, "Standby status update").
/// Of a logical slot the server forgets what is before "fsynced".
pub(super) fn status_update(
    received: Position,
    confirmed: Position,
    clock_us: i64,
    ask: bool,
) -> BytesMut {
    let mut update = BytesMut::with_capacity(34);
    update.put_u8(b'r');
    update.put_u64(received.0);
    update.put_u64(confirmed.0);
    update.put_u64(confirmed.0);
    update.put_i64(clock_us);
    update.put_u8(u8::from(ask));
    update
}

/// START_REPLICATION with what the server's version knows. `in_progress`: it need not keep transactions until their
/// commits. (With `parallel` only the end of a rolled back one has more in it.)
pub(super) fn start_statement(
    shared: &Shared,
    version: u32,
    from: Position,
    binary: bool,
    in_progress: bool,
) -> String {
    let protocol = match version / 10_000 {
        ..=13 => 1,
        14 => 2,
        15 => 3,
        _ => 4,
    };
    let publications = shared.names.publications();
    let mut options = format!("proto_version '{protocol}', publication_names '{publications}'");
    if version >= 140_000 {
        let streaming = if in_progress { "on" } else { "off" };
        options += &format!(", streaming '{streaming}', messages 'true'");
    }
    if binary {
        options += ", binary 'true'";
    }
    let slot = catalog::identifier(&shared.names.slot);
    format!("START_REPLICATION SLOT {slot} LOGICAL {from} ({options})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_update_has_its_34_bytes() {
        let update = status_update(Position(3), Position(2), 1, true);
        let expected: Vec<u8> = [
            &b"r"[..],
            &3u64.to_be_bytes(),
            &2u64.to_be_bytes(),
            &2u64.to_be_bytes(),
            &1i64.to_be_bytes(),
            &[1],
        ]
        .concat();
        assert_eq!(update, expected);
    }
}
