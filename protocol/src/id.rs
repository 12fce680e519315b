//! Names that cannot collide: peers, runs, stages, micro-batches, attempts, versions.

use std::{cmp::Ordering, fmt, str::FromStr};

use minicbor::{Decode, Encode};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::hash::Digest;

/// An Ed25519 public key; written as the libp2p peer id of the same key (`12D3KooW…`).
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(transparent)]
pub struct PeerId(
    #[n(0)]
    #[cbor(with = "minicbor::bytes")]
    pub [u8; 32],
);

impl PeerId {
    /// The beginning, in the order of the names: it nearly always decides.
    #[inline]
    pub fn start(&self) -> u64 {
        u64::from_be_bytes(*self.0.first_chunk().expect("a name is longer"))
    }
}

/// By their bytes. Names are compared all the time, and a comparison of one word is none of 32 bytes.
impl Ord for PeerId {
    #[inline]
    fn cmp(&self, other: &Self) -> Ordering {
        match self.start().cmp(&other.start()) {
            Ordering::Equal => self.0.cmp(&other.0),
            unequal => unequal,
        }
    }
}

impl PartialOrd for PeerId {
    #[inline]
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// A libp2p peer id of an Ed25519 key is this prefix (identity multihash of the protobuf public key) and the key.
pub const LIBP2P_PREFIX: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];

/// Characters of a written peer id.
const TEXT: usize = 52;

impl PeerId {
    /// The last six characters of the written form: enough to tell peers apart in a table, next to a name.
    pub fn short(&self) -> String {
        self.text()[TEXT - 6..].iter().map(|character| char::from(*character)).collect()
    }

    /// Base58 of the prefix and the key, five digits at a time: every event names peers.
    fn text(&self) -> [u8; TEXT] {
        const ALPHABET: &[u8; 58] = b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";
        const FIVE_DIGITS: u64 = 58 * 58 * 58 * 58 * 58;
        // The number, its most significant word first: a zero byte in front of it is written as the first digit, which is 1.
        let mut bytes = [0; 40];
        bytes[2..8].copy_from_slice(&LIBP2P_PREFIX);
        bytes[8..].copy_from_slice(&self.0);
        let (words, _) = bytes.as_chunks::<4>();
        let mut number: [u32; 10] = std::array::from_fn(|at| u32::from_be_bytes(words[at]));
        let mut text = [ALPHABET[0]; TEXT];
        for digits in text.rchunks_mut(5) {
            let mut rest = 0;
            for word in &mut number {
                let value = rest << 32 | u64::from(*word);
                *word = (value / FIVE_DIGITS) as u32;
                rest = value % FIVE_DIGITS;
            }
            for digit in digits.iter_mut().rev() {
                *digit = ALPHABET[(rest % 58) as usize];
                rest /= 58;
            }
        }
        text
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a peer id is the base58 form of an Ed25519 key, 12D3KooW and 44 more characters")]
pub struct BadPeerId;

impl FromStr for PeerId {
    type Err = BadPeerId;
    fn from_str(text: &str) -> Result<Self, BadPeerId> {
        let mut bytes = [0u8; 38];
        let n = bs58::decode(text).onto(&mut bytes[..]).map_err(|_| BadPeerId)?;
        if n != 38 || bytes[..6] != LIBP2P_PREFIX {
            return Err(BadPeerId);
        }
        let mut key = [0u8; 32];
        key.copy_from_slice(&bytes[6..]);
        Ok(PeerId(key))
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.text();
        f.write_str(std::str::from_utf8(&text).expect("base58 is ASCII"))
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

impl Serialize for PeerId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PeerId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// BLAKE3 of the manifest's canonical form.
pub type RunId = Digest;

/// Index of a stage in the pipeline, from 0.
pub type Stage = u16;

/// Which start of a process this is: written durably, plus one, before its first frame. A higher one ends the former at once.
pub type Incarnation = u32;

/// One micro-batch of one feeder. `step` counts the feeder's groups of `train.micro_batches_per_step`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Serialize, Deserialize)]
#[cbor(array)]
pub struct MicroBatchId {
    #[n(0)]
    pub feeder: PeerId,
    #[n(1)]
    pub incarnation: Incarnation,
    #[n(2)]
    pub step: u32,
    #[n(3)]
    pub index: u16,
}

/// One small counter a hop, the feeder's first, compared lexicographically: newer replaces, equal or older is answered
/// from what is kept. At most [`Attempt::HOPS_MAX`] hops.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Serialize, Deserialize)]
#[cbor(transparent)]
pub struct Attempt(
    #[n(0)]
    #[cbor(encode_with = "minicbor::bytes::encode", decode_with = "attempt_hops")]
    Vec<u8>,
);

/// A byte string of at most [`Attempt::HOPS_MAX`] bytes.
fn attempt_hops<Ctx>(d: &mut minicbor::Decoder<'_>, _: &mut Ctx) -> Result<Vec<u8>, minicbor::decode::Error> {
    let position = d.position();
    let hops = d.bytes()?;
    if hops.len() > Attempt::HOPS_MAX {
        return Err(minicbor::decode::Error::message("an attempt of more than 256 hops").at(position));
    }
    Ok(hops.to_vec())
}

impl Attempt {
    /// As many as a run may have stages.
    pub const HOPS_MAX: usize = 256;

    pub fn first(counter: u8) -> Self {
        Attempt(vec![counter])
    }

    /// The attempt with which the receiver of `self` sends on, its own `counter` added.
    pub fn hop(&self, counter: u8) -> Self {
        let mut hops = self.0.clone();
        hops.push(counter);
        Attempt(hops)
    }

    pub fn hops(&self) -> &[u8] {
        &self.0
    }
}

/// Weights of a stage as one replica held them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Serialize, Deserialize)]
#[cbor(array)]
pub struct Version {
    #[n(0)]
    pub stage: Stage,
    #[n(1)]
    pub peer: PeerId,
    #[n(2)]
    pub incarnation: Incarnation,
    /// Averaging rounds that are in it.
    #[n(3)]
    pub round: u32,
    /// Optimizer steps that this replica (or the ones it copied from) made.
    #[n(4)]
    pub own_step: u32,
}

/// A request to the worker; its answer repeats it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct JobId(pub u64);

/// A class of traffic, in falling priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lane {
    Control,
    Gradient,
    Activation,
    Average,
    Generation,
    Bulk,
}

impl Lane {
    pub const ALL: [Lane; 6] =
        [Lane::Control, Lane::Gradient, Lane::Activation, Lane::Average, Lane::Generation, Lane::Bulk];

    pub fn from_index(index: u8) -> Option<Lane> {
        Lane::ALL.get(usize::from(index)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_id_survives_being_written_and_read() {
        let peer = PeerId([7; 32]);
        let text = peer.to_string();
        assert!(text.starts_with("12D3KooW"), "{text}");
        assert_eq!(text.parse(), Ok(peer));
        assert_eq!(peer.short(), text[text.len() - 6..]);
        for name in [[0; 32], [255; 32], crate::hash::keyed("test", &[]).0] {
            assert_eq!(PeerId(name).to_string(), bs58::encode([&LIBP2P_PREFIX[..], &name].concat()).into_string());
        }
        assert_eq!("12D3KooWnonsense0".parse::<PeerId>(), Err(BadPeerId));
    }

    #[test]
    fn peers_are_in_the_order_of_their_bytes() {
        let names = [[0; 32], [7; 32], std::array::from_fn(|at| 7 + at as u8 / 31), [255; 32]];
        assert!(names.is_sorted() && names.map(PeerId).is_sorted());
    }

    #[test]
    fn attempts_order_by_the_earliest_hop_first() {
        let first = Attempt::first(0).hop(5);
        let second = Attempt::first(1).hop(0);
        assert!(second > first);
        assert!(Attempt::first(0).hop(6) > first);
    }
}
