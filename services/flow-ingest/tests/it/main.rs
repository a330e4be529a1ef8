//! Integration tests of the flow meter.

#![allow(clippy::unwrap_used, missing_docs)]

mod corpora;
