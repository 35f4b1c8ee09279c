//! Random damage to the files of a stopped journal, with an account of what it left whole.

use std::{collections::BTreeMap, ops::Range};

use super::*;
use crate::journal::record::{FrameHeader, Kind};

/// Files by their paths in the journal's folder.
pub(super) type Contents = BTreeMap<PathBuf, Vec<u8>>;

/// A byte that is not what was there.
const CHANGED: u64 = u64::MAX;
/// Where a segment's header has its number.
const NUMBER: Range<u64> = 16..24;
/// Where it has its salt.
const SALT: Range<u64> = 40..72;

/// All files, and where each byte of them comes from.
pub(super) struct Files {
    files: BTreeMap<PathBuf, File>,
    /// Each segment before the damage: its frames.
    segments: Vec<Vec<(u64, FrameHeader)>>,
    index_whole: bool,
    /// Segments before the damage.
    paths: Vec<PathBuf>,
}

#[derive(Clone, Default)]
struct File {
    bytes: Vec<u8>,
    /// Segment (from 1) << 32 | offset; 0 in other files.
    origin: Vec<u64>,
}

/// What was done.
#[derive(Debug)]
pub(super) struct Harm {
    pub(super) kind: &'static str,
    #[expect(dead_code, reason = "shown when a round fails")]
    place: String,
}

impl Files {
    pub(super) fn read(dir: &Path) -> Self {
        let files = BTreeMap::new();
        let mut this = Self { files, segments: vec![], index_whole: true, paths: vec![] };
        this.read_folder(dir, Path::new(""));
        let paths: Vec<_> = this.segment_paths();
        this.paths.clone_from(&paths);
        for (number, path) in paths.iter().enumerate() {
            let file = this.files.get_mut(path).unwrap();
            let offsets = 0..file.bytes.len() as u64;
            file.origin = offsets.map(|offset| origin_of(number, offset)).collect();
            this.segments.push(damage::frames_of(&dir.join(path)));
        }
        this
    }

    fn read_folder(&mut self, dir: &Path, under: &Path) {
        for entry in fs::read_dir(dir.join(under)).unwrap() {
            let entry = entry.unwrap();
            let path = under.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                self.read_folder(dir, &path);
            } else if path != Path::new("lock") && path != Path::new("reserve") {
                let bytes = fs::read(entry.path()).unwrap();
                let origin = vec![0; bytes.len()];
                self.files.insert(path, File { bytes, origin });
            }
        }
    }

    pub(super) fn write(&self, dir: &Path) {
        for (path, file) in &self.files {
            let path = dir.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, &file.bytes).unwrap();
        }
    }

    fn segment_paths(&self) -> Vec<PathBuf> {
        let is_segment = |path: &&PathBuf| path.extension().is_some_and(|end| end == "log");
        self.files
            .keys()
            .filter(is_segment)
            .filter(|path| path.components().count() == 1)
            .cloned()
            .collect()
    }

    /// Whether segment `segment` (from 0) still has bytes `from..to`, in every file that has its salt.
    fn holds(&self, segment: usize, from: u64, to: u64) -> bool {
        let mut files = self
            .segment_paths()
            .into_iter()
            .map(|path| &self.files[&path])
            .filter(|file| file.has_in_place(segment, SALT))
            .peekable();
        files.peek().is_some() && files.all(|file| file.has(segment, from..to))
    }

    fn holds_frame(&self, segment: usize, (offset, header): &(u64, FrameHeader)) -> bool {
        self.holds(segment, *offset, offset + header.frame_bytes())
    }

    /// Whether all frames of a batch are there.
    pub(super) fn holds_batch(&self, number: u64) -> bool {
        let mut found = false;
        for (segment, frames) in self.segments.iter().enumerate() {
            for frame in frames {
                if frame.1.kind.is_payload() && frame.1.batch == number {
                    found = true;
                    if !self.holds_frame(segment, frame) {
                        return false;
                    }
                }
            }
        }
        found
    }

    pub(super) fn index_is_whole(&self) -> bool {
        self.index_whole
    }

    fn last_frames(&self) -> &[(u64, FrameHeader)] {
        self.segments.last().unwrap()
    }

    /// Whether there is a copy of a segment that nothing opens, and nothing tells from a lost one.
    pub(super) fn has_stranger(&self) -> bool {
        let known = |path: &PathBuf| self.paths.contains(path);
        self.segment_paths().iter().any(|path| !known(path) && !self.opens(path))
    }

    /// Whether a file still says which segment it is, and has a frame that proves it.
    fn opens(&self, path: &Path) -> bool {
        let file = &self.files[path];
        self.segments.iter().enumerate().any(|(segment, frames)| {
            let holds = |(offset, header): &(u64, FrameHeader)| {
                file.has(segment, *offset..*offset + header.frame_bytes())
            };
            let says = |field| file.has_in_place(segment, field);
            says(NUMBER) && says(SALT) && frames.iter().any(holds)
        })
    }

    /// Whether frames that hold facts are gone from the last segment, or what opens it.
    pub(super) fn facts_are_hurt(&self) -> bool {
        let last = self.segments.len() - 1;
        !self.holds(last, SALT.start, SALT.end)
            || self
                .last_frames()
                .iter()
                .any(|frame| !matches!(frame.1.kind, Kind::Batch) && !self.holds_frame(last, frame))
    }

    /// Whether something is gone from the last group: nothing tells that from a torn tail.
    pub(super) fn last_group_is_hurt(&self) -> bool {
        let last = self.segments.len() - 1;
        let Some((_, end)) = self.last_frames().last() else { return true };
        !self.holds(last, SALT.start, SALT.end)
            || self
                .last_frames()
                .iter()
                .any(|frame| frame.1.frame >= end.group && !self.holds_frame(last, frame))
    }
}

impl File {
    /// Whether it has bytes `range` of a segment, wherever.
    fn has(&self, segment: usize, range: Range<u64>) -> bool {
        let wanted: Vec<u64> = range.map(|offset| origin_of(segment, offset)).collect();
        let begin = self.origin.iter().position(|origin| *origin == wanted[0]);
        begin.is_some_and(|begin| self.origin[begin..].starts_with(&wanted))
    }

    /// Whether it has them where they were.
    fn has_in_place(&self, segment: usize, range: Range<u64>) -> bool {
        let place = usize::try_from(range.start).unwrap();
        self.has(segment, range.clone())
            && self.origin.get(place) == Some(&origin_of(segment, range.start))
    }
}

impl Harm {
    /// Does one to three things to the files.
    pub(super) fn draw(files: &mut Files, old: &Contents, rng: &mut fastrand::Rng) -> Vec<Self> {
        let many = if rng.u32(0..3) == 0 { rng.usize(2..4) } else { 1 };
        (0..many)
            .map(|_| if rng.u32(0..5) == 0 { index(files, old, rng) } else { segment(files, rng) })
            .collect()
    }
}

/// Where byte `offset` of segment `segment` (from 0) comes from.
fn origin_of(segment: usize, offset: u64) -> u64 {
    (segment as u64 + 1) << 32 | offset
}

/// The index of a journal, as it is now.
pub(super) fn index_files(dir: &Path) -> Contents {
    let read = Files::read(dir).files.into_iter();
    let index = read.filter(|(path, _)| path.starts_with("index"));
    index.map(|(path, file)| (path, file.bytes)).collect()
}

fn harm(kind: &'static str, place: String) -> Harm {
    Harm { kind, place }
}

/// Something to the index.
fn index(files: &mut Files, old: &Contents, rng: &mut fastrand::Rng) -> Harm {
    files.index_whole = false;
    let under = |path: &&PathBuf| path.starts_with("index");
    let paths: Vec<_> = files.files.keys().filter(under).cloned().collect();
    let chosen = rng.choice(&paths).cloned();
    match (rng.u32(0..7), chosen) {
        (5, _) if !old.is_empty() => {
            files.files.retain(|path, _| !path.starts_with("index"));
            put(files, old.clone());
            harm("index stale", String::new())
        }
        (6, Some(path)) if old.contains_key(&path) => {
            let bytes = old[&path].clone();
            let place = path.display().to_string();
            put(files, [(path, bytes)].into());
            harm("index file stale", place)
        }
        (0, _) | (_, None) => {
            files.files.retain(|path, _| !path.starts_with("index"));
            harm("index removed", String::new())
        }
        (1, Some(path)) => {
            files.files.remove(&path);
            harm("index file removed", path.display().to_string())
        }
        (2, _) => {
            files.files.insert("index.busy".into(), File::default());
            harm("index busy", String::new())
        }
        (3, Some(path)) => {
            let file = files.files.get_mut(&path).unwrap();
            let length = rng.usize(0..=file.bytes.len());
            file.bytes.truncate(length);
            harm("index file cut", format!("{} to {length}", path.display()))
        }
        (_, Some(path)) => {
            let file = files.files.get_mut(&path).unwrap();
            let times = rng.usize(1..9);
            for _ in 0..times.min(file.bytes.len()) {
                let place = rng.usize(0..file.bytes.len());
                file.bytes[place] ^= 1 << rng.u32(0..8);
            }
            harm("index bits", path.display().to_string())
        }
    }
}

fn put(files: &mut Files, contents: Contents) {
    for (path, bytes) in contents {
        let origin = vec![0; bytes.len()];
        files.files.insert(path, File { bytes, origin });
    }
}

/// A range of up to `most` bytes.
fn range(rng: &mut fastrand::Rng, length: usize, most: usize) -> Range<usize> {
    if length == 0 {
        return 0..0;
    }
    let from = rng.usize(0..length);
    from..(from + rng.usize(1..=most)).min(length)
}

/// Something to a segment.
fn segment(files: &mut Files, rng: &mut fastrand::Rng) -> Harm {
    let paths = files.segment_paths();
    let Some(path) = rng.choice(&paths).cloned() else {
        return harm("nothing left", String::new());
    };
    // The last one matters most.
    let path = if rng.bool() { paths[paths.len() - 1].clone() } else { path };
    let other = rng.choice(&paths).cloned().unwrap();
    let name = path.display().to_string();
    match rng.u32(0..13) {
        0 => swap_ranges(files, (&path, &other), rng),
        1 => {
            if other != path {
                let one = files.files.remove(&path).unwrap();
                let two = files.files.insert(other.clone(), one).unwrap();
                files.files.insert(path, two);
            }
            harm("swapped", format!("{name} and {}", other.display()))
        }
        2 => {
            files.files.remove(&path);
            harm("removed", name)
        }
        3 => {
            let number = segment::file_number(&path).unwrap() + rng.u64(1..4);
            let to = PathBuf::from(segment::file_name(number));
            let file = files.files[&path].clone();
            files.files.entry(to).or_insert(file);
            harm("segment doubled", format!("{name} as {number}"))
        }
        _ => bytes(files.files.get_mut(&path).unwrap(), &name, rng),
    }
}

/// Something to the bytes of a segment.
fn bytes(file: &mut File, name: &str, rng: &mut fastrand::Rng) -> Harm {
    let frames = damage::frames_in(&file.bytes);
    let length = file.bytes.len();
    match rng.u32(0..13) {
        0 => {
            let to = rng.usize(0..=length);
            file.bytes.truncate(to);
            file.origin.truncate(to);
            harm("cut", format!("{name} to {to}"))
        }
        1 | 2 => {
            let times = rng.usize(1..5);
            let places: Vec<_> = (0..times).map(|_| rng.usize(0..length.max(1))).collect();
            for place in places.iter().filter(|place| **place < length) {
                file.bytes[*place] ^= 1 << rng.u32(0..8);
                file.origin[*place] = CHANGED;
            }
            harm("bits", format!("{name} {places:?}"))
        }
        3 | 4 => {
            let most = *rng.choice(&[16, 200, 512, 4096]).unwrap();
            let at = range(rng, length, most);
            let zero = rng.bool();
            file.bytes[at.clone()].fill_with(|| if zero { 0 } else { rng.u8(..) });
            file.origin[at.clone()].fill(CHANGED);
            harm(if zero { "zeroed" } else { "garbled" }, format!("{name} {at:?}"))
        }
        5 => {
            let to = length.min(512);
            file.bytes[..to].fill(0);
            file.origin[..to].fill(CHANGED);
            harm("first sector", name.into())
        }
        8 | 9 if frames.len() > 1 => {
            let mut two = rng.choose_multiple(&frames, 2);
            two.sort_by_key(|(offset, _)| *offset);
            let (one, other) = (extent(two[0]), extent(two[1]));
            swap_apart(&mut file.bytes, &one, &other);
            swap_apart(&mut file.origin, &one, &other);
            harm("frames swapped", format!("{name} {one:?} and {other:?}"))
        }
        10 if !frames.is_empty() => {
            let at = extent(rng.choice(&frames).unwrap());
            file.bytes.drain(at.clone());
            file.origin.drain(at.clone());
            harm("frame removed", format!("{name} {at:?}"))
        }
        6 | 7 if !frames.is_empty() => {
            let Range { start: from, end: to } = extent(rng.choice(&frames).unwrap());
            let copy = file.bytes[from..to].to_vec();
            let into = extent(rng.choice(&frames).unwrap()).start;
            let origin = vec![CHANGED; copy.len()];
            file.bytes.splice(into..into, copy);
            file.origin.splice(into..into, origin);
            harm("frame doubled", format!("{name} {from}..{to} at {into}"))
        }
        _ => {
            let more = rng.usize(1..3000);
            let zero = rng.bool();
            file.bytes.extend((0..more).map(|_| if zero { 0 } else { rng.u8(..) }));
            file.origin.resize(length + more, CHANGED);
            harm("grown", format!("{name} by {more}"))
        }
    }
}

fn extent((offset, header): &(u64, FrameHeader)) -> Range<usize> {
    let from = usize::try_from(*offset).unwrap();
    from..from + usize::try_from(header.frame_bytes()).unwrap()
}

/// Swaps two ranges of any lengths, `one` before `other`.
fn swap_apart<T: Clone>(items: &mut Vec<T>, one: &Range<usize>, other: &Range<usize>) {
    let swapped = [&items[other.clone()], &items[one.end..other.start], &items[one.clone()]];
    let swapped = swapped.concat();
    items.splice(one.start..other.end, swapped);
}

fn swap_ranges(files: &mut Files, (one, two): (&Path, &Path), rng: &mut fastrand::Rng) -> Harm {
    let most = *rng.choice(&[16, 200, 512, 4096]).unwrap();
    let a = range(rng, files.files[one].bytes.len(), most);
    let b = range(rng, files.files[two].bytes.len(), most);
    let length = a.len().min(b.len());
    let (a, b) = (a.start..a.start + length, b.start..b.start + length);
    let from = files.files[one].bytes[a.clone()].to_vec();
    let with = files.files[two].bytes[b.clone()].to_vec();
    for (path, at, bytes) in [(one, &a, with), (two, &b, from)] {
        let file = files.files.get_mut(path).unwrap();
        file.bytes[at.clone()].copy_from_slice(&bytes);
        file.origin[at.clone()].fill(CHANGED);
    }
    harm("ranges swapped", format!("{} {a:?} and {} {b:?}", one.display(), two.display()))
}
