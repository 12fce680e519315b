//! The weights of a stage that stay as they are, beside adapters. In: the flat buffer of
//! [`StageModel::frozen`](super::StageModel::frozen), or bytes that a manifest names by their hash, that peers give to each other and
//! disks keep. Out: those bytes, and values from them.
//!
//! A peer computes from the bytes as they are: on a disk they are mapped, so that they lie in memory once however many processes
//! use them, and a matrix in eight or four bits never stands there in more (QLoRA, Dettmers et al. 2023, arXiv:2305.14314).
//!
//! Sixteen bytes of a head (magic, a byte for how they are written, nothing), then the values in canonical order, little endian. In 8
//! or 4 bits matrices whose rows are whole blocks are written so, embedding and head in 8, others in bf16; all else is f32.

mod form;

use std::{borrow::Cow, collections::BTreeMap, ops::Range};

use bytes::Bytes;
use skein_protocol::{
    hash::{self, Digest},
    run::BasePrecision,
};

use super::{EMBEDDING, HEAD, Param, StageModel};
pub use form::{BLOCK, Form};

const MAGIC: &[u8; 8] = b"skein-fr";
const HEAD_BYTES: usize = 16;

/// Values that are looked at together: their bytes are copied where they lie in two pieces.
const SECTION: usize = 4096;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadFrozen {
    #[error("they do not begin as the frozen weights of a stage do")]
    Head,
    #[error("they are not written in the bits that the run names")]
    Bits,
    #[error("there are {got} bytes of them, {wanted} are expected")]
    Length { got: u64, wanted: u64 },
    #[error("their bytes do not give the hash that the run was signed with")]
    Hash,
    #[error("some of their values are not finite")]
    Values,
}

/// How all of the weights are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Written {
    /// Every value alike.
    Alike(Form),
    /// Matrices in blocks.
    Blocks(BasePrecision),
}

impl Written {
    const ALL: [Written; 5] = [
        Written::Alike(Form::F32),
        Written::Alike(Form::Bf16),
        Written::Alike(Form::F16),
        Written::Blocks(BasePrecision::Int8),
        Written::Blocks(BasePrecision::Int4),
    ];

    fn of(values: &[f32], bits: BasePrecision) -> Self {
        match bits {
            BasePrecision::AsIs => Written::Alike(Form::holding(values)),
            BasePrecision::Bf16 => Written::Alike(Form::Bf16),
            BasePrecision::Int8 | BasePrecision::Int4 => Written::Blocks(bits),
        }
    }

    fn is_in(self, bits: BasePrecision) -> bool {
        match self {
            Written::Alike(form) => bits == BasePrecision::AsIs || (bits, form) == (BasePrecision::Bf16, Form::Bf16),
            Written::Blocks(written) => written == bits,
        }
    }

    fn form(self, tensor: &Param) -> Form {
        match self {
            Written::Alike(form) => form,
            Written::Blocks(bits) => {
                let is_table = tensor.name == EMBEDDING || tensor.name == HEAD;
                match is_matrix(tensor) {
                    true => form_of(bits, tensor.shape[1], is_table),
                    false => Form::F32,
                }
            }
        }
    }
}

fn is_matrix(tensor: &Param) -> bool {
    tensor.shape.len() > 1
}

/// The longest form of a matrix with rows of `width` values; `is_table`: an embedding or a head. Norms and biases are f32 wherever not
/// everything is in 16 bits.
pub fn form_of(bits: BasePrecision, width: usize, is_table: bool) -> Form {
    match bits {
        BasePrecision::AsIs => Form::F32,
        BasePrecision::Bf16 => Form::Bf16,
        _ if !width.is_multiple_of(BLOCK) => Form::Bf16,
        BasePrecision::Int4 if !is_table => Form::Int4,
        BasePrecision::Int8 | BasePrecision::Int4 => Form::Int8,
    }
}

/// Most bytes of what travels, of weights that take `held` in their [`form_of`].
pub fn bytes_max(held: u64) -> u64 {
    held.saturating_add(HEAD_BYTES as u64)
}

/// As the values of `model` travel. Panics where they are not as many as it has.
///
/// # Errors
/// Values that are not finite, or too large for their bits.
pub fn encode(model: &StageModel, values: &[f32], bits: BasePrecision) -> Result<Vec<u8>, BadFrozen> {
    assert_eq!(values.len(), model.values(), "the values are the model's");
    let written = Written::of(values, bits);
    let mut out = Vec::with_capacity(HEAD_BYTES + 4 * values.len());
    out.extend_from_slice(MAGIC);
    out.push(Written::ALL.iter().position(|known| *known == written).unwrap_or_default() as u8);
    out.resize(HEAD_BYTES, 0);
    for tensor in model.params() {
        let (form, values) = (written.form(tensor), &values[tensor.range()]);
        if !values.iter().all(|value| value.abs() <= form.largest()) {
            return Err(BadFrozen::Values);
        }
        form.write(values, &mut out);
    }
    out.shrink_to_fit();
    Ok(out)
}

/// Tensors that follow each other and are written alike.
#[derive(Clone, Debug)]
struct Span {
    values: Range<usize>,
    form: Form,
    /// Where its bytes begin.
    at: usize,
}

/// The weights, as their bytes.
#[derive(Clone, Debug)]
pub struct Frozen {
    pieces: Vec<Bytes>,
    /// Bytes of every piece but the last.
    piece: usize,
    spans: Vec<Span>,
    /// Norms and biases, by where the first of those that follow each other begins.
    vectors: BTreeMap<usize, Vec<f32>>,
    in_blocks: bool,
}

impl Frozen {
    /// Of bytes that lie in `pieces`, in order.
    ///
    /// # Errors
    /// Another hash, another length, a head that this build does not know, other bits, values that no model has. Nothing is allocated
    /// before lengths and hash were compared.
    pub fn open(
        model: &StageModel,
        bits: BasePrecision,
        pieces: Vec<Bytes>,
        hash: Digest,
    ) -> Result<Frozen, BadFrozen> {
        let frozen = Self::laid_out(model, bits, pieces)?;
        if hash::blob(&frozen.pieces.iter().map(|piece| &piece[..]).collect::<Vec<_>>()) != hash {
            return Err(BadFrozen::Hash);
        }
        frozen.with_vectors(model)
    }

    /// Of the values of `model`, as they would be held in `bits`.
    ///
    /// # Errors
    /// Values that are not finite.
    pub fn of(model: &StageModel, values: &[f32], bits: BasePrecision) -> Result<Frozen, BadFrozen> {
        Self::laid_out(model, bits, vec![encode(model, values, bits)?.into()])?.with_vectors(model)
    }

    fn laid_out(model: &StageModel, bits: BasePrecision, pieces: Vec<Bytes>) -> Result<Frozen, BadFrozen> {
        let first = pieces.first().map(|piece| &piece[..]).unwrap_or_default();
        let head = first.get(..HEAD_BYTES).filter(|head| head[..MAGIC.len()] == *MAGIC).ok_or(BadFrozen::Head)?;
        let written = Written::ALL.get(usize::from(head[MAGIC.len()])).ok_or(BadFrozen::Head)?;
        if !written.is_in(bits) {
            return Err(BadFrozen::Bits);
        }
        let (mut spans, mut end) = (Vec::<Span>::new(), HEAD_BYTES);
        for tensor in model.params() {
            let (values, form) = (tensor.range(), written.form(tensor));
            match spans.last_mut().filter(|span| span.form == form) {
                Some(span) => span.values.end = values.end,
                None => spans.push(Span { values: values.clone(), form, at: end }),
            }
            end += form.bytes(values.len() as u64) as usize;
        }
        let got = pieces.iter().map(|piece| piece.len() as u64).sum();
        // All but the last are of one length, or nobody could tell where a value lies.
        let piece = first.len();
        let uneven = |(i, piece_here): (usize, &Bytes)| match i + 1 == pieces.len() {
            true => piece_here.len() > piece,
            false => piece_here.len() != piece,
        };
        if got != end as u64 || pieces.iter().enumerate().any(uneven) {
            return Err(BadFrozen::Length { got, wanted: end as u64 });
        }
        let in_blocks = spans.iter().any(|span| span.form.unit().0 == BLOCK);
        Ok(Frozen { piece, spans, vectors: BTreeMap::new(), in_blocks, pieces })
    }

    /// Looks at every value once, and reads the norms and biases.
    fn with_vectors(mut self, model: &StageModel) -> Result<Frozen, BadFrozen> {
        let is_finite = |span: &Span| {
            let units = span.values.len() / span.form.unit().0;
            let sections = (0..units).step_by(SECTION).map(|first| first..units.min(first + SECTION));
            sections.map(|units| self.units(span, units)).all(|bytes| span.form.is_finite(&bytes))
        };
        if !self.spans.iter().all(is_finite) {
            return Err(BadFrozen::Values);
        }
        let mut runs: Vec<Range<usize>> = Vec::new();
        for vector in model.params().iter().filter(|tensor| !is_matrix(tensor)).map(Param::range) {
            match runs.last_mut().filter(|run| run.end == vector.start) {
                Some(run) => run.end = vector.end,
                None => runs.push(vector),
            }
        }
        let read = |run: Range<usize>| {
            let mut values = vec![0.0; run.len()];
            self.read(run.start, &mut values);
            (run.start, values)
        };
        self.vectors = runs.into_iter().map(read).collect();
        Ok(self)
    }

    /// Of the flat buffer.
    pub fn values(&self) -> usize {
        self.spans.last().map_or(0, |span| span.values.end)
    }

    /// Bytes that hold them.
    pub fn bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.len() as u64).sum()
    }

    /// Whether some matrices are in 8 or 4 bits.
    pub fn in_blocks(&self) -> bool {
        self.in_blocks
    }

    /// Norms or biases that begin at `at` in the flat buffer. Panics where there are none.
    pub fn vector(&self, at: usize, len: usize) -> &[f32] {
        let (start, run) = self.vectors.range(..=at).next_back().expect("a vector begins there");
        &run[at - start..][..len]
    }

    /// The values from `at` on of the flat buffer. What lies in blocks is read by whole blocks.
    pub fn read(&self, at: usize, to: &mut [f32]) {
        let mut rest = to;
        let mut at = at;
        let first = self.spans.partition_point(|span| span.values.end <= at);
        for span in &self.spans[first..] {
            if rest.is_empty() {
                return;
            }
            let start = at - span.values.start;
            let (here, left) = rest.split_at_mut((span.values.end - at).min(rest.len()));
            let (unit, _) = span.form.unit();
            assert!(start.is_multiple_of(unit) && here.len().is_multiple_of(unit), "blocks are read as a whole");
            for (i, section) in here.chunks_mut(SECTION).enumerate() {
                let first = (start + i * SECTION) / unit;
                span.form.read(&self.units(span, first..first + section.len() / unit), section);
            }
            at += here.len();
            rest = left;
        }
        assert!(rest.is_empty(), "the values are there");
    }

    /// All values.
    pub fn flat(&self) -> Vec<f32> {
        let mut flat = vec![0.0; self.values()];
        self.read(0, &mut flat);
        flat
    }

    /// How the values from `at` on are written, and their bytes: of one tensor, or of some that follow each other.
    pub fn written(&self, at: usize, values: usize) -> (Form, Cow<'_, [u8]>) {
        let span = &self.spans[self.spans.partition_point(|span| span.values.end <= at)];
        let unit = span.form.unit().0;
        let start = (at - span.values.start) / unit;
        (span.form, self.units(span, start..start + values / unit))
    }

    /// The bytes of some units of a span.
    fn units(&self, span: &Span, units: Range<usize>) -> Cow<'_, [u8]> {
        let (_, bytes) = span.form.unit();
        let (start, len) = (span.at + units.start * bytes, units.len() * bytes);
        let (mut piece, mut from) = (start / self.piece.max(1), start % self.piece.max(1));
        if let Some(here) = self.pieces.get(piece).and_then(|bytes| bytes.get(from..from + len)) {
            return Cow::Borrowed(here);
        }
        let mut copy = Vec::with_capacity(len);
        while copy.len() < len {
            let here = &self.pieces[piece][from..];
            copy.extend_from_slice(&here[..here.len().min(len - copy.len())]);
            (piece, from) = (piece + 1, 0);
        }
        Cow::Owned(copy)
    }
}

#[cfg(test)]
mod tests {
    use skein_protocol::run::ModelConfig;

    use super::{super::tests::tiny, *};

    const ALL: [BasePrecision; 4] =
        [BasePrecision::AsIs, BasePrecision::Bf16, BasePrecision::Int8, BasePrecision::Int4];

    /// A model of which the rows of some matrices are whole blocks, and values for it.
    fn model() -> (StageModel, Vec<f32>) {
        let config = ModelConfig { hidden: 64, ffn: 40, qkv_bias: true, qk_norm: true, ..tiny() };
        let model = StageModel::whole(config).unwrap();
        let values = crate::model::init::initial(&model, 7);
        (model, values)
    }

    fn cut(bytes: &[u8], len: usize) -> Vec<Bytes> {
        bytes.chunks(len).map(Bytes::copy_from_slice).collect()
    }

    #[test]
    fn values_come_back_from_pieces_of_any_length() {
        let (model, values) = model();
        for bits in ALL {
            let bytes = encode(&model, &values, bits).unwrap();
            let hash = hash::blob(&[&bytes]);
            let whole = Frozen::open(&model, bits, cut(&bytes, bytes.len()), hash).unwrap();
            let flat = whole.flat();
            assert_eq!((whole.values(), whole.bytes()), (values.len(), bytes.len() as u64));
            for len in [17, 34, 1000, 4099] {
                let frozen = Frozen::open(&model, bits, cut(&bytes, len), hash).unwrap();
                assert!(frozen.flat() == flat, "{bits:?} {len}");
            }
            for tensor in model.params() {
                let (range, lost) = (tensor.range(), if is_matrix(tensor) { 0.15 } else { 4e-3 });
                let size = values[range.clone()].iter().fold(0f32, |most, v| most.max(v.abs()));
                let near = |(a, b): (&f32, &f32)| (a - b).abs() <= lost * size;
                assert!(values[range.clone()].iter().zip(&flat[range.clone()]).all(near), "{bits:?} {}", tensor.name);
                if !is_matrix(tensor) {
                    assert_eq!(whole.vector(range.start, range.len()), &flat[range], "{bits:?} {}", tensor.name);
                }
            }
        }
    }

    #[test]
    fn whole_bits_lose_nothing_and_take_as_few_bytes_as_hold_them() {
        let (model, values) = model();
        let bf16: Vec<f32> = values.iter().map(|v| half::bf16::from_f32(*v).to_f32()).collect();
        let f16: Vec<f32> = values.iter().map(|v| half::f16::from_f32(*v).to_f32()).collect();
        for (values, width) in [(&values, 4), (&bf16, 2), (&f16, 2)] {
            let frozen = Frozen::of(&model, values, BasePrecision::AsIs).unwrap();
            assert_eq!(frozen.bytes(), (HEAD_BYTES + width * values.len()) as u64);
            assert!(frozen.flat() == *values);
        }
        assert!(Frozen::of(&model, &values, BasePrecision::Bf16).unwrap().flat() == bf16);
    }

    #[test]
    fn other_bytes_than_were_signed_are_refused() {
        let (model, values) = model();
        for bits in ALL {
            let bytes = encode(&model, &values, bits).unwrap();
            let hash = hash::blob(&[&bytes]);
            let open = |bytes: &[u8]| Frozen::open(&model, bits, cut(bytes, 1 << 20), hash);
            for i in (0..bytes.len()).step_by(bytes.len() / 90).chain(0..HEAD_BYTES) {
                let mut bad = bytes.clone();
                bad[i] ^= 1 << (i % 8);
                assert!(open(&bad).is_err(), "{bits:?} byte {i}");
                assert!(open(&bytes[..i]).is_err(), "{bits:?} cut at {i}");
            }
            let uneven = [&bytes[..40], &bytes[40..90], &bytes[90..]].map(Bytes::copy_from_slice);
            assert!(matches!(Frozen::open(&model, bits, uneven.into(), hash), Err(BadFrozen::Length { .. })));
            let other = if bits == BasePrecision::Int4 { BasePrecision::Int8 } else { BasePrecision::Int4 };
            assert_eq!(Frozen::open(&model, other, cut(&bytes, 1 << 20), hash).unwrap_err(), BadFrozen::Bits);
        }
        assert_eq!(
            Frozen::open(&model, BasePrecision::AsIs, Vec::new(), Digest::default()).unwrap_err(),
            BadFrozen::Head
        );
        let matrix = model.params().iter().find(|tensor| tensor.name.ends_with("q_proj.weight")).unwrap().offset;
        for (bits, bad) in
            ALL.into_iter().flat_map(|bits| [f32::INFINITY, f32::NAN, -f32::INFINITY].map(|bad| (bits, bad)))
        {
            let mut values = values.clone();
            values[matrix + 9] = bad;
            assert_eq!(Frozen::of(&model, &values, bits).unwrap_err(), BadFrozen::Values, "{bits:?} {bad}");
        }
        // What the bits cannot hold is not held as something else.
        for (bits, large) in [(BasePrecision::Bf16, f32::MAX), (BasePrecision::Int8, 1e7), (BasePrecision::Int4, 1e6)] {
            let mut values = values.clone();
            values[matrix + 9] = large;
            assert_eq!(Frozen::of(&model, &values, bits).unwrap_err(), BadFrozen::Values, "{bits:?}");
        }
    }
}
