//! The webhook over TLS at a steady 1,000 reviews a second, beside the same reviews without a network, and how a decision
//! grows with the document's rules.
//!
//! `cargo bench -p policy-controller --bench webhook -- [REVIEWS_PER_SECOND] [SECONDS]`. Each review is due at its own time,
//! whether the one before was answered or not, and its latency counts from then: a pause of the server shows.

#![allow(missing_docs)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use garrison_testkit::{Pki, Process, TRUST_DOMAIN, free_port};
use policy_controller::{Admission, Metrics};
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The API server keeps connections open, and opens more when they are busy.
const CONNECTIONS: usize = 16;
/// The bound, in milliseconds, at the 99th percentile.
const BOUND: f64 = 5.0;

fn main() -> Result<(), Failure> {
    let mut numbers = std::env::args()
        .skip(1)
        .filter_map(|argument| argument.parse::<usize>().ok());
    let rate = numbers.next().unwrap_or(1_000).max(1);
    let seconds = numbers.next().unwrap_or(20).max(1);
    let reviews: Arc<Vec<String>> = Arc::new((0..64).map(|i| review(i, i * 7 % 40 + 1).to_string()).collect());
    alone("the decision alone", &reviews, 2_000)?;
    for (rules, times) in [(1, 2_000), (10, 2_000), (100, 500), (1_000, 32)] {
        let sized: Vec<String> = (0..16).map(|i| review(i, rules).to_string()).collect();
        alone(&format!("the decision alone, rules {rules}"), &sized, times)?;
    }
    let folder = tempfile::tempdir()?;
    let pki = Pki::open_or_create(&folder.path().join("pki"), TRUST_DOMAIN)?;
    let identity = pki.identity("svc/webhook")?;
    let (admin, port) = (free_port()?, free_port()?);
    // An API server that is away: the webhook does not need one.
    let kubeconfig = folder.path().join("kubeconfig");
    std::fs::write(
        &kubeconfig,
        "apiVersion: v1\nkind: Config\ncurrent-context: a\nclusters: [{name: a, cluster: {server: \"https://127.0.0.1:1\"}}]\n\
         users: [{name: a, user: {token: a}}]\ncontexts: [{name: a, context: {cluster: a, user: a}}]\n",
    )?;
    let config = folder.path().join("c.toml");
    std::fs::write(
        &config,
        format!(
            "[core.admin]\nlisten = \"127.0.0.1:{admin}\"\n[kubernetes]\nkubeconfig = {kubeconfig:?}\n\
             [webhook]\nlisten = \"127.0.0.1:{port}\"\ncert_file = {:?}\nkey_file = {:?}\n",
            identity.cert_file, identity.key_file
        ),
    )?;
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_policy-controller"));
    command.arg("run").arg("--config").arg(&config);
    let mut process = Process::start("policy-controller", command, &folder.path().join("log"))?;
    process.wait_until(Duration::from_secs(30), || {
        std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
    })?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(pki.ca_file())? {
        roots.add(certificate?)?;
    }
    let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(tls));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let latencies = runtime.block_on(drive(connector, port, reviews, rate, seconds))?;
    let p99 = report("over TLS", &latencies);
    println!(
        "{rate} reviews/s for {seconds} s; bound at p99: {BOUND} ms: {}",
        if p99 <= BOUND { "kept" } else { "NOT kept" }
    );
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id()))?;
    let resident = status
        .lines()
        .find(|line| line.starts_with("VmRSS"))
        .unwrap_or_default();
    println!(
        "the controller's memory afterwards: {}",
        resident.trim_start_matches("VmRSS:").trim()
    );
    Ok(())
}

/// A policy of so many rules. Every fourth is refused.
fn review(i: usize, rules: usize) -> Value {
    let rules: Vec<Value> = (0..rules)
        .map(|n| {
            json!({
                "name": format!("rule-{n}"),
                "from": [
                    {"podSelector": {"matchLabels": {"app": format!("client-{n}")}}},
                    {"cidr": format!("10.{}.{}.0/24", n / 250, n % 250)},
                ],
                "ports": [{"protocol": "TCP", "port": 1_000 + n}],
            })
        })
        .collect();
    let mut spec = json!({
        "mode": "enforce", "owner": "shop", "reason": "a measurement",
        "subject": {"workloads": {"podSelector": {"matchLabels": {"app": format!("app-{i}")}}}},
        "ingress": rules,
    });
    if i % 4 == 3 {
        spec["ingress"][0]["from"][1]["cidr"] = json!("10.0.0.0/40");
    }
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": format!("uid-{i}"), "operation": "CREATE", "namespace": "shop", "name": format!("app-{i}"),
            "kind": {"group": "garrison.dev", "version": "v1alpha1", "kind": "ZeroTrustPolicy"},
            "object": {"metadata": {"name": format!("app-{i}"), "namespace": "shop"}, "spec": spec},
        },
    })
}

/// What the decision itself costs.
fn alone(what: &str, reviews: &[String], times: usize) -> Result<(), Failure> {
    let admission = Admission::new(100, Metrics::default());
    let mut latencies = Vec::new();
    for text in reviews.iter().cycle().take(times) {
        let began = Instant::now();
        let review: Value = serde_json::from_str(text)?;
        let answer = admission.review(&review).ok_or("no answer")?;
        std::hint::black_box(answer.to_string());
        latencies.push(began.elapsed());
    }
    report(what, &latencies);
    Ok(())
}

async fn drive(
    connector: TlsConnector,
    port: u16,
    reviews: Arc<Vec<String>>,
    rate: usize,
    seconds: usize,
) -> Result<Vec<Duration>, Failure> {
    let total = rate * seconds;
    let next = Arc::new(AtomicUsize::new(0));
    let began = Instant::now() + Duration::from_millis(200);
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (connector, reviews, next) = (connector.clone(), Arc::clone(&reviews), Arc::clone(&next));
        clients.spawn(async move {
            let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
            stream.set_nodelay(true)?;
            let mut stream = connector.connect(ServerName::try_from("localhost")?, stream).await?;
            let mut latencies = Vec::new();
            let mut answer = vec![0_u8; 256 * 1024];
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= total {
                    return Ok::<_, Failure>(latencies);
                }
                let due = began + Duration::from_secs_f64(i as f64 / rate as f64);
                tokio::time::sleep_until(due.into()).await;
                // The executor's clock ticks in milliseconds; a review that is let go late is not the server's fault.
                let sent = Instant::now().min(due + Duration::from_millis(2)).max(due);
                let body = &reviews[i % reviews.len()];
                let head = format!(
                    "POST /validate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                    body.len()
                );
                stream.write_all(&[head.as_bytes(), body.as_bytes()].concat()).await?;
                stream.flush().await?;
                let mut filled = 0;
                loop {
                    let read = stream.read(&mut answer[filled..]).await?;
                    if read == 0 {
                        return Err("the webhook closed the connection".into());
                    }
                    filled += read;
                    if whole(&answer[..filled]) {
                        break;
                    }
                }
                latencies.push(sent.elapsed());
                let refused = !String::from_utf8_lossy(&answer[..filled]).contains("\"allowed\":true");
                if refused != (i % reviews.len() % 4 == 3) {
                    return Err(format!("review {i} was decided wrongly").into());
                }
            }
        });
    }
    let mut latencies = Vec::new();
    while let Some(client) = clients.join_next().await {
        latencies.extend(client??);
    }
    Ok(latencies)
}

fn whole(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer);
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.trim().parse::<usize>().ok())?
    });
    length.is_some_and(|length| body.len() >= length)
}

/// Prints the percentiles in milliseconds and answers the 99th.
fn report(what: &str, latencies: &[Duration]) -> f64 {
    let mut sorted: Vec<f64> = latencies.iter().map(|l| l.as_secs_f64() * 1e3).collect();
    sorted.sort_by(f64::total_cmp);
    let at = |share: f64| sorted.get(((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1)));
    let [p50, p90, p99, worst] = [0.5, 0.9, 0.99, 1.0].map(|share| at(share).copied().unwrap_or_default());
    println!(
        "{what}: {} reviews, p50 {p50:.3} ms, p90 {p90:.3} ms, p99 {p99:.3} ms, worst {worst:.3} ms",
        sorted.len()
    );
    p99
}
