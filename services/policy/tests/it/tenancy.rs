//! Two tenants side by side: no method and no subject lets one see or touch the other's.

use garrison_proto::policy::v1::{self as proto, Verdict, policy_service_server::PolicyService as _};
use tonic::Code;

use crate::world::{World, flow, lab, request};

#[tokio::test(flavor = "multi_thread")]
async fn tenants_do_not_meet() {
    let world = World::start().await;
    let replica = world.replica().await;
    for _ in 0..2 {
        replica.apply("acme", &lab("database")).await;
        replica.apply("acme", &lab("web")).await;
    }
    replica.apply("other", &lab("database").replace("5432", "1")).await;
    // The same name is another policy, with its own versions.
    let get = async |id: &str, version| {
        let message = proto::GetPolicyRequest {
            name: "database".to_owned(),
            version,
        };
        let answer = replica.api.get_policy(request(id, message)).await;
        answer.map(|r| r.into_inner().policy.unwrap())
    };
    replica.apply("acme", &lab("database").replace("5432", "2")).await;
    assert_eq!(
        (
            get("acme", 0).await.unwrap().version,
            get("other", 0).await.unwrap().version
        ),
        (2, 1)
    );
    assert_eq!(get("other", 2).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(get("third", 0).await.unwrap_err().code(), Code::NotFound);

    let list = async |id: &str, token: String| {
        let message = proto::ListPoliciesRequest {
            page_size: 1,
            page_token: token,
        };
        replica
            .api
            .list_policies(request(id, message))
            .await
            .map(|r| r.into_inner())
    };
    let acme = list("acme", String::new()).await.unwrap();
    assert_eq!(list("other", String::new()).await.unwrap().next_page_token, "");
    assert_eq!(
        list("other", acme.next_page_token).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    let versions = proto::ListPolicyVersionsRequest {
        name: "web".to_owned(),
        ..Default::default()
    };
    assert_eq!(
        replica
            .api
            .list_policy_versions(request("other", versions))
            .await
            .unwrap_err()
            .code(),
        Code::NotFound
    );
    let delete = proto::DeletePolicyRequest { name: "web".to_owned() };
    assert_eq!(
        replica
            .api
            .delete_policy(request("other", delete))
            .await
            .unwrap_err()
            .code(),
        Code::NotFound
    );

    let compile = proto::CompilePolicyRequest {
        target: proto::Target::Nftables.into(),
        document: String::new(),
    };
    let compiled = replica
        .api
        .compile_policy(request("other", compile))
        .await
        .unwrap()
        .into_inner();
    assert!(!compiled.files[0].content.contains("web@"), "acme's policy");
    let explain = async |id: &str, dst: &str| {
        let message = proto::ExplainConnectionRequest {
            src_ip: "10.20.0.30".to_owned(),
            dst_ip: dst.to_owned(),
            dst_port: 22,
            protocol: 6,
        };
        replica
            .api
            .explain_connection(request(id, message))
            .await
            .unwrap()
            .into_inner()
            .verdict()
    };
    assert_eq!(explain("acme", "10.20.0.10").await, Verdict::Deny);
    assert_eq!(explain("other", "10.20.0.10").await, Verdict::Ungoverned);

    // The same flow: forbidden in one tenant, nobody's business in the other.
    let rows = [flow(1, "10.20.0.30", "10.20.0.10", 22)];
    world.flows("acme", &rows).await;
    world.flows("other", &rows).await;
    world.flows("third", &rows).await;
    world.flows_are_done().await;
    world.alerts(1).await;
    let (subject, _) = &world.messages("ALERTS").await[0];
    assert_eq!(subject, "alerts.v1.acme.high.policy-violation");
    let ungoverned = (String::new(), String::new(), Verdict::Ungoverned, 1);
    assert_eq!(replica.counts("other").await, std::slice::from_ref(&ungoverned));
    assert_eq!(replica.counts("third").await, [ungoverned]);
    assert_eq!(replica.counts("acme").await.len(), 1);
    for (subject, _) in world.messages("EVENTS").await {
        assert!(
            subject.starts_with("events.v1.acme.") || subject.starts_with("events.v1.other."),
            "{subject}"
        );
    }
}
