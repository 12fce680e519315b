//! The look-up of who has a key, as the peers see it: answers come late, and name the dead as well.

use std::collections::{BTreeMap, BTreeSet};

use skein_protocol::PeerId;

#[derive(Debug, Default)]
pub struct Directory {
    providers: BTreeMap<[u8; 32], BTreeSet<PeerId>>,
}

impl Directory {
    pub fn provide(&mut self, key: [u8; 32], peer: PeerId) {
        self.providers.entry(key).or_default().insert(peer);
    }

    /// At most 20 providers other than the asker, in the order of their distance from it, with where they are reached.
    pub fn find(&self, key: &[u8; 32], asker: PeerId) -> Vec<(PeerId, Vec<String>)> {
        let mut peers: Vec<PeerId> =
            self.providers.get(key).into_iter().flatten().filter(|peer| **peer != asker).copied().collect();
        peers.sort_by_key(|peer| std::array::from_fn::<u8, 32, _>(|i| peer.0[i] ^ asker.0[i]));
        peers.truncate(20);
        peers.into_iter().map(|peer| (peer, vec![address(peer)])).collect()
    }
}

/// Where a simulated peer is reached.
pub fn address(peer: PeerId) -> String {
    format!("sim/{peer}")
}
