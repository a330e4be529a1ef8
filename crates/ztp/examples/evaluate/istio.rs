//! AuthorizationPolicies as read here against the Envoy RBAC that Istio builds from them, request by request.
//!
//! For each rule, the truth of every part (each field's values, each field's excluded values) is compared over many
//! requests with the truth of every part of Envoy's policy, as sets, and the truth of the whole rule too. A value `*`
//! makes a rule of the test inputs match nothing (or everything) whatever else it says, so every case is also compared
//! with those values left out of both sides.

use std::{collections::BTreeMap, net::IpAddr, path::Path};

use garrison_ztp::istio::{Action, Attribute, AuthorizationPolicy, Field, Http, Pattern, Request, Rule, read};
use serde_json::Value;

use crate::Score;

/// Requests for each rule.
const REQUESTS: usize = 1_500;

pub(crate) fn evaluate(folder: &Path, score: &mut Score) -> std::io::Result<()> {
    for (part, http) in [("http", true), ("tcp", false)] {
        let mut inputs: Vec<_> = std::fs::read_dir(folder.join(part))?
            .filter_map(|e| Some(e.ok()?.path()))
            .filter(|p| p.to_string_lossy().ends_with("-in.yaml"))
            .collect();
        inputs.sort();
        for input in inputs {
            let name = input
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .replace("-in.yaml", "");
            let text = std::fs::read_to_string(&input)?;
            let policies = match read(&text) {
                Ok(policies) => policies,
                Err(diagnostics) => {
                    score.note(&format!("{part}/{name}"), diagnostics.first().map(ToString::to_string));
                    continue;
                }
            };
            let mut compared = (0, 0);
            let mut answers = 0;
            let mut wrong = None;
            for out in ["-out.yaml", "-out1.yaml"] {
                let path = folder.join(part).join(format!("{name}{out}"));
                if !path.is_file() {
                    continue;
                }
                let expected: Value =
                    serde_saphyr::from_str(&std::fs::read_to_string(path)?).map_err(std::io::Error::other)?;
                answers += 1;
                if wrong.is_none() {
                    wrong = compare(&policies, &expected, http, &mut compared).err();
                }
                for policy in &policies {
                    let plain = without_stars(std::slice::from_ref(policy));
                    let mut expected = expected.clone();
                    strip(&mut expected, true);
                    if wrong.is_none() {
                        wrong = compare(&plain, &expected, http, &mut compared).err();
                    }
                }
            }
            if answers == 0 {
                println!("  no answer for {part}/{name}");
                continue;
            }
            score.note(
                &format!("{part}/{name} ({} rules, {} matching requests)", compared.0, compared.1),
                wrong,
            );
        }
    }
    Ok(())
}

fn without_stars(policies: &[AuthorizationPolicy]) -> Vec<AuthorizationPolicy> {
    let strip = |fields: &mut Vec<Field>| {
        for field in fields.iter_mut() {
            for list in [&mut field.values, &mut field.not_values] {
                if list.len() > 1 {
                    list.retain(|p| *p != Pattern::Present);
                }
            }
        }
    };
    let mut policies = policies.to_vec();
    for rule in policies.iter_mut().flat_map(|p| &mut p.rules) {
        rule.from.iter_mut().chain(&mut rule.to).for_each(strip);
        strip(&mut rule.when);
    }
    policies
}

/// Leaves alternatives that match everything out of lists with others.
fn strip(value: &mut Value, alternatives: bool) {
    match value {
        Value::Array(list) => {
            if list.len() > 1 && alternatives {
                let all = |v: &Value| {
                    let text = v.to_string();
                    let whole = text.contains("\"presentMatch\":true")
                        || text.contains("\"regex\":\".*/ns/.*/.*\"")
                        || text.matches("\"regex\":\".+\"").count() == text.matches("Match\":{").count().max(1)
                            && text.contains("\"regex\":\".+\"");
                    let inner = text.contains("andIds")
                        && text.matches("\"stringMatch\"").count() == text.matches("\"regex\":\".+\"").count();
                    // Only alternatives: lists of parts hold `orRules` and the like.
                    let part = ["orRules", "orIds", "notRule", "notId", "orMatch"]
                        .iter()
                        .any(|w| text.contains(w));
                    (whole || inner) && !part
                };
                let kept: Vec<Value> = list.iter().filter(|v| !all(v)).cloned().collect();
                if !kept.is_empty() {
                    *list = kept;
                }
            }
            list.iter_mut().for_each(|value| strip(value, true));
        }
        Value::Object(object) => {
            for (key, value) in object {
                match key.as_str() {
                    // All of these must match: none is an alternative.
                    "andIds" | "andRules" => {
                        if let Some(list) = value.as_object_mut().and_then(|o| o.values_mut().next()) {
                            strip(list, false);
                        }
                    }
                    _ => strip(value, true),
                }
            }
        }
        _ => {}
    }
}

fn compare(
    policies: &[AuthorizationPolicy],
    expected: &Value,
    http: bool,
    compared: &mut (usize, usize),
) -> Result<(), String> {
    let config = &expected["typedConfig"];
    let mut told: BTreeMap<String, (&Value, &Value)> = BTreeMap::new();
    for list in ["rules", "shadowRules"] {
        for (name, policy) in config[list]["policies"].as_object().into_iter().flatten() {
            told.insert(name.clone(), (&config[list], policy));
        }
    }
    // What is expected beyond the rules that are there must match nothing: a policy without rules looks like that.
    let rules: Vec<String> = policies
        .iter()
        .flat_map(|p| (0..p.rules.len()).map(move |i| format!("ns[{}]-policy[{}]-rule[{i}]", p.namespace, p.name)))
        .collect();
    let mine = |key: &str| {
        policies
            .iter()
            .any(|p| key.contains(&format!("ns[{}]-policy[{}]-", p.namespace, p.name)))
    };
    for (key, (_, policy)) in &told {
        let nothing = Request {
            http: http.then(Http::default),
            ..Request::default()
        };
        if mine(key) && !rules.iter().any(|rule| key.ends_with(rule)) && matches(policy, &nothing) {
            return Err(format!("{key} is expected and is not there"));
        }
    }
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for policy in policies {
        for (i, rule) in policy.rules.iter().enumerate() {
            let name = format!("ns[{}]-policy[{}]-rule[{i}]", policy.namespace, policy.name);
            let found = told.iter().find(|(key, _)| key.ends_with(&name));
            let never = !http && policy.action == Action::Allow && fields(rule).any(|f| f.attribute.is_http());
            let Some((_, (list, theirs))) = found else {
                if never {
                    continue;
                }
                return Err(format!("{name} is not expected"));
            };
            if never {
                return Err(format!("{name} is expected on TCP"));
            }
            let action = list["action"].as_str().unwrap_or("ALLOW");
            let right = match &policy.action {
                Action::Allow => action == "ALLOW",
                Action::Deny => action == "DENY",
                Action::Audit => action == "LOG",
                Action::Custom(_) => action == "DENY",
            };
            if !right {
                return Err(format!("{name}: {:?} is expected as {action}", policy.action));
            }
            let mut ours: Vec<Vec<bool>> = Vec::new();
            let mut envoy: Vec<Vec<bool>> = Vec::new();
            for n in 0..REQUESTS {
                let request = request(rule, http, n, &mut random);
                let (we, they) = (rule.matches(&policy.action, &request), matches(theirs, &request));
                if we != they {
                    return Err(format!("{name}: Envoy says {they}, we say {we}: {request:?}"));
                }
                compared.1 += usize::from(we);
                ours.push(our_parts(rule, &request));
                envoy.push(their_parts(theirs, &request));
            }
            let mut ours = columns(&ours);
            let mut envoy = columns(&envoy);
            ours.sort();
            envoy.sort();
            if ours != envoy {
                let lone = |a: &[Vec<bool>], b: &[Vec<bool>]| a.iter().filter(|part| !b.contains(part)).count();
                return Err(format!(
                    "{name}: of its {} parts {} are none of Envoy's, and of Envoy's {} parts {} are none of them",
                    ours.len(),
                    lone(&ours, &envoy),
                    envoy.len(),
                    lone(&envoy, &ours),
                ));
            }
            compared.0 += 1;
        }
    }
    Ok(())
}

fn fields(rule: &Rule) -> impl Iterator<Item = &Field> {
    rule.from.iter().chain(&rule.to).flatten().chain(&rule.when)
}

fn columns(rows: &[Vec<bool>]) -> Vec<Vec<bool>> {
    let count = rows.first().map_or(0, Vec::len);
    (0..count).map(|i| rows.iter().map(|row| row[i]).collect()).collect()
}

fn our_parts(rule: &Rule, request: &Request) -> Vec<bool> {
    let mut parts = Vec::new();
    for field in fields(rule).filter(|f| request.http.is_some() || !f.attribute.is_http()) {
        if !field.values.is_empty() {
            parts.push(field.any(&field.values, request));
        }
        if !field.not_values.is_empty() {
            parts.push(!field.any(&field.not_values, request));
        }
    }
    parts
}

fn their_parts(policy: &Value, request: &Request) -> Vec<bool> {
    let list = |value: &Value, outer: &str, inner: &str| -> Vec<Value> {
        value[0][outer][inner].as_array().cloned().unwrap_or_default()
    };
    let permissions = list(&policy["permissions"], "andRules", "rules");
    let principals = list(&policy["principals"], "andIds", "ids");
    permissions
        .iter()
        .chain(&principals)
        .filter(|part| part["any"] != Value::Bool(true))
        .map(|part| one(part, request))
        .collect()
}

/// A request that is near to what a rule asks for, in one way or another.
fn request(rule: &Rule, http: bool, n: usize, random: &mut u64) -> Request {
    let mut pick = |count: usize| {
        // xorshift64*
        *random ^= *random >> 12;
        *random ^= *random << 25;
        *random ^= *random >> 27;
        (random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % count.max(1)
    };
    let mut request = Request {
        http: http.then(Http::default),
        ..Request::default()
    };
    // Most requests satisfy all fields but a few.
    let spoil = if n.is_multiple_of(3) { 0 } else { 1 + n % 4 };
    let all: Vec<&Field> = fields(rule).collect();
    for field in &all {
        let excluded = !field.not_values.is_empty() && pick(10) < spoil;
        let list = if excluded || field.values.is_empty() {
            &field.not_values
        } else {
            &field.values
        };
        if list.is_empty() || pick(12) < spoil && !excluded {
            continue;
        }
        let pattern = &list[pick(list.len())];
        let use_it = excluded || !field.values.is_empty();
        let text = if use_it {
            instance(pattern, pick(3))
        } else {
            "else".to_owned()
        };
        let address = || match pattern {
            Pattern::Network(net) if use_it => Some(net.addr()),
            _ => Some(IpAddr::from([203, 0, 113, 9])),
        };
        match &field.attribute {
            Attribute::Principal => {
                let namespace = all.iter().find(|f| f.attribute == Attribute::Namespace);
                let behind = match (namespace, pattern) {
                    (Some(f), Pattern::Prefix(_) | Pattern::Present) if !f.values.is_empty() => {
                        format!("/ns/{}/sa/x", instance(&f.values[pick(f.values.len())], pick(3)))
                    }
                    _ => String::new(),
                };
                request.principal = Some(format!("spiffe://{text}{behind}"));
            }
            Attribute::Namespace => {
                let before = request.principal.take().filter(|_| pick(2) == 0);
                let before = before.unwrap_or_else(|| "spiffe://cluster.local".to_owned());
                request.principal = Some(format!("{before}/ns/{text}/sa/x"));
            }
            Attribute::ServiceAccount => {
                let (namespace, name) = text.split_once('/').unwrap_or(("", &text));
                let shapes = [
                    format!("spiffe://td/ns/{namespace}/sa/{name}"),
                    format!("spiffe://td/ns/{namespace}/a/b/sa/{name}/c"),
                    format!("spiffe://td/ns/{namespace}/sa/{name}x"),
                    format!("spiffe://td/ns/{namespace}/sa/{name}/"),
                    format!("spiffe:///ns/{namespace}/sa/{name}"),
                ];
                request.principal = Some(shapes[pick(shapes.len())].clone());
            }
            Attribute::SourceIp => request.source_ip = address(),
            Attribute::RemoteIp => request.remote_ip = address(),
            Attribute::DestinationIp => request.destination_ip = address(),
            Attribute::DestinationPort => {
                request.port = match pattern {
                    Pattern::Port(port) if use_it => *port,
                    _ => 1,
                }
            }
            Attribute::Sni => request.sni = Some(text),
            Attribute::Filter(filter, key) => {
                request.filters.insert((filter.clone(), key.clone()), text);
            }
            of_http => {
                let Some(http) = &mut request.http else { continue };
                match of_http {
                    Attribute::Method => http.method = text,
                    Attribute::Host => http.host = if pick(2) == 0 { text.to_uppercase() } else { text },
                    Attribute::Path => http.path = text,
                    Attribute::Header(name) if name == ":method" => http.method = text,
                    Attribute::Header(name) => {
                        http.headers.insert(name.clone(), text);
                    }
                    Attribute::Claim(path) => {
                        let mut values = vec!["other".to_owned(), text];
                        // Issuer and subject are single in every token.
                        let single = path.len() == 1 && (path[0] == "iss" || path[0] == "sub");
                        values.reverse();
                        values.truncate(if single { 1 } else { 1 + pick(2) });
                        http.claims.insert(path.clone(), values);
                    }
                    Attribute::RequestPrincipal => {
                        let (issuer, subject) = match text.rsplit_once('/') {
                            Some((issuer, subject)) => (issuer.to_owned(), subject.to_owned()),
                            None => (text, ["", "x", "x-suffix-requestPrincipals"][pick(3)].to_owned()),
                        };
                        http.claims.insert(vec!["iss".to_owned()], vec![issuer]);
                        http.claims.insert(vec!["sub".to_owned()], vec![subject]);
                    }
                    _ => {}
                }
            }
        }
    }
    request
}

fn instance(pattern: &Pattern, variant: usize) -> String {
    let more = ["", "x", "x/y"][variant];
    match pattern {
        Pattern::Exact(text) => format!("{text}{}", if variant == 2 { "z" } else { "" }),
        Pattern::Prefix(text) => format!("{text}{more}"),
        Pattern::Suffix(text) => format!("{more}{text}"),
        Pattern::Present => more.to_owned(),
        Pattern::Template(text) => text
            .replace("{**}", ["a", "a/b/c", ""][variant])
            .replace("{*}", ["a", "a/b", ""][variant]),
        Pattern::Network(net) => net.addr().to_string(),
        Pattern::Port(port) => port.to_string(),
    }
}

// Envoy's RBAC, as its documentation says.

fn matches(policy: &Value, request: &Request) -> bool {
    let any = |list: &Value| list.as_array().is_some_and(|list| list.iter().any(|v| one(v, request)));
    any(&policy["permissions"]) && any(&policy["principals"])
}

fn one(value: &Value, request: &Request) -> bool {
    let object = value.as_object().expect("an object");
    let (kind, of) = object.iter().next().expect("one field");
    let list = |inner: &str| of[inner].as_array().expect("a list").iter();
    let http = request.http.as_ref();
    match kind.as_str() {
        "any" => of == &Value::Bool(true),
        "andRules" => list("rules").all(|v| one(v, request)),
        "orRules" => list("rules").any(|v| one(v, request)),
        "andIds" => list("ids").all(|v| one(v, request)),
        "orIds" => list("ids").any(|v| one(v, request)),
        "notRule" | "notId" => !one(of, request),
        "destinationPort" => of.as_u64() == Some(request.port.into()),
        "destinationIp" => within(of, request.destination_ip),
        "directRemoteIp" => within(of, request.source_ip),
        "remoteIp" => within(of, request.remote_ip),
        "requestedServerName" => request.sni.as_deref().is_some_and(|sni| string(of, sni)),
        "authenticated" => request
            .principal
            .as_deref()
            .is_some_and(|id| string(&of["principalName"], id)),
        "urlPath" => http.is_some_and(|h| string(&of["path"], &h.path)),
        "uriTemplate" => http.is_some_and(|h| {
            let template = of["typedConfig"]["pathTemplate"].as_str().expect("a template");
            regex(&template_regex(template), &h.path)
        }),
        "header" => {
            let value = http.and_then(|h| match of["name"].as_str().expect("a name") {
                ":authority" => Some(&h.host),
                ":method" => Some(&h.method),
                ":path" => Some(&h.path),
                name => h.headers.get(name),
            });
            match value {
                None => false,
                Some(_) if of["presentMatch"] == Value::Bool(true) => true,
                Some(value) => match of["safeRegexMatch"]["regex"].as_str() {
                    Some(pattern) => match pattern.strip_prefix("(?i)") {
                        Some(pattern) => regex(&pattern.to_lowercase(), &value.to_lowercase()),
                        None => regex(pattern, value),
                    },
                    None => string(&of["stringMatch"], value),
                },
            }
        }
        "metadata" => {
            let keys: Vec<String> = of["path"]
                .as_array()
                .expect("a path")
                .iter()
                .map(|p| p["key"].as_str().expect("a key").to_owned())
                .collect();
            let filter = of["filter"].as_str().expect("a filter");
            let values: Vec<String> = if filter == "envoy.filters.http.jwt_authn" {
                http.and_then(|h| h.claims.get(&keys[1..])).cloned().unwrap_or_default()
            } else {
                let key = (filter.to_owned(), keys.join("."));
                request.filters.get(&key).cloned().into_iter().collect()
            };
            metadata(&of["value"], &values)
        }
        other => panic!("unknown: {other}"),
    }
}

/// A claim of one value is a string to Envoy, and one of several a list.
fn metadata(matcher: &Value, values: &[String]) -> bool {
    if let Some(list) = matcher["orMatch"]["valueMatchers"].as_array() {
        return list.iter().any(|m| metadata(m, values));
    }
    if !matcher["listMatch"].is_null() {
        let inner = &matcher["listMatch"]["oneOf"];
        return values.len() > 1 && values.iter().any(|v| metadata(inner, std::slice::from_ref(v)));
    }
    match values {
        [one] => string(&matcher["stringMatch"], one),
        // Issuer and subject are single in every token.
        _ => false,
    }
}

fn within(range: &Value, address: Option<IpAddr>) -> bool {
    let net = format!(
        "{}/{}",
        range["addressPrefix"].as_str().expect("a prefix"),
        range["prefixLen"]
    );
    let net: ipnet::IpNet = net.parse().expect("a network");
    address.is_some_and(|a| net.contains(&a))
}

fn string(matcher: &Value, text: &str) -> bool {
    let fold = matcher["ignoreCase"] == Value::Bool(true);
    let fold = |t: &str| if fold { t.to_lowercase() } else { t.to_owned() };
    let text = fold(text);
    if let Some(exact) = matcher["exact"].as_str() {
        return text == fold(exact);
    }
    if let Some(prefix) = matcher["prefix"].as_str() {
        return text.starts_with(&fold(prefix));
    }
    if let Some(suffix) = matcher["suffix"].as_str() {
        return text.ends_with(&fold(suffix));
    }
    regex(matcher["safeRegex"]["regex"].as_str().expect("a matcher"), &text)
}

/// Envoy's path templates: `*` is one segment, `**` any number of characters of segments.
fn template_regex(template: &str) -> String {
    template
        .replace("**", "\u{1}")
        .replace('*', "[^/]+")
        .replace('\u{1}', ".*")
}

/// The whole text against the few constructs that occur: `.`, `\\.`, `[^/]`, `*`, `+`, `?`, groups with `|`.
fn regex(pattern: &str, text: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = text.chars().collect();
    ends(&pattern, &text, 0).contains(&text.len())
}

/// Where a match of the whole pattern that starts at `at` may end.
fn ends(pattern: &[char], text: &[char], at: usize) -> Vec<usize> {
    let mut depth = 0;
    for (i, c) in pattern.iter().enumerate() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            '|' if depth == 0 => {
                let mut all = ends(&pattern[..i], text, at);
                all.extend(ends(&pattern[i + 1..], text, at));
                return all;
            }
            _ => {}
        }
    }
    let mut places = vec![at];
    let mut i = 0;
    while i < pattern.len() {
        let (atom, next) = match pattern[i] {
            '(' => {
                let mut depth = 0;
                let close = (i..pattern.len())
                    .find(|j| {
                        depth += i32::from(pattern[*j] == '(') - i32::from(pattern[*j] == ')');
                        depth == 0
                    })
                    .expect("a closing bracket");
                (&pattern[i..=close], close + 1)
            }
            '[' => (&pattern[i..i + 4], i + 4),
            '\\' => (&pattern[i..i + 2], i + 2),
            _ => (&pattern[i..=i], i + 1),
        };
        let step = |from: usize| -> Vec<usize> {
            match atom[0] {
                '(' => ends(&atom[1..atom.len() - 1], text, from),
                '[' => (text.get(from).is_some_and(|c| *c != '/'))
                    .then_some(from + 1)
                    .into_iter()
                    .collect(),
                '\\' => (text.get(from) == Some(&atom[1]))
                    .then_some(from + 1)
                    .into_iter()
                    .collect(),
                '.' => (from < text.len()).then_some(from + 1).into_iter().collect(),
                literal => (text.get(from) == Some(&literal))
                    .then_some(from + 1)
                    .into_iter()
                    .collect(),
            }
        };
        let suffix = pattern.get(next).copied();
        let (least, most, after) = match suffix {
            Some('*') => (0, usize::MAX, next + 1),
            Some('+') => (1, usize::MAX, next + 1),
            Some('?') => (0, 1, next + 1),
            _ => (1, 1, next),
        };
        let mut reached = if least == 0 { places.clone() } else { Vec::new() };
        let mut front = places;
        let mut count = 0;
        while count < most && !front.is_empty() {
            let mut new: Vec<usize> = front.iter().flat_map(|p| step(*p)).collect();
            new.sort_unstable();
            new.dedup();
            count += 1;
            if count >= least {
                new.retain(|p| !reached.contains(p));
                reached.extend(&new);
            }
            front = new;
        }
        reached.sort_unstable();
        reached.dedup();
        places = reached;
        i = after;
    }
    places
}
