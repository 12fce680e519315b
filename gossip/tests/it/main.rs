//! How rounds behave among replicas whose messages are late, lost, doubled or never come. Virtual time, seeds, no clock.

mod lossy;
mod rounds;
mod world;
