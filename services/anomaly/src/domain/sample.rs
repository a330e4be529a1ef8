//! Recent normal rows, from which a model is learnt anew, and who is kept out of them.
//!
//! An attacker who is seen while a model learns can teach it that the attack is normal: all at once, or by so little at a
//! time that no step is noticed (the boiling frog of Rubinstein et al. 2009). So what the live model takes for unusual does
//! not get in, nor does anything of a source with an open alert, and no source has more than its share.

use std::collections::HashMap;

use garrison_models::rng::{SplitMix64, mix};

use super::{
    features::WIDTH,
    window::{Host, Nanos},
};

/// Sources with an open alert that are remembered.
pub const SUSPECTS: usize = 4_096;

/// Settings of the sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampleSettings {
    /// Rows kept.
    pub rows: usize,
    /// How far back they reach: a full sample is replaced within so long, not faster, however much traffic there is.
    pub memory: Nanos,
    /// Most of the sample that one source may have.
    pub source_share: f64,
}

/// Stands for a source where only equality matters: an IPv6 source is its /64, because whoever has one address there has
/// them all. 0 is nobody.
pub fn tag(source: Host) -> u32 {
    let is_v4 = source.ip().is_ipv4();
    let network = if is_v4 { source.0 } else { source.0 >> 64 };
    let mixed = mix(network as u64 ^ mix((network >> 64) as u64 ^ u64::from(is_v4)));
    ((mixed >> 32) as u32).max(1)
}

/// Rows kept out, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TurnedAway {
    /// The live model takes them for unusual.
    pub unusual: u64,
    /// Their source has an open alert.
    pub suspect: u64,
    /// Their source has its share.
    pub share: u64,
}

/// A sample that follows the traffic: once it is full, a new row takes the place of any, at a pace that replaces the whole
/// within the memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Recent {
    settings: SampleSettings,
    rows: Vec<f32>,
    tags: Vec<u32>,
    counts: HashMap<u32, u32>,
    rng: SplitMix64,
    // Flow time from which on the next row is taken.
    next: Nanos,
    // Rows taken.
    taken: u64,
    // Flow time of the first and last row taken.
    window: (Nanos, Nanos),
    /// Rows kept out since the start.
    pub turned_away: TurnedAway,
    // Rows taken since it was saved.
    unsaved: usize,
}

/// Everything of a [`Recent`] that changes, for storing it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RecentState {
    /// Row after row.
    pub rows: Vec<f32>,
    /// The source of each.
    pub tags: Vec<u32>,
    /// Where the sequence of chance stands.
    pub chance: u64,
    /// Flow time from which on the next row is taken.
    pub next: Nanos,
    /// Rows taken.
    pub taken: u64,
    /// Flow time of the first and last row taken.
    pub window: (Nanos, Nanos),
    /// Rows kept out.
    pub turned_away: TurnedAway,
}

impl Recent {
    /// Starts empty.
    pub fn new(settings: SampleSettings, seed: u64) -> Self {
        Self {
            settings,
            rows: Vec::new(),
            tags: Vec::new(),
            counts: HashMap::new(),
            rng: SplitMix64::new(mix(seed)),
            next: Nanos::MIN,
            taken: 0,
            window: (Nanos::MAX, Nanos::MIN),
            turned_away: TurnedAway::default(),
            unsaved: 0,
        }
    }

    /// Goes on from what was stored; what is beyond the bound is left out.
    pub fn restore(settings: SampleSettings, state: RecentState) -> Self {
        let mut recent = Self::new(settings, 0);
        let whole = (state.rows.len() / WIDTH).min(state.tags.len()).min(settings.rows);
        recent.rows = state.rows;
        recent.rows.truncate(whole * WIDTH);
        recent.tags = state.tags;
        recent.tags.truncate(whole);
        for tag in &recent.tags {
            *recent.counts.entry(*tag).or_default() += 1;
        }
        recent.rng = SplitMix64::new(state.chance);
        (recent.next, recent.taken, recent.window) = (state.next, state.taken, state.window);
        recent.turned_away = state.turned_away;
        recent
    }

    /// What to store.
    pub fn state(&self) -> RecentState {
        RecentState {
            rows: self.rows.clone(),
            tags: self.tags.clone(),
            chance: self.rng.state(),
            next: self.next,
            taken: self.taken,
            window: self.window,
            turned_away: self.turned_away,
        }
    }

    /// Whether a row of that time would be looked at.
    pub fn is_due(&self, time: Nanos) -> bool {
        time >= self.next
    }

    /// Takes a row that nothing speaks against but perhaps its source's share.
    pub fn take(&mut self, row: impl Iterator<Item = f32>, source: u32, time: Nanos) {
        let has = self.counts.get(&source).copied().unwrap_or(0);
        let most = ((self.settings.source_share * self.settings.rows as f64) as u32).max(1);
        let step = (self.settings.memory / self.settings.rows.max(1) as i64).max(1);
        if self.tags.len() < self.settings.rows {
            if has >= most {
                // Where a few sources are all there are, the sample never fills, and need not be tried with every row.
                self.next = time.saturating_add(step);
                self.turned_away.share += 1;
                return;
            }
            self.rows.extend(row.take(WIDTH));
            self.tags.push(source);
        } else {
            let at = self.rng.below(self.tags.len() as u64) as usize;
            self.next = time.saturating_add(step);
            let gone = self.tags[at];
            if gone != source && has >= most {
                self.turned_away.share += 1;
                return;
            }
            if let Some(count) = self.counts.get_mut(&gone) {
                *count -= 1;
                if *count == 0 {
                    self.counts.remove(&gone);
                }
            }
            self.tags[at] = source;
            let slot = &mut self.rows[at * WIDTH..(at + 1) * WIDTH];
            slot.iter_mut().zip(row).for_each(|(kept, v)| *kept = v);
        }
        *self.counts.entry(source).or_default() += 1;
        self.taken += 1;
        self.unsaved += 1;
        self.window = (self.window.0.min(time), self.window.1.max(time));
    }

    /// Enough has changed to be worth saving; from here on it counts as saved.
    pub fn to_be_saved(&mut self) -> bool {
        let due = self.unsaved > 0 && self.unsaved >= (self.tags.len() / 20).max(64);
        if due {
            self.unsaved = 0;
        }
        due
    }

    /// It was not saved after all.
    pub fn not_saved(&mut self) {
        self.unsaved = self.tags.len().max(64);
    }

    /// Rows kept.
    pub fn len(&self) -> usize {
        self.tags.len()
    }

    /// No row is kept.
    pub fn is_empty(&self) -> bool {
        self.tags.is_empty()
    }

    /// Different sources of the rows.
    pub fn sources(&self) -> usize {
        self.counts.len()
    }

    /// Rows taken so far, and the flow time of the first and the last of them.
    pub fn taken(&self) -> (u64, (Nanos, Nanos)) {
        (self.taken, self.window)
    }

    /// The rows.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.rows.chunks_exact(WIDTH)
    }

    /// All values row after row, and the source of each row.
    pub fn parts(&self) -> (&[f32], &[u32]) {
        (&self.rows, &self.tags)
    }
}

/// Which rows of a sample stay when no source may have more than its share, or than an equal part where the sources are
/// few. Of a source that has too many the first are kept; the sample is in no order.
pub fn within_share(tags: &[u32], share: f64) -> Vec<usize> {
    let mut counts: HashMap<u32, usize> = HashMap::new();
    for tag in tags {
        *counts.entry(*tag).or_default() += 1;
    }
    let equal = tags.len().div_ceil(counts.len().max(1));
    let most = ((share * tags.len() as f64) as usize).max(equal);
    let mut kept: HashMap<u32, usize> = HashMap::new();
    (0..tags.len())
        .filter(|i| {
            let has = kept.entry(tags[*i]).or_default();
            *has += 1;
            // Nobody knows whose the rows are of a sample that an earlier release began.
            tags[*i] == 0 || *has <= most
        })
        .collect()
}

/// Sources with an open alert, and until when.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Suspects {
    until: HashMap<Host, Nanos>,
    // There were too many to tell them apart: until then everybody is one.
    everybody: Option<Nanos>,
}

impl Suspects {
    /// Remembers one.
    pub fn insert(&mut self, source: Host, now: Nanos, until: Nanos) {
        if self.until.len() >= SUSPECTS && !self.until.contains_key(&source) {
            self.until.retain(|_, until| *until >= now);
            if self.until.len() >= SUSPECTS {
                // Alerts from made-up sources must not push the real one out.
                self.everybody = Some(self.everybody.map_or(until, |known| known.max(until)));
                return;
            }
        }
        let known = self.until.entry(source).or_insert(until);
        *known = (*known).max(until);
    }

    /// The source has an open alert.
    pub fn contains(&self, source: Host, now: Nanos) -> bool {
        self.everybody.is_some_and(|until| until >= now) || self.until.get(&source).is_some_and(|until| *until >= now)
    }

    /// Sources remembered.
    pub fn len(&self) -> usize {
        self.until.len()
    }

    /// Nobody is suspected.
    pub fn is_empty(&self) -> bool {
        self.until.is_empty() && self.everybody.is_none()
    }

    /// Every source and until when, in order; and until when everybody is one.
    pub fn state(&self) -> (Vec<(Host, Nanos)>, Option<Nanos>) {
        let mut all: Vec<(Host, Nanos)> = self.until.iter().map(|(host, until)| (*host, *until)).collect();
        all.sort_unstable();
        (all, self.everybody)
    }

    /// Goes on from what was stored.
    pub fn restore(all: impl Iterator<Item = (Host, Nanos)>, everybody: Option<Nanos>) -> Self {
        Self {
            until: all.take(SUSPECTS).collect(),
            everybody,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::window::SECOND;

    const SETTINGS: SampleSettings = SampleSettings {
        rows: 200,
        memory: 1_000 * SECOND,
        source_share: 0.1,
    };

    fn row(v: f32) -> impl Iterator<Item = f32> {
        std::iter::repeat_n(v, WIDTH)
    }

    #[test]
    fn no_source_has_more_than_its_share_however_much_it_sends() {
        let mut recent = Recent::new(SETTINGS, 1);
        for n in 0..20_000_u32 {
            let time = i64::from(n) * SECOND;
            // Nine of ten rows are one source's.
            let source = if n % 10 == 0 { 2 + n / 10 % 30 } else { 1 };
            recent.take(row(source as f32), source, time);
        }
        let of_one = recent.rows().filter(|r| r[0] == 1.0).count();
        assert!(of_one <= 20, "{of_one}");
        assert_eq!(recent.len(), 200);
        assert!(recent.turned_away.share > 10_000);
        let of_all: u32 = recent.counts.values().sum();
        assert_eq!(of_all as usize, recent.len());
    }

    #[test]
    fn a_burst_does_not_replace_what_a_day_gathered() {
        let mut recent = Recent::new(SETTINGS, 1);
        (0..200).for_each(|n| recent.take(row(0.0), 1 + n % 40, 0));
        // Ten thousand rows within a second.
        for n in 0..10_000_u32 {
            let time = i64::from(n) * SECOND / 10_000;
            if recent.is_due(time) {
                recent.take(row(1.0), 100 + n % 100, time);
            }
        }
        let new = recent.rows().filter(|r| r[0] == 1.0).count();
        assert!(new <= 2, "{new}");
        for n in 0..10_000_i64 {
            let time = n * SECOND;
            if recent.is_due(time) {
                recent.take(row(1.0), 100 + n as u32 % 100, time);
            }
        }
        let old = recent.rows().filter(|r| r[0] == 0.0).count();
        assert!(old < 10, "{old}");
    }

    #[test]
    fn restored_it_goes_on_with_the_same_choices() {
        let mut recent = Recent::new(SETTINGS, 1);
        let feed = |recent: &mut Recent, from: u32, to: u32| {
            for n in from..to {
                recent.take(row(n as f32), n % 50 + 1, i64::from(n) * 10 * SECOND);
            }
        };
        feed(&mut recent, 0, 500);
        let mut again = Recent::restore(SETTINGS, recent.state());
        feed(&mut recent, 500, 900);
        feed(&mut again, 500, 900);
        assert_eq!(recent.state(), again.state());
        let smaller = SampleSettings { rows: 50, ..SETTINGS };
        assert_eq!(Recent::restore(smaller, recent.state()).len(), 50);
    }

    #[test]
    fn a_sample_of_few_sources_is_kept_whole_and_one_of_a_flooder_is_not() {
        let few: Vec<u32> = (0..90).map(|n| n % 3 + 1).collect();
        assert_eq!(within_share(&few, 0.05).len(), 90);
        let flood: Vec<u32> = (0..1_000).map(|n| if n % 10 == 0 { n / 10 + 2 } else { 1 }).collect();
        let kept = within_share(&flood, 0.05);
        assert_eq!(kept.iter().filter(|i| flood[**i] == 1).count(), 50);
        assert_eq!(kept.len(), 150);
        assert_eq!(within_share(&[0; 70], 0.05).len(), 70);
        assert!(within_share(&[], 0.05).is_empty());
    }

    #[test]
    fn made_up_sources_do_not_push_a_suspect_out() {
        let mut suspects = Suspects::default();
        suspects.insert(Host(7), 0, 100);
        for n in 0..10_000 {
            suspects.insert(Host(1_000 + n), 0, 50);
        }
        assert!(suspects.contains(Host(7), 90) && suspects.len() == SUSPECTS);
        // Too many to tell apart: nobody is trusted for as long.
        assert!(suspects.contains(Host(3), 50) && !suspects.contains(Host(3), 51));
        assert!(!suspects.contains(Host(7), 101));
        let (all, everybody) = suspects.state();
        assert_eq!(Suspects::restore(all.into_iter(), everybody), suspects);
        // Room is made by those whose time is over.
        suspects.insert(Host(5), 60, 200);
        assert!(suspects.contains(Host(5), 150) && suspects.len() == 2);
    }

    #[test]
    fn addresses_of_one_network_are_one_source() {
        let host = |text: &str| Host::from(text.parse::<std::net::IpAddr>().unwrap());
        assert_eq!(tag(host("2001:db8::1")), tag(host("2001:db8::ffff")));
        assert_ne!(tag(host("2001:db8::1")), tag(host("2001:db8:0:1::1")));
        assert_ne!(tag(host("10.0.0.1")), tag(host("10.0.0.2")));
    }
}
