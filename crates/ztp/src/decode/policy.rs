//! The fields of a policy document.

use std::collections::BTreeMap;

use super::{
    Findings,
    field::Object,
    label::{labels, selector},
    rule::rules,
};
use crate::{
    diagnostic::{Code, did_you_mean},
    document::{
        API_VERSION, DEFAULT_TIER, EgressRule, Group, IngressRule, KIND, Metadata, Mode, Spec, Subject, Workloads,
        ZeroTrustPolicy,
    },
    node::{Node, shorten},
};

pub(super) fn policy(node: &Node, f: &mut Findings<'_>) -> Option<ZeroTrustPolicy> {
    let top = f.object(node, "", &["apiVersion", "kind", "metadata", "spec"])?;
    let fixed = |name: &str, expected: &str, f: &mut Findings<'_>| {
        let remedy = format!("Write `{name}: {expected}`");
        let node = top.require(name, &remedy, f)?;
        let given = f.text(node, name)?;
        if given != expected {
            f.error(
                Code::UnknownKind,
                name,
                node.position,
                format!("{:?} is not a kind of document that is known here", shorten(&given)),
                remedy,
            );
        }
        Some(given)
    };
    let api_version = fixed("apiVersion", API_VERSION, f);
    let kind = fixed("kind", KIND, f);
    // Another kind of document has other fields: one error says more than fifty.
    if kind.as_deref().is_some_and(|kind| kind != KIND) {
        return None;
    }
    let metadata = top
        .require("metadata", "Add `metadata` with a `name`", f)
        .and_then(|node| metadata(node, f));
    let spec = top
        .require("spec", "Add `spec` with a `subject` and rules", f)
        .and_then(|node| spec(node, f));
    Some(ZeroTrustPolicy {
        api_version: api_version?,
        kind: kind?,
        metadata: metadata?,
        spec: spec?,
    })
}

fn metadata(node: &Node, f: &mut Findings<'_>) -> Option<Metadata> {
    let object = f.object(node, "metadata", &["name", "labels"])?;
    let name = object
        .require("name", "Give the policy a name that is unique in the tenant", f)
        .and_then(|node| f.name(node, "metadata.name"));
    let labels = object
        .get("labels")
        .map(|node| labels(node, "metadata.labels", f))
        .unwrap_or_default();
    Some(Metadata { name: name?, labels })
}

fn spec(node: &Node, f: &mut Findings<'_>) -> Option<Spec> {
    let object = f.object(
        node,
        "spec",
        &[
            "mode", "tier", "owner", "reason", "ticket", "groups", "subject", "ingress", "egress",
        ],
    )?;
    let mode = object
        .get("mode")
        .and_then(|node| {
            let choices = [("observe", Mode::Observe), ("enforce", Mode::Enforce)];
            f.choice(node, "spec.mode", &choices)
        })
        .unwrap_or_default();
    let tier = object
        .get("tier")
        .and_then(|node| f.number(node, "spec.tier", 0, 1000))
        .unwrap_or(DEFAULT_TIER);
    let text = |name: &str, f: &mut Findings<'_>| {
        let node = object.get(name)?;
        f.text(node, &object.path(name))
    };
    let (owner, reason, ticket) = (text("owner", f), text("reason", f), text("ticket", f));
    let groups = object.get("groups").map(|node| groups(node, f)).unwrap_or_default();
    let subject = object
        .require("subject", "Say who is governed: `subject: {cidrs: [10.0.0.0/24]}`", f)
        .and_then(|node| subject(node, &groups, f))
        .unwrap_or_default();
    if !object.has("ingress") && !object.has("egress") {
        f.error_at(
            Code::Contradiction,
            "spec",
            "the policy has neither `ingress` nor `egress`, so that it governs nothing",
            "Add the direction that it is about; an empty list denies everything in that direction",
        );
    }
    let mut budget = f.limits.rules;
    let mut names = BTreeMap::new();
    let ingress = object.has("ingress").then(|| {
        rules(&object, "ingress", "from", &groups, &mut budget, &mut names, f)
            .into_iter()
            .map(|rule| IngressRule {
                name: rule.name,
                action: rule.action,
                from: rule.peers,
                ports: rule.ports,
            })
            .collect()
    });
    let egress = object.has("egress").then(|| {
        rules(&object, "egress", "to", &groups, &mut budget, &mut names, f)
            .into_iter()
            .map(|rule| EgressRule {
                name: rule.name,
                action: rule.action,
                to: rule.peers,
                ports: rule.ports,
            })
            .collect()
    });
    Some(Spec {
        mode,
        tier,
        owner,
        reason,
        ticket,
        groups,
        subject,
        ingress,
        egress,
    })
}

fn groups(node: &Node, f: &mut Findings<'_>) -> BTreeMap<String, Group> {
    let most = f.limits.groups;
    let mut groups = BTreeMap::new();
    for (name, path, node) in f.entries(node, "spec.groups", most) {
        if !super::field::is_name(name) {
            f.error(
                Code::BadValue,
                &path,
                node.position,
                format!("{:?} is not a name for a group", shorten(name)),
                "Use 1 to 63 lower-case letters, digits and hyphens, with no hyphen at either end",
            );
        }
        let Some(object) = f.object(node, &path, &["cidrs", "podSelector", "namespaceSelector"]) else {
            // Known by name all the same, so that its uses raise no second error.
            groups.insert(name.to_owned(), Group::default());
            continue;
        };
        let group = Group {
            cidrs: networks(&object, "cidrs", f),
            pod_selector: selector(&object, "podSelector", f),
            namespace_selector: selector(&object, "namespaceSelector", f),
        };
        if group == Group::default() && !object.has("cidrs") {
            f.error_at(
                Code::Contradiction,
                &path,
                "the group says nothing about who is in it",
                "Give it `cidrs`, a `podSelector`, a `namespaceSelector`, or several of them",
            );
        }
        groups.insert(name.to_owned(), group);
    }
    groups
}

pub(super) fn networks(object: &Object<'_>, name: &str, f: &mut Findings<'_>) -> Vec<String> {
    let Some(node) = object.get(name) else {
        return Vec::new();
    };
    let most = f.limits.networks;
    f.list(node, &object.path(name), most)
        .into_iter()
        .filter_map(|(path, node)| f.network(node, &path))
        .collect()
}

pub(super) fn group_name(
    node: &Node,
    path: &str,
    groups: &BTreeMap<String, Group>,
    f: &mut Findings<'_>,
) -> Option<String> {
    let name = f.text(node, path)?;
    if !groups.contains_key(&name) {
        let names: Vec<&str> = groups.keys().map(String::as_str).collect();
        let remedy = match did_you_mean(&name, &names) {
            Some(meant) => format!("Did you mean `{meant}`?"),
            None => "Define it under `spec.groups`".to_owned(),
        };
        f.error(
            Code::UnknownGroup,
            path,
            node.position,
            format!("the document defines no group {:?}", shorten(&name)),
            remedy,
        );
    }
    Some(name)
}

fn subject(node: &Node, groups: &BTreeMap<String, Group>, f: &mut Findings<'_>) -> Option<Subject> {
    let object = f.object(node, "spec.subject", &["group", "cidrs", "workloads"])?;
    let group = object
        .get("group")
        .and_then(|node| group_name(node, "spec.subject.group", groups, f));
    let cidrs = networks(&object, "cidrs", f);
    let workloads = object.get("workloads").and_then(|node| workloads(node, f));
    if object.get("group").is_some() && object.get("cidrs").is_some() {
        f.error_at(
            Code::Contradiction,
            "spec.subject",
            "the subject has both `group` and `cidrs`",
            "Keep one, or put the networks into the group",
        );
    }
    if ["group", "cidrs", "workloads"]
        .iter()
        .all(|name| object.get(name).is_none())
    {
        f.error_at(
            Code::Contradiction,
            "spec.subject",
            "the subject is empty, so that nobody is governed",
            "Name a `group`, `cidrs` or `workloads`",
        );
    }
    Some(Subject {
        group,
        cidrs,
        workloads,
    })
}

fn workloads(node: &Node, f: &mut Findings<'_>) -> Option<Workloads> {
    let object = f.object(node, "spec.subject.workloads", &["namespace", "podSelector"])?;
    let namespace = object
        .require("namespace", "Name the Kubernetes namespace of the pods", f)
        .and_then(|node| f.name(node, "spec.subject.workloads.namespace"));
    let pod_selector = selector(&object, "podSelector", f);
    Some(Workloads {
        namespace: namespace?,
        pod_selector,
    })
}
