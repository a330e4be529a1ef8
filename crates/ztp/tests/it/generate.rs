//! Random documents over a small world, so that rules meet each other often.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use garrison_ztp::document::*;
use proptest::{prelude::*, sample::select};

/// Hosts on the left and right of a router, as the packet test builds them.
pub(crate) const LEFT: [&str; 6] = [
    "10.77.1.2",
    "10.77.1.3",
    "10.77.1.6",
    "fd77:1::2",
    "fd77:1::3",
    "fd77:1::6",
];
pub(crate) const RIGHT: [&str; 6] = [
    "10.77.2.2",
    "10.77.2.3",
    "10.77.2.6",
    "fd77:2::2",
    "fd77:2::3",
    "fd77:2::6",
];

pub(crate) fn hosts() -> Vec<IpAddr> {
    LEFT.iter().chain(&RIGHT).map(|t| t.parse().unwrap()).collect()
}

const NETS: &[&str] = &[
    "10.77.1.0/29",
    "10.77.1.2/31",
    "10.77.1.2",
    "10.77.1.3/32",
    "10.77.1.4/30",
    "10.77.2.0/29",
    "10.77.2.2/31",
    "10.77.2.2/32",
    "10.77.2.3",
    "10.77.2.6",
    "10.77.0.0/16",
    "0.0.0.0/0",
    "192.0.2.0/24",
    "fd77:1::/64",
    "fd77:1::2",
    "fd77:1::2/127",
    "fd77:2::/125",
    "fd77:2::3",
    "::/0",
];

/// A network and parts of it to leave out.
const EXCEPT: &[(&str, &[&str])] = &[
    ("10.77.1.0/24", &["10.77.1.2/31"]),
    ("10.77.0.0/16", &["10.77.1.0/29", "10.77.2.3/32"]),
    ("0.0.0.0/0", &["10.77.2.2", "10.77.2.4/30"]),
    ("fd77:1::/64", &["fd77:1::2/128"]),
    ("::/0", &["fd77:2::/126"]),
];

fn nets() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec(select(NETS).prop_map(str::to_owned), 1..4)
}

fn port() -> impl Strategy<Value = Port> {
    let ported = (
        select(&[Protocol::Tcp, Protocol::Tcp, Protocol::Udp, Protocol::Sctp][..]),
        select(
            &[
                (None, None),
                (Some(1), Some(65535)),
                (Some(1), None),
                (Some(80), None),
                (Some(80), Some(82)),
                (Some(81), Some(443)),
                (Some(443), None),
                (Some(65535), None),
            ][..],
        ),
    )
        .prop_map(|(protocol, (port, end_port))| Port {
            protocol,
            port,
            end_port,
            icmp_type: None,
            icmpv6_type: None,
        });
    prop_oneof![
        8 => ported,
        1 => Just(Port { protocol: Protocol::Icmp, port: None, end_port: None, icmp_type: None, icmpv6_type: None }),
    ]
}

fn label_selector() -> impl Strategy<Value = LabelSelector> {
    let requirement = (
        select(&["app", "env"][..]),
        select(
            &[
                LabelOperator::In,
                LabelOperator::NotIn,
                LabelOperator::Exists,
                LabelOperator::DoesNotExist,
            ][..],
        ),
        prop::collection::btree_set(select(&["x", "y", "z"][..]), 1..3),
    )
        .prop_map(|(key, operator, values)| LabelRequirement {
            key: key.to_owned(),
            operator,
            values: match operator {
                LabelOperator::In | LabelOperator::NotIn => values.into_iter().map(str::to_owned).collect(),
                _ => Vec::new(),
            },
        });
    (
        prop::collection::btree_map(
            select(&["app", "env"][..]).prop_map(str::to_owned),
            select(&["x", "y"][..]).prop_map(str::to_owned),
            0..2,
        ),
        prop::collection::vec(requirement, 0..2),
    )
        .prop_map(|(match_labels, match_expressions)| LabelSelector {
            match_labels,
            match_expressions,
        })
}

/// Peers that both projections can tell: `labels` adds those that only labels can.
fn peer(labels: bool) -> BoxedStrategy<Peer> {
    let by_address = prop_oneof![
        2 => Just(Peer { any: true, ..Peer::default() }),
        4 => select(NETS).prop_map(|net| Peer { cidr: Some(net.to_owned()), ..Peer::default() }),
        2 => select(EXCEPT).prop_map(|(net, except)| Peer {
            cidr: Some(net.to_owned()),
            except: except.iter().map(|e| (*e).to_owned()).collect(),
            ..Peer::default()
        }),
        2 => select(&["both", "plain"][..]).prop_map(|group| Peer { group: Some(group.to_owned()), ..Peer::default() }),
    ];
    if !labels {
        return by_address.boxed();
    }
    let by_labels =
        (prop::option::of(label_selector()), prop::option::of(label_selector())).prop_map(|(pods, namespaces)| Peer {
            pod_selector: if namespaces.is_none() {
                Some(pods.unwrap_or_default())
            } else {
                pods
            },
            namespace_selector: namespaces,
            ..Peer::default()
        });
    prop_oneof![2 => by_address, 3 => by_labels].boxed()
}

#[derive(Debug, Clone)]
struct AnyRule {
    action: Action,
    peers: Vec<Peer>,
    ports: Vec<Port>,
}

fn rules(labels: bool) -> impl Strategy<Value = Option<Vec<AnyRule>>> {
    let action = select(&[Action::Allow, Action::Allow, Action::Deny][..]);
    let rule = action.prop_flat_map(move |action| {
        // Deny rules must be decidable by address where the subject has addresses.
        (
            Just(action),
            prop::collection::vec(peer(labels), 1..3),
            prop::collection::vec(port(), 0..3),
        )
            .prop_map(|(action, peers, ports)| AnyRule { action, peers, ports })
    });
    prop::option::weighted(0.75, prop::collection::vec(rule, 0..4))
}

/// One document. With `labels`, its subject is told by labels alone and peers by either; without, the subject
/// has addresses, and allow peers may have labels that no address projection can use.
pub(crate) fn document(labels: bool) -> impl Strategy<Value = ZeroTrustPolicy> {
    let subject = if labels {
        (select(&["blue", "green"][..]), prop::option::of(label_selector()))
            .prop_map(|(namespace, pod_selector)| Subject {
                workloads: Some(Workloads {
                    namespace: namespace.to_owned(),
                    namespace_selector: None,
                    pod_selector,
                    service_accounts: Vec::new(),
                }),
                ..Subject::default()
            })
            .boxed()
    } else {
        prop_oneof![
            4 => nets().prop_map(|cidrs| Subject { cidrs, ..Subject::default() }),
            1 => Just(Subject { group: Some("both".to_owned()), ..Subject::default() }),
        ]
        .boxed()
    };
    let groups = (nets(), nets(), label_selector()).prop_map(|(both, plain, pods)| {
        BTreeMap::from([
            (
                "both".to_owned(),
                Group {
                    cidrs: both,
                    pod_selector: Some(pods.clone()),
                    namespace_selector: Some(pods),
                    ..Group::default()
                },
            ),
            (
                "plain".to_owned(),
                Group {
                    cidrs: plain,
                    ..Group::default()
                },
            ),
        ])
    });
    (
        subject,
        groups,
        rules(labels),
        rules(labels),
        select(&[Mode::Enforce, Mode::Enforce, Mode::Enforce, Mode::Observe][..]),
        select(&[10u16, 100, 100, 500][..]),
        any::<bool>(),
    )
        .prop_map(|(subject, groups, ingress, egress, mode, tier, which)| {
            let (ingress, egress) = match (ingress, egress) {
                (None, None) if which => (Some(Vec::new()), None),
                (None, None) => (None, Some(Vec::new())),
                some => some,
            };
            let name = |side: &str, i: usize| format!("{side}-{i}");
            ZeroTrustPolicy {
                api_version: API_VERSION.to_owned(),
                kind: KIND.to_owned(),
                metadata: Metadata {
                    namespace: None,
                    name: "p".to_owned(),
                    labels: BTreeMap::new(),
                },
                spec: Spec {
                    mode,
                    tier,
                    owner: None,
                    reason: Some("a \"reason\": with, punctuation #1".to_owned()),
                    ticket: None,
                    trust_levels: BTreeMap::new(),
                    requires: None,
                    groups,
                    subject,
                    ingress: ingress.map(|rules| {
                        (0..)
                            .zip(rules)
                            .map(|(i, r)| IngressRule {
                                name: name("in", i),
                                action: r.action,
                                from: r.peers,
                                ports: r.ports,
                                http: Vec::new(),
                                grpc: Vec::new(),
                                requires: None,
                                valid_from: None,
                                valid_until: None,
                            })
                            .collect()
                    }),
                    egress: egress.map(|rules| {
                        (0..)
                            .zip(rules)
                            .map(|(i, r)| EgressRule {
                                name: name("out", i),
                                action: r.action,
                                to: r.peers,
                                ports: r.ports,
                                http: Vec::new(),
                                grpc: Vec::new(),
                                requires: None,
                                valid_from: None,
                                valid_until: None,
                            })
                            .collect()
                    }),
                },
            }
        })
}

/// Up to `most` documents with different names.
pub(crate) fn documents(labels: bool, most: usize) -> impl Strategy<Value = Vec<ZeroTrustPolicy>> {
    prop::collection::vec(document(labels), 0..=most).prop_map(|mut documents| {
        for (i, document) in documents.iter_mut().enumerate() {
            document.metadata.name = format!("policy-{i}");
        }
        documents
    })
}

/// Documents by label, some of them for every namespace that has certain labels.
pub(crate) fn clusterwide(most: usize) -> impl Strategy<Value = Vec<ZeroTrustPolicy>> {
    let namespaces = prop::option::weighted(0.5, prop::option::weighted(0.9, namespace_selector()));
    (documents(true, most), prop::collection::vec(namespaces, most)).prop_map(|(mut documents, namespaces)| {
        for (document, namespaces) in documents.iter_mut().zip(namespaces) {
            if let (Some(namespaces), Some(workloads)) = (namespaces, &mut document.spec.subject.workloads) {
                document.kind = CLUSTER_KIND.to_owned();
                workloads.namespace = String::new();
                workloads.namespace_selector = namespaces;
            }
        }
        documents
    })
}

/// Namespaces by labels, their name among them.
fn namespace_selector() -> impl Strategy<Value = LabelSelector> {
    let name = (
        select(&[LabelOperator::In, LabelOperator::NotIn, LabelOperator::Exists][..]),
        prop::collection::btree_set(select(&["blue", "green", "red"][..]), 1..3),
    )
        .prop_map(|(operator, values)| LabelRequirement {
            key: "kubernetes.io/metadata.name".to_owned(),
            operator,
            values: match operator {
                LabelOperator::Exists => Vec::new(),
                _ => values.into_iter().map(str::to_owned).collect(),
            },
        });
    (label_selector(), prop::option::weighted(0.4, name)).prop_map(|(mut labels, name)| {
        labels.match_expressions.extend(name);
        labels
    })
}

/// What may be added to a rule beyond addresses, labels and ports.
#[derive(Clone, Debug)]
pub(crate) struct Extra {
    peer: Option<Peer>,
    http: Vec<HttpMatch>,
    grpc: Vec<GrpcMatch>,
    icmp: Option<Port>,
    requires: Option<TrustLevel>,
    until: bool,
}

fn some<T: Clone + std::fmt::Debug + 'static>(from: &'static [T], most: usize) -> impl Strategy<Value = Vec<T>> {
    prop::collection::vec(select(from), 0..=most).prop_map(|list| {
        let mut unique: Vec<T> = Vec::new();
        for item in list {
            if !unique.iter().any(|u| format!("{u:?}") == format!("{item:?}")) {
                unique.push(item);
            }
        }
        unique
    })
}

fn owned(list: Vec<&'static str>) -> Vec<String> {
    list.into_iter().map(str::to_owned).collect()
}

fn http() -> impl Strategy<Value = HttpMatch> {
    (
        some(&["GET", "POST", "DELETE"], 2),
        some(&["shop.test", "*.shop.test", "api.shop.test"], 2),
        some(
            &["/items", "/items/*", "/*", "*.png", "/cart.v1.Cart/*", "/items/7", "*"],
            2,
        ),
    )
        .prop_map(|(methods, hosts, paths)| HttpMatch {
            paths: if methods.is_empty() && hosts.is_empty() && paths.is_empty() {
                vec!["*".to_owned()]
            } else {
                owned(paths)
            },
            methods: owned(methods),
            hosts: owned(hosts),
        })
}

/// `from` says whether the peer opens connections.
pub(crate) fn extra(from: bool) -> impl Strategy<Value = Extra> {
    let peer = prop_oneof![
        3 => some(&["web", "db", "batch"], 2).prop_filter("somebody", |l| !l.is_empty()).prop_map(|accounts| Peer {
            service_accounts: owned(accounts), ..Peer::default()
        }),
        3 => some(&[
            "spiffe://cluster.local/ns/blue/sa/web",
            "spiffe://cluster.local/ns/green/sa/db",
            "spiffe://cluster.local/ns/blue/*",
            "spiffe://other.test/ns/blue/sa/web",
        ], 2).prop_filter("somebody", |l| !l.is_empty()).prop_map(|ids| Peer { spiffe_ids: owned(ids), ..Peer::default() }),
        1 => Just(Peer { hosts: vec!["edge-1".to_owned()], ..Peer::default() }),
        1 => Just(Peer { tags: BTreeMap::from([("tier".to_owned(), "front".to_owned())]), ..Peer::default() }),
        2 => some(&["sre", "dba"], 2).prop_filter("somebody", |l| !l.is_empty()).prop_map(move |groups| if from {
            Peer { iam_groups: owned(groups), ..Peer::default() }
        } else {
            Peer { fqdns: vec!["api.outside.test".to_owned(), "*.wild.test".to_owned()], ..Peer::default() }
        }),
    ];
    let grpc = some(&["Add", "List"], 2).prop_map(|methods| GrpcMatch {
        service: "cart.v1.Cart".to_owned(),
        methods: owned(methods),
    });
    let icmp = select(&[(Some(8), None), (None, Some(128)), (Some(0), Some(129))][..]).prop_map(|(v4, v6)| Port {
        protocol: Protocol::Icmp,
        port: None,
        end_port: None,
        icmp_type: v4,
        icmpv6_type: v6,
    });
    (
        prop::option::weighted(0.4, peer),
        prop_oneof![2 => Just(Vec::new()), 2 => prop::collection::vec(http(), 1..3)],
        prop_oneof![4 => Just(Vec::new()), 1 => prop::collection::vec(grpc, 1..2)],
        prop::option::weighted(0.15, icmp),
        prop::option::weighted(0.3, select(&TrustLevel::ALL[..])),
        prop::bool::weighted(0.1),
    )
        .prop_map(|(peer, http, grpc, icmp, requires, until)| Extra {
            peer,
            http,
            grpc,
            icmp,
            requires,
            until,
        })
}

/// Documents by label with everything that the language has beyond addresses, labels and ports.
pub(crate) fn rich(most: usize) -> impl Strategy<Value = Vec<ZeroTrustPolicy>> {
    let more = (
        prop::collection::vec(extra(true), 4),
        prop::collection::vec(extra(false), 4),
        prop::option::weighted(0.2, select(&TrustLevel::ALL[..])),
        prop::option::weighted(0.2, prop::option::of(namespace_selector())),
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.5),
    );
    (documents(true, most), prop::collection::vec(more, most)).prop_map(|(mut documents, more)| {
        for (document, (ins, outs, requires, cluster, account, stage, plain)) in documents.iter_mut().zip(more) {
            let spec = &mut document.spec;
            if spec.ingress.is_some() {
                spec.requires = requires.filter(|_| !plain);
            }
            if stage {
                spec.mode = Mode::Stage;
            }
            if let Some(workloads) = &mut spec.subject.workloads {
                if account && !plain {
                    workloads.service_accounts = vec!["web".to_owned(), "db".to_owned()];
                }
                if let Some(labels) = cluster {
                    document.kind = CLUSTER_KIND.to_owned();
                    let name = std::mem::take(&mut workloads.namespace);
                    workloads.namespace_selector = Some(labels.unwrap_or_else(|| LabelSelector {
                        match_expressions: vec![LabelRequirement {
                            key: "kubernetes.io/metadata.name".to_owned(),
                            operator: LabelOperator::In,
                            values: BTreeSet::from([name, "green".to_owned()]).into_iter().collect(),
                        }],
                        ..LabelSelector::default()
                    }));
                }
            }
            for (rule, extra) in spec.ingress.iter_mut().flatten().zip(ins) {
                rule.from.extend(extra.peer);
                let speaks = !extra.http.is_empty() || !extra.grpc.is_empty();
                if speaks {
                    rule.ports.retain(|p| p.protocol == Protocol::Tcp);
                } else {
                    rule.ports.extend(extra.icmp);
                }
                (rule.http, rule.grpc) = (extra.http, extra.grpc);
                rule.requires = extra.requires.filter(|_| rule.action == Action::Allow);
                rule.valid_until = extra.until.then(|| "2026-12-01T00:00:00Z".to_owned());
            }
            for (rule, extra) in spec.egress.iter_mut().flatten().zip(outs) {
                rule.to.extend(extra.peer);
                let speaks = !extra.http.is_empty() || !extra.grpc.is_empty();
                if speaks {
                    rule.ports.retain(|p| p.protocol == Protocol::Tcp);
                } else {
                    rule.ports.extend(extra.icmp);
                }
                (rule.http, rule.grpc) = (extra.http, extra.grpc);
                rule.requires = extra.requires.filter(|_| rule.action == Action::Allow);
                rule.valid_until = extra.until.then(|| "2026-12-01T00:00:00Z".to_owned());
            }
        }
        documents
    })
}

/// How many cases a property test runs: `GARRISON_POLICY_CASES`, or so many.
pub(crate) fn cases(ordinarily: u32) -> u32 {
    let asked = std::env::var("GARRISON_POLICY_CASES").ok();
    asked.and_then(|n| n.parse().ok()).unwrap_or(ordinarily)
}

/// A connection between the world's addresses.
pub(crate) fn connection() -> impl Strategy<Value = (IpAddr, IpAddr, u8, u16)> {
    let address = prop_oneof![
        8 => select(hosts()),
        1 => any::<[u8; 4]>().prop_map(IpAddr::from),
        1 => select(vec!["10.77.1.0", "10.77.1.8", "10.77.2.7", "0.0.0.0", "255.255.255.255", "192.0.2.255", "::", "fd77:2::4", "::ffff:10.77.2.3"])
            .prop_map(|t| t.parse().unwrap()),
    ];
    (
        address.clone(),
        address,
        select(&[6u8, 6, 6, 17, 132, 1, 58, 47, 0, 255][..]),
        prop_oneof![
            select(&[0u16, 1, 2, 79, 80, 81, 82, 83, 442, 443, 444, 65534, 65535][..]),
            any::<u16>()
        ],
    )
}

/// The document as text, as people and tools write it.
pub(crate) fn text(document: &ZeroTrustPolicy) -> String {
    serde_saphyr::to_string(document).unwrap()
}
