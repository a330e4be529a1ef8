//! The demo as a test: the loop on real packets in the lab, and on capture files. Its report is read, and what it leaves
//! is checked with tools that are not Garrison's.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use garrison_proof::{ExportOptions, verify_export};
use garrison_testkit::corpora;
use serde_json::Value;

use crate::{
    capture::{self, Packet},
    place::{alone, binaries, folder, root},
    program::output,
};

/// Runs the demo and reads its report. Only one at a time: all use one folder of the checkout.
fn demo(arguments: &[&str]) -> Value {
    let dir = folder("demo");
    let report = dir.join("report.json");
    let mut command = Command::new(binaries().join("xtask"));
    command
        .args(["demo", "--debug-build", "--report"])
        .arg(&report)
        .args(arguments)
        .current_dir(root());
    let output = output(command, Duration::from_secs(1_200));
    let said = format!(
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        output.status.success(),
        "the demo ended with {}:\n{said}",
        output.status
    );
    serde_json::from_str(&fs::read_to_string(report).unwrap()).unwrap()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// The sums that every ledger promises, added up here again.
fn assert_accounted(report: &Value) {
    let get = |name: &str| number(&report["ledger"][name]);
    assert_eq!(report["ledger_balances"], true);
    assert_eq!(
        get("received"),
        get("parsed") + get("malformed") + get("shed"),
        "{report:#}"
    );
    assert_eq!(get("received"), number(&report["packets"]));
    assert!(get("flowsEnded") <= get("flowsOpened"));
    assert_eq!(get("recordsLost"), 0);
}

fn assert_verified(report: &Value, least: usize) {
    let claims = report["verifications"].as_array().unwrap();
    assert!(claims.len() >= least, "only {} claims: {claims:#?}", claims.len());
    let broken: Vec<&Value> = claims.iter().filter(|claim| claim["holds"] != true).collect();
    assert!(broken.is_empty(), "{broken:#?}");
}

/// Processes that were started with files of the demo.
fn left_running() -> Vec<String> {
    let files = root().join(".garrison/demo/").display().to_string();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|process| fs::read_to_string(process.path().join("cmdline")).ok())
        .filter(|line| line.contains(&files))
        .collect()
}

#[test]
fn a_demo_that_is_killed_leaves_nothing_running() {
    let _alone = alone();
    let said = folder("killed").join("said");
    let mut demo = Command::new(binaries().join("xtask"))
        .args(["demo", "--debug-build"])
        .current_dir(root())
        .stdin(Stdio::null())
        .stdout(fs::File::create(&said).unwrap())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let up = || fs::read_to_string(&said).unwrap().contains("What is normal");
    assert!(
        within(Duration::from_secs(600), || up() || demo.try_wait().unwrap().is_some()),
        "the fleet is not up"
    );
    assert!(up(), "{}", fs::read_to_string(&said).unwrap());
    assert!(left_running().len() > 8, "{:?}", left_running());
    demo.kill().unwrap();
    demo.wait().unwrap();
    assert!(
        within(Duration::from_secs(120), || left_running().is_empty()),
        "{:?}",
        left_running()
    );
}

/// Whether something comes true in time.
fn within(limit: Duration, mut true_now: impl FnMut() -> bool) -> bool {
    let began = Instant::now();
    while !true_now() {
        if began.elapsed() > limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    true
}

#[test]
fn the_demo_does_what_it_claims() {
    let _alone = alone();
    let report = demo(&[]);
    assert_accounted(&report);
    assert_verified(&report, 12);
    assert_eq!(number(&report["incidents"]), 1, "{report:#}");
    for detector in ["bruteforce.http", "policy.violation"] {
        assert!(
            number(&report["detectors"][detector]) > 0,
            "no {detector} in {report:#}"
        );
    }
    assert!(
        report["detectors"]
            .as_object()
            .unwrap()
            .keys()
            .any(|name| name.starts_with("scan."))
    );
    assert!(number(&report["responses"]["RESPONSE_STATE_APPLIED"]) > 0, "{report:#}");
    assert!(
        number(&report["responses"]["RESPONSE_STATE_REVERTED"]) > 0,
        "{report:#}"
    );
    let contained = report["time_to_contain_ms"]
        .as_f64()
        .expect("time_to_contain_ms is a number");
    assert!(contained > 0.0, "contained before it began");
    eprintln!("unoptimised programs contained the attacker in {contained:.1} ms");

    let left = root().join(".garrison/demo-results");
    let dir = folder("evidence");
    let packets = evidence_verifies(&left.join("evidence.tar"), &dir);
    assert!(packets > 0, "no packet is in the evidence");
    let log = fs::read(left.join("audit-log.jsonl")).unwrap();
    let verified = verify_export(log.as_slice(), &ExportOptions::default()).unwrap();
    assert!(verified.checkpoint.size > 10);
    for page in ["incident.html", "soc2.html"] {
        let page = fs::read_to_string(left.join(page)).unwrap();
        assert!(page.contains("</html>") && !page.contains("<script"), "{page}");
    }
    let oscal: Value = serde_json::from_str(&fs::read_to_string(left.join("soc2-oscal.json")).unwrap()).unwrap();
    assert!(oscal.get("assessment-results").is_some());
}

fn shell(dir: &Path, script: &str) -> (bool, String) {
    let output = Command::new("sh")
        .args(["-ec", script])
        .current_dir(dir)
        .output()
        .unwrap();
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    (output.status.success(), said)
}

const DIGESTS: &str = "sha256sum --strict --quiet -c SHA256SUMS";
const SIGNATURES: &str = "for signed in SHA256SUMS manifest.json; do \
     openssl pkeyutl -verify -pubin -inkey signing-key.pem -rawin -in $signed -sigfile $signed.sig; done";

/// Checks an archive with `tar`, `sha256sum` and `openssl`, then that they notice changes. Gives the number of packets.
fn evidence_verifies(archive: &Path, dir: &Path) -> u64 {
    let (unpacked, said) = shell(dir, &format!("tar -xf '{}' --strip-components=1", archive.display()));
    assert!(unpacked, "{said}");
    for script in [DIGESTS, SIGNATURES] {
        let (holds, said) = shell(dir, script);
        assert!(holds, "{script}: {said}");
    }
    // Every file is listed, and none is listed that is not there.
    let listed = fs::read_to_string(dir.join("SHA256SUMS")).unwrap();
    let listed: Vec<&str> = listed.lines().map(|line| line.split("  ").nth(1).unwrap()).collect();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        assert!(
            listed.contains(&name.as_str()) || name.contains(".sig") || name == "SHA256SUMS",
            "{name} is not listed"
        );
    }
    let manifest: Value = serde_json::from_str(&fs::read_to_string(dir.join("manifest.json")).unwrap()).unwrap();
    let counted = manifest["counts"]["packets"].as_u64().unwrap();
    let mut found = 0;
    for entry in fs::read_dir(dir).unwrap().flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "pcapng") {
            found += packets_in(&fs::read(entry.path()).unwrap());
        }
    }
    assert_eq!(found, counted, "the manifest counts packets that are not there");

    let (holds, said) = shell(dir, &format!("printf x >> alerts.jsonl; {DIGESTS}"));
    assert!(!holds, "a changed file was not noticed: {said}");
    let (holds, said) = shell(dir, &format!("sha256sum alerts.jsonl >> SHA256SUMS; {SIGNATURES}"));
    assert!(!holds, "a changed list was not noticed: {said}");
    counted
}

/// Walks through the blocks of a pcapng file (draft-ietf-opsawg-pcapng) and counts the packets.
fn packets_in(file: &[u8]) -> u64 {
    const SECTION: u32 = 0x0a0d_0d0a;
    let word = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap());
    assert_eq!(word(0), SECTION, "the file does not begin with a section");
    let (mut at, mut interfaces, mut packets) = (0, 0, 0);
    while at < file.len() {
        let (kind, length) = (word(at), word(at + 4) as usize);
        assert!(
            length >= 12 && length % 4 == 0 && at + length <= file.len(),
            "a block of {length} octets at {at}"
        );
        assert_eq!(
            word(at + length - 4) as usize,
            length,
            "the lengths around the block at {at} differ"
        );
        match kind {
            SECTION => {
                assert_eq!(word(at + 8), 0x1a2b_3c4d, "byte order");
                interfaces = 0;
            }
            1 => interfaces += 1,
            6 => {
                assert!(word(at + 8) < interfaces, "the packet at {at} names no interface");
                let (captured, original) = (word(at + 20) as usize, word(at + 24) as usize);
                assert!(
                    captured <= original && 28 + captured + 4 <= length,
                    "the packet at {at} is not whole"
                );
                packets += 1;
            }
            _ => {}
        }
        at += length;
    }
    packets
}

/// Somebody reads pages, somebody scans ports and guesses passwords. The number of packets comes along.
fn attack() -> (Vec<Packet>, u64) {
    let (office, www) = (Ipv4Addr::new(10, 60, 1, 10), Ipv4Addr::new(10, 60, 2, 80));
    let attacker = Ipv4Addr::new(203, 0, 113, 9);
    let mut packets = Vec::new();
    for turn in 0..40_u64 {
        let port = 41_000 + turn as u16;
        packets.extend(capture::lookup(
            turn * 200_000,
            (office, port),
            Ipv4Addr::new(10, 60, 2, 53),
            "shop.test",
        ));
        packets.extend(capture::connection(
            turn * 200_000 + 10_000,
            (office, port),
            (www, 80),
            b"GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        ));
    }
    for port in 0..60_u16 {
        let at = 8_500_000 + u64::from(port) * 10_000;
        packets.extend(capture::refusal(at, (attacker, 50_000 + port), (office, 20 + port)));
    }
    for guess in 0..30_u16 {
        packets.extend(capture::connection(
            9_500_000 + u64::from(guess) * 30_000,
            (attacker, 52_000 + guess),
            (office, 8_080),
            format!("POST /login HTTP/1.1\r\nHost: office\r\nContent-Length: 7\r\n\r\nguess{guess:02}").as_bytes(),
            b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno",
        ));
    }
    let sum = packets.len() as u64;
    (packets, sum)
}

#[test]
fn the_loop_runs_on_captures() {
    let _alone = alone();
    let file = folder("capture").join("attack.pcap");
    let (packets, sum) = attack();
    capture::write(&file, 1_760_000_000, packets);
    // Cut off in the middle of one record more, as a capture is whose disk was full.
    let mut bytes = fs::read(&file).unwrap();
    bytes.extend_from_within(24..60);
    fs::write(&file, bytes).unwrap();
    let report = demo(&["--pcap", &file.display().to_string()]);
    assert_accounted(&report);
    assert_verified(&report, 2);
    assert_eq!(number(&report["packets"]), sum);
    assert_eq!(number(&report["flows"]), 40 * 2 + 60 + 30);
    assert!(number(&report["detectors"]["bruteforce.http"]) > 0, "{report:#}");
    assert!(
        report["detectors"]
            .as_object()
            .unwrap()
            .keys()
            .any(|name| name.starts_with("scan.")),
        "{report:#}"
    );
    assert!(number(&report["incidents"]) >= 1);
}

/// A fleet start each, so three.
#[test]
fn public_captures_run_through_the_loop() {
    let Some(corpora) = corpora("demo::public_captures_run_through_the_loop") else {
        return;
    };
    let _alone = alone();
    for file in corpus(&corpora) {
        let report = demo(&["--pcap", &file.display().to_string()]);
        eprintln!(
            "{}: {} packets, {} flows",
            file.display(),
            report["packets"],
            report["flows"]
        );
        assert_accounted(&report);
        assert_verified(&report, 1);
        assert!(number(&report["packets"]) > 0);
    }
}

/// Three captures of at most some megabytes: the smallest, the middle one, the largest.
fn corpus(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.join("packets")];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        for entry in entries.flatten() {
            let path = entry.path();
            let length = entry.metadata().map_or(0, |metadata| metadata.len());
            if path.is_dir() {
                folders.push(path);
            } else if path
                .extension()
                .is_some_and(|extension| extension == "pcap" || extension == "pcapng")
                && (1_000..20_000_000).contains(&length)
            {
                found.push((length, path));
            }
        }
    }
    found.sort();
    assert!(
        found.len() >= 3,
        "only {} captures under {}",
        found.len(),
        folder.display()
    );
    [0, found.len() / 2, found.len() - 1]
        .map(|at| found[at].1.clone())
        .to_vec()
}
