//! Thousands of the same peer under virtual time: the second driver of `skein_pipeline::peer::Peer`.
//!
//! One thread, no clock, no socket, no disk. The world delays, loses and kills; the peers, the frames and (if wanted) the
//! learning are the product's own. One seed gives one history, on every platform.
//!
//! A *scenario* is what a user writes: a question, and the world in which it is asked. At *protocol* fidelity it becomes a
//! [`Setup`] of real peers, which the [`driver`] runs; at *fleet* fidelity it becomes flows and ticks. Either way an
//! [`outcome::Outcome`] comes of it, which reports, sweeps and explanations read.

pub mod ask;
pub mod checker;
pub mod cost;
pub mod curve;
pub mod digest;
pub mod driver;
pub mod engine;
pub mod fleet;
pub mod outcome;
pub mod record;
pub mod report;
pub mod scenario;
pub mod search;
pub mod validate;
pub mod words;
pub mod worker;
pub mod world;

pub use driver::{Fault, Moment, PeerUse, Plan, Role, Setup, Simulation, Small, What};
