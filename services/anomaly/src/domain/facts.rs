//! What the detectors ask of each record, read out of a batch column by column.

use arrow_array::{Array as _, StringArray};
use garrison_flow::{Columns, FlowBatch, FlowState};

use super::{
    activity::ActivitySummary,
    settings::Settings,
    window::{FlowRef, Host, Nanos, Reach},
};

/// TCP's protocol number.
pub const TCP: u8 = 6;
/// UDP's protocol number.
pub const UDP: u8 = 17;
/// ICMP's protocol number.
pub const ICMP: u8 = 1;
/// ICMPv6's protocol number.
pub const ICMP6: u8 = 58;

/// A batch as plain columns, one entry a row in each.
#[derive(Debug, Default)]
pub struct Facts {
    /// Opener.
    pub src: Vec<Host>,
    /// Called side.
    pub dst: Vec<Host>,
    /// Last packet, not later than the clock that published the batch allows.
    pub time: Vec<Nanos>,
    /// The record's state; rows with a state that means nothing are left out of everything.
    pub state: Vec<Option<FlowState>>,
    /// What became of the attempt.
    pub reach: Vec<Reach>,
    /// Opened and reset by the opener without a payload, as a SYN scan leaves it at an open port.
    pub half_open: Vec<bool>,
    /// The opener belongs to an internal network; filled by [`place`](Self::place).
    pub src_inside: Vec<bool>,
    /// The called side belongs to an internal network; filled by [`place`](Self::place).
    pub dst_inside: Vec<bool>,
    /// What the source did in its last minute, of rows that say more than that a flow began; filled by the stateful pass.
    pub activity: Vec<ActivitySummary>,
    /// Records whose time had to be held back.
    pub ahead_of_clock: u64,
}

impl Facts {
    /// Reads the columns of a batch. No record's time is taken to be later than `latest`: a sensor whose
    /// clock runs ahead must not empty the windows of a source.
    pub fn read(batch: &FlowBatch, latest: Nanos) -> Self {
        let columns = batch.columns();
        let n = batch.len();
        let mut ahead_of_clock = 0;
        let time = columns
            .last_seen
            .values()
            .iter()
            .map(|&t| {
                ahead_of_clock += u64::from(t > latest);
                t.min(latest)
            })
            .collect();
        let state: Vec<Option<FlowState>> = columns
            .state
            .values()
            .iter()
            .map(|s| FlowState::from_column(*s))
            .collect();
        let mut reach = Vec::with_capacity(n);
        let mut half_open = Vec::with_capacity(n);
        for (i, state) in state.iter().enumerate() {
            let conn_state = text(columns.conn_state, i);
            let answered = columns
                .dst_packets
                .is_valid(i)
                .then(|| columns.dst_packets.value(i) > 0);
            reach.push(reach_of(*state, conn_state, answered));
            half_open.push(
                conn_state == Some("RSTO")
                    && *state == Some(FlowState::Ended)
                    && number(columns.src_bytes, i) == 0
                    && number(columns.dst_bytes, i) == 0,
            );
        }
        Self {
            src: hosts(columns.src_ip.value_data()),
            dst: hosts(columns.dst_ip.value_data()),
            time,
            state,
            reach,
            half_open,
            src_inside: vec![false; n],
            dst_inside: vec![false; n],
            activity: vec![ActivitySummary::default(); n],
            ahead_of_clock,
        }
    }

    /// Says which hosts are internal.
    pub fn place(&mut self, settings: &Settings) {
        for (hosts, inside) in [(&self.src, &mut self.src_inside), (&self.dst, &mut self.dst_inside)] {
            for (host, inside) in hosts.iter().zip(inside) {
                *inside = settings.is_internal(*host);
            }
        }
    }

    /// The flow of a row, for an alert.
    pub fn flow_ref(&self, columns: &Columns<'_>, i: usize) -> FlowRef {
        let mut flow_id = [0; 16];
        flow_id.copy_from_slice(columns.flow_id.value(i));
        FlowRef {
            flow_id,
            src: self.src[i],
            dst: self.dst[i],
            src_port: columns.src_port.value(i),
            dst_port: columns.dst_port.value(i),
            protocol: columns.protocol.value(i),
            first_seen: columns.first_seen.value(i),
            last_seen: columns.last_seen.value(i),
            community_id: cut(columns.community_id.value(i), 64).into(),
        }
    }
}

// At most so many letters.
fn cut(text: &str, most: usize) -> &str {
    // A letter has an octet at least.
    if text.len() <= most {
        return text;
    }
    text.char_indices().nth(most).map_or(text, |(end, _)| &text[..end])
}

/// A text cell, `None` when unknown.
pub fn text(array: &StringArray, i: usize) -> Option<&str> {
    array.is_valid(i).then(|| array.value(i))
}

/// A counter's cell, 0 when unknown.
pub fn number<T>(array: &arrow_array::PrimitiveArray<T>, i: usize) -> u64
where
    T: arrow_array::types::ArrowPrimitiveType,
    T::Native: Into<u64>,
{
    if array.is_valid(i) { array.value(i).into() } else { 0 }
}

// `answered` is `None` where the source of the record cannot see the other direction.
fn reach_of(state: Option<FlowState>, conn_state: Option<&str>, answered: Option<bool>) -> Reach {
    match (conn_state, state) {
        (Some("REJ" | "RSTRH"), _) => Reach::Failed,
        (Some("S0" | "RSTOS0" | "SH"), Some(FlowState::Ended)) => Reach::Failed,
        (_, Some(FlowState::Ended)) if answered == Some(false) => Reach::Failed,
        _ if answered == Some(false) => Reach::Pending,
        _ => Reach::Answered,
    }
}

fn hosts(bytes: &[u8]) -> Vec<Host> {
    let (chunks, _) = bytes.as_chunks::<16>();
    chunks.iter().map(|b| Host::from_bytes(*b)).collect()
}

#[cfg(test)]
mod tests {
    use garrison_flow::{FlowBatchBuilder, FlowRow};

    use super::*;

    #[test]
    fn reach_follows_state_and_answers() {
        use FlowState::{Active, Ended, New};
        for (state, conn, answered, want) in [
            (New, None, Some(false), Reach::Pending),
            (New, Some("S0"), Some(false), Reach::Pending),
            (New, None, None, Reach::Answered),
            (Active, Some("S1"), Some(true), Reach::Answered),
            (New, Some("REJ"), Some(true), Reach::Failed),
            (Ended, Some("S0"), Some(false), Reach::Failed),
            (Ended, None, Some(false), Reach::Failed),
            (Ended, None, None, Reach::Answered),
            (Ended, Some("SF"), Some(true), Reach::Answered),
        ] {
            assert_eq!(reach_of(Some(state), conn, answered), want, "{state:?} {conn:?}");
        }
    }

    #[test]
    fn a_clock_that_runs_ahead_is_held_back_and_counted() {
        let mut builder = FlowBatchBuilder::new(2);
        for last_seen in [5, 50] {
            builder.push(&FlowRow {
                last_seen,
                src_ip: "10.0.0.1".parse().unwrap(),
                dst_ip: "2001:db8::1".parse().unwrap(),
                ..FlowRow::default()
            });
        }
        let facts = Facts::read(&builder.finish(), 10);
        assert_eq!(facts.time, [5, 10]);
        assert_eq!(facts.ahead_of_clock, 1);
        assert_eq!(facts.src[0].to_string(), "10.0.0.1");
        assert_eq!(facts.dst[1].to_string(), "2001:db8::1");
    }
}
