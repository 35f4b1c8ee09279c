//! What chance makes of a corpus: some of libFuzzer's mutations, without its eyes.

use fastrand::Rng;

/// Numbers at which lengths and counts go wrong.
const NUMBERS: [i64; 12] =
    [0, 1, -1, 2, 127, 128, 255, 256, 0x7FFF_FFFF, 0x8000_0000, i64::MAX, i64::MIN];
const BYTES_MAX: usize = 64 << 10;

/// One of the corpus, changed in a few places.
pub(crate) fn mutated(corpus: &[Vec<u8>], chance: &mut Rng) -> Vec<u8> {
    let mut bytes = corpus[chance.usize(..corpus.len())].clone();
    for _ in 0..1 << chance.usize(..4) {
        mutate(&mut bytes, corpus, chance);
    }
    bytes.truncate(BYTES_MAX);
    bytes
}

fn mutate(bytes: &mut Vec<u8>, corpus: &[Vec<u8>], chance: &mut Rng) {
    let at = chance.usize(..=bytes.len());
    let length = chance.usize(..=(bytes.len() - at).min(64));
    match chance.u8(..9) {
        0 if at < bytes.len() => bytes[at] ^= 1 << chance.u8(..8),
        1 if at < bytes.len() => bytes[at] = chance.u8(..),
        2 => bytes.insert(at, chance.u8(..)),
        3 => drop(bytes.drain(at..at + length)),
        4 => bytes.truncate(at),
        5 => {
            let copied = bytes[at..at + length].to_vec();
            let to = chance.usize(..=bytes.len());
            bytes.splice(to..to, copied);
        }
        6 => put(bytes, at, &number(chance)),
        7 => {
            // A piece of another one.
            let other = &corpus[chance.usize(..corpus.len())];
            let from = chance.usize(..=other.len());
            let until = from + chance.usize(..=(other.len() - from).min(256));
            put(bytes, at, &other[from..until]);
        }
        _ => {
            let digits = bytes.iter().skip(at).position(u8::is_ascii_digit);
            if let Some(place) = digits {
                let other = NUMBERS[chance.usize(..NUMBERS.len())].to_string();
                bytes.splice(at + place..at + place + 1, other.bytes());
            }
        }
    }
}

/// A number of 1, 2, 4 or 8 bytes, either end first.
fn number(chance: &mut Rng) -> Vec<u8> {
    let number = NUMBERS[chance.usize(..NUMBERS.len())].wrapping_add(chance.i64(-1..=1));
    let width = 1 << chance.usize(..4);
    if chance.bool() {
        number.to_le_bytes()[..width].to_vec()
    } else {
        number.to_be_bytes()[8 - width..].to_vec()
    }
}

/// Writes over what is there, or between.
fn put(bytes: &mut Vec<u8>, at: usize, piece: &[u8]) {
    let end = at + piece.len().min(bytes.len() - at);
    bytes.splice(at..end, piece.iter().copied());
}
