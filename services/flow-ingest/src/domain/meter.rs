//! The meter: packets in, flow records out. One belongs to one thread and shares nothing.

use std::sync::LazyLock;

use garrison_flow::{FlowRow, FlowState, LossLedger};

use super::{
    flow::{Extra, Flow, NONE, mark},
    fragment::FragmentCache,
    key::{FlowKey, HashSeed},
    packet::{Decoded, Fragment, ICMP, ICMPV6, Packet, TCP, UDP, Verdict, decode, flag},
    record::{EndReason, Subject, lingered, with_row},
    table::{Limits, Table, blank},
    tcp,
    wheel::TICK,
};

/// Packets that are looked at together, so that their searches wait for memory at the same time.
pub const BURST: usize = 32;

/// Where records go.
pub trait Sink {
    /// Takes a record.
    fn record(&mut self, row: &FlowRow<'_>);

    /// Is told of every packet and, where it has one, its flow as this packet shows it.
    fn packet(&mut self, packet: &Packet<'_>, key: Option<&FlowKey>) {
        let _ = (packet, key);
    }
}

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
    /// Records written.
    pub records: u64,
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

/// Turns packets into flow records.
pub struct Meter {
    table: Table,
    fragments: FragmentCache,
    seed: HashSeed,
    sensor: String,
    counts: Counts,
    time: i64,
}

struct Work<'a> {
    packet: Decoded<'a>,
    key: FlowKey,
    hash: u64,
}

impl Meter {
    /// Makes a meter for a sensor. `random` seeds the hash and the flow ids.
    pub fn new(sensor: &str, limits: Limits, random: u128) -> Self {
        let seed = HashSeed::new(random);
        Self {
            table: Table::new(limits, seed),
            fragments: FragmentCache::default(),
            seed,
            sensor: sensor.to_owned(),
            counts: Counts::default(),
            time: i64::MIN,
        }
    }

    /// What became of packets and flows so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Flows in the table.
    pub fn active_flows(&self) -> usize {
        self.table.len()
    }

    /// Flows whose application layer was not looked at because too many others have application state.
    pub fn applications_refused(&self) -> u64 {
        self.table.applications.refused
    }

    /// Takes packets in the order they were captured.
    pub fn process(&mut self, packets: &[Packet<'_>], sink: &mut impl Sink) {
        for burst in packets.chunks(BURST) {
            self.burst(burst, sink);
        }
    }

    fn burst(&mut self, packets: &[Packet<'_>], sink: &mut impl Sink) {
        let mut work: [Option<Work<'_>>; BURST] = [const { None }; BURST];
        let mut warmed = 0;
        self.counts.received += packets.len() as u64;
        for (packet, place) in packets.iter().zip(&mut work) {
            match decode(packet) {
                Verdict::Flow(mut packet) => {
                    if packet.fragment != Fragment::Whole {
                        self.fragments.resolve(&mut packet);
                    }
                    let key = FlowKey {
                        src: packet.src,
                        dst: packet.dst,
                        src_port: packet.src_port,
                        dst_port: packet.dst_port,
                        protocol: packet.protocol,
                    };
                    let hash = self.seed.hash(&key);
                    warmed ^= self.table.warm(hash);
                    *place = Some(Work { packet, key, hash });
                }
                Verdict::NoFlow => {
                    self.counts.parsed += 1;
                    self.counts.no_flow += 1;
                }
                Verdict::Malformed => self.counts.malformed += 1,
            }
        }
        // The value does not matter; that it was read does.
        std::hint::black_box(warmed);
        for (packet, work) in packets.iter().zip(&work) {
            sink.packet(packet, work.as_ref().map(|work| &work.key));
            if let Some(work) = work {
                self.apply(work, sink);
            }
        }
    }

    /// Lets time pass to `now`, nanoseconds since the epoch: flows are reported and end without a packet.
    pub fn tick(&mut self, now: i64, sink: &mut impl Sink) {
        self.time = self.time.max(now);
        while let Some(mut slot) = self.table.advance(self.time) {
            while slot != NONE {
                let next = self.table.unchain(slot);
                self.timer(slot, sink);
                slot = next;
            }
        }
    }

    /// Ends every flow.
    pub fn finish(&mut self, reason: EndReason, sink: &mut impl Sink) {
        for slot in 0..self.table.flows.len() as u32 {
            let flow = &self.table.flows[slot as usize];
            if flow.is(mark::LIVE) {
                let reason = match flow.is(mark::LINGER) {
                    true => lingered(flow),
                    false => reason,
                };
                self.end(slot, reason, sink);
            }
        }
    }

    fn timer(&mut self, slot: u32, sink: &mut impl Sink) {
        let now = self.table.timer_time();
        let flow = &self.table.flows[slot as usize];
        if self.table.ends(flow) <= now {
            let reason = match flow.is(mark::LINGER) {
                true => lingered(flow),
                false => EndReason::Idle,
            };
            self.end(slot, reason, sink);
            return;
        }
        if self.table.reports(flow) <= now {
            let reported = flow.first_seen + i64::from(flow.reported) * 1_000_000;
            if flow.is(mark::PENDING) || flow.last_seen() > reported {
                self.report(slot, FlowState::Active, None, None, sink);
            } else {
                let since = now - flow.first_seen;
                self.table.flows[slot as usize].reported = milliseconds(since);
            }
        }
        self.table.schedule(slot);
    }

    fn apply(&mut self, work: &Work<'_>, sink: &mut impl Sink) {
        let time = work.packet.time;
        if time > self.time {
            self.time = time;
            if time.saturating_sub(self.table.timer_time()) >= TICK {
                self.tick(time, sink);
            }
        }
        let mut found = self.table.find(work.hash, &work.key);
        if let Some((slot, side)) = found
            && work.packet.protocol == TCP
        {
            let flow = &self.table.flows[slot as usize];
            let linger = self.table.close_linger();
            if tcp::is_reuse(flow, side, &work.packet.tcp, time, linger) {
                let reason = match flow.is(mark::LINGER) {
                    true => lingered(flow),
                    false => EndReason::Reused,
                };
                self.end(slot, reason, sink);
                found = None;
            }
        }
        match found {
            Some((slot, side)) => {
                self.counts.parsed += 1;
                self.count(slot, side, work, false, sink);
            }
            None => self.open(work, sink),
        }
    }

    fn open(&mut self, work: &Work<'_>, sink: &mut impl Sink) {
        match self.table.room(work.packet.time) {
            Ok(None) => {}
            Ok(Some(slot)) => {
                self.counts.evicted += 1;
                self.end(slot, EndReason::Evicted, sink);
            }
            Err(_) => {
                self.counts.shed += 1;
                return;
            }
        }
        self.counts.parsed += 1;
        self.counts.opened += 1;
        let packet = &work.packet;
        let flip = is_flipped(packet);
        let mut flow = Flow {
            key: if flip { work.key.reversed() } else { work.key },
            ip_version: packet.ip_version,
            vlan: packet.vlan.unwrap_or(u16::MAX),
            first_seen: packet.time,
            ..blank()
        };
        if flip {
            flow.marks |= mark::FLIPPED;
            flow.add_history(b'^', 0);
        }
        let slot = self.table.open(flow, work.hash);
        self.count(slot, usize::from(flip), work, true, sink);
    }

    // Counts a packet in its flow, and reports what that brought.
    fn count(&mut self, slot: u32, side: usize, work: &Work<'_>, new: bool, sink: &mut impl Sink) {
        let packet = &work.packet;
        let has_header = !matches!(packet.fragment, Fragment::Later(_));
        let last = packet.tcp.flags & (flag::FIN | flag::RST) != 0;
        let payload = packet.payload_len > 0;
        if payload || (packet.protocol == TCP && last) {
            let first = self.table.flows[slot as usize].extra == NONE;
            let extra = self.table.extra(slot);
            if first && let Some((from, to)) = packet.macs {
                extra.macs = if side == 0 { [from, to] } else { [to, from] };
            }
        }
        let (flow, mut extra, applications) = self.table.parts(slot);
        let mut over = false;
        match packet.protocol {
            TCP if has_header => {
                let extra = extra.as_deref_mut();
                let tcp = &packet.tcp;
                let effect = tcp::segment(flow, extra, side, tcp, packet.payload_len, packet.time);
                over = effect.over;
            }
            UDP => {
                flow.had_history(b'D', side);
            }
            _ => {}
        }
        if flow.sides[side].packets() == 0 && side == 1 {
            flow.answer_delay = (packet.time - flow.first_seen).max(0) as f32;
        }
        let first = flow.first_of(side);
        flow.sides[side].count(packet, first);
        let mut news = super::app::News::default();
        if payload && let Some(extra) = extra {
            note_payload(extra, side, packet);
            if !flow.is(mark::APP_DONE) && packet.fragment == Fragment::Whole {
                let seq = packet
                    .tcp
                    .seq
                    .wrapping_add(u32::from(packet.protocol == TCP && packet.tcp.flags & flag::SYN != 0));
                let claimed = packet.payload_len;
                let payloads = extra.lengths;
                news = applications.payload(flow, side, seq, packet.payload, claimed, payloads);
            }
        }
        if over {
            flow.marks |= mark::LINGER;
        }
        if new {
            let macs = packet
                .macs
                .map(|(from, to)| if side == 0 { [from, to] } else { [to, from] });
            self.report(slot, FlowState::New, None, macs, sink);
            self.table.schedule(slot);
            return;
        }
        if news.facts || news.refused {
            flow.marks |= mark::PENDING;
            let reported = flow.first_seen + i64::from(flow.reported) * 1_000_000;
            // What opens a conversation and the first refused login are never held back: containment waits for them.
            let urgent = flow.records == 1 || (news.refused && flow.records == 2);
            if urgent || packet.time - reported >= self.table.fact_interval() {
                self.report(slot, FlowState::Active, None, None, sink);
            } else {
                over = true;
            }
        }
        if over {
            // Its deadline came nearer; a later one would be noticed by itself.
            self.table.schedule(slot);
        }
    }

    fn end(&mut self, slot: u32, reason: EndReason, sink: &mut impl Sink) {
        self.report(slot, FlowState::Ended, Some(reason), None, sink);
        self.table.close(slot);
        self.counts.ended += 1;
    }

    fn report(
        &mut self,
        slot: u32,
        state: FlowState,
        end: Option<EndReason>,
        macs: Option<[[u8; 6]; 2]>,
        sink: &mut impl Sink,
    ) {
        let flow = &self.table.flows[slot as usize];
        let subject = Subject {
            flow,
            extra: self.table.extra_of(flow),
            app: self.table.applications.get(flow.app),
            macs,
        };
        with_row(&subject, &self.sensor, &self.seed, state, end, |row| {
            sink.record(row);
        });
        self.counts.records += 1;
        let time = self.time;
        let flow = &mut self.table.flows[slot as usize];
        flow.records = flow.records.saturating_add(1);
        flow.marks &= !mark::PENDING;
        flow.reported = milliseconds(time - flow.first_seen);
    }
}

fn milliseconds(nanoseconds: i64) -> u32 {
    (nanoseconds / 1_000_000).clamp(0, i64::from(u32::MAX)) as u32
}

fn note_payload(extra: &mut Extra, side: usize, packet: &Decoded<'_>) {
    let length = packet.payload_len.min(i16::MAX as u32) as i16;
    if let Some(place) = extra.first_lengths.get_mut(usize::from(extra.lengths)) {
        *place = if side == 0 { length } else { -length };
    }
    extra.lengths = extra.lengths.saturating_add(1);
    if extra.entropy[side] == u16::MAX && !packet.payload.is_empty() {
        let head = &packet.payload[..packet.payload.len().min(ENTROPY_OCTETS)];
        extra.entropy[side] = (entropy(head) * 8192.0).round().min(65_534.0) as u16;
    }
}

// How many octets of a side's first payload its entropy is of.
const ENTROPY_OCTETS: usize = 256;

// Shannon entropy, bits an octet, of at most `ENTROPY_OCTETS` octets.
fn entropy(data: &[u8]) -> f32 {
    // n log2 n for every count that can occur.
    static TERMS: LazyLock<[f32; ENTROPY_OCTETS + 1]> =
        LazyLock::new(|| std::array::from_fn(|n| if n == 0 { 0.0 } else { n as f32 * (n as f32).log2() }));
    let terms = &*TERMS;
    let mut counts = [0_u16; 256];
    for &octet in data {
        counts[usize::from(octet)] += 1;
    }
    let sum: f32 = counts
        .iter()
        .map(|&count| terms.get(usize::from(count)).copied().unwrap_or_default())
        .sum();
    let total = data.len() as f32;
    total.log2() - sum / total
}

// Whether the first packet came from the called side, told by its ports (Zeek's `likely_server_ports`).
fn is_flipped(packet: &Decoded<'_>) -> bool {
    let (src, dst) = (packet.src_port, packet.dst_port);
    match packet.protocol {
        TCP => {
            let syn = packet.tcp.flags & flag::SYN != 0;
            if syn && packet.tcp.flags & flag::ACK == 0 {
                return false;
            }
            // Two likely servers: a SYN-ACK may be a stealth scan, so it is believed.
            is_server_port(src) && (!is_server_port(dst) || (!syn && src < dst))
        }
        ICMP | ICMPV6 => false,
        // What is sent to many is no answer.
        _ => is_server_port(src) && !is_server_port(dst) && !is_group(packet),
    }
}

fn is_group(packet: &Decoded<'_>) -> bool {
    match packet.ip_version {
        4 => packet.dst[12] >= 0xe0,
        _ => packet.dst[0] == 0xff,
    }
}

fn is_server_port(port: u16) -> bool {
    // 68 is the port of DHCP's clients.
    matches!(
        port,
        1..=67
            | 69..=1023
            | 1080
            | 1433
            | 1521
            | 1812
            | 1813
            | 1883
            | 2049
            | 2152
            | 3128
            | 3268
            | 3269
            | 3306
            | 3389
            | 3544
            | 4789
            | 5060
            | 5061
            | 5222
            | 5223
            | 5269
            | 5353
            | 5355
            | 5432
            | 5671
            | 5672
            | 5900
            | 6081
            | 6379
            | 6660..=6669
            | 8000
            | 8080
            | 8081
            | 8443
            | 8888
            | 9092
            | 9200
            | 11211
            | 27017
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entropy_is_shannons() {
        assert_eq!(entropy(b"aaaa"), 0.0);
        assert_eq!(entropy(b"ab"), 1.0);
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(entropy(&all), 8.0);
        assert!((entropy(b"aab") - 0.918_296).abs() < 1e-5);
    }
}
