//! Puts the head of a TCP stream back in order, within a budget, and skips what no parser asks for.

use crate::domain::tcp::distance;

/// What a parser made of the octets at the front of its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It used this many, at least one; it is asked again about the next.
    Take(usize),
    /// It does not need the next ones, which may be more than are here.
    Skip(u64),
    /// It needs more to decide.
    More,
    /// This side has told all it will.
    Stop,
    /// It lost the thread. It is asked again with the first octets of each later segment.
    Lost,
}

const PIECES: usize = 4;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Mode {
    #[default]
    Before,
    On,
    Lost,
    Off,
}

/// One direction of a TCP stream.
#[derive(Debug, Default)]
pub struct Stream {
    mode: Mode,
    // Sequence number of the first octet that the parser has not used.
    next: u32,
    skip: u64,
    // Octets from `next` on, of which `pieces` (sorted, apart, from `next`) have come.
    held: Vec<u8>,
    pieces: [(u32, u32); PIECES],
    count: usize,
}

impl Stream {
    /// Sets where the stream starts, if that is not known yet.
    pub fn start(&mut self, seq: u32) {
        if self.mode == Mode::Before {
            self.mode = Mode::On;
            self.next = seq;
        }
    }

    /// It has not begun.
    pub fn is_before(&self) -> bool {
        self.mode == Mode::Before
    }

    /// Nothing more is wanted from it.
    pub fn is_off(&self) -> bool {
        self.mode == Mode::Off
    }

    /// Wants nothing more.
    pub fn stop(&mut self) {
        self.mode = Mode::Off;
        self.held = Vec::new();
        self.count = 0;
    }

    /// Takes a segment: `data` as captured, of `claimed` octets. `parse` is given the octets at the front and whether
    /// the budget is used up, so that more will not come.
    pub fn feed(
        &mut self,
        mut seq: u32,
        mut data: &[u8],
        claimed: u32,
        budget: usize,
        mut parse: impl FnMut(&[u8], bool) -> Step,
    ) {
        let mut claimed = claimed as usize;
        match self.mode {
            Mode::Before | Mode::Off => return,
            Mode::Lost => {
                if distance(seq, self.next) < 0 {
                    return;
                }
                // The parser says again that it is lost unless this segment begins something it knows.
                self.mode = Mode::On;
                self.next = seq;
                self.skip = 0;
            }
            Mode::On => {}
        }
        let ahead = i64::from(distance(seq, self.next));
        let end = ahead + claimed as i64;
        if end <= 0 {
            return;
        }
        if self.skip > 0 {
            let pass = self.skip.min(end as u64);
            self.skip -= pass;
            self.next = self.next.wrapping_add(pass as u32);
            if self.skip > 0 || pass as i64 == end {
                return;
            }
        }
        let old = i64::from(distance(self.next, seq));
        if old > 0 {
            let old = old as usize;
            data = data.get(old..).unwrap_or_default();
            claimed -= old;
            seq = self.next;
        }
        let ahead = distance(seq, self.next) as usize;
        if ahead == 0 && self.count == 0 {
            let used = self.run(data, claimed, data.len() >= budget, &mut parse);
            if self.mode == Mode::On && self.skip == 0 && used < data.len() {
                self.hold(0, &data[used..], budget);
            }
        } else {
            self.hold(ahead, data, budget);
            self.drain(budget, &mut parse);
        }
        if data.len() < claimed && self.mode == Mode::On && self.skip == 0 {
            // The capture cut this segment, so its end is not known.
            self.lose();
        }
    }

    // Lets the parser work on octets at the front. Gives how many were used.
    fn run(&mut self, data: &[u8], claimed: usize, full: bool, parse: &mut impl FnMut(&[u8], bool) -> Step) -> usize {
        let mut used = 0;
        while used < data.len() {
            match parse(&data[used..], full) {
                Step::Take(n) => {
                    let n = n.clamp(1, data.len() - used);
                    used += n;
                    self.next = self.next.wrapping_add(n as u32);
                }
                Step::Skip(n) => {
                    let pass = n.min((claimed - used) as u64);
                    self.skip = n - pass;
                    self.next = self.next.wrapping_add(pass as u32);
                    used = data.len().min(used + pass as usize);
                    if self.skip > 0 {
                        break;
                    }
                }
                Step::More => {
                    if full {
                        self.lose();
                    }
                    break;
                }
                Step::Stop => {
                    self.stop();
                    break;
                }
                Step::Lost => {
                    self.lose();
                    break;
                }
            }
        }
        used
    }

    fn lose(&mut self) {
        self.mode = Mode::Lost;
        self.held = Vec::new();
        self.count = 0;
    }

    fn hold(&mut self, at: usize, data: &[u8], budget: usize) {
        let end = (at + data.len()).min(budget);
        if at >= end {
            return;
        }
        if self.held.len() < end {
            self.held.resize(end, 0);
        }
        // What came first stays: it is what the receiver most likely took.
        let mut from = at;
        for &(start, stop) in &self.pieces[..self.count] {
            let (start, stop) = (start as usize, stop as usize);
            if from < start.min(end) {
                self.held[from..start.min(end)].copy_from_slice(&data[from - at..start.min(end) - at]);
            }
            from = from.max(stop);
        }
        if from < end {
            self.held[from..end].copy_from_slice(&data[from - at..end - at]);
        }
        self.note(at as u32, end as u32);
    }

    fn note(&mut self, start: u32, end: u32) {
        let (mut start, mut end) = (start, end);
        let mut merged = [(0, 0); PIECES + 1];
        let mut count = 0;
        for &(s, e) in &self.pieces[..self.count] {
            if e < start || s > end {
                merged[count] = (s, e);
                count += 1;
            } else {
                (start, end) = (start.min(s), end.max(e));
            }
        }
        merged[count] = (start, end);
        count += 1;
        merged[..count].sort_unstable();
        // A stream in more pieces than this waits for its earlier ones to come again.
        self.count = count.min(PIECES);
        self.pieces.copy_from_slice(&merged[..PIECES]);
    }

    fn drain(&mut self, budget: usize, parse: &mut impl FnMut(&[u8], bool) -> Step) {
        if self.count == 0 || self.pieces[0].0 != 0 {
            return;
        }
        let ready = self.pieces[0].1 as usize;
        let held = std::mem::take(&mut self.held);
        let used = self.run(&held[..ready], ready, ready >= budget, parse);
        if self.mode != Mode::On {
            return;
        }
        if self.skip > 0 {
            // Later pieces lie in what is skipped or behind it; those behind come again or are a gap.
            self.count = 0;
            return;
        }
        self.held = held;
        self.held.drain(..used);
        let mut count = 0;
        for i in 0..self.count {
            let (start, end) = self.pieces[i];
            if end as usize > used {
                self.pieces[count] = ((start as usize).saturating_sub(used) as u32, end - used as u32);
                count += 1;
            }
        }
        self.count = count;
        if count == 0 {
            self.held = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // Lines; `#n` on a line skips n octets after it.
    fn lines(out: &mut Vec<String>, skip: &mut u64, data: &[u8]) -> Step {
        if *skip > 0 {
            return Step::Skip(std::mem::take(skip));
        }
        match data.iter().position(|&b| b == b'\n') {
            None => Step::More,
            Some(end) => {
                let line = String::from_utf8_lossy(&data[..end]).into_owned();
                if let Some(n) = line.strip_prefix('#') {
                    *skip = n.parse().unwrap();
                }
                out.push(line);
                Step::Take(end + 1)
            }
        }
    }

    proptest! {
        #[test]
        fn order_and_repeats_do_not_matter(
            cuts in prop::collection::vec(1_usize..12, 1..10),
            swaps in prop::collection::vec((0_usize..20, 0_usize..3), 0..4),
            start in any::<u32>(),
        ) {
            let text = b"alpha\nbeta\n#20\n....................gamma\n#3\nxyzdelta\n";
            let mut segments = Vec::new();
            let mut at = 0;
            for cut in cuts.iter().cycle() {
                let end = (at + cut).min(text.len());
                segments.push((at, end));
                at = end;
                if at == text.len() {
                    break;
                }
            }
            // Neighbours change places and some are sent twice, as networks do.
            for (place, distance) in swaps {
                let a = place % segments.len();
                let b = (a + distance).min(segments.len() - 1);
                let copy = segments[a];
                segments.swap(a, b);
                segments.push(copy);
            }
            let whole: Vec<_> = segments.clone();
            segments.extend(whole);
            let (mut stream, mut out, mut skip) = (Stream::default(), Vec::new(), 0);
            stream.start(start);
            for (from, to) in segments {
                let data = &text[from..to];
                let seq = start.wrapping_add(from as u32);
                stream.feed(seq, data, data.len() as u32, 4096, |d, _| lines(&mut out, &mut skip, d));
            }
            prop_assert_eq!(out, ["alpha", "beta", "#20", "gamma", "#3", "delta"]);
        }

        #[test]
        fn any_segments_keep_it_within_budget(
            segments in prop::collection::vec(
                (any::<u8>(), prop::collection::vec(any::<u8>(), 0..60), 0_u32..80), 0..60),
        ) {
            let (mut stream, mut out, mut skip) = (Stream::default(), Vec::new(), 0);
            stream.start(0);
            for (seq, data, beyond) in segments {
                let data: Vec<u8> = data.iter().map(|b| if *b == b'#' { b'.' } else { *b }).collect();
                let claimed = data.len() as u32 + beyond / 70 * beyond;
                stream.feed(u32::from(seq), &data, claimed, 128, |d, _| lines(&mut out, &mut skip, d));
                prop_assert!(stream.held.len() <= 128);
            }
        }
    }
}
