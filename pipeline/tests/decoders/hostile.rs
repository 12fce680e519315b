//! Bytes that are cut, changed, lengthened, made up, or that lie about their own length.

use proptest::prelude::*;
use skein_pipeline::{model::state::StageState, worker::read_round};
use skein_protocol::{
    codec::{self, BadTensor},
    run::Codec,
};

use crate::{
    allocation::largest_block,
    corpus,
    decoders::{self, sealed},
};

/// A decoder may ask for blocks of this many times the bytes it reads, and a little besides: an error has a text.
const TIMES: usize = 8;
const BESIDES: usize = 4 << 10;
/// Parameters of the rounds here.
const VALUES: usize = 100;

fn assert_frugal(bytes: &[u8], decode: impl FnOnce(&[u8])) {
    let largest = largest_block(|| decode(bytes));
    assert!(largest <= TIMES * bytes.len() + BESIDES, "{} bytes made it ask for {largest}", bytes.len());
}

/// The head of a CBOR item of a major type that says it has `len` elements or bytes.
fn claim(major: u8, len: u64) -> Vec<u8> {
    let mut head = vec![major << 5 | 27];
    head.extend_from_slice(&len.to_be_bytes());
    head
}

#[test]
fn a_state_of_lying_lengths_is_refused_before_memory_is_taken_for_them() {
    let whole = corpus::state(true).encode().0;
    let body = &whole[..whole.len() - 32];
    // Numbers, strings, texts, arrays and maps of absurd length wherever one may stand. The root is right each time.
    for at in 0..120.min(body.len()) {
        for len in [1 << 16, 1 << 32, 1 << 60, u64::MAX / 4, u64::MAX] {
            for major in [0, 2, 3, 4, 5] {
                let lying = sealed(&[&body[..at], &claim(major, len), &body[at + 1..]].concat());
                assert_frugal(&lying, |bytes| drop(StageState::decode(bytes)));
            }
        }
    }
    for len in [0, 1, 4096, 4097, u32::MAX] {
        let lying = sealed(&[&body[..8], &len.to_le_bytes(), &body[12..]].concat());
        assert_frugal(&lying, |bytes| assert!(StageState::decode(bytes).is_err(), "a header of {len} bytes"));
    }
}

#[test]
fn a_state_that_is_cut_or_followed_is_refused_though_its_root_is_right() {
    for full in [true, false] {
        let whole = corpus::state(full).encode().0;
        let body = &whole[..whole.len() - 32];
        assert!(StageState::decode(&sealed(body)).is_ok());
        for end in 0..body.len() {
            assert!(StageState::decode(&sealed(&body[..end])).is_err(), "cut at {end}");
        }
        assert!(StageState::decode(&sealed(&[body, &[0]].concat())).is_err());
        assert!(StageState::decode(&sealed(&[body, &[0; 4]].concat())).is_err());
    }
}

#[test]
fn a_round_of_lying_lengths_is_refused_before_memory_is_taken_for_them() {
    for codec in codec::ALL {
        let whole = corpus::round(VALUES, codec, false);
        for at in [0, 8, 16] {
            for len in [0, 1, whole.len() as u64, 1 << 32, 1 << 60, u64::MAX] {
                let lying = [&whole[..at], &len.to_le_bytes(), &whole[at + 8..]].concat();
                assert_frugal(&lying, |bytes| assert!(read_round(bytes, VALUES, codec).is_err(), "{len} at {at}"));
            }
        }
        // Lengths whose sum is right, and no tensor is.
        let shifted = [&whole[8..16], &whole[..8], &whole[16..]].concat();
        assert_eq!(read_round(&shifted, VALUES, codec).is_ok(), codec == codec::slow_weights(codec));
        for values in [0, VALUES - 1, VALUES + 1, 1 << 40, usize::MAX] {
            assert_frugal(&whole, |bytes| assert!(read_round(bytes, values, codec).is_err(), "of {values}"));
        }
    }
}

#[test]
fn a_round_in_another_codec_or_with_values_that_are_none_is_refused() {
    let body = corpus::round(VALUES, Codec::Int8, false);
    assert_eq!(read_round(&body, VALUES, Codec::Bf16), Err(BadTensor::NotAllowed(Codec::Int8)));
    let whole = corpus::round(VALUES, Codec::F32, false);
    for first in [24 + 1, 24 + 1 + 4 * VALUES + 1] {
        let mut body = whole.clone();
        body[first..first + 4].copy_from_slice(&f32::NAN.to_le_bytes());
        assert_eq!(read_round(&body, VALUES, Codec::F32), Err(BadTensor::NotFinite), "at {first}");
    }
}

proptest! {
    #[test]
    fn no_decoder_minds_noise(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        decoders::ALL.into_iter().for_each(|(_, decoder)| decoder(&bytes));
        assert_frugal(&bytes, |bytes| drop(StageState::decode(bytes)));
    }

    #[test]
    fn a_state_with_changed_bytes_is_refused_or_another_state(changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..4)) {
        let mut bytes = corpus::state(true).encode().0;
        bytes.truncate(bytes.len() - 32);
        for (at, byte) in changes {
            // The header more often than the tensors.
            let most = if at % 3 == 0 { bytes.len() } else { 80 };
            bytes[at % most] = byte;
        }
        decoders::state(&bytes);
    }

    #[test]
    fn a_round_that_is_cut_changed_or_followed_is_refused_or_another_round(
        which in 0..codec::ALL.len(),
        zstd: bool,
        changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..4),
        more in 1..20usize,
    ) {
        let codec = codec::ALL[which];
        let mut bytes = corpus::round(VALUES, codec, zstd);
        for end in 0..bytes.len() {
            prop_assert!(read_round(&bytes[..end], VALUES, codec).is_err(), "cut at {}", end);
        }
        let longer = [&bytes[..], &vec![0; more][..]].concat();
        prop_assert!(read_round(&longer, VALUES, codec).is_err(), "{} more bytes", more);
        for (at, byte) in changes {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        decoders::round(&[&[VALUES as u8, 0, which as u8], &bytes[..]].concat());
    }
}
