use proptest::prelude::*;

use super::*;

fn frame(kind: u8, flags: u8, stream: u32, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), body].concat()
}

// A field that is not kept in the table, nothing coded.
fn field(name: &str, value: &str) -> Vec<u8> {
    let string = |text: &str| [&[text.len() as u8][..], text.as_bytes()].concat();
    [vec![0], string(name), string(value)].concat()
}

fn fields(list: &[(&str, &str)]) -> Vec<u8> {
    list.iter().flat_map(|(name, value)| field(name, value)).collect()
}

fn run(facts: &mut Http2Facts, side: usize, mut data: &[u8]) -> (Found, Option<Step>) {
    let mut found = Found::default();
    while !data.is_empty() {
        match facts.step(side, data, &mut found) {
            Step::Take(n) => data = &data[n..],
            Step::Skip(n) => data = &data[(n as usize).min(data.len())..],
            other => return (found, Some(other)),
        }
    }
    (found, None)
}

fn client(frames: &[Vec<u8>]) -> Vec<u8> {
    [PREFACE, &frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100]), &frames.concat()].concat()
}

const CALL: [(&str, &str); 6] = [
    (":method", "POST"),
    (":path", "/shop.v1.Cart/Add"),
    (":authority", "shop:50051"),
    ("content-type", "application/grpc"),
    ("user-agent", "grpc-go/1.60"),
    ("te", "trailers"),
];

#[test]
fn requests_of_many_streams_are_counted_and_the_first_is_told() {
    // The two requests of RFC 7541, appendix C.4.1 and C.4.2: the second refers to the table that the first made.
    let first = hex::decode("828684418cf1e3c2e5f23a6ba0ab90f4ff").unwrap();
    let second = hex::decode("828684be5886a8eb10649cbf").unwrap();
    let mut http2 = Http2Facts::default();
    let sent = client(&[frame(HEADERS, 5, 1, &first), frame(HEADERS, 5, 3, &second)]);
    let (found, stopped) = run(&mut http2, 0, &sent);
    assert!(found.facts && stopped.is_none());
    assert_eq!(http2.http.requests, 2);
    assert_eq!(http2.http.method.as_deref(), Some("GET"));
    assert_eq!(http2.http.host.as_deref(), Some("www.example.com"));
    assert_eq!(http2.http.uri.as_deref(), Some("/"));
    // An answer on each: 302 as in appendix C.6.1, then 403 with a body in two frames, one of them padded.
    let moved = hex::decode(
        "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97c8e9ae82ae43d3",
    )
    .unwrap();
    let refused = fields(&[(":status", "403"), ("content-type", "text/plain")]);
    let answer = [
        frame(SETTINGS, 0, 0, &[]),
        frame(HEADERS, 5, 1, &moved),
        frame(HEADERS, 4, 3, &refused),
        frame(DATA, 0, 3, &[b'x'; 1000]),
        frame(DATA, PADDED | 1, 3, &[&[4][..], &[b'x'; 10], &[0; 4]].concat()),
    ]
    .concat();
    let (found, stopped) = run(&mut http2, 1, &answer);
    assert!(found.refused && stopped.is_none());
    assert_eq!((http2.http.responses, http2.http.auth_failures), (2, 1));
    assert_eq!(http2.http.status, Some(403));
    assert_eq!(http2.http.body_bytes, [0, 1010]);
}

#[test]
fn a_call_of_grpc_is_seen_with_its_refusal() {
    let mut http2 = Http2Facts::default();
    let body = [&[0, 0, 0, 0, 7][..], b"payload"].concat();
    run(
        &mut http2,
        0,
        &client(&[frame(HEADERS, 4, 1, &fields(&CALL)), frame(DATA, 1, 1, &body)]),
    );
    assert_eq!(http2.http.uri.as_deref(), Some("/shop.v1.Cart/Add"));
    assert_eq!(http2.http.content_type.as_deref(), Some("application/grpc"));
    assert_eq!(http2.http.user_agent.as_deref(), Some("grpc-go/1.60"));
    assert_eq!(http2.http.body_bytes, [12, 0]);
    // Fields behind the body: no answer of their own.
    let head = fields(&[(":status", "200"), ("content-type", "application/grpc")]);
    let end = fields(&[("grpc-status", "16"), ("grpc-message", "who are you")]);
    let (found, _) = run(
        &mut http2,
        1,
        &[frame(HEADERS, 4, 1, &head), frame(HEADERS, 5, 1, &end)].concat(),
    );
    assert!(found.refused);
    assert_eq!(
        (http2.http.responses, http2.http.status, http2.http.auth_failures),
        (1, Some(200), 1)
    );
}

#[test]
fn a_block_in_pieces_is_put_together() {
    let block = fields(&CALL);
    let (a, b) = block.split_at(20);
    let (b, c) = b.split_at(9);
    // With padding and priority in the first frame, and an empty frame between.
    let start = [&[3][..], &[0, 0, 0, 0, 16], a, &[0; 3]].concat();
    let whole = client(&[
        frame(HEADERS, PADDED | PRIORITY, 1, &start),
        frame(CONTINUATION, 0, 1, b),
        frame(CONTINUATION, 0, 1, &[]),
        frame(CONTINUATION, END_HEADERS, 1, c),
        frame(HEADERS, END_HEADERS, 3, &block),
    ]);
    for step in [1, 2, 7, 50] {
        // As a stream gives it: what is not taken is there again with what comes next.
        let (mut http2, mut held, mut skip) = (Http2Facts::default(), Vec::new(), 0_usize);
        for part in whole.chunks(step) {
            held.extend_from_slice(part);
            loop {
                let pass = skip.min(held.len());
                held.drain(..pass);
                skip -= pass;
                if held.is_empty() {
                    break;
                }
                match http2.step(0, &held, &mut Found::default()) {
                    Step::Take(n) => drop(held.drain(..n)),
                    Step::Skip(n) => skip = n as usize,
                    Step::More => break,
                    other => panic!("{other:?}"),
                }
            }
        }
        assert_eq!(http2.http.requests, 2, "{step}");
        assert_eq!(http2.http.uri.as_deref(), Some("/shop.v1.Cart/Add"));
    }
    // Anything else between two pieces ends it.
    let broken = client(&[frame(HEADERS, 0, 1, a), frame(WINDOW_UPDATE, 0, 0, &[0; 4])]);
    assert_eq!(run(&mut Http2Facts::default(), 0, &broken).1, Some(Step::Stop));
}

#[test]
fn blocks_have_a_bound() {
    let mut http2 = Http2Facts::default();
    run(&mut http2, 0, &client(&[frame(HEADERS, 0, 1, &[0x82; 16_000])]));
    let piece = frame(CONTINUATION, 0, 1, &[0x82; 16_000]);
    for _ in 0..3 {
        assert_eq!(run(&mut http2, 0, &piece).1, None);
    }
    assert_eq!(run(&mut http2, 0, &piece).1, Some(Step::Stop));
    assert!(http2.sides[0].block.len() <= LONGEST_BLOCK);
}

#[test]
fn beginnings_are_told_apart() {
    assert_eq!(begins(PREFACE), Guess::Yes);
    assert_eq!(begins(&PREFACE[..10]), Guess::Maybe);
    assert_eq!(begins(b"PRINT me"), Guess::No);
    let settings = frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0]);
    assert_eq!(begins(&settings), Guess::Yes);
    assert_eq!(begins(&settings[..12]), Guess::No);
    let empty = frame(SETTINGS, 0, 0, &[]);
    assert_eq!(begins(&empty), Guess::No);
    assert_eq!(begins(&[&empty[..], &frame(SETTINGS, 1, 0, &[])].concat()), Guess::Yes);
    assert_eq!(begins(&[0; 40]), Guess::No);
}

proptest! {
    #[test]
    fn no_octets_panic_or_stall(
        parts in prop::collection::vec(
            (0_u8..11, any::<u8>(), 0_u32..4, prop::collection::vec(any::<u8>(), 0..80)), 0..12),
        side in 0_usize..2, cut in any::<prop::sample::Index>(),
    ) {
        let frames: Vec<_> = parts.iter().map(|(kind, flags, stream, body)| frame(*kind, *flags, *stream, body)).collect();
        let mut data = client(&frames);
        data.truncate(cut.index(data.len() + 1));
        let mut http2 = Http2Facts::default();
        let (mut at, mut steps) = (0, 0);
        while at < data.len() && steps < 1000 {
            steps += 1;
            match http2.step(side, &data[at..], &mut Found::default()) {
                Step::Take(n) => { prop_assert!(n > 0 && at + n <= data.len()); at += n; }
                Step::Skip(n) => { prop_assert!(n > 0); at = at.saturating_add(n as usize); }
                Step::More | Step::Stop | Step::Lost => break,
            }
        }
        prop_assert!(steps < 1000, "stalled");
    }
}
