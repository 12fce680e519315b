//! How much a gradient counts that was computed on weights some own steps old.

use skein_protocol::run::StalenessWeight;

/// Weight of a gradient `age` own steps old; `None` past `bound`: it is not added.
///
/// inverse: 1 / (1 + age), inverse-sqrt: 1 / sqrt(1 + age).
pub fn weight(rule: StalenessWeight, bound: u32, age: u32) -> Option<f32> {
    if age > bound {
        return None;
    }
    let age = age as f32;
    Some(match rule {
        StalenessWeight::None => 1.0,
        StalenessWeight::InverseSqrt => 1.0 / (1.0 + age).sqrt(),
        StalenessWeight::Inverse => 1.0 / (1.0 + age),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_fall_with_age_and_end_at_the_bound() {
        assert_eq!(weight(StalenessWeight::InverseSqrt, 4, 3), Some(0.5));
        assert_eq!(weight(StalenessWeight::Inverse, 4, 4), Some(0.2));
        assert_eq!(weight(StalenessWeight::None, 4, 4), Some(1.0));
        assert_eq!(weight(StalenessWeight::None, 4, 5), None);
    }
}
