//! How long a peer that joined stays after the end of the run, so that its owner can collect the weights. In: snapshots of the peer.
//! Out: the moment to leave. It knows no order and no socket.

use std::time::Duration;

use skein_protocol::PeerId;
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use crate::node::view::State;

/// After the end, and after it was last needed, a peer waits so long for an owner that may come back.
const QUIET: Duration = Duration::from_secs(20);
/// Nobody is waited for longer.
const AT_MOST: Duration = Duration::from_secs(600);

/// Waits until nobody needs this peer any more.
pub async fn until_saved(mut snapshots: watch::Receiver<Option<State>>, owner: PeerId) {
    let mut stay = Stay::new(Instant::now());
    while let Some(leave) = stay.leave_at(Instant::now()) {
        let news = timeout_at(leave, snapshots.changed()).await;
        if matches!(news, Ok(Err(_))) {
            // The node has ended.
            return;
        }
        let needed = snapshots.borrow_and_update().as_ref().is_some_and(|state| is_needed(state, owner));
        stay.seen(Instant::now(), needed);
    }
}

/// The owner fetches one stage after the other: as long as it is connected, it may come to what is served here. And whoever
/// fetches a state is to get all of it.
fn is_needed(state: &State, owner: PeerId) -> bool {
    state.peer.serving_states > 0 || state.net.peers.iter().any(|peer| peer.peer == owner)
}

struct Stay {
    end: Instant,
    quiet_from: Instant,
    needed: bool,
}

impl Stay {
    fn new(now: Instant) -> Self {
        Stay { end: now + AT_MOST, quiet_from: now, needed: false }
    }

    fn seen(&mut self, now: Instant, needed: bool) {
        if self.needed || needed {
            self.quiet_from = now;
        }
        self.needed = needed;
    }

    /// When it leaves, if nothing happens until then; nothing: now.
    fn leave_at(&self, now: Instant) -> Option<Instant> {
        let leave = if self.needed { self.end } else { self.end.min(self.quiet_from + QUIET) };
        (now < leave).then_some(leave)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_stays_while_it_is_needed_then_a_while_and_never_longer_than_ten_minutes() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut stay = Stay::new(start);
        assert_eq!(stay.leave_at(at(0)), Some(at(20)));
        stay.seen(at(15), true);
        assert_eq!(stay.leave_at(at(300)), Some(at(600)), "the owner is there");
        stay.seen(at(300), false);
        assert_eq!(stay.leave_at(at(301)), Some(at(320)));
        stay.seen(at(310), false);
        assert_eq!(stay.leave_at(at(320)), None);
        stay.seen(at(320), true);
        assert_eq!(stay.leave_at(at(600)), None);
    }
}
