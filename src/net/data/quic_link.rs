//! One QUIC connection as a carrier of messages: a control stream each way, and a stream of its own for every other message.
//! In: a connection that libp2p accepted. Out: what arrived, to the node; that it ended, to the hub.
//! Limits are checked before anything is allocated. Knows no frame's content.

use std::{
    collections::VecDeque,
    future::pending,
    sync::{Arc, Mutex, atomic::Ordering},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, stream::FuturesUnordered};
use skein_protocol::{Lane, PeerId, event::Severity};
use tokio::{sync::OwnedSemaphorePermit, task::JoinSet, time::timeout};

use super::{
    Happened, Link, Peering, Shared,
    conversation::{Conversation, End, Lanes, Reply},
    courtesy::{self, LOOK},
    flying::Flying,
    granted::Granted,
    link::{Path, Rank, Rtt},
    lock,
    outbox::Message,
    pace::Stretch,
    silence::IN_USE,
    turns::Turns,
    units,
    wire::{GREETING_LEN, Greeting, HEAD_LEN, Head, Kind, Refusal},
};
use crate::net::{
    NetEvent, Verdict, address, congestion,
    gate::{self, Code},
    quic,
};

/// A stream that says nothing for this long holds memory for nothing.
const STALLED: Duration = Duration::from_secs(20);
/// Bytes a second below which a body is given up: what trickles holds room that others wait for.
const SLOWEST: u64 = 16 << 10;
/// Nothing in the protocol waits longer for a body, however large.
const LONGEST: Duration = Duration::from_secs(300);
/// How long messages that arrived whole may take to reach the node after their connection ended.
const AFTERWARDS: Duration = Duration::from_secs(5);
/// Messages whose refusal can still be told to the node: more than can be on their way.
const REMEMBERED: usize = 256;
/// A stretch of sending is measured after this, though it goes on.
const PACED: Duration = Duration::from_secs(2);
/// Pieces of a body that are taken from quinn at one time: a packet each.
const CHUNKS: usize = 64;
/// Heads of messages go before bodies of every lane.
const HEAD_PRIORITY: i32 = i32::MAX - 1;
/// The control stream stands above every lane.
const CONTROL_PRIORITY: i32 = i32::MAX;

/// Serves a connection to its end.
pub async fn run(shared: Arc<Shared>, peer: libp2p::PeerId, connection: quinn::Connection) {
    let Some(peer) = address::peer_of(&peer) else {
        return connection.close(Code::NotWanted.into(), b"not an Ed25519 key");
    };
    // A stock libp2p peer never opens such a stream, nor lets us: it stays without messages until libp2p closes it.
    let serial = shared.next_serial();
    let greeted = tokio::select! {
        greeted = greet(&shared, &connection, serial) => greeted,
        _ = connection.closed() => None,
    };
    let Some((mut writer, mut reader, theirs)) = greeted else { return };
    let Some(theirs) = theirs else {
        shared.penalise(peer, Severity::Wrong, "a greeting that is not ours");
        return connection.close(Code::Malformed.into(), b"not a greeting");
    };
    let dialled_by_me = connection.side().is_client();
    let path = if lock(&shared.relayed).contains(&peer) { Path::Punched } else { Path::Direct };
    let serial = if dialled_by_me { serial } else { theirs.serial };
    let rank = Rank::new(path, shared.me, peer, dialled_by_me, serial);
    let at = quic::to_multiaddr(connection.remote_address()).to_string();
    let rtt = Rtt::Quic(connection.clone());
    let link = Arc::new(Link::new(shared.next_serial(), peer, theirs.instance, rank, path, at, rtt));
    let Some(peering) = shared.enter(&link).await else {
        return connection.close(Code::NotWanted.into(), b"not wanted");
    };
    let (conversation, mut replies) = Conversation::new(shared, peering, link);
    let wire = Arc::new(Wire {
        conversation,
        connection,
        granted: Granted::default(),
        sent: Mutex::default(),
        turns: Turns::default(),
    });
    let conversation = &wire.conversation;
    let (mut readers, mut refusals) = (JoinSet::new(), Refusals { wire: &wire });
    let mut acknowledged = 0;
    let alive = || {
        let frames = wire.connection.stats().frame_rx;
        let now = frames.acks + frames.stream;
        std::mem::replace(&mut acknowledged, now) != now
    };
    // Reading stands first and the end of the connection last, so that what has arrived is read before the end is seen.
    let end = tokio::select! {
        biased;
        end = conversation.ordered_to_close() => end,
        end = conversation.read(&mut reader, &mut refusals) => end,
        end = receive(&wire, &mut readers) => end,
        error = conversation.write(&mut writer, &mut replies) => broken(&wire.connection, error).await,
        end = send(&wire) => end,
        // At rest quinn's own keep-alive watches.
        end = conversation.silence(|in_use| in_use.then_some(IN_USE), alive) => end,
        end = conversation.over() => end,
    };
    let end = wire.judge(end);
    wire.connection.close(end.code.into(), end.why.as_bytes());
    // Whatever has arrived whole is still delivered; nothing is read after the hub knows of the end.
    let _ = timeout(AFTERWARDS, async { while readers.join_next().await.is_some() {} }).await;
    readers.shutdown().await;
    wire.granted.give_back(&conversation.shared);
    conversation.end_segment();
    let ended = Happened::Ended {
        peer,
        link: conversation.link.id,
        clean: end.clean,
        undelivered: conversation.undelivered(),
        why: end.why,
    };
    conversation.shared.happened(ended).await;
}

struct Wire {
    conversation: Conversation,
    connection: quinn::Connection,
    granted: Granted,
    /// The messages sent last, by their streams: a refusal may come when all was acknowledged.
    sent: Mutex<VecDeque<(u64, Lane, Bytes)>>,
    turns: Turns,
}

impl Wire {
    /// The end as it looks when the connection's own reason is known.
    fn judge(&self, end: End) -> End {
        let ending = *self.conversation.ending.borrow();
        match self.connection.close_reason() {
            Some(quinn::ConnectionError::ApplicationClosed(close)) => {
                let code = Code::from_number(close.error_code.into_inner());
                let clean = code == Code::Done && ending.end_read && ending.they_ended;
                End { code: Code::Done, why: closed_words(code, &close.reason), clean }
            }
            Some(quinn::ConnectionError::LocallyClosed) => End { why: "closed here".to_string(), ..end },
            Some(error) => End::new(Code::Done, error.to_string()),
            None => end,
        }
    }
}

fn closed_words(code: Code, reason: &[u8]) -> String {
    let reason: String = String::from_utf8_lossy(reason).chars().filter(|c| !c.is_control()).take(80).collect();
    if reason.is_empty() {
        format!("closed by the peer: {}", code.words())
    } else {
        format!("closed by the peer: {reason}")
    }
}

/// A stream failed: with its connection in nearly all cases, whose reason is the better one.
async fn broken<T>(connection: &quinn::Connection, result: std::io::Result<T>) -> End {
    let Err(error) = result else { return pending().await };
    if connection.close_reason().is_none() {
        return End::new(Code::Malformed, format!("the control stream broke: {error}"));
    }
    End::new(Code::Done, error.to_string())
}

/// Reads what the control stream says of messages: that their bodies are not wanted.
struct Refusals<'a> {
    wire: &'a Wire,
}

impl Lanes for Refusals<'_> {
    async fn take(&mut self, conversation: &Conversation, kind: Kind, payload: BytesMut) -> Result<(), End> {
        let (Kind::Refused(_), Some(Refusal { number, code })) = (kind, Refusal::decode(&payload)) else {
            return Err(conversation.fault("a message on the control stream"));
        };
        let known = {
            let mut sent = lock(&self.wire.sent);
            let at = sent.iter().position(|(stream, ..)| *stream == number);
            at.and_then(|at| sent.remove(at))
        };
        if let Some((_, lane, frame)) = known {
            refused(conversation, lane, frame, code).await;
        }
        Ok(())
    }
}

/// Tells the node that the peer did not want a message.
pub async fn refused(conversation: &Conversation, lane: Lane, frame: Bytes, code: Code) {
    let event = NetEvent::Refused { peer: conversation.link.peer, lane, frame, code };
    conversation.peering.deliver(&conversation.shared, event).await;
}

type Greeted = (quinn::SendStream, quinn::RecvStream, Option<Greeting>);

/// Opens our control stream, and reads the head of theirs: the first unidirectional stream of each side.
async fn greet(shared: &Shared, connection: &quinn::Connection, serial: u64) -> Option<Greeted> {
    let mut writer = connection.open_uni().await.ok()?;
    writer.set_priority(CONTROL_PRIORITY).ok()?;
    writer.write_all(&Greeting { instance: shared.instance, serial }.encode()).await.ok()?;
    let mut reader = connection.accept_uni().await.ok()?;
    let mut bytes = [0; GREETING_LEN];
    reader.read_exact(&mut bytes).await.ok()?;
    Some((writer, reader, Greeting::decode(&bytes)))
}

/// Sends messages on streams of their own while the hub wants it.
async fn send(wire: &Arc<Wire>) -> End {
    let Conversation { shared, peering, link, ending, .. } = &wire.conversation;
    let humility = congestion::humility(&wire.connection);
    let mut own_urgent = None;
    let mut orders = link.orders();
    let mut sends = FuturesUnordered::new();
    let mut flying = Flying::new(shared.limits.flying_bytes);
    let mut stretch = Stretch::new(Instant::now(), sent_by(&wire.connection));
    loop {
        let order = *orders.borrow_and_update();
        let sending = order.sends();
        loop {
            let may = |lane: Lane, size: u64| sending && flying.may(lane, size);
            let Some((message, writable)) = peering.outbox.pop(may) else { break };
            let alone = sends.is_empty();
            if alone {
                stretch = Stretch::new(Instant::now(), sent_by(&wire.connection));
            }
            flying.begun(&message);
            if writable {
                wire.conversation.tell_writable(message.lane).await;
            }
            sends.push(send_one(wire, message, alone));
        }
        if !sending {
            // The notice of a new message may have come to us; whoever sends now must have it.
            peering.outbox.queued.notify_one();
        }
        ending.send_if_modified(|ending| {
            let landed = order.leaves() && sends.is_empty();
            let news = landed && !ending.landed;
            ending.landed |= landed;
            news
        });
        if let Some(humility) = &humility {
            let now = Instant::now();
            if Lane::ALL.into_iter().any(|lane| courtesy::is_urgent(lane) && flying.has(lane)) {
                own_urgent = Some(now);
            }
            let humble = shared.courtesy.is_due(now, flying.counts(), own_urgent);
            humility.store(humble, Ordering::Relaxed);
            if humble {
                stretch.gives_way();
            }
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK), if flying.has(Lane::Bulk) => {}
            Some(landed) = sends.next(), if !sends.is_empty() => {
                let (message, outcome): (Message, Outcome) = landed;
                flying.landed(&message);
                match outcome {
                    Outcome::Delivered => {
                        shared.count_sent(message.lane, message.size());
                    }
                    Outcome::Stopped => {}
                    Outcome::Broken => return End::new(Code::Cancelled, closed_here(&wire.connection).await),
                }
                let now = Instant::now();
                if sends.is_empty() || stretch.length(now) > PACED {
                    let sent = sent_by(&wire.connection);
                    stretch.ends(now, sent, wire.connection.rtt(), &link.pace);
                    stretch = Stretch::new(now, sent);
                }
            }
            _ = orders.changed() => {}
            () = peering.outbox.queued.notified(), if sending => {}
        }
    }
}

/// Bytes that went out over a connection, those that went twice included.
fn sent_by(connection: &quinn::Connection) -> u64 {
    connection.stats().udp_tx.bytes
}

async fn closed_here(connection: &quinn::Connection) -> String {
    match timeout(Duration::from_millis(10), connection.closed()).await {
        Ok(error) => error.to_string(),
        Err(_) => "a stream broke".to_string(),
    }
}

enum Outcome {
    /// Every byte was acknowledged.
    Delivered,
    /// The peer did not want it; where its node said so, a refusal comes on the control stream.
    Stopped,
    /// The connection is gone.
    Broken,
}

async fn send_one(wire: &Arc<Wire>, message: Message, alone: bool) -> (Message, Outcome) {
    wire.conversation.peering.mark_used(&wire.conversation.shared);
    // Also when the connection ends, and this with it.
    let _under_way = wire.conversation.shared.courtesy.begins(message.lane);
    // Whoever acknowledges packets and takes no body would hold what waits for this one. Others may wait for many before them.
    let longest = if courtesy::is_urgent(message.lane) { LONGEST } else { Duration::MAX };
    let sent = timeout(longest, try_send(wire, &message, alone)).await.unwrap_or_else(|_| {
        wire.connection.close(Code::Cancelled.into(), b"a body was not taken in time");
        Err(quinn::WriteError::ClosedStream)
    });
    let outcome = match sent {
        Ok(None) => Outcome::Delivered,
        Ok(Some(_)) | Err(quinn::WriteError::Stopped(_)) => Outcome::Stopped,
        Err(_) => Outcome::Broken,
    };
    wire.conversation.peering.mark_used(&wire.conversation.shared);
    if !matches!(outcome, Outcome::Broken) {
        wire.conversation.tell_delivered(&message).await;
    }
    (message, outcome)
}

/// The code with which the peer stopped it, if it did.
type Sending = Result<Option<quinn::VarInt>, quinn::WriteError>;

/// `alone`: nothing else is under way, so nothing is before it.
async fn try_send(wire: &Wire, message: &Message, alone: bool) -> Sending {
    let stream = wire.connection.open_uni().await?;
    {
        let mut sent = lock(&wire.sent);
        if sent.len() >= REMEMBERED {
            sent.pop_front();
        }
        sent.push_back((stream.id().index(), message.lane, message.frame.clone()));
    }
    give(wire, stream, message, alone).await
}

async fn give(wire: &Wire, mut stream: quinn::SendStream, message: &Message, alone: bool) -> Sending {
    // Not before it has a stream: it must not keep those back that will give theirs to it.
    let mut turn = wire.turns.enter(message.lane);
    let head = Head {
        lane: message.lane,
        frame_len: message.frame.len() as u32,
        body_len: message.body.as_ref().map_or(0, |body| body.len() as u64),
    };
    let mut first = BytesMut::with_capacity(HEAD_LEN + message.frame.len());
    first.extend_from_slice(&head.encode());
    first.extend_from_slice(&message.frame);
    // The body is shared with whoever gave it, not copied.
    let (first, body) = (first.freeze(), message.body.clone().unwrap_or_default());
    let priority = gate::priority(message.lane, stream.id().index());
    if alone {
        // Together, so that the head does not leave in a packet of its own.
        let _ = stream.set_priority(priority);
        turn.give(&mut stream, &mut [first, body]).await?;
    } else {
        // Before the bodies under way: the receiver waits for it as soon as a stream that was opened later has come.
        let _ = stream.set_priority(HEAD_PRIORITY);
        stream.write_all_chunks(&mut [first]).await?;
        let _ = stream.set_priority(priority);
        turn.give(&mut stream, &mut [body]).await?;
    }
    // It fails only on streams that are finished or reset already.
    let _ = stream.finish();
    drop(turn);
    stream.stopped().await.map_err(|error| match error {
        quinn::StoppedError::ConnectionLost(error) => quinn::WriteError::ConnectionLost(error),
        quinn::StoppedError::ZeroRttRejected => quinn::WriteError::ZeroRttRejected,
    })
}

/// Accepts messages. A message that was read whole gives its stream back to the peer while it may still wait for the node, so
/// the readers are bounded here: a node that is busy slows its peers down.
async fn receive(wire: &Arc<Wire>, readers: &mut JoinSet<()>) -> End {
    let readers_max = wire.conversation.shared.limits.streams as usize;
    loop {
        tokio::select! {
            stream = wire.connection.accept_uni(), if readers.len() < readers_max => match stream {
                Ok(stream) => {
                    readers.spawn(read_message(wire.clone(), stream));
                }
                Err(error) => return End::new(Code::Cancelled, error.to_string()),
            },
            Some(_) = readers.join_next(), if !readers.is_empty() => {}
        }
    }
}

/// Why a message was not read to its end.
enum Dropped {
    /// The sender gave it up, or the connection is gone.
    Gone,
    /// We do not want it.
    Stop(Code),
    Fault(Code, &'static str),
}

async fn read_message(wire: Arc<Wire>, mut stream: quinn::RecvStream) {
    let Conversation { shared, peering, link, .. } = &wire.conversation;
    let code = match try_read(&wire, &mut stream).await {
        // The room in memory is held until the node has it.
        Ok((message, _room)) => {
            shared.count_received(message.lane, message.size());
            let Message { lane, frame, body } = message;
            return peering.deliver(shared, NetEvent::Message { from: link.peer, lane, frame, body }).await;
        }
        Err(Dropped::Gone) => return,
        Err(Dropped::Stop(code)) => code,
        Err(Dropped::Fault(code, why)) => {
            shared.penalise(link.peer, Severity::Hostile, why);
            code
        }
    };
    let _ = stream.stop(code.into());
}

async fn try_read(wire: &Wire, stream: &mut quinn::RecvStream) -> Result<(Message, Option<Held>), Dropped> {
    let Conversation { shared, peering, link, .. } = &wire.conversation;
    let mut head = [0; HEAD_LEN];
    exact(stream, &mut head).await?;
    let head = check_head(shared, Head::decode(&head))?;
    let mut frame = BytesMut::zeroed(head.frame_len as usize);
    exact(stream, &mut frame).await?;
    let frame = frame.freeze();
    if head.body_len == 0 {
        return Ok((Message { lane: head.lane, frame, body: None }, None));
    }
    if let Err(code) = admit(shared, link.peer, head, &frame) {
        let refusal = Refusal { number: stream.id().index(), code };
        let _ = wire.conversation.replies.send(Reply(Kind::Refused(head.lane), refusal.encode().into())).await;
        return Err(Dropped::Stop(code));
    }
    wire.granted.begin(shared, &wire.connection);
    let room = room(shared, peering, head.body_len).await.ok_or(Dropped::Gone)?;
    let whole = timeout(slowest(head.body_len), body(wire, stream, head.body_len as usize)).await;
    let body = whole.map_err(|_| Dropped::Stop(Code::Cancelled))??;
    Ok((Message { lane: head.lane, frame, body: Some(body) }, Some(room)))
}

fn check_head(shared: &Shared, head: Option<Head>) -> Result<Head, Dropped> {
    let head = head.ok_or(Dropped::Fault(Code::Malformed, "a message of no lane"))?;
    if head.frame_len > shared.limits.frame_max {
        return Err(Dropped::Fault(Code::TooLarge, "a frame that is too large"));
    }
    if head.body_len > shared.limits.body_max {
        return Err(Dropped::Fault(Code::TooLarge, "a body that is too large"));
    }
    Ok(head)
}

/// Asks the node whether it wants a body.
pub fn admit(shared: &Shared, from: PeerId, head: Head, frame: &[u8]) -> Result<(), Code> {
    match shared.admit.admit(from, head.lane, frame, head.body_len) {
        Verdict::Take => Ok(()),
        Verdict::Refuse { code, severity } => {
            shared.count_refused();
            if let Some(severity) = severity {
                shared.penalise(from, severity, "a message that we refused");
            }
            Err(code)
        }
    }
}

/// Room in memory, until it is dropped.
pub type Held = (OwnedSemaphorePermit, OwnedSemaphorePermit);

/// How long a body of `bytes` may take once there is room for it.
pub fn slowest(bytes: u64) -> Duration {
    STALLED + Duration::from_secs(bytes / SLOWEST).min(LONGEST)
}

/// Room in memory for a body, first in the peer's share and then in all. Waiting for it slows the sender down.
pub async fn room(shared: &Shared, peering: &Peering, bytes: u64) -> Option<Held> {
    let wanted = |limit: u64| units(bytes).min(units(limit));
    let own = peering.receiving.clone().acquire_many_owned(wanted(shared.limits.receiving_peer)).await.ok()?;
    let all = shared.receiving.clone().acquire_many_owned(wanted(shared.limits.receiving_total)).await.ok()?;
    Some((own, all))
}

async fn exact(stream: &mut quinn::RecvStream, buffer: &mut [u8]) -> Result<(), Dropped> {
    match timeout(STALLED, stream.read_exact(buffer)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(quinn::ReadExactError::FinishedEarly(_))) => Err(Dropped::Fault(Code::Malformed, "a message cut short")),
        Ok(Err(quinn::ReadExactError::ReadError(_))) => Err(Dropped::Gone),
        Err(_) => Err(Dropped::Stop(Code::Cancelled)),
    }
}

/// Reads a body of exactly `len` bytes into one buffer: the only copy of it between the packets and its decoder.
async fn body(wire: &Wire, stream: &mut quinn::RecvStream, len: usize) -> Result<Bytes, Dropped> {
    let mut body = BytesMut::with_capacity(len);
    let mut chunks = [const { Bytes::new() }; CHUNKS];
    loop {
        match timeout(STALLED, stream.read_chunks(&mut chunks)).await {
            Ok(Ok(Some(count))) => {
                let before = body.len();
                for chunk in &mut chunks[..count] {
                    if chunk.len() > len - body.len() {
                        return Err(Dropped::Fault(Code::Malformed, "a body longer than it said"));
                    }
                    body.extend_from_slice(&std::mem::take(chunk));
                }
                wire.granted.on_read(&wire.conversation.shared, &wire.connection, (body.len() - before) as u64);
            }
            Ok(Ok(None)) if body.len() == len => return Ok(body.freeze()),
            Ok(Ok(None)) => return Err(Dropped::Fault(Code::Malformed, "a body shorter than it said")),
            Ok(Err(_)) => return Err(Dropped::Gone),
            Err(_) => return Err(Dropped::Stop(Code::Cancelled)),
        }
    }
}
