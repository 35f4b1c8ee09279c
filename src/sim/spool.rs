//! The real spool on the model disk, read without threads: what the shipper asks for is at hand.

use std::{ops::Range, sync::Arc};

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;

use crate::{
    seal::SpoolReader,
    ship::{Content, Object, ReadSpool, ShipError, checksum},
};

/// The spool in memory: it never blocks.
pub(crate) struct ModelSpool(pub(crate) SpoolReader);

impl ReadSpool for ModelSpool {
    fn read(
        &self,
        object: &Object,
        range: Range<u64>,
        each: &mut dyn FnMut(Bytes) -> bool,
    ) -> Result<(), ShipError> {
        self.0.pieces(object, range, each).map_err(|error| ShipError::spool(object, &error))
    }

    fn content(
        self: Arc<Self>,
        object: Arc<Object>,
        range: Range<u64>,
        sum: String,
    ) -> Result<Content, ShipError> {
        let mut whole = BytesMut::new();
        self.read(&object, range, &mut |piece| {
            whole.extend_from_slice(&piece);
            true
        })?;
        if checksum::of(&whole) != sum {
            let why = "not what was sealed".into();
            return Err(ShipError::Lost { path: object.spool.clone(), why });
        }
        Ok(whole.freeze().into())
    }

    fn sum(
        self: Arc<Self>,
        object: Arc<Object>,
        range: Range<u64>,
    ) -> BoxFuture<'static, Result<String, ShipError>> {
        let sum = checksum::read(&*self, &object, range);
        Box::pin(async move { sum })
    }
}
