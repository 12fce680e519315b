//! The seeds of this crate's fuzz targets, in `fuzz/corpus`: written by this test, and replayed by it with whatever fuzzing has
//! added.

use skein_protocol::{
    codec,
    hash::Digest,
    invite::{Address, Invite, InvitePeer, Transport, VERSION},
    key::Key,
    run::{PRESETS, preset, text},
};

use crate::{
    decoders,
    replay::{Seeds, replay},
    samples::{Draw, FRAMES, frame, packed},
};

/// What a target starts from: names and bytes.
pub fn seeds(target: &str) -> Seeds {
    let named = |name: &str, bytes: Vec<u8>| (name.to_string(), bytes);
    match target {
        "frame" => {
            let all = (0..FRAMES).map(|n| (format!("{n:02}"), frame(n, &mut Draw::new(n as u64)).encode()));
            all.chain([named("packed", packed(9, vec![3, 300, 70_000]).encode())]).collect()
        }
        "item" => (0..6).map(|n| (n.to_string(), minicbor::to_vec(Draw::new(n).signed()).unwrap())).collect(),
        "manifest" => {
            PRESETS.iter().map(|name| named(name, minicbor::to_vec(preset(name).unwrap()).unwrap())).collect()
        }
        "run_toml" => {
            let mut all: Vec<_> =
                PRESETS.iter().map(|name| named(name, text::write(&preset(name).unwrap()).into_bytes())).collect();
            all.push(named("nonsense", b"[run]\nname = 3\n[averagin]\n".to_vec()));
            all
        }
        "invite" => vec![named("whole", invite().encode().unwrap().into_bytes()), named("prefix", b"skein1".to_vec())],
        "tensor" => {
            let values: Vec<f32> = (0..100).map(|i| (i as f32 - 50.0) / 7.0).collect();
            let coded = |codec, zstd| [&100u16.to_le_bytes()[..], &codec::encode(&values, codec, zstd)].concat();
            let both = codec::ALL.into_iter().flat_map(|codec| {
                let name = format!("{codec:?}").to_lowercase();
                [named(&name, coded(codec, false)), named(&format!("{name}-zstd"), coded(codec, true))]
            });
            both.collect()
        }
        other => panic!("{other} is no target"),
    }
}

fn invite() -> Invite {
    let peers = (1..=2).map(|n| InvitePeer {
        id: Key::from_secret([n; 32]).peer(),
        addresses: vec![Address { transport: Transport::Quic, ip: [192, 0, 2, n].into(), port: 4747 }],
    });
    Invite { version: VERSION, run: Digest([9; 32]), label: "tiny-verse".into(), peers: peers.collect(), token: None }
}

#[test]
fn every_seed_is_in_the_corpus_and_no_decoder_minds_any_of_it() {
    decoders::ALL.into_iter().for_each(|(target, decoder)| replay(target, decoder, seeds(target)));
}
