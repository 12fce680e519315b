//! The open sum of gradients on the device.
//!
//! A backward makes the next sum beside the open one, tensor by tensor; the engine takes it once it has read that all of it is
//! finite. So an error leaves the open sum as it was, and nothing waits for the device in between.

use candle_core::{D, Tensor};

use super::{Result, weights::Layout};
use crate::exact::EngineError;

/// What a backward adds to, and what comes of it.
pub struct Gradients<'a> {
    layout: &'a Layout,
    before: Option<&'a [Tensor]>,
    next: Vec<Option<Tensor>>,
    weight: f64,
}

impl<'a> Gradients<'a> {
    /// `before`: the open sum. Gradients are added `weight` times.
    pub fn new(layout: &'a Layout, before: Option<&'a [Tensor]>, weight: f32) -> Self {
        Gradients { layout, before, next: vec![None; layout.places.len()], weight: f64::from(weight) }
    }

    fn so_far(&self, place: usize) -> Option<&Tensor> {
        self.next[place].as_ref().or(self.before.map(|sum| &sum[place]))
    }

    fn weighted(&self, gradient: &Tensor) -> Result<Tensor> {
        Ok(if self.weight == 1.0 { gradient.clone() } else { (gradient * self.weight)? })
    }

    /// Adds a gradient, or a part of one, of the tensor at `place`.
    pub fn add(&mut self, place: usize, gradient: Tensor) -> Result<()> {
        let gradient = self.weighted(&gradient)?;
        let sum = match self.so_far(place) {
            Some(sum) => (sum + gradient)?,
            None => gradient,
        };
        self.next[place] = Some(sum);
        Ok(())
    }

    /// Adds to the rows `ids [n]` of the matrix at `place` the rows of `gradient [n, columns]`.
    pub fn add_rows(&mut self, place: usize, ids: &Tensor, gradient: &Tensor) -> Result<()> {
        let gradient = self.weighted(gradient)?;
        let sum = match self.so_far(place) {
            Some(sum) => sum.index_add(ids, &gradient, 0)?,
            None => self.layout.places[place].zeros(gradient.device())?.index_add(ids, &gradient, 0)?,
        };
        self.next[place] = Some(sum);
        Ok(())
    }

    /// The next sum, and a vector that is all 0 if every value of it is finite.
    ///
    /// # Errors
    /// A tensor has no gradient.
    pub fn finish(self) -> Result<(Vec<Tensor>, Tensor)> {
        let missing = |place: usize| EngineError::Device(format!("the tensor at place {place} has no gradient"));
        let sum = self.next.into_iter().enumerate().map(|(i, next)| next.ok_or_else(|| missing(i)));
        let sum = sum.collect::<Result<Vec<_>>>()?;
        let zeros = sum.iter().map(zero_if_finite).collect::<Result<Vec<_>>>()?;
        Ok((sum, Tensor::stack(&zeros, 0)?))
    }
}

/// 0 times anything but a finite value is NaN. Rows first: a device sums each in parallel.
fn zero_if_finite(x: &Tensor) -> Result<Tensor> {
    Ok((x * 0.0)?.sum(D::Minus1)?.sum_all()?)
}
