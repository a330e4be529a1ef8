//! `garrison flows read` as a person runs it: no fleet, no configuration.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Output, Stdio},
};

fn read(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_garrison"))
        .env("GARRISON_CONFIG", "/nonexistent/config.toml")
        .args(["flows", "read"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writing = std::thread::spawn(move || {
        // The program may end before it has read everything.
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().unwrap();
    writing.join().unwrap();
    output
}

fn text(octets: &[u8]) -> &str {
    std::str::from_utf8(octets).unwrap()
}

// One frame: a UDP datagram between two hosts.
fn frame(source_port: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0];
    frame.extend((28 + payload.len() as u16).to_be_bytes());
    frame.extend([0, 1, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend(source_port.to_be_bytes());
    frame.extend(9999u16.to_be_bytes());
    frame.extend((8 + payload.len() as u16).to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(payload);
    frame
}

fn capture(flows: u16) -> Vec<u8> {
    let mut data = Vec::new();
    for word in [0xa1b2_c3d4u32, 0x0004_0002, 0, 0, 65_535, 1] {
        data.extend(word.to_le_bytes());
    }
    for flow in 0..flows {
        let frame = frame(20_000 + flow, b"payload");
        for word in [
            1_700_000_000 + u32::from(flow),
            500_000,
            frame.len() as u32,
            frame.len() as u32,
        ] {
            data.extend(word.to_le_bytes());
        }
        data.extend(frame);
    }
    data
}

#[test]
fn a_capture_on_standard_input_in_every_text_format() {
    let capture = capture(3);
    let table = read(&["-", "-o", "table"], &capture);
    assert_eq!(table.status.code(), Some(0), "{}", text(&table.stderr));
    assert!(text(&table.stdout).starts_with("LAST SEEN"), "{}", text(&table.stdout));
    assert_eq!(text(&table.stdout).lines().count(), 4);
    assert!(
        text(&table.stderr).contains("3 packets = 3 parsed + 0 malformed + 0 shed"),
        "{}",
        text(&table.stderr)
    );
    let json = read(&["-", "-o", "json"], &capture);
    let rows: Vec<serde_json::Value> = text(&json.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(rows.len(), 3);
    assert_eq!(rows[0]["src_ip"], "10.0.0.1");
    assert_eq!(rows[0]["dst_port"], 9999);
    assert_eq!(rows[0]["first_seen"], "2023-11-14T22:13:20.500000000Z");
    assert!(rows[0].get("http_host").is_none(), "what is unknown is absent");
    let eve = read(&["-", "-o", "eve"], &capture);
    let event: serde_json::Value = serde_json::from_str(text(&eve.stdout).lines().next().unwrap()).unwrap();
    assert_eq!(
        (event["event_type"].as_str(), event["flow"]["pkts_toserver"].as_u64()),
        (Some("flow"), Some(1))
    );
    let csv = read(&["-", "-o", "csv"], &capture);
    assert!(text(&csv.stdout).starts_with("flow_id,record_seq,"));
    assert_eq!(text(&csv.stdout).lines().count(), 4);
    let tsv = read(&["-"], &capture);
    assert!(
        text(&tsv.stdout).starts_with("last seen\tstate"),
        "piped it is tab-separated"
    );
}

#[test]
fn a_filter_leaves_out_what_is_not_wanted_and_says_so() {
    let capture = capture(9);
    let some = read(&["-", "-o", "json", "--filter", "udp portrange 20002-20004"], &capture);
    assert_eq!(some.status.code(), Some(0), "{}", text(&some.stderr));
    let ports: Vec<_> = text(&some.stdout)
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["src_port"].as_u64())
        .collect();
    assert_eq!(ports, [Some(20_002), Some(20_003), Some(20_004)]);
    let sums =
        "3 packets = 3 parsed + 0 malformed + 0 shed; 0 without a flow; 3 flows; 6 packets left out by the filter";
    assert!(text(&some.stderr).contains(sums), "{}", text(&some.stderr));
    let wrong = read(&["-", "--filter", "udp prot 1"], &capture);
    assert_ne!(wrong.status.code(), Some(0));
    assert!(text(&wrong.stderr).contains("GAR-FLOW-0015"), "{}", text(&wrong.stderr));
    let log = read(&["-", "--filter", "udp"], &read(&["-", "-o", "zeek"], &capture).stdout);
    assert_ne!(log.status.code(), Some(0));
    assert!(
        text(&log.stderr).contains("it selects packets"),
        "{}",
        text(&log.stderr)
    );
}

#[test]
fn zeek_output_is_read_back_as_the_same_flows() {
    let zeek = read(&["-", "-o", "zeek"], &capture(5));
    let lines: Vec<&str> = text(&zeek.stdout).lines().collect();
    let fields = lines.iter().find_map(|line| line.strip_prefix("#fields\t")).unwrap();
    let record = lines.iter().find(|line| !line.starts_with('#')).unwrap();
    assert_eq!(fields.split('\t').count(), record.split('\t').count());
    // This is what zeek-cut does.
    let place = fields.split('\t').position(|name| name == "id.resp_p").unwrap();
    assert_eq!(record.split('\t').nth(place), Some("9999"));
    let again = read(&["-", "-o", "zeek"], &zeek.stdout);
    let part = |output: &Output| -> Vec<String> {
        text(&output.stdout)
            .lines()
            .filter(|line| !line.starts_with('#'))
            // The second column is the id of this reading.
            .map(|line| {
                line.split('\t')
                    .enumerate()
                    .filter(|(i, _)| *i != 1)
                    .map(|(_, v)| v)
                    .collect::<Vec<_>>()
                    .join("\t")
            })
            .collect()
    };
    assert_eq!(part(&zeek), part(&again));
    assert!(
        text(&again.stderr).contains("Zeek's conn.log"),
        "{}",
        text(&again.stderr)
    );
}

#[test]
fn parquet_and_arrow_hold_every_row() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("flows.parquet");
    let name = path.to_str().unwrap();
    let written = read(&["-", "-o", "parquet", "--write", name], &capture(20));
    assert_eq!(written.status.code(), Some(0), "{}", text(&written.stderr));
    let again = read(&[name, "-o", "json"], b"");
    assert_eq!(text(&again.stdout).lines().count(), 20, "{}", text(&again.stderr));
    assert_eq!(
        text(&again.stdout),
        text(&read(&["-", "-o", "json"], &std::fs::read(&path).unwrap()).stdout),
        "from standard input as from disk"
    );
    let arrow = read(&["-", "-o", "arrow"], &capture(20));
    let reader = arrow_ipc::reader::StreamReader::try_new(&arrow.stdout[..], None).unwrap();
    assert_eq!(reader.map(|batch| batch.unwrap().num_rows()).sum::<usize>(), 20);
}

#[test]
fn what_is_wrong_is_said_with_a_code_and_what_was_read_is_printed() {
    let cut = capture(3);
    let output = read(&["-", "-o", "json"], &cut[..cut.len() - 1]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stdout).lines().count(), 2);
    assert!(
        text(&output.stderr).contains("GAR-FLOW-0005"),
        "{}",
        text(&output.stderr)
    );
    for (input, code) in [
        (&b""[..], "GAR-FLOW-0002"),
        (b"nonsense", "GAR-FLOW-0003"),
        (b"PAR1 no parquet", "GAR-FLOW-0056"),
    ] {
        let output = read(&["-"], input);
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains(code), "{}", text(&output.stderr));
    }
    let absent = read(&["/nonexistent/file"], b"");
    assert!(text(&absent.stderr).contains("GAR-FLOW-0001"));
    let log = b"2 1 eni-1 10.0.0.1 10.0.0.2 1 443 6 3 300 1 2 ACCEPT OK\nbad\n";
    let output = read(&["-"], log);
    assert_eq!(output.status.code(), Some(0));
    assert!(
        text(&output.stderr).contains("-:2: GAR-FLOW-0057: has 1 columns"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn a_reader_that_has_seen_enough_ends_it_quietly() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("big.pcap");
    std::fs::write(&path, capture(40_000)).unwrap();
    let output = Command::new("sh")
        .args(["-c", "\"$0\" flows read \"$1\" -o json | head -n 1"])
        .arg(env!("CARGO_BIN_EXE_garrison"))
        .arg(&path)
        .output()
        .unwrap();
    assert_eq!(text(&output.stdout).lines().count(), 1);
    assert!(
        !text(&output.stderr).contains("panicked") && !text(&output.stderr).contains("GAR-"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn formats_of_files_are_refused_elsewhere() {
    let output = Command::new(env!("CARGO_BIN_EXE_garrison"))
        .env("GARRISON_CONFIG", Path::new("/nonexistent/config.toml"))
        .args(["whoami", "-o", "zeek"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("GAR-CLI-0005"));
}
