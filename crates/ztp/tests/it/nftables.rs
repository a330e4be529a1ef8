//! nftables output: never wider than the documents, equal without gaps, and taken by the real nft.

use std::process::{Command, Stdio};

use garrison_ztp::{Policy, check, compile, document::Mode, ir::lower};
use proptest::{prelude::*, strategy::ValueTree as _, test_runner::TestRunner};

use crate::{
    generate::{connection, documents},
    nft_text::{Packet, Ruleset, Verdict},
    reference::{By, by_address, decide, denied},
};

proptest! {
    // 1,200 sets of policies × 24 connections.
    #![proptest_config(ProptestConfig { cases: crate::generate::cases(1_200), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn never_wider_and_equal_without_gaps(
        documents in documents(false, 4),
        connections in prop::collection::vec(connection(), 24),
    ) {
        let lowered: Vec<Policy> = documents.iter().map(|d| lower(d, 7)).collect();
        let compiled = compile::nftables(&lowered);
        let ruleset = Ruleset::read(&compiled.files[0].content);
        let enforced: Vec<_> = documents.iter().filter(|d| d.spec.mode == Mode::Enforce).collect();
        let exact = compiled.gaps.iter().all(|gap| gap.reason.contains("mode observe"));
        for (src, dst, protocol, port) in connections {
            let (src, dst) = (src.to_canonical(), dst.to_canonical());
            // A packet has one family, and one from a host to itself is never forwarded.
            if src == dst || src.is_ipv4() != dst.is_ipv4() {
                continue;
            }
            let intended = !denied(&decide(&enforced, &by_address(src), &by_address(dst), protocol, port, By::Address));
            let passed = ruleset.forward(&Packet { src, dst, protocol, port }) == Verdict::Accept;
            prop_assert!(!passed || intended, "wider: {} → {} {}/{}\n{}", src, dst, protocol, port, compiled.files[0].content);
            prop_assert!(!exact || passed == intended, "narrower without a gap: {} → {} {}/{}\n{}", src, dst, protocol, port, compiled.files[0].content);
        }
    }
}

/// Runs a shell line in a fresh user and network namespace.
pub(crate) fn in_namespace(script: &str, stdin: &str) -> (bool, String) {
    use std::io::Write as _;
    let mut child = Command::new("unshare")
        .args(["-Urn", "sh", "-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("unshare is missing: apt-get install util-linux");
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    (output.status.success(), text)
}

/// The tests of this file mean nothing without nft, so its absence fails them.
pub(crate) fn require_nft() {
    let (works, text) = in_namespace("command -v nft && nft --version && nft list ruleset", "");
    assert!(
        works,
        "nft does not work in a user namespace: apt-get install nftables, and allow user namespaces (sysctl kernel.unprivileged_userns_clone=1)\n{text}"
    );
}

#[test]
fn the_real_nft_takes_every_ruleset_twice() {
    require_nft();
    let mut runner = TestRunner::deterministic();
    let strategy = documents(false, 4);
    for _ in 0..40 {
        let documents = strategy.new_tree(&mut runner).unwrap().current();
        let lowered: Vec<Policy> = documents.iter().map(|d| lower(d, 7)).collect();
        let ruleset = &compile::nftables(&lowered).files[0].content;
        // Checked, loaded, and loaded over itself; what the kernel lists can be read back by nft.
        let script = "cat > /dev/shm/$$.nft; nft -c -f /dev/shm/$$.nft && nft -f /dev/shm/$$.nft && nft -f /dev/shm/$$.nft && nft list ruleset > /dev/shm/$$.out && nft -c -f /dev/shm/$$.out; rc=$?; rm -f /dev/shm/$$.nft /dev/shm/$$.out; exit $rc";
        let (taken, text) = in_namespace(script, ruleset);
        assert!(taken, "{text}\n{ruleset}");
    }
}

#[test]
fn the_lab_compiles_to_a_readable_ruleset() {
    let checked = check(crate::documents::LAB);
    let lowered: Vec<Policy> = checked.documents.iter().map(|d| d.lower(3)).collect();
    let compiled = compile::nftables(&lowered);
    assert_eq!(compiled.gaps, []);
    let text = &compiled.files[0].content;
    for line in [
        "        ct original ip saddr @peers_v4_1 meta l4proto tcp ct reply proto-src 5432 counter return comment \"database@3 from-web\"",
        "        counter drop comment \"database@3 default-deny\"",
        "        meta l4proto tcp ct reply proto-src @ports_2 counter return comment \"web@3 public\"",
        "            10.20.0.20 : jump ingress_1",
        "        ct reply ip saddr vmap @ingress_v4",
    ] {
        assert!(
            text.lines().any(|l| l.trim_end_matches(',') == line),
            "{line:?} is not in\n{text}"
        );
    }
}

#[test]
fn nothing_to_enforce_is_an_empty_table() {
    require_nft();
    let compiled = compile::nftables::<Policy>(&[]);
    let (taken, text) = in_namespace("nft -f -", &compiled.files[0].content);
    assert!(taken, "{text}");
}
