//! The configuration as text.

use super::*;

pub(crate) fn config(extra: &str) -> Result<Config, String> {
    let text = format!(
        r#"
[core.identity]
trust_domain = "test"
cert_file = "c"
key_file = "k"
ca_file = "a"
[core.bus]
urls = ["tls://localhost:4222"]
ca_file = "a"
cert_file = "c"
key_file = "k"
{extra}
"#
    );
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("anomaly.toml");
    std::fs::write(&path, text).unwrap();
    garrison_service::read_config(&path).map_err(|e| e.to_string())
}

#[test]
fn defaults_are_whole_and_make_settings() {
    let settings = config("").unwrap().settings();
    assert_eq!((settings.vertical.count, settings.vertical.loud), (15, 75));
    assert_eq!(settings.internal.len(), 6);
    assert!(settings.enabled.iter().all(|on| *on));
    assert_eq!(settings.bounds.flows, 262_144 / 16);
}

#[test]
fn what_cannot_be_used_is_named() {
    for (text, key) in [
        ("[model]\nalarm_rate = 0.5", "model.alarm_rate"),
        ("[model]\nalarm_rate = 0", "model.alarm_rate"),
        (
            "[budget.model]\nalerts_per_day = 0",
            "key `budget.model.alerts_per_day`: 0 is not 0.1 to 1000000",
        ),
        (
            "[budget.behaviour]\nalerts_per_day = nan",
            "budget.behaviour.alerts_per_day",
        ),
        (
            "[budget]\nnever_held = [\"scam.*\"]",
            "key `budget.never_held[0]`: \"scam.*\" is no detector",
        ),
        ("[budget]\nheld_days = 0", "budget.held_days"),
        ("[risk]\nhalf_life_seconds = 1", "risk.half_life_seconds"),
        ("[budget.model]\nnever_held_severity = \"worst\"", "never_held_severity"),
        (
            "[detectors.scan_vertical]\ndistinct = 1",
            "detectors.scan_vertical.distinct",
        ),
        ("[detectors.scan_vertical]\ndistinkt = 5", "detectors.scan_vertical"),
        ("[learning]\nmin_flows = 5", "learning.min_flows"),
        (
            "[detectors.contact_new_internal]\ninternal_networks = [\"10.0.0.0/99\"]",
            "internal_networks",
        ),
        ("[limits]\nflows = 1", "limits.flows"),
        ("[checkpoint]\ninterval_ms = 1", "checkpoint.interval_ms"),
        ("[replicas]\nlease_seconds = 1", "replicas.lease_seconds"),
        ("[replicas]\nname = \"a\\nb\"", "replicas.name"),
    ] {
        let error = config(text).unwrap_err();
        assert!(error.contains(key), "{text}: {error}");
    }
}
