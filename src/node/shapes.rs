//! How each frame travels: its lane, and the body that belongs to it. In: the manifest, a frame. Out: a lane and what length its
//! body may have. It knows no peer and holds no byte.

use std::sync::Arc;

use skein_pipeline::model::cost::stage_parameters;
use skein_protocol::{
    Lane, Manifest, Stage,
    codec::coded_len_max,
    wire::{
        Frame, average, flow, generate,
        limits::{BODY_MAX, CHUNK},
        state,
    },
};

/// Which body belongs to a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    None,
    Exactly(u64),
    /// At least one byte, and a multiple of `unit`.
    AtMost {
        max: u64,
        unit: u64,
    },
}

impl Body {
    pub fn fits(self, len: u64) -> bool {
        match self {
            Body::None => len == 0,
            Body::Exactly(exact) => len == exact,
            Body::AtMost { max, unit } => len > 0 && len <= max && len.is_multiple_of(unit),
        }
    }
}

/// How a frame travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub lane: Lane,
    pub body: Body,
}

/// What the manifest says about lengths.
#[derive(Clone, Debug)]
pub struct Shapes {
    manifest: Arc<Manifest>,
}

impl Shapes {
    pub fn new(manifest: Arc<Manifest>) -> Self {
        Shapes { manifest }
    }

    /// The lane of a frame and the body that belongs to it; nothing for a stage that does not exist.
    pub fn of(&self, frame: &Frame) -> Option<Shape> {
        let with = |lane, body| Some(Shape { lane, body });
        let control = with(Lane::Control, Body::None);
        match frame {
            Frame::Hello(_) | Frame::Spread(_) => control,
            Frame::Flow(frame) => match frame {
                flow::Frame::Forward(forward) => with(Lane::Activation, self.body_into(forward.stage)?),
                flow::Frame::Labels(_) => with(Lane::Activation, Body::Exactly(self.tokens() * 4)),
                flow::Frame::Backward(returned) => {
                    self.exists(returned.stage)?;
                    with(Lane::Gradient, self.hidden())
                }
                flow::Frame::Accepted(_)
                | flow::Frame::Confirmed(_)
                | flow::Frame::Declined(_)
                | flow::Frame::Cancel(_)
                | flow::Frame::WantLabels(_)
                | flow::Frame::Finished(_)
                | flow::Frame::Ask(_)
                | flow::Frame::Void(_) => control,
            },
            Frame::Average(frame) => match frame {
                average::Frame::Tensors(terms) => {
                    self.exists(terms.name.stage)?;
                    // The difference in the averaging codec, the slow weights and the momentum: none is longer than f32.
                    let values = stage_parameters(&self.manifest, terms.name.stage);
                    with(Lane::Average, Body::AtMost { max: encoded_max(3 * values), unit: 1 })
                }
                average::Frame::Propose(_)
                | average::Frame::Agree(_)
                | average::Frame::Busy(_)
                | average::Frame::Ready(_)
                | average::Frame::Adopted(_)
                | average::Frame::Abort(_) => control,
            },
            Frame::State(frame) => match frame {
                state::Frame::Chunk(_) => with(Lane::Bulk, Body::AtMost { max: CHUNK, unit: 1 }),
                state::Frame::Want(_)
                | state::Frame::WantBlob(_)
                | state::Frame::Is(_)
                | state::Frame::WantChunk(_)
                | state::Frame::None(_)
                | state::Frame::Thanks(_)
                | state::Frame::Keep(_) => control,
            },
            Frame::Generate(frame) => {
                let body = match frame {
                    generate::Frame::Infer(infer) => {
                        self.exists(infer.stage)?;
                        let model = &self.manifest.model.config;
                        let unit = if infer.stage == 0 { 4 } else { 4 * u64::from(model.hidden) };
                        Body::AtMost { max: unit * u64::from(model.context), unit }
                    }
                    generate::Frame::Logits(_) => Body::Exactly(4 * u64::from(self.manifest.model.config.vocab)),
                    generate::Frame::Lost(_) | generate::Frame::Close(_) => Body::None,
                };
                with(Lane::Generation, body)
            }
        }
    }

    fn exists(&self, stage: Stage) -> Option<()> {
        (stage < self.manifest.stages.count).then_some(())
    }

    fn tokens(&self) -> u64 {
        self.manifest.tokens_per_micro_batch()
    }

    fn body_into(&self, stage: Stage) -> Option<Body> {
        self.exists(stage)?;
        Some(if stage == 0 { Body::Exactly(self.tokens() * 4) } else { self.hidden() })
    }

    fn hidden(&self) -> Body {
        let values = self.tokens() * u64::from(self.manifest.model.config.hidden);
        Body::AtMost { max: encoded_max(values), unit: 1 }
    }
}

/// Bytes of `values` numbers in any codec.
fn encoded_max(values: u64) -> u64 {
    coded_len_max(values).min(BODY_MAX)
}
