//! Training as a flow, and the peer that does it.
//!
//! Pure unless the feature `compute` is on: the machines (`peer`, `flow`, `plan`) move handles, the worker behind
//! `job` moves numbers.

#[cfg(feature = "compute")]
pub mod compute;
pub mod exact;
pub mod flow;
pub mod job;
pub mod model;
pub mod peer;
pub mod plan;
pub mod worker;
