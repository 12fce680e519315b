//! A narrow world on one machine: a forwarder of UDP between peers that gives each an uplink, a downlink, a distance and losses
//! ([`Hub`]), or of one link between two ends ([`Shaper`]).
//!
//! For measuring, and for trying a swarm before anybody else is asked. It knows no packet's content. What a peer says to
//! another's public address goes through its own uplink, over the distance of both, and through the other's downlink.

mod hub;
mod link;
mod pair;
mod pipe;

pub use hub::{Hub, Passed};
pub use link::{Link, NoLink};
pub use pair::{Counts, NoShape, Shape, Shaper};
