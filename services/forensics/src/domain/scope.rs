//! What belongs to an incident: its flows, hosts and time.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use chrono::{DateTime, Utc};
use garrison_proto::{
    Timestamp,
    alert::v1::{Alert, Entity, EntityKind},
    flow::v1::FlowFilter,
    from_timestamp,
    response::v1::Incident,
    to_timestamp,
};
use uuid::Uuid;

/// Values that one filter may hold.
const PER_FILTER: usize = garrison_flow::MAX_VALUES;

/// What belongs to an incident.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// Flows that alerts name.
    pub flow_ids: BTreeSet<Uuid>,
    /// Their Community IDs.
    pub community_ids: BTreeSet<String>,
    /// Hosts that did something.
    pub hosts: BTreeSet<IpAddr>,
    /// From when to when; `None` when nothing says so.
    pub window: Option<(DateTime<Utc>, DateTime<Utc>)>,
}

impl Scope {
    /// From an incident and its alerts. The window is that of both, widened by the margin.
    pub fn of(incident: &Incident, alerts: &[Alert], margin: Duration) -> Self {
        let flows = || alerts.iter().flat_map(|alert| &alert.flows);
        let entities = incident
            .entities
            .iter()
            .chain(alerts.iter().filter_map(|alert| alert.entity.as_ref()));
        let first = alerts
            .iter()
            .map(|a| &a.first_seen)
            .chain([&incident.first_seen])
            .filter_map(time)
            .min();
        let last = alerts
            .iter()
            .map(|a| &a.last_seen)
            .chain([&incident.last_seen])
            .filter_map(time)
            .max();
        let window = first.zip(last).and_then(|(first, last)| {
            Some((
                first.checked_sub_signed(delta(margin))?,
                last.checked_add_signed(delta(margin))?,
            ))
        });
        Self {
            flow_ids: flows().filter_map(|flow| Uuid::parse_str(&flow.flow_id).ok()).collect(),
            community_ids: flows()
                .map(|flow| flow.community_id.clone())
                .filter(|id| id.starts_with("1:"))
                .collect(),
            hosts: entities.filter_map(host).collect(),
            window,
        }
    }

    /// Filters that together find every flow, those that alerts name first.
    pub fn flow_filters(&self) -> Vec<FlowFilter> {
        let ids: Vec<String> = self.flow_ids.iter().map(Uuid::to_string).collect();
        let by_id = ids.chunks(PER_FILTER).map(|ids| FlowFilter {
            flow_ids: ids.to_vec(),
            ..FlowFilter::default()
        });
        by_id.chain(self.by_host()).collect()
    }

    /// Filters for the packets: of the named flows, then of everything the hosts did in the window.
    pub fn packet_filter(&self, community_ids: &BTreeSet<String>) -> Option<FlowFilter> {
        let (since, until) = self.window?;
        let mut filter = FlowFilter {
            since: Some(to_timestamp(since)),
            until: Some(to_timestamp(until)),
            ..FlowFilter::default()
        };
        if !community_ids.is_empty() && community_ids.len() <= PER_FILTER {
            filter.community_ids = community_ids.iter().cloned().collect();
        } else if !self.hosts.is_empty() {
            filter.hosts = self.hosts.iter().take(PER_FILTER).map(IpAddr::to_string).collect();
        } else {
            return None;
        }
        Some(filter)
    }

    fn by_host(&self) -> Option<FlowFilter> {
        let (since, until) = self.window?;
        (!self.hosts.is_empty()).then(|| FlowFilter {
            hosts: self.hosts.iter().take(PER_FILTER).map(IpAddr::to_string).collect(),
            since: Some(to_timestamp(since)),
            until: Some(to_timestamp(until)),
            ..FlowFilter::default()
        })
    }
}

fn delta(margin: Duration) -> chrono::TimeDelta {
    chrono::TimeDelta::from_std(margin).unwrap_or_default()
}

fn time(time: &Option<Timestamp>) -> Option<DateTime<Utc>> {
    // A zero time is one that nobody set.
    time.as_ref()
        .and_then(from_timestamp)
        .filter(|time| time.timestamp() > 0)
}

/// A host's address; for a service `ip:port/proto`, that of its host.
fn host(entity: &Entity) -> Option<IpAddr> {
    let value = entity.value.as_str();
    match EntityKind::try_from(entity.kind) {
        Ok(EntityKind::Host) => value.parse().ok(),
        Ok(EntityKind::Service) => {
            let (host, _) = value.rsplit_once(':')?;
            host.trim_start_matches('[').trim_end_matches(']').parse().ok()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use garrison_proto::alert::v1::FlowReference;

    use super::*;

    fn at(seconds: i64) -> Option<Timestamp> {
        Some(Timestamp { seconds, nanos: 0 })
    }

    fn entity(kind: EntityKind, value: &str) -> Entity {
        Entity {
            kind: kind as i32,
            value: value.into(),
        }
    }

    #[test]
    fn hosts_flows_and_the_widened_window_are_found() {
        let incident = Incident {
            entities: vec![entity(EntityKind::Host, "10.0.0.9"), entity(EntityKind::User, "eve")],
            first_seen: at(1_000),
            last_seen: at(1_100),
            ..Incident::default()
        };
        let id = Uuid::from_u128(5);
        let alert = Alert {
            entity: Some(entity(EntityKind::Service, "[2001:db8::1]:443/tcp")),
            first_seen: at(990),
            flows: vec![FlowReference {
                flow_id: id.to_string(),
                community_id: "1:abc".into(),
                ..Default::default()
            }],
            ..Alert::default()
        };
        let scope = Scope::of(&incident, &[alert], Duration::from_secs(10));
        assert_eq!(
            scope.hosts.iter().map(IpAddr::to_string).collect::<Vec<_>>(),
            ["10.0.0.9", "2001:db8::1"]
        );
        assert_eq!(
            scope.window.map(|(a, b)| (a.timestamp(), b.timestamp())),
            Some((980, 1_110))
        );
        let filters = scope.flow_filters();
        assert_eq!(filters.len(), 2);
        assert_eq!(filters[0].flow_ids, [id.to_string()]);
        assert_eq!(filters[1].hosts.len(), 2);
        assert_eq!(
            scope.packet_filter(&scope.community_ids).unwrap().community_ids,
            ["1:abc"]
        );
    }

    #[test]
    fn nothing_known_gives_no_filter_rather_than_one_that_matches_all() {
        let scope = Scope::of(&Incident::default(), &[], Duration::ZERO);
        assert!(scope.flow_filters().is_empty());
        assert_eq!(scope.packet_filter(&BTreeSet::new()), None);
    }

    #[test]
    fn too_many_flows_for_one_filter_are_asked_for_in_turn() {
        let flows = (0..2_500u128).map(|i| FlowReference {
            flow_id: Uuid::from_u128(i + 1).to_string(),
            community_id: format!("1:{i}"),
            ..Default::default()
        });
        let alert = Alert {
            flows: flows.collect(),
            first_seen: at(5),
            last_seen: at(6),
            ..Alert::default()
        };
        let scope = Scope::of(&Incident::default(), &[alert], Duration::ZERO);
        let filters = scope.flow_filters();
        assert_eq!(
            filters.iter().map(|f| f.flow_ids.len()).collect::<Vec<_>>(),
            [1_000, 1_000, 500]
        );
        assert_eq!(scope.packet_filter(&scope.community_ids), None);
    }
}
