//! People with tokens.

use std::{sync::atomic::Ordering, time::Duration};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{TimeDelta, Utc};
use garrison_auth::{Principal, Revoked, token};
use garrison_proto::{
    alert::v1::{ListDetectorsRequest, StartLearningRequest},
    audit::v1::Decision,
};
use tonic::{Code, Request};
use uuid::Uuid;

use crate::server::{Fixture, bearer, new_key, refusal, set};

const START: &str = "garrison.alert.v1.DetectionService/StartLearning";

fn unauthenticated(code: &str) -> (Code, String) {
    (Code::Unauthenticated, code.to_owned())
}

#[tokio::test]
async fn a_good_token_opens_and_says_who_it_is() {
    let fixture = Fixture::start().await;
    let claims = fixture.claims();
    let text = token::sign(&fixture.key, "k1", &claims);
    fixture
        .stranger()
        .list_detectors(bearer(ListDetectorsRequest {}, &text))
        .await
        .unwrap();
    let caller = fixture.seen.lock().unwrap()[0].clone();
    assert_eq!(caller.tenant.as_str(), "acme");
    assert_eq!(
        caller.principal,
        Principal::User {
            id: claims.user().unwrap(),
            login: "eva".into()
        }
    );
    assert_eq!((caller.session, caller.second_factor), (Some(claims.sid), true));
    assert_eq!(caller.roles, ["analyst"]);
    assert!(caller.address.unwrap().is_loopback());
    assert!(fixture.records().is_empty(), "a call that only reads was recorded");
}

#[tokio::test]
async fn every_bad_token_is_refused_with_its_code() {
    let fixture = Fixture::start().await;
    let mut client = fixture.stranger();
    let raw = |header: &str, signature: &str| {
        let body = serde_json::to_string(&fixture.claims()).unwrap();
        format!(
            "{}.{}.{signature}",
            URL_SAFE_NO_PAD.encode(header),
            URL_SAFE_NO_PAD.encode(body)
        )
    };
    let ago = (Utc::now() - TimeDelta::minutes(10)).timestamp();
    let ahead = (Utc::now() + TimeDelta::minutes(10)).timestamp();
    let cases = [
        (
            "expired",
            fixture.token(|c| (c.iat, c.nbf, c.exp) = (ago, ago, ago + 300)),
            "GAR-AUTH-0003",
        ),
        (
            "too early",
            fixture.token(|c| (c.iat, c.nbf, c.exp) = (ahead, ahead, ahead + 300)),
            "GAR-AUTH-0003",
        ),
        (
            "forged",
            token::sign(&new_key(), "k1", &fixture.claims()),
            "GAR-AUTH-0002",
        ),
        ("unsigned", raw(r#"{"alg":"none","kid":"k1"}"#, ""), "GAR-AUTH-0002"),
        (
            "symmetric",
            raw(r#"{"alg":"HS256","kid":"k1"}"#, "AAAA"),
            "GAR-AUTH-0002",
        ),
        (
            "of another audience",
            fixture.token(|c| c.aud = "other".into()),
            "GAR-AUTH-0002",
        ),
        (
            "of another issuer",
            fixture.token(|c| c.iss = "spiffe://test.garrison/svc/policy".into()),
            "GAR-AUTH-0002",
        ),
        ("for ever", fixture.token(|c| c.exp += 1_000_000), "GAR-AUTH-0002"),
        (
            "of an unknown key",
            token::sign(&fixture.key, "k9", &fixture.claims()),
            "GAR-AUTH-0005",
        ),
        ("empty", String::new(), "GAR-AUTH-0002"),
        ("garbage", "a.b.c".to_owned(), "GAR-AUTH-0002"),
    ];
    for (name, text, code) in cases {
        let result = client.list_detectors(bearer(ListDetectorsRequest {}, &text)).await;
        assert_eq!(refusal(result), unauthenticated(code), "{name}");
    }
    let mut basic = Request::new(ListDetectorsRequest {});
    basic
        .metadata_mut()
        .insert("authorization", "Basic ZXZhOnNlY3JldA==".parse().unwrap());
    assert_eq!(
        refusal(client.list_detectors(basic).await),
        unauthenticated("GAR-AUTH-0002")
    );
    assert_eq!(
        refusal(client.list_detectors(ListDetectorsRequest {}).await),
        unauthenticated("GAR-AUTH-0001")
    );
    assert_eq!(fixture.handled(), 0);
}

#[tokio::test]
async fn a_revoked_session_is_refused_from_the_next_call_on() {
    let fixture = Fixture::start().await;
    let (session, mut client) = (Uuid::now_v7(), fixture.stranger());
    let text = fixture.token(|c| c.sid = session);
    client
        .list_detectors(bearer(ListDetectorsRequest {}, &text))
        .await
        .unwrap();
    fixture.ring.revoke(Revoked {
        session,
        until: Utc::now() + TimeDelta::minutes(5),
    });
    let result = client.list_detectors(bearer(ListDetectorsRequest {}, &text)).await;
    assert_eq!(refusal(result), unauthenticated("GAR-AUTH-0004"));
    let other = fixture.token(|_| {});
    client
        .list_detectors(bearer(ListDetectorsRequest {}, &other))
        .await
        .unwrap();
}

#[tokio::test]
async fn keys_rotate_without_a_gap() {
    let fixture = Fixture::start().await;
    let (mut client, next) = (fixture.stranger(), new_key());
    let text = token::sign(&next, "k2", &fixture.claims());
    // What iam's follower does when it is asked: the new key comes a moment later.
    let ring = std::sync::Arc::clone(&fixture.ring);
    let mut both = set("k1", &fixture.key);
    both.keys.extend(set("k2", &next).keys);
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(100)).await;
        ring.set_keys(&both);
    });
    client
        .list_detectors(bearer(ListDetectorsRequest {}, &text))
        .await
        .unwrap();
    client
        .list_detectors(bearer(ListDetectorsRequest {}, &fixture.token(|_| {})))
        .await
        .unwrap();
    fixture.ring.set_keys(&set("k2", &next));
    let old = client
        .list_detectors(bearer(ListDetectorsRequest {}, &fixture.token(|_| {})))
        .await;
    assert_eq!(refusal(old), unauthenticated("GAR-AUTH-0005"));
}

#[tokio::test]
async fn without_keys_the_answer_is_to_come_back_later() {
    let fixture = Fixture::start_without_keys().await;
    let result = fixture
        .stranger()
        .list_detectors(bearer(ListDetectorsRequest {}, &fixture.token(|_| {})))
        .await;
    assert_eq!(refusal(result), (Code::Unavailable, "GAR-AUTH-0008".to_owned()));
}

#[tokio::test]
async fn a_change_needs_role_and_factor_and_is_recorded_either_way() {
    let fixture = Fixture::start().await;
    let mut client = fixture.stranger();
    let viewer = fixture.token(|c| c.roles = vec!["viewer".into()]);
    let result = client
        .start_learning(bearer(StartLearningRequest::default(), &viewer))
        .await;
    assert_eq!(refusal(result), (Code::PermissionDenied, "GAR-AUTH-0006".to_owned()));
    let password_only = fixture.token(|c| c.amr = vec!["pwd".into()]);
    let result = client
        .start_learning(bearer(StartLearningRequest::default(), &password_only))
        .await;
    assert_eq!(refusal(result), (Code::PermissionDenied, "GAR-AUTH-0010".to_owned()));
    let mut good = bearer(StartLearningRequest::default(), &fixture.token(|_| {}));
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    good.metadata_mut().insert("traceparent", trace.parse().unwrap());
    client.start_learning(good).await.unwrap();
    refusal(client.start_learning(StartLearningRequest::default()).await);

    let records = fixture.records();
    let decisions: Vec<_> = records
        .iter()
        .map(|r| (r.decision(), r.tenant.as_str(), r.action.as_str()))
        .collect();
    assert_eq!(
        decisions,
        [
            (Decision::Deny, "acme", START),
            (Decision::Deny, "acme", START),
            (Decision::Allow, "acme", START),
            (Decision::Deny, "system", START),
        ]
    );
    let allowed = &records[2];
    let actor = allowed.actor.as_ref().unwrap();
    assert!(actor.name.starts_with("users/") && actor.session.starts_with("sessions/"));
    assert_eq!(
        (actor.roles.as_slice(), actor.address.as_str()),
        (&["analyst".to_owned()][..], "127.0.0.1")
    );
    assert_eq!(
        (allowed.service.as_str(), allowed.trace_id.as_str()),
        ("anomaly", &trace[3..35])
    );
    assert!(records[0].reason.starts_with("GAR-AUTH-0006"));
    assert_eq!(records[3].actor.as_ref().unwrap().name, "anonymous");
    assert_eq!(fixture.handled(), 1);
}

#[tokio::test]
async fn a_caller_without_rights_cannot_flood_the_audit_log() {
    let fixture = Fixture::start().await;
    let mut client = fixture.stranger();
    let viewer = fixture.token(|c| c.roles = vec!["viewer".into()]);
    for _ in 0..50 {
        let result = client
            .start_learning(bearer(StartLearningRequest::default(), &viewer))
            .await;
        assert_eq!(refusal(result).1, "GAR-AUTH-0006");
    }
    assert_eq!(fixture.records().len(), 1);
    // The count is recorded a minute later, or when the service ends.
    fixture.gate.settle().await;
    let records = fixture.records();
    assert_eq!(records.len(), 2);
    assert_eq!(
        (records[1].decision(), records[1].action.as_str()),
        (Decision::Deny, START)
    );
    assert_eq!(records[1].details["repeats"], "49");
    assert_eq!(
        records[1].actor.as_ref().unwrap().name,
        records[0].actor.as_ref().unwrap().name
    );
    // What is allowed is recorded each time.
    let analyst = fixture.token(|_| {});
    for _ in 0..3 {
        client
            .start_learning(bearer(StartLearningRequest::default(), &analyst))
            .await
            .unwrap();
    }
    assert_eq!(fixture.records().len(), 5);
}

#[tokio::test]
async fn what_cannot_be_recorded_is_not_done() {
    let fixture = Fixture::start().await;
    fixture.recorder.broken.store(true, Ordering::SeqCst);
    let mut client = fixture.stranger();
    let text = fixture.token(|_| {});
    let result = client
        .start_learning(bearer(StartLearningRequest::default(), &text))
        .await;
    assert_eq!(refusal(result), (Code::Unavailable, "GAR-AUTH-0009".to_owned()));
    let viewer = fixture.token(|c| c.roles = vec!["viewer".into()]);
    let result = client
        .start_learning(bearer(StartLearningRequest::default(), &viewer))
        .await;
    assert_eq!(
        refusal(result).1,
        "GAR-AUTH-0006",
        "a refusal stays one whether or not it can be recorded"
    );
    assert_eq!(fixture.handled(), 0);
    client
        .list_detectors(bearer(ListDetectorsRequest {}, &text))
        .await
        .unwrap();
}

#[tokio::test]
async fn nobody_chooses_another_tenant() {
    let fixture = Fixture::start().await;
    let mut client = fixture.stranger();
    let mut other = bearer(ListDetectorsRequest {}, &fixture.token(|_| {}));
    other
        .metadata_mut()
        .insert("garrison-tenant", "globex".parse().unwrap());
    let result = client.list_detectors(other).await;
    assert_eq!(refusal(result), (Code::InvalidArgument, "GAR-AUTH-0011".to_owned()));
    let mut own = bearer(ListDetectorsRequest {}, &fixture.token(|_| {}));
    own.metadata_mut().insert("garrison-tenant", "acme".parse().unwrap());
    client.list_detectors(own).await.unwrap();
}
