//! Finds flows: each once, in its last record, oldest first.
//!
//! Every record of a flow repeats who talks to whom, so that part of a filter prunes files, row groups and rows.
//! What may change while a flow lives (state, application protocol) is asked of its last record only. A first pass
//! over few columns finds the last record of every candidate; a second one reads the chosen records whole.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::File,
    path::PathBuf,
    sync::Arc,
};

use arrow_array::{BooleanArray, RecordBatch};
use arrow_schema::ArrowError;
use garrison_flow::{Filter, FlowBatch, FlowBatchBuilder, FlowError, FlowRow};
use parquet::{
    arrow::{
        ProjectionMask,
        arrow_reader::{
            ArrowPredicateFn, ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder, RowFilter,
        },
    },
    errors::ParquetError,
    file::metadata::PageIndexPolicy,
};

use super::{
    BatchError, Lake, prune,
    rows::{FIRST_PASS, each_row, filter_columns},
    segment::Segment,
    wal::{Extent, Record},
};
use garrison_proto::TenantId;
use uuid::Uuid;

/// Rows decoded at a time.
const BATCH: usize = 8_192;
/// Flows read whole at a time.
const CHUNK: usize = 1_000;

/// A stored Parquet file, as the catalogue has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its id.
    pub id: Uuid,
    /// Where it is.
    pub path: PathBuf,
    /// What it covers.
    pub extent: Extent,
}

/// What is looked for.
#[derive(Debug, Clone)]
pub struct Query {
    /// Which flows.
    pub filter: Filter,
    /// How many at most.
    pub limit: usize,
    /// Flows that may be remembered while searching.
    pub max_candidates: usize,
}

/// What a search did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Files and segments of which rows were read.
    pub files_read: u64,
    /// Files and segments that were skipped by the index.
    pub files_skipped: u64,
    /// Rows that were looked at.
    pub rows_read: u64,
    /// A limit cut the answer short.
    pub truncated: bool,
    /// Files of the catalogue that retention deleted meanwhile.
    pub files_gone: u64,
}

/// A search failed.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    /// A Parquet file could not be read.
    #[error("GAR-FOR-0005: {path} could not be read")]
    File {
        /// The file.
        path: String,
        /// Why.
        source: ParquetError,
    },
    /// A segment could not be read.
    #[error("GAR-FOR-0005: a write-ahead segment could not be read")]
    Segment(#[from] BatchError),
    /// Nobody waits for the answer any more.
    #[error("GAR-FOR-0005: the search was cancelled")]
    Cancelled,
}

enum Source {
    File(Stored),
    Segment(Arc<Segment>, Vec<Record>),
}

/// The last record of a flow that was seen so far.
struct Candidate {
    record_seq: u32,
    first_seen: i64,
    source: u32,
    /// Row group or record.
    part: u32,
    /// Whether the record satisfies the whole filter.
    matches: bool,
}

/// The parts of a lake that one search reads.
pub struct Search {
    sources: Vec<Source>,
    query: Query,
    /// The parts of the filter that hold for every record of a flow or for none.
    fixed: Filter,
    stats: Stats,
}

impl Lake {
    /// The segments that are not in Parquet yet. To be taken before the catalogue is asked: a file whose id is among
    /// them is left out, so that nothing is read twice and nothing is missed while a segment becomes a file.
    pub fn fresh(&self, tenant: &TenantId) -> Fresh {
        Fresh(
            self.view
                .of(tenant)
                .into_iter()
                .map(|segment| {
                    let records = segment.records();
                    (segment, records)
                })
                .collect(),
        )
    }
}

/// Segments as they were at one moment.
pub struct Fresh(Vec<(Arc<Segment>, Vec<Record>)>);

impl Search {
    /// Plans a search over what is fresh and what the catalogue names; `skipped` files were left out by the
    /// catalogue already.
    pub fn new(fresh: Fresh, files: Vec<Stored>, skipped: u64, query: Query) -> Self {
        let ids: HashSet<Uuid> = fresh.0.iter().map(|(segment, _)| segment.id).collect();
        let mut sources: Vec<Source> = files
            .into_iter()
            .filter(|file| !ids.contains(&file.id))
            .map(Source::File)
            .collect();
        sources.extend(
            fresh
                .0
                .into_iter()
                .map(|(segment, records)| Source::Segment(segment, records)),
        );
        let fixed = Filter {
            services: Vec::new(),
            states: Vec::new(),
            ..query.filter.clone()
        };
        Self {
            sources,
            query,
            fixed,
            stats: Stats {
                files_skipped: skipped,
                ..Stats::default()
            },
        }
    }

    /// Runs the search; blocking. Batches of whole rows go to `emit` in the order of the answer; it answers false,
    /// and `cancelled` true, when nobody waits any more.
    ///
    /// # Errors
    /// [`SearchError`].
    pub fn run(
        mut self,
        cancelled: &dyn Fn() -> bool,
        emit: &mut dyn FnMut(FlowBatch) -> bool,
    ) -> Result<Stats, SearchError> {
        let mut candidates: HashMap<[u8; 16], Candidate> = HashMap::new();
        let sources = std::mem::take(&mut self.sources);
        for (number, source) in (0..).zip(&sources) {
            if cancelled() {
                return Err(SearchError::Cancelled);
            }
            let read = match source {
                Source::File(file) => self.scan_file(number, file, &mut candidates, cancelled)?,
                Source::Segment(segment, records) => {
                    self.scan_segment(number, segment, records, &mut candidates, cancelled)?
                }
            };
            match read {
                true => self.stats.files_read += 1,
                false => self.stats.files_skipped += 1,
            }
        }
        let mut chosen: Vec<([u8; 16], Candidate)> = candidates
            .into_iter()
            .filter(|(_, candidate)| candidate.matches)
            .collect();
        chosen.sort_unstable_by_key(|(id, candidate)| (candidate.first_seen, *id));
        if chosen.len() > self.query.limit {
            chosen.truncate(self.query.limit);
            self.stats.truncated = true;
        }
        for chunk in chosen.chunks(CHUNK) {
            if cancelled() || !emit(fetch(&sources, chunk)?) {
                return Err(SearchError::Cancelled);
            }
        }
        Ok(self.stats)
    }

    fn observe(&mut self, row: &FlowRow<'_>, source: u32, part: u32, candidates: &mut HashMap<[u8; 16], Candidate>) {
        let seen = Candidate {
            record_seq: row.record_seq,
            first_seen: row.first_seen,
            source,
            part,
            matches: self.query.filter.matches(row),
        };
        let room = candidates.len() < self.query.max_candidates;
        match candidates.entry(row.flow_id) {
            std::collections::hash_map::Entry::Occupied(mut entry) => {
                if seen.record_seq > entry.get().record_seq {
                    entry.insert(seen);
                }
            }
            std::collections::hash_map::Entry::Vacant(entry) if room => {
                entry.insert(seen);
            }
            std::collections::hash_map::Entry::Vacant(_) => self.stats.truncated = true,
        }
    }

    fn overlaps(&self, extent: &Extent) -> bool {
        self.fixed.since.is_none_or(|since| extent.last_seen >= since)
            && self.fixed.until.is_none_or(|until| extent.first_seen < until)
    }

    fn scan_segment(
        &mut self,
        number: u32,
        segment: &Segment,
        records: &[Record],
        candidates: &mut HashMap<[u8; 16], Candidate>,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<bool, SearchError> {
        let mut read = false;
        for (part, record) in (0..).zip(records) {
            if !self.overlaps(&record.extent) {
                continue;
            }
            if cancelled() {
                return Err(SearchError::Cancelled);
            }
            let batch = segment.batch(record)?;
            read = true;
            self.stats.rows_read += batch.len() as u64;
            for row in batch.rows() {
                if self.fixed.matches(&row) {
                    self.observe(&row, number, part, candidates);
                }
            }
        }
        Ok(read)
    }

    fn scan_file(
        &mut self,
        number: u32,
        file: &Stored,
        candidates: &mut HashMap<[u8; 16], Candidate>,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<bool, SearchError> {
        let failed = |source: ParquetError| SearchError::File {
            path: file.path.display().to_string(),
            source,
        };
        let open = match File::open(&file.path) {
            Ok(open) => open,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                self.stats.files_gone += 1;
                return Ok(false);
            }
            Err(error) => return Err(failed(error.into())),
        };
        let metadata = load(&open).map_err(failed)?;
        let whole = builder(&open, &metadata).map_err(failed)?;
        let mut read = false;
        for group in 0..whole.metadata().num_row_groups() {
            if cancelled() {
                return Err(SearchError::Cancelled);
            }
            if !prune::may_match(&whole, group, &self.fixed).map_err(failed)? {
                continue;
            }
            read = true;
            self.stats.rows_read += u64::try_from(whole.metadata().row_group(group).num_rows()).unwrap_or_default();
            let reader = self.first_pass(&open, &metadata, group).map_err(failed)?;
            for batch in reader {
                if cancelled() {
                    return Err(SearchError::Cancelled);
                }
                let batch = batch.map_err(|error| failed(error.into()))?;
                let part = u32::try_from(group).unwrap_or(u32::MAX);
                each_row(&batch, |row| {
                    self.observe(row, number, part, candidates);
                });
            }
        }
        Ok(read)
    }

    /// Reads the columns that the filter and the choice of records need, of the rows that match.
    fn first_pass(
        &self,
        open: &File,
        metadata: &ArrowReaderMetadata,
        group: usize,
    ) -> Result<parquet::arrow::arrow_reader::ParquetRecordBatchReader, ParquetError> {
        let mut builder = builder(open, metadata)?
            .with_row_groups(vec![group])
            .with_batch_size(BATCH);
        let schema = builder.parquet_schema();
        let output = ProjectionMask::columns(schema, FIRST_PASS);
        let needed = filter_columns(&self.fixed);
        if !needed.is_empty() {
            let mask = ProjectionMask::columns(schema, needed);
            let fixed = self.fixed.clone();
            let predicate = ArrowPredicateFn::new(mask, move |batch: RecordBatch| {
                let mut matches = Vec::with_capacity(batch.num_rows());
                each_row(&batch, |row| {
                    matches.push(fixed.matches(row));
                });
                Ok(BooleanArray::from(matches))
            });
            builder = builder.with_row_filter(RowFilter::new(vec![Box::new(predicate)]));
        }
        builder.with_projection(output).build()
    }
}

fn load(open: &File) -> Result<ArrowReaderMetadata, ParquetError> {
    let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Optional);
    ArrowReaderMetadata::load(open, options)
}

fn builder(open: &File, metadata: &ArrowReaderMetadata) -> Result<ParquetRecordBatchReaderBuilder<File>, ParquetError> {
    Ok(ParquetRecordBatchReaderBuilder::new_with_metadata(
        open.try_clone()?,
        metadata.clone(),
    ))
}

/// Which records of a source are wanted.
type Wanted = HashSet<([u8; 16], u32)>;

/// Reads records whole, in the given order.
fn fetch(sources: &[Source], chosen: &[([u8; 16], Candidate)]) -> Result<FlowBatch, SearchError> {
    let mut places: BTreeMap<u32, BTreeMap<u32, Wanted>> = BTreeMap::new();
    for (id, candidate) in chosen {
        let parts = places.entry(candidate.source).or_default();
        parts
            .entry(candidate.part)
            .or_default()
            .insert((*id, candidate.record_seq));
    }
    let mut batches: Vec<FlowBatch> = Vec::new();
    let mut rows: HashMap<[u8; 16], (usize, usize)> = HashMap::new();
    let mut keep = |batch: FlowBatch, wanted: &Wanted| {
        let columns = batch.columns();
        let number = batches.len();
        for i in 0..batch.len() {
            let id = <[u8; 16]>::try_from(columns.flow_id.value(i)).unwrap_or_default();
            if wanted.contains(&(id, columns.record_seq.value(i))) {
                rows.entry(id).or_insert((number, i));
            }
        }
        batches.push(batch);
    };
    for (number, parts) in places {
        match &sources[number as usize] {
            Source::Segment(segment, records) => {
                for (part, wanted) in parts {
                    // Only the wanted rows are kept: each may come from another batch of thousands.
                    let batch = segment.batch(&records[part as usize])?;
                    let mut picked = FlowBatchBuilder::new(wanted.len());
                    batch
                        .rows()
                        .filter(|row| wanted.contains(&(row.flow_id, row.record_seq)))
                        .for_each(|row| picked.push(&row));
                    keep(picked.finish(), &wanted);
                }
            }
            Source::File(file) => {
                let failed = |source: ParquetError| SearchError::File {
                    path: file.path.display().to_string(),
                    source,
                };
                let open = File::open(&file.path).map_err(|error| failed(error.into()))?;
                let metadata = load(&open).map_err(failed)?;
                for (part, wanted) in parts {
                    for batch in second_pass(&open, &metadata, part as usize, &wanted).map_err(failed)? {
                        let batch = batch.map_err(|error| failed(error.into()))?;
                        let batch = FlowBatch::try_from_record_batch(batch)
                            .map_err(|error: FlowError| failed(ParquetError::External(Box::new(error))))?;
                        keep(batch, &wanted);
                    }
                }
            }
        }
    }
    let mut builder = FlowBatchBuilder::new(chosen.len());
    for (id, _) in chosen {
        if let Some((batch, row)) = rows.get(id) {
            builder.push(&batches[*batch].row(*row));
        }
    }
    Ok(builder.finish())
}

fn second_pass(
    open: &File,
    metadata: &ArrowReaderMetadata,
    group: usize,
    wanted: &Wanted,
) -> Result<parquet::arrow::arrow_reader::ParquetRecordBatchReader, ParquetError> {
    let builder = builder(open, metadata)?
        .with_row_groups(vec![group])
        .with_batch_size(BATCH);
    let mask = ProjectionMask::columns(builder.parquet_schema(), ["flow_id", "record_seq"]);
    let wanted = wanted.clone();
    let predicate = ArrowPredicateFn::new(mask, move |batch: RecordBatch| -> Result<BooleanArray, ArrowError> {
        let mut matches = Vec::with_capacity(batch.num_rows());
        each_row(&batch, |row| {
            matches.push(wanted.contains(&(row.flow_id, row.record_seq)));
        });
        Ok(BooleanArray::from(matches))
    });
    builder
        .with_row_filter(RowFilter::new(vec![Box::new(predicate)]))
        .build()
}
