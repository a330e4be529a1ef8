use std::{collections::HashMap, panic::AssertUnwindSafe, sync::Arc};

use arrow_array::{ArrayRef, RecordBatch};
use arrow_buffer::Buffer;
use arrow_ipc::{
    reader::StreamDecoder,
    writer::{IpcWriteOptions, StreamWriter},
};
use arrow_schema::{ArrowError, Metadata, SchemaRef};
use bytes::Bytes;
use garrison_proto::TenantId;

use crate::{
    LossLedger,
    schema::{self, Columns, FlowRow, SCHEMA_VERSION, VERSION_KEY},
};

/// Largest encoded batch that [`decode`] looks at, octets.
pub const MAX_ENCODED_BYTES: usize = 16 << 20;

/// Most rows [`decode`] accepts in one batch.
pub const MAX_ROWS: usize = 65_536;

const TENANT_KEY: &str = "garrison.tenant";
const SENSOR_KEY: &str = "garrison.sensor";
const SEQUENCE_KEY: &str = "garrison.batch_seq";
const LEDGER_KEY: &str = "garrison.ledger";

/// A flow batch could not be made, written or read.
#[derive(Debug, thiserror::Error)]
pub enum FlowError {
    /// A column differs from the schema.
    #[error("GAR-FLOW-0101: column {name} {problem}")]
    Column {
        /// The column.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The batch was written by a newer release.
    #[error("GAR-FLOW-0102: flow schema version {found} is newer than {SCHEMA_VERSION}: upgrade this service")]
    Newer {
        /// The version found.
        found: u32,
    },
    /// Metadata is missing or malformed.
    #[error("GAR-FLOW-0103: batch metadata {key} {problem}")]
    Metadata {
        /// The key.
        key: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The bytes are no Arrow IPC stream with one record batch.
    #[error("GAR-FLOW-0104: not a flow batch: {0}")]
    Malformed(String),
    /// The batch is larger than a consumer may be made to hold.
    #[error("GAR-FLOW-0105: batch of {size} {unit} is over the limit of {limit}")]
    TooLarge {
        /// How large.
        size: usize,
        /// The limit.
        limit: usize,
        /// Octets or rows.
        unit: &'static str,
    },
    /// Arrow could not write it.
    #[error("GAR-FLOW-0106: encoding the batch failed")]
    Encode(#[source] ArrowError),
}

/// Flows in columns, with the one schema.
#[derive(Clone, Debug)]
pub struct FlowBatch {
    batch: RecordBatch,
}

/// What travels with a batch besides its rows, in the metadata of the Arrow schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchMeta {
    /// Whose flows these are. Consumers trust the subject and refuse a batch that disagrees with it.
    pub tenant: TenantId,
    /// The sensor that made the batch.
    pub sensor: String,
    /// Counts the sensor's batches from 0 since its start, so that a gap is seen.
    pub batch_seq: u64,
    /// The sensor's ledger when the batch was closed.
    pub ledger: LossLedger,
}

impl FlowBatch {
    pub(crate) fn from_built(schema: SchemaRef, arrays: Vec<ArrayRef>) -> Self {
        let batch = RecordBatch::try_new(schema, arrays).expect("builders follow the schema");
        Self { batch }
    }

    /// Takes a record batch that has the flow schema. Columns that an older version lacks are null.
    ///
    /// # Errors
    /// [`FlowError::Column`] names the first column that differs.
    pub fn try_from_record_batch(batch: RecordBatch) -> Result<Self, FlowError> {
        let columns = schema::check(&batch.schema())?;
        let batch = filled(batch, columns);
        for (index, field) in schema::schema().fields().iter().enumerate() {
            let nulls = batch.column(index).null_count();
            if nulls > 0 && !field.is_nullable() {
                return Err(FlowError::Column {
                    name: field.name().clone(),
                    problem: format!("has {nulls} nulls and may have none"),
                });
            }
        }
        Ok(Self { batch })
    }

    /// The Arrow form.
    pub fn record_batch(&self) -> &RecordBatch {
        &self.batch
    }

    /// The Arrow form, taken.
    pub fn into_record_batch(self) -> RecordBatch {
        self.batch
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.batch.num_rows()
    }

    /// There is no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The columns as typed arrays.
    pub fn columns(&self) -> Columns<'_> {
        Columns::of(&self.batch)
    }

    /// One row. Panics when `i` is not below [`len`](Self::len), as slices do. For many rows use
    /// [`rows`](Self::rows).
    pub fn row(&self, i: usize) -> FlowRow<'_> {
        self.columns().row(i)
    }

    /// Every row.
    pub fn rows(&self) -> impl Iterator<Item = FlowRow<'_>> + '_ {
        let columns = self.columns();
        (0..self.len()).map(move |i| columns.row(i))
    }
}

// Adds the columns of the current schema that a batch of an older version lacks.
fn filled(batch: RecordBatch, columns: usize) -> RecordBatch {
    let schema = schema::schema();
    if columns == schema.fields().len() {
        return batch;
    }
    let rows = batch.num_rows();
    let mut arrays = batch.columns().to_vec();
    arrays.extend(
        schema.fields()[columns..]
            .iter()
            .map(|field| arrow_array::new_null_array(field.data_type(), rows)),
    );
    RecordBatch::try_new(schema, arrays).expect("the columns were checked, and those that are added may be null")
}

/// Writes a batch as one Arrow IPC stream: schema with metadata, one record batch, end of stream.
///
/// # Errors
/// [`FlowError::Encode`] when Arrow refuses.
pub fn encode(batch: &FlowBatch, meta: &BatchMeta) -> Result<Bytes, FlowError> {
    let ledger = serde_json::to_string(&meta.ledger).expect("a struct of integers serialises");
    let metadata = HashMap::from([
        (VERSION_KEY.to_owned(), SCHEMA_VERSION.to_string()),
        (TENANT_KEY.to_owned(), meta.tenant.to_string()),
        (SENSOR_KEY.to_owned(), meta.sensor.clone()),
        (SEQUENCE_KEY.to_owned(), meta.batch_seq.to_string()),
        (LEDGER_KEY.to_owned(), ledger),
    ]);
    let schema = Arc::new(schema::schema().as_ref().clone().with_metadata(metadata));
    let size = batch.batch.get_array_memory_size() + 16_384;
    let write = || -> Result<Vec<u8>, ArrowError> {
        let options = IpcWriteOptions::try_new(8, false, arrow_ipc::MetadataVersion::V5)?;
        let mut writer = StreamWriter::try_new_with_options(Vec::with_capacity(size), &schema, options)?;
        writer.write(&batch.batch.clone().with_schema(schema.clone())?)?;
        writer.into_inner()
    };
    write().map(Bytes::from).map_err(FlowError::Encode)
}

/// Reads what [`encode`] wrote. Safe on hostile bytes: bounded, and an error whatever they are.
///
/// # Errors
/// Every [`FlowError`] but `Encode`.
pub fn decode(bytes: &[u8]) -> Result<(FlowBatch, BatchMeta), FlowError> {
    read(bytes.len(), || Buffer::from(bytes))
}

/// As [`decode`], without a copy: columns stay in the message, which stays in memory as long as they do.
///
/// # Errors
/// As [`decode`].
pub fn decode_message(message: Bytes) -> Result<(FlowBatch, BatchMeta), FlowError> {
    read(message.len(), || Buffer::from(message))
}

fn read(size: usize, buffer: impl FnOnce() -> Buffer) -> Result<(FlowBatch, BatchMeta), FlowError> {
    if size > MAX_ENCODED_BYTES {
        return Err(FlowError::TooLarge {
            size,
            limit: MAX_ENCODED_BYTES,
            unit: "octets",
        });
    }
    let buffer = buffer();
    // Arrow's reader verifies its input, yet asserts in places; a hostile batch must not end a consumer.
    let read = std::panic::catch_unwind(AssertUnwindSafe(|| read_stream(buffer)));
    read.unwrap_or_else(|_| {
        Err(FlowError::Malformed(
            "the Arrow reader gave up on its structure".to_owned(),
        ))
    })
}

fn read_stream(mut rest: Buffer) -> Result<(FlowBatch, BatchMeta), FlowError> {
    let malformed = |error: ArrowError| FlowError::Malformed(error.to_string());
    // It validates every column: offsets, texts, numbers of nulls.
    let mut decoder = StreamDecoder::new();
    let mut only = None;
    while !rest.is_empty() {
        match decoder.decode(&mut rest).map_err(malformed)? {
            Some(_) if only.is_some() => return Err(FlowError::Malformed("more than one record batch".to_owned())),
            Some(batch) => only = Some(batch),
            None => {}
        }
    }
    decoder.finish().map_err(malformed)?;
    let schema = decoder
        .schema()
        .ok_or_else(|| FlowError::Malformed("no schema".to_owned()))?;
    let meta = read_metadata(schema.metadata())?;
    let batch = only.ok_or_else(|| FlowError::Malformed("no record batch".to_owned()))?;
    if batch.num_rows() > MAX_ROWS {
        return Err(FlowError::TooLarge {
            size: batch.num_rows(),
            limit: MAX_ROWS,
            unit: "rows",
        });
    }
    Ok((FlowBatch::try_from_record_batch(batch)?, meta))
}

fn read_metadata(metadata: &Metadata) -> Result<BatchMeta, FlowError> {
    fn get<'a>(metadata: &'a Metadata, key: &'static str) -> Result<&'a str, FlowError> {
        metadata.get(key).map(String::as_str).ok_or(FlowError::Metadata {
            key,
            problem: "is missing".to_owned(),
        })
    }
    fn wrong(key: &'static str) -> impl FnOnce(String) -> FlowError {
        move |problem| FlowError::Metadata { key, problem }
    }

    let version: u32 = get(metadata, VERSION_KEY)?
        .parse()
        .map_err(|_| wrong(VERSION_KEY)("is not a number".to_owned()))?;
    if version > SCHEMA_VERSION {
        return Err(FlowError::Newer { found: version });
    }
    let sensor = get(metadata, SENSOR_KEY)?;
    if sensor.is_empty() || sensor.len() > 128 || sensor.chars().any(char::is_control) {
        return Err(wrong(SENSOR_KEY)("is not 1 to 128 printable octets".to_owned()));
    }
    Ok(BatchMeta {
        tenant: get(metadata, TENANT_KEY)?
            .parse()
            .map_err(|error: garrison_proto::InvalidTenant| wrong(TENANT_KEY)(error.to_string()))?,
        sensor: sensor.to_owned(),
        batch_seq: get(metadata, SEQUENCE_KEY)?
            .parse()
            .map_err(|_| wrong(SEQUENCE_KEY)("is not a number".to_owned()))?,
        ledger: serde_json::from_str(get(metadata, LEDGER_KEY)?)
            .map_err(|error| wrong(LEDGER_KEY)(error.to_string()))?,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Filter, FlowBatchBuilder, FlowState};

    fn meta() -> BatchMeta {
        BatchMeta {
            tenant: "acme".parse().unwrap(),
            sensor: "edge-1".to_owned(),
            batch_seq: 7,
            ledger: LossLedger {
                received: 5,
                parsed: 3,
                malformed: 1,
                shed: 1,
                ..LossLedger::default()
            },
        }
    }

    fn rows() -> Vec<FlowRow<'static>> {
        let known = FlowRow {
            flow_id: [7; 16],
            sensor: "edge-1",
            state: FlowState::Ended as u8,
            first_seen: 1_700_000_000_000_000_001,
            last_seen: 1_700_000_000_000_000_009,
            src_ip: "10.0.0.1".parse().unwrap(),
            dst_ip: "2001:db8::1".parse().unwrap(),
            src_mac: Some([1, 2, 3, 4, 5, 6]),
            src_packets: Some(0),
            first_lengths: Some([100, -1400, 0, 0, 0, 0, 0, 0]),
            service: Some("http"),
            http_uri: Some("/ä"),
            ..FlowRow::default()
        };
        vec![known, FlowRow::default()]
    }

    fn encoded() -> Bytes {
        let mut builder = FlowBatchBuilder::new(2);
        rows().iter().for_each(|row| builder.push(row));
        encode(&builder.finish(), &meta()).unwrap()
    }

    #[test]
    fn what_is_encoded_comes_back_with_unknown_kept_apart_from_zero() {
        let (batch, read) = decode(&encoded()).unwrap();
        assert_eq!(read, meta());
        assert_eq!(batch.rows().collect::<Vec<_>>(), rows());
        let (whole, _) = decode_message(encoded()).unwrap();
        assert_eq!(whole.rows().collect::<Vec<_>>(), rows());
        assert_eq!(batch.row(0).src_packets, Some(0));
        assert_eq!(batch.row(1).src_packets, None);
    }

    // What version 1 had: the same columns without those that were appended.
    #[test]
    fn a_batch_of_the_first_version_is_read_and_the_newer_columns_are_unknown() {
        let mut builder = FlowBatchBuilder::new(2);
        rows().iter().for_each(|row| builder.push(row));
        let now = builder.finish().into_record_batch();
        let first = now.schema().index_of("app").unwrap() + 1;
        let older = now.project(&(0..first).collect::<Vec<_>>()).unwrap();
        let batch = FlowBatch::try_from_record_batch(older.clone()).unwrap();
        assert_eq!(batch.rows().collect::<Vec<_>>(), rows());
        assert_eq!(batch.row(0).hassh, None);

        let metadata = encoded_metadata()
            .into_iter()
            .chain([(VERSION_KEY.to_owned(), "1".to_owned())]);
        let schema = Arc::new(
            older
                .schema()
                .as_ref()
                .clone()
                .with_metadata(metadata.collect::<HashMap<_, _>>()),
        );
        let mut writer = StreamWriter::try_new(Vec::new(), &schema).unwrap();
        writer
            .write(&older.clone().with_schema(schema.clone()).unwrap())
            .unwrap();
        let (read, _) = decode(&writer.into_inner().unwrap()).unwrap();
        assert_eq!(read.rows().collect::<Vec<_>>(), rows());

        let fewer = older.project(&(0..first - 1).collect::<Vec<_>>()).unwrap();
        let error = FlowBatch::try_from_record_batch(fewer).unwrap_err();
        assert!(error.to_string().contains("app is missing"), "{error}");
    }

    fn encoded_metadata() -> HashMap<String, String> {
        let bytes = encoded();
        let reader = arrow_ipc::reader::StreamReader::try_new(&bytes[..], None).unwrap();
        let schema = reader.schema();
        schema
            .metadata()
            .iter()
            .map(|(k, v)| (k.to_string(), v.to_string()))
            .collect()
    }

    #[test]
    fn a_builder_is_empty_after_finish_and_can_be_used_again() {
        let mut builder = FlowBatchBuilder::new(1);
        builder.push(&rows()[0]);
        assert_eq!(builder.finish().len(), 1);
        assert!(builder.is_empty());
        assert!(builder.finish().is_empty());
    }

    #[test]
    fn a_newer_version_is_refused_by_its_number() {
        let metadata = Metadata::new().with(VERSION_KEY, "99").with(TENANT_KEY, "acme");
        assert!(matches!(read_metadata(&metadata), Err(FlowError::Newer { found: 99 })));
    }

    #[test]
    fn every_metadata_key_is_required_and_named() {
        let whole = Metadata::new()
            .with(VERSION_KEY, "1")
            .with(TENANT_KEY, "acme")
            .with(SENSOR_KEY, "s")
            .with(SEQUENCE_KEY, "0")
            .with(LEDGER_KEY, serde_json::to_string(&LossLedger::default()).unwrap());
        assert!(read_metadata(&whole).is_ok());
        for key in [VERSION_KEY, TENANT_KEY, SENSOR_KEY, SEQUENCE_KEY, LEDGER_KEY] {
            let mut lacking = whole.clone();
            lacking.remove(key);
            let error = read_metadata(&lacking).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
            let error = read_metadata(&whole.clone().with(key, "\u{1}"))
                .unwrap_err()
                .to_string();
            assert!(error.contains(key) || error.contains("tenant"), "{error}");
        }
    }

    #[test]
    fn another_schema_is_refused_naming_the_column() {
        let batch = crate::schema::schema();
        let shorter = Arc::new(arrow_schema::Schema::new(batch.fields()[1..].to_vec()));
        let error = schema::check(&shorter).unwrap_err().to_string();
        assert!(error.contains("flow_id"), "{error}");
    }

    #[test]
    fn filters_select_by_every_field() {
        let batch = decode(&encoded()).unwrap().0;
        let row = batch.row(0);
        let holds = |filter: garrison_proto::flow::v1::FlowFilter| Filter::compile(&filter).unwrap().matches(&row);
        use garrison_proto::flow::v1::FlowFilter as F;
        assert!(holds(F::default()));
        assert!(holds(F {
            hosts: vec!["10.0.0.0/8".into()],
            ..F::default()
        }));
        assert!(!holds(F {
            hosts: vec!["11.0.0.0/8".into()],
            ..F::default()
        }));
        assert!(holds(F {
            dst_hosts: vec!["2001:db8::/32".into()],
            ..F::default()
        }));
        assert!(!holds(F {
            src_hosts: vec!["2001:db8::/32".into()],
            ..F::default()
        }));
        assert!(holds(F {
            services: vec!["HTTP".into()],
            ..F::default()
        }));
        assert!(!holds(F {
            ports: vec![443],
            ..F::default()
        }));
        assert!(!holds(F {
            protocols: vec![6],
            ..F::default()
        }));
        assert!(!holds(F {
            states: vec![1],
            ..F::default()
        }));
        assert!(holds(F {
            flow_ids: vec![crate::flow_id_text(&[7; 16])],
            ..F::default()
        }));
        let at = |seconds, nanos| Some(garrison_proto::Timestamp { seconds, nanos });
        assert!(holds(F {
            since: at(1_700_000_000, 9),
            ..F::default()
        }));
        assert!(!holds(F {
            since: at(1_700_000_000, 10),
            ..F::default()
        }));
        assert!(!holds(F {
            until: at(1_700_000_000, 1),
            ..F::default()
        }));
        let wrong = Filter::compile(&F {
            hosts: vec!["10.0.0.1".into(), "ten".into()],
            ..F::default()
        });
        assert_eq!(wrong.unwrap_err().field, "hosts[1]");
    }

    #[test]
    fn a_ledger_that_lost_a_packet_does_not_balance() {
        let ledger = meta().ledger;
        assert!(ledger.balances());
        assert!(!LossLedger { parsed: 4, ..ledger }.balances());
        assert!(
            !LossLedger {
                flows_ended: 1,
                ..ledger
            }
            .balances()
        );
        assert!(
            !LossLedger {
                parsed: u64::MAX,
                malformed: 6,
                ..ledger
            }
            .balances()
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn hostile_bytes_are_refused_or_read_but_never_panic(
            position in any::<prop::sample::Index>(),
            value in any::<u8>(),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = encoded().to_vec();
            let at = position.index(bytes.len());
            bytes[at] = value;
            if let Ok((batch, _)) = decode(&bytes) {
                batch.rows().for_each(|row| drop(row.to_proto()));
            }
            let kept = cut.index(bytes.len());
            if let Ok((batch, _)) = decode(&bytes[..kept]) {
                batch.rows().for_each(|row| drop(row.to_proto()));
            }
        }

        #[test]
        fn garbage_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
            prop_assert!(decode(&bytes).is_err());
        }
    }
}
