//! Opens what was sealed: for restore, verify and cat, which have the lake key.
//!
//! **Invariant:** what is given out has passed the tag's check; nothing stays of what has not.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::Path,
};

use super::{
    LakeKey, Metadata, SealError, envelope,
    gcm::{Decryptor, TAG_BYTES},
};
use crate::disk;

/// Opens the object `sealed`, as it came from S3 with its metadata, into the file `into`. An object that we
/// did not encrypt is linked there, or copied.
///
/// # Errors
///
/// [`SealError::Key`] and [`SealError::Altered`]; then nothing stands at `into`.
pub fn open_file(
    sealed: &Path,
    metadata: &Metadata,
    lake_key: Option<&LakeKey>,
    into: &Path,
) -> Result<(), SealError> {
    disk::remove(into).map_err(|why| SealError::disk("remove", into, why))?;
    if !envelope::is_sealed(metadata) {
        let linked = fs::hard_link(sealed, into);
        let copied = linked.or_else(|_| fs::copy(sealed, into).map(drop));
        return copied.map_err(|why| SealError::disk("copy", into, why));
    }
    let opened = open_sealed(sealed, metadata, lake_key, into);
    if opened.is_err() {
        disk::remove(into).map_err(|why| SealError::disk("remove", into, why))?;
    }
    opened
}

/// Opens an object that is in memory, in place where it can.
///
/// # Errors
///
/// [`SealError::Key`] and [`SealError::Altered`].
pub fn open_bytes(
    mut sealed: Vec<u8>,
    metadata: &Metadata,
    lake_key: Option<&LakeKey>,
) -> Result<Vec<u8>, SealError> {
    if !envelope::is_sealed(metadata) {
        return Ok(sealed);
    }
    let mut decryptor = envelope::open(lake_key, metadata, sealed.len() as u64)?;
    let (bytes, tag) = sealed.split_last_chunk_mut::<TAG_BYTES>().ok_or(TOO_SHORT)?;
    decryptor.apply(bytes)?;
    decryptor.finish(tag)?;
    sealed.truncate(sealed.len() - TAG_BYTES);
    Ok(sealed)
}

fn open_sealed(
    sealed: &Path,
    metadata: &Metadata,
    lake_key: Option<&LakeKey>,
    into: &Path,
) -> Result<(), SealError> {
    let read = |why| SealError::disk("read", sealed, why);
    let mut from = File::open(sealed).map_err(read)?;
    let length = from.metadata().map_err(read)?.len();
    let mut decryptor = envelope::open(lake_key, metadata, length)?;
    let plain = length.checked_sub(TAG_BYTES as u64).ok_or(TOO_SHORT)?;
    let to = disk::create(into).map_err(|why| SealError::disk("create", into, why))?;
    copy(&mut (&mut from).take(plain), &to, &mut decryptor, sealed, into)?;
    let mut tag = [0; TAG_BYTES];
    from.read_exact(&mut tag).map_err(read)?;
    Ok(decryptor.finish(&tag)?)
}

fn copy(
    from: &mut impl Read,
    mut to: &File,
    decryptor: &mut Decryptor,
    sealed: &Path,
    into: &Path,
) -> Result<(), SealError> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let read = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(why) if why.kind() == io::ErrorKind::Interrupted => continue,
            Err(why) => return Err(SealError::disk("read", sealed, why)),
        };
        decryptor.apply(&mut buffer[..read])?;
        to.write_all(&buffer[..read]).map_err(|why| SealError::disk("write", into, why))?;
    }
}

const TOO_SHORT: SealError = SealError::Altered("it is shorter than its tag");
const BUFFER_BYTES: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::Secret,
        seal::{
            Object,
            memory::{Bench, Log, NOON, change, relation, table},
        },
    };

    fn key(byte: u8) -> LakeKey {
        LakeKey::new(Secret::new(vec![byte; 32])).unwrap()
    }

    fn sealed(bench: &Bench) -> Object {
        let mut log = Log::default();
        log.whole(NOON, &[&[relation(&table(1, "a")), change(b'I', 1, &["1", "n"])]]);
        log.whole(NOON, &[&[]]).whole(NOON, &[&[]]).whole(NOON, &[&[]]);
        bench.run(log.batches).unwrap()[1].objects[0].clone()
    }

    #[test]
    fn a_sealed_object_opens_with_its_key_alone() {
        let bench = Bench::client(1);
        let object = sealed(&bench);
        let sent = bench.sent(&object);
        assert!(!sent.starts_with(b"PAR1"));
        assert_eq!(
            object.metadata["x-amz-unencrypted-content-length"],
            (sent.len() - 16).to_string()
        );
        let (from, into) = (bench.dir.path().join("from"), bench.dir.path().join("into"));
        fs::write(&from, &sent).unwrap();
        open_file(&from, &object.metadata, Some(&key(1)), &into).unwrap();
        assert_eq!(fs::read(&into).unwrap(), bench.file(&object));
        assert!(fs::read(&into).unwrap().starts_with(b"PAR1"));
        let wrong = open_file(&from, &object.metadata, Some(&key(2)), &into);
        assert!(matches!(wrong, Err(SealError::Key(_))));
        assert!(!into.exists());
    }

    #[test]
    fn an_altered_object_leaves_nothing_behind() {
        let bench = Bench::client(1);
        let object = sealed(&bench);
        let sent = bench.sent(&object).to_vec();
        let (from, into) = (bench.dir.path().join("from"), bench.dir.path().join("into"));
        let mut flipped = sent.clone();
        flipped[100] ^= 1;
        let mut tag = sent.clone();
        *tag.last_mut().unwrap() ^= 1;
        for altered in [flipped, tag, sent[..sent.len() - 1].to_vec(), sent[..10].to_vec(), vec![]]
        {
            fs::write(&from, &altered).unwrap();
            let opened = open_file(&from, &object.metadata, Some(&key(1)), &into);
            assert!(matches!(opened, Err(SealError::Altered(_))), "{opened:?}");
            assert!(!into.exists());
            let opened = open_bytes(altered, &object.metadata, Some(&key(1)));
            assert!(matches!(opened, Err(SealError::Altered(_))), "{opened:?}");
        }
    }

    #[test]
    fn what_we_did_not_encrypt_is_given_as_it_is() {
        let bench = Bench::new();
        let object = sealed(&bench);
        let (from, into) = (bench.dir.path().join("from"), bench.dir.path().join("into"));
        fs::write(&from, bench.sent(&object)).unwrap();
        fs::write(&into, b"old").unwrap();
        open_file(&from, &object.metadata, None, &into).unwrap();
        assert_eq!(fs::read(&into).unwrap(), bench.sent(&object));
    }
}
