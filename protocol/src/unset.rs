//! Fields that are absent from what is written while they have their default: for `#[cbor(with = "unset", has_nil)]`.

use minicbor::{
    Decode, Decoder, Encode, Encoder,
    decode::Error,
    encode::{self as writing, Write},
};

pub fn encode<C, T: Encode<C>, W: Write>(
    value: &T,
    e: &mut Encoder<W>,
    context: &mut C,
) -> Result<(), writing::Error<W::Error>> {
    value.encode(e, context)
}

pub fn decode<'b, C, T: Decode<'b, C>>(d: &mut Decoder<'b>, context: &mut C) -> Result<T, Error> {
    T::decode(d, context)
}

pub fn is_nil<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

pub fn nil<T: Default>() -> Option<T> {
    Some(T::default())
}
