//! A stream of octets, cut into lines, or into the objects of JSON documents.

use super::MAX_LINE;

/// A line, or an object.
pub(super) struct Piece {
    /// Its octets, without the line end.
    pub(super) octets: Vec<u8>,
    /// The line it begins on, from 1.
    pub(super) line: u64,
    /// What keeps it from being read.
    pub(super) problem: Option<&'static str>,
}

enum Mode {
    Lines,
    Objects(Objects),
}

// Where in a JSON document the splitter is. Records are the outermost objects: those of a stream, those of an outermost
// array, or those of the array `records` in an outermost object.
#[derive(Default)]
struct Objects {
    depth: u32,
    text: bool,
    escaped: bool,
    // Depth at which the array of records was opened inside an object.
    records: Option<u32>,
    // The latest string, to know the key before an array.
    key: Vec<u8>,
    after_key: bool,
    // The current outermost object has given its records already.
    given: bool,
}

/// Cuts a stream into pieces, holding at most one that is not whole.
pub(super) struct Splitter {
    mode: Mode,
    waiting: Vec<u8>,
    at: usize,
    piece: Vec<u8>,
    line: u64,
    began: u64,
    over: bool,
    spare: Vec<u8>,
}

impl Splitter {
    pub(super) fn lines() -> Self {
        Self::new(Mode::Lines)
    }

    pub(super) fn objects() -> Self {
        Self::new(Mode::Objects(Objects::default()))
    }

    fn new(mode: Mode) -> Self {
        Self {
            mode,
            waiting: Vec::new(),
            at: 0,
            piece: Vec::new(),
            line: 1,
            began: 1,
            over: false,
            spare: Vec::new(),
        }
    }

    pub(super) fn push(&mut self, octets: &[u8]) {
        self.waiting.drain(..self.at);
        self.at = 0;
        self.waiting.extend_from_slice(octets);
    }

    /// The next piece that is whole.
    pub(super) fn next_piece(&mut self) -> Option<Piece> {
        match self.mode {
            Mode::Lines => self.next_line(),
            Mode::Objects(_) => self.next_object(),
        }
    }

    /// Gives the memory of a piece back.
    pub(super) fn reuse(&mut self, piece: Piece) {
        self.spare = piece.octets;
        self.spare.clear();
    }

    fn next_line(&mut self) -> Option<Piece> {
        let rest = &self.waiting[self.at..];
        let Some(end) = rest.iter().position(|&b| b == b'\n') else {
            // What is over the bound is forgotten up to its end.
            let room = (MAX_LINE + 1).saturating_sub(self.piece.len());
            self.piece.extend_from_slice(&rest[..rest.len().min(room)]);
            self.at = self.waiting.len();
            return None;
        };
        let room = (MAX_LINE + 1).saturating_sub(self.piece.len());
        self.piece.extend_from_slice(&rest[..end.min(room)]);
        self.at += end + 1;
        self.line += 1;
        Some(self.whole(self.line - 1))
    }

    fn whole(&mut self, line: u64) -> Piece {
        let mut octets = std::mem::replace(&mut self.piece, std::mem::take(&mut self.spare));
        let problem = (octets.len() > MAX_LINE || std::mem::take(&mut self.over)).then_some("is longer than 4 MiB");
        while octets.last().is_some_and(|b| b.is_ascii_whitespace() && *b != b'\t') {
            octets.pop();
        }
        Piece { octets, line, problem }
    }

    fn next_object(&mut self) -> Option<Piece> {
        let Mode::Objects(state) = &mut self.mode else {
            return None;
        };
        while let Some(&octet) = self.waiting.get(self.at) {
            self.at += 1;
            self.line += u64::from(octet == b'\n');
            let top = state.records.unwrap_or(0);
            let inside = state.depth > top;
            if inside {
                match self.piece.len() < MAX_LINE {
                    true => self.piece.push(octet),
                    false => self.over = true,
                }
            }
            if state.text {
                match octet {
                    _ if state.escaped => state.escaped = false,
                    b'\\' => state.escaped = true,
                    b'"' => {
                        state.text = false;
                        state.after_key = true;
                    }
                    _ if state.depth == 1 && state.key.len() < 16 => state.key.push(octet),
                    _ => {}
                }
                continue;
            }
            if state.depth == 0 && !matches!(octet, b'{' | b'[' | b']' | b',') && !octet.is_ascii_whitespace() {
                // Outside of every object only what joins them is expected.
                if self.piece.is_empty() {
                    self.began = self.line;
                }
                if self.piece.len() < MAX_LINE {
                    self.piece.push(octet);
                }
                continue;
            }
            if state.depth == 0 && !self.piece.is_empty() && matches!(octet, b'{' | b'\n') {
                if octet == b'{' {
                    self.at -= 1;
                }
                let line = self.began;
                let mut piece = self.whole(line);
                piece.problem = Some("is no JSON object");
                return Some(piece);
            }
            match octet {
                b'"' => {
                    state.text = true;
                    if state.depth == 1 {
                        state.key.clear();
                    }
                }
                b'{' => {
                    if state.depth == top {
                        self.piece.clear();
                        self.piece.push(octet);
                        self.began = self.line;
                    }
                    state.depth += 1;
                }
                b'[' if state.depth == 0 => {}
                b']' if state.depth == 0 => {}
                b'[' => {
                    state.depth += 1;
                    if state.depth == 2 && state.after_key && state.key == b"records" && state.records.is_none() {
                        state.records = Some(2);
                        state.given = true;
                        self.piece.clear();
                        self.over = false;
                    }
                }
                b'}' | b']' => {
                    state.depth = state.depth.saturating_sub(1);
                    let closed = state.depth;
                    if Some(closed + 1) == state.records {
                        state.records = None;
                        self.piece.clear();
                    } else if closed == top && octet == b'}' {
                        if closed == 0 && std::mem::take(&mut state.given) {
                            // The object around an array whose records were given one by one.
                            self.piece.clear();
                            self.over = false;
                            continue;
                        }
                        let line = self.began;
                        return Some(self.whole(line));
                    }
                }
                b':' => continue,
                _ if octet.is_ascii_whitespace() => continue,
                _ => {}
            }
            state.after_key = false;
        }
        None
    }

    /// Octets of the piece that is not whole yet.
    pub(super) fn pending(&self) -> usize {
        self.piece.len() + self.waiting.len() - self.at
    }

    /// The stream ends: what is left is a piece, whole or not.
    pub(super) fn finish(&mut self) -> Option<Piece> {
        let began = match &self.mode {
            Mode::Lines => self.line,
            Mode::Objects(_) => self.began,
        };
        if self.piece.is_empty() {
            return None;
        }
        let mut piece = self.whole(began);
        if let Mode::Objects(state) = &mut self.mode {
            // A document that grows has no end yet; its records were given.
            let open = state.given && state.records.is_none();
            *state = Objects::default();
            if open {
                return None;
            }
            piece.problem = piece.problem.or(Some("the document ends in the middle of an object"));
        }
        Some(piece)
    }

    /// Another stream begins.
    pub(super) fn restart(&mut self) {
        self.piece.clear();
        self.waiting.clear();
        self.at = 0;
        self.line = 1;
        self.over = false;
        if let Mode::Objects(state) = &mut self.mode {
            *state = Objects::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cut(mut splitter: Splitter, text: &[u8], step: usize) -> Vec<(u64, String)> {
        let mut pieces = Vec::new();
        for part in text.chunks(step.max(1)) {
            splitter.push(part);
            while let Some(piece) = splitter.next_piece() {
                pieces.push((piece.line, String::from_utf8_lossy(&piece.octets).into_owned()));
            }
        }
        if let Some(piece) = splitter.finish() {
            pieces.push((piece.line, String::from_utf8_lossy(&piece.octets).into_owned()));
        }
        pieces
    }

    #[test]
    fn lines_end_with_either_kind_of_end_or_none() {
        let lines = cut(Splitter::lines(), b"a\r\n\nb\tc\t\nlast", 2);
        let lines: Vec<_> = lines.iter().map(|(line, text)| (*line, text.as_str())).collect();
        assert_eq!(lines, [(1, "a"), (2, ""), (3, "b\tc\t"), (4, "last")]);
    }

    #[test]
    fn objects_come_from_streams_arrays_and_records() {
        for text in [
            "{\"a\":1}\n{\"a\":{\"b\":\"}\"}}",
            "[{\"a\":1},\n{\"a\":{\"b\":\"}\"}}]",
            "{\"x\":[1,{\"y\":2}],\"records\":[{\"a\":1},\n{\"a\":{\"b\":\"}\"}}],\"z\":{}}",
        ] {
            for step in [1, 3, 1000] {
                let objects = cut(Splitter::objects(), text.as_bytes(), step);
                let objects: Vec<_> = objects.iter().map(|(line, text)| (*line, text.as_str())).collect();
                assert_eq!(objects, [(1, "{\"a\":1}"), (2, "{\"a\":{\"b\":\"}\"}}")], "{text}");
            }
        }
    }

    #[test]
    fn what_is_no_object_is_told() {
        let mut splitter = Splitter::objects();
        splitter.push(b"{\"a\":1}\nno \"json\n{\"b\":2}");
        assert_eq!(splitter.next_piece().unwrap().octets, b"{\"a\":1}");
        let wrong = splitter.next_piece().unwrap();
        assert_eq!((wrong.line, wrong.problem), (2, Some("is no JSON object")));
        assert_eq!(splitter.next_piece().unwrap().octets, b"{\"b\":2}");
    }

    #[test]
    fn what_is_too_long_is_told_and_the_next_is_read() {
        let mut splitter = Splitter::lines();
        splitter.push(&vec![b'x'; MAX_LINE * 2]);
        assert!(splitter.next_piece().is_none());
        splitter.push(b"yy\nnext\n");
        assert!(splitter.next_piece().unwrap().problem.is_some());
        assert_eq!(splitter.next_piece().unwrap().octets, b"next");
        let mut splitter = Splitter::objects();
        let long = format!("{{\"a\":\"{}\"}}{{\"b\":1}}", "x".repeat(MAX_LINE));
        splitter.push(long.as_bytes());
        assert!(splitter.next_piece().unwrap().problem.is_some());
        let next = splitter.next_piece().unwrap();
        assert!(next.problem.is_none() && next.octets == b"{\"b\":1}");
    }

    proptest! {
        #[test]
        fn how_a_stream_is_cut_changes_nothing(text in "[a{}\\[\\]\":,\\\\\n ]{0,60}", step in 1..20usize) {
            prop_assert_eq!(
                cut(Splitter::objects(), text.as_bytes(), step),
                cut(Splitter::objects(), text.as_bytes(), 1000)
            );
            prop_assert_eq!(
                cut(Splitter::lines(), text.as_bytes(), step),
                cut(Splitter::lines(), text.as_bytes(), 1000)
            );
        }
    }
}
