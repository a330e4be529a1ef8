//! What the service does not start with.

use crate::{
    child::{Running, finish},
    fleet::{Fleet, local},
};

#[tokio::test]
async fn a_configuration_that_cannot_be_used_ends_with_64_and_names_the_key() {
    let fleet = Fleet::start().await;
    let (admin, grpc) = (local(), local());
    // The gRPC port is taken: whoever got as far as binding it would fail with another status.
    let _taken = std::net::TcpListener::bind(grpc).unwrap();
    let good = std::fs::read_to_string(fleet.configure(admin, grpc, "")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("service.toml");
    let other = fleet.stack.identity("svc/policy");
    let cases: Vec<(String, &str, &str)> = vec![
        (
            good.replace("[core.grpc]", "[core.grpc]\nmax_conections = 5"),
            "GAR-CFG-0003",
            "core.grpc.max_conections",
        ),
        (format!("surprise = 1\n{good}"), "GAR-CFG-0003", "surprise"),
        (
            good.replace("[core.grpc]\nlisten", "[core.grpc]\nlisen"),
            "GAR-CFG-0003",
            "lisen",
        ),
        (
            good.replace(&format!("listen = \"{grpc}\""), "listen = 5"),
            "GAR-CFG-0003",
            "core.grpc.listen",
        ),
        (
            good.replace("trust_domain = \"", "trust_domain = \"NO "),
            "GAR-CFG-0004",
            "core.identity.trust_domain",
        ),
        (
            good.replace("anomaly.pem", "missing.pem"),
            "GAR-CFG-0004",
            "core.identity",
        ),
        (
            good.replace(
                &fleet.stack.identity("svc/anomaly").cert_file.display().to_string(),
                &other.cert_file.display().to_string(),
            )
            .replace(
                &fleet.stack.identity("svc/anomaly").key_file.display().to_string(),
                &other.key_file.display().to_string(),
            ),
            "GAR-CFG-0004",
            "svc/policy, not of the service anomaly",
        ),
        (
            good.replace("iam_endpoint = \"https", "iam_endpoint = \"http"),
            "GAR-CFG-0004",
            "core.auth.iam_endpoint",
        ),
        (
            good.replace("urls = [\"tls", "urls = [\"http"),
            "GAR-CFG-0004",
            "core.bus",
        ),
        (
            good.replace("password_file = \"", "password_file = \"/missing"),
            "GAR-CFG-0004",
            "core.database",
        ),
        (format!("trouble = \"invalid\"\n{good}"), "GAR-CFG-0004", "`trouble`"),
        (
            format!("{good}\n[core.telemetry]\nlog = \"a=b=c\""),
            "GAR-CFG-0004",
            "core.telemetry.log",
        ),
        (
            format!("{good}\n[core.telemetry]\notlp_endpoint = \"http://collector:4317\""),
            "GAR-CFG-0004",
            "core.telemetry.otlp_endpoint",
        ),
        ("core = [".to_owned(), "GAR-CFG-0002", "line 1"),
    ];
    for (text, code, key) in cases {
        std::fs::write(&path, &text).unwrap();
        let (status, _, said) = finish(&["run", "--config", path.to_str().unwrap()]);
        assert_eq!(status, 64, "{key}: {said}");
        assert!(said.contains(code) && said.contains(key), "{code} {key}: {said}");
    }
    std::fs::remove_file(&path).unwrap();
    let (status, _, said) = finish(&["--config", path.to_str().unwrap()]);
    assert!(
        status == 64 && said.contains("GAR-CFG-0001") && said.contains("service.toml"),
        "{status} {said}"
    );
    let (status, _, _) = finish(&["--no-such-option"]);
    assert_eq!(status, 64);

    std::fs::write(&path, &good).unwrap();
    let (status, _, said) = finish(&["check", "--config", path.to_str().unwrap()]);
    assert_eq!(status, 0, "{said}");
    let (status, _, said) = finish(&["--config", path.to_str().unwrap()]);
    assert!(
        status == 1 && said.contains("GAR-SVC-0001") && said.contains("core.grpc.listen"),
        "{status} {said}"
    );
}

#[tokio::test]
async fn a_task_that_fails_or_panics_ends_the_service_with_its_name() {
    let fleet = Fleet::start().await;
    for (trouble, code) in [("error", "GAR-SVC-0002"), ("panic", "GAR-SVC-0003")] {
        let mut service: Running = fleet.service(&format!("trouble = \"{trouble}\""));
        assert_eq!(service.ended().await, 1);
        let log = service.log();
        assert!(
            log.contains(code) && log.contains("troubled") && log.contains("as configured"),
            "{log}"
        );
    }
}

#[test]
fn the_reference_and_the_version_need_no_configuration() {
    let (status, out, _) = finish(&["config"]);
    assert_eq!(status, 0);
    for part in [
        "# Configuration of anomaly",
        "## `[core.bus]`",
        "How the service misbehaves.",
        "`\"stuck\"`",
    ] {
        assert!(out.contains(part), "{part:?} is not in:\n{out}");
    }
    let (status, out, _) = finish(&["--version"]);
    assert!(status == 0 && out.contains("1.2.3"), "{out}");
}
