//! What a swarm does, seen over the events of all its peers.

mod adapters;
mod asking;
mod basics;
mod common;
mod digest;
mod faults;
mod feeding;
mod fleet;
mod full;
mod healing;
mod large;
mod learning;
mod leaving;
mod links;
mod moving;
mod processes;
mod rare;
mod report;
mod rounds;
mod standby;
mod steps;
mod straight;
mod validation;
