//! HTTP/1.0 and 1.1 (RFC 9112): request and response heads, and just enough of bodies to find the next head.

use super::stream::Step;

/// What is told about a flow's HTTP.
#[derive(Debug, Default)]
pub struct HttpFacts {
    /// Method of the first request.
    pub method: Option<String>,
    /// Host of the first request.
    pub host: Option<String>,
    /// Target of the first request, cut at 512 octets.
    pub uri: Option<String>,
    /// User agent of the first request, cut at 256 octets.
    pub user_agent: Option<String>,
    /// Referrer of the first request, cut at 512 octets.
    pub referrer: Option<String>,
    /// Content type of the first response.
    pub content_type: Option<String>,
    /// Status of the latest response.
    pub status: Option<u16>,
    /// Requests.
    pub requests: u32,
    /// Responses.
    pub responses: u32,
    /// Responses with status 401 or 403.
    pub auth_failures: u32,
    /// Octets of the bodies of requests and of responses, as heads and chunks announce them. A body that lasts until
    /// the connection closes is not in it.
    pub body_bytes: [u64; 2],
    // For each request without a response, oldest in the lowest bits: how its response ends.
    awaiting: u64,
    awaited: u8,
    // What each side's latest head was: an answer rather than a request.
    answers: [bool; 2],
    sides: [Side; 2],
}

#[derive(Clone, Copy, Debug, Default)]
enum Side {
    #[default]
    Head,
    Body(u64),
    ChunkSize,
    Trailer,
}

/// What a step found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// A fact is known for the first time.
    pub facts: bool,
    /// A login was refused.
    pub refused: bool,
    /// Neither side speaks HTTP any more: a tunnel or another protocol begins.
    pub over: bool,
    /// HTTP/2 goes on where this answer ends.
    pub http2: bool,
}

const METHODS: [&[u8]; 20] = [
    b"GET",
    b"POST",
    b"HEAD",
    b"PUT",
    b"DELETE",
    b"OPTIONS",
    b"PATCH",
    b"CONNECT",
    b"TRACE",
    b"PROPFIND",
    b"PROPPATCH",
    b"MKCOL",
    b"COPY",
    b"MOVE",
    b"LOCK",
    b"UNLOCK",
    b"REPORT",
    b"SEARCH",
    b"SUBSCRIBE",
    b"NOTIFY",
];

pub(super) const MAX_URI: usize = 512;
pub(super) const MAX_AGENT: usize = 256;
pub(super) const MAX_FIELD: usize = 256;
// A chunk-size line longer than this is no such line.
const MAX_LINE: usize = 1024;

/// Whether octets begin a request: `Some(true)`, may begin one once more come: `None`, or do not.
pub fn begins_request(data: &[u8]) -> Option<bool> {
    let head = &data[..data.len().min(12)];
    match head.iter().position(|&b| b == b' ') {
        Some(end) => Some(METHODS.contains(&&head[..end])),
        None => match METHODS.iter().any(|m| m.starts_with(head)) {
            true => None,
            false => Some(false),
        },
    }
}

/// Whether octets begin a response, in the same terms.
pub fn begins_response(data: &[u8]) -> Option<bool> {
    let mark: &[u8] = b"HTTP/1.";
    match data.len() >= mark.len() {
        true => Some(data.starts_with(mark)),
        false => mark.starts_with(data).then_some(()).map_or(Some(false), |()| None),
    }
}

impl HttpFacts {
    /// Looks at the octets at the front of a side's stream.
    pub fn step(&mut self, side: usize, data: &[u8], full: bool, found: &mut Found) -> Step {
        match self.sides[side] {
            Side::Head => self.head(side, data, full, found),
            Side::Body(left) => {
                self.sides[side] = Side::Head;
                Step::Skip(left)
            }
            Side::ChunkSize => match line(data) {
                Some((text, used)) => match chunk_size(text) {
                    Some(0) => {
                        self.sides[side] = Side::Trailer;
                        Step::Take(used)
                    }
                    // The octets of this chunk and the line end behind them.
                    Some(size) => {
                        let role = usize::from(self.answers[side]);
                        self.body_bytes[role] = self.body_bytes[role].saturating_add(size);
                        Step::Skip((used as u64).saturating_add(size).saturating_add(2))
                    }
                    None => self.lost(side),
                },
                None if data.len() > MAX_LINE => self.lost(side),
                None => Step::More,
            },
            Side::Trailer => match line(data) {
                Some((text, used)) => {
                    if text.is_empty() {
                        self.sides[side] = Side::Head;
                    }
                    Step::Take(used)
                }
                None => Step::More,
            },
        }
    }

    fn lost(&mut self, side: usize) -> Step {
        self.sides[side] = Side::Head;
        Step::Lost
    }

    fn head(&mut self, side: usize, data: &[u8], full: bool, found: &mut Found) -> Step {
        // Empty lines before a request are to be ignored (RFC 9112 §2.2).
        if let [b'\r' | b'\n', ..] = data {
            return Step::Take(1);
        }
        let (request, response) = (begins_request(data), begins_response(data));
        if request == Some(false) && response == Some(false) {
            return Step::Lost;
        }
        let Some(head) = Head::read(data, full) else {
            return Step::More;
        };
        let body = if request == Some(true) {
            self.request(&head, found)
        } else if response == Some(true) {
            self.response(&head, found)
        } else {
            return if full { Step::Lost } else { Step::More };
        };
        let Some(body) = body else {
            return Step::Lost;
        };
        if !head.whole {
            return Step::Lost;
        }
        self.answers[side] = response == Some(true);
        match body {
            Body::None => {}
            Body::Length(0) => {}
            Body::Length(length) => {
                if length != u64::MAX {
                    let role = usize::from(self.answers[side]);
                    self.body_bytes[role] = self.body_bytes[role].saturating_add(length);
                }
                self.sides[side] = Side::Body(length);
            }
            Body::Chunked => self.sides[side] = Side::ChunkSize,
            Body::Over => {
                found.over = true;
                return Step::Stop;
            }
        }
        Step::Take(head.used)
    }

    fn request(&mut self, head: &Head<'_>, found: &mut Found) -> Option<Body> {
        let mut words = head.first.split(|&b| b == b' ').filter(|w| !w.is_empty());
        let (method, target) = (words.next()?, words.next()?);
        words.next().filter(|version| version.starts_with(b"HTTP/"))?;
        self.requests = self.requests.saturating_add(1);
        if self.requests == 1 {
            self.method = text(method, 32);
            self.uri = text(target, MAX_URI);
            self.host = head.fields[HOST].and_then(|v| text(v, MAX_FIELD));
            if self.host.is_none() && method == b"CONNECT" {
                self.host = text(target, MAX_FIELD);
            }
            self.user_agent = head.fields[USER_AGENT].and_then(|v| text(v, MAX_AGENT));
            self.referrer = head.fields[REFERER].and_then(|v| text(v, MAX_URI));
            found.facts = true;
        }
        if self.awaited < 32 {
            let kind = match method {
                b"HEAD" => 1,
                b"CONNECT" => 2,
                _ => 0,
            };
            self.awaiting |= kind << (2 * self.awaited);
            self.awaited += 1;
        }
        Some(head.body().unwrap_or(Body::None))
    }

    fn response(&mut self, head: &Head<'_>, found: &mut Found) -> Option<Body> {
        let mut words = head.first.split(|&b| b == b' ').filter(|w| !w.is_empty());
        let status = words.nth(1)?;
        let status: u16 = std::str::from_utf8(status).ok()?.parse().ok()?;
        if !(100..1000).contains(&status) {
            return None;
        }
        if status == 101 && head.fields[UPGRADE].is_some_and(|to| to.eq_ignore_ascii_case(b"h2c")) {
            found.http2 = true;
            return Some(Body::None);
        }
        if status == 101 {
            self.answered(status, head, found);
            return Some(Body::Over);
        }
        if status < 200 {
            return Some(Body::None);
        }
        let asked = self.awaiting & 3;
        if self.awaited > 0 {
            self.awaiting >>= 2;
            self.awaited -= 1;
        }
        self.answered(status, head, found);
        Some(match (asked, status) {
            (2, 200..300) => Body::Over,
            (1, _) | (_, 204 | 304) => Body::None,
            // Without a length the body lasts until the connection closes.
            _ => head.body().unwrap_or(Body::Length(u64::MAX)),
        })
    }

    fn answered(&mut self, status: u16, head: &Head<'_>, found: &mut Found) {
        self.responses = self.responses.saturating_add(1);
        if self.responses == 1 {
            self.content_type = head.fields[CONTENT_TYPE].and_then(|v| text(v, MAX_FIELD));
            found.facts = true;
        }
        self.status = Some(status);
        if matches!(status, 401 | 403) {
            self.auth_failures = self.auth_failures.saturating_add(1);
            found.refused = true;
        }
    }
}

enum Body {
    None,
    Length(u64),
    Chunked,
    Over,
}

// The fields that are read, each by its place in `Head::fields`.
const NAMES: [&[u8]; 7] = [
    b"host",
    b"user-agent",
    b"referer",
    b"content-type",
    b"transfer-encoding",
    b"content-length",
    b"upgrade",
];
const HOST: usize = 0;
const USER_AGENT: usize = 1;
const REFERER: usize = 2;
const CONTENT_TYPE: usize = 3;
const TRANSFER_ENCODING: usize = 4;
const CONTENT_LENGTH: usize = 5;
const UPGRADE: usize = 6;

struct Head<'a> {
    first: &'a [u8],
    // The first value of each of the names.
    fields: [Option<&'a [u8]>; NAMES.len()],
    used: usize,
    whole: bool,
}

impl<'a> Head<'a> {
    // A head ends with an empty line; if no more will come, what is there has to do.
    fn read(data: &'a [u8], full: bool) -> Option<Self> {
        let (first, start) = line(data)?;
        let mut head = Self {
            first,
            fields: [None; NAMES.len()],
            used: start,
            whole: false,
        };
        while let Some((text, used)) = line(&data[head.used..]) {
            head.used += used;
            if text.is_empty() {
                head.whole = true;
                return Some(head);
            }
            head.note(text);
        }
        head.used = data.len();
        full.then_some(head)
    }

    fn note(&mut self, text: &'a [u8]) {
        // No name that is read begins with another.
        let known = |b: u8| matches!(b | 0x20, b'h' | b'u' | b'r' | b'c' | b't');
        if !text.first().is_some_and(|&b| known(b)) {
            return;
        }
        for (name, field) in NAMES.iter().zip(&mut self.fields) {
            if field.is_none() && text.get(name.len()) == Some(&b':') && text[..name.len()].eq_ignore_ascii_case(name) {
                *field = Some(text[name.len() + 1..].trim_ascii());
                return;
            }
        }
    }

    fn body(&self) -> Option<Body> {
        if let Some(coding) = self.fields[TRANSFER_ENCODING] {
            let chunked = coding
                .rsplit(|&b| b == b',')
                .next()
                .is_some_and(|last| last.trim_ascii().eq_ignore_ascii_case(b"chunked"));
            return chunked.then_some(Body::Chunked);
        }
        let length = self.fields[CONTENT_LENGTH]?;
        let length = std::str::from_utf8(length).ok()?.parse().ok()?;
        Some(Body::Length(length))
    }
}

// A line without its end, and how many octets it takes with it.
fn line(data: &[u8]) -> Option<(&[u8], usize)> {
    let end = memchr::memchr(b'\n', data)?;
    let text = data[..end].strip_suffix(b"\r").unwrap_or(&data[..end]);
    Some((text, end + 1))
}

fn chunk_size(text: &[u8]) -> Option<u64> {
    let digits = text.split(|&b| b == b';').next()?.trim_ascii();
    if digits.is_empty() || digits.len() > 15 {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

// Text of at most `limit` octets. Octets that are no UTF-8 become U+FFFD.
pub(super) fn text(value: &[u8], limit: usize) -> Option<String> {
    let mut end = value.len().min(limit);
    while end < value.len() && end > 0 && value[end] & 0xc0 == 0x80 {
        end -= 1;
    }
    let text = String::from_utf8_lossy(&value[..end]).into_owned();
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(facts: &mut HttpFacts, side: usize, mut data: &[u8]) -> (Found, Option<Step>) {
        let mut found = Found::default();
        while !data.is_empty() {
            match facts.step(side, data, false, &mut found) {
                Step::Take(n) => data = &data[n..],
                Step::Skip(n) => data = &data[(n as usize).min(data.len())..],
                other => return (found, Some(other)),
            }
        }
        (found, None)
    }

    #[test]
    fn requests_and_responses_are_told_and_counted() {
        let mut http = HttpFacts::default();
        let (found, _) = run(
            &mut http,
            0,
            b"POST /login?x=1 HTTP/1.1\r\nHost: shop.example\r\nUser-Agent: curl/8\r\nContent-Length: 5\r\n\r\nGET /GET /two HTTP/1.1\r\n\r\n",
        );
        assert!(found.facts);
        assert_eq!(http.requests, 2);
        assert_eq!(http.method.as_deref(), Some("POST"));
        assert_eq!(http.uri.as_deref(), Some("/login?x=1"));
        assert_eq!(http.host.as_deref(), Some("shop.example"));
        let (found, _) = run(
            &mut http,
            1,
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 401 Unauthorized\r\nContent-Type: text/html\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nHTTP/\r\n0\r\nTrailer: 1\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        );
        assert!(found.refused);
        assert_eq!((http.responses, http.auth_failures), (2, 1));
        assert_eq!(http.status, Some(200));
        assert_eq!(http.content_type.as_deref(), Some("text/html"));
    }

    #[test]
    fn the_answer_to_a_head_request_has_no_body() {
        let mut http = HttpFacts::default();
        run(&mut http, 0, b"HEAD / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n");
        run(
            &mut http,
            1,
            b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\nHTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n",
        );
        assert_eq!((http.responses, http.auth_failures), (2, 1));
    }

    #[test]
    fn a_tunnel_ends_http() {
        let mut http = HttpFacts::default();
        run(&mut http, 0, b"CONNECT db.example:5432 HTTP/1.1\r\n\r\n");
        let (found, step) = run(&mut http, 1, b"HTTP/1.1 200 Connected\r\n\r\n");
        assert!(found.over);
        assert_eq!(step, Some(Step::Stop));
        assert_eq!(http.host.as_deref(), Some("db.example:5432"));
    }

    #[test]
    fn beginnings_are_told_apart() {
        assert_eq!(begins_request(b"GET /"), Some(true));
        assert_eq!(begins_request(b"GE"), None);
        assert_eq!(begins_request(b"GETTY /"), Some(false));
        assert_eq!(begins_request(b"\x16\x03\x01"), Some(false));
        assert_eq!(begins_response(b"HTTP"), None);
        assert_eq!(begins_response(b"HTTP/2"), Some(false));
    }

    proptest! {
        #[test]
        fn no_octets_panic_or_stall(
            parts in prop::collection::vec(prop::sample::select(vec![
                &b"GET / HTTP/1.1\r\n"[..], b"HTTP/1.1 401 x\r\n", b"Content-Length: 7\r\n",
                b"Transfer-Encoding: chunked\r\n", b"\r\n", b"5\r\nabcde\r\n", b"0\r\n", b"\xff\x00", b"ffffffffffffff\r\n",
                b"Content-Length: 99999999999999999999\r\n", b"HTTP/1.1 99 \r\n",
            ]), 0..12),
            side in 0_usize..2,
            full in any::<bool>(),
        ) {
            let data = parts.concat();
            let mut http = HttpFacts::default();
            let (mut at, mut steps) = (0, 0);
            while at < data.len() && steps < 1000 {
                steps += 1;
                match http.step(side, &data[at..], full, &mut Found::default()) {
                    Step::Take(n) => { prop_assert!(n > 0 && at + n <= data.len()); at += n; }
                    Step::Skip(n) => at = at.saturating_add(n.min(1 << 20) as usize),
                    Step::More => { prop_assert!(!full || at < data.len()); break; }
                    Step::Stop | Step::Lost => break,
                }
            }
            prop_assert!(steps < 1000, "stalled");
        }
    }
}
