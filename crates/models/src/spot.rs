//! A threshold that keeps a promised exceedance rate on a stream whose distribution nobody told it: peaks
//! over threshold with drift (SPOT and DSPOT: Siffer, Fouque, Termier, Largouët, KDD 2017).
//!
//! Departures from the paper, both for bounded memory and for streams without end:
//! - peaks are kept in a ring; when it is full the oldest leaves, and the number of observations it stood for
//!   leaves with it, so that the tail follows the recent past;
//! - values over the threshold enter the fit as long as they are about as many as was promised. Leaving them
//!   out, as the paper does, bends the tail downwards. What comes beyond the promise teaches nothing, and no
//!   single value counts as more than a few thresholds, so that an attacker cannot raise it at will.

use std::collections::VecDeque;

use super::gpd::GeneralisedPareto;

/// How a [`Spot`] behaves. Fixed when it is made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SpotSettings {
    /// Promised rate of values above the threshold, above 0 and below the tail's share.
    pub rate: f64,
    /// Share of values below the tail, for example 0.98.
    pub level: f64,
    /// Most peaks kept for the fit.
    pub peaks: usize,
    /// Number of recent normal values whose mean is followed as drift; 0 for none.
    pub drift_depth: usize,
    /// No value below this is ever above the threshold.
    pub floor: f64,
}

/// What [`Spot::observe`] saw.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Judgement {
    /// The value is above the threshold.
    pub exceeds: bool,
    /// The threshold it was held against, in the unit of the values.
    pub threshold: f64,
    /// Estimated probability of a value at least as high.
    pub tail_probability: f64,
}

/// A value in the tail.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peak {
    /// How far it is above the base.
    pub excess: f64,
    /// It was above the threshold of its moment.
    pub alarm: bool,
}

// How far beyond the threshold a single value may pull, in excesses.
const LARGEST_PULL: f64 = 3.0;
// Values over the threshold that may teach: this many times those promised, and some for a start.
const TEACHING_ALARMS: (f64, f64) = (2.0, 3.0);

/// The adaptive threshold.
#[derive(Clone, Debug, PartialEq)]
pub struct Spot {
    settings: SpotSettings,
    // Base, threshold and peaks are relative to the drift's mean.
    base: f64,
    threshold: f64,
    tail: Option<GeneralisedPareto>,
    peaks: VecDeque<Peak>,
    // Peaks kept that were above the threshold of their moment.
    alarms_kept: usize,
    // Observations that the kept peaks stand for.
    represented: f64,
    peaks_until_fit: u32,
    drift: VecDeque<f64>,
    drift_sum: f64,
    observed: u64,
    exceeded: u64,
}

/// Everything of a [`Spot`] that changes, for storing it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SpotState {
    /// Where the tail begins.
    pub base: f64,
    /// The threshold, relative to the drift's mean.
    pub threshold: f64,
    /// Shape and scale of the tail; none while there is no fit.
    pub tail: Option<(f64, f64)>,
    /// The tail, oldest first.
    pub peaks: Vec<Peak>,
    /// Observations that the peaks stand for.
    pub represented: f64,
    /// Peaks to come before the next fit.
    pub peaks_until_fit: u32,
    /// The recent normal values, oldest first.
    pub drift: Vec<f64>,
    /// Sum of the recent normal values as it was kept, rounding included.
    pub drift_sum: f64,
    /// Values seen.
    pub observed: u64,
    /// Values that were above the threshold.
    pub exceeded: u64,
}

impl Spot {
    /// Starts from a sample of normal values, in the order they were seen. `None` when fewer than
    /// [`MIN_CALIBRATION`](Self::MIN_CALIBRATION) of them are finite.
    pub fn calibrate(settings: SpotSettings, sample: &[f64]) -> Option<Self> {
        let values: Vec<f64> = sample.iter().copied().filter(|x| x.is_finite()).collect();
        if values.len() < Self::MIN_CALIBRATION {
            return None;
        }
        let mut spot = Self {
            settings,
            base: 0.0,
            threshold: 0.0,
            tail: None,
            peaks: VecDeque::new(),
            alarms_kept: 0,
            represented: values.len() as f64,
            peaks_until_fit: 0,
            drift: VecDeque::new(),
            drift_sum: 0.0,
            observed: 0,
            exceeded: 0,
        };
        // Each value relative to the mean of those before it; the first ones only fill the window.
        let depth = settings.drift_depth.min(values.len() / 4);
        let mut relative = Vec::with_capacity(values.len());
        for (i, &x) in values.iter().enumerate() {
            if i >= depth {
                relative.push(x - spot.drift_mean());
            }
            spot.follow_drift(x, depth);
        }
        spot.represented = relative.len() as f64;
        let mut sorted = relative.clone();
        sorted.sort_by(f64::total_cmp);
        // A small sample has to give enough peaks for a fit, too.
        let share = (1.0 - settings.level).max(16.0 / sorted.len() as f64);
        let at = ((1.0 - share) * sorted.len() as f64) as usize;
        spot.base = sorted[at.min(sorted.len() - 2)];
        let base = spot.base;
        for &x in relative.iter().filter(|x| **x > base) {
            spot.keep_peak(Peak {
                excess: x - base,
                alarm: false,
            });
        }
        spot.fit();
        Some(spot)
    }

    /// Fewest normal values to start from.
    pub const MIN_CALIBRATION: usize = 50;

    /// Holds `value` against the threshold and learns from it. A value that is not finite exceeds and teaches
    /// nothing.
    pub fn observe(&mut self, value: f64) -> Judgement {
        let threshold = self.threshold();
        self.observed += 1;
        if !value.is_finite() {
            self.exceeded += 1;
            return Judgement {
                exceeds: true,
                threshold,
                tail_probability: 0.0,
            };
        }
        let relative = value - self.drift_mean();
        let tail_probability = self.tail_probability(relative);
        let exceeds = value > threshold;
        if exceeds {
            self.exceeded += 1;
            let promised = self.settings.rate * self.represented;
            if self.alarms_kept as f64 >= TEACHING_ALARMS.0 * promised + TEACHING_ALARMS.1 {
                return Judgement {
                    exceeds,
                    threshold,
                    tail_probability,
                };
            }
        } else {
            self.follow_drift(value, self.settings.drift_depth);
        }
        self.represented += 1.0;
        if relative > self.base {
            let most = LARGEST_PULL * (self.threshold - self.base).max(0.0);
            let excess = relative - self.base;
            self.keep_peak(Peak {
                excess: if exceeds { excess.min(most) } else { excess },
                alarm: exceeds,
            });
            if self.peaks_until_fit == 0 {
                self.fit();
            } else {
                self.peaks_until_fit -= 1;
            }
        }
        Judgement {
            exceeds,
            threshold,
            tail_probability,
        }
    }

    /// The threshold now, in the unit of the values.
    pub fn threshold(&self) -> f64 {
        (self.threshold + self.drift_mean()).max(self.settings.floor)
    }

    /// The value that is exceeded with a probability, in the unit of the values and never below the floor. Nothing below
    /// the tail is told: there it is where the tail begins.
    pub fn value_at(&self, probability: f64) -> f64 {
        let share = (self.peaks.len() as f64 / self.represented.max(1.0)).min(1.0);
        let excess = match self.tail {
            Some(tail) if share > probability => tail.quantile_above((probability / share).max(f64::MIN_POSITIVE)),
            Some(_) => 0.0,
            None => self.threshold - self.base,
        };
        (self.base + excess + self.drift_mean()).max(self.settings.floor)
    }

    /// Values observed since calibration.
    pub fn observed(&self) -> u64 {
        self.observed
    }

    /// Share of the values observed since calibration that were above the threshold of their moment.
    pub fn realised_rate(&self) -> f64 {
        if self.observed == 0 {
            0.0
        } else {
            self.exceeded as f64 / self.observed as f64
        }
    }

    /// What to store.
    pub fn state(&self) -> SpotState {
        SpotState {
            base: self.base,
            threshold: self.threshold,
            tail: self.tail.map(|t| (t.shape, t.scale)),
            peaks: self.peaks.iter().copied().collect(),
            represented: self.represented,
            peaks_until_fit: self.peaks_until_fit,
            drift: self.drift.iter().copied().collect(),
            drift_sum: self.drift_sum,
            observed: self.observed,
            exceeded: self.exceeded,
        }
    }

    /// Goes on from what was stored.
    pub fn restore(settings: SpotSettings, state: SpotState) -> Self {
        Self {
            settings,
            base: state.base,
            threshold: state.threshold,
            tail: state.tail.map(|(shape, scale)| GeneralisedPareto { shape, scale }),
            alarms_kept: state.peaks.iter().filter(|p| p.alarm).count(),
            peaks: state.peaks.into(),
            represented: state.represented,
            peaks_until_fit: state.peaks_until_fit,
            drift_sum: state.drift_sum,
            drift: state.drift.into(),
            observed: state.observed,
            exceeded: state.exceeded,
        }
    }

    fn tail_probability(&self, relative: f64) -> f64 {
        let share = (self.peaks.len() as f64 / self.represented.max(1.0)).min(1.0);
        match self.tail {
            Some(tail) if relative > self.base => share * tail.survival(relative - self.base),
            None if relative > self.threshold => 0.0,
            _ => 1.0,
        }
    }

    fn drift_mean(&self) -> f64 {
        if self.drift.is_empty() {
            0.0
        } else {
            self.drift_sum / self.drift.len() as f64
        }
    }

    fn follow_drift(&mut self, value: f64, depth: usize) {
        if depth == 0 {
            return;
        }
        self.drift.push_back(value);
        self.drift_sum += value;
        while self.drift.len() > depth {
            self.drift_sum -= self.drift.pop_front().unwrap_or_default();
        }
        // Adding and subtracting for ever gathers rounding errors.
        if self.observed.is_multiple_of(depth as u64) {
            self.drift_sum = self.drift.iter().sum();
        }
    }

    fn keep_peak(&mut self, peak: Peak) {
        if self.peaks.len() >= self.settings.peaks.max(16) {
            self.represented -= self.represented / self.peaks.len() as f64;
            if self.peaks.pop_front().is_some_and(|p| p.alarm) {
                self.alarms_kept -= 1;
            }
        }
        self.alarms_kept += usize::from(peak.alarm);
        self.peaks.push_back(peak);
    }

    fn fit(&mut self) {
        let peaks: Vec<f64> = self.peaks.iter().map(|p| p.excess).collect();
        // Every peak counts while there are few; later one in twenty changes nothing that could be seen.
        self.peaks_until_fit = (peaks.len() / 20) as u32;
        self.tail = GeneralisedPareto::fit(&peaks);
        let highest = peaks.iter().copied().fold(0.0, f64::max);
        let share = peaks.len() as f64 / self.represented.max(1.0);
        let excess = match self.tail {
            Some(tail) if share > self.settings.rate => tail.quantile_above(self.settings.rate / share),
            // Fewer values lie in the tail than may exceed: begin it where it begins.
            Some(_) => 0.0,
            // All peaks alike: what was never seen starts just above them.
            None => highest * 1.1 + f64::EPSILON,
        };
        self.threshold = self.base + excess;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rng::SplitMix64;

    fn settings(rate: f64, drift_depth: usize) -> SpotSettings {
        SpotSettings {
            rate,
            level: 0.98,
            peaks: 500,
            drift_depth,
            floor: f64::NEG_INFINITY,
        }
    }

    type Draw = fn(&mut SplitMix64) -> f64;

    const PARENTS: [(&str, Draw); 4] = [
        ("normal", |r| r.normal()),
        ("exponential", |r| -(1.0 - r.unit()).ln()),
        ("log-normal", |r| r.normal().exp()),
        ("pareto 4", |r| (1.0 - r.unit()).powf(-0.25)),
    ];

    #[test]
    fn the_realised_rate_is_the_promised_one_whatever_the_parent() {
        for (name, draw) in PARENTS {
            for rate in [1e-2, 1e-3] {
                let mut rng = SplitMix64::new(3);
                let sample: Vec<f64> = (0..20_000).map(|_| draw(&mut rng)).collect();
                let mut spot = Spot::calibrate(settings(rate, 0), &sample).unwrap();
                let n = 150_000;
                for _ in 0..n {
                    spot.observe(draw(&mut rng));
                }
                let realised = spot.realised_rate();
                assert!(
                    (realised / rate - 1.0).abs() < 0.3,
                    "{name}: promised {rate}, realised {realised}"
                );
            }
        }
    }

    #[test]
    fn slow_drift_is_followed_where_a_fixed_threshold_breaks_its_promise() {
        let mut rng = SplitMix64::new(5);
        let sample: Vec<f64> = (0..10_000).map(|_| rng.normal()).collect();
        let rate = 1e-3;
        let mut spot = Spot::calibrate(settings(rate, 500), &sample).unwrap();
        let fixed = spot.threshold();
        let n = 150_000;
        let mut over_fixed = 0;
        for i in 0..n {
            let x = rng.normal() + 6.0 * f64::from(i) / f64::from(n);
            over_fixed += i32::from(x > fixed);
            spot.observe(x);
        }
        let realised = spot.realised_rate();
        assert!((realised / rate - 1.0).abs() < 0.35, "{realised}");
        assert!(f64::from(over_fixed) / f64::from(n) > 100.0 * rate);
    }

    #[test]
    fn a_flood_of_extreme_values_does_not_raise_the_threshold_out_of_reach() {
        let mut rng = SplitMix64::new(9);
        let sample: Vec<f64> = (0..5_000).map(|_| rng.normal().abs()).collect();
        let mut spot = Spot::calibrate(settings(1e-3, 100), &sample).unwrap();
        for _ in 0..2_000 {
            assert!(spot.observe(1e6).exceeds);
        }
        assert!(spot.threshold() < 1_000.0, "{}", spot.threshold());
    }

    #[test]
    fn values_that_are_all_alike_and_values_that_are_not_numbers_are_survived() {
        let mut spot = Spot::calibrate(settings(1e-4, 0), &[1.0; 200]).unwrap();
        assert!(!spot.observe(1.0).exceeds);
        assert!(spot.observe(1.5).exceeds);
        assert!(spot.observe(f64::NAN).exceeds);
        assert!(spot.threshold().is_finite());
        assert_eq!(Spot::calibrate(settings(1e-4, 0), &[f64::NAN; 500]), None);
        assert_eq!(Spot::calibrate(settings(1e-4, 0), &[]), None);
    }

    #[test]
    fn a_value_is_as_rare_as_the_probability_that_it_was_asked_for() {
        let mut rng = SplitMix64::new(4);
        let sample: Vec<f64> = (0..8_000).map(|_| rng.normal().exp()).collect();
        let spot = Spot::calibrate(settings(1e-3, 0), &sample).unwrap();
        for probability in [1e-2, 1e-3, 1e-5] {
            let value = spot.value_at(probability);
            let mut there = spot.clone();
            let judged = there.observe(value).tail_probability;
            assert!((judged / probability - 1.0).abs() < 1e-6, "{probability}: {judged}");
        }
        assert!((spot.value_at(1e-3) - spot.threshold()).abs() < 1e-9);
        assert!(spot.value_at(0.5) <= spot.value_at(0.019));
    }

    #[test]
    fn the_floor_holds() {
        let mut low = settings(1e-2, 0);
        low.floor = 10.0;
        let mut rng = SplitMix64::new(1);
        let sample: Vec<f64> = (0..500).map(|_| rng.unit()).collect();
        let mut spot = Spot::calibrate(low, &sample).unwrap();
        assert!(!spot.observe(9.9).exceeds);
        assert!(spot.observe(10.1).exceeds);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn stored_and_restored_it_judges_as_if_never_interrupted(
            seed in any::<u64>(), cut in 0_usize..2_000, depth in 0_usize..64,
        ) {
            let mut rng = SplitMix64::new(seed);
            let sample: Vec<f64> = (0..400).map(|_| rng.normal()).collect();
            let settings = settings(1e-2, depth);
            let mut whole = Spot::calibrate(settings, &sample).unwrap();
            let mut parts = whole.clone();
            for i in 0..2_000 {
                if i == cut {
                    parts = Spot::restore(settings, parts.state());
                }
                let x = rng.normal();
                prop_assert_eq!(whole.observe(x), parts.observe(x));
            }
        }
    }
}
