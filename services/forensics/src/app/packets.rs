//! Packets of an incident, from the rings of flow-ingest.

use std::{path::Path, time::Duration};

use chrono::{DateTime, SecondsFormat, Utc};
use garrison_proto::{
    TenantId,
    flow::v1::{FetchPacketSliceRequest, FlowFilter, ListSensorsRequest, flow_service_client::FlowServiceClient},
    from_timestamp,
};
use garrison_service::client::for_tenant;
use tokio::io::AsyncWriteExt as _;
use tonic::transport::Channel;

use crate::error::Error;

/// One flow-ingest.
#[derive(Clone)]
pub struct Source {
    /// As configured, for omissions.
    pub endpoint: String,
    /// How to reach it.
    pub channel: Channel,
}

/// What came of asking one flow-ingest.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Fetched {
    /// Packets in the file; 0 when there is no file.
    pub packets: u64,
    /// What is missing, in words.
    pub omissions: Vec<String>,
}

/// Why packets did not come.
enum Trouble {
    Away(String),
    Disk(std::io::Error),
}

/// Fetches the packets that match into a pcapng file. What cannot be had is an omission, not an error: the rest of
/// the evidence must not wait for it.
///
/// # Errors
/// [`Error::Gather`] when the file cannot be written.
pub async fn fetch(
    source: &Source,
    tenant: &TenantId,
    filter: &FlowFilter,
    limit: u64,
    patience: Duration,
    file: &Path,
) -> Result<Fetched, Error> {
    let mut fetched = Fetched::default();
    let outcome = tokio::time::timeout(patience, run(source, tenant, filter, limit, file, &mut fetched)).await;
    let trouble = match outcome {
        Ok(Ok(())) => None,
        Ok(Err(Trouble::Disk(error))) => return Err(Error::gather("writing packets")(error)),
        Ok(Err(Trouble::Away(reason))) => Some(reason),
        Err(_) => Some(format!("it did not answer within {} ms", patience.as_millis())),
    };
    if let Some(reason) = trouble {
        let endpoint = &source.endpoint;
        fetched.omissions.push(format!(
            "packets: flow-ingest at {endpoint} did not give its packets: {reason}"
        ));
        fetched.packets = 0;
    }
    if fetched.packets == 0 {
        // Half a file would be taken for the whole.
        match tokio::fs::remove_file(file).await {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::gather("removing a packet file")(error)),
        }
    }
    Ok(fetched)
}

async fn run(
    source: &Source,
    tenant: &TenantId,
    filter: &FlowFilter,
    limit: u64,
    path: &Path,
    fetched: &mut Fetched,
) -> Result<(), Trouble> {
    let away = |status: tonic::Status| Trouble::Away(format!("{}: {}", status.code().description(), status.message()));
    let mut client = FlowServiceClient::with_interceptor(source.channel.clone(), for_tenant(tenant))
        .max_decoding_message_size(16 << 20);

    let since = filter.since.as_ref().and_then(from_timestamp);
    let sensors = client
        .list_sensors(ListSensorsRequest {})
        .await
        .map_err(away)?
        .into_inner()
        .sensors;
    for sensor in sensors {
        let oldest = sensor.ring_oldest.as_ref().and_then(from_timestamp);
        if let (Some(oldest), Some(since)) = (oldest, since)
            && oldest > since
        {
            fetched.omissions.push(format!(
                "packets: those that {} captured before {} may have left its ring",
                sensor.name,
                show(oldest)
            ));
        }
    }

    let request = FetchPacketSliceRequest {
        filter: Some(filter.clone()),
        max_bytes: limit,
    };
    let mut stream = client.fetch_packet_slice(request).await.map_err(away)?.into_inner();
    let mut file = tokio::fs::File::create(path).await.map_err(Trouble::Disk)?;
    let mut bytes = 0u64;
    while let Some(message) = stream.message().await.map_err(away)? {
        bytes += message.chunk.len() as u64;
        // Room for the file's own headers.
        if bytes > limit.saturating_mul(2).saturating_add(1 << 20) {
            return Err(Trouble::Away("it sent more than was asked for".to_owned()));
        }
        file.write_all(&message.chunk).await.map_err(Trouble::Disk)?;
        fetched.packets = fetched.packets.max(message.packets);
        if message.truncated {
            fetched
                .omissions
                .push(format!("packets: the slice was cut at its limit of {limit} bytes"));
        }
    }
    file.sync_all().await.map_err(Trouble::Disk)?;
    if fetched.packets == 0 {
        fetched.omissions.push(format!(
            "packets: flow-ingest at {} has none of these flows any more",
            source.endpoint
        ));
    }
    Ok(())
}

fn show(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}
