use serde::{Deserialize, Serialize};

/// What became of every packet a sensor was offered, and of every record it made. Counts since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossLedger {
    /// Packets that reached the sensor.
    pub received: u64,
    /// Of these, packets that were counted in a flow or understood as carrying none.
    pub parsed: u64,
    /// Of these, packets whose headers contradict themselves or end too early.
    pub malformed: u64,
    /// Of these, packets that were only counted, because a bound was reached.
    pub shed: u64,
    /// Packets that the kernel or the network card dropped before the sensor.
    pub dropped_by_kernel: u64,
    /// Flows begun.
    pub flows_opened: u64,
    /// Flows ended.
    pub flows_ended: u64,
    /// Records handed to the broker.
    pub records_published: u64,
    /// Records that neither broker nor spool took.
    pub records_lost: u64,
}

impl LossLedger {
    /// The sums hold: every received packet is in exactly one column, and no more flows ended than began.
    pub fn balances(&self) -> bool {
        let accounted = self
            .parsed
            .checked_add(self.malformed)
            .and_then(|n| n.checked_add(self.shed));
        accounted == Some(self.received) && self.flows_ended <= self.flows_opened
    }

    /// The protobuf form.
    pub fn to_proto(&self) -> garrison_proto::flow::v1::LossLedger {
        garrison_proto::flow::v1::LossLedger {
            received: self.received,
            parsed: self.parsed,
            malformed: self.malformed,
            dropped_by_kernel: self.dropped_by_kernel,
            shed: self.shed,
            flows_opened: self.flows_opened,
            flows_ended: self.flows_ended,
            records_published: self.records_published,
            records_lost: self.records_lost,
        }
    }
}
