//! Frames of zstd for integers of which each is a little more than the one before: keys of a sequence, numbers of changes.
//!
//! Zstd looks for bytes that come again, and knows nothing of numbers: in keys of four bytes it finds nothing, and in
//! those of eight it takes its time. Here it is known where they come again. In a run of values only the lowest byte
//! differs, so the others are as one value before; and where whole runs of 256 values follow each other, all bytes from the third on,
//! up to the lowest one of the next value, are as 256 values before. Of `02 01 00 00`, `03 01 00 00` behind `01 01 00 00` that leaves
//! `02`, `03`; of a whole run its second byte, once.
//!
//! So each block holds sequences of one kind, which it tells once; how they are made costs no search. Readers see a page like any
//! other, in plain encoding. What repeats itself, or rises faster, is left to zstd: [`Numbers::pack`] tells.
//!
//! A frame is a header, and blocks of at most 128 KiB (RFC 8878, <https://www.rfc-editor.org/rfc/rfc8878>, §3.1.1). A block is bytes
//! as they are, or literals and sequences: so many literals, and then so many bytes of what stands so far before.
//!
//! **Invariant:** each block of sequences is shorter than what it holds, as the first edition of the format had it.

use super::pack::Scarce;

/// Where the integers of a page stand in its body: behind its levels, up to its end, the lowest byte first.
#[derive(Clone, Copy, Debug)]
pub(super) struct Numbers {
    pub(super) from: usize,
    pub(super) width: Width,
}

/// Bytes of an integer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Width {
    Four,
    Eight,
}

/// What a page may take, and what shows early that it would take more.
struct Limits {
    /// So many sixteenths of a byte for each value, beside its levels.
    sixteenths_max: usize,
    /// Of the pairs of a sample so many may end a run.
    ends_max: usize,
}

/// A frame that is being made, of a body with integers of `N` bytes.
struct Frame<'a, const N: usize> {
    body: &'a [u8],
    /// Where they begin.
    from: usize,
    /// So many bytes of the body are in the frame.
    done: usize,
    to: &'a mut Vec<u8>,
    /// Where the last block begins.
    block: usize,
    /// How far back the last sequence looked: the next one says so in no bits.
    offset: usize,
}

/// The literals of a block, one for each sequence.
enum Literals<'a, const N: usize> {
    /// The lowest byte of each.
    Lowest(&'a [[u8; N]]),
    /// The same one, so many times.
    Same(u8, usize),
}

impl Numbers {
    /// Makes a frame of a page's body, in place of what is there. `false`: it is of no use, as most numbers do not rise, or
    /// by too much, or fall back more than once, so that zstd may find what was there already.
    pub(super) fn pack(self, scarce: Scarce, body: &[u8], to: &mut Vec<u8>) -> bool {
        // In eight bytes zstd finds what rises, too, and makes a byte and less of a value, if slowly.
        match (self.width, scarce) {
            (Width::Four, _) => {
                let limits = Limits { sixteenths_max: 24, ends_max: 12 };
                Frame::<4>::begin(body, self.from, to).fill(&limits)
            }
            (Width::Eight, Scarce::Cpu) => {
                let limits = Limits { sixteenths_max: 18, ends_max: 4 };
                Frame::<8>::begin(body, self.from, to).fill(&limits)
            }
            (Width::Eight, Scarce::Link) => {
                let limits = Limits { sixteenths_max: 12, ends_max: 2 };
                Frame::<8>::begin(body, self.from, to).fill(&limits)
            }
        }
    }
}

impl<'a, const N: usize> Frame<'a, N> {
    fn begin(body: &'a [u8], from: usize, to: &'a mut Vec<u8>) -> Self {
        to.clear();
        Self { body, from, done: 0, to, block: 0, offset: 0 }
    }

    /// The whole of it; `false`: it is of no use.
    fn fill(mut self, limits: &Limits) -> bool {
        let body = self.body;
        let (values, _) = body[self.from..].as_chunks::<N>();
        let Ok(length) = u32::try_from(body.len()) else { return false };
        if !seem_to_rise(values, limits.ends_max) {
            return false;
        }
        self.to.extend_from_slice(&MAGIC);
        self.to.push(OF_ONE_SEGMENT);
        self.to.extend_from_slice(&length.to_le_bytes());
        let bytes_max = self.from + values.len() * limits.sixteenths_max / 16;
        let (mut from, mut before, mut falls) = (0, None, 0);
        while from < values.len() {
            let to = end_of_run(values, from);
            let next = values.get(to);
            falls += usize::from(next.is_some_and(|next| number(next) <= number(&values[to - 1])));
            // Of a whole run, its numbers without their two lowest bytes.
            let whole = (to - from == PERIOD).then(|| number(&values[from]) >> 16);
            // The last sequence ends with the lowest byte of the next value, which has to be as it was 256 values before.
            if whole.is_some()
                && whole == before
                && next.is_some_and(|next| next[0] == values[from][0])
            {
                self.whole_run(from, values[from][1]);
            } else if to - from >= RUN_MIN {
                self.run(from + 1, &values[from + 1..to]);
            }
            if self.to.len() > bytes_max || falls > FALLS_MAX {
                return false;
            }
            (from, before) = (to, whole);
        }
        if self.to.len() + (body.len() - self.done) > bytes_max {
            return false;
        }
        self.as_is(body.len());
        self.to[self.block] |= LAST;
        true
    }

    /// Where a value begins.
    fn at(&self, value: usize) -> usize {
        self.from + value * N
    }

    /// Blocks of bytes as they are, up to `until`.
    fn as_is(&mut self, until: usize) {
        while self.done < until {
            let bytes = &self.body[self.done..until.min(self.done + BLOCK_BYTES_MAX)];
            self.done += bytes.len();
            self.block = self.to.len();
            self.to.extend_from_slice(&block_header(AS_IS, bytes.len()));
            self.to.extend_from_slice(bytes);
        }
    }

    /// Values from one on, each of which is as the one before it but for its lowest byte. These are the literals.
    fn run(&mut self, from: usize, values: &[[u8; N]]) {
        self.as_is(self.at(from));
        let (first, rest) = values.split_at(self.told(N, values.len()));
        self.sequences(Literals::Lowest(first), N);
        self.sequences(Literals::Lowest(rest), N);
    }

    /// [`PERIOD`] values from one on that rise by one, as do those before them. The literals are their second bytes; what
    /// follows of each, and the lowest byte of the next one, is as it was.
    fn whole_run(&mut self, from: usize, second: u8) {
        // Behind another one it is there.
        self.as_is(self.at(from) + 1);
        let first = self.told(PERIOD * N, PERIOD);
        self.sequences(Literals::Same(second, first), PERIOD * N);
        self.sequences(Literals::Same(second, PERIOD - first), PERIOD * N);
    }

    /// How many of so many sequences have to tell how far back they look.
    fn told(&self, offset: usize, count: usize) -> usize {
        if offset == self.offset {
            return 0;
        }
        // As many as make their block shorter than what it holds, and leave no fewer for the next.
        if count < 2 * TOLD { count } else { TOLD }
    }

    /// A block of sequences, each of a literal and `N` - 1 bytes of `offset` before: of a few, if that is not where the last
    /// one looked.
    fn sequences(&mut self, literals: Literals<'_, N>, offset: usize) {
        let count = match &literals {
            Literals::Lowest(of) => of.len(),
            Literals::Same(_, count) => *count,
        };
        if count == 0 {
            return;
        }
        debug_assert!(count <= PERIOD && offset <= self.done);
        self.block = self.to.len();
        self.to.extend_from_slice(&block_header(OF_SEQUENCES, 0));
        match literals {
            Literals::Lowest(of) => {
                self.literals_header(AS_IS, count);
                self.to.extend(of.iter().map(|value| value[0]));
            }
            Literals::Same(byte, _) => {
                self.literals_header(SAME, count);
                self.to.push(byte);
            }
        }
        match low_bytes(count) {
            [low, 0, 0] if low < 0x80 => self.to.push(low),
            [low, high, _] => self.to.extend_from_slice(&[high | 0x80, low]),
        }
        // 1: as the last one, which has no bits. Others are by three more than they are; the code is their highest bit, and those
        // below it follow, of each sequence.
        let value = if offset == self.offset { 1 } else { offset + 3 };
        let [code, ..] = low_bytes(value.ilog2() as usize);
        let [matched, ..] = low_bytes(N - 1 - MATCH_MIN);
        self.to.extend_from_slice(&[EACH_THE_SAME, 1, code, matched]);
        let below = value as u128 ^ 1 << code;
        let told = if code == 0 { 0 } else { count };
        // They are read from the end on, which the highest bit is.
        let bits = (0..told).fold(1, |bits, _| bits << code | below);
        let length = (usize::from(code) * told) / 8 + 1;
        self.to.extend_from_slice(&bits.to_le_bytes()[..length]);
        let header = block_header(OF_SEQUENCES, self.to.len() - self.block - BLOCK_HEADER_BYTES);
        self.to[self.block..self.block + BLOCK_HEADER_BYTES].copy_from_slice(&header);
        debug_assert!(self.to.len() - self.block < count * N);
        self.done += count * N;
        self.offset = offset;
    }

    fn literals_header(&mut self, kind: u8, count: usize) {
        match low_bytes(count << 3) {
            [low, 0, _] => self.to.push(low | kind),
            _ => {
                let [low, high, _] = low_bytes(count << 4);
                self.to.extend_from_slice(&[low | LONG | kind, high]);
            }
        }
    }
}

/// Whether most of those in the middle are in runs that are worth it.
fn seem_to_rise<const N: usize>(values: &[[u8; N]], ends_max: usize) -> bool {
    let middle = values.len() / 2;
    let Some(sample) = values.get(middle..middle + SAMPLE) else { return false };
    sample.array_windows().filter(|[one, next]| !is_next(one, next)).count() <= ends_max
}

/// Behind the last of those that are as the one before but for their lowest byte, and more than it.
fn end_of_run<const N: usize>(values: &[[u8; N]], from: usize) -> usize {
    let pairs = values[from..].array_windows();
    from + 1 + pairs.take_while(|[one, next]| is_next(one, next)).count()
}

fn is_next<const N: usize>(one: &[u8; N], next: &[u8; N]) -> bool {
    let (one, next) = (number(one), number(next));
    one < next && one >> 8 == next >> 8
}

fn number<const N: usize>(of: &[u8; N]) -> u64 {
    let mut bytes = [0; 8];
    bytes[..N].copy_from_slice(of);
    u64::from_le_bytes(bytes)
}

fn block_header(kind: u8, length: usize) -> [u8; BLOCK_HEADER_BYTES] {
    let [low, middle, high] = low_bytes(length << 3);
    [low | kind << 1, middle, high]
}

/// The lowest first.
fn low_bytes(of: usize) -> [u8; 3] {
    let [low, middle, high, ..] = of.to_le_bytes();
    [low, middle, high]
}

const MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();
/// The frame's window is what it holds, whose length follows in four bytes.
const OF_ONE_SEGMENT: u8 = 0b1010_0000;
const BLOCK_HEADER_BYTES: usize = 3;
const BLOCK_BYTES_MAX: usize = 128 << 10;
/// In the header of the last block.
const LAST: u8 = 1;
/// Kinds of blocks and of literals.
const AS_IS: u8 = 0;
const SAME: u8 = 1;
const OF_SEQUENCES: u8 = 2;
/// The number of literals has twelve bits.
const LONG: u8 = 1 << 2;
/// All sequences of the block have the same codes, which follow: of their literals, of how far they look back, of their bytes.
const EACH_THE_SAME: u8 = 0b01_01_01_00;
/// No sequence takes fewer bytes of what came before.
const MATCH_MIN: usize = 3;
/// Values of which only the lowest byte differs.
const PERIOD: usize = 256;
/// So many sequences tell how far back they look, as a rule: of 11 bits at most, and fewer than 2 of 128.
const TOLD: usize = 8;
/// A run takes some 16 bytes beside its lowest ones: its first value and its block.
const RUN_MIN: usize = 8;
/// So often they may begin anew.
const FALLS_MAX: usize = 1;
/// So many of them show it.
const SAMPLE: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    /// The body of a page.
    fn body<const N: usize>(levels: &[u8], values: &[u64]) -> Vec<u8> {
        let low = |value: &u64| *value.to_le_bytes().first_chunk::<N>().unwrap();
        [levels, values.iter().map(low).collect::<Vec<_>>().as_flattened()].concat()
    }

    /// The frame of a page that zstd reads as it was; `None`: there is none.
    fn frame(width: Width, scarce: Scarce, levels: &[u8], values: &[u64]) -> Option<Vec<u8>> {
        let body = match width {
            Width::Four => body::<4>(levels, values),
            Width::Eight => body::<8>(levels, values),
        };
        let numbers = Numbers { from: levels.len(), width };
        let mut frame = b"of the page before".to_vec();
        if !numbers.pack(scarce, &body, &mut frame) {
            return None;
        }
        let read = zstd::bulk::decompress(&frame, body.len()).unwrap();
        assert!(read == body, "{width:?}, {} values from {}", values.len(), values[0]);
        Some(frame)
    }

    /// How long the frames of both widths are.
    fn both(levels: &[u8], values: &[u64]) -> [Option<usize>; 2] {
        let length = |width| Some(frame(width, Scarce::Cpu, levels, values)?.len());
        [length(Width::Four), length(Width::Eight)]
    }

    #[test]
    fn a_frame_is_what_the_format_says() {
        let values: Vec<u64> = (250..1290).collect();
        let frame = frame(Width::Four, Scarce::Cpu, &[], &values).unwrap();
        let mut wanted = vec![];
        // Its header, and the values up to the first of a run.
        wanted.extend(hex::decode("28b52ffda040100000").unwrap());
        wanted.extend(hex::decode("e00000").unwrap());
        wanted.extend((250..=256_u32).flat_map(u32::to_le_bytes));
        // Eight of the run that tell that they look back by four, the others.
        wanted.extend(hex::decode("8c000040").unwrap());
        wanted.extend(1..=8);
        wanted.extend(hex::decode("0854010200ffff01").unwrap());
        wanted.extend(hex::decode("040800740f").unwrap());
        wanted.extend(9..=255);
        wanted.extend(hex::decode("80f75401000001").unwrap());
        // The next run's lowest byte; its second one, with eight that look back by 1024, and with the others.
        wanted.extend(hex::decode("08000000").unwrap());
        wanted.extend(hex::decode("94000041020854010a00").unwrap());
        assert_eq!(hex::encode(&frame[..wanted.len()]), hex::encode(&wanted));
    }

    #[test]
    fn keys_of_a_sequence_take_next_to_nothing() {
        let keys: Vec<u64> = (1..=65_536).collect();
        for length in both(&[], &keys) {
            assert!(length.unwrap() < 65_536 / 14, "{length:?}");
        }
        // Where more than the two lowest bytes change, below zero, and at the ends; behind more levels than a block takes.
        for from in [0xFFFF_0000 - 30_000_u64, 0xFE_FFFF, u64::MAX - 90_000, (1 << 31) - 20_000] {
            let keys: Vec<u64> = (from..from + 65_000).collect();
            for levels in [0, 6, 200_000] {
                for length in both(&vec![3; levels], &keys) {
                    let length = length.unwrap() - levels;
                    assert!(length < 65_000 / 12, "{from}: {length}");
                }
            }
        }
    }

    #[test]
    fn keys_with_gaps_take_a_byte() {
        let mut dice = fastrand::Rng::with_seed(4);
        for (gap_of, per_value) in [(10, 1.1), (100, 1.1), (10_000, 0.2)] {
            let mut key = 1 << 20;
            let mut next = || {
                key += if dice.u32(..gap_of) == 0 { dice.u64(1..5) } else { 1 };
                key
            };
            let keys: Vec<u64> = (0..65_536).map(|_| next()).collect();
            for length in both(&[0; 8000], &keys) {
                let length = f64::from(u32::try_from(length.unwrap() - 8000).unwrap());
                assert!(length / 65_536. < per_value, "{gap_of}: {length}");
            }
        }
    }

    #[test]
    fn runs_of_any_length_and_whole_ones_that_are_broken_are_read_as_they_were() {
        for odd in [1, 2, 7, 8, 9, 15, 16, 17, 127, 128, 129, 254, 255, 256] {
            for at in 1..9 {
                // Whole runs, one of which has so many values only, or one more that stands twice.
                let runs = (0..10).flat_map(|run| {
                    let values = if run == at { odd } else { 256 };
                    (0..values).map(move |low| (run << 8) + low)
                });
                let less: Vec<u64> = runs.collect();
                let mut more = less.clone();
                more.insert(usize::try_from(256 * at).unwrap(), 256 * at);
                for values in [&less, &more] {
                    assert!(both(b"levels", values).iter().all(Option::is_some), "{odd} at {at}");
                }
            }
        }
        // A sample, from the middle on, is the least.
        let few: Vec<u64> = (1..=1023).collect();
        assert!(both(&[], &few).iter().all(Option::is_some));
        assert_eq!(both(&[], &few[1..]), [None, None]);
    }

    #[test]
    fn whatever_rises_is_read_as_it_was() {
        let mut dice = fastrand::Rng::with_seed(1);
        let mut frames = 0;
        for _ in 0..2000 {
            let (mut key, rows) = (dice.u64(..) >> dice.u32(..64), dice.usize(1100..5000));
            let (seldom, step) = (dice.u32(1..4000), dice.u64(1..5));
            let mut keys = vec![];
            while keys.len() < rows {
                keys.push(key);
                key = match dice.u32(..seldom) {
                    0 => match dice.u32(..4) {
                        0 => key,
                        1 => key.wrapping_sub(dice.u64(..1000)),
                        2 => key.wrapping_add(dice.u64(..1 << 20)),
                        _ => dice.u64(..),
                    },
                    1 => key.wrapping_add(step),
                    _ => key.wrapping_add(1),
                };
            }
            let levels = vec![7; dice.usize(..4000)];
            frames += both(&levels, &keys).iter().flatten().count();
        }
        assert!((1000..3990).contains(&frames), "{frames}");
    }

    /// Pages of twenty thousand values of all kinds: what zstd makes much less of is left to it.
    #[test]
    fn a_frame_is_not_much_longer_than_that_of_zstd() {
        let mut dice = fastrand::Rng::with_seed(5);
        let mut told = 0;
        for kind in 0..500 {
            let (step, gap, back) = (dice.u64(1..6), dice.u32(1..500), dice.u64(1..9000));
            let (rises, mut key) = (dice.usize(..40_000), dice.u64(..1 << 40));
            let mut next = |row: usize| {
                key += if dice.u32(..gap) == 0 { step * dice.u64(1..9) } else { 1 };
                match (row < rises, kind % 5) {
                    (true, 0) => key % back,
                    (true, _) => key,
                    (false, 1) => 7,
                    (false, 2) => key - dice.u64(..100),
                    (false, 3) => dice.u64(..),
                    (false, _) => key % 100,
                }
            };
            let values: Vec<u64> = (0..20_000).map(&mut next).collect();
            for (width, scarce, level, per_cent) in [
                (Width::Four, Scarce::Cpu, 1, 110),
                (Width::Four, Scarce::Link, 3, 110),
                (Width::Eight, Scarce::Cpu, 1, 125),
                (Width::Eight, Scarce::Link, 3, 100),
            ] {
                let Some(frame) = frame(width, scarce, &[], &values) else { continue };
                let body = match width {
                    Width::Four => body::<4>(&[], &values),
                    Width::Eight => body::<8>(&[], &values),
                };
                let zstd = zstd::bulk::compress(&body, level).unwrap().len();
                assert!(
                    frame.len() * 100 <= zstd * per_cent,
                    "{kind}, {width:?}, {scarce:?}: {} bytes, zstd {zstd}",
                    frame.len()
                );
                told += 1;
            }
        }
        assert!(told > 100, "{told}");
    }

    #[test]
    fn what_does_not_rise_is_left_to_zstd() {
        let mut dice = fastrand::Rng::with_seed(2);
        let mut none = |of: &dyn Fn(u64, &mut fastrand::Rng) -> u64| {
            let values: Vec<u64> = (0..20_000).map(|row| of(row, &mut dice)).collect();
            assert_eq!(both(&[], &values), [None, None]);
        };
        none(&|_, dice| dice.u64(..1000));
        none(&|row, _| row % 8);
        none(&|row, _| row % 2000);
        none(&|_, _| 5);
        none(&|row, _| row * 20);
        none(&|row, _| 1_000_000 - row);
        none(&|row, _| row / 2);
        // In the middle alone, before it and behind it; behind it by too much.
        none(&|row, dice| if row.abs_diff(10_000) < 2000 { row } else { dice.u64(..) });
        none(&|row, _| if row < 10_600 { row } else { 7 });
        none(&|row, _| if row > 9900 { row } else { 7 });
        none(&|row, _| if row < 10_600 { row } else { row << 20 });
        assert_eq!(both(&[], &[]), [None, None]);
    }
}
