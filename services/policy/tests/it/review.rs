//! Versions that are enforced wait for somebody else.

use std::collections::BTreeMap;

use garrison_auth::Principal;
use garrison_proto::{
    audit::v1::AuditRecord,
    policy::v1::{self as proto, Review, Verdict, policy_service_server::PolicyService as _},
};
use policy::app::{ReviewRule, Settings};
use prost::Message as _;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;
use uuid::Uuid;

use crate::world::{Replica, World, author, lab, request, settings, until};

fn reviewed() -> Settings {
    Settings {
        review: ReviewRule {
            required: true,
            tenants: BTreeMap::from([("free".to_owned(), false)]),
        },
        ..settings()
    }
}

/// The same tenant's second author.
fn second<T>(id: &str, message: T) -> Request<T> {
    let mut caller = author(id);
    caller.principal = Principal::User {
        id: Uuid::from_u128(8),
        login: "pavel".to_owned(),
    };
    let mut request = Request::new(message);
    request.extensions_mut().insert(caller);
    request
}

fn approval(policy: &proto::Policy) -> proto::ApprovePolicyRequest {
    proto::ApprovePolicyRequest {
        name: policy.name.clone(),
        version: policy.version,
        sha256: policy.sha256.clone(),
        note: "seen with the data team".to_owned(),
    }
}

async fn waiting(replica: &Replica, id: &str) -> Vec<(String, u64)> {
    let message = proto::ListPolicyReviewsRequest::default();
    let answer = replica.api.list_policy_reviews(request(id, message)).await.unwrap();
    let policies = answer.into_inner().policies.into_iter();
    policies.map(|p| (p.name, p.version)).collect()
}

async fn verdict(replica: &Replica, id: &str, port: u16) -> Verdict {
    let message = proto::ExplainConnectionRequest {
        src_ip: "10.20.0.10".to_owned(),
        dst_ip: "10.20.0.20".to_owned(),
        dst_port: port.into(),
        protocol: 6,
    };
    let answer = replica.api.explain_connection(request(id, message)).await.unwrap();
    answer.into_inner().verdict()
}

async fn get(replica: &Replica, version: u64) -> proto::Policy {
    let message = proto::GetPolicyRequest {
        name: "database".to_owned(),
        version,
    };
    let answer = replica.api.get_policy(request("acme", message)).await.unwrap();
    answer.into_inner().policy.unwrap()
}

fn refused(status: &Status) -> (Code, String) {
    let reason = status.get_details_error_info().map(|info| info.reason);
    (status.code(), reason.unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_enforced_version_takes_force_when_somebody_else_approves_it() {
    let world = World::start().await;
    let replica = world.replica_with(reviewed()).await;
    let other = world.replica_with(reviewed()).await;
    let first = replica.apply("acme", &lab("database")).await.policy.unwrap();
    assert_eq!((first.review(), first.version, first.in_force), (Review::Pending, 1, 0));
    assert_eq!(waiting(&replica, "acme").await, [("policies/database".to_owned(), 1)]);
    assert_eq!(verdict(&replica, "acme", 5432).await, Verdict::Ungoverned);
    // Applying the same again changes nothing, whoever does it.
    let message = proto::ApplyPolicyRequest {
        document: lab("database"),
        expected_version: Some(1),
    };
    let again = replica
        .api
        .apply_policy(second("acme", message))
        .await
        .unwrap()
        .into_inner();
    assert!(again.unchanged);
    assert_eq!(again.policy.unwrap().author, first.author);
    let list = proto::ListPoliciesRequest::default();
    let listed = replica
        .api
        .list_policies(request("acme", list))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(listed.policies, [], "what waits is compiled by nobody");

    let own = replica.api.approve_policy(request("acme", approval(&first))).await;
    assert_eq!(
        refused(&own.unwrap_err()),
        (Code::PermissionDenied, "GAR-POLICY-0209".to_owned())
    );
    let mut mistaken = approval(&first);
    mistaken.sha256 = "00".repeat(32);
    let mistaken = replica.api.approve_policy(second("acme", mistaken)).await;
    assert_eq!(
        refused(&mistaken.unwrap_err()),
        (Code::Aborted, "GAR-POLICY-0210".to_owned())
    );
    let mut long = approval(&first);
    long.note = "x".repeat(2_001);
    let long = replica.api.approve_policy(second("acme", long)).await;
    assert_eq!(long.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(verdict(&replica, "acme", 5432).await, Verdict::Ungoverned);

    let approved = replica.api.approve_policy(second("acme", approval(&first))).await;
    let approved = approved.unwrap().into_inner().policy.unwrap();
    assert_eq!((approved.review(), approved.in_force), (Review::Approved, 1));
    assert_eq!(approved.reviewer, "users/00000000-0000-0000-0000-000000000008");
    assert_eq!(get(&replica, 0).await, approved, "what is answered is what is stored");
    assert_eq!(verdict(&replica, "acme", 5432).await, Verdict::Allow);
    until("the other replica knows", async || {
        verdict(&other, "acme", 5432).await == Verdict::Allow
    })
    .await;
    let twice = replica.api.approve_policy(second("acme", approval(&first))).await;
    assert_eq!(
        refused(&twice.unwrap_err()),
        (Code::FailedPrecondition, "GAR-POLICY-0208".to_owned())
    );

    // The next version waits, and the one before stays in force.
    let moved = lab("database").replace("port: 5432", "port: 5433");
    let conflict = replica.try_apply("acme", &moved, Some(0)).await.unwrap_err();
    assert_eq!(conflict.code(), Code::Aborted);
    let next = replica
        .try_apply("acme", &moved, Some(1))
        .await
        .unwrap()
        .policy
        .unwrap();
    assert_eq!((next.review(), next.version, next.in_force), (Review::Pending, 2, 1));
    assert_eq!(verdict(&replica, "acme", 5433).await, Verdict::Deny);
    assert_eq!(get(&replica, 0).await.version, 1);
    let reject = proto::RejectPolicyRequest {
        name: "database".to_owned(),
        version: 2,
        sha256: next.sha256.clone(),
        note: "the port is the old one's".to_owned(),
    };
    let rejected = replica.api.reject_policy(second("acme", reject)).await.unwrap();
    assert_eq!(rejected.into_inner().policy.unwrap().review(), Review::Rejected);
    let late = replica.api.approve_policy(second("acme", approval(&next))).await;
    assert_eq!(late.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(waiting(&replica, "acme").await, []);

    // A waiting version gives way to a newer one; observing needs nobody's approval.
    let third = replica.apply("acme", &moved).await.policy.unwrap();
    assert_eq!((third.version, third.review()), (3, Review::Pending));
    let observed = lab("database").replace("mode: enforce", "mode: observe");
    let observed = replica.apply("acme", &observed).await.policy.unwrap();
    assert_eq!(
        (observed.version, observed.review(), observed.in_force),
        (4, Review::NotNeeded, 4)
    );
    assert_eq!(verdict(&replica, "acme", 5432).await, Verdict::Ungoverned);
    assert_eq!(waiting(&replica, "acme").await, []);
    let message = proto::ListPolicyVersionsRequest {
        name: "database".to_owned(),
        ..Default::default()
    };
    let history = replica
        .api
        .list_policy_versions(request("acme", message))
        .await
        .unwrap()
        .into_inner();
    let told: Vec<_> = history.policies.iter().map(|p| (p.version, p.review())).collect();
    assert_eq!(
        told,
        [
            (4, Review::NotNeeded),
            (3, Review::Superseded),
            (2, Review::Rejected),
            (1, Review::Approved)
        ]
    );
    assert_eq!(history.policies[2].review_note, "the port is the old one's");
    assert!(history.policies.iter().all(|p| p.in_force == 4));

    // What was withdrawn comes back by an approval only.
    let delete = proto::DeletePolicyRequest {
        name: "database".to_owned(),
    };
    replica.api.delete_policy(request("acme", delete)).await.unwrap();
    let back = replica
        .try_apply("acme", &moved, Some(0))
        .await
        .unwrap()
        .policy
        .unwrap();
    assert!(back.withdrawn && back.in_force == 0);
    replica
        .api
        .approve_policy(second("acme", approval(&back)))
        .await
        .unwrap();
    assert_eq!(verdict(&replica, "acme", 5433).await, Verdict::Allow);

    let audit = world.exactly("AUDIT", 9).await;
    let actions: Vec<String> = audit
        .iter()
        .map(|(_, payload)| AuditRecord::decode(payload.clone()).unwrap())
        .map(|record| format!("{} {}", record.action, record.details["version"]))
        .collect();
    assert_eq!(
        actions,
        [
            "policy.proposed 1",
            "policy.approved 1",
            "policy.proposed 2",
            "policy.rejected 2",
            "policy.proposed 3",
            "policy.applied 4",
            "policy.withdrawn 4",
            "policy.proposed 5",
            "policy.approved 5",
        ]
    );
    // Events tell what is in force, and nothing else.
    assert_eq!(world.exactly("EVENTS", 4).await.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_review_their_own() {
    let world = World::start().await;
    let replica = world.replica_with(reviewed()).await;
    let acme = replica.apply("acme", &lab("database")).await.policy.unwrap();
    let free = replica.apply("free", &lab("database")).await.policy.unwrap();
    assert_eq!((free.review(), free.in_force), (Review::NotNeeded, 1));
    assert_eq!(verdict(&replica, "free", 5432).await, Verdict::Allow);
    assert_eq!(waiting(&replica, "free").await, []);
    for tenant in ["free", "globex"] {
        let approve = replica
            .api
            .approve_policy(second(tenant, approval(&acme)))
            .await
            .unwrap_err();
        let reject = proto::RejectPolicyRequest {
            name: acme.name.clone(),
            version: 1,
            sha256: acme.sha256.clone(),
            note: String::new(),
        };
        let reject = replica.api.reject_policy(second(tenant, reject)).await.unwrap_err();
        let expected = if tenant == "free" {
            Code::FailedPrecondition
        } else {
            Code::NotFound
        };
        assert_eq!((approve.code(), reject.code()), (expected, expected), "{tenant}");
    }
    assert_eq!(waiting(&replica, "acme").await, [("policies/database".to_owned(), 1)]);
    assert_eq!(verdict(&replica, "acme", 5432).await, Verdict::Ungoverned);

    // A token of one tenant's list is none of another's.
    replica.apply("acme", &lab("web")).await;
    let page = |token: String| proto::ListPolicyReviewsRequest {
        page_size: 1,
        page_token: token,
    };
    let first = replica
        .api
        .list_policy_reviews(request("acme", page(String::new())))
        .await;
    let token = first.unwrap().into_inner().next_page_token;
    let foreign = replica
        .api
        .list_policy_reviews(request("globex", page(token.clone())))
        .await;
    assert_eq!(foreign.unwrap_err().code(), Code::InvalidArgument);
    let rest = replica.api.list_policy_reviews(request("acme", page(token))).await;
    assert_eq!(rest.unwrap().into_inner().policies[0].name, "policies/web");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_was_changed_behind_the_service_decides_nothing() {
    let world = World::start().await;
    let replica = world.replica_with(reviewed()).await;
    let first = replica.apply("acme", &lab("database")).await.policy.unwrap();
    replica
        .api
        .approve_policy(second("acme", approval(&first)))
        .await
        .unwrap();
    let moved = lab("database").replace("port: 5432", "port: 5433");
    replica.apply("acme", &moved).await;
    drop(replica);
    let db = garrison_db::Db::connect(&world.database, "policy").unwrap();
    let change = async |statement: &'static str| {
        let mut tx = db.begin(&crate::world::tenant("acme")).await.unwrap();
        sqlx::query(statement).execute(&mut *tx).await.unwrap();
        tx.commit().await.unwrap();
    };
    let fails = async || {
        // A replica that starts has nothing in memory.
        let replica = world.replica_with(reviewed()).await;
        let message = proto::ExplainConnectionRequest {
            src_ip: "10.20.0.10".to_owned(),
            dst_ip: "10.20.0.20".to_owned(),
            dst_port: 5433,
            protocol: 6,
        };
        let answer = replica.api.explain_connection(request("acme", message)).await;
        answer
            .map(|a| a.into_inner().verdict())
            .map_err(|status| refused(&status).1)
    };
    assert_eq!(fails().await, Ok(Verdict::Deny));
    change("UPDATE policy SET version = 2, waiting = 0").await;
    assert_eq!(fails().await, Err("GAR-POLICY-0207".to_owned()), "nobody approved it");
    change("UPDATE policy SET version = 1").await;
    assert_eq!(fails().await, Ok(Verdict::Deny));
    change("UPDATE policy_version SET document = replace(document, '5432', '5433') WHERE version = 1").await;
    assert_eq!(fails().await, Err("GAR-POLICY-0207".to_owned()), "another text");
}
