//! Adapters of low rank beside the matrices of a layer: `y += scale (x A^T) B^T` for some of the columns of `y`. In: what a site reads
//! and gives, on the device. Out: the same with its adapters in it, and their gradients. What the A's gave is not kept but computed
//! again in backward: it is narrow.

use candle_core::Tensor;

use super::{
    Result,
    operators::{Precision, product, weight_gradient},
    sum::Gradients,
};
use crate::model::lora;

/// Where the adapters of one site lie among the places.
pub struct SitePlaces {
    pub a: usize,
    rank: usize,
    scale: f64,
    parts: Vec<PartPlace>,
}

struct PartPlace {
    b: usize,
    /// Columns of what the site gives.
    first: usize,
    width: usize,
}

impl SitePlaces {
    /// `place_of`: the place that begins at a value of the flat buffer.
    pub fn of(adapter: &lora::Adapter, place_of: impl Fn(usize) -> usize) -> Self {
        let part = |part: &lora::Part| PartPlace { b: place_of(part.b), first: part.first, width: part.width };
        SitePlaces {
            a: place_of(adapter.a),
            rank: adapter.rank,
            scale: f64::from(adapter.scale),
            parts: adapter.parts.iter().map(part).collect(),
        }
    }
}

/// The adapters of one site, as products read them.
#[derive(Clone, Copy)]
pub struct Site<'a> {
    pub places: &'a SitePlaces,
    pub operands: &'a [Tensor],
    pub precision: Precision,
}

impl Site<'_> {
    fn a(&self) -> &Tensor {
        &self.operands[self.places.a]
    }

    /// What the A of part `i` gave, as an operand `[rows, rank]`.
    fn low(&self, low: &Tensor, i: usize) -> Result<Tensor> {
        self.precision.operand(&low.narrow(1, i * self.places.rank, self.places.rank)?)
    }

    /// `y [rows, columns]` with what the adapters make of the operand `x [rows, in]`.
    pub fn add(&self, y: &Tensor, x: &Tensor) -> Result<Tensor> {
        let low = product(x, &self.a().t()?)?;
        let (mut columns, mut end) = (Vec::new(), 0);
        for (i, part) in self.places.parts.iter().enumerate() {
            if part.first > end {
                columns.push(y.narrow(1, end, part.first - end)?);
            }
            let more = (product(&self.low(&low, i)?, &self.operands[part.b].t()?)? * self.places.scale)?;
            columns.push((y.narrow(1, part.first, part.width)? + more)?);
            end = part.first + part.width;
        }
        let all = y.dim(1)?;
        if end < all {
            columns.push(y.narrow(1, end, all - end)?);
        }
        Ok(if columns.len() == 1 { columns.swap_remove(0) } else { Tensor::cat(&columns, 1)? })
    }

    /// From the operand `dy [rows, columns]`: the gradient of what the A's gave, and what it adds to that of `x`.
    pub fn pull(&self, dy: &Tensor) -> Result<(Tensor, Tensor)> {
        let part = |part: &PartPlace| {
            let dy = dy.narrow(1, part.first, part.width)?.contiguous()?;
            Ok((product(&dy, &self.operands[part.b])? * self.places.scale)?)
        };
        let parts = self.places.parts.iter().map(part).collect::<Result<Vec<_>>>()?;
        let dlow = self.precision.operand(&Tensor::cat(&parts, 1)?)?;
        let dx = product(&dlow, self.a())?;
        Ok((dlow, dx))
    }

    /// Adds the gradients of A's and B's. `dlow`: as [`pull`](Site::pull) gave it.
    pub fn train(&self, to: &mut Gradients<'_>, dy: &Tensor, x: &Tensor, dlow: &Tensor) -> Result<()> {
        to.add(self.places.a, weight_gradient(dlow, x)?)?;
        let low = product(x, &self.a().t()?)?;
        for (i, part) in self.places.parts.iter().enumerate() {
            let dy = dy.narrow(1, part.first, part.width)?.contiguous()?;
            to.add(part.b, (weight_gradient(&dy, &self.low(&low, i)?)? * self.places.scale)?)?;
        }
        Ok(())
    }
}

/// `y` of a site that may have adapters.
pub fn add(site: Option<Site<'_>>, y: Tensor, x: &Tensor) -> Result<Tensor> {
    match site {
        Some(site) => site.add(&y, x),
        None => Ok(y),
    }
}

/// What went back through the adapters of a site, for their own gradients.
pub struct Pulled {
    dlow: Option<Tensor>,
}

/// `dx` of a site that may have adapters.
pub fn pull(site: Option<Site<'_>>, dx: Tensor, dy: &Tensor) -> Result<(Tensor, Pulled)> {
    match site {
        Some(site) => {
            let (dlow, more) = site.pull(dy)?;
            Ok(((dx + more)?, Pulled { dlow: Some(dlow) }))
        }
        None => Ok((dx, Pulled { dlow: None })),
    }
}

/// Adds the gradients of a site's adapters, where it has any.
pub fn train(site: Option<Site<'_>>, pulled: &Pulled, to: &mut Gradients<'_>, dy: &Tensor, x: &Tensor) -> Result<()> {
    match (site, &pulled.dlow) {
        (Some(site), Some(dlow)) => site.train(to, dy, x, dlow),
        _ => Ok(()),
    }
}
