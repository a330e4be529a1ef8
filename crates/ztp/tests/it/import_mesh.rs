//! Policies of meshes as documents, alone and beside policies for packets: what documents let pass, against what all of
//! them let pass together, event by event.

use garrison_ztp::{
    Policy, ZeroTrustPolicy,
    cluster::{Imported, documents},
    compile,
    document::Mode,
    ir::lower,
    istio,
    reach::diff,
};
use proptest::prelude::*;

use crate::{
    calico, cilium,
    cluster::read,
    generate::{self, rich},
    import::enforced,
    kubernetes::{self, endpoint},
    mesh::{by_account, documents_of, istio_passes, linkerd_decides, options},
    reference::{By, Endpoint, Event, decide_event, denied},
    rich::event,
};

/// What files say, and whether all that they say lets something pass.
struct Side {
    text: String,
    passes: Passes,
}

type Passes = Box<dyn Fn(&Endpoint, &Endpoint, &Event) -> bool>;

fn text(compiled: &compile::Compiled) -> String {
    let files = compiled.files.iter();
    files.map(|file| format!("---\n{}", file.content)).collect()
}

/// One kind of policies for packets, or none.
fn packets(lowered: &[Policy], kind: usize) -> Side {
    match kind {
        0 => Side {
            text: String::new(),
            passes: Box::new(|_, _, _| true),
        },
        1 => {
            let (policies, compiled) = kubernetes::compile_to(lowered);
            Side {
                text: text(&compiled),
                passes: Box::new(move |src, dst, e| kubernetes::passes(&policies, src, dst, e.protocol, e.port)),
            }
        }
        2 => {
            let (policies, compiled) = cilium::compile_to(lowered);
            Side {
                text: text(&compiled),
                passes: Box::new(move |src, dst, e| cilium::passes_event(&policies, src, dst, e)),
            }
        }
        _ => {
            let output = calico::compile_to(lowered);
            Side {
                text: text(&output.compiled),
                passes: Box::new(move |src, dst, e| output.passes(src, dst, e.protocol, e.port)),
            }
        }
    }
}

/// One kind of mesh.
fn mesh(lowered: &[Policy], kind: usize) -> Side {
    if kind == 2 {
        let compiled = compile::linkerd(lowered, |_| None);
        let resources = documents_of(&compiled);
        return Side {
            text: text(&compiled),
            passes: Box::new(move |src, dst, e| {
                e.protocol != 6 || linkerd_decides(&resources, src, dst, e).unwrap_or(true)
            }),
        };
    }
    let compiled = if kind == 0 {
        compile::istio_with(lowered, |_| None, &options())
    } else {
        compile::istio_ambient(lowered, |_| None)
    };
    let files: Vec<&str> = compiled.files.iter().map(|f| f.content.as_str()).collect();
    let policies = istio::read(&files.join("---\n")).unwrap();
    let others = documents_of(&compiled);
    Side {
        text: text(&compiled),
        passes: Box::new(move |src, dst, e| e.protocol != 6 || istio_passes(&policies, &others, src, dst, e)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: generate::cases(100), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn imported_with_meshes_as_documents_never_wider(
        below in generate::documents(true, 2),
        above in prop_oneof![rich(2), by_account()],
        kinds in (0usize..4, 0usize..3),
        events in prop::collection::vec((endpoint(), endpoint(), event()), 24),
    ) {
        let below: Vec<Policy> = below.iter().map(|d| lower(d, 1)).collect();
        let above: Vec<Policy> = above.iter().map(|d| lower(d, 1)).collect();
        let (below, above) = (packets(&below, kinds.0), mesh(&above, kinds.1));
        let files = format!("{}{}", below.text, above.text);
        let cluster = read(&files);
        if !cluster.is_valid() {
            return Ok(());
        }
        let imported = documents(&cluster, "istio-system").map_err(TestCaseError::fail)?;
        // Each is a right document.
        let written = enforced(&imported);
        let mut enforced: Vec<ZeroTrustPolicy> = imported.documents.clone();
        for document in &mut enforced {
            document.spec.mode = Mode::Enforce;
        }
        let enforced: Vec<&ZeroTrustPolicy> = enforced.iter().collect();
        let outside = imported.left_out.iter().any(|said| said.contains("world outside"));
        // Nothing listens on port 0.
        for (src, dst, event) in events.iter().filter(|(_, _, event)| event.port != 0) {
            let before = (below.passes)(src, dst, event) && (above.passes)(src, dst, event);
            let after = !denied(&decide_event(&enforced, src, dst, event, By::Label));
            prop_assert!(outside || !after || before, "wider: {:?} → {:?} {:?}\n{}\nbecame\n{}", src, dst, event, files, written);
            prop_assert!(!imported.left_out.is_empty() || after == before, "narrower: {:?} → {:?} {:?}\n{}\nbecame\n{}", src, dst, event, files, written);
        }
    }
}

const PODS: &str = "\
---
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, labels: {app: web}}, spec: {serviceAccountName: web}}
---
{apiVersion: v1, kind: Pod, metadata: {name: cron, namespace: shop, labels: {app: web}}, spec: {serviceAccountName: cron}}
---
{apiVersion: v1, kind: Pod, metadata: {name: db, namespace: shop, labels: {app: db}}, spec: {serviceAccountName: db, containers: [{name: db, ports: [{name: sql, containerPort: 5432}]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: teller, namespace: bank, labels: {app: teller}}, spec: {serviceAccountName: teller}}
";

const PACKETS: &str = "\
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: db, namespace: shop}, spec: {podSelector: {matchLabels: {app: db}},
  ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 5432}]}]}}
";

fn imported(text: &str) -> Imported {
    let cluster = read(text);
    assert!(cluster.is_valid(), "{:?}", cluster.findings);
    documents(&cluster, "istio-system").unwrap()
}

#[test]
fn packets_and_istio_become_one_document_that_means_both() {
    let files = format!(
        "{PACKETS}---
{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: db, namespace: shop}}, spec: {{selector: {{matchLabels: {{app: db}}}},
  rules: [{{from: [{{source: {{principals: [cluster.local/ns/shop/sa/web]}}}}], to: [{{operation: {{ports: ['5432', '9000']}}}}]}}]}}}}
"
    );
    let imported = imported(&files);
    assert_eq!(imported.left_out, Vec::<String>::new());
    let [one] = imported.documents.as_slice() else {
        panic!("{:#?}", imported.documents);
    };
    let text = one.text();
    for said in [
        "app: web",
        "serviceAccounts:\n      - web",
        "requires: trusted",
        "port: 5432",
    ] {
        assert!(text.contains(said), "{said}\n{text}");
    }
    assert!(!text.contains("9000"), "{text}");
    let origin = one.spec.reason.as_deref().unwrap();
    assert!(
        origin.contains("NetworkPolicy shop/db") && origin.contains("AuthorizationPolicy shop/db"),
        "{origin}"
    );
    let before = read(&format!("{PODS}{files}"));
    let after = read(&format!("{PODS}{}", enforced(&imported)));
    assert_eq!(diff(&before.program, &after.program, true), []);
}

#[test]
fn mutual_tls_that_is_demanded_is_asked_for() {
    let files = format!(
        "{PACKETS}---
{{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {{name: default, namespace: istio-system}}, spec: {{mtls: {{mode: STRICT}}}}}}
---
{{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {{name: web, namespace: shop}}, spec: {{selector: {{matchLabels: {{app: web}}}}, portLevelMtls: {{'8080': {{mode: PERMISSIVE}}}}}}}}
"
    );
    let imported = imported(&files);
    assert_eq!(imported.left_out, Vec::<String>::new());
    let mut enforced = imported.documents.clone();
    enforced.iter_mut().for_each(|d| d.spec.mode = Mode::Enforce);
    let enforced: Vec<&ZeroTrustPolicy> = enforced.iter().collect();
    let pod = |namespace: &str, app: &str, last: u8| {
        let labels = |key: &str, value: &str| [(key.to_owned(), value.to_owned())].into();
        Endpoint {
            address: [10, 0, 0, last].into(),
            pod: Some(crate::reference::Pod {
                namespace: namespace.to_owned(),
                namespace_labels: labels("kubernetes.io/metadata.name", namespace),
                labels: labels("app", app),
                account: app.to_owned(),
            }),
        }
    };
    let (web, db, teller) = (pod("shop", "web", 1), pod("shop", "db", 2), pod("bank", "teller", 3));
    for (src, dst, port, mtls, passes) in [
        (&web, &db, 5432, true, true),
        (&web, &db, 5432, false, false),
        (&teller, &db, 5432, true, false),
        (&db, &teller, 80, true, true),
        (&db, &teller, 80, false, false),
        (&db, &web, 8080, false, true),
        (&db, &web, 8081, false, false),
        (&db, &web, 8081, true, true),
    ] {
        let event = Event {
            protocol: 6,
            port,
            mtls,
            ..Event::default()
        };
        let found = !denied(&decide_event(&enforced, src, dst, &event, By::Label));
        assert_eq!(found, passes, "{src:?} → {dst:?} {port} {mtls}");
    }
}

const LINKERD: &str = "\
---
{apiVersion: policy.linkerd.io/v1beta3, kind: Server, metadata: {name: sql, namespace: shop}, spec: {podSelector: {matchLabels: {app: db}}, port: sql}}
---
{apiVersion: policy.linkerd.io/v1alpha1, kind: MeshTLSAuthentication, metadata: {name: web, namespace: shop}, spec: {identityRefs: [{kind: ServiceAccount, name: web}]}}
---
{apiVersion: policy.linkerd.io/v1alpha1, kind: AuthorizationPolicy, metadata: {name: web, namespace: shop}, spec: {targetRef: {group: policy.linkerd.io, kind: Server, name: sql},
  requiredAuthenticationRefs: [{group: policy.linkerd.io, kind: MeshTLSAuthentication, name: web}]}}
";

#[test]
fn servers_become_documents_alone_and_beside_network_policies() {
    for packets in ["", PACKETS] {
        let files = format!("{PODS}{packets}{LINKERD}");
        let imported = imported(&files);
        // That a name has a number is told, as other pods may have another.
        assert_eq!(imported.left_out.len(), 1, "{:?}", imported.left_out);
        assert!(imported.left_out[0].contains("port sql is taken for 5432"));
        let before = read(&files);
        let after = read(&format!("{PODS}{}", enforced(&imported)));
        assert_eq!(
            diff(&before.program, &after.program, true),
            [],
            "{}",
            enforced(&imported)
        );
    }
}

#[test]
fn what_linkerd_says_and_documents_cannot_is_told_and_not_allowed() {
    // Without the pods, the port has no number.
    let unknown = imported(LINKERD);
    let said = unknown.left_out.join("\n");
    assert!(
        said.contains("Server shop/sql") && said.contains("every port of TCP is denied"),
        "{said}"
    );
    let allowed = unknown.documents.iter().filter(|d| d.spec.tier == 100);
    assert!(allowed.flat_map(|d| d.spec.ingress.iter().flatten()).next().is_none());

    let odd = LINKERD.replace("port: sql", "port: 5432").replace(
        "identityRefs: [{kind: ServiceAccount, name: web}]",
        "identities: [somebody.example]",
    );
    let said = imported(&odd).left_out.join("\n");
    assert!(
        said.contains("somebody.example") && said.contains("it is not allowed"),
        "{said}"
    );

    let route = LINKERD
        .replace("port: sql", "port: 5432")
        .replace("kind: Server, name: sql", "kind: HTTPRoute, name: items");
    let cluster = read(&route);
    let said = documents(&cluster, "istio-system").unwrap().left_out.join("\n");
    assert!(said.contains("a part of a Server (HTTPRoute)"), "{said}");

    let missing = LINKERD
        .replace("port: sql", "port: 5432")
        .replace("kind: MeshTLSAuthentication, metadata", "kind: HTTPRoute, metadata");
    let said = imported(&missing).left_out.join("\n");
    assert!(
        said.contains("MeshTLSAuthentication shop/web is not in the files"),
        "{said}"
    );
}

#[test]
fn what_cannot_be_said_of_both_is_told_and_not_allowed() {
    let files = format!(
        "{PACKETS}---
{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: db, namespace: shop}}, spec: {{selector: {{matchLabels: {{app: db}}}},
  rules: [{{from: [{{source: {{principals: [partner.example/ns/shop/sa/web]}}}}, {{source: {{ipBlocks: [10.0.0.0/8]}}}}]}}]}}}}
"
    );
    let imported = imported(&files);
    let said = imported.left_out.join("\n");
    for why in [
        "trust domain cluster.local",
        "pods by label and by address at once",
        "it is not allowed",
    ] {
        assert!(said.contains(why), "{why}: {said}");
    }
    let rules = imported.documents.iter().flat_map(|d| d.spec.ingress.iter().flatten());
    assert_eq!(rules.count(), 0, "{:#?}", imported.documents);
    // The pods stay governed, so nothing reaches them.
    assert!(!imported.documents.is_empty());
}

#[test]
fn a_rule_of_requests_lets_no_connection_through() {
    let imported = imported(
        "---
{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: web, namespace: shop}, spec: {endpointSelector: {matchLabels: {app: web}},
  ingress: [{fromEndpoints: [{}], toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{method: GET}]}}]}, {fromEndpoints: [{}], toPorts: [{ports: [{port: '81', protocol: TCP}]}]}]}}
",
    );
    let said = imported.left_out.join("\n");
    assert!(
        said.contains("spec.ingress[0]") && said.contains("some requests"),
        "{said}"
    );
    let text = enforced(&imported);
    assert!(text.contains("port: 81") && !text.contains("port: 80"), "{text}");
}

#[test]
fn what_somebody_else_is_asked_about_is_denied() {
    let imported = imported(
        "---
{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: ask, namespace: shop}, spec: {action: CUSTOM, provider: {name: gate}, rules: [{to: [{operation: {paths: [/admin]}}]}]}}
---
{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: all, namespace: shop}, spec: {rules: [{}]}}
",
    );
    assert!(
        imported.left_out.iter().any(|said| said.contains("gate is asked")),
        "{:?}",
        imported.left_out
    );
    let mut enforced = imported.documents.clone();
    enforced.iter_mut().for_each(|d| d.spec.mode = Mode::Enforce);
    let enforced: Vec<&ZeroTrustPolicy> = enforced.iter().collect();
    let pod = Endpoint {
        address: [10, 0, 0, 1].into(),
        pod: Some(crate::reference::Pod {
            namespace: "shop".to_owned(),
            namespace_labels: [("kubernetes.io/metadata.name".to_owned(), "shop".to_owned())].into(),
            labels: Default::default(),
            account: "web".to_owned(),
        }),
    };
    for (path, passes) in [("/admin", false), ("/", true)] {
        let event = Event {
            protocol: 6,
            port: 80,
            request: Some(("GET".to_owned(), "shop.test".to_owned(), path.to_owned())),
            ..Event::default()
        };
        let outside = crate::reference::by_address([192, 0, 2, 1].into());
        let found = !denied(&decide_event(&enforced, &outside, &pod, &event, By::Label));
        assert_eq!(found, passes, "{path}");
    }
}
