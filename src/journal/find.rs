//! Finds the segments of a folder, and the salts that open them.
//!
//! A segment is what its header says, whatever its name. Where the header does not read, or opens no
//! frame, the salt is looked for as it stands in the file and in the index: a whole frame proves it,
//! since nothing else opens it. Where the first whole one does not stand where a segment begins, it
//! may be a stray of another segment, and those behind it are asked, too.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Batches, JournalError,
    cipher::SegmentKey,
    device::Device,
    record::{SEGMENT_HEADER_BYTES, SegmentHeader},
    recover::segment_files,
    scan::{Scan, Window},
    segment::file_number,
    store::Image,
};

/// All segments, by number.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) segments: Vec<Place>,
    /// What is wrong with headers and names.
    pub(crate) damage: Vec<JournalError>,
    /// The greatest number in any header or name.
    pub(crate) last_number: u64,
}

/// One segment.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) number: u64,
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
    /// `None`: nothing opens it.
    pub(crate) header: Option<SegmentHeader>,
    /// The header is known from elsewhere, and can be written again.
    pub(crate) rescued: bool,
}

/// What the frames say of a header.
enum Proof {
    /// It opens one: of the batch with this number, or before it.
    Opens(u64),
    Refuses,
    /// There is no whole frame.
    Silent,
}

/// Looks at the first frames of each segment. `image`: what the index holds.
///
/// # Errors
///
/// [`JournalError::Key`]: the key opens none of them. Or [`JournalError::Read`].
pub(crate) fn find(
    device: &dyn Device,
    dir: &Path,
    key: &[u8],
    image: Option<&Image>,
) -> Result<Found, JournalError> {
    let mut found = Found::default();
    let (mut refused, mut refusals) = (None, 0);
    for path in segment_files(device, dir)? {
        let Some(named) = file_number(&path) else { continue };
        let mut window = Window::probe(device, &path)?;
        let bytes = window.file_bytes()?;
        let read = window.header()?;
        let place = |number, header, rescued| {
            let path = path.clone();
            Place { number, path, bytes, header, rescued }
        };
        let proof = match &read {
            Ok(header) => proof(device, &path, key, (header.number, &header.salt))?,
            Err(_) => Proof::Silent,
        };
        let good = match (&read, proof) {
            (Ok(header), Proof::Opens(_)) => Ok(*header),
            (Ok(header), Proof::Silent) if header.number == named => Ok(*header),
            (Ok(_), Proof::Silent) => Err("its header has another number than its name"),
            (Ok(_), Proof::Refuses) => Err("its header opens none of its frames"),
            (Err(what), _) => Err(*what),
        };
        found.last_number = found.last_number.max(named);
        let segment = match good {
            Ok(header) => {
                if header.number != named {
                    let what = "its header has another number than its name";
                    found.damage.push(header_damage(&path, what, Batches::None));
                }
                found.last_number = found.last_number.max(header.number);
                place(header.number, Some(header), false)
            }
            Err(what) => {
                // A header that reads stands, though its frames may be those of another segment.
                let own = read.ok().filter(|own| own.number == named);
                let fits = |segment| own.is_none_or(|own| own.number == segment);
                let index = image.filter(|image| fits(image.checkpoint.segment));
                let rescued = rescue(device, &mut window, key, named, index)?;
                let batches = if rescued.is_some() { Batches::None } else { Batches::Segment };
                found.damage.push(header_damage(&path, what, batches));
                let own = own.filter(|_| rescued.is_none());
                if own.is_some() {
                    refused.get_or_insert_with(|| path.display().to_string());
                    refusals += 1;
                }
                let number = rescued.map_or(named, |header| header.number);
                place(number, rescued.or(own), rescued.is_some())
            }
        };
        found.segments.push(segment);
    }
    if let Some(path) = refused
        && found.segments.iter().filter(|segment| segment.header.is_some()).count() == refusals
    {
        return Err(JournalError::Key { path });
    }
    found.sort();
    Ok(found)
}

impl Found {
    /// By number; of several with the same one those whose header reads, of these the longest, of these
    /// the one with its name.
    fn sort(&mut self) {
        let named = |place: &Place| file_number(&place.path) == Some(place.number);
        self.segments.sort_by_key(|place| {
            let Place { number, rescued, bytes, .. } = *place;
            (number, place.header.is_none(), rescued, u64::MAX - bytes, !named(place))
        });
        let (mut kept, mut before): (Vec<Place>, u64) = (vec![], 0);
        for mut place in self.segments.drain(..) {
            match kept.last() {
                Some(last) if last.number == place.number => {
                    let what = "it is a copy of another segment";
                    self.damage.push(header_damage(&place.path, what, Batches::None));
                }
                _ => {
                    if let Some(header) = place.header.as_mut().filter(|_| place.rescued) {
                        header.previous_bytes = before;
                    }
                    before = place.bytes;
                    kept.push(place);
                }
            }
        }
        self.segments = kept;
    }
}

/// The header, as it can be known without it.
fn rescue(
    device: &dyn Device,
    window: &mut Window,
    key: &[u8],
    number: u64,
    image: Option<&Image>,
) -> Result<Option<SegmentHeader>, JournalError> {
    let path = window.path().to_owned();
    let path = path.as_path();
    let limit = window.file_bytes()?;
    let stands = window
        .at(0, SEGMENT_HEADER_BYTES, limit)?
        .and_then(|bytes| SegmentHeader::as_it_stands(bytes));
    let named = stands.map(|(_, salt)| (number, salt));
    let index = image.map(|image| (image.checkpoint.segment, image.checkpoint.salt));
    for (number, salt) in [named, stands, index].into_iter().flatten() {
        if let Proof::Opens(first_batch) = proof(device, path, key, (number, &salt))? {
            return Ok(Some(SegmentHeader { number, first_batch, previous_bytes: 0, salt }));
        }
    }
    Ok(None)
}

fn proof(
    device: &dyn Device,
    path: &Path,
    key: &[u8],
    (number, salt): (u64, &[u8; 32]),
) -> Result<Proof, JournalError> {
    let key = SegmentKey::derive(key, salt, number);
    let mut scan = Scan::new(Window::probe(device, path)?, None)?;
    let first = scan.first_frame()?;
    if let Some((frame, offset)) = first {
        if key.open(&frame, scan.held(&frame, offset)?).is_some() {
            return Ok(Proof::Opens(frame.batch));
        }
        if offset == SEGMENT_HEADER_BYTES as u64 {
            // With another key all segments are like this: they are not read through.
            return Ok(Proof::Refuses);
        }
    }
    let mut scan = Scan::new(Window::probe(device, path)?, Some(Arc::new(key)))?;
    Ok(match (scan.first_frame()?, first) {
        (Some((frame, _)), _) => Proof::Opens(frame.batch),
        (None, Some(_)) => Proof::Refuses,
        (None, None) => Proof::Silent,
    })
}

/// A segment whose header does not read.
pub(crate) fn header_damage(path: &Path, what: &str, batches: Batches) -> JournalError {
    JournalError::Damaged {
        path: path.display().to_string(),
        from: 0,
        to: SEGMENT_HEADER_BYTES as u64,
        batches,
        what: what.into(),
    }
}
