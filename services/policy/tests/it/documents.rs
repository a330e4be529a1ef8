//! Storing, versions, conflicts, refusals, compiling.

use garrison_proto::{
    audit::v1::AuditRecord,
    event::v1::PolicyChanged,
    policy::v1::{self as proto, policy_service_server::PolicyService as _},
};
use prost::Message as _;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::world::{LAB, Replica, World, lab, request};

fn reason(status: &Status) -> String {
    status
        .get_details_error_info()
        .map(|info| info.reason)
        .unwrap_or_default()
}

fn named(name: &str) -> String {
    lab("database").replace("name: database", &format!("name: {name}"))
}

async fn get(replica: &Replica, name: &str, version: u64) -> Result<proto::Policy, Status> {
    let message = proto::GetPolicyRequest {
        name: name.to_owned(),
        version,
    };
    let answer = replica.api.get_policy(request("acme", message)).await?;
    Ok(answer.into_inner().policy.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_takes_no_other_namespaces_place() {
    let world = World::start().await;
    let replica = world.replica().await;
    let of = |namespace: &str| {
        format!(
            "apiVersion: garrison.dev/v1beta1
kind: ZeroTrustPolicy
metadata: {{name: web, namespace: {namespace}}}
spec: {{subject: {{workloads: {{}}}}, ingress: []}}
"
        )
    };
    replica.try_apply("acme", &of("shop"), None).await.unwrap();
    let refused = replica.try_apply("acme", &of("bank"), None).await.unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::InvalidArgument, "GAR-POLICY-0203")
    );
    assert_eq!(get(&replica, "web", 0).await.unwrap().version, 1);
    // Of the same namespace it may change, and another tenant has its own.
    let changed = of("shop").replace("ingress: []", "egress: []");
    assert_eq!(replica.apply("acme", &changed).await.policy.unwrap().version, 2);
    replica.try_apply("other", &of("bank"), None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_conflicts_and_withdrawal() {
    let world = World::start().await;
    let replica = world.replica().await;
    let first = lab("database");
    let second = first.replace("port: 5432", "port: 5433");
    let applied = replica.try_apply("acme", &first, Some(0)).await.unwrap();
    let policy = applied.policy.unwrap();
    assert_eq!(
        (policy.name.as_str(), policy.version, applied.unchanged),
        ("policies/database", 1, false)
    );
    assert_eq!(policy.document, first);
    assert_eq!(policy.author, "users/00000000-0000-0000-0000-000000000007");
    assert!(replica.apply("acme", &first).await.unchanged);

    let conflict = replica.try_apply("acme", &second, Some(0)).await.unwrap_err();
    assert_eq!(
        (conflict.code(), reason(&conflict).as_str()),
        (Code::Aborted, "GAR-POLICY-0201")
    );
    let facts = conflict.get_details_error_info().unwrap().metadata;
    assert_eq!(facts["current_version"], "1");
    assert_eq!(
        get(&replica, "database", 0).await.unwrap().version,
        1,
        "nothing was stored"
    );

    let applied = replica.try_apply("acme", &second, Some(1)).await.unwrap();
    assert_eq!(applied.policy.unwrap().version, 2);
    assert_eq!(get(&replica, "policies/database", 1).await.unwrap().document, first);
    assert_eq!(get(&replica, "database", 9).await.unwrap_err().code(), Code::NotFound);

    let delete = |name: &str| {
        replica
            .api
            .delete_policy(request("acme", proto::DeletePolicyRequest { name: name.to_owned() }))
    };
    delete("database").await.unwrap();
    let again = delete("database").await.unwrap_err();
    assert_eq!(
        (again.code(), reason(&again).as_str()),
        (Code::NotFound, "GAR-POLICY-0202")
    );
    let withdrawn = get(&replica, "database", 0).await.unwrap();
    assert!(withdrawn.withdrawn && withdrawn.version == 2);
    let applied = replica.try_apply("acme", &second, Some(0)).await.unwrap();
    assert_eq!((applied.policy.unwrap().version, applied.unchanged), (3, false));

    let versions = async |token: String| {
        let message = proto::ListPolicyVersionsRequest {
            name: "database".to_owned(),
            page_size: 2,
            page_token: token,
        };
        replica
            .api
            .list_policy_versions(request("acme", message))
            .await
            .map(|r| r.into_inner())
    };
    let page = versions(String::new()).await.unwrap();
    assert_eq!(page.policies.iter().map(|p| p.version).collect::<Vec<_>>(), [3, 2]);
    let last = versions(page.next_page_token).await.unwrap();
    assert_eq!(last.policies.iter().map(|p| p.version).collect::<Vec<_>>(), [1]);
    assert_eq!(last.next_page_token, "");

    // Each change is told, once, in order.
    let events = world.exactly("EVENTS", 4).await;
    let told: Vec<_> = events
        .iter()
        .map(|(subject, payload)| {
            assert_eq!(subject, "events.v1.acme.policy");
            let event = PolicyChanged::decode(payload.clone()).unwrap();
            assert_eq!(event.policy, "policies/database");
            (event.version, event.withdrawn)
        })
        .collect();
    assert_eq!(told, [(1, false), (2, false), (2, true), (3, false)]);
    let audit = world.exactly("AUDIT", 4).await;
    let actions: Vec<_> = audit
        .iter()
        .map(|(_, p)| AuditRecord::decode(p.clone()).unwrap().action)
        .collect();
    assert_eq!(
        actions,
        ["policy.applied", "policy.applied", "policy.withdrawn", "policy.applied"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_document_is_refused_with_every_error_at_its_place() {
    let world = World::start().await;
    let replica = world.replica().await;
    let wrong = lab("database")
        .replace("mode:", "mod:")
        .replace("10.20.0.20", "10.20.0.20/24");
    let refused = replica.try_apply("acme", &wrong, None).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let found = refused.get_details_bad_request().unwrap().field_violations;
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!(found[0].field, "document.spec.mod");
    assert!(found[0].description.contains("GAR-POLICY-0003") && found[0].description.contains("Did you mean `mode`?"));
    assert!(
        found[1].description.starts_with("15:13 GAR-POLICY-0007"),
        "{}",
        found[1].description
    );

    let check = proto::CheckPolicyRequest { document: wrong };
    let checked = replica
        .api
        .check_policy(request("acme", check))
        .await
        .unwrap()
        .into_inner();
    assert!(!checked.valid && checked.diagnostics.len() == 2);

    let both = replica.try_apply("acme", LAB, None).await.unwrap_err();
    assert_eq!(
        (both.code(), reason(&both).as_str()),
        (Code::InvalidArgument, "GAR-POLICY-0203")
    );
    assert_eq!(world.messages("EVENTS").await.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_paged_and_wrong_requests_name_their_field() {
    let world = World::start().await;
    let replica = world.replica().await;
    for i in 0..5 {
        replica.apply("acme", &named(&format!("p{i}"))).await;
    }
    let list = async |size, token: &str| {
        let message = proto::ListPoliciesRequest {
            page_size: size,
            page_token: token.to_owned(),
        };
        replica
            .api
            .list_policies(request("acme", message))
            .await
            .map(|r| r.into_inner())
    };
    let (mut names, mut token) = (Vec::new(), String::new());
    loop {
        let page = list(2, &token).await.unwrap();
        names.extend(page.policies.into_iter().map(|p| p.name));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(
        names,
        [
            "policies/p0",
            "policies/p1",
            "policies/p2",
            "policies/p3",
            "policies/p4"
        ]
    );

    let field = |status: Status| {
        assert_eq!(
            (status.code(), reason(&status).as_str()),
            (Code::InvalidArgument, "GAR-POLICY-0203")
        );
        status.get_details_bad_request().unwrap().field_violations[0]
            .field
            .clone()
    };
    assert_eq!(field(list(-1, "").await.unwrap_err()), "page_size");
    assert_eq!(field(list(0, "!!").await.unwrap_err()), "page_token");
    assert_eq!(field(get(&replica, "../x", 0).await.unwrap_err()), "name");
    let explain = async |src: &str, protocol, port| {
        let message = proto::ExplainConnectionRequest {
            src_ip: src.to_owned(),
            dst_ip: "10.0.0.1".to_owned(),
            dst_port: port,
            protocol,
        };
        field(
            replica
                .api
                .explain_connection(request("acme", message))
                .await
                .unwrap_err(),
        )
    };
    assert_eq!(explain("nobody", 6, 1).await, "src_ip");
    assert_eq!(explain("10.0.0.1", 256, 1).await, "protocol");
    assert_eq!(explain("10.0.0.1", 6, 65_536).await, "dst_port");
    let message = proto::CompilePolicyRequest {
        target: 0,
        document: String::new(),
    };
    assert_eq!(
        field(replica.api.compile_policy(request("acme", message)).await.unwrap_err()),
        "target"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn two_authors_at_once_do_not_overwrite_each_other() {
    let world = World::start().await;
    let (first, second) = (world.replica().await, world.replica().await);
    let document = |port: u16| lab("database").replace("5432", &port.to_string());
    let mut won = 0;
    for round in 0..10u16 {
        let (a, b) = (document(1_000 + round), document(2_000 + round));
        let (a, b) = tokio::join!(
            first.try_apply("acme", &a, Some(round.into())),
            second.try_apply("acme", &b, Some(round.into())),
        );
        won += [a, b]
            .into_iter()
            .filter(|r| match r {
                Ok(_) => true,
                Err(status) => {
                    assert_eq!(status.code(), Code::Aborted, "{status:?}");
                    false
                }
            })
            .count();
    }
    assert_eq!(won, 10);
    assert_eq!(get(&first, "database", 0).await.unwrap().version, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_are_compiled_for_both_targets() {
    let world = World::start().await;
    let replica = world.replica().await;
    replica.apply("acme", &lab("database")).await;
    let compile = async |target: proto::Target, document: &str| {
        let message = proto::CompilePolicyRequest {
            target: target.into(),
            document: document.to_owned(),
        };
        replica
            .api
            .compile_policy(request("acme", message))
            .await
            .unwrap()
            .into_inner()
    };
    let nft = compile(proto::Target::Nftables, "").await;
    assert!(nft.files[0].content.contains("comment \"database@1 from-web\""));
    assert!(!nft.files[0].content.contains("web@"));
    let both = compile(proto::Target::Nftables, LAB).await;
    assert!(both.files[0].content.contains("comment \"web public\""));
    let manifests = compile(proto::Target::KubernetesNetworkPolicy, "").await;
    assert_eq!(manifests.files[0].path, "networkpolicy/shop/database.yaml");
    let sha256 = &get(&replica, "database", 0).await.unwrap().sha256;
    assert!(manifests.files[0].content.contains(sha256));
    let observed = compile(proto::Target::Nftables, &LAB.replace("enforce", "observe")).await;
    assert_eq!(observed.gaps.len(), 2);
}
