//! One function for each decoder: any bytes in, no panic, and what is read means the same when it is said again. The fuzz targets
//! call the same functions.

use skein_pipeline::{model::state::StageState, worker::read_round};
use skein_protocol::{codec, hash};

type Decoder = fn(&[u8]);

/// A decoder by name: what the corpora and the fuzz targets are called.
pub const ALL: [(&str, Decoder); 2] = [("state", state), ("round", round)];

/// The state of a stage: as it is, and with a right root, without which nothing of it is believed.
pub fn state(bytes: &[u8]) {
    for bytes in [bytes, &sealed(bytes)] {
        let _ = StageState::claimed_root(bytes);
        if let Ok(state) = StageState::decode(bytes) {
            let _ = state.check(5);
            let (said, root) = state.encode();
            assert_eq!(StageState::claimed_root(&said), Some(root));
            // Compared as bytes: a value that is not a number differs from itself.
            assert_eq!(StageState::decode(&said).expect("what was read can be said").encode().0, said);
        }
    }
}

/// `body` and its root.
pub fn sealed(body: &[u8]) -> Vec<u8> {
    let root = hash::keyed("skein 2026 stage state v1", &[body]);
    [body, &root.0].concat()
}

/// Two bytes that say how many parameters the stage has, one for the codec of the difference, then the body of `Average Tensors`.
pub fn round(bytes: &[u8]) {
    let Some(([low, high, number], body)) = bytes.split_first_chunk::<3>() else { return };
    let values = usize::from(u16::from_le_bytes([*low, *high]));
    if let Ok(tensors) = read_round(body, values, codec::ALL[usize::from(*number) % codec::ALL.len()]) {
        assert!(tensors.iter().all(|tensor| tensor.len() == values && codec::gate(tensor).is_ok()));
    }
}
