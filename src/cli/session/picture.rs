//! From what a node shows to what `status` and `peers` show. In: snapshots of the node. Out: the watched [`State`].

use std::{sync::Arc, time::Duration};

use skein_protocol::Manifest;

use crate::{
    cli::petname,
    node::view::State as Snapshot,
    watch::{Me, Pace, State},
};

pub struct Picture {
    manifest: Arc<Manifest>,
    state: State,
    pace: Pace,
}

impl Picture {
    pub fn new(manifest: Arc<Manifest>, me: Me, utc_ms: u64) -> Self {
        Picture { manifest, state: State::starting(me, utc_ms), pace: Pace::default() }
    }

    /// Takes over a snapshot.
    pub fn update(&mut self, snapshot: &Snapshot) -> &State {
        let state = &mut self.state;
        state.update(&self.manifest, snapshot.run, &snapshot.peer, snapshot.utc);
        self.pace.note(Duration::from_millis(snapshot.uptime_ms), state.tokens);
        state.tokens_per_s = self.pace.per_s();
        state.me.addresses.clone_from(&snapshot.addresses);
        state.me.reachability = snapshot.reachability_in_words().into();
        state.memory = snapshot.memory;
        state.given.bytes_up = snapshot.net.sent.iter().sum();
        state.given.bytes_down = snapshot.net.received.iter().sum();
        for peer in &mut state.peers {
            if peer.name.is_empty() {
                peer.name = petname::of(&peer.peer);
            }
            match snapshot.net.peers.iter().find(|stats| stats.peer == peer.peer) {
                Some(stats) => {
                    peer.connected = true;
                    peer.path = stats.path.in_words().into();
                    peer.address.clone_from(&stats.address);
                    peer.rtt_ms = stats.rtt.map(|rtt| rtt.as_secs_f64() * 1e3);
                }
                None => peer.path.clear(),
            }
        }
        if let Some(what) = &snapshot.waiting
            && state.waiting.is_none()
        {
            state.waiting = Some(crate::watch::Waiting { what: what.clone(), since_utc_ms: snapshot.utc });
        }
        state
    }

    pub fn state(&self) -> &State {
        &self.state
    }
}
