//! From the FLOWS stream to the use case.

use std::sync::Arc;

use garrison_bus::{Delivery, Disposition, Handler};

use crate::app::Engine;

/// Judges flow batches in the order of the stream.
pub struct Flows(pub Arc<Engine>);

impl Handler for Flows {
    async fn handle(&self, delivery: Delivery) -> Disposition {
        self.0.take(&delivery).await
    }
}
