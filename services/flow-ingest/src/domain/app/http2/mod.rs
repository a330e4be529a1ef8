//! HTTP/2 without TLS (RFC 9113): with prior knowledge, and after an upgrade of HTTP/1. Heads are read, bodies counted and
//! passed over.

mod hpack;
mod huffman;
#[cfg(test)]
mod tests;

use self::hpack::{Name, Table};
use super::{
    http::{Found, HttpFacts, MAX_AGENT, MAX_FIELD, MAX_URI, text},
    probe::Guess,
    stream::Step,
};

/// What a client's side begins with (RFC 9113 §3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

// Octets of a frame's header.
const HEADER: usize = 9;
// Longest block of fields that is put together, octets.
const LONGEST_BLOCK: usize = 1 << 16;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// What is told about a flow's HTTP/2: as of HTTP/1, the first request and response, the latest status, and counts over
/// all streams.
#[derive(Debug, Default)]
pub struct Http2Facts {
    /// What is told.
    pub http: HttpFacts,
    // The side that sent the preface.
    client: usize,
    sides: [Side; 2],
}

#[derive(Debug, Default)]
struct Side {
    state: State,
    table: Table,
    // A block that has not come to its end.
    block: Vec<u8>,
    continued: Option<Block>,
}

#[derive(Clone, Copy, Debug, Default)]
enum State {
    #[default]
    Start,
    Frame,
    Block(Block),
}

#[derive(Clone, Copy, Debug)]
struct Block {
    // Octets of it that this frame still has, and of padding behind them.
    left: usize,
    padding: u64,
    // No frame with more of it follows.
    last: bool,
    // A request that the server announces: read only because the table goes on with it.
    pushed: bool,
}

struct Frame {
    length: usize,
    kind: u8,
    flags: u8,
    stream: u32,
}

impl Frame {
    fn read(data: &[u8]) -> Option<Self> {
        let head: &[u8; HEADER] = data.first_chunk()?;
        Some(Self {
            length: usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]),
            kind: head[3],
            flags: head[4],
            stream: u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff,
        })
    }

    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Whether octets begin a side of HTTP/2: a client's preface, or settings, which a server may send before it has seen that.
pub fn begins(data: &[u8]) -> Guess {
    if data.starts_with(PREFACE) {
        return Guess::Yes;
    }
    if PREFACE.starts_with(data) {
        return Guess::Maybe;
    }
    Guess::sure(settings(data) == Some(true))
}

fn settings(data: &[u8]) -> Option<bool> {
    let frame = Frame::read(data)?;
    let rest = &data[HEADER..];
    if frame.kind != SETTINGS || frame.flags != 0 || frame.stream != 0 || data[5] != 0 || frame.length > 96 {
        return Some(false);
    }
    // Nothing but zeros and a four is too little to be sure.
    if frame.length == 0 {
        let next = Frame::read(rest)?;
        let known = match next.kind {
            SETTINGS => next.length == 0 && next.flags == 1,
            WINDOW_UPDATE => next.length == 4 && next.flags == 0,
            _ => false,
        };
        return Some(known && next.stream == 0);
    }
    let values = rest.get(..frame.length)?;
    // Those of RFC 9113 §6.5.2, and of its extensions up to now.
    let known = |setting: &[u8]| setting[0] == 0 && matches!(setting[1], 1..=9 | 16);
    Some(frame.length.is_multiple_of(6) && values.chunks_exact(6).all(known))
}

impl Http2Facts {
    /// Goes on with what HTTP/1 told, after the side that is no client agreed to an upgrade.
    pub fn upgraded(http: HttpFacts, client: usize) -> Self {
        let mut facts = Self {
            http,
            client,
            ..Self::default()
        };
        facts.sides[1 - client].state = State::Frame;
        facts
    }

    /// Looks at the octets at the front of a side's stream.
    pub fn step(&mut self, side: usize, data: &[u8], found: &mut Found) -> Step {
        match self.sides[side].state {
            State::Start => {
                if PREFACE.len() > data.len() && PREFACE.starts_with(data) {
                    return Step::More;
                }
                self.sides[side].state = State::Frame;
                match data.starts_with(PREFACE) {
                    true => {
                        self.client = side;
                        Step::Take(PREFACE.len())
                    }
                    false => self.frame(side, data, found).unwrap_or(Step::Stop),
                }
            }
            State::Frame => self.frame(side, data, found).unwrap_or(Step::Stop),
            State::Block(block) => self.block(side, block, data, found).unwrap_or(Step::Stop),
        }
    }

    // `None` where this side cannot be followed any more.
    fn frame(&mut self, side: usize, data: &[u8], found: &mut Found) -> Option<Step> {
        let Some(frame) = Frame::read(data) else {
            return Some(Step::More);
        };
        let whole = Step::Skip((HEADER + frame.length) as u64);
        let continued = self.sides[side].continued;
        // A block of fields is not interrupted (RFC 9113 §4.3).
        if (frame.kind == CONTINUATION) != continued.is_some() {
            return None;
        }
        let fixed = match frame.kind {
            HEADERS => 5 * usize::from(frame.has(PRIORITY)),
            PUSH_PROMISE => 4,
            CONTINUATION => 0,
            DATA if frame.stream != 0 => 0,
            DATA => return None,
            _ => return Some(whole),
        };
        let padded = frame.kind != CONTINUATION && frame.has(PADDED);
        let before = usize::from(padded) + fixed;
        let Some(head) = data.get(HEADER..HEADER + before) else {
            return Some(Step::More);
        };
        let padding = if padded { usize::from(head[0]) } else { 0 };
        let content = frame.length.checked_sub(before + padding)?;
        if frame.kind == DATA {
            let role = usize::from(side != self.client);
            let sum = &mut self.http.body_bytes[role];
            *sum = sum.saturating_add(content as u64);
            return Some(whole);
        }
        if frame.stream == 0 || self.sides[side].block.len() + content > LONGEST_BLOCK {
            return None;
        }
        let block = Block {
            left: content,
            padding: padding as u64,
            last: frame.has(END_HEADERS),
            pushed: continued.map_or(frame.kind == PUSH_PROMISE, |block| block.pushed),
        };
        let rest = &data[HEADER + before..];
        if content > 0 && (rest.len() < content || !block.last || continued.is_some()) {
            self.sides[side].state = State::Block(block);
            return Some(Step::Take(HEADER + before));
        }
        // The usual case: all of it is here and need not be copied.
        match block.last && continued.is_none() {
            true => self.fields(side, block.pushed, &rest[..content], found)?,
            false => self.end(side, block, found)?,
        }
        Some(whole)
    }

    fn block(&mut self, side: usize, mut block: Block, data: &[u8], found: &mut Found) -> Option<Step> {
        let taken = block.left.min(data.len());
        self.sides[side].block.extend_from_slice(&data[..taken]);
        block.left -= taken;
        if block.left > 0 {
            self.sides[side].state = State::Block(block);
            return Some(Step::Take(taken));
        }
        self.sides[side].state = State::Frame;
        self.end(side, block, found)?;
        Some(Step::Skip(taken as u64 + block.padding))
    }

    // The end of a frame with a part of a block.
    fn end(&mut self, side: usize, block: Block, found: &mut Found) -> Option<()> {
        self.sides[side].continued = (!block.last).then_some(block);
        if !block.last {
            return Some(());
        }
        let whole = std::mem::take(&mut self.sides[side].block);
        self.fields(side, block.pushed, &whole, found)
    }

    fn fields(&mut self, side: usize, pushed: bool, block: &[u8], found: &mut Found) -> Option<()> {
        let wanted = self.http.requests == 0 || self.http.responses == 0;
        let mut head = Head::default();
        self.sides[side]
            .table
            .decode(block, |name, value| head.note(name, value, wanted))?;
        if !pushed {
            self.told(head, found);
        }
        Some(())
    }

    fn told(&mut self, head: Head, found: &mut Found) {
        let http = &mut self.http;
        if head.is_request {
            http.requests = http.requests.saturating_add(1);
            if http.requests == 1 {
                http.method = head.method;
                http.uri = head.path;
                http.host = head.authority;
                http.user_agent = head.user_agent;
                http.referrer = head.referrer;
                // A call of gRPC says what it is before anybody answers.
                http.content_type = head.content_type.filter(|kind| kind.starts_with("application/grpc"));
                found.facts = true;
            }
            return;
        }
        // An answer, unless it is one that another follows, or the fields behind a body.
        if let Some(status) = head.status.filter(|status| *status >= 200) {
            http.responses = http.responses.saturating_add(1);
            if http.responses == 1 {
                http.content_type = head.content_type.or(http.content_type.take());
                found.facts = true;
            }
            http.status = Some(status);
        }
        // PERMISSION_DENIED and UNAUTHENTICATED of gRPC, which come with status 200.
        if matches!(head.status, Some(401 | 403)) || matches!(head.grpc_status, Some(7 | 16)) {
            http.auth_failures = http.auth_failures.saturating_add(1);
            found.refused = true;
        }
    }
}

// What is read of a block of fields.
#[derive(Default)]
struct Head {
    is_request: bool,
    status: Option<u16>,
    grpc_status: Option<u16>,
    method: Option<String>,
    path: Option<String>,
    authority: Option<String>,
    user_agent: Option<String>,
    referrer: Option<String>,
    content_type: Option<String>,
}

impl Head {
    // Texts are kept only where they are `wanted`.
    fn note(&mut self, name: Name, value: &[u8], wanted: bool) {
        match name {
            Name::Method => self.is_request = true,
            Name::Status => self.status = number(value),
            Name::GrpcStatus => self.grpc_status = number(value),
            _ => {}
        }
        if !wanted {
            return;
        }
        let (place, limit) = match name {
            Name::Method => (&mut self.method, MAX_FIELD),
            Name::Path => (&mut self.path, MAX_URI),
            Name::Authority | Name::Host => (&mut self.authority, MAX_FIELD),
            Name::UserAgent => (&mut self.user_agent, MAX_AGENT),
            Name::Referer => (&mut self.referrer, MAX_URI),
            Name::ContentType => (&mut self.content_type, MAX_FIELD),
            Name::Status | Name::GrpcStatus | Name::Other => return,
        };
        // Of two the first counts; `:authority` comes before `host`.
        if place.is_none() {
            *place = text(value, limit);
        }
    }
}

fn number(value: &[u8]) -> Option<u16> {
    std::str::from_utf8(value).ok()?.parse().ok()
}
