//! The flow table: a bounded slab of flows, an index over it, a timer wheel through it.

use std::collections::VecDeque;

use super::{
    app::Applications,
    flow::{CommunityId, Endpoint, Extra, Flow, NO_COMMUNITY_ID, NONE, OUT, mark},
    index::Index,
    key::{FlowKey, HashSeed, community_id},
    packet::{Decoder, ICMP, ICMPV6, TCP, UDP},
    prefetch::fetch,
    record::worth,
    wheel::{Link, Wheel},
};

/// Bounds and times of a flow table. Times are nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most flows held at once.
    pub flows: usize,
    /// Most flows with application state at once.
    pub applications: usize,
    /// Most octets of a stream held for reassembly, each direction.
    pub stream_bytes: usize,
    /// Time after which a TCP connection attempt without an answer is over.
    pub tcp_attempt: i64,
    /// Idle timeout of TCP.
    pub tcp_idle: i64,
    /// Idle timeout of UDP.
    pub udp_idle: i64,
    /// Idle timeout of ICMP.
    pub icmp_idle: i64,
    /// Idle timeout of everything else.
    pub other_idle: i64,
    /// How long a closed connection waits for stragglers.
    pub close_linger: i64,
    /// How long a reset connection waits for stragglers.
    pub reset_linger: i64,
    /// How often a flow that goes on is reported.
    pub active_interval: i64,
    /// Shortest time between two reports of new facts of one flow.
    pub fact_interval: i64,
    /// How packets are decoded.
    pub decoder: Decoder,
    /// Whether VLAN ids are part of a flow's key.
    pub vlans_apart: bool,
}

impl Default for Limits {
    fn default() -> Self {
        const SECOND: i64 = 1_000_000_000;
        Self {
            flows: 1 << 20,
            applications: 1 << 18,
            stream_bytes: 16 << 10,
            tcp_attempt: 5 * SECOND,
            tcp_idle: 300 * SECOND,
            udp_idle: 60 * SECOND,
            icmp_idle: 60 * SECOND,
            other_idle: 60 * SECOND,
            close_linger: 5 * SECOND,
            reset_linger: SECOND / 2,
            active_interval: 10 * SECOND,
            fact_interval: SECOND / 100,
            decoder: Decoder::default(),
            vlans_apart: false,
        }
    }
}

/// The table.
pub struct Table {
    /// Flows by slot; only those with [`mark::LIVE`] are there.
    pub flows: Vec<Flow>,
    /// Application states.
    pub applications: Applications,
    extras: Vec<Extra>,
    free_extras: Vec<u32>,
    index: Index,
    wheel: Wheel,
    // By slot: neighbours in a bucket of the wheel, or the next free slot.
    links: Vec<Link>,
    free: u32,
    live: usize,
    // Flows in the order they began, with their serial numbers: those that have still to show that they are more than
    // a flood's.
    young: VecDeque<(u32, u16)>,
    young_limit: usize,
    hand: usize,
    limits: Limits,
    seed: HashSeed,
    serial: u16,
}

// More flows than this no index is made for.
const MOST: usize = 1 << 30;

// One in so many flows is young.
const YOUNG_SHARE: usize = 8;
/// Flows whose timers are handled together, so that they wait for memory together.
pub const BATCH: usize = 32;

// How many older flows an eviction looks at when every young one is a conversation.
const SAMPLE: usize = 64;
// A flow that both sides use and that was heard so recently is not given up for a newcomer.
const IN_USE: i64 = 1_000_000_000;

impl Table {
    /// Makes an empty table.
    pub fn new(limits: Limits, seed: HashSeed) -> Self {
        let flows = limits.flows.clamp(1, MOST);
        Self {
            flows: Vec::with_capacity(flows),
            applications: Applications::new(limits.applications, limits.stream_bytes),
            extras: Vec::new(),
            free_extras: Vec::new(),
            index: Index::new(flows),
            wheel: Wheel::default(),
            links: Vec::with_capacity(flows),
            free: NONE,
            live: 0,
            young: VecDeque::new(),
            young_limit: (flows / YOUNG_SHARE).max(16),
            hand: 0,
            limits: Limits { flows, ..limits },
            seed,
            serial: 0,
        }
    }

    /// Flows in the table.
    pub fn len(&self) -> usize {
        self.live
    }

    /// There is no flow.
    pub fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// Has brought near what a search for this hash reads first. It, [`fetch_flow`](Self::fetch_flow) and
    /// [`fetch_state`](Self::fetch_state) are called one after the other for several searches, which then wait for memory
    /// together.
    #[inline(always)]
    pub fn fetch_place(&self, hash: u64) {
        self.index.fetch(hash);
    }

    /// Has the flow brought near that a search for this hash most likely finds.
    #[inline(always)]
    pub fn fetch_flow(&self, hash: u64) {
        if let Some(flow) = self.flows.get(self.index.first(hash) as usize) {
            fetch(flow);
        }
    }

    /// Has its rarer facts and its application state brought near, where they may be needed.
    #[inline(always)]
    pub fn fetch_state(&self, hash: u64) {
        let Some(flow) = self.flows.get(self.index.first(hash) as usize) else {
            return;
        };
        if let Some(extra) = self.extras.get(flow.extra as usize) {
            fetch(extra);
            if !flow.is(mark::APP_DONE) {
                self.applications.fetch(flow.app);
            }
        }
    }

    /// The flow of a packet with this key, and which side sent it.
    pub fn find(&self, hash: u64, key: &FlowKey, network: u32) -> Option<(u32, usize)> {
        let mut side = 0;
        let found = self.index.find(hash, |slot| {
            let flow = &self.flows[slot as usize];
            if flow.network != network {
                return false;
            }
            let flow = &flow.key;
            if flow == key {
                side = 0;
                true
            } else if flow.is_reverse_of(key) {
                side = 1;
                true
            } else {
                false
            }
        });
        found.map(|slot| (slot, side))
    }

    /// Room for one more flow, or the slot of the flow that has to go first: the oldest of the young ones that is no
    /// conversation, or where all of these are, the least worth and longest silent of some others. `Err` when every flow
    /// that was looked at is worth more than a newcomer.
    pub fn room(&mut self, now: i64) -> Result<Option<u32>, Full> {
        if self.live < self.limits.flows {
            return Ok(None);
        }
        while let Some((slot, serial)) = self.young.pop_front() {
            let flow = &self.flows[slot as usize];
            // Conversations leave the queue and stay in the table.
            if flow.is(mark::LIVE) && flow.serial == serial && worth(flow) < 3 {
                return Ok(Some(slot));
            }
        }
        let mut least: Option<(u8, i64, u32)> = None;
        for _ in 0..SAMPLE.min(self.flows.len()) {
            self.hand = (self.hand + 1) % self.flows.len();
            let flow = &self.flows[self.hand];
            if flow.is(mark::LIVE) {
                let candidate = (worth(flow), flow.last_seen(), self.hand as u32);
                least = Some(least.map_or(candidate, |l| l.min(candidate)));
            }
        }
        match least {
            Some((3.., seen, _)) if now.saturating_sub(seen) < IN_USE => Err(Full),
            Some((_, _, slot)) => Ok(Some(slot)),
            None => Err(Full),
        }
    }

    /// Puts a flow in. There must be [`room`](Self::room).
    pub fn open(&mut self, flow: &Flow, hash: u64) -> u32 {
        self.serial = self.serial.wrapping_add(1);
        let slot = match self.free {
            NONE => {
                self.flows.push(*flow);
                self.links.push(Link::NONE);
                self.flows.len() as u32 - 1
            }
            slot => {
                self.free = self.links[slot as usize].next;
                self.flows[slot as usize] = *flow;
                slot
            }
        };
        let opened = &mut self.flows[slot as usize];
        opened.serial = self.serial;
        opened.marks |= mark::LIVE;
        self.live += 1;
        if self.young.len() >= self.young_limit {
            self.young.pop_front();
        }
        self.young.push_back((slot, self.serial));
        self.index.insert(hash, slot);
        self.wheel.start(flow.first_seen);
        slot
    }

    /// Takes a flow out.
    pub fn close(&mut self, slot: u32) {
        self.unschedule(slot);
        let flow = &mut self.flows[slot as usize];
        self.applications.release(flow);
        if flow.extra != NONE {
            self.free_extras.push(flow.extra);
        }
        let hash = self.seed.hash_in(&flow.key, flow.network);
        self.index.remove(hash, slot);
        self.flows[slot as usize].marks = 0;
        self.links[slot as usize].next = self.free;
        self.free = slot;
        self.live -= 1;
    }

    /// The rarer facts of a flow, made if need be.
    pub fn extra(&mut self, slot: u32) -> &mut Extra {
        let flow = &mut self.flows[slot as usize];
        if flow.extra == NONE {
            let fresh = Extra {
                entropy: [u16::MAX; 2],
                ..Extra::default()
            };
            flow.extra = match self.free_extras.pop() {
                Some(place) => {
                    self.extras[place as usize] = fresh;
                    place
                }
                None => {
                    self.extras.push(fresh);
                    // So that closing a flow never allocates.
                    self.free_extras.reserve(self.extras.len());
                    self.extras.len() as u32 - 1
                }
            };
        }
        &mut self.extras[flow.extra as usize]
    }

    /// A flow with its rarer facts and the application states, to be changed together.
    pub fn parts(&mut self, slot: u32) -> (&mut Flow, Option<&mut Extra>, &mut Applications) {
        let flow = &mut self.flows[slot as usize];
        let extra = match flow.extra {
            NONE => None,
            place => self.extras.get_mut(place as usize),
        };
        (flow, extra, &mut self.applications)
    }

    /// The rarer facts of a flow.
    pub fn extra_of(&self, flow: &Flow) -> Option<&Extra> {
        self.extras.get(flow.extra as usize)
    }

    /// A flow's Community ID, which those with rarer facts keep.
    pub fn community_id(&mut self, slot: u32) -> CommunityId {
        let flow = &self.flows[slot as usize];
        let mut fresh = NO_COMMUNITY_ID;
        let place = match self.extras.get_mut(flow.extra as usize) {
            Some(extra) => &mut extra.community_id,
            None => &mut fresh,
        };
        if *place == NO_COMMUNITY_ID {
            community_id(&flow.key, flow.ip_version, place);
        }
        *place
    }

    /// When a flow ends unless another packet comes.
    pub fn ends(&self, flow: &Flow) -> i64 {
        let limits = &self.limits;
        let after = if flow.is(mark::LINGER) {
            match flow.sides.iter().any(|side| side.state == Endpoint::Reset) {
                true => limits.reset_linger,
                false => limits.close_linger,
            }
        } else {
            match flow.key.protocol {
                TCP if matches!(flow.sides[0].state, Endpoint::SynSent | Endpoint::SynAckSent)
                    && flow.sides[1].state == Endpoint::Inactive =>
                {
                    limits.tcp_attempt
                }
                TCP => limits.tcp_idle,
                UDP => limits.udp_idle,
                ICMP | ICMPV6 => limits.icmp_idle,
                _ => limits.other_idle,
            }
        };
        flow.last_seen().saturating_add(after)
    }

    /// When a flow is to be reported next.
    pub fn reports(&self, flow: &Flow) -> i64 {
        if (flow.is(mark::LINGER) && !flow.is(mark::PENDING)) || flow.is(mark::QUIET) {
            return i64::MAX;
        }
        let after = match flow.is(mark::PENDING) {
            true => self.limits.fact_interval,
            false => self.limits.active_interval,
        };
        (flow.first_seen + i64::from(flow.reported) * 1_000_000).saturating_add(after)
    }

    /// Shortest time between two reports of new facts of one flow, nanoseconds.
    pub fn fact_interval(&self) -> i64 {
        self.limits.fact_interval
    }

    /// How long a closed connection waits for stragglers, nanoseconds.
    pub fn close_linger(&self) -> i64 {
        self.limits.close_linger
    }

    /// Sets a flow's timer anew.
    pub fn schedule(&mut self, slot: u32) {
        self.unschedule(slot);
        let flow = &self.flows[slot as usize];
        let deadline = self.ends(flow).min(self.reports(flow));
        self.flows[slot as usize].bucket = self.wheel.insert(&mut self.links, slot, deadline);
    }

    fn unschedule(&mut self, slot: u32) {
        let bucket = std::mem::replace(&mut self.flows[slot as usize].bucket, OUT);
        if bucket != OUT {
            self.wheel.remove(&mut self.links, slot, bucket);
        }
    }

    /// The time by which a timer that comes up now is due.
    pub fn timer_time(&self) -> i64 {
        self.wheel.now()
    }

    /// The first flow of a chain whose timers come up on the way to `time`; see [`Wheel::advance`]. Each is taken off it
    /// by [`unchain`](Self::unchain).
    pub fn advance(&mut self, time: i64) -> Option<u32> {
        if self.wheel.is_far(time) {
            self.wheel.jump(time);
            let mut chain = NONE;
            for slot in 0..self.flows.len() as u32 {
                if self.flows[slot as usize].is(mark::LIVE) {
                    self.links[slot as usize].next = chain;
                    chain = slot;
                }
            }
            return (chain != NONE).then_some(chain);
        }
        self.wheel.advance(time)
    }

    /// Takes some flows off a chain, so that they have no timer, and has brought near what their timers will need. Gives
    /// how many they are and what is left of the chain.
    pub fn unchain(&mut self, mut chain: u32, slots: &mut [u32; BATCH]) -> (usize, u32) {
        let mut count = 0;
        while count < BATCH
            && let Some(flow) = self.flows.get(chain as usize)
        {
            fetch(flow);
            slots[count] = chain;
            count += 1;
            chain = self.links[chain as usize].next;
        }
        for &slot in &slots[..count] {
            self.flows[slot as usize].bucket = OUT;
        }
        self.fetch_ends(&slots[..count], self.wheel.now());
        (count, chain)
    }

    /// Has the flows brought near whose timers come up next.
    pub fn fetch_due(&self) {
        let mut slot = self.wheel.coming();
        for _ in 0..BATCH {
            let Some(flow) = self.flows.get(slot as usize) else {
                break;
            };
            fetch(flow);
            slot = self.links[slot as usize].next;
        }
    }

    /// Has brought near what the end of flows needs, as far as they end by a time.
    pub fn fetch_ends(&self, slots: &[u32], by: i64) {
        let flows = || slots.iter().map(|slot| &self.flows[*slot as usize]);
        for flow in flows() {
            if let Some(extra) = self.extras.get(flow.extra as usize) {
                fetch(extra);
                self.applications.fetch(flow.app);
            }
            if self.ends(flow) <= by {
                self.index.fetch(self.seed.hash_in(&flow.key, flow.network));
            }
        }
        for flow in flows() {
            self.applications.fetch_facts(flow.app);
        }
    }
}

/// The table is full of flows that are worth more than a newcomer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;
