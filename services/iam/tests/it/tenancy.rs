use garrison_auth::{Caller, Principal};
use garrison_proto::audit::v1::AuditRecord;
use iam::{
    app::{SessionSelection, UserChange},
    domain::SecretText,
    error::Error,
};

use crate::world::{PASSWORD, World};

#[tokio::test(flavor = "multi_thread")]
async fn one_tenant_neither_sees_nor_touches_the_other() {
    let world = World::new().await;
    let (acme, other) = (world.caller("acme", "admin").await, world.caller("other", "ada").await);
    let (stranger, session) = (other.user().unwrap(), other.session.unwrap());
    let iam = &world.iam;
    assert!(matches!(iam.get_user(&acme, stranger).await, Err(Error::NotFound(_))));
    assert!(matches!(
        iam.update_user(&acme, stranger, UserChange::default()).await,
        Err(Error::NotFound(_))
    ));
    let reset = iam
        .reset_password(&acme, stranger, SecretText::new("eleven grey geese"), true)
        .await;
    assert!(matches!(reset, Err(Error::NotFound(_))));
    assert!(matches!(
        iam.list_sessions(&acme, Some(stranger)).await,
        Err(Error::NotFound(_))
    ));
    for selection in [SessionSelection::Session(session), SessionSelection::User(stranger)] {
        assert!(matches!(
            iam.revoke_sessions(&acme, selection).await,
            Err(Error::NotFound(_))
        ));
    }
    let users = iam.list_users(&acme, 0, "").await.unwrap();
    assert!(users.items.iter().all(|user| user.id != stranger));
    // Not the administrator of the installation either, except for tenants as such.
    let system = world.caller("system", "admin").await;
    assert!(matches!(iam.get_user(&system, stranger).await, Err(Error::NotFound(_))));

    // A forged tenant in a caller finds no session there.
    let forged = Caller {
        tenant: "acme".parse().unwrap(),
        ..other.clone()
    };
    assert!(matches!(iam.caller_view(&forged).await, Err(Error::SessionOver { .. })));
    // A failure in one tenant locks nobody in the other.
    for _ in 0..5 {
        world.password("acme", "ada", "wrong password!").await.unwrap_err();
    }
    world.login("other", "ada").await;
    assert!(world.outcomes("other").await.len() < 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_itself_keeps_tenants_apart() {
    let world = World::new().await;
    world.login("other", "ada").await;
    let mut tx = world.db.begin(&"acme".parse().unwrap()).await.unwrap();
    for table in [
        "tenants",
        "users",
        "sessions",
        "login_attempts",
        "challenges",
        "revocations",
        "outbox",
    ] {
        let sql = format!("SELECT count(*) FROM {table} WHERE tenant_id <> 'acme'");
        let foreign: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
            .fetch_one(&mut *tx)
            .await
            .unwrap();
        assert_eq!(foreign, 0, "{table} shows rows of another tenant");
    }
    let keys: i64 = sqlx::query_scalar("SELECT count(*) FROM signing_keys")
        .fetch_one(&mut *tx)
        .await
        .unwrap();
    assert_eq!(keys, 0, "signing keys belong to the tenant system");
    let written = sqlx::query("UPDATE users SET tenant_id = 'other' WHERE login = 'ada'")
        .execute(&mut *tx)
        .await;
    assert!(written.is_err(), "a row was moved to another tenant");
    // The tenant system reads tenants and revocations of all, and changes none.
    let mut tx = world.db.begin(&"system".parse().unwrap()).await.unwrap();
    let seen: i64 = sqlx::query_scalar("SELECT count(*) FROM tenants")
        .fetch_one(&mut *tx)
        .await
        .unwrap();
    assert_eq!(seen, 3);
    let changed = sqlx::query("UPDATE tenants SET disabled = true WHERE tenant_id = 'acme'")
        .execute(&mut *tx)
        .await
        .unwrap();
    assert_eq!(changed.rows_affected(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_installation_manages_tenants_and_nobody_else_does() {
    let world = World::new().await;
    let system = world.caller("system", "admin").await;
    let acme = world.caller("acme", "admin").await;
    let iam = &world.iam;
    let (id, boss) = ("third".parse().unwrap(), "boss".parse().unwrap());
    let password = || SecretText::new("eleven grey geese");
    for stranger in [&acme, &world.caller("system", "ada").await] {
        let refused = iam.create_tenant(stranger, &id, "", &boss, password()).await;
        assert!(matches!(refused, Err(Error::NotPermitted(_))));
        assert!(matches!(
            iam.list_tenants(stranger, 0, "").await,
            Err(Error::NotPermitted(_))
        ));
        let refused = iam.update_tenant(stranger, &"other".parse().unwrap(), Some(true)).await;
        assert!(matches!(refused, Err(Error::NotPermitted(_))));
        assert!(matches!(iam.rotate_key(stranger).await, Err(Error::NotPermitted(_))));
    }
    let tenant = iam
        .create_tenant(&system, &id, "Third Ltd", &boss, password())
        .await
        .unwrap();
    assert_eq!(tenant.display_name, "Third Ltd");
    let again = iam.create_tenant(&system, &id, "", &boss, password()).await;
    assert!(matches!(again, Err(Error::Exists(_))));
    let listed = iam.list_tenants(&system, 2, "").await.unwrap();
    assert_eq!(listed.items.len(), 2);
    let rest = iam.list_tenants(&system, 2, &listed.next_page_token).await.unwrap();
    assert_eq!(rest.items.last().unwrap().id.as_str(), "third");
    world.password("third", "boss", "eleven grey geese").await.unwrap();
    let records: Vec<AuditRecord> = world.published("third").await;
    assert_eq!(records[0].action, "tenant.created");
    assert_eq!(records[0].actor, Some(system.actor()));

    let disabled = iam
        .update_tenant(&system, &"acme".parse().unwrap(), Some(true))
        .await
        .unwrap();
    assert!(disabled.disabled);
    assert!(matches!(iam.caller_view(&acme).await, Err(Error::SessionOver { .. })));
    assert!(matches!(
        world.password("acme", "ada", PASSWORD).await,
        Err(Error::Credentials)
    ));
    iam.update_tenant(&system, &"acme".parse().unwrap(), Some(false))
        .await
        .unwrap();
    world.login("acme", "ada").await;
    let shut = iam.update_tenant(&system, &"system".parse().unwrap(), Some(true)).await;
    assert!(matches!(shut, Err(Error::LockOut(_))));
    let missing = iam
        .update_tenant(&system, &"nowhere".parse().unwrap(), Some(true))
        .await;
    assert!(matches!(missing, Err(Error::NotFound(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn services_see_all_revocations_and_people_their_own() {
    let world = World::new().await;
    for tenant in ["acme", "other"] {
        let caller = world.caller(tenant, "ada").await;
        world.iam.logout(&caller).await.unwrap();
    }
    let service = Caller {
        principal: Principal::Service { name: "anomaly".into() },
        ..Caller::anonymous(None)
    };
    assert_eq!(world.iam.list_revocations(&service).await.unwrap().len(), 2);
    let bob = world.caller("acme", "bob").await;
    let own = world.iam.list_revocations(&bob).await.unwrap();
    assert_eq!(own.len(), 1);
    assert_eq!(own[0].0.as_str(), "acme");
    assert!(matches!(world.iam.logout(&service).await, Err(Error::NotPermitted(_))));
    assert!(matches!(
        world.iam.caller_view(&service).await,
        Err(Error::NotPermitted(_))
    ));
}
