//! The program as a person runs it, in what needs no fleet.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Output, Stdio},
};

fn garrison(arguments: &[&str]) -> Output {
    garrison_in(Path::new("/nonexistent/config.toml"), arguments)
}

fn garrison_in(config: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_garrison"))
        .env("GARRISON_CONFIG", config)
        .args(arguments)
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn example() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../docs/examples/lab-policy.yaml")
        .display()
        .to_string()
}

#[test]
fn the_readme_s_policy_example_has_no_errors_and_says_so_on_stderr() {
    let output = garrison(&["policy", "check", &example()]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stdout(&output), "");
    assert!(stderr(&output).contains("2 policies, no errors"));
}

#[test]
fn a_wrong_policy_ends_with_6_and_names_field_line_and_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("wrong.yaml");
    let text = std::fs::read_to_string(example())
        .unwrap()
        .replace("port: 5432", "port: 543210");
    std::fs::write(&file, text).unwrap();
    let output = garrison(&["policy", "check", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(6));
    let said = stdout(&output);
    assert!(
        said.contains("spec.ingress[0].ports[0].port")
            && said.contains("wrong.yaml:16:38: error")
            && said.contains("GAR-POLICY-"),
        "{said}"
    );

    let output = garrison(&["policy", "check", file.to_str().unwrap(), "-o", "json"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["valid"], false);
    assert!(
        json["diagnostics"][0]["remedy"]
            .as_str()
            .is_some_and(|remedy| !remedy.is_empty())
    );
}

#[test]
fn standard_input_is_taken_for_a_dash() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_garrison"))
        .args(["policy", "check", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"{").unwrap();
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(6));
}

#[test]
fn exit_statuses_tell_usage_configuration_and_login_apart() {
    assert_eq!(garrison(&["alerts", "lits"]).status.code(), Some(2));
    let output = garrison(&["alerts", "list"]);
    assert_eq!(output.status.code(), Some(64));
    assert!(stderr(&output).contains("/nonexistent/config.toml"));

    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.toml");
    std::fs::write(dir.path().join("ca.pem"), "").unwrap();
    std::fs::write(&config, "[profiles.default]\nca_file = \"ca.pem\"\n").unwrap();
    let output = garrison_in(&config, &["alerts", "list"]);
    assert_eq!(output.status.code(), Some(4));
    assert!(stderr(&output).contains("run `garrison login`"));
    let output = garrison_in(&config, &["bus", "apply"]);
    assert_eq!(output.status.code(), Some(64));
    assert!(stderr(&output).contains("bus"));
}

#[test]
fn a_service_that_does_not_answer_ends_with_5() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.toml");
    std::fs::write(dir.path().join("ca.pem"), "").unwrap();
    std::fs::write(dir.path().join("password"), "x").unwrap();
    let text =
        "[profiles.default]\nca_file = \"ca.pem\"\n[profiles.default.endpoints]\niam = \"https://127.0.0.1:1\"\n";
    std::fs::write(&config, text).unwrap();
    let password = dir.path().join("password");
    let output = garrison_in(
        &config,
        &[
            "login",
            "ana",
            "--tenant",
            "acme",
            "--password-file",
            password.to_str().unwrap(),
        ],
    );
    assert_eq!(output.status.code(), Some(5), "{}", stderr(&output));
    assert!(stderr(&output).contains("GAR-CLI-0001") && stderr(&output).contains("127.0.0.1:1"));
}

#[test]
fn what_is_no_evidence_is_refused_with_6_and_a_missing_file_with_1() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("not.tar");
    std::fs::write(&file, b"not an archive").unwrap();
    for arguments in [["evidence", "verify"], ["audit", "verify"]] {
        let output = garrison(&[arguments[0], arguments[1], file.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(6), "{arguments:?}: {}", stderr(&output));
        let output = garrison(&[arguments[0], arguments[1], "/nonexistent/file"]);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", stderr(&output));
    }
}

#[test]
fn completions_and_permissions_are_printed() {
    for shell in ["bash", "zsh", "fish"] {
        let output = garrison(&["completion", shell]);
        assert!(
            stdout(&output).contains("garrison") && output.status.success(),
            "{shell}"
        );
    }
    let output = garrison(&[
        "bus",
        "permissions",
        "--trust-domain",
        "example.org",
        "--enforcer",
        "edge-1=acme",
    ]);
    assert!(stdout(&output).contains("spiffe://example.org/enforcer/edge-1\""));
    let output = garrison(&[
        "bus",
        "permissions",
        "--trust-domain",
        "example.org",
        "--enforcer",
        "edge-1",
    ]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_reader_that_has_seen_enough_ends_it_quietly() {
    let script = format!("'{}' reference | head -n 1", env!("CARGO_BIN_EXE_garrison"));
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert_eq!(stdout(&output), "# Command line\n");
    assert_eq!(stderr(&output), "");
}

const CLUSTER: &str = "apiVersion: apps/v1
kind: Deployment
metadata: {name: ledger, namespace: finance}
spec: {template: {metadata: {labels: {app: ledger}}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: books, namespace: finance}
spec: {template: {metadata: {labels: {app: books}}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec: {template: {metadata: {labels: {app: web}}}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: ledger, namespace: finance}
spec:
  podSelector: {matchLabels: {app: ledger}}
  ingress: [{from: [{podSelector: {}}], ports: [{port: 5432}]}]
";

#[test]
fn a_cluster_is_analysed_from_its_manifests_alone() {
    let dir = tempfile::tempdir().unwrap();
    let now = dir.path().join("now");
    std::fs::create_dir(&now).unwrap();
    std::fs::write(now.join("all.yaml"), CLUSTER).unwrap();
    std::fs::write(now.join("notes.txt"), "not: [a manifest").unwrap();
    let now = now.to_str().unwrap();

    let output = garrison(&["policy", "connections", now, "-o", "tsv"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let said = stdout(&output);
    assert!(
        said.contains("\tfinance/books[Deployment]\tfinance/ledger[Deployment]\tTCP/5432\n"),
        "{said}"
    );
    assert!(!said.contains("shop/web[Deployment]\tfinance/ledger"), "{said}");

    let output = garrison(&["policy", "explain", "web", "ledger", "5432", "--in", now]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(
        stdout(&output).contains("NetworkPolicy finance/ledger isolates it"),
        "{}",
        stdout(&output)
    );

    let forbid = "not namespace=finance -> app=ledger";
    let output = garrison(&["policy", "assert", now, "--forbid", forbid]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));

    let after = dir.path().join("after.yaml");
    std::fs::write(&after, CLUSTER.replace("podSelector: {}}", "namespaceSelector: {}}")).unwrap();
    let after = after.to_str().unwrap();
    let output = garrison(&["policy", "diff", now, after, "-o", "tsv"]);
    assert_eq!(
        stdout(&output),
        "\tnetwork\tfrom\tto\tservices\n+\t\tshop/web[Deployment]\tfinance/ledger[Deployment]\tTCP/5432\n"
    );

    let output = garrison(&["policy", "assert", after, "--forbid", forbid]);
    assert_eq!(output.status.code(), Some(1));
    let said = stdout(&output);
    assert!(
        said.contains("shop/web[Deployment] → finance/ledger[Deployment] TCP/5432 is possible")
            && said.contains("allowed by spec.ingress[0] of NetworkPolicy finance/ledger"),
        "{said}"
    );
    assert!(stderr(&output).contains("GAR-CLI-0008"));

    std::fs::write(dir.path().join("after.yaml"), CLUSTER.replace("ports:", "port:")).unwrap();
    let output = garrison(&["policy", "connections", after]);
    assert_eq!(output.status.code(), Some(6));
    assert!(
        stderr(&output).contains("after.yaml:21:") && stderr(&output).contains("Did you mean `ports`?"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn connections_are_drawn() {
    let dir = tempfile::tempdir().unwrap();
    let now = dir.path().join("now.yaml");
    std::fs::write(&now, CLUSTER).unwrap();
    let now = now.to_str().unwrap();
    let output = garrison(&["policy", "connections", now, "--svg"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let picture = stdout(&output);
    assert!(
        picture.starts_with("<?xml") && picture.ends_with("</svg>\n"),
        "{picture}"
    );
    for said in [
        ">finance<",
        "books",
        "TCP/5432",
        "finance/books[Deployment] → finance/ledger[Deployment]: TCP/5432",
    ] {
        assert!(picture.contains(said), "{said}\n{picture}");
    }
    assert_eq!(stdout(&garrison(&["policy", "connections", now, "--svg"])), picture);

    // More than anybody could read is refused with what to do; a part of it is drawn.
    let mut many = format!(
        "{CLUSTER}---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: own, namespace: crowd}}
spec: {{podSelector: {{}}, policyTypes: [Ingress, Egress], ingress: [{{from: [{{podSelector: {{}}}}]}}], egress: [{{to: [{{podSelector: {{}}}}]}}]}}
"
    );
    for i in 0..310 {
        many.push_str(&format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: p{i}, namespace: crowd, labels: {{app: p{i}}}}}\n"
        ));
    }
    let crowd = dir.path().join("crowd.yaml");
    std::fs::write(&crowd, many).unwrap();
    let crowd = crowd.to_str().unwrap();
    let output = garrison(&["policy", "connections", crowd, "--svg"]);
    assert_eq!(output.status.code(), Some(2));
    let said = stderr(&output);
    assert!(said.contains("at most 300") && said.contains("--only"), "{said}");
    let output = garrison(&["policy", "connections", crowd, "--svg", "--only", "namespace=finance"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let output = garrison(&["policy", "connections", now, "--svg", "--dot"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn schemas_are_printed_for_editors() {
    for (version, has, lacks) in [
        ("v1alpha1", "validFrom", "accountability"),
        ("v1beta1", "accountability", "validFrom"),
    ] {
        let output = garrison(&["policy", "schema", version]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let schema: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
        assert_eq!(
            schema["properties"]["apiVersion"]["const"],
            format!("garrison.dev/{version}")
        );
        let text = schema.to_string();
        assert!(
            text.contains(&format!("\"{has}\"")) && !text.contains(&format!("\"{lacks}\"")),
            "{version}"
        );
    }
    assert_eq!(
        stdout(&garrison(&["policy", "schema"])),
        stdout(&garrison(&["policy", "schema", "v1alpha1"]))
    );
}

const NAMESPACED: &str = "\
apiVersion: garrison.dev/v1alpha1
kind: ZeroTrustPolicy
metadata:
  name: web
  namespace: shop
spec:
  mode: observe
  owner: shop
  reason: the web server
  subject:
    workloads:
      podSelector:
        matchLabels:
          app: web
  ingress: []
";

#[test]
fn policies_of_namespaces_are_taken_as_a_cluster_has_them() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("shop.yaml", NAMESPACED);
    write("bank.yaml", &NAMESPACED.replace("namespace: shop", "namespace: bank"));
    let folder = dir.path().to_str().unwrap();
    let file = dir.path().join("shop.yaml");
    let file = file.to_str().unwrap();
    let output = garrison(&["policy", "check", file]);
    assert_eq!(output.status.code(), Some(0), "{}{}", stdout(&output), stderr(&output));
    let output = garrison(&["policy", "fmt", "--check", folder]);
    assert_eq!(output.status.code(), Some(0), "{}{}", stdout(&output), stderr(&output));
    let output = garrison(&["policy", "ci", folder]);
    assert_eq!(output.status.code(), Some(0), "{}{}", stdout(&output), stderr(&output));

    // Two of one name and namespace, and one that governs another namespace's pods.
    write("again.yaml", NAMESPACED);
    let output = garrison(&["policy", "ci", folder]);
    assert_eq!(output.status.code(), Some(6));
    assert!(stdout(&output).contains("\"shop/web\""), "{}", stdout(&output));
    write(
        "again.yaml",
        &NAMESPACED.replace("    workloads:\n", "    workloads:\n      namespace: bank\n"),
    );
    let output = garrison(&["policy", "check", dir.path().join("again.yaml").to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(6));
    let said = stdout(&output);
    assert!(
        said.contains("again.yaml:12:")
            && said.contains("spec.subject.workloads.namespace")
            && said.contains("namespace shop"),
        "{said}"
    );
}

#[test]
fn a_draft_is_replayed_against_recorded_flows() {
    use garrison_flow::{FlowBatchBuilder, FlowRow};
    let dir = tempfile::tempdir().unwrap();
    let mut builder = FlowBatchBuilder::new(16);
    let hour = 3_600_000_000_000_i64;
    for i in 0..40_u8 {
        let time = i64::from(i) * hour;
        builder.push(&FlowRow {
            flow_id: [i; 16],
            first_seen: time,
            last_seen: time,
            protocol: 6,
            src_ip: [10, 0, 0, if i == 7 { 99 } else { 1 }].into(),
            dst_ip: [10, 0, 0, 10].into(),
            dst_port: 5432,
            ..FlowRow::default()
        });
    }
    let file = std::fs::File::create(dir.path().join("day.parquet")).unwrap();
    let mut writer = parquet::arrow::ArrowWriter::try_new(file, garrison_flow::schema(), None).unwrap();
    writer.write(builder.finish().record_batch()).unwrap();
    writer.close().unwrap();
    let draft = dir.path().join("draft.yaml");
    std::fs::write(
        &draft,
        "apiVersion: garrison.dev/v1alpha1
kind: ZeroTrustPolicy
metadata: {name: db}
spec:
  subject: {cidrs: [10.0.0.10]}
  ingress:
    - {name: web, from: [{cidr: 10.0.0.1}], ports: [{protocol: TCP, port: 5432}]}
",
    )
    .unwrap();
    let (draft, flows) = (draft.to_str().unwrap(), dir.path().to_str().unwrap());
    let output = garrison(&["policy", "what-if", draft, "--flows", flows, "-o", "tsv"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("40 flows: 39 allowed, 1 blocked"),
        "{}",
        stderr(&output)
    );
    assert!(stderr(&output).contains("confidence low"), "{}", stderr(&output));
    let said = stdout(&output);
    assert!(
        said.contains("db default-deny\t10.0.0.99\t10.0.0.10\tTCP/5432\t1\t1\t1970-01-01T07:00:00Z\truns rarely"),
        "{said}"
    );
    assert!(said.contains("db web\tingress\tallow\t39\t"), "{said}");

    let output = garrison(&["policy", "what-if", draft, "--flows", flows, "--fail"]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let output = garrison(&["policy", "what-if", draft, "--flows", draft]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("this is no Parquet file"));
}

#[test]
fn policies_are_compiled_for_every_target_without_a_fleet() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("web.yaml");
    std::fs::write(
        &file,
        "apiVersion: garrison.dev/v1alpha1
kind: ZeroTrustPolicy
metadata: {name: web}
spec:
  mode: enforce
  subject: {cidrs: [10.0.0.10], workloads: {namespace: shop, podSelector: {matchLabels: {app: web}}}}
  ingress:
    - {name: https, from: [{any: true}], ports: [{protocol: TCP, port: 443}]}
",
    )
    .unwrap();
    let file = file.to_str().unwrap();
    for (target, word) in [
        ("kubernetes", "kind: NetworkPolicy"),
        ("cluster-network-policy", "kind: ClusterNetworkPolicy"),
        ("cilium", "kind: CiliumNetworkPolicy"),
        ("calico", "kind: Tier"),
        ("nftables", "table inet garrison_policy"),
        ("aws", "aws_security_group"),
        ("azure", "azurerm_network_security_rule"),
        ("gcp", "google_compute_firewall"),
    ] {
        let output = garrison(&["policy", "compile", "--target", target, file]);
        assert_eq!(output.status.code(), Some(0), "{target}: {}", stderr(&output));
        assert!(stdout(&output).contains(word), "{target}: {}", stdout(&output));
    }
    // What no account can have is refused, whatever the policies need.
    for quotas in [["--aws-rules", "201"], ["--aws-groups", "17"], ["--aws-rules", "0"]] {
        let output = garrison(&["policy", "compile", "--target", "aws", file, quotas[0], quotas[1]]);
        assert_eq!(output.status.code(), Some(2), "{quotas:?}");
        assert!(stderr(&output).contains("at most 1000"), "{}", stderr(&output));
    }
    let into = dir.path().to_str().unwrap();
    let output = garrison(&["policy", "compile", "--target", "gcp", file, "--into", into]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(dir.path().join("gcp/firewalls.json").is_file());
}

#[test]
fn a_request_is_decided_by_authorization_policies() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("authz.yaml");
    std::fs::write(
        &file,
        "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: readers, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  rules: [{to: [{operation: {methods: [GET]}}]}]
",
    )
    .unwrap();
    let ask = |method: &str| {
        let file = file.to_str().unwrap();
        let rest = ["--namespace", "shop", "--label", "app=web", "--method", method];
        garrison(&[&["policy", "authorize", file], &rest[..]].concat())
    };
    assert_eq!(
        stdout(&ask("GET")),
        "allowed: rule 0 of AuthorizationPolicy shop/readers\n"
    );
    assert_eq!(
        stdout(&ask("POST")),
        "denied: no rule of the allowing policies matches\n"
    );
}

#[test]
fn a_folder_is_checked_for_a_pipeline_with_sarif_and_junit() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let example = std::fs::read_to_string(example()).unwrap();
    std::fs::write(at("policy.yaml"), &example).unwrap();
    std::fs::write(
        at("open.tf.json"),
        r#"{"resource": {"aws_security_group": {"all": {"ingress": [{"protocol": "-1", "from_port": 0, "to_port": 0, "cidr_blocks": ["0.0.0.0/0"]}]}}}}"#,
    )
    .unwrap();
    std::fs::write(at("template.yaml"), "metadata:\n  name: {{ .Release.Name }}\n").unwrap();
    let (folder, sarif, junit) = (dir.path().to_str().unwrap(), at("out.sarif"), at("out.xml"));
    let arguments = [
        "policy",
        "ci",
        folder,
        "--sarif",
        sarif.to_str().unwrap(),
        "--junit",
        junit.to_str().unwrap(),
    ];
    let output = garrison(&arguments);
    assert_eq!(output.status.code(), Some(0), "warnings alone: {}", stderr(&output));
    assert!(stderr(&output).contains("a Helm template"), "{}", stderr(&output));
    let found: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&sarif).unwrap()).unwrap();
    assert_eq!(found["version"], "2.1.0");
    let results = found["runs"][0]["results"].as_array().unwrap();
    assert!(results.iter().any(|r| r["ruleId"] == "GAR-POLICY-0103"), "{found:#}");
    let junit = std::fs::read_to_string(&junit).unwrap();
    assert!(
        junit.contains("name=\"security groups are narrow\">") && junit.contains("name=\"policies are right\"/>"),
        "{junit}"
    );

    let strict: Vec<&str> = arguments.into_iter().chain(["--deny-warnings"]).collect();
    assert_eq!(garrison(&strict).status.code(), Some(1));
    std::fs::write(at("policy.yaml"), example.replace("port: 5432", "port: 543210")).unwrap();
    assert_eq!(garrison(&arguments).status.code(), Some(6));
}

#[test]
fn files_are_linted_and_written_in_one_form() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("policy.yaml");
    let path = file.to_str().unwrap();
    std::fs::write(&file, std::fs::read_to_string(example()).unwrap()).unwrap();
    assert_eq!(garrison(&["policy", "fmt", "--check", path]).status.code(), Some(1));
    assert_eq!(garrison(&["policy", "fmt", path]).status.code(), Some(0));
    assert_eq!(garrison(&["policy", "fmt", "--check", path]).status.code(), Some(0));
    let output = garrison(&["policy", "check", path]);
    assert!(stderr(&output).contains("2 policies, no errors"), "{}", stderr(&output));
    let output = garrison(&["policy", "lint", path, "--deny-warnings"]);
    assert_eq!(output.status.code(), Some(0), "{}", stdout(&output));
}

#[test]
fn a_folder_of_packets_and_meshes_becomes_documents() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let packets = file(
        "packets.yaml",
        "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: db, namespace: shop}, spec: {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 5432}]}]}}\n",
    );
    let mesh = file(
        "mesh.yaml",
        "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: db, namespace: shop}, spec: {selector: {matchLabels: {app: db}}, rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]}]}}\n",
    );
    let output = garrison(&["policy", "import", &packets, &mesh]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stderr(&output), "");
    let made = file("made.yaml", &stdout(&output));
    let output = garrison(&["policy", "check", &made]);
    assert_eq!(output.status.code(), Some(0), "{}", stdout(&output));
    let text = std::fs::read_to_string(&made).unwrap();
    assert!(
        text.contains("serviceAccounts:") && text.contains("requires: trusted"),
        "{text}"
    );
}

#[test]
fn security_groups_become_policies() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("groups.json");
    std::fs::write(
        &file,
        r#"[{"GroupName": "web", "IpPermissions": [{"IpProtocol": "tcp", "FromPort": 443, "ToPort": 443, "IpRanges": [{"CidrIp": "10.0.0.0/8"}]}], "IpPermissionsEgress": []}]"#,
    )
    .unwrap();
    let path = file.to_str().unwrap();
    let output = garrison(&["policy", "import", path]);
    assert!(stderr(&output).contains("--addresses web="), "{}", stderr(&output));
    let output = garrison(&["policy", "import", path, "--addresses", "web=10.1.0.0/24"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let made = dir.path().join("made.yaml");
    std::fs::write(&made, stdout(&output)).unwrap();
    assert_eq!(
        garrison(&["policy", "check", made.to_str().unwrap()]).status.code(),
        Some(0)
    );
}
