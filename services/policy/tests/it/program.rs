//! The binary itself, on free ports, spoken to over TLS, and killed.

use std::{fmt::Write as _, process::Command, time::Duration};

use garrison_auth::{SpiffeId, TlsFiles, TlsIdentity, client};
use garrison_flow::{FlowRow, FlowState};
use garrison_proto::policy::v1::{self as proto, policy_service_client::PolicyServiceClient};
use garrison_testkit::{Process, TRUST_DOMAIN, free_port};
use tonic::Code;

use crate::world::{World, flow, lab, tenant, until};

struct Program {
    process: Process,
    grpc: u16,
    admin: u16,
    dir: tempfile::TempDir,
}

impl Program {
    fn launch(world: &World) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (grpc, admin) = (free_port().unwrap(), free_port().unwrap());
        let files = world.stack.identity("svc/policy");
        let database = &world.database;
        let (cert, key, ca) = (
            files.cert_file.display(),
            files.key_file.display(),
            files.ca_file.display(),
        );
        let mut text = format!("[core.identity]\ntrust_domain = {TRUST_DOMAIN:?}\n");
        write!(
            text,
            "cert_file = \"{cert}\"\nkey_file = \"{key}\"\nca_file = \"{ca}\"\n"
        )
        .unwrap();
        write!(text, "[core.bus]\nurls = [{:?}]\n", world.stack.nats().url()).unwrap();
        write!(
            text,
            "cert_file = \"{cert}\"\nkey_file = \"{key}\"\nca_file = \"{ca}\"\n"
        )
        .unwrap();
        write!(
            text,
            "[core.grpc]\nlisten = \"127.0.0.1:{grpc}\"\n[core.admin]\nlisten = \"127.0.0.1:{admin}\"\n"
        )
        .unwrap();
        write!(
            text,
            "[core.database]\nhost = {:?}\nport = {}\ndatabase = {:?}\nuser = {:?}\npassword_file = {:?}\nca_file = {:?}\n",
            database.host, database.port, database.database, database.user, database.password_file, database.ca_file
        )
        .unwrap();
        let path = dir.path().join("policy.toml");
        std::fs::write(&path, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_policy"));
        command.arg("run").arg("--config").arg(path);
        let process = Process::start("policy", command, &dir.path().join("policy.log")).unwrap();
        Self {
            process,
            grpc,
            admin,
            dir,
        }
    }

    async fn ready(&self) {
        let log = || std::fs::read_to_string(self.dir.path().join("policy.log")).unwrap_or_default();
        let limit = tokio::time::Instant::now() + Duration::from_secs(120);
        while !self.http("/readyz").await.starts_with("HTTP/1.1 200") {
            assert!(tokio::time::Instant::now() < limit, "not ready:\n{}", log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn http(&self, path: &str) -> String {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let Ok(mut tcp) = tokio::net::TcpStream::connect(("127.0.0.1", self.admin)).await else {
            return String::new();
        };
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        tcp.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).await.unwrap_or_default();
        answer
    }

    fn client(&self, world: &World, service: &str) -> tonic::transport::Channel {
        let files = world.stack.identity(&format!("svc/{service}"));
        let files = TlsFiles {
            cert_file: files.cert_file,
            key_file: files.key_file,
            ca_file: files.ca_file,
        };
        let identity = TlsIdentity::load(files, TRUST_DOMAIN).unwrap();
        let expected = SpiffeId::service(TRUST_DOMAIN, "policy").unwrap();
        client::channel(&identity, &format!("https://127.0.0.1:{}", self.grpc), &expected).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_service_goes_on_where_it_was() {
    let world = World::start().await;
    // Policies come from another replica; the program finds them.
    let replica = world.replica().await;
    replica.apply("acme", &lab("database")).await;
    drop(replica);
    tokio::time::sleep(Duration::from_millis(500)).await;

    let mut program = Program::launch(&world);
    program.ready().await;
    let row = flow(1, "10.20.0.30", "10.20.0.20", 5432);
    world.flows("acme", std::slice::from_ref(&row)).await;
    world.alerts(1).await;
    let until_counted = async |program: &Program, flows: u64| {
        let tenant = tenant("acme");
        let mut client =
            PolicyServiceClient::with_interceptor(program.client(&world, "forensics"), client::for_tenant(&tenant));
        until("the flow is counted", async || {
            let answer = client
                .list_verdict_counts(proto::ListVerdictCountsRequest {})
                .await
                .unwrap()
                .into_inner();
            answer.counts.iter().map(|c| c.flows).sum::<u64>() == flows
        })
        .await;
    };
    until_counted(&program, 1).await;
    assert!(
        program.http("/metrics").await.contains("garrison_policy_flows_total{"),
        "{}",
        program.http("/metrics").await
    );

    program.process.kill();
    // What happens meanwhile waits on the stream; the flow that is under way is known to its alert.
    let later = FlowRow {
        state: FlowState::Active as u8,
        record_seq: 1,
        ..row
    };
    world
        .flows("acme", &[later, flow(2, "10.20.0.31", "10.20.0.20", 5432)])
        .await;
    let program = Program::launch(&world);
    program.ready().await;
    let alerts = world.alerts(2).await;
    assert_eq!(alerts[1].entity.as_ref().unwrap().value, "10.20.0.31");

    // Services may look, and may not write.
    let tenant = tenant("acme");
    let mut client =
        PolicyServiceClient::with_interceptor(program.client(&world, "forensics"), client::for_tenant(&tenant));
    let listed = client
        .list_policies(proto::ListPoliciesRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(listed.policies[0].name, "policies/database");
    let apply = proto::ApplyPolicyRequest {
        document: lab("web"),
        expected_version: None,
    };
    let refused = client.apply_policy(apply).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let nobody = PolicyServiceClient::new(program.client(&world, "anomaly"))
        .list_policies(proto::ListPoliciesRequest::default())
        .await
        .unwrap_err();
    assert_eq!(nobody.code(), Code::PermissionDenied);
}

#[test]
fn a_wrong_configuration_names_its_key_before_anything_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("policy.toml");
    let core = "[core.identity]\ntrust_domain = \"t\"\ncert_file = \"c\"\nkey_file = \"k\"\nca_file = \"a\"\n\
                [core.bus]\nurls = [\"tls://localhost:1\"]\nca_file = \"a\"\ncert_file = \"c\"\nkey_file = \"k\"\n";
    for (more, key) in [
        ("[flows]\nconcurrency = 0\n", "flows.concurrency"),
        ("[alerts]\nfold_seconds = 0\n", "alerts.fold_seconds"),
        ("[alerts]\ninternal_networks = [\"x\"]\n", "alerts.internal_networks"),
        ("[review.tenants]\n\"No tenant\" = true\n", "review.tenants"),
        ("[alarms]\n", "alarms"),
    ] {
        std::fs::write(&path, format!("{core}{more}")).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_policy"))
            .arg("run")
            .arg("--config")
            .arg(&path)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{text}");
        assert!(text.contains(key), "{text}");
    }
}
