//! Thousands of the same peer under virtual time: the second driver of `skein_pipeline::peer::Peer`.
//!
//! One thread, no clock, no socket, no disk. The world delays, loses and kills; the peers, the frames and (if wanted) the
//! learning are the product's own. One seed gives one history, on every platform.

pub mod checker;
pub mod digest;
pub mod driver;
pub mod engine;
pub mod worker;
pub mod world;

pub use driver::{Fault, Moment, Plan, Role, Scenario, Simulation, Small, What};
