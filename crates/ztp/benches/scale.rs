//! How the engine grows: connectivity of whole clusters, one changed policy, compiling, replaying, judging, and what it
//! takes of memory.
//!
//! `cargo bench -p garrison-ztp --bench scale`, or `cargo xtask bench policy`, which holds it against its limits.
//! `quick` after `--` runs a tenth.

use std::{
    hint::black_box,
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use garrison_ztp::{
    Engine, Policy as Lowered, check,
    compile::Target,
    reach::{
        Action, Endpoint, Identity, Matrix, Network, Order, Peer, Plane, Policy, Ports, Program, Reach, Rest, Rule,
        Stage,
    },
    sets::{LabelValues, Labels, Selector, ServiceSet},
    what_if::{Record, Replay},
};

const APPS: usize = 10;
const REPLICAS: usize = 10;
const NAME: &str = "kubernetes.io/metadata.name";

fn main() {
    let quick = std::env::args().any(|argument| argument == "quick");
    let tenth = if quick { 10 } else { 1 };
    for (pods, policies) in [(10_000, 1_000), (30_000, 3_000), (100_000, 10_000)] {
        connectivity(pods / tenth, policies / tenth);
    }
    peer();
    compile(10_000 / tenth);
    judge(10_000_000 / tenth);
}

fn line(name: &str, value: impl std::fmt::Display) {
    println!("{name:<44} {value}");
}

fn milliseconds(duration: Duration) -> String {
    format!("{:.2} ms", duration.as_secs_f64() * 1e3)
}

/// Resident memory, MiB.
fn resident() -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<f64>().ok());
    kib.unwrap_or_default() / 1024.0
}

fn equal(key: &str, value: String) -> Selector {
    Selector::full().and(key, LabelValues::within([value]))
}

fn tcp(port: u16) -> Ports {
    let mut numbers = ServiceSet::empty();
    numbers.insert(6, port, port);
    Ports {
        numbers,
        named: Vec::new(),
    }
}

/// Pods of apps in namespaces of teams; each policy is an app's.
fn program(pods: usize, policies: usize) -> Program {
    let namespaces = (pods / APPS / REPLICAS).max(1);
    let mut endpoints = Vec::with_capacity(pods);
    for n in 0..namespaces {
        let labels = Labels::from([
            (NAME.to_owned(), format!("ns-{n}")),
            ("team".to_owned(), format!("team-{}", n % 50)),
        ]);
        for app in 0..APPS {
            for replica in 0..REPLICAS {
                let number = (n * APPS + app) * REPLICAS + replica;
                endpoints.push(Endpoint {
                    identity: Identity::Workload {
                        namespace: format!("ns-{n}"),
                        name: format!("app-{app}"),
                        kind: "Deployment".to_owned(),
                        pod: format!("app-{app}-{replica}"),
                        host_network: false,
                    },
                    namespace_labels: labels.clone(),
                    labels: Labels::from([
                        ("app".to_owned(), format!("app-{app}")),
                        ("tier".to_owned(), format!("tier-{}", app % 3)),
                    ]),
                    addresses: vec![IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + number as u32))],
                    ports: Vec::new(),
                    networks: Vec::new(),
                    range: Default::default(),
                });
            }
        }
    }
    Program {
        networks: vec![Network {
            name: String::new(),
            planes: vec![Plane {
                name: "Kubernetes".to_owned(),
                stages: vec![Stage {
                    name: "NetworkPolicy".to_owned(),
                    order: Order::DenyFirst,
                    rest: Rest::Deny,
                    policies: (0..policies).map(|i| policy(i, namespaces, 8_080)).collect(),
                }],
            }],
        }],
        endpoints,
        exposed: Vec::new(),
    }
}

fn policy(number: usize, namespaces: usize, port: u16) -> Policy {
    let (namespace, app) = (number / APPS % namespaces, number % APPS);
    let own = equal(NAME, format!("ns-{namespace}"));
    let pods = |namespaces: Selector, pods: Selector| Peer::Pods {
        namespaces,
        pods,
        hosts: false,
    };
    let rule = |peers, ports| Rule {
        name: String::new(),
        field: String::new(),
        action: Action::Accept,
        peers,
        ports,
    };
    let mut dns = ServiceSet::empty();
    dns.insert(17, 53, 53);
    Policy {
        kind: "NetworkPolicy".to_owned(),
        namespace: format!("ns-{namespace}"),
        name: format!("policy-{number}"),
        file: String::new(),
        line: 0,
        subject: pods(own.clone(), equal("app", format!("app-{app}"))),
        ingress: Some(vec![
            rule(
                vec![pods(own.clone(), equal("app", format!("app-{}", (app + 1) % APPS)))],
                tcp(port),
            ),
            rule(
                vec![pods(
                    equal("team", format!("team-{}", number % 50)),
                    equal("tier", "tier-1".to_owned()),
                )],
                tcp(9_090 + (number % 16) as u16),
            ),
        ]),
        egress: Some(vec![
            rule(
                vec![Peer::Any],
                Ports {
                    numbers: dns,
                    named: Vec::new(),
                },
            ),
            rule(vec![pods(own, Selector::full())], tcp(port)),
            rule(
                vec![pods(
                    equal("team", format!("team-{}", namespace % 50)),
                    Selector::full(),
                )],
                Ports {
                    numbers: {
                        let mut set = ServiceSet::empty();
                        set.insert(6, 9_000, 9_999);
                        set
                    },
                    named: Vec::new(),
                },
            ),
            rule(
                vec![Peer::Addresses(
                    format!("198.51.{}.0/24", number % 100).parse().into_iter().collect(),
                )],
                tcp(443),
            ),
        ]),
    }
}

fn connectivity(pods: usize, policies: usize) {
    println!("\n{pods} pods, {policies} policies");
    let program = program(pods, policies);
    let before = resident();
    let started = Instant::now();
    let mut matrix = Matrix::of(&program);
    let connected = matrix.connected();
    line("all pairs", milliseconds(started.elapsed()));
    line("  classes", matrix.classes());
    line("  connected pairs", connected);
    line("  memory", format!("{:.0} MiB", resident() - before));
    let namespaces = (pods / APPS / REPLICAS).max(1);
    let mut times: Vec<Duration> = (0..200)
        .map(|i| {
            let number = i * 37 % policies;
            let new = policy(number, namespaces, 7_000 + (i % 2) as u16);
            let started = Instant::now();
            let changed = matrix.replace(0, 0, number, new);
            black_box(&changed);
            started.elapsed()
        })
        .collect();
    times.sort_unstable();
    line("one changed policy, median", milliseconds(times[times.len() / 2]));
    line("one changed policy, worst of 200", milliseconds(times[times.len() - 1]));
}

/// The pairwise analysis and the matrix, over the same small cluster.
fn peer() {
    let program = program(2_000, 200);
    println!("\n2000 pods, 200 policies, beside the analysis pair by pair");
    let started = Instant::now();
    let matrix = Matrix::of(&program);
    let fast = started.elapsed();
    let started = Instant::now();
    let reach = Reach::of(&program);
    let slow = started.elapsed();
    line("matrix", milliseconds(fast));
    line("pair by pair", milliseconds(slow));
    let differ = (0..2_000)
        .step_by(61)
        .flat_map(|a| (0..2_000).step_by(53).map(move |b| (a, b)))
        .filter(|(a, b)| matrix.allowed(*a, *b) != reach.allowed(0, *a, *b))
        .count();
    line("pairs that differ", differ);
}

fn document(number: usize) -> String {
    let address = Ipv4Addr::from(0x0a00_0000 + (number as u32) * 4);
    format!(
        "apiVersion: garrison.dev/v1alpha1
kind: ZeroTrustPolicy
metadata: {{name: p{number}}}
spec:
  mode: enforce
  subject: {{cidrs: [{address}/30], workloads: {{namespace: ns-{}, podSelector: {{matchLabels: {{app: app-{}}}}}}}}}
  ingress:
    - {{name: web, from: [{{cidr: 10.128.{}.0/24}}], ports: [{{protocol: TCP, port: 8080}}]}}
    - {{name: metrics, from: [{{cidr: 10.129.0.0/24}}], ports: [{{protocol: TCP, port: 9090}}]}}
    - {{name: guests, action: deny, from: [{{cidr: 10.130.{}.0/24}}]}}
",
        number / APPS,
        number % APPS,
        number % 250,
        number % 100
    )
}

fn compile(count: usize) {
    println!("\n{count} policies");
    let texts: Vec<String> = (0..count).map(document).collect();
    let before = resident();
    let started = Instant::now();
    let policies: Vec<Lowered> = texts
        .iter()
        .filter_map(|text| check(text).documents.pop())
        .map(|document| document.lower(1))
        .collect();
    line("read and checked", milliseconds(started.elapsed()));
    assert_eq!(policies.len(), count, "the benchmark's own documents are right");
    let mut all = Duration::ZERO;
    for target in Target::ALL {
        let started = Instant::now();
        let compiled = target.compile(&policies, |_| None);
        let took = started.elapsed();
        all += took;
        let size: usize = compiled.files.iter().map(|f| f.content.len()).sum();
        let fits = if compiled.files.is_empty() {
            ", refused: over the provider's limits"
        } else {
            ""
        };
        line(
            &format!("compiled for {}", target.name()),
            format!(
                "{}, {} KiB, {} gaps{fits}",
                milliseconds(took),
                size / 1024,
                compiled.gaps.len()
            ),
        );
    }
    line("compiled for all targets", milliseconds(all));
    line("memory", format!("{:.0} MiB", resident() - before));
}

fn judge(flows: usize) {
    // 1,000 policies of 10 rules are 10,000 rules.
    let mut text = String::new();
    let policies: Vec<Lowered> = (0..1_000u32)
        .filter_map(|number| {
            text.clear();
            text.push_str(&format!(
                "apiVersion: garrison.dev/v1alpha1\nkind: ZeroTrustPolicy\nmetadata: {{name: p{number}}}\nspec:\n  mode: enforce\n  subject: {{cidrs: [{}/30]}}\n  ingress:\n",
                Ipv4Addr::from(0x0a00_0000 + number * 4)
            ));
            for rule in 0..10u32 {
                let net = Ipv4Addr::from(0x0a80_0000 + ((number * 37 + rule * 4_099) & 0xffff & !0xff));
                text.push_str(&format!(
                    "    - {{name: r{rule}, from: [{{cidr: {net}/24}}], ports: [{{protocol: TCP, port: {}}}]}}\n",
                    8_000 + rule
                ));
            }
            check(&text).documents.pop().map(|document| document.lower(1))
        })
        .collect();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = |below: u32| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % u64::from(below)) as u32
    };
    println!("\n{flows} flows against 10000 rules");
    let Ok(engine) = Engine::build(&policies) else {
        println!("the rules are too complex to measure");
        return;
    };
    // Nine of ten do what a rule allows, as in a network that works.
    let sample: Vec<(IpAddr, IpAddr, u16)> = (0..1 << 16)
        .map(|i| {
            if i % 10 > 0 {
                let (number, rule) = (next(1_000), next(10));
                let net = 0x0a80_0000 + ((number * 37 + rule * 4_099) & 0xffff & !0xff);
                return (
                    Ipv4Addr::from(net + next(256)).into(),
                    Ipv4Addr::from(0x0a00_0000 + number * 4 + next(4)).into(),
                    8_000 + rule as u16,
                );
            }
            (
                Ipv4Addr::from(0x0a80_0000 + next(1 << 16)).into(),
                Ipv4Addr::from(0x0a00_0000 + next(4_000)).into(),
                8_000 + next(20) as u16,
            )
        })
        .collect();
    let started = Instant::now();
    let mut denied = 0u64;
    for i in 0..flows {
        let (src, dst, port) = sample[i & 0xffff];
        denied += u64::from(engine.decide(src, dst, 6, port).enforced.ingress.denies());
    }
    let took = started.elapsed();
    line(
        "verdicts, flows/s a core",
        format!("{:.0}", flows as f64 / took.as_secs_f64()),
    );
    line("  denied", denied);

    let before = resident();
    let started = Instant::now();
    let Ok(mut replay) = Replay::new(&policies, None::<&[Lowered]>) else {
        println!("the rules are too complex to measure");
        return;
    };
    let begin = 1_790_000_000_000_000_000_i64;
    for i in 0..flows {
        let (src, dst, port) = sample[i & 0xffff];
        let mut flow = [0; 16];
        flow[..8].copy_from_slice(&(i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        flow[8..].copy_from_slice(&(i as u64).to_le_bytes());
        let at = begin + (i as i64) * 60_000_000;
        replay.record(&Record {
            flow,
            src,
            dst,
            protocol: 6,
            port,
            first_seen: at,
            last_seen: at + 1_000_000,
        });
    }
    let report = replay.report();
    line("what-if", milliseconds(started.elapsed()));
    line("  blocked", report.totals.blocked);
    line("  memory", format!("{:.0} MiB", resident() - before));
}
