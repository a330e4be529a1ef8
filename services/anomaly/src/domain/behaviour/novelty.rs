//! What was never there: a client program that no host of the tenant used, a device that nobody saw, a connection that
//! does not end.

use arrow_array::Array as _;
use garrison_models::rng::mix;

use super::{Row, is_one_host};
use crate::domain::{
    detector::Detector,
    facts::{number, text},
    finding::{Finding, Target, service_name},
    shard::{Context, feature, feature_within},
    wide::{Crowd, Wide, host_hash, name_hash},
    window::{Nanos, Reach, SECOND},
};

/// Programs and devices that must be known before a new one says anything.
const LEAST_KNOWN: usize = 5;
/// A link address with more hosts behind it belongs to a router.
const ROUTER_HOSTS: f64 = 8.0;

/// `connection.long`: a connection to the outside that has lasted for hours.
pub fn long(wide: &Wide, row: &Row<'_>, context: &Context<'_>, out: &mut Vec<Finding>) {
    if !row.news.long || row.facts.dst_inside[row.i] || !context.settings.runs(Detector::ConnectionLong) {
        return;
    }
    let (i, dst) = (row.i, row.dst());
    let columns = row.columns;
    let sent = number(columns.src_bytes, i);
    if context.learning || !is_one_host(dst) || sent == 0 || number(columns.dst_packets, i) == 0 {
        return;
    }
    let settings = &context.settings.long;
    let name = text(columns.tls_sni, i).or_else(|| text(columns.http_host, i));
    let key = name.map_or_else(|| super::beacon::address_key(dst, row.dst_port()), name_hash);
    let hosts = wide.crowds.peek(&key).map_or(1.0, Crowd::hosts);
    if hosts >= settings.popular {
        return;
    }
    let lasted = columns.last_seen.value(i).saturating_sub(columns.first_seen.value(i));
    let (hours, limit) = (in_hours(lasted), in_hours(settings.after));
    let service = service_name(dst, row.dst_port(), row.protocol());
    let whom = name.unwrap_or(&service).to_owned();
    out.push(Finding {
        title: format!(
            "Connection of {} to {whom} that has lasted for {hours:.1} hours",
            row.src()
        ),
        confidence: 0.5,
        targets: vec![Target::Service(dst, row.dst_port(), row.protocol())],
        features: vec![
            feature_within(
                "duration",
                "h",
                hours,
                (context.usual)("duration") / 3_600.0,
                1.0,
                limit,
            ),
            feature("octets_sent", "octets", sent as f64, (context.usual)("src_bytes"), 0.0),
            feature_within("destination_hosts", "hosts", hosts.round(), 0.0, 0.0, settings.popular),
        ],
        score: hours,
        threshold: limit,
        ..Finding::of(Detector::ConnectionLong, row, whom)
    });
}

fn in_hours(time: Nanos) -> f64 {
    time as f64 / (3_600 * SECOND) as f64
}

// A user agent without its versions, which change all the time.
fn program(agent: &str) -> u64 {
    let mut hash = 0xCBF2_9CE4_8422_2325_u64;
    for byte in agent.bytes().filter(|b| !b.is_ascii_digit() && !b".:_-+".contains(b)) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3);
    }
    mix(hash ^ 0xA6E7)
}

/// `client.rare`: a TLS client (JA4) or user agent that no host of the tenant was seen with.
pub fn client(wide: &mut Wide, row: &Row<'_>, context: &Context<'_>, out: &mut Vec<Finding>) {
    if !row.news.client || !row.facts.src_inside[row.i] || !context.settings.runs(Detector::ClientRare) {
        return;
    }
    let i = row.i;
    let (src, time) = (row.src(), row.facts.time[i]);
    let ja4 = text(row.columns.ja4, i).map(|ja4| (mix(name_hash(ja4) ^ 0x1A4), "JA4", ja4));
    let agent = text(row.columns.http_user_agent, i).map(|agent| (program(agent), "user agent", agent));
    for (key, kind, what) in [ja4, agent].into_iter().flatten() {
        wide.dirty = true;
        let known = wide.clients.peek(&key).is_some();
        let crowd = wide.clients.get_or_insert_with(key, || Crowd {
            first: time,
            ..Crowd::default()
        });
        crowd.add(src);
        if known || !context.learnt || wide.clients.len() < LEAST_KNOWN || row.facts.dst_inside[i] {
            continue;
        }
        let what: String = what.chars().take(80).collect();
        out.push(Finding {
            title: format!("{src} uses a client that was never seen here: {kind} {what}"),
            confidence: 0.4,
            targets: vec![Target::Service(row.dst(), row.dst_port(), row.protocol())],
            features: vec![feature_within("hosts_with_client", "hosts", 1.0, 0.0, 1.0, 2.0)],
            ..Finding::of(Detector::ClientRare, row, format!("{kind} {what}"))
        });
    }
}

/// `device.new`: an internal device, by its link address or without one by its address, that was never seen.
pub fn device(wide: &mut Wide, row: &Row<'_>, context: &Context<'_>, out: &mut Vec<Finding>) {
    let i = row.i;
    if !row.news.settled
        || !row.facts.src_inside[i]
        || row.facts.reach[i] != Reach::Answered
        || !(context.learning || context.learnt)
        || !context.settings.runs(Detector::DeviceNew)
    {
        return;
    }
    let (src, time) = (row.src(), row.facts.time[i]);
    let fresh = || Crowd {
        first: time,
        ..Crowd::default()
    };
    let mut mac = None;
    if row.columns.src_mac.is_valid(i)
        && let Ok(bytes) = <[u8; 6]>::try_from(row.columns.src_mac.value(i))
    {
        let number = bytes.iter().fold(0_u64, |n, b| n << 8 | u64::from(*b));
        mac = Some((mix(number ^ 0x3AC0_0000_0000_0000), bytes));
    }
    let mut key = mix(host_hash(src) ^ 0xADD2);
    let mut link = None;
    let mut known = wide.devices.peek(&key).is_some();
    if let Some((by_mac, bytes)) = mac {
        let seen = wide.devices.peek(&by_mac).is_some();
        let crowd = wide.devices.get_or_insert_with(by_mac, fresh);
        crowd.add(src);
        // Behind a router, and on a device with several addresses, the link address says who is known.
        if crowd.hosts() < ROUTER_HOSTS {
            known = seen;
            key = by_mac;
            link = Some(bytes);
        }
    }
    let crowd = wide.devices.get_or_insert_with(key, fresh);
    let before = crowd.bits;
    crowd.add(src);
    wide.dirty |= before != crowd.bits;
    // Where the bound bites, what was forgotten would look new.
    if known || context.learning || wide.devices.len() < LEAST_KNOWN || wide.devices.evicted() > 0 {
        return;
    }
    let who = match link {
        Some(bytes) => bytes.map(|b| format!("{b:02x}")).join(":"),
        None => src.to_string(),
    };
    out.push(Finding {
        title: format!("Device that was never seen: {who} as {src}"),
        confidence: 0.4,
        targets: vec![Target::Host(src)],
        features: vec![feature("known_devices", "devices", wide.devices.len() as f64, 0.0, 0.0)],
        ..Finding::of(Detector::DeviceNew, row, who)
    });
}
