//! Publishes queued messages in order, many in flight, until the broker has each one.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::{StreamExt as _, stream::FuturesUnordered};
use garrison_bus::{PublishError, Publisher};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::queue::{Item, Queue};
use crate::{app::watch::now, metrics::Metrics};

/// Messages in flight.
const WINDOW: usize = 128;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Publishes until the queue is closed and empty. Once `hurry` is cancelled what still waits is left to the next run.
///
/// # Errors
/// Never; the type is what a supervised task has.
pub(crate) async fn publish(
    publisher: Publisher,
    queue: Arc<Queue>,
    metrics: Metrics,
    hurry: CancellationToken,
) -> Result<(), std::convert::Infallible> {
    let mut in_flight = FuturesUnordered::new();
    let mut sent: HashMap<u64, Item> = HashMap::new();
    let mut failed: Vec<Item> = Vec::new();
    let mut pause = FIRST_PAUSE;
    let mut closed = false;
    loop {
        if in_flight.is_empty() && !failed.is_empty() {
            queue.put_back(std::mem::take(&mut failed));
            let wait = async {
                tokio::time::sleep(pause).await;
                publisher.connected().await;
            };
            tokio::select! {
                () = wait => {}
                () = hurry.cancelled() => break,
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        if closed && in_flight.is_empty() && failed.is_empty() {
            break;
        }
        tokio::select! {
            biased;
            Some((order, outcome)) = in_flight.next(), if !in_flight.is_empty() => {
                if let Some(item) = sent.remove(&order)
                    && settle(item, outcome, &metrics, &mut failed)
                {
                    pause = FIRST_PAUSE;
                }
            }
            next = queue.next(), if failed.is_empty() && !closed && in_flight.len() < WINDOW => {
                let Some(item) = next else {
                    closed = true;
                    continue;
                };
                match publisher.start(&item.message).instrument(item.span.clone()).await {
                    Ok(pending) => {
                        let (order, span) = (item.order, item.span.clone());
                        sent.insert(order, item);
                        in_flight.push(async move { (order, pending.confirmed().instrument(span).await) });
                    }
                    Err(error) => {
                        settle(item, Err(error), &metrics, &mut failed);
                    }
                }
            }
            () = hurry.cancelled() => break,
        }
    }
    // What was in flight may or may not have arrived; its id keeps it from counting twice.
    let grace = tokio::time::sleep(Duration::from_millis(500));
    tokio::pin!(grace);
    while !in_flight.is_empty() {
        tokio::select! {
            Some((order, outcome)) = in_flight.next() => {
                if let Some(item) = sent.remove(&order) {
                    settle(item, outcome, &metrics, &mut failed);
                }
            }
            () = &mut grace => break,
        }
    }
    failed.extend(sent.into_values());
    queue.put_back(failed);
    queue.abandon();
    Ok(())
}

// Gives whether the broker has the message.
fn settle(item: Item, outcome: Result<(), PublishError>, metrics: &Metrics, failed: &mut Vec<Item>) -> bool {
    match outcome {
        Ok(()) => {
            if let Some(oldest) = item.oldest {
                metrics.latency((now() - oldest).max(0) as f64 / 1e9);
            }
            item.stored();
            true
        }
        Err(error) if error.is_transient() => {
            tracing::debug!(%error, "a flow batch waits for the broker");
            failed.push(item);
            false
        }
        Err(error) => {
            tracing::error!(%error, records = item.rows, "GAR-FLOW-0031: records are lost: the broker refuses them");
            item.lost();
            false
        }
    }
}
