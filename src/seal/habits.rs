//! What a table's columns have shown, and how they are encoded for that. Pure.
//!
//! What a column's chunk showed decides how its next one is encoded, in this file or the next of the table:
//! without a dictionary if that did not hold the values, or was most of what was written; and then compressed by
//! what its first page advised ([`Method`]). Each is tried again every few row groups; a dictionary only as long as the
//! rows do not show that it will be given up ([`Distinct`]).

use std::sync::Arc;

use arrow_schema::{DataType, FieldRef};
use parquet::{
    basic::{Encoding, PageType},
    column::writer::ColumnCloseResult,
    file::properties::{WriterProperties, WriterPropertiesPtr},
    schema::types::ColumnPath,
};

use super::{
    distinct::Distinct,
    pack::{Method, Presses, Scarce},
    pieces::Piece,
};
use crate::config::Integers;

/// How the columns of a table are encoded, as their chunks so far advise.
#[derive(Clone, Debug, Default)]
pub(super) struct Habits {
    pub(super) columns: Vec<Habit>,
    /// Row groups since all was tried.
    groups: usize,
}

/// How a column is encoded.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Habit {
    /// Whether a dictionary does; `None`: the next chunk shows it.
    dictionary: Option<bool>,
    /// How its pages are compressed, without a dictionary, and what that was chosen for; `None`: the next one shows it.
    method: Option<(Scarce, Method)>,
    /// Bytes of its last chunk, before it was compressed.
    bytes: usize,
}

/// What the columns of a file should save, and how.
#[derive(Clone, Debug, Default)]
pub(super) struct Terms {
    pub(super) scarce: Scarce,
    pub(super) integers: Integers,
    pub(super) presses: Presses,
}

impl Habits {
    /// A row group comes.
    pub(super) fn next(&mut self) {
        self.groups += 1;
        if self.groups > TRY_ALL_AGAIN_GROUPS {
            self.groups = 0;
            self.columns.fill(Habit::default());
        } else if self.groups.is_multiple_of(TRY_AGAIN_GROUPS) {
            for habit in &mut self.columns {
                habit.dictionary = habit.dictionary.filter(|does| *does);
                // Those that would not see that values come again.
                let looks = |(_, method): &_| {
                    !matches!(method, Method::Raw | Method::Literals | Method::Strides)
                };
                habit.method = habit.method.filter(looks);
            }
        }
    }
}

impl Habit {
    /// What it is with these, the first rows of a chunk; `None`: more of them would tell whether a dictionary does.
    pub(super) fn seeing(
        self,
        rows: &[Piece],
        properties: &WriterProperties,
        field: &FieldRef,
    ) -> Option<Self> {
        let path = ColumnPath::new(vec![field.name().clone()]);
        if self.dictionary.is_some() || !properties.dictionary_enabled(&path) {
            return Some(self);
        }
        let bytes_max = properties.column_dictionary_page_size_limit(&path);
        // They take no more in a dictionary than here.
        if rows.iter().map(Piece::memory).sum::<usize>() < bytes_max {
            return None;
        }
        match Distinct::of(rows, bytes_max) {
            Distinct::Few => Some(self),
            Distinct::Unclear => None,
            Distinct::Many => Some(Self { dictionary: Some(false), ..self }),
        }
    }

    /// As it is, for a chunk of which it is known that it takes no more.
    pub(super) fn of_bytes(self, bytes: usize) -> Self {
        Self { bytes: self.bytes.min(bytes), ..self }
    }

    /// Bytes that the next chunk is expected to take before it is compressed.
    pub(super) fn bytes(self) -> usize {
        self.bytes
    }

    /// The properties that its next chunk is written with.
    pub(super) fn applied(
        self,
        properties: &WriterPropertiesPtr,
        field: &FieldRef,
        terms: &Terms,
    ) -> WriterPropertiesPtr {
        let is_plain = self.dictionary == Some(false);
        let is_delta = terms.integers == Integers::Delta && is_whole_number(field.data_type());
        if !is_plain && !is_delta {
            return Arc::clone(properties);
        }
        let path = ColumnPath::new(vec![field.name().clone()]);
        let mut builder = properties.as_ref().clone().into_builder();
        if is_plain {
            builder = builder.set_column_dictionary_enabled(path.clone(), false);
        }
        if is_delta {
            builder = builder.set_column_encoding(path, Encoding::DELTA_BINARY_PACKED);
        }
        Arc::new(builder.build())
    }

    /// How the next chunk's pages are to be compressed, if that is known.
    pub(super) fn method(
        self,
        properties: &WriterProperties,
        field: &FieldRef,
        terms: &Terms,
    ) -> Option<Method> {
        let path = ColumnPath::new(vec![field.name().clone()]);
        match self.method {
            // The numbers of a dictionary always shrink, and say nothing of the values; of a list there are some, too.
            _ if field.data_type().is_nested() || properties.dictionary_enabled(&path) => {
                Some(Method::Whole)
            }
            Some((of, method)) if of == terms.scarce => Some(method),
            _ => None,
        }
    }

    /// Takes what a chunk shows that was written as this habit had it, with these properties, and by this method.
    pub(super) fn learn(
        &mut self,
        of: Self,
        close: &ColumnCloseResult,
        properties: &WriterProperties,
        method: Option<(Scarce, Method)>,
    ) {
        let (packed, plain) =
            (close.metadata.compressed_size(), close.metadata.uncompressed_size());
        self.bytes = usize::try_from(plain).unwrap_or_default();
        let Some(pages) = close.offset_index.as_ref().filter(|_| plain >= JUDGED_BYTES) else {
            return;
        };
        if properties.dictionary_enabled(close.metadata.column_path()) {
            let sizes = pages.page_locations().iter().map(|page| page.compressed_page_size);
            let dictionary = packed - sizes.map(i64::from).sum::<i64>();
            let mut encodings = close.metadata.page_encoding_stats().into_iter().flatten();
            let missed = encodings.any(|pages| {
                pages.page_type == PageType::DATA_PAGE && pages.encoding != Encoding::RLE_DICTIONARY
            });
            self.dictionary = Some(!missed && dictionary <= packed / 2);
        } else {
            (self.dictionary, self.method) = (of.dictionary, method);
        }
    }
}

/// Whether the values are whole numbers in the file, of at most 64 bits.
fn is_whole_number(of: &DataType) -> bool {
    match of {
        DataType::Decimal128(precision, _) => *precision <= DECIMAL_DIGITS_64,
        other => other.is_integer() || other.is_temporal(),
    }
}

/// Of a decimal that is an INT32 or INT64 in the file
/// (<https://github.com/apache/parquet-format/blob/master/LogicalTypes.md#decimal>).
const DECIMAL_DIGITS_64: u8 = 18;
/// A chunk of fewer bytes, before compression, shows nothing.
const JUDGED_BYTES: i64 = 16 << 10;
/// A dictionary, or compression, that was given up is tried again after so many row groups: values change in the course
/// of a table.
pub(super) const TRY_AGAIN_GROUPS: usize = 16;
/// As above, all: to compress a page in several ways costs as much as some pages do.
const TRY_ALL_AGAIN_GROUPS: usize = 64;
