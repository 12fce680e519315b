//! What a swarm does, seen over the events of all its peers.

mod basics;
mod common;
mod digest;
mod faults;
mod healing;
mod learning;
mod rounds;
mod steps;
mod straight;
