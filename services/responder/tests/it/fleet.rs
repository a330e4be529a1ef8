//! Responder, enforcer, broker, database and a real kernel together: from the alert to the dropped packet.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use chrono::Utc;
use garrison_bus::{Bus, Message, subject};
use garrison_proto::{
    TenantId,
    alert::v1::Alert,
    from_timestamp,
    response::v1::{Action, EnforcementOrder, Response, ResponseState},
};
use garrison_testkit::Stack;
use responder::{
    app::{App, NewResponse},
    config::Config,
};

use crate::{
    fixture::{brute_force, eventually, forbidden, id_of, person},
    lab::{Hosts, connect, echo, in_lab, is_cut_off, reaches, run},
    processes::{Program, enforcer_config, responder_config},
};

const ENFORCER: &str = env!("CARGO_BIN_EXE_enforcer");
const SOON: Duration = Duration::from_secs(120);

struct Fleet {
    app: App,
    enforcer: Program,
    config: PathBuf,
    tenant: TenantId,
    _folder: tempfile::TempDir,
    stack: Stack,
}

/// Runs the responder inside this process, so that the test can act as a person on its use cases.
fn responder(config: &Path) -> App {
    let (send, receive) = std::sync::mpsc::channel();
    let arguments: Vec<std::ffi::OsString> = vec!["responder".into(), "--config".into(), config.into()];
    std::thread::spawn(move || {
        garrison_service::execute(
            arguments,
            responder::INFO,
            &[],
            |config: Config, mut service| async move {
                let app = responder::wire(&config, &mut service)?;
                send.send(app.clone()).unwrap();
                service.serve(responder::grpc::routes(app)).await
            },
        )
    });
    receive.recv_timeout(SOON).unwrap()
}

impl Fleet {
    async fn new(more: &str) -> Self {
        let stack = Stack::start().await;
        let db = stack.database("responder", &responder::MIGRATOR).await;
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("responder.toml");
        let port = responder_config(&stack, &db, &config);
        let app = responder(&config);
        let config = enforcer_config(&stack, port, folder.path(), more);
        let log = folder.path().join("enforcer.log");
        let enforcer = Program::start(ENFORCER, &config, &log);
        let fleet = Self {
            app,
            enforcer,
            config,
            tenant: "acme".parse().unwrap(),
            _folder: folder,
            stack,
        };
        // A first order proves that the node is heard of.
        let warm = eventually("a first response", SOON, || async {
            let made = fleet.create("192.0.2.250", 600).await;
            (made.state() == ResponseState::Dispatched).then_some(made)
        })
        .await;
        let expected = if more.contains("observe_only") {
            ResponseState::Failed
        } else {
            ResponseState::Applied
        };
        fleet.becomes(&warm, expected).await;
        fleet
    }

    fn restart(&mut self) {
        let log = self.enforcer.log.clone();
        self.enforcer = Program::start(ENFORCER, &self.config, &log);
    }

    async fn create(&self, target: &str, seconds: i64) -> Response {
        let wanted = NewResponse {
            action: Action::Block,
            target: target.to_owned(),
            ttl: Some(chrono::Duration::seconds(seconds)),
            packets_per_second: 0,
            incident: None,
            reason: "test".to_owned(),
            request: None,
        };
        self.app
            .create_response(&person(&self.tenant), &wanted, Utc::now())
            .await
            .unwrap()
    }

    async fn publish(&self, alert: &Alert) {
        let detector = if alert.detector == "policy.violation" {
            "policy"
        } else {
            "anomaly"
        };
        let config = self.stack.bus_config(&format!("svc/{detector}"));
        let bus = Bus::connect(&config, detector).await.unwrap();
        let subject = subject::alerts(&self.tenant, alert.severity(), &alert.detector);
        let message = Message::proto(subject, detector, alert);
        bus.publisher().publish(&message).await.unwrap();
    }

    async fn get(&self, response: &Response) -> Response {
        let id = id_of(&response.name);
        self.app.get_response(&self.tenant, id).await.unwrap().unwrap()
    }

    async fn becomes(&self, response: &Response, state: ResponseState) -> Response {
        eventually(&format!("{} {state:?}", response.name), SOON, || async {
            let now = self.get(response).await;
            (now.state() == state).then_some(now)
        })
        .await
    }

    /// The response that an alert led to.
    async fn response_to(&self, alert: &Alert) -> Response {
        eventually("a response", SOON, || async {
            let all = self
                .app
                .list_responses(&self.tenant, &[], None, None, 500)
                .await
                .unwrap();
            all.into_iter()
                .map(|(_, _, r)| r)
                .find(|r| r.alert_id == alert.alert_id)
        })
        .await
    }

    async fn roll_back(&self, response: &Response) {
        let ana = person(&self.tenant);
        self.app
            .roll_back_response(&ana, id_of(&response.name), "", Utc::now())
            .await
            .unwrap();
    }
}

fn block_on(work: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(work);
}

fn rules() -> String {
    run("nft", &["list", "ruleset"])
}

#[test]
fn an_attacker_is_cut_off_and_let_in_again() {
    in_lab("fleet::an_attacker_is_cut_off_and_let_in_again", || {
        let hosts = Hosts::new();
        let web = echo(&hosts.server, 80);
        block_on(async {
            let mut fleet = Fleet::new("").await;
            let mut line = connect(&hosts.attacker, web).unwrap();
            assert!(line.is_alive());
            let attack = brute_force("10.77.1.2", "10.77.3.2");
            fleet.publish(&attack).await;
            let response = fleet.response_to(&attack).await;
            let applied = fleet.becomes(&response, ResponseState::Applied).await;
            assert!(
                line.is_cut() && is_cut_off(&hosts.attacker, web),
                "the attacker still gets through"
            );
            assert!(reaches(&hosts.client, web), "the client was hit");
            let took = from_timestamp(&applied.applied.unwrap()).unwrap()
                - from_timestamp(&attack.trigger_time.unwrap()).unwrap();
            println!(
                "alert made to rule confirmed: {} ms",
                took.num_microseconds().unwrap() as f64 / 1000.0
            );

            // Isolation of the client waits for a person.
            let moving = forbidden("10.77.2.2", "10.77.3.2");
            fleet.publish(&moving).await;
            let waiting = fleet.response_to(&moving).await;
            assert_eq!(waiting.state(), ResponseState::PendingApproval);
            assert!(reaches(&hosts.client, web), "isolated without approval");
            let ana = person(&fleet.tenant);
            fleet
                .app
                .approve_response(&ana, id_of(&waiting.name), "yes", Utc::now())
                .await
                .unwrap();
            fleet.becomes(&waiting, ResponseState::Applied).await;
            assert!(is_cut_off(&hosts.client, web));
            fleet.roll_back(&waiting).await;
            fleet.becomes(&waiting, ResponseState::Reverted).await;
            assert!(reaches(&hosts.client, web));
            assert!(
                is_cut_off(&hosts.attacker, web),
                "one rollback undid the other response"
            );

            // SIGTERM leaves the rules; a rollback while the agent is away is done when it is back.
            assert!(fleet.enforcer.stop(), "{}", fleet.enforcer.log());
            assert!(is_cut_off(&hosts.attacker, web), "stopping the agent opened the door");
            fleet.roll_back(&response).await;
            tokio::time::sleep(Duration::from_secs(2)).await;
            assert_eq!(
                fleet.get(&response).await.state(),
                ResponseState::Reverting,
                "undone without a word from the node"
            );
            assert!(is_cut_off(&hosts.attacker, web));
            fleet.restart();
            fleet.becomes(&response, ResponseState::Reverted).await;
            assert!(reaches(&hosts.attacker, web));

            // Time that runs out.
            let mut cut = false;
            for seconds in [3, 15, 75] {
                let ends = Utc::now() + chrono::Duration::seconds(seconds);
                let short = fleet.create("10.77.1.2", seconds).await;
                eventually("the short block", SOON, || async {
                    let state = fleet.get(&short).await.state();
                    [ResponseState::Applied, ResponseState::Expired]
                        .contains(&state)
                        .then_some(())
                })
                .await;
                let quiet = is_cut_off(&hosts.attacker, web);
                // On a slow machine it may be over before this was asked; then it is tried with more time.
                if Utc::now() < ends {
                    assert!(quiet, "not cut off for {seconds} s");
                    cut = true;
                }
                fleet.becomes(&short, ResponseState::Expired).await;
                assert!(reaches(&hosts.attacker, web));
                if cut {
                    break;
                }
            }
            assert!(cut, "nobody saw a block that ends by itself");

            assert!(fleet.enforcer.stop());
            let flushed = std::process::Command::new(ENFORCER).arg("flush").status().unwrap();
            assert!(flushed.success());
            assert!(!rules().contains("garrison"));
        });
    });
}

#[test]
fn a_killed_enforcer_comes_back_to_what_should_be() {
    in_lab("fleet::a_killed_enforcer_comes_back_to_what_should_be", || {
        block_on(async {
            let mut fleet = Fleet::new("").await;
            let mut made = Vec::new();
            for round in 0..6u8 {
                for i in 0..5u8 {
                    made.push(fleet.create(&format!("10.79.{round}.{}", i + 1), 3600).await);
                    if i == 3 && round > 0 {
                        fleet.roll_back(&made[usize::from(round) * 5 - 1]).await;
                    }
                    tokio::time::sleep(Duration::from_millis(u64::from(round) * 3)).await;
                }
                fleet.enforcer.kill();
                if round == 3 {
                    // A restart of the machine, too.
                    run("nft", &["flush", "ruleset"]);
                }
                fleet.restart();
            }
            for (i, response) in made.iter().enumerate() {
                let undone = i % 5 == 4 && i < 25;
                let state = if undone {
                    ResponseState::Reverted
                } else {
                    ResponseState::Applied
                };
                let done = fleet.becomes(response, state).await;
                let held = rules().contains(&format!("{} timeout", done.target));
                assert_eq!(held, !undone, "{} {:?}", done.target, done.state());
            }
        });
    });
}

#[test]
fn an_order_that_nobody_carries_out_fails_and_one_that_is_late_is_known() {
    in_lab(
        "fleet::an_order_that_nobody_carries_out_fails_and_one_that_is_late_is_known",
        || {
            block_on(async {
                let mut fleet = Fleet::new("").await;
                fleet.enforcer.kill();
                // The node is still believed to be alive.
                let sent = fleet.create("10.79.1.1", 3600).await;
                assert_eq!(sent.state(), ResponseState::Dispatched);
                let failed = fleet.becomes(&sent, ResponseState::Failed).await;
                assert!(failed.error.contains("router"), "{}", failed.error);
                // In time it is known to be gone.
                let tried = std::cell::Cell::new(0);
                let nobody = eventually("the node is known to be gone", SOON, || async {
                    tried.set(tried.get() + 1);
                    let made = fleet.create(&format!("10.79.2.{}", tried.get()), 3600).await;
                    if made.state() != ResponseState::Failed {
                        tokio::time::sleep(Duration::from_secs(1)).await;
                        return None;
                    }
                    Some(made)
                })
                .await;
                assert!(nobody.error.contains("no enforcer"), "{}", nobody.error);
                fleet.restart();
                fleet.becomes(&sent, ResponseState::Applied).await;
                assert!(rules().contains("10.79.1.1 ") && !rules().contains(&format!("{} ", nobody.target)));

                // Tampering is noticed by the running program as well.
                run("nft", &["delete table inet garrison"]);
                let started = Instant::now();
                eventually("repair", SOON, || async { rules().contains("10.79.1.1").then_some(()) }).await;
                println!("repaired after {:?}", started.elapsed());
                assert!(fleet.enforcer.log().contains("GAR-ENF-0008"));
            });
        },
    );
}

#[test]
fn orders_that_are_broken_or_not_ours_change_nothing() {
    in_lab("fleet::orders_that_are_broken_or_not_ours_change_nothing", || {
        block_on(async {
            let fleet = Fleet::new("").await;
            let bus = fleet.stack.bus_config("svc/responder");
            let publisher = Bus::connect(&bus, "responder").await.unwrap().publisher();
            let globex: TenantId = "globex".parse().unwrap();
            let order = EnforcementOrder {
                response_id: uuid::Uuid::now_v7().to_string(),
                action: Action::Block as i32,
                target: "10.79.1.1".into(),
                tenant: "acme".into(),
                ..EnforcementOrder::default()
            };
            let send = async |tenant: &TenantId, order: &EnforcementOrder, payload: Option<Vec<u8>>| {
                let subject = subject::responses(tenant, Action::Block, "dispatched");
                let mut message = Message::proto(subject, "responder", order);
                if let Some(payload) = payload {
                    message.payload = payload.into();
                }
                publisher.publish(&message).await.unwrap();
            };
            // Another tenant's subject; another tenant inside; another node; garbage; no target; everybody.
            send(&globex, &order, None).await;
            let inside = EnforcementOrder {
                tenant: "globex".into(),
                ..order.clone()
            };
            send(&fleet.tenant, &inside, None).await;
            let elsewhere = EnforcementOrder {
                nodes: vec!["edge".into()],
                ..order.clone()
            };
            send(&fleet.tenant, &elsewhere, None).await;
            send(&fleet.tenant, &order, Some(vec![0xff; 30])).await;
            for target in ["", "0.0.0.0/0", "127.0.0.1"] {
                let wrong = EnforcementOrder {
                    target: target.into(),
                    ..order.clone()
                };
                send(&fleet.tenant, &wrong, None).await;
            }
            // What is right is carried out nevertheless, and nothing else was.
            let good = fleet.create("10.79.1.2", 600).await;
            fleet.becomes(&good, ResponseState::Applied).await;
            let rules = rules();
            assert!(rules.contains("10.79.1.2") && !rules.contains("10.79.1.1"), "{rules}");
            assert!(!rules.contains("0.0.0.0") && !rules.contains("127.0.0.1"));
        });
    });
}

#[test]
fn an_observer_touches_nothing_and_says_so() {
    in_lab("fleet::an_observer_touches_nothing_and_says_so", || {
        block_on(async {
            let fleet = Fleet::new("observe_only = true\n").await;
            let sent = fleet.create("10.79.1.1", 3600).await;
            let failed = fleet.becomes(&sent, ResponseState::Failed).await;
            assert!(failed.error.contains("observe only"), "{}", failed.error);
            assert!(!rules().contains("garrison"));
        });
    });
}
