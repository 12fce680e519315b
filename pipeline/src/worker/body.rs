//! The body of an averaging round: three lengths (u64, little-endian), then three coded tensors, which are the sender's
//! difference, its slow weights and a sample of its momentum. In: tensors, or a partner's bytes. Out: bytes, or tensors piece
//! by piece, so that what is computed of them lies in the nearest cache. It knows no rule of averaging.

use std::ops::Range;

use skein_gossip::kernel::noloco::Side;
use skein_protocol::{
    codec::{self, BadTensor, Coded, Gate, PIECE},
    run::Codec,
};

/// Three lengths.
const HEAD: usize = 24;
/// The momentum travels only so that both sides can say how far apart the round leaves them; a byte a value is plenty, and so
/// are this many values of it, evenly spread.
const MOMENTUM: Codec = Codec::Int8;
const SAMPLE: usize = 1 << 16;

/// The body of a side whose fast weights are `theta`: d = theta - phi in `codec`.
///
/// # Errors
/// Values that are not to be sent.
pub fn write(theta: &[f32], phi: &[f32], momentum: &[f32], codec: Codec) -> Result<Vec<u8>, BadTensor> {
    let momentum = codec::encode(&Sampling::of(phi.len()).take(momentum), MOMENTUM, false);
    let len = |codec| codec::coded_len(phi.len() as u64, codec).unwrap_or(0) as usize;
    let lengths = [len(codec), len(codec::slow_weights(codec)), momentum.len()];
    let mut out = Vec::with_capacity(HEAD + lengths.iter().sum::<usize>());
    lengths.iter().for_each(|len| out.extend_from_slice(&(*len as u64).to_le_bytes()));
    codec::append_made(phi.len(), codec, &mut out, |at, d| {
        d.iter_mut().zip(&theta[at..]).zip(&phi[at..]).for_each(|((d, theta), phi)| *d = theta - phi);
    })?;
    codec::append(phi, codec::slow_weights(codec), false, &mut out)?;
    out.extend_from_slice(&momentum);
    Ok(out)
}

/// A partner's d (in `codec`) and phi, of `values` numbers each, and a sample of its momentum.
///
/// # Errors
/// Anything but that, to the last byte. No more is allocated than these tensors take, whatever the lengths say.
pub fn read_round(bytes: &[u8], values: usize, codec: Codec) -> Result<[Vec<f32>; 3], BadTensor> {
    let Body { d, phi, momentum, .. } = Body::open(bytes, values, codec)?;
    Ok([d.decode()?, phi.decode()?, momentum])
}

/// A body whose tensors are as long as they must be.
pub struct Body<'a> {
    pub values: usize,
    pub d: Coded<'a>,
    pub phi: Coded<'a>,
    /// A sample, decoded.
    pub momentum: Vec<f32>,
}

impl<'a> Body<'a> {
    /// # Errors
    /// As [`read_round`]; the values of d and phi are still to be judged.
    pub fn open(bytes: &'a [u8], values: usize, codec: Codec) -> Result<Self, BadTensor> {
        let short = || BadTensor::Length { got: bytes.len() as u64, wanted: codec::coded_len_max(values as u64) };
        let (lengths, mut rest) = bytes.split_at_checked(HEAD).ok_or_else(short)?;
        let mut tensors = [&[][..]; 3];
        for (tensor, length) in tensors.iter_mut().zip(lengths.as_chunks::<8>().0) {
            let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|_| short())?;
            (*tensor, rest) = rest.split_at_checked(length).ok_or_else(short)?;
        }
        if !rest.is_empty() {
            return Err(short());
        }
        let [d, phi, momentum] = tensors;
        Ok(Body {
            values,
            d: Coded::open(d, values, &[codec])?,
            phi: Coded::open(phi, values, &[codec::slow_weights(codec)])?,
            momentum: Coded::open(momentum, Sampling::of(values).len(values), &[MOMENTUM])?.decode()?,
        })
    }
}

/// Slow weights and difference of one side: a piece of them, or a sample.
#[derive(Clone, Debug, Default)]
pub struct Tensors {
    pub phi: Vec<f32>,
    pub d: Vec<f32>,
}

impl Tensors {
    pub fn side(&self, part: Range<usize>, samples: u64) -> Side<'_> {
        Side { phi: &self.phi[part.clone()], d: &self.d[part], samples }
    }

    fn read(&mut self, body: &Body<'_>, at: usize, len: usize) -> Result<(), BadTensor> {
        self.phi.resize(len, 0.0);
        self.d.resize(len, 0.0);
        body.phi.piece(at, &mut self.phi)?;
        body.d.piece(at, &mut self.d)
    }

    /// Appends those values of a piece from number `at` on that are in the sample of a tensor.
    fn gather(&mut self, piece: &Tensors, at: usize, sampling: Sampling) {
        let first = sampling.len(at) * sampling.every - at;
        let chosen = |values: &[f32], to: &mut Vec<f32>| {
            to.extend(values.iter().skip(first).step_by(sampling.every));
        };
        chosen(&piece.phi, &mut self.phi);
        chosen(&piece.d, &mut self.d);
    }
}

/// Both sides of a round, as both of them know each other.
pub struct Pair<'a> {
    pub mine: Body<'a>,
    pub theirs: Body<'a>,
}

impl Pair<'_> {
    /// Both sides piece by piece: the number of a piece's first value, mine, theirs.
    ///
    /// # Errors
    /// A tensor that contradicts itself.
    pub fn each(&self, mut work: impl FnMut(usize, &Tensors, &mut Tensors)) -> Result<(), BadTensor> {
        let [mut mine, mut theirs] = [Tensors::default(), Tensors::default()];
        for at in (0..self.mine.values).step_by(PIECE) {
            let len = PIECE.min(self.mine.values - at);
            mine.read(&self.mine, at, len)?;
            theirs.read(&self.theirs, at, len)?;
            work(at, &mine, &mut theirs);
        }
        Ok(())
    }

    /// Looks at all of it once: `see` gets both sides piece by piece. Returns a sample of mine and of theirs.
    ///
    /// # Errors
    /// The partner's values do not pass the gate.
    pub fn judge(&self, mut see: impl FnMut(usize, &Tensors, &Tensors)) -> Result<[Tensors; 2], BadTensor> {
        let (mut d, mut phi) = (Gate::default(), Gate::default());
        let mut samples = [Tensors::default(), Tensors::default()];
        let sampling = Sampling::of(self.mine.values);
        self.each(|at, mine, theirs| {
            d.add(&theirs.d);
            phi.add(&theirs.phi);
            see(at, mine, theirs);
            let [of_mine, of_theirs] = &mut samples;
            of_mine.gather(mine, at, sampling);
            of_theirs.gather(theirs, at, sampling);
        })?;
        d.verdict()?;
        phi.verdict()?;
        Ok(samples)
    }
}

/// Which values of a tensor are in a sample: every so many, from the first.
#[derive(Clone, Copy, Debug)]
pub struct Sampling {
    every: usize,
}

impl Sampling {
    /// Of tensors of so many values: all of them, up to [`SAMPLE`].
    pub fn of(values: usize) -> Sampling {
        Sampling { every: values.div_ceil(SAMPLE).max(1) }
    }

    fn len(self, values: usize) -> usize {
        values.div_ceil(self.every)
    }

    pub fn take(self, tensor: &[f32]) -> Vec<f32> {
        tensor.iter().step_by(self.every).copied().collect()
    }

    /// Where the values of a block lie in the sample.
    pub fn range(self, block: &Range<usize>) -> Range<usize> {
        self.len(block.start)..self.len(block.end)
    }
}
