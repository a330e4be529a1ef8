//! A Kubernetes API server for tests, built once a machine from Debian's sources.
//!
//! Debian 12 has the source of Kubernetes 1.20.2, the Go that builds it, etcd and kubectl. Everything is fetched through
//! apt with lists and folders of its own, so that nothing is installed and no administrator is needed, and is kept
//! under the user's cache folder.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use garrison_testkit::{find_kubernetes, kubernetes_folder};

use crate::setup::{say, which};

/// The release whose packages fit each other.
const SUITE: &str = "bookworm";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// The version that the server says it is.
const VERSION: &str = "v1.20.2";
/// Packages that are unpacked: the programs, the compiler, and what replaces a library that this compiler breaks.
const PACKAGES: [&str; 5] = [
    "etcd-server",
    "kubernetes-client",
    "golang-1.19-go",
    "golang-1.19-src",
    "golang-github-modern-go-reflect2-dev",
];
const GOROOT: &str = "usr/lib/go-1.19";
const PROJECT: &str = "gopath/src/k8s.io/kubernetes";
/// Under `/vendor` of the sources, and among Go's sources of Debian.
const REFLECT: &str = "github.com/modern-go/reflect2";
const SERVER: &str = "k8s.io/kubernetes/cmd/kube-apiserver";
/// How often progress is told.
const TELL: Duration = Duration::from_secs(20);

/// Builds the API server where there is none. When that cannot be done, says so and notes the reason, with which tests
/// are skipped.
pub fn provide() {
    if find_kubernetes().is_ok() {
        return;
    }
    let Some(folder) = kubernetes_folder() else {
        say("no Kubernetes API server: neither XDG_CACHE_HOME nor HOME is set");
        return;
    };
    if let Err(error) = build(&folder) {
        say(&format!(
            "no Kubernetes API server, so tests with one are skipped: {error:#}"
        ));
        let noted =
            fs::create_dir_all(&folder).and_then(|()| fs::write(folder.join("why-not"), format!("{error:#}\n")));
        if let Err(error) = noted {
            say(&format!("{} cannot be written: {error}", folder.display()));
        }
    }
}

fn build(folder: &Path) -> Result<()> {
    for program in ["apt-get", "dpkg-deb", "tar"] {
        ensure!(
            which(program).is_some(),
            "{program} is missing: only Debian's packages are known here"
        );
    }
    ensure!(Path::new(KEYRING).is_file(), "Debian's keyring is missing");
    let work = folder.join("work");
    if work.exists() {
        // What was left half done.
        fs::remove_dir_all(&work).with_context(|| format!("clearing {}", work.display()))?;
    }
    fs::create_dir_all(&work).with_context(|| format!("making {}", work.display()))?;
    say("a Kubernetes API server for tests is built once, in about ten minutes and 3 GB of disk while it lasts");
    fetch(&work)?;
    unpack(&work)?;
    let go = Go { work: work.clone() };
    generate(&go)?;
    let server = compile(&go)?;
    let bin = folder.join("bin");
    fs::create_dir_all(&bin)?;
    for (from, name) in [
        (work.join("root/usr/bin/etcd"), "etcd"),
        (work.join("root/usr/bin/kubectl"), "kubectl"),
        // Last, as it is what took its time.
        (server, "kube-apiserver"),
    ] {
        // Under another name until it is whole.
        let partial = bin.join(format!("{name}.partial"));
        fs::copy(&from, &partial).with_context(|| format!("copying {}", from.display()))?;
        fs::rename(&partial, bin.join(name))?;
    }
    // Go makes parts of its cache read-only; what stays is only disk.
    let _ = fs::remove_dir_all(&work);
    let _ = fs::remove_file(folder.join("why-not"));
    say(&format!("the API server is in {}", bin.display()));
    Ok(())
}

/// Where this machine has Debian's packages from.
fn site() -> Result<String> {
    let ask = || -> Result<Option<String>> {
        let output = Command::new("apt-get")
            .args([
                "indextargets",
                "--format",
                "$(ORIGIN) $(COMPONENT) $(SITE)",
                "Identifier: Packages",
            ])
            .output()
            .context("asking apt for its sources")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let site = text.lines().find_map(|line| line.strip_prefix("Debian main "));
        Ok(site.filter(|site| !site.contains("security")).map(str::to_owned))
    };
    if let Some(site) = ask()? {
        return Ok(site);
    }
    // A fresh machine has no lists yet.
    crate::setup::apt(&["update"])?;
    ask()?.context("apt has no source with Debian's packages")
}

fn apt(work: &Path) -> Command {
    let mut command = Command::new("apt-get");
    command.current_dir(work.join("packages")).stdin(Stdio::null());
    for (key, path) in [
        ("Dir::Etc::sourcelist", "sources.list"),
        ("Dir::State::lists", "lists"),
        ("Dir::Cache", "cache"),
    ] {
        command.arg("-o").arg(format!("{key}={}", work.join(path).display()));
    }
    // Nothing of the machine's own sources, and no change of user, which could not write here.
    command.args(["-o", "Dir::Etc::sourceparts=-", "-o", "APT::Sandbox::User="]);
    command.args(["-o", "Acquire::Languages=none", "-o", "Acquire::Retries=3", "--quiet"]);
    command
}

fn fetch(work: &Path) -> Result<()> {
    for folder in ["packages", "lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(work.join(folder))?;
    }
    let site = site()?;
    let sources: String = ["deb", "deb-src"]
        .iter()
        .map(|kind| format!("{kind} [signed-by={KEYRING}] {site} {SUITE} main\n"))
        .collect();
    fs::write(work.join("sources.list"), sources)?;
    say("fetching the lists of packages");
    quietly(apt(work).arg("update"), "fetching the lists of packages")?;
    say("fetching Kubernetes' sources, Go, etcd and kubectl, about 130 MB");
    quietly(apt(work).arg("download").args(PACKAGES), "fetching packages")?;
    quietly(
        apt(work).args(["source", "--download-only", "--only-source", "kubernetes"]),
        "fetching Kubernetes' sources",
    )
}

fn quietly(command: &mut Command, what: &str) -> Result<()> {
    let output = command.output().with_context(|| what.to_owned())?;
    if output.status.success() {
        return Ok(());
    }
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let last = errors
        .lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .unwrap_or_default();
    bail!("{what} failed: {last}")
}

fn files(folder: &Path, ends: &str) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    let paths = entries.flatten().map(|entry| entry.path());
    Ok(paths
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().ends_with(ends))
        })
        .collect())
}

fn unpack(work: &Path) -> Result<()> {
    say("unpacking");
    let root = work.join("root");
    for package in files(&work.join("packages"), ".deb")? {
        quietly(
            Command::new("dpkg-deb").arg("--extract").arg(package).arg(&root),
            "unpacking a package",
        )?;
    }
    let project = work.join(PROJECT);
    fs::create_dir_all(&project)?;
    let sources = files(&work.join("packages"), ".orig.tar.gz")?;
    let [sources] = sources.as_slice() else {
        bail!("apt left {} archives of Kubernetes' sources", sources.len());
    };
    let mut tar = Command::new("tar");
    tar.arg("--extract")
        .arg("--file")
        .arg(sources)
        .arg("--directory")
        .arg(&project);
    quietly(tar.arg("--strip-components=1"), "unpacking Kubernetes' sources")?;
    // The library that reads custom resources panics when built with this compiler; Debian's own copy of it does not.
    let vendored = project.join("vendor").join(REFLECT);
    fs::remove_dir_all(&vendored).context("replacing a library of Kubernetes")?;
    fs::create_dir_all(&vendored)?;
    for file in files(&root.join("usr/share/gocode/src").join(REFLECT), "")? {
        if let Some(name) = file.file_name().filter(|_| file.is_file()) {
            fs::copy(&file, vendored.join(name))?;
        }
    }
    Ok(())
}

/// The unpacked compiler.
struct Go {
    work: PathBuf,
}

impl Go {
    /// A program among Kubernetes' sources, which gives way to everything else on the machine.
    fn command(&self, program: &Path) -> Command {
        let goroot = self.work.join("root").join(GOROOT);
        let project = self.work.join(PROJECT);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let paths = std::iter::once(goroot.join("bin")).chain(std::env::split_paths(&path));
        let mut command = Command::new("nice");
        command
            .args(["-n", "19"])
            .arg(program)
            .current_dir(&project)
            .stdin(Stdio::null())
            .env("PWD", &project)
            .env("PATH", std::env::join_paths(paths).unwrap_or_default())
            .env("GOROOT", goroot)
            .env("GOPATH", self.work.join("gopath"))
            .env("GOCACHE", self.work.join("gocache"))
            .env("HOME", &self.work)
            .env("GO111MODULE", "off")
            .env("GOPROXY", "off")
            .env("CGO_ENABLED", "0")
            .env_remove("GOFLAGS");
        command
    }

    fn go(&self) -> Command {
        self.command(&self.work.join("root").join(GOROOT).join("bin/go"))
    }
}

/// Writes the one part of the sources that is made when Kubernetes is built.
fn generate(go: &Go) -> Result<()> {
    say("generating the API's description");
    let generator = go.work.join("openapi-gen");
    let package = "k8s.io/kubernetes/vendor/k8s.io/kube-openapi/cmd/openapi-gen";
    quietly(
        go.go().arg("build").arg("-o").arg(&generator).arg(package),
        "building openapi-gen",
    )?;
    let project = go.work.join(PROJECT);
    let mut packages = Vec::new();
    for library in files(&project.join("vendor/k8s.io"), "")? {
        let name = library.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name != "code-generator" && !name.starts_with("sample-") {
            tagged(
                &library,
                &format!("k8s.io/kubernetes/vendor/k8s.io/{name}"),
                &mut packages,
            )?;
        }
    }
    tagged(&project.join("pkg"), "k8s.io/kubernetes/pkg", &mut packages)?;
    packages.sort();
    ensure!(
        packages.len() > 40,
        "only {} packages describe themselves",
        packages.len()
    );
    let mut command = go.command(&generator);
    command.args(["--logtostderr", "--input-dirs", &packages.join(",")]);
    command.args(["--output-package", "k8s.io/kubernetes/pkg/generated/openapi"]);
    command.args(["--output-file-base", "zz_generated.openapi"]);
    command.args(["--go-header-file", "hack/boilerplate/boilerplate.generatego.txt"]);
    command.arg("--report-filename").arg(go.work.join("violations"));
    quietly(&mut command, "generating the API's description")
}

/// The packages under `folder` that ask to be described.
fn tagged(folder: &Path, package: &str, found: &mut Vec<String>) -> Result<()> {
    let mut asks = false;
    for path in files(folder, "")? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            tagged(&path, &format!("{package}/{name}"), found)?;
        } else if !asks && name.ends_with(".go") {
            let text = fs::read(&path).unwrap_or_default();
            asks = String::from_utf8_lossy(&text).contains("+k8s:openapi-gen=");
        }
    }
    if asks {
        found.push(package.to_owned());
    }
    Ok(())
}

/// Builds the server, telling how far it is.
fn compile(go: &Go) -> Result<PathBuf> {
    let listed = go
        .go()
        .args(["list", "-deps", SERVER])
        .output()
        .context("listing packages")?;
    let total = String::from_utf8_lossy(&listed.stdout).lines().count();
    ensure!(total > 500, "the sources are not whole: {total} packages");
    let mut flags = "-s -w".to_owned();
    let (major, minor) = ("1", "20");
    for library in ["component-base/version", "client-go/pkg/version"] {
        for (name, value) in [("gitVersion", VERSION), ("gitMajor", major), ("gitMinor", minor)] {
            flags.push_str(&format!(" -X k8s.io/kubernetes/vendor/k8s.io/{library}.{name}={value}"));
        }
    }
    let server = go.work.join("kube-apiserver");
    let mut child = go
        .go()
        .args(["build", "-v", "-ldflags", &flags, "-o"])
        .arg(&server)
        .arg(SERVER)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting go")?;
    let (mut built, mut told) = (0, Instant::now());
    let mut errors = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        for line in BufReader::new(stderr).lines() {
            let line = line.context("reading what go says")?;
            // Packages are told by their path alone.
            if line.contains(' ') || line.starts_with('#') {
                errors.push(line);
                continue;
            }
            built += 1;
            if told.elapsed() >= TELL {
                told = Instant::now();
                say(&format!("building kube-apiserver: {built} of {total} packages"));
            }
        }
    }
    let status = child.wait()?;
    ensure!(status.success(), "building kube-apiserver failed: {}", errors.join(" "));
    Ok(server)
}
