//! `policy.v1`: documents, compiled forms, verdicts.

use garrison_proto::policy::v1::{
    ApplyPolicyRequest, ApprovePolicyRequest, CheckPolicyRequest, CompilePolicyRequest, DeletePolicyRequest,
    ExplainConnectionRequest, GetPolicyRequest, ListPoliciesRequest, ListPolicyReviewsRequest,
    ListPolicyVersionsRequest, ListVerdictCountsRequest, RejectPolicyRequest, Target, Verdict,
};
use tonic::Code;

use super::cases;
use crate::{
    calls::gone,
    place::until,
    seed::{SHARED_POLICY, Side, policy},
};

cases! {
    "policy.v1.PolicyService/GetPolicy" => |world| {
        let mut globex = world.globex.admin.policies.clone();
        for version in [0, 1] {
            gone(globex.get_policy(GetPolicyRequest { name: world.acme.policy.clone(), version }).await);
        }
        assert!(document(&world.globex).await.contains("10.2.9.0/24"));
        assert!(document(&world.acme).await.contains("10.1.9.0/24"));
    };
    "policy.v1.PolicyService/ListPolicies" => |world| {
        for side in [&world.acme, &world.globex] {
            let answer = side.admin.policies.clone().list_policies(ListPoliciesRequest::default()).await.unwrap();
            let mut names: Vec<_> = answer.into_inner().policies.into_iter().map(|policy| policy.name).collect();
            names.retain(|name| name != "policies/made-by-globex");
            names.sort();
            assert_eq!(names, [format!("policies/{SHARED_POLICY}"), side.policy.clone()]);
        }
        // A place in acme's list leads nowhere in globex's.
        let page = ListPoliciesRequest { page_size: 1, ..ListPoliciesRequest::default() };
        let token = world.acme.admin.policies.clone().list_policies(page).await.unwrap().into_inner().next_page_token;
        assert!(!token.is_empty());
        let page = ListPoliciesRequest { page_size: 1, page_token: token };
        let refused = world.globex.admin.policies.clone().list_policies(page).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    };
    "policy.v1.PolicyService/ListPolicyVersions" => |world| {
        let request = |name: &str| ListPolicyVersionsRequest {
            name: name.to_owned(),
            ..ListPolicyVersionsRequest::default()
        };
        let mut globex = world.globex.admin.policies.clone();
        match globex.list_policy_versions(request(&world.acme.policy)).await {
            Ok(answer) => assert!(answer.into_inner().policies.is_empty()),
            refused => gone(refused),
        }
        let shared = globex.list_policy_versions(request(SHARED_POLICY)).await.unwrap().into_inner().policies;
        assert_eq!(shared.len(), 1);
        assert!(shared[0].document.contains("10.2.9.0/24"));
    };
    "policy.v1.PolicyService/ApplyPolicy" => |world| {
        // The same name is another policy: acme's version does not count, and acme's document stays.
        let expecting = |document: String, version| ApplyPolicyRequest { document, expected_version: Some(version) };
        let mut globex = world.globex.admin.policies.clone();
        let conflict = globex.apply_policy(expecting(policy(&world.acme.document, "observe", "10.2.77.0/24"), 1)).await;
        assert_eq!(conflict.unwrap_err().code(), Code::Aborted);
        globex.apply_policy(expecting(policy("made-by-globex", "observe", "10.2.77.0/24"), 0)).await.unwrap();
        gone(
            world
                .acme
                .admin
                .policies
                .clone()
                .get_policy(GetPolicyRequest { name: "made-by-globex".to_owned(), version: 0 })
                .await,
        );
        assert!(document(&world.acme).await.contains("10.1.9.0/24"));
    };
    "policy.v1.PolicyService/ListPolicyReviews" => |world| {
        // This fleet enforces without reviews: nothing waits, in neither tenant. Versions that do wait are held apart
        // by the tests of the service.
        for side in [&world.acme, &world.globex] {
            let request = ListPolicyReviewsRequest::default();
            let answer = side.admin.policies.clone().list_policy_reviews(request).await.unwrap().into_inner();
            assert!(answer.policies.is_empty(), "{answer:?}");
        }
    };
    "policy.v1.PolicyService/ApprovePolicy" => |world| {
        let request = ApprovePolicyRequest { name: world.acme.policy.clone(), version: 1, ..Default::default() };
        gone(world.globex.admin.policies.clone().approve_policy(request).await);
    };
    "policy.v1.PolicyService/RejectPolicy" => |world| {
        let request = RejectPolicyRequest { name: world.acme.policy.clone(), version: 1, ..Default::default() };
        gone(world.globex.admin.policies.clone().reject_policy(request).await);
    };
    "policy.v1.PolicyService/DeletePolicy" => |world| {
        let request = DeletePolicyRequest { name: world.acme.policy.clone() };
        gone(world.globex.admin.policies.clone().delete_policy(request).await);
        let kept = GetPolicyRequest { name: world.acme.policy.clone(), version: 0 };
        let kept = world.acme.admin.policies.clone().get_policy(kept).await.unwrap().into_inner();
        assert!(!kept.policy.unwrap().withdrawn);
    };
    "policy.v1.PolicyService/CheckPolicy" => |world| {
        // Checks a document against nothing that is stored: both are told the same.
        let request = CheckPolicyRequest { document: policy(&world.acme.document, "observe", "10.1.8.0/24") };
        let one = world.acme.admin.policies.clone().check_policy(request.clone()).await.unwrap().into_inner();
        let other = world.globex.admin.policies.clone().check_policy(request).await.unwrap().into_inner();
        assert!(one.valid);
        assert_eq!(one, other);
    };
    "policy.v1.PolicyService/CompilePolicy" => |world| {
        for target in [Target::Nftables, Target::KubernetesNetworkPolicy] {
            for (side, other) in [(&world.acme, &world.globex), (&world.globex, &world.acme)] {
                let request = CompilePolicyRequest { target: target.into(), document: String::new() };
                let answer = side.admin.policies.clone().compile_policy(request).await.unwrap().into_inner();
                let text = format!("{answer:?}");
                assert!(!text.contains(&other.document), "{} sees {}: {text}", side.id, other.document);
                assert!(!text.contains(&format!("10.{}.", other.n)), "{} sees {}: {text}", side.id, other.id);
            }
        }
    };
    "policy.v1.PolicyService/ExplainConnection" => |world| {
        // acme forbids it; globex has no say about acme's hosts.
        let request = ExplainConnectionRequest {
            src_ip: "192.0.2.1".to_owned(),
            dst_ip: "10.1.9.5".to_owned(),
            dst_port: 22,
            protocol: 6,
        };
        let acme = world.acme.admin.policies.clone().explain_connection(request.clone()).await.unwrap().into_inner();
        assert_eq!(acme.verdict(), Verdict::Deny);
        let globex = world.globex.admin.policies.clone().explain_connection(request).await.unwrap().into_inner();
        assert_eq!(globex.verdict(), Verdict::Ungoverned);
        assert!(!format!("{globex:?}").contains(&world.acme.document));
    };
    "policy.v1.PolicyService/ListVerdictCounts" => |world| {
        for (side, other) in [(&world.acme, &world.globex), (&world.globex, &world.acme)] {
            let counts = until(std::time::Duration::from_secs(120), "verdict counts", || async {
                let request = ListVerdictCountsRequest {};
                let answer = side.admin.policies.clone().list_verdict_counts(request).await.unwrap();
                let counts = answer.into_inner().counts;
                counts.iter().any(|count| count.policy.contains(&side.document)).then_some(counts)
            })
            .await;
            assert!(counts.iter().all(|count| !count.policy.contains(&other.document)), "{counts:?}");
        }
    };
}

async fn document(side: &Side) -> String {
    let request = GetPolicyRequest {
        name: SHARED_POLICY.to_owned(),
        version: 0,
    };
    let answer = side.admin.policies.clone().get_policy(request).await.unwrap();
    answer.into_inner().policy.unwrap().document
}
