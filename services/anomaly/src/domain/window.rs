//! Sliding windows on flow time. Each runs on the times of its own records, so that sensors with different
//! clocks, captures from the past and late messages do not disturb each other.

use std::collections::VecDeque;

use garrison_proto::alert::v1::FlowReference;

use super::brief::Brief;

/// Nanoseconds since the epoch.
pub type Nanos = i64;

/// One second in [`Nanos`].
pub const SECOND: Nanos = 1_000_000_000;

/// Enough of a flow to name it in an alert, kept small because windows hold many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowRef {
    /// The flow's id.
    pub flow_id: [u8; 16],
    /// Opener.
    pub src: Host,
    /// Called side.
    pub dst: Host,
    /// Opener's port.
    pub src_port: u16,
    /// Called port.
    pub dst_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// First packet.
    pub first_seen: Nanos,
    /// Last packet when it was noted.
    pub last_seen: Nanos,
    /// Community ID.
    pub community_id: Brief,
}

/// An address as the 128 bits of an IPv6 address; IPv4 is mapped (RFC 4291 §2.5.5.2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Host(pub u128);

impl Host {
    /// From the flow schema's 16 bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(bytes))
    }

    /// The address.
    pub fn ip(self) -> std::net::IpAddr {
        garrison_flow::address::from_bytes(self.0.to_be_bytes())
    }
}

impl From<std::net::IpAddr> for Host {
    fn from(address: std::net::IpAddr) -> Self {
        Self::from_bytes(garrison_flow::address::to_bytes(address))
    }
}

impl std::fmt::Display for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.ip().fmt(f)
    }
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.ip().fmt(f)
    }
}

impl FlowRef {
    /// The form that alerts carry.
    pub fn to_proto(&self) -> FlowReference {
        FlowReference {
            flow_id: garrison_flow::flow_id_text(&self.flow_id),
            community_id: self.community_id.to_string(),
            src_ip: self.src.to_string(),
            dst_ip: self.dst.to_string(),
            src_port: self.src_port.into(),
            dst_port: self.dst_port.into(),
            protocol: self.protocol.into(),
            first_seen: Some(timestamp(self.first_seen)),
            last_seen: Some(timestamp(self.last_seen)),
        }
    }
}

/// A time as protobuf has it.
pub fn timestamp(time: Nanos) -> garrison_proto::Timestamp {
    garrison_proto::to_timestamp(chrono::DateTime::from_timestamp_nanos(time))
}

/// What became of an attempt to reach something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// No answer yet.
    Pending,
    /// Refused, reset or never answered.
    Failed,
    /// There was an answer.
    Answered,
}

/// One value of a [`DistinctWindow`].
#[derive(Clone, Debug, PartialEq)]
pub struct Attempt<T> {
    /// What was tried: a port or a host.
    pub value: T,
    /// When it was first tried.
    pub time: Nanos,
    /// Whether it is known to have failed; if not it is pending.
    pub failed: bool,
    /// The flow that tried.
    pub flow: FlowRef,
}

/// Counts different values that were tried without success within a span of time.
#[derive(Clone, Debug, PartialEq)]
pub struct DistinctWindow<T> {
    attempts: VecDeque<Attempt<T>>,
    latest: Nanos,
    told: Nanos,
}

impl<T: PartialEq + Copy> Default for DistinctWindow<T> {
    fn default() -> Self {
        Self {
            attempts: VecDeque::new(),
            latest: Nanos::MIN,
            told: Nanos::MIN,
        }
    }
}

/// The span and the bound of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// How far back it looks.
    pub length: Nanos,
    /// How long an attempt may stay unanswered before it counts as failed.
    pub grace: Nanos,
    /// Most values held; the oldest leaves first.
    pub bound: usize,
}

impl<T: PartialEq + Copy> DistinctWindow<T> {
    /// Puts a window together again from what [`attempts`](Self::attempts), [`latest`](Self::latest) and
    /// [`told`](Self::told) gave.
    pub fn restore(attempts: Vec<Attempt<T>>, latest: Nanos, told: Nanos) -> Self {
        Self {
            attempts: attempts.into(),
            latest,
            told,
        }
    }

    /// What is held, in order of arrival.
    pub fn attempts(&self) -> impl ExactSizeIterator<Item = &Attempt<T>> {
        self.attempts.iter()
    }

    /// The latest time seen.
    pub fn latest(&self) -> Nanos {
        self.latest
    }

    /// The time of the latest report. Flows that began before it were part of it, or are too late.
    pub fn told(&self) -> Nanos {
        self.told
    }

    /// Notes an attempt and says how many different values now count as tried in vain. An attempt older than
    /// the window, or that was reported, is left out. `flow` is asked for only when the attempt is not held.
    pub fn observe(
        &mut self,
        value: T,
        time: Nanos,
        reach: Reach,
        span: Span,
        flow: impl FnOnce() -> FlowRef,
    ) -> usize {
        self.latest = self.latest.max(time);
        let start = self.latest.saturating_sub(span.length);
        self.attempts.retain(|a| a.time > start);
        let known = self.attempts.iter().position(|a| a.value == value);
        match (known, reach) {
            (Some(at), Reach::Answered) => {
                self.attempts.remove(at);
            }
            (Some(at), Reach::Failed) => self.attempts[at].failed = true,
            (None, Reach::Pending | Reach::Failed) if time > start => {
                let flow = flow();
                if flow.first_seen > self.told {
                    if self.attempts.len() >= span.bound.max(1) {
                        self.attempts.pop_front();
                    }
                    // Most windows never hold more than one.
                    if self.attempts.capacity() == 0 {
                        self.attempts.reserve_exact(1);
                    }
                    self.attempts.push_back(Attempt {
                        value,
                        time,
                        failed: reach == Reach::Failed,
                        flow,
                    });
                }
            }
            _ => {}
        }
        self.in_vain(span.grace).count()
    }

    /// The attempts that count: failed, or without an answer for longer than `grace`.
    pub fn in_vain(&self, grace: Nanos) -> impl Iterator<Item = &Attempt<T>> {
        let latest = self.latest;
        self.attempts
            .iter()
            .filter(move |a| a.failed || latest.saturating_sub(a.time) >= grace)
    }

    /// Takes out the attempts that count, or all, to report them: what becomes known of their flows later is not news.
    pub fn report(&mut self, all: bool, grace: Nanos) -> Vec<Attempt<T>> {
        let latest = self.latest;
        let counts = |a: &Attempt<T>| all || a.failed || latest.saturating_sub(a.time) >= grace;
        let (reported, kept) = std::mem::take(&mut self.attempts).into_iter().partition(counts);
        self.attempts = kept;
        self.told = self.told.max(latest);
        reported.into()
    }
}

/// Counts events within a span of time.
#[derive(Clone, Debug, PartialEq)]
pub struct CountWindow {
    events: VecDeque<(Nanos, u32, FlowRef)>,
    latest: Nanos,
}

impl Default for CountWindow {
    fn default() -> Self {
        Self {
            events: VecDeque::new(),
            latest: Nanos::MIN,
        }
    }
}

impl CountWindow {
    /// Puts a window together again.
    pub fn restore(events: Vec<(Nanos, u32, FlowRef)>, latest: Nanos) -> Self {
        Self {
            events: events.into(),
            latest,
        }
    }

    /// What is held: time, number of events, the flow they came from.
    pub fn events(&self) -> impl ExactSizeIterator<Item = &(Nanos, u32, FlowRef)> {
        self.events.iter()
    }

    /// The latest time seen.
    pub fn latest(&self) -> Nanos {
        self.latest
    }

    /// Notes `n` events and says how many lie in the window.
    pub fn observe(&mut self, n: u32, time: Nanos, span: Span, flow: FlowRef) -> u64 {
        self.latest = self.latest.max(time);
        let start = self.latest.saturating_sub(span.length);
        self.events.retain(|(t, ..)| *t > start);
        if time > start && n > 0 {
            if self.events.len() >= span.bound.max(1) {
                self.events.pop_front();
            }
            self.events.push_back((time, n, flow));
        }
        self.events.iter().map(|(_, n, _)| u64::from(*n)).sum()
    }

    /// Forgets the events, after they were reported.
    pub fn clear(&mut self) {
        self.events.clear();
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn flow_ref(n: u8) -> FlowRef {
        FlowRef {
            flow_id: [n; 16],
            src: Host(1),
            dst: Host(2),
            src_port: 3,
            dst_port: 4,
            protocol: 6,
            first_seen: 5,
            last_seen: 6,
            community_id: "1:x".into(),
        }
    }

    const SPAN: Span = Span {
        length: 100,
        grace: 10,
        bound: 8,
    };

    fn observe(window: &mut DistinctWindow<u16>, value: u16, time: Nanos, reach: Reach) -> usize {
        window.observe(value, time, reach, SPAN, || flow_ref(0))
    }

    #[test]
    fn pending_counts_after_the_grace_and_never_once_answered() {
        let mut w = DistinctWindow::default();
        assert_eq!(observe(&mut w, 1, 0, Reach::Pending), 0);
        assert_eq!(observe(&mut w, 2, 5, Reach::Failed), 1);
        assert_eq!(observe(&mut w, 3, 10, Reach::Pending), 2);
        assert_eq!(observe(&mut w, 1, 11, Reach::Answered), 1);
        assert_eq!(observe(&mut w, 3, 12, Reach::Failed), 2);
    }

    #[test]
    fn what_was_reported_does_not_count_again_when_its_answer_comes() {
        let flow = |first_seen| FlowRef {
            first_seen,
            ..flow_ref(0)
        };
        let mut w = DistinctWindow::default();
        for value in 1..=4 {
            w.observe(value, 10, Reach::Pending, SPAN, || flow(10));
        }
        assert_eq!(w.report(true, SPAN.grace).len(), 4);
        assert_eq!(
            w.observe(1, 12, Reach::Failed, SPAN, || flow(10)),
            0,
            "its flow was reported"
        );
        assert_eq!(
            w.observe(1, 13, Reach::Failed, SPAN, || flow(13)),
            1,
            "another try is news"
        );
        // What has no answer yet is not taken out with what failed, and counts when it fails.
        w.observe(5, 14, Reach::Pending, SPAN, || flow(14));
        let reported: Vec<u16> = w.report(false, SPAN.grace).iter().map(|a| a.value).collect();
        assert_eq!(reported, [1]);
        assert_eq!(w.observe(5, 15, Reach::Failed, SPAN, || flow(14)), 1);
    }

    #[test]
    fn what_is_older_than_the_window_leaves_and_what_comes_too_late_does_not_enter() {
        let mut w = DistinctWindow::default();
        observe(&mut w, 1, 0, Reach::Failed);
        assert_eq!(observe(&mut w, 2, 99, Reach::Failed), 2);
        assert_eq!(observe(&mut w, 3, 150, Reach::Failed), 2);
        assert_eq!(observe(&mut w, 4, 49, Reach::Failed), 2);
        assert_eq!(observe(&mut w, 5, 60, Reach::Failed), 3);
    }

    #[test]
    fn events_count_by_number_and_time() {
        let mut w = CountWindow::default();
        assert_eq!(w.observe(3, 0, SPAN, flow_ref(1)), 3);
        assert_eq!(w.observe(2, 50, SPAN, flow_ref(2)), 5);
        assert_eq!(w.observe(1, 120, SPAN, flow_ref(3)), 3);
        assert_eq!(w.observe(9, 10, SPAN, flow_ref(4)), 3);
        assert_eq!(w.observe(0, 121, SPAN, flow_ref(4)), 3);
    }

    proptest! {
        #[test]
        fn order_and_repetition_within_the_window_change_nothing(
            mut tries in prop::collection::vec((0_u16..6, 0_i64..100, any::<bool>()), 1..20),
            turn in any::<prop::sample::Index>(),
        ) {
            let run = |tries: &[(u16, i64, bool)]| {
                let mut w = DistinctWindow::default();
                w.observe(99, 99, Reach::Failed, SPAN, || flow_ref(0));
                for (value, time, answered) in tries {
                    if !answered {
                        observe(&mut w, *value, *time, Reach::Failed);
                    }
                }
                w.in_vain(SPAN.grace).map(|a| a.value).collect::<std::collections::BTreeSet<_>>()
            };
            let straight = run(&tries);
            tries.extend(tries.clone());
            let by = turn.index(tries.len());
            tries.rotate_left(by);
            prop_assert_eq!(run(&tries), straight);
        }

        #[test]
        fn a_window_never_outgrows_its_bound(
            tries in prop::collection::vec((any::<u16>(), any::<i64>()), 0..300),
        ) {
            let mut w = DistinctWindow::default();
            let mut c = CountWindow::default();
            for (value, time) in tries {
                prop_assert!(observe(&mut w, value, time, Reach::Failed) <= SPAN.bound);
                c.observe(1, time, SPAN, flow_ref(0));
                prop_assert!(c.events().len() <= SPAN.bound);
            }
        }
    }
}
