use proptest::prelude::*;

use super::*;
use crate::key::SigningKey;

const ORIGIN: &str = "garrison.dev/lab/acme";

fn key() -> SigningKey {
    SigningKey::from_pkcs8_pem(&SigningKey::generate_pkcs8_pem().unwrap()).unwrap()
}

fn body(i: u64) -> String {
    format!("{{\"action\":\"test\",\"record_id\":\"{i}\"}}")
}

fn checkpoint(size: u64) -> Checkpoint {
    let mut tree = Tree::new();
    for i in 0..size {
        tree.push(merkle::leaf_hash(body(i).as_bytes()), |_, _| {});
    }
    Checkpoint {
        origin: ORIGIN.into(),
        size,
        root: tree.root(),
        extensions: vec![],
    }
}

fn export(size: u64, key: &SigningKey) -> Vec<u8> {
    let note = checkpoint(size).sign(key).unwrap();
    let verifier = VerifierKey::new(ORIGIN, key.public()).unwrap().to_string();
    let mut writer = ExportWriter::new(Vec::new(), &note, &verifier).unwrap();
    for i in 0..size {
        writer.entry(i, body(i).as_bytes()).unwrap();
    }
    writer.finish().unwrap().0
}

fn verify(bytes: &[u8]) -> Result<ExportReport, ExportError> {
    verify_export(bytes, &ExportOptions::default())
}

/// Changes lines, given as JSON values, and writes them in the file's form again.
fn edit(bytes: &[u8], change: impl Fn(&mut Vec<serde_json::Value>)) -> Vec<u8> {
    let lines = bytes.split(|b| *b == b'\n').filter(|l| !l.is_empty());
    let mut lines = lines.map(|l| serde_json::from_slice(l).unwrap()).collect();
    change(&mut lines);
    let mut out = Vec::new();
    write_line(&mut out, &serde_json::from_value::<Header>(lines.remove(0)).unwrap()).unwrap();
    for line in lines {
        write_line(&mut out, &serde_json::from_value::<Line>(line).unwrap()).unwrap();
    }
    out
}

#[test]
fn a_whole_log_holds_whatever_its_size() {
    let key = key();
    for size in 0..40 {
        let report = verify(&export(size, &key)).unwrap();
        assert_eq!(report.checkpoint.size, size);
        assert!(!report.key_trusted);
    }
}

#[test]
fn says_which_entry_was_changed() {
    let key = key();
    let good = export(21, &key);
    for i in 0..21usize {
        let bad = edit(&good, |l| l[i + 1]["body"] = "{}".into());
        assert!(matches!(verify(&bad), Err(ExportError::Changed { index }) if index == i as u64));
        // With the leaf hash made to fit, the smallest subtree around it tells.
        let bad = edit(&good, |l| {
            l[i + 1]["body"] = "{}".into();
            l[i + 1]["leaf_hash"] = hex::encode(merkle::leaf_hash(b"{}")).into();
        });
        match verify(&bad) {
            Err(ExportError::Altered { first, last }) => {
                assert!((first..=last).contains(&(i as u64)));
                assert!(last - first <= 1 || i == 20, "{first}..{last} for {i}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn says_which_entry_was_removed_or_moved() {
    let key = key();
    let good = export(21, &key);
    for i in 0..21usize {
        let bad = edit(&good, |l| {
            l.remove(i + 1);
        });
        match verify(&bad) {
            Err(ExportError::OutOfOrder { expected, .. }) => assert_eq!(expected, i as u64),
            Err(ExportError::Cut { first: 20, last: 20 }) => assert_eq!(i, 20),
            other => panic!("{other:?}"),
        }
        // Renumbered, so that no gap shows.
        let bad = edit(&good, |l| {
            l.remove(i + 1);
            for (at, line) in l.iter_mut().enumerate().skip(1) {
                line["index"] = (at as u64 - 1).into();
            }
        });
        assert!(matches!(
            verify(&bad),
            Err(ExportError::Altered { .. } | ExportError::Cut { .. })
        ));
        if i < 20 {
            let bad = edit(&good, |l| l.swap(i + 1, i + 2));
            assert!(matches!(verify(&bad), Err(ExportError::OutOfOrder { expected, .. }) if expected == i as u64));
            let bad = edit(&good, |l| {
                l.swap(i + 1, i + 2);
                l[i + 1]["index"] = (i as u64).into();
                l[i + 2]["index"] = (i as u64 + 1).into();
            });
            assert!(matches!(verify(&bad), Err(ExportError::Altered { .. })));
        }
    }
    let bad = edit(&good, |l| l.push(l[21].clone()));
    assert!(matches!(verify(&bad), Err(ExportError::OutOfOrder { .. })));
}

#[test]
fn an_entry_too_many_is_found() {
    let key = key();
    let (small, large) = (export(5, &key), export(6, &key));
    let header = small.split(|b| *b == b'\n').next().unwrap().to_vec();
    let rest = large.splitn(2, |b| *b == b'\n').nth(1).unwrap();
    let bad = [&header, &b"\n"[..], rest].concat();
    assert!(matches!(verify(&bad), Err(ExportError::Extra { index: 5 })));
}

#[test]
fn only_a_changed_helper_hash_is_told_apart() {
    let key = key();
    let bad = edit(&export(8, &key), |l| l[4]["nodes"][0] = "00".into());
    assert!(matches!(verify(&bad), Err(ExportError::Nodes { index: 3 })));
}

#[test]
fn a_log_that_was_written_anew_does_not_extend_what_was_seen() {
    let key = key();
    let options = |earlier| ExportOptions {
        trusted_key: Some(VerifierKey::new(ORIGIN, key.public()).unwrap()),
        earlier: Some(earlier),
    };
    let bytes = export(21, &key);
    let report = verify_export(&bytes[..], &options(checkpoint(13))).unwrap();
    assert!(report.key_trusted && report.extends_earlier);
    let mut other = checkpoint(13);
    other.root[0] ^= 1;
    assert!(matches!(
        verify_export(&bytes[..], &options(other)),
        Err(ExportError::Rewritten { size: 13 })
    ));
    assert!(matches!(
        verify_export(&bytes[..], &options(checkpoint(22))),
        Err(ExportError::Rewritten { size: 22 })
    ));
    let stranger = ExportOptions {
        trusted_key: Some(VerifierKey::new(ORIGIN, self::key().public()).unwrap()),
        earlier: None,
    };
    assert!(matches!(
        verify_export(&bytes[..], &stranger),
        Err(ExportError::OtherKey { .. })
    ));
}

#[test]
fn a_writer_refuses_what_the_checkpoint_does_not_cover() {
    let key = key();
    let note = checkpoint(3).sign(&key).unwrap();
    let verifier = VerifierKey::new(ORIGIN, key.public()).unwrap().to_string();
    let mut writer = ExportWriter::new(Vec::new(), &note, &verifier).unwrap();
    writer.entry(0, body(0).as_bytes()).unwrap();
    assert!(writer.entry(2, b"{}").is_err());
    assert!(writer.entry(1, &[0xff]).is_err());
    assert!(matches!(writer.finish(), Err(ExportError::Cut { first: 1, last: 2 })));
}

proptest! {
    #[test]
    fn any_flipped_byte_is_found(at in any::<prop::sample::Index>(), mask in 1u8..=255) {
        let key = key();
        let mut bad = export(9, &key);
        let at = at.index(bad.len());
        bad[at] ^= mask;
        prop_assert!(verify(&bad).is_err());
    }

    #[test]
    fn garbage_does_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = verify(&bytes);
    }
}
