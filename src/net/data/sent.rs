//! Messages whose refusal can still be told to the node: a refusal names the stream, and may come when all was acknowledged.
//! In: streams that are begun, landed and refused. Out: the frame of what was refused. Knows no stream.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use skein_protocol::Lane;

/// Messages that landed and are remembered: a body that arrived whole may wait for room for seconds before it is refused.
const LANDED: usize = 1024;

#[derive(Debug, Default)]
pub struct Sent {
    under_way: BTreeMap<u64, (Lane, Bytes)>,
    landed: VecDeque<(u64, (Lane, Bytes))>,
}

impl Sent {
    pub fn begun(&mut self, stream: u64, lane: Lane, frame: Bytes) {
        self.under_way.insert(stream, (lane, frame));
    }

    pub fn landed(&mut self, stream: u64) {
        let Some(message) = self.under_way.remove(&stream) else { return };
        if self.landed.len() >= LANDED {
            self.landed.pop_front();
        }
        self.landed.push_back((stream, message));
    }

    /// The message is refused; nothing where that was said before.
    pub fn refused(&mut self, stream: u64) -> Option<(Lane, Bytes)> {
        self.under_way.remove(&stream).or_else(|| {
            let at = self.landed.iter().position(|(landed, _)| *landed == stream)?;
            self.landed.remove(at).map(|(_, message)| message)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_body_is_remembered_however_many_go_past_it() {
        let mut sent = Sent::default();
        let frame = Bytes::from_static(b"round");
        sent.begun(0, Lane::Average, frame.clone());
        for stream in 1..=LANDED as u64 + 1 {
            sent.begun(stream, Lane::Gradient, Bytes::new());
            sent.landed(stream);
        }
        assert_eq!(sent.refused(0), Some((Lane::Average, frame)));
        assert_eq!(sent.refused(0), None, "it is told once");
        assert_eq!(sent.refused(1), None, "the oldest that landed is forgotten");
        assert!(sent.refused(2).is_some() && sent.refused(2).is_none());
    }
}
