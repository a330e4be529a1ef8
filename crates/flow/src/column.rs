//! Columns while rows are collected. Most columns of most sources are null: a value that is absent costs nothing when its
//! row is pushed, and a column without any value becomes an array over zeros that all such columns share.

use std::sync::{Arc, OnceLock};

use arrow_array::{
    ArrayRef, ArrowPrimitiveType, FixedSizeBinaryArray, FixedSizeListArray, Int16Array, PrimitiveArray, StringArray,
    TimestampNanosecondArray, types::TimestampNanosecondType,
};
use arrow_buffer::{BooleanBuffer, Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow_schema::{DataType, Field};

use crate::schema::{FIRST_LENGTHS, ZONE};

/// Which rows have a value, as bits. Empty where nobody asked: then all have.
#[derive(Debug, Default)]
struct Valid(Vec<u8>);

impl Valid {
    #[inline]
    fn set(&mut self, row: usize, expected: usize) {
        if self.0.len() <= row / 8 {
            room(&mut self.0, expected / 8 + 1);
            self.0.resize(row / 8 + 1, 0);
        }
        self.0[row / 8] |= 1 << (row % 8);
    }

    fn finish(&mut self, rows: usize) -> Option<NullBuffer> {
        if self.0.is_empty() {
            return None;
        }
        let mut bits = std::mem::take(&mut self.0);
        bits.resize(rows.div_ceil(8), 0);
        let nulls = NullBuffer::new(BooleanBuffer::new(Buffer::from_vec(bits), 0, rows));
        Some(nulls).filter(|nulls| nulls.null_count() > 0)
    }
}

// Zeros for columns without any value.
fn zeros(octets: usize) -> Buffer {
    static ZEROS: OnceLock<Buffer> = OnceLock::new();
    const SHARED: usize = 1 << 17;
    match octets <= SHARED {
        true => ZEROS
            .get_or_init(|| Buffer::from_vec(vec![0_u64; SHARED / 8]))
            .slice_with_length(0, octets),
        false => Buffer::from_vec(vec![0_u64; octets.div_ceil(8)]).slice_with_length(0, octets),
    }
}

// A vector begins with the size its predecessor needed.
#[inline]
fn room<T>(values: &mut Vec<T>, expected: usize) {
    if values.capacity() == 0 {
        values.reserve(expected);
    }
}

/// Numbers.
#[derive(Debug)]
pub(crate) struct Scalar<T: ArrowPrimitiveType> {
    values: Vec<T::Native>,
    valid: Valid,
    expected: usize,
}

impl<T: ArrowPrimitiveType> Scalar<T> {
    pub(crate) fn new(expected: usize) -> Self {
        Self {
            values: Vec::new(),
            valid: Valid::default(),
            expected,
        }
    }

    /// Appends the value of a column that always has one.
    #[inline]
    pub(crate) fn push(&mut self, value: T::Native) {
        room(&mut self.values, self.expected);
        self.values.push(value);
    }

    /// Sets the value of a row; rows between it and the last one that was set have none.
    #[inline]
    pub(crate) fn set(&mut self, row: usize, value: T::Native) {
        room(&mut self.values, self.expected);
        if self.values.len() < row {
            self.values.resize(row, T::Native::default());
        }
        self.values.push(value);
        self.valid.set(row, self.expected);
    }

    fn array(&mut self, rows: usize) -> PrimitiveArray<T> {
        if self.values.is_empty() && rows > 0 {
            let octets = zeros(rows * size_of::<T::Native>());
            return PrimitiveArray::new(ScalarBuffer::new(octets, 0, rows), Some(NullBuffer::new_null(rows)));
        }
        let mut values = std::mem::take(&mut self.values);
        values.resize(rows, T::Native::default());
        self.expected = rows;
        PrimitiveArray::new(ScalarBuffer::from(values), self.valid.finish(rows))
    }

    pub(crate) fn finish(&mut self, rows: usize) -> ArrayRef {
        Arc::new(self.array(rows))
    }
}

/// Times.
#[derive(Debug)]
pub(crate) struct Time(Scalar<TimestampNanosecondType>);

impl Time {
    pub(crate) fn new(expected: usize) -> Self {
        Self(Scalar::new(expected))
    }

    #[inline]
    pub(crate) fn push(&mut self, value: i64) {
        self.0.push(value);
    }

    #[inline]
    pub(crate) fn set(&mut self, row: usize, value: i64) {
        self.0.set(row, value);
    }

    pub(crate) fn finish(&mut self, rows: usize) -> ArrayRef {
        let array: TimestampNanosecondArray = self.0.array(rows);
        Arc::new(array.with_timezone(ZONE))
    }
}

/// Texts.
#[derive(Debug)]
pub(crate) struct Text {
    // Where the first text begins, and where each ends.
    ends: Vec<i32>,
    octets: Vec<u8>,
    valid: Valid,
    expected: (usize, usize),
}

impl Text {
    pub(crate) fn new(expected: usize) -> Self {
        Self {
            ends: Vec::new(),
            octets: Vec::new(),
            valid: Valid::default(),
            expected: (expected, expected * 8),
        }
    }

    #[inline]
    pub(crate) fn push(&mut self, value: &str) {
        room(&mut self.ends, self.expected.0 + 1);
        room(&mut self.octets, self.expected.1);
        if self.ends.is_empty() {
            self.ends.push(0);
        }
        self.octets.extend_from_slice(value.as_bytes());
        // Arrow's own limit: a batch is far smaller.
        self.ends
            .push(i32::try_from(self.octets.len()).expect("a column is below 2 GiB"));
    }

    #[inline]
    pub(crate) fn set(&mut self, row: usize, value: &str) {
        room(&mut self.ends, self.expected.0 + 1);
        if self.ends.len() <= row {
            self.ends.resize(row + 1, self.octets.len() as i32);
        }
        self.push(value);
        self.valid.set(row, self.expected.0);
    }

    pub(crate) fn finish(&mut self, rows: usize) -> ArrayRef {
        if self.ends.is_empty() && rows > 0 {
            return Arc::new(StringArray::new_null(rows));
        }
        let mut ends = std::mem::take(&mut self.ends);
        let octets = std::mem::take(&mut self.octets);
        self.expected = (rows, octets.len());
        ends.resize(rows + 1, octets.len() as i32);
        let offsets = OffsetBuffer::new(ScalarBuffer::from(ends));
        Arc::new(StringArray::new(
            offsets,
            Buffer::from_vec(octets),
            self.valid.finish(rows),
        ))
    }
}

/// Octets of a fixed number: addresses and identifiers.
#[derive(Debug)]
pub(crate) struct Fixed<const N: usize> {
    octets: Vec<[u8; N]>,
    valid: Valid,
    expected: usize,
}

impl<const N: usize> Fixed<N> {
    pub(crate) fn new(expected: usize) -> Self {
        Self {
            octets: Vec::new(),
            valid: Valid::default(),
            expected,
        }
    }

    #[inline]
    pub(crate) fn push(&mut self, value: [u8; N]) {
        room(&mut self.octets, self.expected);
        self.octets.push(value);
    }

    #[inline]
    pub(crate) fn set(&mut self, row: usize, value: [u8; N]) {
        room(&mut self.octets, self.expected);
        if self.octets.len() < row {
            self.octets.resize(row, [0; N]);
        }
        self.octets.push(value);
        self.valid.set(row, self.expected);
    }

    pub(crate) fn finish(&mut self, rows: usize) -> ArrayRef {
        if self.octets.is_empty() && rows > 0 {
            let nulls = Some(NullBuffer::new_null(rows));
            return Arc::new(FixedSizeBinaryArray::new(N as i32, zeros(rows * N), nulls));
        }
        let mut octets = std::mem::take(&mut self.octets);
        octets.resize(rows, [0; N]);
        self.expected = rows;
        let octets = Buffer::from_vec(octets.into_flattened());
        Arc::new(FixedSizeBinaryArray::new(N as i32, octets, self.valid.finish(rows)))
    }
}

/// Lengths of first packets.
#[derive(Debug)]
pub(crate) struct Lengths {
    values: Vec<[i16; FIRST_LENGTHS]>,
    valid: Valid,
    expected: usize,
}

impl Lengths {
    pub(crate) fn new(expected: usize) -> Self {
        Self {
            values: Vec::new(),
            valid: Valid::default(),
            expected,
        }
    }

    #[inline]
    pub(crate) fn set(&mut self, row: usize, value: [i16; FIRST_LENGTHS]) {
        room(&mut self.values, self.expected);
        if self.values.len() < row {
            self.values.resize(row, [0; FIRST_LENGTHS]);
        }
        self.values.push(value);
        self.valid.set(row, self.expected);
    }

    pub(crate) fn finish(&mut self, rows: usize) -> ArrayRef {
        let nulls = match self.values.is_empty() && rows > 0 {
            true => Some(NullBuffer::new_null(rows)),
            false => {
                self.expected = rows;
                self.valid.finish(rows)
            }
        };
        let mut values = std::mem::take(&mut self.values);
        values.resize(rows, [0; FIRST_LENGTHS]);
        let items = Int16Array::new(ScalarBuffer::from(values.into_flattened()), None);
        let field = Arc::new(Field::new("item", DataType::Int16, false));
        Arc::new(FixedSizeListArray::new(
            field,
            FIRST_LENGTHS as i32,
            Arc::new(items),
            nulls,
        ))
    }
}
