//! The agent and a real kernel, with real packets.

use std::{
    collections::BTreeSet,
    path::Path,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use garrison_proto::{TenantId, response::v1::Action};
use responder::enforcer::{
    agent::{Agent, Answer, Setup},
    ledger::{Ledger, Order, Said, What},
    ruleset::{Layout, TenantScope},
    state::StateFile,
};
use uuid::Uuid;

use crate::lab::{Hosts, connect, echo, in_lab, is_cut_off, reaches, run};

fn tenant(id: &str) -> TenantId {
    id.parse().unwrap()
}

fn scope(id: &str, interfaces: &[&str]) -> TenantScope {
    TenantScope {
        id: tenant(id),
        interfaces: interfaces.iter().map(|i| (*i).to_owned()).collect(),
    }
}

fn start(folder: &Path, tenants: Vec<TenantScope>, management: &[&str]) -> Agent {
    let setup = Setup {
        node: "router".into(),
        layout: Layout {
            tenants,
            management: management.iter().map(|n| n.parse().unwrap()).collect(),
        },
        program: "nft".into(),
        state: StateFile::new(folder.join("state.json")),
    };
    Agent::start(setup).unwrap().0
}

fn order(id: u128, action: Action, target: &str) -> Order {
    Order {
        id: Uuid::from_u128(id),
        tenant: tenant("acme"),
        action,
        target: target.parse().unwrap(),
        packets_per_second: if action == Action::RateLimit { 20 } else { 0 },
        expires: None,
        revert: false,
    }
}

fn revert(order: &Order) -> Order {
    Order {
        revert: true,
        ..order.clone()
    }
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(work)
}

async fn obey(agent: &Agent, order: &Order) -> Answer {
    let (answer, stored) = agent.order(order.clone()).await.unwrap();
    assert!(stored.await.unwrap(), "not on disk");
    answer
}

async fn applied(agent: &Agent, order: &Order) {
    let answer = obey(agent, order).await;
    assert_eq!(answer.said, Said::Applied, "{}", answer.error);
    let confirmed = answer.confirmed.unwrap();
    assert!(confirmed.kernel <= confirmed.read_back);
}

async fn removed(agent: &Agent, order: &Order) {
    assert_eq!(obey(agent, &revert(order)).await.said, Said::Removed);
}

fn ruleset() -> String {
    run("nft", &["list", "ruleset"])
}

/// What `nft` prints, also when it fails.
fn run_quietly(arguments: &[&str]) -> String {
    let output = std::process::Command::new("nft").args(arguments).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// How often the agent says that it repaired the ruleset.
async fn repairs(agent: &Agent) -> usize {
    let news = agent.news(1000).await.unwrap();
    let repaired =
        |what: &What| matches!(what, What::Audit { action, .. } if action == "enforcement.tampering_repaired");
    news.iter().filter(|n| repaired(&n.what)).count()
}

/// Whether the agent has said that an order's time ran out.
async fn expired(agent: &Agent, id: Uuid) -> bool {
    let news = agent.news(1000).await.unwrap();
    news.iter()
        .any(|n| matches!(&n.what, What::Report { response, said: Said::Expired, .. } if *response == id))
}

/// How long anything may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(120);

fn within(limit: Duration, what: &str, mut check: impl FnMut() -> bool) {
    let started = Instant::now();
    while !check() {
        assert!(started.elapsed() < limit, "{what} did not happen within {limit:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("{what}: {:?}", started.elapsed());
}

#[test]
fn blocked_hosts_and_networks_are_cut_off_established_connections_too() {
    in_lab(
        "kernel::blocked_hosts_and_networks_are_cut_off_established_connections_too",
        || {
            let hosts = Hosts::new();
            let folder = tempfile::tempdir().unwrap();
            let agent = start(folder.path(), vec![scope("acme", &[])], &[]);
            let web = echo(&hosts.server, 80);
            let inside = echo(&hosts.attacker, 99);
            let mut line = connect(&hosts.attacker, web).unwrap();
            assert!(line.is_alive() && reaches(&hosts.client, web));
            block_on(async {
                let block = order(1, Action::Block, "10.77.1.2");
                let started = Instant::now();
                applied(&agent, &block).await;
                println!("order to disk: {:?}", started.elapsed());
                assert!(line.is_cut(), "an established connection went on");
                assert!(is_cut_off(&hosts.attacker, web));
                assert!(is_cut_off(&hosts.server, inside), "packets to the blocked host passed");
                assert!(reaches(&hosts.client, web), "somebody else was hit");
                applied(&agent, &block).await;
                removed(&agent, &block).await;
                assert!(reaches(&hosts.attacker, web));
                assert_eq!(
                    obey(&agent, &block).await.said,
                    Said::Removed,
                    "a stale order came back"
                );
                assert!(reaches(&hosts.attacker, web));

                let network = order(2, Action::Block, "10.77.1.0/24");
                applied(&agent, &network).await;
                let inner = order(3, Action::Block, "10.77.1.2");
                applied(&agent, &inner).await;
                removed(&agent, &inner).await;
                assert!(
                    is_cut_off(&hosts.attacker, web),
                    "the wider block went with the narrower"
                );
                removed(&agent, &network).await;
                assert!(reaches(&hosts.attacker, web));

                // Two responses, one element: it stays until the last of them is gone.
                let (a, b) = (
                    order(4, Action::Block, "10.77.1.2"),
                    order(5, Action::Block, "10.77.1.2"),
                );
                applied(&agent, &a).await;
                applied(&agent, &b).await;
                removed(&agent, &a).await;
                assert!(is_cut_off(&hosts.attacker, web));
                removed(&agent, &b).await;
                assert!(reaches(&hosts.attacker, web));

                // A revert that overtakes its order.
                let late = order(6, Action::Block, "10.77.1.2");
                removed(&agent, &late).await;
                assert_eq!(obey(&agent, &late).await.said, Said::Removed);
                assert!(reaches(&hosts.attacker, web));

                let v6 = order(7, Action::Block, "2001:db8::7");
                applied(&agent, &v6).await;
                let v6_net = order(8, Action::Block, "2001:db8:1::/64");
                applied(&agent, &v6_net).await;
                assert!(ruleset().contains("2001:db8::7") && ruleset().contains("2001:db8:1::"));
            });
        },
    );
}

#[test]
fn a_block_takes_the_kernel_well_under_a_millisecond() {
    in_lab("kernel::a_block_takes_the_kernel_well_under_a_millisecond", || {
        let folder = tempfile::tempdir().unwrap();
        let agent = start(folder.path(), vec![scope("acme", &[])], &[]);
        block_on(async {
            let mut times = Vec::new();
            for i in 0..200u32 {
                let one = order(
                    u128::from(i) + 1,
                    Action::Block,
                    &format!("10.78.{}.{}", i / 250, i % 250 + 1),
                );
                let started = Instant::now();
                let (answer, stored) = agent.order(one).await.unwrap();
                times.push(started.elapsed());
                assert_eq!(answer.said, Said::Applied);
                stored.await.unwrap();
            }
            times.sort_unstable();
            println!("order to confirmed: p50 {:?}, p99 {:?}", times[100], times[198]);
            assert_eq!(ruleset().matches("10.78.0.").count(), 200);
        });
    });
}

#[test]
fn isolation_keeps_management_and_a_rate_limit_keeps_some() {
    in_lab("kernel::isolation_keeps_management_and_a_rate_limit_keeps_some", || {
        let hosts = Hosts::new();
        let folder = tempfile::tempdir().unwrap();
        // The attacker's segment plays the management network.
        let agent = start(folder.path(), vec![scope("acme", &[])], &["10.77.1.0/24"]);
        let web = echo(&hosts.server, 80);
        let manager = echo(&hosts.attacker, 22);
        block_on(async {
            let isolate = order(1, Action::Isolate, "10.77.2.2");
            applied(&agent, &isolate).await;
            assert!(is_cut_off(&hosts.client, web), "an isolated host reached another");
            assert!(reaches(&hosts.client, manager), "an isolated host lost its management");
            let refused = obey(&agent, &order(2, Action::Block, "10.77.1.2")).await;
            assert_eq!(refused.said, Said::Failed);
            assert!(refused.error.contains("GAR-ENF-0006"), "{}", refused.error);
            removed(&agent, &isolate).await;
            assert!(reaches(&hosts.client, web));

            let slow = order(3, Action::RateLimit, "10.77.2.2");
            applied(&agent, &slow).await;
            assert!(reaches(&hosts.client, web), "a slow host was cut off");
            let started = Instant::now();
            let passed = hosts
                .client
                .run(|| {
                    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
                    for _ in 0..400 {
                        socket.send_to(b"x", "10.77.3.2:9").unwrap();
                    }
                })
                .and_then(|()| hosts.server.run(received_udp))
                .unwrap();
            println!("passed {passed} of 400 at 20 a second");
            // Twenty a second and a few at once, twice over.
            let most = 100 + 40 * started.elapsed().as_secs();
            assert!((1..most).contains(&passed), "{passed} packets passed, of {most}");
            removed(&agent, &slow).await;
        });
    });
}

/// UDP datagrams that this host's kernel has seen, wanted or not.
fn received_udp() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
    let mut lines = text.lines().filter(|l| l.starts_with("Udp:"));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    names
        .split_whitespace()
        .zip(values.split_whitespace())
        .filter(|(name, _)| ["InDatagrams", "NoPorts"].contains(name))
        .map(|(_, value)| value.parse::<u64>().unwrap())
        .sum()
}

#[test]
fn one_tenants_orders_do_not_touch_anothers_packets() {
    in_lab("kernel::one_tenants_orders_do_not_touch_anothers_packets", || {
        let hosts = Hosts::new();
        let folder = tempfile::tempdir().unwrap();
        let tenants = vec![scope("acme", &["to-client"]), scope("globex", &["to-attacker"])];
        let agent = start(folder.path(), tenants, &[]);
        let web = echo(&hosts.server, 80);
        block_on(async {
            // Both of acme's orders; the attacker's packets pass globex's interface only.
            applied(&agent, &order(1, Action::Block, "10.77.1.2")).await;
            assert!(reaches(&hosts.attacker, web), "acme's block hit globex's host");
            applied(&agent, &order(2, Action::Block, "10.77.2.2")).await;
            assert!(is_cut_off(&hosts.client, web));
            let globex = Order {
                tenant: tenant("globex"),
                ..order(3, Action::Block, "10.77.1.2")
            };
            applied(&agent, &globex).await;
            assert!(is_cut_off(&hosts.attacker, web));
            removed(&agent, &globex).await;
            assert!(reaches(&hosts.attacker, web));
            assert!(is_cut_off(&hosts.client, web));
        });
    });
}

#[test]
fn time_runs_out_and_is_reported() {
    in_lab("kernel::time_runs_out_and_is_reported", || {
        let hosts = Hosts::new();
        let folder = tempfile::tempdir().unwrap();
        let agent = start(folder.path(), vec![scope("acme", &[])], &[]);
        let web = echo(&hosts.server, 80);
        block_on(async {
            let mut seen = false;
            for (id, seconds) in [(11, 2), (12, 10), (13, 50)] {
                let expires = Utc::now() + chrono::Duration::seconds(seconds);
                let short = Order {
                    expires: Some(expires),
                    ..order(id, Action::Block, "10.77.1.2")
                };
                let answer = obey(&agent, &short).await;
                let (rules, cut) = (ruleset(), is_cut_off(&hosts.attacker, web));
                // On a slow machine it may be over before this was asked; then it is tried with more time.
                if Utc::now() < expires {
                    assert_eq!(answer.said, Said::Applied, "{}", answer.error);
                    assert!(rules.contains("expires"), "the kernel knows no end: {rules}");
                    assert!(cut);
                    seen = true;
                }
                within(PATIENCE, "expiry", || reaches(&hosts.attacker, web));
                let started = Instant::now();
                while !expired(&agent, short.id).await && answer.said != Said::Expired {
                    assert!(started.elapsed() < PATIENCE, "the end is not reported");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                if seen {
                    break;
                }
            }
            assert!(seen, "nobody saw a block that ends by itself");
            let over = Order {
                expires: Some(Utc::now() - chrono::Duration::seconds(1)),
                ..order(2, Action::Block, "10.77.1.2")
            };
            assert_eq!(obey(&agent, &over).await.said, Said::Expired);
            assert!(reaches(&hosts.attacker, web));
        });
    });
}

#[test]
fn tampering_is_noticed_and_repaired_within_seconds() {
    in_lab("kernel::tampering_is_noticed_and_repaired_within_seconds", || {
        let folder = tempfile::tempdir().unwrap();
        let agent = start(folder.path(), vec![scope("acme", &[])], &[]);
        block_on(async {
            applied(&agent, &order(1, Action::Block, "10.77.1.2")).await;
            applied(&agent, &order(2, Action::Block, "10.77.9.0/28")).await;
            let whole = run("nft", &["-s", "list", "table", "inet", "garrison"]);
            let same = || run_quietly(&["-s", "list", "table", "inet", "garrison"]) == whole;
            let set = "block4_32_acme";
            let tamperings = [
                "delete table inet garrison".to_owned(),
                format!("delete element inet garrison {set} {{ 10.77.1.2 }}"),
                format!("add element inet garrison {set} {{ 10.77.5.5 }}"),
                "flush chain inet garrison forward".to_owned(),
                "insert rule inet garrison tenant_acme accept".to_owned(),
                "flush ruleset".to_owned(),
            ];
            for (i, tampering) in tamperings.iter().enumerate() {
                let started = Instant::now();
                run("nft", &[tampering]);
                while repairs(&agent).await <= i || !same() {
                    assert!(
                        // Sooner than by the look at everything, once a minute.
                        started.elapsed() < Duration::from_secs(40),
                        "{tampering} was not repaired: {}",
                        ruleset()
                    );
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                println!("{tampering}: repaired after {:?}", started.elapsed());
            }
            // Somebody else's table is nobody's business.
            let before = agent.news(1000).await.unwrap().len();
            run("nft", &["add table inet other"]);
            tokio::time::sleep(Duration::from_millis(600)).await;
            assert!(run("nft", &["list", "tables"]).contains("other"));
            let news = agent.news(1000).await.unwrap();
            assert_eq!(news.len(), before, "a foreign table was taken for tampering");
            assert_eq!(repairs(&agent).await, tamperings.len());
        });
    });
}

/// What a crash between two steps leaves behind: every pair of kernel and file that can be.
#[test]
fn whatever_a_crash_leaves_behind_is_made_whole() {
    in_lab("kernel::whatever_a_crash_leaves_behind_is_made_whole", || {
        let hosts = Hosts::new();
        let web = echo(&hosts.server, 80);
        let block = order(1, Action::Block, "10.77.1.2");
        let blocked = || is_cut_off(&hosts.attacker, web);
        let open = || reaches(&hosts.attacker, web);
        let fresh = || {
            let _ = std::process::Command::new("nft").args(["flush", "ruleset"]).status();
            tempfile::tempdir().unwrap()
        };
        let scopes = || vec![scope("acme", &[])];
        let now = Utc::now;

        // Applied in the kernel, not on disk yet: it stays until the responder has spoken, either way.
        for wanted in [true, false] {
            let folder = fresh();
            let agent = start(folder.path(), scopes(), &[]);
            block_on(applied(&agent, &block));
            drop(agent);
            StateFile::new(folder.path().join("state.json"))
                .store(&Ledger::default())
                .unwrap();
            let agent = start(folder.path(), scopes(), &[]);
            assert!(blocked(), "containment dropped by a restart");
            let desired = if wanted { vec![block.clone()] } else { Vec::new() };
            block_on(agent.reconcile(desired, now())).unwrap();
            assert!(if wanted { blocked() } else { open() });
            // The order comes again, for it was not acknowledged.
            if wanted {
                block_on(applied(&agent, &block));
                assert!(blocked());
            }
        }

        // On disk, and the kernel is empty: the machine was restarted.
        let folder = fresh();
        let agent = start(folder.path(), scopes(), &[]);
        block_on(applied(&agent, &block));
        drop(agent);
        run("nft", &["flush", "ruleset"]);
        assert!(open());
        let agent = start(folder.path(), scopes(), &[]);
        assert!(blocked(), "a restart of the machine ended containment");

        // Removed from the kernel, not on disk yet: it is back until the revert comes again.
        let before = std::fs::read(folder.path().join("state.json")).unwrap();
        block_on(removed(&agent, &block));
        drop(agent);
        std::fs::write(folder.path().join("state.json"), before).unwrap();
        let agent = start(folder.path(), scopes(), &[]);
        block_on(removed(&agent, &block));
        assert!(open());

        // A half-written file is the old one; an unreadable one is put aside.
        drop(agent);
        std::fs::write(folder.path().join("state.json.new"), b"{").unwrap();
        drop(start(folder.path(), scopes(), &[]));
        std::fs::write(folder.path().join("state.json"), b"{").unwrap();
        let agent = start(folder.path(), scopes(), &[]);
        assert!(folder.path().join("state.json.unreadable").exists());
        block_on(agent.reconcile(vec![block.clone()], now())).unwrap();
        assert!(
            blocked(),
            "what the responder wants was not restored after the state was lost"
        );
        drop(agent);
    });
}

#[test]
fn reconciling_brings_the_node_in_step_and_says_so() {
    in_lab("kernel::reconciling_brings_the_node_in_step_and_says_so", || {
        let folder = tempfile::tempdir().unwrap();
        let agent = start(folder.path(), vec![scope("acme", &[])], &[]);
        block_on(async {
            let (a, b) = (
                order(1, Action::Block, "10.77.1.2"),
                order(2, Action::Block, "10.77.1.3"),
            );
            applied(&agent, &a).await;
            tokio::time::sleep(Duration::from_millis(200)).await;
            let asked: DateTime<Utc> = Utc::now();
            let young = order(3, Action::Block, "10.77.1.4");
            applied(&agent, &young).await;
            let summary = agent.reconcile(vec![b.clone()], asked).await.unwrap();
            assert_eq!((summary.applied, summary.removed, summary.failed), (1, 1, 0));
            let rules = ruleset();
            assert!(!rules.contains("10.77.1.2") && rules.contains("10.77.1.3"));
            assert!(
                rules.contains("10.77.1.4"),
                "what came after the question was taken back"
            );
            assert_eq!(
                agent.digest().await.unwrap(),
                responder::digest::digest([b.id, young.id])
            );
            let news = agent.news(100).await.unwrap();
            let said: Vec<(Uuid, Said)> = news
                .iter()
                .filter_map(|n| match &n.what {
                    What::Report { response, said, .. } => Some((*response, *said)),
                    What::Audit { .. } => None,
                })
                .collect();
            assert_eq!(said, [(b.id, Said::Applied), (a.id, Said::Removed)]);
            let ids: BTreeSet<Uuid> = news.iter().map(|n| n.id).collect();
            agent.said(ids).unwrap();
            assert!(agent.news(100).await.unwrap().is_empty());
        });
    });
}

#[test]
fn without_the_right_it_says_so_and_does_not_start() {
    // A network namespace of its own, so that nothing is touched should it start after all.
    let output = std::process::Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "--", "setpriv"])
        .args([
            "--bounding-set=-all",
            "--inh-caps=-all",
            "--ambient-caps=-all",
            "--no-new-privs",
            "--",
        ])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "kernel::helper_starts_an_agent", "--ignored", "--nocapture"])
        .output()
        .expect("unshare of util-linux is needed");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        said.contains("GAR-ENF-0002"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
#[ignore = "run by without_the_right_it_says_so_and_does_not_start"]
fn helper_starts_an_agent() {
    let folder = tempfile::tempdir().unwrap();
    let setup = Setup {
        node: "router".into(),
        layout: Layout {
            tenants: vec![scope("acme", &[])],
            management: Vec::new(),
        },
        program: "nft".into(),
        state: StateFile::new(folder.path().join("state.json")),
    };
    println!(
        "{}",
        Agent::start(setup)
            .err()
            .map_or_else(|| "started".to_owned(), |e| e.to_string())
    );
}
