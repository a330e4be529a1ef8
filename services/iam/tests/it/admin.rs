use garrison_proto::audit::v1::{AuditRecord, Decision};
use iam::{
    app::{SessionSelection, UserChange},
    domain::{Role, SecretText},
    error::Error,
};

use crate::world::{PASSWORD, World};

#[tokio::test(flavor = "multi_thread")]
async fn people_are_added_changed_and_listed() {
    let world = World::new().await;
    let admin = world.caller("acme", "admin").await;
    let login = "Grace.H@example.org".parse().unwrap();
    let password = || SecretText::new("seven small stones");
    let user = world
        .iam
        .create_user(&admin, &login, "Grace", &[Role::Viewer], password())
        .await
        .unwrap();
    assert_eq!(user.login.as_str(), "grace.h@example.org");
    assert!(matches!(
        world.iam.create_user(&admin, &login, "", &[], password()).await,
        Err(Error::Exists(_))
    ));
    let weak = world
        .iam
        .create_user(&admin, &"x1".parse().unwrap(), "", &[], SecretText::new("password1234"))
        .await;
    assert!(matches!(weak, Err(Error::Password { .. })));
    assert_eq!(world.iam.get_user(&admin, user.id).await.unwrap(), user);

    // In pages, everybody once.
    let mut seen = Vec::new();
    let mut token = String::new();
    loop {
        let page = world.iam.list_users(&admin, 2, &token).await.unwrap();
        assert!(page.items.len() <= 2);
        seen.extend(page.items.into_iter().map(|user| user.login.to_string()));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(seen, ["admin", "root", "eva", "ada", "bob", "grace.h@example.org"]);
    assert!(matches!(
        world.iam.list_users(&admin, -1, "").await,
        Err(Error::Field { .. })
    ));
    assert!(matches!(
        world.iam.list_users(&admin, 0, "x").await,
        Err(Error::Field { .. })
    ));

    let records: Vec<AuditRecord> = world.published("acme").await;
    let created = records.iter().rfind(|record| record.action == "user.created").unwrap();
    assert_eq!(created.details["login"], "grace.h@example.org");
    assert_eq!(created.actor.as_ref().unwrap().roles, ["admin"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_narrowed_account_loses_its_sessions_and_a_widened_one_does_not() {
    let world = World::new().await;
    let admin = world.caller("acme", "admin").await;
    let ada = world.user_id("acme", "ada").await;
    let tokens = world.login("acme", "ada").await;
    let roles = |roles: &[Role]| UserChange {
        roles: Some(roles.to_vec()),
        disabled: None,
    };
    world
        .iam
        .update_user(&admin, ada, roles(&[Role::Analyst, Role::Responder]))
        .await
        .unwrap();
    let tokens = world.refresh(&tokens).await.unwrap();
    assert_eq!(world.verified(&tokens).roles, ["analyst", "responder"]);
    world
        .iam
        .update_user(&admin, ada, roles(&[Role::Responder]))
        .await
        .unwrap();
    assert!(matches!(world.refresh(&tokens).await, Err(Error::SessionOver { .. })));

    let tokens = world.login("acme", "ada").await;
    let disable = UserChange {
        disabled: Some(true),
        ..UserChange::default()
    };
    assert!(world.iam.update_user(&admin, ada, disable).await.unwrap().disabled);
    assert!(matches!(world.refresh(&tokens).await, Err(Error::SessionOver { .. })));
    assert!(matches!(
        world.iam.caller_view(&world.verified(&tokens)).await,
        Err(Error::SessionOver { .. })
    ));
    assert!(matches!(
        world.password("acme", "ada", PASSWORD).await,
        Err(Error::Credentials)
    ));
    let enable = UserChange {
        disabled: Some(false),
        ..UserChange::default()
    };
    world.iam.update_user(&admin, ada, enable).await.unwrap();
    world.login("acme", "ada").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_can_always_administer() {
    let world = World::new().await;
    let admin = world.caller("acme", "admin").await;
    let (own, root) = (admin.user().unwrap(), world.user_id("acme", "root").await);
    let disable = UserChange {
        disabled: Some(true),
        ..UserChange::default()
    };
    let demote = UserChange {
        roles: Some(vec![Role::Viewer]),
        ..UserChange::default()
    };
    assert!(matches!(
        world.iam.update_user(&admin, own, disable.clone()).await,
        Err(Error::LockOut(_))
    ));
    world.iam.update_user(&admin, root, disable.clone()).await.unwrap();
    assert!(matches!(
        world.iam.update_user(&admin, own, demote.clone()).await,
        Err(Error::LockOut(_))
    ));
    assert_eq!(world.iam.get_user(&admin, own).await.unwrap().roles, [Role::Admin]);

    // Two administrators who demote each other at the same moment do not both succeed.
    let enable = UserChange {
        disabled: Some(false),
        ..UserChange::default()
    };
    world.iam.update_user(&admin, root, enable).await.unwrap();
    let other = world.caller("acme", "root").await;
    let (a, b) = tokio::join!(
        world.iam.update_user(&admin, root, demote.clone()),
        world.iam.update_user(&other, own, demote)
    );
    assert_eq!([a.is_ok(), b.is_ok()].iter().filter(|ok| **ok).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_opens_a_locked_account_and_removes_the_authenticator() {
    let world = World::new().await;
    let admin = world.caller("acme", "admin").await;
    let eva = world.user_id("acme", "eva").await;
    let tokens = world.login("acme", "eva").await;
    for _ in 0..5 {
        world.password("acme", "eva", "wrong password!").await.unwrap_err();
    }
    assert!(matches!(
        world.password("acme", "eva", PASSWORD).await,
        Err(Error::Locked { .. })
    ));
    let new = "eleven grey geese";
    world
        .iam
        .reset_password(&admin, eva, SecretText::new(new), true)
        .await
        .unwrap();
    assert!(matches!(world.refresh(&tokens).await, Err(Error::SessionOver { .. })));
    assert!(matches!(
        world.password("acme", "eva", PASSWORD).await,
        Err(Error::Credentials)
    ));
    assert!(matches!(
        world.password("acme", "eva", new).await,
        Ok(iam::app::LoginStep::Done(_))
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_password_ends_the_other_sessions() {
    let world = World::new().await;
    let (here, there) = (world.login("acme", "ada").await, world.login("acme", "ada").await);
    let caller = world.verified(&here);
    let change = async |old: &str, new: &str| {
        world
            .iam
            .change_password(&caller, SecretText::new(old), SecretText::new(new))
            .await
    };
    assert!(matches!(
        change("wrong password!", "eleven grey geese").await,
        Err(Error::Credentials)
    ));
    assert!(matches!(change(PASSWORD, "short").await, Err(Error::Password { .. })));
    assert!(matches!(change(PASSWORD, PASSWORD).await, Err(Error::Field { .. })));
    change(PASSWORD, "eleven grey geese").await.unwrap();
    let records: Vec<AuditRecord> = world.published("acme").await;
    let decisions: Vec<_> = records
        .iter()
        .filter(|record| record.action == "user.password_changed")
        .map(AuditRecord::decision)
        .collect();
    assert_eq!(decisions, [Decision::Deny, Decision::Allow]);
    world.refresh(&here).await.unwrap();
    assert!(matches!(world.refresh(&there).await, Err(Error::SessionOver { .. })));
    assert!(matches!(
        world.password("acme", "ada", PASSWORD).await,
        Err(Error::Credentials)
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_ended_by_their_owner_or_an_administrator() {
    let world = World::new().await;
    let (ada, bob) = (world.caller("acme", "ada").await, world.caller("acme", "bob").await);
    let admin = world.caller("acme", "admin").await;
    let session = SessionSelection::Session(ada.session.unwrap());
    assert!(matches!(
        world.iam.revoke_sessions(&bob, session).await,
        Err(Error::NotFound(_))
    ));
    assert!(matches!(
        world.iam.list_sessions(&bob, ada.user()).await,
        Err(Error::NotPermitted(_))
    ));
    assert_eq!(world.iam.list_sessions(&admin, ada.user()).await.unwrap().len(), 1);
    assert_eq!(world.iam.revoke_sessions(&ada, session).await.unwrap(), 1);
    assert_eq!(world.iam.revoke_sessions(&admin, session).await.unwrap(), 0);
    let all = SessionSelection::User(bob.user().unwrap());
    world.login("acme", "bob").await;
    assert_eq!(world.iam.revoke_sessions(&admin, all).await.unwrap(), 2);
    assert_eq!(world.revocations("acme").await.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn refreshes_and_administration_at_the_same_moment_do_not_block_each_other() {
    let world = World::new().await;
    let admin = world.caller("acme", "admin").await;
    let ada = world.user_id("acme", "ada").await;
    for round in 0..20 {
        let mut sessions = Vec::new();
        for _ in 0..3 {
            sessions.push(world.login("acme", "ada").await);
        }
        let password = SecretText::new(PASSWORD);
        let (refreshed, reset, revoked) = tokio::join!(
            futures::future::join_all(sessions.iter().map(|tokens| world.refresh(tokens))),
            world.iam.reset_password(&admin, ada, password, false),
            world.iam.revoke_sessions(&admin, SessionSelection::User(ada)),
        );
        reset.unwrap();
        revoked.unwrap();
        for result in refreshed {
            assert!(
                matches!(result, Ok(_) | Err(Error::SessionOver { .. })),
                "round {round}: {result:?}"
            );
        }
        let left = world.iam.list_sessions(&admin, Some(ada)).await.unwrap();
        assert!(left.is_empty(), "round {round}: a session outlived the reset");
    }
}
