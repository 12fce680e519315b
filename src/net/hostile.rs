//! What a peer that does not play by the rules gets from us: nothing allocated, a fault noted, in the end a ban. And one that
//! changes its mind: what was taken for its message, back.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use bytes::Bytes;
use skein_protocol::{Lane, PeerId, event::Severity, key::Key};
use tokio::sync::mpsc;

use super::{
    Admit, Code, Limits, Net, NetConfig, NetEvent, Verdict,
    data::wire::{self, GREETING_LEN, Greeting, Head, Kind, Refusal},
    quic, start,
};

/// Only bounds how long a failing test hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Refuses every body, as a node does that was not asked for one.
struct RefuseAll;

impl Admit for RefuseAll {
    fn admit(&self, _: PeerId, _: Lane, _: &[u8], _: u64) -> Verdict {
        Verdict::Refuse { code: Code::Stale, severity: Some(Severity::Odd) }
    }
}

struct TakeAll;

impl Admit for TakeAll {
    fn admit(&self, _: PeerId, _: Lane, _: &[u8], _: u64) -> Verdict {
        Verdict::Take
    }
}

struct Victim {
    net: Net,
    events: mpsc::Receiver<NetEvent>,
}

impl Victim {
    async fn start() -> Victim {
        Victim::start_with(Limits::default(), Arc::new(RefuseAll)).await
    }

    async fn start_with(limits: Limits, admit: Arc<dyn Admit>) -> Victim {
        let config = NetConfig { limits, ..NetConfig::loopback(Key::from_secret([1; 32])) };
        let (net, mut events) = start(config, admit).await.expect("loopback is free");
        while !net.addresses().iter().any(|address| quic::to_socket(address).is_some()) {
            events.recv().await.expect("the network runs");
        }
        Victim { net, events }
    }

    /// A connection of the peer with this seed, as it would be after the handshake.
    async fn connection(&self, seed: u8) -> quinn::Connection {
        let (client, _) = quic::plain(&Key::from_secret([seed; 32])).expect("a certificate");
        let to = self.net.addresses().iter().find_map(quic::to_socket).expect("it listens").0;
        let endpoint = quinn::Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).expect("a socket");
        endpoint.connect_with(client, to, "skein").expect("an address").await.expect("a handshake")
    }

    async fn lost(&mut self) -> String {
        loop {
            if let NetEvent::Lost { why, .. } = self.events.recv().await.expect("the network runs") {
                return why;
            }
        }
    }

    /// Waits until so many bytes are taken for bodies that are being read.
    async fn receives(&self, wanted: impl Fn(u64) -> bool) {
        let looking = async {
            while !wanted(self.net.stats().receiving) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, looking).await.expect("it comes to hold in time");
    }

    /// The next message, but for what else happens before it.
    async fn message(&mut self) -> (Lane, Bytes) {
        let coming = async {
            loop {
                match self.events.recv().await.expect("the network runs") {
                    NetEvent::Message { lane, frame, .. } => return (lane, frame),
                    NetEvent::Lost { why, .. } => panic!("{why}"),
                    _ => {}
                }
            }
        };
        tokio::time::timeout(PATIENCE, coming).await.expect("it comes in time")
    }

    async fn up(&mut self) {
        while !matches!(self.events.recv().await, Some(NetEvent::Up { .. })) {}
    }
}

/// The control stream after an honest greeting.
async fn greet(connection: &quinn::Connection) -> quinn::SendStream {
    let (control, mut theirs) = greet_both(connection, 1).await;
    // The control stream of the other side stays open for as long as the connection does.
    tokio::spawn(async move { while let Ok(Some(_)) = theirs.read_chunk(4096, true).await {} });
    control
}

/// The control streams of both sides.
async fn greet_both(connection: &quinn::Connection, serial: u64) -> (quinn::SendStream, quinn::RecvStream) {
    let mut control = connection.open_uni().await.expect("one stream is granted");
    let greeting = Greeting { instance: 7, serial };
    control.write_all(&greeting.encode()).await.expect("an open stream");
    let mut theirs = connection.accept_uni().await.expect("a control stream");
    let mut bytes = [0; GREETING_LEN];
    theirs.read_exact(&mut bytes).await.expect("a greeting");
    assert!(Greeting::decode(&bytes).is_some());
    (control, theirs)
}

/// The next record of this kind on a control stream; those before it are skipped.
async fn record(control: &mut quinn::RecvStream, wanted: Kind) -> Vec<u8> {
    let coming = async {
        loop {
            let mut head = [0; wire::RECORD_HEAD_LEN];
            control.read_exact(&mut head).await.expect("the connection stays");
            let (kind, len) = wire::read_record_head(head);
            let mut payload = vec![0; len as usize];
            control.read_exact(&mut payload).await.expect("the connection stays");
            if kind == Some(wanted) {
                return payload;
            }
        }
    };
    tokio::time::timeout(PATIENCE, coming).await.expect("it comes in time")
}

/// Begins a message with a body of `len` bytes, and sends `bytes` of it.
async fn begin(connection: &quinn::Connection, lane: Lane, len: u64, bytes: usize) -> quinn::SendStream {
    let head = Head { lane, frame_len: 5, body_len: len };
    let mut stream = connection.open_uni().await.expect("a stream is granted");
    stream.write_all(&[&head.encode()[..], b"frame", &vec![7; bytes]].concat()).await.expect("an open stream");
    stream
}

/// Sends `head` and `rest` as a message and returns the code with which it was stopped.
async fn stopped(connection: &quinn::Connection, head: Head, rest: &[u8]) -> Option<Code> {
    let mut stream = connection.open_uni().await.expect("a stream is granted");
    stream.write_all(&[&head.encode(), rest].concat()).await.expect("an open stream");
    stream.stopped().await.expect("the connection stays").map(|code| Code::from_number(code.into_inner()))
}

fn code_of(closed: quinn::ConnectionError) -> Code {
    match closed {
        quinn::ConnectionError::ApplicationClosed(close) => Code::from_number(close.error_code.into_inner()),
        other => panic!("closed for another reason: {other}"),
    }
}

#[tokio::test]
async fn sizes_beyond_the_limits_are_refused_by_their_head_alone() {
    let mut victim = Victim::start().await;
    let connection = victim.connection(2).await;
    let _control = greet(&connection).await;
    victim.up().await;
    let head = Head { lane: Lane::Activation, frame_len: 4, body_len: u64::MAX };
    assert_eq!(stopped(&connection, head, b"").await, Some(Code::TooLarge));
    let head = Head { lane: Lane::Activation, frame_len: u32::MAX, body_len: 0 };
    assert_eq!(stopped(&connection, head, b"").await, Some(Code::TooLarge));
    assert_eq!(victim.net.stats().faults, 2);
    // The third one is one too many.
    let head = Head { lane: Lane::Activation, frame_len: 4, body_len: 1 << 60 };
    let mut stream = connection.open_uni().await.expect("a stream is granted");
    stream.write_all(&head.encode()).await.expect("an open stream");
    connection.closed().await;
    assert_eq!(victim.lost().await, "banned");
    let again = victim.connection(2).await;
    again.closed().await;
}

#[tokio::test]
async fn a_body_that_nobody_wants_is_refused_before_it_is_sent() {
    let mut victim = Victim::start().await;
    let connection = victim.connection(2).await;
    let _control = greet(&connection).await;
    victim.up().await;
    let head = Head { lane: Lane::Gradient, frame_len: 5, body_len: 1 << 20 };
    assert_eq!(stopped(&connection, head, b"frame").await, Some(Code::Stale));
    assert_eq!((victim.net.stats().refused, victim.net.stats().faults), (1, 1));
}

#[tokio::test]
async fn a_message_that_is_cut_off_gives_its_memory_back_and_the_next_one_arrives() {
    const LEN: usize = 256 << 10;
    let mut victim = Victim::start_with(Limits::default(), Arc::new(TakeAll)).await;
    let connection = victim.connection(2).await;
    let _control = greet(&connection).await;
    victim.up().await;
    let mut stream = begin(&connection, Lane::Gradient, LEN as u64, LEN / 2).await;
    victim.receives(|bytes| bytes >= LEN as u64).await;
    stream.reset(Code::Cancelled.into()).expect("it is open");
    victim.receives(|bytes| bytes == 0).await;
    begin(&connection, Lane::Gradient, LEN as u64, LEN).await.finish().expect("it is open");
    match victim.events.recv().await {
        Some(NetEvent::Message { body: Some(body), room, .. }) => {
            assert_eq!(body.len(), LEN);
            assert_eq!(victim.net.stats().receiving, LEN as u64, "until the node counts it elsewhere");
            drop(room);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(victim.net.stats().receiving, 0);
    assert_eq!(victim.net.stats().faults, 0, "whoever changes its mind did nothing wrong");
}

#[tokio::test]
async fn a_body_that_claims_all_room_and_hardly_comes_keeps_no_gradient_out() {
    const TOTAL: u64 = 4 << 20;
    let limits = Limits { receiving_total: TOTAL, ..Limits::default() };
    let mut victim = Victim::start_with(limits, Arc::new(TakeAll)).await;
    let claims = victim.connection(2).await;
    let _control = greet(&claims).await;
    victim.up().await;
    let _claimed = begin(&claims, Lane::Average, TOTAL, 1).await;
    victim.receives(|bytes| bytes == TOTAL / 4 * 3).await;
    let works = victim.connection(3).await;
    let _control = greet(&works).await;
    victim.up().await;
    begin(&works, Lane::Gradient, 1000, 1000).await.finish().expect("it is open");
    assert_eq!(victim.message().await.0, Lane::Gradient);
}

#[tokio::test]
async fn whatever_is_not_read_to_its_end_is_refused_in_words_too() {
    let mut victim = Victim::start_with(Limits::default(), Arc::new(TakeAll)).await;
    let connection = victim.connection(2).await;
    let (_control, mut theirs) = greet_both(&connection, 1).await;
    victim.up().await;
    let mut stream = begin(&connection, Lane::Average, 1, 2).await;
    let number = stream.id().index();
    stream.finish().expect("it is open");
    let refusal = Refusal::decode(&record(&mut theirs, Kind::Refused(Lane::Control)).await);
    assert_eq!(refusal, Some(Refusal { number, code: Code::Malformed }));
}

/// A body may take minutes; the frames of the connection that is used after this one's do not wait for it.
#[tokio::test]
async fn frames_go_on_over_a_better_connection_while_bodies_are_on_their_way_over_the_former() {
    let mut victim = Victim::start_with(Limits::default(), Arc::new(TakeAll)).await;
    let former = victim.connection(2).await;
    let (mut control, mut theirs) = greet_both(&former, 1).await;
    victim.up().await;
    let peer = Key::from_secret([2; 32]).peer();
    let segment = |number| wire::Segment { number, broken: false }.encode();
    write(&mut control, Kind::Segment, &segment(0)).await;
    write(&mut control, Kind::Frame, b"first").await;
    let _body = begin(&former, Lane::Bulk, 100, 1).await;
    // One of theirs, which nobody here reads.
    let round = Bytes::from(vec![7; 1 << 20]);
    victim.net.send(peer, Lane::Average, Bytes::from_static(b"frame"), Some(round)).expect("it is up");
    let better = victim.connection(2).await;
    let (mut next, _theirs) = greet_both(&better, 2).await;
    assert_eq!(record(&mut theirs, Kind::LastFrame).await, b"", "they say that no more frames come on the former");
    write(&mut next, Kind::Segment, &segment(1)).await;
    write(&mut next, Kind::Frame, b"second").await;
    write(&mut control, Kind::LastFrame, b"").await;
    for wanted in ["first", "second"] {
        assert_eq!(victim.message().await.1, wanted);
    }
}

async fn write(control: &mut quinn::SendStream, kind: Kind, payload: &[u8]) {
    let record = [&wire::record_head(kind, payload.len() as u32)[..], payload].concat();
    control.write_all(&record).await.expect("an open stream");
}

#[tokio::test]
async fn a_record_larger_than_a_frame_ends_the_connection() {
    let mut victim = Victim::start().await;
    let connection = victim.connection(2).await;
    let mut control = greet(&connection).await;
    victim.up().await;
    control.write_all(&wire::record_head(Kind::Frame, u32::MAX)).await.expect("an open stream");
    assert_eq!(code_of(connection.closed().await), Code::TooLarge);
    victim.lost().await;
    assert_eq!(victim.net.stats().faults, 1);
}

#[tokio::test]
async fn messages_and_acknowledgements_that_do_not_belong_there_end_the_connection() {
    let mut victim = Victim::start().await;
    for (seed, kind, payload) in [(2, Kind::Start(Lane::Bulk), 20), (3, Kind::EndRead, 0), (4, Kind::Ping, 7)] {
        let connection = victim.connection(seed).await;
        let mut control = greet(&connection).await;
        victim.up().await;
        let record = [&wire::record_head(kind, payload)[..], &vec![0; payload as usize]].concat();
        control.write_all(&record).await.expect("an open stream");
        assert_eq!(code_of(connection.closed().await), Code::Malformed);
        victim.lost().await;
    }
    assert_eq!(victim.net.stats().faults, 3);
}

#[tokio::test]
async fn records_of_a_later_version_are_skipped() {
    let mut victim = Victim::start().await;
    let connection = victim.connection(2).await;
    let mut control = greet(&connection).await;
    victim.up().await;
    control.write_all(&[0xee, 3, 0, 0, 0, 1, 2, 3]).await.expect("an open stream");
    let frame = Bytes::from_static(b"hello");
    control.write_all(&wire::record_head(Kind::Frame, 5)).await.expect("an open stream");
    control.write_all(&frame).await.expect("an open stream");
    match victim.events.recv().await {
        Some(NetEvent::Message { frame: got, .. }) => assert_eq!(got, frame),
        other => panic!("{other:?}"),
    }
    assert_eq!(victim.net.stats().faults, 0);
}

#[tokio::test]
async fn a_greeting_of_another_program_is_turned_away() {
    let victim = Victim::start().await;
    let connection = victim.connection(2).await;
    let mut control = connection.open_uni().await.expect("one stream is granted");
    control.write_all(b"GET / HTTP/1.1\r\n\r\n\r\n").await.expect("an open stream");
    assert_eq!(code_of(connection.closed().await), Code::Malformed);
    assert_eq!(victim.net.stats().faults, 1);
    assert!(victim.net.stats().peers.is_empty());
}

#[tokio::test]
async fn a_stranger_gets_few_streams_and_a_small_window() {
    let mut victim = Victim::start().await;
    let connection = victim.connection(2).await;
    let _control = greet(&connection).await;
    victim.up().await;
    let limits = Limits::default();
    let mut open = Vec::new();
    for _ in 1..limits.streams_new {
        let mut stream = connection.open_uni().await.expect("a stream is granted");
        // The head of a message that never goes on.
        stream.write_all(&[Lane::Bulk as u8]).await.expect("an open stream");
        open.push(stream);
    }
    assert!(futures::poll!(std::pin::pin!(connection.open_uni())).is_pending());
}
