//! One function for each family of decoders: any bytes in, no panic, and what is read means the same when it is said again.
//! The fuzz targets call the same functions.

use skein_protocol::{
    Manifest, PeerId, codec,
    invite::Invite,
    key::Signed,
    run::{check, text},
    wire::{Frame, exact, limits::MANIFEST_MAX, membership::Item},
};

type Decoder = fn(&[u8]);

/// A decoder by name: what the corpora and the fuzz targets are called.
pub const ALL: [(&str, Decoder); 6] = [
    ("frame", frame),
    ("item", item),
    ("manifest", manifest),
    ("run_toml", run_toml),
    ("invite", invite),
    ("tensor", tensor),
];

/// Compared as bytes: a loss that is not a number differs from itself.
pub fn frame(bytes: &[u8]) {
    if let Ok(frame) = Frame::decode(bytes) {
        let said = frame.encode();
        let again = Frame::decode(&said).expect("what was read can be said");
        assert_eq!(again.encode(), said);
    }
}

/// A signed item: `cbor(Signed)`.
pub fn item(bytes: &[u8]) {
    if let Ok(signed) = exact::<Signed>(bytes, 8 << 10)
        && let Some(item) = Item::peek(&signed)
    {
        let said = minicbor::to_vec(&item).expect("writing to a Vec cannot fail");
        assert_eq!(exact::<Item>(&said, usize::MAX).as_ref(), Ok(&item));
        let _ = Item::open(&signed);
        let _ = item.key(signed.by);
    }
}

pub fn manifest(bytes: &[u8]) {
    if let Ok(manifest) = exact::<Manifest>(bytes, MANIFEST_MAX) {
        let said = minicbor::to_vec(&manifest).expect("writing to a Vec cannot fail");
        let again = exact::<Manifest>(&said, usize::MAX).expect("what was read can be said");
        assert_eq!(minicbor::to_vec(&again).expect("writing to a Vec cannot fail"), said);
        let _ = check(&manifest);
        let _ = text::write(&manifest);
    }
}

/// A manifest as people write it.
pub fn run_toml(bytes: &[u8]) {
    if let Ok(written) = str::from_utf8(bytes)
        && let Ok(parsed) = text::parse(written, Some(PeerId([7; 32])))
    {
        let _ = check(&parsed.manifest);
        let again = text::parse(&text::write(&parsed.manifest), Some(PeerId([7; 32])));
        assert_eq!(again.expect("what was read can be written").manifest, parsed.manifest);
    }
}

pub fn invite(bytes: &[u8]) {
    if let Ok(pasted) = str::from_utf8(bytes)
        && let Ok(invite) = Invite::decode(pasted)
    {
        let said = invite.encode().expect("what was read can be said");
        assert_eq!(Invite::decode(&said).as_ref(), Ok(&invite));
    }
}

/// Two bytes that say how many values are expected, then a coded tensor.
pub fn tensor(bytes: &[u8]) {
    let Some((values, coded)) = bytes.split_first_chunk::<2>() else { return };
    let values = usize::from(u16::from_le_bytes(*values));
    if let Ok(tensor) = codec::decode(coded, values, &codec::ALL) {
        assert_eq!(tensor.len(), values);
        assert_eq!(codec::gate(&tensor), Ok(()));
    }
}
