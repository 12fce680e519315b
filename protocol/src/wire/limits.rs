//! Every limit of the wire in one table. Each is checked before anything is allocated.

use minicbor::{
    Decode, Encode,
    data::Type,
    decode::{Decoder, Error},
};

/// Bytes of one encoded frame.
pub const FRAME_MAX: usize = 64 << 10;
/// Bytes of the body of one message: the tensors of an averaging round of one stage are the largest. A receiver bounds all bodies
/// that lie in its memory by its own budget besides.
pub const BODY_MAX: u64 = 512 << 20;
/// Bytes a second of the slowest link over which bodies still arrive in time: 2 Mbit/s.
pub const RATE_MIN: u64 = 250_000;
/// Bytes a second that a chunk of a state still gets of that link beside whatever else it carries.
pub const RATE_SHARED: u64 = RATE_MIN / 8;
/// Bytes of one chunk of a stage's state.
pub const CHUNK: u64 = 4 << 20;
/// Stages of a run.
pub const STAGES_MAX: usize = 256;
/// Places within the sequences of one micro-batch at which records begin: a third of a frame at most. Who packs records packs no
/// more into a sequence than its share of these.
pub const STARTS_MAX: usize = 4096;
/// Bytes of a canonical manifest.
pub const MANIFEST_MAX: usize = 32 << 10;
/// Bytes of the state of one stage.
pub const STATE_MAX: u64 = 1 << 40;

/// Decodes an array of at most `N` elements; for `#[cbor(decode_with = "limits::list::<_, _, N>")]`.
///
/// # Errors
/// An array that says it is longer than `N`, or is longer, is refused before the surplus is read.
pub fn list<'b, Ctx, T: Decode<'b, Ctx>, const N: usize>(d: &mut Decoder<'b>, ctx: &mut Ctx) -> Result<Vec<T>, Error> {
    let position = d.position();
    let too_long = || Error::message(format!("a list of more than {N} elements")).at(position);
    let said = d.array()?;
    if said.is_some_and(|n| n > N as u64) {
        return Err(too_long());
    }
    let mut items = Vec::new();
    match said {
        Some(n) => {
            for _ in 0..n {
                items.push(T::decode(d, ctx)?);
            }
        }
        None => {
            while d.datatype()? != Type::Break {
                if items.len() == N {
                    return Err(too_long());
                }
                items.push(T::decode(d, ctx)?);
            }
            d.skip()?;
        }
    }
    Ok(items)
}

/// The encoder that belongs to [`list`].
pub fn encode_list<Ctx, T: Encode<Ctx>, W: minicbor::encode::Write>(
    items: &[T],
    e: &mut minicbor::Encoder<W>,
    ctx: &mut Ctx,
) -> Result<(), minicbor::encode::Error<W::Error>> {
    e.array(items.len() as u64)?;
    for item in items {
        item.encode(e, ctx)?;
    }
    Ok(())
}
