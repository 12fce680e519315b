//! Peers that lie. A [`Citizen`] is the product's own peer; a liar's requests are edited on their way to its driver, so that its
//! machine itself stays honest and knows nothing of it.

use skein_pipeline::peer::{
    Peer, PeerConfig,
    io::{Input, Output},
};
use skein_protocol::{
    Instant, Machine, Outbox, Utc,
    machine::Why,
    wire::{Frame, flow, membership::Seals},
};

use crate::driver::Process;

/// How a peer lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// What it computes for others is not finite.
    Nan,
    /// What it computes for others has the wrong sign.
    Sign,
    /// What it computes for others is nothing.
    Zero,
    /// What it computes for others is chance.
    Noise,
    /// It takes work and never answers.
    Silent,
}

impl Lie {
    pub const ALL: [(&'static str, Lie); 5] =
        [("nan", Lie::Nan), ("sign", Lie::Sign), ("zero", Lie::Zero), ("noise", Lie::Noise), ("silent", Lie::Silent)];

    pub fn named(name: &str) -> Option<Lie> {
        Lie::ALL.into_iter().find(|(known, _)| *known == name).map(|(_, lie)| lie)
    }

    /// What becomes of values that it computed for somebody else.
    pub fn edit(self, values: &mut [f32]) {
        for (i, value) in values.iter_mut().enumerate() {
            *value = match self {
                Lie::Nan => f32::NAN,
                Lie::Sign => -*value,
                Lie::Zero => 0.0,
                // As large as what it stands for, and about something else.
                Lie::Noise => *value * if (i.wrapping_mul(0x9e37_79b9) >> 7) & 1 == 0 { 1.0 } else { -1.0 },
                Lie::Silent => *value,
            };
        }
    }
}

/// Whether a frame carries what its sender computed: an activation of a later stage, or a gradient.
pub fn is_result(frame: &Frame) -> bool {
    match frame {
        Frame::Flow(flow::Frame::Forward(forward)) => forward.stage > 0,
        Frame::Flow(flow::Frame::Backward(_)) => true,
        _ => false,
    }
}

/// A peer of the product, and whether it keeps its answers to itself.
pub struct Citizen {
    peer: Peer,
    silent: bool,
    held_back: Outbox<Output>,
}

impl Citizen {
    pub fn new(config: PeerConfig, now: Instant, utc: Utc, lie: Option<Lie>, seals: Seals) -> Self {
        let mut peer = Peer::new(config, now, utc);
        peer.share_seals(seals);
        Citizen { peer, silent: lie == Some(Lie::Silent), held_back: Outbox::new() }
    }
}

impl Machine for Citizen {
    type Input = Input;
    type Output = Output;

    fn handle(&mut self, now: Instant, input: Input, out: &mut Outbox<Output>) {
        if !self.silent {
            return self.peer.handle(now, input, out);
        }
        self.peer.handle(now, input, &mut self.held_back);
        while let Some(output) = self.held_back.pop() {
            match output {
                Output::Send { frame, .. } if is_result(&frame) => {}
                output => out.push(output),
            }
        }
    }

    fn deadline(&self) -> Option<(Instant, Why)> {
        self.peer.deadline()
    }
}

impl Process for Citizen {
    fn feed_next(&self) -> Option<u64> {
        self.peer.feed_next()
    }
}
