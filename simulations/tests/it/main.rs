//! What a swarm does, seen over the events of all its peers.

mod basics;
mod faults;
mod steps;
mod common;
