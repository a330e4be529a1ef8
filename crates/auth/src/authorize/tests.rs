use std::collections::BTreeSet;

use garrison_proto::TenantId;
use prost::Message;
use prost_types::FileDescriptorSet;
use uuid::Uuid;

use super::*;

/// Methods outside `proto/` that every server has.
const STANDARD: [&str; 5] = [
    "grpc.health.v1.Health/Check",
    "grpc.health.v1.Health/List",
    "grpc.health.v1.Health/Watch",
    "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];
const ROLES: [&str; 6] = ["viewer", "analyst", "responder", "policy-author", "auditor", "admin"];
const SERVICES: [&str; 8] = [
    "flow-ingest",
    "anomaly",
    "policy",
    "responder",
    "forensics",
    "compliance",
    "iam",
    "console",
];

fn contracts() -> BTreeSet<String> {
    let files = FileDescriptorSet::decode(garrison_proto::FILE_DESCRIPTOR_SET).unwrap();
    let mut methods = BTreeSet::new();
    for file in &files.file {
        for service in &file.service {
            for method in &service.method {
                methods.insert(format!("{}.{}/{}", file.package(), service.name(), method.name()));
            }
        }
    }
    assert!(methods.len() > 50, "the contracts were not read");
    methods
}

fn person(tenant: &str, roles: &[&str], second_factor: bool) -> Caller {
    Caller {
        tenant: tenant.parse().unwrap(),
        principal: Principal::User {
            id: Uuid::now_v7(),
            login: "eva".into(),
        },
        roles: roles.iter().map(ToString::to_string).collect(),
        session: Some(Uuid::now_v7()),
        second_factor,
        address: None,
    }
}

fn service(name: &str) -> Caller {
    Caller {
        tenant: "acme".parse().unwrap(),
        principal: Principal::Service { name: name.into() },
        ..Caller::anonymous(None)
    }
}

fn enforcer() -> Caller {
    Caller {
        principal: Principal::Enforcer { node: "router".into() },
        ..Caller::anonymous(None)
    }
}

fn full(method: &str) -> String {
    if method.starts_with("grpc.") {
        method.to_owned()
    } else {
        format!("garrison.{method}")
    }
}

/// Everybody there can be, with a name for messages.
fn everybody() -> Vec<(String, Caller)> {
    let mut all = vec![
        ("anonymous".to_owned(), Caller::anonymous(None)),
        ("enforcer".to_owned(), enforcer()),
    ];
    for name in SERVICES {
        all.push((format!("service {name}"), service(name)));
    }
    for tenant in ["acme", TenantId::SYSTEM] {
        for factor in [false, true] {
            all.push((
                format!("{tenant} without roles, factor {factor}"),
                person(tenant, &[], factor),
            ));
            for role in ROLES {
                all.push((
                    format!("{tenant} {role}, factor {factor}"),
                    person(tenant, &[role], factor),
                ));
            }
        }
    }
    all
}

fn allowed(method: &str) -> Vec<String> {
    let authorizer = Authorizer::shared();
    everybody()
        .into_iter()
        .filter(|(_, caller)| authorizer.decide(caller, &full(method)) == Verdict::Allow)
        .map(|(name, _)| name)
        .collect()
}

#[test]
fn every_method_has_a_rule_and_every_rule_a_method() {
    let mut methods = contracts();
    methods.extend(STANDARD.map(str::to_owned));
    let ruled: BTreeSet<String> = Authorizer::shared().methods().map(str::to_owned).collect();
    let without: Vec<_> = methods.difference(&ruled).collect();
    assert!(
        without.is_empty(),
        "methods without an action in schema.cedarschema: {without:#?}"
    );
    let stale: Vec<_> = ruled.difference(&methods).collect();
    assert!(
        stale.is_empty(),
        "actions in schema.cedarschema that name no method: {stale:#?}"
    );
    for method in &methods {
        let someone = !allowed(method.trim_start_matches("garrison.")).is_empty();
        assert!(someone, "no policy admits anybody to {method}");
    }
}

#[test]
fn a_schema_without_an_effect_or_a_policy_that_does_not_fit_is_refused() {
    let neither = SCHEMA.replacen("in [\"reads\", \"enforce\"]", "in [\"enforce\"]", 1);
    assert!(
        Authorizer::load(&neither, POLICY)
            .unwrap_err()
            .to_string()
            .contains("reads and mutates")
    );
    let unknown = format!("{POLICY}\npermit (principal is User, action == Action::\"a/b\", resource);");
    assert!(Authorizer::load(SCHEMA, &unknown).is_err());
    let untyped = format!("{POLICY}\npermit (principal is User, action, resource) when {{ principal.age > 3 }};");
    assert!(Authorizer::load(SCHEMA, &untyped).is_err());
}

/// What changes something is told by its verb; what does not fit is listed with the reason.
#[test]
fn methods_that_change_something_are_recorded() {
    let authorizer = Authorizer::shared();
    let reading = [
        "Get", "List", "Lookup", "Stream", "Fetch", "Search", "Check", "Compile", "Explain", "Export",
    ];
    for method in contracts() {
        let verb = method.rsplit('/').next().unwrap();
        let reads = reading.iter().any(|prefix| verb.starts_with(prefix))
            // Only when a node was last seen.
            || verb == "Heartbeat"
            // iam records these itself, behind its rate limit: strangers call them without end.
            || ["Login", "VerifyFactor", "RefreshToken"].contains(&verb);
        let expected = if reads { Effect::Reads } else { Effect::Mutates };
        assert_eq!(authorizer.effect(&method), Some(expected), "{method}");
    }
    assert_eq!(authorizer.effect("garrison.iam.v1.UserService/Nothing"), None);
}

/// The table of who may do what is dangerous: (method, roles that may with a second factor, and without).
#[test]
fn sensitive_methods_admit_exactly_these_roles() {
    let table: &[(&str, &[&str], &[&str])] = &[
        ("flow.v1.FlowService/StreamFlows", &ROLES, &ROLES),
        (
            "flow.v1.FlowService/FetchPacketSlice",
            &["analyst", "responder", "admin"],
            &[],
        ),
        (
            "forensics.v1.FlowSearchService/SearchFlows",
            &["analyst", "responder", "policy-author", "admin"],
            &["analyst", "responder", "policy-author", "admin"],
        ),
        (
            "response.v1.ResponseService/CreateResponse",
            &["analyst", "responder", "admin"],
            &[],
        ),
        (
            "response.v1.ResponseService/ApproveResponse",
            &["analyst", "responder", "admin"],
            &[],
        ),
        (
            "response.v1.ResponseService/RejectResponse",
            &["analyst", "responder", "admin"],
            &[],
        ),
        (
            "response.v1.ResponseService/RollbackResponse",
            &["analyst", "responder", "admin"],
            &[],
        ),
        (
            "response.v1.IncidentService/CloseIncident",
            &["analyst", "responder", "admin"],
            &["analyst", "responder", "admin"],
        ),
        (
            "response.v1.PlaybookService/ApplyPlaybook",
            &["responder", "admin"],
            &[],
        ),
        (
            "response.v1.PlaybookService/AddProtectedHost",
            &["responder", "admin"],
            &[],
        ),
        (
            "response.v1.PlaybookService/RemoveProtectedHost",
            &["responder", "admin"],
            &[],
        ),
        ("policy.v1.PolicyService/ApplyPolicy", &["policy-author", "admin"], &[]),
        ("policy.v1.PolicyService/DeletePolicy", &["policy-author", "admin"], &[]),
        (
            "policy.v1.PolicyService/ApprovePolicy",
            &["policy-author", "admin"],
            &[],
        ),
        ("policy.v1.PolicyService/RejectPolicy", &["policy-author", "admin"], &[]),
        ("policy.v1.PolicyService/GetPolicy", &ROLES, &ROLES),
        ("alert.v1.DetectionService/StartLearning", &["analyst", "admin"], &[]),
        ("alert.v1.DetectionService/FinishLearning", &["analyst", "admin"], &[]),
        ("alert.v1.BudgetService/SetAlarmBudget", &["analyst", "admin"], &[]),
        ("alert.v1.BudgetService/GetAlarmBudget", &ROLES, &ROLES),
        ("alert.v1.BudgetService/ListHeldAlerts", &ROLES, &ROLES),
        ("alert.v1.RiskService/ListEntityRisks", &ROLES, &ROLES),
        (
            "alert.v1.BudgetService/ReleaseHeldAlert",
            &["analyst", "responder", "admin"],
            &["analyst", "responder", "admin"],
        ),
        ("alert.v1.ModelService/UpdateModel", &["analyst", "admin"], &[]),
        ("alert.v1.ModelService/PromoteModel", &["analyst", "admin"], &[]),
        ("alert.v1.ModelService/RollBackModel", &["analyst", "admin"], &[]),
        ("alert.v1.ModelService/ListModelVersions", &ROLES, &ROLES),
        (
            "forensics.v1.EvidenceService/CreateBundle",
            &["analyst", "responder", "admin"],
            &["analyst", "responder", "admin"],
        ),
        (
            "forensics.v1.EvidenceService/DownloadBundle",
            &["analyst", "responder", "auditor", "admin"],
            &[],
        ),
        (
            "compliance.v1.TransparencyLogService/ExportLog",
            &["auditor", "admin"],
            &["auditor", "admin"],
        ),
        (
            "compliance.v1.ReportService/CreateReport",
            &["auditor", "admin"],
            &["auditor", "admin"],
        ),
        ("iam.v1.UserService/CreateUser", &["admin"], &[]),
        ("iam.v1.UserService/UpdateUser", &["admin"], &[]),
        ("iam.v1.UserService/ResetPassword", &["admin"], &[]),
        (
            "iam.v1.UserService/ListUsers",
            &["auditor", "admin"],
            &["auditor", "admin"],
        ),
        ("iam.v1.AuthenticationService/EnrollTotp", &ROLES, &ROLES),
        ("iam.v1.AuthenticationService/ConfirmTotp", &ROLES, &ROLES),
        ("iam.v1.AuthenticationService/ListRevocations", &[], &[]),
        ("response.v1.EnforcerService/Heartbeat", &[], &[]),
        ("response.v1.EnforcerService/ListDesiredActions", &[], &[]),
        ("iam.v1.TenantService/CreateTenant", &[], &[]),
        ("iam.v1.KeyService/RotateKey", &[], &[]),
    ];
    let authorizer = Authorizer::shared();
    for (method, with, without) in table {
        let method = full(method);
        for role in ROLES {
            let decide = |factor| authorizer.decide(&person("acme", &[role], factor), &method);
            let expected = if with.contains(&role) {
                Verdict::Allow
            } else {
                Verdict::Deny
            };
            assert_eq!(decide(true), expected, "{role} with a second factor, {method}");
            let expected = match (without.contains(&role), with.contains(&role)) {
                (true, _) => Verdict::Allow,
                // Said apart from a plain refusal, because it can be helped.
                (false, true) => Verdict::SecondFactor,
                (false, false) => Verdict::Deny,
            };
            assert_eq!(decide(false), expected, "{role} without a second factor, {method}");
        }
    }
}

#[test]
fn the_installation_is_for_administrators_of_the_system_tenant() {
    for method in [
        "iam.v1.TenantService/CreateTenant",
        "iam.v1.TenantService/ListTenants",
        "iam.v1.TenantService/UpdateTenant",
        "iam.v1.KeyService/RotateKey",
    ] {
        assert_eq!(allowed(method), ["system admin, factor true"], "{method}");
    }
}

#[test]
fn strangers_reach_only_what_a_login_needs() {
    let authorizer = Authorizer::shared();
    let mut open: Vec<&str> = authorizer
        .methods()
        .filter(|method| authorizer.decide(&Caller::anonymous(None), method) == Verdict::Allow)
        .collect();
    open.sort_unstable();
    assert_eq!(
        open,
        [
            "garrison.iam.v1.AuthenticationService/GetKeySet",
            "garrison.iam.v1.AuthenticationService/Login",
            "garrison.iam.v1.AuthenticationService/RefreshToken",
            "garrison.iam.v1.AuthenticationService/VerifyFactor",
            "grpc.health.v1.Health/Check",
            "grpc.health.v1.Health/List",
            "grpc.health.v1.Health/Watch",
        ]
    );
}

#[test]
fn services_and_enforcers_reach_only_what_their_job_needs() {
    let only = |method: &str, expected: &[&str]| {
        let found: Vec<String> = allowed(method)
            .into_iter()
            .filter(|name| name.starts_with("service") || name == "enforcer")
            .collect();
        assert_eq!(found, expected, "{method}");
    };
    only("response.v1.EnforcerService/Heartbeat", &["enforcer"]);
    only("response.v1.EnforcerService/ListDesiredActions", &["enforcer"]);
    only("flow.v1.FlowService/FetchPacketSlice", &["service forensics"]);
    only(
        "response.v1.IncidentService/GetTimeline",
        &["service forensics", "service compliance"],
    );
    only("forensics.v1.EvidenceService/CreateBundle", &["service responder"]);
    only(
        "forensics.v1.EvidenceService/GetBundle",
        &["service responder", "service compliance"],
    );
    only("forensics.v1.EvidenceService/DownloadBundle", &[]);
    only("forensics.v1.FlowSearchService/SearchFlows", &["service policy"]);
    only("response.v1.ResponseService/ApproveResponse", &[]);
    only("policy.v1.PolicyService/ApplyPolicy", &[]);
    only("iam.v1.UserService/CreateUser", &[]);
    only("iam.v1.AuthenticationService/ChangePassword", &[]);
    let synchronising = SERVICES.map(|name| format!("service {name}"));
    assert_eq!(allowed("iam.v1.AuthenticationService/ListRevocations"), synchronising);
}

#[test]
fn invented_roles_and_methods_give_nothing() {
    let authorizer = Authorizer::shared();
    let odd = person("acme", &["root", "Role::\"admin\"", "admin\" || true", ""], true);
    assert_eq!(
        authorizer.decide(&odd, "garrison.iam.v1.UserService/CreateUser"),
        Verdict::Deny
    );
    let admin = person("acme", &["admin"], true);
    for method in [
        "",
        "reads",
        "mutates",
        "garrison.iam.v1.UserService",
        "garrison.iam.v1.UserService/createUser",
    ] {
        assert_eq!(authorizer.decide(&admin, method), Verdict::Deny, "{method:?}");
    }
}
