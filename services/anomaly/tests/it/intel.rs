//! Threat intelligence: files that change under the running service, a TAXII server over TLS, and look-ups.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
};

use anomaly::{
    app::{Engine, Intel},
    config::Config,
    grpc::Api,
};
use axum::{
    Json, Router,
    extract::{Query, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse as _, Response},
    routing::get,
    serve::Listener,
};
use chrono::Utc;
use garrison_bus::Bus;
use garrison_db::Db;
use garrison_intel::Value;
use garrison_proto::alert::v1::{
    Alert, FeedState, ListIndicatorFeedsRequest, LookupIndicatorRequest, LookupIndicatorResponse, Severity,
    detection_service_server::DetectionService as _,
};
use garrison_testkit::Stack;
use serde::Deserialize;
use serde_json::{Value as Object, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    },
    server::TlsStream,
};
use tonic::Code;

use crate::{
    api::by,
    traffic::Flow,
    world::{World, tenant},
};

const LISTED: &str = "198.51.100.7";
const LATER: &str = "203.0.113.9";

/// Replaces a file as feeds should be replaced: at once.
fn put(path: &Path, text: &str) {
    let beside = path.with_extension("beside");
    fs::write(&beside, text).unwrap();
    fs::rename(&beside, path).unwrap();
}

fn matches(alerts: &[Alert]) -> Vec<&Alert> {
    alerts.iter().filter(|a| a.detector == "intel.match").collect()
}

#[tokio::test]
async fn files_are_followed_earlier_flows_are_asked_about_what_is_new_and_a_feed_that_vanishes_holds() {
    let mut world = World::new().await;
    let folder = tempfile::tempdir().unwrap();
    let (feed, state) = (folder.path().join("feed.txt"), folder.path().join("state"));
    let allowed = folder.path().join("globex.txt");
    fs::create_dir(&state).unwrap();
    put(&feed, &format!("# listed\n{LISTED}\n10.0.0.0/8\nnonsense\n"));
    put(&allowed, &format!("{LISTED}\n"));
    let extra = format!(
        "[model]\nenabled = false\n[intel]\ncheck_seconds = 1\nstate_dir = \"{}\"\n[intel.allow_lists]\nglobex = \"{}\"\n\
         [[intel.feeds]]\nname = \"blocked\"\nformat = \"list\"\npath = \"{}\"\nconfidence = 90\n",
        state.display(),
        allowed.display(),
        feed.display(),
    );
    world.start(&extra).await;
    let (acme, globex) = (tenant("acme"), tenant("globex"));
    let known = async |world: &World, n: f64| {
        let name = "garrison_anomaly_feed_indicators";
        world
            .until("the feed is in force", async || {
                world.metric(name, "blocked").await == Some(n)
            })
            .await;
    };
    known(&world, 1.0).await;

    // Of two flows one is listed already; a tenant that allows it hears nothing of it.
    for tenant in [&acme, &globex] {
        let flows = [Flow::new("10.1.0.5", LISTED, 443), Flow::new("10.1.0.6", LATER, 443)];
        world.publish(tenant, &flows[..1]).await;
        world.publish(tenant, &flows[1..]).await;
    }
    world.settle().await;
    let alerts = world.alerts(&acme).await;
    let told = matches(&alerts);
    assert_eq!(told.len(), 1, "{alerts:?}");
    assert_eq!(told[0].severity(), Severity::High);
    assert_eq!(
        told[0].title,
        format!("10.1.0.5 turned to {LISTED}, which blocked lists")
    );
    assert_eq!(
        (told[0].indicators[0].field.as_str(), told[0].indicators[0].confidence),
        ("dst_ip", 90)
    );
    assert!(matches(&world.alerts(&globex).await).is_empty());

    // Now the other one is listed, too.
    put(&feed, &format!("{LISTED}\n{LATER}\n"));
    world
        .until("the earlier flows are asked", async || {
            matches(&world.alerts(&acme).await).len() == 2 && matches(&world.alerts(&globex).await).len() == 1
        })
        .await;
    let alerts = world.alerts(&acme).await;
    let later = matches(&alerts)[1];
    assert_eq!(
        later.title,
        format!("10.1.0.6 turned to {LATER}, which blocked lists, before it was listed")
    );
    assert!(later.indicators[0].retroactive);
    assert_eq!(later.flows.len(), 1);

    // The file goes away, the service is killed: what it said is kept.
    fs::remove_file(&feed).unwrap();
    world
        .until("the failure is counted", async || {
            world
                .metric("garrison_anomaly_feed_failures", "blocked")
                .await
                .is_some()
        })
        .await;
    world.kill();
    world.start(&extra).await;
    known(&world, 2.0).await;
    world.publish(&acme, &[Flow::new("10.1.0.8", LATER, 443)]).await;
    world
        .until("an alert without the file", async || {
            let alerts = world.alerts(&acme).await;
            matches(&alerts)
                .iter()
                .any(|a| a.title.starts_with("10.1.0.8 turned to"))
        })
        .await;
    // What was told before is not told again.
    assert_eq!(matches(&world.alerts(&acme).await).len(), 3);
}

/// A collection as a TAXII 2.1 server keeps it: objects with the times at which they were added.
#[derive(Clone, Default)]
struct Taxii(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    objects: Vec<(String, Object)>,
    asked: Vec<Asked>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Asked {
    added_after: Option<String>,
    next: Option<usize>,
    limit: Option<usize>,
}

impl Taxii {
    fn add(&self, minute: u32, object: Object) {
        let added = format!("2026-01-01T00:{minute:02}:00.000Z");
        self.0.lock().unwrap().objects.push((added, object));
    }

    fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.0.lock().unwrap().asked)
    }
}

fn allowed(headers: &HeaderMap) -> Result<(), StatusCode> {
    let is = |name: &str, value: &str| headers.get(name).is_some_and(|v| v == value);
    // eva:secret
    if !is("authorization", "Basic ZXZhOnNlY3JldA==") {
        return Err(StatusCode::UNAUTHORIZED);
    }
    if !is("accept", "application/taxii+json;version=2.1") {
        return Err(StatusCode::NOT_ACCEPTABLE);
    }
    Ok(())
}

async fn collections(headers: HeaderMap) -> Response {
    match allowed(&headers) {
        Ok(()) => Json(json!({"collections": [
            {"id": "91a7b528-80eb-42ed-a74d-c6fbd5a26116", "title": "Bad things", "can_read": true, "can_write": false}
        ]}))
        .into_response(),
        Err(refusal) => refusal.into_response(),
    }
}

// At most two objects a page, whatever is asked for.
async fn objects(State(taxii): State<Taxii>, Query(asked): Query<Asked>, headers: HeaderMap) -> Response {
    if let Err(refusal) = allowed(&headers) {
        return refusal.into_response();
    }
    let mut kept = taxii.0.lock().unwrap();
    kept.asked.push(asked.clone());
    let after = asked.added_after.unwrap_or_default();
    let new: Vec<_> = kept.objects.iter().filter(|(added, _)| *added > after).collect();
    let from = asked.next.unwrap_or(0);
    let to = (from + asked.limit.unwrap_or(2).min(2)).min(new.len());
    let page: Vec<&Object> = new[from..to].iter().map(|(_, object)| object).collect();
    let mut answer = json!({"more": to < new.len(), "objects": page});
    if to < new.len() {
        answer["next"] = json!(to.to_string());
    }
    let last = new[from..to].last().map(|(added, _)| added.clone()).unwrap_or_default();
    ([("x-taxii-date-added-last", last)], Json(answer)).into_response()
}

struct Tls {
    tcp: TcpListener,
    acceptor: TlsAcceptor,
}

impl Listener for Tls {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, address) = self.tcp.accept().await.unwrap();
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.tcp.local_addr()
    }
}

/// Serves a collection over TLS. Answers its API root.
async fn serve(stack: &Stack, taxii: Taxii) -> String {
    let files = stack.identity("svc/anomaly");
    let chain = CertificateDer::pem_file_iter(&files.cert_file).unwrap();
    let chain = chain.collect::<Result<Vec<_>, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_file(&files.key_file).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = tcp.local_addr().unwrap().port();
    let listener = Tls {
        tcp,
        acceptor: TlsAcceptor::from(Arc::new(config)),
    };
    let collection = "/api1/collections/91a7b528-80eb-42ed-a74d-c6fbd5a26116/objects/";
    let routes = Router::new()
        .route("/api1/collections/", get(collections))
        .route(collection, get(objects))
        .with_state(taxii);
    tokio::spawn(async move { axum::serve(listener, routes).await });
    format!("https://localhost:{port}/api1/")
}

fn indicator(id: u32, pattern: &str) -> Object {
    json!({"type": "indicator", "spec_version": "2.1", "id": format!("indicator--{id}"), "pattern_type": "stix",
        "created": "2026-01-01T00:00:00.000Z", "modified": "2026-01-01T00:00:00.000Z",
        "valid_from": "2026-01-01T00:00:00Z", "pattern": pattern, "confidence": 80})
}

fn configured(feeds: &str) -> Config {
    let text = format!(
        r#"
core.identity = {{ trust_domain = "t", cert_file = "c", key_file = "k", ca_file = "a" }}
core.bus = {{ urls = ["tls://localhost:1"], cert_file = "c", key_file = "k", ca_file = "a" }}
{feeds}
"#
    );
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("anomaly.toml");
    fs::write(&path, text).unwrap();
    garrison_service::read_config(&path).unwrap()
}

fn known(intel: &Intel, text: &str) -> LookupIndicatorResponse {
    intel.lookup(&tenant("acme"), &Value::guess(text, false).unwrap())
}

#[tokio::test]
async fn a_taxii_collection_is_read_page_by_page_and_then_only_what_was_added() {
    let stack = Stack::shared().await;
    let taxii = Taxii::default();
    let technique = json!({"type": "attack-pattern", "id": "attack-pattern--1", "name": "Web Protocols",
        "external_references": [{"source_name": "mitre-attack", "external_id": "T1071.001"}]});
    let relationship = json!({"type": "relationship", "id": "relationship--1", "relationship_type": "indicates",
        "source_ref": "indicator--1", "target_ref": "attack-pattern--1"});
    taxii.add(1, indicator(1, "[ipv4-addr:value = '198.51.100.7']"));
    taxii.add(2, indicator(2, "[domain-name:value = 'evil.example']"));
    taxii.add(3, indicator(3, "[ipv4-addr:value = '8.8.8.8']"));
    taxii.add(4, technique);
    taxii.add(5, relationship);
    let root = serve(stack, taxii.clone()).await;
    let folder = tempfile::tempdir().unwrap();
    let password = folder.path().join("password");
    fs::write(&password, "wrong\n").unwrap();
    let ca = stack.identity("svc/anomaly").ca_file;
    let config = configured(&format!(
        "[[intel.feeds]]\nname = \"shared\"\nformat = \"taxii\"\nurl = \"{root}\"\ncollection = \"Bad things\"\n\
         username = \"eva\"\npassword_file = \"{}\"\nca_file = \"{}\"\npoll_seconds = 1\n",
        password.display(),
        ca.display(),
    ));
    let intel = Intel::new(&config.intel);
    let due = || tokio::time::sleep(std::time::Duration::from_millis(1_050));

    // Credentials are read anew each time, and a refusal says what to look at.
    assert!(intel.refresh().await.is_none());
    let feed = &intel.feeds().feeds[0];
    assert_eq!(feed.state(), FeedState::Stale);
    assert!(
        feed.failure.contains("401") && feed.failure.contains("credentials"),
        "{}",
        feed.failure
    );
    fs::write(&password, "secret\n").unwrap();
    due().await;

    // All pages; relationships across them; what everybody uses is held back.
    assert!(
        intel.refresh().await.is_none(),
        "nothing is new to what was never known"
    );
    let feed = &intel.feeds().feeds[0];
    assert_eq!(
        (feed.state(), feed.indicators, feed.held_back),
        (FeedState::Current, 2, 1)
    );
    assert_eq!(taxii.asked().len(), 3);
    let answer = known(&intel, "198.51.100.7");
    assert_eq!(answer.matches[0].reference, "indicator--1");
    assert_eq!(answer.matches[0].techniques, ["T1071.001"]);
    assert_eq!(answer.matches[0].confidence, 80);

    // Only what was added since; a new version replaces the old one.
    taxii.add(6, indicator(4, "[url:value = 'http://evil.example/a']"));
    taxii.add(7, indicator(2, "[domain-name:value = 'worse.example']"));
    due().await;
    let new = intel.refresh().await.unwrap();
    let mut values: Vec<String> = new.entries().map(|e| e.to_value().to_string()).collect();
    values.sort();
    assert_eq!(values, ["evil.example/a", "worse.example"]);
    let asked = taxii.asked();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].added_after.as_deref(), Some("2026-01-01T00:05:00.000Z"));
    assert!(known(&intel, "evil.example").matches.is_empty());
    assert_eq!(known(&intel, "198.51.100.7").matches.len(), 1);
    assert_eq!(intel.feeds().feeds[0].indicators, 3);

    // Nothing was added.
    due().await;
    assert!(intel.refresh().await.is_none());
    assert_eq!(intel.feeds().feeds[0].indicators, 3);
}

#[tokio::test]
async fn a_value_can_be_looked_up_and_what_is_none_is_refused() {
    let stack = Stack::shared().await;
    let folder = tempfile::tempdir().unwrap();
    let (csv, misp) = (folder.path().join("iocs.csv"), folder.path().join("event.json"));
    fs::write(
        &csv,
        "ioc,type,tags\n192.0.2.1:443,ip:port,\"rat, T1219\"\n0123456789abcdef0123456789abcdef,ja3,\n",
    )
    .unwrap();
    fs::write(
        &misp,
        r#"{"Event":{"info":"e","Attribute":[{"type":"domain","value":"evil.example","to_ids":true}]}}"#,
    )
    .unwrap();
    let config = configured(&format!(
        "[[intel.feeds]]\nname = \"table\"\nformat = \"csv\"\npath = \"{}\"\nheader = true\n\
         columns = {{ value = \"ioc\", kind = \"type\", labels = \"tags\", techniques = \"tags\" }}\n\
         [[intel.feeds]]\nname = \"event\"\nformat = \"misp\"\npath = \"{}\"\nconfidence = 70\n\
         [[intel.feeds]]\nname = \"away\"\nformat = \"stix\"\npath = \"{}/away.json\"\n",
        csv.display(),
        misp.display(),
        folder.path().display(),
    ));
    let db = Db::connect(&stack.database("anomaly", &anomaly::MIGRATOR).await, "anomaly").unwrap();
    let bus = Bus::connect(&stack.bus_config("svc/anomaly"), "anomaly").await.unwrap();
    let clock = Arc::new(|| Utc::now().timestamp_nanos_opt().unwrap());
    let engine = Arc::new(Engine::new(db, bus, &config, clock));
    engine.intel().refresh().await;
    let api = Api(Arc::clone(&engine));
    let ask = async |value: &str, kind: &str| {
        let request = LookupIndicatorRequest {
            value: value.to_owned(),
            kind: kind.to_owned(),
        };
        api.lookup_indicator(by(&tenant("acme"), request))
            .await
            .map(tonic::Response::into_inner)
    };
    let answer = ask("192.0.2.1", "").await.unwrap();
    assert_eq!(
        (answer.matches[0].source.as_str(), answer.matches[0].confidence),
        ("table", 50)
    );
    assert_eq!(answer.matches[0].techniques, ["T1219"]);
    let answer = ask("A.Evil.example", "").await.unwrap();
    assert_eq!(
        (answer.matches[0].kind.as_str(), answer.matches[0].confidence),
        ("domain-tree", 70)
    );
    let md5 = "0123456789abcdef0123456789abcdef";
    assert_eq!(ask(md5, "").await.unwrap().matches.len(), 0);
    assert_eq!(ask(md5, "ja3").await.unwrap().matches.len(), 1);
    assert_eq!(ask("google.com", "").await.unwrap().warning, "on a warning list");
    for (value, kind, names) in [
        ("nonsense", "", "value"),
        ("192.0.2.1", "odd", "kind"),
        ("x", "ja3", "value"),
    ] {
        let refusal = ask(value, kind).await.unwrap_err();
        assert_eq!(refusal.code(), Code::InvalidArgument);
        assert!(
            refusal.message().contains(&format!("GAR-ANOM-0011: {names}")),
            "{}",
            refusal.message()
        );
    }
    let feeds = api
        .list_indicator_feeds(by(&tenant("acme"), ListIndicatorFeedsRequest {}))
        .await
        .unwrap();
    let states: Vec<_> = feeds
        .get_ref()
        .feeds
        .iter()
        .map(|f| (f.name.as_str(), f.state()))
        .collect();
    assert_eq!(
        states,
        [
            ("table", FeedState::Current),
            ("event", FeedState::Current),
            ("away", FeedState::Stale)
        ]
    );
}

/// Public block lists: addresses that are on at least n of some thirty lists.
#[test]
fn public_block_lists_are_read_whole_and_every_address_is_found() {
    use std::{collections::HashSet, io::Read as _, net::Ipv4Addr};

    use garrison_intel::{
        Builder, Warnings,
        feed::{self, Format, Limits, List},
    };
    let Some(corpora) = garrison_testkit::corpora("public_block_lists_are_read_whole_and_every_address_is_found")
    else {
        return;
    };
    let warnings = Warnings::built_in();
    let mut narrower: Option<HashSet<Ipv4Addr>> = None;
    for level in (1..=4).rev() {
        let path = corpora.join(format!("threat-intel/ipsum-level-{level}.txt.gz"));
        let mut text = String::new();
        let file = fs::File::open(&path).unwrap();
        flate2::read::GzDecoder::new(file).read_to_string(&mut text).unwrap();
        // Read without our reader: every line is an address.
        let addresses: HashSet<Ipv4Addr> = text.lines().map(|line| line.parse().unwrap()).collect();
        let (mut builder, mut held) = (Builder::new(1_000_000, 0), 0);
        let list = Format::List(List::default());
        let report = feed::read(&list, text.as_bytes(), &Limits::default(), &mut |indicator| {
            held += u64::from(warnings.held(&indicator.value).is_some());
            builder.add("ipsum", &indicator, 50, false).unwrap();
        })
        .unwrap();
        let index = builder.build();
        assert_eq!((report.taken, report.bad), (text.lines().count() as u64, 0));
        assert_eq!(index.len(), addresses.len());
        let known = |address: Ipv4Addr| {
            let mut known = false;
            index.address(address.into(), |_| known = true);
            known
        };
        assert!(addresses.iter().all(|a| known(*a)));
        // The neighbours of listed addresses are known only when they are listed themselves.
        let beside = |a: &Ipv4Addr| Ipv4Addr::from(u32::from(*a) ^ 1);
        assert!(addresses.iter().map(beside).all(|a| known(a) == addresses.contains(&a)));
        if let Some(narrower) = &narrower {
            assert!(narrower.is_subset(&addresses), "who is on {level} lists is on fewer");
        }
        println!(
            "on {level} lists or more: {} addresses, {held} held back by warning lists, {} octets each",
            addresses.len(),
            index.octets() / addresses.len(),
        );
        narrower = Some(addresses);
    }
}
