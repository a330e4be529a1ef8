//! What a tenant's model must go on finding. When the first model is trained, some of its normal rows are kept; reference
//! attacks are made from them, each in several strengths between nothing and blatant, and the share that the model finds
//! is kept as well. A later model is held against these same attacks: one that was taught slowly to take an attack for
//! normal finds fewer of them, however little each step took away, because it is always compared with the first.

use garrison_models::{Matrix, error::ModelError};

use super::{
    features::{FEATURES, Transform, WIDTH},
    network::Network,
};

/// Normal rows that reference attacks are made from.
pub const NORMAL_ROWS: usize = 24;

// Each attack is tried at so many strengths, the last of them in full.
const STRENGTHS: usize = 8;

/// A kind of reference attack: its name, and where it takes features, in their units.
struct Attack {
    name: &'static str,
    values: &'static [(&'static str, f64)],
}

/// The reference attacks.
static ATTACKS: [Attack; 6] = [
    Attack {
        name: "scan",
        values: &[
            ("src_bytes", 0.0),
            ("dst_bytes", 0.0),
            ("src_packets", 1.0),
            ("dst_packets", 0.0),
            ("failed", 1.0),
            ("source_flows", 2_000.0),
            ("source_failed_share", 1.0),
            ("source_hosts", 250.0),
            ("source_ports", 250.0),
        ],
    },
    Attack {
        name: "brute force",
        values: &[
            ("duration", 0.5),
            ("http_error", 1.0),
            ("http_auth_failures", 20.0),
            ("source_flows", 600.0),
        ],
    },
    Attack {
        name: "denial of service",
        values: &[
            ("packet_rate", 200_000.0),
            ("src_packets", 50_000.0),
            ("source_flows", 50_000.0),
        ],
    },
    Attack {
        name: "exfiltration",
        values: &[
            ("duration", 600.0),
            ("src_bytes", 1e9),
            ("src_packets", 7e5),
            ("byte_balance", 1.0),
            ("src_mean_payload", 1_400.0),
            ("source_bytes", 1e9),
        ],
    },
    Attack {
        name: "command and control",
        values: &[
            ("duration", 7_200.0),
            ("packet_rate", 0.05),
            ("service_known", 0.0),
            ("dynamic_port", 1.0),
            ("well_known_port", 0.0),
        ],
    },
    Attack {
        name: "tunnel",
        values: &[
            ("dns_query_length", 220.0),
            ("src_mean_payload", 250.0),
            ("source_flows", 1_000.0),
            ("src_entropy", 7.5),
        ],
    },
];

/// Names of the reference attacks, in their order.
pub fn names() -> impl ExactSizeIterator<Item = &'static str> {
    ATTACKS.iter().map(|a| a.name)
}

/// The attacks that are kept, with what the model found of them that they were made for.
#[derive(Clone, Debug, PartialEq)]
pub struct Anchor {
    /// Version of that model.
    pub version: u64,
    /// The normal rows.
    pub normal: Matrix,
    /// The share of each kind that it found.
    pub found: Vec<f64>,
}

impl Anchor {
    /// Keeps some rows of a sample, evenly over it, and measures a model.
    ///
    /// # Errors
    /// [`ModelError::Tensor`].
    pub fn of(version: u64, model: &Network, threshold: f64, sample: &Matrix) -> Result<Self, ModelError> {
        let n = sample.rows();
        let kept: Vec<usize> = (0..NORMAL_ROWS.min(n)).map(|k| k * n / NORMAL_ROWS.min(n)).collect();
        let normal = sample.select(&kept);
        let found = found(&normal, model, threshold)?;
        Ok(Self { version, normal, found })
    }

    /// From what was stored. `None` when it is of other features.
    pub fn restore(version: u64, normal: Vec<f32>, found: Vec<f64>) -> Option<Self> {
        let rows = normal.len() / WIDTH;
        let normal = Matrix::from_features(WIDTH, rows, normal)?;
        (rows > 0 && found.len() == ATTACKS.len()).then_some(Self { version, normal, found })
    }

    /// The share of each kind of attack that another model finds.
    ///
    /// # Errors
    /// [`ModelError::Tensor`].
    pub fn measure(&self, model: &Network, threshold: f64) -> Result<Vec<f64>, ModelError> {
        found(&self.normal, model, threshold)
    }

    /// Why a model that finds so much must not replace the present one by itself; empty when nothing speaks against it.
    /// `most_lost` is the share of a kind that may be lost.
    pub fn objection(&self, measured: &[f64], most_lost: f64) -> String {
        let lost = names().zip(self.found.iter().zip(measured));
        let lost = lost.filter(|(_, (then, now))| **now < **then - most_lost);
        let lost: Vec<String> = lost
            .map(|(name, (then, now))| format!("{name} {:.0} % instead of {:.0} %", 100.0 * now, 100.0 * then))
            .collect();
        if lost.is_empty() {
            return String::new();
        }
        format!(
            "it finds less of the reference attacks than version {}: {}; somebody may have taught it slowly",
            self.version,
            lost.join(", ")
        )
    }
}

// The share of each kind that a model finds.
fn found(normal: &Matrix, model: &Network, threshold: f64) -> Result<Vec<f64>, ModelError> {
    let mut shares = Vec::with_capacity(ATTACKS.len());
    for attack in &ATTACKS {
        let scores = model.score(&attack.rows(normal))?;
        let above = scores.values().iter().filter(|s| **s > threshold).count();
        shares.push(above as f64 / scores.values().len().max(1) as f64);
    }
    Ok(shares)
}

impl Attack {
    // Every normal row at every strength.
    fn rows(&self, normal: &Matrix) -> Matrix {
        let n = normal.rows();
        let all: Vec<usize> = (0..n * STRENGTHS).map(|k| k % n.max(1)).collect();
        let mut rows = normal.select(&all);
        for (name, value) in self.values {
            let Some(j) = FEATURES.iter().position(|f| f.name == *name) else {
                continue;
            };
            let target = match FEATURES[j].transform {
                Transform::Identity => *value,
                Transform::Log1p => value.ln_1p(),
            } as f32;
            for (k, v) in rows.feature_mut(j).iter_mut().enumerate() {
                let strength = (k / n.max(1) + 1) as f32 / STRENGTHS as f32;
                *v += strength * (target - *v);
            }
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attacks_change_features_that_exist_and_grow_from_normal_to_blatant() {
        let normal = Matrix::zeros(WIDTH, 3);
        for attack in &ATTACKS {
            let known = |name: &str| FEATURES.iter().any(|f| f.name == name);
            assert!(attack.values.iter().all(|(name, _)| known(name)), "{}", attack.name);
            let rows = attack.rows(&normal);
            assert_eq!(rows.rows(), 3 * STRENGTHS);
            let sizes: Vec<f32> = (0..STRENGTHS).map(|s| rows.row(3 * s).map(f32::abs).sum()).collect();
            assert!(sizes.windows(2).all(|w| w[0] < w[1]), "{}: {sizes:?}", attack.name);
        }
    }

    #[test]
    fn an_objection_names_what_was_lost() {
        let anchor = Anchor {
            version: 1,
            normal: Matrix::zeros(WIDTH, 1),
            found: vec![0.9, 0.8, 1.0, 0.75, 0.5, 0.5],
        };
        assert_eq!(anchor.objection(&[0.85, 0.8, 1.0, 0.7, 0.5, 1.0], 0.1), "");
        let objection = anchor.objection(&[0.9, 0.8, 1.0, 0.5, 0.5, 0.5], 0.1);
        assert!(objection.contains("exfiltration 50 % instead of 75 %"), "{objection}");
        assert!(objection.contains("version 1"));
        assert_eq!(Anchor::restore(1, vec![0.0; WIDTH + 1], vec![0.0; 6]), None);
        assert_eq!(Anchor::restore(1, vec![0.0; WIDTH], vec![0.0; 5]), None);
        assert!(Anchor::restore(1, vec![0.0; WIDTH], vec![0.0; 6]).is_some());
    }
}
