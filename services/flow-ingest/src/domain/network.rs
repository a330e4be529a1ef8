//! Networks that use the same addresses, told apart by the tunnels their packets come through.
//!
//! Most tunnels have one identifier for both directions, which becomes a part of the flow's key. GTP-U has one for each
//! direction, chosen by whoever receives: [`Bearers`] learns which two belong together.

use std::collections::HashMap;

use super::{
    key::{FlowKey, HashSeed, mix},
    packet::Decoded,
    tunnel::{Tunnel, TunnelKind},
};

/// All tunnels a packet came through that have an identifier for both directions; zero for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Network(u64);

impl Network {
    /// It came through none.
    pub const NONE: Self = Self(0);

    /// Inside one more tunnel. Those without an identifier, and those whose directions have different ones, keep no
    /// networks apart.
    #[must_use]
    pub fn inside(self, tunnel: Tunnel) -> Self {
        use TunnelKind::{Erspan, Geneve, Gre, Pbb, Vxlan};
        match (tunnel.kind, tunnel.id) {
            (Pbb | Gre | Erspan | Vxlan | Geneve, Some(id)) => self.numbered(tunnel.kind, u64::from(id)),
            _ => self,
        }
    }

    fn numbered(self, kind: TunnelKind, number: u64) -> Self {
        let step = mix(self.0 ^ 0x9e37_79b9_7f4a_7c15, number ^ (kind as u64 + 1) << 56);
        Self(step | 1)
    }

    /// What a flow's key has of it, and of the VLAN tags where these separate networks.
    #[inline(always)]
    pub fn number(self, seed: &HashSeed, tags: u32) -> u32 {
        match (self.0, tags) {
            (0, 0) => 0,
            (tunnels, tags) => (seed.word(tunnels ^ u64::from(tags) << 32) as u32).max(1),
        }
    }
}

// Where one direction of a bearer ends: the receiver and the identifier it chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct End {
    outer: Network,
    receiver: [u8; 16],
    teid: u32,
}

#[derive(Clone, Copy, Debug)]
struct Leg {
    bearer: u64,
    // Where the other direction ends.
    partner: Option<End>,
}

// A flow that was seen in a leg.
#[derive(Clone, Copy, Debug)]
struct Seen {
    key: FlowKey,
    sender: [u8; 16],
    end: End,
    bearer: u64,
    turn: u64,
}

// Ends that are remembered: twice as many at most. What is forgotten is learned anew, and its flows begin anew.
const ENDS: usize = 1 << 16;
// Flows that are remembered, and how many of them share a place.
const SEEN: usize = 1 << 12;
const WAYS: usize = 4;

/// Which identifiers of GTP-U belong together.
///
/// An end that is new joins a bearer when the first thing that comes through it answers a flow of that bearer, between
/// the same two gateways. Of several bearers with the same flow the one that waits longest is answered. A bearer whose
/// other direction is known takes a new end only where another gateway receives: the terminal moved.
#[derive(Default)]
pub struct Bearers {
    ends: HashMap<End, Leg>,
    older: HashMap<End, Leg>,
    seen: Vec<Option<Seen>>,
    turn: u64,
}

impl Bearers {
    /// The network inside a bearer. `outer` is the datagram of GTP-U, `inner` what it carries.
    pub fn network(&mut self, outer: &Decoded<'_>, teid: u32, inner: &Decoded<'_>) -> Network {
        if self.seen.is_empty() {
            self.seen.resize(SEEN, None);
        }
        self.turn += 1;
        let key = inner.key();
        let end = End {
            outer: outer.network,
            receiver: outer.dst,
            teid,
        };
        let bearer = match self.leg(&end) {
            Some(leg) => leg.bearer,
            None => self.new_end(end, outer, &key),
        };
        self.note(Seen {
            key,
            sender: outer.src,
            end,
            bearer,
            turn: self.turn,
        });
        inner.network.numbered(TunnelKind::Gtpu, bearer)
    }

    fn leg(&mut self, end: &End) -> Option<Leg> {
        if let Some(leg) = self.ends.get(end) {
            return Some(*leg);
        }
        // What is still used is carried over.
        let leg = self.older.remove(end)?;
        self.keep(*end, leg);
        Some(leg)
    }

    fn keep(&mut self, end: End, leg: Leg) {
        if self.ends.len() >= ENDS {
            std::mem::swap(&mut self.ends, &mut self.older);
            self.ends.clear();
        }
        self.ends.insert(end, leg);
    }

    fn new_end(&mut self, end: End, outer: &Decoded<'_>, key: &FlowKey) -> u64 {
        let asked = self.asked(outer, key);
        let Some(asked) = asked else {
            let bearer = mix(
                mix(end.outer.0 ^ u64::from(end.teid), 0xbf58_476d_1ce4_e5b9) ^ self.turn,
                0xd1b5_4a32_d192_ed03,
            );
            self.keep(end, Leg { bearer, partner: None });
            return bearer;
        };
        let bearer = asked.bearer;
        if let Some(leg) = self.leg(&asked.end) {
            let leg = Leg {
                partner: Some(end),
                ..leg
            };
            self.ends.insert(asked.end, leg);
        }
        self.keep(
            end,
            Leg {
                bearer,
                partner: Some(asked.end),
            },
        );
        bearer
    }

    // The flow that a packet through a new end answers.
    fn asked(&mut self, outer: &Decoded<'_>, key: &FlowKey) -> Option<Seen> {
        let from = place(key);
        let mut waiting: Option<Seen> = None;
        let mut moved: Option<Seen> = None;
        for at in from..from + WAYS {
            let Some(seen) = self.seen[at] else { continue };
            let answers =
                seen.key.is_reverse_of(key) && seen.end.outer == outer.network && seen.end.receiver == outer.src;
            if !answers {
                continue;
            }
            match self.leg(&seen.end)?.partner {
                None if seen.sender == outer.dst && waiting.is_none_or(|other| seen.turn < other.turn) => {
                    waiting = Some(seen);
                }
                Some(partner) if partner.receiver != outer.dst && moved.is_none_or(|other| seen.turn > other.turn) => {
                    moved = Some(seen);
                }
                _ => {}
            }
        }
        waiting.or(moved)
    }

    fn note(&mut self, seen: Seen) {
        let from = place(&seen.key);
        let ways = &mut self.seen[from..from + WAYS];
        let same = |held: &Option<Seen>| held.is_some_and(|held| held.end == seen.end && held.key == seen.key);
        if let Some(held) = ways.iter_mut().find(|held| same(held)) {
            // Who waits keeps its turn.
            *held = Some(Seen {
                turn: held.map_or(seen.turn, |held| held.turn),
                ..seen
            });
            return;
        }
        let oldest = ways.iter_mut().min_by_key(|held| held.map_or(0, |held| held.turn));
        if let Some(place) = oldest {
            *place = Some(seen);
        }
    }
}

// Where a flow is remembered, the same for both directions.
fn place(key: &FlowKey) -> usize {
    let half = |address: &[u8; 16], port: u16| {
        let bits = u128::from_le_bytes(*address);
        mix(
            bits as u64 ^ 0xa076_1d64_78bd_642f,
            (bits >> 64) as u64 ^ u64::from(port) << 17 ^ 0xe703_7ed1_a0b4_28db,
        )
    };
    let sum = half(&key.src, key.src_port).wrapping_add(half(&key.dst, key.dst_port));
    (mix(sum, 0x8ebc_6af0_9c88_c6e3) as usize % (SEEN / WAYS)) * WAYS
}
