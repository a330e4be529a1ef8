//! `iam.v1`: people, sessions, factors, tenants, keys. Both tenants have people of the same names.

use garrison_proto::iam::v1::{
    ChangePasswordRequest, ConfirmTotpRequest, CreateTenantRequest, CreateUserRequest, EnrollTotpRequest,
    GetCallerRequest, GetKeySetRequest, GetUserRequest, ListRevocationsRequest, ListRolesRequest, ListSessionsRequest,
    ListTenantsRequest, ListUsersRequest, LogoutRequest, RefreshTokenRequest, ResetPasswordRequest,
    RevokeSessionRequest, RotateKeyRequest, UpdateTenantRequest, UpdateUserRequest,
    authentication_service_client::AuthenticationServiceClient,
};
use tonic::Code;

use super::cases;
use crate::{
    calls::{Desk, Step, code, first_step, forbidden, gone, second_step},
    seed::Side,
    world::{ACME, GLOBEX, World},
};

cases! {
    "iam.v1.AuthenticationService/Login" => |world| {
        // globex's password opens nothing in acme, although the login is the same.
        let outcome = first_step(&world.doors, ACME, "temp", &password(world, GLOBEX, "temp")).await;
        assert_eq!(outcome.unwrap_err().code(), Code::Unauthenticated);
        let own = first_step(&world.doors, GLOBEX, "temp", &password(world, GLOBEX, "temp")).await.unwrap();
        let Step::In(tokens) = own else { panic!("temp has no second factor") };
        assert_eq!(tenant_of(&Desk::new(&world.doors, &tokens.access_token, "")).await, "tenants/globex");
    };
    "iam.v1.AuthenticationService/VerifyFactor" => |world| {
        // A challenge of acme's is not met by a code of globex's.
        let step = first_step(&world.doors, ACME, "auditor", &password(world, ACME, "auditor")).await.unwrap();
        let Step::Challenge(challenge) = step else { panic!("auditor has a second factor") };
        let foreign = code(&world.fleet.written().secrets.totp("globex-auditor").unwrap());
        let outcome = second_step(&world.doors, &challenge, &foreign).await;
        assert_eq!(outcome.unwrap_err().code(), Code::Unauthenticated);
    };
    "iam.v1.AuthenticationService/RefreshToken" => |world| {
        // Tokens stay in their tenant, whoever's access token comes along.
        let desk = world.log_in(GLOBEX, "temp").await;
        let request = RefreshTokenRequest { refresh_token: desk.refresh.clone() };
        let next = world.acme.admin.authentication.clone().refresh_token(request).await.unwrap().into_inner();
        let next = next.tokens.unwrap();
        assert_eq!(tenant_of(&Desk::new(&world.doors, &next.access_token, "")).await, "tenants/globex");
        for forged in ["", "x", world.acme.session.as_str(), &world.acme.session.replace("sessions/", "")] {
            let request = RefreshTokenRequest { refresh_token: forged.to_owned() };
            let outcome = world.globex.admin.authentication.clone().refresh_token(request).await;
            assert_eq!(outcome.unwrap_err().code(), Code::Unauthenticated, "{forged:?}");
        }
    };
    "iam.v1.AuthenticationService/Logout" => |world| {
        let mut desk = world.log_in(GLOBEX, "temp").await;
        desk.authentication.logout(LogoutRequest {}).await.unwrap();
        assert_eq!(tenant_of(&world.acme.admin).await, "tenants/acme");
        assert!(sessions(&world.acme).await.contains(&world.acme.session));
    };
    "iam.v1.AuthenticationService/GetCaller" => |world| {
        assert_eq!(tenant_of(&world.acme.admin).await, "tenants/acme");
        assert_eq!(tenant_of(&world.globex.admin).await, "tenants/globex");
    };
    "iam.v1.AuthenticationService/GetKeySet" => |world| {
        // Public keys, the same for everybody, and nothing private in them.
        let mut nobody = AuthenticationServiceClient::new(world.doors.channel("iam"));
        let open = nobody.get_key_set(GetKeySetRequest {}).await.unwrap().into_inner().jwks_json;
        let own = world.globex.admin.authentication.clone().get_key_set(GetKeySetRequest {}).await.unwrap();
        assert_eq!(own.into_inner().jwks_json, open);
        let set: serde_json::Value = serde_json::from_str(&open).unwrap();
        let keys = set["keys"].as_array().unwrap();
        assert!(!keys.is_empty() && keys.iter().all(|key| key.get("d").is_none()), "{open}");
    };
    "iam.v1.AuthenticationService/ListRevocations" => |world| {
        forbidden(world.globex.admin.authentication.clone().list_revocations(ListRevocationsRequest {}).await);
    };
    "iam.v1.AuthenticationService/EnrollTotp" => |world| {
        let mut desk = world.log_in(GLOBEX, "reader").await;
        let answer = desk.authentication.enroll_totp(EnrollTotpRequest {}).await.unwrap().into_inner();
        assert!(answer.uri.contains("globex"), "the authenticator is not told the tenant: {}", answer.uri);
        assert!(!user(&world.acme, "reader").await.totp_enrolled);
    };
    "iam.v1.AuthenticationService/ConfirmTotp" => |world| {
        let mut desk = world.log_in(GLOBEX, "reader").await;
        let wrong = desk.authentication.confirm_totp(ConfirmTotpRequest { code: "000000".to_owned() }).await;
        assert!(wrong.is_err());
        assert!(!user(&world.acme, "reader").await.totp_enrolled);
    };
    "iam.v1.AuthenticationService/ChangePassword" => |world| {
        let (old, new) = (password(world, GLOBEX, "temp"), "sixteen quiet otters".to_owned());
        let mut desk = world.log_in(GLOBEX, "temp").await;
        let change = ChangePasswordRequest { old_password: old.clone(), new_password: new.clone() };
        desk.authentication.change_password(change).await.unwrap();
        assert!(first_step(&world.doors, ACME, "temp", &new).await.is_err());
        first_step(&world.doors, ACME, "temp", &password(world, ACME, "temp")).await.unwrap();
        // Back again for whoever comes after; by the administrator, as the old one may not return by itself.
        let back = ResetPasswordRequest { name: world.globex.user.clone(), password: old, reset_totp: false };
        world.globex.admin.users.clone().reset_password(back).await.unwrap();
    };
    "iam.v1.UserService/CreateUser" => |world| {
        let request = CreateUserRequest {
            login: "fresh".to_owned(),
            display_name: "Fresh".to_owned(),
            roles: vec!["viewer".to_owned()],
            password: "nineteen green herons".to_owned(),
        };
        let made = world.globex.admin.users.clone().create_user(request).await.unwrap().into_inner().user.unwrap();
        gone(world.acme.admin.users.clone().get_user(GetUserRequest { name: made.name }).await);
        assert!(logins(&world.acme).await.iter().all(|login| login != "fresh"));
        assert!(first_step(&world.doors, ACME, "fresh", "nineteen green herons").await.is_err());
    };
    "iam.v1.UserService/GetUser" => |world| {
        let request = GetUserRequest { name: world.acme.user.clone() };
        gone(world.globex.admin.users.clone().get_user(request).await);
    };
    "iam.v1.UserService/ListUsers" => |world| {
        let answer = world.globex.admin.users.clone().list_users(ListUsersRequest::default()).await.unwrap();
        let names: Vec<_> = answer.into_inner().users.into_iter().map(|user| user.name).collect();
        assert!(names.contains(&world.globex.user) && !names.contains(&world.acme.user), "{names:?}");
    };
    "iam.v1.UserService/UpdateUser" => |world| {
        let request = UpdateUserRequest {
            name: world.acme.user.clone(),
            roles: vec!["admin".to_owned()],
            set_roles: true,
            disabled: Some(true),
        };
        gone(world.globex.admin.users.clone().update_user(request).await);
        let kept = user(&world.acme, "temp").await;
        assert!(!kept.disabled && kept.roles == ["viewer"], "{kept:?}");
    };
    "iam.v1.UserService/ResetPassword" => |world| {
        let request = ResetPasswordRequest {
            name: world.acme.user.clone(),
            password: "eleven loud badgers".to_owned(),
            reset_totp: true,
        };
        gone(world.globex.admin.users.clone().reset_password(request).await);
        first_step(&world.doors, ACME, "temp", &password(world, ACME, "temp")).await.unwrap();
    };
    "iam.v1.UserService/ListRoles" => |world| {
        // The same for every tenant, and nobody's in particular.
        let acme = world.acme.admin.users.clone().list_roles(ListRolesRequest {}).await.unwrap().into_inner();
        let globex = world.globex.admin.users.clone().list_roles(ListRolesRequest {}).await.unwrap().into_inner();
        assert_eq!(acme, globex);
    };
    "iam.v1.SessionService/ListSessions" => |world| {
        let request = ListSessionsRequest { user: world.acme.user.clone() };
        gone(world.globex.admin.sessions.clone().list_sessions(request).await);
    };
    "iam.v1.SessionService/RevokeSession" => |world| {
        let one = RevokeSessionRequest { name: world.acme.session.clone(), user: String::new() };
        gone(world.globex.admin.sessions.clone().revoke_session(one).await);
        let all = RevokeSessionRequest { name: String::new(), user: world.acme.user.clone() };
        gone(world.globex.admin.sessions.clone().revoke_session(all).await);
        assert!(sessions(&world.acme).await.contains(&world.acme.session));
    };
    "iam.v1.TenantService/CreateTenant" => |world| {
        let request = CreateTenantRequest {
            tenant_id: "initech".to_owned(),
            display_name: "Initech".to_owned(),
            admin_login: "boss".to_owned(),
            admin_password: "seventeen tidy walruses".to_owned(),
        };
        forbidden(world.globex.admin.tenants.clone().create_tenant(request).await);
    };
    "iam.v1.TenantService/ListTenants" => |world| {
        forbidden(world.globex.admin.tenants.clone().list_tenants(ListTenantsRequest::default()).await);
        let all = world.operator.tenants.clone().list_tenants(ListTenantsRequest::default()).await.unwrap();
        let names: Vec<_> = all.into_inner().tenants.into_iter().map(|tenant| tenant.name).collect();
        assert!(names.contains(&"tenants/acme".to_owned()) && !names.contains(&"tenants/initech".to_owned()));
    };
    "iam.v1.TenantService/UpdateTenant" => |world| {
        for name in ["tenants/acme", "tenants/globex"] {
            let request = UpdateTenantRequest { name: name.to_owned(), disabled: Some(true) };
            forbidden(world.globex.admin.tenants.clone().update_tenant(request).await);
        }
    };
    "iam.v1.KeyService/RotateKey" => |world| {
        forbidden(world.globex.admin.keys.clone().rotate_key(RotateKeyRequest {}).await);
    };
}

fn password(world: &World, tenant: &str, login: &str) -> String {
    let file = world
        .fleet
        .written()
        .secrets
        .password(&format!("{tenant}-{login}"))
        .unwrap();
    std::fs::read_to_string(file).unwrap()
}

async fn tenant_of(desk: &Desk) -> String {
    let answer = desk
        .authentication
        .clone()
        .get_caller(GetCallerRequest {})
        .await
        .unwrap();
    answer.into_inner().tenant
}

async fn user(side: &Side, login: &str) -> garrison_proto::iam::v1::User {
    let answer = side
        .admin
        .users
        .clone()
        .list_users(ListUsersRequest::default())
        .await
        .unwrap();
    answer
        .into_inner()
        .users
        .into_iter()
        .find(|user| user.login == login)
        .unwrap()
}

async fn logins(side: &Side) -> Vec<String> {
    let answer = side
        .admin
        .users
        .clone()
        .list_users(ListUsersRequest::default())
        .await
        .unwrap();
    answer.into_inner().users.into_iter().map(|user| user.login).collect()
}

async fn sessions(side: &Side) -> Vec<String> {
    let request = ListSessionsRequest {
        user: side.user.clone(),
    };
    let answer = side.admin.sessions.clone().list_sessions(request).await.unwrap();
    answer
        .into_inner()
        .sessions
        .into_iter()
        .map(|session| session.name)
        .collect()
}
