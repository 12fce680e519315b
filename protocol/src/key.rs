//! Ed25519 keys and signed bodies. The libp2p identity of a peer is the same key.

use bytes::Bytes;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use minicbor::{Decode, Encode};

use crate::{hash, id::PeerId};

/// A peer's secret key.
#[derive(Clone)]
pub struct Key {
    secret: SigningKey,
}

impl Key {
    /// From 32 secret bytes, which come from the operating system's random device (or, in the simulator, from its seed).
    pub fn from_secret(secret: [u8; 32]) -> Self {
        Key { secret: SigningKey::from_bytes(&secret) }
    }

    pub fn secret(&self) -> [u8; 32] {
        self.secret.to_bytes()
    }

    pub fn peer(&self) -> PeerId {
        PeerId(self.secret.verifying_key().to_bytes())
    }

    /// Signs `body` as `kind`; a signature of one kind proves nothing about another.
    pub fn sign(&self, kind: &str, body: Vec<u8>) -> Signed {
        let signature = self.secret.sign(&hash::keyed(kind, &[&body]).0).to_bytes();
        Signed { body: body.into(), by: self.peer(), signature }
    }
}

/// Exact bytes, who signed them, and the signature over their domain-separated hash.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Signed {
    /// Shared by all copies: an item is kept, sent and sent on.
    #[n(0)]
    #[cbor(with = "shared")]
    pub body: Bytes,
    #[n(1)]
    pub by: PeerId,
    #[n(2)]
    #[cbor(with = "minicbor::bytes")]
    pub signature: [u8; 64],
}

mod shared {
    use bytes::Bytes;
    use minicbor::{
        Decoder, Encoder,
        decode::Error as Malformed,
        encode::{Error as Unwritten, Write},
    };

    pub fn encode<Ctx, W: Write>(body: &Bytes, e: &mut Encoder<W>, _: &mut Ctx) -> Result<(), Unwritten<W::Error>> {
        e.bytes(body)?.ok()
    }

    pub fn decode<Ctx>(d: &mut Decoder<'_>, _: &mut Ctx) -> Result<Bytes, Malformed> {
        d.bytes().map(Bytes::copy_from_slice)
    }
}

impl Signed {
    /// Whether `by` signed exactly this body as `kind`. Weak keys and malleable signatures are refused.
    pub fn verify(&self, kind: &str) -> bool {
        let Ok(key) = VerifyingKey::from_bytes(&self.by.0) else { return false };
        let digest = hash::keyed(kind, &[&self.body]);
        key.verify_strict(&digest.0, &Signature::from_bytes(&self.signature)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_holds_for_its_kind_and_body_only() {
        let key = Key::from_secret([3; 32]);
        let signed = key.sign("skein offer 1", b"body".to_vec());
        assert!(signed.verify("skein offer 1"));
        assert!(!signed.verify("skein manifest 1"));
        let mut other = signed.clone();
        other.body = b"bodz".to_vec().into();
        assert!(!other.verify("skein offer 1"));
        let mut other = signed;
        other.by = Key::from_secret([4; 32]).peer();
        assert!(!other.verify("skein offer 1"));
    }
}
