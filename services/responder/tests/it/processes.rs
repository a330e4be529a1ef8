//! The two binaries as processes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::Duration,
};

use garrison_db::DbConfig;
use garrison_testkit::{Stack, free_port};

/// A process that is killed with this value.
pub(crate) struct Program {
    child: Child,
    pub(crate) log: PathBuf,
}

impl Program {
    pub(crate) fn start(binary: &str, config: &Path, log: &Path) -> Self {
        let file = fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
        let child = Command::new(binary)
            .arg("--config")
            .arg(config)
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        Self {
            child,
            log: log.to_owned(),
        }
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM; answers whether it ended well.
    pub(crate) fn stop(&mut self) -> bool {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        for _ in 0..1_200 {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.success();
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        false
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            println!("---- {}\n{}", self.log.display(), self.log());
        }
    }
}

fn core(stack: &Stack, identity: &str) -> String {
    let files = stack.identity(identity);
    let (cert, key, ca) = (
        files.cert_file.display().to_string(),
        files.key_file.display().to_string(),
        files.ca_file.display().to_string(),
    );
    format!(
        "[core.identity]\ntrust_domain = {:?}\ncert_file = {cert:?}\nkey_file = {key:?}\nca_file = {ca:?}\n\
         [core.bus]\nurls = [{:?}]\nca_file = {ca:?}\ncert_file = {cert:?}\nkey_file = {key:?}\n\
         [core.admin]\nlisten = \"127.0.0.1:{}\"\n",
        garrison_testkit::TRUST_DOMAIN,
        stack.nats().url(),
        free_port().unwrap(),
    )
}

/// The responder's configuration file; answers with its gRPC port.
pub(crate) fn responder_config(stack: &Stack, db: &DbConfig, path: &Path) -> u16 {
    let port = free_port().unwrap();
    let text = format!(
        "{}[core.database]\nhost = {:?}\nport = {}\ndatabase = {:?}\nuser = {:?}\npassword_file = {:?}\nca_file = {:?}\n\
         [core.grpc]\nlisten = \"127.0.0.1:{port}\"\n\
         [enforcement]\nstale_after_s = 12\n[enforcement.nodes]\nrouter = [\"acme\", \"globex\"]\n\
         [responses]\nconfirm_timeout_ms = 1000\n",
        core(stack, "svc/responder"),
        db.host,
        db.port,
        db.database,
        db.user,
        db.password_file.display().to_string(),
        db.ca_file.display().to_string(),
    );
    fs::write(path, text).unwrap();
    port
}

/// The enforcer's configuration file.
pub(crate) fn enforcer_config(stack: &Stack, responder: u16, folder: &Path, more: &str) -> PathBuf {
    let path = folder.join("enforcer.toml");
    let text = format!(
        "{}[enforcer]\nresponder_endpoint = \"https://127.0.0.1:{responder}\"\nstate_file = {:?}\n\
         heartbeat_interval_ms = 300\nreconcile_interval_s = 5\ntenants = [{{ id = \"acme\" }}]\n{more}",
        core(stack, "enforcer/router"),
        folder.join("enforcer-state.json").display().to_string(),
    );
    fs::write(&path, text).unwrap();
    path
}
