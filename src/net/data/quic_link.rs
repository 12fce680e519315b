//! One QUIC connection as a carrier of messages: a control stream each way, and a stream of its own for every other message.
//! In: a connection that libp2p accepted. Out: what arrived, to the node; that it ended, to the hub.
//! Limits are checked before anything is allocated. Knows no frame's content.

use std::{
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, stream::FuturesUnordered};
use skein_protocol::{Lane, PeerId, event::Severity};
use tokio::{sync::watch, task::JoinSet, time::timeout};

use super::{
    Happened, Link, Shared,
    coming::{Coming, Late, STALLED, longest},
    conversation::{Conversation, End, Lanes, Reply},
    courtesy::{self, LOOK},
    flying::Flying,
    granted::Granted,
    link::{Path, Rank, Rtt},
    lock,
    outbox::Message,
    pace::Stretch,
    rooms::{self, Held},
    sent::Sent,
    silence::IN_USE,
    turns::Turns,
    wire::{GREETING_LEN, Greeting, HEAD_LEN, Head, Kind, Refusal},
};
use crate::net::{
    NetEvent, Verdict, address, congestion,
    gate::{self, Code},
    quic,
};

/// How long a body that is not urgent waits for room before its sender is told that we are busy: what has come of it fills the
/// connection's window, in which urgent ones want room.
const ROOM_PATIENCE: Duration = Duration::from_secs(5);
/// A body that brings nothing is looked at after this.
const LATE_LOOK: Duration = Duration::from_secs(5);
/// How long messages that arrived whole may take to reach the node after their connection ended.
const AFTERWARDS: Duration = Duration::from_secs(5);
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
    let wire = Arc::new(Wire::new(conversation, connection));
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
    // Whatever has arrived whole is still delivered; nothing is read after the hub knows of the end. A dead peer's bodies that wait
    // for room will not have arrived whole, and the hub must know soon.
    wire.cut.send_replace(!end.clean);
    drop(replies);
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
    sent: Mutex<Sent>,
    turns: Turns,
    /// Bytes of messages that were read.
    read: AtomicU64,
    /// When it was last noted as a fault that they come too slowly.
    blamed: Mutex<Option<Instant>>,
    /// The connection broke: nobody waits for room any more.
    cut: watch::Sender<bool>,
}

impl Wire {
    fn new(conversation: Conversation, connection: quinn::Connection) -> Wire {
        Wire {
            conversation,
            connection,
            granted: Granted::default(),
            sent: Mutex::default(),
            turns: Turns::default(),
            read: AtomicU64::new(0),
            blamed: Mutex::default(),
            cut: watch::Sender::new(false),
        }
    }

    /// Notes that bodies come too slowly: once for all that come at one time.
    fn blame(&self, now: Instant) {
        let before = lock(&self.blamed).replace(now);
        if before.is_none_or(|before| now.saturating_duration_since(before) >= STALLED) {
            let Conversation { shared, link, .. } = &self.conversation;
            shared.penalise(link.peer, Severity::Wrong, "a body that trickles while others wait for its room");
        }
    }

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
        let known = lock(&self.wire.sent).refused(number);
        if let Some((lane, frame)) = known {
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
    /// The peer did not want it; a refusal comes on the control stream.
    Stopped,
    /// The connection is gone.
    Broken,
}

async fn send_one(wire: &Arc<Wire>, message: Message, alone: bool) -> (Message, Outcome) {
    wire.conversation.peering.mark_used(&wire.conversation.shared);
    // Also when the connection ends, and this with it.
    let _under_way = wire.conversation.shared.courtesy.begins(message.lane);
    // Whoever acknowledges packets and takes no body would hold what waits for this one. Others may wait for many before them.
    let before = wire.conversation.shared.limits.flying_bytes;
    let longest = if courtesy::is_urgent(message.lane) { longest(before + message.size()) } else { Duration::MAX };
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
    let number = stream.id().index();
    lock(&wire.sent).begun(number, message.lane, message.frame.clone());
    let sent = give(wire, stream, message, alone).await;
    lock(&wire.sent).landed(number);
    sent
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
    let Conversation { shared, peering, link, replies, .. } = &wire.conversation;
    let read = match read_head(&wire, &mut stream).await {
        Ok((head, frame)) => read_body(&wire, &mut stream, head, &frame).await.map(|body| (head.lane, frame, body)),
        Err(dropped) => Err(dropped),
    };
    let code = match read {
        Ok((lane, frame, body)) => {
            let (body, room) = body.unzip();
            shared.count_received(lane, frame.len() as u64 + body.as_ref().map_or(0, |body| body.len() as u64));
            return peering.deliver(shared, NetEvent::Message { from: link.peer, lane, frame, body, room }).await;
        }
        Err(Dropped::Gone) => return,
        Err(Dropped::Stop(code)) => code,
        Err(Dropped::Fault(code, why)) => {
            shared.penalise(link.peer, Severity::Hostile, why);
            code
        }
    };
    // Its sender may have been told that all of it was acknowledged: only this says that it was not taken. It is known by its
    // stream, so a lane that was not read does not matter.
    let refusal = Refusal { number: stream.id().index(), code };
    let _ = stream.stop(code.into());
    let _ = replies.send(Reply(Kind::Refused(Lane::Control), refusal.encode().into())).await;
}

async fn read_head(wire: &Wire, stream: &mut quinn::RecvStream) -> Result<(Head, Bytes), Dropped> {
    let mut head = [0; HEAD_LEN];
    exact(wire, stream, &mut head).await?;
    let head = check_head(&wire.conversation.shared, Head::decode(&head))?;
    let mut frame = BytesMut::zeroed(head.frame_len as usize);
    exact(wire, stream, &mut frame).await?;
    Ok((head, frame.freeze()))
}

async fn read_body(
    wire: &Wire,
    stream: &mut quinn::RecvStream,
    head: Head,
    frame: &[u8],
) -> Result<Option<(Bytes, Held)>, Dropped> {
    let Conversation { shared, link, .. } = &wire.conversation;
    if head.body_len == 0 {
        return Ok(None);
    }
    admit(shared, link.peer, head, frame).map_err(Dropped::Stop)?;
    wire.granted.begin(shared, &wire.connection);
    let room = room(wire, head).await?;
    Ok(Some((body(wire, stream, head).await?, room)))
}

/// Room for a body; nothing once the connection broke.
async fn room(wire: &Wire, head: Head) -> Result<Held, Dropped> {
    let Conversation { shared, peering, .. } = &wire.conversation;
    let patience = if rooms::is_apart(head.lane) { Duration::MAX } else { ROOM_PATIENCE };
    let mut cut = wire.cut.subscribe();
    tokio::select! {
        biased;
        _ = cut.wait_for(|cut| *cut) => Err(Dropped::Gone),
        room = timeout(patience, shared.receiving.take(&peering.receiving, head.lane, head.body_len)) => {
            room.map_err(|_| Dropped::Stop(Code::Busy))
        }
    }
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

/// Fills `buffer`; as long as anything else is read from the connection, it may be behind that.
async fn exact(wire: &Wire, stream: &mut quinn::RecvStream, buffer: &mut [u8]) -> Result<(), Dropped> {
    let mut before = wire.read.load(Ordering::Relaxed);
    let len = buffer.len() as u64;
    let mut reading = std::pin::pin!(stream.read_exact(buffer));
    loop {
        match timeout(STALLED, &mut reading).await {
            Ok(Ok(())) => break,
            Ok(Err(quinn::ReadExactError::FinishedEarly(_))) => {
                return Err(Dropped::Fault(Code::Malformed, "a message cut short"));
            }
            Ok(Err(quinn::ReadExactError::ReadError(_))) => return Err(Dropped::Gone),
            Err(_) => {
                let read = wire.read.load(Ordering::Relaxed);
                if std::mem::replace(&mut before, read) == read {
                    return Err(Dropped::Stop(Code::Cancelled));
                }
            }
        }
    }
    wire.read.fetch_add(len, Ordering::Relaxed);
    Ok(())
}

/// Reads a body of exactly the length that was said into one buffer: the only copy of it between the packets and its decoder.
async fn body(wire: &Wire, stream: &mut quinn::RecvStream, head: Head) -> Result<Bytes, Dropped> {
    let Conversation { shared, .. } = &wire.conversation;
    let len = head.body_len as usize;
    let mut body = BytesMut::with_capacity(len);
    let mut chunks = [const { Bytes::new() }; CHUNKS];
    let mut coming = Coming::new(Instant::now(), wire.read.load(Ordering::Relaxed), head.body_len);
    loop {
        match timeout(LATE_LOOK, stream.read_chunks(&mut chunks)).await {
            Ok(Ok(Some(count))) => {
                let before = body.len();
                for chunk in &mut chunks[..count] {
                    if chunk.len() > len - body.len() {
                        return Err(Dropped::Fault(Code::Malformed, "a body longer than it said"));
                    }
                    body.extend_from_slice(&std::mem::take(chunk));
                }
                let bytes = (body.len() - before) as u64;
                wire.read.fetch_add(bytes, Ordering::Relaxed);
                wire.granted.on_read(shared, &wire.connection, bytes);
            }
            Ok(Ok(None)) if body.len() == len => return Ok(body.freeze()),
            Ok(Ok(None)) => return Err(Dropped::Fault(Code::Malformed, "a body shorter than it said")),
            Ok(Err(_)) => return Err(Dropped::Gone),
            Err(_) => {}
        }
        let (now, read) = (Instant::now(), wire.read.load(Ordering::Relaxed));
        match coming.look(now, read, shared.receiving.is_waited_for(head.lane)) {
            None => {}
            Some(Late::Over | Late::Silent) => return Err(Dropped::Stop(Code::Cancelled)),
            Some(Late::Trickles) => {
                wire.blame(now);
                return Err(Dropped::Stop(Code::Busy));
            }
        }
    }
}
