//! One running fleet with two tenants, which every test shares that leaves its services alone.

use std::{collections::BTreeMap, net::Ipv4Addr, path::Path, time::Duration};

use garrison_bus::{Bus, BusConfig};
use garrison_testkit::{
    Fleet, FleetOptions,
    bootstrap::{Enforcer, Person, Tenant},
};
use tokio::sync::OnceCell;

use crate::{
    calls::{Desk, Doors, log_in},
    capture,
    place::{binaries, folder},
    seed::{Side, seed},
};

/// The tenant whose things are protected, and the one whose people try to reach them.
pub const ACME: &str = "acme";
pub const GLOBEX: &str = "globex";
/// The enforcer's node.
pub const NODE: &str = "router";

/// The enforcer of these fleets.
pub fn enforcer(observe_only: bool) -> Enforcer {
    Enforcer {
        node: NODE.to_owned(),
        tenants: [ACME, GLOBEX].map(str::to_owned).to_vec(),
        observe_only,
        management_networks: Vec::new(),
    }
}

/// A fleet with everything in it.
pub struct World {
    pub fleet: Fleet,
    pub doors: Doors,
    /// What acme has.
    pub acme: Side,
    /// What globex has.
    pub globex: Side,
    /// An administrator of the installation.
    pub operator: Desk,
}

static WORLD: OnceCell<World> = OnceCell::const_new();

impl World {
    /// The shared fleet, started and filled by the first test that asks.
    pub async fn shared() -> &'static Self {
        WORLD.get_or_init(|| Box::pin(Self::start())).await
    }

    async fn start() -> Self {
        let dir = folder("shared");
        let mut options = options(&dir, true);
        options.extra.insert("flow-ingest".to_owned(), sensors(&dir));
        let fleet = match Fleet::start(options).await {
            Ok(fleet) => fleet,
            Err(error) => panic!("the fleet does not start: {error}"),
        };
        let doors = Doors::of(&fleet);
        let (acme, globex) = tokio::join!(seed(&fleet, &doors, ACME, 1), seed(&fleet, &doors, GLOBEX, 2));
        let operator = log_in(&fleet, &doors, "system", "admin").await;
        Self {
            fleet,
            doors,
            acme,
            globex,
            operator,
        }
    }

    /// A connection to the broker as one of the fleet's identities, such as `svc/anomaly`.
    pub async fn bus(&self, identity: &str) -> Bus {
        bus(&self.fleet, identity).await
    }

    /// A further person's desk.
    pub async fn log_in(&self, tenant: &str, login: &str) -> Desk {
        log_in(&self.fleet, &self.doors, tenant, login).await
    }
}

/// How an identity reaches a fleet's broker.
pub fn bus_config(fleet: &Fleet, identity: &str) -> BusConfig {
    let files = fleet.pki().unwrap().identity(identity).unwrap();
    BusConfig::new(vec![fleet.nats().url()], files.ca_file, files.cert_file, files.key_file)
}

/// A connection to a fleet's broker as one of its identities.
pub async fn bus(fleet: &Fleet, identity: &str) -> Bus {
    let name = identity.rsplit('/').next().unwrap();
    Bus::connect(&bus_config(fleet, identity), name).await.unwrap()
}

/// A fleet with two tenants and their people, and an enforcer that may be told to touch no rule.
pub fn options(dir: &Path, observe_only: bool) -> FleetOptions {
    let person = |login: &str, roles: &[&str], second_factor| Person {
        login: login.to_owned(),
        roles: roles.iter().map(|role| (*role).to_owned()).collect(),
        second_factor,
    };
    // Those without a second factor can log in as often as a test likes: a code works once in half a minute.
    let people = || {
        vec![
            person("admin", &["admin"], true),
            person("analyst", &["analyst", "responder"], true),
            person("engineer", &["policy-author", "viewer"], true),
            person("auditor", &["auditor"], true),
            person("temp", &["viewer"], false),
            person("reader", &["analyst", "auditor"], false),
        ]
    };
    let tenants = [ACME, GLOBEX].map(|id| Tenant {
        id: id.to_owned(),
        people: people(),
    });
    let system = Tenant {
        id: "system".to_owned(),
        people: vec![person("admin", &["admin"], true)],
    };
    let iam = "[sessions]\naccess_token_seconds = 3600\nidle_minutes = 120\nper_user = 100\n\n\
               [lockout]\nattempts_per_minute = 10000\n";
    // Tests kill enforcers; what they order must not fail for want of patience.
    let responder = "[responses]\nattempts = 20\n[enforcement]\nstale_after_s = 60\n";
    FleetOptions {
        binaries: binaries(),
        dir: dir.join("fleet"),
        tenants: tenants.into_iter().chain([system]).collect(),
        sensors: Vec::new(),
        enforcer: Some(enforcer(observe_only)),
        otlp_endpoint: None,
        log: "info".to_owned(),
        learn_seconds: None,
        extra: BTreeMap::from([
            ("iam".to_owned(), iam.to_owned()),
            ("responder".to_owned(), responder.to_owned()),
        ]),
    }
}

/// A sensor for each tenant that plays a capture in real time for some minutes. Each tenant has hosts of its own, and
/// one conversation is the same in both to the last port.
pub fn sensors(dir: &Path) -> String {
    let mut text = String::new();
    for (tenant, n) in [(ACME, 1), (GLOBEX, 2)] {
        let file = dir.join(format!("{tenant}.pcap"));
        capture::write(&file, 1_760_000_000, traffic(n, Duration::from_secs(600)));
        text.push_str(&format!(
            "[[sensors]]\nid = \"wire-{tenant}\"\ntenant = \"{tenant}\"\nfile = \"{}\"\npace = \"realtime\"\n\
             timestamps = \"now\"\n\n",
            file.display()
        ));
    }
    text
}

/// Somebody looks at a page every half second; now and then at one that both tenants have.
pub fn traffic(n: u8, length: Duration) -> Vec<capture::Packet> {
    let own = (Ipv4Addr::new(10, n, 7, 10), Ipv4Addr::new(10, n, 8, 80));
    let common = (Ipv4Addr::new(192, 168, 0, 10), Ipv4Addr::new(192, 168, 0, 80));
    let mut packets = Vec::new();
    for turn in 0..u64::try_from(length.as_millis() / 500).unwrap() {
        let (client, server) = if turn % 4 == 3 { common } else { own };
        packets.extend(capture::connection(
            turn * 500_000,
            (client, 20_000 + turn as u16),
            (server, 80),
            format!("GET /{turn} HTTP/1.1\r\nHost: shop\r\nUser-Agent: e2e\r\n\r\n").as_bytes(),
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        ));
    }
    packets
}
