//! One function for each thing that a stranger's stream begins with: any bytes in, no panic, and what is read means the same when it
//! is said again. The fuzz targets call the same functions.

use super::wire::{
    GREETING_LEN, Greeting, HEAD_LEN, Head, Kind, RECORD_HEAD_LEN, Refusal, Segment, read_record_head, record_head,
};

pub fn greeting(bytes: &[u8]) {
    if let Some(bytes) = bytes.first_chunk::<GREETING_LEN>()
        && let Some(greeting) = Greeting::decode(bytes)
    {
        assert_eq!(greeting.encode(), *bytes);
    }
}

pub fn head(bytes: &[u8]) {
    if let Some(bytes) = bytes.first_chunk::<HEAD_LEN>()
        && let Some(head) = Head::decode(bytes)
    {
        assert_eq!(head.encode(), *bytes);
    }
}

/// The head of a record of the control stream, and what belongs to its kind.
pub fn record(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first_chunk::<RECORD_HEAD_LEN>() else { return };
    let (kind, len) = read_record_head(*first);
    let Some(kind) = kind else { return };
    assert_eq!(record_head(kind, len), *first);
    match kind {
        Kind::Start(_) => head(rest),
        Kind::Segment => {
            if let Some(segment) = Segment::decode(rest) {
                assert_eq!(Segment::decode(&segment.encode()), Some(segment));
            }
        }
        Kind::Refused(_) => {
            if let Some(refusal) = Refusal::decode(rest) {
                assert_eq!(Refusal::decode(&refusal.encode()), Some(refusal));
            }
        }
        Kind::Frame
        | Kind::Ping
        | Kind::Pong
        | Kind::LastFrame
        | Kind::End
        | Kind::EndRead
        | Kind::Piece(_)
        | Kind::Abort(_) => {}
    }
}

#[cfg(test)]
#[path = "../../../fuzz/replay.rs"]
mod replay;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use skein_protocol::Lane;

    use super::{
        super::wire::Code,
        replay::{Seeds, replay},
        *,
    };

    type Decoder = fn(&[u8]);

    const ALL: [(&str, Decoder); 3] = [("greeting", greeting), ("head", head), ("record", record)];

    fn seeds(target: &str) -> Seeds {
        let head = |lane| Head { lane, frame_len: 300, body_len: 1 << 20 }.encode().to_vec();
        let lanes = || Lane::ALL.into_iter();
        match target {
            "greeting" => vec![("one".into(), Greeting { instance: 7, serial: 1 << 40 }.encode().into())],
            "head" => lanes().map(|lane| (format!("{lane:?}").to_lowercase(), head(lane))).collect(),
            "record" => {
                let segment = Segment { number: 70_000, broken: true }.encode().to_vec();
                let refusal = Refusal { number: 1 << 60, code: Code::Stale }.encode();
                let records = [
                    (Kind::Frame, vec![0x82, 0, 0x82, 5, 0x80]),
                    (Kind::Ping, vec![1; 8]),
                    (Kind::Segment, segment),
                    (Kind::End, Vec::new()),
                    (Kind::Start(Lane::Average), head(Lane::Average)),
                    (Kind::Piece(Lane::Bulk), vec![3; 40]),
                    (Kind::Refused(Lane::Gradient), refusal),
                ];
                let bytes = |kind, rest: Vec<u8>| [&record_head(kind, rest.len() as u32)[..], &rest].concat();
                records.into_iter().enumerate().map(|(n, (kind, rest))| (n.to_string(), bytes(kind, rest))).collect()
            }
            other => panic!("{other} is no target"),
        }
    }

    #[test]
    fn every_seed_is_in_the_corpus_and_no_decoder_minds_any_of_it() {
        ALL.into_iter().for_each(|(target, decoder)| replay(target, decoder, seeds(target)));
    }

    proptest! {
        #[test]
        fn no_decoder_minds_bytes_that_are_cut_changed_or_made_up(
            noise in proptest::collection::vec(any::<u8>(), 0..64),
            seed: prop::sample::Index,
            cut: prop::sample::Index,
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            for (target, decoder) in ALL {
                decoder(&noise);
                let seeds = seeds(target);
                let mut bytes = seeds[seed.index(seeds.len())].1.clone();
                decoder(&bytes[..cut.index(bytes.len())]);
                for (at, byte) in &changes {
                    let at = at.index(bytes.len());
                    bytes[at] = *byte;
                }
                decoder(&bytes);
                bytes.extend_from_slice(&noise);
                decoder(&bytes);
            }
        }
    }
}
