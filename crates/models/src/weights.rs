//! Weights as safetensors, with the hash that a manifest keeps.

use std::collections::HashMap;

use candle_core::{Device, Tensor};
use safetensors::{SafeTensors, tensor::TensorView};
use sha2::{Digest as _, Sha256};

use crate::error::{ModelError, tensor};

/// SHA-256, hexadecimal.
pub(crate) fn hash(weights: &[u8]) -> String {
    hex::encode(Sha256::digest(weights))
}

/// Writes named tensors. One key of metadata only: the order of several would differ from run to run, and with it
/// the hash.
pub(crate) fn write(named: &[(String, &Tensor)], format: &str) -> Result<Vec<u8>, ModelError> {
    let mut buffers: Vec<(&str, Vec<usize>, Vec<u8>)> = Vec::with_capacity(named.len());
    for (name, t) in named {
        let values = t
            .flatten_all()
            .and_then(|t| t.to_vec1::<f32>())
            .map_err(tensor("reading the weights"))?;
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        buffers.push((name, t.dims().to_vec(), bytes));
    }
    let unusable = |e: safetensors::SafeTensorError| ModelError::Unusable(e.to_string());
    let views = buffers
        .iter()
        .map(|(name, shape, bytes)| Ok((*name, TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes)?)))
        .collect::<Result<Vec<_>, _>>()
        .map_err(unusable)?;
    let about = HashMap::from([("format".to_owned(), format.to_owned())]);
    safetensors::serialize(views, Some(about)).map_err(unusable)
}

/// Reads tensors of known shapes, after the hash was compared.
pub(crate) struct Reader<'a>(SafeTensors<'a>);

impl<'a> Reader<'a> {
    /// Opens weights that have the hash a manifest says.
    pub(crate) fn open(weights: &'a [u8], expected: &str) -> Result<Self, ModelError> {
        let found = hash(weights);
        if found != expected {
            return Err(ModelError::Unusable(format!(
                "weights have SHA-256 {found} and the manifest says {expected}"
            )));
        }
        SafeTensors::deserialize(weights)
            .map(Self)
            .map_err(|e| ModelError::Unusable(format!("weights are not safetensors: {e}")))
    }

    /// One tensor.
    pub(crate) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, ModelError> {
        let unusable = |what: String| ModelError::Unusable(format!("tensor {name}{what}"));
        let view = self.0.tensor(name).map_err(|e| unusable(format!(": {e}")))?;
        if view.shape() != shape || view.dtype() != safetensors::Dtype::F32 {
            return Err(unusable(" has another shape or type".to_owned()));
        }
        let (chunks, _) = view.data().as_chunks::<4>();
        let values: Vec<f32> = chunks.iter().map(|b| f32::from_le_bytes(*b)).collect();
        if values.iter().any(|v| !v.is_finite()) {
            return Err(unusable(" is not finite".to_owned()));
        }
        Tensor::from_vec(values, shape, &Device::Cpu).map_err(tensor("reading a tensor"))
    }
}
