//! The logarithm that features are laid out with, in a form that the compiler turns into vectors.

/// `ln(1 + x)` of every value, in place; for values from 0 to 1e37, to two units in the last place.
///
/// With `u = 1 + x` split into a power of two and a rest between √½ and √2, the rest's logarithm is twice the series of the
/// area hyperbolic tangent of `(rest − 1) / (rest + 1)`, which is below 0.172, so that five terms are enough. What was lost
/// in `1 + x` is added as its share of `u`.
pub fn ln_1p(values: &mut [f32]) {
    const HALF_ROOT: u32 = std::f32::consts::FRAC_1_SQRT_2.to_bits();
    for value in values {
        let x = *value;
        let u = 1.0 + x;
        let lost = if x < 1.0 { x - (u - 1.0) } else { 1.0 - (u - x) };
        let exponent = (u.to_bits().wrapping_sub(HALF_ROOT) as i32) >> 23;
        let rest = f32::from_bits(u.to_bits().wrapping_sub((exponent << 23) as u32));
        let s = (rest - 1.0) / (rest + 1.0);
        let q = s * s;
        let series = s * q * (2.0 / 3.0 + q * (2.0 / 5.0 + q * (2.0 / 7.0 + q * (2.0 / 9.0))));
        *value = exponent as f32 * std::f32::consts::LN_2 + (2.0 * s + (series + lost / u));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(x: f32) -> f32 {
        let mut value = [x];
        ln_1p(&mut value);
        value[0]
    }

    #[test]
    fn nothing_stays_nothing_and_great_numbers_stay_finite() {
        assert_eq!(one(0.0), 0.0);
        assert!((one(u64::MAX as f32) - 44.361_42).abs() < 1e-5);
        assert!(one(1e37).is_finite());
    }

    proptest! {
        #[test]
        fn it_is_the_logarithm(exponent in -40_i32..80, mantissa in 1.0_f32..2.0) {
            let x = mantissa * (exponent as f32).exp2();
            let want = f64::from(x).ln_1p();
            prop_assert!((f64::from(one(x)) / want - 1.0).abs() < 3e-7, "{x}: {} {want}", one(x));
        }
    }
}
