//! BLAKE3, always with a domain: no byte string that is hashed for one purpose can be taken for another.

use std::fmt;

use minicbor::{Decode, Encode};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// 32 bytes of BLAKE3.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(transparent)]
pub struct Digest(
    #[n(0)]
    #[cbor(with = "minicbor::bytes")]
    pub [u8; 32],
);

/// Hash of `parts` under `domain`. Parts are length-prefixed, so that moving a boundary changes the result.
pub fn keyed(domain: &str, parts: &[&[u8]]) -> Digest {
    let mut hasher = blake3::Hasher::new_derive_key(domain);
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    Digest(*hasher.finalize().as_bytes())
}

/// Hash by which a manifest names bytes that peers give to each other; they lie in `pieces`, in order.
pub fn blob(pieces: &[&[u8]]) -> Digest {
    let mut hasher = blake3::Hasher::new_derive_key("skein blob 1");
    for piece in pieces {
        hasher.update(piece);
    }
    Digest(*hasher.finalize().as_bytes())
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood 2014): neighbouring numbers come out far apart.
pub fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Spreads names and numbers over 64 bits, where a tie is to be broken by everybody alike and nothing hangs on who wins: whoever
/// chooses a name chooses this.
pub fn scatter(name: &[u8; 32], number: u64) -> u64 {
    let (words, _) = name.as_chunks::<8>();
    let step = |hash: u64, word: u64| mix(hash.wrapping_add(0x9e37_79b9_7f4a_7c15) ^ word);
    words.iter().map(|word| u64::from_le_bytes(*word)).fold(step(0, number), step)
}

/// An endless stream of bytes under `domain`, for values that must be equal on every peer (initial weights).
pub fn stream(domain: &str, parts: &[&[u8]]) -> blake3::OutputReader {
    let mut hasher = blake3::Hasher::new_derive_key(domain);
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize_xof()
}

impl Digest {
    pub fn to_hex(self) -> String {
        data_encoding::HEXLOWER.encode(&self.0)
    }

    /// The first `n` hexadecimal digits, for people.
    pub fn short(self, n: usize) -> String {
        let mut hex = self.to_hex();
        hex.truncate(n);
        hex
    }

    pub fn from_hex(text: &str) -> Option<Self> {
        let bytes = data_encoding::HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok()?;
        bytes.try_into().ok().map(Digest)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b3:{}", self.to_hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b3:{}", self.short(8))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.strip_prefix("b3:")
            .and_then(Digest::from_hex)
            .ok_or_else(|| de::Error::custom("a hash is written b3: and 64 hexadecimal digits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boundaries_and_domains_change_the_hash() {
        assert_ne!(keyed("a", &[b"ab", b"c"]), keyed("a", &[b"a", b"bc"]));
        assert_ne!(keyed("a", &[b"ab"]), keyed("b", &[b"ab"]));
        let digest = keyed("a", &[b"ab"]);
        assert_eq!(Digest::from_hex(&digest.to_hex()), Some(digest));
    }
}
