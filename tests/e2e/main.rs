//! Real processes, real sockets, for what only they can show. One test at a time: each is a swarm of its own.

mod admission;
mod api;
mod demo;
mod finetune;
mod go_on;
mod live;
mod lock_step;
mod model;
#[cfg(unix)]
mod pause;
mod process;
mod rejoin;
mod rounds;
#[cfg(unix)]
mod signals;

#[path = "../common/deadline.rs"]
#[allow(dead_code, reason = "what this binary does not need, the other does")]
mod deadline;
