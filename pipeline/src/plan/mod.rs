//! Who serves what: cutting a model into stages, and choosing stages for a peer.

pub mod assign;
pub mod moves;
pub mod partition;
pub mod swarm;
