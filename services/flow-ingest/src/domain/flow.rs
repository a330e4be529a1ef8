//! The state of one flow, kept small because millions of them are held.

use super::{
    key::{COMMUNITY_ID_LEN, FlowKey},
    packet::Decoded,
    tunnel::Tunnel,
};

/// Marks an absent slot number.
pub const NONE: u32 = u32::MAX;

/// Letters of a history that are kept; a longer one is cut.
pub const HISTORY: usize = 15;

/// States of a TCP endpoint, named as Zeek names them, because `conn_state` is derived from them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Endpoint {
    /// Has sent nothing.
    #[default]
    Inactive,
    /// Sent a SYN.
    SynSent,
    /// Opened with a SYN-ACK.
    SynAckSent,
    /// Was seen only after its handshake.
    Partial,
    /// Has completed its half of the handshake.
    Established,
    /// Sent a FIN.
    Closed,
    /// Sent a RST.
    Reset,
}

/// One direction of a flow.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Side {
    /// Time of its last packet.
    pub last_seen: i64,
    /// IP octets.
    pub ip_bytes: u64,
    /// Payload octets, repeated ones included.
    pub payload: u64,
    packets_low: u32,
    // Sums of squared differences from the running mean (Welford), over the first 2^20 packets.
    len_m2: f32,
    iat_m2: f32,
    /// Sequence number of its SYN, or one before the first that was seen.
    pub start_seq: u32,
    /// One past the highest sequence number it sent.
    pub last_seq: u32,
    /// The highest acknowledgment the other side sent for it.
    pub ack_seq: u32,
    /// Segments it repeated.
    pub retransmits: u32,
    /// Smallest payload.
    pub len_min: u16,
    /// Largest payload.
    pub len_max: u16,
    packets_high: u8,
    /// TCP flags or-ed together.
    pub tcp_flags: u8,
    /// State of its endpoint.
    pub state: Endpoint,
    /// The state before that.
    pub previous: Endpoint,
    /// How often `last_seq` went round.
    pub seq_wraps: u8,
    /// How often `ack_seq` went round.
    pub ack_wraps: u8,
    /// Packets with a window of zero, up to 255.
    pub zero_windows: u8,
    /// Gaps in what it sent, up to 255.
    pub gaps: u8,
}

// Standard deviations look at this many packets of a direction: enough to be exact, and few enough for f32 sums.
const MOMENT_PACKETS: u64 = 1 << 20;

impl Side {
    /// A side that sent nothing.
    pub const SILENT: Self = Self {
        last_seen: 0,
        ip_bytes: 0,
        payload: 0,
        packets_low: 0,
        len_m2: 0.0,
        iat_m2: 0.0,
        start_seq: 0,
        last_seq: 0,
        ack_seq: 0,
        retransmits: 0,
        len_min: 0,
        len_max: 0,
        packets_high: 0,
        tcp_flags: 0,
        state: Endpoint::Inactive,
        previous: Endpoint::Inactive,
        seq_wraps: 0,
        ack_wraps: 0,
        zero_windows: 0,
        gaps: 0,
    };

    /// Packets so far.
    pub fn packets(&self) -> u64 {
        u64::from(self.packets_high) << 32 | u64::from(self.packets_low)
    }

    /// Counts a packet. `first` is the time of this direction's first packet.
    pub fn count(&mut self, packet: &Decoded<'_>, first: i64) {
        let seen = self.packets();
        let len = packet.payload_len;
        let short = len.min(u32::from(u16::MAX)) as u16;
        if seen == 0 {
            (self.len_min, self.len_max) = (short, short);
        } else {
            self.len_min = self.len_min.min(short);
            self.len_max = self.len_max.max(short);
            if seen < MOMENT_PACKETS {
                let n = seen as f32;
                let gaps = n - 1.0;
                let span = (self.last_seen - first).max(0) as f32 / 1e3;
                // Side by side, so that one instruction divides all.
                let (over, under) = ([self.payload as f32, n, span, gaps], [n, n + 1.0, gaps, gaps + 1.0]);
                let [mean, share, mean_gap, gap_share]: [f32; 4] = std::array::from_fn(|i| over[i] / under[i]);
                let off = len as f32 - mean;
                self.len_m2 += off * off * share;
                if seen > 1 {
                    let gap = (packet.time - self.last_seen).max(0) as f32 / 1e3;
                    let off = gap - mean_gap;
                    self.iat_m2 += off * off * gap_share;
                }
            }
        }
        self.last_seen = self.last_seen.max(packet.time);
        self.ip_bytes += u64::from(packet.ip_len);
        self.payload += u64::from(len);
        let (low, carry) = self.packets_low.overflowing_add(1);
        self.packets_low = low;
        self.packets_high = self.packets_high.saturating_add(u8::from(carry));
    }

    /// Mean and standard deviation of payload lengths, octets. `None` before the first packet.
    pub fn lengths(&self) -> Option<(f32, f32)> {
        let n = self.packets();
        let of = n.min(MOMENT_PACKETS) as f32;
        (n > 0).then(|| ((self.payload as f64 / n as f64) as f32, (self.len_m2 / of).sqrt()))
    }

    /// Mean and standard deviation of the time between packets, microseconds. `None` before the second packet.
    pub fn intervals(&self, first: i64) -> Option<(f32, f32)> {
        let gaps = self.packets().checked_sub(1).filter(|&gaps| gaps > 0)?;
        let mean = (self.last_seen - first).max(0) as f64 / 1e3 / gaps as f64;
        let of = gaps.min(MOMENT_PACKETS - 1) as f32;
        Some((mean as f32, (self.iat_m2 / of).sqrt()))
    }
}

/// Facts about a flow as bits.
pub mod mark {
    /// The slot holds a flow.
    pub const LIVE: u16 = 1;
    /// The roles were swapped because the first packet came from the likely server (Zeek's `^`).
    pub const FLIPPED: u16 = 1 << 1;
    /// The opener's FIN or RST was handled.
    pub const SRC_CLOSED: u16 = 1 << 2;
    /// The called side's FIN or RST was handled.
    pub const DST_CLOSED: u16 = 1 << 3;
    /// The connection is over and waits for stragglers.
    pub const LINGER: u16 = 1 << 4;
    /// Facts wait for the record that tells them.
    pub const PENDING: u16 = 1 << 5;
    /// The application layer has told all it will.
    pub const APP_DONE: u16 = 1 << 6;
    /// The opener's FIN took one from its sequence space.
    pub const SRC_FIN: u16 = 1 << 7;
    /// The called side's FIN took one from its sequence space.
    pub const DST_FIN: u16 = 1 << 8;
    /// The opener's SYN was seen.
    pub const SRC_SYN: u16 = 1 << 9;
    /// The called side's SYN was seen.
    pub const DST_SYN: u16 = 1 << 10;
    /// It began while the table was full, and nobody is told of it until both sides use it.
    pub const SILENT: u16 = 1 << 11;
    /// Nothing came since the last report, so its timer waits for its end only; the next packet sets it anew.
    pub const QUIET: u16 = 1 << 12;
}

/// One flow. Facts that only flows with payload have are in [`Extra`].
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Flow {
    /// Who talks to whom, from the opener's side.
    pub key: FlowKey,
    /// 4 or 6.
    pub ip_version: u8,
    /// Application protocol, see `app::Service`.
    pub service: u8,
    /// VLAN id, or `u16::MAX`.
    pub vlan: u16,
    /// Bits of [`mark`].
    pub marks: u16,
    /// Tells apart flows with one key that began in one nanosecond.
    pub serial: u16,
    /// Timer wheel bucket.
    pub bucket: u16,
    /// The network of its addresses, see `network::Network`.
    pub network: u32,
    /// Letters of the history that were set, as bits.
    pub history_bits: u32,
    /// Time of the first packet.
    pub first_seen: i64,
    /// Directions: the opener's, the called side's.
    pub sides: [Side; 2],
    /// From `first_seen` to the called side's first packet, nanoseconds.
    pub answer_delay: f32,
    /// From SYN to SYN-ACK, nanoseconds; negative while unknown.
    pub rtt: f32,
    /// Records written so far.
    pub records: u32,
    /// Milliseconds from `first_seen` to the last record.
    pub reported: u32,
    /// Slot of its [`Extra`].
    pub extra: u32,
    /// Slot of its application state.
    pub app: u32,
    /// Zeek's history string.
    pub history: [u8; HISTORY],
    /// Letters in it.
    pub history_len: u8,
}

// The budget is 256 octets a flow; the index takes about 13 of them, and the timer wheel's list 8.
const _: () = assert!(size_of::<Flow>() <= 232);

/// The bucket of a flow that is in none.
pub const OUT: u16 = u16::MAX;

impl Flow {
    /// A flow with nothing in it.
    pub const BLANK: Self = Self {
        key: FlowKey::EMPTY,
        ip_version: 0,
        service: 0,
        vlan: u16::MAX,
        marks: 0,
        serial: 0,
        bucket: OUT,
        network: 0,
        history_bits: 0,
        first_seen: 0,
        sides: [Side::SILENT; 2],
        answer_delay: 0.0,
        rtt: -1.0,
        records: 0,
        reported: 0,
        extra: NONE,
        app: NONE,
        history: [0; HISTORY],
        history_len: 0,
    };
}

/// A Community ID as records tell it.
pub type CommunityId = [u8; COMMUNITY_ID_LEN];
/// What stands for one that was not computed.
pub const NO_COMMUNITY_ID: CommunityId = [0; COMMUNITY_ID_LEN];

/// Facts that only flows with payload, or with an end, have.
#[derive(Clone, Copy, Debug, Default)]
pub struct Extra {
    /// Lengths of the first packets with payload, positive from the opener.
    pub first_lengths: [i16; 8],
    /// How many there are.
    pub lengths: u8,
    /// Entropy of each side's first payload in 1/8192 bit; `u16::MAX` while unknown.
    pub entropy: [u16; 2],
    /// Link addresses of opener and called side; zero when unknown.
    pub macs: [[u8; 6]; 2],
    /// Octets acknowledged and never seen.
    pub missed: u64,
    /// Octets skipped over that may still come.
    pub holes: [u32; 2],
    /// Where the last FIN of each side ended.
    pub fin_at: [u32; 2],
    /// Where the last RST of each side was.
    pub rst_at: [u32; 2],
    /// The tunnel its first packet came through.
    pub tunnel: Tunnel,
    /// Its Community ID, once a record has told it; zeros before.
    pub community_id: CommunityId,
}

impl Flow {
    /// Time of the last packet.
    pub fn last_seen(&self) -> i64 {
        match self.sides[1].packets() {
            0 => self.sides[0].last_seen.max(self.first_seen),
            _ => self.sides[0].last_seen.max(self.sides[1].last_seen),
        }
    }

    /// Time of a direction's first packet.
    pub fn first_of(&self, side: usize) -> i64 {
        match side {
            0 => self.first_seen,
            _ => self.first_seen + self.answer_delay as i64,
        }
    }

    /// A mark is set.
    pub fn is(&self, mark: u16) -> bool {
        self.marks & mark != 0
    }

    /// Appends a letter to the history, small from the called side.
    pub fn add_history(&mut self, letter: u8, side: usize) {
        let letter = if side == 0 { letter } else { letter.to_ascii_lowercase() };
        if let Some(place) = self.history.get_mut(usize::from(self.history_len)) {
            *place = letter;
            self.history_len += 1;
        }
    }

    /// Appends a letter unless this side has it. Says whether it had.
    pub fn had_history(&mut self, letter: u8, side: usize) -> bool {
        let bit = 1_u32
            << (match letter {
                b'S' => 0,
                b'H' => 1,
                b'A' => 2,
                b'D' => 3,
                b'F' => 4,
                b'R' => 5,
                b'I' => 6,
                _ => 7,
            } + 8 * side as u32);
        let had = self.history_bits & bit != 0;
        if !had {
            self.history_bits |= bit;
            self.add_history(letter, side);
        }
        had
    }

    /// Octets a side sent: for TCP the length of its stream by sequence numbers, as Zeek counts, so that repeats
    /// count once and octets that were acknowledged but not seen count too; else the sum of its payloads.
    pub fn bytes(&self, side: usize) -> u64 {
        let (this, peer) = (&self.sides[side], &self.sides[1 - side]);
        if self.key.protocol != super::packet::TCP {
            return this.payload;
        }
        if this.state == Endpoint::Inactive {
            return 0;
        }
        if this.previous == Endpoint::SynSent && this.state == Endpoint::Reset && peer.state == Endpoint::Inactive {
            return 0;
        }
        let full = |wraps: u8, seq: u32| u64::from(wraps) << 32 | u64::from(seq);
        let end = full(this.seq_wraps, this.last_seq).max(full(this.ack_wraps, this.ack_seq));
        let control = 1 + u64::from(self.is([mark::SRC_FIN, mark::DST_FIN][side]));
        end.saturating_sub(u64::from(this.start_seq)).saturating_sub(control)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::packet::{Fragment, TcpHeader};

    fn packet(time: i64, payload_len: u32) -> Decoded<'static> {
        Decoded {
            time,
            src: [0; 16],
            dst: [0; 16],
            src_port: 0,
            dst_port: 0,
            protocol: 17,
            ip_version: 4,
            ip_len: payload_len + 28,
            payload_len,
            payload: &[],
            tcp: TcpHeader::default(),
            fragment: Fragment::Whole,
            vlan: None,
            tags: 0,
            macs: None,
            tunnel: Tunnel::default(),
            network: Default::default(),
            depth: 0,
        }
    }

    fn mean_and_deviation(values: &[f64]) -> (f64, f64) {
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
        (mean, (squares / values.len() as f64).sqrt())
    }

    #[test]
    fn a_steady_beacon_has_no_deviation() {
        let mut side = Side::default();
        for i in 0..100 {
            side.count(&packet(i * 60_000_000_000, 120), 0);
        }
        let (mean, deviation) = side.intervals(0).unwrap();
        assert_eq!(mean, 60e6);
        assert!(deviation < 10.0, "{deviation} of 60 s in microseconds");
        assert_eq!(side.lengths(), Some((120.0, 0.0)));
    }

    proptest! {
        #[test]
        fn moments_equal_their_definition(
            steps in prop::collection::vec((0_i64..5_000_000_000, 0_u32..1500), 2..200),
        ) {
            let mut side = Side::default();
            let (mut time, mut lengths, mut gaps) = (0, Vec::new(), Vec::new());
            for (i, &(gap, len)) in steps.iter().enumerate() {
                if i > 0 {
                    time += gap;
                    gaps.push(gap as f64 / 1e3);
                }
                lengths.push(f64::from(len));
                side.count(&packet(time, len), 0);
            }
            let near = |got: f32, want: f64| (f64::from(got) - want).abs() <= 1e-3 * want.abs() + 0.5;
            let (mean, deviation) = mean_and_deviation(&lengths);
            let got = side.lengths().unwrap();
            prop_assert!(near(got.0, mean) && near(got.1, deviation), "{got:?} {mean} {deviation}");
            let (mean, deviation) = mean_and_deviation(&gaps);
            let got = side.intervals(0).unwrap();
            prop_assert!(near(got.0, mean) && near(got.1, deviation), "{got:?} {mean} {deviation}");
        }
    }
}
