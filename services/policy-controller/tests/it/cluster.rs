//! The cluster that tests work in, and their words for it.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use garrison_testkit::{ApiServer, KubernetesPrograms, KubernetesUser, Pki, Process, TRUST_DOMAIN, free_port};
use serde_json::{Value, json};

const BINARY: &str = env!("CARGO_BIN_EXE_policy-controller");
/// As the deployment's service account: what it may not do, the tests find.
const CONTROLLER: KubernetesUser<'static> = KubernetesUser {
    name: "system:serviceaccount:garrison:policy-controller",
    groups: &[
        "system:serviceaccounts",
        "system:serviceaccounts:garrison",
        "system:authenticated",
    ],
};

pub(crate) fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/k8s")
}

/// An API server with the definitions and the rights of the deployment, and controllers beside it.
pub(crate) struct Cluster {
    pub(crate) server: ApiServer,
    kubeconfig: PathBuf,
    pki: Pki,
    folder: tempfile::TempDir,
}

/// The cluster that all tests share which do not stop it, with one controller and its webhook.
pub(crate) fn shared(test: &str) -> Option<&'static Cluster> {
    static SHARED: OnceLock<(Cluster, Controller)> = OnceLock::new();
    let programs = garrison_testkit::kubernetes(test)?;
    let (cluster, _) = SHARED.get_or_init(|| {
        let cluster = Cluster::start(&programs);
        let controller = cluster.controller(&Settings::default());
        cluster.install_webhook(&controller);
        (cluster, controller)
    });
    Some(cluster)
}

/// How a controller is run.
pub(crate) struct Settings<'a> {
    pub(crate) name: &'a str,
    /// TOML after the common sections.
    pub(crate) more: String,
    pub(crate) targets: &'a str,
    /// Keys of the webhook's section in the place of certificate files.
    pub(crate) certificate: Option<String>,
}

impl Default for Settings<'_> {
    fn default() -> Self {
        Self {
            name: "one",
            more: String::new(),
            targets: "\"kubernetes\"",
            certificate: None,
        }
    }
}

pub(crate) struct Controller {
    pub(crate) process: Process,
    pub(crate) admin: u16,
    pub(crate) webhook: u16,
    pub(crate) log: PathBuf,
}

impl Cluster {
    pub(crate) fn start(programs: &KubernetesPrograms) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = ApiServer::start(&folder.path().join("server"), programs, &[CONTROLLER])
            .unwrap_or_else(|error| panic!("{error:?}"));
        let cluster = Self {
            kubeconfig: server.kubeconfig(&CONTROLLER).unwrap(),
            pki: Pki::open_or_create(&folder.path().join("pki"), TRUST_DOMAIN).unwrap(),
            server,
            folder,
        };
        cluster.apply(&policy_controller::definitions().unwrap());
        cluster.kubectl(&["create", "namespace", "garrison"]);
        cluster.kubectl(&[
            "apply",
            "-f",
            deploy().join("policy-controller/rbac.yaml").to_str().unwrap(),
        ]);
        let established = ["wait", "--for=condition=Established", "--timeout=60s", "crd", "--all"];
        cluster.kubectl(&established);
        cluster
    }

    /// Starts a controller; it does not wait until it leads.
    pub(crate) fn controller(&self, settings: &Settings<'_>) -> Controller {
        let name = settings.name;
        let (admin, webhook) = (free_port().unwrap(), free_port().unwrap());
        let identity = self.pki.identity(&format!("svc/webhook-{name}")).unwrap();
        let files = format!(
            "cert_file = {:?}\nkey_file = {:?}\n",
            identity.cert_file, identity.key_file
        );
        let certificate = settings.certificate.as_ref().unwrap_or(&files);
        let config = format!(
            "[core.admin]\nlisten = \"127.0.0.1:{admin}\"\n\
             [core.telemetry]\nlog = \"info,policy_controller=debug\"\n\
             [kubernetes]\nkubeconfig = {:?}\n\
             [controller]\ntargets = [{}]\nresync_interval_ms = 5000\n\
             [leader]\nidentity = {name:?}\nduration_ms = 9000\nrenew_interval_ms = 1500\n\
             [webhook]\nlisten = \"127.0.0.1:{webhook}\"\nlinger_ms = 100\nreload_interval_ms = 200\n{certificate}{}",
            self.kubeconfig, settings.targets, settings.more
        );
        let path = self.folder.path().join(format!("{name}.toml"));
        fs::write(&path, config).unwrap();
        let log = self.folder.path().join(format!("{name}.log"));
        let mut command = Command::new(BINARY);
        command.arg("run").arg("--config").arg(&path);
        let process = Process::start("policy-controller", command, &log).unwrap();
        let mut controller = Controller {
            process,
            admin,
            webhook,
            log,
        };
        let ready = || get(admin, "/readyz").is_some_and(|(status, _)| status == 200);
        controller
            .process
            .wait_until(Duration::from_secs(240), ready)
            .unwrap_or_else(|error| panic!("{error}"));
        controller
    }

    /// As deploy/k8s has it, but found by address.
    pub(crate) fn install_webhook(&self, controller: &Controller) {
        let text = fs::read_to_string(deploy().join("policy-controller/webhook.yaml")).unwrap();
        let ca = fs::read(self.pki.ca_file()).unwrap();
        let (before, _) = text.split_once("    clientConfig:").unwrap();
        self.apply(&format!(
            "{before}    clientConfig:\n      url: https://127.0.0.1:{}/validate\n      caBundle: {}\n",
            controller.webhook,
            base64(&ca)
        ));
        // The API server learns of it after a moment; until then it lets everything through.
        self.kubectl(&["create", "namespace", "webhook-probe"]);
        let wrong = policy(
            "webhook-probe",
            "probe",
            json!({"subject": {"workloads": {}}, "wrong": 1}),
        );
        self.wait("the webhook", || {
            let refused = self.try_apply(&wrong).is_err();
            if !refused {
                self.kubectl(&["delete", "ztp", "-n", "webhook-probe", "probe"]);
            }
            refused.then_some(())
        });
    }

    /// The definitions' conversion as `install_webhook` has the webhook.
    pub(crate) fn install_conversion(&self, controller: &Controller) {
        let ca = fs::read(self.pki.ca_file()).unwrap();
        self.conversion_by(json!({
            "url": format!("https://127.0.0.1:{}/convert", controller.webhook), "caBundle": base64(&ca),
        }));
    }

    /// Lets a client configuration stand for the definitions' service.
    pub(crate) fn conversion_by(&self, client: Value) {
        let patch =
            json!([{"op": "replace", "path": "/spec/conversion/webhook/clientConfig", "value": client}]).to_string();
        for plural in ["zerotrustpolicies", "clusterzerotrustpolicies"] {
            let name = format!("{plural}.garrison.dev");
            self.kubectl(&["patch", "crd", &name, "--type=json", "-p", &patch]);
        }
    }

    /// A file beside the configuration.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs kubectl. `ztp` and `cztp` are asked for as they are stored, so that nothing depends on a conversion that the
    /// test has not set up.
    pub(crate) fn try_kubectl(&self, arguments: &[&str], input: Option<&str>) -> Result<String, String> {
        let arguments = arguments.iter().map(|argument| match *argument {
            "ztp" => "zerotrustpolicies.v1alpha1.garrison.dev",
            "cztp" => "clusterzerotrustpolicies.v1alpha1.garrison.dev",
            other => other,
        });
        let mut command = self.server.kubectl();
        command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(input.unwrap_or_default().as_bytes())
            .unwrap();
        let output = child.wait_with_output().unwrap();
        if output.status.success() {
            Ok(String::from_utf8(output.stdout).unwrap())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    pub(crate) fn kubectl(&self, arguments: &[&str]) -> String {
        self.try_kubectl(arguments, None)
            .unwrap_or_else(|error| panic!("kubectl {}: {error}", arguments.join(" ")))
    }

    pub(crate) fn try_apply(&self, manifest: &str) -> Result<String, String> {
        self.try_kubectl(&["apply", "--validate=false", "-f", "-"], Some(manifest))
    }

    pub(crate) fn apply(&self, manifest: &str) {
        self.try_apply(manifest)
            .unwrap_or_else(|error| panic!("{error}\n{manifest}"));
    }

    pub(crate) fn namespace(&self, name: &str, labels: &str) {
        self.kubectl(&["create", "namespace", name]);
        if !labels.is_empty() {
            self.kubectl(&["label", "namespace", name, labels]);
        }
    }

    /// An object, `None` when it is not there.
    pub(crate) fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        let mut arguments = vec!["get", kind, name, "-o", "json", "--ignore-not-found"];
        if !namespace.is_empty() {
            arguments.extend(["-n", namespace]);
        }
        serde_json::from_str(&self.kubectl(&arguments)).ok()
    }

    pub(crate) fn list(&self, kind: &str, namespace: &str) -> Vec<Value> {
        let list: Value = serde_json::from_str(&self.kubectl(&["get", kind, "-n", namespace, "-o", "json"])).unwrap();
        list["items"].as_array().cloned().unwrap_or_default()
    }

    /// Asks until there is an answer.
    pub(crate) fn wait<T>(&self, what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + Duration::from_secs(300);
        loop {
            if let Some(answer) = ask() {
                return answer;
            }
            assert!(Instant::now() < deadline, "waited in vain for {what}; {}", self.logs());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn logs(&self) -> String {
        let mut text = String::new();
        for entry in fs::read_dir(self.folder.path()).unwrap().flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "log") {
                let log = fs::read_to_string(entry.path()).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                let last = lines[lines.len().saturating_sub(25)..].join("\n");
                text.push_str(&format!("\n{}:\n{last}", entry.path().display()));
            }
        }
        text
    }

    /// Waits until a condition of a policy has this reason, at its newest generation, and answers the policy.
    pub(crate) fn reason(&self, kind: &str, namespace: &str, name: &str, type_: &str, reason: &str) -> Value {
        self.wait(&format!("{type_} {reason} of {namespace}/{name}"), || {
            let object = self.get(kind, namespace, name)?;
            let newest = object["status"]["observedGeneration"] == object["metadata"]["generation"];
            let found = condition(&object, type_)["reason"] == reason;
            (newest && found).then_some(object)
        })
    }

    pub(crate) fn programmed(&self, namespace: &str, name: &str) -> Value {
        self.reason("ztp", namespace, name, "Programmed", "Programmed")
    }
}

pub(crate) fn condition(object: &Value, type_: &str) -> Value {
    let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions
        .into_iter()
        .find(|condition| condition["type"] == type_)
        .unwrap_or_default()
}

/// A policy's manifest.
pub(crate) fn policy(namespace: &str, name: &str, spec: Value) -> String {
    json!({
        "apiVersion": "garrison.dev/v1alpha1",
        "kind": if namespace.is_empty() { "ClusterZeroTrustPolicy" } else { "ZeroTrustPolicy" },
        "metadata": if namespace.is_empty() { json!({"name": name}) } else { json!({"namespace": namespace, "name": name}) },
        "spec": spec,
    })
    .to_string()
}

/// Pods with `app` let the network `from` reach a port.
pub(crate) fn allows(app: &str, from: &str, port: u16) -> Value {
    json!({
        "mode": "enforce", "owner": "shop", "reason": "a test",
        "subject": {"workloads": {"podSelector": {"matchLabels": {"app": app}}}},
        "ingress": [{"name": "in", "from": [{"cidr": from}], "ports": [{"protocol": "TCP", "port": port}]}],
    })
}

/// A page of an admin port: its status and text.
pub(crate) fn get(port: u16, path: &str) -> Option<(u16, String)> {
    use std::io::Read as _;
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let status = answer.split(' ').nth(1)?.parse().ok()?;
    Some((status, answer))
}

pub(crate) fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0u32, |group, byte| group << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for i in 0..4 {
            let letter = LETTERS[(group >> (18 - 6 * i)) as usize & 63];
            out.push(if i <= chunk.len() { char::from(letter) } else { '=' });
        }
    }
    out
}
