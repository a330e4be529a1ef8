//! Flow logs in Parquet files: Amazon VPC flow logs, and flow records of this project's own schema.

use std::panic::{AssertUnwindSafe, catch_unwind};

use garrison_flow::FlowBatch;
use parquet::{
    arrow::arrow_reader::ParquetRecordBatchReaderBuilder,
    errors::ParquetError,
    file::reader::{ChunkReader, FileReader as _, SerializedFileReader},
    record::Field,
};

use super::LogReader;
use crate::domain::Sink;

/// A file that two readers can have at once.
pub(crate) trait Shared: Sized {
    /// Another handle of it.
    fn shared(&self) -> Result<Self, ParquetError>;
}

impl Shared for std::fs::File {
    fn shared(&self) -> Result<Self, ParquetError> {
        Ok(self.try_clone()?)
    }
}

impl Shared for bytes::Bytes {
    fn shared(&self) -> Result<Self, ParquetError> {
        Ok(self.clone())
    }
}

/// Reads the rows of a Parquet file. Rows that cannot be read are counted as bad lines are.
///
/// # Errors
/// When the file is no Parquet file or is damaged; the rows before that were read.
pub(crate) fn read<R: ChunkReader + Shared + 'static>(
    file: &R,
    reader: &mut LogReader,
    sink: &mut impl Sink,
) -> Result<(), String> {
    // The library checks its input, and a damaged file has still been seen to make such libraries panic.
    let read = catch_unwind(AssertUnwindSafe(|| rows(file, reader, sink)));
    match read {
        Ok(read) => read.map_err(|error| error.to_string()),
        Err(_) => Err("its pages contradict each other".to_owned()),
    }
}

fn rows<R: ChunkReader + Shared + 'static>(
    file: &R,
    reader: &mut LogReader,
    sink: &mut impl Sink,
) -> Result<(), ParquetError> {
    let parquet = SerializedFileReader::new(file.shared()?)?;
    let schema = parquet.metadata().file_metadata().schema();
    let has = |name: &str| schema.get_fields().iter().any(|field| field.name() == name);
    if has("flow_id") && has("community_id") {
        return own(file, reader, sink);
    }
    let mut named = Vec::new();
    for (number, row) in parquet.get_row_iter(None)?.enumerate() {
        let row = row?;
        named.clear();
        for (name, field) in row.get_column_iter() {
            if let Some(text) = text(field) {
                named.push((name.clone(), text));
            }
        }
        reader.named(number as u64 + 1, &named, sink);
    }
    Ok(())
}

fn text(field: &Field) -> Option<String> {
    match field {
        Field::Null => None,
        Field::Str(text) => Some(text.clone()),
        Field::TimestampMillis(ms) => Some((ms / 1_000).to_string()),
        Field::TimestampMicros(us) => Some((us / 1_000_000).to_string()),
        other => Some(other.to_string()),
    }
}

fn own<R: ChunkReader + Shared + 'static>(
    file: &R,
    reader: &mut LogReader,
    sink: &mut impl Sink,
) -> Result<(), ParquetError> {
    for batch in ParquetRecordBatchReaderBuilder::try_new(file.shared()?)?.build()? {
        let batch =
            FlowBatch::try_from_record_batch(batch?).map_err(|error| ParquetError::General(error.to_string()))?;
        for row in batch.rows() {
            reader.own(&row, sink);
        }
    }
    Ok(())
}
