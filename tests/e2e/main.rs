//! Real processes, real sockets, for what only they can show. One test at a time: each is a swarm of its own.

mod admission;
mod demo;
mod lock_step;
mod process;
mod rejoin;
mod rounds;
