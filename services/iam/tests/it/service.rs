use std::time::{Duration, Instant};

use futures::StreamExt as _;
use garrison_auth::JwkSet;
use garrison_bus::Bus;
use garrison_proto::{
    event::v1::SessionRevoked,
    iam::v1::{
        CreateTenantRequest, CreateUserRequest, GetCallerRequest, GetKeySetRequest, GetUserRequest,
        ListRevocationsRequest, ListRolesRequest, ListSessionsRequest, ListTenantsRequest, ListUsersRequest,
        LoginRequest, LogoutRequest, RefreshTokenRequest, ResetPasswordRequest, RevokeSessionRequest, RotateKeyRequest,
        UpdateUserRequest, authentication_service_client::AuthenticationServiceClient,
    },
};
use garrison_testkit::Stack;
use tonic::{Code, Request};
use tonic_types::StatusExt as _;

use crate::process::{PASSWORD, Program, code_of};

#[tokio::test(flavor = "multi_thread")]
async fn a_person_logs_in_with_two_factors_and_out_again() {
    let program = Program::start().await;
    let wrong = program.password("acme", "eva", "wrong password!").await;
    assert_eq!(code_of(wrong), "GAR-IAM-0001");
    let answer = program.password("tenants/acme", "EVA", PASSWORD).await.unwrap();
    assert!(answer.tokens.is_none());
    assert_eq!(answer.factors.len(), 2);
    let tokens = program.prove(&answer.challenge, &program.code(0)).await.unwrap();
    let mut eva = program.as_person(&tokens);
    let who = eva
        .authentication
        .get_caller(GetCallerRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!((who.tenant.as_str(), who.second_factor), ("tenants/acme", true));
    let user = who.user.unwrap();
    assert_eq!((user.login.as_str(), user.totp_enrolled), ("eva", true));

    // An analyst administers nobody.
    let refused = eva.users.list_users(ListUsersRequest::default()).await;
    assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);
    let refused = eva.keys.rotate_key(RotateKeyRequest {}).await;
    assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);

    let refresh = RefreshTokenRequest {
        refresh_token: tokens.refresh_token.clone(),
    };
    let next = program
        .anonymous()
        .refresh_token(refresh.clone())
        .await
        .unwrap()
        .into_inner()
        .tokens
        .unwrap();
    assert_eq!(
        code_of(program.anonymous().refresh_token(refresh).await),
        "GAR-IAM-0006"
    );
    // The reuse ended the session, for its newest token too.
    let refused = program
        .as_person(&next)
        .authentication
        .get_caller(GetCallerRequest {})
        .await;
    assert_eq!(code_of(refused), "GAR-AUTH-0004");

    let mut ada = program.as_person(&program.login("acme", "ada").await);
    ada.authentication.logout(LogoutRequest {}).await.unwrap();
    assert_eq!(
        code_of(ada.authentication.get_caller(GetCallerRequest {}).await),
        "GAR-AUTH-0004"
    );
    assert_eq!(
        code_of(program.anonymous().logout(LogoutRequest {}).await),
        "GAR-AUTH-0001"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_is_on_the_bus_and_in_the_list() {
    let program = Program::start().await;
    let stack = Stack::shared().await;
    let bus = Bus::connect(&stack.bus_config("svc/anomaly"), "anomaly").await.unwrap();
    let mut news = Box::pin(bus.subscribe_core("events.v1.*.revocation").await.unwrap());
    // The broker works off a connection in order: once it has answered this, it has the subscription.
    let asked = "$JS.API.CONSUMER.INFO.FLOWS.anomaly";
    bus.client().request(asked, "".into()).await.unwrap();
    let victim = program.login("other", "ada").await;
    let mut ada = program.as_person(&victim);
    let sessions = ada
        .sessions
        .list_sessions(ListSessionsRequest::default())
        .await
        .unwrap()
        .into_inner()
        .sessions;
    assert_eq!(sessions.len(), 1);
    assert!(sessions[0].client_address.starts_with("127."));
    let mut admin = program.as_person(&program.login("other", "admin").await);

    let asked = Instant::now();
    let request = RevokeSessionRequest {
        name: sessions[0].name.clone(),
        user: String::new(),
    };
    assert_eq!(
        admin
            .sessions
            .revoke_session(request)
            .await
            .unwrap()
            .into_inner()
            .revoked,
        1
    );
    // Other tests revoke too; this one waits for its own.
    let event = loop {
        let delivery = tokio::time::timeout(Duration::from_secs(60), news.next())
            .await
            .expect("no event")
            .unwrap();
        let event = delivery.decode::<SessionRevoked>().unwrap();
        if event.session == sessions[0].name {
            assert_eq!((delivery.tenant.as_str(), delivery.source.as_str()), ("other", "iam"));
            break event;
        }
    };
    let took = asked.elapsed();
    assert!(
        event.until.unwrap().seconds > event.time.unwrap().seconds + 200,
        "{event:?}"
    );
    assert_eq!(
        code_of(ada.authentication.get_caller(GetCallerRequest {}).await),
        "GAR-AUTH-0004"
    );

    let mut service = AuthenticationServiceClient::new(program.channel_of("anomaly"));
    let listed = service
        .list_revocations(ListRevocationsRequest {})
        .await
        .unwrap()
        .into_inner()
        .revocations;
    assert!(
        listed
            .iter()
            .any(|entry| entry.session == sessions[0].name && entry.tenant == "tenants/other")
    );
    // For information: how long it takes depends on the machine.
    println!("revocation on the bus after {took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rotation_keeps_old_tokens_valid() {
    let program = Program::start().await;
    let before = program.login("acme", "ada").await;
    let mut root = program.as_person(&program.login("system", "admin").await);
    let keys = async || {
        let answer = program
            .anonymous()
            .get_key_set(GetKeySetRequest {})
            .await
            .unwrap()
            .into_inner();
        JwkSet::from_json(&answer.jwks_json).unwrap().keys
    };
    assert_eq!(keys().await.len(), 1);
    let new = root
        .keys
        .rotate_key(RotateKeyRequest {})
        .await
        .unwrap()
        .into_inner()
        .key_id;
    assert_eq!(keys().await.len(), 2);
    assert!(keys().await.iter().any(|key| key.id == new));
    let after = program.login("acme", "ada").await;
    assert_ne!(header(&before.access_token), header(&after.access_token));
    for tokens in [&before, &after] {
        let mut ada = program.as_person(tokens);
        ada.authentication.get_caller(GetCallerRequest {}).await.unwrap();
    }
    // Rotating without end would leave verifiers with more keys than they read.
    let mut last = None;
    for _ in 0..20 {
        last = Some(root.keys.rotate_key(RotateKeyRequest {}).await);
    }
    assert_eq!(code_of(last.unwrap()), "GAR-IAM-0014");
    program
        .as_person(&before)
        .authentication
        .get_caller(GetCallerRequest {})
        .await
        .unwrap();
}

fn header(token: &str) -> &str {
    token.split('.').next().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_method_lets_one_tenant_reach_into_another() {
    let program = Program::start().await;
    let other = program.login("other", "ada").await;
    let who = program
        .as_person(&other)
        .authentication
        .get_caller(GetCallerRequest {})
        .await
        .unwrap()
        .into_inner();
    let (user, session) = (who.user.unwrap().name, who.session);
    let tokens = program.login("acme", "admin").await;
    let mut acme = program.as_person(&tokens);

    let missing = acme.users.get_user(GetUserRequest { name: user.clone() }).await;
    assert_eq!(missing.unwrap_err().code(), Code::NotFound);
    let update = UpdateUserRequest {
        name: user.clone(),
        disabled: Some(true),
        ..UpdateUserRequest::default()
    };
    assert_eq!(acme.users.update_user(update).await.unwrap_err().code(), Code::NotFound);
    let reset = ResetPasswordRequest {
        name: user.clone(),
        password: "eleven grey geese".into(),
        reset_totp: true,
    };
    assert_eq!(
        acme.users.reset_password(reset).await.unwrap_err().code(),
        Code::NotFound
    );
    let revoke = RevokeSessionRequest {
        name: session,
        user: String::new(),
    };
    assert_eq!(
        acme.sessions.revoke_session(revoke).await.unwrap_err().code(),
        Code::NotFound
    );
    let list = ListSessionsRequest { user: user.clone() };
    assert_eq!(
        acme.sessions.list_sessions(list).await.unwrap_err().code(),
        Code::NotFound
    );
    let people = acme
        .users
        .list_users(ListUsersRequest::default())
        .await
        .unwrap()
        .into_inner()
        .users;
    assert!(people.iter().all(|person| person.name != user));
    assert_eq!(people.len(), 3);
    let create = CreateTenantRequest {
        tenant_id: "mine".into(),
        admin_login: "me".into(),
        admin_password: PASSWORD.into(),
        ..CreateTenantRequest::default()
    };
    assert_eq!(
        acme.tenants.create_tenant(create).await.unwrap_err().code(),
        Code::PermissionDenied
    );
    let list = ListTenantsRequest::default();
    assert_eq!(
        acme.tenants.list_tenants(list).await.unwrap_err().code(),
        Code::PermissionDenied
    );
    // Asking for another tenant with one's own token.
    let mut request = Request::new(ListUsersRequest::default());
    request
        .metadata_mut()
        .insert("garrison-tenant", "other".parse().unwrap());
    assert_eq!(
        acme.users.list_users(request).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    // Nothing of it happened.
    program
        .as_person(&other)
        .authentication
        .get_caller(GetCallerRequest {})
        .await
        .unwrap();
    // A login of one tenant is none in the other.
    let request = CreateUserRequest {
        login: "only-acme".into(),
        roles: vec!["viewer".into()],
        password: "eleven grey geese".into(),
        ..CreateUserRequest::default()
    };
    acme.users.create_user(request).await.unwrap();
    program
        .password("acme", "only-acme", "eleven grey geese")
        .await
        .unwrap();
    let refused = program.password("other", "only-acme", "eleven grey geese").await;
    assert_eq!(code_of(refused), "GAR-IAM-0001");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_name_the_field_and_strangers_get_nothing() {
    let program = Program::start().await;
    let status = program.password("Not A Tenant", "ada", PASSWORD).await.unwrap_err();
    let details = status.get_error_details();
    assert_eq!(details.error_info().unwrap().reason, "GAR-IAM-0008");
    assert_eq!(details.bad_request().unwrap().field_violations[0].field, "tenant");

    let mut admin = program.as_person(&program.login("acme", "admin").await);
    let create = |login: &str, role: &str, password: &str| CreateUserRequest {
        login: login.into(),
        roles: vec![role.into()],
        password: password.into(),
        ..CreateUserRequest::default()
    };
    for (request, field) in [
        (create("a b", "viewer", "eleven grey geese"), "login"),
        (create("x1", "root", "eleven grey geese"), "roles"),
        (create("x1", "viewer", "eleven"), "password"),
    ] {
        let status = admin.users.create_user(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(
            status.get_details_bad_request().unwrap().field_violations[0].field,
            field
        );
    }
    let status = admin
        .users
        .get_user(GetUserRequest {
            name: "sessions/1".into(),
        })
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let both = RevokeSessionRequest {
        name: "sessions/00000000-0000-0000-0000-000000000000".into(),
        user: "users/00000000-0000-0000-0000-000000000000".into(),
    };
    assert_eq!(
        admin.sessions.revoke_session(both).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    let roles = admin
        .users
        .list_roles(ListRolesRequest {})
        .await
        .unwrap()
        .into_inner()
        .roles;
    assert_eq!(roles.len(), 6);

    // Without an authenticator nobody administers.
    let mut ada = program.as_person(&program.login("system", "ada").await);
    let refused = ada.tenants.list_tenants(ListTenantsRequest::default()).await;
    assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(
        code_of(program.anonymous().list_revocations(ListRevocationsRequest {}).await),
        "GAR-AUTH-0001"
    );
    let mut forged = program.login("acme", "ada").await;
    let at = forged.access_token.len() / 2;
    let swapped = if forged.access_token.as_bytes()[at] == b'A' {
        "B"
    } else {
        "A"
    };
    forged.access_token.replace_range(at..=at, swapped);
    let refused = program
        .as_person(&forged)
        .authentication
        .get_caller(GetCallerRequest {})
        .await;
    assert_eq!(refused.unwrap_err().code(), Code::Unauthenticated);
}

/// Memory of a process that is its own and not a file's, KiB.
fn own_memory(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_logins_takes_no_more_memory_than_the_configuration_says() {
    let program = Program::start().await;
    let before = own_memory(program.process.id());
    // One connection, so that what grows is hashing and not TLS; and as many as an address may make in a minute.
    let client = program.anonymous();
    let storm = (0..60).map(|number| {
        let mut client = client.clone();
        async move {
            let request = LoginRequest {
                tenant: "acme".into(),
                login: format!("nobody{number}"),
                password: "some long password".into(),
            };
            client.login(request).await
        }
    });
    let results = futures::future::join_all(storm).await;
    let judged = results
        .into_iter()
        .filter(|result| matches!(result, Err(status) if status.code() == Code::Unauthenticated))
        .count();
    assert_eq!(judged, 60);
    let after = own_memory(program.process.id());
    println!("memory: {before} KiB before, {after} KiB after 60 logins at once");
    // Two hashes of 19 MiB at a time by default, and something for sixty requests.
    let allowed = 2 * 19 * 1024 + 16 * 1024;
    assert!(after < before + allowed, "{before} KiB before, {after} KiB after");
}
