use std::fmt::Write;

use super::{ConsumerSpec, EVENT_KINDS, EnforcerNode, REPLICAS_ANOMALY, consumers};
use crate::{identity::inbox_token, subject};

/// Subjects that every service listens to directly: a revoked session must be known everywhere within a second.
const NEWS: [&str; 2] = ["events.v1.*.revocation", "events.v1.*.keys"];

/// What enforcers report, each on subjects with its own node's name, and nobody else.
const REPORTS: [&str; 3] = ["applied", "removed", "failed"];

/// What policy finds, and anomaly reads and so may not claim to have found.
const VIOLATIONS: &str = "alerts.v1.*.*.policy-violation";

struct Grant {
    /// SPIFFE path.
    identity: String,
    publish: Vec<String>,
    /// Exceptions.
    deny: Vec<String>,
    subscribe: Vec<String>,
}

/// The `authorization { … }` block of the broker's configuration. The broker must verify client certificates and
/// map them to users (`tls { verify_and_map: true }`); users are SPIFFE ids in the certificate's URI name.
///
/// A subscribe permission does not limit what a consumer reads, so reading is limited by who may pull from which
/// consumer, and only `svc/bus-admin` may create, change or delete streams and consumers.
pub fn server_permissions(trust_domain: &str, enforcers: &[EnforcerNode]) -> String {
    let mut text = String::from("authorization {\n  users: [\n");
    for grant in grants(enforcers) {
        let deny = match grant.deny.as_slice() {
            [] => String::new(),
            deny => format!(", deny: [{}]", list(deny)),
        };
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "    {{\n      user: {}\n      permissions: {{\n        publish: {{ allow: [{}]{deny} }}\n        subscribe: {{ allow: [{}] }}\n      }}\n    }}\n",
            quoted(&format!("spiffe://{trust_domain}/{}", grant.identity)),
            list(&grant.publish),
            list(&grant.subscribe),
        );
    }
    text.push_str("  ]\n}\n");
    text
}

fn quoted(text: &str) -> String {
    format!("{:?}", text)
}

fn list(subjects: &[String]) -> String {
    subjects.iter().map(|s| quoted(s)).collect::<Vec<_>>().join(", ")
}

fn grants(enforcers: &[EnforcerNode]) -> Vec<Grant> {
    let services: [(&str, &[&str]); 7] = [
        ("flow-ingest", &["flows.v1.*.*"]),
        ("anomaly", &["alerts.v1.*.*.*", REPLICAS_ANOMALY]),
        ("policy", &["alerts.v1.*.*.*"]),
        (
            "responder",
            &[
                "responses.v1.*.*.dispatched",
                "responses.v1.*.*.reverting",
                "siem.v1.*.*",
            ],
        ),
        ("forensics", &[]),
        ("compliance", &[]),
        ("iam", &[]),
    ];
    let all = consumers(enforcers);
    let mut grants: Vec<Grant> = services
        .iter()
        .map(|(name, publish)| {
            let identity = format!("svc/{name}");
            let mut own: Vec<String> = publish.iter().map(|s| (*s).to_owned()).collect();
            let kinds = EVENT_KINDS
                .iter()
                .filter(|(who, _)| *who == identity)
                .flat_map(|(_, kinds)| *kinds);
            own.extend(kinds.map(|kind| format!("events.v1.*.{kind}")));
            own.push(format!("audit.v1.*.{name}"));
            grant(identity, own, &all)
        })
        .collect();
    grants.extend(enforcers.iter().map(|node| {
        let own = node.tenants().flat_map(|tenant| {
            REPORTS
                .map(|state| format!("responses.v1.{tenant}.*.{state}.{}", node.name()))
                .into_iter()
                .chain([format!("audit.v1.{tenant}.enforcer")])
        });
        grant(format!("enforcer/{}", node.name()), own.collect(), &all)
    }));
    let mut admin = grant("svc/bus-admin".to_owned(), vec!["$JS.API.>".to_owned()], &[]);
    admin.publish.sort();
    admin.publish.dedup();
    grants.push(admin);
    grants
}

fn grant(identity: String, own: Vec<String>, all: &[ConsumerSpec]) -> Grant {
    let mut publish = own;
    publish.push("$JS.API.INFO".to_owned());
    let mut subscribe = vec![format!("_INBOX.{}.>", inbox_token(&identity))];
    subscribe.extend(NEWS.map(str::to_owned));
    if identity == "svc/anomaly" {
        subscribe.push(REPLICAS_ANOMALY.to_owned());
    }
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
        if consumer.direct {
            subscribe.extend(consumer.filters.subjects().into_iter().map(str::to_owned));
        }
    }
    let deny = match identity.as_str() {
        "svc/anomaly" => vec![VIOLATIONS.to_owned()],
        _ => Vec::new(),
    };
    Grant {
        identity,
        publish,
        deny,
        subscribe,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(texts: &[&str]) -> Vec<EnforcerNode> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn of<'a>(grants: &'a [Grant], identity: &str) -> &'a Grant {
        grants.iter().find(|g| g.identity == identity).unwrap()
    }

    #[test]
    fn each_identity_pulls_from_and_dead_letters_for_its_own_consumers_only() {
        let nodes = nodes(&["router=*", "edge=acme"]);
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
    fn replicas_hear_each_other_and_nobody_else() {
        for grant in grants(&nodes(&["router=*"])) {
            let own = grant.identity == "svc/anomaly";
            for subjects in [&grant.publish, &grant.subscribe] {
                assert_eq!(
                    subjects.iter().any(|s| overlap(s, REPLICAS_ANOMALY)),
                    own,
                    "{}",
                    grant.identity
                );
            }
        }
        assert_eq!(crate::topology::stream_of(REPLICAS_ANOMALY), None);
    }

    #[test]
    fn only_the_administrator_may_change_the_topology() {
        for grant in grants(&nodes(&["router=*"])) {
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
        let grants = grants(&nodes(&["router=*"]));
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
    }

    #[test]
    fn an_enforcer_reports_for_itself_and_its_tenants() {
        let grants = grants(&nodes(&["router=*", "edge=acme,globex"]));
        let reports = |tenant: &str, node: &str| format!("responses.v1.{tenant}.block.applied.{node}");
        for (identity, subject, expected) in [
            ("enforcer/edge", reports("acme", "edge"), true),
            ("enforcer/edge", reports("globex", "edge"), true),
            ("enforcer/edge", reports("initech", "edge"), false),
            ("enforcer/edge", reports("acme", "router"), false),
            ("enforcer/edge", "audit.v1.acme.enforcer".to_owned(), true),
            ("enforcer/edge", "audit.v1.initech.enforcer".to_owned(), false),
            ("enforcer/edge", "responses.v1.acme.block.dispatched".to_owned(), false),
            ("enforcer/router", reports("initech", "router"), true),
            ("enforcer/router", reports("acme", "edge"), false),
            ("svc/responder", reports("acme", "edge"), false),
            ("svc/responder", "responses.v1.acme.block.reverting".to_owned(), true),
        ] {
            let may = of(&grants, identity).publish.iter().any(|own| overlap(own, &subject));
            assert_eq!(may, expected, "{identity} on {subject}");
        }
    }

    #[test]
    fn only_readers_of_a_direct_consumer_hear_its_subjects() {
        let nodes = nodes(&["router=*", "edge=acme"]);
        let grants = grants(&nodes);
        for (identity, subject, expected) in [
            ("svc/responder", "alerts.v1.acme.high.scan", true),
            ("svc/responder", "responses.v1.acme.block.dispatched", false),
            ("svc/forensics", "alerts.v1.acme.high.scan", false),
            ("svc/anomaly", "alerts.v1.acme.high.scan", false),
            ("enforcer/router", "responses.v1.globex.block.dispatched", true),
            ("enforcer/edge", "responses.v1.acme.block.reverting", true),
            ("enforcer/edge", "responses.v1.globex.block.dispatched", false),
            ("enforcer/edge", "alerts.v1.acme.high.scan", false),
        ] {
            let hears = of(&grants, identity).subscribe.iter().any(|own| overlap(own, subject));
            assert_eq!(hears, expected, "{identity} on {subject}");
        }
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
        let nodes = nodes(&["router=*", "edge=acme"]);
        let grants = grants(&nodes);
        for consumer in consumers(&nodes).iter().filter(|c| c.stream != "AUDIT") {
            let stream = crate::topology::STREAMS
                .iter()
                .find(|s| s.name == consumer.stream)
                .unwrap();
            let mut delivered = consumer.filters.subjects();
            if delivered.is_empty() {
                delivered = stream.subjects.to_vec();
            }
            let grant = of(&grants, &consumer.identity);
            for (own, filter) in grant
                .publish
                .iter()
                .flat_map(|own| delivered.iter().map(move |d| (own, d)))
            {
                let denied = grant.deny.iter().any(|deny| deny == filter);
                assert!(
                    denied || !overlap(own, filter),
                    "{} publishes and reads {filter}",
                    grant.identity
                );
            }
        }
    }

    #[test]
    fn users_are_spiffe_ids() {
        let text = server_permissions("garrison.test", &nodes(&["router=*"]));
        assert!(text.contains("\"spiffe://garrison.test/enforcer/router\""));
        assert!(text.contains("\"spiffe://garrison.test/svc/bus-admin\""));
    }
}
