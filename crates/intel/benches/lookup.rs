//! Look-ups a second and memory with a million indicators, beside plain `HashMap`s in the same run.
//!
//! `cargo bench -p garrison-intel --bench lookup`
//!
//! The peer keeps the same claim under an owned key, one map a kind, with the standard library's hasher; it knows neither
//! networks nor several sources. Of what is asked, one in ten is known; in traffic it is one in thousands.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    collections::HashMap,
    hint::black_box,
    net::{IpAddr, Ipv4Addr},
    sync::atomic::{AtomicUsize, Ordering},
    time::Instant,
};

use garrison_intel::{Builder, Index, Indicator, Kind, Span, Value};

const INDICATORS: usize = 1_000_000;
const ASKED: usize = 1 << 20;

/// The system's allocator, with a count of what is held and of the most that was.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(held, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `dealloc`, and `at` came from the same allocator.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What the peer keeps. Its fields are there to be as large as what they stand for.
#[derive(Clone, Copy)]
#[allow(dead_code)]
struct Plain {
    source: u16,
    confidence: u8,
    from: u32,
    until: u32,
}

const PLAIN: Plain = Plain {
    source: 1,
    confidence: 50,
    from: 0,
    until: u32::MAX,
};

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

fn mib(octets: usize) -> f64 {
    octets as f64 / f64::from(1 << 20)
}

fn address(n: u64) -> Ipv4Addr {
    Ipv4Addr::from(((n.wrapping_mul(0x9e37_79b9_7f4a_7c15)) >> 32) as u32)
}

fn name(n: u64) -> String {
    let n = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    format!(
        "{:x}.{}.example-{}.net",
        n >> 44,
        ["www", "cdn", "mail", "api"][(n & 3) as usize],
        n % 100_000
    )
}

/// Name, values, and a confidence, a reference and a label for each as feeds have them.
fn indicators(kind: &str, references: bool) -> impl Iterator<Item = Indicator> + '_ {
    (0..INDICATORS as u64).map(move |n| {
        let which = match kind {
            "mixed" => ["addresses", "domains", "urls", "files"][(n % 4) as usize],
            other => other,
        };
        let value = match which {
            "addresses" => Value::address(IpAddr::V4(address(n))),
            "networks" => Value::network(IpAddr::V4(address(n)), 20 + (n % 9) as u8)
                .unwrap_or_else(|| Value::address(IpAddr::V4(address(n)))),
            "domains" => text(Kind::DomainTree, &name(n)),
            "urls" => text(Kind::Url, &format!("http://{}/gate/{n:x}.php?id={}", name(n), n % 97)),
            _ => text(
                Kind::File,
                &format!("{:064x}", u128::from(n).wrapping_mul(0x1234_5678_9abc_def1_0fed_cba9)),
            ),
        };
        let mut indicator = Indicator::of(value);
        indicator.span = Span::of(Some(1_700_000_000 + (n % 1_000) as i64), Some(1_900_000_000));
        indicator.labels = vec![format!("family-{}", n % 300)];
        if references {
            indicator.reference = format!("indicator--{n:08x}-0000-4000-8000-{n:012x}");
        }
        indicator
    })
}

fn text(kind: Kind, text: &str) -> Value {
    match Value::parse(kind, text) {
        Ok(value) => value,
        Err(error) => panic!("{error}"),
    }
}

fn build(kind: &str, references: bool) -> Index {
    let before = HELD.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    let started = Instant::now();
    let mut builder = Builder::new(2 * INDICATORS, 0);
    for indicator in indicators(kind, references) {
        if let Err(error) = builder.add("feed", &indicator, 50, false) {
            panic!("{error}");
        }
    }
    let index = builder.build();
    let (held, most) = (
        HELD.load(Ordering::Relaxed) - before,
        MOST.load(Ordering::Relaxed) - before,
    );
    println!(
        "{kind:<10} references {references:<5}  {:>8} values  {:>6.1} MiB held  {:>6.1} MiB at most while building  {:>5.2} s",
        index.len(),
        mib(held),
        mib(most),
        started.elapsed().as_secs_f64(),
    );
    index
}

fn rate(what: &str, asked: usize, mut ask: impl FnMut() -> usize) -> f64 {
    black_box(ask());
    let mut best = 0.0_f64;
    let mut hits = 0;
    for _ in 0..5 {
        let started = Instant::now();
        hits = black_box(ask());
        best = best.max(asked as f64 / started.elapsed().as_secs_f64());
    }
    println!(
        "{what:<34} {:>7.1} M look-ups/s a core   {:>5.1} % known",
        best / 1e6,
        100.0 * hits as f64 / asked as f64
    );
    best
}

fn main() {
    for (kind, references) in [
        ("addresses", false),
        ("addresses", true),
        ("networks", false),
        ("domains", true),
        ("urls", true),
        ("files", true),
        ("mixed", true),
    ] {
        build(kind, references);
    }

    let mut random = Random(7);
    for share in [10, 100_000] {
        println!("\none in {share} asked for is known");
        let mut pick = |beyond: u64| {
            let n = random.next();
            if n.is_multiple_of(share) {
                (n >> 8) % INDICATORS as u64
            } else {
                beyond + (n >> 8) % (1 << 40)
            }
        };
        let index = build("addresses", false);
        let addresses: Vec<Ipv4Addr> = (0..ASKED).map(|_| address(pick(INDICATORS as u64))).collect();
        let ours = rate("addresses: index", ASKED, || {
            let mut hits = 0;
            for a in &addresses {
                index.address(IpAddr::V4(*a), |_| hits += 1);
            }
            hits
        });
        let before = HELD.load(Ordering::Relaxed);
        let peer: HashMap<IpAddr, Plain> = (0..INDICATORS as u64)
            .map(|n| (IpAddr::V4(address(n)), PLAIN))
            .collect();
        println!(
            "{:<34} {:>7.1} MiB",
            "addresses: HashMap holds",
            mib(HELD.load(Ordering::Relaxed) - before)
        );
        let theirs = rate("addresses: HashMap", ASKED, || {
            addresses.iter().filter(|a| peer.contains_key(&IpAddr::V4(**a))).count()
        });
        println!("{:<34} {:>7.1} times", "addresses: ratio", ours / theirs);
        drop((peer, index));

        let index = build("networks", false);
        rate("networks: index", ASKED, || {
            let mut hits = 0;
            for a in &addresses {
                let mut hit = false;
                index.address(IpAddr::V4(*a), |_| hit = true);
                hits += usize::from(hit);
            }
            hits
        });
        drop(index);

        let index = build("domains", false);
        let names: Vec<String> = (0..ASKED).map(|_| name(pick(INDICATORS as u64))).collect();
        let ours = rate("domains and parents: index", ASKED, || {
            let mut hits = 0;
            for n in &names {
                index.domain(n, |_| hits += 1);
            }
            hits
        });
        let before = HELD.load(Ordering::Relaxed);
        let peer: HashMap<String, Plain> = (0..INDICATORS as u64).map(|n| (name(n), PLAIN)).collect();
        println!(
            "{:<34} {:>7.1} MiB",
            "domains: HashMap holds",
            mib(HELD.load(Ordering::Relaxed) - before)
        );
        let theirs = rate("domains and parents: HashMap", ASKED, || {
            let mut hits = 0;
            for n in &names {
                let mut rest = n.as_str();
                loop {
                    hits += usize::from(peer.contains_key(rest));
                    match rest.split_once('.') {
                        Some((_, parent)) => rest = parent,
                        None => break,
                    }
                }
            }
            hits
        });
        println!("{:<34} {:>7.1} times", "domains: ratio", ours / theirs);
    }
}
