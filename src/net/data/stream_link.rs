//! One libp2p stream as a carrier of messages, where no QUIC connection of ours exists: over a relay, or over TCP.
//! The control stream and all lanes share it; a message is cut into pieces, so that a more urgent one passes between them.
//! In: a stream that libp2p negotiated. Out: what arrived, to the node; that it ended, to the hub. Knows no frame's content.

use std::{
    collections::VecDeque,
    convert::Infallible,
    io,
    sync::{Arc, Mutex, atomic::AtomicU64},
    time::{Duration, Instant},
};

use bytes::{Buf, Bytes, BytesMut};
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::{StreamProtocol, swarm::ConnectionId};
use skein_protocol::{Lane, event::Severity};
use tokio::{
    sync::{Notify, mpsc},
    time::timeout,
};

use super::{
    Happened, Link, Shared,
    coming::{Coming, Late},
    conversation::{Conversation, End, Lanes, Reply},
    link::{Path, Rank, Rtt},
    lock,
    outbox::Message,
    quic_link::{admit, refused},
    rooms::Held,
    silence::{AT_REST, Pace},
    wire::{GREETING_LEN, Greeting, HEAD_LEN, Head, Kind, Refusal},
};
use crate::net::{Command, NetEvent, address, gate::Code};

pub const PROTOCOL: StreamProtocol = StreamProtocol::new("/skein/data/1");

/// Bytes of a body in one record: what an urgent frame may have to wait for.
const PIECE: usize = 32 << 10;
/// Messages whose refusal can still be told to the node after they were written.
const REMEMBERED: usize = 64;
/// How long a body may wait for room in memory before its sender is told that we are busy.
const ROOM_PATIENCE: Duration = Duration::from_secs(2);
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);
/// Pongs wait behind megabytes of body in the buffers below us, so silence must last longer here than on QUIC. A process
/// that dies closes its TCP connections, which shows at once.
const IN_USE: Pace = Pace { ping: Duration::from_secs(1), dead: Duration::from_secs(6) };

/// A negotiated stream and what is known about its connection.
pub struct Pipe<S> {
    pub peer: libp2p::PeerId,
    pub connection: ConnectionId,
    pub path: Path,
    pub address: String,
    pub dialled_by_me: bool,
    pub stream: S,
}

/// Serves a stream to its end, and with it the libp2p connection.
pub async fn run<S: AsyncRead + AsyncWrite + Send + Unpin>(shared: Arc<Shared>, pipe: Pipe<S>) {
    let connection = pipe.connection;
    serve(&shared, pipe).await;
    let _ = shared.commands.send(Command::Close(connection)).await;
}

async fn serve<S: AsyncRead + AsyncWrite + Send + Unpin>(shared: &Arc<Shared>, mut pipe: Pipe<S>) {
    let Some(peer) = address::peer_of(&pipe.peer) else { return };
    let serial = shared.next_serial();
    let greeting = Greeting { instance: shared.instance, serial };
    let Ok(Ok(theirs)) = timeout(GREETING_TIMEOUT, greet(&mut pipe.stream, greeting)).await else { return };
    let Some(theirs) = theirs else { return shared.penalise(peer, Severity::Wrong, "a greeting that is not ours") };
    let serial = if pipe.dialled_by_me { serial } else { theirs.serial };
    let rank = Rank::new(pipe.path, shared.me, peer, pipe.dialled_by_me, serial);
    let rtt = Rtt::Pings(AtomicU64::new(0));
    let link = Link::new(shared.next_serial(), peer, theirs.instance, rank, pipe.path, pipe.address, rtt);
    let link = Arc::new(link);
    let Some(peering) = shared.enter(&link).await else { return };
    let (conversation, mut replies) = Conversation::new(shared.clone(), peering, link);
    let (mut reader, mut writer) = pipe.stream.split();
    let refusals = Refusals::default();
    let mut incoming = Incoming::new(&refusals);
    let pace = |in_use| Some(if in_use { IN_USE } else { AT_REST });
    let end = tokio::select! {
        biased;
        end = conversation.ordered_to_close() => end,
        end = conversation.read(&mut reader, &mut incoming) => end,
        error = write(&conversation, &mut writer, &mut replies, &refusals) => match error {
            Err(error) => End::new(Code::Cancelled, error.to_string()),
        },
        end = conversation.silence(pace, || false) => end,
        end = conversation.over() => end,
    };
    let ending = *conversation.ending.borrow();
    let clean = end.clean || (ending.end_read && ending.they_ended);
    let _ = timeout(Duration::from_secs(1), writer.close()).await;
    conversation.end_segment();
    let ended = Happened::Ended {
        peer,
        link: conversation.link.id,
        clean,
        undelivered: conversation.undelivered(),
        why: end.why,
    };
    shared.happened(ended).await;
}

async fn greet<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, greeting: Greeting) -> io::Result<Option<Greeting>> {
    stream.write_all(&greeting.encode()).await?;
    stream.flush().await?;
    let mut bytes = [0; GREETING_LEN];
    stream.read_exact(&mut bytes).await?;
    Ok(Greeting::decode(&bytes))
}

/// Refusals of our messages, from the reader to the writer. A message is named by its lane and its number in it.
#[derive(Default)]
struct Refusals {
    waiting: Mutex<VecDeque<(Lane, Refusal)>>,
    came: Notify,
}

/// The messages that are arriving, one a lane.
struct Incoming<'a> {
    lanes: [Option<Arriving>; Lane::ALL.len()],
    counts: [u64; Lane::ALL.len()],
    /// Bytes of bodies that were read.
    read: u64,
    /// Goes on only while the peer is waited for: the time for which the node keeps us waiting is not its delay.
    now: Instant,
    refusals: &'a Refusals,
}

struct Arriving {
    frame: Bytes,
    body: BytesMut,
    missing: u64,
    /// Nothing where the message was refused and its pieces are skipped.
    room: Option<(Held, Coming)>,
}

impl Lanes for Incoming<'_> {
    async fn take(&mut self, conversation: &Conversation, kind: Kind, payload: BytesMut) -> Result<(), End> {
        match kind {
            Kind::Start(lane) => self.on_start(conversation, lane, payload.freeze()).await,
            Kind::Piece(lane) => self.on_piece(conversation, lane, &payload).await,
            Kind::Abort(lane) => {
                self.lanes[lane as usize] = None;
                Ok(())
            }
            Kind::Refused(lane) => self.on_refused(conversation, lane, &payload),
            Kind::Frame | Kind::Ping | Kind::Pong | Kind::Segment | Kind::LastFrame | Kind::End | Kind::EndRead => {
                Ok(())
            }
        }
    }

    fn stalled(&mut self, conversation: &Conversation, waited: Duration) -> Option<End> {
        self.now += waited;
        let (Conversation { shared, link, .. }, now, read) = (conversation, self.now, self.read);
        for (lane, arriving) in Lane::ALL.into_iter().zip(&mut self.lanes) {
            let Some((_, coming)) = arriving.as_mut().and_then(|arriving| arriving.room.as_mut()) else { continue };
            match coming.look(now, read, shared.receiving.is_waited_for(lane)) {
                None => {}
                Some(Late::Over | Late::Silent) => return Some(End::new(Code::Cancelled, "a message stalled")),
                Some(Late::Trickles) => {
                    shared.penalise(link.peer, Severity::Wrong, "a body that trickles while others wait for its room");
                    return Some(End::new(Code::Busy, "a message came too slowly"));
                }
            }
        }
        None
    }
}

impl Incoming<'_> {
    fn new(refusals: &Refusals) -> Incoming<'_> {
        Incoming { lanes: Default::default(), counts: Default::default(), read: 0, now: Instant::now(), refusals }
    }

    async fn on_start(&mut self, conversation: &Conversation, lane: Lane, mut payload: Bytes) -> Result<(), End> {
        let shared = &conversation.shared;
        let head = payload.first_chunk::<HEAD_LEN>().and_then(Head::decode);
        let Some(head) = head.filter(|head| head.lane == lane) else {
            return Err(conversation.fault("a message without a head"));
        };
        payload.advance(HEAD_LEN);
        if head.frame_len as usize != payload.len() || head.frame_len > shared.limits.frame_max {
            return Err(conversation.fault("a frame of another size than it said"));
        }
        if head.body_len > shared.limits.body_max {
            return Err(conversation.fault("a body that is too large"));
        }
        if self.lanes[lane as usize].is_some() {
            return Err(conversation.fault("a message inside another of its lane"));
        }
        let number = self.counts[lane as usize];
        self.counts[lane as usize] = number.wrapping_add(1);
        if head.body_len == 0 {
            return deliver(conversation, Message { lane, frame: payload, body: None }, None).await;
        }
        let mut arriving = Arriving { frame: payload, body: BytesMut::new(), missing: head.body_len, room: None };
        let room = shared.receiving.take(&conversation.peering.receiving, lane, head.body_len);
        let wanted = match admit(shared, conversation.link.peer, head, &arriving.frame) {
            // While we wait nothing else is read, not even the pieces of other lanes whose end would make room.
            Ok(()) => timeout(ROOM_PATIENCE, room).await.map_err(|_| Code::Busy),
            Err(code) => Err(code),
        };
        match wanted {
            Ok(room) => {
                arriving.room = Some((room, Coming::new(self.now, self.read, head.body_len)));
                arriving.body.reserve(head.body_len as usize);
            }
            Err(code) => {
                let refusal = Refusal { number, code };
                let _ = conversation.replies.send(Reply(Kind::Refused(lane), refusal.encode().into())).await;
            }
        }
        self.lanes[lane as usize] = Some(arriving);
        Ok(())
    }

    async fn on_piece(&mut self, conversation: &Conversation, lane: Lane, piece: &[u8]) -> Result<(), End> {
        let Some(arriving) = &mut self.lanes[lane as usize] else {
            return Err(conversation.fault("a piece of no message"));
        };
        let Some(missing) = arriving.missing.checked_sub(piece.len() as u64) else {
            return Err(conversation.fault("a body longer than it said"));
        };
        arriving.missing = missing;
        self.read += piece.len() as u64;
        if arriving.room.is_some() {
            arriving.body.extend_from_slice(piece);
        }
        if missing > 0 {
            return Ok(());
        }
        match self.lanes[lane as usize].take() {
            Some(Arriving { frame, body, room: Some((room, _)), .. }) => {
                deliver(conversation, Message { lane, frame, body: Some(body.freeze()) }, Some(room)).await
            }
            _ => Ok(()),
        }
    }

    fn on_refused(&self, conversation: &Conversation, lane: Lane, payload: &[u8]) -> Result<(), End> {
        let refusal = Refusal::decode(payload).ok_or_else(|| conversation.fault("a refusal of odd size"))?;
        let mut waiting = lock(&self.refusals.waiting);
        if waiting.len() < REMEMBERED {
            waiting.push_back((lane, refusal));
        }
        drop(waiting);
        self.refusals.came.notify_one();
        Ok(())
    }
}

async fn deliver(conversation: &Conversation, message: Message, room: Option<Held>) -> Result<(), End> {
    conversation.shared.count_received(message.lane, message.size());
    let Message { lane, frame, body } = message;
    let event = NetEvent::Message { from: conversation.link.peer, lane, frame, body, room };
    conversation.peering.deliver(&conversation.shared, event).await;
    Ok(())
}

/// The messages that are being written, one a lane, and those written lately.
#[derive(Default)]
struct Outgoing {
    lanes: [Option<Leaving>; Lane::ALL.len()],
    counts: [u64; Lane::ALL.len()],
    written: VecDeque<(Lane, u64, Bytes)>,
}

struct Leaving {
    number: u64,
    message: Message,
    /// What is left of the body.
    rest: Bytes,
}

/// Writes control records first, then pieces of messages, the most urgent lane first. Ends only with the stream.
async fn write<W: AsyncWrite + Unpin>(
    conversation: &Conversation,
    writer: &mut W,
    replies: &mut mpsc::Receiver<Reply>,
    refusals: &Refusals,
) -> io::Result<Infallible> {
    let outbox = &conversation.peering.outbox;
    let mut orders = conversation.link.orders();
    let mut endings = conversation.ending.subscribe();
    let mut batch = BytesMut::new();
    let mut outgoing = Outgoing::default();
    loop {
        let order = *orders.borrow_and_update();
        endings.mark_unchanged();
        let sending = conversation.obey(order, writer).await?;
        while let Ok(reply) = replies.try_recv() {
            conversation.write_reply(writer, reply).await?;
        }
        outgoing.abort_refused(conversation, writer, refusals).await?;
        let sending = sending || order.sends();
        if sending {
            conversation.write_frames(writer, &mut batch).await?;
        } else {
            // The notices of new messages may have come to us; whoever sends now must have them.
            outbox.framed.notify_one();
            outbox.queued.notify_one();
        }
        if outgoing.step(conversation, writer, sending).await? {
            continue;
        }
        conversation.ending.send_if_modified(|ending| {
            let news = order.leaves() && !ending.landed;
            ending.landed |= news;
            news
        });
        tokio::select! {
            _ = orders.changed() => {}
            _ = endings.changed() => {}
            Some(reply) = replies.recv() => conversation.write_reply(writer, reply).await?,
            () = refusals.came.notified() => {}
            () = outbox.framed.notified(), if sending => {}
            () = outbox.queued.notified(), if sending => {}
        }
    }
}

impl Outgoing {
    /// Writes one record of the most urgent message; whether there was one.
    async fn step<W: AsyncWrite + Unpin>(
        &mut self,
        conversation: &Conversation,
        writer: &mut W,
        sending: bool,
    ) -> io::Result<bool> {
        for lane in Lane::ALL {
            if let Some(leaving) = &mut self.lanes[lane as usize] {
                let piece = leaving.rest.split_to(PIECE.min(leaving.rest.len()));
                let done = leaving.rest.is_empty();
                conversation.write_record(writer, Kind::Piece(lane), &piece).await?;
                if done {
                    self.finish(conversation, lane).await;
                }
                return Ok(true);
            }
            let next = sending.then(|| conversation.peering.outbox.pop(|other, _| other == lane)).flatten();
            if let Some((message, writable)) = next {
                if writable {
                    conversation.tell_writable(lane).await;
                }
                self.start(conversation, writer, message).await?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn start<W: AsyncWrite + Unpin>(
        &mut self,
        conversation: &Conversation,
        writer: &mut W,
        message: Message,
    ) -> io::Result<()> {
        conversation.peering.mark_used(&conversation.shared);
        let lane = message.lane;
        let rest = message.body.clone().unwrap_or_default();
        let head = Head { lane, frame_len: message.frame.len() as u32, body_len: rest.len() as u64 };
        let mut start = head.encode().to_vec();
        start.extend_from_slice(&message.frame);
        let number = self.counts[lane as usize];
        self.counts[lane as usize] = number.wrapping_add(1);
        let done = rest.is_empty();
        self.lanes[lane as usize] = Some(Leaving { number, message, rest });
        conversation.write_record(writer, Kind::Start(lane), &start).await?;
        if done {
            self.finish(conversation, lane).await;
        }
        Ok(())
    }

    /// It is written, which is as much as can be known of a relayed connection.
    async fn finish(&mut self, conversation: &Conversation, lane: Lane) {
        let Some(Leaving { number, message, .. }) = self.lanes[lane as usize].take() else { return };
        conversation.peering.mark_used(&conversation.shared);
        conversation.shared.count_sent(lane, message.size());
        conversation.tell_delivered(&message).await;
        if self.written.len() >= REMEMBERED {
            self.written.pop_front();
        }
        self.written.push_back((lane, number, message.frame));
    }

    /// Gives up what the peer does not want, and tells the node.
    async fn abort_refused<W: AsyncWrite + Unpin>(
        &mut self,
        conversation: &Conversation,
        writer: &mut W,
        refusals: &Refusals,
    ) -> io::Result<()> {
        loop {
            let Some((lane, Refusal { number, code })) = lock(&refusals.waiting).pop_front() else { return Ok(()) };
            let slot = &mut self.lanes[lane as usize];
            if let Some(leaving) = slot.take_if(|leaving| leaving.number == number) {
                conversation.write_record(writer, Kind::Abort(lane), &[]).await?;
                conversation.tell_delivered(&leaving.message).await;
                refused(conversation, lane, leaving.message.frame, code).await;
            } else if let Some(at) = self.written.iter().position(|(l, n, _)| (*l, *n) == (lane, number))
                && let Some((lane, _, frame)) = self.written.remove(at)
            {
                refused(conversation, lane, frame, code).await;
            }
        }
    }
}
