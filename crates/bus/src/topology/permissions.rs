use std::fmt::Write;

use super::{ConsumerSpec, EVENT_KINDS, consumers};
use crate::{identity::inbox_token, subject};

/// A node name cannot be used in a SPIFFE id and a consumer name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("GAR-BUS-0008: {0:?} is not a node name: use 1 to 63 of a-z, 0-9, hyphen and underscore")]
pub struct InvalidNode(pub String);

/// Subjects that every service listens to directly: a revoked session must be known everywhere within a second.
const NEWS: [&str; 2] = ["events.v1.*.revocation", "events.v1.*.keys"];

/// What enforcers report, and nobody else.
const REPORTS: [&str; 3] = [
    "responses.v1.*.*.applied",
    "responses.v1.*.*.removed",
    "responses.v1.*.*.failed",
];

struct Grant {
    /// SPIFFE path.
    identity: String,
    publish: Vec<String>,
    deny_publish: Vec<String>,
    subscribe: Vec<String>,
}

/// The `authorization { … }` block of the broker's configuration. The broker must verify client certificates and
/// map them to users (`tls { verify_and_map: true }`); users are SPIFFE ids in the certificate's URI name.
///
/// A subscribe permission does not limit what a consumer reads, so reading is limited by who may pull from which
/// consumer, and only `svc/bus-admin` may create, change or delete streams and consumers.
///
/// # Errors
/// [`InvalidNode`] when a node's name is not a safe token.
pub fn server_permissions(trust_domain: &str, nodes: &[String]) -> Result<String, InvalidNode> {
    if let Some(bad) = nodes
        .iter()
        .find(|node| subject::token(node) != **node || node.len() > 63)
    {
        return Err(InvalidNode(bad.clone()));
    }
    let mut text = String::from("authorization {\n  users: [\n");
    for grant in grants(nodes) {
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "    {{\n      user: {}\n      permissions: {{\n        publish: {{ allow: [{}]{} }}\n        subscribe: {{ allow: [{}] }}\n      }}\n    }}\n",
            quoted(&format!("spiffe://{trust_domain}/{}", grant.identity)),
            list(&grant.publish),
            if grant.deny_publish.is_empty() {
                String::new()
            } else {
                format!(", deny: [{}]", list(&grant.deny_publish))
            },
            list(&grant.subscribe),
        );
    }
    text.push_str("  ]\n}\n");
    Ok(text)
}

fn quoted(text: &str) -> String {
    format!("{:?}", text)
}

fn list(subjects: &[String]) -> String {
    subjects.iter().map(|s| quoted(s)).collect::<Vec<_>>().join(", ")
}

fn grants(nodes: &[String]) -> Vec<Grant> {
    let services: [(&str, &[&str], &[&str]); 7] = [
        ("flow-ingest", &["flows.v1.*.*"], &[]),
        ("anomaly", &["alerts.v1.*.*.*"], &[]),
        ("policy", &["alerts.v1.*.*.*"], &[]),
        ("responder", &["responses.v1.*.*.*", "siem.v1.*.*"], &REPORTS),
        ("forensics", &[], &[]),
        ("compliance", &[], &[]),
        ("iam", &[], &[]),
    ];
    let all = consumers(nodes);
    let mut grants: Vec<Grant> = services
        .iter()
        .map(|(name, publish, deny)| {
            let identity = format!("svc/{name}");
            let mut own: Vec<String> = publish.iter().map(|s| (*s).to_owned()).collect();
            let kinds = EVENT_KINDS
                .iter()
                .filter(|(who, _)| *who == identity)
                .flat_map(|(_, kinds)| *kinds);
            own.extend(kinds.map(|kind| format!("events.v1.*.{kind}")));
            own.push(format!("audit.v1.*.{name}"));
            grant(identity, own, deny.iter().map(|s| (*s).to_owned()).collect(), &all)
        })
        .collect();
    grants.extend(nodes.iter().map(|node| {
        let own = REPORTS
            .map(str::to_owned)
            .into_iter()
            .chain(["audit.v1.*.enforcer".to_owned()]);
        grant(format!("enforcer/{node}"), own.collect(), Vec::new(), &all)
    }));
    let mut admin = grant(
        "svc/bus-admin".to_owned(),
        vec!["$JS.API.>".to_owned()],
        Vec::new(),
        &[],
    );
    admin.publish.sort();
    admin.publish.dedup();
    grants.push(admin);
    grants
}

fn grant(identity: String, own: Vec<String>, deny_publish: Vec<String>, all: &[ConsumerSpec]) -> Grant {
    let mut publish = own;
    publish.push("$JS.API.INFO".to_owned());
    for consumer in all.iter().filter(|c| c.identity == identity) {
        let (stream, name) = (consumer.stream, &consumer.name);
        publish.push(format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{name}"));
        publish.push(format!("$JS.API.CONSUMER.INFO.{stream}.{name}"));
        // Acknowledgements have two forms (ADR-15): without and with domain and account hash. The domain is `_`
        // where the broker has none; a wildcard there would let one consumer's name pose as another's position.
        publish.push(format!("$JS.ACK.{stream}.{name}.>"));
        publish.push(format!("$JS.ACK._.*.{stream}.{name}.>"));
        publish.push(subject::dlq(stream, name));
        if consumer.replays {
            publish.push(format!("$JS.API.DIRECT.GET.{stream}"));
        }
    }
    let mut subscribe = vec![format!("_INBOX.{}.>", inbox_token(&identity))];
    subscribe.extend(NEWS.map(str::to_owned));
    Grant {
        identity,
        publish,
        deny_publish,
        subscribe,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of<'a>(grants: &'a [Grant], identity: &str) -> &'a Grant {
        grants.iter().find(|g| g.identity == identity).unwrap()
    }

    #[test]
    fn each_identity_pulls_from_and_dead_letters_for_its_own_consumers_only() {
        let nodes = ["router".to_owned(), "edge".to_owned()];
        let grants = grants(&nodes);
        for consumer in consumers(&nodes) {
            let next = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", consumer.stream, consumer.name);
            let dead = subject::dlq(consumer.stream, &consumer.name);
            for grant in &grants {
                let owner = grant.identity == consumer.identity;
                assert_eq!(grant.publish.contains(&next), owner, "{} {next}", grant.identity);
                assert_eq!(grant.publish.contains(&dead), owner, "{} {dead}", grant.identity);
            }
        }
    }

    #[test]
    fn only_the_administrator_may_change_the_topology() {
        for grant in grants(&["router".to_owned()]) {
            let manages = grant
                .publish
                .iter()
                .any(|s| s.starts_with("$JS.API.>") || s.contains("CREATE") || s.contains("STREAM"));
            assert_eq!(manages, grant.identity == "svc/bus-admin", "{}", grant.identity);
            assert!(!grant.publish.iter().any(|s| s == ">" || s.starts_with('*')));
            assert_eq!(grant.subscribe[0].matches('>').count(), 1);
        }
    }

    #[test]
    fn revocations_come_from_iam_and_reach_everybody() {
        let grants = grants(&["router".to_owned()]);
        for grant in &grants {
            assert!(
                grant.subscribe.iter().any(|s| s == "events.v1.*.revocation"),
                "{}",
                grant.identity
            );
        }
        for grant in &grants {
            let revokes = grant.publish.iter().any(|s| overlap(s, "events.v1.*.revocation"));
            assert_eq!(revokes, grant.identity == "svc/iam", "{}", grant.identity);
        }
        assert!(
            of(&grants, "svc/responder")
                .deny_publish
                .iter()
                .any(|s| s == "responses.v1.*.*.applied")
        );
    }

    fn overlap(a: &str, b: &str) -> bool {
        a.split('.').count() == b.split('.').count()
            && a.split('.')
                .zip(b.split('.'))
                .all(|(a, b)| a == b || a == "*" || b == "*")
    }

    /// Otherwise it could have the broker copy a message of its own making to a subject it may not publish on
    /// (see `Delivery::read`). compliance keeps the audit trail, so its own records in it are no exception to guard.
    #[test]
    fn nobody_s_consumer_delivers_what_it_may_publish_itself() {
        let nodes = ["router".to_owned()];
        let grants = grants(&nodes);
        for consumer in consumers(&nodes).iter().filter(|c| c.stream != "AUDIT") {
            let stream = crate::topology::STREAMS
                .iter()
                .find(|s| s.name == consumer.stream)
                .unwrap();
            let delivered = if consumer.filters.is_empty() {
                stream.subjects
            } else {
                consumer.filters
            };
            let grant = of(&grants, &consumer.identity);
            for (own, filter) in grant
                .publish
                .iter()
                .flat_map(|own| delivered.iter().map(move |d| (own, d)))
            {
                let denied = grant.deny_publish.iter().any(|d| d == filter);
                assert!(
                    denied || !overlap(own, filter),
                    "{} publishes and reads {filter}",
                    grant.identity
                );
            }
        }
    }

    #[test]
    fn hostile_node_names_are_refused() {
        for bad in ["", "a b", "*", ">", "a.b", "A", "x\"y", &"n".repeat(64)] {
            assert!(
                server_permissions("garrison.test", &[bad.to_owned()]).is_err(),
                "{bad:?} was taken"
            );
        }
        let text = server_permissions("garrison.test", &["router".to_owned()]).unwrap();
        assert!(text.contains("\"spiffe://garrison.test/enforcer/router\""));
    }
}
