//! The network layer between real peers on loopback. Nothing here sleeps: it waits for events.

mod swarm;

use bytes::Bytes;
use skein::net::Path;
use skein_protocol::Lane;

use swarm::{body, pair};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_all_sizes_arrive_whole_in_both_directions() {
    let (mut a, mut b) = pair(1, 2, false).await;
    for (lane, len) in [(Lane::Activation, 0), (Lane::Gradient, 1), (Lane::Bulk, 8 << 20)] {
        let (there, back) = (body(len, 1), body(len, 2));
        let frame = Bytes::from_static(b"frame");
        a.net.send(b.me, lane, frame.clone(), Some(there.clone())).expect("b is up");
        b.net.send(a.me, lane, frame.clone(), Some(back.clone())).expect("a is up");
        let whole = |body: Bytes| Some(body).filter(|body| !body.is_empty());
        assert_eq!(b.message().await, (a.me, lane, frame.clone(), whole(there)));
        assert_eq!(a.message().await, (b.me, lane, frame, whole(back)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_frames_keep_their_order() {
    let (a, mut b) = pair(1, 2, false).await;
    let frames: Vec<Bytes> = (0..500u32).map(|n| n.to_le_bytes().to_vec().into()).collect();
    for frame in &frames {
        a.net.send(b.me, Lane::Control, frame.clone(), None).expect("b is up");
    }
    for frame in &frames {
        assert_eq!(b.message().await.2, frame);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_hangs_up_is_lost_on_both_sides_and_can_come_back() {
    let (mut a, mut b) = pair(1, 2, false).await;
    a.net.hangup(b.me);
    a.lost(b.me).await;
    b.lost(a.me).await;
    b.net.dial_address(a.address(false));
    assert_eq!(a.up(b.me).await, Path::Direct);
    b.up(a.me).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_shuts_down_says_so() {
    let (a, mut b) = pair(1, 2, false).await;
    let me = a.me;
    a.net.send(b.me, Lane::Control, Bytes::from_static(b"goodbye"), None).expect("b is up");
    a.net.shutdown().await;
    assert_eq!(b.message().await.2, "goodbye");
    assert_eq!(b.lost(me).await, "closed by the peer: shutting down");
}
