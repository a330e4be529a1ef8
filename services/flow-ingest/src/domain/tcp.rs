//! The life of a TCP connection as Zeek tells it: endpoint states, history letters, repeats, gaps, `conn_state`.
//!
//! The rules follow Zeek's documentation of `conn_state` and `history` and were checked against its logs.

use super::{
    flow::{Endpoint, Extra, Flow, mark},
    packet::{TcpHeader, flag},
};

// A SYN or RST whose sequence number is this far off says nothing about the stream.
const OUTLANDISH: i32 = 1 << 20;

/// What a segment did to its connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effect {
    /// The connection is over; it only waits for stragglers.
    pub over: bool,
}

/// Signed distance from `b` to `a` in sequence space (RFC 1982).
pub fn distance(a: u32, b: u32) -> i32 {
    a.wrapping_sub(b) as i32
}

/// Applies a segment from `side` (0 for the opener) with `len` octets of payload. `extra` is present whenever the
/// segment has payload, a FIN or a RST.
pub fn segment(
    flow: &mut Flow,
    extra: Option<&mut Extra>,
    side: usize,
    tcp: &TcpHeader,
    len: u32,
    time: i64,
) -> Effect {
    let has = |bit| tcp.flags & bit != 0;
    let (syn, fin, rst, ack) = (has(flag::SYN), has(flag::FIN), has(flag::RST), has(flag::ACK));
    let mut span = u32::from(syn) + u32::from(fin);
    if !rst {
        span = span.wrapping_add(len);
    }
    let end = tcp.seq.wrapping_add(span);
    begin(flow, side, tcp, end);
    let mut spare = Extra::default();
    let extra = extra.unwrap_or(&mut spare);
    history(flow, extra, side, tcp, len, end);
    zero_window(flow, side, tcp);
    flow.sides[side].tcp_flags |= tcp.flags;
    if syn {
        flow.marks |= [mark::SRC_SYN, mark::DST_SYN][side];
        if side == 1 && ack && flow.rtt < 0.0 && flow.is(mark::SRC_SYN) {
            flow.rtt = (time - flow.sides[0].last_seen).max(0) as f32;
        }
    }
    if fin {
        flow.marks |= [mark::SRC_FIN, mark::DST_FIN][side];
    }
    if ack {
        acknowledge(flow, extra, 1 - side, tcp.ack, rst);
    }
    sent(flow, extra, side, tcp, end, len);
    transition(flow, side, tcp, len)
}

// Sets where a side's stream begins.
fn begin(flow: &mut Flow, side: usize, tcp: &TcpHeader, end: u32) {
    let syn = tcp.flags & flag::SYN != 0;
    let this = &mut flow.sides[side];
    let (at, last) = match this.state {
        Endpoint::Inactive if syn => (tcp.seq, end),
        // Numbered as though a SYN had come, and so that the first segment is no repeat.
        Endpoint::Inactive => (tcp.seq.wrapping_sub(1), tcp.seq),
        Endpoint::SynSent | Endpoint::SynAckSent if syn && tcp.seq != this.start_seq => (tcp.seq, end),
        Endpoint::Established | Endpoint::Partial if syn => (tcp.seq, end),
        Endpoint::Reset if syn && this.previous == Endpoint::Inactive => (tcp.seq, end),
        _ => return,
    };
    (this.start_seq, this.ack_seq, this.last_seq) = (at, at, last);
    // Sequence numbers are counted from the start, so passing zero is one time round.
    (this.seq_wraps, this.ack_wraps) = (u8::from(last < at), 0);
}

fn history(flow: &mut Flow, extra: &mut Extra, side: usize, tcp: &TcpHeader, len: u32, end: u32) {
    let has = |bit| tcp.flags & bit != 0;
    match (has(flag::SYN), has(flag::FIN), has(flag::RST)) {
        (true, false, false) => {
            flow.had_history(if has(flag::ACK) { b'H' } else { b'S' }, side);
        }
        (false, true, false) => {
            if flow.had_history(b'F', side) && extra.fin_at[side] != end {
                flow.add_history(b'F', side);
            }
            extra.fin_at[side] = end;
        }
        (false, false, true) => {
            if flow.had_history(b'R', side) && extra.rst_at[side] != tcp.seq {
                flow.add_history(b'R', side);
            }
            extra.rst_at[side] = tcp.seq;
        }
        (false, false, false) => {
            if len > 0 {
                flow.had_history(b'D', side);
            } else if has(flag::ACK) {
                flow.had_history(b'A', side);
            }
        }
        (_, true, true) => {
            flow.had_history(b'I', side);
        }
        _ => {
            flow.had_history(b'Q', side);
        }
    }
}

// A letter at the first, tenth, hundredth, … time.
fn scaled(count: u32) -> bool {
    matches!(count, 1 | 10 | 100 | 1_000 | 10_000 | 100_000 | 1_000_000)
}

fn zero_window(flow: &mut Flow, side: usize, tcp: &TcpHeader) {
    // After a RST, or once the other side will send no more, a window of zero says nothing.
    if tcp.window != 0
        || tcp.flags & flag::RST != 0
        || flow.sides[1 - side].state == Endpoint::Closed
        || flow.sides[side].state == Endpoint::Reset
    {
        return;
    }
    let this = &mut flow.sides[side];
    this.zero_windows = this.zero_windows.saturating_add(1);
    if this.zero_windows < u8::MAX && scaled(u32::from(this.zero_windows)) {
        flow.add_history(b'W', side);
    }
}

// `side` sent what is acknowledged.
fn acknowledge(flow: &mut Flow, extra: &mut Extra, side: usize, ack: u32, rst: bool) {
    let this = &mut flow.sides[side];
    if this.state == Endpoint::Inactive {
        // Only the other side is heard: number this one as though it had sent a SYN.
        let at = ack.wrapping_sub(1);
        (this.start_seq, this.ack_seq, this.last_seq) = (at, at, at);
        return;
    }
    let ahead = distance(ack, this.ack_seq);
    // An acknowledgment of zero far away is a broken one rather than a long stream.
    if rst || ahead <= 0 || (ack == 0 && ahead > OUTLANDISH) {
        return;
    }
    if ack < this.ack_seq {
        this.ack_wraps = this.ack_wraps.saturating_add(1);
    }
    this.ack_seq = ack;
    // Acknowledged beyond what was seen, and seen with holes: those octets will not come any more.
    let unseen = distance(ack, this.last_seq).max(0) as u32;
    let hole = if unseen > 0 || ack == this.last_seq {
        std::mem::take(&mut extra.holes[side])
    } else {
        0
    };
    let missed = u64::from(unseen) + u64::from(hole);
    let trusted = matches!(this.state, Endpoint::Established | Endpoint::Partial);
    if missed > 0 && trusted {
        extra.missed += missed;
        if unseen > 0 {
            advance(this, ack);
        }
        this.gaps = this.gaps.saturating_add(1);
        if this.gaps < u8::MAX && scaled(u32::from(this.gaps)) {
            flow.add_history(b'G', side);
        }
    }
}

fn advance(this: &mut super::flow::Side, to: u32) {
    if to < this.last_seq {
        this.seq_wraps = this.seq_wraps.saturating_add(1);
    }
    this.last_seq = to;
}

fn sent(flow: &mut Flow, extra: &mut Extra, side: usize, tcp: &TcpHeader, end: u32, len: u32) {
    let has = |bit| tcp.flags & bit != 0;
    let this = &mut flow.sides[side];
    let ahead = distance(end, this.last_seq);
    if (has(flag::SYN) || has(flag::RST)) && ahead.unsigned_abs() > OUTLANDISH as u32 {
        return;
    }
    if has(flag::FIN) && this.last_seq == this.start_seq.wrapping_add(1) {
        // Only SYN and FIN of a long stream were seen: the FIN tells its length.
        if end != this.last_seq {
            advance(this, end);
        }
        return;
    }
    if this.state == Endpoint::Reset {
        return;
    }
    if ahead > 0 {
        let skipped = distance(tcp.seq, this.last_seq);
        if skipped > 0 && len > 0 && this.state != Endpoint::Inactive {
            extra.holes[side] = extra.holes[side].saturating_add(skipped as u32);
        }
        advance(this, end);
    } else if len > 0 {
        if extra.holes[side] > 0 {
            // Late rather than repeated: it fills what was skipped.
            extra.holes[side] = extra.holes[side].saturating_sub(len);
        }
        this.retransmits = this.retransmits.saturating_add(1);
        if scaled(this.retransmits) {
            flow.add_history(b'T', side);
        }
    }
}

fn transition(flow: &mut Flow, side: usize, tcp: &TcpHeader, len: u32) -> Effect {
    use Endpoint::{Closed, Established, Inactive, Partial, Reset, SynAckSent, SynSent};
    let has = |bit| tcp.flags & bit != 0;
    let (syn, fin, rst, ack) = (has(flag::SYN), has(flag::FIN), has(flag::RST), has(flag::ACK));
    let before = flow.sides[side].state;
    let peer = flow.sides[1 - side].state;
    let mut closing = false;
    match before {
        Inactive => {
            if syn {
                if side == 0 {
                    let opened = match (ack, peer) {
                        (true, _) => SynAckSent,
                        // The answer was captured before the question.
                        (false, Established) => Established,
                        (false, _) => SynSent,
                    };
                    set(flow, 0, opened);
                } else {
                    // A SYN that answers a SYN-ACK comes from the real opener.
                    if matches!(peer, SynSent | SynAckSent) {
                        set(flow, 0, Established);
                    }
                    set(flow, 1, Established);
                }
            }
            if fin {
                set(flow, side, Closed);
                closing = true;
            }
            if rst {
                set(flow, side, Reset);
                closing = true;
            }
            if flow.sides[side].state == Inactive {
                if side == 1 && len == 0 && peer == SynSent {
                    // Some stacks acknowledge a SYN before they answer it.
                } else if ack && peer == Established {
                    set(flow, side, Established);
                } else {
                    set(flow, side, Partial);
                }
            }
        }
        SynSent | SynAckSent => {
            if fin {
                set(flow, side, Closed);
                closing = true;
            }
            if rst {
                set(flow, side, Reset);
                closing = true;
            }
        }
        Established | Partial => {
            if syn && before == Partial && peer == Inactive && !ack {
                set(flow, side, SynSent);
            }
            if fin && !rst {
                set(flow, side, Closed);
                let other = &flow.sides[1 - side];
                if other.state == Reset && other.previous == Closed {
                    // FIN, then RST: after all a normal end.
                    set(flow, 1 - side, Closed);
                }
                closing = true;
            }
            if rst {
                set(flow, side, Reset);
                closing = true;
            }
        }
        Closed => {
            if rst && peer != Closed {
                set(flow, side, Reset);
                closing = true;
            }
        }
        Reset => {}
    }
    if closing {
        flow.marks |= [mark::SRC_CLOSED, mark::DST_CLOSED][side];
    }
    let other_closed = flow.is([mark::DST_CLOSED, mark::SRC_CLOSED][side]);
    Effect {
        over: closing && (flow.sides[side].state == Reset || other_closed || flow.sides[1 - side].state == Inactive),
    }
}

fn set(flow: &mut Flow, side: usize, state: Endpoint) {
    let this = &mut flow.sides[side];
    if this.state != state {
        this.previous = this.state;
        this.state = state;
    }
}

/// Whether a SYN begins a new connection on a flow's addresses and ports rather than belonging to it.
pub fn is_reuse(flow: &Flow, side: usize, tcp: &TcpHeader, time: i64, linger: i64) -> bool {
    if tcp.flags & (flag::SYN | flag::ACK | flag::RST | flag::FIN) != flag::SYN {
        return false;
    }
    let this = &flow.sides[side];
    let known = flow.is([mark::SRC_SYN, mark::DST_SYN][side]);
    if known && this.start_seq == tcp.seq && !flow.is(mark::LINGER) {
        return false;
    }
    flow.is(mark::LINGER)
        || (flow.is(mark::SRC_CLOSED) || flow.is(mark::DST_CLOSED))
        || (this.state != Endpoint::Inactive && time.saturating_sub(flow.last_seen()) > linger)
}

/// Zeek's `conn_state` of a TCP connection.
pub fn conn_state(flow: &Flow) -> &'static str {
    use Endpoint::{Closed, Established, Inactive, Partial, Reset, SynAckSent, SynSent};
    let [src, dst] = [flow.sides[0].state, flow.sides[1].state];
    let unheard = |state| matches!(state, Inactive | Partial);
    match (src, dst) {
        (SynSent | SynAckSent, Reset) => "REJ",
        (Reset, Reset) if flow.bytes(0) == 0 && flow.bytes(1) == 0 => "REJ",
        (_, Reset) if unheard(src) => "RSTRH",
        (_, Reset) => "RSTR",
        (Reset, _) if unheard(dst) => "RSTOS0",
        (Reset, _) => "RSTO",
        (Closed, Closed) => "SF",
        (Closed, _) if unheard(dst) => "SH",
        (Closed, _) => "S2",
        (_, Closed) if unheard(src) => "SHR",
        (_, Closed) => "S3",
        (SynSent, Inactive) => "S0",
        (Established, Established) => "S1",
        _ => "OTH",
    }
}
