//! Layers of a dense network over rows, and one step of its training.

use candle_core::{DType, Device, Result, Tensor, Var};

use crate::{Matrix, rng::SplitMix64};

/// Weights of inputs × outputs and a bias for each layer; all layers but the last rectify.
pub(crate) type Layers = Vec<(Tensor, Tensor)>;

/// Variables to be trained: scaled uniform weights (He et al. 2015), no bias.
pub(crate) fn variables(widths: &[usize], rng: &mut SplitMix64) -> Result<Vec<(Var, Var)>> {
    let build = |(inputs, outputs): (usize, usize)| {
        let bound = (6.0 / inputs as f64).sqrt();
        let values: Vec<f32> = (0..outputs * inputs)
            .map(|_| ((2.0 * rng.unit() - 1.0) * bound) as f32)
            .collect();
        let weight = Tensor::from_vec(values, (inputs, outputs), &Device::Cpu)?;
        Ok((
            Var::from_tensor(&weight)?,
            Var::zeros((1, outputs), DType::F32, &Device::Cpu)?,
        ))
    };
    widths.windows(2).map(|w| (w[0], w[1])).map(build).collect()
}

/// The tensors of variables, which follow their training.
pub(crate) fn live(variables: &[(Var, Var)]) -> Layers {
    let both = |(w, b): &(Var, Var)| (w.as_tensor().clone(), b.as_tensor().clone());
    variables.iter().map(both).collect()
}

/// A copy that further training does not change.
pub(crate) fn freeze(layers: &Layers) -> Result<Layers> {
    let copy = |(w, b): &(Tensor, Tensor)| Ok((w.copy()?.detach(), b.copy()?.detach()));
    layers.iter().map(copy).collect()
}

/// Rows through the layers.
pub(crate) fn forward(layers: &[(Tensor, Tensor)], x: &Tensor) -> Result<Tensor> {
    let mut h = x.clone();
    for (i, (weight, bias)) in layers.iter().enumerate() {
        h = h.matmul(weight)?.broadcast_add(bias)?;
        if i + 1 < layers.len() {
            h = h.relu()?;
        }
    }
    Ok(h)
}

/// The rows one after another.
pub(crate) fn by_rows(matrix: &Matrix) -> Vec<f32> {
    let (rows, width) = (matrix.rows(), matrix.width());
    let mut values = vec![0.0; rows * width];
    for j in 0..width {
        for (i, v) in matrix.feature(j).iter().enumerate() {
            values[i * width + j] = *v;
        }
    }
    values
}

/// Puts some of the rows of `values` one after another.
pub(crate) fn gather(values: &[f32], width: usize, rows: &[usize]) -> Vec<f32> {
    let mut out = Vec::with_capacity(rows.len() * width);
    for &i in rows {
        out.extend_from_slice(&values[i * width..(i + 1) * width]);
    }
    out
}
