//! Checkpoints as protobuf. Fields may be added; numbers are never used again. Maps are written least recently used
//! first, so that a restored one evicts in the same order.

use std::sync::Arc;

use garrison_bus::subject::SHARDS;
use garrison_proto::TenantId;
use prost::Message as _;

use crate::{
    domain::{
        activity::{BUCKETS, Bucket, Distinct, SourceActivity},
        bounded::BoundedMap,
        features::{FEATURES, WIDTH},
        finding::Fold,
        network::Network,
        reservoir::Reservoir,
        settings::Settings,
        shard::{Contacts, FlowMemory, Shard},
        spot::{Peak, Spot, SpotState},
        tenant::{Learning, Live, Origin, Phase, Tenant},
        window::{Attempt, CountWindow, DistinctWindow, FlowRef, Host},
    },
    error::Error,
    store::entries::{entries, fill},
    store::form::{
        BucketState, ContactsState, EventState, FlowRefState, FlowState, FoldState, LearningState, ShardState,
        SourceState, TenantState, ThresholdState, WindowState,
    },
};

/// Version of the form. A checkpoint of a newer one is refused.
pub(super) const VERSION: u32 = 2;
/// The oldest that is read: what it lacks begins anew.
const OLDEST: u32 = 1;

/// Writes a tenant's own state.
pub fn write_tenant(tenant: &Tenant) -> Vec<u8> {
    let learning = match &tenant.phase {
        Phase::Learning(learning) | Phase::Training(learning) => {
            let (rows, chance) = learning.sample.state();
            Some(LearningState {
                started: learning.started,
                automatic: learning.automatic,
                first: learning.window.0,
                last: learning.window.1,
                rows: rows.to_vec(),
                offered: learning.sample.offered(),
                chance,
                features: FEATURES.iter().map(|f| f.name.to_owned()).collect(),
                origin: match learning.origin {
                    Origin::Period => 0,
                    Origin::WholePeriod => 1,
                    Origin::Recent => 2,
                },
                tags: learning.tags.clone(),
            })
        }
        Phase::Idle | Phase::Scoring => None,
    };
    let threshold = tenant.live.as_ref().map(|live| spot_state(&live.spot));
    TenantState {
        version: VERSION,
        phase: tenant.phase.to_proto() as u32,
        learning,
        model_version: tenant.version,
        threshold,
        alerts: tenant.alerts.to_vec(),
        recent_messages: tenant.recent.iter().flatten().copied().collect(),
        applied: tenant.applied,
        trained: tenant.live.as_ref().map_or(0, |live| live.trained),
        budgets: super::budget::write(&tenant.budgets),
        roles: Some(super::roles::write(&tenant.models)),
    }
    .encode_to_vec()
}

pub(super) fn spot_state(spot: &Spot) -> ThresholdState {
    let state = spot.state();
    ThresholdState {
        base: state.base,
        threshold: state.threshold,
        tail: state.tail.map(|(a, b)| vec![a, b]).unwrap_or_default(),
        peaks: state.peaks.iter().map(|p| p.excess).collect(),
        alarms: state.peaks.iter().map(|p| p.alarm).collect(),
        represented: state.represented,
        peaks_until_fit: state.peaks_until_fit,
        drift: state.drift,
        drift_sum: state.drift_sum,
        observed: state.observed,
        exceeded: state.exceeded,
    }
}

/// Reads a tenant's own state. `Some` version when a model belongs to it, which [`attach_model`] then adds.
///
/// # Errors
/// [`Error::State`].
pub fn read_tenant(id: &TenantId, settings: Arc<Settings>, bytes: &[u8]) -> Result<(Tenant, Option<Threshold>), Error> {
    let wrong = |problem: String| Error::State {
        tenant: id.clone(),
        problem,
    };
    let state = TenantState::decode(bytes).map_err(|e| wrong(e.to_string()))?;
    check_version(state.version).map_err(wrong)?;
    let mut tenant = Tenant::new(id.clone(), settings, SHARDS);
    let learning = state.learning.and_then(|learning| {
        // After an upgrade that changed the features, learning starts again.
        let same = learning
            .features
            .iter()
            .map(String::as_str)
            .eq(FEATURES.iter().map(|f| f.name));
        same.then(|| {
            let sample = Reservoir::restore(
                WIDTH,
                tenant.settings.sample_rows,
                learning.rows,
                learning.offered,
                learning.chance,
            );
            let mut tags = learning.tags;
            tags.resize(sample.len(), 0);
            Learning {
                started: learning.started,
                automatic: learning.automatic,
                origin: match learning.origin {
                    1 => Origin::WholePeriod,
                    2 => Origin::Recent,
                    _ => Origin::Period,
                },
                tags,
                window: (learning.first, learning.last),
                sample,
            }
        })
    });
    tenant.phase = match (state.phase, learning) {
        (2, Some(learning)) => Phase::Learning(learning),
        (3, Some(learning)) => Phase::Training(learning),
        (4, _) => Phase::Scoring,
        _ => Phase::Idle,
    };
    tenant.version = state.model_version;
    for (slot, n) in tenant.alerts.iter_mut().zip(state.alerts) {
        *slot = n;
    }
    for id in state.recent_messages.as_chunks::<16>().0 {
        tenant.recent.insert(*id);
    }
    tenant.applied = state.applied;
    super::budget::read(&mut tenant.budgets, state.budgets);
    super::roles::read(&mut tenant.models, state.roles);
    let threshold = state.threshold.map(|state| Threshold {
        trained: 0,
        state: threshold_state(state),
    });
    let trained = state.trained;
    Ok((tenant, threshold.map(|t| Threshold { trained, ..t })))
}

/// The saved threshold of a model.
#[derive(Debug)]
pub struct Threshold {
    trained: i64,
    state: SpotState,
}

/// Puts the model that belongs to the saved state back to work.
pub fn attach_model(tenant: &mut Tenant, model: Network, threshold: Threshold) {
    tenant.live = Some(Live {
        model: Arc::new(model),
        spot: Spot::restore(tenant.settings.spot, threshold.state),
        trained: threshold.trained,
    });
}

pub(super) fn threshold_state(state: ThresholdState) -> SpotState {
    SpotState {
        base: state.base,
        threshold: state.threshold,
        tail: match state.tail[..] {
            [shape, scale] => Some((shape, scale)),
            _ => None,
        },
        peaks: state
            .peaks
            .into_iter()
            .zip(state.alarms)
            .map(|(excess, alarm)| Peak { excess, alarm })
            .collect(),
        represented: state.represented,
        peaks_until_fit: state.peaks_until_fit,
        drift: state.drift,
        drift_sum: state.drift_sum,
        observed: state.observed,
        exceeded: state.exceeded,
    }
}

/// Writes a shard.
pub fn write_shard(shard: &Shard) -> Vec<u8> {
    let flows = shard.flows.iter().map(|(id, memory)| FlowState {
        id: id.to_vec(),
        record_seq: memory.record_seq,
        src_bytes: memory.src_bytes,
        auth_failures: memory.auth_failures,
        failed: memory.failed,
        contact: memory.contact,
        once: memory.once.into(),
        questions: memory.questions,
    });
    let bucket = |b: &Bucket| BucketState {
        index: b.index,
        flows: b.flows,
        failed: b.failed,
        bytes: b.bytes,
        hosts: b.hosts.0.to_vec(),
        ports: b.ports.0.to_vec(),
    };
    let sources = shard.sources.iter().map(|(source, activity)| SourceState {
        source: host(*source),
        buckets: activity.buckets.iter().map(bucket).collect(),
    });
    let vertical = shard.vertical.iter().map(|((src, dst), window)| WindowState {
        source: host(*src),
        destination: host(*dst),
        latest: window.latest(),
        told: window.told(),
        events: window
            .attempts()
            .map(|a| EventState {
                protocol: a.value.0.into(),
                port: a.value.1.into(),
                ..attempt(a)
            })
            .collect(),
        ..WindowState::default()
    });
    let horizontal = shard
        .horizontal
        .iter()
        .map(|((src, (protocol, port)), window)| WindowState {
            source: host(*src),
            protocol: (*protocol).into(),
            port: (*port).into(),
            latest: window.latest(),
            told: window.told(),
            events: window
                .attempts()
                .map(|a| EventState {
                    host: host(a.value),
                    ..attempt(a)
                })
                .collect(),
            ..WindowState::default()
        });
    let contacts = shard.contacts.iter().map(|(source, contacts)| ContactsState {
        source: host(*source),
        known: contacts
            .known
            .iter()
            .map(|(dst, port, protocol)| EventState {
                host: host(*dst),
                port: (*port).into(),
                protocol: (*protocol).into(),
                ..EventState::default()
            })
            .collect(),
        overflowed: contacts.overflowed,
    });
    let folds = shard.folds.iter().map(|(fingerprint, fold)| FoldState {
        fingerprint: fingerprint.to_vec(),
        opened: fold.opened,
        first_seen: fold.first_seen,
        count: fold.count,
        next: fold.next,
        period: fold.period,
        period_score: fold.period_score,
        loud: fold.loud,
        held: fold.held,
    });
    ShardState {
        version: VERSION,
        flows: flows.collect(),
        sources: sources.collect(),
        vertical: vertical.collect(),
        horizontal: horizontal.collect(),
        logins: counts(&shard.logins),
        sessions: counts(&shard.sessions),
        contacts: contacts.collect(),
        folds: folds.collect(),
        channels: entries(&shard.channels),
        zones: entries(&shard.zones),
        asked: entries(&shard.asked),
        volumes: entries(&shard.volumes),
        tried: entries(&shard.tried),
        lateral: counts(&shard.lateral),
    }
    .encode_to_vec()
}

/// Reads a shard. Where bounds have become smaller, the least active entries are left out.
///
/// # Errors
/// [`Error::State`].
pub fn read_shard(id: &TenantId, settings: &Settings, bytes: &[u8]) -> Result<Shard, Error> {
    let wrong = |problem: String| Error::State {
        tenant: id.clone(),
        problem,
    };
    let state = ShardState::decode(bytes).map_err(|e| wrong(e.to_string()))?;
    check_version(state.version).map_err(wrong)?;
    let mut shard = Shard::new(settings.bounds);
    for f in state.flows {
        let memory = FlowMemory {
            record_seq: f.record_seq,
            src_bytes: f.src_bytes,
            auth_failures: f.auth_failures,
            failed: f.failed,
            contact: f.contact,
            once: f.once as u8,
            questions: f.questions,
        };
        shard.flows.get_or_insert_with(sixteen(&f.id), || memory);
    }
    for s in state.sources {
        let mut activity = SourceActivity::default();
        for (slot, b) in activity.buckets.iter_mut().zip(s.buckets.iter().take(BUCKETS)) {
            *slot = Bucket {
                index: b.index,
                flows: b.flows,
                failed: b.failed,
                bytes: b.bytes,
                hosts: distinct(&b.hosts),
                ports: distinct(&b.ports),
            };
        }
        shard.sources.get_or_insert_with(read_host(&s.source), || activity);
    }
    for w in state.vertical {
        let key = (read_host(&w.source), read_host(&w.destination));
        let window = window(&w, |e| (e.protocol as u8, e.port as u16));
        shard.vertical.get_or_insert_with(key, || window);
    }
    for w in state.horizontal {
        let key = (read_host(&w.source), (w.protocol as u8, w.port as u16));
        let window = window(&w, |e| read_host(&e.host));
        shard.horizontal.get_or_insert_with(key, || window);
    }
    for (windows, map) in [
        (state.logins, &mut shard.logins),
        (state.sessions, &mut shard.sessions),
        (state.lateral, &mut shard.lateral),
    ] {
        for w in windows {
            let key = (read_host(&w.source), read_host(&w.destination), w.port as u16);
            let events = w
                .events
                .iter()
                .filter_map(|e| Some((e.time, e.count, flow_ref(e.flow.as_ref()?))));
            let window = CountWindow::restore(events.collect(), w.latest);
            map.get_or_insert_with(key, || window);
        }
    }
    for c in state.contacts {
        let known = c
            .known
            .iter()
            .map(|e| (read_host(&e.host), e.port as u16, e.protocol as u8));
        let mut known: Vec<_> = known.take(settings.bounds.contacts_a_source).collect();
        known.sort_unstable();
        let contacts = Contacts {
            overflowed: c.overflowed || c.known.len() > settings.bounds.contacts_a_source,
            known,
        };
        shard.contacts.get_or_insert_with(read_host(&c.source), || contacts);
    }
    for f in state.folds {
        let fold = Fold {
            opened: f.opened,
            first_seen: f.first_seen,
            count: f.count,
            next: f.next,
            period: f.period,
            period_score: f.period_score,
            loud: f.loud,
            held: f.held,
        };
        shard.folds.get_or_insert_with(sixteen(&f.fingerprint), || fold);
    }
    fill(&mut shard.channels, &state.channels);
    fill(&mut shard.zones, &state.zones);
    fill(&mut shard.asked, &state.asked);
    fill(&mut shard.volumes, &state.volumes);
    fill(&mut shard.tried, &state.tried);
    Ok(shard)
}

pub(super) fn check_version(version: u32) -> Result<(), String> {
    if (OLDEST..=VERSION).contains(&version) {
        Ok(())
    } else {
        Err(format!(
            "version {version} is not {OLDEST} to {VERSION}: it was saved by another release"
        ))
    }
}

fn counts(map: &BoundedMap<(Host, Host, u16), CountWindow>) -> Vec<WindowState> {
    let event = |(time, count, flow): &(i64, u32, FlowRef)| EventState {
        time: *time,
        count: *count,
        flow: Some(write_flow_ref(flow)),
        ..EventState::default()
    };
    map.iter()
        .map(|((src, dst, port), window)| WindowState {
            source: host(*src),
            destination: host(*dst),
            port: (*port).into(),
            latest: window.latest(),
            events: window.events().map(event).collect(),
            ..WindowState::default()
        })
        .collect()
}

fn window<T: PartialEq + Copy>(state: &WindowState, value: impl Fn(&EventState) -> T) -> DistinctWindow<T> {
    let attempts = state.events.iter().filter_map(|e| {
        Some(Attempt {
            value: value(e),
            time: e.time,
            failed: e.failed,
            flow: flow_ref(e.flow.as_ref()?),
        })
    });
    DistinctWindow::restore(attempts.collect(), state.latest, state.told)
}

fn attempt<T>(attempt: &Attempt<T>) -> EventState {
    EventState {
        time: attempt.time,
        failed: attempt.failed,
        flow: Some(write_flow_ref(&attempt.flow)),
        ..EventState::default()
    }
}

fn write_flow_ref(flow: &FlowRef) -> FlowRefState {
    FlowRefState {
        flow_id: flow.flow_id.to_vec(),
        src: host(flow.src),
        dst: host(flow.dst),
        src_port: flow.src_port.into(),
        dst_port: flow.dst_port.into(),
        protocol: flow.protocol.into(),
        first_seen: flow.first_seen,
        last_seen: flow.last_seen,
        community_id: flow.community_id.to_string(),
    }
}

fn flow_ref(state: &FlowRefState) -> FlowRef {
    FlowRef {
        flow_id: sixteen(&state.flow_id),
        src: read_host(&state.src),
        dst: read_host(&state.dst),
        src_port: state.src_port as u16,
        dst_port: state.dst_port as u16,
        protocol: state.protocol as u8,
        first_seen: state.first_seen,
        last_seen: state.last_seen,
        community_id: state.community_id.as_str().into(),
    }
}

fn host(host: Host) -> Vec<u8> {
    host.0.to_be_bytes().to_vec()
}

fn read_host(bytes: &[u8]) -> Host {
    Host::from_bytes(sixteen(bytes))
}

// The database holds what was written here; anything else would become another key, not a crash.
fn sixteen(bytes: &[u8]) -> [u8; 16] {
    bytes.try_into().unwrap_or_default()
}

fn distinct(words: &[u64]) -> Distinct {
    Distinct(words.try_into().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use garrison_flow::{FlowBatchBuilder, FlowRow};
    use proptest::prelude::*;

    use super::*;
    use crate::{
        domain::{shard::tests::settings, tenant::Arrival, window::SECOND},
        store::entries::{read_wide, write_wide},
    };

    // Records of few hosts and ports, so that windows fill and cross.
    fn record() -> impl Strategy<Value = FlowRow<'static>> {
        let conn = prop::sample::select(vec![None, Some("REJ"), Some("S0"), Some("SF")]);
        (
            0_u8..40,
            0_u32..4,
            1_u8..4,
            0_i64..20_000,
            0_u8..4,
            0_u8..3,
            0_u16..40,
            conn,
            0_u32..6,
        )
            .prop_map(|(flow, seq, state, ms, src, dst, port, conn_state, failures)| FlowRow {
                flow_id: [flow; 16],
                record_seq: seq,
                state,
                first_seen: 1_000 * SECOND,
                last_seen: 1_000 * SECOND + ms * 1_000_000,
                protocol: if port == 39 { 17 } else { 6 },
                src_ip: [10, 0, 0, src].into(),
                dst_ip: [if dst == 2 { 203 } else { 10 }, 0, 1, dst].into(),
                src_port: 1_000,
                dst_port: if port < 20 { port } else { 22 },
                community_id: "1:x",
                src_packets: Some(3),
                dst_packets: Some(u64::from(conn_state == Some("SF"))),
                src_bytes: Some(100),
                dst_bytes: Some(900),
                conn_state,
                http_auth_failures: Some(failures),
                ..FlowRow::default()
            })
    }

    // What is told and what is held back. Half an hour passes with each batch.
    fn feed(
        tenant: &mut Tenant,
        n: u8,
        rows: &[FlowRow<'_>],
    ) -> (
        Vec<garrison_proto::alert::v1::Alert>,
        Vec<crate::domain::budget::HeldChange>,
    ) {
        let budget = tenant.settings.budget.clone();
        tenant.budgets.begin(i64::from(n) * 1_800 * SECOND, true, &budget);
        let mut builder = FlowBatchBuilder::new(rows.len());
        rows.iter().for_each(|r| builder.push(r));
        let judged = tenant.judge(&Arrival {
            id: [n; 16],
            shard: u16::from(n % 2),
            position: n.into(),
            published: 2_000 * SECOND,
            now: 0,
            batch: &builder.finish(),
        });
        (judged.alerts, judged.held)
    }

    fn copy(tenant: &Tenant) -> Tenant {
        let bytes = write_tenant(tenant);
        let settings = Arc::clone(&tenant.settings);
        let (mut copy, threshold) = read_tenant(&tenant.id, settings, &bytes).unwrap();
        assert!(threshold.is_none());
        copy.wide = read_wide(&tenant.id, &tenant.settings, &write_wide(&tenant.wide)).unwrap();
        for (slot, shard) in tenant.shards.iter().enumerate() {
            if let Some(shard) = shard {
                let shard = read_shard(&tenant.id, &tenant.settings, &write_shard(shard)).unwrap();
                copy.shards[slot] = Some(Box::new(shard));
            }
        }
        copy
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_restored_tenant_finds_what_an_uninterrupted_one_finds(
            batches in prop::collection::vec(prop::collection::vec(record(), 1..25), 1..12),
            cut in any::<prop::sample::Index>(),
            learning in any::<bool>(),
        ) {
            let mut settings = settings();
            settings.vertical.count = 4;
            settings.horizontal.count = 2;
            settings.bounds.windows = 3;
            settings.bounds.flows = 30;
            settings.budget.alerts_a_day = [1.0, 1.0];
            settings.budget.never_held = [false; crate::domain::detector::Detector::ALL.len()];
            let mut whole = Tenant::new("acme".parse().unwrap(), Arc::new(settings), SHARDS);
            if learning {
                whole.start_learning(5, true).unwrap();
            }
            let cut = cut.index(batches.len());
            for (n, rows) in batches[..cut].iter().enumerate() {
                feed(&mut whole, n as u8, rows);
            }
            let mut parts = copy(&whole);
            prop_assert_eq!(write_tenant(&parts), write_tenant(&whole));
            // From one before the cut: what the checkpoint includes changes nothing when it comes again.
            for (n, rows) in batches.iter().enumerate().skip(cut.saturating_sub(1)) {
                prop_assert_eq!(feed(&mut parts, n as u8, rows), feed(&mut whole, n as u8, rows));
            }
            prop_assert_eq!(write_tenant(&parts), write_tenant(&whole));
            for (a, b) in parts.shards.iter().zip(&whole.shards) {
                prop_assert_eq!(a.as_deref().map(write_shard), b.as_deref().map(write_shard));
            }
            prop_assert_eq!(write_wide(&parts.wide), write_wide(&whole.wide));
        }

        #[test]
        fn garbage_is_refused_or_read_but_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let id: TenantId = "acme".parse().unwrap();
            let settings = Arc::new(settings());
            let _ = read_shard(&id, &settings, &bytes);
            let _ = read_wide(&id, &settings, &bytes);
            let _ = read_tenant(&id, settings, &bytes);
        }
    }

    #[test]
    fn what_a_release_without_budgets_saved_is_read_and_they_begin_now() {
        let id: TenantId = "acme".parse().unwrap();
        let state = TenantState {
            version: 1,
            phase: 1,
            applied: 77,
            ..TenantState::default()
        };
        let (tenant, threshold) = read_tenant(&id, Arc::new(settings()), &state.encode_to_vec()).unwrap();
        assert!(threshold.is_none());
        assert_eq!(tenant.applied, 77);
        assert_eq!(tenant.budgets, crate::domain::budget::Budgets::new(&settings()));
        let shard = ShardState {
            version: 1,
            folds: vec![FoldState {
                fingerprint: vec![7; 16],
                count: 3,
                ..FoldState::default()
            }],
            ..ShardState::default()
        };
        let shard = read_shard(&id, &settings(), &shard.encode_to_vec()).unwrap();
        // What was told before there were budgets goes on being told.
        assert!(!shard.folds.peek(&[7; 16]).unwrap().held);
    }

    #[test]
    fn another_version_is_refused() {
        let id: TenantId = "acme".parse().unwrap();
        let state = TenantState {
            version: 9,
            ..TenantState::default()
        };
        let error = read_tenant(&id, Arc::new(settings()), &state.encode_to_vec()).unwrap_err();
        assert!(error.to_string().contains("GAR-ANOM-0007"));
    }
}
