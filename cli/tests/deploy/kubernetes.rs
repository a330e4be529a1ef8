//! `deploy/k8s`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::{PROGRAMS, VERSION, WITH_DATABASE, deploy, read, texts, yaml};

const NODE_PROGRAMS: [&str; 2] = ["flow-ingest", "enforcer"];

fn kustomization() -> Value {
    yaml(&deploy().join("k8s/base/kustomization.yaml")).remove(0)
}

fn objects() -> Vec<Value> {
    let base = deploy().join("k8s/base");
    texts(&kustomization()["resources"])
        .iter()
        .flat_map(|file| yaml(&base.join(file)))
        .collect()
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn workloads() -> Vec<Value> {
    let kinds = ["Deployment", "StatefulSet", "DaemonSet", "Job"];
    objects()
        .into_iter()
        .filter(|object| kinds.contains(&text(object, "/kind")))
        .collect()
}

fn containers(pod: &Value) -> Vec<Value> {
    let of = |key: &str| pod[key].as_array().cloned().unwrap_or_default();
    [of("initContainers"), of("containers")].concat()
}

#[test]
fn every_file_is_used_and_every_object_is_whole_and_alone() {
    let base = deploy().join("k8s/base");
    let named: BTreeSet<String> = texts(&kustomization()["resources"]).into_iter().collect();
    let there: BTreeSet<String> = std::fs::read_dir(&base)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".yaml") && name != "kustomization.yaml")
        .collect();
    assert_eq!(named, there);
    let mut seen = BTreeSet::new();
    for object in objects() {
        let (kind, name) = (text(&object, "/kind"), text(&object, "/metadata/name"));
        assert!(
            !kind.is_empty() && !name.is_empty() && !text(&object, "/apiVersion").is_empty(),
            "{object}"
        );
        let namespace = text(&object, "/metadata/namespace");
        assert!(
            ["garrison", "garrison-node"].contains(&namespace) || kind == "Namespace",
            "{kind} {name}"
        );
        assert_eq!(
            text(&object, "/metadata/labels/app.kubernetes.io~1part-of"),
            "garrison",
            "{kind} {name}"
        );
        assert_ne!(kind, "Secret", "{name}: secrets are the operator's");
        assert!(
            seen.insert((kind.to_owned(), namespace.to_owned(), name.to_owned())),
            "{kind} {name} is there twice"
        );
    }
}

#[test]
fn every_program_has_its_workload_account_configuration_and_budget() {
    let objects = objects();
    let has = |kind: &str, namespace: &str, name: &str| {
        objects.iter().any(|object| {
            text(object, "/kind") == kind
                && text(object, "/metadata/namespace") == namespace
                && text(object, "/metadata/name") == name
        })
    };
    let generated: BTreeMap<(String, String), Vec<String>> = kustomization()["configMapGenerator"]
        .as_array()
        .unwrap()
        .iter()
        .map(|map| {
            (
                (text(map, "/namespace").to_owned(), text(map, "/name").to_owned()),
                texts(&map["files"]),
            )
        })
        .collect();
    for program in PROGRAMS {
        let node = NODE_PROGRAMS.contains(&program);
        let namespace = if node { "garrison-node" } else { "garrison" };
        let kind = match program {
            "forensics" => "StatefulSet",
            _ if node => "DaemonSet",
            _ => "Deployment",
        };
        assert!(has(kind, namespace, program), "{program} is no {kind}");
        assert!(has("ServiceAccount", namespace, program), "{program}");
        assert_eq!(has("PodDisruptionBudget", namespace, program), !node, "{program}");
        assert_eq!(has("Service", namespace, program), !node, "{program}");
        let files = &generated[&(namespace.to_owned(), program.to_owned())];
        assert_eq!(*files, [format!("config/{program}.toml")]);
        assert!(deploy().join("k8s/base").join(&files[0]).exists(), "{program}");
    }
}

#[test]
fn every_pod_is_confined_and_bounded() {
    for workload in workloads() {
        let name = text(&workload, "/metadata/name").to_owned();
        let pod = workload.pointer("/spec/template/spec").unwrap();
        assert_eq!(pod["automountServiceAccountToken"], false, "{name}");
        assert!(!text(pod, "/serviceAccountName").is_empty(), "{name}");
        assert_eq!(
            text(pod, "/securityContext/seccompProfile/type"),
            "RuntimeDefault",
            "{name}"
        );
        let node = text(&workload, "/metadata/namespace") == "garrison-node";
        assert_eq!(pod.get("hostNetwork").is_some(), node, "{name}");
        for key in ["hostPID", "hostIPC"] {
            assert!(pod.get(key).is_none(), "{name}");
        }
        for container in containers(pod) {
            let context = &container["securityContext"];
            let label = format!("{name}/{}", text(&container, "/name"));
            assert_eq!(context["allowPrivilegeEscalation"], false, "{label}");
            assert_eq!(context["readOnlyRootFilesystem"], true, "{label}");
            assert_eq!(texts(&context["capabilities"]["drop"]), ["ALL"], "{label}");
            assert!(context.get("privileged").is_none(), "{label}");
            let wanted: &[&str] = match text(&container, "/name") {
                "flow-ingest" => &["NET_RAW"],
                "enforcer" => &["NET_ADMIN"],
                _ => &[],
            };
            assert_eq!(texts(&context["capabilities"]["add"]), wanted, "{label}");
            assert!(container.pointer("/resources/requests/memory").is_some(), "{label}");
            assert!(container.pointer("/resources/limits/memory").is_some(), "{label}");
            let image = text(&container, "/image");
            assert!(
                image.starts_with("garrison/") && image.ends_with(&format!(":{VERSION}")),
                "{label}: {image}"
            );
        }
        let restricted = pod["securityContext"]["runAsNonRoot"] == true && pod["securityContext"]["runAsUser"] == 10001;
        assert_eq!(restricted, !node, "{name}");
    }
    let namespaces: BTreeMap<String, String> = objects()
        .iter()
        .filter(|object| text(object, "/kind") == "Namespace")
        .map(|object| {
            let level = text(object, "/metadata/labels/pod-security.kubernetes.io~1enforce");
            (text(object, "/metadata/name").to_owned(), level.to_owned())
        })
        .collect();
    assert_eq!(namespaces["garrison"], "restricted");
    assert_eq!(namespaces["garrison-node"], "privileged");
}

#[test]
fn probes_ask_where_the_program_answers() {
    for program in PROGRAMS {
        let workload = workloads()
            .into_iter()
            .find(|object| text(object, "/metadata/name") == program)
            .unwrap();
        let pod = workload.pointer("/spec/template/spec").unwrap().clone();
        let main = pod["containers"][0].clone();
        let config: toml::Table = read(&deploy().join(format!("k8s/base/config/{program}.toml")))
            .parse()
            .unwrap();
        let listen = |section: &str| -> Option<std::net::SocketAddr> {
            Some(
                config["core"].get(section)?["listen"]
                    .as_str()
                    .unwrap()
                    .parse()
                    .unwrap(),
            )
        };
        let admin = listen("admin").unwrap();
        let port = |name: &str| {
            let ports = main["ports"].as_array().cloned().unwrap_or_default();
            let port = ports.iter().find(|port| text(port, "/name") == name).cloned()?;
            port["containerPort"].as_u64()
        };
        for (probe, page) in [
            ("startupProbe", "/livez"),
            ("livenessProbe", "/livez"),
            ("readinessProbe", "/readyz"),
        ] {
            let get = &main[probe]["httpGet"];
            assert_eq!(text(get, "/path"), page, "{program} {probe}");
            let asked = get["port"].as_u64().or_else(|| port(get["port"].as_str()?));
            assert_eq!(asked, Some(admin.port().into()), "{program} {probe}");
            // In the host's network only the host itself may ask.
            let local = text(get, "/host") == "127.0.0.1";
            assert_eq!(local, admin.ip().is_loopback(), "{program} {probe}");
            assert_eq!(local, NODE_PROGRAMS.contains(&program), "{program} {probe}");
        }
        assert_eq!(
            port("grpc"),
            listen("grpc").map(|listen| listen.port().into()),
            "{program}"
        );
    }
}

#[test]
fn every_file_that_a_configuration_names_is_mounted() {
    for program in PROGRAMS {
        let workload = workloads()
            .into_iter()
            .find(|object| text(object, "/metadata/name") == program)
            .unwrap();
        let pod = workload.pointer("/spec/template/spec").unwrap().clone();
        let main = &pod["containers"][0];
        let mounts: Vec<String> = main["volumeMounts"]
            .as_array()
            .unwrap()
            .iter()
            .map(|mount| text(mount, "/mountPath").to_owned())
            .collect();
        let config = read(&deploy().join(format!("k8s/base/config/{program}.toml")));
        for path in config.split('"').filter(|part| part.starts_with('/')) {
            assert!(
                mounts
                    .iter()
                    .any(|mount| path.starts_with(&format!("{mount}/")) || path == mount),
                "{program}: {path}"
            );
        }
        let named: BTreeSet<String> = ["/volumes", "/volumeClaimTemplates"]
            .iter()
            .filter_map(|key| pod.pointer(key).or_else(|| workload["spec"].pointer(key)))
            .flat_map(|volumes| volumes.as_array().cloned().unwrap_or_default())
            .map(|volume| {
                let plain = text(&volume, "/name");
                if plain.is_empty() {
                    text(&volume, "/metadata/name")
                } else {
                    plain
                }
                .to_owned()
            })
            .collect();
        let used: BTreeSet<String> = containers(&pod)
            .iter()
            .flat_map(|container| container["volumeMounts"].as_array().cloned().unwrap_or_default())
            .map(|mount| text(&mount, "/name").to_owned())
            .collect();
        assert_eq!(used, named, "{program}");
        // The owner's password is for the migration and for nobody else.
        let sees_owner = |container: &Value| container["volumeMounts"].to_string().contains("\"owner\"");
        assert!(!sees_owner(main), "{program}");
        let migrates = containers(&pod).iter().any(|container| {
            text(container, "/name") == "migrate" && texts(&container["args"]) == ["migrate"] && sees_owner(container)
        });
        assert_eq!(migrates, WITH_DATABASE.contains(&program), "{program}");
    }
}

#[test]
fn nothing_is_let_in_or_out_unsaid() {
    let policies: Vec<Value> = objects()
        .into_iter()
        .filter(|object| text(object, "/kind") == "NetworkPolicy")
        .collect();
    let deny = policies
        .iter()
        .find(|policy| text(policy, "/metadata/name") == "default-deny")
        .unwrap();
    assert_eq!(texts(&deny["spec"]["policyTypes"]), ["Ingress", "Egress"]);
    assert_eq!(deny["spec"]["podSelector"], serde_json::json!({}));
    assert!(deny["spec"].get("ingress").is_none() && deny["spec"].get("egress").is_none());
    let mut ports = BTreeSet::new();
    for policy in policies
        .iter()
        .filter(|policy| text(policy, "/metadata/name") != "default-deny")
    {
        for direction in ["ingress", "egress"] {
            for rule in policy["spec"][direction].as_array().into_iter().flatten() {
                let opened = rule["ports"]
                    .as_array()
                    .expect("a rule without ports opens all of them");
                ports.extend(opened.iter().map(|port| (direction, port["port"].as_u64().unwrap())));
            }
        }
    }
    let wanted = [
        ("egress", 53),
        ("egress", 4222),
        ("egress", 5432),
        ("egress", 7100),
        ("egress", 7101),
        ("ingress", 7100),
        ("ingress", 9100),
    ];
    assert_eq!(ports, wanted.into());
}
