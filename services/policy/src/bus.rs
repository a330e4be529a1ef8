//! From the FLOWS stream to verdicts.

use std::sync::Arc;

use garrison_bus::{Delivery, Disposition, Handler, content_type};
use garrison_flow::FlowBatch;

use crate::app::App;

/// Takes flow batches.
pub struct FlowHandler {
    /// Judges them.
    pub app: Arc<App>,
}

impl Handler for FlowHandler {
    async fn handle(&self, delivery: Delivery) -> Disposition {
        let batch = match read(&delivery) {
            Ok(batch) => batch,
            Err(reason) => {
                return Disposition::Reject {
                    reason: format!("GAR-POLICY-0206: {reason}"),
                };
            }
        };
        match self.app.judge(&delivery.tenant, delivery.id, &batch).await {
            Ok(()) => Disposition::Ack,
            Err(error) => error.disposition(),
        }
    }
}

fn read(delivery: &Delivery) -> Result<FlowBatch, String> {
    if delivery.content_type != content_type::ARROW_STREAM {
        return Err(format!("content type {:?} is not a flow batch", delivery.content_type));
    }
    let (batch, meta) = garrison_flow::decode(&delivery.payload).map_err(|error| error.to_string())?;
    if meta.tenant != delivery.tenant {
        return Err(format!(
            "the batch says that it is of tenant {}, its subject {}",
            meta.tenant, delivery.tenant
        ));
    }
    Ok(batch)
}
