//! What happens to the bytes of a body between the node that sends it and the node that gets it: how often they are copied, and
//! how soon they are let go. A binary of its own, since it counts allocations of the whole process; one test at a time.

#[allow(dead_code, reason = "the peers are those of the network's tests")]
#[path = "../net/swarm.rs"]
mod swarm;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use skein::net::{Admit, Code, NetEvent, Verdict};
use skein_protocol::{Lane, PeerId};

use swarm::{Node, body, config, eventually, exchange, pair};

const MIB: usize = 1 << 20;
const FRAME: Bytes = Bytes::from_static(b"frame");

/// Counts what is taken in pieces of at least a MiB: whoever copies a body of many MiB takes such a piece, and nothing else does.
struct Counting;

static PIECES: AtomicUsize = AtomicUsize::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);

fn count(size: usize) {
    if size >= MIB {
        PIECES.fetch_add(1, Ordering::SeqCst);
        BYTES.fetch_add(size as u64, Ordering::SeqCst);
    }
}

// SAFETY: all is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: as the caller promised.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: as the caller promised.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes that know whether anybody still holds them.
struct Owned {
    bytes: Bytes,
    _held: Arc<()>,
}

impl AsRef<[u8]> for Owned {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

fn owned(bytes: &Bytes, held: &Arc<()>) -> Bytes {
    Bytes::from_owner(Owned { bytes: bytes.clone(), _held: held.clone() })
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

#[test]
fn a_body_is_copied_once_out_of_its_packets_and_nowhere_else() {
    let _alone = alone();
    runtime().block_on(async {
        let (mut a, mut b) = pair(1, 2, false).await;
        exchange(&mut a, &mut b, 10).await;
        let whole = body(24 * MIB, 1);
        let held = Arc::new(());
        let given = owned(&whole, &held);
        let (pieces, bytes) = (PIECES.load(Ordering::SeqCst), BYTES.load(Ordering::SeqCst));
        a.net.send(b.me, Lane::Average, FRAME, Some(given)).expect("b is up");
        let arrived = b.message().await.3;
        let taken = (PIECES.load(Ordering::SeqCst) - pieces, BYTES.load(Ordering::SeqCst) - bytes);
        assert!(arrived.as_ref() == Some(&whole));
        assert_eq!(taken, (1, whole.len() as u64), "the receiver's buffer, and no copy of the sender's");
        eventually(|| Arc::strong_count(&held) == 1).await;
    });
}

#[test]
fn what_waits_for_a_peer_is_let_go_when_the_peer_is() {
    let _alone = alone();
    runtime().block_on(async {
        let (a, b) = pair(1, 2, false).await;
        // b's node reads nothing, so that most of it still waits, in the lane and on its way.
        let (whole, held) = (body(8 * MIB, 1), Arc::new(()));
        while a.net.send(b.me, Lane::Bulk, FRAME, Some(owned(&whole, &held))).is_ok() {}
        assert!(Arc::strong_count(&held) > 4);
        a.net.hangup(b.me);
        eventually(|| Arc::strong_count(&held) == 1).await;
    });
}

struct RefuseAll;

impl Admit for RefuseAll {
    fn admit(&self, _: PeerId, _: Lane, _: &[u8], _: u64) -> Verdict {
        Verdict::Refuse { code: Code::Busy, severity: None }
    }
}

#[test]
fn a_body_that_is_refused_is_let_go_before_it_was_sent() {
    let _alone = alone();
    runtime().block_on(async {
        let mut a = Node::start(config(1)).await;
        let mut b = Node::start_with(config(2), Arc::new(RefuseAll)).await;
        a.net.dial_address(b.address(false));
        a.up(b.me).await;
        b.up(a.me).await;
        let (whole, held) = (body(60 * MIB, 1), Arc::new(()));
        a.net.send(b.me, Lane::Bulk, FRAME, Some(owned(&whole, &held))).expect("b is up");
        a.until(|event| matches!(event, NetEvent::Refused { lane: Lane::Bulk, code: Code::Busy, .. }).then_some(()))
            .await;
        eventually(|| Arc::strong_count(&held) == 1).await;
        // The lane is free for what is wanted.
        let next = Arc::new(());
        a.net.send(b.me, Lane::Bulk, FRAME, Some(owned(&whole, &next))).expect("b is up");
        a.until(|event| matches!(event, NetEvent::Refused { .. }).then_some(())).await;
    });
}
