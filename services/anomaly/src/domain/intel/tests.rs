use garrison_flow::{FlowBatchBuilder, FlowRow, FlowState};
use garrison_intel::{Builder, Indicator, Span};

use super::*;
use crate::domain::{
    shard::tests::settings,
    tenant::{Arrival, Judged, Tenant},
};

const T0: Nanos = 1_767_323_045 * SECOND;

fn view(indicators: &[(&str, u8)]) -> View {
    let mut builder = Builder::new(100, 0);
    for (text, confidence) in indicators {
        let mut indicator = Indicator::of(match text.split_once('=') {
            Some((kind, value)) => Value::parse(Kind::of_name(kind).unwrap(), value).unwrap(),
            None => Value::guess(text, false).unwrap(),
        });
        indicator.labels = vec!["c2".to_owned()];
        indicator.span = Span::of(Some(T0 / SECOND - 100), Some(T0 / SECOND + 100));
        builder.add("feed", &indicator, *confidence, false).unwrap();
    }
    View {
        index: Arc::new(builder.build()),
        warnings: Arc::new(Warnings::built_in()),
        allowed: Arc::default(),
        grades: Grades { medium: 50, high: 80 },
        retroactive: false,
    }
}

fn row(src: &str, dst: &str) -> FlowRow<'static> {
    FlowRow {
        flow_id: [7; 16],
        state: FlowState::Active as u8,
        first_seen: T0 - SECOND,
        last_seen: T0,
        protocol: 6,
        src_ip: src.parse().unwrap(),
        dst_ip: dst.parse().unwrap(),
        dst_port: 443,
        ..FlowRow::default()
    }
}

fn tenant(view: View) -> Tenant {
    let mut tenant = Tenant::new("acme".parse().unwrap(), Arc::new(settings()), 16);
    tenant.intel = Some(view);
    tenant
}

fn judge(tenant: &mut Tenant, message: u8, rows: &[FlowRow<'_>]) -> Judged {
    let mut builder = FlowBatchBuilder::new(rows.len());
    rows.iter().for_each(|row| builder.push(row));
    tenant.judge(&Arrival {
        id: [message; 16],
        shard: 0,
        position: message.into(),
        published: T0,
        now: T0,
        batch: &builder.finish(),
    })
}

fn alerts(view: View, rows: &[FlowRow<'_>]) -> Vec<Alert> {
    let judged = judge(&mut tenant(view), 1, rows);
    judged
        .alerts
        .into_iter()
        .filter(|a| a.detector == "intel.match")
        .collect()
}

#[test]
fn every_field_of_a_flow_is_asked_about() {
    let md5 = "0123456789abcdef0123456789abcdef";
    let ja4 = "t13d1516h2_8daaf6152771_b186095e22b6";
    let certificate = "ab".repeat(32);
    let view = view(&[
        ("198.51.100.7", 90),
        ("203.0.113.0/24", 60),
        ("*.evil.example", 40),
        ("url=http://host.example/bad.php?x=1", 85),
        (&format!("ja3={md5}"), 70),
        (&format!("ja3s={md5}"), 70),
        (&format!("ja4={ja4}"), 70),
        (&format!("certificate={certificate}"), 70),
    ]);
    let inside = "10.0.0.5";
    let base = || row(inside, "192.0.3.1");
    for (row, field, title, severity) in [
        (
            row(inside, "198.51.100.7"),
            "dst_ip",
            "10.0.0.5 turned to 198.51.100.7, which feed lists as c2",
            Severity::High,
        ),
        (
            row("203.0.113.9", inside),
            "src_ip",
            "203.0.113.9, which feed lists as c2, turned to 10.0.0.5:443/tcp",
            Severity::Low,
        ),
        (
            FlowRow {
                tls_sni: Some("A.Evil.example"),
                ..base()
            },
            "tls_sni",
            "10.0.0.5 turned to A.Evil.example, which feed lists as c2",
            Severity::Low,
        ),
        (
            FlowRow {
                dns_query: Some("evil.example"),
                ..base()
            },
            "dns_query",
            "10.0.0.5 asked for evil.example, which feed lists as c2",
            Severity::Low,
        ),
        (
            FlowRow {
                http_host: Some("203.0.113.5:8080"),
                ..base()
            },
            "http_host",
            "10.0.0.5 turned to 203.0.113.5, which feed lists as c2",
            Severity::Medium,
        ),
        (
            FlowRow {
                http_host: Some("host.example"),
                http_uri: Some("/bad.php?x=1"),
                ..base()
            },
            "http_uri",
            "10.0.0.5 turned to host.example/bad.php?x=1, which feed lists as c2",
            Severity::High,
        ),
        (
            FlowRow {
                ja3: Some(md5),
                ..base()
            },
            "ja3",
            "10.0.0.5 met the JA3 fingerprint 0123456789abcdef0123456789abcdef, which feed lists as c2",
            Severity::Medium,
        ),
        (
            FlowRow {
                ja4: Some(ja4),
                ..base()
            },
            "ja4",
            "10.0.0.5 met the JA4 fingerprint t13d1516h2_8daaf6152771_b186095e22b6, which feed lists as c2",
            Severity::Medium,
        ),
        (
            FlowRow {
                tls_cert_sha256: Some(&certificate),
                ..base()
            },
            "tls_cert_sha256",
            &format!("10.0.0.5 met the certificate {certificate}, which feed lists as c2"),
            Severity::Medium,
        ),
    ] {
        let alerts = alerts(view.clone(), &[row]);
        assert_eq!(alerts.len(), 1, "{field}: {alerts:?}");
        let alert = &alerts[0];
        assert_eq!((alert.title.as_str(), alert.severity()), (title, severity));
        let indicator = &alert.indicators[0];
        assert_eq!((indicator.field.as_str(), indicator.source.as_str()), (field, "feed"));
        assert_eq!(f64::from(indicator.confidence), alert.confidence * 100.0);
        assert_eq!(alert.techniques.len(), usize::from(field != "src_ip"));
    }
    let clean = FlowRow {
        tls_sni: Some("fine.example"),
        ja3: Some("ffffffffffffffffffffffffffffffff"),
        ..base()
    };
    assert!(alerts(view, &[clean]).is_empty());
}

#[test]
fn a_flow_is_told_once_for_each_fact_and_flows_are_folded() {
    let mut tenant = tenant(view(&[("198.51.100.7", 90), ("evil.example", 90)]));
    let record = |seq: u32, flow: u8, sni: Option<&'static str>| FlowRow {
        flow_id: [flow; 16],
        record_seq: seq,
        tls_sni: sni,
        ..row("10.0.0.5", "198.51.100.7")
    };
    let mut told = |message: u8, row: FlowRow<'_>| {
        let judged = judge(&mut tenant, message, &[row]);
        judged.findings[Detector::IntelMatch.index()]
    };
    assert_eq!(told(1, record(0, 1, None)), 1);
    assert_eq!(told(2, record(1, 1, Some("evil.example"))), 1);
    assert_eq!(told(3, record(2, 1, Some("evil.example"))), 0);
    assert_eq!(told(4, record(0, 2, Some("evil.example"))), 2);
    let counted = tenant.alerts[Detector::IntelMatch.index()];
    assert_eq!(counted, 2);
}

#[test]
fn what_is_allowed_expired_or_used_by_everybody_is_not_told() {
    let flow = || row("10.0.0.5", "198.51.100.7");
    let listed = view(&[("198.51.100.0/24", 90)]);
    assert_eq!(alerts(listed.clone(), &[flow()]).len(), 1);
    for allowed in ["198.51.100.7", "198.51.100.0/24", "198.51.0.0/16"] {
        let allowed = View {
            allowed: Arc::new(Warnings::parse([allowed]).0),
            ..listed.clone()
        };
        assert!(alerts(allowed, &[flow()]).is_empty());
    }
    // A wide network has a resolver in it.
    let wide = view(&[("8.8.0.0/16", 90)]);
    assert!(alerts(wide.clone(), &[row("10.0.0.5", "8.8.8.8")]).is_empty());
    assert_eq!(alerts(wide, &[row("10.0.0.5", "8.8.9.9")]).len(), 1);
    for (offset, want) in [(-101, 0), (-100, 1), (100, 1), (101, 0)] {
        let at = T0 + offset * SECOND;
        let flow = FlowRow {
            first_seen: at,
            last_seen: at,
            ..flow()
        };
        // Published later than the record was made, so that the sensor's clock is believed.
        let mut builder = FlowBatchBuilder::new(1);
        builder.push(&flow);
        let mut told = HashMap::new();
        let found = listed.look_back(&builder.finish(), &settings(), T0 + 200 * SECOND, &mut told);
        assert_eq!(found.len(), want, "{offset}");
    }
}

#[test]
fn looking_back_believes_what_was_not_known_then() {
    let listed = View {
        retroactive: true,
        ..view(&[("198.51.100.7", 90), ("evil.example", 60)])
    };
    let early = |record_seq, seconds| FlowRow {
        record_seq,
        first_seen: T0 - seconds * SECOND,
        last_seen: T0 - seconds * SECOND,
        tls_sni: Some("evil.example"),
        ..row("10.0.0.5", "198.51.100.7")
    };
    let mut builder = FlowBatchBuilder::new(2);
    builder.push(&early(0, 3_600));
    builder.push(&early(1, 3_590));
    let found = listed.look_back(&builder.finish(), &settings(), T0, &mut HashMap::new());
    assert_eq!(found.len(), 2);
    assert!(found[0].indicators[0].retroactive);
    let mut tenant = tenant(listed);
    let alerts = tenant.look_back(3, &found, T0);
    assert_eq!(
        alerts.iter().map(|a| a.title.as_str()).collect::<Vec<_>>(),
        [
            "10.0.0.5 turned to 198.51.100.7, which feed lists as c2, before it was listed",
            "10.0.0.5 turned to evil.example, which feed lists as c2, before it was listed"
        ]
    );
    assert!(tenant.dirty[3]);
}

#[test]
fn a_value_is_looked_up_with_all_that_is_said_of_it() {
    let view = View {
        allowed: Arc::new(Warnings::parse(["evil.example"]).0),
        ..view(&[("*.evil.example", 40), ("a.evil.example", 60)])
    };
    let (matches, allowed) = view.lookup(&Value::guess("a.evil.example", false).unwrap());
    assert_eq!(matches.len(), 2);
    assert!(!allowed);
    assert_eq!(matches[0].kind, "domain-tree");
    assert!(matches[0].valid_from.is_some() && matches[0].valid_until.is_some());
    assert!(view.lookup(&Value::guess("evil.example", false).unwrap()).1);
}
