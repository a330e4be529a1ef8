//! What became of packets and flows, and the loss ledger of it.

use garrison_flow::LossLedger;

/// What became of packets and flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets offered.
    pub received: u64,
    /// Of these, counted in a flow or understood as carrying none.
    pub parsed: u64,
    /// Of these, with headers that contradict themselves or end too early.
    pub malformed: u64,
    /// Of these, only counted because the table was full.
    pub shed: u64,
    /// Of the parsed, those that carry no flow.
    pub no_flow: u64,
    /// Flows begun.
    pub opened: u64,
    /// Flows ended.
    pub ended: u64,
    /// Of the ended, those that had to make room.
    pub evicted: u64,
    /// Of the evicted, those that are told of in sums only.
    pub aggregated: u64,
    /// Records written.
    pub records: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.received += other.received;
        self.parsed += other.parsed;
        self.malformed += other.malformed;
        self.shed += other.shed;
        self.no_flow += other.no_flow;
        self.opened += other.opened;
        self.ended += other.ended;
        self.evicted += other.evicted;
        self.aggregated += other.aggregated;
        self.records += other.records;
    }
}

impl std::ops::Add for Counts {
    type Output = Self;

    fn add(mut self, other: Self) -> Self {
        self += other;
        self
    }
}

impl Counts {
    /// As a ledger, without what only the capture and the publisher know.
    pub fn ledger(&self) -> LossLedger {
        LossLedger {
            received: self.received,
            parsed: self.parsed,
            malformed: self.malformed,
            shed: self.shed,
            flows_opened: self.opened,
            flows_ended: self.ended,
            ..LossLedger::default()
        }
    }
}
