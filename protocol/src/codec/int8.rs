//! int8 by blocks: 64 neighbouring values share one scale, the largest magnitude over 127.

/// Values that share a scale.
pub const BLOCK: usize = 64;

/// Appends the scales (f32), then a byte a value.
pub fn encode(values: &[f32], out: &mut Vec<u8>) {
    let blocks = values.len().div_ceil(BLOCK);
    let start = out.len();
    out.resize(start + 4 * blocks + values.len(), 0);
    let (scales, bytes) = out[start..].split_at_mut(4 * blocks);
    for ((block, scale), bytes) in values.chunks(BLOCK).zip(scales.chunks_mut(4)).zip(bytes.chunks_mut(BLOCK)) {
        let max = block.iter().fold(0f32, |max, v| max.max(v.abs()));
        let step = max / 127.0;
        // Values so small that their scale or its inverse is not a number travel as zero.
        let inverse = if step > 0.0 && (1.0 / step).is_finite() { 1.0 / step } else { 0.0 };
        scale.copy_from_slice(&(if inverse > 0.0 { step } else { 0.0 }).to_le_bytes());
        for (byte, v) in bytes.iter_mut().zip(block) {
            *byte = (v * inverse).round_ties_even().clamp(-127.0, 127.0) as i8 as u8;
        }
    }
}

/// `bytes` holds exactly the planes of `values` numbers.
pub fn decode(bytes: &[u8], values: usize) -> Vec<f32> {
    let (scales, bytes) = bytes.split_at(4 * values.div_ceil(BLOCK));
    let mut out = Vec::with_capacity(values);
    for (scale, block) in scales.as_chunks::<4>().0.iter().zip(bytes.chunks(BLOCK)) {
        let scale = f32::from_le_bytes(*scale);
        out.extend(block.iter().map(|&byte| scale * f32::from(byte as i8)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_of_a_block_is_exact_and_zeros_stay_zero() {
        let mut values = vec![0.0; 130];
        values[3] = -6.35;
        values[70] = 1e-30;
        let mut bytes = Vec::new();
        encode(&values, &mut bytes);
        let back = decode(&bytes, 130);
        assert!((back[3] + 6.35).abs() < 1e-6);
        assert!(back.iter().enumerate().all(|(i, v)| i == 3 || i == 70 || *v == 0.0));
    }
}
