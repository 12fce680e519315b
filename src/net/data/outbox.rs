//! What waits to be sent to one peer: a bounded queue a lane. In: messages from the node. Out: messages to whichever
//! connection is the peer's current one, the most urgent lane first. Knows no connection.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard},
};

use bytes::Bytes;
use skein_protocol::Lane;
use tokio::sync::Notify;

/// A message on a stream of its own.
#[derive(Clone, Debug)]
pub struct Message {
    pub lane: Lane,
    pub frame: Bytes,
    pub body: Option<Bytes>,
}

impl Message {
    /// Bytes of frame and body.
    pub fn size(&self) -> u64 {
        self.frame.len() as u64 + self.body.as_ref().map_or(0, |body| body.len() as u64)
    }
}

/// The lane is full: the message was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

#[derive(Debug)]
pub struct Outbox {
    queues: Mutex<Queues>,
    messages_max: usize,
    bytes_max: u64,
    /// A control frame came.
    pub framed: Notify,
    /// A message for a stream of its own came, or room for one.
    pub queued: Notify,
}

#[derive(Debug, Default)]
struct Queues {
    /// Control frames without a body: they share one stream and keep their order.
    frames: VecDeque<Bytes>,
    frame_bytes: u64,
    lanes: [Queue; Lane::ALL.len()],
}

#[derive(Debug, Default)]
struct Queue {
    messages: VecDeque<Message>,
    bytes: u64,
    /// Somebody was told that the lane is full, and wants to hear when it is not.
    refused: bool,
}

impl Outbox {
    pub fn new(messages_max: usize, bytes_max: u64) -> Outbox {
        Outbox { queues: Mutex::default(), messages_max, bytes_max, framed: Notify::new(), queued: Notify::new() }
    }

    fn queues(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Control frames without a body may be four times as many as messages of a lane: they are small, and machines answer
    /// each other with them.
    pub fn push(&self, message: Message) -> Result<(), Full> {
        let size = message.size();
        let mut queues = self.queues();
        if message.lane == Lane::Control && message.body.is_none() {
            let room = queues.frames.len() < self.messages_max * 4 && queues.frame_bytes + size <= self.bytes_max;
            if !room {
                queues.lanes[Lane::Control as usize].refused = true;
                return Err(Full);
            }
            queues.frame_bytes += size;
            queues.frames.push_back(message.frame);
            drop(queues);
            self.framed.notify_one();
            return Ok(());
        }
        let queue = &mut queues.lanes[message.lane as usize];
        // A message larger than the whole queue may wait alone.
        let fits = queue.messages.is_empty() || queue.bytes + size <= self.bytes_max;
        if queue.messages.len() >= self.messages_max || !fits {
            queue.refused = true;
            return Err(Full);
        }
        queue.bytes += size;
        queue.messages.push_back(message);
        drop(queues);
        self.queued.notify_one();
        Ok(())
    }

    /// Control frames in order, together at most `bytes` (at least one frame), and whether the lane has room again.
    pub fn pop_frames(&self, bytes: usize) -> (Vec<Bytes>, bool) {
        let mut queues = self.queues();
        let (mut taken, mut size) = (Vec::new(), 0);
        while let Some(frame) = queues.frames.front() {
            if !taken.is_empty() && size + frame.len() > bytes {
                break;
            }
            size += frame.len();
            taken.extend(queues.frames.pop_front());
        }
        queues.frame_bytes -= size as u64;
        let room = queues.frames.len() <= self.messages_max * 2 && queues.frame_bytes <= self.bytes_max / 2;
        let queue = &mut queues.lanes[Lane::Control as usize];
        let writable = room && queue.messages.len() <= self.messages_max / 2 && std::mem::take(&mut queue.refused);
        (taken, writable)
    }

    /// The first message of the most urgent lane for which `may` (lane, bytes) holds, and whether that lane has room again.
    pub fn pop(&self, mut may: impl FnMut(Lane, u64) -> bool) -> Option<(Message, bool)> {
        let mut queues = self.queues();
        for lane in Lane::ALL {
            let queue = &mut queues.lanes[lane as usize];
            if !queue.messages.front().is_some_and(|message| may(lane, message.size())) {
                continue;
            }
            let message = queue.messages.pop_front()?;
            queue.bytes -= message.size();
            let room = queue.messages.len() <= self.messages_max / 2 && queue.bytes <= self.bytes_max / 2;
            let writable = room && std::mem::take(&mut queue.refused);
            return Some((message, writable));
        }
        None
    }

    pub fn has_frames(&self) -> bool {
        !self.queues().frames.is_empty()
    }

    /// Forgets everything that waits. The messages are not told: their peer is lost, and that is.
    pub fn clear(&self) {
        *self.queues() = Queues::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(lane: Lane, body: usize) -> Message {
        Message { lane, frame: Bytes::from_static(b"frame"), body: Some(Bytes::from(vec![0; body])) }
    }

    #[test]
    fn the_most_urgent_lane_is_served_first_and_each_in_order() {
        let outbox = Outbox::new(8, 1 << 20);
        for (lane, body) in [(Lane::Bulk, 1), (Lane::Activation, 2), (Lane::Gradient, 3), (Lane::Gradient, 4)] {
            assert_eq!(outbox.push(message(lane, body)), Ok(()));
        }
        let order: Vec<u64> =
            std::iter::from_fn(|| outbox.pop(|_, _| true)).map(|(message, _)| message.size() - 5).collect();
        assert_eq!(order, [3, 4, 2, 1]);
        assert_eq!(outbox.push(message(Lane::Bulk, 1)), Ok(()));
        assert!(outbox.pop(|lane, _| lane != Lane::Bulk).is_none());
    }

    #[test]
    fn a_full_lane_refuses_and_says_once_when_it_has_room() {
        let outbox = Outbox::new(4, 1 << 20);
        for _ in 0..4 {
            assert_eq!(outbox.push(message(Lane::Average, 1)), Ok(()));
        }
        assert_eq!(outbox.push(message(Lane::Average, 1)), Err(Full));
        assert_eq!(outbox.push(message(Lane::Gradient, 1)), Ok(()), "other lanes do not care");
        outbox.pop(|lane, _| lane == Lane::Gradient);
        let told: Vec<bool> = std::iter::from_fn(|| outbox.pop(|_, _| true)).map(|(_, writable)| writable).collect();
        assert_eq!(told, [false, true, false, false]);
    }

    #[test]
    fn bytes_bound_a_lane_but_one_large_message_may_wait_alone() {
        let outbox = Outbox::new(100, 1000);
        assert_eq!(outbox.push(message(Lane::Bulk, 5000)), Ok(()));
        assert_eq!(outbox.push(message(Lane::Bulk, 1)), Err(Full));
        for _ in 0..200 {
            assert_eq!(
                outbox.push(Message { lane: Lane::Control, frame: Bytes::from_static(b"hello"), body: None }),
                Ok(())
            );
        }
        assert_eq!(
            outbox.push(Message { lane: Lane::Control, frame: Bytes::from_static(b"x"), body: None }),
            Err(Full)
        );
        let (frames, writable) = outbox.pop_frames(600);
        assert_eq!((frames.len(), writable), (120, true));
        assert_eq!(outbox.pop_frames(usize::MAX).0.len(), 80);
        outbox.clear();
        assert!(outbox.pop(|_, _| true).is_none());
    }
}
