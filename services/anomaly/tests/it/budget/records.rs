//! What people do to a budget and to what it held back is on record, in the transaction that does it.

use garrison_proto::audit::v1::Decision;

use super::*;

/// The audit records that wait to be published. Nothing relays here, so all of them do.
async fn records(bench: &Bench, tenant: &TenantId) -> Vec<AuditRecord> {
    let db = Db::connect(&bench.database, "anomaly").unwrap();
    let mut tx = db.begin(tenant).await.unwrap();
    let rows: Vec<(String, Vec<u8>)> =
        sqlx::query_as("SELECT subject, payload FROM outbox WHERE subject LIKE 'audit.%' ORDER BY id")
            .fetch_all(&mut *tx)
            .await
            .unwrap();
    rows.iter()
        .map(|(subject, payload)| {
            assert_eq!(*subject, format!("audit.v1.{tenant}.anomaly"));
            AuditRecord::decode(payload.as_slice()).unwrap()
        })
        .collect()
}

fn details(record: &AuditRecord) -> Vec<(&str, &str)> {
    let mut details: Vec<_> = record
        .details
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect();
    details.sort_unstable();
    details
}

#[tokio::test(flavor = "multi_thread")]
async fn who_set_a_budget_and_who_raised_what_was_held_back_is_on_record_once() {
    let mut bench = Bench::new().await;
    let (acme, other) = (tenant("recorded"), tenant("bystander"));
    bench.set(&acme, "behaviour", Some(20.0)).await.unwrap();
    bench.set(&acme, "behaviour", None).await.unwrap();
    bench.set(&acme, "behaviour", Some(20.0)).await.unwrap();
    // What is refused changes nothing, and is on record where it was refused.
    assert!(bench.set(&acme, "behaviour", Some(-1.0)).await.is_err());

    bench.days(&acme, 2, 90).await;
    let (held, _) = bench.held(&acme, ListHeldAlertsRequest::default()).await.unwrap();
    let alert = held[0].alert.clone().unwrap();
    let told = bench.release(&acme, &alert.alert_id).await.unwrap();
    assert_eq!(told.told_by, "users/00000000-0000-0000-0000-000000000007");
    // It is told already: nothing happens.
    bench.release(&acme, &alert.alert_id).await.unwrap();
    let nobody = bench.release(&acme, &Uuid::now_v7().to_string()).await;
    assert_eq!(nobody.unwrap_err().code(), Code::NotFound);

    let kept = records(&bench, &acme).await;
    let of = |action: &str| kept.iter().filter(|r| r.action == action).collect::<Vec<_>>();
    let set = of("budget.set");
    let said: Vec<_> = set.iter().map(|record| details(record)).collect();
    assert_eq!(
        said,
        [
            [("alerts_per_day", "20"), ("before", "200"), ("configured", "false")],
            [("alerts_per_day", "200"), ("before", "20"), ("configured", "true")],
            [("alerts_per_day", "20"), ("before", "200"), ("configured", "false")],
        ]
    );
    assert!(set.iter().all(|record| record.resource == "budgets/behaviour"));
    let released = of("alert.released");
    assert_eq!(released.len(), 1, "{released:?}");
    assert_eq!(released[0].resource, format!("alerts/{}", alert.alert_id));
    assert_eq!(
        details(released[0]),
        [("comment", "looks odd"), ("detector", alert.detector.as_str())]
    );
    for record in set.into_iter().chain(released) {
        assert_eq!(
            (record.tenant.as_str(), record.service.as_str()),
            ("recorded", "anomaly")
        );
        assert_eq!(record.decision(), Decision::Allow);
        let actor = record.actor.as_ref().unwrap();
        assert_eq!(actor.name, "users/00000000-0000-0000-0000-000000000007");
    }
    assert!(records(&bench, &other).await.is_empty());
}
