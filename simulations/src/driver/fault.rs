//! What goes wrong, and when: at a time, or at a step of the protocol.

use std::time::Duration;

use skein_pipeline::{
    job::{Done, Job},
    peer::io::Command,
};
use skein_protocol::{event::Event, wire::Frame};

use crate::engine::Time;

/// Something done to a peer or a link. Peers are named by number.
#[derive(Clone, Debug)]
pub enum Fault {
    /// SIGKILL: the process is gone, its disk remains. What it sent in its last moment may still be lost.
    Kill(usize),
    /// The process starts (again), with what is on its disk.
    Start(usize),
    /// SIGSTOP: no event is processed, time goes on.
    Pause(usize),
    Resume(usize),
    PauseFor(usize, Duration),
    /// What the first says no longer reaches the second.
    Block(usize, usize),
    Unblock(usize, usize),
    BlockFor(usize, usize, Duration),
    /// In both directions.
    Partition(usize, usize),
    Heal(usize, usize),
    /// The device gets slower (factor below 1) or faster.
    Speed(usize, f64),
    DiskFull(usize, bool),
    /// From now on what a dying process wrote last never reached the platter.
    DiskTorn(usize, bool),
    /// Its ways to others take so many times as long.
    Lag(usize, f64),
    /// Its clock jumps by so many milliseconds.
    Skew(usize, i64),
    /// The next activation or gradient that it sends to another peer is not finite.
    Poison(usize),
    Command(usize, Command),
}

/// One thing that a peer does or hears.
#[derive(Clone, Copy, Debug)]
pub enum What<'a> {
    /// It gave this frame to the network.
    Sent {
        to: usize,
        frame: &'a Frame,
    },
    /// This frame has arrived; the peer has not seen it yet.
    Arrived {
        from: usize,
        frame: &'a Frame,
    },
    Emitted(&'a Event),
    Asked(&'a Job),
    /// The worker is done; the peer has not seen it yet.
    Finished(&'a Done),
}

#[derive(Clone, Copy, Debug)]
pub struct Moment<'a> {
    pub at: Time,
    pub peer: usize,
    pub what: What<'a>,
}

/// Looks at every moment and says what goes wrong right then.
pub type Hook = Box<dyn FnMut(&Moment<'_>) -> Vec<Fault>>;
