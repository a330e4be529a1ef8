//! The meter: packets in, flow records out. One belongs to one thread and shares nothing.

use garrison_flow::{FlowRow, FlowState};

use super::{
    aggregate::{Aggregates, is_unheard},
    app::{News, Service},
    counts::Counts,
    decode::assembled,
    flow::{Flow, NONE, mark},
    fragment::Fragments,
    key::{FlowKey, HashSeed},
    network::Bearers,
    note::{note_entropy, note_macs, note_payload},
    packet::{Decoded, Decoder, Fragment, Packet, TCP, UDP, Verdict, flag},
    port::is_flipped,
    record::{EndReason, Subject, lingered, with_row, worth},
    table::{BATCH, Limits, Table},
    tcp,
    tunnel::{self, TunnelKind},
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

/// Turns packets into flow records.
pub struct Meter {
    table: Table,
    fragments: Fragments,
    bearers: Bearers,
    vlans_apart: bool,
    aggregates: Aggregates,
    decoder: Decoder,
    seed: HashSeed,
    sensor: String,
    counts: Counts,
    time: i64,
}

// What became of a packet: whether a flow counted it, and the flow of what it carried through a tunnel.
struct Fate {
    counted: bool,
    inner: Option<FlowKey>,
}

// A packet and where its flow is to be looked for.
#[derive(Clone, Copy)]
struct Work<'a> {
    packet: Decoded<'a>,
    network: u32,
    hash: u64,
    verdict: Verdict<()>,
}

impl Work<'_> {
    const NONE: Self = Self {
        packet: Decoded::EMPTY,
        network: 0,
        hash: 0,
        verdict: Verdict::NoFlow,
    };
}

impl Meter {
    /// Makes a meter for a sensor. `random` seeds the hash and the flow ids.
    pub fn new(sensor: &str, limits: Limits, random: u128) -> Self {
        let seed = HashSeed::new(random);
        Self {
            table: Table::new(limits, seed),
            fragments: Fragments::default(),
            bearers: Bearers::default(),
            vlans_apart: limits.vlans_apart,
            aggregates: Aggregates::default(),
            decoder: limits.decoder,
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
        let mut places = [Work::NONE; BURST];
        self.counts.received += packets.len() as u64;
        for (packet, work) in packets.iter().zip(&mut places) {
            work.verdict = self.decoder.decode_into(packet, &mut work.packet);
            match work.verdict {
                Verdict::Flow(()) => {
                    self.look_up(work);
                    self.table.fetch_place(work.hash);
                }
                Verdict::NoFlow => {
                    self.counts.parsed += 1;
                    self.counts.no_flow += 1;
                }
                Verdict::Malformed => self.counts.malformed += 1,
            }
        }
        let places = &places[..packets.len()];
        let flows = || places.iter().filter(|work| matches!(work.verdict, Verdict::Flow(())));
        for work in flows() {
            self.table.fetch_flow(work.hash);
        }
        for work in flows() {
            self.table.fetch_state(work.hash);
        }
        for (packet, work) in packets.iter().zip(places) {
            match work.verdict {
                Verdict::Flow(()) => {
                    let fate = self.apply(work, sink);
                    match fate.counted {
                        true => self.counts.parsed += 1,
                        false => self.counts.shed += 1,
                    }
                    sink.packet(packet, Some(&fate.inner.unwrap_or_else(|| work.packet.key())));
                }
                Verdict::NoFlow | Verdict::Malformed => sink.packet(packet, None),
            }
        }
    }

    fn work<'a>(&mut self, packet: Decoded<'a>) -> Work<'a> {
        let mut work = Work { packet, ..Work::NONE };
        self.look_up(&mut work);
        work
    }

    // Says where the flow of a packet is to be looked for.
    #[inline(always)]
    fn look_up(&mut self, work: &mut Work<'_>) {
        let packet = &mut work.packet;
        if packet.fragment != Fragment::Whole {
            self.fragments.resolve(packet);
        }
        let tags = if self.vlans_apart { packet.tags } else { 0 };
        work.network = packet.network.number(&self.seed, tags);
        work.hash = self.seed.hash_in(&packet.key(), work.network);
    }

    /// Lets time pass to `now`, nanoseconds since the epoch: flows are reported and end without a packet.
    pub fn tick(&mut self, now: i64, sink: &mut impl Sink) {
        self.time = self.time.max(now);
        let mut slots = [NONE; BATCH];
        while let Some(mut chain) = self.table.advance(self.time) {
            while chain != NONE {
                let (count, rest) = self.table.unchain(chain, &mut slots);
                for &slot in &slots[..count] {
                    self.timer(slot, sink);
                }
                chain = rest;
            }
        }
        self.table.fetch_due();
        if self.aggregates.is_due(self.time) {
            self.report_aggregates(sink);
        }
    }

    fn report_aggregates(&mut self, sink: &mut impl Sink) {
        let reported = self.aggregates.report(&self.sensor, &self.seed, |row| sink.record(row));
        self.counts.records += reported;
    }

    /// Ends every flow.
    pub fn finish(&mut self, reason: EndReason, sink: &mut impl Sink) {
        let all = self.table.flows.len() as u32;
        for start in (0..all).step_by(BATCH) {
            let live = |slot: &u32| self.table.flows[*slot as usize].is(mark::LIVE);
            let (mut slots, mut count) = ([NONE; BATCH], 0);
            for slot in (start..all.min(start + BATCH as u32)).filter(live) {
                slots[count] = slot;
                count += 1;
            }
            self.table.fetch_ends(&slots[..count], i64::MAX);
            for &slot in &slots[..count] {
                let flow = &self.table.flows[slot as usize];
                let reason = match flow.is(mark::LINGER) {
                    true => lingered(flow),
                    false => reason,
                };
                self.end(slot, reason, sink);
            }
        }
        self.report_aggregates(sink);
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
            if !is_unheard(flow) && (flow.is(mark::PENDING) || flow.last_seen() > reported) {
                self.report(slot, FlowState::Active, None, None, sink);
            } else {
                let since = now - flow.first_seen;
                let flow = &mut self.table.flows[slot as usize];
                flow.reported = milliseconds(since);
                flow.marks |= mark::QUIET;
            }
        }
        self.table.schedule(slot);
    }

    fn apply(&mut self, work: &Work<'_>, sink: &mut impl Sink) -> Fate {
        let time = work.packet.time;
        if time > self.time {
            self.time = time;
            if time.saturating_sub(self.table.timer_time()) >= TICK {
                self.tick(time, sink);
            }
        }
        let mut found = self.table.find(work.hash, &work.packet.key(), work.network);
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
        let (slot, side) = match found {
            Some((slot, side)) => {
                self.count(slot, side, work, false, sink);
                (slot, side)
            }
            None => match self.open(work, sink) {
                Some(place) => place,
                None => {
                    return Fate {
                        counted: false,
                        inner: None,
                    };
                }
            },
        };
        let mut inner = None;
        if work.packet.fragment != Fragment::Whole {
            inner = self.assemble(slot, side, work, sink);
        } else if work.packet.protocol == UDP {
            inner = self.tunnel(slot, &work.packet, sink);
        }
        Fate { counted: true, inner }
    }

    // Meters what a packet of a tunnel carries. Its flow is one more than the outer one. Gives the innermost flow.
    fn tunnel(&mut self, slot: u32, packet: &Decoded<'_>, sink: &mut impl Sink) -> Option<FlowKey> {
        let service = Service::from_number(self.table.flows[slot as usize].service);
        if !service.is_tunnel() {
            return None;
        }
        let mut inner = tunnel::over_udp(&self.decoder, packet, service)?;
        if let (Service::Gtpu, Some(teid)) = (service, tunnel::teid(packet.payload)) {
            inner.network = self.bearers.network(packet, teid, &inner);
        }
        let work = self.work(inner);
        // The depth ends what tunnels inside tunnels could go on with.
        let fate = self.apply(&work, sink);
        Some(fate.inner.unwrap_or_else(|| work.packet.key()))
    }

    // Puts a datagram's parts together, and reads what they carry once all are there.
    fn assemble(&mut self, slot: u32, side: usize, work: &Work<'_>, sink: &mut impl Sink) -> Option<FlowKey> {
        let body = self.fragments.add(&work.packet)?;
        let whole = assembled(&work.packet, &body)?;
        if whole.payload.is_empty() {
            return None;
        }
        // Parts that came before the first one counted in a flow without ports.
        let (slot, side) = match (whole.src_port, whole.dst_port) == (work.packet.src_port, work.packet.dst_port) {
            true => (slot, side),
            false => {
                let named = self.work(whole);
                self.table.find(named.hash, &named.packet.key(), named.network)?
            }
        };
        self.table.extra(slot);
        let (flow, extra, applications) = self.table.parts(slot);
        if let Some(extra) = extra
            && !flow.is(mark::APP_DONE)
        {
            note_entropy(extra, side, &whole);
            let payloads = extra.lengths;
            let news = applications.payload(flow, side, &whole, payloads, false);
            if news.facts || news.refused {
                self.tell(slot, news, whole.time, sink);
            }
        }
        self.tunnel(slot, &whole, sink)
    }

    fn open(&mut self, work: &Work<'_>, sink: &mut impl Sink) -> Option<(u32, usize)> {
        let mut crowded = false;
        match self.table.room(work.packet.time) {
            Ok(None) => {}
            Ok(Some(slot)) => {
                crowded = true;
                let flow = &self.table.flows[slot as usize];
                let reason = match flow.is(mark::LINGER) {
                    // It was over and only waited for stragglers.
                    true => lingered(flow),
                    false => EndReason::Evicted,
                };
                self.counts.evicted += u64::from(reason == EndReason::Evicted);
                self.end(slot, reason, sink);
            }
            Err(_) => return None,
        }
        self.counts.opened += 1;
        let packet = &work.packet;
        let flip = is_flipped(packet);
        let mut flow = Flow {
            key: if flip { packet.key().reversed() } else { packet.key() },
            ip_version: packet.ip_version,
            vlan: packet.vlan.unwrap_or(u16::MAX),
            network: work.network,
            first_seen: packet.time,
            ..Flow::BLANK
        };
        if crowded {
            flow.marks |= mark::SILENT;
        }
        if flip {
            flow.marks |= mark::FLIPPED;
            flow.add_history(b'^', 0);
        }
        let slot = self.table.open(&flow, work.hash);
        if packet.tunnel.kind != TunnelKind::None {
            let extra = self.table.extra(slot);
            extra.tunnel = packet.tunnel;
            note_macs(extra, packet, usize::from(flip));
        }
        self.count(slot, usize::from(flip), work, true, sink);
        Some((slot, usize::from(flip)))
    }

    // Counts a packet in its flow, and reports what that brought.
    fn count(&mut self, slot: u32, side: usize, work: &Work<'_>, new: bool, sink: &mut impl Sink) {
        let packet = &work.packet;
        let has_header = !matches!(packet.fragment, Fragment::Later { .. });
        let last = packet.tcp.flags & (flag::FIN | flag::RST) != 0;
        let payload = packet.payload_len > 0;
        if payload || (packet.protocol == TCP && last) {
            let first = self.table.flows[slot as usize].extra == NONE;
            let extra = self.table.extra(slot);
            if first {
                note_macs(extra, packet, side);
            }
        }
        let (flow, mut extra, applications) = self.table.parts(slot);
        let woken = flow.is(mark::QUIET);
        flow.marks &= !mark::QUIET;
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
        let mut news = News::default();
        if payload && let Some(extra) = extra {
            note_payload(extra, side, packet);
            if !flow.is(mark::APP_DONE) && packet.fragment == Fragment::Whole {
                let (payloads, gap) = (extra.lengths, extra.holes[side] > 0);
                news = applications.payload(flow, side, packet, payloads, gap);
            }
        }
        if over {
            flow.marks |= mark::LINGER;
        }
        if flow.is(mark::SILENT) && flow.records == 0 {
            if worth(flow) >= 3 {
                self.report(slot, FlowState::New, None, None, sink);
            } else {
                self.table.schedule(slot);
                return;
            }
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
            over |= self.tell(slot, news, packet.time, sink);
        }
        if over || woken {
            // Its deadline came nearer; a later one would be noticed by itself.
            self.table.schedule(slot);
        }
    }

    // Reports news, at once or when their time has come. Gives whether the flow's deadline came nearer.
    fn tell(&mut self, slot: u32, news: News, time: i64, sink: &mut impl Sink) -> bool {
        let flow = &mut self.table.flows[slot as usize];
        flow.marks |= mark::PENDING;
        let reported = flow.first_seen + i64::from(flow.reported) * 1_000_000;
        // What opens a conversation and the first refused login are never held back: containment waits for them.
        let urgent = flow.records == 1 || (news.refused && flow.records == 2);
        if urgent || time - reported >= self.table.fact_interval() {
            self.report(slot, FlowState::Active, None, None, sink);
            return false;
        }
        true
    }

    fn end(&mut self, slot: u32, reason: EndReason, sink: &mut impl Sink) {
        let flow = &self.table.flows[slot as usize];
        if is_unheard(flow) && reason == EndReason::Evicted {
            self.aggregates.add(flow, &self.seed);
            self.counts.aggregated += 1;
        } else {
            self.report(slot, FlowState::Ended, Some(reason), None, sink);
        }
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
        let community_id = self.table.community_id(slot);
        let flow = &self.table.flows[slot as usize];
        let subject = Subject {
            flow,
            community_id: &community_id,
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
