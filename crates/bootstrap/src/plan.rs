use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use garrison_bus::topology::{EnforcerNode, InvalidNode};

use crate::{BootstrapError, IdentityFiles, Pki, Secrets, file};

/// Services that keep state in PostgreSQL, by their schema's name.
pub const DATABASE_SERVICES: [&str; 6] = ["anomaly", "policy", "responder", "forensics", "compliance", "iam"];

/// Every service with a gRPC server.
pub const SERVICES: [&str; 7] = [
    "flow-ingest",
    "anomaly",
    "policy",
    "responder",
    "forensics",
    "compliance",
    "iam",
];

/// Where one program listens and where others find it.
#[derive(Clone, Debug)]
pub struct Place {
    /// gRPC.
    pub grpc: SocketAddr,
    /// Health and metrics.
    pub admin: SocketAddr,
    /// Name or address by which others reach it.
    pub host: String,
}

/// Somebody who can log in from the start.
#[derive(Clone, Debug)]
pub struct Person {
    /// Login name.
    pub login: String,
    /// Role names.
    pub roles: Vec<String>,
    /// Has an authenticator enrolled.
    pub second_factor: bool,
}

/// A tenant with its first people.
#[derive(Clone, Debug)]
pub struct Tenant {
    /// The id.
    pub id: String,
    /// Its first people.
    pub people: Vec<Person>,
}

/// What a sensor looks at.
#[derive(Clone, Debug)]
pub enum Source {
    /// Live interfaces that feed one flow table. On a router: every interface whose traffic passes it.
    Interfaces(Vec<String>),
    /// A capture file, played once, its times moved to now.
    File(PathBuf),
}

/// A sensor of flow-ingest.
#[derive(Clone, Debug)]
pub struct Sensor {
    /// Its id.
    pub id: String,
    /// Whose traffic it sees.
    pub tenant: String,
    /// What it looks at.
    pub source: Source,
}

/// The node agent.
#[derive(Clone, Debug)]
pub struct Enforcer {
    /// Its node.
    pub node: String,
    /// The tenants whose orders it takes.
    pub tenants: Vec<String>,
    /// Touches no rule.
    pub observe_only: bool,
    /// Networks that stay reachable from an isolated host.
    pub management_networks: Vec<String>,
}

impl Enforcer {
    /// The same for the broker.
    ///
    /// # Errors
    /// [`InvalidNode`] names what cannot be used in a subject.
    pub fn on_the_bus(&self) -> Result<EnforcerNode, InvalidNode> {
        EnforcerNode::new(&self.node, &self.tenants)
    }
}

/// A whole fleet before its first start.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The folder that is written.
    pub dir: PathBuf,
    /// The same folder as the services see it.
    pub seen_as: PathBuf,
    /// Where services keep their data, as they see it; each has its own folder in there.
    pub data: PathBuf,
    /// The SPIFFE trust domain.
    pub trust_domain: String,
    /// Where the broker is.
    pub bus_url: String,
    /// Where the database is.
    pub database: (String, u16),
    /// Where each service and `enforcer` listens.
    pub places: BTreeMap<String, Place>,
    /// Tenants from the start.
    pub tenants: Vec<Tenant>,
    /// Sensors.
    pub sensors: Vec<Sensor>,
    /// The node agent, if any.
    pub enforcer: Option<Enforcer>,
    /// Where traces go.
    pub otlp_endpoint: Option<String>,
    /// What is logged, in the form of `core.telemetry.log`.
    pub log: String,
    /// Seconds of learning after a first start, or none to learn when told.
    pub learn_seconds: Option<u32>,
    /// Further text for single services' files, by service.
    pub extra: BTreeMap<String, String>,
}

/// What a plan left in its folder.
#[derive(Clone, Debug)]
pub struct Written {
    /// Configuration file of each program, as seen by us.
    pub config: BTreeMap<String, PathBuf>,
    /// Configuration file of the command line, with a profile for each person, `<tenant>-<login>`.
    pub cli: PathBuf,
    /// The certificate authority and identities.
    pub pki: PathBuf,
    /// Passwords and keys.
    pub secrets: Secrets,
}

impl Plan {
    /// Writes certificates, secrets and configuration. What is there already is kept, but for configuration, which
    /// follows the plan.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn write(&self) -> Result<Written, BootstrapError> {
        file::make_folder(&self.dir)?;
        let pki_dir = self.dir.join("pki");
        let pki = Pki::open_or_create(&pki_dir, &self.trust_domain)?;
        let secrets = Secrets::open_or_create(&self.dir.join("secrets"))?;
        let folder = self.dir.join("config");
        file::make_folder(&folder)?;
        // Data elsewhere is on another machine or in a container, and somebody else's to make.
        if self.data.starts_with(&self.dir) {
            for data in ["flow-ingest/ring", "flow-ingest/spool", "forensics", "enforcer"] {
                file::make_folder(&self.data.join(data))?;
            }
        }

        let mut config = BTreeMap::new();
        let mut programs: Vec<&str> = SERVICES.to_vec();
        if self.enforcer.is_some() {
            programs.push("enforcer");
        }
        for program in programs {
            let text = self.service(program, &pki, &secrets)?;
            let path = folder.join(format!("{program}.toml"));
            file::write(&path, &text)?;
            config.insert(program.to_owned(), path);
        }
        let cli = folder.join("cli.toml");
        file::write(&cli, &self.command_line(&pki)?)?;
        Ok(Written {
            config,
            cli,
            pki: pki_dir,
            secrets,
        })
    }

    fn service(&self, program: &str, pki: &Pki, secrets: &Secrets) -> Result<String, BootstrapError> {
        let mut text = self.core(program, pki, secrets)?;
        // Writing to a String cannot fail.
        let _ = match program {
            "flow-ingest" => write!(text, "\n{}", self.flow_ingest()),
            "anomaly" => write!(text, "\n{}", self.anomaly()),
            // One person starts such a fleet: nobody else could approve what they write.
            "policy" => write!(text, "\n[review]\nrequired = false\n"),
            "iam" => write!(text, "\n{}", self.iam(secrets)?),
            "responder" => write!(text, "\n{}", self.responder()),
            "forensics" => write!(text, "\n{}", self.forensics(secrets)?),
            "compliance" => write!(text, "\n{}", self.compliance(secrets)?),
            "enforcer" => write!(text, "\n{}", self.enforcer_section()),
            _ => Ok(()),
        };
        if let Some(extra) = self.extra.get(program) {
            let _ = write!(text, "\n{extra}");
        }
        Ok(text)
    }

    fn core(&self, program: &str, pki: &Pki, secrets: &Secrets) -> Result<String, BootstrapError> {
        let identity = match (&self.enforcer, program) {
            (Some(enforcer), "enforcer") => pki.identity(&format!("enforcer/{}", enforcer.node))?,
            _ => pki.identity(&format!("svc/{program}"))?,
        };
        let IdentityFiles {
            cert_file,
            key_file,
            ca_file,
        } = identity;
        let (cert, key, ca) = (self.path(&cert_file), self.path(&key_file), self.path(&ca_file));
        let place = self.place(program);
        let mut text = format!(
            "[core.identity]\ntrust_domain = {}\ncert_file = {cert}\nkey_file = {key}\nca_file = {ca}\n\n\
             [core.bus]\nurls = [{}]\ncert_file = {cert}\nkey_file = {key}\nca_file = {ca}\n\n\
             [core.admin]\nlisten = \"{}\"\n",
            quoted(&self.trust_domain),
            quoted(&self.bus_url),
            place.admin,
        );
        if program != "enforcer" {
            let _ = write!(text, "\n[core.grpc]\nlisten = \"{}\"\n", place.grpc);
        }
        if program != "enforcer" && program != "iam" {
            let _ = write!(
                text,
                "\n[core.auth]\niam_endpoint = {}\n",
                quoted(&self.endpoint("iam"))
            );
        }
        if DATABASE_SERVICES.contains(&program) {
            let password = secrets.password(&role(program))?;
            let _ = write!(
                text,
                "\n[core.database]\nhost = {}\nport = {}\ndatabase = \"garrison\"\nuser = {}\n\
                 password_file = {}\nca_file = {ca}\n",
                quoted(&self.database.0),
                self.database.1,
                quoted(&role(program)),
                self.path(&password),
            );
        }
        let _ = write!(text, "\n[core.telemetry]\nlog = {}\n", quoted(&self.log));
        if let Some(endpoint) = &self.otlp_endpoint {
            let _ = writeln!(text, "otlp_endpoint = {}", quoted(endpoint));
        }
        Ok(text)
    }

    fn flow_ingest(&self) -> String {
        let mut text = String::new();
        for sensor in &self.sensors {
            let source = match &sensor.source {
                Source::Interfaces(names) => format!("interfaces = [{}]", list(names)),
                Source::File(path) => {
                    format!("file = {}\ntimestamps = \"now\"", quoted(&path.display().to_string()))
                }
            };
            let _ = write!(
                text,
                "[[sensors]]\nid = {}\ntenant = {}\n{source}\n\n",
                quoted(&sensor.id),
                quoted(&sensor.tenant)
            );
        }
        let _ = write!(
            text,
            "[ring]\npath = {}\n\n[spool]\npath = {}\n",
            self.data("flow-ingest/ring"),
            self.data("flow-ingest/spool")
        );
        text
    }

    fn anomaly(&self) -> String {
        match self.learn_seconds {
            Some(seconds) => format!("[learning]\nauto_seconds = {seconds}\n"),
            None => String::new(),
        }
    }

    fn responder(&self) -> String {
        let mut text = String::new();
        if let Some(enforcer) = &self.enforcer {
            let _ = write!(
                text,
                "[enforcement.nodes]\n{} = [{}]\n",
                quoted(&enforcer.node),
                list(&enforcer.tenants)
            );
        }
        text
    }

    fn forensics(&self, secrets: &Secrets) -> Result<String, BootstrapError> {
        Ok(format!(
            "[lake]\ndata_dir = {}\n\n[evidence]\nkey_file = {}\nflow_ingest_endpoints = [{}]\n",
            self.data("forensics"),
            self.path(&secrets.signing_key("evidence")?),
            quoted(&self.endpoint("flow-ingest")),
        ))
    }

    fn compliance(&self, secrets: &Secrets) -> Result<String, BootstrapError> {
        Ok(format!(
            "[log]\nkey_file = {}\n",
            self.path(&secrets.signing_key("log")?)
        ))
    }

    fn iam(&self, secrets: &Secrets) -> Result<String, BootstrapError> {
        let mut text = format!("[secrets]\nkey_file = {}\n", self.path(&secrets.symmetric_key("iam")?));
        for tenant in &self.tenants {
            let _ = write!(text, "\n[[bootstrap]]\nid = {}\n", quoted(&tenant.id));
            for person in &tenant.people {
                let name = format!("{}-{}", tenant.id, person.login);
                let _ = write!(
                    text,
                    "\n[[bootstrap.users]]\nlogin = {}\nroles = [{}]\npassword_file = {}\n",
                    quoted(&person.login),
                    list(&person.roles),
                    self.path(&secrets.password(&name)?),
                );
                if person.second_factor {
                    let _ = writeln!(text, "totp_secret_file = {}", self.path(&secrets.totp(&name)?));
                }
            }
        }
        Ok(text)
    }

    fn enforcer_section(&self) -> String {
        let Some(enforcer) = &self.enforcer else {
            return String::new();
        };
        let mut text = format!(
            "[enforcer]\nresponder_endpoint = {}\nstate_file = {}\nobserve_only = {}\nmanagement_networks = [{}]\n",
            quoted(&self.endpoint("responder")),
            self.data("enforcer/state.json"),
            enforcer.observe_only,
            list(&enforcer.management_networks),
        );
        for tenant in &enforcer.tenants {
            let _ = write!(text, "\n[[enforcer.tenants]]\nid = {}\n", quoted(tenant));
        }
        text
    }

    fn command_line(&self, pki: &Pki) -> Result<String, BootstrapError> {
        let admin = pki.identity("svc/bus-admin")?;
        let ca = self.path(&admin.ca_file);
        let mut text = String::new();
        let everyone = self.tenants.iter().flat_map(|tenant| {
            tenant
                .people
                .iter()
                .map(move |person| (format!("{}-{}", tenant.id, person.login), tenant.id.as_str()))
        });
        let first = self.tenants.first().map_or("system", |tenant| tenant.id.as_str());
        for (profile, tenant) in std::iter::once(("default".to_owned(), first)).chain(everyone) {
            let _ = write!(
                text,
                "[profiles.{0}]\nca_file = {ca}\ntenant = {1}\n\n[profiles.{0}.endpoints]\n",
                quoted(&profile),
                quoted(tenant)
            );
            for service in SERVICES {
                let _ = writeln!(text, "{service} = {}", quoted(&self.endpoint(service)));
            }
            let _ = write!(
                text,
                "\n[profiles.{}.bus]\nurl = {}\ncert_file = {}\nkey_file = {}\n\n",
                quoted(&profile),
                quoted(&self.bus_url),
                self.path(&admin.cert_file),
                self.path(&admin.key_file)
            );
        }
        Ok(text)
    }

    fn place(&self, program: &str) -> Place {
        let nowhere = SocketAddr::new(IpAddr::from([127, 0, 0, 1]), 0);
        self.places.get(program).cloned().unwrap_or_else(|| Place {
            grpc: nowhere,
            admin: nowhere,
            host: "localhost".to_owned(),
        })
    }

    fn endpoint(&self, service: &str) -> String {
        let place = self.place(service);
        format!("https://{}:{}", place.host, place.grpc.port())
    }

    // A path of ours as the services see it.
    fn path(&self, path: &Path) -> String {
        let inner = path.strip_prefix(&self.dir).unwrap_or(path);
        quoted(&self.seen_as.join(inner).display().to_string())
    }

    fn data(&self, name: &str) -> String {
        quoted(&self.data.join(name).display().to_string())
    }
}

/// The database role of a service.
pub fn role(service: &str) -> String {
    format!("{service}_service")
}

/// The database role that owns a service's schema and migrates it.
pub fn owner(service: &str) -> String {
    format!("{service}_owner")
}

fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

fn list(texts: &[String]) -> String {
    texts.iter().map(|text| quoted(text)).collect::<Vec<_>>().join(", ")
}
