//! The fields of a policy document.

use std::collections::BTreeMap;

use super::{
    Findings,
    field::Object,
    identity,
    label::{labels, selector},
    rule::rules,
};
use crate::{
    diagnostic::{Code, did_you_mean},
    document::{
        API_VERSION, CLUSTER_KIND, DEFAULT_TIER, EgressRule, Group, IngressRule, KIND, Metadata, Mode, Spec, Subject,
        Workloads, ZeroTrustPolicy,
    },
    node::{Node, shorten},
};

pub(super) fn policy(node: &Node, f: &mut Findings<'_>) -> Option<ZeroTrustPolicy> {
    let top = f.object(node, "", &["apiVersion", "kind", "metadata", "spec"])?;
    let fixed = |name: &str, expected: &str, f: &mut Findings<'_>| {
        let remedy = format!("Write `{name}: {expected}`");
        let node = top.require(name, &remedy, f)?;
        let given = f.text(node, name)?;
        if given != expected && !(expected == KIND && given == CLUSTER_KIND) {
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
    if kind.as_deref().is_some_and(|kind| kind != KIND && kind != CLUSTER_KIND) {
        return None;
    }
    let cluster = kind.as_deref() == Some(CLUSTER_KIND);
    let metadata = top
        .require("metadata", "Add `metadata` with a `name`", f)
        .and_then(|node| metadata(node, cluster, f));
    let (metadata, home) = metadata.unwrap_or((None, Home::Unknown));
    let spec = top
        .require("spec", "Add `spec` with a `subject` and rules", f)
        .and_then(|node| spec(node, &home, f));
    Some(ZeroTrustPolicy {
        api_version: api_version?,
        kind: kind?,
        metadata: metadata?,
        spec: spec?,
    })
}

/// Where the workloads of a document are.
enum Home {
    /// In the namespaces that it selects.
    Cluster,
    /// In the namespace that it names itself.
    Anywhere,
    /// In the namespace that it lies in.
    Namespace(String),
    /// What it says of that is wrong, which was told.
    Unknown,
}

fn metadata(node: &Node, cluster: bool, f: &mut Findings<'_>) -> Option<(Option<Metadata>, Home)> {
    let object = f.object(node, "metadata", &["name", "namespace", "labels"])?;
    let name = object
        .require("name", "Give the policy a name that is unique in the tenant", f)
        .and_then(|node| f.name(node, "metadata.name"));
    let labels = object
        .get("labels")
        .map(|node| labels(node, "metadata.labels", f))
        .unwrap_or_default();
    let home = match object.get("namespace") {
        Some(_) if cluster => {
            f.error_at(
                Code::Contradiction,
                "metadata.namespace",
                "a ClusterZeroTrustPolicy lies in no namespace",
                "Leave the field out, or make the document a ZeroTrustPolicy",
            );
            Home::Cluster
        }
        _ if cluster => Home::Cluster,
        None => Home::Anywhere,
        Some(node) => f
            .name(node, "metadata.namespace")
            .map_or(Home::Unknown, Home::Namespace),
    };
    let namespace = match &home {
        Home::Namespace(own) => Some(own.clone()),
        _ => None,
    };
    let metadata = name.map(|name| Metadata {
        name,
        namespace,
        labels,
    });
    Some((metadata, home))
}

fn spec(node: &Node, home: &Home, f: &mut Findings<'_>) -> Option<Spec> {
    let object = f.object(
        node,
        "spec",
        &[
            "mode",
            "tier",
            "owner",
            "reason",
            "ticket",
            "trustLevels",
            "requires",
            "groups",
            "subject",
            "ingress",
            "egress",
        ],
    )?;
    let mode = object
        .get("mode")
        .and_then(|node| {
            let choices = [
                ("observe", Mode::Observe),
                ("stage", Mode::Stage),
                ("enforce", Mode::Enforce),
            ];
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
    let trust_levels = identity::trust_levels(&object, f);
    let requires = identity::level(&object, "requires", f);
    if object.get("requires").is_some() && !object.has("ingress") {
        f.error_at(
            Code::Contradiction,
            "spec.requires",
            "the policy requires trust of whoever opens connections to its subject, and has no `ingress`",
            "Add `ingress`, or write `requires` at the egress rules",
        );
    }
    let groups = object.get("groups").map(|node| groups(node, f)).unwrap_or_default();
    let subject = object
        .require("subject", "Say who is governed: `subject: {cidrs: [10.0.0.0/24]}`", f)
        .and_then(|node| subject(node, home, &groups, f))
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
                http: rule.http,
                grpc: rule.grpc,
                requires: rule.requires,
                valid_from: rule.valid_from,
                valid_until: rule.valid_until,
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
                http: rule.http,
                grpc: rule.grpc,
                requires: rule.requires,
                valid_from: rule.valid_from,
                valid_until: rule.valid_until,
            })
            .collect()
    });
    Some(Spec {
        mode,
        tier,
        owner,
        reason,
        ticket,
        trust_levels,
        requires,
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
        let fields = [
            "cidrs",
            "podSelector",
            "namespaceSelector",
            "serviceAccounts",
            "spiffeIds",
            "fqdns",
            "hosts",
            "tags",
            "iamGroups",
            "groups",
        ];
        let Some(object) = f.object(node, &path, &fields) else {
            // Known by name all the same, so that its uses raise no second error.
            groups.insert(name.to_owned(), Group::default());
            continue;
        };
        let group = Group {
            cidrs: networks(&object, "cidrs", f),
            pod_selector: selector(&object, "podSelector", f),
            namespace_selector: selector(&object, "namespaceSelector", f),
            service_accounts: identity::texts(&object, "serviceAccounts", f, identity::account),
            spiffe_ids: identity::texts(&object, "spiffeIds", f, identity::spiffe),
            fqdns: identity::texts(&object, "fqdns", f, identity::fqdn),
            hosts: identity::texts(&object, "hosts", f, identity::host),
            tags: identity::tags(&object, f),
            iam_groups: identity::texts(&object, "iamGroups", f, identity::iam_group),
            groups: identity::texts(&object, "groups", f, |_| Ok(())),
        };
        if fields.iter().all(|name| !object.has(name)) {
            f.error_at(
                Code::Contradiction,
                &path,
                "the group says nothing about who is in it",
                "Give it `cidrs`, a `podSelector`, a `namespaceSelector`, or another way to say who is in it",
            );
        }
        let identities = ["spiffeIds", "fqdns", "hosts", "tags", "iamGroups"];
        let selects = ["podSelector", "namespaceSelector", "serviceAccounts"];
        let ways = identities.iter().filter(|name| object.get(name).is_some()).count()
            + usize::from(selects.iter().any(|name| object.get(name).is_some()));
        let alone = object.get("groups").is_some();
        if ways > 1 || (alone && (ways > 0 || object.has("cidrs"))) {
            f.error_at(
                Code::Contradiction,
                &path,
                if alone {
                    "a group of groups says nothing else"
                } else {
                    "beside `cidrs`, the group says who is in it in more than one way"
                },
                "Make a group for each, and one with `groups` that has them all",
            );
        }
        groups.insert(name.to_owned(), group);
    }
    nested(&groups, f);
    groups
}

/// Checks the groups of groups: every member is there, and none is a member of itself at whatever distance.
fn nested(groups: &BTreeMap<String, Group>, f: &mut Findings<'_>) {
    for (name, group) in groups {
        for (i, member) in group.groups.iter().enumerate() {
            if !groups.contains_key(member) {
                f.error_at(
                    Code::UnknownGroup,
                    &format!("spec.groups.{name}.groups[{i}]"),
                    format!("the document defines no group {:?}", shorten(member)),
                    "Define it under `spec.groups`",
                );
            }
        }
    }
    // Groups without members are done, then those whose members are done; what is never done leads into a circle.
    let mut users: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut open: BTreeMap<&str, usize> = BTreeMap::new();
    for (name, group) in groups {
        let members = group.groups.iter().filter(|m| groups.contains_key(*m));
        open.insert(name, members.clone().count());
        for member in members {
            users.entry(member).or_default().push(name);
        }
    }
    let mut done: Vec<&str> = open.iter().filter(|(_, n)| **n == 0).map(|(name, _)| *name).collect();
    while let Some(name) = done.pop() {
        open.remove(name);
        for user in users.get(name).into_iter().flatten() {
            if let Some(left) = open.get_mut(user) {
                *left -= 1;
                if *left == 0 {
                    done.push(user);
                }
            }
        }
    }
    let Some((first, _)) = open.iter().next() else { return };
    let mut way = vec![*first];
    let mut at = *first;
    let circle = loop {
        let member = groups
            .get(at)
            .and_then(|g| g.groups.iter().map(String::as_str).find(|m| open.contains_key(m)));
        let Some(member) = member else { return };
        if let Some(start) = way.iter().position(|name| *name == member) {
            break &way[start..];
        }
        way.push(member);
        at = member;
    };
    let shown: Vec<&str> = circle.iter().copied().take(8).collect();
    f.error_at(
        Code::Contradiction,
        &format!("spec.groups.{}.groups", circle[0]),
        format!(
            "group {} is a member of itself: {} → {}",
            circle[0],
            shown.join(" → "),
            if circle.len() > shown.len() { "…" } else { circle[0] }
        ),
        "Break the circle: a group of groups names groups that do not lead back to it",
    );
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

fn subject(node: &Node, home: &Home, groups: &BTreeMap<String, Group>, f: &mut Findings<'_>) -> Option<Subject> {
    let ways = ["group", "cidrs", "workloads", "spiffeIds", "hosts", "tags"];
    let object = f.object(node, "spec.subject", &ways)?;
    let group = object
        .get("group")
        .and_then(|node| group_name(node, "spec.subject.group", groups, f));
    let cidrs = networks(&object, "cidrs", f);
    if let (Home::Namespace(own), None) = (home, object.get("workloads")) {
        f.error_at(
            Code::Contradiction,
            "spec.subject",
            format!("a ZeroTrustPolicy of namespace {own} governs its pods, and this one names none"),
            "Say which: `workloads: {podSelector: {matchLabels: {app: web}}}`, or leave `metadata.namespace` out",
        );
    }
    let workloads = object.get("workloads").and_then(|node| workloads(node, home, f));
    if object.get("group").is_some() && object.get("cidrs").is_some() {
        f.error_at(
            Code::Contradiction,
            "spec.subject",
            "the subject has both `group` and `cidrs`",
            "Keep one, or put the networks into the group",
        );
    }
    if ways.iter().all(|name| object.get(name).is_none()) {
        f.error_at(
            Code::Contradiction,
            "spec.subject",
            "the subject is empty, so that nobody is governed",
            "Name a `group`, `cidrs`, `workloads`, `spiffeIds`, `hosts` or `tags`",
        );
    }
    Some(Subject {
        group,
        cidrs,
        workloads,
        spiffe_ids: identity::texts(&object, "spiffeIds", f, identity::spiffe),
        hosts: identity::texts(&object, "hosts", f, identity::host),
        tags: identity::tags(&object, f),
    })
}

fn workloads(node: &Node, home: &Home, f: &mut Findings<'_>) -> Option<Workloads> {
    let path = "spec.subject.workloads";
    let object = f.object(
        node,
        path,
        &["namespace", "namespaceSelector", "podSelector", "serviceAccounts"],
    )?;
    let cluster = matches!(home, Home::Cluster);
    let (wrong, right, remedy) = if cluster {
        (
            "namespace",
            "namespaceSelector",
            "Write a `namespaceSelector`, or make the document a ZeroTrustPolicy",
        )
    } else {
        (
            "namespaceSelector",
            "namespace",
            "Write the one `namespace`, or make the document a ClusterZeroTrustPolicy",
        )
    };
    if object.get(wrong).is_some() {
        f.error_at(
            Code::Contradiction,
            &object.path(wrong),
            format!("the workloads of this kind of document are told by `{right}`"),
            remedy,
        );
    }
    let path = object.path("namespace");
    let namespace = match (home, object.get("namespace")) {
        // What is wrong was told.
        _ if cluster || object.get(wrong).is_some() => Some(String::new()),
        (Home::Namespace(own), None) => Some(own.clone()),
        (Home::Namespace(own), Some(node)) => {
            let named = f.name(node, &path);
            if named.as_ref().is_some_and(|named| named != own) {
                f.error(
                    Code::Contradiction,
                    &path,
                    node.position,
                    format!("a ZeroTrustPolicy of namespace {own} governs pods of another one"),
                    "Leave the field out, put the policy into that namespace, or make it a ClusterZeroTrustPolicy",
                );
            }
            named
        }
        (_, Some(node)) => f.name(node, &path),
        (Home::Unknown, None) => None,
        (_, None) => {
            let remedy = "Name the Kubernetes namespace of the pods, here or in `metadata.namespace`";
            object.require("namespace", remedy, f);
            None
        }
    };
    Some(Workloads {
        namespace: namespace?,
        namespace_selector: selector(&object, "namespaceSelector", f),
        pod_selector: selector(&object, "podSelector", f),
        service_accounts: identity::texts(&object, "serviceAccounts", f, identity::account),
    })
}
