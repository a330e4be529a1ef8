//! Writes the seeds that our own programs make: after a change of a format, `cargo run -p garrison-fuzz --example seeds`.

#![allow(clippy::unwrap_used)]

use std::{fs, path::PathBuf};

use garrison_auth::token::{self, Claims, Rules};
use garrison_flow::{BatchMeta, FlowBatchBuilder, FlowRow, FlowState, LossLedger};
use garrison_proof::{
    SigningKey,
    bundle::{Counts, Manifest, ManifestFile, SCHEMA, SIGNING_KEY, Tool, write_bundle},
    custody::CustodyEntry,
};
use ring::{rand::SystemRandom, signature::Ed25519KeyPair};
use uuid::Uuid;

fn keep(target: &str, name: &str, content: &[u8]) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/corpus")
        .join(target);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(name), content).unwrap();
}

fn main() {
    let mut builder = FlowBatchBuilder::new(2);
    builder.push(&FlowRow::default());
    builder.push(&FlowRow {
        flow_id: [7; 16],
        state: FlowState::Ended as u8,
        sensor: "edge",
        first_seen: 1,
        last_seen: 2,
        protocol: 6,
        src_ip: "10.0.0.7".parse().unwrap(),
        dst_ip: "2001:db8::80".parse().unwrap(),
        src_port: 40_000,
        dst_port: 443,
        community_id: "1:abc",
        src_packets: Some(3),
        service: Some("tls"),
        ..FlowRow::default()
    });
    let meta = BatchMeta {
        tenant: "acme".parse().unwrap(),
        sensor: "edge".into(),
        batch_seq: 7,
        ledger: LossLedger::default(),
    };
    keep(
        "flow_batch",
        "two",
        &garrison_flow::encode(&builder.finish(), &meta).unwrap(),
    );
    keep(
        "flow_batch",
        "none",
        &garrison_flow::encode(&FlowBatchBuilder::new(1).finish(), &meta).unwrap(),
    );

    let key = SigningKey::from_pkcs8_pem(&SigningKey::generate_pkcs8_pem().unwrap()).unwrap();
    let custody = CustodyEntry::following(None, "2026-01-01T00:00:00Z", "users/1", "created", "");
    let line = format!("{}\n", serde_line(&custody));
    let contents = [
        ("README.txt", b"read me\n".to_vec()),
        ("alerts.jsonl", b"{}\n{}\n".to_vec()),
        ("custody.jsonl", line.into_bytes()),
    ];
    let listed = |path: &str, content: &[u8]| ManifestFile {
        path: path.into(),
        bytes: content.len() as u64,
        sha256: hex::encode(garrison_proof::sha256(content)),
        media_type: "text/plain".into(),
        description: "a seed".into(),
    };
    let mut files = vec![listed(SIGNING_KEY, key.public().spki_pem().as_bytes())];
    files.extend(contents.iter().map(|(path, content)| listed(path, content)));
    let manifest = Manifest {
        schema: SCHEMA.into(),
        bundle: "bundles/0190".into(),
        tenant: "acme".into(),
        incident: "incidents/0190".into(),
        created: "2026-01-01T00:00:00Z".into(),
        author: "users/1".into(),
        tool: Tool {
            name: "seeds".into(),
            version: "1".into(),
        },
        counts: Counts::default(),
        files,
        omissions: vec![],
        key_id: key.public().key_id(),
        custody_head: custody.hash,
    };
    let open = |file: &ManifestFile| {
        let (_, content) = contents.iter().find(|(path, _)| *path == file.path).unwrap();
        Ok(&content[..])
    };
    let (archive, _) = write_bundle(Vec::new(), &manifest, &key, open).unwrap();
    keep("bundle", "small.tar", &archive);

    let pair = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
    let pair = Ed25519KeyPair::from_pkcs8(pair.as_ref()).unwrap();
    let rules = Rules::for_trust_domain("garrison.local");
    let claims = Claims {
        iss: rules.issuer,
        aud: rules.audience,
        sub: format!("users/{}", Uuid::nil()),
        preferred_username: "eva".into(),
        tenant: "acme".parse().unwrap(),
        sid: Uuid::nil(),
        roles: vec!["analyst".into()],
        amr: vec!["pwd".into(), "otp".into()],
        iat: 1_800_000_000,
        nbf: 1_800_000_000,
        exp: 1_800_000_300,
        jti: Uuid::nil(),
    };
    keep("token", "analyst", token::sign(&pair, "k1", &claims).as_bytes());
}

fn serde_line(entry: &CustodyEntry) -> String {
    format!(
        "{{\"sequence\":{},\"time\":\"{}\",\"actor\":\"{}\",\"action\":\"{}\",\"detail\":\"{}\",\"previous\":\"{}\",\"hash\":\"{}\"}}",
        entry.sequence, entry.time, entry.actor, entry.action, entry.detail, entry.previous, entry.hash
    )
}
