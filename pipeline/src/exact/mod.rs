//! The arithmetic of a stage of a Llama-like model, by hand over f32 slices: forward, backward, loss, optimizer, generation.
//!
//! [`FixedProduct`] multiplies in one fixed order, at the speed of the processor and with equal bits on every one; `compute::cpu`
//! adds threads. Everything else here has one order of summation and no fused operations, and takes its transcendental
//! functions from `libm` or from [`kernel::exp`]. It knows no clock, thread, network or disk.

pub mod engine;
pub(crate) mod input;
pub mod kernel;
pub mod optimizer;
pub mod product;

mod attention;
mod block;
mod head;
pub(crate) mod infer;
mod lane;
mod lanes;
mod stage;
mod weights;

pub use engine::{
    Engine, EngineError, IGNORE, Lost, Piece, Settings, StageInput, StageWeights, StepReport, TrainState, likeliest,
};
pub use product::{Bf16Instructions, Bf16Product, Bf16x3Product, FixedProduct, Instructions, Matrix, Operand, Product};
pub use stage::StageEngine;
pub use weights::TILE_VALUES;

/// The engine whose bits are equal everywhere.
pub type Exact = StageEngine<FixedProduct>;
