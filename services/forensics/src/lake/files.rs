//! Flow records as Parquet.

use std::{
    fs::File,
    io::{self, Write},
    path::Path,
};

use arrow_array::RecordBatch;
use garrison_flow::FlowBatch;
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression, ZstdLevel},
    errors::ParquetError,
    file::properties::{EnabledStatistics, WriterProperties, WriterVersion},
    schema::types::ColumnPath,
};
use sha2::{Digest as _, Sha256};

use super::{extent, wal::Extent};

/// Rows of a row group: what a search skips or reads at a time.
const ROW_GROUP: usize = 65_536;
/// Columns that searches ask for by value.
const KEYED: [&str; 6] = ["src_ip", "dst_ip", "src_port", "dst_port", "community_id", "flow_id"];

/// A file that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowFile {
    /// What it covers.
    pub extent: Extent,
    /// Its size.
    pub bytes: u64,
    /// SHA-256, hexadecimal.
    pub sha256: String,
}

struct Hashing {
    file: io::BufWriter<File>,
    hash: Sha256,
    bytes: u64,
}

impl Write for Hashing {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let n = self.file.write(buffer)?;
        self.hash.update(&buffer[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn properties() -> Result<WriterProperties, ParquetError> {
    let mut properties = WriterProperties::builder()
        .set_writer_version(WriterVersion::PARQUET_2_0)
        .set_created_by(concat!("garrison-forensics ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?))
        .set_max_row_group_row_count(Some(ROW_GROUP))
        .set_data_page_row_count_limit(8_192)
        .set_statistics_enabled(EnabledStatistics::Page);
    for name in KEYED {
        properties = properties
            .set_column_bloom_filter_enabled(ColumnPath::from(name), true)
            .set_column_bloom_filter_fpp(ColumnPath::from(name), 0.01)
            .set_column_bloom_filter_max_ndv(ColumnPath::from(name), ROW_GROUP as u64);
    }
    Ok(properties.build())
}

/// Writes one file: the flow schema unchanged, zstd, statistics for every page, and bloom filters on addresses,
/// ports, Community ID and flow id.
pub struct FlowFileWriter {
    inner: ArrowWriter<Hashing>,
    extent: Extent,
}

impl FlowFileWriter {
    /// Creates the file, which must not exist.
    ///
    /// # Errors
    /// [`ParquetError`], with the [`io::Error`] inside when it was the file system.
    pub fn create(path: &Path) -> Result<Self, ParquetError> {
        let file = File::create_new(path)?;
        let out = Hashing {
            file: io::BufWriter::with_capacity(1 << 18, file),
            hash: Sha256::new(),
            bytes: 0,
        };
        let inner = ArrowWriter::try_new(out, garrison_flow::schema(), Some(properties()?))?;
        Ok(Self {
            inner,
            extent: Extent::EMPTY,
        })
    }

    /// Appends a batch.
    ///
    /// # Errors
    /// [`ParquetError`].
    pub fn write(&mut self, batch: &FlowBatch) -> Result<(), ParquetError> {
        self.extent = self.extent.and(extent(batch));
        // Every batch carries its own metadata in its schema; the file has the one schema.
        let columns = batch.record_batch().columns().to_vec();
        self.inner
            .write(&RecordBatch::try_new(garrison_flow::schema(), columns)?)
    }

    /// Ends the file and makes its content durable.
    ///
    /// # Errors
    /// [`ParquetError`].
    pub fn finish(self) -> Result<FlowFile, ParquetError> {
        let mut out = self.inner.into_inner()?;
        out.flush()?;
        out.file.get_ref().sync_all()?;
        Ok(FlowFile {
            extent: self.extent,
            bytes: out.bytes,
            sha256: hex::encode(out.hash.finalize()),
        })
    }
}

/// Whether the file system had no room.
pub(crate) fn is_full(error: &ParquetError) -> bool {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return matches!(io.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        }
        next = error.source();
    }
    false
}
