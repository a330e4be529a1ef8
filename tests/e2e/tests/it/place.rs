//! Where programs and folders are, and the one executor.

use std::{
    fs,
    future::Future,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        LazyLock, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::runtime::Runtime;

/// The checkout.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .unwrap()
}

fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// The folder with the fleet's programs. Panics with the remedy when one is missing.
pub fn binaries() -> PathBuf {
    let dir = target().join("debug");
    let programs = garrison_testkit::bootstrap::SERVICES
        .iter()
        .chain(&["enforcer", "garrison", "xtask"]);
    let missing: Vec<&str> = programs.copied().filter(|name| !dir.join(name).exists()).collect();
    assert!(
        missing.is_empty(),
        "{} are not in {}: run `cargo build --workspace --bins` first",
        missing.join(", "),
        dir.display()
    );
    dir
}

/// A fresh folder for one fleet. Folders of test runs that are gone are removed.
pub fn folder(name: &str) -> PathBuf {
    let base = target().join("e2e");
    fs::create_dir_all(&base).unwrap();
    for entry in fs::read_dir(&base).unwrap().flatten() {
        let file = entry.file_name();
        let owner = file
            .to_str()
            .and_then(|name| name.split('-').next())
            .unwrap_or_default();
        if !Path::new("/proc").join(owner).exists() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    // Numbered, so that what a failed start left can still be read.
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let dir = base.join(format!("{}-{name}-{number}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    dir
}

static EXECUTOR: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap()
});

/// Runs a test on the executor that all share, so that one test's connections serve the next.
pub fn run<T>(test: impl Future<Output = T>) -> T {
    EXECUTOR.block_on(test)
}

/// Held by tests that stop, kill or load a fleet: with two of them at a time, a small machine measures itself.
pub fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until `look` finds something; panics with what was waited for.
pub async fn until<T, F, Fut>(limit: Duration, what: &str, mut look: F) -> T
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Option<T>>,
{
    let began = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(began.elapsed() < limit, "waited {limit:?} in vain for {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Runs the test `name` again in a process of its own that is root of fresh user, network and mount namespaces, and true
/// there. Namespaces cannot be entered by a process that has threads, as every test harness has.
pub fn in_namespaces(name: &str) -> bool {
    const INSIDE: &str = "GARRISON_E2E_INSIDE";
    if std::env::var(INSIDE).as_deref() == Ok(name) {
        let status = Command::new("ip").args(["link", "set", "lo", "up"]).status();
        assert!(
            status.is_ok_and(|status| status.success()),
            "install the package iproute2"
        );
        return true;
    }
    let status = Command::new("unshare")
        .args([
            "--user",
            "--map-root-user",
            "--net",
            "--mount",
            "--kill-child",
            "--fork",
            "--",
        ])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads", "1"])
        .env(INSIDE, name)
        .status()
        .expect("unshare (package util-linux) starts");
    assert!(
        status.success(),
        "{name} failed in its namespaces ({status}); if none could be made, allow unprivileged user namespaces \
         (sysctl kernel.unprivileged_userns_clone=1) or run as root"
    );
    false
}
