use std::process::Command;

use proptest::prelude::*;

use super::{verify::content, *};
use crate::{custody::CustodyEntry, tar::Reader};

fn key() -> SigningKey {
    SigningKey::from_pkcs8_pem(&SigningKey::generate_pkcs8_pem().unwrap()).unwrap()
}

fn file(path: &str, content: &[u8]) -> ManifestFile {
    ManifestFile {
        path: path.into(),
        bytes: content.len() as u64,
        sha256: hex::encode(crate::sha256(content)),
        media_type: "text/plain".into(),
        description: "a test".into(),
    }
}

fn contents() -> Vec<(&'static str, Vec<u8>)> {
    let custody = CustodyEntry::following(None, "2026-01-01T00:00:00Z", "users/1", "created", "");
    vec![
        ("README.txt", b"read me\n".to_vec()),
        ("alerts.jsonl", b"{}\n{}\n".to_vec()),
        ("flows.parquet", vec![42; 700]),
        (
            CUSTODY,
            [serde_json::to_vec(&custody).unwrap(), b"\n".to_vec()].concat(),
        ),
    ]
}

fn manifest(key: &SigningKey) -> Manifest {
    let mut files = vec![file(SIGNING_KEY, key.public().spki_pem().as_bytes())];
    files.extend(contents().iter().map(|(path, content)| file(path, content)));
    let head = CustodyEntry::following(None, "2026-01-01T00:00:00Z", "users/1", "created", "").hash;
    Manifest {
        schema: SCHEMA.into(),
        bundle: "bundles/0190".into(),
        tenant: "acme".into(),
        incident: "incidents/0190".into(),
        created: "2026-01-01T00:00:00Z".into(),
        author: "users/1".into(),
        tool: Tool {
            name: "test".into(),
            version: "1".into(),
        },
        counts: Counts {
            alerts: 2,
            ..Counts::default()
        },
        files,
        omissions: vec![],
        key_id: key.public().key_id(),
        custody_head: head,
    }
}

fn seal(key: &SigningKey, manifest: &Manifest, contents: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let open = |file: &ManifestFile| {
        let content = contents
            .iter()
            .find(|(path, _)| *path == file.path)
            .map(|(_, c)| c.clone());
        Ok(io::Cursor::new(content.unwrap()))
    };
    write_bundle(Vec::new(), manifest, key, open).unwrap().0
}

#[test]
fn a_sealed_bundle_holds_and_two_seals_are_equal() {
    let key = key();
    let manifest = manifest(&key);
    let bytes = seal(&key, &manifest, &contents());
    assert_eq!(bytes, seal(&key, &manifest, &contents()));
    let report = verify_bundle(&bytes[..], Some(&key.public().key_id())).unwrap();
    assert_eq!(report.manifest, manifest);
    assert_eq!(report.sha256, hex::encode(crate::sha256(&bytes)));
    assert_eq!(report.custody_entries, 1);
    assert!(verify_bundle(&bytes[..], Some("00")).is_err());
}

#[test]
fn public_tools_verify_it() {
    let key = key();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("b.tar"), seal(&key, &manifest(&key), &contents())).unwrap();
    let run = |script: &str| {
        let out = Command::new("sh")
            .arg("-ec")
            .arg(script)
            .current_dir(dir.path())
            .output()
            .unwrap();
        (
            out.status.success(),
            String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr),
        )
    };
    assert!(
        run("command -v openssl && command -v sha256sum && command -v tar").0,
        "openssl, sha256sum or tar is missing: apt-get install openssl coreutils tar"
    );
    let verify = "tar -xf b.tar && cd evidence-* && sha256sum --strict -c SHA256SUMS && \
        openssl pkeyutl -verify -pubin -inkey signing-key.pem -rawin -in manifest.json -sigfile manifest.json.sig && \
        openssl pkeyutl -verify -pubin -inkey signing-key.pem -rawin -in SHA256SUMS -sigfile SHA256SUMS.sig";
    let (good, output) = run(verify);
    assert!(good && output.contains("Signature Verified Successfully"), "{output}");
    let (same, id) = run("cd evidence-* && openssl pkey -pubin -in signing-key.pem -outform DER | sha256sum");
    assert!(same && id.starts_with(&key.public().key_id()), "{id}");
    let (changed, _) =
        run("cd evidence-* && chmod u+w alerts.jsonl && echo >> alerts.jsonl && sha256sum -c SHA256SUMS");
    assert!(!changed);
}

/// Takes an archive apart and puts it together again after a change.
fn repack(bytes: &[u8], change: impl Fn(&mut Vec<(String, Vec<u8>)>)) -> Vec<u8> {
    let mut reader = Reader::new(bytes);
    let mut files = Vec::new();
    let mut mtime = 0;
    while let Some(entry) = reader.next_entry().unwrap() {
        mtime = entry.mtime;
        let body = content(&mut reader, &entry, u64::MAX).unwrap();
        files.push((entry.path, body));
    }
    change(&mut files);
    let mut writer = Writer::new(Vec::new(), mtime);
    for (path, body) in files {
        writer.file(&path, body.len() as u64, &mut &body[..]).unwrap();
    }
    writer.finish().unwrap()
}

#[test]
fn missing_extra_renamed_and_moved_files_are_found() {
    let key = key();
    let good = seal(&key, &manifest(&key), &contents());
    let at = |files: &[(String, Vec<u8>)], name: &str| files.iter().position(|(p, _)| p.ends_with(name)).unwrap();
    verify_bundle(&repack(&good, |_| {})[..], None).unwrap();
    for name in [
        MANIFEST,
        SIGNATURE,
        SIGNING_KEY,
        SUMS,
        SUMS_SIGNATURE,
        "README.txt",
        "alerts.jsonl",
        CUSTODY,
    ] {
        let bad = repack(&good, |f| {
            f.remove(at(f, name));
        });
        let error = verify_bundle(&bad[..], None).unwrap_err().to_string();
        assert!(error.contains("missing"), "{name}: {error}");
        let bad = repack(&good, |f| {
            let i = at(f, name);
            f[i].0.push('x');
        });
        assert!(verify_bundle(&bad[..], None).is_err(), "{name} renamed");
    }
    let bad = repack(&good, |f| f.push(("evidence-0190/more".into(), vec![])));
    assert!(matches!(verify_bundle(&bad[..], None), Err(BundleError::Extra { .. })));
    let bad = repack(&good, |f| {
        let last = f.len() - 1;
        f.swap(last, last - 1);
    });
    assert!(matches!(
        verify_bundle(&bad[..], None),
        Err(BundleError::Missing { .. })
    ));
}

#[test]
fn a_bundle_signed_again_by_another_key_is_not_the_trusted_one() {
    let (ours, theirs) = (key(), key());
    let forged = seal(&theirs, &manifest(&theirs), &contents());
    verify_bundle(&forged[..], None).unwrap();
    let error = verify_bundle(&forged[..], Some(&ours.public().key_id())).unwrap_err();
    assert!(matches!(error, BundleError::OtherKey { .. }));
    assert_eq!(error.code(), "GAR-PROOF-0005");
}

#[test]
fn a_custody_log_that_was_cut_before_sealing_does_not_hold() {
    let key = key();
    let mut manifest = manifest(&key);
    manifest.custody_head = "00".into();
    let bytes = seal(&key, &manifest, &contents());
    assert!(matches!(
        verify_bundle(&bytes[..], None),
        Err(BundleError::Changed { .. })
    ));
}

#[test]
fn every_flipped_byte_is_found() {
    let key = key();
    let good = seal(&key, &manifest(&key), &contents());
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        assert!(verify_bundle(&bad[..], None).is_err(), "byte {at} of {}", good.len());
    }
}

proptest! {
    #[test]
    fn cuts_and_garbage_are_errors(cut in any::<prop::sample::Index>(), tail in proptest::collection::vec(any::<u8>(), 0..600)) {
        let key = key();
        let good = seal(&key, &manifest(&key), &contents());
        let mut bad = good[..cut.index(good.len())].to_vec();
        bad.extend_from_slice(&tail);
        if bad != good {
            prop_assert!(verify_bundle(&bad[..], None).is_err());
        }
    }
}
