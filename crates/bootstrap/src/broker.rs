use std::path::Path;

use garrison_bus::topology::{self, EnforcerNode};

use crate::IdentityFiles;

/// The configuration of nats-server: JetStream in files that are synced before it acknowledges, mutual TLS, and for
/// every identity exactly the permissions that the topology gives it. Paths are as the broker sees them.
pub fn broker_config(
    listen: &str,
    store: &Path,
    files: &IdentityFiles,
    trust_domain: &str,
    enforcers: &[EnforcerNode],
) -> String {
    format!(
        "listen: \"{listen}\"\nserver_name: garrison\nmax_payload: 8388608\n\
         jetstream {{ store_dir: \"{}\", sync_interval: always, max_memory_store: 67108864 }}\n\
         tls {{ cert_file: \"{}\", key_file: \"{}\", ca_file: \"{}\", verify_and_map: true }}\n{}",
        store.display(),
        files.cert_file.display(),
        files.key_file.display(),
        files.ca_file.display(),
        topology::server_permissions(trust_domain, enforcers),
    )
}
