//! Output for clouds against interpreters of the providers' documentation, never wider than the documents.

use std::net::IpAddr;

use garrison_ztp::{
    Policy,
    compile::{self, AwsQuotas, Compiled, Target, certificates},
    document::Mode,
    ir::lower,
};
use proptest::prelude::*;
use serde_json::Value;

use crate::{
    generate::{connection, documents},
    reference::{By, by_address, decide, denied},
};

#[derive(Clone, Copy)]
struct Packet {
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    port: u16,
}

fn file(compiled: &Compiled, path: &str) -> Option<Value> {
    let file = compiled.files.iter().find(|f| f.path == path)?;
    Some(serde_json::from_str(&file.content).unwrap())
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn among(nets: &Value, address: IpAddr) -> bool {
    let nets: Vec<ipnet::IpNet> = list(nets)
        .iter()
        .map(|n| n.as_str().unwrap().parse().unwrap())
        .collect();
    let v4 = nets.iter().filter(|n| matches!(n, ipnet::IpNet::V4(_))).count();
    assert!(v4 == 0 || v4 == nets.len(), "no provider mixes families in one list");
    nets.iter().any(|net| net.contains(&address))
}

fn in_ports(ports: &Value, port: u16) -> bool {
    list(ports).iter().any(|range| {
        let range = range.as_str().unwrap();
        let (from, to) = range.split_once('-').unwrap_or((range, range));
        (from.parse::<u16>().unwrap()..=to.parse().unwrap()).contains(&port)
    })
}

// Google Cloud: the rule of the lowest priority number decides, denying ones first among equals; ingress is denied
// and egress allowed where none matches.

fn gcp_side(rules: &Value, word: &str, packet: &Packet) -> bool {
    let matching = list(rules).iter().filter(|rule| {
        let protocols = if rule["allowed"].is_array() {
            &rule["allowed"]
        } else {
            &rule["denied"]
        };
        rule["direction"] == word
            && (rule["sourceRanges"].is_null() || among(&rule["sourceRanges"], packet.src))
            && (rule["destinationRanges"].is_null() || among(&rule["destinationRanges"], packet.dst))
            && list(protocols).iter().any(|entry| {
                let number = match entry["IPProtocol"].as_str().unwrap() {
                    "all" => {
                        assert!(entry["ports"].is_null());
                        return true;
                    }
                    "tcp" => 6,
                    "udp" => 17,
                    "sctp" => 132,
                    "icmp" => 1,
                    number => number.parse().unwrap(),
                };
                number == packet.protocol && (entry["ports"].is_null() || in_ports(&entry["ports"], packet.port))
            })
    });
    let first = matching.min_by_key(|rule| (rule["priority"].as_u64().unwrap(), rule["denied"].is_null()));
    match first {
        Some(rule) => rule["denied"].is_null(),
        None => word == "EGRESS",
    }
}

// Firewall policies of Google Cloud: the rule of the lowest priority number decides; `goto_next` leaves it to the next
// level, and so does nothing that matches.

fn gcp_policy_side(rules: &Value, word: &str, packet: &Packet) -> bool {
    let matching = list(rules).iter().filter(|rule| {
        let matcher = &rule["match"];
        let among = |nets: &Value, address| nets.is_null() || among(nets, address);
        rule["direction"] == word
            && among(&matcher["srcIpRanges"], packet.src)
            && among(&matcher["destIpRanges"], packet.dst)
            && list(&matcher["layer4Configs"]).iter().any(|entry| {
                let number = match entry["ipProtocol"].as_str().unwrap() {
                    "all" => {
                        assert!(entry["ports"].is_null());
                        return true;
                    }
                    "tcp" => 6,
                    "udp" => 17,
                    "sctp" => 132,
                    "icmp" => 1,
                    number => number.parse().unwrap(),
                };
                assert!(
                    entry["ports"].is_null() || matches!(number, 6 | 17 | 132),
                    "only these have ports"
                );
                number == packet.protocol && (entry["ports"].is_null() || in_ports(&entry["ports"], packet.port))
            })
    });
    let first = matching.min_by_key(|rule| rule["priority"].as_u64().unwrap()).unwrap();
    match first["action"].as_str().unwrap() {
        "allow" | "goto_next" => true,
        "deny" => false,
        other => panic!("the provider has no action {other}"),
    }
}

fn gcp_policy_passes(compiled: &Compiled, packet: &Packet) -> bool {
    let Some(policy) = file(compiled, "gcp-network-policy/firewall-policy.json") else {
        return true;
    };
    let rules = &policy["rules"];
    let above = file(compiled, "gcp-hierarchical-policy/firewall-policy.json").unwrap();
    assert_eq!(above["rules"], *rules, "both are the same rules");
    let mut priorities: Vec<u64> = list(rules).iter().map(|r| r["priority"].as_u64().unwrap()).collect();
    let count = priorities.len();
    priorities.sort_unstable();
    priorities.dedup();
    assert_eq!(priorities.len(), count, "a policy has each priority once");
    assert_eq!(
        priorities[count - 4..],
        [2_147_483_644, 2_147_483_645, 2_147_483_646, 2_147_483_647]
    );
    assert!(
        list(rules)
            .iter()
            .all(|rule| rule["ruleName"].as_str().unwrap().len() <= 63)
    );
    gcp_policy_side(rules, "EGRESS", packet) && gcp_policy_side(rules, "INGRESS", packet)
}

fn gcp_passes(compiled: &Compiled, packet: &Packet) -> bool {
    let Some(rules) = file(compiled, "gcp/firewalls.json") else {
        return true;
    };
    let mut names: Vec<&str> = list(&rules).iter().map(|rule| rule["name"].as_str().unwrap()).collect();
    assert!(
        names
            .iter()
            .all(|n| n.len() <= 63 && n.starts_with(|c: char| c.is_ascii_lowercase()) && !n.ends_with('-'))
    );
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count, "a name twice");
    gcp_side(&rules, "EGRESS", packet) && gcp_side(&rules, "INGRESS", packet)
}

// Azure: the rule of the lowest priority number decides.

fn azure_passes(compiled: &Compiled, packet: &Packet) -> bool {
    let Some(group) = file(compiled, "azure/network-security-group.json") else {
        return true;
    };
    azure_group_passes(&group, &Value::Null, packet)
}

/// Every interface with an address of a group is in it.
fn azure_groups_pass(compiled: &Compiled, packet: &Packet) -> bool {
    let Some(group) = file(compiled, "azure-application-groups/network-security-group.json") else {
        return true;
    };
    let groups = file(compiled, "azure-application-groups/application-security-groups.json").unwrap();
    assert!(list(&groups).len() <= 100);
    azure_group_passes(&group, &groups, packet)
}

fn azure_group_passes(group: &Value, application: &Value, packet: &Packet) -> bool {
    let member = |ids: &Value, address: IpAddr| {
        let mut ids = list(ids).iter().map(|id| id["id"].as_str().unwrap());
        ids.any(|id| {
            let name = id.rsplit('/').next().unwrap();
            let known = list(application)
                .iter()
                .find(|g| g["name"] == name)
                .expect("a group that is written");
            let nets = list(&known["addresses"]).iter();
            nets.map(|net| net.as_str().unwrap().parse::<ipnet::IpNet>().unwrap())
                .any(|net| net.contains(&address))
        })
    };
    ["Outbound", "Inbound"].into_iter().all(|word| {
        let mut rules: Vec<&Value> = list(&group["properties"]["securityRules"])
            .iter()
            .map(|rule| &rule["properties"])
            .filter(|rule| rule["direction"] == word)
            .collect();
        rules.sort_by_key(|rule| rule["priority"].as_u64().unwrap());
        for pair in rules.windows(2) {
            assert_ne!(
                pair[0]["priority"], pair[1]["priority"],
                "Azure refuses equal priorities"
            );
        }
        let side = |rule: &Value, side: &str, address| {
            let (one, many) = (
                &rule[format!("{side}AddressPrefix")],
                &rule[format!("{side}AddressPrefixes")],
            );
            let groups = &rule[format!("{side}ApplicationSecurityGroups")];
            let told = [one, many, groups].iter().filter(|value| !value.is_null()).count();
            assert_eq!(told, 1, "Azure takes one of these");
            match one.as_str() {
                Some(star) => {
                    assert_eq!(star, "*");
                    true
                }
                None if groups.is_null() => among(many, address),
                None => member(groups, address),
            }
        };
        let hit = rules.into_iter().find(|rule| {
            let protocol = match rule["protocol"].as_str().unwrap() {
                "*" => true,
                "Tcp" => packet.protocol == 6,
                "Udp" => packet.protocol == 17,
                "Icmp" => packet.protocol == 1,
                "Esp" => packet.protocol == 50,
                "Ah" => packet.protocol == 51,
                other => panic!("Azure has no protocol {other}"),
            };
            assert_eq!(rule["sourcePortRange"], "*");
            let any_port =
                rule["destinationPortRange"] == "*" || rule["destinationPortRanges"] == serde_json::json!(["*"]);
            let priority = rule["priority"].as_u64().unwrap();
            assert!((100..=4_096).contains(&priority));
            protocol
                && (any_port || in_ports(&rule["destinationPortRanges"], packet.port))
                && side(rule, "source", packet.src)
                && side(rule, "destination", packet.dst)
        });
        hit.expect("the last rule matches everything")["access"] == "Allow"
    })
}

// AWS: an interface has the groups of its address, five at most; what no permission of any matches is denied.

fn aws_passes(compiled: &Compiled, packet: &Packet) -> bool {
    let Some(groups) = file(compiled, "aws/security-groups.json") else {
        return true;
    };
    let groups_of = |address: IpAddr| {
        let with = list(&groups).iter().filter(|group| {
            let nets = list(&group["Addresses"]);
            nets.iter()
                .any(|n| n.as_str().unwrap().parse::<ipnet::IpNet>().unwrap().contains(&address))
        });
        let with: Vec<&Value> = with.collect();
        assert!(with.len() <= 5, "an interface can have five groups");
        for group in &with {
            assert_eq!(
                group["Addresses"], with[0]["Addresses"],
                "two policies' groups have {address}"
            );
            for direction in ["IpPermissions", "IpPermissionsEgress"] {
                let count = |key: &str| {
                    list(&group[direction])
                        .iter()
                        .map(|rule| list(&rule[key]).len())
                        .sum::<usize>()
                };
                let named = count("UserIdGroupPairs");
                assert!(
                    named + count("IpRanges").max(count("Ipv6Ranges")) <= 60,
                    "a group can have 60 rules"
                );
            }
        }
        with
    };
    let permits = |permissions: &Value, peer: IpAddr| {
        list(permissions).iter().any(|permission| {
            let ranges: Vec<ipnet::IpNet> = list(&permission["IpRanges"])
                .iter()
                .map(|r| r["CidrIp"].as_str().unwrap().parse().unwrap())
                .chain(
                    list(&permission["Ipv6Ranges"])
                        .iter()
                        .map(|r| r["CidrIpv6"].as_str().unwrap().parse().unwrap()),
                )
                .collect();
            let (from, to) = (permission["FromPort"].as_i64(), permission["ToPort"].as_i64());
            let ported = |number: u8| {
                number == packet.protocol && (from.unwrap()..=to.unwrap()).contains(&i64::from(packet.port))
            };
            let protocol = match permission["IpProtocol"].as_str().unwrap() {
                "-1" => true,
                "tcp" => ported(6),
                "udp" => ported(17),
                "icmp" => {
                    assert_eq!((from, to), (Some(-1), Some(-1)));
                    packet.protocol == 1
                }
                "icmpv6" => packet.protocol == 58,
                number => {
                    // Ports beside other protocols are ignored: all ports are open.
                    number.parse::<u8>().unwrap() == packet.protocol
                }
            };
            protocol && ranges.iter().any(|net| net.contains(&peer))
        })
    };
    let side = |own: IpAddr, key: &str, peer: IpAddr| {
        let groups = groups_of(own);
        groups.is_empty() || groups.iter().any(|group| permits(&group[key], peer))
    };
    side(packet.src, "IpPermissionsEgress", packet.dst) && side(packet.dst, "IpPermissions", packet.src)
}

// AWS network ACLs: the first entry that matches a packet decides, and none is a denial. Answers are packets too.

fn acl_side(acl: &Value, egress: bool, peer: IpAddr, protocol: u8, port: u16) -> bool {
    let mut entries: Vec<&Value> = list(&acl["Entries"]).iter().filter(|e| e["Egress"] == egress).collect();
    assert!(entries.len() <= 20, "the provider takes 20 entries");
    entries.sort_by_key(|e| e["RuleNumber"].as_u64().unwrap());
    let hit = entries.into_iter().find(|entry| {
        let net = entry["CidrBlock"].as_str().or(entry["Ipv6CidrBlock"].as_str()).unwrap();
        let ranged = &entry["PortRange"];
        let in_range = |number: u8| {
            let end = |name: &str| ranged[name].as_u64().unwrap();
            number == protocol && (end("From")..=end("To")).contains(&u64::from(port))
        };
        let spoken = match entry["Protocol"].as_str().unwrap() {
            "-1" => true,
            "6" => in_range(6),
            "17" => in_range(17),
            number => {
                assert!(ranged.is_null());
                number.parse::<u8>().unwrap() == protocol
            }
        };
        spoken && net.parse::<ipnet::IpNet>().unwrap().contains(&peer)
    });
    hit.is_some_and(|entry| entry["RuleAction"] == "allow")
}

fn aws_acl_passes(compiled: &Compiled, packet: &Packet) -> bool {
    let groups = aws_passes(compiled, packet);
    let Some(acls) = file(compiled, "aws/network-acls.json") else {
        return groups;
    };
    let acl_of = |address: IpAddr| {
        list(&acls).iter().find(|acl| {
            let nets = list(&acl["Addresses"]).iter();
            nets.map(|n| n.as_str().unwrap().parse::<ipnet::IpNet>().unwrap())
                .any(|net| net.contains(&address))
        })
    };
    // A client's port; answers come back to it.
    let client = 40_000;
    let source = acl_of(packet.src).is_none_or(|acl| {
        acl_side(acl, true, packet.dst, packet.protocol, packet.port)
            && acl_side(acl, false, packet.dst, packet.protocol, client)
    });
    let destination = acl_of(packet.dst).is_none_or(|acl| {
        acl_side(acl, false, packet.src, packet.protocol, packet.port)
            && acl_side(acl, true, packet.src, packet.protocol, client)
    });
    assert!(
        !groups || (source && destination),
        "the ACL holds back what the groups allow: {} → {} {}/{}",
        packet.src,
        packet.dst,
        packet.protocol,
        packet.port
    );
    groups && source && destination
}

type Interpreter = fn(&Compiled, &Packet) -> bool;
const CLOUDS: [(Target, Interpreter); 6] = [
    (Target::AwsNetworkAcl, aws_acl_passes),
    (Target::Gcp, gcp_passes),
    (Target::GcpFirewallPolicy, gcp_policy_passes),
    (Target::Azure, azure_passes),
    (Target::AzureApplicationGroups, azure_groups_pass),
    (Target::Aws, aws_passes),
];

proptest! {
    // 1,200 sets of policies × 4 outputs × 24 connections.
    #![proptest_config(ProptestConfig { cases: crate::generate::cases(1_200), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn never_wider_and_equal_without_gaps(
        documents in documents(false, 4),
        connections in prop::collection::vec(connection(), 24),
    ) {
        let lowered: Vec<Policy> = documents.iter().map(|d| lower(d, 7)).collect();
        let enforced: Vec<_> = documents.iter().filter(|d| d.spec.mode == Mode::Enforce).collect();
        for (target, passes) in CLOUDS {
            let compiled = target.compile(&lowered, |_| None);
            let exact = compiled.gaps.iter().all(|gap| gap.reason.contains("mode observe"));
            if compiled.gaps.iter().any(|gap| gap.rule == "*") {
                // Refused: what is in place stays.
                prop_assert!(compiled.files.is_empty());
                continue;
            }
            for (src, dst, protocol, port) in &connections {
                let packet = Packet { src: src.to_canonical(), dst: dst.to_canonical(), protocol: *protocol, port: *port };
                if packet.src == packet.dst || packet.src.is_ipv4() != packet.dst.is_ipv4() {
                    continue;
                }
                let (src, dst) = (by_address(packet.src), by_address(packet.dst));
                let intended = !denied(&decide(&enforced, &src, &dst, *protocol, *port, By::Address));
                let passed = passes(&compiled, &packet);
                let shown = format!("{target:?}: {} → {} {protocol}/{port}\n{compiled:#?}", packet.src, packet.dst);
                prop_assert!(!passed || intended, "wider: {}", shown);
                prop_assert!(!exact || passed == intended, "narrower without a gap: {}", shown);
            }
        }
    }

    #[test]
    fn a_certificate_names_a_target_that_has_no_gap_there(documents in documents(true, 3)) {
        let lowered: Vec<Policy> = documents.iter().map(|d| lower(d, 7)).collect();
        for target in [Target::Kubernetes, Target::Cilium, Target::ClusterNetworkPolicy] {
            let compiled = target.compile(&lowered, |_| None);
            let certificates = certificates(&lowered, target, &compiled);
            prop_assert_eq!(certificates.len(), compiled.gaps.len());
            for certificate in certificates {
                let observed = certificate.gap.reason.contains("mode observe");
                let nobody = certificate.gap.reason.contains("no pod has them");
                // Calico can say everything that labels can.
                prop_assert_eq!(certificate.closed_by.is_none(), observed || nobody, "{:?}", certificate);
                if let Some(other) = certificate.closed_by {
                    prop_assert!(other != target);
                    let there = other.compile(&lowered, |_| None);
                    prop_assert!(there.gaps.iter().all(|g| g.rule != certificate.gap.rule));
                }
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_as_a_whole() {
    let rules: String = (0..1_500)
        .map(|i| {
            format!(
                "    - {{name: r{i}, from: [{{cidr: 10.{}.{}.0/24}}], ports: [{{protocol: TCP, port: {}}}]}}\n",
                i / 250,
                i % 250,
                i + 1
            )
        })
        .collect();
    let text = format!(
        "apiVersion: garrison.dev/v1alpha1\nkind: ZeroTrustPolicy\nmetadata: {{name: many}}\nspec:\n  mode: enforce\n  subject: {{cidrs: [192.0.2.0/24]}}\n  ingress:\n{rules}"
    );
    let checked = garrison_ztp::check(&text);
    assert!(checked.is_valid(), "{:?}", checked.diagnostics);
    let lowered = [checked.documents[0].lower(1)];
    // The network ACLs come with the groups, or not at all.
    for (target, _) in CLOUDS
        .into_iter()
        .filter(|(target, _)| *target != Target::AwsNetworkAcl)
    {
        let compiled = target.compile(&lowered, |_| None);
        assert!(compiled.files.is_empty(), "{target:?}");
        assert!(
            compiled.gaps[0].reason.contains("keep the rules that are in place"),
            "{:?}",
            compiled.gaps
        );
    }
}

#[test]
fn more_rules_than_a_group_can_have_are_those_of_several() {
    let policy = |count: usize| {
        let rules: String = (0..count)
            .map(|i| format!("    - {{name: r{i}, from: [{{cidr: 10.0.{i}.0/24}}, {{cidr: \"2001:db8:{i}::/48\"}}], ports: [{{protocol: TCP, port: {}}}]}}\n", i + 1))
            .collect();
        let text = format!(
            "apiVersion: garrison.dev/v1alpha1\nkind: ZeroTrustPolicy\nmetadata: {{name: many}}\nspec:\n  mode: enforce\n  subject: {{cidrs: [192.0.2.0/24]}}\n  ingress:\n{rules}"
        );
        [garrison_ztp::check(&text).documents[0].lower(1)]
    };
    let passes = |compiled: &Compiled, i: u8, port: u16| {
        let (src, dst) = (IpAddr::from([10, 0, i, 1]), IpAddr::from([192, 0, 2, 1]));
        aws_passes(
            compiled,
            &Packet {
                src,
                dst,
                protocol: 6,
                port,
            },
        )
    };
    let compiled = compile::aws(&policy(150), &AwsQuotas::default());
    let groups = file(&compiled, "aws/security-groups.json").unwrap();
    let names: Vec<&str> = list(&groups)
        .iter()
        .map(|group| group["GroupName"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["garrison-1", "garrison-1-part-2", "garrison-1-part-3"]);
    for i in 0..150 {
        assert!(passes(&compiled, i, u16::from(i) + 1) && !passes(&compiled, i, u16::from(i) + 2));
    }
    // Five groups of 60 rules are all that an interface of a new account can have.
    assert!(
        !compile::aws(&policy(250), &AwsQuotas { rules: 50, groups: 5 })
            .files
            .is_empty()
    );
    let refused = compile::aws(&policy(250), &AwsQuotas { rules: 50, groups: 4 });
    assert!(refused.files.is_empty());
    assert!(
        refused.gaps[0]
            .reason
            .contains("many@1 needs 5 groups of 50 rules each where an interface can have 4"),
        "{:?}",
        refused.gaps
    );
}

#[test]
fn whoever_is_allowed_is_told_by_group_and_whoever_is_denied_by_address() {
    let text = "apiVersion: garrison.dev/v1alpha1
kind: ZeroTrustPolicy
metadata: {name: web}
spec: {mode: enforce, subject: {cidrs: [10.0.1.0/24]}, ingress: []}
---
apiVersion: garrison.dev/v1alpha1
kind: ZeroTrustPolicy
metadata: {name: db}
spec:
  mode: enforce
  subject: {cidrs: [10.0.2.0/24]}
  ingress:
    - {name: web, from: [{cidr: 10.0.1.0/24}], ports: [{protocol: TCP, port: 5432}]}
    - {name: not-ssh, action: deny, from: [{cidr: 10.0.1.0/24}], ports: [{protocol: TCP, port: 22}]}
";
    let checked = garrison_ztp::check(text);
    let lowered: Vec<Policy> = checked.documents.iter().map(|d| d.lower(1)).collect();
    let compiled = compile::azure_application_groups(&lowered);
    assert_eq!(compiled.gaps, []);
    let group = file(&compiled, "azure-application-groups/network-security-group.json").unwrap();
    let rule = |name: &str| {
        let mut rules = list(&group["properties"]["securityRules"]).iter();
        &rules.find(|rule| rule["name"] == name).unwrap()["properties"]
    };
    let named = |ids: &Value| ids[0]["id"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
    let (allows, denies) = (rule("garrison-00001-db-web"), rule("garrison-00000-db-not-ssh"));
    assert_eq!(named(&allows["sourceApplicationSecurityGroups"]), "garrison-web");
    assert_eq!(named(&allows["destinationApplicationSecurityGroups"]), "garrison-db");
    assert_eq!(denies["sourceAddressPrefixes"], serde_json::json!(["10.0.1.0/24"]));
    assert_eq!(named(&denies["destinationApplicationSecurityGroups"]), "garrison-db");
}

#[test]
fn terraform_says_the_same_as_the_api_bodies() {
    let text = "apiVersion: garrison.dev/v1alpha1
kind: ZeroTrustPolicy
metadata: {name: web}
spec:
  mode: enforce
  subject: {cidrs: [10.0.1.0/24, 'fd00:1::/64']}
  ingress:
    - {name: https, from: [{any: true}], ports: [{protocol: TCP, port: 443}]}
    - {name: guests, action: deny, from: [{cidr: 10.9.0.0/16}]}
";
    let checked = garrison_ztp::check(text);
    let lowered = [checked.documents[0].lower(2)];
    let gcp = compile::gcp(&lowered);
    assert_eq!(gcp.gaps, []);
    let terraform = file(&gcp, "gcp/garrison.tf.json").unwrap();
    let rule = &terraform["resource"]["google_compute_firewall"]["garrison_00000_web_guests"];
    assert_eq!(rule["deny"], serde_json::json!([{ "protocol": "all" }]));
    assert_eq!(rule["source_ranges"], serde_json::json!(["10.9.0.0/16"]));
    assert_eq!(rule["destination_ranges"], serde_json::json!(["10.0.1.0/24"]));
    assert_eq!(rule["description"], "ZeroTrustPolicy web@2 guests (spec.ingress[1])");
    let bodies = file(&gcp, "gcp/firewalls.json").unwrap();
    let resources = terraform["resource"]["google_compute_firewall"].as_object().unwrap();
    assert_eq!(resources.len(), list(&bodies).len());

    let azure = compile::azure(&lowered);
    let terraform = file(&azure, "azure/garrison.tf.json").unwrap();
    let rule = &terraform["resource"]["azurerm_network_security_rule"]["garrison_00001_web_https"];
    assert_eq!(rule["access"], "Allow");
    assert_eq!(rule["destination_port_ranges"], serde_json::json!(["443"]));
    assert_eq!(rule["priority"], 101);

    let policy = compile::gcp_firewall_policy(&lowered);
    assert_eq!(policy.gaps, []);
    let bodies = file(&policy, "gcp-network-policy/firewall-policy.json").unwrap();
    assert_eq!(bodies["name"], "garrison");
    for (folder, resource) in [
        (
            "gcp-network-policy",
            "google_compute_network_firewall_policy_with_rules",
        ),
        ("gcp-hierarchical-policy", "google_compute_firewall_policy_with_rules"),
    ] {
        let terraform = file(&policy, &format!("{folder}/garrison.tf.json")).unwrap();
        let rules = list(&terraform["resource"][resource]["garrison"]["rule"]);
        // The provider has the last four itself.
        assert_eq!(rules.len() + 4, list(&bodies["rules"]).len());
        for (rule, body) in rules.iter().zip(list(&bodies["rules"])) {
            for (key, other) in [
                ("priority", "priority"),
                ("direction", "direction"),
                ("action", "action"),
            ] {
                assert_eq!(rule[key], body[other]);
            }
            assert_eq!(rule["match"]["src_ip_ranges"], body["match"]["srcIpRanges"]);
            assert_eq!(rule["match"]["dest_ip_ranges"], body["match"]["destIpRanges"]);
        }
        assert_eq!(rules[0]["action"], "deny");
        assert_eq!(
            rules[0]["description"],
            "ZeroTrustPolicy web@2 guests (spec.ingress[1])"
        );
        assert_eq!(
            rules[1]["match"]["layer4_config"],
            serde_json::json!([{ "ip_protocol": "tcp", "ports": ["443"] }])
        );
    }

    let groups = compile::azure_application_groups(&lowered);
    assert_eq!(groups.gaps, []);
    let terraform = file(&groups, "azure-application-groups/garrison.tf.json").unwrap();
    let rule = &terraform["resource"]["azurerm_network_security_rule"]["garrison_00001_web_https"];
    let reference = serde_json::json!(["${azurerm_application_security_group.garrison_web.id}"]);
    assert_eq!(rule["destination_application_security_group_ids"], reference);
    assert_eq!(rule["source_address_prefixes"], serde_json::json!(["0.0.0.0/0"]));
    assert!(rule["destination_address_prefixes"].is_null());
    let members = &terraform["resource"]["azurerm_network_interface_application_security_group_association"];
    assert_eq!(
        members["garrison_web"]["for_each"],
        "${toset(lookup(var.interfaces, \"garrison-web\", []))}"
    );

    let aws = compile::aws(&lowered, &AwsQuotas::default());
    let terraform = file(&aws, "aws/garrison.tf.json").unwrap();
    let group = &terraform["resource"]["aws_security_group"]["garrison_1"];
    assert_eq!(group["ingress"][0]["from_port"], 443);
    assert_eq!(group["ingress"][0]["ipv6_cidr_blocks"], serde_json::json!(["::/0"]));
    assert_eq!(group["ingress"][0]["cidr_blocks"][0], "0.0.0.0/5", "without the guests");
    assert_eq!(
        group["egress"][0]["protocol"], "-1",
        "the policy says nothing about egress"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: crate::generate::cases(60), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn imported_groups_allow_what_the_provider_would(
        documents in documents(false, 3),
        connections in prop::collection::vec(connection(), 24),
    ) {
        let lowered: Vec<Policy> = documents.iter().map(|d| lower(d, 7)).collect();
        let compiled = compile::aws(&lowered, &AwsQuotas::default());
        let Some(groups) = compiled.files.iter().find(|f| f.path == "aws/security-groups.json") else {
            return Ok(());
        };
        let mut exact = true;
        let mut imported = Vec::new();
        for group in garrison_ztp::security_group::read(&groups.content).unwrap() {
            let (mut document, left_out) = group.document(&group.addresses);
            exact &= left_out.is_empty();
            document.spec.mode = Mode::Enforce;
            imported.push(lower(&document, 1));
        }
        let engine = garrison_ztp::Engine::build(&imported).unwrap();
        for (src, dst, protocol, port) in connections {
            // The language has no port 0.
            if src.to_canonical() == dst.to_canonical() || port == 0 || src.to_canonical().is_ipv4() != dst.to_canonical().is_ipv4() {
                continue;
            }
            let packet = Packet { src: src.to_canonical(), dst: dst.to_canonical(), protocol, port };
            let passed = aws_passes(&compiled, &packet);
            let allowed = engine.decide(src, dst, protocol, port).enforced.verdict() != garrison_ztp::Verdict::Deny;
            prop_assert!(!allowed || passed, "wider: {} → {} {}/{}\n{}", src, dst, protocol, port, groups.content);
            prop_assert!(!exact || allowed == passed, "narrower: {} → {} {}/{}\n{}", src, dst, protocol, port, groups.content);
        }
    }
}
