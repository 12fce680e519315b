//! Frames: what peers say to each other, one file per conversation. CBOR arrays with explicit indices (RFC 8949);
//! a field added later is an `Option` or has a value that is not written, an index is never used again.

pub mod average;
pub mod flow;
pub mod generate;
pub mod hello;
pub mod limits;
pub mod membership;
pub mod spread;
pub mod starts;
pub mod state;

use minicbor::{Decode, Encode};

pub use starts::Starts;

/// Everything that one peer says to another. A tensor that belongs to a frame travels behind it as the message's body.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub enum Frame {
    #[n(0)]
    Hello(#[n(0)] hello::Frame),
    #[n(1)]
    Spread(#[n(0)] spread::Frame),
    #[n(2)]
    Flow(#[n(0)] flow::Frame),
    #[n(3)]
    Average(#[n(0)] average::Frame),
    #[n(4)]
    State(#[n(0)] state::Frame),
    #[n(5)]
    Generate(#[n(0)] generate::Frame),
}

/// Why bytes are not a frame. The sender loses standing for each.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadFrame {
    #[error("frame of {got} bytes exceeds {limit}")]
    TooLarge { got: usize, limit: usize },
    #[error("{0} bytes follow the frame")]
    Trailing(usize),
    #[error("not a frame: {0}")]
    Malformed(String),
}

impl Frame {
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.encode_to(&mut bytes);
        bytes
    }

    /// Writes the same behind what is in `bytes`.
    pub fn encode_to(&self, bytes: &mut Vec<u8>) {
        bytes.reserve(self.about_bytes());
        minicbor::encode(self, Behind(bytes)).expect("writing to a Vec cannot fail");
    }

    /// About as many bytes as it takes: what is written grows little, and is moved seldom.
    fn about_bytes(&self) -> usize {
        match self {
            Frame::Spread(frame) => frame.about_bytes(),
            _ => 256,
        }
    }

    /// Reads one frame and nothing else. Allocates no more than a small multiple of `bytes.len()`.
    pub fn decode(bytes: &[u8]) -> Result<Frame, BadFrame> {
        exact(bytes, limits::FRAME_MAX)
    }
}

/// Writes behind what is there. Most of what an encoder writes is a byte or nine, for which a call takes longer than the writing.
struct Behind<'a>(&'a mut Vec<u8>);

impl minicbor::encode::Write for Behind<'_> {
    type Error = std::convert::Infallible;

    #[inline(always)]
    fn write_all(&mut self, bytes: &[u8]) -> Result<(), Self::Error> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

/// Reads one value that fills `bytes`, of at most `limit` bytes.
pub fn exact<'b, T: Decode<'b, ()>>(bytes: &'b [u8], limit: usize) -> Result<T, BadFrame> {
    if bytes.len() > limit {
        return Err(BadFrame::TooLarge { got: bytes.len(), limit });
    }
    let mut decoder = minicbor::Decoder::new(bytes);
    let value = decoder.decode().map_err(|error| BadFrame::Malformed(error.to_string()))?;
    match bytes.len() - decoder.position() {
        0 => Ok(value),
        rest => Err(BadFrame::Trailing(rest)),
    }
}
