//! What a fleet of containers needs before its first start. For development: the certificate authority's key and every
//! password are made here and kept in the folder.

mod folder;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use clap::{Args, Subcommand};
use garrison_bootstrap::{
    DATABASE_SERVICES, Enforcer, IdentityFiles, Person, Pki, Place, Plan, SERVICES, Sensor, Source, TRUST_DOMAIN,
    Tenant, broker_config, owner, role,
};
use serde_json::json;
use toml::{Table, Value};

use self::folder::Folder;
use crate::{error::CliError, output::Printer};

/// The user id that the images run as.
const UNPRIVILEGED: u32 = 10_001;
/// A capability outlives a change of user only where the kernel or the file says so, and `no-new-privileges` forbids
/// the latter. So the two programs that need one run as root that has this one capability and no other.
const ROOT: u32 = 0;
/// `postgres` in the postgres image.
const POSTGRES: u32 = 999;

/// The node of the enforcer that shares the sensor's network.
const BRIDGE: &str = "bridge";
/// The node of the enforcer that works in the host's network.
const HOST: &str = "host";

/// gRPC port, admin port and user id of each program. Ports are the same inside and outside.
const PROGRAMS: [(&str, u16, u16, u32); 8] = [
    ("flow-ingest", 7101, 9101, ROOT),
    ("anomaly", 7102, 9102, UNPRIVILEGED),
    ("policy", 7103, 9103, UNPRIVILEGED),
    ("responder", 7104, 9104, UNPRIVILEGED),
    ("forensics", 7105, 9105, UNPRIVILEGED),
    ("compliance", 7106, 9106, UNPRIVILEGED),
    ("iam", 7107, 9107, UNPRIVILEGED),
    ("enforcer", 0, 9108, ROOT),
];
/// The same for a sensor and an enforcer in the host's network.
const NODE_PROGRAMS: [(&str, u16, u16); 2] = [("flow-ingest", 7111, 9111), ("enforcer", 0, 9118)];
/// Programs with data of their own, and who they run as.
const WITH_DATA: [(&str, u32); 6] = [
    ("flow-ingest", ROOT),
    ("enforcer", ROOT),
    ("flow-ingest-node", ROOT),
    ("enforcer-node", ROOT),
    ("forensics", UNPRIVILEGED),
    ("nats", UNPRIVILEGED),
];
const BROKER_PORT: u16 = 4222;
const DATABASE_PORT: u16 = 5432;

/// Set up fleets for development.
#[derive(Subcommand)]
pub enum Dev {
    /// Make certificates, secrets and configuration for a fleet of containers
    ///
    /// Every program gets a folder of its own with what its configuration names and nothing else, to be mounted into
    /// its container. What is there already is kept, but for configuration. For development only: the certificate
    /// authority's key lies in `authority`. `deploy/compose` runs this.
    Init(Init),
}

/// What `garrison dev init` takes.
#[derive(Args)]
pub struct Init {
    /// The folder
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Where each program sees its folder
    #[arg(long, value_name = "DIR", default_value = "/etc/garrison")]
    mounted_at: PathBuf,
    /// Where each program keeps data, in a folder of its name
    #[arg(long, value_name = "DIR", default_value = "/var/lib/garrison")]
    data: PathBuf,
    /// The tenant whose traffic is watched
    #[arg(long, value_name = "TENANT", default_value = "acme")]
    tenant: String,
    /// Interfaces of the sensor beside the services, in its container's network
    #[arg(long, value_name = "IF", value_delimiter = ',', default_value = "eth0")]
    interface: Vec<String>,
    /// A network that stays reachable from an isolated host; repeat for several
    #[arg(long, value_name = "CIDR")]
    management_network: Vec<String>,
    /// Interfaces of a second sensor, in the host's network; without any there is none
    #[arg(long, value_name = "IF", value_delimiter = ',', env = "GARRISON_NODE_INTERFACES")]
    node_interface: Vec<String>,
    /// The host's address in the containers' network, where the second sensor answers
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    node_address: IpAddr,
    /// Let the enforcer in the host's network change nftables there
    #[arg(long, env = "GARRISON_NODE_ENFORCE")]
    node_enforce: bool,
    /// Seconds of learning after a first start
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    learn_seconds: u32,
    /// What is logged: a level, or directives as of `core.telemetry.log`
    #[arg(long, value_name = "DIRECTIVES", default_value = "info,async_nats=warn")]
    log: String,
    /// Give each folder to the user that its container runs as; needs root
    #[arg(long)]
    chown: bool,
}

impl Dev {
    pub fn run(&self, printer: &Printer) -> Result<(), CliError> {
        match self {
            Self::Init(init) => init.run(printer),
        }
    }
}

impl Init {
    fn run(&self, printer: &Printer) -> Result<(), CliError> {
        let folders = self.write()?;
        if printer.is_json() {
            let folders: Vec<_> = folders
                .iter()
                .map(|folder| json!({ "folder": folder.name(), "uid": folder.uid(), "files": folder.files() }))
                .collect();
            printer.json(&json!({ "folders": folders }));
        } else {
            let rows = folders.iter().map(|folder| {
                vec![
                    folder.name().to_owned(),
                    folder.uid().to_string(),
                    folder.files().join(" "),
                ]
            });
            printer.rows(&["folder", "uid", "files"], rows);
        }
        Ok(())
    }

    fn write(&self) -> Result<Vec<Folder>, CliError> {
        let mut folders = vec![self.folder("authority", ROOT)?];
        // Both plans write to the same place and the later one stays, so the fleet's own comes last.
        if self.has_node() {
            let plan = self.node_plan();
            let written = plan.write().map_err(failed)?;
            for (program, ..) in NODE_PROGRAMS {
                let mut folder = self.folder(&format!("{program}-node"), ROOT)?;
                let mut config = folder::table(&written.config[program])?;
                if program == "flow-ingest" {
                    watch_both_directions(&mut config);
                }
                folder.config(&format!("{program}.toml"), &config)?;
                folders.push(folder);
            }
        }
        let plan = self.plan();
        let written = plan.write().map_err(failed)?;
        for (program, _, _, uid) in PROGRAMS {
            let mut folder = self.folder(program, uid)?;
            let mut config = folder::table(&written.config[program])?;
            match program {
                "flow-ingest" => watch_both_directions(&mut config),
                "responder" => self.admit_node(&mut config),
                "forensics" => self.ask_node(&mut config),
                _ => {}
            }
            folder.config(&format!("{program}.toml"), &config)?;
            folders.push(folder);
        }
        folders.push(self.broker()?);
        folders.extend(self.database(&written.secrets)?);
        folders.extend(self.command_lines(&folder::table(&written.cli)?, &written.secrets)?);
        for (program, uid) in WITH_DATA {
            folders.push(self.folder(&format!("data/{program}"), uid)?);
        }
        Ok(folders)
    }

    fn has_node(&self) -> bool {
        self.node_interfaces().next().is_some()
    }

    // An environment variable that is set to nothing means none.
    fn node_interfaces(&self) -> impl Iterator<Item = &String> {
        self.node_interface.iter().filter(|name| !name.is_empty())
    }

    fn folder(&self, name: &str, uid: u32) -> Result<Folder, CliError> {
        Folder::open(&self.dir, name, uid, self.chown, &self.mounted_at)
    }

    fn plan(&self) -> Plan {
        let any = IpAddr::from(Ipv4Addr::UNSPECIFIED);
        let places = PROGRAMS.map(|(program, grpc, admin, _)| {
            let place = Place {
                grpc: SocketAddr::new(any, grpc),
                admin: SocketAddr::new(any, admin),
                host: program.to_owned(),
            };
            (program.to_owned(), place)
        });
        Plan {
            dir: self.dir.join("authority"),
            seen_as: self.mounted_at.clone(),
            data: self.data.clone(),
            trust_domain: TRUST_DOMAIN.to_owned(),
            bus_url: format!("tls://nats:{BROKER_PORT}"),
            database: ("postgres".to_owned(), DATABASE_PORT),
            places: places.into(),
            tenants: self.people(),
            sensors: vec![self.sensor(BRIDGE, self.interface.clone())],
            enforcer: Some(self.enforcer(BRIDGE, false)),
            otlp_endpoint: None,
            log: self.log.clone(),
            learn_seconds: Some(self.learn_seconds),
            extra: BTreeMap::new(),
        }
    }

    // Programs in the host's network reach the others where their ports are published.
    fn node_plan(&self) -> Plan {
        let mut plan = self.plan();
        for place in plan.places.values_mut() {
            place.host = "localhost".to_owned();
        }
        for (program, grpc, admin) in NODE_PROGRAMS {
            let place = Place {
                grpc: SocketAddr::new(self.node_address, grpc),
                admin: SocketAddr::new(IpAddr::from(Ipv4Addr::LOCALHOST), admin),
                host: "localhost".to_owned(),
            };
            plan.places.insert(program.to_owned(), place);
        }
        plan.bus_url = format!("tls://localhost:{BROKER_PORT}");
        plan.sensors = vec![self.sensor(HOST, self.node_interfaces().cloned().collect())];
        plan.enforcer = Some(self.enforcer(HOST, !self.node_enforce));
        plan
    }

    fn sensor(&self, id: &str, interfaces: Vec<String>) -> Sensor {
        Sensor {
            id: id.to_owned(),
            tenant: self.tenant.clone(),
            source: Source::Interfaces(interfaces),
        }
    }

    fn enforcer(&self, node: &str, observe_only: bool) -> Enforcer {
        Enforcer {
            node: node.to_owned(),
            tenants: vec![self.tenant.clone()],
            observe_only,
            management_networks: self.management_network.clone(),
        }
    }

    fn people(&self) -> Vec<Tenant> {
        let person = |login: &str, roles: &[&str]| Person {
            login: login.to_owned(),
            roles: roles.iter().map(|role| (*role).to_owned()).collect(),
            second_factor: true,
        };
        let own = Tenant {
            id: self.tenant.clone(),
            people: vec![
                person("analyst", &["analyst", "responder"]),
                person("engineer", &["policy-author", "viewer"]),
                person("auditor", &["auditor"]),
                person("admin", &["admin"]),
            ],
        };
        let system = Tenant {
            id: "system".to_owned(),
            people: vec![person("admin", &["admin"])],
        };
        vec![own, system]
    }

    fn admit_node(&self, config: &mut Table) {
        if self.has_node() {
            let tenants = Value::Array(vec![Value::from(self.tenant.as_str())]);
            section(section(config, "enforcement"), "nodes").insert(HOST.to_owned(), tenants);
        }
    }

    fn ask_node(&self, config: &mut Table) {
        let endpoints = section(config, "evidence").get_mut("flow_ingest_endpoints");
        if let Some(endpoints) = endpoints.and_then(Value::as_array_mut)
            && self.has_node()
        {
            let (_, port, _) = NODE_PROGRAMS[0];
            let address = SocketAddr::new(self.node_address, port);
            endpoints.push(Value::from(format!("https://{address}")));
        }
    }

    fn broker(&self) -> Result<Folder, CliError> {
        let mut folder = self.folder("nats", UNPRIVILEGED)?;
        let files = self.identity(&mut folder, "svc/nats")?;
        let listen = format!("0.0.0.0:{BROKER_PORT}");
        let enforcers = [BRIDGE, HOST].map(|node| self.enforcer(node, false).on_the_bus());
        let enforcers = enforcers.into_iter().collect::<Result<Vec<_>, _>>();
        let enforcers = enforcers.map_err(|error| CliError::Argument(error.to_string()))?;
        let text = broker_config(&listen, &self.data.join("nats"), &files, TRUST_DOMAIN, &enforcers);
        folder.text("nats.conf", &text)?;
        Ok(folder)
    }

    fn database(&self, secrets: &garrison_bootstrap::Secrets) -> Result<[Folder; 3], CliError> {
        let mut server = self.folder("postgres", POSTGRES)?;
        self.identity(&mut server, "svc/postgres")?;
        server.text("pg_hba.conf", include_str!("pg_hba.conf"))?;
        server.copy(
            &secrets.password("postgres").map_err(failed)?,
            "secrets/postgres.password",
        )?;
        let mut migrate = self.folder("migrate", UNPRIVILEGED)?;
        for service in DATABASE_SERVICES {
            let (owner, role) = (owner(service), role(service));
            let file = secrets.password(&owner).map_err(failed)?;
            server.copy(&file, &format!("secrets/{owner}.password"))?;
            migrate.copy(&file, &format!("{owner}.password"))?;
            let file = secrets.password(&role).map_err(failed)?;
            server.copy(&file, &format!("secrets/{role}.password"))?;
        }
        let mut script = self.folder("postgres-init", POSTGRES)?;
        script.script("10-roles.sh", include_str!("roles.sh"))?;
        Ok([server, script, migrate])
    }

    // One configuration for the topology with the broker's administrator, and one for people, who have no business
    // with that, in two forms: for a container beside the fleet and for the host.
    fn command_lines(&self, config: &Table, secrets: &garrison_bootstrap::Secrets) -> Result<[Folder; 2], CliError> {
        let mut bus = self.folder("bus", UNPRIVILEGED)?;
        let mut only = config.clone();
        profiles(&mut only).retain(|name, _| name == "default");
        bus.config("config.toml", &only)?;

        let mut people = self.folder("cli", UNPRIVILEGED)?;
        let mut config = config.clone();
        for (_, profile) in profiles(&mut config) {
            profile.as_table_mut().and_then(|profile| profile.remove("bus"));
        }
        people.config("config.toml", &config)?;
        for (_, profile) in profiles(&mut config) {
            let Some(profile) = profile.as_table_mut() else {
                continue;
            };
            // Relative means beside the file, wherever that is copied to.
            profile.insert("ca_file".to_owned(), Value::from("ca.pem"));
            let endpoints = section(profile, "endpoints");
            for (program, port, ..) in PROGRAMS.iter().filter(|(name, ..)| SERVICES.contains(name)) {
                endpoints.insert((*program).to_owned(), Value::from(format!("https://localhost:{port}")));
            }
        }
        people.text("host/config.toml", &config.to_string())?;
        people.copy(&self.dir.join("authority/pki/ca.pem"), "host/ca.pem")?;
        for tenant in self.people() {
            for person in tenant.people {
                let name = format!("{}-{}", tenant.id, person.login);
                let password = secrets.password(&name).map_err(failed)?;
                people.copy(&password, &format!("people/{name}.password"))?;
                let totp = secrets.totp(&name).map_err(failed)?;
                people.copy(&totp, &format!("people/{name}.totp"))?;
            }
        }
        Ok([bus, people])
    }

    // Puts an identity's files into a folder and says where its program sees them.
    fn identity(&self, folder: &mut Folder, name: &str) -> Result<IdentityFiles, CliError> {
        let pki = Pki::open_or_create(&self.dir.join("authority/pki"), TRUST_DOMAIN).map_err(failed)?;
        let files = pki.identity(name).map_err(failed)?;
        let mut place = |file: &PathBuf| {
            let name = file.file_name().unwrap_or_default();
            let inner = PathBuf::from("pki").join(name);
            folder.copy(file, &inner.display().to_string())?;
            Ok::<_, CliError>(self.mounted_at.join(inner))
        };
        Ok(IdentityFiles {
            cert_file: place(&files.cert_file)?,
            key_file: place(&files.key_file)?,
            ca_file: place(&files.ca_file)?,
        })
    }
}

// A sensor that does not stand on a router sees both ends of its own conversations only when it looks both ways.
fn watch_both_directions(config: &mut Table) {
    for sensor in config
        .get_mut("sensors")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        if let Some(sensor) = sensor.as_table_mut() {
            sensor.insert("direction".to_owned(), Value::from("both"));
        }
    }
}

fn section<'a>(table: &'a mut Table, name: &str) -> &'a mut Table {
    let value = table.entry(name).or_insert_with(|| Value::Table(Table::new()));
    if !value.is_table() {
        *value = Value::Table(Table::new());
    }
    value.as_table_mut().expect("it was made one")
}

fn profiles(config: &mut Table) -> &mut Table {
    section(config, "profiles")
}

fn failed(error: garrison_bootstrap::BootstrapError) -> CliError {
    let cause = std::error::Error::source(&error)
        .map(ToString::to_string)
        .unwrap_or_default();
    CliError::Io {
        what: "making the fleet's files".to_owned(),
        source: std::io::Error::other(format!("{error}: {cause}")),
    }
}
