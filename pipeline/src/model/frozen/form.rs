//! How frozen values are written: as they are, in 16 bits, or in blocks of 32 that share a scale.
//!
//! Blocks are those of GGML's Q8_0 and Q4_0, which cards have kernels for: a scale in f16, then 32 signed bytes; or a scale in f16,
//! then 16 bytes, each with a value of the first half of the block in its lower bits and one of the second half in its upper.

use multiversion::multiversion;

/// Values that share a scale.
pub const BLOCK: usize = 32;

const SCALE: usize = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    F32,
    Bf16,
    F16,
    /// `scale * q`, q from -127 to 127.
    Int8,
    /// `scale * (q - 8)`, q from 0 to 15.
    Int4,
}

impl Form {
    /// The smallest that loses nothing of these values.
    pub fn holding(values: &[f32]) -> Self {
        let is_bf16 = |v: &f32| v.to_bits() & 0xffff == 0;
        let is_f16 = |v: &f32| half::f16::from_f32(*v).to_f32().to_bits() == v.to_bits();
        match values {
            _ if values.iter().all(is_bf16) => Form::Bf16,
            _ if values.iter().all(is_f16) => Form::F16,
            _ => Form::F32,
        }
    }

    /// Nothing larger can be written.
    pub fn largest(self) -> f32 {
        let scale = half::f16::MAX.to_f32();
        match self {
            Form::F32 => f32::MAX,
            Form::Bf16 => half::bf16::MAX.to_f32(),
            Form::F16 => scale,
            Form::Int8 => 127.0 * scale,
            Form::Int4 => 7.0 * scale,
        }
    }

    /// Values that are written together, and the bytes they take.
    pub const fn unit(self) -> (usize, usize) {
        match self {
            Form::F32 => (1, 4),
            Form::Bf16 | Form::F16 => (1, 2),
            Form::Int8 => (BLOCK, SCALE + BLOCK),
            Form::Int4 => (BLOCK, SCALE + BLOCK / 2),
        }
    }

    /// Bytes of so many values, which are whole units.
    pub const fn bytes(self, values: u64) -> u64 {
        let (unit, bytes) = self.unit();
        (values / unit as u64).saturating_mul(bytes as u64)
    }

    /// Appends `values`, whole units, to `to`.
    pub fn write(self, values: &[f32], to: &mut Vec<u8>) {
        match self {
            Form::F32 => to.extend(values.iter().flat_map(|v| v.to_le_bytes())),
            Form::Bf16 => to.extend(values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes())),
            Form::F16 => to.extend(values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes())),
            Form::Int8 => values.as_chunks().0.iter().for_each(|block| write_int8(block, to)),
            Form::Int4 => values.as_chunks().0.iter().for_each(|block| write_int4(block, to)),
        }
    }

    /// The values of whole units.
    pub fn read(self, from: &[u8], to: &mut [f32]) {
        match self {
            Form::F32 => words(from, to, f32::from_le_bytes),
            Form::Bf16 => words(from, to, |bytes| f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)),
            Form::F16 => words(from, to, |bytes| widened(u16::from_le_bytes(bytes))),
            Form::Int8 => read_int8(from, to),
            Form::Int4 => read_int4(from, to),
        }
    }

    /// Whether the values of whole units are finite.
    pub fn is_finite(self, from: &[u8]) -> bool {
        let f16 = |bytes: &[u8; 2]| u16::from_le_bytes(*bytes) & 0x7c00 != 0x7c00;
        match self {
            Form::F32 => from.as_chunks().0.iter().all(|bytes| f32::from_le_bytes(*bytes).is_finite()),
            Form::Bf16 => from.as_chunks().0.iter().all(|bytes| u16::from_le_bytes(*bytes) & 0x7f80 != 0x7f80),
            Form::F16 => from.as_chunks().0.iter().all(f16),
            Form::Int8 | Form::Int4 => from.chunks(self.unit().1).filter_map(<[u8]>::first_chunk).all(f16),
        }
    }
}

fn words<const N: usize>(from: &[u8], to: &mut [f32], value: impl Fn([u8; N]) -> f32) {
    from.as_chunks().0.iter().zip(to).for_each(|(bytes, to)| *to = value(*bytes));
}

/// A finite f16 as f32, without a branch: its exponent is moved to where that of an f32 is, and corrected by a product, which
/// makes normal numbers of subnormal ones.
#[inline(always)]
fn widened(half: u16) -> f32 {
    let half = u32::from(half);
    let magnitude = f32::from_bits((half & 0x7fff) << 13) * f32::from_bits((127 + 112) << 23);
    f32::from_bits(magnitude.to_bits() | (half & 0x8000) << 16)
}

/// The scale that is written, and what values are multiplied by to be so many of it.
fn scale(wanted: f32) -> (half::f16, f32) {
    let written = half::f16::from_f32(wanted);
    let one = written.to_f32();
    (written, if one == 0.0 { 0.0 } else { one.recip() })
}

fn write_int8(block: &[f32; BLOCK], to: &mut Vec<u8>) {
    let most = block.iter().fold(0f32, |most, v| most.max(v.abs()));
    let (written, times) = scale(most / 127.0);
    to.extend(written.to_le_bytes());
    to.extend(block.iter().map(|v| (v * times).round_ties_even().clamp(-127.0, 127.0) as i8 as u8));
}

/// The scale may be a little off from what the largest value asks for: that which leaves the least error is taken.
fn write_int4(block: &[f32; BLOCK], to: &mut Vec<u8>) {
    let most = block.iter().fold(0f32, |most, v| if v.abs() > most.abs() { *v } else { most });
    let number = |v: f32, times: f32| (v * times + 8.0).round_ties_even().clamp(0.0, 15.0);
    // The largest becomes -8, which there are more of than of 7, or a little less.
    let tried = (0..13).map(|i| scale(most / -(7.0 + 0.125 * i as f32)));
    let error = |&(written, times): &(half::f16, f32)| {
        let apart = |v: &f32| v - written.to_f32() * (number(*v, times) - 8.0);
        block.iter().map(|v| apart(v).powi(2)).sum::<f32>()
    };
    let best = tried.min_by(|a, b| error(a).total_cmp(&error(b)));
    let (written, times) = best.unwrap_or_else(|| scale(most / -8.0));
    to.extend(written.to_le_bytes());
    let (lower, upper) = block.split_at(BLOCK / 2);
    to.extend(lower.iter().zip(upper).map(|(a, b)| number(*a, times) as u8 | (number(*b, times) as u8) << 4));
}

#[multiversion(targets("x86_64+avx512f+avx512bw", "x86_64+avx2"))]
fn read_int8(from: &[u8], to: &mut [f32]) {
    let blocks = from.as_chunks::<{ SCALE + BLOCK }>().0;
    for (block, to) in blocks.iter().zip(to.as_chunks_mut::<BLOCK>().0) {
        let scale = widened(u16::from_le_bytes([block[0], block[1]]));
        for (q, to) in block[SCALE..].iter().zip(to) {
            *to = scale * f32::from(*q as i8);
        }
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw", "x86_64+avx2"))]
fn read_int4(from: &[u8], to: &mut [f32]) {
    let blocks = from.as_chunks::<{ SCALE + BLOCK / 2 }>().0;
    for (block, to) in blocks.iter().zip(to.as_chunks_mut::<BLOCK>().0) {
        let scale = widened(u16::from_le_bytes([block[0], block[1]]));
        let (lower, upper) = to.split_at_mut(BLOCK / 2);
        for (q, to) in block[SCALE..].iter().zip(lower) {
            *to = scale * (f32::from(q & 15) - 8.0);
        }
        for (q, to) in block[SCALE..].iter().zip(upper) {
            *to = scale * (f32::from(q >> 4) - 8.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values as a trained matrix has them: most are small.
    fn bell(n: usize) -> Vec<f32> {
        let uniform = |i: u32| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32;
        (0..n as u32).map(|i| (0..12).map(|j| uniform(12 * i + j)).sum::<f32>() - 6.0).map(|v| 0.02 * v).collect()
    }

    /// What comes back, and the root of the mean square of what was lost, of that of the values.
    fn back(form: Form, values: &[f32]) -> (Vec<f32>, f64) {
        let (mut bytes, mut to) = (Vec::new(), vec![f32::NAN; values.len()]);
        form.write(values, &mut bytes);
        assert_eq!(bytes.len() as u64, form.bytes(values.len() as u64));
        assert!(form.is_finite(&bytes));
        form.read(&bytes, &mut to);
        let sum = |all: &mut dyn Iterator<Item = f32>| all.map(|v| f64::from(v).powi(2)).sum::<f64>();
        let lost = sum(&mut values.iter().zip(&to).map(|(a, b)| a - b));
        (to, (lost / sum(&mut values.iter().copied())).sqrt())
    }

    #[test]
    fn blocks_lose_as_little_as_their_bits_allow() {
        let values = bell(1 << 14);
        let [int8, int4] = [Form::Int8, Form::Int4].map(|form| back(form, &values).1);
        assert!((0.003..0.006).contains(&int8), "{int8}");
        assert!((0.06..0.088).contains(&int4), "{int4}");
    }

    #[test]
    fn what_was_written_in_blocks_is_written_again_as_it_is() {
        for form in [Form::Int8, Form::Int4] {
            let (once, _) = back(form, &bell(1 << 12));
            let (twice, lost) = back(form, &once);
            assert!(lost < if form == Form::Int8 { 1e-9 } else { 1e-2 }, "{form:?} {lost}");
            assert!(form != Form::Int8 || once == twice);
        }
    }

    #[test]
    fn small_large_and_no_values_come_back() {
        for form in [Form::Int8, Form::Int4] {
            assert_eq!(back(form, &[0.0; 64]).0, [0.0; 64], "{form:?}");
            for size in [1e-30, 1e-6, 3e-5, 1.0, 3e4] {
                let (to, _) = back(form, &[size; 64]);
                assert!(to.iter().all(|v| (v - size).abs() <= 0.13 * size + 4e-6), "{form:?} {size}: {to:?}");
            }
        }
    }

    #[test]
    fn every_finite_half_is_widened_as_it_is() {
        for bits in (0..=u16::MAX).filter(|bits| half::f16::from_bits(*bits).is_finite()) {
            assert_eq!(widened(bits).to_bits(), half::f16::from_bits(bits).to_f32().to_bits(), "{bits:x}");
        }
    }

    #[test]
    fn what_is_not_finite_shows() {
        let inf = f32::INFINITY;
        for (form, values) in [(Form::F32, [1.0, inf]), (Form::Bf16, [f32::NAN, 1.0]), (Form::F16, [1.0, -inf])] {
            let mut bytes = Vec::new();
            form.write(&values, &mut bytes);
            assert!(!form.is_finite(&bytes), "{form:?}");
        }
        for form in [Form::Int8, Form::Int4] {
            let mut bytes = Vec::new();
            form.write(&[0.5; 64], &mut bytes);
            let second = form.unit().1;
            bytes[second..][..2].copy_from_slice(&half::f16::INFINITY.to_le_bytes());
            assert!(!form.is_finite(&bytes), "{form:?}");
        }
    }
}
