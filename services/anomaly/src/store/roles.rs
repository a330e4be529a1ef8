//! Checkpoints of what belongs to a tenant's models beside the live one's threshold.

use garrison_proto::TenantId;
use prost::Message;

use super::{
    form::{TenantState, ThresholdState},
    snapshot::{VERSION, check_version, spot_state, threshold_state},
};
use crate::{
    domain::{
        drift::Drift,
        registry::{Models, SCORE_BINS, Shadow},
        sample::{Recent, RecentState, SampleSettings, Suspects, TurnedAway},
        spot::SpotState,
        window::{Host, Nanos},
    },
    error::Error,
};

#[derive(Clone, PartialEq, Message)]
pub(super) struct RolesState {
    #[prost(uint64, tag = "1")]
    live: u64,
    #[prost(uint64, repeated, tag = "2")]
    previous: Vec<u64>,
    #[prost(message, optional, tag = "3")]
    candidate: Option<CandidateState>,
    /// Version of the model that others are held against.
    #[prost(uint64, tag = "4")]
    anchor: u64,
    #[prost(uint32, repeated, tag = "5")]
    drift: Vec<u32>,
    #[prost(uint64, tag = "6")]
    drift_rows: u64,
    #[prost(sfixed64, tag = "7")]
    updated: i64,
    #[prost(message, repeated, tag = "8")]
    suspects: Vec<SuspectState>,
    #[prost(sfixed64, optional, tag = "9")]
    everybody_until: Option<i64>,
}

#[derive(Clone, PartialEq, Message)]
struct CandidateState {
    #[prost(uint64, tag = "1")]
    version: u64,
    #[prost(sfixed64, tag = "2")]
    trained: i64,
    #[prost(message, optional, tag = "3")]
    threshold: Option<ThresholdState>,
    #[prost(uint64, repeated, tag = "4")]
    counts: Vec<u64>,
    #[prost(uint32, repeated, tag = "5")]
    live: Vec<u32>,
    #[prost(uint32, repeated, tag = "6")]
    scores: Vec<u32>,
    #[prost(double, repeated, tag = "7")]
    sums: Vec<f64>,
}

#[derive(Clone, PartialEq, Message)]
struct SuspectState {
    #[prost(bytes = "vec", tag = "1")]
    host: Vec<u8>,
    #[prost(sfixed64, tag = "2")]
    until: i64,
}

#[derive(Clone, PartialEq, Message)]
struct SampleState {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(float, repeated, tag = "2")]
    rows: Vec<f32>,
    #[prost(fixed32, repeated, tag = "3")]
    tags: Vec<u32>,
    #[prost(fixed64, tag = "4")]
    chance: u64,
    #[prost(sfixed64, tag = "5")]
    next: i64,
    #[prost(uint64, tag = "6")]
    taken: u64,
    #[prost(sfixed64, tag = "7")]
    first: i64,
    #[prost(sfixed64, tag = "8")]
    last: i64,
    #[prost(uint64, repeated, tag = "9")]
    turned_away: Vec<u64>,
    /// Names of the features of a row: a sample of others is of no use.
    #[prost(string, repeated, tag = "10")]
    features: Vec<String>,
}

/// What a checkpoint says of models that have to be loaded yet.
#[derive(Debug, Default)]
pub struct Pending {
    /// Version of the live model; 0 where the checkpoint is of a release that had no candidates.
    pub live: u64,
    /// Version of the model that others are held against; 0 for none.
    pub anchor: u64,
    /// The candidate.
    pub candidate: Option<PendingCandidate>,
}

/// A candidate without its model.
#[derive(Debug)]
pub struct PendingCandidate {
    /// Its version.
    pub version: u64,
    /// When it was trained.
    pub trained: Nanos,
    /// Its threshold.
    pub threshold: SpotState,
    /// How it compared.
    pub shadow: Shadow,
}

/// Writes the roles.
pub(super) fn write(models: &Models) -> RolesState {
    let roles = &models.roles;
    let (suspects, everybody_until) = models.suspects.state();
    let candidate = roles.candidate.as_ref().map(|c| CandidateState {
        version: c.version(),
        trained: c.trained,
        threshold: Some(spot_state(&c.spot)),
        counts: vec![
            c.shadow.batches,
            c.shadow.rows,
            c.shadow.live_above,
            c.shadow.candidate_above,
            c.shadow.both_above,
        ],
        live: c.shadow.live.clone(),
        scores: c.shadow.candidate.clone(),
        sums: c.shadow.sums.to_vec(),
    });
    RolesState {
        live: roles.live,
        previous: roles.previous.clone(),
        candidate,
        anchor: roles.anchor.as_ref().map_or(0, |a| a.version),
        drift: roles.drift.counts.clone(),
        drift_rows: roles.drift.rows,
        updated: roles.updated,
        suspects: suspects
            .into_iter()
            .map(|(host, until)| SuspectState {
                host: host.0.to_be_bytes().to_vec(),
                until,
            })
            .collect(),
        everybody_until,
    }
}

/// Reads the roles, but for what has to be loaded: see [`pending`].
pub(super) fn read(models: &mut Models, state: Option<RolesState>) {
    let Some(state) = state else { return };
    models.roles.live = state.live;
    models.roles.previous = state.previous;
    models.roles.drift = Drift::restore(state.drift, state.drift_rows);
    models.roles.updated = state.updated;
    let suspects = state.suspects.into_iter().filter_map(|s| {
        let host: [u8; 16] = s.host.try_into().ok()?;
        Some((Host(u128::from_be_bytes(host)), s.until))
    });
    models.suspects = Suspects::restore(suspects, state.everybody_until);
}

/// What a tenant's checkpoint says of models that have to be loaded.
pub fn pending(bytes: &[u8]) -> Pending {
    let roles = TenantState::decode(bytes).ok().and_then(|state| state.roles);
    let Some(roles) = roles else {
        return Pending::default();
    };
    let candidate = roles.candidate.and_then(|c| {
        let whole = c.live.len() == SCORE_BINS && c.scores.len() == SCORE_BINS;
        let shadow = match (<[u64; 5]>::try_from(c.counts), <[f64; 5]>::try_from(c.sums)) {
            (Ok([batches, rows, live_above, candidate_above, both_above]), Ok(sums)) if whole => Shadow {
                batches,
                rows,
                live_above,
                candidate_above,
                both_above,
                live: c.live,
                candidate: c.scores,
                sums,
            },
            _ => Shadow::default(),
        };
        Some(PendingCandidate {
            version: c.version,
            trained: c.trained,
            threshold: threshold_state(c.threshold?),
            shadow,
        })
    });
    Pending {
        live: roles.live,
        anchor: roles.anchor,
        candidate,
    }
}

/// Writes the recent rows.
pub fn write_recent(recent: &Recent) -> Vec<u8> {
    let state = recent.state();
    let turned = state.turned_away;
    SampleState {
        version: VERSION,
        rows: state.rows,
        tags: state.tags,
        chance: state.chance,
        next: state.next,
        taken: state.taken,
        first: state.window.0,
        last: state.window.1,
        turned_away: vec![turned.unusual, turned.suspect, turned.share],
        features: crate::domain::features::names().map(str::to_owned).collect(),
    }
    .encode_to_vec()
}

/// Reads the recent rows; after an upgrade that changed the features they are gathered anew.
///
/// # Errors
/// [`Error::State`].
pub fn read_recent(id: &TenantId, settings: SampleSettings, seed: u64, bytes: &[u8]) -> Result<Recent, Error> {
    let wrong = |problem: String| Error::State {
        tenant: id.clone(),
        problem,
    };
    let state = SampleState::decode(bytes).map_err(|e| wrong(e.to_string()))?;
    check_version(state.version).map_err(wrong)?;
    let same = state.features.iter().map(String::as_str);
    if !same.eq(crate::domain::features::names()) {
        return Ok(Recent::new(settings, seed));
    }
    let turned_away = match state.turned_away[..] {
        [unusual, suspect, share] => TurnedAway {
            unusual,
            suspect,
            share,
        },
        _ => TurnedAway::default(),
    };
    Ok(Recent::restore(
        settings,
        RecentState {
            rows: state.rows,
            tags: state.tags,
            chance: state.chance,
            next: state.next,
            taken: state.taken,
            window: (state.first, state.last),
            turned_away,
        },
    ))
}
