//! The network layer between real peers on loopback. Nothing here sleeps: it waits for events.

mod swarm;

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use libp2p::{
    Swarm, SwarmBuilder, identify, ping,
    swarm::{NetworkBehaviour, SwarmEvent},
};
use skein::{
    net::{self, Admit, Code, Limits, NetConfig, NetError, NetEvent, Path, SendError, Verdict},
    node::blobs::{Blobs, Kind, Room},
    shape::Shaper,
};
use skein_protocol::{Lane, PeerId, key::Key};

use tokio::time::timeout;

use swarm::{Node, PATIENCE, TakeAll, body, config, eventually, exchange, exchange_one_way, pair};

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
async fn a_body_larger_than_a_lane_and_all_windows_arrives_whole() {
    let whole = body(160 << 20, 1);
    for tcp in [false, true] {
        let (a, mut b) = pair(1, 2, tcp).await;
        a.net.send(b.me, Lane::Average, Bytes::from_static(b"round"), Some(whole.clone())).expect("b is up");
        assert!(b.message().await.3.as_ref() == Some(&whole), "tcp {tcp}");
    }
}

/// Two peers with a link of 100 Mbit/s and 20 ms between them, for as long as the last is kept.
async fn narrow_pair() -> (Node, Node, Shaper) {
    let (mut a, mut b) = (Node::start(config(1)).await, Node::start(config(2)).await);
    let (to, _) = net::to_socket(&b.address(false)).expect("an address of QUIC");
    let shaper = Shaper::start(to, "100mbit,20ms".parse().expect("a shape")).await.expect("loopback is free");
    a.net.dial_address(net::to_multiaddr(shaper.address()));
    a.up(b.me).await;
    b.up(a.me).await;
    (a, b, shaper)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gradient_is_not_behind_a_round_that_was_begun_before_it() {
    let (a, mut b, _shaper) = narrow_pair().await;
    let round = body(64 << 20, 1);
    a.net.send(b.me, Lane::Average, Bytes::from_static(b"round"), Some(round.clone())).expect("b is up");
    eventually(|| b.net.stats().receiving > 0).await;
    a.net.send(b.me, Lane::Gradient, Bytes::from_static(b"gradient"), Some(body(64 << 10, 2))).expect("b is up");
    assert_eq!(b.message().await.2, "gradient");
    assert!(b.message().await.3 == Some(round));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_round_arrives_beside_gradients_that_never_end() {
    let (a, mut b, _shaper) = narrow_pair().await;
    let (to, gradient) = (b.me, body(1 << 10, 2));
    let send = || a.net.send(to, Lane::Gradient, Bytes::from_static(b"gradient"), Some(gradient.clone()));
    // The next one is sent before the one that arrived is acknowledged.
    for _ in 0..8 {
        send().expect("b is up");
    }
    b.message().await;
    a.net.send(b.me, Lane::Average, Bytes::from_static(b"round"), Some(body(32 << 20, 1))).expect("b is up");
    let arriving = async {
        while b.message().await.2 != "round" {
            send().expect("b is up");
        }
    };
    timeout(PATIENCE, arriving).await.expect("the round arrives in time");
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_is_turned_away_hears_why() {
    let (mut a, mut b) = pair(1, 2, false).await;
    a.net.turn_away(b.me, "the run is full");
    assert_eq!(b.lost(a.me).await, "closed by the peer: the run is full");
    assert_eq!(a.lost(b.me).await, "the run is full");
}

/// A node that ends reads no events any more, while others still talk to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_ends_although_nobody_reads_the_events() {
    let small = Limits { events: 8, ..Limits::default() };
    let mut a = Node::start(NetConfig { limits: small, ..config(1) }).await;
    let mut b = Node::start(config(2)).await;
    b.net.dial_address(a.address(false));
    a.up(b.me).await;
    b.up(a.me).await;
    while b.net.send(a.me, Lane::Control, Bytes::from_static(b"talk"), None).is_ok() {}
    eventually(|| a.net.stats().received[Lane::Control as usize] >= 4 * 9).await;
    let mut third = Node::start(config(3)).await;
    third.net.dial_address(a.address(false));
    third.up(a.me).await;
    let (net, _events) = a.unread();
    net.shutdown().await;
}

/// What was read whole gives its stream back to the sender: without a bound of ours a busy node would collect messages.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_does_not_read_slows_its_peers_down() {
    let small = Limits { events: 4, streams: 8, ..Limits::default() };
    let mut a = Node::start(NetConfig { limits: small, ..config(1) }).await;
    let mut b = Node::start(config(2)).await;
    b.net.dial_address(a.address(false));
    a.up(b.me).await;
    b.up(a.me).await;
    let part = body(1 << 10, 1);
    let mut sent = 0;
    while b.net.send(a.me, Lane::Gradient, Bytes::from_static(b"part"), Some(part.clone())).is_ok() {
        sent += 1;
    }
    // The lane is full and stays so: a has taken as many as it has readers and room for events, and no more.
    let taken = || a.net.stats().received[Lane::Gradient as usize] / (4 + part.len() as u64);
    eventually(|| taken() >= 8).await;
    for _ in 0..20 {
        exchange_one_way(&a, &mut b).await;
    }
    assert!(taken() <= 4 + 8, "{} of {sent} were taken", taken());
    for _ in 0..sent {
        a.message().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dial_that_reaches_another_peer_fails() {
    let (mut a, b) = (Node::start(config(1)).await, Node::start(config(2)).await);
    let wanted = Key::from_secret([3; 32]).peer();
    let mut address = b.address(false);
    address.pop();
    a.net.dial(wanted, vec![address]);
    let why = a
        .until(|event| match event {
            NetEvent::DialFailed { peer, why, .. } if *peer == Some(wanted) => Some(why.clone()),
            _ => None,
        })
        .await;
    assert!(why.contains(&b.me.to_string()), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dial_to_nobody_fails() {
    let mut a = Node::start(config(1)).await;
    a.net.dial(Key::from_secret([3; 32]).peer(), vec![]);
    a.until(|event| matches!(event, NetEvent::DialFailed { peer: Some(_), .. }).then_some(())).await;
    a.net.dial_address("/ip4/127.0.0.1/tcp/1".parse().expect("an address"));
    a.until(|event| matches!(event, NetEvent::DialFailed { peer: None, .. }).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn simultaneous_dials_end_with_one_connection_and_nothing_lost() {
    for round in 0..5 {
        let (mut a, mut b) = (Node::start(config(1)).await, Node::start(config(2)).await);
        a.net.dial_address(b.address(false));
        b.net.dial_address(a.address(false));
        a.up(b.me).await;
        b.up(a.me).await;
        exchange(&mut a, &mut b, 200).await;
        eventually(|| a.net.stats().connections == 1 && b.net.stats().connections == 1).await;
        exchange(&mut a, &mut b, 10).await;
        assert!(a.quiet() && b.quiet(), "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tcp_carries_messages_where_udp_does_not_pass() {
    let (mut a, mut b) = (Node::start(config(1)).await, Node::start(config(2)).await);
    a.net.dial_address(b.address(true));
    assert_eq!(a.up(b.me).await, Path::Tcp);
    assert_eq!(b.up(a.me).await, Path::Tcp);
    exchange(&mut a, &mut b, 50).await;
    let large = body(8 << 20, 3);
    a.net.send(b.me, Lane::Bulk, Bytes::from_static(b"large"), Some(large.clone())).expect("b is up");
    a.net.send(b.me, Lane::Gradient, Bytes::from_static(b"urgent"), Some(body(1 << 10, 4))).expect("b is up");
    let (first, second) = (b.message().await, b.message().await);
    assert_eq!((&first.2[..], &second.2[..]), (&b"urgent"[..], &b"large"[..]), "the urgent one overtakes");
    assert_eq!(second.3, Some(large));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_better_connection_takes_over_and_nothing_is_lost_or_reordered() {
    let (mut a, mut b) = pair(1, 2, true).await;
    let frame = |n: u32| Bytes::from(n.to_le_bytes().to_vec());
    let (mut sent, mut got, mut moved) = (0, 0, false);
    while got < 2000 {
        while sent < 2000 && sent < got + 200 {
            a.net.send(b.me, Lane::Control, frame(sent), None).expect("b is up");
            sent += 1;
        }
        if got == 500 {
            a.net.dial(b.me, vec![b.address(false)]);
        }
        let next = b.until(|event| match event {
            NetEvent::Message { frame, .. } => Some(Some(frame.clone())),
            NetEvent::Moved { path, .. } => {
                assert_eq!(*path, Path::Direct);
                Some(None)
            }
            _ => None,
        });
        match next.await {
            Some(arrived) => {
                assert_eq!(arrived, frame(got));
                got += 1;
            }
            None => moved = true,
        }
    }
    if !moved {
        b.until(|event| matches!(event, NetEvent::Moved { .. }).then_some(())).await;
    }
    exchange(&mut a, &mut b, 10).await;
    eventually(|| a.net.stats().connections == 1 && b.net.stats().connections == 1).await;
    assert!(a.quiet() && b.quiet());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_peer_in_use_is_noticed_by_its_silence() {
    let mut a = Node::start(config(1)).await;
    let address = a.address(false);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("threads");
    let me = a.me;
    let b = runtime.spawn(async move {
        let mut b = Node::start(config(2)).await;
        b.net.dial_address(address);
        b.up(me).await;
        b
    });
    let b = b.await.expect("b starts");
    a.up(b.me).await;
    a.net.active([b.me].into());
    exchange_one_way(&b, &mut a).await;
    // Its tasks are never run again, and nothing is said to anyone.
    runtime.shutdown_background();
    let why = a.lost(b.me).await;
    assert!(why.starts_with("silent for "), "{why}");
    std::mem::forget(b);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_peer_replaces_its_former_self_at_once() {
    let (mut a, b) = pair(1, 2, false).await;
    let mut again = Node::start(config(2)).await;
    again.net.dial_address(a.address(false));
    assert_eq!(a.lost(b.me).await, "the peer restarted");
    a.up(b.me).await;
    again.up(a.me).await;
    exchange(&mut a, &mut again, 10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_bodies_come_back_to_the_sender_on_every_kind_of_connection() {
    struct Picky;
    impl Admit for Picky {
        fn admit(&self, _: PeerId, _: Lane, frame: &[u8], _: u64) -> Verdict {
            match frame {
                b"take" => Verdict::Take,
                _ => Verdict::Refuse { code: Code::Busy, severity: None },
            }
        }
    }
    for tcp in [false, true] {
        let mut a = Node::start(config(1)).await;
        let mut b = Node::start_with(config(2), Arc::new(Picky)).await;
        a.net.dial_address(b.address(tcp));
        a.up(b.me).await;
        for len in [1, 8 << 20] {
            a.net.send(b.me, Lane::Average, Bytes::from_static(b"leave"), Some(body(len, 1))).expect("b is up");
            a.net.send(b.me, Lane::Average, Bytes::from_static(b"take"), Some(body(len, 2))).expect("b is up");
            let refused = a.until(|event| match event {
                NetEvent::Refused { peer, frame, code, .. } => Some((*peer, frame.clone(), *code)),
                _ => None,
            });
            assert_eq!(refused.await, (b.me, Bytes::from_static(b"leave"), Code::Busy));
            let (_, _, frame, got) = b.message().await;
            assert_eq!((&frame[..], got), (&b"take"[..], Some(body(len, 2))));
        }
    }
}

/// Takes what its store has room for, as a node does.
struct Shelf(Blobs);

impl Admit for Shelf {
    fn admit(&self, _: PeerId, _: Lane, _: &[u8], len: u64) -> Verdict {
        match self.0.has_room(len, Room::Work) {
            true => Verdict::Take,
            false => Verdict::Refuse { code: Code::Busy, severity: None },
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_store_is_busy_and_holds_no_more_until_something_is_released() {
    const PART: usize = 256 << 10;
    for tcp in [false, true] {
        let blobs = Blobs::new(4 * PART as u64, 0);
        let mut a = Node::start(config(1)).await;
        let mut b = Node::start_with(config(2), Arc::new(Shelf(blobs.clone()))).await;
        a.net.dial_address(b.address(tcp));
        a.up(b.me).await;
        b.up(a.me).await;
        let mut held = Vec::new();
        for _ in 0..4 {
            a.net.send(b.me, Lane::Activation, Bytes::from_static(b"part"), Some(body(PART, 1))).expect("b is up");
            held.push(blobs.put(b.message().await.3.expect("a body"), Kind::Work));
        }
        for _ in 0..3 {
            a.net.send(b.me, Lane::Activation, Bytes::from_static(b"part"), Some(body(PART, 1))).expect("b is up");
            let code = a.until(|event| match event {
                NetEvent::Refused { code, .. } => Some(*code),
                _ => None,
            });
            assert_eq!(code.await, Code::Busy);
        }
        eventually(|| b.net.stats().receiving == 0).await;
        assert_eq!(blobs.bytes(), 4 * PART as u64);
        // What needs no room goes on, and what was released is room.
        exchange_one_way(&a, &mut b).await;
        blobs.release(held.remove(0)).expect("it is held");
        a.net.send(b.me, Lane::Activation, Bytes::from_static(b"part"), Some(body(PART, 2))).expect("b is up");
        assert_eq!(b.message().await.3, Some(body(PART, 2)));
    }
}

/// A body whose owner sees when nobody holds it any more.
struct Owned(#[allow(dead_code)] Arc<()>, Vec<u8>);

impl AsRef<[u8]> for Owned {
    fn as_ref(&self) -> &[u8] {
        &self.1
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_or_cut_off_is_let_go_by_its_sender() {
    for tcp in [false, true] {
        let owner = Arc::new(());
        let body = Bytes::from_owner(Owned(owner.clone(), vec![7; 8 << 20]));
        let mut a = Node::start(config(1)).await;
        let mut b = Node::start_with(config(2), Arc::new(Shelf(Blobs::new(0, 0)))).await;
        a.net.dial_address(b.address(tcp));
        a.up(b.me).await;
        b.up(a.me).await;
        a.net.send(b.me, Lane::Activation, Bytes::from_static(b"part"), Some(body)).expect("b is up");
        a.until(|event| matches!(event, NetEvent::Refused { .. }).then_some(())).await;
        eventually(|| Arc::strong_count(&owner) == 1).await;
        // Nobody reads at the other end: the lane fills, and is emptied when the connection ends.
        let mut c = Node::start(NetConfig { limits: Limits { events: 4, ..Limits::default() }, ..config(3) }).await;
        a.net.dial_address(c.address(tcp));
        a.up(c.me).await;
        c.up(a.me).await;
        let body = Bytes::from_owner(Owned(owner.clone(), vec![7; 8 << 20]));
        while a.net.send(c.me, Lane::Activation, Bytes::from_static(b"part"), Some(body.clone())).is_ok() {}
        drop(body);
        assert_eq!(Arc::strong_count(&owner), 2);
        a.net.hangup(c.me);
        a.lost(c.me).await;
        eventually(|| Arc::strong_count(&owner) == 1).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_lane_is_congested_and_then_writable() {
    let (mut a, mut b) = pair(1, 2, false).await;
    // Made once: a sender that is slower than the wire never finds the lane full.
    let part = body(8 << 20, 1);
    let mut sent = 0;
    let refused = loop {
        match a.net.send(b.me, Lane::Bulk, Bytes::from_static(b"part"), Some(part.clone())) {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(refused, SendError::Congested);
    assert_eq!(a.net.send(b.me, Lane::Control, Bytes::from_static(b"urgent"), None), Ok(()));
    let mut urgent = false;
    for _ in 0..=sent {
        urgent |= b.message().await.2 == "urgent";
    }
    assert!(urgent);
    a.until(|event| matches!(event, NetEvent::Writable { lane: Lane::Bulk, .. }).then_some(())).await;
    assert_eq!(a.net.send(b.me, Lane::Bulk, Bytes::from_static(b"part"), Some(body(1, 1))), Ok(()));
    let nobody = Key::from_secret([9; 32]).peer();
    assert_eq!(a.net.send(nobody, Lane::Control, Bytes::new(), None), Err(SendError::NotConnected));
    let huge = vec![0; 1 << 17].into();
    assert_eq!(a.net.send(b.me, Lane::Control, huge, None), Err(SendError::TooLarge));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_carries_messages_to_a_peer_that_nobody_can_reach() {
    let relay = Node::start(NetConfig { relay_server: true, ..config(1) }).await;
    let bootstrap = vec![relay.address(false)];
    let mut hidden = Node::start(NetConfig { listen: vec![], bootstrap: bootstrap.clone(), ..config(2) }).await;
    let circuit = hidden
        .until(|event| match event {
            NetEvent::Listening { address } => Some(address.clone()),
            _ => None,
        })
        .await;
    assert!(circuit.to_string().contains("p2p-circuit"), "{circuit}");
    let addresses = hidden.net.addresses();
    // One for each transport by which it is connected to the relay, and no other.
    let circuits = addresses.iter().filter(|address| address.to_string().contains("p2p-circuit"));
    assert!(!addresses.is_empty() && circuits.count() == addresses.len(), "{addresses:?}");
    // It has no port either, so that no hole can be punched.
    let mut a = Node::start(NetConfig { listen: vec![], ..config(3) }).await;
    a.net.dial_address(hidden.net.addresses().remove(0));
    assert_eq!(a.up(hidden.me).await, Path::Relay);
    assert_eq!(hidden.up(a.me).await, Path::Relay);
    exchange(&mut a, &mut hidden, 20).await;
    let large = body(8 << 20, 5);
    a.net.send(hidden.me, Lane::Bulk, Bytes::from_static(b"large"), Some(large.clone())).expect("it is up");
    assert_eq!(hidden.message().await.3, Some(large));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_wants_no_relay_asks_none() {
    let relay = Node::start(NetConfig { relay_server: true, ..config(1) }).await;
    let bootstrap = vec![relay.address(false)];
    let alone = NetConfig { listen: vec![], bootstrap: bootstrap.clone(), relay_use: false, ..config(2) };
    let mut proud = Node::start(alone).await;
    proud.up(relay.me).await;
    // Another one that came later has its circuit by then: the relay was known, and free.
    let mut hidden = Node::start(NetConfig { listen: vec![], bootstrap, ..config(3) }).await;
    hidden.until(|event| matches!(event, NetEvent::Listening { .. }).then_some(())).await;
    assert!(proud.net.addresses().is_empty() && !hidden.net.addresses().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_announced_address_is_told_to_others_before_those_that_are_found() {
    let announce = vec!["/ip4/203.0.113.7/udp/4747/quic-v1".parse().unwrap()];
    let a = Node::start(NetConfig { announce, ..config(1) }).await;
    assert!(a.net.addresses()[0].to_string().starts_with("/ip4/203.0.113.7/udp/4747/quic-v1/p2p/"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixteen_peers_find_who_provides_a_key() {
    let first = Node::start(config(1)).await;
    let bootstrap = vec![first.address(false)];
    let mut nodes = vec![first];
    for seed in 2..=16 {
        nodes.push(Node::start(NetConfig { bootstrap: bootstrap.clone(), ..config(seed) }).await);
    }
    let key = [7; 32];
    let provider = nodes[15].me;
    nodes[15].net.provide(key);
    for asking in [1, 8] {
        let found = nodes[asking].find(key, provider).await;
        assert!(!found.is_empty(), "with its addresses");
        // The table may have brought them together already.
        if !nodes[asking].is_up(provider) {
            nodes[asking].net.dial(provider, found);
            nodes[asking].up(provider).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stock_libp2p_peer_can_dial_and_be_dialled() {
    let mut ours = Node::start(config(1)).await;
    let me = libp2p::identity::Keypair::ed25519_from_bytes([1; 32]).expect("32 bytes").public().to_peer_id();
    for ours_dials in [false, true] {
        let mut stock = stock_peer();
        if !ours_dials {
            stock.dial(ours.address(false)).expect("an address");
        }
        stock.listen_on("/ip4/127.0.0.1/udp/0/quic-v1".parse().expect("an address")).expect("loopback is free");
        let spoken = async {
            let (mut identified, mut pinged) = (false, false);
            while !(identified && pinged) {
                match stock.select_next_some().await {
                    SwarmEvent::NewListenAddr { address, .. } if ours_dials => ours.net.dial_address(address),
                    SwarmEvent::Behaviour(StockEvent::Identify(identify::Event::Received {
                        peer_id, info, ..
                    })) => {
                        assert_eq!((peer_id, info.protocol_version.as_str()), (me, "/skein/1"));
                        identified = true;
                    }
                    SwarmEvent::Behaviour(StockEvent::Ping(ping::Event { result: Ok(_), .. })) => pinged = true,
                    _ => {}
                }
            }
        };
        timeout(PATIENCE, spoken).await.expect("they speak in time");
    }
    assert!(ours.net.stats().peers.is_empty(), "it speaks no Skein, so it is not up");
    assert!(ours.quiet());
}

#[derive(NetworkBehaviour)]
#[behaviour(to_swarm = "StockEvent")]
struct Stock {
    identify: identify::Behaviour,
    ping: ping::Behaviour,
}

#[allow(clippy::large_enum_variant, reason = "a few events of one test")]
enum StockEvent {
    Identify(identify::Event),
    Ping(ping::Event),
}

impl From<identify::Event> for StockEvent {
    fn from(event: identify::Event) -> Self {
        StockEvent::Identify(event)
    }
}

impl From<ping::Event> for StockEvent {
    fn from(event: ping::Event) -> Self {
        StockEvent::Ping(event)
    }
}

fn stock_peer() -> Swarm<Stock> {
    SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_quic()
        .with_behaviour(|key| Stock {
            identify: identify::Behaviour::new(identify::Config::new("/stock/1".to_string(), key.public())),
            ping: ping::Behaviour::default(),
        })
        .expect("a behaviour that is made cannot fail")
        .build()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_is_taken_is_an_error_of_the_start() {
    let first = Node::start(config(1)).await;
    let address = first.address(false).to_string();
    let port = address.split('/').nth(4).and_then(|port| port.parse().ok()).expect("a port");
    match net::start(NetConfig { port, ..config(2) }, Arc::new(TakeAll)).await {
        Err(NetError::PortTaken { port: taken }) => assert_eq!(taken, port),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("two peers on one port"),
    }
}
