//! One micro-batch, from the feeder through the stages and back.
//!
//! Split by lifetime: [`source`] (the feeder's ids), [`stage`] (one served stage), [`kept`] (one id at one stage), [`handoff`]
//! (one id on its way to the next peer), [`held_out`] (which ids only tell their loss), [`route`] (who is next, and how fast they are), [`coding`] (how a tensor gets there),
//! [`window`] (how many are open), [`schedule`] (jobs of the worker), [`uplink`] (when bodies leave).

pub mod coding;
pub mod handoff;
pub mod held_out;
pub mod kept;
pub mod route;
pub mod schedule;
pub mod source;
pub mod stage;
pub mod uplink;
pub mod window;

use std::time::Duration;

use skein_protocol::{Blob, Instant, Lane, Outbox, PeerId, event::Event, wire};

use crate::peer::io::Output;

/// What a flow machine writes to: requests to the driver, jobs for the worker, measurements of the route.
pub struct Desk<'a> {
    pub now: Instant,
    pub me: PeerId,
    pub out: &'a mut Outbox<Output>,
    pub jobs: &'a mut schedule::Schedule,
    pub route: &'a mut route::Route,
    pub uplink: &'a mut uplink::Uplink,
}

impl Desk<'_> {
    pub fn send(&mut self, to: PeerId, lane: Lane, frame: wire::flow::Frame, body: Option<Blob>) {
        match body {
            Some(body) if to != self.me && frame.body_of().is_some() => self.uplink.push(to, lane, frame, body),
            body => self.out.push(Output::Send { to, lane, frame: wire::Frame::Flow(frame), body }),
        }
    }

    pub fn release(&mut self, blob: Blob) {
        self.out.push(Output::Release { blob });
    }

    pub fn release_all(&mut self, blobs: impl IntoIterator<Item = Blob>) {
        for blob in blobs {
            self.release(blob);
        }
    }

    pub fn emit(&mut self, event: Event) {
        self.out.push(Output::Emit(event));
    }
}

/// What is left of a sum of that which came in the time before, after so many seconds: half of it after `half_life`.
fn faded(seconds: f64, half_life: Duration) -> f64 {
    libm::exp2(-seconds / half_life.as_secs_f64())
}
