//! What travels with a batch in the schema's metadata, for documentation.

/// A key of the Arrow schema's metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetadataKey {
    /// The key.
    pub name: &'static str,
    /// What its value says.
    pub meaning: &'static str,
}

/// Every key that [`encode`](crate::encode) writes and [`decode`](crate::decode) asks for.
pub const METADATA: [MetadataKey; 5] = [
    MetadataKey {
        name: crate::VERSION_KEY,
        meaning: "Version of this schema, a decimal number. A reader refuses one that is newer than its own.",
    },
    MetadataKey {
        name: "garrison.tenant",
        meaning: "The tenant whose traffic it is; the same as in the subject.",
    },
    MetadataKey {
        name: "garrison.sensor",
        meaning: "The sensor that saw it.",
    },
    MetadataKey {
        name: "garrison.batch_seq",
        meaning: "Counts the batches of a run of the sensor, a decimal number. A gap is a batch that was lost.",
    },
    MetadataKey {
        name: "garrison.ledger",
        meaning: "The sensor's loss ledger so far, a JSON object of numbers: packets received, parsed, malformed, dropped by \
                  the kernel and shed; flows opened and ended; records published and lost.",
    },
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{BatchMeta, FlowBatchBuilder, LossLedger};

    #[test]
    fn every_key_of_a_batch_is_described_and_no_other() {
        let meta = BatchMeta {
            tenant: "acme".parse().unwrap(),
            sensor: "edge".into(),
            batch_seq: 7,
            ledger: LossLedger::default(),
        };
        let bytes = crate::encode(&FlowBatchBuilder::new(1).finish(), &meta).unwrap();
        let reader = arrow_ipc::reader::StreamReader::try_new(&bytes[..], None).unwrap();
        let schema = reader.schema();
        let written: BTreeSet<&str> = schema.metadata().keys().map(String::as_str).collect();
        assert_eq!(written, METADATA.iter().map(|key| key.name).collect());
    }
}
