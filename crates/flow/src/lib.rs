//! Flows in columns: the one schema that sensors write, detectors read in vectors, and the flow lake keeps.
//!
//! A batch travels as an Arrow IPC stream, so that any Arrow reader can take it.

pub mod address;
mod batch;
mod column;
mod convert;
mod filter;
mod ledger;
mod metadata;
mod schema;

pub use batch::{BatchMeta, FlowBatch, FlowError, MAX_ENCODED_BYTES, MAX_ROWS, decode, decode_message, encode};
pub use convert::flow_id_text;
pub use filter::{Filter, FilterError, MAX_VALUES};
pub use ledger::LossLedger;
pub use metadata::{METADATA, MetadataKey};
pub use schema::{
    ColumnDescription, Columns, FIRST_LENGTHS, FlowBatchBuilder, FlowRow, FlowState, SCHEMA_VERSION, VERSION_KEY,
    describe, schema,
};
