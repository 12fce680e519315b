//! Peers that lie. A [`Citizen`] is the product's own peer; a liar's requests are edited on their way to its driver, so that its
//! machine itself stays honest and knows nothing of it.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use serde::{Deserialize, Serialize};
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
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

    pub fn name(self) -> &'static str {
        Lie::ALL.into_iter().find(|(_, lie)| *lie == self).map_or("", |(name, _)| name)
    }

    /// What such a peer does, in words.
    pub fn says(self) -> &'static str {
        match self {
            Lie::Nan => "answers with values that are not finite",
            Lie::Sign => "answers with the wrong sign",
            Lie::Zero => "answers with zeros",
            Lie::Noise => "answers with chance",
            Lie::Silent => "takes work and never answers",
        }
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

/// Results that silent liars kept back, all of them together.
#[derive(Clone, Debug, Default)]
pub struct Withheld(Arc<AtomicU64>);

impl Withheld {
    pub fn count(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A peer of the product, and whether it keeps its answers to itself.
pub struct Citizen {
    peer: Peer,
    silent: bool,
    held_back: Outbox<Output>,
    withheld: Withheld,
}

impl Citizen {
    pub fn new(config: PeerConfig, now: Instant, utc: Utc, lie: Option<Lie>, seals: Seals) -> Self {
        let mut peer = Peer::new(config, now, utc);
        peer.share_seals(seals);
        let (held_back, withheld) = (Outbox::new(), Withheld::default());
        Citizen { peer, silent: lie == Some(Lie::Silent), held_back, withheld }
    }

    /// Counts what it keeps back with what others do.
    pub fn counting(self, withheld: Withheld) -> Self {
        Citizen { withheld, ..self }
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
                Output::Send { frame, .. } if is_result(&frame) => drop(self.withheld.0.fetch_add(1, Relaxed)),
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
