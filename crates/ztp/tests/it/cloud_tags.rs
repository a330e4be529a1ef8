//! Subjects and peers by tag on clouds, against a reading of the documents by address and tag.

use std::{collections::BTreeMap, net::IpAddr};

use garrison_ztp::{
    Policy, check,
    compile::{Compiled, Target},
};
use proptest::{prelude::*, sample::select};
use serde_json::{Value, json};

type Tags = BTreeMap<String, String>;

#[derive(Clone, Debug)]
struct Endpoint {
    address: IpAddr,
    tags: Tags,
}

fn tags(text: &str) -> Tags {
    let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn carries(endpoint: &Endpoint, tags: &Tags) -> bool {
    tags.iter().all(|(key, value)| endpoint.tags.get(key) == Some(value))
}

fn within(nets: &Value, address: IpAddr) -> bool {
    nets.as_array().unwrap().iter().any(|net| {
        net.as_str()
            .unwrap()
            .parse::<ipnet::IpNet>()
            .unwrap()
            .contains(&address)
    })
}

// The documents, read as they are written.

fn governs(spec: &Value, endpoint: &Endpoint) -> bool {
    let subject = &spec["subject"];
    if subject["cidrs"].is_array() {
        return within(&subject["cidrs"], endpoint.address);
    }
    carries(endpoint, &serde_json::from_value(subject["tags"].clone()).unwrap())
}

fn is_peer(peer: &Value, endpoint: &Endpoint) -> bool {
    if peer["any"] == true {
        return true;
    }
    if peer["cidr"].is_string() {
        return within(&json!([peer["cidr"]]), endpoint.address);
    }
    carries(endpoint, &serde_json::from_value(peer["tags"].clone()).unwrap())
}

/// Whether a side lets it pass.
fn side(specs: &[Value], own: &Endpoint, other: &Endpoint, port: u16, (rules, peers): (&str, &str)) -> bool {
    let mut governing: Vec<&Value> = specs
        .iter()
        .filter(|s| s[rules].is_array() && governs(s, own))
        .collect();
    if governing.is_empty() {
        return true;
    }
    governing.sort_by_key(|spec| spec["tier"].as_u64().unwrap());
    let mut tiers: Vec<u64> = governing.iter().map(|spec| spec["tier"].as_u64().unwrap()).collect();
    tiers.dedup();
    for tier in tiers {
        for action in ["deny", "allow"] {
            let here = governing.iter().filter(|spec| spec["tier"] == tier);
            let matching = here.flat_map(|spec| spec[rules].as_array().unwrap()).any(|rule| {
                rule["action"] == action
                    && rule[peers].as_array().unwrap().iter().any(|peer| is_peer(peer, other))
                    && rule["ports"]
                        .as_array()
                        .is_none_or(|ports| ports.iter().any(|p| p["port"] == port))
            });
            if matching {
                return action == "allow";
            }
        }
    }
    false
}

// The providers' output, read as they document it.

fn file(compiled: &Compiled, path: &str) -> Value {
    let file = compiled.files.iter().find(|f| f.path == path);
    file.map(|f| serde_json::from_str(&f.content).unwrap())
        .unwrap_or_default()
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn has_secure(list: &Value, endpoint: &Endpoint) -> bool {
    items(list).any(|tag| {
        let name = tag["name"].as_str().unwrap().strip_prefix("TAG_PARENT/").unwrap();
        let (key, value) = name.split_once('/').unwrap();
        endpoint.tags.get(key).map(String::as_str) == Some(value)
    })
}

fn spoken(port: &Value, number: u16) -> bool {
    let text = port.as_str().unwrap();
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    text == "*" || (from.parse::<u16>().unwrap()..=to.parse().unwrap()).contains(&number)
}

fn google(files: &[Value], own: &Endpoint, other: &Endpoint, port: u16, ingress: bool) -> bool {
    let policy = &files[0];
    let (word, mine, theirs) = if ingress {
        ("INGRESS", "destIpRanges", "srcIpRanges")
    } else {
        ("EGRESS", "srcIpRanges", "destIpRanges")
    };
    let first = items(&policy["rules"])
        .filter(|rule| {
            let matcher = &rule["match"];
            let ranges = |key: &str, address| matcher[key].is_null() || within(&matcher[key], address);
            rule["direction"] == word
                && (rule["targetSecureTags"].is_null() || has_secure(&rule["targetSecureTags"], own))
                && (matcher["srcSecureTags"].is_null() || has_secure(&matcher["srcSecureTags"], other))
                && ranges(mine, own.address)
                && ranges(theirs, other.address)
                && items(&matcher["layer4Configs"]).any(|entry| {
                    let protocol = entry["ipProtocol"] == "all" || entry["ipProtocol"] == "tcp";
                    protocol && (entry["ports"].is_null() || items(&entry["ports"]).any(|p| spoken(p, port)))
                })
        })
        .min_by_key(|rule| rule["priority"].as_u64());
    first.is_none_or(|rule| rule["action"] != "deny")
}

fn azure(files: &[Value], own: &Endpoint, other: &Endpoint, port: u16, ingress: bool) -> bool {
    let (groups, body) = (&files[0], &files[1]);
    let belongs = |id: &str, endpoint: &Endpoint| {
        let group = items(groups)
            .find(|group| id.ends_with(&format!("/{}", group["name"].as_str().unwrap())))
            .unwrap();
        if group["carries"].is_object() {
            return carries(endpoint, &serde_json::from_value(group["carries"].clone()).unwrap());
        }
        within(&group["addresses"], endpoint.address)
    };
    let (word, mine, theirs) = if ingress {
        ("Inbound", "destination", "source")
    } else {
        ("Outbound", "source", "destination")
    };
    let first = items(&body["properties"]["securityRules"])
        .map(|rule| &rule["properties"])
        .filter(|rule| {
            let is = |side: &str, endpoint: &Endpoint| {
                if rule[format!("{side}AddressPrefix")] == "*" {
                    return true;
                }
                let by_group = &rule[format!("{side}ApplicationSecurityGroups")];
                if by_group.is_array() {
                    return items(by_group).any(|group| belongs(group["id"].as_str().unwrap(), endpoint));
                }
                within(&rule[format!("{side}AddressPrefixes")], endpoint.address)
            };
            let ports = items(&rule["destinationPortRanges"]).any(|p| spoken(p, port));
            rule["direction"] == word
                && is(mine, own)
                && is(theirs, other)
                && (rule["protocol"] == "*" || rule["protocol"] == "Tcp")
                && (ports || rule["destinationPortRange"] == "*")
        })
        .min_by_key(|rule| rule["priority"].as_u64());
    first.is_none_or(|rule| rule["access"] == "Allow")
}

fn amazon(files: &[Value], own: &Endpoint, other: &Endpoint, port: u16, ingress: bool) -> bool {
    let groups = &files[0];
    let carried = |group: &Value, endpoint: &Endpoint| {
        let tags: Option<Tags> = serde_json::from_value(group["Carries"].clone()).unwrap();
        tags.is_some_and(|tags| carries(endpoint, &tags))
    };
    // Marks let nobody in; what governs is one group, or several that add up.
    let mark = |group: &&Value| group["GroupName"].as_str().unwrap().starts_with("garrison-tag-");
    let mine: Vec<&Value> = items(groups)
        .filter(|group| !mark(group) && (within(&group["Addresses"], own.address) || carried(group, own)))
        .collect();
    let marks = items(groups).filter(|group| mark(group) && carried(group, own)).count();
    assert!(mine.len() + marks <= 5, "{groups:#}");
    if mine.is_empty() {
        return true;
    }
    let key = if ingress {
        "IpPermissions"
    } else {
        "IpPermissionsEgress"
    };
    mine.iter().flat_map(|group| items(&group[key])).any(|rule| {
        let speaks = match rule["IpProtocol"].as_str().unwrap() {
            "-1" => true,
            "tcp" => (rule["FromPort"].as_u64().unwrap()..=rule["ToPort"].as_u64().unwrap()).contains(&port.into()),
            _ => false,
        };
        let net = |range: &Value| within(&json!([range["CidrIp"]]), other.address);
        let named = |pair: &Value| items(groups).any(|g| g["GroupName"] == pair["GroupName"] && carried(g, other));
        speaks && (items(&rule["IpRanges"]).any(net) || items(&rule["UserIdGroupPairs"]).any(named))
    })
}

fn some_tags() -> impl Strategy<Value = Value> {
    select(vec!["role=web", "role=db", "env=prod", "role=web,env=prod"]).prop_map(|text| json!(tags(text)))
}

fn some_net() -> impl Strategy<Value = &'static str> {
    select(vec!["10.77.1.1/32", "10.77.1.0/30", "10.77.0.0/16"])
}

fn peer() -> impl Strategy<Value = Value> {
    prop_oneof![
        2 => some_tags().prop_map(|tags| json!({"tags": tags})),
        1 => some_net().prop_map(|net| json!({"cidr": net})),
        1 => Just(json!({"any": true})),
    ]
}

fn rules(peers: &'static str) -> impl Strategy<Value = Value> {
    let rule = (
        select(vec!["allow", "allow", "deny"]),
        prop::collection::vec(peer(), 1..3),
        any::<bool>(),
    );
    prop::collection::vec(rule, 0..4).prop_map(move |rules| {
        let written = rules.into_iter().enumerate().map(|(i, (action, all, port))| {
            let mut rule = json!({"name": format!("{peers}-{i}"), "action": action, peers: all});
            // Tags have no addresses: for flows, such a rule denies everyone, which the checker takes if it says so.
            if port {
                rule["ports"] = json!([{"protocol": "TCP", "port": 80}]);
            }
            rule
        });
        Value::Array(written.collect())
    })
}

fn spec() -> impl Strategy<Value = Value> {
    let subject = prop_oneof![
        2 => some_tags().prop_map(|tags| json!({"tags": tags})),
        1 => some_net().prop_map(|net| json!({"cidrs": [net]})),
    ];
    (
        subject,
        rules("from"),
        prop::option::of(rules("to")),
        select(vec![10, 100]),
    )
        .prop_map(|(subject, ingress, egress, tier)| {
            let mut spec = json!({"mode": "enforce", "tier": tier, "subject": subject, "ingress": ingress});
            if let Some(egress) = egress {
                spec["egress"] = egress;
            }
            spec
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: crate::generate::cases(150), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn by_tag_never_wider_and_equal_without_gaps(specs in prop::collection::vec(spec(), 1..4)) {
        let mut lowered: Vec<Policy> = Vec::new();
        let mut kept = Vec::new();
        for (i, spec) in specs.iter().enumerate() {
            let text = json!({"apiVersion": "garrison.dev/v1alpha1", "kind": "ZeroTrustPolicy", "metadata": {"name": format!("p{i}")}, "spec": spec}).to_string();
            let checked = check(&text);
            // A deny rule for tags is refused where flows are judged by address.
            if let Some(document) = checked.documents.first() {
                lowered.push(document.lower(1));
                kept.push(spec.clone());
            }
        }
        let world: Vec<Endpoint> = [("10.77.1.1", ""), ("10.77.1.2", "role=web"), ("10.77.2.1", "role=db"), ("10.77.2.2", "role=web,env=prod"), ("192.0.2.1", "env=prod")]
            .iter()
            .map(|(address, text)| Endpoint { address: address.parse().unwrap(), tags: tags(text) })
            .collect();
        type Side = fn(&[Value], &Endpoint, &Endpoint, u16, bool) -> bool;
        let clouds: [(Target, Side, &[&str]); 3] = [
            (Target::GcpFirewallPolicy, google, &["gcp-network-policy/firewall-policy.json"]),
            (Target::AzureApplicationGroups, azure, &["azure-application-groups/application-security-groups.json", "azure-application-groups/network-security-group.json"]),
            (Target::Aws, amazon, &["aws/security-groups.json"]),
        ];
        for (target, passes, paths) in clouds {
            let compiled = target.compile(&lowered, |_| None);
            if compiled.gaps.iter().any(|gap| gap.rule == "*") {
                prop_assert!(compiled.files.is_empty());
                continue;
            }
            let files: Vec<Value> = paths.iter().map(|path| file(&compiled, path)).collect();
            // A subject that is left out is told, and open; the certificate names the policy.
            let left_out = |i: usize| compiled.gaps.iter().any(|gap| gap.rule == format!("p{i}") && !gap.reason.contains("applied again"));
            let governed: Vec<Value> = lowered.iter().zip(&kept)
                .filter(|(policy, _)| !left_out(policy.name[1..].parse().unwrap()))
                .map(|(_, spec)| spec.clone())
                .collect();
            let exact = compiled.gaps.iter().all(|gap| gap.reason.contains("applied again") || gap.rule.len() == 2);
            for src in &world {
                for dst in world.iter().filter(|dst| dst.address != src.address) {
                    for port in [80, 81] {
                        let intended = side(&governed, src, dst, port, ("egress", "to")) && side(&governed, dst, src, port, ("ingress", "from"));
                        let passed = passes(&files, src, dst, port, false) && passes(&files, dst, src, port, true);
                        prop_assert!(!passed || intended, "wider: {:?} {:?} → {:?} {}\n{:#?}", target, src, dst, port, compiled);
                        prop_assert!(!exact || passed == intended, "narrower: {:?} {:?} → {:?} {}\n{:#?}", target, src, dst, port, compiled);
                    }
                }
            }
        }
    }
}

#[test]
fn tags_become_what_each_provider_has() {
    let text = "apiVersion: garrison.dev/v1alpha1\nkind: ZeroTrustPolicy\nmetadata: {name: db}\nspec:\n  mode: enforce\n  subject: {tags: {role: db}}\n  ingress: [{name: web, from: [{tags: {role: web}}], ports: [{protocol: TCP, port: 5432}]}]\n";
    let policy = [check(text).documents[0].lower(1)];
    let content = |target: Target, path: &str| {
        let compiled = target.compile(&policy, |_| None);
        compiled
            .files
            .iter()
            .find(|f| f.path == path)
            .unwrap_or_else(|| panic!("{compiled:#?}"))
            .content
            .clone()
    };
    let google = content(Target::GcpFirewallPolicy, "gcp-network-policy/garrison.tf.json");
    assert!(
        google.contains("target_secure_tag") && google.contains("src_secure_tag") && google.contains("tag_values"),
        "{google}"
    );
    let azure = content(
        Target::AzureApplicationGroups,
        "azure-application-groups/garrison.tf.json",
    );
    assert!(
        azure.contains("azurerm_resources") && azure.contains("required_tags"),
        "{azure}"
    );
    let amazon: Value = serde_json::from_str(&content(Target::Aws, "aws/garrison.tf.json")).unwrap();
    assert_eq!(
        amazon["data"]["aws_instances"].as_object().unwrap().len(),
        2,
        "{amazon:#}"
    );
    assert!(amazon["resource"]["aws_network_interface_sg_attachment"].is_object());
    // Where nobody can be told by tag, nothing is emitted, and what can is named.
    let compiled = Target::Gcp.compile(&policy, |_| None);
    assert!(compiled.files.is_empty());
    let certificates = garrison_ztp::compile::certificates(&policy, Target::Gcp, &compiled);
    assert!(
        certificates
            .iter()
            .any(|c| c.closed_by == Some(Target::GcpFirewallPolicy)),
        "{certificates:?}"
    );
}
