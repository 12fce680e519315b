//! Everything a replica needs to go on with a stage, as one string of bytes: for its disk, for a joiner, for a snapshot held.
//!
//! A header (CBOR) that says what follows, the tensors as little-endian f32, and a BLAKE3 root over all of it. Every length is
//! checked against the bytes at hand before anything is allocated.

use minicbor::{Decode, Encode};
use skein_protocol::{Version, hash, hash::Digest};

/// Parameters and optimizer state of a stage. `m` and `v` are as long as `params`, or empty where the optimizer has no such
/// moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrainState {
    pub params: Vec<f32>,
    pub m: Vec<f32>,
    pub v: Vec<f32>,
    /// Steps made.
    pub count: u64,
}

/// What a replica saves, and gives to a joiner. For an export it holds `train.params` alone; empty tensors are allowed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StageState {
    pub version: Version,
    /// Samples of the whole run, as the replica last knew.
    pub samples: u64,
    pub train: TrainState,
    /// Slow weights of averaging (phi).
    pub slow: Vec<f32>,
    /// Outer momentum.
    pub momentum: Vec<f32>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadState {
    #[error("the state has {got} bytes, its header says {wanted}")]
    Length { got: u64, wanted: u64 },
    #[error("the state's header is damaged: {0}")]
    Header(String),
    #[error("the state is of format {0}, this build reads {FORMAT}")]
    Format(u16),
    #[error("the state's bytes do not give its root: it is damaged")]
    Root,
    #[error("the state's {what} has {got} values, the stage has {wanted}")]
    Values { what: &'static str, got: u64, wanted: u64 },
}

const MAGIC: &[u8; 8] = b"skein-st";
const FORMAT: u16 = 1;
const ROOT: usize = 32;
const DOMAIN: &str = "skein 2026 stage state v1";

/// More than this is no header.
const HEADER_MAX: u64 = 4096;

#[derive(Encode, Decode)]
#[cbor(array)]
struct Header {
    #[n(0)]
    format: u16,
    #[n(1)]
    version: Version,
    #[n(2)]
    samples: u64,
    #[n(3)]
    count: u64,
    /// Values of params, m, v, slow weights and momentum, in this order.
    #[n(4)]
    values: [u64; 5],
}

impl StageState {
    /// The bytes, and their root (which is also their end).
    pub fn encode(&self) -> (Vec<u8>, Digest) {
        let tensors = self.tensors();
        let header = Header {
            format: FORMAT,
            version: self.version,
            samples: self.samples,
            count: self.train.count,
            values: tensors.map(|t| t.len() as u64),
        };
        let header = minicbor::to_vec(&header).expect("a vector takes what is written");
        let values: usize = tensors.iter().map(|t| t.len()).sum();
        let mut out = Vec::with_capacity(MAGIC.len() + 4 + header.len() + 4 * values + ROOT);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&(header.len() as u32).to_le_bytes());
        out.extend_from_slice(&header);
        for tensor in tensors {
            out.extend(tensor.iter().flat_map(|v| v.to_le_bytes()));
        }
        let root = hash::keyed(DOMAIN, &[&out]);
        out.extend_from_slice(&root.0);
        (out, root)
    }

    /// The root that `bytes` end with: which state they claim to be, before they are checked.
    pub fn claimed_root(bytes: &[u8]) -> Option<Digest> {
        bytes.last_chunk::<ROOT>().copied().map(Digest)
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, BadState> {
        let (header, mut rest) = open(bytes)?;
        let [params, m, v, slow, momentum] = header.values.map(|n| {
            let (tensor, left) = rest.split_at(4 * n as usize);
            rest = left;
            values(tensor).collect()
        });
        let train = TrainState { params, m, v, count: header.count };
        Ok(StageState { version: header.version, samples: header.samples, train, slow, momentum })
    }

    /// Adds the parameters of an encoded state to `sum`, without a copy of them.
    ///
    /// # Errors
    /// A damaged state, or one of another size; `sum` is as it was.
    pub fn add_params(bytes: &[u8], sum: &mut [f32]) -> Result<(), BadState> {
        let (header, data) = open(bytes)?;
        let (got, wanted) = (header.values[0], sum.len() as u64);
        if got != wanted {
            return Err(BadState::Values { what: "parameters", got, wanted });
        }
        sum.iter_mut().zip(values(data)).for_each(|(sum, value)| *sum += value);
        Ok(())
    }

    /// Whether the tensors that are there are those of a stage of `values` parameters.
    pub fn check(&self, values: usize) -> Result<(), BadState> {
        let names = ["parameters", "first moment", "second moment", "slow weights", "outer momentum"];
        for (what, tensor) in names.into_iter().zip(self.tensors()) {
            if !tensor.is_empty() && tensor.len() != values {
                return Err(BadState::Values { what, got: tensor.len() as u64, wanted: values as u64 });
            }
        }
        Ok(())
    }

    fn tensors(&self) -> [&Vec<f32>; 5] {
        [&self.train.params, &self.train.m, &self.train.v, &self.slow, &self.momentum]
    }
}

/// The header of an encoded state and the bytes of its tensors, which are as long as it says. The root is checked.
fn open(bytes: &[u8]) -> Result<(Header, &[u8]), BadState> {
    let got = bytes.len() as u64;
    let short = |wanted: u64| BadState::Length { got, wanted };
    let start = MAGIC.len() + 4;
    let (body, root) = bytes.split_last_chunk::<ROOT>().ok_or(short((start + ROOT) as u64))?;
    let length = body.get(..start).ok_or(short((start + ROOT) as u64))?;
    if length[..MAGIC.len()] != *MAGIC {
        return Err(BadState::Header("it does not begin as a state does".into()));
    }
    let length = u64::from(u32::from_le_bytes([length[8], length[9], length[10], length[11]]));
    if length > HEADER_MAX {
        return Err(BadState::Header(format!("{length} bytes long")));
    }
    let data = start + length as usize;
    let header = body.get(start..data).ok_or(short(data as u64 + ROOT as u64))?;
    let header: Header = minicbor::decode(header).map_err(|e| BadState::Header(e.to_string()))?;
    if header.format != FORMAT {
        return Err(BadState::Format(header.format));
    }
    let values = header.values.iter().try_fold(0u64, |sum, &n| sum.checked_add(n));
    let wanted = values.and_then(|n| n.checked_mul(4)).and_then(|n| n.checked_add((data + ROOT) as u64));
    if wanted != Some(got) {
        return Err(short(wanted.unwrap_or(u64::MAX)));
    }
    if hash::keyed(DOMAIN, &[body]).0 != *root {
        return Err(BadState::Root);
    }
    Ok((header, &body[data..]))
}

fn values(tensor: &[u8]) -> impl Iterator<Item = f32> + '_ {
    tensor.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> StageState {
        let values = |k: f32| (0..37).map(|i| i as f32 * k).collect::<Vec<f32>>();
        StageState {
            version: Version { stage: 1, round: 3, own_step: 9, ..Version::default() },
            samples: 77,
            train: TrainState { params: values(0.5), m: values(-1.0), v: values(1e-30), count: 12 },
            slow: values(f32::MAX),
            momentum: Vec::new(),
        }
    }

    #[test]
    fn a_state_comes_back_as_it_was() {
        let (bytes, root) = state().encode();
        assert_eq!(StageState::decode(&bytes), Ok(state()));
        assert_eq!(StageState::claimed_root(&bytes), Some(root));
        assert_eq!(state().check(37), Ok(()));
        assert!(state().check(36).is_err());
        let mut sum = vec![1.0; 37];
        assert_eq!(StageState::add_params(&bytes, &mut sum), Ok(()));
        assert_eq!(sum[36], 1.0 + 18.0);
        assert!(StageState::add_params(&bytes, &mut sum[..36]).is_err());
    }

    #[test]
    fn a_damaged_or_missing_byte_is_found_anywhere() {
        let (bytes, _) = state().encode();
        for i in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[i] ^= 1 << (i % 8);
            assert!(StageState::decode(&bad).is_err(), "byte {i}");
            assert!(StageState::decode(&bytes[..i]).is_err(), "cut at {i}");
        }
        let mut longer = bytes;
        longer.push(0);
        assert!(StageState::decode(&longer).is_err());
    }

    #[test]
    fn lengths_are_checked_before_anything_is_allocated() {
        let mut huge = Vec::from(*MAGIC);
        let header = Header { format: 1, version: Version::default(), samples: 0, count: 0, values: [u64::MAX / 8; 5] };
        let header = minicbor::to_vec(&header).unwrap();
        huge.extend_from_slice(&(header.len() as u32).to_le_bytes());
        huge.extend_from_slice(&header);
        huge.extend_from_slice(&[0; 64]);
        assert!(matches!(StageState::decode(&huge), Err(BadState::Length { .. })));
        let mut endless = Vec::from(*MAGIC);
        endless.extend_from_slice(&[0xff; 64]);
        assert!(matches!(StageState::decode(&endless), Err(BadState::Header(_))));
    }
}
