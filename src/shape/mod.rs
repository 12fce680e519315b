//! A narrow world on one machine: a forwarder of UDP between peers that gives each an uplink, a downlink, a distance and losses.
//!
//! For measuring, and for trying a swarm before anybody else is asked. It knows no packet's content. What a peer says to
//! another's public address goes through its own uplink, over the distance of both, and through the other's downlink.

mod hub;
mod link;
mod pipe;

pub use hub::{Hub, Passed};
pub use link::{Link, NoLink};
