//! Final norm, head and loss of the last stage, over chunks of rows: no logits of a whole micro-batch at once.

use candle_core::{D, Tensor};

use super::{
    Result,
    frozen::Operand,
    operators::{Precision, product, rms, rms_back, weight_gradient},
    sum::Gradients,
};
use crate::exact::IGNORE;

/// Logits computed at a time: enough to keep a card at work, 64 MiB in f32.
const LOGITS_MAX: usize = 1 << 24;

/// Final norm, the matrix `[vocab, hidden]`, and how they are read.
pub struct Head<'a> {
    pub norm: &'a Tensor,
    pub matrix: Operand<'a>,
    /// Where the gradients of the two are added.
    pub places: (usize, usize),
    pub eps: f32,
    pub precision: Precision,
}

impl Head<'_> {
    /// Logits of the rows of `x [rows, hidden]`.
    pub fn logits(&self, x: &Tensor) -> Result<Tensor> {
        product(&self.precision.operand(&rms(x, self.norm, self.eps)?)?, &self.matrix.read()?.t()?)
    }

    /// The loss of every row of `x` against its target, `[rows]`, nats (0 where the target is [`IGNORE`]), and `scale` times the
    /// gradient of their sum for `x`.
    pub fn loss(
        &self,
        x: &Tensor,
        targets: &[u32],
        scale: f32,
        mut gradients: Option<&mut Gradients<'_>>,
    ) -> Result<(Tensor, Tensor)> {
        let n = (LOGITS_MAX / self.matrix.rows()?).max(16);
        let (mut losses, mut dx) = (Vec::new(), Vec::new());
        for (i, targets) in targets.chunks(n).enumerate() {
            let x = x.narrow(0, i * n, targets.len())?;
            let (loss, back) = self.chunk(&x, targets, scale, gradients.as_deref_mut())?;
            losses.push(loss);
            dx.push(back);
        }
        Ok((Tensor::cat(&losses, 0)?.flatten_all()?, Tensor::cat(&dx, 0)?))
    }

    fn chunk(
        &self,
        x: &Tensor,
        targets: &[u32],
        scale: f32,
        gradients: Option<&mut Gradients<'_>>,
    ) -> Result<(Tensor, Tensor)> {
        let shape = (targets.len(), 1);
        let ids: Vec<u32> = targets.iter().map(|&t| if t == IGNORE { 0 } else { t }).collect();
        let counted: Vec<f32> = targets.iter().map(|&t| f32::from(t != IGNORE)).collect();
        let ids = Tensor::from_vec(ids, shape, x.device())?;
        let counted = Tensor::from_vec(counted, shape, x.device())?;

        let logits = self.logits(x)?;
        let logits = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?;
        let exp = logits.exp()?;
        let sum = exp.sum_keepdim(D::Minus1)?;
        let losses = ((sum.log()? - logits.gather(&ids, 1)?)? * &counted)?;
        drop(logits);

        let pull = (counted * f64::from(scale))?;
        let dlogits = exp.broadcast_mul(&(&pull / sum)?)?;
        dlogits.scatter_add_set(&ids, &pull.neg()?, 1)?;
        let dlogits = self.precision.operand(&dlogits)?;
        let dh = product(&dlogits, &self.matrix.read()?)?;
        let back = rms_back(x, self.norm, self.eps, &dh, gradients.is_some())?;
        if let (Some(to), Some((h, norm))) = (gradients, back.trained) {
            to.add(self.places.0, norm)?;
            to.add(self.places.1, weight_gradient(&dlogits, &self.precision.operand(&h)?)?)?;
        }
        Ok((losses, back.x))
    }
}
