//! The service under test: this binary started again with an environment variable set.

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use garrison_auth::caller;
use garrison_proto::{
    TenantId,
    alert::v1::{
        FinishLearningRequest, FinishLearningResponse, GetModelRequest, GetModelResponse, ListDetectorsRequest,
        ListDetectorsResponse, ListIndicatorFeedsRequest, ListIndicatorFeedsResponse, LookupIndicatorRequest,
        LookupIndicatorResponse, StartLearningRequest, StartLearningResponse,
        detection_service_server::{DetectionService, DetectionServiceServer},
    },
    audit::v1::Decision,
};
use garrison_service::{BoxError, ConfigError, Core, Service, ServiceConfig, ServiceInfo, audit};
use schemars::JsonSchema;
use serde::Deserialize;
use tonic::{Request, Response, Status, service::Routes};

const ARGUMENTS: &str = "GARRISON_TEST_ARGUMENTS";

/// How long anything may take that is waited for. The time to drain is longer, so that it ends nothing.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const DRAIN: Duration = Duration::from_secs(600);

pub(crate) static MIGRATIONS: garrison_db::Migrator = garrison_db::Migrator::DEFAULT;

pub(crate) const INFO: ServiceInfo = ServiceInfo {
    name: "anomaly",
    version: "1.2.3",
    migrator: Some(&MIGRATIONS),
};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Config {
    core: Core,
    /// How the service misbehaves.
    #[serde(default)]
    trouble: Option<Trouble>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Trouble {
    Panic,
    Error,
    Stuck,
    Invalid,
}

impl ServiceConfig for Config {
    fn core(&self) -> &Core {
        &self.core
    }

    fn validate(&self) -> Result<(), ConfigError> {
        match self.trouble {
            Some(Trouble::Invalid) => Err(ConfigError::invalid("trouble", "not this one")),
            _ => Ok(()),
        }
    }
}

struct Detection {
    db: garrison_db::Db,
}

#[tonic::async_trait]
impl DetectionService for Detection {
    async fn list_detectors(
        &self,
        request: Request<ListDetectorsRequest>,
    ) -> Result<Response<ListDetectorsResponse>, Status> {
        caller(&request)?;
        Ok(Response::new(ListDetectorsResponse::default()))
    }

    /// Ends when it is told, by a file in a folder that the caller names: to be under way when the service is asked to
    /// stop.
    async fn get_model(&self, request: Request<GetModelRequest>) -> Result<Response<GetModelResponse>, Status> {
        let gate = request.metadata().get("gate").and_then(|value| value.to_str().ok());
        if let Some(gate) = gate.map(PathBuf::from) {
            std::fs::write(gate.join("begun"), "").map_err(|error| Status::internal(error.to_string()))?;
            while !gate.join("end").exists() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        Ok(Response::new(GetModelResponse::default()))
    }

    /// Records a state change of its own, as services do.
    async fn start_learning(
        &self,
        request: Request<StartLearningRequest>,
    ) -> Result<Response<StartLearningResponse>, Status> {
        let caller = caller(&request)?;
        let failed = |e: garrison_db::DbError| Status::unavailable(e.to_string());
        let mut tx = self.db.begin(&caller.tenant).await.map_err(failed)?;
        let record = audit::record(
            &INFO,
            &caller.tenant,
            caller.actor(),
            "model.learning",
            "models/1",
            Decision::Allow,
            "",
            [("phase".to_owned(), "learning".to_owned())].into(),
        );
        tx.publish(&audit::message(&INFO, &record)).await.map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        Ok(Response::new(StartLearningResponse::default()))
    }

    async fn finish_learning(
        &self,
        _: Request<FinishLearningRequest>,
    ) -> Result<Response<FinishLearningResponse>, Status> {
        Ok(Response::new(FinishLearningResponse::default()))
    }

    async fn list_indicator_feeds(
        &self,
        _: Request<ListIndicatorFeedsRequest>,
    ) -> Result<Response<ListIndicatorFeedsResponse>, Status> {
        Ok(Response::new(ListIndicatorFeedsResponse::default()))
    }

    async fn lookup_indicator(
        &self,
        _: Request<LookupIndicatorRequest>,
    ) -> Result<Response<LookupIndicatorResponse>, Status> {
        Ok(Response::new(LookupIndicatorResponse::default()))
    }
}

async fn run(config: Config, mut service: Service) -> Result<(), BoxError> {
    match config.trouble {
        Some(Trouble::Panic) => service.spawn("troubled", async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            if TenantId::system().as_str() == "system" {
                panic!("as configured");
            }
            Ok::<(), BoxError>(())
        }),
        Some(Trouble::Error) => service.spawn("troubled", async { Err::<(), BoxError>("as configured".into()) }),
        Some(Trouble::Stuck) => service.spawn("stuck", std::future::pending::<Result<(), BoxError>>()),
        _ => {}
    }
    let detection = Detection {
        db: service.db().clone(),
    };
    service.serve(Routes::new(DetectionServiceServer::new(detection))).await
}

/// The service as a process of its own.
#[test]
#[ignore = "run by the other tests"]
fn child() {
    let arguments = std::env::var(ARGUMENTS).unwrap();
    let arguments = std::iter::once("anomaly").chain(arguments.split('\n').filter(|a| !a.is_empty()));
    let status = garrison_service::execute(arguments.map(Into::into), INFO, &[], run);
    std::process::exit(status.into());
}

/// A command that runs the service's program with these arguments.
pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([
        "--exact",
        "child::child",
        "--ignored",
        "--nocapture",
        "--test-threads=1",
    ]);
    command.env(ARGUMENTS, arguments.join("\n"));
    command.env_remove("GARRISON_CONFIG");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Runs to the end; answers status, standard output and standard error.
pub(crate) fn finish(arguments: &[&str]) -> (i32, String, String) {
    let output = command(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

pub(crate) struct Running {
    process: Child,
    pub(crate) config: PathBuf,
    pub(crate) admin: SocketAddr,
    pub(crate) grpc: SocketAddr,
    log: Arc<Mutex<String>>,
}

impl Running {
    pub(crate) fn start(config: &Path, admin: SocketAddr, grpc: SocketAddr) -> Self {
        let mut process = command(&["run", "--config", config.to_str().unwrap()]).spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (lines, sink) = (BufReader::new(process.stderr.take().unwrap()).lines(), Arc::clone(&log));
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let mut log = sink.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        Self {
            process,
            config: config.to_owned(),
            admin,
            grpc,
            log,
        }
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub(crate) fn signal(&self) {
        let id = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
    }

    /// The exit status, within a minute.
    pub(crate) async fn ended(&mut self) -> i32 {
        let began = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status.code().unwrap();
            }
            assert!(began.elapsed() < PATIENCE, "still running:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("--- log of the service ---\n{}", self.log());
        }
    }
}
