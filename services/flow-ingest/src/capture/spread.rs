//! A capture file for several workers that share nothing: each gets the packets of its hosts, in the order of the file.
//!
//! There is no thread that only reads. Whoever has nothing to do takes the file, reads the next part of it, notes whose
//! each packet is, and puts the part into everyone's line.

use std::{
    collections::VecDeque,
    io::Read,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{Burst, CaptureError, CaptureFile, Source, file::Place};
use crate::domain::packet::{Packet, ends};

/// Most workers.
pub const MOST_WORKERS: usize = 64;

/// Parts that may wait for a worker.
const AHEAD: usize = 8;

// A part of a file.
#[derive(Default)]
struct Part {
    data: Box<[u8]>,
    places: Vec<Place>,
    owners: Vec<u8>,
}

struct Shared<R> {
    // Absent while somebody reads.
    file: Option<CaptureFile<R>>,
    lines: Vec<VecDeque<Arc<Part>>>,
    used: Vec<Part>,
    over: bool,
    problem: Option<CaptureError>,
}

struct Line<R> {
    shared: Mutex<Shared<R>>,
    changed: Condvar,
}

/// Reads a file to its end, or until `stop` is set, and gives each packet to the worker of its outermost addresses. Both
/// directions of a flow, all parts of a datagram, and what a tunnel carries, in parts or whole, have one worker. Each worker
/// has `last` done once nothing more comes.
///
/// # Errors
/// As [`CaptureFile::burst`]; the packets before that have been given.
pub fn spread<W: Send>(
    file: CaptureFile<Source>,
    workers: &mut [W],
    stop: &AtomicBool,
    each: impl Fn(&mut W, &[Packet<'_>]) + Sync,
    last: impl Fn(&mut W) + Sync,
) -> Result<(), CaptureError> {
    let line = Line {
        shared: Mutex::new(Shared {
            file: Some(file),
            lines: workers.iter().map(|_| VecDeque::new()).collect(),
            used: Vec::new(),
            over: false,
            problem: None,
        }),
        changed: Condvar::new(),
    };
    let (line, each, last) = (&line, &each, &last);
    std::thread::scope(|scope| {
        let mut workers = workers.iter_mut().enumerate();
        let first = workers.next();
        for (number, worker) in workers {
            scope.spawn(move || {
                line.work(number, worker, stop, each);
                last(worker);
            });
        }
        if let Some((number, worker)) = first {
            line.work(number, worker, stop, each);
            last(worker);
        }
    });
    match line.lock().problem.take() {
        None => Ok(()),
        Some(problem) => Err(problem),
    }
}

impl<R: Read> Line<R> {
    fn lock(&self) -> MutexGuard<'_, Shared<R>> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work<W>(&self, number: usize, worker: &mut W, stop: &AtomicBool, each: impl Fn(&mut W, &[Packet<'_>])) {
        let mut shared = self.lock();
        loop {
            if let Some(part) = shared.lines[number].pop_front() {
                drop(shared);
                part.give(number, |packets| each(worker, packets));
                shared = self.lock();
                if let Some(part) = Arc::into_inner(part) {
                    shared.used.push(part);
                }
                self.changed.notify_all();
                continue;
            }
            if shared.over {
                return;
            }
            let room = shared.lines.iter().all(|line| line.len() < AHEAD);
            let Some(mut file) = shared.file.take_if(|_| room) else {
                shared = self.changed.wait(shared).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let count = shared.lines.len();
            let mut part = shared.used.pop().unwrap_or_default();
            drop(shared);
            let read = match stop.load(Ordering::Relaxed) {
                true => Ok(false),
                false => file.part(&mut part.data, &mut part.places),
            };
            part.assign(count);
            shared = self.lock();
            match read {
                Ok(true) => {
                    let part = Arc::new(part);
                    shared
                        .lines
                        .iter_mut()
                        .for_each(|line| line.push_back(Arc::clone(&part)));
                    shared.file = Some(file);
                }
                Ok(false) => shared.over = true,
                Err(problem) => {
                    shared.over = true;
                    shared.problem = Some(problem);
                }
            }
            self.changed.notify_all();
        }
    }
}

impl Part {
    fn packet(&self, place: &Place) -> Packet<'_> {
        Packet {
            time: place.time,
            link: place.link,
            data: self.data.get(place.start..place.start + place.len).unwrap_or_default(),
            wire_len: place.wire_len,
            vlan_tci: None,
        }
    }

    fn assign(&mut self, workers: usize) {
        let mut owners = std::mem::take(&mut self.owners);
        owners.clear();
        owners.extend(self.places.iter().map(|place| owner(&self.packet(place), workers)));
        self.owners = owners;
    }

    fn give(&self, number: usize, mut each: impl FnMut(&[Packet<'_>])) {
        let mut burst = Burst::default();
        for (place, owner) in self.places.iter().zip(&self.owners) {
            if usize::from(*owner) != number {
                continue;
            }
            burst.push(self.packet(place));
            if burst.is_full() {
                each(burst.packets());
                burst.clear();
            }
        }
        if !burst.packets().is_empty() {
            each(burst.packets());
        }
    }
}

// Whose a packet is: the same for both directions between two hosts. What has no addresses is the first one's.
fn owner(packet: &Packet<'_>, workers: usize) -> u8 {
    let Some((src, dst)) = ends(packet) else { return 0 };
    let sum = mix(&src).wrapping_add(mix(&dst));
    let hash = mix(&u128::from(sum).to_le_bytes()) >> 32;
    // Below the number of workers, which is small.
    ((hash * workers as u64) >> 32) as u8
}

fn mix(address: &[u8; 16]) -> u64 {
    let bits = u128::from_le_bytes(*address);
    let product =
        u128::from(bits as u64 ^ 0x9e37_79b9_7f4a_7c15) * u128::from((bits >> 64) as u64 ^ 0xd1b5_4a32_d192_ed03);
    (product >> 64) as u64 ^ product as u64
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{
        capture::Source,
        domain::{Limits, Meter, Sink, craft, record::EndReason},
    };
    use garrison_flow::FlowRow;

    type Row = (String, String, u64, u64);

    #[derive(Default)]
    struct Rows(Vec<Row>);

    impl Sink for Rows {
        fn record(&mut self, row: &FlowRow<'_>) {
            if row.state == 3 {
                self.0.push((
                    row.community_id.to_owned(),
                    row.service.unwrap_or_default().to_owned(),
                    row.src_packets.unwrap_or_default(),
                    row.dst_packets.unwrap_or_default(),
                ));
            }
        }
    }

    fn capture() -> Vec<u8> {
        let mut file = Vec::new();
        for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65_535, 1] {
            file.extend(word.to_le_bytes());
        }
        let mut time = 0_u32;
        for round in 0..40_u32 {
            for host in 0..60_u32 {
                let (c, s) = (format!("10.0.0.{host}:4000"), format!("10.1.{}.1:53", host % 7));
                let mut query = vec![
                    0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 3, b'w', b'w', b'w', 0, 0, 1, 0, 1,
                ];
                query[0] = round as u8;
                let there = craft::udp4(&c, &s, &query);
                query[2] = 0x81;
                for frame in [there, craft::udp4(&s, &c, &query)] {
                    time += 1;
                    for word in [1_700_000_000, time, frame.len() as u32, frame.len() as u32] {
                        file.extend(word.to_le_bytes());
                    }
                    file.extend(frame);
                }
            }
        }
        file
    }

    fn open(data: &[u8]) -> CaptureFile {
        let source = Source::new(std::io::Cursor::new(data.to_vec()), None).unwrap();
        CaptureFile::new(source, Path::new("made")).unwrap()
    }

    fn metered(data: &[u8], workers: usize) -> (Vec<Row>, u64, Option<CaptureError>) {
        let mut meters: Vec<_> = (0..workers)
            .map(|_| (Meter::new("s", Limits::default(), 1), Rows::default()))
            .collect();
        let stop = AtomicBool::new(false);
        let result = spread(
            open(data),
            &mut meters,
            &stop,
            |(meter, rows), packets| meter.process(packets, rows),
            |(meter, rows)| meter.finish(EndReason::EndOfFile, rows),
        );
        let (mut all, mut received) = (Vec::new(), 0);
        for (meter, rows) in &mut meters {
            received += meter.counts().received;
            all.append(&mut rows.0);
        }
        all.sort();
        (all, received, result.err())
    }

    #[test]
    fn several_workers_make_the_flows_that_one_makes() {
        let data = capture();
        let one = metered(&data, 1);
        assert_eq!((one.0.len(), one.1), (60, 4800));
        assert!(
            one.0
                .iter()
                .all(|(_, service, there, back)| service == "dns" && (*there, *back) == (40, 40))
        );
        for workers in [2, 3, 7] {
            let several = metered(&data, workers);
            assert_eq!((&several.0, several.1), (&one.0, one.1), "{workers}");
            assert!(several.2.is_none());
        }
    }

    #[test]
    fn a_file_that_is_cut_is_given_up_to_there() {
        let data = capture();
        let (_, received, problem) = metered(&data[..data.len() - 5], 3);
        assert_eq!(received, 4799);
        assert!(
            matches!(problem, Some(CaptureError::Truncated { packets: 4799, .. })),
            "{problem:?}"
        );
    }

    #[test]
    fn whole_datagrams_their_parts_and_what_they_carry_have_one_worker() {
        fn made(data: &[u8]) -> Packet<'_> {
            Packet {
                time: 0,
                link: crate::domain::packet::LinkType::Ethernet,
                data,
                wire_len: data.len() as u32,
                vlan_tci: None,
            }
        }
        for host in 0..50 {
            let (a, b) = (format!("10.0.1.{host}"), "192.168.7.7");
            let whole = craft::udp4(&format!("{a}:1000"), &format!("{b}:2000"), &[7; 64]);
            let inner = craft::udp4("172.16.0.1:1", "172.16.0.2:2", b"x");
            let tunnel = craft::ip(a.parse().unwrap(), b.parse().unwrap(), 4, &inner[14..]);
            let answer = craft::udp4(&format!("{b}:2000"), &format!("{a}:1000"), &[7; 64]);
            let mut part = whole.clone();
            (part[20], part[21]) = (0x20, 0);
            let mut later = whole.clone();
            (later[20], later[21]) = (0, 9);
            let mut part_of_tunnel = tunnel.clone();
            (part_of_tunnel[20], part_of_tunnel[21]) = (0x20, 0);
            let owners = [&whole, &tunnel, &answer, &part, &later, &part_of_tunnel].map(|data| owner(&made(data), 16));
            assert!(owners.iter().all(|owner| *owner == owners[0]), "{owners:?}");
        }
    }

    #[test]
    fn both_directions_have_one_worker_and_all_workers_have_work() {
        let mut seen = [0; 4];
        for host in 0..200 {
            let (a, b) = (format!("10.0.1.{host}:1"), "192.168.7.7:2");
            let (there, back) = (craft::udp4(&a, b, b"x"), craft::udp4(b, &a, b"y"));
            let whose = |data: &[u8]| {
                let packet = Packet {
                    time: 0,
                    link: crate::domain::packet::LinkType::Ethernet,
                    data,
                    wire_len: data.len() as u32,
                    vlan_tci: None,
                };
                owner(&packet, 4)
            };
            assert_eq!(whose(&there), whose(&back));
            seen[usize::from(whose(&there))] += 1;
        }
        assert!(seen.iter().all(|&count| count > 25), "{seen:?}");
    }
}
