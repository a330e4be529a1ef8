//! What must never, or must always, be possible.

use std::fmt;

use serde::Serialize;

use super::{
    classes::Reach,
    connections::{Side, services, sides},
    program::{Endpoint, Identity, Program},
};
use crate::{
    decode::{Findings, Spans, read_network},
    diagnostic::{Code, Diagnostic},
    ir::NAMESPACE_NAME_LABEL,
    limits::Limits,
    node,
    sets::{PORT_PROTOCOLS, ServiceSet},
};

/// What a text says about endpoints.
///
/// `any`, `pods`, `outside`, a network such as `10.0.0.0/8`, `namespace=finance`, `namespace.team=red` (a label of the
/// namespace), `workload=ledger`, `workload=finance/ledger`, or a label: `app=ledger`, `app!=ledger`, `app`. Several,
/// with commas, must all hold; `not` before them turns the whole around.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expression {
    text: String,
    negated: bool,
    terms: Vec<Term>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Term {
    Any,
    Pods,
    Outside,
    Network(ipnet::IpNet),
    NamespaceLabel(String, String),
    Workload(Option<String>, String),
    Label(String, String),
    NotLabel(String, String),
    HasLabel(String),
}

/// Why a text is no expression.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{term:?} says nothing about endpoints: {problem}")]
pub struct ExpressionError {
    term: String,
    problem: String,
}

impl std::str::FromStr for Expression {
    type Err = ExpressionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let (negated, rest) = match text.strip_prefix("not ") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let terms = rest.split(',').map(|t| term(t.trim())).collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            text: text.to_owned(),
            negated,
            terms,
        })
    }
}

fn term(text: &str) -> Result<Term, ExpressionError> {
    let wrong = |problem: &str| ExpressionError {
        term: node::shorten(text),
        problem: problem.to_owned(),
    };
    match text {
        "" => return Err(wrong("it is empty")),
        "any" => return Ok(Term::Any),
        "pods" => return Ok(Term::Pods),
        "outside" => return Ok(Term::Outside),
        _ => {}
    }
    if let Some((key, value)) = text.split_once("!=") {
        return Ok(Term::NotLabel(key.trim().to_owned(), value.trim().to_owned()));
    }
    if let Some((key, value)) = text.split_once('=') {
        let (key, value) = (key.trim(), value.trim());
        if key.is_empty() || value.is_empty() {
            return Err(wrong("a name or a value is missing around `=`"));
        }
        return Ok(match key {
            "namespace" => Term::NamespaceLabel(NAMESPACE_NAME_LABEL.to_owned(), value.to_owned()),
            "workload" => match value.split_once('/') {
                Some((namespace, name)) => Term::Workload(Some(namespace.to_owned()), name.to_owned()),
                None => Term::Workload(None, value.to_owned()),
            },
            key => match key.strip_prefix("namespace.") {
                Some(label) => Term::NamespaceLabel(label.to_owned(), value.to_owned()),
                None => Term::Label(key.to_owned(), value.to_owned()),
            },
        });
    }
    if text.starts_with(|c: char| c.is_ascii_digit()) || text.contains(':') {
        return read_network(text)
            .map(Term::Network)
            .map_err(|(problem, _)| wrong(&problem));
    }
    if text.contains(char::is_whitespace) {
        return Err(wrong("write terms with commas between, and `not` only in front"));
    }
    Ok(Term::HasLabel(text.to_owned()))
}

impl Expression {
    /// Whether an endpoint is meant.
    pub fn matches(&self, endpoint: &Endpoint) -> bool {
        let pod = matches!(endpoint.identity, Identity::Workload { .. });
        let holds = self.terms.iter().all(|term| match term {
            Term::Any => true,
            Term::Pods => pod,
            Term::Outside => matches!(endpoint.identity, Identity::External | Identity::Domain { .. }),
            Term::Network(net) => endpoint.addresses.iter().any(|a| net.contains(a)),
            Term::NamespaceLabel(key, value) => pod && endpoint.namespace_labels.get(key) == Some(value),
            Term::Workload(in_namespace, wanted) => match &endpoint.identity {
                Identity::Workload {
                    namespace, name, pod, ..
                } => in_namespace.as_ref().is_none_or(|n| n == namespace) && (name == wanted || pod == wanted),
                _ => false,
            },
            Term::Label(key, value) => pod && endpoint.labels.get(key) == Some(value),
            Term::NotLabel(key, value) => pod && endpoint.labels.get(key) != Some(value),
            Term::HasLabel(key) => pod && endpoint.labels.contains_key(key),
        });
        holds != self.negated
    }

    /// The networks that it names.
    pub fn nets(&self) -> impl Iterator<Item = ipnet::IpNet> + '_ {
        self.terms.iter().filter_map(|term| match term {
            Term::Network(net) => Some(*net),
            _ => None,
        })
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Whether connections must be impossible, or possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Expectation {
    /// None of them is possible.
    Forbid,
    /// All of them are possible.
    Require,
}

/// What must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assertion {
    /// What it is called.
    pub name: String,
    /// What is expected.
    pub expectation: Expectation,
    /// Who opens connections.
    pub from: Expression,
    /// To whom.
    pub to: Expression,
    /// Protocols and ports.
    pub services: ServiceSet,
}

impl std::str::FromStr for Assertion {
    type Err = String;

    /// `FROM -> TO` or `FROM -> TO : TCP/5432, UDP/53`; forbidden.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (from, rest) = text
            .split_once("->")
            .ok_or_else(|| format!("{text:?} has no `->` between its two sides"))?;
        let (to, services) = match rest.split_once(" : ") {
            Some((to, services)) => (to, read_services(services)?),
            None => (rest, ServiceSet::full()),
        };
        Ok(Self {
            name: text.trim().to_owned(),
            expectation: Expectation::Forbid,
            from: from.parse().map_err(|e: ExpressionError| e.to_string())?,
            to: to.parse().map_err(|e: ExpressionError| e.to_string())?,
            services,
        })
    }
}

/// Reads `TCP/80-82, UDP/53, ICMP`.
fn read_services(text: &str) -> Result<ServiceSet, String> {
    let mut set = ServiceSet::empty();
    for part in text.split(',') {
        let part = part.trim();
        let wrong = || format!("{part:?} is no service: write TCP/443, UDP/5000-5010, SCTP or ICMP");
        let (protocol, ports) = match part.split_once('/') {
            Some((protocol, ports)) => (protocol, Some(ports)),
            None => (part, None),
        };
        let numbers: &[u8] = match protocol.to_ascii_uppercase().as_str() {
            "TCP" => &[6],
            "UDP" => &[17],
            "SCTP" => &[132],
            "ICMP" if ports.is_none() => &[1, 58],
            _ => return Err(wrong()),
        };
        let (from, to) = match ports {
            None => (0, u16::MAX),
            Some(ports) => {
                let (from, to) = ports.split_once('-').unwrap_or((ports, ports));
                let read = |port: &str| port.trim().parse::<u16>().map_err(|_| wrong());
                (read(from)?, read(to)?)
            }
        };
        if from > to {
            return Err(wrong());
        }
        numbers.iter().for_each(|number| set.insert(*number, from, to));
    }
    Ok(set)
}

/// The API version of a file of assertions.
const KIND: &str = "ConnectivityAssertions";

/// Reads a file of assertions: `kind: ConnectivityAssertions` with a list `assertions`, each with `name`, `forbid` or
/// `require` (`from`, `to`, `services`).
///
/// # Errors
/// Everything that is wrong with it, each at its place.
pub fn read_assertions(text: &str) -> Result<Vec<Assertion>, Vec<Diagnostic>> {
    let limits = Limits::default();
    let mut findings = Findings {
        limits: &limits,
        diagnostics: Vec::new(),
        spans: Spans::new(),
    };
    let mut assertions = Vec::new();
    if text.len() > limits.bytes {
        let message = format!(
            "the file has {} bytes where at most {} are taken",
            text.len(),
            limits.bytes
        );
        findings.error_at(Code::Limit, "", message, "Split it into several files");
        return Err(findings.diagnostics);
    }
    for source in node::split(text) {
        match node::parse(source, &limits) {
            Ok(tree) => assertions.extend(document(&tree, &mut findings)),
            Err(diagnostic) => findings.diagnostics.push(diagnostic),
        }
    }
    if assertions.is_empty() && findings.diagnostics.is_empty() {
        findings.error_at(
            Code::MissingField,
            "assertions",
            "the file asserts nothing",
            "Write at least one entry under `assertions`",
        );
    }
    if findings.diagnostics.is_empty() {
        Ok(assertions)
    } else {
        Err(findings.diagnostics)
    }
}

fn document(tree: &node::Node, f: &mut Findings<'_>) -> Vec<Assertion> {
    let Some(object) = f.object(tree, "", &["apiVersion", "kind", "assertions"]) else {
        return Vec::new();
    };
    for (field, wanted) in [("apiVersion", crate::document::API_VERSION), ("kind", KIND)] {
        if let Some(node) = object.require(field, &format!("Write `{field}: {wanted}`"), f)
            && f.text(node, field).is_some_and(|text| text != wanted)
        {
            f.error_at(
                Code::UnknownKind,
                field,
                format!("`{field}` is not {wanted}"),
                format!("Write `{field}: {wanted}`"),
            );
        }
    }
    let Some(list) = object.require("assertions", "Write a list of assertions", f) else {
        return Vec::new();
    };
    let most = f.limits.rules;
    let mut all = Vec::new();
    for (path, node) in f.list(list, "assertions", most) {
        all.extend(assertion(node, &path, f));
    }
    all
}

fn assertion(node: &node::Node, path: &str, f: &mut Findings<'_>) -> Option<Assertion> {
    let object = f.object(node, path, &["name", "forbid", "require"])?;
    let name = object.require(
        "name",
        "Give the assertion a name, for the person who reads that it fails",
        f,
    )?;
    let name = f.text(name, &object.path("name"))?;
    let (expectation, field) = match (object.get("forbid"), object.get("require")) {
        (Some(_), None) => (Expectation::Forbid, "forbid"),
        (None, Some(_)) => (Expectation::Require, "require"),
        _ => {
            f.error_at(
                Code::Contradiction,
                path,
                "an assertion has exactly one of `forbid` and `require`",
                "Keep one of them",
            );
            return None;
        }
    };
    let inner = f.object(object.get(field)?, &object.path(field), &["from", "to", "services"])?;
    let mut side = |field: &str| -> Option<Expression> {
        let node = inner.require(field, "Say who, for example `namespace=finance` or `any`", f)?;
        let text = f.text(node, &inner.path(field))?;
        text.parse()
            .map_err(|error: ExpressionError| {
                f.error_at(
                    Code::BadValue,
                    &inner.path(field),
                    error.to_string(),
                    "Write for example `namespace=finance`, `not app=ledger`, `outside` or `10.0.0.0/8`",
                );
            })
            .ok()
    };
    let (from, to) = (side("from"), side("to"));
    let services = match inner.get("services") {
        None => ServiceSet::full(),
        Some(node) => {
            let text = f.text(node, &inner.path("services"))?;
            read_services(&text)
                .map_err(|error| f.error_at(Code::BadValue, &inner.path("services"), error, "Correct it"))
                .ok()?
        }
    };
    Some(Assertion {
        name,
        expectation,
        from: from?,
        to: to?,
        services,
    })
}

/// A connection that contradicts an assertion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// The network; empty for the cluster's own.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub network: String,
    /// Who opens it.
    pub source: Side,
    /// To whom.
    pub destination: Side,
    /// What is possible and must not be, or the other way round.
    #[serde(serialize_with = "services")]
    pub services: ServiceSet,
    /// One connection of them: the source's and the destination's index in [`Reach::endpoints`], protocol and port.
    pub example: (usize, usize, u8, u16),
}

/// What became of an assertion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// Its name.
    pub name: String,
    /// What was expected.
    pub expectation: Expectation,
    /// How many pairs of endpoints it is about, those of equal endpoints together.
    pub pairs: usize,
    /// Whether there is nobody whom it is about. Such an assertion does not hold: most often a name is misspelt.
    pub vacuous: bool,
    /// What contradicts it.
    pub violations: Vec<Violation>,
}

impl Outcome {
    /// Whether it holds.
    pub fn holds(&self) -> bool {
        self.violations.is_empty() && !self.vacuous
    }
}

impl Assertion {
    /// Everything that contradicts each assertion, exactly, with the reach that the examples belong to.
    pub fn check<'p>(program: &'p Program, assertions: &[Self]) -> (Reach<'p>, Vec<Outcome>) {
        let cuts: Vec<ipnet::IpNet> = assertions
            .iter()
            .flat_map(|a| a.from.nets().chain(a.to.nets()))
            .collect();
        let reach = Reach::with_cuts(program, &cuts);
        let outcomes = assertions.iter().map(|assertion| assertion.hold(&reach)).collect();
        (reach, outcomes)
    }

    fn hold(&self, reach: &Reach<'_>) -> Outcome {
        let mut outcome = Outcome {
            name: self.name.clone(),
            expectation: self.expectation,
            pairs: 0,
            vacuous: true,
            violations: Vec::new(),
        };
        let from: Vec<bool> = reach.endpoints().iter().map(|e| self.from.matches(e)).collect();
        let to: Vec<bool> = reach.endpoints().iter().map(|e| self.to.matches(e)).collect();
        for on in &reach.networks {
            // Within a class, members differ in whether the two sides mean them.
            let count = on.representatives.len();
            let group =
                |i: usize| on.class_of[i].map(|class| class * 4 + usize::from(from[i]) * 2 + usize::from(to[i]));
            let sides = sides(reach.endpoints(), group);
            let mut example = vec![usize::MAX; count * 4];
            for i in (0..reach.endpoints().len()).rev() {
                if let Some(group) = group(i) {
                    example[group] = i;
                }
            }
            for (a, sources) in sides.iter().filter(|(group, _)| *group & 2 != 0) {
                for (b, destinations) in sides.iter().filter(|(group, _)| *group & 1 != 0) {
                    let possible = on.allowed(a / 4, b / 4);
                    let wrong = match self.expectation {
                        Expectation::Forbid => self.services.intersect(possible),
                        Expectation::Require => self.services.subtract(possible),
                    };
                    for source in sources {
                        for destination in destinations {
                            let pod = |side: &Side| matches!(side, Side::Workload { .. });
                            if source == destination
                                || *source == Side::IngressController
                                || *destination == Side::IngressController
                                || !(pod(source) || pod(destination))
                            {
                                continue;
                            }
                            outcome.pairs += 1;
                            outcome.vacuous = false;
                            if let Some((protocol, port)) = first(&wrong) {
                                outcome.violations.push(Violation {
                                    network: on.network.name.clone(),
                                    source: source.clone(),
                                    destination: destination.clone(),
                                    services: wrong.clone(),
                                    example: (example[*a], example[*b], protocol, port),
                                });
                            }
                        }
                    }
                }
            }
        }
        outcome
            .violations
            .sort_by(|a, b| (&a.network, &a.source, &a.destination).cmp(&(&b.network, &b.source, &b.destination)));
        outcome
    }
}

/// One service of a set; a port that people know where there is one.
fn first(set: &ServiceSet) -> Option<(u8, u16)> {
    for known in [443, 80, 22] {
        if set.contains(6, known) {
            return Some((6, known));
        }
    }
    for protocol in PORT_PROTOCOLS {
        if let Some((from, to)) = set.ports(protocol).and_then(|ports| ports.ranges().first()) {
            return Some((protocol, (*from).max(1).min(*to)));
        }
    }
    set.portless().next().map(|protocol| (protocol, 0))
}
