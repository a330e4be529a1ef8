use std::{os::unix::fs::PermissionsExt as _, path::PathBuf, process::Command, time::Duration};

use garrison_proto::flow::v1::FlowFilter;
use tonic::Code;

use crate::world::{World, files};

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_moment_it_loses_nothing_and_doubles_nothing() {
    let mut world = World::running().await;
    let mut published = 0;
    for round in 0..6u64 {
        for _ in 0..25 {
            let message = world.publish("acme", published, published + 20).await;
            published += 20;
            if published % 100 == 0 {
                // The same event again, as a publisher does that did not hear the broker's answer.
                world.ingest.publisher().publish(&message).await.unwrap();
            }
        }
        // At first while batches are written, later while segments become Parquet.
        tokio::time::sleep(Duration::from_millis(round * 130)).await;
        world.kill();
        world.start();
    }
    world.until_found("acme", published as usize).await;
    world
        .until("all in Parquet", async || {
            !files(&world.data)
                .iter()
                .any(|f| f.extension().is_some_and(|e| e == "wal"))
        })
        .await;
    // Searches show a flow once even if it is stored twice; the catalogue counts rows.
    assert_eq!(world.catalogue("acme").await.1, i64::from(published));
    assert_eq!(
        world.until_found("acme", published as usize).await.len(),
        published as usize
    );
    assert!(
        !files(&world.data)
            .iter()
            .any(|f| f.extension().is_some_and(|e| e == "damaged" || e == "tmp"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn flows_are_stored_while_the_database_is_away() {
    let mut world = World::new().await;
    world.stack.postgres().stop();
    world.start();
    world.publish("acme", 0, 100).await;
    world
        .until("acknowledged", async || world.unacknowledged().await == 0)
        .await;
    let refused = world.search("acme", FlowFilter::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert!(!world.is_ready().await);
    // Even a crash meanwhile loses nothing.
    world.kill();
    world.start();
    world.publish("acme", 100, 150).await;
    world
        .until("acknowledged", async || world.unacknowledged().await == 0)
        .await;
    world.stack.postgres().resume().unwrap();
    world.until_ready().await;
    world.until_found("acme", 150).await;
    world
        .until("in Parquet", async || world.catalogue("acme").await.1 == 150)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn searches_go_on_without_the_broker() {
    let world = World::running().await;
    world.publish("acme", 0, 30).await;
    world.until_found("acme", 30).await;
    world.stack.nats().kill();
    world.until_found("acme", 30).await;
    world.stack.nats().resume().unwrap();
    world.until("connected", async || world.is_ready().await).await;
    world.publish("acme", 30, 60).await;
    world.until_found("acme", 60).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_holds_flows_back_and_loses_none() {
    let mut world = World::new().await;
    std::fs::create_dir_all(&world.data).unwrap();
    std::fs::set_permissions(world.dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    world.lake = "roll_interval_ms = 3600000\nreserve_bytes = 500000".into();
    let script =
        "mount -t tmpfs -o size=16m tmpfs \"$DATA\" && head -c 14000000 /dev/zero > \"$DATA/ballast\" && exec \"$@\"";
    let mut command = Command::new("unshare");
    command
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"])
        .arg(env!("CARGO_BIN_EXE_forensics"))
        .arg("--config")
        .arg(world.config())
        .env("DATA", &world.data);
    world.start_as(command);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(
        world.process.as_mut().unwrap().is_running(),
        "{}\n(this needs user namespaces: sysctl kernel.unprivileged_userns_clone=1, user.max_user_namespaces above 0)",
        world.output()
    );
    world.until_ready().await;
    let batches = 30u32;
    for i in 0..batches {
        world.publish("acme", i * 500, (i + 1) * 500).await;
    }
    world
        .until("degraded", async || {
            world.page().await.is_some_and(|page| page.contains("GAR-FOR-0001"))
        })
        .await;
    assert!(world.unacknowledged().await > 0);
    let stored = world.search("acme", FlowFilter::default()).await.unwrap().0.len();
    assert!(stored >= 500 && stored < (batches * 500) as usize, "{stored}");

    // Somebody makes room, from outside of its mount namespace.
    let pid = world.process.as_ref().unwrap().id();
    let inside = |path: PathBuf| PathBuf::from(format!("/proc/{pid}/root")).join(path.strip_prefix("/").unwrap());
    std::fs::remove_file(inside(world.data.join("ballast"))).unwrap();
    world.until_ready().await;
    world
        .until("acknowledged", async || world.unacknowledged().await == 0)
        .await;
    let limit = 10_000.min((batches * 500) as usize);
    let (found, stats) = world.search("acme", FlowFilter::default()).await.unwrap();
    assert_eq!(found.len(), limit);
    assert_eq!(stats.rows_read, u64::from(batches * 500));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_key_or_a_folder_in_use_says_so() {
    let mut world = World::running().await;
    let config = world.config();
    let second = tokio::task::spawn_blocking(move || {
        let text = std::fs::read_to_string(&config).unwrap();
        // Other ports, the same folder.
        let port = garrison_testkit::free_port().unwrap();
        let other = config.with_file_name("second.toml");
        let text: Vec<String> = text
            .lines()
            .map(|line| {
                if line.starts_with("listen") {
                    format!("listen = \"127.0.0.1:{port}\"")
                } else {
                    line.to_owned()
                }
            })
            .collect();
        std::fs::write(&other, text.join("\n")).unwrap();
        Command::new(env!("CARGO_BIN_EXE_forensics"))
            .arg("--config")
            .arg(other)
            .output()
            .unwrap()
    });
    let second = second.await.unwrap();
    assert_eq!(second.status.code(), Some(1));
    let text = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(text.contains("GAR-FOR-0002") && text.contains("in use"), "{text}");
    world.kill();

    std::fs::write(world.dir.path().join("evidence.pem"), "no key").unwrap();
    let config = world.config();
    let output = Command::new(env!("CARGO_BIN_EXE_forensics"))
        .arg("--config")
        .arg(config)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(64));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        text.contains("evidence.key_file") && text.contains("openssl genpkey"),
        "{text}"
    );
}
