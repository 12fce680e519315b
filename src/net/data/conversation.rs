//! The control stream of one connection: control frames in order, pings, and the agreement that all was delivered before a
//! connection is closed. In: bytes of the peer, orders of the hub. Out: events to the node, records to the peer.
//! Knows not whether QUIC, TCP or a relay carries it.

use std::{
    convert::Infallible,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use skein_protocol::{Lane, event::Severity};
use tokio::{
    sync::{mpsc, watch},
    time::{MissedTickBehavior, timeout},
};

use super::{
    Happened, Link, Peering, Shared, courtesy,
    link::Order,
    outbox::Message,
    silence::{Due, Pace, Silence, TICK},
    wire::{self, Kind, RECORD_HEAD_LEN, RECORD_OVERHEAD, Segment},
};
use crate::net::{NetEvent, gate::Code};

/// Records that wait to be written besides frames: answers to pings, above all.
const REPLIES: usize = 32;
/// Frames that are written at once.
const BATCH: usize = 64 << 10;
/// How long a connection that both sides are done with stays open, so that the last acknowledgement arrives and libp2p's
/// streams on it can end.
const LINGER: Duration = Duration::from_secs(1);

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// What the other side is told.
    pub code: Code,
    pub why: String,
    /// Both sides agreed that everything was delivered.
    pub clean: bool,
}

impl End {
    pub fn new(code: Code, why: impl Into<String>) -> End {
        End { code, why: why.into(), clean: false }
    }
}

/// How far both sides are with leaving a connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ending {
    /// We have sent a segment on this connection.
    pub used: bool,
    /// We have said that no more frames come on it.
    pub framed: bool,
    /// Every message that had a stream of its own was received.
    pub landed: bool,
    /// We have said that we send nothing more.
    pub ended: bool,
    /// They have read that.
    pub end_read: bool,
    /// They send nothing more, and we have read everything.
    pub they_ended: bool,
    /// We have told them so.
    pub told: bool,
}

impl Ending {
    pub fn is_over(&self) -> bool {
        self.end_read && self.they_ended && self.told
    }
}

/// A record to write that is no frame.
#[derive(Clone, Debug)]
pub struct Reply(pub Kind, pub Bytes);

/// One connection's conversation: what its reader, writer and clock share.
pub struct Conversation {
    pub shared: Arc<Shared>,
    pub peering: Arc<Peering>,
    pub link: Arc<Link>,
    pub ending: watch::Sender<Ending>,
    pub replies: mpsc::Sender<Reply>,
    heard: AtomicBool,
}

/// Takes records of message lanes, where messages have no streams of their own.
pub trait Lanes: Send {
    fn take(
        &mut self,
        conversation: &Conversation,
        kind: Kind,
        payload: BytesMut,
    ) -> impl Future<Output = Result<(), End>> + Send;

    /// Asked at every record, which was waited for so long: an end, when a message has been arriving for too long.
    fn stalled(&mut self, _: &Conversation, _waited: Duration) -> Option<End> {
        None
    }
}

impl Conversation {
    pub fn new(shared: Arc<Shared>, peering: Arc<Peering>, link: Arc<Link>) -> (Conversation, mpsc::Receiver<Reply>) {
        let (replies, written) = mpsc::channel(REPLIES);
        let ending = watch::Sender::new(Ending::default());
        let heard = AtomicBool::new(true);
        (Conversation { shared, peering, link, ending, replies, heard }, written)
    }

    /// Reads records until the stream or the peer's good behaviour ends.
    pub async fn read<R: AsyncRead + Unpin>(&self, reader: &mut R, lanes: &mut impl Lanes) -> End {
        loop {
            let asked = Instant::now();
            let (kind, payload) = match self.read_record(reader).await {
                Ok(record) => record,
                Err(end) => return end,
            };
            if let Some(end) = lanes.stalled(self, asked.elapsed()) {
                return end;
            }
            let Some(kind) = kind else { continue };
            let step = match kind {
                Kind::Frame => self.on_frame(payload.freeze()).await,
                Kind::Ping => self.on_ping(payload.freeze()),
                Kind::Pong => self.on_pong(&payload),
                Kind::Segment => self.on_segment(&payload).await,
                Kind::LastFrame => {
                    self.end_segment();
                    Ok(())
                }
                Kind::End => self.on_end().await,
                Kind::EndRead => self.on_end_read().await,
                Kind::Start(_) | Kind::Piece(_) | Kind::Abort(_) | Kind::Refused(_) => {
                    lanes.take(self, kind, payload).await
                }
            };
            if let Err(end) = step {
                return end;
            }
        }
    }

    async fn read_record<R: AsyncRead + Unpin>(&self, reader: &mut R) -> Result<(Option<Kind>, BytesMut), End> {
        let mut head = [0; RECORD_HEAD_LEN];
        self.read_exact(reader, &mut head).await?;
        let (kind, len) = wire::read_record_head(head);
        if len > self.shared.limits.frame_max + RECORD_OVERHEAD {
            self.shared.penalise(self.link.peer, Severity::Hostile, "a record larger than a frame may be");
            return Err(End::new(Code::TooLarge, format!("a record of {len} bytes")));
        }
        let mut payload = BytesMut::zeroed(len as usize);
        self.read_exact(reader, &mut payload).await?;
        Ok((kind, payload))
    }

    async fn read_exact<R: AsyncRead + Unpin>(&self, reader: &mut R, mut buffer: &mut [u8]) -> Result<(), End> {
        while !buffer.is_empty() {
            match reader.read(buffer).await {
                Ok(0) => return Err(End::new(Code::Cancelled, "the control stream ended")),
                Ok(n) => buffer = &mut buffer[n..],
                Err(error) => return Err(End::new(Code::Cancelled, error.to_string())),
            }
            self.hear();
        }
        Ok(())
    }

    pub fn hear(&self) {
        self.heard.store(true, Ordering::Relaxed);
    }

    /// The peer said something that no correct peer says.
    pub fn fault(&self, why: &str) -> End {
        self.shared.penalise(self.link.peer, Severity::Hostile, why);
        End::new(Code::Malformed, why)
    }

    async fn on_frame(&self, frame: Bytes) -> Result<(), End> {
        if frame.len() as u64 > u64::from(self.shared.limits.frame_max) {
            return Err(self.fault("a frame that is too large"));
        }
        self.shared.count_received(Lane::Control, frame.len() as u64);
        let message = NetEvent::Message { from: self.link.peer, lane: Lane::Control, frame, body: None, room: None };
        self.peering.deliver(&self.shared, message).await;
        Ok(())
    }

    fn on_ping(&self, payload: Bytes) -> Result<(), End> {
        if payload.len() != 8 {
            return Err(self.fault("a ping of odd size"));
        }
        if self.replies.try_send(Reply(Kind::Pong, payload)).is_err() {
            self.shared.penalise(self.link.peer, Severity::Odd, "more pings than we can answer");
        }
        Ok(())
    }

    fn on_pong(&self, payload: &[u8]) -> Result<(), End> {
        let sent = payload.try_into().map(u64::from_le_bytes).map_err(|_| self.fault("a pong of odd size"))?;
        let now = self.shared.started.elapsed().as_micros() as u64;
        self.link.rtt.measured(now.saturating_sub(sent));
        Ok(())
    }

    async fn on_segment(&self, payload: &[u8]) -> Result<(), End> {
        let segment = Segment::decode(payload).ok_or_else(|| self.fault("a segment of odd size"))?;
        let before = self.link.reading.load(Ordering::Relaxed);
        if before > 0 {
            return Err(self.fault("a second segment on one connection"));
        }
        if segment.broken {
            let (peer, number, by) = (self.link.peer, segment.number, self.link.id);
            self.shared.happened(Happened::Broken { peer, number, by }).await;
        }
        // What the peer says here meanwhile is not read: its silence says nothing.
        let mut ended = std::pin::pin!(self.peering.segments_ended_below(segment.number));
        while timeout(TICK, &mut ended).await.is_err() {
            self.hear();
        }
        self.link.reading.store(segment.number.saturating_add(1), Ordering::Relaxed);
        Ok(())
    }

    async fn on_end(&self) -> Result<(), End> {
        self.end_segment();
        self.ending.send_modify(|ending| ending.they_ended = true);
        let _ = self.replies.send(Reply(Kind::EndRead, Bytes::new())).await;
        Ok(())
    }

    async fn on_end_read(&self) -> Result<(), End> {
        if !self.ending.borrow().ended {
            return Err(self.fault("an end acknowledged that was not said"));
        }
        self.ending.send_modify(|ending| ending.end_read = true);
        self.shared.happened(Happened::EndRead { link: self.link.id }).await;
        Ok(())
    }

    /// Lets the next connection's frames pass: no more will come on this one.
    pub fn end_segment(&self) {
        if let Some(number) = self.link.reading.load(Ordering::Relaxed).checked_sub(1) {
            self.peering.segment_ended(number);
        }
    }

    /// Resolves when both sides are done with this connection and the last word had time to arrive.
    pub async fn over(&self) -> End {
        let _ = self.ending.subscribe().wait_for(Ending::is_over).await;
        tokio::time::sleep(LINGER).await;
        End { code: Code::Done, why: "another connection is in use".to_string(), clean: true }
    }

    /// Resolves when the hub wants this connection closed at once, whatever is being written.
    pub async fn ordered_to_close(&self) -> End {
        let mut orders = self.link.orders();
        loop {
            if let Order::Close(code, why) = *orders.borrow_and_update() {
                return End::new(code, why);
            }
            // The link, which holds the sender, is ours.
            let _ = orders.changed().await;
        }
    }

    /// Whether something that we sent may not have been received.
    pub fn undelivered(&self) -> bool {
        let ending = self.ending.borrow();
        ending.used && !ending.end_read
    }

    /// Resolves when the peer has been silent for too long; asks for pings meanwhile. `alive` may know of other signs of
    /// life since the last look.
    pub async fn silence(&self, pace: impl Fn(bool) -> Option<Pace>, mut alive: impl FnMut() -> bool) -> End {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut silence = Silence::new(Instant::now());
        loop {
            ticks.tick().await;
            self.peering.refresh_keep(&self.shared);
            let now = Instant::now();
            if self.heard.swap(false, Ordering::Relaxed) | alive() {
                silence.heard(now);
            }
            let Some(pace) = pace(self.peering.active.load(Ordering::Relaxed)) else { continue };
            match silence.tick(now, pace) {
                Due::Nothing => {}
                Due::Ping => {
                    let stamp = self.shared.started.elapsed().as_micros() as u64;
                    let _ = self.replies.try_send(Reply(Kind::Ping, Bytes::copy_from_slice(&stamp.to_le_bytes())));
                }
                Due::Dead(silent) => {
                    return End::new(Code::Cancelled, format!("silent for {:.1} s", silent.as_secs_f32()));
                }
            }
        }
    }

    /// Writes frames, replies and the words about segments and ends, as the hub orders; for connections where messages have
    /// streams of their own. Ends only with the stream.
    pub async fn write<W: AsyncWrite + Unpin>(
        &self,
        writer: &mut W,
        replies: &mut mpsc::Receiver<Reply>,
    ) -> io::Result<Infallible> {
        let mut orders = self.link.orders();
        let mut endings = self.ending.subscribe();
        let mut batch = BytesMut::new();
        loop {
            let order = *orders.borrow_and_update();
            let sending = self.obey(order, writer).await?;
            if !sending {
                // The notice of a new frame may have come to us; whoever sends now must have it.
                self.peering.outbox.framed.notify_one();
            }
            tokio::select! {
                _ = orders.changed() => {}
                _ = endings.changed() => {}
                Some(reply) = replies.recv() => self.write_reply(writer, reply).await?,
                () = self.peering.outbox.framed.notified(), if sending => {
                    self.write_frames(writer, &mut batch).await?;
                }
            }
        }
    }

    /// Says what an order asks to be said. Whether messages may be sent.
    pub async fn obey<W: AsyncWrite + Unpin>(&self, order: Order, writer: &mut W) -> io::Result<bool> {
        if let Some(segment) = self.link.segment().filter(|_| !self.ending.borrow().used) {
            self.ending.send_modify(|ending| ending.used = true);
            self.write_record(writer, Kind::Segment, &segment.encode()).await?;
            // What waited before this connection was chosen had its notice long ago.
            self.peering.outbox.framed.notify_one();
            self.peering.outbox.queued.notify_one();
        }
        let ending = *self.ending.borrow();
        match order {
            Order::Wait | Order::Close(..) => Ok(false),
            Order::Send => Ok(true),
            Order::Drain | Order::Finish => {
                // Nothing is chosen again that was drained: the next connection's frames need not wait for bodies of this one.
                if order == Order::Drain && ending.used && !ending.framed {
                    self.ending.send_modify(|ending| ending.framed = true);
                    self.write_record(writer, Kind::LastFrame, &[]).await?;
                }
                let waiting = order == Order::Finish && self.peering.outbox.has_frames();
                if waiting {
                    self.peering.outbox.framed.notify_one();
                } else if ending.landed && !ending.ended {
                    self.ending.send_modify(|ending| ending.ended = true);
                    self.write_record(writer, Kind::End, &[]).await?;
                }
                Ok(waiting)
            }
        }
    }

    pub async fn write_reply<W: AsyncWrite + Unpin>(
        &self,
        writer: &mut W,
        Reply(kind, payload): Reply,
    ) -> io::Result<()> {
        self.write_record(writer, kind, &payload).await?;
        if kind == Kind::EndRead {
            self.ending.send_modify(|ending| ending.told = true);
        }
        Ok(())
    }

    /// Writes the control frames that wait; whether there were any.
    pub async fn write_frames<W: AsyncWrite + Unpin>(&self, writer: &mut W, batch: &mut BytesMut) -> io::Result<bool> {
        let mut any = false;
        loop {
            // An order that came meanwhile goes first: frames not taken yet belong to the next connection.
            if !self.link.orders().borrow().sends() {
                return Ok(any);
            }
            let (frames, writable) = self.peering.outbox.pop_frames(BATCH);
            if frames.is_empty() {
                return Ok(any);
            }
            any = true;
            batch.clear();
            for frame in &frames {
                batch.extend_from_slice(&wire::record_head(Kind::Frame, frame.len() as u32));
                batch.extend_from_slice(frame);
            }
            writer.write_all(batch).await?;
            writer.flush().await?;
            self.peering.mark_used(&self.shared);
            self.shared.count_sent(Lane::Control, frames.iter().map(|frame| frame.len() as u64).sum());
            if writable {
                self.tell_writable(Lane::Control).await;
            }
        }
    }

    pub async fn tell_writable(&self, lane: Lane) {
        let event = NetEvent::Writable { peer: self.link.peer, lane };
        self.peering.deliver(&self.shared, event).await;
    }

    /// Who waits for an answer, or is asked for what is on its way, wants to know when it arrived.
    pub async fn tell_delivered(&self, message: &Message) {
        if courtesy::is_urgent(message.lane) {
            let Message { lane, ref frame, .. } = *message;
            let event = NetEvent::Delivered { peer: self.link.peer, lane, frame: frame.clone() };
            self.peering.deliver(&self.shared, event).await;
        }
    }

    pub async fn write_record<W: AsyncWrite + Unpin>(
        &self,
        writer: &mut W,
        kind: Kind,
        payload: &[u8],
    ) -> io::Result<()> {
        let mut record = Vec::with_capacity(RECORD_HEAD_LEN + payload.len());
        record.extend_from_slice(&wire::record_head(kind, payload.len() as u32));
        record.extend_from_slice(payload);
        writer.write_all(&record).await?;
        writer.flush().await
    }
}
