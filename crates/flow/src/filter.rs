use std::net::IpAddr;

use garrison_proto::{flow::v1::FlowFilter, from_timestamp};
use ipnet::IpNet;
use uuid::Uuid;

use crate::schema::FlowRow;

/// Most values a filter may hold in one field.
pub const MAX_VALUES: usize = 1_000;

/// A field of a filter is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct FilterError {
    /// Path of the field, for example `hosts[1]`.
    pub field: String,
    /// What is wrong and how to write it.
    pub message: String,
}

/// A checked [`FlowFilter`], ready to be asked about rows.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Networks of which either side must be in one; empty for any.
    pub hosts: Vec<IpNet>,
    /// Networks for the opener.
    pub src_hosts: Vec<IpNet>,
    /// Networks for the called side.
    pub dst_hosts: Vec<IpNet>,
    /// Ports of which either side must have one.
    pub ports: Vec<u16>,
    /// IP protocol numbers.
    pub protocols: Vec<u8>,
    /// Application protocols.
    pub services: Vec<String>,
    /// Community IDs.
    pub community_ids: Vec<String>,
    /// Flow ids.
    pub flow_ids: Vec<[u8; 16]>,
    /// States, as in the column.
    pub states: Vec<u8>,
    /// The last packet must be at or after this, nanoseconds since the epoch.
    pub since: Option<i64>,
    /// The first packet must be before this, nanoseconds since the epoch.
    pub until: Option<i64>,
}

impl Filter {
    /// Checks a filter.
    ///
    /// # Errors
    /// [`FilterError`] names the first field that is wrong.
    pub fn compile(filter: &FlowFilter) -> Result<Self, FilterError> {
        Ok(Self {
            hosts: each("hosts", &filter.hosts, |text| network(text))?,
            src_hosts: each("src_hosts", &filter.src_hosts, |text| network(text))?,
            dst_hosts: each("dst_hosts", &filter.dst_hosts, |text| network(text))?,
            ports: each("ports", &filter.ports, |port| {
                u16::try_from(*port).map_err(|_| format!("{port} is no port: use 0 to 65535"))
            })?,
            protocols: each("protocols", &filter.protocols, |number| {
                u8::try_from(*number).map_err(|_| format!("{number} is no IP protocol number: use 0 to 255"))
            })?,
            services: each("services", &filter.services, |name| Ok(name.to_ascii_lowercase()))?,
            community_ids: each("community_ids", &filter.community_ids, |id| {
                match id.starts_with("1:") {
                    true => Ok(id.clone()),
                    false => Err(format!("{id:?} is no Community ID of version 1: it starts with \"1:\"")),
                }
            })?,
            flow_ids: each("flow_ids", &filter.flow_ids, |id| {
                Uuid::parse_str(id)
                    .map(Uuid::into_bytes)
                    .map_err(|_| format!("{id:?} is no UUID"))
            })?,
            states: each("states", &filter.states, |state| match state {
                1..=3 => Ok(*state as u8),
                _ => Err(format!("{state} is no flow state: use NEW, ACTIVE or ENDED")),
            })?,
            since: time("since", filter.since.as_ref())?,
            until: time("until", filter.until.as_ref())?,
        })
    }

    /// The row satisfies every part of the filter.
    pub fn matches(&self, row: &FlowRow<'_>) -> bool {
        self.since.is_none_or(|since| row.last_seen >= since)
            && self.until.is_none_or(|until| row.first_seen < until)
            && any(&self.protocols, |&protocol| protocol == row.protocol)
            && any(&self.states, |&state| state == row.state)
            && any(&self.ports, |&port| port == row.src_port || port == row.dst_port)
            && any(&self.hosts, |net| {
                net.contains(&row.src_ip) || net.contains(&row.dst_ip)
            })
            && any(&self.src_hosts, |net| net.contains(&row.src_ip))
            && any(&self.dst_hosts, |net| net.contains(&row.dst_ip))
            && any(&self.services, |name| row.service == Some(name))
            && any(&self.community_ids, |id| row.community_id == id)
            && any(&self.flow_ids, |id| row.flow_id == *id)
    }
}

fn any<T>(values: &[T], test: impl Fn(&T) -> bool) -> bool {
    values.is_empty() || values.iter().any(test)
}

fn each<T, U>(name: &str, values: &[T], read: impl Fn(&T) -> Result<U, String>) -> Result<Vec<U>, FilterError> {
    if values.len() > MAX_VALUES {
        return Err(FilterError {
            field: name.to_owned(),
            message: format!("has {} values; at most {MAX_VALUES} are taken", values.len()),
        });
    }
    let item = |(index, value)| {
        read(value).map_err(|message| FilterError {
            field: format!("{name}[{index}]"),
            message,
        })
    };
    values.iter().enumerate().map(item).collect()
}

fn network(text: &str) -> Result<IpNet, String> {
    let net = match text.parse::<IpAddr>() {
        Ok(address) => Some(IpNet::from(address.to_canonical())),
        Err(_) => text.parse::<IpNet>().ok(),
    };
    net.ok_or_else(|| {
        let shown: String = text.chars().take(80).collect();
        format!("{shown:?} is neither an IP address nor a CIDR block such as 10.0.0.0/8")
    })
}

fn time(field: &str, value: Option<&garrison_proto::Timestamp>) -> Result<Option<i64>, FilterError> {
    let Some(value) = value else { return Ok(None) };
    match from_timestamp(value).and_then(|time| time.timestamp_nanos_opt()) {
        Some(nanoseconds) => Ok(Some(nanoseconds)),
        None => Err(FilterError {
            field: field.to_owned(),
            message: "is outside the years 1678 to 2262".to_owned(),
        }),
    }
}
