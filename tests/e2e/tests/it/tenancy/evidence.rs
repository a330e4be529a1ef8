//! `forensics.v1` and `compliance.v1`: the lake, bundles, the log, reports.

use futures::TryStreamExt as _;
use garrison_proof::{Checkpoint, VerifierKey};
use garrison_proto::{
    compliance::v1::{
        CreateReportRequest, ExportLogRequest, ExportLogResponse, GetCheckpointRequest, GetCheckpointResponse,
        GetConsistencyProofRequest, GetInclusionProofRequest, GetReportRequest, ListControlsRequest,
        ListEntriesRequest, ListReportsRequest, LogEntry,
    },
    flow::v1::FlowFilter,
    forensics::v1::{
        CreateBundleRequest, DownloadBundleRequest, GetBundleRequest, ListBundlesRequest, ListCustodyEventsRequest,
    },
};
use uuid::Uuid;

use super::cases;
use crate::{
    calls::{Desk, gone},
    seed::{Side, search},
};

cases! {
    "forensics.v1.FlowSearchService/SearchFlows" => |world| {
        let everything = search(&world.globex.admin, FlowFilter::default()).await;
        assert!(everything.iter().any(|flow| flow.sensor == "published-globex"));
        let foreign: Vec<_> = everything.iter().filter(|flow| !flow.sensor.ends_with("globex")).collect();
        assert!(foreign.is_empty(), "{foreign:?}");
        let by_id = FlowFilter { flow_ids: world.acme.flow_ids.clone(), ..FlowFilter::default() };
        assert_eq!(search(&world.globex.admin, by_id.clone()).await, []);
        assert_eq!(search(&world.acme.admin, by_id).await.len(), 20);
        let by_host = FlowFilter { hosts: vec!["10.1.0.0/16".to_owned()], ..FlowFilter::default() };
        assert_eq!(search(&world.globex.admin, by_host).await, []);
    };
    "forensics.v1.EvidenceService/CreateBundle" => |world| {
        let request = CreateBundleRequest {
            incident: world.acme.incident.clone(),
            request_id: Uuid::now_v7().to_string(),
        };
        gone(world.globex.admin.evidence.clone().create_bundle(request).await);
        // A request id that acme used is globex's own to use.
        let request = CreateBundleRequest {
            incident: world.globex.incident.clone(),
            request_id: world.acme.bundle_request.clone(),
        };
        let made = world.globex.admin.evidence.clone().create_bundle(request).await.unwrap().into_inner();
        let made = made.bundle.unwrap();
        assert_ne!(made.name, world.acme.bundle);
        assert_eq!(made.incident, world.globex.incident);
    };
    "forensics.v1.EvidenceService/GetBundle" => |world| {
        let request = GetBundleRequest { name: world.acme.bundle.clone() };
        gone(world.globex.admin.evidence.clone().get_bundle(request).await);
    };
    "forensics.v1.EvidenceService/ListBundles" => |world| {
        let mut globex = world.globex.admin.evidence.clone();
        let all = globex.list_bundles(ListBundlesRequest::default()).await.unwrap().into_inner().bundles;
        assert!(all.iter().any(|bundle| bundle.name == world.globex.bundle));
        assert!(all.iter().all(|bundle| bundle.incident == world.globex.incident), "{all:?}");
        let request = ListBundlesRequest { incident: world.acme.incident.clone(), ..ListBundlesRequest::default() };
        assert!(globex.list_bundles(request).await.unwrap().into_inner().bundles.is_empty());
    };
    "forensics.v1.EvidenceService/DownloadBundle" => |world| {
        let request = DownloadBundleRequest { name: world.acme.bundle.clone() };
        let outcome = world.globex.admin.evidence.clone().download_bundle(request).await;
        match outcome {
            Err(status) => gone::<()>(Err(status)),
            Ok(stream) => gone(stream.into_inner().try_collect::<Vec<_>>().await),
        }
        let request = DownloadBundleRequest { name: world.globex.bundle.clone() };
        let own = world.globex.admin.evidence.clone().download_bundle(request).await.unwrap().into_inner();
        let parts: Vec<_> = own.try_collect().await.unwrap();
        let bytes: Vec<u8> = parts.into_iter().flat_map(|part| part.chunk).collect();
        assert!(garrison_proof::verify_bundle(bytes.as_slice(), None).is_ok());
        assert!(!bytes.windows(9).any(|window| window == b"\"10.1.1.1"), "acme's hosts are in globex's bundle");
    };
    "forensics.v1.EvidenceService/ListCustodyEvents" => |world| {
        let request = ListCustodyEventsRequest { name: world.acme.bundle.clone() };
        match world.globex.admin.evidence.clone().list_custody_events(request).await {
            Ok(answer) => assert!(answer.into_inner().events.is_empty()),
            refused => gone(refused),
        }
    };
    "compliance.v1.TransparencyLogService/GetCheckpoint" => |world| {
        for side in [&world.acme, &world.globex] {
            let answer = checkpoint(side).await;
            let key = VerifierKey::parse(&answer.verifier_key).unwrap();
            let signed = Checkpoint::verify(&answer.checkpoint, &key).unwrap();
            assert!(signed.origin.contains(side.id), "{}", signed.origin);
        }
        // A checkpoint of one log is none of the other.
        let (acme, globex) = (checkpoint(&world.acme).await, checkpoint(&world.globex).await);
        let key = VerifierKey::parse(&globex.verifier_key).unwrap();
        assert!(Checkpoint::verify(&acme.checkpoint, &key).is_err());
    };
    "compliance.v1.TransparencyLogService/ListEntries" => |world| {
        for side in [&world.acme, &world.globex] {
            let mut start = 0;
            loop {
                let request = ListEntriesRequest { start, page_size: 1000 };
                let answer = side.admin.log.clone().list_entries(request).await.unwrap().into_inner();
                assert!(start > 0 || !answer.entries.is_empty());
                own_entries(side, &answer.entries);
                start += answer.entries.len() as u64;
                if answer.entries.is_empty() {
                    break;
                }
            }
        }
    };
    "compliance.v1.TransparencyLogService/GetInclusionProof" => |world| {
        let by_record = |record: &str| GetInclusionProofRequest {
            record_id: record.to_owned(),
            ..GetInclusionProofRequest::default()
        };
        gone(world.globex.admin.log.clone().get_inclusion_proof(by_record(&world.acme.record)).await);
        let own = world.globex.admin.log.clone().get_inclusion_proof(by_record(&world.globex.record)).await.unwrap();
        own_entries(&world.globex, &[own.into_inner().entry.unwrap()]);
        let by_index = GetInclusionProofRequest { index: 0, ..GetInclusionProofRequest::default() };
        let own = world.globex.admin.log.clone().get_inclusion_proof(by_index).await.unwrap();
        own_entries(&world.globex, &[own.into_inner().entry.unwrap()]);
    };
    "compliance.v1.TransparencyLogService/GetConsistencyProof" => |world| {
        let request = GetConsistencyProofRequest { first_size: 1, second_size: 0 };
        let answer = world.globex.admin.log.clone().get_consistency_proof(request).await.unwrap().into_inner();
        let key = VerifierKey::parse(&checkpoint(&world.globex).await.verifier_key).unwrap();
        assert!(Checkpoint::verify(&answer.checkpoint, &key).is_ok(), "the proof leads to another log's checkpoint");
    };
    "compliance.v1.TransparencyLogService/ExportLog" => |world| {
        for side in [&world.acme, &world.globex] {
            let entries = export(&side.admin).await.2;
            assert!(!entries.is_empty());
            own_entries(side, &entries);
        }
    };
    "compliance.v1.ReportService/ListControls" => |world| {
        // The framework's text, which is nobody's.
        let acme = world.acme.admin.reports.clone().list_controls(ListControlsRequest {}).await.unwrap().into_inner();
        let globex = world.globex.admin.reports.clone().list_controls(ListControlsRequest {}).await.unwrap();
        assert_eq!(acme, globex.into_inner());
    };
    "compliance.v1.ReportService/CreateReport" => |world| {
        let request = CreateReportRequest { framework: "soc2".to_owned(), ..CreateReportRequest::default() };
        let made = world.globex.admin.reports.clone().create_report(request).await.unwrap().into_inner();
        let made = made.report.unwrap();
        let text = format!("{}{}", made.oscal_json, made.html);
        assert!(text.contains("globex"));
        for foreign in [&world.acme.incident, &world.acme.record, &world.acme.manual] {
            let id = foreign.rsplit('/').next().unwrap();
            assert!(!text.contains(id), "globex's report speaks of acme's {foreign}");
        }
        gone(world.acme.admin.reports.clone().get_report(GetReportRequest { name: made.name }).await);
    };
    "compliance.v1.ReportService/GetReport" => |world| {
        let request = GetReportRequest { name: world.acme.report.clone() };
        gone(world.globex.admin.reports.clone().get_report(request).await);
    };
    "compliance.v1.ReportService/ListReports" => |world| {
        let answer = world.globex.admin.reports.clone().list_reports(ListReportsRequest::default()).await.unwrap();
        let names: Vec<_> = answer.into_inner().reports.into_iter().map(|report| report.name).collect();
        assert!(names.contains(&world.globex.report) && !names.contains(&world.acme.report), "{names:?}");
    };
}

fn own_entries(side: &Side, entries: &[LogEntry]) {
    for entry in entries {
        let body: serde_json::Value = serde_json::from_slice(&entry.body).unwrap();
        assert_eq!(body["tenant"], side.id, "{body}");
    }
}

async fn checkpoint(side: &Side) -> GetCheckpointResponse {
    let answer = side
        .admin
        .log
        .clone()
        .get_checkpoint(GetCheckpointRequest {})
        .await
        .unwrap();
    answer.into_inner()
}

/// The whole log: checkpoint, verifier key, entries.
pub async fn export(desk: &Desk) -> (String, String, Vec<LogEntry>) {
    let parts = desk
        .log
        .clone()
        .export_log(ExportLogRequest {})
        .await
        .unwrap()
        .into_inner();
    let parts: Vec<ExportLogResponse> = parts.try_collect().await.unwrap();
    let (checkpoint, key) = (parts[0].checkpoint.clone(), parts[0].verifier_key.clone());
    (
        checkpoint,
        key,
        parts.into_iter().flat_map(|part| part.entries).collect(),
    )
}
