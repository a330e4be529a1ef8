//! Imported manifests: what they let through, against the interpreter of the API reference, and by hand.

use std::{collections::BTreeMap, fmt::Write as _, net::IpAddr};

use garrison_ztp::{
    Code, Level, Policy,
    cluster::{Cluster, Source, import},
    compile,
    document::Mode,
    ir::lower,
    reach::{Assertion, Expectation, Identity, Matrix, Reach, diff, dot, read_assertions},
    sets::ServiceSet,
};
use proptest::{prelude::*, sample::select};

use crate::{
    generate::documents,
    kubernetes::{compile_to, endpoint, passes},
    reference::{By, Endpoint, decide, denied},
};

pub(crate) fn read(text: &str) -> Cluster {
    import(&[Source {
        file: "test.yaml".to_owned(),
        text: text.to_owned(),
    }])
}

/// Read without any finding.
pub(crate) fn clean(text: &str) -> Cluster {
    let cluster = read(text);
    assert_eq!(cluster.findings, []);
    cluster
}

fn pod(namespace: &str, name: &str, more: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{app: {name}}}}}\n{more}\n"
    )
}

/// The endpoints as manifests: pods with their addresses, and their namespaces.
pub(crate) fn manifests(endpoints: &[Endpoint]) -> String {
    let mut text = String::new();
    let mut namespaces = BTreeMap::new();
    for (i, endpoint) in endpoints.iter().enumerate() {
        let Some(pod) = &endpoint.pod else { continue };
        namespaces.insert(&pod.namespace, &pod.namespace_labels);
        let labels = serde_json::to_string(&pod.labels).unwrap();
        writeln!(
            text,
            "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: p{i}, namespace: {}, labels: {labels}}}, \
             spec: {{serviceAccountName: {}}}, status: {{podIP: {:?}}}}}",
            pod.namespace,
            pod.account,
            endpoint.address.to_string()
        )
        .unwrap();
    }
    for (name, labels) in namespaces {
        let labels = serde_json::to_string(labels).unwrap();
        writeln!(
            text,
            "---\n{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}, labels: {labels}}}}}"
        )
        .unwrap();
    }
    text
}

/// Whom an endpoint of the world is among those of the reach.
pub(crate) fn find(reach: &Reach<'_>, i: usize, endpoint: &Endpoint) -> usize {
    let name = format!("p{i}");
    reach
        .endpoints()
        .iter()
        .position(|e| match &e.identity {
            Identity::Workload { pod, .. } => endpoint.pod.is_some() && *pod == name,
            Identity::External => endpoint.pod.is_none() && e.range.contains(endpoint.address),
            _ => false,
        })
        .unwrap()
}

pub(crate) fn world() -> impl Strategy<Value = Vec<Endpoint>> {
    prop::collection::vec(endpoint(), 2..9).prop_map(|mut endpoints| {
        // One endpoint an address: two pods cannot share one.
        let mut seen = std::collections::BTreeSet::new();
        endpoints.retain(|e| seen.insert(e.address));
        endpoints
    })
}

const SERVICES: &[(u8, u16)] = &[
    (6, 1),
    (6, 79),
    (6, 80),
    (6, 81),
    (6, 82),
    (6, 83),
    (6, 443),
    (6, 444),
    (6, 65535),
    (17, 80),
    (17, 443),
    (132, 81),
    (1, 0),
    (47, 0),
];

/// Every pair of the world is let through for exactly the services that `wanted` says.
pub(crate) fn lets_through(
    cluster: &Cluster,
    world: &[Endpoint],
    text: &str,
    wanted: impl Fn(&Endpoint, &Endpoint, u8, u16) -> bool,
) -> Result<(), TestCaseError> {
    let reach = Reach::of(&cluster.program);
    for (i, src) in world.iter().enumerate() {
        for (j, dst) in world.iter().enumerate() {
            if i == j {
                continue;
            }
            let allowed = reach.allowed(0, find(&reach, i, src), find(&reach, j, dst));
            for (protocol, port) in SERVICES {
                prop_assert_eq!(
                    allowed.contains(*protocol, *port),
                    wanted(src, dst, *protocol, *port),
                    "{:?} → {:?} {}/{}\n{}",
                    src,
                    dst,
                    protocol,
                    port,
                    text
                );
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn imported_network_policies_mean_what_the_interpreter_says(documents in documents(true, 4), world in world()) {
        let lowered: Vec<Policy> = documents.iter().map(|d| lower(d, 7)).collect();
        let (policies, compiled) = compile_to(&lowered);
        let mut text = manifests(&world);
        for file in &compiled.files {
            write!(text, "---\n{}\n", file.content).unwrap();
        }
        let cluster = read(&text);
        prop_assert!(cluster.is_valid(), "{:#?}\n{}", cluster.findings, text);
        let reach = Reach::of(&cluster.program);
        for (i, src) in world.iter().enumerate() {
            for (j, dst) in world.iter().enumerate() {
                if i == j {
                    continue;
                }
                let allowed = reach.allowed(0, find(&reach, i, src), find(&reach, j, dst));
                for (protocol, port) in SERVICES {
                    let wanted = passes(&policies, src, dst, *protocol, *port);
                    prop_assert_eq!(
                        allowed.contains(*protocol, *port), wanted,
                        "{:?} → {:?} {}/{}\n{}", src, dst, protocol, port, text
                    );
                    let explained = reach
                        .explain(0, find(&reach, i, src), find(&reach, j, dst), *protocol, *port)
                        .unwrap();
                    prop_assert_eq!(explained.passes, wanted, "{}", text);
                }
            }
        }
    }

    #[test]
    fn imported_cilium_policies_mean_what_the_interpreter_says(documents in documents(true, 4), world in world()) {
        let lowered: Vec<Policy> = documents.iter().map(|d| lower(d, 7)).collect();
        let (policies, compiled) = crate::cilium::compile_to(&lowered);
        let mut text = manifests(&world);
        for file in &compiled.files {
            write!(text, "---\n{}\n", file.content).unwrap();
        }
        let cluster = read(&text);
        prop_assert!(cluster.is_valid(), "{:#?}\n{}", cluster.findings, text);
        lets_through(&cluster, &world, &text, |src, dst, protocol, port| {
            let event = crate::reference::Event { protocol, port, ..Default::default() };
            crate::cilium::passes_event(&policies, src, dst, &event)
        })?;
    }

    #[test]
    fn imported_calico_policies_mean_what_the_documents_say(documents in documents(true, 4), world in world()) {
        // Calico says everything that the documents do, as another test shows; so this needs no interpreter between.
        let lowered: Vec<Policy> = documents.iter().map(|d| lower(d, 7)).collect();
        let compiled = garrison_ztp::compile::calico(&lowered, |_| None);
        let mut text = manifests(&world);
        for file in &compiled.files {
            write!(text, "---\n{}\n", file.content).unwrap();
        }
        let cluster = read(&text);
        prop_assert!(cluster.is_valid(), "{:#?}\n{}", cluster.findings, text);
        let enforced: Vec<_> = documents.iter().filter(|d| d.spec.mode == Mode::Enforce).collect();
        lets_through(&cluster, &world, &text, |src, dst, protocol, port| {
            !denied(&decide(&enforced, src, dst, protocol, port, By::Label))
        })?;
    }

    #[test]
    fn imported_zero_trust_policies_mean_what_the_documents_say(documents in documents(true, 4), world in world()) {
        let mut text = manifests(&world);
        for document in &documents {
            write!(text, "---\n{}\n", crate::generate::text(document)).unwrap();
        }
        let cluster = read(&text);
        // Some random documents are refused, for example for a rule that flows cannot be held against.
        prop_assume!(cluster.is_valid());
        let enforced: Vec<_> = documents.iter().filter(|d| d.spec.mode == Mode::Enforce).collect();
        lets_through(&cluster, &world, &text, |src, dst, protocol, port| {
            !denied(&decide(&enforced, src, dst, protocol, port, By::Label))
        })?;
    }

    #[test]
    fn the_matrix_equals_the_analysis_pair_by_pair(
        network in documents(true, 3),
        own in documents(true, 3),
        world in world(),
        which in any::<(prop::sample::Index, prop::sample::Index)>(),
    ) {
        let lowered: Vec<Policy> = network.iter().map(|d| lower(d, 7)).collect();
        let (_, compiled) = compile_to(&lowered);
        let mut text = manifests(&world);
        for file in &compiled.files {
            write!(text, "---\n{}\n", file.content).unwrap();
        }
        for document in &own {
            write!(text, "---\n{}\n", crate::generate::text(document)).unwrap();
        }
        let cluster = read(&text);
        prop_assume!(cluster.is_valid());
        let mut program = cluster.program;
        let mut matrix = Matrix::of(&program);
        for round in 0..2 {
            let reach = Reach::of(&program);
            let count = reach.endpoints().len();
            // Without the old policy, there may be fewer borders among addresses than the matrix keeps.
            if round == 1 && matrix.endpoints().len() != count {
                break;
            }
            prop_assert_eq!(matrix.endpoints().len(), count);
            let mut connected = 0;
            for i in 0..count {
                for j in 0..count {
                    let wanted = reach.allowed(0, i, j);
                    connected += u64::from(!wanted.is_empty());
                    prop_assert_eq!(matrix.allowed(i, j), wanted, "{:?} → {:?} in round {}\n{}", reach.endpoints()[i], reach.endpoints()[j], round, text);
                }
            }
            prop_assert_eq!(matrix.connected(), connected);
            // A policy is put in the place of another one, and only what that changes is computed anew.
            let stages: Vec<(usize, usize)> = (0..program.networks[0].planes.len())
                .flat_map(|p| (0..program.networks[0].planes[p].stages.len()).map(move |s| (p, s)))
                .filter(|(p, s)| !program.networks[0].planes[*p].stages[*s].policies.is_empty())
                .collect();
            if round == 1 || stages.is_empty() {
                break;
            }
            let (p, s) = *which.0.get(&stages);
            let policies = &mut program.networks[0].planes[p].stages[s].policies;
            let last = policies.last().unwrap().clone();
            let place = which.1.index(policies.len());
            policies[place] = last.clone();
            prop_assert!(matrix.replace(p, s, place, last).is_ok());
        }
    }

    #[test]
    fn a_difference_is_exactly_what_changed(
        before in documents(true, 3),
        after in documents(true, 3),
        world in world(),
    ) {
        let text = |documents: &[garrison_ztp::ZeroTrustPolicy]| {
            let lowered: Vec<Policy> = documents.iter().map(|d| lower(d, 1)).collect();
            let mut text = manifests(&world);
            for file in compile::kubernetes(&lowered, |_| None).files {
                write!(text, "---\n{}\n", file.content).unwrap();
            }
            text
        };
        let (before, after) = (read(&text(&before)), read(&text(&after)));
        let changes = diff(&before.program, &after.program, false);
        let (old, new) = (Reach::of(&before.program), Reach::of(&after.program));
        for (i, src) in world.iter().enumerate() {
            for (j, dst) in world.iter().enumerate() {
                if i == j || src.pod.is_none() && dst.pod.is_none() {
                    continue;
                }
                let was = old.allowed(0, find(&old, i, src), find(&old, j, dst));
                let is = new.allowed(0, find(&new, i, src), find(&new, j, dst));
                let side = |at: usize, e: &Endpoint, side: &garrison_ztp::reach::Side| match &e.pod {
                    Some(pod) => side.to_string() == format!("{}/p{at}[Pod]", pod.namespace),
                    None => side.addresses().is_some_and(|set| set.contains(e.address)),
                };
                let told: Vec<_> = changes
                    .iter()
                    .filter(|c| side(i, src, &c.source) && side(j, dst, &c.destination))
                    .collect();
                prop_assert!(told.len() <= 1, "{:?}", told);
                let (gained, lost) = told
                    .first()
                    .map_or((ServiceSet::empty(), ServiceSet::empty()), |c| (c.gained.clone(), c.lost.clone()));
                prop_assert_eq!(gained, is.subtract(&was));
                prop_assert_eq!(lost, was.subtract(&is));
            }
        }
    }

    #[test]
    fn an_assertion_holds_exactly_when_no_pair_contradicts_it(
        documents in documents(true, 4),
        world in world(),
        from in select(&["any", "app=x", "not app=x", "namespace=blue", "not namespace=green,env=x", "outside", "10.77.0.0/16", "app!=y"][..]),
        to in select(&["any", "env", "namespace=blue", "outside", "not pods", "app=y"][..]),
        services in select(&["", " : TCP/80-82", " : UDP, ICMP"][..]),
        require in any::<bool>(),
    ) {
        let lowered: Vec<Policy> = documents.iter().map(|d| lower(d, 1)).collect();
        let mut text = manifests(&world);
        for file in compile::kubernetes(&lowered, |_| None).files {
            write!(text, "---\n{}\n", file.content).unwrap();
        }
        let cluster = read(&text);
        let mut assertion: Assertion = format!("{from} -> {to}{services}").parse().unwrap();
        if require {
            assertion.expectation = Expectation::Require;
        }
        let (reach, outcomes) = Assertion::check(&cluster.program, std::slice::from_ref(&assertion));
        let mut pairs = 0;
        let mut wrong = 0;
        let endpoints = reach.endpoints();
        for (i, src) in endpoints.iter().enumerate() {
            for (j, dst) in endpoints.iter().enumerate() {
                let outside = |e: &garrison_ztp::reach::Endpoint| e.identity == Identity::External;
                if i == j || outside(src) && outside(dst) || !assertion.from.matches(src) || !assertion.to.matches(dst) {
                    continue;
                }
                pairs += 1;
                let possible = reach.allowed(0, i, j);
                let fails = match assertion.expectation {
                    Expectation::Forbid => !possible.intersect(&assertion.services).is_empty(),
                    Expectation::Require => !assertion.services.is_subset(&possible),
                };
                wrong += u32::from(fails);
            }
        }
        prop_assert_eq!(outcomes[0].vacuous, pairs == 0);
        prop_assert_eq!(outcomes[0].violations.is_empty(), wrong == 0);
        for violation in &outcomes[0].violations {
            let (src, dst, protocol, port) = violation.example;
            prop_assert!(assertion.from.matches(&endpoints[src]) && assertion.to.matches(&endpoints[dst]));
            let passes = reach.explain(0, src, dst, protocol, port).unwrap().passes;
            prop_assert_eq!(passes, assertion.expectation == Expectation::Forbid);
        }
    }
}

pub(crate) fn lines(cluster: &Cluster) -> Vec<String> {
    Reach::of(&cluster.program)
        .connections(false)
        .iter()
        .map(|c| format!("{} → {}: {}", c.source, c.destination, c.services))
        .collect()
}

pub(crate) fn between<'l>(lines: &'l [String], src: &str, dst: &str) -> Option<&'l str> {
    lines
        .iter()
        .find_map(|line| line.strip_prefix(&format!("{src} → {dst}: ")))
}

const TIERS: &str = "---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: admin-late}
spec:
  tier: Admin
  priority: 20
  subject: {namespaces: {}}
  ingress:
    - {name: no-telnet, action: Deny, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 23}}}]}
    - {action: Accept, from: [{pods: {podSelector: {matchLabels: {app: admin}}}}]}
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: admin-early}
spec:
  tier: Admin
  priority: 10
  subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: db}}}}
  ingress:
    - {action: Pass, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {range: {start: 20, end: 30}}}}]}
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: base}
spec:
  tier: Baseline
  priority: 0
  subject: {namespaces: {}}
  ingress:
    - {action: Deny, from: [{namespaces: {}}], protocols: [{udp: {}}, {destinationNamedPort: metrics}]}
  egress:
    - {action: Accept, to: [{domainNames: [\"*.example.com.\"]}]}
    - {action: Deny, to: [{networks: [0.0.0.0/0, \"::/0\"]}]}
";

#[test]
fn tiers_of_cluster_network_policies_decide_in_order() {
    let named = "spec: {containers: [{ports: [{name: metrics, containerPort: 9090}]}]}";
    let text = format!(
        "{TIERS}{}{}{}",
        pod("a", "db", named),
        pod("a", "web", named),
        pod("b", "admin", "spec: {hostNetwork: false}")
    );
    let lines = lines(&clean(&text));
    // Baseline's egress denies every address, pods included, and what it denies is egress of everyone.
    assert_eq!(between(&lines, "a/web[Pod]", "a/db[Pod]"), None);
    assert_eq!(
        between(&lines, "a/db[Pod]", "*.example.com"),
        Some("every protocol and port")
    );
    assert_eq!(between(&lines, "a/db[Pod]", "every address outside"), None);

    // Without that, ingress tells the tiers apart.
    let text = text.replace("    - {action: Deny, to: [{networks: [0.0.0.0/0, \"::/0\"]}]}\n", "");
    let lines = self::lines(&clean(&text));
    // Passed over the admin tier, so that telnet is not denied; baseline denies UDP and the named port.
    assert_eq!(
        between(&lines, "a/web[Pod]", "a/db[Pod]"),
        Some("TCP/0-9089, TCP/9091-65535, SCTP, every protocol without ports")
    );
    // Denied by the admin tier.
    assert_eq!(
        between(&lines, "a/db[Pod]", "a/web[Pod]"),
        Some("TCP/0-22, TCP/24-9089, TCP/9091-65535, SCTP, every protocol without ports")
    );
    // Accepted by the admin tier but for telnet, whatever baseline says.
    assert_eq!(
        between(&lines, "b/admin[Pod]", "a/web[Pod]"),
        Some("TCP/0-22, TCP/24-65535, UDP, SCTP, every protocol without ports")
    );
    // The passed ports skip that acceptance and are not baseline's matter.
    assert_eq!(
        between(&lines, "b/admin[Pod]", "a/db[Pod]"),
        Some("every protocol and port")
    );
}

#[test]
fn the_predecessors_of_cluster_network_policy_are_read_too() {
    let text = format!(
        "apiVersion: policy.networking.k8s.io/v1alpha1
kind: AdminNetworkPolicy
metadata: {{name: admin}}
spec:
  priority: 5
  subject: {{namespaces: {{}}}}
  ingress:
    - {{action: Allow, from: [{{namespaces: {{}}}}], ports: [{{portNumber: {{port: 443}}}}]}}
---
apiVersion: policy.networking.k8s.io/v1alpha1
kind: BaselineAdminNetworkPolicy
metadata: {{name: default}}
spec:
  subject: {{namespaces: {{}}}}
  ingress:
    - {{action: Deny, from: [{{namespaces: {{}}}}], ports: [{{portRange: {{protocol: TCP, start: 1, end: 65535}}}}]}}
{}{}",
        pod("a", "one", ""),
        pod("b", "two", "")
    );
    let lines = lines(&clean(&text));
    assert_eq!(
        between(&lines, "a/one[Pod]", "b/two[Pod]"),
        Some("TCP/0, TCP/443, UDP, SCTP, every protocol without ports")
    );
}

#[test]
fn pods_of_a_workload_that_differ_are_told_apart() {
    let owned = |name: &str, role: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: a, labels: {{role: {role}}}, \
             ownerReferences: [{{name: set, kind: StatefulSet, controller: true}}]}}\n"
        )
    };
    let policy = "---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: leader, namespace: a}
spec: {podSelector: {matchLabels: {role: leader}}, policyTypes: [Ingress]}
";
    let alike = lines(&clean(&format!(
        "{}{}",
        owned("set-0", "leader"),
        owned("set-1", "follower")
    )));
    assert!(between(&alike, "a/set[StatefulSet]", "every address outside").is_some());
    let apart = lines(&clean(&format!(
        "{}{}{policy}",
        owned("set-0", "leader"),
        owned("set-1", "follower")
    )));
    assert!(between(&apart, "a/set-0[Pod]", "a/set-1[Pod]").is_some());
    assert_eq!(between(&apart, "a/set-1[Pod]", "a/set-0[Pod]"), None);
}

#[test]
fn what_is_wrong_is_told_with_its_place_and_nothing_is_guessed() {
    let case = |text: &str, code: Code, words: &str| {
        let cluster = read(text);
        let found = cluster
            .findings
            .iter()
            .find(|f| f.diagnostic.code == code && f.to_string().contains(words));
        assert!(found.is_some(), "{words}: {:#?}", cluster.findings);
    };
    let policy = |spec: &str| {
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: a}}\nspec:\n{spec}"
        )
    };
    case(
        &policy("  podSelector: {}\n  ingres:\n  - {}\n"),
        Code::UnknownField,
        "test.yaml:6:3: error",
    );
    case(
        &policy("  podSelector: {}\n  ingress:\n  - from:\n    - ipBlock: {cidr: 10.0.0/8}\n"),
        Code::BadAddress,
        "spec.ingress[0].from[0].ipBlock.cidr",
    );
    case(
        &policy("  podSelector: {}\n  ingress:\n  - from:\n    - ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/8]}\n"),
        Code::Contradiction,
        "is not a part of",
    );
    case(
        &policy("  podSelector: {}\n  ingress:\n  - ports: [{port: 90, endPort: 80}]\n"),
        Code::BadValue,
        "endPort",
    );
    case(
        &policy("  podSelector: {}\n  ingress:\n  - from: [{}]\n"),
        Code::Contradiction,
        "says nothing",
    );
    case(
        &format!(
            "{}---\n{}",
            policy("  podSelector: {}\n"),
            policy("  podSelector: {}\n")
        ),
        Code::Duplicate,
        "the first is at test.yaml:1",
    );
    case(
        "apiVersion: cilium.io/v2\nkind: CiliumSomethingNew\nmetadata: {name: x}\n",
        Code::UnknownKind,
        "missing from the answer",
    );
    case("metadata: {name: x}\n", Code::MissingField, "no `kind`");
    case("a: [1, 2\n", Code::Syntax, "test.yaml:");
    let bomb: String = (1..9)
        .map(|i| format!("k{i}: &k{i} [{}]\n", vec![format!("*k{}", i - 1); 9].join(", ")))
        .collect();
    case(
        &format!("kind: Pod\nk0: &k0 [x, x, x, x, x, x, x, x, x]\n{bomb}"),
        Code::Limit,
        "passes a limit",
    );
    let deep = format!("kind: Pod\nmetadata: {}{}\n", "[".repeat(5_000), "]".repeat(5_000));
    case(&deep, Code::Limit, "passes a limit");
    let same = "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: NAME}\nspec: {tier: Admin, priority: 1, subject: {namespaces: {}}}\n";
    let two = read(&format!(
        "{}---\n{}",
        same.replace("NAME", "one"),
        same.replace("NAME", "two")
    ));
    assert_eq!(two.findings.len(), 1);
    assert_eq!(two.findings[0].diagnostic.level, Level::Warning);
}

#[test]
fn the_graph_is_quoted_for_graphviz() {
    let cluster = clean(&format!("{}{}", pod("a", "one", ""), pod("a", "two", "")));
    let graph = dot(&Reach::of(&cluster.program).connections(false));
    assert!(
        graph.contains("\"a/one[Pod]\" -> \"a/two[Pod]\" [label=\"every protocol and port\"];"),
        "{graph}"
    );
    assert!(graph.contains("label=\"one\\nPod\""), "{graph}");
}

#[test]
fn a_file_of_assertions_is_read_field_by_field() {
    let text = "apiVersion: garrison.dev/v1alpha1
kind: ConnectivityAssertions
assertions:
  - name: only finance reaches the ledger
    forbid: {from: not namespace=finance, to: app=ledger}
  - name: the shop answers
    require: {from: outside, to: workload=shop/web, services: TCP/443}
";
    let assertions = read_assertions(text).unwrap();
    assert_eq!(assertions.len(), 2);
    assert_eq!(assertions[1].expectation, Expectation::Require);
    assert!(assertions[1].services.contains(6, 443) && !assertions[1].services.contains(6, 80));
    let wrong = text.replace("TCP/443", "TCP/https").replace("forbid:", "forbids:");
    let errors = read_assertions(&wrong).unwrap_err();
    let fields: Vec<&str> = errors.iter().map(|e| e.field.as_str()).collect();
    assert!(
        fields.contains(&"assertions[0].forbids") && fields.contains(&"assertions[1].require.services"),
        "{errors:#?}"
    );
    let address: IpAddr = "10.0.0.1".parse().unwrap();
    let assertion: Assertion = "10.0.0.0/8 -> any".parse().unwrap();
    let cluster = clean(&pod("a", "one", &format!("status: {{podIP: {address}}}")));
    let (_, outcomes) = Assertion::check(&cluster.program, &[assertion]);
    assert!(!outcomes[0].vacuous && !outcomes[0].holds());
}
