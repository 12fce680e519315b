//! What the block is made of: products in a precision, and the norms, rotations and gates around them in f32.
//!
//! In and out: tensors of f32 that no graph records. candle-nn's fused forwards are used where they exist; they have no
//! backward, and none is needed. The formulas are those of `exact::kernel`.

use candle_core::{D, DType, Device, Tensor};
use candle_nn::{ops, rotary_emb};

use super::Result;
use crate::{exact::kernel, model::Dims};

/// What the operands of matrix products are rounded to. Sums, and everything else, are f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    F32,
    /// Operands and results of products are bf16. The device sums in f32 and rounds once.
    Bf16,
}

impl Precision {
    fn dtype(self) -> DType {
        match self {
            Precision::F32 => DType::F32,
            Precision::Bf16 => DType::BF16,
        }
    }

    /// `x` as products read it.
    pub fn operand(self, x: &Tensor) -> Result<Tensor> {
        // Casting a view makes it contiguous; without a cast that is left to do.
        Ok(x.to_dtype(self.dtype())?.contiguous()?)
    }
}

/// `a b` in f32, of two operands.
pub fn product(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    Ok(a.matmul(b)?.to_dtype(DType::F32)?)
}

/// The gradient `dy^T x` of a weight `[out, in]`, from operands `dy [rows, out]` and `x [rows, in]`.
pub fn weight_gradient(dy: &Tensor, x: &Tensor) -> Result<Tensor> {
    product(&dy.t()?, x)
}

/// RMSNorm of the rows of `x`, as wide as `w`.
pub fn rms(x: &Tensor, w: &Tensor, eps: f32) -> Result<Tensor> {
    Ok(ops::rms_norm(x, w, eps)?)
}

/// What the backward of a norm gives.
pub struct NormBack {
    /// Gradient of the input.
    pub x: Tensor,
    /// Its output again, and the gradient of its weight.
    pub trained: Option<(Tensor, Tensor)>,
}

/// Backward of [`rms`]: `inv (g w - x inv mean(x inv g w))` a row, with `inv = 1 / sqrt(mean(x^2) + eps)`.
pub fn rms_back(x: &Tensor, w: &Tensor, eps: f32, g: &Tensor, train: bool) -> Result<NormBack> {
    let inv = x.sqr()?.mean_keepdim(D::Minus1)?.affine(1.0, f64::from(eps))?.sqrt()?.recip()?;
    let scaled = x.broadcast_mul(&inv)?;
    let weighted = g.broadcast_mul(w)?;
    let mean = (&scaled * &weighted)?.mean_keepdim(D::Minus1)?;
    let back = (weighted - scaled.broadcast_mul(&mean)?)?.broadcast_mul(&inv)?;
    let trained = match train {
        true => {
            let width = w.dim(0)?;
            let rows = (g * &scaled)?;
            Some((scaled.broadcast_mul(w)?, column_sums(&rows.reshape((rows.elem_count() / width, width))?)?))
        }
        false => None,
    };
    Ok(NormBack { x: back, trained })
}

/// Sum over the rows of `x [rows, n]`, `[n]`: a product, since a device reduces neighbours only quickly.
pub fn column_sums(x: &Tensor) -> Result<Tensor> {
    let ones = Tensor::ones((1, x.dim(0)?), x.dtype(), x.device())?;
    Ok(ones.matmul(x)?.squeeze(0)?)
}

/// `silu(gate) * up` of `gu [rows, 2 ffn]`.
pub fn swiglu(gu: &Tensor) -> Result<Tensor> {
    Ok(ops::swiglu(gu)?)
}

/// Backward of [`swiglu`]: the gradient of `gu`, and the forward's output again.
pub fn swiglu_back(gu: &Tensor, da: &Tensor) -> Result<(Tensor, Tensor)> {
    let f = da.dim(D::Minus1)?;
    let (gate, up) = (gu.narrow(D::Minus1, 0, f)?, gu.narrow(D::Minus1, f, f)?);
    let sigmoid = ops::sigmoid(&gate)?;
    let silu = (gate * &sigmoid)?;
    let out = (&silu * &up)?;
    let dup = (da * &silu)?;
    // s (1 + gate (1 - s)) = s + silu - silu s
    let slope = ((&sigmoid + &silu)? - (silu * sigmoid)?)?;
    let dgate = ((da * up)? * slope)?;
    Ok((Tensor::cat(&[dgate, dup], D::Minus1)?, out))
}

/// Backward of a softmax over the last dimension: `p (g - sum(p g))`.
pub fn softmax_back(p: &Tensor, g: &Tensor) -> Result<Tensor> {
    let dot = (p * g)?.sum_keepdim(D::Minus1)?;
    Ok((g.broadcast_sub(&dot)? * p)?)
}

/// Cosines and sines of some positions, `[positions, head / 2]`.
#[derive(Clone)]
pub struct Angles {
    cos: Tensor,
    sin: Tensor,
}

impl Angles {
    pub fn of(dims: &Dims, positions: std::ops::Range<usize>, device: &Device) -> Result<Self> {
        let (n, half) = (positions.len(), dims.head / 2);
        let table =
            Tensor::from_vec(kernel::rope_table(positions, half, dims.theta, dims.scaling), (n, 2 * half), device)?;
        Ok(Angles { cos: table.narrow(1, 0, half)?.contiguous()?, sin: table.narrow(1, half, half)?.contiguous()? })
    }

    /// The same rotations, which also multiply by `factor`.
    pub fn scaled(&self, factor: f64) -> Result<Self> {
        Ok(Angles { cos: (&self.cos * factor)?, sin: (&self.sin * factor)? })
    }

    /// Rotates `x [b, heads, t, head]`, contiguous: pairs `(i, i + head / 2)`.
    pub fn turn(&self, x: &Tensor) -> Result<Tensor> {
        Ok(rotary_emb::rope(x, &self.cos, &self.sin)?)
    }

    /// Backward of [`turn`](Angles::turn).
    pub fn turn_back(&self, x: &Tensor) -> Result<Tensor> {
        Ok(rotary_emb::rope(x, &self.cos, &self.sin.neg()?)?)
    }
}
