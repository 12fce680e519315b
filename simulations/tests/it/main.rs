//! What a swarm does, seen over the events of all its peers.

mod basics;
mod common;
mod digest;
mod faults;
mod full;
mod healing;
mod large;
mod learning;
mod leaving;
mod moving;
mod rare;
mod rounds;
mod standby;
mod steps;
mod straight;
