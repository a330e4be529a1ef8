//! A real Kubernetes API server: etcd and kube-apiserver on free loopback ports, without nodes or controllers.

use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    net::{Ipv4Addr, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Mutex,
    time::Duration,
};

use rustix::process::Signal;

use crate::{Pki, Process, ProcessError, free_port, process::prepare};

/// The programs of a Kubernetes control plane.
#[derive(Clone, Debug)]
pub struct KubernetesPrograms {
    /// kube-apiserver.
    pub apiserver: PathBuf,
    /// etcd.
    pub etcd: PathBuf,
    /// kubectl.
    pub kubectl: PathBuf,
}

/// The user's folder for what is made once a machine.
pub fn cache_folder() -> Option<PathBuf> {
    let named = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let base = named("XDG_CACHE_HOME").or_else(|| named("HOME").map(|home| home.join(".cache")))?;
    base.is_absolute().then(|| base.join("garrison"))
}

/// Where `cargo xtask setup` leaves the control plane: the folder that `GARRISON_KUBERNETES` names, or one of the
/// user's cache.
pub fn kubernetes_folder() -> Option<PathBuf> {
    std::env::var_os("GARRISON_KUBERNETES")
        .map(PathBuf::from)
        .or_else(|| cache_folder().map(|cache| cache.join("kubernetes")))
}

/// The control plane's programs, or why they are not there.
///
/// # Errors
/// The reason, in words.
pub fn find_kubernetes() -> Result<KubernetesPrograms, String> {
    let folder = kubernetes_folder().ok_or("neither XDG_CACHE_HOME nor HOME is set")?;
    let program = |name: &str| {
        let path = folder.join("bin").join(name);
        path.is_file().then_some(path).ok_or_else(|| {
            let noted = fs::read_to_string(folder.join("why-not")).unwrap_or_default();
            match noted.trim() {
                "" => "there is no Kubernetes API server; `cargo xtask setup` builds one".to_owned(),
                reason => format!("there is no Kubernetes API server: {reason}"),
            }
        })
    };
    Ok(KubernetesPrograms {
        apiserver: program("kube-apiserver")?,
        etcd: program("etcd")?,
        kubectl: program("kubectl")?,
    })
}

/// The control plane's programs. Without them, says that the test `test` is skipped, in the words that
/// `cargo xtask test` counts.
pub fn kubernetes(test: &str) -> Option<KubernetesPrograms> {
    match find_kubernetes() {
        Ok(programs) => Some(programs),
        Err(reason) => {
            // Not `println!`, which the test harness keeps to itself; one write, as tests run side by side.
            let _ = std::io::stdout().write_all(format!("\nskipped: {test}: {reason}\n").as_bytes());
            None
        }
    }
}

/// Who may call the API server.
#[derive(Clone, Copy, Debug)]
pub struct KubernetesUser<'a> {
    /// The name, such as `system:serviceaccount:garrison:policy-controller`.
    pub name: &'a str,
    /// The groups; `system:masters` may do everything.
    pub groups: &'a [&'a str],
}

/// Everything is allowed to it.
pub const KUBERNETES_ADMIN: KubernetesUser<'static> = KubernetesUser {
    name: "admin",
    groups: &["system:masters"],
};

/// A running API server with RBAC, server-side apply, custom resources and webhooks, on a database of its own. Ends
/// when dropped.
#[derive(Debug)]
pub struct ApiServer {
    dir: PathBuf,
    programs: KubernetesPrograms,
    port: u16,
    etcd_port: u16,
    identity: crate::IdentityFiles,
    apiserver: Mutex<Option<Process>>,
    // After the server that uses it.
    _etcd: Process,
}

impl ApiServer {
    /// Starts one whose files are under `dir`. It takes some seconds.
    ///
    /// # Errors
    /// When a program does not start.
    pub fn start(
        dir: &Path,
        programs: &KubernetesPrograms,
        users: &[KubernetesUser<'_>],
    ) -> Result<Self, ProcessError> {
        fs::create_dir_all(dir).map_err(|source| prepare(dir, source))?;
        let dir = dir.canonicalize().map_err(|source| prepare(dir, source))?;
        let ports = || free_port().map_err(|source| prepare(&dir, source));
        let (port, etcd_port, peer_port) = (ports()?, ports()?, ports()?);
        let pki = Pki::open_or_create(&dir.join("pki"), crate::TRUST_DOMAIN)?;

        let mut etcd = Command::new(&programs.etcd);
        let peer = format!("http://127.0.0.1:{peer_port}");
        let client = format!("http://127.0.0.1:{etcd_port}");
        etcd.arg("--data-dir").arg(dir.join("etcd"));
        etcd.args(["--name", "test", "--listen-client-urls", &client]);
        etcd.args(["--advertise-client-urls", &client, "--listen-peer-urls", &peer]);
        etcd.args(["--initial-advertise-peer-urls", &peer]);
        etcd.args(["--initial-cluster", &format!("test={peer}")]);
        // On another architecture it asks for this before it starts.
        etcd.env(
            "ETCD_UNSUPPORTED_ARCH",
            std::env::consts::ARCH.replace("aarch64", "arm64"),
        );
        let mut etcd = Process::start("etcd", etcd, &dir.join("etcd.log"))?;
        etcd.wait_until(Duration::from_secs(60), || {
            TcpStream::connect((Ipv4Addr::LOCALHOST, etcd_port)).is_ok()
        })?;

        let mut tokens = String::new();
        for (i, user) in std::iter::once(&KUBERNETES_ADMIN).chain(users).enumerate() {
            // The server listens on loopback for the time of a test; the token only has to name the user.
            let _ = writeln!(
                tokens,
                "{},{},{i},\"{}\"",
                token(user.name),
                user.name,
                user.groups.join(",")
            );
        }
        let path = dir.join("tokens.csv");
        fs::write(&path, tokens).map_err(|source| prepare(&path, source))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(|source| prepare(&path, source))?;
        let server = Self {
            identity: pki.identity("svc/kube-apiserver")?,
            dir,
            programs: programs.clone(),
            port,
            etcd_port,
            apiserver: Mutex::new(None),
            _etcd: etcd,
        };
        server.resume()?;
        Ok(server)
    }

    /// Starts the API server again after [`stop`](Self::stop), with what it knew, on its port.
    ///
    /// # Errors
    /// When it does not start.
    pub fn resume(&self) -> Result<(), ProcessError> {
        let mut command = Command::new(&self.programs.apiserver);
        command.arg(format!("--etcd-servers=http://127.0.0.1:{}", self.etcd_port));
        command.arg(format!("--secure-port={}", self.port));
        command.args(["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1"]);
        command.arg(format!("--cert-dir={}", self.dir.join("certificates").display()));
        command.arg(format!("--token-auth-file={}", self.dir.join("tokens.csv").display()));
        command.args(["--authorization-mode=RBAC", "--anonymous-auth=false"]);
        command.args([
            "--service-cluster-ip-range=10.96.0.0/16",
            "--endpoint-reconciler-type=none",
        ]);
        // A certificate does for a public key.
        let (public, secret) = (self.identity.cert_file.display(), self.identity.key_file.display());
        command.arg(format!("--service-account-key-file={public}"));
        command.arg(format!("--service-account-signing-key-file={secret}"));
        command.arg("--service-account-issuer=https://kubernetes.default.svc.cluster.local");
        // Nobody makes service accounts here, as no controller manager runs.
        command.arg("--disable-admission-plugins=ServiceAccount");
        // Several tests at a time are not several users.
        command.args(["--enable-priority-and-fairness=false", "--max-requests-inflight=800"]);
        let mut process = Process::start("kube-apiserver", command, &self.dir.join("kube-apiserver.log"))?;
        process.wait_until(Duration::from_secs(180), || {
            TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok() && self.is_ready()
        })?;
        *self.apiserver.lock().expect("no holder panics") = Some(process);
        Ok(())
    }

    fn is_ready(&self) -> bool {
        let mut ask = self.kubectl();
        ask.args(["get", "--raw", "/readyz"]);
        ask.stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    }

    /// Ends the API server; its database stays.
    pub fn stop(&self) {
        if let Some(mut process) = self.apiserver.lock().expect("no holder panics").take() {
            // Its own drain waits a minute for watches that do not end.
            process.end(Signal::TERM, Duration::from_millis(500));
        }
    }

    /// The address, `https://127.0.0.1:port`.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// kubectl as an administrator of this cluster.
    pub fn kubectl(&self) -> Command {
        let mut command = Command::new(&self.programs.kubectl);
        command.env("HOME", &self.dir).env_remove("KUBECONFIG");
        command.arg("--cache-dir").arg(self.dir.join("kubectl-cache"));
        command.args(["--server", &self.url(), "--token", &token(KUBERNETES_ADMIN.name)]);
        command.arg("--certificate-authority").arg(self.ca_file());
        command
    }

    /// The certificate that the server is known by, PEM.
    pub fn ca_file(&self) -> PathBuf {
        self.dir.join("certificates/apiserver.crt")
    }

    /// Writes a kubeconfig with which a program is `user`, and answers its path.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn kubeconfig(&self, user: &KubernetesUser<'_>) -> Result<PathBuf, ProcessError> {
        let path = self.dir.join(format!("{}.kubeconfig", user.name.replace(':', "-")));
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
             clusters: [{{name: test, cluster: {{server: \"{}\", certificate-authority: \"{}\"}}}}]\n\
             users: [{{name: test, user: {{token: \"{}\"}}}}]\n\
             contexts: [{{name: test, context: {{cluster: test, user: test}}}}]\n",
            self.url(),
            self.ca_file().display(),
            token(user.name)
        );
        fs::write(&path, text).map_err(|source| prepare(&path, source))?;
        Ok(path)
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn token(user: &str) -> String {
    format!("token-of-{}", user.replace(':', "-"))
}
