//! bf16: the upper half of an f32, rounded to nearest, ties to even.

/// The sixteen bits of a finite value.
fn round(value: f32) -> u16 {
    let bits = value.to_bits();
    // A finite value near the largest would round to infinity: it stays the largest.
    ((bits.saturating_add(0x7fff + ((bits >> 16) & 1))) >> 16).min(if bits >> 31 == 0 { 0x7f7f } else { 0xff7f }) as u16
}

/// Appends `2 n` bytes; `planes`: all low bytes first, then all high ones.
pub fn encode(values: &[f32], planes: bool, out: &mut Vec<u8>) {
    if planes {
        out.extend(values.iter().map(|v| round(*v) as u8));
        out.extend(values.iter().map(|v| (round(*v) >> 8) as u8));
    } else {
        out.extend(values.iter().flat_map(|v| round(*v).to_le_bytes()));
    }
}

pub fn decode(bytes: &[u8], planes: bool) -> Vec<f32> {
    let value = |low: u8, high: u8| f32::from_bits((u32::from(high) << 24) | (u32::from(low) << 16));
    if planes {
        let (low, high) = bytes.split_at(bytes.len() / 2);
        low.iter().zip(high).map(|(&low, &high)| value(low, high)).collect()
    } else {
        bytes.as_chunks::<2>().0.iter().map(|&[low, high]| value(low, high)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_to_even_and_the_largest_stays_finite() {
        assert_eq!(round(f32::from_bits(0x3f80_8000)), 0x3f80);
        assert_eq!(round(f32::from_bits(0x3f81_8000)), 0x3f82);
        assert_eq!(round(f32::MAX), 0x7f7f);
        assert_eq!(round(f32::MIN), 0xff7f);
        assert_eq!(round(-0.0), 0x8000);
    }
}
