//! The doors of tests/fuzz to the journal's bytes: frames, plaintexts, whole segments.
//!
//! A checksum stands before most of what could be wrong, so that a damaged disk gets no further; here it is
//! mended, and where the bytes say so frames are sealed anew, as if the key's owner had written them.

use std::sync::Arc;

use super::{
    cipher::SegmentKey,
    device::FileSystem,
    pack::{Packer, Unpacker},
    record::{
        BATCH_PREFIX_BYTES, BatchPrefix, FRAME_HEADER_BYTES, FrameHeader, SEGMENT_HEADER_BYTES,
        SegmentHeader, TAG_BYTES, push_fact, read_facts,
    },
    scan::{Item, Scan, Window},
    segment::{file_name, file_number},
    store::Checkpoint,
    tail::{Beside, read_tail},
    verify::{Order, Verifier},
    watermark::Progress,
};
use crate::{config::Secret, disk};

/// The head of a segment, or of a frame: it is written again as it was.
pub fn frame(bytes: &[u8]) {
    for mended in [mended(bytes, SEGMENT_HEADER_BYTES), bytes.to_vec()] {
        if let Ok(header) = SegmentHeader::decode(&mended) {
            assert_eq!(header.encode()[..], mended[..SEGMENT_HEADER_BYTES]);
        }
    }
    for mended in [mended(bytes, FRAME_HEADER_BYTES), bytes.to_vec()] {
        if let Ok(header) = FrameHeader::decode(&mended) {
            assert_eq!(header.encode()[..], mended[..FRAME_HEADER_BYTES]);
        }
    }
    let name =
        std::path::Path::new(std::ffi::OsStr::new(std::str::from_utf8(bytes).unwrap_or_default()));
    if let (Some(number), Some(file)) = (file_number(name), name.file_stem()) {
        assert_eq!(Some(file), std::path::Path::new(&file_name(number)).file_stem());
    }
}

/// The plaintext of a frame, as one of any kind.
pub fn plaintext(bytes: &[u8]) {
    if let Some(facts) = read_facts(bytes) {
        let mut again = vec![];
        facts.changes.iter().for_each(|(key, value)| push_fact(&mut again, key, value.as_deref()));
        assert_eq!(again, bytes, "facts are what was written");
    }
    if let Some(progress) = Progress::decode(bytes) {
        let mut again = progress.encode();
        if [8, 16].contains(&(again.len() - bytes.len())) {
            // Written before transactions were counted, or their time was kept.
            again.truncate(bytes.len());
        }
        assert_eq!(again, bytes, "the watermark is what was written");
    }
    if let Some((prefix, packed)) = BatchPrefix::split(bytes) {
        assert_eq!(packed, &bytes[BATCH_PREFIX_BYTES..]);
        let again = BatchPrefix::split(&prefix.encode()).map(|(again, _)| again);
        assert_eq!(again, Some(prefix));
    }
    for bytes in [mended(bytes, bytes.len()), bytes.to_vec()] {
        if let Some(checkpoint) = Checkpoint::decode(&bytes) {
            assert_eq!(Checkpoint::decode(&checkpoint.encode()), Some(checkpoint));
        }
    }
    let mut unpacker = Unpacker::new().expect("zstd has memory");
    let mut packer = Packer::new().expect("zstd has memory");
    if let Some(facts) = unpacker.facts(bytes) {
        let mut plain = vec![];
        facts.changes.iter().for_each(|(key, value)| push_fact(&mut plain, key, value.as_deref()));
        let packed = packer.facts(&plain).expect("facts are packed");
        assert_eq!(unpacker.facts(&packed), Some(facts));
    }
    for last in [false, true] {
        let mut run = vec![];
        let commit = unpacker.part(bytes, last, &mut run);
        assert!(commit.is_some() || run.len() <= UNPACKED_BYTES_MAX);
    }
}

/// `how u8 | a segment's file`; with the lowest bit of `how` the payloads are plaintexts, yet to be sealed.
pub fn segment(bytes: &[u8]) {
    let Some((how, file)) = bytes.split_first() else { return };
    let file = if how & 1 == 1 { sealed(file) } else { file.to_vec() };
    let length = u64::try_from(file.len()).unwrap_or(u64::MAX);
    let (_kept, path) = disk::in_memory(&file).expect("room in memory");
    let open = || Window::open(&FileSystem, &path).expect("the file is there");
    let opener = SegmentHeader::decode(&file)
        .ok()
        .map(|header| Arc::new(SegmentKey::derive(KEY, &header.salt, header.number)));
    for key in [None, opener] {
        scanned(open, key, length);
    }
    let (key, mut order) = (Secret::new(KEY.to_vec()), Order::default());
    if let Ok(mut verifier) = Verifier::new(open(), &key, &mut order) {
        while verifier.step().expect("the file is read") {}
        assert!(verifier.report.frames * FRAME_HEADER_BYTES as u64 <= length);
    }
}

/// Reads a segment's frames, and what its end says; without a key, only what stands in the heads.
fn scanned(open: impl Fn() -> Window, key: Option<Arc<SegmentKey>>, length: u64) {
    let mut scan = Scan::new(open(), key.clone()).expect("the file is read");
    let mut at = SEGMENT_HEADER_BYTES as u64;
    while let Some(item) = scan.next().expect("the file is read") {
        // Frames come in the order of their numbers, wherever they stand; bad bytes where nothing was read yet,
        // and none where a number is missing.
        let (from, to, whole) = match item {
            Item::Frame(header, from) => (from, from + header.frame_bytes(), from <= at),
            Item::Bad(bad) => (bad.from, bad.to, bad.from == at && bad.to >= at),
        };
        assert!(whole && to <= length, "nothing is passed over: {at} {from} {to}");
        at = at.max(to);
    }
    assert_eq!(at, length.max(SEGMENT_HEADER_BYTES as u64));
    let tail = || read_tail(open(), key.clone(), Beside::default());
    assert_eq!(format!("{:?}", tail()), format!("{:?}", tail()));
    let tail = tail();
    if let Ok(tail) = tail {
        assert!(tail.group_from <= tail.end && tail.end <= at);
    }
}

/// Checksums the head of so many bytes anew; its last four are the sum.
fn mended(bytes: &[u8], head: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if let Some(sum) = head.checked_sub(4).filter(|_| bytes.len() >= head) {
        let crc = crc32c::crc32c(&bytes[..sum]);
        bytes[sum..head].copy_from_slice(&crc.to_le_bytes());
    }
    bytes
}

/// Seals every frame of a file whose payloads are plaintexts.
fn sealed(file: &[u8]) -> Vec<u8> {
    let mut out = mended(file, SEGMENT_HEADER_BYTES);
    let Ok(segment) = SegmentHeader::decode(&out) else { return out };
    let key = SegmentKey::derive(KEY, &segment.salt, segment.number);
    let mut rest = out.split_off(SEGMENT_HEADER_BYTES);
    while let Ok(header) = FrameHeader::decode(&mended(&rest, FRAME_HEADER_BYTES)) {
        let plain = rest.split_off(FRAME_HEADER_BYTES);
        let end = (header.payload_len() - TAG_BYTES).min(plain.len());
        key.seal(header, &plain[..end], &mut out);
        rest = plain[end..].to_vec();
    }
    out.extend(rest);
    out
}

/// The plaintexts of a file's frames, as [`segment`] takes them.
///
/// # Panics
///
/// The file is no whole segment under the key of [`journal_key`].
pub fn unsealed(file: &[u8]) -> Vec<u8> {
    let (head, mut rest) = file.split_at(SEGMENT_HEADER_BYTES);
    let segment = SegmentHeader::decode(head).expect("a whole segment");
    let key = SegmentKey::derive(KEY, &segment.salt, segment.number);
    let mut out = [&[1][..], head].concat();
    while let Ok(header) = FrameHeader::decode(rest) {
        let (frame, after) = rest.split_at(FRAME_HEADER_BYTES + header.payload_len());
        let mut payload = frame[FRAME_HEADER_BYTES..].to_vec();
        out.extend(&frame[..FRAME_HEADER_BYTES]);
        out.extend(key.open(&header, &mut payload).expect("sealed with the key"));
        rest = after;
    }
    out
}

/// Heads and plaintexts of the frames in what [`unsealed`] gave.
pub fn plaintexts(unsealed: &[u8]) -> Vec<(&[u8], &[u8])> {
    let mut rest = unsealed.get(1 + SEGMENT_HEADER_BYTES..).unwrap_or_default();
    let mut found = vec![];
    while let Ok(header) = FrameHeader::decode(rest) {
        let (frame, after) = rest.split_at(FRAME_HEADER_BYTES + header.payload_len() - TAG_BYTES);
        found.push(frame.split_at(FRAME_HEADER_BYTES));
        rest = after;
    }
    found
}

/// The key of the segments that [`segment`] takes.
pub fn journal_key() -> Secret {
    Secret::new(KEY.to_vec())
}

const KEY: &[u8] = &[7; 32];
/// What a run takes before it is known to be none.
const UNPACKED_BYTES_MAX: usize = 1 << 30;
