//! Round trips, and bytes that are cut, changed, lengthened, made up, or that lie about their own length.

use proptest::prelude::*;
use skein_protocol::{
    Attempt, Manifest,
    codec::{self, coded_len},
    invite::Invite,
    key::Signed,
    run::{Codec, preset},
    wire::{
        BadFrame, Frame, exact, flow,
        limits::{FRAME_MAX, STARTS_MAX},
        membership::{ITEM_MAX, Item},
    },
};

use crate::{
    allocation::largest_block,
    decoders,
    samples::{Draw, FRAMES, frame, packed},
};

/// A decoder may ask for blocks of this many times the bytes it reads, and a little besides: values in memory are larger than
/// on the wire, and an error has a text.
const TIMES: usize = 64;
const BESIDES: usize = 4 << 10;

fn assert_frugal(bytes: &[u8], decode: impl FnOnce(&[u8])) {
    let largest = largest_block(|| decode(bytes));
    assert!(largest <= TIMES * bytes.len() + BESIDES, "{} bytes made it ask for {largest}", bytes.len());
}

proptest! {
    #[test]
    fn every_frame_comes_back_as_it_was(seed: u64) {
        for n in 0..FRAMES {
            let sent = frame(n, &mut Draw::new(seed));
            prop_assert_eq!(Frame::decode(&sent.encode()), Ok(sent));
        }
    }

    #[test]
    fn an_item_comes_back_as_it_was_and_no_byte_of_it_can_be_changed(seed: u64, at: usize, bit in 0..8u8) {
        let (item, signed) = (Draw::new(seed).item(), Draw::new(seed).signed());
        prop_assert!(Item::open(&signed).is_some());
        let bytes = minicbor::to_vec(&item).unwrap();
        prop_assert_eq!(exact::<Item>(&bytes, usize::MAX), Ok(item));
        let mut forged: Vec<u8> = signed.body.to_vec();
        let at = at % forged.len();
        forged[at] ^= 1u8 << bit;
        prop_assert_eq!(Item::open(&Signed { body: forged.into(), ..signed }), None);
    }

    #[test]
    fn a_frame_with_changed_bytes_is_refused_or_another_frame(n in 0..FRAMES, seed: u64, changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..4)) {
        let mut bytes = frame(n, &mut Draw::new(seed)).encode();
        for (at, byte) in changes {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        assert_frugal(&bytes, decoders::frame);
    }

    #[test]
    fn where_records_begin_is_written_last_and_only_if_somewhere(seed: u64, places in proptest::collection::vec(any::<u32>(), 1..200)) {
        let (plain, named) = (packed(seed, vec![]).encode(), packed(seed, places.clone()));
        let bytes = named.encode();
        // Without them the array is as long as ever: five elements, or six with a hint.
        prop_assert!([0x85, 0x86].contains(&plain[6]) && bytes[6] == 0x87);
        prop_assert!(bytes[..6] == plain[..6] && bytes[7..].starts_with(&plain[7..]));
        prop_assert_eq!(Frame::decode(&bytes), Ok(named));
        // An empty list says the same as nothing.
        let at = bytes.len() - minicbor::to_vec(&places).unwrap().len();
        prop_assert_eq!(Frame::decode(&[&bytes[..at], &[0x80]].concat()), Frame::decode(&plain));
    }

    #[test]
    fn a_frame_that_is_cut_or_followed_is_refused(n in 0..FRAMES, seed: u64, more in 1..20usize) {
        let mut bytes = frame(n, &mut Draw::new(seed)).encode();
        for end in 0..bytes.len() {
            prop_assert!(matches!(Frame::decode(&bytes[..end]), Err(BadFrame::Malformed(_))), "cut at {}", end);
        }
        bytes.resize(bytes.len() + more, 0);
        prop_assert_eq!(Frame::decode(&bytes), Err(BadFrame::Trailing(more)));
    }

    #[test]
    fn no_decoder_minds_noise(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        for (_, decoder) in decoders::ALL {
            decoder(&bytes);
        }
        assert_frugal(&bytes, decoders::frame);
        assert_frugal(&bytes, decoders::item);
        assert_frugal(&bytes, decoders::manifest);
    }

    #[test]
    fn no_decoder_minds_text(text in "[ -~\n]{0,300}", word in "skein1[a-z2-7]{0,200}") {
        for (_, decoder) in decoders::ALL {
            decoder(text.as_bytes());
            decoder(word.as_bytes());
        }
    }

    #[test]
    fn a_tensor_is_refused_unless_its_length_is_the_one_that_is_known(
        values in proptest::collection::vec(-10.0f32..10.0, 1..300),
        which in 0..codec::ALL.len(),
        zstd: bool,
        more in 1..9usize,
        wrong in 0..600usize,
    ) {
        let codec = codec::ALL[which];
        let mut bytes = codec::encode(&values, codec, zstd);
        prop_assert_eq!(codec::decode(&bytes, values.len(), &[codec]).map(|back| back.len()), Ok(values.len()));
        if coded_len(wrong as u64, codec) != coded_len(values.len() as u64, codec) {
            prop_assert!(codec::decode(&bytes, wrong, &[codec]).is_err());
        }
        for end in 0..bytes.len() {
            prop_assert!(codec::decode(&bytes[..end], values.len(), &[codec]).is_err(), "cut at {}", end);
        }
        bytes.resize(bytes.len() + more, 0);
        prop_assert!(codec::decode(&bytes, values.len(), &[codec]).is_err(), "{} more bytes", more);
    }
}

/// The head of a CBOR item of a major type that says it has `len` elements or bytes.
fn claim(major: u8, len: u64) -> Vec<u8> {
    let mut head = vec![major << 5 | 27];
    head.extend_from_slice(&len.to_be_bytes());
    head
}

#[test]
fn a_length_that_lies_is_refused_before_memory_is_taken_for_it() {
    for n in 0..FRAMES {
        let bytes = frame(n, &mut Draw::new(n as u64)).encode();
        // Wherever a head may stand: what follows says that it is a string, a text, an array or a map of absurd length.
        for at in 0..bytes.len() {
            for len in [1 << 16, 1 << 32, 1 << 60, u64::MAX] {
                for major in 2..=5 {
                    let lying = [&bytes[..at], &claim(major, len), &bytes[at + 1..]].concat();
                    let largest = largest_block(|| drop(Frame::decode(&lying)));
                    assert!(largest <= TIMES * lying.len() + BESIDES, "frame {n}, byte {at}, {len}: {largest}");
                }
            }
        }
    }
}

#[test]
fn a_manifest_of_lying_lengths_takes_no_memory() {
    let bytes = minicbor::to_vec(preset("demo").unwrap()).unwrap();
    for at in 0..bytes.len() {
        for major in 2..=5 {
            let lying = [&bytes[..at], &claim(major, 1 << 40), &bytes[at + 1..]].concat();
            assert_frugal(&lying, |bytes| drop(exact::<Manifest>(bytes, usize::MAX)));
        }
    }
    for end in 0..bytes.len() {
        assert!(exact::<Manifest>(&bytes[..end], usize::MAX).is_err());
    }
}

#[test]
fn an_item_that_is_cut_or_followed_or_lies_is_refused_and_takes_no_memory() {
    for n in 0..12 {
        let signed = minicbor::to_vec(Draw::new(n).signed()).unwrap();
        let body = minicbor::to_vec(Draw::new(n).item()).unwrap();
        (0..signed.len()).for_each(|end| assert!(exact::<Signed>(&signed[..end], ITEM_MAX).is_err(), "cut at {end}"));
        (0..body.len()).for_each(|end| assert!(exact::<Item>(&body[..end], ITEM_MAX).is_err(), "cut at {end}"));
        assert_eq!(exact::<Signed>(&[&signed[..], &[0]].concat(), ITEM_MAX), Err(BadFrame::Trailing(1)));
        assert_eq!(exact::<Item>(&[&body[..], &[0]].concat(), ITEM_MAX), Err(BadFrame::Trailing(1)));
        for (len, major) in
            [1 << 16, 1 << 32, 1 << 60, u64::MAX].into_iter().flat_map(|len| (2..=5).map(move |m| (len, m)))
        {
            for at in 0..signed.len() {
                let lying = [&signed[..at], &claim(major, len), &signed[at + 1..]].concat();
                assert_frugal(&lying, decoders::item);
            }
            for at in 0..body.len() {
                let lying = [&body[..at], &claim(major, len), &body[at + 1..]].concat();
                assert_frugal(&lying, |bytes| drop(exact::<Item>(bytes, ITEM_MAX)));
            }
        }
    }
}

/// Its checksum is right, so that what lies inside is read.
#[test]
fn an_invite_of_lying_lengths_takes_no_memory() {
    let seeds = crate::corpus::seeds("invite");
    let word = str::from_utf8(&seeds[0].1).unwrap();
    let coded = word["skein1".len()..].to_ascii_uppercase();
    let body = data_encoding::BASE32_NOPAD.decode(coded.as_bytes()).unwrap();
    let body = &body[..body.len() - 4];
    let seal = |body: &[u8]| {
        let sum = blake3::hash(body);
        let coded = data_encoding::BASE32_NOPAD.encode(&[body, &sum.as_bytes()[..4]].concat());
        format!("skein1{}", coded.to_ascii_lowercase())
    };
    assert_eq!(seal(body), word);
    for at in 0..body.len() {
        assert!(Invite::decode(&seal(&body[..at])).is_err(), "cut at {at}");
        for (len, major) in
            [1 << 16, 1 << 32, 1 << 60, u64::MAX].into_iter().flat_map(|len| (2..=5).map(move |m| (len, m)))
        {
            let lying = seal(&[&body[..at], &claim(major, len), &body[at + 1..]].concat());
            assert_frugal(lying.as_bytes(), decoders::invite);
        }
    }
    assert!(Invite::decode(&seal(&[body, &[0]].concat())).is_err());
}

#[test]
fn a_tensor_of_absurd_length_takes_no_memory() {
    for codec in codec::ALL {
        for zstd in [false, true] {
            let bytes = codec::encode(&[1.5; 256], codec, zstd);
            for values in [1usize << 32, 1 << 60, usize::MAX] {
                assert_frugal(&bytes, |bytes| assert!(codec::decode(bytes, values, &[codec]).is_err()));
            }
        }
    }
}

#[test]
fn an_attempt_of_more_hops_than_stages_is_refused() {
    let ask = |hops: usize| {
        let attempt = (1..hops).fold(Attempt::first(0), |attempt, _| attempt.hop(0));
        let about = flow::About { id: Draw::new(1).id(), attempt, stage: 0 };
        Frame::decode(&Frame::Flow(flow::Frame::Ask(about)).encode())
    };
    assert!(ask(Attempt::HOPS_MAX).is_ok());
    assert!(matches!(ask(Attempt::HOPS_MAX + 1), Err(BadFrame::Malformed(_))));
}

#[test]
fn a_frame_above_the_limit_is_not_read() {
    let bytes = vec![0x9f; FRAME_MAX + 1];
    assert_eq!(Frame::decode(&bytes), Err(BadFrame::TooLarge { got: FRAME_MAX + 1, limit: FRAME_MAX }));
    // Arrays in arrays, as deep as a frame is long.
    for byte in [0x81, 0x9f, 0xa1, 0xc1, 0xd8] {
        assert!(Frame::decode(&vec![byte; FRAME_MAX]).is_err());
    }
}

#[test]
fn a_bomb_of_zstd_is_stopped_at_the_length_that_is_known() {
    let bomb = codec::encode(&vec![0.0; 4 << 20], Codec::F32, true);
    assert!(bomb.len() < 64 << 10, "it is small: {}", bomb.len());
    let mut refused = false;
    let largest = largest_block(|| refused = codec::decode(&bomb, 100, &[Codec::F32]).is_err());
    assert!(refused);
    // A decompressor has a window of its own; the sixteen mebibytes are never reserved.
    assert!(largest < 4 << 20, "{largest}");
}

#[test]
fn an_invite_with_a_changed_character_is_refused() {
    let key = skein_protocol::key::Key::from_secret([3; 32]);
    let peers = format!("{}", key.peer());
    assert!(Invite::decode(&peers).is_err());
    let corpus = crate::corpus::seeds("invite");
    let (_, bytes) = corpus.iter().find(|(name, _)| name == "whole").expect("a whole invite");
    let text = String::from_utf8(bytes.clone()).unwrap();
    Invite::decode(&text).unwrap();
    for at in "skein1".len()..text.len() {
        let mut changed = text.clone().into_bytes();
        changed[at] = if changed[at] == b'a' { b'b' } else { b'a' };
        assert!(Invite::decode(&String::from_utf8(changed).unwrap()).is_err(), "character {at}");
    }
}

#[test]
fn no_more_places_are_read_than_a_micro_batch_may_have() {
    let most = packed(1, (0..STARTS_MAX as u32).map(|at| u32::MAX - at).collect());
    let bytes = most.encode();
    assert!(bytes.len() < FRAME_MAX / 2, "{} bytes", bytes.len());
    assert_eq!(Frame::decode(&bytes), Ok(most));
    let more = packed(1, vec![7; STARTS_MAX + 1]).encode();
    assert!(matches!(Frame::decode(&more), Err(BadFrame::Malformed(_))));
    // A list that only says that it is longer.
    let one = packed(1, vec![7]).encode();
    let lying = [&one[..one.len() - 2], &[0x9b, 0, 0, 0, 1, 0, 0, 0, 0]].concat();
    assert_frugal(&lying, |bytes| assert!(Frame::decode(bytes).is_err()));
}
