//! One real peer: a process around the machines of `skein_pipeline`, with sockets, clock, disk and device.

pub mod cli;
pub mod config;
pub mod corpus;
pub mod home;
pub mod hub;
pub mod memory;
pub mod net;
pub mod node;
pub mod serve;
pub mod shape;
pub mod talk;
pub mod text;
pub mod watch;
