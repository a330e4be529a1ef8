//! What the generators reach, and how often each target says everything. Printed with `--nocapture`.

use std::collections::BTreeMap;

use garrison_ztp::{Policy, compile::Target, document::*, ir::lower};
use proptest::{strategy::Strategy as _, strategy::ValueTree as _, test_runner::TestRunner};

use crate::generate::documents;

const SETS: usize = 400;

fn count(features: &mut BTreeMap<&'static str, usize>, document: &ZeroTrustPolicy) {
    let mut saw = |feature: &'static str, there: bool| *features.entry(feature).or_default() += usize::from(there);
    let spec = &document.spec;
    saw("mode observe", spec.mode == Mode::Observe);
    saw("mode enforce", spec.mode == Mode::Enforce);
    saw("tier early", spec.tier < DEFAULT_TIER);
    saw("tier late", spec.tier > DEFAULT_TIER);
    saw("subject group", spec.subject.group.is_some());
    saw("subject cidrs", !spec.subject.cidrs.is_empty());
    saw("subject workloads", spec.subject.workloads.is_some());
    let pods = spec.subject.workloads.as_ref().and_then(|w| w.pod_selector.as_ref());
    saw("subject podSelector", pods.is_some());
    saw("ingress", spec.ingress.is_some());
    saw("ingress empty", spec.ingress.as_ref().is_some_and(Vec::is_empty));
    saw("egress", spec.egress.is_some());
    saw("egress empty", spec.egress.as_ref().is_some_and(Vec::is_empty));
    let ingress = spec.ingress.iter().flatten().map(|r| (r.action, &r.from, &r.ports));
    let egress = spec.egress.iter().flatten().map(|r| (r.action, &r.to, &r.ports));
    for (action, peers, ports) in ingress.chain(egress) {
        saw("allow", action == Action::Allow);
        saw("deny", action == Action::Deny);
        saw("every port", ports.is_empty());
        for port in ports {
            saw("TCP", port.protocol == Protocol::Tcp);
            saw("UDP", port.protocol == Protocol::Udp);
            saw("SCTP", port.protocol == Protocol::Sctp);
            saw("ICMP", port.protocol == Protocol::Icmp);
            saw("port", port.port.is_some() && port.end_port.is_none());
            saw("endPort", port.end_port.is_some());
            saw("whole protocol", port.port.is_none());
        }
        for peer in peers {
            saw("peer any", peer.any);
            saw("peer cidr", peer.cidr.is_some());
            saw("peer except", !peer.except.is_empty());
            saw("peer group", peer.group.is_some());
            saw("peer podSelector", peer.pod_selector.is_some());
            saw("peer namespaceSelector", peer.namespace_selector.is_some());
            saw("peer IPv6", peer.cidr.as_ref().is_some_and(|c| c.contains(':')));
            for selector in peer.pod_selector.iter().chain(&peer.namespace_selector) {
                saw("matchLabels", !selector.match_labels.is_empty());
                for requirement in &selector.match_expressions {
                    saw("In", requirement.operator == LabelOperator::In);
                    saw("NotIn", requirement.operator == LabelOperator::NotIn);
                    saw("Exists", requirement.operator == LabelOperator::Exists);
                    saw("DoesNotExist", requirement.operator == LabelOperator::DoesNotExist);
                }
            }
        }
    }
}

#[test]
fn the_generators_reach_every_feature() {
    let mut runner = TestRunner::deterministic();
    let mut features = BTreeMap::new();
    let mut complete: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for labels in [true, false] {
        let strategy = documents(labels, 4);
        for _ in 0..SETS {
            let documents = strategy.new_tree(&mut runner).unwrap().current();
            documents.iter().for_each(|d| count(&mut features, d));
            let lowered: Vec<Policy> = documents.iter().map(|d| lower(d, 1)).collect();
            if lowered.is_empty() {
                continue;
            }
            for target in Target::ALL {
                let by_label = matches!(
                    target,
                    Target::Kubernetes
                        | Target::ClusterNetworkPolicy
                        | Target::Cilium
                        | Target::Calico
                        | Target::Istio
                        | Target::IstioAmbient
                        | Target::Linkerd
                );
                if by_label != labels {
                    continue;
                }
                let gaps = target.compile(&lowered, |_| None).gaps;
                let said = |gap: &garrison_ztp::compile::Gap| {
                    [
                        "mode observe",
                        "no pod has them",
                        "decides at the destination",
                        "decides about TCP only",
                    ]
                    .iter()
                    .any(|said| gap.reason.contains(said))
                };
                let (whole, all) = complete.entry(target.name()).or_default();
                *whole += usize::from(gaps.iter().all(said));
                *all += 1;
            }
        }
    }
    for (feature, times) in &features {
        println!("{times:>7}  {feature}");
    }
    for (target, (whole, all)) in &complete {
        println!("{whole:>4} of {all} sets without a gap  {target}");
    }
    for (feature, times) in features {
        assert!(times >= 10, "the generators reach {feature:?} {times} times");
    }
    assert_eq!(complete["calico"].0, complete["calico"].1);
    for (target, (whole, all)) in complete {
        // Meshes know pods by their accounts, of which these documents do not speak.
        if ["istio", "istio-ambient", "linkerd"].contains(&target) {
            continue;
        }
        assert!(
            whole * 10 >= all,
            "{target}: nearly every set has a gap, so that equality is hardly tested"
        );
    }
}

#[test]
fn the_generator_reaches_everything_beyond_labels_and_ports() {
    let mut runner = TestRunner::deterministic();
    let mut features: BTreeMap<&'static str, usize> = BTreeMap::new();
    let mut complete: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    let strategy = crate::generate::rich(3);
    for _ in 0..SETS {
        let documents = strategy.new_tree(&mut runner).unwrap().current();
        let lowered: Vec<Policy> = documents.iter().map(|d| lower(d, 1)).collect();
        for target in Target::ALL {
            let (whole, all) = complete.entry(target.name()).or_default();
            *whole += usize::from(target.compile(&lowered, |_| None).gaps.is_empty());
            *all += 1;
        }
        for document in &documents {
            let mut saw = |feature: &'static str, there: bool| {
                *features.entry(feature).or_default() += usize::from(there);
            };
            let spec = &document.spec;
            saw("mode stage", spec.mode == Mode::Stage);
            saw("ClusterZeroTrustPolicy", document.kind == CLUSTER_KIND);
            let namespaces = spec
                .subject
                .workloads
                .as_ref()
                .and_then(|w| w.namespace_selector.as_ref());
            let by_name = |s: &&LabelSelector| {
                s.match_expressions
                    .iter()
                    .any(|r| r.key == "kubernetes.io/metadata.name")
            };
            saw("namespaces by name", namespaces.as_ref().is_some_and(by_name));
            saw(
                "namespaces by label",
                namespaces.is_some() && !namespaces.as_ref().is_some_and(by_name),
            );
            saw(
                "subject serviceAccounts",
                spec.subject
                    .workloads
                    .as_ref()
                    .is_some_and(|w| !w.service_accounts.is_empty()),
            );
            saw("requires of the subject", spec.requires.is_some());
            let ingress = spec
                .ingress
                .iter()
                .flatten()
                .map(|r| (&r.from, &r.ports, &r.http, &r.grpc, r.requires, &r.valid_until));
            let egress = spec
                .egress
                .iter()
                .flatten()
                .map(|r| (&r.to, &r.ports, &r.http, &r.grpc, r.requires, &r.valid_until));
            for (peers, ports, http, grpc, requires, until) in ingress.chain(egress) {
                saw("http", !http.is_empty());
                saw("http methods", http.iter().any(|m| !m.methods.is_empty()));
                saw("http hosts", http.iter().any(|m| !m.hosts.is_empty()));
                saw("http paths", http.iter().any(|m| !m.paths.is_empty()));
                saw("grpc", !grpc.is_empty());
                saw("grpc methods", grpc.iter().any(|m| !m.methods.is_empty()));
                saw("ICMP types", ports.iter().any(|p| p.icmp_type.is_some()));
                saw("ICMPv6 types", ports.iter().any(|p| p.icmpv6_type.is_some()));
                saw("requires", requires.is_some());
                saw("validUntil", until.is_some());
                for peer in peers {
                    saw("peer serviceAccounts", !peer.service_accounts.is_empty());
                    saw("peer spiffeIds", !peer.spiffe_ids.is_empty());
                    saw("peer fqdns", !peer.fqdns.is_empty());
                    saw("peer hosts", !peer.hosts.is_empty());
                    saw("peer tags", !peer.tags.is_empty());
                    saw("peer iamGroups", !peer.iam_groups.is_empty());
                }
            }
        }
    }
    for (feature, times) in &features {
        println!("{times:>7}  {feature}");
    }
    for (target, (whole, all)) in &complete {
        println!("{whole:>4} of {all} sets without a gap  {target}");
    }
    for (feature, times) in features {
        assert!(times >= 10, "the generator reaches {feature:?} {times} times");
    }
}
