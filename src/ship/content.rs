//! What a request sends: bytes at hand, or an object's as they come from the spool, so that no more than a few
//! pieces of it are in memory.
//!
//! **Invariant:** what comes from the spool comes whole only if its checksum is the one that was asked for:
//! the last piece is held back until that is known.

use std::{
    ops::Range,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use crc_fast::{CrcAlgorithm::Crc64Nvme, Digest};
use tokio::{
    runtime::Handle,
    sync::mpsc::{self, Receiver, Sender},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Object, ReadSpool, ShipError, checksum};

/// Bytes that are to be sent, and have not been yet.
#[derive(Debug)]
pub struct Content {
    bytes: u64,
    here: Bytes,
    coming: Option<Receiver<Result<Bytes, ShipError>>>,
    /// Cancelled when nobody wants it any more, though somebody may still hold it.
    over: CancellationToken,
}

/// The thread that reads.
struct Reader<'a> {
    runtime: Handle,
    to: &'a Sender<Result<Bytes, ShipError>>,
    over: &'a CancellationToken,
}

impl Content {
    /// Bytes of `object` as a thread for blocking work reads them, which ends with the last that is wanted. `sum`:
    /// their checksum.
    pub(super) fn read(
        spool: Arc<impl ReadSpool + ?Sized + 'static>,
        object: Arc<Object>,
        range: Range<u64>,
        sum: String,
    ) -> Self {
        let bytes = range.end - range.start;
        let (send, coming) = mpsc::channel(AHEAD);
        let (runtime, over) = (Handle::current(), CancellationToken::new());
        let until = over.clone();
        tokio::task::spawn_blocking(move || {
            let reader = Reader { runtime, to: &send, over: &until };
            reader.pass_on(&*spool, &object, range, &sum);
        });
        Self { bytes, here: Bytes::new(), coming: Some(coming), over }
    }

    /// How many they are.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Dropped, it ends the reading: a connection can hold what it sends long after its request was given up.
    pub(super) fn wanted(&self) -> DropGuard {
        self.over.clone().drop_guard()
    }

    /// At most `most` bytes, once there are some; `None` behind the last.
    pub(super) fn poll_next(
        &mut self,
        context: &mut Context<'_>,
        most: usize,
    ) -> Poll<Option<Result<Bytes, ShipError>>> {
        while self.here.is_empty() {
            if self.bytes == 0 {
                return Poll::Ready(None);
            }
            let coming = self.coming.as_mut().map(|coming| coming.poll_recv(context));
            match coming {
                Some(Poll::Pending) => return Poll::Pending,
                Some(Poll::Ready(Some(Ok(piece)))) => self.here = piece,
                Some(Poll::Ready(Some(Err(error)))) => return Poll::Ready(Some(Err(error))),
                // The runtime ends, or the read panicked, which ends the process too.
                Some(Poll::Ready(None)) | None => {
                    return Poll::Ready(Some(Err(ShipError::Stopped)));
                }
            }
        }
        let piece = self.here.split_to(self.here.len().min(most));
        self.bytes = self.bytes.saturating_sub(piece.len() as u64);
        Poll::Ready(Some(Ok(piece)))
    }

    /// All of them.
    ///
    /// # Errors
    ///
    /// [`ShipError::Lost`], [`ShipError::Spool`], [`ShipError::Stopped`].
    pub async fn whole(mut self) -> Result<Bytes, ShipError> {
        let mut whole = BytesMut::new();
        while let Some(piece) =
            std::future::poll_fn(|context| self.poll_next(context, usize::MAX)).await
        {
            let piece = piece?;
            if self.bytes == 0 && whole.is_empty() {
                return Ok(piece);
            }
            whole.extend_from_slice(&piece);
        }
        Ok(whole.freeze())
    }
}

impl From<Bytes> for Content {
    fn from(here: Bytes) -> Self {
        let over = CancellationToken::new();
        Self { bytes: here.len() as u64, here, coming: None, over }
    }
}

impl Reader<'_> {
    /// Reads, and passes on what is read. Ends when nobody wants it any more.
    fn pass_on(
        &self,
        spool: &(impl ReadSpool + ?Sized),
        object: &Object,
        range: Range<u64>,
        sum: &str,
    ) {
        let (mut digest, mut held) = (Digest::new(Crc64Nvme), None);
        let read = spool.read(object, range, &mut |piece| {
            digest.update(&piece);
            held.replace(piece).is_none_or(|before| self.send(Ok(before)))
        });
        let end = match read {
            Ok(()) if checksum::text(digest.finalize()) != sum => Some(Err(altered(object))),
            Ok(()) => held.map(Ok),
            Err(error) => Some(Err(error)),
        };
        if let Some(end) = end {
            self.send(end);
        }
    }

    /// Whether it is still wanted.
    fn send(&self, piece: Result<Bytes, ShipError>) -> bool {
        self.runtime.block_on(async {
            tokio::select! {
                biased;
                () = self.over.cancelled() => false,
                sent = self.to.send(piece) => sent.is_ok(),
            }
        })
    }
}

pub(super) fn altered(object: &Object) -> ShipError {
    ShipError::Lost { path: object.spool.clone(), why: "not what was sealed".into() }
}

/// Pieces that are read and not taken: one, beside the one that is held back, the one that is read and its
/// ciphertext. Of 256 KiB each: a MiB a request.
const AHEAD: usize = 1;

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    use super::*;
    use crate::ship::Encryption;

    /// Pieces of a thousand bytes each, some of them; how many were asked for.
    struct Pieces(usize, AtomicUsize);

    impl ReadSpool for Pieces {
        fn read(
            &self,
            _: &Object,
            range: Range<u64>,
            each: &mut dyn FnMut(Bytes) -> bool,
        ) -> Result<(), ShipError> {
            let length = usize::try_from(range.end - range.start).unwrap();
            let whole = bytes(length);
            for piece in whole.chunks(1000).take(self.0) {
                self.1.fetch_add(1, Ordering::Relaxed);
                if !each(Bytes::copy_from_slice(piece)) {
                    return Ok(());
                }
            }
            match whole.len() > self.0.saturating_mul(1000) {
                true => Err(ShipError::Lost { path: "s".into(), why: "cut".into() }),
                false => Ok(()),
            }
        }
    }

    fn bytes(length: usize) -> Vec<u8> {
        (0..251).cycle().take(length).collect()
    }

    fn content(pieces: &Arc<Pieces>, length: usize, sum: String) -> Content {
        let object = Object {
            key: "k".into(),
            bytes: length as u64,
            sha256: String::new(),
            crc64nvme: String::new(),
            rows: BTreeMap::new(),
            table: "public.t".into(),
            version: 1,
            encryption: Encryption::None,
            metadata: BTreeMap::new(),
            spool: "s".into(),
            sums: vec![],
        };
        Content::read(Arc::clone(pieces), Arc::new(object), 0..length as u64, sum)
    }

    async fn next(content: &mut Content, most: usize) -> Option<Result<Bytes, ShipError>> {
        std::future::poll_fn(|context| content.poll_next(context, most)).await
    }

    #[tokio::test]
    async fn the_pieces_are_the_whole() {
        for length in [1, 999, 1000, 1001, 7777] {
            let pieces = Arc::new(Pieces(usize::MAX, AtomicUsize::new(0)));
            let whole = content(&pieces, length, checksum::of(&bytes(length))).whole().await;
            assert_eq!(whole.unwrap(), bytes(length));
            let mut slices = content(&pieces, length, checksum::of(&bytes(length)));
            let mut found = vec![];
            while let Some(slice) = next(&mut slices, 300).await {
                let slice = slice.unwrap();
                assert!(slice.len() <= 300);
                found.extend_from_slice(&slice);
                assert_eq!(slices.bytes(), (length - found.len()) as u64);
            }
            assert_eq!(found, bytes(length));
        }
    }

    #[tokio::test]
    async fn what_is_not_what_was_sealed_never_comes_whole() {
        // Wrong by its sum; cut short by the spool.
        for (of, sum) in [(usize::MAX, bytes(1)), (3, bytes(5000))] {
            let pieces = Arc::new(Pieces(of, AtomicUsize::new(0)));
            let mut content = content(&pieces, 5000, checksum::of(&sum));
            let mut came = 0;
            let error = loop {
                match next(&mut content, usize::MAX).await.expect("never behind the last") {
                    Ok(piece) => came += piece.len(),
                    Err(error) => break error,
                }
            };
            assert!(matches!(error, ShipError::Lost { .. }), "{error:?}");
            assert!(came < 5000 && content.bytes() > 0, "{came}");
        }
    }

    #[tokio::test]
    async fn no_more_is_read_than_is_taken() {
        let pieces = Arc::new(Pieces(usize::MAX, AtomicUsize::new(0)));
        let mut content = content(&pieces, 100_000, checksum::of(&bytes(100_000)));
        next(&mut content, usize::MAX).await.unwrap().unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        let read = pieces.1.load(Ordering::Relaxed);
        // One taken, one waiting, one that finds no room, one held back.
        assert!(read <= 4, "{read}");
        drop(content);
        while Arc::strong_count(&pieces) > 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(pieces.1.load(Ordering::Relaxed), read, "nobody takes the rest");
    }

    #[tokio::test]
    async fn what_is_held_and_not_wanted_any_more_is_read_no_further() {
        let pieces = Arc::new(Pieces(usize::MAX, AtomicUsize::new(0)));
        let mut content = content(&pieces, 100_000, checksum::of(&bytes(100_000)));
        let wanted = content.wanted();
        next(&mut content, usize::MAX).await.unwrap().unwrap();
        drop(wanted);
        while Arc::strong_count(&pieces) > 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        drop(content);
    }
}
