//! `deploy/compose/compose.yaml`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use crate::{PROGRAMS, VERSION, WITH_DATABASE, deploy, dockerfile, initialised::Made, texts, yaml};

/// The file, merged.
pub struct Compose {
    root: Value,
}

/// A volume in a service.
#[derive(Debug, Clone)]
pub struct Mount {
    pub volume: String,
    pub target: String,
    pub read_only: bool,
}

impl Compose {
    pub fn read() -> Self {
        let mut documents = yaml(&deploy().join("compose/compose.yaml"));
        assert_eq!(documents.len(), 1);
        Self {
            root: documents.remove(0),
        }
    }

    pub fn services(&self) -> &Map<String, Value> {
        self.root["services"].as_object().unwrap()
    }

    pub fn service(&self, name: &str) -> &Value {
        self.services()
            .get(name)
            .unwrap_or_else(|| panic!("there is no service {name}"))
    }

    pub fn command(&self, name: &str) -> Vec<String> {
        texts(&self.service(name)["command"])
    }

    fn environment(&self, name: &str) -> BTreeMap<String, String> {
        let environment = self.service(name)["environment"]
            .as_object()
            .cloned()
            .unwrap_or_default();
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        environment
            .iter()
            .map(|(key, value)| (key.clone(), text(value)))
            .collect()
    }

    fn mounts(&self, name: &str) -> Vec<Mount> {
        let volumes = texts(&self.service(name)["volumes"]);
        let mount = |text: &String| {
            let mut parts = text.split(':');
            Mount {
                volume: parts.next().unwrap().to_owned(),
                target: parts.next().unwrap().to_owned(),
                read_only: parts.next() == Some("ro"),
            }
        };
        volumes.iter().map(mount).collect()
    }

    /// The folder of `init` that a volume is.
    fn folder(&self, volume: &str) -> Option<String> {
        let mounts = self.mounts("init");
        let mount = mounts.iter().find(|mount| mount.volume == volume)?;
        Some(mount.target.strip_prefix("/fleet/").unwrap().to_owned())
    }

    fn user(&self, name: &str) -> String {
        // Images of the fleet run as this unless told otherwise.
        self.service(name)["user"].as_str().unwrap_or("10001:10001").to_owned()
    }

    fn host_ports(&self, name: &str) -> BTreeSet<u16> {
        let published = texts(&self.service(name)["ports"]);
        let port = |text: &String| {
            let [address, outside, inside] = text.split(':').collect::<Vec<_>>()[..] else {
                panic!("{name} publishes {text} without saying on which address")
            };
            assert_eq!(address, "127.0.0.1", "{name} publishes {text}");
            assert_eq!(outside, inside, "configurations name one port for inside and outside");
            outside.parse().unwrap()
        };
        published.iter().map(port).collect()
    }
}

#[test]
fn every_program_is_there_and_every_image_is_built() {
    let compose = Compose::read();
    let stages = dockerfile::stages();
    for program in PROGRAMS {
        assert_eq!(
            compose.service(program)["image"],
            format!("garrison/{program}:{VERSION}")
        );
    }
    for (name, service) in compose.services() {
        let image = service["image"].as_str().unwrap();
        let (repository, tag) = image
            .rsplit_once(':')
            .unwrap_or_else(|| panic!("{name}: {image} has no tag"));
        assert_ne!(tag, "latest", "{name}");
        match repository.strip_prefix("garrison/") {
            Some(target) => {
                assert_eq!(tag, VERSION, "{name}");
                assert_eq!(service["build"]["target"], target, "{name}");
                assert!(stages.contains_key(target), "the Dockerfile has no target {target}");
                let context = deploy()
                    .join("compose")
                    .join(service["build"]["context"].as_str().unwrap());
                let file = context.join(service["build"]["dockerfile"].as_str().unwrap());
                assert!(file.exists(), "{}", file.display());
            }
            None => assert!(["postgres:17", "nats:2"].contains(&image), "{name}: {image}"),
        }
    }
}

#[test]
fn everything_is_confined() {
    let compose = Compose::read();
    let allowed: BTreeMap<&str, &[&str]> = [
        ("init", ["CHOWN", "DAC_OVERRIDE", "FOWNER"].as_slice()),
        ("flow-ingest", &["NET_RAW"]),
        ("flow-ingest-node", &["NET_RAW"]),
        ("enforcer", &["NET_ADMIN"]),
        ("enforcer-node", &["NET_ADMIN"]),
    ]
    .into();
    for (name, service) in compose.services() {
        assert_eq!(service["read_only"], true, "{name}");
        assert_eq!(texts(&service["cap_drop"]), ["ALL"], "{name}");
        assert_eq!(texts(&service["security_opt"]), ["no-new-privileges:true"], "{name}");
        let extra = allowed.get(name.as_str()).copied().unwrap_or_default();
        assert_eq!(texts(&service["cap_add"]), extra, "{name}");
        // Root only with the capabilities above.
        let root = compose.user(name).starts_with("0");
        assert_eq!(root, !extra.is_empty(), "{name} runs as {}", compose.user(name));
        for key in ["privileged", "pid", "ipc", "userns_mode", "devices", "cgroup_parent"] {
            assert!(service.get(key).is_none(), "{name} has {key}");
        }
        let host = service["network_mode"] == "host";
        assert_eq!(host, texts(&service["profiles"]) == ["node"], "{name}");
    }
}

#[test]
fn no_secret_is_in_the_file() {
    let compose = Compose::read();
    for name in compose.services().keys() {
        for (key, value) in compose.environment(name) {
            let secret = ["PASSWORD", "SECRET", "TOKEN", "KEY"]
                .iter()
                .any(|word| key.contains(word));
            assert!(!secret || key.ends_with("_FILE"), "{name}: {key}");
            assert!(
                !value.contains("://") || !value.contains('@'),
                "{name}: {key} has a password in its address"
            );
        }
    }
    let authority: Vec<&String> = compose
        .services()
        .keys()
        .filter(|name| compose.mounts(name).iter().any(|mount| mount.volume == "authority"))
        .collect();
    assert_eq!(authority, ["init"], "the authority's key is nobody else's business");
}

#[test]
fn every_service_mounts_what_init_writes_as_the_user_it_was_written_for() {
    let compose = Compose::read();
    let made = Made::new("eth7");
    let declared: BTreeSet<&String> = compose.root["volumes"].as_object().unwrap().keys().collect();
    let mut used = BTreeSet::new();
    for name in compose.services().keys() {
        let uid: u64 = compose.user(name).split(':').next().unwrap().parse().unwrap();
        for mount in compose.mounts(name) {
            assert!(
                declared.contains(&mount.volume),
                "{name}: {} is not declared",
                mount.volume
            );
            used.insert(mount.volume.clone());
            if name == "init" {
                continue;
            }
            let Some(folder) = compose.folder(&mount.volume) else {
                // The image of postgres prepares this one itself.
                assert_eq!(
                    mount.volume, "postgres-data",
                    "{name}: init does not make {}",
                    mount.volume
                );
                continue;
            };
            let owner = made
                .folders
                .get(&folder)
                .unwrap_or_else(|| panic!("{name}: init writes no {folder}"));
            assert_eq!(*owner, uid, "{name} runs as {uid}, but {folder} belongs to {owner}");
            let data = folder.starts_with("data/");
            // The command line keeps its tokens beside its configuration.
            assert_eq!(!mount.read_only, data || name == "cli", "{name}: {}", mount.volume);
        }
        // Every path in commands and environment is in what is mounted.
        let said = compose
            .command(name)
            .into_iter()
            .chain(compose.environment(name).into_values());
        for path in said.filter_map(|text| text.split('=').next_back().map(str::to_owned)) {
            if name == "init" || !path.starts_with("/etc/") && !path.starts_with("/run/") {
                continue;
            }
            assert!(
                made.path(&on_disk(&compose, name, &path)).exists(),
                "{name}: nobody writes {path}"
            );
        }
    }
    assert_eq!(
        used.iter().collect::<BTreeSet<_>>(),
        declared,
        "a volume that nobody mounts"
    );
}

/// Where init puts what a service sees at `path`.
fn on_disk(compose: &Compose, name: &str, path: &str) -> String {
    let mounts = compose.mounts(name);
    let mount = mounts
        .iter()
        .find(|mount| path.starts_with(&format!("{}/", mount.target)))
        .unwrap_or_else(|| panic!("{name} mounts nothing at {path}"));
    let folder = compose.folder(&mount.volume).unwrap();
    path.replacen(&mount.target, &folder, 1)
}

#[test]
fn every_configuration_names_only_what_its_program_sees() {
    let compose = Compose::read();
    let made = Made::new("eth7");
    let nodes = [("flow-ingest", "flow-ingest-node"), ("enforcer", "enforcer-node")];
    for (program, service) in PROGRAMS.map(|program| (program, program)).into_iter().chain(nodes) {
        // Where a program looks when it is told nothing.
        let file = on_disk(&compose, service, &format!("/etc/garrison/{program}.toml"));
        let config: toml::Table = crate::read(&made.path(&file)).parse().unwrap();
        let mut paths = Vec::new();
        absolute_paths(&toml::Value::Table(config), &mut paths);
        assert!(paths.len() >= 6, "{service}: {paths:?}");
        for path in paths {
            if path.starts_with("/var/lib/garrison/") {
                let mounts = compose.mounts(service);
                let kept = mounts.iter().find(|mount| path.starts_with(&mount.target));
                assert!(
                    kept.is_some_and(|mount| !mount.read_only),
                    "{service} cannot write {path}"
                );
            } else {
                assert!(
                    made.path(&on_disk(&compose, service, &path)).is_file(),
                    "{service}: {path} is missing"
                );
            }
        }
    }
}

fn absolute_paths(value: &toml::Value, found: &mut Vec<String>) {
    match value {
        toml::Value::String(text) if text.starts_with('/') => found.push(text.clone()),
        toml::Value::Array(values) => values.iter().for_each(|value| absolute_paths(value, found)),
        toml::Value::Table(table) => table.values().for_each(|value| absolute_paths(value, found)),
        _ => {}
    }
}

#[test]
fn what_is_published_is_what_is_listened_on() {
    let compose = Compose::read();
    let made = Made::new("eth7");
    let mut wanted: BTreeMap<String, BTreeSet<u16>> = BTreeMap::new();
    for program in PROGRAMS {
        let config = made.config(program, &format!("{program}.toml"));
        // Who is in another's network publishes there.
        let place = compose.service(program)["network_mode"]
            .as_str()
            .and_then(|mode| mode.strip_prefix("service:"));
        let ports = wanted.entry(place.unwrap_or(program).to_owned()).or_default();
        for section in ["grpc", "admin"] {
            if let Some(section) = config["core"].get(section) {
                let listen: std::net::SocketAddr = section["listen"].as_str().unwrap().parse().unwrap();
                assert!(listen.ip().is_unspecified(), "{program} cannot be reached at {listen}");
                assert!(ports.insert(listen.port()), "{program}: {listen} is taken");
            }
        }
    }
    let nats = crate::read(&made.path("nats/nats.conf"));
    assert!(nats.contains("listen: \"0.0.0.0:4222\"") && nats.contains("sync_interval: always"));
    wanted.insert("nats".to_owned(), [4222].into());
    for name in compose.services().keys() {
        let wanted = wanted.remove(name).unwrap_or_default();
        assert_eq!(compose.host_ports(name), wanted, "{name}");
    }
}

#[test]
fn nothing_starts_before_what_it_needs() {
    let compose = Compose::read();
    let condition = |name: &str, on: &str| compose.service(name)["depends_on"][on]["condition"].clone();
    for program in PROGRAMS {
        assert_eq!(condition(program, "bus"), "service_completed_successfully", "{program}");
    }
    for service in WITH_DATABASE {
        let migration = format!("migrate-{service}");
        assert_eq!(condition(service, &migration), "service_completed_successfully");
        assert_eq!(condition(&migration, "postgres"), "service_healthy");
        assert_eq!(compose.service(&migration)["image"], compose.service(service)["image"]);
        assert_eq!(compose.command(&migration), ["migrate"]);
        let environment = compose.environment(&migration);
        assert_eq!(environment["GARRISON_DATABASE_OWNER"], format!("{service}_owner"));
        assert!(environment["GARRISON_DATABASE_OWNER_PASSWORD_FILE"].ends_with(&format!("/{service}_owner.password")));
    }
    for server in ["postgres", "nats"] {
        assert_eq!(condition(server, "init"), "service_completed_successfully");
    }
    for (name, service) in compose.services() {
        for on in service["depends_on"].as_object().into_iter().flat_map(Map::keys) {
            assert!(
                compose.services().contains_key(on),
                "{name} waits for {on}, which is not there"
            );
        }
    }
}

#[test]
fn the_broker_knows_every_enforcer_and_no_response_reaches_the_fleet_itself() {
    let compose = Compose::read();
    let made = Made::new("eth7");
    let nodes: Vec<(String, Vec<String>)> = compose
        .command("bus")
        .iter()
        .filter_map(|argument| argument.strip_prefix("--enforcer=")?.split_once('='))
        .map(|(node, tenants)| (node.to_owned(), tenants.split(',').map(str::to_owned).collect()))
        .collect();
    let broker = crate::read(&made.path("nats/nats.conf"));
    let admitted = made.config("responder", "responder.toml")["enforcement"]["nodes"].clone();
    for (node, tenants) in &nodes {
        assert!(
            broker.contains(&format!("spiffe://garrison.local/enforcer/{node}\"")),
            "{node}"
        );
        let served = admitted.get(node).and_then(|served| served.as_array());
        let served: Vec<&str> = served.unwrap().iter().filter_map(|tenant| tenant.as_str()).collect();
        assert_eq!(
            &served, tenants,
            "the responder and the broker do not agree about {node}"
        );
        for tenant in tenants {
            assert!(
                broker.contains(&format!("responses.v1.{tenant}.*.applied.{node}\"")),
                "{node}"
            );
        }
    }
    assert_eq!(nodes.len(), 2);
    let network = &compose.root["networks"]["fleet"]["ipam"]["config"][0];
    let management = toml::Value::from(vec![network["ip_range"].as_str().unwrap()]);
    for (folder, host) in [("enforcer", "0.0.0.0"), ("enforcer-node", "127.0.0.1")] {
        let config = made.config(folder, "enforcer.toml");
        assert_eq!(config["enforcer"]["management_networks"], management, "{folder}");
        assert!(config["core"]["admin"]["listen"].as_str().unwrap().starts_with(host));
    }
    let sensor = made.config("flow-ingest-node", "flow-ingest.toml");
    let gateway = network["gateway"].as_str().unwrap();
    assert!(sensor["core"]["grpc"]["listen"].as_str().unwrap().starts_with(gateway));
}
