use base64::Engine as _;
use garrison_proof::{Checkpoint, VerifierKey};
use garrison_proto::compliance::v1::{
    CreateReportRequest, GetReportRequest, ListControlsRequest, ListReportsRequest,
    report_service_server::ReportService as _,
};
use serde_json::Value;
use tonic::Code;

use crate::world::{World, by, record, tenant};

fn soc2() -> CreateReportRequest {
    CreateReportRequest {
        framework: "soc2".into(),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_finding_of_a_report_resolves_to_entries_that_verify_offline() {
    let world = World::running().await;
    let acme = tenant("acme");
    for (action, resource) in [
        ("garrison.policy.v1.PolicyService/ApplyPolicy", ""),
        ("incident.opened", "incidents/1"),
        ("response.dispatched", "responses/1"),
        ("response.applied", "responses/1"),
        ("response.failed", "responses/2"),
        ("response.reverted", "responses/1"),
        ("evidence.sealed", "bundles/1"),
        ("incident.closed", "incidents/1"),
    ] {
        world.publish(&record(&acme, action, resource)).await;
    }
    world.until_size(&acme, 8).await;
    let made = world
        .reports
        .create_report(by(&acme, soc2()))
        .await
        .unwrap()
        .into_inner()
        .report
        .unwrap();

    let document: Value = serde_json::from_str(&made.oscal_json).unwrap();
    let results = &document["assessment-results"];
    let resources = results["back-matter"]["resources"].as_array().unwrap();
    let find = |href: &str| {
        let uuid = href.strip_prefix('#').unwrap();
        resources.iter().find(|resource| resource["uuid"] == uuid).unwrap()
    };
    let embedded = |resource: &Value| {
        base64::engine::general_purpose::STANDARD
            .decode(resource["base64"]["value"].as_str().unwrap())
            .unwrap()
    };
    let signed = resources
        .iter()
        .find(|r| r["title"].as_str().unwrap().contains("checkpoint"))
        .unwrap();
    let key = signed["props"]
        .as_array()
        .unwrap()
        .iter()
        .find(|p| p["name"] == "log-verifier-key")
        .unwrap();
    let key = VerifierKey::parse(key["value"].as_str().unwrap()).unwrap();
    let note = String::from_utf8(embedded(signed)).unwrap();
    assert_eq!(note, made.checkpoint);
    let checkpoint = Checkpoint::verify(&note, &key).unwrap();

    let mut proven = 0;
    for observation in results["results"][0]["observations"].as_array().unwrap() {
        for evidence in observation["relevant-evidence"].as_array().into_iter().flatten() {
            let entry: Value = serde_json::from_slice(&embedded(find(evidence["href"].as_str().unwrap()))).unwrap();
            let hashes: Vec<[u8; 32]> = entry["inclusion_proof"]
                .as_array()
                .unwrap()
                .iter()
                .map(|hash| hex::decode(hash.as_str().unwrap()).unwrap().try_into().unwrap())
                .collect();
            let body = entry["body"].as_str().unwrap().as_bytes();
            checkpoint
                .verify_entry(entry["index"].as_u64().unwrap(), body, &hashes)
                .unwrap();
            proven += 1;
        }
    }
    assert!(proven >= 8, "{proven}");

    let findings = results["results"][0]["findings"].as_array().unwrap();
    assert_eq!(findings.len() as u64, made.findings);
    let state = |objective: &str| {
        let finding = findings.iter().find(|f| f["target"]["target-id"] == objective).unwrap();
        let status = &finding["target"]["status"];
        (
            status["state"].as_str().unwrap().to_owned(),
            status["reason"].as_str().unwrap().to_owned(),
        )
    };
    let is = |state: &str, reason: &str| (state.to_owned(), reason.to_owned());
    assert_eq!(state("cc7.2-a"), is("satisfied", "pass"));
    assert_eq!(state("cc7.3-b"), is("satisfied", "pass"));
    assert_eq!(state("cc7.4-a"), is("satisfied", "pass"));
    // responses/2 failed and nothing made it good.
    assert_eq!(state("cc7.4-c"), is("not-satisfied", "fail"));
    // Nobody approved anything.
    assert_eq!(state("cc7.4-b"), is("not-satisfied", "other"));
    assert!(made.html.starts_with("<!doctype html>") && made.html.contains("responses/2"));

    if let Some(folder) = std::env::var_os("GARRISON_KEEP_REPORT") {
        let folder = std::path::PathBuf::from(folder);
        std::fs::write(folder.join("report.json"), &made.oscal_json).unwrap();
        std::fs::write(folder.join("report.html"), &made.html).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_stay_with_their_tenant_and_come_in_pages() {
    let world = World::running().await;
    let (acme, other) = (tenant("acme"), tenant("other"));
    let mut names = Vec::new();
    for _ in 0..3 {
        let made = world
            .reports
            .create_report(by(&acme, soc2()))
            .await
            .unwrap()
            .into_inner();
        names.push(made.report.unwrap().name);
    }
    names.reverse();
    let get = |tenant, name: &str| {
        world
            .reports
            .get_report(by(tenant, GetReportRequest { name: name.to_owned() }))
    };
    assert!(
        !get(&acme, &names[0])
            .await
            .unwrap()
            .into_inner()
            .report
            .unwrap()
            .oscal_json
            .is_empty()
    );
    assert_eq!(get(&other, &names[0]).await.unwrap_err().code(), Code::NotFound);

    let mut listed = Vec::new();
    let mut token = String::new();
    loop {
        let request = ListReportsRequest {
            page_size: 2,
            page_token: token,
        };
        let page = world
            .reports
            .list_reports(by(&acme, request))
            .await
            .unwrap()
            .into_inner();
        assert!(page.reports.iter().all(|report| report.oscal_json.is_empty()));
        listed.extend(page.reports.into_iter().map(|report| report.name));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(listed, names);
    let none = world
        .reports
        .list_reports(by(&other, ListReportsRequest::default()))
        .await
        .unwrap()
        .into_inner();
    assert!(none.reports.is_empty());
    let controls = world
        .reports
        .list_controls(by(&other, ListControlsRequest {}))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        controls.controls.iter().map(|c| c.id.as_str()).collect::<Vec<_>>(),
        ["CC7.2", "CC7.3", "CC7.4", "CC7.5"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_requests_name_the_field() {
    let world = World::running().await;
    let acme = tenant("acme");
    let at = |seconds| Some(garrison_proto::Timestamp { seconds, nanos: 0 });
    let cases = [
        (
            CreateReportRequest {
                framework: "iso".into(),
                ..soc2()
            },
            "framework",
        ),
        (
            CreateReportRequest {
                since: at(20),
                until: at(10),
                ..soc2()
            },
            "since",
        ),
        (
            CreateReportRequest {
                since: at(i64::MAX),
                ..soc2()
            },
            "since",
        ),
    ];
    for (request, field) in cases {
        let refused = world.reports.create_report(by(&acme, request)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains(field), "{}", refused.message());
    }
    let refused = world
        .reports
        .get_report(by(
            &acme,
            GetReportRequest {
                name: "bundles/1".into(),
            },
        ))
        .await;
    assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
    let refused = world
        .reports
        .list_reports(by(
            &acme,
            ListReportsRequest {
                page_size: -1,
                ..Default::default()
            },
        ))
        .await;
    assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
}
