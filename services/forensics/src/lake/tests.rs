//! The lake without a database: segments, recovery, files and searches.

use std::{
    collections::BTreeSet,
    io::Write as _,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use garrison_flow::{BatchMeta, Filter, FlowBatchBuilder, FlowRow, FlowState, LossLedger};
use garrison_proto::flow::v1::FlowFilter;
use proptest::prelude::*;

use super::{
    search::{Query, Search, Stats, Stored},
    *,
};

fn config(dir: &Path) -> LakeConfig {
    LakeConfig {
        data_dir: dir.to_owned(),
        roll_rows: 250_000,
        roll_bytes: 64 << 20,
        roll_interval_ms: 300_000,
        reserve_bytes: 0,
        retention_hours: 1,
        retention_bytes: 1 << 30,
    }
}

fn acme() -> TenantId {
    "acme".parse().unwrap()
}

/// One record of flow `n`.
#[derive(Debug, Clone, Copy)]
struct Made {
    n: u32,
    seq: u32,
}

fn flow_id(n: u32) -> [u8; 16] {
    Uuid::from_u128(u128::from(n) + 1).into_bytes()
}

const SECOND: i64 = 1_000_000_000;

fn row(made: Made, community_id: &str) -> FlowRow<'_> {
    let Made { n, seq } = made;
    FlowRow {
        flow_id: flow_id(n),
        record_seq: seq,
        state: if seq >= 2 {
            FlowState::Ended as u8
        } else {
            FlowState::New as u8
        },
        sensor: "s",
        first_seen: i64::from(n) * SECOND,
        last_seen: i64::from(n + seq) * SECOND,
        protocol: 6,
        src_ip: IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + n % 251)),
        dst_ip: "2001:db8::7".parse().unwrap(),
        src_port: 1_000 + (n % 60_000) as u16,
        dst_port: if n.is_multiple_of(2) { 443 } else { 53 },
        community_id,
        service: (seq >= 1).then_some("tls"),
        src_packets: Some(u64::from(seq) + 1),
        ..FlowRow::default()
    }
}

fn message(made: &[Made], tenant: &TenantId) -> Bytes {
    let mut builder = FlowBatchBuilder::new(made.len());
    for made in made {
        builder.push(&row(*made, &format!("1:{}", made.n)));
    }
    let meta = BatchMeta {
        tenant: tenant.clone(),
        sensor: "s".into(),
        batch_seq: 0,
        ledger: LossLedger::default(),
    };
    garrison_flow::encode(&builder.finish(), &meta).unwrap()
}

async fn store(lake: &Lake, id: u128, made: &[Made]) -> Result<Appended, LakeError> {
    let payload = message(made, &acme());
    let checked = Checked::read(&payload, &acme()).unwrap();
    lake.append(&acme(), Uuid::from_u128(id), &checked, payload).await
}

fn find(lake: &Lake, files: Vec<Stored>, filter: FlowFilter, limit: usize) -> (Vec<(u32, u32)>, Stats) {
    let query = Query {
        filter: Filter::compile(&filter).unwrap(),
        limit,
        max_candidates: 1_000_000,
    };
    let mut found = Vec::new();
    let stats = Search::new(lake.fresh(&acme()), files, 0, query)
        .run(&|| false, &mut |batch| {
            found.extend(batch.rows().map(|row| {
                let n = Uuid::from_bytes(row.flow_id).as_u128() as u32 - 1;
                assert_eq!(row.src_packets, Some(u64::from(row.record_seq) + 1));
                (n, row.record_seq)
            }));
            true
        })
        .unwrap();
    (found, stats)
}

fn all() -> FlowFilter {
    FlowFilter::default()
}

/// Writes records as Parquet, as compaction does.
fn parquet(dir: &Path, made: &[Made]) -> Stored {
    let id = Uuid::now_v7();
    let path = dir.join(format!("{id}.parquet"));
    let mut writer = FlowFileWriter::create(&path).unwrap();
    for chunk in made.chunks(4_096) {
        writer
            .write(&garrison_flow::decode(&message(chunk, &acme())).unwrap().0)
            .unwrap();
    }
    let file = writer.finish().unwrap();
    assert_eq!(file.bytes, fs::metadata(&path).unwrap().len());
    Stored {
        id,
        path,
        extent: file.extent,
    }
}

#[tokio::test]
async fn what_was_answered_for_is_there_after_a_crash_and_only_once() {
    let dir = tempfile::tempdir().unwrap();
    let lake = Lake::open(&config(dir.path())).unwrap();
    for id in 1..=5u128 {
        let made = [Made { n: id as u32, seq: 0 }];
        assert_eq!(store(&lake, id, &made).await.unwrap(), Appended::New);
        assert_eq!(store(&lake, id, &made).await.unwrap(), Appended::Repeat);
    }
    assert_eq!(find(&lake, vec![], all(), 100).0.len(), 5);
    assert!(
        matches!(Lake::open(&config(dir.path())), Err(LakeError::Storage { .. })),
        "two processes in one folder"
    );
    drop(lake);

    // A torn write at the end, as a killed process leaves it.
    let folder = writer::wal_folder(dir.path(), &acme());
    let segment = fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
    let good = fs::metadata(&segment).unwrap().len();
    fs::OpenOptions::new()
        .append(true)
        .open(&segment)
        .unwrap()
        .write_all(&[9; 100])
        .unwrap();

    let lake = Lake::open(&config(dir.path())).unwrap();
    assert_eq!(fs::metadata(&segment).unwrap().len(), good);
    assert_eq!(find(&lake, vec![], all(), 100).0.len(), 5);
    // Redelivered after the crash.
    assert_eq!(
        store(&lake, 3, &[Made { n: 3, seq: 0 }]).await.unwrap(),
        Appended::Repeat
    );
    assert_eq!(store(&lake, 6, &[Made { n: 6, seq: 0 }]).await.unwrap(), Appended::New);
    assert_eq!(find(&lake, vec![], all(), 100).0.len(), 6);
}

#[tokio::test]
async fn many_at_once_share_syncs_and_all_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let lake = Lake::open(&LakeConfig {
        roll_rows: 40,
        ..config(dir.path())
    })
    .unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for id in 0..200u32 {
        let lake = lake.clone();
        tasks.spawn(async move {
            store(&lake, u128::from(id) + 1, &[Made { n: id, seq: 0 }])
                .await
                .unwrap()
        });
    }
    while let Some(outcome) = tasks.join_next().await {
        assert_eq!(outcome.unwrap(), Appended::New);
    }
    assert!(lake.view.of(&acme()).len() > 1, "segments did not roll");
    let (found, stats) = find(&lake, vec![], all(), 1_000);
    assert_eq!(found, (0..200).map(|n| (n, 0)).collect::<Vec<_>>());
    assert_eq!(stats.rows_read, 200);
}

#[tokio::test]
async fn without_room_it_says_so_and_goes_on_when_there_is() {
    let dir = tempfile::tempdir().unwrap();
    let everything = writer::free_bytes(dir.path()).unwrap();
    let lake = Lake::open(&LakeConfig {
        reserve_bytes: everything * 2,
        ..config(dir.path())
    })
    .unwrap();
    let error = store(&lake, 1, &[Made { n: 1, seq: 0 }]).await.unwrap_err();
    assert!(matches!(error, LakeError::Full { .. }), "{error}");
    assert!(
        lake.trouble()
            .borrow()
            .as_deref()
            .is_some_and(|reason| reason.contains("GAR-FOR-0001"))
    );
    drop(lake);
    let lake = tokio::time::timeout(Duration::from_secs(60), async {
        loop {
            // The writing thread ends after the last handle, and the lock with it.
            if let Ok(lake) = Lake::open(&config(dir.path())) {
                return lake;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let lake = lake.await.unwrap();
    assert_eq!(store(&lake, 1, &[Made { n: 1, seq: 0 }]).await.unwrap(), Appended::New);
    assert!(lake.trouble().borrow().is_none());
}

/// Runs in a user and mount namespace of its own, on a file system of two mebibytes.
#[tokio::test]
async fn inner_full_disk() {
    let Some(dir) = std::env::var_os("GARRISON_TEST_SMALL_DISK") else {
        return;
    };
    let dir = PathBuf::from(dir);
    let lake = Lake::open(&config(&dir)).unwrap();
    let mut stored = 0u32;
    let error = loop {
        let made: Vec<Made> = (0..500)
            .map(|i| Made {
                n: stored * 500 + i,
                seq: 0,
            })
            .collect();
        match store(&lake, u128::from(stored) + 1, &made).await {
            Ok(_) => stored += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, LakeError::Full { .. }), "{error}");
    assert!(stored > 2, "{stored}");
    assert_eq!(find(&lake, vec![], all(), 1_000_000).0.len() as u32, stored * 500);
    // Still full: still refused, nothing broken.
    let made = [Made { n: 9_000_000, seq: 0 }; 1];
    let big: Vec<Made> = (0..500)
        .map(|i| Made {
            n: 8_000_000 + i,
            seq: 0,
        })
        .collect();
    assert!(store(&lake, 777, &big).await.is_err());
    // Somebody makes room.
    fs::remove_file(dir.join("ballast")).unwrap();
    assert_eq!(store(&lake, 777, &big).await.unwrap(), Appended::New);
    assert_eq!(store(&lake, 778, &made).await.unwrap(), Appended::New);
    assert!(lake.trouble().borrow().is_none());
    drop(lake);
    let lake = loop {
        if let Ok(lake) = Lake::open(&config(&dir)) {
            break lake;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert_eq!(find(&lake, vec![], all(), 1_000_000).0.len() as u32, stored * 500 + 501);
}

#[test]
fn a_full_disk_loses_nothing_that_was_answered_for() {
    let dir = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o size=2m tmpfs \"$GARRISON_TEST_SMALL_DISK\" && \
                  head -c 1000000 /dev/zero > \"$GARRISON_TEST_SMALL_DISK/ballast\" && \
                  exec \"$0\" --exact lake::tests::inner_full_disk";
    let output = std::process::Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", script])
        .arg(std::env::current_exe().unwrap())
        .env("GARRISON_TEST_SMALL_DISK", dir.path())
        .output()
        .expect("unshare is missing: apt-get install util-linux");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}\n(this needs user namespaces: sysctl kernel.unprivileged_userns_clone=1, user.max_user_namespaces above 0)"
    );
}

#[test]
fn a_batch_of_another_tenant_or_none_at_all_is_refused() {
    let payload = message(&[Made { n: 1, seq: 0 }], &"other".parse().unwrap());
    assert!(Checked::read(&payload, &acme()).unwrap_err().contains("other"));
    assert!(Checked::read(&payload[..payload.len() / 2], &acme()).is_err());
    assert!(Checked::read(b"no batch", &acme()).is_err());
}

#[tokio::test]
async fn each_flow_comes_once_in_its_last_record_wherever_its_records_are() {
    let dir = tempfile::tempdir().unwrap();
    let lake = Lake::open(&config(dir.path())).unwrap();
    // The first records in one file, the second in another, the last of the even ones still fresh.
    let first: Vec<Made> = (0..3_000).map(|n| Made { n, seq: 0 }).collect();
    let second: Vec<Made> = (0..3_000).rev().map(|n| Made { n, seq: 1 }).collect();
    let files = vec![parquet(dir.path(), &first), parquet(dir.path(), &second)];
    let fresh: Vec<Made> = (0..3_000).step_by(2).map(|n| Made { n, seq: 2 }).collect();
    store(&lake, 1, &fresh).await.unwrap();

    let (found, stats) = find(&lake, files.clone(), all(), 10_000);
    let expected: Vec<(u32, u32)> = (0..3_000).map(|n| (n, if n % 2 == 0 { 2 } else { 1 })).collect();
    assert_eq!(found, expected);
    assert_eq!((stats.files_read, stats.truncated), (3, false));

    let (found, stats) = find(&lake, files.clone(), all(), 7);
    assert_eq!(found, expected[..7]);
    assert!(stats.truncated);

    // The state is that of the last record: nothing that has ended is found as new.
    let new = FlowFilter {
        states: vec![1],
        ports: vec![443],
        ..all()
    };
    assert!(find(&lake, files.clone(), new, 10).0.is_empty());
    let tls = FlowFilter {
        services: vec!["tls".into()],
        states: vec![3],
        hosts: vec!["10.0.0.4".into()],
        ..all()
    };
    let of_host: Vec<u32> = (0..3_000).filter(|n| n % 251 == 4 && n % 2 == 0).collect();
    assert_eq!(
        find(&lake, files, tls, 10_000)
            .0
            .iter()
            .map(|(n, _)| *n)
            .collect::<Vec<_>>(),
        of_host
    );
}

#[tokio::test]
async fn the_index_skips_what_cannot_match_and_misses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let lake = Lake::open(&config(dir.path())).unwrap();
    let files: Vec<Stored> = (0..4u32)
        .map(|file| {
            parquet(
                dir.path(),
                &(file * 5_000..(file + 1) * 5_000)
                    .map(|n| Made { n, seq: 0 })
                    .collect::<Vec<_>>(),
            )
        })
        .collect();
    let one = |filter: FlowFilter| find(&lake, files.clone(), filter, 100);
    let id = FlowFilter {
        flow_ids: vec![Uuid::from_bytes(flow_id(7_001)).to_string()],
        ..all()
    };
    let community = FlowFilter {
        community_ids: vec!["1:7001".into()],
        ..all()
    };
    let ports = FlowFilter {
        ports: vec![8_001],
        ..all()
    };
    let host = FlowFilter {
        src_hosts: vec!["10.0.0.224/32".into()],
        ports: vec![8_001],
        ..all()
    };
    for filter in [id, community, ports, host] {
        let (found, stats) = one(filter.clone());
        assert_eq!(found, [(7_001, 0)], "{filter:?}");
        assert!(stats.files_skipped >= 2, "{filter:?}: {stats:?}");
    }
    let absent = FlowFilter {
        hosts: vec!["192.168.0.0/16".into()],
        ..all()
    };
    assert_eq!(one(absent).1.files_skipped, 4);
    let time = |seconds| Some(garrison_proto::Timestamp { seconds, nanos: 0 });
    let window = FlowFilter {
        since: time(12_000),
        until: time(12_003),
        ..all()
    };
    let (found, stats) = one(window);
    assert_eq!(
        found.iter().map(|(n, _)| *n).collect::<Vec<_>>(),
        [12_000, 12_001, 12_002]
    );
    assert_eq!(stats.files_skipped, 3);
}

#[tokio::test]
async fn a_bound_on_memory_cuts_the_answer_short_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let lake = Lake::open(&config(dir.path())).unwrap();
    let made: Vec<Made> = (0..2_000).map(|n| Made { n, seq: 0 }).collect();
    let files = vec![parquet(dir.path(), &made)];
    let query = Query {
        filter: Filter::default(),
        limit: 10_000,
        max_candidates: 1_000,
    };
    let mut rows = 0;
    let stats = Search::new(lake.fresh(&acme()), files, 0, query)
        .run(&|| false, &mut |batch| {
            rows += batch.len();
            true
        })
        .unwrap();
    assert_eq!((rows, stats.truncated), (1_000, true));
}

#[tokio::test]
async fn nobody_waiting_ends_a_search() {
    let dir = tempfile::tempdir().unwrap();
    let lake = Lake::open(&config(dir.path())).unwrap();
    let made: Vec<Made> = (0..2_000).map(|n| Made { n, seq: 0 }).collect();
    let files = vec![parquet(dir.path(), &made)];
    let query = Query {
        filter: Filter::default(),
        limit: 10_000,
        max_candidates: 10_000,
    };
    let search = |files: Vec<Stored>| Search::new(lake.fresh(&acme()), files, 0, query.clone());
    assert!(matches!(
        search(files.clone()).run(&|| true, &mut |_| true),
        Err(search::SearchError::Cancelled)
    ));
    assert!(matches!(
        search(files.clone()).run(&|| false, &mut |_| false),
        Err(search::SearchError::Cancelled)
    ));
    // A file that retention deleted meanwhile is counted and not an error.
    fs::remove_file(&files[0].path).unwrap();
    let stats = search(files).run(&|| false, &mut |_| true).unwrap();
    assert_eq!(stats.files_gone, 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever is asked, the lake answers as a plain look at every record does.
    #[test]
    fn answers_as_a_full_scan_would(
        records in proptest::collection::btree_set((0u32..400, 0u32..3), 1..300),
        split in 0usize..300,
        hosts in proptest::collection::vec(0u8..=255, 0..2),
        port in proptest::option::of(prop_oneof![Just(443u32), Just(53), 1_000u32..1_400]),
        since in proptest::option::of(0i64..400),
        until in proptest::option::of(0i64..400),
        state in proptest::option::of(1i32..=3),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let time = |seconds| garrison_proto::Timestamp { seconds, nanos: 0 };
        let filter = FlowFilter {
            hosts: hosts.iter().map(|last| format!("10.0.0.{last}")).collect(),
            ports: port.into_iter().collect(),
            since: since.map(time),
            until: until.map(time),
            states: state.into_iter().collect(),
            ..FlowFilter::default()
        };
        let made: Vec<Made> = records.iter().map(|(n, seq)| Made { n: *n, seq: *seq }).collect();
        let (in_file, fresh) = made.split_at(split.min(made.len()));

        let compiled = Filter::compile(&filter).unwrap();
        let flows: BTreeSet<u32> = records.iter().map(|(n, _)| *n).collect();
        let expected: Vec<(u32, u32)> = flows
            .into_iter()
            .map(|n| (n, records.range((n, 0)..(n, 9)).next_back().unwrap().1))
            .filter(|(n, seq)| compiled.matches(&row(Made { n: *n, seq: *seq }, "1:x")))
            .collect();

        let dir = tempfile::tempdir().unwrap();
        let found = runtime.block_on(async {
            let lake = Lake::open(&config(dir.path())).unwrap();
            let files = if in_file.is_empty() { vec![] } else { vec![parquet(dir.path(), in_file)] };
            if !fresh.is_empty() {
                store(&lake, 1, fresh).await.unwrap();
            }
            find(&lake, files, filter.clone(), 10_000).0
        });
        prop_assert_eq!(found, expected, "{:?}", filter);
    }
}
