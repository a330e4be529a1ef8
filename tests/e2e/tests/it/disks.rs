//! Full disks under the packet ring and the lake, and captures that are none: clear words, counted, and nothing that
//! was acknowledged is lost.

use std::{
    collections::BTreeMap,
    fs,
    net::Ipv4Addr,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use garrison_proto::flow::v1::{FlowFilter, ListSensorsRequest, Sensor};

use crate::{
    calls::{Desk, Doors, log_in},
    capture,
    place::{alone, folder, in_namespaces, run, until},
    program::{Program, prepare, wait_ready},
    seed::search,
    world::{ACME, options},
};

/// How long anything may take that is waited for.
const LIMIT: Duration = Duration::from_secs(180);
const CONNECTIONS: u16 = 3_000;
const BUSY: Ipv4Addr = Ipv4Addr::new(10, 70, 1, 1);

#[test]
fn full_disks_and_broken_captures_degrade_and_lose_nothing() {
    let _alone = alone();
    if !in_namespaces("disks::full_disks_and_broken_captures_degrade_and_lose_nothing") {
        return;
    }
    run(async {
        let dir = folder("disks");
        let mut options = options(&dir, true);
        options.extra.insert("flow-ingest".to_owned(), captures(&dir));
        let fleet = prepare(options).await;
        let data = fleet.dir().join("data");
        let ring = data.join("flow-ingest/ring");
        mount(&ring, "512k", false);
        // Not an octet is left: the little that a slow machine writes at a time would find room beside a large chunk.
        fs::write(ring.join("somebody-else"), vec![0; 512 << 10]).unwrap();
        // Less than what the lake keeps free for its own work.
        mount(&data.join("forensics"), "48m", false);
        let doors = Doors::of(&fleet);
        let mut services = ["iam", "flow-ingest", "forensics"].map(|name| Program::start(&fleet, name));
        wait_ready(&mut services[..1], LIMIT);
        let desk = log_in(&fleet, &doors, ACME, "admin").await;

        // The lake says that it is full, and takes nothing; the sensors say what is wrong with theirs.
        let ingest = &services[1];
        until(LIMIT, "the sensors' complaints", || {
            let said = ["GAR-FLOW-000", "GAR-FLOW-0020", "\"name\":\"iam\",\"ready\":true"];
            let complains = |body: &str| said.iter().all(|words| body.contains(words));
            let page = ingest.page("/readyz");
            std::future::ready(page.filter(|(status, body)| *status == 503 && complains(body)))
        })
        .await;
        let forensics = &services[2];
        until(LIMIT, "the lake's complaint", || {
            let page = forensics.page("/readyz");
            std::future::ready(page.filter(|(status, body)| *status == 503 && body.contains("GAR-FOR-0001")))
        })
        .await;
        // Everything was read; the ring could not keep its packets, and the flows were published all the same.
        let sensors = until(LIMIT, "the captures' end", || {
            let desk = desk.clone();
            async move {
                let sensors = sensors(&desk).await;
                sensors
                    .values()
                    .all(|sensor| sensor.finished || !sensor.problem.is_empty())
                    .then_some(sensors)
            }
        })
        .await;
        for (name, code) in [
            ("missing", "GAR-FLOW-0001"),
            ("empty", "GAR-FLOW-0002"),
            ("garbage", "GAR-FLOW-0003"),
            ("strange", "GAR-FLOW-0004"),
            ("cut", "GAR-FLOW-0005"),
            ("bulk", "GAR-FLOW-0020"),
        ] {
            let sensor = &sensors[name];
            assert!(
                sensor.problem.contains(code),
                "{name}: {:?} does not say {code}",
                sensor.problem
            );
            let ledger = sensor.ledger.unwrap();
            assert_eq!(
                ledger.received,
                ledger.parsed + ledger.malformed + ledger.shed,
                "{name}: {ledger:?}"
            );
            assert_eq!(ledger.records_lost, 0, "{name}: {ledger:?}");
        }
        let bulk = &sensors["bulk"];
        assert!(
            bulk.ring_dropped > 0,
            "packets that the ring had no room for were not counted: {bulk:?}"
        );
        assert_eq!(bulk.ledger.unwrap().received, u64::from(CONNECTIONS) * 10);
        assert_eq!(
            sensors["cut"].ledger.unwrap().received,
            9,
            "what came before the cut counts"
        );
        for service in &mut services {
            service.assert_running();
        }

        // Room again: the broker kept it all.
        mount(&data.join("forensics"), "900m", true);
        wait_ready(&mut services[2..], LIMIT);
        let filter = FlowFilter {
            hosts: vec![BUSY.to_string()],
            ..FlowFilter::default()
        };
        let began = Instant::now();
        loop {
            let found = search(&desk, filter.clone()).await;
            let found = found.iter().filter(|flow| flow.sensor == "bulk").count();
            if found == usize::from(CONNECTIONS) {
                break;
            }
            assert!(
                began.elapsed() < LIMIT,
                "{found} of {CONNECTIONS} flows are in the lake"
            );
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
}

fn mount(folder: &Path, size: &str, again: bool) {
    fs::create_dir_all(folder).unwrap();
    let options = if again {
        format!("remount,size={size}")
    } else {
        format!("size={size}")
    };
    let status = Command::new("mount")
        .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
        .arg(folder)
        .status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "mounting {} failed",
        folder.display()
    );
}

async fn sensors(desk: &Desk) -> BTreeMap<String, Sensor> {
    let answer = desk
        .flows
        .clone()
        .list_sensors(ListSensorsRequest {})
        .await
        .unwrap()
        .into_inner();
    let named = answer
        .sensors
        .into_iter()
        .map(|sensor| (sensor.name.replace("sensors/", ""), sensor));
    named.collect()
}

/// A good capture that is too much for the ring, and five that are broken.
fn captures(dir: &Path) -> String {
    let connection = |n: u16| {
        capture::connection(
            u64::from(n) * 1_000,
            (Ipv4Addr::new(10, 70, 2, (n % 200) as u8 + 1), 10_000 + n),
            (BUSY, 80),
            b"GET / HTTP/1.1\r\nHost: busy\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        )
    };
    let path = |name: &str| dir.join(format!("{name}.pcap"));
    capture::write(
        &path("bulk"),
        1_760_000_000,
        (0..CONNECTIONS).flat_map(connection).collect(),
    );
    capture::write(&path("cut"), 1_760_000_000, connection(0));
    let whole = fs::read(path("cut")).unwrap();
    fs::write(path("cut"), &whole[..whole.len() - 7]).unwrap();
    let mut strange = whole;
    strange[20] = 147;
    fs::write(path("strange"), strange).unwrap();
    fs::write(path("garbage"), "this is no capture, whatever its name says").unwrap();
    fs::write(path("empty"), "").unwrap();
    ["bulk", "cut", "strange", "garbage", "empty", "missing"]
        .map(|name| {
            format!(
                "[[sensors]]\nid = \"{name}\"\ntenant = \"{ACME}\"\nfile = \"{}\"\ntimestamps = \"now\"\n\n",
                path(name).display()
            )
        })
        .concat()
}
