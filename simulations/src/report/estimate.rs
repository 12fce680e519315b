//! One figure over several seeds: its mean, and the interval that holds the mean of all seeds with 95% confidence, by Student's t.
//! The quantile comes from the regularised incomplete beta function, whose continued fraction is in Press et al., *Numerical
//! Recipes*, 6.4: P(|T| > t) = I(v / (v + t^2); v/2, 1/2) with v degrees of freedom.

use serde::{Deserialize, Serialize};

/// Mean and interval; with one seed there is no interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    pub mean: f64,
    pub low: Option<f64>,
    pub high: Option<f64>,
    /// Standard deviation over the seeds.
    pub deviation: f64,
    pub seeds: u32,
}

impl Estimate {
    /// Of what is a number; nothing of none.
    pub fn of(values: &[f64]) -> Option<Estimate> {
        let values: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
        if values.is_empty() {
            return None;
        }
        let number = values.len() as f64;
        let mean = values.iter().sum::<f64>() / number;
        if values.len() == 1 {
            return Some(Estimate { mean, seeds: 1, ..Estimate::default() });
        }
        let variance = values.iter().map(|value| (value - mean) * (value - mean)).sum::<f64>() / (number - 1.0);
        let half = student_t(number - 1.0) * (variance / number).sqrt();
        Some(Estimate {
            mean,
            low: Some(mean - half),
            high: Some(mean + half),
            deviation: variance.sqrt(),
            seeds: values.len() as u32,
        })
    }

    /// Half the width of the interval.
    pub fn half(&self) -> Option<f64> {
        Some((self.high? - self.low?) / 2.0)
    }
}

/// The factor of a two-sided interval of 95%, by degrees of freedom.
pub fn student_t(freedom: f64) -> f64 {
    if freedom.is_nan() || freedom <= 0.0 {
        return f64::INFINITY;
    }
    let outside = |t: f64| incomplete_beta(freedom / (freedom + t * t), freedom / 2.0, 0.5);
    let (mut low, mut high) = (0.0, 2.0);
    while outside(high) > 0.05 {
        high *= 2.0;
    }
    for _ in 0..80 {
        let middle = (low + high) / 2.0;
        if outside(middle) > 0.05 { low = middle } else { high = middle }
    }
    (low + high) / 2.0
}

fn incomplete_beta(x: f64, a: f64, b: f64) -> f64 {
    if x <= 0.0 {
        return 0.0;
    }
    if x >= 1.0 {
        return 1.0;
    }
    let front =
        libm::exp(libm::lgamma(a + b) - libm::lgamma(a) - libm::lgamma(b) + a * libm::log(x) + b * libm::log(1.0 - x));
    // The fraction converges fast below the mean, and the function is symmetric.
    if x < (a + 1.0) / (a + b + 2.0) {
        front * fraction(x, a, b) / a
    } else {
        1.0 - front * fraction(1.0 - x, b, a) / b
    }
}

/// Lentz's way of computing the continued fraction.
fn fraction(x: f64, a: f64, b: f64) -> f64 {
    const TINY: f64 = 1e-300;
    let guard = |value: f64| if value.abs() < TINY { TINY } else { value };
    let mut c = 1.0;
    let mut d = 1.0 / guard(1.0 - (a + b) * x / (a + 1.0));
    let mut product = d;
    for step in 1..500 {
        let m = f64::from(step);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        d = 1.0 / guard(1.0 + even * d);
        c = guard(1.0 + even / c);
        product *= d * c;
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        d = 1.0 / guard(1.0 + odd * d);
        c = guard(1.0 + odd / c);
        product *= d * c;
        if (d * c - 1.0).abs() < 1e-15 {
            break;
        }
    }
    product
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn students_t_is_that_of_the_printed_table() {
        // The column of 0.975 in any table of the t distribution.
        for (freedom, t) in
            [(1.0, 12.7062), (2.0, 4.3027), (4.0, 2.7764), (10.0, 2.2281), (30.0, 2.0423), (1e6, 1.9600)]
        {
            assert!((student_t(freedom) - t).abs() < 1e-4, "{freedom}: {} instead of {t}", student_t(freedom));
        }
    }

    #[test]
    fn five_values_give_the_interval_of_the_textbook() {
        let estimate = Estimate::of(&[1.0, 2.0, 3.0, 4.0, 5.0]).expect("values");
        assert_eq!(estimate.mean, 3.0);
        assert!((estimate.half().expect("an interval") - 1.96324).abs() < 1e-4);
    }

    #[test]
    fn one_seed_has_no_interval_and_no_number_is_no_estimate() {
        assert_eq!(Estimate::of(&[7.0]).expect("a value").low, None);
        assert_eq!(Estimate::of(&[f64::NAN]), None);
        assert_eq!(Estimate::of(&[2.0, f64::NAN]).expect("a value").seeds, 1);
    }
}
