//! What kind of threat an unusual flow looks like: a classifier that was trained on labelled connections of real networks,
//! with the service's own features. It names a class only when it is sure enough, and says nothing otherwise. It never
//! raises or holds back an alert.

use std::sync::LazyLock;

use garrison_models::{
    Matrix,
    classifier::{self, Classifier, decide},
    error::ModelError,
    scaler::RobustScaler,
};
use garrison_proto::alert::v1::{Classification, Technique};
use serde::{Deserialize, Serialize};

use super::{
    detector::class_technique,
    features::{FEATURES, WIDTH},
};

/// Version of the manifest's form.
const FORMAT: u32 = 1;

/// Classes that can be told at all, benign first. Which of them a classifier has seen is in its manifest.
pub const CLASSES: [&str; 3] = ["benign", "scan", "command-and-control"];

/// What belongs to the classifier's weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of this form.
    pub format: u32,
    /// The features it looks at: those that its training data has.
    pub features: Vec<String>,
    /// Their scaling.
    pub scaler: RobustScaler,
    /// Least probability of a class that is named.
    pub least: f64,
    /// What it was trained on.
    pub data: Vec<String>,
    /// Size, seed, classes, calibration and the hash of the weights.
    pub classifier: classifier::Manifest,
}

/// A classifier of flows.
#[derive(Clone, Debug)]
pub struct Threats {
    manifest: Manifest,
    classifier: Classifier,
    // Places of its features in a row.
    columns: Vec<usize>,
}

/// What a flow looks like.
#[derive(Clone, Debug, PartialEq)]
pub struct ThreatClass {
    /// The class; `None` when the classifier abstains.
    pub name: Option<String>,
    /// Probability of the likeliest class.
    pub probability: f64,
}

impl ThreatClass {
    /// What an alert says of it.
    pub fn to_proto(&self) -> Classification {
        Classification {
            name: self.name.clone().unwrap_or_default(),
            probability: self.probability,
        }
    }

    /// The technique that the class stands for.
    pub fn technique(&self) -> Option<Technique> {
        self.name.as_deref().and_then(class_technique)
    }
}

impl Threats {
    /// The one that comes with the service. `None` when it cannot be read, which a test excludes.
    pub fn shipped() -> Option<&'static Self> {
        static SHIPPED: LazyLock<Option<Threats>> = LazyLock::new(|| {
            let manifest = serde_json::from_str(include_str!("threat/threats.json")).ok()?;
            Threats::load(manifest, include_bytes!("threat/threats.safetensors")).ok()
        });
        SHIPPED.as_ref()
    }

    /// Reads weights and what belongs to them.
    ///
    /// # Errors
    /// [`ModelError::Unusable`] when they do not fit each other or the features.
    pub fn load(manifest: Manifest, weights: &[u8]) -> Result<Self, ModelError> {
        let columns = columns(&manifest.features)?;
        let scales = [&manifest.scaler.medians, &manifest.scaler.spreads];
        if manifest.format != FORMAT
            || manifest.classifier.width != columns.len()
            || scales.iter().any(|s| s.len() != columns.len())
        {
            return Err(ModelError::Unusable("the classifier is of another release".to_owned()));
        }
        let classifier = Classifier::load(&manifest.classifier, weights)?;
        Ok(Self {
            manifest,
            classifier,
            columns,
        })
    }

    /// Trains on rows of all features. The same rows and seed give the same weights on the same machine.
    ///
    /// # Errors
    /// Every [`ModelError`].
    pub fn train(
        rows: &Matrix,
        labels: &[usize],
        weights: &[f64],
        features: &[&str],
        (least, data, seed): (f64, Vec<String>, u64),
    ) -> Result<Self, ModelError> {
        let features: Vec<String> = features.iter().map(|f| (*f).to_owned()).collect();
        let columns = columns(&features)?;
        let mut own = select(rows, &columns);
        let scaler = RobustScaler::fit(&own);
        scaler.apply(&mut own);
        let labelled = classifier::Labelled {
            rows: &own,
            labels,
            weights,
        };
        let shape = classifier::Shape {
            hidden: vec![32],
            members: 3,
            steps: 1_500,
            ..classifier::Shape::default()
        };
        let classes: Vec<String> = CLASSES.iter().map(|c| (*c).to_owned()).collect();
        let classifier = Classifier::train(&labelled, &classes, &shape, seed)?;
        Ok(Self {
            manifest: Manifest {
                format: FORMAT,
                features,
                scaler,
                least,
                data,
                classifier: classifier.manifest().clone(),
            },
            classifier,
            columns,
        })
    }

    /// What belongs to the weights.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The weights as safetensors.
    ///
    /// # Errors
    /// [`ModelError::Tensor`].
    pub fn weights(&self) -> Result<Vec<u8>, ModelError> {
        self.classifier.weights()
    }

    /// Says of rows of all features what they look like.
    ///
    /// # Errors
    /// [`ModelError::Tensor`].
    pub fn classify(&self, rows: &Matrix) -> Result<Vec<ThreatClass>, ModelError> {
        if rows.width() != WIDTH {
            return Err(ModelError::Unusable("rows have other features".to_owned()));
        }
        let mut own = select(rows, &self.columns);
        self.manifest.scaler.apply(&mut own);
        let probabilities = self.classifier.probabilities(&own)?;
        let classes = &self.manifest.classifier.classes;
        Ok(probabilities
            .iter()
            .map(|p| {
                let decision = decide(p, self.manifest.least);
                ThreatClass {
                    name: decision.class.and_then(|c| classes.get(c).cloned()),
                    probability: decision.probability,
                }
            })
            .collect())
    }
}

fn columns(features: &[String]) -> Result<Vec<usize>, ModelError> {
    let place = |name: &String| FEATURES.iter().position(|f| f.name == name);
    let places = features.iter().map(|name| {
        place(name)
            .ok_or_else(|| ModelError::Unusable(format!("there is no feature {name}; train the classifier anew")))
    });
    places.collect()
}

fn select(rows: &Matrix, columns: &[usize]) -> Matrix {
    let mut own = Matrix::zeros(columns.len(), rows.rows());
    for (to, from) in columns.iter().enumerate() {
        own.feature_mut(to).copy_from_slice(rows.feature(*from));
    }
    own
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_that_comes_with_the_service_is_whole_and_abstains_from_the_absurd() {
        let threats = Threats::shipped().unwrap();
        assert_eq!(threats.manifest().classifier.classes, CLASSES);
        let absurd = Matrix::from_rows(WIDTH, [[f32::MAX.sqrt(); WIDTH].as_slice()].into_iter());
        let said = threats.classify(&absurd).unwrap();
        assert!(said[0].probability.is_finite());
        assert!(threats.classify(&Matrix::zeros(3, 1)).is_err());
        assert!(threats.classify(&Matrix::zeros(WIDTH, 0)).unwrap().is_empty());
    }

    #[test]
    fn weights_of_other_features_are_refused() {
        let threats = Threats::shipped().unwrap();
        let mut manifest = threats.manifest().clone();
        manifest.features[0] = "colour".to_owned();
        let error = Threats::load(manifest, &threats.weights().unwrap()).unwrap_err();
        assert!(error.to_string().contains("no feature colour"), "{error}");
        let mut broken = threats.weights().unwrap();
        broken[300] ^= 1;
        assert!(Threats::load(threats.manifest().clone(), &broken).is_err());
    }

    #[test]
    fn training_is_the_same_for_the_same_seed() {
        let mut rng = garrison_models::rng::SplitMix64::new(2);
        let labels: Vec<usize> = (0..300).map(|n| n % 3).collect();
        let rows: Vec<Vec<f32>> = labels
            .iter()
            .map(|l| (0..WIDTH).map(|_| *l as f32 + 0.2 * rng.normal() as f32).collect())
            .collect();
        let rows = Matrix::from_rows(WIDTH, rows.iter().map(Vec::as_slice));
        let train = || {
            let about = (0.8, vec!["made".to_owned()], 5);
            Threats::train(&rows, &labels, &[], &["duration", "src_bytes"], about).unwrap()
        };
        let (a, b) = (train(), train());
        assert_eq!(a.manifest(), b.manifest());
        let said = a.classify(&rows).unwrap();
        let right = said
            .iter()
            .zip(&labels)
            .filter(|(s, l)| s.name.as_deref() == Some(CLASSES[**l]));
        assert!(right.count() > 270);
        let read = Threats::load(a.manifest().clone(), &a.weights().unwrap()).unwrap();
        assert_eq!(read.classify(&rows).unwrap(), said);
    }
}
