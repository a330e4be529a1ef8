//! Security groups of Amazon Web Services as others wrote them: API answers, Terraform JSON and Terraform plans.
//!
//! A group allows what any of its permissions allows; the representation is a policy whose subject is whoever has the
//! group, which the group itself does not tell. Permissions that name other groups have peers of unknown addresses.

use serde_json::Value;

use crate::{
    Diagnostic, Level, Position,
    diagnostic::Code,
    document::{Action, DEFAULT_TIER, EgressRule, IngressRule, KIND, Peer, Port, Protocol, Subject, ZeroTrustPolicy},
    sets::{AddressSet, PORT_PROTOCOLS, ServiceSet},
};

/// Most bytes of a file.
const BYTES: usize = 64 << 20;
/// Most groups of a file, and permissions of a group.
const MOST: usize = 10_000;

/// A group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecurityGroup {
    /// Its name, or its id.
    pub name: String,
    /// The addresses of whoever has it, where the file tells (as Garrison's own output does).
    pub addresses: AddressSet,
    /// What may come in.
    pub ingress: Vec<Permission>,
    /// What may go out.
    pub egress: Vec<Permission>,
}

/// One permission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permission {
    /// Its place in the file.
    pub field: String,
    /// The other side by address.
    pub peers: AddressSet,
    /// The other side by group.
    pub groups: Vec<String>,
    /// What may be spoken.
    pub services: ServiceSet,
}

impl SecurityGroup {
    /// The places of permissions that let everyone in on every port.
    pub fn open_to_the_world(&self) -> Vec<String> {
        self.ingress
            .iter()
            .filter(|p| p.services.is_full() && (p.peers.v4.is_full() || p.peers.v6.is_full()))
            .map(|p| p.field.clone())
            .collect()
    }

    /// The group as a policy that observes, for whoever has these addresses. Parts that a document cannot say (ports of
    /// unusual protocols, peers by group) are left out and named.
    pub fn document(&self, addresses: &AddressSet) -> (ZeroTrustPolicy, Vec<String>) {
        let mut left_out = Vec::new();
        let mut rules = |list: &[Permission], what: &str| -> Vec<(String, Vec<Peer>, Vec<Port>)> {
            let mut written = Vec::new();
            for (i, permission) in list.iter().enumerate() {
                if !permission.groups.is_empty() {
                    left_out.push(format!(
                        "{}: members of {} are not known here",
                        permission.field,
                        permission.groups.join(", ")
                    ));
                }
                let peers: Vec<Peer> = if permission.peers.is_full() {
                    vec![Peer {
                        any: true,
                        ..Peer::default()
                    }]
                } else {
                    let nets = permission.peers.to_nets().into_iter();
                    nets.map(|net| Peer {
                        cidr: Some(net.to_string()),
                        ..Peer::default()
                    })
                    .collect()
                };
                let (ports, lost) = ports(&permission.services);
                if lost {
                    left_out.push(format!("{}: a protocol has no name in the language", permission.field));
                }
                if peers.is_empty() || (ports.is_empty() && !permission.services.is_full()) {
                    continue;
                }
                written.push((format!("{what}-{i}"), peers, ports));
            }
            written
        };
        let (ingress, egress) = (rules(&self.ingress, "in"), rules(&self.egress, "out"));
        let subject = Subject {
            cidrs: addresses.to_nets().iter().map(ToString::to_string).collect(),
            ..Subject::default()
        };
        let reason = format!("imported from security group {}", self.name);
        let mut document = ZeroTrustPolicy::observing(KIND, named(&self.name), DEFAULT_TIER, reason, subject);
        let ingress = ingress.into_iter();
        let ingress = ingress.map(|(name, from, ports)| IngressRule::new(name, Action::Allow, from, ports));
        document.spec.ingress = Some(ingress.collect());
        let egress = egress.into_iter();
        let egress = egress.map(|(name, to, ports)| EgressRule::new(name, Action::Allow, to, ports));
        document.spec.egress = Some(egress.collect());
        (document, left_out)
    }
}

/// A name that the language takes.
pub(crate) fn named(text: &str) -> String {
    let mut name: String = text
        .to_ascii_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(63)
        .collect();
    name = name.trim_matches('-').to_owned();
    if name.is_empty() { "group".to_owned() } else { name }
}

/// Services as ports of a document, and whether something was lost.
pub(crate) fn ports(services: &ServiceSet) -> (Vec<Port>, bool) {
    if services.is_full() {
        return (Vec::new(), false);
    }
    let plain = |protocol| Port {
        protocol,
        port: None,
        end_port: None,
        icmp_type: None,
        icmpv6_type: None,
    };
    let mut ports = Vec::new();
    let mut lost = false;
    for (number, protocol) in PORT_PROTOCOLS
        .into_iter()
        .zip([Protocol::Tcp, Protocol::Udp, Protocol::Sctp])
    {
        let Some(set) = services.ports(number) else { continue };
        if set.is_full() {
            ports.push(plain(protocol));
            continue;
        }
        for (from, to) in set.ranges() {
            let from = (*from).max(1);
            if from <= *to {
                ports.push(Port {
                    port: Some(from),
                    end_port: (from < *to).then_some(*to),
                    ..plain(protocol)
                });
            }
        }
    }
    let (v4, v6) = (services.contains(1, 0), services.contains(58, 0));
    match (
        services.icmp_types(1).is_none() && v4,
        services.icmp_types(58).is_none() && v6,
    ) {
        (true, true) => ports.push(plain(Protocol::Icmp)),
        // Of one family alone, each type has to be named.
        (false, false) => {}
        _ => lost = true,
    }
    for (number, family) in [(1, true), (58, false)] {
        for (from, to) in services.icmp_types(number).map(|t| t.ranges()).unwrap_or_default() {
            for kind in *from..=(*to).min(255) {
                let kind = u8::try_from(kind).ok();
                ports.push(Port {
                    icmp_type: kind.filter(|_| family),
                    icmpv6_type: kind.filter(|_| !family),
                    ..plain(Protocol::Icmp)
                });
            }
        }
    }
    lost |= services.portless().any(|p| p != 1 && p != 58);
    (ports, lost)
}

/// Whether a text looks like one that [`read`] takes.
pub fn is_one(text: &str) -> bool {
    text.trim_start().starts_with(['{', '['])
        && (text.contains("\"IpPermissions\"") || text.contains("\"aws_security_group\""))
}

/// Reads every group of a file.
///
/// # Errors
/// Everything that is wrong, each with its field.
pub fn read(text: &str) -> Result<Vec<SecurityGroup>, Vec<Diagnostic>> {
    let mut reader = Reader::default();
    if text.len() > BYTES {
        reader.wrong(
            Code::Limit,
            "",
            format!("the file has {} bytes where at most {BYTES} are taken", text.len()),
        );
        return Err(reader.found);
    }
    let value: Value = match serde_json::from_str(text) {
        Ok(value) => value,
        Err(error) => {
            reader.wrong(Code::Syntax, "", format!("this is not valid JSON: {error}"));
            return Err(reader.found);
        }
    };
    let mut groups = Vec::new();
    if let Some(list) = value.get("SecurityGroups").or(value.is_array().then_some(&value)) {
        for (i, group) in list.as_array().into_iter().flatten().take(MOST).enumerate() {
            groups.push(reader.api(group, &format!("[{i}]")));
        }
    }
    if let Some(Value::Object(resources)) = value.pointer("/resource/aws_security_group") {
        for (name, group) in resources.iter().take(MOST) {
            groups.push(reader.terraform(group, name, &format!("resource.aws_security_group.{name}")));
        }
    }
    let planned = value
        .pointer("/planned_values/root_module")
        .or(value.pointer("/values/root_module"));
    let mut modules: Vec<(&Value, usize)> = planned.map(|m| (m, 0)).into_iter().collect();
    while let Some((module, depth)) = modules.pop() {
        for resource in module["resources"].as_array().into_iter().flatten() {
            if resource["type"] == "aws_security_group" && groups.len() < MOST {
                let address = resource["address"].as_str().unwrap_or_default();
                groups.push(reader.terraform(&resource["values"], address, address));
            }
        }
        if depth < 32 {
            let inner = module["child_modules"].as_array().into_iter().flatten();
            modules.extend(inner.map(|m| (m, depth + 1)));
        }
    }
    if groups.is_empty() && reader.found.is_empty() {
        reader.wrong(Code::MissingField, "", "there is no security group in it".to_owned());
    }
    if reader.found.is_empty() {
        Ok(groups)
    } else {
        Err(reader.found)
    }
}

#[derive(Default)]
struct Reader {
    found: Vec<Diagnostic>,
}

impl Reader {
    fn wrong(&mut self, code: Code, field: &str, message: String) {
        if self.found.len() < 100 {
            self.found.push(Diagnostic {
                level: Level::Error,
                code,
                field: field.to_owned(),
                position: Position::default(),
                message,
                remedy: "Give what `aws ec2 describe-security-groups` or `terraform show -json` prints".to_owned(),
            });
        }
    }

    fn nets<'v>(&mut self, texts: impl Iterator<Item = &'v Value>, field: &str) -> AddressSet {
        let mut nets: Vec<ipnet::IpNet> = Vec::new();
        for text in texts.take(MOST) {
            match text.as_str().and_then(|t| t.parse::<ipnet::IpNet>().ok()) {
                Some(net) => nets.push(net.trunc()),
                None => self.wrong(Code::BadAddress, field, format!("{text} is not a network")),
            }
        }
        AddressSet::from_nets(nets)
    }

    fn services(&mut self, protocol: &Value, from: &Value, to: &Value, field: &str) -> ServiceSet {
        let mut set = ServiceSet::empty();
        let word = match protocol {
            Value::String(text) => text.to_ascii_lowercase(),
            Value::Number(number) => number.to_string(),
            other => {
                self.wrong(Code::WrongType, field, format!("{other} is not a protocol"));
                return set;
            }
        };
        let number = match word.as_str() {
            "-1" | "all" => return ServiceSet::full(),
            "tcp" => 6,
            "udp" => 17,
            "icmp" => 1,
            "icmpv6" => 58,
            number => match number.parse::<u8>() {
                Ok(number) => number,
                Err(_) => {
                    self.wrong(Code::BadValue, field, format!("{number:?} is not a protocol"));
                    return set;
                }
            },
        };
        let (from, to) = (from.as_i64(), to.as_i64());
        match number {
            6 | 17 => match (from, to) {
                (Some(a), Some(b)) if (0..=65_535).contains(&a) && a <= b && b <= 65_535 => {
                    set.insert(number, a as u16, b as u16);
                }
                (None, None) => set.insert(number, 0, u16::MAX),
                (a, b) => self.wrong(Code::BadValue, field, format!("the ports {a:?} to {b:?} are no range")),
            },
            // The first number is the type, and -1 all of them; the second is the code, of which the language has none.
            1 | 58 => match from {
                Some(kind @ 0..=255) => set.insert_icmp(number, kind as u8),
                Some(-1) | None => set.insert(number, 0, u16::MAX),
                Some(other) => self.wrong(Code::BadValue, field, format!("{other} is no type of ICMP")),
            },
            // Ports beside other protocols are ignored: all of them are open.
            other => set.insert(other, 0, u16::MAX),
        }
        set
    }

    fn api(&mut self, group: &Value, field: &str) -> SecurityGroup {
        let name = ["GroupName", "GroupId"].iter().find_map(|key| group[*key].as_str());
        let mut list = |key: &str| -> Vec<Permission> {
            let list = group[key].as_array().map(Vec::as_slice).unwrap_or_default();
            list.iter()
                .take(MOST)
                .enumerate()
                .map(|(i, permission)| {
                    let field = format!("{field}.{key}[{i}]");
                    let each = |list: &str, key: &'static str| {
                        let list = permission[list].as_array().map(Vec::as_slice).unwrap_or_default();
                        list.iter().map(move |entry| &entry[key])
                    };
                    let nets = each("IpRanges", "CidrIp").chain(each("Ipv6Ranges", "CidrIpv6"));
                    let members = each("UserIdGroupPairs", "GroupId").chain(each("PrefixListIds", "PrefixListId"));
                    Permission {
                        peers: self.nets(nets, &field),
                        groups: members.filter_map(Value::as_str).map(str::to_owned).collect(),
                        services: self.services(
                            &permission["IpProtocol"],
                            &permission["FromPort"],
                            &permission["ToPort"],
                            &field,
                        ),
                        field,
                    }
                })
                .collect()
        };
        let (ingress, egress) = (list("IpPermissions"), list("IpPermissionsEgress"));
        let addresses = group["Addresses"].as_array().map(Vec::as_slice).unwrap_or_default();
        SecurityGroup {
            name: name.unwrap_or("group").to_owned(),
            addresses: self.nets(addresses.iter(), field),
            ingress,
            egress,
        }
    }

    fn terraform(&mut self, group: &Value, name: &str, field: &str) -> SecurityGroup {
        let mut list = |key: &str| -> Vec<Permission> {
            let list = group[key].as_array().map(Vec::as_slice).unwrap_or_default();
            list.iter()
                .take(MOST)
                .enumerate()
                .map(|(i, rule)| {
                    let field = format!("{field}.{key}[{i}]");
                    let each = |list: &str| rule[list].as_array().map(Vec::as_slice).unwrap_or_default();
                    let members = each("security_groups").iter().chain(each("prefix_list_ids"));
                    let own = (rule["self"] == true).then(|| name.to_owned());
                    Permission {
                        peers: self.nets(each("cidr_blocks").iter().chain(each("ipv6_cidr_blocks")), &field),
                        groups: members
                            .filter_map(Value::as_str)
                            .map(str::to_owned)
                            .chain(own)
                            .collect(),
                        services: self.services(&rule["protocol"], &rule["from_port"], &rule["to_port"], &field),
                        field,
                    }
                })
                .collect()
        };
        let (ingress, egress) = (list("ingress"), list("egress"));
        SecurityGroup {
            name: group["name"].as_str().unwrap_or(name).to_owned(),
            addresses: AddressSet::empty(),
            ingress,
            egress,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_forms_say_the_same() {
        let api = r#"{"SecurityGroups": [{"GroupName": "web", "IpPermissions": [
            {"IpProtocol": "tcp", "FromPort": 443, "ToPort": 443, "IpRanges": [{"CidrIp": "0.0.0.0/0"}], "Ipv6Ranges": [{"CidrIpv6": "::/0"}]},
            {"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}], "IpPermissionsEgress": []}]}"#;
        let rules = r#"[{"protocol": "tcp", "from_port": 443, "to_port": 443, "cidr_blocks": ["0.0.0.0/0"], "ipv6_cidr_blocks": ["::/0"]},
            {"protocol": "-1", "from_port": 0, "to_port": 0, "cidr_blocks": ["0.0.0.0/0"]}]"#;
        let terraform =
            format!(r#"{{"resource": {{"aws_security_group": {{"web": {{"name": "web", "ingress": {rules}}}}}}}}}"#);
        let plan = format!(
            r#"{{"planned_values": {{"root_module": {{"child_modules": [{{"resources": [{{"type": "aws_security_group", "address": "a.web", "values": {{"name": "web", "ingress": {rules}}}}}]}}]}}}}}}"#
        );
        let shape = |text: &str| {
            assert!(is_one(text));
            let groups = read(text).unwrap();
            let list = groups[0].ingress.iter().map(|p| (p.peers.clone(), p.services.clone()));
            (
                groups[0].name.clone(),
                groups[0].open_to_the_world().len(),
                list.collect::<Vec<_>>(),
            )
        };
        assert_eq!(shape(api).1, 1);
        assert_eq!(shape(api), shape(&terraform));
        assert_eq!(shape(api), shape(&plan));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_field() {
        let text = r#"[{"GroupName": "x", "IpPermissions": [{"IpProtocol": "tcp", "FromPort": 90, "ToPort": 80, "IpRanges": [{"CidrIp": "10.0.0.0/33"}]}]}]"#;
        let fields: Vec<String> = read(text).unwrap_err().into_iter().map(|d| d.field).collect();
        assert_eq!(fields, ["[0].IpPermissions[0]", "[0].IpPermissions[0]"]);
        assert!(read("{").is_err() && read("{}").is_err());
    }
}
